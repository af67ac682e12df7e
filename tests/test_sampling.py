"""The samplers, over an engine whose every answer is known: what each candidate sees, with which seed, and where it ends up."""

import hashlib
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sesa.engines import Completion
from sesa.sampling import Sampling, iid_sketches, parallel, sequential, sesa
from sesa.tasks import Grade


def answer(prompt, seed):
    return hashlib.sha256(f"{prompt}|{seed}".encode()).hexdigest()[:6]


class Recorder:
    """An engine that answers with a short hash of prompt and seed, and keeps the calls."""

    def __init__(self):
        self.calls = []

    def generate(self, prompts, *, seeds, stop, max_tokens, temperature=1.0, top_p=1.0, share=None):
        assert len(prompts) == len(seeds) == len(share)
        options = dict(stop=stop, max_tokens=max_tokens, temperature=temperature, top_p=top_p)
        self.calls.append(dict(prompts=prompts, seeds=seeds, share=share, **options))
        return [Completion(answer(p, s), True) for p, s in zip(prompts, seeds, strict=True)]

    @property
    def seeds(self):
        return [seed for call in self.calls for seed in call["seeds"]]


@dataclass(frozen=True)
class Problem:
    id: str


class Lines:
    """A task whose prompts show everything and whose grades can be recomputed."""

    stop, max_tokens, sketch_stop, sketch_max_tokens = "\n", 7, ".", 3

    def prompt(self, problem, history=()):
        return f"solve {problem.id}:" + "".join(f"{h};" for h in history)

    def sketch_prompt(self, problem, history=()):
        return f"sketch {problem.id}:" + "".join(f"{h};" for h in history)

    def expand_prompt(self, problem, sketch):
        return f"expand {problem.id}:{sketch}"

    def grade(self, problem, text):
        value = int(text, 16)
        return Grade(reward=value % 7 / 7, key=f"{problem.id}={value % 5}" if value % 3 else None, solved=value % 7 > 3)

    def sketch_key(self, problem, text):
        return f"{problem.id}~{text[0]}"


TASK = Lines()
PROBLEMS = [Problem("p"), Problem("q"), Problem("r")]
SAMPLERS = (parallel, sequential, sesa, iid_sketches)
sizes = st.tuples(st.integers(1, 9), st.none() | st.integers(1, 11), st.none() | st.integers(1, 5), st.integers(1, 3))


