"""Countdown: combine three or four numbers with + - * / and brackets so that they make the target.

TinyZero's and RAGEN's rule: every number is used *exactly* once (the television game lets some be left over). Problems are generated, of
their fields, numbers and target. A *sketch* is the operation to carry out first, on two of the numbers: 3*7 for the solution (3*7)+5 of
3 5 7=26. Most are dead ends, a favourite no less than any other, so whoever tries the favourites alone solves little.

What is written here stays within the positive integers, so every problem has a solution; the grader takes all fractions, exactly.
"""

import ast
import operator
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

import numpy as np

from sesa.tasks import Grade
from sesa.tasks.generated import Puzzle, PuzzleConfig, answer_of, said

OPERATORS = {ast.Add: ("+", operator.add), ast.Mult: ("*", operator.mul), ast.Sub: ("-", operator.sub), ast.Div: ("/", operator.truediv)}
TEXT = re.compile(r"([0-9+\-*/() ]{1,200})(?:= *[0-9]{1,9} *)?")  # "(3*7)+5", and perhaps "= 26" after it
Item = tuple[int, str]  # a value and what makes it, in brackets unless it is a given number: (21, "(3*7)")


@dataclass(frozen=True)
class Countdown:
    id: str  # "3 5 7=26"
    numbers: tuple[int, ...]  # ascending
    target: int


class Expression(NamedTuple):
    value: Fraction
    key: str  # itself, in brackets but for the outermost; what + and * join in one order: expressions first, small numbers first
    first: str  # key of the operation to carry out first: the leftmost on two numbers; "" of a number
    numbers: list[int]


def read(text: str) -> Expression | None:
    """The expression that `text` is, with Python's precedence: numbers, the four operators between two, brackets, blanks; a result after
    it, "= 26", is passed over. None if it is none, has no value, or is longer than 200 characters. Total; text is parsed, never run."""
    match = TEXT.fullmatch(text.strip())
    try:
        return _expression(ast.parse(match[1].strip(), mode="eval").body) if match else None
    except (SyntaxError, ValueError, RecursionError, MemoryError, ZeroDivisionError):
        return None


def _expression(node: ast.expr) -> Expression:
    match node:
        case ast.Constant(value=number):
            return Expression(Fraction(number), str(number), "", [number])
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            sign, apply = OPERATORS[type(op)]
            a, b = _expression(left), _expression(right)
            parts = [f"({x.key})" if x.first else x.key for x in (a, b)]
            if sign in "+*":
                parts.sort(key=lambda part: (part[0] != "(", len(part), part))
            key = sign.join(parts)
            return Expression(apply(a.value, b.value), key, a.first or b.first or key, a.numbers + b.numbers)
    raise ValueError("not one of the four operations")


