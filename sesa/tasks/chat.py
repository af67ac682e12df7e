"""Tasks with a model's own chat template.

Tasks write their chat form in ChatML, which Qwen and SmolLM2 read. `Templated` says the same in any other template,
Llama's or Gemma's, by exchanging what stands between two messages. So a longer history still only appends, and a list
or a trajectory is still one sequence. What a template does to messages beyond that (Qwen3 takes the thoughts out of
earlier turns) is not done.  (Our choice.)
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from unittest.mock import patch

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from sesa.tasks.generated import END

# Where a template shows the day: a run that resumes tomorrow must see the same prompts. (Llama 3's own default.)
DAY = datetime(2024, 7, 26)
TURN = f"{END}\n<|im_start|>%s\n"  # from one message to the next, in ChatML


@dataclass(frozen=True)
class Template:
    """What a chat template writes around messages."""

    head: str  # before the system message
    system_user: str  # between the system message and the first of the user, and so on
    user_assistant: str
    assistant_user: str
    stop: str  # the token that ends an answer, the first of `assistant_user`

    def translate(self, text: str) -> str:
        """The same as this ChatML. text: a prompt, or what continues a trajectory, which begins after the stop."""
        begin = re.compile(rf"<\|im_start\|>system\n(.*?){re.escape(TURN % 'user')}", re.DOTALL)
        text = begin.sub(lambda m: f"{self.head}{m[1]}{self.system_user}", text, count=1)
        if text.startswith(after := (TURN % "user").removeprefix(END)):
            text = self.assistant_user.removeprefix(self.stop) + text[len(after) :]
        return text.replace(TURN % "assistant", self.user_assistant).replace(TURN % "user", self.assistant_user)


def template_of(tokenizer: PreTrainedTokenizerBase) -> Template:
    """The chat template of this tokenizer, read off a conversation that it renders, on the same day always. Without a
    role for the system, as Gemma's, that message stands at the top of the user's first.

    Raises:
        ValueError: it has no chat template, renders no such conversation, or closes an answer with no special token.
    """
    if not tokenizer.chat_template:
        raise ValueError(f"{tokenizer.name_or_path} has no chat template: take an instruction-tuned model")
    said = [("system", "SAIDBYSYSTEM"), ("user", "SAIDBYUSER"), ("assistant", "SAIDBYASSISTANT"), ("user", "SAIDNEXT")]
    messages = [{"role": role, "content": text} for role, text in said]
    try:
        text = _rendered(tokenizer, messages)
    except TemplateError:
        messages[1]["content"] = "SAIDBYSYSTEM\n\nSAIDBYUSER"
        try:
            text = _rendered(tokenizer, messages[1:])
        except TemplateError as e:
            raise ValueError(f"the chat template of {tokenizer.name_or_path} renders no conversation: {e}") from e
    parts = re.fullmatch("(.*)".join(["", *(text for _, text in said), ""]), text, re.DOTALL)
    special = {*tokenizer.all_special_ids, *(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)}
    ends = [i for i in tokenizer.encode(parts[4], add_special_tokens=False) if i in special] if parts else []
    stop = tokenizer.decode(ends[:1])
    if not parts or parts[3] != parts[5] or not ends or not parts[4].lstrip().startswith(stop):
        raise ValueError(f"the chat template of {tokenizer.name_or_path} is of a kind not known here: {text!r}")
    return Template(parts[1], parts[2], parts[3], parts[4].lstrip(), stop)


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    """The conversation on `DAY`. A template asks for the day by `strftime_now`, which transformers gives it and
    nobody can replace: so the clock that it reads stands still meanwhile."""
    clock = type("Clock", (datetime,), {"now": classmethod(lambda cls, tz=None: DAY)})
    how = {"tokenize": False, "add_generation_prompt": True, "date_string": DAY.strftime("%d %b %Y")}
    with patch.object(chat_template_utils, "datetime", clock):
        return tokenizer.apply_chat_template(messages, **how)


class Templated:
    """A task in the chat form, puzzle or agent, with a model's own chat template; for the members see `sesa.tasks`."""

    def __init__(self, task: Any, template: Template):
        if task.config.form != "chat":
            name = type(task).__name__
            raise ValueError(f"{name} must have the chat form for a model with a chat template: form='chat'")
        self.task, self.template = task, template
        self.stop = template.stop if task.stop == END else task.stop  # of a list, the end of its line

    def __getattr__(self, name: str) -> Any:
        if name == "task":  # not set yet, as while it is unpickled
            raise AttributeError(name)
        return getattr(self.task, name)

    def prompt(self, problem: Any, history: Sequence[str] = ()) -> str:
        return self.template.translate(self.task.prompt(problem, history))

    def sketch_prompt(self, problem: Any, history: Sequence[str] = ()) -> str:
        return self.template.translate(self.task.sketch_prompt(problem, history))

    def expand_prompt(self, problem: Any, sketch: str) -> str:
        return self.template.translate(self.task.expand_prompt(problem, sketch))

    def observe(self, problem: Any, state: Any, proposals: Sequence[str] = ()) -> str:
        return self.template.translate(self.task.observe(problem, state, proposals))

    def warm_start_texts(self, rng: np.random.Generator, n: int) -> list[tuple[str, ...]]:
        """Prompts in the template, and completions that end with its stop."""

        def said(part: str, completes: bool) -> str:
            return part.replace(END, self.stop) if completes else self.template.translate(part)

        texts = self.task.warm_start_texts(rng, n)
        return [tuple(said(part, i % 2 == 1) for i, part in enumerate(text)) for text in texts]
