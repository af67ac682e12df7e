"""What a task gives: problems, prompts, and a grade for any text. One file a task; a task is any object with these members."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Grade:
    """reward: what the policy earns. key: what makes two answers the same answer; None when the text is no valid answer."""

    reward: float
    key: str | None


class Task(Protocol):
    """Problems are frozen objects with an `id` (a string, unique within the task). Every prompt is exact text."""

    stop: str  # ends a candidate
    max_tokens: int  # of a solution
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
