"""sesa.sketches: stage I from outside, what a policy makes of sketches, and correlations against plain formulas."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sesa.diversity import last_states
from sesa.engines import Completion
from sesa.engines.local import LocalEngine
from sesa.sampling import Sampling, iid_sketches, sesa
from sesa.sketches import correlation, expand
from sesa.tasks.places import PlacesTask

# --------------------------------------------------------------------------------------------------------------- expand


@pytest.mark.parametrize(("sampler", "length"), [(sesa, None), (sesa, 3), (iid_sketches, None)])
def test_a_policys_own_sketches_give_its_own_expansions(paths_lm, sampler, length):
    """All of stage II, to the bit, however the sketches were drawn."""
    task, *lm = paths_lm
    cfg = Sampling(group_size=6, list_length=length, temperature=0.9, top_p=0.95)
    drawn = sampler(LocalEngine(*lm), task, task.problems, cfg, 5)
    again = expand(LocalEngine(*lm), task, task.problems, [[s.text for s in g.sketches] for g in drawn], cfg, 5)
    assert [g.rollouts for g in again] == [g.rollouts for g in drawn]
    for ours, theirs in zip(again, drawn, strict=True):
        assert [(s.text, s.key, s.reward, s.solved) for s in ours.sketches] == [(s.text, s.key, s.reward, s.solved) for s in theirs.sketches]
        assert {s.history for s in ours.sketches} == {()} and ours.problem is theirs.problem


@dataclass
class Echo:
    """An engine that answers with the prompt, and keeps what it was asked."""

    asked: list

    def generate(self, prompts, *, seeds, **_):
        self.asked += zip(prompts, seeds, strict=True)
        return [Completion(prompt.strip(), True) for prompt in prompts]


def test_the_engine_is_asked_for_expansions_alone_and_any_text_is_a_sketch(paths_lm):
    task, engine = paths_lm[0], Echo([])
    one, two = task.problems
    valid = task.sketches(one)
    sketches = [[valid[0], valid[0], "", valid[1]], [valid[2], "nowhere at all", valid[0], "a/b"]]
    groups = expand(engine, task, [one, two], sketches, Sampling(group_size=4), 0)
    assert [prompt for prompt, _ in engine.asked] == [task.expand_prompt(p, s) for p, some in zip((one, two), sketches, strict=True) for s in some]
    assert [[r.sketch for r in g.rollouts] for g in groups] == sketches
    assert [[s.key for s in g.sketches] for g in groups] == [[valid[0], valid[0], None, valid[1]], [valid[2], None, valid[0], None]]
    other = Echo([])
    expand(other, task, [one, two], [list(reversed(some)) for some in sketches], Sampling(group_size=4), 0)
    assert [seed for _, seed in other.asked] == [seed for _, seed in engine.asked]  # the same luck for other sketches
    assert len({seed for _, seed in engine.asked}) == 8


def test_wrong_numbers_of_sketches_are_refused(paths_lm):
    task = paths_lm[0]
    for sketches in ([["a"] * 3], [["a"] * 3, ["a"] * 2], [["a"] * 4] * 2, []):
        with pytest.raises(ValueError, match="3 sketches for each of 2 problems"):
            expand(Echo([]), task, task.problems, sketches, Sampling(group_size=3), 0)
    places = PlacesTask()
    with pytest.raises(ValueError, match="same words"):
        expand(Echo([]), places, places.problems * 2, [["a"]] * 2, Sampling(group_size=1), 0)


# ---------------------------------------------------------------------------------------------------------- last states


def test_last_states_are_those_of_each_prompt_alone(paths_lm):
    task, model, tokenizer = paths_lm
    prompts = [task.expand_prompt(p, s) for p in task.problems for s in ("Hunan", *task.sketches(p)[:3], task.prior.paths[5])]
    prompts = (prompts * 60)[:530]  # more than one batch
    vectors = last_states(model, tokenizer, prompts)
    assert vectors.shape == (530, model.config.hidden_size)
    for i in (0, 1, 4, 7, 515, 529):
        ids = torch.tensor([tokenizer.encode(prompts[i], add_special_tokens=False)])
        with torch.inference_mode():
            state = model.model(input_ids=ids).last_hidden_state[0, -1]
            assert torch.allclose(model.lm_head(torch.tensor(vectors[i]).float()), model(input_ids=ids).logits[0, -1], atol=1e-4)
        assert np.allclose(vectors[i], state.numpy(), atol=1e-5)


# ---------------------------------------------------------------------------------------------------------- correlation


def test_of_one_row_it_is_pearsons():
    rng = np.random.default_rng(0)
    x = rng.normal(size=40)
    y = 0.5 * x + rng.normal(size=40)
    expected = np.corrcoef(x, y)[0, 1]
    assert correlation(x[None], y[None])[0] == pytest.approx(expected)
    assert correlation(x[None, None], y[None, None])[0] == pytest.approx(expected)


def test_within_problems_can_have_another_sign_than_across():
    """Simpson: harder problems have more ways; of the same problem, the group of more ways does better."""
    rng = np.random.default_rng(1)
    hard = np.linspace(0, 10, 30)[None, :, None]
    noise = rng.normal(size=(4, 30, 20))
    x, y = hard + noise, -hard + noise + 0.5 * rng.normal(size=noise.shape)
    value, low, high = correlation(x, y)
    residual = [(v - v.mean(-1, keepdims=True)).ravel() for v in (x, y)]
    assert value == pytest.approx(np.corrcoef(*residual)[0, 1]) and 0.85 < low < value < high < 0.95
    value, low, high = correlation(x.mean(-1), y.mean(-1))
    assert -1 <= low <= value <= high < -0.95


@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_the_interval_of_a_correlation_covers(seeds):
    """Within problems, where the slope differs by problem and seed; across problems, which are the same for every
    seed. 95% of 600 tables, with an error of 0.9."""
    rng, within, across, truth = np.random.default_rng(seeds), 0, 0, 0.4 / np.sqrt(0.4**2 + 0.4**2 + 0.2**2 + 1)
    for _ in range(600):
        x = rng.normal(size=(seeds, 32, 8))
        slope = 0.4 + 0.4 * rng.normal(size=(1, 32, 1)) + 0.2 * rng.normal(size=(seeds, 1, 1))
        _, low, high = correlation(x, slope * x + rng.normal(size=x.shape))
        within += low <= truth <= high
        x, y = rng.normal(size=(2, 1, 32))
        noise = 0.5 * rng.normal(size=(2, seeds, 32))
        _, low, high = correlation(x + noise[0], 0.5 * x + np.sqrt(0.75) * y + noise[1])
        across += low <= 0.5 / 1.25 <= high
    assert abs(100 * within / 600 - 95) < 3 and abs(100 * across / 600 - 95) < 3


def test_an_interval_of_nothing_holds_nothing():
    rng = np.random.default_rng(3)
    value, low, high = correlation(rng.normal(size=(5, 30, 10)), rng.normal(size=(5, 30, 10)).round())
    assert low < 0 < high and abs(value) < 0.1


@given(st.integers(0, 1000), st.floats(0.1, 9), st.integers(2, 4), st.integers(2, 5), st.sampled_from([(), (3,)]))
@settings(deadline=None, max_examples=25)
def test_shift_of_a_row_and_scale_change_nothing(seed, scale, seeds, problems, groups):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, seeds, problems, *groups))
    shifted = scale * x + rng.normal(size=(*x.shape[:-1], 1))
    value, low, high = correlation(x, y)
    assert correlation(shifted, y) == pytest.approx((value, low, high), abs=1e-6)
    assert correlation(y, x) == pytest.approx((value, low, high), abs=1e-9)
    assert -1 - 1e-9 <= low <= high <= 1 + 1e-9
    assert correlation(x, -x) == pytest.approx((-1, -1, -1))


def test_one_seed_has_a_correlation_and_no_interval():
    x, y = np.random.default_rng(0).normal(size=(2, 1, 5, 4))
    value, low, high = correlation(x, y)
    assert -1 < value < 1 and np.isnan([low, high]).all() and np.isnan(correlation(x, x)[1])


def test_what_never_differs_has_no_correlation():
    x = np.arange(24.0).reshape(2, 3, 4)
    assert np.isnan(correlation(x, np.ones_like(x))).all()
    half = np.where(np.arange(3)[None, :, None] == 0, x, 1.0)  # one problem alone says something
    value, low, high = correlation(half, half)
    assert value == pytest.approx(1) and (low, high) == pytest.approx((1, 1))


@pytest.mark.parametrize("shapes", [((2, 3), (2, 4)), ((3,), (3,)), ((0, 2), (0, 2)), ((1, 1, 1, 1),) * 2])
def test_other_shapes_are_refused(shapes):
    with pytest.raises(ValueError, match="one shape"):
        correlation(*(np.zeros(shape) for shape in shapes))
