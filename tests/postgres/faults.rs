//! Lost sessions, lost answers, and a server that does not answer.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use oncekey::http::{NewRequest, Response};
use oncekey::{Begin, Claim, Engine, Error, ErrorKind, ManagerOptions, OnInterrupted, Status, stage::Next};

use tokio_postgres::tls::{MakeTlsConnect, NoTlsError, NoTlsStream};
use tokio_postgres::{NoTls, Socket};

use crate::engines::{Texts, claimed, texts};
use crate::proxy::Proxy;
use crate::server::Server;
use crate::{client, new_schema, open, options, shared, until};

fn number(engine: &Engine, key: &str) -> u64 {
    let value = engine.table("effects").unwrap().get(key).unwrap();
    value.map_or(0, |value| u64::from_be_bytes(value.as_ref().try_into().unwrap()))
}

/// Runs a stage that counts in a row of its own key.
fn stage(claim: &mut Claim<String, String>, key: &str) -> Result<(), Error> {
    claim.work_stage(|tx| {
        let effects = tx.table("effects")?;
        let seen = effects.get(key)?.map_or(0, |value| u64::from_be_bytes(value.as_ref().try_into().unwrap()));
        effects.insert(key, (seen + 1).to_be_bytes())?;
        Ok::<_, Error>(Next::advance("counted"))
    })?;
    Ok(())
}

/// In each round one answer of the server is lost with its session: in the first round the first answer of a cycle, and
/// so on. Every call still returns its right answer, and the effect of the stage happens once.
#[test]
fn a_lost_answer_changes_no_answer_and_no_effect() {
    let (proxy, schema) = (Proxy::start(), new_schema());
    let engine = options(&schema).connect(&proxy.url()).unwrap();
    let texts: Texts = engine.manager_with("m", ManagerOptions::new().on_interrupted(OnInterrupted::Resume)).unwrap();
    let cycle = |key: &str| {
        let mut claim = claimed(texts.begin(key).unwrap());
        assert_eq!(claim.attempt(), 1, "{key}");
        stage(&mut claim, key).unwrap();
        claim.succeed(&key.to_owned()).unwrap();
        let Begin::Replay(record) = texts.begin(key).unwrap() else { panic!("{key} has its answer") };
        assert_eq!(record.into_outcome(), Ok(key.to_owned()));
        assert_eq!(number(&engine, key), 1, "{key}");
    };
    cycle("all statements are prepared");
    let mut answers = 0;
    // Until no answer is lost, because a cycle has fewer answers than that.
    while proxy.lost() == answers {
        answers += 1;
        assert!(answers < 200, "a cycle ends");
        proxy.lose(i64::try_from(answers).unwrap());
        cycle(&format!("lost-{answers}"));
    }
    assert!(answers > 15, "{answers} answers were lost, one after the other");
}

/// The answer of a begin is lost, and the server does not tell by the deadline whether the begin was made. If it was
/// made, the key is released afterwards.
#[test]
fn a_begin_without_an_answer_is_given_back() {
    let (proxy, schema) = (Proxy::start(), new_schema());
    let engine = options(&schema).sync_timeout(Duration::from_millis(1_500)).connect(&proxy.url()).unwrap();
    let texts = texts(&engine);
    // The connected session continues to work. Those for groups cannot connect, so the first answer is that of the
    // begin.
    proxy.refuse(true);
    texts.execute("all statements are prepared", |_| Ok(String::new())).unwrap();
    let mut unsettled = 0;
    for answer in 1..5 {
        let key = format!("{answer}");
        proxy.refuse(true);
        proxy.lose(answer);
        let begun = texts.begin(key.as_str());
        proxy.lose(0);
        proxy.refuse(false);
        match begun {
            Ok(begun) => drop(claimed(begun).release().unwrap()),
            Err(error) => {
                let kind = error.kind();
                assert!(matches!(kind, ErrorKind::Unavailable | ErrorKind::Unsettled), "{error}");
                unsettled += u32::from(kind == ErrorKind::Unsettled);
            }
        }
        until(|| texts.begin(key.as_str()).unwrap().into_claim().is_ok_and(|claim| claim.release().is_ok()));
    }
    assert!(unsettled > 0, "the answer of a commit was lost");
}

