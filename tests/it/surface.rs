//! Tests of the public API: calls and their errors. Listings, events and gauges are in `listings`; traits and printed forms
//! in `shapes`.

use std::time::Duration;

use oncekey::{
    Begin, CallOptions, ErrorKind, ExecuteError, FOREVER, Interruption, IntoKey, Key, Manager, ManagerOptions, OnError,
    Status, Waited, admin::Resolution, stage::STARTED,
};

use crate::common::*;

// General rules of the API.

#[test]
fn a_value_is_read_back_and_encoded_again_before_anything_is_stored() {
    let (engine, _) = engine();
    let manager: Manager<Ambiguous, Holed> = engine.manager("m").unwrap();
    let events = engine.events();
    let owner = claim(&manager, "k");
    let commits = engine.stats().commits;
    let owner = owner.succeed(&Ambiguous::Signed(3)).unwrap_err().claim;
    let owner = owner.fail(&Holed { note: None, cents: 3 }).unwrap_err().claim;
    assert_eq!((engine.stats().commits, events.ready().count()), (commits, 1), "nothing but the beginning");
    drop(owner);
    // The value of a resolution is checked like the value of an owner.
    let resolved = manager.resolve("k", Resolution::Succeed(Ambiguous::Signed(4))).unwrap_err();
    assert_eq!(resolved.kind(), ErrorKind::Codec);
    assert_eq!(status(&manager, "k"), Some(Status::Interrupted));
}

#[test]
fn a_mismatch_does_not_reveal_the_outcome() {
    let (manager, _) = fresh();
    claimed(manager.begin_with("k", same("a")).unwrap()).succeed(&MARKER.to_owned()).unwrap();
    let answer = manager.begin_with("k", same("b")).unwrap();
    assert!(!format!("{answer:?}").contains(MARKER));
    // `RecordInfo` has no outcome, only the number of its bytes.
    let Begin::Mismatch(info) = answer else { panic!("no mismatch") };
    assert_eq!(info.outcome_bytes(), 17 + MARKER.len() as u64);
}

#[test]
fn a_ttl_of_zero_is_invalid() {
    let (engine, _) = engine();
    let zero = Duration::ZERO;
    let new = ManagerOptions::new;
    for options in [new().success_ttl(zero), new().failure_ttl(zero), new().released_ttl(zero).interrupted_ttl(zero)] {
        let error = engine.manager_with::<String, String>("m", options).unwrap_err();
        assert!(error.kind() == ErrorKind::InvalidOptions && error.to_string().contains("_ttl is zero"), "{error}");
    }
    let manager = texts(&engine);
    for options in [CallOptions::new().success_ttl(zero), CallOptions::new().failure_ttl(zero)] {
        assert_eq!(manager.begin_with("k", options.clone()).unwrap_err().kind(), ErrorKind::InvalidOptions);
        let waiting = manager.begin_with("k", options.clone().wait(MS)).unwrap_err();
        assert_eq!(waiting.kind(), ErrorKind::InvalidOptions);
        let executed = manager.execute_with("k", options, |_| panic!("it has run"));
        assert!(matches!(executed, Err(ExecuteError::Engine(error)) if error.kind() == ErrorKind::InvalidOptions));
    }
    assert_eq!(status(&manager, "k"), None);
    claim(&manager, "k").succeed(&"v".to_owned()).unwrap();
    assert_eq!(manager.extend("k", zero).unwrap_err().kind(), ErrorKind::InvalidOptions);
    assert_eq!(engine.raw("m").unwrap().extend("k", zero).unwrap_err().kind(), ErrorKind::InvalidOptions);
}

#[test]
fn a_timeout_too_large_for_the_clock_waits_for_ever() {
    let (manager, _) = fresh();
    let owner = claim(&manager, "k");
    std::thread::scope(|scope| {
        let waiters = [
            scope.spawn(|| waited(&manager.wait("k", Duration::MAX).unwrap())),
            scope.spawn(|| arm(&manager.begin_with("k", CallOptions::new().wait(Duration::MAX)).unwrap())),
            scope.spawn(|| {
                let options = CallOptions::new().wait(Duration::MAX);
                manager.execute_with("k", options, |_| panic!("it has run")).map_or("failed", |_| "executed")
            }),
        ];
        while manager.engine().stats().waiting < 3 {
            std::thread::yield_now();
        }
        owner.succeed(&"v".to_owned()).unwrap();
        assert_eq!(waiters.map(|waiter| waiter.join().unwrap()), ["finished", "replay", "executed"]);
    });
}

