//! Tests of the command line and the page on stores on PostgreSQL.

use std::fmt::Write as _;
use std::path::Path;

use oncekey::cli::{Describers, run};
use oncekey::{ErrorKind, Interruption, Manager, Status};
use serde_json::Value as Json;

use crate::engines::{Texts, claimed, texts};
use crate::pages::Site;
use crate::{new_schema, open, options, shared};

/// A password that the server does not ask for, and that nothing may print.
const SECRET: &str = "s3cret";

/// Returns the address of the server for this role, with the password.
pub(crate) fn address(role: &str) -> String {
    let mut host = String::new();
    for byte in shared().dir.to_str().unwrap().bytes() {
        write!(host, "%{byte:02x}").unwrap();
    }
    format!("postgres://{role}:{SECRET}@{host}/postgres")
}

/// Runs a command. Returns the exit status, standard output and standard error.
pub(crate) fn oncekey(args: &[&str]) -> (u8, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let status = run(&Describers::new(), args, &mut out, &mut err);
    let (out, err) = (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap());
    assert!(!out.contains(SECRET) && !err.contains(SECRET), "{args:?} printed the password: {out}{err}");
    (status, out, err)
}

#[track_caller]
pub(crate) fn printed(args: &[&str]) -> String {
    let (status, out, err) = oncekey(args);
    assert_eq!((status, err.as_str()), (0, ""), "{args:?} printed {out}");
    out
}

/// The command line on the store in a schema.
struct Cli {
    url: String,
    schema: String,
}

impl Cli {
    fn new(schema: &str) -> Self {
        Self { url: address("oncekey"), schema: schema.to_owned() }
    }

    fn run(&self, command: &str, args: &[&str]) -> (u8, String, String) {
        oncekey(&[&[command, &self.url, "--schema", &self.schema], args].concat())
    }

    #[track_caller]
    fn printed(&self, command: &str, args: &[&str]) -> String {
        printed(&[&[command, &self.url, "--schema", &self.schema], args].concat())
    }

    /// Runs the doctor. Returns the exit status, and the word, the text and the command of each finding.
    fn doctor(&self) -> (u8, String) {
        let (status, out, err) = self.run("doctor", &["--json"]);
        assert_eq!(err, "");
        let report: Json = serde_json::from_str(&out).unwrap();
        let findings = report["findings"].as_array().unwrap().iter();
        let lines: Vec<_> =
            findings.map(|found| format!("{}: {} {}", found["what"], found["text"], found["command"])).collect();
        (status, lines.join("\n"))
    }
}

fn forget_claim(texts: &Texts, key: &str) {
    std::mem::forget(claimed(texts.begin(key).unwrap()));
}

#[test]
fn commands_work_while_a_service_has_the_store_open() {
    let schema = new_schema();
    let (service, cli) = (open(&schema), Cli::new(&schema));
    let texts = texts(&service);
    texts.execute("won", |_| Ok("receipt".to_owned())).unwrap();
    texts.execute("lost", |_| Err("declined".to_owned())).unwrap_err();
    drop(claimed(texts.begin("held").unwrap()));
    let live = claimed(texts.begin("live").unwrap());
    service.table("t").unwrap().insert("a", "b").unwrap();

    let stats = cli.printed("stats", &[]);
    assert!(stats.contains("postgres://") && stats.contains("/postgres") && !stats.contains("journal"), "{stats}");
    let listed = cli.printed("list", &["--status", "interrupted"]);
    assert!(listed.lines().count() == 2 && listed.contains("held"), "{listed}");
    assert_eq!(cli.printed("list", &["--count"]), "4\n");
    assert!(cli.printed("tables", &[]).contains('t'));
    assert!(cli.printed("rows", &["t"]).contains('a'));
    let shown = cli.printed("get", &["m", "live", "--effect", "charge"]);
    assert!(shown.contains("InProgress") && shown.contains(&live.effect_id("charge")), "{shown}");

    assert!(cli.printed("resolve", &["m", "held", "--retry"]).contains("released"));
    texts.execute("held", |_| Ok("second".to_owned())).unwrap();
    assert!(cli.printed("revoke", &["m", "live"]).contains("interrupted"));
    let lost = live.succeed(&"late".to_owned()).unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::ClaimLost);
    assert_eq!(texts.get("live").unwrap().unwrap().info().interruption(), Some(Interruption::Revoked));
    assert!(cli.printed("extend", &["m", "won", "9days"]).contains("extended"));
    assert!(cli.printed("forget", &["m", "lost"]).contains("forgotten"));
    assert!(cli.printed("remove", &["m", "live"]).contains("removed"));
    assert!(cli.printed("compact", &[]).contains("0 expired"));
    assert!(cli.printed("verify", &[]).contains("2 records and 1 rows"));

    let exported = cli.printed("export", &[]);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("all"), &exported).unwrap();
    let (file, copy) = (dir.path().join("all"), Cli::new(&new_schema()));
    assert!(copy.printed("import", &[file.to_str().unwrap()]).contains("2 records imported"));
    let (there, here) =
        (copy.printed("get", &["m", "won", "--effect", "e"]), cli.printed("get", &["m", "won", "--effect", "e"]));
    let effect = |text: &str| text.lines().find(|line| line.starts_with("effect id")).map(str::to_owned).unwrap();
    assert_eq!(effect(&there), effect(&here));
}

