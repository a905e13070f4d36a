"""How certain a score is, and whether two scores differ: intervals, paired tests, and the smallest difference a set can show.

A score is a function of sums over examples (`ExampleSums`), so that resampling is arithmetic on counts, or of any subset of
examples (`ExampleSubsets`), which is recomputed. Seeds are fixed: the same predictions give the same numbers.

Wilson: Wilson 1927, JASA 22, p. 209. Means: studentized bootstrap. Other scores, BCa: Efron 1987, JASA 82, p. 171; acceleration by the jackknife, Efron & Tibshirani 1993,
p. 186. Approximate randomization: Noreen 1989; Yeh 2000, COLING, p. 947. McNemar, exact: Fagerland et al. 2013, BMC Medical
Research Methodology 13:91. Slices: Fisher's exact test for rates; else Welch 1947, Biometrika 34, p. 28, with jackknife standard errors.
Holm 1979, Scand. J. Statist. 6, p. 65.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
POWER = 0.8
MIN_EXAMPLES = 2  # units without which nothing can be resampled
NUM_RESAMPLES = 2000
NUM_SHUFFLES = 9999
_MIN_REPLICATES, _MAX_REPLICATES = (
    200,
    1000,
)  # of subsets that are scored again; with fewer the ends of an interval are noise
_BLOCK = 20_000_000  # counts in memory at a time
_WORK = 2_000_000_000  # multiplications of one test; larger sets are shuffled less often
_SEED = 20_260_101

Kind = Literal["rate", "mean", "corpus"]
Interval = tuple[float, float]


@dataclass(frozen=True)
class ExampleSums:
    """A score that depends on the examples only by a sum of one vector for each."""

    kind: Kind  # rate: (right or wrong, 1); mean: (value, 1); corpus: anything
    vectors: np.ndarray  # (kinds, parts) the different vectors
    codes: np.ndarray  # (units,) which of them each example, or each group of examples, has
    score: Callable[[np.ndarray], np.ndarray]  # (..., parts) sums -> (...); NaN where it is undefined

    @property
    def num_units(self) -> int:
        return len(self.codes)

    @property
    def counts(self) -> np.ndarray:  # (kinds,)
        return np.bincount(self.codes, minlength=len(self.vectors))

    @property
    def value(self) -> float:
        return float(self.score(self.counts @ self.vectors))


@dataclass(frozen=True)
class ExampleSubsets:
    """A score that has to be computed again for each subset of the examples, such as the area under a curve."""

    predictions: Any  # a list or an array, one of each example
    units: list[np.ndarray]  # indices of the examples of each unit: of one example, or of a group
    evaluate: Callable[[Any, np.ndarray], float | None]  # (predictions, indices) -> score
    max_scored: int  # examples to score in all, which bounds the time
    kind: Kind = "corpus"

    @property
    def value(self) -> float:
        score = self.evaluate(self.predictions, np.concatenate(self.units))
        return math.nan if score is None else score

    @property
    def num_units(self) -> int:
        return len(self.units)

    @property
    def num_replicates(self) -> int:
        return min(_MAX_REPLICATES, self.max_scored // max(1, len(self.predictions)))


ExampleScores = ExampleSums | ExampleSubsets


def sums_of(kind: Kind, rows: np.ndarray, score: Callable[[np.ndarray], np.ndarray]) -> ExampleSums:
    """Builds sums of a row for each example, (examples, parts)."""
    vectors, codes = np.unique(np.asarray(rows, dtype=np.float64), axis=0, return_inverse=True)
    return ExampleSums(kind, vectors, codes.reshape(-1), score)


def ratio(sums: np.ndarray) -> np.ndarray:  # (..., 2) -> (...)
    return divide(sums[..., 0], sums[..., 1])


def divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """NaN where the denominator is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator != 0, numerator / denominator, np.nan)


def by_group(sums: ExampleSums, groups: np.ndarray | None) -> ExampleSums:
    """The same score with groups as the units that are drawn: examples of a group are not independent."""
    if groups is None:
        return sums
    _, members = np.unique(groups, return_inverse=True)
    totals = np.zeros((members.max() + 1, sums.vectors.shape[1]))
    np.add.at(totals, members, sums.vectors[sums.codes])
    return sums_of("corpus", totals, sums.score)


