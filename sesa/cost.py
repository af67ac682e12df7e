"""What sampling and a training step cost, in FLOPs, bytes and seconds: closed forms, before anything is run.

    python -m sesa.cost --model Qwen/Qwen2.5-7B-Instruct --gpus 8 --group-size 8 --sketch-tokens 32 --solution-tokens 1024

An arm is a few `Stage`s, and all follows from these: what is sampled one after another and what side by side, how long the rows of
training are, packed (`sesa.packing`) or not. A multiplication and an addition are 2 FLOPs; a GB is 1e9 bytes. Counted are matrix products
and attention in decoder layers of one kind (Llama's, Qwen2's; `sesa.cluster.shape_on_meta` refuses others); norms, softmax and rotations
are not.

    forward pass      2 per weight and token, and causal attention       Kaplan et al. 2020, arXiv 2001.08361, table 1
    training          3 forward passes; 4 with checkpointing             the same; Chen et al. 2016, arXiv 1604.06174
    model states      16 bytes per trained parameter                     ZeRO: Rajbhandari et al. 2020, arXiv 1910.02054, section 3.1
    activations       the tensors that a layer keeps for backward        after Korthikanti et al. 2022, arXiv 2205.05198, section 4.1
    decoding          reads all weights and the KV cache for each token  Pope et al. 2022, arXiv 2211.05102, section 2
    seconds           the larger of arithmetic and memory traffic        the roofline: Williams et al. 2009
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil, log
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import least_squares
from torch import nn

HALF = 2  # bytes of a bfloat16


@dataclass(frozen=True)
class Shape:
    """What of a model its costs depend on. The counts are numbers of parameters."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    parameters: int  # of the model without its adapter
    linear: int  # of these, in matrix products that every token goes through: not the input embedding, norms and biases
    adapter: int = 0  # LoRA; 0: all weights are trained

    @property
    def trained(self) -> int:
        return self.adapter or self.parameters


def shape_of(model: nn.Module, config: Any) -> Shape:
    """Counted on a model, which may be on the meta device. config: its transformers configuration."""
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    adapter = sum(n for name, n in sizes.items() if "lora_" in name)
    linear = sum(m.weight.numel() for name, m in model.named_modules() if isinstance(m, nn.Linear) and "lora_" not in name)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(
        config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.num_key_value_heads, head,
        config.intermediate_size, config.vocab_size, sum(sizes.values()) - adapter, linear, adapter,
    )  # fmt: skip


