//! Workers are killed, sessions are terminated, and the server crashes: for a quarter of the time each alone, and then all
//! at once. Each effect in a row of the store happens once, and no answer is lost or changed.
//!
//! `ONCEKEY_CHAOS` is the number of seconds.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use oncekey::{
    Begin, Engine, Error, ManagerOptions, OnInterrupted, RecordInfo, Status, admin::RecordFilter, stage::Next,
};

use crate::engines::Texts;
use crate::server::Server;

pub(crate) const URL: &str = "ONCEKEY_CHAOS_URL";
const FIRST: &str = "ONCEKEY_CHAOS_FIRST";
const WORKERS: usize = 4;
/// A worker starts this many keys before the highest answered one, so that workers meet at the same keys.
const AHEAD: u64 = 5;

pub(crate) fn manager(engine: &Engine) -> Texts {
    let options = ManagerOptions::new().on_interrupted(OnInterrupted::Resume);
    engine.manager_with("chaos", options).unwrap()
}

fn count(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().unwrap())
}

/// Runs one key to its end, or leaves it to another worker. Returns its answer if there is one.
fn run(engine: &Engine, key: &str, me: &str) -> Result<Option<String>, Error> {
    let mut claim = match manager(engine).begin(key)? {
        Begin::Claimed(claim) => claim,
        Begin::Replay(record) => return Ok(record.into_outcome().ok()),
        _ => return Ok(None),
    };
    if claim.recovery_point() == oncekey::stage::STARTED {
        claim.work_stage(|tx| {
            let effects = tx.table("effects")?;
            let seen = effects.get(key)?.map_or(0, |bytes| count(&bytes));
            effects.insert(key, (seen + 1).to_be_bytes())?;
            Ok::<_, Error>(Next::advance("done"))
        })?;
    }
    // Release a tenth of the keys once, after the effect.
    if claim.attempt() == 1 && key.ends_with('3') {
        claim.release()?;
        return Ok(None);
    }
    let answer = format!("{me} {key}");
    claim.succeed(&answer)?;
    Ok(Some(answer))
}

/// Not a test: a worker that the test kills.
#[test]
#[ignore = "a process of another test"]
fn worker() {
    work(|engine, key, me| run(engine, key, me).map_err(|error| format!("{:?}", error.kind())));
}

/// Runs key after key, and prints the result of each: its answer if there is one, or the name of an error.
pub(crate) fn work(mut run: impl FnMut(&Engine, &str, &str) -> Result<Option<String>, String>) {
    let Ok(url) = std::env::var(URL) else { return };
    let first: u64 = std::env::var(FIRST).unwrap().parse().unwrap();
    let me = format!("{}", std::process::id());
    let Ok(engine) = Engine::options().sync_timeout(Duration::from_secs(5)).connect(&url) else { return };
    for number in first.. {
        let key = format!("{number}");
        // After an error the key is left to the others.
        let said = match run(&engine, &key, &me) {
            Ok(Some(answer)) => say(&format!("@answer {key}={answer}\n")),
            Ok(None) => say(&format!("@left {key}\n")),
            Err(error) => say_error(&key, &error),
        };
        if said.is_err() {
            return;
        }
    }
}

fn say(line: &str) -> io::Result<()> {
    io::stdout().lock().write_all(line.as_bytes())
}

pub(crate) fn say_error(key: &str, name: &str) -> io::Result<()> {
    say(&format!("@error {key} {name}\n"))
}

/// The output of all workers.
#[derive(Default)]
pub(crate) struct Said {
    pub(crate) answers: BTreeMap<String, String>,
    pub(crate) errors: BTreeMap<String, u64>,
    highest: u64,
}

fn start(worker: &str, url: &str, first: u64) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", worker, "--ignored", "--nocapture"]);
    command.env(URL, url).env(FIRST, first.to_string());
    command.stdout(Stdio::piped()).stderr(Stdio::null()).stdin(Stdio::null()).spawn().unwrap()
}

