"""sesa.intervals: coverage by simulation; closed forms by scipy's t test and an analysis of variance by hand."""

from math import exp, log, sqrt

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sesa.intervals import chance_note, holm, interval, mean_squares, p_value, standard_error, written

SEEDS, PROBLEMS = (3, 5, 8), (16, 64, 128)
MIXES = {  # standard deviations of seed, problem, rest (the interaction of both, and noise)
    "seeds differ most": (1, 0.1, 0.1),
    "problems differ most": (0.1, 1, 0.3),
    "mostly interaction": (0.2, 0.2, 1),
    "all alike": (1, 1, 1),
    "seeds and problems, nothing else": (1, 1, 0),
    "problems and interaction": (0, 1, 1),
    "problems alone": (0, 1, 0),
    "nothing but interaction": (0, 0, 1),
}


def covered(mix: tuple[float, float, float], seeds: int, problems: int, tables: int = 6_000) -> float:
    """The share of 95% intervals that hold the true mean, in percent, of so many simulated tables."""
    rng, (seed, problem, rest) = np.random.default_rng(0), mix
    values = seed * rng.normal(size=(tables, seeds, 1)) + problem * rng.normal(size=(tables, 1, problems))
    values += rest * rng.normal(size=(tables, seeds, problems))
    error, df = standard_error(values)
    return float(100 * np.mean(np.abs(values.mean((1, 2))) <= stats.t.ppf(0.975, df) * error))


def coverage_table() -> pd.DataFrame:
    """Coverage in percent: a row per mix and number of seeds, a column per number of problems."""
    rows = {
        (name, seeds): [covered(mix, seeds, problems) for problems in PROBLEMS]
        for name, mix in MIXES.items()
        for seeds in SEEDS
    }
    return pd.DataFrame(rows, [f"{n} problems" for n in PROBLEMS]).T


def test_intervals_cover():
    """93 to 97%, and up to 98.5% where nothing but the rest varies. The standard error of a simulated share is 0.3."""
    table = coverage_table()
    print(table.round(1).to_string())
    assert (table.to_numpy() >= 93).all()
    most = np.where(table.index.get_level_values(0) == "nothing but interaction", 98.5, 97)
    assert (table.to_numpy() <= most[:, None]).all()


def rates(rng, tables, seeds, problems, base, gain):
    """Shares of right answers of 32: a baseline's and a method's, two arrays (tables, seeds, problems)."""
    shared, arms = rng.normal(size=(tables, 1, problems)), []
    for level in (base, base + gain):
        shapes = (tables, 1, problems), (tables, seeds, 1), (tables, seeds, problems)
        own = sum(0.5 * rng.normal(size=shape) for shape in shapes)
        arms.append(rng.binomial(32, 1 / (1 + np.exp(-(level + shared + own)))) / 32)
    return arms


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("base", [-1.0, -3.0])  # about 0.32 and 0.09 right
def test_intervals_of_ratios_and_differences_of_probabilities_cover(seeds, base):
    """Skewed and bounded values, and an error of simulation of 0.6: within 4 of it of 95%."""
    rng, gain = np.random.default_rng(seeds), 0.8
    logits = np.sqrt(1.75) * rng.normal(size=10**6)
    means = [(1 / (1 + np.exp(-(level + logits)))).mean() for level in (base, base + gain)]
    ratio, difference, tables = 0, 0, 1_200
    for o, v in zip(*rates(rng, tables, seeds, 32, base, gain), strict=True):
        _, low, high = interval(v, over=o)
        ratio += low <= means[1] / means[0] <= high
        _, low, high = interval(v - o)
        difference += low <= means[1] - means[0] <= high
    assert abs(100 * ratio / tables - 95) < 2.5 and abs(100 * difference / tables - 95) < 2.5


# ------------------------------------------------------------------------------------- closed forms


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9), st.sampled_from([0.5, 0.95, 0.99]))
@settings(deadline=None)
def test_one_problem_gives_the_t_interval_over_seeds(values, level):
    column = np.array(values)[:, None] + 1e-3 * np.arange(len(values))[:, None]
    test = stats.ttest_1samp(column[:, 0], 0)
    assert interval(column, level=level)[1:] == pytest.approx(test.confidence_interval(level), rel=1e-6, abs=1e-9)
    assert p_value(column) == pytest.approx(test.pvalue, rel=1e-6, abs=1e-9)


# A two-way table worked by hand: means of rows 3, 6, of columns 3, 3, 7.5, all 4.5
BY_HAND = [[2.0, 1.0, 6.0], [4.0, 5.0, 9.0]]


