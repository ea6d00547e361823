//! The operator's command line: commands that people and scripts run on a store.
//!
//! The binary `oncekey` only calls `main(&Describers::new())`. This binary does not know the types of outcomes, and
//! shows their size, schema and bytes. A service that wants to show more builds its own binary, with a description of
//! its outcomes:
//!
//! ```no_run
//! use oncekey::cli::{Describers, main as run};
//!
//! fn main() -> std::process::ExitCode {
//!     let describers = Describers::new().manager::<u64, String>(
//!         "payments",
//!         0,
//!         |outcome| match outcome {
//!             Ok(cents) => format!("{cents} cents"),
//!             Err(why) => format!("declined: {why}"),
//!         },
//!     );
//!     run(&describers)
//! }
//! ```
//!
//! Only one process can open a store for writing. If a service has it open, the commands ask the service, through the
//! socket that its engine serves: see [`LiveStore`]. If the service has no socket, each command fails with status 3 and
//! changes nothing. If no process has it open, the commands that only read (`stats`, `doctor`, `list`, `tables`,
//! `rows`, `get`, `verify`, `export`, `backup`) open it read-only: they change no byte, and permission to read is
//! enough. The other commands, run by root, give every file that they create to the owner of the store.
//!
//! Built with the feature `postgres`, the commands take the address of a database in the place of a directory, such as
//! `postgres://app@db/payments`. They then work while services have the store open. The commands that only read run in
//! sessions that are read-only at the server. A password in an address is never printed.
//!
//! `oncekey --help` lists the commands, examples and exit statuses. `oncekey completions SHELL` and `oncekey man` print
//! shell completions and the manual page.

mod args;
mod backup;
mod bench;
mod change;
mod describe;
mod doctor;
mod filter;
mod ideal;
mod list;
mod live;
mod location;
#[cfg(feature = "postgres")]
mod migrate;
mod out;
mod outcome;
mod owner;
mod progress;
mod repair;
mod resolve;
mod show;
mod store;
mod transfer;
mod typed_key;
mod watch;
mod web;

use std::ffi::OsString;
use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;

pub use describe::Describers;

use args::{Asked, Verb};
use bench::Bench;
use list::Listed;
use location::Location;
use out::{Done, Out, Stop};
use progress::Progress;
use show::Shown;
use store::Store;
use web::Web;

use crate::{Engine, EngineOptions, ErrorKind, FOREVER, Value, admin::LiveStore};

/// Runs the command in the process's arguments, on its standard streams. Call it from a binary's `main`.
#[must_use]
pub fn main(describers: &Describers) -> ExitCode {
    let stdout = io::stdout();
    // By convention, any non-empty value of `NO_COLOR` disables colours.
    let colour = stdout.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let mut buffered = BufWriter::new(stdout.lock());
    let mut out = Out::new(&mut buffered, colour, io::stderr().is_terminal());
    out.is_alone = true;
    ExitCode::from(run_with(describers, std::env::args_os().skip(1), &mut out, &mut io::stderr()))
}

/// Runs a command with the given arguments and streams, and returns the exit status. The arguments start with the
/// command. Prints no colours and no progress bars.
///
/// ```
/// use oncekey::cli::{Describers, run};
///
/// let (mut out, mut err) = (Vec::new(), Vec::new());
/// assert_eq!(run(&Describers::new(), ["--help"], &mut out, &mut err), 0);
/// assert!(String::from_utf8(out)?.contains("oncekey list"));
/// # Ok::<(), std::string::FromUtf8Error>(())
/// ```
pub fn run(
    describers: &Describers,
    args: impl IntoIterator<Item = impl Into<OsString>>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    run_with(describers, args.into_iter().map(Into::into), &mut Out::new(out, false, false), err)
}

fn run_with(
    describers: &Describers,
    args: impl Iterator<Item = OsString>,
    out: &mut Out<'_>,
    err: &mut dyn Write,
) -> u8 {
    let args: Vec<OsString> = args.collect();
    // Set this before parsing, so that errors in the command line are JSON too.
    out.json = args.iter().any(|arg| arg == "--json");
    let ended = args::parse(args).and_then(|asked| match asked {
        Ok(asked) => dispatch(describers, &asked, out),
        Err(help) => out.text(&help),
    });
    let Err(stop) = ended.and_then(|()| out.flush()) else { return 0 };
    // Flush what was printed before the error. Ignore a failure: the reader may have closed the pipe.
    let _ = out.flush();
    if let Some(message) = stop.message().map(|message| location::without_passwords(&message)) {
        let _ = if out.json {
            writeln!(err, "{}", json!({ "error": message, "status": stop.status() }))
        } else {
            writeln!(err, "oncekey: {message}")
        };
    }
    stop.status()
}

