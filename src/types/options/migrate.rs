//! Migrations: values stored before a deploy are read as the types of the new release.

use std::any::type_name;
use std::fmt::{self, Display};
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{ManagerOptions, invalid};
use crate::types::codec;
use crate::types::error::{self, Error, ErrorKind, Result};

/// The kind of outcome that a migration reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Success,
    Failure,
}

/// Decodes older bytes, migrates the value, and encodes the result. The first argument names the bytes in messages.
type Convert = Arc<dyn Fn(&dyn Display, &[u8]) -> Result<Vec<u8>> + Send + Sync>;

#[derive(Clone)]
struct Migration {
    /// `None` for a checkpoint, which has no schema.
    of: Option<(Part, u32)>,
    to: &'static str,
    convert: Convert,
}

/// The migrations of a manager.
#[derive(Clone, Default)]
pub(crate) struct Migrations(Arc<Vec<Migration>>);

impl ManagerOptions {
    /// Converts successes that were stored with schema `from` and type `Old` into the manager's type, each time one is
    /// read. May be called for several schemas.
    ///
    /// Use it when a deploy changes the type and raises the [`schema`](Self::schema), so that retries of earlier
    /// requests still get their outcome.
    ///
    /// The stored record does not change, and each read calls `f` again. So keep the migration until the records of
    /// that schema have expired. `f` runs on the reading thread with no lock held. If only the failures changed,
    /// `|same: T| same` keeps the successes. The guide on [limits](crate::guides::limits) lists the reads that do not
    /// migrate.
    ///
    /// ```
    /// # use oncekey::{Engine, Manager, ManagerOptions};
    /// # use serde::{Deserialize, Serialize};
    /// # let engine = Engine::temporary()?;
    /// # {
    /// #     #[derive(Serialize, Deserialize)]
    /// #     struct Receipt { cents: u64 }
    /// #     let payments: Manager<Receipt> = engine.manager("payments")?;
    /// #     payments.begin("order-42")?.into_claim().unwrap().succeed(&Receipt { cents: 1999 })?;
    /// # }
    /// /// As it was up to last week, under schema 0.
    /// #[derive(Serialize, Deserialize)]
    /// #[serde(rename = "Receipt")]
    /// struct OldReceipt { cents: u64 }
    ///
    /// #[derive(Serialize, Deserialize)]
    /// struct Receipt { cents: u64, currency: String }
    ///
    /// let options = ManagerOptions::new()
    ///     .schema(1)
    ///     .migrate(0, |old: OldReceipt| Receipt { cents: old.cents, currency: "EUR".to_owned() });
    /// let payments: Manager<Receipt> = engine.manager_with("payments", options)?;
    /// let replay = payments.execute("order-42", |_claim| unreachable!("it ran last week"));
    /// assert_eq!(replay.unwrap().value().currency, "EUR");
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn migrate<Old, New>(self, from: u32, f: impl Fn(Old) -> New + Send + Sync + 'static) -> Self
    where
        Old: Serialize + DeserializeOwned,
        New: Serialize + DeserializeOwned,
    {
        self.migrate_part(Some((Part::Success, from)), f)
    }

    /// Converts failures as [`migrate`](Self::migrate) converts successes.
    pub fn migrate_failure<Old, New>(self, from: u32, f: impl Fn(Old) -> New + Send + Sync + 'static) -> Self
    where
        Old: Serialize + DeserializeOwned,
        New: Serialize + DeserializeOwned,
    {
        self.migrate_part(Some((Part::Failure, from)), f)
    }

    /// Converts checkpoints of type `Old` into `New`, when a claim [decodes](crate::Claim::decode_checkpoint) one as
    /// `New`. May be called for any number of pairs of types.
    ///
    /// A checkpoint has no schema, and is recognised by the shape of its value. So a changed meaning of the same fields
    /// is not detected.
    pub fn migrate_checkpoint<Old, New>(self, f: impl Fn(Old) -> New + Send + Sync + 'static) -> Self
    where
        Old: Serialize + DeserializeOwned,
        New: Serialize + DeserializeOwned,
    {
        self.migrate_part(None, f)
    }

    fn migrate_part<Old, New>(mut self, of: Option<(Part, u32)>, f: impl Fn(Old) -> New + Send + Sync + 'static) -> Self
    where
        Old: Serialize + DeserializeOwned,
        New: Serialize + DeserializeOwned,
    {
        let convert = move |what: &dyn Display, bytes: &[u8]| {
            let new = f(codec::decode::<Old>(what, bytes)?);
            Ok(codec::encode_checked(format_args!("{what}, migrated,"), &new, u64::MAX)?.0)
        };
        let migration = Migration { of, to: type_name::<New>(), convert: Arc::new(convert) };
        Arc::make_mut(&mut self.migrations.0).push(migration);
        self
    }
}

impl Migrations {
    /// Checks that the migrations fit a manager of these types and this schema.
    ///
    /// # Errors
    ///
    /// `InvalidOptions` if a migration is from the manager's own schema, the second one from its schema, or to another
    /// type.
    pub(crate) fn check<T, E>(&self, schema: u32) -> Result<()> {
        for (n, migration) in self.0.iter().enumerate() {
            let Some((part, from)) = migration.of else { continue };
            let (name, to) = match part {
                Part::Success => ("successes", type_name::<T>()),
                Part::Failure => ("failures", type_name::<E>()),
            };
            if from == schema {
                return Err(invalid(&format!(
                    "a migration of {name} is from schema {from}, which is the manager's own"
                )));
            }
            if self.0.iter().take(n).any(|earlier| earlier.of == migration.of) {
                return Err(invalid(&format!("there are two migrations of {name} from schema {from}")));
            }
            if migration.to != to {
                let made = migration.to;
                return Err(invalid(&format!("the migration of {name} from schema {from} makes {made}, not {to}")));
            }
        }
        Ok(())
    }

    /// Decodes an outcome that was stored with schema `stored`, for a manager with schema `read`.
    pub(crate) fn decode<T: Serialize + DeserializeOwned>(
        &self,
        what: &impl Display,
        part: Part,
        (stored, read): (u32, u32),
        bytes: &[u8],
    ) -> Result<T> {
        if stored == read {
            return codec::decode(what, bytes);
        }
        let Some(migration) = self.0.iter().find(|migration| migration.of == Some((part, stored))) else {
            let message = format!("{what} was stored with schema {stored} and is read with {read}");
            return Err(Error::new(ErrorKind::TypeMismatch, message));
        };
        codec::decode(what, &(migration.convert)(what, bytes)?)
    }

    /// Decodes a checkpoint of this type, or of a type that is migrated to it.
    pub(crate) fn decode_checkpoint<C: Serialize + DeserializeOwned>(&self, bytes: &[u8]) -> Result<C> {
        let what = "a checkpoint";
        let to_this = self.0.iter().filter(|migration| migration.of.is_none() && migration.to == type_name::<C>());
        // The checkpoint is of one of these types. Do not count the errors of the others.
        let read = error::handled(|| {
            let converted = |migration: &Migration| codec::decode(what, &(migration.convert)(&what, bytes).ok()?).ok();
            codec::decode(what, bytes).ok().or_else(|| to_this.into_iter().find_map(converted))
        });
        read.map_or_else(|| codec::decode(what, bytes), Ok)
    }
}

impl fmt::Debug for Migrations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|migration| (migration.of, migration.to))).finish()
    }
}
