//! The normal distribution and the expected improvement of one output, exact also where they underflow.
//!
//! ```text
//! h(z)  = E[(z − Z)₊] = z Φ(z) + φ(z),  Z ~ N(0, 1)
//! x > 0:  Φ(−x) = φ(x) / (x + t),  h(−x) = φ(x) · t / (x + t),  t = 1/(x + 2/(x + 3/(x + …)))
//! ```
//! The continued fraction is Laplace's for Mills' ratio (Abramowitz & Stegun 26.2.14); writing `h` with the same `t` leaves no
//! difference of nearly equal numbers. The need for `ln h` is argued in Ament et al., "Unexpected Improvements to Expected
//! Improvement for Bayesian Optimization", `NeurIPS` 2023, section 4.1.

use std::f64::consts::{FRAC_1_SQRT_2, LN_2};

/// ln √(2π).
pub const LN_SQRT_2PI: f64 = 0.918_938_533_204_672_8;

/// Below this the continued fraction is used.
const TAIL: f64 = -5.0;

/// φ(z).
pub fn pdf(z: f64) -> f64 {
    (-0.5 * z * z - LN_SQRT_2PI).exp()
}

/// Φ(z).
pub fn cdf(z: f64) -> f64 {
    0.5 * libm::erfc(-z * FRAC_1_SQRT_2)
}

/// ln Φ(z) and its derivative φ(z)/Φ(z).
pub fn ln_cdf(z: f64) -> (f64, f64) {
    if z < TAIL {
        let x = -z;
        let sum = x + fraction(x);
        (-0.5 * x * x - LN_SQRT_2PI - sum.ln(), sum)
    } else if z > -TAIL {
        let upper = cdf(-z);
        ((-upper).ln_1p(), pdf(z) / (1.0 - upper))
    } else {
        let below = cdf(z);
        (below.ln(), pdf(z) / below)
    }
}

/// ln h(z) and its derivative Φ(z)/h(z).
pub fn ln_improvement(z: f64) -> (f64, f64) {
    if z < TAIL {
        let x = -z;
        let t = fraction(x);
        (-0.5 * x * x - LN_SQRT_2PI + (t / (x + t)).ln(), 1.0 / t)
    } else {
        let below = cdf(z);
        let h = z * below + pdf(z);
        (h.ln(), below / h)
    }
}

/// `1/(x + 2/(x + 3/(x + …)))` for x ≥ 5, to full precision.
fn fraction(x: f64) -> f64 {
    let terms = 6 + (400.0 / (x * x)) as u32;
    (1..=terms).rev().fold(0.0, |tail, numerator| f64::from(numerator) / (x + tail))
}

/// ln(1 − eˣ) for x < 0 (Mächler, "Accurately computing log(1 − exp(−|a|))", 2012); −∞ at 0.
pub fn ln_1m_exp(x: f64) -> f64 {
    if x > -LN_2 { (-x.exp_m1()).ln() } else { (-x.exp()).ln_1p() }
}

/// The z with Φ(z) = p, for p in (0, 1).
///
/// Newton's method on ln Φ, which is concave: from the left it never passes the root.
pub fn quantile(p: f64) -> f64 {
    if p > 0.5 {
        return -quantile(1.0 - p);
    }
    let goal = p.ln();
    let mut z = -(-2.0 * goal).sqrt();
    for _ in 0..50 {
        let (value, slope) = ln_cdf(z);
        let step = (goal - value) / slope;
        z += step;
        if step.abs() < 1e-15 * z.abs().max(1.0) {
            break;
        }
    }
    z
}
