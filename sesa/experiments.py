"""What the training notebooks share: a policy trained by an arm from a warm start, and what it is like on problems not trained on."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sesa.arms import Training
from sesa.engines.local import LocalEngine
from sesa.intervals import chance_note, holm, interval, p_value, written
from sesa.metrics import distinct_fraction, pass_at_k, sample_entropy
from sesa.models import TinyConfig, WarmStart, tiny_lm
from sesa.pretrained import Pretrained, taught
from sesa.runs import derive_seed, home
from sesa.sampling import Group, Rollout, Sampling, iid_sketches, parallel
from sesa.training import run_folder, train


Policy = tuple[Any, PreTrainedModel, PreTrainedTokenizerBase]  # the task in the words of the model, the model, its tokenizer


def started(task: Any, seed: int, model: dict[str, Any], warm_start: dict[str, Any]) -> Policy:
    """Where training begins: a tiny LM that was taught the task's language, or a pretrained one.

    Args:
        model: fields of `TinyConfig`; or, with a `name`, of `sesa.pretrained.Pretrained`, for a task in the chat form.
        warm_start: fields of `WarmStart`; 0 steps leave a pretrained model as it is.
    """
    if "name" in model:
        return taught(task, seed, Pretrained(**model), WarmStart(**warm_start))
    return task, *tiny_lm(task, seed, TinyConfig(**model), WarmStart(**warm_start))


def trained(
    task: Any, seed: int, plan: Training | None, under: str, model: dict[str, Any], warm_start: dict[str, Any], probed: int = 64
) -> tuple[*Policy, pd.DataFrame | None]:
    """A policy that was `started`, trained by `plan`; probed on the first `probed` held-out problems.

    A run that was interrupted goes on from its checkpoint, and one that is finished is only read.

    Args:
        plan: None for the start alone.
        under: folder in `runs/`, e.g. "laptop/03_train_math".

    Returns:
        task, model, tokenizer, and the metrics of the run (None if there was none), a row a step.
    """
    task, policy, tokenizer = started(task, seed, model, warm_start)
    if plan is None:
        return task, policy, tokenizer, None
    reference = started(task, seed, model, warm_start)[1] if plan.needs_reference else None
    probe_on = task.held_out[:probed]
    folder = run_folder(home() / "runs" / under, policy, task, plan, seed, probe_on)
    return task, policy, tokenizer, train(policy, tokenizer, task, task.problems, plan, seed, folder, reference, probe_on)


def probes(metrics: pd.DataFrame) -> pd.DataFrame:
    """The rows of a run's metrics at which the policy was probed, with `tokens`, what was written in training until then."""
    metrics = metrics.assign(tokens=metrics["completion_tokens"].cumsum() - metrics["completion_tokens"])
    return metrics[metrics["pass@1"].notna()].drop(columns=["loss", "grad_norm"], errors="ignore").rename(columns={"arm": "active arm"}).round(6)


STARTS = {"warm start": parallel, "warm start, sketched": iid_sketches}  # not trained; asked for a solution, or for a sketch first


def independent(arm: str) -> Callable:
    """The sampler by which a policy that was trained by this arm, or is one of STARTS, answers without a history."""
    return STARTS[arm] if arm in STARTS else Training(arm).independent


def rate_scores(table: pd.DataFrame, by: str = "rate", columns: Sequence[str] = ("pass@1", "pass@16")) -> pd.DataFrame:
    """Of a search: a row per arm, a column per value of `by`: the mean of `columns` over the last three probes."""
    last = table[table["step"].isin(sorted(table["step"].unique())[-3:])]
    return last.assign(score=last[list(columns)].mean(axis=1)).pivot_table(index="arm", columns=by, values="score", sort=False)


def answers(
    model, tokenizer, task: Any, sampler: Callable, seed: int, samples: int, temperature: float = 1.0, problems: int | None = None
) -> list[Group]:
    """`samples` answers to each of the first `problems` held-out problems; None: all."""
    cfg = Sampling(group_size=samples, temperature=temperature)
    return sampler(LocalEngine(model, tokenizer), task, task.held_out[:problems], cfg, derive_seed(seed, "evaluation", str(temperature)))


def scores(task: Any, groups: list[Group], ks: tuple[int, ...] = (1, 2, 4, 8, 16, 32)) -> pd.DataFrame:
    """Of independent answers, a row per problem: pass@k for each k (unbiased), the mean reward, the share of distinct answers, and how many
    strategies they use: exp of the entropy over `task.strategy`, so that 1 is always the same; 0: none uses any."""
    rows = []
    for i, group in enumerate(groups):
        n, right = len(group.rollouts), sum(r.solved for r in group.rollouts)
        row = {"problem": i, "reward": np.mean([r.reward for r in group.rollouts])}
        row |= {f"pass@{k}": pass_at_k(n, right, k) for k in ks if k <= n}
        used = [name for r in group.rollouts if (name := task.strategy(group.problem, r.text)) is not None]
        row["distinct"] = distinct_fraction([r.key for r in group.rollouts])
        rows.append(row | {"strategies": np.exp(sample_entropy(used)) if used else 0.0})
    return pd.DataFrame(rows).round(6)


def as_drawn(task: Any, groups: list[Group]) -> pd.DataFrame:
    """Of groups as training draws them, a row per problem: whether `any` rollout is right, the share of `right` ones, of `distinct` ones, of
    `distinct sketches`, and of expansions that follow theirs (nan where there are no sketches)."""
    rows = []
    for i, group in enumerate(groups):
        solved = [r.solved for r in group.rollouts]
        row = {"problem": i, "any": float(any(solved)), "right": np.mean(solved), "distinct": distinct_fraction([r.key for r in group.rollouts])}
        row["distinct sketches"] = distinct_fraction([s.key for s in group.sketches]) if group.sketches else float("nan")
        rows.append(row | {"follows": np.mean([_follows(task, group.problem, r) for r in group.rollouts]) if group.sketches else float("nan")})
    return pd.DataFrame(rows).round(6)


