"""The same rollouts inside TRL's GRPOTrainer, for those who outgrow `sesa.training`: accelerate, DeepSpeed, LoRA, vLLM, many GPUs.

    accelerate launch -m sesa.distributed --arm sesa --model Qwen/Qwen2.5-7B-Instruct --lora 32 --vllm colocate --learning-rate 1e-5
    python -m sesa.distributed --profile paper --dry-run        what `cluster/paper.yaml` would run, whether it fits, what it costs

`sesa.sampling` draws the groups, on every process those of its own problems, and TRL's `rollout_func` takes them in: one row per
completion, each after its own prompt. A group of a two-stage arm is 2G rows: G sketches, then the G solutions; an agent's is one row per
trajectory, in which the loss sees what the policy wrote and not what the environment said. Problems and seeds of a step are those of `sesa.training`, and
so is the gradient: TRL gets the advantages of `sesa.objective` in the place of rewards, and scales nothing. Its own scaling divides by the deviation with n - 1 over all n rows of a group: its advantages would be sqrt((n - 1) / n) of
ours, n = G in one stage and 2G in two (and it adds 1e-4 to the deviation, not 1e-6).

Run by us: on CPUs, one process and two (torchrun). Not run by us yet: GPUs (where `LocalEngine` samples in bfloat16, also if training is in
float32), DeepSpeed, vLLM. FSDP is refused without vLLM: processes that sample from sharded weights must step together, and ours stop
when their own rows have ended.
"""

import argparse
import atexit
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func may change, so pyproject.toml pins TRL
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when the libraries below are imported

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.models import unwrap_model_for_generation

from sesa.arms import Training
from sesa.cluster import Hardware, lora_config, read_profile
from sesa.engines import Completion
from sesa.engines.local import LocalEngine
from sesa.engines.vllm import VLLMEngine
from sesa.models import tiny_lm
from sesa.objective import Objective, rollout_advantages, with_advantages
from sesa.packing import pack
from sesa.plan import show
from sesa.runs import derive_seed, differing, home, read_json, write_atomic
from sesa.sampling import Group, Sampling, actions, iid_actions
from sesa.tasks import Task, is_environment
from sesa.tasks.chat import Templated, template_of
from sesa.tasks.countdown import CountdownConfig, CountdownTask
from sesa.tasks.frozen_lake import FrozenLake, FrozenLakeConfig
from sesa.tasks.math import MathConfig, MathTask
from sesa.tasks.paths import PathConfig, PathTask
from sesa.tasks.sokoban import Sokoban, SokobanConfig
from sesa.tasks.sudoku import SudokuConfig, SudokuTask
from sesa.training import NO_PART_OF_A_RUN, TrainingError, describe, line_of

# name -> task with this field of its configuration
TASKS: dict[str, Callable[..., Task]] = {
    "paths": lambda **form: PathTask(PathConfig(**form)),
    "math": lambda **form: MathTask(MathConfig(**form)),
    "sudoku": lambda **form: SudokuTask(SudokuConfig(**form)),
    "countdown": lambda **form: CountdownTask(CountdownConfig(**form)),
    "frozen_lake": lambda **form: FrozenLake(FrozenLakeConfig(**form)),
    "sokoban": lambda **form: Sokoban(SokobanConfig(**form)),
}
LOGGED = {"loss": "loss", "grad_norm": "grad_norm", "entropy": "entropy", "clip_ratio/region_mean": "clip_ratio", "kl": "kl"}
ROW = "prompt_ids", "completion_ids", "logprobs", "env_mask"  # fields of what TRL's rollout_func returns
WHOLE = "whole.json"  # in a checkpoint: the sizes of its files, written when all processes have written theirs


