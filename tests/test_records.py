"""sesa.records: records that survive kills, full disks and edits, and give back what was recorded."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sesa.records import RecordError, read_table, recorded, to_csv
from tests.conftest import ROOT, module_of, python

DRAW = """
import pandas as pd


def draw(seed, scale, log):
    '''Draws.'''
    with open(log, "a") as f:
        print(seed, file=f)
    if scale < 0 and seed == 1:
        raise ZeroDivisionError(f"seed {seed}")
    return pd.DataFrame({"x": [seed * scale, seed / 3], "name": ["é, \\"quoted\\"", "NA"]})
"""
SEEDS = [{"seed": 0}, {"seed": 1}, {"seed": 2}]


class Experiment:
    """`draw` as a notebook would have it, and the seeds it was called with since last asked."""

    def __init__(self, folder: Path):
        self.folder, self.log, self.source, self.versions = folder, folder / "calls", DRAW, 0

    def run(self, pieces=SEEDS, **common) -> pd.DataFrame:
        self.versions += 1
        draw = module_of(self.folder / f"draw_{self.versions}.py", self.source).draw
        return recorded("01_a", "smoke", "draws", draw, pieces, **{"scale": 2, "log": str(self.log)} | common)

    def calls(self) -> list[int]:
        seeds = [int(line) for line in self.log.read_text().split()] if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return seeds


@pytest.fixture
def experiment(home, tmp_path) -> Experiment:
    return Experiment(tmp_path)


def test_recorded_computes_once_and_reads_after(experiment, home):
    table = experiment.run()
    assert experiment.calls() == [0, 1, 2]
    assert list(table.columns) == ["seed", "x", "name"]
    assert table["seed"].tolist() == [0, 0, 1, 1, 2, 2]
    assert table["x"].tolist() == [0, 0, 2, 1 / 3, 4, 2 / 3]
    pd.testing.assert_frame_equal(experiment.run(), table)
    assert experiment.calls() == []
    names = sorted(p.name for p in (home / "runs" / "smoke" / "01_a").iterdir())
    assert [re.sub("-[0-9a-f]{12}", "", name) for name in names] == [f"draws-seed{i}.{kind}" for i in range(3) for kind in ("csv", "json")]
    manifest = json.loads(piece(home, 1, ".json").read_text())
    assert manifest["inputs"].items() >= {"seed": 1, "scale": 2}.items()
    assert manifest["sha256"] == hashlib.sha256(piece(home, 1, ".csv").read_bytes()).hexdigest()
    assert {"commit", "dirty", "torch", "machine", "seconds"} <= set(manifest)
    records = home / "figures" / "smoke" / "records"
    rows = [f'{s},{2.0 * s},"é, ""quoted"""\n{s},{s / 3},NA\n' for s in range(3)]
    assert (records / "01_draws.csv").read_text() == "seed,x,name\n" + "".join(rows)
    assert [m["inputs"]["seed"] for m in json.loads((records / "01_draws.json").read_text())] == [0, 1, 2]


def piece(home: Path, seed: int, suffix: str) -> Path:
    (path,) = (home / "runs" / "smoke" / "01_a").glob(f"draws-seed{seed}-*{suffix}")
    return path


@pytest.mark.parametrize("jobs", [0, -1])
def test_recorded_refuses_no_jobs(experiment, jobs):
    with pytest.raises(ValueError, match="jobs is a number of processes"):
        experiment.run(jobs=jobs)
    assert experiment.calls() == []


def test_recorded_adds_a_piece_and_computes_just_that(experiment):
    experiment.run(SEEDS[:2])
    experiment.calls()
    assert experiment.run()["seed"].tolist() == [0, 0, 1, 1, 2, 2]
    assert experiment.calls() == [2]


BITS = """
import numpy as np
import pandas as pd


def numbers(seed):
    x = np.random.default_rng(seed).integers(0, 2**63, 2000).view(float)
    return np.concatenate([x[np.isfinite(x)], [5e-324, 1.7976931348623157e308, -0.0, 0.1, 1 / 3, np.inf, -np.inf]])


def draw(seed):
    return pd.DataFrame({"x": numbers(seed)})
"""


def test_recorded_keeps_numbers_to_the_last_bit(home, tmp_path):
    module = module_of(tmp_path / "bits.py", BITS)
    table = recorded("01_a", "smoke", "bits", module.draw, [{"seed": 0}])
    assert table["x"].to_numpy().tobytes() == module.numbers(0).tobytes() and len(table) > 1900


@pytest.mark.parametrize(
    ("old", "new", "redone"),
    [
        ("seed / 3", "seed / 4", [0, 1, 2]),
        ("def draw(seed, scale, log):", "def draw(seed, scale, log, more=1):", [0, 1, 2]),
        ("'''Draws.'''", "'''Draws two numbers.'''", []),
        ("    '''Draws.'''\n", "", []),
        ("'''Draws.'''", "'''Draws.'''\n    # twice", []),
    ],
)
def test_recorded_is_of_the_code_not_of_its_explanation(experiment, old, new, redone):
    experiment.run()
    experiment.calls()
    assert old in DRAW
    experiment.source = DRAW.replace(old, new)
    experiment.run()
    assert experiment.calls() == redone


def test_recorded_recomputes_when_an_argument_changes(experiment):
    before = experiment.run()
    experiment.calls()
    after = experiment.run(scale=3)
    assert experiment.calls() == [0, 1, 2]
    assert after["x"].tolist() == [0, 0, 3, 1 / 3, 6, 2 / 3] != before["x"].tolist()


