"""sesa.notebooks: strict profiles, stamps, and runs that are finished or leave nothing that looks so; then the real notebooks."""

import ast
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import yaml

from sesa import fingerprint as fingerprints
from sesa import notebooks
from sesa.notebooks import ProfileError, load_profile, main, run, stamps

ROOT = Path(__file__).resolve().parent.parent


def write_notebook(path: Path, parameters: str, *cells: str) -> None:
    """A notebook with a parameters cell and further code cells, one text cell in front."""
    v4 = nbformat.v4
    made = v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})
    made.cells = [v4.new_markdown_cell("# Title"), v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    made.cells += [v4.new_code_cell(cell) for cell in cells]
    nbformat.write(made, path)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


SIZE = 'profile = "scratch"\nsize = 3'


def folder_of_notebooks(root: Path) -> Path:
    folder = root / "notebooks"
    (folder / "profiles").mkdir(parents=True)
    values = 'profile = "scratch"\ncount = 1\nrate = 0.5\nbold = True\nlabel = "x"\nsizes = [1, 2]\n'
    write_notebook(folder / "01_a.ipynb", values, "from sesa.used import f", "open('table.csv')\n%time 1")
    write_notebook(folder / "02_b.ipynb", SIZE, "1 + 1")
    write_notebook(folder / "10_claims.ipynb", 'profile = "scratch"', "2 + 2")
    (folder / "profiles" / "p.yaml").write_text(PROFILE)
    return folder


PROFILE = """# A profile.

01_a:
  count: 3
  rate: 0.1
  bold: false
  label: y

  # about sizes
  sizes: [4]

02_b:
  size: 5
10_claims: {}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Three tiny notebooks and their profile `p`, in the place of the real ones; results go to tmp_path/home."""
    made = folder_of_notebooks(tmp_path)
    monkeypatch.setattr(notebooks, "FOLDER", made)
    monkeypatch.setattr(notebooks, "PROFILES", made / "profiles")
    monkeypatch.setenv("SESA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SESA_BATCH", "1")
    monkeypatch.setenv("SESA_REDRAW", "")
    return made


# ------------------------------------------------------------------------------------------------------------- profiles


def test_profile_gives_every_notebook_its_parameters(folder):
    assert load_profile("p") == {
        "01_a": {"count": 3, "rate": 0.1, "bold": False, "label": "y", "sizes": [4]},
        "02_b": {"size": 5},
        "10_claims": {},
    }


@pytest.mark.parametrize(("old", "new"), [("rate: 0.1", "rate: 1"), ("sizes: [4]", "sizes: []"), ("10_claims: {}", "10_claims:")])
def test_profile_may_say(folder, old, new):
    edit(folder / "profiles" / "p.yaml", old, new)
    load_profile("p")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("count: 3", "count: 3\n  bogus: 1", "01_a bogus count"),  # unknown key, and which there are
        ("  label: y\n", "", "01_a label missing"),
        ("  size: 5\n", "", "02_b size missing"),
        ("count: 3", "count: three", "01_a count three"),
        ("count: 3", "count: '3'", "01_a count '3'"),
        ("count: 3", "count: true", "01_a count True"),
        ("count: 3", "count: 3.0", "01_a count 3.0"),
        ("count: 3", "count:", "01_a count None"),
        ("count: 3", "count: [3]", "01_a count [3]"),
        ("rate: 0.1", "rate: fast", "01_a rate fast"),
        ("rate: 0.1", "rate: 1e-3", "01_a rate '1e-3'"),  # a text in YAML 1.1, where 1.0e-3 is a number
        ("rate: 0.1", "rate: true", "01_a rate True"),
        ("rate: 0.1", "rate: .nan", "01_a rate nan finite"),
        ("rate: 0.1", "rate: .inf", "01_a rate inf finite"),
        ("rate: 0.1", "rate: -1.0e+999", "01_a rate -inf finite"),
        ("bold: false", "bold: 0", "01_a bold 0"),
        ("label: y", "label: 1", "01_a label 1"),
        ("sizes: [4]", "sizes: 4", "01_a sizes 4"),
        ("sizes: [4]", "sizes: [4, x]", "01_a sizes 'x'"),
        ("sizes: [4]", "sizes: [4, true]", "01_a sizes True"),
        ("sizes: [4]", "sizes: [[4]]", "01_a sizes [[4]]"),
        ("sizes: [4]", "sizes: [4, 5, 4]", "01_a sizes twice"),
        ("02_b:", "02_c:\n  x: 1\n02_b:", "02_c 02_b"),  # unknown section, and which there are
        ("02_b:\n  size: 5\n", "", "02_b missing"),
        ("02_b:\n  size: 5\n", "02_b: 5\n", "02_b 5"),
        ("02_b:\n  size: 5\n", "02_b: [5]\n", "02_b [5]"),
        ("count: 3", "count: 3\n  count: 4", "count twice"),
        ("10_claims: {}", "02_b:\n  size: 5", "02_b twice"),
        ("sizes: [4]", "sizes: [4", "YAML line"),
        ("label: y", "? [label]\n  : y", "YAML line"),
        (PROFILE, "", "section 01_a 02_b 10_claims"),
        (PROFILE, "just words", "section 01_a 02_b 10_claims"),
    ],
)
def test_profile_is_refused_with_the_place_in_the_message(folder, capsys, old, new, words):
    edit(folder / "profiles" / "p.yaml", old, new)
    with pytest.raises(ProfileError) as error:
        load_profile("p")
    assert [word for word in ["p.yaml", *words.split()] if word not in str(error.value)] == []
    assert main(["run", "02_b", "--profile", "p"]) == 1
    assert f"error: {error.value}" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"01_a:\n  label: \xff\n", PROFILE.encode("utf-16-le"), b"\xff\xfe\x00"], ids=["latin", "no mark", "cut"])
