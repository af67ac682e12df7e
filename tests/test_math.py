"""The math task: its problems, plans and slips against plain arithmetic, graders that take any text, and the hub's data sets."""

import ast
import json
import operator
import re
from decimal import Decimal
from fractions import Fraction
from math import sqrt

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sesa.models import word_tokenizer
from sesa.runs import ROOT, DataError
from sesa.tasks import Grade
from sesa.tasks.local_data import text_of
from sesa.tasks.math import PLANS, SOURCES, TOP, HubMath, HubProblem, MathConfig, MathTask, Problem, load_problems

TASK = MathTask()
CHAT = MathTask(MathConfig(form="chat", train=8, held_out=8))
HARD = MathTask(MathConfig(largest=20, skill=0.3))


def value(text: str) -> Fraction:
    """Of an arithmetic expression, by Python's grammar."""
    operators = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}

    def of(node):
        return Fraction(node.value) if isinstance(node, ast.Constant) else operators[type(node.op)](of(node.left), of(node.right))

    return of(ast.parse(text, mode="eval").body)


def solution(problem_id: str) -> Fraction:
    if "x" not in problem_id:
        return value(problem_id)
    a, b, c = map(Fraction, re.fullmatch(r"(\d+)\*x\+(\d+)=(\d+)", problem_id).groups())
    return (c - b) / a


def drawn(task: MathTask, n: int, seed: int) -> list[Problem]:
    rng = np.random.default_rng(seed)
    return [task.generate(rng) for _ in range(n)]


