use oncekey::*;
use oncekey::admin::{Event, RecordFilter, Resolution};
use std::{process::ExitCode, time::Duration};
/// Runs right after the open, before the first request. Gets the exact list of interrupted records.
fn reconcile(engine: &Engine, charges: &Manager<String>) -> Result<()> {
    for info in engine.interrupted()? {
        let info = info?;
        if info.manager() != charges.name() { continue }
        match ask_provider(info.key()) { Some(Ok(charge)) => charges.resolve(info.key(), Resolution::Succeed(charge))?, Some(Err(why)) => charges.resolve(info.key(), Resolution::Fail(Failure::new(why)))?, None => charges.resolve(info.key(), Resolution::Retry)? }
    }
    Ok(())
}
fn ask_provider(_: &Key) -> Option<Result<String, String>> { None }
/// A tool that does not know the types.
fn cli(engine: &Engine) -> Result<()> {
    for name in engine.managers()? {
        let raw = engine.raw(&name)?;
        for info in engine.records(RecordFilter::new().manager(&name).status(Status::Interrupted))?.take(10) {
            let info = info?; println!("{name} {} attempt {} since {:?}", info.key(), info.attempt(), info.updated_at());
            if let Some(record) = raw.get(info.key())? { println!("{:?}", record.outcome().map(|o| o.map(|v| v.len()))) }
            raw.resolve(info.key(), Resolution::Retry)?;
        }
    }
    Ok(())
}
pub(crate) fn main() -> ExitCode {
    let engine = match Engine::open("store") {
        Ok(e) => e,
        Err(e) => { eprintln!("{e}"); return ExitCode::from(match e.kind() { ErrorKind::StoreInUse => 75, ErrorKind::Corrupt | ErrorKind::UnsupportedFormat => 65, _ => 74 }) }
    };
    println!("{:?}", engine.opened()); let events = engine.events();
    std::thread::spawn(move || for event in events { if let Event::Ended(info) = event { println!("{:?} {}", info.status(), info.key()) } });
    let charges: Manager<String> = engine.manager("charges").unwrap();
    let run = || -> Result<()> { reconcile(&engine, &charges)?; cli(&engine)?; engine.compact_now()?; charges.extend("k", Duration::from_secs(3600))?; Ok(()) };
    match run() { Ok(()) => ExitCode::SUCCESS, Err(e) if matches!(e.kind(), ErrorKind::Poisoned | ErrorKind::Io | ErrorKind::Full) => ExitCode::from(74), Err(_) => ExitCode::FAILURE }
}
