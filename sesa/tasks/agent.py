"""What the agents share, FrozenLake and Sokoban: a grid, actions, RAGEN's limits and penalty, prompts in two forms, and demonstrations.

*compact*, for a tiny LM: a line that names the cells, and an action on the next. *chat*: RAGEN's protocol, several actions a turn between
<answer> and </answer>.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from sesa.tasks import Step
from sesa.tasks.generated import CELL, CHAT_TOKENS, END, SYSTEM, Generated, GeneratedConfig, answer_of, as_list, cell_tokens, chatml, lines_of, named, said

INVALID = -0.1  # RAGEN's penalty for a turn without an action, or with one that is unknown
MAX_ACTIONS = 10  # RAGEN: in all
MAX_TURNS = {"compact": 10, "chat": 5}  # RAGEN: 5 turns of at most 5 actions; a tiny LM takes one action a turn
ACTIONS_A_TURN = {"compact": 1, "chat": 5}


@dataclass(frozen=True)
class Grid:
    """A problem. grid: lines of equal length, without a last line's end; the task says what its characters mean."""

    grid: str

    @property
    def id(self) -> str:
        return self.grid.replace("\n", "/")


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

    def __init__(self, config: GeneratedConfig):
        if config.form == "compact" and config.size > 9:
            raise ValueError(f"the compact form names at most 9 rows and columns, not {config.size}: take the chat form")
        self.max_tokens = 2 if config.form == "compact" else CHAT_TOKENS
        self.max_turns = MAX_TURNS[config.form]
        super().__init__(config)

    @property
    def words(self) -> list[str]:
        return [*self.names, *cell_tokens(self.config.size, self.symbols)]

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
            return lines_of(named(grid), *proposals)
        left = f"{MAX_ACTIONS - state.actions} actions and {self.max_turns - state.turns} turns are left."
        asked = f"State:\n{grid}\n{left} Think between <think> and </think>, then write up to {ACTIONS_A_TURN['chat']} actions, joined by "
        asked += f"||, between <answer> and </answer>. Actions: {', '.join(self.names.values())}."
        first = chatml(SYSTEM, ("user", f"{self.instruction}\n\n{asked}")) if state.turns == 0 else "\n" + chatml(("user", asked))
        another = f"{END}\n" + chatml(("user", "Propose something else to do here, different from all before."))
        return first + "".join(text + another for text in proposals)

    def actions_in(self, text: str) -> tuple[str, bool]:
        """The actions that a turn asks for, as characters, and whether there is one and all were known. Unknown ones are left out, as RAGEN
        does. Total."""
        if self.config.form == "compact":
            asked = [action if (action := said(text).strip()) in self.names else None]
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
        over = over or after.actions >= MAX_ACTIONS or after.turns >= self.max_turns
        reward = round(reward + (0.0 if valid else INVALID), 9)  # three steps of -0.1 are -0.3, as a turn of another cut has it
        return Step(after, reward, over, solved)

    def warm_start_texts(self, rng: np.random.Generator, n: int) -> list[tuple[str, ...]]:
        """n trajectories, each (seen, done, seen, done, ...): at every place a list of different turns, half of the time of one alone. The
        first begins with the best action with probability `config.skill`, else with another; the last is taken, as a branch does. In the
        chat form a turn goes on, up to its limit, with the best actions wherever the one before leads."""
        return [self._trajectory(self.sample("warm start", rng), rng) for _ in range(n)]

    def _trajectory(self, problem: Any, rng: np.random.Generator) -> tuple[str, ...]:
        state, over, text = self.reset(problem), False, ()
        while not over:
            best, *others = self.advice(problem, state.place)
            order = [*rng.permutation(others)]
            order.insert(0 if rng.random() < self.config.skill else int(rng.integers(1, len(order) + 1)), best)
            proposals = order[: 1 if rng.random() < 0.5 else int(rng.integers(2, len(order) + 1))]
            if self.config.form == "chat":
                proposals = [self._turn(problem, state, action, rng) for action in proposals]
            text += as_list(partial(self.observe, problem, state), proposals, self.stop)
            state, _, over, _ = self.step(problem, state, proposals[-1], int(rng.integers(2**31)))
        return text

    def _turn(self, problem: Any, state: State, action: str, rng: np.random.Generator) -> str:
        turn, over, place = "", False, state.place
        while not over and len(turn) < min(ACTIONS_A_TURN["chat"], MAX_ACTIONS - state.actions):
            turn += action
            place, _, over, _ = self.move(problem, place, action, rng)
            action = self.advice(problem, place)[0]
        return f"<answer>{' || '.join(self.names[letter] for letter in turn)}</answer>"
