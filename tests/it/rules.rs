//! Tests of the rules that a user sees: the answer of `begin`, and the time from which a record is absent. Endings are
//! in `endings`.

use oncekey::{
    Begin, CallOptions, Engine, ErrorKind, FOREVER, Fingerprint, Interruption, ManagerOptions, OnInterrupted, Status,
    Waited,
    admin::{RecordFilter, Resolution},
    clock::ManualClock,
};

use crate::common::*;

// The order of the checks in `begin`.

#[test]
fn begin_checks_the_key_first() {
    let (manager, _) = fresh();
    let options = CallOptions::new().success_ttl(std::time::Duration::ZERO);
    assert_eq!(manager.begin_with("", options.clone()).unwrap_err().kind(), ErrorKind::InvalidKey);
    assert_eq!(manager.begin_with("k", options).unwrap_err().kind(), ErrorKind::InvalidOptions);
}

#[test]
fn begin_checks_expiry_before_the_fingerprint() {
    let (manager, clock) = fresh();
    let first = claimed(manager.begin_with("k", same("a")).unwrap());
    let generation = first.generation();
    first.succeed(&"v".to_owned()).unwrap();
    clock.advance(just_before(DAY));
    assert_eq!(answer_with(&manager, "k", same("b")), "mismatch");
    clock.advance(MS);
    let second = claimed(manager.begin_with("k", same("b")).unwrap());
    assert!(second.generation() > generation && second.attempt() == 1);
}

#[test]
fn begin_returns_mismatch_before_any_other_answer() {
    let (manager, _) = fresh();
    let start = |key: &str| claimed(manager.begin_with(key, same("a")).unwrap());
    let _live = start("live");
    start("won").succeed(&"v".to_owned()).unwrap();
    start("lost").fail(&"e".to_owned()).unwrap();
    let released = start("released");
    let _ = released.effect_id("charge");
    released.release().unwrap();
    start("held").interrupt().unwrap();
    let free = CallOptions::new().on_interrupted(OnInterrupted::Resume).fingerprint(Fingerprint::of("a").unwrap());
    claimed(manager.begin_with("free", free).unwrap()).interrupt().unwrap();
    for key in ["live", "won", "lost", "released", "held", "free"] {
        assert_eq!(answer_with(&manager, key, same("b")), "mismatch", "{key}");
    }
    let right = [("live", "in progress"), ("won", "replay"), ("lost", "replay"), ("held", "interrupted")];
    for (key, expected) in right.into_iter().chain([("released", "claimed"), ("free", "claimed")]) {
        assert_eq!(answer_with(&manager, key, same("a")), expected, "{key}");
    }
}

#[test]
fn begin_checks_for_a_live_owner_before_the_interrupted_policy() {
    let (engine, _) = engine();
    let manager = resuming(&engine);
    // The second owner is alive, although the first attempt was interrupted.
    claim(&manager, "k").interrupt().unwrap();
    let _owner = claim(&manager, "k");
    assert_eq!(answer(&manager, "k"), "in progress");
}

#[test]
fn begin_follows_the_interrupted_policy() {
    let (engine, _) = engine();
    drop(claim(&texts(&engine), "held"));
    drop(claim(&resuming(&engine), "free"));
    let Begin::Interrupted(info) = texts(&engine).begin("held").unwrap() else { panic!("it is not held") };
    assert_eq!((info.status(), info.interruption()), (Status::Interrupted, Some(Interruption::Dropped)));
    let successor = claim(&resuming(&engine), "free");
    assert_eq!((successor.attempt(), successor.interruption()), (2, Some(Interruption::Dropped)));
}

#[test]
fn answers_of_the_protocol_are_values_not_errors() {
    let (manager, _) = fresh();
    let _live = claim(&manager, "live");
    assert!(manager.begin("live").is_ok() && manager.wait("live", MS).is_ok());
    drop(claim(&manager, "held"));
    assert!(manager.begin("held").is_ok() && manager.wait("held", MS).is_ok());
    let _other = manager.begin_with("mismatch", same("a")).unwrap();
    assert!(manager.begin_with("mismatch", same("b")).is_ok());
    assert!(manager.wait("absent", MS).is_ok() && manager.get("absent").is_ok());
    assert!(!manager.remove("absent").unwrap() && !manager.forget("absent").unwrap());
}

