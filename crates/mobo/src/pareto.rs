//! Points that no other point beats; every coordinate is minimised.

/// Whether `a` is at least as good as `b` everywhere and better somewhere.
pub fn dominates(a: &[f64], b: &[f64]) -> bool {
    a.iter().zip(b).all(|(a, b)| a <= b) && a.iter().zip(b).any(|(a, b)| a < b)
}

/// Indices of the points that no other point dominates, ascending; of equal points the first. A point with a NaN is
/// never among them.
pub fn non_dominated(points: &[Vec<f64>]) -> Vec<usize> {
    (0..points.len())
        .filter(|&at| {
            let point = &points[at];
            !point.iter().any(|x| x.is_nan())
                && !points.iter().any(|other| dominates(other, point))
                && !points[..at].contains(point)
        })
        .collect()
}

/// At most `count` of `points`, spread out: the best in each coordinate first, then always the one farthest (in the largest
/// coordinate difference, coordinates scaled to their range) from those chosen.
pub fn spread_out(points: &[Vec<f64>], count: usize) -> Vec<Vec<f64>> {
    if points.len() <= count {
        return points.to_vec();
    }
    let ranges: Vec<(f64, f64)> = (0..points[0].len())
        .map(|k| {
            let values = points.iter().map(|point| point[k]);
            let low = values.clone().fold(f64::INFINITY, f64::min);
            (low, (values.fold(f64::NEG_INFINITY, f64::max) - low).max(f64::MIN_POSITIVE))
        })
        .collect();
    let distance = |a: usize, b: usize| {
        let gaps =
            ranges.iter().enumerate().map(|(k, (_, range))| (points[a][k] - points[b][k]).abs() / range);
        gaps.fold(0.0, f64::max)
    };
    let best = |k: usize| (0..points.len()).min_by(|a, b| points[*a][k].total_cmp(&points[*b][k]));
    let mut chosen: Vec<usize> = Vec::new();
    let mut nearest = vec![f64::INFINITY; points.len()];
    let mut firsts = (0..ranges.len()).filter_map(best);
    while chosen.len() < count {
        let farthest = || (0..points.len()).max_by(|a, b| nearest[*a].total_cmp(&nearest[*b]));
        let Some(next) = firsts.next().or_else(farthest) else { break };
        (0..points.len()).for_each(|at| nearest[at] = nearest[at].min(distance(at, next)));
        if !chosen.contains(&next) {
            chosen.push(next);
        }
    }
    chosen.into_iter().map(|at| points[at].clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_is_what_nothing_beats() {
        let points =
            [[1.0, 4.0], [2.0, 2.0], [3.0, 3.0], [4.0, 1.0], [2.0, 2.0], [f64::NAN, 0.0]].map(Vec::from);
        assert_eq!(non_dominated(&points), [0, 1, 3]);
        assert_eq!(non_dominated(&[]), [0; 0]);
    }

    #[test]
    fn a_selection_keeps_the_ends_and_spreads() {
        let points: Vec<Vec<f64>> = (0..=10).map(|x| vec![f64::from(x), f64::from(10 - x)]).collect();
        assert_eq!(spread_out(&points, 3), [[0.0, 10.0], [10.0, 0.0], [5.0, 5.0]].map(Vec::from));
        assert_eq!(spread_out(&points, 20), points);
    }
}
