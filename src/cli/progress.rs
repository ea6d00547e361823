//! Progress on standard error, where somebody looks at it.

use std::borrow::Cow;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::out::Out;

/// A bar or a spinner; gone when it is dropped.
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// For what has no known length; `what` is said beside the time it has taken.
    pub(super) fn spinner(out: &Out<'_>, what: impl Into<Cow<'static, str>>) -> Self {
        Self::with(out, ProgressBar::no_length(), "{spinner} {msg} {elapsed}", what)
    }

    /// Counts without a known end.
    pub(super) fn count(out: &Out<'_>, what: impl Into<Cow<'static, str>>) -> Self {
        Self::with(out, ProgressBar::no_length(), "{spinner} {msg} {human_pos} {per_sec} {elapsed}", what)
    }

    /// Bytes of so many.
    pub(super) fn bytes(out: &Out<'_>, total: u64, what: impl Into<Cow<'static, str>>) -> Self {
        Self::with(out, ProgressBar::new(total), "{msg} [{bar:30}] {bytes}/{total_bytes} {eta}", what)
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
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
