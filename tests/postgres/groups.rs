//! Group commit: calls that arrive while a statement runs are committed together, and each gets its own answer.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use oncekey::{Begin, CallOptions, Claim, ErrorKind, Fingerprint, Status};

use crate::engines::{Texts, claimed, texts};
use crate::faults::lock_is_free;
use crate::gate::{Call, Gate, begin_at_gate, end_at_gate, occupy, queued, together};
use crate::proxy::Proxy;
use crate::{new_schema, open, options, shared, until};

fn done() -> String {
    "done".to_owned()
}

fn request(text: &str) -> CallOptions {
    CallOptions::new().fingerprint(Fingerprint::of(text).unwrap())
}

fn kind_of(begun: &Begin<String, String>) -> &'static str {
    match begun {
        Begin::Claimed(_) => "claimed",
        Begin::Replay(_) => "replay",
        Begin::InProgress(_) => "in progress",
        Begin::Interrupted(_) => "interrupted",
        Begin::Mismatch(_) => "mismatch",
        Begin::Paused(_) => "paused",
    }
}

#[test]
fn each_begin_of_a_group_gets_its_own_answer() {
    let schema = new_schema();
    let (engine, other) = (open(&schema), open(&schema));
    let gate = Gate::add(&schema, &engine);
    let (texts, others) = (texts(&engine), texts(&other));
    let _live = claimed(others.begin("in progress").unwrap());
    texts.execute_with("replay", request("one"), |_| Ok(done())).unwrap();
    claimed(others.begin("released").unwrap()).release().unwrap();
    drop(claimed(others.begin("interrupted").unwrap()).interrupt().unwrap());
    texts.execute("removed", |_| Ok(done())).unwrap();
    assert!(texts.remove("removed").unwrap());
    let expected = [
        ("new 1", "claimed"),
        ("in progress", "in progress"),
        ("replay", "replay"),
        ("mismatch", "mismatch"),
        ("released", "claimed"),
        ("interrupted", "interrupted"),
        ("removed", "claimed"),
        ("new 2", "claimed"),
        ("new 3", "claimed"),
    ];
    let texts = &texts;
    let call = |(key, _): &(&'static str, &str)| -> Call<'_, &'static str> {
        let key = *key;
        Box::new(move || {
            let (at, options) = match key {
                "mismatch" => ("replay", request("two")),
                "replay" => (key, request("one")),
                _ => (key, CallOptions::new()),
            };
            let begun = texts.begin_with(at, options).unwrap();
            let kind = kind_of(&begun);
            if let Ok(claim) = begun.into_claim() {
                claim.succeed(&key.to_owned()).unwrap();
            }
            kind
        })
    };
    let answers = together(&gate, begin_at_gate(texts), expected.iter().map(call).collect(), || ());
    assert_eq!(answers, expected.map(|(_, answer)| answer));
    for key in ["new 1", "released", "removed", "new 2", "new 3"] {
        assert_eq!(others.get(key).unwrap().unwrap().into_outcome(), Some(Ok(key.to_owned())), "{key}");
    }
    assert!(gate.largest("INSERT") >= 3, "the new keys are one group");
}

#[test]
fn one_of_many_begins_of_a_key_in_a_group_claims_it() {
    let (engine, gate) = Gate::new_store();
    let texts = &texts(&engine);
    let call =
        |_| -> Call<'_, Option<Claim<String, String>>> { Box::new(|| texts.begin("k").unwrap().into_claim().ok()) };
    let claims = together(&gate, begin_at_gate(texts), (0..12).map(call).collect(), || ());
    assert_eq!(claims.iter().flatten().count(), 1);
}

