//! Servers, schemas and input that are refused, each with its kind of error and before anything changes.

use std::process::{Child, Command, Stdio};

use oncekey::{CallOptions, Engine, ErrorKind, Key, Status, Value};

use crate::engines::{claimed, texts};
use crate::server::{Server, Setup, as_user, unprivileged};
use crate::{new_schema, open, options, shared, until};

/// Checks the kind of an error of an open, and that its message contains `names`.
#[track_caller]
fn refused(opened: oncekey::Result<Engine>, kind: ErrorKind, names: &str) {
    let error = opened.map(drop).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(names), "{error}");
}

#[test]
fn an_invalid_address_is_refused() {
    for url in ["", "postgres", "http://db/x", "postgres://user:secret@db:port/x"] {
        let error = Engine::connect(url).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOptions, "{url}: {error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
    refused(options("Not a name").connect(&shared().url()), ErrorKind::InvalidName, "schema");
}

#[test]
fn a_server_that_does_not_exist_is_unavailable_at_once() {
    let url = shared().url().replace("host=", "host=/nowhere");
    refused(Engine::connect(&url), ErrorKind::Unavailable, "/nowhere");
}

#[test]
fn users_databases_and_privileges_are_checked() {
    let schema = new_schema();
    let url = shared().url();
    let unknown = url.replace("user=oncekey", "user=stranger");
    refused(options(&schema).connect(&unknown), ErrorKind::InvalidOptions, "stranger");
    let unknown = url.replace("dbname=postgres", "dbname=elsewhere");
    refused(options(&schema).connect(&unknown), ErrorKind::InvalidOptions, "elsewhere");

    // A role that may use the tables of a store, but create none.
    shared().sql(&format!("CREATE ROLE \"app-{schema}\" LOGIN"));
    let app = url.replace("user=oncekey", &format!("user=app-{schema}"));
    refused(options(&schema).connect(&app), ErrorKind::InvalidOptions, "permission denied");
    shared().sql(&options(&schema).schema_sql().unwrap());
    refused(options(&schema).connect(&app), ErrorKind::InvalidOptions, "permission denied");
    shared().sql(&format!(
        "GRANT USAGE ON SCHEMA \"{schema}\" TO \"app-{schema}\";
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA \"{schema}\" TO \"app-{schema}\";
         GRANT USAGE ON ALL SEQUENCES IN SCHEMA \"{schema}\" TO \"app-{schema}\""
    ));
    let engine = options(&schema).connect(&app).unwrap();
    texts(&engine).execute("k", |_| Ok("done".to_owned())).unwrap();
    engine.table("t").unwrap().insert("a", "b").unwrap();
    assert!(texts(&engine).forget("k").unwrap());
}

#[test]
fn a_wrong_password_is_refused_and_not_shown() {
    let server = Server::start("");
    server.sql("CREATE ROLE guarded LOGIN SUPERUSER PASSWORD 'right'");
    let hba = server.dir.join("data/pg_hba.conf");
    let trusted = std::fs::read_to_string(&hba).unwrap();
    std::fs::write(&hba, format!("local all guarded scram-sha-256\n{trusted}")).unwrap();
    server.sql("SELECT pg_reload_conf()");
    let url = server.url().replace("user=oncekey", "user=guarded");
    for (password, names) in [(" password=wrong-one", "guarded"), ("", "password")] {
        let error = Engine::connect(&format!("{url}{password}")).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOptions, "{error}");
        assert!(error.to_string().contains(names) && !format!("{error:?}").contains("wrong-one"), "{error}");
    }
    assert_eq!(server.sql("SELECT to_regclass('oncekey.store') IS NULL"), "t", "nothing was created");
    let engine = Engine::connect(&format!("{url} password=right")).unwrap();
    assert!(!format!("{engine:?}").contains("right"));
}

