//! The rate of the next hours, from that of the last days.
//!
//! ```text
//! expected(s) = usual(s) × level
//! usual(s)    = median over the last 7 days of (rate of the interval before + 2 × at the same time of day + after) / 4
//! level       = (rate of the last 4 intervals) / (what is usual for them), within 1/2 and 2
//! margin      = 95 % quantile over the last 3 days of rate / what was expected of it an hour before, within 1.05 and 2
//! ```
//! Where no earlier day is known, the rate of the last two intervals is expected to go on, and the margin is 1.3 (assumed) until
//! there are 24 intervals to measure it on. The margin is what bursts and growth have surpassed the forecast by: it follows them. What is
//! above all that in the last interval is a burst, which the next two are to be ready for.

use std::collections::BTreeMap;

use boute_spec::outcome::quantile;

/// Days that the daily pattern is taken from.
const DAYS: u64 = 7;
/// Intervals that say at which level the pattern runs now.
const LEVEL: u64 = 4;
/// The level is believed within this factor.
const MOST_LEVEL: f64 = 2.0;
/// Days on which the margin is measured, the share of intervals it covers, and its limits.
const MARGIN_DAYS: u64 = 3;
const COVERED: f64 = 0.95;
const MARGINS: (f64, f64) = (1.05, 2.0);
/// Without enough to measure it on.
const ASSUMED_MARGIN: f64 = 1.3;
const FEWEST_MEASURED: usize = 24;
/// Intervals for which a burst is expected to go on.
const BURST: u64 = 2;

/// What is known of the rate: requests per second by number of the interval since the Unix epoch.
#[derive(Debug, Clone, Copy)]
pub struct Forecast<'a> {
    /// Rates of intervals that have ended.
    pub rates: &'a BTreeMap<u64, f64>,
    /// Intervals of a day.
    pub per_day: u64,
}