def false_steps(text: str) -> int:
    return sum(value(step.split("=")[0]) // 1 != int(step.split("=")[1]) for step in text.split(";")[:-1])


PROBLEMS = [*drawn(TASK, 800, 0), *drawn(HARD, 500, 1), *drawn(MathTask(MathConfig(largest=2, train=9, held_out=9)), 100, 2)]
SUM, BRACKET = Problem("7+5+9+3", "sum", (7, 5, 9, 3), 24), Problem("3*(4+5)", "bracket", (3, 4, 5), 27)
EQUATION = Problem("3*x+4=19", "equation", (3, 4, 19), 5)

# -------------------------------------------------------------------------------------------------------------- problems


def test_answers_are_right():
    assert all(p.answer == solution(p.id) for p in PROBLEMS)
    assert {p.kind for p in PROBLEMS} == set(PLANS)


@pytest.mark.parametrize("largest", [2, 12, 20])
def test_largest_is_the_largest_added(largest):
    problems = drawn(MathTask(MathConfig(largest=largest, train=9, held_out=9)), 2000, 3)
    added = [n for p in problems for n in {"sum": p.numbers, "bracket": p.numbers[1:], "equation": p.numbers[1:2]}[p.kind]]
    assert (min(added), max(added)) == (1, largest)


def test_kinds_come_as_often_and_as_configured():
    kinds = [p.kind for p in drawn(TASK, 3000, 4)]
    assert all(abs(kinds.count(kind) - 1000) < 4 * sqrt(3000 * 2 / 9) for kind in PLANS)
    assert {p.kind for p in MathTask(MathConfig(kinds=("bracket",), train=64, held_out=32)).problems} == {"bracket"}


def test_splits_are_disjoint_and_fixed_by_the_seed():
    ids = [{p.id for p in task} for task in (TASK.problems, TASK.held_out)]
    assert [len(i) for i in ids] == [256, 128] and not ids[0] & ids[1]
    rng = np.random.default_rng(5)
    taught = {prompt.rstrip("\n").split(">")[0].rstrip("?:") for prompt, _ in TASK.warm_start_texts(rng, 2000)}
    assert not taught & (ids[0] | ids[1])
    assert MathTask().problems == TASK.problems != MathTask(MathConfig(seed=1)).problems


@pytest.mark.parametrize(
    "wrong", [{"kinds": ()}, {"kinds": ("AIME",)}, {"largest": 1}, {"largest": 21}, {"form": "prose"}, {"skill": 2}],
)
def test_wrong_configs_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MathConfig(**wrong)


# ----------------------------------------------------------------------------------------------------------------- plans


@pytest.mark.parametrize(
    ("problem", "plans"),
    [
        (SUM, {"left": "7+5=12;12+9=21;21+3=24", "right": "3+9=12;12+5=17;17+7=24", "big": "9+7=16;16+5=21;21+3=24",
               "pairs": "7+5=12;9+3=12;12+12=24"}),
        (BRACKET, {"expand": "3*4=12;3*5=15;12+15=27", "repeat": "4+5=9;9+9=18;18+9=27", "inside": "4+5=9;3*9=27"}),
        (EQUATION, {"try": "19-4=15;3*1=3;3*2=6;3*3=9;3*4=12;3*5=15", "up": "4+3=7;7+3=10;10+3=13;13+3=16;16+3=19",
                    "subtract": "19-4=15;15/3=5"}),
        (Problem("1+2+3+4+5", "sum", (1, 2, 3, 4, 5), 15),
         {"left": "1+2=3;3+3=6;6+4=10;10+5=15", "right": "5+4=9;9+3=12;12+2=14;14+1=15", "pairs": "1+2=3;3+4=7;3+7=10;10+5=15"}),
    ],
)  # fmt: skip
def test_plans_of_a_problem(problem, plans):
    assert {name: problem.work(name)[0] for name in TASK.sketches(problem)} == {n: f"{t};#{problem.answer}" for n, t in plans.items()}


def test_plans_that_come_to_the_same_are_one():
    problem = Problem("3+2+1", "sum", (3, 2, 1), 6)
    assert TASK.sketches(problem) == ["left", "right"]
    assert [TASK.sketch_key(problem, name) for name in ("left", "right", "big", "pairs")] == ["left", "right", "left", "left"]
    for p in PROBLEMS:
        texts = {name: p.work(name)[0] for name in PLANS[p.kind]}
        kept = TASK.sketches(p)
        assert len({texts[name] for name in kept}) == len(kept) == len(set(texts.values())) >= 1
        assert all(texts[TASK.sketch_key(p, name)] == text for name, text in texts.items())


def test_every_plan_is_right_at_full_skill():
    """On 1,400 problems: the grader agrees, every step is true, and no number leaves the vocabulary."""
    task, rng = MathTask(MathConfig(skill=1)), np.random.default_rng(6)
    for p in PROBLEMS:
        for name in PLANS[p.kind]:
            text = task.attempt(p, name, rng)
            assert task.grade(p, text) == Grade(1.0, text, True)
            assert false_steps(text) == 0 and int(text.rpartition("#")[2]) == solution(p.id)
            assert max(map(int, re.findall(r"\d+", text))) <= 100
            assert task.strategy(p, text) == task.sketch_key(p, name)


def test_without_skill_every_step_is_wrong_and_still_follows_its_plan():
    task, rng, sizes, others = MathTask(MathConfig(skill=0)), np.random.default_rng(7), set(), 0
    for p in PROBLEMS[::2]:
        for name in TASK.sketches(p):
            text = task.attempt(p, name, rng)
            assert false_steps(text) == text.count(";")
            others += task.strategy(p, text) != name
            assert max(map(int, re.findall(r"\d+", text))) <= TOP and "-" not in text.replace(f"{p.numbers[-1]}-", "")
            for step in text.split(";")[:-1]:
                asked, result = step.split("=")
                sizes.add(int(result) - value(asked) // 1)
    assert sizes == {-10, -2, -1, 1, 2, 10}
    assert others <= 10  # of thousands: a wrong result may be what another plan adds


@pytest.mark.parametrize("skill", [0.6, 0.9])
def test_a_plan_of_n_steps_is_carried_out_without_a_slip_with_probability_skill_to_the_n(skill):
    """But for slips that led out of the numbers there are, which are drawn again: small problems have few."""
    task, rng = MathTask(MathConfig(skill=skill, largest=6)), np.random.default_rng(8)
    clean, expected = [], []
    for p in [p for p in PROBLEMS if p.kind == "sum"][:400]:
        for name in task.sketches(p):
            clean.append(false_steps(task.attempt(p, name, rng)) == 0)
            expected.append(skill ** p.work(name)[0].count(";"))
    assert abs(sum(clean) - sum(expected)) < 4 * sqrt(sum(e * (1 - e) for e in expected)) + 0.02 * len(clean)


def test_the_favourites_of_brackets_and_equations_take_more_steps():
    steps = {name: [] for name in ("expand", "repeat", "inside", "try", "up", "subtract")}
    for p in PROBLEMS[:800]:
        for name in PLANS[p.kind] if p.kind != "sum" else ():
            steps[name].append(p.work(name)[0].count(";"))
    mean = {name: np.mean(n) for name, n in steps.items()}
    assert mean["inside"] == mean["subtract"] == 2 < min(mean[n] for n in ("expand", "repeat", "try", "up"))
    assert max(max(n) for n in steps.values()) == 9


# ------------------------------------------------------------------------------------------------------- strategy, grade


@pytest.mark.parametrize(
    ("problem", "text", "plan"),
    [
        (SUM, "7+5=13;13+9=22;22+3=25;#25", "left"),  # with a slip
        (SUM, "7+5=12;12+9=21;21+3=24;#99", "left"),  # the answer says nothing about the plan
        (SUM, " 7+5=12; 9+3=12; 12+12=24; #24\n", "pairs"),
        (SUM, "5+7=12;12+9=21;21+3=24;#24", None),
        (SUM, "7+5=13;12+9=21;21+3=24;#24", None),  # not on its own number
        (SUM, "7+5=12;12+9=21;#24", None),  # one is missing
        (SUM, "7+5=12;12+9=21;21+3=24;24+0=24;#24", None),  # one is left
        (SUM, "7+5=12;12+9=21;21+3=24", None),
        (SUM, "#24", None),
        (BRACKET, "4+5=9;9*3=27;#27", None),
        (BRACKET, "4+5=10;10+10=20;20+10=30;#30", "repeat"),
        (EQUATION, "19-4=15;3*1=3;3*2=6;3*3=9;3*4=15;#4", "try"),
        (EQUATION, "4+3=7;7+3=20;#2", "up"),
        (EQUATION, "4+3=7;7+3=20;20+3=23;#3", None),  # went on though it was there
        (EQUATION, "subtract", None),
    ],
)
def test_strategy(problem, text, plan):
    assert TASK.strategy(problem, text) == plan


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("7+5=12;12+9=21;21+3=24;#24", (1.0, "7+5=12;12+9=21;21+3=24;#24", True)),
        ("7+5=12; 12+9=21; 21+3=24 ; # 024\n", (1.0, "7+5=12;12+9=21;21+3=24;#24", True)),
        ("5+7=12;12+3=15;15+9=24;#24", (1.0, "5+7=12;12+3=15;15+9=24;#24", True)),  # by no plan, but true
        ("7+5=13;13+9=21;21+3=24;#24", (1.0, "7+5=13;13+9=21;21+3=24;#24", True)),  # two slips that cancel out
        # right, but not from the steps
        ("#24", (0.0, "#24", False)),
        ("7+5=12;#24", (0.0, "7+5=12;#24", False)),
        ("7+5=13;13+9=22;22+3=25;#24", (0.0, "7+5=13;13+9=22;22+3=25;#24", False)),
        ("20+4=24;#24", (0.0, "20+4=24;#24", False)),
        ("9+3=24;#24", (0.0, "9+3=24;#24", False)),
        ("12+12=24;#24", (0.0, "12+12=24;#24", False)),
        ("7+5=12;9+3=12;12+12=24#24", (0.0, "7+5=12;9+3=12;12+12=24#24", False)),
        ("nonsense;7+5=12;9+3=12;12+12=24;#24", (0.0, "nonsense;7+5=12;9+3=12;12+12=24;#24", False)),
        ("#25#24", (0.0, "#25#24", False)),
        ("#24#25", (0.0, "#24#25", False)),
        ("#24;", (0.0, None, False)),
        ("#", (0.0, None, False)),
        ("24", (0.0, None, False)),
        ("#-24", (0.0, None, False)),
        ("#٢٤", (0.0, None, False)),
        ("", (0.0, None, False)),
    ],
)
def test_compact_grades(text, grade):
    assert TASK.grade(SUM, text) == Grade(*grade)


