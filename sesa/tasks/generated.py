"""What the generated tasks share: splits, prompts in two forms, and the texts of a warm start.

A `Puzzle` is answered in one turn (math, Sudoku, Countdown), an `Agent` in several (FrozenLake, Sokoban). Every prompt has two forms:
*compact*, for a tiny LM, a line that shows the problem and growing lists of lines; and *chat*, for an instruction-tuned LM, in ChatML as
Qwen2.5 and SmolLM2 read it: a solution is a turn of the assistant, sketches are a numbered list. Of a puzzle:

    compact                             chat
    3 5 7=26?      a sketch             <|im_start|>user ... List different ways to begin ... <|im_start|>assistant\\n1.
    3 5 7=26>3*7   its solution         <|im_start|>user ... Follow this outline: 3*7 ... <|im_start|>assistant\\n
    3 5 7=26:      a solution           <|im_start|>user ... <|im_start|>assistant\\n

and of an agent: the grid on a line, and an action on the next; or RAGEN's protocol, several actions a turn between <answer> and </answer>.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sesa.runs import derive_seed
from sesa.tasks import Grade, Step, split_of, zipf

END = "<|im_end|>"
FORMS = ("compact", "chat")
CHAT_TOKENS = 512  # of a solution or a turn in the chat form
SYSTEM = ("system", "You're a helpful assistant.")  # RAGEN's
ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)


def chatml(*turns: tuple[str, str]) -> str:
    """ChatML of (role, content) turns, open at the assistant's next word."""
    return "".join(f"<|im_start|>{role}\n{content}{END}\n" for role, content in turns) + "<|im_start|>assistant\n"


CELL = r"[a-i][1-9]\S"  # a cell and what stands in it: one token, as a small model finds a name more easily than the seventh character


def named(grid: str) -> str:
    """A grid's lines on one line, every cell by name: "a1Pa2.b1.b2G"."""
    return "".join(f"{'abcdefghi'[r]}{c}{what}" for r, line in enumerate(grid.split("\n")) for c, what in enumerate(line, 1))


def answer_of(text: str) -> str | None:
    """What stands in the last <answer>...</answer> of a chat answer, stripped; None if there is none."""
    found = ANSWER.findall(text)
    return found[-1].strip() if found else None


@dataclass(frozen=True)
class GeneratedConfig:
    """What every generated task depends on. Tasks add their own."""

    seed: int = 0
    form: str = "compact"
    train: int = 256  # problems
    held_out: int = 128  # problems
    skill: float = 0.5  # of the warm start's demonstrations: the probability of doing the right thing; of a whole puzzle, of one action
    list_items: int = 8  # at most, in a list

    def __post_init__(self):
        if self.form not in FORMS:
            raise ValueError(f"form is one of {', '.join(FORMS)}, not {self.form!r}")
        if min(self.train, self.held_out, self.list_items) < 1 or not 0 <= self.skill <= 1:
            raise ValueError(f"train, held_out and list_items must be at least 1, and skill in [0, 1]: {self}")


class Generated(ABC):
    """A task with endless problems: `problems` to train on, `held_out` for evaluation, and others for the warm start."""

    token_pattern = r"\d+|[a-z]+|[\s\S]"  # for a tiny LM: numbers and words are tokens, and every other character
    words: list[str]  # its tokens

    def __init__(self, config: GeneratedConfig):
        self.config = config
        self.problems = self._different("train", config.train)
        self.held_out = self._different("held-out", config.held_out)

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

    def need_compact(self) -> None:
        if self.config.form != "compact":
            raise ValueError("demonstrations are written in the compact form only: make the task with form='compact'")

    def _different(self, split: str, n: int) -> list[Any]:
        """n different problems of this split.

        Raises:
            ValueError: there are not so many.
        """
        rng = np.random.default_rng(derive_seed(self.config.seed, type(self).__name__, split))
        found: dict[str, Any] = {}
        for _ in range(100 * n):
            problem = self.sample(split, rng)
            found.setdefault(problem.id, problem)
            if len(found) == n:
                return list(found.values())
        raise ValueError(f"{type(self).__name__} has only about {len(found)} different {split} problems of this kind, not {n}: ask for fewer")


# -------------------------------------------------------------------------------------------------------------- one turn


@dataclass(frozen=True)
class PuzzleConfig(GeneratedConfig):
    exponent: float = 1.0  # of the favourites among sketches: the r-th has a probability in proportion to r^-exponent
    insight: float = 0.5  # the share of demonstrations whose sketch is drawn from those that lead to a solution
    list_share: float = 0.3  # of the warm start's texts: lists of solutions
    sketch_share: float = 0.1  # lists of sketches; the rest are expansions

    def __post_init__(self):
        super().__post_init__()
        if min(self.list_share, self.sketch_share) < 0 or self.list_share + self.sketch_share > 1 or not 0 <= self.insight <= 1:
            raise ValueError(f"list_share and sketch_share are shares of all texts, together at most 1, and insight is one too: {self}")


