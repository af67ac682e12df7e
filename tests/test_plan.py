"""The plan of a run on GPUs: its closed forms against what is counted and stored, its files, its verdicts."""

import os
import re
import subprocess
from dataclasses import replace

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, DynamicCache, Qwen2Config

from sesa import cluster, cost
from sesa.arms import Training
from sesa.cluster import CLUSTER, lora_config, read_placement, read_profile, shape_on_meta
from sesa.cost import Stage
from sesa.distributed import OPTIONS, main, trl_config
from sesa.engines import Completion
from sesa.plan import stages_of
from sesa.tasks.sokoban import Sokoban, SokobanConfig
from sesa.tasks.sudoku import SudokuConfig, SudokuTask

def qwen(layers: int, hidden: int, heads: int) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=320, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip


SMALL = qwen(layers=3, hidden=64, heads=4)
DEFAULTS = {name: default for name, default, _ in OPTIONS}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@pytest.fixture(scope="module")
def small():
    """(model, shape), with attention whose products the counter sees."""
    model = AutoModelForCausalLM.from_config(SMALL, attn_implementation="eager")
    return model, cost.shape_of(model, SMALL)


def counted(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


# --------------------------------------------------------------------------------------------------------- closed forms


def test_flops_of_decoding_are_those_counted(small):
    """Token by token with a cache, no product is wasted on what causal attention does not see."""
    model, shape = small
    ids = torch.arange(24)[None]

    @torch.no_grad()
    def decode():
        cache = DynamicCache(config=SMALL)
        for t in range(24):
            model(ids[:, t : t + 1], past_key_values=cache)

    assert counted(decode) == pytest.approx(cost.forward_flops(shape, 24), rel=2e-3)  # the counter sees the rotation's angles, too
    assert cost.forward_flops(shape, 24) == pytest.approx(cost.forward_flops(shape, 10) + cost.forward_flops(shape, 14, before=10))


@pytest.mark.parametrize("lora", [0, 4])
def test_flops_of_training_are_those_counted(lora):
    """One row of 48 tokens. Attention without a fused kernel computes what it masks, too: the difference is known."""
    model = AutoModelForCausalLM.from_config(SMALL, attn_implementation="eager")
    if lora:
        model = cluster.get_peft_model(model, lora_config(lora))
        model.enable_input_require_grads()  # as with checkpointing; else the first layer needs no gradient of its input
    shape, n = cost.shape_of(model, SMALL), 48
    masked = 4 * shape.layers * shape.heads * shape.head_size * (n * n - n * (n + 1) / 2)
    ids = torch.arange(n)[None]
    got = counted(lambda: model(ids, labels=ids).loss.backward())
    assert got == pytest.approx(cost.training_flops(shape, [n], checkpointing=False) + 3 * masked, rel=5e-3)
    if not lora:
        model.train()
        model.gradient_checkpointing_enable()
        again = counted(lambda: model(ids, labels=ids, use_cache=False).loss.backward())
        head = 2 * SMALL.vocab_size * SMALL.hidden_size * n  # transformers does not compute it again; TRL does
        down = 2 * SMALL.intermediate_size * SMALL.hidden_size * n * shape.layers  # nor what nobody needs again, a layer's last product
        assert again + head + down == pytest.approx(cost.training_flops(shape, [n], checkpointing=True) + 4 * masked, rel=5e-3)


def test_bytes_of_the_cache_are_those_stored(small):
    model, shape = small
    cache = model.to(torch.bfloat16)(torch.arange(30).view(2, 15), past_key_values=DynamicCache(config=SMALL)).past_key_values
    model.float()
    stored = sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))
    assert stored == cost.kv_bytes(shape, 30) == 2 * 3 * 2 * 16 * 2 * 30
    assert cost.kv_bytes(shape_on_meta("Qwen2.5-7B-Instruct")[0], 1) == 57_344  # 2 x 28 layers x 4 heads x 128 x 2 bytes


def test_bytes_of_weights_gradients_and_optimizer_are_those_stored(small):
    model, shape = small
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.arange(9)[None]).logits.sum().backward()
    optimizer.step()
    moments = sum(t.nbytes for state in optimizer.state.values() for t in state.values() if t.numel() > 1)
    weights = sum(p.nbytes for p in model.parameters())
    assert cost.state_bytes(shape, 8, "none") == {"weights": weights, "gradients": weights, "optimizer": moments}
    for sharding in ("fsdp2", "zero3"):
        assert sum(cost.state_bytes(shape, 8, sharding).values()) == 16 * shape.parameters / 8
    lent = replace(shape, adapter=1000)
    assert sum(cost.state_bytes(lent, 4, "zero3").values()) == (2 * shape.parameters + 16 * 1000) / 4