class Rollouts:
    """TRL's `rollout_func`, and beside it the reward function, `advantages`. `rows` of a group: G, or 2G where solutions have sketches."""

    def __init__(self, task: Task, config: Training, seed: int):
        self.task, self.problems, self.config, self.seed = task, {p.id: p for p in task.problems}, config, seed
        self.rows = config.group_size * (2 if config.two_stages else 1)

    def __call__(self, prompts: Sequence[str], trainer: GRPOTrainer) -> dict[str, list]:
        """One group per problem. `prompts`: problem ids, each `rows` times in succession, else ValueError. Returns lists of one per row."""
        config, ids, tokenizer = self.config, prompts[:: self.rows], trainer.processing_class
        if list(prompts) != [i for i in ids for _ in range(self.rows)]:
            raise ValueError(f"the {len(prompts)} rows of this process are not whole groups of {self.rows}, one problem after another")
        seed = derive_seed(config.root(self.seed, trainer.state.global_step // config.updates), "rollouts")
        again = {"gradient_checkpointing_kwargs": trainer.args.gradient_checkpointing_kwargs}
        # Gathers what ZeRO-3 has scattered. LocalEngine sets eval mode, and train mode again.
        with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator, not trainer.use_vllm, **again) as policy:
            engine = VLLMEngine(trainer.vllm_generation, tokenizer) if trainer.use_vllm else LocalEngine(policy, tokenizer)
            groups = config.sampler(engine, self.task, [self.problems[i] for i in ids], config.sampling, seed)
        # Of this process; logged is the mean over processes, so that of these counts is the sum.
        self.metrics = describe(groups, config.full_objective)
        for count in ("rollouts", "completion_tokens", "overflows"):
            self.metrics[count] *= trainer.accelerator.num_processes
        if is_environment(self.task):
            return self.trajectories(groups, tokenizer.eos_token_id or 0)
        completions, advantages = with_advantages(groups, config.full_objective)
        rows = [row_of([c], tokenizer.eos_token_id or 0) for c in completions]
        return {
            **{name: list(column) for name, column in zip(ROW, zip(*rows, strict=True), strict=True)},
            "reward": [r.reward for g in groups for r in (*g.sketches, *g.rollouts)],
            "advantage": advantages.tolist(),
        }

    def trajectories(self, groups: Sequence[Group], end: int) -> dict[str, list]:
        """A row per trajectory: after the prompt of its first turn all that followed, with `env_mask` 1 where the policy wrote. A tree of
        fewer trajectories is filled up with rows that no loss sees. end: see `row_of`."""
        rows: dict[str, list] = {name: [] for name in (*ROW, "reward", "advantage")}
        for group in groups:
            advantages = rollout_advantages(group, self.config.full_objective).tolist()
            for i in range(self.rows):
                seen = i < len(group.rollouts)
                rollout = group.rollouts[i if seen else 0]
                row = row_of(rollout.completions, end)
                for name, value in zip(ROW, row if seen else (*row[:3], [0] * len(row[3])), strict=True):
                    rows[name].append(value)
                rows["reward"].append(rollout.reward if seen else 0.0)
                rows["advantage"].append(advantages[i] if seen else 0.0)
        return rows

    def advantages(self, advantage: list[float], log_metric: Callable, **_: Any) -> list[float]:
        """What TRL takes for rewards. Their mean over a group is 0 already, so subtracting it changes nothing."""
        for name, value in self.metrics.items():
            log_metric(f"rollout/{name}", value)  # the mean over processes, which hold equally many problems
        return advantage


def row_of(completions: Sequence[Completion], end: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...], list[int]]:
    """One row of TRL's, its fields as in `ROW`: the turns of a trajectory, or one completion; the mask is 1 where the policy wrote.

    They are one sequence, unless a tokenizer, after a branch, reads what was written as other tokens: then its last turns alone. TRL trains
    on what it reads, so a turn's last token that the next prompt does not show (`Packed.ends`), such as <|endoftext|> where it shows
    <|im_end|>, is not learnt here; `sesa.training` learns it. Where nothing was written the row is `end`, a token that no loss sees.
    """
    packed = pack(completions)
    if not packed:
        return completions[0].prompt_ids, (end,), (0.0,), [0]
    sequence = packed[-1]
    first = next(t for t, owner in enumerate(sequence.owner) if owner >= 0)
    owners = sequence.owner[first:]
    drawn_with = iter([p for o in dict.fromkeys(o for o in owners if o >= 0) for p in completions[o].logprobs])
    logprobs = [next(drawn_with) if owner >= 0 else 0.0 for owner in owners]
    mask = [int(owner >= 0 and t not in sequence.ends) for t, owner in enumerate(owners, first)]
    logprobs = tuple(p if learnt else 0.0 for p, learnt in zip(logprobs, mask, strict=True))
    return tuple(sequence.ids[:first]), tuple(sequence.ids[first:]), logprobs, mask


