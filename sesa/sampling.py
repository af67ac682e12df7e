"""The method: how the candidates of one group are drawn.  (The paper's Section 2 and its two-stage method.)

    parallel        y_i ~ π(· | x)                          independent draws, as GRPO and DAPO take them
    sequential      y_i ~ π(· | x, y_1 .. y_{i-1})          each draw sees those before it
    sesa            m_i ~ π(· | x, m_1 .. m_{i-1})          stage I: short sketches, one after another
                    y_i ~ π(· | x, m_i)                     stage II: every sketch expanded, in parallel
    iid_sketches    m_i ~ π(· | x),  y_i ~ π(· | x, m_i)    the control: two stages without a history

The only difference between the samplers is what the history holds, so one loop, `_draw`, serves all. A group of G may be drawn as
several lists that start anew every K ("sequential-K"); a list that starts anew at every draw, K = 1, is parallel sampling.

The engine and the task come in from outside: this file knows no torch and no task.

Not stated in what is known of the paper, and so our choice: an expansion sees its own sketch only; duplicates stay in the group as
they come. Ours altogether: the sliding window, which shows the last W candidates instead of all, for lists longer than the context.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sesa.engines import Completion, Engine
from sesa.runs import derive_seed
from sesa.tasks import Grade, Task


@dataclass(frozen=True)
class Sampling:
    """How to draw one group."""

    group_size: int = 8  # G, candidates per problem
    list_length: int | None = None  # K, the list starts anew every K candidates; None: one list of G
    window: int | None = None  # W, only the last W candidates are shown; None: all
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self):
        for name in ("group_size", "list_length", "window"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"Sampling.{name} must be at least 1, not {value}")


@dataclass(frozen=True, slots=True)
class Rollout:
    """One candidate of a group, with all that it was conditioned on."""

    prompt: str  # the exact text before it, history included
    text: str
    history: tuple[str, ...]  # the candidates that it saw, oldest first
    position: int  # in its list, from 0
    key: str | None  # what makes two candidates the same; None: not a valid one
    reward: float
    completion: Completion
    sketch: str | None = None  # the sketch that it expands


@dataclass(frozen=True, slots=True)
class Group:
    """The G rollouts of one problem, list after list in the order drawn; `sketches[i]` is what `rollouts[i]` grew from."""

    problem: Any
    rollouts: tuple[Rollout, ...]
    sketches: tuple[Rollout, ...] = ()


def parallel(engine: Engine, task: Task, problems: Sequence[Any], cfg: Sampling, seed: int) -> list[Group]:
    """G independent draws per problem: y_i ~ π(· | x). The baseline; `cfg.list_length` is not used."""
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
        return Grade(reward=0.0, key=task.sketch_key(problem, text))

    stage_one = _draw(
        engine, problems, cfg, derive_seed(seed, "sketch"), task.sketch_prompt, ungraded, task.stop, task.sketch_max_tokens
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
            _rollout(problem, prompt, completion, task.grade, sketch=sketch.text)
            for prompt, completion, (_, sketch) in zip(prompts[mine], completions[mine], pairs[mine], strict=True)
        )
        sketches = tuple(
            replace(sketch, reward=rollout.reward) for sketch, rollout in zip(stage_one[i], rollouts, strict=True)
        )
        groups.append(Group(problem, rollouts, sketches))
    return groups


def iid_sketches(engine: Engine, task: Task, problems: Sequence[Any], cfg: Sampling, seed: int) -> list[Group]:
    """The control of `sesa`: the same two stages, but no sketch sees another."""
    return sesa(engine, task, problems, replace(cfg, list_length=1), seed)


def _draw(engine, problems, cfg, seed, prompt, grade, stop, max_tokens) -> list[list[Rollout]]:
    """The loop of every sampler: G candidates per problem, in lists of K; all lists of all problems grow side by side.

    Returns, per problem, its rollouts in order.
    """
    g, k = cfg.group_size, min(cfg.list_length or cfg.group_size, cfg.group_size)
    # A last list may be shorter. Such lists stand at the end, so that the rows still growing are always the first ones:
    # the engine then finds every prompt to be a continuation of its own last answer, and computes only what is new.
    lists = [(p, first) for first in range(0, g, k) for p in range(len(problems))]
    drawn = [[None] * g for _ in problems]
    for position in range(k):
        growing = [(p, first) for p, first in lists if first + position < g]
        seen = [drawn[p][first : first + position] for p, first in growing]
        histories = [tuple(r.text for r in (s[-cfg.window :] if cfg.window else s)) for s in seen]
        prompts = [prompt(problems[p], history) for (p, _), history in zip(growing, histories, strict=True)]
        completions = engine.generate(
            prompts,
            seeds=[derive_seed(seed, problems[p].id, first + position) for p, first in growing],
            stop=stop,
            max_tokens=max_tokens,
            temperature=cfg.temperature,
            top_p=cfg.top_p,
            share=[problems[p].id for p, _ in growing],
        )
        for (p, first), text, history, completion in zip(growing, prompts, histories, completions, strict=True):
            drawn[p][first + position] = _rollout(problems[p], text, completion, grade, history=history, position=position)
    return drawn


def _rollout(problem, prompt, completion, grade, *, history=(), position=0, sketch=None) -> Rollout:
    given = grade(problem, completion.text)
    return Rollout(
        prompt=prompt,
        text=completion.text,
        history=history,
        position=position,
        key=given.key,
        reward=given.reward,
        completion=completion,
        sketch=sketch,
    )
