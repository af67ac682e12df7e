"""Fingerprints: short digests of what code does. A recorded result is stale when its code's fingerprint has changed.

They are the same under every supported Python. Only the standard library is imported: Make asks for them before
anything is installed.
"""

import ast
import dis
import hashlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache, partial
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from sesa.runs import ROOT, sha256

# Modules whose distribution has another name. Not looked up: before the installation there is nothing to look in.
DISTRIBUTIONS = {
    "PIL": "pillow", "antlr4": "antlr4-python3-runtime", "attr": "attrs", "bs4": "beautifulsoup4",
    "dateutil": "python-dateutil", "mpl_toolkits": "matplotlib", "sklearn": "scikit-learn", "yaml": "pyyaml",
    "zmq": "pyzmq",
}


def fingerprint(files: Iterable[Path], *texts: str) -> str:
    """16 hexadecimal digits that change when the content or the place of a file, or a text, changes.

    A Python file counts by its `essence` and by the pinned versions of what it imports; so no result becomes stale by
    a better explanation, or by a package that is added for something else.
    """
    digest = hashlib.sha256()
    for path in sorted(files):
        content = sha256(path)
        if path.suffix == ".py":
            code = path.read_text(encoding="utf-8")
            content = "\n".join([essence(code), *_pins(_imported(code))])
        digest.update(f"{path.relative_to(ROOT).as_posix()}\0{content}\0".encode())
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:16]


def sources_behind(code: str) -> set[Path]:
    """The files that Python source uses: modules of `sesa` it imports, what they import, and data files they name."""
    found: set[Path] = set()
    everything = []
    queue = [code]
    while queue:
        text = queue.pop()
        everything.append(essence(text))
        for name in _imported(text):
            if name.split(".")[0] != "sesa":
                continue
            base = ROOT / name.replace(".", "/")
            packages = [p / "__init__.py" for p in (base, *base.parents) if p.is_relative_to(ROOT / "sesa")]
            for path in (base.with_suffix(".py"), *packages):
                if path.is_file() and path not in found:
                    found.add(path)
                    queue.append(path.read_text(encoding="utf-8"))
    return found | {p for p in (ROOT / "data").glob("*.csv") if any(p.name in text for text in everything)}


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


def _pins(modules: Iterable[str]) -> list[str]:
    """The lines of `requirements.lock` for the packages that these modules come from; all, if one comes from none."""
    lock = ROOT / "requirements.lock"
    lines = lock.read_text(encoding="utf-8").splitlines() if lock.exists() else []
    pins = {_normal(re.split(r"[^\w.-]", line)[0]): line for line in lines}
    packages = {module.split(".")[0] for module in modules} - sys.stdlib_module_names - {"sesa", "__main__"}
    wanted = {_normal(DISTRIBUTIONS.get(package, package)) for package in packages}
    return [line for name, line in sorted(pins.items()) if name in wanted or not wanted <= pins.keys()]


