//! The process that is killed. It makes every kind of call under load, and prints each call and its answer.

use std::collections::HashMap;
use std::io::Write;
use std::thread;
use std::time::Duration;

use oncekey::{
    Begin, CallOptions, Claim, Engine, Error, ErrorKind, ExecuteError, FOREVER, Status, Token, Waited,
    admin::Resolution,
};

use super::model::{Claimed, End};
use super::{DIR, Ops, ROUND, STEPS, answered, claim_of, finished, named, open, value};
use crate::threads::Rng;

const THREADS: u64 = 8;
/// The number of keys that all threads share. The first few are used most.
const KEYS: u64 = 1_000;
const HOT: u64 = 8;
/// The number of keys that only one thread begins and ends by key.
const OWN: u64 = 40;
/// The number of claims that a thread keeps alive.
const HELD: usize = 5;

type Held = Claim<Vec<u8>, Vec<u8>>;

/// Writes one line in one write: before a call, or after its answer.
fn say(line: &str) {
    std::io::stdout().lock().write_all(format!("@{line}\n").as_bytes()).unwrap();
}

fn say_of(what: &str, key: &str, (generation, attempt): Claimed) {
    say(&format!("{what} {key} {generation} {attempt}"));
}

fn say_end(what: &str, key: &str, (generation, attempt): Claimed, end: End) {
    say(&format!("{what} {key} {generation} {attempt} {}", end.word()));
}

fn end_with(success: bool, value: u64) -> End {
    End::Finished { success, value }
}

struct Caller<'a> {
    ops: &'a Ops,
    rng: Rng,
    me: u64,
    held: Vec<(String, Held)>,
    /// Of the keys that it began by key.
    tokens: HashMap<String, Token>,
}

