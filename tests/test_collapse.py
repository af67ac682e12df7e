"""The monitor's rule on hand-made sequences of ratios, and the probe of a policy that is known."""

import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sesa.collapse import Monitor, probe
from sesa.engines import Completion
from sesa.tasks import Grade


def verdicts(monitor, ratios):
    return [monitor.see(0.1, 0.1 * ratio) for ratio in ratios]


def test_collapse_needs_patience_and_recovery_more_than_the_threshold():
    seen = verdicts(Monitor(), [2.0, 1.4, 1.6, 1.4, 1.4, 1.6, 1.7, 1.9, 1.9, 1.7])
    assert seen == [False, False, False, False, True, True, True, True, False, False]


def test_noise_between_the_thresholds_never_switches():
    assert not any(verdicts(Monitor(patience=1), [1.51, 1.79, 1.51, 1.6] * 5))
    assert all(verdicts(Monitor(patience=1, collapsed=True), [1.5, 1.79, 1.2, 1.6] * 5))


@pytest.mark.parametrize(
    "first, any_of, collapsed",
    [
        (0.28, 0.29, True),  # one answer, mostly wrong
        (0.0625, 0.0625, True),
        (0.06, 0.35, False),
        (0.5, 0.74, True),  # up to 0.5 the ratio alone decides
        (0.5, 0.76, False),
        (0.63, 0.73, True),  # 15 more answers find a quarter of what the first misses
        (0.75, 0.89, False),  # 1.19, but more than half
        (0.9, 0.95, False),  # good: little is left to find
        (0.99, 0.99, False),
        (1.0, 1.0, False),
        (0.0, 0.0, False),  # says nothing
    ],
)
def test_a_policy_that_got_good_has_not_collapsed(first, any_of, collapsed):
    assert Monitor(patience=1).see(first, any_of) is collapsed


@given(st.floats(0.01, 0.5), st.floats(1, 20))
def test_below_one_half_the_rule_is_the_ratio(first, ratio):
    any_of = min(first * ratio, 0.89)
    assert Monitor(patience=1).see(first, any_of) is (any_of / first < 1.5)


@given(st.floats(0, 1), st.floats(0, 1))
def test_one_probe_never_speaks_for_both(first, more):
    """Hysteresis: what makes a policy count as collapsed does not make it count as recovered."""
    any_of = first + (1 - first) * more
    assert not (Monitor(patience=1).see(first, any_of) and not Monitor(patience=1, collapsed=True).see(first, any_of))


def test_a_collapsed_policy_that_gets_good_has_recovered():
    monitor = Monitor(collapsed=True)
    assert [monitor.see(p, q) for p, q in [(0.6, 0.7), (0.8, 0.92), (0.9, 0.95)]] == [True, True, False]


def test_a_probe_in_which_nothing_is_right_says_nothing():
    monitor = Monitor()
    assert [monitor.see(p, p) for p in (0.3, 0.0, 0.3, 0.0, 0.3)] == [False] * 5 and monitor.streak == 1
    assert not Monitor(patience=1).see(math.nan, math.nan)


def test_resumed_from_its_fields_it_goes_on_as_if_never_stopped():
    ratios = list(np.random.default_rng(0).uniform(1, 2.5, size=200))
    whole = Monitor()
    expected = verdicts(whole, ratios)
    first = Monitor()
    seen = verdicts(first, ratios[:77])
    second = Monitor(**asdict(first))
    assert seen + verdicts(second, ratios[77:]) == expected and second == whole
    assert len(set(expected)) == 2


@pytest.mark.parametrize("wrong", [{"low": 2.0, "high": 1.0}, {"patience": 0}, {"lo": 1.0}])
def test_wrong_thresholds_are_refused(wrong):
    with pytest.raises(ValueError):
        Monitor(**wrong)


class Coin:
    """A task and an engine: "right" with the problem's probability, else "wrong", or nothing valid."""

    stop, max_tokens = "\n", 1

    def prompt(self, problem, history=()):
        return problem.id

    def grade(self, problem, text):
        return Grade(float(text == "right"), text if text != "?" else None, text == "right")

    def generate(self, prompts, *, seeds, **_):
        return [Completion(self.answer(float(p), np.random.default_rng(s).random()), True) for p, s in zip(prompts, seeds, strict=True)]

    def answer(self, p, u):
        return "right" if u < p else "wrong" if u < 0.9 else "?"


class Toss:
    def __init__(self, p):
        self.id = str(p)


def test_probe_of_a_known_policy():
    """Of 500 tosses with p = 0.3 and 0.6: everything within 4 standard errors."""
    coin = Coin()
    seen = probe(coin, coin, [Toss(0.3), Toss(0.6)], seed=1, samples=500)
    assert seen["pass@1"] == pytest.approx(0.45, abs=4 * 0.5 / math.sqrt(1000))
    assert seen["pass@500"] == 1 and seen["ratio"] == pytest.approx(1 / seen["pass@1"])
    assert seen["invalid"] == pytest.approx(0.1, abs=4 * 0.3 / math.sqrt(1000))
    assert seen["distinct"] == 2 / 500
    assert seen["distinct"] + seen["duplicates"] + seen["invalid"] == pytest.approx(1)
    third, two_thirds = math.log(3), -math.log(2 / 3)
    expected = (third / 3 + two_thirds * 2 / 3) * 1.0  # of the valid answers 1/3 and 2/3, and the other way round
    assert seen["answer_entropy"] == pytest.approx(expected, abs=0.05)


def test_probe_when_nothing_is_right():
    coin = Coin()
    seen = probe(coin, coin, [Toss(0.0)], seed=0)
    assert seen["pass@1"] == seen["pass@16"] == 0 and math.isnan(seen["ratio"])
