"""The tiny LM: its tokenizer, its training, its cache, and exact probabilities of its texts."""

import copy
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from sesa import models
from sesa.engines.local import LocalEngine
from sesa.metrics import kl_divergence
from sesa.models import TinyConfig, WarmStart, report, text_loss_backward, text_probabilities, tiny_lm, word_tokenizer
from sesa.sampling import Sampling, sequential
from sesa.tasks.paths import PathConfig, PathTask

# ------------------------------------------------------------------------------------------------------------- tokenizer

names = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=6)
vocabularies = st.lists(st.tuples(st.sampled_from(["", "/"]), names).map("".join), min_size=1, max_size=8, unique=True)


@settings(deadline=None)
@given(vocabularies, st.data())
def test_word_tokenizer_round_trip(words, data):
    tokenizer = word_tokenizer(words, PathTask.token_pattern)
    ids, previous = [], None
    for i in data.draw(st.lists(st.integers(2, len(words) + 3), max_size=20)):
        # Two words with nothing between them are one word, unless the second begins with "/".
        if previous is not None and previous > 3 and i > 3 and not words[i - 4].startswith("/"):
            ids.append(3)
        ids.append(i)
        previous = i
    text = "".join(["<pad>", "<unk>", "\n", " ", *words][i] for i in ids)
    assert tokenizer.encode(text) == ids
    assert tokenizer.decode(ids) == text


def test_unknown_words():
    tokenizer = word_tokenizer(["Hunan", "/Changsha", "Hunan"], PathTask.token_pattern)
    assert len(tokenizer) == 6  # <pad>, <unk>, line end, blank and each word once
    assert tokenizer.encode("Hunan/Changsha Hubei/Changsha\nHunan/Wuhan") == [4, 5, 3, 1, 5, 2, 4, 1]
    assert tokenizer.encode("Changsha //") == [1, 3, 1, 1]


# ------------------------------------------------------------------------------------------------------ training, cached


@dataclass(frozen=True)
class ToyConfig:
    words: str = "abcd"


class Toy:
    """Teaches lines of one to three words, the first words of the alphabet more often."""

    token_pattern = r"\n| |\S+"

    def __init__(self, config=ToyConfig()):
        self.config, self.words, self.lessons = config, ["go", *config.words], 0

    def warm_start_texts(self, rng, n):
        self.lessons += 1
        p = 0.5 ** np.arange(1, len(self.config.words) + 1)
        lines = [rng.choice(list(self.config.words), size=rng.integers(1, 4), p=p / p.sum()) for _ in range(n)]
        return [("go\n", " ".join(line) + "\n") for line in lines]

    @property
    def language(self):
        return [" ".join(line) + "\n" for n in (1, 2, 3) for line in itertools.product(self.config.words, repeat=n)]


TINY = TinyConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)


def toy_lm(steps=12, seed=0, config=TINY, task=Toy()):
    return tiny_lm(task, seed, config, WarmStart(steps=steps, batch_size=16, learning_rate=1e-2))


@pytest.fixture
def empty_home(tmp_path, monkeypatch):
    monkeypatch.setenv("SESA_HOME", str(tmp_path))
    return tmp_path


def assert_equal_weights(a, b):
    assert a.state_dict().keys() == b.state_dict().keys()
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def the_folder(home):
    (folder,) = [p for p in (home / "runs" / "models").iterdir() if not p.name.startswith(".")]
    return folder


def content_of(folder):
    """All that must come out equal: the files, and of the manifest what does not tell of this very run."""
    files = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "manifest.json"}
    manifest = json.loads((folder / "manifest.json").read_text())
    return files, manifest["inputs"], manifest["sha256"]


def state_of(folder):
    return {p.name: (p.stat().st_mtime_ns, p.stat().st_ino) for p in folder.iterdir()}