def test_profile_that_is_no_text_is_refused_with_what_to_do(folder, content):
    (folder / "profiles" / "p.yaml").write_bytes(content)
    for function in (load_profile, stamps):
        with pytest.raises(ProfileError, match=r"p\.yaml .*: save it as UTF-8"):
            function("p")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "dos"])
def test_profile_saved_by_another_editor_says_the_same(folder, encoding):
    before = load_profile("p"), stamps("p")
    text = PROFILE.replace("\n", "\r\n") if encoding == "dos" else PROFILE
    (folder / "profiles" / "p.yaml").write_bytes(text.encode("utf-8" if encoding == "dos" else encoding))
    assert (load_profile("p"), stamps("p")) == before


TABLES = """profile = "scratch"
rates = {"lake": {"sesa": 0.1, "parallel": 0.2}, "maze": {"sesa": 0.1}}
steps = {"lake": 4, "maze": 5}
model = {"hidden_size": 64}
options = {"held_out": 9, "empty": [1, 2], "way": {"list_share": 0.5}}
"""
IN_TABLES = """
  rates: {lake: {sesa: 0.3, actions: 1}, maze: {}}
  steps: {lake: 6, maze: 7}
  model: {name: Small, device: cuda}
  options: {empty: [3, 3], held_out: null, skill: 0.5, way: {}}
"""


@pytest.fixture
def tables(folder) -> Path:
    """The profile `p`, with parameters that are dictionaries: options, and tables with a row per task."""
    write_notebook(folder / "02_b.ipynb", TABLES, "1 + 1")
    edit(folder / "profiles" / "p.yaml", "02_b:\n  size: 5\n", f"02_b:{IN_TABLES}")
    return folder / "profiles" / "p.yaml"


