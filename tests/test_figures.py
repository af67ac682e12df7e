"""sesa.figures: four files a figure, the same bytes for the same figure, whole or absent; and its scale on its face."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest

matplotlib.use("agg")

import matplotlib.pyplot as plt  # noqa: E402
import pandas as pd  # noqa: E402
from scipy import stats  # noqa: E402

from sesa import figures  # noqa: E402
from sesa.arms import AGENTS, ONE_TURN  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
DATA = pd.DataFrame({"k": [1, 2, 32], "coverage": [0.1, 1 / 3, 1.0], "arm": ["parallel", "a,b", "é"]})
CSV = 'k,coverage,arm\n1,0.1,parallel\n2,0.3333333333333333,"a,b"\n32,1.0,é\n'


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SESA_HOME", str(tmp_path))
    with matplotlib.rc_context():
        figures.use_style()
        yield tmp_path / "figures"
    plt.close("all")


def drawn():
    figure, axes = plt.subplots(1, 2, figsize=(4, 3))
    axes[0].plot(DATA["k"], DATA["coverage"], label="parallel")
    figures.band(axes[1], "k", DATA.assign(mean=DATA["coverage"], low=0.0, high=1.0), color=figures.BLUE, label="band")
    figure.legend(loc="outside upper center")
    return figure


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_save_figure_writes_picture_data_and_provenance(folder):
    assert figures.save_figure(drawn(), "00_toy", "smoke", DATA, seed=7, sizes=[1, 2]) is None
    files = bytes_of(folder / "smoke")
    assert sorted(files) == ["00_toy.csv", "00_toy.json", "00_toy.png", "00_toy.svg"]
    assert files["00_toy.png"].startswith(b"\x89PNG\r\n") and files["00_toy.png"].endswith(b"IEND\xaeB`\x82")
    assert b"<svg " in files["00_toy.svg"] and files["00_toy.svg"].endswith(b"</svg>\n")
    assert files["00_toy.csv"].decode("utf-8") == CSV
    provenance = json.loads(files["00_toy.json"])
    assert provenance.items() >= {"profile": "smoke", "parameters": {"seed": 7, "sizes": [1, 2]}}.items()
    assert {"commit", "dirty", "python", "torch", "transformers", "numpy", "machine"} <= set(provenance)


def test_the_same_figure_is_the_same_bytes(folder):
    figure = drawn()
    for name in ("one", "two"):
        figures.save_figure(figure, name, "smoke", DATA)
    figures.save_figure(drawn(), "new", "smoke", DATA)
    files = bytes_of(folder / "smoke")
    for kind in ("png", "svg", "csv"):
        assert files[f"one.{kind}"] == files[f"two.{kind}"] == files[f"new.{kind}"]


def test_another_process_draws_the_same_bytes(folder, tmp_path):
    code = (
        "import sys; sys.path[:0] = sys.argv[1:3]; import test_figures as t; t.figures.use_style(); "
        "t.figures.save_figure(t.drawn(), 'other', 'smoke', t.DATA)"
    )
    environment = os.environ | {"SESA_HOME": str(tmp_path), "PYTHONHASHSEED": "1"}
    subprocess.run([sys.executable, "-c", code, str(ROOT / "tests"), str(ROOT)], env=environment, check=True)
    figures.save_figure(drawn(), "here", "smoke", DATA)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in bytes_of(folder / "smoke").items()}
    for kind in ("png", "svg", "csv"):
        assert digests[f"here.{kind}"] == digests[f"other.{kind}"]


@pytest.mark.parametrize(("profile", "said"), [("smoke", True), ("gpu", True), ("paper", False)])
def test_the_scale_stands_on_the_face_of_the_figure(folder, profile, said):
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text as text
        figures.save_figure(drawn(), "x", profile, DATA)
    svg = (folder / profile / "x.svg").read_text(encoding="utf-8")
    assert (f"profile: {profile}" in svg and "not the paper's setting" in svg.replace("&#39;", "'")) is said
    assert ("profile" in svg) is said


@pytest.mark.parametrize("profile", ["smoke", "paper"])
@pytest.mark.parametrize(("seeds", "data", "said"), [
    ([0], DATA, True), ([0, 1], DATA, False), (None, DATA, False),
    (None, DATA.assign(seed=3), True), (None, DATA.assign(seed=[3, 4, 4]), False), ([0, 1], DATA.assign(seed=3), False),
])  # fmt: skip
def test_a_figure_of_one_seed_says_that_it_has_no_intervals(folder, profile, seeds, data, said):
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figures.save_figure(drawn(), "x", profile, data, **({} if seeds is None else {"seeds": seeds}))
    assert ("one seed: no intervals" in (folder / profile / "x.svg").read_text(encoding="utf-8")) is said


@pytest.mark.filterwarnings("error")
def test_with_one_seed_no_interval_is_drawn(folder):
    rows = [{"problem": p, "step": s, "pass@1": p / 2, "pass@2": 1.0} for p in (0, 1) for s in (0, 10)]
    table = pd.DataFrame(rows).assign(arm="sesa", seed=0)
    curve = figures.over_seeds(table[table["problem"] == 1], "pass@1")
    assert curve["mean"].tolist() == [0.5, 0.5] and curve[["low", "high"]].isna().all(axis=None)
    figure = figures.draw_pass_at_k(table[table["step"] == 0], ["sesa"])
    figures.save_figure(figure, "x", "smoke", table)
    (band,) = figure.axes[0].collections
    assert not any(path.vertices.size for path in band.get_paths()) and len(figure.axes[0].lines) == 1
    columns = pd.MultiIndex.from_product([["pass@1"], ["mean", "low", "high"]])
    means = pd.DataFrame([[0.5, float("nan"), float("nan")]], ["sesa"], columns)
    figures.save_figure(figures.forest(means, ["pass@1"], ["right"]), "y", "smoke", table)


def test_curves_have_the_t_interval_over_seeds(folder):
    table = pd.DataFrame({"seed": [0, 1, 2], "step": 0, "pass@1": [0.1, 0.2, 0.6]})
    curve = figures.over_seeds(table, "pass@1")
    expected = stats.ttest_1samp([0.1, 0.2, 0.6], 0).confidence_interval()
    assert curve.loc[0, ["low", "high"]].tolist() == pytest.approx(list(expected))


def test_style_is_readable_by_the_colour_blind_and_one_colour_an_arm():
    for samplers in (ONE_TURN, AGENTS):
        assert len({figures.ARM_COLOUR[f.__name__] for f in samplers} | {figures.ARM_COLOUR["warm start"]}) == len(samplers) + 1
    okabe_ito = {"#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"}
    assert set(figures.ARM_COLOUR.values()) <= okabe_ito | {figures.GREY}


FULL_DISK = """
import resource, signal, sys
sys.path[:0] = sys.argv[1:3]
import test_figures as t
t.figures.use_style()
figure = t.drawn()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
t.figures.save_figure(figure, "x", "smoke", t.DATA, seed=2)
"""


def test_a_full_disk_leaves_no_half_file(folder, tmp_path):
    """With room for the PNG, but not for the larger SVG after it."""
    figures.save_figure(drawn(), "x", "smoke", DATA, seed=1)
    whole = bytes_of(folder / "smoke")
    assert len(whole["x.png"]) < len(whole["x.svg"])
    for path in (folder / "smoke").iterdir():
        path.write_bytes(b"old")
    arguments = [str(ROOT / "tests"), str(ROOT), str(len(whole["x.png"]))]
    environment = os.environ | {"SESA_HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", FULL_DISK, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "OSError" in done.stderr and "could not write" in done.stderr
    assert bytes_of(folder / "smoke") == dict.fromkeys(whole, b"old") | {"x.png": whole["x.png"]}


# ------------------------------------------------------------------------------------------------------ figures of training


def runs_of(arms, seeds=(0, 1), columns=("reward",)):
    rows = [
        {"arm": arm, "seed": seed, "step": step, **{c: step + 10 * i + seed for i, c in enumerate(columns)}}
        for arm in arms for seed in seeds for step in (0, 10)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_curves_show_the_mean_over_seeds_of_every_arm(folder):
    figure = figures.draw_curves(runs_of(["parallel", "sesa+kl"], columns=("reward", "pass@1")), ["parallel", "sesa+kl"], {"pass@1": "right"}, 1)
    (ax,) = figure.axes
    lines = {line.get_label(): line for line in ax.lines}
    assert list(lines) == ["parallel", "sesa+kl"] and ax.get_ylabel() == "right"
    assert lines["parallel"].get_xydata().tolist() == [[0, 10.5], [10, 20.5]]
    assert (lines["sesa+kl"].get_linestyle(), lines["parallel"].get_linestyle()) == (":", "-")
    assert lines["sesa+kl"].get_color() == figures.ARM_COLOUR["sesa"]


def test_pass_at_k_shows_means_over_problems_in_order_of_k(folder):
    table = pd.DataFrame([{"arm": a, "seed": 0, "problem": p, "pass@1": p / 2, "pass@16": 1.0, "reward": 9} for a in ("parallel", "warm start") for p in (0, 1)])
    (ax,) = figures.draw_pass_at_k(table, ["warm start", "parallel"]).axes
    assert [line.get_label() for line in ax.lines] == ["warm start", "parallel"]
    assert ax.lines[0].get_xydata().tolist() == [[1, 0.25], [16, 1.0]]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "16"]


def test_shares_sum_to_one_and_what_is_left_out_is_named(folder):
    table = pd.DataFrame([("sesa", "left", 6), ("sesa", "right", 3), ("sesa", "odd", 1), ("parallel", "right", 4)], columns=["arm", "strategy", "used"])
    ax, _ = figures.draw_shares(table, ["parallel", "sesa"], ["left", "right", "odd"], most=2).axes
    assert [t.get_text() for t in ax.get_xticklabels()] == ["left", "right", "others"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["parallel", "sesa"]
    assert [t.get_text() for t in ax.texts] == ["0.00", "1.00", "0.00", "0.60", "0.30", "0.10"]


def test_a_forest_has_a_row_per_arm_and_hollow_marks_for_additions(folder):
    columns = pd.MultiIndex.from_product([["pass@1"], ["mean", "low", "high"]])
    table = pd.DataFrame([[0.5, 0.4, 0.7], [0.2, 0.1, 0.3]], ["sesa", "parallel+kl"], columns)
    (ax,) = figures.forest(table, ["pass@1"], ["right"]).axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ["sesa", "parallel+kl"] and ax.yaxis_inverted()
    intervals, marks = ax.lines[::2], ax.lines[1::2]
    assert [line.get_xdata().tolist() for line in intervals] == [[0.4, 0.7], [0.1, 0.3]]
    assert [mark.get_markerfacecolor() for mark in marks] == [figures.ARM_COLOUR["sesa"], "white"]
