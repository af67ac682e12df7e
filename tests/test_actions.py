"""The tree of actions: its cap, its deal, its branches, and what training sees of it."""

import copy
import json
import math
import operator
import re
from collections import Counter
from dataclasses import dataclass
from functools import reduce
from math import fsum
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sesa import sampling, training
from sesa.arms import SAMPLERS, Training
from sesa.engines import Completion
from sesa.engines.local import LocalEngine
from sesa.models import word_tokenizer
from sesa.objective import Objective, group_rewards, rollout_advantages, with_advantages
from sesa.packing import pack, packed_logprobs
from sesa.runs import derive_seed
from sesa.sampling import Group, Rollout, Sampling, _whole, actions, iid_actions, parallel
from sesa.tasks import Step, is_environment
from sesa.tasks.chat import Template, Templated
from sesa.tasks.countdown import CountdownConfig, CountdownTask
from sesa.tasks.frozen_lake import FrozenLake, FrozenLakeConfig
from sesa.tasks.paths import PathTask
from sesa.tasks.sokoban import Room, Sokoban, SokobanConfig
from sesa.training import _without_history, describe, train
from tests.conftest import TokenCounter, random_llama


@dataclass(frozen=True)
class Problem:
    id: str


class Walk:
    """Ends after `length` turns, or by "a"; every turn adds what its text is worth, and a slip of 0 or 10. With a "z" it is no action."""

    stop, max_tokens, words, token_pattern, config = "\n", 2, list("abcdefghij:.0123456789pq"), r"[\s\S]", ""

    def __init__(self, length=4, slips=True):
        self.length, self.slips, self.problems = length, slips, [Problem("p"), Problem("q")]

    def reset(self, problem):
        return (3,)

    def observe(self, problem, state, proposals=()):
        return f"{problem.id}{state[-1] % 10}:\n" + "".join(f"{p}\n" for p in proposals)

    def action_key(self, problem, text):
        return None if "z" in text else text

    def step(self, problem, state, text, seed):
        gain = sum(map(ord, text)) % 10
        slip = 10 * int(np.random.default_rng(seed).integers(2)) if self.slips else 0
        state = (*state, state[-1] + gain + slip)
        return Step(state, gain / 10, len(state) > self.length or text == "a", gain > 4)


class Dice:
    """An engine that proposes one of `faces` actions, whatever stands before; keeps the calls."""

    def __init__(self, faces="abcdef"):
        self.faces, self.calls = faces, []

    def generate(self, prompts, *, seeds, stop, max_tokens, temperature=1.0, top_p=1.0, share=None):
        self.calls.append(list(prompts))
        assert len(prompts) == len(seeds) == len(share) > 0 and len(set(seeds)) == len(seeds)
        return [Completion(self.faces[np.random.default_rng(s).integers(len(self.faces))], True) for s in seeds]


WALK = Walk()
sizes = st.tuples(st.integers(1, 12), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**20))


def test_the_walk_is_an_environment_and_paths_are_not():
    assert is_environment(WALK) and not is_environment(PathTask())


class Narrow(Dice):
    """Dice whose context holds `context` characters."""

    def __init__(self, context):
        super().__init__("bcdef")
        self.context = context

    def generate(self, prompts, **rest):
        assert all(self.fits(prompt, 2) for prompt in prompts)
        return super().generate(prompts, **rest)

    def fits(self, prompt, max_tokens):
        return len(prompt) + max_tokens <= self.context


@pytest.mark.parametrize("sampler", [parallel, actions, iid_actions])
@pytest.mark.parametrize("turns", [1, 2, 4])
def test_a_trajectory_whose_context_is_full_is_over(sampler, turns):
    """A turn shows 4 characters and writes 2, of which a proposal before it adds 2 more: 6 times `turns` holds so many turns without any."""
    groups = sampler(Narrow(6 * turns), WALK, WALK.problems, Sampling(5, branch=3), 1)
    free = sampler(Dice("bcdef"), WALK, WALK.problems, Sampling(5, branch=3), 1)
    for group, unhindered in zip(groups, free, strict=True):
        assert group.rollouts
        for r in group.rollouts:
            assert len(r.turns) <= turns and r.reward == fsum(t.reward for t in r.turns)
            assert r.overflow == (len(r.turns) < WALK.length) == r.turns[-1].overflow
            assert not any(t.overflow for t in r.turns[:-1])
        if sampler is parallel:  # no proposals beside it: just the beginning of what it is without a limit
            assert [r.text.split("\n") for r in group.rollouts] == [r.text.split("\n")[:turns] for r in unhindered.rollouts]


