//! A checkout in three work stages with tables.
use oncekey::{*, stage::*};
use serde::{Deserialize, Serialize};
#[derive(Debug, Clone, Serialize, Deserialize)] pub(crate) struct Order { pub(crate) id: u64, pub(crate) charge: String }
#[derive(Debug, thiserror::Error)] pub(crate) enum AppError {
    #[error(transparent)] Store(#[from] oncekey::Error), #[error("provider")] Provider(#[from] std::io::Error), #[error("number")] Number(#[from] std::num::ParseIntError), #[error("utf8")] Utf8(#[from] std::str::Utf8Error),
}
fn charge_card(_id: &str) -> std::io::Result<String> { Ok("ch_1".into()) }
fn number(v: Option<Value>) -> Result<u64, AppError> { Ok(v.map(|v| -> Result<u64, AppError> { Ok(std::str::from_utf8(&v)?.parse()?) }).transpose()?.unwrap_or(0)) }
/// A helper function that gets the transaction. Two tables are open at once.
fn reserve(tx: &Transaction, item: &str) -> Result<bool, AppError> {
    let (stock, log) = (tx.table("stock")?, tx.table("log")?);
    let left = number(stock.get(item)?)?; if left == 0 { return Ok(false) }
    stock.insert(item, (left - 1).to_string())?; log.insert(item, "reserved")?; Ok(true)
}
pub(crate) fn checkout(orders: &Manager<Order, String>, cart: &str, item: &str) -> Result<Order, DriveError<Order, String, AppError>> {
    let stages = Stages::new()
        .stage(STARTED, |claim| claim.work_stage(|tx| Ok(if reserve(tx, item)? { Next::advance("reserved") } else { Next::Fail("sold out".into()) })))
        .stage("reserved", |claim| {
            let charge = charge_card(&claim.effect_id("charge"))?; // outside of a stage: its closure may run again
            claim.work_stage(|_tx| Ok(Next::advance_with("charged", charge.as_str())))
        })
        .stage("charged", |claim| {
            let charge = String::from_utf8_lossy(claim.checkpoint().unwrap_or_default()).into_owned();
            claim.work_stage(|tx| {
                let (orders, counters) = (tx.table("orders")?, tx.table("counters")?);
                let id = number(counters.get("order")?)? + 1;
                counters.insert("order", id.to_string())?; orders.insert(id.to_string(), cart)?;
                Ok(Next::Succeed(Order { id, charge: charge.clone() }))
            })
        });
    orders.drive(cart, CallOptions::new().on_interrupted(OnInterrupted::Resume), &stages).map(Executed::into_value)
}
/// The same without `drive`.
pub(crate) fn by_hand(mut claim: Claim<Order, String>) -> Result<Finished<Order, String>, AppError> {
    while claim.recovery_point() != FINISHED {
        match claim.recovery_point() {
            STARTED => claim.work_stage::<AppError>(|tx| Ok(if reserve(tx, "x")? { Next::advance("reserved") } else { Next::Fail("sold out".into()) }))?,
            "reserved" => claim.work_stage::<Error>(|_| Ok(Next::Succeed(Order { id: 1, charge: "c".into() })))?,
            other => panic!("unknown recovery point {other}"),
        }
    }
    Ok(claim.into_finished().map_err(Error::from)?)
}
pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    let e = Engine::temporary()?; let m = e.manager::<Order, String>("orders")?;
    match checkout(&m, "cart-1", "apple") { Ok(o) => println!("{o:?}"), Err(DriveError::Stage { error, status }) => println!("{status:?}: {error}"), Err(DriveError::Execute(ExecuteError::Failed { error, .. })) => println!("{error}"), Err(other) => return Err(other.into()) }
    if let Ok(claim) = m.begin("cart-2")?.into_claim() { by_hand(claim)?; } Ok(())
}
