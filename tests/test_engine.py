"""The local engine against plain transformers: what it writes, with which probabilities, and what it computes again."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    TopPLogitsWarper,
)

from sesa.engines.local import LocalEngine, sample
from sesa.packing import pack, packed_logprobs
from sesa.sampling import Sampling, sequential
from sesa.tasks import Grade
from tests.conftest import TokenCounter

WORDS = ["w1", "w1 w2 w3 w4 w5", "w3\nw4\nw5 w1 w2 w3 w4 w5", "w9 w9"]  # prompts of 1 to 15 tokens
CHARS = ["abc\n", "a\n", "hello\nhi\n", "o", "abc"]


def generate(engine, prompts, seeds=None, **options):
    options = {"stop": "\n", "max_tokens": 12, **options}
    return engine.generate(prompts, seeds=range(len(prompts)) if seeds is None else seeds, **options)


def assert_same(got, expected, atol=1e-5):
    """Equal completions, token for token."""
    assert [(c.text, c.ids, c.prompt_ids, c.stopped) for c in got] == [(c.text, c.ids, c.prompt_ids, c.stopped) for c in expected]
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=atol)


def small(model_class, config_class, vocabulary, **options):
    torch.manual_seed(0)
    return model_class(
        config_class(
            vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, pad_token_id=0, bos_token_id=None, eos_token_id=None,
            **{"initializer_range": 0.25, "max_position_embeddings": 512, **options},
        )
    ).eval()


# ------------------------------------------------------------------------------------------------------ what is written


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma", "gemma2"])
def test_greedy_equals_generate(family, word_lm):
    llama, tokenizer = word_lm
    model = {
        "llama": lambda: llama,
        "qwen2": lambda: small(Qwen2ForCausalLM, Qwen2Config, len(tokenizer)),
        "gemma": lambda: small(GemmaForCausalLM, GemmaConfig, len(tokenizer), head_dim=8, initializer_range=0.1),
        "gemma2": lambda: small(Gemma2ForCausalLM, Gemma2Config, len(tokenizer), head_dim=8, initializer_range=0.1),
    }[family]()
    done = generate(LocalEngine(model, tokenizer), WORDS, max_tokens=24, temperature=0)
    assert len({len(c.prompt_ids) for c in done}) > 2
    for prompt, c in zip(WORDS, done, strict=True):  # one by one: no padding on the side of generate
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24, eos_token_id=2, pad_token_id=0
        )
        assert c.prompt_ids + c.ids == tuple(out[0].tolist())
        assert c.stopped == (c.ids[-1] == 2)


@pytest.mark.parametrize("temperature", [0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_logprobs_equal_a_fresh_forward(temperature, top_p, word_lm, reference):
    model, tokenizer = word_lm
    for c in generate(LocalEngine(model, tokenizer), WORDS, temperature=temperature, top_p=top_p):
        with torch.no_grad():  # before top-p; greedy reports temperature 1
            expected = reference(model, c.prompt_ids, c.ids, temperature or 1.0)
        np.testing.assert_allclose(c.logprobs, expected, atol=1e-5)


def test_a_completion_ends_where_the_context_does(word_lm, reference):
    _, tokenizer = word_lm
    model = small(Qwen2ForCausalLM, Qwen2Config, len(tokenizer), max_position_embeddings=20)
    engine, free = LocalEngine(model, tokenizer), LocalEngine(small(Qwen2ForCausalLM, Qwen2Config, len(tokenizer)), tokenizer)
    done, unhindered = (generate(e, WORDS, max_tokens=24) for e in (engine, free))
    cut = 0
    for c, whole in zip(done, unhindered, strict=True):
        room = 20 - len(c.prompt_ids)
        assert c.ids == whole.ids[:room] and c.stopped == (whole.stopped and len(whole.ids) <= room)
        with torch.no_grad():
            np.testing.assert_allclose(c.logprobs, reference(model, c.prompt_ids, c.ids, 1.0), atol=1e-5)
        cut += len(whole.ids) > room
    assert cut >= 2
    for prompt in WORDS:
        length = len(tokenizer.encode(prompt, add_special_tokens=False))
        assert engine.fits(prompt, 20 - length) and not engine.fits(prompt, 21 - length)
    long = " ".join(["w1"] * 20)
    with pytest.raises(ValueError, match="39 tokens fills the model's context of 20"):
        generate(engine, [long])


# ------------------------------------------------------------------------------------------------------ sliding windows

EVERY_LAYER = {
    "mistral": lambda n, **o: small(MistralForCausalLM, MistralConfig, n, **o),
    "qwen2": lambda n, **o: small(Qwen2ForCausalLM, Qwen2Config, n, use_sliding_window=True, max_window_layers=0, **o),
}
SOME_LAYERS = {
    "gemma2": lambda n, **o: small(Gemma2ForCausalLM, Gemma2Config, n, head_dim=8, **o),
    "qwen2": lambda n, **o: small(Qwen2ForCausalLM, Qwen2Config, n, use_sliding_window=True, max_window_layers=1, **o),
    # Of a like kind: a chunk, a window by another name, and places counted from the columns.
    "llama4": lambda n, sliding_window: small(
        Llama4ForCausalLM, Llama4TextConfig, n, attention_chunk_size=sliding_window, head_dim=8, intermediate_size_mlp=64,
        num_local_experts=2, initializer_range=0.1,
    ),
    "gpt_neo": lambda n, sliding_window: small(
        GPTNeoForCausalLM, GPTNeoConfig, n, window_size=sliding_window, attention_types=[[["global", "local"], 1]],
    ),
    "mpt": lambda n, sliding_window: small(MptForCausalLM, MptConfig, n, d_model=32, n_heads=4, n_layers=2, max_seq_len=512),
}  # fmt: skip


class Letters:
    """Lists of lines; answers of at most 8 tokens."""

    stop, max_tokens = "\n", 8
    problems = [SimpleNamespace(id=i) for i in ("abc", "d", "efghi", "jk")]

    def prompt(self, problem, history=()):
        return f"{problem.id}\n" + "".join(f"{text}\n" for text in history)

    def grade(self, problem, text):
        return Grade(0.0, text, False)


def lists(engine, problems=Letters.problems, group_size=24, **options):
    groups = sequential(engine, Letters(), problems, Sampling(group_size, **options), seed=3)
    return [[(r.text, r.overflow, r.completion.prompt_ids, r.completion.ids) for r in group.rollouts] for group in groups]


@pytest.mark.parametrize("family", EVERY_LAYER)
@pytest.mark.parametrize("max_batch", [512, 3])
def test_lists_side_by_side_in_a_window_are_as_with_full_attention_in_a_context_of_its_length(family, max_batch, char_lm, reference):
    tokenizer = char_lm[1]
    with pytest.warns(UserWarning, match="sees 64 tokens .its sliding window., so that is its context here, not 4096: lists that fill it start anew"):
        engine = LocalEngine(EVERY_LAYER[family](len(tokenizer), sliding_window=64, max_position_embeddings=4096), tokenizer, max_batch)
    full = EVERY_LAYER[family](len(tokenizer), sliding_window=None, max_position_embeddings=64)
    done = lists(engine)
    assert done == lists(LocalEngine(full, tokenizer))
    assert done == [lists(engine, [problem])[0] for problem in Letters.problems]  # as with one problem
    assert all(2 <= sum(overflow for _, overflow, _, _ in group) < 12 for group in done)
    with pytest.raises(ValueError, match="67 tokens fills the model's context of 64"):
        generate(engine, ["abc" * 22 + "\n"])


@pytest.mark.parametrize("family", SOME_LAYERS)
@pytest.mark.parametrize("max_batch", [512, 3])
def test_a_window_of_some_layers_only_is_gone_beyond(family, max_batch, char_lm, reference, recwarn):
    """Rows of unlike length, shared beginnings, kept caches, branches: the probabilities are those of a plain forward pass over each row."""
    tokenizer = char_lm[1]
    model = SOME_LAYERS[family](len(tokenizer), sliding_window=6)
    engine, saved = LocalEngine(model, tokenizer, max_batch), 0
    for problems, options in ((Letters.problems, {}), (Letters.problems[::-1], {"list_length": 5}), (Letters.problems, {"window": 2})):
        with TokenCounter(model) as ours:
            done = sequential(engine, Letters(), problems, Sampling(8, **options), seed=3)
        for r in (r for group in done for r in group.rollouts):
            assert not r.overflow and tokenizer.decode(r.completion.prompt_ids) == r.prompt
            with torch.no_grad():
                expected = reference(model, r.completion.prompt_ids, r.completion.ids)
            np.testing.assert_allclose(r.completion.logprobs, expected, atol=1e-4)
        saved += sum(len(r.completion.prompt_ids) + len(r.completion.ids) for group in done for r in group.rollouts) - ours.tokens
    assert saved > 0  # caches are kept
    prompts = ["abcdefgh" * 3 + "\n", "abcdefgh" * 3 + "ab", "c", "abcdefgh" * 2]
    for share in ("xxxx", "xxyz", "abcd"):
        for c in generate(LocalEngine(model, tokenizer, max_batch), prompts, share=share):
            with torch.no_grad():
                np.testing.assert_allclose(c.logprobs, reference(model, c.prompt_ids, c.ids), atol=1e-4)
    assert not [w for w in recwarn if "window" in str(w.message)]


@pytest.mark.parametrize("model_class,config_class,options", [
    (MambaForCausalLM, MambaConfig, {}),
    (Lfm2ForCausalLM, Lfm2Config, {"layer_types": ["conv", "full_attention"]}),
])  # fmt: skip
def test_a_model_with_a_state_is_refused(model_class, config_class, options, char_lm):
    with pytest.raises(ValueError, match=f"{model_class.__name__} has layers with a state, which cannot be cut back"):
        LocalEngine(small(model_class, config_class, len(char_lm[1]), **options), char_lm[1])


def test_a_window_that_is_not_used_is_none(char_lm, recwarn):
    tokenizer = char_lm[1]
    model = small(Qwen2ForCausalLM, Qwen2Config, len(tokenizer), sliding_window=6, use_sliding_window=False)
    unused = small(MistralForCausalLM, MistralConfig, len(tokenizer), sliding_window=512)  # as long as the context
    assert lists(LocalEngine(model, tokenizer)) == lists(LocalEngine(small(Qwen2ForCausalLM, Qwen2Config, len(tokenizer)), tokenizer))
    assert LocalEngine(model, tokenizer).fits("abc", 500) and LocalEngine(unused, tokenizer).fits("abc", 500)
    assert not [w for w in recwarn if "window" in str(w.message)]


# ---------------------------------------------------------------------------------------------------------------- ends


@pytest.mark.parametrize("stop", ["\n", "!"])  # one token is "!\n": what stands beside the stop string, on either side
def test_stop_ends_and_is_not_in_the_text(stop, char_lm):
    model, tokenizer = char_lm
    done = generate(LocalEngine(model, tokenizer), CHARS * 60, seeds=range(300), max_tokens=30, stop=stop)
    for c in done:
        ends = [t for t, i in enumerate(c.ids) if stop in tokenizer.decode([i])]
        assert ends == ([len(c.ids) - 1] if c.stopped else [])  # the first token that contains it is the last
        assert c.stopped or len(c.ids) == 30
        assert c.text == tokenizer.decode(c.ids).partition(stop)[0]
    assert {c.stopped for c in done} == {True, False}
    assert stop == "!" or {c.text[-1:] == "!" for c in done if c.stopped} == {True, False}


def test_unequal_budgets_and_a_stop_on_the_last_token(char_lm):
    model, tokenizer = char_lm
    seeds = range(40)
    long = generate(LocalEngine(model, tokenizer), CHARS[:1] * 40, seeds=seeds, max_tokens=12)
    for budget in (1, 3):
        for a, b in zip(long, generate(LocalEngine(model, tokenizer), CHARS[:1] * 40, seeds, max_tokens=budget), strict=True):
            assert b.ids == a.ids[:budget] and b.stopped == (a.stopped and len(a.ids) <= budget)
    assert any(c.stopped and len(c.ids) == 3 for c in long)


@pytest.fixture(scope="module")
def eos_lm(char_lm):
    """`char_lm` with a 20th token, the end of the sequence, which it likes."""
    _, tokenizer = char_lm
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=copy.deepcopy(tokenizer.backend_tokenizer), eos_token="<eos>")
    return small(MistralForCausalLM, MistralConfig, len(tokenizer), sliding_window=None), tokenizer


def test_eos_ends_and_is_not_in_the_text(eos_lm):
    model, tokenizer = eos_lm
    done = generate(LocalEngine(model, tokenizer), CHARS[:1] * 200)
    ended = [c for c in done if c.ids[-1] == tokenizer.eos_token_id]
    assert len(ended) > 5
    for c in ended:
        assert c.stopped and c.text == tokenizer.decode(c.ids[:-1])
        assert c.ids.count(tokenizer.eos_token_id) == 1


def test_the_same_call_twice_after_an_empty_answer(eos_lm):
    """An answer of nothing but <eos> leaves the text as it was: it must not stand before the next answer to the same prompt."""
    model, tokenizer = eos_lm
    first = generate(LocalEngine(model, tokenizer), CHARS[:1] * 300)
    seed = next(s for s, c in enumerate(first) if c.ids == (tokenizer.eos_token_id,))
    engine = LocalEngine(model, tokenizer)
    assert_same(generate(engine, CHARS[:1], [seed]), first[seed : seed + 1])
    assert_same(generate(engine, CHARS[:1], [seed]), first[seed : seed + 1])


def test_lists_with_eos_equal_fresh_engines_and_are_one_packed_row(eos_lm, reference):
    model, tokenizer = eos_lm
    kept = LocalEngine(model, tokenizer)
    prompts, rows = ["a\n"] * 8, [[] for _ in range(8)]
    for turn in range(8):
        seeds = range(8 * turn, 8 * turn + 8)
        done = generate(kept, prompts, seeds)
        assert_same(done, generate(LocalEngine(model, tokenizer), prompts, seeds))
        prompts = [f"{p}{c.text}\n" for p, c in zip(prompts, done, strict=True)]
        for row, c in zip(rows, done, strict=True):
            row.append(c)
    ended = [c for row in rows for c in row[:-1] if c.ids[-1] == tokenizer.eos_token_id]
    assert len(ended) > 5
    assert_one_sequence_each(model, rows, len(ended), reference)
    alone = sum(len(c.prompt_ids) + len(c.ids) for c in rows[0])
    assert len(pack(rows[0])[0].ids) < alone / 3


@pytest.mark.parametrize("stop", ["ab", "!\n", "//k", "\n\n"])
def test_a_stop_string_of_several_tokens_stops(stop, char_lm):
    """Token by token as without it, up to the token that makes it complete; "!\\n" is one token as well, and "!\\n\\n" holds all of the last."""
    model, tokenizer = char_lm
    prompts, seeds = CHARS * 100, range(500)
    free = generate(LocalEngine(model, tokenizer), prompts, seeds, stop="abcdefg", max_tokens=20)
    done = generate(LocalEngine(model, tokenizer), prompts, seeds, stop=stop, max_tokens=20)
    for c, whole in zip(done, free, strict=True):
        n = next((n for n in range(1, 21) if stop in tokenizer.decode(whole.ids[:n])), 20)
        assert c.ids == whole.ids[:n] and len(c.logprobs) == n
        assert c.stopped == (stop in tokenizer.decode(whole.ids[:n]))
        assert c.text == tokenizer.decode(c.ids).partition(stop)[0]
    assert sum(c.stopped for c in done) > 3


def test_a_list_goes_on_before_a_token_that_holds_the_stop_and_more(char_lm, reference):
    """"!\\n" where "!" is the stop: what was written before it is kept, what stands after the stop is neither text nor history."""
    model, tokenizer = char_lm
    engine, prompts, rows, ended = LocalEngine(model, tokenizer), ["a"] * 8, [[] for _ in range(8)], 0
    for turn in range(6):
        done = generate(engine, prompts, range(8 * turn, 8 * turn + 8), stop="!", max_tokens=40)
        assert_same(done, generate(LocalEngine(model, tokenizer), prompts, range(8 * turn, 8 * turn + 8), stop="!", max_tokens=40))
        for row, c in zip(rows, done, strict=True):
            row.append(c)
            ended += c.stopped and turn < 5
        prompts = [f"{p}{c.text}\nb" for p, c in zip(prompts, done, strict=True)]
    assert ended > 5
    assert_one_sequence_each(model, rows, ended, reference)


def assert_one_sequence_each(model, rows, ended, reference):
    """Of every list one packed sequence, in which `ended` tokens all told are written but not read on, and all probabilities are right."""
    assert sum(len(s.ends) for row in rows for s in pack(row)) == ended
    for row in rows:
        assert len(pack(row)) == 1
        with torch.no_grad():
            logprobs, owner, _ = packed_logprobs(model, pack(row))
            assert owner.tolist() == [i for i, c in enumerate(row) for _ in c.ids]
            for i, c in enumerate(row):
                torch.testing.assert_close(logprobs[owner == i].double(), reference(model, c.prompt_ids, c.ids), atol=1e-5, rtol=0)
                torch.testing.assert_close(logprobs[owner == i], torch.tensor(c.logprobs), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "bad",
    [
        dict(seeds=[0]),
        dict(share=["x"]),
        dict(temperature=-0.1),
        dict(temperature=math.nan),
        dict(top_p=0),
        dict(top_p=1.1),
        dict(top_p=math.nan),
        dict(stop="@"),
        dict(prompts=["a", ""]),
    ],
    ids=str,
)
def test_bad_arguments(bad, char_lm):
    with pytest.raises(ValueError):
        generate(LocalEngine(*char_lm), bad.pop("prompts", ["a", "b"]), **bad)


def test_no_prompts(char_lm):
    assert generate(LocalEngine(*char_lm), []) == []


# ------------------------------------------------------------------------------------------------------------- sampling

# No two so close that rounding could swap them.
logits_strategy = st.lists(st.integers(-8000, 8000), min_size=2, max_size=12, unique=True).map(lambda x: torch.tensor([x]) / 1000)


def support(logits, temperature, top_p, n=4001):
    """All tokens that a fine grid of uniforms draws."""
    uniform = torch.linspace(0, 1 - 1e-9, n, dtype=torch.double)
    return set(sample(logits.expand(n, -1), uniform, temperature, top_p)[0].tolist())


@settings(deadline=None)
@given(logits_strategy, st.sampled_from([0.5, 1.0, 1.7]), st.floats(0.05, 0.999))
def test_top_p_support_is_that_of_transformers(logits, temperature, top_p):
    kept = TopPLogitsWarper(top_p)(None, logits / temperature)
    p = (logits / temperature).double().softmax(-1)[0]
    order = p.sort(descending=True).values.cumsum(0)
    assume((order - top_p).abs().min() > 1e-5)  # else the rounding of float32 decides
    expected = set(torch.isfinite(kept[0]).nonzero()[:, 0].tolist())
    drawn = support(logits, temperature, top_p)
    assert drawn <= expected
    share = p / sum(p[i] for i in expected)
    assert drawn >= {i for i in expected if share[i] > 1 / 2000}  # wider than two steps of the grid


def test_sample_inverts_the_distribution_function():
    p = torch.tensor([0.125, 0.0, 0.5, 0.25, 0.125], dtype=torch.double)
    uniform = torch.tensor([0, 0.1249, 0.1251, 0.6249, 0.6251, 0.8749, 0.8751, 1 - 2**-53], dtype=torch.double)
    token, logprob = sample(p.log().float().expand(8, -1), uniform, 1.0, 1.0)
    assert token.tolist() == [0, 0, 2, 2, 3, 3, 4, 4]
    torch.testing.assert_close(logprob.double().exp(), p[token])
    # top_p = 0.7: the two most likely stay, 2/3 and 1/3 of what is left; their log-probabilities stay as they were.
    uniform = torch.tensor([0, 0.666, 0.667, 1 - 2**-53], dtype=torch.double)
    token, logprob = sample(p.log().float().expand(4, -1), uniform, 1.0, 0.7)
    assert token.tolist() == [2, 2, 3, 3]
    torch.testing.assert_close(logprob.double().exp(), p[token])
    # Temperature 1/2 squares: 1/64, 0, 1/4, 1/16, 1/64 of 22/64.
    token, logprob = sample(p.log().float().expand(4, -1), torch.tensor([0.045, 0.046, 0.772, 0.954]).double(), 0.5, 1.0)
    assert token.tolist() == [0, 2, 2, 3]
    torch.testing.assert_close(logprob.exp(), torch.tensor([1, 16, 16, 4]) / 22)
    assert sample(p.log().float()[None], torch.tensor([0.99]), 0, 1.0)[0].tolist() == [2]


@pytest.mark.parametrize("temperature,top_p", [(1.0, 1.0), (0.6, 1.0), (1.5, 0.8)])
def test_sample_frequencies(temperature, top_p):
    n, size = 200_000, 12
    logits = torch.randn(1, size, generator=torch.Generator().manual_seed(1)) * 2
    uniform = torch.from_numpy(np.random.default_rng(2).random(n))
    drawn = sample(logits.expand(n, -1), uniform, temperature, top_p)[0]
    expected = TopPLogitsWarper(top_p)(None, logits / temperature).double().softmax(-1)[0]
    # Hoeffding and a union bound: fails by chance with probability 1e-9.
    bound = math.sqrt(math.log(2 * size / 1e-9) / (2 * n))
    assert (torch.bincount(drawn, minlength=size) / n - expected).abs().max() < bound


def test_engine_frequencies_of_two_tokens(char_lm, reference):
    model, tokenizer = char_lm
    n = 6000
    done = generate(LocalEngine(model, tokenizer), ["ab"] * n, max_tokens=2)
    counts = {}
    for c in done:
        counts[c.ids] = counts.get(c.ids, 0) + 1
    head, size = tokenizer.encode("ab"), len(tokenizer)
    pairs = [(0,), (1,)] + [(i, j) for i in range(2, size) for j in range(size)]  # tokens 0 and 1 hold the stop string
    with torch.no_grad():
        p = {pair: math.exp(reference(model, head, pair).sum()) for pair in pairs}
    assert sum(p.values()) == pytest.approx(1)
    bound = math.sqrt(math.log(2 * len(pairs) / 1e-9) / (2 * n))
    assert max(abs(counts.get(pair, 0) / n - p[pair]) for pair in pairs) < bound


def test_equal_seed_equal_completion_whatever_is_beside_it(char_lm):
    model, tokenizer = char_lm
    prompts, seeds = CHARS * 3, list(range(100, 115))
    alone = [generate(LocalEngine(model, tokenizer), [p], [s])[0] for p, s in zip(prompts, seeds, strict=True)]
    assert len({c.ids for c in alone}) > 10
    for max_batch in (512, 4, 1):
        assert_same(generate(LocalEngine(model, tokenizer, max_batch), prompts, seeds), alone)
    assert_same(generate(LocalEngine(model, tokenizer), prompts[::-1], seeds[::-1]), alone[::-1])


# --------------------------------------------------------------------------------------------------------- kept caches


def grow(engine, sizes, max_tokens=6, start=CHARS, **options):
    """Lists that grow: call t goes on with the first `sizes[t]` rows. Yields (prompts, seeds, completions) of every call."""
    prompts = [start[i % len(start)] for i in range(sizes[0])]
    for turn, size in enumerate(sizes):
        prompts, seeds = prompts[:size], [1000 * turn + i for i in range(size)]
        done = generate(engine, prompts, seeds, max_tokens=max_tokens, **options)
        yield prompts, seeds, done
        prompts = [f"{p}{c.text}\n" for p, c in zip(prompts, done, strict=True)]


@pytest.mark.parametrize("max_batch", [512, 3])
@pytest.mark.parametrize("max_tokens", [6, 1])
def test_kept_caches_change_nothing(max_tokens, max_batch, char_lm):
    model, tokenizer = char_lm
    lengths, stopped = set(), set()
    for prompts, seeds, done in grow(LocalEngine(model, tokenizer, max_batch), [8, 8, 7, 7, 2, 1], max_tokens):
        assert_same(done, generate(LocalEngine(model, tokenizer), prompts, seeds, max_tokens=max_tokens))
        lengths |= {len(c.ids) for c in done}
        stopped |= {c.stopped for c in done}
    assert stopped == {True, False} and (max_tokens == 1 or len(lengths) > 3)


@pytest.mark.parametrize("max_batch", [512, 2])
def test_only_new_tokens_are_computed(max_batch, char_lm):
    model, tokenizer = char_lm
    engine, fed = LocalEngine(model, tokenizer, max_batch), [0] * 6
    with TokenCounter(model) as counter:
        for turn, (_, _, done) in enumerate(grow(engine, [6, 6, 6, 3, 2], start=["abc\n", "a\n", "hello\n", "o", "hi", "fg\n"])):
            new = [len(c.prompt_ids) - f for c, f in zip(done, fed, strict=False)]
            assert turn == 0 or max(new) <= 2  # the token that stopped it, or the last one of a cut-off answer and its line end
            expected = 0
            for start in range(0, len(done), max_batch):
                part = slice(start, start + max_batch)
                expected += len(done[part]) * (max(new[part]) + max(len(c.ids) for c in done[part]) - 1)
            assert counter.tokens == expected
            fed = [len(c.prompt_ids) + len(c.ids) - 1 for c in done]  # a last token is computed only when its row goes on
            counter.tokens = 0


def test_a_call_that_does_not_continue_starts_anew(char_lm):
    model, tokenizer = char_lm
    engine = LocalEngine(model, tokenizer)
    first = generate(engine, CHARS)
    onward = [f"{p}{c.text}\n" for p, c in zip(CHARS, first, strict=True)]
    for prompts in (onward[::-1], CHARS, [*onward, "a"], onward[1:], [onward[0] + "b", "x" + onward[1][1:], *onward[2:]]):
        assert_same(generate(engine, prompts), generate(LocalEngine(model, tokenizer), prompts))


def test_where_rows_end_the_others_go_on_in_their_chunks(char_lm):
    """Those behind move up, over the borders of chunks, as trajectories do when one ends: still only what is new is computed."""
    model, tokenizer = char_lm
    engine, live = LocalEngine(model, tokenizer, max_batch=4), [(f"p{i // 3}", f"{text}\n") for i, text in enumerate((CHARS * 3)[:12])]
    for turn in range(4):
        labels, prompts = map(list, zip(*live, strict=True))
        seeds = [1000 * turn + i for i in range(len(live))]
        with TokenCounter(model) as counter:
            done = generate(engine, prompts, seeds, share=labels, max_tokens=2)
        assert turn == 0 or counter.tokens <= 4 * len(live)  # a new line, at most, and an answer
        assert_same(done, generate(LocalEngine(model, tokenizer), prompts, seeds, max_tokens=2), atol=1e-4)
        live = [(label, f"{prompt}{c.text}\n") for (label, prompt), c in zip(live, done, strict=True)]
        del live[turn], live[-1]


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def fused_adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)


def foreach_adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01, foreach=True)


@pytest.mark.parametrize("optimizer", [sgd, foreach_adamw, fused_adamw], ids=lambda f: f.__name__)
def test_a_weight_update_drops_kept_caches(optimizer, char_lm):
    model, tokenizer = copy.deepcopy(char_lm[0]), char_lm[1]
    optimizer = optimizer(model)
    engine = LocalEngine(model, tokenizer)
    for prompts, seeds, done in grow(engine, [4, 4, 4]):
        assert_same(done, generate(LocalEngine(model, tokenizer), prompts, seeds, max_tokens=6))
        model(input_ids=torch.tensor([[2, 3, 4, 5]])).logits.square().mean().backward()
        optimizer.step()


def test_loaded_weights_drop_kept_caches(char_lm):
    model, tokenizer = copy.deepcopy(char_lm[0]), char_lm[1]
    engine = LocalEngine(model, tokenizer)
    for prompts, seeds, done in grow(engine, [4, 4, 4]):
        assert_same(done, generate(LocalEngine(model, tokenizer), prompts, seeds, max_tokens=6))
        model.load_state_dict({name: 1.1 * w for name, w in model.state_dict().items()})


# ---------------------------------------------------------------------------------------------------- shared beginnings


def test_shared_beginnings_change_nothing_and_save_work(char_lm):
    model, tokenizer = char_lm
    a, b = "abcdefgh" * 5, "hijk" * 10  # 40 characters each
    prompts = [a + "\n", a + "abc", b, a, b + "ij", "c"]
    labels = ["a", "a", "b", "a", "b", "c"]
    with TokenCounter(model) as counter:
        apart = generate(LocalEngine(model, tokenizer), prompts, share=range(6))
        full, counter.tokens = counter.tokens, 0
        assert_same(generate(LocalEngine(model, tokenizer), prompts, share=labels), apart)
    decoding = 6 * (max(len(c.ids) for c in apart) - 1)
    assert full == 6 * 43 + decoding
    # One row a label of its common beginning, which leaves every row a token: 39, 39 and 0; then at most 4 new ones for each row.
    assert counter.tokens == 3 * 39 + 6 * 4 + decoding


def test_of_a_prompt_only_the_last_logits_are_computed(char_lm):
    model, tokenizer = char_lm
    computed = []
    hook = model.lm_head.register_forward_hook(lambda module, arguments, output: computed.append(tuple(output.shape[:-1])))
    try:
        generate(LocalEngine(model, tokenizer), ["abcdefgh" * 5 + text for text in ("a", "bc", "def")], share="xxx", max_tokens=4)
    finally:
        hook.remove()
    assert computed == [(1, 1)] + [(3, 1)] * (len(computed) - 1)


def test_equal_prompts_share_without_labels(char_lm):
    model, tokenizer = char_lm
    prompt = "abcdefgh" * 5
    alone = [generate(LocalEngine(model, tokenizer), [prompt], [s])[0] for s in range(5)]
    with TokenCounter(model) as counter:
        assert_same(generate(LocalEngine(model, tokenizer), [prompt] * 5), alone)
    assert counter.tokens == 39 + 5 + 5 * (max(len(c.ids) for c in alone) - 1)


def test_labels_of_unlike_prompts_share_nothing_wrong(char_lm):
    model, tokenizer = char_lm
    prompts = ["abc", "bcd", "abd", "a", "abc"]
    expected = generate(LocalEngine(model, tokenizer), prompts, share=range(5))
    for labels in ([0] * 5, [0, 1, 0, 1, 0], [0, 1, 0, 0, 0], [0, 1, 2, 3, 0]):
        assert_same(generate(LocalEngine(model, tokenizer), prompts, share=labels), expected)


# -------------------------------------------------------------------------------------------------------- with sampling


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_taught_lm_prompt_ids_decode_to_the_prompt(temperature, paths_lm):
    task, model, tokenizer = paths_lm
    cfg = Sampling(12, list_length=5, temperature=temperature)
    for group in sequential(LocalEngine(model, tokenizer), task, task.problems, cfg, seed=0):
        for r in group.rollouts:
            assert tokenizer.decode(r.completion.prompt_ids) == r.prompt


def test_free_text_prompt_ids_decode_to_the_prompt(word_lm, paths_lm):
    """Also when special tokens were written, and words that their text alone would be tokenized otherwise."""
    model, tokenizer = word_lm
    task = copy.copy(paths_lm[0])
    task.prompt = lambda problem, history=(): "w0\n" + "".join(f"{h}\n" for h in history)
    group = sequential(LocalEngine(model, tokenizer), task, task.problems[:1], Sampling(30), seed=0)[0]
    again = [tokenizer.encode(r.prompt) == list(r.completion.prompt_ids) for r in group.rollouts]
    assert not all(again)  # there is such text
    for r in group.rollouts:
        assert tokenizer.decode(r.completion.prompt_ids) == r.prompt


def test_windows_and_restarts_equal_fresh_engines(paths_lm):
    """With a window prompts do not continue: nothing of a kept cache may be taken for it."""
    task, model, tokenizer = paths_lm

    class Fresh:
        def generate(self, prompts, **options):
            return LocalEngine(model, tokenizer).generate(prompts, **options)

    for cfg in (Sampling(8, window=2), Sampling(8, list_length=3), Sampling(8, list_length=5, window=3, temperature=0.7)):
        kept = sequential(LocalEngine(model, tokenizer, max_batch=3), task, task.problems, cfg, seed=1)
        fresh = sequential(Fresh(), task, task.problems, cfg, seed=1)
        assert [[r.text for r in g.rollouts] for g in kept] == [[r.text for r in g.rollouts] for g in fresh]


# --------------------------------------------------------------------------------------------------------------- branches


@pytest.mark.parametrize("max_batch", [512, 4])
def test_a_tree_equals_fresh_engines_and_computes_only_new_tokens(max_batch, char_lm):
    """Each round some rows end, others branch in two: a sibling shares what was asked, not what was answered."""
    model, tokenizer = char_lm
    engine, rng, saved = LocalEngine(model, tokenizer, max_batch), np.random.default_rng(0), []
    live = [(f"p{i}", f"{CHARS[i]}") for i in range(5)]
    for turn in range(7):
        labels, prompts = map(list, zip(*live, strict=True))
        seeds = [1000 * turn + i for i in range(len(live))]
        with TokenCounter(model) as ours:
            done = generate(engine, prompts, seeds, share=labels)
        with TokenCounter(model) as fresh:
            expected = generate(LocalEngine(model, tokenizer, max_batch), prompts, seeds, share=labels)
        assert_same(done, expected, atol=1e-4)
        assert [tokenizer.decode(c.prompt_ids) for c in done] == prompts
        saved.append(fresh.tokens - ours.tokens)
        after = []
        for (label, prompt), c in zip(live, done, strict=True):
            after.append((label, f"{prompt}{c.text}\nb\n"))
            if rng.random() < 0.5 and len(live) < 12:
                after.append((label, f"{prompt}c\n"))
        live = after[turn % 2 :]
    assert len(live) > 6 and (max_batch == 4 or min(saved[2:]) > 0 and sum(saved) > 100)


def test_after_forgetting_all_is_computed_anew(char_lm):
    model, tokenizer = char_lm
    engine, prompts = LocalEngine(model, tokenizer), ["abc\n" * 5, "a\n", "hello\n" * 3]
    computed = []
    for _ in range(2):
        with TokenCounter(model) as counter:
            first = generate(engine, prompts, [1, 2, 3], max_tokens=30, share="xyz")
        computed.append(counter.tokens)
        generate(engine, [p + "b\n" for p in prompts], [4, 5, 6], max_tokens=30, share="xyz")
        engine.forget()
    assert computed[0] == computed[1]
    assert generate(engine, prompts, [1, 2, 3], max_tokens=30, share="xyz") == first
