"""The method: how the candidates of one group are drawn.  (The paper's Section 2 and its two-stage method.)

    parallel        y_i ~ π(· | x)                          independent draws, as GRPO and DAPO take them
    sequential      y_i ~ π(· | x, y_1 .. y_{i-1})          each draw sees those before it
    sesa            m_i ~ π(· | x, m_1 .. m_{i-1})          stage I: short sketches, one after another
                    y_i ~ π(· | x, m_i)                     stage II: every sketch expanded, in parallel
    iid_sketches    m_i ~ π(· | x),  y_i ~ π(· | x, m_i)    the control: two stages without a history

The only difference between the samplers is what the history holds, so one loop, `_draw`, serves all. A group of G may be drawn as
several lists that start anew every K ("sequential-K"); a list that starts anew at every draw, K = 1, is parallel sampling.

An agent answers in turns, each an action that changes a state. There the sequence is drawn over actions, in the state where they are taken:

    actions         a_j ~ π(· | s, a_1 .. a_{j-1})          up to k different actions at a state; the environment branches into each
    iid_actions     a_j ~ π(· | s)                          the control: the same tree, but no proposal sees another

A group never holds more than U = G trajectories. For `parallel` an agent plays G times from the start.

The engine and the task come in from outside: this file knows no torch and no task.

Not stated in what is known of the paper, and so our choice: an expansion sees its own sketch only; duplicates stay in the group as
they come; in a tree, who may branch (`_widths`). Ours altogether: the sliding window, which shows the last W candidates instead of all.
And what becomes of a context that is full: a list starts anew, a trajectory is over (`Rollout.overflow`), a state gets no more proposals.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import fsum
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass as checked

from sesa.config import CONFIG, Amount, Count
from sesa.engines import Completion, Engine, fits
from sesa.runs import derive_seed
from sesa.tasks import Environment, Grade, Task, is_environment


@checked(frozen=True, config=CONFIG)
class Sampling:
    """How to draw one group. A wrong number is a ValueError."""

    group_size: Count = 8  # G, candidates per problem; of an agent at most so many trajectories, U
    list_length: Count | None = None  # K, the list starts anew every K candidates; None: one list of G
    window: Count | None = None  # W, only the last W candidates are shown; None: all
    branch: Count = 4  # k, an agent's proposals at a state, at most. (An agent has no use for list_length and window, nor others for this)
    temperature: Amount = 1.0
    # Below 1 the tail is cut when drawing only: log-probabilities, in rollouts and in training, are those of the
    # whole distribution.
    top_p: Annotated[float, Field(gt=0, le=1, strict=True)] = 1.0


@dataclass(frozen=True, slots=True)
class Rollout:
    """One candidate of a group, with all that it was conditioned on.

    An agent's trajectory is one too: its reward is the sum over its turns, its key is their keys, and its completion is the last. A turn
    is a rollout in turn: its history are the proposals that it saw.
    """

    prompt: str  # the exact text before it, history included
    plain: str  # the same without any history or sketch
    text: str
    history: tuple[str, ...]  # the candidates that it saw, oldest first
    position: int  # in its list, from 0
    key: str | None  # what makes two candidates the same; None: not a valid one
    reward: float
    solved: bool  # whether it counts as right
    completion: Completion
    sketch: str | None = None  # the sketch that it expands
    overflow: bool = False  # the context was full: its list started anew here, or this trajectory ended here
    turns: "tuple[Rollout, ...]" = ()  # of an agent's trajectory

    @property
    def completions(self) -> tuple[Completion, ...]:
        """All that the policy wrote: one completion, or one per turn, each of whose prompts goes on from the one before."""
        return tuple(turn.completion for turn in self.turns) or (self.completion,)


@dataclass(frozen=True, slots=True)
class Group:
    """The G rollouts of one problem, list after list in the order drawn; `sketches[i]` is what `rollouts[i]` grew from.

    Of an agent that branches: at most G trajectories, and in `dropped` the proposals that led to none, being invalid or repetitions. The
    reward of such a one is what its trajectory had earned if it had taken this turn and ended there.
    """

    problem: Any
    rollouts: tuple[Rollout, ...]
    sketches: tuple[Rollout, ...] = ()
    dropped: tuple[Rollout, ...] = ()

    @property
    def completions(self) -> list[Completion]:
        """All that was drawn, each once: trajectories of a tree have beginnings in common."""
        every = [c for r in (*self.sketches, *self.rollouts, *self.dropped) for c in r.completions]
        return list({id(c): c for c in every}.values())


def parallel(engine: Engine, task: Task, problems: Sequence[Any], cfg: Sampling, seed: int) -> list[Group]:
    """G independent draws per problem: y_i ~ π(· | x). The baseline; `cfg.list_length` is not used."""
    if is_environment(task):
        return _explore(engine, task, problems, cfg, seed, starts=cfg.group_size, branch=1, sees=False)
    return sequential(engine, task, problems, replace(cfg, list_length=1), seed)


def sequential(engine: Engine, task: Task, problems: Sequence[Any], cfg: Sampling, seed: int) -> list[Group]:
    """G draws per problem, each seeing those before it in its list: y_i ~ π(· | x, y_1 .. y_{i-1}).  (Paper, Section 2.)"""
    drawn = _draw(engine, problems, cfg, seed, task.prompt, task.grade, task.stop, task.max_tokens)
    return [Group(problem, tuple(rollouts)) for problem, rollouts in zip(problems, drawn, strict=True)]


def sesa(engine: Engine, task: Task, problems: Sequence[Any], cfg: Sampling, seed: int) -> list[Group]:
    """Two stages: G sketches one after another, then each expanded on its own, all at once.  (The paper's method for long solutions.)

    A sketch earns the reward of the solution that grew from it (our choice: the paper's rule is not known to us).
    """

    def ungraded(problem: Any, text: str) -> Grade:
        return Grade(reward=0.0, key=task.sketch_key(problem, text), solved=False)

    stage_one = _draw(
        engine, problems, cfg, derive_seed(seed, "sketch"), task.sketch_prompt, ungraded, task.sketch_stop, task.sketch_max_tokens
    )
    pairs = [
        (problem, sketch) for problem, sketches in zip(problems, stage_one, strict=True) for sketch in sketches
    ]
    prompts = [task.expand_prompt(problem, sketch.text) for problem, sketch in pairs]
    completions = engine.generate(
        prompts,
        seeds=[derive_seed(seed, "expand", problem.id, i % cfg.group_size) for i, (problem, _) in enumerate(pairs)],
        stop=task.stop,
        max_tokens=task.max_tokens,
        temperature=cfg.temperature,
        top_p=cfg.top_p,
        share=[problem.id for problem, _ in pairs],  # the problem's text stands before every expansion
    )
    groups = []
    for i, problem in enumerate(problems):
        mine = slice(i * cfg.group_size, (i + 1) * cfg.group_size)
        rollouts = tuple(
            _rollout(problem, prompt, task.prompt(problem), completion, task.grade, sketch=sketch.text)
            for prompt, completion, (_, sketch) in zip(prompts[mine], completions[mine], pairs[mine], strict=True)
        )
        sketches = tuple(
            replace(sketch, reward=rollout.reward, solved=rollout.solved) for sketch, rollout in zip(stage_one[i], rollouts, strict=True)
        )
        groups.append(Group(problem, rollouts, sketches))
    return groups


def iid_sketches(engine: Engine, task: Task, problems: Sequence[Any], cfg: Sampling, seed: int) -> list[Group]:
    """The control of `sesa`: the same two stages, but no sketch sees another."""
    return sesa(engine, task, problems, replace(cfg, list_length=1), seed)


def actions(engine: Engine, task: Environment, problems: Sequence[Any], cfg: Sampling, seed: int) -> list[Group]:
    """A tree of trajectories per problem: at a state up to k different actions, each proposed in view of those before it: a_j ~
    π(· | s, a_1 .. a_{j-1}).  (The paper's sampling at the level of actions, with its cap U = `cfg.group_size` on trajectories.)

    Returns one group per problem, of 1 to U trajectories, sorted by where they branched. The state of a branch is that of its parent: an
    environment hands out values. Fewer than U: the policy repeated itself, or the game was over before there was room for more.
    """
    return _explore(engine, task, problems, cfg, seed, starts=1, branch=cfg.branch, sees=True)


def iid_actions(engine: Engine, task: Environment, problems: Sequence[Any], cfg: Sampling, seed: int) -> list[Group]:
    """The control of `actions`: the same tree, but no proposal sees another."""
    return _explore(engine, task, problems, cfg, seed, starts=1, branch=cfg.branch, sees=False)


def _draw(engine, problems, cfg, seed, prompt, grade, stop, max_tokens) -> list[list[Rollout]]:
    """The loop of every sampler: G candidates per problem, in lists of K; all lists of all problems grow side by side.

    Returns, per problem, its rollouts in order.
    """
    g, k = cfg.group_size, min(cfg.list_length or cfg.group_size, cfg.group_size)
    # A last list may be shorter. Such lists stand at the end, so that the rows still growing are always the first ones:
    # the engine then finds every prompt to be a continuation of its own last answer, and computes only what is new.
    lists = [(p, first) for first in range(0, g, k) for p in range(len(problems))]
    begins = {(p, first): first for p, first in lists}  # what a list shows begins there
    drawn = [[None] * g for _ in problems]
    for position in range(k):
        growing = [(p, first) for p, first in lists if first + position < g]
        prompts, histories, full = [], [], []
        for p, first in growing:
            shown = drawn[p][begins[p, first] : first + position][-(cfg.window or g) :]
            histories.append(tuple(r.text for r in shown))
            prompts.append(prompt(problems[p], histories[-1]))
            full.append(bool(shown) and not fits(engine, prompts[-1], max_tokens))
            if full[-1]:
                begins[p, first], histories[-1], prompts[-1] = first + position, (), prompt(problems[p])
        completions = engine.generate(
            prompts,
            seeds=[derive_seed(seed, problems[p].id, first + position) for p, first in growing],
            stop=stop,
            max_tokens=max_tokens,
            temperature=cfg.temperature,
            top_p=cfg.top_p,
            share=[problems[p].id for p, _ in growing],
        )
        for (p, first), text, history, over, completion in zip(growing, prompts, histories, full, completions, strict=True):
            plain, place = prompt(problems[p]), first + position - begins[p, first]
            told = {"history": history, "position": place, "overflow": over}
            drawn[p][first + position] = _rollout(problems[p], text, plain, completion, grade, **told)
    return drawn


def _rollout(problem, prompt, plain, completion, grade, *, history=(), position=0, sketch=None, overflow=False) -> Rollout:
    given = grade(problem, completion.text)
    return Rollout(
        prompt=prompt,
        plain=plain,
        text=completion.text,
        history=history,
        position=position,
        key=given.key,
        reward=given.reward,
        solved=given.solved,
        completion=completion,
        sketch=sketch,
        overflow=overflow,
    )


# ---------------------------------------------------------------------------------------------------------------- agents


@dataclass(frozen=True, slots=True)
class _Trajectory:
    """One that is still played, or has ended."""

    problem: int  # its index
    lineage: tuple[int, ...]  # the start, then of every turn which proposal it was: the trajectory's name, and the root of its chance
    state: Any
    text: str = ""  # all that stands before the next turn
    plain: str = ""  # the same without the proposals of others
    turns: tuple[Rollout, ...] = ()
    done: bool = False


def _explore(engine, task, problems, cfg, seed, starts, branch, sees) -> list[Group]:
    """Plays all trajectories of all problems side by side, turn by turn, each branching as wide as `_widths` allows."""
    live = [_Trajectory(p, (i,), task.reset(problem)) for p, problem in enumerate(problems) for i in range(starts)]
    ended: list[_Trajectory] = []
    dropped: list[list[Rollout]] = [[] for _ in problems]
    while live:
        after = []
        widths = _widths(live, ended, [problem.id for problem in problems], cfg.group_size, branch, seed)
        for trajectory, turns in zip(live, _propose(engine, task, problems, live, widths, cfg, seed, sees), strict=True):
            keys = [turn.key for turn in turns]
            for i, turn in enumerate(turns):
                played = _play(engine, task, problems[trajectory.problem], trajectory, turn, seed)
                # The first proposal is always taken, so that no trajectory is lost; others if they are valid, and new here.
                if i and (turn.key is None or turn.key in keys[:i]):
                    dropped[trajectory.problem].append(replace(turn, reward=_whole(played.turns).reward))
                else:
                    after.append(played)
        ended += [t for t in after if t.done]
        live = [t for t in after if not t.done]
    groups = [[t for t in ended if t.problem == p] for p in range(len(problems))]
    return [
        Group(problem, tuple(_whole(t.turns) for t in sorted(group, key=lambda t: t.lineage)), dropped=tuple(without))
        for problem, group, without in zip(problems, groups, dropped, strict=True)
    ]


def _widths(live: list[_Trajectory], ended: list[_Trajectory], ids: list[str], most: int, branch: int, seed: int) -> list[int]:
    """How many proposals each trajectory may make now: one, and of the room left in its group what a fair deal gives it.

    The room is dealt in rounds, one each, in an order drawn anew at every turn, until each has `branch` or nothing is left. What is dealt
    to a proposal that turns out to be a repetition is room again at the next turn.
    """
    widths = [1] * len(live)
    for p, problem_id in enumerate(ids):
        mine = [i for i, t in enumerate(live) if t.problem == p]
        room = most - len(mine) - sum(t.problem == p for t in ended)
        turn = len(live[mine[0]].turns) if mine else 0
        order = sorted(mine, key=lambda i: derive_seed(seed, "deal", problem_id, turn, *live[i].lineage))
        for i in (order * (branch - 1))[: max(room, 0)]:
            widths[i] += 1
    return widths


def _propose(engine, task, problems, live, widths, cfg, seed, sees) -> list[list[Rollout]]:
    """Of every trajectory the turns that it proposes in its state, one after another; only if `sees` is set in view of those before."""
    proposed: list[list[Rollout]] = [[] for _ in live]
    for position in range(max(widths)):
        asked, histories, prompts = [], [], []
        for i, width in enumerate(widths):
            history = tuple(turn.text for turn in proposed[i]) if sees else ()
            prompt = live[i].text + task.observe(problems[live[i].problem], live[i].state, history)
            if width > position and (not position or fits(engine, prompt, task.max_tokens)):
                asked, histories, prompts = [*asked, i], [*histories, history], [*prompts, prompt]
        if not asked:
            break
        at = [(problems[live[i].problem], live[i]) for i in asked]
        completions = engine.generate(
            prompts,
            seeds=[derive_seed(seed, problem.id, *t.lineage, position) for problem, t in at],
            stop=task.stop,
            max_tokens=task.max_tokens,
            temperature=cfg.temperature,
            top_p=cfg.top_p,
            share=[problem.id for problem, _ in at],
        )
        for i, (problem, t), prompt, history, completion in zip(asked, at, prompts, histories, completions, strict=True):
            plain, key = t.plain + task.observe(problem, t.state), task.action_key(problem, completion.text)
            proposed[i].append(Rollout(prompt, plain, completion.text, history, position, key, 0.0, False, completion))
    return proposed


def _play(engine: Engine, task: Environment, problem: Any, trajectory: _Trajectory, turn: Rollout, seed: int) -> _Trajectory:
    """The trajectory with one turn more. What chance there is in the environment is its own: siblings slip differently."""
    lineage = (*trajectory.lineage, turn.position)
    step = task.step(problem, trajectory.state, turn.text, derive_seed(seed, "step", problem.id, *lineage))
    written = turn.text + task.stop
    full = not step.done and not fits(engine, turn.prompt + written + task.observe(problem, step.state), task.max_tokens)
    turn = replace(turn, reward=step.reward, solved=step.solved, overflow=full)
    return _Trajectory(
        trajectory.problem, lineage, step.state, turn.prompt + written, turn.plain + written, (*trajectory.turns, turn), step.done or full
    )


def _whole(turns: tuple[Rollout, ...]) -> Rollout:
    """The rollout that these turns make."""
    keys = [turn.key for turn in turns]
    return replace(
        turns[-1],
        prompt=turns[0].prompt,
        plain=turns[0].plain,
        text="\n".join(turn.text for turn in turns),
        history=turns[0].history,
        position=turns[0].position,
        key=" ".join(key or "?" for key in keys) if any(keys) else None,
        reward=fsum(turn.reward for turn in turns),  # exact: what `sum` gives differs since Python 3.12
        turns=turns,
    )
