"""What several test files need: a home for files away from the checkout, small language models, one reference computation."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sesa.models import TinyConfig, WarmStart, tiny_lm, word_tokenizer
from sesa.tasks.paths import PathConfig, PathTask

ROOT = Path(__file__).resolve().parent.parent

torch.set_num_threads(1)

SMALL = TinyConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)


@pytest.fixture(autouse=True, scope="session")
def sesa_home(tmp_path_factory):
    """No test writes into the checkout's runs/ or figures/."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.setenv("SESA_HOME", str(home))
        yield home


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SESA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SESA_BATCH", "1")
    monkeypatch.setenv("SESA_REDRAW", "")
    return tmp_path / "home"


def python(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """Another Python process that finds this checkout's `sesa`."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "SESA_BATCH": "1"} | variables
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=60)


def module_of(path: Path, source: str):
    """Source text as a module, as a notebook's functions would be: with a file that `inspect` can read."""
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def random_llama(vocabulary: int, seed: int = 0) -> LlamaForCausalLM:
    """Untrained, with weights large enough that its distributions are far from flat."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, initializer_range=0.25, tie_word_embeddings=False,
        pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


class TokenCounter:
    """Counts the tokens that go through a model's forward, padding included."""

    def __init__(self, model):
        self.tokens = 0
        self.hook = model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module, args, kwargs):
        self.tokens += kwargs["input_ids"].numel()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.hook.remove()


@pytest.fixture(scope="session")
def char_lm():
    """A random LM over characters. Any text that it writes has one tokenization, so runs can be compared by text.

    One token is of two characters, "!\\n" (there is no "!"); there are no special tokens.
    """
    tokens = ["\n", "!\n", *" abcdefghijklmno/"]
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"!\n|[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return random_llama(len(tokens)), PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(scope="session")
def word_lm():
    """A random LM over words; it writes special tokens and words without blanks between them, too."""
    tokenizer = word_tokenizer([f"w{i}" for i in range(20)])
    return random_llama(len(tokenizer)), tokenizer


def small_paths(distinct_share: float) -> PathTask:
    return PathTask(
        PathConfig(
            provinces=4, cities=4, districts=4, maps=2, list_items=(4, 12), list_share=0.9, sketch_share=0.05,
            distinct_share=distinct_share,
        )
    )


@pytest.fixture(scope="session")
def paths_lm():
    """(task, model, tokenizer): a small world of paths and an LM that was taught its language."""
    task = small_paths(distinct_share=1.0)
    return task, *tiny_lm(task, 0, SMALL, WarmStart(steps=250, batch_size=24, learning_rate=5e-3))


@pytest.fixture(scope="session")
def repeating_lm():
    """The same, taught with lists drawn with replacement."""
    task = small_paths(distinct_share=0.0)
    return task, *tiny_lm(task, 0, SMALL, WarmStart(steps=250, batch_size=24, learning_rate=5e-3))


@pytest.fixture(scope="session")
def reference():
    """log p(ids[t] | prompt_ids + ids[:t]) from one plain forward pass over this sequence alone, with gradient."""

    def logprobs(model, prompt_ids, ids, temperature=1.0):
        logits = model(input_ids=torch.tensor([[*prompt_ids, *ids]])).logits[0, len(prompt_ids) - 1 : -1]
        return (logits.double() / temperature).log_softmax(-1)[range(len(ids)), list(ids)]

    return logprobs