def test_profile_may_add_and_leave_out_options(tables):
    assert load_profile("p")["02_b"]["options"] == {"empty": [3, 3], "held_out": None, "skill": 0.5, "way": {}}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("steps: {lake: 6, maze: 7}", "steps: {lake: 6, maz: 7}", "02_b steps maz maze"),
        ("steps: {lake: 6, maze: 7}", "steps: {lake: 6}", "02_b steps maze missing"),
        ("maze: {}}", "mazes: {}}", "02_b rates mazes maze"),
        ("held_out: null", "hled_out: 8", "02_b options hled_out held_out"),
        ("way: {}", "way: {list_shre: 0.1}", "02_b options way list_shre list_share"),
        ("held_out: null", "held_out: many", "02_b options held_out 'many'"),
        ("lake: {sesa: 0.3", "lake: {sesa: fast", "02_b rates lake sesa 'fast'"),
        ("steps: {lake: 6", "steps: {lake: 6.5", "02_b steps lake 6.5"),
        ("skill: 0.5", "skill: .nan", "02_b options nan finite"),
        ("sesa: 0.3", "sesa: .inf", "02_b rates lake sesa inf finite"),
        ("actions: 1", "actions: -.inf", "02_b rates lake -inf finite"),
        ("empty: [3, 3]", "empty: [3, .nan]", "02_b options empty nan"),
    ],
)
def test_profile_is_refused_at_any_depth(tables, old, new, words):
    edit(tables, old, new)
    with pytest.raises(ProfileError) as error:
        load_profile("p")
    assert [word for word in ["p.yaml", *words.split()] if word not in str(error.value)] == []


@pytest.mark.parametrize("profile", ["huge", "../profiles/p", "", "p.yaml"])
def test_unknown_profile_is_refused(folder, profile):
    for function in (load_profile, stamps):
        with pytest.raises(ProfileError, match=rf"no profile '{profile}'.*take one of p\b"):
            function(profile)


def test_unknown_notebook_is_refused(folder, capsys):
    assert main(["run", "03_c", "--profile", "p"]) == 1
    assert "no notebook '03_c': take one of 01_a, 02_b, 10_claims" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------------- stamps


