"""What the training notebooks share, against hand-made groups and tables."""

from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from sesa import experiments
from sesa.arms import Training
from sesa.engines import Completion
from sesa.experiments import (
    answers, as_drawn, differences, independent, noted, probes, rate_scores, readable, scores, starred, strategies, summary, trained,
)  # fmt: skip
from sesa.intervals import interval, p_value
from sesa.sampling import Group, Rollout, iid_sketches, parallel
from sesa.tasks import Grade
from sesa.tasks.countdown import CountdownConfig, CountdownTask
from sesa.tasks.frozen_lake import FrozenLake, FrozenLakeConfig

SIZE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
START = {"steps": 30, "batch_size": 16, "micro_batch": 16}


def rollout(problem, text, solved, key, sketch=None):
    return Rollout("", "", text, (), 0, key, float(solved), solved, Completion(text, True), sketch)


def group(problem, marks, keys="abcdefgh"):
    return Group(problem, tuple(rollout(problem, k, bool(m), k) for m, k in zip(marks, keys, strict=False)))


def test_scores_are_the_shares_of_subsets_that_hold_a_right_one():
    marks = [1, 0, 0, 1, 0, 0]
    task = SimpleNamespace(strategy=lambda _, text: {"a": "first", "b": "second"}.get(text))
    table = scores(task, [group(None, marks, "aabbcc"), group(None, [0] * 6, "cccccc")], ks=(1, 2, 3, 8))
    assert list(table["problem"]) == [0, 1] and "pass@8" not in table
    for k in (1, 2, 3):
        every = [any(marks[i] for i in chosen) for chosen in combinations(range(6), k)]
        assert table[f"pass@{k}"].tolist() == pytest.approx([np.mean(every), 0], abs=1e-6)
    assert table["distinct"].tolist() == pytest.approx([0.5, 1 / 6], abs=1e-6) and table["reward"][0] == pytest.approx(1 / 3, abs=1e-6)
    assert table["strategies"].tolist() == pytest.approx([2, 0], abs=1e-6)  # two of each, two that use none
    assert scores(task, [group(None, marks, "aaabcc")])["strategies"][0] == pytest.approx(4 / 27**0.25, abs=1e-6)  # exp of the entropy of 3 to 1


def test_strategies_of_countdown_by_hand():
    task = CountdownTask(CountdownConfig(train=4, held_out=4))
    from sesa.tasks.countdown import Countdown

    problem = Countdown("3 5 7=26", (3, 5, 7), 26)
    rollouts = (
        rollout(problem, "(3*7)+5", True, "x", sketch="7*3"),
        rollout(problem, "5+(3*7)", True, "x", sketch="5+7"),
        rollout(problem, "(5+7)*3", False, "y", sketch="5+7"),
        rollout(problem, "nonsense", False, None, sketch="nonsense"),
        rollout(problem, "(3*7)-5", False, "z"),
    )
    table = strategies(task, [Group(problem, rollouts)]).set_index("strategy")
    assert table.loc["3*7"].to_dict() == {"used": 3, "right": 2, "follows": 1}
    assert table.loc["5+7"].to_dict() == {"used": 1, "right": 0, "follows": 1}
    assert table.loc["(none)"].to_dict() == {"used": 1, "right": 0, "follows": 0}


def test_groups_as_drawn_by_hand():
    task = CountdownTask(CountdownConfig(train=4, held_out=4))
    from sesa.tasks.countdown import Countdown

    problem = Countdown("3 5 7=26", (3, 5, 7), 26)
    texts = [("(3*7)+5", True, "7*3"), ("(3*7)+5", True, "5+7"), ("(5+7)*3", False, "5+7"), ("(3*7)-5", False, "3*7")]
    rollouts = tuple(rollout(problem, text, solved, text, sketch) for text, solved, sketch in texts)
    sketches = tuple(rollout(problem, sketch, solved, task.sketch_key(problem, sketch)) for _, solved, sketch in texts)
    table = as_drawn(task, [Group(problem, rollouts, sketches), Group(problem, rollouts[2:])])
    assert table.loc[0].to_dict() == {"problem": 0, "any": 1, "right": 0.5, "distinct": 0.75, "distinct sketches": 0.5, "follows": 0.75}
    assert table.loc[1, ["any", "right", "distinct"]].tolist() == [0, 0, 1] and table.loc[1, ["distinct sketches", "follows"]].isna().all()
    every = table.assign(arm=["a", "b"], seed=0, problem=0)
    assert readable(summary(every, ["right", "follows"])).loc["b"].tolist() == ["0.00 (no interval)", ""]  # one seed
    assert list(differences(every, [], ["right"])) == ["question", "arm", "over", "right"]


