//! Server-sent events on their way through: bytes pass unchanged, token counts are read from a copy, and the chunk of
//! counts that only we asked for is taken out.

use bytes::{Bytes, BytesMut};
use memchr::memmem;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::rename::Rename;

/// Longest event that is held back until it is whole.
const LONGEST_EVENT: usize = 1 << 20;
/// Bytes at the end of an answer that is no stream, in which its counts are looked for.
const TAIL: usize = 16 << 10;
const USAGE: &[u8] = b"\"usage\"";

/// Token counts as an engine reports them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Usage {
    /// Prompt tokens.
    #[serde(alias = "input_tokens")]
    pub prompt_tokens: u64,
    /// Answer tokens; none for an embedding.
    #[serde(alias = "output_tokens", default)]
    pub completion_tokens: u64,
}

/// One event's data, as far as it concerns us; `/v1/responses` has the counts one level down.
#[derive(Deserialize)]
struct Chunk {
    usage: Option<Usage>,
    choices: Option<Vec<IgnoredAny>>,
    response: Option<Inner>,
}

#[derive(Deserialize)]
struct Inner {
    usage: Option<Usage>,
}

/// Watches one answer pass.
#[derive(Debug)]
pub struct Watch {
    /// Whether it is a stream of events.
    events: bool,
    /// Whether the chunk of counts is taken out.
    strip: bool,
    /// Of a stream: the beginning of an event that is not whole yet. Else: the end of the answer.
    held: BytesMut,
    /// Of a stream: bytes of that in which no event ends, so that each byte is looked at once.
    searched: usize,
    usage: Option<Usage>,
    chunks: u64,
    done: bool,
    rename: Option<Rename>,
}

impl Watch {
    /// For a stream of events, or for an answer in one piece.
    pub fn new(events: bool, strip: bool) -> Self {
        Self {
            events,
            strip: events && strip,
            held: BytesMut::new(),
            searched: 0,
            usage: None,
            chunks: 0,
            done: false,
            rename: None,
        }
    }

    /// The same; and the client gets `ours` for the model's name where it is `theirs`.
    #[must_use]
    pub fn renaming(self, theirs: &str, ours: &str) -> Self {
        Self { rename: Some(Rename::new(theirs, ours)), ..self }
    }

    /// What the client gets for `data` that has come.
    pub fn pass(&mut self, data: Bytes) -> Bytes {
        let passed = self.watch(data);
        match &mut self.rename {
            Some(rename) => rename.pass(passed),
            None => passed,
        }
    }

    fn watch(&mut self, data: Bytes) -> Bytes {
        if !self.events {
            self.remember(&data);
            return data;
        }
        if self.held.is_empty() && ends_an_event(&data) && !has_usage(&data) {
            self.chunks += memmem::find_iter(&data, b"\n\n").count() as u64;
            self.done |= is_done(&data);
            return data;
        }
        self.held.extend_from_slice(&data);
        let passed = self.cut();
        if self.held.len() > LONGEST_EVENT {
            let long = self.held.split().freeze();
            self.searched = 0;
            return if self.strip { [passed, long].concat().into() } else { data };
        }
        if self.strip { passed } else { data }
    }

    /// What is still held back when the answer has ended.
    pub fn rest(&mut self) -> Bytes {
        let rest = if self.strip { self.held.split().freeze() } else { Bytes::new() };
        self.searched = 0;
        match &mut self.rename {
            Some(rename) => [rename.pass(rest), rename.rest()].concat().into(),
            None => rest,
        }
    }

    /// What the client gets for an answer that is there as a whole.
    pub(crate) fn pass_whole(&mut self, data: Bytes) -> Bytes {
        let passed = self.pass(data);
        let rest = self.rest();
        if rest.is_empty() { passed } else { [passed, rest].concat().into() }
    }

    /// The counts, if they have come.
    pub fn usage(&self) -> Option<Usage> {
        if self.events { self.usage } else { last_usage(&self.held) }
    }

    /// Events with data so far: nearly the answer's tokens.
    pub fn chunks(&self) -> u64 {
        self.chunks
    }

    /// Whether `[DONE]` has come.
    pub fn is_done(&self) -> bool {
        self.done
    }

    fn remember(&mut self, data: &[u8]) {
        let from = data.len().saturating_sub(TAIL);
        self.held.extend_from_slice(&data[from..]);
        let extra = self.held.len().saturating_sub(TAIL);
        let _ = self.held.split_to(extra);
    }

    /// Takes the whole events out of what is held, and returns those that pass.
    fn cut(&mut self) -> Bytes {
        let mut passed = BytesMut::new();
        while let Some(length) = event_length(&self.held, self.searched) {
            let event = self.held.split_to(length);
            self.searched = 0;
            self.done |= is_done(&event);
            let counts_only = has_usage(&event) && self.count(&event);
            if !(self.strip && counts_only) {
                self.chunks += 1;
                passed.extend_from_slice(&event);
            }
        }
        self.searched = self.held.len();
        passed.freeze()
    }

    /// Reads an event's counts; true if it holds nothing else.
    fn count(&mut self, event: &[u8]) -> bool {
        let data = event.split(|byte| *byte == b'\n').filter_map(|line| line.strip_prefix(b"data:"));
        let mut counts_only = false;
        for chunk in data.filter_map(|data| serde_json::from_slice::<Chunk>(data).ok()) {
            let usage = chunk.usage.or(chunk.response.and_then(|response| response.usage));
            self.usage = usage.or(self.usage);
            counts_only = usage.is_some() && chunk.choices.is_some_and(|choices| choices.is_empty());
        }
        counts_only
    }
}

