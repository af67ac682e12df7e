"""The loop: its gradient against plain rows one by one, stopping and going on, and what it refuses."""

import copy
import json
import math
import os
import re
import signal
import subprocess
import sys
import tracemalloc
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from sesa import training
from sesa.arms import ONE_TURN, SAMPLERS, Training
from sesa.collapse import Monitor
from sesa.engines import Completion
from sesa.engines.local import LocalEngine
from sesa.models import TinyConfig, WarmStart, text_loss_backward, tiny_lm
from sesa.objective import Objective, group_advantages, rollout_advantages, with_advantages
from sesa.packing import Packed, pack, packed_logprobs
from sesa.runs import derive_seed
from sesa.sampling import Group, Rollout, Sampling
from sesa.tasks.paths import PathConfig, PathTask
from sesa.training import REPLAY_TEXTS, TrainingError, _policy_backward, _update, run_folder, train

SMALL = TinyConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
QUICK = Training(steps=4, problems_per_step=3, group_size=4, probe_every=2, checkpoint_every=1, learning_rate=3e-3)


@pytest.fixture(scope="module")
def taught():
    task = PathTask(PathConfig(4, 4, 4, maps=4, exponent=2.0, list_share=0.7, sketch_share=0.2))
    return task, *tiny_lm(task, 0, SMALL, WarmStart(steps=150, batch_size=16))


@pytest.fixture
def fresh(taught):
    task, model, tokenizer = taught
    return task, copy.deepcopy(model), tokenizer


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


# -------------------------------------------------------------------------------------------------------------- gradient


@pytest.mark.parametrize("reduction", ["token", "sequence"])
@pytest.mark.parametrize("arm", [f.__name__ for f in ONE_TURN])
def test_packed_gradient_is_that_of_rows_one_by_one(fresh, arm, reduction):
    """The definition, written out: every completion in a forward pass of its own, PPO's loss per token, the mean."""
    task, model, tokenizer = fresh
    groups = SAMPLERS[arm](LocalEngine(model, tokenizer), task, task.problems, Sampling(4), seed=1)
    for r in (r for g in groups for r in g.rollouts):  # many rewards are 0 here: make them differ
        object.__setattr__(r, "reward", float(len(r.text) % 3))
    with torch.no_grad():  # so that ratios are not 1, and some are clipped
        for p in model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    objective = Objective(reduction=reduction, kl=0.3)
    reference = copy.deepcopy(fresh[1])
    with torch.no_grad():
        for p in reference.parameters():
            p.mul_(0.98)
    plain, terms, n_tokens, n_rows, clipped = copy.deepcopy(model), [], 0, 0, 0
    for group in groups:
        advantages = group_advantages(torch.tensor([r.reward for r in group.rollouts]))
        for rollouts in (group.sketches, group.rollouts):
            for r, a in zip(rollouts, advantages, strict=False):
                ids = torch.tensor([[*r.completion.prompt_ids, *r.completion.ids]])
                wrote = slice(len(r.completion.prompt_ids) - 1, ids.shape[1] - 1)
                now, held = (
                    torch.log_softmax(m(ids).logits[0, :-1], -1).gather(1, ids[0, 1:, None])[wrote, 0] for m in (plain, reference)
                )
                ratio = torch.exp(now - torch.tensor(r.completion.logprobs))
                ppo = -torch.minimum(ratio * a, ratio.clamp(0.8, 1.28) * a)
                clipped += int(((ratio < 0.8) | (ratio > 1.28)).sum())
                kl = torch.exp(held.detach() - now) - (held.detach() - now) - 1
                terms.append(ppo + 0.3 * kl)
                n_tokens, n_rows = n_tokens + len(terms[-1]), n_rows + 1
    assert clipped > 5
    loss = torch.cat(terms).sum() / n_tokens if reduction == "token" else sum(t.mean() for t in terms) / n_rows
    loss.backward()
    completions, advantages = with_advantages(groups, objective)
    for micro_batch in (10**6, 40, 1):
        model.zero_grad()
        config = replace(QUICK, micro_batch=micro_batch)
        sums = _policy_backward(model, completions, advantages, pack(completions), config, objective, reference)
        assert sums["loss"] == pytest.approx(loss.item(), abs=1e-5)
        torch.testing.assert_close(gradient(model), gradient(plain), atol=1e-5 * gradient(plain).abs().max().item() + 1e-7, rtol=1e-3)


