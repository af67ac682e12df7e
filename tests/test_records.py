"""sesa.records: fingerprints, and records that survive kills, full disks and edits."""

import hashlib
import importlib.util
import json
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sesa import fingerprint as fingerprints
from sesa.fingerprint import code_behind, fingerprint, sources_behind
from sesa.records import RecordError, recorded
from tests.conftest import ROOT, python


def module_of(path: Path, source: str):
    """Source text as a module, as a notebook's functions would be: with a file that `inspect` can read."""
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A copy of `sesa/` and `data/` that a test may change; `sesa.records` takes it for the checkout."""
    for folder in ("sesa", "data"):
        shutil.copytree(ROOT / folder, tmp_path / "copy" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(fingerprints, "ROOT", tmp_path / "copy")
    return tmp_path / "copy"


# --------------------------------------------------------------------------------------------------------- fingerprints

CODE = '"""Module."""\nN = 3\n\n\ndef f(x):\n    """Twice."""\n    return x * 2\n'


@pytest.mark.parametrize(
    ("edited", "same"),
    [
        (CODE.replace("Module.", "A module, explained better."), True),
        (CODE.replace("Twice.", "Two times."), True),
        (CODE.replace('    """Twice."""\n', ""), True),
        (CODE.replace("N = 3", "N = 3  # three"), True),
        (CODE.replace("x * 2", "(x\n        * 2)").replace("\n\n\n", "\n"), True),
        (CODE.replace("x * 2", "x * 3"), False),
        (CODE.replace("N = 3", "N = 4"), False),
        (CODE.replace("return x", "x"), False),
    ],
)
def test_fingerprint_of_python_is_of_what_it_does(tmp_path, monkeypatch, edited, same):
    monkeypatch.setattr(fingerprints, "ROOT", tmp_path)
    (tmp_path / "m.py").write_text(CODE)
    before = fingerprint([tmp_path / "m.py"])
    (tmp_path / "m.py").write_text(edited)
    assert edited != CODE
    assert (fingerprint([tmp_path / "m.py"]) == before) is same


def test_fingerprint_of_python_holds_the_pins_of_what_it_imports_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "ROOT", tmp_path)
    lock, module = tmp_path / "requirements.lock", tmp_path / "m.py"
    module.write_text("import numpy.linalg\nfrom some_package import thing\n")
    seen = []
    for pins in ("numpy==1\nSome-Package==1\n", "numpy==2\nSome-Package==1\n", "numpy==1\nSome-Package==2\n"):
        lock.write_text(pins)
        seen.append(fingerprint([module]))
        lock.write_text(f"other==1\n{pins}numpy-extra==3\n")
        assert fingerprint([module]) == seen[-1]
    assert len(set(seen)) == 3


def test_fingerprint_sees_data_names_and_texts(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "ROOT", tmp_path)
    a, b = tmp_path / "a.csv", tmp_path / "b.csv"
    a.write_text("1\n")
    b.write_text("1\n")
    first = fingerprint([a], "x")
    a.write_text("1\n\n")
    seen = [first, fingerprint([a], "x"), fingerprint([b], "x"), fingerprint([a, b], "x"), fingerprint([], "x")]
    seen += [fingerprint([], *texts) for texts in (["xy"], ["x", "y"], ["", "xy"], [])]
    assert len(set(seen)) == len(seen)
    assert all(len(s) == 16 and int(s, 16) >= 0 for s in seen)
    assert fingerprint([b, a], "x") == fingerprint([a, b], "x")


def test_sources_behind_finds_imports_of_imports_and_named_data(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "ROOT", tmp_path)
    files = {
        "sesa/__init__.py": "",
        "sesa/a.py": "import json\n\n\ndef f():\n    from sesa.b import g\n    return g",
        "sesa/b.py": "import sesa.a\nTABLE = 'table.csv'",
        "sesa/c.py": "import sesa.d as d",
        "sesa/d.py": "",
        "sesa/unused.py": "'other.csv'",
        "sesa/pkg/__init__.py": "from sesa.pkg.e import x",
        "sesa/pkg/e.py": "x = 1",
        "json.py": "",
        "data/table.csv": "",
        "data/own.csv": "",
        "data/other.csv": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    def behind(code):
        return {p.relative_to(tmp_path).as_posix() for p in sources_behind(code)} - {"sesa/__init__.py"}

    assert behind("import sesa.a\nopen('own.csv')") == {"sesa/a.py", "sesa/b.py", "data/table.csv", "data/own.csv"}
    assert behind("from sesa import c") == {"sesa/c.py", "sesa/d.py"}
    assert behind("from sesa.pkg import x") == {"sesa/pkg/__init__.py", "sesa/pkg/e.py"}
    assert behind("import numpy, json") == behind("# import sesa.a") == set()


@pytest.mark.parametrize("name", ["sesa.claims", "sesa.tasks.paths"])
def test_sources_behind_holds_all_that_python_loads(name):
    code = f"import sys, {name}; print(*(m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'sesa'), sep='\\n')"
    loaded = {Path(line) for line in python("-c", code).stdout.splitlines()}
    assert len(loaded) > 1
    assert loaded - sources_behind(f"import {name}") == set()


USES = """
import numpy as np
import pandas as pd
from sesa import metrics
from sesa.metrics import distinct