// `execute` and `on_error`.

#[test]
fn on_error_stores_releases_or_interrupts() {
    let (manager, _) = fresh();
    let manager = manager.on_error(|error: &String| match error.as_str() {
        "nothing happened" => OnError::Release,
        "who knows" => OnError::Interrupt,
        _ => OnError::Store,
    });
    let fail = |key: &str, error: &str| {
        let failed = manager.execute(key, |_| Err(error.to_owned())).unwrap_err();
        let ExecuteError::Failed { error: told, replayed: false, .. } = failed else { panic!("{failed:?}") };
        assert_eq!(told, error);
        manager.get(key).unwrap().unwrap()
    };
    assert_eq!(fail("stored", "declined").into_outcome(), Some(Err("declined".to_owned())));
    assert_eq!(fail("released", "nothing happened").status(), Status::Released);
    let interrupted = fail("interrupted", "who knows");
    assert_eq!(interrupted.info().interruption(), Some(Interruption::Reported));
    assert!(matches!(manager.execute("interrupted", |_| panic!("it has run")), Err(ExecuteError::Interrupted(_))));
    // Clones share the classifier.
    let _ = manager.clone().execute("clone", |_| Err("nothing happened".to_owned())).unwrap_err();
    assert_eq!(status(&manager, "clone"), Some(Status::Released));
}

#[test]
fn execute_stores_failures_by_default() {
    let (manager, _) = fresh();
    let _ = manager.execute("k", |_| Err("e".to_owned())).unwrap_err();
    assert_eq!(status(&manager, "k"), Some(Status::Failed));
}

#[test]
fn execute_with_no_wait_answers_at_once_and_stores_the_context() {
    let (manager, _) = fresh();
    let _owner = claim(&manager, "k");
    let none = CallOptions::new().wait(Duration::ZERO);
    assert!(matches!(manager.execute_with("k", none, |_| panic!("it has run")), Err(ExecuteError::InProgress(_))));
    let done = manager.execute_with("l", same("a").context(about("user", "ada")), |claim| {
        Ok(claim.context().text("user").unwrap().to_owned())
    });
    assert_eq!(done.unwrap().value(), "ada");
}

// Claims.

#[test]
fn a_claim_returns_its_fields() {
    let (manager, _) = fresh();
    let first = claimed(manager.begin_with("k", CallOptions::new().context(about("user", "ada"))).unwrap());
    assert_eq!((first.key().as_str(), first.attempt(), first.interruption()), (Some("k"), 1, None));
    assert_eq!(
        (first.recovery_point(), first.checkpoint(), first.context().text("user")),
        (STARTED, None, Some("ada"))
    );
    assert_eq!(first.decode_checkpoint::<u64>().unwrap(), None);
    assert_eq!(first.token(), first.generation());
    let (generation, charge, mail) = (first.generation(), first.effect_id("charge"), first.effect_id("mail"));
    assert!(charge.len() == 32 && charge.bytes().all(|b| b.is_ascii_hexdigit()) && charge != mail);
    first.release().unwrap();
    let second = claim(&manager, "k");
    assert!(second.token() > generation);
    assert_eq!((second.generation(), second.attempt(), second.effect_id("charge")), (generation, 2, charge.clone()));
    assert_ne!(claim(&manager, "l").effect_id("charge"), charge);
    second.succeed(&"v".to_owned()).unwrap();
    assert!(manager.forget("k").unwrap());
    assert_ne!(claim(&manager, "k").effect_id("charge"), charge, "another generation is another charge");
}

#[test]
fn release_on_drop_releases_until_it_is_turned_off() {
    let (manager, _) = fresh();
    let mut validating = claim(&manager, "k");
    validating.release_on_drop(true);
    drop(validating);
    assert_eq!(status(&manager, "k"), Some(Status::Released));
    let mut effect = claim(&manager, "k");
    effect.release_on_drop(true);
    effect.release_on_drop(false);
    drop(effect);
    assert_eq!(status(&manager, "k"), Some(Status::Interrupted));
}