def test_learning_makes_rewarded_answers_likelier(fresh, tmp_path):
    """Every map rewards what the policy likes most but one: within 30 steps the reward has at least doubled."""
    task, model, tokenizer = fresh
    metrics = train(model, tokenizer, task, task.problems, replace(QUICK, steps=40, problems_per_step=4, group_size=8), 0, tmp_path)
    assert metrics["reward"].tail(5).mean() > 2 * metrics["reward"].head(5).mean() > 0
    assert metrics["entropy"].tail(5).mean() < metrics["entropy"].head(5).mean()
    assert metrics["found"].is_monotonic_increasing


def updated(model, task, tokenizer, groups, objective):
    """The gradient of one update from these groups (a step of size 0, no clipping of its norm)."""
    config = replace(QUICK, updates=1, max_grad_norm=1e9, objective=objective)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    _update(model, LocalEngine(model, tokenizer), task, groups, config, 5, optimizer, None)
    return gradient(model).clone()


@pytest.mark.parametrize("arm", ["sequential", "sesa"])
def test_distillation_teaches_the_better_answers_without_their_history(fresh, arm):
    """By hand: the mean over their tokens of -A log π(y | x), x the prompt alone, of answers with A > 0 that saw something else."""
    task, model, tokenizer = fresh
    groups = SAMPLERS[arm](LocalEngine(model, tokenizer), task, task.problems, Sampling(4), seed=1)
    for r in (r for g in groups for r in g.rollouts):
        object.__setattr__(r, "reward", float(len(r.text) % 3))
    added = updated(model, task, tokenizer, groups, Objective(distill=0.5)) - updated(model, task, tokenizer, groups, Objective())
    model.zero_grad()
    terms = []
    for group in groups:
        prompt = tokenizer.encode(task.prompt(group.problem))
        for r, a in zip(group.rollouts, group_advantages(torch.tensor([r.reward for r in group.rollouts])), strict=True):
            if a > 0 and (arm == "sesa" or r.position > 0):
                ids = torch.tensor([[*prompt, *r.completion.ids]])
                logprobs = torch.log_softmax(model(ids).logits[0, :-1], -1).gather(1, ids[0, 1:, None])[len(prompt) - 1 :, 0]
                terms.append(-a * logprobs)
    (0.5 * torch.cat(terms).mean()).backward()
    assert len(terms) > 3 and gradient(model).norm() > 0.01
    torch.testing.assert_close(added, gradient(model), atol=1e-5, rtol=1e-3)


def test_replay_adds_the_gradient_of_warm_start_texts(fresh):
    task, model, tokenizer = fresh
    groups = SAMPLERS["parallel"](LocalEngine(model, tokenizer), task, task.problems, Sampling(4), seed=1)
    added = updated(model, task, tokenizer, groups, Objective(replay=0.1)) - updated(model, task, tokenizer, groups, Objective())
    model.zero_grad()
    texts = task.warm_start_texts(np.random.default_rng(derive_seed(5, "replay", 0)), REPLAY_TEXTS)
    text_loss_backward(model, tokenizer, texts)
    torch.testing.assert_close(added, 0.1 * gradient(model), atol=1e-5, rtol=1e-3)


def test_groups_without_signal_change_nothing_when_filtered(fresh):
    task, model, tokenizer = fresh
    engine = LocalEngine(model, tokenizer)
    groups = SAMPLERS["parallel"](engine, task, task.problems, Sampling(4), seed=3)
    for r in (r for g in groups for r in g.rollouts):
        object.__setattr__(r, "reward", 1.0)
    before = weights(model).clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0)
    seen = _update(model, engine, task, groups, QUICK, 0, optimizer, None)
    assert torch.equal(weights(model), before) and seen["grad_norm"] == 0