def test_second_time_from_the_cache(empty_home):
    task = Toy()
    model, tokenizer = toy_lm(steps=12, task=task)
    before = state_of(the_folder(empty_home))
    again, tokenizer_again = toy_lm(steps=12, task=task)
    assert task.lessons == 12 and state_of(the_folder(empty_home)) == before
    assert_equal_weights(model, again)
    text = "go\na b\nc"
    assert tokenizer.encode(text) == tokenizer_again.encode(text) == word_tokenizer(Toy().words, Toy.token_pattern).encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert not model.training and not list((empty_home / "runs" / "models").glob(".*/"))


def test_equal_arguments_equal_weights_bit_for_bit(tmp_path, monkeypatch):
    trained = []
    for name in ("one", "two"):
        monkeypatch.setenv("SESA_HOME", str(tmp_path / name))
        torch.manual_seed(len(trained))  # neither the state of a global generator nor the number of threads matters
        torch.set_num_threads(len(trained) + 1)
        trained.append(toy_lm()[0])
    assert_equal_weights(*trained)


def test_other_arguments_other_models(empty_home):
    base = toy_lm()[0].state_dict()["lm_head.weight"]
    others = [
        toy_lm(seed=1),
        toy_lm(steps=13),
        toy_lm(config=TinyConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)),
        toy_lm(task=Toy(ToyConfig("abcde"))),
    ]
    assert not any(torch.equal(base, model.state_dict()["lm_head.weight"]) for model, _ in others)
    assert len(list((empty_home / "runs" / "models").glob("*/"))) == 5


def edit(name, change):
    def damage(folder):
        path = folder / name
        content = path.read_bytes()
        path.unlink()  # a model in memory may map the old file
        path.write_bytes(change(content))

    return damage


def other_inputs(content):
    manifest = json.loads(content)
    manifest["inputs"]["seed"] += 1
    return json.dumps(manifest).encode()


