//! Connections of an address with `sslmode=require`.

use oncekey::{Engine, ErrorKind};

#[cfg(not(feature = "tls"))]
#[test]
fn without_the_feature_a_connection_that_must_be_encrypted_is_refused() {
    let error = Engine::connect("postgres://app@127.0.0.1/db?sslmode=require").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOptions);
    assert!(error.to_string().contains("feature `tls`"), "{error}");
}

#[cfg(feature = "tls")]
mod with_feature {
    use std::path::Path;
    use std::process::Command;

    use super::*;
    use crate::engines::texts;
    use crate::options;
    use crate::server::Server;

    const URL: &str = "ONCEKEY_TLS_URL";
    const EXPECTED: &str = "ONCEKEY_TLS_EXPECTED";

    /// Starts a server at this address of loopback that accepts only encrypted connections, for the host `localhost`.
    fn start(address: &str) -> Server {
        let server = Server::start(&format!("-c listen_addresses={address}"));
        for name in ["server", "other"] {
            server.sql(
                &format!(
                    "COPY (SELECT) TO PROGRAM 'openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost
                     -addext subjectAltName=DNS:localhost -addext basicConstraints=critical,CA:FALSE
                     -keyout {name}.key -out {name}.crt 2>/dev/null'"
                )
                .replace('\n', " "),
            );
        }
        let rules = "local all all trust\\nhostssl all all all trust\\n";
        server.sql(&format!("COPY (SELECT) TO PROGRAM 'printf \"{rules}\" > pg_hba.conf'"));
        server.sql("ALTER SYSTEM SET ssl = on");
        server.restart("fast", &format!("-c listen_addresses={address}"));
        server
    }

    /// Runs [`connects`] in a process that trusts only this certificate. The connection must be made, or fail with an
    /// error that contains this text.
    #[track_caller]
    fn connect(url: &str, trusted: &Path, expected: &str) {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "tls::with_feature::connects", "--ignored"]).env("SSL_CERT_FILE", trusted);
        child.env_remove("SSL_CERT_DIR");
        let done = child.env(URL, url).env(EXPECTED, expected).output().unwrap();
        assert!(done.status.success(), "{url}: {}", String::from_utf8_lossy(&done.stdout));
    }

    #[test]
    #[ignore = "a child process of the other test"]
    fn connects() {
        let (url, expected) = (std::env::var(URL).unwrap(), std::env::var(EXPECTED).unwrap());
        match options("oncekey").connect(&url) {
            Ok(engine) => {
                assert_eq!(expected, "");
                texts(&engine).execute("key", |_| Ok("done".to_owned())).unwrap();
                engine.close().unwrap();
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::InvalidOptions, "{error}");
                assert!(!expected.is_empty() && error.to_string().contains(&expected), "{error}");
            }
        }
    }

    #[test]
    fn a_connection_is_encrypted_to_a_server_with_a_trusted_certificate_and_no_other() {
        let [.., third, fourth] = std::process::id().to_be_bytes();
        let address = format!("127.42.{third}.{fourth}");
        let server = start(&address);
        let (trusted, other) = (server.dir.join("data/server.crt"), server.dir.join("data/other.crt"));
        let url = |host: &str, rest: &str| format!("postgres://oncekey@{host}/postgres?hostaddr={address}{rest}");
        connect(&url("localhost", "&sslmode=require"), &trusted, "");
        let engine = Engine::connect(&server.url()).unwrap();
        assert_eq!(texts(&engine).get("key").unwrap().unwrap().into_outcome(), Some(Ok("done".to_owned())));
        connect(&url("localhost", "&sslmode=require"), &other, "invalid peer certificate");
        connect(&url("elsewhere", "&sslmode=require"), &trusted, "invalid peer certificate");
        let without_one = server.dir.join("data/PG_VERSION");
        connect(&url("localhost", "&sslmode=require"), &without_one, "trusted certificates");
        connect(&url("localhost", "&sslnegotiation=direct"), &trusted, "sslnegotiation=direct needs sslmode=require");
        connect(&url("no%20name", "&sslmode=require"), &trusted, "no certificate can name the host");
        connect("postgres://oncekey@%2ftmp/postgres?sslmode=require", &trusted, "a Unix socket");
        connect(&url("localhost", ""), &trusted, "no encryption");
        connect(&url("localhost", "&sslmode=prefer"), &trusted, "no encryption");
        server.restart("fast", &format!("-c listen_addresses={address} -c ssl=off"));
        connect(&url("localhost", "&sslmode=require"), &trusted, "server does not support TLS");
    }
}
