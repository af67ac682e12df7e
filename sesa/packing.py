"""The packed group: all of a sequential group's history-conditioned log-probabilities from one forward pass.

Where the history is a growing list, prompt i+1 is prompt i, what was written after it, and nothing else that was computed before. The
whole list is then one sequence, in which every candidate stands in its own context already. G candidates cost one row of the list's
length, not G rows of growing length.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from sesa.engines import Completion


@dataclass
class Packed:
    """One sequence that holds several completions. `owner[t]` is the index of the completion that wrote `ids[t]`; -1: a prompt."""

    ids: list[int] = field(default_factory=list)
    owner: list[int] = field(default_factory=list)


def pack(completions: Sequence[Completion]) -> list[Packed]:
    """The fewest sequences that neighbours allow: a completion whose prompt goes on from the sequence before it is appended to that.

    A list in the order drawn becomes one sequence; independent completions become one each.

    Raises:
        ValueError: a completion without tokens, from an engine that does not report them.
    """
    sequences: list[Packed] = []
    for i, c in enumerate(completions):
        if not c.ids or not c.prompt_ids:
            raise ValueError(f"completion {i} has no tokens: this engine does not report them, so there is nothing to pack")
        done = len(sequences[-1].ids) if sequences else 0
        if not sequences or list(c.prompt_ids[:done]) != sequences[-1].ids:
            sequences.append(Packed())
            done = 0
        last = sequences[-1]
        last.ids += [*c.prompt_ids[done:], *c.ids]
        last.owner += [-1] * (len(c.prompt_ids) - done) + [i] * len(c.ids)
    return sequences


class TokenScores(NamedTuple):
    """Of every token that a completion wrote, sequence after sequence: three tensors of shape (tokens,)."""

    logprobs: torch.Tensor  # float32, natural, given all before it
    owner: torch.Tensor  # int64, the index of the completion that wrote it
    entropy: torch.Tensor  # float32, nats, of the distribution it was drawn from; without gradient


def autocast(model: PreTrainedModel) -> torch.autocast:
    """A context for forward passes: bfloat16 products on a GPU, nothing on the CPU."""
    return torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda")


def packed_logprobs(model: PreTrainedModel, sequences: Sequence[Packed], temperature: float = 1.0) -> TokenScores:
    """Log-probability of every token of every completion in its context, from one forward pass, with gradient.

    Args:
        temperature: divides the logits, as when sampling; 0 (greedy) counts as 1.
    """
    width = max(len(s.ids) for s in sequences)
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    owner = torch.full_like(ids, -1)
    for r, s in enumerate(sequences):
        n = len(s.ids)
        ids[r, :n], owner[r, :n] = torch.tensor(s.ids), torch.tensor(s.owner)
    ids, owner = ids.to(model.device), owner.to(model.device)
    wrote = owner[:, 1:] >= 0
    # Causal attention and padding on the right: no attention mask is needed, and the fast kernel applies.
    with autocast(model):
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits[wrote].float() / (temperature or 1.0)
    distribution = torch.log_softmax(logits, -1)
    logprobs = distribution.gather(-1, ids[:, 1:][wrote][:, None])[:, 0]
    with torch.no_grad():
        entropy = -(distribution.exp() * distribution).sum(-1)
    return TokenScores(logprobs, owner[:, 1:][wrote], entropy)
