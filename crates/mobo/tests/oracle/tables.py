"""Makes oracle.json: values the optimiser must reproduce, computed independently at 50 digits.

    python3 crates/mobo/tests/oracle/tables.py > crates/mobo/tests/oracle/oracle.json

Needs mpmath only. Formulas are written from their definitions (integrals, determinants, inclusion-exclusion), not from the forms the
crate uses.
"""

import itertools
import json
import random

from mpmath import mp, mpf, matrix, sqrt, exp, log, quad, pi, det, lu_solve, ncdf, npdf, inf, diff, erfc

mp.dps = 50
rng = random.Random(20261125)


def number(value):
    return float(value)


# --- normal tails -------------------------------------------------------------------------------------------------------------------

def improvement(z):
    """E[(z - Z)+] = integral of the distribution function."""
    z = mpf(z)
    return z * erfc(-z / sqrt(2)) / 2 + exp(-z * z / 2) / sqrt(2 * pi)


def tails():
    mp.dps = 200  # z * Phi + phi loses 2 log10(z) digits beyond those of the tail itself
    rows = []
    for z in [-1e4, -1000, -300, -40, -38, -20, -8, -6, -5.01, -5, -4.99, -3, -1, -0.1, 0, 0.1, 1, 3, 4.99, 5.01, 8, 30]:
        big = mpf(z)
        if z <= -300:
            mp.dps = 60
            # asymptotic series of h and Phi, exact to far more than double precision here
            x = -big
            phi_ln = -x * x / 2 - log(sqrt(2 * pi))
            series_phi = sum((-1) ** k * mp.fac2(2 * k - 1) / x ** (2 * k) for k in range(1, 8))
            ln_cdf = phi_ln - log(x) + log(1 + series_phi)
            ln_h = phi_ln + log(-series_phi)
            mp.dps = 200
        else:
            ln_cdf = log(erfc(-big / sqrt(2)) / 2)
            ln_h = log(improvement(big))
        rows.append([z, number(ln_cdf), number(ln_h)])
    mp.dps = 50
    return rows


# --- Gaussian process ---------------------------------------------------------------------------------------------------------------

def matern(a, b, scales):
    s = sqrt(5 * sum(((x - y) / l) ** 2 for x, y, l in zip(a, b, scales)))
    return (1 + s + s * s / 3) * exp(-s)


def kernel(structure, a, b, scales, weights):
    total = mpf(0)
    for term, weight in zip(structure["terms"], weights):
        product = weight
        for group in term:
            at = structure["groups"][group]
            product *= matern([a[i] for i in at], [b[i] for i in at], [scales[i] for i in at])
        total += product
    return total


def gram(case, scales, weights, noise):
    points = case["points"]
    n = len(points)
    return matrix(n, n) if n == 0 else matrix(
        [[kernel(case["structure"], points[i], points[j], scales, weights) + (noise if i == j else 0) for j in range(n)] for i in range(n)]
    )


def mean_of(K, y):
    ones = matrix([1] * len(y))
    solved = lu_solve(K, ones)
    return sum(solved[i] * y[i] for i in range(len(y))) / sum(solved)


def likelihood(case, scales, weights, noise):
    K = gram(case, scales, weights, noise)
    y = [mpf(v) for v in case["targets"]]
    c = mean_of(K, y)
    r = matrix([v - c for v in y])
    return -(r.T * lu_solve(K, r))[0] / 2 - log(det(K)) / 2 - len(y) * log(2 * pi) / 2


def gp_case(n, d, structure, weights, noise):
    case = {
        "structure": structure,
        "points": [[rng.random() for _ in range(d)] for _ in range(n)],
        "targets": [rng.gauss(0, 1) for _ in range(n)],
        "length_scales": [rng.uniform(0.2, 2.0) for _ in range(d)],
        "weights": weights,
        "noise": noise,
        "query": [rng.random() for _ in range(d)],
    }
    scales, w, s = [mpf(v) for v in case["length_scales"]], [mpf(v) for v in weights], mpf(noise)
    K = gram(case, scales, w, s)
    y = [mpf(v) for v in case["targets"]]
    c = mean_of(K, y)
    k = matrix([kernel(structure, case["query"], p, scales, w) for p in case["points"]])
    case["mean"] = number(c + (k.T * lu_solve(K, matrix([v - c for v in y])))[0])
    case["variance"] = number(sum(w) - (k.T * lu_solve(K, k))[0])
    case["ln_likelihood"] = number(likelihood(case, scales, w, s))
    gradient = []
    for i in range(d):
        gradient.append(diff(lambda t: likelihood(case, scales[:i] + [exp(t)] + scales[i + 1:], w, s), log(scales[i])))
    if len(w) > 1:
        for i in range(len(w)):
            gradient.append(diff(lambda t: likelihood(case, scales, w[:i] + [exp(t)] + w[i + 1:], s), log(w[i])))
    gradient.append(diff(lambda t: likelihood(case, scales, w, exp(t)), log(s)))
    case["gradient"] = [number(g) for g in gradient]
    return case


