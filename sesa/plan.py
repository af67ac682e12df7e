"""The plan of a run of `sesa.distributed`, before anything is run: batches, memory per GPU, hours and money.

    python -m sesa.distributed --profile paper --dry-run

The model is built without weights, on the meta device, TRL's configuration with the processes that accelerate's file names; the rest is
the arithmetic of `sesa.cost`. All texts are taken to be as long as they may be, so memory, hours and money are upper bounds under the
assumptions of `sesa.cluster.Hardware`, which are printed. Not counted: grading, moving weights to vLLM, checkpoints, loading.
"""

from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from itertools import islice, product
from math import ceil
from typing import Any

from trl import GRPOConfig

from sesa import cost
from sesa.arms import Training
from sesa.cluster import Hardware, Placement, read_placement, shape_on_meta
from sesa.cost import Shape, Stage
from sesa.sampling import actions, iid_sketches, sequential, sesa
from sesa.tasks import Task, is_environment

SERVED = 0.9  # of a server GPU's memory that vLLM takes: `trl vllm-serve`'s default


def stages_of(task: Task, config: Training, characters_per_token: float) -> list[Stage]:
    """What the arm draws per problem, with the task's longest prompts and longest answers. Of an agent: G trajectories, each as one long
    answer (what the environment says between turns counts as written: an upper bound) and as if none had a beginning in common; in a tree as many
    proposals more as follow one another, if none repeats another, until it has branched into G."""

    def length(prompt: Callable, *more: Any) -> int:
        return ceil(max(len(prompt(problem, *more)) for problem in task.problems) / characters_per_token)

    if is_environment(task):
        branching = 0
        while config.sampler is actions and config.branch > 1 and config.branch**branching < config.group_size:
            branching += 1
        rounds = task.max_turns + branching * (config.branch - 1)
        gap = length(lambda p: task.observe(p, task.step(p, task.reset(p), "", seed=0).state))
        return [Stage(config.group_size, 1, length(lambda p: task.observe(p, task.reset(p))), rounds * (task.max_tokens + gap) - gap)]

    def drawn(prompt: Callable, tokens: int, listed: bool) -> Stage:
        if not listed:
            return Stage(config.group_size, 1, length(prompt), tokens)
        rounds = min(config.sampling.list_length or config.group_size, config.group_size)
        lists = ceil(config.group_size / rounds)
        return Stage(lists, rounds, length(prompt), tokens, gap=length(prompt, ("x",)) - length(prompt))

    if config.sampler not in (sesa, iid_sketches):
        return [drawn(task.prompt, task.max_tokens, config.sampler is sequential)]
    solutions = Stage(config.group_size, 1, length(task.expand_prompt, "") + task.sketch_max_tokens, task.max_tokens)
    return [drawn(task.sketch_prompt, task.sketch_max_tokens, config.sampler is sesa), solutions]


def memory(shape: Shape, stages: list[Stage], problems: int, o: Namespace, h: Hardware, place: Placement) -> dict[str, float]:
    """GB per GPU by what it is for. problems: of one process in a step. vLLM takes its share for good; beside it is either what an update
    needs, or the whole model, which ZeRO-3 gathers to sample without vLLM, and TRL to merge an adapter for it."""
    parts = cost.state_bytes(shape, place.gpus, place.sharding)
    if o.kl and not shape.adapter:
        parts["reference"] = parts["weights"]
    whole = cost.HALF * shape.parameters
    update = whole if place.sharding == "none" else cost.gathered_bytes(shape)  # autocast keeps bfloat16 copies
    update += cost.activation_bytes(shape, o.micro_batch * max(cost.unpacked(stages)), o.gradient_checkpointing)
    gathers = place.sharding == "none" or place.sharding == "zero3" and (o.vllm == "off" or shape.adapter)
    cache = max(cost.kv_bytes(shape, sum(s.packed)) for s in stages) * problems if o.vllm == "off" else 0
    parts["an update, or sampling"] = max(update, whole * bool(gathers) + cache)
    parts["vLLM"] = o.vllm_gpu_memory_utilization * h.gpu_gb * 1e9 if o.vllm == "colocate" else 0
    return {name: n / 1e9 for name, n in parts.items()} | {"reserve": h.reserve_gb}


