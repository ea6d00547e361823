//! An owner is cut off from the server by a router that forwards nothing in one direction or in both. Neither side
//! receives the end of a connection. Each test has network namespaces of its own, for which it must run as root.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use oncekey::{Engine, ErrorKind, ManagerOptions, OnInterrupted, Status, stage::Next};

use crate::engines::{Texts, claimed, texts};
use crate::server::{Server, Setup, unprivileged};
use crate::until;

const URL: &str = "ONCEKEY_CUT_OFF_URL";
/// The longest time for a call of the owner.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The server gives up a connection after this time without an answer: 5 s, and 3 times 2 s.
const KEEPALIVES: Duration = Duration::from_secs(11);

/// Namespaces of a client, a router and a server.
struct Network {
    name: String,
}

impl Network {
    fn new(name: &str) -> Self {
        let name = format!("oncekey-{}-{name}", std::process::id());
        let network = Self { name };
        for of in ["c", "r", "s"] {
            network.ip(&format!("netns add {}-{of}", network.name));
        }
        for (of, net) in [("c", 1), ("s", 2)] {
            let name = &network.name;
            let (at, router) = (format!("-n {name}-{of}"), format!("-n {name}-r"));
            network.ip(&format!("-n {name}-r link add to-{of} type veth peer name eth netns {name}-{of}"));
            network.ip(&format!("{router} addr add 10.99.{net}.1/24 dev to-{of}"));
            network.ip(&format!("{at} addr add 10.99.{net}.2/24 dev eth"));
            network.ip(&format!("{router} link set to-{of} up"));
            network.ip(&format!("{at} link set eth up"));
            network.ip(&format!("{at} link set lo up"));
            network.ip(&format!("{at} route add default via 10.99.{net}.1"));
        }
        network.forwards(["c", "s"], true);
        network
    }

    fn ip(&self, arguments: &str) {
        let done = Command::new("ip").args(arguments.split(' ')).output().unwrap();
        assert!(done.status.success(), "{}: ip {arguments}: {}", self.name, String::from_utf8_lossy(&done.stderr));
    }