@pytest.mark.parametrize("checkpointing", [False, True])
def test_bytes_of_activations_are_those_kept_for_backward(checkpointing):
    """Under autocast, without weights in bfloat16; measured outside a checkpoint, which keeps one layer's for a while."""
    config = qwen(layers=6, hidden=256, heads=8)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").train()
    shape, tokens, kept = cost.shape_of(model, config), 2 * 56, {}
    weights = {s for p in model.parameters() for s in (tuple(p.shape), tuple(p.shape)[::-1])}
    if checkpointing:
        model.gradient_checkpointing_enable()

    def keep(tensor):
        if tuple(tensor.shape) not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no other gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        model.model(torch.arange(tokens).view(2, 56), use_cache=False)
    stored = sum(t.untyped_storage().nbytes() for t in kept.values())
    expected = cost.activation_bytes(shape, tokens, checkpointing)
    if checkpointing:
        expected -= cost.activation_bytes(replace(shape, layers=1), tokens, False)
    last = 2 * tokens * 256 * 4  # of the norm behind the last layer
    assert stored - last == pytest.approx(expected, rel=0.03)


def test_lengths_of_an_arms_rows():
    """Of sesa: packed one list of sketches and G solutions; unpacked 2G rows, all as wide as the widest."""
    stages = [Stage(lists=1, rounds=3, prompt=10, tokens=4, gap=2), Stage(lists=3, rounds=1, prompt=20, tokens=50)]
    assert [s.packed for s in stages] == [[10 + 4 + 2 + 4 + 2 + 4], [70, 70, 70]]
    assert [s.prompts for s in stages] == [[10, 16, 22], [20, 20, 20]]
    assert [s.steps for s in stages] == [12, 50]
    assert cost.unpacked(stages) == [22 + 50] * 6
    task = SudokuTask(SudokuConfig(form="chat", train=4))
    for arm, shapes in (("parallel", [(5, 1)]), ("sequential", [(1, 5)]), ("sesa", [(1, 5), (5, 1)]), ("iid_sketches", [(5, 1), (5, 1)])):
        drawn = stages_of(task, Training(arm=arm, group_size=5), characters_per_token=3)
        assert [(s.lists, s.rounds) for s in drawn] == shapes
        assert drawn[-1].tokens == 512
    (lists,) = stages_of(task, Training(arm="sequential", group_size=5, list_length=2), characters_per_token=3)
    assert (lists.lists, lists.rounds) == (3, 2)


class Padded:
    """Writes a random direction, and blanks up to the limit of tokens, of three characters each."""

    def generate(self, prompts, *, seeds, stop, max_tokens, temperature, top_p, share):
        directions = [("Up", "Down", "Left", "Right")[seed % 4] for seed in seeds]
        return [Completion(f"<answer>{d}</answer>".ljust(3 * max_tokens - len(stop)), True) for d in directions]


@pytest.mark.parametrize("arm", ["parallel", "actions", "iid_actions"])
def test_an_agents_plan_is_a_bound_on_what_is_played(arm):
    task = Sokoban(SokobanConfig(form="chat", train=4))
    config, engine = Training(arm=arm, group_size=8), Padded()
    (stage,) = stages_of(task, config, characters_per_token=3)
    groups = config.sampler(engine, task, task.problems, config.sampling, seed=0)
    longest = max(len(r.turns[-1].prompt) / 3 + 512 for g in groups for r in g.rollouts)
    assert stage.lists == 8 and cost.unpacked([stage]) == [stage.packed[0]] * 8
    assert longest <= stage.packed[0] < (2.5 if arm == "actions" else 1.1) * longest  # games that last all turns, in the longest words


def test_decoding_is_bound_by_the_slower_of_memory_and_arithmetic():
    shape = shape_on_meta("Qwen2.5-7B-Instruct")[0]
    alone = cost.decode_seconds(shape, 1, 100, flops=1e15, bandwidth=1e12)
    assert alone == pytest.approx((2 * 7_615_616_512 + 57_344 * 100) / 1e12)
    assert cost.decode_seconds(shape, 10_000, 100, 1e15, 1e12) == pytest.approx(10_000 * cost.forward_flops(shape, 1, 100) / 1e15)
    assert cost.decode_seconds(shape, 1, 100, 1e15, 1e12, gpus=4) == pytest.approx(alone / 4)