fn dispatch(describers: &Describers, asked: &Asked, out: &mut Out<'_>) -> Done {
    let options = options(asked)?;
    let on = |store: &Location, out: &mut Out<'_>, work: &dyn Fn(&dyn Store, &mut Out<'_>) -> Done| {
        opened(&options, store, out, work)
    };
    let look = |store: &Location, out: &mut Out<'_>, work: &dyn Fn(&dyn Store, &mut Out<'_>) -> Done| {
        opened(&options.clone().read_only(true), store, out, work)
    };
    match &asked.verb {
        Verb::Stats { store } => look(store, out, &show::stats),
        Verb::List { store, filter, limit, count, order } => {
            let filter = filter.records()?;
            let limit = limit.map(NonZeroUsize::get);
            let listed = Listed { order: *order, limit, only_count: *count };
            look(store, out, &|store, out| list::records(store, &filter, &listed, out))
        }
        Verb::Tables { store } => look(store, out, &list::tables),
        Verb::Rows { store, table, key_prefix, limit, count } => {
            let prefix = key_prefix.as_deref().map(filter::key_prefix).transpose()?;
            let listed = Listed { limit: limit.map(NonZeroUsize::get), only_count: *count, ..Listed::default() };
            look(store, out, &|store, out| list::rows(store, table, prefix.as_ref(), &listed, out))
        }
        Verb::Get { at, effect, outcome } => {
            let shown = Shown { effect: effect.clone(), only_outcome: *outcome };
            look(&at.store, out, &|store, out| show::get(store, describers, &at.typed_key(), &shown, out))
        }
        Verb::Resolve(asked) => resolve::run(&options, describers, asked, out),
        Verb::Revoke { at } => on(&at.store, out, &|store, out| change::revoke(store, &at.typed_key(), out)),
        Verb::Forget { at } => on(&at.store, out, &|store, out| change::forget(store, &at.typed_key(), out)),
        Verb::Remove { at } => on(&at.store, out, &|store, out| change::remove(store, &at.typed_key(), out)),
        Verb::Extend { at, duration } => {
            on(&at.store, out, &|store, out| change::extend(store, &at.typed_key(), *duration, out))
        }
        Verb::Watch { store, limit } => watch::watch(&options, store, limit.map(NonZeroUsize::get), out),
        Verb::Web { store, port, read_only } => {
            web::serve(describers, &options, &Web { store: store.clone(), port: *port, read_only: *read_only }, out)
        }
        Verb::Doctor { store, quick } => doctor::run(&options, store, *quick, out),
        Verb::Compact { store } => on(store, out, &change::compact),
        Verb::Verify { store } => look(store, out, &show::verify),
        Verb::Export { store, filter } => {
            let filter = filter.records()?;
            look(store, out, &|store, out| transfer::export(store, &filter, out))
        }
        Verb::Backup { store, directory } => {
            store.directory("backup", BACKUP)?;
            look(store, out, &|store, out| backup::backup(store, directory, out))
        }
        Verb::Import { store, file } => {
            let options = transfer::for_import(&options);
            // Before the open, which creates a store where there is none.
            let mut input = transfer::Input::open(file.as_deref().filter(|file| file.as_os_str() != "-"))?;
            opened(&options, store, out, |store, out| transfer::import(store, &mut input, out))
        }
        Verb::Bench { directory, threads, seconds } => {
            let (threads, round) = (threads.map(NonZeroUsize::get), Duration::from_secs(seconds.get()));
            bench::run(&Bench { directory: directory.clone(), threads, round }, out)
        }
        Verb::Repair { store } => repair::repair(&options, store.directory("repair", REPAIR)?, out),
        Verb::Salvage { store, into } => repair::salvage(&options, store.directory("salvage", SALVAGE)?, into, out),
        Verb::Schema => schema(&options, out),
        Verb::Migrate { from, to } => migrate(&options, from, to, out),
        Verb::Completions { shell } => out.bytes(&args::completions(*shell)),
        Verb::Man { command } => out.bytes(&args::manual(command.as_deref())?),
    }
}

