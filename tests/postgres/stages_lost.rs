//! Stages in the user's transactions that lose their connection at the commit: the record tells whether the commit was
//! made.

use std::cell::Cell;
use std::time::Duration;

use oncekey::http::{NewRequest, Response};
use oncekey::sql::TransactionEnd;
use oncekey::sql::postgres::{Client, Transaction};
use oncekey::stage::{Next, STARTED};
use oncekey::{Claim, Error, ErrorKind, Status};

use crate::proxy::{CutAt, Proxy};
use crate::stages_in::{Boxed, Shop};
use crate::{client, new_schema, open, options, shared, until};

type Claimed = Claim<String, String>;
type Following = Next<String, String>;
/// A key, and the end of its stage.
type Case = (&'static str, fn() -> Following);

fn shop() -> Shop {
    let schema = new_schema();
    let engine = open(&schema);
    Shop::of(schema, engine)
}

fn kind(done: &Result<(), Boxed>) -> Option<ErrorKind> {
    done.as_ref().err().map(|error| error.downcast_ref::<Error>().unwrap_or_else(|| panic!("{error}")).kind())
}

/// Runs a stage that adds a row. Returns its result, and how often the closure ran.
fn stage(
    insert: &str,
    claim: &mut Claimed,
    client: &mut Client,
    next: impl Fn() -> Following,
) -> (Result<(), Boxed>, u32) {
    let runs = Cell::new(0);
    let done = claim.work_stage_in(client, |tx| {
        runs.set(runs.get() + 1);
        tx.execute(insert, &[])?;
        Ok::<_, Boxed>(next())
    });
    (done, runs.get())
}

/// Returns a session that holds a lock. Commits that add an effect wait for it until the session ends.
fn gate(shop: &Shop) -> Client {
    let (mut gate, schema) = (client(&shared().url()), &shop.schema);
    gate.batch_execute(&format!(
        "CREATE FUNCTION \"{schema}\".slow() RETURNS trigger LANGUAGE plpgsql
         AS 'BEGIN PERFORM pg_advisory_xact_lock(hashtext(''{schema}'')); RETURN NULL; END';
         CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON \"{schema}\".effects DEFERRABLE INITIALLY DEFERRED
         FOR EACH ROW EXECUTE FUNCTION \"{schema}\".slow();
         SELECT pg_advisory_lock(hashtext('{schema}'))"
    ))
    .unwrap();
    gate
}

/// Waits until a commit waits at the gate.
fn await_gate(shop: &Shop) {
    let waits =
        "SELECT count(*) FROM pg_locks l WHERE locktype = 'advisory' AND NOT granted AND objid::bigint = hashtext";
    let schema = &shop.schema;
    until(|| shared().sql(&format!("{waits}('{schema}')::bigint & 4294967295")) != "0");
}

/// Ends the session whose commit waits at the gate.
fn end_commit(shop: &Shop) {
    let schema = &shop.schema;
    shared().sql(&format!(
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
         AND objid::bigint = hashtext('{schema}')::bigint & 4294967295"
    ));
}

fn nexts() -> [Case; 4] {
    [
        ("advances", || Next::advance_with("on", "data")),
        ("stays", || Next::Stay),
        ("succeeds", || Next::Succeed("done".to_owned())),
        ("fails", || Next::Fail("sold out".to_owned())),
    ]
}

#[test]
fn a_commit_whose_answer_is_lost_was_made() {
    let (shop, proxy) = (shop(), Proxy::start());
    for (key, next) in nexts() {
        let mut claim = shop.begin(key);
        proxy.cut_at(CutAt::Answer);
        let (done, runs) = stage(&shop.insert(key), &mut claim, &mut client(&proxy.url()), next);
        assert_eq!((kind(&done), runs, shop.effects(key).as_str()), (None, 1, "1"), "{key}");
        // The claim has moved with its record.
        let info = shop.texts().get(key).unwrap().unwrap().info().clone();
        match key {
            "advances" => assert_eq!((claim.recovery_point(), claim.checkpoint()), ("on", Some(&b"data"[..]))),
            "stays" => assert_eq!(claim.recovery_point(), STARTED),
            _ => assert_eq!(info.recovery_point(), oncekey::stage::FINISHED),
        }
        match info.status() {
            Status::InProgress => drop(claim.succeed(&"end".to_owned()).unwrap()),
            _ => assert!(claim.into_finished().is_ok()),
        }
    }
    assert_eq!(proxy.lost(), 4);
}

#[test]
fn a_commit_that_did_not_arrive_was_not_made() {
    let (shop, proxy) = (shop(), Proxy::start());
    for (key, next) in nexts() {
        let mut claim = shop.begin(key);
        proxy.cut_at(CutAt::BeforeCommit);
        let (done, runs) = stage(&shop.insert(key), &mut claim, &mut client(&proxy.url()), next);
        assert_eq!((kind(&done), runs, shop.effects(key).as_str()), (Some(ErrorKind::Unavailable), 1, "0"), "{key}");
        assert_eq!(claim.recovery_point(), STARTED, "{key}");
        let (done, runs) = stage(&shop.insert(key), &mut claim, &mut client(&proxy.url()), next);
        assert_eq!((kind(&done), runs, shop.effects(key).as_str()), (None, 1, "1"), "{key}");
    }
}

/// The connection ends while the server commits: the call waits for the end of the commit.
#[test]
fn a_stage_waits_for_its_commit_also_without_its_connection() {
    for ends_well in [true, false] {
        let (shop, proxy) = (shop(), Proxy::start());
        let mut claim = shop.begin("k");
        let (gate, insert) = (gate(&shop), shop.insert("k"));
        proxy.cut_at(CutAt::Commit);
        let (done, _) = std::thread::scope(|scope| {
            let runs = scope.spawn(|| stage(&insert, &mut claim, &mut client(&proxy.url()), || Next::advance("on")));
            await_gate(&shop);
            let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE";
            until(|| shared().sql(&format!("{waits} '%UPDATE%{}%'", shop.schema)) != "0");
            if !ends_well {
                end_commit(&shop);
            }
            drop(gate);
            runs.join().unwrap()
        });
        let expected = if ends_well { (None, "1", "on") } else { (Some(ErrorKind::Unavailable), "0", STARTED) };
        assert_eq!((kind(&done), shop.effects("k").as_str(), claim.recovery_point()), expected);
        claim.succeed(&"done".to_owned()).unwrap();
    }
}

/// The deadline comes before the end of the commit. The next call finds out.
#[test]
fn a_stage_that_is_unsettled_is_settled_by_the_next_call() {
    for ends_well in [true, false] {
        let (schema, proxy) = (new_schema(), Proxy::start());
        let engine = options(&schema).sync_timeout(Duration::from_secs(5)).connect(&shared().url()).unwrap();
        let shop = Shop::of(schema, engine);
        let mut claim = shop.begin("k");
        let gate = gate(&shop);
        proxy.cut_at(CutAt::Commit);
        let (done, runs) = stage(&shop.insert("k"), &mut claim, &mut client(&proxy.url()), || Next::advance("on"));
        assert_eq!((kind(&done), runs), (Some(ErrorKind::Unsettled), 1));
        let (done, runs) = stage(&shop.insert("k"), &mut claim, &mut client(&proxy.url()), || Next::advance("on"));
        assert_eq!((kind(&done), runs), (Some(ErrorKind::Unsettled), 0), "the commit has not ended");
        if !ends_well {
            end_commit(&shop);
        }
        drop(gate);
        // Only a stage that was not committed runs again.
        let (done, runs) = stage(&shop.insert("k"), &mut claim, &mut client(&proxy.url()), || Next::advance("on"));
        assert_eq!((kind(&done), runs, shop.effects("k").as_str()), (None, u32::from(!ends_well), "1"));
        assert_eq!(claim.recovery_point(), "on");
    }
}

#[test]
fn a_stage_of_a_request_finds_out_whether_its_lost_commit_was_made() {
    let (shop, proxy) = (shop(), Proxy::start());
    let requests = shop.engine.requests("r").unwrap();
    let insert = |key: &str| shop.insert(key);
    for (cut, kind) in [(CutAt::Answer, None), (CutAt::BeforeCommit, Some(ErrorKind::Unavailable))] {
        for ends in [false, true] {
            let key = format!("{cut:?}-{ends}");
            requests.create(NewRequest::new("POST", "/orders").key(key.parse().unwrap())).unwrap();
            let insert = insert(&key);
            let work = |tx: &mut Transaction<'_>| {
                tx.execute(&insert, &[])?;
                let response = Response::new(http::StatusCode::CREATED);
                Ok::<_, Boxed>(if ends { Next::Succeed(response) } else { Next::advance("ordered") })
            };
            proxy.cut_at(cut);
            let done = requests.atomic_phase_in(&mut client(&proxy.url()), key.as_str(), |tx, _| work(tx));
            assert_eq!(super::stages_lost::kind(&done.map(drop)), kind, "{key}");
            let made = kind.is_none();
            assert_eq!(shop.effects(&key), if made { "1" } else { "0" }, "{key}");
            if !made {
                requests.atomic_phase_in(&mut client(&proxy.url()), key.as_str(), |tx, _| work(tx)).unwrap();
            }
            let record = requests.retrieve(key.as_str()).unwrap().unwrap();
            assert_eq!((record.outcome().is_some(), shop.effects(&key).as_str()), (ends, "1"), "{key}");
        }
    }
}

