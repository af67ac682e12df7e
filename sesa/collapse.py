"""Is the policy collapsing? A probe of what it writes without a history, and the rule that answers.

The paper watches Pass@16 / Pass@1: towards 1, the policy writes one answer, right or wrong. The rule of the
notes on the paper: below 1.5, switch to sequential sampling, or change the KL weight. But the ratio also falls
when pass@1 rises as it should (it is never above 1 / pass@1, so above 0.67 always below 1.5). So a probe
reports its parts, and what else is seen, and `Monitor` looks at the parts.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field, StrictBool
from pydantic.dataclasses import dataclass

from sesa.config import CONFIG, Amount, Count
from sesa.engines import Engine
from sesa.metrics import distinct_fraction, duplicate_fraction, invalid_fraction, pass_at_k, sample_entropy
from sesa.sampling import Sampling, parallel
from sesa.tasks import Task


def probe(
    engine: Engine, task: Task, problems: Sequence[Any], seed: int, samples: int = 16, temperature: float = 1.0, sampler: Callable = parallel
) -> dict[str, float]:
    """What independent samples without a history show, averaged over problems.

    Args:
        sampler: `parallel`, or `iid_sketches` for a policy that was trained to answer by way of a sketch.

    Returns:
        pass@1 and pass@`samples`, their ratio (of the means; nan when nothing is right), answer_entropy in nats over the valid answers
        of a problem, and the fractions of distinct, duplicate and invalid samples.
    """
    groups = sampler(engine, task, problems, Sampling(group_size=samples, temperature=temperature), seed)
    keys = [[r.key for r in group.rollouts] for group in groups]
    right = [sum(r.solved for r in group.rollouts) for group in groups]
    first, any_of = (float(np.mean([pass_at_k(samples, c, k) for c in right])) for k in (1, samples))
    return {
        "pass@1": first,
        f"pass@{samples}": any_of,
        "ratio": any_of / first if first else float("nan"),
        "answer_entropy": float(np.mean([sample_entropy(k) for k in keys])),
        "distinct": float(np.mean([distinct_fraction(k) for k in keys])),
        "duplicates": float(np.mean([duplicate_fraction(k) for k in keys])),
        "invalid": float(np.mean([invalid_fraction(k) for k in keys])),
    }


@dataclass(config=CONFIG)
class Monitor:
    """Says when a policy has collapsed, and when it has recovered: with hysteresis, so that noise does not switch to and fro.

    collapsed turns True after `patience` probes in a row with a ratio pass@16 / pass@1 below `low`, and False
    after as many above `high`. A policy that got good has not collapsed (our choice):

    - Above pass@1 = 0.5, where the ratio is below 2, the thresholds come down with its maximum, 1 / pass@1:
      `low` is then half of the way from 1 to there, for 1.5, and `high` 0.8 of it, for 1.8. So it has collapsed
      if 15 more answers find less than half of what the first misses.
    - From pass@16 = `enough` on it has not collapsed, or has recovered: there is little left to find.

    A probe in which nothing is right says nothing, and ends a streak. The fields are its state: save them with
    a checkpoint to resume.
    """

    low: Amount = 1.5  # the notes' threshold
    high: Amount = 1.8  # our choice
    enough: Amount = 0.9  # our choice
    patience: Count = 2  # our choice
    collapsed: StrictBool = False
    streak: Annotated[int, Field(ge=0, strict=True)] = 0  # probes in a row that speak for a change

    def __post_init__(self):
        if not self.low <= self.high:
            raise ValueError(f"low must not exceed high: {self}")

    def see(self, pass_1: float, pass_16: float) -> bool:
        """Takes pass@1 and pass@16 of one probe; returns whether the policy counts as collapsed now."""
        if pass_1 > 0:
            ratio, most = pass_16 / pass_1, 1 / max(pass_1, 0.5)
            low, high = (1 + (threshold - 1) * (most - 1) for threshold in (self.low, self.high))
            good = pass_16 >= self.enough
            speaks_for_change = ratio > high or good if self.collapsed else ratio < low and not good
        else:
            speaks_for_change = False
        self.streak = self.streak + 1 if speaks_for_change else 0
        if self.streak >= self.patience:
            self.collapsed, self.streak = not self.collapsed, 0
        return self.collapsed
