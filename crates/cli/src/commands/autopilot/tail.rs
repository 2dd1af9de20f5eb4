//! The gateway's log of decisions, followed as it grows and is rotated, in intervals.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, Metadata};
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use boute_planner::autopilot::Observed;

use crate::decisions::Line;
use crate::failure::Failure;

/// Requests that are kept to plan on and to verify on.
const KEPT: usize = 20_000;
/// Answers that take longer than this part of an interval after its end are not counted in it.
const GRACE: u64 = 15;

/// A file that others append to, and move away.
#[derive(Debug)]
struct Tail {
    path: PathBuf,
    file: Option<File>,
    /// The part of a line that is there.
    rest: Vec<u8>,
}

impl Tail {
    /// Lines that have come; what was in a file when it was moved away is read to its end.
    fn lines(&mut self) -> Vec<String> {
        let mut lines = self.read();
        if self.moved() {
            self.rest.clear();
            self.file = File::open(&self.path).ok();
            lines.extend(self.read());
        }
        lines
    }

    /// Whether the file of that name is another one, or was emptied.
    fn moved(&mut self) -> bool {
        let Ok(there) = std::fs::metadata(&self.path) else { return false };
        let Some(file) = &mut self.file else { return true };
        let own = file.metadata().map(|own| id(&own));
        let read = file.stream_position().unwrap_or_default();
        own.ok() != Some(id(&there)) || there.len() < read
    }

    fn read(&mut self) -> Vec<String> {
        if let Some(file) = &mut self.file {
            // What cannot be read now is read the next time.
            let _ = file.read_to_end(&mut self.rest);
        }
        let end = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let whole: Vec<u8> = self.rest.drain(..end).collect();
        String::from_utf8_lossy(&whole).lines().map(str::to_owned).collect()
    }
}

#[cfg(unix)]
fn id(file: &Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (file.dev(), file.ino())
}

#[cfg(not(unix))]
fn id(_: &Metadata) -> (u64, u64) {
    (0, 0)
}

/// What has come in.
#[derive(Debug)]
pub(crate) struct Traffic {
    tail: Tail,
    interval_s: u64,
    /// Intervals that have not ended.
    open: BTreeMap<u64, Observed>,
    /// The first that may be told.
    next: u64,
    /// Whether one was: what was missed before is unknown, what is missing afterwards is no traffic.
    begun: bool,
    recent: VecDeque<Line>,
    /// Lines that are none of a log.
    strange: u64,
}

impl Traffic {
    /// Follows `path`; intervals before `next` are told already.
    pub(crate) fn follow(path: &Path, interval_s: u64, next: u64) -> Self {
        let tail = Tail { path: path.to_owned(), file: File::open(path).ok(), rest: Vec::new() };
        let (open, recent) = (BTreeMap::new(), VecDeque::new());
        Self { tail, interval_s, open, next, begun: false, recent, strange: 0 }
    }

    /// An error if what was read cannot be a gateway's log.
    pub(crate) fn understood(&self) -> Result<(), Failure> {
        if self.strange == 0 || !self.recent.is_empty() {
            return Ok(());
        }
        Err(Failure::input(
            format_args!("no line of `{}` is one of a gateway's log of decisions", self.tail.path.display()),
            "`boute serve PLAN --decisions FILE` writes it",
        ))
    }

    /// The intervals that have ended since the last time.
    pub(crate) fn ended(&mut self, now_s: u64) -> Vec<Observed> {
        for line in self.tail.lines() {
            let Some(line) = Line::parse(&line) else {
                self.strange += 1;
                continue;
            };
            let interval = (line.timestamp * 1e-3) as u64 / self.interval_s;
            if interval >= self.next {
                let observed = self.open.entry(interval).or_default();
                observed.requests += 1;
                observed.prompt_tokens += u64::from(line.input_length);
                observed.answer_tokens += u64::from(line.output_length);
                line.count(&mut observed.mix);
            }
            self.recent.push_back(line);
            if self.recent.len() > KEPT {
                self.recent.pop_front();
            }
        }
        let end = now_s.saturating_sub(self.interval_s / GRACE) / self.interval_s;
        let Some((first, _)) = self.open.first_key_value() else { return Vec::new() };
        let first = if self.begun { self.next } else { *first };
        if first >= end {
            return Vec::new();
        }
        (self.begun, self.next) = (true, end);
        let open = &mut self.open;
        // An interval without a line is one without traffic.
        (first..end)
            .map(|interval| Observed { interval, ..open.remove(&interval).unwrap_or_default() })
            .collect()
    }

    /// The latest requests.
    pub(crate) fn recent(&mut self) -> &[Line] {
        self.recent.make_contiguous()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(second: u64) -> String {
        format!(
            "{{\"timestamp\":{},\"input_length\":10,\"output_length\":5,\"decision\":{{\"model\":\"m\",\"reason\":\"policy\",\"score\":0.5}}}}\n",
            second * 1000
        )
    }

    #[test]
    fn a_log_is_read_on_over_rotation_half_lines_and_emptying() {
        use std::io::Write;
        let folder = std::env::temp_dir().join(format!("boute-tail-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("decisions.jsonl");
        let append = |text: &str| {
            let mut file = File::options().append(true).create(true).open(&path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        };
        let mut traffic = Traffic::follow(&path, 10, 0);
        assert!(traffic.ended(105).is_empty());
        append(&line(100));
        let (half, other) = (line(101), line(112));
        append(&half[..20]);
        assert!(traffic.ended(105).is_empty());
        append(&half[20..]);
        std::fs::rename(&path, folder.join("old")).unwrap();
        append(&other);
        let ended = traffic.ended(120);
        let counts: Vec<(u64, u64)> = ended.iter().map(|it| (it.interval, it.requests)).collect();
        assert_eq!(counts, [(10, 2), (11, 1)]);
        assert_eq!((ended[0].prompt_tokens, ended[0].mix.total()), (20, 2));
        File::create(&path).unwrap();
        assert!(traffic.ended(121).is_empty());
        append(&line(145));
        append("no line of ours\n");
        let counts: Vec<(u64, u64)> =
            traffic.ended(150).iter().map(|it| (it.interval, it.requests)).collect();
        assert_eq!(counts, [(12, 0), (13, 0), (14, 1)]);
        assert_eq!(traffic.recent().len(), 4);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
