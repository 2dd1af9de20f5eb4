//! What one replica does, as simulated: kept between plans, and between runs where a [`Shelf`] is given.
//!
//! A *book* holds the records of one stream of requests (arrivals and lengths), by the digest of that stream, of the
//! constants of the cost model and of [`REVISION`]; in a book an entry belongs to one replica configuration, by the digest of its
//! model, GPU, parallelism and engine. Promises, prices, stock, budget and floor are in neither, so whatever of these
//! changes, nothing is simulated again; whatever else changes, nothing old is found. Numbers are kept as integers, so that
//! what is read back is what was written.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use boute_perf::{Calibration, ReplicaConfig};
use boute_spec::digest::sha256_hex;
use boute_spec::outcome::{RequestOutcome, quantile};
use boute_spec::slo::Metric;
use boute_spec::units::SimTime;
use serde::{Deserialize, Serialize};

use crate::candidates::{Candidate, Prefill};
use crate::verify::backlog_grows;

/// To be raised when the simulator or the table gives other numbers for the same inputs.
pub const REVISION: u32 = 2;

/// Shares of requests at which latencies are kept: every 5 %, and every 0.25 % in the upper tenth.
const COARSE: u32 = 18;
const FINE: u32 = 40;

/// Where books are kept between runs.
pub trait Shelf: Sync {
    /// The book of this name, if there is one.
    fn read(&self, name: &str) -> Option<String>;
    /// Keeps it; a failure costs time in the next run and nothing else.
    fn write(&self, name: &str, book: &str);
}

/// The database.
#[derive(Default)]
pub struct Database {
    shelf: Option<Box<dyn Shelf + Send>>,
    books: Mutex<BTreeMap<String, Arc<Book>>>,
}

impl Database {
    /// One that lasts as long as this value.
    pub fn in_memory() -> Self {
        Self::default()
    }

    /// One whose books are on `shelf`.
    pub fn on(shelf: Box<dyn Shelf + Send>) -> Self {
        Self { shelf: Some(shelf), books: Mutex::default() }
    }

    pub(crate) fn book(&self, stream: &StreamDigest) -> Arc<Book> {
        let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        let open = || {
            let text = self.shelf.as_ref().and_then(|shelf| shelf.read(&stream.0));
            // A book that cannot be read is a book not yet written.
            let entries = text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
            Arc::new(Book { name: stream.0.clone(), entries: Mutex::new(entries), grown: Mutex::new(false) })
        };
        Arc::clone(books.entry(stream.0.clone()).or_insert_with(open))
    }

    /// Puts books that have grown on the shelf.
    pub(crate) fn keep(&self) {
        let Some(shelf) = &self.shelf else { return };
        for book in self.books.lock().unwrap_or_else(PoisonError::into_inner).values() {
            let mut grown = book.grown.lock().unwrap_or_else(PoisonError::into_inner);
            let entries = book.entries.lock().unwrap_or_else(PoisonError::into_inner);
            if *grown && let Ok(text) = serde_json::to_string(&*entries) {
                shelf.write(&book.name, &text);
                *grown = false;
            }
        }
    }
}

/// What a stream of requests is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StreamDigest(String);

impl StreamDigest {
    /// Of arrivals, lengths and whatever else decides how a replica's stream is drawn from them.
    pub(crate) fn new(
        arrivals: impl Iterator<Item = SimTime>,
        lengths: &[(u32, u32)],
        drawn_by: &str,
    ) -> Self {
        let mut bytes = format!("{REVISION} {} {drawn_by}", Calibration::digest()).into_bytes();
        arrivals.for_each(|arrival| bytes.extend(arrival.0.to_le_bytes()));
        for (prompt, answer) in lengths {
            bytes.extend(prompt.to_le_bytes());
            bytes.extend(answer.to_le_bytes());
        }
        Self(sha256_hex(&bytes))
    }
}

/// What a replica configuration is known by.
pub(crate) fn replica_digest(candidate: &Candidate) -> String {
    let engine = |config: &ReplicaConfig| {
        let ReplicaConfig { model, gpu, tp, pp, engine, .. } = config;
        serde_json::json!([model.shape, model.precision, gpu, tp, pp, engine])
    };
    let own = engine(&candidate.config);
    let all = candidate.prefill.as_ref().map_or(own.clone(), |prefill| {
        let Prefill { instances, decode_instances, config, .. } = prefill;
        serde_json::json!([instances, engine(config), decode_instances, own])
    });
    sha256_hex(all.to_string().as_bytes())
}