@settings(deadline=None)
@given(sizes, st.sampled_from([parallel, actions, iid_actions]), st.sampled_from(["abcdef", "bcz", "b"]))
def test_never_more_than_u_and_every_trajectory_replays_to_its_own_return(size, sampler, faces):
    u, k, length, seed = size
    task = Walk(length)
    groups = sampler(Dice(faces), task, task.problems, Sampling(u, branch=k), seed)
    for problem, group in zip(task.problems, groups, strict=True):
        assert 1 <= len(group.rollouts) <= u
        for rollout in group.rollouts:
            state, text, plain, lineage = task.reset(problem), "", "", None
            for number, turn in enumerate(rollout.turns):
                assert turn.prompt == text + task.observe(problem, state, turn.history)
                assert turn.plain == plain + task.observe(problem, state)
                assert len(turn.history) == (turn.position if sampler is actions else 0) < k
                start = group.rollouts.index(rollout) if sampler is parallel else 0
                lineage = (start,) if lineage is None else lineage
                lineage += (turn.position,)
                step = task.step(problem, state, turn.text, derive_seed(seed, "step", problem.id, *lineage))
                assert (turn.reward, turn.solved) == (step.reward, step.solved)
                assert step.done == (number == len(rollout.turns) - 1)
                state, text, plain = step.state, turn.prompt + turn.text + "\n", turn.plain + turn.text + "\n"
            assert rollout.reward == pytest.approx(sum(turn.reward for turn in rollout.turns))
            assert rollout.solved == rollout.turns[-1].solved
            assert rollout.completions == tuple(turn.completion for turn in rollout.turns)
            keys = [turn.key for turn in rollout.turns]
            assert rollout.key == (None if set(keys) == {None} else " ".join(k or "?" for k in keys))


@settings(deadline=None)
@given(sizes)
def test_siblings_take_different_valid_actions_and_share_all_before(size):
    u, k, length, seed = size
    (group,) = actions(Dice("abczz"), Walk(length), [Problem("p")], Sampling(u, branch=k), seed)
    children = {}
    for rollout in group.rollouts:
        for i, turn in enumerate(rollout.turns):
            children.setdefault(tuple(id(t.completion) for t in rollout.turns[:i]), {})[id(turn.completion)] = turn
    for siblings in children.values():
        turns = sorted(siblings.values(), key=lambda t: t.position)
        assert turns[0].position == 0 and len(turns) <= k
        keys = [t.key for t in turns]
        assert len(set(keys)) == len(keys) and None not in keys[1:]


def test_parallel_plays_u_times_from_the_start_and_never_branches():
    engine = Dice()
    groups = parallel(engine, WALK, WALK.problems, Sampling(5, branch=4), 1)
    assert [len(g.rollouts) for g in groups] == [5, 5]
    assert len(engine.calls) <= 4 and len(engine.calls[0]) == 10
    assert {t.position for g in groups for r in g.rollouts for t in r.turns} == {0}


class Talk(Dice):
    """Proposes what is not among the proposals that it is shown, in order."""

    def generate(self, prompts, *, seeds, stop, max_tokens, temperature=1.0, top_p=1.0, share=None):
        self.calls.append(list(prompts))
        return [Completion("bcdefgh"[p.split(":\n")[-1].count("\n")], True) for p in prompts]


def test_a_tree_by_hand():
    """U = 5, k = 3: the root branches in three; of the two left at the next turn each goes to another one, by the deal."""
    engine = Talk()
    (group,) = actions(engine, Walk(2, slips=False), [Problem("p")], Sampling(5, branch=3), 7)
    paths = sorted(r.key for r in group.rollouts)
    assert len(paths) == 5 and Counter(p[0] for p in paths).most_common()[-1][1] == 1
    assert {p[0] for p in paths} == {"b", "c", "d"} and set(Counter(p[0] for p in paths).values()) <= {1, 2}
    assert engine.calls[:3] == [["p3:\n"], ["p3:\nb\n"], ["p3:\nb\nc\n"]]
    third = next(r for r in group.rollouts if r.key == "d b")
    assert third.turns[1].prompt == "p3:\nb\nc\nd\np3:\n" and third.turns[1].plain == "p3:\nd\np3:\n"
    assert [t.completion for r in group.rollouts for t in r.turns[:1]].count(third.turns[0].completion) in (1, 2)


def test_the_control_sees_no_proposal():
    engine = Dice("abcdef")
    iid_actions(engine, WALK, WALK.problems, Sampling(6, branch=3), 2)
    assert all(prompt.count("\n") % 2 == 1 for call in engine.calls for prompt in call)  # states and actions in turn, a state last


