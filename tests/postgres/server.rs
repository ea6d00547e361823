//! A PostgreSQL server for the tests of one process.
//!
//! It runs as an unprivileged user, with a data directory and a Unix socket of its own. A shell waits until the pipe
//! from this process ends, however that happens, and then stops the server by its pid and removes the directory.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Starts the server, says so, and stops it after the end of its input.
const SCRIPT: &str = r#"
set -e
dir=$1 bin=$2 options=$3
"$bin/initdb" -D "$dir/data" -A trust -U oncekey -E UTF8 --no-sync >"$dir/initdb" 2>&1
"$bin/pg_ctl" -D "$dir/data" -l "$dir/log" -w -o "-k $dir -c listen_addresses= -c max_connections=400 $options" start >/dev/null
echo ready
trap '' INT TERM HUP
cat >/dev/null
"$bin/pg_ctl" -D "$dir/data" -m immediate stop >/dev/null 2>&1 || true
rm -rf "$dir/data" "$dir/initdb" "$dir/log"
rmdir "$dir" 2>/dev/null || true
"#;

pub(crate) struct Server {
    pub(crate) dir: PathBuf,
    pub(crate) bin: PathBuf,
    user: Option<(u32, u32)>,
    /// Its end stops the server.
    _shell: Child,
}

impl Server {
    /// Starts a server with further options for its command line.
    pub(crate) fn start(options: &str) -> Self {
        let bin = find();
        // In memory if possible: these tests do not cut the power.
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let dir = tempfile::Builder::new().prefix("oncekey-postgres-").tempdir_in(parent).unwrap().keep();
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        let user = unprivileged();
        if let Some((uid, gid)) = user {
            chown(&dir, Some(uid), Some(gid)).unwrap();
        }
        let mut command = as_user(user, Path::new("sh"));
        command.arg("-c").arg(SCRIPT).arg("sh").arg(&dir).arg(&bin).arg(options).current_dir("/");
        let mut shell = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(shell.stdout.take().unwrap()).read_line(&mut said).unwrap();
        let log = |name| std::fs::read_to_string(dir.join(name)).unwrap_or_default();
        assert_eq!(said, "ready\n", "the server did not start: {}{}", log("initdb"), log("log"));
        Self { dir, bin, user, _shell: shell }
    }

    /// Returns the address of the database.
    pub(crate) fn url(&self) -> String {
        format!("host={} user=oncekey dbname=postgres", self.dir.display())
    }

    /// Runs SQL as the owner of the server, and returns what it prints.
    pub(crate) fn sql(&self, text: &str) -> String {
        let mut command = Command::new(self.bin.join("psql"));
        command.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-U", "oncekey", "-d", "postgres", "-h"]);
        let done = command.arg(&self.dir).arg("-c").arg(text).output().unwrap();
        assert!(done.status.success(), "{text}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap().trim().to_owned()
    }

    /// Stops the server in this mode, and starts it again with further options.
    pub(crate) fn restart(&self, mode: &str, options: &str) {
        let data = self.dir.join("data");
        let mut stop = as_user(self.user, &self.bin.join("pg_ctl"));
        assert!(stop.arg("-D").arg(&data).args(["-w", "-m", mode, "stop"]).output().unwrap().status.success());
        let mut start = as_user(self.user, &self.bin.join("pg_ctl"));
        let all = format!("-k {} -c listen_addresses= -c max_connections=400 {options}", self.dir.display());
        start.arg("-D").arg(&data).arg("-l").arg(self.dir.join("log")).args(["-w", "-o", &all, "start"]);
        assert!(start.stdout(Stdio::null()).status().unwrap().success());
    }
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

/// Returns a user to run the server as, if this process runs as root: the server refuses that.
pub(crate) fn unprivileged() -> Option<(u32, u32)> {
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0);
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = |name: &str| users.lines().find(|line| line.starts_with(name)).map(str::to_owned);
    let line = line("postgres:").or_else(|| line("nobody:")).filter(|_| is_root)?;
    let mut fields = line.split(':').skip(2).map(|field| field.parse().unwrap());
    Some((fields.next().unwrap(), fields.next().unwrap()))
}
