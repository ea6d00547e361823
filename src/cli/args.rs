//! The command line as it is written.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;
use std::time::Duration;

use lexopt::{Arg, Parser};

use super::bench::Bench;
use super::change::How;
use super::out::{Done, Stop};
use super::place::{Place, unescape};
use super::show::Shown;
use crate::{
    Status,
    admin::RecordFilter,
    clock::{Clock as _, SystemClock},
};

/// What was asked for.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) verb: Verb,
    /// Empty where the verb has none.
    pub(super) store: PathBuf,
    pub(super) json: bool,
    pub(super) any_file_system: bool,
}

#[derive(Debug)]
pub(super) enum Verb {
    /// To be printed.
    Text(String),
    Stats,
    List(RecordFilter, Option<usize>),
    Get(Place, Shown),
    Resolve(Place, How),
    Revoke(Place),
    Forget(Place),
    Remove(Place),
    Compact,
    Verify,
    Export(RecordFilter),
    Import(Option<PathBuf>),
    Bench(Bench),
    Repair,
}

struct Spec {
    name: &'static str,
    /// Positional arguments; those in brackets may be left out.
    args: &'static str,
    about: &'static str,
    /// Options with a value, and what the value is.
    values: &'static [(&'static str, &'static str)],
    flags: &'static [&'static str],
    more: &'static str,
}

const FILTERS: &[(&str, &str)] =
    &[("manager", "NAME"), ("status", "STATUS"), ("older-than", "DURATION"), ("key-prefix", "PREFIX")];
const LISTED: &[(&str, &str)] = &[
    ("manager", "NAME"),
    ("status", "STATUS"),
    ("older-than", "DURATION"),
    ("key-prefix", "PREFIX"),
    ("limit", "COUNT"),
];

const FILTERS_HELP: &str = "\
STATUS is in-progress, succeeded, failed, released or interrupted. DURATION, since the record last changed, is written as
30s, 15m, 2h or 7days. PREFIX is of the whole key's bytes.
";

#[rustfmt::skip]
const SPECS: &[Spec] = &[
    Spec {
        name: "stats", args: "STORE", values: &[], flags: &[],
        about: "how many records there are, of which managers, in which states; what the last owner left",
        more: "",
    },
    Spec {
        name: "list", args: "STORE", values: LISTED, flags: &[],
        about: "the records that match, without their outcomes",
        more: FILTERS_HELP,
    },
    Spec {
        name: "get", args: "STORE MANAGER KEY", values: &[("effect", "LABEL")], flags: &["outcome"],
        about: "all of one record",
        more: "\
--effect LABEL also shows the name that the operation gave its effect downstream, to ask there whether it happened.
--outcome writes nothing but the outcome's bytes as they are stored.
",
    },
    Spec {
        name: "resolve", args: "STORE MANAGER KEY", values: &[("succeed", "FILE"), ("fail", "FILE")], flags: &["retry"],
        about: "settles an interrupted record: it did not happen, or it did and this is its outcome",
        more: "\
--retry: nothing happened, and the next request runs it. --succeed FILE, --fail FILE: it happened, and this is the outcome as
its manager encodes it, e.g. as `get --outcome` wrote that of another key; - is standard input. Bytes that the service cannot
read are found out when it replays them: where it has a program of its own for this, use that.
",
    },
    Spec {
        name: "revoke", args: "STORE MANAGER KEY", values: &[], flags: &[],
        about: "takes a key in progress away from its owner: the record becomes interrupted",
        more: "\
An owner lives only as long as the process that has the store open. So where the store can be opened here, its owners are
dead and their keys are interrupted already, which this says. In a running service, call `Manager::revoke`.
",
    },
    Spec {
        name: "forget", args: "STORE MANAGER KEY", values: &[], flags: &[],
        about: "forgets a finished record, so that the next request runs it again",
        more: "",
    },
    Spec {
        name: "remove", args: "STORE MANAGER KEY", values: &[], flags: &[],
        about: "forgets a record without a live owner",
        more: "",
    },
    Spec {
        name: "compact", args: "STORE", values: &[], flags: &[],
        about: "deletes what has expired",
        more: "",
    },
    Spec {
        name: "verify", args: "STORE", values: &[], flags: &[],
        about: "reads everything and says what is damaged; status 4 if anything is",
        more: "",
    },
    Spec {
        name: "export", args: "STORE", values: FILTERS, flags: &[],
        about: "the records that match, a line of JSON each, with every field",
        more: "\
Records only: tables are the service's own data. Bytes are text where they are that, else {\"base64\": ...}; times are
milliseconds since 1970, and null is for ever.
",
    },
    Spec {
        name: "import", args: "STORE [FILE]", values: &[], flags: &[],
        about: "takes over what export wrote, from a file or standard input; makes the store if there is none",
        more: "\
A key that has a record already is left as it is, and counted. Every record keeps its fields but those that number and time it
in its store: it gets another generation, token and store, and its TTL starts again. It keeps its effect ids. One in progress is
interrupted.
",
    },
    Spec {
        name: "bench", args: "[DIRECTORY]", values: &[("threads", "COUNT"), ("seconds", "COUNT")], flags: &[],
        about: "durable cycles a second on the disk of a directory, beside the ideal log there",
        more: "Without --threads with 1, 8 and 64. Works in a directory of its own, which it removes.\n",
    },
    Spec {
        name: "repair", args: "STORE", values: &[], flags: &[],
        about: "for a store that is damaged: reads its record store without snapshots, and verifies it",
        more: "\
Moves the snapshots into STORE/store/snapshots.N; deletes nothing. Helps where only a snapshot is damaged. Keep a copy of the
whole store first.
",
    },
];

