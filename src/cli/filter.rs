//! The filters and the order of a listing.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::time::{Duration, SystemTime};

use clap::{Args, CommandFactory as _, Parser, ValueEnum};

use super::out::{Done, Stop};
use crate::{
    Status,
    admin::{KeyPrefix, RecordFilter},
    clock::{Clock as _, SystemClock},
};

/// Conditions that select records. All must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub(super) struct Filter {
    /// Only records of this manager.
    #[arg(long, value_name = "NAME")]
    manager: Option<String>,
    /// Only records in this state. If given several times, records in any of these states.
    #[arg(long, value_name = "STATUS", ignore_case = true)]
    status: Vec<State>,
    /// Only records last changed longer ago than this, such as 30s, 15m, 2h, 7days.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
    /// Only records changed within this time.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    newer_than: Option<Duration>,
    /// Only records inside this scope, at any depth: PART, or /PART/PART.
    #[arg(long, value_name = "SCOPE")]
    scope: Option<OsString>,
    /// Only records whose key, as it is printed, begins with this text.
    #[arg(long, value_name = "PREFIX")]
    key_prefix: Option<OsString>,
    /// Only records whose key, as it is printed, contains this text.
    #[arg(long, value_name = "TEXT")]
    contains: Option<String>,
    /// Only records at this recovery point.
    #[arg(long, value_name = "POINT")]
    recovery_point: Option<String>,
    /// Only records whose context has this value under this name. If given several times, all must hold.
    #[arg(long, value_name = "NAME=VALUE", value_parser = name_and_value)]
    context: Vec<(String, String)>,
}

/// The order of the records of a listing.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(super) struct Order {
    /// The order. Without it, by manager and key. Records that never expire come last.
    #[arg(long, value_name = "ORDER")]
    pub(super) sort: Option<Sort>,
    /// Print the last one first.
    #[arg(long)]
    pub(super) reverse: bool,
}

/// The conditions and the order of a listing, read from the fields of a form that are named as the options of `list`.
#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
pub(super) struct Query {
    #[command(flatten)]
    pub(super) filter: Filter,
    #[command(flatten)]
    pub(super) order: Order,
}

impl Query {
    /// Parses fields. Ignores those that are empty, and those of other names.
    pub(super) fn parse<'a>(fields: impl Iterator<Item = (&'a str, &'a str)>) -> Done<Self> {
        let command = Self::command();
        let option = |name: &str| command.get_arguments().find(|option| option.get_long() == Some(name));
        let fields = fields.filter(|(_, value)| !value.is_empty()).filter_map(|(name, value)| {
            // One argument that starts with the option's name: a value cannot become an option.
            let takes_value = option(name)?.get_action().takes_values();
            Some(if takes_value { format!("--{name}={value}") } else { format!("--{name}") })
        });
        Self::try_parse_from(fields).map_err(|error| Stop::Usage(complaint(&error)))
    }
}

/// Describes an error in the arguments, without a hint to `--help`.
fn complaint(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let text = text.trim_start_matches("error: ");
    text.split("\n\nFor more information").next().unwrap_or(text).trim_end().to_owned()
}

/// The order of a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Sort {
    Key,
    Changed,
    Created,
    Expires,
    Tries,
    Outcome,
}

/// A [`Status`] on the command line. Printed ones, such as `InProgress`, are accepted too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum State {
    #[value(aliases = ["inprogress", "in_progress"])]
    InProgress,
    Succeeded,
    Failed,
    Released,
    Interrupted,
}

impl From<State> for Status {
    fn from(state: State) -> Self {
        match state {
            State::InProgress => Self::InProgress,
            State::Succeeded => Self::Succeeded,
            State::Failed => Self::Failed,
            State::Released => Self::Released,
            State::Interrupted => Self::Interrupted,
        }
    }
}

impl Filter {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns true if no other state is selected.
    pub(super) fn selects_only(&self, status: Status) -> bool {
        self.status.iter().all(|state| Status::from(*state) == status)
    }

    pub(super) fn records(&self) -> Done<RecordFilter> {
        let mut filter = RecordFilter::new();
        if let Some(manager) = &self.manager {
            filter = filter.manager(manager);
        }
        for status in &self.status {
            filter = filter.status((*status).into());
        }
        if let Some(scope) = &self.scope {
            filter = filter.key_text_prefix(scope_prefix(scope.as_bytes())?);
        }
        if let Some(prefix) = &self.key_prefix {
            filter = filter.key_text_prefix(key_prefix(prefix)?);
        }
        if let Some(text) = self.contains.clone() {
            filter = filter.matching(move |info| info.key().to_string().contains(&text));
        }
        if let Some(point) = &self.recovery_point {
            filter = filter.recovery_point(point);
        }
        for (name, value) in &self.context {
            filter = filter.context(name, value.as_str());
        }
        if let Some(age) = self.older_than {
            filter = filter.updated_before(ago(age)?);
        }
        if let Some(age) = self.newer_than {
            filter = filter.updated_since(ago(age)?);
        }
        Ok(filter)
    }
}

/// Parses the beginning of printed keys. Rejects an empty text, with which every key begins.
pub(super) fn key_prefix(text: &OsStr) -> Done<KeyPrefix> {
    if text.is_empty() {
        return Err(Stop::Usage("the prefix of keys is empty: leave the option out to select all".to_owned()));
    }
    Ok(KeyPrefix::from_text(text.as_bytes())?)
}

fn scope_prefix(text: &[u8]) -> Done<KeyPrefix> {
    let parts = text.strip_prefix(b"/").unwrap_or(text);
    Ok(KeyPrefix::from_text([b"/", parts, b"/"].concat())?)
}

fn ago(age: Duration) -> Done<SystemTime> {
    let long = || Stop::Usage("the duration is too long".to_owned());
    SystemClock.wall().checked_sub(age).ok_or_else(long)
}

fn name_and_value(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("it is written as NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_of_a_form_never_becomes_another_option() {
        let parse = |fields: &[(&str, &str)]| Query::parse(fields.iter().copied());
        let query =
            parse(&[("manager", "--reverse"), ("contains", "x --sort=key"), ("help", "on"), ("json", "on"), ("", "x")]);
        let Query { filter, order } = query.unwrap();
        assert_eq!(filter.manager.as_deref(), Some("--reverse"));
        assert_eq!((filter.contains.as_deref(), order.sort, order.reverse), (Some("x --sort=key"), None, false));
        let Query { filter, order } = parse(&[("reverse", "on"), ("sort", "changed"), ("manager", "")]).unwrap();
        assert_eq!((filter, order.sort, order.reverse), (Filter::default(), Some(Sort::Changed), true));
        for unfit in [("status", "x"), ("older-than", "soon"), ("context", "no value"), ("sort", "")] {
            assert_eq!(parse(&[unfit]).is_err(), !unfit.1.is_empty(), "{unfit:?}");
        }
        let message = parse(&[("status", "gone")]).unwrap_err().message().unwrap();
        assert!(message.contains("'gone'") && !message.contains("--help"), "{message}");
    }
}
