"""Figures as results: a PNG to look at, an SVG to print, the plotted numbers (CSV) and where they came from (JSON).

Colours are Okabe and Ito's, which colour-blind readers can tell apart; every arm has one colour in all figures.
"""

import io
import json
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sesa.intervals import interval
from sesa.runs import home, origin, write_atomic

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    "#000000 #E69F00 #56B4E9 #009E73 #F0E442 #0072B2 #D55E00 #CC79A7".split()
)
GREY = "#777777"
ARM_COLOUR = {"parallel": GREY, "sequential": BLUE, "sesa": VERMILION, "iid_sketches": PURPLE, "window": GREEN}
ARM_COLOUR |= {"actions": VERMILION, "iid_actions": PURPLE, "warm start": BLACK, "warm start, sketched": BLACK}


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

    The profile is written on the figure's face, as a claim at small scale must be called one; and that one seed gives
    no intervals (by `seeds` among the parameters, else by the column `seed` of the data). Returns nothing, so that as
    a cell's last line it leaves the figure to be shown once.

    Raises:
        OSError: a file could not be written; no file is left half-written.
    """
    seeds = parameters.get("seeds") or list(data["seed"].unique() if "seed" in data else [])
    count = [f"{len(seeds)} seed{'s' * (len(seeds) > 1)}"] if seeds else []
    said = [] if profile == "paper" else [f"profile: {profile}", *count, "small scale, not the paper's setting"]
    if len(seeds) == 1:
        said.append("one seed: no intervals")
    if said:
        figure.supxlabel(" · ".join(said), fontsize=7, color=GREY, x=0.99, ha="right")
    folder = home() / "figures" / profile
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, metadata=metadata)
        write_atomic(folder / f"{name}.{kind}", buffer.getvalue())
    write_atomic(folder / f"{name}.csv", data.to_csv(index=False, lineterminator="\n"))
    provenance = {"profile": profile, "parameters": parameters, **origin()}
    write_atomic(folder / f"{name}.json", json.dumps(provenance, indent=1) + "\n")


def look(arm: str) -> dict[str, str]:
    """How an arm's line looks: a sampler has one colour everywhere; dashes say that duplicates are penalised, dots that something else was
    added."""
    sampler, *added = arm.split("+")
    return {"color": ARM_COLOUR[sampler], "linestyle": "--" if "unique" in added else ":" if added or "sketched" in arm else "-", "label": arm}


def over_seeds(table: pd.DataFrame, column: str, x: str = "step") -> pd.DataFrame:
    """For every x the mean of `column` over seeds and its 95% interval (t): mean, low, high, x.

    Nan where a seed is nan; no interval with one seed.
    """
    rows = {at: interval(part[[column]].to_numpy()) for at, part in table.groupby(x)}
    return pd.DataFrame(rows.values(), columns=["mean", "low", "high"]).assign(**{x: list(rows)})


def draw_curves(table: pd.DataFrame, arms: Sequence[str], panels: dict[str, str], rows: int = 2) -> Figure:
    """Every arm over the steps of training, a panel per column of the table (columns `arm`, `seed`, `step`); `panels`: column -> label."""
    columns = -(-len(panels) // rows)
    figure, axes = plt.subplots(rows, columns, figsize=(3.3 * columns, 0.4 + 2.6 * rows), sharex=True, squeeze=False)
    for ax, (column, label) in zip(axes.flat, panels.items(), strict=False):
        for arm in arms:
            band(ax, "step", over_seeds(table[table["arm"] == arm], column), **look(arm))
        ax.set(ylabel=label, ylim=(0, None) if table[column].min() >= 0 else None)
    for ax in axes[-1]:
        ax.set_xlabel("step")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def draw_pass_at_k(table: pd.DataFrame, arms: Sequence[str], ax: plt.Axes | None = None) -> Figure:
    """pass@k over k of every arm, with its interval; `table` has columns arm, seed, problem and pass@1, pass@2, ..."""
    alone = ax is None
    if alone:
        _, ax = plt.subplots(figsize=(8.4, 4))
    for arm in arms:
        part = table[table["arm"] == arm]
        rows = {
            int(column[5:]): interval(part.pivot(index="seed", columns="problem", values=column))
            for column in part
            if column.startswith("pass@")
        }
        band(ax, "k", pd.DataFrame(rows.values(), columns=["mean", "low", "high"]).assign(k=list(rows)), **look(arm), marker="o", markersize=3)
    ax.set_xscale("log", base=2)
    ax.set(xlabel="k", ylabel="pass@k", ylim=(0, None), xticks=list(rows), xticklabels=list(rows))
    if alone:
        ax.figure.legend(loc="outside right upper", fontsize=8)
    else:
        ax.legend(fontsize=8)
    return ax.figure


def draw_shares(table: pd.DataFrame, arms: Sequence[str], order: Sequence[str], most: int = 12) -> Figure:
    """How the answers of every arm are spread over strategies, as a picture: rows arms, columns strategies in this order, the rest of more
    than `most` together; `table` has columns arm, strategy, used."""
    used = table.groupby(["arm", "strategy"], sort=False)["used"].sum().unstack(fill_value=0).reindex(arms)
    share = used.div(used.sum(axis=1), axis=0)
    kept = [name for name in order if name in share]
    if len(kept) > most:
        largest = share[kept].max().nlargest(most).index
        kept = [name for name in kept if name in largest]
    if len(kept) < share.shape[1]:
        share = share.assign(**{"others": 1 - share[kept].sum(axis=1)})
        kept.append("others")
    share = share[kept]
    figure, ax = plt.subplots(figsize=(2.2 + 0.62 * share.shape[1], 1.2 + 0.42 * len(arms)))
    mesh = ax.imshow(share, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    ax.set_xticks(range(share.shape[1]), share.columns, rotation=40, ha="right", fontsize=8)
    ax.set_yticks(range(len(arms)), arms, fontsize=8)
    ax.grid(False)
    for (y, x), value in np.ndenumerate(share.to_numpy()):
        ax.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color="black" if value > 0.6 else "white")
    figure.colorbar(mesh, ax=ax, label="share of answers")
    return figure


def forest(table: pd.DataFrame, columns: Sequence[str], labels: Sequence[str]) -> Figure:
    """A panel a column, a row an arm: its mean and interval, `table[column]` holding (mean, low, high). Hollow: an arm with additions."""
    figure, axes = plt.subplots(1, len(columns), figsize=(2.6 * len(columns) + 2.2, 1.4 + 0.26 * len(table)), sharey=True, squeeze=False)
    for ax, column, label in zip(axes[0], columns, labels, strict=True):
        for y, (arm, (mean, low, high)) in enumerate(table[column].iterrows()):
            color = look(arm)["color"]
            ax.plot([low, high], [y, y], color=color)
            ax.plot(mean, y, "o", color=color, markerfacecolor="white" if "+" in arm else color)
        ax.set_xlabel(label)
    axes[0, 0].set_yticks(range(len(table)), table.index)
    axes[0, 0].invert_yaxis()
    return figure


def band(axes: plt.Axes, x: str, table: pd.DataFrame, **line: Any) -> None:
    """A line through columns x and `mean` of the table, with the interval between its columns `low` and `high` as a band."""
    if len(table) == 1:  # a line through one point cannot be seen
        line = {"marker": "o"} | line
    (drawn,) = axes.plot(table[x], table["mean"], **line)
    axes.fill_between(table[x], table["low"], table["high"], color=drawn.get_color(), alpha=0.2, linewidth=0)
