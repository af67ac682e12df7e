"""Results recorded once: each with what it was made from, by what code, and read again as long as that is the same.

A notebook's experiment is one call,

    table = recorded("01_synthetic_exploration", "laptop", "draws", draw_all, [{"seed": 0}, {"seed": 1}], maps=4)

which calls `draw_all(seed=0, maps=4)` and so on, writes each piece to `runs/<profile>/<notebook>/` as soon as it is
there, and returns all of them as one table. A piece that is there already, made by the same code from the same
arguments, is read, not redone; so an interrupted run resumes.
"""

import hashlib
import io
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from numbers import Number
from pathlib import Path
from typing import Any

from sesa.fingerprint import code_behind
from sesa.runs import hash_of, home, origin, progress, read_json, sha256, write_atomic

JSON_COLUMN = " (JSON)"  # ends the name of a CSV column whose cells are JSON values


class RecordError(RuntimeError):
    """A recorded result is needed, and is missing or cannot be made."""


def recorded(
    notebook: str,
    profile: str,
    name: str,
    compute: Callable,
    pieces: list[dict[str, Any]],
    jobs: int = 1,
    **common: Any,
):
    """The table of an experiment: `compute(**piece, **common)` of every piece, one below the other.

    The keys of a piece are its first columns.
    Each piece is written to `runs/<profile>/<notebook>/<name>-<piece>.csv` when it ends, its manifest (.json) last. A
    piece whose manifest names the same code and arguments is read, not computed again. The whole table goes to
    `figures/<profile>/records/`, which is committed. With the environment variable SESA_REDRAW set nothing is
    computed, and where pieces are missing the committed table serves. Texts and numbers come back as they were; what
    is missing (None, NaN) comes back as missing.

    Args:
        compute: returns a pandas DataFrame; reads no variable of the notebook; its arguments are values of JSON.
        pieces: the arguments in which the pieces differ, e.g. [{"seed": 0}, {"seed": 1}]; each piece is recorded on
            its own.
        jobs: processes that compute pieces side by side; pieces end, and are saved, in any order.
        common: the arguments that all pieces have alike.

    Raises:
        ValueError: `jobs` is below 1, or an argument stands both in a piece and in `common`, or is named "code".
        RecordError: SESA_REDRAW is set and the result is neither recorded nor committed, or with other arguments.
    """
    import pandas as pd

    if jobs < 1:
        raise ValueError(f"jobs is a number of processes, at least 1, not {jobs}")
    in_pieces = {key for piece in pieces for key in piece}
    if twice := in_pieces & common.keys():
        raise ValueError(f"{', '.join(sorted(twice))}: given in a piece and beside the pieces; give it in one place")
    if "code" in in_pieces | common.keys():
        raise ValueError("no argument may be named code: manifests call the fingerprint so")
    code = code_behind(compute)
    paths = [home() / "runs" / profile / notebook / _file_name(name, piece) for piece in pieces]
    inputs = [json.loads(json.dumps({"code": code, **piece, **common})) for piece in pieces]
    todo = [i for i, path in enumerate(paths) if not _is_recorded(path, inputs[i])]
    published = home() / "figures" / profile / "records" / f"{notebook[:2]}_{name}.csv"
    if todo and os.environ.get("SESA_REDRAW"):
        if not published.is_file():
            raise RecordError(f"no recorded result {published}: run `make reproduce PROFILE={profile}` first")
        known = json.loads(published.with_suffix(".json").read_text(encoding="utf-8"))
        if [{**m["inputs"], "code": code} for m in known] != inputs:
            hint = f"run `make reproduce PROFILE={profile}` first"
            raise RecordError(f"{published} was recorded with other parameters: {hint}")
        if others := {m["commit"] for m in known if m["inputs"]["code"] != code}:
            commits = ", ".join(sorted(map(str, others)))
            print(f"{published.name}: drawn from results of other code, of commit {commits}")
        return read_table(published)

    with progress(len(pieces), name) as bar:
        bar.update(len(pieces) - len(todo))
        for i, table, seconds in _compute({i: {**pieces[i], **common} for i in todo}, compute, jobs):
            for column, value in reversed(pieces[i].items()):
                table.insert(0, column, pd.Series([value] * len(table), index=table.index, dtype=object))
            content = to_csv(table).encode("utf-8")
            made = {"sha256": hashlib.sha256(content).hexdigest(), "seconds": round(seconds, 1), **origin()}
            write_atomic(paths[i], content)
            write_atomic(paths[i].with_suffix(".json"), json.dumps({"inputs": inputs[i], **made}, indent=1) + "\n")
            bar.set_postfix_str(f"{paths[i].stem} took {seconds:.0f} s")
            bar.update()
    write_atomic(published, to_csv(pd.concat(map(read_table, paths), ignore_index=True)))
    manifests = [read_json(path.with_suffix(".json")) for path in paths]
    write_atomic(published.with_suffix(".json"), json.dumps(manifests, indent=1) + "\n")
    return read_table(published)


