"""Is the policy collapsing? A probe of what it writes without a history, and the rule that answers.

The paper watches Pass@16 / Pass@1: towards 1, the policy writes one answer, right or wrong. The rule of the notes on the paper: below
1.5, switch to sequential sampling, or change the KL weight. The ratio also falls when pass@1 rises as it should, so it misleads when it
stands alone: a probe reports its parts, and what else is seen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

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


@dataclass
class Monitor:
    """Says when a policy has collapsed, and when it has recovered: with hysteresis, so that noise does not switch to and fro.

    collapsed turns True after `patience` probes in a row with a ratio below `low`, and False after as many above `high`. A probe in
    which nothing is right (ratio nan) says nothing, and ends a streak. Its fields are its state: save them with a checkpoint to resume.
    """

    low: float = 1.5  # the notes' threshold
    high: float = 1.8  # our choice
    patience: int = 2  # our choice
    collapsed: bool = False
    streak: int = 0  # probes in a row that speak for a change

    def __post_init__(self):
        if not self.low <= self.high or self.patience < 1:
            raise ValueError(f"low must not exceed high, and patience be at least 1: {self}")

    def see(self, ratio: float) -> bool:
        """Takes the ratio of one probe; returns whether the policy counts as collapsed now."""
        speaks_for_change = ratio > self.high if self.collapsed else ratio < self.low
        self.streak = self.streak + 1 if speaks_for_change else 0
        if self.streak >= self.patience:
            self.collapsed, self.streak = not self.collapsed, 0
        return self.collapsed
