"""What `sesa.engines.local` keeps between calls: sequences that grow side by side, and their key-value cache; and how a model wants them laid."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache, PreTrainedModel

from sesa.packing import takes


@dataclass
class Rows:
    """Sequences that grow side by side in one cache. `ids[r][: fed[r]]` is in the cache, in the columns where `mask[r]` is 1."""

    texts: list[str]
    labels: list[object]  # what `share` said of each
    marks: list[list[tuple[int, int]]]  # (characters, tokens): where a prompt or an answer ended; a row can be cut there
    ids: list[list[int]]
    fed: list[int]
    mask: torch.Tensor  # (rows, columns), 1: a token of this row, 0: a gap (rows advance together, so shorter ones have gaps)
    cache: DynamicCache

    def take(self, rows: Sequence[int]) -> "Rows":
        """The given rows, which may repeat. They take the cache with them: these rows here must not be used afterwards."""
        rows = list(rows)
        self.cache.batch_select_indices(torch.tensor(rows, device=self.mask.device))
        return Rows(
            [self.texts[r] for r in rows],
            [self.labels[r] for r in rows],
            [list(self.marks[r]) for r in rows],
            [list(self.ids[r]) for r in rows],
            [self.fed[r] for r in rows],
            self.mask[rows],
            self.cache,
        )

    def cut(self, fed: list[int], contiguous: bool) -> None:
        """Drops what is behind the first `fed[r]` tokens of each row. contiguous: all gaps then stand before the tokens of a row."""
        self.fed = fed
        self.mask = self.mask * (self.mask.cumsum(1) <= torch.tensor(fed, device=self.mask.device)[:, None])
        if contiguous:
            columns = self.mask.argsort(dim=1, stable=True)[:, self.mask.shape[1] - max(fed) :]
            self.mask = self.mask.gather(1, columns)
            for layer in self.cache.layers:
                index = columns[:, None, :, None].expand(-1, layer.keys.shape[1], -1, -1)
                layer.keys = layer.keys.gather(2, index.expand(-1, -1, -1, layer.keys.shape[3]))
                layer.values = layer.values.gather(2, index.expand(-1, -1, -1, layer.values.shape[3]))
        else:
            used = self.mask.any(0)
            self.mask = self.mask[:, used]
            for layer in self.cache.layers:
                layer.keys, layer.values = layer.keys[:, :, used], layer.values[:, :, used]

    def common(self, row: int, prompt: str) -> tuple[int, int, int]:
        """The characters and tokens, up to a mark, with which both this row and the prompt begin; and the row."""
        text = self.texts[row]
        return next(((*mark, row) for mark in reversed(self.marks[row]) if prompt.startswith(text[: mark[0]])), (0, 0, row))


def layout(model: PreTrainedModel) -> tuple[bool, int]:
    """(whether no gap may stand between the tokens of a row, the most tokens that a row may have).

    Layers that see a window or a chunk only count the columns of the cache, gaps among them; so do models that are
    not told the places of tokens (MPT).

    Raises:
        ValueError: some layers keep a state instead of keys and values (Mamba, LFM2, Qwen3-Next), which cannot be
            cut back.
    """
    config, name = model.config.get_text_config(), type(model).__name__
    layers = getattr(config, "layer_types", None) or ["sliding_attention"]
    if getattr(model, "_is_stateful", False) or {"conv", "linear_attention", "hybrid", "hybrid_sliding"} & {*layers}:
        raise ValueError(f"{name} has layers with a state, which cannot be cut back: take a model with attention in all")
    slides = ["sliding" in layer for layer in layers]
    used = any(slides) and getattr(config, "use_sliding_window", True)
    window = getattr(config, "sliding_window", None) if used else None
    context = getattr(config, "max_position_embeddings", None) or 2**31
    parts = (window, getattr(config, "attention_chunk_size", None), getattr(config, "window_size", None))  # Llama 4, GPT-Neo
    gapless = any(parts) or not takes(model, "position_ids")
    if window and window < context and all(slides):
        warnings.warn(
            f"every layer of this {name} sees {window} tokens (its sliding window), so that is its context here, not "
            f"{context}: lists that fill it start anew",
            stacklevel=3,
        )
        context = window
    return gapless, context
