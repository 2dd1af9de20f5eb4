//! Quantities with their unit in the type, and the way people write them (`200ms`, `$2.50/h`, `80GB`, `20 req/s`).
//!
//! Every quantity is finite and not negative: the constructors refuse anything else. In JSON a quantity is a plain
//! number whose key ends with the unit (`budget_usd_per_hour`); in `boute.yaml` it is text with the unit spelled out.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {wanted}; write it like `{example}`")]
pub struct UnitError {
    /// What was written.
    pub text: String,
    /// What was expected, as a noun phrase: "a price per hour".
    pub wanted: &'static str,
    /// A valid example.
    pub example: &'static str,
}

/// Splits `text` into its leading number and the rest, both trimmed; `None` unless the number is finite and ≥ 0.
fn number_and_unit(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text
        .char_indices()
        .find(|&(at, c)| {
            let exponent_sign = (c == '+' || c == '-') && text[..at].ends_with(['e', 'E']);
            let exponent = (c == 'e' || c == 'E')
                && text[at + 1..]
                    .starts_with(|next: char| next.is_ascii_digit() || next == '-' || next == '+');
            !(c.is_ascii_digit() || c == '.' || c == '_' || exponent || exponent_sign)
        })
        .map_or(text.len(), |(at, _)| at);
    let number: f64 = text[..end].replace('_', "").parse().ok()?;
    (number.is_finite() && number >= 0.0).then(|| (number, text[end..].trim()))
}

macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident, $wanted:literal, $example:literal, $prefix:literal, |$number:ident, $unit:ident| $parse:expr, |$value:ident, $f:ident| $show:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default, Serialize, Deserialize)]
        #[serde(try_from = "f64", into = "f64")]
        pub struct $name(f64);

        impl $name {
            /// The quantity; `None` unless `value` is finite and not negative.
            pub fn new(value: f64) -> Option<Self> {
                (value.is_finite() && value >= 0.0).then_some(Self(value))
            }

            /// The bare number, in the unit of the type.
            pub const fn get(self) -> f64 {
                self.0
            }
        }

        impl TryFrom<f64> for $name {
            type Error = UnitError;
            fn try_from(value: f64) -> Result<Self, UnitError> {
                Self::new(value).ok_or_else(|| UnitError {
                    text: value.to_string(),
                    wanted: $wanted,
                    example: $example,
                })
            }
        }

        impl From<$name> for f64 {
            fn from(value: $name) -> Self {
                value.0
            }
        }

        impl FromStr for $name {
            type Err = UnitError;
            fn from_str(text: &str) -> Result<Self, UnitError> {
                let error = || UnitError { text: text.into(), wanted: $wanted, example: $example };
                let stripped = text.trim().strip_prefix($prefix).unwrap_or(text.trim());
                let ($number, $unit) = number_and_unit(stripped).ok_or_else(error)?;
                let value: Option<f64> = $parse;
                value.and_then(Self::new).ok_or_else(error)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, $f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let $value = self.0;
                $show
            }
        }
    };
}

quantity!(
    /// A span of time in seconds.
    Seconds,
    "a duration",
    "200ms",
    "",
    |number, unit| match unit {
        "us" | "µs" => Some(number * 1e-6),
        "ms" => Some(number * 1e-3),
        "s" => Some(number),
        "min" => Some(number * 60.0),
        "h" => Some(number * 3600.0),
        _ => None,
    },
    |value, f| if value < 1.0 { write!(f, "{:.0}ms", value * 1e3) } else { write!(f, "{value:.2}s") }
);

quantity!(
    /// United States dollars per hour.
    UsdPerHour,
    "a price per hour",
    "$2.50/h",
    "$",
    |number, unit| matches!(unit, "/h" | "/hour" | "/hr").then_some(number),
    |value, f| write!(f, "${value:.2}/h")
);

quantity!(
    /// Requests per second.
    RequestsPerSecond,
    "a request rate",
    "20 req/s",
    "",
    |number, unit| match unit {
        "req/s" | "/s" | "rps" | "requests/s" => Some(number),
        "req/min" | "/min" => Some(number / 60.0),
        _ => None,
    },
    |value, f| write!(f, "{value:.2} req/s")
);

quantity!(
    /// Bytes per second.
    BytesPerSecond,
    "a bandwidth",
    "25GB/s",
    "",
    |number, unit| match unit {
        "MB/s" => Some(number * 1e6),
        "GB/s" => Some(number * 1e9),
        "TB/s" => Some(number * 1e12),
        _ => None,
    },
    |value, f| write!(f, "{:.1}GB/s", value / 1e9)
);

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    /// In gibibytes.
    pub fn gib(self) -> f64 {
        self.0 as f64 / f64::from(1 << 30)
    }
}

