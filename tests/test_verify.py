"""The verifier: what counts as the answer of a text, what equals what, and a worker that nothing stops for long."""

import csv
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sesa.runs import ROOT
from sesa.tasks import verify
from sesa.tasks.normal import LONGEST, normal, parts, prose, symbols
from sesa.tasks.verify import equal, extract, integer
from tests.conftest import python

CASES = ROOT / "tests" / "cases"
SLOW = 20  # s: no limit for what is not hostile, however busy the machine


def worker() -> subprocess.Popen:
    assert equal(r"\frac{1}{2}", "0.5", SLOW)
    return verify._workers[os.getpid()]


# --------------------------------------------------------------------------------------------------------------- extract


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so it is \boxed{42}.", "42"),
        (r"\boxed{1}, no: \boxed{2}", "2"),
        (r"\boxed{3}\boxed{4}", "4"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed {7}", "7"),
        (r"\boxed{x = \boxed{5}}", "5"),
        (r"\boxed{\{1, 2\}} and {so} on", r"\{1, 2\}"),
        (r"\boxed{\left\{1\right.}", r"\left\{1\right."),
        (r"\boxed{6} and \boxed{7", "6"),
        (r"\boxed{8} } {{ \boxed{9}", "9"),
        (r"\boxed{5", None),
        (r"\fbox{5}", "5"),
        (r"\boxed{4}, no: \fbox{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\framebox{5}", "5"),
        (r"It is \boxed 7", "7"),
        (r"$\boxed 7$ it is", "7"),
        (r"\boxed -42, I think", "-42,"),
        (r"\boxed12", "12"),
        (r"\boxed\frac{1}{2} there", r"\frac{1}{2}"),
        (r"\boxed \sqrt{2}$", r"\sqrt{2}"),
        (r"\boxed \{1,2\}", r"\{1,2\}"),
        (r"\( \boxed 7\)", "7"),
        (r"\boxed{5}: I used \boxed as asked", "5"),
        (r"\boxed{5}: I used \boxed.", "5"),
        (r"\boxed{{7}}", "{7}"),
        (r"\boxed{\text{a {nested} one}}", r"\text{a {nested} one}"),
        (r"\boxed{}", None),
        (r"\boxed{ }<answer>4</answer>", "4"),
        (r"<answer>1</answer><answer> 2 </answer>", "2"),
        (r"<answer>1</answer> \boxed{3}", "3"),
        (r"<answer></answer>", None),
        (r"<think>\boxed{1}</think> \boxed{2}", "2"),
        (r"\boxed{2} <think>\boxed{1}</think>", "2"),
        (r"\boxed{2} <think>\boxed{1}", "2"),
        (r"<think>\boxed{1}", None),
        (r"\boxed{1}</think> \boxed{2}", "2"),
        (r"\boxed{1}</think> 2", None),
        (r"<think><think></think>\boxed{1}</think> \boxed{2}", "2"),
        (r"<Think>\boxed{1}</THINK> \boxed{2}", "2"),
        (r"<thinking>\boxed{1}", None),
        (r"<think>\fbox{1}</think>", None),
        (r"<think><answer>1</answer>, or", None),
        (r"<answer>1</answer> <think>\boxed{2}</think>", "1"),
        (r"<answer>1</answer> </think>", None),
        (r"[THINK]\boxed{1}[/THINK]\boxed{2}", "2"),
        (r"1 < think \boxed{3}", "3"),
        ("42", None),
        ("", None),
    ],
)
def test_extract(text, answer):
    assert extract(text) == answer


@pytest.mark.parametrize("piece", [r"\boxed{", "{", "}", "<think>", "</think>", "<answer>", r"\boxed{1}", r"\boxed", r"\boxed 1", r"\boxed\a{1}", "[/think]", " ", "\\", "\ud800"])
def test_extract_takes_linear_time(piece):
    start = time.process_time()
    extract(piece * 100_000)
    assert time.process_time() - start < 2


# ----------------------------------------------------------------------------------------------------------------- equal


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7), ("+7", 7), ("-7", -7), ("007", 7), ("7.", 7), (" 7\n", 7), ("$7$", 7), (r"\$7", 7), ("$-5$", -5), ("-$5", -5),
        ("1,234", 1234), ("1{,}234{,}567", 1234567), (r"1,\!000", 1000), ("12,34", None), ("1,2,3", None), ("7 8", None), ("--7", None),
        ("7.0", None), ("٣", None), ("", None), ("$", None), ("9" * 2000, 10**2000 - 1), ("9" * 2001, None), ("1e3", None), ("0x7", None),
    ],
)  # fmt: skip
def test_integer(text, value):
    assert integer(text) == value


