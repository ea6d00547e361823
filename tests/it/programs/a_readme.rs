use oncekey::{Engine, Manager};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
struct Receipt { charge: String, cents: u64 }

pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    let engine = Engine::open("payments.oncekey")?;
    let payments: Manager<Receipt> = engine.manager("payments")?;
    let done = payments.execute("order-42", |_claim| {
        println!("charging the card");                       // printed by the first run only
        Ok(Receipt { charge: "ch_1".into(), cents: 1999 })
    })?;
    println!("{:?}, replayed: {}", done.value(), done.replayed());
    Ok(engine.close()?)
}
