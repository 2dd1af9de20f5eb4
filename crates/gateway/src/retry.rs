//! How many requests may be sent a second time.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

/// Retries are a tenth of the requests, and a hundred at once at most: a failing fleet is not asked more than it was.
#[derive(Debug)]
pub(crate) struct RetryBudget(AtomicI64);

impl RetryBudget {
    const COST: i64 = 10;
    const MOST: i64 = 100 * Self::COST;

    /// A request has come.
    pub(crate) fn earn(&self) {
        if self.0.load(Relaxed) < Self::MOST {
            self.0.fetch_add(1, Relaxed);
        }
    }

    /// Whether one may be sent again; then it is paid for.
    pub(crate) fn spend(&self) -> bool {
        self.0.fetch_update(Relaxed, Relaxed, |left| (left >= Self::COST).then(|| left - Self::COST)).is_ok()
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self(AtomicI64::new(Self::MOST))
    }
}