class Records(TrainerCallback):
    """`metrics.jsonl`, one line a step with means over its updates; stops at a loss that is no number; marks whole checkpoints."""

    def __init__(self, config: Training):
        self.updates, self.logs = config.updates, []

    def on_log(self, args, state, control, logs=None, **_) -> None:
        if "loss" not in logs:  # the summary at the end
            return
        numbers = {name: logs[name] for name in ("loss", "grad_norm") if name in logs}  # DeepSpeed may not tell the norm
        if not np.isfinite(list(numbers.values())).all():
            raise TrainingError(f"update {state.global_step}: {numbers}. The last checkpoint is good; try a lower learning rate")
        self.logs.append({LOGGED.get(k, k.removeprefix("rollout/")): v for k, v in logs.items() if k in LOGGED or k.startswith("rollout/")})
        if state.global_step % self.updates == 0:
            row = {"step": state.global_step // self.updates - 1}
            row |= {key: float(np.mean([log[key] for log in self.logs if key in log])) for key in self.logs[0]}
            self.logs, path = [], Path(args.output_dir) / "metrics.jsonl"
            if state.is_world_process_zero:  # a resumed run has lines of steps that it does again
                before = path.read_text(encoding="utf-8").splitlines(keepends=True)[: row["step"]] if path.exists() else []
                write_atomic(path, "".join([*before, line_of(row)]))

    def on_save(self, args, state, control, **_) -> None:
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            files = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file() and p.name != WHOLE}
            write_atomic(folder / WHOLE, json.dumps(files) + "\n")


def trl_config(
    task: Task, config: Training, seed: int, folder: Path, processes: int, kind=None, vllm="off", micro_batch=256, **more: Any
) -> GRPOConfig:
    """`config` in TRL's words, for so many processes. kind: the class to make, None: GRPOConfig. micro_batch: rows in one forward pass of a
    process, at most, in the place of config's, which counts tokens. more: other fields.

    Raises:
        ValueError: TRL cannot do what is asked, or groups would be split over processes.
    """
    objective = config.full_objective
    asked = asdict(objective) | asdict(config)
    if beyond := [name for name in ("replay", "distill", "on_collapse", "filter_groups") if asked[name]]:
        raise ValueError(f"{' and '.join(beyond)}: not done inside TRL, but by sesa.training")
    if is_environment(task) and objective.reduction == "sequence":
        raise ValueError('reduction="sequence" takes the mean over turns in sesa.training, and over trajectories inside TRL: take "token"')
    config.suit(task)
    if config.sampler in (actions, iid_actions) and objective.duplicate_reward is not None:
        raise ValueError(f"{config.arm}: what a tree's dropped proposals earn is not done inside TRL, but by sesa.training")
    together = vllm == "server" or more.get("vllm_tensor_parallel_size", 1) > 1
    if is_environment(task) and together and processes > 1:
        # TRL gathers the prompts of all processes at every call, so one whose games are over would keep the others waiting for ever.
        raise ValueError("agents end after different numbers of turns, so processes cannot share a vLLM: take --vllm colocate, one GPU each")
    n, rows = min(config.problems_per_step, len(task.problems)), Rollouts(task, config, seed).rows
    if n % processes:
        split = f"{n} problems x {rows} rows / {processes} processes = {n * rows / processes:g} rows each, not whole groups of {rows}"
        raise ValueError(f"{split}: make the problems of a step a multiple of {processes}")
    local = n // processes * rows
    at_once = max(d for d in range(1, min(local, micro_batch) + 1) if local % d == 0)
    return (kind or GRPOConfig)(
        output_dir=str(folder), seed=derive_seed(seed, config.arm, "trl") % 2**32, use_cpu=not torch.accelerator.is_available(),
        report_to="none", logging_steps=1, logging_nan_inf_filter=False, save_steps=config.checkpoint_every * config.updates,
        save_total_limit=2, max_steps=config.steps * config.updates, num_iterations=config.updates, num_generations=rows,
        per_device_train_batch_size=at_once, gradient_accumulation_steps=local // at_once, shuffle_dataset=False,
        loss_type={"token": "dapo", "sequence": "grpo"}[objective.reduction], epsilon=objective.clip_low, epsilon_high=objective.clip_high,
        scale_rewards="none", beta=objective.kl, use_bias_correction_kl=False, temperature=config.temperature,
        learning_rate=config.learning_rate, lr_scheduler_type="constant", adam_beta2=0.95, max_grad_norm=config.max_grad_norm,
        use_vllm=vllm != "off", vllm_mode="colocate" if vllm == "off" else vllm, ddp_find_unused_parameters=False,
        **{"bf16": False, "gradient_checkpointing": False} | more,
    )  # fmt: skip