@given(st.integers(), st.integers())
def test_integers_are_equal_as_numbers(a, b):
    assert equal(str(a), f"${b:,}$.".replace("$.", "$")) == (a == b)


RIGHT = [
    (r"\frac{1}{2}", "0.5"), (r"\frac{1}{2}", "1/2"), (r"\dfrac12", r"\frac{2}{4}"), (r"\tfrac{3}{4}", "0.75"), ("7", "7.0"),
    ("5", r"\frac{10}{2}"), (r"-\frac{1}{2}", r"\frac{-1}{2}"), (r"\frac{1}{3}", "0.333333"),
    (r"\sqrt{8}", r"2\sqrt{2}"), (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}"), (r"11\sqrt2", r"11\sqrt{2}"), ("2^{10}", "1024"),
    (r"2\pi", r"\pi*2"), ("3+4i", "4i+3"), (r"x^2+2x+1", "(x+1)^2"), ("x=5", "5"), ("5", "x=5"),
    ("[0,1]", "[0, 1]"), ("x<2", r"(-\infty,2)"), (r"\{1,2\}", r"\{2,1\}"), (r"\{1,2\}", "1,2"), (r"(3, \frac{\pi}{2})", r"(3,\pi/2)"),
    ("0.5", r"50\%"), (r"50\%", "50"), (r"90^\circ", "90"), (r"5\text{ cm}", "5"), (r"\$18.90", "18.9"), (r"\text{(A)}", "A"),
    (r"\text{Evelyn}", "Evelyn"), (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
]  # fmt: skip
WRONG = [
    (r"\frac13", "0.33"), (r"\sqrt{8}", r"\sqrt{2}"), ("3", r"\pi"), ("(0,1)", "[0,1]"), ("(1,2)", "(2,1)"), ("5", "abc"), ("5", ""),
    ("", "5"), ("5", "4,5"), (r"\{1,2\}", r"\{1,3\}"), ("x+1", "y+1"), (r"50\%", "0.05"),
    # many guesses are no answer
    ("6", "5 or 6"), ("6", "1 2 6"), ("6", r"5} or \boxed{6"), ("6", r"\boxed{5}\boxed{6}"), ("6", "$5$ or $6$"),
    (r"\frac12", r"\frac13;\frac12"),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "answer"), RIGHT)
def test_equal(gold, answer):
    assert equal(gold, answer, SLOW)


@pytest.mark.parametrize(("gold", "answer"), WRONG)
def test_not_equal(gold, answer):
    assert not equal(gold, answer, SLOW)


def rows(name: str) -> list[tuple[str, str, bool]]:
    with open(CASES / f"{name}.csv", encoding="utf-8", newline="") as file:
        return [(row["gold"], row["answer"], row["equal"] == "yes") for row in csv.DictReader(file)]


@pytest.mark.parametrize("name", ["01_small_numbers", "02_what_the_parser_drops", "03_right_but_unread", "more_answers"])
def test_answers_of_the_case_files(name):
    """Every row in both directions, and each text equals itself."""
    for gold, answer, same in rows(name):
        assert equal(gold, answer, SLOW) == equal(answer, gold, SLOW) == same, (gold, answer)
        assert equal(gold, gold, SLOW) and equal(answer, answer, SLOW), (gold, answer)


@given(st.integers(-(10**30), 10**30), st.integers(1, 10**30), st.integers(1, 10**6))
@settings(max_examples=40, deadline=None)
def test_rationals_that_differ_are_unequal_however_little(a, b, factor):
    assert equal(rf"\frac{{{a}}}{{{b}}}", f"{a * factor}/{b * factor}", SLOW)
    assert not equal(rf"\frac{{{a}}}{{{b}}}", f"{a * factor + 1}/{b * factor}", SLOW)


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value="1e-12", max_value="1e12", places=15), st.booleans())
@settings(max_examples=40, deadline=None)
def test_decimals_are_equal_to_what_they_round(value, up):
    """To eight digits a decimal equals the exact value; it does not when a thousandth is missing."""
    exact = rf"\frac{{{int(value * 10**15)}}}{{{10**15}}}"
    assert equal(exact, f"{value:.7e}", SLOW) and equal(f"{value:.7e}".replace("e+", r" \times 10^{").replace("e-", r" \times 10^{-") + "}", exact, SLOW)
    other = value * (1001 if up else 999) / 1000
    assert not equal(exact, f"{other:.9e}", SLOW) and not equal(f"{other:.9e}", exact, SLOW)


