//! Histories of several processes with one store on PostgreSQL: some are killed, and some lose their sessions and adopt
//! their claims.

use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use crate::caller::{Event, Line};
use crate::checker::{Call, Phase};
use crate::instance::{LINES, PLAN, Plan, THREADS};
use crate::life::KEYS;
use crate::model::{Answer, Incarnation, Op};
use crate::server::Server;
use crate::still::Still;
use crate::threads::{LATE, Rng, within};
use crate::{Counts, fault_in, number, passed};

/// A connection by which the test asks the server.
struct Sql {
    runtime: tokio::runtime::Runtime,
    client: Client,
}

impl Sql {
    fn connect(url: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (client, connection) = runtime.block_on(tokio_postgres::connect(url, NoTls)).unwrap();
        runtime.spawn(connection);
        Self { runtime, client }
    }

    /// Returns the first column of each row.
    fn ask(&self, text: &str) -> Vec<String> {
        let answer = self.runtime.block_on(self.client.simple_query(text)).unwrap();
        let value = |message| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
            _ => None,
        };
        answer.into_iter().filter_map(value).collect()
    }

    /// Waits until the first value of an answer is this.
    fn until(&self, what: &str, text: &str, value: &str) {
        let began = Instant::now();
        while self.ask(text).first().is_none_or(|first| first != value) {
            assert!(began.elapsed() < LATE, "it takes too long until {what}");
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// The processes of one history.
struct Processes<'a> {
    server: &'a Server,
    sql: &'a Sql,
    schema: String,
    dir: tempfile::TempDir,
    still: Still,
    out: UnixDatagram,
    /// The number of losses of each process, and the process while it runs.
    all: Vec<(u8, Option<Child>)>,
}

impl<'a> Processes<'a> {
    /// Returns them, and the receiver of their lines.
    fn new(server: &'a Server, sql: &'a Sql, schema: String) -> (Self, Receiver<Line>) {
        let dir = tempfile::tempdir().unwrap();
        let lines = UnixDatagram::bind(dir.path().join(LINES)).unwrap();
        let out = UnixDatagram::unbound().unwrap();
        out.connect(dir.path().join(LINES)).unwrap();
        let (sender, received) = channel();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            // Ends with an empty message.
            while let Ok(len @ 1..) = lines.recv(&mut bytes) {
                let text = std::str::from_utf8(&bytes[..len]).unwrap();
                let line = serde_json::from_str(text.strip_prefix('@').unwrap()).unwrap();
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let still = Still::shared(dir.path().to_owned());
        (Self { server, sql, schema, dir, still, out, all: Vec::new() }, received)
    }

    fn send(&self, line: Line) {
        self.out.send(format!("@{}", serde_json::to_string(&line).unwrap()).as_bytes()).unwrap();
    }

    fn say(&self, process: u8, event: Event) {
        self.send(Line::Process { process, event });
    }

    /// Returns the name that the sessions of a process have at the server.
    fn name(&self, process: u8) -> String {
        format!("{}-{process}", self.schema)
    }

    fn start(&mut self, rng: &mut Rng) {
        let process = u8::try_from(self.all.len()).unwrap();
        let plan = Plan {
            url: format!("{} application_name={}", self.server.url(), self.name(process)),
            schema: self.schema.clone(),
            dir: self.dir.path().to_owned(),
            process,
            seed: rng.next(),
            threads: 2 + rng.below(2),
        };
        self.say(process, Event::Starts);
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "instance::child", "--ignored", "--nocapture"]);
        command.env(PLAN, serde_json::to_string(&plan).unwrap()).stdout(Stdio::null());
        self.all.push((0, Some(command.spawn().unwrap())));
    }

    /// Waits until no session of an ended process is left, and with them no lock and no statement.
    fn ended(&self, process: u8) {
        let name = self.name(process);
        let left = format!("SELECT count(*) FROM pg_stat_activity WHERE application_name = '{name}'");
        self.sql.until("the sessions have ended", &left, "0");
        self.say(process, Event::Ended);
    }

    fn kill(&mut self, process: u8) {
        let Some(mut child) = self.all[usize::from(process)].1.take() else { return };
        // No hours pass while its last statements run.
        let still = self.still.calls();
        // The process may have ended by itself, and reported that.
        if child.try_wait().unwrap().is_none() {
            self.say(process, Event::Ends);
            child.kill().unwrap();
        }
        let status = child.wait().unwrap();
        assert!(status.code().is_none_or(|code| code == 0), "process {process} failed: {status:?}");
        self.ended(process);
        drop(still);
    }

    /// Ends the session that holds the lock of the process, or all of its sessions, and waits until it has another.
    fn lose(&mut self, process: u8, all: bool) {
        let nth = usize::from(process);
        let Some(mut child) = self.all[nth].1.take() else { return };
        if self.all[nth].0 + 1 < Incarnation::MOST && self.lost(process, all, &mut child) {
            self.all[nth].0 += 1;
        }
        self.all[nth].1 = Some(child);
    }

    fn lost(&self, process: u8, all: bool, child: &mut Child) -> bool {
        let sessions = format!("FROM pg_stat_activity WHERE application_name = '{}'", self.name(process));
        // This is the last statement of a keeper before it is ready, and after its adoption.
        let keepers = format!("SELECT pid {sessions} AND query LIKE 'LISTEN%' AND state = 'idle'");
        let keepers_now = self.sql.ask(&keepers);
        let Some(keeper) = keepers_now.first() else { return false };
        self.say(process, Event::Loses);
        let which = if all { String::new() } else { format!(" AND pid = {keeper}") };
        self.sql.ask(&format!("SELECT pg_terminate_backend(pid) {sessions}{which}"));
        self.sql.until("its session has ended", &format!("SELECT count(*) {sessions} AND pid = {keeper}"), "0");
        self.say(process, Event::Lost);
        let began = Instant::now();
        while self.sql.ask(&format!("{keepers} AND pid <> {keeper}")).is_empty() {
            if child.try_wait().unwrap().is_some() {
                return true;
            }
            assert!(began.elapsed() < LATE, "process {process} has no other incarnation");
            thread::sleep(Duration::from_millis(2));
        }
        let still = self.still.moves();
        self.say(process, Event::Adopted);
        drop(still);
        true
    }

    /// Waits for the ends of all processes.
    fn join(&mut self) {
        for process in 0..u8::try_from(self.all.len()).unwrap() {
            let Some(mut child) = self.all[usize::from(process)].1.take() else { continue };
            let status = child.wait().unwrap();
            assert!(status.success(), "process {process} failed: {status:?}");
            self.ended(process);
        }
    }
}

