//! Traces and quality data as files: CSV and JSON lines, strict, with the line in every error.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::digest::bucket;
use crate::units::SimTime;
use crate::workload::{InvalidTrace, QualityData, Query, Split, Trace, TraceRequest};

/// What is wrong with a data file, where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct DataError {
    /// Name of the file.
    pub file: String,
    /// One-based line; 0 for the file as a whole.
    pub line: usize,
    /// One-based column; 0 for the line as a whole.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: String,
}

impl fmt::Display for DataError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, column, message, hint } = self;
        match (line, column) {
            (0, _) => write!(f, "{file}: {message}")?,
            (_, 0) => write!(f, "{file}:{line}: {message}")?,
            _ => write!(f, "{file}:{line}:{column}: {message}")?,
        }
        write!(f, "\n  help: {hint}")
    }
}

impl DataError {
    /// What is wrong with `file` as a whole.
    pub fn whole(file: impl Into<String>, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { file: file.into(), line: 0, column: 0, message: message.into(), hint: hint.into() }
    }

    /// What is wrong with JSON text that begins after `lines_before` lines of `file`.
    pub(crate) fn json(file: &str, lines_before: usize, cause: &serde_json::Error, hint: &str) -> Self {
        let text = cause.to_string();
        // The library appends the place, counted from the start of its own text.
        let message = text.rsplit_once(" at line ").map_or(text.as_str(), |(message, _)| message);
        let (line, column) = (lines_before + cause.line().max(1), cause.column());
        Self { file: file.into(), line, column, message: message.into(), hint: hint.into() }
    }
}

const CSV_HEADER: &str = "arrival_time_s,input_tokens,output_tokens";

/// Longest prompt or answer we believe, in tokens.
const MOST_TOKENS: u32 = 100_000_000;

/// Reads a trace: CSV with the header `arrival_time_s,input_tokens,output_tokens`, or Mooncake's JSON lines.
///
/// # Errors
/// With the line, if the text is neither, or is empty, truncated, out of order, or has numbers that cannot be.
pub fn parse_trace(file: &str, text: &str) -> Result<Trace, DataError> {
    let error = |line: usize, message: String, hint: &str| DataError {
        file: file.into(),
        line,
        column: 0,
        message,
        hint: hint.into(),
    };
    let Some((number, first)) = numbered_lines(text).next() else {
        return Err(error(0, "the trace is empty".into(), "give a file with at least one request"));
    };
    let header_lines = usize::from(!first.trim_start().starts_with('{'));
    if header_lines == 1 && first.trim() != CSV_HEADER {
        let message = format!("the first line is `{}`", first.chars().take(60).collect::<String>());
        let hint = format!("a CSV trace starts with the line `{CSV_HEADER}`, a JSON trace with `{{`");
        return Err(error(number, message, &hint));
    }
    let lines = || numbered_lines(text).skip(header_lines);
    if header_lines == 0 {
        return json_trace(file, lines());
    }
    let requests: Result<Vec<_>, _> = lines()
        .map(|(number, line)| {
            let hint = "each line is `seconds,prompt tokens,answer tokens`, such as `0.25,374,44`";
            csv_request(line).map_err(|message| error(number, message, hint))
        })
        .collect();
    let line_of = |index: usize| lines().nth(index).map_or(0, |(number, _)| number);
    Trace::new(requests?).map_err(|invalid| invalid_trace(file, &invalid, line_of))
}

