//! A model's name in an answer, where the engine knows it by another: the value of every `"model"` that is the engine's
//! name becomes ours, and no other byte changes. Inside a text the key's quotes would be escaped, so it is a key.

use bytes::{Bytes, BytesMut};
use memchr::memmem;
use serde_json::Value;

const KEY: &[u8] = b"\"model\"";
/// Blanks around a colon, at most: what has more is not waited for.
const LONGEST_GAP: usize = 64;

/// Rewrites one answer on its way through, however it is cut to pieces.
#[derive(Debug)]
pub(crate) struct Rename {
    /// Both as JSON strings.
    theirs: String,
    ours: String,
    /// The end of a piece that may be the beginning of what is sought.
    held: BytesMut,
}

/// What follows a key.
enum Follows {
    /// Their name, at these bytes.
    Theirs(usize, usize),
    Other,
    /// It is not all there yet.
    Cut,
}

impl Rename {
    pub(crate) fn new(theirs: &str, ours: &str) -> Self {
        let quoted = |name: &str| Value::from(name).to_string();
        Self { theirs: quoted(theirs), ours: quoted(ours), held: BytesMut::new() }
    }

    /// What the client gets for `data` that has come.
    pub(crate) fn pass(&mut self, data: Bytes) -> Bytes {
        let data = if self.held.is_empty() {
            data
        } else {
            self.held.extend_from_slice(&data);
            self.held.split().freeze()
        };
        let mut passed = BytesMut::new();
        let (mut done, mut from) = (0, 0);
        let end = loop {
            let Some(key) = memmem::find(&data[from..], KEY).map(|at| from + at) else {
                break data.len() - begun_key(&data[from..]);
            };
            from = key + KEY.len();
            match self.follows(&data[from..]) {
                Follows::Theirs(start, end) => {
                    passed.extend_from_slice(&data[done..from + start]);
                    passed.extend_from_slice(self.ours.as_bytes());
                    from += end;
                    done = from;
                }
                Follows::Other => {}
                Follows::Cut => break key,
            }
        };
        self.held.extend_from_slice(&data[end..]);
        if done == 0 {
            return data.slice(..end);
        }
        passed.extend_from_slice(&data[done..end]);
        passed.freeze()
    }

    /// What is still held back when the answer has ended.
    pub(crate) fn rest(&mut self) -> Bytes {
        self.held.split().freeze()
    }

    fn follows(&self, text: &[u8]) -> Follows {
        let blanks = |text: &[u8]| text.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        let colon = blanks(text);
        let value = match text.get(colon) {
            Some(b':') => colon + 1 + blanks(&text[colon + 1..]),
            Some(_) => return Follows::Other,
            None => colon,
        };
        if value > LONGEST_GAP {
            return Follows::Other;
        }
        let (rest, theirs) = (&text[value..], self.theirs.as_bytes());
        if rest.starts_with(theirs) {
            Follows::Theirs(value, value + theirs.len())
        } else if theirs.starts_with(rest) {
            Follows::Cut
        } else {
            Follows::Other
        }
    }
}

/// How many bytes at the end of `text` may be the beginning of a key.
fn begun_key(text: &[u8]) -> usize {
    (1..KEY.len()).rev().find(|length| text.ends_with(&KEY[..*length])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ANSWER: &str = r#"data: {"id":"model","model" : "meta/\"8b\"","x":"\"model\":\"meta/\\\"8b\\\"\"","model":"meta/\"8b\" chat"}

data: {"response":{"model":"meta/\"8b\""},"model""#;

    proptest! {
        /// However an answer is cut: their name becomes ours where it is a model's, and all else stays.
        #[test]
        fn any_cut_gives_the_same(cuts in proptest::collection::vec(0..ANSWER.len(), 0..20)) {
            let mut cuts = cuts;
            cuts.extend([0, ANSWER.len()]);
            cuts.sort_unstable();
            let mut rename = Rename::new("meta/\"8b\"", "8b");
            let mut passed = Vec::new();
            for pair in cuts.windows(2) {
                passed.extend_from_slice(&rename.pass(Bytes::from_static(&ANSWER.as_bytes()[pair[0]..pair[1]])));
            }
            passed.extend_from_slice(&rename.rest());
            let want = ANSWER
                .replacen(r#""model" : "meta/\"8b\"""#, r#""model" : "8b""#, 1)
                .replacen(r#"{"model":"meta/\"8b\""}"#, r#"{"model":"8b"}"#, 1);
            prop_assert_eq!(String::from_utf8(passed).unwrap(), want);
        }
    }

    #[test]
    fn nothing_is_held_back_for_long() {
        let mut rename = Rename::new("theirs", "ours");
        let blanks = format!("\"model\"{}", " ".repeat(LONGEST_GAP + 1));
        assert_eq!(rename.pass(blanks.clone().into()), blanks);
        assert_eq!(rename.pass("{\"model\":\"thei".into()), "{");
        assert_eq!(rename.pass("f\"}".into()), "\"model\":\"theif\"}");
    }
}
