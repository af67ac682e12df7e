"""The engine for a model in this process: any transformers causal LM, batched, with the key-value cache kept between calls.

This file makes sequential sampling cheap. A growing list is one sequence: each prompt of the next call is the text of the last
one, what was written, and a separator. So the cache of the last call is kept, and of every prompt that goes on from it only the new
tokens are computed: one cache for a whole group. A tree of actions branches: there a prompt goes on from the kept sequence that it has
most in common with, cut back to where they part. And prompts with a common beginning (`share`) have that computed once.

Text is matched, and only what was added to it is encoded (`sesa.engines.text`): in a list, tokens that were sampled are never tokenized
again. In a tree they are where a branch has lost its row: with a tokenizer that reads a text in one way only (the tiny LM's) that changes
nothing.

A completion ends with the token that makes its stop string complete. If that token holds more text, its text is cut, and the row goes on
from the token before, with what the next prompt says; so it does after an end of the sequence, which is no text.

A sliding window limits the context where every layer has one: there a list that fills it starts anew, and a warning says so. Where
some layers see all (Gemma 2 and later) it does not.
"""

from collections.abc import Sequence
from os.path import commonprefix

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from sesa.engines import Completion
from sesa.engines.rows import Rows, layout
from sesa.engines.text import Pieces
from sesa.packing import autocast, takes