/// Mooncake's lines; or a gateway's log of decisions, whose lines are in order of the answers' ends and count time from the
/// Unix epoch: it is put in order of arrival, and begins with the first.
fn json_trace<'a>(file: &str, lines: impl Iterator<Item = (usize, &'a str)>) -> Result<Trace, DataError> {
    let hint = "each line is {\"timestamp\": ms, \"input_length\": n, \"output_length\": n, …}";
    let mut read = lines
        .map(|(number, line)| {
            let line = serde_json::from_str::<TraceLine>(line);
            line.map(|line| (number, line)).map_err(|cause| DataError::json(file, number - 1, &cause, hint))
        })
        .collect::<Result<Vec<_>, _>>()?;
    if read.iter().all(|(_, line)| line.decision.is_some()) {
        read.sort_by(|(_, a), (_, b)| a.timestamp.total_cmp(&b.timestamp));
        let first = read.first().map_or(0.0, |(_, line)| line.timestamp);
        for (_, line) in &mut read {
            line.timestamp -= first;
        }
    }
    let numbers: Vec<usize> = read.iter().map(|(number, _)| *number).collect();
    let requests: Result<Vec<_>, _> = read
        .into_iter()
        .map(|(number, line)| {
            line.into_request().map_err(|message| DataError {
                file: file.into(),
                line: number,
                column: 0,
                message,
                hint: hint.into(),
            })
        })
        .collect();
    Trace::new(requests?).map_err(|invalid| invalid_trace(file, &invalid, |index| numbers[index]))
}

/// What is wrong with well-formed requests, at the line of the one that is wrong.
fn invalid_trace(file: &str, invalid: &InvalidTrace, line_of: impl Fn(usize) -> usize) -> DataError {
    let (index, hint) = match invalid {
        InvalidTrace::Empty => (None, "give a file with at least one request"),
        InvalidTrace::OutOfOrder { index } => (Some(*index), "sort the file by arrival time"),
        InvalidTrace::NoTokens { index, .. } => {
            (Some(*index), "remove such requests: nothing can be timed without tokens")
        }
    };
    let (line, message, hint) = (index.map_or(0, line_of), invalid.to_string(), hint.into());
    DataError { file: file.into(), line, column: 0, message, hint }
}

const REQUEST_COLUMNS: [&str; 3] = ["arrival_s", "prefill_tokens", "decode_tokens"];

/// Reads requests for one replica: CSV whose header has the columns `arrival_s`, `prefill_tokens` and `decode_tokens`, in
/// any order. Further columns are skipped, so that a file with another simulator's results beside can be given as it is.
///
/// # Errors
/// With the line, if a column is missing, a cell is no number or cannot be, or the rows are out of order; if there is no
/// row.
pub fn parse_requests(file: &str, text: &str) -> Result<Trace, DataError> {
    let error = |line: usize, message: String, hint: &str| DataError {
        file: file.into(),
        line,
        column: 0,
        message,
        hint: hint.into(),
    };
    let hint = "give CSV with the columns `arrival_s,prefill_tokens,decode_tokens`";
    let (number, header) =
        numbered_lines(text).next().ok_or_else(|| error(0, "the file is empty".into(), hint))?;
    let names: Vec<&str> = header.split(',').map(str::trim).collect();
    let position = |column: &&str| {
        let position = names.iter().position(|name| name == column);
        position.ok_or_else(|| error(number, format!("the header has no column `{column}`"), hint))
    };
    let [time, input, output] = REQUEST_COLUMNS.each_ref().map(position);
    let columns = [time?, input?, output?];
    let row = |(number, line): (usize, &str)| {
        let cells: Vec<&str> = line.split(',').map(str::trim).collect();
        if cells.len() != names.len() {
            let message = format!("{} values in a table of {} columns", cells.len(), names.len());
            return Err(error(number, message, "each line has one value for each column of the header"));
        }
        timed_tokens(columns.map(|column| cells[column]))
            .map_err(|message| error(number, message, "each line is like `0.25,374,44`"))
    };
    let requests: Result<Vec<_>, _> = numbered_lines(text).skip(1).map(row).collect();
    let line_of = |index: usize| numbered_lines(text).nth(index + 1).map_or(0, |(number, _)| number);
    Trace::new(requests?).map_err(|invalid| invalid_trace(file, &invalid, line_of))
}

