//! A standby takes over while workers run: a synchronous standby has everything that was answered. Its clock is a day
//! ahead.

use std::time::{Duration, Instant};

use oncekey::{Engine, ManagerOptions};

use crate::chaos::{Work, check, while_workers_run};
use crate::engines::Texts;
use crate::server::{Server, Setup};
use crate::time::faketime;
use crate::until;

/// Returns an address with both hosts. A client connects to the one that is the primary.
fn both(one: &Server, two: &Server) -> String {
    format!("host={},{} user=oncekey dbname=postgres", one.dir.display(), two.dir.display())
}

/// `ONCEKEY_CHAOS` is the number of seconds.
#[test]
fn nothing_is_lost_in_a_failover_to_a_synchronous_standby() {
    let seconds = std::env::var("ONCEKEY_CHAOS").map_or(9, |seconds| seconds.parse().unwrap());
    let primary = Server::start("");
    let engine = Engine::connect(&primary.url()).unwrap();
    assert!(!engine.opened().synchronous_standby, "a failover may lose answers");
    drop(engine);
    let standby = Server::start_as(&Setup { primary: Some(&primary), env: &faketime("+1d"), ..Setup::default() });
    primary.sql("ALTER SYSTEM SET synchronous_standby_names = '*'");
    primary.sql("SELECT pg_reload_conf()");
    until(|| primary.sql("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'") == "1");
    let url = both(&primary, &standby);
    let engine = Engine::connect(&url).unwrap();
    assert!(engine.opened().synchronous_standby);
    let hour = ManagerOptions::new().success_ttl(Duration::from_secs(3600));
    let kept: Texts = engine.manager_with("kept", hour).unwrap();
    kept.execute("k", |_| Ok("done".to_owned())).unwrap();
    let mut took_over = Duration::ZERO;
    let (said, kills) = while_workers_run(&url, 3_000, Work::new(Duration::from_secs(seconds), 30), |work| {
        until(|| work.is_at(50));
        let began = Instant::now();
        primary.kill();
        standby.promote();
        took_over = began.elapsed();
    });
    let ahead = "SELECT now() > to_timestamp({}) + interval '23 h'";
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert_eq!(standby.sql(&ahead.replace("{}", &now.to_string())), "t", "its clock is a day ahead");
    assert_eq!(kept.get("k").unwrap().unwrap().into_outcome(), Some(Ok("done".to_owned())), "nothing expires early");
    kept.forget("k").unwrap();
    let (keys, left) = check(&engine, &said);
    println!(
        "{keys} keys, {} answers, {kills} kills, {left} left, taken over in {took_over:?}, {:?}",
        said.answers.len(),
        said.errors
    );
    assert!(keys > 20 && said.answers.len() > 10, "{keys} keys");
}