@pytest.mark.parametrize(
    ("text", "reward"),
    [("19-4=15;15/3=5;#5", 1), ("19-4=15;3*1=3;3*2=6;3*3=9;3*4=12;3*5=15;#5", 1), ("4+3=7;7+3=10;10+3=13;13+3=16;16+3=19;#5", 1),
     ("#5", 0), ("15/3=5;#5", 0), ("4+1=5;#5", 0), ("19-4=15;#5", 0), ("19-4=15;15/0=5;#5", 0), ("19/4=4;#5", 0), ("19-4=15;15/3=6;#5", 0)],
)  # fmt: skip
def test_an_answer_needs_the_work_that_leads_to_it(text, reward):
    assert TASK.grade(EQUATION, text).reward == reward


def test_honest_work_keeps_its_reward():
    """Of every text of the warm start that ends in the right answer: thousands, of all plans and skills."""
    rng, right = np.random.default_rng(11), 0
    for task in (MathTask(MathConfig(skill=skill, train=9, held_out=9)) for skill in (0.3, 0.7, 1)):
        for p in PROBLEMS[::3]:
            for name in PLANS[p.kind]:
                text = task.attempt(p, name, rng)
                assert task.grade(p, text).solved == (int(text.rpartition("#")[2]) == p.answer)
                right += task.grade(p, text).solved
    assert right > 2000


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        (r"<think>\boxed{1}</think> So \boxed{24}.", (1.0, "24", True)),
        ("<answer> 024 </answer>", (1.0, "24", True)),
        (r"\boxed{24.0}", (1.0, "24.0", True)),
        (r"\boxed{\frac{48} {2}}", (1.0, r"\frac{48} {2}", True)),
        (r"\boxed{25}", (0.0, "25", False)),
        ("\\boxed{２４}", (1.0, "24", True)),
        (r"\boxed{**24**}", (1.0, "24", True)),
        (r"\fbox{24}", (1.0, "24", True)),
        (r"So \boxed 24", (1.0, "24", True)),
        ("It is 24.", (0.0, None, False)),
        ("#24", (0.0, None, False)),
    ],
)
def test_chat_grades(text, grade, monkeypatch):
    monkeypatch.setenv("SESA_VERIFY_SECONDS", "20")
    assert CHAT.grade(SUM, text) == Grade(*grade)


