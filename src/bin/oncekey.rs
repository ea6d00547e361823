//! The operator's command line, for stores of any service: see [`oncekey::cli`].

use std::process::ExitCode;

use oncekey::cli::{Describers, main as run};

fn main() -> ExitCode {
    run(&Describers::new())
}