PIECES = [
    r"\text{", r"\mathbf{", r"\frac", r"\pmod", r"\sqrt", "sqrt(", "^(", r"\overline{", r"\ldots", r"\circ", r"\,", r"\ ", "{,}", " and ", "or", "mod ",
    "base ", "km", " per ", "/", r"\left(", r"\right)", "**", "$", r"\(", r"\)", "%", "1", "23", "456", ".", "}", ")", " ", "_", "^", "answer is ",
    "million", "p.m.", r"(\bmod ", r"\pmod{{}", r"\text{{}", "_{(", " ft ", "sq. ", "\u0307", r"\dot1", r"\operatorname{", "'", "\\", "²", "⁻", "½", "…", "１", "（", "°", r"\pi", "pi", "e-5", "&", "\u0305", "th", "x10^", "\ud800", "\0", "AB", "=", ":",
]  # fmt: skip


@given(st.one_of(st.text(max_size=40), st.lists(st.sampled_from(PIECES), max_size=25).map("".join)))
@settings(max_examples=500, deadline=None)
def test_a_normal_form_is_its_own_normal_form(text):
    plain = normal(text)
    assert normal(plain) == plain
    found = parts(plain)
    assert prose(found.core) in (True, False) and isinstance(symbols(found.core), str)


@pytest.mark.parametrize("piece", PIECES)
def test_normal_forms_take_little_time(piece):
    text = (piece * LONGEST)[:LONGEST]
    start = time.process_time()
    parts(normal(text))
    assert time.process_time() - start < 1
    assert normal(text + "1" * LONGEST) == ""


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("5", ("5", (), (), "", "")),
        (r"4 \text{ km}", ("4", (), (), "km", "")),
        ("60 miles per hour", ("60", (), (), "mi/h", "")),
        ("60 mph", ("60", (), (), "mi/h", "")),
        ("12\\pi square centimeters", ("12\\pi", (), (), "cm^2", "")),
        ("12π cm²", ("12\\pi", (), (), "cm^2", "")),
        ("5 units", ("5", (), (), "", "")),
        ("-$5", ("-5", (), (), "\\$", "")),
        ("5m", ("5m", (), (), "", "")),  # five times m
        (r"x \equiv 2 \pmod 5", (r"x \equiv 2", ("5",), (), "", "")),
        ("x ≡ 2 (mod 5)", (r"x \equiv 2", ("5",), (), "", "")),
        (r"314_5 + 2_{\text{seven}}", ("314 + 2", (), ("5", "7"), "", "")),
        (r"2A_{16}", ("2A", (), ("16",), "", "")),
        (r"2A_{5}", ("2A_{5}", (), (), "", "")),  # A is no digit in base 5
        ("x_1", ("x_1", (), (), "", "")),
        (r"\text{Area} = 5", ("5", (), (), "", "area")),
        ("x = 5", ("x = 5", (), (), "", "")),
        (r"5 \text{ or more}", (r"5 \text{ or more}", (), (), "", "")),
    ],
)
def test_parts(text, found):
    assert tuple(parts(normal(text))) == found


@given(st.one_of(st.text(max_size=30), st.text(r"\{}[]()^_0123456789x+-*/,=<>$% fracsqt", max_size=30)), st.sampled_from(["5", r"\frac12"]))
@example("\ud800\n\0", r"\frac12")
@example("\n\n", "5")
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_answer_gets_a_verdict(answer, gold):
    assert equal(gold, answer, 0.5) in (True, False)
    assert equal(gold, gold + answer + "x", 0.5) in (True, False)


def test_long_answers_are_wrong_without_a_look():
    assert equal(r"\frac{1}{2}", " " * 1997 + "0.5", SLOW) and not equal(r"\frac{1}{2}", " " * 1998 + "0.5", SLOW)
    assert not equal("1" * 2001, "1" * 2001)
    assert equal("1" * 2000, "1" * 2000)


# ---------------------------------------------------------------------------------------------------------------- worker

HOSTILE = ["10^{10000000}", "(" * 500 + "1" + ")" * 500, "9^{9^{9^9}}"]


@pytest.mark.parametrize("answer", HOSTILE)
def test_hostile_answers_are_wrong_and_end_in_time(answer):
    first = worker()
    start = time.monotonic()
    assert equal("3", answer, 0.3) is False
    assert time.monotonic() - start < 0.3 * 10 + 1  # in real time; on a free machine 0.3 s
    assert first.returncode in (-signal.SIGPROF, -signal.SIGALRM)  # it did take too long
    assert worker() is not first  # and the next answer is right


