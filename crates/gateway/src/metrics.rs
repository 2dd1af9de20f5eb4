//! Counters and histograms in Prometheus' text form, kept in atomics: few, and touched without a lock.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

/// Upper bounds in seconds. vLLM's for the time to the first token, from `vllm/v1/metrics/loggers.py`, as are the next two.
pub(crate) const TTFT_S: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
/// For the time per further token.
pub(crate) const TPOT_S: [f64; 19] = [
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
/// For whole requests.
pub(crate) const E2E_S: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
];
/// For what the gateway adds.
pub(crate) const OVERHEAD_S: [f64; 12] =
    [0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.0025, 0.005, 0.01, 0.1, 1.0];
/// For token counts: those of OpenTelemetry's `gen_ai.client.token.usage`.
pub(crate) const TOKENS: [f64; 14] = [
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1024.0,
    4096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];
/// For scores.
pub(crate) const SCORES: [f64; 10] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

/// Parts of a unit that sums are kept in: nanoseconds of seconds.
const PARTS: f64 = 1e9;

/// A monotone count.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts by name; for what is rare.
#[derive(Debug, Default)]
pub(crate) struct CounterOf(Mutex<BTreeMap<&'static str, u64>>);

impl CounterOf {
    pub(crate) fn add(&self, name: &'static str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += 1;
    }

    pub(crate) fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn write(&self, out: &mut String, name: &str, label: &str) {
        for (value, count) in self.counts() {
            sample(out, name, &format!("{label}=\"{value}\""), count);
        }
    }
}

/// A histogram of numbers that are not negative.
#[derive(Debug)]
pub(crate) struct Histogram {
    bounds: &'static [f64],
    buckets: Box<[AtomicU64]>,
    count: AtomicU64,
    /// In [`PARTS`], and what overflows them.
    sum: AtomicU64,
    sum_whole: AtomicU64,
}

impl Histogram {
    pub(crate) fn new(bounds: &'static [f64]) -> Self {
        let buckets = bounds.iter().map(|_| AtomicU64::default()).collect();
        Self {
            bounds,
            buckets,
            count: AtomicU64::default(),
            sum: AtomicU64::default(),
            sum_whole: AtomicU64::default(),
        }
    }

    pub(crate) fn observe(&self, value: f64) {
        if let Some(bucket) = self.bounds.iter().position(|bound| value <= *bound) {
            self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add((value.fract() * PARTS) as u64, Ordering::Relaxed);
        if value >= 1.0 {
            self.sum_whole.fetch_add(value as u64, Ordering::Relaxed);
        }
    }

    pub(crate) fn observe_time(&self, time: Duration) {
        self.observe(time.as_secs_f64());
    }

    /// Per bound, how many values were not above it.
    fn below(&self) -> impl Iterator<Item = (f64, u64)> {
        self.bounds.iter().zip(&self.buckets).scan(0, |below, (bound, bucket)| {
            *below += bucket.load(Ordering::Relaxed);
            Some((*bound, *below))
        })
    }

    fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    pub(crate) fn sum(&self) -> f64 {
        self.sum_whole.load(Ordering::Relaxed) as f64 + self.sum.load(Ordering::Relaxed) as f64 / PARTS
    }

    /// The histogram as JSON: `bounds`, how many values were `below` each, `count` and `sum`.
    pub(crate) fn state(&self) -> Value {
        let below: Vec<u64> = self.below().map(|(_, below)| below).collect();
        json!({"bounds": self.bounds, "below": below, "count": self.count(), "sum": self.sum()})
    }

    /// Appends the histogram; `labels` like `model="x"`, or empty.
    pub(crate) fn write(&self, out: &mut String, name: &str, labels: &str) {
        let comma = if labels.is_empty() { "" } else { "," };
        for (bound, below) in self.below() {
            let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {below}");
        }
        let (count, sum) = (self.count(), self.sum());
        let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {count}");
    }
}

/// Appends the two lines that precede a metric.
pub(crate) fn describe(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// Appends one sample.
pub(crate) fn sample(out: &mut String, name: &str, labels: &str, value: impl std::fmt::Display) {
    let _ = writeln!(out, "{name}{{{labels}}} {value}");
}

/// `text` inside the quotes of a label.
pub(crate) fn label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_adds_up() {
        let histogram = Histogram::new(&TTFT_S);
        for value in [0.0005, 0.05, 3000.25] {
            histogram.observe(value);
        }
        let mut out = String::new();
        histogram.write(&mut out, "x", "m=\"a\"");
        assert!(out.starts_with("x_bucket{m=\"a\",le=\"0.001\"} 1\n"), "{out}");
        assert!(out.contains("le=\"2560\"} 2\n") && out.contains("le=\"+Inf\"} 3\n"), "{out}");
        assert!(out.contains("x_sum{m=\"a\"} 3000.3005\n") && out.ends_with("x_count{m=\"a\"} 3\n"), "{out}");
    }
}
