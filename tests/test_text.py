"""Tokenizers of many kinds: what a model reads is the text that the rollout holds, piece by piece, or the tokenizer is refused."""

import json
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sesa.engines.lines import LinesEngine
from sesa.engines.local import LocalEngine
from sesa.engines.text import Pieces
from sesa.models import text_loss_backward, text_probabilities, word_tokenizer
from sesa.packing import pack
from sesa.sampling import Sampling, sequential
from sesa.tasks import Grade
from tests.conftest import random_llama

CORPUS = ["map7 from Hunan\nChangsha\nGive another answer", "a list of  cities\n1. Hunan 2. Hebei\n\n", " begins with a space", "é ü 7 77 <answer>"] * 3
END = "<|im_end|>"
BYTES = [f"<0x{i:02X}>" for i in range(256)]


def trained(model, normalizer=None, before=None, decoder=None, trainer=trainers.BpeTrainer, **how) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(model)
    for name, part in (("normalizer", normalizer), ("pre_tokenizer", before), ("decoder", decoder)):
        if part is not None:
            setattr(tokenizer, name, part)
    tokenizer.train_from_iterator("".join(CORPUS).splitlines(), trainer(show_progress=False, **how))  # no token goes over a line's end
    if how.get("special_tokens") == BYTES:  # they are the bytes of what is in no other token, and must not be matched in a text
        state = json.loads(tokenizer.to_str())
        tokenizer = Tokenizer.from_str(json.dumps(state | {"added_tokens": []}))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, additional_special_tokens=["<|im_start|>"])


def llama2() -> PreTrainedTokenizerFast:
    """Llama 2, TinyLlama, Mistral 7B v0.1: a "▁" before all text, and no pre-tokenizer."""
    return trained(
        models.BPE(byte_fallback=True, fuse_unk=True),
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        decoder=decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]),
        vocab_size=340, special_tokens=BYTES, max_token_length=8,
    )  # fmt: skip


def metaspace(scheme: str, unigram: bool = False) -> PreTrainedTokenizerFast:
    decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme)])
    parts = {"before": pre_tokenizers.Metaspace(prepend_scheme=scheme), "decoder": decoder}
    if unigram:
        return trained(models.Unigram(), trainer=trainers.UnigramTrainer, vocab_size=80, unk_token="<unk>", special_tokens=["<unk>", "\n"], **parts)
    return trained(models.BPE(byte_fallback=True, fuse_unk=True), vocab_size=340, special_tokens=BYTES, **parts)