// Fingerprints.

#[test]
fn a_retry_without_the_fingerprint_of_the_record_is_a_mismatch() {
    let (manager, _) = fresh();
    claimed(manager.begin_with("k", same("a")).unwrap()).succeed(&"v".to_owned()).unwrap();
    assert_eq!(answer(&manager, "k"), "mismatch");
    assert!(manager.initiate("k").unwrap().is_none());
}

#[test]
fn a_record_without_a_fingerprint_accepts_any() {
    let (manager, _) = fresh();
    let owner = claim(&manager, "k");
    assert_eq!(answer_with(&manager, "k", same("a")), "in progress");
    owner.succeed(&"v".to_owned()).unwrap();
    assert_eq!(answer_with(&manager, "k", same("a")), "replay");
    assert_eq!(answer_with(&manager, "k", same("b")), "replay");
}

// Facts that are fixed when a generation starts.

#[test]
fn fingerprint_context_and_policy_are_fixed_when_a_generation_starts() {
    let (engine, _) = engine();
    let (holds, resumes) = (texts(&engine), resuming(&engine));
    let first = CallOptions::new().context(about("user", "ada")).on_interrupted(OnInterrupted::Resume);
    let first = claimed(holds.begin_with("k", first).unwrap());
    let _ = first.effect_id("charge");
    first.release().unwrap();
    let second = same("a").context(about("user", "eve")).on_interrupted(OnInterrupted::Hold);
    let again = claimed(holds.begin_with("k", second).unwrap());
    assert_eq!((again.attempt(), again.context().text("user")), (2, Some("ada")));
    let info = again.interrupt().unwrap();
    assert_eq!((info.policy(), info.fingerprint()), (OnInterrupted::Resume, None));
    // The record still has no fingerprint, and its policy is still `Resume`.
    assert_eq!(answer_with(&holds, "k", same("b")), "claimed");

    // The opposite: a manager with `Resume` does not free a record that was begun with `Hold`.
    drop(claim(&holds, "held"));
    assert_eq!(answer(&resumes, "held"), "interrupted");
    assert_eq!(resumes.get("held").unwrap().unwrap().info().policy(), OnInterrupted::Hold);
}

#[test]
fn ttls_are_fixed_when_a_generation_starts() {
    let (engine, clock) = engine();
    let ttl = |ttl| ManagerOptions::new().success_ttl(ttl).failure_ttl(ttl).released_ttl(ttl).interrupted_ttl(ttl);
    let (short, long) = (texts_with(&engine, ttl(SECOND)), texts_with(&engine, ttl(MINUTE)));
    for key in ["won", "lost", "released"] {
        claim(&short, key).release().unwrap();
    }
    let options = CallOptions::new().success_ttl(DAY).failure_ttl(DAY);
    claimed(long.begin_with("won", options.clone()).unwrap()).succeed(&"v".to_owned()).unwrap();
    claimed(long.begin_with("lost", options).unwrap()).fail(&"e".to_owned()).unwrap();
    claim(&long, "released").release().unwrap();
    clock.advance(just_before(SECOND));
    for key in ["won", "lost", "released"] {
        assert!(status(&long, key).is_some(), "{key}");
    }
    clock.advance(MS);
    for key in ["won", "lost", "released"] {
        assert_eq!(status(&long, key), None, "{key}");
    }
}

#[test]
fn a_new_generation_has_its_own_fingerprint_context_policy_and_ttls() {
    let (manager, clock) = fresh();
    let first = same("a").context(about("user", "ada"));
    claimed(manager.begin_with("k", first).unwrap()).succeed(&"v".to_owned()).unwrap();
    clock.advance(DAY);
    let second = same("b").context(about("user", "eve")).on_interrupted(OnInterrupted::Resume);
    let info = claimed(manager.begin_with("k", second).unwrap()).release().unwrap();
    assert_eq!((info.attempt(), info.context().text("user")), (1, Some("eve")));
    assert_eq!((info.policy(), info.fingerprint()), (OnInterrupted::Resume, Some(Fingerprint::of("b").unwrap())));
}

