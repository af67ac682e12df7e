"""Open requests, which no verifier can grade: uses of a paperclip, first sentences of a story.

As with places (`sesa.tasks.places`), an answer is one line of the model's own numbered list, whose first line is an example of ours: the
form that a small model keeps to. Of six ways to ask, tried with six of the requests, this one is taken: asked less firmly to differ, a small
model goes on with the line before. A sketch is what a line is about, in a few words; a solution then stands behind its sketch. Any line with
a word in it counts as an answer; whether it is a good one is not known here.  (All of it our choice; requests and examples are ours too.)
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from sesa.tasks import Grade
from sesa.tasks.generated import SYSTEM, chatml, numbered, said

REQUESTS = (  # what to list; an example, and what it is about
    ("uses of a paperclip", "Hold the pages of a letter together.", "holding paper"),
    ("first sentences of a story that begins with rain", "It had rained for nine days when the letter came.", "a letter"),
    ("excuses for being late", "My bicycle had a flat tyre on the bridge.", "a broken bicycle"),
    ("ways to cheer up a friend", "Cook their favourite soup and bring it over.", "food"),
    ("inventions that the world could use", "An umbrella that dries itself in a minute.", "umbrellas"),
    ("questions to ask a stranger on a train", "What did you want to become as a child?", "childhood"),
    ("ideas for a children's book", "A snail enters a race and wins by accident.", "a snail"),
    ("descriptions of the sea", "The sea lay flat and grey like a sheet of lead.", "calm water"),
    ("uses of an empty glass jar", "Keep buttons and thread in it.", "sewing"),
    ("things to do on a free afternoon", "Walk along the river and feed the ducks.", "a walk"),
    ("headlines from a newspaper in the year 2100", "First school opens on the Moon.", "space"),
    ("advice for a new teacher", "Learn every name in the first week.", "names"),
    ("reasons to learn to swim", "It keeps you safe when a boat turns over.", "safety"),
    ("gifts for a grandmother", "A framed photo of the whole family.", "photos"),
    ("experiments for a science class", "Grow beans in the light and in the dark.", "plants"),
    ("last sentences of a story about a journey", "She put the key on the table and did not look back.", "leaving"),
    ("ways to save water at home", "Turn off the tap while you brush your teeth.", "brushing teeth"),
    ("slogans for a small bakery", "Bread that is worth getting up for.", "mornings"),
    ("dreams that a dog may have", "It chases a rabbit made of bread.", "hunting"),
    ("things that a robot could say at breakfast", "Good morning, your toast is ready.", "toast"),
)


@dataclass(frozen=True)
class OpenTextConfig:
    form: ClassVar[str] = "chat"  # there is no other


@dataclass(frozen=True)
class Request:
    """One thing to list."""

    id: str
    what: str  # in words, "uses of a paperclip"
    example: str
    about: str  # the example's sketch


class OpenTextTask:
    """For the members see `sesa.tasks.Task`."""

    stop = sketch_stop = "\n"
    max_tokens, sketch_max_tokens = 24, 8

    def __init__(self, config: OpenTextConfig = OpenTextConfig()):
        self.config = config
        self.problems = self.held_out = [Request(what, what, *rest) for what, *rest in REQUESTS]

    def prompt(self, problem: Request, history: Sequence[str] = ()) -> str:
        return _list(problem.what, "One short line each", problem.example, history)

    def sketch_prompt(self, problem: Request, history: Sequence[str] = ()) -> str:
        return _list(f"topics for {problem.what}", "A few words each", problem.about, history)

    def expand_prompt(self, problem: Request, sketch: str) -> str:
        return _list(problem.what, "One short line each, behind its topic", f"{problem.about}: {problem.example}", ()) + f" {sketch.strip()}:"

    def grade(self, problem: Request, text: str) -> Grade:
        """Reward 1 for a line with a word in it; the key is its words, in small letters."""
        key = " ".join(words(said(text).partition("\n")[0])) or None
        return Grade(float(key is not None), key, key is not None)

    def sketch_key(self, problem: Request, text: str) -> str | None:
        return self.grade(problem, text).key


def words(text: str) -> list[str]:
    """The words of a text in small letters, without punctuation: "Don't stop!" gives don't, stop."""
    return re.findall(r"\w+(?:['’]\w+)*", text.lower())


def _list(what: str, form: str, example: str, history: Sequence[str]) -> str:
    """The assistant's own numbered list, open at its next item."""
    items = [f" {example}", *history]  # an item's text begins with its blank
    return chatml(SYSTEM, ("user", f"Make a list of twenty very different {what}. {form}, no two alike.")) + numbered(items)
