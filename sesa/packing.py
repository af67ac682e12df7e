"""The packed group: all of a sequential group's history-conditioned log-probabilities from one forward pass.

Where the history is a growing list, prompt i+1 is prompt i, what was written after it, and nothing else that was computed before. The
whole list is then one sequence, in which every candidate stands in its own context already. G candidates cost one row of the list's
length, not G rows of growing length.

A candidate may end with a token that the next prompt does not show: the end of a sequence, where the task's stop string stands in the
list, or a token that holds the stop string and some text after it. Its probability is computed where it was written; the row goes on
with what the prompt shows.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from sesa.engines import Completion


@dataclass
class Packed:
    """One sequence that holds several completions. `owner[t]` is the index of the completion that wrote the token at place t; -1: a prompt.

    ids: what is read. ends: of a place, the token that was written there, if `ids` has another: the last of a completion.
    """

    ids: list[int] = field(default_factory=list)
    owner: list[int] = field(default_factory=list)
    ends: dict[int, int] = field(default_factory=dict)


def pack(completions: Sequence[Completion]) -> list[Packed]:
    """The fewest sequences that neighbours allow: a completion whose prompt continues the sequence before it, with or without that
    sequence's last token, is appended to it.

    A list in the order drawn becomes one sequence; independent completions become one each, empty ones none.

    Raises:
        ValueError: a completion without tokens, from an engine that does not report them.
    """
    sequences: list[Packed] = []
    for i, c in enumerate(completions):
        if not c.prompt_ids:
            raise ValueError(f"completion {i} has no tokens: this engine does not report them, so there is nothing to pack")
        if not c.ids:
            continue
        last = sequences[-1] if sequences else Packed()
        done = len(last.ids)
        if done and list(c.prompt_ids[: done - 1]) == last.ids[:-1] and len(c.prompt_ids) >= done:
            if c.prompt_ids[done - 1] != last.ids[-1]:
                last.ends[done - 1], last.ids[-1] = last.ids[-1], c.prompt_ids[done - 1]
        else:
            sequences.append(last := Packed())
            done = 0
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


def logits_at(model: PreTrainedModel, ids: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """(n, vocabulary), float32: the logits after the n tokens of `ids` where `where` is True, row after row. Both: (rows, width).

    No others are computed where the model can leave them out, as all causal LMs of transformers can: a vocabulary is large.
    """
    with autocast(model):
        if takes(model, "logits_to_keep"):
            return model(input_ids=ids, use_cache=False, logits_to_keep=where).logits.float()
        return model(input_ids=ids, use_cache=False).logits[where].float()


def takes(model: PreTrainedModel, argument: str) -> bool:
    """Whether the model's forward takes an argument of this name."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model  # inside a LoRA adapter
    return argument in inspect.signature(type(model).forward).parameters


def packed_logprobs(model: PreTrainedModel, sequences: Sequence[Packed], temperature: float = 1.0) -> TokenScores:
    """Log-probability of every token of every completion in its context, from one forward pass, with gradient.

    Args:
        temperature: divides the logits, as when sampling; 0 (greedy) counts as 1.
    """
    width = max(len(s.ids) for s in sequences)
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    owner, written = torch.full_like(ids, -1), torch.zeros_like(ids)
    for r, s in enumerate(sequences):
        n = len(s.ids)
        ids[r, :n], owner[r, :n] = torch.tensor(s.ids), torch.tensor(s.owner)
        written[r, :n] = torch.tensor([s.ends.get(t, token) for t, token in enumerate(s.ids)])
    ids, owner, written = ids.to(model.device), owner.to(model.device), written.to(model.device)
    wrote = owner[:, 1:] >= 0
    # Causal attention and padding on the right: no attention mask is needed, and the fast kernel applies.
    distribution = torch.log_softmax(logits_at(model, ids[:, :-1], wrote) / (temperature or 1.0), -1)
    logprobs = distribution.gather(-1, written[:, 1:][wrote][:, None])[:, 0]
    with torch.no_grad():
        entropy = -(distribution.exp() * distribution).sum(-1)
    return TokenScores(logprobs, owner[:, 1:][wrote], entropy)