#[test]
fn a_question_mark_drops_the_claim_unless_the_error_is_kept_in_a_box() {
    let (engine, _) = engine();
    let manager: Manager<Holed, String> = engine.manager("m").unwrap();
    let bad = Holed { note: None, cents: 1 };
    let into_ours = || -> oncekey::Result<()> {
        claim(&manager, "ours").succeed(&bad)?;
        Ok(())
    };
    assert_eq!(into_ours().unwrap_err().kind(), ErrorKind::Codec);
    assert_eq!(status(&manager, "ours"), Some(Status::Interrupted));
    let into_box = || -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        claim(&manager, "boxed").succeed(&bad)?;
        Ok(())
    };
    let kept = into_box().unwrap_err();
    assert_eq!(status(&manager, "boxed"), Some(Status::InProgress));
    drop(kept);
    assert_eq!(status(&manager, "boxed"), Some(Status::Interrupted));
}

#[test]
fn a_pending_holds_nothing_and_waits_for_the_ending() {
    let (manager, _) = fresh();
    let owner = claim(&manager, "k");
    let Begin::InProgress(pending) = manager.begin("k").unwrap() else { panic!("it is not in progress") };
    assert_eq!((pending.info().status(), manager.engine().stats().waiting), (Status::InProgress, 0));
    assert_eq!(waited(&pending.wait(Duration::ZERO).unwrap()), "timed out");
    owner.succeed(&"v".to_owned()).unwrap();
    let Waited::Finished(done) = pending.wait(FOREVER).unwrap() else { panic!("it has finished") };
    assert_eq!(done.into_outcome(), Ok("v".to_owned()));
    // The handle is still valid after the record is removed.
    manager.remove("k").unwrap();
    assert_eq!(waited(&pending.wait(FOREVER).unwrap()), "absent");
}

// Operators' calls.

#[test]
fn resolve_accepts_only_interrupted_records() {
    let (manager, _) = fresh();
    let refused = |key: &str| manager.resolve(key, Resolution::Succeed("r".to_owned())).unwrap_err();
    for key in ["retry", "succeed", "fail"] {
        drop(claim(&manager, key));
    }
    manager.resolve("retry", Resolution::Retry).unwrap();
    manager.resolve("succeed", Resolution::Succeed("r".to_owned())).unwrap();
    manager.resolve("fail", Resolution::Fail("e".to_owned())).unwrap();
    assert_eq!(outcome(&manager, "succeed"), Some(Ok("r".to_owned())));
    assert_eq!(outcome(&manager, "fail"), Some(Err("e".to_owned())));
    let retried = claim(&manager, "retry");
    assert_eq!((retried.attempt(), retried.interruption()), (2, Some(Interruption::Dropped)));

    let _live = claim(&manager, "live");
    assert!(manager.initiate("by-key").unwrap().is_some());
    claim(&manager, "released").release().unwrap();
    let expected = [
        ("absent", ErrorKind::NotFound),
        ("live", ErrorKind::OwnedByClaim),
        ("by-key", ErrorKind::OwnedByClaim),
        ("released", ErrorKind::NotInterrupted),
        ("succeed", ErrorKind::NotInterrupted),
        ("fail", ErrorKind::NotInterrupted),
    ];
    for (key, kind) in expected {
        let error = refused(key);
        assert_eq!(error.kind(), kind, "{key}");
        assert!(error.to_string().contains(&format!("key {key} of m")), "{error}");
    }
}

#[test]
fn forget_accepts_finished_records_and_remove_all_without_a_live_claim() {
    let (manager, _) = fresh();
    let make = || {
        claim(&manager, "won").succeed(&"v".to_owned()).unwrap();
        claim(&manager, "lost").fail(&"e".to_owned()).unwrap();
        claim(&manager, "released").release().unwrap();
        drop(claim(&manager, "dropped"));
        manager.initiate("by-key").unwrap().unwrap()
    };
    let token = make();
    let _live = claim(&manager, "live");
    let by_key = ErrorKind::OwnedByClaim;
    let reopened = |key: &str| manager.forget(key).map_err(|error| error.kind());
    assert_eq!(
        ["won", "lost", "released", "dropped", "absent"].map(reopened),
        [true, true, false, false, false].map(Ok)
    );
    assert_eq!(["live", "by-key"].map(reopened), [Err(by_key), Err(by_key)]);
    assert_eq!(manager.remove("by-key").map_err(|error| error.kind()), Err(by_key));
    manager.release("by-key", token).unwrap();
    assert!(manager.remove("by-key").unwrap());
    for key in ["released", "dropped"] {
        assert!(manager.remove(key).unwrap(), "{key}");
    }
    let token = make();
    manager.release("by-key", token).unwrap();
    for key in ["won", "lost", "released", "dropped", "by-key"] {
        assert!(manager.remove(key).unwrap() && status(&manager, key).is_none(), "{key}");
        assert!(!manager.remove(key).unwrap(), "{key}");
    }
    assert_eq!(manager.remove("live").unwrap_err().kind(), ErrorKind::OwnedByClaim);
}

