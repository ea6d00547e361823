//! A program that starts itself again in another role, kills that process, and reads its output.

use std::ffi::OsStr;
use std::io::{self, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;

use anyhow::Context as _;

/// This program in a child process, which is killed when this value is dropped.
#[derive(Debug)]
pub(crate) struct ChildProcess {
    pub(crate) child: Child,
}

impl ChildProcess {
    /// Starts a child, and returns its standard output too. The child's standard input is a pipe whose end tells the
    /// child that this process has ended.
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

    /// Kills the process with SIGKILL, which it cannot catch.
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

/// Ends this child when its parent ends. The parent holds the other end of the child's standard input, which closes
/// however the parent ends.
#[expect(clippy::disallowed_methods, reason = "the library's threads start in one place; an application's need not")]
pub(crate) fn end_with_parent() {
    thread::spawn(|| wait_for_the_end());
}

/// Waits for the end of the parent, and then ends this process.
pub(crate) fn wait_for_the_end() -> ! {
    let _ = io::stdin().read_to_end(&mut Vec::new());
    std::process::exit(1);
}

/// Writes text to standard output. Ignores errors: the reader may be gone.
pub(crate) fn say(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Writes a line to standard error. Ignores errors.
pub(crate) fn log(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}
