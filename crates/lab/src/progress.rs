//! What a person sees meanwhile: a bar on a terminal, lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Steps of a run, on standard error.
#[derive(Debug)]
pub(crate) struct Progress {
    started: Instant,
    terminal: bool,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), terminal: std::io::stderr().is_terminal() }
    }

    /// A line about a step.
    pub(crate) fn step(&self, text: &str) {
        eprintln!("{:>6.1} s  {text}", self.started.elapsed().as_secs_f64());
    }

    /// A bar over a known time.
    pub(crate) fn bar(&self, name: &str, length: Duration) -> Bar {
        self.step(&format!("{name}: {} s of load", length.as_secs()));
        let bar = if self.terminal { ProgressBar::new(length.as_secs()) } else { ProgressBar::hidden() };
        let style = ProgressStyle::with_template("          {prefix} [{wide_bar}] {pos}/{len} s {msg}");
        if let Ok(style) = style {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(name.to_owned());
        Bar { bar, name: name.to_owned(), terminal: self.terminal, told: 0 }
    }
}

/// Progress over time.
#[derive(Debug)]
pub(crate) struct Bar {
    bar: ProgressBar,
    name: String,
    terminal: bool,
    told: u64,
}

impl Bar {
    /// Where it is, with a few words.
    pub(crate) fn at(&mut self, elapsed: Duration, words: &str) {
        self.bar.set_position(elapsed.as_secs());
        self.bar.set_message(words.to_owned());
        if !self.terminal && elapsed.as_secs() >= self.told + 10 {
            self.told = elapsed.as_secs();
            eprintln!("          {}: {} s {words}", self.name, self.told);
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
