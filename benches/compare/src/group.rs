//! Two ways to use an engine from many threads: each thread commits for itself, or one thread commits for all.

use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use crate::systems::{Key, Session, Step, Store, System};

/// Each caller commits for itself.
pub(crate) struct Direct<S>(pub(crate) S);

struct DirectSession<'a, S>(&'a S);

impl<S: Store> System for Direct<S> {
    fn session(&self) -> Box<dyn Session + '_> {
        Box::new(DirectSession(&self.0))
    }

    fn forget(&self, keys: &[Key]) {
        forget(&self.0, keys);
    }
}

impl<S: Store> Session for DirectSession<'_, S> {
    fn step(&mut self, step: Step) -> bool {
        self.0.commit(&[step]).unwrap()[0]
    }
}

fn forget(store: &impl Store, keys: &[Key]) {
    let steps: Vec<Step> = keys.iter().map(|key| Step::Forget(*key)).collect();
    store.commit(&steps).unwrap();
}

/// The wrapper that a careful user writes around an engine without group commit. Steps queue up during a commit, and
/// the next commit takes them all.
pub(crate) struct Grouped<S: Store> {
    shared: Arc<Shared<S>>,
    writer: Option<JoinHandle<()>>,
}

struct Shared<S> {
    store: S,
    queue: Mutex<Queue>,
    work: Condvar,
}

#[derive(Default)]
struct Queue {
    steps: Vec<Step>,
    group: Arc<Group>,
    ended: bool,
}

/// Each group has a condition variable, so that a commit wakes only its own waiters.
#[derive(Default)]
struct Group {
    answers: Mutex<Option<Vec<bool>>>,
    done: Condvar,
}

impl<S: Store> Grouped<S> {
    pub(crate) fn start(store: S) -> Self {
        let shared = Arc::new(Shared { store, queue: Mutex::default(), work: Condvar::new() });
        let its = Arc::clone(&shared);
        let writer = Some(std::thread::spawn(move || its.write()));
        Self { shared, writer }
    }
}

impl<S: Store> Shared<S> {
    fn write(&self) {
        loop {
            let (steps, group) = {
                let mut queue = self.queue.lock().unwrap();
                while queue.steps.is_empty() {
                    if queue.ended {
                        return;
                    }
                    queue = self.work.wait(queue).unwrap();
                }
                (std::mem::take(&mut queue.steps), std::mem::take(&mut queue.group))
            };
            // A failed commit ends the benchmark: the state of the store is unknown.
            let answers = self.store.commit(&steps).unwrap_or_else(|cause| {
                eprintln!("a commit failed: {cause:#}");
                std::process::exit(1)
            });
            *group.answers.lock().unwrap() = Some(answers);
            group.done.notify_all();
        }
    }

    fn put(&self, step: Step) -> bool {
        let (group, index) = {
            let mut queue = self.queue.lock().unwrap();
            queue.steps.push(step);
            (Arc::clone(&queue.group), queue.steps.len() - 1)
        };
        self.work.notify_one();
        let mut answers = group.answers.lock().unwrap();
        loop {
            match &*answers {
                Some(answers) => return answers[index],
                None => answers = group.done.wait(answers).unwrap(),
            }
        }
    }
}

impl<S: Store> System for Grouped<S> {
    fn session(&self) -> Box<dyn Session + '_> {
        Box::new(GroupedSession(&self.shared))
    }

    fn forget(&self, keys: &[Key]) {
        forget(&self.shared.store, keys);
    }
}

struct GroupedSession<'a, S>(&'a Shared<S>);

impl<S: Store> Session for GroupedSession<'_, S> {
    fn step(&mut self, step: Step) -> bool {
        self.0.put(step)
    }
}

impl<S: Store> Drop for Grouped<S> {
    fn drop(&mut self) {
        self.shared.queue.lock().unwrap().ended = true;
        self.shared.work.notify_one();
        if let Some(writer) = self.writer.take() {
            writer.join().unwrap();
        }
    }
}
