"""The packed group: all of a sequential group's history-conditioned log-probabilities from one forward pass.

Where the history is a growing list, prompt i+1 is prompt i, what was written after it, and nothing else that was computed before. The
whole list is then one sequence, in which every candidate stands in its own context already. G candidates cost one row of the list's
length, not G rows of growing length.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

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


def packed_logprobs(model: PreTrainedModel, sequences: Sequence[Packed], temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of every token of every sequence given all before it, in one forward pass, with gradient.

    Args:
        temperature: divides the logits, as when sampling; 0 (greedy) counts as 1.

    Returns:
        logprobs, float32, and owner, int64, both (sequences, longest - 1): entry [s, t] belongs to token t + 1 of sequence s.
        Padding has owner -1 and log-probability 0.
    """
    width = max(len(s.ids) for s in sequences)
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    owner = torch.full_like(ids, -1)
    mask = torch.zeros_like(ids)
    for r, s in enumerate(sequences):
        n = len(s.ids)
        ids[r, :n], owner[r, :n], mask[r, :n] = torch.tensor(s.ids), torch.tensor(s.owner), 1
    ids, owner, mask = (x.to(model.device) for x in (ids, owner, mask))
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float() / (temperature or 1.0)
    logprobs = torch.log_softmax(logits, -1).gather(-1, ids[:, 1:, None])[..., 0]
    return logprobs * mask[:, 1:], owner[:, 1:]
