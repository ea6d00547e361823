//! Operations that this process owns without a claim. They begin and end by key, and a token fences their ending.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Manager;
use crate::protocol::Begun;
use crate::protocol::rules::Ending;
use crate::types::error::Result;
use crate::types::key::IntoKey;
use crate::types::options::CallOptions;
use crate::types::token::Token;

impl<T: Serialize + DeserializeOwned, E: Serialize + DeserializeOwned> Manager<T, E> {
    /// Begins the operation, or takes it over, for this *process*. Returns the token for [`success`](Manager::success),
    /// [`fail`](Manager::fail) or [`release`](Manager::release). If it returns `None`, do not run the operation.
    ///
    /// A thread that ends before it calls one of these leaves the key in progress until the process ends, or until the
    /// key is [revoked](Manager::revoke). Prefer [`begin`](Manager::begin).
    ///
    /// ```
    /// # use oncekey::{Engine, ErrorKind, Manager};
    /// # let engine = Engine::temporary()?;
    /// let payments: Manager<u64> = engine.manager("payments")?;
    /// let late = payments.initiate("order-42")?.unwrap();
    /// payments.release("order-42", late)?;
    /// let owner = payments.initiate("order-42")?.unwrap();
    /// assert_eq!(
    ///     payments.success("order-42", late, &1).unwrap_err().kind(),
    ///     ErrorKind::ClaimLost
    /// );
    /// payments.success("order-42", owner, &1999)?;
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`begin_with`](Manager::begin_with).
    #[must_use = "only with the token can the key be ended; without one, do not run the operation"]
    pub fn initiate(&self, key: impl IntoKey) -> Result<Option<Token>> {
        self.initiate_with(key, CallOptions::new())
    }

    /// Begins the operation as [`initiate`](Manager::initiate) does, with options such as the fingerprint of the
    /// request. Returns `None` for a mismatch too; [`begin_with`](Manager::begin_with) distinguishes the reasons.
    ///
    /// ```
    /// # use oncekey::{Begin, CallOptions, Engine, Fingerprint, Manager};
    /// # let engine = Engine::temporary()?;
    /// let payments: Manager<u64> = engine.manager("payments")?;
    /// let of = |cents: u64| {
    ///     Ok::<_, oncekey::Error>(CallOptions::new().fingerprint(Fingerprint::of(&cents)?))
    /// };
    /// let owner = payments.initiate_with("order-42", of(1999)?)?.unwrap();
    /// payments.success("order-42", owner, &1999)?;
    /// assert!(matches!(payments.begin_with("order-42", of(2999)?)?, Begin::Mismatch(_)));
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`begin_with`](Manager::begin_with).
    #[must_use = "only with the token can the key be ended; without one, do not run the operation"]
    pub fn initiate_with(&self, key: impl IntoKey, options: CallOptions) -> Result<Option<Token>> {
        let (id, wait) = (self.id(key)?, options.wait.unwrap_or_default());
        let begun = self.begin_within(&id, &self.start(options, true)?, wait)?;
        Ok(if let Begun::Claimed(info) = begun { Some(Token::new(info.stored().token)) } else { None })
    }

    /// Stores the success of the operation that this [`initiate`](Manager::initiate) began. Repeating the call changes
    /// nothing.
    ///
    /// # Errors
    ///
    /// `ClaimLost` if the record no longer belongs to this `initiate`: it has ended in another way, was revoked or
    /// removed, has a later owner, or comes from an earlier process. Nothing is stored then.
    pub fn success(&self, key: impl IntoKey, token: Token, value: &T) -> Result<()> {
        let id = self.id(key)?;
        let ending = Ending::Succeed(self.encode(&id, value)?);
        self.engine.protocol().end_by_key(&id, token, &ending, self.options.schema)
    }

    /// Stores the failure of the operation that this [`initiate`](Manager::initiate) began. Repeating the call changes
    /// nothing.
    ///
    /// # Errors
    ///
    /// As [`success`](Manager::success), and `EngineFailure` for a [`Failure`](crate::Failure) that was made from an
    /// error of this crate.
    pub fn fail(&self, key: impl IntoKey, token: Token, error: &E) -> Result<()> {
        let id = self.id(key)?;
        let ending = self.failing(&id, error)?;
        self.engine.protocol().end_by_key(&id, token, &ending, self.options.schema)
    }
}

impl<T, E> Manager<T, E> {
    /// Releases the key that this [`initiate`](Manager::initiate) began: nothing has happened, and the next caller runs
    /// the operation.
    ///
    /// # Errors
    ///
    /// As [`success`](Manager::success).
    pub fn release(&self, key: impl IntoKey, token: Token) -> Result<()> {
        self.engine.protocol().end_by_key(&self.id(key)?, token, &Ending::Release, self.options.schema)
    }
}
