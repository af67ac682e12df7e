"""sesa.runs: seeds, whole files, fingerprints, and records that survive kills, full disks and edits."""

import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sesa import runs
from sesa.runs import DataError, RecordError, code_behind, derive_seed, fingerprint, origin, progress, recorded
from sesa.runs import sources_behind, verified_text, write_atomic

ROOT = Path(__file__).resolve().parent.parent


def python(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """Another Python process that finds this checkout's `sesa`."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "SESA_BATCH": "1"} | variables
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=60)


def module_of(path: Path, source: str):
    """Source text as a module, as a notebook's functions would be: with a file that `inspect` can read."""
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SESA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SESA_BATCH", "1")
    monkeypatch.setenv("SESA_REDRAW", "")
    return tmp_path / "home"


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A copy of `sesa/` and `data/` that a test may change; `sesa.runs` takes it for the checkout."""
    for folder in ("sesa", "data"):
        shutil.copytree(ROOT / folder, tmp_path / "copy" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(runs, "ROOT", tmp_path / "copy")
    return tmp_path / "copy"


# ---------------------------------------------------------------------------------------------------------------- seeds


def test_seed_golden_values():
    assert derive_seed(0) == int(hashlib.sha256(b"[0]").hexdigest()[:16], 16) // 2
    assert derive_seed(0) == 7520536977032167579
    assert derive_seed(7, "sequential", 3, 12, 0) == 6131637280303797088


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.lists(st.integers(-(2**40), 2**40) | st.from_regex(r"[a-z_+]{0,12}", fullmatch=True), max_size=5))
def test_seed_is_the_top_63_bits_of_sha256_of_the_json_list(parts):
    said = "[" + ", ".join(str(p) if isinstance(p, int) else f'"{p}"' for p in parts) + "]"
    assert derive_seed(*parts) == int(hashlib.sha256(said.encode()).hexdigest()[:16], 16) // 2 < 2**63


def test_seeds_are_distinct():
    many = [derive_seed(*parts) for parts in product(range(3), ["parallel", "sequential"], range(20), range(20), range(4))]
    alike = [(1, 2), (12,), (1, "2"), ("1", 2), ("1", "2"), ("12",), ("a", "b"), ("ab",), ("a, b",), ()]
    alike = [derive_seed(*parts) for parts in alike]
    assert len(set(many + alike)) == len(many) + len(alike) == 9610


@pytest.mark.parametrize("hashing", ["1", "2"])
def test_seed_is_the_same_in_every_process(hashing):
    code = "from sesa.runs import derive_seed; print(derive_seed(0, 'sesa', 5), hash('sesa'))"
    seed, hashed = python("-c", code, PYTHONHASHSEED=hashing).stdout.split()
    assert int(seed) == derive_seed(0, "sesa", 5)
    assert int(hashed) != hash("sesa")


# ---------------------------------------------------------------------------------------------------------------- files

FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from sesa.runs import write_atomic
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
write_atomic(Path(sys.argv[1]), "new " * int(sys.argv[2]))
"""
KILLED = """
import os, signal, sys
from pathlib import Path
from sesa.runs import write_atomic
os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
write_atomic(Path(sys.argv[1]), "new")
"""


@pytest.mark.parametrize("content", ["päth\n", b"\x00\r\n\xff", ""])
def test_write_atomic_makes_folders_writes_bytes_as_they_are_and_replaces(tmp_path, content):
    path = tmp_path / "a" / "b" / "file"
    write_atomic(path, "something longer that stood there before")
    write_atomic(path, content)
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode("utf-8"))
    assert path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("before", [{"file": "old"}, {}])
def test_write_atomic_on_a_full_disk_leaves_what_was_there_and_says_what_to_do(tmp_path, before):
    for name, content in before.items():
        (tmp_path / name).write_text(content)
    done = python("-c", FULL_DISK, str(tmp_path / "file"), "100000")
    message = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert message.startswith("OSError") and f"could not write {tmp_path / 'file'}: File too large" in message
    assert "make room" in message and "run the same command again" in message
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == before
    assert python("-c", FULL_DISK, str(tmp_path / "file"), "100").returncode == 0, "there is room for a small file"