def objections(shape: Shape, stages: list[Stage], context: int, o: Namespace, h: Hardware, place: Placement) -> list[str]:
    """Why the run would fail; none if it would not. vLLM does not start without room for a row of the model's whole context."""
    total = sum(memory(shape, stages, max(o.problems_per_step // place.gpus, 1), o, h, place).values())
    longest = max(max(s.packed) for s in stages)
    served = {"colocate": (o.vllm_tensor_parallel_size, o.vllm_gpu_memory_utilization), "server": (h.vllm_gpus, SERVED)}
    gpus, share = served.get(o.vllm, (1, 0))
    needs, has = (cost.HALF * shape.parameters + cost.kv_bytes(shape, context)) / 1e9, gpus * share * h.gpu_gb
    found = {
        f"memory: {total:.0f} GB per GPU are needed, and {h.gpu_gb:g} there": total > h.gpu_gb,
        f"vLLM ({o.vllm}): weights and a full context are {needs:.0f} GB, and it has {has:.0f} on {gpus} GPUs": o.vllm != "off" and needs > has,
        f"vLLM: {shape.heads} heads cannot be split over {gpus} GPUs": shape.heads % gpus,
        f"{place.gpus} processes are no multiple of vllm_tensor_parallel_size {gpus}": o.vllm == "colocate" and place.gpus % gpus,
        f"context: a row may have {longest} tokens, and the model reads {context}": longest > context,
        "FSDP needs vLLM here: --vllm colocate": place.sharding == "fsdp2" and o.vllm == "off",
        f"--bf16 is {o.bf16}, and accelerate's file says {place.bf16}: they must agree": o.bf16 != place.bf16,
    }
    return [text for text, bad in found.items() if bad]


def remedies(stages: list[Stage], context: int, o: Namespace, h: Hardware, place: Placement) -> Iterator[str]:
    """Changes that leave no objection: what spares memory, on as many GPUs or on up to eight times as many."""
    small, lora = {"gradient_checkpointing": True, "micro_batch": 1}, {"lora": o.lora or 32}
    for times, change in product((1, 2, 4, 8), ({}, small, small | {"vllm": "server"}, small | lora, small | lora | {"vllm": "server"})):
        more = replace(place, nodes=place.nodes * times, gpus=place.gpus * times)
        if o.problems_per_step % more.gpus:
            change = change | {"problems_per_step": ceil(o.problems_per_step / more.gpus) * more.gpus}
        changed = Namespace(**vars(o) | change)
        shape = shape_on_meta(o.model, changed.lora)[0]
        if not objections(shape, stages, context, changed, h, more):
            flags = (f"--{name.replace('_', '-')}{'' if value is True else f' {value}'}" for name, value in change.items())
            yield " ".join([f"would fit  {more.gpus} GPUs", *flags])


def seconds(shape: Shape, stages: list[Stage], n: int, o: Namespace, h: Hardware, place: Placement) -> dict[str, float]:
    """Of one step of n problems, by phase. Beside its updates TRL makes a forward pass for the old log-probabilities, if rollouts serve
    several updates or come from vLLM, and one for the reference."""
    flops, bandwidth = h.tflops * 1e12 * h.mfu, h.bandwidth_gb * 1e9 * h.bandwidth_use
    gpus = {"server": h.vllm_gpus, "colocate": o.vllm_tensor_parallel_size}.get(o.vllm, 1)  # of one engine
    engines = 1 if o.vllm == "server" else place.gpus // gpus
    prompts = sum(cost.call_flops(shape, cost.Call(i, "prefill", s.lists, s.prompt, 0)) for i, s in enumerate(stages, 1))
    phases = {"prefill": n * prompts / (flops * engines * gpus)}
    for i, s in enumerate(stages, 1):
        each = cost.decode_seconds(shape, n * s.lists / engines, (s.prompt + s.packed[0]) / 2, flops, bandwidth, gpus)
        least = h.transformers_ms / 1000 * (o.vllm == "off")
        phases[f"stage {i}: {s.steps} tokens after one another in {n * s.lists} rows"] = s.steps * max(each, least)
    rows = cost.unpacked(stages)
    before = ((o.updates > 1 or o.vllm != "off") + bool(o.kl)) * sum(cost.forward_flops(shape, width) for width in rows)
    after = o.updates * cost.training_flops(shape, rows, o.gradient_checkpointing)
    return phases | {f"{o.updates} updates": n * (before + after) / (flops * place.gpus)}


def show(o: Namespace, task: Task, config: Training, h: Hardware, args_of: Callable[[int, type], GRPOConfig]) -> bool:
    """Prints the plan; returns whether it holds. o: the command's options. args_of: TRL's configuration for so many processes, of this
    class. Raises ValueError where there is nothing to plan."""
    place = read_placement(o.accelerate)
    shape, context = shape_on_meta(o.model, o.lora)
    stages = stages_of(task, config, h.characters_per_token)
    n = o.problems_per_step = min(config.problems_per_step, len(task.problems))
    # TRL checks its arithmetic with the number of processes, of which there is one now.
    args = args_of(place.gpus, type("Planned", (GRPOConfig,), {"world_size": property(lambda _: place.gpus)}))
    o.kl, o.micro_batch = args.beta, args.per_device_train_batch_size
    used, phases = memory(shape, stages, n // place.gpus, o, h, place), seconds(shape, stages, n, o, h, place)
    step, gpus = sum(phases.values()), place.gpus + h.vllm_gpus * (o.vllm == "server")
    hours, rows = step * config.steps / 3600, cost.unpacked(stages)
    flops = [n * cost.training_flops(shape, r, o.gradient_checkpointing) for r in (rows, [length for s in stages for length in s.packed])]
    found = objections(shape, stages, context, o, h, place)
    print(
        f"model      {o.model}: {shape.parameters:,} parameters, {shape.trained:,} trained",
        f"hardware   {place.nodes} x {place.gpus // place.nodes} {h.gpu}, {place.sharding}; vLLM: {o.vllm}, {gpus} GPUs in all",
        f"run        {config.arm} on {o.task}, G = {config.group_size}, {config.steps} steps of {n} of {len(task.problems)} problems: "
        f"{config.steps * n / len(task.problems):.1f} epochs",
        f"batch      {n} problems x {args.num_generations} rows = {args.generation_batch_size} = {place.gpus} processes x "
        f"{args.gradient_accumulation_steps} accumulated x {o.micro_batch} at once; {args.max_steps} updates in all",
        f"lengths    prompts {[s.prompt for s in stages]}, candidates {[s.tokens for s in stages]}; a padded row {rows[0]} tokens",
        f"FLOPs      a step: sampling {n * cost.sampling_flops(shape, stages):.2e}; an update {flops[0]:.2e}, packed it would be "
        f"{flops[1]:.2e} (TRL does not pack)",
        *(f"memory     {gb:7.1f} GB per GPU  {name}" for name, gb in used.items() if gb),
        f"memory     {sum(used.values()):7.1f} GB per GPU of {h.gpu_gb:g}",
        *(f"time       {s:7.1f} s a step  {name}" for name, s in phases.items()),
        f"time       {step:7.1f} s a step; in all {hours:.1f} h, {hours * gpus:.0f} GPU h, {hours * gpus * h.dollars_per_gpu_hour:.0f} dollars",
        f"launch     {place.path} {place.nodes} {place.gpus}",
        f"assumed    {', '.join(f'{f.name} {getattr(h, f.name)}' for f in fields(h))}; all texts as long as they may be",
        *(f"fails      {text}" for text in found),
        *(list(islice(remedies(stages, context, o, h, place), 6)) or ["nothing tried would fit"] if found else ["fits"]),
        sep="\n",
    )  # fmt: skip
    return not found