# --- hypervolume --------------------------------------------------------------------------------------------------------------------

def union(points, reference):
    """Inclusion-exclusion over the boxes the points dominate."""
    total = mpf(0)
    for count in range(1, len(points) + 1):
        for chosen in itertools.combinations(points, count):
            corner = [max(p[k] for p in chosen) for k in range(len(reference))]
            volume = mpf(1)
            for r, c in zip(reference, corner):
                volume *= max(mpf(r) - mpf(c), mpf(0))
            total += (-1) ** (count + 1) * volume
    return total


def volumes():
    rows = []
    for m in [1, 2, 3, 4, 5]:
        for n in [1, 4, 9]:
            points = [[rng.random() for _ in range(m)] for _ in range(n)]
            reference = [rng.uniform(0.7, 1.3) for _ in range(m)]
            rows.append({"points": points, "reference": reference, "volume": number(union(points, reference))})
    return rows


# --- expected hypervolume improvement -----------------------------------------------------------------------------------------------

def side(low, high, mean, deviation):
    """E[(high - max(low, Y))+] as the integral of the distribution function over the side."""
    def h(t):
        return deviation * improvement((t - mean) / deviation)
    return h(high) - (h(low) if low > -inf else 0)


def ehvi(front, reference, means, deviations):
    """Sum over the cells of the full grid that no point of the front dominates."""
    m = len(reference)
    cuts = [[-inf] + sorted({mpf(p[k]) for p in front if p[k] < reference[k]}) + [mpf(reference[k])] for k in range(m)]
    sides = [
        [side(low, high, mpf(mean), mpf(deviation)) for low, high in zip(cut, cut[1:])]
        for cut, mean, deviation in zip(cuts, means, deviations)
    ]
    total = mpf(0)
    for cell in itertools.product(*[range(len(c) - 1) for c in cuts]):
        low = [cuts[k][cell[k]] for k in range(m)]
        if any(all(mpf(p[k]) <= low[k] for k in range(m)) for p in front):
            continue
        product = mpf(1)
        for k in range(m):
            product *= sides[k][cell[k]]
        total += product
    return total


def improvements():
    mp.dps = 400  # tails of e^-800 and below, as differences
    rows = []
    for m in [1, 2, 3, 4]:
        front = [[rng.random() for _ in range(m)] for _ in range(5)]
        reference = [1.1] * m
        for shift, deviation in [(0.3, 0.3), (0.9, 0.05), (1.5, 0.2), (3.0, 0.1), (5.0, 0.1), (-2.0, 0.01), (0.5, 1e-3), (0.5, 50.0)]:
            means = [shift + 0.05 * k for k in range(m)]
            deviations = [deviation * (1 + 0.3 * k) for k in range(m)]
            value = ehvi(front, reference, means, deviations)
            rows.append({"front": front, "reference": reference, "means": means, "deviations": deviations, "ln": number(log(value))})
    mp.dps = 50
    return rows


def sides():
    mp.dps = 400
    rows = []
    for low, high, mean, deviation in [
        (0.0, 1.0, 0.5, 0.2), (0.0, 1e-9, 0.5, 0.2), (0.0, 1e-9, -5.0, 0.2), (0.0, 1e-6, 4.0, 0.1), (0.0, 1.0, 30.0, 0.5),
        (-1.0, -0.999, 40.0, 1.0), (0.0, 1.0, -100.0, 0.1), (0.2, 0.21, 0.2, 1e-5), (0.0, 1e3, 1e3, 1e-2), (0.5, 0.500001, 0.0, 1.0),
    ]:
        rows.append([low, high, mean, deviation, number(log(side(mpf(low), mpf(high), mpf(mean), mpf(deviation))))])
    mp.dps = 50
    return rows


joint3 = {"groups": [[0, 1, 2]], "terms": [[0]]}
apart = {"groups": [[0, 1], [2, 3]], "terms": [[0], [1], [0, 1]]}
print(json.dumps({
    "tails": tails(),
    "gp": [
        gp_case(1, 2, {"groups": [[0, 1]], "terms": [[0]]}, [1.0], 1e-2),
        gp_case(6, 3, joint3, [1.0], 1e-4),
        gp_case(9, 3, joint3, [1.0], 0.3),
        gp_case(8, 4, apart, [0.5, 0.3, 0.9], 1e-3),
    ],
    "hypervolume": volumes(),
    "sides": sides(),
    "ln_ehvi": improvements(),
}, indent=1))