impl Caller<'_> {
    fn step(&mut self) {
        let contended = format!("c-{}", self.rng.below(KEYS));
        let mine = format!("c-{}", self.rng.below(KEYS / THREADS) * THREADS + self.me);
        let hot = format!("c-{}", self.rng.below(HOT));
        let own = format!("k-{}-{}", self.me, self.rng.below(OWN));
        if self.held.len() > HELD {
            self.end();
        }
        match self.rng.below(20) {
            0..=3 => self.execute(&contended),
            4..=7 => self.begin(&contended, None),
            8 => self.begin(&hot, None),
            9 | 10 => self.begin(&hot, Some(Duration::from_millis(5))),
            11 | 12 => self.end(),
            13 => self.remove(&mine),
            14 => self.resolve(&mine),
            15..=17 => self.by_key(&own),
            18 => self.look(&contended),
            _ => self.look(&hot),
        }
    }

    fn execute(&mut self, key: &str) {
        let end = end_with(self.rng.below(4) > 0, self.rng.next());
        say(&format!("try {key}"));
        let mut began = None;
        // Other threads hold claims for a long time.
        let options = CallOptions::new().wait(Duration::from_millis(self.rng.below(3)));
        let executed = self.ops.execute_with(key, options, |claim| {
            let claimed = (claim.generation(), claim.attempt());
            began = Some(claimed);
            say_of("began", key, claimed);
            say_end("ending", key, claimed, end);
            match end {
                End::Finished { success: true, value: number } => Ok(value(number)),
                End::Finished { value: number, .. } => Err(value(number)),
                End::Released | End::Interrupted => unreachable!(),
            }
        });
        let is_replay = began.is_none();
        match began {
            Some(claimed) => say_of("ended", key, claimed),
            None => say(&format!("not {key}")),
        }
        match executed {
            Ok(done) => {
                assert_eq!(done.replayed(), is_replay);
                assert!(is_replay || finished(Ok(done.value())) == end);
            }
            Err(ExecuteError::Failed { error, replayed, .. }) => {
                assert_eq!(replayed, is_replay);
                assert!(is_replay || finished(Err(&error)) == end);
            }
            Err(ExecuteError::Interrupted(_) | ExecuteError::InProgress(_)) => assert!(is_replay),
            Err(other) => panic!("{key}: {other:?}"),
        }
        self.look(key);
    }

    fn begin(&mut self, key: &str, wait: Option<Duration>) {
        say(&format!("try {key}"));
        let begun = match wait {
            Some(time) => self.ops.begin_with(key, CallOptions::new().wait(time)),
            None => self.ops.begin(key),
        };
        match begun.unwrap() {
            Begin::Claimed(claim) => {
                say_of("began", key, (claim.generation(), claim.attempt()));
                self.held.push((key.to_owned(), claim));
            }
            Begin::Replay(done) => {
                let (claimed, end) = answered(&done);
                say_end("answer", key, claimed, end);
                say(&format!("not {key}"));
            }
            Begin::InProgress(_) | Begin::Interrupted(_) => say(&format!("not {key}")),
            Begin::Paused(info) | Begin::Mismatch(info) => panic!("{info:?}"),
        }
    }

    /// Ends one of the held claims.
    fn end(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let (key, mut claim) = self.held.swap_remove(usize::try_from(self.rng.below(self.held.len() as u64)).unwrap());
        let (claimed, number) = ((claim.generation(), claim.attempt()), self.rng.next());
        let how = self.rng.below(12);
        let end = match how {
            0..=2 => end_with(true, number),
            3 => end_with(false, number),
            4..=8 => End::Released,
            _ => End::Interrupted,
        };
        say_end("ending", &key, claimed, end);
        match how {
            0..=2 => drop(claim.succeed(&value(number)).unwrap()),
            3 => drop(claim.fail(&value(number)).unwrap()),
            4..=7 => drop(claim.release().unwrap()),
            8 => {
                // Not durable when it returns, so print no answer.
                claim.release_on_drop(true);
                return drop(claim);
            }
            9 => drop(claim.interrupt().unwrap()),
            _ => drop(claim),
        }
        say_of("ended", &key, claimed);
    }

    fn remove(&mut self, key: &str) {
        say(&format!("removing {key}"));
        let removed = if self.rng.below(2) == 0 { self.ops.remove(key) } else { self.ops.forget(key) };
        let removed = removed.unwrap_or_else(|error| not_mine(&error));
        say(&format!("removed {key} {removed}"));
    }

    /// Resolves a record that a death or a drop has interrupted.
    fn resolve(&mut self, key: &str) {
        let Some(record) = self.ops.get(key).unwrap() else { return };
        if record.status() != Status::Interrupted {
            return;
        }
        let (claimed, number) = (claim_of(record.info()), self.rng.next());
        let (end, resolution) = match self.rng.below(4) {
            0 => (end_with(true, number), Resolution::Succeed(value(number))),
            1 => (end_with(false, number), Resolution::Fail(value(number))),
            _ => (End::Released, Resolution::Retry),
        };
        say_end("resolving", key, claimed, end);
        self.ops.resolve(key, resolution).unwrap();
        say_of("resolved", key, claimed);
    }

    fn by_key(&mut self, key: &str) {
        match self.ops.get(key).unwrap().map(|record| (record.status(), claim_of(record.info()))) {
            Some((Status::InProgress, claimed)) => self.end_by_key(key, claimed),
            Some((Status::Interrupted, _)) => self.resolve(key),
            Some((Status::Succeeded | Status::Failed, _)) => self.remove(key),
            Some((Status::Released, _)) | None => {
                say(&format!("try {key}"));
                let token = self.ops.initiate(key).unwrap().unwrap();
                self.tokens.insert(key.to_owned(), token);
                let claimed = claim_of(self.ops.get(key).unwrap().unwrap().info());
                say_of("began", key, claimed);
            }
        }
    }

    fn end_by_key(&mut self, key: &str, claimed: Claimed) {
        let (how, number) = (self.rng.below(8), self.rng.next());
        let end = match how {
            0 => return self.remove(key),
            1..=3 => end_with(true, number),
            4 => end_with(false, number),
            _ => End::Released,
        };
        say_end("ending", key, claimed, end);
        let token = self.tokens[key];
        match how {
            1..=3 => self.ops.success(key, token, &value(number)),
            4 => self.ops.fail(key, token, &value(number)),
            _ => self.ops.release(key, token),
        }
        .unwrap();
        say_of("ended", key, claimed);
    }

    fn look(&mut self, key: &str) {
        let done = match self.rng.below(4) {
            0 => match self.ops.wait(key, Duration::from_micros(self.rng.below(1_000))).unwrap() {
                Waited::Finished(done) => Some(answered(&done)),
                _ => None,
            },
            how => {
                if how == 1 {
                    self.ops.extend(key, FOREVER).unwrap();
                }
                let record = self.ops.get(key).unwrap();
                record.and_then(|record| Some((claim_of(record.info()), finished(record.outcome()?))))
            }
        };
        if let Some((claimed, end)) = done {
            say_end("answer", key, claimed, end);
        }
    }
}

fn not_mine(error: &Error) -> bool {
    assert_eq!(error.kind(), ErrorKind::OwnedByClaim, "{error}");
    false
}

/// Prints the records that earlier deaths have interrupted.
fn list(engine: &Engine) {
    let infos: Vec<_> = engine.interrupted().unwrap().map(Result::unwrap).collect();
    assert_eq!(infos.len() as u64, engine.opened().interrupted);
    for info in &infos {
        let (key, claimed) = named(info);
        say_of("interrupted", &key, claimed);
    }
    say(&format!("listed {}", infos.len()));
}

/// Not a test: the process that is killed.
#[test]
#[ignore = "started by another test"]
fn child() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (Ok(dir), Some(round), Some(steps)) = (std::env::var(DIR), number(ROUND), number(STEPS)) else { return };
    // End the line that libtest has begun with the name of the test.
    println!();
    say("opening");
    let engine = open(dir.as_ref());
    say("opened");
    list(&engine);
    let ops: &Ops = &engine.manager("ops").unwrap();
    let held: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|me| {
                scope.spawn(move || {
                    let rng = Rng::new(round ^ me << 32);
                    let mut caller = Caller { ops, rng, me, held: Vec::new(), tokens: HashMap::new() };
                    (0..steps).for_each(|_| caller.step());
                    caller.held
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    say("closing");
    // Claims are alive. For them the abort is the death of the process.
    engine.abort().unwrap();
    say("closed");
    // Dropped after the engine is closed.
    drop(held);
}
