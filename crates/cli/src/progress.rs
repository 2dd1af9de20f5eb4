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
        let style = ProgressStyle::with_template("{msg:<44} {bar:28} {pos}/{len}  {elapsed}, {eta} left")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.progress_chars("█▓░"));
        Self { bar, lines: (!quiet && !terminal).then(|| Mutex::new(Instant::now())) }
    }

    /// `done` of `total` of the work that `message` describes.
    pub(crate) fn at(&self, message: &str, done: u64, total: u64) {
        self.bar.set_length(total);
        self.bar.set_position(done);
        if self.bar.message() != message {
            self.bar.set_message(message.to_owned());
        }
        let Some(last) = self.lines.as_ref().and_then(|lines| lines.try_lock().ok()) else { return };
        let mut last = last;
        if last.elapsed() >= LINE_EVERY {
            *last = Instant::now();
            let left = self.bar.eta().as_secs();
            anstream::eprintln!("{message}: {done}/{total}, about {left} s left");
        }
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
