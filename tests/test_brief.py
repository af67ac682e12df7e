"""sesa.tasks.brief: Countdown with sketches of one to three tokens; what the warm start teaches against a plain enumeration."""

import itertools
import re
from collections import Counter
from math import sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sesa.engines.local import LocalEngine
from sesa.models import TinyConfig, WarmStart, tiny_lm
from sesa.sampling import Sampling, sesa
from sesa.tasks.brief import LENGTHS, BriefConfig, BriefCountdown
from sesa.tasks.countdown import Countdown, CountdownConfig, CountdownTask

PROBLEM = Countdown("3 5 7=26", (3, 5, 7), 26)
TASKS = {n: BriefCountdown(BriefConfig(train=8, held_out=4, sketch_tokens=n)) for n in LENGTHS}
PLAIN = CountdownTask(CountdownConfig(train=8, held_out=4))
lengths = pytest.mark.parametrize("n", LENGTHS)


def test_prompts_say_which_length_is_wanted():
    assert [TASKS[n].sketch_prompt(PROBLEM, ["3"]) for n in LENGTHS] == ["3 5 7=26?1\n3\n", "3 5 7=26?2\n3\n", "3 5 7=26?3\n3\n"]
    assert TASKS[2].expand_prompt(PROBLEM, "3*") == "3 5 7=26>3*\n"
    assert TASKS[2].prompt(PROBLEM) == PLAIN.prompt(PROBLEM)
    assert [task.sketch_max_tokens for task in TASKS.values()] == [2, 3, 4]


@lengths
def test_sketches_are_beginnings_of_first_operations(n):
    """By brute force: two of the numbers, an operator, a result that is a positive integer, in the order that texts have."""
    whole = set()
    for (a, b), sign in itertools.product(itertools.permutations((3, 5, 7), 2), "+-*/"):
        if (sign in "+*" and a < b) or (sign == "-" and a > b) or (sign == "/" and a % b == 0):
            whole.add(f"{a}{sign}{b}")
    cut = {"".join(re.findall(r"\d+|\D", sketch)[:n]) for sketch in whole}
    assert {TASKS[n].told(sketch) for sketch in TASKS[n].sketches(PROBLEM)} == cut
    assert all(TASKS[n].sketch_key(PROBLEM, f" {sketch} ") == sketch for sketch in cut)
    others = {"".join(t) for k in (1, 2, 3) for t in itertools.product("3579+-*/", repeat=k)} - cut
    equal = {f"{b}{sign}{a}" for a, sign, b in (s for s in map(tuple, whole)) if sign in "+*"} | {f"{a}{s}{b}" for a, b in itertools.permutations("357", 2) for s in "-/"}
    assert {o for o in others if TASKS[n].sketch_key(PROBLEM, o)} <= (equal if n == 3 else set())


@given(st.text(max_size=40), st.sampled_from(LENGTHS))
def test_keys_are_total(text, n):
    assert TASKS[n].sketch_key(PROBLEM, text) is None or n == 3 or text.strip() in {"3", "5", "7", "3+", "3*", "5+", "5*", "5-", "7-"}


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_strategy_is_the_cut_of_the_first_operation(seed):
    rng = np.random.default_rng(seed)
    problem = PLAIN.problems[seed % len(PLAIN.problems)]
    sketch = rng.choice(PLAIN.sketches(problem))
    text = PLAIN.attempt(problem, sketch, rng)
    assert TASKS[3].strategy(problem, text) == PLAIN.strategy(problem, text)
    for n in (1, 2):
        assert TASKS[n].strategy(problem, text) == TASKS[n].told(PLAIN.strategy(problem, text))
    assert TASKS[1].strategy(problem, "no answer") is None


def test_the_warm_start_does_not_depend_on_the_length_and_teaches_all():
    texts = {n: task.warm_start_texts(np.random.default_rng(0), 400) for n, task in TASKS.items()}
    assert texts[1] == texts[2] == texts[3]
    asked = Counter(prompt[-2] for prompt, _ in texts[1] if "?" in prompt)
    told = Counter(len(re.findall(r"\d+|\D", prompt.strip().split(">")[1])) for prompt, _ in texts[1] if ">" in prompt)
    assert set(asked) == {"1", "2", "3"} and set(told) == {1, 2, 3}
    assert all(len(lines := completion.splitlines()) == len(set(lines)) for _, completion in texts[1])
    for prompt, completion in texts[1]:
        if ">" in prompt:
            shown, sketch = prompt.strip().split(">")
            problem = Countdown(shown, tuple(map(int, shown.split("=")[0].split())), int(shown.split("=")[1]))
            assert TASKS[len(re.findall(r"\d+|\D", sketch))].strategy(problem, completion) == sketch
        if "?" in prompt:
            assert {len(re.findall(r"\d+|\D", line)) for line in completion.splitlines()} == {int(prompt[-2])}


def test_beginnings_are_drawn_in_proportion_to_their_sketches():
    """The first line of a list of one-token sketches, against the sum of the probabilities of the sketches that begin so."""
    task, rng = TASKS[3], np.random.default_rng(0)
    sketches = task.sketches(PROBLEM)
    p = np.arange(1, len(sketches) + 1) ** -1.0
    useful = p / p.sum() * np.isin(sketches, task.useful(PROBLEM))
    p = 0.5 * p / p.sum() + 0.5 * useful / useful.sum()
    drawn = [task._text(PROBLEM, rng) for _ in range(6000)]
    first = [completion.split("\n")[0] for prompt, completion in drawn if prompt.endswith("?1\n")]
    for number in "357":
        expected = sum(q for q, sketch in zip(p, sketches, strict=True) if sketch.startswith(number))
        assert abs(first.count(number) - len(first) * expected) <= 4 * sqrt(len(first) * expected * (1 - expected)) + 1e-9


@lengths
def test_a_model_writes_sketches_no_longer_than_allowed(n, home):
    model, tokenizer = tiny_lm(TASKS[3], 0, TinyConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16), WarmStart(steps=2, batch_size=4))
    (group,) = sesa(LocalEngine(model, tokenizer), TASKS[n], [PROBLEM], Sampling(4), 0)
    assert all(len(sketch.completion.ids) <= n + 1 for sketch in group.sketches)
    assert all(f">{sketch.text}\n" in r.prompt for sketch, r in zip(group.sketches, group.rollouts, strict=True))


@pytest.mark.parametrize("given", [{"sketch_tokens": 0}, {"sketch_tokens": 4}, {"form": "chat"}])
def test_what_is_no_length_is_refused(given):
    with pytest.raises(ValueError, match="1, 2 or 3"):
        BriefConfig(**given)
