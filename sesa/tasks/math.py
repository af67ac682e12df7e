"""Math: generated arithmetic, synthetic and offline, and the problems of public data sets for larger profiles.

Generated problems are of three kinds. A *sketch* is a plan's name; a solution in the compact form is the plan's steps and the answer:

    7+5+9+3     left, right, big, pairs    7+5=12;9+3=12;12+12=24;#24    (pairs)
    3*(4+5)     expand, repeat, inside     4+5=9;3*9=27;#27              (inside)
    3*x+4=19    try, up, subtract          19-4=15;15/3=5;#5             (subtract)

Plans stand favourites first: what comes to mind, not what is easiest. The favourites of brackets and equations take more steps than the
last one does, up to nine for two, so whoever uses them alone slips more often. Numbers stay within TOP, few enough for a tiny LM to learn
what becomes of any two.  (All of it our choice.)
"""

import operator
import re
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sesa.runs import DataError, hash_of
from sesa.tasks import Grade
from sesa.tasks.generated import CHAT_TOKENS, END, SKETCH_TOKENS, GeneratedConfig, Puzzle, PuzzleConfig, said
from sesa.tasks.local_data import rows_of, text_of
from sesa.tasks.normal import LONGEST, normal
from sesa.tasks.verify import equal, extract, integer

TOP = 120  # the largest number in a text
MAX_STEPS = 10
SLIPS = (-10, -2, -1, 1, 2, 10)
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}  # after a slip, division rounds down

STEP = re.compile(r"([0-9]{1,3})([-+*/])([0-9]{1,3})=([0-9]{1,3});")

# A plan asks for one operation (a, sign, b) after another, is sent what was written as its result, and returns the answer.
Plan = Generator[tuple[int, str, int], int, int]


def add(total: int, terms: Iterable[int]) -> Plan:
    for term in terms:
        total = yield total, "+", term
    return total


def pairs(*terms: int) -> Plan:
    sums = []
    for a, b in zip(terms[::2], terms[1::2], strict=False):
        sums.append((yield a, "+", b))
    return (yield from add(sums[0], [*sums[1:], *terms[len(sums) * 2 :]]))


def repeat(a: int, b: int, c: int) -> Plan:
    inner = yield b, "+", c
    return (yield from add(inner, [inner] * (a - 1)))


def try_all(a: int, b: int, c: int) -> Plan:
    wanted, x, product = (yield c, "-", b), 0, 0
    while product < wanted:
        x += 1
        product = yield a, "*", x
    return x


def up(a: int, b: int, c: int) -> Plan:
    x = 0
    while b < c:
        x += 1
        b = yield b, "+", a
    return x


PLANS: dict[str, dict[str, Callable[..., Plan]]] = {  # a lambda that yields is a plan as well
    "sum": {
        "left": lambda *terms: add(terms[0], terms[1:]),
        "right": lambda *terms: add(terms[-1], terms[-2::-1]),
        "big": lambda *terms: add(max(terms), sorted(terms)[-2::-1]),
        "pairs": pairs,
    },
    "bracket": {
        "expand": lambda a, b, c: (yield (yield a, "*", b), "+", (yield a, "*", c)),
        "repeat": repeat,
        "inside": lambda a, b, c: (yield a, "*", (yield b, "+", c)),
    },
    "equation": {
        "try": try_all,
        "up": up,
        "subtract": lambda a, b, c: (yield (yield c, "-", b), "/", a),
    },
}


@dataclass(frozen=True)
class Problem:
    id: str  # "3*x+4=19"
    kind: str
    numbers: tuple[int, ...]  # the terms; or (a, b, c) of a*(b+c) and of a*x+b=c
    answer: int

    def work(self, name: str, written: Callable[[int, int], int] = lambda step, exact: exact) -> tuple[str, int] | None:
        """The solution by this plan, and its answer, where `written(step, exact)` stands as the result of a step, and what follows agrees
        with it. None if one leaves 0..TOP, or there are more than MAX_STEPS."""
        plan, steps, result = PLANS[self.kind][name](*self.numbers), [], None
        try:
            while len(steps) <= MAX_STEPS and (result is None or 0 <= result <= TOP):
                a, sign, b = plan.send(result)
                result = written(len(steps), OPERATIONS[sign](a, b))
                steps.append(f"{a}{sign}{b}={result};")
        except StopIteration as end:
            return f"{''.join(steps)}#{end.value}", end.value
        return None

    def names(self) -> dict[str, str]:
        """Of every plan, the name of the first with the same steps here: to sum 3+2+1 from the left is to sum it big numbers first."""
        first: dict[str, str] = {}
        return {name: first.setdefault(self.work(name)[0], name) for name in PLANS[self.kind]}


@dataclass(frozen=True)
class MathConfig(PuzzleConfig):
    kinds: tuple[str, ...] = tuple(PLANS)
    largest: int = 12  # of the numbers that a problem adds: its difficulty

    def __post_init__(self):
        super().__post_init__()
        if not self.kinds or not set(self.kinds) <= set(PLANS):
            raise ValueError(f"kinds are some of {', '.join(PLANS)}, not {self.kinds}")
        if not 2 <= self.largest <= 20:
            raise ValueError(f"largest is 2 to 20, so that no number exceeds {TOP}, not {self.largest}")


