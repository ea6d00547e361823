//! Decides whether a history of concurrent calls agrees with some order of the calls, one after the other. In that
//! order, no call comes before a call that was answered before it began.
//!
//! The method is the search of Wing and Gong, with Lowe's memory of tried states (Testing and verifying concurrent
//! objects, 1993; Testing for linearizability, 2017). Each key is checked alone: keys share only the time, which passes
//! by calls that belong to all keys.
//!
//! A history is cut at each open of the store. A call that was cut off has happened before the open, or never.

use std::collections::HashSet;
use std::fmt::{self, Debug};
use std::hash::Hash;

use crate::model::{Answer, Hour, Incarnation, Model, Op};
use crate::table::Table;

/// One call on one key. Times are positions in the record of the whole history.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) by: Incarnation,
    pub(crate) op: Op,
    pub(crate) began: usize,
    /// `None` if the process was killed before the answer, or if the call does not report when it is done.
    pub(crate) answer: Option<(usize, Answer)>,
}

/// The calls on one key between two opens of the store.
#[derive(Clone, Debug, Default)]
pub(crate) struct Phase {
    /// The hour of the open. `None` if several processes may have the store open, each of which joins the others: then
    /// the time stood still meanwhile.
    pub(crate) opened: Option<Hour>,
    pub(crate) calls: Vec<Call>,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "opened at hour {:?}", self.opened)?;
        for Call { by: Incarnation { process, nth }, op, began, answer } in &self.calls {
            match answer {
                Some((at, answer)) => writeln!(f, "  {process}.{nth} {began} to {at}: {op:?} -> {answer:?}")?,
                None => writeln!(f, "  {process}.{nth} {began}: {op:?}")?,
            }
        }
        Ok(())
    }
}

/// The state of an object between two calls: of a key, or of the table.
pub(crate) trait Object: Copy + Debug + Default + Eq + Hash {
    /// Returns the object after a call with this answer, or `None` if the call cannot have this answer now. A call
    /// without an answer was cut off.
    fn step(self, by: Incarnation, op: &Op, answer: Option<&Answer>) -> Option<Self>;

    /// Returns the object after a change that may happen between two calls, if there is one.
    fn declared(self) -> Option<Self>;

    /// Returns the object after another process has opened the store, at this hour.
    fn restarted(self, hour: Hour) -> Self;
}

impl Object for Model {
    fn step(self, by: Incarnation, op: &Op, answer: Option<&Answer>) -> Option<Self> {
        Self::step(self, by, op, answer)
    }

    fn declared(self) -> Option<Self> {
        Self::declared(self)
    }

    fn restarted(self, hour: Hour) -> Self {
        Self::restarted(self, hour)
    }
}

impl Object for Table {
    fn step(self, _by: Incarnation, op: &Op, answer: Option<&Answer>) -> Option<Self> {
        Self::step(self, op, answer)
    }

    fn declared(self) -> Option<Self> {
        None
    }

    fn restarted(self, _hour: Hour) -> Self {
        Self::restarted(self)
    }
}

/// The first phase of a key that no order of its calls explains, and the possible states of the key before it.
#[derive(Debug)]
pub(crate) struct Violation<M> {
    pub(crate) phase: usize,
    pub(crate) before: HashSet<M>,
}

pub(crate) fn check<M: Object>(phases: &[Phase]) -> Result<(), Violation<M>> {
    let mut states = HashSet::from([M::default()]);
    for (phase, Phase { opened, calls }) in phases.iter().enumerate() {
        let before = states.iter().map(|state| opened.map_or(*state, |hour| state.restarted(hour))).collect();
        states = explain(calls, &before);
        if states.is_empty() {
            return Err(Violation { phase, before });
        }
    }
    Ok(())
}

