//! The users' programs that the public surface was designed against: they compile, and do what they say.

use std::path::Path;
use std::process::{Command, Output};

#[allow(dead_code, clippy::all, clippy::pedantic, clippy::restriction, reason = "a user's program, kept as it is")]
#[rustfmt::skip]
mod a_readme;
#[allow(dead_code, unused, clippy::all, clippy::pedantic, clippy::restriction, reason = "a user's program, kept as it is")]
#[rustfmt::skip]
mod b_execute_errors;
#[allow(dead_code, clippy::all, clippy::pedantic, clippy::restriction, reason = "a user's program, kept as it is")]
#[rustfmt::skip]
mod c_claims;
#[allow(dead_code, clippy::all, clippy::pedantic, clippy::restriction, reason = "a user's program, kept as it is")]
#[rustfmt::skip]
mod clock;
#[allow(dead_code, clippy::all, clippy::pedantic, clippy::restriction, reason = "a user's program, kept as it is")]
#[rustfmt::skip]
mod d_checkout;
#[allow(dead_code, clippy::all, clippy::pedantic, clippy::restriction, reason = "a user's program, kept as it is")]
#[rustfmt::skip]
mod e_transfer;
#[allow(dead_code, clippy::all, clippy::pedantic, clippy::restriction, reason = "a user's program, kept as it is")]
#[rustfmt::skip]
mod f_http;
#[allow(dead_code, clippy::all, clippy::pedantic, clippy::restriction, reason = "a user's program, kept as it is")]
#[rustfmt::skip]
mod g_operator;

const PROGRAM: &str = "ONCEKEY_PROGRAM";

/// Not a test: what `run` starts in a process and directory of its own.
#[test]
#[ignore = "started by other tests"]
fn child() {
    match std::env::var(PROGRAM).as_deref() {
        Ok("a") => a_readme::main().unwrap(),
        Ok("b") => b_execute_errors::main(),
        Ok("c") => c_claims::main().unwrap(),
        Ok("d") => d_checkout::main().unwrap(),
        Ok("e") => e_transfer::main(),
        Ok("g") => println!("exit: {:?}", g_operator::main()),
        _ => {}
    }
}

fn run(program: &str, dir: &Path) -> String {
    let Output { status, stdout, stderr } = Command::new(std::env::current_exe().unwrap())
        .args(["programs::child", "--exact", "--ignored", "--nocapture"])
        .env(PROGRAM, program)
        .current_dir(dir)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&stdout).into_owned();
    assert!(status.success(), "{text}{}", String::from_utf8_lossy(&stderr));
    text
}

#[test]
fn a_charges_once_and_replays_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let first = run("a", dir.path());
    assert!(first.contains("charging the card") && first.contains("replayed: false"), "{first}");
    let second = run("a", dir.path());
    assert!(!second.contains("charging the card") && second.contains("replayed: true"), "{second}");
    assert!(second.contains(r#"Receipt { charge: "ch_1", cents: 1999 }"#), "{second}");
}

#[test]
fn b_takes_four_kinds_of_errors() {
    let dir = tempfile::tempdir().unwrap();
    run("b", dir.path());
}

#[test]
fn c_answers_every_arm_and_litert_s_verbs() {
    let dir = tempfile::tempdir().unwrap();
    let text = run("c", dir.path());
    assert!(text.contains("(201,"), "{text}");
    // The verbs meet the record that the arms have made under the same key.
    assert!(text.contains(r#"Succeeded Some(Ok(Receipt { n: 7 })) Some("ada")"#), "{text}");
}

#[test]
fn d_checks_out_in_stages() {
    let dir = tempfile::tempdir().unwrap();
    let text = run("d", dir.path());
    // There is no stock.
    assert!(text.contains("sold out"), "{text}");
}

#[test]
fn e_rolls_back_by_itself_and_by_error() {
    let dir = tempfile::tempdir().unwrap();
    let text = run("e", dir.path());
    assert!(text.contains("Err(NoFunds(3))") && text.contains("rolled back: no"), "{text}");
}

#[test]
fn g_reconciles_and_lists() {
    let dir = tempfile::tempdir().unwrap();
    let text = run("g", dir.path());
    assert!(text.contains("created: true") && text.contains("exit: ExitCode(unix_exit_status(0))"), "{text}");
}
