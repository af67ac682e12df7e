"""The engine of `sesa.distributed`: the vLLM that TRL holds, in its own processes or beside the training. Not run by us yet.

Written after TRL's source, and tested against a fake with its call.
"""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from sesa.engines import Completion


@dataclass
class VLLMEngine:
    """`sesa.engines.Engine` over `trainer.vllm_generation`.

    TRL has one set of sampling parameters for all prompts of a call: `seeds` have no effect, and two runs differ.
    """

    generation: Any
    tokenizer: PreTrainedTokenizerBase

    def generate(self, prompts, *, seeds, stop, max_tokens, temperature=1.0, top_p=1.0, share=None) -> list[Completion]:
        vllm, completions = self.generation, []
        vllm.max_completion_length, vllm.temperature, vllm.top_p = max_tokens, temperature, top_p
        vllm.generation_kwargs = {"stop": [stop], "include_stop_str_in_output": True}
        encoded = [self.tokenizer.encode(prompt, add_special_tokens=False) for prompt in prompts]
        _, drawn, logprobs, _ = vllm.generate(prompts=encoded, images=None, num_generations=1)
        for prompt_ids, ids, scores in zip(encoded, drawn, logprobs, strict=True):
            ended = ids[-1] == self.tokenizer.eos_token_id
            text = self.tokenizer.decode(ids[:-1] if ended else ids)
            of_drawn = tuple(score[0] for score in scores)  # TRL asks for those of the drawn tokens only
            completions.append(Completion(text.split(stop)[0], ended or stop in text, tuple(prompt_ids), tuple(ids), of_drawn))
        return completions
