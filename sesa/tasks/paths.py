"""Path exploration, the paper's synthetic task (Section 2): walk province > city > district and find places not seen before.

What is known of the paper's version is that the policy names paths through a hierarchy (province > city > district, according to a
second-hand summary), and that distinct paths and Coverage@32 are counted. The prior over the paths, the maps and their treasures are our choice:

- a *tree*: China's provinces, cities and districts in pinyin (`data/china_divisions.csv`), whole or cut to a balanced sub-tree;
- a *prior*: at every node the children have probabilities rank^-exponent (Zipf), the ranking shuffled per node, so a few paths carry
  most of the mass, as a language model's favourite answers do;
- *maps*: problems that share the prior and differ in which paths hold a treasure (reward 1).

All texts consist of lines. A prompt ends with a line that says what to list; a candidate is one line, and a history is the lines above it:

    map7 districts          map7 cities             map7 from Hunan/Shaoyang
    Hunan/Shaoyang/Wugang   Hunan/Shaoyang          Hunan/Shaoyang/Wugang
    Hunan/Changsha/Liuyang  Anhui/Hefei

That is for a tiny LM, whose whole language it is. For an instruction-tuned one there is the chat form, in ChatML: the same lists, numbered, in
the assistant's turn. What a pretrained LM knows of China is then its own, and the prior is that of the warm start's texts alone.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from sesa.runs import ROOT, DataError, derive_seed, verified_text
from sesa.tasks import Grade
from sesa.tasks.generated import FORMS, SYSTEM, as_list, chatml, numbered, said

DATA = ROOT / "data" / "china_divisions.csv"
LEVELS = ("provinces", "cities", "districts")

Tree = dict[str, dict[str, tuple[str, ...]]]  # province -> city -> districts


def load_tree(provinces: int | None = None, cities: int | None = None, districts: int | None = None) -> Tree:
    """The tree of `data/china_divisions.csv`, in the order of the file (official codes).

    With all three numbers given: the first `provinces` provinces that have `cities` cities of `districts` districts each, and of
    every node the first so many children; a balanced sub-tree of provinces * cities * districts leaves. With none: the full tree.

    Raises:
        DataError: the file is missing, its SHA-256 is not the one in `data/SHA256SUMS`, or the tree is not that large.
        ValueError: some of the three numbers are given, others not.
    """
    rows = list(csv.DictReader(verified_text(DATA).splitlines()))
    names = [(r.get("province"), r.get("city"), r.get("district")) for r in rows]
    if not rows or len(set(names)) < len(names) or not all(n and n.isalpha() for path in names for n in path):
        raise DataError(f"{DATA.name} is not a tree of named paths, each once; restore it from git (`git checkout data/`)")
    tree: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        tree.setdefault(row["province"], {}).setdefault(row["city"], []).append(row["district"])
    full: Tree = {p: {c: tuple(ds) for c, ds in cs.items()} for p, cs in tree.items()}
    sizes = (provinces, cities, districts)
    if sizes == (None, None, None):
        return full
    if None in sizes:
        raise ValueError("give all of provinces, cities and districts for a balanced sub-tree, or none for the full tree")
    if min(sizes) < 1:
        raise ValueError(f"a sub-tree needs at least 1 of each, not {sizes}")
    balanced = {}
    for p, cs in full.items():
        roomy = [c for c, ds in cs.items() if len(ds) >= districts][:cities]
        if len(roomy) == cities and len(balanced) < provinces:
            balanced[p] = {c: cs[c][:districts] for c in roomy}
    if len(balanced) < provinces:
        raise DataError(
            f"only {len(balanced)} provinces have {cities} cities of {districts} districts, not {provinces}: ask for fewer"
        )
    return balanced


@dataclass(frozen=True)
class Prior:
    """A distribution over the leaves: `paths[i]`, "Province/City/District", has probability `p[i]` (float64, sums to 1)."""

    paths: tuple[str, ...]
    p: np.ndarray


def zipf_prior(tree: Tree, exponent: float, seed: int) -> Prior:
    """At every node, child of rank r (from 1, the ranks shuffled per node by `seed`) has probability r^-exponent / Z.  (Our choice.)"""
    rng = np.random.default_rng(seed)

    def ranked(n: int) -> np.ndarray:
        weight = rng.permutation(np.arange(1, n + 1) ** -float(exponent))
        return weight / weight.sum()

    paths, p = [], []
    for province, p1 in zip(tree, ranked(len(tree)), strict=True):
        for city, p2 in zip(tree[province], ranked(len(tree[province])), strict=True):
            districts = tree[province][city]
            for district, p3 in zip(districts, ranked(len(districts)), strict=True):
                paths.append(f"{province}/{city}/{district}")
                p.append(p1 * p2 * p3)
    return Prior(tuple(paths), np.array(p))


@dataclass(frozen=True)
class Map:
    """A problem: the paths in `treasures` earn reward 1."""

    id: str
    treasures: frozenset[str]


def make_maps(
    prior: Prior,
    n: int,
    seed: int,
    treasures: int = 3,
    head: float = 0.02,
    tail: tuple[float, float] = (5e-4, 4e-3),
) -> list[Map]:
    """`n` maps that differ in their treasures: every second map has one treasure in the head, all others lie in the tail.

    head: a path is in the head if its prior probability is above this; tail: (low, high), the probabilities of the tail. (Our choice.)

    Raises:
        ValueError: the two ranges overlap, or this prior has too few paths in one of them.
    """
    if tail[1] > head:
        raise ValueError(f"the tail {tail} reaches into the head, above {head}: a treasure would lie in both")
    rng = np.random.default_rng(seed)
    heads = np.flatnonzero(prior.p > head)
    tails = np.flatnonzero((prior.p >= tail[0]) & (prior.p <= tail[1]))
    if len(heads) < 1 or len(tails) < treasures:
        raise ValueError(
            f"{len(heads)} paths have prior probability above {head} and {len(tails)} lie in {tail}: "
            f"too few for {treasures} treasures a map; change `head`, `tail` or the prior's exponent"
        )
    maps = []
    for i in range(n):
        chosen = rng.choice(tails, size=treasures, replace=False)
        if i % 2 == 0:
            chosen[0] = rng.choice(heads)
        maps.append(Map(f"map{i}", frozenset(prior.paths[j] for j in chosen)))
    return maps


@dataclass(frozen=True)
class PathConfig:
    """A world of paths, and how its language is taught; all of it our choice."""

    provinces: int | None = 8  # None for all three: the full tree
    cities: int | None = 6
    districts: int | None = 6
    exponent: float = 2.5  # of the Zipf prior at every node
    maps: int = 64
    seed: int = 0  # of the prior's rankings and of the treasures
    sketch_level: int = 2  # levels that a sketch names: 1 (province) to 3 (the whole path)
    # The warm start: lists of `list_items` paths, lists of sketches, and for the rest expansions of a sketch. An expansion is a tenth as long
    # as a list, and what is rarely seen is not learned: with one expansion in ten texts, one in six follows its sketch afterwards.
    list_share: float = 0.2
    sketch_share: float = 0.1
    list_items: tuple[int, int] = (4, 32)
    # How well "a different one" is obeyed: the share of lists without repetition; the others are drawn with replacement.
    distinct_share: float = 1.0
    # And by how much where a list is without repetition: each next item respects those before it with this probability, else it is drawn as
    # if there were none.
    obedience: float = 1.0
    form: str = "compact"  # or "chat"

    def __post_init__(self):
        if self.form not in FORMS:
            raise ValueError(f"form is one of {', '.join(FORMS)}, not {self.form!r}")
        if self.sketch_level not in (1, 2, 3):
            raise ValueError(f"sketch_level is 1, 2 or 3 levels of the path, not {self.sketch_level}")
        for name in ("distinct_share", "obedience"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share, 0 to 1, not {getattr(self, name)}")
        if min(self.list_share, self.sketch_share) < 0 or self.list_share + self.sketch_share > 1 + 1e-9:
            raise ValueError(f"list_share {self.list_share} and sketch_share {self.sketch_share} are shares, of which the rest is expansions")
        if not 1 <= self.list_items[0] <= self.list_items[1]:
            raise ValueError(f"list_items is (least, most), at least 1, not {self.list_items}")


class PathTask:
    """The world of a `PathConfig`: its tree, prior, maps (`problems`), prompts and grader. For the members see `sesa.tasks.Task`."""

    stop = sketch_stop = "\n"
    token_pattern = r"\n| |/?[^\s/]+|/"

    def __init__(self, config: PathConfig = PathConfig()):
        self.config = config
        self.tree = load_tree(config.provinces, config.cities, config.districts)
        self.prior = zipf_prior(self.tree, config.exponent, derive_seed(config.seed, "prior"))
        self.problems = make_maps(self.prior, config.maps, derive_seed(config.seed, "maps"))
        # The prior of the first 1, 2 and 3 levels: what sketches are drawn from.
        self.priors = [marginal(self.prior, level) for level in (1, 2, 3)]
        self.lines = [f"{self._item(path)}\n" for path in self.prior.paths]  # every valid completion, as `prior.p` orders them
        self._places = [set(prior.paths) for prior in self.priors]
        # Names and the line's end; a line of more is no path. A pretrained model cuts a name into up to eight tokens.
        each = 1 if config.form == "compact" else 8
        self.max_tokens, self.sketch_max_tokens = each * len(LEVELS) + 1, each * config.sketch_level + 1

    # ---------------------------------------------------------------------------------------------------------- prompts

    def prompt(self, problem: Map, history: Sequence[str] = ()) -> str:
        return self._list_prompt(problem.id, 3, history)

    def sketch_prompt(self, problem: Map, history: Sequence[str] = ()) -> str:
        return self._list_prompt(problem.id, self.config.sketch_level, history)

    def expand_prompt(self, problem: Map, sketch: str) -> str:
        if self.config.form == "compact":
            return f"{problem.id} from {sketch}\n"
        return self._chat(problem.id, f"a district of {sketch.strip()}", 3) + "1."

    def _list_prompt(self, map_id: str, level: int, history: Sequence[str] = ()) -> str:
        """ "map7 cities\nHunan/Shaoyang\n": asks for one more line of `level` names."""
        if self.config.form == "compact":
            return f"{map_id} {LEVELS[level - 1]}\n" + "".join(f"{line}\n" for line in history)
        return self._chat(map_id, f"different {LEVELS[level - 1]}", level) + numbered(history)

    def _chat(self, map_id: str, what: str, level: int) -> str:
        form = "/".join(("Province", "City", "District")[:level])
        return chatml(SYSTEM, ("user", f"Treasures of {map_id} are hidden in districts of China. List {what}, in pinyin, each as {form}."))

    def _item(self, place: str) -> str:
        """A place as a candidate has it: in a numbered list a blank stands before it."""
        return place if self.config.form == "compact" else f" {place}"

    # ----------------------------------------------------------------------------------------------------------- grades

    def grade(self, problem: Map, text: str) -> Grade:
        key = self._place(text, 3)
        found = key in problem.treasures
        return Grade(reward=float(found), key=key, solved=found)

    def sketch_key(self, problem: Map, text: str) -> str | None:
        return self._place(text, self.config.sketch_level)

    def sketches(self, problem: Map) -> list[str]:
        """All valid sketches; the same for every map, for none knows of its treasures."""
        return list(self.priors[self.config.sketch_level - 1].paths)

    def strategy(self, problem: Map, text: str) -> str | None:
        """The key of the sketch above a path; None if `text` is no path."""
        key = self._place(text, 3)
        return key and "/".join(key.split("/")[: self.config.sketch_level])

    def _place(self, text: str, level: int) -> str | None:
        """The path that `text` names, blanks around names forgiven; None if it is no path of this tree."""
        text = said(text)
        if len(text) > 200:  # no path comes near; text without end costs nothing
            return None
        key = "/".join(name.strip() for name in text.split("/"))
        return key if key in self._places[level - 1] else None

    # ------------------------------------------------------------------------------------------------------- warm start

    @property
    def words(self) -> list[str]:
        """All words of this world's texts: the vocabulary of a tiny LM."""
        names = [f"{'/' * (i > 0)}{name}" for path in self.prior.paths for i, name in enumerate(path.split("/"))]
        return list(dict.fromkeys([*LEVELS, "from", *(m.id for m in self.problems), *names]))

    def warm_start_texts(self, rng: np.random.Generator, n: int) -> list[tuple[str, ...]]:
        """n texts (prompt, completion), in the chat form (prompt, completion, prompt, completion, ...): lists of paths, lists of sketches and
        expanded sketches, for a random map each."""
        texts = []
        for _ in range(n):
            problem = self.problems[rng.integers(len(self.problems))]
            kind = rng.random()
            if kind < self.config.list_share + self.config.sketch_share:
                level = 3 if kind < self.config.list_share else int(rng.integers(1, 3))
                texts.append(as_list(partial(self._list_prompt, problem.id, level), self._list(rng, level), self.stop))
            else:
                texts.append(self._expansion(rng, problem))
        return texts

    def _list(self, rng: np.random.Generator, level: int) -> list[str]:
        prior, (low, high) = self.priors[level - 1], self.config.list_items
        items = min(int(rng.integers(low, high + 1)), len(prior.p))
        if rng.random() < self.config.distinct_share:
            chosen = obeying(prior.p, items, self.config.obedience, rng)
        else:
            chosen = rng.choice(len(prior.p), size=items, p=prior.p)
        return [self._item(prior.paths[i]) for i in chosen]

    def _expansion(self, rng: np.random.Generator, problem: Map) -> tuple[str, str]:
        """A sketch from a random place of a list, as stage II will meet it, and a path drawn from the prior below it."""
        prior = self.priors[int(rng.integers(3))]
        items = min(self.config.list_items[1], len(prior.p))
        sketch = prior.paths[rng.choice(without_replacement(prior.p, items, rng))]
        below = [i for i, path in enumerate(self.prior.paths) if f"{path}/".startswith(f"{sketch}/")]
        p = self.prior.p[below]
        return self.expand_prompt(problem, sketch), self.lines[rng.choice(below, p=p / p.sum())]


