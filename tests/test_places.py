"""Places and the engine that writes nothing else, against brute force over all lines."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from sesa.engines.lines import LinesEngine
from sesa.models import word_tokenizer
from sesa.sampling import Sampling, sequential, sesa
from sesa.tasks.chat import Templated, template_of
from sesa.tasks.places import PlacesConfig, PlacesTask
from tests.test_chat import tokenizer_of

WORLD, STATES = PlacesTask(), PlacesTask(PlacesConfig("us"))


def test_trees_are_well_formed():
    assert len(WORLD.paths) == len(set(WORLD.paths)) == 232 and {p.count(" > ") for p in WORLD.paths} == {2}
    assert len(STATES.paths) == len(set(STATES.paths)) == 185 and len({p.split(" > ")[0] for p in STATES.paths}) == 50
    with pytest.raises(ValueError, match="world, us"):
        PlacesConfig("moon")


@pytest.mark.parametrize("task", [WORLD, STATES])
def test_every_path_is_right_however_it_is_spelled(task):
    problem = task.problems[0]
    for path in task.paths:
        assert task.grade(problem, f" {path.upper().replace(' > ', '  >')} ").key == path
        assert task.sketch_key(problem, path.rpartition(" > ")[0].lower()) == path.rpartition(" > ")[0]
    assert not task.grade(problem, path.rpartition(" > ")[0]).solved and task.sketch_key(problem, path) is None


@given(st.text())
def test_any_text_gets_a_grade(text):
    grade = WORLD.grade(WORLD.problems[0], text)
    assert grade.key in (None, *WORLD.paths) and grade.reward == float(grade.solved)
    WORLD.sketch_key(WORLD.problems[0], text)


def test_a_longer_history_only_appends():
    history = [" Europe > France > Paris", " Asia > Japan > Kyoto"]
    whole = WORLD.prompt(WORLD.problems[0], history)
    assert whole.endswith("<|im_start|>assistant\n1. Asia > Japan > Tokyo\n2. Europe > France > Paris\n3. Asia > Japan > Kyoto\n4.")
    for i in range(2):
        assert whole.startswith(WORLD.prompt(WORLD.problems[0], history[:i]) + history[i] + "\n")


LINES = ["a b", "a c", "b", "c c c", "c"]


@pytest.fixture
def engine(tiny_model):
    return LinesEngine(*tiny_model, LINES)


@pytest.fixture
def tiny_model():
    tokenizer = word_tokenizer(["a", "b", "c", "d"])
    torch.manual_seed(3)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), initializer_range=0.4, **size)).eval()
    return model, tokenizer


def distribution(model, tokenizer, prompt, temperature):
    """Of every line: the product of its tokens' probabilities, at each place among the tokens that go on to a line."""
    written = {line: tokenizer.encode(f"{line}\n", add_special_tokens=False) for line in LINES}
    head, found = tokenizer.encode(prompt, add_special_tokens=False), {}
    for line, ids in written.items():
        p = 1.0
        for t in range(len(ids)):
            logits = model(torch.tensor([head + ids[:t]])).logits[0, -1].double() / temperature
            may = sorted({other[t] for other in written.values() if other[:t] == ids[:t]})
            p *= (logits[ids[t]] - logits[may].logsumexp(0)).exp().item()
        found[line] = p
    return found


@pytest.mark.parametrize("temperature", [0.7, 1.5])
@torch.no_grad()
def test_lines_are_drawn_as_the_constrained_distribution_has_them(engine, tiny_model, temperature):
    n = 4000
    expected = distribution(*tiny_model, "d ", temperature)
    assert sum(expected.values()) == pytest.approx(1)
    done = engine.generate(["d "] * n, seeds=range(n), stop="\n", max_tokens=8, temperature=temperature)
    counts = Counter(c.text for c in done)
    for line, p in expected.items():
        assert counts[line] / n == pytest.approx(p, abs=4.5 * (p * (1 - p) / n) ** 0.5)
        (logprobs,) = {tuple(np.round(c.logprobs, 4)) for c in done if c.text == line}
        assert sum(logprobs) == pytest.approx(np.log(p), abs=1e-3)
    assert all(c.stopped for c in done)


def test_what_it_cannot_write_is_said(engine, tiny_model):
    with pytest.raises(ValueError, match="not with ' '"):
        engine.generate(["a"], seeds=[0], stop=" ", max_tokens=3)
    with pytest.raises(ValueError, match="no lines"):
        LinesEngine(*tiny_model, [])


def test_lists_and_sketches_of_places():
    """A random model of hub kind, in the words of its template: whatever it prefers, every line is a place."""
    tokenizer = tokenizer_of("llama")
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **size)).eval()
    task = Templated(STATES, template_of(tokenizer))
    task.task.max_tokens = task.task.sketch_max_tokens = 48  # a token a character
    engine = LinesEngine(model, tokenizer, [f" {path}" for path in STATES.paths])
    assert "<|im_start|>" not in task.prompt(task.problems[0]) and task.prompt(task.problems[0]).startswith(tokenizer.bos_token)
    (group,) = sequential(engine, task, task.problems, Sampling(12, list_length=4), 0)
    assert all(r.solved for r in group.rollouts) and [len(r.history) for r in group.rollouts] == [0, 1, 2, 3] * 3
    engine = LinesEngine(model, tokenizer, [f" {text}" for text in [*STATES.paths, *{p.split(" > ")[0] for p in STATES.paths}]])
    (group,) = sesa(engine, task, task.problems, Sampling(3), 0)
    assert all(s.key or s.text.strip() in STATES.paths for s in group.sketches)
