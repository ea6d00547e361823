//! The decision of an operator about an interrupted record.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::protocol::rules::Ending;
use crate::types::failure::Failure;
use crate::types::value::Value;

/// The result of an interrupted operation, as found out by the caller.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Resolution<T, E = Failure> {
    /// The operation has not happened: the next caller runs it.
    Retry,
    /// The operation has happened and succeeded with this value.
    Succeed(T),
    /// The operation has failed for good.
    Fail(E),
}

impl<T, E> fmt::Debug for Resolution<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Retry => "Retry",
            Self::Succeed(_) => "Succeed(..)",
            Self::Fail(_) => "Fail(..)",
        })
    }
}

/// Converts a resolution with an encoded outcome.
impl From<Resolution<Value, Value>> for Ending {
    fn from(resolution: Resolution<Value, Value>) -> Self {
        match resolution {
            Resolution::Retry => Self::Release,
            Resolution::Succeed(bytes) => Self::Succeed(bytes),
            Resolution::Fail(bytes) => Self::Fail(bytes),
        }
    }
}