const STATUSES: &str = "\
Exit status: 0 done, 1 no such record or not in a state for it, 2 wrong command line or no store there, 3 the store is in
use, 4 damaged, 5 anything else. That nobody reads the output any more is no fault.
";

const EXAMPLES: &str = "\
Examples:
  oncekey list payments.oncekey --status interrupted
  oncekey get payments.oncekey payments user-7/order-42 --effect charge
  oncekey resolve payments.oncekey payments user-7/order-42 --retry
  oncekey list payments.oncekey --status interrupted --older-than 1h --json | jq -r .key
  oncekey export payments.oncekey | gzip > payments.jsonl.gz
  gunzip < payments.jsonl.gz | oncekey import copy.oncekey
";

fn help() -> String {
    let mut text = "Looks into a store of idempotency keys while no service has it open.\n\n".to_owned();
    for Spec { name, args, about, .. } in SPECS {
        let call = format!("{name} {args}");
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  oncekey {call:<26} {about}");
    }
    text.push_str("\n  --json              for machines: one value, or one for each record, a line each\n");
    text.push_str("  --any-file-system   also on NFS, 9p, SMB and FUSE\n");
    text.push_str("  --help, --version   `oncekey COMMAND --help` says more of a command\n");
    let _ = write!(
        text,
        "\nA KEY is written as `list` prints it: its parts with / between them, other bytes as \\xNN.\n\n"
    );
    let _ = write!(text, "{EXAMPLES}\n{STATUSES}");
    text
}

fn help_of(spec: &Spec) -> String {
    let mut text = format!("oncekey {} {}", spec.name, spec.args);
    for (name, value) in spec.values {
        let _ = write!(text, " [--{name} {value}]");
    }
    for name in spec.flags {
        let _ = write!(text, " [--{name}]");
    }
    let _ = write!(text, "\n\n{}.\n{}\n{STATUSES}", spec.about, spec.more);
    text
}

pub(super) fn parse(args: impl Iterator<Item = OsString>) -> Done<Asked> {
    let mut parser = Parser::from_args(args);
    let mut given = Given::default();
    let (mut json, mut any_file_system) = (false, false);
    let mut spec: Option<&Spec> = None;
    while let Some(arg) = parser.next().map_err(wrong)? {
        match arg {
            Arg::Short('h') | Arg::Long("help") => return Ok(text(spec.map_or_else(help, help_of))),
            Arg::Short('V') | Arg::Long("version") => {
                return Ok(text(format!("oncekey {}\n", env!("CARGO_PKG_VERSION"))));
            }
            Arg::Long("json") => json = true,
            Arg::Long("any-file-system") => any_file_system = true,
            Arg::Value(name) if spec.is_none() => {
                let unknown = || Stop::Usage(format!("there is no command {}", name.to_string_lossy()));
                spec = Some(SPECS.iter().find(|spec| *spec.name == *name).ok_or_else(unknown)?);
            }
            Arg::Value(value) => given.positional.push_back(value),
            Arg::Long(name) => {
                let spec = spec.ok_or_else(|| Stop::Usage("the command comes first".to_owned()))?;
                if let Some((name, _)) = spec.values.iter().find(|(known, _)| *known == name) {
                    let value = parser.value().map_err(wrong)?;
                    if given.values.insert(name, value).is_some() {
                        return Err(Stop::Usage(format!("--{name} is given twice")));
                    }
                } else if let Some(name) = spec.flags.iter().find(|known| **known == name) {
                    given.flags.insert(name);
                } else {
                    return Err(Stop::Usage(format!("{} has no option --{name}", spec.name)));
                }
            }
            Arg::Short(_) => return Err(wrong(arg.unexpected())),
        }
    }
    let spec = spec.ok_or_else(|| Stop::Usage("no command is given".to_owned()))?;
    given.check_count(spec)?;
    let store = if spec.args.starts_with("STORE") { given.next().map(PathBuf::from) } else { None };
    let verb = verb(spec, given)?;
    Ok(Asked { verb, store: store.unwrap_or_default(), json, any_file_system })
}

