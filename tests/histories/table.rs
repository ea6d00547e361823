//! The rules of a table, for one transaction after the other.

use crate::model::{Answer, Op, ROWS, RowOp};

/// The table between two calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Table {
    rows: [u64; ROWS],
    closed: bool,
}

impl Table {
    /// Does the same as the step of a key.
    pub(crate) fn step(self, op: &Op, answer: Option<&Answer>) -> Option<Self> {
        let range = |from| {
            let mut read = self.rows;
            read[..from].fill(0);
            Answer::Rows(read)
        };
        let (right, written) = match (op, answer) {
            (Op::Later(_) | Op::Joins | Op::Loses | Op::Adopts | Op::Dies, _) => return Some(self),
            (Op::Closing | Op::Close, _) => return Some(Self { closed: true, ..self }),
            (_, Some(Answer::Closed)) => return self.closed.then_some(self),
            _ if self.closed => return None,
            (_, Some(Answer::Busy)) => return Some(self),
            (Op::Rows(RowOp::Put { row, value }), _) => (Answer::Done, Some((*row, *value))),
            (Op::Rows(RowOp::Read { from }), _) => (range(*from), None),
            (Op::Rows(RowOp::ReadAndPut { from, row, value }), _) => (range(*from), Some((*row, *value))),
            _ => panic!("{op:?} is of no table"),
        };
        let mut next = self;
        if let Some((row, value)) = written {
            next.rows[row] = value;
        }
        answer.is_none_or(|answer| *answer == right).then_some(next)
    }

    pub(crate) fn restarted(self) -> Self {
        Self { closed: false, ..self }
    }
}
