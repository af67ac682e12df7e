"""The training loop: sample -> grade -> advantages -> update. One process, CPU or one GPU.

What is trained is an *arm* (`sesa.arms`): a way to draw groups, and what is added to the objective. A run may name a second arm,
`on_collapse`: the monitor of `sesa.collapse` then switches between the two.

A run is a folder: `run.json`, which says what it depends on, `metrics.jsonl`, one line a step, `timings.jsonl`
beside it, and checkpoints: `checkpoint-50.pt` on the way, which the next one replaces, and `end-80.pt`, which
stays. Every draw of chance is derived from (seed, arm, step), and a checkpoint is written whole or not at all;
so a run that was killed, started again by the same call, ends with the same weights and metrics, bit for bit on
the CPU. Asked for more steps it goes on; asked for fewer it goes back to the last checkpoint before, or begins
again, and nothing that was reached is lost. Ctrl-C finishes the step and saves.
"""

import json
import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sesa.arms import Training
from sesa.collapse import Monitor, probe
from sesa.engines import Completion
from sesa.engines.local import LocalEngine
from sesa.models import text_loss_backward, weights_of
from sesa.objective import (
    Objective,
    all_equal,
    clipped_loss,
    group_rewards,
    kl_estimate,
    rollout_advantages,
    token_weights,
    with_advantages,
)
from sesa.packing import Packed, pack, packed_logprobs
from sesa.fingerprint import fingerprint, sources_behind
from sesa.runs import atomic_file, derive_seed, differing, finish_the_step, hash_of, progress, read_json, write_atomic
from sesa.sampling import Group
from sesa.tasks import Task, modules_of

REPLAY_TEXTS = 32  # warm-start texts replayed per update
NO_PART_OF_A_RUN = "steps", "micro_batch", "checkpoint_every"  # of a Training: with other ones the same run goes on


class TrainingError(RuntimeError):
    """Training cannot go on. The last checkpoint is good."""


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    problems: Sequence[Any],
    config: Training,
    seed: int,
    folder: Path,
    reference: PreTrainedModel | None = None,
    probe_on: Sequence[Any] | None = None,
) -> pd.DataFrame:
    """Trains `model` in place, or goes on where the run in `folder` stopped; returns its metrics, one row a step.

    Args:
        problems: what to draw from, `config.problems_per_step` a step, without replacement within a step.
        reference: the policy that the KL term holds on to; needed when its weight is not 0.
        probe_on: the problems that the policy is probed on, such as held-out ones; None: those of training.

    Raises:
        TrainingError: the loss or gradient is no number; memory ran out; the folder holds another run.
        KeyboardInterrupt: after Ctrl-C, when the step is done and saved.
    """
    arms = [replace(config, arm=arm) for arm in (config.arm, config.on_collapse or config.arm)]  # as it is, and when collapsed
    for arm in arms:
        arm.suit(task)
    if config.needs_reference and reference is None:
        raise ValueError("a KL term needs a reference policy: train(..., reference=model)")
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    probe_on = problems if probe_on is None else probe_on
    identity = _identity(model, task, problems, config, seed, probe_on)
    state = _resume(folder, identity, model, optimizer, config)
    if state["step"] == config.steps:
        return pd.DataFrame(state["metrics"])
    engine = LocalEngine(model, tokenizer)
    with progress(config.steps, f"{config.arm}, seed {seed}") as bar, finish_the_step() as interrupted:
        bar.update(state["step"])
        for step in range(state["step"], config.steps):
            try:
                metrics, seconds = _step(model, engine, task, problems, probe_on, arms, seed, step, optimizer, reference, state)
            except torch.OutOfMemoryError as e:
                hint = f"lower problems_per_step (now {config.problems_per_step}) or group_size (now {config.group_size})"
                said = f"out of memory while sampling in step {step}: {hint}. The last checkpoint is good: {e}"
                raise TrainingError(said) from e
            state["step"] = step + 1
            for name, row in (("metrics", metrics), ("timings", {"step": step, **seconds})):
                state[name].append(row)
                _append(folder / f"{name}.jsonl", row)
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps or interrupted.is_set():
                _save(folder, model, optimizer, state, ended=step + 1 == config.steps)
            seen = next(m for m in reversed(state["metrics"]) if "pass@1" in m)
            entropy = f"{metrics['entropy']:.2f}" if "entropy" in metrics else "-"  # no update: no group had a signal
            bar.set_postfix_str(f"reward {metrics['reward']:.2f} pass@1 {seen['pass@1']:.2f} entropy {entropy}", refresh=False)
            bar.update()
            if interrupted.is_set():
                raise KeyboardInterrupt(f"saved after step {step + 1} of {config.steps}; the same call goes on from there")
    return pd.DataFrame(state["metrics"])


