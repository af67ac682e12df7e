"""Sudoku, 4x4 and 9x9: puzzles with one solution, whose empty cells may be filled in any order.  (All of it our choice.)

Compact, a solution names its placements in the order they are made, row letter, column, digit: "b23" is b2=3. In the chat form it is the
completed grid. A *sketch* is the order of filling, a kind of unit and the first one, cyclic: "c3" fills columns 3, 4, 1, 2 downwards; boxes
are numbered, and filled, in reading order. Orders differ in how often what stands there forces a cell when its turn comes. An example:
".2....2343..213." in the order "c3" is filled by "a34c31a41c42d44a13b11b24".

For a tiny LM the compact form names all cells: a prompt shows the grid as "a1.a22a3.a4.b1. ...", a cell and what stands in it being one
token; and demonstrations walk over all cells in the order of their sketch, givens among them. Without these two it learned no filling.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from math import isqrt

import numpy as np

from sesa.tasks import Grade
from sesa.tasks.generated import CELL, ROWS, Puzzle, PuzzleConfig, answer_of, cell_tokens, named, said

DIGITS = "123456789"
KINDS = "rcb"  # rows, columns, boxes, the favourites first: a language model would write in reading order
MOST_EMPTY = {4: 12, 9: 55}  # 4x4: no puzzle has fewer than 4 givens; 9x9: cells emptied at random seldom get further


@dataclass(frozen=True)
class SudokuConfig(PuzzleConfig):
    size: int = 4  # rows: 4 or 9
    empty: tuple[int, int] = (4, 8)  # cells, (least, most)
    mistakes: str = "guesses"  # of a demonstration: "guesses", at cells that nothing forces; "anywhere", so that all orders are as good

    def __post_init__(self):
        super().__post_init__()
        if self.size not in MOST_EMPTY:
            raise ValueError(f"size is 4 or 9 rows, not {self.size}")
        if len(self.empty) != 2 or not 1 <= self.empty[0] <= self.empty[1] <= MOST_EMPTY[self.size]:
            raise ValueError(f"empty is (least, most) cells, from 1 to {MOST_EMPTY[self.size]} at size {self.size}, not {self.empty}")
        if self.mistakes not in ("guesses", "anywhere"):
            raise ValueError(f"mistakes is guesses or anywhere, not {self.mistakes!r}")


@cache
def units(size: int) -> tuple[tuple[int, ...], ...]:
    """(3 * size, size): the cells, numbered row by row, of every row, then of every column, then of every box."""
    n, b = range(size), isqrt(size)
    rows = [tuple(r * size + c for c in n) for r in n]
    return (*rows, *zip(*rows, strict=True), *(tuple((u // b * b + i // b) * size + u % b * b + i % b for i in n) for u in n))


@cache
def walks(size: int) -> dict[str, tuple[int, ...]]:
    """All cells in the order of every sketch, the favourites first."""
    cycles = {kind: units(size)[i * size : i * size + size] * 2 for i, kind in enumerate(KINDS)}
    return {f"{kind}{i + 1}": sum(cycle[i : i + size], ()) for kind, cycle in cycles.items() for i in range(size)}


@cache
def _peers(size: int) -> list[set[int]]:
    return [{c for unit in units(size) if cell in unit for c in unit} - {cell} for cell in range(size * size)]


def candidates(cells: str | list[str], cell: int) -> list[str]:
    """The digits that stand nowhere else in this cell's row, column and box."""
    seen = {cells[peer] for peer in _peers(isqrt(len(cells)))[cell]}
    return [digit for digit in DIGITS[: isqrt(len(cells))] if digit not in seen]


def solutions(cells: str, limit: int = 2, rng: np.random.Generator | None = None) -> list[str]:
    """At most `limit` different solutions, by backtracking at a cell with the fewest candidates; with `rng`, its digits in random order."""
    size, found = isqrt(len(cells)), []
    def search(grid: str, free: dict[int, int]):  # empty cell -> its candidates as bits
        if not free:
            return found.append(grid)
        cell = min(free, key=lambda cell: free[cell].bit_count())
        for i in rng.permutation(size).tolist() if rng else range(size):
            if free[cell] >> i & 1 and len(found) < limit:
                rest = {c: bits & ~(1 << i) if c in _peers(size)[cell] else bits for c, bits in free.items() if c != cell}
                search(grid[:cell] + DIGITS[i] + grid[cell + 1 :], rest)
    if all(digit == "." or digit in candidates(cells, cell) for cell, digit in enumerate(cells)):
        search(cells, {i: sum(1 << int(d) - 1 for d in candidates(cells, i)) for i, digit in enumerate(cells) if digit == "."})
    return found