def test_write_atomic_killed_before_the_rename_keeps_the_old_file(tmp_path):
    (tmp_path / "file.csv").write_text("old")
    assert python("-c", KILLED, str(tmp_path / "file.csv")).returncode == -signal.SIGKILL
    assert (tmp_path / "file.csv").read_text() == "old"
    assert [p.name for p in tmp_path.glob("[!.]*")] == ["file.csv"], "what is left over is hidden"


def test_write_atomic_says_which_place_is_no_folder(tmp_path):
    (tmp_path / "runs").write_text("a file where a folder should be")
    with pytest.raises(OSError, match=r"could not write .*runs/smoke/x\.csv.*run the same command again"):
        write_atomic(tmp_path / "runs" / "smoke" / "x.csv", "x")
    assert (tmp_path / "runs").read_text() == "a file where a folder should be"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_write_atomic_says_which_folder_is_read_only(tmp_path):
    (tmp_path / "x.csv").write_text("old")
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(PermissionError, match=r"could not write .*x\.csv.*give access"):
            write_atomic(tmp_path / "x.csv", "new")
    finally:
        tmp_path.chmod(0o755)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"x.csv": "old"}


def test_a_relative_home_is_one_place_in_every_working_folder(tmp_path, monkeypatch):
    """Make runs in the checkout, the notebooks in notebooks/."""
    monkeypatch.setenv("SESA_HOME", "results")
    places = set()
    for folder in (ROOT, ROOT / "tests"):
        monkeypatch.chdir(folder)
        places.add(runs.home().resolve())
    assert places == {ROOT / "results"}


def test_verified_text(tmp_path):
    path, sums = tmp_path / "table.csv", tmp_path / "SHA256SUMS"
    path.write_bytes("a,b\nLǘ,1\n".encode())
    sums.write_text(f"{'0' * 64}  other.csv\n{hashlib.sha256(path.read_bytes()).hexdigest()}  table.csv\n")
    assert verified_text(path) == "a,b\nLǘ,1\n"


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda folder: (folder / "table.csv").write_text("a,b\n1,3\n"), "table.csv has SHA-256"),
        (lambda folder: (folder / "table.csv").unlink(), "cannot read .*table.csv"),
        (lambda folder: (folder / "SHA256SUMS").unlink(), "cannot read .*SHA256SUMS"),
        (lambda folder: (folder / "SHA256SUMS").write_text(""), "SHA256SUMS says nothing"),
    ],
)
def test_verified_text_refuses_what_is_not_recorded(tmp_path, harm, says):
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    (tmp_path / "SHA256SUMS").write_text(hashlib.sha256(b"a,b\n1,2\n").hexdigest() + "  table.csv\n")
    verified_text(tmp_path / "table.csv")
    harm(tmp_path)
    with pytest.raises(DataError, match=rf"{says}.*git checkout {tmp_path.name}/.*README\.md"):
        verified_text(tmp_path / "table.csv")


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
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    (tmp_path / "m.py").write_text(CODE)
    before = fingerprint([tmp_path / "m.py"])
    (tmp_path / "m.py").write_text(edited)
    assert edited != CODE
    assert (fingerprint([tmp_path / "m.py"]) == before) is same


def test_fingerprint_sees_data_names_and_texts(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "ROOT", tmp_path)
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
    monkeypatch.setattr(runs, "ROOT", tmp_path)
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


# --------------------------------------------------------------------------------------------------- origin and progress


def test_origin_names_commit_versions_and_machine():
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    found = origin()
    assert found["commit"] == (head.stdout.strip() or None)
    assert found["dirty"] in (True, False, None)
    assert (found["numpy"], found["python"]) == (np.__version__, "{}.{}.{}".format(*sys.version_info[:3]))
    assert {"torch", "transformers", "machine"} <= set(found)


