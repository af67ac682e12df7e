"""FrozenLake: gymnasium's probabilities, exact success rates against play, the warm start; and the protocol that all agents share."""

import re
from collections import Counter, deque
from copy import deepcopy
from dataclasses import FrozenInstanceError, replace
from math import sqrt

import numpy as np
import pytest
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sesa.models import word_tokenizer
from sesa.tasks import is_environment, split_of
from sesa.tasks.agent import State
from sesa.tasks.frozen_lake import FrozenLake, FrozenLakeConfig, Lake, crossable, success_by_limit
from sesa.tasks.sokoban import Room, Sokoban, SokobanConfig

FEW = {"train": 20, "held_out": 10}
TASK = FrozenLake(FrozenLakeConfig(**FEW))
MILD = FrozenLake(FrozenLakeConfig(success_rate=0.8, **FEW))
SURE = FrozenLake(FrozenLakeConfig(success_rate=1.0, **FEW))
CHAT = FrozenLake(FrozenLakeConfig(success_rate=1.0, form="chat", **FEW))
LAKE = Lake("P..H\n.H..\n....\nH..G")
NEAR = Lake("...H\n.P..\n.H..\n..G.")
OPEN = Lake("....\n.P..\n....\n...G")


def lakes(n: int, seed: int) -> list[Lake]:
    rng = np.random.default_rng(seed)
    return [TASK.generate(rng) for _ in range(n)]


def cells(lake: Lake) -> str:
    return lake.grid.replace("\n", "")


def distance(lake: Lake) -> int | None:
    """Steps from P to G past the holes, by breadth-first search over (row, column)."""
    rows = lake.grid.split("\n")
    at = {(r, c): cell for r, row in enumerate(rows) for c, cell in enumerate(row)}
    start = next(x for x, cell in at.items() if cell == "P")
    far, queue = {start: 0}, deque([start])
    while queue:
        r, c = queue.popleft()
        if at[r, c] == "G":
            return far[r, c]
        for x in ((r, c + 1), (r, c - 1), (r + 1, c), (r - 1, c)):
            if at.get(x, "H") != "H" and x not in far:
                far[x] = far[r, c] + 1
                queue.append(x)
    return None


def play(task, problem, policy, seed: int):
    """(steps, states): policy(state) -> text, until the end."""
    rng, states, steps = np.random.default_rng(seed), [task.reset(problem)], []
    while not steps or not steps[-1].done:
        steps.append(task.step(problem, states[-1], policy(states[-1]), int(rng.integers(2**31))))
        states.append(steps[-1].state)
    return steps, states


# ----------------------------------------------------------------------------------------------------------------- rules


@pytest.mark.parametrize("action, cell", [("L", 4), ("R", 6), ("U", 1), ("D", 9)])
def test_actions_lead_where_their_names_say(action, cell):
    step = SURE.step(OPEN, SURE.reset(OPEN), action, 0)
    assert (step.state, step.reward, step.done, step.solved) == (State(cell, 1, 1), 0.0, False, False)


@pytest.mark.parametrize("cell, action", [(0, "L"), (0, "U"), (3, "R"), (12, "D")])
def test_the_border_holds(cell, action):
    assert SURE.step(OPEN, State(cell), action, 0).state.place == cell


def test_the_goal_earns_one_and_a_hole_ends_all():
    for task in (SURE, CHAT):
        right, down = (f"<answer>{word}</answer>" for word in ("right", "down")) if task is CHAT else "RD"
        assert task.step(LAKE, State(14), right, 0) == (State(15, 1, 1), 1.0, True, True)
        assert task.step(LAKE, State(8), down, 0) == (State(12, 1, 1), 0.0, True, False)


