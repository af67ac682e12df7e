"""Each metric against an independent source: all subsets, all sequences, closed forms, or simulation with an error bound."""

from fractions import Fraction
from itertools import combinations, product
from math import log, prod

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sesa.metrics import (
    coverage_at_k,
    distinct,
    distinct_fraction,
    duplicate_fraction,
    entropy,
    expected_distinct,
    expected_distinct_of_k,
    invalid_fraction,
    pass_at_k,
    sample_entropy,
)

keys_lists = st.lists(st.sampled_from(["a", "b", "c", "d", None]), min_size=1, max_size=30)


def all_sequences(p: list[float], n: int):
    """Every sequence of n draws, with its probability; what is left of p up to 1 is the invalid answer None."""
    answers = [*((f"a{i}", q) for i, q in enumerate(p)), (None, 1 - sum(p))]
    for draws in product(answers, repeat=n):
        yield [key for key, _ in draws], prod(q for _, q in draws)


# --------------------------------------------------------------------------------------------------------------- pass@k


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_k_subsets_with_a_correct_sample(n):
    for c in range(n + 1):
        correct = [True] * c + [False] * (n - c)
        for k in range(1, n + 1):
            subsets = [any(s) for s in combinations(correct, k)]
            assert pass_at_k(n, c, k) == pytest.approx(sum(subsets) / len(subsets), abs=1e-15)


@given(st.data())
@settings(deadline=None)
def test_pass_at_k_of_many_samples_equals_the_product_form(data):
    """1 - prod_{i=n-c+1..n} (1 - k/i), the form of Chen et al.'s code, in exact fractions."""
    n = data.draw(st.integers(1, 2000))
    c, k = data.draw(st.integers(0, min(n, 60))), data.draw(st.integers(1, n))
    exact = 1 - prod((max(1 - Fraction(k, i), 0) for i in range(n - c + 1, n + 1)), start=Fraction(1))
    assert pass_at_k(n, c, k) == pytest.approx(float(exact), abs=1e-14)


@given(st.data())
@settings(deadline=None)
def test_pass_at_k_never_falls_with_more_samples_or_more_correct_ones(data):
    n = data.draw(st.integers(2, 300))
    c, k = data.draw(st.integers(0, n - 1)), data.draw(st.integers(1, n - 1))
    here = pass_at_k(n, c, k)
    assert 0 <= here <= pass_at_k(n, c, k + 1) <= 1
    assert here <= pass_at_k(n, c + 1, k) <= 1


@pytest.mark.parametrize("n, c, k", [(4, 2, 0), (4, 2, 5), (4, -1, 2), (4, 5, 2), (0, 0, 1), (4, 2, -1)])
def test_pass_at_k_refuses_impossible_numbers(n, c, k):
    with pytest.raises(ValueError, match=f"n={n}, c={c}, k={k}"):
        pass_at_k(n, c, k)


# -------------------------------------------------------------------------------------------------------------- distinct


@pytest.mark.parametrize("p", [[1.0], [0.5, 0.5], [0.6, 0.3], [0.5, 0.25, 0.05], [0.2]])
def test_expected_distinct_is_the_mean_over_all_sequences(p):
    exact = [sum(q * len(set(s) - {None}) for s, q in all_sequences(p, n)) for n in range(6)]
    for n in range(6):
        assert expected_distinct(np.array(p), n) == pytest.approx(exact[n], abs=1e-12)
    np.testing.assert_allclose(expected_distinct(np.array(p), np.arange(6)), exact, atol=1e-12)
    grid = np.array([[1, 2], [3, 4]])
    np.testing.assert_allclose(expected_distinct(np.array(p), grid), np.array(exact)[grid], atol=1e-12)


def test_expected_distinct_keeps_its_precision_far_out():
    """n p = 1 with huge n: 1 - 1/e for each answer; and a p so small that 1 - p is 1 in floating point."""
    assert expected_distinct(np.full(1000, 1e-12), 10**12) == pytest.approx(1000 * (1 - np.exp(-1.0)), rel=1e-9)
    assert expected_distinct(np.array([1e-20]), 10) == pytest.approx(1e-19, rel=1e-9)


@given(st.data())
@settings(deadline=None)
def test_expected_distinct_of_k_is_the_mean_over_all_k_subsets(data):
    keys = data.draw(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=8))
    k = data.draw(st.integers(1, len(keys)))
    subsets = [len(set(s) - {None}) for s in combinations(keys, k)]
    assert expected_distinct_of_k(keys, k) == pytest.approx(sum(subsets) / len(subsets), abs=1e-12)


