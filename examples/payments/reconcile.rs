//! What a start does about the payments that the last process left unfinished.

use std::fmt;

use oncekey::{
    Status,
    admin::{RecordFilter, Resolution},
    http::Requests,
};

use crate::desk::charged;
use crate::ledger::{CHARGE, Ledger};

/// What became of the payments that were interrupted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Settled {
    pub(crate) charged: usize,
    pub(crate) not_charged: usize,
}

/// The point of `OnInterrupted::Hold`. A process that dies between the charge and its answer leaves a payment of which the
/// engine cannot know whether it happened: to run it again might charge twice, to refuse it might lose a sale. So it is held,
/// every retry is told so, and nothing moves until somebody has asked the one who knows. Here that is the ledger, and asking
/// it is a program's job; it might as well be a person's, days later.
///
/// It is sound because the store's lock was ours before the ledger was read: whoever could still have appended to it is dead.
/// A remote processor may be at work on a dead process's request; it must be given `Charge::effect_id`, so that the retry
/// repeats that request instead of making another.
pub(crate) fn settle(payments: &Requests, ledger: &Ledger) -> anyhow::Result<Settled> {
    let (charges, payments) = (ledger.charges()?, payments.manager());
    let held = RecordFilter::new().manager(payments.name()).status(Status::Interrupted);
    let mut settled = Settled::default();
    for record in payments.engine().records(held)? {
        let record = record?;
        let resolution = if let Some(charge) = charges.get(&record.effect_id(CHARGE)) {
            settled.charged += 1;
            Resolution::Succeed(charged(charge))
        } else {
            settled.not_charged += 1;
            Resolution::Retry
        };
        payments.resolve(record.key(), resolution)?;
    }
    Ok(settled)
}

impl Settled {
    /// Reads what `Display` wrote, for the self-test.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let mut counts = line.strip_prefix("interrupted payments: ")?.split(' ').filter_map(|word| word.parse().ok());
        Some(Self { charged: counts.next()?, not_charged: counts.next()? })
    }
}

impl fmt::Display for Settled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { charged, not_charged } = self;
        write!(f, "interrupted payments: {charged} resolved as charged, {not_charged} free to be retried")
    }
}