def test_analysis_of_variance_by_hand():
    """Rows: 3 (1.5^2 + 1.5^2) = 13.5 on 1; columns: 2 (1.5^2 + 1.5^2 + 3^2) = 27 on 2; all: 41.5; rest: 1 on 2."""
    assert mean_squares(np.array(BY_HAND)) == pytest.approx((13.5, 13.5, 0.5))
    error, df = standard_error(np.array(BY_HAND))
    variance, share = 13.5 + 13.5 - 0.5, 13.5 / 26.5
    assert error == pytest.approx(sqrt(variance / 6)) and df == pytest.approx(1 / (share / 1 + (1 - share) / 2))
    mean, low, high = interval(BY_HAND)
    assert mean == 4.5 and high - mean == pytest.approx(mean - low) == pytest.approx(stats.t.ppf(0.975, df) * error)


def test_mean_squares_are_those_of_a_regression():
    """By least squares on indicators, which knows nothing of the formulas."""
    rng = np.random.default_rng(3)
    y = rng.normal(size=(4, 6)) + rng.normal(size=(4, 1))
    rows, columns = np.indices(y.shape)
    one = np.ones((24, 1))
    of_row, of_column = (np.eye(n)[at.ravel()] for n, at in ((4, rows), (6, columns)))

    def left(*parts):
        x = np.hstack(parts)
        return ((y.ravel() - x @ np.linalg.lstsq(x, y.ravel(), rcond=None)[0]) ** 2).sum()

    both = left(one, of_row, of_column)
    expected = (left(one, of_column) - both) / 3, (left(one, of_row) - both) / 5, both / 15
    assert mean_squares(y) == pytest.approx(expected)


