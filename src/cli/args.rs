//! The command line as it is written.

use std::ffi::OsString;
use std::num::{NonZeroU64, NonZeroUsize};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use super::out::{Done, Stop};
use super::place::{Place, unescape};
use crate::{
    Status,
    admin::RecordFilter,
    clock::{Clock as _, SystemClock},
};

const AFTER_HELP: &str = "\
A KEY is written as `list` prints it: its parts with / between them, other bytes as \\xNN.

Examples:
  oncekey list payments.oncekey --status interrupted
  oncekey get payments.oncekey payments user-7/order-42 --effect charge
  oncekey resolve payments.oncekey payments user-7/order-42 --retry
  oncekey list payments.oncekey --status interrupted --older-than 1h --json | jq -r .key
  oncekey export payments.oncekey | gzip > payments.jsonl.gz
  gunzip < payments.jsonl.gz | oncekey import copy.oncekey

Exit status: 0 done; 1 no such record, or not in a state for it; 2 wrong command line, or no store
there; 3 the store is in use; 4 damaged; 5 anything else. A reader that closes the pipe early is no fault.";

/// Looks into a store of idempotency keys while no service has it open.
#[derive(Debug, Parser)]
#[command(name = "oncekey", version, after_help = AFTER_HELP, disable_help_subcommand = true, max_term_width = 120)]
pub(super) struct Asked {
    #[command(subcommand)]
    pub(super) verb: Verb,
    /// Print for machines: one JSON value, or one for each record, a line each; errors too.
    #[arg(long, global = true)]
    json: bool,
    /// Open a store on NFS, 9p, SMB or FUSE too.
    #[arg(long, global = true)]
    pub(super) any_file_system: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Prints how many records there are, of which managers, in which states, and what the last owner left.
    Stats {
        /// The directory of the store.
        store: PathBuf,
    },
    /// Lists the records that match, without their outcomes.
    List {
        /// The directory of the store.
        store: PathBuf,
        #[command(flatten)]
        filter: Filter,
        /// At most so many records, from 1.
        #[arg(long, value_name = "COUNT")]
        limit: Option<NonZeroUsize>,
        /// Print their number only.
        #[arg(long, conflicts_with = "limit")]
        count: bool,
    },
    /// Prints all of one record.
    Get {
        #[command(flatten)]
        at: At,
        /// Also print the effect id of this label, to ask downstream whether the effect happened.
        #[arg(long, value_name = "LABEL")]
        effect: Option<String>,
        /// Write nothing but the bytes of the outcome, as they are stored.
        #[arg(long)]
        outcome: bool,
    },
    /// Settles an interrupted record: it did not happen, or it did and this is its outcome.
    ///
    /// FILE holds the outcome as its manager encodes it, e.g. as `get --outcome` wrote that of another key; - is standard
    /// input. Where the service has a program of its own for this, use that: it knows the types.
    Resolve {
        #[command(flatten)]
        at: At,
        #[command(flatten)]
        how: How,
    },
    /// Takes a key in progress away from its owner: the record becomes interrupted.
    ///
    /// An owner lives only as long as the process that has the store open. So where the store can be opened here, its owners
    /// are dead and their keys are interrupted already, which this says. In a running service, call `Manager::revoke`.
    Revoke {
        #[command(flatten)]
        at: At,
    },
    /// Forgets a finished record, so that the next request with its key runs again.
    Forget {
        #[command(flatten)]
        at: At,
    },
    /// Removes a record without a live owner, whatever its state.
    Remove {
        #[command(flatten)]
        at: At,
    },
    /// Deletes what has expired.
    Compact {
        /// The directory of the store.
        store: PathBuf,
    },
    /// Reads everything and prints what is damaged; the exit status is 4 if anything is.
    Verify {
        /// The directory of the store.
        store: PathBuf,
    },
    /// Prints the records that match, a line of JSON each, with every field.
    ///
    /// Records only: tables are the service's own data. Bytes are text where they are that, else {"base64": ...}; times are
    /// milliseconds since 1970, and null is for ever.
    Export {
        /// The directory of the store.
        store: PathBuf,
        #[command(flatten)]
        filter: Filter,
    },
    /// Imports what `export` wrote, from a file or standard input; makes the store if there is none.
    ///
    /// A key that has a record already is left as it is, and counted. Every record keeps its fields but those that number and
    /// time it in its store: it gets another generation, token and store, and its TTL starts again. It keeps its effect ids.
    /// One in progress is interrupted.
    Import {
        /// The directory of the store.
        store: PathBuf,
        /// The file to read; - is standard input, and the default.
        file: Option<PathBuf>,
    },
    /// Measures durable cycles a second on the disk of a directory, beside the ideal log there.
    ///
    /// Works in a directory of its own, which it removes.
    Bench {
        /// A directory on the disk to measure.
        #[arg(default_value = ".")]
        directory: PathBuf,
        /// With so many threads; otherwise with 1, 8 and 64.
        #[arg(long, value_name = "COUNT")]
        threads: Option<NonZeroUsize>,
        /// How long each of the two runs.
        #[arg(long, value_name = "COUNT", default_value = "1")]
        seconds: NonZeroU64,
    },
    /// Reads the record store of a damaged store without its snapshots, and verifies it.
    ///
    /// Moves the snapshots into STORE/store/snapshots.N; deletes nothing. Helps where only a snapshot is damaged. Keep a copy
    /// of the whole store first.
    Repair {
        /// The directory of the store.
        store: PathBuf,
    },
    /// Prints the completions of a shell.
    Completions {
        /// bash, elvish, fish, powershell or zsh.
        shell: Shell,
    },
    /// Prints the manual page, for `man -l`.
    Man,
}