/// The tables are on a small file system of their own.
#[test]
fn a_full_disk_refuses_what_does_not_fit_and_loses_nothing() {
    let Some((uid, gid)) = unprivileged() else {
        println!("skipped: only root mounts file systems");
        return;
    };
    // Only the server sees the mount, which ends with it and leaves nothing behind.
    let mount = format!("mount -t tmpfs small /mnt -o mode=700,size=24m,uid={uid},gid={gid}");
    let within = format!("unshare --mount --propagation private sh -c '{mount} && exec \"$@\"' sh");
    let server = Server::start_as(&Setup { within: Some(&within), ..Setup::default() });
    server.sql("CREATE TABLESPACE small LOCATION '/mnt'");
    server.sql("ALTER DATABASE postgres SET default_tablespace = small");
    let engine = Engine::connect(&server.url()).unwrap();
    let texts = texts(&engine);
    // The server cannot compress these values.
    let value = |seed: u64| -> String {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            char::from(b' ' + u8::try_from(state >> 33 & 63).unwrap())
        };
        (0..200_000).map(|_| next()).collect()
    };
    server.sql("CREATE TABLE ballast AS SELECT repeat(md5(i::text), 30) FROM generate_series(1, 4000) i");
    let mut stored = 0;
    let full = loop {
        assert!(stored < 500, "the disk is full before");
        let claim = claimed(texts.begin(format!("{stored}")).unwrap());
        match claim.succeed(&value(stored)) {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(full.kind(), ErrorKind::Full, "{full}");
    assert!(stored > 10, "{stored}");
    for key in (0..stored).step_by(7) {
        let outcome = texts.get(format!("{key}")).unwrap().unwrap().into_outcome();
        assert_eq!(outcome, Some(Ok(value(key))), "{key}");
    }
    // The claim is alive, and the same call ends it when there is space.
    assert_eq!(texts.get(format!("{stored}")).unwrap().unwrap().status(), Status::InProgress);
    server.sql("DROP TABLE ballast");
    server.sql("CHECKPOINT");
    full.claim.succeed(&value(stored)).unwrap();
    assert_eq!(texts.get(format!("{stored}")).unwrap().unwrap().into_outcome(), Some(Ok(value(stored))));
}

#[test]
fn schemas_with_other_tables_and_newer_stores_are_refused() {
    let schema = new_schema();
    refused(options(&schema).create(false).connect(&shared().url()), ErrorKind::NotFound, &schema);
    shared().sql(&format!("CREATE SCHEMA \"{schema}\"; CREATE TABLE \"{schema}\".records (mine int)"));
    refused(options(&schema).connect(&shared().url()), ErrorKind::UnsupportedFormat, "records");
    assert_eq!(shared().sql(&format!("SELECT to_regclass('\"{schema}\".store') IS NULL")), "t", "nothing was created");

    let schema = new_schema();
    shared().sql(&format!("CREATE SCHEMA \"{schema}\"; CREATE TABLE \"{schema}\".store (mine int)"));
    refused(options(&schema).connect(&shared().url()), ErrorKind::UnsupportedFormat, &schema);

    let schema = new_schema();
    drop(open(&schema));
    shared().sql(&format!("UPDATE \"{schema}\".store SET format = 2"));
    refused(options(&schema).connect(&shared().url()), ErrorKind::UnsupportedFormat, "format 2");
}

#[test]
fn a_server_that_may_lose_answers_is_refused() {
    let server = Server::start("-c fsync=off");
    refused(Engine::connect(&server.url()), ErrorKind::InvalidOptions, "fsync");
    server.restart("fast", "-c full_page_writes=off");
    refused(Engine::connect(&server.url()), ErrorKind::InvalidOptions, "full_page_writes");
    // The server's default of this setting does not matter: each session of an engine sets it.
    server.restart("fast", "-c synchronous_commit=off");
    drop(Engine::connect(&server.url()).unwrap());
    server.restart("fast", "-c default_transaction_read_only=on");
    let error = Engine::connect(&server.url()).map(drop).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::InvalidOptions | ErrorKind::Unavailable), "{error}");
}

/// A pooler in front of the shared server. It ends with the test.
struct Pooler(Child, tempfile::TempDir);

impl Pooler {
    fn start(mode: &str, round_robin: u8) -> Self {
        let dir = tempfile::tempdir_in(&shared().dir).unwrap();
        let path = dir.path().display();
        std::os::unix::fs::chown(dir.path(), unprivileged().map(|(uid, _)| uid), None).unwrap();
        let settings = format!(
            "[databases]\npostgres = host={} user=oncekey pool_size=20\n[pgbouncer]\nunix_socket_dir = {path}\n\
             listen_port = 5432\nauth_type = any\npool_mode = {mode}\nserver_round_robin = {round_robin}\n\
             logfile = {path}/log\nmin_pool_size = 5\n",
            shared().dir.display(),
        );
        std::fs::write(dir.path().join("ini"), settings).unwrap();
        let script = "pgbouncer -q \"$1\" & pid=$!; cat >/dev/null; kill $pid; wait $pid";
        let mut command = as_user(unprivileged(), std::path::Path::new("sh"));
        command.env("PATH", "/usr/sbin:/usr/bin:/bin").arg("-c").arg(script).arg("sh").arg(dir.path().join("ini"));
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let socket = dir.path().join(".s.PGSQL.5432");
        until(|| socket.exists());
        Self(child, dir)
    }

    fn url(&self) -> String {
        format!("host={} user=oncekey dbname=postgres", self.1.path().display())
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[test]
fn a_pooler_is_refused_unless_it_keeps_sessions() {
    let is_there = Command::new("/usr/sbin/pgbouncer").arg("--version").output().is_ok();
    assert!(is_there, "this test needs PgBouncer: on Debian, `apt-get install pgbouncer`");
    for round_robin in [0, 1] {
        let pooler = Pooler::start("transaction", round_robin);
        refused(options(&new_schema()).connect(&pooler.url()), ErrorKind::InvalidOptions, "pooler");
    }
    let pooler = Pooler::start("session", 0);
    let engine = options(&new_schema()).connect(&pooler.url()).unwrap();
    texts(&engine).execute("k", |_| Ok("done".to_owned())).unwrap();
}

#[test]
fn large_values_and_keys_of_any_bytes_are_stored() {
    let schema = new_schema();
    let engine = options(&schema).max_value_bytes(Value::MAX_BYTES).connect(&shared().url()).unwrap();
    let texts = texts(&engine);
    let key = Key::from_bytes(b"a\0b\xff'\\").unwrap();
    let large = "x".repeat(Value::MAX_BYTES - 64);
    texts.execute_with(key.clone(), CallOptions::new(), |_| Ok(large.clone())).unwrap();
    assert_eq!(texts.get(key).unwrap().unwrap().into_outcome(), Some(Ok(large)));
    let claim = claimed(texts.begin("k").unwrap());
    let error = claim.succeed(&"x".repeat(Value::MAX_BYTES)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    error.claim.release().unwrap();
}