impl Forecast<'_> {
    /// The rates to be ready for in `count` intervals from `first` on, at most a day; `None` if nothing is known.
    pub fn needs(&self, first: u64, count: u64) -> Option<Vec<f64>> {
        let known = first.checked_sub(1)?;
        let (level, margin) = (self.level(known, LEVEL), self.margin(known));
        let burst = self.level(known, 1) * MARGINS.0;
        let need = |at: u64| {
            let expected = self.expected(at, known, level)?;
            let sudden = self.usual(at, known).filter(|_| at < first + BURST).map(|usual| usual * burst);
            Some((expected * margin).max(sudden.unwrap_or_default()))
        };
        (first..first + count).map(need).collect()
    }

    /// What is expected of interval `at` at a `level`, by what is known up to `known`.
    fn expected(&self, at: u64, known: u64, level: f64) -> Option<f64> {
        if let Some(usual) = self.usual(at, known) {
            return Some(usual * level);
        }
        let last = self.last(2, known);
        let (sum, count) = last.fold((0.0, 0_u32), |(sum, count), (_, rate)| (sum + rate, count + 1));
        (count > 0).then(|| sum / f64::from(count))
    }

    /// How many times what is usual the last intervals had.
    fn level(&self, known: u64, count: u64) -> f64 {
        let pairs = self.last(count, known).filter_map(|(at, rate)| Some((rate, self.usual(at, known)?)));
        let (now, then) = pairs.fold((0.0, 0.0), |(now, then), pair| (now + pair.0, then + pair.1));
        if then > 0.0 { (now / then).clamp(1.0 / MOST_LEVEL, MOST_LEVEL) } else { 1.0 }
    }

    fn last(&self, count: u64, known: u64) -> impl Iterator<Item = (u64, f64)> {
        self.rates.range((known + 1).saturating_sub(count)..=known).map(|(at, rate)| (*at, *rate))
    }

    /// What is usual at that time, by the days before.
    fn usual(&self, at: u64, known: u64) -> Option<f64> {
        let before = (1..=DAYS).filter_map(|day| at.checked_sub(day * self.per_day));
        let mut rates: Vec<f64> = before.filter_map(|at| self.around(at, known)).collect();
        rates.sort_unstable_by(f64::total_cmp);
        (!rates.is_empty()).then(|| quantile(&rates, 0.5))
    }

    /// The rate of an interval, smoothed with its neighbours': of few days, the noise of single intervals would be taken for a pattern.
    fn around(&self, at: u64, known: u64) -> Option<f64> {
        let rate = |at: u64| self.rates.get(&at).filter(|_| at <= known).copied();
        let own = rate(at)?;
        let beside = |at: Option<u64>| at.and_then(rate).unwrap_or(own);
        Some((beside(at.checked_sub(1)) + 2.0 * own + beside(at.checked_add(1))) / 4.0)
    }

    fn margin(&self, known: u64) -> f64 {
        let hour = (self.per_day / 24).max(1);
        let recent = self.rates.range(known.saturating_sub(MARGIN_DAYS * self.per_day)..=known);
        let mut surpassed: Vec<f64> = recent
            .filter_map(|(at, rate)| {
                let before = at.checked_sub(hour)?;
                let expected = self.usual(*at, before)? * self.level(before, LEVEL);
                (expected > 0.0).then(|| rate / expected)
            })
            .collect();
        if surpassed.len() < FEWEST_MEASURED {
            return ASSUMED_MARGIN;
        }
        surpassed.sort_unstable_by(f64::total_cmp);
        quantile(&surpassed, COVERED).clamp(MARGINS.0, MARGINS.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Quarters of an hour of a daily pattern, at a level per day.
    fn days(levels: &[f64]) -> BTreeMap<u64, f64> {
        let rate = |at: u64| 10.0 - 6.0 * (at as f64 / 96.0 * std::f64::consts::TAU).cos();
        let level = |at: u64| levels[at as usize / 96];
        (0..levels.len() as u64 * 96).map(|at| (at, rate(at) * level(at))).collect()
    }

    fn peak(rates: &BTreeMap<u64, f64>, first: u64, last: u64) -> f64 {
        let needs = Forecast { rates, per_day: 96 }.needs(first, last + 1 - first).unwrap();
        needs.into_iter().fold(0.0, f64::max)
    }

    #[test]
    fn a_pattern_that_repeats_is_expected_again() {
        let rates = days(&[1.0, 1.0, 1.0]);
        let noon = 3 * 96 + 48;
        // 1.05, the least margin: nothing has surpassed the forecast. The pattern is a little smoothed.
        assert!((peak(&rates, 3 * 96, noon) / (16.0 * 1.05) - 1.0).abs() < 5e-3);
        assert!(peak(&rates, 3 * 96, 3 * 96 + 8) < 6.0, "the night is quiet");
    }

    #[test]
    fn the_level_of_today_is_heeded_and_surprises_widen_the_margin() {
        let mut rates = days(&[1.0, 1.0, 1.5]);
        rates.retain(|at, _| *at < 2 * 96 + 40);
        let ahead = peak(&rates, 2 * 96 + 40, 2 * 96 + 48);
        assert!(ahead > 16.0 * 1.5, "{ahead}");
        // One interval in ten is a burst of 1.6 times the pattern.
        let bursty: BTreeMap<u64, f64> = days(&[1.0; 4])
            .into_iter()
            .map(|(at, rate)| (at, if at % 10 == 0 { 1.6 * rate } else { rate }))
            .collect();
        assert!(peak(&bursty, 4 * 96, 4 * 96 + 48) > 16.0 * 1.3);
    }

    #[test]
    fn a_burst_is_expected_to_go_on_for_two_intervals() {
        let mut rates = days(&[1.0, 1.0, 1.0]);
        rates.entry(3 * 96 - 1).and_modify(|rate| *rate *= 1.6);
        let needs = Forecast { rates: &rates, per_day: 96 }.needs(3 * 96, 3).unwrap();
        assert!(needs[1] > 1.5 * 4.0 && needs[2] < 1.3 * 4.1, "{needs:?}");
    }

    #[test]
    fn without_a_day_the_last_rate_goes_on_with_a_wide_margin() {
        let rates = BTreeMap::from([(7, 4.0), (8, 6.0)]);
        assert!((peak(&rates, 9, 20) - 5.0 * ASSUMED_MARGIN).abs() < 1e-12);
        assert_eq!(Forecast { rates: &BTreeMap::new(), per_day: 96 }.needs(9, 20), None);
    }
}
