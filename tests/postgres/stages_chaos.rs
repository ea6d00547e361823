//! Stages run in the user's own transactions, with the same kinds of harm as in `chaos`. All the time, connections are
//! cut at commits. Each effect in the user's table happens once, and no answer is lost or changed.
//!
//! `ONCEKEY_CHAOS` is the number of seconds.

use std::time::Duration;

use oncekey::sql::TransactionEnd;
use oncekey::sql::postgres::{Client, NoTls};
use oncekey::{Begin, Claim, Engine, Error, stage::Next};

use crate::chaos::{Said, URL, Work, break_sessions, check_answers, manager, say_error, while_workers_run, work};
use crate::proxy::{CutAt, Proxy};
use crate::server::Server;
use crate::stages_in::Boxed;

/// The session of a worker, which is replaced when it is lost.
struct Session {
    url: String,
    client: Option<Client>,
}

impl Session {
    fn client(&mut self) -> Result<&mut Client, Boxed> {
        if self.client.as_ref().is_none_or(Client::is_closed) {
            self.client = Some(Client::connect(&self.url, NoTls)?);
        }
        self.client.as_mut().ok_or_else(|| "there is no client".into())
    }
}

/// Adds the effect of a key by a statement of the stage. If the connection is lost at the commit, returns whether the
/// commit was made.
fn stage_by_statement(
    claim: &mut Claim<String, String>,
    session: &mut Session,
    key: &str,
) -> Result<Option<bool>, Boxed> {
    let client = session.client()?;
    let mut tx = client.transaction()?;
    tx.execute("INSERT INTO effects VALUES ($1)", &[&key])?;
    let mut stage = claim.stage_sql(Next::advance("done"))?;
    let values: Vec<_> = stage.values().iter().map(oncekey::sql::SqlValue::as_sql).collect();
    tx.execute(stage.text(), &values)?;
    drop(values);
    let is_lost = tx.commit().is_err();
    let end = if is_lost { TransactionEnd::Unknown } else { TransactionEnd::Committed };
    let mut tries = 0;
    let made = loop {
        match stage.settle(claim, end) {
            Err(error) if error.kind() == oncekey::ErrorKind::Unsettled && tries < 10 => tries += 1,
            settled => break settled?,
        }
    };
    if made {
        Ok(is_lost.then_some(made))
    } else if is_lost {
        Ok(Some(false))
    } else {
        Err("it was not committed".into())
    }
}

/// Runs one key to its end, or leaves it to another worker. Returns its answer if there is one.
fn run(
    engine: &Engine,
    session: &mut Session,
    key: &str,
    me: &str,
    lost: &mut dyn FnMut(bool),
) -> Result<Option<String>, Boxed> {
    let mut claim = match manager(engine).begin(key)? {
        Begin::Claimed(claim) => claim,
        Begin::Replay(record) => return Ok(record.into_outcome().ok()),
        _ => return Ok(None),
    };
    while claim.recovery_point() == oncekey::stage::STARTED {
        if key.ends_with(['0', '2', '4', '6', '8']) {
            claim.work_stage_in(session.client()?, |tx| {
                tx.execute("INSERT INTO effects VALUES ($1)", &[&key])?;
                Ok::<_, Boxed>(Next::advance("done"))
            })?;
        } else if let Some(made) = stage_by_statement(&mut claim, session, key)? {
            lost(made);
        }
    }
    // Release a tenth of the keys once, after the effect.
    if claim.attempt() == 1 && key.ends_with('3') {
        claim.release()?;
        return Ok(None);
    }
    let answer = format!("{me} {key}");
    claim.succeed(&answer)?;
    Ok(Some(answer))
}

/// Not a test: a worker that the test kills.
#[test]
#[ignore = "a process of another test"]
fn worker() {
    let Ok(url) = std::env::var(URL) else { return };
    let mut session = Session { url, client: None };
    work(|engine, key, me| {
        let mut lost = |made: bool| say_error(key, &format!("lost commit, made: {made}")).unwrap();
        run(engine, &mut session, key, me, &mut lost).map_err(|error| match error.downcast_ref::<Error>() {
            Some(error) => format!("{:?}", error.kind()),
            None => "of the client".to_owned(),
        })
    });
}

/// Ends the unfinished keys, and compares every key with the output of the workers. Returns the number of keys.
fn check(server: &Server, said: &Said) -> usize {
    let engine = Engine::connect(&server.url()).unwrap();
    let mut session = Session { url: server.url(), client: None };
    let end = |key: &str| run(&engine, &mut session, key, "last", &mut |_| ()).unwrap().is_some();
    let (keys, _) = check_answers(&engine, said, end);
    let wrong = server.sql("SELECT key, count(*) FROM effects GROUP BY key HAVING count(*) <> 1");
    assert_eq!(wrong, "", "keys whose effect happened more than once");
    assert_eq!(server.sql("SELECT count(*) FROM effects"), keys.len().to_string(), "each key has its effect");
    keys.len()
}

/// Cuts connections at commits until the work is done: before the server gets the commit, at once after, and before its
/// answer arrives.
fn cut_commits(proxy: &Proxy, work: &Work) {
    for place in [CutAt::BeforeCommit, CutAt::Commit, CutAt::Answer].into_iter().cycle() {
        if work.is_at(100) {
            return;
        }
        proxy.cut_at(place);
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn every_effect_in_the_user_s_table_happens_once() {
    let seconds = std::env::var("ONCEKEY_CHAOS").map_or(8, |seconds| seconds.parse().unwrap());
    let server = Server::start("");
    server.sql("CREATE TABLE effects (key text NOT NULL)");
    drop(Engine::connect(&server.url()).unwrap());
    let (mut terminated, mut crashes) = (0, 0);
    let work = Work::new(Duration::from_secs(seconds), 51).by("stages_chaos::worker").in_turns();
    let proxy = Proxy::before(&server.dir);
    let (said, kills) = while_workers_run(&proxy.url(), 600, work, |work| {
        std::thread::scope(|scope| {
            scope.spawn(|| cut_commits(&proxy, work));
            (terminated, crashes) = break_sessions(&server, work);
        });
    });
    let (keys, unknown) = (check(&server, &said), proxy.cuts());
    println!(
        "{keys} keys, {} answers, {kills} kills, {terminated} sessions ended, {crashes} crashes, {unknown} unknown commits, {:?}",
        said.answers.len(),
        said.errors
    );
    assert!(keys > 50 && crashes > 0, "{keys} keys, {crashes} crashes");
    assert!(unknown > if seconds < 60 { 0 } else { 100 }, "{unknown} unknown commits");
}
