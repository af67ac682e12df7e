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


@pytest.mark.parametrize(
    "piece,common,said",
    [
        ({"seed": 1}, {"seed": 2}, "seed: given in a piece and beside"),
        ({"code": "x"}, {}, "no argument may be named code"),
        ({"seed": 1}, {"code": "x"}, "no argument may be named code"),
    ],
)
def test_recorded_refuses_an_argument_that_another_would_hide(home, piece, common, said):
    with pytest.raises(ValueError, match=said):
        recorded("99_test", "laptop", "names", lambda **_: pd.DataFrame({"x": [1]}), [piece], **common)


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


ODD = ["None", "", "/", "NA", "nan", "NaN", "null", "<NA>", "007", "1", "1.50", "-0", "1e5", "inf", "True", "false", " ", "  x ", "é", "你好\u2028", "a,b"]
ODD += ['"quoted"', 'half "', "'", "a\nb", "a\r\nb", "\r", "\t", "\\n", "[1, 2]", "{}", "\ufeff", "\0", "\ud800", "#", "x" * 5000, "2020-01-01"]


@pytest.mark.parametrize("text", ODD, ids=ascii)
@pytest.mark.parametrize("others", [[], ["plain"], ["plain", None], [None]], ids=["alone", "beside a text", "with a gap", "with only a gap"])
def test_a_table_gives_back_any_text(tmp_path, text, others):
    """In a column of its own, and beside one of numbers."""
    kind = object if text == "\ud800" else None  # half a character, which pandas holds only so
    for table in (pd.DataFrame({"t": [text, *others]}, dtype=kind), pd.DataFrame({"n": range(1 + len(others)), "t": [*others, text]}, dtype=kind)):
        (tmp_path / "t.csv").write_bytes(to_csv(table).encode())
        back = read_table(tmp_path / "t.csv")
        assert list(back) == list(table)
        assert [None if pd.isna(v) else v for v in back["t"]] == [None if pd.isna(v) else v for v in table["t"]]
        assert "n" not in table or back["n"].tolist() == table["n"].tolist()


