//! Where to begin: points spread evenly, without a model.
//!
//! Sobol's sequence with Owen's scrambling (Burley, "Practical Hash-based Owen Scrambling", JCGT 9, 2020, by the crate `sobol_burley`).

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::error::Error;
use crate::lbfgsb::{Limits, minimise};
use crate::space::{Coordinate, Space};

/// Points of a sequence that are tried before another way to meet the constraints is taken.
const TRIALS: u32 = 16_384;

/// Coordinate `dimension` of point `index` of the sequence named by `seed`, in [0, 1).
pub(crate) fn sobol(index: u32, dimension: usize, seed: u64) -> f64 {
    let block = (dimension / 256) as u64;
    let name = mix(seed ^ block.rotate_left(32)) as u32;
    // Beyond 2^16 points the sequence starts again under another name.
    let turn = index >> 16;
    f64::from(sobol_burley::sample(
        index & 0xffff,
        (dimension % 256) as u32,
        name ^ turn.wrapping_mul(0x9e37_79b9),
    ))
}

/// A number that shares no pattern with its neighbours' (`SplitMix64`, Steele, Lea, Flood, 2014).
pub(crate) fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Standard normals, one row per scenario: a Sobol point each, through the normal quantile.
pub(crate) fn sobol_normals(rows: usize, columns: usize, seed: u64) -> Vec<Vec<f64>> {
    // Half a step of single precision away from 0, where the quantile is −∞.
    let normal =
        |row: usize, column| crate::normal::quantile(sobol(row as u32, column, seed) + 2.0_f64.powi(-26));
    (0..rows).map(|row| (0..columns).map(|column| normal(row, column)).collect()).collect()
}

/// `count` points of the scrambled sequence from the `skip`-th on, all meeting the linear constraints, as coordinates.
pub(crate) fn design(space: &Space, skip: usize, count: usize, seed: u64) -> Result<Vec<Vec<f64>>, Error> {
    let point = |index: u32| {
        let cube: Vec<f64> = (0..space.dimensions()).map(|at| sobol(index, at, seed)).collect();
        space.at_cube(&cube)
    };
    if !space.is_constrained() {
        return Ok((skip..skip + count).map(|index| point(index as u32)).collect());
    }
    let wanted = skip + count;
    let mut found: Vec<Vec<f64>> = (0..TRIALS).map(point).filter(|x| space.allows(x)).take(wanted).collect();
    if found.len() < wanted {
        let anchor = found.first().cloned().or_else(|| repaired(space, &point(0))).ok_or(Error::Empty)?;
        let drawn = (0..TRIALS).map(|index| towards(space, &anchor, &point(index)));
        found.extend(drawn.filter(|x| space.allows(x)).take(wanted - found.len()));
    }
    Ok(found.split_off(skip.min(found.len())))
}

/// `count` points drawn independently and uniformly, all meeting the linear constraints, as coordinates.
pub(crate) fn random(space: &Space, count: usize, seed: u64) -> Result<Vec<Vec<f64>>, Error> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut draw = || {
        let cube: Vec<f64> = (0..space.dimensions()).map(|_| rng.random()).collect();
        space.at_cube(&cube)
    };
    let mut found = Vec::new();
    for _ in 0..TRIALS as usize + count {
        if found.len() == count {
            break;
        }
        found.extend(Some(draw()).filter(|x| space.allows(x)));
    }
    if found.len() < count {
        found.extend(design(space, 0, count - found.len(), seed)?);
    }
    Ok(found)
}

/// The last allowed point on the way from the allowed `anchor` to `x` (coordinates that are not numbers stay the anchor's).
pub(crate) fn towards(space: &Space, anchor: &[f64], x: &[f64]) -> Vec<f64> {
    let at = |share: f64| {
        let mut point: Vec<f64> = anchor.iter().zip(x).map(|(a, b)| a + share * (b - a)).collect();
        for (k, coordinate) in space.coordinates().iter().enumerate() {
            if matches!(coordinate, Coordinate::Kind(_)) {
                point[k] = x[k];
            }
        }
        space.snap(&mut point);
        point
    };
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..40 {
        let middle = f64::midpoint(low, high);
        if space.allows(&at(middle)) { low = middle } else { high = middle }
    }
    if space.allows(x) { x.to_vec() } else { at(low) }
}

/// An allowed point near `x`: least squares on the excesses, aiming a little inside so that rounding keeps it allowed.
fn repaired(space: &Space, x: &[f64]) -> Option<Vec<f64>> {
    let (lower, upper) = (vec![0.0; x.len()], vec![1.0; x.len()]);
    let limits = Limits { iterations: 200, gradient: 1e-12, decrease: 0.0 };
    let (mut point, _) = minimise(x, &lower, &upper, limits, |x, gradient| {
        gradient.fill(0.0);
        let mut value = space.add_penalty(x, 1.0, gradient);
        for (at, coordinate) in space.coordinates().iter().enumerate() {
            if let Coordinate::Share(first, parts) = *coordinate {
                let gap = x[first..first + parts].iter().sum::<f64>() - 1.0;
                gradient[at] += 2.0 * gap;
                value += gap * gap / parts as f64;
            }
        }
        value
    });
    space.snap(&mut point);
    // Least squares ends on the border from outside, by a rounding error.
    (space.excess(&point) < 1e-6).then(|| inwards(space, &point)).flatten()
}

/// A point near the border, moved by small random steps until it is allowed.
fn inwards(space: &Space, x: &[f64]) -> Option<Vec<f64>> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut best = x.to_vec();
    for step in 0..20_000 {
        if space.allows(&best) {
            return Some(best);
        }
        let size = 10_f64.powi(-1 - (step % 8));
        let mut moved: Vec<f64> = best.iter().map(|x| x + size * rng.random_range(-1.0..1.0)).collect();
        space.snap(&mut moved);
        if space.excess(&moved) < space.excess(&best) {
            best = moved;
        }
    }
    None
}