def test_a_sketch_is_chosen_by_one_half_of_the_samples_and_measured_on_the_other(monkeypatch):
    """A model that is right as often as a coin by every sketch has no best one; one that knows some first operations has."""
    task = CountdownTask(CountdownConfig(train=4, held_out=12))
    useful = {task.expand_prompt(p, s) for p in task.held_out for s in task.useful(p)}

    class Coin:
        def __init__(self, knows, _):
            self.knows = knows

        def generate(self, prompts, *, seeds, share, **_):
            assert len(set(seeds)) == len(seeds) == len(share)
            rng = np.random.default_rng(0)
            marks = [prompt in useful if self.knows else bool(rng.random() < 0.5) for prompt in prompts]
            return [Completion("right" if mark else "wrong", True) for mark in marks]

    monkeypatch.setattr(experiments, "LocalEngine", Coin)
    monkeypatch.setattr(task, "grade", lambda _, text: Grade(0.0, None, text == "right"))
    coin = experiments.sketch_values(False, None, task, 0, samples=40).set_index("problem")
    assert (abs(coin.mean() - 0.5) < 0.06).all() and coin["best"].max() < 0.9
    knows = experiments.sketch_values(True, None, task, 0, samples=4).set_index("problem")
    assert (knows["best"] == 1).all()
    assert knows["random"].tolist() == pytest.approx([len(task.useful(p)) / len(task.sketches(p)) for p in task.held_out], abs=1e-6)
    assert knows["favourite"].tolist() == [float(task.sketches(p)[0] in task.useful(p)) for p in task.held_out]


def test_rate_scores_are_means_over_the_last_three_probes():
    rows = [
        {"arm": arm, "rate": rate, "seed": seed, "step": step, "pass@1": rate * step, "pass@16": seed + (arm == "b")}
        for arm in "ab" for rate in (1.0, 2.0) for seed in (0, 1) for step in (0, 10, 20, 30, 40)
    ]  # fmt: skip
    table = rate_scores(pd.DataFrame(rows))
    assert table.loc["a", 2.0] == pytest.approx((2 * 30 + 0.5) / 2) and table.loc["b", 1.0] == pytest.approx((30 + 1.5) / 2)
    assert table.idxmax(axis=1).to_dict() == {"a": 2.0, "b": 2.0}
    assert rate_scores(pd.DataFrame(rows), columns=["pass@1"]).loc["a", 2.0] == pytest.approx(2 * 30)


