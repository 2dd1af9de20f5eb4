//! The log of decisions: JSON lines that are a trace, so that yesterday's traffic plans tomorrow's fleet; and the log of
//! feedback beside it.

use std::fs::OpenOptions;
use std::io::{BufWriter, Write, stdout};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::Serialize;

use crate::cascade::Replaced;
use crate::metrics::Counter;
use crate::quality::Feedback;

/// Lines that may wait to be written; more are dropped and counted, since answers do not wait for a disk.
const WAITING_LINES: usize = 1 << 14;
/// Lines reach the file this often.
const FLUSH: Duration = Duration::from_secs(1);
/// The name of standard output as a log.
const STDOUT: &str = "/dev/stdout";

/// Where lines go.
type Sink = BufWriter<Box<dyn Write + Send>>;

/// One answered request, as it stands in the log. The first three keys are Mooncake's.
#[derive(Debug, Serialize)]
pub(crate) struct DecisionLine<'a> {
    /// Arrival, in milliseconds since the Unix epoch.
    pub(crate) timestamp: u64,
    pub(crate) input_length: u64,
    pub(crate) output_length: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) session_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt: Option<&'a str>,
    pub(crate) decision: Decision<'a>,
}

/// What was decided, and what came of it.
#[derive(Debug, Serialize)]
pub(crate) struct Decision<'a> {
    pub(crate) request_id: &'a str,
    pub(crate) operation: &'static str,
    pub(crate) asked: &'a str,
    pub(crate) model: &'a str,
    pub(crate) replica: &'a str,
    pub(crate) reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) score: Option<f32>,
    /// The chance that this model was taken, where others are explored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) propensity: Option<f64>,
    /// The answer of a smaller model that this one took the place of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) replaced: Option<&'a Replaced>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<&'a str>,
    pub(crate) attempts: u32,
    pub(crate) status: u16,
    /// `done`, `broken`, `cancelled` or `error`; a replaced answer is in the line of the one that replaced it.
    pub(crate) ending: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ttft_ms: Option<f64>,
    pub(crate) e2e_ms: f64,
}

#[derive(Serialize)]
struct FeedbackLine<'a> {
    request_id: &'a str,
    model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    predicted: Option<f32>,
    score: f64,
}

/// Both logs.
#[derive(Debug)]
pub(crate) struct DecisionLog {
    decisions: JsonLines,
    /// `None` where both are one stream.
    feedback: Option<JsonLines>,
}

impl DecisionLog {
    /// Appends to the file at `path`, and to `PATH.feedback.jsonl`; standard output takes both.
    pub(crate) fn open(path: &Path) -> std::io::Result<Self> {
        let decisions = JsonLines::open(path)?;
        if path == Path::new(STDOUT) {
            return Ok(Self { decisions, feedback: None });
        }
        let mut feedback = path.as_os_str().to_owned();
        feedback.push(".feedback.jsonl");
        Ok(Self { decisions, feedback: Some(JsonLines::open(Path::new(&feedback))?) })
    }

    pub(crate) fn decided(&self, line: &DecisionLine<'_>) {
        self.decisions.write(line);
    }

    pub(crate) fn rated(&self, feedback: &Feedback) {
        let Feedback { request_id, model, predicted, score } = feedback;
        let log = self.feedback.as_ref().unwrap_or(&self.decisions);
        log.write(&FeedbackLine { request_id, model, predicted: *predicted, score: *score });
    }

    /// Lines that were dropped.
    pub(crate) fn dropped(&self) -> u64 {
        let logs = std::iter::once(&self.decisions).chain(&self.feedback);
        logs.map(|log| log.dropped.get()).sum()
    }
}

/// A file that a thread of its own appends to. All that was taken is on disk when it has been dropped.
#[derive(Debug)]
struct JsonLines {
    lines: Option<SyncSender<String>>,
    writer: Option<JoinHandle<()>>,
    dropped: Counter,
}

impl JsonLines {
    fn open(path: &Path) -> std::io::Result<Self> {
        let file = append_to(path)?;
        let (lines, received) = sync_channel(WAITING_LINES);
        let path = path.to_owned();
        let writer = std::thread::Builder::new()
            .name("log".into())
            .spawn(move || write_lines(&received, file, &path))?;
        Ok(Self { lines: Some(lines), writer: Some(writer), dropped: Counter::default() })
    }

    fn write(&self, line: &impl Serialize) {
        let Ok(mut text) = serde_json::to_string(line) else { return };
        text.push('\n');
        let sent = self.lines.as_ref().map(|lines| lines.try_send(text));
        if matches!(sent, Some(Err(TrySendError::Full(_) | TrySendError::Disconnected(_)))) {
            self.dropped.add(1);
        }
    }
}

impl Drop for JsonLines {
    fn drop(&mut self) {
        drop(self.lines.take());
        if let Some(writer) = self.writer.take() {
            // It ends when all is written.
            let _ = writer.join();
        }
    }
}

fn append_to(path: &Path) -> std::io::Result<Sink> {
    // A container's user may write to it, but perhaps not open it.
    if path == Path::new(STDOUT) {
        return Ok(BufWriter::new(Box::new(stdout())));
    }
    let file = OpenOptions::new().append(true).create(true).open(path)?;
    Ok(BufWriter::new(Box::new(file)))
}

fn write_lines(lines: &Receiver<String>, mut file: Sink, path: &Path) {
    loop {
        match lines.recv_timeout(FLUSH) {
            // A full disk loses lines, not requests.
            Ok(line) => drop(file.write_all(line.as_bytes())),
            Err(RecvTimeoutError::Timeout) => {
                drop(file.flush());
                // Whoever rotates logs moves the file away.
                if !path.exists()
                    && let Ok(new) = append_to(path)
                {
                    file = new;
                }
            }
            Err(RecvTimeoutError::Disconnected) => return drop(file.flush()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_there_when_the_log_is_closed() {
        let path = std::env::temp_dir().join(format!("boute-lines-{}.jsonl", std::process::id()));
        let _ = std::fs::remove_file(&path);
        for number in 0..2 {
            let lines = JsonLines::open(&path).unwrap();
            lines.write(&number);
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "0\n1\n");
        std::fs::remove_file(&path).unwrap();
        assert!(JsonLines::open(Path::new("/no/such/folder/x")).is_err());
    }

    #[test]
    fn feedback_has_a_file_where_decisions_have_one() {
        let path = std::env::temp_dir().join(format!("boute-decided-{}.jsonl", std::process::id()));
        let log = DecisionLog::open(&path).unwrap();
        let feedback = path.with_extension("jsonl.feedback.jsonl");
        assert!(log.feedback.is_some() && feedback.exists());
        for path in [&path, &feedback] {
            std::fs::remove_file(path).unwrap();
        }
        assert!(DecisionLog::open(Path::new(STDOUT)).unwrap().feedback.is_none());
    }
}