/// Reads the output of a worker until it ends, and sends a message for each report. Each answer must be equal to the
/// first one of its key.
fn listen(worker: &mut Child, said: &Mutex<Said>, works: &Sender<()>) {
    for line in BufReader::new(worker.stdout.take().unwrap()).lines().map_while(Result::ok) {
        let Some((verb, rest)) = line.strip_prefix('@').and_then(|line| line.split_once(' ')) else { continue };
        // Ignore the result: the killer waits for the first report only.
        let _ = works.send(());
        let mut said = said.lock().unwrap();
        match verb {
            "answer" => {
                let (key, answer) = rest.split_once('=').unwrap();
                said.highest = said.highest.max(key.parse().unwrap());
                let first = said.answers.entry(key.to_owned()).or_insert_with(|| answer.to_owned());
                assert_eq!(first, answer, "the answer of {key} has changed");
            }
            "error" => *said.errors.entry(rest.split_once(' ').unwrap().1.to_owned()).or_default() += 1,
            _ => {}
        }
    }
}

/// Ends the unfinished keys, and compares every key with the output of the workers. Returns the number of keys, and of
/// those that were unfinished.
pub(crate) fn check(engine: &Engine, said: &Said) -> (usize, usize) {
    let (keys, left) = check_answers(engine, said, |key| run(engine, key, "last").unwrap().is_some());
    let effects = engine.table("effects").unwrap();
    for key in &keys {
        assert_eq!(effects.get(key).unwrap().map(|bytes| count(&bytes)), Some(1), "effects of {key}");
    }
    (keys.len(), left)
}

/// Ends the unfinished keys by `ends`, and compares the answer of every key with the output of the workers. Returns the
/// keys, and the number of those that were unfinished.
pub(crate) fn check_answers(engine: &Engine, said: &Said, mut ends: impl FnMut(&str) -> bool) -> (Vec<String>, usize) {
    let unfinished = RecordFilter::new().matching(|info: &RecordInfo| info.status() != Status::Succeeded);
    let left: Vec<_> = engine.records(unfinished).unwrap().map(|info| info.unwrap().key().to_string()).collect();
    for key in &left {
        crate::until(|| ends(key));
    }
    let texts = manager(engine);
    let mut keys = Vec::new();
    for info in engine.records(RecordFilter::new()).unwrap() {
        let key = info.unwrap().key().to_string();
        let answer = texts.get(key.as_str()).unwrap().unwrap().into_outcome().unwrap().unwrap();
        assert_eq!(said.answers.get(&key).unwrap_or(&answer), &answer, "the answer of {key} was lost");
        keys.push(key);
    }
    for key in said.answers.keys() {
        assert!(texts.get(key.as_str()).unwrap().is_some(), "{key} was answered and is not there");
    }
    (keys, left.len())
}

/// A kind of harm. Its number is the percentage of the time after which it happens alone, for a quarter of the time.
#[derive(Clone, Copy)]
enum Harm {
    Kill = 0,
    EndSession = 25,
    Crash = 50,
}

/// Workers that are killed and started again.
pub(crate) struct Work {
    /// They run for this time. On a busy machine they run longer, until there are this many answers.
    time: Duration,
    answers: usize,
    /// The name of the test that is a worker.
    worker: &'static str,
    /// True if each harm happens alone first.
    in_turns: bool,
    began: Instant,
    said: Mutex<Said>,
}

impl Work {
    pub(crate) fn new(time: Duration, answers: usize) -> Self {
        let began = Instant::now();
        Self { time, answers, worker: "chaos::worker", in_turns: false, began, said: Mutex::default() }
    }

    pub(crate) fn by(self, worker: &'static str) -> Self {
        Self { worker, ..self }
    }

    pub(crate) fn in_turns(self) -> Self {
        Self { in_turns: true, ..self }
    }

    /// Returns true if this may go wrong now.
    fn allows(&self, harm: Harm) -> bool {
        let from = harm as u32;
        !self.in_turns || self.is_at(75) || self.is_at(from) && !self.is_at(from + 25)
    }