#[test]
fn commands_that_read_change_nothing_and_need_no_privilege_to_write() {
    let schema = new_schema();
    let cli = Cli::new(&schema);
    for command in ["stats", "list", "verify", "export", "tables"] {
        let (status, _, err) = cli.run(command, &[]);
        assert!(status == 2 && err.contains(&schema), "{command}: {err}");
    }
    assert_eq!(shared().sql(&format!("SELECT to_regnamespace('\"{schema}\"') IS NULL")), "t", "nothing was created");

    let service = open(&schema);
    let claims = texts(&service);
    claims.execute("done", |_| Ok("receipt".to_owned())).unwrap();
    forget_claim(&claims, "orphan");
    service.crash();
    let role = format!("looker-{schema}");
    shared().sql(&format!(
        "CREATE ROLE \"{role}\" LOGIN; ALTER ROLE \"{role}\" SET default_transaction_read_only = on;
         GRANT USAGE ON SCHEMA \"{schema}\" TO \"{role}\"; GRANT SELECT ON ALL TABLES IN SCHEMA \"{schema}\" TO \"{role}\""
    ));
    let everything = || {
        let tables = ["store", "incarnations", "records", "rows"];
        let all = tables.map(|table| shared().sql(&format!("SELECT * FROM \"{schema}\".{table} ORDER BY 1, 2")));
        (
            all,
            shared().sql(&format!(
                "SELECT n.last_value, i.last_value FROM \"{schema}\".number n, \"{schema}\".incarnation i"
            )),
        )
    };
    let before = everything();
    let looker = Cli { url: address(&role), schema: schema.clone() };
    // As on an embedded store, the record of a dead owner is shown as interrupted.
    assert!(looker.printed("list", &["--status", "interrupted"]).contains("orphan"));
    assert!(looker.printed("get", &["m", "orphan"]).contains("Interrupted (ProcessEnded)"));
    assert!(looker.printed("verify", &[]).contains("2 records"));
    assert!(looker.printed("resolve", &["m", "orphan", "--retry", "--dry-run"]).contains("orphan"));
    let (status, findings) = looker.doctor();
    assert_eq!(status, 6, "{findings}");
    for found in ["dead-owners\": \"1 records", "no-privilege", "INSERT into records", "open in 0 engines", "sound"] {
        assert!(findings.contains(found), "no {found}: {findings}");
    }
    for command in ["stats", "list", "export", "tables"] {
        looker.printed(command, &[]);
    }
    let engine = options(&schema).read_only(true).connect(&address(&role)).unwrap();
    assert_eq!((engine.opened().interrupted, engine.server_report().unwrap().orphaned), (1, 1));
    let texts: Manager<String, String> = engine.manager("m").unwrap();
    let ended = texts.execute("done", |_| panic!("it has run")).unwrap();
    assert_eq!(ended.value(), "receipt");
    for error in [
        texts.begin("new").map(drop).unwrap_err(),
        texts.begin("orphan").map(drop).err().unwrap_or_else(|| texts.remove("orphan").unwrap_err()),
        texts.forget("done").unwrap_err(),
        engine.table("t").unwrap().insert("a", "b").unwrap_err(),
        engine.compact_now().unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::ReadOnly, "{error}");
    }
    let read = engine.atomic_phase(|tx| {
        let texts = tx.table("t")?.get("a")?;
        Ok::<_, oncekey::Error>(texts.is_none())
    });
    assert!(read.unwrap());
    engine.close().unwrap();
    assert!(everything() == before, "a command that reads has changed something");
    // A command that changes something refuses before it does.
    let (status, _, err) = looker.run("resolve", &["m", "orphan", "--retry"]);
    assert!(status != 0 && !err.is_empty(), "{err}");
    assert!(everything() == before, "a refused command has changed something");
}

