"""Sudoku: grids and solver against other algorithms, the grader against a naive checker, and sketches as orders of filling."""

import re
import time
from collections import Counter
from itertools import permutations, product
from math import sqrt

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sesa.tasks import split_of
from sesa.tasks.sudoku import Sudoku, SudokuConfig, SudokuTask, candidates, solutions

TASK = SudokuTask()
CHAT = SudokuTask(SudokuConfig(form="chat", train=8, held_out=8))
NINE = SudokuTask(SudokuConfig(size=9, empty=(30, 50), train=12, held_out=6))
EXAMPLE = Sudoku(".2....2343..213.")  # the docstring's
SOLVED = "3241142343122134"


def naive(size: int, grid: str) -> bool:
    """Whether this is a full grid: all sets of a row, a column, a box are the set of all digits."""
    box = 2 if size == 4 else 3
    at = {divmod(i, size): digit for i, digit in enumerate(grid)}
    sets = [{at[r, c] for c in range(size)} for r in range(size)] + [{at[r, c] for r in range(size)} for c in range(size)]
    sets += [{at[r + i, c + j] for i in range(box) for j in range(box)} for r in range(0, size, box) for c in range(0, size, box)]
    return all(s == {str(d) for d in range(1, size + 1)} for s in sets)


ROWS_4 = ["".join(row) for row in permutations("1234")]
HALVES = [a + b for a, b in product(ROWS_4, repeat=2) if len({*a[:2], *b[:2]}) == 4]  # two rows, their boxes right
ALL_4X4 = {a + b for a, b in product(HALVES, repeat=2) if naive(4, a + b)}


def fits(cells: str, grid: str) -> bool:
    return all(given in (".", digit) for given, digit in zip(cells, grid, strict=True))


