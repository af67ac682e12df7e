"""Places that a pretrained language model knows: continent > country > city, or a state of the US > city.

What path exploration (`sesa.tasks.paths`) is to a tiny LM that was taught its world, this is to one that has read about ours: name places
not named before. A list is the model's own turn, a numbered list that goes on; of four forms tried this is the one that a small model keeps
to. An answer is right if it stands in `data/places.csv`, well-known cities and no more, so "wrong" may be true.  (All of it our choice.)
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from sesa.runs import ROOT, verified_text
from sesa.tasks import Grade
from sesa.tasks.generated import SYSTEM, chatml, numbered, said

DATA = ROOT / "data" / "places.csv"
ASKED = {  # what to list, an item's form, and an example; of solutions and of sketches
    "world": (
        ("cities of the world", "continent > country > city", "Asia > Japan > Tokyo"),
        ("countries of the world", "continent > country", "Asia > Japan"),
    ),
    "us": (
        ("cities of the United States", "state > city", "Texas > Houston"),
        ("states of the United States", "state", "Texas"),
    ),
}


@dataclass(frozen=True)
class PlacesConfig:
    tree: str = "world"  # or "us"
    form: ClassVar[str] = "chat"  # there is no other

    def __post_init__(self):
        if self.tree not in ASKED:
            raise ValueError(f"tree is one of {', '.join(ASKED)}, not {self.tree!r}")


@dataclass(frozen=True)
class Places:
    """The one problem of a tree."""

    id: str


class PlacesTask:
    """For the members see `sesa.tasks.Task`. `paths`: all answers, "Europe > France > Paris". A sketch is all but the city."""

    stop = sketch_stop = "\n"
    max_tokens, sketch_max_tokens = 20, 14

    def __init__(self, config: PlacesConfig = PlacesConfig()):
        self.config = config
        self.paths = [row["path"] for row in csv.DictReader(verified_text(DATA).splitlines()) if row["tree"] == config.tree]
        self.problems = self.held_out = [Places(config.tree)]
        self._keys = {_plain(path): path for path in self.paths}
        self._parents = {_plain(parent): parent for parent in (path.rpartition(" > ")[0] for path in self.paths)}

    def prompt(self, problem: Places, history: Sequence[str] = ()) -> str:
        return _list(*ASKED[problem.id][0], history)

    def sketch_prompt(self, problem: Places, history: Sequence[str] = ()) -> str:
        return _list(*ASKED[problem.id][1], history)

    def expand_prompt(self, problem: Places, sketch: str) -> str:
        """The example is a turn of its own, about another place: in one list with it a small model goes on with that place."""
        _, form, example = ASKED[problem.id][0]
        asked = [f"List cities of {place}, each as {form}." for place in (example.rpartition(" > ")[0], sketch.strip())]
        return chatml(SYSTEM, ("user", asked[0]), ("assistant", f"1. {example}"), ("user", asked[1])) + "1."

    def grade(self, problem: Places, text: str) -> Grade:
        """Reward 1 for a path of the tree; the key is the path. Blanks and capitals are forgiven."""
        key = self._keys.get(_plain(text))
        return Grade(float(key is not None), key, key is not None)

    def sketch_key(self, problem: Places, text: str) -> str | None:
        return self._parents.get(_plain(text))


def _plain(text: str) -> str:
    return " > ".join(" ".join(name.split()).lower() for name in said(text)[:200].split(">"))


def _list(what: str, form: str, example: str, history: Sequence[str]) -> str:
    """The assistant's own numbered list, open at its next item. The example is its first one: without it a small model writes other forms."""
    items = [f" {example}", *history]  # an item's text begins with its blank
    return chatml(SYSTEM, ("user", f"List different {what}, each as {form}.")) + numbered(items)