/// Stops the threads of an engine that connect, while it is shut.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<bool>, Condvar)>, Arc<AtomicU32>);

impl Gate {
    fn shut(&self, is_shut: bool) {
        *self.0.0.lock().unwrap() = is_shut;
        self.0.1.notify_all();
    }

    /// Returns the number of threads that it has stopped.
    fn stops(&self) -> u32 {
        self.1.load(Ordering::SeqCst)
    }
}

impl MakeTlsConnect<Socket> for Gate {
    type Stream = NoTlsStream;
    type TlsConnect = NoTls;
    type Error = NoTlsError;

    fn make_tls_connect(&mut self, _: &str) -> Result<NoTls, NoTlsError> {
        let shut = self.0.0.lock().unwrap();
        self.1.fetch_add(u32::from(*shut), Ordering::SeqCst);
        drop(self.0.1.wait_while(shut, |shut| *shut).unwrap());
        Ok(NoTls)
    }
}

/// The deadline of the begin comes after its session has connected, and before the thread of the engine can use it.
#[test]
fn a_begin_that_was_unavailable_is_never_made() {
    let (gate, schema) = (Gate::default(), new_schema());
    let config = shared().url().parse().unwrap();
    let engine = options(&schema).sync_timeout(Duration::from_secs(5)).connect_with(config, gate.clone()).unwrap();
    let texts = texts(&engine);
    gate.shut(true);
    // This begin uses a connected session. The two sessions for groups connect on demand.
    drop(claimed(texts.begin("the statement is prepared").unwrap()).release().unwrap());
    std::thread::scope(|scope| {
        // The first transaction connects too, on the thread that makes all other calls.
        let transaction = scope.spawn(|| engine.atomic_phase(|tx| tx.table("t")?.get("row").map(drop)));
        until(|| gate.stops() == 3);
        let begun = texts.begin("k");
        // Open the gate before the check, because a failed test waits for the other thread too.
        gate.shut(false);
        let error = begun.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        let _ = transaction.join().unwrap();
    });
    // The thread of the engine runs this call after that begin.
    drop(claimed(texts.begin("another").unwrap()).release().unwrap());
    assert!(texts.get("k").unwrap().is_none(), "nothing has changed");
}

/// The locks of a store: the first bytes of its id.
const CLASS: &str = "l.classid::bigint = ('x' || encode(substring(uuid_send(s.id) FROM 4 FOR 1)
    || substring(uuid_send(s.id) FROM 3 FOR 1) || substring(uuid_send(s.id) FROM 2 FOR 1)
    || substring(uuid_send(s.id) FROM 1 FOR 1), 'hex'))::bit(32)::bigint";

/// Ends the session that holds the lock of this incarnation.
pub(crate) fn end_keeper(schema: &str, incarnation: u32) {
    let end = format!(
        "SELECT pg_terminate_backend(l.pid) FROM pg_locks l, \"{schema}\".store s
         WHERE l.locktype = 'advisory' AND l.objid = {incarnation} AND l.granted AND l.mode = 'ExclusiveLock' AND {CLASS}"
    );
    assert_eq!(shared().sql(&end), "t");
}

/// Returns SQL that is true if no session has the lock of this incarnation.
pub(crate) fn lock_is_free(schema: &str, incarnation: u32) -> String {
    format!(
        "SELECT NOT EXISTS (SELECT FROM pg_locks l, \"{schema}\".store s
         WHERE l.locktype = 'advisory' AND l.objid = {incarnation} AND l.granted AND {CLASS})"
    )
}