def emptied(folder):
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGES = {
    "tampered weights": edit("model.safetensors", lambda b: b[:-1] + bytes([b[-1] ^ 1])),
    "truncated weights": edit("model.safetensors", lambda b: b[: len(b) // 2]),
    "truncated manifest": edit("manifest.json", lambda b: b[: len(b) // 2]),
    "other inputs": edit("manifest.json", other_inputs),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "no tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
    "nothing": emptied,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_rebuilt(damage, empty_home):
    model, _ = toy_lm()
    folder = the_folder(empty_home)
    whole, old = content_of(folder), state_of(folder)
    DAMAGES[damage](folder)
    assert state_of(folder) != old
    again, _ = toy_lm()
    assert_equal_weights(model, again)
    assert content_of(the_folder(empty_home)) == whole
    task = Toy()
    toy_lm(task=task)
    assert task.lessons == 0


def test_leftovers_of_a_killed_run_do_not_matter(empty_home):
    model, _ = toy_lm()
    folder = the_folder(empty_home)
    leftover = folder.parent / f".{folder.name}.xyz" / "model"
    shutil.copytree(folder, leftover)
    (leftover / "model.safetensors").write_bytes(b"half")
    assert_equal_weights(model, toy_lm()[0])
    shutil.rmtree(folder)
    assert_equal_weights(model, toy_lm()[0])
    assert (folder / "manifest.json").is_file()


def test_of_processes_that_need_a_model_one_trains_it(empty_home, monkeypatch):
    """While another trains, ours waits; then it reads what the other left."""
    model, _ = toy_lm()
    folder, kept = the_folder(empty_home), empty_home / "kept"
    folder.rename(kept)
    monkeypatch.setattr(models, "_train", lambda *_: pytest.fail("trained a second time"))
    with ThreadPoolExecutor(1) as pool:
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            ours = pool.submit(toy_lm)
            with pytest.raises(TimeoutError):
                ours.result(timeout=0.5)
            kept.rename(folder)
        assert_equal_weights(model, ours.result(timeout=60)[0])


@pytest.mark.parametrize("micro_batch", [12, 2])
def test_of_a_text_in_turns_the_completions_alone_are_taught(paths_lm, reference, micro_batch):
    """(prompt, completion, prompt, completion): each completion given all that stands before it."""
    _, model, tokenizer = paths_lm
    batched, by_hand = copy.deepcopy(model), copy.deepcopy(model)
    line = [f"{path}\n" for path in paths_lm[0].prior.paths[:4]]
    texts = [("map0 districts\n", line[0], line[1], line[2] + line[3]), ("map1 districts\n", line[2]), (line[3], line[0], "map0 districts\n", line[1])]
    mean = text_loss_backward(batched, tokenizer, texts, micro_batch=micro_batch)
    terms = []
    for text in texts:
        pieces = [tokenizer.encode(piece) for piece in text]
        terms += [-reference(by_hand, sum(pieces[:i], []), pieces[i]) for i in range(1, len(pieces), 2)]
    loss = torch.cat(terms).mean()
    loss.backward()
    assert mean == pytest.approx(loss.item(), abs=1e-5) and len(terms) == 5
    for a, b in zip(batched.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-3)


def test_warm_start_gradient_is_that_of_the_completions_alone(paths_lm, reference):
    task, model, tokenizer = paths_lm
    batched, by_hand = copy.deepcopy(model), copy.deepcopy(model)
    texts = task.warm_start_texts(np.random.default_rng(0), 30)  # of very different lengths, more than one part of 12
    mean = text_loss_backward(batched, tokenizer, texts)
    pairs = [(tokenizer.encode(a), tokenizer.encode(b)) for a, b in texts]
    total = sum(len(b) for _, b in pairs)
    losses = []
    for a, b in pairs:
        loss = -reference(by_hand, a, b).sum() / total
        loss.backward()
        losses.append(loss.item())
    assert mean == pytest.approx(sum(losses), abs=1e-5)
    assert max(p.grad.abs().max() for p in by_hand.parameters()) > 1e-3
    for (name, p), q in zip(batched.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-6, rtol=1e-4, msg=name)


@dataclass(frozen=True)
class Repetition:
    again: float  # share of candidates that stood in their list before, of those that are paths
    valid: float
    iid: float  # the same share for independent draws from the prior


def repetition(lm, length=8, lists=40):
    task, model, tokenizer = lm
    cfg = Sampling(length * lists, list_length=length)
    again = valid = 0
    for group in sequential(LocalEngine(model, tokenizer), task, task.problems, cfg, seed=0):
        keys = [r.key for r in group.rollouts]
        for i, key in enumerate(keys):
            if key is not None and i % length:
                valid += 1
                again += key in keys[i - i % length : i]
    p = task.prior.p
    iid = np.mean([p @ (1 - (1 - p) ** i) for i in range(1, length)])
    return Repetition(again / valid, valid / (len(task.problems) * lists * (length - 1)), iid)


def test_distinct_share_sets_how_often_lists_repeat(paths_lm, repeating_lm):
    obeys, repeats = repetition(paths_lm), repetition(repeating_lm)
    assert min(obeys.valid, repeats.valid) > 0.85
    assert repeats.iid > 0.4 and abs(repeats.again - repeats.iid) < 0.12  # as independent draws
    assert obeys.again < repeats.iid / 3


@pytest.mark.parametrize("bad", [dict(distinct_share=1.5), dict(distinct_share=-0.1), dict(sketch_level=0), dict(sketch_level=4)])
def test_bad_path_config(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        PathConfig(**bad)


# --------------------------------------------------------------------------------------------------------- probabilities


@pytest.fixture(scope="module")
def taught_toy():
    return toy_lm(steps=150)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_text_probabilities_are_products_of_conditionals(temperature, taught_toy, reference):
    model, tokenizer = taught_toy
    texts = Toy().language * 7  # 588: more than one batch
    p = text_probabilities(model, tokenizer, "go\n", texts, temperature)
    assert p.shape == (588,) and p.dtype == np.float64
    head = tokenizer.encode("go\n")
    with torch.no_grad():
        expected = [math.exp(reference(model, head, tokenizer.encode(t), temperature).sum()) for t in Toy().language]
    np.testing.assert_allclose(p, np.tile(expected, 7), rtol=2e-5)
    assert 0.9 < sum(expected) < 1  # of all lines that end, nearly all are in the language


def test_text_probabilities_match_frequencies(taught_toy):
    model, tokenizer = taught_toy
    texts, n = Toy().language, 6000
    p = text_probabilities(model, tokenizer, "go\n", texts)
    done = LocalEngine(model, tokenizer).generate(["go\n"] * n, seeds=range(n), stop="\n", max_tokens=6)
    written = [c.text + "\n" for c in done if c.stopped]
    frequency = np.array([written.count(text) / n for text in texts])
    # Hoeffding and a union bound: fails by chance with probability 1e-9.
    assert np.abs(frequency - p).max() < math.sqrt(math.log(2 * len(texts) / 1e-9) / (2 * n))
    assert abs(frequency.sum() - p.sum()) < math.sqrt(math.log(2 / 1e-9) / (2 * n))


def test_text_probabilities_add_no_tokens(taught_toy):
    """A tokenizer that begins every text with a token of its own, as many pretrained ones do, changes nothing."""
    model, tokenizer = taught_toy
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.post_processor = TemplateProcessing(single="go $A", special_tokens=[("go", tokenizer.encode("go")[0])])
    eager = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert eager.encode("a") == tokenizer.encode("go") + tokenizer.encode("a")
    texts = Toy().language[:5]
    expected = text_probabilities(model, tokenizer, "go\n", texts)
    np.testing.assert_allclose(text_probabilities(model, eager, "go\n", texts), expected)


@pytest.mark.filterwarnings("error")
def test_kl_divergence_closed_forms():
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.5, 0.25])
    assert kl_divergence(p, p) == 0
    assert kl_divergence(p, q) == pytest.approx(0.25 * math.log(2))
    assert kl_divergence(p, p / 4) == pytest.approx(math.log(4))  # q's other three quarters lie elsewhere
    # 0 log 0 is 0, wherever the zero of p meets q, and silently so
    assert kl_divergence(np.array([1.0, 0.0, 0.0]), np.array([0.5, 0.5, 0.0])) == pytest.approx(math.log(2))


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(1e-6, 1), st.floats(1e-6, 1)), min_size=1, max_size=10))
def test_kl_divergence_by_hand(pairs):
    p, q = np.array(pairs).T
    p, q = p / p.sum(), q / q.sum()
    expected = math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert kl_divergence(p, q) == pytest.approx(expected, abs=1e-12)
    assert kl_divergence(p, q) > -1e-12


FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from sesa.models import TinyConfig, WarmStart, tiny_lm
from sesa.tasks.paths import PathConfig, PathTask
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
try:
    tiny_lm(PathTask(PathConfig(maps=2)), seed=0, config=TinyConfig(32, 1, 2, 32), warm_start=WarmStart(steps=1, batch_size=2))
except OSError as e:
    print(e)
"""


def test_a_full_disk_while_the_model_is_saved_is_said_and_leaves_nothing(tmp_path):
    """A file may have 4,000 bytes here; the weights have more, and their writer's error is not one of Python's own."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK], env={**os.environ, "SESA_HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert "could not write" in done.stdout and "run the same command again" in done.stdout, done.stderr
    assert list((tmp_path / "runs" / "models").glob("*/")) == []


def test_report_by_hand():
    """Averages over the prompts of sums over the answers, written out."""
    task = PathTask(PathConfig(maps=2))
    model, tokenizer = tiny_lm(task, 0, TinyConfig(32, 1, 2, 32), WarmStart(steps=3, batch_size=4))
    prompts = [task.prompt(problem) for problem in task.problems]
    q = np.array([text_probabilities(model, tokenizer, prompt, task.lines) for prompt in prompts])
    found = report(model, tokenizer, prompts, task.lines, task.prior.p)
    p = task.prior.p
    assert found["parameters"] == sum(w.numel() for w in model.parameters())
    assert found["invalid"] == pytest.approx(1 - q.sum(1).mean())
    assert found["KL(prior || model)"] == pytest.approx((p * np.log(p / q)).sum(1).mean())