@pytest.fixture
def checkout(folder, tmp_path, monkeypatch) -> Path:
    """The tiny notebooks with code, data and pins of their own."""
    files = {
        "sesa/__init__.py": "",
        "sesa/notebooks.py": "",
        "sesa/used.py": "from sesa.below import g\n\n\ndef f():\n    '''F.'''\n    return g\n",
        "sesa/below.py": "g = 1  # one\n",
        "sesa/unused.py": "x = 'unused.csv'\n",
        "data/table.csv": "a\n1\n",
        "data/unused.csv": "a\n1\n",
        "requirements.lock": "numpy==1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(fingerprints, "ROOT", tmp_path)
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    return tmp_path


def executed(path: Path) -> None:
    """Gives a notebook what Jupyter adds when its cells are run and it is saved."""
    book = nbformat.read(path, 4)
    for i, cell in enumerate(c for c in book.cells if c.cell_type == "code"):
        cell.execution_count = i + 1
        cell.outputs = [nbformat.v4.new_output("stream", text="2\n")]
        cell.metadata["execution"] = {"iopub.status.busy": "2026-01-01"}
    nbformat.write(book, path)


@pytest.mark.parametrize(
    ("file", "change", "changed"),
    [
        ("notebooks/01_a.ipynb", ("table.csv", "table.csv "), "01_a 10_claims"),
        ("notebooks/01_a.ipynb", ("count = 1", "count = 2"), "01_a 10_claims"),
        ("notebooks/02_b.ipynb", ("# Title", "# Another"), "02_b 10_claims"),
        ("notebooks/10_claims.ipynb", ("2 + 2", "2 + 3"), "10_claims"),
        ("notebooks/01_a.ipynb", executed, ""),
        ("notebooks/10_claims.ipynb", executed, ""),
        ("notebooks/profiles/p.yaml", ("count: 3", "count: 4"), "01_a 10_claims"),
        ("notebooks/profiles/p.yaml", ("sizes: [4]", "sizes: [5]"), "01_a 10_claims"),
        ("notebooks/profiles/p.yaml", ("size: 5", "size: 6"), "02_b 10_claims"),
        ("notebooks/profiles/p.yaml", ("# A profile.", "# The profile."), ""),
        ("sesa/used.py", ("return g", "return -g"), "01_a 10_claims"),
        ("sesa/below.py", ("g = 1", "g = 2"), "01_a 10_claims"),
        ("sesa/used.py", ("F.", "Function."), ""),
        ("sesa/below.py", ("# one", "# 1"), ""),
        ("sesa/unused.py", ("x =", "y ="), ""),
        ("data/table.csv", ("1", "2"), "01_a 10_claims"),
        ("data/unused.csv", ("1", "2"), ""),
        ("requirements.lock", ("numpy==1", "numpy==2"), "01_a 02_b 10_claims"),
        ("sesa/notebooks.py", Path.touch, ""),
        ("sesa/notebooks.py", lambda path: path.write_text("x = 1"), "01_a 02_b 10_claims"),
    ],
)
def test_stamps_change_with_what_a_notebook_depends_on(checkout, file, change, changed):
    before = stamps("p")
    change(checkout / file) if callable(change) else edit(checkout / file, *change)
    after = stamps("p")
    assert list(after) == ["01_a", "02_b", "10_claims"]
    assert [name for name in after if after[name] != before[name]] == changed.split()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("02_b:\n  size: 5", "'02_b':\n  size: 5"),
        ("02_b:\n  size: 5", "02_b :\n  size: 5"),
        ("label: y", "label: y\n  sizes: &five [5]"),
    ],
    ids=["quoted", "blank", "alias"],
)
def test_stamps_see_a_value_however_yaml_says_it(checkout, old, new):
    path = checkout / "notebooks" / "profiles" / "p.yaml"
    if "&five" in new:
        edit(path, "  # about sizes\n  sizes: [4]\n", "")
        edit(checkout / "notebooks" / "02_b.ipynb", "size = 3", "size = [3]")
        edit(path, "size: 5", "size: *five")
    edit(path, old, new)
    loaded, stamp = load_profile("p")["02_b"], stamps("p")["02_b"]
    edit(path, "5", "6")
    assert load_profile("p")["02_b"] != loaded
    assert stamps("p")["02_b"] != stamp


def test_stamps_say_which_notebook_cannot_be_read(checkout, capsys):
    edit(checkout / "notebooks" / "02_b.ipynb", "1 + 1", "1 +")
    assert main(["stamps", "p"]) == 1
    assert "02_b" in capsys.readouterr().err
    (checkout / "notebooks" / "02_b.ipynb").write_text('{"cells": [')
    assert main(["stamps", "p"]) == 1
    assert "02_b.ipynb is no notebook" in capsys.readouterr().err


def test_stamps_that_stand_are_printed_as_done(folder, tmp_path, capsys):
    found = stamps("p")
    for name, digest in found.items():
        for path in (tmp_path / "home" / "runs" / "p" / f"{name}.{digest}.done", tmp_path / "home" / "figures" / "p" / f"{name}.ipynb"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    def printed() -> list[str]:
        assert main(["stamps", "p"]) == 0
        return [line.removesuffix(".done").split(".")[0] for line in capsys.readouterr().out.split() if line.endswith(".done")]

    assert printed() == ["01_a", "02_b", "10_claims"]
    (tmp_path / "home" / "figures" / "p" / "01_a.ipynb").unlink()
    assert printed() == ["02_b"], "a stamp whose notebook was deleted says nothing; the claims come after all others"


@pytest.mark.parametrize("profile", sorted(p.stem for p in notebooks.PROFILES.glob("*.yaml")))
def test_stamps_need_only_the_standard_library(profile):
    """Make asks with the system's Python, before anything is installed: -I -S leaves out site-packages and the environment."""
    code = "import sys; sys.path[:0] = sys.argv[1:2]; from sesa.notebooks import main; main(['stamps', sys.argv[2]]); import yaml"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, str(ROOT), profile], capture_output=True, text=True)
    assert done.stdout.split() == [f"{name}.{digest}" for name, digest in stamps(profile).items()] != []
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'yaml'"