def test_a_run_without_any_signal_goes_on_and_changes_nothing(fresh, tmp_path):
    """No map has a treasure and groups without signal are left out: no update, no entropy to show, the weights as they were."""
    task, model, tokenizer = fresh
    barren = [replace(problem, treasures=frozenset()) for problem in task.problems]
    before = weights(model).clone()
    seen = train(model, tokenizer, task, barren, replace(QUICK, filter_groups=True), 0, tmp_path)
    assert torch.equal(weights(model), before)
    assert seen["reward"].tolist() == [0.0] * 4 and "entropy" not in seen and seen["frac_reward_zero_std"].tolist() == [1.0] * 4


# ---------------------------------------------------------------------------------------------------------- stop, go on

RUN = """
import os, signal, sys
from pathlib import Path
from tests.test_training import QUICK, SMALL
from dataclasses import replace
from sesa import training
from sesa.models import WarmStart, tiny_lm
from sesa.tasks.paths import PathConfig, PathTask
task = PathTask(PathConfig(4, 4, 4, maps=4, exponent=2.0, list_share=0.7, sketch_share=0.2))
model, tokenizer = tiny_lm(task, 0, SMALL, WarmStart(steps=150, batch_size=16))
config = replace(QUICK, arm="sequential+replay+unique+distill", steps=6, checkpoint_every=2)
die_at, how, calls, update = int(sys.argv[2]), getattr(signal, sys.argv[3]), 0, training._update
def deadly(*args):
    global calls
    calls += 1
    if calls == die_at:
        os.kill(os.getpid(), how)
    return update(*args)
training._update = deadly
training.train(model, tokenizer, task, task.problems, config, 0, Path(sys.argv[1]))
"""


def run(folder, die_at=0, how="SIGKILL", code=RUN):
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    command = [sys.executable, "-c", code, str(folder), str(die_at), how]
    return subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True)


def result(folder, steps=6):
    saved = torch.load(folder / f"end-{steps}.pt", weights_only=True)
    return (folder / "metrics.jsonl").read_bytes(), saved


def assert_same(a, b):
    assert a[0] == b[0]
    assert json.dumps(a[1]["metrics"]) == json.dumps(b[1]["metrics"]) and a[1]["step"] == b[1]["step"]
    for x, y in zip(a[1]["model"].values(), b[1]["model"].values(), strict=True):
        assert torch.equal(x, y)
    for x, y in zip(a[1]["optimizer"]["state"].values(), b[1]["optimizer"]["state"].values(), strict=True):
        assert all(torch.equal(x[k], y[k]) for k in x)