def test_the_limit_is_the_variables(monkeypatch):
    first = worker()
    monkeypatch.setenv("SESA_VERIFY_SECONDS", "0.0001")
    assert not equal(r"\frac{1}{3}", r"\frac{\sqrt{4}}{6}")
    assert first.returncode is not None
    monkeypatch.setenv("SESA_VERIFY_SECONDS", str(SLOW))
    assert equal(r"\frac{1}{3}", r"\frac{\sqrt{4}}{6}")


def test_starting_takes_none_of_the_limit():
    """A comparison takes milliseconds, a start hundreds of them."""
    process = worker()
    process.kill()
    process.communicate()
    assert equal("x^2+4x+4", "(x+2)^2", 0.1)


def test_one_worker_serves_all_answers():
    process = worker()
    assert not equal("3", "x+", SLOW)  # what cannot be parsed does not end it
    assert equal(r"\frac{1}{2}", "0.5", 0.1)
    time.sleep(1.1)  # nor does the limit of a comparison that is over
    assert process.poll() is None and worker() is process


@pytest.mark.parametrize("reaped", [False, True])
def test_a_killed_worker_costs_no_answer(reaped):
    process = worker()
    os.kill(process.pid, signal.SIGKILL)
    if reaped:
        process.wait()
    assert equal(r"\frac{1}{2}", "0.5", SLOW)


def test_threads_get_their_own_answers():
    cases = [(rf"\frac{{{a}}}{{4}}", str(b / 4), a == b) for a in range(5) for b in range(5)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda c: equal(c[0], c[1], SLOW), cases)) == [same for _, _, same in cases]


class Interrupted:
    """A stream at whose reading Ctrl-C is pressed."""

    def __init__(self, stream):
        self.stream = stream

    def readline(self):
        raise KeyboardInterrupt

    def __getattr__(self, name):
        return getattr(self.stream, name)


@pytest.mark.parametrize("starting", [False, True])
def test_an_interrupt_mixes_no_replies_up(starting, monkeypatch):
    process, start = worker(), subprocess.Popen
    if starting:
        verify.stop()

        def interrupted(*arguments, **options):
            monkeypatch.undo()
            process = start(*arguments, **options)
            process.stdout = Interrupted(process.stdout)
            return process

        monkeypatch.setattr(subprocess, "Popen", interrupted)
    else:
        process.stdout = Interrupted(process.stdout)
    with pytest.raises(KeyboardInterrupt):
        equal(r"\frac{1}{2}", "0.5", SLOW)
    assert not equal(r"\frac{1}{2}", "0.6", SLOW)
    assert worker() is not process


def test_a_fork_has_a_worker_of_its_own():
    pid = worker().pid
    child = os.fork()
    if child == 0:
        same = equal(r"\frac{1}{2}", "0.5", SLOW) and verify._workers[os.getpid()].pid != pid
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert worker().pid == pid


def test_importing_starts_and_imports_nothing():
    code = "import sys, sesa.tasks.math, sesa.tasks.verify as v; print(v._workers, {'sympy', 'math_verify', 'datasets'} & set(sys.modules))"
    assert python("-c", code).stdout == "{} set()\n"


def test_a_worker_from_another_folder_ends_with_its_parent(tmp_path):
    code = (
        "import os, sys; from sesa.tasks import verify; assert verify.equal('\\\\frac12', '0.5', 20);"
        "print(verify._workers[os.getpid()].pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-"], input=code, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(verify.ROOT)},
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    pid = int(done.stdout)
    for _ in range(100):
        try:
            if open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] == "Z":
                return
        except FileNotFoundError:
            return
        time.sleep(0.05)
    pytest.fail("the worker outlives its parent")


def test_without_math_verify_there_is_an_error_that_says_so(monkeypatch, tmp_path):
    process = worker()
    process.kill()
    process.communicate()
    (tmp_path / "math_verify.py").write_text("raise ImportError('No module named math_verify')")
    monkeypatch.setattr(verify, "ROOT", f"{tmp_path}{os.pathsep}{verify.ROOT}")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="does not start.*No module named math_verify.*requirements.lock"):
            equal(r"\frac{1}{2}", "0.5", SLOW)
    assert equal("5", "5")  # integers need no worker
    monkeypatch.undo()
    assert worker()