def shape_from(layers: int, hidden: int, heads: int, kv_heads: int, intermediate: int, vocabulary: int) -> Shape:
    """Of a Llama (no biases, untied embeddings) from these numbers alone, which transformers' configurations name alike.

    Raises:
        ValueError: a number below 1, or heads that cannot be divided.
    """
    if min(layers, hidden, heads, kv_heads, intermediate, vocabulary) < 1 or hidden % heads or heads % kv_heads:
        raise ValueError(f"{heads} heads must divide the hidden size {hidden}, and {kv_heads} key-value heads the heads; all at least 1")
    sizes = (layers, hidden, heads, kv_heads, hidden // heads, intermediate, vocabulary)
    linear, norms = linear_parameters(*sizes), (2 * layers + 1) * hidden
    return Shape(*sizes, linear + vocabulary * hidden + norms, linear)


def linear_parameters(
    layers: int, hidden: int, heads: int, kv_heads: int, head_size: int, intermediate: int, vocabulary: int
) -> int:
    """`Shape.linear` of a decoder whose layers are all alike, each with attention and a gated feed-forward part."""
    return layers * hidden * (2 * (heads + kv_heads) * head_size + 3 * intermediate) + vocabulary * hidden


@dataclass(frozen=True)
class Stage:
    """`lists` lists per problem, side by side; in each `rounds` candidates one after another. In tokens: the prompt before the first
    candidate, a candidate (at most), what stands between two, and how much of the prompt all lists of a problem begin with, or have in the
    cache from the stage before."""

    lists: int
    rounds: int
    prompt: int
    tokens: int
    gap: int = 0
    common: int = 0

    @property
    def packed(self) -> list[int]:
        """Lengths of the rows of one problem's group, a list in each."""
        return [self.prompt + self.rounds * self.tokens + (self.rounds - 1) * self.gap] * self.lists

    @property
    def prompts(self) -> list[int]:
        """Lengths of the prompts of all candidates, one row each: the history stands in them."""
        return [self.prompt + i * (self.tokens + self.gap) for i in range(self.rounds)] * self.lists

    @property
    def steps(self) -> int:
        """Tokens that can only be decoded one after another: the critical path."""
        return self.rounds * self.tokens


def stages_of_arm(arm: str, group_size: int, prompt: int, sketch: int, solution: int, gap: int = 1) -> list[Stage]:
    """What an arm draws per problem; of sketches and solutions all have these lengths. Raises ValueError: there is no such arm."""
    if min(group_size, prompt, sketch, solution) < 1:
        raise ValueError(f"a group, a prompt, a sketch and a solution hold at least 1, not {group_size}, {prompt}, {sketch}, {solution}")
    side_by_side = Stage(group_size, 1, prompt, solution, common=prompt)
    expansions = replace(side_by_side, prompt=prompt + sketch + gap)  # a sketch stands in its list's cache, after others
    alone = replace(expansions, common=prompt + sketch - 1)  # in its own row's, but for the last token, which was only drawn
    arms = {
        "parallel": [side_by_side],
        "sequential": [Stage(1, group_size, prompt, solution, gap)],
        "iid_sketches": [Stage(group_size, 1, prompt, sketch, common=prompt), alone],
        "sesa": [Stage(1, group_size, prompt, sketch, gap), expansions],
    }
    if arm not in arms:
        raise ValueError(f"no arm {arm!r} has a plan: take one of {', '.join(arms)}")
    return arms[arm]


def unpacked(stages: list[Stage]) -> list[int]:
    """Lengths of the rows of a group as TRL pads them: every one as long as the longest prompt and the longest candidate."""
    longest = max(max(s.prompts) for s in stages) + max(s.tokens for s in stages)
    return [longest for s in stages for _ in s.prompts]


def forward_flops(shape: Shape, tokens: int, before: int = 0) -> float:
    """Of one row's next `tokens` tokens, with the cache of the `before` tokens that stand before them. Token t attends to t + 1."""
    pairs = tokens * before + tokens * (tokens + 1) / 2
    return 2 * (shape.linear + shape.adapter) * tokens + 4 * shape.layers * shape.heads * shape.head_size * pairs


def training_flops(shape: Shape, rows: list[int], checkpointing: bool) -> float:
    """Of one update from rows of these lengths: forward, twice as much backward (the products for gradients of inputs and of weights;
    frozen weights have none), and forward again with checkpointing."""
    forward = sum(forward_flops(shape, n) for n in rows)
    frozen = shape.parameters - shape.trained if shape.adapter else 0
    return (3 + checkpointing) * forward - (2 * shape.linear * sum(rows) if frozen else 0)


def sampling_flops(shape: Shape, stages: list[Stage]) -> float:
    """Of one group. The cache of a list is kept, so each of its tokens is computed once, prompts too; the output matrix
    only gives what is drawn from."""
    return sum(forward_flops(shape, n) - output_flops(shape, n - s.steps) for s in stages for n in s.packed)


def output_flops(shape: Shape, tokens: int) -> int:
    """Of the output matrix, for so many tokens: what sampling spares where nothing is drawn, as within a prompt."""
    return 2 * shape.vocabulary * shape.hidden * tokens


def kv_bytes(shape: Shape, tokens: int) -> int:
    """Of a cache of so many tokens in bfloat16: a key and a value per layer and head."""
    return 2 * shape.layers * shape.kv_heads * shape.head_size * HALF * tokens


# --------------------------------------------------------------------------------------------------- seconds of sampling


class Call(NamedTuple):
    """Forward calls of one kind: `times` of them one after another, each of `rows` rows with `tokens` new tokens after `before` in the
    cache (of several calls the mean: all that is counted here is linear in it)."""

    stage: int
    kind: str  # "prefill": a prompt, or what was added to it; "decode": token by token
    rows: int
    tokens: int
    before: float
    times: int = 1


def calls_of(stages: Sequence[Stage], problems: int = 1, cached: bool = True, replicas: int = 1) -> list[Call]:
    """The forward calls of one replica that draw a group for each problem, all groups side by side, as `sesa.engines.local` makes them.

    Args:
        cached: the key-value cache of a list is kept from draw to draw, and what lists have in common is computed once (prefix caching).
            Without it every draw computes its whole prompt anew, history and all.
        replicas: over which the rows are dealt; the fullest one is meant.
    """
    calls = []
    for i, s in enumerate(stages, 1):
        rows = ceil(problems * s.lists / replicas)
        for r in range(s.rounds):
            prompt = s.prompt + r * (s.tokens + s.gap)
            # The last token of a candidate was drawn, but not computed yet; and every row needs a token of its own for its logits.
            known = 0 if not cached else prompt - s.gap - 1 if r else min(s.common, prompt - 1) if s.lists > 1 or i > 1 else 0
            if known and not r and i == 1:
                calls.append(Call(i, "prefill", ceil(problems / replicas), known, 0))
            calls.append(Call(i, "prefill", rows, prompt - known, known))
            if s.tokens > 1:  # the first comes from the prompt's logits
                calls.append(Call(i, "decode", rows, 1, prompt + (s.tokens - 2) / 2, s.tokens - 1))
    return calls


@dataclass(frozen=True)
class Machine:
    """What one GPU reaches, and how many hold the model together (tensor parallelism: weights and cache are split over them)."""

    flops: float  # per second
    bandwidth: float  # of its memory, bytes per second
    overhead: float = 0.0  # seconds of a forward call whatever its size: launching kernels
    row: float = 0.0  # seconds of every row in a call: drawing its token
    start: float = 0.0  # seconds that a prefill costs beside: reading the prompts, writing the texts
    gpus: int = 1
    number: int = HALF  # bytes of a weight and of a number in the cache
    # Between GPUs, our choice for NVLink: a layer sums its partial results twice (Shoeybi et al. 2019, arXiv 1909.08053, section 3).
    reduce: float = 10e-6  # seconds of such a sum, however small
    link: float = 270e9  # bytes per second each way


def call_flops(shape: Shape, call: Call) -> float:
    """Each row's last token alone goes through the output matrix."""
    row = forward_flops(shape, call.tokens, call.before) - output_flops(shape, call.tokens - 1)
    return call.times * call.rows * row


def call_bytes(shape: Shape, call: Call, number: int = HALF, gpus: int = 1) -> float:
    """What each of so many GPUs reads from memory: for every call its share of all weights, and of the cache of every row. More GPUs than
    key-value heads: several hold the same one."""
    cache = call.rows * kv_bytes(shape, 1) * number / HALF * call.before
    return call.times * (number * shape.parameters / gpus + cache / min(gpus, shape.kv_heads))


def call_seconds(shape: Shape, call: Call, machine: Machine) -> float:
    """The larger of arithmetic and memory traffic, and to that overhead and communication."""
    n = machine.gpus
    seconds = max(call_bytes(shape, call, machine.number, n) / machine.bandwidth, call_flops(shape, call) / machine.flops / n)
    if n > 1:
        moved = 2 * (n - 1) / n * machine.number * call.rows * call.tokens * shape.hidden
        seconds += call.times * 2 * shape.layers * (machine.reduce + moved / machine.link)
    return seconds + call.times * (machine.overhead + call.rows * machine.row + (call.kind == "prefill") * machine.start)


def sampling_seconds(shape: Shape, calls: Iterable[Call], machine: Machine) -> dict[tuple[int, str], float]:
    """Seconds of `calls_of`, by (stage, "prefill" or "decode"). One waits for the other, so the whole is their sum."""
    seconds: dict[tuple[int, str], float] = {}
    for call in calls:
        seconds[call.stage, call.kind] = seconds.get((call.stage, call.kind), 0.0) + call_seconds(shape, call, machine)
    return seconds


def decode_seconds(shape: Shape, rows: float, context: float, flops: float, bandwidth: float, gpus: int = 1) -> float:
    """Of one token in each of `rows` rows on `gpus` GPUs, over which weights and cache are split. flops and bandwidth: of one GPU, what
    it reaches of FLOPs and bytes per second. (Without what calls cost beside: `call_seconds`.)"""
    return call_seconds(shape, Call(1, "decode", rows, 1, context), Machine(flops, bandwidth)) / gpus


def fitted(shape: Shape, runs: Sequence[Sequence[Call]], seconds: Sequence[float], number: int = HALF) -> Machine:
    """The machine (FLOPs and bytes per second, and what calls, rows and prefills cost beside) that explains best how long each run of calls
    took: least squares of logarithms, over the constants' logarithms, from the most that was seen of each per second."""

    def misses(constants: np.ndarray) -> list[float]:
        machine = Machine(*np.exp(constants), number=number)
        return [log(sum(call_seconds(shape, c, machine) for c in run)) - log(s) for run, s in zip(runs, seconds, strict=True)]

    units = (
        lambda c: call_flops(shape, c), lambda c: call_bytes(shape, c, number), lambda c: c.times, lambda c: c.times * c.rows,
        lambda c: c.kind == "prefill",
    )  # fmt: skip
    most = [max(sum(map(unit, run)) / s for run, s in zip(runs, seconds, strict=True)) for unit in units]
    start = np.log([*most[:2], *(1 / (3 * max(rate, 1e-9)) for rate in most[2:])])
    return Machine(*np.exp(least_squares(misses, start).x).tolist(), number=number)


# ------------------------------------------------------------------------------------------------------- memory of training


def state_bytes(shape: Shape, gpus: int, sharding: str) -> dict[str, float]:
    """Per GPU, of weights, gradients and AdamW. Trained by DeepSpeed's "zero3": bfloat16 weights and gradients, and for AdamW the weights
    and two moments in float32, 2 + 2 + 12. "fsdp2", or "none" (data parallelism, all on every GPU): all of it in float32, 4 + 4 + 8."""
    weight, gradient, optimizer = (HALF, HALF, 12) if sharding == "zero3" else (4, 4, 8)
    share = 1 if sharding == "none" else gpus
    held = shape.parameters + shape.adapter
    parts = {"weights": weight * held, "gradients": gradient * shape.trained, "optimizer": optimizer * shape.trained}
    return {name: n / share for name, n in parts.items()}


def layer_parameters(shape: Shape) -> int:
    """Weights of one decoder layer's products."""
    return (shape.linear - shape.vocabulary * shape.hidden) // shape.layers


def gathered_bytes(shape: Shape) -> int:
    """Of what ZeRO-3 or FSDP2 holds whole while it computes: bfloat16 weights and gradients of two layers (one is fetched ahead), of the
    input embedding and of the output's.  (Our bound: both free a layer after use.)"""
    return 2 * HALF * (2 * layer_parameters(shape) + 2 * shape.vocabulary * shape.hidden)


def activation_bytes(shape: Shape, tokens: int, checkpointing: bool) -> float:
    """Of one forward pass over `tokens` tokens in bfloat16, with attention that keeps no scores and logits that are computed in tiles, as
    TRL does. A layer keeps: of each of its two norms twice the input in float32 and twice the output; queries, keys and values, and twice
    the answer of attention; gate, up, gate's activation, their product. With checkpointing: every layer's input, in float32 under
    autocast, and all of one layer."""
    attention = (3 * shape.heads + 2 * shape.kv_heads) * shape.head_size
    layer = 2 * (4 + 4 + HALF + HALF) * shape.hidden + HALF * (attention + 4 * shape.intermediate)
    return tokens * (shape.layers * 4 * shape.hidden + layer if checkpointing else shape.layers * layer)


if __name__ == "__main__":
    from sesa.forecast import main

    sys.exit(main())
