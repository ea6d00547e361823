//! Servers, if installed. Each is started for the benchmark on a socket in its own directory, and stopped afterwards.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use super::{BEGUN, Mode, OUTCOME, Session, Step, System};

/// The longest time for the start of a server.
const PATIENCE: Duration = Duration::from_secs(20);

fn find(program: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian does not put the programs of PostgreSQL there.
    let of_debian = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let mut of_debian: Vec<PathBuf> = of_debian.flatten().map(|entry| entry.path().join("bin")).collect();
    of_debian.sort();
    let all = std::env::split_paths(&path).chain(of_debian.into_iter().rev());
    let found = all.map(|dir| dir.join(program)).find(|path| path.is_file());
    found.with_context(|| format!("not installed: no {program} on PATH"))
}

/// Waits for a server, which does not report that it is ready.
fn until_it_answers<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let began = Instant::now();
    loop {
        match attempt() {
            Ok(answer) => return Ok(answer),
            Err(cause) if began.elapsed() > PATIENCE => return Err(cause),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {}", output.status, said.trim());
    Ok(())
}

/// Returns a directory for a socket, whose path must be shorter than 100 bytes.
fn socket_dir() -> Result<TempDir> {
    let dir = tempfile::tempdir()?;
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))?;
    Ok(dir)
}

struct Redis {
    server: Child,
    client: redis::Client,
    _socket: TempDir,
}

/// With `appendfsync always`, the event loop writes and syncs its file before it answers, once for all commands that it
/// read in one turn.
pub(super) fn redis(path: &Path, _mode: Mode) -> Result<Box<dyn System>> {
    let program = find("redis-server")?;
    std::fs::create_dir_all(path)?;
    let socket = socket_dir()?;
    let unix = socket.path().join("redis");
    let server = Command::new(program)
        .args(["--port", "0", "--unixsocket"])
        .arg(&unix)
        .arg("--dir")
        .arg(path)
        // Turn off snapshots: no other system does that work.
        .args(["--appendonly", "yes", "--appendfsync", "always", "--save", ""])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    let client = redis::Client::open(format!("unix://{}", unix.display()))?;
    // From here on, drop stops the server.
    let redis = Redis { server, client, _socket: socket };
    until_it_answers(|| {
        let mut connection = redis.client.get_connection()?;
        redis::cmd("PING").exec(&mut connection).context("PING")
    })?;
    let mut connection = redis.client.get_connection()?;
    let (_, policy): (String, String) = redis::cmd("CONFIG").arg("GET").arg("appendfsync").query(&mut connection)?;
    ensure!(policy == "always", "appendfsync is {policy}");
    Ok(Box::new(redis))
}

impl System for Redis {
    fn session(&self) -> Box<dyn Session + '_> {
        Box::new(self.client.get_connection().unwrap())
    }
}

impl Session for redis::Connection {
    fn step(&mut self, step: Step) -> bool {
        let done: Option<redis::Value> = match step {
            Step::Begin(key) => redis::cmd("SET").arg(&key).arg(BEGUN).arg("NX").query(self),
            Step::Succeed(key) => redis::cmd("SET").arg(&key).arg(OUTCOME).arg("XX").query(self),
            Step::Forget(key) => redis::cmd("DEL").arg(&key).query(self),
        }
        .unwrap();
        done.is_some_and(|value| value != redis::Value::Nil)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // Answers are on disk, so it can be killed.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// fsync, `synchronous_commit` and `full_page_writes` are on by default.
pub(super) struct PostgresServer {
    data: PathBuf,
    /// The user of the server, which does not run as root.
    user: Option<&'static str>,
    socket: TempDir,
}

impl PostgresServer {
    pub(super) fn start(path: &Path) -> Result<Self> {
        find("postgres")?;
        let root = rustix::process::geteuid().is_root();
        let user = if root { Some(unprivileged()?) } else { None };
        let socket = socket_dir()?;
        let server = Self { data: path.to_owned(), user, socket };
        if !path.exists() {
            std::fs::create_dir_all(path)?;
            if let Some(user) = user {
                run(Command::new("chown").arg(user).arg(path))?;
            }
            run(server.command("initdb")?.arg("-D").arg(path).args(["--auth", "trust", "--username", server.user()]))?;
        }
        if let Some(user) = user {
            run(Command::new("chown").arg(user).arg(server.socket.path()))?;
        }
        let options = format!("-k {} -c listen_addresses=''", server.socket.path().display());
        let log = server.socket.path().join("log");
        run(server
            .command("pg_ctl")?
            .arg("-D")
            .arg(path)
            .arg("-l")
            .arg(log)
            .arg("-o")
            .arg(options)
            .args(["-w", "start"]))?;
        Ok(server)
    }

    pub(super) fn socket(&self) -> &Path {
        self.socket.path()
    }

    pub(super) fn user(&self) -> &'static str {
        self.user.unwrap_or("bench")
    }

    /// Returns the address of the database.
    pub(super) fn url(&self) -> String {
        format!("host={} user={} dbname=postgres", self.socket.path().display(), self.user())
    }

    fn command(&self, program: &str) -> Result<Command> {
        let program = find(program)?;
        let Some(user) = self.user else { return Ok(Command::new(program)) };
        let mut command = Command::new("runuser");
        command.args(["-u", user, "--"]).arg(program).current_dir(self.socket.path());
        Ok(command)
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        let stop = self
            .command("pg_ctl")
            .and_then(|mut command| run(command.arg("-D").arg(&self.data).args(["-m", "fast", "-w", "stop"])));
        if let Err(cause) = stop {
            eprintln!("PostgreSQL was not stopped: {cause:#}");
        }
    }
}

fn unprivileged() -> Result<&'static str> {
    let users = std::fs::read_to_string("/etc/passwd")?;
    for user in ["postgres", "nobody"] {
        if users.lines().any(|line| line.starts_with(&format!("{user}:"))) {
            return Ok(user);
        }
    }
    bail!("it does not run as root, and there is neither a user postgres nor nobody")
}
