"""Open requests: well-formed, growing lists, a grade for any text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sesa.engines import Completion
from sesa.sampling import Sampling, sequential, sesa
from sesa.tasks.open_text import OpenTextTask, words

TASK = OpenTextTask()
FIRST = TASK.problems[0]


def test_requests_are_different_and_on_one_line():
    assert len(TASK.problems) == len({p.id for p in TASK.problems}) == len({p.example for p in TASK.problems}) == 20
    for problem in TASK.problems:
        assert all(text == text.strip() and text and "\n" not in text for text in (problem.what, problem.example, problem.about))
        assert TASK.grade(problem, problem.example).solved and TASK.sketch_key(problem, problem.about)


@pytest.mark.parametrize("prompt", [TASK.prompt, TASK.sketch_prompt])
def test_a_longer_history_only_appends(prompt):
    history = [" Pick a lock.", " Clean a comb."]
    assert prompt(FIRST, history).endswith("\n2. Pick a lock.\n3. Clean a comb.\n4.")
    for i in range(2):
        assert prompt(FIRST, history).startswith(prompt(FIRST, history[:i]) + history[i] + "\n")


def test_a_topic_stands_before_its_line():
    assert TASK.expand_prompt(FIRST, " locks ").endswith("assistant\n1. holding paper: Hold the pages of a letter together.\n2. locks:")


def test_the_key_is_the_words():
    assert TASK.grade(FIRST, " **Pick** a lock!").key == TASK.grade(FIRST, "pick a  LOCK").key == "pick a lock"
    assert words("Don't stop, it’s 9 o'clock.") == ["don't", "stop", "it’s", "9", "o'clock"]
    assert [TASK.grade(FIRST, text).key for text in ("", " ... ", "\nPick a lock.")] == [None] * 3


@given(st.text())
def test_any_text_gets_a_grade(text):
    grade = TASK.grade(FIRST, text)
    assert grade.solved == (grade.key is not None) == bool(grade.reward)
    TASK.sketch_key(FIRST, text)
    TASK.expand_prompt(FIRST, text)


class Echo:
    """Writes how many lines its list has."""

    def generate(self, prompts, **_):
        return [Completion(f" item {prompt.rpartition('assistant')[2].count(chr(10)) - 1}", True) for prompt in prompts]


def test_lists_and_topics_of_two_requests():
    problems = TASK.problems[:2]
    for group in sequential(Echo(), TASK, problems, Sampling(3), 0):
        assert [r.text for r in group.rollouts] == [" item 1", " item 2", " item 3"] and all(r.solved for r in group.rollouts)
    for group in sesa(Echo(), TASK, problems, Sampling(3), 0):
        assert [r.sketch for r in group.rollouts] == [" item 1", " item 2", " item 3"] and group.rollouts[2].prompt.endswith("2. item 3:")
