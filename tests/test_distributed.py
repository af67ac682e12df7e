"""Inside TRL's trainer: our rollouts, our gradient, two processes, stopping and going on, and what is refused."""

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from sesa import distributed, training
from sesa.arms import ONE_TURN, Training
from sesa.distributed import Rollouts, main, make_trainer, row_of, train
from sesa.engines import Completion
from sesa.engines.local import LocalEngine
from sesa.engines.vllm import VLLMEngine
from sesa.models import TinyConfig, WarmStart, tiny_lm, word_tokenizer
from sesa.objective import Objective, group_rewards, with_advantages
from sesa.packing import pack
from sesa.runs import derive_seed
from sesa.tasks import is_environment
from sesa.tasks.paths import PathConfig, PathTask
from sesa.training import TrainingError, _policy_backward
from tests.conftest import random_llama
from tests.test_actions import Problem, Walk
from tests.test_chat import tokenizer_of
from tests.test_text import byte_level

ROOT = Path(__file__).resolve().parent.parent
SMALL = TinyConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
QUICK = Training(steps=4, problems_per_step=4, group_size=4, checkpoint_every=2, learning_rate=3e-3)


class Lengths(PathTask):
    """Rewards that differ in almost every group."""

    def __init__(self):
        super().__init__(PathConfig(provinces=4, cities=4, districts=4, maps=6, exponent=2.0))

    def grade(self, problem, text):
        return replace(super().grade(problem, text), reward=float((len(text) + len(problem.id)) % 3))


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("CI", "1")  # TRL then sends nothing
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """(task, folder of a small taught model)."""
    task, folder = Lengths(), tmp_path_factory.mktemp("model")
    for part in tiny_lm(task, 0, SMALL, WarmStart(steps=150, batch_size=16)):
        part.save_pretrained(folder)
    return task, str(folder)


def gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def expected_groups(model, tokenizer, task, config, seed, ids, step=0):
    """What `sesa.training` would draw for these problems."""
    problems = [next(p for p in task.problems if p.id == i) for i in ids]
    root = derive_seed(seed, config.arm, step)
    return config.sampler(LocalEngine(model, tokenizer), task, problems, config.sampling, derive_seed(root, "rollouts"))


