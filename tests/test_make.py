"""The Makefile: what it says, what it would do, and that it redoes just what has changed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from sesa.notebooks import names, stamps

ROOT = Path(__file__).resolve().parent.parent
VENV = Path(sys.prefix)


def make(*arguments: str, home: Path, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """Runs make with this very environment, which it must take as ready: no test installs anything."""
    command = ["make", f"VENV={VENV}", "-o", f"{VENV}/ready", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment(home), capture_output=True, text=True, timeout=120)


def environment(home: Path) -> dict[str, str]:
    """Ours, without what a `make test` around this test has set."""
    around = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "PROFILE", "SESA_REDRAW"}
    return {k: v for k, v in os.environ.items() if k not in around} | {"SESA_HOME": str(home)}


def notebooks_run(done: subprocess.CompletedProcess) -> list[str]:
    """The notebooks that make has run, or with -n would run, in order."""
    assert done.returncode == 0, done.stdout + done.stderr
    return re.findall(r"-m sesa\.notebooks run (\S+)", done.stdout)


def test_help_lists_all_targets(tmp_path):
    (phony,) = re.findall(r"^\.PHONY: (help .*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"help", "reproduce", "smoke", "test", "lab", "figures", "setup", "lock", "clean"} <= set(phony.split())
    done = make("help", home=tmp_path)
    listed = dict(re.findall(r"^  make (\S+) +(.+)", done.stdout, re.MULTILINE))
    assert set(listed) == set(phony.split()) and all(len(text) > 5 for text in listed.values())
    assert make(home=tmp_path).stdout == done.stdout, "and help is what plain `make` gives"


def test_help_says_how_long_things_take(tmp_path):
    assert re.findall(r".*\bTIME\b.*", make("help", home=tmp_path).stdout) == []


@pytest.mark.parametrize("jobs", ["-j1", "-j2"])
def test_reproduce_runs_every_notebook_once_and_the_claims_last(tmp_path, jobs):
    done = make("-n", jobs, "reproduce", "PROFILE=smoke", home=tmp_path)
    order = notebooks_run(done)
    assert sorted(order) == names() and order[-1] == "10_claims"
    for name, digest in stamps("smoke").items():
        assert f"run {name} --profile smoke --stamp {digest}\n" in done.stdout


def test_reproduce_runs_nothing_when_all_stamps_stand(tmp_path):
    standing = [tmp_path / "runs" / "smoke" / f"{name}.{digest}.done" for name, digest in stamps("smoke").items()]
    standing[0].parent.mkdir(parents=True)
    executed = tmp_path / "figures" / "smoke"
    executed.mkdir(parents=True)
    for name, stamp in zip(names(), standing, strict=True):
        stamp.touch()
        (executed / f"{name}.ipynb").touch()
    assert notebooks_run(make("-n", "reproduce", "PROFILE=smoke", home=tmp_path)) == []
    standing[0].unlink()
    assert notebooks_run(make("-n", "reproduce", "PROFILE=smoke", home=tmp_path)) == [names()[0], "10_claims"]
    standing[0].touch()
    (executed / f"{names()[0]}.ipynb").unlink()  # a stamp whose notebook was deleted says nothing
    assert notebooks_run(make("-n", "reproduce", "PROFILE=smoke", home=tmp_path)) == [names()[0], "10_claims"]


def test_smoke_is_reproduce_at_the_profile_smoke(tmp_path):
    order = notebooks_run(make("-n", "smoke", home=tmp_path))
    assert sorted(order) == names()


def test_figures_redraws_every_notebook(tmp_path):
    done = make("-n", "figures", "PROFILE=laptop", home=tmp_path)
    assert done.returncode == 0 and "--profile laptop --redraw" in done.stdout


@pytest.mark.parametrize("flags", [["-n"], [], ["-j2"]])
def test_unknown_profile_is_refused_before_any_work(tmp_path, flags):
    done = make(*flags, "reproduce", "PROFILE=nonsense", home=tmp_path)
    assert done.returncode != 0
    assert "error: there is no profile 'nonsense' in notebooks/profiles/" in done.stderr
    assert "laptop" in done.stderr and "Traceback" not in done.stderr
    assert "sesa.notebooks run" not in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_without_an_environment_reproduce_makes_one_first(tmp_path):
    for name in ("sesa", "notebooks", "data"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("Makefile", "requirements.lock", "requirements.model", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    command = ["make", "-n", "reproduce", "PROFILE=smoke"]
    steps = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True).stdout
    places = [steps.index(s) for s in ("-m venv", "-r requirements.lock", "--editable .", "notebooks run")]
    assert places == sorted(places)
    given = subprocess.run([*command, "VENV=/given"], cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True).stdout
    assert "/given/bin/python -m sesa.notebooks run" in given and "pip" not in given  # used as it is


def write_notebook(path: Path, *cells: str) -> None:
    v4 = nbformat.v4
    made = v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})
    made.cells = [v4.new_code_cell('profile = "scratch"', metadata={"tags": ["parameters"]}), *map(v4.new_code_cell, cells)]
    nbformat.write(made, path)


def test_reproduce_for_real_in_a_small_copy_redoes_just_what_changed(tmp_path):
    copy, home = tmp_path / "a copy", tmp_path / "a home with spaces"
    (copy / "notebooks" / "profiles").mkdir(parents=True)
    for name in ("Makefile", "requirements.lock", "requirements.model", "pyproject.toml"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "sesa", copy / "sesa", ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "notebooks" / "profiles" / "tiny.yaml").write_text("00_a:\n01_b:\n10_claims:\n")
    write_notebook(copy / "notebooks" / "00_a.ipynb", "1 + 1")
    write_notebook(copy / "notebooks" / "01_b.ipynb", "1 / 0")
    look = "import os\nprint(sorted(f for f in os.listdir(os.environ['SESA_HOME'] + '/figures/tiny') if f[0] == '0'))"
    write_notebook(copy / "notebooks" / "10_claims.ipynb", look)
    arguments = ["-j2", "reproduce", "PROFILE=tiny"]

    broken = make(*arguments, home=home, cwd=copy)
    assert broken.returncode != 0
    assert "error: notebook 01_b failed" in broken.stderr and "1 / 0" in broken.stderr
    assert "All notebooks are done" not in broken.stdout
    assert sorted(p.name for p in (home / "figures" / "tiny").iterdir()) == ["00_a.ipynb"]

    write_notebook(copy / "notebooks" / "01_b.ipynb", "1 / 1")
    done = make(*arguments, home=home, cwd=copy)
    assert notebooks_run(done) == ["01_b", "10_claims"]
    assert "All notebooks are done at profile tiny" in done.stdout
    assert sorted(p.name for p in (home / "figures" / "tiny").iterdir()) == ["00_a.ipynb", "01_b.ipynb", "10_claims.ipynb"]
    assert "['00_a.ipynb', '01_b.ipynb']" in (home / "figures" / "tiny" / "10_claims.ipynb").read_text()

    assert [p.name.split(".")[0] for p in sorted((home / "runs" / "tiny").glob("*.done"))] == ["00_a", "01_b", "10_claims"]
    again = make(*arguments, home=home, cwd=copy)
    assert notebooks_run(again) == [] and "All notebooks are done" in again.stdout
    (copy / "notebooks" / "00_a.ipynb").touch()
    assert notebooks_run(make("-n", *arguments, home=home, cwd=copy)) == []
    write_notebook(copy / "notebooks" / "00_a.ipynb", "1 + 2")
    assert notebooks_run(make("-n", *arguments, home=home, cwd=copy)) == ["00_a", "10_claims"]
