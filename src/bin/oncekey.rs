//! The operator's command line, for the store of any service. See [`oncekey::cli`].

use std::process::ExitCode;

use oncekey::cli::{Describers, main as run};

fn main() -> ExitCode {
    run(&Describers::new())
}
