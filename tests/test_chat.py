"""Chat templates: prompts of tasks, translated, against what the template itself renders of the same conversation."""

import pickle
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from sesa.tasks import is_environment
from sesa.tasks.chat import Templated, template_of
from sesa.tasks.countdown import CountdownConfig, CountdownTask
from sesa.tasks.frozen_lake import FrozenLake, FrozenLakeConfig
from sesa.tasks.generated import END, SYSTEM
from tests.conftest import ROOT

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
SPECIAL = {
    "chatml": (CHATML, "<|endoftext|>", "<|im_end|>", ["<|im_start|>"]),
    "llama": (LLAMA, "<|begin_of_text|>", "<|eot_id|>", ["<|start_header_id|>", "<|end_header_id|>"]),
    "gemma": (GEMMA, "<bos>", "<end_of_turn>", ["<start_of_turn>"]),
}


def tokenizer_of(kind, template=None):
    """A byte-level tokenizer with the special tokens and the chat template of a family of models."""
    chat, begin, end, more = SPECIAL[kind]
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    more = {"additional_special_tokens": more}
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=begin, eos_token=end, clean_up_tokenization_spaces=False, **more)
    whole.chat_template = template or chat
    return whole


def rendered(tokenizer, kind, turns):
    """What the template makes of (role, text) turns, open for the assistant; without a system's role its text stands with the user's."""
    if kind == "gemma":
        turns = [("user", f"{turns[0][1]}\n\n{turns[1][1]}"), *turns[2:]]
    messages = [{"role": role, "content": text} for role, text in turns]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


@pytest.fixture(params=SPECIAL)
def kind(request):
    return request.param


@pytest.fixture
def tokenizer(kind):
    return tokenizer_of(kind)


COUNTDOWN = CountdownTask(CountdownConfig(form="chat", train=4, held_out=4))
LAKE = FrozenLake(FrozenLakeConfig(form="chat", train=4, held_out=4))
TEXT = st.text(st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters="\u2028\u2029\x85<>"), min_size=1).map(str.strip).filter(bool)


@given(st.lists(TEXT, max_size=3))
def test_a_growing_list_of_answers_is_the_conversation_that_the_template_renders(history):
    problem = COUNTDOWN.problems[0]
    for kind in SPECIAL:
        tokenizer = tokenizer_of(kind)
        task = Templated(COUNTDOWN, template_of(tokenizer))
        another = "Give another answer, different from all before."
        turns = [SYSTEM, ("user", f"{COUNTDOWN.instruction}\n\n{COUNTDOWN.question(problem)}")]
        for text in history:
            turns += [("assistant", text), ("user", another)]
        assert task.prompt(problem, history) == rendered(tokenizer, kind, turns)
        assert task.prompt(problem, history).startswith(task.prompt(problem, history[:-1]))  # only appended


def test_sketches_go_on_with_the_open_answer(tokenizer, kind):
    problem, task = COUNTDOWN.problems[0], Templated(COUNTDOWN, template_of(tokenizer))
    asked = COUNTDOWN.sketch_prompt(problem).split("<|im_start|>user\n")[1].split(END)[0]
    assert task.sketch_prompt(problem, ["3*7", "5+7"]) == rendered(tokenizer, kind, [SYSTEM, ("user", asked)]) + "1. 3*7\n2. 5+7\n3. "
    outline = f"{COUNTDOWN.instruction}\n\n{COUNTDOWN.question(problem)}\n\nFollow this outline: 3*7"
    assert task.expand_prompt(problem, "3*7") == rendered(tokenizer, kind, [SYSTEM, ("user", outline)])


def test_a_trajectory_turn_by_turn_is_the_conversation(tokenizer, kind):
    """What `sesa.sampling` joins: what an agent reads, what it writes, the stop, what it reads next."""
    task, problem = Templated(LAKE, template_of(tokenizer)), LAKE.problems[0]
    first = LAKE.reset(problem)
    answer = "<answer>Left</answer>"
    then = LAKE.step(problem, first, answer, 0).state

    def asked(state):
        return LAKE.observe(problem, state).split("<|im_start|>user\n")[1].split(END)[0]

    text = task.observe(problem, first) + answer + task.stop + task.observe(problem, then)
    turns = [SYSTEM, ("user", asked(first)), ("assistant", answer), ("user", asked(then))]
    assert text == rendered(tokenizer, kind, turns)
    proposed = task.observe(problem, first, [answer])
    again = [*turns[:3], ("user", "Propose something else to do here, different from all before.")]
    assert proposed == rendered(tokenizer, kind, again)


