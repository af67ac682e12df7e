"""Figures as results: a PNG to look at, an SVG to print, the plotted numbers (CSV) and where they came from (JSON).

Colours are Okabe and Ito's, which colour-blind readers can tell apart; every arm has one colour in all figures.
"""

import io
import json
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from sesa.runs import home, origin, write_atomic

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    "#000000 #E69F00 #56B4E9 #009E73 #F0E442 #0072B2 #D55E00 #CC79A7".split()
)
GREY = "#777777"
ARM_COLOUR = {"parallel": GREY, "sequential": BLUE, "sesa": VERMILION, "iid_sketches": ORANGE, "window": GREEN}


def use_style() -> None:
    """The house style, for all figures made after this call."""
    mpl.rcParams.update(
        {
            "figure.dpi": 100,
            "savefig.dpi": 150,
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#DDDDDD",
            "axes.axisbelow": True,
            "legend.frameon": False,
            "figure.constrained_layout.use": True,
            "svg.hashsalt": "sesa",  # the same figure is the same file
        }
    )


def save_figure(figure: Figure, name: str, profile: str, data: pd.DataFrame, **parameters: Any) -> None:
    """Writes `figures/<profile>/<name>` as .png, .svg, .csv (the data plotted) and .json (profile, parameters, commit, versions, machine).

    The profile is written on the figure's face, as a claim at small scale must be called one. Returns nothing, so that as a cell's last
    line it leaves the figure to be shown once.

    Raises:
        OSError: a file could not be written; no file is left half-written.
    """
    if profile != "paper":
        figure.supxlabel(f"profile: {profile} · small scale, not the paper's setting", fontsize=7, color=GREY, x=0.99, ha="right")
    folder = home() / "figures" / profile
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, metadata=metadata)
        write_atomic(folder / f"{name}.{kind}", buffer.getvalue())
    write_atomic(folder / f"{name}.csv", data.to_csv(index=False, lineterminator="\n"))
    provenance = {"profile": profile, "parameters": parameters, **origin()}
    write_atomic(folder / f"{name}.json", json.dumps(provenance, indent=1) + "\n")


def band(axes: plt.Axes, x: str, table: pd.DataFrame, **line: Any) -> None:
    """A line through columns x and `mean` of the table, with the interval between its columns `low` and `high` as a band."""
    (drawn,) = axes.plot(table[x], table["mean"], **line)
    axes.fill_between(table[x], table["low"], table["high"], color=drawn.get_color(), alpha=0.2, linewidth=0)
