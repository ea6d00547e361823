//! The arguments of the command line.

use std::ffi::OsString;
use std::io::Write as _;
use std::num::{IntErrorKind, NonZeroU64, NonZeroUsize, ParseIntError};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;

use super::filter::{Filter, Order};
use super::location::Location;
use super::out::{Done, Stop};
use super::resolve::Resolve;
use super::typed_key::TypedKey;

macro_rules! examples {
    () => {
        "  oncekey doctor payments.oncekey
  oncekey list payments.oncekey --status interrupted
  oncekey get payments.oncekey payments /user-7/order-42 --effect charge
  oncekey resolve payments.oncekey payments /user-7/order-42 --retry
  oncekey resolve payments.oncekey payments order-7 --response 201 body.json --header 'Content-Type: application/json'
  oncekey resolve payments.oncekey --all --manager payments --older-than 1h --retry --dry-run
  oncekey list payments.oncekey --manager payments --status failed --json | jq -r .key |
    xargs -n 1 oncekey get payments.oncekey payments
  oncekey list payments.oncekey --scope user-7 --newer-than 1h --sort changed --reverse --limit 10
  oncekey watch payments.oncekey
  oncekey web payments.oncekey --port 8080
  oncekey backup payments.oncekey /backup/payments.2026-01-31
  oncekey export payments.oncekey | gzip > payments.jsonl.gz
  gunzip < payments.jsonl.gz | oncekey import copy.oncekey
  oncekey list postgres://app@db/payments --status interrupted
  oncekey migrate payments.oncekey postgres://app@db/payments
  oncekey schema --schema payments | psql postgres://owner@db/payments"
    };
}

macro_rules! exit_status {
    () => {
        "  0  done; also if the reader closes the pipe early
  1  no such record, or its state does not allow the command
  2  wrong command line, or no store there
  3  the store is in use, and the command cannot ask its owner
  4  the store is damaged
  5  any other error
  6  the doctor found no fault, but something that needs attention"
    };
}

const AFTER_HELP: &str = concat!(
    "A KEY is written as `list` prints it: its text; /PART/PART if it is made of parts, for example in a scope; \
     %NN for a byte, for example %20 for a blank.\n\n\
     A STORE is a directory, or the address of a database: postgres://USER@HOST/DATABASE. The variable PGPASSWORD is \
     its password, if the address has none.\n\nExamples:\n",
    examples!(),
    "\n\nExit status:\n",
    exit_status!(),
);

/// The sections of the manual page after the commands.
const SECTIONS: [(&str, &str); 2] = [("EXIT STATUS", exit_status!()), ("EXAMPLES", examples!())];