def _moves(items: list[Item]) -> Iterator[list[Item]]:
    """Every way to join two items to a positive integer. Lists have expressions before numbers, the oldest first."""
    for i, j in combinations(range(len(items)), 2):
        (a, s), (b, t) = pair = items[i], items[j]
        made = [(a + b, f"({s}+{t})"), (a * b, f"({s}*{t})")]
        # Of two expressions the older stays left, so that a text begins with the sketch it was made for.
        for (a, s), (b, t) in (pair,) if t[0] == "(" else (pair, pair[::-1]):
            made += [(a - b, f"({s}-{t})")] if a > b else []
            made += [(a // b, f"({s}/{t})")] if a % b == 0 else []
        others = [item for k, item in enumerate(items) if k not in (i, j)]
        yield from (sorted([*others, new], key=lambda item: item[1][0] != "(") for new in made)


@lru_cache(4096)
def beginnings(numbers: tuple[int, ...]) -> dict[str, list[Item]]:
    """Every first operation on `numbers` (ascending), as "3*7", and the items it leaves."""
    return {items[0][1][1:-1]: items for items in _moves([(n, str(n)) for n in numbers])}


@lru_cache(4096)
def completions(numbers: tuple[int, ...], sketch: str) -> list[Item]:
    """Every expression of all `numbers` (ascending) that carries out `sketch` first, without outer brackets, and its value."""
    states = [beginnings(numbers)[sketch]]
    for _ in numbers[2:]:
        states = [after for items in states for after in _moves(items)]
    return list(dict.fromkeys((value, text[1:-1]) for ((value, text),) in states))


def solve(numbers: tuple[int, ...], target: int) -> list[str]:
    """Every solution within the positive integers; `numbers` ascending. (a+b)*(c+d) has two beginnings, and comes in both orders."""
    return [text for sketch in beginnings(numbers) for value, text in completions(numbers, sketch) if value == target]


@dataclass(frozen=True)
class CountdownConfig(PuzzleConfig):
    numbers: int = 3  # or 4
    largest: int = 12  # numbers are drawn from 1..largest
    largest_target: int = 100  # a target is what a random expression of them makes

    def __post_init__(self):
        super().__post_init__()
        if self.numbers not in (3, 4) or not (5 <= self.largest <= 1000 and 10 <= self.largest_target <= 1000):  # less may empty a split
            raise ValueError(f"numbers is 3 or 4, largest lies in 5..1000, largest_target in 10..1000: {self}")


class CountdownTask(Puzzle):
    """For the members see `sesa.tasks.Task`. RAGEN's rewards: 1 for the target, 0.1 for the right numbers with another result, else 0."""

    instruction = (
        "Solve the number puzzle. Think step by step between <think> and </think>, then write one arithmetic expression between <answer> "
        "and </answer>, for example <answer>(1 + 2) * 3</answer>."
    )
    outline = "Each is the operation to carry out first, on two of the numbers, for example 1 + 2."

    def __init__(self, config: CountdownConfig = CountdownConfig()):
        self.words = [*map(str, range(1, max(config.largest, config.largest_target) + 1)), *"+-*/()=:?>"]
        self.compact_tokens = 4 * config.numbers - 4, 4  # "(3*7)+5\n": every further number brings an operator and two brackets
        super().__init__(config)

    def generate(self, rng: np.random.Generator) -> Countdown:
        while True:
            numbers = tuple(sorted(rng.integers(1, self.config.largest + 1, size=self.config.numbers).tolist()))
            made = completions(numbers, str(rng.choice(list(beginnings(numbers)))))
            target = made[rng.integers(len(made))][0]
            if target <= self.config.largest_target:
                return Countdown(f"{' '.join(map(str, numbers))}={target}", numbers, target)

    def show(self, problem: Countdown) -> str:
        return problem.id

    def question(self, problem: Countdown) -> str:
        return f"Make {problem.target} from {', '.join(map(str, problem.numbers))}: use each exactly once, with +, -, *, / and brackets."

    def sketches(self, problem: Countdown) -> list[str]:
        """First operations to a positive integer: sums, products, differences, quotients, the largest of each first.  (Our choice.)"""
        left = beginnings(problem.numbers)
        return sorted(left, key=lambda sketch: ("+*-/".index(sketch.strip("0123456789")), -left[sketch][0][0]))

    def useful(self, problem: Countdown) -> list[str]:
        return [sketch for sketch in beginnings(problem.numbers) if problem.target in dict(completions(problem.numbers, sketch))]

    def attempt(self, problem: Countdown, sketch: str, rng: np.random.Generator) -> str:
        every = completions(problem.numbers, sketch)
        right = [text for value, text in every if value == problem.target]
        # Some are wrong: the last two items have a sum and a product, equal only if both are 2, and then they have a quotient.
        texts = right if right and rng.random() < self.config.skill else [text for _, text in every if text not in right]
        return texts[rng.integers(len(texts))]

    def in_chat(self, problem: Countdown, solution: str) -> str:
        return f"<answer>{solution}</answer>"

    def grade(self, problem: Countdown, text: str) -> Grade:
        answer = self._answer(problem, text)
        solved = answer is not None and answer.value == problem.target
        return Grade(1.0 if solved else 0.1 if answer else 0.0, answer and answer.key, solved)

    def sketch_key(self, problem: Countdown, text: str) -> str | None:
        found = read(said(text))
        return found.key if found and len(found.numbers) == 2 and Counter(found.numbers) <= Counter(problem.numbers) else None

    def strategy(self, problem: Countdown, text: str) -> str | None:
        answer = self._answer(problem, text)
        return answer and answer.first

    def _answer(self, problem: Countdown, text: str) -> Expression | None:
        found = read(said(text) if self.config.form == "compact" else answer_of(text) or "")
        return found if found and tuple(sorted(found.numbers)) == problem.numbers else None
