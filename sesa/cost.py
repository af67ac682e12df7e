"""What a training step costs, in FLOPs, bytes and seconds: closed forms, before anything is run.

An arm is a few `Stage`s, and all follows from these: what is sampled one after another and what side by side, how long the rows of
training are, packed (`sesa.packing`) or not. A multiplication and an addition are 2 FLOPs; a GB is 1e9 bytes. Counted are matrix products
and attention in decoder layers of one kind (Llama, Qwen2); norms, softmax and rotations are not.

    forward pass      2 per weight and token, and causal attention       Kaplan et al. 2020, arXiv 2001.08361, table 1
    training          3 forward passes; 4 with checkpointing             the same; Chen et al. 2016, arXiv 1604.06174
    model states      16 bytes per trained parameter                     ZeRO: Rajbhandari et al. 2020, arXiv 1910.02054, section 3.1
    activations       the tensors that a layer keeps for backward        after Korthikanti et al. 2022, arXiv 2205.05198, section 4.1
    decoding          reads all weights and the KV cache for each token  Pope et al. 2022, arXiv 2211.05102, section 2
    seconds           the larger of arithmetic and memory traffic        the roofline: Williams et al. 2009
"""

from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class Stage:
    """`lists` lists per problem, side by side; in each `rounds` candidates one after another. In tokens: the prompt before the first
    candidate, a candidate (at most), and what stands between two."""

    lists: int
    rounds: int
    prompt: int
    tokens: int
    gap: int = 0

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
    """Of one group. The cache of a list is kept, so each of its tokens is computed once, prompts too."""
    return sum(forward_flops(shape, n) for s in stages for n in s.packed)


def kv_bytes(shape: Shape, tokens: int) -> int:
    """Of a cache of so many tokens in bfloat16: a key and a value per layer and head."""
    return 2 * shape.layers * shape.kv_heads * shape.head_size * HALF * tokens


def decode_seconds(shape: Shape, rows: float, context: float, flops: float, bandwidth: float, gpus: int = 1) -> float:
    """Of one token in each of `rows` rows on `gpus` GPUs, over which weights and cache are split. flops and bandwidth: of one GPU, what
    it reaches of FLOPs and bytes per second."""
    traffic = HALF * shape.parameters + rows * kv_bytes(shape, 1) * context
    return max(traffic / bandwidth, rows * forward_flops(shape, 1, int(context)) / flops) / gpus


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
