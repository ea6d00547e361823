//! Changes of a process while it has a store open: its working directory, its free descriptors and its user.
#![allow(unsafe_code, reason = "only libc changes the user of all threads")]

use std::fs::File;
use std::path::Path;
use std::process::Command;

use oncekey::{Begin, Engine, ErrorKind, Manager, Status};
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::threads::{LATE, within};

const DIR: &str = "ONCEKEY_PROCESS_DIR";

type Ops = Manager<Vec<u8>>;

/// Runs an ignored test in a process of its own, with this directory in a variable. It must end with the word
/// `survived`.
pub(crate) fn check_survives(test: &str, variable: &str, dir: &Path) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(variable, dir)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("survived"), "{said}");
}

/// Takes all free descriptors.
fn all_descriptors() -> Vec<File> {
    setrlimit(Resource::Nofile, Rlimit { current: Some(200), maximum: Some(200) }).unwrap();
    std::iter::from_fn(|| File::open("/dev/null").ok()).collect()
}

/// Not a test: a process of its own.
#[test]
#[ignore = "started by another test"]
fn elsewhere() {
    let Ok(dir) = std::env::var(DIR) else { return };
    std::env::set_current_dir(&dir).unwrap();
    let engine = Engine::options().segment_bytes(64 << 10).open("store").unwrap();
    assert_eq!(engine.path(), Path::new(&dir).join("store"));
    std::env::set_current_dir("/").unwrap();
    let ops: Ops = engine.manager("m").unwrap();
    let finish = |name: String| ops.execute(name, |_| Ok(vec![1; 1000])).map(|_| ());
    // This creates segments and store checkpoints.
    (0..300).for_each(|n| finish(format!("moved {n}")).unwrap());
    engine.compact_now().unwrap();

    let claims: Vec<_> = (0..100).map(|n| ops.begin(format!("claim {n}")).unwrap().into_claim().unwrap()).collect();
    let held = all_descriptors();
    let mut refused = 0;
    for n in 0..2000 {
        if let Err(oncekey::ExecuteError::Engine(error)) = finish(format!("held {n}")) {
            assert!(matches!(error.kind(), ErrorKind::Io | ErrorKind::Full), "{error}");
            refused += 1;
        }
    }
    drop(claims);
    drop(held);
    let files = std::fs::read_dir(Path::new(&dir).join("store/store/journal")).unwrap().count();
    assert!(files < 100, "{files} journal files are left");
    // The first call may only return that the creation of a segment failed.
    let again = (0..10).find(|n| finish(format!("again {n}")).is_ok());
    assert!(again.is_some());
    for n in 0..100 {
        let name = format!("claim {n}");
        assert!(!matches!(ops.begin(&name), Ok(Begin::InProgress(_))), "{name} is in progress for ever");
        assert_eq!(ops.get(&name).unwrap().unwrap().status(), Status::Interrupted);
    }
    drop(ops);
    engine.close().unwrap();
    println!("\nrefused {refused}, survived");
}

#[test]
fn an_engine_survives_a_changed_directory_and_missing_descriptors() {
    within(LATE, || {
        let dir = tempfile::tempdir().unwrap();
        check_survives("process::elsewhere", DIR, &dir.path().canonicalize().unwrap());
    });
}

/// Not a test: a process of its own, which gives up the permissions of root.
#[test]
#[ignore = "started by another test"]
fn as_another_user() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let engine = Engine::options().segment_bytes(64 << 10).open(Path::new(&dir).join("store")).unwrap();
    let ops: Ops = engine.manager("m").unwrap();
    ops.execute("before", |_| Ok(vec![1])).unwrap();
    let open = ops.begin("open").unwrap().into_claim().unwrap();
    // SAFETY: changes only the ids of this process.
    let changed = unsafe { (libc::setgid(65_534), libc::setuid(65_534)) };
    assert_eq!(changed, (0, 0));
    let reopened = File::open(Path::new(&dir).join("store/LOCK")).unwrap_err();
    assert_eq!(reopened.kind(), std::io::ErrorKind::PermissionDenied);
    // More commits than the segments hold that are there. New ones cannot be created, but free ones are used again.
    for n in 0..300 {
        ops.execute(format!("after {n}"), |_| Ok(vec![1; 1000])).unwrap();
    }
    open.succeed(&vec![2]).unwrap();
    assert_eq!(ops.get("before").unwrap().unwrap().status(), Status::Succeeded);
    drop(ops);
    engine.close().unwrap();
    println!("\nsurvived");
}

#[test]
fn an_engine_survives_that_its_process_drops_its_permissions() {
    // SAFETY: reads an id of this process.
    if unsafe { libc::geteuid() } != 0 {
        println!("skipped: only root can become another user");
        return;
    }
    within(LATE, || {
        let dir = tempfile::tempdir().unwrap();
        check_survives("process::as_another_user", DIR, &dir.path().canonicalize().unwrap());
        let engine = Engine::open(dir.path().join("store")).unwrap();
        assert!(engine.opened().clean);
        assert_eq!(engine.verify().unwrap().problems, Vec::<String>::new());
        assert_eq!(ops(&engine).get("open").unwrap().unwrap().status(), Status::Succeeded);
    });
}

fn ops(engine: &Engine) -> Ops {
    engine.manager("m").unwrap()
}