near = st.lists(st.sampled_from([*TASK.words[:20], *"+-*/=;#", "\\boxed{", "}", "<answer>", "</answer>", "left"]), max_size=20).map("".join)


@given(st.one_of(st.text(max_size=50), near), st.sampled_from(PROBLEMS[:50]))
@example("\ud800#\0", SUM)
@example("7+5=12;" * 10**5 + "#24", SUM)
@example("#" + "9" * 10**5, SUM)
@example("=1;" * 600 + "#24", SUM)
@example("\\boxed{" * 10**5 + "24" + "}" * 10**5, SUM)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_text_gets_a_grade(text, problem):
    for task in (TASK, CHAT):
        grade = task.grade(problem, text)
        assert grade.solved == (grade.reward == 1) and (grade.key is not None or not grade.solved)
        assert task.strategy(problem, text) in {None, *PLANS[problem.kind]}
        key = task.sketch_key(problem, text)
        assert key is None or (key in PLANS[problem.kind] if task is TASK else key)


def test_sketch_keys():
    assert [TASK.sketch_key(SUM, text) for text in (" pairs\n", "inside", "left pairs", "")] == ["pairs", None, None, None]
    assert CHAT.sketch_key(SUM, "  Pair *them*,  then add! ") == "pair them then add"
    assert CHAT.sketch_key(SUM, " ... ") is None


# -------------------------------------------------------------------------------------------------------- texts, prompts


def test_texts_are_of_the_vocabulary_and_within_their_bounds():
    for task in (TASK, HARD):
        tokenizer = word_tokenizer(task.words, task.token_pattern)
        assert len(tokenizer) == len(task.words) + 4
        for prompt, completion in task.warm_start_texts(np.random.default_rng(9), 1000):
            ids = tokenizer.encode(prompt + completion)
            assert tokenizer.unk_token_id not in ids and tokenizer.decode(ids) == prompt + completion
            bound = task.sketch_max_tokens if prompt.endswith("?\n") else task.max_tokens
            for line in completion.splitlines(keepends=True):
                assert len(tokenizer.encode(line)) <= bound
    assert (TASK.max_tokens, TASK.sketch_max_tokens) == (63, 2)


