//! How far something long is: on a terminal, and nowhere else.

use std::io::{IsTerminal, stderr};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::Output;

/// A bar on standard error. It goes away with the value.
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// Counts `what`. Programs that read JSON, and files, get none.
    pub(super) fn new(output: Output, what: &'static str) -> Self {
        let shown = stderr().is_terminal() && !output.is_json();
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target).with_message(what);
        Self(styled(bar, "{pos} {msg}"))
    }

    /// How many there are.
    pub(super) fn until(&self, count: u64) {
        self.0.set_length(count);
        styled(self.0.clone(), "{wide_bar} {pos} of {len} {msg}, {eta} left");
    }

    /// How many are done.
    pub(super) fn at(&self, count: u64) {
        self.0.set_position(count);
    }

    /// Takes the bar away.
    pub(super) fn done(&self) {
        self.0.finish_and_clear();
    }
}

fn styled(bar: ProgressBar, template: &str) -> ProgressBar {
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