def test_the_deal_is_fair():
    """Over many seeds each of three trajectories gets the one place that is left equally often."""
    seen = Counter()
    for seed in range(600):
        (group,) = actions(Talk(), Walk(2, slips=False), [Problem("p")], Sampling(4, branch=3), seed)
        first = Counter(r.key[0] for r in group.rollouts)
        seen[first.most_common(1)[0][0]] += 1
    assert set(seen) == {"b", "c", "d"}
    assert all(abs(n - 200) < 4 * (600 * 2 / 9) ** 0.5 for n in seen.values())


def test_slips_differ_between_siblings_and_are_the_same_again():
    task = Walk(1)

    def ends(seed):
        return [t.turns[-1].reward for t in actions(Talk(), task, task.problems[:1], Sampling(6, branch=6), seed)[0].rollouts]

    drawn = [derive_seed(3, "step", "p", 0, j) for j in range(6)]
    slips = {int(np.random.default_rng(s).integers(2)) for s in drawn}
    assert slips == {0, 1}
    assert ends(3) == ends(3)


def test_a_step_leaves_the_state_that_it_came_from():
    """Branching cannot leak: the tree only ever hands on values."""
    seen = []

    class Watched(Walk):
        def step(self, problem, state, text, seed):
            seen.append((state, copy.deepcopy(state)))
            return super().step(problem, state, text, seed)

    task = Watched(3)
    actions(Dice(), task, task.problems, Sampling(8, branch=3), 0)
    assert len(seen) > 10 and all(state == before for state, before in seen)


# -------------------------------------------------------------------------------------------------------------- training


@pytest.fixture()
def walking():
    tokenizer = word_tokenizer(Walk.words, Walk.token_pattern)
    return Walk(3), random_llama(len(tokenizer)), tokenizer


@pytest.mark.parametrize("sampler", [parallel, actions, iid_actions])
def test_packed_logprobs_of_trajectories_are_those_of_sampling(walking, sampler, reference):
    """One sequence per trajectory, only what the policy wrote is owned, each token in the context that it was drawn in."""
    task, model, tokenizer = walking
    groups = sampler(LocalEngine(model, tokenizer), task, task.problems, Sampling(6, branch=3), 4)
    completions, advantages = with_advantages(groups, Objective(normalize=False))
    sequences = pack(completions)
    assert len(sequences) == sum(len(g.rollouts) for g in groups) > 6
    scores = packed_logprobs(model, sequences)
    torch.testing.assert_close(scores.logprobs, torch.cat([torch.tensor(c.logprobs) for c in completions]), atol=1e-4, rtol=1e-4)
    for c in completions[:5]:
        expected = reference(model, c.prompt_ids, c.ids)
        torch.testing.assert_close(torch.tensor(c.logprobs), expected.float().detach(), atol=1e-4, rtol=1e-4)
    expected = [r.reward - np.mean([q.reward for q in g.rollouts]) for g in groups for r in g.rollouts for _ in r.turns]
    assert advantages.tolist() == pytest.approx(expected, abs=1e-6)


def test_distillation_shows_the_turns_without_proposals(walking):
    task, model, tokenizer = walking
    engine = LocalEngine(model, tokenizer)
    groups = actions(engine, task, task.problems, Sampling(8, branch=4), 1)
    kept, weights = _without_history(engine, groups, Objective())
    expected = []
    for g in groups:
        rewards = np.array([r.reward for r in g.rollouts])
        a = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
        expected += [(t.plain, t.text, x) for r, x in zip(g.rollouts, a, strict=True) for t in r.turns if x > 0 and t.prompt != t.plain]
    assert len(expected) > 3
    assert [tokenizer.decode(c.prompt_ids) for c in kept] == [plain for plain, _, _ in expected]
    assert [c.text for c in kept] == [text for _, text, _ in expected]
    assert weights.tolist() == pytest.approx([x for *_, x in expected], abs=1e-4)


