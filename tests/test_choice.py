"""sesa.choice: the smallest configuration that keeps the gain, against a plain loop and closed forms."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sesa.choice import smallest_that_keeps
from sesa.intervals import holm, interval, p_value


def frames(means: dict, noise: float = 0.0, seeds: int = 3, problems: int = 6) -> dict:
    rng = np.random.default_rng(0)
    return {name: pd.DataFrame(mean + noise * rng.normal(size=(seeds, problems))) for name, mean in means.items()}


COSTS = {(2, 1): 12, (8, 1): 48, (8, 3): 64, (32, 1): 192}


def test_the_cheapest_that_keeps_95_percent_is_chosen():
    choice = smallest_that_keeps(frames({(2, 1): 0.1, (8, 1): 0.385, (8, 3): 0.39, (32, 1): 0.40}), COSTS)
    assert (choice.best, choice.smallest, choice.nothing) == ((32, 1), (8, 1), 0.0)
    assert choice.gains.loc[[(8, 1)]].to_dict("records") == [pytest.approx({"mean": 0.385, "low": 0.385, "high": 0.385, "p": 0, "cost": 48, "chosen": 1})]
    assert list(choice.gains["chosen"]) == [0, 1, 0, 0]


@pytest.mark.parametrize(("share", "smallest"), [(1.0, (32, 1)), (0.97, (8, 3)), (0.95, (8, 1)), (0.2, (2, 1)), (0.0, (2, 1))])
def test_the_share_decides(share, smallest):
    assert smallest_that_keeps(frames({(2, 1): 0.1, (8, 1): 0.385, (8, 3): 0.39, (32, 1): 0.40}), COSTS, share).smallest == smallest


def test_of_equal_costs_the_one_that_gains_more():
    assert smallest_that_keeps(frames({"a": 0.39, "b": 0.40, "c": 0.41}), {"a": 1, "b": 1, "c": 2}).smallest == "b"


@pytest.mark.parametrize("mean", [-0.2, 0.0])
def test_where_nothing_gains_nothing_is_chosen(mean):
    choice = smallest_that_keeps(frames({"a": mean, "b": mean - 0.1}), {"a": 1, "b": 2})
    assert (choice.best, choice.smallest, choice.nothing) == ("a", None, 1.0)
    assert list(choice.gains["chosen"]) == [0, 0]


def test_a_gain_that_may_be_chance_is_none():
    gain = pd.DataFrame([[0.5, -0.4, 0.3, -0.2]] * 3)
    choice = smallest_that_keeps({"a": gain}, {"a": 1})
    low, high = choice.gains.loc["a", ["low", "high"]]
    assert gain.to_numpy().mean() > 0 and low < 0 < high and choice.smallest is None
    assert 0.1 < choice.nothing < 0.9 and choice.gains.loc["a", "chosen"] + choice.nothing == pytest.approx(1)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 6), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_choice_is_that_of_a_plain_loop(configurations, seeds, problems, rng_seed):
    """Resample by resample; means, intervals and p values are those of `sesa.intervals`."""
    rng = np.random.default_rng(rng_seed)
    gains = {i: pd.DataFrame(rng.integers(-2, 5, size=(seeds, problems)).astype(float)) for i in range(configurations)}
    costs = {i: int(rng.integers(1, 4)) for i in gains}
    choice = smallest_that_keeps(gains, costs, share=0.87, resamples=50, rng_seed=7)
    for i, row in choice.gains.iterrows():
        assert tuple(row[["mean", "low", "high"]]) == pytest.approx(interval(gains[i]), nan_ok=True)
    assert list(choice.gains["p"]) == pytest.approx(holm([p_value(g) for g in gains.values()]), nan_ok=True)
    same = np.random.default_rng(7)
    rows, columns = same.integers(seeds, size=(50, seeds)), same.integers(problems, size=(50, problems))
    picks = []
    for r, c in zip(rows, columns, strict=True):
        means = {i: np.mean([[g.iat[a, b] for b in c] for a in r]) for i, g in gains.items()}
        kept = [i for i in means if means[i] >= 0.87 * max(means.values())]
        picks.append(min(kept, key=lambda i: (costs[i], -means[i], i)) if max(means.values()) > 0 else None)
    assert list(choice.gains["chosen"]) == pytest.approx([picks.count(i) / 50 for i in gains])
    assert choice.nothing == pytest.approx(picks.count(None) / 50)


def test_the_best_of_many_must_stand_a_search():
    """Gains of noise alone: the best of 20 has an interval above 0 in most such tables, and is named in few."""
    rng, best_above, named = np.random.default_rng(3), 0, 0
    for _ in range(60):
        gains = {i: pd.DataFrame(rng.normal(size=(4, 8)) + rng.normal(size=(4, 1))) for i in range(20)}
        choice = smallest_that_keeps(gains, dict.fromkeys(gains, 1), resamples=2)
        best_above += (choice.gains["low"] > 0).any()
        named += choice.smallest is not None
    assert best_above > 15 and named <= 7


def test_one_seed_names_nothing():
    choice = smallest_that_keeps({"a": pd.DataFrame([[1.0, 1.1, 0.9]])}, {"a": 1})
    assert choice.smallest is None and choice.gains.loc["a", "mean"] == pytest.approx(1)
    assert choice.gains.loc["a", ["low", "high", "p"]].isna().all()


def test_the_share_of_resamples_follows_the_noise():
    """Of two that gain alike, each is the best half of the time: with a share of 1 the cheap one is chosen when it is ahead."""
    rng = np.random.default_rng(1)
    noise = pd.DataFrame(rng.normal(size=(1, 400)))
    choice = smallest_that_keeps({"cheap": 1 + noise - noise.to_numpy().mean(), "dear": pd.DataFrame(np.ones((1, 400)))}, {"cheap": 1, "dear": 2}, share=1.0)
    assert choice.gains.loc["cheap", "chosen"] == pytest.approx(0.5, abs=0.05)
    assert choice.gains["chosen"].sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("gains", "costs", "words"),
    [
        ({}, {}, "at least one"),
        ({"a": pd.DataFrame([[1.0]]), "b": pd.DataFrame([[1.0, 2.0]])}, {"a": 1, "b": 1}, "same seeds and problems"),
        ({"a": pd.DataFrame([[1.0]], index=[0]), "b": pd.DataFrame([[1.0]], index=[1])}, {"a": 1, "b": 1}, "same seeds and problems"),
        ({"a": pd.DataFrame([[np.nan]])}, {"a": 1}, "no number"),
        ({"a": pd.DataFrame()}, {"a": 1}, "no number"),
        ({"a": pd.DataFrame([[1.0]])}, {"b": 1}, "no cost is given for a"),
    ],
)
def test_what_cannot_be_compared_is_refused(gains, costs, words):
    with pytest.raises(ValueError, match=words):
        smallest_that_keeps(gains, costs)