def test_prompts():
    assert TASK.prompt(BRACKET, ["4+5=9;3*9=27;#27"]) == "3*(4+5):\n4+5=9;3*9=27;#27\n"
    assert TASK.sketch_prompt(EQUATION, ["up"]) == "3*x+4=19?\nup\n"
    assert TASK.expand_prompt(SUM, "pairs") == "7+5+9+3>pairs\n"
    assert [CHAT.question(p) for p in (SUM, BRACKET, EQUATION)] == [
        "What is 7 + 5 + 9 + 3?", "What is 3 * (4 + 5)?", "Find x: 3 * x + 4 = 19",
    ]  # fmt: skip


@pytest.mark.parametrize("task", [CHAT, HubMath([])])
def test_chat_prompts(task):
    problem = SUM if task is CHAT else HubProblem("0", "What is 7 + 5 + 9 + 3?", "24")
    ask = (
        "<|im_start|>system\nYou're a helpful assistant.<|im_end|>\n<|im_start|>user\nSolve the problem step by step. Write the final "
        "answer, and nothing else, in \\boxed{}.\n\nWhat is 7 + 5 + 9 + 3?"
    )
    assert task.prompt(problem) == f"{ask}<|im_end|>\n<|im_start|>assistant\n"
    assert task.expand_prompt(problem, "add pairs") == f"{ask}\n\nFollow this outline: add pairs<|im_end|>\n<|im_start|>assistant\n"
    assert task.sketch_prompt(problem, ["add pairs"]) == (
        "<|im_start|>system\nYou're a helpful assistant.<|im_end|>\n<|im_start|>user\nWhat is 7 + 5 + 9 + 3?\n\nDo not solve it. "
        "List different ways to begin, one per line. Name the method alone, in a few words.<|im_end|>\n<|im_start|>assistant\n"
        "1. add pairs\n2. "
    )
    assert (task.stop, task.sketch_stop, task.max_tokens, task.sketch_max_tokens) == ("<|im_end|>", "\n", 512, 32)


# --------------------------------------------------------------------------------------------------------------- the hub

REVISION = "0123456789abcdef" * 2 + "01234567"  # of no data set
DAPO, GSM8K = "open-r1/DAPO-Math-17k-Processed", "openai/gsm8k"


def rows(dataset: str) -> list[dict]:
    """Five rows of which two are problems."""
    _, _, asked, known = SOURCES[dataset]
    mark = "so\n#### " if dataset == GSM8K else ""
    texts = [
        ("What is $\\frac12$ of 34?", "17"), ("  What is  $\\frac12$ of 34?", "18"), ("", "3"), ("And nothing?", ""),
        (" Half? ", "\\frac{1}{2}"),
    ]  # fmt: skip
    return [{"index": i, asked: question, known: f"{mark}{answer}"} for i, (question, answer) in enumerate(texts)]


def write(folder, content: list[dict], parquet: bool, split: str = "train"):
    folder.mkdir()
    if parquet:
        pd.DataFrame(content).to_parquet(folder / f"{split}-0.parquet")
    else:
        (folder / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content[3:]))
        (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content[:3]))
        (folder / "README.md").write_text("no data")
    return folder


@pytest.mark.parametrize("dataset", SOURCES)
@pytest.mark.parametrize("parquet", [False, True])
def test_local_files_are_read(dataset, parquet, tmp_path):
    problems = load_problems(dataset, REVISION, folder=write(tmp_path / "data", rows(dataset), parquet, SOURCES[dataset][1]))
    assert [(p.question, p.answer) for p in problems] == [("What is $\\frac12$ of 34?", "17"), ("Half?", "\\frac{1}{2}")]
    assert len({p.id for p in problems}) == 2
    assert load_problems(dataset, REVISION, 1, tmp_path / "data") == problems[:1]


def test_the_hub_is_asked_for_this_revision(monkeypatch):
    import datasets

    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or rows(GSM8K))
    assert [p.answer for p in load_problems(GSM8K, REVISION)] == ["17", "\\frac{1}{2}"]
    assert asked == [((GSM8K, "main"), {"split": "train", "revision": REVISION})]