def _step(model, engine, task, problems, probe_on, arms, seed, step, optimizer, reference, state) -> tuple[dict, dict]:
    """One set of rollouts and the updates from it; returns metrics, and seconds by phase."""
    config = arms[0]
    engine.forget()  # a step without an update would go on from what the step before left; a resumed run has nothing left
    root = config.root(seed, step)
    chosen = config.choose(problems, root)
    metrics: dict[str, Any] = {"step": step}
    start = time.perf_counter()
    if step % config.probe_every == 0:
        metrics |= probe(engine, task, probe_on, derive_seed(root, "probe"), temperature=config.temperature, sampler=config.independent)
        if config.on_collapse:
            config = arms[state["monitor"].see(metrics["pass@1"], metrics["pass@16"])]
    elif config.on_collapse:
        config = arms[state["monitor"].collapsed]
    metrics["arm"] = config.arm
    probed = time.perf_counter()
    groups = config.sampler(engine, task, chosen, config.sampling, derive_seed(root, "rollouts"))
    sampled = time.perf_counter()
    state["found"] |= {f"{group.problem.id} {r.key}" for group in groups for r in group.rollouts if r.solved}
    metrics |= describe(groups, config.full_objective) | {"found": len(state["found"])}
    learnt_from = [g for g in groups if not _says_nothing(g, config.full_objective)] if config.filter_groups else groups
    if learnt_from:
        metrics |= _update(model, engine, task, learnt_from, config, root, optimizer, reference)
    done = time.perf_counter()
    return metrics, {"probe": probed - start, "sample": sampled - probed, "update": done - sampled}


def _says_nothing(group: Group, objective: Objective) -> bool:
    """Whether all rewards that the advantages are made of are equal."""
    return bool(all_equal(group_rewards(group, objective.duplicate_reward)))


def describe(groups: Sequence[Group], objective: Objective = Objective()) -> dict[str, float]:
    """What the rollouts of a step are like, by the metrics' names: the mean reward as graded, shares of groups
    and rollouts, counts of tokens and of contexts that were full. frac_reward_zero_std: groups that teach
    nothing, by the rewards as `objective` makes them."""
    rollouts = [r for group in groups for r in group.rollouts]
    completions = [c for group in groups for c in group.completions]
    repeated = [[r.key is not None and r.key in {q.key for q in g.rollouts[:i]} for i, r in enumerate(g.rollouts)] for g in groups]
    places = range(1, min(map(len, repeated)))  # a tree may have fewer trajectories than another
    return {
        "reward": float(np.mean([r.reward for r in rollouts])),
        "solved": float(np.mean([r.solved for r in rollouts])),
        "rollouts": len(rollouts),
        "dropped_proposals": sum(len(group.dropped) for group in groups) / len(groups),
        "frac_reward_zero_std": float(np.mean([_says_nothing(group, objective) for group in groups])),
        "rollout_duplicates": float(np.mean(sum(repeated, []))),
        **{f"duplicates@{i + 1}": float(np.mean([row[i] for row in repeated])) for i in places},
        "rollout_invalid": float(np.mean([r.key is None for r in rollouts])),
        "completion_tokens": sum(len(c.ids) for c in completions),
        "truncated": float(np.mean([not c.stopped for c in completions])),
        "overflows": sum(r.overflow for group in groups for r in (*group.sketches, *group.rollouts)),
    }


