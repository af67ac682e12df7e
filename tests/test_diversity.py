"""Measures of diversity, against brute force, formulas, scikit-learn and nltk, and a model asked text by text."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from nltk.util import ngrams
from sklearn.metrics.pairwise import cosine_distances
from transformers import Qwen2Config, Qwen2ForCausalLM

from sesa import diversity
from sesa.diversity import distinct_n, embeddings, log_likelihoods, mean_distance, self_bleu, tfidf
from sesa.models import word_tokenizer
from sesa.pretrained import SMOLLM2, Pretrained, load
from sesa.tasks.open_text import OpenTextTask



@pytest.fixture(scope="module")
def model():
    tokenizer = word_tokenizer(["a", "b", "c"])
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), initializer_range=0.4, **size)).eval(), tokenizer


TEXTS = st.lists(st.lists(st.sampled_from("abc"), max_size=6), max_size=5)


@given(TEXTS, st.integers(1, 4))
def test_distinct_n_counts_n_grams(texts, n):
    every = [gram for text in texts for gram in ngrams(text, n)]
    if every:
        assert distinct_n(texts, n) == len(set(every)) / len(every)
    else:
        assert np.isnan(distinct_n(texts, n))


def test_distinct_n_by_hand():
    texts = ["a b a b".split(), "b a".split()]
    assert distinct_n(texts, 1) == 2 / 6
    assert distinct_n(texts, 2) == 2 / 4  # ab ba ab, ba; nothing from one text into the next
    with pytest.raises(ValueError, match="at least 1"):
        distinct_n(texts, 0)


@given(arrays(float, st.tuples(st.integers(2, 6), st.integers(1, 4)), elements=st.floats(-3, 3).map(lambda x: round(x, 3))))
def test_mean_distance_is_that_of_all_pairs(vectors):
    every = cosine_distances(vectors)
    assert mean_distance(vectors) == pytest.approx(np.mean([every[i, j] for i, j in combinations(range(len(vectors)), 2)]), abs=1e-9)


def test_mean_distance_by_hand():
    assert mean_distance(np.array([[1, 0], [5, 0]])) == pytest.approx(0)
    assert mean_distance(np.array([[1, 0], [0, 2], [0, 0]])) == 1
    assert mean_distance(np.array([[1, 0], [-1, 0]])) == 2
    for wrong in (np.ones((1, 3)), np.ones(3)):
        with pytest.raises(ValueError, match="two vectors"):
            mean_distance(wrong)


def test_self_bleu_by_hand():
    """BLEU of "a b c" against "a b d", by its definition: of the 1-, 2- and 3-grams 2/3, 1/2 and none (0.1 in place of 0) occur there."""
    each = (2 / 3 * 1 / 2 * 0.1 / 1) ** (1 / 3)
    assert self_bleu(["a b c".split(), "a b d".split()]) == pytest.approx(each)
    assert self_bleu([["a", "b"]] * 3) == pytest.approx(1)
    for wrong in ([["a"]], [["a"], []]):
        with pytest.raises(ValueError, match="two texts"):
            self_bleu(wrong)


@given(st.permutations(["the cat sat on the mat".split(), "the cat sat on a mat".split(), "dogs run".split(), "the mat".split()]))
def test_self_bleu_is_that_of_any_order(texts):
    assert self_bleu(texts) == pytest.approx(self_bleu(sorted(texts)))


def test_tfidf_by_its_formula():
    """tf x (1 + ln((1 + n) / (1 + df))), of unit length."""
    texts = [["a", "a", "b"], ["b"], []]
    weight = {"a": 1 + np.log(4 / 2), "b": 1 + np.log(4 / 3)}
    first = np.array([2 * weight["a"], weight["b"]])
    np.testing.assert_allclose(tfidf(texts), [first / np.linalg.norm(first), [0, 1], [0, 0]])


PROMPTED = ["a b", "b", "", "a a a c", "a b"]


def test_log_likelihoods_are_those_of_one_text_at_a_time(model, reference, monkeypatch):
    """Whatever the batch, and for a prompt of one token too."""
    lm, tokenizer = model
    for batch, prompt in ((64, "c b a"), (2, "c b a"), (64, "c")):
        monkeypatch.setattr(diversity, "BATCH", batch)
        found = log_likelihoods(lm, tokenizer, prompt, PROMPTED)
        for text, logprobs in zip(PROMPTED, found, strict=True):
            ids = tokenizer.encode(text, add_special_tokens=False)
            expected = reference(lm, tokenizer.encode(prompt, add_special_tokens=False), ids).tolist() if ids else []
            np.testing.assert_allclose(logprobs, expected, atol=1e-5)
    with pytest.raises(ValueError, match="empty prompt"):
        log_likelihoods(lm, tokenizer, "", ["a"])


@torch.no_grad()
def test_embeddings_are_the_last_states_of_one_text_at_a_time(model, monkeypatch):
    lm, tokenizer = model
    monkeypatch.setattr(diversity, "MEANS", "a {} b")
    texts, reference = ["a", "b c a", "", " c "], ["b", "c c"]

    def alone(text):
        ids = torch.tensor([tokenizer.encode(f"a {text.strip()} b", add_special_tokens=False)])
        return lm(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, -1].numpy()

    centre = np.mean([alone(text) for text in reference], axis=0)
    for batch in (64, 2):
        monkeypatch.setattr(diversity, "BATCH", batch)
        np.testing.assert_allclose(embeddings(lm, tokenizer, texts, reference), [alone(text) - centre for text in texts], atol=1e-5)
        np.testing.assert_allclose(embeddings(lm, tokenizer, texts, []), [alone(text) for text in texts], atol=1e-5)


def test_the_pretrained_model_tells_what_sentences_mean():
    """Paraphrases without a content word in common, other than those of the notebook; unrelated lines."""
    lm, tokenizer = load(Pretrained(SMOLLM2))
    reference = [problem.example for problem in OpenTextTask().problems]
    triplets = [
        ("The soup is too hot.", "This meal would burn your tongue.", "Our cousin sells bicycles."),
        ("We missed the last bus.", "All coaches had gone without us.", "A snail entered the race."),
        ("She felt very happy.", "Joy filled her heart.", "Turn off that lamp."),
    ]
    found = embeddings(lm, tokenizer, [text for triplet in triplets for text in triplet], reference).reshape(3, 3, -1)
    assert all(mean_distance(v[:2]) < mean_distance(v[::2]) for v in found)