def test_killed_at_any_moment_it_ends_as_if_never_stopped(taught, tmp_path):
    whole = run(tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    for attempt in (4, 2):  # in step 4, after the checkpoint of step 2 has been left behind by one; then again, after going on
        assert run(tmp_path / "killed", attempt).returncode == -signal.SIGKILL
    assert len((tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()) == 3
    assert run(tmp_path / "killed").returncode == 0
    assert_same(result(tmp_path / "killed"), result(tmp_path / "whole"))


def test_ctrl_c_finishes_the_step_and_saves(taught, tmp_path):
    stopped = run(tmp_path, 3, "SIGINT")
    assert stopped.returncode != 0 and "KeyboardInterrupt: saved after step 3 of 6" in stopped.stderr
    assert torch.load(tmp_path / "checkpoint-3.pt", weights_only=True)["step"] == 3


def test_killed_while_it_writes_a_checkpoint_it_ends_as_if_never_stopped(taught, tmp_path):
    """Half of the second checkpoint is on the disk when the process is killed: the first one is good, and the half is cleared away."""
    assert run(tmp_path / "whole").returncode == 0
    assert run(tmp_path / "killed", code=RUN.replace("training._update = deadly", HALF)).returncode == -signal.SIGKILL
    half, first = sorted(path.name for path in (tmp_path / "killed").glob("*.pt*"))
    assert half.startswith(".checkpoint-4.pt.") and first == "checkpoint-2.pt"
    assert run(tmp_path / "killed").returncode == 0
    assert [path.name for path in (tmp_path / "killed").glob("*.pt*")] == ["end-6.pt"]
    assert_same(result(tmp_path / "killed"), result(tmp_path / "whole"))


HALF = """
save = training.torch.save
def half(saved, f):
    if saved["step"] == 4:
        f.write(b"x" * 1000)
        f.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    save(saved, f)
training.torch.save = half
"""
FULL = """
import resource
save = training.torch.save
def full(saved, f):
    if saved["step"] == 4:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
    save(saved, f)
training.torch.save = full
"""


def test_a_full_disk_is_said_and_leaves_the_checkpoint_before(taught, tmp_path):
    """A limit on the size of files stands for the disk."""
    assert run(tmp_path / "whole").returncode == 0
    stopped = run(tmp_path / "full", code=RUN.replace("training._update = deadly", FULL))
    assert stopped.returncode == 1 and f"could not write {tmp_path}/full/checkpoint-4.pt" in stopped.stderr
    assert "run the same command again" in stopped.stderr.splitlines()[-1]
    assert [path.name for path in (tmp_path / "full").glob("*.pt*")] == ["checkpoint-2.pt"]
    assert run(tmp_path / "full").returncode == 0
    assert_same(result(tmp_path / "full"), result(tmp_path / "whole"))


def test_a_checkpoint_is_not_held_in_memory_while_it_is_written(tmp_path):
    model = torch.nn.Linear(2000, 1000)
    optimizer = torch.optim.AdamW(model.parameters())
    state = {"step": 3, "metrics": [], "found": set(), "monitor": Monitor()}
    tracemalloc.start()
    training._save(tmp_path, model, optimizer, state, ended=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "checkpoint-3.pt").stat().st_size > 8e6 > 20 * peak


def test_with_more_steps_a_run_goes_on_and_ends_as_if_they_had_been_asked_for_at_once(taught, tmp_path):
    task, model, tokenizer = taught

    def trained(steps, folder, **change):
        policy = copy.deepcopy(model)
        seen = train(policy, tokenizer, task, task.problems, replace(QUICK, arm="sequential", steps=steps, **change), 0, tmp_path / folder)
        return seen, weights(policy)

    updates = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_update", lambda *args: updates.append(1) or _update(*args))
        whole, at_once = trained(7, "whole"), len(updates)
        first = trained(3, "more")
        after = trained(7, "more", checkpoint_every=2)
        assert len(updates) == 2 * at_once == 14
        again = trained(3, "more")  # fewer than were done: what stood at their end, not done again
        assert len(updates) == 14
        between = trained(5, "more")  # from the end of 3; the 7 are not lost
        assert len(updates) == 16 and len((tmp_path / "more" / "metrics.jsonl").read_text().splitlines()) == 5
        last = trained(7, "more")
        assert len(updates) == 16
    for a, b in ((after, whole), (again, first), (last, whole)):
        pd.testing.assert_frame_equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
    pd.testing.assert_frame_equal(between[0], whole[0][:5])
    assert sorted(p.name for p in (tmp_path / "more").glob("*.pt")) == ["end-3.pt", "end-5.pt", "end-7.pt"]
    for steps in (7, 2, 7):  # 2: no checkpoint so early, so it is done again; the 7 are kept, and so are their logs
        assert trained(steps, "whole")[0]["step"].max() == steps - 1
        for log in ("metrics.jsonl", "timings.jsonl"):
            lines = (tmp_path / "whole" / log).read_text().splitlines()
            assert [json.loads(line)["step"] for line in lines] == [*range(steps)]


def test_after_out_of_memory_the_same_run_goes_on_with_a_smaller_micro_batch(taught, tmp_path):
    """A machine that can compute 60 tokens at once: the message names a number, and with what it says the run ends as it would have."""
    task, model, tokenizer = taught
    whole = train(copy.deepcopy(model), tokenizer, task, task.problems, QUICK, 0, tmp_path / "whole")
    compute, asked = training.packed_logprobs, 0

    def small(model, part, *rest):
        if len(part) * max(len(s.ids) for s in part) > 60:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compute(model, part, *rest)

    config = QUICK
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "packed_logprobs", small)
        while True:
            try:
                seen = train(copy.deepcopy(model), tokenizer, task, task.problems, config, 0, tmp_path / "small")
                break
            except TrainingError as e:
                asked += 1
                config = replace(config, micro_batch=int(re.search(r"set micro_batch to (\d+)", str(e))[1]))
    assert asked >= 1 and run_folder(tmp_path, model, task, config, 0) == run_folder(tmp_path, model, task, QUICK, 0)
    pd.testing.assert_frame_equal(seen, whole, atol=1e-4)


def test_a_sequence_that_does_not_fit_alone_is_said(fresh, tmp_path, monkeypatch):
    task, model, tokenizer = fresh

    def never(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training, "packed_logprobs", never)
    with pytest.raises(TrainingError, match="one sequence of .* lower group_size"):
        train(model, tokenizer, task, task.problems, replace(QUICK, micro_batch=1), 0, tmp_path)


@pytest.mark.parametrize("tokens", [1, 7, 24, 60, 10**6])
def test_parts_hold_every_sequence_once_and_no_more_tokens_than_asked(tokens):
    lengths = np.random.default_rng(0).integers(1, 30, size=50)
    parts = list(training._parts([Packed([i] * n, [0] * n) for i, n in enumerate(lengths)], tokens))
    assert sorted(s.ids[0] for part in parts for s in part) == list(range(50))
    for part in parts:
        longest, shortest = (f(len(s.ids) for s in part) for f in (max, min))
        assert len(part) == 1 or len(part) * longest <= tokens and longest <= 1.5 * shortest


def test_metrics_are_json_and_read_as_they_were(taught, tmp_path):
    """No treasure is found: the ratio is NaN, which JSON has no word for."""
    task, model, tokenizer = taught
    barren = [replace(problem, treasures=frozenset()) for problem in task.problems]
    first = train(copy.deepcopy(model), tokenizer, task, barren, QUICK, 0, tmp_path)
    again = train(copy.deepcopy(model), tokenizer, task, barren, QUICK, 0, tmp_path)
    pd.testing.assert_frame_equal(again, first)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=lambda word: pytest.fail(word)) for line in lines]
    assert [row["ratio"] for row in rows if "ratio" in row] == [None, None] and first["ratio"].isna().all()
    assert json.loads(training.line_of({"a": math.inf, "b": -math.inf, "c": "NaN", "d": 1.5})) == {"a": None, "b": None, "c": "NaN", "d": 1.5}


