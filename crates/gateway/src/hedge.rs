//! Hedging (Dean and Barroso, "The Tail at Scale", CACM 56(2), 2013): once a replica has taken longer to begin a stream than
//! most do, another is asked too; who begins first answers, and the other's connection is dropped.
//!
//! Only streams: the first byte of any other answer is its last, and late because it is long.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::attempt::Attempt;
use crate::forward::Ready;
use crate::replica::{Place, Replica};
use crate::serve::Inner;

/// How far one stream moves the estimate.
const STEP: f64 = 0.1;

/// How long streams of a model take to begin: the time t within which a share p of them do, followed by steps (Robbins and
/// Monro, "A Stochastic Approximation Method", 1951):
/// ```text
/// ln t ← ln t + STEP · (p − [begun within t])
/// ```
/// It asks only whether a stream began in time, so that one which was overtaken by another counts as well. It starts at the
/// longest of the first 1 / (1 − p) streams.
#[derive(Debug, Default)]
pub(crate) struct Begins {
    within_ns: AtomicU64,
    seen: AtomicU32,
}

impl Begins {
    /// t, in which `share` of the streams begin; `None` until there were enough.
    fn within(&self, share: f64) -> Option<Duration> {
        let enough = f64::from(self.seen.load(Relaxed)) + 0.5 > 1.0 / (1.0 - share);
        enough.then(|| Duration::from_nanos(self.within_ns.load(Relaxed)))
    }

    /// A stream has begun after `time`.
    fn begun(&self, share: f64, time: Duration) {
        if let Some(within) = self.within(share) {
            self.step(share, time <= within);
        } else {
            self.within_ns.fetch_max(time.as_nanos() as u64, Relaxed);
            self.seen.fetch_add(1, Relaxed);
        }
    }

    fn step(&self, share: f64, in_time: bool) {
        let factor = (STEP * (share - f64::from(u8::from(in_time)))).exp();
        // Of two steps at once one may be lost: it is an estimate.
        let moved = (self.within_ns.load(Relaxed) as f64 * factor) as u64;
        self.within_ns.store(moved, Relaxed);
    }
}

/// Who a request is sent to, and its place there.
pub(crate) type Sent<'m> = (&'m Arc<Replica>, Place);

impl Inner {
    /// Sends a request to `first`, and to who `second` finds if that is slow to begin. Returns who has answered, or else was
    /// the last to fail, with what came of it.
    pub(crate) async fn hedged<'m>(
        &self,
        share: f64,
        begins: &Begins,
        ready: &Ready<'_>,
        first: Sent<'m>,
        second: impl FnOnce() -> Option<Sent<'m>>,
    ) -> (Sent<'m>, Attempt) {
        let sent = Instant::now();
        let mut one = pin!(self.attempt(first.0, ready));
        // The attempt has a limit of its own, which comes first where nothing is known yet.
        let patience = begins.within(share).unwrap_or(Duration::MAX);
        tokio::select! {
            biased;
            attempt = &mut one => {
                if matches!(attempt, Attempt::Answered(_)) {
                    begins.begun(share, sent.elapsed());
                }
                return (first, attempt);
            }
            () = sleep(patience) => begins.step(share, false),
        }
        let Some(second) = second() else { return (first, one.await) };
        let mut two = pin!(self.attempt(second.0, ready));
        let (won, attempt) = tokio::select! {
            biased;
            attempt = &mut one => (true, attempt),
            attempt = &mut two => (false, attempt),
        };
        let (winner, loser) = if won { (first, second) } else { (second, first) };
        if attempt.is_good() {
            self.hedges.add(if won { "first" } else { "second" });
            return (winner, attempt);
        }
        // It has nothing to give: its failure is booked, and the other is waited for.
        self.book(winner.0, &attempt);
        drop((winner, attempt));
        let attempt = if won { two.await } else { one.await };
        self.hedges.add(if won { "second" } else { "first" });
        (loser, attempt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Times from 1 to 100 ms, each as often: 95 % begin within 95 ms. When all become four times as long, so does the estimate.
    #[test]
    fn it_follows_the_time_in_which_most_begin() {
        let (begins, share) = (Begins::default(), 0.95);
        let mut time = 0;
        let mut observe = |scale: u64, count: u64| {
            let mut sum = 0.0;
            for _ in 0..count {
                time = (time + 37) % 100;
                begins.begun(share, Duration::from_millis((time + 1) * scale));
                sum += begins.within(share).map_or(0.0, |within| within.as_secs_f64() * 1e3);
            }
            sum / count as f64
        };
        observe(1, 19);
        assert_eq!(begins.within(share), None);
        observe(1, 500);
        let mean = observe(1, 1000);
        assert!((85.0..105.0).contains(&mean), "{mean}");
        observe(4, 500);
        let mean = observe(4, 1000);
        assert!((340.0..420.0).contains(&mean), "{mean}");
    }
}
