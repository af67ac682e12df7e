"""Text to tokens and back, piece by piece, so that a model reads exactly the text that a rollout holds.

A growing list is encoded where it grows: its sampled tokens stay, and only new text is encoded. Tokenizers of Llama 2's kind put a space
before all they are given, which here would stand at every seam, and drop one where they decode. `Pieces` does neither inside a text.
"""

import copy
import json
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase


class Pieces:
    """The tokenizer of a model, for the beginning of a text and for what continues it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._inside = None if backend is None else _without_added_spaces(backend)
        unknown = getattr(getattr(backend, "model", None), "unk_token", None)
        self._unknown = {tokenizer.unk_token_id, tokenizer.convert_tokens_to_ids(unknown) if unknown else None} - {None}
        self._encode = lru_cache(512)(self._encode)  # what a task writes between answers is often the same

    def encode(self, text: str, after: bool = False) -> list[int]:
        """The tokens of a text; with `after`, of a text that continues another. Unknown words become the unknown token.

        Raises:
            ValueError: the tokenizer changes the text, so a model would read something else.
        """
        return list(self._encode(text, after)) if text else []

    def _encode(self, text: str, after: bool) -> tuple[int, ...]:
        ways = [] if after else [(self._whole, self._whole_text)]
        for encode, decode in [*ways, (self._part, self.decode)]:
            ids = encode(text)
            if not self._unknown.isdisjoint(ids) or _same(read := decode(ids), text):
                return tuple(ids)
        raise ValueError(f"this tokenizer changes what it reads, {text[-200:]!r} into {read[-200:]!r}: take another model")

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens that stand inside a text, special tokens too."""
        if self._inside is None:
            return self._whole_text(ids)
        return self._inside.decode(list(ids), skip_special_tokens=False)

    def tokens(self, size: int) -> list[str]:
        """The text of each of the first `size` tokens, inside a text; fewer if the tokenizer has fewer."""
        each = [[i] for i in range(min(size, len(self.tokenizer)))]
        if self._inside is None:
            return self.tokenizer.batch_decode(each, clean_up_tokenization_spaces=False)
        return self._inside.decode_batch(each, skip_special_tokens=False)

    def _whole(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _whole_text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)

    def _part(self, text: str) -> list[int]:
        if self._inside is None:
            return self._whole(text)
        return self._inside.encode(text, add_special_tokens=False).ids


def _same(a: str, b: str) -> bool:
    """Some tokenizers, Qwen's, write accents in one way only."""
    return a == b or unicodedata.normalize("NFC", a) == unicodedata.normalize("NFC", b)


def _without_added_spaces(tokenizer: Tokenizer) -> Tokenizer | None:
    """The same tokenizer, but it adds no space before what it encodes, and drops none from what it decodes; None: it does neither."""
    changed = {}
    for name, kind in (("normalizer", normalizers), ("pre_tokenizer", pre_tokenizers), ("decoder", decoders)):
        theirs = getattr(tokenizer, name)
        if theirs is not None and (ours := _plain(state := json.loads(theirs.__getstate__()))) != state:
            part = kind.Sequence([])
            part.__setstate__(json.dumps(ours).encode())
            changed[name] = part
    if not changed:
        return None
    inside = copy.deepcopy(tokenizer)
    inside.no_truncation()
    inside.no_padding()
    for name, part in changed.items():
        setattr(inside, name, part)
    return inside


def _plain(state: Any) -> Any:
    """The state of a normalizer, pre-tokenizer or decoder (JSON values) without what it does to the beginning of a text."""
    if isinstance(state, list):
        return [_plain(part) for part in state]
    if not isinstance(state, dict):
        return state
    if state.get("type") == "Prepend":
        return {"type": "Sequence", "normalizers": []}
    if state.get("type") == "Strip" and "start" in state:
        return state | {"start": 0, "stop": 0}
    changes = {"prepend_scheme": "never", "add_prefix_space": False}
    return {key: changes[key] if key in changes else _plain(value) for key, value in state.items()}
