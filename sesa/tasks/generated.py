"""What the generated tasks share: splits, prompts in two forms, and the texts of a warm start.

A `Puzzle` is answered in one turn (math, Sudoku, Countdown), an `Agent` in several (`sesa.tasks.agent`). Every prompt has two forms:
*compact*, for a tiny LM, a line that shows the problem and growing lists of lines; and *chat*, for an instruction-tuned LM, in ChatML as
Qwen2.5 and SmolLM2 read it: a solution is a turn of the assistant, sketches are a numbered list. Of a puzzle:

    compact                             chat
    3 5 7=26?      a sketch             <|im_start|>user ... List different ways to begin ... <|im_start|>assistant\\n1.
    3 5 7=26>3*7   its solution         <|im_start|>user ... Follow this outline: 3*7 ... <|im_start|>assistant\\n
    3 5 7=26:      a solution           <|im_start|>user ... <|im_start|>assistant\\n
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from sesa.runs import derive_seed
from sesa.tasks import Grade, split_of

END = "<|im_end|>"
FORMS = ("compact", "chat")
CHAT_TOKENS, SKETCH_TOKENS = 512, 32  # in the chat form, of a solution or a turn, and of a sketch
SYSTEM = ("system", "You're a helpful assistant.")  # RAGEN's
THINK = r"\s{0,9}(?:\w{1,9}:)?(?:think|thinking|thoughts?|reasoning|scratchpad)\s{0,9}\|?[>\]▷]"
THOUGHT_END = re.compile(rf"[<\[◁](?:\|?/|\|end_(?:of_)?){THINK}", re.IGNORECASE)
THOUGHT = re.compile(rf"[<\[◁](?:\|(?:begin_of_|start_)?)?{THINK}.*?(?:{THOUGHT_END.pattern}|\Z)", re.DOTALL | re.IGNORECASE)
ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)


def chatml(*turns: tuple[str, str]) -> str:
    """ChatML of (role, content) turns, open at the assistant's next word."""
    return "".join(f"<|im_start|>{role}\n{content}{END}\n" for role, content in turns) + "<|im_start|>assistant\n"


ROWS, COLUMNS = "abcdefghi", "123456789"  # the names of a grid's cells in the compact form
CELL = r"[a-i][1-9]\S"  # a cell and what stands in it: one token, as a small model finds a name more easily than the seventh character


def cell_tokens(size: int, symbols: str) -> list[str]:
    """All tokens of a grid of `size` rows, at most 9, of as many cells: "a1P", ..."""
    return ["".join(cell) for cell in product(ROWS[:size], COLUMNS[:size], symbols)]


def named(grid: str) -> str:
    """A grid's lines on one line, every cell by name: "a1Pa2.b1.b2G"."""
    lines = zip(ROWS, grid.split("\n"), strict=False)
    return "".join(f"{row}{column}{what}" for row, line in lines for column, what in zip(COLUMNS, line, strict=False))


def said(text: str) -> str:
    """The text without its thoughts: <think>...</think>, what follows an open <think>, and what precedes a stray </think>, as a template may
    open the thought in the prompt. Read alike: <thinking>, <thought>, <reasoning>, <scratchpad>, [think], ◁think▷, <seed:think>, <|think|> and
    <|begin_of_thought|>...<|end_of_thought|>. For every task's grader; total."""
    return THOUGHT_END.split(THOUGHT.sub(" ", text))[-1]


def answer_of(text: str) -> str | None:
    """What stands in the last <answer>...</answer> outside thoughts, stripped; None if there is none."""
    found = ANSWER.findall(said(text))
    return found[-1].strip() if found else None


@dataclass(frozen=True)
class GeneratedConfig:
    """What every generated task depends on. Tasks add their own."""

    seed: int = 0
    form: str = "compact"
    train: int = 256  # problems
    held_out: int = 128  # problems, the same for every seed
    held_out_split: str = "held-out"  # "tuning": others, for a search of settings
    skill: float = 0.5  # of the warm start's demonstrations: the probability of doing the right thing; of what, each task says

    def __post_init__(self):
        if self.form not in FORMS:
            raise ValueError(f"form is one of {', '.join(FORMS)}, not {self.form!r}")
        if self.held_out_split not in ("held-out", "tuning"):
            raise ValueError(f"held_out_split is held-out or tuning, not {self.held_out_split!r}")
        if min(self.train, self.held_out) < 1 or not 0 <= self.skill <= 1:
            raise ValueError(f"train and held_out must be at least 1, and skill in [0, 1]: {self}")