def _normal(name: str) -> str:
    """PEP 503: how names of distributions are compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


# ------------------------------------------------------------------------------------------------ what source does


@cache
def essence(code: str) -> str:
    """What Python source does, as text: the same under every Python version that can read it.

    Comments, docstrings and layout are not in it, nor are the messages of exceptions, assertions and `warnings.warn`.
    What is printed is: another process may read it.
    """
    return _dump(ast.parse(code))


def _dump(node: Any, texts: bool = True) -> str:
    """A syntax tree as text; `ast.dump` and `ast.unparse` differ between versions. `texts`: whether texts count."""
    match node:
        case ast.Constant(value=str()) | ast.JoinedStr() if not texts:
            return "message"
        case ast.Constant():
            return ascii(node.value)  # which characters `repr` shows depends on the version
        case ast.JoinedStr():
            return f"JoinedStr({_joined(node.values)})"
        case ast.Raise(exc=ast.Call() as call):
            return f"Raise({_with_message(call)}, {_dump(node.cause)})"
        case ast.Assert():
            return f"Assert({_dump(node.test)})"
        case ast.Call(func=ast.Attribute(value=ast.Name(id="warnings"), attr="warn")):
            return _with_message(node)
        case ast.AST():
            names = [name for name in node._fields if name not in ("ctx", "kind", "type_comment")]
            found = {name: getattr(node, name, None) for name in names}
            # What is empty is left out, as newer versions have fields that older ones do not know.
            said = [f"{name}={_dump(v, texts)}" for name, v in found.items() if v is not None and v != []]
            return f"{type(node).__name__}({', '.join(said)})"
        case list():
            return f"[{', '.join(_dump(item, texts) for item in node if not _is_idle(item))}]"
        case _:
            return ascii(node)  # a name, a number of the syntax, or None


def _joined(values: list[ast.expr]) -> str:
    """The parts of an f-string; versions differ in where they divide its text, and in whether there is an empty one."""
    parts = []
    for value in values:
        if not isinstance(value, ast.Constant):
            spec = _joined(value.format_spec.values) if value.format_spec else ""
            parts.append((_dump(value.value), value.conversion, spec))
        elif parts and isinstance(parts[-1], str):
            parts[-1] += value.value
        elif value.value:
            parts.append(value.value)
    return ", ".join(map(ascii, parts))


def _with_message(call: ast.Call) -> str:
    return f"Call({_dump(call.func)}, {_dump(call.args, texts=False)}, {_dump(call.keywords, texts=False)})"


def _is_idle(node: Any) -> bool:
    """Statements that do nothing: `pass`, docstrings, other constants that stand alone."""
    return isinstance(node, ast.Pass) or isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


# ------------------------------------------------------------------------------------- what a function depends on


def code_behind(function: Callable) -> str:
    """The fingerprint of all that `function` does.

    That is its own source, the functions of its notebook that it names and that they name in turn, every module of
    `sesa` that one of them comes from, with all that it imports, and the pinned versions of other packages.
    Functions that are bound as a default, in a closure or in a `functools.partial` count as code; other values by
    what they hold.

    Raises:
        ValueError: it reads a variable of its notebook, or binds an object whose content cannot be told, or its
            source is not to be found. What a result depends on must be an argument, or records could go stale.
    """
    behind = _Behind(function)
    text = behind.tell(function, "it", "compute")
    files = sources_behind("\n".join([*behind.sources, *(f"import {name}" for name in behind.modules)]))
    pins = _pins(behind.modules.union(*map(_imported, behind.sources)))
    return fingerprint(files, text, *pins)


class _Behind:
    """Collects the source and the modules behind a function while it tells, as text, what the function is."""

    def __init__(self, function: Callable):
        while isinstance(function, partial):
            function = function.func
        module = function.__module__ or "__main__"
        self.own = {"__main__"} if _is_ours(module) else {"__main__", module}  # the notebook's module
        self.sources: set[str] = set()
        self.modules: set[str] = set()
        self.seen: dict[int, Any] = {}

    def tell(self, value: Any, reader: str, name: str) -> str:
        """What `value` is, bound to `name` in the function `reader`. No address, no order of a set is in it."""
        if type(value) in (type(None), bool, int, float, complex, str, bytes, type(...), range, slice):
            return ascii(value)
        if id(value) in self.seen:
            return f"as number {[*self.seen].index(id(value))}"
        if not isinstance(value, tuple | frozenset | type | ModuleType):  # what may be shared, and hold itself
            self.seen[id(value)] = value  # kept, so that no other object can have its id
        tell = partial(self.tell, reader=reader, name=name)
        if type(value) in (tuple, list):
            return f"{type(value).__name__}({', '.join(map(tell, value))})"
        if type(value) in (set, frozenset):
            return f"set({', '.join(sorted(map(tell, value)))})"
        if type(value) is dict:
            return f"dict({', '.join(f'{tell(k)}: {tell(v)}' for k, v in value.items())})"
        if _is_code(value):
            return self._tell_code(value, tell, reader, name)
        if isinstance(value, Enum):
            return f"{tell(type(value))}.{value.name}"
        if hasattr(value, "tolist"):  # of NumPy, torch, pandas
            return f"{tell(type(value))} {getattr(value, 'dtype', '')} {tell(value.tolist())}"
        if is_dataclass(value):
            return f"{tell(type(value))} {tell({field.name: getattr(value, field.name) for field in fields(value)})}"
        if _is_ours(type(value).__module__) and hasattr(value, "__dict__"):
            return f"{tell(type(value))} {tell(vars(value))}"
        kind = type(value).__name__
        raise ValueError(f"{reader} binds `{name}`, a {kind} whose content cannot be recorded: make it an argument")

    def _tell_code(self, value: Any, tell: Callable, reader: str, name: str) -> str:
        if isinstance(value, partial):
            return f"partial({tell(value.func)}, {tell(value.args)}, {tell(value.keywords)})"
        bound_to = value.__self__ if isinstance(value, MethodType | BuiltinFunctionType) else None
        if not isinstance(bound_to, ModuleType | None):
            return f"method {value.__name__} of {tell(bound_to)}"
        if isinstance(value, ModuleType):
            return self._tell_module(value.__name__)
        if isinstance(value, FunctionType) and value.__globals__.get("__name__") in self.own:
            text = self._tell_function(value)
        elif isinstance(value, type) and value.__module__ in self.own:
            hint = "define it in a module of sesa, or inside"
            raise ValueError(f"{reader} reads the variable `{name}`, a class of the notebook: {hint}")
        else:
            text = f"{getattr(value, '__qualname__', name)} of {self._tell_module(value.__module__)}"
        return f"{text} around {tell(value.__wrapped__)}" if hasattr(value, "__wrapped__") else text

    def _tell_function(self, function: FunctionType) -> str:
        nodes = _syntax(function)
        self.sources |= {ast.unparse(node) for node in nodes}
        reader = function.__name__
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        bound = dict(zip(function.__code__.co_freevars, cells, strict=True)) | (function.__kwdefaults__ or {})
        told = [_dump(nodes), self.tell(function.__defaults__, reader, "a default")]
        told += [f"{name} = {self.tell(value, reader, name)}" for name, value in sorted(bound.items())]
        for name in sorted(_globals_read(function.__code__) & function.__globals__.keys()):
            value = function.__globals__[name]
            if not _is_code(value):
                raise ValueError(f"{reader} reads the variable `{name}`: make it an argument, so that it is recorded")
            told.append(f"{name} is {self.tell(value, reader, name)}")
        return f"function({'; '.join(told)})"

    def _tell_module(self, module: str | None) -> str:
        """Its name; its files and pins are noted. Of one that lies beside the notebooks its source."""
        file = getattr(sys.modules.get(module or ""), "__file__", None)
        if file and Path(file).parent == ROOT / "notebooks":
            self.sources.add(Path(file).read_text(encoding="utf-8"))
            return essence(Path(file).read_text(encoding="utf-8"))
        if module and module not in self.own:
            self.modules.add(module)
        return str(module)


def _is_code(value: Any) -> bool:
    """Whether a value is code, not data: a module, function, method, class, or what a module holds by its name."""
    kinds = ModuleType | FunctionType | BuiltinFunctionType | MethodType | partial | type
    if isinstance(value, kinds) or hasattr(value, "__wrapped__"):
        return True
    module, name = (getattr(value, part, None) for part in ("__module__", "__name__"))
    return isinstance(module, str) and isinstance(name, str) and getattr(sys.modules.get(module), name, None) is value


def _is_ours(module: str) -> bool:
    return module.split(".")[0] == "sesa"


def _syntax(function: FunctionType) -> list[ast.AST]:
    """The part of its file or cell that defines a function; several, if several lambdas begin on one line."""
    try:
        lines, _ = inspect.findsource(function)
    except OSError as e:
        hint = "define it in a notebook or a file"
        raise ValueError(f"the source of {function.__name__} is not to be found: {hint}") from e
    kind = ast.Lambda if function.__code__.co_name == "<lambda>" else ast.FunctionDef | ast.AsyncFunctionDef

    def first_line(node: ast.AST) -> int:
        return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])

    nodes = [node for node in ast.walk(ast.parse("".join(lines))) if isinstance(node, kind)]
    found = [node for node in nodes if first_line(node) == function.__code__.co_firstlineno]
    if not found:
        file = function.__code__.co_filename
        raise ValueError(f"{file} has changed since {function.__name__} was defined: start the kernel again")
    return found


def _globals_read(code: CodeType) -> set[str]:
    """Names that a function, or a function or class inside it, looks up outside of itself."""
    read: set[str] = set()
    stored = {"__name__", "__annotations__"}  # which every class body reads
    for step in dis.get_instructions(code):
        if step.opname == "STORE_NAME":  # in the body of a class: from here on its own
            stored.add(step.argval)
        elif step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS") and step.argval not in stored:
            read.add(step.argval)
    return read.union(*(_globals_read(c) for c in code.co_consts if isinstance(c, CodeType)))