# ---------------------------------------------------------------------------------------------- what is sampled and filtered


def test_lists_windows_and_top_p_can_be_trained(fresh, tmp_path, monkeypatch):
    task, model, tokenizer = fresh
    seen = []

    def watched(groups, objective):
        seen.append(groups)
        return describe(groups, objective)

    config, describe = replace(QUICK, arm="sequential", list_length=3, window=1, top_p=0.5, steps=2, updates=1), training.describe
    monkeypatch.setattr(training, "describe", watched)
    metrics = train(model, tokenizer, task, task.problems, config, 0, tmp_path)
    assert config.sampling == Sampling(4, list_length=3, window=1, top_p=0.5)
    assert {tuple(len(r.history) for r in g.rollouts) for groups in seen for g in groups} == {(0, 1, 1, 0)}
    # Drawn from a cut distribution, scored by the whole one on both sides: at the first update every ratio is 1.
    assert metrics["clip_ratio"].tolist() == [0.0, 0.0] and metrics["loss"].abs().max() < 1e-5


def test_log_probabilities_of_training_are_those_of_sampling_with_top_p(fresh):
    task, model, tokenizer = fresh
    groups = SAMPLERS["sequential"](LocalEngine(model, tokenizer), task, task.problems, Sampling(4, temperature=0.8, top_p=0.6), 1)
    completions = [c for g in groups for c in g.completions]
    drawn = torch.tensor([p for c in completions for p in c.logprobs])
    torch.testing.assert_close(packed_logprobs(model, pack(completions), 0.8).logprobs, drawn, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "keys, rewards, unique, nothing",
    [
        (["a", "b", "a"], [1.0, 1.0, 1.0], False, True),
        (["a", "b", "a"], [1.0, 1.0, 1.0], True, False),  # the repetition earns -0.5
        (["a", "a", "b"], [-0.5, 1.0, -0.5], True, True),  # and here what the others earn
        (["a", "b", "c"], [-1.0, -0.9999999999999999, -1.0000000000000002], False, True),
        (["a", "b", "c"], [0.0, 2.7e-17, 0.0], False, True),
        (["a", "b", "c"], [1.0, 1.0, 1.0001], False, False),
        (["a", None, None], [0.0, -0.1, -0.1], True, False),
    ],
)
def test_the_filter_and_its_metric_look_at_the_rewards_that_advantages_are_made_of(keys, rewards, unique, nothing):
    def rollout(key, reward):
        return Rollout("x", "x", str(key), (), 0, key, reward, False, Completion(str(key), True, (9,), (1,), (0.0,)))

    group = Group("x", tuple(map(rollout, keys, rewards)))
    objective = Training("sequential+unique" if unique else "sequential").full_objective
    assert training.describe([group], objective)["frac_reward_zero_std"] == float(nothing)
    assert training._says_nothing(group, objective) is nothing
    assert (rollout_advantages(group, objective) == 0).all().item() is nothing