def test_an_estimate_below_zero_counts_as_zero():
    """Rows that differ less than the rest add nothing; if columns do too, the rest alone is left, with all its freedom."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=(4, 9))
    flat = y - y.mean(1, keepdims=True) + y.mean()  # rows of one mean
    _, columns, rest = mean_squares(flat)
    error, df = standard_error(flat)
    assert columns > rest and error == pytest.approx(sqrt(columns / 36)) and df == 8
    flat = flat - flat.mean(0, keepdims=True)
    error, df = standard_error(flat)
    assert error == pytest.approx(sqrt(mean_squares(flat)[2] / 36)) and df == 24


@given(st.integers(2, 6), st.integers(1, 7), st.integers(0, 10**6), st.floats(0.1, 5), st.floats(-3, 3))
@settings(deadline=None)
def test_unit_and_order_do_not_matter(seeds, problems, seed, scale, shift):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(seeds, problems)) + rng.normal(size=(seeds, 1)) + rng.normal(size=(1, problems))
    mean, low, high = interval(values)
    assert low <= mean <= high
    moved = [scale * v + shift for v in (mean, low, high)]
    assert interval(scale * values + shift) == pytest.approx(moved, rel=1e-6, abs=1e-6)
    mixed = values[rng.permutation(seeds)][:, rng.permutation(problems)]
    assert interval(mixed) == pytest.approx((mean, low, high), rel=1e-6, abs=1e-9)
    if problems > 1:
        assert interval(values.T) == pytest.approx((mean, low, high), rel=1e-6, abs=1e-9)


# ------------------------------------------------------------------------------------------- ratios


def test_a_ratio_is_of_the_two_means_and_its_interval_is_symmetric_in_the_log():
    rng = np.random.default_rng(4)
    values, over = rng.uniform(2, 9, size=(3, 5)), rng.uniform(1, 4, size=(3, 5))
    ratio, low, high = interval(values, over=over)
    assert ratio == pytest.approx(values.mean() / over.mean())
    assert ratio / low == pytest.approx(high / ratio) and 0 < low < ratio < high
    turned, *ends = interval(over, over=values)
    assert (turned, *ends) == pytest.approx((1 / ratio, 1 / high, 1 / low))
    assert interval(7 * values, over=over) == pytest.approx((7 * ratio, 7 * low, 7 * high))
    assert interval(2.5 * over, over=over) == pytest.approx((2.5, 2.5, 2.5))  # in proportion: nothing is uncertain


def test_a_ratio_over_a_constant_is_close_to_the_plain_interval():
    """Values that differ by little: log(1 + x) is x."""
    values = 1 + 1e-4 * np.random.default_rng(5).normal(size=(4, 6))
    assert interval(values, over=np.ones((4, 6))) == pytest.approx(interval(values), abs=1e-7)
    half = log(interval(values, over=np.ones((4, 6)))[2] / values.mean())
    assert values.mean() * exp(half) == pytest.approx(interval(values)[2], abs=1e-7)


@pytest.mark.parametrize(
    ("values", "over", "ratio"),
    [([[0], [0]], [[1], [2]], 0.0), ([[1], [2]], [[0], [0]], float("inf")), ([[1], [2]], [[-1], [-2]], -1.0)],
)
def test_a_ratio_with_a_mean_that_is_not_above_0_has_no_interval(values, over, ratio):
    mean, low, high = interval(values, over=over)
    assert mean == ratio and np.isnan([low, high, p_value(values, over=over)]).all()
    assert np.isnan(interval([[0], [0]], over=[[0], [0]])).all()


# ---------------------------------------------------------------------------------------- the edges


@pytest.mark.parametrize("over", [None, [[1.0, 2.0, 1.0]]])
def test_one_seed_has_no_interval(over):
    mean, low, high = interval([[1.0, 2.0, 6.0]], over=over)
    assert mean == (3 if over is None else 2.25) and np.isnan([low, high, p_value([[1.0, 2.0, 6.0]], over)]).all()


@pytest.mark.parametrize("shape", [(2, 1), (2, 2), (2, 5), (7, 2)])
@pytest.mark.filterwarnings("error")
def test_equal_values_are_a_point(shape):
    assert interval(np.full(shape, 0.25)) == (0.25, 0.25, 0.25)
    assert interval(np.full(shape, 0.5), over=np.full(shape, 0.25)) == (2, 2, 2)
    assert p_value(np.full(shape, 0.25)) == 0 and p_value(np.zeros(shape)) == 1
    assert p_value(np.ones(shape), over=np.ones(shape)) == 1


@pytest.mark.filterwarnings("error")
def test_nan_and_infinity_pass_through():
    assert np.isnan([*interval([[np.nan, 1], [1, 2]]), p_value([[np.nan, 1], [1, 2]])]).all()
    assert np.isnan(interval([[1, 1], [1, 2]], over=[[np.nan, 1], [1, 2]])).all()
    mean, *ends = interval([[np.inf, 1], [1, 2]])
    assert mean == np.inf and np.isnan(ends).all()


@pytest.mark.parametrize(
    ("values", "over"),
    [([1, 2, 3], None), ([[]], None), ([], None), ([[1, 2]], [[1], [2]]), ([[1, 2]], [1, 2])],
)
def test_what_is_no_table_is_refused(values, over):
    with pytest.raises(ValueError, match="table|shape"):
        interval(values, over)
    with pytest.raises(ValueError, match="table|shape"):
        p_value(values, over)


# --------------------------------------------------------------------------------- many comparisons


def test_p_values_and_intervals_agree():
    """An interval excludes "no effect" exactly where p is below 1 - level."""
    rng = np.random.default_rng(6)
    for _ in range(200):
        values = rng.normal(size=(3, 5)) + rng.normal(size=(3, 1)) + 1
        _, low, high = interval(values, level=0.9)
        assert (low > 0 or high < 0) == (p_value(values) < 0.1)
        over = np.exp(rng.normal(size=(3, 5)))
        _, low, high = interval(np.exp(values), over=over, level=0.9)
        assert (low > 1 or high < 1) == (p_value(np.exp(values), over=over) < 0.1)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8, 0.01]) == pytest.approx([1, 1, 0.03])
    assert holm([0.01, np.nan, 0.04]) == pytest.approx([0.02, np.nan, 0.04], nan_ok=True)
    assert holm([]).shape == (0,) and holm([0.2]) == pytest.approx([0.2])


def test_holm_finds_nothing_where_there_is_nothing():
    """Of 20 comparisons of noise one is below 0.05 in 64% of tables; after Holm's adjustment in 5%, 4 errors: 2%."""
    p = np.random.default_rng(7).uniform(size=(2_000, 20))
    assert np.mean((p < 0.05).any(1)) > 0.6
    assert np.mean([(holm(row) < 0.05).any() for row in p]) == pytest.approx(0.05, abs=0.02)


def test_notes_and_texts():
    assert chance_note(24) == "Of these 24 intervals at 95%, about 1 would miss the true value by chance alone."
    notes = {8: "about 0.4 would", 20: "about 1 would", 66: "about 3 would"}
    assert all(words in chance_note(n) for n, words in notes.items())
    assert written((0.25, 0.2, 0.314)) == "0.25 [0.20, 0.31]"
    assert written((1.5, -1, 4), "{:+.1f}") == "+1.5 [-1.0, +4.0]"
    assert written((0.25, np.nan, np.nan)) == "0.25 (no interval)" and written((np.nan,) * 3) == ""