fn text(text: String) -> Asked {
    Asked { verb: Verb::Text(text), store: PathBuf::new(), json: false, any_file_system: false }
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn wrong(error: lexopt::Error) -> Stop {
    Stop::Usage(error.to_string())
}

fn verb(spec: &Spec, mut given: Given) -> Done<Verb> {
    Ok(match spec.name {
        "stats" => Verb::Stats,
        "list" => Verb::List(given.filter()?, given.number("limit")?),
        "get" => {
            let shown = Shown { effect: given.text("effect")?, only_outcome: given.flags.contains("outcome") };
            Verb::Get(given.place()?, shown)
        }
        "resolve" => Verb::Resolve(given.place()?, given.how()?),
        "revoke" => Verb::Revoke(given.place()?),
        "forget" => Verb::Forget(given.place()?),
        "remove" => Verb::Remove(given.place()?),
        "compact" => Verb::Compact,
        "verify" => Verb::Verify,
        "export" => Verb::Export(given.filter()?),
        "import" => Verb::Import(given.next().filter(|file| file != "-").map(PathBuf::from)),
        "bench" => Verb::Bench(Bench {
            directory: given.next().map_or_else(|| PathBuf::from("."), PathBuf::from),
            threads: given.number("threads")?,
            round: Duration::from_secs(given.number("seconds")?.unwrap_or(1)),
        }),
        "repair" => Verb::Repair,
        other => return Err(Stop::Usage(format!("there is no command {other}"))),
    })
}

#[derive(Default)]
struct Given {
    positional: VecDeque<OsString>,
    values: BTreeMap<&'static str, OsString>,
    flags: BTreeSet<&'static str>,
}

impl Given {
    fn check_count(&self, spec: &Spec) -> Done {
        let most = spec.args.split_whitespace().count();
        let least = spec.args.split_whitespace().filter(|arg| !arg.starts_with('[')).count();
        if (least..=most).contains(&self.positional.len()) {
            return Ok(());
        }
        Err(Stop::Usage(format!("it is called as: oncekey {} {}", spec.name, spec.args)))
    }

    fn next(&mut self) -> Option<OsString> {
        self.positional.pop_front()
    }

    fn place(&mut self) -> Done<Place> {
        let manager = utf8("MANAGER", self.next().unwrap_or_default())?;
        Ok(Place { manager, key: self.next().unwrap_or_default() })
    }

    fn text(&mut self, name: &str) -> Done<Option<String>> {
        self.values.remove(name).map(|value| utf8(&format!("--{name}"), value)).transpose()
    }

    /// At least 1.
    fn number<N: std::str::FromStr + PartialOrd + From<u8>>(&mut self, name: &str) -> Done<Option<N>> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let number = text.parse().ok().filter(|number| *number >= N::from(1));
        number.map(Some).ok_or_else(|| Stop::Usage(format!("--{name} needs a number from 1, not {text}")))
    }

    fn filter(&mut self) -> Done<RecordFilter> {
        let mut filter = RecordFilter::new();
        if let Some(manager) = self.text("manager")? {
            filter = filter.manager(manager);
        }
        if let Some(status) = self.text("status")? {
            filter = filter.status(self::status(&status)?);
        }
        if let Some(prefix) = self.values.remove("key-prefix") {
            filter = filter.key_prefix(unescape(prefix.as_bytes()));
        }
        if let Some(age) = self.text("older-than")? {
            let age = humantime::parse_duration(&age).map_err(|why| Stop::Usage(format!("--older-than: {why}")))?;
            let before = SystemClock.wall().checked_sub(age);
            filter = filter.updated_before(before.ok_or_else(|| Stop::Usage("--older-than is too long".to_owned()))?);
        }
        Ok(filter)
    }

    fn how(&mut self) -> Done<How> {
        let (succeed, fail) = (self.values.remove("succeed"), self.values.remove("fail"));
        match (self.flags.contains("retry"), succeed, fail) {
            (true, None, None) => Ok(How::Retry),
            (false, Some(file), None) => Ok(How::Succeed(file.into())),
            (false, None, Some(file)) => Ok(How::Fail(file.into())),
            _ => Err(Stop::Usage("resolve needs one of --retry, --succeed FILE and --fail FILE".to_owned())),
        }
    }
}

fn utf8(what: &str, value: OsString) -> Done<String> {
    String::from_utf8(value.into_vec()).map_err(|_| Stop::Usage(format!("{what} is not UTF-8")))
}

fn status(text: &str) -> Done<Status> {
    Ok(match text {
        "in-progress" => Status::InProgress,
        "succeeded" => Status::Succeeded,
        "failed" => Status::Failed,
        "released" => Status::Released,
        "interrupted" => Status::Interrupted,
        _ => return Err(Stop::Usage(format!("there is no status {text}"))),
    })
}
