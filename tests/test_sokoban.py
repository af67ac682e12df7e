"""Sokoban: its rules by hand, its solver against a search that shares no code with it, exact success rates against play."""

import json
from collections import Counter, deque
from dataclasses import replace
from math import fsum, sqrt

import numpy as np
import pytest

from sesa.runs import ROOT
from sesa.tasks.agent import State
from sesa.tasks.sokoban import Room, Sokoban, SokobanConfig, distances

FEW = {"train": 20, "held_out": 10}
TASK = Sokoban(SokobanConfig(**FEW))
TWO = Sokoban(SokobanConfig(boxes=2, **FEW))
CHAT = Sokoban(SokobanConfig(form="chat", **FEW))


def room(*rows: str) -> Room:
    """A room of these inner rows."""
    width = len(rows[0]) + 2
    return Room("\n".join(["#" * width, *(f"#{row}#" for row in rows), "#" * width]))


def act(problem: Room, actions: str):
    """(the grid after it, rewards, solved) of actions one by one, in the compact form's rows."""
    state, rewards, solved = TASK.reset(problem), [], False
    for seed, action in enumerate(actions):
        assert not solved
        state, reward, _, solved = TASK.step(problem, state, action, seed)
        rewards.append(reward)
    return TASK.render(problem, state.place).replace("\n", "/"), rewards, solved


def search(problem: Room) -> tuple[int, str] | None:
    """The fewest moves to the solution and such moves, forwards over coordinates; None if there is no solution. Own rules throughout."""
    at = {(r, c): cell for r, row in enumerate(problem.grid.split("\n")) for c, cell in enumerate(row)}
    targets = {x for x, cell in at.items() if cell in "OVS"}
    start = next(x for x, cell in at.items() if cell in "PS"), frozenset(x for x, cell in at.items() if cell in "XV")
    way, queue = {start: ""}, deque([start])
    while queue:
        (r, c), boxes = here = queue.popleft()
        if boxes == targets:
            return len(way[here]), way[here]
        for action, (dr, dc) in {"U": (-1, 0), "D": (1, 0), "L": (0, -1), "R": (0, 1)}.items():
            near, far = (r + dr, c + dc), (r + 2 * dr, c + 2 * dc)
            if at[near] == "#":
                continue
            moved = boxes
            if near in boxes:
                if at[far] == "#" or far in boxes:
                    continue
                moved = frozenset(far if box == near else box for box in boxes)
            if (near, moved) not in way:
                way[near, moved] = way[here] + action
                queue.append((near, moved))
    return None


# ----------------------------------------------------------------------------------------------------------------- rules


@pytest.mark.parametrize(
    "rows, actions, after, reward",
    [
        ((".P..", "....", "..X.", "O..."), "U", ".P../..../..X./O...", -0.1),  # the outer wall
        ((".P#.", "....", "..X.", "O..."), "R", ".P#./..../..X./O...", -0.1),  # a wall
        ((".P..", "....", "..X.", "O..."), "L", "P.../..../..X./O...", -0.1),
        ((".P..", "....", "..X.", "O..."), "R", "..P./..../..X./O...", -0.1),
        ((".P..", "....", "..X.", "O..."), "D", "..../.P../..X./O...", -0.1),
        ((".O..", ".P..", "..X.", "...."), "U", ".S../..../..X./....", -0.1),  # onto a target
        (("PX..", "....", "....", "O..."), "R", ".PX./..../..../O...", -0.1),  # a push
        (("..XP", "....", "....", "O..."), "L", ".XP./..../..../O...", -0.1),
        (("....", ".P..", ".X..", "...O"), "D", "..../..../.P../.X.O", -0.1),
        (("....", ".X..", ".P..", "...O"), "U", ".X../.P../..../...O", -0.1),
        (("..PX", "....", "....", "O..."), "R", "..PX/..../..../O...", -0.1),  # against the outer wall
        ((".PX#", "....", "....", "O..."), "R", ".PX#/..../..../O...", -0.1),  # against a wall
        (("PXX.", "....", "....", "O..O"), "R", "PXX./..../..../O..O", -0.1),  # against a box
        (("PXO.", "....", ".X..", "O..."), "R", ".PV./..../.X../O...", 0.9),  # onto a target
        (("PV..", "....", ".X..", "O..."), "R", ".SX./..../.X../O...", -1.1),  # off it
        (("PVO.", "....", ".X..", "...."), "R", ".SV./..../.X../....", -0.1),  # from one to another
    ],
)
def test_a_step(rows, actions, after, reward):
    found, rewards, solved = act(room(*rows), actions)
    assert (found, solved) == (after, False) and rewards == pytest.approx([reward])