@pytest.mark.parametrize("p", [[0.6, 0.3], [0.5, 0.25, 0.05]])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_expected_distinct_of_k_is_unbiased(p, k):
    """Its mean over all sequences of 5 independent draws is what k draws give, counted over all sequences of k."""
    mean = sum(q * expected_distinct_of_k(s, k) for s, q in all_sequences(p, 5))
    assert mean == pytest.approx(sum(q * len(set(s) - {None}) for s, q in all_sequences(p, k)), abs=1e-12)
    assert mean == pytest.approx(expected_distinct(np.array(p), k), abs=1e-12)


@given(keys_lists)
@example([None])
@example(["a", "a", None, "a", "b"])
@settings(deadline=None)
def test_every_sample_is_new_or_a_duplicate_or_invalid(keys):
    """Counted one sample after another, as a reader would."""
    seen, tally = set(), {"new": 0, "duplicate": 0, "invalid": 0}
    for key in keys:
        tally["invalid" if key is None else "duplicate" if key in seen else "new"] += 1
        seen.add(key)
    assert distinct(keys) == tally["new"]
    fractions = distinct_fraction(keys), duplicate_fraction(keys), invalid_fraction(keys)
    assert fractions == pytest.approx(tuple(count / len(keys) for count in tally.values()), abs=1e-12)
    assert sum(fractions) == pytest.approx(1)


# -------------------------------------------------------------------------------------------------------------- coverage

GROUPS = [["a", "a", "b", "c"], [None, "b", "b", "a"], [None, None, None, "x"]]


@pytest.mark.parametrize(
    "k, answers, per_group",
    [
        (1, 10, [1, 0, 0]),  # an invalid first sample is a sample
        (2, 10, [1 / 2, 1 / 2, 0]),
        (3, 10, [2 / 3, 1 / 3, 0]),
        (4, 10, [3 / 4, 2 / 4, 1 / 4]),
        (4, 3, [3 / 3, 2 / 3, 1 / 3]),  # fewer answers than samples
        (4, ["a", "x"], [1 / 2, 1 / 2, 1 / 2]),  # only these count
        (2, {"b", "c", "z"}, [0, 1 / 2, 0]),
        (3, frozenset("z"), [0, 0, 0]),
    ],
)
def test_coverage_by_hand(k, answers, per_group):
    assert coverage_at_k(GROUPS, k, answers) == pytest.approx(sum(per_group) / 3)
    for group, coverage in zip(GROUPS, per_group, strict=True):
        assert coverage_at_k([group], k, answers) == pytest.approx(coverage)


def test_coverage_looks_at_the_first_k_in_the_order_drawn():
    late = ["a", "a", "a", "b", "c"]
    assert coverage_at_k([late], 3, 5) == pytest.approx(1 / 3)
    assert coverage_at_k([late[::-1]], 3, 5) == 1.0


def test_none_is_no_find_even_as_an_answer():
    assert coverage_at_k([[None, None]], 2, {"a"}) == 0.0
    assert coverage_at_k([[None, "a"]], 2, 1) == 1.0
    assert coverage_at_k([[None, None]], 2, 2) == 0.0


@pytest.mark.parametrize(
    "groups, k, answers",
    [
        ([], 1, 3),
        ([["a"]], 2, 3),
        ([["a", "b"], ["a"]], 2, 3),
        ([["a"]], 1, 0),
        ([["a"]], 1, []),
        ([["a"]], 0, 3),
        ([["a"]], -1, 3),
    ],
)
def test_coverage_refuses_what_has_no_value(groups, k, answers):
    with pytest.raises(ValueError, match=f"coverage at k={k} needs"):
        coverage_at_k(groups, k, answers)


# --------------------------------------------------------------------------------------------------------------- entropy


def test_entropy_closed_forms():
    for n in (1, 2, 7, 1000):
        assert entropy(np.full(n, 1 / n)) == pytest.approx(log(n), abs=1e-12)
    assert entropy(np.array([0, 0.5, 0, 0.5])) == pytest.approx(log(2))
    assert entropy([0, 1, 0]) == 0
    assert entropy(np.array([0.5, 0.25, 0.25])) == pytest.approx(1.5 * log(2))
    r = 0.8  # geometric: log(1 / (1 - r)) + r / (1 - r) * log(1 / r)
    assert entropy((1 - r) * r ** np.arange(400)) == pytest.approx(-log(1 - r) - r / (1 - r) * log(r))


def test_sample_entropy_is_that_of_the_valid_frequencies():
    assert sample_entropy(["a", "a", "b", None, "c", None]) == pytest.approx(1.5 * log(2))
    assert sample_entropy(list("abcdefgh")) == pytest.approx(log(8))
    assert sample_entropy(["a"] * 5) == 0
    assert sample_entropy([None, None]) == 0
    assert sample_entropy([]) == 0