class Generated(ABC):
    """A task with endless problems: `problems` to train on, `held_out` for evaluation, and others for the warm start."""

    token_pattern = r"\d+|[a-z]+|[\s\S]"  # for a tiny LM: numbers and words are tokens, and every other character
    words: list[str]  # its tokens

    def __init__(self, config: GeneratedConfig):
        self.config = config
        self.stop = "\n" if config.form == "compact" else END
        self.problems = self._different("train", config.train, config.seed)
        self.held_out = self._different(config.held_out_split, config.held_out, seed=0)

    @abstractmethod
    def generate(self, rng: np.random.Generator) -> Any:
        """A random problem, of any split."""

    def canonical(self, problem: Any) -> str:
        """What problems that are the same in another guise have in common: they belong to one split."""
        return problem.id

    def sample(self, split: str, rng: np.random.Generator) -> Any:
        """A random problem of this split.

        Raises:
            ValueError: none was found among 1,000.
        """
        for _ in range(1000):
            problem = self.generate(rng)
            if split_of(self.canonical(problem)) == split:
                return problem
        raise ValueError(f"{type(self).__name__} seems to have no {split} problem of this kind: make it larger ({self.config})")

    def _different(self, split: str, n: int, seed: int) -> list[Any]:
        """n different problems of this split.

        Raises:
            ValueError: there are not so many.
        """
        rng = np.random.default_rng(derive_seed(seed, type(self).__name__, split))
        found: dict[str, Any] = {}
        for _ in range(100 * n):
            problem = self.sample(split, rng)
            found.setdefault(problem.id, problem)
            if len(found) == n:
                return list(found.values())
        raise ValueError(f"{type(self).__name__} has only about {len(found)} different {split} problems of this kind, not {n}: ask for fewer")


@dataclass(frozen=True)
class PuzzleConfig(GeneratedConfig):
    """What a puzzle depends on, beside: which texts the warm start has."""

    exponent: float = 1.0  # of the favourites among sketches: the r-th has a probability in proportion to r^-exponent
    insight: float = 0.5  # the share of demonstrations whose sketch is drawn from those that lead to a solution
    list_share: float = 0.3  # of the warm start's texts: lists of solutions
    sketch_share: float = 0.1  # lists of sketches; the rest are expansions
    list_items: int = 8  # at most, in a list

    def __post_init__(self):
        super().__post_init__()
        if min(self.list_share, self.sketch_share) < 0 or self.list_share + self.sketch_share > 1 or not 0 <= self.insight <= 1:
            raise ValueError(f"list_share and sketch_share are shares of all texts, together at most 1, and insight is one too: {self}")
        if self.list_items < 1:
            raise ValueError(f"list_items must be at least 1: {self}")


