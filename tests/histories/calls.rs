//! Makes the calls of the model on an engine.

use std::time::Duration;

use oncekey::{
    Begin, CallOptions, Claim, EndError, Engine, Error, ErrorKind, Fingerprint, Finished, Manager, ManagerOptions,
    OnInterrupted, Result, Status, Waited, admin::Resolution,
};

use super::model::{
    Answer, EXTENDED, Ending, FAILURE_TTL, Hour, Op, Outcome, ROWS, Refusal, Request, RowOp, UNFINISHED_TTL, Unfinished,
};

pub(crate) type Ops = Manager<u64, u64>;
/// A claim and its key.
pub(crate) type Held = (usize, Claim<u64, u64>);

pub(crate) const fn hours(hours: Hour) -> Duration {
    Duration::from_secs(hours * 3600)
}

pub(crate) fn manager(engine: &Engine, name: &str, success_ttl: Hour) -> Ops {
    let options = ManagerOptions::new()
        .success_ttl(hours(success_ttl))
        .failure_ttl(hours(FAILURE_TTL))
        .released_ttl(hours(UNFINISHED_TTL))
        .interrupted_ttl(hours(UNFINISHED_TTL));
    engine.manager_with(name, options).unwrap()
}

/// Makes a call and returns the engine's answer. Returns `Err` if the model has no such answer. A new claim, or one
/// that could not end, is held.
pub(crate) fn ask(
    ops: &Ops,
    (key, name): (usize, &str),
    op: Op,
    claim: Option<Held>,
    patience: Duration,
    held: &mut Vec<Held>,
) -> Result<Answer> {
    let answer = match op {
        Op::Begin { request, resumes, waits } => {
            begun(ops, (key, name), request, resumes, waits.then_some(patience), held)
        }
        Op::End { ending, .. } => {
            let (key, claim) = claim.unwrap();
            ended(claim, ending).map(|()| Answer::Done).map_err(|lost| {
                if lost.kind() != ErrorKind::ClaimLost {
                    held.push((key, lost.claim));
                }
                lost.error
            })
        }
        Op::Drop { releases, .. } => {
            let (_, mut claim) = claim.unwrap();
            claim.release_on_drop(releases);
            Ok(Answer::Done)
        }
        Op::Initiate => ops
            .initiate(name)
            .map(|token| token.map_or(Answer::Did(false), |token| Answer::Initiated { token: token.get() })),
        Op::Wait => match ops.wait(name, patience)? {
            // Call once more, to get the error of the closed store.
            Waited::Closed => ops.get(name).map(|_| Answer::Absent),
            other => Ok(waited(&other)),
        },
        Op::Get => ops.get(name).map(|record| {
            record.map_or(Answer::Absent, |record| match record.outcome() {
                Some(done) => Answer::Finished(outcome(done)),
                None => unfinished(record.status(), record.info().attempt()),
            })
        }),
        Op::EndByKey { token, ending } => {
            let token = token.to_string().parse().unwrap();
            done(match ending {
                Ending::Finish(Outcome::Success(value)) => ops.success(name, token, &value),
                Ending::Finish(Outcome::Failure(value)) => ops.fail(name, token, &value),
                Ending::Release | Ending::Interrupt => ops.release(name, token),
            })
        }
        Op::Resolve(ending) => done(ops.resolve(name, resolution(ending))),
        Op::Extend => ops.extend(name, hours(EXTENDED)).map(Answer::Did),
        Op::Remove => ops.remove(name).map(Answer::Did),
        Op::Revoke => done(ops.revoke(name).map(drop)),
        Op::Reopen => ops.forget(name).map(Answer::Did),
        Op::Rows(op) => rows(ops.engine(), op),
        Op::Close => closed(ops.engine()),
        Op::Later(_) | Op::Closing | Op::Joins | Op::Loses | Op::Adopts | Op::Dies => {
            panic!("{op:?} is no call to the engine")
        }
    };
    answer.or_else(refused)
}

fn closed(engine: &Engine) -> Result<Answer> {
    match engine.clone().close() {
        Ok(()) => Ok(Answer::Alive(0)),
        Err(error) if error.kind() == ErrorKind::ClaimsAlive => {
            let message = error.to_string();
            Ok(Answer::Alive(message.split(' ').next().unwrap().parse().unwrap()))
        }
        Err(error) => Err(error),
    }
}

pub(crate) const TABLE: &str = "rows";

pub(crate) fn row_key(row: usize) -> [u8; 1] {
    [u8::try_from(row).unwrap()]
}

