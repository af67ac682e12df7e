"""How sure a mean is: 95% intervals over seeds and problems, p values of "no effect", Holm's adjustment.

The same problems stand under every seed, so a table (seeds, problems) has three sources of chance:
y_ij = mean + seed_i + problem_j + rest_ij, all random ("two-way crossed random effects"). The interval is
for new seeds *and* new problems. With MS the mean squares of the two-way analysis of variance, the variance
of the mean of S seeds and P problems is (MS_seed + MS_problem - MS_rest) / (S P).

Two choices are ours. A simulation (`tests/test_intervals.py`) holds them to 93-97% at 3, 5 and 8 seeds:

- A component that is estimated below 0 counts as 0: an MS smaller than MS_rest is replaced by MS_rest.
- Satterthwaite's formula gives too many degrees of freedom when a component has 2 and its share is itself
  uncertain: coverage falls to 92% at 3 seeds. We weight the reciprocal degrees of freedom by the shares of
  the variance and not by their squares: 1/df = sum_i share_i / df_i.

The least we found is 92.9%: at 3 seeds, where problems are alike and MS_seed is about 5 times MS_rest. Shares of
right answers are skewed, and have 92% at 3 seeds that differ much. Where nothing but the rest varies, the
interval is a little too wide (97 to 98%), as no component can be estimated below 0. Two seeds are too few:
where seeds differ much, coverage is 88 to 92%.
"""

from collections.abc import Sequence
from math import exp, log

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


def interval(values: ArrayLike, over: ArrayLike | None = None, level: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high) of a table (seeds, problems); with `over`, of the ratio of the two tables' means.

    A ratio's interval is taken on the log scale (delta method) and never reaches below 0. One problem only: the
    t interval over seeds. Fewer than two seeds: (mean, nan, nan), as one seed cannot show how much seeds differ.
    Equal values: an interval of width 0.

    Args:
        values: (seeds, problems), the same problems for every seed.
        over: of the same shape, paired with `values` seed by seed and problem by problem.
        level: share of such intervals that hold the true value.

    Returns:
        All nan if any value is nan. A ratio with a mean that is not above 0 has no interval: (ratio, nan, nan).

    Raises:
        ValueError: `values` is not two-dimensional or is empty, or `over` has another shape.
    """
    mean, error, df = _moments(*_tables(values, over))
    half = float(stats.t.ppf((1 + level) / 2, df) * error)
    if over is None:
        return mean, mean - half, mean + half
    return mean, mean * exp(-half), mean * exp(min(half, 700))  # a larger exponent has no float


def p_value(values: ArrayLike, over: ArrayLike | None = None) -> float:
    """Two-sided p value of "no effect": a mean of 0, or with `over` a ratio of 1.

    From the same moments as `interval`: below 0.05 exactly where that excludes "no effect"; nan where it is nan.

    Raises:
        ValueError: as `interval`.
    """
    mean, error, df = _moments(*_tables(values, over))
    if np.isnan(error):
        return float("nan")
    effect = abs(mean if over is None else log(mean))
    if error == 0:
        return 1.0 if effect == 0 else 0.0
    return float(2 * stats.t.sf(effect / error, df))


def holm(p_values: ArrayLike) -> np.ndarray:
    """p values adjusted for a search among all of them, in the order given (Holm 1979).

    Of searches where there is nothing, no more than 5% find an adjusted p below 0.05. nan stays nan and is not
    counted.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]  # nan is sorted last
    adjusted = np.full(p.shape, np.nan)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return adjusted


def chance_note(intervals: int) -> str:
    """A sentence for a table with many 95% intervals: how many of them miss the true value by chance alone."""
    missed = intervals / 20
    count = f"{missed:.0f}" if missed >= 1 else f"{missed:.1f}"
    return f"Of these {intervals} intervals at 95%, about {count} would miss the true value by chance alone."


def written(triple: Sequence[float], number: str = "{:.2f}") -> str:
    """An interval as text: 0.25 [0.20, 0.31]; 0.25 (no interval), as with one seed; nothing without a mean."""
    mean, low, high = triple
    if np.isnan(mean):
        return ""
    if np.isnan(low):
        return f"{number.format(mean)} (no interval)"
    return f"{number.format(mean)} [{number.format(low)}, {number.format(high)}]"


def _tables(values: ArrayLike, over: ArrayLike | None) -> tuple[np.ndarray, np.ndarray | None]:
    table, base = np.asarray(values, dtype=float), None if over is None else np.asarray(over, dtype=float)
    if table.ndim != 2 or not table.size:
        raise ValueError(f"values must be a table (seeds, problems), not empty, and not of shape {table.shape}")
    if base is not None and base.shape != table.shape:
        raise ValueError(f"over must have the shape of values, {table.shape}, not {base.shape}")
    return table, base


def _moments(values: np.ndarray, over: np.ndarray | None) -> tuple[float, float, float]:
    """(mean, standard error, degrees of freedom); with `over` of the ratio: (ratio, those of its log)."""
    mean, table = float(values.mean()), values
    if over is not None:
        top, bottom = mean, over.mean()
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = float(np.divide(top, bottom))
        if not (top > 0 and bottom > 0):
            return mean, np.nan, np.nan
        table = values / top - over / bottom
    if not np.isfinite(table).all():
        return mean, np.nan, np.nan
    error, df = standard_error(table)
    return mean, float(error), float(df)


def standard_error(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(standard error of the mean, degrees of freedom) of tables (..., seeds, problems): arrays (...).

    nan with fewer than two seeds.
    """
    seeds, problems = table.shape[-2:]
    if seeds < 2:
        return np.full(table.shape[:-2], np.nan), np.full(table.shape[:-2], np.nan)
    if problems == 1:
        return stats.sem(table[..., 0], axis=-1), np.full(table.shape[:-2], seeds - 1.0)
    if seeds > problems:  # the factor with fewer levels, which is the less certain one, comes first
        return standard_error(table.swapaxes(-2, -1))
    first, second, rest = mean_squares(table)
    variance = np.maximum(first, rest) + np.maximum(second, rest) - rest
    share = np.divide(first, variance, where=first > rest, out=np.zeros_like(first))
    both = 1 / (share / (seeds - 1) + (1 - share) / (problems - 1))
    neither = np.where(second > rest, problems - 1, (seeds - 1) * (problems - 1))
    return np.sqrt(variance / (seeds * problems)), np.where(first > rest, both, neither)


def mean_squares(table: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(MS_rows, MS_columns, MS_rest) of tables (..., rows, columns), by a two-way analysis of variance."""
    rows, columns = table.shape[-2:]
    centred = table - table.mean((-2, -1), keepdims=True)
    row, column = centred.mean(-1, keepdims=True), centred.mean(-2, keepdims=True)
    between_rows, between_columns, rest = ((part**2).sum((-2, -1)) for part in (row, column, centred - row - column))
    of_rows, of_columns = columns * between_rows / (rows - 1), rows * between_columns / (columns - 1)
    return of_rows, of_columns, rest / ((rows - 1) * (columns - 1))
