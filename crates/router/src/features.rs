//! What is read off a conversation: hashed words and word pairs, and a few properties of its surface.
//!
//! Only the head and the tail of a long conversation are read, so that the time of a decision is bounded.

use std::collections::BTreeMap;

/// Bytes read from the start of a conversation.
pub(crate) const HEAD_BYTES: usize = 3 << 10;
/// Bytes read from the end of one that is longer than both.
pub(crate) const TAIL_BYTES: usize = 1 << 10;
/// Number of surface features.
pub(crate) const SURFACE: usize = 24;
/// Their names, for explanations.
pub(crate) const SURFACE_NAMES: [&str; SURFACE] = [
    "length",
    "words",
    "mean word length",
    "share of long words",
    "share of digits",
    "numbers",
    "share of capitals",
    "share beyond ASCII",
    "lines",
    "answer options",
    "line length",
    "question marks",
    "backticks",
    "braces and semicolons",
    "operators",
    "backslashes",
    "dollar signs",
    "commas",
    "quotes",
    "share of mathematical signs",
    "full stops",
    "parentheses",
    "underscores",
    "length per answer option",
];

/// Words longer than this are long.
const LONG_WORD: u32 = 8;
const NONE: u16 = u16::MAX;

/// Buffers for scoring, kept between conversations so that nothing is allocated once they have grown.
#[derive(Debug, Clone, Default)]
pub struct Scratch {
    /// (hash, times it occurs) in order of first occurrence, after [`read`].
    pub(crate) terms: Vec<(u32, u32)>,
    pub(crate) surface: [f32; SURFACE],
    /// Outputs of the linear heads, then of the length heads.
    pub(crate) sums: Vec<f32>,
    /// Known words: (row of the vocabulary, times it occurs).
    pub(crate) known: Vec<(u32, u32)>,
    /// Times each unknown word occurs.
    pub(crate) unknown: Vec<u32>,
    /// Known words: (row of the vocabulary, weight in the conversation).
    pub(crate) words: Vec<(u32, f32)>,
    /// Inputs of the trees.
    pub(crate) inputs: Vec<f32>,
    /// Share of the weight of words that training has not seen.
    pub(crate) novelty: f32,
    hashes: Vec<u32>,
    /// Open addressing: hash → place in `terms`.
    table: Vec<u16>,
}

impl Scratch {
    /// How much of the conversation last scored is in words that training has not seen: 0 nothing, 1 all.
    pub fn novelty(&self) -> f32 {
        self.novelty
    }
}

/// Reads the features of a conversation, given by its messages in order, into `scratch`.
pub(crate) fn read(messages: &[&str], scratch: &mut Scratch) {
    let total: usize = messages.iter().map(|message| message.len() + 1).sum::<usize>().saturating_sub(1);
    // What is between head and tail is skipped.
    let skipped = if total > HEAD_BYTES + TAIL_BYTES { HEAD_BYTES..total - TAIL_BYTES } else { total..total };
    scratch.hashes.clear();
    let mut reader = Reader::new(&mut scratch.hashes);
    let mut start = 0;
    for message in messages {
        let bytes = message.as_bytes();
        let end = start + bytes.len();
        let head = skipped.start.clamp(start, end) - start;
        let tail = skipped.end.clamp(start, end) - start;
        for part in [&bytes[..head], &bytes[tail..]] {
            if !part.is_empty() {
                reader.read(part);
                reader.end_part();
            }
        }
        start = end + 1;
    }
    scratch.surface = reader.counts.surface(total);
    scratch.count_terms();
}

