"""Data sets that were downloaded before: the rows of one configuration and split, with their numbers as they were written."""

import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

SPLITS = {"train", "test", "validation", "valid", "val", "dev"}


def rows_of(folder: str | Path, configuration: str | None, split: str) -> list[dict[str, Any]]:
    """The rows of the *.jsonl and *.parquet files in a folder and its subfolders, or of one file, in the order of their names.

    A file's split is a word of its name, or else of the nearest folder that has one: "test.jsonl", "train-00000-of-00001.parquet",
    "train/0.parquet". If some are of `split`, only these are read, and one of another split never is. Of several configurations, each in a
    folder or named in its files, only the one asked for. Integers of any length are exact, and JSON's fractions Decimal.

    Raises:
        OSError: there is no such folder.
        ValueError: no file is of this split, or one cannot be read: which, and at which line.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"there is no folder {folder}")
    found = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.suffix in (".jsonl", ".parquet"))
    words = {path: _words(path.relative_to(folder if folder.is_dir() else folder.parent)) for path in found}
    found = [path for path in found if any(configuration in of_part for of_part in words[path])] or found
    splits = {path: next((of_part & SPLITS for of_part in words[path] if of_part & SPLITS), set()) for path in found}
    kept = [path for path in found if split in splits[path]] or [path for path in found if not splits[path]]
    if found and not kept:
        raise ValueError(f"none of {', '.join(path.name for path in found)} is of the split {split!r}")
    return [row for path in kept for row in (_jsonl if path.suffix == ".jsonl" else _parquet)(path)]


def _words(path: Path) -> list[set[str]]:
    """The words of a file's name, of its folder's, and so on."""
    return [set(re.split("[^a-z]+", part.lower())) for part in reversed(path.parts)]


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
        if not value.is_finite():
            return ""
        if abs(value.adjusted()) < 1000:  # 1e999999999 written out would fill the memory
            value = int(value) if value == value.to_integral_value() else f"{value:f}"
    return str(value).strip()
