//! Tests of the socket of an open store over time: watchers that fall behind, and stores that live claims keep open.

use std::path::{Path, PathBuf};

use oncekey::admin::{Event, LiveStore, RecordFilter};
use oncekey::{Engine, ErrorKind, Interruption, Status};

use crate::common::*;
use crate::threads::{LATE, within};

fn socket(store: &Path) -> PathBuf {
    store.join("SOCKET")
}

#[test]
fn a_client_watches_until_the_store_is_closed() {
    within(LATE, || {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(dir.path()).unwrap();
        let texts = texts(&engine);
        let events = LiveStore::connect(dir.path()).unwrap().events().unwrap();
        claim(&texts, "k").succeed(&"v".to_owned()).unwrap();
        assert_eq!(answer(&texts, "k"), "replay");
        engine.compact_now().unwrap();
        drop(texts);
        engine.close().unwrap();
        let seen: Vec<_> = events
            .map(|event| match event {
                Ok(Event::Began(info)) => format!("began {}", info.key()),
                Ok(Event::Ended(info)) => format!("ended {} {:?}", info.key(), info.status()),
                Ok(Event::Replayed(info)) => format!("replayed {}", info.key()),
                Ok(Event::Compacted(_)) => "compacted".to_owned(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(seen.first().map(String::as_str), Some("began k"), "{seen:?}");
        assert!(
            seen.iter()
                .all(|event| ["began k", "ended k Succeeded", "replayed k", "compacted"].contains(&event.as_str())),
            "{seen:?}"
        );
    });
}

/// The service does not wait for a slow watcher, which learns how many events it has missed.
#[test]
fn a_client_that_falls_behind_gets_the_number_of_missed_events() {
    within(LATE, || {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(dir.path()).unwrap();
        let texts = texts(&engine);
        claim(&texts, "k").succeed(&"v".to_owned()).unwrap();
        let events = LiveStore::connect(dir.path()).unwrap().events().unwrap();
        for _ in 0..20_000 {
            assert_eq!(answer(&texts, "k"), "replay");
        }
        let (mut seen, mut missed) = (0, 0);
        for event in events {
            match event.unwrap() {
                Event::Replayed(_) => seen += 1,
                Event::Missed { count } => missed += count,
                other => panic!("{other:?}"),
            }
            if seen + missed == 20_000 {
                break;
            }
        }
        assert!(missed > 0, "{seen} seen");
    });
}

/// The end of a watch is the end of the store, not of the process.
#[test]
fn a_client_that_watches_sees_the_difference_between_a_close_and_a_death() {
    within(LATE, || {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(dir.path()).unwrap();
        let events = LiveStore::connect(dir.path()).unwrap().events().unwrap();
        engine.close().unwrap();
        assert_eq!(events.map(Result::unwrap).count(), 0);
        let engine = Engine::open(dir.path()).unwrap();
        let mut events = LiveStore::connect(dir.path()).unwrap().events().unwrap();
        engine.crash();
        assert_eq!(events.next().unwrap().unwrap_err().kind(), ErrorKind::Io);
        assert!(events.next().is_none());
    });
}

/// A close with live claims leaves the store locked, so its operator needs the socket, to find and revoke them.
#[test]
fn a_store_that_live_claims_keep_open_answers_until_the_last_one_ends() {
    within(LATE, || {
        let dir = tempfile::tempdir().unwrap();
        for revoked in [true, false] {
            for closed in [true, false] {
                let engine = Engine::open(dir.path()).unwrap();
                let texts = texts(&engine);
                claim(&texts, "done").succeed(&"v".to_owned()).unwrap();
                let (one, other) = (claim(&texts, "one"), claim(&texts, "other"));
                drop(texts);
                if closed {
                    assert_eq!(engine.close().unwrap_err().kind(), ErrorKind::ClaimsAlive);
                } else {
                    // The claims keep the store open also if the last engine is gone.
                    drop(engine);
                }
                let live = LiveStore::connect(dir.path()).unwrap();
                let watched = live.events().unwrap();
                let mine = RecordFilter::new().status(Status::InProgress);
                let keys = |live: &LiveStore| -> Vec<_> {
                    live.records(mine.clone()).unwrap().map(|info| info.unwrap().key().to_string()).collect()
                };
                assert_eq!(keys(&live), ["one", "other"]);
                assert_eq!(live.stats().unwrap().in_progress, 2);
                assert!(live.get("m", "done").unwrap().is_some());
                let forgotten = live.forget("m", "done").map_err(|error| error.kind());
                assert_eq!(forgotten, if closed { Err(ErrorKind::Closed) } else { Ok(true) });
                other.release().unwrap();
                assert_eq!(keys(&live), ["one"]);
                if revoked {
                    // The answer comes although this ends the store.
                    assert_eq!(live.revoke("m", "one").unwrap().interruption(), Some(Interruption::Revoked));
                    assert!(one.succeed(&"late".to_owned()).is_err());
                } else {
                    drop(one);
                }
                assert!(!socket(dir.path()).exists());
                let ended = watched.map(Result::unwrap).filter(|event| matches!(event, Event::Ended(_))).count();
                assert_eq!(ended, 2);
                let engine = Engine::open(dir.path()).unwrap();
                assert!(engine.opened().clean);
                engine.raw("m").unwrap().remove("one").unwrap();
                engine.raw("m").unwrap().remove("done").unwrap();
            }
        }
    });
}
