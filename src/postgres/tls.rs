//! Encryption of the connections to the server of an address.

use tokio_postgres::Config;
use tokio_postgres::config::SslMode;

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
#[cfg(feature = "tls")]
pub(crate) fn tls_of(config: &mut Config) -> Result<Tls> {
    use rustls::crypto::ring::default_provider;
    use rustls::{ClientConfig, RootCertStore};

    let mut trusted = RootCertStore::empty();
    if config.get_ssl_mode() == SslMode::Require {
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
    let tls = tls.map_err(invalid)?.with_root_certificates(trusted).with_no_client_auth();
    Ok(Tls::new(tls))
}

#[cfg(not(feature = "tls"))]
pub(crate) fn tls_of(config: &mut Config) -> Result<Tls> {
    if config.get_ssl_mode() == SslMode::Require {
        return Err(invalid("this program was built without the feature `tls` of oncekey"));
    }
    Ok(tokio_postgres::NoTls)
}
