"""FrozenLake: cross slippery ice to the goal, and fall into no hole. An `Agent`; rewards and limits are RAGEN's.

    P..H     P the player, G the goal (reward 1), H a hole (all is over), . ice. Start and goal lie anywhere, as in RAGEN: every
    .H..     cell else is ice with probability `frozen`, and a way without slips exists. The start, once left, is ice like any other.
    ....
    H..G     A step goes where it should with probability `success_rate`, else to either side; at the border one stays.

The transition probabilities are read from gymnasium's `FrozenLakeEnv`; the slips are drawn from the turn's seed, not by gymnasium, so
that a state is a plain value, and two rollouts that take the same action in the same place slip apart.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv

from sesa.tasks.agent import MAX_ACTIONS, Agent, Grid
from sesa.tasks.generated import GeneratedConfig


@dataclass(frozen=True)
class FrozenLakeConfig(GeneratedConfig):
    size: int = 4  # cells a side; RAGEN
    frozen: float = 0.8  # probability that a cell is ice; RAGEN
    success_rate: float = 1 / 3  # of a step; RAGEN, gymnasium's default. With 0.8 the ice is mild

    def __post_init__(self):
        super().__post_init__()
        if self.size < 2 or not 0 <= self.frozen <= 1 or not 0 < self.success_rate <= 1:
            raise ValueError(f"size must be at least 2, frozen in [0, 1] and success_rate in (0, 1]: {self}")


class Lake(Grid):
    """`size` lines of P, G, H and ".", one P, one G."""


class Dynamics(NamedTuple):
    outcomes: dict[int, dict[int, list[tuple[float, int, float, bool]]]]  # [cell][action]: (probability, cell after, reward, over)
    p: np.ndarray  # (cells, 4, cells), of the cell after
    reward: np.ndarray  # (cells, 4), expected


@lru_cache(maxsize=1024)
def dynamics(lake: Lake, success_rate: float) -> Dynamics:
    """gymnasium's transitions. Cells are counted line by line, actions are L, D, R, U."""
    desc = lake.grid.replace("P", "S").replace(".", "F").split("\n")
    outcomes = FrozenLakeEnv(desc=desc, is_slippery=True, success_rate=success_rate).P
    p, reward = np.zeros((len(outcomes), 4, len(outcomes))), np.zeros((len(outcomes), 4))
    for cell, actions in outcomes.items():
        for action, found in actions.items():
            for probability, after, earned, _ in found:
                p[cell, action, after] += probability
                reward[cell, action] += probability * earned
    return Dynamics(outcomes, p, reward)


def success_by_limit(lake: Lake, success_rate: float, steps: int, later: Callable) -> np.ndarray:
    """(steps, cells, 4): the probability of reaching the goal within 1, 2, ... `steps` actions, by the first of them; later: `np.max` if
    the best actions follow, `np.mean` if random ones. Exact, by finite-horizon dynamic programming; 0 for a walk that is over."""
    _, p, reward = dynamics(lake, success_rate)
    value, found = np.zeros(len(p)), []
    for _ in range(steps):
        found.append(reward + p @ value)
        value = later(found[-1], axis=1)
    return np.array(found)


@lru_cache(maxsize=1024)
def best_first(lake: Lake, success_rate: float) -> list[str]:
    """(cells,): the four actions of each. An advice does not know how many actions are left, so it goes by the mean over 1 to 10 (our
    choice): of two ways that are as safe, the shorter one wins, as it would not with 10 left everywhere."""
    mean = success_by_limit(lake, success_rate, MAX_ACTIONS, np.max).mean(axis=0)
    order = np.argsort(-mean.round(9), axis=1, kind="stable")  # rounded: ties are ties on any machine
    return ["".join("LDRU"[action] for action in actions) for actions in order]


class FrozenLake(Agent):
    """The task of a `FrozenLakeConfig`. A place is a cell's number, line by line. For the members see `sesa.tasks.Environment`."""

    names = {"L": "Left", "D": "Down", "R": "Right", "U": "Up"}  # in gymnasium's order
    symbols = "P.HG"

    def __init__(self, config: FrozenLakeConfig = FrozenLakeConfig()):
        self.instruction = (
            "You are on a frozen lake. P is you, G is the goal, H is a hole, . is ice. Walk to G: a hole ends the walk. The ice is "
            f"slippery: a step goes the way you choose with a probability of {config.success_rate:.0%}, and otherwise, as likely to one "
            "side as to the other, at a right angle to it. A step off the grid leaves you where you are."
        )
        super().__init__(config)

    def generate(self, rng: np.random.Generator) -> Lake:
        n = self.config.size
        while True:
            cells = np.where(rng.random(n * n) < self.config.frozen, ".", "H")
            start, goal = rng.permutation(n * n)[:2]
            cells[start], cells[goal] = "P", "G"
            lake = Lake("\n".join("".join(row) for row in cells.reshape(n, n)))
            if crossable(lake):
                return lake

    def canonical(self, problem: Lake) -> str:
        """The same from any start: a walk sees the others too."""
        return problem.id.replace("P", ".")

    def place(self, problem: Lake) -> int:
        return problem.grid.replace("\n", "").index("P")

    def render(self, problem: Lake, place: int) -> str:
        n = self.config.size
        grid, at = problem.grid.replace("P", "."), place + place // n  # every line before ends in one character more
        return f"{grid[:at]}P{grid[at + 1 :]}"

    def move(self, problem: Lake, place: int, action: str, rng: np.random.Generator) -> tuple[int, float, bool, bool]:
        u = rng.random()
        for probability, after, reward, over in dynamics(problem, self.config.success_rate).outcomes[place]["LDRU".index(action)]:
            u -= probability
            if u < 0:
                break
        return after, float(reward), over, reward > 0

    def advice(self, problem: Lake, place: int) -> str:
        return best_first(problem, self.config.success_rate)[place]

    def optimal_success(self, problem: Lake, steps: int = MAX_ACTIONS) -> float:
        """The probability that the best policy, which counts its actions, is at the goal within `steps`. Exact."""
        return float(success_by_limit(problem, self.config.success_rate, steps, np.max)[-1, self.place(problem)].max())

    def random_success(self, problem: Lake, steps: int = MAX_ACTIONS) -> float:
        """The same of random actions."""
        return float(success_by_limit(problem, self.config.success_rate, steps, np.mean)[-1, self.place(problem)].mean())


def crossable(lake: Lake) -> bool:
    """Whether a way leads from P to G past the holes."""
    width = lake.grid.index("\n") + 1
    shore = "\n" * width  # whatever is no cell: one never looks past the text's ends, nor from a line's end into the next
    grid = shore + lake.grid + shore
    reached = [grid.index("P")]
    for cell in reached:
        reached += [near for step in (-1, 1, -width, width) if grid[near := cell + step] in ".G" and near not in reached]
    return grid.index("G") in reached
