//! One call with four kinds of error types.
use oncekey::{*, stage::*};
use serde::{Deserialize, Serialize};
use std::{io, time::Duration};

#[derive(Debug, Clone, Serialize, Deserialize)] struct Receipt { charge: String }
fn charge() -> io::Result<String> { Ok("ch_1".into()) } // io::Error is not Serialize

// 1. No error type of its own: the default `E = Failure` accepts any error by `?`.
fn plain(engine: &Engine) -> anyhow::Result<Receipt> {
    let pay: Manager<Receipt> = engine.manager("pay")?;
    Ok(pay.execute("k", |_| Ok(Receipt { charge: charge()? }))?.into_value())
}
// 2. An enum with variants that are never stored and need no `Serialize`. Skipped variants come LAST.
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
enum PayError {
    #[error("declined, short by {short_by}")] Declined { short_by: u64 },
    #[error("provider")] #[serde(skip)] Provider(#[from] io::Error),
    #[error("store")] #[serde(skip)] Store(#[from] oncekey::Error),
}
impl PayError { fn unknown(&self) -> bool { matches!(self, PayError::Provider(e) if e.kind() == io::ErrorKind::TimedOut) } }
fn typed(engine: &Engine) -> Result<Manager<Receipt, PayError>> {
    Ok(engine.manager("pay2")?.on_error(|e: &PayError| match e { // litert's isFailureStorable, three-valued
        PayError::Declined { .. } => OnError::Store,
        e if e.unknown() => OnError::Interrupt,
        _ => OnError::Release,
    }))
}
fn pay(m: &Manager<Receipt, PayError>, order: &str, body: &[u8]) -> Result<Receipt, PayError> {
    let same = Fingerprint::of(body)?;
    match m.execute_with(order, CallOptions::new().fingerprint(same).wait(Duration::from_secs(5)), |claim| {
        let _downstream_key = claim.effect_id("charge");
        if order.is_empty() { return Err(PayError::Declined { short_by: 3 }) }
        Ok(Receipt { charge: charge()? })
    }) {
        Ok(done) => Ok(done.into_value()),
        Err(ExecuteError::Failed { error, .. }) => Err(error),
        Err(ExecuteError::Engine(e)) => Err(e.into()),
        Err(ExecuteError::InProgress(_) | ExecuteError::Interrupted(_) | ExecuteError::Paused(_) | ExecuteError::Mismatch(_)) => todo!("409, 409, 422"),
        Err(ExecuteError::NotStored { outcome, error }) => { eprintln!("{error}"); drop(error.claim); outcome }
    }
}
// 3. A text.
fn text(engine: &Engine) -> Result<(), Box<dyn std::error::Error>> {
    let m: Manager<Receipt, String> = engine.manager("pay3")?;
    m.execute("k", |_| charge().map(|charge| Receipt { charge }).map_err(|e| e.to_string()))?; Ok(())
}
// 4. An operation that never fails.
fn never(engine: &Engine) -> Result<Receipt> {
    let m: Manager<Receipt, ()> = engine.manager("pay4")?;
    match m.execute("k", |_| Ok(Receipt { charge: "c".into() })) { Ok(r) => Ok(r.into_value()), Err(ExecuteError::Engine(e)) => Err(e), Err(e) => panic!("{e:?}") }
}
pub(crate) fn main() { let e = Engine::temporary().unwrap(); let _ = (plain(&e), typed(&e).map(|m| pay(&m, "o", b"{}")), text(&e), never(&e)); }
#[allow(dead_code)] fn json(engine: &Engine) -> Result<(), Box<dyn std::error::Error>> {
    let m: Manager<serde_json::Value> = engine.manager("pay5")?;
    println!("{}", m.execute("k", |_| Ok(serde_json::json!({ "a": 1 })))?.value()["a"]); Ok(())
}