def exact_cover(cells: str, limit: int = 2) -> list[str]:
    """Solutions by Knuth's Algorithm X: each (cell, digit) covers a cell and a digit in a row, a column and a box."""
    size = 4 if len(cells) == 16 else 9
    box = 2 if size == 4 else 3
    covers = {}
    for r, c, d in product(range(size), range(size), range(1, size + 1)):
        if cells[r * size + c] in (".", str(d)):
            covers[r, c, d] = [("cell", r, c), ("row", r, d), ("column", c, d), ("box", r // box, c // box, d)]
    columns = {k: set() for r, c in product(range(size), repeat=2)
               for k in (("cell", r, c), ("row", r, c + 1), ("column", r, c + 1), ("box", r // box, r % box, c + 1))}
    for choice, needs in covers.items():
        for need in needs:
            columns[need].add(choice)
    found = []

    def search(columns, chosen):
        if not columns:
            digits = {(r, c): str(d) for r, c, d in chosen}
            found.append("".join(digits[divmod(i, size)] for i in range(size * size)))
        elif len(found) < limit:
            for choice in columns[min(columns, key=lambda need: len(columns[need]))]:
                gone = {other for need in covers[choice] for other in columns[need]}
                search({need: left - gone for need, left in columns.items() if need not in covers[choice]}, [*chosen, choice])

    search(columns, [])
    return found[:limit]


def order_of(size: int, sketch: str, cells: str) -> list[int]:
    """The empty cells as a sketch fills them, by sorting: units from the first one on, then reading order."""
    box = 2 if size == 4 else 3

    def rank(cell):
        r, c = divmod(cell, size)
        unit = {"r": r, "c": c, "b": r // box * box + c // box}[sketch[0]]
        return (unit - int(sketch[1]) + 1) % size, r, c

    return sorted((i for i, given in enumerate(cells) if given == "."), key=rank)


def text_of(size: int, order, grid: str) -> str:
    return "".join(f"{'abcdefghi'[i // size]}{i % size + 1}{grid[i]}" for i in order)


def cells_of(size: int, text: str) -> list[int]:
    return ["abcdefghi".index(row) * size + int(column) - 1 for row, column in zip(text[::3], text[1::3], strict=True)]


def all_sketches(size: int) -> list[str]:
    return [f"{kind}{i}" for kind in "rcb" for i in range(1, size + 1)]


def problems(task, n: int, seed: int = 0) -> list[Sudoku]:
    rng = np.random.default_rng(seed)
    return [task.generate(rng) for _ in range(n)]


MANY, NINES = problems(TASK, 1000), problems(NINE, 30)
BOTH = pytest.mark.parametrize("task, many", [(TASK, MANY), (NINE, NINES)], ids=["4x4", "9x9"])


# --------------------------------------------------------------------------------------------------------------- solver


def test_there_are_288_grids_of_4x4_and_each_is_as_likely():
    assert set(TASK.full_4x4) == ALL_4X4 and len(ALL_4X4) == len(TASK.full_4x4) == 288
    task = SudokuTask(SudokuConfig(empty=(1, 1), train=1, held_out=1))
    drawn = Counter(p.solution for p in problems(task, 288 * 30))
    assert abs(sum((drawn[grid] - 30) ** 2 / 30 for grid in ALL_4X4) - 287) < 4 * sqrt(2 * 287)  # chi-square, 287 degrees of freedom


@given(st.sampled_from(sorted(ALL_4X4)), st.sets(st.integers(0, 15)), st.integers(1, 300))
@settings(deadline=None)
def test_solutions_of_any_4x4_are_those_of_brute_force(grid, emptied, limit):
    cells = "".join("." if i in emptied else digit for i, digit in enumerate(grid))
    expected, found = {g for g in ALL_4X4 if fits(cells, g)}, solutions(cells, limit)
    assert len(found) == len(set(found)) == min(limit, len(expected)) and set(found) <= expected
    assert set(solutions(cells, 300, np.random.default_rng(0))) == expected


@given(st.text(".1234", min_size=16, max_size=16))
@example("11" + "." * 14)
@example("1234" * 4)
@settings(deadline=None)
def test_clashing_givens_have_no_solution(cells):
    assert set(solutions(cells, 300)) == {grid for grid in ALL_4X4 if fits(cells, grid)}


@pytest.mark.parametrize(
    "cells, solved",
    [
        (
            "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79",
            "534678912672195348198342567859761423426853791713924856961537284287419635345286179",
        ),
        (
            "..3.2.6..9..3.5..1..18.64....81.29..7.......8..67.82....26.95..8..2.3..9..5.1.3..",
            "483921657967345821251876493548132976729564138136798245372689514814253769695417382",
        ),
        (
            "8..........36......7..9.2...5...7.......457.....1...3...1....68..85...1..9....4..",
            "812753649943682175675491283154237896369845721287169534521974368438526917796318452",
        ),
    ],
    ids=["Wikipedia's example", "Project Euler 96", "hard to search"],
)
def test_published_9x9_puzzles(cells, solved):
    assert solutions(cells) == exact_cover(cells) == [solved] and naive(9, solved)


def test_a_9x9_of_several_solutions():
    """Two pairs of digits in a rectangle over two boxes may be swapped: exactly two solutions."""
    rows = ["534678912", "672195348", "198342567", "859761423", "426853791", "713924856", "961537284", "287419635", "345286179"]
    grid = "".join(rows)
    pair = next(
        (a, b, c, d) for a, b in product(range(81), repeat=2) if a // 9 < b // 9 and a // 27 == b // 27 and a % 9 < b % 9
        for c, d in [(a // 9 * 9 + b % 9, b // 9 * 9 + a % 9)] if grid[a] == grid[b] and grid[c] == grid[d]
    )
    cells = "".join("." if i in pair else digit for i, digit in enumerate(grid))
    assert len(solutions(cells)) == 2 and set(solutions(cells)) == set(exact_cover(cells)) and len(solutions(cells, 1)) == 1


# ------------------------------------------------------------------------------------------------------------- problems


def test_4x4_puzzles_have_one_solution_and_as_many_empty_cells_as_asked():
    for p in MANY:
        assert [grid for grid in ALL_4X4 if fits(p.cells, grid)] == [p.solution] and p.id == p.cells
    empties = Counter(p.cells.count(".") for p in MANY)
    assert set(empties) == {4, 5, 6, 7, 8} and all(abs(n - 200) < 4 * sqrt(1000 * 0.2 * 0.8) for n in empties.values())


def test_9x9_puzzles_have_one_solution():
    for p in NINES:
        assert exact_cover(p.cells) == [p.solution] and 30 <= p.cells.count(".") <= 50
    relabelled = {p.solution.translate(str.maketrans(p.solution[:9], "123456789")) for p in NINES}
    assert len(relabelled) == len(NINES)  # no two are the same grid, nor the same but for the names of the digits


def test_the_emptiest_puzzles_allowed():
    for size, empty in ((4, 12), (9, 55)):
        task = SudokuTask(SudokuConfig(size=size, empty=(empty, empty), train=2, held_out=1))
        for p in task.problems:
            assert p.cells.count(".") == empty and exact_cover(p.cells) == [p.solution]


def test_splits_are_disjoint_and_fixed_by_the_seed():
    """No full grid of one split solves a puzzle of another."""
    train, held_out = ({p.solution for p in ps} for ps in (TASK.problems, TASK.held_out))
    warm = {TASK.sample("warm start", np.random.default_rng(i)).solution for i in range(200)}
    assert (len(TASK.problems), len(TASK.held_out)) == (256, 128) and not train & held_out and not warm & (train | held_out)
    assert {split_of(i) for i in train} == {"train"} and {split_of(i) for i in held_out} == {"held-out"} and {split_of(i) for i in warm} == {"warm start"}
    other = SudokuTask(SudokuConfig(seed=1))
    assert SudokuTask().problems == TASK.problems != other.problems and other.held_out == TASK.held_out


def test_a_search_has_problems_of_its_own():
    search = SudokuTask(SudokuConfig(held_out=16, held_out_split="tuning"))
    assert {split_of(p.solution) for p in search.held_out} == {"tuning"} and search.problems == TASK.problems
    with pytest.raises(ValueError, match="held_out_split is held-out or tuning"):
        SudokuConfig(held_out_split="train")


@pytest.mark.parametrize("wrong", [{"size": 6}, {"size": 0}, {"empty": (0, 4)}, {"empty": (5, 4)}, {"empty": (4, 13)}, {"empty": (4,)}])
def test_wrong_configs_are_refused(wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} is "):
        SudokuConfig(**wrong)
    with pytest.raises(ValueError, match="empty is"):
        SudokuConfig(size=9, empty=(30, 56))


# ------------------------------------------------------------------------------------------------------------- sketches


@BOTH
def test_sketches_are_orders_and_those_of_one_order_have_one_key(task, many):
    for p in many[:100]:
        orders = {sketch: order_of(task.size, sketch, p.cells) for sketch in all_sketches(task.size)}
        first = {sketch: next(s for s in orders if orders[s] == order) for sketch, order in orders.items()}
        assert task.sketches(p) == list(dict.fromkeys(first.values()))
        assert {sketch: task.sketch_key(p, sketch) for sketch in orders} == first
        for sketch in orders:
            text = task.attempt(p, sketch, np.random.default_rng(0))
            assert task.strategy(p, text) == first[sketch]
            assert cells_of(task.size, text) == order_of(task.size, sketch, "." * len(p.cells))  # all cells, givens too


def test_sketches_of_one_order_do_occur():
    assert {len(TASK.sketches(p)) for p in MANY} >= {8, 12}


def test_the_docstrings_example_and_what_it_forces():
    assert EXAMPLE.solution == SOLVED
    assert text_of(4, EXAMPLE.orders["c3"], SOLVED) == "a34c31a41c42d44a13b11b24"
    assert {s: TASK.forced(EXAMPLE, s) for s in ("r1", "r2", "c3")} == {"r1": 6 / 8, "r2": 1.0, "c3": 7 / 8}  # by hand


@BOTH
def test_forced_counts_cells_of_one_candidate(task, many):
    for p in many[:10]:
        for sketch in task.sketches(p)[::5]:
            cells, single = p.cells, 0
            for i in order_of(task.size, sketch, p.cells):
                single += sum(naive_fits(task.size, cells, i, d) for d in "123456789"[: task.size]) == 1
                cells = cells[:i] + p.solution[i] + cells[i + 1 :]
            assert task.forced(p, sketch) == pytest.approx(single / p.cells.count("."))


def naive_fits(size: int, cells: str, i: int, digit: str) -> bool:
    box, (r, c) = 2 if size == 4 else 3, divmod(i, size)
    same = [j for j in range(size * size) if j // size == r or j % size == c or (j // size // box, j % size // box) == (r // box, c // box)]
    return all(cells[j] != digit for j in same if j != i)


@given(st.sampled_from(MANY), st.integers(0, 15))
@settings(deadline=None)
def test_candidates_are_what_clashes_with_nothing(p, cell):
    assert candidates(p.cells, cell) == [d for d in "1234" if naive_fits(4, p.cells, cell, d)]


def test_sketch_keys():
    for text, key in {"c3": "c3", " c3\n": "c3", "columns from 3": "c3", "Rows from 1": "r1", "boxes from 2": "b2"}.items():
        assert TASK.sketch_key(EXAMPLE, text) == CHAT.sketch_key(EXAMPLE, text) == key
    assert {TASK.sketch_key(EXAMPLE, text) for text in ("c5", "c0", "x1", "c", "3", "c33", "c3 c4", "rows", "rows from", "")} == {None}


# ------------------------------------------------------------------------------------------------------------- attempts


@pytest.mark.parametrize("skill", [0.0, 0.3, 1.0])
def test_attempts_with_mistakes_anywhere_are_right_as_often_as_skill_says(skill):
    task = SudokuTask(SudokuConfig(skill=skill, mistakes="anywhere", train=1, held_out=1))
    rng = np.random.default_rng(1)
    texts = [(p, task.attempt(p, task.sketches(p)[rng.integers(len(task.sketches(p)))], rng)) for p in MANY]
    grades = [task.grade(p, text) for p, text in texts]
    placements = [[text[i : i + 3] for i in range(0, len(text), 3)] for _, text in texts]
    written = ["".join(x for x, cell in zip(xs, cells_of(4, text), strict=True) if p.cells[cell] == ".") for xs, (p, text) in zip(placements, texts, strict=True)]
    assert [g.key for g in grades] == written
    assert abs(sum(g.solved for g in grades) - 1000 * skill) <= 4 * sqrt(1000 * skill * (1 - skill))
    if skill == 0:
        wrong = [sum(text[2 + 3 * i] != p.solution[cell] for i, cell in enumerate(cells_of(4, text))) for p, text in texts]
        assert set(wrong) >= {1, 2, 3, 4} and min(wrong) == 1


@pytest.mark.parametrize("skill", [0.0, 0.4, 1.0])
def test_guesses_go_wrong_where_several_digits_fit_and_only_there(skill):
    """So an attempt is right with probability skill ** (cells of its order that nothing forces): the order matters."""
    task = SudokuTask(SudokuConfig(skill=skill, train=1, held_out=1, empty=(9, 12)))
    rng, solved, expected, guesses = np.random.default_rng(3), [], [], []
    for p in problems(task, 300):
        for sketch in task.sketches(p):
            text, cells, free = task.attempt(p, sketch, rng), p.cells, 0
            for i, digit in zip(cells_of(4, text), text[2::3], strict=True):
                fitting = {d for d in "1234" if naive_fits(4, cells, i, d)} if p.cells[i] == "." else {p.cells[i]}
                assert digit in fitting
                if len(fitting) > 1:
                    guesses.append(digit == p.solution[i])
                if digit != p.solution[i]:
                    break
                cells = cells[:i] + digit + cells[i + 1 :]
            right = p.cells
            for i in cells_of(4, text):
                free += p.cells[i] == "." and sum(naive_fits(4, right, i, d) for d in "1234") > 1
                right = right[:i] + p.solution[i] + right[i + 1 :]
            solved.append(task.grade(p, text).solved)
            expected.append(skill**free)
    assert abs(sum(guesses) - skill * len(guesses)) <= 4 * sqrt(len(guesses) * skill * (1 - skill))
    assert abs(sum(solved) - sum(expected)) <= 4 * sqrt(sum(e * (1 - e) for e in expected))
    assert len(guesses) > 2000 and (skill != 0.4 or 0.1 < sum(solved) / len(solved) < 0.5)


def test_a_first_slip_clashes_only_where_it_must():
    """The first wrong digit is one of the candidates of its moment, wherever there is a wrong one among them."""
    task = SudokuTask(SudokuConfig(skill=0.0, mistakes="anywhere", train=1, held_out=1, empty=(8, 12)))
    rng, guesses, forced = np.random.default_rng(2), 0, 0
    for p in problems(task, 300):
        text, cells = task.attempt(p, "r1", rng), p.cells
        for i, digit in enumerate(text[2::3]):
            if p.cells[i] != ".":
                assert digit == p.cells[i]
                continue
            fitting = {d for d in "1234" if naive_fits(4, cells, i, d)}
            if digit != p.solution[i]:
                assert digit in fitting or fitting == {p.solution[i]}
                guesses, forced = guesses + (digit in fitting), forced + (digit not in fitting)
                break
            cells = cells[:i] + digit + cells[i + 1 :]
    assert guesses > 20 and forced > 20


# --------------------------------------------------------------------------------------------------------------- grades


@BOTH
def test_solver_and_grader_agree(task, many):
    for p in many:
        (solved,) = solutions(p.cells)
        assert task.grade(p, text_of(task.size, order_of(task.size, "b2", p.cells), solved)).reward == 1 and fits(p.cells, solved)


@st.composite
def filled(draw):
    """A problem, and a filling of its cells that is right but for some: (problem, empty cells in any order, the grid)."""
    p = draw(st.sampled_from(MANY + NINES))
    size = int(sqrt(len(p.cells)))
    empty = draw(st.permutations([i for i, given in enumerate(p.cells) if given == "."]))
    grid = list(p.solution)
    for i in draw(st.lists(st.sampled_from(empty), max_size=3)):
        grid[i] = draw(st.sampled_from("123456789"[:size]))
    if draw(st.booleans()) and len(empty) > 1:
        grid[empty[0]], grid[empty[1]] = grid[empty[1]], grid[empty[0]]
    return p, empty, "".join(grid)


@given(filled(), st.sampled_from(["", " ", "=", ", ", "\n"]))
@settings(deadline=None, max_examples=300)
def test_grades_are_those_of_a_naive_checker(filling, gap):
    p, order, grid = filling
    task = TASK if len(p.cells) == 16 else NINE
    chat = CHAT if task is TASK else SudokuTask(SudokuConfig(size=9, form="chat", train=1, held_out=1))
    text, right = text_of(task.size, order, grid), naive(task.size, grid) and fits(p.cells, grid)
    expected = (float(right), text, right)
    assert (g := task.grade(p, gap.join(text))) and (g.reward, g.key, g.solved) == expected
    rows = "\n".join(grid[i : i + task.size] for i in range(0, len(grid), task.size))
    for answer in (rows, " ".join(rows), rows.replace("\n", "|\n|--+--|\n|"), text):
        g = chat.grade(p, f"<think>{p.cells}</think>\n<answer>\n{answer}\n</answer>")
        assert (g.reward, g.key, g.solved) == (float(right), grid, right)


def test_rows_columns_and_boxes_all_count():
    """Fillings in which two of the three kinds of unit are right, and the third is not."""
    task = SudokuTask(SudokuConfig(empty=(12, 12), train=1, held_out=1))
    latin = {"".join(rows) for rows in permutations(ROWS_4, 4) if all(len(set(column)) == 4 for column in zip(*rows, strict=True))}
    boxes_wrong = latin - ALL_4X4
    columns_wrong = {a + b for a, b in product(HALVES, repeat=2)} - ALL_4X4
    rows_wrong = {"".join(grid[i::4] for i in range(4)) for grid in columns_wrong}
    graded = [0, 0, 0]
    for p in problems(task, 30):
        for kind, grids in enumerate((boxes_wrong, columns_wrong, rows_wrong)):
            for grid in grids:
                if fits(p.cells, grid):
                    graded[kind] += 1
                    assert task.grade(p, text_of(4, order_of(4, "r1", p.cells), grid)).reward == 0
    assert len(boxes_wrong) == 576 - 288 and min(graded) > 10


def test_what_is_no_complete_filling_has_no_key():
    right = text_of(4, order_of(4, "r1", EXAMPLE.cells), SOLVED)
    assert right == "a13a34a41b11b24c31c42d44" and TASK.grade(EXAMPLE, right).reward == 1
    assert TASK.grade(EXAMPLE, f"a22{right}").key == right  # a given repeated
    assert TASK.grade(EXAMPLE, f"a22{right}").reward == 1 and TASK.strategy(EXAMPLE, f"a22{right}") == "r1"
    wrongs = ["a21" + right, right[3:], right + "a13", right + "a12", right + "e11", right + "x", "x" + right, right.upper(), right[:-1]]
    wrongs += [right[:-1] + "5", right[:-1] + "0", right.replace("a13", "a53"), SOLVED, EXAMPLE.cells, "", f"<answer>{right}</answer>"]
    for wrong in wrongs:
        assert TASK.grade(EXAMPLE, wrong).key is None and TASK.grade(EXAMPLE, wrong).reward == 0, wrong
        assert TASK.strategy(EXAMPLE, wrong) is None, wrong
    for wrong in [SOLVED[:-1], SOLVED + "1", SOLVED.replace("4", "5"), "1" * 16, EXAMPLE.cells, SOLVED.replace("3241", "2341"), "", "no"]:
        assert CHAT.grade(EXAMPLE, f"<answer>{wrong}</answer>").key is None, wrong
    assert CHAT.grade(EXAMPLE, SOLVED).key is None and CHAT.grade(EXAMPLE, right).key is None  # outside of <answer>
    assert CHAT.strategy(EXAMPLE, f"<answer>{SOLVED}</answer>") is None and CHAT.strategy(EXAMPLE, f"<answer>{right}</answer>") == "r1"


@given(st.one_of(st.text(st.characters(), max_size=60), st.text("abcde12345.=, \n<>/rows", max_size=60)))
@example("\ud800\0\u0663\u00b2\u0130")
@example("a1\u0663" * 8)
@settings(deadline=None, max_examples=300)
def test_any_text_gets_a_grade(text):
    for task in (TASK, CHAT):
        for hostile in (text, f"<answer>{text}</answer>"):
            grade = task.grade(EXAMPLE, hostile)
            assert grade.reward == float(grade.solved) and (grade.key or not grade.solved)
            assert task.strategy(EXAMPLE, hostile) in {None, *TASK.sketches(EXAMPLE)}
            assert task.sketch_key(EXAMPLE, hostile) in {None, *TASK.sketches(EXAMPLE)}


@pytest.mark.parametrize("text", ["a13" * 10**5, " " * 10**6, "1" * 10**6, "<answer>" * 10**5, "<answer>" + "a" * 10**6, "a1" * 10**6])
def test_long_texts_are_graded_fast(text):
    for task in (TASK, CHAT):
        start = time.process_time()
        assert task.grade(EXAMPLE, text).key is None and task.strategy(EXAMPLE, text) is None and task.sketch_key(EXAMPLE, text) is None
        assert time.process_time() - start < 3


# ---------------------------------------------------------------------------------------------------------------- texts


@BOTH
def test_texts_are_of_the_tasks_words_and_within_the_bounds(task, many):
    known = {"\n", " ", *task.words}
    assert len(task.words) == len(set(task.words)) and all(re.fullmatch(task.token_pattern, word) for word in task.words)
    longest = 0
    for prompt, completion in task.warm_start_texts(np.random.default_rng(3), 40):
        assert set(re.findall(task.token_pattern, prompt + completion)) <= known and completion.endswith("\n")
        bound = task.sketch_max_tokens if prompt[-2] == "?" else task.max_tokens
        lines = [len(re.findall(task.token_pattern, f"{line}\n")) for line in completion.splitlines()]
        assert max(lines) <= bound
        longest = max(longest, *lines)
    assert longest <= task.max_tokens == task.size**2 + 1 and task.sketch_max_tokens == 3
    p = max(problems(task, 40), key=lambda p: p.cells.count("."))
    assert task.max_tokens == len(re.findall(task.token_pattern, task.attempt(p, "b1", np.random.default_rng(0)))) + 1


def test_lists_of_sketches_are_different_ones_and_expansions_follow_theirs():
    kinds = Counter()
    for prompt, completion in TASK.warm_start_texts(np.random.default_rng(4), 1000):
        p, kind, lines = Sudoku(prompt[2:48:3]), prompt[48], completion.splitlines()
        kinds[kind] += 1
        keys = [TASK.sketch_key(p, line) if kind == "?" else TASK.grade(p, line).key for line in lines]
        assert None not in keys and len(set(keys)) == len(keys)
        if kind == ">":
            assert TASK.strategy(p, lines[0]) == TASK.sketch_key(p, prompt[49:]) and len(lines) == 1
    assert set(kinds) == {":", "?", ">"}


@given(st.lists(st.text("abc123 \n", max_size=8), max_size=4), st.text("abc123 \n", max_size=8), st.sampled_from([TASK, CHAT]))
@settings(deadline=None)
def test_a_longer_history_only_appends(history, line, task):
    for ask in (task.prompt, task.sketch_prompt):
        assert ask(EXAMPLE, [*history, line]).startswith(ask(EXAMPLE, history) + line)


def test_compact_prompts():
    shown = "a1.a22a3.a4.b1.b2.b32b43c14c23c3.c4.d12d21d33d4."
    assert TASK.prompt(EXAMPLE, ["a13"]) == f"{shown}:\na13\n"
    assert TASK.sketch_prompt(EXAMPLE, ["r1", "c3"]) == f"{shown}?\nr1\nc3\n"
    assert TASK.expand_prompt(EXAMPLE, "c3") == f"{shown}>c3\n"
    assert re.findall(TASK.token_pattern, f"{shown[:6]}>c3\na34") == ["a1.", "a22", ">", "c", "3", "\n", "a34"]


def test_chat_prompts():
    system = "<|im_start|>system\nYou're a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    rules = (
        "Complete the Sudoku: each row, column and 2x2 box holds every digit from 1 to 4 once. A dot is an empty cell. "
        "Write the completed grid, 4 lines of 4 digits, between <answer> and </answer>."
    )
    shown, end = "\n\n.2..\n..23\n43..\n213.", "<|im_end|>\n<|im_start|>assistant\n"
    assert CHAT.prompt(EXAMPLE) == system + rules + shown + end
    assert CHAT.expand_prompt(EXAMPLE, "columns from 3") == f"{system}{rules}{shown}\n\nFollow this outline: columns from 3{end}"
    assert CHAT.sketch_prompt(EXAMPLE).endswith(f"{CHAT.outline}{end}1. ") and CHAT.question(EXAMPLE) in CHAT.sketch_prompt(EXAMPLE)
    assert "3x3 box holds every digit from 1 to 9" in NINE.instruction and NINE.question(NINES[0]).count("\n") == 8
