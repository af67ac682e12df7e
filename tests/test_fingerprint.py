"""sesa.fingerprint: what makes a result stale and what does not, the same under every Python."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sesa import fingerprint as fingerprints
from sesa.fingerprint import code_behind, essence, fingerprint, sources_behind
from sesa.notebooks import _cells, _code, names
from tests.conftest import ROOT, module_of, python


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A copy of `sesa/` and `data/` that a test may change; `sesa.records` takes it for the checkout."""
    for folder in ("sesa", "data"):
        shutil.copytree(ROOT / folder, tmp_path / "copy" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(fingerprints, "ROOT", tmp_path / "copy")
    return tmp_path / "copy"


CODE = '"""Module."""\nN = 3\n\n\ndef f(x):\n    """Twice."""\n    return x * 2\n'


@pytest.mark.parametrize(
    ("edited", "same"),
    [
        (CODE.replace("Module.", "A module, explained better."), True),
        (CODE.replace("Twice.", "Two times."), True),
        (CODE.replace('    """Twice."""\n', ""), True),
        (CODE.replace("N = 3", "N = 3  # three"), True),
        (CODE.replace("x * 2", "(x\n        * 2)").replace("\n\n\n", "\n"), True),
        (CODE.replace("x * 2", "x * 3"), False),
        (CODE.replace("N = 3", "N = 4"), False),
        (CODE.replace("return x", "x"), False),
    ],
)
def test_fingerprint_of_python_is_of_what_it_does(tmp_path, monkeypatch, edited, same):
    monkeypatch.setattr(fingerprints, "ROOT", tmp_path)
    (tmp_path / "m.py").write_text(CODE)
    before = fingerprint([tmp_path / "m.py"])
    (tmp_path / "m.py").write_text(edited)
    assert edited != CODE
    assert (fingerprint([tmp_path / "m.py"]) == before) is same


def test_fingerprint_of_python_holds_the_pins_of_what_it_imports_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "ROOT", tmp_path)
    lock, module = tmp_path / "requirements.lock", tmp_path / "m.py"
    module.write_text("import numpy.linalg\nfrom some_package import thing\n")
    seen = []
    for pins in ("numpy==1\nSome-Package==1\n", "numpy==2\nSome-Package==1\n", "numpy==1\nSome-Package==2\n"):
        lock.write_text(pins)
        seen.append(fingerprint([module]))
        lock.write_text(f"other==1\n{pins}numpy-extra==3\n")
        assert fingerprint([module]) == seen[-1]
    assert len(set(seen)) == 3


def test_fingerprint_sees_data_names_and_texts(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "ROOT", tmp_path)
    a, b = tmp_path / "a.csv", tmp_path / "b.csv"
    a.write_text("1\n")
    b.write_text("1\n")
    first = fingerprint([a], "x")
    a.write_text("1\n\n")
    seen = [first, fingerprint([a], "x"), fingerprint([b], "x"), fingerprint([a, b], "x"), fingerprint([], "x")]
    seen += [fingerprint([], *texts) for texts in (["xy"], ["x", "y"], ["", "xy"], [])]
    assert len(set(seen)) == len(seen)
    assert all(len(s) == 16 and int(s, 16) >= 0 for s in seen)
    assert fingerprint([b, a], "x") == fingerprint([a, b], "x")


