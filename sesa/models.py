"""A tiny language model, trained here in about a minute, that stands in for a large one.

It has favourite answers, and it continues a list with something new, as instruction tuning makes a large model do. Architecture:
transformers' Llama, three narrow layers; a tokenizer with one token per word. The warm start teaches it by maximum likelihood on texts
that a task provides; the recipe (our choice) is in `WarmStart`.

The finished model is cached under `runs/models/`, its manifest written last; a cache that does not match its manifest is rebuilt.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from filelock import FileLock, Timeout
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast, get_cosine_schedule_with_warmup
from transformers.utils.logging import disable_progress_bar

from sesa.engines.text import Pieces
from sesa.fingerprint import fingerprint, sources_behind
from sesa.metrics import kl_divergence
from sesa.packing import Packed, logits_at, packed_logprobs
from sesa.runs import derive_seed, hash_of, home, origin, progress, read_json, sha256, write_atomic, writing
from sesa.tasks import modules_of


@dataclass(frozen=True)
class TinyConfig:
    """The architecture, transformers' names. 8 x 6 x 6 paths make about 0.18 M parameters of it."""

    hidden_size: int = 64
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    intermediate_size: int = 128
    device: str = "cpu"  # "cuda": for one of tens of millions of parameters


@dataclass(frozen=True)
class WarmStart:
    """How the model is taught. steps of `batch_size` texts; AdamW, the learning rate on a cosine to 0 after 5% of linear warm-up."""

    steps: int = 600
    batch_size: int = 96
    learning_rate: float = 3e-3
    micro_batch: int = 12  # texts in one forward pass: many of short ones, few of long ones


class Teacher(Protocol):
    """A task with a language to teach."""

    config: Any  # a frozen dataclass of JSON values: all that its texts depend on
    words: list[str]  # its tokens, beside the line's end and the blank
    token_pattern: str  # a regular expression that cuts its texts into them

    def warm_start_texts(self, rng: np.random.Generator, n: int) -> list[tuple[str, ...]]:
        """n texts (prompt, completion), of an agent (prompt, completion, prompt, completion, ...); the model is taught the completions."""
        ...


