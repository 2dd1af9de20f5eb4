//! API keys: who may ask, how often and how much. The file holds hashes; the keys themselves are nowhere.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use boute_spec::digest::sha256_hex;
use hyper::header::{self, HeaderMap};

use crate::openai::Failure;

/// The keys of a file.
#[derive(Debug)]
pub struct Keys {
    by_hash: BTreeMap<String, Arc<Key>>,
}

/// What is wrong with a file of keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{file}:{line}: {message}\n  help: a line is `NAME SHA256 [requests/min=N] [tokens/min=N]`; hash a key with `printf %s KEY | sha256sum`"
)]
pub struct KeysError {
    /// Name of the file.
    pub file: String,
    /// One-based line.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

/// One client.
#[derive(Debug)]
pub(crate) struct Key {
    /// Whose it is, for logs and metrics.
    pub(crate) name: String,
    /// A number of its own, for fair turns.
    pub(crate) number: u64,
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
}

impl Keys {
    /// Reads lines `NAME SHA256 [requests/min=N] [tokens/min=N]`; `#` begins a comment.
    ///
    /// # Errors
    /// With the line, if one is something else, or a name or a hash stands there twice.
    pub fn parse(file: &str, text: &str) -> Result<Self, KeysError> {
        let mut keys = BTreeMap::new();
        let mut names = std::collections::BTreeSet::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line_error = |message: String| KeysError { file: file.into(), line: number, message };
            let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
            let Some(name) = words.next() else { continue };
            let hash = words.next().unwrap_or_default().to_lowercase();
            if hash.len() != 64 || !hash.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(line_error(format!("`{name}` has no hash of 64 hexadecimal digits")));
            }
            let mut key = Key { name: name.into(), number: number as u64, requests: None, tokens: None };
            for word in words {
                let limit = |name: &str| word.strip_prefix(name)?.parse().ok().filter(|limit| *limit > 0.0);
                if let Some(limit) = limit("requests/min=") {
                    key.requests = Some(Bucket::new(limit));
                } else if let Some(limit) = limit("tokens/min=") {
                    key.tokens = Some(Bucket::new(limit));
                } else {
                    return Err(line_error(format!("`{word}` is no limit")));
                }
            }
            if !names.insert(name) || keys.insert(hash, Arc::new(key)).is_some() {
                return Err(line_error(format!("the name or the hash of `{name}` stands there twice")));
            }
        }
        Ok(Self { by_hash: keys })
    }

    /// Whose request this is.
    pub(crate) fn owner(&self, headers: &HeaderMap) -> Result<&Arc<Key>, Failure> {
        let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let key = bearer.and_then(|value| {
            let (scheme, key) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
        });
        key.and_then(|key| self.by_hash.get(&sha256_hex(key.as_bytes()))).ok_or_else(Failure::bad_key)
    }

    /// Goes on with what was used up under `before`: a reload gives nobody a fresh start.
    pub(crate) fn carry_over(&mut self, before: &Self) {
        for (hash, key) in &mut self.by_hash {
            let (Some(key), Some(old)) = (Arc::get_mut(key), before.by_hash.get(hash)) else { continue };
            for (new, old) in [(&mut key.requests, &old.requests), (&mut key.tokens, &old.tokens)] {
                if let (Some(new), Some(old)) = (new, old) {
                    new.level = Arc::clone(&old.level);
                }
            }
        }
    }
}

impl Key {
    /// Lets a request in, or says when to come again. Tokens are charged when they are known: a key in debt waits.
    pub(crate) fn admit(&self) -> Result<(), Failure> {
        let now = Instant::now();
        if let Some(wait_s) = self.tokens.as_ref().and_then(|bucket| bucket.wait_s(0.0, now)) {
            return Err(Failure::over_limit("tokens per minute", wait_s));
        }
        if let Some(wait_s) = self.requests.as_ref().and_then(|bucket| bucket.wait_s(1.0, now)) {
            return Err(Failure::over_limit("requests per minute", wait_s));
        }
        Ok(())
    }