#[test]
fn a_live_claim_survives_the_loss_of_the_lock_of_its_owner() {
    let schema = new_schema();
    let (one, two) = (open(&schema), open(&schema));
    let claim = claimed(texts(&one).begin("k").unwrap());
    let _of_two = claimed(texts(&two).begin("of two").unwrap());
    end_keeper(&schema, 1);
    let owner = |key: &str| {
        let has = format!("position('{key}'::bytea in key) > 0");
        shared().sql(&format!("SELECT owner FROM \"{schema}\".records WHERE {has}"))
    };
    until(|| owner("k") == "3");
    assert_eq!(owner("of two"), "2", "it is the claim of another engine");
    assert!(matches!(texts(&two).begin("k").unwrap(), Begin::InProgress(_)), "the claim was adopted");
    claim.succeed(&"done".to_owned()).unwrap();
    assert_eq!(texts(&two).get("k").unwrap().unwrap().status(), Status::Succeeded);
}

/// The session of the owner is lost after its begin has seen the lock, and the adoption comes before its commit.
#[test]
fn a_claim_that_comes_after_the_adoption_is_adopted_too() {
    let schema = new_schema();
    let (one, two) = (open(&schema), open(&schema));
    shared().sql(&format!(
        "CREATE FUNCTION \"{schema}\".slow() RETURNS trigger LANGUAGE plpgsql
         AS 'BEGIN PERFORM pg_sleep(2); RETURN NEW; END';
         CREATE TRIGGER slow BEFORE INSERT ON \"{schema}\".records FOR EACH ROW EXECUTE FUNCTION \"{schema}\".slow()"
    ));
    let claim = std::thread::scope(|scope| {
        let begin = scope.spawn(|| claimed(texts(&one).begin("k").unwrap()));
        let sleeps = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        until(|| shared().sql(sleeps) != "0");
        end_keeper(&schema, 1);
        let incarnations = format!("SELECT last_value FROM \"{schema}\".incarnation");
        until(|| shared().sql(&incarnations) == "3");
        begin.join().unwrap()
    });
    assert_eq!(shared().sql(&format!("SELECT owner FROM \"{schema}\".records")), "3");
    assert!(matches!(texts(&two).begin("k").unwrap(), Begin::InProgress(_)), "the claim was adopted");
    claim.succeed(&"done".to_owned()).unwrap();
}

/// The lock of an incarnation is free, and its engine does not know that. A claim in its name could be interrupted at
/// once.
#[test]
fn no_claim_is_made_in_the_name_of_a_dead_incarnation() {
    // Claim by an insert, and by a change of an existing row. Each needs an engine of its own, because afterwards the
    // engine has another incarnation. A `begin` always tries an insert first, and a `lock` never does.
    for inserts in [true, false] {
        let (proxy, schema) = (Proxy::start(), new_schema());
        let (cut_off, other) = (options(&schema).connect(&proxy.url()).unwrap(), open(&schema));
        let (its, others) = (cut_off.requests("r").unwrap(), other.requests("r").unwrap());
        let request = || NewRequest::new("POST", "/orders").key("k".parse().unwrap());
        if !inserts {
            others.create(request()).unwrap();
        }
        proxy.end_keepers_silently();
        until(|| shared().sql(&lock_is_free(&schema, 1)) == "t");
        let begun = if inserts { its.begin(request()) } else { its.lock("k") };
        let Begin::Claimed(claim) = begun.unwrap() else { panic!("the key can be claimed") };
        assert!(matches!(others.lock("k").unwrap(), Begin::InProgress(_)), "inserts: {inserts}: its owner is alive");
        assert_eq!(shared().sql(&format!("SELECT owner FROM \"{schema}\".records")), "3", "inserts: {inserts}");
        claim.succeed(&Response::new(http::StatusCode::CREATED)).unwrap();
    }
}

