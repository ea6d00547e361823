//! A nightly job that must run once a day, although the scheduler starts it twice and restarts it when it fails.
//!
//! `cargo run --example cron_job`
#![allow(clippy::print_stdout, reason = "the program prints its steps")]

use std::time::Duration;

use oncekey::{Engine, ExecuteError, Manager, ManagerOptions, OnError};

#[derive(Debug, thiserror::Error, serde::Serialize, serde::Deserialize)]
enum ReportError {
    /// Nothing was sent. The scheduler may start the job again.
    #[error("the figures are not there yet")]
    NotReady,
    /// The report may have been sent or not.
    #[error("the mail server did not answer")]
    TimedOut,
}

fn report(jobs: &Manager<u64, ReportError>, day: &str, is_ready: bool) -> Result<bool, ExecuteError<u64, ReportError>> {
    // No fingerprint: the day alone determines the job.
    let done = jobs.execute(format!("report-{day}"), |_claim| {
        if !is_ready {
            return Err(ReportError::NotReady);
        }
        println!("sending the report of {day}");
        Ok(1)
    })?;
    Ok(!done.replayed())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let engine = Engine::open(dir.path())?;
    // Keep the outcome longer than an operator would wait before restarting the job by hand.
    let options = ManagerOptions::new().success_ttl(Duration::from_secs(7 * 24 * 3600));
    let jobs = engine.manager_with("jobs", options)?.on_error(|error| match error {
        ReportError::NotReady => OnError::Release,
        ReportError::TimedOut => OnError::Interrupt,
    });

    let early = report(&jobs, "2026-11-28", false);
    assert!(matches!(early, Err(ExecuteError::Failed { .. })));
    assert!(report(&jobs, "2026-11-28", true)?, "the job runs, because nothing was sent before");
    assert!(!report(&jobs, "2026-11-28", true)?, "the second start of the day sends nothing");
    assert!(report(&jobs, "2026-11-29", true)?, "the next day is another key");
    Ok(engine.close()?)
}
