"""The claims table: each number of the paper (`data/paper_claims.csv`) beside ours, with a verdict by rule, and what the paper leaves open
(`data/open_questions.csv`), with an answer by rule. Nothing is typed by hand.

A notebook measures a claim with `measure` and stores it with `save_claims`; `claims_table` joins all of a profile's with the paper's.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from sesa.metrics import bootstrap_interval
from sesa.runs import ROOT, home, verified_text, write_atomic

PAPER = ROOT / "data" / "paper_claims.csv"
OPEN = ROOT / "data" / "open_questions.csv"
MIN_SEEDS = 3  # no verdict on fewer
MEASURED = ["id", "setting", "baseline", "value", "effect", "low", "high", "seeds", "problems"]
NUMBERS = ["paper_baseline", "paper_value", "paper_effect", *MEASURED[2:]]
NOT_RUN = "not run at this scale"


def paper_claims() -> pd.DataFrame:
    """The paper's numbers, one row a claim, indexed by `id`.

    Raises:
        DataError: the file is missing or is not the one recorded in SHA256SUMS.
    """
    return pd.read_csv(io.StringIO(verified_text(PAPER))).set_index("id", drop=False)


def open_questions() -> pd.DataFrame:
    """What the paper leaves open, worded by us, in the columns of `paper_claims`; there is no number of the paper's.

    Raises:
        DataError: as there.
    """
    return pd.read_csv(io.StringIO(verified_text(OPEN))).set_index("id", drop=False).reindex(columns=paper_claims().columns)


def _all() -> pd.DataFrame:
    return pd.concat([paper_claims(), open_questions().astype({c: float for c in NUMBERS[:3]})])


def measure(claim: str, setting: str, baseline: pd.DataFrame, value: pd.DataFrame) -> dict:
    """One measured claim: both arms' means, and the effect with its 95% interval.

    Args:
        claim: its id in one of these two tables, which also say whether the effect is a ratio (of the means) or a difference.
        setting: what of our setting a reader must know, e.g. "T=1".
        baseline, value: the two arms on the same problems, (seeds, problems), index and columns alike.

    Raises:
        KeyError: there is no such claim or question.
        ValueError: the two arms have other seeds or problems.
    """
    if not (baseline.index.equals(value.index) and baseline.columns.equals(value.columns)):
        raise ValueError(f"{claim}: both arms must have the same seeds and problems")
    if _all().loc[claim, "effect_kind"] == "ratio":
        effect, low, high = bootstrap_interval(value, over=baseline)
    else:
        effect, low, high = bootstrap_interval(value - baseline)
    seeds, problems = value.shape
    means = {"baseline": baseline.to_numpy().mean(), "value": value.to_numpy().mean()}
    return {"id": claim, "setting": setting, **means, "effect": effect, "low": low, "high": high, "seeds": seeds, "problems": problems}


def verdict(kind: str, paper_effect: float, low: float, high: float, seeds: int) -> str:
    """Of an effect, measured with interval (low, high), beside the paper's.

    reproduced: the interval excludes "no effect" on the paper's side, and reaches the paper's effect or lies beyond it. direction only:
    it excludes "no effect", but stays below the paper's. not reproduced: it contains "no effect", or lies on the other side. not judged: fewer than 3 seeds.

    Where the paper leaves a question open, its effect being nan: higher or lower, when the interval excludes "no effect"; else no difference seen.
    """
    if seeds < MIN_SEEDS:
        return "not judged"
    nothing = 1.0 if kind == "ratio" else 0.0
    if pd.isna(paper_effect):
        return "higher" if low > nothing else "lower" if high < nothing else "no difference seen"
    if paper_effect < nothing:  # look at it in the mirror
        paper_effect, low, high = -paper_effect, -high, -low
        nothing = -nothing
    if not low > nothing:  # an interval that is no number shows nothing either
        return "not reproduced"
    return "reproduced" if high >= paper_effect else "direction only"


def save_claims(notebook: str, profile: str, rows: Sequence[dict]) -> pd.DataFrame:
    """Writes the claims that a notebook measured to `figures/<profile>/<NN>_claims.csv`; returns them as a table."""
    table = pd.DataFrame(rows, columns=MEASURED)
    write_atomic(_folder(profile) / f"{notebook[:2]}_claims.csv", table.to_csv(index=False, lineterminator="\n"))
    return table


def claims_table(profile: str) -> pd.DataFrame:
    """All claims of the paper and open questions, each beside what this profile measured (one row per setting), or `NOT_RUN`."""
    files = sorted(_folder(profile).glob("[0-9][0-9]_claims.csv"))
    measured = [row for p in files for row in read(p).to_dict("records")]
    ours = pd.DataFrame(measured, columns=MEASURED)
    table = _all().reset_index(drop=True).merge(ours, on="id", how="left")
    table["verdict"] = [
        NOT_RUN if pd.isna(r["seeds"]) else verdict(r["effect_kind"], r["paper_effect"], r["low"], r["high"], r["seeds"])
        for r in table.to_dict("records")
    ]
    return table


def save_table(profile: str) -> pd.DataFrame:
    """Writes `claims_table` to `figures/<profile>/claims.csv` and returns it."""
    table = claims_table(profile)
    write_atomic(_folder(profile) / "claims.csv", table.to_csv(index=False, lineterminator="\n"))
    return table


def claims_markdown(table: pd.DataFrame) -> str:
    """The table of `claims_table` for people, as Markdown. Of rows that are all open questions, without a column for the paper."""
    asked = bool(len(table)) and table["paper_effect"].isna().all()
    titles = ["question" if asked else "claim", "paper: baseline → method (effect)", "setting", "ours: baseline → method", "effect [95% interval]", "seeds"]
    titles.append("answer" if asked else "verdict")
    rows = []
    for r in table.to_dict("records"):
        sign = "×{:.3g}" if r["effect_kind"] == "ratio" else "{:+.2f}"
        stated = "" if pd.isna(r["paper_value"]) else f"{r['paper_baseline']:g} → {r['paper_value']:g} "
        paper = "left open" if pd.isna(r["paper_effect"]) else f"{stated}({sign.format(r['paper_effect'])})"
        ours = ["", "", "", ""]
        if r["verdict"] != NOT_RUN:
            interval = f"{sign.format(r['effect'])} [{sign.format(r['low'])}, {sign.format(r['high'])}]"
            ours = [r["setting"], f"{r['baseline']:.3g} → {r['value']:.3g}", interval, str(int(r["seeds"]))]
        rows.append([f"{r['where']}{' ' if asked else ', '}{r['metric']}: {r['arm']} over {r['baseline_arm']}", paper, *ours, r["verdict"]])
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join("| " + " | ".join(cells[:1] + cells[1 + asked :]) + " |\n" for cells in lines)


def with_section(text: str, name: str, content: str) -> str:
    """`text` with what stands between the two marks of this name replaced by `content`, which ends with a line's end."""
    begin, end = f"<!-- {name}: written by `make readme` -->", f"<!-- end of {name} -->"
    head, rest = text.split(begin)
    return head + begin + "\n" + content + end + rest.split(end)[1]


def with_claims(text: str, laptop: pd.DataFrame, study: pd.DataFrame) -> str:
    """`text` with its section of claims replaced by the paper's that the first table judges, and that of open questions by the second's."""
    text = with_section(text, "claims", claims_markdown(laptop[laptop["paper_effect"].notna() & laptop["seeds"].ge(MIN_SEEDS)]))
    return with_section(text, "open questions", claims_markdown(study[study["paper_effect"].isna()]))


def read(path: Path) -> pd.DataFrame:
    """A claims table from its file. Raises OSError if there is none."""
    return pd.read_csv(path, dtype={"setting": str}, keep_default_na=False, na_values={c: [""] for c in NUMBERS})


def _folder(profile: str) -> Path:
    return home() / "figures" / profile


if __name__ == "__main__":  # `make readme`
    readme = ROOT / "README.md"
    tables = [read(ROOT / "figures" / profile / "claims.csv") for profile in ("laptop", "study")]
    write_atomic(readme, with_claims(readme.read_text(encoding="utf-8"), *tables))