/// The lock of the incarnation is free when its group is committed, and its engine does not know that.
#[test]
fn no_group_claims_in_the_name_of_a_dead_incarnation() {
    let (proxy, schema) = (Proxy::start(), new_schema());
    let engine = options(&schema).connect(&proxy.url()).unwrap();
    let gate = Gate::add(&schema, &engine);
    let texts = &texts(&engine);
    let keys: Vec<String> = (0..6).map(|key| format!("group {key}")).collect();
    let first = begin_at_gate(texts);
    let claims = std::thread::scope(|scope| {
        let occupied = occupy(scope, &gate, &first);
        proxy.end_keepers_silently();
        until(|| shared().sql(&lock_is_free(&schema, 1)) == "t");
        let call = |key: &String| -> Call<'_, Claim<String, String>> {
            let key = key.clone();
            Box::new(move || claimed(texts.begin(key).unwrap()))
        };
        let claims = queued(keys.iter().map(call).collect(), || gate.open("gate"));
        for thread in occupied {
            thread.join().unwrap();
        }
        claims
    });
    let owners = "SELECT string_agg(DISTINCT owner::text, ' ') FROM {s}.records WHERE key LIKE 'group%'";
    assert_eq!(gate.sql(owners), "2");
    for claim in claims {
        claim.succeed(&done()).unwrap();
    }
}

#[test]
fn each_ending_of_a_group_gets_its_own_answer() {
    let schema = new_schema();
    let engine = options(&schema).max_value_bytes(1_000).connect(&shared().url()).unwrap();
    let other = open(&schema);
    let gate = Gate::add(&schema, &engine);
    let (texts, others) = (texts(&engine), texts(&other));
    let keys = ["succeeds", "fails", "is released", "is interrupted", "is dropped", "was revoked", "is too large"];
    let claims = keys.map(|key| claimed(texts.begin(key).unwrap()));
    let first = end_at_gate(&texts);
    others.revoke("was revoked").unwrap();
    let call = |(key, claim): (&'static str, Claim<String, String>)| -> Call<'static, Option<ErrorKind>> {
        Box::new(move || match key {
            "succeeds" | "was revoked" => claim.succeed(&done()).map_err(|error| error.kind()).err(),
            "fails" => claim.fail(&done()).map_err(|error| error.kind()).err(),
            "is released" => claim.release().map_err(|error| error.kind()).err(),
            "is interrupted" => claim.interrupt().map_err(|error| error.kind()).err(),
            "is dropped" => {
                drop(claim);
                None
            }
            _ => {
                let error = claim.succeed(&"x".repeat(2_000)).unwrap_err();
                let kind = error.kind();
                error.claim.succeed(&done()).unwrap();
                Some(kind)
            }
        })
    };
    let calls = keys.into_iter().zip(claims).map(call).collect();
    let errors = together(&gate, first, calls, || ());
    let expected = [None, None, None, None, None, Some(ErrorKind::ClaimLost), Some(ErrorKind::TooLarge)];
    assert_eq!(errors, expected);
    // A drop waits for a second at most, and is then recorded later.
    until(|| others.get("is dropped").unwrap().unwrap().status() == Status::Interrupted);
    let status = keys.map(|key| others.get(key).unwrap().unwrap().status());
    let (released, interrupted, succeeded) = (Status::Released, Status::Interrupted, Status::Succeeded);
    assert_eq!(status, [succeeded, Status::Failed, released, interrupted, interrupted, interrupted, succeeded]);
    assert!(gate.largest("UPDATE") >= 4, "the endings are one group");
}

/// A transaction of another program has locked the row of one key.
#[test]
fn a_key_that_is_locked_does_not_hold_up_the_others() {
    let (engine, gate) = Gate::new_store();
    let texts = &texts(&engine);
    let ends: Vec<_> = (0..6).map(|key| claimed(texts.begin(format!("end {key}")).unwrap())).collect();
    let lock = Lock::take(&gate, "SELECT FROM {s}.records WHERE position('end 3' in key) > 0 FOR UPDATE");
    let ended = AtomicUsize::new(0);
    let first = end_at_gate(texts);
    std::thread::scope(|scope| {
        let (gate, ended) = (&gate, &ended);
        let group = scope.spawn(move || {
            let call = |claim: Claim<String, String>| -> Call<'_, ()> {
                Box::new(move || {
                    claim.succeed(&done()).unwrap();
                    ended.fetch_add(1, Ordering::SeqCst);
                })
            };
            together(gate, first, ends.into_iter().map(call).collect(), || ());
        });
        until(|| ended.load(Ordering::SeqCst) == 5);
        lock.release();
        group.join().unwrap();
    });
    assert_eq!(ended.into_inner(), 6);
    assert_eq!(texts.get("end 3").unwrap().unwrap().into_outcome(), Some(Ok(done())));
}

