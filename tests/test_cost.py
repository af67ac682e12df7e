"""Seconds of sampling: the list of forward calls against a real engine's, FLOPs against the counter, the fit, the forecast, its command."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from sesa import cost, sampling
from sesa.cluster import CLUSTER, Hardware, shape_on_meta
from sesa.cost import Call, Machine, Stage, calls_of, fitted, sampling_seconds, shape_from, stages_of_arm
from sesa.forecast import ARMS, largest_group, main, planned, split_over
from sesa.sampling import Sampling
from sesa.timing import EndlessEngine, drawing, random_lm, task_of_lengths
from tests.conftest import ROOT

QWEN = {"7B": 7_615_616_512, "14B": 14_770_033_664, "32B": 32_763_876_352, "72B": 72_706_203_648}  # as the hub counts them
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the variable is read once, when it is imported


@pytest.fixture(scope="module")
def lm():
    """(model, tokenizer), with attention whose products the counter sees."""
    model, tokenizer = random_lm(SMALL)
    model.set_attn_implementation("eager")
    return model, tokenizer


def drawn(lm, arm: str, cached: bool, g: int, lengths: tuple[int, int, int], problems: int):
    """What runs in a real engine, and the same in closed form."""
    run = drawing(getattr(sampling, arm), EndlessEngine(*lm, cached), task_of_lengths(problems, *lengths), Sampling(g), "x")
    return run, calls_of(stages_of_arm(arm, g, *lengths), problems, cached)


# ------------------------------------------------------------------------------------------------------------ the calls


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize(("g", "lengths", "problems"), [(4, (10, 3, 12), 3), (2, (5, 1, 1), 1), (3, (1, 2, 4), 2)])
def test_calls_are_those_of_the_engine(lm, arm, cached, g, lengths, problems):
    seen = []
    hook = lm[0].register_forward_pre_hook(lambda _, args, given: seen.append(tuple(given["input_ids"].shape)), with_kwargs=True)
    run, calls = drawn(lm, arm, cached, g, lengths, problems)
    run()
    hook.remove()
    assert seen == [(c.rows, c.tokens) for c in calls for _ in range(c.times)]


@pytest.mark.parametrize(("arm", "cached"), [("parallel", True), ("sequential", True), ("parallel", False), ("sequential", False), ("sesa", False)])
def test_flops_of_groups_are_those_counted(lm, arm, cached):
    """Attention without a fused kernel computes what it masks, too: n (n - 1) / 2 pairs of every row of n new tokens."""
    run, calls = drawn(lm, arm, cached, 4, (10, 3, 12), 3)
    shape = cost.shape_of(lm[0], lm[0].config)
    with FlopCounterMode(display=False) as counter:
        run()
    masked = sum(4 * shape.layers * shape.heads * shape.head_size * c.times * c.rows * c.tokens * (c.tokens - 1) / 2 for c in calls)
    assert counter.get_total_flops() == pytest.approx(sum(cost.call_flops(shape, c) for c in calls) + masked, rel=0.01)


def test_flops_of_kept_lists_are_those_of_one_text():
    """A cache that is kept computes every token of a list once, but for the last, which nobody needs; and the output matrix
    where a token is drawn, 5 times 11."""
    shape, stages = shape_from(2, 32, 4, 2, 48, 100), stages_of_arm("sequential", 5, 20, 3, 11)
    (length,) = stages[0].packed
    outputs, within = 2 * 32 * 100, replace(shape, linear=shape.linear - 32 * 100)
    called = sum(cost.call_flops(shape, c) for c in calls_of(stages, 1))
    assert called == pytest.approx(cost.forward_flops(within, length - 1) + 55 * outputs)
    assert cost.sampling_flops(shape, stages) == pytest.approx(cost.forward_flops(within, length) + 55 * outputs)


def test_cache_is_as_large_as_said(lm):
    """In float32, so twice as many bytes."""
    engine, stages = EndlessEngine(*lm), stages_of_arm("sequential", 4, 10, 3, 12)
    drawing(sampling.sequential, engine, task_of_lengths(3, 10, 3, 12), Sampling(4), "x")()
    stored = sum(t.nbytes for layer in engine._kept[0].cache.layers for t in (layer.keys, layer.values))
    (length,) = stages[0].packed
    assert stored == 3 * 2 * cost.kv_bytes(cost.shape_of(lm[0], lm[0].config), length - 1)


def test_an_arm_that_is_none():
    with pytest.raises(ValueError, match="no arm 'tree' has a plan: take one of parallel, sequential, iid_sketches, sesa"):
        stages_of_arm("tree", 2, 3, 4, 5)
    with pytest.raises(ValueError, match="at least 1, not 0, 3, 4, 5"):
        stages_of_arm("sesa", 0, 3, 4, 5)


def test_shape_from_numbers_is_that_of_the_model():
    config = LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48, vocab_size=100, tie_word_embeddings=False
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    assert shape_from(2, 32, 4, 2, 48, 100) == cost.shape_of(model, config)
    for wrong in ((2, 32, 5, 1, 48, 100), (2, 32, 4, 3, 48, 100), (0, 32, 4, 2, 48, 100)):
        with pytest.raises(ValueError, match="must divide"):
            shape_from(*wrong)


@pytest.mark.parametrize(("size", "parameters"), QWEN.items())
def test_shapes_of_qwen_are_the_public_ones(size, parameters):
    shape, context = shape_on_meta(f"Qwen/Qwen2.5-{size}-Instruct")
    assert (shape.parameters, context, shape.head_size, shape.vocabulary) == (parameters, 32768, 128, 152064)
    biases = shape.layers * (shape.heads + 2 * shape.kv_heads) * shape.head_size  # of queries, keys and values: Qwen has them, a Llama has not
    llama = shape_from(shape.layers, shape.hidden, shape.heads, shape.kv_heads, shape.intermediate, shape.vocabulary)
    assert replace(llama, parameters=llama.parameters + biases) == shape


# ---------------------------------------------------------------------------------------------------------- the seconds

SHAPE = shape_from(2, 32, 4, 2, 48, 100)
MACHINE = Machine(flops=2e9, bandwidth=1e9, overhead=1e-3, row=1e-5, start=2e-3, number=4)
size = st.integers(1, 40)


def seconds(arm, g, prompt, sketch, solution, problems=1, cached=True, machine=MACHINE):
    return sum(sampling_seconds(SHAPE, calls_of(stages_of_arm(arm, g, prompt, sketch, solution), problems, cached), machine).values())


def test_seconds_of_a_call_by_hand():
    call = Call(1, "prefill", rows=3, tokens=5, before=7)
    flops, traffic = 3 * (cost.forward_flops(SHAPE, 5, 7) - 4 * 2 * 32 * 100), 4 * SHAPE.parameters + 3 * 7 * 2 * cost.kv_bytes(SHAPE, 1)
    alone = max(flops / 2e9, traffic / 1e9)
    assert cost.call_seconds(SHAPE, call, MACHINE) == pytest.approx(alone + 1e-3 + 3e-5 + 2e-3)
    assert cost.call_seconds(SHAPE, call._replace(kind="decode", times=6), MACHINE) == pytest.approx(6 * (alone + 1e-3 + 3e-5))
    two = replace(MACHINE, gpus=2, reduce=1e-4, link=1e6)
    moved = 2 * 1 / 2 * 4 * 3 * 5 * 32  # a ring: each GPU sends and receives (n - 1) / n of the numbers, twice
    assert cost.call_seconds(SHAPE, call, two) == pytest.approx(alone / 2 + 2 * 2 * (1e-4 + moved / 1e6) + 1e-3 + 3e-5 + 2e-3)


@given(st.sampled_from(ARMS), size, size, size, size, st.integers(1, 9), st.booleans(), st.integers(0, 4))
def test_more_of_anything_takes_no_less_time(arm, g, prompt, sketch, solution, problems, cached, what):
    sizes = [g, prompt, sketch, solution, problems]
    more = [n + (i == what) for i, n in enumerate(sizes)]
    assert seconds(arm, *more, cached) >= seconds(arm, *sizes, cached) * (1 - 1e-9)


@given(st.sampled_from(("sequential", "sesa")), size, size, size, size, st.integers(1, 9))
def test_a_kept_cache_spares_flops_and_never_adds_any(arm, g, prompt, sketch, solution, problems):
    stages = stages_of_arm(arm, g, prompt, sketch, solution)
    kept, naive = (sum(cost.call_flops(SHAPE, c) for c in calls_of(stages, problems, cached)) for cached in (True, False))
    assert kept <= naive * (1 + 1e-9) and (kept < naive or g == 1)


@given(st.integers(2, 40), size, st.integers(1, 40), st.integers(2, 40))
def test_the_overhead_of_sketches_lies_between_work_and_critical_path(g, prompt, sketch, solution):
    """Where only calls cost, it is the path; where only FLOPs of the weights cost, the tokens, and prompts beside."""
    latency = Machine(flops=1e30, bandwidth=1e30, overhead=1.0)
    ratio = seconds("sesa", g, prompt, sketch, solution, machine=latency) / (seconds("parallel", g, prompt, sketch, solution, machine=latency) - (prompt > 1))
    assert ratio == pytest.approx(1 + g * sketch / solution)
    calls = [c for arm in ("sesa", "parallel") for c in calls_of(stages_of_arm(arm, g, 1, sketch, solution))]
    written = [sum(c.rows * c.times for c in calls if c.kind == "decode" and c.stage == stage) for stage in (1, 2)]
    assert written == [g * (sketch - 1) + g * (solution - 1), g * (solution - 1)]


def test_the_fit_finds_the_constants_that_made_the_times():
    runs = [calls_of([Stage(1, 1, p, t)], r) for r in (1, 4, 16, 64, 256) for p in (4, 64, 512) for t in (1, 17)]
    found = fitted(SHAPE, runs, [sum(sampling_seconds(SHAPE, run, MACHINE).values()) for run in runs], number=4)
    for name in ("flops", "bandwidth", "overhead", "row", "start"):
        assert getattr(found, name) == pytest.approx(getattr(MACHINE, name), rel=0.1), name


# --------------------------------------------------------------------------------------------------------- the forecast

HARDWARE = Hardware()


def plan(model="7B", arm="sesa", g=8, prompt=256, sketch=32, solution=1024, problems=32, gpus=8, **how):
    shape, context = shape_on_meta(f"Qwen/Qwen2.5-{model}-Instruct")
    return planned(shape, context, stages_of_arm(arm, g, prompt, sketch, solution), problems, HARDWARE, gpus, **how)


def test_gpus_share_a_model_or_hold_replicas():
    assert [(p.tensor_parallel, p.replicas) for p in (plan("7B"), plan("72B"), plan("72B", gpus=64), plan("7B", gpus=1))] == [(4, 2), (8, 1), (8, 8), (1, 1)]
    assert [split_over(shape_on_meta("Qwen2.5-14B-Instruct")[0], n) for n in (1, 2, 6, 8, 12, 64)] == [1, 2, 2, 8, 4, 8]
    for n in (0, 3, 16):
        with pytest.raises(ValueError, match=f"{n} GPUs of 64 cannot share 64 heads"):
            plan("72B", gpus=64, tensor_parallel=n)
    with pytest.raises(ValueError, match="at least 1, not 0 and 8"):
        plan(problems=0)


def test_what_does_not_fit_is_said():
    assert "memory" in plan("72B", gpus=1).fails and plan("72B", gpus=8).fails == ""
    assert plan("7B", arm="sequential", g=32).fails == "context: a row has 33,055 tokens, and the model reads 32,768"
    assert [largest_group(32768, 256, t) for t in (1024, 32, 40_000)] == [31, 985, 0]
    assert plan("7B", arm="sequential", g=31).fails == ""


def test_one_gpu_and_room_enough_is_the_sum_of_calls():
    p, (shape, _) = plan(gpus=1, problems=4), shape_on_meta("Qwen/Qwen2.5-7B-Instruct")
    machine = Machine(989e12 * 0.35, 3350e9 * 0.6, 1e-3)
    assert p.seconds == pytest.approx(sampling_seconds(shape, calls_of(stages_of_arm("sesa", 8, 256, 32, 1024), 4), machine))
    assert p.total == pytest.approx(sum(p.seconds.values())) and p.path == 8 * 32 + 1024
    assert p.of_sketches == pytest.approx(p.seconds[1, "prefill"] + p.seconds[1, "decode"])
    assert plan(arm="parallel").of_sketches == 0


def test_rows_beyond_the_cache_take_turns():
    """Twice as many rows then take twice as long."""
    room = plan("32B", arm="parallel", gpus=1).rows_at_once
    full, double = (plan("32B", arm="parallel", gpus=1, g=1, problems=n) for n in (4 * room, 8 * room))
    assert double.total == pytest.approx(2 * full.total, rel=0.02)


def test_replicas_divide_the_work():
    one, eight = (plan(gpus=n, problems=512, tensor_parallel=1) for n in (1, 8))
    alone = plan(gpus=1, problems=64, tensor_parallel=1)
    assert eight.total == pytest.approx(alone.total) and one.total > 7 * eight.total


# ---------------------------------------------------------------------------------------------------------- the command


def told(capsys, arguments: str) -> tuple[int, str]:
    code = main(arguments.split())
    return code, capsys.readouterr().out


def test_the_command_prints_what_the_function_gives(capsys):
    code, out = told(capsys, "--model Qwen/Qwen2.5-14B-Instruct --gpus 8 --group-size 16 --sketch-tokens 64 --solution-tokens 512 --problems 7")
    assert code == 0 and "14,770,033,664 parameters" in out and "hardware   1 x 8 GPUs, prefix caching on" in out
    one = plan("14B", "parallel", 16, 256, 64, 512, 7)
    for arm in ARMS:
        p = plan("14B", arm, 16, 256, 64, 512, 7)
        cells = re.search(rf"^{arm} +(.*)$", out, re.MULTILINE)[1].replace(",", "").split()
        want = [f"{p.total:.2f}", f"{p.of_sketches:.2f}", f"{p.total / one.total:.3f}", f"{7 * 16 / p.total:.2f}", str(p.path), f"{p.flops / 1e15:.3f}"]
        assert cells == [*want, str(p.longest), str(p.rows_at_once)]


def test_the_command_takes_options_of_caching_hardware_and_context(capsys):
    code, out = told(capsys, "--gpus 4 --no-prefix-caching --tflops 312 --bandwidth-gb 2039 --overhead-ms 2 --tensor-parallel 2")
    hardware, (shape, context) = replace(HARDWARE, tflops=312.0, bandwidth_gb=2039.0), shape_on_meta("Qwen/Qwen2.5-7B-Instruct")
    p = planned(shape, context, stages_of_arm("sesa", 8, 256, 32, 1024), 32, hardware, 4, False, tensor_parallel=2, overhead=2e-3)
    assert code == 0 and re.search(rf"^sesa +{p.total:.2f} ", out, re.MULTILINE) and "tflops 312, bandwidth_gb 2039" in out
    code, out = told(capsys, "--context 4096")
    assert code == 2 and "fails      sequential: context: a row has 8,455 tokens, and the model reads 4,096" in out and re.search("^sesa ", out, re.MULTILINE)


def test_the_command_knows_a_folder_and_a_shape(capsys, tmp_path):
    (tmp_path / "config.json").write_text((CLUSTER / "models" / "Qwen2.5-32B-Instruct.json").read_text())
    assert told(capsys, f"--model {tmp_path}")[1].splitlines()[1:] == told(capsys, "--model Qwen/Qwen2.5-32B-Instruct")[1].splitlines()[1:]
    config = json.loads((tmp_path / "config.json").read_text())
    names = {"layers": "num_hidden_layers", "hidden": "hidden_size", "heads": "num_attention_heads", "kv-heads": "num_key_value_heads"}
    names |= {"intermediate": "intermediate_size", "vocabulary": "vocab_size"}
    code, out = told(capsys, " ".join(f"--{option} {config[name]}" for option, name in names.items()))
    assert code == 0 and "a Llama of this shape: 32,763,4" in out  # 64 x 7,168 biases fewer


@pytest.mark.parametrize(("arguments", "said"), [
    ("--model nobody/nothing", "no configuration of 'nobody/nothing' here or on the hub: take Qwen2.5-14B-Instruct, Qwen2.5-32B-Instruct"),
    ("--layers 3", "a shape needs all of layers, hidden, heads"),
    ("--gpus 0", "at least 1, not 32 and 0"), ("--group-size 0", "at least 1, not 0"), ("--sketch-tokens -1", "at least 1"),
    ("--gpus 8 --tensor-parallel 8", "8 GPUs of 8 cannot share 28 heads"), ("--mfu 0", "must be above 0"), ("--tflops nan", "all of them finite"),
    ("--mfu 5", "at most 1"), ("--context 0", "at least 1 token"), ("--reserve-gb -1", "reserve and overhead not below"),
    ("--gpus 7 --tensor-parallel 7", "cannot share 28 heads, 4 key-value heads and 18944"), ("--gpus x", "invalid int value"),
])  # fmt: skip
def test_what_the_command_refuses(capsys, arguments, said):
    with pytest.raises(SystemExit) as ended:
        main(arguments.split())
    assert ended.value.code == 2 and said in capsys.readouterr().err


TINY = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128}
TINY |= {"vocab_size": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LFM2 = json.loads((ROOT / "tests" / "cases" / "13_lfm2_config.json").read_text())


def tiny(kind: str, **more) -> dict:
    return TINY | {"model_type": kind, **more}


def folder(tmp_path, config: dict) -> str:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return str(tmp_path)


@pytest.mark.parametrize(("config", "said"), [
    (LFM2, "6 of 16 layers that keep keys and values"),
    ({"model_type": "gpt2"}, "no number for num_key_value_heads, intermediate_size"),
    (tiny("gpt2"), "in no linear layer"),
    (tiny("starcoder2", sliding_window=None), "weights in its linear layers, where such a decoder has"),  # two products, not three
    (tiny("mixtral"), "a weight of shape (8, 64) in no linear layer"),
    (tiny("qwen2_moe"), "in no linear layer"),
    (tiny("deepseek_v3", num_key_value_heads=4), "in no linear layer"),
    (tiny("jamba"), "0 of 4 layers"),
    (tiny("bamba"), "0 of 4 layers"),
    (tiny("falcon_h1"), "0 of 4 layers"),
    (tiny("mamba"), "no number for max_position_embeddings"),
    (tiny("qwen3_next", head_dim=16), "1 of 4 layers"),
    (tiny("gemma2", head_dim=16), "2 of 4 layers"),
    (tiny("gemma3_text", head_dim=16), "0 of 4 layers"),
    (tiny("gemma3n_text"), "no number for intermediate_size"),
    (tiny("gpt_oss"), "2 of 4 layers"),
    (tiny("mistral", sliding_window=4096), "0 of 4 layers"),
    (tiny("qwen2", use_sliding_window=True, sliding_window=64, max_window_layers=3), "3 of 4 layers"),
    (tiny("bart", max_position_embeddings=64), "weights in its linear layers"),  # cross attention
    (tiny("nobodys"), "cannot be read"),
    (tiny("qwen2", layer_types=["full_attention"]), "cannot be read"),
])  # fmt: skip
def test_models_of_another_kind_are_refused(capsys, tmp_path, config, said):
    with pytest.raises(SystemExit) as ended:
        main(["--model", folder(tmp_path, config)])
    told = capsys.readouterr().err
    assert ended.value.code == 2 and said in told and ("only decoders with dense layers" in told or said == "cannot be read")


@pytest.mark.parametrize("config", [
    *map(tiny, ("llama", "qwen2", "olmo2", "granite", "phi3", "cohere", "stablelm")), tiny("qwen3", head_dim=32), tiny("gemma", head_dim=32),
    tiny("mistral", sliding_window=None), tiny("phi3", sliding_window=9999, max_position_embeddings=4096),
])  # fmt: skip
def test_models_that_are_counted_are_counted_right(tmp_path, config):
    """Parameters, FLOPs and cache of a run on the meta device. Attention there computes what it masks, too."""
    shape, _ = shape_on_meta(folder(tmp_path, config))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path), attn_implementation="eager")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            cache = model(torch.zeros(1, 48, dtype=torch.long)).past_key_values
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    masked = 4 * shape.layers * shape.heads * shape.head_size * 48 * 47 / 2
    assert counter.get_total_flops() == pytest.approx(cost.forward_flops(shape, 48) + masked, rel=5e-3)
    assert cost.HALF * sum(t.numel() for layer in cache.layers for t in (layer.keys, layer.values)) == cost.kv_bytes(shape, 48)


def test_it_is_a_command():
    done = subprocess.run([sys.executable, "-m", "sesa.cost", "--help"], cwd=CLUSTER.parent, capture_output=True, text=True)
    assert done.returncode == 0 and "--sketch-tokens" in done.stdout
