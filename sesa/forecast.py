"""Seconds to draw groups on GPUs, arm by arm, before any GPU is there: `sesa.cost` on the hardware that `sesa.cluster` assumes.

    python -m sesa.cost --model Qwen/Qwen2.5-7B-Instruct --gpus 8 --group-size 8 --sketch-tokens 32 --solution-tokens 1024

Tensor parallelism within a node, replicas beyond. The closed forms are compared with measurements of small models on a CPU in notebook
07; with a GPU they have not been compared yet.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from typing import Any, NamedTuple

from sesa.cost import HALF, Machine, Shape, Stage, call_flops, call_seconds, calls_of, kv_bytes, shape_from, stages_of_arm

NODE = 8  # GPUs with fast links between them


class Plan(NamedTuple):
    """What it takes to draw a group for each of several problems, all at once."""

    tensor_parallel: int  # GPUs that hold the model together
    replicas: int
    longest: int  # tokens of the longest row
    rows_at_once: int  # of this length, that the cache of a replica holds; below 1: the model does not fit
    path: int  # tokens that can only be written one after another
    flops: float
    seconds: dict[tuple[int, str], float]  # by (stage, "prefill" or "decode")
    fails: str  # why it cannot be; "": it can

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    @property
    def of_sketches(self) -> float:
        """Seconds of all stages but the last."""
        last = max(stage for stage, _ in self.seconds)
        return sum(s for (stage, _), s in self.seconds.items() if stage < last)


def split_over(shape: Shape, gpus: int) -> int:
    """As many GPUs of a node as can share the model: a number that divides the GPUs, its heads and its feed-forward layers, and either divides
    its key-value heads or is a multiple of them."""
    return max(n for n in range(1, min(gpus, NODE) + 1) if gpus % n == 0 and _shares(shape, n))


def _shares(shape: Shape, n: int) -> bool:
    return not (shape.heads % n or shape.intermediate % n or shape.kv_heads % n and n % shape.kv_heads)


def planned(
    shape: Shape, context: int, stages: Sequence[Stage], problems: int, hardware: Any, gpus: int = 1, cached: bool = True, *,
    tensor_parallel: int | None = None, overhead: float = 1e-3,
) -> Plan:  # fmt: skip
    """The plan of an arm's stages on GPUs.

    Problems, and in a second stage rows, are dealt evenly over replicas. Where a replica's cache holds fewer rows than it has to draw,
    they take turns, and as one ends the next begins. All texts are as long as they may be.

    Args:
        context: tokens that the model reads. hardware: a `sesa.cluster.Hardware`. tensor_parallel: None: as many as can, `split_over`.
        overhead: seconds of a forward call beside its work (our choice: an engine with captured graphs).

    Raises:
        ValueError: counts below 1, or GPUs and heads that cannot be divided so.
    """
    if min(problems, gpus) < 1:
        raise ValueError(f"problems and GPUs must be at least 1, not {problems} and {gpus}")
    n = split_over(shape, gpus) if tensor_parallel is None else tensor_parallel
    if not 1 <= n <= NODE or gpus % n or not _shares(shape, n):
        parts = f"{shape.heads} heads, {shape.kv_heads} key-value heads and {shape.intermediate} of the feed-forward layers"
        raise ValueError(f"{n} GPUs of {gpus} cannot share {parts}: tensor_parallel divides them, and is at most {NODE}, a node")
    machine = Machine(hardware.tflops * 1e12 * hardware.mfu, hardware.bandwidth_gb * 1e9 * hardware.bandwidth_use, overhead, gpus=n)
    room = n * (hardware.gpu_gb - hardware.reserve_gb) * 1e9 - HALF * shape.parameters
    copies = max(1, n / shape.kv_heads)  # more GPUs than key-value heads: several hold the same one
    most = [int(room / (kv_bytes(shape, max(s.packed)) * copies)) for s in stages]
    seconds: dict[tuple[int, str], float] = {}
    for call in calls_of(stages, problems, cached, gpus // n):
        at_once = max(1, min(call.rows, most[call.stage - 1]))
        turns = call.rows / at_once
        key = call.stage, call.kind
        seconds[key] = seconds.get(key, 0.0) + turns * call_seconds(shape, call._replace(rows=at_once), machine)
    longest = max(max(s.packed) for s in stages)
    fails = f"context: a row has {longest:,} tokens, and the model reads {context:,}" if longest > context else ""
    if min(most) < 1:
        fails = f"memory: weights and one row do not fit into {n} x {hardware.gpu_gb:g} GB"
    flops = sum(call_flops(shape, call) for call in calls_of(stages, problems, cached))
    return Plan(n, gpus // n, longest, min(most), sum(s.steps for s in stages), flops, seconds, fails)


def largest_group(context: int, prompt: int, tokens: int, gap: int = 1) -> int:
    """The most candidates of a list that the context holds."""
    return max(0, (context - prompt + gap) // (tokens + gap))


ARMS = ("parallel", "sequential", "iid_sketches", "sesa")
COUNTS = {
    "gpus": (8, "in all"), "problems": (32, "side by side"), "group-size": (8, "G, candidates per problem"), "prompt-tokens": (256, "of a problem"),
    "sketch-tokens": (32, "of a sketch"), "solution-tokens": (1024, "of a solution"),
}  # fmt: skip
SHAPE = ("layers", "hidden", "heads", "kv_heads", "intermediate", "vocabulary")
HARDWARE = {  # options that stand for fields of `sesa.cluster.Hardware`
    "gpu_gb": "memory of a GPU", "reserve_gb": "of it, what is neither weights nor cache", "tflops": "of a GPU, by its data sheet",
    "bandwidth_gb": "GB per second of its memory, by its data sheet", "mfu": "the share of its FLOPs that is reached",
    "bandwidth_use": "the share of its bandwidth that is reached",
}  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    text = "Seconds to draw a group for each of several problems, arm by arm, in closed form: nothing is run, and no GPU is needed."
    last = "Exit code 2: an arm cannot be drawn so; the last lines say why."
    parser = argparse.ArgumentParser(prog="python -m sesa.cost", description=text, epilog=last)
    add = parser.add_argument
    add("--model", default="Qwen/Qwen2.5-7B-Instruct", help="in cluster/models/, a folder with config.json, or on the hub (default: %(default)s)")
    for name, (default, what) in COUNTS.items():
        add(f"--{name}", type=int, default=default, help=f"{what} (default: {default})")
    add("--tensor-parallel", type=int, help="GPUs that share the model (default: as many of a node of 8 as can)")
    add("--no-prefix-caching", action="store_true", help="every draw computes its whole prompt anew, history and all")
    add("--overhead-ms", type=float, default=1.0, help="of a forward call, beside its work (default: 1)")
    add("--context", type=int, help="tokens that the model reads (default: what its configuration says; with a shape 32768)")
    shape = parser.add_argument_group("a shape in place of --model", "a Llama's, all six")
    for name in SHAPE:
        shape.add_argument(f"--{name.replace('_', '-')}", type=int)
    hardware = parser.add_argument_group("hardware", "in place of what sesa.cluster.Hardware says, an H100")
    for name, what in HARDWARE.items():
        hardware.add_argument(f"--{name.replace('_', '-')}", type=float, help=what)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    o = parser.parse_args(arguments)
    from sesa.cluster import Hardware, shape_on_meta  # here: --help should not wait for transformers

    hardware = replace(Hardware(), **{name: value for name in HARDWARE if (value := getattr(o, name)) is not None})
    given = {name: value for name in SHAPE if (value := getattr(o, name)) is not None}
    try:
        if 0 < len(given) < len(SHAPE):
            raise ValueError(f"a shape needs all of {', '.join(SHAPE)}")
        above = (hardware.tflops, hardware.bandwidth_gb, hardware.gpu_gb, hardware.mfu, hardware.bandwidth_use)
        if not all(map(isfinite, (*above, hardware.reserve_gb, o.overhead_ms))) or min(above) <= 0 or min(hardware.reserve_gb, o.overhead_ms) < 0:
            raise ValueError("FLOPs, bandwidth, memory and the shares reached must be above 0, reserve and overhead not below, all of them finite")
        if max(hardware.mfu, hardware.bandwidth_use) > 1 or o.context is not None and o.context < 1:
            raise ValueError("the shares reached are at most 1, and a context has at least 1 token")
        shape, context = (shape_from(**given), 32768) if given else shape_on_meta(o.model)
        context = o.context or context  # not 0, as was checked
        lengths = (o.group_size, o.prompt_tokens, o.sketch_tokens, o.solution_tokens)
        plans = {
            arm: planned(
                shape, context, stages_of_arm(arm, *lengths), o.problems, hardware, o.gpus, not o.no_prefix_caching,
                tensor_parallel=o.tensor_parallel, overhead=o.overhead_ms / 1000,
            ) for arm in ARMS
        }  # fmt: skip
    except ValueError as e:
        parser.error(str(e))
    one = plans["parallel"]
    print(
        f"model      {'a Llama of this shape' if given else o.model}: {shape.parameters:,} parameters",
        f"hardware   {one.replicas} x {one.tensor_parallel} GPUs, prefix caching {'off' if o.no_prefix_caching else 'on'}",
        f"lengths    G = {o.group_size}, prompt {o.prompt_tokens}, sketch {o.sketch_tokens}, solution {o.solution_tokens} tokens; {o.problems} problems at once",
        f"context    {context:,} tokens: a list of at most {largest_group(context, o.prompt_tokens, o.sketch_tokens):,} sketches, or of "
        f"{largest_group(context, o.prompt_tokens, o.solution_tokens):,} solutions",
        f"{'arm':12}{'seconds':>10}{'of stage I':>12}{'over parallel':>15}{'samples/s':>11}{'one by one':>12}{'PFLOPs':>10}{'longest row':>13}"
        f"{'rows at once':>14}",
        *(
            f"{arm:12}{p.total:10.2f}{p.of_sketches:12.2f}{p.total / one.total:15.3f}{o.problems * o.group_size / p.total:11.2f}{p.path:12,}"
            f"{p.flops / 1e15:10.3f}{p.longest:13,}{p.rows_at_once:14,}" for arm, p in plans.items() if not p.fails
        ),
        f"assumed    {', '.join(f'{name} {getattr(hardware, name):g}' for name in HARDWARE)}, overhead {o.overhead_ms:g} ms; texts as long as set",
        *(f"fails      {arm}: {p.fails}" for arm, p in plans.items() if p.fails),
        sep="\n",
    )  # fmt: skip
    return 2 if any(p.fails for p in plans.values()) else 0
