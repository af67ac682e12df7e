"""The paper's numbers, the verdict's rule and the joined table, against values worked out by hand."""

import hashlib
import shutil

import pandas as pd
import pytest

from sesa import claims
from sesa.claims import claims_markdown, claims_table, measure, open_questions, paper_claims, save_claims, verdict
from sesa.runs import DataError

PAPER = {  # id: baseline, value, kind, effect
    "synthetic-distinct": (11, 80, "ratio", 7.27),
    "synthetic-coverage": (0.14, 0.80, "difference", 0.66),
    "sudoku-pass32": (None, None, "difference", 0.06),
    "aime24-passk": (None, None, "difference", 0.09),
    "agents-gain-1": (None, None, "difference", 0.25),
    "agents-gain-2": (None, None, "difference", 0.42),
    "agents-gain-3": (None, None, "difference", 0.07),
    "agents-relative": (None, None, "ratio", 3.11),  # "+211%"
    "recovery": (1.4, 2.8, "ratio", 2.0),
}


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.setenv("SESA_HOME", str(tmp_path))
    return tmp_path


# ------------------------------------------------------------------------------------------------------------- the paper


def test_the_papers_numbers():
    rows = {r["id"]: r for r in paper_claims().to_dict("records")}
    assert rows.keys() == PAPER.keys()
    for claim, (baseline, value, kind, effect) in PAPER.items():
        row = rows[claim]
        assert (row["effect_kind"], row["paper_effect"]) == (kind, effect)
        if baseline is None:
            assert pd.isna(row["paper_baseline"]) and pd.isna(row["paper_value"])
        else:
            assert (row["paper_baseline"], row["paper_value"]) == (baseline, value)
            stated = value / baseline if kind == "ratio" else value - baseline
            assert effect == pytest.approx(stated, abs=0.005)  # two digits after the point


@pytest.mark.parametrize("damage", ["a number changed", "sums missing"])
def test_changed_numbers_of_the_paper_are_refused(tmp_path, monkeypatch, damage):
    folder = shutil.copytree(claims.PAPER.parent, tmp_path / "data")
    monkeypatch.setattr(claims, "PAPER", folder / "paper_claims.csv")
    assert paper_claims().loc["recovery", "paper_value"] == 2.8  # the copy is good
    if damage == "sums missing":
        (folder / "SHA256SUMS").unlink()
    else:
        text = claims.PAPER.read_text(encoding="utf-8").replace("difference,0.66", "difference,0.16")
        claims.PAPER.write_text(text, encoding="utf-8")
        changed = hashlib.sha256(claims.PAPER.read_bytes()).hexdigest()
    with pytest.raises(DataError, match="git checkout data/") as e:
        paper_claims()
    assert ("SHA256SUMS" if damage == "sums missing" else changed[:12]) in str(e.value)


# --------------------------------------------------------------------------------------------------------------- verdict


@pytest.mark.parametrize(
    "kind, paper, low, high, expected",
    [
        ("difference", 0.66, 0.60, 0.70, "reproduced"),
        ("difference", 0.66, 0.70, 0.80, "reproduced"),  # larger than the paper's
        ("difference", 0.66, 0.10, 0.66, "reproduced"),  # boundary
        ("difference", 0.66, 0.10, 0.65, "direction only"),
        ("difference", 0.66, 0.00, 0.90, "not reproduced"),  # boundary: the interval holds no effect
        ("difference", 0.66, -0.1, 0.90, "not reproduced"),
        ("difference", 0.66, -0.5, -0.1, "not reproduced"),  # the other sign
        ("difference", -0.2, -0.3, -0.1, "reproduced"),
        ("difference", -0.2, -0.5, -0.3, "reproduced"),
        ("difference", -0.2, -0.2, -0.1, "reproduced"),
        ("difference", -0.2, -0.1, -0.05, "direction only"),
        ("difference", -0.2, -0.5, 0.0, "not reproduced"),
        ("difference", -0.2, 0.1, 0.3, "not reproduced"),
        ("ratio", 7.27, 6.0, 8.0, "reproduced"),
        ("ratio", 7.27, 8.0, 9.0, "reproduced"),
        ("ratio", 7.27, 2.0, 7.27, "reproduced"),
        ("ratio", 7.27, 1.1, 7.2, "direction only"),
        ("ratio", 7.27, 1.0, 9.0, "not reproduced"),
        ("ratio", 7.27, 0.5, 9.0, "not reproduced"),
        ("ratio", 7.27, 0.2, 0.5, "not reproduced"),
        ("ratio", 0.5, 0.4, 0.6, "reproduced"),
        ("ratio", 0.5, 0.1, 0.3, "reproduced"),
        ("ratio", 0.5, 0.5, 0.9, "reproduced"),
        ("ratio", 0.5, 0.6, 0.9, "direction only"),
        ("ratio", 0.5, 0.4, 1.0, "not reproduced"),
        ("ratio", 0.5, 1.5, 3.0, "not reproduced"),
    ],
)
def test_verdicts_by_hand(kind, paper, low, high, expected):
    assert verdict(kind, paper, low, high, seeds=3) == expected
    assert verdict(kind, paper, low, high, seeds=2) == "not judged"
    assert verdict(kind, paper, low, high, seeds=1) == "not judged"