@pytest.mark.parametrize("error", ["DatasetNotFoundError", "ConnectionError", "ValueError", "OSError"])
def test_a_hub_that_fails_is_one_error(error, monkeypatch):
    import builtins

    import datasets

    kind = getattr(datasets.exceptions, error, None) or getattr(builtins, error)

    def fail(*_, **__):
        raise kind("no such thing")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=f"{DAPO} at revision {REVISION}: {error}: no such thing .offline.*jsonl.*folder"):
        load_problems(DAPO, REVISION)


def test_other_schemas_are_one_error(tmp_path, monkeypatch):
    named = f"{DAPO} at revision {REVISION}"
    renamed = [{"problem": row["prompt"], "answer": row["solution"]} for row in rows(DAPO)]
    with pytest.raises(DataError, match=f"{named}.*columns problem, answer, not prompt and solution.*folder"):
        load_problems(DAPO, REVISION, folder=write(tmp_path / "renamed", renamed, parquet=False))
    messages = [row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows(DAPO)]
    for parquet in (False, True):
        with pytest.raises(DataError, match=f"{named} has no row with both texts"):
            load_problems(DAPO, REVISION, folder=write(tmp_path / f"messages{parquet}", messages, parquet))
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jsonl").write_text('{"prompt": ')
    for folder in ("empty", "missing", "broken"):
        with pytest.raises(DataError, match=named):
            load_problems(DAPO, REVISION, folder=tmp_path / folder)


def test_a_row_without_a_text_is_dropped(tmp_path):
    more = [(None, "1"), ("One?", 1), ("Two?", None), ("Three?", [3])]
    content = [*rows(DAPO), *({"prompt": question, "solution": answer} for question, answer in more), {"prompt": "Four?"}]
    problems = load_problems(DAPO, REVISION, folder=write(tmp_path / "data", content, parquet=False))
    assert [p.question for p in problems] == ["What is $\\frac12$ of 34?", "Half?", "One?"]
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.jsonl").write_text('{"question": "What?", "answer": "17"}\n')  # no ####
    with pytest.raises(DataError, match="no row"):
        load_problems(GSM8K, REVISION, folder=tmp_path / "none")


CASES = ROOT / "tests" / "cases"
AIME = "HuggingFaceH4/aime_2024"


def test_only_the_split_asked_for_is_read():
    assert [(p.question, p.answer) for p in load_problems(GSM8K, REVISION, folder=CASES / "07_gsm8k_as_downloaded")] == [("Train question?", "1")]
    with pytest.raises(DataError, match="test.jsonl is of the split 'train'"):
        load_problems(GSM8K, REVISION, folder=CASES / "07_gsm8k_as_downloaded" / "main" / "test.jsonl")


@pytest.mark.parametrize(
    ("value", "text"),
    [(45.0, "45"), (1e20, "1" + "0" * 20), (Decimal("0.10"), "0.10"), (Decimal("1e999999999"), "1E+999999999"), (float("inf"), ""), (True, ""), ("007 ", "007")],
)
def test_a_cell_as_text(value, text):
    assert text_of(value) == text


def test_numbers_are_kept_and_a_null_alone_is_dropped():
    problems = load_problems(AIME, REVISION, folder=CASES / "07_numbers_and_a_null.jsonl")
    assert [(p.question, p.answer) for p in problems] == [("Seven times eight?", "56"), ("Half of 90?", "45")]


@pytest.mark.parametrize(
    ("names", "read"),
    [
        (["main/train-00000-of-00001.jsonl", "main/test-00000-of-00001.jsonl", "socratic/train.jsonl"], [0]),
        (["main/train/0.jsonl", "main/train/1.jsonl", "main/test/0.jsonl"], [0, 1]),
        (["gsm8k_main_train.jsonl", "gsm8k_main_test.jsonl", "gsm8k_socratic_train.jsonl"], [0]),
        (["test_data/main/train.jsonl", "test_data/main/test.jsonl"], [0]),
        (["a.jsonl", "b.jsonl"], [0, 1]),
        (["a.jsonl", "test.jsonl", "notes.txt"], [0]),
        (["train.jsonl", "a.jsonl"], [0]),
        (["latest.jsonl"], [0]),
    ],
)
def test_files_of_a_folder(names, read, tmp_path):
    for i, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"question": f"{i}?", "answer": f"#### {i}"}) + "\n")
    assert [p.answer for p in load_problems(GSM8K, REVISION, folder=tmp_path)] == [str(i) for i in read]