def expected_history(texts, i, k, window):
    """By the definition: the candidates of i's own list before it, the last `window` of them."""
    seen = [text for j, text in enumerate(texts) if j < i and j // k == i // k]
    return tuple(seen[-window:] if window else seen)


@settings(deadline=None)
@given(sizes)
def test_every_candidate_sees_the_last_w_of_its_own_list(size):
    g, k, w, n = size
    groups = sequential(Recorder(), TASK, PROBLEMS[:n], Sampling(g, k, w), seed=3)
    assert [group.problem for group in groups] == PROBLEMS[:n]
    for group in groups:
        texts = [r.text for r in group.rollouts]
        assert len(texts) == g and group.sketches == ()
        for i, rollout in enumerate(group.rollouts):
            assert rollout.history == expected_history(texts, i, k or g, w)
            assert rollout.position == i % (k or g)
            assert rollout.prompt == TASK.prompt(group.problem, rollout.history)
            assert TASK.grade(group.problem, rollout.text) == Grade(rollout.reward, rollout.key, rollout.solved)
            assert rollout.plain == TASK.prompt(group.problem)
            assert (rollout.text, rollout.sketch) == (rollout.completion.text, None)


@settings(deadline=None)
@given(sizes, st.sampled_from([sesa, iid_sketches]))
def test_sketches_see_sketches_and_expansions_their_own_sketch_only(size, sampler):
    g, k, w, n = size
    k = 1 if sampler is iid_sketches else k or g
    groups = sampler(Recorder(), TASK, PROBLEMS[:n], Sampling(g, size[1], w), seed=3)
    assert [group.problem for group in groups] == PROBLEMS[:n]
    for group in groups:
        texts = [sketch.text for sketch in group.sketches]
        assert len(texts) == len(group.rollouts) == g
        for i, (sketch, rollout) in enumerate(zip(group.sketches, group.rollouts, strict=True)):
            assert sketch.history == expected_history(texts, i, k, w)
            assert sketch.position == i % k
            assert sketch.prompt == TASK.sketch_prompt(group.problem, sketch.history)
            assert sketch.key == TASK.sketch_key(group.problem, sketch.text)
            assert (rollout.history, rollout.sketch) == ((), sketch.text)
            assert rollout.prompt == TASK.expand_prompt(group.problem, sketch.text)
            assert TASK.grade(group.problem, rollout.text) == Grade(rollout.reward, rollout.key, rollout.solved)
            assert (sketch.reward, sketch.solved) == (rollout.reward, rollout.solved)
            assert sketch.plain == TASK.sketch_prompt(group.problem) and rollout.plain == TASK.prompt(group.problem)


def test_lists_by_hand():
    group = sequential(Recorder(), TASK, PROBLEMS[:1], Sampling(5, list_length=2), seed=0)[0]
    a, b, c, d, e = (r.text for r in group.rollouts)
    assert [r.prompt for r in group.rollouts] == ["solve p:", f"solve p:{a};", "solve p:", f"solve p:{c};", "solve p:"]
    assert [r.position for r in group.rollouts] == [0, 1, 0, 1, 0]
    group = sequential(Recorder(), TASK, PROBLEMS[:1], Sampling(4, window=2), seed=0)[0]
    a, b, c, d = (r.text for r in group.rollouts)
    assert [r.history for r in group.rollouts] == [(), (a,), (a, b), (b, c)]


def test_parallel_is_one_call_without_history():
    engine = Recorder()
    groups = parallel(engine, TASK, PROBLEMS, Sampling(4, list_length=3, window=2), seed=1)
    assert [r.history for group in groups for r in group.rollouts] == [()] * 12
    assert [r.position for group in groups for r in group.rollouts] == [0] * 12
    assert len(engine.calls) == 1 and len(engine.seeds) == 12


def test_rows_that_go_on_are_the_first_ones_and_continue_their_own_answer():
    engine = Recorder()
    sequential(engine, TASK, PROBLEMS, Sampling(7, list_length=3), seed=1)  # lists of 3, 3 and 1
    assert [len(call["prompts"]) for call in engine.calls] == [9, 6, 6]
    for before, after in zip(engine.calls, engine.calls[1:], strict=False):
        for old, seed, new in zip(before["prompts"], before["seeds"], after["prompts"], strict=False):
            assert new == f"{old}{answer(old, seed)};"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_the_engine_is_asked(sampler):
    engine = Recorder()
    sampler(engine, TASK, PROBLEMS, Sampling(4, 3, temperature=0.7, top_p=0.9), seed=1)
    for call in engine.calls:
        sketching = call["prompts"][0].startswith("sketch")
        assert (call["stop"], call["max_tokens"]) == ((".", 3) if sketching else ("\n", 7))
        assert (call["temperature"], call["top_p"]) == (0.7, 0.9)
        assert call["share"] == [prompt.split()[1].split(":")[0] for prompt in call["prompts"]]  # the problem's id


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_seeds(sampler):
    def run(seed, cfg=Sampling(6, list_length=4)):
        engine = Recorder()
        return sampler(engine, TASK, PROBLEMS, cfg, seed), engine.seeds

    groups, seeds = run(0)
    assert len(seeds) == len(set(seeds)) == 18 * (2 if groups[0].sketches else 1)  # across problems, samples and stages
    assert min(seeds) >= 0
    assert run(0) == (groups, seeds)
    assert not set(seeds) & set(run(1)[1])
    assert set(run(0, Sampling(6, list_length=2))[1]) == set(seeds)  # a sample's seed does not depend on how lists are cut


def test_two_stages_share_no_seed_with_one():
    one, two = Recorder(), Recorder()
    sequential(one, TASK, PROBLEMS, Sampling(6), seed=0)
    sesa(two, TASK, PROBLEMS, Sampling(6), seed=0)
    assert not set(one.seeds) & set(two.seeds)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_group_does_not_depend_on_the_problems_beside_it(sampler):
    cfg = Sampling(5, list_length=3, window=2)
    together = sampler(Recorder(), TASK, PROBLEMS, cfg, seed=4)
    assert together == [sampler(Recorder(), TASK, [problem], cfg, seed=4)[0] for problem in PROBLEMS]
    assert together[::-1] == sampler(Recorder(), TASK, PROBLEMS[::-1], cfg, seed=4)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_problems(sampler):
    assert sampler(Recorder(), TASK, [], Sampling(3), seed=0) == []


@pytest.mark.parametrize("name", ["group_size", "list_length", "window"])
@pytest.mark.parametrize("value", [0, -1])
def test_bad_sampling(name, value):
    with pytest.raises(ValueError, match=name):
        Sampling(**{name: value})
    with pytest.raises(ValueError, match=name):
        replace(Sampling(), **{name: value})


def test_method_and_runs_need_no_torch():
    blocked = "import sys; sys.modules.update(torch=None, transformers=None); import sesa.sampling, sesa.runs; print('fine')"
    done = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True)
    assert done.stdout == "fine\n", done.stderr


class Narrow(Recorder):
    """A Recorder whose context holds `context` characters, an answer of 7 among them."""

    def __init__(self, context):
        super().__init__()
        self.context = context

    def fits(self, prompt, max_tokens):
        return len(prompt) + max_tokens <= self.context


@pytest.mark.parametrize("context", [15, 22, 29, 36, 43, 1000])
def test_a_list_whose_context_is_full_starts_anew(context):
    """"solve p:" is 8 characters, and every answer adds 7: so many are shown as fit, then none, and all over again."""
    engine = Narrow(context)
    (group,) = sequential(engine, TASK, PROBLEMS[:1], Sampling(9), seed=3)
    shown = min((context - 15) // 7, 8) + 1  # answers in a list
    assert [r.position for r in group.rollouts] == [i % shown for i in range(9)]
    assert [r.overflow for r in group.rollouts] == [i > 0 and i % shown == 0 for i in range(9)]
    for i, r in enumerate(group.rollouts):
        assert r.history == tuple(q.text for q in group.rollouts[i - i % shown : i])
        assert r.prompt == TASK.prompt(group.problem, r.history) and len(r.prompt) + 7 <= context
    if shown == 9:
        assert (group,) == tuple(sequential(Recorder(), TASK, PROBLEMS[:1], Sampling(9), seed=3))


def test_sketches_whose_context_is_full_start_anew_and_keep_their_solutions():
    """"sketch p:" is 9 characters; a sketch may have 3, and shows as 7."""
    (group,) = sesa(Narrow(9 + 3 + 14), TASK, PROBLEMS[:1], Sampling(7), seed=3)
    assert [s.position for s in group.sketches] == [0, 1, 2, 0, 1, 2, 0]
    assert [s.overflow for s in group.sketches] == [False, False, False, True, False, False, True]
    assert [r.sketch for r in group.rollouts] == [s.text for s in group.sketches]
    assert not any(r.overflow for r in group.rollouts)
