//! When to move the fleet within the next day, if only a few moves may be made.
//!
//! The best from a move at interval t on, when k moves are left with this one:
//! ```text
//! V(t, k) = min over e > t of  max(rent[t..e]) · (e − t + move)  +  V(e, k − 1)
//! ```
//! where rent is that of the cheapest fleet that carries what comes in an interval, e the interval of the next move, or the end, and `move`
//! how long a move takes, in intervals: for so long both fleets are paid. What runs stays until the e that makes `its rent · e + V(e, k)`
//! least, as long as it carries what comes. With n intervals and k moves that is n²k/2 sums for the best choice of moments, if the
//! forecast is right.

/// The day to come, interval by interval from now on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Schedule {
    /// Requests per second that a fleet decided on in an interval must carry, and one must that stays.
    pub(crate) need: Vec<f64>,
    /// Rents per hour of fleets for these; they rise with the rate.
    pub(crate) rent: Vec<f64>,
    /// Moves that may have been made from now to the end of an interval; never falls.
    pub(crate) allowed: Vec<usize>,
    /// Intervals that a move takes.
    pub(crate) move_intervals: f64,
}

/// What is best.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Next {
    /// The interval of the next move, 0 is now; `None` if there is to be none.
    pub(crate) at: Option<usize>,
    /// What comes until then; where it is best to save by a move now, what that is for.
    pub(crate) rate: f64,
    /// What a fleet is for that is moved to now, whether or not that is best.
    pub(crate) moved: f64,
}

/// The best from a move at some interval on.
#[derive(Debug, Clone, Copy)]
struct Segment {
    cost: f64,
    rate: f64,
}

impl Schedule {
    /// What is best for a fleet of some rent per hour that carries some rate. What cannot carry what comes must move now, whatever is allowed.
    pub(crate) fn next(&self, rent: f64, carries: f64) -> Next {
        let from = self.segments();
        let known = from.first().and_then(|from| from.first().copied().flatten());
        // Where none is allowed now, it takes the place of the first that is allowed later.
        let now = known.unwrap_or_else(|| self.segment(0, |next| from[next].get(1).copied().flatten()));
        let mut best = (f64::INFINITY, 0, now.rate);
        let mut highest = 0.0_f64;
        for at in 0..=self.need.len() {
            if highest > carries {
                break;
            }
            let rest = self.rest(at, |at| from[at].first().copied().flatten());
            let cost = rest.map_or(f64::INFINITY, |rest| rent * at as f64 + rest);
            // As long as no move is allowed, the last moment at which it must be made all the same.
            if cost < best.0 || best.0.is_infinite() {
                best = (cost, at, if at == 0 { now.rate } else { highest });
            }
            highest = self.need.get(at).map_or(highest, |need| highest.max(*need));
        }
        let comes = self.need.first().copied().unwrap_or_default();
        let (_, at, rate) = best;
        Next {
            at: (at < self.need.len()).then_some(at),
            rate: if comes > carries { comes } else { rate },
            moved: now.rate,
        }
    }

    /// By interval and number of moves made before: the best from a move there on, if it is allowed.
    fn segments(&self) -> Vec<Vec<Option<Segment>>> {
        let most = self.allowed.last().copied().unwrap_or_default();
        let mut from = vec![vec![None; most]; self.need.len()];
        for at in (0..self.need.len()).rev() {
            for made in 0..most.min(self.allowed[at]) {
                let segment = self.segment(at, |next| from[next].get(made + 1).copied().flatten());
                from[at][made] = Some(segment);
            }
        }
        from
    }

    /// The best from a move at an interval on, where `then` is what is best from a next one on.
    fn segment(&self, at: usize, then: impl Fn(usize) -> Option<Segment>) -> Segment {
        let mut best = Segment { cost: f64::INFINITY, rate: 0.0 };
        let (mut rate, mut rent) = (0.0_f64, 0.0_f64);
        for next in at + 1..=self.need.len() {
            (rate, rent) = (rate.max(self.need[next - 1]), rent.max(self.rent[next - 1]));
            let Some(rest) = self.rest(next, &then) else { continue };
            let cost = rent * ((next - at) as f64 + self.move_intervals) + rest;
            if cost < best.cost {
                best = Segment { cost, rate };
            }
        }
        best
    }

