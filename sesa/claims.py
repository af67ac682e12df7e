"""The claims table: each number of the paper (`data/paper_claims.csv`) beside ours, with a verdict by rule; and what
the paper leaves open (`data/open_questions.csv`), with an answer by rule.

A notebook measures with `measure` and stores with `save_claims`; `claims_table` joins a profile's rows with the
paper's. The profile `study` is the evidence; in README the profile `laptop` stands beside it.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from sesa.intervals import interval, written
from sesa.runs import ROOT, home, verified_text, write_atomic

PAPER = ROOT / "data" / "paper_claims.csv"
OPEN = ROOT / "data" / "open_questions.csv"
MIN_SEEDS = 3  # no verdict on fewer
TOGETHER = {"recovery": ("pass@1", "pass@16")}  # claims that need these not to fall
PARTS = ("change", "low", "high")  # of each of those: columns "pass@1 change", "pass@1 low", ...
TEXTS = ["id", "setting", "our_arm", "role", "analogue", "untested"]
EFFECT = ["baseline", "value", "effect", "low", "high"]
CHANGES = [f"{what} {part}" for what in TOGETHER["recovery"] for part in PARTS]
MEASURED = [*TEXTS, *EFFECT, *CHANGES, "seeds", "problems"]
NUMBERS = ["paper_baseline", "paper_value", "paper_effect", *MEASURED[len(TEXTS) :]]

REPRODUCED, SMALLER, CONTRADICTED = DECIDED = ("reproduced", "smaller than the paper's", "contradicted")
TOO_IMPRECISE, NOT_A_TEST, NOT_JUDGED = "too imprecise to tell", "not a test", "not judged"
NOT_RUN = "not run at this scale"

ROLE = {  # how an arm draws -> what that is to the paper
    "sequential": "method",
    "sesa": "method",
    "actions": "method",
    "iid_sketches": "control",
    "iid_actions": "control",
    "parallel": "baseline",
    "warm start": "baseline",
}


# ---------------------------------------------------------------------------------------------------------- the paper


def paper_claims() -> pd.DataFrame:
    """The paper's numbers, one row a claim, indexed by `id`.

    Raises:
        DataError: the file is missing or is not the one recorded in SHA256SUMS.
    """
    return pd.read_csv(io.StringIO(verified_text(PAPER))).set_index("id", drop=False)


def open_questions() -> pd.DataFrame:
    """What the paper leaves open, in our words and in the columns of `paper_claims`; without a number of the paper's.

    Raises:
        DataError: as there.
    """
    asked = pd.read_csv(io.StringIO(verified_text(OPEN))).set_index("id", drop=False)
    return asked.reindex(columns=paper_claims().columns)


def _all() -> pd.DataFrame:
    return pd.concat([paper_claims(), open_questions().astype({c: float for c in NUMBERS[:3]})])


# ------------------------------------------------------------------------------------------------------------ measure


def sampler_of(arm: str) -> str:
    """How an arm draws: "sequential" for "sequential-10", "sequential" and "sequential+unique"."""
    return arm.split("+")[0].split("-")[0].split(",")[0]


def role(arm: str, trained: bool = True) -> str:
    """What an arm is to the paper: its `method`, a `variant` of ours, a `control` (no history) or a `baseline`.

    An addition of ours makes any arm a variant; a KL term does not, as RAGEN's public configuration has one. The paper
    updates plain pi(y|x); our training conditions its update on the history or the sketch, so a trained arm is a
    variant too. Until the paper's update is built, only sampling without training is its method.

    Raises:
        ValueError: nothing in `ROLE` draws like this.
    """
    if sampler_of(arm) not in ROLE:
        raise ValueError(f"no role is known for arm {arm!r}: its name must begin with one of {', '.join(ROLE)}")
    found = ROLE[sampler_of(arm)]
    ours = {*arm.split("+")[1:]} - {"kl"}
    return "variant" if ours or (trained and found == "method") else found


def measure(
    claim: str,
    setting: str,
    baseline: pd.DataFrame,
    value: pd.DataFrame,
    arm: str = "",
    trained: bool = True,
    analogue: str = "",
    untested: str = "",
    changes: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]] | None = None,
) -> dict:
    """One measured row: the means of baseline and value, and the effect with its 95% interval.

    Args:
        claim: its id in one of the two tables, which say whether the effect is a ratio (of means) or a difference.
        setting: what a reader must know of it, e.g. "T=1"; no measured numbers, as profiles are matched by it. Measure
            the main setting of a claim and a method first: `headline` shows only that.
        baseline, value: the two arms on the same problems, (seeds, problems), index and columns alike.
        arm, trained: what `value` is, for `role`. Needed for a claim of the paper, unused for an open question.
        analogue: how our task differs from the paper's; empty where it is the paper's.
        untested: why this row cannot decide the claim (see `capped`, `nothing_learned`); empty where it can.
        changes: for a claim in `TOGETHER`, what must not fall: (before, after), each like baseline and value.

    Raises:
        KeyError: there is no such claim or question.
        ValueError: other seeds or problems in the two arms; an arm without a role; changes that are missing.
    """
    kind, needed, changes = _all().loc[claim, "effect_kind"], TOGETHER.get(claim, ()), changes or {}
    if not {*needed} <= {*changes}:
        raise ValueError(f"{claim}: give `changes` for {' and '.join(needed)}, which this claim needs as well")
    pairs = [(baseline, value), *(changes[what] for what in needed)]
    if not all(one.index.equals(other.index) and one.columns.equals(other.columns) for one, other in pairs):
        raise ValueError(f"{claim}: both arms must have the same seeds and problems")
    ours = role(arm, trained) if claim in paper_claims().index else ""
    texts = [claim, setting, arm, ours, analogue, untested]
    row = dict.fromkeys(MEASURED, np.nan) | dict(zip(TEXTS, texts, strict=True))
    effect = interval(value, over=baseline) if kind == "ratio" else interval(value - baseline)
    row |= dict(zip(EFFECT, [baseline.to_numpy().mean(), value.to_numpy().mean(), *effect], strict=True))
    for what in needed:
        before, after = changes[what]
        row |= dict(zip([f"{what} {part}" for part in PARTS], interval(after - before), strict=True))
    return row | dict(zip(("seeds", "problems"), value.shape, strict=True))


def capped(claim: str, baseline: float, best: float) -> str:
    """Why a setting cannot show the paper's effect: even `best`, the most that can be reached in it, is less than that
    above the baseline's mean. Empty where the paper's effect can be reached."""
    kind, paper = paper_claims().loc[claim, ["effect_kind", "paper_effect"]]
    with np.errstate(divide="ignore", invalid="ignore"):
        most = np.divide(best, baseline) if kind == "ratio" else best - baseline
    if not most < paper:
        return ""
    return f"at most {sign(kind).format(most)} can be reached here, less than the paper's {sign(kind).format(paper)}"


def nothing_learned(before: pd.DataFrame, after: pd.DataFrame) -> str:
    """Why a task is no test: the interval of the baseline's own gain, after - before, is not above 0. Empty where it
    is, and where there is no interval. before, after: (seeds, problems)."""
    gain = interval(after - before)
    return f"`parallel` itself has no clear gain: {written(gain, '{:+.2f}')}" if gain[1] <= 0 else ""


# ------------------------------------------------------------------------------------------------------------ verdict


def verdict(kind: str, paper_effect: float, low: float, high: float) -> str:
    """The verdict on a claim of the paper, from the interval (low, high) of our effect.

    Ratios are compared by their logarithms, so that no effect is 0 for both kinds, and half of x4 is x2; where the
    paper's effect is negative, with all signs flipped. With P the paper's effect:

    - reproduced: low >= P/2 and high >= P. No effect is excluded, half of P is reached, P lies inside or below.
    - smaller than the paper's: low > 0 and high < P. It is on the paper's side, and wholly below P.
    - contradicted: low <= 0 and high < P/2. It is on the other side, or holds no effect and stays below half of P.
    - too imprecise to tell: all else. So a wide interval never wins.
    """
    paper, low, high = on_scale(kind, paper_effect, low, high)
    if paper < 0:
        paper, low, high = -paper, -high, -low
    if low >= paper / 2 and high >= paper:
        return REPRODUCED
    if low > 0 and high < paper:
        return SMALLER
    if low <= 0 and high < paper / 2:
        return CONTRADICTED
    return TOO_IMPRECISE


def on_scale(kind: str, *effects: float) -> list[float]:
    """Effects on the scale where no effect is 0: logarithms of ratios (NaN below 0), differences as they are."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return [float(np.log(x) if kind == "ratio" else x) for x in effects]


