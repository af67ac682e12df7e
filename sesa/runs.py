"""What every run needs: seeds, files that are whole or absent, where a result came from, and how far it is.

Only the standard library is imported at the top: Make asks for fingerprints (`sesa.fingerprint`) before anything is installed.
"""

import contextlib
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

ROOT = Path(__file__).resolve().parent.parent  # of the checkout: sesa/, notebooks/, data/


def home() -> Path:
    """Where `runs/` and `figures/` are written: the checkout, or the folder, relative to it, that the variable SESA_HOME names."""
    return ROOT / os.environ.get("SESA_HOME", "")


class DataError(ValueError):
    """A data file is missing, changed or malformed."""


# ---------------------------------------------------------------------------------------------------------------- seeds


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from SHA-256 of the parts, e.g. (root, arm, step, problem, sample): the same in every process, on every machine."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


# ---------------------------------------------------------------------------------------------------------------- files


def write_atomic(path: Path, content: bytes | str) -> None:
    """Writes the whole file or nothing: to a temporary file beside it, renamed when it is on the disk.

    Raises:
        OSError: the file could not be written (disk full, no permission); what stood at `path` before still stands there.
    """
    with atomic_file(path) as f:
        f.write(content.encode("utf-8") if isinstance(content, str) else content)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write to. When the block ends it takes the place of `path`, whole and on the disk; after an error nothing changes.

    Raises:
        OSError: whatever failed in the block, said as `write_atomic` says it.
    """
    temporary = None
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as f:
                temporary = f.name
                yield f
                f.flush()
                os.fsync(f.fileno())
            os.chmod(temporary, 0o644)  # temporary files are made private; ours are not
            os.replace(temporary, path)
    finally:
        if temporary:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Says of a failed write what could not be written, and what to do."""
    try:
        yield
    except Exception as e:  # libraries that write in another language have errors of their own
        hint = "nothing recorded before is lost; make room or give access there, and run the same command again"
        raise OSError(getattr(e, "errno", None), f"could not write {path}: {getattr(e, 'strerror', e)} ({hint})") from e


def read_json(path: Path) -> dict | None:
    """The object in a JSON file; None if the file is missing, half-written or no object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def sha256(path: Path) -> str | None:
    """Hexadecimal; None if there is no such file."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of(inputs: dict | list) -> str:
    """12 hexadecimal digits of the SHA-256 of JSON values."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:12]


def verified_text(path: Path) -> str:
    """The text of a data file whose SHA-256 stands in `SHA256SUMS` beside it.

    Raises:
        DataError: one of the two is missing, or they do not match.
    """
    hint = f"restore both from git (`git checkout {path.parent.name}/`), or rebuild it as {path.parent.name}/README.md says"
    try:
        content, sums = path.read_bytes(), (path.parent / "SHA256SUMS").read_text(encoding="utf-8", errors="replace").split()
    except OSError as e:
        raise DataError(f"cannot read {e.filename}: {hint}") from e
    expected = dict(zip(sums[1::2], sums[::2], strict=False)).get(path.name, "nothing")
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise DataError(f"{path.name} has SHA-256 {found[:12]}, but SHA256SUMS says {expected[:12]}: {hint}")
    return content.decode("utf-8")


# --------------------------------------------------------------------------------------------------------------- origin


def origin() -> dict[str, Any]:
    """What made a result: commit (and whether code, notebooks or data differ from it), versions, machine."""

    def git(*args: str) -> str | None:
        try:
            return subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):  # no git, or a copy without its history
            return None

    from importlib.metadata import version

    # Not the profiles: which parameters were used is recorded with every result.
    changed = git("status", "--porcelain", "--", "sesa", "notebooks", "data", "requirements.lock", ":!notebooks/profiles")
    return {
        "commit": git("rev-parse", "HEAD"),
        "dirty": None if changed is None else bool(changed),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "numpy")},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
    }


def differing(theirs: dict, ours: dict) -> str:
    """In which parameters two runs differ, "arm: 'sesa', not 'parallel'; ..."; "" if in none. Values as JSON gives them back."""
    ours = json.loads(json.dumps(ours))
    keys = sorted(key for key in {*theirs, *ours} if theirs.get(key) != ours.get(key))
    return "; ".join(f"{key}: {theirs.get(key)!r}, not {ours.get(key)!r}" for key in keys)


# ------------------------------------------------------------------------------------------- progress and interruption


def progress(total: int, name: str):
    """A tqdm bar with `update(n)` and `set_postfix_str(text)`: drawn in a terminal or a notebook, plain lines every 10 s in batch.

    Use it as a context manager. Batch is when the environment variable SESA_BATCH is set or the output is no terminal.
    """
    interactive = "ipykernel" in sys.modules or sys.stderr.isatty()
    if interactive and not os.environ.get("SESA_BATCH"):
        from tqdm.auto import tqdm

        return tqdm(total=total, desc=name)
    from tqdm import tqdm

    class Lines(tqdm):
        monitor_interval = 0  # no thread to redraw a bar that is not there

        def display(self, msg=None, pos=None):
            if self.n or self.total == 0:
                print(self, file=sys.stderr, flush=True)

        def set_postfix_str(self, s="", refresh=False):
            super().set_postfix_str(s, refresh=False)

        def close(self):
            if not self.disable and self.n > self.last_print_n:
                self.display()
            self.disable = True

    return Lines(total=total, desc=name, mininterval=10, ascii=True, bar_format="{desc}: {n}/{total} [{elapsed}<{remaining}]{postfix}")


@contextlib.contextmanager
def finish_the_step() -> Iterator[threading.Event]:
    """Ctrl-C sets the event instead of breaking off in the middle of an update; a second one breaks off."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return

    def note(*_: Any) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