/// Reads and changes a store of idempotency keys, also while a service has it open.
#[derive(Debug, Parser)]
#[command(name = "oncekey", version, after_help = AFTER_HELP, disable_help_subcommand = true, max_term_width = 120)]
pub(super) struct Asked {
    #[command(subcommand)]
    pub(super) verb: Verb,
    /// Print JSON for machines: one value, or one line for each record. Errors are JSON too.
    #[arg(long, global = true)]
    json: bool,
    /// Allow stores on NFS, 9p, SMB and FUSE.
    #[arg(long, global = true)]
    pub(super) any_file_system: bool,
    /// Use the store in this schema of the database. Default: oncekey.
    #[arg(long, global = true, value_name = "NAME")]
    pub(super) schema: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Prints the number of records by manager and state, and whether the store was closed cleanly.
    Stats {
        /// The directory of the store, or the address of its database.
        store: Location,
    },
    /// Reports the problems of a store, and what to do next. Changes nothing.
    ///
    /// A finding names the command that helps, if there is one. The exit status is 0 if nothing needs to be done, 6 if
    /// the store works and needs attention, 2 if there is no store, 3 if a process has it open and does not answer, 4
    /// if it is damaged, 5 if it cannot be read.
    Doctor {
        /// The directory of the store, or the address of its database.
        store: Location,
        /// Do not read every record.
        #[arg(long)]
        quick: bool,
    },
    /// Lists the matching records without their outcomes.
    List {
        /// The directory of the store, or the address of its database.
        store: Location,
        #[command(flatten)]
        filter: Filter,
        /// Print at most this number of records. The minimum is 1.
        #[arg(long, value_name = "COUNT", value_parser = at_least_one::<NonZeroUsize>)]
        limit: Option<NonZeroUsize>,
        /// Print only the number of matching records.
        #[arg(long, conflicts_with_all = ["limit", "sort", "reverse"])]
        count: bool,
        #[command(flatten)]
        order: Order,
    },
    /// Lists the tables with the number of their rows.
    Tables {
        /// The directory of the store, or the address of its database.
        store: Location,
    },
    /// Lists the rows of a table.
    Rows {
        /// The directory of the store, or the address of its database.
        store: Location,
        /// The name of the table.
        table: String,
        /// Only rows whose key, as it is printed, begins with this text.
        #[arg(long, value_name = "PREFIX")]
        key_prefix: Option<OsString>,
        /// Print at most this number of rows. The minimum is 1.
        #[arg(long, value_name = "COUNT", value_parser = at_least_one::<NonZeroUsize>)]
        limit: Option<NonZeroUsize>,
        /// Print only the number of matching rows.
        #[arg(long, conflicts_with = "limit")]
        count: bool,
    },
    /// Prints one record with all its fields.
    Get {
        #[command(flatten)]
        at: At,
        /// Also print the effect id of this label. Ask the other system by this id whether the effect happened.
        #[arg(long, value_name = "LABEL")]
        effect: Option<String>,
        /// Print only the bytes of the outcome, as they are stored.
        #[arg(long)]
        outcome: bool,
    },
    /// Resolves interrupted records: releases the key, or stores an outcome. --undo takes a resolution back.
    ///
    /// FILE contains the outcome; `-` is standard input. The outcome is checked: by the types of the manager if the
    /// service has its own program, else by what the manager has stored before. A resolution can be undone until a
    /// caller receives the outcome, or claims the released key.
    Resolve(Box<Resolve>),
    /// Takes a key in progress from its owner. The record becomes interrupted.
    ///
    /// An owner lives only as long as the process that has the store open. If no process has the store open, all owners
    /// are dead and their keys are interrupted already. The command then only reports that.
    Revoke {
        #[command(flatten)]
        at: At,
    },
    /// Forgets a finished record. The next request with its key runs the operation again.
    Forget {
        #[command(flatten)]
        at: At,
    },
    /// Removes a record in any state, unless it has a live owner.
    Remove {
        #[command(flatten)]
        at: At,
    },
    /// Keeps a finished record longer: at least for DURATION from now.
    Extend {
        #[command(flatten)]
        at: At,
        /// A duration, for example 30s, 15m, 2h, 7days.
        #[arg(value_parser = humantime::parse_duration)]
        duration: Duration,
    },
    /// Prints the events of a store that another process has open, as they happen.
    ///
    /// The service does not wait for a slow reader: events that come faster than they are read are dropped, and a line
    /// says how many. Ends when the service closes the store.
    Watch {
        /// The directory of the store, or the address of its database.
        store: Location,
        /// End after this number of events. The minimum is 1.
        #[arg(long, value_name = "COUNT", value_parser = at_least_one::<NonZeroUsize>)]
        limit: Option<NonZeroUsize>,
    },
    /// Deletes expired records.
    Compact {
        /// The directory of the store, or the address of its database.
        store: Location,
    },
    /// Reads all data and prints what is damaged. The exit status is 4 if anything is.
    Verify {
        /// The directory of the store, or the address of its database.
        store: Location,
    },
    /// Prints the matching records with all fields, one line of JSON each.
    ///
    /// Tables are not exported: they are data of the service. Bytes are printed as text if they are UTF-8, else as
    /// {"base64": ...}. Times are milliseconds since 1970; null means never.
    Export {
        /// The directory of the store, or the address of its database.
        store: Location,
        #[command(flatten)]
        filter: Filter,
    },
    /// Shows the store on a page for a browser on this machine, until it is interrupted.
    ///
    /// Prints the address of the page, which contains a secret. Anyone who has the address may look at the store, and
    /// change it as `resolve` and `revoke` do, after a confirmation. The page is on loopback only. To see it from
    /// another machine, forward the port: `ssh -L 8080:127.0.0.1:8080 HOST`, with the same number on both sides. A
    /// store that no process has open is opened for each view, so that a service can start in between.
    Web {
        /// The directory of the store, or the address of its database.
        store: Location,
        /// The port to listen on. Without it, a free one.
        #[arg(long, value_name = "NUMBER", default_value = "0", hide_default_value = true)]
        port: u16,
        /// Offer and accept no changes.
        #[arg(long)]
        read_only: bool,
    },
    /// Copies the store, as it is at one commit, into a new directory.
    ///
    /// The copy is a store with the same keys, effect ids and tables. If a service has the store open, its process
    /// writes the copy, with the permissions of its user. A copy that fails leaves nothing. To restore a copy, stop the
    /// service and put the copy in the place of the store.
    Backup {
        /// The directory of the store.
        store: Location,
        /// The directory to create.
        directory: PathBuf,
    },
    /// Imports the output of `export` from a file or standard input. Creates the store if there is none.
    ///
    /// Keys that already have a record are counted and not changed. An imported record gets a new generation and token,
    /// belongs to the new store, and its TTL starts again. All other fields stay, including its effect ids. A record in
    /// progress becomes interrupted.
    Import {
        /// The directory of the store, or the address of its database.
        store: Location,
        /// The file to read. `-`, the default, is standard input.
        file: Option<PathBuf>,
    },
    /// Measures durable cycles per second on the disk of a directory, and compares them with an ideal log.
    ///
    /// Works in a temporary directory, which is removed at the end.
    Bench {
        /// A directory on the disk to measure.
        #[arg(default_value = ".")]
        directory: PathBuf,
        /// Use this number of threads. Without it, measures with 1, 8 and 64.
        #[arg(long, value_name = "COUNT", value_parser = at_least_one::<NonZeroUsize>)]
        threads: Option<NonZeroUsize>,
        /// The duration of each of the two measurements, in seconds.
        #[arg(long, value_name = "COUNT", default_value = "1", value_parser = at_least_one::<NonZeroU64>)]
        seconds: NonZeroU64,
    },
    /// Does the work of the next open of a service, if nothing can be lost by it.
    ///
    /// Reads everything first, and changes nothing if anything cannot be read. Otherwise prints what it will do, and
    /// does it: applies the commits that the last owner left, and rebuilds the record store if its file is damaged
    /// outside of records and rows. Then reads everything again.
    Repair {
        /// The directory of the store.
        store: Location,
    },
    /// Rescues what can still be read of a damaged store into a new one.
    ///
    /// Takes the newest content of each record and row that has a right checksum. Changes nothing in STORE. Prints how
    /// many were rescued, which keys may be older than their last state, which are lost, and between which keys others
    /// may be lost. The exit status is 4 unless the store was whole.
    Salvage {
        /// The directory of the damaged store.
        store: Location,
        /// The directory of the new store. It must be empty or not exist. The remains of a salvage that was killed are
        /// replaced.
        #[arg(long, value_name = "NEW")]
        into: PathBuf,
    },
    /// Moves a store between a directory and a database: one of FROM and TO is a directory, the other an address.
    ///
    /// The new store has the same records, rows, effect ids and tokens, and TTLs continue. Records in progress become
    /// interrupted. No service may have FROM open. TO must be empty. FROM is not changed. A migration that fails, or is
    /// killed, leaves no store.
    Migrate {
        /// The store to move.
        from: Location,
        /// The place of the new store.
        to: Location,
    },
    /// Prints the SQL that creates the tables of a store on PostgreSQL, for `psql` or a migration.
    ///
    /// The first open of a service creates them too, and needs the privilege CREATE on the database for that.
    Schema,
    /// Prints shell completions.
    Completions {
        /// The shell: bash, elvish, fish, powershell or zsh.
        shell: Shell,
    },
    /// Prints the manual page of oncekey or of one of its commands, for `man -l`.
    Man {
        /// The command, for example list: `oncekey man list > oncekey-list.1`.
        command: Option<String>,
    },
}