/// The records of one stream.
#[derive(Debug)]
pub(crate) struct Book {
    name: String,
    entries: Mutex<BTreeMap<String, Entry>>,
    grown: Mutex<bool>,
}

impl Book {
    pub(crate) fn entry(&self, replica: &str) -> Option<Entry> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).get(replica).cloned()
    }

    pub(crate) fn put(&self, replica: &str, entry: Entry) {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).insert(replica.to_owned(), entry);
        *self.grown.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }
}

/// What is known of one replica under one stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Requests per 10⁶ seconds when it is never idle.
    pub(crate) capacity_micro: u64,
    /// Mean TTFT and E2E of requests that have it to themselves, in microseconds.
    pub(crate) alone_us: [u64; 2],
    /// Per load, by its place in the table's loads.
    pub(crate) records: BTreeMap<usize, Record>,
}

/// One load.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Whether it is more than the replica can go on with.
    pub(crate) backlog_grows: bool,
    /// Ascending quantiles of every metric, in microseconds.
    quantiles_us: [Vec<u32>; 3],
}

impl Record {
    pub(crate) fn new(outcomes: &[RequestOutcome]) -> Self {
        let quantiles_us = Metric::ALL.map(|metric| {
            let mut values: Vec<f64> = outcomes.iter().map(|outcome| outcome.metric_s(metric)).collect();
            values.sort_unstable_by(f64::total_cmp);
            let at = |index| (quantile(&values, share(index)) * 1e6).round().min(f64::from(u32::MAX)) as u32;
            (0..=COARSE + FINE).map(at).collect()
        });
        Self { backlog_grows: backlog_grows(outcomes), quantiles_us }
    }

    /// Seconds that this share of requests stays within.
    pub(crate) fn quantile_s(&self, metric: Metric, share: f64) -> f64 {
        let values = &self.quantiles_us[metric as usize];
        let at = index(share).clamp(0.0, f64::from(COARSE + FINE));
        let (low, high) = (at.floor() as usize, at.ceil() as usize);
        let [below, above] = [low, high].map(|index| f64::from(values[index]));
        (below + (above - below) * (at - at.floor())) * 1e-6
    }

    /// Share of requests over a limit.
    pub(crate) fn over(&self, metric: Metric, limit_s: f64) -> f64 {
        let values = &self.quantiles_us[metric as usize];
        let limit = limit_s * 1e6;
        let above = values.partition_point(|value| f64::from(*value) <= limit);
        if above == 0 {
            return 1.0;
        }
        if above == values.len() {
            return 0.0;
        }
        let [low, high] = [above - 1, above].map(|index| f64::from(values[index]));
        let part = (limit - low) / (high - low);
        let [from, to] = [above - 1, above].map(|index| share(index as u32));
        1.0 - (from + (to - from) * part)
    }
}

/// The share of requests at a place in a record.
fn share(index: u32) -> f64 {
    if index <= COARSE {
        f64::from(index) / 20.0
    } else {
        0.9 + f64::from(index - COARSE) / f64::from(10 * FINE)
    }
}

/// The place of a share, its inverse.
fn index(share: f64) -> f64 {
    if share <= 0.9 { share * 20.0 } else { f64::from(COARSE) + (share - 0.9) * f64::from(10 * FINE) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes() -> Vec<RequestOutcome> {
        (1..=1000)
            .map(|at| RequestOutcome {
                arrival: SimTime::ZERO,
                ttft: SimTime::from_seconds(0.001 * f64::from(at)),
                e2e: SimTime::from_seconds(0.01 * f64::from(at)),
                model: 0,
                input_tokens: 1,
                output_tokens: 10,
                replica: 0,
            })
            .collect()
    }

    #[test]
    fn a_record_gives_back_the_tail() {
        let record = Record::new(&outcomes());
        for limit in [2.0, 8.9, 9.5, 9.9] {
            assert!((record.over(Metric::E2e, limit) - (1.0 - limit / 10.0)).abs() < 2e-3, "{limit}");
        }
        assert_eq!((record.over(Metric::E2e, 11.0), record.over(Metric::E2e, 0.001)), (0.0, 1.0));
        assert!((record.quantile_s(Metric::Ttft, 0.95) - 0.95).abs() < 2e-3);
        assert!((record.quantile_s(Metric::Ttft, 0.5) - 0.5).abs() < 2e-3);
        let text = serde_json::to_string(&record).expect("numbers");
        assert_eq!(serde_json::from_str::<Record>(&text).expect("its own text"), record);
    }

    #[test]
    fn places_and_shares_are_inverse() {
        assert!((0..=COARSE + FINE).all(|at| (index(share(at)) - f64::from(at)).abs() < 1e-9));
    }
}
