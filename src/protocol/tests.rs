use std::fmt;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use super::*;
use crate::store::tests::PID_CHECKS;
use crate::types::clock::{BootTime, Clock, monotonic};
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

type Call = Box<dyn FnOnce() + Send>;

/// A clock that calls a function once, when it is next read.
#[derive(Clone, Default)]
struct Calls(Arc<Mutex<Option<Call>>>);

impl fmt::Debug for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Calls")
    }
}

impl Clock for Calls {
    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }

    fn boot(&self) -> Option<BootTime> {
        let call = self.0.lock().take();
        if let Some(call) = call {
            call();
        }
        Some(BootTime { id: [7; 16], elapsed: Duration::from_secs(1) })
    }

    fn is_manual(&self) -> bool {
        true
    }
}

// A call once answered with what a claim had done after the close, though another call had got `Closed` before.
#[test]
fn no_call_answers_with_what_happens_after_a_close() {
    let calls: [fn(&Protocol, &RecordId) -> Result<()>; 8] = [
        |protocol, id| protocol.resolve(id, &Ending::Release, None, None),
        |protocol, id| protocol.begin(id, &Start::plain(OnInterrupted::Hold)).map(drop),
        |protocol, id| protocol.remove(id).map(drop),
        |protocol, id| protocol.extend(id, 1).map(drop),
        |protocol, id| protocol.get(id, Load::All).map(drop),
        |protocol, id| protocol.peek(id, Load::WithoutOutcome).map(drop),
        |protocol, _| protocol.list(&ListRange::new(None, &[], false), 9).map(drop),
        |protocol, id| protocol.wait(id, Some(monotonic())).map(drop),
    ];
    for (number, call) in calls.into_iter().enumerate() {
        let (dir, clock) = (tempfile::tempdir().unwrap(), Calls::default());
        let options = EngineOptions::default().clock(clock.clone());
        let (protocol, _) = Protocol::open(dir.path(), &options, None).unwrap();
        let protocol = Arc::new(protocol);
        let [id, other] = ["k", "other"].map(|key| RecordId::new(&"m".into(), Key::new(key).unwrap()));
        let [token, last] = [&id, &other].map(|id| match protocol.begin(id, &Start::plain(OnInterrupted::Hold)) {
            Ok(Begun::Claimed(info)) => info.stored().token,
            begun => panic!("{begun:?}"),
        });
        let (closing, ended) = (Arc::downgrade(&protocol), id.clone());
        *clock.0.lock() = Some(Box::new(move || {
            let protocol = closing.upgrade().unwrap();
            assert_eq!(protocol.close().unwrap_err().kind(), ErrorKind::ClaimsAlive);
            protocol.end(&ended, token, &Ending::Succeed("x".into())).unwrap();
            protocol.leave_owner(token);
        }));
        let error = call(&protocol, &id).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Closed, "call {number}: {error}");
        assert!(clock.0.lock().is_none(), "call {number} did not read the clock");
        protocol.end(&other, last, &Ending::Release).unwrap();
        protocol.leave_owner(last);
    }
}