const BACKUP: &str = "it is backed up with its database; use pg_dump, or pg_basebackup and the WAL";
const REPAIR: &str = "the server recovers by itself after a crash; `oncekey doctor` says what else is wrong";
const SALVAGE: &str = "restore the database from its backup, then run `oncekey verify`";

/// Returns the options of every open.
fn options(asked: &Asked) -> Done<EngineOptions> {
    // Reading must not delete expired records, so turn off background compaction. And it must not create a socket.
    let options = Engine::options()
        .compaction_interval(FOREVER)
        .admin(false)
        .max_value_bytes(Value::MAX_BYTES)
        .any_file_system(asked.any_file_system)
        .create(matches!(asked.verb, Verb::Import { .. }));
    let Some(schema) = &asked.schema else { return Ok(options) };
    if asked.verb.store().is_some_and(|store| !store.is_database()) {
        return Err(Stop::Usage("--schema is for a database: a directory holds one store".to_owned()));
    }
    #[cfg(feature = "postgres")]
    return Ok(options.schema(schema));
    #[cfg(not(feature = "postgres"))]
    {
        let _ = schema;
        Err(Stop::Engine(location::missing_feature()))
    }
}

/// Moves a store.
fn migrate(options: &EngineOptions, from: &Location, to: &Location, out: &mut Out<'_>) -> Done {
    #[cfg(feature = "postgres")]
    return migrate::migrate(options, from, to, out);
    #[cfg(not(feature = "postgres"))]
    {
        let _ = (options, from, to, out);
        Err(Stop::Engine(location::missing_feature()))
    }
}

/// Prints the SQL that creates the tables.
fn schema(options: &EngineOptions, out: &mut Out<'_>) -> Done {
    #[cfg(feature = "postgres")]
    return out.text(&options.schema_sql()?);
    #[cfg(not(feature = "postgres"))]
    {
        let _ = (options, out);
        Err(Stop::Engine(location::missing_feature()))
    }
}

/// Opens the store, calls `work`, and closes the store. If another process has the store open, `work` gets that store.
fn opened<T>(
    options: &EngineOptions,
    store: &Location,
    out: &mut Out<'_>,
    work: impl FnOnce(&dyn Store, &mut Out<'_>) -> Done<T>,
) -> Done<T> {
    let progress = Progress::spinner(out, "opening the store");
    let reached = reach(options, store);
    drop(progress);
    let reached = reached?;
    if out.is_alone && matches!(reached, Reached::Live(_)) {
        // The service that has the store open goes first.
        let _ = rustix::process::nice(19);
    }
    reached.work(|store| work(store, out))
}

/// A store that was opened, or that another process has open.
enum Reached {
    Opened(Engine),
    Live(LiveStore),
}

impl Reached {
    /// Calls `work`, and closes the store if it was opened.
    fn work<T>(self, work: impl FnOnce(&dyn Store) -> Done<T>) -> Done<T> {
        match self {
            Self::Live(live) => work(&live),
            Self::Opened(engine) => {
                let worked = work(&engine);
                let closed = engine.close().map_err(Stop::Engine);
                worked.and_then(|done| closed.map(|()| done))
            }
        }
    }
}

/// Opens the store, or asks the process that has it open.
fn reach(options: &EngineOptions, store: &Location) -> Done<Reached> {
    let store = match store {
        Location::Directory(store) => store,
        Location::Database(url) => return url.open(options).map(Reached::Opened).map_err(Stop::open),
    };
    match options.open(store) {
        Ok(engine) => Ok(Reached::Opened(engine)),
        Err(error) if error.kind() == ErrorKind::StoreInUse => match LiveStore::connect(store) {
            Ok(live) => Ok(Reached::Live(live)),
            // No process serves the socket, so return the first error.
            Err(none) if none.kind() == ErrorKind::StoreInUse => Err(Stop::Engine(error)),
            Err(failed) if failed.kind() == ErrorKind::Io => Err(Stop::NoAnswer(failed)),
            Err(other) => Err(Stop::Engine(other)),
        },
        Err(error) => Err(Stop::open(error)),
    }
}