/// Makes a call on the table. A call that reads and writes is one transaction.
fn rows(engine: &Engine, op: RowOp) -> Result<Answer> {
    let (from, put) = match op {
        RowOp::Put { row, value: 0 } => return done(engine.table(TABLE)?.remove(row_key(row))),
        RowOp::Put { row, value } => return done(engine.table(TABLE)?.insert(row_key(row), value.to_be_bytes())),
        RowOp::Read { from } => (from, None),
        RowOp::ReadAndPut { from, row, value } => (from, Some((row, value))),
    };
    engine.atomic_phase(|tx| {
        let table = tx.table(TABLE)?;
        let mut read = [0; ROWS];
        for row in table.range(row_key(from)..) {
            let (key, value) = row?;
            read[usize::from(key[0])] = u64::from_be_bytes(value[..].try_into().unwrap());
        }
        match put {
            Some((row, 0)) => table.remove(row_key(row))?,
            Some((row, value)) => table.insert(row_key(row), value.to_be_bytes())?,
            None => {}
        }
        Ok(Answer::Rows(read))
    })
}

fn begun(
    ops: &Ops,
    (key, name): (usize, &str),
    request: Request,
    resumes: bool,
    patience: Option<Duration>,
    held: &mut Vec<Held>,
) -> Result<Answer> {
    let policy = if resumes { OnInterrupted::Resume } else { OnInterrupted::Hold };
    let mut options = CallOptions::new().on_interrupted(policy);
    if request > 0 {
        options = options.fingerprint(Fingerprint::of(&request)?);
    }
    let begun = match patience {
        Some(patience) => ops.begin_with(name, options.wait(patience)),
        None => ops.begin_with(name, options),
    };
    Ok(match begun? {
        Begin::Claimed(claim) => {
            let (token, generation, attempt) = (claim.token(), claim.generation(), claim.attempt());
            held.push((key, claim));
            Answer::Claimed { token, generation, attempt }
        }
        Begin::Replay(done) => Answer::Finished(outcome(done.outcome())),
        Begin::InProgress(pending) => unfinished(pending.info().status(), pending.info().attempt()),
        Begin::Interrupted(info) => unfinished(info.status(), info.attempt()),
        Begin::Paused(info) => panic!("{info}: no manager here has a pause"),
        Begin::Mismatch(_) => Answer::Mismatch,
    })
}

fn ended(claim: Claim<u64, u64>, ending: Ending) -> std::result::Result<(), EndError<Claim<u64, u64>>> {
    let info = |done: Finished<u64, u64>| done.info().clone();
    match ending {
        Ending::Finish(Outcome::Success(value)) => claim.succeed(&value).map(info),
        Ending::Finish(Outcome::Failure(value)) => claim.fail(&value).map(info),
        Ending::Release => claim.release(),
        Ending::Interrupt => claim.interrupt(),
    }
    .map(drop)
}

fn resolution(ending: Ending) -> Resolution<u64, u64> {
    match ending {
        Ending::Finish(Outcome::Success(value)) => Resolution::Succeed(value),
        Ending::Finish(Outcome::Failure(value)) => Resolution::Fail(value),
        Ending::Release | Ending::Interrupt => Resolution::Retry,
    }
}

fn waited(waited: &Waited<u64, u64>) -> Answer {
    match waited {
        Waited::Finished(done) => Answer::Finished(outcome(done.outcome())),
        Waited::Absent => Answer::Absent,
        Waited::TimedOut | Waited::Closed => Answer::Is(Unfinished::InProgress),
        Waited::Released => Answer::Is(Unfinished::Released),
        Waited::Interrupted => Answer::Is(Unfinished::Interrupted),
    }
}

fn outcome(outcome: std::result::Result<&u64, &u64>) -> Outcome {
    match outcome {
        Ok(value) => Outcome::Success(*value),
        Err(value) => Outcome::Failure(*value),
    }
}

fn unfinished(status: Status, attempt: u32) -> Answer {
    let status = match status {
        Status::InProgress => Unfinished::InProgress,
        Status::Released => Unfinished::Released,
        Status::Interrupted => Unfinished::Interrupted,
        Status::Succeeded | Status::Failed => panic!("{status:?} without an outcome"),
    };
    Answer::Unfinished { status, attempt }
}

fn done(answer: Result<()>) -> Result<Answer> {
    answer.map(|()| Answer::Done)
}

fn refused(error: Error) -> Result<Answer> {
    // A transaction that conflicted too often has changed nothing either.
    if matches!(error.kind(), ErrorKind::Busy | ErrorKind::Conflict) {
        return Ok(Answer::Busy);
    }
    Ok(Answer::Refused(match error.kind() {
        ErrorKind::OwnedByClaim => Refusal::OwnedByClaim,
        ErrorKind::NotInProgress => Refusal::NotInProgress,
        ErrorKind::NotInterrupted => Refusal::NotInterrupted,
        ErrorKind::NotFound => Refusal::NotFound,
        ErrorKind::ClaimLost => Refusal::ClaimLost,
        _ => return Err(error),
    }))
}
