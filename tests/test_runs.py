"""sesa.runs: seeds, whole files, origin, progress."""

import hashlib
import os
import signal
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sesa import runs
from sesa.runs import DataError, derive_seed, origin, progress, verified_text, write_atomic
from tests.conftest import ROOT, python

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


def test_sha256_is_of_the_content_and_holds_no_file_in_memory(tmp_path):
    (tmp_path / "small").write_bytes(b"abc")
    assert runs.sha256(tmp_path / "small") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    assert runs.sha256(tmp_path / "absent") is None and runs.sha256(tmp_path) is None
    with (tmp_path / "large").open("wb") as f:
        f.truncate(300 * 2**20)
    code = "import resource, sys; from pathlib import Path; from sesa.runs import sha256; print(sha256(Path(sys.argv[1])))"
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_AS, (250 * 2**20,) * 2); {code}"
    done = python("-c", limited, str(tmp_path / "large"))
    assert done.stdout.strip() == hashlib.sha256(bytes(300 * 2**20)).hexdigest(), done.stderr


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


# --------------------------------------------------------------------------------------------------- origin and progress


def test_origin_names_commit_versions_and_machine():
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    found = origin()
    assert found["commit"] == (head.stdout.strip() or None)
    assert found["dirty"] in (True, False, None)
    assert (found["numpy"], found["python"]) == (np.__version__, "{}.{}.{}".format(*sys.version_info[:3]))
    assert {"torch", "transformers", "machine"} <= set(found)


@pytest.mark.parametrize(
    ("file", "dirty"), [("sesa/new.py", True), ("data/old.csv", True), ("notebooks/profiles/mine.yaml", False), ("README.md", False)]
)
def test_origin_is_dirty_when_code_or_data_differ_from_the_commit(tmp_path, monkeypatch, file, dirty):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "old.csv").write_text("a\n")
    for command in ("init -q", "add .", "-c user.name=a -c user.email=a@b.c commit -qm first"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    assert origin()["dirty"] is False
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("x\n")
    assert origin()["dirty"] is dirty


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