    fn answers(&self) -> usize {
        self.said.lock().unwrap().answers.len()
    }

    /// Returns true if the workers have run for this part of the time, and have given the same part of the answers.
    pub(crate) fn is_at(&self, percent: u32) -> bool {
        let passed = self.began.elapsed();
        assert!(passed < self.time + Duration::from_secs(240), "the workers make no progress");
        let answers = self.answers();
        passed * 100 >= self.time * percent && answers * 100 >= self.answers * usize::try_from(percent).unwrap()
    }
}

/// Runs workers, and `beside` at the same time. Returns the output of the workers, and the number of kills. `life` is
/// the shortest life of a worker in milliseconds.
pub(crate) fn while_workers_run(url: &str, life: u64, work: Work, beside: impl FnOnce(&Work)) -> (Said, u64) {
    let kills = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (work, said, kills) = (&work, &work.said, &kills);
            scope.spawn(move || {
                for nth in 0_u64.. {
                    if work.is_at(100) {
                        return;
                    }
                    let first = said.lock().unwrap().highest.saturating_sub(AHEAD);
                    let mut child = start(work.worker, url, first);
                    let pid = child.id();
                    // Kill it after a time that differs from life to life. On a busy machine many workers would be
                    // killed before they do anything, so only every third one can be killed at its start.
                    let kill = Duration::from_millis(life + (worker as u64 * 331 + nth * 577) % 1_400);
                    let (works, has_worked) = channel();
                    let killer = scope.spawn(move || {
                        if nth % 3 > 0 {
                            // An error means that the worker has ended.
                            let _ = has_worked.recv();
                        }
                        std::thread::sleep(kill);
                        while !work.allows(Harm::Kill) {
                            if has_worked.recv_timeout(Duration::from_millis(20)) == Err(RecvTimeoutError::Disconnected)
                            {
                                break;
                            }
                        }
                        let _ = Command::new("kill").arg("-KILL").arg(pid.to_string()).status();
                    });
                    listen(&mut child, said, &works);
                    drop(works);
                    killer.join().unwrap();
                    child.wait().unwrap();
                    kills.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        beside(&work);
    });
    (work.said.into_inner().unwrap(), kills.into_inner())
}

/// Ends sessions and crashes the server while workers run. Returns the numbers of ended sessions and of crashes.
pub(crate) fn break_sessions(server: &Server, work: &Work) -> (u64, u64) {
    let (mut terminated, mut crashes) = (0, 0);
    for round in 0_u64.. {
        // On a busy machine the workers need time to give an answer in between.
        let answers = work.answers();
        loop {
            std::thread::sleep(Duration::from_millis(120));
            if work.is_at(100) || work.answers() > answers {
                break;
            }
        }
        if work.is_at(100) && crashes > 0 {
            break;
        }
        if round % 10 == 9 && work.allows(Harm::Crash) {
            server.restart("immediate", "");
            crashes += 1;
        } else if work.allows(Harm::EndSession) {
            // End any session, also that of a keeper.
            server.sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend'
                AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1",
            );
            terminated += 1;
        }
    }
    (terminated, crashes)
}

#[test]
fn every_effect_happens_once_and_no_answer_is_lost() {
    let seconds = std::env::var("ONCEKEY_CHAOS").map_or(8, |seconds| seconds.parse().unwrap());
    let server = Server::start("");
    drop(Engine::connect(&server.url()).unwrap());
    let (mut terminated, mut crashes) = (0, 0);
    let work = Work::new(Duration::from_secs(seconds), 51).in_turns();
    let (said, kills) = while_workers_run(&server.url(), 300, work, |work| {
        (terminated, crashes) = break_sessions(&server, work);
    });
    let (keys, left) = check(&Engine::connect(&server.url()).unwrap(), &said);
    println!(
        "{keys} keys, {} answers, {} kills, {terminated} sessions ended, {crashes} crashes, {} left, {:?}",
        said.answers.len(),
        kills,
        left,
        said.errors
    );
    assert!(keys > 50 && crashes > 0, "{keys} keys, {crashes} crashes");
}
