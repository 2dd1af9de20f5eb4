//! What is read off a prompt: hashed words and word pairs, and a few properties of its surface.
//!
//! Only the head and the tail of a long prompt are read, so that the time of a decision is bounded.

/// Hash table size, as a power of two.
pub(crate) const HASH_BITS: u32 = 18;
/// Bytes read from the start of a prompt.
const HEAD_BYTES: usize = 8 << 10;
/// Bytes read from the end of a prompt that is longer.
const TAIL_BYTES: usize = 2 << 10;
/// Number of surface features.
pub(crate) const SURFACE: usize = 20;

/// Buffers for scoring, kept between prompts so that nothing is allocated.
#[derive(Debug, Clone, Default)]
pub struct Scratch {
    /// (slot, term frequency), by slot, after [`read`].
    pub(crate) terms: Vec<(u32, f32)>,
    pub(crate) surface: [f32; SURFACE],
    slots: Vec<u32>,
}

/// FNV-1a with a final mix, to [`HASH_BITS`] bits.
fn slot_of(hash: u64) -> u32 {
    let mixed = (hash ^ (hash >> 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> (64 - HASH_BITS)) as u32
}

const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;

const fn fnv(hash: u64, byte: u8) -> u64 {
    (hash ^ byte as u64).wrapping_mul(0x0100_0000_01b3)
}

/// Reads the features of `prompt` into `scratch`.
pub(crate) fn read(prompt: &str, scratch: &mut Scratch) {
    let bytes = prompt.as_bytes();
    let (head, tail) = if bytes.len() > HEAD_BYTES + TAIL_BYTES {
        (&bytes[..HEAD_BYTES], &bytes[bytes.len() - TAIL_BYTES..])
    } else {
        (bytes, &bytes[..0])
    };
    scratch.slots.clear();
    let mut counts = Counts::default();
    for part in [head, tail] {
        read_words(part, &mut scratch.slots, &mut counts);
    }
    scratch.slots.sort_unstable();
    scratch.terms.clear();
    for &slot in &scratch.slots {
        match scratch.terms.last_mut() {
            Some((last, count)) if *last == slot => *count += 1.0,
            _ => scratch.terms.push((slot, 1.0)),
        }
    }
    for (_, count) in &mut scratch.terms {
        *count = 1.0 + count.ln();
    }
    scratch.surface = counts.surface(bytes.len());
}

/// Words are runs of letters and digits (and all bytes beyond ASCII); every other printing byte is a word of its own.
fn read_words(bytes: &[u8], slots: &mut Vec<u32>, counts: &mut Counts) {
    let (mut word, mut length, mut previous) = (FNV_START, 0_u32, 0_u64);
    let mut end_word = |word: u64, slots: &mut Vec<u32>| {
        slots.push(slot_of(word));
        if previous != 0 {
            slots.push(slot_of(previous.rotate_left(17) ^ word));
        }
        previous = word;
    };
    for &byte in bytes {
        counts.see(byte);
        if byte.is_ascii_alphanumeric() || byte >= 0x80 {
            word = fnv(word, byte.to_ascii_lowercase());
            length += 1;
            continue;
        }
        if length > 0 {
            counts.word(length);
            end_word(word, slots);
            (word, length) = (FNV_START, 0);
        }
        if byte.is_ascii_graphic() {
            end_word(fnv(FNV_START, byte), slots);
        }
    }
    if length > 0 {
        counts.word(length);
        end_word(word, slots);
    }
}

/// Running counts over the bytes read.
#[derive(Debug, Default)]
struct Counts {
    bytes: u32,
    words: u32,
    word_bytes: u32,
    long_words: u32,
    digits: u32,
    numbers: u32,
    capitals: u32,
    beyond_ascii: u32,
    lines: u32,
    option_lines: u32,
    questions: u32,
    backticks: u32,
    braces: u32,
    operators: u32,
    backslashes: u32,
    dollars: u32,
    commas: u32,
    quotes: u32,
    last: [u8; 3],
}

impl Counts {
    fn see(&mut self, byte: u8) {
        let [_, before, last] = self.last;
        self.bytes += 1;
        self.digits += u32::from(byte.is_ascii_digit());
        self.numbers += u32::from(byte.is_ascii_digit() && !last.is_ascii_digit());
        self.capitals += u32::from(byte.is_ascii_uppercase());
        self.beyond_ascii += u32::from(byte >= 0x80);
        self.lines += u32::from(byte == b'\n');
        // "A." at the start of a line: a list of options.
        self.option_lines += u32::from(byte == b'.' && last.is_ascii_uppercase() && before == b'\n');
        self.questions += u32::from(byte == b'?');
        self.backticks += u32::from(byte == b'`');
        self.braces += u32::from(matches!(byte, b'{' | b'}' | b';'));
        self.operators += u32::from(matches!(byte, b'+' | b'=' | b'*' | b'/' | b'^' | b'<' | b'>'));
        self.backslashes += u32::from(byte == b'\\');
        self.dollars += u32::from(byte == b'$');
        self.commas += u32::from(byte == b',');
        self.quotes += u32::from(matches!(byte, b'"' | b'\''));
        self.last = [before, last, byte];
    }

    fn word(&mut self, length: u32) {
        self.words += 1;
        self.word_bytes += length;
        self.long_words += u32::from(length > 8);
    }

    fn surface(&self, total_bytes: usize) -> [f32; SURFACE] {
        let log = |count: u32| (count as f32).ln_1p();
        let share = |count: u32, of: u32| count as f32 / of.max(1) as f32;
        [
            (total_bytes as f32).ln_1p(),
            log(self.words),
            share(self.word_bytes, self.words),
            share(self.long_words, self.words),
            share(self.digits, self.bytes),
            log(self.numbers),
            share(self.capitals, self.bytes),
            share(self.beyond_ascii, self.bytes),
            log(self.lines),
            log(self.option_lines),
            share(self.bytes, self.lines + 1).ln_1p(),
            log(self.questions),
            log(self.backticks),
            log(self.braces),
            log(self.operators),
            log(self.backslashes),
            log(self.dollars),
            log(self.commas),
            log(self.quotes),
            share(self.operators + self.backslashes, self.bytes),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_pairs_are_counted_whatever_their_case() {
        let (mut upper, mut lower) = (Scratch::default(), Scratch::default());
        read("Solve x + 1 = 2, solve it", &mut upper);
        read("solve X + 1 = 2, SOLVE IT", &mut lower);
        assert_eq!(upper.terms, lower.terms);
        // "solve" occurs twice: 1 + ln 2.
        assert!(upper.terms.iter().any(|(_, weight)| (weight - 1.693_147_2).abs() < 1e-6));
    }

    #[test]
    fn long_prompts_are_read_at_both_ends() {
        let mut scratch = Scratch::default();
        read(&"word ".repeat(100_000), &mut scratch);
        let short = scratch.terms.len();
        read(&format!("{} end", "word ".repeat(100_000)), &mut scratch);
        assert!(scratch.terms.len() > short);
    }

    #[test]
    fn any_text_is_read() {
        let mut scratch = Scratch::default();
        for text in ["", "\0\0", "é", "\u{1F600}\u{1F600}", &"?".repeat(20_000)] {
            read(text, &mut scratch);
            assert!(scratch.surface.iter().all(|value| value.is_finite()));
        }
    }
}
