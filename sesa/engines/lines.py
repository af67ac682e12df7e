"""An engine that can write nothing but given lines: the model chooses, token by token, among those that go on to one of them.

So a small model's distribution over answers can be studied apart from its trouble with their form.  (Our choice.)
"""

from collections.abc import Iterable

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sesa.engines.local import LocalEngine

Node = dict[int, "Node"]  # token -> what may follow it


class LinesEngine(LocalEngine):
    """A `LocalEngine` whose completions are among `lines`, each ended by `stop`; the only stop string it takes.

    `logprobs` are those of the constrained distribution.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, lines: Iterable[str], stop: str = "\n", max_batch: int = 512):
        super().__init__(model, tokenizer, max_batch)
        self._stop = stop
        self._root: Node = {}
        for line in lines:
            node = self._root
            for token in self.encode(line + stop, after=True):
                node = node.setdefault(token, {})
        if not self._root:
            raise ValueError("no lines: there is nothing to write")

    def allowed(self, logits: torch.Tensor, sampled: list[torch.Tensor], stop: str) -> torch.Tensor:
        if stop != self._stop:
            raise ValueError(f"these lines end with {self._stop!r}, not with {stop!r}")
        at = [self._root] * len(logits)
        for tokens in sampled:
            at = [node.get(token, {}) for node, token in zip(at, tokens.tolist(), strict=True)]
        kept = torch.full_like(logits, -torch.inf)
        for r, node in enumerate(at):
            tokens = list(node) or slice(None)  # a line that has ended: what its row draws is thrown away
            kept[r, tokens] = logits[r, tokens]
        return kept