/// Returns the possible states of the key after these calls.
fn explain<M: Object>(calls: &[Call], before: &HashSet<M>) -> HashSet<M> {
    assert!(calls.len() <= 128, "a phase of {} calls", calls.len());
    let answered = (0..calls.len()).filter(|call| calls[*call].answer.is_some()).fold(0, |set, call| set | 1 << call);
    let (mut tried, mut after) = (HashSet::new(), HashSet::new());
    let mut left: Vec<(u128, M)> = before.iter().map(|state| (0, *state)).collect();
    while let Some((done, state)) = left.pop() {
        if !tried.insert((done, state)) {
            continue;
        }
        left.extend(state.declared().map(|state| (done, state)));
        if done & answered == answered {
            after.insert(state);
        }
        // A call that began later than this began after an answer that is not in the order yet.
        let open = (0..calls.len()).filter(|call| done & 1 << call == 0);
        let until = open.clone().filter_map(|call| calls[call].answer.map(|(at, _)| at)).min().unwrap_or(usize::MAX);
        for call in open.filter(|call| calls[*call].began < until) {
            let answer = calls[call].answer.as_ref().map(|(_, answer)| answer);
            left.extend(state.step(calls[call].by, &calls[call].op, answer).map(|state| (done | 1 << call, state)));
        }
    }
    after
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Ending, Outcome, Refusal, RowOp, SUCCESS_TTL, UNFINISHED_TTL, Unfinished};

    const BEGIN: Op = Op::Begin { request: 0, resumes: false, waits: false };
    const FIRST: Answer = claimed(7, 7, 1);
    const SUCCEED: Op = Op::End { token: 7, ending: Ending::Finish(Outcome::Success(1)) };
    const RELEASE: Op = Op::End { token: 7, ending: Ending::Release };
    const ONE: Answer = Answer::Finished(Outcome::Success(1));
    const NEVER: usize = usize::MAX;

    const fn claimed(token: u64, generation: u64, attempt: u32) -> Answer {
        Answer::Claimed { token, generation, attempt }
    }

    const fn is(status: Unfinished) -> Answer {
        Answer::Unfinished { status, attempt: 1 }
    }

    /// Returns the calls with the times of their begin and answer.
    fn phase(opened: Hour, calls: &[(Op, usize, usize, Answer)]) -> Phase {
        let call = |(op, began, at, answer): &(Op, usize, usize, Answer)| Call {
            by: Incarnation::default(),
            op: *op,
            began: *began,
            answer: (*at != NEVER).then_some((*at, *answer)),
        };
        Phase { opened: Some(opened), calls: calls.iter().map(call).collect() }
    }

    fn is_right(calls: &[(Op, usize, usize, Answer)]) -> bool {
        check::<Model>(&[phase(0, calls)]).is_ok()
    }

    #[test]
    fn sequential_and_concurrent_calls_are_explained() {
        let begun = (BEGIN, 0, 1, FIRST);
        assert!(is_right(&[begun, (SUCCEED, 2, 3, Answer::Done), (Op::Get, 4, 5, ONE)]));
        // A read during the ending may return the state before it or after it.
        assert!(is_right(&[begun, (SUCCEED, 2, 9, Answer::Done), (Op::Get, 4, 5, ONE)]));
        assert!(is_right(&[begun, (SUCCEED, 2, 9, Answer::Done), (BEGIN, 4, 5, is(Unfinished::InProgress))]));
    }

    #[test]
    fn histories_that_no_order_explains_are_rejected() {
        let begun = (BEGIN, 0, 1, FIRST);
        let ended = (SUCCEED, 2, 3, Answer::Done);
        // Two owners; an ending that is not seen; an unknown value; a value that disappears; an older token; the next
        // attempt in another generation; a claim that is lost without a new owner; another request.
        assert!(!is_right(&[begun, (BEGIN, 2, 3, claimed(8, 8, 1))]));
        assert!(!is_right(&[begun, ended, (Op::Wait, 4, 5, Answer::Is(Unfinished::InProgress))]));
        assert!(!is_right(&[begun, ended, (Op::Get, 4, 5, Answer::Finished(Outcome::Success(2)))]));
        let seen_and_not = [(Op::Get, 4, 5, ONE), (Op::Wait, 6, 7, Answer::Is(Unfinished::InProgress))];
        assert!(!is_right(&[begun, (SUCCEED, 2, 9, Answer::Done), seen_and_not[0], seen_and_not[1]]));
        let released = (RELEASE, 2, 3, Answer::Done);
        assert!(is_right(&[begun, released, (BEGIN, 4, 5, claimed(8, 7, 2))]));
        assert!(!is_right(&[begun, released, (BEGIN, 4, 5, claimed(6, 7, 2))]));
        assert!(!is_right(&[begun, released, (BEGIN, 4, 5, claimed(8, 8, 2))]));
        assert!(!is_right(&[begun, (SUCCEED, 2, 3, Answer::Refused(Refusal::ClaimLost))]));
        assert!(!is_right(&[begun, (BEGIN, 2, 3, Answer::Mismatch)]));
    }

    #[test]
    fn a_busy_call_has_not_happened_and_no_ending_is_busy() {
        let begun = (BEGIN, 0, 1, FIRST);
        assert!(is_right(&[(BEGIN, 0, 1, Answer::Busy), (Op::Get, 2, 3, Answer::Absent)]));
        assert!(!is_right(&[(BEGIN, 0, 1, Answer::Busy), (Op::Get, 2, 3, is(Unfinished::InProgress))]));
        assert!(is_right(&[begun, (Op::Remove, 2, 3, Answer::Busy)]));
        assert!(!is_right(&[begun, (RELEASE, 2, 3, Answer::Busy)]));
    }

    #[test]
    fn a_live_claim_outlives_a_close_and_nothing_else_does() {
        let begun = (BEGIN, 0, 1, FIRST);
        let close = |alive| (Op::Close, 2, 3, Answer::Alive(alive));
        assert!(is_right(&[begun, close(2), (SUCCEED, 4, 5, Answer::Done)]));
        assert!(is_right(&[close(0), (Op::Get, 4, 5, Answer::Closed)]));
        // A claim that the close forgets or loses; reads and begins after the close; a revoke that is refused.
        assert!(!is_right(&[begun, close(0)]));
        assert!(!is_right(&[begun, close(1), (SUCCEED, 4, 5, Answer::Closed)]));
        assert!(!is_right(&[close(0), (Op::Get, 4, 5, Answer::Absent)]));
        assert!(!is_right(&[close(0), (BEGIN, 4, 5, FIRST)]));
        assert!(!is_right(&[begun, close(1), (Op::Revoke, 4, 5, Answer::Closed)]));
        // A revoked claim is lost, whether the store has ended or not.
        let revoked = (Op::Revoke, 4, 5, Answer::Done);
        for lost in [Answer::Refused(Refusal::ClaimLost), Answer::Closed] {
            assert!(is_right(&[begun, close(1), revoked, (SUCCEED, 6, 7, lost)]));
        }
        assert!(!is_right(&[begun, close(1), revoked, (SUCCEED, 6, 7, Answer::Done)]));
        assert!(!is_right(&[begun, (Op::Get, 2, 3, Answer::Closed)]), "the engine was not closed");
        // A claim may end after the close has begun to refuse calls, and before it counts.
        let closing = (Op::Closing, 2, 9, Answer::Done);
        let refused = (Op::Get, 3, 4, Answer::Closed);
        let counted = (Op::Close, 2, 9, Answer::Alive(0));
        assert!(is_right(&[begun, closing, counted, refused, (SUCCEED, 5, 6, Answer::Done)]));
        assert!(!is_right(&[begun, closing, counted, refused]));
        // A call that is in flight when calls are first refused may take effect after that, but not after the close.
        let removed = (Op::Remove, 4, 9, Answer::Did(true));
        let seen = |at| (Op::Revoke, at, at + 1, Answer::Refused(Refusal::NotInProgress));
        let ended = [begun, (SUCCEED, 2, 3, Answer::Done), removed, (Op::Closing, 5, 9, Answer::Done)];
        let end = (Op::Close, 5, 9, Answer::Alive(1));
        assert!(is_right(&[&ended[..], &[(Op::Get, 6, 7, Answer::Closed), seen(8), end]].concat()));
        assert!(!is_right(&[&ended[..], &[(Op::Get, 6, 7, Answer::Closed), end, seen(10)]].concat()));
        // A call during the close may have either answer.
        let beside = (Op::Close, 2, 9, Answer::Alive(1));
        for answer in [Answer::Closed, is(Unfinished::InProgress)] {
            assert!(is_right(&[begun, beside, (Op::Get, 4, 5, answer)]));
        }
        let ended = [phase(0, &[begun, close(1), (SUCCEED, 4, 5, Answer::Done)]), phase(0, &[(Op::Get, 6, 7, ONE)])];
        assert!(check::<Model>(&ended).is_ok());
    }

    /// The processes of several, with their calls: who, what, from, to, answer.
    fn several(calls: &[(u8, Op, usize, usize, Answer)]) -> bool {
        let call = |(process, op, began, at, answer): &(u8, Op, usize, usize, Answer)| Call {
            // The second incarnation of a process has a number above 10.
            by: Incarnation { process: process % 10, nth: process / 10 },
            op: *op,
            began: *began,
            answer: (*at != NEVER).then_some((*at, *answer)),
        };
        let joined = |process| (process, Op::Joins, 0, 1, Answer::Done);
        let all = [joined(0), joined(1)].iter().chain(calls).map(call).collect();
        check::<Model>(&[Phase { opened: None, calls: all }]).is_ok()
    }

    #[test]
    fn a_reader_of_the_claim_of_a_dead_process_finds_it_interrupted() {
        let (begun, dies) = ((0, BEGIN, 2, 3, FIRST), (0, Op::Dies, 4, 9, Answer::Done));
        let looks = |began, at, status| (1, Op::Get, began, at, is(status));
        let (runs, interrupted) = (Unfinished::InProgress, Unfinished::Interrupted);
        assert!(several(&[begun, looks(5, 6, runs), dies]) && several(&[begun, dies, looks(5, 6, interrupted)]));
        assert!(several(&[begun, dies, looks(10, 11, interrupted)]));
        assert!(!several(&[begun, dies, looks(10, 11, runs)]), "the lock is free");
        assert!(!several(&[begun, looks(10, 11, interrupted)]), "nobody has died");
        assert!(!several(&[begun, (1, Op::Dies, 4, 9, Answer::Done), looks(10, 11, interrupted)]), "another has died");
        assert!(!several(&[begun, dies, looks(5, 6, interrupted), looks(7, 8, runs)]));
        // A begin that was cut off may come after the death.
        let cut = (0, BEGIN, 2, NEVER, FIRST);
        assert!(several(&[cut, dies, (1, Op::Get, 10, 11, Answer::Absent), looks(12, 13, interrupted)]));
        // The TTL starts with the declaration. A process that joins declares all.
        let later = |began, hours| (1, Op::Later(hours), began, began + 1, Answer::Done);
        let long = later(10, UNFINISHED_TTL);
        assert!(several(&[begun, dies, long, looks(12, 13, interrupted)]));
        let joins = (2, Op::Joins, 10, 11, Answer::Done);
        assert!(!several(&[begun, dies, joins, later(12, UNFINISHED_TTL), looks(14, 15, interrupted)]));
    }

    #[test]
    fn a_claim_is_declared_dead_only_while_its_owner_has_no_lock() {
        let (begun, loses) = ((0, BEGIN, 2, 3, FIRST), (0, Op::Loses, 4, 9, Answer::Done));
        let looks = |began, at, status| (1, Op::Get, began, at, is(status));
        let (runs, interrupted) = (Unfinished::InProgress, Unfinished::Interrupted);
        let adopts = (0, Op::Adopts, 20, 21, Answer::Done);
        let ends = |answer| (10, SUCCEED, 30, 31, answer);
        let lost = Answer::Refused(Refusal::ClaimLost);
        for (status, end) in [(runs, Answer::Done), (interrupted, lost)] {
            assert!(several(&[begun, loses, looks(10, 11, status), adopts, ends(end)]));
        }
        let adopted = [begun, loses, adopts, looks(22, 23, runs)];
        assert!(!several(&[adopted.as_slice(), &[looks(24, 25, interrupted)]].concat()), "it has a lock again");
        assert!(!several(&[adopted.as_slice(), &[ends(lost)]].concat()));
        assert!(
            !several(&[begun, loses, looks(10, 11, interrupted), adopts, ends(Answer::Done)]),
            "nothing of it lands"
        );
        // A claim of the next incarnation has a lock.
        let next = (10, BEGIN, 10, 11, FIRST);
        assert!(several(&[loses, next, looks(12, 13, runs)]) && !several(&[loses, next, looks(12, 13, interrupted)]));
    }

    #[test]
    fn a_range_is_read_at_one_moment_with_what_is_written() {
        let is_right = |calls: &[_]| check::<Table>(&[phase(0, calls)]).is_ok();
        let put = |from, row, value| Op::Rows(RowOp::ReadAndPut { from, row, value });
        let read = |from| Op::Rows(RowOp::Read { from });
        let (none, first) = (Answer::Rows([0; 4]), Answer::Rows([1, 0, 0, 0]));
        assert!(is_right(&[(put(0, 0, 1), 0, 1, none), (read(0), 2, 3, first), (read(1), 4, 5, none)]));
        assert!(is_right(&[(put(0, 0, 1), 0, 9, none), (put(0, 1, 2), 1, 8, first)]));
        // Neither transaction saw the other: write skew.
        assert!(!is_right(&[(put(0, 0, 1), 0, 9, none), (put(0, 1, 2), 1, 8, none)]));
        assert!(!is_right(&[(put(0, 0, 1), 0, 1, none), (read(0), 2, 3, none)]));
        assert!(is_right(&[(put(0, 0, 1), 0, 1, Answer::Busy), (read(0), 2, 3, none)]));
    }

    #[test]
    fn an_unanswered_call_may_have_happened_or_not() {
        let cut = phase(0, &[(BEGIN, 0, 1, FIRST), (SUCCEED, 2, NEVER, Answer::Done)]);
        let then = |answer| check::<Model>(&[cut.clone(), phase(0, &[(BEGIN, 4, 5, answer)])]).is_ok();
        assert!(then(ONE));
        assert!(then(is(Unfinished::Interrupted)));
        assert!(!then(is(Unfinished::InProgress)));
        assert!(!then(claimed(9, 7, 2)), "held until it is resolved");
        let both = [phase(0, &[(BEGIN, 4, 5, ONE)]), phase(0, &[(BEGIN, 6, 7, is(Unfinished::Interrupted))])];
        assert!(check::<Model>(&[cut, both[0].clone(), both[1].clone()]).is_err());
    }

    #[test]
    fn time_passes_by_calls_and_between_them() {
        let (begun, ended) = ((BEGIN, 0, 1, FIRST), (SUCCEED, 2, 3, Answer::Done));
        let again = claimed(8, 8, 1);
        for (hours, is_expired) in [(SUCCESS_TTL - 1, false), (SUCCESS_TTL, true)] {
            let later = (Op::Later(hours), 4, 5, Answer::Done);
            assert_eq!(is_right(&[begun, ended, later, (BEGIN, 6, 7, ONE)]), !is_expired);
            assert_eq!(is_right(&[begun, ended, later, (BEGIN, 6, 7, again)]), is_expired);
            let reopened =
                |answer| check::<Model>(&[phase(0, &[begun, ended]), phase(hours, &[(BEGIN, 6, 7, answer)])]).is_ok();
            assert_eq!((reopened(ONE), reopened(again)), (!is_expired, is_expired));
        }
        // A call during the passing of time may return either state.
        let beside = (Op::Later(SUCCESS_TTL), 4, 9, Answer::Done);
        assert!(is_right(&[begun, ended, beside, (BEGIN, 6, 7, ONE)]));
        assert!(is_right(&[begun, ended, beside, (BEGIN, 6, 7, again)]));
        // A record with an owner never expires. A record without an owner does.
        let long = (Op::Later(UNFINISHED_TTL), 2, 3, Answer::Done);
        assert!(is_right(&[begun, long, (Op::Get, 4, 5, is(Unfinished::InProgress))]));
        let found = |hours, answer| {
            let calls = [(Op::Later(hours), 2, 3, Answer::Done), (Op::Get, 4, 5, answer)];
            check::<Model>(&[phase(0, &[begun]), phase(9, &calls)]).is_ok()
        };
        assert!(found(UNFINISHED_TTL - 1, is(Unfinished::Interrupted)));
        assert!(found(UNFINISHED_TTL, Answer::Absent));
    }
}
