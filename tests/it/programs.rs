//! The example programs for which the public API was designed. They compile and work.

use std::path::Path;
use std::process::{Command, Output};

use oncekey::{Engine, ExecuteError, Manager, stage::DriveError};

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

/// Not a test: the body of the process that `run` starts in a directory of its own.
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
fn b_accepts_four_kinds_of_errors() {
    let dir = tempfile::tempdir().unwrap();
    run("b", dir.path());
}

#[test]
fn c_handles_every_answer_and_the_by_key_calls() {
    let dir = tempfile::tempdir().unwrap();
    let text = run("c", dir.path());
    assert!(text.contains("(201,"), "{text}");
    // The by-key calls find the record that the first part created under the same key.
    assert!(text.contains(r#"Succeeded Some(Ok(Receipt { n: 7 })) Some("ada")"#), "{text}");
}

#[test]
fn d_checks_out_in_stages() {
    let dir = tempfile::tempdir().unwrap();
    let text = run("d", dir.path());
    // The item is out of stock.
    assert!(text.contains("sold out"), "{text}");
}

#[test]
fn d_reserves_an_item_only_once() {
    let engine = Engine::temporary().unwrap();
    let orders = engine.manager::<d_checkout::Order, String>("orders").unwrap();
    let stock = engine.table("stock").unwrap();
    for item in ["apple", "x"] {
        stock.insert(item, "2").unwrap();
    }
    let left = |item: &str| stock.get(item).unwrap().unwrap().to_vec();
    for _ in 0..2 {
        let order = d_checkout::checkout(&orders, "cart-1", "apple").unwrap();
        assert_eq!((order.id, order.charge.as_str(), left("apple")), (1, "ch_1", b"1".to_vec()));
    }
    assert_eq!(d_checkout::checkout(&orders, "cart-2", "apple").unwrap().id, 2);
    let sold_out = d_checkout::checkout(&orders, "cart-3", "apple");
    assert!(matches!(sold_out, Err(DriveError::Execute(ExecuteError::Failed { error, .. })) if error == "sold out"));
    assert_eq!(engine.table("orders").unwrap().len().unwrap(), 2);
    let claim = orders.begin("by hand").unwrap().into_claim().unwrap();
    assert_eq!(d_checkout::by_hand(claim).unwrap().into_outcome().unwrap().charge, "c");
    assert_eq!(left("x"), b"1");
}

#[test]
fn f_serves_its_three_routes() {
    let engine = Engine::temporary().unwrap();
    let requests = engine.requests("http").unwrap();
    let numbers: Manager<u64, String> = engine.manager("numbers").unwrap();
    let of = |path: &str, body: &str| {
        http::Request::post(path).header("idempotency-key", "k").body(body.as_bytes().to_vec()).unwrap()
    };
    let (pay, broken) = (of("/payments", r#"{"cents":5}"#), of("/payments", "{"));
    let user = |name: &str| requests.scoped(name).unwrap();
    let first = user("ada").handle(&pay, f_http::pay);
    assert!(String::from_utf8_lossy(first.body()).contains(r#""cents":5"#) && first.status() == 201);
    assert_eq!(user("ada").handle(&pay, f_http::pay).body(), first.body());
    assert_eq!(user("eve").handle(&broken, f_http::pay).status(), 400);

    let order = of("/checkout", "two apples");
    for _ in 0..2 {
        assert_eq!(f_http::checkout(&user("bob"), &order).status(), 201);
    }
    assert_eq!(f_http::checkout(&user("bob"), &of("/checkout", "three")).status(), 422);
    assert_eq!(engine.table("orders").unwrap().get("1").unwrap().as_deref(), Some(&b"two apples"[..]));

    for _ in 0..2 {
        assert_eq!(f_http::typed(&numbers, &of("/number", "")).unwrap().body(), b"7");
    }
    assert_eq!(f_http::typed(&numbers, &of("/other", "")).unwrap().status(), 422);
    let without = http::Request::post("/number").body(Vec::new()).unwrap();
    assert_eq!(f_http::typed(&numbers, &without).unwrap().status(), 400);
}

#[test]
fn e_rolls_back_on_conflict_and_on_error() {
    let dir = tempfile::tempdir().unwrap();
    let text = run("e", dir.path());
    assert!(text.contains("Err(NoFunds(3))") && text.contains("rolled back: no"), "{text}");
}

#[test]
fn g_resolves_and_lists_records() {
    let dir = tempfile::tempdir().unwrap();
    let text = run("g", dir.path());
    assert!(text.contains("created: true") && text.contains("exit: ExitCode(unix_exit_status(0))"), "{text}");
}