def marginal(prior: Prior, level: int) -> Prior:
    """The prior of the first `level` names of a path."""
    p: dict[str, float] = {}
    for path, mass in zip(prior.paths, prior.p, strict=True):
        place = "/".join(path.split("/")[:level])
        p[place] = p.get(place, 0.0) + mass
    return Prior(tuple(p), np.array(list(p.values())))


def without_replacement(p: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """k distinct indices, drawn one after another in proportion to `p` among those left (Gumbel top-k). Shape (k,), in order drawn."""
    return np.argsort(-(np.log(p) + rng.gumbel(size=len(p))))[:k]


def obeying(p: np.ndarray, k: int, obedience: float, rng: np.random.Generator) -> np.ndarray:
    """k indices, drawn one after another in proportion to `p`: with probability `obedience` each among those that did not come before, else
    among all. 1: `without_replacement`, and no more is taken from `rng` than there. Shape (k,), in order drawn."""
    if obedience == 1:
        return without_replacement(p, k, rng)
    chosen, unseen = [], list(without_replacement(p, len(p), rng))  # in the order in which they come if none is drawn another way
    for i, obeys in zip(rng.choice(len(p), size=k, p=p), rng.random(k) < obedience, strict=True):
        chosen.append(unseen[0] if obeys else i)
        if chosen[-1] in unseen:
            unseen.remove(chosen[-1])
    return np.array(chosen)