class LocalEngine:
    """`generate` over a model in this process; see `sesa.engines.Engine`.

    max_batch: rows computed at once; lower it when memory runs out. ValueError: see `sesa.engines.rows.layout`.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_batch: int = 512):
        self.model, self.tokenizer, self.max_batch = model, tokenizer, max_batch
        self._kept: list[Rows] = []  # of the last call, a chunk each
        self._weights = None
        self._pieces, self._keeps = Pieces(tokenizer), takes(model, "logits_to_keep")
        self._gapless, self._context = layout(model)
        ends = getattr(model.generation_config, "eos_token_id", None)
        self._ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}  # the end of a sequence, or of a turn
        self._stops: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = {}

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        stop: str,
        max_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        share: Sequence[object] | None = None,
    ) -> list[Completion]:
        """See `sesa.engines.Engine.generate`. Without `share`, equal prompts share all. A completion ends where the context does.

        Raises:
            ValueError: a temperature below 0, a top_p outside (0, 1], lengths that differ, a `stop` that the tokenizer cannot write, a
                prompt that it changes, or that fills the context.
        """
        share = list(prompts if share is None else share)
        if not len(prompts) == len(seeds) == len(share):
            raise ValueError(f"{len(prompts)} prompts, {len(seeds)} seeds and {len(share)} labels to share by: give one of each per prompt")
        if not temperature >= 0 or not 0 < top_p <= 1:
            raise ValueError(f"temperature must be >= 0 and top_p in (0, 1], not {temperature} and {top_p}")
        weights = self._fingerprint()
        if weights != self._weights:
            self._kept, self._weights = [], weights
        completions: list[Completion | None] = [None] * len(prompts)
        self._kept, kept = [], self._kept
        training = self.model.training
        if training:
            self.model.eval()
        try:
            chunks = self._chunks(kept, prompts, share)
            kept = [*kept[: len(chunks)], *[None] * (len(chunks) - len(kept))]
            for i, part in enumerate(chunks):
                theirs, labels = [prompts[r] for r in part], [share[r] for r in part]
                rows = self._continue(kept[i], theirs, labels) if part else None
                kept[i] = None  # what is not needed any more makes room
                if not part:
                    continue
                rows = rows or self._start(theirs, labels)
                longest = max(map(len, rows.ids))
                if longest >= self._context:
                    raise ValueError(f"a prompt of {longest} tokens fills the model's context of {self._context}: take a shorter one, or another model")
                logits = self._feed(rows)
                drawn = self._decode(rows, logits, [seeds[r] for r in part], stop, max_tokens, temperature, top_p)
                for r, completion in zip(part, drawn, strict=True):
                    completions[r] = completion
                self._kept.append(rows)
        finally:
            if training:
                self.model.train()
        return completions

    def fits(self, prompt: str, max_tokens: int) -> bool:
        """Whether the model's context holds this prompt and `max_tokens` more."""
        room = self._context - max_tokens
        return len(prompt.encode()) <= room or len(self.encode(prompt)) <= room  # a token is at least a byte

    def forget(self) -> None:
        """Drops the kept caches: what is computed next does not depend, not even by rounding, on what was computed before."""
        self._kept = []

    # -------------------------------------------------------------------------------------------------- before decoding

    def _chunks(self, kept: list[Rows], prompts: Sequence[str], labels: Sequence[object]) -> list[list[int]]:
        """The prompts in chunks of at most max_batch rows: as they stand; or, where trajectories have ended or branched and others moved
        up, each with the kept chunk that it goes on from. Chunks that have become small are not merged."""
        as_they_stand = [list(range(i, min(i + self.max_batch, len(prompts)))) for i in range(0, len(prompts), self.max_batch)]
        texts = [rows.texts[place] if place < len(rows.texts) else None for rows in kept for place in range(self.max_batch)]
        if len(kept) < 2 or all(text is not None and prompt.startswith(text) for prompt, text in zip(prompts, texts, strict=False)):
            return as_they_stand
        of_label: dict[object, list[tuple[int, int]]] = {}
        for chunk, rows in enumerate(kept):
            for r, label in enumerate(rows.labels):
                of_label.setdefault(label, []).append((chunk, r))
        chunks: list[list[int]] = [[] for _ in kept]
        for i, (prompt, label) in enumerate(zip(prompts, labels, strict=True)):
            # Of several chunks that serve as well, the one with fewer rows.
            reach = [(kept[chunk].common(r, prompt)[0], -len(chunks[chunk]), chunk) for chunk, r in of_label.get(label, [])]
            characters, _, chunk = max(reach, default=(0, 0, 0))
            if not characters:
                return as_they_stand
            chunks[chunk].append(i)
        return chunks if max(map(len, chunks)) <= self.max_batch else as_they_stand

    def _continue(self, rows: Rows | None, prompts: Sequence[str], labels: Sequence[object]) -> Rows | None:
        """The kept rows with what the prompts add to them, each cut back to where the two agree; None if a prompt goes on from none."""
        if rows is None:
            return None
        of_label: dict[object, list[int]] = {}
        for r, label in enumerate(rows.labels):
            of_label.setdefault(label, []).append(r)
        cuts = []  # of every prompt: characters and tokens to keep, and the row
        for place, (prompt, label) in enumerate(zip(prompts, labels, strict=True)):
            whole = place < len(rows.texts) and prompt.startswith(rows.texts[place])
            cuts.append(max((rows.common(r, prompt) for r in ([place] if whole else of_label.get(label, []))), default=(0, 0, 0)))
            if not cuts[-1][0]:
                return None
        if [r for *_, r in cuts] != list(range(len(rows.texts))):
            rows = rows.take([r for *_, r in cuts])
        fed = []
        for r, (prompt, (characters, tokens, _)) in enumerate(zip(prompts, cuts, strict=True)):
            rows.ids[r] = rows.ids[r][:tokens] + self.encode(prompt[characters:], after=True)
            rows.marks[r] = [mark for mark in rows.marks[r] if mark[0] <= characters] + [(len(prompt), len(rows.ids[r]))]
            rows.texts[r] = prompt
            fed.append(min(rows.fed[r], tokens, len(rows.ids[r]) - 1))  # each must have a token to feed
        if fed != rows.fed:
            rows.cut(fed, contiguous=False)
        return rows

    def _start(self, prompts: Sequence[str], share: Sequence[object]) -> Rows:
        """New rows. What all prompts of a label begin with is computed once, and copied."""
        unique = {text: self.encode(text) for text in dict.fromkeys(prompts)}
        ids = [unique[p] for p in prompts]
        if not all(ids):
            raise ValueError("an empty prompt: there is no token to start from")
        common: dict[object, list[int]] = {}
        for row, label in zip(ids, share, strict=True):
            common[label] = commonprefix([common.get(label, row), row])
        labels = list(common)
        for label, row in zip(share, ids, strict=True):  # each row must have a token left to feed, for its logits
            common[label] = common[label][: len(row) - 1]
        ends = [[] for _ in labels]
        rows = Rows([""] * len(labels), labels, ends, [common[x] for x in labels], [0] * len(labels), self._empty(len(labels)), DynamicCache())
        if len(labels) < len(prompts) and any(common.values()):
            self._feed(rows)
            index = {label: i for i, label in enumerate(labels)}
            rows = rows.take([index[label] for label in share])
        else:
            rows = Rows([], [], [], [], [0] * len(prompts), self._empty(len(prompts)), DynamicCache())
        rows.texts, rows.labels, rows.ids = list(prompts), list(share), [list(row) for row in ids]
        rows.marks = [[(len(text), len(row))] for text, row in zip(prompts, ids, strict=True)]
        return rows

    def _fingerprint(self) -> list[float]:
        """Changes when an optimiser steps. Version counters would not do: fused optimisers and `.data` leave them alone."""
        some = [p.detach().flatten()[:: max(1, p.numel() // 64)].double().sum() for p in self.model.parameters()]
        return torch.stack(some).tolist()

    def _empty(self, rows: int) -> torch.Tensor:
        return torch.zeros(rows, 0, dtype=torch.long, device=self.model.device)

    def encode(self, text: str, after: bool = False) -> list[int]:
        """The tokens of a prompt; with `after`, of text that continues another. ValueError: see `sesa.engines.text`."""
        return self._pieces.encode(text, after)

    # --------------------------------------------------------------------------------------------------------- decoding

    def _feed(self, rows: Rows) -> torch.Tensor:
        """Computes all tokens not in the cache yet; returns the logits after each row's last token, (rows, vocabulary), float32."""
        width = max(len(ids) - fed for ids, fed in zip(rows.ids, rows.fed, strict=True))
        if self._gapless:
            # All rows feed as many tokens, some of them again, and shorter ones are padded on the left.
            rows.cut([max(0, min(fed, len(ids) - width)) for ids, fed in zip(rows.ids, rows.fed, strict=True)], contiguous=True)
        new = [ids[fed:] for ids, fed in zip(rows.ids, rows.fed, strict=True)]
        tokens = torch.zeros(len(new), width, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for r, row in enumerate(new):
            place = slice(width - len(row), width) if self._gapless else slice(len(row))
            tokens[r, place] = torch.tensor(row, dtype=torch.long)
            mask[r, place] = 1
        rows.fed = [len(ids) for ids in rows.ids]
        last = torch.full((len(new),), width - 1) if self._gapless else mask.sum(1).sub(1).clamp(min=0)
        return self._forward(rows, *(x.to(rows.mask.device) for x in (tokens, mask, last)))

    def _forward(self, rows: Rows, tokens: torch.Tensor, mask: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """(rows, vocabulary), float32: the logits at the places `last`, (rows,), of new tokens, (rows, new), computed where `mask` is 1."""
        before = rows.mask.sum(1, keepdim=True)
        rows.mask = torch.cat([rows.mask, mask], 1)
        keep = {"logits_to_keep": last[:, None]} if self._keeps else {}  # of a long prompt, all would be a large array
        with autocast(self.model):
            logits = self.model(
                input_ids=tokens,
                attention_mask=rows.mask,
                position_ids=(before + mask.cumsum(1) - 1).clamp(min=0),
                past_key_values=rows.cache,
                use_cache=True,
                **keep,
            ).logits
        return (logits[:, 0] if keep else logits[torch.arange(len(last), device=last.device), last]).float()

    def _decode(self, rows, logits, seeds, stop, max_tokens, temperature, top_p) -> list[Completion]:
        n, device = len(rows.ids), logits.device
        # One stream of uniforms per row: what a row draws does not depend on the rows beside it.
        uniform = np.stack([np.random.Generator(np.random.Philox(key=seed)).random(max_tokens) for seed in seeds])
        uniform = torch.from_numpy(uniform).to(device)
        stops, completing = self._stop_tokens(stop)
        first = torch.zeros(n, dtype=torch.long, device=device)
        room = self._context - torch.tensor([len(ids) for ids in rows.ids], device=device)
        sampled, logprobs, alive = [], [], torch.ones(n, dtype=torch.bool, device=device)
        stopped, lengths = torch.zeros_like(alive), torch.zeros(n, dtype=torch.long, device=device)
        for t in range(max_tokens):
            token, logprob = sample(self.allowed(logits, sampled, stop), uniform[:, t], temperature, top_p)
            sampled.append(token)
            logprobs.append(logprob)
            lengths += alive
            stopped |= alive & stops[token]
            if completing is not None:
                for r in (alive & ~stopped & completing[token]).nonzero()[:, 0].tolist():
                    stopped[r] = stop in self._pieces.decode(torch.stack(sampled)[:, r].tolist())
            alive = alive & ~stopped & (lengths < room)
            if t + 1 == max_tokens or not alive.any():
                break
            logits = self._forward(rows, token[:, None], alive[:, None].long(), first)
        sampled, logprobs = torch.stack(sampled, 1).tolist(), torch.stack(logprobs, 1).tolist()
        completions = []
        for r, (length, ended) in enumerate(zip(lengths.tolist(), stopped.tolist(), strict=True)):
            ids = sampled[r][:length]
            # The text is all that was written but the end, special tokens too: what the next prompt shows is what the model saw.
            body = ids[:-1] if ids[-1] in self._ends else ids
            written = self._pieces.decode(body)
            if ended and len(body) == length and stop not in written:  # some decode it otherwise beside half a character
                written = self._pieces.decode(body[:-1]) + self._pieces.decode(body[-1:])
            text, _, tail = written.partition(stop)
            if tail:  # which no prompt will show
                body = ids[:-1]
                written = self._pieces.decode(body)
            completions.append(
                Completion(
                    text=text,
                    stopped=ended,
                    prompt_ids=tuple(rows.ids[r]),
                    ids=tuple(ids),
                    logprobs=tuple(logprobs[r][:length]),
                )
            )
            # The last token of a row is in its ids, not in the cache: it is computed when the row goes on.
            rows.fed[r] = len(rows.ids[r]) + length - 1
            rows.ids[r] = rows.ids[r] + body
            rows.texts[r] += written
            rows.marks[r].append((len(rows.texts[r]), len(rows.ids[r])))
        return completions

    def allowed(self, logits: torch.Tensor, sampled: list[torch.Tensor], stop: str) -> torch.Tensor:
        """The logits, (rows, vocabulary), at -inf for what may not follow the tokens sampled so far, (rows,) each; here all may."""
        return logits

    def _stop_tokens(self, stop: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Two of (vocabulary,) bool: the tokens that end a completion, those that contain `stop` and the end of the sequence; and those
        that may end it where other tokens have begun `stop`, None if there are none."""
        if stop not in self._stops:
            size = self.model.get_output_embeddings().weight.shape[0]
            texts = self._pieces.tokens(size)
            rests = tuple(stop[k:] for k in range(1, len(stop)))
            ends, completing = torch.zeros(2, size, dtype=torch.bool)
            ends[: len(texts)] = torch.tensor([stop in text for text in texts])
            # A character that is not ASCII may be several tokens, each of which decodes to U+FFFD.
            broken = [not stop.isascii() and "\ufffd" in text for text in texts]
            completing[: len(texts)] = torch.tensor([text.startswith(rests) for text in texts]) | torch.tensor(broken)
            completing &= ~ends
            if not ends.any() and self._pieces.decode(self._pieces.encode(stop, after=True)) != stop:
                raise ValueError(f"this tokenizer cannot write the stop string {stop!r}: choose another")
            ends[list(self._ends)] = True
            parts = completing.to(self.model.device) if completing.any() else None
            self._stops[stop] = ends.to(self.model.device), parts
        return self._stops[stop]


def sample(logits: torch.Tensor, uniform: torch.Tensor, temperature: float, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """One token per row by inverting the distribution function.

    Args:
        logits: (rows, vocabulary), float32.
        uniform: (rows,) in [0, 1).
        temperature: divides the logits; 0 takes the most likely token.
        top_p: only the fewest most likely tokens with at least this probability together can be drawn; 1 is off.

    Returns:
        tokens (rows,) and their natural log-probabilities (rows,) at this temperature, before top-p.
    """
    logprobs = torch.log_softmax(logits / (temperature or 1.0), dim=-1)
    if temperature == 0:
        token = logprobs.argmax(-1)
    else:
        p = logprobs.exp().double()
        if top_p < 1:
            ordered, index = p.sort(dim=-1, descending=True)
            ordered[ordered.cumsum(-1) - ordered >= top_p] = 0  # the mass before a token: the one that crosses top_p stays
            p = torch.zeros_like(p).scatter(-1, index, ordered)
        mass = p.cumsum(-1)
        token = torch.searchsorted(mass, (uniform * mass[:, -1])[:, None], right=True)[:, 0]
        token = token.clamp(max=p.shape[-1] - 1)  # against rounding at the upper end
    return token, logprobs.gather(-1, token[:, None])[:, 0]
