"""Runs that can be trusted: seeds, files that are whole or absent, results recorded once, and where each of them came from.

A notebook's experiment is one call,

    table = recorded("01_synthetic_exploration", "laptop", "draws", draw_all, [{"seed": 0}, {"seed": 1}], maps=4)

which calls `draw_all(seed=0, maps=4)` and so on, writes each piece to `runs/<profile>/<notebook>/` and returns all of them as one
table. A piece that stands there already, made by the same code from the same arguments, is read, not redone; so an interrupted run
goes on where it stopped. Only the standard library is imported at the top: Make asks for fingerprints before anything is installed.
"""

import ast
import contextlib
import dis
import hashlib
import inspect
import json
import os
import platform
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent  # of the checkout: sesa/, notebooks/, data/


def home() -> Path:
    """Where `runs/` and `figures/` are written: the checkout, or the folder, relative to it, that the variable SESA_HOME names."""
    return ROOT / os.environ.get("SESA_HOME", "")


class DataError(ValueError):
    """A data file is missing, changed or malformed."""


class RecordError(RuntimeError):
    """A recorded result is needed, and is missing or cannot be made."""


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
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = None
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as f:
                temporary = f.name
                f.write(data)
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
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


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


# --------------------------------------------------------------------------------------------------------- fingerprints


def sources_behind(code: str) -> set[Path]:
    """The files of this checkout that Python source uses: modules of `sesa` it imports, theirs in turn, and data files they name."""
    found: set[Path] = set()
    queue = [code]
    while queue:
        text = queue.pop()
        names = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        for name in names:
            if name.split(".")[0] != "sesa":
                continue
            base = ROOT / name.replace(".", "/")
            packages = [p / "__init__.py" for p in (base, *base.parents) if p.is_relative_to(ROOT / "sesa")]
            for path in (base.with_suffix(".py"), *packages):
                if path.is_file() and path not in found:
                    found.add(path)
                    queue.append(path.read_text(encoding="utf-8"))
    everything = code + "".join(p.read_text(encoding="utf-8") for p in found)
    return found | {p for p in (ROOT / "data").glob("*.csv") if p.name in everything}


def fingerprint(files: Iterable[Path], *texts: str) -> str:
    """16 hexadecimal digits that change when the content or the place of a file, or a text, changes; of Python, what it does."""
    digest = hashlib.sha256()
    for path in sorted(files):
        content = _essence(path.read_text(encoding="utf-8")) if path.suffix == ".py" else sha256(path)
        digest.update(f"{path.relative_to(ROOT)}\0{content}\0".encode())
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:16]


def _essence(code: str) -> str:
    """Python source without comments, docstrings and layout: a better explanation makes no result stale."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def hash_of(inputs: dict) -> str:
    """12 hexadecimal digits of the SHA-256 of JSON values."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:12]


def code_behind(function: Callable) -> str:
    """The fingerprint of all of this project's code that `function` uses: its own source, the functions of its notebook that it names,
    theirs in turn, and every module of `sesa` that one of them comes from, with all that it imports.

    Raises:
        ValueError: it reads a variable of its notebook. What a result depends on must be an argument, or records could go stale.
    """
    texts: set[str] = set()
    bound: set[str] = set()  # values of defaults and closures
    modules: set[str] = set()
    queue = [function]
    while queue:
        f = queue.pop()
        if f.__module__.split(".")[0] == "sesa":
            modules.add(f.__module__)
            continue
        text = _essence(textwrap.dedent(inspect.getsource(f)))
        if text in texts:
            continue
        texts.add(text)
        bound.add(repr((f.__defaults__, f.__kwdefaults__, [c.cell_contents for c in f.__closure__ or ()])))
        for name in _globals_read(f.__code__) & f.__globals__.keys():
            value = inspect.unwrap(f.__globals__[name])
            own = getattr(value, "__module__", None) == f.__module__
            if isinstance(value, ModuleType):
                modules |= {value.__name__} & {m for m in sys.modules if m.split(".")[0] == "sesa"}
            elif not (inspect.isroutine(value) or inspect.isclass(value)) or inspect.isclass(value) and own:
                raise ValueError(f"{f.__name__} reads the variable `{name}`: make it an argument, so that it is recorded")
            elif (value.__module__ or "").split(".")[0] == "sesa" or isinstance(value, FunctionType) and own:
                queue.append(value)
    return fingerprint(sources_behind("\n".join([*texts, *(f"import {m}" for m in modules)])) | {ROOT / "requirements.lock"}, *sorted(texts | bound))


