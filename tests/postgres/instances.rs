//! Instances that hand a key over, and an owner that is paused.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use oncekey::{Begin, CallOptions, Engine, Waited};

use crate::engines::{claimed, texts};
use crate::proxy::Proxy;
use crate::server::Server;
use crate::{new_schema, options};

const LATE: Duration = Duration::from_secs(60);

fn number(name: &str, default: u32) -> u32 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Lets each successor claim the key and release it, again and again. Returns the times from a release to the next
/// claim, sorted.
fn hand_over(engines: &[Engine], successors: usize, releases: u32) -> Vec<Duration> {
    let (running, claims) = (AtomicU32::new(0), AtomicU32::new(0));
    let times: Mutex<(Option<Instant>, Vec<Duration>)> = Mutex::default();
    std::thread::scope(|scope| {
        for successor in 0..successors {
            let (engine, running, claims, times) = (&engines[successor % engines.len()], &running, &claims, &times);
            scope.spawn(move || {
                while claims.fetch_add(1, Ordering::Relaxed) < releases {
                    let claim = claimed(texts(engine).begin_with("k", CallOptions::new().wait(LATE)).unwrap());
                    assert_eq!(running.fetch_add(1, Ordering::SeqCst), 0, "two owners at once");
                    let mut times = times.lock().unwrap();
                    let gap = times.0.take().map(|at| at.elapsed());
                    times.1.extend(gap);
                    times.0 = Some(Instant::now());
                    drop(times);
                    assert_eq!(running.fetch_sub(1, Ordering::SeqCst), 1);
                    claim.release().unwrap();
                }
            });
        }
    });
    assert_eq!(texts(&engines[0]).get("k").unwrap().unwrap().info().attempt(), releases, "each claim was one attempt");
    let mut gaps = times.into_inner().unwrap().1;
    gaps.sort();
    gaps
}

/// `ONCEKEY_RELEASES` is the number of releases. If it is more than 60, there are 100 successors.
#[test]
fn all_successors_in_three_engines_get_the_key() {
    let releases = number("ONCEKEY_RELEASES", 60);
    let successors = if releases > 60 { 100 } else { 30 };
    // All notifications arrive, then one of three, then none.
    for of in [0, 3, u64::MAX] {
        let (schema, proxy) = (new_schema(), Proxy::start());
        proxy.lose_notifications(of);
        let connect = || options(&schema).max_waiting_per_key(100).connect(&proxy.url()).unwrap();
        let gaps = hand_over(&[connect(), connect(), connect()], successors, releases);
        let (median, longest) = (gaps[gaps.len() / 2], gaps[gaps.len() - 1]);
        println!(
            "{releases} releases, {successors} successors, {} lost: median {median:?}, longest {longest:?}",
            proxy.lost()
        );
        assert!(longest < Duration::from_secs(2), "{longest:?}");
        assert_eq!(proxy.lost() > 0, of > 0);
    }
}

/// Without notifications, a waiter learns of a release by its next look.
#[test]
fn a_notification_hands_a_key_over_sooner() {
    let time = |drops: bool| {
        let (schema, proxy) = (new_schema(), Proxy::start());
        let connect = || options(&schema).connect(&proxy.url()).unwrap();
        if drops {
            proxy.drop_notifications();
        }
        // Each key goes to the other engine.
        let (one, two) = (connect(), connect());
        (0..6)
            .map(|round| {
                let key = format!("{round}");
                let claim = claimed(texts(&one).begin(key.as_str()).unwrap());
                std::thread::scope(|scope| {
                    let successor = scope.spawn(|| {
                        let begun = texts(&two).begin_with(key.as_str(), CallOptions::new().wait(LATE)).unwrap();
                        (Instant::now(), claimed(begun).release().unwrap())
                    });
                    crate::until(|| two.stats().waiting == 1);
                    // The owner has been asked, and the waiter sleeps until its next look.
                    std::thread::sleep(Duration::from_millis(350));
                    let released = Instant::now();
                    claim.release().unwrap();
                    successor.join().unwrap().0.saturating_duration_since(released)
                })
            })
            .sum::<Duration>()
    };
    let (told, looked) = (time(false), time(true));
    println!("6 keys are handed over in {told:?} with notifications, in {looked:?} without");
    assert!(told < looked, "{told:?} with notifications, {looked:?} without");
}

const URL: &str = "ONCEKEY_PAUSED_URL";

/// Not a test: an owner that a test pauses. It ends its claim after a line on its standard input.
#[test]
#[ignore = "a process of another test"]
fn owner() {
    let Ok(url) = std::env::var(URL) else { return };
    let engine = Engine::connect(&url).unwrap();
    let claim = claimed(texts(&engine).begin("k").unwrap());
    println!("\nready");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    claim.succeed(&"done".to_owned()).unwrap();
    println!("\nended");
}

struct Owner {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
}

impl Owner {
    fn start(url: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "instances::owner", "--ignored", "--nocapture"]).env(URL, url);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out }
    }

    fn until(&mut self, says: &str) {
        let mut line = String::new();
        while line.trim() != says {
            line.clear();
            assert!(self.out.read_line(&mut line).unwrap() > 0, "it says {says}");
        }
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status().unwrap();
        assert!(sent.success());
    }
}

/// The kernel of the paused owner answers the keepalives of the server. Without an answer the server would end the
/// session after 11 s. `ONCEKEY_PAUSE` is the number of seconds.
#[test]
fn a_paused_owner_keeps_its_claim() {
    let pause = Duration::from_secs(number("ONCEKEY_PAUSE", 14).into());
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = Server::start(&format!("-c listen_addresses=127.0.0.1 -c port={port}"));
    let url = format!("host=127.0.0.1 port={port} user=oncekey dbname=postgres");
    let engine = Engine::connect(&url).unwrap();
    let mut owner = Owner::start(&url);
    owner.until("ready");
    owner.signal("STOP");
    let began = Instant::now();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| texts(&engine).wait("k", pause).unwrap());
        let successor = scope.spawn(|| texts(&engine).begin_with("k", CallOptions::new().wait(pause)).unwrap());
        while began.elapsed() < pause {
            assert!(matches!(texts(&engine).begin("k").unwrap(), Begin::InProgress(_)), "{:?}", began.elapsed());
            std::thread::sleep(Duration::from_millis(250));
        }
        assert!(matches!(waits.join().unwrap(), Waited::TimedOut));
        assert!(matches!(successor.join().unwrap(), Begin::InProgress(_)));
    });
    owner.signal("CONT");
    owner.child.stdin.take().unwrap().write_all(b"\n").unwrap();
    owner.until("ended");
    let Begin::Replay(record) = texts(&engine).begin("k").unwrap() else { panic!("it has ended normally") };
    assert_eq!(record.into_outcome(), Ok("done".to_owned()));
    assert!(owner.child.wait().unwrap().success());
    drop(server);
}
