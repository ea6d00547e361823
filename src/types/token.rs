//! Tokens, which tie an ending by key to its `initiate`.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The fencing token of one [`initiate`](crate::Manager::initiate). [`success`](crate::Manager::success),
/// [`fail`](crate::Manager::fail) and [`release`](crate::Manager::release) need it to end the key.
///
/// Keep the token where the operation ends: in another thread, in a message, or in the arguments of a job. The text of
/// a token is its number in decimal digits, which [`FromStr`] reads. Later tokens of the same store are larger.
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

    /// Returns the number, for downstream systems that compare fencing tokens. See
    /// [`Claim::token`](crate::Claim::token).
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