def test_origin_without_git(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (origin()["commit"], origin()["dirty"]) == (None, None)


def test_progress_in_batch_is_plain_lines_that_end_with_all(home, capsys):
    with progress(3, "draws") as bar:
        for loss in range(3):
            bar.set_postfix_str(f"loss {loss}")
            bar.update()
    out, err = capsys.readouterr()
    assert out == "" and "\r" not in err and err.endswith("\n")
    assert err.splitlines()[-1].startswith("draws: 3/3 ") and "loss 2" in err.splitlines()[-1]


def test_progress_in_batch_says_little(home, capsys):
    with progress(500, "draws") as bar:
        for loss in range(500):
            bar.set_postfix_str(f"loss {loss}")
            bar.update()
    assert len(capsys.readouterr().err.splitlines()) <= 3, "a line every 10 s, not one an update"


def test_progress_in_batch_says_how_far_it_came_before_an_error(home, capsys):
    with pytest.raises(KeyError), progress(9, "draws") as bar:
        bar.update(4)
        raise KeyError
    assert capsys.readouterr().err.startswith("draws: 4/9 ")


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
    assert sorted(p.name for p in (home / "runs" / "smoke" / "01_a").iterdir()) == sorted(
        f"draws-seed{i}.{kind}" for i in range(3) for kind in ("csv", "json")
    )
    manifest = json.loads((home / "runs/smoke/01_a/draws-seed1.json").read_text())
    assert manifest["inputs"].items() >= {"seed": 1, "scale": 2}.items()
    assert manifest["sha256"] == hashlib.sha256((home / "runs/smoke/01_a/draws-seed1.csv").read_bytes()).hexdigest()
    assert {"commit", "dirty", "torch", "machine", "seconds"} <= set(manifest)
    records = home / "figures" / "smoke" / "records"
    rows = [f'{s},{2.0 * s},"é, ""quoted"""\n{s},{s / 3},\n' for s in range(3)]
    assert (records / "01_draws.csv").read_text() == "seed,x,name\n" + "".join(rows)
    assert [m["inputs"]["seed"] for m in json.loads((records / "01_draws.json").read_text())] == [0, 1, 2]


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
    return x[abs(x) < 1e300]


def draw(seed):
    return pd.DataFrame({"x": numbers(seed)})
"""


def test_recorded_keeps_numbers_to_the_last_bit(home, tmp_path):
    module = module_of(tmp_path / "bits.py", BITS)
    table = recorded("01_a", "smoke", "bits", module.draw, [{"seed": 0}])
    assert np.array_equal(table["x"], module.numbers(0)) and len(table) > 1900


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
        ("draws-seed1.csv", lambda p: p.write_bytes(p.read_bytes()[:-4])),
        ("draws-seed1.csv", lambda p: p.write_text(p.read_text().replace("2.0", "3.0"))),
        ("draws-seed1.csv", Path.unlink),
        ("draws-seed1.json", lambda p: p.write_bytes(p.read_bytes()[:40])),
        ("draws-seed1.json", lambda p: p.write_text("[]")),
        ("draws-seed1.json", lambda p: p.write_bytes(b"\xff\xfe")),
        ("draws-seed1.json", Path.unlink),
    ],
)
def test_recorded_recomputes_what_is_damaged(experiment, home, file, harm):
    whole = experiment.run()
    experiment.calls()
    path = home / "runs" / "smoke" / "01_a" / file
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


def test_redraw_computes_nothing(experiment, home, monkeypatch):
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


SCRIPT = """
import os, signal, sys
import pandas as pd
from sesa.runs import derive_seed, recorded


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
    assert "could not write" in stderr and "draws-armsequential-seed0.csv" in stderr
    code, computed, resumed, stderr = script("full")
    assert (code, computed, len(resumed)) == (0, ALL[1:], 4), stderr


def test_recorded_with_two_jobs_gives_the_bytes_of_one(script):
    _, _, one, _ = script("one")
    code, computed, two, stderr = script("two", jobs=2)
    assert (code, computed) == (0, ALL), stderr
    assert one == two