impl FromStr for Bytes {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let error = || UnitError { text: text.into(), wanted: "an amount of memory", example: "80GB" };
        let (number, unit) = number_and_unit(text).ok_or_else(error)?;
        let scale: f64 = match unit {
            "B" => 1.0,
            "MB" => 1e6,
            "GB" => 1e9,
            "TB" => 1e12,
            "MiB" | "Mi" => f64::from(1 << 20),
            "GiB" | "Gi" => f64::from(1 << 30),
            _ => return Err(error()),
        };
        Ok(Self((number * scale).round() as u64))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} GiB", self.gib())
    }
}

/// A share or a probability: within [0, 1]. Written as `0.56` or `56%`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Fraction(f64);

impl Fraction {
    /// The fraction; `None` unless within [0, 1].
    pub fn new(value: f64) -> Option<Self> {
        (0.0..=1.0).contains(&value).then_some(Self(value))
    }

    /// The bare number within [0, 1].
    pub const fn get(self) -> f64 {
        self.0
    }
}

impl TryFrom<f64> for Fraction {
    type Error = UnitError;
    fn try_from(value: f64) -> Result<Self, UnitError> {
        Self::new(value).ok_or_else(|| UnitError {
            text: value.to_string(),
            wanted: "a fraction between 0 and 1",
            example: "0.95",
        })
    }
}

impl From<Fraction> for f64 {
    fn from(value: Fraction) -> Self {
        value.0
    }
}

impl FromStr for Fraction {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let error = || UnitError { text: text.into(), wanted: "a fraction between 0 and 1", example: "0.95" };
        let (number, unit) = number_and_unit(text).ok_or_else(error)?;
        let value = match unit {
            "" => number,
            "%" => number / 100.0,
            _ => return Err(error()),
        };
        Self::new(value).ok_or_else(error)
    }
}

impl fmt::Display for Fraction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1}%", self.0 * 100.0)
    }
}

/// Virtual time, or a span of it, in integer picoseconds: it orders totally, adds exactly and prints the same
/// everywhere. A `u64` holds 213 days. Picoseconds because a decode step lengthens by tens of nanoseconds per token
/// of context: rounded to nanoseconds, the sum over a million steps would drift, so that advancing a stretch of
/// steps in closed form would not equal stepping through it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SimTime(pub u64);

impl SimTime {
    /// The start of time.
    pub const ZERO: Self = Self(0);
    /// Later than everything.
    pub const MAX: Self = Self(u64::MAX);

    /// From seconds, rounded to the nearest picosecond; negative and NaN become zero, too large becomes [`Self::MAX`].
    pub fn from_seconds(seconds: f64) -> Self {
        Self((seconds * 1e12).round() as u64)
    }

    /// From whole nanoseconds.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos.saturating_mul(1000))
    }

    /// In seconds.
    pub fn seconds(self) -> f64 {
        self.0 as f64 * 1e-12
    }

    /// In milliseconds.
    pub fn millis(self) -> f64 {
        self.0 as f64 * 1e-9
    }

    /// The time from `earlier` to `self`; zero if `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add for SimTime {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl std::ops::AddAssign for SimTime {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_write_units_in_many_ways() {
        assert_eq!("200ms".parse::<Seconds>().unwrap().get(), 0.2);
        assert_eq!("1.5 s".parse::<Seconds>().unwrap().get(), 1.5);
        assert_eq!("$2.50/h".parse::<UsdPerHour>().unwrap().get(), 2.5);
        assert_eq!("20 req/s".parse::<RequestsPerSecond>().unwrap().get(), 20.0);
        assert_eq!("80GB".parse::<Bytes>().unwrap(), Bytes(80_000_000_000));
        assert_eq!("95%".parse::<Fraction>().unwrap().get(), 0.95);
        assert_eq!("1e-3s".parse::<Seconds>().unwrap().get(), 1e-3);
    }

    #[test]
    fn nonsense_is_refused_with_an_example() {
        for text in ["-1s", "NaN", "s", "", "5 parsecs", "inf s", "20", "$20s"] {
            assert!(text.parse::<Seconds>().is_err(), "{text}");
        }
        insta::assert_snapshot!("20".parse::<UsdPerHour>().unwrap_err(), @"`20` is not a price per hour; write it like `$2.50/h`");
        assert!("1.2".parse::<Fraction>().is_err());
    }

    #[test]
    fn time_saturates_instead_of_wrapping() {
        assert_eq!(SimTime::MAX + SimTime(1), SimTime::MAX);
        assert_eq!(SimTime::from_seconds(-1.0), SimTime::ZERO);
        assert_eq!(SimTime::from_seconds(1.5).seconds(), 1.5);
    }
}