@pytest.mark.parametrize("arm", ["parallel", "actions+distill", "iid_actions+unique"])
def test_an_agent_learns_and_a_killed_run_ends_the_same(walking, tmp_path, arm):
    """The reward of a walk is the sum of its actions: 25 steps raise it. Stopped in the middle, it ends with the same weights."""
    task, model, tokenizer = walking
    config = Training(arm=arm, steps=25, problems_per_step=2, group_size=8, branch=3, learning_rate=5e-3, checkpoint_every=10, probe_every=5)
    again = copy.deepcopy(model)

    class Killed(Exception):
        pass

    class Counted(Walk):
        calls, limit = 0, math.inf

        def reset(self, problem):
            type(self).calls += 1
            if self.calls > self.limit:
                raise Killed
            return super().reset(problem)

    Counted.__name__ = "Walk"
    metrics = train(model, tokenizer, Counted(3), task.problems, config, 0, tmp_path / "a")
    assert metrics["reward"].tail(5).mean() > metrics["reward"].head(3).mean() + 0.3
    assert (metrics["rollouts"] <= 16).all()

    Counted.calls, Counted.limit = 0, Counted.calls * 0.6
    with pytest.raises(Killed):
        train(copy.deepcopy(again), tokenizer, Counted(3), task.problems, config, 0, tmp_path / "b")
    resumed = train(again, tokenizer, task, task.problems, config, 0, tmp_path / "b")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    resumed.equals(metrics)


def test_a_run_killed_after_a_step_without_an_update_ends_the_same(walking, tmp_path, monkeypatch):
    """The weights are then those of the step before, whose caches would still be good, up to rounding. They must not be used: every step
    computes as many tokens as it does where there is no step before."""
    _, model, tokenizer = walking
    step, rewarding, computed = training._step, [], {}

    class Late(Walk):
        def step(self, problem, state, text, seed):
            return super().step(problem, state, text, seed)._replace(**{} if rewarding else {"reward": 0.0})

    def run(model, folder, deadly=None):
        def watched(*args):
            number = args[7]
            rewarding[:] = [True] * (number >= 3)
            with TokenCounter(model) as counter:
                done = 1 / 0 if number == deadly else step(*args)
            computed[folder, deadly, number] = counter.tokens
            return done

        monkeypatch.setattr(training, "_step", watched)
        config = Training(arm="parallel", steps=6, group_size=8, branch=3, learning_rate=5e-3, filter_groups=True, checkpoint_every=1, probe_every=1)
        return train(model, tokenizer, task, task.problems, config, 0, tmp_path / folder)

    task, again = Late(3), copy.deepcopy(model)
    whole = run(model, "a")
    assert whole["grad_norm"].isna().tolist() == [True] * 3 + [False] * 3
    with pytest.raises(ZeroDivisionError):
        run(copy.deepcopy(again), "b", deadly=3)
    resumed = run(again, "b")
    assert resumed.equals(whole) and computed["a", None, 3] == computed["b", None, 3] > 100
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_describe_counts_turns_and_uneven_groups(walking):
    task, model, tokenizer = walking
    groups = actions(LocalEngine(model, tokenizer), task, task.problems, Sampling(8, branch=2), 3)
    seen = describe(groups)
    assert seen["rollouts"] == sum(len(g.rollouts) for g in groups)
    every = {id(t.completion): t for g in groups for r in g.rollouts for t in r.turns}
    assert seen["completion_tokens"] == sum(len(t.completion.ids) for t in [*every.values(), *(r for g in groups for r in g.dropped)])
    assert seen["solved"] == pytest.approx(np.mean([r.solved for g in groups for r in g.rollouts]))


@pytest.mark.parametrize(("arm", "task"), [("sesa", Walk()), ("sequential+kl", Walk()), ("actions", PathTask())])
def test_an_arm_that_does_not_suit_the_task_is_refused(arm, task):
    with pytest.raises(ValueError, match=f"{arm.split('+')[0]}.* cannot answer {type(task).__name__}: take one of parallel"):
        Training(arm=arm).suit(task)


def test_all_samplers_are_arms():
    assert set(SAMPLERS) == {"parallel", "sequential", "sesa", "iid_sketches", "actions", "iid_actions"}


def test_dropped_proposals_are_kept_apart_counted_and_punished_if_duplicates_are(walking):
    """What led to no trajectory: all tokens that were drawn are counted once; with +unique it is a rollout more: a repetition earns that,
    what is no action the sum until there and the environment's own reward for it, as it does in a list."""
    task, model, tokenizer = walking
    drawn = []

    class Counted(LocalEngine):
        def generate(self, *args, **options):
            done = super().generate(*args, **options)
            drawn.extend(done)
            return done

    groups = iid_actions(Counted(model, tokenizer), task, task.problems, Sampling(16, branch=5, temperature=0.7), 2)
    assert sum(len(c.ids) for c in drawn) == describe(groups)["completion_tokens"]
    assert {id(c) for g in groups for c in g.completions} == {id(c) for c in drawn}
    dropped = [r for g in groups for r in g.dropped]
    assert len(dropped) > 2 and describe(groups)["dropped_proposals"] == len(dropped) / 2
    for g in groups:
        for r in g.dropped:
            siblings = [t for q in g.rollouts for t in q.turns if t.prompt == r.prompt and t.position < r.position]
            assert r.key is None or r.key in {t.key for t in siblings}
    plain, _ = with_advantages(groups, Objective())
    completions, advantages = with_advantages(groups, Objective(duplicate_reward=-0.5, normalize=False))
    assert len(completions) == len(plain) + len(dropped)
    expected = []
    for g in groups:
        earned = [r.reward if r.key is None else -0.5 for r in g.dropped]
        mean = np.mean([r.reward for r in g.rollouts] + earned)
        expected += [r.reward - mean for r in g.rollouts for _ in r.turns] + [e - mean for e in earned]
    assert advantages.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("sampler", [actions, iid_actions])