def test_a_finished_run_is_read_not_redone(fresh, tmp_path):
    task, model, tokenizer = fresh
    first = train(model, tokenizer, task, task.problems, QUICK, 0, tmp_path)
    trained, other = weights(model).clone(), tiny_lm(task, 0, SMALL, WarmStart(steps=150, batch_size=16))[0]
    again = train(other, tokenizer, task, task.problems, QUICK, 0, tmp_path)
    pd.testing.assert_frame_equal(again, first)
    assert torch.equal(weights(other), trained)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]


# --------------------------------------------------------------------------------------------- the monitor, and branches


def test_the_monitor_switches_the_arm_and_back(fresh, tmp_path):
    """By hand: its rule on the ratios that were logged says which arm every step until the next probe has."""
    task, model, tokenizer = fresh
    arms = ["parallel", "sequential+unique"]
    rule = dict(low=4.0, high=4.0, patience=1)  # about what ratios are here, so that it switches often
    config = replace(QUICK, steps=30, arm=arms[0], on_collapse=arms[1], monitor=Monitor(**rule))
    seen = train(model, tokenizer, task, task.problems, config, 0, tmp_path)
    by_hand, expected = Monitor(**rule), []
    for first, any_of in seen[["pass@1", "pass@16"]][::2].to_numpy():
        expected += 2 * [arms[by_hand.see(first, any_of)]]
    assert seen["arm"].tolist() == expected
    changes = sum(a != b for a, b in zip(expected, expected[1:], strict=False))
    assert changes >= 2, seen["ratio"].dropna().tolist()