def test_sources_behind_finds_imports_of_imports_and_named_data(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "ROOT", tmp_path)
    files = {
        "sesa/__init__.py": "",
        "sesa/a.py": "import json\n\n\ndef f():\n    from sesa.b import g\n    return g",
        "sesa/b.py": "import sesa.a\nTABLE = 'table.csv'",
        "sesa/c.py": "import sesa.d as d",
        "sesa/d.py": "",
        "sesa/unused.py": "'other.csv'",
        "sesa/pkg/__init__.py": "from sesa.pkg.e import x",
        "sesa/pkg/e.py": "x = 1",
        "json.py": "",
        "data/table.csv": "",
        "data/own.csv": "",
        "data/other.csv": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    def behind(code):
        return {p.relative_to(tmp_path).as_posix() for p in sources_behind(code)} - {"sesa/__init__.py"}

    assert behind("import sesa.a\nopen('own.csv')") == {"sesa/a.py", "sesa/b.py", "data/table.csv", "data/own.csv"}
    assert behind("from sesa import c") == {"sesa/c.py", "sesa/d.py"}
    assert behind("from sesa.pkg import x") == {"sesa/pkg/__init__.py", "sesa/pkg/e.py"}
    assert behind("import numpy, json") == behind("# import sesa.a") == set()


@pytest.mark.parametrize("name", ["sesa.claims", "sesa.tasks.paths"])
def test_sources_behind_holds_all_that_python_loads(name):
    code = f"import sys, {name}; print(*(m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'sesa'), sep='\\n')"
    loaded = {Path(line) for line in python("-c", code).stdout.splitlines()}
    assert len(loaded) > 1
    assert loaded - sources_behind(f"import {name}") == set()


USES = """
import numpy as np
import pandas as pd
from sesa import metrics
from sesa.metrics import distinct


def helper(x):
    return distinct([x])


def draw(seed):
    '''Draws.'''
    return pd.DataFrame({"x": [helper(seed)]})


def by_module(seed):
    return pd.DataFrame({"x": [metrics.distinct([seed])]})


def by_local_import(seed):
    from sesa.metrics import distinct as count

    return pd.DataFrame({"x": [count([seed])]})
"""


@pytest.mark.parametrize("name", ["draw", "by_module", "by_local_import"])
def test_code_behind_changes_with_the_sesa_module_used_and_no_other(checkout, tmp_path, name):
    function = getattr(module_of(tmp_path / "uses.py", USES), name)
    before = code_behind(function)
    with (checkout / "sesa" / "collapse_unused.py").open("w") as f:
        f.write("x = 1\n")
    with (checkout / "sesa" / "claims.py").open("a") as f:
        f.write("\nx = 1\n")
    with (checkout / "sesa" / "metrics.py").open("a") as f:
        f.write("\n# a comment\n")
    assert code_behind(function) == before
    with (checkout / "sesa" / "metrics.py").open("a") as f:
        f.write("\nx = 1\n")
    assert code_behind(function) != before


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("helper(seed)]", "helper(seed), 1]", False),
        ("distinct([x])", "distinct([x, x])", False),
        ("'''Draws.'''", "'''Draws one.'''", True),
        ("    '''Draws.'''\n", "", True),
        ("'''Draws.'''", "'''Draws.'''  # one", True),
        ("metrics.distinct([seed])", "metrics.distinct([])", True),
    ],
)
def test_code_behind_follows_the_functions_of_the_notebook(tmp_path, old, new, same):
    assert old in USES
    before = code_behind(module_of(tmp_path / "one.py", USES).draw)
    assert (code_behind(module_of(tmp_path / "two.py", USES.replace(old, new)).draw) == before) is same


READS = """
import functools

import numpy as np
import torch

maps, seeds = 4, [0, 1]
model = torch.nn.Linear(1, 1)
apply = lambda x: x


def reads_number(seed):
    return seed * maps


def reads_through_another(seed):
    return reads_number(seed)


@functools.cache
def cached():
    return maps


def reads_through_a_cache(seed):
    return cached()


def reads_inside(seed):
    return [(lambda x: x * maps)(x) for x in range(seed)]


def reads_model(seed):
    return model(seed)


def of_arguments(seed, maps):
    for seeds in range(maps):
        seed += np.exp(seeds)
    return [model for model in range(seed)]


def of_functions(seed):
    return apply(sum([seed]))


def of_a_default(seed, n=maps):
    return seed * n


def factory(n):
    def of_a_closure(seed):
        return seed * n

    return of_a_closure


of_a_closure = factory(maps)


class Thing:
    size = 4


def of_a_class(seed):
    return Thing().size
"""


@pytest.mark.parametrize("name", ["number", "through_another", "through_a_cache", "inside", "model"])
def test_code_behind_refuses_a_variable_of_the_notebook(tmp_path, name):
    function = getattr(module_of(tmp_path / "reads.py", READS), f"reads_{name}")
    variable = "model" if name == "model" else "maps"
    with pytest.raises(ValueError, match=rf"\w+ reads the variable `{variable}`: make it an argument"):
        code_behind(function)