/// A transaction of another program has added the row of one key, and has not committed yet.
#[test]
fn a_key_that_another_transaction_adds_does_not_hold_up_the_others() {
    let (engine, gate) = Gate::new_store();
    let texts = &texts(&engine);
    texts.execute("src 2", |_| Ok(done())).unwrap();
    let lock = Lock::take(
        &gate,
        "INSERT INTO {s}.records (manager, key, state, generation, revision, token, owner, change, updated, body, outcome)
         SELECT manager, decode(replace(encode(key, 'hex'), encode('src 2', 'hex'), encode('key 2', 'hex')), 'hex'), state,
                generation, nextval('{s}.number'), token, owner, change, updated, body, outcome
         FROM {s}.records WHERE position('src 2' in key) > 0",
    );
    let claims = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let (gate, claims) = (&gate, &claims);
        let group = scope.spawn(move || {
            let call = |key: usize| -> Call<'_, &'static str> {
                Box::new(move || {
                    let begun = texts.begin(format!("key {key}")).unwrap();
                    claims.fetch_add(1, Ordering::SeqCst);
                    kind_of(&begun)
                })
            };
            together(gate, begin_at_gate(texts), (0..5).map(call).collect(), || ())
        });
        until(|| claims.load(Ordering::SeqCst) == 4);
        lock.release();
        assert_eq!(group.join().unwrap(), ["claimed", "claimed", "replay", "claimed", "claimed"]);
    });
}

/// A transaction that has locked rows until it is released.
struct Lock {
    client: tokio_postgres::Client,
    runtime: tokio::runtime::Runtime,
}

impl Lock {
    fn take(gate: &Gate, statement: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let statement = statement.replace("{s}", &format!("\"{}\"", gate.schema));
        let client = runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(&shared().url(), tokio_postgres::NoTls).await.unwrap();
            tokio::spawn(connection);
            client.batch_execute(&format!("BEGIN; {statement}")).await.unwrap();
            client
        });
        Self { client, runtime }
    }

    fn release(self) {
        self.runtime.block_on(self.client.batch_execute("COMMIT")).unwrap();
    }
}

/// The session is ended while it commits a group: each caller finds out whether its change was made.
#[test]
fn every_caller_of_a_group_that_was_cut_off_gets_its_answer() {
    let (engine, gate) = Gate::new_store();
    let texts = &texts(&engine);
    for round in 0..3 {
        gate.connect(&engine);
        gate.shut("door");
        let keys: Vec<String> = (0..8).map(|key| format!("{round} {key} {}", ["", "door"][key / 7])).collect();
        let call = |key: &String| -> Call<'_, u32> {
            let key = key.clone();
            Box::new(move || {
                let claim = claimed(texts.begin(key.as_str()).unwrap());
                let attempt = claim.attempt();
                claim.succeed(&key).unwrap();
                attempt
            })
        };
        let end_group = || {
            until(|| gate.waiting("unnest", "pg_terminate_backend(pid)") > 0);
            gate.open("door");
        };
        let first = |session| drop(claimed(texts.begin(format!("gate {round} {session}")).unwrap()));
        let attempts = together(&gate, first, keys.iter().map(call).collect(), end_group);
        assert_eq!(attempts, [1; 8]);
        for key in &keys {
            assert_eq!(texts.get(key.as_str()).unwrap().unwrap().into_outcome(), Some(Ok(key.clone())));
        }
    }
}