impl Verb {
    /// Returns the store that the command works on.
    pub(super) fn store(&self) -> Option<&Location> {
        match self {
            Self::Stats { store }
            | Self::Doctor { store, .. }
            | Self::List { store, .. }
            | Self::Tables { store }
            | Self::Rows { store, .. }
            | Self::Watch { store, .. }
            | Self::Compact { store }
            | Self::Verify { store }
            | Self::Export { store, .. }
            | Self::Web { store, .. }
            | Self::Backup { store, .. }
            | Self::Import { store, .. }
            | Self::Repair { store }
            | Self::Salvage { store, .. } => Some(store),
            Self::Get { at, .. }
            | Self::Revoke { at }
            | Self::Forget { at }
            | Self::Remove { at }
            | Self::Extend { at, .. } => Some(&at.store),
            Self::Resolve(resolve) => Some(&resolve.store),
            Self::Migrate { from, to } => Some(if to.is_database() { to } else { from }),
            Self::Bench { .. } | Self::Schema | Self::Completions { .. } | Self::Man { .. } => None,
        }
    }
}

/// A key of a manager in a store.
#[derive(Debug, Args)]
pub(super) struct At {
    /// The directory of the store, or the address of its database.
    pub(super) store: Location,
    /// The name of the manager.
    manager: String,
    /// The key, as `list` prints it.
    key: OsString,
}

