"""Measuring: lengths are as set, memory is what tensors hold, a waiting thread counts no seconds."""

import pytest
import torch

from sesa import sampling
from sesa.sampling import Sampling
from sesa.timing import EndlessEngine, clock_of, drawing, in_turns, peak_bytes, random_lm, task_of_lengths

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 16}


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("arm", ["parallel", "sequential", "sesa", "iid_sketches"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_lengths_are_as_set(arm, keep, dtype):
    engine, task = EndlessEngine(*random_lm(SMALL, dtype=dtype), keep), task_of_lengths(3, 7, 2, 9)
    groups = drawing(getattr(sampling, arm), engine, task, Sampling(4), "x")()
    assert {len(r.completion.ids) for g in groups for r in g.rollouts} == {9} and {len(s.completion.ids) for g in groups for s in g.sketches} <= {2}
    listed = groups[0].sketches or groups[0].rollouts
    step = (2 if groups[0].sketches else 9) + 1
    grows = step if arm in ("sequential", "sesa") else 0
    assert [len(r.completion.prompt_ids) for r in listed] == [7 + i * grows for i in range(4)]
    if groups[0].sketches:
        assert {len(r.completion.prompt_ids) for g in groups for r in g.rollouts} == {7 + 2 + 1}


def test_both_ways_write_the_same():
    lm, task = random_lm(SMALL), task_of_lengths(2, 7, 2, 9)
    texts = [[r.text for g in drawing(sampling.sequential, EndlessEngine(*lm, keep), task, Sampling(4), "x")() for r in g.rollouts] for keep in (True, False)]
    assert texts[0] == texts[1]


def test_peak_is_the_most_that_lived_at_once():
    def three():
        a = torch.zeros(1000)
        b = a + 1  # 8000 bytes live here
        a.add_(1)
        del a
        return b[:10] + torch.zeros(10)  # a view holds nothing of its own

    assert peak_bytes(three) == 8000
    before = torch.zeros(5000)
    assert peak_bytes(lambda: before.view(50, 100)[0].mul_(2)) == 0
    assert peak_bytes(lambda: [torch.ones(25) for _ in range(10)]) == 1000


def test_seconds_of_the_thread_do_not_count_waiting():
    import time

    seconds = in_turns({"waits": lambda: time.sleep(0.05)}, 2, clock_of("cpu"))
    assert (seconds["waits"] < 0.04).all()