@pytest.mark.parametrize(
    ("file", "harm"),
    [
        (".csv", lambda p: p.write_bytes(p.read_bytes()[:-4])),
        (".csv", lambda p: p.write_text(p.read_text().replace("2.0", "3.0"))),
        (".csv", Path.unlink),
        (".json", lambda p: p.write_bytes(p.read_bytes()[:40])),
        (".json", lambda p: p.write_text("[]")),
        (".json", lambda p: p.write_bytes(b"\xff\xfe")),
        (".json", Path.unlink),
    ],
)
def test_recorded_recomputes_what_is_damaged(experiment, home, file, harm):
    whole = experiment.run()
    experiment.calls()
    path = piece(home, 1, file)
    before = path.read_bytes()
    harm(path)
    assert not path.exists() or path.read_bytes() != before
    pd.testing.assert_frame_equal(experiment.run(), whole)
    assert experiment.calls() == [1]


def test_recorded_keeps_the_pieces_before_an_error(experiment, home):
    with pytest.raises(ZeroDivisionError, match="seed 1"):
        experiment.run(scale=-1)
    assert experiment.calls() == [0, 1]
    assert not (home / "figures").exists()
    experiment.run(SEEDS[::2], scale=-1)
    assert experiment.calls() == [2]


def test_redraw_computes_nothing(experiment, home, monkeypatch, capsys):
    monkeypatch.setenv("SESA_REDRAW", "1")
    with pytest.raises(RecordError, match="make reproduce PROFILE=smoke"):
        experiment.run()
    assert experiment.calls() == []
    monkeypatch.setenv("SESA_REDRAW", "")
    whole = experiment.run()
    experiment.calls()
    monkeypatch.setenv("SESA_REDRAW", "1")
    shutil.move(home / "figures", home / "hidden")
    pd.testing.assert_frame_equal(experiment.run(), whole)  # from runs/
    shutil.rmtree(home / "figures")
    shutil.move(home / "hidden", home / "figures")
    shutil.rmtree(home / "runs")
    pd.testing.assert_frame_equal(experiment.run(), whole)  # from the published table
    assert experiment.calls() == []
    assert not (home / "runs").exists()
    with pytest.raises(RecordError, match="other parameters"):
        experiment.run(SEEDS[:2])
    with pytest.raises(RecordError, match="other parameters"):
        experiment.run(scale=3)
    assert "other code" not in capsys.readouterr().out
    experiment.source = DRAW.replace("seed * scale", "seed * scale + 1")
    pd.testing.assert_frame_equal(experiment.run(), whole)  # and says that it is not what this code would give
    assert "01_draws.csv: drawn from results of other code, of commit" in capsys.readouterr().out


SCRIPT = """
import os, signal, sys
import pandas as pd
from sesa.records import recorded
from sesa.runs import derive_seed


def draw(arm, seed, n):
    with open(os.environ["CALLS"], "a") as f:
        print(arm, seed, file=f)
    if os.environ.get("DIE_AT") == f"{arm} {seed}":
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ.get("FULL_AT") == f"{arm} {seed}":
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
    return pd.DataFrame({"x": [derive_seed(seed, arm, i) / 2**63 for i in range(n)]})


pieces = [{"arm": "parallel", "seed": 0}, {"arm": "sequential", "seed": 0}, {"arm": "sequential", "seed": 1}]
recorded("01_a", "smoke", "draws", draw, pieces, jobs=int(sys.argv[1]), n=50)
"""


@pytest.fixture
def script(tmp_path):
    """Runs SCRIPT as a process: (exit status, what it computed, its CSV files, stderr)."""
    (tmp_path / "script.py").write_text(SCRIPT)

    def call(home: str, jobs: int = 1, **variables: str):
        calls = tmp_path / "calls"
        calls.unlink(missing_ok=True)
        variables |= {"SESA_HOME": str(tmp_path / home), "CALLS": str(calls), "SESA_REDRAW": ""}
        done = python(str(tmp_path / "script.py"), str(jobs), **variables)
        files = {str(p.relative_to(tmp_path / home)): p.read_bytes() for p in (tmp_path / home).rglob("*.csv")}
        return done.returncode, sorted(calls.read_text().splitlines()), files, done.stderr

    return call


ALL = ["parallel 0", "sequential 0", "sequential 1"]


def test_recorded_after_a_kill_goes_on_and_ends_with_the_same_bytes(script):
    code, computed, whole, stderr = script("whole")
    assert (code, computed, len(whole)) == (0, ALL, 4), stderr
    code, computed, left, _ = script("killed", DIE_AT="sequential 0")
    assert (code, computed) == (-signal.SIGKILL, ALL[:2])
    assert left.items() < whole.items() and len(left) == 1
    code, computed, resumed, stderr = script("killed")
    assert (code, computed) == (0, ALL[1:]), stderr
    assert resumed == whole


def test_recorded_on_a_full_disk_goes_on_when_there_is_room(script):
    code, _, left, stderr = script("full", FULL_AT="sequential 0")
    assert code == 1 and len(left) == 1
    assert "could not write" in stderr and "draws-armsequential-seed0-" in stderr
    code, computed, resumed, stderr = script("full")
    assert (code, computed, len(resumed)) == (0, ALL[1:], 4), stderr


def test_recorded_with_two_jobs_gives_the_bytes_of_one(script):
    _, _, one, _ = script("one")
    code, computed, two, stderr = script("two", jobs=2)
    assert (code, computed) == (0, ALL), stderr
    assert one == two