@pytest.mark.parametrize("kind, paper", [("difference", 0.66), ("difference", -0.2), ("ratio", 7.27), ("ratio", 0.5)])
def test_an_interval_that_is_not_a_number_shows_nothing(kind, paper):
    nan = float("nan")
    for low, high in ((nan, nan), (nan, 9.0), (-9.0, nan)):
        assert verdict(kind, paper, low, high, seeds=5) not in ("reproduced", "direction only")


@pytest.mark.parametrize(
    "kind, low, high, answer",
    [
        ("difference", 0.01, 0.2, "higher"),
        ("difference", 0.0, 0.2, "no difference seen"),
        ("difference", -0.2, -0.01, "lower"),
        ("ratio", 1.01, 2.0, "higher"),
        ("ratio", 0.5, 1.0, "no difference seen"),
        ("ratio", 0.5, 0.9, "lower"),
        ("ratio", float("nan"), 2.0, "no difference seen"),
    ],
)
def test_answers_where_the_paper_has_no_number(kind, low, high, answer):
    assert verdict(kind, float("nan"), low, high, seeds=3) == answer
    assert verdict(kind, float("nan"), low, high, seeds=2) == "not judged"


# --------------------------------------------------------------------------------------------------------------- measure


def arm(*rows):
    """(seeds, problems)."""
    return pd.DataFrame(list(rows))


def test_measured_difference_by_hand():
    """Always +0.3: what the problems differ in is common to both arms and leaves no doubt about the effect."""
    row = measure("synthetic-coverage", "T=1", arm([0.1, 0.3], [0.2, 0.2]), arm([0.4, 0.6], [0.5, 0.5]))
    assert row == {
        "id": "synthetic-coverage",
        "setting": "T=1",
        "baseline": pytest.approx(0.2),
        "value": pytest.approx(0.5),
        "effect": pytest.approx(0.3),
        "low": pytest.approx(0.3),
        "high": pytest.approx(0.3),
        "seeds": 2,
        "problems": 2,
    }


def test_measured_ratio_by_hand():
    row = measure("recovery", "", arm([1], [2], [3]), arm([2.5], [5], [7.5]))
    assert (row["baseline"], row["value"], row["seeds"], row["problems"]) == (2, 5, 3, 1)
    assert (row["effect"], row["low"], row["high"]) == pytest.approx((2.5, 2.5, 2.5))


def test_measured_interval_has_the_spread_of_the_effect():
    """Two seeds with effects 0 and 1: resampled means are 0, 1/2 and 1, and a 95% interval holds all of them."""
    row = measure("synthetic-coverage", "", arm([0.0], [0.0]), arm([0.0], [1.0]))
    assert (row["effect"], row["low"], row["high"]) == (0.5, 0.0, 1.0)


@pytest.mark.parametrize("baseline, value, ratio", [([1, 10], [10, 10], 20 / 11), ([0, 10], [10, 10], 2.0)])
def test_a_ratio_is_that_of_the_two_numbers_beside_it(baseline, value, ratio):
    """As the paper's 80 / 11: of the arms' means, so that no single problem where the baseline found little can make it."""
    row = measure("synthetic-distinct", "", arm(baseline), arm(value))
    assert row["effect"] == pytest.approx(ratio) == row["value"] / row["baseline"]


def test_a_claim_that_the_paper_does_not_make_cannot_be_measured():
    with pytest.raises(KeyError, match="no-such-claim"):
        measure("no-such-claim", "", arm([1.0]), arm([2.0]))


def test_arms_of_other_problems_are_refused():
    with pytest.raises(ValueError, match="same seeds and problems"):
        measure("recovery", "", arm([1.0, 2.0]), arm([2.0]))
    with pytest.raises(ValueError, match="same seeds and problems"):
        measure("recovery", "", arm([1.0, 2.0]), arm([1.0, 2.0]).rename(columns={0: "map0"}))


# ----------------------------------------------------------------------------------------------------------------- table


def row(claim: str, setting: str, baseline: float, value: float, interval: tuple[float, float, float], seeds: int = 3) -> dict:
    effect, low, high = interval
    measured = {"id": claim, "setting": setting, "baseline": baseline, "value": value, "effect": effect, "low": low, "high": high}
    return {**measured, "seeds": seeds, "problems": 4}


def test_nothing_measured_is_not_run(in_tmp):
    table = claims_table("test")
    assert list(table["id"]) == [*PAPER, *open_questions()["id"]]
    assert set(table["verdict"]) == {"not run at this scale"}


