use std::fmt;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

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

type Call = Box<dyn Fn() + Send + Sync>;

/// A clock that stands still. Once it is given a function, it calls the function whenever it is read.
#[derive(Clone, Default)]
pub(super) struct CallingClock(Arc<OnceLock<Call>>);

impl CallingClock {
    pub(super) fn calls(&self, call: impl Fn() + Send + Sync + 'static) {
        assert!(self.0.set(Box::new(call)).is_ok(), "it has a function");
    }
}

impl fmt::Debug for CallingClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CallingClock")
    }
}

impl Clock for CallingClock {
    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }

    fn boot(&self) -> Option<BootTime> {
        if let Some(call) = self.0.get() {
            call();
        }
        Some(BootTime { id: [7; 16], elapsed: Duration::from_secs(1) })
    }

    fn is_manual(&self) -> bool {
        true
    }
}

// A call once returned a change that a claim had made after the close, although another call had returned `Closed`
// before.
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
        let (dir, clock) = (tempfile::tempdir().unwrap(), CallingClock::default());
        let options = EngineOptions::default().clock(clock.clone());
        let (protocol, _) = Protocol::open(dir.path(), &options, None).unwrap();
        let protocol = Arc::new(protocol);
        let [id, other] = ["k", "other"].map(|key| RecordId::new(&"m".into(), Key::new(key).unwrap()));
        let [token, last] = [&id, &other].map(|id| match protocol.begin(id, &Start::plain(OnInterrupted::Hold)) {
            Ok(Begun::Claimed(info)) => info.stored().token,
            begun => panic!("{begun:?}"),
        });
        let (closing, ended, has_closed) = (Arc::downgrade(&protocol), id.clone(), Arc::new(AtomicBool::new(false)));
        let closed = Arc::clone(&has_closed);
        clock.calls(move || {
            let Some(protocol) = closing.upgrade().filter(|_| !closed.swap(true, Ordering::SeqCst)) else { return };
            assert_eq!(protocol.close().unwrap_err().kind(), ErrorKind::ClaimsAlive);
            protocol.end(&ended, token, &Ending::Succeed("x".into())).unwrap();
            protocol.leave_owner(token);
        });
        let error = call(&protocol, &id).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Closed, "call {number}: {error}");
        assert!(has_closed.load(Ordering::SeqCst), "call {number} did not read the clock");
        protocol.end(&other, last, &Ending::Release).unwrap();
        protocol.leave_owner(last);
    }
}
