"""Of several configurations the smallest that keeps most of what the best one gains, and how sure that choice is."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sesa.intervals import holm, interval, p_value


@dataclass(frozen=True)
class Choice:
    """best: the configuration with the largest mean gain. smallest: the cheapest that keeps the share asked for; None: nothing is gained.

    gains: a row per configuration: mean, low, high (95%, `sesa.intervals`), p (of "no gain", with Holm's adjustment
    for all configurations), cost, and `chosen`: the share of resamples (seeds and problems drawn with replacement) in
    which it would be the smallest. nothing: the share in which no configuration gains. These two shares say how stable
    the choice is; they are no probabilities and no intervals.
    """

    best: Hashable
    smallest: Hashable | None
    gains: pd.DataFrame
    nothing: float


def smallest_that_keeps(
    gains: Mapping[Hashable, pd.DataFrame], costs: Mapping[Hashable, float], share: float = 0.95, resamples: int = 2000, rng_seed: int = 0
) -> Choice:
    """The cheapest configuration whose mean gain is at least `share` of the largest mean gain; of equal costs the one that gains more.

    None is named where the best gain is not above 0 at p < 0.05 after Holm's adjustment, as the best of many is found
    by a search; so none with one seed. Chosen and judged on the same data, the best looks a little better than it is;
    `chosen` shows how far the choice hangs on chance.

    Args:
        gains: of every configuration its gain over the baseline, (seeds, problems), the same seeds and problems for all.
        costs: of every configuration, in any unit.

    Raises:
        ValueError: no configuration; a gain that is no number; tables with other seeds or problems; or a configuration without a finite
            cost; or a share to keep outside of [0, 1].
    """
    names, tables = list(gains), list(gains.values())
    if not names or any(not (t.index.equals(tables[0].index) and t.columns.equals(tables[0].columns)) for t in tables):
        raise ValueError("the gains of all configurations, at least one, must have the same seeds and problems")
    if missing := [name for name in names if name not in costs]:
        raise ValueError(f"no cost is given for {', '.join(map(str, missing))}")
    values = np.stack([t.to_numpy(dtype=float) for t in tables])
    if not values.size or np.isnan(values).any():
        raise ValueError("a gain is no number, or there are no seeds or problems")
    cost = np.array([costs[name] for name in names], dtype=float)
    if not 0 <= share <= 1 or not np.isfinite(cost).all():
        raise ValueError(f"the share to keep lies between 0 and 1, not {share}, and costs are finite numbers")
    drawn = _means_of_resamples(values, resamples, rng_seed)
    picks = [_pick(means, cost, share) for means in drawn.T]
    index = pd.Index(names, tupleize_cols=False)
    table = pd.DataFrame([interval(v) for v in values], columns=["mean", "low", "high"], index=index)
    chosen = [np.mean([pick == i for pick in picks]) for i in range(len(names))]
    table = table.assign(p=holm([p_value(v) for v in values]), cost=cost, chosen=chosen)
    means = table["mean"].to_numpy()
    best = int(means.argmax())
    smallest = _pick(means, cost, share) if table["p"].iloc[best] < 0.05 else None
    nothing = float(np.mean([pick is None for pick in picks]))
    return Choice(names[best], None if smallest is None else names[smallest], table, nothing)


def _means_of_resamples(values: np.ndarray, resamples: int, rng_seed: int) -> np.ndarray:
    """Means in every resample, (configurations, resamples), from values (configurations, seeds, problems)."""
    rng = np.random.default_rng(rng_seed)
    rows, columns = (rng.integers(n, size=(resamples, n)) for n in values.shape[1:])
    return np.stack([v[rows[:, :, None], columns[:, None, :]].mean((1, 2)) for v in values])


def _pick(means: np.ndarray, cost: np.ndarray, share: float) -> int | None:
    if means.max() <= 0:
        return None
    kept = np.flatnonzero(means >= share * means.max())
    return int(min(kept, key=lambda i: (cost[i], -means[i])))
