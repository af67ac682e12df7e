"""What `cluster/` says of a run on many GPUs: the profile, the hardware and its placement, and the shapes of well-known models."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.cache_utils import DynamicLayer

from sesa.cost import Shape, linear_parameters, shape_of
from sesa.runs import ROOT

CLUSTER = ROOT / "cluster"


@dataclass(frozen=True)
class Hardware:
    """The section `hardware` of a profile: one GPU, and what we assume of it. All our choice but the data sheet's."""

    gpu: str = "H100 SXM"
    gpu_gb: float = 80.0
    tflops: float = 989.0  # bfloat16, dense: the data sheet's
    bandwidth_gb: float = 3350.0  # of its memory, GB per second: the data sheet's
    vllm_gpus: int = 8  # of the server, beside those of training; for --vllm server
    mfu: float = 0.35  # the share of `tflops` that training and prefill reach
    bandwidth_use: float = 0.6  # the share of `bandwidth_gb` that decoding reaches
    transformers_ms: float = 30.0  # a decoding step takes at least so long without vLLM: kernels are launched one by one
    reserve_gb: float = 6.0  # per GPU, for CUDA, NCCL and fragments
    characters_per_token: float = 3.0  # of prompts: English has about 4, digits have 1
    dollars_per_gpu_hour: float = 3.0


@dataclass(frozen=True)
class Placement:
    """What accelerate's file says."""

    path: Path
    nodes: int
    gpus: int  # of all nodes, one process on each
    sharding: str  # "zero3", "fsdp2" or "none"
    bf16: bool


def read_profile(name: str, options: dict[str, Any]) -> tuple[dict[str, Any], Hardware]:
    """`cluster/NAME.yaml`: defaults of the command's options, and its hardware. options: name -> default, which says the type.

    Raises:
        ValueError: there is no such profile, or it has keys or values that mean nothing.
    """
    path = CLUSTER / f"{name}.yaml"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in CLUSTER.glob("*.yaml") if "\nhardware:" in p.read_text(encoding="utf-8")))
        raise ValueError(f"no profile {name!r} in cluster/: take one of {there}")
    try:
        values = dict(yaml.safe_load(path.read_text(encoding="utf-8")))
        hardware = dict(values.pop("hardware", {}))
    except (yaml.YAMLError, TypeError, ValueError) as e:
        raise ValueError(f"{path.name} is no mapping of options to values, with one more for hardware: {e}") from e
    for given, known in ((values, options), (hardware, {f.name: f.default for f in fields(Hardware)})):
        if unknown := [str(key) for key in given if key not in known]:
            raise ValueError(f"{path.name}: no option {', '.join(unknown)}; there are {', '.join(known)}")
        for key, value in given.items():
            kind = type(known[key])
            if type(value) is not kind and (kind, type(value)) not in ((float, int), (type(ROOT), str)):
                raise ValueError(f"{path.name}: {key} is {value!r}, and should be like {known[key]!r} (YAML takes 1e-6 for a text: 1.0e-6)")
    return values, Hardware(**hardware)


def read_placement(name: str) -> Placement:
    """Raises ValueError: no such file in place or in cluster/, or of a kind that is not planned here."""
    if (path := next((p for p in (Path(name), CLUSTER / name) if p.is_file()), None)) is None:
        raise ValueError(f"no accelerate file {name!r}: take a path, or one of {', '.join(sorted(p.name for p in CLUSTER.glob('*_*x*.yaml')))}")
    c = load_config_from_file(str(path))
    kind = getattr(c.distributed_type, "value", c.distributed_type)
    stage, version = c.deepspeed_config.get("zero_stage"), c.fsdp_config.get("fsdp_version")
    known = {("DEEPSPEED", 3): "zero3", ("FSDP", 2): "fsdp2", ("MULTI_GPU", None): "none", ("NO", None): "none"}
    sharding = known.get((kind, stage if kind == "DEEPSPEED" else version))
    if sharding is None:
        raise ValueError(f"{path.name}: {kind} of this kind is not planned here: take DeepSpeed's stage 3, FSDP 2, or no sharding")
    return Placement(path, c.num_machines, c.num_processes, sharding, c.mixed_precision == "bf16")


def lora_config(rank: int) -> LoraConfig:
    """An adapter of this rank on all linear layers, scaled by 2 (our choice)."""
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")


@cache
def shape_on_meta(name: str, lora: int = 0) -> tuple[Shape, int]:
    """(shape, context length) of a model in `cluster/models/`, else in a folder or on the hub.

    Raises:
        ValueError: it is in none of them, cannot be built, or costs something else than `sesa.cost` counts: layers that
            are not all alike, experts, convolutions, recurrences, windows, cross attention.
    """
    known = CLUSTER / "models" / f"{name.split('/')[-1]}.json"
    try:
        config = AutoConfig.from_pretrained(known if known.is_file() else name)
    except OSError as e:
        table = ", ".join(sorted(p.stem for p in known.parent.glob("*.json")))
        there = f"here or on the hub: take {table}, or a folder with its config.json"
        raise ValueError(f"no configuration of {name!r} {there}") from e
    except Exception as e:  # each kind of model checks its configuration in its own way
        raise ValueError(f"the configuration of {name!r} cannot be read: {e}") from e
    refused = f"{name!r} is a {config.model_type}: only decoders with dense layers, all alike, are counted here"
    sizes = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    needed = (*sizes, "vocab_size", "max_position_embeddings")
    if odd := [size for size in needed if type(getattr(config, size, None)) is not int]:
        raise ValueError(f"{refused}, and its configuration gives no number for {', '.join(odd)}")
    with torch.device("meta"):
        try:
            model, caches = AutoModelForCausalLM.from_config(config), DynamicCache(config=config).layers
        except Exception as e:  # as above
            raise ValueError(f"{refused}, and this one cannot be built: {e}") from e
        shape, context = shape_of(model, config), config.max_position_embeddings
        if odd := _uncounted(model, shape, caches, context):
            raise ValueError(f"{refused} (as Llama's and Qwen2's are), and this one has {odd}")
        return shape_of(get_peft_model(model, lora_config(lora)), config) if lora else shape, context


def _uncounted(model: nn.Module, shape: Shape, caches: Sequence[Any], context: int) -> str:
    """What the closed forms of `sesa.cost` do not count, found in the model itself; "": they count all of it.

    caches: what transformers keeps of a text for each layer."""
    whole = (cache for cache in caches if type(cache) is DynamicLayer or getattr(cache, "sliding_window", 0) >= context)
    if (n := len([*whole])) != shape.layers:
        return f"{n} of {shape.layers} layers that keep keys and values of the whole context"
    for name, module in model.named_modules():
        for of, weight in module.named_parameters(recurse=False):
            if weight.dim() > 1 and not isinstance(module, nn.Linear | nn.Embedding):
                return f"{name}.{of}, a weight of shape {tuple(weight.shape)} in no linear layer"
    s = shape
    alike = linear_parameters(s.layers, s.hidden, s.heads, s.kv_heads, s.head_size, s.intermediate, s.vocabulary)
    return "" if s.linear == alike else f"{s.linear:,} weights in its linear layers, where such a decoder has {alike:,}"
