//! Progress with ETA on stderr: a bar on a terminal, a line every ten seconds elsewhere, nothing for quick work.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Off a terminal, a line at most this often.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Set by the first Ctrl-C: long work stops at the next step and keeps the best so far.
static STOP: AtomicBool = AtomicBool::new(false);

/// Set where nobody wants to see progress.
static QUIET: AtomicBool = AtomicBool::new(false);

/// Whether the user wants no talk, for work deep inside of what knows nothing of the command line.
pub(crate) fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Whether the user wants no talk.
pub(crate) fn set_quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

/// Whether the user asked to stop.
pub(crate) fn stop_requested() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// From here on the first Ctrl-C asks to stop; the second ends the process at once.
pub(crate) fn catch_ctrl_c(runtime: &tokio::runtime::Runtime) {
    runtime.spawn(async {
        while tokio::signal::ctrl_c().await.is_ok() {
            if STOP.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
        }
    });
}

/// One piece of long work.
pub(crate) struct Progress {
    bar: ProgressBar,
    lines: Option<Mutex<Instant>>,
}

impl Progress {
    /// Starts showing, unless `quiet`.
    pub(crate) fn new(quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = ProgressBar::new(0);
        bar.set_draw_target(if quiet || !terminal {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        });
        let style = ProgressStyle::with_template("{msg:<44} {bar:28} {pos}/{len}  {elapsed}{prefix}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.progress_chars("█▓░"));
        Self { bar, lines: (!quiet && !terminal).then(|| Mutex::new(Instant::now())) }
    }

    /// `done` of `total` of the work that `message` describes.
    pub(crate) fn at(&self, message: &str, done: u64, total: u64) {
        if done < self.bar.position() {
            self.bar.reset_elapsed();
        }
        self.bar.set_length(total);
        self.bar.set_position(done);
        let left = self.left(done, total);
        if self.bar.prefix() != left {
            self.bar.set_prefix(left.clone());
        }
        if self.bar.message() != message {
            self.bar.set_message(message.to_owned());
        }
        let Some(last) = self.lines.as_ref().and_then(|lines| lines.try_lock().ok()) else { return };
        let mut last = last;
        if last.elapsed() >= LINE_EVERY {
            *last = Instant::now();
            anstream::eprintln!("{message}: {done}/{total}{left}");
        }
    }

    /// How long the rest takes if it goes on as it went since this work began; nothing before there is a rate.
    fn left(&self, done: u64, total: u64) -> String {
        if done == 0 {
            return String::new();
        }
        let rest = total.saturating_sub(done) as f64 / done as f64;
        format!(", about {:.0} s left", self.bar.elapsed().as_secs_f64() * rest)
    }

    /// Removes the bar.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}