def byte_level(**how) -> PreTrainedTokenizerFast:
    how = {"add_prefix_space": False, **how}
    alphabet = {"vocab_size": 300, "initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    return trained(models.BPE(), before=pre_tokenizers.ByteLevel(**how), decoder=decoders.ByteLevel(), **alphabet)


def llama3() -> PreTrainedTokenizerFast:
    """Qwen 2.5's and Llama 3's kind: split by an expression, then bytes; accents in one form."""
    before = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\p{N}{1,3}| ?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    alphabet = {"vocab_size": 300, "initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    return trained(models.BPE(), normalizers.NFC(), before, decoders.ByteLevel(), **alphabet)


KINDS = {
    "llama2": llama2,
    "metaspace always": lambda: metaspace("always"),
    "metaspace first": lambda: metaspace("first"),
    "metaspace never": lambda: metaspace("never"),
    "byte level": byte_level,
    "byte level, space before": lambda: byte_level(add_prefix_space=True),
    "llama3": llama3,
    "words": lambda: word_tokenizer(["map7", "from", "Hunan", "Give", "another", "answer", "7", "é"], r"\n| |\d|[^\W\d]+\d?"),
    "unigram": lambda: metaspace("always", unigram=True),
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param, KINDS[request.param]()


texts = st.lists(st.sampled_from(["map7", "from", "Hunan", " ", "  ", "\n", "\n\n", "Give", "é", "7", END, "<|im_start|>"]), max_size=6).map("".join)


def test_pieces_are_read_as_their_text(kind):
    """Whatever the pieces: together they decode to the whole text, and the first is what the tokenizer itself makes of it, if it can read it."""
    name, tokenizer = kind
    pieces, unknown = Pieces(tokenizer), tokenizer.convert_tokens_to_ids("<unk>") if name == "words" else None

    @settings(deadline=None, max_examples=60)
    @given(texts.filter(bool), st.lists(texts, max_size=3))
    def check(first, rest):
        parts = [pieces.encode(first), *(pieces.encode(text, after=True) for text in rest)]
        own = tokenizer.encode(first, add_special_tokens=False)
        if tokenizer.decode(own, clean_up_tokenization_spaces=False) == first:
            assert parts[0] == own
        for text, ids in zip(rest, parts[1:], strict=True):
            assert pieces.decode(ids) == text or unknown in ids
        # A blank that begins a text and one that the tokenizer adds may be one and the same token.
        if not (name.startswith(("llama2", "metaspace", "unigram")) and first.startswith(" ")) and not any(unknown in ids for ids in parts):
            assert tokenizer.decode(sum(parts, []), clean_up_tokenization_spaces=False) == first + "".join(rest)

    check()


class Lists:
    stop, max_tokens = "\n", 12
    problems = [SimpleNamespace(id="map7"), SimpleNamespace(id="Hunan")]

    def prompt(self, problem, history=()):
        return f"{problem.id} from Hunan\n" + "".join(f"{text}\nGive another answer\n" for text in history)

    def grade(self, problem, text):
        return Grade(0.0, text, False)


class WholeCharacters(LocalEngine):
    """It writes no bytes that are no text: how they are decoded depends on what stands beside them."""

    def allowed(self, logits, sampled, stop):
        broken = torch.tensor(["\ufffd" in text for text in self._pieces.tokens(logits.shape[1])])
        return logits.masked_fill(broken, -torch.inf)


def test_lists_are_read_as_their_prompts_and_are_one_packed_row(kind):
    name, tokenizer = kind
    engine = WholeCharacters(random_llama(len(tokenizer)), tokenizer)
    for group in sequential(engine, Lists(), Lists.problems, Sampling(6), seed=0):
        assert len(pack([r.completion for r in group.rollouts])) == 1
        for r in group.rollouts:
            assert tokenizer.decode(r.completion.prompt_ids, clean_up_tokenization_spaces=False) == r.prompt
        assert group.rollouts[0].completion.prompt_ids == tuple(Pieces(tokenizer).encode(group.rollouts[0].prompt))


def test_a_stop_behind_half_a_character_stops():
    """Llama 2 decodes a line's end beside half a character as part of what it cannot read."""
    tokenizer = llama2()
    half, end = tokenizer.convert_tokens_to_ids(["<0xC3>", "<0x0A>"])
    assert tokenizer.decode([half, end]) == "\ufffd\ufffd"

    class Half(LocalEngine):
        def allowed(self, logits, sampled, stop):
            return torch.full_like(logits, -torch.inf).index_fill(1, torch.tensor([half, end][len(sampled)]), 0.0)

    engine = Half(random_llama(len(tokenizer)), tokenizer)
    first = engine.generate(["map7"], seeds=[0], stop="\n", max_tokens=2)[0]
    assert (first.text, first.stopped, first.ids) == ("\ufffd", True, (half, end))
    second = engine.generate(["map7\ufffd\nGive"], seeds=[0], stop="\n", max_tokens=2)[0]
    assert second.prompt_ids == (*first.prompt_ids, half, end, *tokenizer.encode("xGive")[2:])


def test_llama_2_at_the_second_call():
    """shared/cases 09: no "▁" at the seam, and the ids of a whole encoding."""
    tokenizer = llama2()
    first, answer, more = "map7 from Hunan\n", "Changsha\n", "Give another answer"
    pieces = Pieces(tokenizer)
    assert tokenizer.decode(tokenizer.encode(first) + tokenizer.encode(more)) == first + " " + more  # what it does by itself
    ids = pieces.encode(first) + pieces.encode(answer, after=True) + pieces.encode(more, after=True)
    assert ids == tokenizer.encode(first + answer + more)
    assert tokenizer.decode(ids) == first + answer + more


def test_a_space_that_the_model_writes_first_is_in_its_text():
    tokenizer = llama2()
    lines = [" Hunan", "Hebei", "  7"]
    done = LinesEngine(random_llama(len(tokenizer)), tokenizer, lines).generate(["map7 from"] * 400, seeds=range(400), stop="\n", max_tokens=20)
    assert {c.text for c in done} == {*lines}
    assert {tokenizer.decode(c.prompt_ids + c.ids) for c in done} == {f"map7 from{line}\n" for line in lines}


def test_what_is_taught_and_what_is_scored_has_no_space_at_a_seam(reference):
    tokenizer = llama2()  # which has no token to pad with
    model = random_llama(len(tokenizer))
    head, tail = tokenizer.encode("map7 from Hunan\n"), tokenizer.encode("map7 from Hunan\nChangsha\n")
    alone = reference(model, head, tail[len(head) :])
    assert text_loss_backward(model, tokenizer, [("map7 from Hunan\n", "Changsha\n")]) == pytest.approx(-alone.mean().item(), rel=1e-4)
    assert text_probabilities(model, tokenizer, "map7 from Hunan\n", ["Changsha\n"])[0] == pytest.approx(alone.sum().exp().item(), rel=1e-4)


def strips_after_special_tokens() -> PreTrainedTokenizerFast:
    """Phi 3's."""
    tokenizer = llama2()
    tokenizer.add_tokens([AddedToken("<|user|>", special=True, rstrip=True)])
    return tokenizer


@pytest.mark.parametrize(
    "tokenizer, prompt",
    [
        (strips_after_special_tokens, "<|user|>\nHunan"),
        (lambda: trained(models.BPE(), normalizers.Lowercase(), pre_tokenizers.ByteLevel(False), decoders.ByteLevel(), vocab_size=300), "map7 from Hunan"),
        (lambda: trained(models.WordLevel(), None, pre_tokenizers.Whitespace(), trainer=trainers.WordLevelTrainer), "map7 from\nHunan"),
    ],
    ids=["strips", "lowercase", "drops line ends"],
)
def test_a_tokenizer_that_changes_text_is_refused(tokenizer, prompt):
    tokenizer = tokenizer()
    with pytest.raises(ValueError, match="this tokenizer changes what it reads, .*: take another model"):
        LocalEngine(random_llama(len(tokenizer)), tokenizer).generate([prompt], seeds=[0], stop="a", max_tokens=3)
    with pytest.raises(ValueError, match="changes what it reads"):
        Pieces(tokenizer).encode(prompt, after=True)