class Puzzle(Generated):
    """A generated task of one turn; for the members see `sesa.tasks.Task` too."""

    instruction: str  # chat: what to do, and how to write the answer
    outline: str  # chat: what a sketch looks like
    compact_tokens: tuple[int, int]  # of a solution, of a sketch, with the line's end

    def __init__(self, config: PuzzleConfig):
        self.sketch_stop = "\n"
        self.max_tokens, self.sketch_max_tokens = self.compact_tokens if config.form == "compact" else (CHAT_TOKENS, SKETCH_TOKENS)
        super().__init__(config)

    @abstractmethod
    def show(self, problem: Any) -> str:
        """The problem on one line (compact form), of the task's words."""

    @abstractmethod
    def question(self, problem: Any) -> str:
        """The problem in words (chat form)."""

    @abstractmethod
    def sketches(self, problem: Any) -> list[str]:
        """All sketches of a problem, the favourites first."""

    def useful(self, problem: Any) -> list[str]:
        """The sketches that lead to a solution, if it is carried out well; in most tasks all do."""
        return self.sketches(problem)

    @abstractmethod
    def attempt(self, problem: Any, sketch: str, rng: np.random.Generator) -> str:
        """A solution in the compact form that follows `sketch`, with mistakes: how often, `config.skill` says, and of what, each task."""

    @abstractmethod
    def in_chat(self, problem: Any, solution: str) -> str:
        """A solution of the compact form in words (chat form)."""

    def sketch_in_chat(self, sketch: str) -> str:
        """A sketch in words (chat form), as `outline` asks for it."""
        return sketch

    def told(self, sketch: str) -> str:
        """A sketch as prompts and lists of this form have it."""
        return sketch if self.config.form == "compact" else self.sketch_in_chat(sketch)

    @abstractmethod
    def grade(self, problem: Any, text: str) -> Grade: ...

    @abstractmethod
    def sketch_key(self, problem: Any, text: str) -> str | None: ...

    @abstractmethod
    def strategy(self, problem: Any, text: str) -> str | None:
        """The key of the sketch that a solution realises, right or wrong; None if it realises none. Total."""

    def prompt(self, problem: Any, history: Sequence[str] = ()) -> str:
        if self.config.form == "compact":
            return lines_of(f"{self.show(problem)}:", *history)
        another = f"{END}\n" + chatml(("user", "Give another answer, different from all before."))
        return chatml(SYSTEM, ("user", f"{self.instruction}\n\n{self.question(problem)}")) + "".join(text + another for text in history)

    def sketch_prompt(self, problem: Any, history: Sequence[str] = ()) -> str:
        if self.config.form == "compact":
            return lines_of(f"{self.show(problem)}?", *history)
        asked = f"{self.question(problem)}\n\nDo not solve it. List different ways to begin, one per line. {self.outline}"
        return chatml(SYSTEM, ("user", asked)) + "".join(f"{i}. {text}\n" for i, text in enumerate(history, 1)) + f"{len(history) + 1}. "

    def expand_prompt(self, problem: Any, sketch: str) -> str:
        if self.config.form == "compact":
            return f"{self.show(problem)}>{sketch}\n"
        return chatml(SYSTEM, ("user", f"{self.instruction}\n\n{self.question(problem)}\n\nFollow this outline: {sketch}"))

    def warm_start_texts(self, rng: np.random.Generator, n: int) -> list[tuple[str, ...]]:
        """n texts (prompt, completion, prompt, completion, ...): lists of different solutions, lists of different sketches, expansions."""
        return [self._text(self.sample("warm start", rng), rng) for _ in range(n)]

    def _text(self, problem: Any, rng: np.random.Generator) -> tuple[str, ...]:
        c = self.config
        sketches = self.sketches(problem)
        told = [self.told(sketch) for sketch in sketches]
        p = np.arange(1, len(sketches) + 1) ** -float(c.exponent)
        p /= p.sum()
        useful = p * np.isin(sketches, self.useful(problem))
        p = (1 - c.insight) * p + c.insight * useful / useful.sum()
        items = int(rng.integers(1, c.list_items + 1))
        kind = rng.random()
        if kind < c.list_share:
            drawn = dict.fromkeys(self._attempt(problem, sketches[i], rng) for i in rng.choice(len(sketches), size=2 * items, p=p))
            return as_list(partial(self.prompt, problem), list(drawn)[:items], self.stop)
        if kind < c.list_share + c.sketch_share:
            drawn = rng.choice(len(sketches), size=min(items, np.count_nonzero(p)), replace=False, p=p)
            return as_list(partial(self.sketch_prompt, problem), [told[i] for i in drawn], self.sketch_stop)
        # Not the favourites alone: stage II meets the sketches from all places of a list.
        i = rng.integers(len(sketches))
        return self.expand_prompt(problem, told[i]), self._attempt(problem, sketches[i], rng) + self.stop

    def _attempt(self, problem: Any, sketch: str, rng: np.random.Generator) -> str:
        solution = self.attempt(problem, sketch, rng)
        return solution if self.config.form == "compact" else self.in_chat(problem, solution)


def as_list(prompt: Callable[[list[str]], str], items: list[str], stop: str) -> tuple[str, ...]:
    """(prompt, completion, prompt, completion, ...): a list as it is drawn, one item after another, each asked for by `prompt(those before)`;
    an item that is asked for by the end of the one before goes on in its completion."""
    pieces: list[str] = []
    written = ""
    for i, item in enumerate(items):
        asked = prompt(items[:i]).removeprefix(written)
        if asked or not pieces:
            pieces += [asked, ""]
        pieces[-1] += item + stop
        written += asked + item + stop
    return tuple(pieces)


def numbered(items: Sequence[str]) -> str:
    """The items as a numbered list, open at its next one: what stands before an item's text belongs to the text."""
    return "".join(f"{i}.{text}\n" for i, text in enumerate(items, 1)) + f"{len(items) + 1}."


def lines_of(*lines: str) -> str:
    """The lines, each with its end."""
    return "".join(f"{line}\n" for line in lines)