class Puzzle(Generated):
    """A generated task of one turn; for the members see `sesa.tasks.Task` too."""

    instruction: str  # chat: what to do, and how to write the answer
    outline: str  # chat: what a sketch looks like
    compact_tokens: tuple[int, int]  # of a solution, of a sketch, with the line's end

    def __init__(self, config: PuzzleConfig):
        compact = config.form == "compact"
        self.stop, self.sketch_stop = "\n" if compact else END, "\n"
        self.max_tokens, self.sketch_max_tokens = self.compact_tokens if compact else (CHAT_TOKENS, 32)
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
        """A solution in the compact form that follows `sketch`; if the sketch allows it, right with probability `config.skill`,
        else wrong."""

    @abstractmethod
    def grade(self, problem: Any, text: str) -> Grade: ...

    @abstractmethod
    def sketch_key(self, problem: Any, text: str) -> str | None: ...

    @abstractmethod
    def strategy(self, problem: Any, text: str) -> str | None:
        """The key of the sketch that a solution realises, right or wrong; None if it realises none. Total."""

    def prompt(self, problem: Any, history: Sequence[str] = ()) -> str:
        if self.config.form == "compact":
            return _lines(f"{self.show(problem)}:", *history)
        another = f"{END}\n" + chatml(("user", "Give another answer, different from all before."))
        return chatml(SYSTEM, ("user", f"{self.instruction}\n\n{self.question(problem)}")) + "".join(text + another for text in history)

    def sketch_prompt(self, problem: Any, history: Sequence[str] = ()) -> str:
        if self.config.form == "compact":
            return _lines(f"{self.show(problem)}?", *history)
        asked = f"{self.question(problem)}\n\nDo not solve it. List different ways to begin, one per line. {self.outline}"
        return chatml(SYSTEM, ("user", asked)) + "".join(f"{i}. {text}\n" for i, text in enumerate(history, 1)) + f"{len(history) + 1}. "

    def expand_prompt(self, problem: Any, sketch: str) -> str:
        if self.config.form == "compact":
            return f"{self.show(problem)}>{sketch}\n"
        return chatml(SYSTEM, ("user", f"{self.instruction}\n\n{self.question(problem)}\n\nFollow this outline: {sketch}"))

    def warm_start_texts(self, rng: np.random.Generator, n: int) -> list[tuple[str, ...]]:
        """n texts (prompt, completion), in the compact form: lists of different solutions, lists of different sketches, expansions.

        Raises:
            ValueError: the task has the chat form, for which there are no demonstrations.
        """
        self.need_compact()
        return [self._text(self.sample("warm start", rng), rng) for _ in range(n)]

    def _text(self, problem: Any, rng: np.random.Generator) -> tuple[str, ...]:
        c = self.config
        sketches = self.sketches(problem)
        p = zipf(len(sketches), c.exponent)
        useful = p * np.isin(sketches, self.useful(problem))
        p = (1 - c.insight) * p + c.insight * useful / useful.sum()
        items = int(rng.integers(1, c.list_items + 1))
        kind = rng.random()
        if kind < c.list_share:
            drawn = dict.fromkeys(self.attempt(problem, sketches[i], rng) for i in rng.choice(len(sketches), size=2 * items, p=p))
            return f"{self.show(problem)}:\n", _lines(*list(drawn)[:items])
        if kind < c.list_share + c.sketch_share:
            drawn = rng.choice(len(sketches), size=min(items, len(sketches)), replace=False, p=p)
            return f"{self.show(problem)}?\n", _lines(*(sketches[i] for i in drawn))
        # Not the favourites alone: stage II meets the sketches from all places of a list.
        sketch = sketches[rng.integers(len(sketches))]
        return f"{self.show(problem)}>{sketch}\n", f"{self.attempt(problem, sketch, rng)}\n"


# --------------------------------------------------------------------------------------------------------- several turns

INVALID = -0.1  # RAGEN's penalty for a turn without an action, or with one that is unknown
MAX_ACTIONS = 10  # RAGEN: in all
MAX_TURNS = {"compact": 10, "chat": 5}  # RAGEN: 5 turns of at most 5 actions; a tiny LM takes one action a turn
ACTIONS_A_TURN = {"compact": 1, "chat": 5}


@dataclass(frozen=True)
class State:
    """Where an agent is: `place`, a frozen value of the task's own, and the actions and turns taken so far."""

    place: Any
    actions: int = 0
    turns: int = 0