impl Scratch {
    #[expect(
        clippy::needless_bitwise_bool,
        reason = "whether a word is new cannot be foreseen: no branch depends on it alone"
    )]
    fn count_terms(&mut self) {
        let size = (4 * self.hashes.len()).next_power_of_two();
        self.table.clear();
        self.table.resize(size, NONE);
        self.terms.clear();
        self.terms.resize(self.hashes.len(), (0, 0));
        let mut count = 0;
        for &hash in &self.hashes {
            let mut at = hash as usize & (size - 1);
            loop {
                let entry = self.table[at];
                let is_new = entry == NONE;
                let place = if is_new { count } else { entry };
                let (known, times) = &mut self.terms[usize::from(place)];
                if is_new | (*known == hash) {
                    (*known, *times) = (hash, *times + 1);
                    self.table[at] = place;
                    count += u16::from(is_new);
                    break;
                }
                at = (at + 1) & (size - 1);
            }
        }
        self.terms.truncate(usize::from(count));
    }
}

/// What a byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Class {
    Control,
    Lower,
    Upper,
    Digit,
    Beyond,
    /// Begins a character of a script that puts no blanks between words.
    Unspaced,
    Line,
    Question,
    Backtick,
    Brace,
    Operator,
    Backslash,
    Dollar,
    Comma,
    Quote,
    Stop,
    Parenthesis,
    Underscore,
    Sign,
}
const CLASSES: usize = Class::Sign as usize + 1;

const fn class(byte: u8) -> Class {
    match byte {
        b'a'..=b'z' => Class::Lower,
        b'A'..=b'Z' => Class::Upper,
        b'0'..=b'9' => Class::Digit,
        // Kana, Han and Hangul.
        0xE3..=0xED => Class::Unspaced,
        0x80.. => Class::Beyond,
        b'\n' => Class::Line,
        b'?' => Class::Question,
        b'`' => Class::Backtick,
        b'{' | b'}' | b';' => Class::Brace,
        b'+' | b'=' | b'*' | b'/' | b'^' | b'<' | b'>' => Class::Operator,
        b'\\' => Class::Backslash,
        b'$' => Class::Dollar,
        b',' => Class::Comma,
        b'"' | b'\'' => Class::Quote,
        b'.' => Class::Stop,
        b'(' | b')' => Class::Parenthesis,
        b'_' => Class::Underscore,
        b'!'..=b'~' => Class::Sign,
        _ => Class::Control,
    }
}

const CLASS: [Class; 256] = {
    let mut table = [Class::Control; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = class(byte as u8);
        byte += 1;
    }
    table
};

/// A one in the 16 bits that count such bytes of a word; 0 for a byte that ends it.
const IN_WORD: [u64; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = match CLASS[byte] {
            Class::Lower => 1,
            Class::Upper => 1 << 16,
            Class::Digit => 1 << 32,
            Class::Beyond => 1 << 48,
            _ => 0,
        };
        byte += 1;
    }
    table
};

const START: u64 = 0xcbf2_9ce4_8422_2325;

/// One step of FNV-1a.
const fn fnv(hash: u64, byte: u8) -> u64 {
    (hash ^ byte as u64).wrapping_mul(0x0100_0000_01b3)
}