def helper(x):
    return distinct([x])


def draw(seed):
    '''Draws.'''
    return pd.DataFrame({"x": [helper(seed)]})


def by_module(seed):
    return pd.DataFrame({"x": [metrics.distinct([seed])]})


def by_local_import(seed):
    from sesa.metrics import distinct as count

    return pd.DataFrame({"x": [count([seed])]})
"""


@pytest.mark.parametrize("name", ["draw", "by_module", "by_local_import"])
def test_code_behind_changes_with_the_sesa_module_used_and_no_other(checkout, tmp_path, name):
    function = getattr(module_of(tmp_path / "uses.py", USES), name)
    before = code_behind(function)
    with (checkout / "sesa" / "collapse_unused.py").open("w") as f:
        f.write("x = 1\n")
    with (checkout / "sesa" / "claims.py").open("a") as f:
        f.write("\nx = 1\n")
    with (checkout / "sesa" / "metrics.py").open("a") as f:
        f.write("\n# a comment\n")
    assert code_behind(function) == before
    with (checkout / "sesa" / "metrics.py").open("a") as f:
        f.write("\nx = 1\n")
    assert code_behind(function) != before


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("helper(seed)]", "helper(seed), 1]", False),
        ("distinct([x])", "distinct([x, x])", False),
        ("'''Draws.'''", "'''Draws one.'''", True),
        ("    '''Draws.'''\n", "", True),
        ("'''Draws.'''", "'''Draws.'''  # one", True),
        ("metrics.distinct([seed])", "metrics.distinct([])", True),
    ],
)
def test_code_behind_follows_the_functions_of_the_notebook(tmp_path, old, new, same):
    assert old in USES
    before = code_behind(module_of(tmp_path / "one.py", USES).draw)
    assert (code_behind(module_of(tmp_path / "two.py", USES.replace(old, new)).draw) == before) is same


READS = """
import functools

import numpy as np
import torch

maps, seeds = 4, [0, 1]
model = torch.nn.Linear(1, 1)
apply = lambda x: x


def reads_number(seed):
    return seed * maps


def reads_through_another(seed):
    return reads_number(seed)


@functools.cache
def cached():
    return maps


def reads_through_a_cache(seed):
    return cached()


def reads_inside(seed):
    return [(lambda x: x * maps)(x) for x in range(seed)]


def reads_model(seed):
    return model(seed)


def of_arguments(seed, maps):
    for seeds in range(maps):
        seed += np.exp(seeds)
    return [model for model in range(seed)]


def of_functions(seed):
    return apply(sum([seed]))


def of_a_default(seed, n=maps):
    return seed * n


def factory(n):
    def of_a_closure(seed):
        return seed * n

    return of_a_closure


of_a_closure = factory(maps)


class Thing:
    size = 4


def of_a_class(seed):
    return Thing().size
"""


@pytest.mark.parametrize("name", ["number", "through_another", "through_a_cache", "inside", "model"])
def test_code_behind_refuses_a_variable_of_the_notebook(tmp_path, name):
    function = getattr(module_of(tmp_path / "reads.py", READS), f"reads_{name}")
    variable = "model" if name == "model" else "maps"
    with pytest.raises(ValueError, match=rf"\w+ reads the variable `{variable}`: make it an argument"):
        code_behind(function)


@pytest.mark.parametrize("name", ["of_a_default", "of_a_closure", "of_a_class"])
def test_code_behind_sees_or_refuses_what_is_bound_elsewhere_in_the_notebook(tmp_path, name):
    def seen(file, source):
        try:
            return code_behind(getattr(module_of(tmp_path / file, source), name))
        except ValueError:
            return f"refused {file}"

    changed = READS.replace("maps, seeds = 4", "maps, seeds = 5").replace("size = 4", "size = 5")
    assert seen("one.py", READS) != seen("two.py", changed)


@pytest.mark.parametrize("name", ["of_arguments", "of_functions"])
def test_code_behind_takes_arguments_and_locals_named_like_a_variable_of_the_notebook(tmp_path, name):
    assert len(code_behind(getattr(module_of(tmp_path / "reads.py", READS), name))) == 16


# -------------------------------------------------------------------------------------------------------------- records

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