@pytest.mark.parametrize("name", ["of_a_default", "of_a_closure", "of_a_class"])
def test_code_behind_sees_or_refuses_what_is_bound_elsewhere_in_the_notebook(tmp_path, name):
    def seen(file, source):
        try:
            return code_behind(getattr(module_of(tmp_path / file, source), name))
        except ValueError:
            return f"refused {file}"

    changed = READS.replace("maps, seeds = 4", "maps, seeds = 5").replace("size = 4", "size = 5")
    assert seen("one.py", READS) != seen("two.py", changed)


@pytest.mark.parametrize("name", ["of_arguments", "of_functions"])
def test_code_behind_takes_arguments_and_locals_named_like_a_variable_of_the_notebook(tmp_path, name):
    assert len(code_behind(getattr(module_of(tmp_path / "reads.py", READS), name))) == 16


# --------------------------------------------------------------------------------------- packages with another name


@pytest.mark.parametrize("line", ["import yaml", "import yaml as y", "from sklearn.svm import SVC", "import PIL.Image as Image", "from dateutil import tz"])
def test_fingerprint_sees_the_pin_of_a_package_with_another_name(tmp_path, monkeypatch, line):
    monkeypatch.setattr(fingerprints, "ROOT", tmp_path)
    lock, module = tmp_path / "requirements.lock", tmp_path / "m.py"
    module.write_text(f"def f():\n    {line}\n")
    pins = {"PyYAML": 6, "scikit-learn": 1, "pillow": 13, "python-dateutil": 2, "numpy": 2}
    (used,) = [name for name in pins if fingerprints._normal(fingerprints.DISTRIBUTIONS[line.split()[1].split(".")[0]]) == name.lower()]
    seen = {}
    for raised in (None, *pins):
        lock.write_text("".join(f"{name}=={version + (name == raised)}.0\n" for name, version in pins.items()))
        seen[raised] = fingerprint([module])
    assert {name for name in pins if seen[name] != seen[None]} == {used}


def test_fingerprint_sees_all_pins_when_it_cannot_tell_whose_a_module_is(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "ROOT", tmp_path)
    lock, module = tmp_path / "requirements.lock", tmp_path / "m.py"
    module.write_text("import cv2\n")
    lock.write_text("opencv-python==4.1\n")
    before = fingerprint([module])
    lock.write_text("opencv-python==4.2\n")
    assert fingerprint([module]) != before


def test_names_of_distributions_are_those_of_this_environment():
    known = importlib.metadata.packages_distributions()
    pinned = {fingerprints._normal(line.partition("==")[0]) for line in (ROOT / "requirements.lock").read_text().split()}
    of = {module: {fingerprints._normal(name) for name in names} & pinned for module, names in known.items()}
    assert {m: d for m, d in fingerprints.DISTRIBUTIONS.items() if m in known and d not in of[m]} == {}
    sources = [path.read_text() for path in (ROOT / "sesa").rglob("*.py")] + [_code(_cells(name)) for name in names()]
    used = {name.split(".")[0] for source in sources for name in fingerprints._imported(source)} & of.keys() - {"sesa"}
    told = {m: fingerprints._normal(fingerprints.DISTRIBUTIONS.get(m, m)) for m in used}
    assert len(used) > 10 and {m: d for m, d in told.items() if d not in of[m]} == {}


# ------------------------------------------------------------------------------------------------ every Python alike