// TTLs.

#[test]
fn the_ttl_starts_at_the_ending() {
    let (engine, clock) = engine();
    let manager = texts_with(&engine, ManagerOptions::new().success_ttl(SECOND));
    let owner = claim(&manager, "k");
    clock.advance(DAY);
    owner.succeed(&"v".to_owned()).unwrap();
    clock.advance(just_before(SECOND));
    assert_eq!(status(&manager, "k"), Some(Status::Succeeded));
    clock.advance(MS);
    assert_eq!(status(&manager, "k"), None);
}

#[test]
fn success_and_failure_have_separate_ttls() {
    let (engine, clock) = engine();
    let manager = texts_with(&engine, ManagerOptions::new().success_ttl(2 * SECOND).failure_ttl(SECOND));
    let options = || CallOptions::new().success_ttl(3 * SECOND).failure_ttl(4 * SECOND);
    claim(&manager, "won").succeed(&"v".to_owned()).unwrap();
    claim(&manager, "lost").fail(&"e".to_owned()).unwrap();
    claimed(manager.begin_with("won, own", options()).unwrap()).succeed(&"v".to_owned()).unwrap();
    claimed(manager.begin_with("lost, own", options()).unwrap()).fail(&"e".to_owned()).unwrap();
    let alive = || keys(engine.records(RecordFilter::new()).unwrap());
    assert_eq!(alive(), ["lost", "lost,%20own", "won", "won,%20own"]);
    for left in [&["lost,%20own", "won", "won,%20own"][..], &["lost,%20own", "won,%20own"], &["lost,%20own"], &[]] {
        clock.advance(SECOND);
        assert_eq!(alive(), left);
    }
}

#[test]
fn by_default_only_released_records_expire_after_a_day() {
    let (engine, clock) = engine();
    let manager = texts_with(&engine, ManagerOptions::new().success_ttl(MS).failure_ttl(MS));
    let _live = claim(&manager, "live");
    assert!(manager.initiate("by key").unwrap().is_some());
    claim(&manager, "released").release().unwrap();
    drop(claim(&manager, "dropped"));
    clock.advance(just_before(DAY));
    assert_eq!(status(&manager, "released"), Some(Status::Released));
    clock.advance(100 * YEAR);
    assert_eq!(status(&manager, "released"), None);
    assert_eq!(engine.compact_now().unwrap().removed, 1);
    let expected = [("live", Status::InProgress), ("by key", Status::InProgress), ("dropped", Status::Interrupted)];
    for (key, expected) in expected {
        let record = manager.get(key).unwrap().unwrap();
        assert_eq!((record.status(), record.info().expires_at()), (expected, None), "{key}");
    }
}

#[test]
fn released_and_interrupted_ttls_never_remove_a_live_record() {
    let (engine, clock) = engine();
    let manager = texts_with(&engine, ManagerOptions::new().released_ttl(SECOND).interrupted_ttl(SECOND));
    let live = claim(&manager, "live");
    assert!(manager.initiate("by key").unwrap().is_some());
    clock.advance(DAY);
    // This TTL starts at the release. The others start at the ending.
    claim(&manager, "released").release().unwrap();
    drop(claim(&manager, "dropped"));
    clock.advance(just_before(SECOND));
    assert_eq!(status(&manager, "released"), Some(Status::Released));
    assert_eq!(status(&manager, "dropped"), Some(Status::Interrupted));
    clock.advance(MS);
    assert_eq!(keys(engine.records(RecordFilter::new()).unwrap()), ["by%20key", "live"]);
    assert_eq!(engine.interrupted().unwrap().count(), 0);
    assert_eq!(manager.resolve("dropped", Resolution::Retry).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(claim(&manager, "released").attempt(), 1);
    live.succeed(&"v".to_owned()).unwrap();
}

#[test]
fn the_interrupted_ttl_after_a_crash_starts_at_the_open() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let options = || ManagerOptions::new().released_ttl(MINUTE).interrupted_ttl(MINUTE);
    let first = open(dir.path(), &clock);
    let _dead = claim(&texts_with(&first, options()), "k");
    clock.advance(DAY);
    first.crash();
    clock.advance(DAY);
    let second = open(dir.path(), &clock);
    let manager = texts_with(&second, options());
    clock.advance(just_before(MINUTE));
    assert_eq!(status(&manager, "k"), Some(Status::Interrupted));
    clock.advance(MS);
    assert_eq!(status(&manager, "k"), None);
    assert_eq!(second.compact_now().unwrap().removed, 1);
}