def _follows(task: Any, problem: Any, rollout: Rollout) -> bool:
    strategy = task.strategy(problem, rollout.text)
    return rollout.sketch is not None and strategy is not None and strategy == task.sketch_key(problem, rollout.sketch)


def strategies(task: Any, groups: list[Group]) -> pd.DataFrame:
    """A row per strategy (`task.strategy`; "(none)": none): how often it was `used`, how often it was `right`, and how often it `follows`
    the sketch that it was to expand."""
    rows = []
    for group in groups:
        for r in group.rollouts:
            strategy = task.strategy(group.problem, r.text) or "(none)"
            rows.append({"strategy": strategy, "used": 1, "right": int(r.solved), "follows": int(_follows(task, group.problem, r))})
    return pd.DataFrame(rows).groupby("strategy").sum().sort_values("used", ascending=False, kind="stable").reset_index()


def sketch_values(model, tokenizer, task: Any, seed: int, samples: int) -> pd.DataFrame:
    """What a choice of sketch is worth: of every held-out problem, how often an expansion is right, by its `favourite` sketch (the first of
    `task.sketches`), by a `random` one, and by its `best`, which is chosen by one half of the samples and measured on the other."""
    sketches = [(problem, sketch) for problem in task.held_out for sketch in task.sketches(problem)]
    drawn = [(problem, sketch, i) for problem, sketch in sketches for i in range(samples)]
    completions = LocalEngine(model, tokenizer).generate(
        [task.expand_prompt(problem, task.told(sketch)) for problem, sketch, _ in drawn],
        seeds=[derive_seed(seed, "value", problem.id, sketch, i) for problem, sketch, i in drawn],
        stop=task.stop,
        max_tokens=task.max_tokens,
        share=[problem.id for problem, *_ in drawn],
    )
    right = np.array([task.grade(d[0], c.text).solved for d, c in zip(drawn, completions, strict=True)]).reshape(-1, samples)
    owner, rows = np.array([problem.id for problem, _ in sketches]), []
    for i, problem in enumerate(task.held_out):
        mine = right[owner == problem.id]
        halves = mine[:, ::2].mean(axis=1), mine[:, 1::2].mean(axis=1)
        best = np.mean([there[here == here.max()].mean() for here, there in (halves, halves[::-1])])
        rows.append({"problem": i, "favourite": mine[0].mean(), "random": mine.mean(), "best": best})
    return pd.DataFrame(rows).round(6)


def summary(table: pd.DataFrame, columns: Sequence[str], by: str = "arm") -> pd.DataFrame:
    """Of every arm the means of the columns with 95% intervals, over seeds and problems: a row per arm, columns (column, mean|low|high).

    `table` has a row per arm, seed and problem, the same problems for every seed. Where a column is nan, so is its interval.
    """
    rows = {}
    for arm, part in table.groupby(by, sort=False):
        values = {c: interval(part.pivot(index="seed", columns="problem", values=c)) for c in columns}
        rows[arm] = {(c, end): v for c, triple in values.items() for end, v in zip(("mean", "low", "high"), triple, strict=True)}
    return pd.DataFrame(rows).T


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """A `summary` as text: 0.25 [0.20, 0.31]; 0.25 (no interval) with one seed; nothing where it is nan."""
    return pd.DataFrame({c: [written(triple) for triple in table[c].to_numpy()] for c in dict(table.columns)}, table.index)


def differences(table: pd.DataFrame, questions: Sequence[tuple[str, str, str]], columns: Sequence[str]) -> pd.DataFrame:
    """Each question (text, arm, over) as differences of the columns between two arms, as text with intervals.

    Both arms have the same seeds and problems. A star: the difference also holds as the find of a search through the
    whole table (p < 0.05 after Holm's adjustment for all of it).
    """
    there = dict(tuple(table.groupby("arm")))
    asked = [question for question in questions if {*question[1:]} <= {*there}]
    gaps = [
        there[a].pivot(index="seed", columns="problem", values=column) - there[b].pivot(index="seed", columns="problem", values=column)
        for _, a, b in asked for column in columns
    ]  # fmt: skip
    texts = starred(gaps)
    rows = [[*question, *texts[i * len(columns) : (i + 1) * len(columns)]] for i, question in enumerate(asked)]
    return pd.DataFrame(rows, columns=["question", "arm", "over", *columns])


def starred(gaps: Sequence[pd.DataFrame]) -> list[str]:
    """Mean differences as text, +0.21 [+0.10, +0.32] *, from tables (seeds, problems); the star as in `differences`."""
    held = holm([p_value(gap) for gap in gaps]) < 0.05
    return [written(interval(gap), "{:+.2f}") + " *" * bool(star) for gap, star in zip(gaps, held, strict=True)]


def noted(table: pd.DataFrame, among: str = "this table") -> Styler:
    """A table of such texts with a caption: how many intervals miss by chance, and what a star means."""
    cells = [cell for cell in table.to_numpy().ravel() if isinstance(cell, str)]
    shown = sum(" [" in cell for cell in cells)
    if not shown:
        without = any("(no interval)" in cell for cell in cells)
        return table.style.set_caption("One seed: no intervals." if without else "")
    found = any(cell.endswith("] *") for cell in cells)
    star = "A star: it also excludes 0" if found else "None of them excludes 0"
    caption = f"{chance_note(shown)} {star} after Holm's adjustment for a search through {among}."
    return table.style.set_caption(caption)