def test_rewards_of_a_solution_add_up():
    """-0.1 a step, 1 for every box, 10 for the solution; a box pushed off its target and back earns nothing but the steps' costs."""
    assert act(room("PX.O"), "RR") == ("..PV", pytest.approx([-0.1, 10.9]), True)
    found, rewards, solved = act(room("PXO.", "....", ".XO.", "...."), "RLDDR")
    assert (found, solved) == ("..V./..../.PV./....", True) and rewards == pytest.approx([0.9, -0.1, -0.1, -0.1, 10.9])
    found, rewards, solved = act(room(".....", ".PV..", "O....", ".X..."), "RURRDL")
    assert (found, solved) == ("...../..VP./O..../.X...", False) and rewards == pytest.approx([-1.1, -0.1, -0.1, -0.1, -0.1, 0.9])


def test_a_turn_of_several_actions_adds_rewards_and_ends_when_solved():
    problem = room("PX.O", "....")
    step = CHAT.step(problem, CHAT.reset(problem), "<answer>Right || Right || Down</answer>", 0)
    assert step[1:] == (pytest.approx(10.8), True, True) and (step.state.actions, step.state.turns) == (2, 1)
    assert CHAT.render(problem, step.state.place) == room("..PV", "....").grid


def test_a_push_into_a_corner_goes_on_until_the_limit():
    problem = room(".X..", ".P..", "....", "..O.")
    state = TASK.reset(problem)
    for i in range(10):
        state, reward, done, solved = TASK.step(problem, state, "U", i)
        assert (reward, done, solved) == (-0.1, i == 9, False)


# ----------------------------------------------------------------------------------------------------------------- rooms


def test_rooms_are_solved_in_as_many_moves_as_a_plain_search_finds():
    rng, far = np.random.default_rng(0), Counter()
    for _ in range(1000):
        problem = TASK.generate(rng)
        moves, way = search(problem)
        far[moves] += 1
        assert distances(problem.plan)[TASK.place(problem)] == moves
        state, total = TASK.reset(problem), 0.0
        for i, action in enumerate(way):
            state, reward, done, solved = TASK.step(problem, state, action, i)
            total += reward
            assert solved == done == (i == moves - 1)
        assert total == pytest.approx(11 - 0.1 * moves)
        assert [TASK.optimal_success(problem, n) for n in (moves - 1, moves, 10)] == [0, 1, 1]
    assert set(far) == set(range(1, 9)) and min(far.values()) > 20


@pytest.mark.parametrize("task", [TASK, TWO], ids=["one box", "two"])
def test_advice_solves_every_room_as_fast_as_can_be(task):
    rng = np.random.default_rng(1)
    for _ in range(150):
        problem = task.generate(rng)
        state, solved, moves = task.reset(problem), False, 0
        assert 1 <= search(problem)[0] <= 8
        while not solved:
            advice = task.advice(problem, state.place)
            assert sorted(advice) == sorted("UDLR")
            state, _, done, solved = task.step(problem, state, advice[0], 0)
            moves += 1
            assert solved or not done
        assert moves == search(problem)[0]


def test_the_table_knows_every_place_and_the_dead_ends():
    """Every place of 12 rooms: the table's distance is the search's, and what it lacks has no solution."""
    rng, dead = np.random.default_rng(2), 0
    for problem in (TASK.generate(rng) for _ in range(12)):
        free = [i for i, cell in enumerate(problem.plan) if cell in ".O"]
        for place in ((player, frozenset([box])) for player in free for box in free if player != box):
            here = Room(with_outer_wall(TASK.render(problem, place)))
            found = search(here)
            dead += found is None
            assert distances(problem.plan).get(place) == (found and found[0])
    assert dead > 100


def with_outer_wall(rows: str) -> str:
    return room(*rows.split("\n")).grid


def test_dead_ends_are_the_last_advice():
    problem = room("....", "..XP", ".O..", "....")
    state = TASK.reset(problem)
    after = {a: search(Room(with_outer_wall(TASK.render(problem, TASK.step(problem, state, a, 0).state.place)))) for a in "UDLR"}
    left = [after[a][0] if after[a] else np.inf for a in TASK.advice(problem, state.place)]
    assert left == sorted(left)
    corner = room(".XP.", "....", "....", "O...")  # along the upper wall for ever: no advice helps, none fails
    assert search(corner) is None and TASK.advice(corner, TASK.place(corner)) == "UDLR"
    assert TASK.optimal_success(corner) == TASK.random_success(corner) == 0
    choice = room("....", ".PX.", "....", "..O.")  # right: the box is at the wall, and lost
    assert TASK.advice(choice, TASK.place(choice))[-1] == "R"


def test_rooms_are_as_the_config_says():
    rng = np.random.default_rng(3)
    for config in (TASK.config, TWO.config, replace(TASK.config, size=7, moves=(3, 4), walls=0.0)):
        task = Sokoban(config)
        problems = [task.generate(rng) for _ in range(100)]
        for problem in problems:
            rows, count = problem.grid.split("\n"), Counter(problem.grid)
            assert len(rows) == config.size and {len(row) for row in rows} == {config.size}
            assert {*rows[0], *rows[-1], *(row[0] for row in rows), *(row[-1] for row in rows)} == {"#"}
            assert count["X"] + count["V"] == config.boxes == count["O"] + count["V"] + count["S"] and count["P"] + count["S"] == 1
            assert config.moves[0] <= search(problem)[0] <= config.moves[1]
            assert config.walls or count["#"] == 4 * (config.size - 1)
        assert len({problem.id for problem in problems}) > 85


