"""Runs the notebooks: parameters from a profile, executed by papermill, finished only when all of it went well.

    python -m sesa.notebooks run 01_synthetic_exploration --profile laptop
    python -m sesa.notebooks stamps laptop        what Make asks: a digest of all that each notebook depends on

A profile is `notebooks/profiles/<name>.yaml`, one section per notebook; the notebook's own `parameters` cell says
which keys there are and of what type. Only the standard library is imported at the top: Make runs `stamps` before
anything is installed.
"""

import argparse
import ast
import codecs
import difflib
import json
import math
import os
import re
import sys
from pathlib import Path
from typing import Any

from sesa.fingerprint import fingerprint, sources_behind
from sesa.runs import ROOT, home

FOLDER = ROOT / "notebooks"
PROFILES = FOLDER / "profiles"
CLAIMS = "10_claims"  # reads what all others leave, so it depends on them
# Jupyter picks a kernel's ports before it has them: of two kernels that start at once, one may find its own taken.
KERNEL_STARTS = 3


class ProfileError(ValueError):
    """A profile, or what it says of a notebook, is not right."""


def names() -> list[str]:
    """All notebooks, in order: "00_the_method", ..."""
    return sorted(p.stem for p in FOLDER.glob("[0-9][0-9]_*.ipynb"))


# ------------------------------------------------------------------------------------------------------------- profiles


def load_profile(profile: str) -> dict[str, dict[str, Any]]:
    """{notebook: {parameter: value}} of a profile, checked against every notebook's `parameters` cell.

    Raises:
        ProfileError: no such profile, no readable YAML, a section that is no notebook, a notebook without its
            section, an unknown or missing or doubled key, a value of another type. The message names the place and
            what would be right.
    """
    import yaml

    class Strict(yaml.SafeLoader):
        """YAML in which a doubled key is an error, not the last one's victory."""

        def construct_mapping(self, node, deep=False):
            keys = [self.construct_object(k, deep=True) for k, _ in node.value]
            doubled = sorted({str(k) for k in keys if keys.count(k) > 1})
            if doubled:
                raise ProfileError(f"{path.name}, line {node.start_mark.line + 1}: {', '.join(doubled)} is given twice")
            return super().construct_mapping(node, deep)

    path = _profile_path(profile)
    try:
        sections = yaml.load(_text(path), Strict)
    except yaml.YAMLError as e:
        raise ProfileError(f"{path.name} is no YAML: {e}") from e
    if not isinstance(sections, dict):
        raise ProfileError(f"{path.name} must hold one section per notebook: {', '.join(names())}")
    _same_keys(f"{path.name}", "section", set(sections), set(names()))
    for notebook, section in sections.items():
        if section is not None and not isinstance(section, dict):
            raise ProfileError(f"{path.name}, {notebook}: a section is `key: value` lines, not {section!r}")
        sections[notebook] = _checked(f"{path.name}, {notebook}", section or {}, parameters_cell(notebook))
    return sections


def _profile_path(profile: str) -> Path:
    path = PROFILES / f"{profile}.yaml"
    known = sorted(p.stem for p in PROFILES.glob("*.yaml"))
    if profile not in known:
        hint = f"take one of {', '.join(known)}, or copy one to {path.name}"
        raise ProfileError(f"there is no profile {profile!r} in notebooks/profiles/: {hint}")
    return path


