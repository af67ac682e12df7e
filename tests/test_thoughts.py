"""What stands inside a thought never counts, in any task: no answer, no action, no sketch."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sesa.runs import ROOT
from sesa.tasks.agent import INVALID
from sesa.tasks.brief import BriefConfig, BriefCountdown
from sesa.tasks.countdown import Countdown, CountdownConfig, CountdownTask
from sesa.tasks.frozen_lake import FrozenLake, FrozenLakeConfig
from sesa.tasks.generated import said
from sesa.tasks.math import HubMath, HubProblem, MathConfig, MathTask
from sesa.tasks.open_text import OpenTextTask
from sesa.tasks.paths import PathConfig, PathTask
from sesa.tasks.places import PlacesTask
from sesa.tasks.sokoban import Sokoban, SokobanConfig
from sesa.tasks.sudoku import SudokuConfig, SudokuTask

FEW = {"train": 2, "held_out": 2}
CASES = json.loads((ROOT / "tests" / "cases" / "04_answers_in_thought.json").read_text(encoding="utf-8"))
COUNTDOWN, SUDOKU = CountdownTask(CountdownConfig(form="chat", **FEW)), SudokuTask(SudokuConfig(form="chat", **FEW))
LAKE, ROOM = FrozenLake(FrozenLakeConfig(form="chat", **FEW)), Sokoban(SokobanConfig(form="chat", **FEW))
MATH, HUB = MathTask(MathConfig(form="chat", **FEW)), HubMath([HubProblem("7", "What is 3 + 4?", "7")])
COMPACT = [
    MathTask(MathConfig(**FEW)), CountdownTask(CountdownConfig(**FEW)), SudokuTask(SudokuConfig(**FEW)), BriefCountdown(BriefConfig(sketch_tokens=2, **FEW)),
    PathTask(PathConfig()), OpenTextTask(), PlacesTask(),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>a</think>b", " b"), ("b<think>a</think>c", "b c"), ("b<think>a", "b "), ("a</think>b", "b"), ("a</think>b</think>c", "c"),
        ("<think><think>a</think>b</think>c", "c"), ("<THINK>a</Think>b", " b"), ("< think >a</ think >b", " b"), ("<thinking>a</thinking>b", " b"),
        ("<reasoning>a", " "), ("[THINK]a[/THINK]b", " b"), ("I think so", "I think so"), ("a < think", "a < think"), ("<thinker>a", "<thinker>a"), ("", ""),
        ("◁think▷a◁/think▷b", " b"), ("<seed:think>a</seed:think>b", " b"), ("<|begin_of_thought|>a<|end_of_thought|>b", " b"),
        ("<|START_THINKING|>a<|END_THINKING|>b", " b"), ("<|think|>a<|/think|>b", " b"), ("<thoughts>a", " "), ("<scratchpad>a</scratchpad>b", " b"),
        ("|think| a", "|think| a"), ("[think about it]", "[think about it]"), ("<end_thought>", "<end_thought>"),
        ("<thi<think>a</think>nk>b", "<thi nk>b"),
    ],
)  # fmt: skip
def test_said(text, left):
    assert said(text) == left


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["task"])
def test_the_cases(case):
    if case["task"] == "countdown":
        problem = Countdown(case["problem"], (2, 6, 9), 21)
        assert COUNTDOWN.grade(problem, case["text"]).reward == case["reward"] and COUNTDOWN.grade(problem, "<answer>9+2*6</answer>").reward == 1
    elif case["task"] == "sudoku":
        problem = SUDOKU.problems[0]
        text = case["text"].replace("{solution}", problem.solution)
        assert SUDOKU.grade(problem, text).reward == case["reward"] and SUDOKU.grade(problem, text.replace("think", "b")).reward == 1
    else:
        problem = LAKE.problems[0]
        assert LAKE.actions_in(case["text"]) == (case["actions"], False)
        step = LAKE.step(problem, LAKE.reset(problem), case["text"], 0)
        assert step.reward == INVALID and step.state.place == LAKE.place(problem)


def answers(task, problem) -> list[str]:
    """Texts that earn something, of this problem."""
    if task in (MATH, HUB):
        return [rf"so \boxed{{{problem.answer}}}", f"<answer>{problem.answer}</answer>"]
    if task is SUDOKU:
        return [f"<answer>{problem.solution}</answer>"]
    solution = f"{problem.numbers[0]}" + "".join(f"+{n}" for n in problem.numbers[1:])
    return [f"<answer>{solution}</answer>"]


@pytest.mark.parametrize("task", [MATH, HUB, SUDOKU, COUNTDOWN], ids=lambda task: type(task).__name__)
def test_an_answer_in_a_thought_is_none(task):
    for problem in task.problems:
        for text in answers(task, problem):
            right = task.grade(problem, text)
            assert right.reward > 0 and right.key
            for thought in (f"<think>{text}", f"<think>{text}</think>", f"{text}</think>", f"<think>hm, {text}</think> I give up.", f"<THINKING>{text}"):
                nothing = task.grade(problem, thought)
                assert (nothing.reward, nothing.key, nothing.solved) == (0.0, None, False)
                assert task.strategy(problem, thought) is None
            for answer in (f"<think>{text[::-1]}</think>{text}", f"{text}<think>no: {text[::-1]}", f"let me see</think>{text}"):
                assert task.grade(problem, answer) == right


@pytest.mark.parametrize("task", [LAKE, ROOM])
def test_an_action_in_a_thought_is_none(task):
    problem = task.problems[0]
    for thought in ("<think><answer>Up</answer>", "<think><answer>Up</answer></think> so", "<answer>Up</answer></think>"):
        assert task.action_key(problem, thought) is None
        assert task.step(problem, task.reset(problem), thought, 0).reward == INVALID
        assert task.action_key(problem, f"{thought.removesuffix('</think>')}</think><answer>Down</answer>") == "D"


ANY = st.text("abx0123456789+-*/=;#<>()ouinr \n", max_size=40).filter(lambda text: said(f"<think>{text}</think>!") == " !")


@given(ANY, ANY, ANY)
@settings(max_examples=60, deadline=None)
def test_a_thought_changes_no_grade(thought, other, text):
    for task in [*COMPACT, COUNTDOWN, SUDOKU]:
        problem = task.problems[0]
        for read in (task.grade, task.sketch_key, *([task.strategy] if hasattr(task, "strategy") else [])):
            assert read(problem, f"<think>{thought}</think>{text}") == read(problem, f"<think>{other}</think>{text}")
            assert read(problem, f"{text}<think>{thought}") == read(problem, f"{text}<think>{other}")
            assert read(problem, f"{thought}</think>{text}") == read(problem, f"{other}</think>{text}")
    for task in (LAKE, ROOM):
        assert task.actions_in(f"<think>{thought}</think>{text}") == task.actions_in(f"<think>{other}</think>{text}")


def test_answers_behind_a_long_thought_are_read():
    paths, math = COMPACT[4], COMPACT[0]
    path = min(paths.problems[0].treasures)
    solution = math.problems[0].work(math.sketches(math.problems[0])[0])[0]
    for task, text in ((paths, path), (math, solution)):
        problem = task.problems[0]
        assert task.grade(problem, f"<think>{'hm ' * 1000}</think>{text}") == task.grade(problem, text)
        assert task.grade(problem, text).key


def test_sketches_and_lines_behind_a_thought_are_read():
    numbers = COUNTDOWN.problems[0].numbers
    sketch = f"{numbers[0]}+{numbers[1]}"
    assert COUNTDOWN.sketch_key(COUNTDOWN.problems[0], f"<think>hm</think> {sketch}") == COUNTDOWN.sketch_key(COUNTDOWN.problems[0], sketch)
    assert MATH.sketch_key(MATH.problems[0], "<think>Pair them</think>") is None
    assert MATH.sketch_key(MATH.problems[0], "<think>Pair them</think>Add up") == "add up"
    uses = OpenTextTask()
    assert uses.grade(uses.problems[0], "<think>what is there?</think> Hold pages.").key == "hold pages"
    places = PlacesTask()
    assert places.grade(places.problems[0], "<think>Oslo?</think> Asia > Japan > Tokyo").key == "Asia > Japan > Tokyo"