#[test]
fn the_interrupted_ttl_after_a_crash_does_not_restart_at_later_opens() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let options = || ManagerOptions::new().released_ttl(MINUTE).interrupted_ttl(MINUTE);
    let first = open_local(dir.path(), &clock);
    let _dead = claim(&texts_with(&first, options()), "k");
    first.crash();
    let second = open_local(dir.path(), &clock);
    assert_eq!((second.opened().interrupted, second.stats().interrupted), (1, 1));
    clock.advance(just_before(MINUTE));
    second.close().unwrap();
    let third = open_local(dir.path(), &clock);
    let manager = texts_with(&third, options());
    let record = manager.get("k").unwrap().unwrap();
    assert_eq!(
        (record.status(), record.info().interruption()),
        (Status::Interrupted, Some(Interruption::ProcessEnded))
    );
    clock.advance(MS);
    assert_eq!(status(&manager, "k"), None);
    third.close().unwrap();
    let fourth = open_local(dir.path(), &clock);
    assert_eq!(status(&texts_with(&fourth, options()), "k"), None, "absent, and there again");
    assert_eq!(fourth.opened().interrupted, 0);
}

/// Asserts that all readers agree whether the key is present.
#[track_caller]
fn all_readers_see(engine: &Engine, key: &str, alive: bool) {
    let manager = texts_with(engine, ManagerOptions::new().success_ttl(SECOND));
    assert_eq!(manager.get(key).unwrap().is_some(), alive, "get");
    assert_eq!(matches!(manager.wait(key, FOREVER).unwrap(), Waited::Absent), !alive, "wait");
    assert_eq!(engine.raw("m").unwrap().get(key).unwrap().is_some(), alive, "raw");
    let listed =
        |filter: RecordFilter| engine.records(filter).unwrap().any(|info| info.unwrap().key().as_str() == Some(key));
    assert_eq!(listed(RecordFilter::new()), alive, "records");
    assert_eq!(listed(RecordFilter::new().manager("m").key_prefix(key).status(Status::Succeeded)), alive, "filtered");
    assert_eq!(engine.managers().unwrap().contains(&"m".to_owned()), alive, "managers");
    if alive {
        assert_eq!(answer(&manager, key), "replay", "begin");
        assert_eq!(arm(&manager.begin_with(key, CallOptions::new().wait(FOREVER)).unwrap()), "replay", "waiting");
        return;
    }
    let resolved = manager.resolve(key, Resolution::Retry).unwrap_err();
    assert_eq!(resolved.kind(), ErrorKind::NotFound, "resolve");
    let late = manager.success(key, token(1), &"w".to_owned()).unwrap_err();
    assert_eq!(late.kind(), ErrorKind::ClaimLost, "success");
    assert!(!manager.extend(key, DAY).unwrap(), "extend");
    assert!(!manager.forget(key).unwrap(), "reopen");
    assert!(!manager.remove(key).unwrap(), "remove");
    assert_eq!(claim(&manager, key).attempt(), 1, "begin");
}

#[test]
fn all_readers_see_a_record_expire_at_the_same_millisecond() {
    let (engine, clock) = engine();
    let manager = texts_with(&engine, ManagerOptions::new().success_ttl(SECOND));
    claim(&manager, "k").succeed(&"v".to_owned()).unwrap();
    all_readers_see(&engine, "k", true);
    clock.advance(just_before(SECOND));
    all_readers_see(&engine, "k", true);
    // The record has expired, but was not deleted: readers without the time still find it.
    clock.advance(MS);
    all_readers_see(&engine, "k", false);
}