def _update(model, engine, task, groups, config, root, optimizer, reference) -> dict[str, float]:
    objective = config.full_objective
    completions, advantages = with_advantages(groups, objective)
    sequences = pack(completions)
    extra = _without_history(engine, groups, objective) if objective.distill else ([], torch.empty(0))
    totals: dict[str, float] = {}
    for update in range(config.updates):
        optimizer.zero_grad()
        try:
            sums = _policy_backward(model, completions, advantages, sequences, config, objective, reference)
            if extra[0]:
                _distill_backward(model, *extra, config, objective.distill)
            if objective.replay:
                rng = np.random.default_rng(derive_seed(root, "replay", update))
                text_loss_backward(model, engine.tokenizer, task.warm_start_texts(rng, REPLAY_TEXTS), objective.replay)
        except torch.OutOfMemoryError as e:
            raise TrainingError(_too_much(sequences, config)) from e
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm).item()
        if not (math.isfinite(norm) and math.isfinite(sums["loss"])):
            where = ", ".join(group.problem.id for group in groups)
            raise TrainingError(
                f"update {update}: loss {sums['loss']}, gradient norm {norm}, on problems {where}. The weights were not changed; "
                "the last checkpoint is good. Try a lower learning_rate"
            )
        optimizer.step()
        for key, value in {**sums, "grad_norm": norm}.items():
            totals[key] = totals.get(key, 0.0) + value / config.updates
    return totals


def _too_much(sequences: list[Packed], config: Training) -> str:
    """What to do when an update runs out of memory."""
    part = max(_parts(sequences, config.micro_batch), key=lambda part: len(part) * len(part[-1].ids))
    tokens = len(part) * len(part[-1].ids)
    if len(part) == 1:
        return f"out of memory in an update, on one sequence of {tokens} tokens: lower group_size or list_length"
    now = f"now {config.micro_batch}; the largest forward pass had {tokens} tokens"
    return f"out of memory in an update: set micro_batch to {tokens // 2} ({now}), and the same call resumes the run"


def _policy_backward(model, completions, advantages, sequences, config, objective, reference) -> dict[str, float]:
    """Adds the gradient of the clipped loss (and KL) of all completions; returns loss, clip_ratio, kl and entropy, means over tokens."""
    weights = token_weights(completions, objective.reduction)
    old = [torch.tensor(c.logprobs) for c in completions]
    tokens, sums = sum(map(len, old)), dict.fromkeys(("loss", "clip_ratio", "kl", "entropy"), 0.0)
    for part in _parts(sequences, config.micro_batch):
        scores = packed_logprobs(model, part, config.temperature)
        owner = scores.owner.cpu()
        before = torch.cat([old[i] for i in owner.unique_consecutive().tolist()]).to(scores.logprobs.device)
        advantage = advantages[owner].to(before.device)
        losses = clipped_loss(scores.logprobs, before, advantage, objective.clip_low, objective.clip_high)
        with torch.no_grad():
            ratio = (scores.logprobs - before).exp()
            clipped = torch.where(advantage > 0, ratio > 1 + objective.clip_high, ratio < 1 - objective.clip_low) & (advantage != 0)
        if objective.kl:
            with torch.no_grad():
                held = packed_logprobs(reference, part, config.temperature).logprobs
            divergence = kl_estimate(scores.logprobs, held)
            losses = losses + objective.kl * divergence
            sums["kl"] += divergence.sum().item() / tokens
        loss = (weights[owner].to(losses.device) * losses).sum()
        loss.backward()
        sums["loss"] += loss.item()
        sums["clip_ratio"] += clipped.float().sum().item() / tokens
        sums["entropy"] += scores.entropy.sum().item() / tokens
    return sums


def _without_history(engine, groups, objective) -> tuple[list[Completion], torch.Tensor]:
    """The better candidates of every group as if drawn without a history, with their advantages."""
    kept, weights = [], []
    for group in groups:
        for rollout, advantage in zip(group.rollouts, rollout_advantages(group, objective), strict=False):
            turns = [turn for turn in rollout.turns or (rollout,) if advantage > 0 and turn.prompt != turn.plain]
            kept += [replace(turn.completion, prompt_ids=tuple(engine.encode(turn.plain))) for turn in turns]
            weights += [advantage] * len(turns)
    return kept, torch.tensor(weights)


def _distill_backward(model, completions, advantages, config, weight) -> None:
    """Adds the gradient of -A log π(y | x), the mean over tokens, of candidates with A > 0, given the prompt alone."""
    tokens = sum(len(c.ids) for c in completions)
    for part in _parts(pack(completions), config.micro_batch):
        scores = packed_logprobs(model, part, config.temperature)
        (-weight * (advantages[scores.owner.cpu()].to(scores.logprobs.device) * scores.logprobs).sum() / tokens).backward()