/// In each round an answer is lost with its connection, at another point of many groups.
#[test]
fn a_lost_answer_of_a_group_changes_no_answer_of_a_caller() {
    let (proxy, schema) = (Proxy::start(), new_schema());
    let engine = options(&schema).connect(&proxy.url()).unwrap();
    let texts = &texts(&engine);
    for round in 0..30 {
        std::thread::scope(|scope| {
            for thread in 0..8 {
                scope.spawn(move || {
                    for number in 0..5 {
                        let key = format!("{round} {thread} {number}");
                        let claim = claimed(texts.begin(key.as_str()).unwrap());
                        assert_eq!(claim.attempt(), 1, "{key}");
                        claim.succeed(&key).unwrap();
                        assert!(matches!(texts.begin(key.as_str()).unwrap(), Begin::Replay(_)), "{key}");
                    }
                });
            }
            proxy.lose(3 + round);
        });
    }
    assert!(proxy.lost() > 20, "{} answers were lost", proxy.lost());
    let records = shared().sql(&format!("SELECT count(*), min(state), max(state) FROM \"{schema}\".records"));
    assert_eq!(records, "1200|2|2");
}

/// Each caller returns by its deadline. A begin that was made after that is given back.
#[test]
fn callers_of_a_group_that_takes_too_long_return_by_their_deadlines() {
    let schema = new_schema();
    let engine = options(&schema).sync_timeout(Duration::from_secs(4)).connect(&shared().url()).unwrap();
    let gate = Gate::add(&schema, &engine);
    let texts = &texts(&engine);
    gate.shut("door");
    let key_of = |key: usize| format!("late {key} {}", ["", "door"][key / 5]);
    let call = |key: usize| -> Call<'_, ErrorKind> { Box::new(move || texts.begin(key_of(key)).unwrap_err().kind()) };
    let began = Instant::now();
    let kinds = together(&gate, begin_at_gate(texts), (0..6).map(call).collect(), || ());
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert_eq!(kinds, [ErrorKind::Unsettled; 6], "their group was sent");
    gate.open("door");
    for key in 0..6 {
        until(|| texts.begin(key_of(key)).unwrap().into_claim().is_ok_and(|claim| claim.release().is_ok()));
    }
}

/// A thread of a runtime cannot run the session itself. A thread of the committer makes its changes.
#[test]
fn a_caller_inside_of_a_runtime_is_served() {
    let schema = new_schema();
    let engine = open(&schema);
    let _gate = Gate::add(&schema, &engine);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        texts(&engine).execute("k", |_| Ok(done())).unwrap();
        drop(claimed(texts(&engine).begin("dropped").unwrap()));
    });
    assert_eq!(texts(&engine).get("dropped").unwrap().unwrap().status(), Status::Interrupted);
}