/// The lines that are not blank, with their one-based numbers; without a byte-order mark.
fn numbered_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TraceLine {
    timestamp: f64,
    input_length: u64,
    output_length: u64,
    #[serde(default)]
    hash_ids: Box<[u64]>,
    #[serde(default)]
    prompt: Option<Box<str>>,
    #[serde(default)]
    session_id: Option<Box<str>>,
    /// What the gateway's log of decisions adds.
    decision: Option<IgnoredAny>,
}

impl TraceLine {
    fn into_request(self) -> Result<TraceRequest, String> {
        Ok(TraceRequest {
            arrival: arrival(self.timestamp / 1e3)?,
            input_tokens: tokens(self.input_length)?,
            output_tokens: tokens(self.output_length)?,
            hash_ids: self.hash_ids,
            prompt: self.prompt,
            session_id: self.session_id,
        })
    }
}

fn csv_request(line: &str) -> Result<TraceRequest, String> {
    let mut cells = line.split(',').map(str::trim);
    let mut cell = |name: &str| cells.next().ok_or_else(|| format!("`{name}` is missing"));
    let time = cell("arrival_time_s")?;
    let input = cell("input_tokens")?;
    let output = cell("output_tokens")?;
    if let Some(extra) = cells.next() {
        return Err(format!("one value too many: `{extra}`"));
    }
    timed_tokens([time, input, output])
}

/// A request from the texts of its arrival in seconds, its prompt tokens and its answer tokens.
fn timed_tokens([time, input, output]: [&str; 3]) -> Result<TraceRequest, String> {
    let count =
        |text: &str| text.parse().map_err(|_| format!("`{text}` is not a number of tokens")).and_then(tokens);
    Ok(TraceRequest {
        arrival: arrival(time.parse().map_err(|_| format!("`{time}` is not a time in seconds"))?)?,
        input_tokens: count(input)?,
        output_tokens: count(output)?,
        ..TraceRequest::default()
    })
}

/// Arrivals reach over at most the 213 days that virtual time can hold.
fn arrival(seconds: f64) -> Result<SimTime, String> {
    if (0.0..1.8e7).contains(&seconds) {
        Ok(SimTime::from_seconds(seconds))
    } else {
        Err(format!("an arrival at {seconds} s: times count from the start of the trace, up to 200 days"))
    }
}