def units_of(num_examples: int, groups: np.ndarray | None) -> list[np.ndarray]:
    if groups is None:
        return list(np.arange(num_examples)[:, None])
    return [np.flatnonzero(groups == group) for group in np.unique(groups)]


# ── intervals ───────────────────────────────────────────────────────────────────────────────────────────────────────
def interval(scores: ExampleScores) -> Interval | None:
    """95 % interval of a score; None where resampling cannot give one: two units are too few, or every resample scores the same."""
    if scores.num_units < MIN_EXAMPLES:
        return None
    if isinstance(scores, ExampleSubsets):
        return _subset_interval(scores)
    if scores.kind == "rate":
        right, total = scores.counts @ scores.vectors
        return wilson(right, total)
    return _studentized(scores) if scores.kind == "mean" else _bca(scores)


def wilson(successes: float, trials: float, confidence: float = CONFIDENCE) -> Interval | None:
    """Score interval of a rate, without continuity correction; None without trials."""
    if not trials:
        return None
    z = normal_quantile(0.5 + confidence / 2)
    rate, shrink = successes / trials, 1 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / shrink
    half = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials)) / shrink
    return max(0.0, centre - half), min(1.0, centre + half)


def _studentized(sums: ExampleSums) -> Interval | None:
    """Bootstrap-t interval of a mean (Efron & Tibshirani 1993, p. 160). Of 50 exponential values BCa held the mean in 93.8 of 100
    sets, this in 94.3 (`docs/decisions/0016-honest-numbers.md`)."""
    values, counts = sums.vectors[:, 0], sums.counts
    n, value = int(counts.sum()), sums.value
    resamples = np.random.default_rng(_SEED).multinomial(n, counts / n, NUM_RESAMPLES)
    means, errors = resamples @ values / n, _error_of_mean(resamples, values)
    ratios = (means - value)[errors > 0] / errors[errors > 0]
    if len(ratios) < NUM_RESAMPLES // 2:
        return None
    error = float(_error_of_mean(counts[None], values)[0])
    low, high = np.quantile(ratios, [ALPHA / 2, 1 - ALPHA / 2])
    smallest = 0.0 if values.min() >= 0 else -math.inf
    return max(smallest, float(value - high * error)), float(value - low * error)


def _error_of_mean(counts: np.ndarray, values: np.ndarray) -> np.ndarray:  # (sets, kinds), (kinds,) -> (sets,)
    n = counts[0].sum()
    variance = counts @ values**2 / n - (counts @ values / n) ** 2
    return np.sqrt(np.where(variance > 1e-14, variance, 0) / (n - 1))


def _bca(sums: ExampleSums) -> Interval | None:
    """Bias-corrected and accelerated interval, wider by sqrt(n / (n - 1)): resamples of n units vary less than samples do
    (Hesterberg 2015, The American Statistician 69, p. 378)."""
    from scipy import stats

    value, replicates = sums.value, resampled(sums)
    replicates = replicates[np.isfinite(replicates)]
    if not math.isfinite(value) or len(replicates) < NUM_RESAMPLES // 2 or np.ptp(replicates) == 0:
        return None
    below = (np.sum(replicates < value) + np.sum(replicates == value) / 2) / len(replicates)
    bias = normal_quantile(float(np.clip(below, 1 / len(replicates), 1 - 1 / len(replicates))))
    acceleration, n = _acceleration(sums), sums.num_units
    z = normal_quantile(0.5 + CONFIDENCE / 2) * math.sqrt(n / (n - 1))
    shifted = np.array([bias - z, bias + z])
    shares = stats.norm.cdf(bias + shifted / np.maximum(1 - acceleration * shifted, 1e-3))
    low, high = np.quantile(replicates, shares)
    return float(min(low, value)), float(max(high, value))


