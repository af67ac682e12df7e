"""Countdown against a brute force written in another way (reverse Polish notation), and its grader against any text."""

import re
import time
import warnings
from collections import Counter
from fractions import Fraction
from functools import cache
from itertools import permutations, product
from math import sqrt

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sesa.tasks import Grade, split_of
from sesa.tasks.countdown import Countdown, CountdownConfig, CountdownTask, beginnings, completions, solve
from sesa.tasks.generated import END

THREE, FOUR = CountdownTask(), CountdownTask(CountdownConfig(numbers=4, train=32, held_out=16))
CHAT = CountdownTask(CountdownConfig(form="chat", train=4, held_out=4))
PROBLEM = Countdown("3 5 7=26", (3, 5, 7), 26)
SUMS = Countdown("1 2 3 4=21", (1, 2, 3, 4), 21)
SHAPES = {3: ["nn.n.", "nnn.."], 4: ["nn.n.n.", "nn.nn..", "nnn..n.", "nnn.n..", "nnnn..."]}  # "." is an operator
both = pytest.mark.parametrize("task", [THREE, FOUR], ids=["three", "four"])


class Form:
    """The tree of an expression, so that Python's own `eval` reads trusted texts for the tests. `same`: what + and * join is unordered."""

    def __init__(self, value, same, first=None):
        self.value, self.same, self.first = Fraction(value), same, first

    def join(self, op, other):
        a, b = self.value, other.value
        value = {"+": lambda: a + b, "-": lambda: a - b, "*": lambda: a * b, "/": lambda: a / b}[op]()
        same = (op, frozenset(Counter([self.same, other.same]).items()) if op in "+*" else (self.same, other.same))
        return Form(value, same, self.first or other.first or same)

    def __add__(self, other):
        return self.join("+", other)

    def __sub__(self, other):
        return self.join("-", other)

    def __mul__(self, other):
        return self.join("*", other)

    def __truediv__(self, other):
        return self.join("/", other)


def form(text: str) -> Form:
    return eval(re.sub(r"\d+", r"Form(\g<0>, \g<0>)", text))


def within(count: float, n: int, p: float) -> bool:
    """A count of n independent events of probability p lies within 4 standard errors (wrong once in 16,000)."""
    return abs(count - n * p) <= 4 * sqrt(n * p * (1 - p))


@cache
def brute_force(numbers: tuple[int, ...]) -> list[Form]:
    """All expressions that stay within the positive integers."""
    found = []
    for order, ops, shape in product(set(permutations(numbers)), product("+-*/", repeat=len(numbers) - 1), SHAPES[len(numbers)]):
        stack, queue, signs = [], list(order), list(ops)
        for mark in shape:
            if mark == "n":
                stack.append(Form(n := queue.pop(0), n))
                continue
            b, a = stack.pop(), stack.pop()
            stack.append(a.join(signs.pop(), b))
            if stack[-1].value <= 0 or stack[-1].value.denominator > 1:
                break
        else:
            found += stack
    return found


# ---------------------------------------------------------------------------------------------------------------- solver


@pytest.mark.parametrize("numbers", [(3, 5, 7), (1, 1, 1), (2, 2, 2), (2, 2, 12), (6, 6, 3), (1, 2, 3, 4), (2, 2, 4, 8), (3, 3, 3, 3)])
def test_solver_finds_what_brute_force_finds(numbers):
    """Every target that can be made, and some that cannot: the same solutions up to the order of what + and * join."""
    numbers = tuple(sorted(numbers))
    expected: dict[int, set] = {}
    for found in brute_force(numbers):
        expected.setdefault(int(found.value), set()).add(found.same)
    for target in range(1, max(expected) + 5):
        assert {form(text).same for text in solve(numbers, target)} == expected.get(target, set())


def test_solver_and_grader_agree_on_a_thousand_problems():
    """Every problem has a solution; every solution is right, and each one's key is another; every other completion earns 0.1."""
    rng = np.random.default_rng(0)
    for problem in [THREE.generate(rng) for _ in range(1000)]:
        assert problem.target in {int(found.value) for found in brute_force(problem.numbers)}
        solutions = solve(problem.numbers, problem.target)
        assert solutions
        grades = [THREE.grade(problem, text) for text in solutions]
        assert {(g.reward, g.solved) for g in grades} == {(1.0, True)} and len({g.key for g in grades}) == len(solutions)
        others = [t for s in beginnings(problem.numbers) for _, t in completions(problem.numbers, s) if t not in solutions]
        assert {THREE.grade(problem, text).reward for text in others} == {0.1}


