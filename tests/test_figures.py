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

from sesa import figures  # noqa: E402

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


def test_style_is_readable_by_the_colour_blind_and_one_colour_an_arm():
    assert len(set(figures.ARM_COLOUR.values())) == len(figures.ARM_COLOUR) >= 4
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