def word_tokenizer(words: Sequence[str], pattern: str = r"\n| |\S+") -> PreTrainedTokenizerFast:
    """One token per word, and what a word is `pattern` says. Line ends and blanks are words. Unknown words become <unk>."""
    vocabulary = {w: i for i, w in enumerate(["<pad>", "<unk>", "\n", " ", *dict.fromkeys(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", clean_up_tokenization_spaces=False
    )


def tiny_lm(
    task: Teacher, seed: int, config: TinyConfig = TinyConfig(), warm_start: WarmStart = WarmStart()
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The tiny LM that was taught the texts of `task`; from the cache if it is there. Equal arguments, equal weights, bit for bit.

    Sets torch to one thread, for the rest of this process.

    Raises:
        OSError: the model could not be written to the cache.
    """
    disable_progress_bar()  # of transformers, for writing and reading a file of half a megabyte
    torch.set_num_threads(1)  # fastest for a model this small, and the same numbers on any number of cores
    inputs = {
        "code": code_of(task),
        "task": {"name": type(task).__name__, **asdict(task.config)},
        "config": asdict(config),
        "warm_start": asdict(warm_start),
        "seed": seed,
    }
    folder = cached(f"tiny-{type(task).__name__.lower()}", inputs, lambda: _train(task, seed, config, warm_start))
    return LlamaForCausalLM.from_pretrained(folder).to(config.device), PreTrainedTokenizerFast.from_pretrained(folder)


def code_of(task: Teacher) -> str:
    """A fingerprint of the code that texts and training depend on."""
    return fingerprint(sources_behind(f"import sesa.models, {modules_of(task)}"))


def weights_of(model: PreTrainedModel) -> str:
    """A digest of all weights."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def cached(name: str, inputs: dict[str, Any], make: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]) -> Path:
    """The folder in `runs/models/` of the model and tokenizer that `make` gives for these inputs, JSON values; made if it is not there, or not
    whole. Several processes may ask at once.

    Raises:
        OSError: it could not be written.
    """
    inputs = json.loads(json.dumps(inputs))
    folder = home() / "runs" / "models" / f"{name}-{hash_of(inputs)}"
    if not _is_whole(folder, inputs):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(folder):
            if not _is_whole(folder, inputs):
                with torch.random.fork_rng():  # whether the cache was there is nothing that the caller's randomness should show
                    model, tokenizer = make()
                _save(folder, model, tokenizer, inputs)
    return folder


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Of processes that need the same model one trains it, and the others wait. A lock ends with its process, however that ends."""
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=2)
    except Timeout:
        print(f"waiting for another process that trains {folder.name}", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _train(task: Teacher, seed: int, config: TinyConfig, warm_start: WarmStart) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    tokenizer = word_tokenizer(task.words, task.token_pattern)
    torch.manual_seed(derive_seed(seed, "weights"))
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            num_key_value_heads=config.num_attention_heads,
            max_position_embeddings=4096,
            tie_word_embeddings=False,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=None,
            **{key: value for key, value in asdict(config).items() if key != "device"},
        )
    )
    teach(model.to(config.device), tokenizer, task, seed, warm_start)
    return model, tokenizer


def teach(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Teacher, seed: int, warm_start: WarmStart) -> None:
    """Trains `model` in place, by maximum likelihood on texts of `task`."""
    rng = np.random.default_rng(derive_seed(seed, "warm start"))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=warm_start.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    scheduler = get_cosine_schedule_with_warmup(optimizer, int(0.05 * warm_start.steps), warm_start.steps)
    with progress(warm_start.steps, f"warm start, seed {seed}") as bar:
        for step in range(warm_start.steps):
            texts = task.warm_start_texts(rng, warm_start.batch_size)
            loss = text_loss_backward(model, tokenizer, texts, micro_batch=warm_start.micro_batch)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            if step % 50 == 0:
                bar.set_postfix_str(f"loss {loss:.2f}", refresh=False)
            bar.update()
    model.eval()


def text_loss_backward(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[tuple[str, ...]], weight: float = 1.0, micro_batch: int = 12
) -> float:
    """Adds the gradient of `weight` times the mean cross-entropy (nats) of all completion tokens; returns that mean.

    A text is (prompt, completion), or goes on as (..., prompt, completion). ValueError: see `sesa.engines.text.Pieces`.

    Texts of like length are computed together: their lengths differ by a factor of 30, and padding would be half the work.
    """
    encode = Pieces(tokenizer).encode
    rows = []  # of each text its tokens, and of each whether it is taught
    for text in texts:
        pieces = [encode(piece, after=i > 0) for i, piece in enumerate(text)]
        rows.append((sum(pieces, []), [bool(i % 2) for i, piece in enumerate(pieces) for _ in piece]))
    rows.sort(key=lambda row: len(row[0]))
    total, mean = sum(sum(marks) for _, marks in rows), 0.0
    for start in range(0, len(rows), micro_batch):
        part = rows[start : start + micro_batch]
        width = len(part[-1][0])
        ids = torch.zeros(len(part), width, dtype=torch.long)  # what pads, on the right, is never looked at
        taught = torch.zeros(len(part), width, dtype=torch.bool)
        for r, (row, marks) in enumerate(part):
            ids[r, : len(row)], taught[r, : len(row)] = torch.tensor(row), torch.tensor(marks)
        taught[:, 0] = False  # nothing stands before it
        ids, taught = ids.to(model.device), taught.to(model.device)
        # Causal attention and padding on the right: no attention mask is needed, and the fast kernel applies.
        logits = logits_at(model, ids, taught.roll(-1, 1))
        loss = cross_entropy(logits, ids[:, 1:][taught[:, 1:]], reduction="sum") / total
        (weight * loss).backward()
        mean += loss.item()
    return mean


def _save(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, inputs: dict) -> None:
    """Writes to a temporary folder, manifest last, and renames it."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        part = Path(temporary) / "model"
        with writing(folder):
            model.save_pretrained(part)
            tokenizer.save_pretrained(part)
        files = {p.name: sha256(p) for p in sorted(part.iterdir())}
        write_atomic(part / "manifest.json", json.dumps({"inputs": inputs, "sha256": files, **origin()}, indent=1) + "\n")
        if folder.exists():  # damaged, or made from something else
            shutil.rmtree(folder)
        part.rename(folder)


def _is_whole(folder: Path, inputs: dict) -> bool:
    manifest = read_json(folder / "manifest.json")
    return (
        manifest is not None
        and manifest.get("inputs") == inputs
        and all(sha256(folder / name) == digest for name, digest in manifest.get("sha256", {"no files": ""}).items())
    )


# ---------------------------------------------------------------------------------------------------------------- report


@torch.inference_mode()
def text_probabilities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompt: str, texts: Sequence[str], temperature: float = 1.0
) -> np.ndarray:
    """Probability that sampling after `prompt`, which is not empty, writes exactly each of `texts` at this temperature. (texts,), float64.

    Exact: one forward pass over prompt and text, in batches. With all valid answers as texts, 1 minus the sum is the share of invalid ones.
    """
    encode = Pieces(tokenizer).encode
    head = encode(prompt)
    out = []
    for start in range(0, len(texts), 512):
        tails = [encode(text, after=True) for text in texts[start : start + 512]]
        packed = [Packed(head + tail, [-1] * len(head) + [i] * len(tail)) for i, tail in enumerate(tails)]
        scores = packed_logprobs(model, packed, temperature)
        out.append(torch.zeros(len(tails), dtype=torch.double).index_add(0, scores.owner.cpu(), scores.logprobs.double().cpu()).exp())
    return torch.cat(out).numpy()


def report(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], answers: Sequence[str], prior: np.ndarray
) -> dict[str, float]:
    """How close the model is to the prior it was taught, and how often it is invalid: exact, averaged over prompts.

    Args:
        answers: all valid completions. prior: their probabilities, (answers,).

    Returns:
        parameters (a count), KL(prior || model) in nats, and invalid, the probability of writing something else.
    """
    q = [text_probabilities(model, tokenizer, prompt, answers) for prompt in prompts]
    return {
        "parameters": model.num_parameters(),
        "KL(prior || model)": float(np.mean([kl_divergence(prior, p) for p in q])),
        "invalid": float(np.mean([1 - p.sum() for p in q])),
    }
