"""Measures of diversity, against brute force and scikit-learn."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from nltk.util import ngrams
from sklearn.metrics.pairwise import cosine_distances

from sesa.diversity import distinct_n, mean_distance

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