/// Spreads a hash over 32 bits.
fn fold(hash: u64) -> u32 {
    ((hash ^ (hash >> 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u32
}

/// Words are runs of letters and digits; every other printing character is a word of its own.
struct Reader<'a> {
    hashes: &'a mut Vec<u32>,
    counts: Counts,
    previous: u64,
}

impl<'a> Reader<'a> {
    fn new(hashes: &'a mut Vec<u32>) -> Self {
        Self { hashes, counts: Counts::default(), previous: 0 }
    }

    fn end_word(&mut self, word: u64) {
        self.hashes.push(fold(word));
        if self.previous != 0 {
            self.hashes.push(fold(self.previous.rotate_left(17) ^ word));
        }
        self.previous = word;
    }

    /// No pair of words reaches over the end of a part.
    fn end_part(&mut self) {
        self.previous = 0;
        self.counts.bytes += 1;
        self.counts.of[Class::Line as usize] += 1;
    }

    fn read(&mut self, bytes: &[u8]) {
        self.counts.bytes += bytes.len() as u32;
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            let class = CLASS[usize::from(byte)];
            match class {
                Class::Lower | Class::Upper | Class::Digit | Class::Beyond => {
                    let length = self.word(&bytes[at..]);
                    let starts_line = at == 0 || bytes[at - 1] == b'\n';
                    let ends = bytes.get(at + 1).is_some_and(|next| matches!(next, b'.' | b')'));
                    if length == 1 && class == Class::Upper && starts_line && ends {
                        self.counts.option();
                    }
                    self.counts.since_option += length as u32;
                    at += length;
                    continue;
                }
                Class::Unspaced => {
                    let end = bytes.len().min(at + 3);
                    self.end_word(bytes[at..end].iter().fold(START, |hash, byte| fnv(hash, *byte)));
                    self.counts.of[Class::Unspaced as usize] += 3;
                    at = end;
                    continue;
                }
                Class::Control | Class::Line => {}
                _ => self.end_word(fnv(START, byte)),
            }
            self.counts.of[class as usize] += 1;
            self.counts.since_option += 1;
            at += 1;
        }
    }

    /// The word at the start of `bytes`; its length.
    fn word(&mut self, bytes: &[u8]) -> usize {
        let (mut hash, mut length, mut counts) = (START, 0, 0);
        for &byte in bytes {
            let one = IN_WORD[usize::from(byte)];
            if one == 0 {
                break;
            }
            // Lower case: letters of ASCII, and of Latin-1 in UTF-8, differ from capitals in this bit; digits have it.
            hash = fnv(hash, byte | 0x20);
            counts += one;
            length += 1;
        }
        let [upper, digits, beyond] = [16, 32, 48].map(|at| u32::from((counts >> at) as u16));
        self.counts.word(length, digits, upper, beyond);
        self.end_word(hash);
        length as usize
    }
}

/// Running counts over the bytes read.
#[derive(Debug, Default)]
struct Counts {
    of: [u32; CLASSES],
    bytes: u32,
    words: u32,
    word_bytes: u32,
    long_words: u32,
    numbers: u32,
    options: u32,
    /// Bytes since the first option.
    since_option: u32,
}

impl Counts {
    fn word(&mut self, length: u32, digits: u32, upper: u32, beyond: u32) {
        self.words += 1;
        self.word_bytes += length;
        self.long_words += u32::from(length > LONG_WORD);
        self.numbers += u32::from(digits == length);
        self.of[Class::Digit as usize] += digits;
        self.of[Class::Upper as usize] += upper;
        self.of[Class::Beyond as usize] += beyond;
    }

    fn option(&mut self) {
        if self.options == 0 {
            self.since_option = 0;
        }
        self.options += 1;
    }

    fn surface(&self, total_bytes: usize) -> [f32; SURFACE] {
        let of = |class: Class| self.of[class as usize];
        let log = |count: u32| (count as f32).ln_1p();
        let share = |count: u32, of: u32| count as f32 / of.max(1) as f32;
        [
            (total_bytes as f32).ln_1p(),
            log(self.words),
            share(self.word_bytes, self.words),
            share(self.long_words, self.words),
            share(of(Class::Digit), self.bytes),
            log(self.numbers),
            share(of(Class::Upper), self.bytes),
            share(of(Class::Beyond) + of(Class::Unspaced), self.bytes),
            log(of(Class::Line)),
            log(self.options),
            share(self.bytes, of(Class::Line)).ln_1p(),
            log(of(Class::Question)),
            log(of(Class::Backtick)),
            log(of(Class::Brace)),
            log(of(Class::Operator)),
            log(of(Class::Backslash)),
            log(of(Class::Dollar)),
            log(of(Class::Comma)),
            log(of(Class::Quote)),
            share(of(Class::Operator) + of(Class::Backslash), self.bytes),
            log(of(Class::Stop)),
            log(of(Class::Parenthesis)),
            log(of(Class::Underscore)),
            if self.options > 0 { share(self.since_option, self.options).ln_1p() } else { 0.0 },
        ]
    }
}

/// The texts behind the hashes of a conversation, for explanations: slow, and by the same rules.
pub(crate) fn names(messages: &[&str]) -> BTreeMap<u32, String> {
    let mut names = BTreeMap::new();
    for message in messages {
        let words: Vec<(String, u64)> = words(message.as_bytes());
        names.extend(words.iter().map(|(text, hash)| (fold(*hash), text.clone())));
        let pair = |pair: &[(String, u64)]| {
            (fold(pair[0].1.rotate_left(17) ^ pair[1].1), format!("{} {}", pair[0].0, pair[1].0))
        };
        names.extend(words.windows(2).map(pair));
    }
    names
}

fn words(bytes: &[u8]) -> Vec<(String, u64)> {
    let mut words = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let class = CLASS[usize::from(bytes[at])];
        let is_letter = |byte: &&u8| {
            matches!(CLASS[usize::from(**byte)], Class::Lower | Class::Upper | Class::Digit | Class::Beyond)
        };
        let length = match class {
            Class::Unspaced => 3.min(bytes.len() - at),
            _ => bytes[at..].iter().take_while(is_letter).count().max(1),
        };
        let word = &bytes[at..at + length];
        let lower = |byte: u8| if is_letter(&&bytes[at]) { byte | 0x20 } else { byte };
        let hash = word.iter().fold(START, |hash, byte| fnv(hash, lower(*byte)));
        if !matches!(class, Class::Control | Class::Line) {
            words.push((String::from_utf8_lossy(word).to_lowercase(), hash));
        }
        at += length;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(messages: &[&str]) -> Vec<(u32, u32)> {
        let mut scratch = Scratch::default();
        read(messages, &mut scratch);
        scratch.terms
    }

    #[test]
    fn words_and_pairs_are_counted_whatever_their_case() {
        assert_eq!(terms(&["Solve x + 1 = 2, solve it"]), terms(&["solve X + 1 = 2, SOLVE IT"]));
        assert!(terms(&["solve x, solve it"]).iter().any(|(_, times)| *times == 2));
    }

    #[test]
    fn a_conversation_is_read_whole_up_to_a_limit() {
        let [one, two] = [terms(&["first question"]), terms(&["first question", "an answer", "second"])];
        assert!(one.iter().all(|term| two.contains(term)) && two.len() > one.len());
        let long = "word ".repeat(100_000);
        assert!(terms(&[&long]).len() <= 6, "one word, cut at both ends, and pairs");
        for messages in [["start", &long, "end"], ["start ", &long, "end"]] {
            let read = terms(&messages);
            assert!(terms(&["start"]).iter().chain(&terms(&["end"])).all(|term| read.contains(term)));
        }
    }

    #[test]
    fn scripts_without_blanks_are_read_by_character() {
        assert!(terms(&["東京の天気"]).len() == 5 + 4, "five characters, four pairs");
        assert_eq!(terms(&["Éclair"]), terms(&["éclair"]));
    }

    #[test]
    fn any_text_is_read() {
        let mut scratch = Scratch::default();
        for text in ["", "\0\0", "é", "\u{1F600}\u{1F600}", &"?".repeat(20_000), &"東".repeat(5_000)] {
            read(&[text, text], &mut scratch);
            assert!(scratch.surface.iter().all(|value| value.is_finite()));
        }
        read(&[], &mut scratch);
        assert!(scratch.terms.is_empty());
    }

    #[test]
    fn options_are_seen() {
        let mut scratch = Scratch::default();
        read(&["Which?\nA. one\nB. two\nC) three"], &mut scratch);
        assert_eq!(scratch.surface[9], 3.0_f32.ln_1p());
    }
}