def test_an_invalid_proposal_earns_its_own_reward_in_a_tree_as_in_a_list(sampler):
    """"z" is no action. In a list and in a tree it keeps the environment's reward for it, never that of a repetition."""
    task = Walk(3, slips=False)
    groups = sampler(Dice("bz"), task, task.problems, Sampling(12, branch=4), 3)
    worth = {text: sum(map(ord, text)) % 10 / 10 for text in "bz"}
    dropped = [(g, r) for g in groups for r in g.dropped]
    assert {r.key for _, r in dropped} == {"b", None}
    for group, r in dropped:
        earned = [sum(t.reward for t in q.turns[:i]) for q in group.rollouts for i, t in enumerate(q.turns) if t.prompt == r.prompt]
        if sampler is iid_actions:  # proposals of one state have one prompt, so the turns before them are known
            assert any(r.reward == pytest.approx(before + worth[r.text]) for before in earned)
    for group in groups:
        rewards = group_rewards(group, -7.0)[len(group.rollouts) :].tolist()
        assert rewards == pytest.approx([-7.0 if r.key else r.reward for r in group.dropped])
        assert len(group_rewards(group)) == len(group.rollouts)


@pytest.mark.parametrize("add", [fsum, lambda rewards: reduce(operator.add, rewards)])  # adding one by one tells the three apart
def test_equal_rewards_that_rounding_tells_apart_are_equal(monkeypatch, add):
    """Ten steps to the left cost 1 in all, however they are cut into turns: a group of such walks says nothing."""
    monkeypatch.setattr(sampling, "fsum", add)
    case = json.loads((Path(__file__).parent / "cases" / "11_equal_rewards.json").read_text())
    task = Sokoban(SokobanConfig(form="chat", train=1, held_out=1))
    problem, rollouts = Room("\n".join(case["room"])), []
    for cut in map(json.loads, re.findall(r"\[[\d,]+\]", case["walks"])):
        state, turns = task.reset(problem), []
        for steps in cut:
            text = f"<answer>{' || '.join(['Left'] * steps)}</answer>"
            state, reward, done, solved = task.step(problem, state, text, 0)
            turns.append(Rollout("", "", text, (), 0, "L" * steps, reward, solved, Completion(text, True, (1,), (2,), (0.0,))))
        assert done
        rollouts.append(_whole(tuple(turns)))
    assert [r.reward for r in rollouts] == pytest.approx([-1.0] * 3)
    assert len({r.reward for r in rollouts}) == (1 if add is fsum else 3)
    group = Group(problem, tuple(rollouts))
    assert describe([group])["frac_reward_zero_std"] == 1.0 and training._says_nothing(group, Objective())
    assert rollout_advantages(group, Objective()).tolist() == [0.0, 0.0, 0.0]


def test_an_agent_with_a_chat_template_is_an_environment():
    """On every Python: what `__getattr__` gives counts. It is played turn by turn, by `parallel` and by `actions`."""
    lake = FrozenLake(FrozenLakeConfig(form="chat", train=1, held_out=1))
    task = Templated(lake, Template("[S]", "[U]", "[A]", "[E][U]", "[E]"))
    puzzle = Templated(CountdownTask(CountdownConfig(form="chat", train=1, held_out=1)), task.template)
    assert is_environment(task) and not is_environment(puzzle)
    Training(arm="actions").suit(task)
    with pytest.raises(ValueError, match="cannot answer"):
        Training(arm="actions").suit(puzzle)
    engine = Dice(["<answer>Left</answer>", "<answer>Right</answer>"])
    for sampler in (parallel, actions):
        (group,) = sampler(engine, task, task.problems[:1], Sampling(2, branch=2), 0)
        assert len(group.rollouts) == 2 and all(r.turns and r.prompt.startswith("[S]") for r in group.rollouts)