def interpreters() -> list[Path]:
    """Every Python that the project supports, one per version, as far as this machine has it."""
    found = [Path(p) for n in range(11, 20) if (p := shutil.which(f"python3.{n}"))]
    found += [p for n in range(11, 20) for p in Path.home().glob(f".pyenv/versions/3.{n}.*/bin/python")]
    answers = {path: subprocess.run([path, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True) for path in found}
    return [*{done.stdout: path for path, done in answers.items() if done.returncode == 0 and done.stdout}.values()]


PYTHONS = interpreters()
EVERYTHING = """
import sys; sys.path[:0] = [sys.argv[1]]
from sesa.fingerprint import ROOT, essence, fingerprint, sources_behind
from sesa.notebooks import _cells, _code, names, stamps
for path in sorted((ROOT / "sesa").rglob("*.py")):
    print(path, fingerprint([path]))
for name in names():
    code = _code(_cells(name))
    print(name, fingerprint(sources_behind(code), essence(code)))
print(stamps("laptop"))
"""


def told(interpreter: Path, script: str, *arguments, root: Path = ROOT) -> str:
    """What a script prints under an interpreter without any package."""
    done = subprocess.run([interpreter, "-I", "-S", "-c", script, root, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_python_gives_every_file_and_notebook_the_same_fingerprint(checkout):
    """Of a copy: somebody may be editing the files."""
    shutil.copytree(ROOT / "notebooks", checkout / "notebooks")
    shutil.copy(ROOT / "requirements.lock", checkout)
    ours = told(Path(sys.executable), EVERYTHING, root=checkout)
    assert len(ours.splitlines()) > 30
    assert {path: told(path, EVERYTHING, root=checkout) for path in PYTHONS} == dict.fromkeys(PYTHONS, ours)


SNIPPETS = r'''
f"a{x!r:>{w}}b" "c"
f"{x:}" f"{x=}" f"{x = !s:10}" f"{{}}{x}{{" ""
f"\n{x:{y}.{z}}" f"{x!r}{f'{y}'}" "\u1c89 \U0001fae9"

@dec(1)
async def f[T](a, /, b: int = -0.0, *c, d=..., **e) -> None: ...
'''.replace("f[T]", "f")
SNIPPETS += '''
class A(B, metaclass=M):
    "Doc."
    x: int = None
    y: int
    def g(self): return {**a, 1: [i async for i in j]}, lambda *k, m=1: (yield)

match p:
    case {"q": [1, *_], **r} | A(s=None): pass
    case _ if (t := 1): raise E("m", u) from v
try: w
except* V as y: del y[1:2, ::3]
global z; z: int; import a.b as c; from d import *
'''


def test_every_python_gives_code_the_same_essence():
    script = "import sys; sys.path[:0] = [sys.argv[1]]\nfrom sesa.fingerprint import essence\nprint(essence(sys.argv[2]))"
    assert {told(path, script, SNIPPETS) for path in PYTHONS} <= {essence(SNIPPETS) + "\n"}


@pytest.mark.parametrize(
    ("code", "golden"),
    [
        ("x = 1  # one", "Module(body=[Assign(targets=[Name(id='x')], value=1)])"),
        ("'''Doc.'''\nx: int = None", "Module(body=[AnnAssign(target=Name(id='x'), annotation=Name(id='int'), value=None, simple=1)])"),
        ("x: int", "Module(body=[AnnAssign(target=Name(id='x'), annotation=Name(id='int'), simple=1)])"),
        ("f'é' 'b' f'{x}'", r"""Module(body=[Expr(value=JoinedStr('\xe9b', ("Name(id='x')", -1, '')))])"""),
        ("raise E('a', 1)", "Module(body=[Raise(Call(Name(id='E'), [message, 1], []), None)])"),
        ("def f(): 'Doc.'", "Module(body=[FunctionDef(name='f', args=arguments(), body=[])])"),
    ],
)
def test_golden_essences(code, golden):
    assert essence(code) == golden


BEHIND = '''
import sys; sys.path[:0] = [sys.argv[1], sys.argv[2]]
from sesa.fingerprint import code_behind
from sesa.notebooks import _cells, _code, names
import experiment
print(code_behind(experiment.compute))
'''
EXPERIMENT = '''
import functools, math, json as j
from math import sqrt as root

def twice(f):
    @functools.wraps(f)
    def g(*a): return 2 * f(*a)
    return g

@twice
@functools.cache
def helper(x: "float", by=lambda y: y + 1, among=frozenset({"a", "b", "c"})) -> int:
    return [by(math.floor(i)) for i in {k: root(k) for k in range(x)}.values()]

SHAPES = functools.partial(sorted, key=lambda s: len(s), reverse=True)

def compute(seed, order={"x", "y"}, to=1e-7):
    class Inside:
        size = helper(seed)
        def g(self): return [SHAPES(s) for s in j.dumps(self.size)]
    return f"{Inside().g()!r:>{seed}}"
'''


def test_every_python_gives_a_function_the_same_code_behind(tmp_path):
    (tmp_path / "experiment.py").write_text(EXPERIMENT)
    found = {told(path, BEHIND, tmp_path) for path in PYTHONS}
    found |= {told(path, BEHIND, tmp_path) for path in PYTHONS[:1]}  # again: no address, no order of a set
    assert len(found) == 1 or not PYTHONS


# ------------------------------------------------------------------------------------------------------------- messages


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("raise ValueError('a')", "raise ValueError('b')", True),
        ("raise ValueError('a')", "raise ValueError(f'b {x} ' + f'{y!r}' 'c')", False),  # a sum is more than a text
        ("raise ValueError('a')", "raise ValueError(f'b {x}')", True),
        ("raise ValueError(f'a {x}') from e", "raise ValueError(f'{y}: a') from e", True),
        ("raise errors.Refused(place='a', status=1)", "raise errors.Refused(place='b', status=1)", True),
        ("raise errors.Refused('a', status=1)", "raise errors.Refused('a', status=2)", False),
        ("raise ValueError('a')", "raise TypeError('a')", False),
        ("raise ValueError('a')", "raise ValueError", False),
        ("raise ERRORS['a']", "raise ERRORS['b']", False),
        ("if x: raise ValueError('a')", "if not x: raise ValueError('a')", False),
        ("assert x, 'a'", "assert x, f'b {y}'", True),
        ("assert x == 'a'", "assert x == 'b'", False),
        ("import warnings\nwarnings.warn('a')", "import warnings\nwarnings.warn('b')", True),
        ("print('a')", "print('b')", False),  # another process may read it
        ("x = 'a'", "x = 'b'", False),
    ],
)
def test_a_message_is_not_what_code_does(old, new, same):
    assert (essence(old) == essence(new)) is same


# --------------------------------------------------------------------------------------- what a function is bound to

BOUND = """
import functools
import math
import random
from dataclasses import dataclass
from math import sqrt as root

import numpy as np
from sesa import metrics as counted
from sesa.metrics import distinct as count

maps = 4


def add(x):
    return x + 1


def of_a_class_inside(seed):
    class Inside:
        size = maps
    return Inside.size


def of_a_class_with_names_of_its_own(seed):
    class Inside:
        maps = seed
        twice = maps * 2
    return Inside.twice


def of_a_default(seed, f=add):
    return f(seed)


def of_a_keyword_default(seed, *, f=lambda x: x + 2):
    return f(seed)


def of_a_table_of_functions(seed, table={"a": [add]}):
    return table["a"][0](seed)


def factory(f):
    def inner(seed):
        return f(seed)
    return inner


of_a_closure = factory(add)
of_a_partial = functools.partial(of_a_default, f=lambda x: x + 3)
added = functools.partial(add, x=3)


def of_a_partial_named(seed):
    return added()


def twice(f):
    @functools.wraps(f)
    def inner(seed):
        return 2 * f(seed)
    return inner


@twice
def decorated(seed):
    return seed


wrapped = functools.wraps(add)(lambda x: add(x) * 4)


def of_a_lambda_with_another_name(seed):
    return wrapped(seed)


def of_an_array(seed, x=np.arange(5000)):
    return x[seed]


def of_a_set(seed, names=frozenset({"a", "b", "c"})):
    return names


def of_an_alias(seed):
    return root(seed) + count([seed])


def of_a_module(seed):
    return counted.distinct([seed])


def of_a_generator(seed, rng=random.Random(0)):
    return rng.random()


draw = np.random.default_rng(0).normal


def of_a_method_of_a_generator(seed):
    return draw(seed)
"""


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("of_a_default", "x + 1", "x + 9"),
        ("of_a_keyword_default", "x + 2", "x + 9"),
        ("of_a_table_of_functions", "x + 1", "x + 9"),
        ("of_a_closure", "x + 1", "x + 9"),
        ("of_a_partial", "x + 3", "x + 9"),
        ("of_a_partial_named", "x=3", "x=9"),
        ("of_a_partial_named", "x + 1", "x + 9"),
        ("decorated", "2 * f", "9 * f"),
        ("decorated", "return seed\n", "return -seed\n"),
        ("of_a_lambda_with_another_name", "add(x) * 4", "add(x) * 9"),
        ("of_a_lambda_with_another_name", "x + 1", "x + 9"),
        ("of_an_array", "np.arange(5000)", "np.concatenate([np.arange(4999), [9]])"),
        ("of_a_set", '"c"}', '"d"}'),
        ("of_an_alias", "from math import sqrt as root", "from math import cbrt as root"),
        ("of_an_alias", "import distinct as count", "import pass_at_k as count"),
        ("of_a_module", "from sesa import metrics as counted", "from sesa import diversity as counted"),
        ("of_a_class_with_names_of_its_own", "maps * 2", "maps * 9"),
    ],
)
def test_code_behind_sees_what_is_bound(tmp_path, name, old, new):
    assert old in BOUND
    before = code_behind(getattr(module_of(tmp_path / "one.py", BOUND), name))
    assert code_behind(getattr(module_of(tmp_path / "two.py", BOUND), name)) == before, "no address, no order of a set"
    assert code_behind(getattr(module_of(tmp_path / "three.py", BOUND.replace(old, new)), name)) != before
    unrelated = BOUND.replace("maps = 4", "maps = 5") + "\n\ndef another():\n    return 1\n"
    assert code_behind(getattr(module_of(tmp_path / "four.py", unrelated), name)) == before


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("of_a_class_inside", "of_a_class_inside reads the variable `maps`: make it an argument"),
        ("of_a_generator", "of_a_generator binds `a default`, a Random whose content cannot be recorded: make it an argument"),
        ("of_a_method_of_a_generator", "of_a_method_of_a_generator binds `draw`, a Generator whose content cannot be recorded"),
    ],
)
def test_code_behind_refuses_what_it_cannot_see(tmp_path, name, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        code_behind(getattr(module_of(tmp_path / "bound.py", BOUND), name))


def test_code_behind_says_when_there_is_no_source(tmp_path):
    space = {"__name__": "__main__"}
    exec("def f(seed): return seed", space)
    with pytest.raises(ValueError, match="source of f is not to be found"):
        code_behind(space["f"])
    module = module_of(tmp_path / "changing.py", "x = 1\n\n\ndef f(seed):\n    return seed\n")
    (tmp_path / "changing.py").write_text("# another line\nx = 1\n\n\ndef f(seed):\n    return -seed\n")
    with pytest.raises(ValueError, match="has changed since f was defined"):
        code_behind(module.f)


def test_code_behind_holds_the_pins_of_packages_that_the_notebook_itself_uses(tmp_path, monkeypatch):
    source = "import yaml as y\n\n\ndef f(seed):\n    return y.safe_load(seed)\n\n\ndef g(seed):\n    import PIL\n    return PIL\n\n\ndef h(seed):\n    return seed\n"
    module = module_of(tmp_path / "uses.py", source)
    monkeypatch.setattr(fingerprints, "ROOT", tmp_path)
    seen = []
    for pins in ("PyYAML==6\npillow==1\n", "PyYAML==7\npillow==1\n", "PyYAML==6\npillow==2\n"):
        (tmp_path / "requirements.lock").write_text(pins)
        seen.append([code_behind(f) for f in (module.f, module.g, module.h)])
    first, yaml, pillow = seen
    assert [a != b for a, b in zip(first, yaml, strict=True)] == [True, False, False]
    assert [a != b for a, b in zip(first, pillow, strict=True)] == [False, True, False]


def test_code_behind_follows_a_module_beside_the_notebooks(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "ROOT", tmp_path)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path / "notebooks"))
    seen = []
    for name, value in (("beside_one", 1), ("beside_one", 2)):
        sys.modules.pop(name, None)
        (tmp_path / "notebooks" / f"{name}.py").write_text(f"def f(x):\n    return x + {value}\n")
        module = module_of(tmp_path / "uses.py", f"import {name}\n\n\ndef draw(seed):\n    return {name}.f(seed)\n")
        seen.append(code_behind(module.draw))
    sys.modules.pop("beside_one")
    assert seen[0] != seen[1]