def test_solutions_of_four_numbers_are_right():
    for problem in FOUR.problems:
        solutions = solve(problem.numbers, problem.target)
        assert solutions and all(FOUR.grade(problem, text).reward == 1 for text in solutions)


def test_completions_are_different_and_some_are_always_wrong():
    for numbers in [*product(range(1, 6), repeat=3), (2, 2, 2, 2), (1, 1, 1, 1), (1, 2, 2, 4)]:
        numbers = tuple(sorted(numbers))
        for sketch in beginnings(numbers):
            values = [value for value, _ in completions(numbers, sketch)]
            texts = [text for _, text in completions(numbers, sketch)]
            assert len(set(texts)) == len(texts) and len(set(values)) > 1


# ---------------------------------------------------------------------------------------------------------------- grader


def test_ragens_rewards():
    grades = {
        "(3*7)+5": Grade(1.0, "(3*7)+5", True),
        " 5 + 7*3 ": Grade(1.0, "(3*7)+5", True),
        "(3*7)+5 = 26": Grade(1.0, "(3*7)+5", True),
        "((3)*(7))+(5)\n": Grade(1.0, "(3*7)+5", True),
        "7+(5*3)": Grade(0.1, "(3*5)+7", False),
        "3-5*7": Grade(0.1, "3-(5*7)", False),
        "(7-5)/3": Grade(0.1, "(7-5)/3", False),
        "3*7": Grade(0.0, None, False),  # not all numbers
        "3*7+5+5": Grade(0.0, None, False),
        "3*7+6": Grade(0.0, None, False),
        "26": Grade(0.0, None, False),
        "5/(3-3)+7": Grade(0.0, None, False),
        "": Grade(0.0, None, False),
    }
    assert {text: THREE.grade(PROBLEM, text) for text in grades} == grades


def test_fractions_and_negative_numbers_on_the_way_are_exact():
    thirds = Countdown("1 3 3=1", (1, 3, 3), 1)
    assert THREE.grade(thirds, "(1/3)*3").solved and THREE.grade(thirds, "1/(3/3)").solved
    assert THREE.grade(Countdown("3 5 7=9", (3, 5, 7), 9), "5-(3-7)").solved
    assert FOUR.grade(Countdown("3 3 8 8=24", (3, 3, 8, 8), 24), "8/(3-8/3)").solved
    assert THREE.grade(Countdown("1 1 2=1", (1, 1, 2), 1), "1/(1-1)*2") == FOUR.grade(SUMS, "1/(2+3-4-1)") == Grade(0.0, None, False)


trees = st.recursive(
    st.integers(1, 12).map(str),
    lambda part: st.tuples(part, st.sampled_from("+-*/"), part).map(lambda parts: f"({''.join(parts)})"),
    max_leaves=6,
)


@given(trees, st.integers(-3, 30))
@settings(max_examples=300, deadline=None)
def test_value_key_and_first_operation_are_those_of_python(text, target):
    """An expression of any numbers, read as the answer to their own problem. `form(key)` has the text's tree: a key loses nothing else."""
    numbers = tuple(sorted(map(int, re.findall(r"\d+", text))))
    try:
        expected = form(text)
    except ZeroDivisionError:
        expected = None
    for goal in {target, expected and int(expected.value)} - {None}:
        problem = Countdown("", numbers, goal)
        grade, strategy = THREE.grade(problem, text), THREE.strategy(problem, text)
        if expected is None:
            assert grade == Grade(0.0, None, False) and strategy is None
        else:
            assert grade.solved == (expected.value == goal) and grade.reward == (1.0 if grade.solved else 0.1)
            assert form(grade.key).same == expected.same and THREE.grade(problem, grade.key).key == grade.key
            assert (form(strategy).same if strategy else None) == expected.first


def test_keys_know_the_laws_of_exchange_and_no_others():
    same = ["(1+2)*(3+4)", "(2+1)*(4+3)", "(4+3)*(2+1)", "(3+4)*(1+2)", "((3)+4)*((2+1))"]
    assert len({FOUR.grade(SUMS, text).key for text in same}) == 1
    different = ["1+(2+(3+4))", "((1+2)+3)+4", "(1+2)+(3+4)", "(1+3)+(2+4)", "(1+2)-(3+4)", "(3+4)-(1+2)", "1-2-3-4", "1-(2-3-4)"]
    assert len({FOUR.grade(SUMS, text).key for text in different}) == len(different)
    assert FOUR.grade(SUMS, "1+2+3+4").key == "((1+2)+3)+4"  # Python's order
    assert THREE.grade(Countdown("2 10 12=24", (2, 10, 12), 24), "12+10+2").key == "(10+12)+2"  # by size, not by digits


