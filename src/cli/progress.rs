//! Progress on standard error, shown if it is a terminal.

use std::borrow::Cow;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::out::Out;

/// A progress bar or spinner. Drop removes it.
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// Shows a spinner for work of unknown length, with `what` and the elapsed time.
    pub(super) fn spinner(out: &Out<'_>, what: impl Into<Cow<'static, str>>) -> Self {
        Self::with(out, ProgressBar::no_length(), "{spinner} {msg} {elapsed}", what)
    }

    /// Shows a counter without a known end.
    pub(super) fn count(out: &Out<'_>, what: impl Into<Cow<'static, str>>) -> Self {
        Self::with(out, ProgressBar::no_length(), "{spinner} {msg} {human_pos} {per_sec} {elapsed}", what)
    }

    /// Shows a bar for `total` bytes.
    pub(super) fn bytes(out: &Out<'_>, total: u64, what: impl Into<Cow<'static, str>>) -> Self {
        Self::with(out, ProgressBar::new(total), "{msg} [{bar:30}] {bytes}/{total_bytes} {eta}", what)
    }

    /// Shows a bar for `total` items.
    pub(super) fn items(out: &Out<'_>, total: u64, what: impl Into<Cow<'static, str>>) -> Self {
        Self::with(out, ProgressBar::new(total), "{msg} [{bar:30}] {human_pos}/{human_len} {eta}", what)
    }

    fn with(out: &Out<'_>, bar: ProgressBar, template: &str, what: impl Into<Cow<'static, str>>) -> Self {
        bar.set_draw_target(if out.progress { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() });
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(what);
        if out.progress {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Self(bar)
    }

    pub(super) fn add(&self, n: u64) {
        self.0.inc(n);
    }

    pub(super) fn set(&self, n: u64) {
        self.0.set_position(n);
    }

    /// Removes it before it is dropped.
    pub(super) fn hide(&self) {
        self.0.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