/// The owner of a key is dead. An engine without a session of its own cannot tell, and does not answer that the key is
/// in progress.
#[test]
fn a_look_at_a_dead_owner_waits_for_the_own_session() {
    let (proxy, of_owner, schema) = (Proxy::start(), Proxy::start(), new_schema());
    let engine = options(&schema).sync_timeout(Duration::from_millis(1_500)).connect(&proxy.url()).unwrap();
    let owner = options(&schema).connect(&of_owner.url()).unwrap();
    let _claim = claimed(texts(&owner).begin("k").unwrap());
    for (proxy, incarnation) in [(&of_owner, 2), (&proxy, 1)] {
        proxy.refuse(true);
        proxy.end_keepers_silently();
        until(|| shared().sql(&lock_is_free(&schema, incarnation)) == "t");
    }
    let texts = texts(&engine);
    assert_eq!(texts.get("k").unwrap_err().kind(), ErrorKind::Unavailable);
    proxy.refuse(false);
    assert_eq!(texts.get("k").unwrap().unwrap().status(), Status::Interrupted);
}

/// The ending has locked the row when another engine finds the lock of its owner free. That engine leaves the row
/// alone.
#[test]
fn an_ending_and_a_declaration_of_death_meet_at_the_row() {
    let schema = new_schema();
    let (one, two) = (open(&schema), open(&schema));
    let claim = claimed(texts(&one).begin("k").unwrap());
    // The ending stops between the lock of the row and its commit.
    let mut gate = client(&shared().url());
    gate.batch_execute(&format!(
        "CREATE FUNCTION \"{schema}\".slow() RETURNS trigger LANGUAGE plpgsql
         AS 'BEGIN PERFORM pg_advisory_xact_lock(hashtext(''{schema}'')); RETURN NEW; END';
         CREATE TRIGGER slow BEFORE UPDATE ON \"{schema}\".records FOR EACH ROW WHEN (NEW.state = 2)
         EXECUTE FUNCTION \"{schema}\".slow();
         SELECT pg_advisory_lock(hashtext('{schema}'))"
    ))
    .unwrap();
    std::thread::scope(|scope| {
        let ends = scope.spawn(|| claim.succeed(&"done".to_owned()).map(drop));
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory' AND query LIKE";
        let waits = format!("{waits} '%UPDATE%{schema}%'");
        until(|| shared().sql(&waits) != "0");
        end_keeper(&schema, 1);
        until(|| shared().sql(&lock_is_free(&schema, 1)) == "t");
        // The look does not wait.
        let status = texts(&two).get("k").unwrap().unwrap().status();
        drop(gate);
        ends.join().unwrap().unwrap();
        assert_eq!(status, Status::InProgress, "its owner may be alive");
    });
    assert_eq!(texts(&two).get("k").unwrap().unwrap().into_outcome(), Some(Ok("done".to_owned())));
}

#[test]
fn a_claim_is_lost_if_its_owner_was_declared_dead() {
    let (proxy, schema) = (Proxy::start(), new_schema());
    let (cut_off, other) = (options(&schema).connect(&proxy.url()).unwrap(), open(&schema));
    let claim = claimed(texts(&cut_off).begin("k").unwrap());
    proxy.refuse(true);
    proxy.cut();
    until(|| texts(&other).get("k").unwrap().unwrap().status() == Status::Interrupted);
    proxy.refuse(false);
    let error = claim.succeed(&"late".to_owned()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ClaimLost);
    assert_eq!(texts(&other).get("k").unwrap().unwrap().status(), Status::Interrupted, "nothing of it has arrived");
    // The engine has another incarnation, in which it claims.
    claimed(texts(&cut_off).begin("another").unwrap()).release().unwrap();
}

