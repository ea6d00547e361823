//! Encryption of the connections to the server of an address.

use tokio_postgres::Config;
use tokio_postgres::config::{SslMode, SslNegotiation};

use crate::types::error::{Error, ErrorKind, Result};

#[cfg(feature = "tls")]
pub(crate) type Tls = tokio_postgres_rustls::MakeRustlsConnect;
#[cfg(not(feature = "tls"))]
pub(crate) type Tls = tokio_postgres::NoTls;

fn invalid(message: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidOptions, format!("cannot encrypt the connection: {message}"))
}

/// Returns what encrypts connections to this address. Only those of an address with `sslmode=require` are encrypted:
/// `prefer`, the default, would accept a server that only seems to be the right one.
pub(crate) fn tls_of(config: &mut Config) -> Result<Tls> {
    if config.get_ssl_negotiation() == SslNegotiation::Direct && config.get_ssl_mode() != SslMode::Require {
        return Err(invalid("sslnegotiation=direct needs sslmode=require"));
    }
    connector(config)
}

#[cfg(feature = "tls")]
fn connector(config: &mut Config) -> Result<Tls> {
    use rustls::crypto::ring::default_provider;
    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, RootCertStore};
    use tokio_postgres::config::Host;

    let mut trusted = RootCertStore::empty();
    if config.get_ssl_mode() == SslMode::Require {
        if config.get_hosts().is_empty() {
            return Err(invalid("the address names no host"));
        }
        for host in config.get_hosts() {
            match host {
                Host::Tcp(name) if ServerName::try_from(name.as_str()).is_ok() => {}
                Host::Tcp(name) => return Err(invalid(format_args!("no certificate can name the host {name:?}"))),
                #[cfg(unix)]
                Host::Unix(_) => return Err(invalid("it is a Unix socket")),
            }
        }
        let found = rustls_native_certs::load_native_certs();
        trusted.add_parsable_certificates(found.certs);
        if trusted.is_empty() {
            let why = found.errors.first().map_or_else(|| "there are none".to_owned(), ToString::to_string);
            return Err(invalid(format_args!("cannot read the trusted certificates: {why}")));
        }
    } else {
        config.ssl_mode(SslMode::Disable);
    }
    let tls = ClientConfig::builder_with_provider(default_provider().into()).with_safe_default_protocol_versions();
    let mut tls = tls.map_err(invalid)?.with_root_certificates(trusted).with_no_client_auth();
    // Direct negotiation needs it.
    tls.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok(Tls::new(tls))
}

#[cfg(not(feature = "tls"))]
fn connector(config: &mut Config) -> Result<Tls> {
    if config.get_ssl_mode() == SslMode::Require {
        return Err(invalid("this program was built without the feature `tls` of oncekey"));
    }
    Ok(tokio_postgres::NoTls)
}
