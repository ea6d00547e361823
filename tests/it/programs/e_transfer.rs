use oncekey::{*, stage::*};
#[derive(Debug, thiserror::Error)] enum TransferError { #[error(transparent)] Store(#[from] Error), #[error("short by {0}")] NoFunds(u64), #[error("damaged account")] Damaged }
fn cents(v: Option<Value>) -> Result<u64, TransferError> { v.map(|v| v.as_ref().try_into().map(u64::from_be_bytes).map_err(|_| TransferError::Damaged)).transpose().map(Option::unwrap_or_default) }
fn transfer(engine: &Engine, from: &str, to: &str, amount: u64) -> Result<u64, TransferError> {
    engine.atomic_phase(|tx| {                       // runs again on conflict; Err and panic roll back; the error type is inferred
        let accounts = tx.table("accounts")?;
        let (a, b) = (cents(accounts.get(from)?)?, cents(accounts.get(to)?)?);
        let left = a.checked_sub(amount).ok_or(TransferError::NoFunds(amount - a))?;
        accounts.insert(from, left.to_be_bytes())?;
        accounts.insert(to, (b + amount).to_be_bytes())?;
        Ok(left)
    })
}
/// No error type of its own: `PhaseError<&str>`, anyhow, or the crate's `Error`.
fn others(engine: &Engine) -> anyhow::Result<()> {
    let r: Result<(), PhaseError<&str>> = engine.atomic_phase(|tx| { tx.table("t")?.insert("a", "b")?; Err(PhaseError::User("no")) });
    if let Err(PhaseError::User(why)) = r { println!("rolled back: {why}") }
    engine.atomic_phase(|tx| { tx.table("t")?.remove("a")?; anyhow::ensure!(true, "x"); anyhow::Ok(()) })?;
    engine.atomic_phase(|tx| tx.table("t")?.insert("a", "b"))?; // Error, inferred from the tail
    Ok(())
}
pub(crate) fn main() { let e = Engine::temporary().unwrap(); match transfer(&e, "a", "b", 3) { Err(TransferError::Store(s)) if s.kind() == ErrorKind::Conflict => println!("busy"), other => println!("{other:?}") } let _ = others(&e); }
