use oncekey::*;
use serde::{Deserialize, Serialize};
use std::{thread, time::Duration};
#[derive(Debug, Clone, Serialize, Deserialize)] struct Receipt { n: u64 }
#[derive(Debug, Clone, Serialize, Deserialize)] enum Declined { NoFunds }

/// A worker that gets its claim through a channel.
fn worker(payments: &Manager<Receipt, Declined>) -> Result<()> {
    let (send, receive) = crossbeam_channel::bounded::<Claim<Receipt, Declined>>(16);
    let worker = thread::spawn(move || -> Result<()> {
        for mut claim in receive {
            claim.release_on_drop(true);                    // nothing has happened yet
            if claim.attempt() > 3 { claim.fail(&Declined::NoFunds)?; continue }
            claim.release_on_drop(false);                   // from here on a drop means "unknown"
            if let Err(EndError { error, claim, .. }) = claim.succeed(&Receipt { n: 1 }) { eprintln!("{error}"); claim.succeed(&Receipt { n: 1 })?; }
        }
        Ok(())
    });
    if let Begin::Claimed(claim) = payments.begin("order-1")? { send.send(claim).expect("worker is alive") }
    drop(send); worker.join().expect("no panic")
}
/// Matches every answer without `_`, so a new answer would be a compile error.
fn all_arms(m: &Manager<Receipt, Declined>, key: &str, body: &str) -> Result<(u16, String), Error> {
    let options = CallOptions::new().fingerprint(Fingerprint::of(body)?).context(Context::new().with("user", "ada"));
    Ok(match m.begin_with(key, options)? {
        Begin::Claimed(claim) => { let done = claim.succeed(&Receipt { n: 7 })?; (201, format!("{:?}", done.outcome())) }
        Begin::Replay(done) => match done.into_outcome() { Ok(r) => (200, format!("{}", r.n)), Err(Declined::NoFunds) => (402, "no funds".into()) },
        Begin::InProgress(pending) => match pending.wait(Duration::from_secs(2))? { Waited::Finished(done) => (200, format!("{:?}", done.outcome())), _ => (409, "running".into()) },
        Begin::Interrupted(info) => (409, format!("unknown since {:?}, attempt {}", info.updated_at(), info.attempt())),
        Begin::Paused(info) => (503, format!("in {:?}", info.retry_after())),
        Begin::Mismatch(info) => (422, format!("{} was another request", info.key())),
    })
}
/// The five by-key calls, as in litert.
fn litert(m: &Manager<Receipt, Declined>) -> Result<()> {
    let about = Context::new().with("user", "42").with_encoded("args", &(1, "x"))?;
    if let Some(token) = m.initiate_with("k", CallOptions::new().context(about))? {
        match Ok::<u64, Declined>(3) { Ok(n) => m.success("k", token, &Receipt { n })?, Err(e) => m.fail("k", token, &e)? }
    } else if let Waited::Finished(done) = m.wait("k", Duration::from_secs(1))? {
        println!("{:?}", done.outcome());
    }
    if let Some(token) = m.initiate("l")? { m.release("l", token)? }
    if let Some(record) = m.get("k")? { println!("{:?} {:?} {:?}", record.status(), record.outcome(), record.info().context().text("user")) }
    Ok(())
}
pub(crate) fn main() -> anyhow::Result<()> {
    let e = Engine::temporary()?; let m = e.manager::<Receipt, Declined>("pay")?; worker(&m)?; println!("{:?}", all_arms(&m, "k", "{}")?); litert(&m)?;
    let Ok(claim) = m.begin("z")?.into_claim() else { return Ok(()) }; claim.release()?; Ok(()) // EndError goes into anyhow
}
