//! Whether a history of concurrent calls agrees with some order of them, one after the other, in which no call comes before one
//! that had been answered when it began.
//!
//! Wing and Gong's search with Lowe's memory of what was tried (Testing and verifying concurrent objects, 1993; Testing for
//! linearizability, 2017), for each key alone: keys have nothing in common. A history is cut where all threads are joined, and
//! there time passes or the process restarts; calls that a kill cut off have happened before it, or never.

use std::collections::HashSet;

use crate::model::{Answer, Hour, Model, Op};

/// One call on one key. Times are places in the record of the whole history.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) thread: usize,
    pub(crate) op: Op,
    pub(crate) began: usize,
    /// Nothing if the process was killed before.
    pub(crate) answer: Option<(usize, Answer)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Boundary {
    Later(Hour),
    Restart,
}

/// What happened to one key between two boundaries, and the boundary behind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Phase {
    pub(crate) calls: Vec<Call>,
    pub(crate) boundaries: Vec<Boundary>,
}

/// Where a key's history stops to make sense: the phase that no order of its calls explains, and how the key may have been
/// before it.
#[derive(Debug)]
pub(crate) struct Violation {
    pub(crate) phase: usize,
    pub(crate) before: HashSet<Model>,
}

pub(crate) fn check(start: Model, phases: &[Phase]) -> Result<(), Violation> {
    let mut states = HashSet::from([start]);
    for (phase, Phase { calls, boundaries }) in phases.iter().enumerate() {
        let after = explain(calls, &states);
        if after.is_empty() {
            return Err(Violation { phase, before: states });
        }
        states = after
            .into_iter()
            .map(|state| {
                boundaries.iter().fold(state, |state, boundary| match boundary {
                    Boundary::Later(hours) => state.later(*hours),
                    Boundary::Restart => state.restarted(),
                })
            })
            .collect();
    }
    Ok(())
}

/// How the key may be after these calls.
fn explain(calls: &[Call], before: &HashSet<Model>) -> HashSet<Model> {
    assert!(calls.len() <= 128, "a phase of {} calls", calls.len());
    let answered = (0..calls.len()).filter(|call| calls[*call].answer.is_some()).fold(0, |set, call| set | 1 << call);
    let (mut tried, mut after) = (HashSet::new(), HashSet::new());
    let mut left: Vec<(u128, Model)> = before.iter().map(|state| (0, *state)).collect();
    while let Some((done, state)) = left.pop() {
        if !tried.insert((done, state)) {
            continue;
        }
        if done & answered == answered {
            after.insert(state);
        }
        // Whatever begins later than this was begun after an answer that is not in the order yet.
        let open = (0..calls.len()).filter(|call| done & 1 << call == 0);
        let until = open.clone().filter_map(|call| calls[call].answer.map(|(at, _)| at)).min().unwrap_or(usize::MAX);
        for call in open.filter(|call| calls[*call].began < until) {
            let answer = calls[call].answer.as_ref().map(|(_, answer)| answer);
            left.extend(state.step(&calls[call].op, answer).map(|state| (done | 1 << call, state)));
        }
    }
    after
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Outcome, Refusal, SUCCESS_TTL};

    const FIRST: Answer = Answer::Claimed { token: 7, attempt: 1 };
    const SUCCEED: Op = Op::Succeed { token: 7, value: 1 };
    const ONE: Answer = Answer::Finished(Outcome::Success(1));

    /// Calls with when they began and were answered.
    fn phase(calls: &[(Op, usize, usize, Answer)]) -> Phase {
        let call = |(op, began, at, answer): &(Op, usize, usize, Answer)| Call {
            thread: 0,
            op: *op,
            began: *began,
            answer: (*at != usize::MAX).then_some((*at, *answer)),
        };
        Phase { calls: calls.iter().map(call).collect(), boundaries: Vec::new() }
    }

    fn is_right(phases: &[Phase]) -> bool {
        check(Model::new(false), phases).is_ok()
    }

    #[test]
    fn one_after_the_other_and_side_by_side() {
        let begun = (Op::Begin, 0, 1, FIRST);
        assert!(is_right(&[phase(&[begun, (SUCCEED, 2, 3, Answer::Done), (Op::Get, 4, 5, ONE)])]));
        // A look beside the ending may see it or not.
        assert!(is_right(&[phase(&[begun, (SUCCEED, 2, 9, Answer::Done), (Op::Get, 4, 5, ONE)])]));
        assert!(is_right(&[phase(&[begun, (SUCCEED, 2, 9, Answer::Done), (Op::Begin, 4, 5, Answer::InProgress)])]));
    }

    #[test]
    fn what_no_order_explains() {
        let begun = (Op::Begin, 0, 1, FIRST);
        let ended = (SUCCEED, 2, 3, Answer::Done);
        let second = Answer::Claimed { token: 8, attempt: 1 };
        // Two owners; an ending that is not seen; a value from nowhere; one that is seen and then not; an older token.
        assert!(!is_right(&[phase(&[begun, (Op::Begin, 2, 3, second)])]));
        assert!(!is_right(&[phase(&[begun, ended, (Op::Wait, 4, 5, Answer::InProgress)])]));
        assert!(!is_right(&[phase(&[begun, ended, (Op::Get, 4, 5, Answer::Finished(Outcome::Success(2)))])]));
        let looks = [(Op::Get, 4, 5, ONE), (Op::Wait, 6, 7, Answer::InProgress)];
        assert!(!is_right(&[phase(&[begun, (SUCCEED, 2, 9, Answer::Done), looks[0], looks[1]])]));
        let again = (Op::Begin, 4, 5, Answer::Claimed { token: 6, attempt: 2 });
        assert!(!is_right(&[phase(&[begun, (Op::Release { token: 7 }, 2, 3, Answer::Done), again])]));
        assert!(!is_right(&[phase(&[begun, (SUCCEED, 2, 3, Answer::Refused(Refusal::ClaimLost))])]));
    }

    #[test]
    fn a_call_that_was_cut_off_has_happened_or_not() {
        let cut = phase(&[(Op::Begin, 0, 1, FIRST), (SUCCEED, 2, usize::MAX, Answer::Done)]);
        let killed = Phase { boundaries: vec![Boundary::Restart], ..cut };
        let look = |answer| phase(&[(Op::Begin, 4, 5, answer)]);
        assert!(is_right(&[killed.clone(), look(ONE)]));
        assert!(is_right(&[killed.clone(), look(Answer::Interrupted)]));
        assert!(!is_right(&[killed.clone(), look(Answer::InProgress)]));
        assert!(!is_right(&[killed.clone(), look(Answer::Claimed { token: 9, attempt: 2 })]), "held for somebody to resolve");
        assert!(!is_right(&[killed, look(ONE), look(Answer::Interrupted)]));
    }

    #[test]
    fn time_passes_at_boundaries() {
        let ended = phase(&[(Op::Begin, 0, 1, FIRST), (SUCCEED, 2, 3, Answer::Done)]);
        let after = |hours| Phase { boundaries: vec![Boundary::Later(hours)], ..ended.clone() };
        let replayed = phase(&[(Op::Begin, 4, 5, ONE)]);
        let anew = phase(&[(Op::Begin, 4, 5, Answer::Claimed { token: 8, attempt: 1 })]);
        assert!(is_right(&[after(SUCCESS_TTL - 1), replayed.clone()]));
        assert!(!is_right(&[after(SUCCESS_TTL - 1), anew.clone()]), "early");
        assert!(is_right(&[after(SUCCESS_TTL), anew]));
        assert!(!is_right(&[after(SUCCESS_TTL), replayed]), "late");
    }
}
