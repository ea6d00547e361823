//! Which `initiate` an ending by key belongs to.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The fencing token of one [`initiate`](crate::Manager::initiate): only with it can the key be ended by
/// [`success`](crate::Manager::success), [`fail`](crate::Manager::fail) or [`release`](crate::Manager::release).
///
/// A small number, to be kept where the operation ends: in another thread, in a message, in a job's arguments. As text it is its
/// decimal digits, which [`FromStr`] reads. A later token of the same store is larger.
///
/// ```
/// # use oncekey::{Engine, ErrorKind, Manager, Token};
/// # let engine = Engine::temporary()?;
/// let payments: Manager<u64> = engine.manager("payments")?;
/// let token = payments.initiate("order-42")?.unwrap();
/// let carried: Token = token.to_string().parse().unwrap();
/// payments.success("order-42", carried, &1999)?;
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(u64);

impl Token {
    pub(crate) fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number, for systems downstream that compare fencing tokens: see [`Claim::token`](crate::Claim::token).
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Token {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        text.parse().map(Self)
    }
}