def _text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 with its mark, as Windows editors save it; lines end with "\\n"."""
    content = path.read_bytes()
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as e:
        raise ProfileError(f"{path.name} is not UTF-8 text ({e}): save it as UTF-8") from e
    if "\0" in text:
        raise ProfileError(f"{path.name} holds zero bytes, as UTF-16 without a mark does: save it as UTF-8")
    return "\n".join(text.splitlines()) + "\n"


def parameters_cell(notebook: str) -> dict[str, Any]:
    """{parameter: default} of a notebook: the literals in its cell tagged `parameters`, without `profile`."""
    for cell in _cells(notebook):
        if "parameters" in cell["metadata"].get("tags", []):
            body = ast.parse("".join(cell["source"])).body
            values = {s.targets[0].id: ast.literal_eval(s.value) for s in body if isinstance(s, ast.Assign)}
            return {name: value for name, value in values.items() if name != "profile"}
    raise ProfileError(f"notebooks/{notebook}.ipynb has no cell tagged `parameters`")


def _same_keys(place: str, what: str, given: set, expected: set) -> None:
    unknown, missing = sorted(map(str, given - expected)), sorted(expected - given)
    if unknown:
        there_are = ", ".join(sorted(expected)) or "none"
        raise ProfileError(f"{place}: unknown {what} {', '.join(unknown)}; there are {there_are}")
    if missing:
        raise ProfileError(f"{place}: {what} {', '.join(missing)} is missing")


def _checked(place: str, given: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    _same_keys(place, "key", set(given), set(defaults))
    for key, default in defaults.items():
        _check_value(place, key, given[key], default)
        if isinstance(default, list) and any(v in given[key][:i] for i, v in enumerate(given[key])):
            raise ProfileError(f"{place}: {key} holds a value twice: {given[key]!r}")
    keys = [{*default} for default in defaults.values() if isinstance(default, dict) and len(default) > 1]
    for key, default in defaults.items():
        if isinstance(default, dict) and keys.count({*default}) > 1:  # tables of the same things, e.g. a row per task
            _same_keys(f"{place}, {key}", "key", set(given[key]), set(default))
    return given


def _check_value(place: str, name: str, value: Any, default: Any) -> None:
    """Refuses, at any depth, a value of another kind than the default's, NaN, infinity, and a key that is a typo.

    Inside a dictionary keys may be added and left out, as it holds options or a row per name, and a value may be
    null: what they mean is checked where they are used.
    """
    if default is not None and not _same_type(value, default):
        raise ProfileError(f"{place}: {name} must be of the kind of {default!r}, not {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ProfileError(f"{place}: {name} is {value}: give a finite number")
    known = default if isinstance(default, dict) else {}
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        left_out = [k for k in known if k.isidentifier() and k not in value]
        if key not in known and (meant := difflib.get_close_matches(str(key), left_out, n=1, cutoff=0.85)):
            raise ProfileError(f"{place}: {name}: unknown key {key}; is {meant[0]} meant?")
        if inner is not None:
            _check_value(place, f"{name}: {key}", inner, known.get(key))


def _same_type(value: Any, default: Any) -> bool:
    if isinstance(default, list):
        return isinstance(value, list) and all(any(_same_type(v, d) for d in default) for v in value)
    if isinstance(default, dict):
        return isinstance(value, dict)
    if isinstance(default, float):
        return type(value) in (int, float)
    return type(value) is type(default)


# --------------------------------------------------------------------------------------------------------------- stamps


def stamps(profile: str) -> dict[str, str]:
    """{notebook: fingerprint} of all that a run depends on: notebook, profile section, code, data, pinned versions.

    A finished run leaves the file that `stamp` names; Make compares names, not times.
    """
    text = _text(_profile_path(profile))
    found: dict[str, str] = {}
    for notebook in names():
        cells = _cells(notebook)
        # What the section says, without reading YAML: from its name to the next line that is not indented. If it is not
        # plain, all.
        section = re.search(rf"^{notebook}:.*\n(?:[ \t#].*\n|\n)*", text + "\n", re.MULTILINE)
        try:
            files = sources_behind(_code(cells)) | {ROOT / "requirements.lock", ROOT / "sesa" / "notebooks.py"}
        except SyntaxError as e:
            raise ProfileError(f"notebooks/{notebook}.ipynb is no Python: {e.msg}: {e.text}") from e
        said = [json.dumps([c["cell_type"], c["source"]]) for c in cells]
        said.append(section.group() if section and "*" not in section.group() else text)
        found[notebook] = fingerprint(files, *said)
    if CLAIMS in found:
        found[CLAIMS] = fingerprint([], *found.values())
    return found


def stamp(profile: str, notebook: str, digest: str) -> Path:
    """The file that a finished run leaves."""
    return home() / "runs" / profile / f"{notebook}.{digest}.done"


def _is_done(profile: str, notebook: str, digest: str) -> bool:
    """Whether a run has ended well; a stamp whose executed notebook was deleted says nothing."""
    return stamp(profile, notebook, digest).is_file() and (home() / "figures" / profile / f"{notebook}.ipynb").is_file()


def _cells(notebook: str) -> list[dict]:
    path = FOLDER / f"{notebook}.ipynb"
    try:
        return json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError) as e:
        raise ProfileError(f"{path} is no notebook ({type(e).__name__}: {e})") from e


def _code(cells: list[dict]) -> str:
    lines = [line.rstrip("\n") for c in cells if c["cell_type"] == "code" for line in "".join(c["source"]).splitlines()]
    return "\n".join(line for line in lines if not line.startswith(("%", "!")))


# ------------------------------------------------------------------------------------------------------------ execution


def run(notebook: str, profile: str, redraw: bool = False) -> Path:
    """Executes a notebook at a profile.

    Its figures go to `figures/<profile>/`, and so does the executed notebook when all of it went well.

    Args:
        redraw: no experiment is run; recorded results are plotted again, and the executed notebook stays in `runs/`.

    Returns:
        the executed notebook.

    Raises:
        ProfileError: see `load_profile`; or there is no such notebook.
        NotebookError: a cell failed. The notebook up to it stands in `runs/<profile>/<notebook>.failed.ipynb`.
    """
    if notebook not in names():
        raise ProfileError(f"there is no notebook {notebook!r}: take one of {', '.join(names())}")
    parameters = {"profile": profile, **load_profile(profile)[notebook]}
    import papermill
    from papermill.exceptions import PapermillExecutionError
    from tenacity import Retrying, retry_if_exception, stop_after_attempt

    folder = home() / "runs" / profile
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f".{notebook}.*.ipynb"):  # by a run that was killed
        left.unlink()
    partial, failed = folder / f".{notebook}.{os.getpid()}.ipynb", folder / f"{notebook}.failed.ipynb"
    environment = dict(os.environ)
    os.environ |= {"SESA_BATCH": "1"} | ({"SESA_REDRAW": "1"} if redraw else {})
    # With another backend the notebook would hold no figures.
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    # The kernel of this environment, before one of the same name in the user's folder.
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    # This checkout's code, also where several checkouts share one environment.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    try:
        Retrying(
            # What Jupyter raises of a kernel that did not come up; one that dies later is a DeadKernelError.
            retry=retry_if_exception(lambda e: type(e) is RuntimeError),
            stop=stop_after_attempt(KERNEL_STARTS),
            before_sleep=lambda state: print(
                f"{notebook}: {state.outcome.exception()}; starting its kernel again", file=sys.stderr
            ),
            reraise=True,
        )(
            papermill.execute_notebook,
            os.path.relpath(FOLDER / f"{notebook}.ipynb"),
            os.path.relpath(partial),
            parameters=parameters,
            kernel_name="python3",
            cwd=str(FOLDER),
            progress_bar=False,
            # No word of the kernel about its own start and end; and what its worker processes print once, not twice.
            extra_arguments=["--log-level=50", "--IPKernelApp.capture_fd_output=False"],
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
        )
        done = folder / f"{notebook}.redrawn.ipynb" if redraw else home() / "figures" / profile / f"{notebook}.ipynb"
        done.parent.mkdir(parents=True, exist_ok=True)
        _without_progress(partial)
        os.replace(partial, done)
        failed.unlink(missing_ok=True)
        return done
    except (PapermillExecutionError, RuntimeError) as e:
        os.replace(partial, failed)
        raise NotebookError(notebook, e, failed) from e
    finally:
        os.environ.clear()
        os.environ |= environment
        partial.unlink(missing_ok=True)


def _without_progress(path: Path) -> None:
    """Takes out what went to stderr while the notebook ran: lines of progress, which say nothing about results."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = [o for o in cell["outputs"] if o.get("name") != "stderr"]
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