@dataclass(frozen=True)
class Sudoku:
    """A problem with one solution. cells: size * size characters row by row, digits from 1 to size, and "." for an empty cell."""
    cells: str
    id = property(lambda self: self.cells)
    solution = cached_property(lambda self: solutions(self.cells, 1)[0])

    @cached_property
    def orders(self) -> dict[str, tuple[int, ...]]:
        """The empty cells as each sketch fills them, favourites first; of all sketches, those of the same order too."""
        return {sketch: self.empty(walk) for sketch, walk in walks(isqrt(len(self.cells))).items()}

    def empty(self, cells: Iterable[int]) -> tuple[int, ...]:
        """Those of the cells that are empty."""
        return tuple(cell for cell in cells if self.cells[cell] == ".")

    @cached_property
    def first(self) -> dict[tuple[int, ...], str]:
        """The first sketch of every order: where no cell of column 1 is empty, "c2" means what "c1" does."""
        return {order: sketch for sketch, order in reversed(self.orders.items())}


class SudokuTask(Puzzle):
    """The puzzles of a `SudokuConfig`; for the members see `sesa.tasks.generated.Puzzle`."""
    token_pattern = rf"{CELL}|[\s\S]"
    full_4x4 = solutions("." * 16, limit=288)  # all there are
    outline = 'Write each as "rows from 1", "columns from 3" or "boxes from 2": the kind of unit to fill one by one, and the first of them.'

    def __init__(self, config: SudokuConfig = SudokuConfig()):
        self.size = n = config.size
        self.words = list(dict.fromkeys([*":?>", *DIGITS[:n], *KINDS, *cell_tokens(n, f"{DIGITS[:n]}.")]))
        self.compact_tokens = n * n + 1, 3
        self.instruction = f"Complete the Sudoku: each row, column and {isqrt(n)}x{isqrt(n)} box holds every digit from 1 to {n} once. "
        self.instruction += f"A dot is an empty cell. Write the completed grid, {n} lines of {n} digits, between <answer> and </answer>."
        super().__init__(config)

    def generate(self, rng: np.random.Generator) -> Sudoku:
        """A full grid (4x4: all are as likely; 9x9: as a random search finds one), emptied in random order while it has one solution."""
        wanted = int(rng.integers(*self.config.empty, endpoint=True))
        while True:
            cells = list(self.full_4x4[rng.integers(288)] if self.size == 4 else solutions("." * 81, 1, rng)[0])
            for cell in rng.permutation(len(cells)).tolist():
                digit, cells[cell] = cells[cell], "."
                if len(candidates(cells, cell)) > 1 and len(solutions("".join(cells))) > 1:  # one candidate: nothing to search for
                    cells[cell] = digit
                elif cells.count(".") == wanted:
                    return Sudoku("".join(cells))

    def canonical(self, problem: Sudoku) -> str:
        """Of 4x4 the full grid: there are 288, and who has seen one knows every puzzle that it solves."""
        return problem.solution if self.size == 4 else problem.id

    def show(self, problem: Sudoku) -> str:
        """Every cell by name, "a13a2.a3."."""
        return named(self.question(problem))

    def question(self, problem: Sudoku) -> str:
        return "\n".join("".join(problem.cells[cell] for cell in row) for row in units(self.size)[: self.size])

    def sketches(self, problem: Sudoku) -> list[str]:
        """Those that differ in the order of filling: at most 12 of a 4x4, 27 of a 9x9."""
        return [sketch for sketch, order in problem.orders.items() if problem.first[order] == sketch]

    def sketch_key(self, problem: Sudoku, text: str) -> str | None:
        """The first sketch of the same order. "c3" may be written out, "columns from 3"."""
        m = re.fullmatch(r"([rcb]|rows from |columns from |boxes from )([1-9])", said(text).strip().lower())
        return problem.first.get(problem.orders.get(m[1][0] + m[2])) if m else None

    def strategy(self, problem: Sudoku, text: str) -> str | None:
        """The first sketch whose order the placements follow, all of them; givens may stand anywhere between. None of a grid."""
        of_a_grid = self.config.form == "chat" and not re.search(f"[{ROWS}][1-9]", answer_of(text) or "")
        return None if of_a_grid else problem.first.get(problem.empty(self._read(problem, text)))

    def forced(self, problem: Sudoku, sketch: str) -> float:
        """The share of placements, in this order, with one candidate when their turn comes and all before are right (naked singles)."""
        cells, count = list(problem.cells), 0
        for cell in problem.orders[sketch]:
            count += len(candidates(cells, cell)) == 1
            cells[cell] = problem.solution[cell]
        return count / len(problem.orders[sketch])

    def attempt(self, problem: Sudoku, sketch: str, rng: np.random.Generator) -> str:
        """With mistakes "guesses": where several digits fit, the right one with probability `skill`, else another that fits. "anywhere": with
        probability 1 - skill some cells (about two) are wrong, if possible without a clash. What follows a mistake goes on from it."""
        cells, order, slips = list(problem.cells), problem.orders[sketch], []
        if self.config.mistakes == "anywhere" and rng.random() >= self.config.skill:
            slips = [order[rng.integers(len(order))], *(cell for cell in order if rng.random() * len(order) < 1)]
        for cell in order:
            right, fitting = problem.solution[cell], candidates(cells, cell)
            slip = cell in slips or self.config.mistakes == "guesses" and len(fitting) > 1 and rng.random() >= self.config.skill
            options = [right] if right in fitting or not fitting else fitting  # what is right, as long as it fits
            if slip:
                options = [d for d in fitting if d != right] or [d for d in DIGITS[: self.size] if d != right]
            cells[cell] = options[rng.integers(len(options))]
        return self._written(cells, walks(self.size)[sketch])

    def in_chat(self, problem: Sudoku, solution: str) -> str:
        """The grid: it does not tell the order of filling."""
        digits = [what[2] for what in sorted(re.findall(CELL, solution))]
        rows = ["".join(digits[i : i + self.size]) for i in range(0, len(digits), self.size)]
        return "<answer>\n{}\n</answer>".format("\n".join(rows))

    def sketch_in_chat(self, sketch: str) -> str:
        return f"{dict(r='rows', c='columns', b='boxes')[sketch[0]]} from {sketch[1]}"

    def grade(self, problem: Sudoku, text: str) -> Grade:
        """Reward 1 for a solution, else 0. key: the placements in their order; in the chat form the completed grid."""
        if not (placed := self._read(problem, text)):
            return Grade(0.0, None, False)
        grid = "".join(placed.get(cell, given) for cell, given in enumerate(problem.cells))
        right = all(len({grid[cell] for cell in unit}) == self.size for unit in units(self.size))
        key = grid if self.config.form == "chat" else self._written(grid, problem.empty(placed))
        return Grade(float(right), key, right)

    def _read(self, problem: Sudoku, text: str) -> dict[int, str]:
        """Cell -> digit in the order written, from placements or (chat) a grid; {} unless all empty cells get one and no given another."""
        n, chat = self.size, self.config.form == "chat"
        answer = re.sub(r"[\s=,|+-]", "", answer_of(text) or "" if chat else said(text))
        if chat and re.fullmatch(f"[1-{n}]{{{n * n}}}", answer):
            answer = self._written(answer, range(n * n))
        found = re.findall(f"([{ROWS[:n]}])([1-{n}])([1-{n}])", answer)
        placed = {ROWS.index(row) * n + int(column) - 1: digit for row, column, digit in found}
        whole = all(cell in placed if given == "." else placed.get(cell, given) == given for cell, given in enumerate(problem.cells))
        return placed if whole and 3 * len(placed) == len(answer) else {}  # no other characters, no cell twice

    def _written(self, cells: str | list[str], order: tuple[int, ...] | list[int] | range) -> str:
        return "".join(f"{ROWS[cell // self.size]}{cell % self.size + 1}{cells[cell]}" for cell in order)
