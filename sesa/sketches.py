"""When stage I fails: sketches from outside in its place, and how sketch diversity goes with success.

`expand` is the intervention: stage II as it is, of sketches that somebody else chose. `correlation` is what can be seen without intervening.
(All of it our choice.)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from sesa.engines import Completion, Engine
from sesa.intervals import standard_error
from sesa.sampling import Group, Sampling, sesa
from sesa.tasks import Task


def expand(
    engine: Engine, task: Task, problems: Sequence[Any], sketches: Sequence[Sequence[str]], cfg: Sampling, seed: int
) -> list[Group]:
    """Groups of `sesa` whose stage I is replaced: `sketches[i]`, `cfg.group_size` texts, are expanded for `problems[i]`.

    Stage II has the seeds that it has in `sesa`, so that at equal sketches all is equal, and another choice of sketches meets the same luck.

    Raises:
        ValueError: not one list per problem, a list of another length, or two problems that ask alike for a sketch.
    """
    if len(sketches) != len(problems) or any(len(lines) != cfg.group_size for lines in sketches):
        raise ValueError(f"give {cfg.group_size} sketches for each of {len(problems)} problems, not {[len(lines) for lines in sketches]}")
    given = {task.sketch_prompt(problem): iter(lines) for problem, lines in zip(problems, sketches, strict=True)}
    if len(given) != len(problems):
        raise ValueError("two problems ask for a sketch in the same words, and cannot be told apart")
    return sesa(_Told(engine, given), task, problems, replace(cfg, list_length=1), seed)


@dataclass
class _Told:
    """An engine that answers each prompt for a sketch by the next of those given, and leaves the others to the engine behind it."""

    engine: Engine
    given: dict[str, Iterator[str]]

    def generate(self, prompts: Sequence[str], **how: Any) -> list[Completion]:
        if set(prompts) <= set(self.given):
            return [Completion(next(self.given[prompt]), stopped=True) for prompt in prompts]
        return self.engine.generate(prompts, **how)


def correlation(x: np.ndarray, y: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """(correlation, low, high): Pearson's along the last axis, with its 95% interval over seeds and problems.

    Pooled: every row is centred on its own mean, then all rows count together. The interval follows the rule of
    `sesa.intervals`: on Fisher's scale (atanh), by the delta method from what every cell (seed, problem) adds to the
    three sums of products. Simulated, it covers 93 to 98% at 3 to 8 seeds and 16 to 64 problems.

    Args:
        x, y: (seeds, problems, groups), the correlation within problems: of the same one, do groups of more x have more y? Or
            (seeds, problems), each the mean over its groups, the correlation across problems.

    Returns:
        All nan where x or y never differs along the last axis. (correlation, nan, nan) with fewer than two seeds. A
        correlation of 1 or -1 is its own interval.

    Raises:
        ValueError: the two are of different shapes, or not of two or three dimensions, or empty.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if x.shape != y.shape or x.ndim not in (2, 3) or not x.size:
        raise ValueError(f"x and y must be of one shape, (seeds, problems) or (seeds, problems, groups), not {x.shape} and {y.shape}")
    x, y = (v - v.mean(-1, keepdims=True) for v in (x, y))
    products = np.stack([x * y, x * x, y * y]).reshape(3, *x.shape[:2], -1).sum(-1)  # (products, seeds, problems)
    xy, xx, yy = products.mean((1, 2))
    if not xx * yy > 1e-24:
        return (np.nan,) * 3
    value = float(np.clip(xy / np.sqrt(xx * yy), -1, 1))
    # the slope of the correlation in its three means, times what each cell adds to them; then that of atanh
    added = products[0] / np.sqrt(xx * yy) - value * (products[1] / xx + products[2] / yy) / 2
    error, df = standard_error(added)
    if 1 - value**2 < 1e-9:
        return value, *([value] * 2 if len(x) > 1 else [np.nan] * 2)
    if x.ndim == 2:  # a row's problems give two degrees of freedom away, to its mean and to the slope
        error = error * np.sqrt(x.shape[1] / max(1, x.shape[1] - 2))
    half = stats.t.ppf((1 + level) / 2, df) * error / (1 - value**2)
    return value, *(float(np.tanh(np.arctanh(value) + side * half)) for side in (-1, 1))