# ------------------------------------------------------------------------------------------------------------- the plan


def dry(capsys, arguments: str = "") -> tuple[int, str, str]:
    """(exit code, output, errors)"""
    try:
        main(["--profile", "paper", "--dry-run", *arguments.split()])
        code = 0
    except SystemExit as e:
        code = e.code
    return code, *capsys.readouterr()


def number(pattern: str, text: str) -> float:
    return float(re.search(pattern, text)[1].replace(",", ""))


def test_the_papers_profile_fits(capsys):
    code, out, _ = dry(capsys)
    assert code == 0 and out.endswith("\nfits\n")
    assert "7,615,616,512 parameters" in out
    assert "8 problems x 32 rows = 256 = 8 processes x 8 accumulated x 4 at once; 400 updates in all" in out
    assert number(r"([\d.]+) GB per GPU  optimizer", out) == pytest.approx(12 * 7.6156 / 8, abs=0.05)
    parts = [float(gb) for gb in re.findall(r"([\d.]+) GB per GPU  ", out)]
    assert number(r"([\d.]+) GB per GPU of 80", out) == pytest.approx(sum(parts), abs=0.5) and len(parts) == 6
    width = int(number(r"a padded row (\d+) tokens", out))
    assert number(r"an update ([\d.e+]+)", out) == pytest.approx(8 * 7.07e9 * 256 * width, rel=0.05)  # and a little attention
    assert number(r"in all ([\d.]+) h", out) == pytest.approx(number(r"([\d.]+) s a step; in all", out) * 200 / 3600, abs=0.1)
    seconds = [float(s) for s in re.findall(r"time +([\d.]+) s a step  ", out)]
    assert number(r"([\d.]+) s a step; in all", out) == pytest.approx(sum(seconds), abs=0.3)


def test_72b_fits_no_node_and_the_remedies_do(capsys):
    code, out, _ = dry(capsys, "--model Qwen/Qwen2.5-72B-Instruct")
    assert code == 2 and "72,706,203,648 parameters" in out
    assert re.search(r"fails      memory: \d+ GB per GPU are needed, and 80 there", out) and "fails      vLLM (colocate)" in out
    flags = [line for line in re.findall(r"would fit  32 GPUs (.*)", out) if "lora" not in line]
    assert flags, out
    code, out, _ = dry(capsys, f"--model Qwen/Qwen2.5-72B-Instruct --accelerate zero3_4x8.yaml {flags[0]}")
    assert code == 0 and out.endswith("\nfits\n"), out
    assert "40 GPUs in all" in out  # the server's, too


@pytest.mark.parametrize("arguments, said", [
    ("--accelerate zero3_4x8.yaml", "make the problems of a step a multiple of 32"),
    ("--problems-per-step 12", "12 problems x 32 rows / 8 processes = 48 rows each, not whole groups of 32"),
    ("--accelerate none.yaml", "take a path, or one of fsdp2_1x8.yaml"),
    ("--model nobody/nothing", "Qwen2.5-72B-Instruct, Qwen2.5-7B-Instruct, or a folder"),
    ("--task chess", "no task 'chess'"),
])  # fmt: skip
def test_what_cannot_be_planned(capsys, arguments, said):
    code, _, err = dry(capsys, arguments)
    assert code == 2 and said in err


@pytest.mark.parametrize("arguments, said", [
    ("--accelerate fsdp2_1x8.yaml --vllm off", "FSDP needs vLLM"),
    ("--no-bf16", "--bf16 is False, and accelerate's file says True"),
    ("--vllm-tensor-parallel-size 3", "8 processes are no multiple of vllm_tensor_parallel_size 3"),
    ("--max-tokens 40000", "the model reads 32768"),
])  # fmt: skip
def test_what_does_not_hold(capsys, arguments, said):
    code, out, _ = dry(capsys, arguments)
    assert code == 2 and said in out and not out.endswith("\nfits\n")


@pytest.mark.parametrize("task, arm", [("sokoban", "actions"), ("frozen_lake", "parallel")])
def test_agents_are_planned_too(capsys, task, arm):
    code, out, _ = dry(capsys, f"--task {task} --arm {arm}")
    assert code == 0 and out.endswith("\nfits\n") and "8 problems x 16 rows = 128" in out and f"{arm} on {task}" in out