/// A key of a manager of a store.
#[derive(Debug, Args)]
pub(super) struct At {
    /// The directory of the store.
    pub(super) store: PathBuf,
    /// The name of the manager.
    manager: String,
    /// The key, as `list` prints it.
    key: OsString,
}

impl At {
    pub(super) fn place(&self) -> Place {
        Place { manager: self.manager.clone(), key: self.key.clone() }
    }
}

/// What became of an interrupted operation.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct How {
    /// Nothing happened: the next request runs it.
    #[arg(long)]
    pub(super) retry: bool,
    /// It happened, and this is its outcome.
    #[arg(long, value_name = "FILE")]
    pub(super) succeed: Option<PathBuf>,
    /// It failed for good, and this is its failure.
    #[arg(long, value_name = "FILE")]
    pub(super) fail: Option<PathBuf>,
}

/// Which records. All conditions must hold.
#[derive(Debug, Args)]
pub(super) struct Filter {
    /// Of this manager.
    #[arg(long, value_name = "NAME")]
    manager: Option<String>,
    /// In this state; given more than once, in any of them.
    #[arg(long, value_name = "STATUS")]
    status: Vec<State>,
    /// Last changed longer ago than this: 30s, 15m, 2h, 7days.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
    /// Last changed since then.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    newer_than: Option<Duration>,
    /// Whose whole key begins with these bytes.
    #[arg(long, value_name = "PREFIX")]
    key_prefix: Option<OsString>,
    /// At this recovery point.
    #[arg(long, value_name = "POINT")]
    recovery_point: Option<String>,
    /// Whose context has this value under this name. Given more than once, all must hold.
    #[arg(long, value_name = "NAME=VALUE", value_parser = name_and_value)]
    context: Vec<(String, String)>,
}

/// A [`Status`] as it is typed.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum State {
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
    pub(super) fn records(&self) -> Done<RecordFilter> {
        let mut filter = RecordFilter::new();
        if let Some(manager) = &self.manager {
            filter = filter.manager(manager);
        }
        for status in &self.status {
            filter = filter.status((*status).into());
        }
        if let Some(prefix) = &self.key_prefix {
            filter = filter.key_prefix(unescape(prefix.as_bytes()));
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
            let since = ago(age)?;
            filter = filter.matching(move |info| info.updated_at() >= since);
        }
        Ok(filter)
    }
}

fn ago(age: Duration) -> Done<SystemTime> {
    let long = || Stop::Usage("the duration is longer than time has been counted".to_owned());
    SystemClock.wall().checked_sub(age).ok_or_else(long)
}

fn name_and_value(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("it is written as NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// What the arguments ask for; the command comes first. `Err` with a text to print where they ask for help.
pub(super) fn parse(args: Vec<OsString>) -> Done<Result<Asked, String>> {
    let name = OsString::from("oncekey");
    Asked::try_parse_from(std::iter::once(name).chain(args)).map(Ok).or_else(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Ok(Err(error.render().to_string())),
        _ => Err(Stop::Usage(error.render().to_string().trim_start_matches("error: ").trim_end().to_owned())),
    })
}

/// The completions of a shell.
pub(super) fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Asked::command(), "oncekey", &mut script);
    script
}

/// The manual page.
pub(super) fn manual() -> Vec<u8> {
    let mut page = Vec::new();
    // Writing to memory cannot fail.
    let _ = clap_mangen::Man::new(Asked::command()).render(&mut page);
    page
}