fn ends_an_event(data: &[u8]) -> bool {
    data.ends_with(b"\n\n")
}

fn is_done(data: &[u8]) -> bool {
    memmem::find(data, b"data: [DONE]").or_else(|| memmem::find(data, b"data:[DONE]")).is_some()
}

/// Length of the first whole event, its blank line included; none ends in the first `searched` bytes.
fn event_length(data: &[u8], searched: usize) -> Option<usize> {
    let mut ends = memchr::memchr_iter(b'\n', &data[searched..]).map(|at| searched + at + 1);
    ends.find(|end| data[..*end].ends_with(b"\n\n") || data[..*end].ends_with(b"\r\n\r\n"))
}

/// Whether a key `usage` with a value other than null is there. Inside a text its quotes would be escaped.
fn has_usage(data: &[u8]) -> bool {
    memmem::find_iter(data, USAGE).any(|at| {
        let value = data[at + USAGE.len()..].iter().find(|byte| !matches!(byte, b' ' | b':'));
        value != Some(&b'n')
    })
}

/// The last counts in the text of an answer.
pub(crate) fn last_usage(text: &[u8]) -> Option<Usage> {
    let at = memmem::rfind(text, USAGE)? + USAGE.len();
    let colon = text[at..].iter().position(|byte| *byte == b':')?;
    let value = serde_json::Deserializer::from_slice(&text[at + colon + 1..]);
    value.into_iter::<Usage>().next()?.ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STREAM: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"\\\"usage\\\": é😀\"}}],\"usage\":null}\n\n\
        : a comment\n\n\
        data: {\"choices\":[{\"delta\":{}}],\"usage\":null}\r\n\r\n\
        data: {\"choices\": [], \"usage\": {\"prompt_tokens\":3,\"completion_tokens\":2,\"total_tokens\":5}}\n\n\
        data: [DONE]\n\n";

    fn through(watch: &mut Watch, pieces: &[&[u8]]) -> Vec<u8> {
        let mut passed: Vec<u8> = Vec::new();
        for piece in pieces {
            passed.extend_from_slice(&watch.pass(Bytes::copy_from_slice(piece)));
        }
        passed.extend_from_slice(&watch.rest());
        passed
    }

    const COUNTED: Option<Usage> = Some(Usage { prompt_tokens: 3, completion_tokens: 2 });

    #[test]
    fn an_answer_in_one_piece_is_counted() {
        let mut watch = Watch::new(false, true);
        let body = br#"{"usage":{"a":1},"choices":[],"usage": {"input_tokens":3,"output_tokens":2},"x":1}"#;
        assert_eq!(through(&mut watch, &[&body[..40], &body[40..]]), body);
        assert_eq!(watch.usage(), COUNTED);
        let mut embedding = Watch::new(false, false);
        embedding.pass(Bytes::from_static(br#"{"usage":{"prompt_tokens":3,"total_tokens":3}}"#));
        assert_eq!(embedding.usage().map(|usage| usage.completion_tokens), Some(0));
    }

    #[test]
    fn responses_are_counted() {
        let mut watch = Watch::new(true, false);
        let event = b"event: response.completed\ndata: {\"response\":{\"usage\":{\"input_tokens\":3,\"output_tokens\":2}}}\n\n";
        assert_eq!(through(&mut watch, &[event]), event);
        assert_eq!((watch.usage(), watch.is_done()), (COUNTED, false));
    }

    #[test]
    fn an_endless_event_is_let_through() {
        let mut watch = Watch::new(true, true);
        let long = vec![b'x'; LONGEST_EVENT + 1];
        assert_eq!(through(&mut watch, &[&long]), long);
    }

    /// Looked at again with each byte, this would be half a terabyte.
    #[test]
    fn an_event_that_comes_byte_by_byte_is_looked_at_once() {
        let mut watch = Watch::new(true, true);
        let began = std::time::Instant::now();
        let passed: usize = (0..LONGEST_EVENT).map(|_| watch.pass(Bytes::from_static(b"x")).len()).sum();
        assert_eq!((passed, watch.rest().len()), (0, LONGEST_EVENT));
        assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
    }

    proptest! {
        /// However a stream is cut to pieces: nothing but the counts is taken out, and only if so asked.
        #[test]
        fn any_cut_gives_the_same(cuts in proptest::collection::vec(0..STREAM.len(), 0..20), strip: bool) {
            let mut cuts = cuts;
            cuts.extend([0, STREAM.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &STREAM.as_bytes()[pair[0]..pair[1]]).collect();
            let mut watch = Watch::new(true, strip);
            let counts = "data: {\"choices\": [], \"usage\": {\"prompt_tokens\":3,\"completion_tokens\":2,\"total_tokens\":5}}\n\n";
            let want = if strip { STREAM.replace(counts, "") } else { STREAM.to_owned() };
            prop_assert_eq!(String::from_utf8(through(&mut watch, &pieces)).unwrap(), want);
            prop_assert_eq!(watch.usage(), COUNTED);
            prop_assert!(watch.is_done());
        }

        #[test]
        fn any_bytes_pass(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..10), events: bool) {
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(through(&mut Watch::new(events, true), &pieces), pieces.concat());
        }
    }
}
