"""What sampling takes on this machine: contenders timed in turns, the memory of their tensors, and work whose size is known beforehand.

Who goes first changes every time, so a machine that slows down slows all. On one thread of a CPU there is nothing to wait for, and what
counts are the seconds of that thread (`time.thread_time`): other programs take fewer of them than of the wall's.
"""

import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any
from weakref import finalize

import numpy as np
import pandas as pd
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from sesa.engines import Completion
from sesa.engines.local import LocalEngine
from sesa.models import word_tokenizer
from sesa.runs import derive_seed
from sesa.tasks import Grade

Clock = Callable[[], float]


# ------------------------------------------------------------------------------------------------------ seconds and bytes


def clock_of(device: str) -> Clock:
    """Seconds: of this thread on a CPU; on a GPU the wall's, when all that was launched is done."""
    if device == "cpu":
        return time.thread_time

    def now() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return now


def in_turns(contenders: dict[str, Callable[[], Any]], repeats: int, clock: Clock = time.perf_counter) -> pd.DataFrame:
    """Seconds of every contender, (repeats, contenders), each run once before."""
    seconds = np.empty((repeats, len(contenders)))
    for run in contenders.values():
        run()
    for i in range(repeats):
        for j in np.roll(range(len(contenders)), i):
            start = clock()
            list(contenders.values())[j]()
            seconds[i, j] = clock() - start
    return pd.DataFrame(seconds, columns=list(contenders))


class _Live(TorchDispatchMode):
    """Counts the bytes of tensors that are alive and were made within, on the CPU."""

    def __init__(self):
        super().__init__()
        self.seen: set[int] = set()
        self.bytes = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        old = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and (key := (storage := tensor.untyped_storage())._cdata) not in self.seen | old:
                self.seen.add(key)
                self.bytes += storage.nbytes()
                finalize(storage, self._gone, key, storage.nbytes())
        self.peak = max(self.peak, self.bytes)
        return out

    def _gone(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.bytes -= size


def peak_bytes(run: Callable[[], Any], device: str = "cpu") -> int:
    """The most bytes that tensors made by `run` held at once: weights and whatever was there before are not counted.

    On a CPU every operation's results are counted, but not what a kernel needs inside; on a GPU the allocator says it.
    """
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with _Live() as live:
        run()
    return live.peak


# --------------------------------------------------------------------------------------------------- work of a known size


WORDS = 508  # and four tokens of every word tokenizer: a vocabulary of 512


def random_lm(shape: dict[str, Any], device: str = "cpu", dtype: str = "float32") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A Llama with random weights: for the time that it takes, weights do not matter. One token per word w0, w1, ...; no end of sequence.

    Args:
        shape: transformers' names, such as hidden_size. dtype: of the weights, by torch's name.
    """
    tokenizer = word_tokenizer([f"w{i}" for i in range(WORDS)], r"\n| |w\d+")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=32768, tie_word_embeddings=False, pad_token_id=0, bos_token_id=None,
        eos_token_id=None, **shape,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(device, getattr(torch, dtype)).eval(), tokenizer


class EndlessEngine(LocalEngine):
    """Never writes what would stop it, so that every completion has `max_tokens` tokens.

    keep: False is the naive way: nothing is kept from call to call, and no prompt shares anything with another.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, keep: bool = True, max_batch: int = 4096):
        super().__init__(model, tokenizer, max_batch)
        self.keep = keep

    def allowed(self, logits: torch.Tensor, sampled: list[torch.Tensor], stop: str) -> torch.Tensor:
        return logits.masked_fill(self._stop_tokens(stop)[0], -torch.inf)

    def generate(self, prompts: Sequence[str], *, share: Sequence[object] | None = None, **options: Any) -> list[Completion]:
        if self.keep:
            return super().generate(prompts, share=share, **options)
        self.forget()
        return super().generate(prompts, share=range(len(prompts)), **options)


def task_of_lengths(problems: int, prompt: int, sketch: int, solution: int) -> Any:
    """A task (`sesa.tasks.Task`) for `random_lm` and `EndlessEngine`: prompts, sketches and solutions of just so many tokens, one between two."""

    def listed(problem: Any, history: Sequence[str] = ()) -> str:
        return problem.text + "".join(f"{text}\n" for text in history)

    many = [SimpleNamespace(id=f"p{i}", text="".join(f"w{(i + j) % WORDS}" for j in range(prompt - 1)) + "\n") for i in range(problems)]
    return SimpleNamespace(
        problems=many, stop="\n", sketch_stop="\n", max_tokens=solution, sketch_max_tokens=sketch, prompt=listed, sketch_prompt=listed,
        expand_prompt=lambda problem, text: f"{problem.text}{text}\n", grade=lambda problem, text: Grade(0.0, text, False),
        sketch_key=lambda problem, text: text,
    )  # fmt: skip


def drawing(sampler: Callable, engine: EndlessEngine, task: Any, cfg: Any, name: str) -> Callable[[], Any]:
    """A contender: groups of all problems of the task, from an engine that has forgotten all before."""

    def run() -> Any:
        engine.forget()
        return sampler(engine, task, task.problems, cfg, derive_seed("timing", name))

    return run