def test_chatml_is_left_as_it_is():
    template, problem = template_of(tokenizer_of("chatml")), COUNTDOWN.problems[0]
    assert template.stop == COUNTDOWN.stop == END
    assert template.translate(COUNTDOWN.prompt(problem, ["a", "b"])) == COUNTDOWN.prompt(problem, ["a", "b"])


def test_what_a_task_is_stays(tokenizer):
    game, lake = Templated(COUNTDOWN, template_of(tokenizer)), Templated(LAKE, template_of(tokenizer))
    assert is_environment(lake) and not is_environment(game)
    assert game.problems is COUNTDOWN.problems and game.max_tokens == COUNTDOWN.max_tokens and game.stop == tokenizer.eos_token
    assert pickle.loads(pickle.dumps(game)).prompt(game.problems[0]) == game.prompt(game.problems[0])
    with pytest.raises(AttributeError):
        game.reset


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "no chat template"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "not known here"),
        ("{{ messages[0].content }}", "not known here"),
        ("{{ raise_exception('tools only') }}", "renders no conversation: tools only"),
        ("{{ now().strftime('%Y') }}" + CHATML, "renders no conversation: 'now' is undefined"),
    ],
)
def test_a_template_that_cannot_be_read_is_said(template, message):
    tokenizer = tokenizer_of("llama", template or LLAMA)
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=message):
        template_of(tokenizer)


DATED = (ROOT / "tests" / "cases" / "10_template_with_todays_date.txt").read_text()
NOW = "{{ strftime_now('%d %B %Y, %H:%M') }}"
DATES = [
    DATED,
    CHATML.replace("{{ m.role }}\n", "{{ m.role }}\n{% if loop.first %}Today is " + NOW + ".\n{% endif %}", 1),
    LLAMA.replace("{{ bos_token }}", "{{ bos_token }}{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}", 1),
    "{% set day = strftime_now('%Y-%m-%d') if strftime_now is defined else 'none' %}{{ day }}" + CHATML,
    "{% macro today() %}{{ strftime_now('%A') }}{% endmacro %}{{ today() }}" + CHATML,
    "{% set ns = namespace(now=strftime_now) %}{{ ns.now('%j') }}" + CHATML,
    "{% if datetime is defined %}{{ datetime.now() }}{% endif %}" + CHATML,
    "{{ raise_exception('no system') if messages[0].role == 'system' }}" + NOW + CHATML,
]


@pytest.mark.parametrize("template", DATES)
def test_two_days_render_the_same(monkeypatch, template):
    """And what others render shows the day still."""
    found, shown = [], []
    for day in (datetime(2025, 3, 1, 9), datetime(2026, 11, 27, 17)):
        clock = type("Clock", (datetime,), {"now": classmethod(lambda cls, tz=None, day=day: day)})
        monkeypatch.setattr(chat_template_utils, "datetime", clock)
        tokenizer = tokenizer_of("llama" if "eot_id" in template else "chatml", template)
        found.append(template_of(tokenizer))
        shown.append(tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False))
    assert found[0] == found[1]
    assert (shown[0] != shown[1]) == ("strftime_now" in template)


def test_the_day_that_a_template_shows():
    assert template_of(tokenizer_of("chatml", DATED)).head == "<|im_start|>system\nToday is 26 July 2024.\n"
    assert template_of(tokenizer_of("llama", DATES[2])).head.startswith("<|begin_of_text|>26 Jul 2024")


def test_an_end_of_turn_that_is_special_by_its_token_alone():
    """As Gemma 3's: the tokenizer's own end is another."""
    tokenizer = tokenizer_of("gemma")
    tokenizer.eos_token = "<eos>"
    tokenizer.add_tokens([AddedToken("<end_of_turn>", special=True)])
    assert template_of(tokenizer).stop == "<end_of_turn>"


def test_the_compact_form_has_no_template():
    with pytest.raises(ValueError, match="form='chat'"):
        Templated(CountdownTask(CountdownConfig(train=4, held_out=4)), template_of(tokenizer_of("llama")))
