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
}
