"""What README says of results, written by `make readme`: the paper's claims, the open questions, and the benchmark.

Each section stands between two marks. The profile `study` is the evidence; the profile `laptop` stands beside it.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from sesa.claims import PARTS, TOGETHER, headline, on_scale, read, sign
from sesa.intervals import chance_note, written
from sesa.runs import ROOT, write_atomic


def claims_markdown(table: pd.DataFrame, beside: pd.DataFrame | None = None) -> str:
    """The rows of `claims_table` as a Markdown table; of open questions alone, without a column for the paper.

    beside: the table of profile `laptop`, for a column with its effect in the same setting, and whether signs agree.
    """
    rows, asked = table.to_dict("records"), bool(len(table)) and table["paper_effect"].isna().all()
    if asked:
        titles = ["question", "setting", "ours: baseline → method", "effect [95% interval]", "seeds", "answer"]
    else:
        titles = ["claim", "the paper", "ours", "task", "baseline → ours", "effect [95% interval]", "seeds", "verdict"]
    lines = [titles, *((_question if asked else _claim)(r) for r in rows)]
    if beside is not None:
        for cells, text in zip(lines, ["laptop", *(_beside(r, beside) for r in rows)], strict=True):
            cells.insert(-1, text)
    lines.insert(1, ["---"] * len(titles))
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def _question(r: Mapping) -> list[str]:
    return [f"{r['where']} {_compared(r)}", r["setting"], *_measured(r), _verdict(r)]


def _claim(r: Mapping) -> list[str]:
    stated = "left open"
    if not pd.isna(r["paper_effect"]):
        numbers = "" if pd.isna(r["paper_value"]) else f"{r['paper_baseline']:g} → {r['paper_value']:g} "
        stated = f"{numbers}({sign(r['effect_kind']).format(r['paper_effect'])})"
    ours = ", ".join(filter(None, [r["our_arm"], r["setting"]]))
    task = f"analogue: {r['analogue']}" if r["analogue"] else "the paper's" if r["our_arm"] else ""
    return [f"{r['where']}, {_compared(r)}", stated, ours, task, *_measured(r), _verdict(r)]


def _compared(r: Mapping) -> str:
    return f"{r['metric']}: {r['arm']} over {r['baseline_arm']}"


def _measured(r: Mapping) -> list[str]:
    """Cells: means, effects, seeds."""
    if pd.isna(r["seeds"]):
        return ["", "", ""]
    effects = [written([r["effect"], r["low"], r["high"]], sign(r["effect_kind"]))]
    for what in TOGETHER.get(r["id"], ()):
        effects.append(f"{what} {written([r[f'{what} {part}'] for part in PARTS], '{:+.2f}')}")
    return [f"{r['baseline']:.3g} → {r['value']:.3g}", "; ".join(effects), f"{r['seeds']:.0f}"]


def _verdict(r: Mapping) -> str:
    return f"{r['verdict']}: {r['why']}" if r["why"] else r["verdict"]


def _beside(r: Mapping, other: pd.DataFrame) -> str:
    """What another profile found in the same setting of the same claim and arm."""
    same = np.logical_and.reduce([other[key] == r[key] for key in ("id", "our_arm", "setting")])
    found = other.loc[same & other["effect"].notna(), "effect"]
    if found.empty:
        return ""
    ours, theirs = np.sign(on_scale(r["effect_kind"], r["effect"], found.iloc[0]))
    return f"{sign(r['effect_kind']).format(found.iloc[0])}, {'same' if ours == theirs else 'opposite'} sign"


def with_section(text: str, name: str, content: str) -> str:
    """`text` with what stands between the two marks of this name replaced by `content`, which ends with a line end."""
    begin, end = f"<!-- {name}: written by `make readme` -->", f"<!-- end of {name} -->"
    head, rest = text.split(begin)
    return head + begin + "\n" + content + end + rest.split(end)[1]


def with_claims(text: str, laptop: pd.DataFrame, study: pd.DataFrame) -> str:
    """`text` with its two sections replaced by the study's results: the `headline` of the paper's claims with laptop's
    effects beside them, and the open questions with a note on how many they are."""
    text = with_section(text, "claims", claims_markdown(headline(study), laptop))
    asked = study[study["paper_effect"].isna()]
    note = chance_note(int(asked["low"].count()))
    return with_section(text, "open questions", f"{claims_markdown(asked)}\n{note}\n")


if __name__ == "__main__":  # `make readme`
    readme = ROOT / "README.md"
    tables = [read(ROOT / "figures" / profile / "claims.csv") for profile in ("laptop", "study")]
    write_atomic(readme, with_claims(readme.read_text(encoding="utf-8"), *tables))
