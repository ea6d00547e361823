//! A PostgreSQL server for the tests of one process.
//!
//! It runs as an unprivileged user, with a data directory and a Unix socket of its own. A shell waits until the pipe
//! from this process ends, however that happens, and then stops the server by its pid and removes the directory.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Starts the server, prints `ready`, and stops the server after the end of its input.
const SCRIPT: &str = r#"
set -e
dir=$1 bin=$2 options=$3 primary=$4
if [ -n "$primary" ]; then
    "$bin/pg_basebackup" -h "$primary" -U oncekey -D "$dir/data" -R -X stream -c fast >"$dir/initdb" 2>&1
else
    "$bin/initdb" -D "$dir/data" -A trust -U oncekey -E UTF8 --no-sync >"$dir/initdb" 2>&1
fi
$SERVER_ENV "$bin/pg_ctl" -D "$dir/data" -l "$dir/log" -w -o "-k $dir -c listen_addresses= -c max_connections=400 $options" start >/dev/null
echo ready
trap '' INT TERM HUP
cat >/dev/null
"$bin/pg_ctl" -D "$dir/data" -m immediate stop >/dev/null 2>&1 || true
rm -rf "$dir"
"#;

pub(crate) struct Server {
    pub(crate) dir: PathBuf,
    pub(crate) bin: PathBuf,
    user: Option<(u32, u32)>,
    env: String,
    /// Its end stops the server.
    _shell: Child,
}

impl Server {
    /// Starts a server with further options for its command line.
    pub(crate) fn start(options: &str) -> Self {
        Self::start_as(&Setup { options, ..Setup::default() })
    }

    pub(crate) fn start_as(setup: &Setup<'_>) -> Self {
        let bin = find();
        // In memory if possible: these tests do not cut the power.
        let memory = Some(Path::new("/dev/shm")).filter(|path| path.is_dir());
        let parent = setup.parent.or(memory).map_or_else(std::env::temp_dir, Path::to_owned);
        let dir = tempfile::Builder::new().prefix("oncekey-postgres-").tempdir_in(parent).unwrap().keep();
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        let user = unprivileged();
        if let Some((uid, gid)) = user {
            chown(&dir, Some(uid), Some(gid)).unwrap();
        }
        let mut command = match setup.within {
            None => as_user(user, Path::new("sh")),
            Some(within) => {
                let (uid, gid) = user.expect("only root can do that");
                let mut command = Command::new("sh");
                let script = format!("exec {within} setpriv --reuid={uid} --regid={gid} --clear-groups \"$@\"");
                command.env("ONCEKEY_DIR", &dir).arg("-c").arg(script).arg("sh").arg("sh");
                command
            }
        };
        command.arg("-c").arg(SCRIPT).arg("sh").arg(&dir).arg(&bin).arg(setup.options);
        command.arg(setup.primary.map_or_else(PathBuf::new, |primary| primary.dir.clone()));
        command.env("SERVER_ENV", setup.env).current_dir("/");
        let mut shell = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(shell.stdout.take().unwrap()).read_line(&mut said).unwrap();
        let log = |name| std::fs::read_to_string(dir.join(name)).unwrap_or_default();
        assert_eq!(said, "ready\n", "the server did not start: {}{}", log("initdb"), log("log"));
        Self { dir, bin, user, env: setup.env.to_owned(), _shell: shell }
    }

    /// Returns the address of the database.
    pub(crate) fn url(&self) -> String {
        format!("host={} user=oncekey dbname=postgres", self.dir.display())
    }

    /// Runs SQL as the owner of the server, and returns the output.
    pub(crate) fn sql(&self, text: &str) -> String {
        let mut command = Command::new(self.bin.join("psql"));
        command.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-U", "oncekey", "-d", "postgres", "-h"]);
        let done = command.arg(&self.dir).arg("-c").arg(text).output().unwrap();
        assert!(done.status.success(), "{text}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap().trim().to_owned()
    }

    /// Kills every process of the server at once.
    pub(crate) fn kill(&self) {
        let file = std::fs::read_to_string(self.dir.join("data/postmaster.pid")).unwrap();
        let first = file.lines().next().unwrap().to_owned();
        let children = Command::new("ps").args(["-o", "pid=", "--ppid", &first]).output().unwrap();
        let children = String::from_utf8(children.stdout).unwrap();
        let all = std::iter::once(first.as_str()).chain(children.split_whitespace());
        // A process may have ended meanwhile.
        let _ = Command::new("kill").arg("-KILL").args(all).stderr(Stdio::null()).status().unwrap();
    }

    /// Makes a standby the primary.
    pub(crate) fn promote(&self) {
        let mut promote = as_user(self.user, &self.bin.join("pg_ctl"));
        assert!(
            promote.arg("-D").arg(self.dir.join("data")).args(["-w", "promote"]).output().unwrap().status.success()
        );
    }

    /// Stops the server in this mode, and starts it again with further options.
    pub(crate) fn restart(&self, mode: &str, options: &str) {
        let data = self.dir.join("data");
        let mut stop = as_user(self.user, &self.bin.join("pg_ctl"));
        assert!(stop.arg("-D").arg(&data).args(["-w", "-m", mode, "stop"]).output().unwrap().status.success());
        let mut start = as_user(self.user, &self.bin.join("pg_ctl"));
        let all = format!("-k {} -c listen_addresses= -c max_connections=400 {options}", self.dir.display());
        start.envs(self.env.split(' ').filter_map(|word| word.split_once('=')));
        start.arg("-D").arg(&data).arg("-l").arg(self.dir.join("log")).args(["-w", "-o", &all, "start"]);
        assert!(start.stdout(Stdio::null()).status().unwrap().success());
    }
}

/// The ways in which a server differs from the default.
#[derive(Clone, Copy, Default)]
pub(crate) struct Setup<'a> {
    /// More options for its command line.
    pub(crate) options: &'a str,
    /// The primary, if the new server is to be its standby.
    pub(crate) primary: Option<&'a Server>,
    /// The command `env` with variables of the server.
    pub(crate) env: &'a str,
    /// The directory in which its own directory is created.
    pub(crate) parent: Option<&'a Path>,
    /// A command of root that runs the command after it, with the directory of the server in `$ONCEKEY_DIR`.
    pub(crate) within: Option<&'a str>,
}

pub(crate) fn as_user(user: Option<(u32, u32)>, program: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir("/");
    if let Some((uid, gid)) = user {
        command.uid(uid).gid(gid);
    }
    command
}

/// Returns the directory of the server's programs.
fn find() -> PathBuf {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path().join("bin"))
        .filter(|bin| bin.join("initdb").is_file())
        .collect();
    found.sort();
    found.pop().expect("these tests need a PostgreSQL server: on Debian, `apt-get install postgresql`")
}

/// Returns a user for the server, if this process runs as root: the server refuses to run as root.
pub(crate) fn unprivileged() -> Option<(u32, u32)> {
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0);
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = |name: &str| users.lines().find(|line| line.starts_with(name)).map(str::to_owned);
    let line = line("postgres:").or_else(|| line("nobody:")).filter(|_| is_root)?;
    let mut fields = line.split(':').skip(2).map(|field| field.parse().unwrap());
    Some((fields.next().unwrap(), fields.next().unwrap()))
}
