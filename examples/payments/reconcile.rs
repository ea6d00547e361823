//! Resolves the payments that the last process left unfinished.

use std::fmt;

use oncekey::{
    Status,
    admin::{RecordFilter, Resolution},
    http::Requests,
};

use crate::desk::charged;
use crate::ledger::{CHARGE, Ledger};

/// The numbers of interrupted payments that were resolved, by result.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Resolved {
    pub(crate) charged: usize,
    pub(crate) not_charged: usize,
}

/// Resolves each interrupted payment by asking the ledger.
///
/// This is the purpose of `OnInterrupted::Hold`. If a process dies between the charge and its answer, the engine cannot
/// know whether the charge happened. To run the payment again might charge twice; to reject it might lose a sale. So
/// the payment is held, and retries get 409, until it is resolved. Here a program asks the ledger. A person could do it
/// too, days later.
///
/// This is safe because the store is locked before the ledger is read: any process that could have appended to the
/// ledger is dead. A remote processor may still work on a dead process's request. Give it `Charge::effect_id`, so that
/// a retry repeats that request instead of making a new one.
pub(crate) fn resolve_interrupted(payments: &Requests, ledger: &Ledger) -> anyhow::Result<Resolved> {
    let (charges, payments) = (ledger.charges()?, payments.manager());
    let held = RecordFilter::new().manager(payments.name()).status(Status::Interrupted);
    let mut resolved = Resolved::default();
    for record in payments.engine().records(held)? {
        let record = record?;
        let resolution = if let Some(charge) = charges.get(&record.effect_id(CHARGE)) {
            resolved.charged += 1;
            Resolution::Succeed(charged(charge))
        } else {
            resolved.not_charged += 1;
            Resolution::Retry
        };
        payments.resolve_if_unchanged(&record, resolution)?;
    }
    Ok(resolved)
}

impl Resolved {
    /// Parses the output of `Display`, for the self-test.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let mut counts = line.strip_prefix("interrupted payments: ")?.split(' ').filter_map(|word| word.parse().ok());
        Some(Self { charged: counts.next()?, not_charged: counts.next()? })
    }
}

impl fmt::Display for Resolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { charged, not_charged } = self;
        write!(f, "interrupted payments: {charged} resolved as charged, {not_charged} free to be retried")
    }
}
