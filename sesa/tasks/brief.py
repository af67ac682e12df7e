"""Countdown with sketches that may be cut short: how much must a sketch say?

A sketch of `sesa.tasks.countdown` names the first operation, three tokens. Here it may be its first token (a number), its first two (a
number and what to do with it), or all three. The length asked for stands in the prompt, and the warm start teaches all three; so one model
serves them all, and what differs between lengths is the sketch alone.

    3 5 7=26?1    3 5 7=26?2    3 5 7=26?3         3 5 7=26>3*
    3             3*            3*7                (3*7)+5
    5             3+            5*7
"""

import re
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np

from sesa.tasks.countdown import Countdown, CountdownConfig, CountdownTask, beginnings
from sesa.tasks.generated import lines_of, said

LENGTHS = (1, 2, 3)


@dataclass(frozen=True)
class BriefConfig(CountdownConfig):
    sketch_tokens: int = 3  # of a sketch, without the line's end. The warm start does not depend on it

    def __post_init__(self):
        super().__post_init__()
        if self.sketch_tokens not in LENGTHS or self.form != "compact":
            raise ValueError(f"sketch_tokens is 1, 2 or 3, and the form is compact: {self}")


class BriefCountdown(CountdownTask):
    """For the members see `sesa.tasks.Task`."""

    def __init__(self, config: BriefConfig = BriefConfig()):
        super().__init__(config)
        self.length = config.sketch_tokens
        self.sketch_max_tokens = self.length + 1

    def told(self, sketch: str) -> str:
        """A sketch of three tokens, cut."""
        return "".join(re.findall(r"\d+|\D", sketch)[: self.length])

    def sketch_prompt(self, problem: Countdown, history: Sequence[str] = ()) -> str:
        return lines_of(f"{self.show(problem)}?{self.length}", *history)

    def sketch_key(self, problem: Countdown, text: str) -> str | None:
        """Of three tokens: `CountdownTask`'s. Of fewer: itself, if some first operation begins with it."""
        if self.length == max(LENGTHS):
            return super().sketch_key(problem, text)
        return key if (key := said(text).strip()) in map(self.told, beginnings(problem.numbers)) else None

    def strategy(self, problem: Countdown, text: str) -> str | None:
        first = super().strategy(problem, text)
        return first and self.told(first)

    def _text(self, problem: Countdown, rng: np.random.Generator) -> tuple[str, ...]:
        """As `Puzzle` has it, for sketches of a random length. Different sketches may begin alike: of those the first stays in a list. (So
        drawn, beginnings come without replacement, in proportion to the sum over their sketches.)"""
        asked = copy(self)
        asked.length = int(rng.choice(LENGTHS))
        prompt, completion = super(BriefCountdown, asked)._text(problem, rng)
        return prompt, "".join(dict.fromkeys(completion.splitlines(keepends=True)))