#[test]
fn extend_keeps_a_finished_record_longer_and_never_shorter() {
    let (manager, clock) = fresh();
    claim(&manager, "k").succeed(&"v".to_owned()).unwrap();
    let expires = || manager.get("k").unwrap().unwrap().info().expires_at();
    let at = expires().unwrap();
    assert!(manager.extend("k", SECOND).unwrap());
    assert_eq!(expires(), Some(at));
    clock.advance(MINUTE);
    assert!(manager.extend("k", DAY).unwrap());
    assert_eq!(expires(), Some(at + MINUTE));
    assert!(manager.extend("k", FOREVER).unwrap());
    assert_eq!(expires(), None);
    assert_eq!(outcome(&manager, "k"), Some(Ok("v".to_owned())));
    drop(claim(&manager, "held"));
    let _live = claim(&manager, "live");
    for key in ["held", "live", "absent"] {
        assert!(!manager.extend(key, DAY).unwrap(), "{key}");
    }
}

#[test]
fn by_key_calls_end_only_records_begun_by_key() {
    let (manager, _) = fresh();
    let owner = claim(&manager, "claimed");
    assert_eq!(manager.initiate("claimed").unwrap(), None);
    let v = "v".to_owned();
    let refusals = |token| {
        let all = [
            manager.success("claimed", token, &v),
            manager.fail("claimed", token, &v),
            manager.release("claimed", token),
        ];
        all.map(|refusal| refusal.unwrap_err().kind())
    };
    // The number of a claim's token is not a token of `initiate`.
    assert_eq!(refusals(token(owner.token())), [ErrorKind::OwnedByClaim; 3]);
    assert_eq!(refusals(token(owner.token() - 1)), [ErrorKind::ClaimLost; 3]);
    owner.release().unwrap();
    // A key that a claim gave up can be taken by key, and the reverse.
    let by_key = manager.initiate_with("claimed", CallOptions::new().context(about("user", "ada"))).unwrap().unwrap();
    assert_eq!(answer(&manager, "claimed"), "in progress");
    manager.release("claimed", by_key).unwrap();
    assert_eq!(claim(&manager, "claimed").attempt(), 3);
    let by_key = manager.initiate_with("k", CallOptions::new().context(about("user", "ada"))).unwrap().unwrap();
    manager.fail("k", by_key, &v).unwrap();
    assert_eq!(manager.get("k").unwrap().unwrap().info().context().text("user"), Some("ada"));
}

// Scopes.

#[test]
fn a_scope_is_neither_empty_nor_made_of_parts() {
    let (manager, _) = fresh();
    let requests = manager.engine().requests("r").unwrap();
    for scope in [b"".into_key(), Key::from_parts(["a", "b"])] {
        let errors = match scope {
            Err(empty) => vec![empty, manager.scoped("").unwrap_err(), requests.scoped("").unwrap_err()],
            Ok(parts) => vec![manager.scoped(&parts).unwrap_err(), requests.scoped(parts).unwrap_err()],
        };
        assert!(errors.iter().all(|error| error.kind() == ErrorKind::InvalidKey), "{errors:?}");
    }
    // A plain `Key` and its text are the same scope.
    let (text, key) = (manager.scoped("a").unwrap(), manager.scoped(Key::new("a").unwrap()).unwrap());
    claim(&text, "k").succeed(&"v".to_owned()).unwrap();
    assert_eq!(answer(&key, "k"), "replay");
}