def test_long_integers_gaps_and_other_separators_of_lines(tmp_path):
    long = 2**53 + 1
    content = [("Long?", long), ("Longer?", 10**40), ("Gap?", 45.0), ("Half?", 0.5), ("Text?", "007"), ("Line\u2028break\x85?", 1), ("No?", True),
               ("Not?", float("nan"))]  # fmt: skip
    lines = [json.dumps({"problem": q, "answer": a}, ensure_ascii=False) for q, a in content]
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines, "", '{"problem": "Exact?", "answer": 0.12345678901234567890}']).encode())
    answers = [p.answer for p in load_problems(AIME, REVISION, folder=tmp_path)]
    assert answers == [str(long), str(10**40), "45", "0.5", "007", "1", "0.12345678901234567890"]


def test_a_column_of_integers_with_a_gap_in_parquet(tmp_path):
    pd.DataFrame({"problem": ["a?", "b?", "c?"], "answer": [56, None, 45]}).to_parquet(tmp_path / "train.parquet")
    assert [p.answer for p in load_problems(AIME, REVISION, folder=tmp_path)] == ["56", "45"]
    pd.DataFrame({"problem": ["a?", "b?"], "answer": [2**53 + 1, 3]}).to_parquet(tmp_path / "train.parquet")
    assert [p.answer for p in load_problems(AIME, REVISION, folder=tmp_path)] == [str(2**53 + 1), "3"]


@pytest.mark.parametrize("line", ['{"problem": ', "[1, 2]", "\xff\xfe"])
def test_a_broken_line_is_named(line, tmp_path):
    (tmp_path / "train.jsonl").write_bytes(b'{"problem": "One?", "answer": 1}\n' + line.encode("latin-1") + b"\n")
    with pytest.raises(DataError, match=f"{AIME} at revision {REVISION}.*train.jsonl, line 2: "):
        load_problems(AIME, REVISION, folder=tmp_path)
    (tmp_path / "train.jsonl").unlink()
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="train.parquet: "):
        load_problems(AIME, REVISION, folder=tmp_path)


@pytest.mark.parametrize("revision", ["main", "", REVISION[:7], REVISION.upper(), REVISION + "\n"])
def test_a_revision_that_may_move_is_refused(revision):
    with pytest.raises(ValueError, match="40 hexadecimal digits") as e:
        load_problems(DAPO, revision)
    assert not isinstance(e.value, DataError)


@pytest.mark.parametrize(("dataset", "limit"), [("AI-MO/aime", None), (DAPO, 0)])
def test_unknown_data_sets_and_empty_limits_are_refused(dataset, limit):
    with pytest.raises(ValueError, match=DAPO):
        load_problems(dataset, REVISION, limit)


def test_hub_math_grades_and_holds_out(monkeypatch):
    monkeypatch.setenv("SESA_VERIFY_SECONDS", "20")
    half, one = HubProblem("a", "Half?", r"\frac{1}{2}"), HubProblem("b", "One?", "1")
    task = HubMath([half, one], held_out=[half])
    assert (task.problems, task.held_out) == ([one], [half])
    assert task.grade(half, r"<think>\boxed{2}</think>\boxed{0.5}") == Grade(1.0, "0.5", True)
    assert task.grade(half, r"\boxed{2}") == Grade(0.0, "2", False)
    assert task.grade(half, "a half") == Grade(0.0, None, False)
    assert task.sketch_key(half, "Cut it, in two.") == "cut it in two"
    assert task.strategy(half, "anything") is None


def test_problems_that_differ_in_the_order_of_terms_only_share_a_split():
    def name(p):
        a, *terms = p.numbers
        return {"sum": tuple(sorted(p.numbers)), "bracket": (a, *sorted(terms))}.get(p.kind, p.numbers), p.kind

    rng = np.random.default_rng(0)
    splits = {"train": TASK.problems, "held-out": TASK.held_out, "warm start": [TASK.sample("warm start", rng) for _ in range(2000)]}
    names = {split: {name(p) for p in found} for split, found in splits.items()}
    for a, b in (("train", "held-out"), ("train", "warm start"), ("held-out", "warm start")):
        assert not names[a] & names[b]
