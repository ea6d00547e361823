//! The clock of the server is stepped by days, and nothing expires early or late.

use std::path::Path;
use std::time::Duration;

use oncekey::{Engine, ManagerOptions, clock::ManualClock};

use crate::engines::Texts;
use crate::server::{Server, Setup};

/// Returns the variables of a server whose clock is moved.
pub(crate) fn faketime(by: &str) -> String {
    let library = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
    assert!(Path::new(library).exists(), "this test needs libfaketime: on Debian, `apt-get install libfaketime`");
    format!("env LD_PRELOAD={library} FAKETIME_DONT_FAKE_MONOTONIC=1 FAKETIME={by}")
}

const HOUR: Duration = Duration::from_secs(3600);
const MS: Duration = Duration::from_millis(1);

#[test]
fn a_step_of_the_servers_clock_changes_no_expiry() {
    // The server reads the file again and again.
    let file = tempfile::NamedTempFile::new().unwrap();
    std::os::unix::fs::chown(file.path(), crate::server::unprivileged().map(|(uid, _)| uid), None).unwrap();
    let step = |by: &str| std::fs::write(file.path(), by).unwrap();
    step("+0");
    let env = faketime("+0").replace("FAKETIME=+0", "FAKETIME_NO_CACHE=1 FAKETIME_TIMESTAMP_FILE=");
    let server = Server::start_as(&Setup { env: &format!("{env}{}", file.path().display()), ..Setup::default() });
    let clock = ManualClock::new();
    let options = || Engine::options().clock(clock.clone());
    let texts =
        |engine: &Engine| -> Texts { engine.manager_with("m", ManagerOptions::new().success_ttl(HOUR)).unwrap() };
    let engine = options().connect(&server.url()).unwrap();
    texts(&engine).execute("k", |_| Ok("done".to_owned())).unwrap();
    let now = || server.sql("SELECT extract(epoch FROM now())::bigint").parse::<i64>().unwrap();
    let start = now();
    for days in [1, -1, 400] {
        step(&format!("{days:+}d"));
        let moved = now() - start - days * 86_400;
        assert!(moved.abs() < 3_600, "the clock of the server was stepped by {days} days, and is off by {moved} s");
        clock.advance(MS);
        engine.compact_now().unwrap();
        assert!(texts(&engine).get("k").unwrap().is_some(), "{days} days");
        // Another engine, and another life of the server.
        server.restart("fast", "");
        let other = options().connect(&server.url()).unwrap();
        assert!(texts(&other).get("k").unwrap().is_some(), "{days} days");
        step("+0");
    }
    clock.advance(HOUR.checked_sub(4 * MS).unwrap());
    assert!(texts(&engine).get("k").unwrap().is_some(), "a millisecond before its end");
    clock.advance(MS);
    assert!(texts(&engine).get("k").unwrap().is_none());
}
