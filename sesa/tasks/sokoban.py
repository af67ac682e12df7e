"""Sokoban: push every box onto a target. An `Agent`; rewards and limits are RAGEN's.

    ######     # wall, . floor, O target, X box, P the player; V a box on a target, S the player on one (RAGEN's own signs are #, _, O,
    #..O.#     X, P, √, S: these are ASCII, one token each).
    #.#X.#
    #..P.#     A step costs 0.1, also when a wall or a second box blocks it; a box put on a target earns 1, one pushed off it costs 1,
    #....#     and the last one in its place earns 10 more. Nothing is random but the problems.
    ######

How rooms are drawn is our choice: walls at random, and of all starts with `moves` (least, most) moves to the solution one as likely as
the other. The compact form leaves the outer wall out, which is always there.
"""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from math import inf

import numpy as np

from sesa.tasks.agent import MAX_ACTIONS, Agent, Grid
from sesa.tasks.generated import GeneratedConfig

Place = tuple[int, frozenset[int]]  # the player and the boxes, by their position in the text of the grid


@dataclass(frozen=True)
class SokobanConfig(GeneratedConfig):
    size: int = 6  # cells a side, with the outer wall; RAGEN
    boxes: int = 1  # and as many targets; RAGEN
    walls: float = 0.15  # probability that an inner cell is a wall
    moves: tuple[int, int] = (1, 8)  # least and most, of a shortest solution

    def __post_init__(self):
        super().__post_init__()
        if self.boxes < 1 or self.size < 4 or not 0 <= self.walls < 1:
            raise ValueError(f"boxes must be at least 1, size at least 4 and walls in [0, 1): {self}")
        if not 1 <= self.moves[0] <= self.moves[1] <= MAX_ACTIONS:
            raise ValueError(f"moves is (least, most), from 1 to {MAX_ACTIONS}, the actions that an agent has, not {self.moves}")


class Room(Grid):
    """Lines as in the module's docstring, within an outer wall."""

    @property
    def plan(self) -> str:
        """The grid without player and boxes: walls, floor and targets."""
        return self.grid.translate(PLAN)


PLAN = str.maketrans("PXSV", "..OO")


def strides(plan: str) -> dict[str, int]:
    """How far an action moves the player in the text of the grid."""
    width = plan.index("\n") + 1
    return {"U": -width, "D": width, "L": -1, "R": 1}


def draw(plan: str, place: Place) -> str:
    """The plan with the player and the boxes in it."""
    player, boxes = place
    cells = list(plan)
    for box in boxes:
        cells[box] = "V" if plan[box] == "O" else "X"
    cells[player] = "S" if plan[player] == "O" else "P"
    return "".join(cells)


@lru_cache(maxsize=1024)
def distances(plan: str) -> dict[Place, int]:
    """The fewest moves to the solution, from every place that has one: breadth-first search back from the solved places, which undoes
    steps and pushes."""
    free = [i for i, cell in enumerate(plan) if cell in ".O"]
    targets = frozenset(i for i in free if plan[i] == "O")
    queue = [(player, targets) for player in free if player not in targets]
    found = dict.fromkeys(queue, 0)
    for player, boxes in queue:
        for step in strides(plan).values():
            back = player - step
            if plan[back] == "#" or back in boxes:
                continue
            before = [(back, boxes)]
            if player + step in boxes:
                before.append((back, boxes - {player + step} | {player}))
            for place in before:
                if place not in found:
                    found[place] = found[player, boxes] + 1
                    queue.append(place)
    return found


class Sokoban(Agent):
    """The task of a `SokobanConfig`. A place is a `Place`. For the members see `sesa.tasks.Environment`."""

    instruction = (
        "You are in a storehouse. # is a wall, . is floor, O is a target, X is a box, V is a box on a target, P is you, S is you on a "
        "target. Bring every box onto a target. You push a box by walking into it, one at a time, if the cell behind it is free; you "
        "cannot pull. Use few steps: each costs a little."
    )
    names = {"U": "Up", "D": "Down", "L": "Left", "R": "Right"}
    symbols = "#.OXVPS"

    def __init__(self, config: SokobanConfig = SokobanConfig()):
        super().__init__(config)

    def generate(self, rng: np.random.Generator) -> Room:
        """Raises:
        ValueError: no room of this kind was found.
        """
        inner, (least, most) = self.config.size - 2, self.config.moves
        for _ in range(10_000):
            cells = np.where(rng.random(inner * inner) < self.config.walls, "#", ".")
            cells[rng.permutation(inner * inner)[: self.config.boxes]] = "O"
            rows = np.pad(cells.reshape(inner, inner), 1, constant_values="#")
            plan = "\n".join("".join(row) for row in rows)
            starts = [place for place, moves in distances(plan).items() if least <= moves <= most]
            if starts:
                return Room(draw(plan, starts[rng.integers(len(starts))]))
        raise ValueError(f"no room of this kind has a solution of {least} to {most} moves: ask for a larger one, or fewer boxes or walls")

    def canonical(self, problem: Room) -> str:
        """The same wherever player and boxes begin: a walk sees the others too."""
        return problem.plan

    def place(self, problem: Room) -> Place:
        at = {sign: [i for i, cell in enumerate(problem.grid) if cell in sign] for sign in ("PS", "XV")}
        return at["PS"][0], frozenset(at["XV"])

    def render(self, problem: Room, place: Place) -> str:
        grid = draw(problem.plan, place)
        return grid if self.config.form == "chat" else "\n".join(row[1:-1] for row in grid.split("\n")[1:-1])

    def move(self, problem: Room, place: Place, action: str, rng: np.random.Generator | None) -> tuple[Place, float, bool, bool]:
        plan, (player, boxes) = problem.plan, place
        step = strides(plan)[action]
        ahead, beyond = player + step, player + 2 * step
        if plan[ahead] == "#" or ahead in boxes and (plan[beyond] == "#" or beyond in boxes):
            return place, -0.1, False, False
        if ahead not in boxes:
            return (ahead, boxes), -0.1, False, False
        boxes = boxes - {ahead} | {beyond}
        solved = all(plan[box] == "O" for box in boxes)
        reward = -0.1 + (plan[beyond] == "O") - (plan[ahead] == "O") + 10 * solved
        return (ahead, boxes), reward, solved, solved

    def advice(self, problem: Room, place: Place) -> str:
        """By the moves that are left after the action; what leads into a dead end comes last."""
        left = distances(problem.plan)
        return "".join(sorted(self.names, key=lambda action: left.get(self.move(problem, place, action, None)[0], inf)))

    def optimal_success(self, problem: Room, steps: int = MAX_ACTIONS) -> float:
        """1 if there is a solution of at most `steps` moves, else 0."""
        return float(distances(problem.plan).get(self.place(problem), inf) <= steps)

    def random_success(self, problem: Room, steps: int = MAX_ACTIONS) -> float:
        """The probability that random actions solve it within `steps`. Exact: the distribution over places, step by step."""
        here, solved = {self.place(problem): 1.0}, 0.0
        for _ in range(steps):
            after: Counter[Place] = Counter()
            for place, p in here.items():
                for action in self.names:
                    then, _, over, _ = self.move(problem, place, action, None)
                    if over:
                        solved += p / len(self.names)
                    else:
                        after[then] += p / len(self.names)
            here = after
        return solved