    /// What is paid from an interval on: nothing after the end.
    fn rest(&self, at: usize, from: impl Fn(usize) -> Option<Segment>) -> Option<f64> {
        if at == self.need.len() { Some(0.0) } else { from(at).map(|segment| segment.cost) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A day of 24 intervals: night, day, evening.
    fn day(moves: usize) -> Schedule {
        let need = [[4.0; 6].as_slice(), &[20.0; 12], &[12.0; 6]].concat();
        in_proportion(need, moves)
    }

    /// Rents that are as the rates.
    fn in_proportion(need: Vec<f64>, moves: usize) -> Schedule {
        Schedule { allowed: vec![moves; need.len()], rent: need.clone(), need, move_intervals: 0.25 }
    }

    /// Rates of all intervals if the schedule is followed.
    fn followed(schedule: &Schedule, runs: f64) -> Vec<f64> {
        let (mut runs, mut left, mut rates) = (runs, schedule.clone(), Vec::new());
        for _ in 0..schedule.need.len() {
            let next = left.next(runs, runs);
            if next.at == Some(0) {
                runs = next.moved;
                left.allowed.iter_mut().for_each(|allowed| *allowed = allowed.saturating_sub(1));
            }
            rates.push(runs);
            left.need.remove(0);
            left.rent.remove(0);
            left.allowed.remove(0);
        }
        rates
    }

    #[test]
    fn moves_go_where_they_save_most() {
        let all = followed(&day(3), 20.0);
        assert_eq!(all, day(3).need);
        // Of two moves the night is worth both: 16 · 5 beats 8 · 6.
        let two = followed(&day(2), 20.0);
        assert_eq!(two, [[4.0; 6].as_slice(), &[20.0; 18]].concat());
        // With one, a move down at night would have to be taken back.
        assert_eq!(followed(&day(1), 20.0), [[20.0; 18].as_slice(), &[12.0; 6]].concat());
        assert_eq!(followed(&day(0), 20.0), [20.0; 24]);
    }

    #[test]
    fn what_saves_no_rent_takes_no_move() {
        // The smallest fleet carries 6: one for 4 would cost the same, and the evening is worth more than the night.
        let rent = |rate: &f64| if *rate > 12.0 { 20.0 } else { 15.0 };
        let mut stepped = day(1);
        stepped.rent = stepped.need.iter().map(rent).collect();
        assert_eq!(stepped.next(20.0, 20.0).at, Some(18));
        let mut free = day(3);
        free.rent = vec![20.0; 24];
        assert_eq!(free.next(20.0, 20.0).at, None);
    }

    #[test]
    fn what_must_be_is_done_though_it_is_not_allowed() {
        let next = |moves, runs| day(moves).next(runs, runs);
        assert_eq!(next(0, 3.0), Next { at: Some(0), rate: 4.0, moved: 20.0 });
        assert_eq!(next(0, 4.0), Next { at: Some(6), rate: 4.0, moved: 20.0 });
        assert_eq!(next(3, 3.0), Next { at: Some(0), rate: 4.0, moved: 4.0 });
        // What carries enough is left alone until the day comes.
        assert_eq!(next(3, 4.0), Next { at: Some(6), rate: 4.0, moved: 4.0 });
        assert_eq!(next(0, 20.0), Next { at: None, rate: 20.0, moved: 20.0 });
    }

    /// The least rent of a day with at most `moves`, by trying all moments.
    fn by_trying(schedule: &Schedule, at: usize, runs: f64, moves: usize) -> f64 {
        let Some(need) = schedule.need.get(at) else { return 0.0 };
        let stay = if *need > runs { f64::INFINITY } else { runs + by_trying(schedule, at + 1, runs, moves) };
        let mut rates = schedule.need[at..].to_vec();
        rates.retain(|rate| rate >= need);
        let moved = rates.into_iter().filter(|_| moves > 0).map(|rate| {
            rate * (1.0 + schedule.move_intervals) + by_trying(schedule, at + 1, rate, moves - 1)
        });
        moved.fold(stay, f64::min)
    }

    #[test]
    fn no_other_schedule_is_cheaper() {
        let mut state = 1_u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % 8
        };
        for moves in [1, 2, 2, 3, 3] {
            let need: Vec<f64> = (0..7).map(|_| 1.0 + random() as f64).collect();
            let schedule = in_proportion(need, moves);
            let starts = schedule.segments().into_iter().enumerate();
            let costs = starts.filter_map(|(at, from)| Some(8.0 * at as f64 + from[0]?.cost));
            let best = costs.fold(8.0 * 7.0, f64::min);
            let tried = by_trying(&schedule, 0, 8.0, moves);
            assert!((best - tried).abs() < 1e-9, "{schedule:?}: {best} {tried}");
        }
    }
}
