//! Requests that are driven in stages.

use std::sync::atomic::{AtomicBool, Ordering};

use oncekey::{
    DriveError, Error, ErrorKind, ExecuteError, Key, Next, OnInterrupted, Requests, Response, STARTED, Stages, Status,
};

use crate::requests::{ok, requests, state, status_of};

/// Its second stage fails as long as it is told to.
fn stages(fails: &AtomicBool) -> Stages<'_, Response, Response, Error> {
    Stages::new().stage(STARTED, |claim| claim.work_stage(|_| Ok(Next::advance_with("paid", "ch_1")))).stage(
        "paid",
        |claim| {
            if fails.load(Ordering::Relaxed) {
                return Err(Key::new("").unwrap_err());
            }
            let charge = String::from_utf8(claim.checkpoint().unwrap_or_default().to_vec()).unwrap();
            claim.work_stage(|_| Ok(Next::Succeed(ok(&charge))))
        },
    )
}

fn drive(
    requests: &Requests,
    key: &str,
    path: &str,
    fails: &AtomicBool,
) -> Result<oncekey::Executed<Response>, DriveError<Response, Response, Error>> {
    requests.drive(Some(key), http::Method::POST, &7, path, &stages(fails))
}

#[test]
fn a_driven_request_goes_on_where_it_stopped_and_is_replayed() {
    let (requests, fails) = (requests(), AtomicBool::new(true));
    let failed = drive(&requests, "\"k\"", "/orders", &fails).unwrap_err();
    assert!(matches!(failed, DriveError::Stage(error) if error.kind() == ErrorKind::InvalidKey));
    let record = requests.retrieve("k").unwrap().unwrap();
    assert_eq!((record.status(), record.info().recovery_point()), (Status::Released, "paid"));
    assert_eq!(record.info().policy(), OnInterrupted::Resume);
    fails.store(false, Ordering::Relaxed);
    let done = drive(&requests, "k", "/orders", &fails).unwrap();
    assert_eq!((done.value(), done.replayed(), done.info().attempt()), (&ok("ch_1"), false, 2));
    assert!(drive(&requests, "k", "/orders", &fails).unwrap().replayed());
}

#[test]
fn bad_requests_and_other_ones_are_not_driven() {
    let (requests, fails) = (requests(), AtomicBool::new(false));
    let before = state(&requests);
    for (key, path, kind) in [("\"k", "/orders", ErrorKind::InvalidKey), ("k", "POST", ErrorKind::InvalidOptions)] {
        let refused = drive(&requests, key, path, &fails).unwrap_err();
        assert!(matches!(refused, DriveError::Execute(ExecuteError::Engine(error)) if error.kind() == kind));
    }
    assert_eq!(state(&requests), before);
    assert_eq!(status_of(&requests, "k"), None);
    drive(&requests, "k", "/orders", &fails).unwrap();
    let DriveError::Execute(other) = drive(&requests, "k", "/carts", &fails).unwrap_err() else { panic!("no answer") };
    assert_eq!(other.problem().unwrap().status(), 422);
}