# ------------------------------------------------------------------------------------------------------------ execution


def files_under(path: Path) -> list[str]:
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())


def outputs(path: Path) -> str:
    return "".join(o.get("text", "") for c in nbformat.read(path, 4).cells if c.cell_type == "code" for o in c.outputs)


def test_run_that_succeeds_leaves_the_notebook_and_one_stamp(folder, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_notebook(folder / "02_b.ipynb", SIZE, "import os\nprint(profile, size, os.path.basename(os.getcwd()))")
    home = tmp_path / "home"
    (home / "runs" / "p").mkdir(parents=True)
    for old in ("02_b.old.done", "02_b.failed.ipynb", "01_a.old.done"):
        (home / "runs" / "p" / old).touch()
    assert main(["run", "02_b", "--profile", "p", "--stamp", "new"]) == 0
    assert files_under(home) == ["figures/p/02_b.ipynb", "runs/p/01_a.old.done", "runs/p/02_b.new.done"]
    assert outputs(home / "figures/p/02_b.ipynb") == "p 5 notebooks\n"
    assert "02_b is done" in capfd.readouterr().out
    assert str(tmp_path) not in (home / "figures/p/02_b.ipynb").read_text()


def test_run_has_its_figures_and_its_own_kernel_whatever_the_environment_says(folder, tmp_path, monkeypatch):
    drawing = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"
    write_notebook(folder / "02_b.ipynb", SIZE, drawing, "import sys\nprint(sys.executable)")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("HOME", str(tmp_path / "user"))  # with a kernel of the same name, of another environment
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "user" / ".local" / "share"))
    spec = {"argv": ["/no/such/python", "-f", "{connection_file}"], "display_name": "Python 3", "language": "python"}
    for place in (".local/share/jupyter", "Library/Jupyter"):
        other = tmp_path / "user" / place / "kernels" / "python3"
        other.mkdir(parents=True)
        (other / "kernel.json").write_text(json.dumps(spec))
    done = run("02_b", "p")
    cells = [c for c in nbformat.read(done, 4).cells if c.cell_type == "code"]
    assert [o.data["image/png"][:4] for c in cells for o in c.outputs if "data" in o and "image/png" in o.data] == ["iVBO"]
    assert outputs(done).endswith(f"{sys.executable}\n")
    assert os.environ["MPLBACKEND"] == "Agg", "this process is left as it was"


def test_run_that_fails_shows_the_cell_and_leaves_no_stamp(folder, tmp_path, capfd):
    write_notebook(folder / "02_b.ipynb", SIZE, "print(size)", "# the culprit\n1 / (size - 5)", "never = 'run'")
    home = tmp_path / "home"
    (home / "runs" / "p").mkdir(parents=True)
    (home / "runs/p/02_b.old.done").touch()  # of a state whose figures this run may have overwritten
    assert main(["run", "02_b", "--profile", "p", "--stamp", "new"]) == 1
    message = capfd.readouterr().err
    error = message[message.index("error: notebook 02_b") :]
    assert "# the culprit\n    1 / (size - 5)" in error and "ZeroDivisionError: division by zero" in error
    assert "never" not in error
    assert str(home / "runs/p/02_b.failed.ipynb") in error
    assert outputs(home / "runs/p/02_b.failed.ipynb").startswith("5\n")
    assert files_under(home) == ["runs/p/02_b.failed.ipynb"]


