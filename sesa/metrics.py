"""What is counted, and how sure it is: pass@k, coverage, distinct answers, entropy, bootstrap intervals.

Two kinds of groups must be kept apart. Of *independent* samples any k are as good as any others, so n of them estimate what k would
give without bias (`pass_at_k`, `expected_distinct_of_k`). The samples of a *sequential* group are not exchangeable: what k give is
seen in the first k of each of several independent groups (`coverage_at_k`).

Keys are answers that count as the same when equal (`Rollout.key`); None is an invalid answer: a sample, but never a find.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from math import comb

import numpy as np
from numpy.typing import ArrayLike

Key = str | None


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that at least one of k samples is correct, from n independent samples of which c are: 1 - C(n-c, k) / C(n, k).

    Unbiased, and exact in integers.  (Chen et al. 2021, arXiv 2107.03374, eq. 1.)

    Raises:
        ValueError: not 1 <= k <= n, or not 0 <= c <= n.
    """
    if not 1 <= k <= n or not 0 <= c <= n:
        raise ValueError(f"pass@k needs 1 <= k <= n and 0 <= c <= n, not n={n}, c={c}, k={k}")
    return 1.0 - comb(n - c, k) / comb(n, k)


def expected_distinct(p: np.ndarray, n: int | np.ndarray) -> float | np.ndarray:
    """Expected number of distinct answers among n independent samples, in closed form: sum_i 1 - (1 - p_i)^n.

    Args:
        p: probability of each valid answer, (answers,); the rest up to 1 is invalid.
        n: number of samples, or an array of numbers; the result has its shape.
    """
    n = np.asarray(n)
    return -np.expm1(n[..., None] * np.log1p(-np.minimum(p, 1 - 1e-16))).sum(-1)[()]


def expected_distinct_of_k(keys: Sequence[Key], k: int) -> float:
    """Expected number of distinct valid answers among k of these n samples, the k chosen at random: sum_i 1 - C(n-c_i, k) / C(n, k).

    For independent samples the unbiased estimate of what k samples give (rarefaction; Hurlbert 1971).
    """
    return float(sum(pass_at_k(len(keys), c, k) for c in _counts(keys).values()))


def distinct(keys: Sequence[Key]) -> int:
    """Number of different valid answers."""
    return len(_counts(keys))


def distinct_fraction(keys: Sequence[Key]) -> float:
    """Different valid answers per sample."""
    return distinct(keys) / len(keys)


def duplicate_fraction(keys: Sequence[Key]) -> float:
    """Share of samples that are valid and stood before in the sequence. With `distinct` and `invalid_fraction` it sums to 1."""
    return 1.0 - distinct_fraction(keys) - invalid_fraction(keys)


def invalid_fraction(keys: Sequence[Key]) -> float:
    return sum(key is None for key in keys) / len(keys)


def coverage_at_k(groups: Sequence[Sequence[Key]], k: int, answers: int | Collection[str]) -> float:
    """The share of the possible distinct answers that the first k samples contain, averaged over groups of any kind, in the order drawn.

    distinct valid answers among the first k / min(k, number of answers). 1: k samples, k finds. With a collection of answers (say,
    the treasures) only those count as finds. The paper's own definition of Coverage@k is not known to us; this is our choice.

    Raises:
        ValueError: no groups, a group of fewer than k samples, or no answers to cover.
    """
    wanted = None if isinstance(answers, int) else set(answers)
    possible = min(k, answers if wanted is None else len(wanted))
    if not groups or possible < 1 or min(map(len, groups)) < k:
        raise ValueError(f"coverage at k={k} needs groups of at least k samples and at least one answer to cover")
    found = [{key for key in group[:k] if key is not None and (wanted is None or key in wanted)} for group in groups]
    return float(np.mean([len(f) / possible for f in found]))


def entropy(p: np.ndarray) -> float:
    """-sum p log p of a distribution, in nats."""
    p = np.asarray(p, dtype=float)
    return float(-np.sum(p * np.log(p, where=p > 0, out=np.zeros_like(p))))


def kl_divergence(p: np.ndarray, q: np.ndarray) -> float:
    """KL(p || q) in nats. p sums to 1; q may sum to less, the rest being answers outside the support of p."""
    p, q = p[p > 0], q[p > 0]
    return float(np.sum(p * (np.log(p) - np.log(q))))


def sample_entropy(keys: Sequence[Key]) -> float:
    """Entropy in nats of the valid answers' observed frequencies (biased low when samples are few: at most log n); 0 if none is valid."""
    counts = np.array(list(_counts(keys).values()), dtype=float)
    return entropy(counts / counts.sum()) if len(counts) else 0.0


def bootstrap_interval(
    values: ArrayLike, over: ArrayLike | None = None, level: float = 0.95, resamples: int = 2000, rng_seed: int = 0
) -> tuple[float, float, float]:
    """Mean and percentile interval by a cluster bootstrap: seeds and problems are both drawn anew, with replacement.

    A problem's value is a cluster: all its samples are in it already. The same problems stand under every seed, so a resample draws rows
    and columns ("pigeonhole" bootstrap; Owen 2007), and the interval is for new seeds *and* new problems. It errs to the wide side by a
    little where the two interact, and to the narrow side with 3 to 5 seeds: a rough interval.

    Args:
        values: (seeds, problems).
        over: of the same shape; then all is of the ratio of the two means, both resampled alike.

    Returns:
        (mean, low, high). All nan if a value is; resamples with nothing over nothing are left out.

    Raises:
        ValueError: `values` is not two-dimensional or empty, or `over` has another shape.
    """
    tables = [np.asarray(x, dtype=float) for x in ([values] if over is None else [values, over])]
    if tables[0].ndim != 2 or not tables[0].size or tables[0].shape != tables[-1].shape:
        raise ValueError(f"values, and over, must be of one shape (seeds, problems), not {' and '.join(str(t.shape) for t in tables)}")
    rows, columns = resampled(tables[0].shape, resamples, rng_seed)
    drawn = [t[rows[:, :, None], columns[:, None, :]].mean((1, 2)) for t in tables]
    with np.errstate(divide="ignore", invalid="ignore"):  # nothing over nothing is nan; a resample of that says nothing
        mean = tables[0].mean() if over is None else np.divide(tables[0].mean(), tables[1].mean())
        means = drawn[0] if over is None else drawn[0] / drawn[1]
    # inverted_cdf: the ends are resampled values themselves, so an infinite one does no harm
    if np.isnan(mean):
        return (np.nan,) * 3
    low, high = np.nanquantile(means, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return float(mean), float(low), float(high)


def resampled(shape: tuple[int, ...], resamples: int, rng_seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Of a cluster bootstrap the seeds and the problems that each resample has: indices, (resamples, seeds) and (resamples, problems).

    shape: (seeds, problems), and perhaps more.
    """
    rng = np.random.default_rng(rng_seed)
    seeds, problems = (rng.integers(n, size=(resamples, n)) for n in shape[:2])
    return seeds, problems


def _counts(keys: Sequence[Key]) -> Counter:
    return Counter(key for key in keys if key is not None)