def judged(row: Mapping) -> tuple[str, str]:
    """(verdict, why) of a row of the joined table.

    Of an open question: higher or lower where the interval excludes no effect, else no difference seen. Of a claim:
    by `verdict`, where the row's role is `method`, nothing makes it no test, and there is an interval from `MIN_SEEDS`
    seeds or more. A claim in `TOGETHER` is contradicted, too, where one of the values that must not fall does: where
    the interval of its change lies wholly below 0.
    """
    asked, together = pd.isna(row["paper_effect"]), TOGETHER.get(row["id"], ())
    if pd.isna(row["seeds"]):
        return NOT_RUN, ""
    if not asked and row["role"] != "method":
        return f"{row['role']}, {NOT_JUDGED}", row["untested"]
    if not asked and row["untested"]:
        return NOT_A_TEST, row["untested"]
    if row["seeds"] < MIN_SEEDS:
        return NOT_JUDGED, f"fewer than {MIN_SEEDS} seeds"
    low, high = on_scale(row["effect_kind"], row["low"], row["high"])
    if np.isnan([low, high, *(row[f"{what} high"] for what in together)]).any():
        return NOT_JUDGED, "there is no interval"
    if asked:
        return "higher" if low > 0 else "lower" if high < 0 else "no difference seen", ""
    if fallen := [what for what in together if row[f"{what} high"] < 0]:
        return CONTRADICTED, f"{' and '.join(fallen)} fell"
    return verdict(row["effect_kind"], row["paper_effect"], row["low"], row["high"]), ""