    /// Makes the router forward or discard the packets from these sides.
    fn forwards<const N: usize>(&self, from: [&str; N], forwards: bool) {
        for of in from {
            let script = format!("echo {} > /proc/sys/net/ipv4/conf/to-{of}/forwarding", u8::from(forwards));
            let router = format!("{}-r", self.name);
            let done = Command::new("ip").args(["netns", "exec", &router, "sh", "-c", &script]).status().unwrap();
            assert!(done.success());
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for of in ["c", "r", "s"] {
            let _ = Command::new("ip").args(["netns", "del", &format!("{}-{of}", self.name)]).status();
        }
    }
}

fn resuming(engine: &Engine) -> Texts {
    engine.manager_with("m", ManagerOptions::new().on_interrupted(OnInterrupted::Resume)).unwrap()
}

/// Not a test: the owner. For each line of its input it tries to end its claims, and prints the results of its calls.
#[test]
#[ignore = "a process of another test"]
fn owner() {
    let Ok(url) = std::env::var(URL) else { return };
    let engine = Engine::options().sync_timeout(TIMEOUT).connect(&url).unwrap();
    let texts = resuming(&engine);
    let mut staged = claimed(texts.begin("staged").unwrap());
    let mut ended = Some(claimed(texts.begin("ended").unwrap()));
    println!("\n@ready");
    for _ in std::io::stdin().lines() {
        let say = |what: &str, began: Instant, kind: Option<ErrorKind>| {
            let kind = kind.map_or("ok".to_owned(), |kind| format!("{kind:?}"));
            println!("\n@{what} {} {kind}", began.elapsed().as_millis());
        };
        let began = Instant::now();
        let stage = staged.work_stage(|tx| {
            tx.table("effects")?.insert("of the owner", "x")?;
            Ok::<_, oncekey::Error>(Next::advance("staged"))
        });
        say("stage", began, stage.err().map(|error| error.kind()));
        let began = Instant::now();
        let end = ended.take().unwrap().succeed(&"of the owner".to_owned());
        say("end", began, end.as_ref().err().map(oncekey::EndError::kind));
        ended = Some(end.unwrap_err().claim);
        let began = Instant::now();
        say("get", began, texts.get("staged").err().map(|error| error.kind()));
        println!("\n@done");
    }
}

struct Owner {
    child: Child,
    to: ChildStdin,
    out: BufReader<ChildStdout>,
}

impl Owner {
    fn start(network: &Network) -> Self {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &format!("{}-c", network.name)]).arg(std::env::current_exe().unwrap());
        command.args(["--exact", "network::owner", "--ignored", "--nocapture"]);
        command.env(URL, "host=10.99.2.2 user=oncekey dbname=postgres");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (to, out) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut owner = Self { child, to, out };
        owner.until("ready");
        owner
    }

    /// Returns the lines that the owner prints before `end`.
    fn until(&mut self, end: &str) -> Vec<String> {
        let (mut said, mut line) = (Vec::new(), String::new());
        loop {
            line.clear();
            assert!(self.out.read_line(&mut line).unwrap() > 0, "it says {end}: {said:?}");
            match line.trim().strip_prefix('@') {
                Some(text) if text == end => return said,
                Some(text) => said.push(text.to_owned()),
                None => {}
            }
        }
    }

    /// Lets the owner try to end its claims. Returns the results of its calls, each of which ends by its deadline.
    fn tries(&mut self) -> Vec<String> {
        self.to.write_all(b"\n").unwrap();
        let said = self.until("done");
        println!("the owner: {said:?}");
        let results = said.iter().map(|line| {
            let mut words = line.split(' ').skip(1);
            let took = Duration::from_millis(words.next().unwrap().parse().unwrap());
            assert!(took < TIMEOUT + Duration::from_secs(1), "{line}");
            words.next().unwrap().to_owned()
        });
        results.collect()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `ONCEKEY_PARTITION` is the number of seconds of the long partition.
fn cut_off<const N: usize>(name: &str, from: [&str; N]) {
    if unprivileged().is_none() {
        println!("skipped: only root makes network namespaces");
        return;
    }
    let seconds = std::env::var("ONCEKEY_PARTITION").map_or(0, |seconds| seconds.parse().unwrap());
    let network = Network::new(name);
    let within = format!("ip netns exec {}-s", network.name);
    let options = "-c listen_addresses=10.99.2.2";
    let server = Server::start_as(&Setup { options, within: Some(&within), ..Setup::default() });
    let hba = server.dir.join("data/pg_hba.conf");
    std::fs::write(&hba, std::fs::read_to_string(&hba).unwrap() + "host all all 10.99.0.0/16 trust\n").unwrap();
    server.sql("SELECT pg_reload_conf()");
    // Another engine reaches the server by its socket.
    let other = Engine::connect(&server.url()).unwrap();
    let mut owner = Owner::start(&network);
    let status = |key: &str| texts(&other).get(key).unwrap().unwrap().status();
    let keys = ["staged", "ended"];

    // After a short interruption, no owner is declared dead.
    network.forwards(from, false);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        assert_eq!(keys.map(status), [Status::InProgress; 2], "after {:?}", began.elapsed());
        std::thread::sleep(Duration::from_millis(100));
    }
    network.forwards(from, true);
    until(|| server.sql("SELECT count(*) FROM pg_stat_activity WHERE client_addr IS NOT NULL") != "0");
    assert_eq!(keys.map(status), [Status::InProgress; 2]);

    network.forwards(from, false);
    let began = Instant::now();
    until(|| keys.map(status) == [Status::Interrupted; 2]);
    let dead = began.elapsed();
    println!("cut off from {from:?}: dead after {dead:?}");
    assert!(dead < KEEPALIVES + Duration::from_secs(1), "{dead:?}");
    for key in keys {
        let claim = claimed(resuming(&other).begin(key).unwrap());
        assert_eq!(claim.attempt(), 2);
        claim.succeed(&"of the other".to_owned()).unwrap();
    }
    // No statement of the lost owner takes effect, now or later.
    let is_lost = |results: &[String]| results[..2].iter().all(|result| result == "ClaimLost");
    let results = owner.tries();
    assert!(!results.iter().any(|result| result == "ok"), "{results:?}");
    std::thread::sleep(Duration::from_secs(seconds).saturating_sub(began.elapsed()));
    network.forwards(from, true);
    let healed = Instant::now();
    let mut results = owner.tries();
    while !is_lost(&results) {
        assert!(healed.elapsed() < Duration::from_secs(60), "{results:?}");
        assert!(!results[..2].iter().any(|result| result == "ok"), "{results:?}");
        results = owner.tries();
    }
    for key in keys {
        let answer = texts(&other).get(key).unwrap().unwrap().into_outcome();
        assert_eq!(answer, Some(Ok("of the other".to_owned())), "{key}");
    }
    assert!(other.table("effects").unwrap().get("of the owner").unwrap().is_none());
}

#[test]
fn an_owner_that_does_not_reach_the_server_is_dead_after_the_keepalives() {
    cut_off("to", ["c"]);
}

#[test]
fn an_owner_that_does_not_hear_the_server_is_dead_after_the_keepalives() {
    cut_off("from", ["s"]);
}

#[test]
fn an_owner_that_is_cut_off_is_dead_after_the_keepalives() {
    cut_off("both", ["c", "s"]);
}