def test_run_whose_kernel_is_killed_fails_with_a_message(folder, tmp_path, capfd):
    """As the system does to a process that takes too much memory."""
    write_notebook(folder / "02_b.ipynb", SIZE, "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    home = tmp_path / "home"
    assert main(["run", "02_b", "--profile", "p", "--stamp", "new"]) == 1
    assert "error: notebook 02_b" in capfd.readouterr().err
    assert [f for f in files_under(home) if not f.endswith("failed.ipynb")] == []


@pytest.mark.parametrize(("failures", "code", "says"), [(1, 0, "02_b is done"), (3, 1, "error: notebook 02_b could not go on")])
def test_run_whose_kernel_does_not_start_starts_it_again(folder, tmp_path, capfd, monkeypatch, failures, code, says):
    """As a kernel whose ports another one took meanwhile: here the kernel spec's command ends at once, the first few times."""
    write_notebook(folder / "02_b.ipynb", SIZE, "print(size)")
    starts = tmp_path / "starts"
    script = f'echo >> "{starts}"; test $(wc -l < "{starts}") -gt {failures} && exec "{sys.executable}" -m ipykernel_launcher "$@"'
    spec = {"argv": ["sh", "-c", script, "sh", "-f", "{connection_file}"], "display_name": "Python 3", "language": "python"}
    (tmp_path / "kernels" / "python3").mkdir(parents=True)
    (tmp_path / "kernels" / "python3" / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    assert main(["run", "02_b", "--profile", "p"]) == code
    shown = capfd.readouterr()
    assert says in shown.out + shown.err and "starting its kernel again" in shown.err
    assert len(starts.read_text()) == min(failures + 1, 3)
    if code == 0:
        assert outputs(tmp_path / "home/figures/p/02_b.ipynb") == "5\n"


def test_redraw_leaves_the_published_notebook_and_this_process_as_they_were(folder, tmp_path, monkeypatch):
    write_notebook(folder / "02_b.ipynb", SIZE, "import os\nprint(os.environ['SESA_REDRAW'])")
    home = tmp_path / "home"
    (home / "figures" / "p").mkdir(parents=True)
    (home / "figures/p/02_b.ipynb").write_text("as published")
    done = run("02_b", "p", redraw=True)
    assert outputs(done) == "1\n"
    assert files_under(home) == ["figures/p/02_b.ipynb", "runs/p/02_b.redrawn.ipynb"]
    assert (home / "figures/p/02_b.ipynb").read_text() == "as published"
    assert not os.environ["SESA_REDRAW"], "the next run in this process would compute nothing"


def test_run_that_is_killed_leaves_nothing_that_looks_finished_and_goes_on(tmp_path):
    shutil.copytree(ROOT / "sesa", tmp_path / "sesa", ignore=shutil.ignore_patterns("__pycache__"))
    folder = folder_of_notebooks(tmp_path)
    cell = "import os, time\nopen(os.environ['STARTED'], 'w').write(str(os.getpid()))\ntime.sleep(float(os.environ['SLEEP']))"
    write_notebook(folder / "02_b.ipynb", SIZE, cell)
    home, started = tmp_path / "home", tmp_path / "started"
    command = [sys.executable, *"-m sesa.notebooks run 02_b --profile p --stamp new".split()]
    environment = os.environ | {"SESA_HOME": str(home), "STARTED": str(started), "SLEEP": "50"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 40
        while not (started.exists() and started.read_text()):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(started.read_text()), signal.SIGKILL)  # the kernel, in a group of its own
    assert [f for f in files_under(home) if not Path(f).name.startswith(".")] == []
    done = subprocess.run(command, cwd=tmp_path, env=environment | {"SLEEP": "0"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [f for f in files_under(home) if not Path(f).name.startswith(".")] == ["figures/p/02_b.ipynb", "runs/p/02_b.new.done"]


# --------------------------------------------------------------------------------------------------- the real notebooks

REAL = sorted(p.stem for p in (ROOT / "notebooks").glob("*.ipynb"))
PROFILES = sorted(p.stem for p in (ROOT / "notebooks" / "profiles").glob("*.yaml"))


def code_cells(notebook: str) -> list:
    return [c for c in nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", 4).cells if c.cell_type == "code"]


def test_the_notebooks_begin_with_the_method_and_end_with_the_claims():
    assert notebooks.names() == REAL
    assert (REAL[0], REAL[-1]) == ("00_the_method", "10_claims")
    assert {"smoke", "laptop"} <= set(PROFILES)


@pytest.mark.parametrize("profile", PROFILES)
def test_profile_is_strictly_right(profile):
    assert list(load_profile(profile)) == REAL


@pytest.mark.parametrize("notebook", REAL)
def test_notebook_is_valid_and_kept_without_outputs(notebook):
    book = nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", 4)
    nbformat.validate(book)
    assert book.metadata.kernelspec.name == "python3"
    assert [c.source for c in code_cells(notebook) if c.outputs or c.execution_count is not None] == []


@pytest.mark.parametrize("notebook", REAL)
def test_notebook_code_cells_are_short(notebook):
    """But for the parameters, which are a list of values."""
    cells = [c for c in code_cells(notebook) if "parameters" not in c.metadata.get("tags", [])]
    assert [c.source for c in cells if len(c.source.splitlines()) > 25] == []


@pytest.mark.parametrize("notebook", REAL)
def test_notebook_has_the_values_of_laptop_as_its_defaults(notebook):
    (tagged,) = [c for c in code_cells(notebook) if "parameters" in c.metadata.get("tags", [])]
    statements = ast.parse(tagged.source).body
    assert all(isinstance(s, ast.Assign) and isinstance(s.targets[0], ast.Name) and len(s.targets) == 1 for s in statements)
    values = [(s.targets[0].id, ast.literal_eval(s.value)) for s in statements]
    assert values[0] == ("profile", "scratch")
    laptop = yaml.safe_load((ROOT / "notebooks" / "profiles" / "laptop.yaml").read_text())
    assert dict(values[1:]) == laptop[notebook]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The figures of one smoke run, shared by the notebooks in their order."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("smoke")
        patch.setenv("SESA_HOME", str(home))
        patch.setenv("SESA_BATCH", "1")
        patch.setenv("SESA_REDRAW", "")
        patch.setenv("MPLBACKEND", "Agg")  # as in a shell without a screen; the notebooks have their figures nevertheless
        yield home / "figures" / "smoke"


@pytest.mark.parametrize("notebook", REAL)
def test_notebook_runs_at_smoke(smoke, notebook):
    before = set(files_under(smoke))
    done = run(notebook, "smoke")
    assert done == smoke / f"{notebook}.ipynb"
    cells = [c for c in nbformat.read(done, 4).cells if c.cell_type == "code"]
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    assert 'profile = "smoke"' in "".join(c.source for c in cells if "injected-parameters" in c.metadata.get("tags", []))
    assert [o for c in cells for o in c.outputs if o.output_type == "error" or o.get("name") == "stderr"] == []
    shown = [o for c in cells for o in c.outputs if "image/png" in o.get("data", {})]
    assert len(shown) == 3 if notebook == "00_the_method" else shown
    made = set(files_under(smoke)) - before
    drawn = {Path(f).stem for f in made if re.search(r"\.(png|svg)$", f)}
    assert drawn, "a notebook shows at least one figure"
    assert {f"{name}.{kind}" for name in drawn for kind in ("png", "svg", "csv", "json")} <= made
    assert all(json.loads((smoke / f"{name}.json").read_text())["profile"] == "smoke" for name in drawn)
    assert {Path(f).name for f in made if not Path(f).name.startswith(notebook[:2])} <= {"claims.csv"}


def test_the_synthetic_exploration_twice_is_the_same_to_the_byte(smoke, tmp_path, monkeypatch):
    """Everything anew in another place, warm start included: the same numbers in every table."""
    monkeypatch.setenv("SESA_HOME", str(tmp_path))
    run("01_synthetic_exploration", "smoke")
    again = tmp_path / "figures" / "smoke"
    tables = sorted(p.relative_to(again) for p in again.rglob("*.csv"))
    assert len(tables) > 8
    assert [t for t in tables if (again / t).read_bytes() != (smoke / t).read_bytes()] == []
