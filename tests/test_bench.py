"""The benchmark: its peers do the same work, and its numbers are what they are called."""

import pandas as pd
import pytest

from benchmarks.bench import GenerateEngine, compared, in_turns
from sesa.engines.local import LocalEngine
from sesa.sampling import Sampling, sequential


def test_the_peer_writes_what_our_engine_writes(paths_lm):
    """Greedy, so that no chance is left: lists of four, each candidate after the same history."""
    task, model, tokenizer = paths_lm
    draw = Sampling(group_size=4, temperature=0)
    ours = sequential(LocalEngine(model, tokenizer), task, task.problems, draw, 0)
    peer = sequential(GenerateEngine(model, tokenizer), task, task.problems, draw, 0)
    texts = [[r.text for r in group.rollouts] for group in ours]
    assert texts == [[r.text for r in group.rollouts] for group in peer]
    assert len({text for group in texts for text in group}) > 2


def test_contenders_take_turns_and_each_runs_once_before():
    calls = []
    seconds = in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert seconds.shape == (3, 2) and list(seconds) == ["a", "b"] and (seconds > 0).all(axis=None)


def test_ratio_fits_the_two_means_and_lies_in_its_interval():
    seconds = pd.DataFrame({"ours": [1.0, 2.0, 1.0, 1.0, 1.0], "peer": [2.0, 4.0, 3.0, 2.5, 2.0]})
    row = compared("engine", "batch 4", seconds, "ours", "peer", work=10)
    assert row["times as fast"] == pytest.approx(13.5 / 6) and row["unit"] == "tokens/s"
    assert row["ours"] / row["peer"] == pytest.approx(row["times as fast"]) and row["ours"] == pytest.approx(10 / 1.2)
    assert 1.5 < row["low"] < row["times as fast"] < row["high"] < 3
    plain = compared("steps", "sesa", seconds, "ours", "peer")
    assert plain["peer"] / plain["ours"] == pytest.approx(plain["times as fast"]) and plain["unit"] == "s"