CELLS = st.none() | st.text(max_size=8) | st.sampled_from(ODD[:20]) | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.booleans()


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=4))
def test_a_table_gives_back_any_mixture(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("mixture") / "t.csv"
    path.write_bytes(to_csv(pd.DataFrame({"a": pd.Series([a for a, _ in rows], dtype=object), "b": [b for _, b in rows]})).encode())
    back = read_table(path)
    for column, wanted in zip("ab", zip(*rows, strict=True), strict=True):
        found = [None if v is None or isinstance(v, float) and np.isnan(v) else v for v in back[column].tolist()]
        assert found == [*wanted]
        assert [isinstance(v, str) for v in found] == [isinstance(v, str) for v in wanted]


@pytest.mark.parametrize(
    "column",
    [
        np.array([1, -(2**63)]), np.array([2**64 - 1, 0], "uint64"), np.array([True, False]), [True, False], [1.0, 2.0], [0.1, None], [1e308, -0.0],
        pd.array([2**60 + 1, None], "Int64").astype(object), ["a", "b"], [[1, "2"], {"k": None}], [1, "1"], [True, "True"],
    ],
    ids=str,
)
def test_a_table_keeps_kinds(tmp_path, column):
    table = pd.DataFrame({"x": column})
    (tmp_path / "t.csv").write_text(to_csv(table))
    back = read_table(tmp_path / "t.csv")
    assert [v if not pd.api.types.is_scalar(v) or not pd.isna(v) else None for v in back["x"].tolist()] == [
        v if not pd.api.types.is_scalar(v) or not pd.isna(v) else None for v in table["x"].tolist()
    ]
    assert table["x"].dtype == object or back["x"].dtype == table["x"].dtype


def test_columns_named_like_coded_ones_stay_apart(tmp_path):
    table = pd.DataFrame({"a": ["", "x"], "a (JSON)": ["", "[1]"], "a (JSON) (JSON)": [1, 2]})
    (tmp_path / "t.csv").write_text(to_csv(table))
    pd.testing.assert_frame_equal(read_table(tmp_path / "t.csv").astype(object), table.astype(object))


def test_a_table_keeps_the_value_of_small_floats_and_a_column_without_values(tmp_path):
    table = pd.DataFrame({"half": np.array([0.1, 2.5], "float32"), "none": [None, None], "cat": pd.Categorical(["007", "a"])})
    (tmp_path / "t.csv").write_text(to_csv(table))
    back = read_table(tmp_path / "t.csv")
    assert back["half"].tolist() == table["half"].tolist() and back["none"].isna().all() and back["cat"].tolist() == ["007", "a"]


def test_plain_tables_are_plain_csv():
    table = pd.DataFrame({"arm": ["sesa", "parallel+kl"], "x": [0.5, None], "t": ["NA", "a, b"], "n": [1, 2], "odd": ["", "7"]})
    assert to_csv(table) == 'arm,x,t,n,odd (JSON)\nsesa,0.5,NA,1,""""""\nparallel+kl,,"a, b",2,"""7"""\n'


@pytest.mark.parametrize("path", sorted((ROOT / "figures").glob("*/records/*.csv")), ids=lambda p: f"{p.parts[-3]}-{p.stem}")
def test_committed_records_are_read_as_ever(path):
    """Records of before there were columns of JSON; and writing them again gives their bytes."""
    table = read_table(path)
    assert to_csv(table).encode() == path.read_bytes()
    if " (JSON)" not in path.read_text(encoding="utf-8"):
        pd.testing.assert_frame_equal(table, pd.read_csv(path), check_exact=True)


TEXTS = """
import pandas as pd


def draw(name, more=None):
    return pd.DataFrame({"x": [name, str(len(name))], "more": [more, more]}, dtype=object)
"""


def test_pieces_may_be_named_by_any_text(home, tmp_path, monkeypatch):
    """No two share a file, and each comes back: as a column of the piece, and as a value; from runs/ and from the published table."""
    draw = module_of(tmp_path / "texts.py", TEXTS).draw
    texts = [*ODD, "A", "a", "../up", "a/b", "a_b", "x" * 4999]
    pieces = [{"name": text} for text in texts]
    table = recorded("01_a", "smoke", "texts", draw, pieces, more="None")
    assert table["name"].tolist() == [text for text in texts for _ in range(2)]
    assert table["x"].tolist() == [v for text in texts for v in (text, str(len(text)))]
    assert set(table["more"]) == {"None"}
    files = [p.name for p in (home / "runs" / "smoke" / "01_a").iterdir()]
    assert len({f.lower() for f in files}) == 2 * len(texts) and max(map(len, files)) < 150
    shutil.rmtree(home / "runs")
    monkeypatch.setenv("SESA_REDRAW", "1")
    pd.testing.assert_frame_equal(recorded("01_a", "smoke", "texts", draw, pieces, more="None"), table)


def test_pieces_whose_names_would_run_together_are_apart(home, tmp_path):
    source = "import pandas as pd\n\n\ndef draw(a=0, ab=0, b=0):\n    return pd.DataFrame({'said': [repr((a, ab, b))]})\n"
    draw = module_of(tmp_path / "apart.py", source).draw
    pieces = [{"a": "b1"}, {"ab": 1}, {"a": "1-b2"}, {"a": 1, "b": 2}, {"a": 1}, {"a": "1"}, {"a": True}, {"a": 1.0}, {"a": {"b": [1]}}]
    table = recorded("01_a", "smoke", "apart", draw, pieces)
    assert table["said"].tolist() == [repr((p.get("a", 0), p.get("ab", 0), p.get("b", 0))) for p in pieces]
    assert table["a"].tolist()[4:] == [1, "1", True, 1.0, {"b": [1]}]
    assert [type(v) for v in table["a"].tolist()[4:]] == [int, str, bool, float, dict]


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


SLOW_FIRST = """
import os, sys, time
import pandas as pd
from sesa.records import recorded


def draw(seed, n):
    parent = os.getppid()
    while seed == 0 and "SLOW" in os.environ and os.getppid() == parent:  # until this run is killed
        time.sleep(0.05)
    return pd.DataFrame({"x": [seed * i for i in range(n)]})


print(recorded("01_a", "smoke", "draws", draw, [{"seed": s} for s in range(4)], jobs=2, n=3)["x"].tolist())
"""


def test_a_slow_first_piece_loses_nothing_of_the_others_when_killed(tmp_path):
    (tmp_path / "script.py").write_text(SLOW_FIRST)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "SESA_HOME": str(tmp_path / "home"), "SESA_BATCH": "1", "SESA_REDRAW": ""}
    process = subprocess.Popen([sys.executable, str(tmp_path / "script.py")], env=environment | {"SLOW": "1"}, start_new_session=True)
    runs = tmp_path / "home" / "runs" / "smoke" / "01_a"
    try:
        deadline = time.monotonic() + 60
        while len([*runs.glob("draws-*.json")]) < 3:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()  # kill -9, as the system does
        process.wait()
    assert sorted(p.name.split("-")[1] for p in runs.glob("draws-*.json")) == ["seed1", "seed2", "seed3"]
    done = subprocess.run([sys.executable, str(tmp_path / "script.py")], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "[0, 0, 0, 0, 1, 2, 0, 2, 4, 0, 3, 6]\n", done.stderr
    assert "draws: 4/4" in done.stderr and "seed1" not in done.stderr, "only the first was left to do"
