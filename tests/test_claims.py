"""The paper's numbers, the verdict's rule and the joined table, against values worked out by hand."""

import hashlib
import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sesa import claims
from sesa.arms import ADDITIONS, SAMPLERS
from sesa.claims import (
    MEASURED,
    capped,
    claims_table,
    headline,
    judged,
    measure,
    message,
    nothing_learned,
    open_questions,
    paper_claims,
    role,
    save_claims,
    shares,
    verdict,
)
from sesa.figures import ARM_COLOUR
from sesa.intervals import chance_note, interval, written
from sesa.readme import claims_markdown, with_claims
from sesa.runs import DataError

PAPER = {  # id: baseline, value, kind, effect, as the notes on the paper say
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


def test_every_number_says_where_it_is_known_from():
    rows = paper_claims()
    assert set(" ".join(rows["source"]).replace("; meaning", "").replace(";", "").split()) == {"N", "V"}
    assert rows.loc["synthetic-coverage", "source"] == "N; meaning V"
    assert "20 treasures" in rows.loc["synthetic-coverage", "metric"] and "trained" in rows.loc["synthetic-coverage", "note"]
    assert "disputes" in rows.loc["agents-relative", "note"] and "V" in rows.loc["agents-relative", "source"]


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


# ----------------------------------------------------------------------------------------------------------------- roles


@pytest.mark.parametrize(
    "arm, expected",
    [
        ("parallel", "baseline"),
        ("parallel+kl", "baseline"),
        ("warm start", "baseline"),
        ("warm start, sketched", "baseline"),
        ("iid_sketches", "control"),
        ("iid_actions", "control"),
        ("sequential", "variant"),  # its update is given the history
        ("sesa", "variant"),
        ("actions", "variant"),
        ("sequential+kl", "variant"),
        ("parallel+unique", "variant"),
        ("iid_sketches+replay+unique", "variant"),
        ("sequential+replay+unique+distill", "variant"),
        ("parallel+kl+unique", "variant"),
    ],
)
def test_roles_of_trained_arms(arm, expected):
    assert role(arm) == expected


@pytest.mark.parametrize("arm", ["sequential-10", "sequential-32", "sequential", "sesa", "actions"])
def test_sampling_without_training_is_the_papers_method(arm):
    assert role(arm, trained=False) == "method"


def test_an_addition_of_ours_is_a_variant_without_training_too():
    assert role("sequential+unique", trained=False) == "variant" and role("parallel", trained=False) == "baseline"


def test_every_arm_has_a_role():
    assert {role(arm) for arm in SAMPLERS} == {"baseline", "control", "variant"}
    assert {role(f"{arm}+{more}") for arm in SAMPLERS for more in ADDITIONS if more != "kl"} == {"variant"}
    with pytest.raises(ValueError, match="no role is known for arm 'paralel'.*parallel"):
        role("paralel")


# --------------------------------------------------------------------------------------------------------------- verdict

REPRODUCED, SMALLER, CONTRADICTED, IMPRECISE = "reproduced", "smaller than the paper's", "contradicted", "too imprecise to tell"
BY_HAND = [  # the paper's effect is 0.4; bounds at no effect, at half and at the whole of it
    (0.2, 0.4, REPRODUCED),  # both ends on their bounds
    (0.3, 0.5, REPRODUCED),
    (0.5, 0.9, REPRODUCED),  # larger than the paper's
    (0.19, 0.4, IMPRECISE),  # the low end does not reach half
    (0.2, 0.39, SMALLER),
    (0.3, 0.35, SMALLER),
    (0.01, 0.1, SMALLER),
    (0.01, 0.39, SMALLER),
    (0.0, 0.1, CONTRADICTED),  # it contains no effect
    (-0.1, 0.19, CONTRADICTED),
    (-0.1, 0.2, IMPRECISE),  # its high end does not stay below half
    (0.0, 0.5, IMPRECISE),
    (0.01, 0.5, IMPRECISE),  # excludes no effect, and says no more
    (-0.1, 0.9, IMPRECISE),
    (-9.0, 9.0, IMPRECISE),
    (-0.3, 0.0, CONTRADICTED),
    (-0.5, -0.1, CONTRADICTED),  # the other side
]


@pytest.mark.parametrize("low, high, expected", BY_HAND)
def test_verdicts_by_hand(low, high, expected):
    assert verdict("difference", 0.4, low, high) == expected
    assert verdict("difference", -0.4, -high, -low) == expected


@pytest.mark.parametrize(
    "paper, low, high, expected",
    [
        (7.27, 1.01, 9.00, IMPRECISE),  # a wide interval does not win
        (7.27, 1.01, 1.30, SMALLER),
        (4, 2, 4, REPRODUCED),  # half of x4 is x2
        (4, 1.99, 4, IMPRECISE),
        (4, 2, 3.99, SMALLER),
        (4, 1.0, 1.99, CONTRADICTED),
        (4, 0.9, 2.0, IMPRECISE),
        (4, 0.5, 0.9, CONTRADICTED),
        (4, 0.0, 1.5, CONTRADICTED),
        (4, 3.0, math.inf, REPRODUCED),
        (0.25, 0.25, 0.5, REPRODUCED),  # the same with the sign flipped
        (0.25, 0.1, 0.51, IMPRECISE),
        (0.25, 0.26, 0.5, SMALLER),
        (0.25, 0.51, 1.0, CONTRADICTED),
        (0.25, 0.5, 1.2, IMPRECISE),
        (0.25, 1.5, 3.0, CONTRADICTED),
    ],
)
def test_verdicts_on_ratios_by_hand(paper, low, high, expected):
    assert verdict("ratio", paper, low, high) == expected


effects = st.floats(-2, 2).filter(lambda x: abs(x) > 1e-3)
bounds = st.tuples(st.floats(-5, 5), st.floats(-5, 5)).map(sorted)


@given(effects, bounds, st.floats(0, 5), st.floats(0, 5))
def test_a_wider_interval_never_wins(paper, ends, left, right):
    """No verdict that leaves half of the paper's effect in doubt becomes reproduced by a wider interval; only one wholly between half and
    the whole may, as then both verdicts say that at least half is there. And with enough width every verdict is lost."""
    low, high = ends
    narrow, wide = verdict("difference", paper, low, high), verdict("difference", paper, low - left, high + right)
    if wide == REPRODUCED:
        assert narrow in (REPRODUCED, SMALLER)
    if narrow == IMPRECISE:
        assert wide == IMPRECISE
    assert verdict("difference", paper, low - 20, high + 20) == IMPRECISE


@given(effects, bounds)
def test_mirrored_claims_have_mirrored_verdicts(paper, ends):
    low, high = ends
    assert verdict("difference", paper, low, high) == verdict("difference", -paper, -high, -low)


@given(effects, bounds)
def test_a_ratio_is_judged_as_the_difference_of_its_logarithm(paper, ends):
    low, high = ends
    near = [abs(end - bound) < 1e-9 for end in ends for bound in (0, paper / 2, paper)]
    assume(not any(near))  # exp and log round
    assert verdict("ratio", *map(math.exp, (paper, low, high))) == verdict("difference", paper, low, high)


# ---------------------------------------------------------------------------------------------------- a row is judged


def row(claim: str, setting: str, baseline: float, value: float, effects: tuple[float, float, float], seeds: int = 3, **more) -> dict:
    """A measured row, by default of the paper's method."""
    measured = {"id": claim, "setting": setting, "our_arm": "sequential", "role": "method", "analogue": "", "untested": ""}
    measured |= dict(zip(("baseline", "value", "effect", "low", "high"), (baseline, value, *effects), strict=True))
    flat = {f"{what} {part}": 0.0 for what in ("pass@1", "pass@16") for part in ("change", "low", "high")}
    return measured | flat | {"seeds": seeds, "problems": 4} | more


def joined(*rows: dict) -> list[dict]:
    """The rows as `claims_table` joins them."""
    table = pd.concat([paper_claims(), open_questions()]).reset_index(drop=True).merge(pd.DataFrame(rows), on="id")
    return table.to_dict("records")


def judge(*arguments, **more) -> tuple[str, str]:
    (one,) = joined(row(*arguments, **more))
    return judged(one)


GOOD = ("sudoku-pass32", "", 0.1, 0.2, (0.1, 0.05, 0.2))


def test_only_the_papers_method_is_judged():
    assert judge(*GOOD) == ("reproduced", "")
    for name in ("variant", "control", "baseline"):
        assert judge(*GOOD, role=name) == (f"{name}, not judged", "")
        assert judge(*GOOD, role=name, untested="no room") == (f"{name}, not judged", "no room")


def test_a_setting_that_cannot_decide_is_no_test():
    assert judge(*GOOD, untested="the list is too short") == ("not a test", "the list is too short")


def test_few_seeds_are_not_judged():
    assert judge(*GOOD, seeds=2) == judge(*GOOD, seeds=1) == ("not judged", "fewer than 3 seeds")


@pytest.mark.parametrize("claim", ["sudoku-pass32", "synthetic-distinct", "recovery", "open-cost", "open-group-size"])
def test_an_interval_that_is_nan_is_not_judged(claim):
    nan = float("nan")
    for low, high in ((nan, nan), (nan, 9.0), (-9.0, nan)):
        assert judge(claim, "", 1, 2, (2, low, high), seeds=5) == ("not judged", "there is no interval")


@pytest.mark.parametrize(
    "claim, low, high, answer",
    [
        ("open-group-size", 0.01, 0.2, "higher"),
        ("open-group-size", 0.0, 0.2, "no difference seen"),
        ("open-group-size", -0.2, 0.0, "no difference seen"),
        ("open-group-size", -0.2, -0.01, "lower"),
        ("open-cost", 1.01, 2.0, "higher"),
        ("open-cost", 1.0, 2.0, "no difference seen"),
        ("open-cost", 0.5, 1.0, "no difference seen"),
        ("open-cost", 0.5, 0.9, "lower"),
    ],
)
def test_answers_where_the_paper_has_no_number(claim, low, high, answer):
    assert judge(claim, "", 1, 1, (1, low, high), role="") == (answer, "")
    assert judge(claim, "", 1, 1, (1, low, high), seeds=2, role="") == ("not judged", "fewer than 3 seeds")


def recovery(ratio, first, many):
    changes = {f"{what} {end}": x for what, ends in (("pass@1", first), ("pass@16", many)) for end, x in zip(("low", "high"), ends)}
    return judge("recovery", "", 1.4, 2.8, (2.0, *ratio), **changes)


RISES, HOLDS, FALLS = (1.9, 2.1), (-0.1, 0.1), (-0.3, -0.1)


def test_recovery_needs_the_ratio_to_rise_and_neither_pass_to_fall():
    assert recovery(RISES, HOLDS, HOLDS) == ("reproduced", "")
    assert recovery(RISES, (0.1, 0.2), (0.1, 0.2)) == ("reproduced", "")
    assert recovery(RISES, FALLS, HOLDS) == ("contradicted", "pass@1 fell")
    assert recovery(RISES, HOLDS, FALLS) == ("contradicted", "pass@16 fell")
    assert recovery(RISES, FALLS, FALLS) == ("contradicted", "pass@1 and pass@16 fell")
    assert recovery((0.9, 4.0), FALLS, HOLDS)[0] == "contradicted"  # whatever the ratio
    assert recovery(RISES, (-0.3, 0.0), HOLDS) == ("reproduced", "")  # boundary: an interval that holds 0 did not fall
    assert recovery((1.1, 1.2), HOLDS, HOLDS) == ("smaller than the paper's", "")
    assert recovery((0.9, 1.1), (0.1, 0.2), HOLDS) == ("contradicted", "")
    assert recovery((0.9, 4.0), HOLDS, HOLDS) == ("too imprecise to tell", "")
    assert recovery(RISES, (float("nan"),) * 2, HOLDS) == ("not judged", "there is no interval")


def test_no_other_claim_looks_at_what_recovery_must_not_cost():
    assert judge(*GOOD, **{"pass@1 high": -0.1}) == ("reproduced", "")


# --------------------------------------------------------------------------------------------------------------- measure


def arm(*rows):
    """(seeds, problems)."""
    return pd.DataFrame(list(rows))


def test_measured_difference_by_hand():
    """Always +0.3: what the problems differ in is common to both arms and leaves no doubt about the effect."""
    row = measure("synthetic-coverage", "T=1", arm([0.1, 0.3], [0.2, 0.2]), arm([0.4, 0.6], [0.5, 0.5]), arm="sequential")
    assert list(row) == MEASURED
    assert {key: x for key, x in row.items() if x == x} == {
        "id": "synthetic-coverage",
        "setting": "T=1",
        "our_arm": "sequential",
        "role": "variant",
        "analogue": "",
        "untested": "",
        "baseline": pytest.approx(0.2),
        "value": pytest.approx(0.5),
        "effect": pytest.approx(0.3),
        "low": pytest.approx(0.3),
        "high": pytest.approx(0.3),
        "seeds": 2,
        "problems": 2,
    }


def test_measured_ratio_is_of_the_means_and_fits_them():
    base, value = arm([1.0, 3.0], [2.0, 4.0], [2.0, 3.0]), arm([2.0, 6.0], [5.0, 7.0], [4.0, 7.0])
    row = measure("synthetic-distinct", "", base, value, arm="sequential-10", trained=False, analogue="a cut tree", untested="capped")
    assert (row["effect"], row["low"], row["high"]) == interval(value, over=base)
    assert row["effect"] == pytest.approx(row["value"] / row["baseline"]) == pytest.approx(31 / 15)
    assert (row["role"], row["analogue"], row["untested"]) == ("method", "a cut tree", "capped")


def test_measured_recovery_has_three_effects():
    before, after = arm([0.2, 0.4], [0.3, 0.3], [0.1, 0.3]), arm([0.3, 0.4], [0.4, 0.5], [0.2, 0.3])
    ratio = arm([1.0], [1.1], [1.2]), arm([2.0], [2.3], [2.5])
    changes = {"pass@1": (before, after), "pass@16": (after, before)}
    row = measure("recovery", "", *ratio, arm="sesa", changes=changes)
    assert [row[f"pass@1 {part}"] for part in ("change", "low", "high")] == list(interval(after - before))
    assert [row[f"pass@16 {part}"] for part in ("change", "low", "high")] == list(interval(before - after))
    assert (row["effect"], row["low"], row["high"]) == interval(ratio[1], over=ratio[0])
    for missing in ({}, {"pass@1": (before, after)}):
        with pytest.raises(ValueError, match="recovery: give `changes` for pass@1 and pass@16"):
            measure("recovery", "", *ratio, arm="sesa", changes=missing)
    with pytest.raises(ValueError, match="same seeds and problems"):
        measure("recovery", "", *ratio, arm="sesa", changes=changes | {"pass@16": (after, before.iloc[:2])})


def test_an_open_question_has_no_role():
    assert measure("open-cost", "", arm([1.0]), arm([2.0]))["role"] == ""
    with pytest.raises(ValueError, match="no role is known for arm ''"):
        measure("sudoku-pass32", "", arm([1.0]), arm([2.0]))


def test_a_claim_that_the_paper_does_not_make_cannot_be_measured():
    with pytest.raises(KeyError, match="no-such-claim"):
        measure("no-such-claim", "", arm([1.0]), arm([2.0]))


def test_arms_of_other_problems_are_refused():
    with pytest.raises(ValueError, match="same seeds and problems"):
        measure("sudoku-pass32", "", arm([1.0, 2.0]), arm([2.0]), arm="sesa")
    with pytest.raises(ValueError, match="same seeds and problems"):
        measure("sudoku-pass32", "", arm([1.0, 2.0]), arm([1.0, 2.0]).rename(columns={0: "map0"}), arm="sesa")


def test_a_ceiling_below_the_papers_effect_is_no_test():
    assert capped("synthetic-distinct", 9.5, 37.0) == "at most ×3.89 can be reached here, less than the paper's ×7.27"
    assert capped("synthetic-distinct", 11, 80) == ""  # 80 / 11 is a little more than 7.27
    assert capped("sudoku-pass32", 0.96, 1.0) == "at most +0.04 can be reached here, less than the paper's +0.06"
    assert capped("sudoku-pass32", 0.7, 1.0) == ""
    assert capped("agents-relative", 0.338, 0.5).startswith("at most ×1.48")
    assert capped("agents-relative", 0.0, 0.5) == capped("recovery", float("nan"), 1.0) == ""  # nothing bounds it


def test_a_baseline_that_learned_nothing_is_no_test():
    start = arm([0.1, 0.3, 0.2], [0.2, 0.2, 0.2], [0.2, 0.3, 0.2])
    assert nothing_learned(start, start + 0.1) == ""
    assert nothing_learned(start, start) == "`parallel` itself has no clear gain: +0.00 [+0.00, +0.00]"
    assert nothing_learned(start, start - 0.1).endswith("-0.10 [-0.10, -0.10]")
    assert nothing_learned(start[:1], start[:1]) == ""  # one seed: nobody can tell, and nobody judges


# ----------------------------------------------------------------------------------------------------------------- table


def test_nothing_measured_is_not_run(in_tmp):
    table = claims_table("test")
    assert list(table["id"]) == [*PAPER, *open_questions()["id"]]
    assert set(table["verdict"]) == {"not run at this scale"}
    assert list(headline(table)["id"]) == list(PAPER)


@pytest.mark.parametrize("setting", ["", "8"])
def test_a_setting_may_be_empty_or_a_number(in_tmp, setting):
    save_claims("06_fake", "test", [row("recovery", setting, 1, 2, (2, 1.9, 2.1))])
    ours = f"sequential, {setting}" if setting else "sequential"
    assert f"(×2) | {ours} | the paper's | 1 → 2 | ×2 [×1.9, ×2.1]; pass@1" in claims_markdown(claims_table("test"))


def test_a_notebook_that_measured_nothing_breaks_nothing(in_tmp):
    save_claims("01_fake", "test", [])
    save_claims("02_fake", "test", [row("recovery", "", 1, 2, (2, 1.9, 2.1))])
    verdicts = claims_table("test").set_index("id")["verdict"]
    assert verdicts.pop("recovery") == "reproduced"
    assert set(verdicts) == {"not run at this scale"}


def test_a_file_of_older_code_is_refused(in_tmp):
    save_claims("01_fake", "test", [row(*GOOD)]).drop(columns="role").to_csv(in_tmp / "figures/test/01_claims.csv", index=False)
    with pytest.raises(ValueError, match="01_claims.csv has other columns: write it again with `make figures PROFILE=test`"):
        claims_table("test")


def test_a_row_made_by_hand_may_lack_what_is_of_no_use_to_it(in_tmp):
    by_hand = {"id": "open-cost", "setting": "", "effect": 2.0, "low": 1.5, "high": 3.0, "seeds": 5, "problems": 1}
    save_claims("07_fake", "test", [by_hand])
    assert claims_table("test").set_index("id")["verdict"]["open-cost"] == "higher"


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
    assert [(r.id, r.setting, r.verdict, r.why) for r in table.itertuples() if r.verdict != "not run at this scale"] == [
        ("synthetic-distinct", "T=1", "reproduced", ""),
        ("synthetic-distinct", "T=0.7", "smaller than the paper's", ""),
        ("sudoku-pass32", "G=8", "not judged", "fewer than 3 seeds"),
        ("recovery", "new", "contradicted", ""),
    ]
    assert list(table["id"]) == ["synthetic-distinct", *PAPER, *open_questions()["id"]]  # in the paper's order, one row per setting
    first = table.iloc[0]
    assert (first["paper_baseline"], first["paper_value"], first["paper_effect"]) == (11, 80, 7.27)
    assert (first["baseline"], first["value"], first["effect"], first["low"], first["high"]) == (10, 75, 7.5, 7.0, 8.0)
    assert (first["seeds"], first["problems"]) == (3, 4)


def test_the_headline_has_one_row_per_claim_and_method(in_tmp):
    rows = [
        row("synthetic-distinct", "main", 10, 75, (7.5, 7.0, 8.0), our_arm="sequential-10"),
        row("synthetic-distinct", "another", 10, 75, (7.5, 7.0, 8.0), our_arm="sequential-32"),
        row("sudoku-pass32", "", 0.1, 0.3, (0.2, 0.1, 0.3), our_arm="parallel", role="baseline"),
        row("sudoku-pass32", "", 0.1, 0.3, (0.2, 0.1, 0.3), our_arm="sesa+unique", role="variant"),
        row("sudoku-pass32", "", 0.1, 0.3, (0.2, 0.1, 0.3), our_arm="sesa", role="variant"),
        row("sudoku-pass32", "", 0.1, 0.3, (0.2, 0.1, 0.3), our_arm="sequential", role="variant"),
        row("open-cost", "", 1, 2, (2, 1.9, 2.1), our_arm="", role=""),
    ]
    save_claims("01_fake", "test", rows)
    shown = headline(claims_table("test"))
    assert [(r.id, r.our_arm, r.setting) for r in shown.itertuples() if r.our_arm] == [
        ("synthetic-distinct", "sequential-10", "main"),
        ("sudoku-pass32", "sesa", ""),
        ("sudoku-pass32", "sequential", ""),
    ]
    assert set(shown["id"]) == set(PAPER)  # claims without a measurement stay in sight
    assert message(shown) == "Of 10 rows: 7 not run at this scale; 2 variant, not judged; 1 reproduced"
    assert message(shown[shown["verdict"] != "reproduced"]) == "No claim of the paper is decided here: 7 not run at this scale; 2 variant, not judged"


def test_shares_of_the_papers_effect_by_hand():
    rows = joined(
        row("recovery", "", 1, 4, (4, 2, 8)),  # the paper: x2
        row("sudoku-pass32", "", 0, 0, (0.03, -0.06, 0.12)),  # the paper: 0.06
    )
    assert shares(pd.DataFrame(rows)).to_numpy() == pytest.approx(np.array([[0.5, -1, 2], [2, 1, 3]]))
    falling = pd.DataFrame([{"effect_kind": "difference", "paper_effect": -0.2, "effect": -0.1, "low": -0.3, "high": 0.1}])
    assert shares(falling).to_numpy() == pytest.approx(np.array([[0.5, -0.5, 1.5]]))


def test_every_verdict_has_a_colour_that_no_method_has():
    cells = json.loads((claims.ROOT / "notebooks/10_claims.ipynb").read_text(encoding="utf-8"))["cells"]
    (source,) = ("".join(cell["source"]) for cell in cells if "".join(cell["source"]).startswith("LOOK"))
    exec(source, names := {"np": np})
    assert names["LOOK"].keys() == {*claims.DECIDED, claims.TOO_IMPRECISE, claims.NOT_A_TEST}
    colours = [colour for colour, _ in names["LOOK"].values()]
    assert len({*colours} - {*ARM_COLOUR.values()}) == len(colours) == 5


# -------------------------------------------------------------------------------------------------------------- markdown


def test_open_questions_have_a_table_without_the_paper(in_tmp):
    save_claims("07_fake", "test", [row("open-cost", "G=8", 1, 2, (2, 1.9, 2.1), our_arm="", role="")])
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
    save_claims("01_fake", "test", [row("synthetic-distinct", "T=1", 10.25, 75.5, (7.5, 7.0, 8.0), our_arm="sequential-10")])
    sudoku = row("sudoku-pass32", "G=8", 0.1, 0.05, (-0.05, -0.1, 0.012), 2, analogue="4x4", our_arm="sesa", role="variant")
    alone = row("aime24-passk", "", 0.1, 0.2, (0.1, float("nan"), float("nan")), 1, untested="nothing learned")
    save_claims("06_fake", "test", [sudoku, alone, row("recovery", "", 1.4, 2.8, (2, 1.9, 2.1), **{"pass@1 high": -0.1})])
    table = claims_table("test")
    header, rule, *lines = claims_markdown(table).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len(cells) == len(table) and {len(c) for c in cells} == {8} == {header.count("|") - 1, rule.count("|") - 1}
    by_claim = dict(zip(table["id"], cells, strict=True))
    assert by_claim["synthetic-distinct"] == [
        "Section 2, distinct paths in 500 samples: sequential-10 over parallel",
        "11 → 80 (×7.27)",
        "sequential-10, T=1",
        "the paper's",
        "10.2 → 75.5",
        "×7.5 [×7, ×8]",
        "3",
        "reproduced",
    ]
    assert by_claim["sudoku-pass32"][1:] == ["(+0.06)", "sesa, G=8", "analogue: 4x4", "0.1 → 0.05", "-0.05 [-0.10, +0.01]", "2", "variant, not judged"]
    assert by_claim["aime24-passk"][-3:] == [written([0.1, np.nan, np.nan], "{:+.2f}"), "1", "not a test: nothing learned"]
    assert by_claim["recovery"][-3:-1] == ["×2 [×1.9, ×2.1]; pass@1 +0.00 [+0.00, -0.10]; pass@16 +0.00 [+0.00, +0.00]", "3"]
    assert by_claim["recovery"][-1] == "contradicted: pass@1 fell"
    assert by_claim["agents-gain-1"][1:] == ["(+0.25)", "", "", "", "", "", "not run at this scale"]


def test_laptop_stands_beside_the_study(in_tmp):
    settings = [("T=1", 7.5), ("T=0.7", 2.5), ("T=0.5", 1.5)]
    for profile, settings in (("study", settings), ("laptop", [("T=1", 3.0), ("T=0.7", 0.5), ("another", 2.0)])):
        rows = [row("synthetic-distinct", at, 1, x, (x, x - 0.1, x + 0.1)) for at, x in settings]
        save_claims("01_fake", profile, [*rows, row("synthetic-distinct", "T=0.5", 1, 2, (2, 1, 3), our_arm="sesa")][: 3 + (profile == "laptop")])
    table = claims_table("study")
    header, _, *lines = claims_markdown(table[table["id"] == "synthetic-distinct"], claims_table("laptop")).splitlines()
    assert header.split(" | ")[-2:] == ["laptop", "verdict |"]
    assert [line.split(" | ")[-2] for line in lines] == ["×3, same sign", "×0.5, opposite sign", ""]


def test_readme_has_the_studys_claims_and_a_note_on_the_many_questions(in_tmp):
    save_claims("01_fake", "study", [row(*GOOD), row("open-cost", "G=8", 1, 2, (2, 1.9, 2.1), our_arm="", role="")])
    save_claims("01_fake", "laptop", [row("sudoku-pass32", "", 0.1, 0.05, (-0.05, -0.1, 0.0))])
    marks = "".join(f"<!-- {name}: written by `make readme` -->\nreplace me\n<!-- end of {name} -->\n" for name in ("claims", "open questions"))
    text = with_claims(f"before\n{marks}after\n", claims_table("laptop"), claims_table("study"))
    assert text.startswith("before\n") and text.endswith("after\n") and "replace me" not in text
    assert "-0.05, opposite sign | reproduced |" in text and "reproduced" not in text.split("open questions")[1]
    assert chance_note(1) in text.split("<!-- open questions")[1]
    assert with_claims(text, claims_table("laptop"), claims_table("study")) == text
