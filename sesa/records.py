"""Results recorded once: each with what it was made from, by what code, and read again as long as that is the same.

A notebook's experiment is one call,

    table = recorded("01_synthetic_exploration", "laptop", "draws", draw_all, [{"seed": 0}, {"seed": 1}], maps=4)

which calls `draw_all(seed=0, maps=4)` and so on, writes each piece to `runs/<profile>/<notebook>/` and returns all of them as one
table. A piece that stands there already, made by the same code from the same arguments, is read, not redone; so an interrupted run
goes on where it stopped. Only the standard library is imported at the top: Make asks for fingerprints before anything is installed.
"""

import ast
import dis
import hashlib
import inspect
import json
import os
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from sesa.runs import ROOT, home, origin, progress, read_json, sha256, write_atomic


class RecordError(RuntimeError):
    """A recorded result is needed, and is missing or cannot be made."""


# --------------------------------------------------------------------------------------------------------- fingerprints


def sources_behind(code: str) -> set[Path]:
    """The files of this checkout that Python source uses: modules of `sesa` it imports, theirs in turn, and data files they name."""
    found: set[Path] = set()
    queue = [code]
    while queue:
        text = queue.pop()
        for name in _imported(text):
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


@cache
def _imported(code: str) -> frozenset[str]:
    """All modules that Python source imports, and all that may be one: `from a import b` gives a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def fingerprint(files: Iterable[Path], *texts: str) -> str:
    """16 hexadecimal digits that change when the content or the place of a file, or a text, changes.

    Of Python it is what it does, and the pinned versions of what it imports; so a package that is added for something else makes no
    result stale.
    """
    digest = hashlib.sha256()
    for path in sorted(files):
        content = sha256(path)
        if path.suffix == ".py":
            code = path.read_text(encoding="utf-8")
            content = "\n".join([_essence(code), *_pins({name.split(".")[0] for name in _imported(code)})])
        digest.update(f"{path.relative_to(ROOT)}\0{content}\0".encode())
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:16]


def _pins(packages: set[str]) -> list[str]:
    """The lines of `requirements.lock` for packages of these names."""
    lock = ROOT / "requirements.lock"
    lines = lock.read_text(encoding="utf-8").split() if lock.exists() else []
    return [line for line in lines if re.split("[=~<> ]", line)[0].replace("-", "_").lower() in packages]


@cache
def _essence(code: str) -> str:
    """Python source without comments, docstrings and layout: a better explanation makes no result stale."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


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
    return fingerprint(sources_behind("\n".join([*texts, *(f"import {m}" for m in modules)])), *sorted(texts | bound))


def _globals_read(code: CodeType) -> set[str]:
    own = {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
    return own.union(*(_globals_read(c) for c in code.co_consts if isinstance(c, CodeType)))


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

    if jobs < 1:
        raise ValueError(f"jobs is a number of processes, at least 1, not {jobs}")
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
        if others := {m["commit"] for m in known if m["inputs"]["code"] != code}:
            print(f"{published.name}: drawn from results of other code, of commit {', '.join(sorted(map(str, others)))}")
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