@pytest.mark.parametrize("task", [TASK, MILD], ids=["RAGEN's ice", "mild"])
def test_slips_are_as_frequent_as_in_gymnasium(task):
    """Of every cell and action 300 steps of gymnasium's own environment, and 300 of ours: no frequency differs by 4.5 standard errors,
    and every kind of step that one of them makes more than a few times the other makes, too."""
    n, env = 300, FrozenLakeEnv(desc="SFFH FHFF FFFF HFFG".split(), is_slippery=True, success_rate=task.config.success_rate)
    env.reset(seed=1)
    for cell in range(16):
        if cells(LAKE)[cell] in "HG":
            continue
        for number, action in enumerate("LDRU"):
            theirs, ours = Counter(), Counter()
            for i in range(n):
                env.s = cell
                theirs[tuple(env.step(number)[:3])] += 1
                step = task.step(LAKE, State(cell), action, 10**6 * cell + 10**4 * number + i)
                ours[step.state.place, step.reward, step.done] += 1
            for kind in {*theirs, *ours}:
                p = (theirs[kind] + ours[kind]) / (2 * n)
                assert abs(theirs[kind] - ours[kind]) <= 4.5 * sqrt(2 * n * p * (1 - p)) + 1e-9, (cell, action, kind)


def test_siblings_slip_apart_and_equal_seeds_alike():
    state = TASK.reset(OPEN)
    before = deepcopy(state)
    after = [TASK.step(OPEN, state, "R", seed) for seed in range(60)]
    assert {step.state.place for step in after} == {1, 6, 9}  # never back
    assert after == [TASK.step(OPEN, state, "R", seed) for seed in range(60)]
    assert state == before and hash(state) == hash(before)
    with pytest.raises(FrozenInstanceError):
        state.place = 3


def test_slips_within_a_turn_are_independent():
    """Twice right, far from any border: all 3 x 3 pairs of slips come."""
    task = FrozenLake(replace(CHAT.config, size=7, success_rate=1 / 3))
    lake = Lake("\n".join(["......."] * 3 + ["...P..."] + ["......."] * 2 + ["......G"]))
    found = Counter(task.step(lake, task.reset(lake), "<answer>Right||Right</answer>", seed).state.place for seed in range(900))
    expected = {24: 2, 26: 1, 18: 2, 32: 2, 10: 1, 38: 1}  # of 9; 24: up and down cancel
    assert set(found) == set(expected)
    assert all(abs(found[x] - 100 * k) < 4 * sqrt(900 * k / 9 * (1 - k / 9)) for x, k in expected.items())


# ----------------------------------------------------------------------------------------------------------------- lakes


def test_lakes_have_a_way_one_start_and_one_goal_anywhere():
    found = lakes(1500, 0)
    for lake in found:
        assert re.fullmatch(r"([PGH.]{4}\n){3}[PGH.]{4}", lake.grid) and (lake.grid.count("P"), lake.grid.count("G")) == (1, 1)
        assert distance(lake) is not None
    for sign in "PG":
        assert {cells(lake).index(sign) for lake in found} == set(range(16))
    assert len({lake.id for lake in found}) > 1400


def test_holes_are_as_frequent_as_asked_for():
    """Where P and G touch there is a way whatever the rest is, so nothing biases the holes; 4 standard errors."""
    for frozen in (0.3, 0.8):
        task, rng = FrozenLake(replace(TASK.config, frozen=frozen)), np.random.default_rng(1)
        touching = [lake for lake in (task.generate(rng) for _ in range(2500)) if distance(lake) == 1]
        n = 14 * len(touching)
        assert abs(sum(lake.grid.count(".") for lake in touching) - n * frozen) < 4 * sqrt(n * frozen * (1 - frozen))


def test_crossable_agrees_with_a_search_over_coordinates():
    rng, seen = np.random.default_rng(2), Counter()
    for size in (2, 3, 4, 5):
        for _ in range(400):
            grid = rng.choice(list(".H"), size * size, p=[0.55, 0.45])
            start, goal = rng.choice(size * size, 2, replace=False)
            grid[start], grid[goal] = "P", "G"
            lake = Lake("\n".join("".join(row) for row in grid.reshape(size, size)))
            seen[crossable(lake)] += 1
            assert crossable(lake) == (distance(lake) is not None)
    assert min(seen.values()) > 300


@pytest.mark.parametrize("wrong", [{"size": 1}, {"frozen": 1.1}, {"success_rate": 0.0}, {"form": "verse"}, {"skill": 2}])
def test_wrong_configs_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FrozenLakeConfig(**wrong)


# ------------------------------------------------------------------------------------------------------------ solutions