/// The statement is run by a client that loses its connection in the commit.
#[test]
fn a_statement_whose_commit_is_lost_is_settled() {
    let (shop, proxy) = (shop(), Proxy::start());
    for (cut, made) in [(CutAt::Answer, true), (CutAt::BeforeCommit, false)] {
        for (what, next) in nexts() {
            let key = format!("{what}-{made}");
            let mut claim = shop.begin(&key);
            let mut stage = claim.stage_sql(next()).unwrap();
            let mut user = client(&proxy.url());
            user.batch_execute(&format!("BEGIN; {}; {stage}", shop.insert(&key))).unwrap();
            proxy.cut_at(cut);
            user.batch_execute("COMMIT").unwrap_err();
            assert_eq!(stage.settle(&mut claim, TransactionEnd::Unknown).unwrap(), made, "{key}");
            assert_eq!(shop.effects(&key), if made { "1" } else { "0" }, "{key}");
        }
    }
}

/// In each round one answer to the engine is lost with its session: in the first round the first answer, and so on.
#[test]
fn a_lost_answer_of_the_engine_changes_nothing() {
    let (proxy, of_user, schema) = (Proxy::start(), Proxy::start(), new_schema());
    let engine = options(&schema).connect(&proxy.url()).unwrap();
    let shop = Shop::of(schema, engine);
    for cut in [None, Some(CutAt::Answer)] {
        let cycle = |key: &str| {
            let mut claim = shop.begin(key);
            if let Some(cut) = cut {
                of_user.cut_at(cut);
            }
            let (done, runs) =
                stage(&shop.insert(key), &mut claim, &mut client(&of_user.url()), || Next::advance("on"));
            assert_eq!((kind(&done), runs, shop.effects(key).as_str()), (None, 1, "1"), "{key}");
            claim.succeed(&key.to_owned()).unwrap();
        };
        cycle(&format!("all statements are prepared {cut:?}"));
        let (mut answers, before) = (0, proxy.lost());
        while proxy.lost() - before == answers {
            answers += 1;
            assert!(answers < 100, "a cycle ends");
            proxy.lose(i64::try_from(answers).unwrap());
            cycle(&format!("{cut:?}-{answers}"));
        }
        assert!(answers > 3, "{answers} answers were lost, one after the other");
        proxy.lose(0);
    }
}