/// A server that hangs makes no call, no drop and no close hang.
#[test]
fn every_call_to_a_server_that_hangs_ends_by_its_deadline() {
    let (proxy, schema) = (Proxy::start(), new_schema());
    let timeout = Duration::from_millis(700);
    let engine = options(&schema).sync_timeout(timeout).connect(&proxy.url()).unwrap();
    let texts = texts(&engine);
    let (ends, drops) = (claimed(texts.begin("ends").unwrap()), claimed(texts.begin("drops").unwrap()));
    let in_time = |began: Instant| assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    proxy.hang(true);
    let began = Instant::now();
    assert_eq!(texts.get("ends").unwrap_err().kind(), ErrorKind::Unavailable);
    let kind = texts.begin("new").unwrap_err().kind();
    assert!(matches!(kind, ErrorKind::Unavailable | ErrorKind::Unsettled), "{kind:?}");
    let error = ends.succeed(&"done".to_owned()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Unsettled), "{error}");
    drop(drops);
    in_time(began);
    proxy.hang(false);
    // The claim is alive, and the same call ends it.
    error.claim.succeed(&"done".to_owned()).unwrap();
    // The drop is recorded later.
    until(|| texts.get("drops").unwrap().unwrap().status() == Status::Interrupted);
    proxy.hang(true);
    let began = Instant::now();
    let _ = engine.close();
    in_time(began);
}

/// All sessions and locks are lost at once, on both sides.
#[test]
fn live_claims_survive_a_crash_of_the_server() {
    let server = Server::start("");
    let engines: Vec<Engine> = (0..2).map(|_| Engine::connect(&server.url()).unwrap()).collect();
    let managers: Vec<Texts> = engines.iter().map(texts).collect();
    let claims: Vec<_> =
        managers.iter().zip(["a", "b"]).map(|(texts, key)| claimed(texts.begin(key).unwrap())).collect();
    texts(&engines[0]).execute("answered", |_| Ok("done".to_owned())).unwrap();
    server.restart("immediate", "");
    // Each engine asks for the key of the other at once. The grace period lets the other come back first.
    assert!(matches!(managers[0].begin("b").unwrap(), Begin::InProgress(_)));
    assert!(matches!(managers[1].begin("a").unwrap(), Begin::InProgress(_)));
    assert!(matches!(managers[1].begin("answered").unwrap(), Begin::Replay(_)));
    for claim in claims {
        claim.succeed(&"done".to_owned()).unwrap();
    }
}

/// The rules of the server admit nobody for a while. The engine goes on when they admit it again.
#[test]
fn an_open_store_outlives_a_server_that_refuses_it() {
    let server = Server::start("");
    let (patience, interval) = (Duration::from_secs(3), Duration::from_millis(200));
    let configured = || options("refused").sync_timeout(patience).compaction_interval(interval);
    let engine = configured().connect(&server.url()).unwrap();
    let [dropped, ended] = ["dropped", "ended"].map(|key| claimed(texts(&engine).begin(key).unwrap()));
    let rules = server.dir.join("data/pg_hba.conf");
    let before = std::fs::read_to_string(&rules).unwrap();
    std::fs::write(&rules, "local all all reject\n").unwrap();
    server.restart("fast", "");
    drop(dropped);
    let error = ended.succeed(&"done".to_owned()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Unsettled), "{:?}: {error}", error.kind());
    assert!(error.to_string().contains("pg_hba.conf rejects"), "{error}");
    std::fs::write(&rules, before).unwrap();
    server.restart("fast", "");
    let others = texts(&configured().connect(&server.url()).unwrap());
    // The compaction in the background records the drop.
    until(|| others.get("dropped").unwrap().unwrap().status() == Status::Interrupted);
    error.claim.succeed(&"done".to_owned()).unwrap();
    assert_eq!(others.get("ended").unwrap().unwrap().into_outcome(), Some(Ok("done".to_owned())));
}

#[test]
fn the_compaction_records_a_drop_after_a_pass_that_has_failed() {
    let schema = new_schema();
    let options = options(&schema).compaction_interval(Duration::from_millis(200));
    let engine = options.connect(&shared().url()).unwrap();
    let claim = claimed(texts(&engine).begin("k").unwrap());
    let rename = |from: &str, to: &str| shared().sql(&format!("ALTER TABLE \"{schema}\".{from} RENAME TO {to}"));
    rename("records", "hidden");
    drop(claim);
    until(|| engine.stats().compaction_failures > 0);
    rename("hidden", "records");
    let others = texts(&open(&schema));
    until(|| others.get("k").unwrap().unwrap().status() == Status::Interrupted);
}
