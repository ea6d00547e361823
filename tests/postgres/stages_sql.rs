//! Stages as statements for any client, and stages of requests without an owner.

use oncekey::http::{NewRequest, Requests, Response};
use oncekey::sql::postgres::Client;
use oncekey::sql::postgres::error::SqlState;
use oncekey::sql::{SqlValue, TransactionEnd};
use oncekey::stage::{Next, STARTED};
use oncekey::{Begin, ErrorKind, ManagerOptions, OnInterrupted, Status};

use crate::stages_in::{Boxed, Shop, is_kind};
use crate::{client, open, shared, until};

#[test]
fn a_stage_as_a_statement_is_committed_by_any_client() {
    let mut shop = Shop::new();
    let mut claim = shop.begin("it's");
    let insert = shop.insert("k");
    // As text.
    let mut stage = claim.stage_sql(Next::advance_with("reserved", "it's")).unwrap();
    shared().sql(&format!("BEGIN; {insert}; {stage}; COMMIT"));
    assert!(stage.settle(&mut claim, TransactionEnd::Committed).unwrap());
    assert!(stage.settle(&mut claim, TransactionEnd::Committed).unwrap(), "again");
    assert_eq!((claim.recovery_point(), claim.checkpoint()), ("reserved", Some(&b"it's"[..])));
    // With parameters, in a transaction that is rolled back first.
    let mut stage = claim.stage_sql(Next::Succeed("done".to_owned())).unwrap();
    let values: Vec<_> = stage.values().iter().map(SqlValue::as_sql).collect();
    let mut tx = shop.client.transaction().unwrap();
    tx.execute(&insert, &[]).unwrap();
    assert_eq!(tx.execute(stage.text(), &values).unwrap(), 1);
    tx.rollback().unwrap();
    drop(values);
    assert!(!stage.settle(&mut claim, TransactionEnd::RolledBack).unwrap());
    let values: Vec<_> = stage.values().iter().map(SqlValue::as_sql).collect();
    let mut tx = shop.client.transaction().unwrap();
    tx.execute(&insert, &[]).unwrap();
    tx.execute(stage.text(), &values).unwrap();
    tx.commit().unwrap();
    drop(values);
    assert!(stage.settle(&mut claim, TransactionEnd::Committed).unwrap());
    assert_eq!(shop.effects("k"), "2");
    assert_eq!(claim.into_finished().unwrap().into_outcome(), Ok("done".to_owned()));
}

/// Checks that the SQL fails with this SQLSTATE.
fn fails(client: &mut Client, text: &str, state: &str) {
    let error = client.batch_execute(text).unwrap_err();
    assert_eq!(error.code().map(SqlState::code), Some(state), "{error}");
    client.batch_execute("ROLLBACK").unwrap();
}

#[test]
fn a_statement_of_a_claim_that_is_lost_cannot_be_committed() {
    let mut shop = Shop::new();
    let insert = shop.insert("k");
    let mut claim = shop.begin("k");
    let first = claim.stage_sql(Next::advance("one")).unwrap();
    let mut second = claim.stage_sql(Next::advance("two")).unwrap();
    shop.client.batch_execute(&format!("BEGIN; {second}; COMMIT")).unwrap();
    // Another stage was committed since.
    fails(&mut shop.client, &format!("BEGIN; {insert}; {first}; COMMIT"), "OK001");
    assert!(second.settle(&mut claim, TransactionEnd::Unknown).unwrap());
    // A stage that is settled before its statement runs cannot be committed any more.
    let mut third = claim.stage_sql(Next::advance("three")).unwrap();
    assert!(!third.settle(&mut claim, TransactionEnd::Unknown).unwrap());
    fails(&mut shop.client, &format!("BEGIN; {insert}; {third}; COMMIT"), "OK001");
    assert_eq!((claim.recovery_point(), shop.point("k").as_str()), ("two", "two"));
    // A transaction that was committed without the statement.
    let mut fourth = claim.stage_sql(Next::advance("four")).unwrap();
    is_kind(
        fourth.settle(&mut claim, TransactionEnd::Committed).map_err(Boxed::from),
        ErrorKind::InvalidOptions,
        "without",
    );
    // Revoked.
    let mut fifth = claim.stage_sql(Next::advance("five")).unwrap();
    shop.texts().revoke("k").unwrap();
    fails(&mut shop.client, &format!("BEGIN; {insert}; {fifth}; COMMIT"), "OK001");
    assert!(!fifth.settle(&mut claim, TransactionEnd::Unknown).unwrap());
    is_kind(claim.stage_sql(Next::Stay).map_err(Boxed::from), ErrorKind::ClaimLost, "k");
    // It belongs to one claim.
    let (one, mut two) = (shop.begin("one"), shop.begin("two"));
    let mut of_one = one.stage_sql(Next::advance("on")).unwrap();
    is_kind(
        of_one.settle(&mut two, TransactionEnd::Unknown).map_err(Boxed::from),
        ErrorKind::InvalidOptions,
        "another claim",
    );
    assert_eq!(shop.effects("k"), "0");
}

