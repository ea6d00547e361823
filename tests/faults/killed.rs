//! A process is killed, the store is opened again, and then the power fails. The data that the second open found may
//! never have been synced.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::check::Found;
use crate::disk::Image;
use crate::history::{Known, Step};
use crate::record::{Event, Log, Node};
use crate::workload::Run;

/// Joins both lives into one recorded life. `next` began with the directory after the kill of the first life at `cut`.
/// `image` is everything that the system had received until then, and `found` is its content.
pub(crate) fn joined(first: &Run, cut: usize, image: &Image, found: &Found, next: &Run) -> Run {
    let log = joined_log(&first.log, cut, image, &next.log);
    // Everything that an open serves is durable, no matter which process wrote it.
    let opened = cut + next.phases[1].0;
    let served = |at: usize| if at <= cut { at } else { opened };
    let mut steps = BTreeMap::new();
    for key in first.known.keys() {
        let (happened, held) = first.known.holds(key, found.get(key), cut, first.now(cut));
        let old = first.known.steps.get(key).into_iter().flatten().take(happened);
        let mut old: Vec<_> = old
            .map(|step| Step { answered: served(step.answered), durable: served(step.durable), ..step.clone() })
            .collect();
        if let Some(last) = old.last_mut() {
            last.expected = held;
        }
        steps.insert(key.clone(), old);
    }
    for (key, added) in &next.known.steps {
        let added = added.iter().map(|step| Step {
            began: step.began + cut,
            answered: step.answered.saturating_add(cut),
            durable: step.durable.saturating_add(cut),
            ..step.clone()
        });
        steps.entry(key.clone()).or_default().extend(added);
    }
    let until = |(from, _): &&(usize, _)| *from <= cut;
    let phases = first.phases.iter().filter(until).copied();
    let phases = phases.chain(next.phases.iter().map(|(from, phase)| (from + cut, *phase))).collect();
    let times = first.times.iter().filter(|(from, _)| *from <= cut).copied();
    let times = times.chain(next.times.iter().map(|(from, now)| (from + cut, *now))).collect();
    let known = Arc::new(Known { initial: first.known.initial.clone(), steps });
    Run { setup: next.setup, log, known, phases, times, from: cut }
}

fn joined_log(first: &Log, cut: usize, image: &Image, next: &Log) -> Log {
    let mut log = Log { nodes: first.nodes.clone(), events: first.events[..cut].to_vec() };
    let paths = image.paths();
    let made: BTreeSet<Node> = next.events.iter().filter_map(made).collect();
    let mut numbers = Vec::new();
    for (node, info) in next.nodes.iter().enumerate() {
        if made.contains(&node) {
            log.nodes.push(info.clone());
            numbers.push(log.nodes.len() - 1);
        } else {
            numbers.push(paths[&info.path]);
        }
    }
    log.events.extend(next.events.iter().map(|event| renumbered(event, &numbers, cut)));
    log
}

fn made(event: &Event) -> Option<Node> {
    if let Event::Created { node, .. } = event { Some(*node) } else { None }
}

fn renumbered(event: &Event, numbers: &[Node], cut: usize) -> Event {
    let mut event = event.clone();
    match &mut event {
        Event::Synced { node, before } => {
            *node = numbers[*node];
            *before += cut;
        }
        Event::Write { node, .. }
        | Event::Truncate { node, .. }
        | Event::WriteSynced { node }
        | Event::RangePushed { node } => *node = numbers[*node],
        Event::Created { dir, node, .. } => (*dir, *node) = (numbers[*dir], numbers[*node]),
        Event::Removed { dir, .. } => *dir = numbers[*dir],
        Event::Renamed { dir, to, .. } => (*dir, *to) = (numbers[*dir], numbers[*to]),
        Event::Mark(_) => {}
    }
    event
}