impl At {
    pub(super) fn typed_key(&self) -> TypedKey {
        TypedKey { manager: self.manager.clone(), key: self.key.clone() }
    }
}

/// Parses the arguments, which start with the command. Returns `Err` with a text to print if they ask for help.
pub(super) fn parse(args: Vec<OsString>) -> Done<Result<Asked, String>> {
    let name = OsString::from("oncekey");
    Asked::try_parse_from(std::iter::once(name).chain(args)).map(Ok).or_else(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Ok(Err(error.render().to_string())),
        _ => Err(Stop::Usage(error.render().to_string().trim_start_matches("error: ").trim_end().to_owned())),
    })
}

pub(super) fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Asked::command(), "oncekey", &mut script);
    script
}

/// Parses a number that is not zero.
fn at_least_one<T: FromStr<Err = ParseIntError>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|cause: ParseIntError| match cause.kind() {
        IntErrorKind::Zero => "the minimum is 1".to_owned(),
        _ => cause.to_string(),
    })
}

/// Returns the manual page of a command, or that of the program.
pub(super) fn manual(name: Option<&str>) -> Done<Vec<u8>> {
    let mut program = Asked::command();
    program.build();
    let Some(name) = name else { return Ok(program_manual()) };
    let found = program.find_subcommand(name);
    let command = found.ok_or_else(|| Stop::Usage(format!("oncekey has no command \"{}\"", name.escape_debug())))?;
    let mut page = Vec::new();
    // Ignore the result: writing to memory cannot fail.
    let _ = clap_mangen::Man::new(command.clone()).render(&mut page);
    Ok(page)
}

fn program_manual() -> Vec<u8> {
    let command = Asked::command();
    let words = AFTER_HELP.split("\n\nExamples:").next().unwrap_or_default();
    let description = format!("{}\n\n{words}", command.get_about().map(ToString::to_string).unwrap_or_default());
    // Leave out the text after the help: it gets sections of its own.
    let man = clap_mangen::Man::new(command.long_about(description).after_help(""));
    let mut page = Vec::new();
    // Ignore the results: writing to memory cannot fail.
    let _ = man.render_title(&mut page);
    let _ = man.render_name_section(&mut page);
    let _ = man.render_synopsis_section(&mut page);
    let _ = man.render_description_section(&mut page);
    let _ = man.render_options_section(&mut page);
    let _ = man.render_subcommands_section(&mut page);
    for (title, lines) in SECTIONS {
        let _ = writeln!(page, ".SH \"{title}\"\n.nf");
        for line in lines.lines() {
            let _ = writeln!(page, "{}", line.replace('\\', "\\e").replace('-', "\\-"));
        }
        let _ = writeln!(page, ".fi");
    }
    let _ = man.render_version_section(&mut page);
    page
}
