"""What a task gives: problems, prompts, and a grade for any text. One file a task; a task is any object with these members.

A `Task` is answered in one turn. An `Environment` is answered in several, each an action that changes a state; a method of sampling sees
which of the two it was given. Problems are frozen objects with an `id`, a string, unique within the task. Every prompt is exact text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from sesa.runs import derive_seed


@dataclass(frozen=True, slots=True)
class Grade:
    """reward: what the policy earns. key: what makes two answers the same answer; None when the text is no valid answer.
    solved: whether it counts as right, which a reward with parts for form or for the way does not say."""

    reward: float
    key: str | None
    solved: bool


class Task(Protocol):
    """Answered in one turn."""

    stop: str  # ends a candidate
    max_tokens: int  # of a solution
    sketch_stop: str  # ends a sketch
    sketch_max_tokens: int

    def prompt(self, problem: Any, history: Sequence[str] = ()) -> str:
        """Asks for a solution that differs from those in `history`. A longer history only appends: one growing list."""
        ...

    def sketch_prompt(self, problem: Any, history: Sequence[str] = ()) -> str:
        """The same for a sketch."""
        ...

    def expand_prompt(self, problem: Any, sketch: str) -> str:
        """Asks for the solution that `sketch` outlines."""
        ...

    def grade(self, problem: Any, text: str) -> Grade:
        """Total: any string gets a grade, none an exception, none a hang."""
        ...

    def sketch_key(self, problem: Any, text: str) -> str | None:
        """What makes two sketches the same; None when the text is no valid sketch. Total."""
        ...


class Step(NamedTuple):
    """What an action leads to."""

    state: Any
    reward: float  # of this turn alone
    done: bool  # no further turn: solved, failed, or a limit is reached
    solved: bool


class Environment(Protocol):
    """Answered in several turns. A state is a value that nothing changes: a group branches from it as often as it likes."""

    stop: str  # ends a turn
    max_tokens: int  # of a turn

    def reset(self, problem: Any) -> Any:
        """The first state."""
        ...

    def observe(self, problem: Any, state: Any, proposals: Sequence[str] = ()) -> str:
        """What the policy reads at `state`, after all that was written before; it asks for a turn that differs from `proposals`, which
        were written in this very place. A longer list of proposals only appends."""
        ...

    def action_key(self, problem: Any, text: str) -> str | None:
        """What makes two turns the same; None when the text holds no valid action. Total."""
        ...

    def step(self, problem: Any, state: Any, text: str, seed: int) -> Step:
        """Carries out a turn; all chance comes from `seed`. Total in `text`: what is no action costs a penalty, and changes nothing else."""
        ...


def is_environment(task: Any) -> bool:
    """Whether a task is answered in several turns: it has what an `Environment` does, itself or by `__getattr__`, as in `sesa.tasks.chat`.

    Not `isinstance`: since Python 3.12 a protocol does not see what `__getattr__` gives.
    """
    return all(hasattr(task, name) for name in ("reset", "observe", "action_key", "step"))


def split_of(name: str) -> str:
    """"held-out", "tuning", "train" or "warm start": a problem belongs to one of them by the hash of its name, so no two can share one."""
    place = derive_seed("split", name) % 10
    return "held-out" if place < 2 else "tuning" if place < 3 else "train" if place < 5 else "warm start"


def modules_of(task: Any) -> str:
    """Where a task's code is, as `import` takes it: "sesa.tasks.math"; of one within another (`sesa.tasks.chat`), of both."""
    inner = getattr(task, "task", None)
    return type(task).__module__ if inner is None else f"{type(task).__module__}, {modules_of(inner)}"
