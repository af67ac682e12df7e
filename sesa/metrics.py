"""What is counted: pass@k, coverage, distinct answers, entropy. How sure a mean of it is: `sesa.intervals`.

Two kinds of groups must be kept apart. Of *independent* samples any k are as good as any others, so n of them estimate what k would
give without bias (`pass_at_k`, `expected_distinct_of_k`). The samples of a *sequential* group are not exchangeable: what k give is
seen in the first k of each of several independent groups (`coverage_at_k`).

Keys are answers that count as the same when equal (`Rollout.key`); None is an invalid answer: a sample, but never a find.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from math import comb

import numpy as np

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


def _counts(keys: Sequence[Key]) -> Counter:
    return Counter(key for key in keys if key is not None)
