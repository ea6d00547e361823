//! A checkout of three stages that reserves, charges and orders exactly once, despite threads and crashes.
//!
//! `cargo run --release --example checkout` shows one checkout. `-- --self-test` kills the process in and between all
//! stages, and compares stock, orders and charges.
//!
//! Read `shop.rs` first: an application has to write that part.

#[path = "../shared/audit.rs"]
mod audit;
mod books;
#[path = "../shared/http.rs"]
mod http;
mod point;
#[path = "../shared/process.rs"]
mod process;
mod provider;
mod self_test;
mod shop;
mod worker;

use std::process::ExitCode;

use oncekey::{Engine, ExecuteError, stage::DriveError};

use crate::books::Books;
use crate::process::{log, say};
use crate::shop::{Cart, Shop};

const USAGE: &str = "\
Checks carts out: reserves from the stock, charges at a provider (another process), orders.

Usage: checkout
       checkout --self-test [--kills N]

  --self-test  kill a process that checks out many carts, in and between all stages; exit status 1 if stock, orders and
               charges do not agree exactly, or a cart got two different answers
  --kills N    how often (default: 300)
  --help       this text
";

const KILLS: usize = 300;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let ended = match args[..] {
        [] => show().map(|()| true),
        ["--help" | "-h"] => {
            say(USAGE);
            Ok(true)
        }
        ["--self-test"] => self_test::run(KILLS),
        ["--self-test", "--kills", kills] if kills.parse::<usize>().is_ok_and(|kills| kills > 0) => {
            self_test::run(kills.parse().unwrap_or(KILLS))
        }
        // With these arguments this program starts itself as a child.
        ["--provider"] => provider::serve().map(|()| true),
        ["--worker", job] => {
            serde_json::from_str(job).map_err(Into::into).and_then(|job| worker::run(&job)).map(|()| true)
        }
        _ => {
            log(USAGE);
            return ExitCode::from(2);
        }
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            log(&format!("checkout: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs one checkout, its retry, and a checkout that finds the stock empty.
fn show() -> anyhow::Result<()> {
    let (_process, provider) = provider::start()?;
    let engine = Engine::temporary()?;
    shop::deliver(&engine, &[("lamp".to_owned(), 1)])?;
    say("One lamp in stock. Between any two of these lines the process may die; the next try continues from there.\n");
    let shop = Shop::new(&engine, provider, Box::new(|point| say(&format!("    {point}\n"))))?;
    for (what, id) in [("", "cart-1"), (", again: the same answer, and nothing runs", "cart-1"), ("", "cart-2")] {
        say(&format!("\ncheckout of {id}{what}\n"));
        let cart = Cart { id: id.to_owned(), item: "lamp".to_owned(), cents: 4900 };
        match shop.check_out(&cart) {
            Ok(done) => say(&format!("  {:?}, replayed: {}\n", done.value(), done.replayed())),
            Err(DriveError::Execute(ExecuteError::Failed { error, replayed, .. })) => {
                say(&format!("  {error}, replayed: {replayed}\n"));
            }
            Err(other) => return Err(other.into()),
        }
    }
    let Books { stock, reservations, orders, .. } = Books::read(&engine)?;
    say(&format!("\nstock {stock:?}, reservations {reservations:?}\norders {orders:?}\n"));
    say(&format!("at the provider {:?}\n", provider::charges(provider)?));
    say("\n`-- --self-test` kills the process at each of these points, and compares the books.\n");
    Ok(())
}