/// `settle` returns the right answer also if the record has changed since.
#[test]
fn a_statement_is_settled_after_later_changes_of_the_record() {
    let mut shop = Shop::new();
    let mut claim = shop.begin("k");
    let mut stage = claim.stage_sql(Next::advance("on")).unwrap();
    shop.client.batch_execute(&format!("BEGIN; {stage}; COMMIT")).unwrap();
    shop.texts().revoke("k").unwrap();
    assert!(stage.settle(&mut claim, TransactionEnd::Unknown).unwrap(), "it was committed");
    assert_eq!(claim.recovery_point(), "on");
    assert_eq!(claim.succeed(&String::new()).unwrap_err().kind(), ErrorKind::ClaimLost);
    let mut claim = shop.begin("ended");
    let mut stage = claim.stage_sql(Next::Succeed("done".to_owned())).unwrap();
    shop.client.batch_execute(&format!("BEGIN; {stage}; COMMIT")).unwrap();
    assert!(shop.texts().forget("ended").unwrap());
    assert!(stage.settle(&mut claim, TransactionEnd::Unknown).unwrap(), "it was committed");
    assert_eq!(claim.into_finished().unwrap().into_outcome(), Ok("done".to_owned()));
    // Another claim has run the same stage since.
    let mut claim = shop.begin("overtaken");
    let mut stage = claim.stage_sql(Next::advance("on")).unwrap();
    shop.texts().revoke("overtaken").unwrap();
    let mut next = shop.begin("overtaken");
    next.work_stage_in(&mut shop.client, |_| Ok::<_, Boxed>(Next::advance("on"))).unwrap();
    let settled = stage.settle(&mut claim, TransactionEnd::Unknown).map_err(Boxed::from);
    is_kind(settled, ErrorKind::ClaimLost, "overtaken");
}

fn created(shop: &Shop, key: &str) -> Requests {
    let options = ManagerOptions::new().on_interrupted(OnInterrupted::Resume);
    let requests = shop.engine.requests_with("r", options).unwrap();
    requests.create(NewRequest::new("POST", "/orders").key(key.parse().unwrap())).unwrap();
    requests
}

#[test]
fn a_request_without_an_owner_is_worked_in_stages() {
    let mut shop = Shop::new();
    let requests = created(&shop, "k");
    let insert = shop.insert("k");
    let phase = |client: &mut Client| {
        requests.atomic_phase_in(client, "k", |tx, info| {
            if info.recovery_point() == STARTED {
                tx.execute(&insert, &[])?;
                return Ok::<_, Boxed>(Next::advance("ordered"));
            }
            Ok(Next::Succeed(Response::new(http::StatusCode::CREATED)))
        })
    };
    let failed = requests.atomic_phase_in(&mut shop.client, "k", |tx, _| {
        tx.execute(&insert, &[])?;
        Err::<Next<Response, Response>, Boxed>("no".into())
    });
    assert_eq!(failed.unwrap_err().to_string(), "no");
    let info = phase(&mut shop.client).unwrap();
    assert_eq!((info.status(), info.recovery_point()), (Status::Released, "ordered"));
    let info = phase(&mut shop.client).unwrap();
    assert_eq!((info.status(), shop.effects("k").as_str()), (Status::Succeeded, "1"));
    assert!(requests.retrieve("k").unwrap().unwrap().outcome().is_some());
    is_kind(phase(&mut shop.client), ErrorKind::NotInProgress, "k");
    let absent = requests.atomic_phase_in(&mut shop.client, "no", |_, _| Ok::<_, Boxed>(Next::Stay));
    is_kind(absent, ErrorKind::NotFound, "no");
    // While a claim owns it.
    created(&shop, "owned");
    let Begin::Claimed(claim) = requests.lock("owned").unwrap() else { panic!("it is new") };
    let owned = requests.atomic_phase_in(&mut shop.client, "owned", |_, _| Ok::<_, Boxed>(Next::Stay));
    is_kind(owned, ErrorKind::OwnedByClaim, "owned");
    drop(claim);
    // Nothing but the user's rows changes.
    let insert = shop.insert("owned");
    let stays = requests.atomic_phase_in(&mut shop.client, "owned", |tx, _| {
        tx.execute(&insert, &[])?;
        Ok::<_, Boxed>(Next::Stay)
    });
    assert_eq!((stays.unwrap().status(), shop.effects("owned").as_str()), (Status::Interrupted, "1"));
}

/// One of the callers commits, and the others see its recovery point.
#[test]
fn one_of_several_callers_runs_a_stage_of_a_request() {
    let shop = Shop::new();
    let requests = created(&shop, "k");
    let other = open(&shop.schema).requests("r").unwrap();
    let insert = shop.insert("k");
    std::thread::scope(|scope| {
        for nth in 0..8 {
            let (requests, insert) = (if nth % 2 == 0 { &requests } else { &other }, &insert);
            scope.spawn(move || {
                let ended = requests.atomic_phase_in(&mut client(&shared().url()), "k", |tx, info| {
                    if info.recovery_point() != STARTED {
                        return Ok::<_, Boxed>(Next::Stay);
                    }
                    tx.execute(insert, &[])?;
                    Ok(Next::advance("ordered"))
                });
                assert_eq!(ended.unwrap().recovery_point(), "ordered");
            });
        }
    });
    assert_eq!(shop.effects("k"), "1");
}

/// A statement of an earlier incarnation does not give the record back to that incarnation.
#[test]
fn an_old_statement_leaves_the_record_to_the_present_incarnation() {
    let mut shop = Shop::new();
    let mut claim = shop.begin("k");
    let owner = || shared().sql(&format!("SELECT owner FROM \"{}\".records", shop.schema));
    let mut stage = claim.stage_sql(Next::advance("on")).unwrap();
    crate::faults::end_keeper(&shop.schema, 1);
    until(|| owner() == "2");
    shop.client.batch_execute(&format!("BEGIN; {stage}; COMMIT")).unwrap();
    assert_eq!(owner(), "2");
    assert!(stage.settle(&mut claim, TransactionEnd::Committed).unwrap());
}