#[test]
fn scoped_keys_are_separate_and_found_by_the_whole_key() {
    let (manager, _) = fresh();
    let (a, b, nested) = (manager.scoped("a"), manager.scoped("b"), manager.scoped("a").unwrap().scoped("b"));
    let scopes = [manager.clone(), a.unwrap(), b.unwrap(), nested.unwrap()];
    for (n, scope) in scopes.iter().enumerate() {
        assert!(!scope.execute("k", |_| Ok(n.to_string())).unwrap().replayed(), "{n}");
        assert!(scope.execute("k", |_| panic!("it has run")).unwrap().replayed(), "{n}");
    }
    // Lengths are encoded, so no two pairs of scope and key are equal.
    assert!(manager.scoped("ab").unwrap().get("c").unwrap().is_none());
    claim(&manager.scoped("a").unwrap(), "bc").release().unwrap();
    assert!(manager.scoped("ab").unwrap().get("c").unwrap().is_none());

    drop(claim(&scopes[3], "held"));
    let whole = manager.engine().interrupted().unwrap().next().unwrap().unwrap().key().clone();
    assert_eq!(whole, Key::from_parts(["a", "b", "held"]).unwrap());
    manager.resolve(&whole, Resolution::Succeed("r".to_owned())).unwrap();
    assert_eq!(outcome(&scopes[3], "held"), Some(Ok("r".to_owned())));
}

#[test]
fn a_whole_key_passed_to_its_scope_is_the_same_key() {
    let (engine, _) = engine();
    let of_ada = texts(&engine).scoped("ada").unwrap();
    let first = of_ada.execute("order-42", |_| Ok("paid".to_owned())).unwrap();
    let kept = first.info().key().clone();
    assert!(of_ada.execute(&kept, |_| panic!("it has run")).unwrap().replayed());
    assert!(texts(&engine).execute(kept.clone(), |_| panic!("it has run")).unwrap().replayed());
    // In another scope the whole key would name another key: of another tenant, of none, or of a nested scope.
    for other in ["bob", "adam"].map(|scope| texts(&engine).scoped(scope).unwrap()) {
        assert_eq!(other.begin(&kept).unwrap_err().kind(), ErrorKind::InvalidKey);
    }
    assert_eq!(of_ada.scoped("x").unwrap().begin(&kept).unwrap_err().kind(), ErrorKind::InvalidKey);
    assert_eq!(of_ada.begin(Key::from_parts(["b", "c"]).unwrap()).unwrap_err().kind(), ErrorKind::InvalidKey);

    drop(claim(&of_ada, "held"));
    let held = engine.interrupted().unwrap().next().unwrap().unwrap();
    of_ada.resolve(held.key(), Resolution::Retry).unwrap();
    assert_eq!(claim(&of_ada, "held").attempt(), 2);
}

#[test]
fn bytes_from_a_client_never_name_a_key_inside_a_scope() {
    let (manager, _) = fresh();
    claim(&manager.scoped("ada").unwrap(), "k1").succeed(&"receipt of ada".to_owned()).unwrap();
    let bytes = b"\xffkey\0\x03ada\0\x02k1";
    assert_eq!(manager.scoped("ada").unwrap().get("k1").unwrap().unwrap().info().key().as_bytes(), bytes);
    let kind = |refusal: oncekey::Error| refusal.kind();
    assert_eq!(manager.begin(bytes).map_err(kind).unwrap_err(), ErrorKind::InvalidKey);
    assert_eq!(manager.get(&bytes[..]).map_err(kind).unwrap_err(), ErrorKind::InvalidKey);
    assert_eq!(manager.wait(bytes.to_vec(), MS).map_err(kind).unwrap_err(), ErrorKind::InvalidKey);
    assert_eq!(manager.engine().raw("m").unwrap().get(bytes).map_err(kind).unwrap_err(), ErrorKind::InvalidKey);
    assert!(serde_json::from_value::<Key>(serde_json::json!(bytes)).is_err());
}

#[test]
fn one_limit_covers_scope_and_key() {
    let (manager, _) = fresh();
    assert_eq!(manager.scoped("").unwrap_err().kind(), ErrorKind::InvalidKey);
    assert_eq!(manager.scoped([b'a'; 504]).unwrap_err().kind(), ErrorKind::InvalidKey);
    // Four bytes for the mark and two for each length leave one byte for the key.
    let full = manager.scoped([b'a'; 503]).unwrap();
    assert_eq!(answer(&full, "k"), "claimed");
    assert_eq!(full.begin("kk").unwrap_err().kind(), ErrorKind::InvalidKey);
    assert_eq!(full.begin("").unwrap_err().kind(), ErrorKind::InvalidKey);
    assert_eq!(full.scoped("b").unwrap_err().kind(), ErrorKind::InvalidKey);
}
