//! A program that starts itself again in another role, kills that, and speaks to whoever reads.

use std::ffi::OsStr;
use std::io::{self, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;

use anyhow::Context as _;

/// This program again. Killed when it is dropped.
#[derive(Debug)]
pub(crate) struct ChildProcess {
    pub(crate) child: Child,
}

impl ChildProcess {
    /// With its standard output. Its standard input is ours to write, and says by its end that we have ended.
    pub(crate) fn start(
        args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> anyhow::Result<(Self, BufReader<ChildStdout>)> {
        let child = Command::new(std::env::current_exe()?)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start this program again")?;
        let mut process = Self { child };
        let stdout = process.child.stdout.take().context("the child has no standard output")?;
        Ok((process, BufReader::new(stdout)))
    }

    /// SIGKILL: it has no say in it.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().context("cannot kill the child")?;
        self.child.wait().context("cannot wait for the child's end")?;
        Ok(())
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// For a child: its parent holds the other end of its standard input, which closes when the parent ends, however it does.
#[expect(clippy::disallowed_methods, reason = "the library's threads start in one place; an application's need not")]
pub(crate) fn end_with_parent() {
    thread::spawn(|| wait_for_the_end());
}

/// Of the parent, and then of this process.
pub(crate) fn wait_for_the_end() -> ! {
    let _ = io::stdin().read_to_end(&mut Vec::new());
    std::process::exit(1);
}

/// To standard output. That nobody reads it (any more) is no reason to stop working.
pub(crate) fn say(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// To standard error, likewise.
pub(crate) fn log(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}