def _file_name(name: str, piece: dict[str, Any]) -> str:
    """Readable, and of this piece alone: its digits are of all that the piece holds."""
    readable = "-".join([name, *(f"{key}{value}" for key, value in piece.items())])
    return f"{re.sub('[^A-Za-z0-9_.+-]+', '_', readable)[:80]}-{hash_of(piece)}.csv"


def _is_recorded(path: Path, inputs: dict) -> bool:
    manifest = read_json(path.with_suffix(".json"))
    return manifest is not None and manifest.get("inputs") == inputs and manifest.get("sha256") == sha256(path)


def _compute(pieces: dict[int, dict], compute: Callable, jobs: int) -> Iterator[tuple[int, Any, float]]:
    """(number of the piece, table, seconds) of each piece, as soon as it is there."""
    if jobs == 1 or len(pieces) < 2:
        return (_timed(i, compute, arguments) for i, arguments in pieces.items())
    from joblib import Parallel, delayed

    # One piece a batch: joblib would hand out several quick ones together, and give them back together.
    parallel = Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1)
    return parallel(delayed(_timed)(i, compute, arguments) for i, arguments in pieces.items())


def _timed(number: int, compute: Callable, arguments: dict) -> tuple[int, Any, float]:
    start = time.perf_counter()
    return number, compute(**arguments), time.perf_counter() - start


# --------------------------------------------------------------------------------------------------------------- tables


def to_csv(table) -> str:
    """A pandas table as CSV that `read_table` reads back with the same values: texts as texts, numbers to the last bit.

    A column that CSV cannot give back as it is ("", "007", "True", 1 beside "1", a list) is written as JSON, and its
    name says so.
    """
    import pandas as pd

    exact = table.astype({column: "float64" for column in table.select_dtypes("floating").columns})
    written = {}
    for name, column in exact.items():
        if str(name).endswith(JSON_COLUMN) or not _comes_back(column):
            cells = [None if _is_missing(v) else json.dumps(v, default=_plain) for v in column.astype(object)]
            name, column = f"{name}{JSON_COLUMN}", pd.Series(cells, index=exact.index)
        written[name] = column
    return pd.DataFrame(written).to_csv(index=False, lineterminator="\n")


def read_table(path: Path):
    """The pandas table in a CSV file of `to_csv`. What is missing is NaN; texts such as "NA" and "None" are texts."""
    return _parse(path.read_bytes())


def _parse(content: bytes):
    import pandas as pd

    names = pd.read_csv(io.BytesIO(content), nrows=0).columns
    coded = [name for name in names if name.endswith(JSON_COLUMN)]
    only_empty = {"keep_default_na": False, "na_values": [""], "skip_blank_lines": False}
    table = pd.read_csv(io.BytesIO(content), dtype=dict.fromkeys(coded, str), **only_empty)
    for name in coded:
        table[name] = pd.Series([None if _is_missing(cell) else json.loads(cell) for cell in table[name]], dtype=object)
    return table.rename(columns={name: name.removesuffix(JSON_COLUMN) for name in coded})


def _comes_back(column) -> bool:
    """Whether a column of a table is the same after it was written as plain CSV and read."""
    import numpy as np

    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "iufb":
        return True
    frame = column.reset_index(drop=True).to_frame("text")
    try:
        back = _parse(frame.to_csv(index_label="row", lineterminator="\n").encode("utf-8"))["text"]
    except ValueError:  # of pandas or of the encoding: a line break or half a character in a text
        return False
    return len(back) == len(frame) and all(map(_is_same, column.astype(object), back.astype(object)))


def _is_same(ours: Any, theirs: Any) -> bool:
    if _is_missing(ours) or _is_missing(theirs):
        return _is_missing(ours) and _is_missing(theirs)
    return _kind(ours) is _kind(theirs) is not None and ours == theirs


def _kind(value: Any) -> type | None:
    import numpy as np

    if isinstance(value, np.bool_):
        return bool
    return next((kind for kind in (str, bool, Number) if isinstance(value, kind)), None)


def _is_missing(value: Any) -> bool:
    import pandas as pd

    return pd.api.types.is_scalar(value) and bool(pd.isna(value))


def _plain(value: Any) -> Any:
    """What JSON can hold for a value of NumPy, or else its text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