def test_summary_and_differences():
    rows = [
        {"arm": arm, "seed": seed, "problem": problem, "pass@1": gain + problem / 10}
        for arm, gain in (("a", 0.1), ("b", 0.4)) for seed in (0, 1, 2) for problem in range(5)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    seen = summary(table, ["pass@1"])
    assert seen.loc["a", ("pass@1", "mean")] == pytest.approx(0.3) and list(seen.index) == ["a", "b"]
    assert seen.loc["b", ("pass@1", "low")] < 0.6 < seen.loc["b", ("pass@1", "high")]
    assert readable(seen).loc["a", "pass@1"].startswith("0.30 [0.")
    (row,) = differences(table, [("b over a?", "b", "a"), ("no such arm", "c", "a")], ["pass@1"]).to_dict("records")
    assert row == {"question": "b over a?", "arm": "b", "over": "a", "pass@1": "+0.30 [+0.30, +0.30] *"}
    one = table[table["seed"] == 0]
    assert differences(one, [("b over a?", "b", "a")], ["pass@1"])["pass@1"].tolist() == ["+0.30 (no interval)"]
    assert readable(summary(one, ["pass@1"]))["pass@1"].tolist() == ["0.30 (no interval)", "0.60 (no interval)"]
    assert summary(table, ["pass@1"]).loc["a", "pass@1"].tolist() == pytest.approx(interval([[0.1, 0.2, 0.3, 0.4, 0.5]] * 3))


def test_a_star_stands_a_search_through_the_whole_table():
    """Twenty questions about noise, p of the last about 0.02: it excludes 0 alone, and has no star among twenty."""
    rng = np.random.default_rng(0)
    gaps = [pd.DataFrame(rng.normal(size=(4, 6))) for _ in range(19)]
    gaps.append(pd.DataFrame(np.array([[0.2], [0.5], [0.35], [0.6]])))
    assert 0.002 < p_value(gaps[-1]) < 0.03
    assert starred(gaps[-1:]) == ["+0.41 [+0.13, +0.69] *"] and starred(gaps)[-1] == "+0.41 [+0.13, +0.69]"
    gaps.append(pd.DataFrame(np.ones((4, 6))))
    assert starred(gaps)[-1] == "+1.00 [+1.00, +1.00] *"


def test_a_table_says_what_its_many_intervals_mean():
    texts = pd.DataFrame({"x": ["+0.1 [+0.0, +0.2] *", "+0.1 [-0.1, +0.3]"], "y": ["", "+0.1 [-0.1, +0.3]"]})
    caption = noted(texts).caption
    assert "Of these 3 intervals at 95%" in caption and "through this table" in caption
    assert "A star: it also excludes 0" in caption
    caption = noted(texts.iloc[1:], "its task").caption
    assert "None of them excludes 0" in caption and "through its task" in caption
    assert noted(pd.DataFrame({"x": ["+0.1 (no interval)"]})).caption == "One seed: no intervals."
    assert noted(pd.DataFrame({"x": [1.0]})).caption == ""


def test_how_an_arm_is_asked():
    assert independent("warm start") is independent("actions+unique") is independent("sequential") is parallel
    assert independent("sesa+replay") is independent("iid_sketches") is iid_sketches


@pytest.mark.parametrize(
    ("task", "arm"),
    [(CountdownTask(CountdownConfig(train=6, held_out=5)), "sesa+kl+replay"), (FrozenLake(FrozenLakeConfig(train=6, held_out=5)), "actions")],
)
def test_a_policy_is_trained_once_probed_on_held_out_problems_and_answers(home, monkeypatch, task, arm):
    plan = Training(arm=arm, steps=3, problems_per_step=3, group_size=3, probe_every=2)
    seen = []
    train = experiments.train
    monkeypatch.setattr(experiments, "train", lambda *a: seen.append(a) or train(*a))
    _, model, tokenizer, metrics = trained(task, 1, plan, "here", SIZE, START, probed=4)
    assert seen[0][3] == task.problems and seen[0][-1] == task.held_out[:4] and (seen[0][-2] is not None) == ("+kl" in arm)
    _, again, _, metrics_again = trained(task, 1, plan, "here", SIZE, START, probed=4)
    assert metrics_again.equals(metrics)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    _, start, _, none = trained(task, 1, None, "here", SIZE, START)
    assert none is None and not torch.equal(next(start.parameters()), next(model.parameters()))
    looked = probes(metrics)
    assert list(looked["step"]) == [0, 2] and looked["tokens"].tolist() == [0, metrics["completion_tokens"][:2].sum()]
    groups = answers(model, tokenizer, task, independent(arm), 1, 4, 0.5)
    assert [g.problem for g in groups] == task.held_out and {len(g.rollouts) for g in groups} == {4}
    assert answers(model, tokenizer, task, independent(arm), 1, 4, 0.5) == groups
    assert strategies(task, groups)["used"].sum() == 20