class MathTask(Puzzle):
    words = [*map(str, range(TOP + 1)), *(name for plans in PLANS.values() for name in plans), "x", *"+-*/()=;#:?>"]
    compact_tokens = (6 * MAX_STEPS + 3, 2)
    instruction = "Solve the problem step by step. Write the final answer, and nothing else, in \\boxed{}."
    outline = "Name the method alone, in a few words."

    def __init__(self, config: MathConfig = MathConfig()):
        super().__init__(config)

    def generate(self, rng: np.random.Generator) -> Problem:
        kind = self.config.kinds[rng.integers(len(self.config.kinds))]
        terms = [int(n) for n in rng.integers(1, self.config.largest + 1, size=rng.integers(3, 6))]
        a, b, c, x = int(rng.integers(2, 10)), *terms[:2], int(rng.integers(1, 9))
        if kind == "sum":
            return Problem("+".join(map(str, terms)), kind, tuple(terms), sum(terms))
        if kind == "bracket":
            a = min(a, 100 // (b + c))
            return Problem(f"{a}*({b}+{c})", kind, (a, b, c), a * (b + c))
        return Problem(f"{a}*x+{b}={a * x + b}", kind, (a, b, a * x + b), x)

    def canonical(self, problem: Problem) -> str:
        """Terms in ascending order: 5+3 is 3+5."""
        kind, (a, *terms) = problem.kind, problem.numbers
        if kind == "sum":
            return "+".join(map(str, sorted(problem.numbers)))
        return f"{a}*{sorted(terms)}" if kind == "bracket" else problem.id

    def show(self, problem: Problem) -> str:
        return problem.id

    def question(self, problem: Problem) -> str:
        spaced = re.sub(r"([+*=])", r" \1 ", problem.id)
        return f"Find x: {spaced}" if problem.kind == "equation" else f"What is {spaced}?"

    def sketches(self, problem: Problem) -> list[str]:
        return list(dict.fromkeys(problem.names().values()))

    def sketch_key(self, problem: Problem, text: str) -> str | None:
        """Compact: the name of the first plan with these steps. Chat: the words."""
        return problem.names().get(said(text).strip()) if self.config.form == "compact" else words_of(text)

    def attempt(self, problem: Problem, sketch: str, rng: np.random.Generator) -> str:
        """Every step is right with probability `skill`, else off by 1, 2 or 10, so that a plan of many steps goes wrong more often. Anew
        if a slip leads out of 0..TOP, or to too many steps."""
        while True:
            done = problem.work(sketch, lambda _, exact: exact + SLIPS[rng.integers(len(SLIPS))] * int(rng.random() >= self.config.skill))
            if done:
                return done[0]

    def in_chat(self, problem: Problem, solution: str) -> str:
        *steps, answer = re.sub(r"([-+*/=])", r" \1 ", solution).split(";")
        return "\n".join([*steps, rf"\boxed{{{answer[1:]}}}"])

    def strategy(self, problem: Problem, text: str) -> str | None:
        """The first plan that asks for these very operations, given the results that the text itself claims. None of a chat's free text."""
        followed = self._followed(problem, _compact(text).rpartition("#")[0])
        return followed and followed[0]

    def _followed(self, problem: Problem, steps: str) -> tuple[str, int] | None:
        """That plan, and the answer that its steps lead to."""
        results = [int(n) for n in re.findall(r"=([0-9]{1,3});", steps)]
        for name in self.sketches(problem):
            done = problem.work(name, lambda step, _: results[step] if step < len(results) else -1)
            if done and done[0].rpartition("#")[0] == steps:
                return name, done[1]
        return None

    def _works_out(self, problem: Problem, steps: str, answer: int) -> bool:
        """Whether the steps lead to the answer: by a plan, slips and all, or by true steps in any other order, on numbers of the problem or of
        earlier steps, of which the last gives the answer."""
        if followed := self._followed(problem, steps):
            return followed[1] == answer
        known, result = {*problem.numbers}, None
        for step in re.split("(?<=;)", steps)[:-1]:
            if not (written := STEP.fullmatch(step)):
                return False
            a, b, result = map(int, written.group(1, 3, 4))
            if not {a, b} <= known or written[2] == "/" and (b == 0 or a % b) or OPERATIONS[written[2]](a, b) != result:
                return False
            known.add(result)
        return result == answer and steps.endswith(";")

    def grade(self, problem: Problem, text: str) -> Grade:
        """The answer is the integer after the last "#", and earns its reward if the steps before lead to it: a solution is steps and answer, so
        a right answer without them was guessed. Chat asks for steps too, but free text is graded by its answer alone (`grade_answer`)."""
        if self.config.form == "chat":
            return grade_answer(str(problem.answer), text)
        steps, mark, answer = _compact(text).rpartition("#")
        if not re.fullmatch("#[0-9]+", mark + answer):
            return Grade(0.0, None, False)
        right = int(answer) == problem.answer and self._works_out(problem, steps, int(answer))
        return Grade(float(right), f"{steps}#{int(answer)}", right)


def _compact(text: str) -> str:
    """Without thoughts and blanks; nothing of a text that is too long."""
    text = said(text)
    return "".join(text.split()) if len(text) <= LONGEST else ""


def words_of(text: str) -> str | None:
    """The words of a text without its thoughts, in lower case, a blank between two; None if there are none."""
    return " ".join(re.findall(r"\w+", said(text)[:LONGEST].lower())) or None


def grade_answer(gold: str, text: str) -> Grade:
    """Of a chat text with the answer that `extract` finds, which is the key: integers as such, however written, others but for their blanks."""
    answer = extract(text)
    if answer is None:
        return Grade(0.0, None, False)
    number, right = integer(normal(answer)), equal(gold, answer)
    return Grade(float(right), " ".join(answer.split()) if number is None else str(number), right)


# ---------------------------------------------------------------------------------------------------------------- the hub

SOURCES = {  # configuration, split, columns of the problem and of the answer
    "open-r1/DAPO-Math-17k-Processed": ("en", "train", "prompt", "solution"),
    "HuggingFaceH4/aime_2024": (None, "train", "problem", "answer"),  # 30
    "HuggingFaceH4/MATH-500": (None, "test", "problem", "answer"),
    "openai/gsm8k": ("main", "train", "question", "answer"),  # the answer is what follows "####"
}


@dataclass(frozen=True)
class HubProblem:
    id: str  # of the question: the same one in two data sets has the same id
    question: str
    answer: str


def load_problems(dataset: str, revision: str, limit: int | None = None, folder: str | Path | None = None) -> list[HubProblem]:
    """The first `limit` problems of one of SOURCES, in its order; those that lack a text, or came before, do not count.

    revision: full commit of the data set, 40 hexadecimal digits. folder: the offline way, as `sesa.tasks.local_data.rows_of` reads it; of a data
    set downloaded whole, the configuration and split of SOURCES.

    Raises:
        ValueError: an unknown data set, a branch or a short hash for a revision, or a limit below 1.
        DataError: the data set cannot be read (of a file: which, and the line), or has other columns.
    """
    if dataset not in SOURCES or (limit is not None and limit < 1):
        raise ValueError(f"at least 1 problem of one of {', '.join(SOURCES)}; not {limit} of {dataset}")
    if not re.fullmatch("[0-9a-f]{40}", revision):
        raise ValueError(f"a revision is a full commit of {dataset}, 40 hexadecimal digits, for a branch may move: not {revision!r}")
    configuration, split, asked, known = SOURCES[dataset]
    try:
        if folder is None:
            from datasets import load_dataset

            rows = list(load_dataset(dataset, configuration, split=split, revision=revision))
        else:
            rows = rows_of(folder, configuration, split)
        columns = list(dict.fromkeys(column for row in rows for column in row))
        if not {asked, known} <= set(columns):
            raise ValueError(f"it has columns {', '.join(columns)}, not {asked} and {known}" if rows else "it is empty")
    except Exception as e:  # network, hub and file formats have errors of their own
        hint = f"offline, put its *.jsonl or *.parquet files with {asked!r} and {known!r} into a folder, and name it as `folder`"
        raise DataError(f"cannot read {dataset} at revision {revision}: {type(e).__name__}: {e} ({hint})") from e
    found: dict[str, HubProblem] = {}
    for row in rows:
        question, answer = text_of(row.get(asked)), text_of(row.get(known))
        if dataset == "openai/gsm8k":
            answer = answer.rpartition("####")[2].strip() if "####" in answer else ""
        if question and answer:
            problem = HubProblem(hash_of({"question": " ".join(question.split())}), question, answer)
            found.setdefault(problem.id, problem)
    if not found:
        raise DataError(f"{dataset} at revision {revision} has no row with both texts, {asked!r} and {known!r}")
    return list(found.values())[:limit]


class HubMath:
    """Problems of `load_problems`, in chat alone: prompts of a `Puzzle`, but no generator, no compact form and no warm start. What is in
    `held_out` is not in `problems`."""

    config = GeneratedConfig(form="chat")
    instruction, outline = MathTask.instruction, MathTask.outline
    stop, max_tokens, sketch_stop, sketch_max_tokens = END, CHAT_TOKENS, "\n", SKETCH_TOKENS
    prompt, sketch_prompt, expand_prompt = Puzzle.prompt, Puzzle.sketch_prompt, Puzzle.expand_prompt

    def __init__(self, problems: Iterable[HubProblem], held_out: Iterable[HubProblem] = ()):
        self.held_out = list(held_out)
        known = {problem.id for problem in self.held_out}
        self.problems = [problem for problem in problems if problem.id not in known]

    def question(self, problem: HubProblem) -> str:
        return problem.question

    def grade(self, problem: HubProblem, text: str) -> Grade:
        return grade_answer(problem.answer, text)

    def sketch_key(self, problem: HubProblem, text: str) -> str | None:
        return words_of(text)

    def strategy(self, problem: HubProblem, text: str) -> str | None:
        return None  # which plan a free text follows, nobody can say
