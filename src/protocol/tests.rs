use super::*;
use crate::store::tests::PID_CHECKS;
use crate::types::options::EngineOptions;

/// Returns how often this thread asked for the number of its process, and what the call returned.
fn pid_checks<R>(call: impl FnOnce() -> R) -> (u32, R) {
    let before = PID_CHECKS.get();
    let returned = call();
    (PID_CHECKS.get() - before, returned)
}

// A system call for each read and each commit took a tenth of a caller's time.
#[test]
fn each_call_looks_once_whether_the_process_has_forked() {
    let dir = tempfile::tempdir().unwrap();
    let (protocol, _) = Protocol::open(dir.path(), &EngineOptions::default(), None).unwrap();
    let (id, start) = (RecordId::new(&"m".into(), Key::new("k").unwrap()), Start::plain(OnInterrupted::Hold));
    let (checks, begun) = pid_checks(|| protocol.begin(&id, &start).unwrap());
    let Begun::Claimed(info) = begun else { panic!("the key is new") };
    let token = info.stored().token;
    assert_eq!(checks, 1, "begin");
    let end = || {
        protocol.end(&id, token, &Ending::Succeed("x".into())).unwrap();
        protocol.leave_owner(token);
    };
    assert_eq!(pid_checks(end).0, 1, "end");
    let replay = || matches!(protocol.begin(&id, &start).unwrap(), Begun::Replay(_));
    assert_eq!(pid_checks(replay), (1, true), "replay");
    assert_eq!(pid_checks(|| protocol.get(&id, Load::All).unwrap().is_some()), (1, true), "get");
    let put = || protocol.put_row(protocol.row_change("t", b"row", Some(b"x")).unwrap()).unwrap();
    assert_eq!(pid_checks(put).0, 1, "put_row");
}