class NotebookError(RuntimeError):
    """A cell failed, or the process that runs them ended."""

    def __init__(self, notebook: str, e: Any, failed: Path):
        if hasattr(e, "ename"):
            cell = "".join(e.source).strip()
            indented = "\n    ".join(cell.splitlines())
            what = f"failed: {e.ename}: {e.evalue}\n\nin cell [{e.exec_count}]:\n\n    {indented}"
        else:
            what = f"could not go on: {e} (if something killed its process: is there enough memory?)"
        super().__init__(f"notebook {notebook} {what}\n\nAll up to it: {failed}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sesa.notebooks", description="Run this project's notebooks.")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="execute one notebook at a profile")
    one.add_argument("notebook", help="e.g. 01_synthetic_exploration")
    one.add_argument("--profile", default="laptop", help="a file of notebooks/profiles/ (default: laptop)")
    one.add_argument("--redraw", action="store_true", help="draw recorded results anew; run no experiment")
    one.add_argument("--stamp", metavar="DIGEST", help="note that this was run, in place of what was noted")
    listed = commands.add_parser("stamps", help="print NOTEBOOK.DIGEST of each notebook, with .done if that was run")
    listed.add_argument("profile")
    args = parser.parse_args(arguments)
    try:
        if args.command == "stamps":
            found = stamps(args.profile)
            done = {name: _is_done(args.profile, name, digest) for name, digest in found.items()}
            if CLAIMS in done:  # they are joined from what all others leave
                done[CLAIMS] = all(done.values())
            print(*(f"{name}.{digest}{'.done' if done[name] else ''}" for name, digest in found.items()), sep="\n")
            return 0
        if args.stamp:  # the older ones go first: even a run that fails may have overwritten their figures
            for old in (home() / "runs" / args.profile).glob(f"{args.notebook}.*.done"):
                old.unlink()
        done = run(args.notebook, args.profile, args.redraw)
        if args.stamp:
            stamp(args.profile, args.notebook, args.stamp).touch()
        print(f"{args.notebook} is done: {os.path.relpath(done)}")
        return 0
    except (ProfileError, NotebookError, OSError) as e:
        print(f"\nerror: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on where this stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
