//! An import of many lines that is interrupted and continues where it stopped. Each line is imported once.
//!
//! `cargo run --example resume_import`
#![allow(clippy::print_stdout, reason = "the program prints its steps")]

use oncekey::{
    CallOptions, Engine, Failure, Manager, OnInterrupted,
    stage::{Next, PhaseError, STARTED, Stages},
};

const LINES: u64 = 1000;
const BATCH: u64 = 100;

/// Returns the first line of the next batch, from the checkpoint of the last batch.
fn next_line(checkpoint: Option<&[u8]>) -> u64 {
    checkpoint.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// Imports one batch at a time. The rows of a batch and the position after it are one commit.
fn import(stop_at: Option<u64>) -> Stages<'static, u64, Failure, PhaseError<String>> {
    Stages::new().stage(STARTED, move |claim| {
        let first = next_line(claim.checkpoint());
        if stop_at == Some(first) {
            return Err(PhaseError::User("the machine is shut down".to_owned()));
        }
        claim.work_stage(|tx| {
            let rows = tx.table("lines")?;
            for line in first..(first + BATCH).min(LINES) {
                rows.insert(line.to_be_bytes(), format!("line {line}"))?;
            }
            let next = first + BATCH;
            Ok(if next < LINES { Next::advance_with(STARTED, next.to_le_bytes()) } else { Next::Succeed(LINES) })
        })
    })
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let options = || CallOptions::new().on_interrupted(OnInterrupted::Resume);

    let engine = Engine::open(dir.path())?;
    let imports: Manager<u64> = engine.manager("imports")?;
    assert!(imports.drive("file-7", options(), &import(Some(400))).is_err());
    println!("stopped after {} lines", engine.table("lines")?.iter()?.count());
    drop(imports);
    engine.close()?;

    let engine = Engine::open(dir.path())?;
    let imports: Manager<u64> = engine.manager("imports")?;
    let done = imports.drive("file-7", options(), &import(None))?;
    println!("imported {} lines, replayed: {}", done.value(), done.replayed());
    assert_eq!(engine.table("lines")?.iter()?.count() as u64, LINES);
    Ok(engine.close()?)
}