def _globals_read(code: CodeType) -> set[str]:
    own = {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
    return own.union(*(_globals_read(c) for c in code.co_consts if isinstance(c, CodeType)))


# --------------------------------------------------------------------------------------------------------------- origin


def origin() -> dict[str, Any]:
    """What made a result: commit (and whether code, notebooks or data differ from it), versions, machine."""

    def git(*args: str) -> str | None:
        try:
            return subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):  # no git, or a copy without its history
            return None

    from importlib.metadata import version

    changed = git("status", "--porcelain", "--", "sesa", "notebooks", "data", "requirements.lock")
    return {
        "commit": git("rev-parse", "HEAD"),
        "dirty": None if changed is None else bool(changed),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "numpy")},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
    }


# ------------------------------------------------------------------------------------------------------------- progress


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


# -------------------------------------------------------------------------------------------------------------- records


def recorded(
    notebook: str,
    profile: str,
    name: str,
    compute: Callable,
    pieces: list[dict[str, Any]],
    jobs: int = 1,
    **common: Any,
):
    """The table of an experiment: `compute(**piece, **common)` of every piece, one below the other, with a column per key of a piece.

    Each piece is written to `runs/<profile>/<notebook>/<name>-<piece>.csv`, its manifest (.json) last. A piece whose manifest names
    the same code and arguments is read, not computed again. The whole table goes to `figures/<profile>/records/`, which is committed.
    With the environment variable SESA_REDRAW set nothing is computed, and where pieces are missing the committed table serves.

    Args:
        compute: returns a pandas DataFrame; reads no variable of the notebook; its arguments are values of JSON.
        pieces: the arguments in which the pieces differ, e.g. [{"seed": 0}, {"seed": 1}]; each piece is recorded on its own.
        jobs: processes that compute pieces side by side.
        common: the arguments that all pieces have alike.

    Raises:
        RecordError: SESA_REDRAW is set and the result is neither recorded nor committed, or with other arguments.
    """
    import pandas as pd

    code = code_behind(compute)
    paths = [home() / "runs" / profile / notebook / ("-".join([name, *(f"{k}{v}" for k, v in p.items())]) + ".csv") for p in pieces]
    inputs = [json.loads(json.dumps({"code": code, **piece, **common})) for piece in pieces]
    todo = [i for i, path in enumerate(paths) if not _is_recorded(path, inputs[i])]
    published = home() / "figures" / profile / "records" / f"{notebook[:2]}_{name}.csv"
    if todo and os.environ.get("SESA_REDRAW"):
        if not published.is_file():
            raise RecordError(f"no recorded result {published}: run `make reproduce PROFILE={profile}` first")
        known = json.loads(published.with_suffix(".json").read_text(encoding="utf-8"))
        if [{**m["inputs"], "code": code} for m in known] != inputs:
            raise RecordError(f"{published} was recorded with other parameters: run `make reproduce PROFILE={profile}` first")
        return pd.read_csv(published)

    with progress(len(pieces), name) as bar:
        bar.update(len(pieces) - len(todo))
        for i, (table, seconds) in zip(todo, _compute([pieces[i] for i in todo], compute, common, jobs), strict=True):
            for column, value in reversed(pieces[i].items()):
                table.insert(0, column, value)
            text = table.to_csv(index=False, lineterminator="\n")
            manifest = {"inputs": inputs[i], "sha256": hashlib.sha256(text.encode()).hexdigest(), "seconds": round(seconds, 1), **origin()}
            write_atomic(paths[i], text)
            write_atomic(paths[i].with_suffix(".json"), json.dumps(manifest, indent=1) + "\n")
            bar.set_postfix_str(f"{paths[i].stem} took {seconds:.0f} s")
            bar.update()
    whole = pd.concat([pd.read_csv(path) for path in paths], ignore_index=True)
    write_atomic(published, whole.to_csv(index=False, lineterminator="\n"))
    manifests = [read_json(path.with_suffix(".json")) for path in paths]
    write_atomic(published.with_suffix(".json"), json.dumps(manifests, indent=1) + "\n")
    return whole


def _is_recorded(path: Path, inputs: dict) -> bool:
    manifest = read_json(path.with_suffix(".json"))
    return manifest is not None and manifest.get("inputs") == inputs and manifest.get("sha256") == sha256(path)


def _timed(compute: Callable, arguments: dict) -> tuple[Any, float]:
    start = time.perf_counter()
    return compute(**arguments), time.perf_counter() - start


def _compute(pieces: list[dict], compute: Callable, common: dict, jobs: int) -> Iterator[tuple[Any, float]]:
    """Results in order, each as soon as it is there."""
    if jobs == 1 or len(pieces) < 2:
        return (_timed(compute, {**piece, **common}) for piece in pieces)
    from joblib import Parallel, delayed

    return Parallel(n_jobs=jobs, return_as="generator")(delayed(_timed)(compute, {**piece, **common}) for piece in pieces)