def resampled(sums: ExampleSums) -> np.ndarray:  # (NUM_RESAMPLES,)
    """Scores of resamples of the units, drawn with replacement. Equal units are drawn together."""
    rng, counts = np.random.default_rng(_SEED), sums.counts
    block = max(1, _BLOCK // len(counts))
    sizes = [min(block, NUM_RESAMPLES - start) for start in range(0, NUM_RESAMPLES, block)]
    shares = counts / counts.sum()
    return np.concatenate([sums.score(rng.multinomial(counts.sum(), shares, size) @ sums.vectors) for size in sizes])


def _acceleration(sums: ExampleSums) -> float:
    left_out, weights = jackknife(sums), sums.counts
    is_defined = np.isfinite(left_out) & (weights > 0)
    left_out, weights = left_out[is_defined], weights[is_defined]
    deviation = np.average(left_out, weights=weights) - left_out
    spread = float((weights * deviation**2).sum())
    return float((weights * deviation**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0


def jackknife(sums: ExampleSums) -> np.ndarray:  # (kinds,)
    """The score without one unit, for each kind of unit."""
    return np.asarray(sums.score(sums.counts @ sums.vectors - sums.vectors))


def _subset_interval(subsets: ExampleSubsets) -> Interval | None:
    """Percentile interval; None where too few resamples can be scored in bounded time."""
    defined = _subset_replicates(subsets)
    if defined is None:
        return None
    low, high = np.quantile(defined, [ALPHA / 2, 1 - ALPHA / 2])
    return float(low), float(high)


def _subset_replicates(subsets: ExampleSubsets) -> list[float] | None:
    """Scores of resamples; None where too few can be scored or are defined, or all are equal."""
    if subsets.num_replicates < _MIN_REPLICATES:
        return None
    rng, num_units, everything = np.random.default_rng(_SEED), subsets.num_units, np.concatenate(subsets.units)
    scores = [
        subsets.evaluate(
            subsets.predictions, _members(subsets.units, everything, rng.integers(num_units, size=num_units))
        )
        for _ in range(subsets.num_replicates)
    ]
    defined = [score for score in scores if score is not None and math.isfinite(score)]
    return None if len(defined) < subsets.num_replicates / 2 or min(defined) == max(defined) else defined


def _members(units: list[np.ndarray], everything: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Indices of the examples of these units; `everything`: of all. Joining 10,000 units of an example takes longer than scoring
    them."""
    if len(everything) == len(units):
        return everything[numbers]
    return np.concatenate([units[number] for number in numbers])


# ── tests of two candidates on the same examples ────────────────────────────────────────────────────────────────────
def p_value(
    first: ExampleScores, second: ExampleScores, worse: Literal["lower", "higher"] | None = None
) -> float | None:
    """How likely a difference at least this large is when the two are equally good: exact McNemar for rates, approximate
    randomization otherwise. `worse`: the first is suspected to score so, one-sided. None where it cannot be computed, such as for
    models of different classes."""
    if _shape(first) != _shape(second):
        return None
    if isinstance(first, ExampleSubsets) or isinstance(second, ExampleSubsets):
        assert isinstance(first, ExampleSubsets)
        assert isinstance(second, ExampleSubsets)
        return _subset_randomization(first, second, worse)
    if first.kind == second.kind == "rate":
        right = first.vectors[first.codes, 0] - second.vectors[second.codes, 0]
        return mcnemar(int((right > 0).sum()), int((right < 0).sum()), worse)
    return _randomization(first, second, worse)


def _shape(scores: ExampleScores) -> tuple[Any, ...]:
    """What two candidates must have in common to be exchanged: units, and parts of sums or numbers of a prediction."""
    values = scores.vectors if isinstance(scores, ExampleSums) else scores.predictions
    return type(scores), scores.num_units, getattr(values, "shape", (None,))[1:]


def mcnemar(only_first: int, only_second: int, worse: Literal["lower", "higher"] | None = None) -> float:
    """Exact (binomial) test on the examples that one of two candidates has right."""
    from scipy import stats

    if not only_first + only_second:
        return 1.0
    alternative = {None: "two-sided", "lower": "less", "higher": "greater"}[worse]
    return float(stats.binomtest(only_first, only_first + only_second, 0.5, alternative=alternative).pvalue)


def _randomization(first: ExampleSums, second: ExampleSums, worse: Literal["lower", "higher"] | None) -> float | None:
    """Exchanges the two candidates' answers to random units; equal pairs are exchanged together."""
    difference = first.value - second.value
    if not math.isfinite(difference):
        return None
    pairs, num_pairs = np.unique(np.stack([first.codes, second.codes], axis=1), axis=0, return_counts=True)
    change = second.vectors[pairs[:, 1]] - first.vectors[pairs[:, 0]]
    differs = (change != 0).any(axis=1)
    if not differs.any():
        return 1.0
    change, num_pairs = change[differs], num_pairs[differs]
    total, other_total = first.counts @ first.vectors, second.counts @ second.vectors
    rng, num_shuffles = np.random.default_rng(_SEED), _num_shuffles(change.size)
    block = max(1, _BLOCK // len(num_pairs))
    extreme = 0
    for start in range(0, num_shuffles, block):
        size = min(block, num_shuffles - start)
        exchanged = _exchanged(rng, num_pairs, size) @ change
        shuffled = first.score(total + exchanged) - first.score(other_total - exchanged)
        extreme += int(_at_least(shuffled, difference, worse).sum())
    return (1 + extreme) / (1 + num_shuffles)


def _exchanged(rng: np.random.Generator, num_pairs: np.ndarray, size: int) -> np.ndarray:  # (size, kinds)
    """How many of the equal pairs are exchanged, each with probability 1/2. A single pair takes one random bit, and a tenth of the
    time of a binomial number."""
    exchanged, is_single = np.empty((size, len(num_pairs))), num_pairs == 1
    num_single = int(is_single.sum())
    random_bytes = rng.integers(0, 256, (size, -(-num_single // 8)), dtype=np.uint8)
    exchanged[:, is_single] = np.unpackbits(random_bytes, axis=1, count=num_single)
    exchanged[:, ~is_single] = rng.binomial(num_pairs[~is_single], 0.5, (size, len(num_pairs) - num_single))
    return exchanged


def _num_shuffles(size: int) -> int:
    return int(np.clip(_WORK // max(1, size), 999, NUM_SHUFFLES))


def _at_least(shuffled: np.ndarray, difference: float, worse: Literal["lower", "higher"] | None) -> np.ndarray:
    """Which differences are as extreme as the observed; undefined ones count, to be on the safe side."""
    tolerance = 1e-12 * max(1.0, abs(difference))
    if worse == "lower":
        return ~(shuffled > difference + tolerance)
    if worse == "higher":
        return ~(shuffled < difference - tolerance)
    return ~(np.abs(shuffled) < abs(difference) - tolerance)


def _subset_randomization(
    first: ExampleSubsets, second: ExampleSubsets, worse: Literal["lower", "higher"] | None
) -> float | None:
    num_shuffles = first.num_replicates // 2 - 1
    everything = np.concatenate(first.units)
    score = first.evaluate(first.predictions, everything)
    second_score = second.evaluate(second.predictions, everything)
    if num_shuffles < _MIN_REPLICATES // 2 - 1 or score is None or second_score is None:
        return None
    rng, shuffled = np.random.default_rng(_SEED), []
    exchanged, sizes = np.zeros(len(everything), dtype=bool), [len(unit) for unit in first.units]
    for _ in range(num_shuffles):
        exchanged[everything] = np.repeat(rng.random(first.num_units) < 0.5, sizes)
        scores = [
            first.evaluate(_mixed(pair, exchanged), everything)
            for pair in ((first.predictions, second.predictions), (second.predictions, first.predictions))
        ]
        shuffled.append(math.nan if scores[0] is None or scores[1] is None else scores[0] - scores[1])
    extreme = int(_at_least(np.array(shuffled), score - second_score, worse).sum())
    return (1 + extreme) / (1 + num_shuffles)


def _mixed(pair: tuple[Any, Any], exchanged: np.ndarray) -> Any:
    """The first's predictions, and the second's where they are exchanged."""
    first, second = pair
    if isinstance(first, np.ndarray):
        return np.where(exchanged.reshape(-1, *[1] * (first.ndim - 1)), second, first)
    return [b if exchange else a for a, b, exchange in zip(first, second, exchanged, strict=True)]


# ── test of a slice against the rest of its split ───────────────────────────────────────────────────────────────────
def worse_than_rest(in_slice: ExampleScores, complement: ExampleScores, direction: str) -> float | None:
    """How likely a slice scores at least this much worse when it is as good as the rest of its split, one-sided: Fisher's exact
    test for rates, otherwise Welch's t-test with the standard errors of `score_error`. `direction` is max where higher scores are
    better. None where it cannot be computed. A group with examples in both correlates the two, which makes the test more
    cautious."""
    if (
        isinstance(in_slice, ExampleSums)
        and isinstance(complement, ExampleSums)
        and in_slice.kind == complement.kind == "rate"
    ):
        return fisher(*(in_slice.counts @ in_slice.vectors), *(complement.counts @ complement.vectors))
    difference, errors = in_slice.value - complement.value, (score_error(in_slice), score_error(complement))
    if None in errors or not math.isfinite(difference) or not any(errors):
        return None
    from scipy import stats

    variances = [error**2 for error in errors if error is not None]
    sizes = in_slice.num_units, complement.num_units
    spread = sum(v * v / (n - 1) for v, n in zip(variances, sizes, strict=True))
    t, freedom = difference / math.sqrt(sum(variances)), sum(variances) ** 2 / spread
    return float(stats.t.cdf(t if direction == "max" else -t, freedom))


def fisher(right: float, total: float, rest_right: float, rest_total: float) -> float:
    """One-sided exact test (Fisher 1934) that the first rate is lower than the second."""
    from scipy import stats

    table = [[right, total - right], [rest_right, rest_total - rest_right]]
    return float(stats.fisher_exact(np.array(table, dtype=int), alternative="less").pvalue)


def score_error(scores: ExampleScores) -> float | None:
    """Standard error of a score: by the jackknife, or, where it is recomputed, by the bootstrap (Efron & Tibshirani 1993, p. 47)."""
    if isinstance(scores, ExampleSums):
        return standard_error(scores)
    replicates = _subset_replicates(scores)
    return None if replicates is None else float(np.std(replicates, ddof=1))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values; those that could not be computed stay so and do not count."""
    order = sorted((p, position) for position, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, position) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[position] = largest
    return adjusted


# ── power and spread ────────────────────────────────────────────────────────────────────────────────────────────────
def smallest_difference(first: ExampleSums, second: ExampleSums | None = None) -> float | None:
    """The difference that a two-sided test at 5 % finds with a power of 80 %: (z_0.975 + z_0.8) standard errors of the paired
    difference (Miller 2024, arXiv 2411.00640, section 5, solved for the effect). Without a second candidate, of two that are
    as uncertain as the first and independent."""
    error = standard_error(first) if second is None else _paired_error(first, second)
    if error is None:
        return None
    factor = normal_quantile(1 - ALPHA / 2) + normal_quantile(POWER)
    return factor * error * (math.sqrt(2) if second is None else 1.0)


def standard_error(sums: ExampleSums) -> float | None:
    """Jackknife standard error of a score (Efron & Tibshirani 1993, p. 141)."""
    return _jackknife_error(jackknife(sums), sums.counts)


def _paired_error(first: ExampleSums, second: ExampleSums) -> float | None:
    pairs, num_pairs = np.unique(np.stack([first.codes, second.codes], axis=1), axis=0, return_counts=True)
    return _jackknife_error(jackknife(first)[pairs[:, 0]] - jackknife(second)[pairs[:, 1]], num_pairs)


def _jackknife_error(left_out: np.ndarray, weights: np.ndarray) -> float | None:
    n = int(weights.sum())
    left_out, weights = left_out[weights > 0], weights[weights > 0]
    if n < MIN_EXAMPLES or not np.isfinite(left_out).all():
        return None
    mean = np.average(left_out, weights=weights)
    return math.sqrt((n - 1) / n * float((weights * (left_out - mean) ** 2).sum()))


def normal_quantile(share: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(share)
