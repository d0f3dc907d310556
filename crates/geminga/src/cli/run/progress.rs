//! What a running mesh shows: a bar and a line for each component on a terminal, a plain line now
//! and then elsewhere. All of it on stderr.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output;

/// What one component did so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) received: u64,
    pub(crate) written: u64,
    pub(crate) failed: u64,
    pub(crate) retried: u64,
    /// What a bounded source will give in all, once it knows.
    pub(crate) total: u64,
    pub(crate) last_error: Option<String>,
}

/// The display of a run.
pub(crate) struct Display {
    names: Vec<String>,
    width: usize,
    terminal: Option<Bars>,
    started: Instant,
    /// When rates were last taken, and what was received then.
    last: (Instant, Vec<u64>),
    rates: Vec<f64>,
    said: Instant,
    plain_said: String,
    errors: Vec<Option<String>>,
}

struct Bars {
    total: Option<ProgressBar>,
    lines: Vec<ProgressBar>,
    all: MultiProgress,
}

/// How often a plain line is printed where there is no terminal.
const PLAIN_INTERVAL: Duration = Duration::from_secs(2);
/// How often rates are taken.
const RATE_INTERVAL: Duration = Duration::from_millis(500);

impl Display {
    pub(crate) fn new(names: Vec<String>, is_bounded: bool) -> Self {
        let now = Instant::now();
        let terminal = std::io::stderr().is_terminal().then(|| {
            let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10));
            let total = is_bounded.then(|| {
                let bar = all.add(ProgressBar::new(0));
                let style = ProgressStyle::with_template(
                    "{bar:40} {percent:>3} %  {pos}/{len} events  {elapsed}",
                );
                bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
            });
            let plain = ProgressStyle::with_template("{msg}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
            let lines = names
                .iter()
                .map(|_| {
                    all.add(ProgressBar::new_spinner())
                        .with_style(plain.clone())
                })
                .collect();
            Bars { total, lines, all }
        });
        Self {
            width: names
                .iter()
                .map(|name| name.chars().count())
                .max()
                .unwrap_or(0),
            rates: vec![0.0; names.len()],
            last: (now, vec![0; names.len()]),
            errors: vec![None; names.len()],
            names,
            terminal,
            started: now,
            said: now,
            plain_said: String::new(),
        }
    }

    /// Shows the counts of all components, in the order of the names.
    pub(crate) fn show(&mut self, counts: &[Counts]) {
        self.take_rates(counts);
        self.tell_errors(counts);
        match &self.terminal {
            Some(bars) => {
                if let Some(bar) = &bars.total {
                    let (read, total) = of_sources(counts);
                    bar.set_length(total);
                    bar.set_position(read);
                }
                for (at, line) in bars.lines.iter().enumerate() {
                    line.set_message(self.line(at, &counts[at]));
                }
            }
            None if self.said.elapsed() >= PLAIN_INTERVAL => {
                self.said = Instant::now();
                let text = self.plain(counts);
                // A log is no place for the same line again and again.
                if text != self.plain_said {
                    output::note(&text);
                    self.plain_said = text;
                }
            }
            None => {}
        }
    }

    /// A line that stays above the bars.
    pub(crate) fn say(&self, text: &str) {
        match &self.terminal {
            Some(bars) => {
                let _ = bars.all.println(text);
            }
            None => output::note(text),
        }
    }

    /// The last look, which stays.
    pub(crate) fn finish(mut self, counts: &[Counts]) {
        self.take_rates(counts);
        self.tell_errors(counts);
        let seconds = self.started.elapsed().as_secs_f64();
        if let Some(bars) = &self.terminal {
            let _ = bars.all.clear();
        }
        // The whole run's rates are worth more than those of the last moment.
        for (at, count) in counts.iter().enumerate() {
            self.rates[at] = count.received as f64 / seconds.max(0.001);
        }
        for (at, count) in counts.iter().enumerate() {
            output::note(&self.line(at, count));
        }
        output::note(&format!("done in {seconds:.2} s"));
    }

    fn take_rates(&mut self, counts: &[Counts]) {
        let elapsed = self.last.0.elapsed();
        if elapsed < RATE_INTERVAL {
            return;
        }
        for (at, count) in counts.iter().enumerate() {
            let new = count.received.saturating_sub(self.last.1[at]);
            self.rates[at] = new as f64 / elapsed.as_secs_f64();
        }
        self.last = (
            Instant::now(),
            counts.iter().map(|count| count.received).collect(),
        );
    }

    /// Each new error once.
    fn tell_errors(&mut self, counts: &[Counts]) {
        for (at, count) in counts.iter().enumerate() {
            if count.last_error.is_some() && count.last_error != self.errors[at] {
                self.errors[at].clone_from(&count.last_error);
                let error = count.last_error.as_deref().unwrap_or_default();
                self.say(&format!("warning: {}: {error}", self.names[at]));
            }
        }
    }

    fn line(&self, at: usize, count: &Counts) -> String {
        format!(
            "{:width$}  {:>9} in  {:>9} out  {:>10}/s  {:>5} failed  {:>5} retried",
            self.names[at],
            count.received,
            count.written,
            format!("{:.0}", self.rates[at]),
            count.failed,
            count.retried,
            width = self.width,
        )
    }

    fn plain(&self, counts: &[Counts]) -> String {
        let (read, total) = of_sources(counts);
        let mut parts = Vec::new();
        if let Some(percent) = (100 * read).checked_div(total) {
            parts.push(format!("{percent} %"));
        }
        for (name, count) in self.names.iter().zip(counts) {
            let mut part = format!("{name} {}", count.received);
            if count.failed + count.retried > 0 {
                part.push_str(&format!(
                    " ({} failed, {} retried)",
                    count.failed, count.retried
                ));
            }
            parts.push(part);
        }
        parts.join(", ")
    }
}

/// Events that the bounded sources gave, of all.
fn of_sources(counts: &[Counts]) -> (u64, u64) {
    let sources = counts.iter().filter(|count| count.total > 0);
    sources.fold((0, 0), |sum, count| {
        (sum.0 + count.received, sum.1 + count.total)
    })
}