def test_without_slips_advice_takes_a_shortest_way():
    far = Counter()
    for seed, lake in enumerate(lakes(1000, 3)):
        steps, _ = play(SURE, lake, lambda state: SURE.advice(lake, state.place)[0], seed)
        far[distance(lake)] += 1
        assert steps[-1].solved == (distance(lake) <= 10) and len(steps) == min(distance(lake), 10)
        assert sum(step.reward for step in steps) == steps[-1].solved
        assert SURE.optimal_success(lake) == (distance(lake) <= 10)
    assert len(far) >= 6  # easy and hard ones


def test_with_slips_advice_is_all_actions_and_play_ends_as_it_should():
    for seed, lake in enumerate(lakes(1000, 4)):
        steps, states = play(TASK, lake, lambda state: TASK.advice(lake, state.place)[0], seed)
        assert all(sorted(TASK.advice(lake, state.place)) == sorted("LDRU") for state in states)
        end = cells(lake)[states[-1].place]
        assert steps[-1].solved == (end == "G") == (steps[-1].reward == 1.0)
        assert [step.reward for step in steps[:-1]] == [0.0] * (len(steps) - 1)
        assert len(steps) == 10 or end in "GH"
        assert all(cells(lake)[state.place] in "P." for state in states[:-1])


def test_success_rates_are_those_known_of_the_setting():
    """RAGEN's ice: best 0.50, random 0.23; mild: best 0.90, measured by other code. 1,000 lakes have a standard error of 0.009 or less."""
    found = lakes(1000, 5)
    assert abs(np.mean([TASK.optimal_success(lake) for lake in found]) - 0.50) < 0.02
    assert abs(np.mean([TASK.random_success(lake) for lake in found]) - 0.23) < 0.02
    assert abs(np.mean([MILD.optimal_success(lake) for lake in found]) - 0.90) < 0.02


@pytest.mark.parametrize("task, lake", [(TASK, NEAR), (MILD, LAKE), (TASK, OPEN)])
def test_exact_success_is_the_frequency_of_play(task, lake):
    n, by_limit = 700, success_by_limit(lake, task.config.success_rate, 10, np.max)

    def best(state):
        return "LDRU"[by_limit[9 - state.actions, state.place].argmax()]

    rng = np.random.default_rng(6)
    for policy, p in ((best, task.optimal_success(lake)), (lambda state: rng.choice(list("LDRU")), task.random_success(lake))):
        solved = sum(play(task, lake, policy, seed)[0][-1].solved for seed in range(n))
        assert 0.01 < p < 0.95 and abs(solved - n * p) < 4 * sqrt(n * p * (1 - p))


def test_two_steps_by_hand():
    """Up, then right, each with 1/3 or 0.8. At random 3 of 4 actions may end as "up", with 1/3 each; and so for "right"."""
    lake = Lake(".G\nPH")
    assert TASK.optimal_success(lake, 1) == TASK.random_success(lake, 1) == 0
    assert TASK.optimal_success(lake, 2) == pytest.approx(1 / 9) and MILD.optimal_success(lake, 2) == pytest.approx(0.64)
    assert TASK.random_success(lake, 2) == pytest.approx(1 / 16)


def test_advice_is_almost_as_good_as_the_best_policy():
    """It does not count its actions, which costs less than 2 points."""
    for task in (TASK, MILD):
        lost = []
        for lake in lakes(100, 7):
            value = np.zeros(16)
            first = ["LDRU".index(task.advice(lake, cell)[0]) for cell in range(16)]
            for _ in range(10):  # the value of this fixed policy
                value = success_by_one(lake, task, value)[range(16), first]
            lost.append(task.optimal_success(lake) - value[task.place(lake)])
        assert min(lost) > -1e-9 and np.mean(lost) < 0.02


