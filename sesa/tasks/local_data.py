"""Data sets that were downloaded before: the rows of one configuration and split, with their numbers as they were written."""

import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

SPLITS = {"train", "test", "validation", "valid", "val", "dev"}


def rows_of(folder: str | Path, configuration: str | None, split: str) -> list[dict[str, Any]]:
    """The rows of the *.jsonl and *.parquet files in a folder and its subfolders, or of one file, in the order of their names.

    If some names have `split` as a word ("test.jsonl", "train-00000-of-00001.parquet", "train/0.parquet"), only theirs; a file whose name says
    another split is never read. The same for `configuration`, so far as a name says it. Integers of any length are exact, and fractions Decimal.

    Raises:
        OSError: there is no such folder.
        ValueError: no file is of this split, or one cannot be read: which, and at which line.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"there is no folder {folder}")
    found = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.suffix in (".jsonl", ".parquet"))
    words = {path: set(re.split("[^a-z]+", path.relative_to(folder.parent if folder.is_file() else folder).as_posix().lower())) for path in found}
    found = [path for path in found if configuration in words[path]] or found
    kept = [path for path in found if split in words[path]] or [path for path in found if not words[path] & SPLITS]
    if found and not kept:
        raise ValueError(f"none of {', '.join(path.name for path in found)} is of the split {split!r}")
    return [row for path in kept for row in (_jsonl if path.suffix == ".jsonl" else _parquet)(path)]


def _jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    with open(path, "rb") as file:  # a line ends at its \n alone: texts may hold other separators of lines
        for number, line in enumerate(file, 1):
            try:
                if text := line.decode("utf-8-sig").strip():
                    rows.append(json.loads(text, parse_float=Decimal, parse_constant=lambda _: None))
                    if not isinstance(rows[-1], dict):
                        raise ValueError("it is no object {...}")
            except ValueError as e:  # json's and unicode's are ValueErrors too
                raise ValueError(f"{path.name}, line {number}: {e}") from e
    return rows


def _parquet(path: Path) -> list[dict[str, Any]]:
    from pyarrow.parquet import read_table

    try:
        return read_table(path).to_pylist()
    except Exception as e:  # pyarrow has errors of its own
        raise ValueError(f"{path.name}: {e}") from e


def text_of(value: Any) -> str:
    """A cell as text: numbers too, 45.0 as 45 (what a column with a gap makes of an integer); "" of a null and of all else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal) or value != value:
        return ""
    if isinstance(value, float):
        value = Decimal(repr(value))
    if isinstance(value, Decimal):
        value = int(value) if value.is_finite() and value == value.to_integral_value() else f"{value:f}"
    return str(value).strip()
