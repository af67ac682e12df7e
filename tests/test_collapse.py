"""The monitor's rule on hand-made sequences of ratios, and the probe of a policy that is known."""

import math
from dataclasses import asdict

import numpy as np
import pytest

from sesa.collapse import Monitor, probe
from sesa.engines import Completion
from sesa.tasks import Grade


def verdicts(monitor, ratios):
    return [monitor.see(ratio) for ratio in ratios]


def test_collapse_needs_patience_and_recovery_more_than_the_threshold():
    seen = verdicts(Monitor(), [2.0, 1.4, 1.6, 1.4, 1.4, 1.6, 1.7, 1.9, 1.9, 1.7])
    assert seen == [False, False, False, False, True, True, True, True, False, False]


def test_noise_between_the_thresholds_never_switches():
    assert not any(verdicts(Monitor(patience=1), [1.5, 1.79, 1.5, 1.6] * 5))
    assert all(verdicts(Monitor(patience=1, collapsed=True), [1.5, 1.8, 1.2, 1.6] * 5))


def test_a_probe_in_which_nothing_is_right_says_nothing():
    assert verdicts(Monitor(), [1.0, math.nan, 1.0, math.nan, 1.0]) == [False] * 5


def test_resumed_from_its_fields_it_goes_on_as_if_never_stopped():
    ratios = list(np.random.default_rng(0).uniform(1, 2.5, size=200))
    whole = Monitor()
    expected = verdicts(whole, ratios)
    first = Monitor()
    seen = verdicts(first, ratios[:77])
    second = Monitor(**asdict(first))
    assert seen + verdicts(second, ratios[77:]) == expected and second == whole
    assert len(set(expected)) == 2


@pytest.mark.parametrize("wrong", [{"low": 2.0, "high": 1.0}, {"patience": 0}])
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
