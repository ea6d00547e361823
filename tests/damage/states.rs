//! The contents of keys and rows, and all contents that they have had.

use std::collections::BTreeMap;

use oncekey::{Engine, Interruption, RecordInfo, Result, Status, Value, admin::RecordFilter};

/// The name of a record or a row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name {
    is_row: bool,
    /// The manager or the table.
    of: String,
    key: Vec<u8>,
}

impl Name {
    pub(crate) fn record(manager: &str, key: impl AsRef<[u8]>) -> Self {
        Self { is_row: false, of: manager.to_owned(), key: key.as_ref().to_vec() }
    }

    pub(crate) fn row(table: &str, key: impl AsRef<[u8]>) -> Self {
        Self { is_row: true, of: table.to_owned(), key: key.as_ref().to_vec() }
    }

    pub(crate) fn is_of(&self, manager: &str) -> bool {
        !self.is_row && self.of == manager
    }

    pub(crate) fn key(&self) -> &[u8] {
        &self.key
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = if self.is_row { "row" } else { "record" };
        write!(f, "{what} {} {}", self.of, self.key.escape_ascii())
    }
}

/// The visible content of a row, or of a record without its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Record {
        status: Status,
        interruption: Option<Interruption>,
        /// The recovery point and the checkpoint.
        point: (String, Option<Vec<u8>>),
        outcome: Option<(bool, Vec<u8>)>,
        rest: String,
    },
    Row(Vec<u8>),
}

impl Content {
    /// Returns the content after the process has ended.
    fn at_rest(self) -> Self {
        match self {
            Self::Record { status: Status::InProgress, point, outcome, rest, .. } => {
                let (status, interruption) = (Status::Interrupted, Some(Interruption::ProcessEnded));
                Self::Record { status, interruption, point, outcome, rest }
            }
            other => other,
        }
    }

    /// Returns the content before the ending, for a record that was only begun and ended.
    pub(crate) fn before_its_end(&self) -> Self {
        match self {
            Self::Record { rest, .. } => {
                let (status, interruption) = (Status::Interrupted, Some(Interruption::ProcessEnded));
                let point = ("started".to_owned(), None);
                Self::Record { status, interruption, point, outcome: None, rest: rest.clone() }
            }
            Self::Row(_) => panic!("a row has no end"),
        }
    }

    pub(crate) fn is_interrupted(&self) -> bool {
        matches!(self, Self::Record { status: Status::Interrupted, .. })
    }

    /// Returns true if its process ended while it was in progress.
    pub(crate) fn is_dead(&self) -> bool {
        self.is_interrupted() && self.before_its_end() == *self
    }

    /// Returns true if it is a success with this value, which follows codec, digest and length.
    pub(crate) fn is_success(&self, value: &[u8]) -> bool {
        let Self::Record { status: Status::Succeeded, outcome: Some((true, bytes)), .. } = self else { return false };
        bytes.get(17..) == Some(value)
    }
}

/// The states of each key in order. Before the first, each was absent.
#[derive(Clone, Debug, Default)]
pub(crate) struct States(BTreeMap<Name, Vec<Option<Content>>>);

impl States {
    pub(crate) fn note(&mut self, name: &Name, content: Option<Content>) {
        self.0.entry(name.clone()).or_insert_with(|| vec![None]).push(content.map(Content::at_rest));
    }

    /// Returns the last state of each key.
    pub(crate) fn latest(&self) -> impl Iterator<Item = (&Name, Option<&Content>)> {
        self.0.iter().map(|(name, states)| (name, states.last().and_then(Option::as_ref)))
    }

    pub(crate) fn knows(&self, name: &Name) -> bool {
        self.0.contains_key(name)
    }

    pub(crate) fn ever(&self, name: &Name, content: Option<&Content>) -> bool {
        self.0.get(name).is_some_and(|states| states.iter().any(|state| state.as_ref() == content))
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &Name> {
        self.0.keys()
    }
}

pub(crate) fn see(engine: &Engine, name: &Name) -> Result<Option<Content>> {
    if name.is_row {
        return Ok(engine.table(&name.of)?.get(&name.key)?.map(|value| Content::Row(value.to_vec())));
    }
    Ok(engine.raw(&name.of)?.get(&name.key)?.map(|record| {
        let info = record.info();
        let context: Vec<_> = info.context().iter().map(|(name, value)| (name.to_owned(), value.to_vec())).collect();
        let rest = (info.fingerprint(), context, info.attempt(), info.generation(), info.policy());
        let outcome = |value: &Value, is_ok| Some((is_ok, value.to_vec()));
        Content::Record {
            status: record.status(),
            interruption: info.interruption(),
            outcome: record.outcome().and_then(|it| it.map_or_else(|v| outcome(v, false), |v| outcome(v, true))),
            point: (info.recovery_point().to_owned(), info.checkpoint().map(<[u8]>::to_vec)),
            rest: format!("{rest:?}"),
        }
    }))
}

fn named(info: &RecordInfo) -> Name {
    Name::record(info.manager(), info.key().as_bytes())
}

/// Returns all names that listings contain.
pub(crate) fn all(engine: &Engine) -> Result<Vec<Name>> {
    let mut names = Vec::new();
    for info in engine.records(RecordFilter::new())? {
        names.push(named(&info?));
    }
    for row in engine.table("rows")?.iter()? {
        names.push(Name::row("rows", row?.0));
    }
    Ok(names)
}

pub(crate) fn interrupted(engine: &Engine) -> Result<Vec<Name>> {
    engine.interrupted()?.map(|info| Ok(named(&info?))).collect()
}