def moved(model):
    """So that ratios are not 1, and some are clipped."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))


# ------------------------------------------------------------------------------------------------- two trainers, one truth


def both_gradients(folder, task, config, place):
    """(rows of the batch, groups, our sums, ours, TRL's): the gradients of one update, of the same rollouts; with gradient accumulation,
    ratios that are clipped, and KL."""
    trainer = make_trainer(folder, task, config, 5, place, micro_batch=12)
    model, parts = trainer.model.train(), trainer.args.gradient_accumulation_steps
    ours = copy.deepcopy(model)
    del ours.forward  # TRL's, bound to the other model
    reference = copy.deepcopy(ours)
    batch = next(iter(trainer.get_train_dataloader()))
    ids = [row["prompt"] for row in batch[:: trainer.num_generations]]
    groups = expected_groups(ours, trainer.processing_class, task, config, 5, ids)
    trainer._prepare_inputs(batch)
    assert model.training and parts > 1
    moved(model)
    moved(ours)
    trainer.current_gradient_accumulation_steps = parts
    for part in trainer._buffered_inputs:
        trainer.compute_loss(model, part).backward()
    completions, advantages = with_advantages(groups, config.full_objective)
    sums = _policy_backward(ours, completions, advantages, pack(completions), config, config.full_objective, reference)
    return len(batch), groups, sums, gradient(ours), gradient(model)


@pytest.mark.parametrize("arm", [*(f.__name__ for f in ONE_TURN), "sequential+unique", "sesa+unique+kl", "sequence"])
def test_gradient_is_the_packed_loops(taught, tmp_path, arm):
    task, folder = taught
    config = replace(QUICK, arm="sesa", objective=Objective(reduction="sequence")) if arm == "sequence" else replace(QUICK, arm=arm)
    rows, groups, sums, ours, trls = both_gradients(folder, task, config, tmp_path)
    assert rows == 16 * (1 + (arm.split("+")[0] in ("sesa", "iid_sketches", "sequence")))
    assert sum(len({r.reward for r in g.rollouts}) > 1 for g in groups) >= 3
    assert sums["clip_ratio"] > 0.01 and ours.abs().max() > 0.03
    torch.testing.assert_close(trls, ours, atol=1e-6, rtol=0)


@pytest.mark.parametrize("arm", ["parallel", "actions+kl", "iid_actions"])
def test_gradient_of_an_agent_is_the_packed_loops(tmp_path, arm):
    """Trajectories as rows, trees with fewer than G among them."""
    task = Walk(2)
    task.problems = [Problem(name) for name in "pqrs"]
    tokenizer = word_tokenizer(Walk.words, Walk.token_pattern)
    tokenizer.eos_token = "<pad>"
    for part in (random_llama(len(tokenizer)), tokenizer):
        part.save_pretrained(tmp_path / "model")
    config = replace(QUICK, arm=arm, group_size=6, branch=2)
    rows, groups, _, ours, trls = both_gradients(str(tmp_path / "model"), task, config, tmp_path / "run")
    assert rows == 24 and (arm == "parallel") == (sum(len(g.rollouts) for g in groups) == 24)
    assert ours.abs().max() > 0.03
    torch.testing.assert_close(trls, ours, atol=1e-6, rtol=0)


@pytest.mark.parametrize("arm", ["sesa", "sequential+unique"])
def test_a_whole_run_is_that_of_our_own_loop(taught, tmp_path, arm):
    """Problems, rollouts, both updates, optimiser and what is recorded: four steps differ by rounding only."""
    task, folder = taught
    config = replace(QUICK, arm=arm, probe_every=100)
    train(folder, task, config, 0, tmp_path / "trl")
    model, tokenizer = (kind.from_pretrained(folder) for kind in (distributed.AutoModelForCausalLM, distributed.AutoTokenizer))
    ours = training.train(model, tokenizer, task, task.problems, config, 0, tmp_path / "ours").to_dict("records")
    for a, b in zip(lines(tmp_path / "trl" / "metrics.jsonl"), ours, strict=True):
        assert a == pytest.approx({key: b[key] for key in a}, abs=5e-3)
    trained = load_file(tmp_path / "trl" / "checkpoint-8" / "model.safetensors")
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(trained[name], weight, atol=1e-3, rtol=0)  # they moved by 2e-2


@pytest.mark.parametrize("n", [4, 8])
def test_what_trls_own_scaling_would_have_done(n):
    """The factor that the module's docstring names: n rows, the deviation with n - 1."""
    rewards = torch.tensor([0.0, 0.0, 1.0, 2.0]).repeat(n // 4)
    ours = (rewards - rewards.mean()) / rewards.std(correction=0)
    torch.testing.assert_close((rewards - rewards.mean()) / rewards.std(), ours * ((n - 1) / n) ** 0.5)


@pytest.mark.parametrize("arm", ["sequential+unique", "sesa"])
def test_rows(taught, tmp_path, arm):
    """Order and count; every row its own prompt; a sketch has the reward and the advantage of its solution; true metrics."""
    task, folder = taught
    config = replace(QUICK, arm=arm)
    trainer = make_trainer(folder, task, config, 0, tmp_path)
    n, ids = trainer.num_generations, ["map3", "map0"]
    rows = trainer.rollout_func([i for i in ids for _ in range(n)], trainer)
    groups = expected_groups(trainer.model, trainer.processing_class, task, config, 0, ids)
    assert {len(column) for column in rows.values()} == {2 * n}
    for g, group in enumerate(groups):
        for i, rollout in enumerate((*group.sketches, *group.rollouts)):
            at = g * n + i
            assert trainer.processing_class.decode(rows["prompt_ids"][at]) == rollout.prompt
            assert rows["completion_ids"][at] == rollout.completion.ids
            assert len(rows["logprobs"][at]) == len(rollout.completion.ids)
            assert rows["reward"][at] == group.rollouts[i % 4].reward
    for column in (rows["reward"], rows["advantage"]) if arm == "sesa" else ():
        assert column[:4] == column[4:8] and column[8:12] == column[12:]
    assert trainer.rollout_func.metrics["reward"] == pytest.approx(sum(rows["reward"]) / (2 * n))
    assert trainer.rollout_func.metrics["completion_tokens"] == sum(map(len, rows["completion_ids"]))
    if arm == "sequential+unique":
        given = torch.cat([group_rewards(g, -0.5) for g in groups]).view(2, 4)
        torch.testing.assert_close(torch.tensor(rows["advantage"]).view(2, 4).argsort(1), given.argsort(1))
    with pytest.raises(ValueError, match=f"whole groups of {n}"):
        trainer.rollout_func(["map3"] * (n + 1), trainer)


# ---------------------------------------------------------------------------------------------------------- stop, go on

SCRIPT = """
import json, os, sys
from sesa import distributed
from tests.test_distributed import Lengths
distributed.TASKS["paths"] = Lengths
drawn = distributed.Rollouts.__call__
def noted(self, prompts, trainer):
    step, folder = trainer.state.global_step // 2, trainer.args.output_dir
    with open(f"{folder}/drawn-{os.environ['RANK']}", "a") as f:
        f.write(json.dumps([step, sorted(set(prompts)), trainer.args.distributed_state.backend]) + "\\n")
    if "stopped" in folder and step == 3 and deadly:
        os._exit(1)
    return drawn(self, prompts, trainer)
distributed.Rollouts.__call__ = noted
common = "--arm sesa --problems-per-step 4 --group-size 4 --steps 4 --save-every 2 --learning-rate 0.003 --model".split() + [sys.argv[1]]
deadly = sys.argv[2] == "deadly"
if deadly:
    distributed.main([*common, "--output", sys.argv[3] + "/whole"])
distributed.main([*common, "--output", sys.argv[3] + "/stopped"])
"""


def two_processes(tmp_path, *arguments):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    launch = "-m torch.distributed.run --standalone --nproc-per-node 2".split()
    command = [sys.executable, *launch, str(script), *arguments, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CI": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as launcher:
        try:
            said = launcher.communicate(timeout=100)[1]
        finally:
            launcher.terminate()  # it then ends its workers; killed, it would leave them
    return launcher.returncode, said


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_two_processes_killed_and_gone_on(taught, tmp_path):
    """One run of four steps; one whose first process dies in the fourth, two steps after its checkpoint, and that is started again."""
    task, folder = taught
    code, said = two_processes(tmp_path, folder, "deadly")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert code != 0 and (whole / "checkpoint-8").is_dir(), said[-3000:]
    assert len(lines(stopped / "metrics.jsonl")) == 3 and not (stopped / "checkpoint-8").exists()
    code, said = two_processes(tmp_path, folder, "on")
    assert code == 0, said[-3000:]
    weights = [load_file(path / "checkpoint-8" / "model.safetensors") for path in (whole, stopped)]
    first = load_file(Path(folder) / "model.safetensors")
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in first) and not all(torch.equal(weights[0][k], first[k]) for k in first)
    assert (whole / "metrics.jsonl").read_bytes() == (stopped / "metrics.jsonl").read_bytes()
    drawn = [lines(whole / f"drawn-{rank}") for rank in (0, 1)]
    assert [step for step, _, _ in drawn[0]] == [0, 1, 2, 3] and drawn[0][0][2] == "gloo"
    for (_, a, _), (_, b, _) in zip(*drawn, strict=True):
        assert len(a) == len(b) == 2 and not set(a) & set(b)
    for rank in (0, 1):
        assert [row[:2] for row in lines(stopped / f"drawn-{rank}")][-2:] == [row[:2] for row in drawn[rank][-2:]]
    train(folder, task, replace(QUICK, arm="sesa"), 0, tmp_path / "alone")  # on one process the same, up to rounding
    for a, b in zip(lines(tmp_path / "alone" / "metrics.jsonl"), lines(whole / "metrics.jsonl"), strict=True):
        assert a == pytest.approx(b, abs=5e-3)
    trained = load_file(tmp_path / "alone" / "checkpoint-8" / "model.safetensors")
    for name in first:
        torch.testing.assert_close(weights[0][name], trained[name], atol=1e-3, rtol=0)


def test_lora_trains_the_adapter_only_and_goes_on(taught, tmp_path):
    task, folder = taught
    for path, steps in (("whole", (4,)), ("stopped", (2, 4, 4))):
        for n in steps:  # more steps go on; as many have nothing to do
            train(folder, task, replace(QUICK, steps=n), 0, tmp_path / path, lora=2)
    checkpoints = "whole/checkpoint-8", "stopped/checkpoint-8", "stopped/checkpoint-4"
    files = [tmp_path / path / "adapter_model.safetensors" for path in checkpoints]
    whole, stopped, half = map(load_file, files)
    assert all("lora" in name for name in whole) and not (files[0].parent / "model.safetensors").exists()
    assert all(torch.equal(whole[k], stopped[k]) for k in whole) and not all(torch.equal(whole[k], half[k]) for k in whole)
    assert (tmp_path / "whole" / "metrics.jsonl").read_bytes() == (tmp_path / "stopped" / "metrics.jsonl").read_bytes()
    trainer = make_trainer(folder, task, replace(QUICK, steps=2), 0, tmp_path / "other", lora=2)
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    changed = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed and changed == {name for name in before if "lora" in name}


@pytest.mark.parametrize("file", ["optimizer.pt", "whole.json"])
def test_a_damaged_checkpoint_is_said_and_a_torn_one_is_passed_over(taught, tmp_path, file):
    folder, identity = tmp_path / "run", {"seed": 0}
    for n in (2, 10):
        (folder / f"checkpoint-{n}").mkdir(parents=True)
        (folder / f"checkpoint-{n}" / "optimizer.pt").write_text("0123")
        (folder / f"checkpoint-{n}" / "whole.json").write_text('{"optimizer.pt": 4}')
    assert distributed.resumable(folder, identity) == folder / "checkpoint-10"
    (folder / "checkpoint-12").mkdir()  # killed while it was written
    assert distributed.resumable(folder, identity) == folder / "checkpoint-10"
    (folder / "checkpoint-10" / file).write_text("01")
    with pytest.raises(ValueError, match=f"checkpoint-10 is damaged .{file}.: delete that folder"):
        distributed.resumable(folder, identity)


def test_a_loss_that_is_no_number_stops(taught, tmp_path):
    task, folder = taught
    trainer = make_trainer(folder, task, replace(QUICK, learning_rate=1e38), 0, tmp_path)
    with pytest.raises(TrainingError, match="update .*nan.*The last checkpoint is good"):
        trainer.train()


# ------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "arguments, said",
    [
        ("--arm sesame", "no arm 'sesame'"),
        ("--arm sesa+replay", "replay: not done inside TRL, but by sesa.training"),
        ("--arm sesa+replay+distill", "replay and distill: not done inside TRL"),
        ("--task chess", "no task 'chess': take one of paths"),
        ("--vllm colocate", "vLLM .colocate. is not installed"),
        ("--problems-per-step 3 --group-size 4", "3 problems x 8 rows / 2 processes = 12 rows each, not whole groups of 8: .* of 2"),
        ("--problems-per-step 4", "WORLD_SIZE says 2 processes, TRL 3"),
        ("--steps 0", "steps\n.* greater than or equal to 1"),
    ],
)
def test_wrong_command_lines_are_refused(tmp_path, monkeypatch, arguments, said):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "GRPOConfig", lambda **_: SimpleNamespace(world_size=3))  # as if started in another way
    with pytest.raises(SystemExit, match=said):
        main([*arguments.split(), "--output", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_the_folder_of_another_run_is_left_alone(taught, tmp_path):
    task, folder = taught
    train(folder, task, replace(QUICK, steps=2), 0, tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match="other parameters .arm: 'parallel', not 'sesa'.: take another folder, or delete it"):
        train(folder, task, replace(QUICK, steps=2, arm="sesa"), 0, tmp_path)
    with pytest.raises(ValueError, match="seed: 0, not 1"):
        train(folder, task, replace(QUICK, steps=2), 1, tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("name", sorted(distributed.TASKS))
def test_a_model_is_asked_in_its_own_words(taught, tmp_path, name):
    tokenizer_of("llama").save_pretrained(tmp_path)
    plain, chatml, llama = (distributed.asked(name, model, dry) for model, dry in ((taught[1], False), ("Qwen/any", True), (str(tmp_path), False)))
    assert (plain.config.form, chatml.config.form, llama.config.form) == ("compact", "chat", "chat")

    def first(task):
        problem = task.problems[0]
        return task.observe(problem, task.reset(problem)) if is_environment(distributed.TASKS[name]()) else task.prompt(problem)

    assert first(chatml).startswith("<|im_start|>system") and first(llama).startswith("<|begin_of_text|>") and len(first(plain)) < 100


def test_help(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    for part in ("(default: tiny)", "(default: sesa)", "(default: 200)", "(default: 0.0005)", "--vllm", "--lora", "sets of rollouts"):
        assert part in said


# ----------------------------------------------------------------------------------------------------------------- vLLM


def test_vllm_engine(taught):
    """A stand-in with the call that TRL 1.16's VLLMGeneration has; vLLM itself was not run."""
    _, folder = taught
    tokenizer = distributed.AutoTokenizer.from_pretrained(folder)
    newline = tokenizer.encode("\n")[0]
    word = tokenizer.encode("cities")[0]
    calls = []

    class Generation:
        def generate(self, prompts, images, num_generations, profiler=None):
            calls.append((prompts, images, num_generations, dict(vars(self))))
            return prompts, [[word, newline], [word, word]], [[[-0.5], [-0.25]], [[-1.0], [-2.0]]], [[[word], [newline]], [[word], [word]]]

    completions = VLLMEngine(Generation(), tokenizer).generate(
        ["map1 cities\n", "map0 cities\n"], seeds=[1, 2], stop="\n", max_tokens=2, temperature=0.7, top_p=0.9
    )
    prompts = [tokenizer.encode(p) for p in ("map1 cities\n", "map0 cities\n")]
    settings = {"max_completion_length": 2, "temperature": 0.7, "top_p": 0.9}
    settings["generation_kwargs"] = {"stop": ["\n"], "include_stop_str_in_output": True}
    assert calls == [(prompts, None, 1, settings)]
    assert [(c.text, c.stopped) for c in completions] == [("cities", True), ("citiescities", False)]
    assert completions[0].ids == (word, newline) and completions[0].logprobs == (-0.5, -0.25)
    assert completions[1].prompt_ids == tuple(prompts[1])


class Says:
    """TRL's VLLMGeneration, which writes the next of these tokens at every prompt."""

    def __init__(self, *written):
        self.written, self.prompts = list(written), []

    def generate(self, prompts, images, num_generations):
        self.prompts += prompts
        drawn = [self.written.pop(0) for _ in prompts]
        return prompts, drawn, [[[-float(i)] for i in ids] for ids in drawn], None


def test_vllm_ends(taught):
    """shared/cases 12: any special token ends an answer, and is no text; nothing is an empty completion."""
    tokenizer = byte_level()
    assert tokenizer.eos_token == "<|im_end|>"
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|endoftext|>"]})
    texts = ["abc<|endoftext|>", "", "abc<|im_end|>", "abc\n", "a<|im_end|>c", "<|endoftext|>", "ab"]
    written = [tokenizer.encode(text) for text in texts]
    done = VLLMEngine(Says(*written), tokenizer).generate(["x\n"] * len(texts), seeds=range(len(texts)), stop="\n", max_tokens=9)
    assert [c.ids for c in done] == [tuple(ids) for ids in written]
    assert [c.text for c in done] == ["abc", "", "abc", "abc", "a<|im_end|>c", "", "ab"]
    assert [c.stopped for c in done] == [True, True, True, True, False, True, False]
    (special,) = VLLMEngine(Says(written[2]), tokenizer).generate(["x\n"], seeds=[0], stop="<|im_end|>", max_tokens=9)
    assert (special.text, special.stopped, special.ids) == ("abc", True, tuple(written[2]))


@pytest.mark.parametrize("end", ["<|endoftext|>", "<|im_end|>", "\n"])
def test_all_turns_of_an_agent_by_vllm_are_one_row(end):
    """Whatever ends them, and if the tokenizer would read what was written as other tokens."""
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|endoftext|>"]})
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in "Hunan"]
    assert tokenizer.encode("Hunan") != letters  # it has a token for it
    turn = letters + tokenizer.encode(end)
    generation, prompt, completions = Says(turn, [], turn), "from\n", []
    engine = VLLMEngine(generation, tokenizer)
    for _ in range(3):
        completions += engine.generate([prompt], seeds=[0], stop="\n", max_tokens=9, share=["p"])
        prompt += completions[-1].text + "\nGive\n"
    assert [c.text for c in completions] == ["Hunan", "", "Hunan"]
    assert tokenizer.decode(completions[2].prompt_ids) == "from\nHunan\nGive\n\nGive\n"
    prompt_ids, ids, logprobs, mask = row_of(completions, tokenizer.eos_token_id)
    assert tokenizer.decode(prompt_ids) == "from\n" and tokenizer.decode(ids) == f"Hunan\nGive\n\nGive\nHunan{end}"
    read_on = end == "\n"  # another end is not in the next prompt, so TRL cannot learn it, but for the last
    first, rest = letters + turn[5:] * read_on, len(ids) - len(letters) - 1
    assert [i for i, m in zip(ids, mask, strict=True) if m] == first + turn
    assert [p for p, m in zip(logprobs, mask, strict=True) if m] == [-float(i) for i in first + turn]
    assert rest > len(letters) and all(p == 0 for p, m in zip(logprobs, mask, strict=True) if not m)


def test_an_empty_completion_is_a_row_that_no_loss_sees(taught):
    empty = Completion("", True, (3, 4))
    assert row_of([empty], 7) == ((3, 4), (7,), (0.0,), [0])
    assert row_of([empty, Completion("", True, (3, 4, 5), (6,), (-1.0,))], 7) == ((3, 4, 5), (6,), (-1.0,), [1])


def test_rollouts_by_vllm(taught):
    """With TRL's vLLM the groups come from there; the policy in this process is not asked."""
    task, folder = taught
    tokenizer = distributed.AutoTokenizer.from_pretrained(folder)
    word = tokenizer.encode("\n")[0]

    def generate(prompts, images, num_generations):
        return prompts, [[word] for _ in prompts], [[[-1.0]] for _ in prompts], None

    accelerator = SimpleNamespace(num_processes=2, unwrap_model=lambda model: model, state=SimpleNamespace(deepspeed_plugin=None))
    trainer = SimpleNamespace(
        use_vllm=True, vllm_generation=SimpleNamespace(generate=generate), processing_class=tokenizer, state=SimpleNamespace(global_step=0),
        accelerator=accelerator, model_wrapped=SimpleNamespace(is_gradient_checkpointing=False),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
    )  # fmt: skip
    rows = Rollouts(task, replace(QUICK, arm="sesa"), 0)(["map0"] * 8, trainer)
    assert rows["completion_ids"] == [(word,)] * 8 and rows["logprobs"] == [(-1.0,)] * 8