def test_agents_do_not_share_a_vllm_between_processes(tmp_path):
    from sesa.tasks.frozen_lake import FrozenLake, FrozenLakeConfig

    task, config = FrozenLake(FrozenLakeConfig(train=8)), Training(arm="parallel", problems_per_step=8)
    for how in ({"vllm": "server"}, {"vllm": "colocate", "vllm_tensor_parallel_size": 2}):
        with pytest.raises(ValueError, match="processes cannot share a vLLM"):
            trl_config(task, config, 0, tmp_path, 2, **how)


# ------------------------------------------------------------------------------------------------------------ the files


def test_accelerate_reads_its_files():
    for name, nodes, gpus, sharding in (
        ("zero3_1x8", 1, 8, "zero3"), ("zero3_4x8", 4, 32, "zero3"), ("fsdp2_1x8", 1, 8, "fsdp2"), ("fsdp2_4x8", 4, 32, "fsdp2"),
    ):  # fmt: skip
        place = read_placement(f"{name}.yaml")
        assert (place.nodes, place.gpus, place.sharding, place.bf16) == (nodes, gpus, sharding, True)
        assert load_config_from_file(str(CLUSTER / f"{name}.yaml")).num_processes == gpus


def test_every_number_of_the_profile_has_its_source():
    text = (CLUSTER / "paper.yaml").read_text()
    lines = [line for line in text.splitlines() if ": " in line and not line.startswith("#")]
    assert len(lines) > 30
    assert [line for line in lines if not re.search(r"# (paper|our choice|the same|data sheet|assumption|of the server|what is known)|gpu: ", line)] == []
    values, hardware = read_profile("paper", DEFAULTS)
    assert values["model"] == "Qwen/Qwen2.5-7B-Instruct" and hardware.gpu_gb == 80
    assert set(values) == set(yaml.safe_load(text)) - {"hardware"}


@pytest.mark.parametrize("text, said", [
    ("modell: x\n", "no option modell; there are task, model, arm"),
    ("hardware: {gpus: 8}\n", "no option gpus; there are gpu, gpu_gb"),
    ("steps: many\n", "steps is 'many', and should be like 200"),
    ("learning_rate: 1e-6\n", "should be like 0.0005 (YAML takes 1e-6 for a text: 1.0e-6)"),
    ("bf16: 1\n", "bf16 is 1, and should be like False"),
    ("- steps\n", "mine.yaml is no mapping"), ("steps: [\n", "mine.yaml is no mapping"), ("", "mine.yaml is no mapping"),
])  # fmt: skip
def test_a_profile_that_is_wrong(tmp_path, monkeypatch, capsys, text, said):
    monkeypatch.setattr(cluster, "CLUSTER", tmp_path)
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(SystemExit) as ended:
        main(["--profile", "mine", "--dry-run"])
    assert ended.value.code == 2 and said in capsys.readouterr().err
    with pytest.raises(SystemExit, match="^ValueError: "):  # without --dry-run, too, and before anything is loaded
        main(["--profile", "mine"])


def test_a_profile_that_is_not_there(capsys):
    with pytest.raises(SystemExit):
        main(["--profile", "nobody", "--dry-run"])
    assert "no profile 'nobody' in cluster/: take one of paper" in capsys.readouterr().err


def slurm(tmp_path, nodes: str, code: int = 0) -> subprocess.CompletedProcess:
    """The job's script, with stand-ins for SLURM's commands and for Python."""
    stand_ins = {
        "srun": "shift 4; while [ $# -gt 0 ]; do echo \"<$1>\"; shift; done",
        "scontrol": "echo first; echo second",
        "python": f"echo 'launch     cluster/x.yaml 4 32'; exit {code}",
    }
    for name, body in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    told = {"SLURM_JOB_NUM_NODES": nodes, "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_SUBMIT_DIR": str(CLUSTER.parent)}
    environment = os.environ | told | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": str(tmp_path / "python")}
    command = ["bash", str(CLUSTER / "slurm.sh"), "paper", "runs/x y", "--steps", "3"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_the_job_starts_what_was_planned(tmp_path):
    done = slurm(tmp_path, "4")
    assert done.returncode == 0, done.stderr
    given = re.findall("<(.*)>", done.stdout)
    assert given == ["launch", "--profile", "paper", "--output", "runs/x y", "--steps", "3"]
    refused = slurm(tmp_path, "1")
    assert refused.returncode == 2 and "is for 4 nodes, and the job has 1: sbatch --nodes 4" in refused.stderr
    assert slurm(tmp_path, "4", code=2).returncode == 2