    /// Books the tokens of an answer.
    pub(crate) fn charge(&self, tokens: u64) {
        if let Some(bucket) = &self.tokens {
            bucket.charge(tokens as f64);
        }
    }
}

/// A bucket that fills evenly, up to a minute's worth.
#[derive(Debug)]
struct Bucket {
    per_minute: f64,
    level: Arc<Mutex<(f64, Instant)>>,
}

impl Bucket {
    fn new(per_minute: f64) -> Self {
        Self { per_minute, level: Arc::new(Mutex::new((per_minute, Instant::now()))) }
    }

    /// Takes `amount` out; or whole seconds until that can be. Nothing is taken from an empty bucket.
    fn wait_s(&self, amount: f64, now: Instant) -> Option<u64> {
        let mut level = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        let filled = level.0 + now.saturating_duration_since(level.1).as_secs_f64() * self.per_minute / 60.0;
        *level = (filled.min(self.per_minute), now);
        let short = amount.max(f64::MIN_POSITIVE) - level.0;
        if short <= 0.0 {
            level.0 -= amount;
            return None;
        }
        Some((short * 60.0 / self.per_minute).ceil().max(1.0) as u64)
    }

    fn charge(&self, amount: f64) {
        self.level.lock().unwrap_or_else(PoisonError::into_inner).0 -= amount;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hyper::header::HeaderValue;

    use super::*;

    #[test]
    fn a_key_is_known_by_its_hash() {
        let text =
            format!("# who may\nalice {} requests/min=2\n\nbob {}", sha256_hex(b"secret"), "0".repeat(64));
        let keys = Keys::parse("keys", &text).unwrap();
        let owner = |value: &'static str| {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(value))]);
            keys.owner(&headers).map(|key| key.name.clone()).map_err(|failure| failure.status.as_u16())
        };
        assert_eq!(owner("Bearer secret"), Ok("alice".into()));
        assert_eq!(owner("bearer  secret "), Ok("alice".into()));
        for wrong in ["Bearer other", "secret", "Basic secret", ""] {
            assert_eq!(owner(wrong), Err(401), "{wrong}");
        }
        assert!(!text.contains("secret"));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let hash = "a".repeat(64);
        for (text, line, part) in [
            ("alice".to_owned(), 1, "no hash"),
            (format!("\nalice {hash} speed=3"), 2, "`speed=3` is no limit"),
            (format!("alice {hash} tokens/min=0"), 1, "is no limit"),
            (format!("alice {hash}\nalice {}", "b".repeat(64)), 2, "twice"),
            (format!("alice {hash}\nbob {hash}"), 2, "twice"),
        ] {
            let error = Keys::parse("keys", &text).unwrap_err();
            assert!(error.line == line && error.message.contains(part), "{error}");
        }
    }

    #[test]
    fn limits_fill_up_again() {
        let bucket = Bucket::new(60.0);
        let start = Instant::now();
        assert!((0..60).all(|_| bucket.wait_s(1.0, start).is_none()));
        assert_eq!(bucket.wait_s(1.0, start), Some(1));
        assert_eq!(bucket.wait_s(1.0, start + Duration::from_secs(1)), None);
        bucket.charge(90.0);
        assert_eq!(bucket.wait_s(0.0, start + Duration::from_secs(31)), Some(60));
    }

    #[test]
    fn a_reload_gives_nobody_a_fresh_start() {
        let keys =
            |limit| Keys::parse("keys", &format!("a {} tokens/min={limit}", sha256_hex(b"k"))).unwrap();
        let headers = HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static("Bearer k"))]);
        let before = keys(60);
        let key = Arc::clone(before.owner(&headers).unwrap());
        let mut after = keys(120);
        after.carry_over(&before);
        assert!(after.owner(&headers).unwrap().admit().is_ok());
        key.charge(1000);
        assert_eq!(after.owner(&headers).unwrap().admit().unwrap_err().status.as_u16(), 429);
    }
}
