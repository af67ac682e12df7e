"""The verifier: what counts as the answer of a text, what equals what, and a worker that nothing stops for long."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sesa.tasks import verify
from sesa.tasks.verify import equal, extract, integer
from tests.conftest import python

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
        ("42", None),
        ("", None),
    ],
)
def test_extract(text, answer):
    assert extract(text) == answer


@pytest.mark.parametrize("piece", [r"\boxed{", "{", "}", "<think>", "</think>", "<answer>", r"\boxed{1}", r"\boxed", " ", "\\", "\ud800"])
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