def test_walls_are_about_as_frequent_as_asked_for():
    """Rooms without a start are drawn again, which favours those with fewer walls."""
    rng = np.random.default_rng(4)
    for walls in (0.05, 0.15, 0.3):
        task = Sokoban(replace(TASK.config, walls=walls))
        share = np.mean([(task.generate(rng).grid.count("#") - 20) / 15 for _ in range(300)])
        assert 0.7 * walls < share < 1.1 * walls


def test_impossible_rooms_are_refused():
    with pytest.raises(ValueError, match="ask for a larger one"):
        Sokoban(SokobanConfig(size=4, **FEW))  # every box lies in a corner


@pytest.mark.parametrize("wrong", [{"size": 3}, {"boxes": 0}, {"walls": 1.0}, {"moves": (0, 3)}, {"moves": (4, 3)}, {"moves": (1, 11)}])
def test_wrong_configs_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SokobanConfig(**wrong)


def test_random_success_by_hand_and_in_play():
    assert TASK.random_success(room("PX.O"), 2) == pytest.approx(1 / 16)
    assert TASK.random_success(room("PX.O"), 3) == pytest.approx(1 / 16 + 5 / 64)  # RR; xRR with U, D or L, RxR with U or D
    rng, n = np.random.default_rng(5), 700
    for problem in (room("PXO.", "....", "....", "...."), room("....", ".X.O", "P...", "....")):
        p, solved = TASK.random_success(problem), 0
        for seed in range(n):
            state, done = TASK.reset(problem), False
            while not done:
                state, _, done, won = TASK.step(problem, state, "UDLR"[rng.integers(4)], seed)
            solved += won
        assert 0.02 < p < 0.9 and abs(solved - n * p) < 4 * sqrt(n * p * (1 - p))


@pytest.mark.parametrize("cut", [[5, 5], [1, 1, 4, 3, 1], [1, 1, 5, 2, 1]])
def test_equal_walks_cut_into_other_turns_earn_the_same(cut):
    """Every turn earns what is written as a decimal, so the walk does too."""
    case = json.loads((ROOT / "tests" / "cases" / "11_equal_rewards.json").read_text())
    assert str(cut).replace(" ", "") in case["walks"]
    problem = Room("\n".join(case["room"]))
    state, rewards = CHAT.reset(problem), []
    for length in cut:
        state, reward, done, _ = CHAT.step(problem, state, f"<answer>{' || '.join(['Left'] * length)}</answer>", 0)
        rewards.append(reward)
    assert done and rewards == [-length / 10 for length in cut] and fsum(rewards) == -1.0


# ----------------------------------------------------------------------------------------------------------------- texts


def test_both_forms_to_the_letter():
    problem = room("..O.", ".#X.", "..P.", "....")
    assert TASK.observe(problem, TASK.reset(problem), ["U"]) == "a1.a2.a3Oa4.b1.b2#b3Xb4.c1.c2.c3Pc4.d1.d2.d3.d4.\nU\n"
    assert CHAT.observe(problem, CHAT.reset(problem)) == (
        "<|im_start|>system\nYou're a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "You are in a storehouse. # is a wall, . is floor, O is a target, X is a box, V is a box on a target, P is you, S is you on a "
        "target. Bring every box onto a target. You push a box by walking into it, one at a time, if the cell behind it is free; you cannot pull. "
        "Use few steps: each costs a little.\n\n"
        "State:\n######\n#..O.#\n#.#X.#\n#..P.#\n#....#\n######\n10 actions and 5 turns are left. Think between <think> and "
        "</think>, then write up to 5 actions, joined by ||, between <answer> and </answer>. Actions: Up, Down, Left, Right.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_demonstrations_can_be_replayed_from_their_texts():
    """The last action of every list leads to what is seen next, and only the last turn solves the room or uses up the actions."""
    solved = 0
    for text in TASK.warm_start_texts(np.random.default_rng(6), 150):
        grids = [room(*(seen[2:48:3][i : i + 4] for i in range(0, 16, 4))) for seen in text[::2]]
        assert 1 <= search(grids[0])[0] <= 8
        for turn, (grid, done) in enumerate(zip(grids, text[1::2], strict=True)):
            state = State(TASK.place(grid), turn, turn)
            step = TASK.step(grid, state, done.split("\n")[-2], 0)
            assert step.done == (turn == len(grids) - 1)
            if not step.done:
                assert TASK.render(grid, step.state.place).replace("\n", "") + "\n" == text[2 * turn + 2][2::3] + "\n"
        solved += step.solved
    assert 5 < solved < 75