HOSTILE = [
    "__import__('os').system('true')", "9**9**9**9", "3**7+5", "3*7//5", "-3+5+7", "3*+7+5", "3*7+05", "3_0+5+7", "3e0*7+5", "0x3*7+5",
    "(" * 10_000, "(" * 10_000 + "3*7+5" + ")" * 10_000, "(" * 150 + "3*7+5", "1" * 10_000, "1+" * 10_000 + "1", "-" * 199 + "1", "3(7)+5",
    "3*7" + " " * 200 + "+5", "(3*7\n+5)", "(3,7,5)", "[3*7+5]", "3*7+5;",
    "3*7\n+5", "3*7+5#", "3*7+5 if 1 else 0", "lambda: 3*7+5", "3*7+5==26", "26=3*7+5", "3*7+5=", "3*7+5=x",
    "３*7+5", "٣*7+5", "3×7+5", "3*7+5\0", "\0", "\ud800", "🙂", "()", "3 7 5", "1/0",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_what_is_no_expression_earns_nothing(text):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        start = time.perf_counter()
        assert THREE.grade(PROBLEM, text) == CHAT.grade(PROBLEM, f"<answer>{text}</answer>") == Grade(0.0, None, False)
        assert THREE.strategy(PROBLEM, text) is THREE.sketch_key(PROBLEM, text) is None
        assert time.perf_counter() - start < 1
    assert not caught


any_text = st.text(st.characters(), max_size=60)  # all of Unicode: surrogates and control characters as well
near_text = st.lists(st.sampled_from(["3", "5", "7", "+", "-", "*", "/", "(", ")", " ", "=", "26", "<answer>", "</answer>"]), max_size=40)


@given(any_text | near_text.map("".join))
@example("<answer>" * 100_000)
@example("<answer>(" * 100_000 + "</answer>" * 100_000)
@example(" " * 1_000_000)
@settings(max_examples=500, deadline=None)
def test_any_text_gets_a_grade_at_once(text):
    start = time.perf_counter()
    for task in (THREE, CHAT):
        grade, strategy, sketch = task.grade(PROBLEM, text), task.strategy(PROBLEM, text), task.sketch_key(PROBLEM, text)
        assert grade.reward == (0.0 if grade.key is None else 1.0 if grade.solved else 0.1)
        assert (strategy is None) == (grade.key is None)
        assert sketch is None or re.fullmatch(r"[357][-+*/][357]", sketch)
    assert time.perf_counter() - start < 1


def test_chat_answers_are_read_between_their_tags():
    right = Grade(1.0, "(3*7)+5", True)
    think = "<think>3+5+7 is 15. <answer>3+5+7</answer> is wrong.</think>"
    for text in ("<answer>3*7+5</answer>", "<answer>\n 5 + 3 * 7 = 26 </answer> Done.", f"{think}<answer>(7*3)+5</answer>", f"<answer>3*7+5</answer>{think}"):
        assert CHAT.grade(PROBLEM, text) == right and CHAT.strategy(PROBLEM, text) == "3*7"
    assert CHAT.grade(PROBLEM, "<answer><answer>3*7+5</answer></answer>") == right
    for text in ("3*7+5", "<answer>3*7+5", "<answer></answer>", "<answer>The answer is 3*7+5</answer>"):
        assert not CHAT.grade(PROBLEM, text).solved
    assert THREE.grade(PROBLEM, "<answer>3*7+5</answer>").key is None


# -------------------------------------------------------------------------------------------------------------- sketches


def test_sketches_are_the_first_operations_with_the_favourites_first():
    assert THREE.sketches(PROBLEM) == ["5+7", "3+7", "3+5", "5*7", "3*7", "3*5", "7-3", "5-3", "7-5"]
    assert THREE.sketches(Countdown("2 2 6=1", (2, 2, 6), 1)) == ["2+6", "2+2", "2*6", "2*2", "6-2", "6/2", "2/2"]


@both
def test_sketches_are_all_the_beginnings_of_brute_force(task):
    for problem in task.problems[:8]:
        sketches = task.sketches(problem)
        assert {form(s).same for s in sketches} == {found.first for found in brute_force(problem.numbers)}
        assert len(set(sketches)) == len(sketches) and [task.sketch_key(problem, s) for s in sketches] == sketches


def test_sketch_keys():
    keys = {"3*7": "3*7", " 7 * 3 ": "3*7", "(7*3)": "3*7", "7*3 = 21": "3*7", "5-7": "5-7", "7-5": "7-5", "7/3": "7/3", "3/7": "3/7"}
    keys |= dict.fromkeys(["3*3", "3*6", "3", "3*7+5", "3*", "", "3/0", "multiply 3 and 7"])
    assert {text: THREE.sketch_key(PROBLEM, text) for text in keys} == keys
    assert THREE.sketch_key(Countdown("3 3 7=1", (3, 3, 7), 1), "3*3") == "3*3"


def test_the_strategy_is_the_operation_carried_out_first():
    strategies = {"(1+2)*(3+4)": "1+2", "(4+3)*(2+1)": "3+4", "1-(2*(4/3))": "4/3", "1+2*3+4": "2*3", "4+3+2+1": "3+4", "1/2-4-3": "1/2"}
    strategies |= dict.fromkeys(["", "1+2", "1+2+3+5", "1+2+3+4+4", "4/(1+2-3)"])
    assert {text: FOUR.strategy(SUMS, text) for text in strategies} == strategies
    assert FOUR.strategy(SUMS, "1+2+3+4") == "1+2"  # whatever the result


@both
def test_attempts_follow_their_sketch_and_are_right_as_often_as_skill_says(task):
    """And never where the sketch is a dead end, which is so for many."""
    rng, tried, right, dead = np.random.default_rng(1), 0, 0, 0
    for problem in task.problems[:32]:
        solvable = {task.strategy(problem, text) for text in solve(problem.numbers, problem.target)}
        for sketch in task.sketches(problem):
            for text in (task.attempt(problem, sketch, rng) for _ in range(10)):
                grade = task.grade(problem, text)
                assert task.strategy(problem, text) == sketch and grade.key is not None
                if sketch in solvable:
                    tried, right = tried + 1, right + grade.solved
                else:
                    dead += 1
                    assert not grade.solved
    assert tried > 500 and dead > 500 and within(right, tried, 0.5)


@pytest.mark.parametrize("skill", [0.0, 1.0])
def test_skill_has_its_extremes(skill):
    task, rng = CountdownTask(CountdownConfig(skill=skill)), np.random.default_rng(2)
    assert {task.grade(PROBLEM, task.attempt(PROBLEM, "3*7", rng)).solved for _ in range(50)} == {skill == 1}


def test_attempts_come_in_all_their_variety():
    rng, drawn = np.random.default_rng(3), 4000
    found = Counter(THREE.attempt(PROBLEM, "3*7", rng) for _ in range(drawn))
    assert set(found) == {"(3*7)+5", "(3*7)-5", "(3*7)*5"}
    assert within(found["(3*7)+5"], drawn, 0.5) and within(found["(3*7)-5"], drawn, 0.25)
    pairs = {FOUR.attempt(SUMS, "3+4", rng) for _ in range(500)}
    assert {"(3+4)*(1+2)", "(3+4)-(1+2)", "((3+4)+1)+2"} <= pairs and "(1+2)*(3+4)" not in pairs


# ----------------------------------------------------------------------------------------- problems, prompts, warm start


@both
def test_problems_keep_the_promises_of_their_config(task):
    c = task.config
    for problem in [*task.problems, *task.held_out]:
        assert len(problem.numbers) == c.numbers and list(problem.numbers) == sorted(problem.numbers)
        assert 1 <= problem.numbers[0] and problem.numbers[-1] <= c.largest and 1 <= problem.target <= c.largest_target
        assert problem.id == f"{' '.join(map(str, problem.numbers))}={problem.target}" == task.show(problem)
    assert {n for p in THREE.problems for n in p.numbers} == set(range(1, 13))
    assert len({p.target for p in THREE.problems}) > 40


@both
def test_splits_share_no_problem(task):
    rng = np.random.default_rng(4)
    prompts = {re.split("[:?>]", prompt)[0] for prompt, _ in task.warm_start_texts(rng, 300)}
    ids = [p.id for p in task.problems], [p.id for p in task.held_out], prompts
    assert [len(set(part)) for part in ids[:2]] == [task.config.train, task.config.held_out] and len(prompts) > 200
    assert [{split_of(i) for i in part} for part in ids] == [{"train"}, {"held-out"}, {"warm start"}]


@both
def test_warm_start_texts_are_valid_tokens_and_within_their_bounds(task):
    """Tokens as `token_pattern` splits them; the line's end and the blank are in every vocabulary."""
    known, kinds, longest = {*task.words, "\n", " "}, Counter(), Counter()
    assert len(task.words) == len(set(task.words))
    for prompt, completion in task.warm_start_texts(np.random.default_rng(5), 1500):
        numbers, target, kind = re.fullmatch(r"([\d ]+)=(\d+)([:?]|>.+)\n", prompt).groups()
        problem = Countdown("", tuple(map(int, numbers.split())), int(target))
        assert set(re.findall(task.token_pattern, prompt + completion)) <= known
        lines = completion.split("\n")
        assert lines.pop() == "" and len(set(lines)) == len(lines) >= 1
        for line in lines:
            key = task.sketch_key(problem, line) if kind == "?" else task.grade(problem, line).key
            assert key is not None and (kind[0] != ">" or task.strategy(problem, line) == kind[1:])
            longest[kind[0]] = max(longest[kind[0]], len(re.findall(task.token_pattern, f"{line}\n")))
        kinds[kind[0]] += 1
    assert longest["?"] == task.sketch_max_tokens and longest[":"] == longest[">"] == task.max_tokens
    assert within(kinds[":"], 1500, 0.3) and within(kinds["?"], 1500, 0.1)


def test_words_cover_the_largest_numbers():
    for config in (CountdownConfig(largest=200), CountdownConfig(largest_target=300)):
        assert {str(n) for n in range(1, max(config.largest, config.largest_target) + 1)} <= set(CountdownTask(config).words)


@pytest.mark.parametrize("task", [THREE, CHAT], ids=["compact", "chat"])
@given(st.lists(st.text("37+* ", max_size=5), max_size=4), st.text("37+* ", max_size=5))
def test_a_longer_history_only_appends(task, history, line):
    assert task.prompt(PROBLEM, [*history, line]).startswith(task.prompt(PROBLEM, history) + line + task.stop)
    assert task.sketch_prompt(PROBLEM, [*history, line]).startswith(task.sketch_prompt(PROBLEM, history) + line + task.sketch_stop)


def test_prompts():
    assert THREE.prompt(PROBLEM, ["(3*7)+5"]) == "3 5 7=26:\n(3*7)+5\n"
    assert THREE.sketch_prompt(PROBLEM, ["3*7"]) == "3 5 7=26?\n3*7\n"
    assert THREE.expand_prompt(PROBLEM, "3*7") == "3 5 7=26>3*7\n"
    head = "<|im_start|>system\nYou're a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    asked = (
        "Solve the number puzzle. Think step by step between <think> and </think>, then write one arithmetic expression between <answer> "
        "and </answer>, for example <answer>(1 + 2) * 3</answer>.\n\n"
    )
    puzzle = "Make 26 from 3, 5, 7: use each exactly once, with +, -, *, / and brackets."
    outline = "Each is the operation to carry out first, on two of the numbers, for example 1 + 2."
    assert CHAT.prompt(PROBLEM) == f"{head}{asked}{puzzle}{END}\n<|im_start|>assistant\n"
    assert CHAT.expand_prompt(PROBLEM, "3*7") == f"{head}{asked}{puzzle}\n\nFollow this outline: 3*7{END}\n<|im_start|>assistant\n"
    assert CHAT.sketch_prompt(PROBLEM, ["3 * 7"]).startswith(f"{head}{puzzle}\n\n")
    assert CHAT.sketch_prompt(PROBLEM, ["3 * 7"]).endswith(f"{outline}{END}\n<|im_start|>assistant\n1. 3 * 7\n2. ")


def test_the_world_is_fixed_by_its_config():
    assert CountdownTask().problems == THREE.problems != CountdownTask(CountdownConfig(seed=1)).problems
    a, b, c = (THREE.warm_start_texts(np.random.default_rng(seed), 20) for seed in (1, 1, 2))
    assert a == b != c


WRONG = [{"numbers": 2}, {"numbers": 5}, {"largest": 4}, {"largest": 1001}, {"largest_target": 9}, {"largest_target": 1001}, {"skill": 2}]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_wrong_configs_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CountdownConfig(**wrong)


def test_the_smallest_world_has_problems_in_every_split_but_not_endless_ones():
    small = CountdownConfig(largest=5, largest_target=10, train=8, held_out=8)
    assert len(CountdownTask(small).warm_start_texts(np.random.default_rng(6), 8)) == 8
    with pytest.raises(ValueError, match="ask for fewer"):
        CountdownTask(CountdownConfig(largest=5, largest_target=10, train=100))