def _parts(sequences: list[Packed], tokens: int) -> Iterator[list[Packed]]:
    """Parts of at most so many tokens, padding too, or of one sequence, and of like length: beside a list of
    sketches, a solution would be mostly padding."""
    part: list[Packed] = []
    for sequence in sorted(sequences, key=lambda s: len(s.ids)):
        if part and ((len(part) + 1) * len(sequence.ids) > tokens or len(sequence.ids) > 1.5 * len(part[0].ids)):
            yield part
            part = []
        part.append(sequence)
    yield part


# ------------------------------------------------------------------------------------------------------- stop and go on


def run_folder(
    parent: Path, model: PreTrainedModel, task: Task, config: Training, seed: int, probe_on: Sequence[Any] | None = None
) -> Path:
    """A folder in `parent` for the training of `model` on `task.problems`, named after all that the run depends
    on, code and first weights too (but no reference): others get others. Not after the number of steps: a run
    of 80 goes on where one of 40 ended."""
    identity = _identity(model, task, task.problems, config, seed, task.problems if probe_on is None else probe_on)
    return parent / f"{config.arm}-seed{seed}-{hash_of(identity)}"


def _identity(model, task, problems, config: Training, seed: int, probe_on) -> dict:
    """All that a run's result depends on, but the reference."""
    code = fingerprint(sources_behind(f"import sesa.training, {modules_of(task)}"))
    world = f"{type(task).__name__} {getattr(task, 'config', '')}"
    ids = {name: hash_of([p.id for p in chosen]) for name, chosen in (("problems", problems), ("probed on", probe_on))}
    seen = {"template": str(getattr(task, "template", "")), "device": model.device.type}
    kept = {key: value for key, value in asdict(config).items() if key not in NO_PART_OF_A_RUN}
    return {**kept, "seed": seed, "task": world, **seen, **ids, "first weights": weights_of(model), "code": code}


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """The steps done and the file of every checkpoint, the least first."""
    named = [(re.fullmatch(r"(checkpoint|end)-(\d+)\.pt", path.name), path) for path in folder.glob("*.pt")]
    return sorted((int(name[2]), path) for name, path in named if name)


def _save(folder: Path, model, optimizer, state: dict, ended: bool) -> None:
    """Writes a checkpoint in the place of those on the way to it."""
    saved = {**state, "found": sorted(state["found"]), "monitor": asdict(state["monitor"])}
    new = folder / f"{'end' if ended else 'checkpoint'}-{state['step']}.pt"
    with atomic_file(new) as f:
        torch.save({**saved, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, f)
    for step, old in _checkpoints(folder):
        if step <= state["step"] and old != new and old.name.startswith("checkpoint"):
            old.unlink()


def _resume(folder: Path, identity: dict, model, optimizer, config: Training) -> dict:
    """The state of the run in `folder` after at most `config.steps` steps, its weights loaded and its logs cut
    back to it, or written as they were then; a new state if there is none."""
    theirs = read_json(folder / "run.json")
    if theirs is None:
        write_atomic(folder / "run.json", json.dumps(identity, indent=1) + "\n")
    elif difference := differing(theirs, identity):
        raise TrainingError(f"{folder} holds a run with other parameters ({difference}): take another folder, or delete it")
    state = {"step": 0, "metrics": [], "timings": [], "found": set(), "monitor": replace(config.monitor)}
    if reached := [path for step, path in _checkpoints(folder) if step <= config.steps]:
        try:
            saved = torch.load(reached[-1], map_location="cpu", weights_only=True)
            state = {name: saved[name] for name in ("step", "metrics", "timings")}
            state |= {"found": set(saved["found"]), "monitor": Monitor(**saved["monitor"])}
        except Exception as e:  # whatever a damaged file makes of its readers
            hint = "delete it to begin anew" if len(reached) == 1 else f"delete it to go on from {reached[-2].name}"
            raise TrainingError(f"{reached[-1]} cannot be read ({type(e).__name__}): {hint}") from e
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    if state["step"] < config.steps:
        for left in folder.glob(".*.pt.*"):  # what a process left that was killed while it wrote
            left.unlink()
    for name in ("metrics", "timings"):
        write_atomic(folder / f"{name}.jsonl", "".join(map(line_of, state[name])))
    return state


def line_of(row: dict[str, Any]) -> str:
    """A line of JSON, with null for numbers that are NaN or infinite, for which JSON has no word."""
    return json.dumps({k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}) + "\n"


def _append(path: Path, row: dict) -> None:
    with path.open("a", encoding="utf-8") as f:
        f.write(line_of(row))