def make_trainer(model: Any, task: Task, config: Training, seed: int, folder: Path, lora=0, vllm="off", **more: Any) -> GRPOTrainer:
    """model: "tiny", or a folder or a name on the Hugging Face hub, loaded in float32; or (model, tokenizer).

    lora: rank of the adapter that is trained in the model's place; 0: the model itself. more: for GRPOConfig.

    Raises:
        ValueError: what `trl_config` refuses, or vLLM is not installed.
    """
    if vllm != "off" and importlib.util.find_spec("vllm") is None:
        raise ValueError(f"vLLM ({vllm}) is not installed: pip install 'trl[vllm]', or leave it off")
    args = trl_config(task, config, seed, folder, processes := int(os.environ.get("WORLD_SIZE", 1)), vllm=vllm, **more)
    if args.world_size != processes:
        raise ValueError(f"WORLD_SIZE says {processes} processes, TRL {args.world_size}: start them by accelerate launch or torchrun")
    if model == "tiny":
        with PartialState().main_process_first():  # it makes the model, the others read it
            model = tiny_lm(task, seed)
    elif isinstance(model, str):  # not before `args`: DeepSpeed scatters weights while they are read
        model = AutoModelForCausalLM.from_pretrained(model, dtype="float32"), AutoTokenizer.from_pretrained(model)
    rollouts = Rollouts(task, config, seed)
    # The problems of all steps in order, so that a resumed run goes on with them.
    data = [problem.id for step in range(config.steps) for problem in config.choose(task.problems, config.root(seed, step))]
    trainer = GRPOTrainer(
        model[0], rollouts.advantages, args, Dataset.from_dict({"prompt": data}), processing_class=model[1], rollout_func=rollouts,
        peft_config=lora_config(lora) if lora else None, callbacks=[Records(config)],
    )  # fmt: skip
    if trainer.is_fsdp_enabled and not trainer.use_vllm:
        raise ValueError("FSDP needs vLLM here; or take DeepSpeed, or plain data parallelism")
    return trainer


def resumable(folder: Path, identity: dict[str, Any]) -> Path | None:
    """The last checkpoint in `folder` of which all was written, None if there is none; notes there which run it holds.

    Raises:
        ValueError: the folder holds another run, or a checkpoint that was whole and has been damaged since.
    """
    theirs = read_json(folder / "run.json")
    if theirs is None:
        write_atomic(folder / "run.json", json.dumps(identity, indent=1) + "\n")
    elif difference := differing(theirs, identity):
        raise ValueError(f"{folder} holds a run with other parameters ({difference}): take another folder, or delete it")
    whole = max((p.parent for p in folder.glob(f"checkpoint-*/{WHOLE}")), key=lambda p: int(p.name.split("-")[1]), default=None)
    sizes = (read_json(whole / WHOLE) or {WHOLE: -1}) if whole else {}
    if damaged := [name for name, size in sizes.items() if not (whole / name).is_file() or (whole / name).stat().st_size != size]:
        raise ValueError(f"{whole} is damaged ({', '.join(damaged)}): delete that folder to go on from the checkpoint before it")
    return whole


def train(model: str, task: Task, config: Training, seed: int, folder: Path, **how: Any) -> None:
    """Trains, or goes on from the last whole checkpoint in `folder`; `steps` may be more than before. `how`: for `make_trainer`.

    Equal arguments, equal weights, bit for bit on the CPU (not with vLLM). The probes of `sesa.training` are not made. Raises what
    `make_trainer` and `resumable` do, and TrainingError at a loss or gradient that is no number.
    """
    trainer = make_trainer(model, task, config, seed, folder, **how)
    kept = {key: value for key, value in asdict(config).items() if key not in (*NO_PART_OF_A_RUN, "probe_every")}
    # Where vLLM runs may change, and how many rows are computed at once.
    kept |= {key: value for key, value in how.items() if not key.startswith("vllm_") and key != "micro_batch"}
    kept |= {key: getattr(task, key, None) for key in LIMITS}
    with PartialState().main_process_first():
        checkpoint = resumable(folder, {**kept, "seed": seed, "model": model, "task": f"{type(task).__name__} {getattr(task, 'config', '')}"})
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def asked(task: str, model: str, dry_run: bool) -> Task:
    """The task in the model's words: compact for the tiny LM, in a folder too; in its chat template for one that has any (for a dry run, which
    loads nothing, in ChatML)."""
    if model == "tiny":
        return TASKS[task]()
    if dry_run:
        return TASKS[task](form="chat")
    tokenizer = AutoTokenizer.from_pretrained(model)
    return Templated(TASKS[task](form="chat"), template_of(tokenizer)) if tokenizer.chat_template else TASKS[task]()