# -------------------------------------------------------------------------------------------------------------- table


def save_claims(notebook: str, profile: str, rows: Sequence[dict]) -> pd.DataFrame:
    """Writes what a notebook measured to `figures/<profile>/<NN>_claims.csv`; returns it as a table."""
    table = pd.DataFrame([dict.fromkeys(TEXTS, "") | row for row in rows], columns=MEASURED)
    write_atomic(_folder(profile) / f"{notebook[:2]}_claims.csv", table.to_csv(index=False, lineterminator="\n"))
    return table


def claims_table(profile: str) -> pd.DataFrame:
    """All claims of the paper and open questions, each beside what this profile measured (one row per setting), with
    `verdict` and `why`; `NOT_RUN` where nothing was.

    Raises:
        ValueError: a file of measured claims has other columns than `MEASURED`.
    """
    rows = []
    for path in sorted(_folder(profile).glob("[0-9][0-9]_claims.csv")):
        table = read(path)
        if list(table) != MEASURED:
            raise ValueError(f"{path} has other columns: write it again with `make figures PROFILE={profile}`")
        rows += table.to_dict("records")
    ours = pd.DataFrame(rows, columns=MEASURED)
    table = _all().reset_index(drop=True).merge(ours, on="id", how="left").fillna(dict.fromkeys(TEXTS, ""))
    table[["verdict", "why"]] = [judged(row) for row in table.to_dict("records")]
    return table


def save_table(profile: str) -> pd.DataFrame:
    """Writes `claims_table` to `figures/<profile>/claims.csv` and returns it."""
    table = claims_table(profile)
    write_atomic(_folder(profile) / "claims.csv", table.to_csv(index=False, lineterminator="\n"))
    return table


def headline(table: pd.DataFrame) -> pd.DataFrame:
    """At most one row per claim of the paper and method: arms that draw as the paper does, without additions, in the
    setting that their notebook measured first; and claims that nothing was measured for."""
    stated = table[table["paper_effect"].notna()]
    plain = stated[[not arm or role(arm, trained=False) == "method" for arm in stated["our_arm"]]]
    return plain[~plain.assign(draws=plain["our_arm"].map(sampler_of)).duplicated(["id", "draws"])]


def shares(table: pd.DataFrame) -> pd.DataFrame:
    """`effect`, `low`, `high` of each row over the paper's effect, ratios by logarithms: 0 is none, 1 the paper's."""
    rows = []
    for r in table.to_dict("records"):
        paper, effect, *ends = on_scale(r["effect_kind"], r["paper_effect"], r["effect"], r["low"], r["high"])
        rows.append([effect / paper, *sorted(end / paper for end in ends)])
    return pd.DataFrame(rows, index=table.index, columns=["effect", "low", "high"])


def message(shown: pd.DataFrame) -> str:
    """What the rows of `headline` say, in one line: how many have which verdict."""
    counts = shown["verdict"].value_counts()
    said = "; ".join(f"{n} {name}" for name, n in counts.items())
    decided = {*counts.index} & {*DECIDED}
    return f"Of {len(shown)} rows: {said}" if decided else f"No claim of the paper is decided here: {said}"


def sign(kind: str) -> str:
    """How an effect of this kind is written: "×{:.3g}" or "{:+.2f}"."""
    return "×{:.3g}" if kind == "ratio" else "{:+.2f}"


def read(path: Path) -> pd.DataFrame:
    """A claims table from its file. Raises OSError if there is none."""
    return pd.read_csv(path, dtype={"setting": str}, keep_default_na=False, na_values={c: [""] for c in NUMBERS})


def _folder(profile: str) -> Path:
    return home() / "figures" / profile
