//! SHA-256, by which inputs are known.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

/// Hexadecimal SHA-256 of `bytes`.
pub fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut hex, byte| {
        // Writing to a `String` cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// The bucket 0..100 of a text, by which quality data is split: SHA-256 of the text (stripped, lower-case, runs of
/// white space as one blank), read as one big-endian number, modulo 100.
pub fn bucket(text: &str) -> u8 {
    let normal = text.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ");
    let digest = Sha256::digest(normal.as_bytes());
    digest.iter().fold(0_u32, |rest, byte| (rest * 256 + u32::from(*byte)) % 100) as u8
}