@pytest.mark.parametrize("setting", ["", "8"])
def test_a_setting_may_be_empty_or_a_number(in_tmp, setting):
    save_claims("06_fake", "test", [row("recovery", setting, 1, 2, (2, 1.9, 2.1))])
    assert f"(×2) | {setting} | 1 → 2 | ×2 [×1.9, ×2.1] | 3 | reproduced |" in claims_markdown(claims_table("test"))


def test_a_notebook_that_measured_nothing_breaks_nothing(in_tmp):
    save_claims("01_fake", "test", [])
    save_claims("02_fake", "test", [row("recovery", "", 1, 2, (2, 1.9, 2.1))])
    verdicts = claims_table("test").set_index("id")["verdict"]
    assert verdicts.pop("recovery") == "reproduced"
    assert set(verdicts) == {"not run at this scale"}


def test_table_joins_what_all_notebooks_measured(in_tmp):
    distinct = [
        row("synthetic-distinct", "T=1", 10, 75, (7.5, 7.0, 8.0)),
        row("synthetic-distinct", "T=0.7", 8, 20, (2.5, 2.2, 2.8)),
    ]
    returned = save_claims("01_fake", "test", distinct)
    assert returned.to_dict("records") == distinct
    assert (in_tmp / "figures/test/01_claims.csv").is_file()
    save_claims("06_fake", "test", [row("recovery", "old", 1, 9, (9, 8, 10))])
    sudoku = row("sudoku-pass32", "G=8", 0.1, 0.3, (0.2, 0.1, 0.3), seeds=2)
    save_claims("06_fake", "test", [row("recovery", "new", 1.5, 1.4, (0.93, 0.8, 1.1)), sudoku])
    save_claims("06_fake", "other", [row("aime24-passk", "", 0.1, 0.3, (0.2, 0.1, 0.3))])

    table = claims_table("test")
    assert [(r.id, r.setting, r.verdict) for r in table.itertuples() if r.verdict != "not run at this scale"] == [
        ("synthetic-distinct", "T=1", "reproduced"),
        ("synthetic-distinct", "T=0.7", "direction only"),
        ("sudoku-pass32", "G=8", "not judged"),
        ("recovery", "new", "not reproduced"),
    ]
    assert list(table["id"]) == ["synthetic-distinct", *PAPER, *open_questions()["id"]]  # in the paper's order, one row per setting
    first = table.iloc[0]
    assert (first["paper_baseline"], first["paper_value"], first["paper_effect"]) == (11, 80, 7.27)
    assert (first["baseline"], first["value"], first["effect"], first["low"], first["high"]) == (10, 75, 7.5, 7.0, 8.0)
    assert (first["seeds"], first["problems"]) == (3, 4)


def test_open_questions_have_a_table_without_the_paper(in_tmp):
    save_claims("07_fake", "test", [row("open-cost", "G=8", 1, 2, (2, 1.9, 2.1))])
    table = claims_table("test")
    asked = table[table["paper_effect"].isna()]
    header, _, *lines = claims_markdown(asked).splitlines()
    assert header == "| question | setting | ours: baseline → method | effect [95% interval] | seeds | answer |"
    said = dict(zip(asked["id"], lines, strict=True))
    assert said["open-cost"] == "| What does the sequential stage cost? seconds per group: sesa over parallel | G=8 | 1 → 2 | ×2 [×1.9, ×2.1] | 3 | higher |"
    assert said["open-larger-models"].endswith("|  |  |  |  | not run at this scale |")
    assert "| left open | G=8 |" in claims_markdown(table)  # beside the paper's
    assert set(asked["effect_kind"]) == {"ratio", "difference"} and not asked["id"].duplicated().any()


def test_markdown_has_one_line_a_row_with_its_numbers(in_tmp):
    save_claims("01_fake", "test", [row("synthetic-distinct", "T=1", 10.25, 75.5, (7.5, 7.0, 8.0))])
    save_claims("06_fake", "test", [row("sudoku-pass32", "G=8", 0.1, 0.05, (-0.05, -0.1, 0.012), 2)])
    table = claims_table("test")
    header, rule, *lines = claims_markdown(table).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len(cells) == len(table) and {len(c) for c in cells} == {7} == {header.count("|") - 1, rule.count("|") - 1}
    by_claim = dict(zip(table["id"], cells, strict=True))
    assert by_claim["synthetic-distinct"] == [
        "Section 2, distinct paths in 500 samples: sequential-10 over parallel",
        "11 → 80 (×7.27)",
        "T=1",
        "10.2 → 75.5",
        "×7.5 [×7, ×8]",
        "3",
        "reproduced",
    ]
    assert by_claim["sudoku-pass32"][1:] == ["(+0.06)", "G=8", "0.1 → 0.05", "-0.05 [-0.10, +0.01]", "2", "not judged"]
    assert by_claim["recovery"][1:] == ["1.4 → 2.8 (×2)", "", "", "", "", "not run at this scale"]