/// Calls that are in flight when the engine is closed either claim, or return `Closed` and have changed nothing.
#[test]
fn a_close_while_groups_are_in_flight_loses_no_claim() {
    for _ in 0..10 {
        let schema = new_schema();
        let engine = open(&schema);
        let texts: Texts = texts(&engine);
        let count = AtomicUsize::new(0);
        let answered: Vec<String> = std::thread::scope(|scope| {
            let work = |thread: usize| {
                let (texts, count) = (texts.clone(), &count);
                move || {
                    let mut answered = Vec::new();
                    for number in 0.. {
                        let key = format!("{thread} {number}");
                        match texts.begin(key.as_str()) {
                            // A claim may end after the close.
                            Ok(begun) => drop(claimed(begun).succeed(&key).unwrap()),
                            Err(error) => {
                                assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
                                return answered;
                            }
                        }
                        answered.push(key);
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    answered
                }
            };
            let threads: Vec<_> = (0..12).map(|thread| scope.spawn(work(thread))).collect();
            until(|| count.load(Ordering::Relaxed) > 200);
            if let Err(error) = engine.close() {
                assert_eq!(error.kind(), ErrorKind::ClaimsAlive, "{error}");
            }
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        drop(texts);
        let records = shared().sql(&format!("SELECT count(*), min(state), max(state) FROM \"{schema}\".records"));
        assert_eq!(records, format!("{}|2|2", answered.len()));
    }
}

/// The keys of one group wait at the server, and the other session commits another group meanwhile.
#[test]
fn two_groups_are_committed_at_the_same_time() {
    let (engine, gate) = Gate::new_store();
    let texts = &texts(&engine);
    let claims: Vec<_> = (0..4).map(|key| claimed(texts.begin(format!("end {key}")).unwrap())).collect();
    gate.shut("door");
    let (begun, ended) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let (begun, ended) = (&begun, &ended);
    let start = |key: usize| -> Call<'_, ()> {
        Box::new(move || {
            let claim = claimed(texts.begin(format!("begin {key} door")).unwrap());
            begun.fetch_add(1, Ordering::SeqCst);
            drop(claim);
        })
    };
    let end = |claim: Claim<String, String>| -> Call<'_, ()> {
        Box::new(move || {
            claim.succeed(&done()).unwrap();
            ended.fetch_add(1, Ordering::SeqCst);
        })
    };
    let calls = (0..4).map(start).chain(claims.into_iter().map(end)).collect();
    let then = || {
        until(|| ended.load(Ordering::SeqCst) == 4);
        assert_eq!(begun.load(Ordering::SeqCst), 0);
        gate.open("door");
    };
    together(&gate, begin_at_gate(texts), calls, then);
    assert_eq!(begun.load(Ordering::SeqCst), 4);
    assert!(gate.largest("INSERT") >= 3 && gate.largest("UPDATE") >= 3, "two groups");
}

/// Otherwise it would wait for the other session at the server, and with it the others of its group.
#[test]
fn a_begin_of_a_key_in_flight_is_in_no_group() {
    let (engine, gate) = Gate::new_store();
    let texts = &texts(&engine);
    let (others, claims) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let begin = |key: String| {
        let begun = texts.begin(key.as_str()).unwrap();
        if key == "door" {
            claims.fetch_add(usize::from(kind_of(&begun) == "claimed"), Ordering::SeqCst);
            // The claim must live until all have begun.
            std::mem::forget(begun);
        } else {
            drop(claimed(begun).succeed(&done()).unwrap());
            others.fetch_add(1, Ordering::SeqCst);
        }
    };
    gate.shut("door");
    // One of the sessions begins `door`, and the other a key at the gate.
    let first = |session: usize| begin(["door", "gate"][session].to_owned());
    let keys = ["door", "a", "b", "door", "c"];
    let call = |key: &str| -> Call<'_, ()> {
        let (begin, key) = (&begin, key.to_owned());
        Box::new(move || begin(key))
    };
    let then = || {
        until(|| others.load(Ordering::SeqCst) == 4);
        gate.open("door");
    };
    together(&gate, first, keys.into_iter().map(call).collect(), then);
    assert_eq!(claims.load(Ordering::SeqCst), 1);
    let log = std::fs::read_to_string(shared().dir.join("log")).unwrap();
    let schema = format!("\"{}\"", gate.schema);
    let cancelled = log.split("ERROR:").filter(|error| error.contains("lock timeout") && error.contains(&schema));
    assert_eq!(cancelled.count(), 0, "a group waited for a lock");
}

#[test]
fn the_loss_of_one_session_leaves_the_queue_to_the_other() {
    let (engine, gate) = Gate::new_store();
    let texts = &texts(&engine);
    let first = begin_at_gate(texts);
    std::thread::scope(|scope| {
        let occupied = occupy(scope, &gate, &first);
        let call = |key: usize| -> Call<'_, u32> {
            Box::new(move || claimed(texts.begin(format!("queued {key}")).unwrap()).attempt())
        };
        let then = || {
            gate.end_one();
            gate.open("gate");
        };
        assert_eq!(queued((0..6).map(call).collect(), then), [1; 6]);
        for thread in occupied {
            thread.join().unwrap();
        }
    });
    assert!(gate.largest("INSERT") >= 3, "the queue was made as a group");
}
