"""What the training notebooks share: a policy trained by an arm from a warm start, and what it is like on problems not trained on."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sesa.arms import Training
from sesa.engines.local import LocalEngine
from sesa.metrics import distinct_fraction, pass_at_k
from sesa.models import TinyConfig, WarmStart, tiny_lm
from sesa.runs import derive_seed, home
from sesa.sampling import Group, Sampling
from sesa.training import run_folder, train


def trained(
    task: Any, seed: int, plan: Training | None, under: str, size: dict[str, int], warm_start: dict[str, Any], probed: int = 64
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, pd.DataFrame | None]:
    """A tiny LM that knows the task's language, trained by `plan`; probed on the first `probed` held-out problems.

    A run that was interrupted goes on from its checkpoint, and one that is finished is only read.

    Args:
        plan: None for the warm start alone.
        under: folder in `runs/`, e.g. "laptop/03_train_math".
        size, warm_start: fields of `TinyConfig` and `WarmStart`.

    Returns:
        model, tokenizer, and the metrics of the run (None if there was none), a row a step.
    """
    start = {"config": TinyConfig(**size), "warm_start": WarmStart(**warm_start)}
    model, tokenizer = tiny_lm(task, seed, **start)
    if plan is None:
        return model, tokenizer, None
    reference, _ = tiny_lm(task, seed, **start)
    folder = run_folder(home() / "runs" / under, model, task, plan, seed)
    return model, tokenizer, train(model, tokenizer, task, task.problems, plan, seed, folder, reference, task.held_out[:probed])


def probes(metrics: pd.DataFrame) -> pd.DataFrame:
    """The rows of a run's metrics at which the policy was probed, with `tokens`, what was written in training until then."""
    metrics = metrics.assign(tokens=metrics["completion_tokens"].cumsum() - metrics["completion_tokens"])
    return metrics[metrics["pass@1"].notna()].drop(columns=["loss", "grad_norm"], errors="ignore").rename(columns={"arm": "active arm"}).round(6)


def answers(model, tokenizer, task: Any, sampler: Callable, seed: int, samples: int, temperature: float = 1.0) -> list[Group]:
    """`samples` answers to every held-out problem. For independent ones of an arm `sampler` is `Training(arm).independent`."""
    cfg = Sampling(group_size=samples, temperature=temperature)
    return sampler(LocalEngine(model, tokenizer), task, task.held_out, cfg, derive_seed(seed, "evaluation", str(temperature)))


def scores(groups: list[Group], ks: tuple[int, ...] = (1, 2, 4, 8, 16, 32)) -> pd.DataFrame:
    """Of independent answers, a row per problem: pass@k for each k (unbiased), the mean reward and the share of distinct answers."""
    rows = []
    for i, group in enumerate(groups):
        n, right = len(group.rollouts), sum(r.solved for r in group.rollouts)
        row = {"problem": i, "reward": np.mean([r.reward for r in group.rollouts])}
        row |= {f"pass@{k}": pass_at_k(n, right, k) for k in ks if k <= n}
        rows.append(row | {"distinct": distinct_fraction([r.key for r in group.rollouts])})
    return pd.DataFrame(rows).round(6)


def strategies(task: Any, groups: list[Group]) -> pd.DataFrame:
    """A row per strategy (`task.strategy`; "(none)": none): how often it was `used`, how often it was `right`, and how often it `follows`
    the sketch that it was to expand."""
    rows = []
    for group in groups:
        for r in group.rollouts:
            strategy = task.strategy(group.problem, r.text)
            follows = r.sketch is not None and strategy is not None and strategy == task.sketch_key(group.problem, r.sketch)
            rows.append({"strategy": strategy or "(none)", "used": 1, "right": int(r.solved), "follows": int(follows)})
    return pd.DataFrame(rows).groupby("strategy").sum().sort_values("used", ascending=False, kind="stable").reset_index()