#[test]
fn commands_for_a_directory_say_what_to_do_instead() {
    let url = &address("oncekey");
    for (args, says) in [
        (&["backup", url, "/tmp/copy"][..], "pg_dump"),
        (&["repair", url], "recovers by itself"),
        (&["salvage", url, "--into", "/tmp/copy"], "backup"),
        (&["watch", url], "oncekey list"),
    ] {
        let (status, out, err) = oncekey(args);
        assert!(status == 2 && out.is_empty() && err.contains(says), "{args:?}: {err}");
    }
    let (status, _, err) = oncekey(&["stats", "/tmp", "--schema", "x"]);
    assert!(status == 2 && err.contains("--schema is for a database"), "{err}");
}

#[test]
fn no_error_prints_a_password() {
    let url = address("oncekey");
    let nowhere = format!("postgres://app:{SECRET}@localhost:1/x");
    for args in [
        &["stats", &nowhere][..],
        &["doctor", &nowhere],
        &["doctor", &nowhere, "--json"],
        &["web", &nowhere],
        &["list", &url, "unexpected", &url],
        &["list", &format!("postgres://app:{SECRET}@{SECRET}@db/x")],
        &["list", &format!("postgres://app:a?{SECRET}=1@db/x")],
        &["list", &format!("postgres://app:a/{SECRET}@db/x")],
        &["list", &format!("postgres://db/x?password={SECRET}&port={SECRET}")],
        &["list", &url.replace("/postgres", "/elsewhere")],
        &["list", &url, "--schema", "Not a name"],
    ] {
        let (status, ..) = oncekey(args);
        assert_ne!(status, 0, "{args:?}");
    }
    let (status, out, _) = oncekey(&["doctor", &nowhere]);
    assert!(status == 5 && out.contains("postgres://localhost/x") && out.contains("next: check the host"), "{out}");
}

#[test]
fn the_schema_is_printed_and_usable() {
    let schema = new_schema();
    shared().sql(&printed(&["schema", "--schema", &schema]));
    let engine = options(&schema).create(false).connect(&shared().url()).unwrap();
    assert!(!engine.opened().created);
    assert!(printed(&["schema"]).contains("CREATE TABLE \"oncekey\".records"));
    let (status, _, err) = oncekey(&["schema", "--schema", "Not a name"]);
    assert!(status == 2 && err.contains("schema"), "{err}");
}

#[test]
fn the_doctor_finds_nothing_in_a_sound_store_and_names_a_missing_one() {
    let schema = new_schema();
    let cli = Cli::new(&schema);
    let (status, findings) = cli.doctor();
    assert!(status == 2 && findings.contains("missing") && findings.contains("oncekey schema --schema"), "{findings}");
    let service = open(&schema);
    let texts = texts(&service);
    texts.execute("k", |_| Ok("v".to_owned())).unwrap();
    let (status, findings) = cli.doctor();
    assert_eq!(status, 0, "{findings}");
    for found in ["PostgreSQL 1", "open in 1 engines", "no-standby", "1 records and 0 rows"] {
        assert!(findings.contains(found), "no {found}: {findings}");
    }
    drop(claimed(texts.begin("held").unwrap()));
    let (status, findings) = cli.doctor();
    assert!(status == 6 && findings.contains(&format!("--schema {schema} --status interrupted")), "{findings}");
    shared().sql(&format!("UPDATE \"{schema}\".records SET body = 'x' WHERE key = 'k'"));
    let (status, findings) = cli.doctor();
    assert!(status == 4 && findings.contains("damaged"), "{findings}");
}

#[test]
fn the_page_shows_and_changes_a_store_that_services_have_open() {
    let schema = new_schema();
    let service = open(&schema);
    let texts = texts(&service);
    drop(claimed(texts.begin("held").unwrap()));
    let url = address("oncekey");
    let site = Site::start(Path::new(&url), &["--schema", &schema]);
    let (overview, records) = (site.get(""), site.get("records"));
    assert!(overview.status == 200 && overview.body.contains("on PostgreSQL"), "{overview:?}");
    assert!(records.body.contains("held"), "{records:?}");
    let record = site.query("record", &[("manager", "m"), ("key", "held")]);
    for shown in [&overview, &records, &record] {
        assert!(!shown.body.contains(SECRET), "{shown:?}");
    }
    let revision = texts.get("held").unwrap().unwrap().info().revision().to_string();
    let fields = [("do", "release"), ("manager", "m"), ("key", "held"), ("revision", &revision), ("confirmed", "yes")];
    assert_eq!(site.post(&fields).status, 303);
    assert_eq!(texts.get("held").unwrap().unwrap().status(), Status::Released);
    // The page shows changes by other engines.
    texts.execute("later", |_| Ok("v".to_owned())).unwrap();
    assert!(site.get("records").body.contains("later"));
    let counts = site.get("counts");
    assert!(counts.status == 200 && counts.body.contains("/postgres"), "{counts:?}");
}