fn tokens(count: u64) -> Result<u32, String> {
    u32::try_from(count)
        .ok()
        .filter(|count| *count <= MOST_TOKENS)
        .ok_or_else(|| format!("{count} tokens are more than any model takes"))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QualityLine {
    id: String,
    prompt: String,
    #[serde(default)]
    task: String,
    split: Option<Split>,
    prompt_tokens: Option<u32>,
    scores: BTreeMap<String, f64>,
    #[serde(default)]
    output_tokens: BTreeMap<String, u32>,
    /// How the source scored; kept by importers, not used.
    #[serde(default, rename = "metric")]
    _metric: Option<String>,
}

/// Reads quality data, JSON lines, for `models`; queries which some of these models did not answer are left out.
/// With no `models`, those of the first line. A line without `split` is split by [`bucket`] of its prompt: 0–59 train,
/// 60–69 validation, 70–99 test.
///
/// # Errors
/// With the line, if it is not such JSON, or a score is outside [0, 1]; if an id occurs twice; if a model has no scores
/// at all; if no query remains.
pub fn parse_quality(file: &str, text: &str, models: &[String]) -> Result<QualityData, DataError> {
    let error = |line: usize, message: String, hint: String| DataError {
        file: file.into(),
        line,
        column: 0,
        message,
        hint,
    };
    let mut models = models.to_vec();
    let mut seen = BTreeSet::new();
    let mut ids = BTreeSet::new();
    let mut queries = Vec::new();
    for (number, text) in numbered_lines(text) {
        let line: QualityLine = serde_json::from_str(text).map_err(|cause| {
            let hint = "each line is {\"id\", \"prompt\", \"scores\": {model: 0..1}, …}";
            DataError::json(file, number - 1, &cause, hint)
        })?;
        if let Some((model, score)) = line.scores.iter().find(|(_, score)| !(0.0..=1.0).contains(*score)) {
            let message = format!("`{model}` has the score {score}");
            return Err(error(number, message, "scores lie between 0 and 1: scale them".into()));
        }
        if !ids.insert(line.id.clone()) {
            let hint = "every query has an id of its own: rename or remove one of them";
            return Err(error(number, format!("the id `{}` occurs twice", line.id), hint.into()));
        }
        if models.is_empty() {
            models = line.scores.keys().cloned().collect();
        }
        seen.extend(line.scores.keys().cloned());
        let scores: Option<Vec<f32>> =
            models.iter().map(|model| line.scores.get(model).map(|score| *score as f32)).collect();
        // Without any score a line does not say which models there are.
        let Some(scores) = scores.filter(|scores| !scores.is_empty()) else { continue };
        let output_tokens =
            models.iter().map(|model| line.output_tokens.get(model).copied().unwrap_or_default()).collect();
        queries.push(Query {
            split: line.split.unwrap_or_else(|| split_of(&line.prompt)),
            id: line.id,
            prompt: line.prompt,
            task: line.task,
            prompt_tokens: line.prompt_tokens,
            scores,
            output_tokens,
        });
    }
    if let Some(missing) = models.iter().find(|model| !seen.contains(*model)) {
        let known = seen.into_iter().collect::<Vec<_>>().join(", ");
        let hint =
            if known.is_empty() { "the file is empty".into() } else { format!("it has scores of {known}") };
        return Err(error(0, format!("no query has a score of `{missing}`"), hint));
    }
    if queries.is_empty() {
        let hint = "give queries that all models of the spec have answered";
        return Err(error(0, "no query has scores of all models".into(), hint.into()));
    }
    Ok(QualityData { models, queries })
}

fn split_of(prompt: &str) -> Split {
    match bucket(prompt) {
        0..60 => Split::Train,
        60..70 => Split::Validation,
        _ => Split::Test,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_trace_are_read() {
        let csv =
            parse_trace("t.csv", "arrival_time_s,input_tokens,output_tokens\n0.0,374,44\n4.5,396,109\n")
                .unwrap();
        assert_eq!(csv.requests()[1].arrival, SimTime::from_seconds(4.5));
        let json = "{\"timestamp\":0,\"input_length\":6758,\"output_length\":500,\"hash_ids\":[0,1]}\n";
        assert_eq!(&*parse_trace("t.jsonl", json).unwrap().requests()[0].hash_ids, &[0, 1]);
    }

    #[test]
    fn a_bad_trace_is_refused_with_its_line() {
        let header = "arrival_time_s,input_tokens,output_tokens\n";
        let message = |rows: &str| parse_trace("t.csv", &format!("{header}{rows}")).unwrap_err().to_string();
        insta::assert_snapshot!(message("1,5,5\n0.5,5,5\n"), @r"
        t.csv:3: request 1 arrives before request 0
          help: sort the file by arrival time
        ");
        insta::assert_snapshot!(message("NaN,5,5\n"), @r"
        t.csv:2: an arrival at NaN s: times count from the start of the trace, up to 200 days
          help: each line is `seconds,prompt tokens,answer tokens`, such as `0.25,374,44`
        ");
        for rows in
            ["", "1,5\n", "1,-5,5\n", "1,0,5\n", "1,5,5,5\n", "-1,5,5\n", "inf,5,5\n", "1,5,99999999999\n"]
        {
            message(rows);
        }
        insta::assert_snapshot!(parse_trace("t", "").unwrap_err(), @r"
        t: the trace is empty
          help: give a file with at least one request
        ");
        insta::assert_snapshot!(parse_trace("t", "{\"timestamp\":0,\"input_len").unwrap_err(), @r#"
        t:1:25: EOF while parsing a string
          help: each line is {"timestamp": ms, "input_length": n, "output_length": n, …}
        "#);
        insta::assert_snapshot!(parse_trace("t", "time,in,out\n").unwrap_err(), @r"
        t:1: the first line is `time,in,out`
          help: a CSV trace starts with the line `arrival_time_s,input_tokens,output_tokens`, a JSON trace with `{`
        ");
        let unknown = "\n{\"timestamp\":0,\"input_length\":1,\"output_length\":1,\"input_size\":1}";
        insta::assert_snapshot!(parse_trace("t", unknown).unwrap_err(), @r#"
        t:2:62: unknown field `input_size`, expected one of `timestamp`, `input_length`, `output_length`, `hash_ids`, `prompt`, `session_id`, `decision`
          help: each line is {"timestamp": ms, "input_length": n, "output_length": n, …}
        "#);
    }

    #[test]
    fn requests_are_read_by_column() {
        let header = "decode_tokens,arrival_s,prefill_tokens,theirs_s\n";
        let read = |rows: &str| parse_requests("r.csv", &format!("{header}{rows}"));
        let requests = read("44,0.5,374,9\n").unwrap();
        let request = &requests.requests()[0];
        assert_eq!((request.input_tokens, request.output_tokens), (374, 44));
        assert_eq!(request.arrival, SimTime::from_seconds(0.5));
        insta::assert_snapshot!(read("44,0.5,374,9\n\n44,0.25,374,9\n").unwrap_err(), @r"
        r.csv:4: request 1 arrives before request 0
          help: sort the file by arrival time
        ");
        insta::assert_snapshot!(parse_requests("r.csv", "arrival_s,prefill,decode_tokens\n").unwrap_err(), @r"
        r.csv:1: the header has no column `prefill_tokens`
          help: give CSV with the columns `arrival_s,prefill_tokens,decode_tokens`
        ");
        for rows in ["", "44,0.5\n", "0,0.5,374,9\n", "44,NaN,374,9\n", "44,0.5,-1,9\n", "44,1e9,374,9\n"] {
            read(rows).unwrap_err();
        }
        parse_requests("r.csv", "").unwrap_err();
    }

    #[test]
    fn quality_keeps_what_all_models_answered() {
        let text = "{\"id\":\"a\",\"prompt\":\"x\",\"scores\":{\"s\":1,\"l\":0.5}}\n{\"id\":\"b\",\"prompt\":\"y\",\"scores\":{\"s\":1}}\n";
        let models = ["s".to_owned(), "l".to_owned()];
        let data = parse_quality("q", text, &models).unwrap();
        assert_eq!(data.queries.len(), 1);
        assert_eq!(data.queries[0].scores, [1.0, 0.5]);
        insta::assert_snapshot!(parse_quality("q", text, &["m".to_owned()]).unwrap_err(), @r"
        q: no query has a score of `m`
          help: it has scores of l, s
        ");
        let twice = format!("{text}{text}");
        parse_quality("q", &twice, &models).unwrap_err();
        parse_quality("q", "{\"id\":\"a\",\"prompt\":\"x\",\"scores\":{\"s\":1.5}}", &models).unwrap_err();
        parse_quality("q", "", &[]).unwrap_err();
        let unscored = "{\"id\":\"a\",\"prompt\":\"x\",\"scores\":{}}\n";
        parse_quality("q", unscored, &[]).unwrap_err();
        let scored = "{\"id\":\"b\",\"prompt\":\"x\",\"scores\":{\"s\":1}}";
        let data = parse_quality("q", &format!("{unscored}{scored}"), &[]).unwrap();
        assert_eq!((data.models, data.queries.len()), (vec!["s".to_owned()], 1));
    }

    #[test]
    fn splits_follow_the_hash() {
        // Python: int(hashlib.sha256(b"a b").hexdigest(), 16) % 100, likewise for the other texts.
        for (text, want) in [("a b", 85), ("What is 2 + 2?", 43), ("", 49)] {
            assert_eq!(bucket(text), want, "{text}");
        }
        assert_eq!(bucket("  A  \t b\n"), bucket("a b"));
    }
}