#[test]
fn a_record_expires_at_the_same_time_after_a_reopen() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let first = open_local(dir.path(), &clock);
    let manager = texts_with(&first, ManagerOptions::new().success_ttl(SECOND));
    claim(&manager, "k").succeed(&"v".to_owned()).unwrap();
    clock.advance(SECOND / 2);
    first.close().unwrap();
    // Time counts while the store is closed.
    clock.advance(just_before(SECOND / 2));
    let second = open_local(dir.path(), &clock);
    all_readers_see(&second, "k", true);
    second.close().unwrap();
    clock.advance(MS);
    all_readers_see(&open_local(dir.path(), &clock), "k", false);
}

#[test]
fn steps_of_the_wall_clock_expire_no_record() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let first = open(dir.path(), &clock);
    let manager = texts_with(&first, ManagerOptions::new().success_ttl(SECOND));
    claim(&manager, "k").succeed(&"v".to_owned()).unwrap();
    let wall = oncekey::clock::Clock::wall(&clock);
    clock.set_wall(wall + 10 * YEAR);
    all_readers_see(&first, "k", true);
    first.close().unwrap();
    // Closed or not: within one boot, no more time counts than the boot clock shows.
    clock.set_wall(wall + 15 * YEAR);
    let between = open(dir.path(), &clock);
    all_readers_see(&between, "k", true);
    between.close().unwrap();
    // A machine that was off for a year counts no time either.
    clock.reboot();
    clock.set_wall(wall + 20 * YEAR);
    let second = open(dir.path(), &clock);
    all_readers_see(&second, "k", true);
    clock.set_wall(wall);
    clock.advance(just_before(SECOND));
    all_readers_see(&second, "k", true);
    clock.advance(MS);
    all_readers_see(&second, "k", false);
}

#[test]
fn clock_steps_of_a_day_across_restarts_do_not_move_an_expiry() {
    for forward in [true, false] {
        for reboots in [true, false] {
            let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
            let step = || {
                let wall = oncekey::clock::Clock::wall(&clock);
                clock.set_wall(if forward { wall + DAY } else { wall - DAY });
            };
            let first = open(dir.path(), &clock);
            let manager = texts_with(&first, ManagerOptions::new().success_ttl(3 * MINUTE));
            claim(&manager, "k").succeed(&"v".to_owned()).unwrap();
            step();
            clock.advance(MINUTE);
            all_readers_see(&first, "k", true);
            drop((manager, first));
            step();
            if reboots {
                clock.reboot();
            }
            let second = open(dir.path(), &clock);
            step();
            clock.advance(MINUTE);
            all_readers_see(&second, "k", true);
            // Time in an open store counts exactly, whatever the wall clock does.
            clock.advance(just_before(MINUTE));
            all_readers_see(&second, "k", true);
            clock.advance(MS);
            all_readers_see(&second, "k", false);
        }
    }
}

#[test]
fn time_when_the_machine_was_off_counts_up_to_max_offline() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let options = options(&clock).max_offline(MINUTE);
    let first = options.open(dir.path()).unwrap();
    let manager = texts_with(&first, ManagerOptions::new().success_ttl(2 * MINUTE));
    claim(&manager, "k").succeed(&"v".to_owned()).unwrap();
    first.close().unwrap();
    clock.reboot();
    clock.set_wall(oncekey::clock::Clock::wall(&clock) + YEAR);
    let second = options.open(dir.path()).unwrap();
    clock.advance(just_before(MINUTE));
    assert_eq!(status(&texts(&second), "k"), Some(Status::Succeeded));
    clock.advance(MS);
    assert_eq!(status(&texts(&second), "k"), None);
}

#[test]
fn a_ttl_of_forever_never_expires() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let first = open(dir.path(), &clock);
    let manager = texts_with(&first, ManagerOptions::new().success_ttl(FOREVER).failure_ttl(FOREVER));
    claim(&manager, "won").succeed(&"v".to_owned()).unwrap();
    claim(&manager, "lost").fail(&"e".to_owned()).unwrap();
    clock.advance(1000 * YEAR);
    first.close().unwrap();
    clock.advance(1000 * YEAR);
    let second = open(dir.path(), &clock);
    assert_eq!(second.compact_now().unwrap().removed, 0);
    for key in ["won", "lost"] {
        let record = texts(&second).get(key).unwrap().unwrap();
        assert_eq!((record.outcome().is_some(), record.info().expires_at()), (true, None), "{key}");
    }
}