def success_by_one(lake: Lake, task: FrozenLake, value: np.ndarray) -> np.ndarray:
    """(cells, 4): one action, then what `value` promises; from the rules of the task's docstring, without gymnasium."""
    found, text, p = np.zeros((16, 4)), cells(lake), task.config.success_rate
    for cell in range(16):
        ends = []
        for dr, dc in ((0, -1), (1, 0), (0, 1), (-1, 0)):
            near = 4 * min(max(cell // 4 + dr, 0), 3) + min(max(cell % 4 + dc, 0), 3)
            ends.append({"G": 1.0, "H": 0.0}.get(text[near], value[near]))
        if text[cell] not in "GH":
            found[cell] = [p * ends[a] + (1 - p) / 2 * (ends[a - 1] + ends[(a + 1) % 4]) for a in range(4)]
    return found


# ----------------------------------------------------------------------------------------------------------------- texts


def test_compact_form_is_one_line_and_hides_the_start_once_left():
    assert TASK.observe(LAKE, TASK.reset(LAKE)) == "a1Pa2.a3.a4Hb1.b2Hb3.b4.c1.c2.c3.c4.d1Hd2.d3.d4G\n"
    assert TASK.observe(LAKE, State(2), ["L", "x y"]) == "a1.a2.a3Pa4Hb1.b2Hb3.b4.c1.c2.c3.c4.d1Hd2.d3.d4G\nL\nx y\n"
    assert [TASK.render(LAKE, cell) for cell in (0, 15)] == [LAKE.grid, "...H\n.H..\n....\nH..P"]


def test_chat_form_to_the_letter():
    task = FrozenLake(FrozenLakeConfig(form="chat", **FEW))
    assert task.observe(LAKE, task.reset(LAKE)) == (
        "<|im_start|>system\nYou're a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "You are on a frozen lake. P is you, G is the goal, H is a hole, . is ice. Walk to G: a hole ends the walk. The ice is slippery: "
        "a step goes the way you choose with a probability of 33%, and otherwise, as likely to one side as to the other, at a right "
        "angle to it. A step off the grid leaves you where you are.\n\n"
        "State:\nP..H\n.H..\n....\nH..G\n10 actions and 5 turns are left. Think between <think> and </think>, then write up to 5 actions, "
        "joined by ||, between <answer> and </answer>. Actions: Left, Down, Right, Up.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert task.observe(LAKE, State(2, 3, 1), ["hm"]) == (
        "\n<|im_start|>user\nState:\n..PH\n.H..\n....\nH..G\n7 actions and 4 turns are left. Think between <think> and </think>, then "
        "write up to 5 actions, joined by ||, between <answer> and </answer>. Actions: Left, Down, Right, Up.<|im_end|>\n<|im_start|>assistant\n"
        "hm<|im_end|>\n<|im_start|>user\nPropose something else to do here, different from all before.<|im_end|>\n<|im_start|>assistant\n"
    )


# ----------------------------------------------------------------------------------------------- what all agents share

AGENTS = [
    agent(config(form=form, **FEW))
    for agent, config in ((FrozenLake, FrozenLakeConfig), (Sokoban, SokobanConfig))
    for form in ("compact", "chat")
]
agents = pytest.mark.parametrize("task", AGENTS, ids=lambda task: f"{type(task).__name__}, {task.config.form}")
compact = pytest.mark.parametrize("task", AGENTS[::2], ids=lambda task: type(task).__name__)
chat = pytest.mark.parametrize("task", AGENTS[1::2], ids=lambda task: type(task).__name__)


@agents
def test_agents_keep_the_protocol(task):
    assert is_environment(task)
    assert (task.stop, task.max_tokens) == (("\n", 2) if task.config.form == "compact" else ("<|im_end|>", 512))


@agents
def test_splits_share_no_problem(task):
    rng = np.random.default_rng(0)
    split = {
        "train": task.problems, "held-out": task.held_out, "warm start": [task.sample("warm start", rng) for _ in range(50)],
    }
    for name, problems in split.items():
        assert {split_of(task.canonical(problem)) for problem in problems} == {name}
    maps = [{re.sub("[PXSV]", lambda m: "O" if m[0] in "SV" else ".", problem.id) for problem in problems} for problems in split.values()]
    assert not maps[0] & maps[1] and not maps[2] & (maps[0] | maps[1])  # the same map with another start is no other problem
    ids = [problem.id for problem in (*task.problems, *task.held_out)]
    assert len(set(ids)) == len(ids) == 30
    again = type(task)(task.config)
    assert again.problems == task.problems and again.held_out == task.held_out
    assert type(task)(replace(task.config, seed=1)).problems != task.problems


@compact
def test_warm_start_is_the_same_for_equal_generators(task):
    a, b, c = (task.warm_start_texts(np.random.default_rng(seed), 20) for seed in (1, 1, 2))
    assert a == b != c


@compact
def test_compact_texts_consist_of_the_tasks_words(task):
    tokenizer = word_tokenizer(task.words, task.token_pattern)
    assert len(set(task.words)) == len(task.words)
    for text in ("".join(text) for text in task.warm_start_texts(np.random.default_rng(3), 100)):
        ids = tokenizer.encode(text)
        assert tokenizer.unk_token_id not in ids and tokenizer.decode(ids) == text and len(ids) == len(text) - 2 * len(re.findall("[a-d][1-4]", text))
    assert {len(tokenizer.encode(f"{name}\n")) for name in task.names} == {task.max_tokens}


@compact
def test_demonstrations_are_growing_lists_and_end_with_play(task):
    """(seen, done, ...): 16 cells, then 1 to 4 different actions; at most 10 turns. First proposals are the best as often as `skill`."""
    for skill in (0.0, 0.5, 1.0):
        able = type(task)(replace(task.config, skill=skill))
        texts, best, lengths = able.warm_start_texts(np.random.default_rng(4), 150), [], Counter()
        for text in texts:
            assert len(text) % 2 == 0 and 1 <= len(text) // 2 <= 10
            for seen, done in zip(text[::2], text[1::2], strict=True):
                assert len(seen) == 49 and re.fullmatch("([a-d][1-4].)+", seen[:-1]) and seen[-1] == "\n" and "\n" not in seen[:-1]
                actions = done.split("\n")
                assert actions.pop() == "" and len(set(actions)) == len(actions) and set(actions) <= set(task.names)
                lengths[len(actions)] += 1
                problem = problem_of(task, seen)
                best.append(actions[0] == able.advice(problem, able.place(problem))[0])
        assert abs(np.mean(best) - skill) <= 4 * sqrt(skill * (1 - skill) / len(best))
        total = lengths.total()
        assert abs(lengths[1] / total - 1 / 2) < 4 * sqrt(1 / 4 / total)
        assert all(abs(lengths[k] / total - 1 / 6) < 4 * sqrt(5 / 36 / total) for k in (2, 3, 4))


def problem_of(task, seen: str) -> Lake | Room:
    """The problem that begins as a compact line of 4 x 4 cells shows it."""
    rows = [seen[2:48:3][i : i + 4] for i in range(0, 16, 4)]
    return Lake("\n".join(rows)) if isinstance(task, FrozenLake) else Room("\n".join(["######", *(f"#{row}#" for row in rows), "######"]))


# ............................................................................................................... actions


@pytest.mark.parametrize(
    "text, actions",
    [
        ("<think>hm</think><answer>Left || Up</answer>", "LU"),
        ("<answer>left||UP || dOwn</answer>", "LUD"),
        ("<answer>\n Right \n</answer> and so on", "R"),
        ("<answer>Up||Up||Up||Up||Up||Down||Down</answer>", "UUUUU"),  # the first five
        ("<answer>Up</answer> no: <answer>Down</answer>", "D"),  # the last
        ("<answer>Up <answer>Down</answer></answer>", "D"),  # the innermost
        ("<answer>Up</answer><answer>", "U"),
        ("<answer>Up || Jump || Down</answer>", "UD"),  # what is unknown is left out, and costs the penalty
        ("<answer>Up ||</answer>", "U"),
        ("<answer></answer>", None),
        ("<answer>Up Down</answer>", None),
        ("<answer>U</answer>", None),
        ("<answer>Up", None),
        ("Up</answer>", None),
        ("Up", None),
        ("", None),
        ("</answer>Up<answer>", None),
    ],
)
@chat
def test_chat_turns_are_read(task, text, actions):
    problem = task.problems[0]
    assert task.action_key(problem, text) == actions
    known = {name.lower() for name in task.names.values()}
    asked = (re.findall(r"<answer>([^<]*)</answer>", text) or [""])[-1].split("||")[:5]
    fine = all(word.strip().lower() in known for word in asked)
    assert task.actions_in(text) == (actions or "", fine)
    state = task.reset(problem)
    step, without = task.step(problem, state, text, 3), 0.0
    rng, place = np.random.default_rng(3), state.place
    for action in actions or "":
        place, earned, over, _ = task.move(problem, place, action, rng)
        without += earned
        if over:
            break
    assert step.reward == pytest.approx(without - 0.1 * (not fine)) and step.state.place == place


@pytest.mark.parametrize("text, action", [("L", "L"), (" U ", "U"), ("l", None), ("LL", None), ("L\nU", None), ("", None), ("Left", None)])
@compact
def test_compact_turns_are_read(task, text, action):
    assert task.action_key(task.problems[0], text) == action


any_text = st.text(st.characters(), max_size=60)
near_turn = st.lists(
    st.sampled_from(["<answer>", "</answer>", "Left", "up", "||", "|", " ", "\n", "L", "U", "<think>", "É"]), max_size=12
).map("".join)


@agents
@given(st.one_of(any_text, near_turn), st.integers(0, 9), st.integers(0, 2**63 - 1))
@example("<answer>" * 10**5, 0, 0)
@example("<answer>" + "||" * 10**5 + "</answer>", 0, 0)
@example(" " * 10**6, 0, 0)
@example("\ud800\0", 0, 0)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_text_is_a_turn(task, text, taken, seed):
    """It moves by as many actions as it holds and there are left; what holds none costs 0.1, and the agent stays."""
    problem, key = task.problems[0], task.action_key(task.problems[0], text)
    state = replace(task.reset(problem), actions=taken, turns=1)
    before = deepcopy(state)
    step = task.step(problem, state, text, seed)
    assert state == before and step == task.step(problem, state, text, seed)
    assert step.state.turns == 2 and step.solved <= step.done
    if key is None:
        assert step == (replace(state, turns=2), -0.1, False, False)
    else:
        assert set(key) <= set(task.names) and 1 <= len(key) <= (1 if task.config.form == "compact" else 5)
        used = step.state.actions - taken
        assert 1 <= used <= min(len(key), 10 - taken) and (step.done or used == len(key))
        assert step.done or step.state.actions < 10


@agents
def test_turns_are_limited_even_without_actions(task):
    limit = 10 if task.config.form == "compact" else 5
    steps, states = play(task, task.problems[0], lambda state: "hm", 0)
    assert [step.reward for step in steps] == [-0.1] * limit
    assert states[-1] == State(states[0].place, 0, limit) and [step.done for step in steps] == [False] * (limit - 1) + [True]


@pytest.mark.parametrize("a_turn, taken", [(5, [5, 10]), (4, [4, 8, 10]), (1, [1, 2, 3, 4, 5])])
def test_actions_are_limited_in_all(a_turn, taken):
    """Against the border nothing happens but that actions are used up: ten, or five turns."""
    lake = Lake("P...\n....\n....\n...G")
    steps, states = play(CHAT, lake, lambda state: f"<answer>{'||'.join(['Up'] * a_turn)}</answer>", 0)
    assert [state.actions for state in states[1:]] == taken and states[-1].place == 0
    assert [step.done for step in steps] == [False] * (len(taken) - 1) + [True] and not steps[-1].solved


def test_a_turn_stops_at_the_goal():
    lake = Lake("P.G.\n....\n....\n....")
    assert CHAT.step(lake, CHAT.reset(lake), "<answer>Right||Right||Right||Down</answer>", 0) == (State(2, 2, 1), 1.0, True, True)


@agents
@given(st.lists(any_text, max_size=4), any_text, st.integers(0, 4))
@settings(max_examples=40, deadline=None)
def test_longer_lists_of_proposals_only_append(task, proposals, one_more, turns):
    problem, state = task.problems[0], replace(task.reset(task.problems[0]), turns=turns)
    shorter, longer = task.observe(problem, state, proposals), task.observe(problem, state, [*proposals, one_more])
    assert longer.startswith(shorter)
    rest = "\n" if task.config.form == "compact" else task.stop
    assert longer[len(shorter) :].startswith(f"{one_more}{rest}")


def test_a_lake_too_large_to_name_its_cells_is_refused():
    with pytest.raises(ValueError, match="at most 9 rows"):
        FrozenLake(FrozenLakeConfig(size=10, train=1, held_out=1))
