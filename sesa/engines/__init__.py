"""Where tokens come from. An engine is one method, `generate`; what it returns is a list of `Completion`s."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Completion:
    """What an engine wrote after one prompt.

    `logprobs[t]` is the natural logarithm of the probability of `ids[t]` given `prompt_ids + ids[:t]` at the sampling
    temperature (at 1 when that is 0), before top-p cuts the tail. An engine that sees no tokens (an endpoint) leaves the three tuples empty.
    """

    text: str  # without the stop string, and without what the token that completes it holds behind it
    stopped: bool  # False: cut off after max_tokens
    prompt_ids: tuple[int, ...] = ()
    ids: tuple[int, ...] = ()  # up to the token that stopped it, which a policy can learn to write so; none if nothing was written
    logprobs: tuple[float, ...] = ()


class Engine(Protocol):
    """What a method of sampling needs. An engine that knows the length of its model's context has `fits` too."""

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
        """One completion per prompt, in order.

        seeds: one non-negative integer per prompt; equal seed, prompt and weights give an equal completion, whatever else is in the batch
            (up to the rounding of a batched matrix product).
        stop: the completion ends before this string.
        temperature: divides the logits; 0 is greedy. top_p: nucleus sampling, 1 is off.
        share: one label per prompt; prompts of one label have a common beginning worth computing once.
        """
        ...


def fits(engine: Engine, prompt: str, max_tokens: int) -> bool:
    """Whether a prompt and `max_tokens` more fit into the context of the engine's model; True where the engine does not say."""
    return getattr(engine, "fits", lambda *_: True)(prompt, max_tokens)