/// Runs the processes of one history. Returns the lines of its parts: all processes of a part end with it.
fn history(server: &Server, sql: &Sql, schema: String, rng: &mut Rng) -> Vec<Vec<Line>> {
    let (mut processes, lines) = Processes::new(server, sql, schema);
    let mut parts = Vec::new();
    for _ in 0..=rng.below(2) {
        let first = processes.all.len() as u64;
        for _ in 0..2 + rng.below(3) {
            processes.start(rng);
        }
        let mut part = Vec::new();
        for _ in 0..rng.below(4) {
            // Wait for a moment that depends on the calls.
            let more = rng.below(40);
            part.extend((0..more).map_while(|_| lines.recv_timeout(Duration::from_millis(200)).ok()));
            let process = u8::try_from(first + rng.below(processes.all.len() as u64 - first)).unwrap();
            let dice = rng.below(4);
            // Wait until the open has returned, because an open that loses its session fails.
            let runs = processes.all[usize::from(process)].1.is_some();
            while runs && dice < 2 && count(&part, process, Event::Joined) == 0 {
                part.push(lines.recv_timeout(LATE).unwrap());
            }
            match dice {
                0 => processes.lose(process, false),
                1 => processes.lose(process, true),
                2 => processes.kill(process),
                _ => {
                    processes.kill(process);
                    processes.start(rng);
                }
            }
        }
        processes.join();
        processes.send(Line::Stopped);
        part.extend(std::iter::from_fn(|| {
            Some(lines.recv_timeout(LATE).unwrap()).filter(|line| !matches!(line, Line::Stopped))
        }));
        parts.push(part);
    }
    processes.out.send(b"").unwrap();
    sql.ask(&format!("DROP SCHEMA IF EXISTS \"{}\" CASCADE", processes.schema));
    parts
}

/// Returns the calls of each key and of the table, by parts.
fn phases(parts: &[Vec<Line>]) -> Vec<Vec<Phase>> {
    let of = |key| parts.iter().map(|lines| Phase { opened: None, calls: calls_on(key, lines) }).collect();
    (0..=KEYS).map(of).collect()
}