def test_a_monitored_run_goes_on_with_its_monitor(taught, tmp_path):
    task, model, tokenizer = taught
    config = replace(QUICK, steps=8, on_collapse="sequential", monitor=Monitor(low=1e9, high=1e9, patience=3), checkpoint_every=3)
    whole = train(copy.deepcopy(model), tokenizer, task, task.problems, config, 0, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sesa.training.describe", dies_at(5, training.describe))
        with pytest.raises(ZeroDivisionError):
            train(copy.deepcopy(model), tokenizer, task, task.problems, config, 0, tmp_path / "stopped")
    again = train(copy.deepcopy(model), tokenizer, task, task.problems, config, 0, tmp_path / "stopped")
    assert whole["arm"].nunique() == 2
    pd.testing.assert_frame_equal(again, whole)


def dies_at(call, function):
    calls = iter(range(1, 1000))

    def deadly(*args):
        return function(*args) if next(calls) < call else 1 / 0

    return deadly


def test_a_switch_to_kl_needs_a_reference(fresh, tmp_path):
    task, model, tokenizer = fresh
    with pytest.raises(ValueError, match="reference"):
        train(model, tokenizer, task, task.problems, replace(QUICK, on_collapse="parallel+kl"), 0, tmp_path)


def test_runs_that_differ_have_folders_that_differ(fresh, taught, tmp_path):
    task, model, _ = fresh
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1e-6
    other = PathTask(replace(task.config, seed=1))
    runs = [(taught[1], task, QUICK, 0), (model, task, QUICK, 0), (taught[1], task, replace(QUICK, window=1), 0), (taught[1], task, QUICK, 1)]
    folders = [run_folder(tmp_path, *run) for run in [*runs, (taught[1], other, QUICK, 0)]]
    folders.append(run_folder(tmp_path, *runs[0], probe_on=task.problems[:1]))
    fewer = copy.copy(task)
    fewer.problems = task.problems[:-1]
    folders.append(run_folder(tmp_path, taught[1], fewer, QUICK, 0))
    assert len(set(folders)) == len(folders)
    assert run_folder(tmp_path, *runs[0]) == folders[0] and folders[0].name.startswith("parallel-seed0-")
    for no_other in ({"steps": 5}, {"micro_batch": 3}, {"checkpoint_every": 7}):
        assert run_folder(tmp_path, taught[1], task, replace(QUICK, **no_other), 0) == folders[0]


# ------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("change, said", [({"learning_rate": 0.1}, "learning_rate: 0.003, not 0.1"), ({"arm": "sequential"}, "arm: ")])
def test_a_run_of_other_parameters_is_left_alone(fresh, tmp_path, change, said):
    task, model, tokenizer = fresh
    train(model, tokenizer, task, task.problems, QUICK, 0, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(TrainingError, match=said):
        train(model, tokenizer, task, task.problems, replace(QUICK, **change), 0, tmp_path)
    with pytest.raises(TrainingError, match="seed: 0, not 1"):
        train(model, tokenizer, task, task.problems, QUICK, 1, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"no checkpoint"])
def test_a_damaged_checkpoint_is_said_and_not_overwritten(fresh, tmp_path, damage):
    task, model, tokenizer = fresh
    train(copy.deepcopy(model), tokenizer, task, task.problems, QUICK, 0, tmp_path)
    path = tmp_path / "end-4.pt"
    path.write_bytes(damage(path.read_bytes()))
    left = path.read_bytes()
    with pytest.raises(TrainingError, match="delete it to begin anew"):
        train(model, tokenizer, task, task.problems, QUICK, 0, tmp_path)
    assert path.read_bytes() == left


def test_a_loss_that_is_no_number_stops_before_the_weights_change(fresh, tmp_path):
    """A weight that overflows: the checkpoint of the step before is good and goes on after a mend."""
    task, model, tokenizer = fresh
    train(model, tokenizer, task, task.problems, replace(QUICK, steps=2), 0, tmp_path / "other")
    engine = LocalEngine(model, tokenizer)
    groups = SAMPLERS["parallel"](engine, task, task.problems, Sampling(4), seed=3)
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    before = weights(model).clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    with pytest.raises(TrainingError, match="map0.*The weights were not changed"):
        _update(model, engine, task, groups, QUICK, 0, optimizer, None)
    assert torch.equal(weights(model).nan_to_num(7.0), before.nan_to_num(7.0))


@pytest.mark.parametrize(
    "wrong, place",
    [
        ({"arm": "sesame"}, "arm\n.*no arm 'sesame'"),
        ({"on_collapse": "sesa+magic"}, "on_collapse\n.*no arm 'sesa.magic'"),
        ({"steps": 0}, "steps"),
        ({"group_size": 0}, "sampling.group_size"),
        ({"micro_batch": 0}, "micro_batch"),
        ({"stpes": 3}, "stpes\n.*Unexpected"),
        ({"objective": {"clip_hihg": 0.3}}, "objective.clip_hihg\n.*Unexpected"),
        ({"sampling": {"windwo": 2}}, "sampling.windwo\n.*Unexpected"),
        ({"monitor": {"patience": 1, "lo": 1.2}}, "monitor.lo\n.*Unexpected"),
        ({"sampling": {"top_p": 0.0}}, "sampling.top_p"),
        ({"objective": {"kl": -0.1}}, "objective.kl"),
        ({"objective": {"reduction": "mean"}}, "objective.reduction"),
        ({"monitor": {"low": 2.0, "high": 1.0}}, "monitor\n.*low must not exceed high"),
        ({"steps": "8"}, "steps\n.*integer"),
        ({"steps": 8.0}, "steps\n.*integer"),
        ({"steps": True}, "steps\n.*integer"),
        ({"learning_rate": "1e-4"}, "learning_rate\n.*number"),
        ({"learning_rate": float("nan")}, "learning_rate\n.*finite"),
        ({"filter_groups": "no"}, "filter_groups\n.*boolean"),
        ({"objective": None}, "objective"),
        ({"sampling": [1], "group_size": 2}, "sampling"),
        ({"sampling": {"group_size": 4}, "group_size": 2}, "group_size: given at the top and in sampling"),
    ],
)
def test_wrong_numbers_are_refused_with_their_place(wrong, place):
    with pytest.raises(ValueError, match=place):
        Training(**wrong)


def test_yaml_reaches_every_number():
    text = """
    arm: sequential+kl+replay+unique+distill
    learning_rate: 1
    group_size: 6
    sampling: {list_length: 3, window: 2, top_p: 0.9}
    objective: {clip_low: 0.1, clip_high: 0.4, normalize: false, reduction: sequence, kl: 0.05, duplicate_reward: 0, distill: 0.5}
    monitor: {low: 1.2, high: 1.4, enough: 0.8, patience: 3}
    """
    config = Training(**yaml.safe_load(text))
    assert config.sampling == Sampling(6, 3, 2, top_p=0.9) and config.monitor == Monitor(1.2, 1.4, 0.8, 3)
    assert replace(config, group_size=4, steps=3).sampling == Sampling(4, 3, 2, top_p=0.9)
    assert Training(**asdict(config)) == config and config.learning_rate == 1.0
    # What the arm adds does not take the place of what was given, be it 0 for repetitions.
    given = Objective(0.1, 0.4, False, "sequence", kl=0.05, duplicate_reward=0.0, distill=0.5)
    assert config.objective == given and config.full_objective == replace(given, replay=0.1)


@pytest.mark.parametrize("given, trained", [({}, 0.1), ({"kl": 0.05}, 0.05), ({"kl": 0.3}, 0.3)])
def test_a_kl_weight_of_ones_own_is_the_one_that_is_trained(given, trained):
    assert Training("sesa+kl", objective=given).full_objective.kl == trained
    assert Training("sesa", objective=given).full_objective.kl == given.get("kl", 0.0)
    assert Training("sesa+kl", objective=given).needs_reference


def test_kl_needs_a_reference(fresh, tmp_path):
    task, model, tokenizer = fresh
    with pytest.raises(ValueError, match="reference"):
        train(model, tokenizer, task, task.problems, replace(QUICK, objective=Objective(kl=0.1)), 0, tmp_path)