class Agent(Generated):
    """A generated environment on a grid; see `sesa.tasks.Environment`."""

    instruction: str  # chat: the rules, and what the characters of the grid mean
    names: dict[str, str]  # of the actions: compact character -> word in chat, e.g. {"L": "Left"}
    symbols: str  # what may stand in a cell
    token_pattern = rf"{CELL}|[\s\S]"
    stop_of = {"compact": "\n", "chat": END}

    def __init__(self, config: GeneratedConfig):
        if config.form == "compact" and config.size > 9:
            raise ValueError(f"the compact form names at most 9 rows and columns, not {config.size}: take the chat form")
        self.stop = self.stop_of[config.form]
        self.max_tokens = 2 if config.form == "compact" else CHAT_TOKENS
        super().__init__(config)

    @property
    def words(self) -> list[str]:
        """Up to 9 rows of 9 cells."""
        size = range(self.config.size)
        return [*self.names, *(f"{'abcdefghi'[r]}{c + 1}{what}" for r in size for c in size for what in self.symbols)]

    @abstractmethod
    def place(self, problem: Any) -> Any:
        """Where the agent begins."""

    @abstractmethod
    def render(self, problem: Any, place: Any) -> str:
        """The grid as lines of equal length, without a last line's end."""

    @abstractmethod
    def move(self, problem: Any, place: Any, action: str, rng: np.random.Generator) -> tuple[Any, float, bool, bool]:
        """Where an action (a key of `names`) leads, its reward, whether all is over, and whether it is solved."""

    @abstractmethod
    def advice(self, problem: Any, place: Any) -> str:
        """All actions, the best first, by a solver."""

    def reset(self, problem: Any) -> State:
        return State(self.place(problem))

    def observe(self, problem: Any, state: State, proposals: Sequence[str] = ()) -> str:
        grid = self.render(problem, state.place)
        if self.config.form == "compact":
            return _lines(named(grid), *proposals)
        left = f"{MAX_ACTIONS - state.actions} actions and {MAX_TURNS['chat'] - state.turns} turns are left."
        asked = f"State:\n{grid}\n{left} Think between <think> and </think>, then write up to {ACTIONS_A_TURN['chat']} actions, joined by "
        asked += f"||, between <answer> and </answer>. Actions: {', '.join(self.names.values())}."
        first = chatml(SYSTEM, ("user", f"{self.instruction}\n\n{asked}")) if state.turns == 0 else "\n" + chatml(("user", asked))
        another = f"{END}\n" + chatml(("user", "Propose something else to do here, different from all before."))
        return first + "".join(text + another for text in proposals)

    def actions_in(self, text: str) -> tuple[str, bool]:
        """The actions that a turn asks for, as characters, and whether there is one and all were known. Unknown ones are left out, as RAGEN
        does. Total."""
        if self.config.form == "compact":
            asked = [text.strip() if text.strip() in self.names else None]
        else:
            letters = {name.lower(): letter for letter, name in self.names.items()}
            asked = [letters.get(word.strip().lower()) for word in (answer_of(text) or "").split("||")[: ACTIONS_A_TURN["chat"]]]
        return "".join(filter(None, asked)), all(asked)

    def action_key(self, problem: Any, text: str) -> str | None:
        return self.actions_in(text)[0] or None

    def strategy(self, problem: Any, text: str) -> str | None:
        """How a trajectory, a turn a line, sets out: its first two actions (compact form). None if one of them is none. Total."""
        first = [line.strip() for line in text.split("\n")[:2]]
        return "".join(first) if all(action in self.names for action in first) else None

    def step(self, problem: Any, state: State, text: str, seed: int) -> Step:
        rng = np.random.default_rng(seed)
        place, reward, over, solved = state.place, 0.0, False, False
        wanted, valid = self.actions_in(text)
        done = 0
        for action in wanted[: MAX_ACTIONS - state.actions]:
            place, earned, over, solved = self.move(problem, place, action, rng)
            reward, done = reward + earned, done + 1
            if over:
                break
        after = State(place, state.actions + done, state.turns + 1)
        over = over or after.actions >= MAX_ACTIONS or after.turns >= MAX_TURNS[self.config.form]
        return Step(after, reward + (0.0 if valid else INVALID), over, solved)

    def warm_start_texts(self, rng: np.random.Generator, n: int) -> list[tuple[str, ...]]:
        """n trajectories in the compact form, each (seen, done, seen, done, ...): at every place a list of different actions, half of the
        time of one alone. The first is the best with probability `config.skill`, else another; the last is taken, as a branch does.

        Raises:
            ValueError: the task has the chat form, for which there are no demonstrations.
        """
        self.need_compact()
        return [self._trajectory(self.sample("warm start", rng), rng) for _ in range(n)]

    def _trajectory(self, problem: Any, rng: np.random.Generator) -> tuple[str, ...]:
        state, over, text = self.reset(problem), False, []
        while not over:
            best, *others = self.advice(problem, state.place)
            order = [*rng.permutation(others)]
            order.insert(0 if rng.random() < self.config.skill else int(rng.integers(1, len(order) + 1)), best)
            proposals = order[: 1 if rng.random() < 0.5 else int(rng.integers(2, len(order) + 1))]
            text += [self.observe(problem, state), _lines(*proposals)]
            state, _, over, _ = self.step(problem, state, proposals[-1], int(rng.integers(2**31)))
        return tuple(text)


def _lines(*lines: str) -> str:
    return "".join(f"{line}\n" for line in lines)