fn calls_on(key: usize, lines: &[Line]) -> Vec<Call> {
    // The incarnations of calls that begin now.
    let mut nth = [0; 16];
    let mut calls = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        // A process is in another incarnation from the end of its session on, whether it knows that or not.
        if let Line::Process { process, event: Event::Lost } = line {
            nth[usize::from(*process)] += 1;
        }
        let (process, op, until) = match *line {
            Line::Call { thread, key: of, op } if of == key || passed(line) > 0 => {
                let process = u8::try_from(thread / THREADS).unwrap();
                let answer = lines[at..].iter().enumerate().find_map(|(after, line)| match line {
                    Line::Answer { thread: of, answer } if *of == thread => Some((at + after, *answer)),
                    _ => None,
                });
                // A drop waits for a second at most.
                (process, op, answer.filter(|_| !matches!(op, Op::Drop { .. })))
            }
            Line::Process { process, event } => {
                let happens = |op, until| {
                    let is_it = |line: &Line| matches!(line, Line::Process { process: of, event } if *of == process && *event == until);
                    (process, op, lines[at..].iter().position(is_it).map(|after| (at + after, Answer::Done)))
                };
                match event {
                    Event::Starts => happens(Op::Joins, Event::Joined),
                    Event::Loses => happens(Op::Loses, Event::Lost),
                    Event::Ends => happens(Op::Dies, Event::Ended),
                    Event::Adopted => {
                        // From the last incarnation.
                        let by = Incarnation { process, nth: nth[usize::from(process)] - 1 };
                        calls.push(Call {
                            by,
                            op: Op::Adopts,
                            began: 2 * at,
                            answer: Some((2 * at + 1, Answer::Done)),
                        });
                        continue;
                    }
                    Event::Joined | Event::Lost | Event::Ended => continue,
                }
            }
            _ => continue,
        };
        let by = Incarnation { process, nth: nth[usize::from(process)] };
        calls.push(Call { by, op, began: 2 * at, answer: until.map(|(at, answer)| (2 * at, answer)) });
    }
    calls
}

/// Counts the lines of this event.
fn count(lines: &[Line], of: u8, what: Event) -> u64 {
    let is_it = |line: &&Line| matches!(line, Line::Process { process, event } if (*process, *event) == (of, what));
    lines.iter().filter(is_it).count() as u64
}

/// Set `ONCEKEY_HISTORIES=1000` for more histories, and `ONCEKEY_SEED` for others.
#[test]
fn calls_of_several_processes_are_linearizable() {
    let (histories, seed) = (number("ONCEKEY_HISTORIES", 8), number("ONCEKEY_SEED", 1));
    let (server, next) = (Arc::new(Server::start("")), AtomicUsize::new(0));
    let totals = std::sync::Mutex::new((Counts::default(), [0; 3]));
    thread::scope(|scope| {
        // Two at a time, because a history mostly waits for processes that start.
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let nth = next.fetch_add(1, Ordering::Relaxed) as u64;
                    if nth >= histories {
                        return;
                    }
                    let server = Arc::clone(&server);
                    let parts = within(LATE * 2, move || {
                        let (sql, mut rng) = (Sql::connect(&server.url()), Rng::new(seed.wrapping_add(nth << 32)));
                        history(&server, &sql, format!("h-{nth}"), &mut rng)
                    });
                    if let Some(fault) = fault_in(&phases(&parts)) {
                        panic!("history {nth} of seed {seed}: {fault}");
                    }
                    let mut totals = totals.lock().unwrap();
                    for lines in &parts {
                        totals.0.add(lines);
                    }
                    for (total, event) in totals.1.iter_mut().zip([Event::Ended, Event::Lost, Event::Adopted]) {
                        *total +=
                            parts.iter().flat_map(|part| (0..16).map(move |of| count(part, of, event))).sum::<u64>();
                    }
                }
            });
        }
    });
    let (Counts { calls, answers, kinds, .. }, [processes, lost, adopted]) = totals.into_inner().unwrap();
    println!(
        "{histories} histories: {calls} calls, {answers} answers, {processes} processes, {lost} losses, {adopted} adoptions: {kinds:#?}"
    );
    assert!(answers > 50 * histories && calls > answers, "there was little to explain");
    assert!(processes > 3 * histories && adopted > histories / 4, "{processes} processes, {adopted} adoptions");
    assert!(kinds.len() > 25, "calls were answered in {} ways only", kinds.len());
}