LIMITS = "max_tokens", "sketch_max_tokens"  # of a task
NUMBERS = "arm", "steps", "problems_per_step", "group_size", "updates", "temperature", "learning_rate"  # of a Training
HOW = (  # for make_trainer
    "vllm", "bf16", "gradient_checkpointing", "vllm_tensor_parallel_size", "vllm_gpu_memory_utilization", "micro_batch",
)  # fmt: skip
OPTIONS: tuple[tuple[str, Any, str], ...] = (
    ("task", "paths", f"one of: {', '.join(TASKS)}"),
    ("model", "tiny", "a folder, a name on the Hugging Face hub, or tiny: the tiny LM, made if need be"),
    ("arm", "sesa", "parallel, sequential, sesa or iid_sketches, of an agent parallel, actions or iid_actions; then +unique, +kl, or both"),
    ("steps", Training.steps, "sets of rollouts in all; from each the weights are updated --updates times"),
    ("problems_per_step", Training.problems_per_step, "of all processes together; a multiple of their number"),
    ("group_size", Sampling.group_size, "G, solutions per problem; two-stage arms draw as many sketches"),
    ("updates", Training.updates, "of the weights, from one set of rollouts"),
    ("max_tokens", 0, "of a solution or a turn, at most; 0: the task's own limit"),
    ("sketch_max_tokens", 0, "of a sketch, at most; 0: the task's own limit"),
    ("temperature", Sampling.temperature, "of sampling"),
    ("learning_rate", Training.learning_rate, "of AdamW, constant; the default is for the tiny LM"),
    ("clip_low", Objective.clip_low, "the ratio is clipped at 1 - this"), ("clip_high", Objective.clip_high, "and at 1 + this"),
    ("kl", Objective.kl, "weight of the KL term to the first policy; 0: the arm's +kl sets its own"),
    ("micro_batch", 256, "rows in one forward pass of one process, at most"),
    ("save_every", Training.checkpoint_every, "sets of rollouts from one checkpoint to the next"),
    ("output", home() / "runs" / "distributed", "folder that all processes see; the same command again goes on from there"),
    ("seed", 0, "of problems, rollouts, adapter and tiny LM"), ("lora", 0, "rank of the LoRA adapter to train; 0: all weights"),
    ("vllm", "off", "off, colocate or server: sample by TRL's vLLM"),
    ("vllm_server_base_url", "", "of the server; empty: port 8000 of this machine"),
    ("vllm_tensor_parallel_size", 1, "GPUs that share one vLLM, colocated"),
    ("vllm_gpu_memory_utilization", 0.3, "share of a GPU's memory that a colocated vLLM takes"),
    ("bf16", False, "bfloat16 autocast; weights stay float32"), ("gradient_checkpointing", False, "less memory, more time"),
    ("accelerate", "zero3_1x8.yaml", "for --dry-run: what accelerate launch will get as --config_file; a path, or a file of cluster/"),
)  # fmt: skip


def _leave() -> None:
    """Ends the threads between processes: one that is left when Python ends may abort a process that has done its work."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains; or, for a dry run, exits with 0 if the plan holds, else with 2."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for name, default, text in OPTIONS:
        kind = {"action": argparse.BooleanOptionalAction} if default is False else {"type": type(default)}
        parser.add_argument(f"--{name.replace('_', '-')}", help=text, default=default, **kind)
    parser.add_argument("--profile", help="takes defaults from cluster/PROFILE.yaml")
    parser.add_argument("--dry-run", action="store_true", help="loads no weights: says what would run, whether it fits, and what it costs")
    first = parser.parse_known_args(arguments)[0]
    try:
        defaults, hardware = read_profile(first.profile, {name: default for name, default, _ in OPTIONS}) if first.profile else ({}, Hardware())
        parser.set_defaults(**defaults)
        o = parser.parse_args(arguments)
        if o.task not in TASKS:
            raise ValueError(f"no task {o.task!r}: take one of {', '.join(TASKS)}")
        task = asked(o.task, o.model, o.dry_run)
        for name in LIMITS:
            if getattr(o, name):
                setattr(task, name, getattr(o, name))
        objective = Objective(clip_low=o.clip_low, clip_high=o.clip_high, kl=o.kl)
        config = Training(**{name: getattr(o, name) for name in NUMBERS}, checkpoint_every=o.save_every, objective=objective)
        how = {name: getattr(o, name) for name in HOW} | {"vllm_server_base_url": o.vllm_server_base_url or None}
        if not o.dry_run:
            atexit.register(_leave)
            train(o.model, task, config, o.seed, o.output, lora=o.lora, **how)
        elif not show(o, task, config, hardware, partial(trl_config, task, config, o.seed, o.output, **how)):
            raise SystemExit(2)
    except (ValueError, OSError, TrainingError) as e:
        if first.dry_run:
            print(f"{type(e).__name__}: {e}", file=sys.stderr)
            raise SystemExit(2) from e
        raise SystemExit(f"{type(e).__name__}: {e}") from e


if __name__ == "__main__":
    main()
