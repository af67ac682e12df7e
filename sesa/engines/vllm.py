"""The engine of `sesa.distributed`: the vLLM that TRL holds, in its own processes or beside the training. Not run by us yet.

Written after TRL's source, and tested against a fake with its call.
"""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from sesa.engines import Completion
from sesa.engines.text import Pieces


class VLLMEngine:
    """`sesa.engines.Engine` over `trainer.vllm_generation`.

    TRL has one set of sampling parameters for all prompts of a call: `seeds` have no effect, and two runs differ. Tokens that were sampled
    are not tokenized again, so a list or a trajectory stays one sequence: an engine remembers what it wrote, and serves one set of rollouts.
    """

    def __init__(self, generation: Any, tokenizer: PreTrainedTokenizerBase):
        self.generation, self._pieces = generation, Pieces(tokenizer)
        # vLLM stops at every end that the model's generation config names; whichever that is, it is a special token.
        added = tokenizer.added_tokens_decoder.items()
        self._ends = {*tokenizer.all_special_ids, *(i for i, token in added if token.special)}
        self._read: dict[object, list[tuple[str, list[int]]]] = {}  # by label: texts, and their tokens

    def generate(self, prompts, *, seeds, stop, max_tokens, temperature=1.0, top_p=1.0, share=None) -> list[Completion]:
        """See `sesa.engines.Engine.generate`. Where vLLM returns no token, the completion is empty and counts as stopped."""
        vllm, completions, labels = self.generation, [], [None] * len(prompts) if share is None else share
        vllm.max_completion_length, vllm.temperature, vllm.top_p = max_tokens, temperature, top_p
        vllm.generation_kwargs = {"stop": [stop], "include_stop_str_in_output": True}
        encoded = [self._tokens(prompt, label) for prompt, label in zip(prompts, labels, strict=True)]
        _, drawn, logprobs, _ = vllm.generate(prompts=encoded, images=None, num_generations=1)
        for prompt, label, prompt_ids, ids, scores in zip(prompts, labels, encoded, drawn, logprobs, strict=True):
            text, found, tail = self._pieces.decode(ids).partition(stop)
            ended = not found and (not ids or ids[-1] in self._ends)
            body = ids[:-1] if ended or tail else ids
            text = self._pieces.decode(body) if ended else text
            self._read.setdefault(label, []).append((prompt + self._pieces.decode(body), [*prompt_ids, *body]))
            of_drawn = tuple(score[0] for score in scores)  # TRL asks for those of the drawn tokens only
            completions.append(Completion(text, ended or bool(found), tuple(prompt_ids), tuple(ids), of_drawn))
        return completions

    def _tokens(self, prompt: str, label: object) -> list[int]:
        """The prompt's tokens: those of the longest text written or read before that it continues, and of what it adds."""
        known: Sequence[tuple[str, list[int]]] = [read for read in self._read.get(label, []) if prompt.startswith(read[0])]
        text, ids = max(known, key=lambda read: len(read[0]), default=("", []))
        return ids + self._pieces.encode(prompt[len(text) :], after=bool(text))
