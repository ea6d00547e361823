//! The shortest program: a charge that runs once, however often the program is started.
//!
//! `cargo run --example quickstart`, twice.
#![allow(clippy::print_stdout, reason = "the program prints its steps")]

use oncekey::{CallOptions, Engine, Fingerprint, Manager};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
struct Receipt {
    charge: String,
    cents: u64,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let engine = Engine::open("target/quickstart.oncekey")?;
    let payments: Manager<Receipt> = engine.manager("payments")?;
    // Another amount under the same key is a mistake of the client, and is rejected.
    let options = CallOptions::new().fingerprint(Fingerprint::of(&("order-42", 1999_u64))?);
    let done = payments.execute_with("order-42", options, |claim| {
        println!("charging the card as {}", claim.effect_id("charge"));
        Ok(Receipt { charge: "ch_1".into(), cents: 1999 })
    })?;
    println!("{:?}, replayed: {}", done.value(), done.replayed());
    Ok(engine.close()?)
}
