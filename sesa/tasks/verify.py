"""Whether a mathematical answer is right: it is cut out of a text and compared with the known one.

Integers are compared here, all else by math-verify in a worker, `python -m sesa.tasks.verify`: hostile answers, 10^{10000000} or 500
brackets, take seconds, and math-verify's own time limits work on the main thread only. The kernel ends a worker that computes for too long,
and the next comparison starts another; a worker ends by itself when the process that started it does. POSIX only.
"""

import atexit
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading

from sesa.runs import ROOT
from sesa.tasks.generated import answer_of, said
from sesa.tasks.normal import LONGEST

BOX = r"\\(?:boxed|fbox|framebox)(?![A-Za-z])"
COMMAND = rf"(?!{BOX})\\(?:[A-Za-z]+|[{{}}|%,;!])"
UNBRACED = rf"[-+]?(?:{COMMAND}|\.?\d|[(\[]|[A-Za-z](?![A-Za-z]))(?:{COMMAND}|\{{[^{{}}]*\}}|[^\s{{}}$\\])*"  # no word of a sentence
BRACES = re.compile(rf"{BOX}\s*(?:\{{|({UNBRACED}))|\\.|[{{}}]", re.DOTALL)  # \{{ and \}} are none
INTEGER = re.compile(r"\$?([+-]?)\$?([0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)\.?\$?")


def extract(text: str) -> str | None:
    """What stands in the last \\boxed{...} or \\fbox{...} (of nested ones: the innermost), behind a \\boxed without braces up to the next blank
    or dollar, or, failing that, in <answer>...</answer>; None if nothing does. Thoughts do not count (`said`). Total.
    """
    text = said(text)
    opened: list[tuple[int, bool]] = []  # where the content of an open brace begins, and whether it is a box's
    last = (-1, -1)
    for brace in BRACES.finditer(text):
        if brace[1]:
            last = max(last, brace.span(1))
        elif brace[0][-1] == "{" and brace[0] != r"\{":
            opened.append((brace.end(), brace[0] != "{"))
        elif brace[0] == "}" and opened:
            start, box = opened.pop()
            last = max(last, (start, brace.start())) if box else last
    return text[slice(*last)].strip() or answer_of(text) or None


def integer(answer: str) -> int | None:
    """Of "7", "+7", "007", "7.", "$7$", "1,234" and "1{,}234" the number; None of all else, and of over LONGEST characters."""
    plain = answer.strip().replace("\\!", "").replace("{,}", ",").replace("\\$", "$")
    match = INTEGER.fullmatch(plain) if len(answer) <= LONGEST else None
    return int(match[1] + match[2].replace(",", "")) if match else None


def equal(gold: str, answer: str, seconds: float | None = None) -> bool:
    """Whether `answer` equals the known answer `gold`; LaTeX or plain text. Total, and for any thread.

    seconds: limit of processor time, by default 1 or what the variable SESA_VERIFY_SECONDS says; an answer that takes more, or has over
    LONGEST characters, is wrong. Processor time: a busy machine changes no grade. Of real time it may take ten times as many, no more.

    Raises:
        RuntimeError: the worker does not start, say because math-verify is not installed.
    """
    if max(len(gold), len(answer)) > LONGEST:
        return False
    a, b = integer(gold), integer(answer)
    if a is not None and b is not None:
        return a == b
    request = json.dumps([gold, answer, seconds or float(os.environ.get("SESA_VERIFY_SECONDS", 1))]).encode() + b"\n"
    with _lock:
        for _ in range(2):  # a worker that something else killed says nothing about this answer; of two, the answer is to blame
            try:
                worker = _running()
                with contextlib.suppress(BrokenPipeError):
                    worker.stdin.write(request)
                reply = worker.stdout.readline()
            except BaseException:  # an interrupt: the next answer would be given what this one waited for
                stop()
                raise
            if reply:
                return json.loads(reply)
            worker.communicate()
            if worker.returncode in (-signal.SIGPROF, -signal.SIGALRM):
                return False
    return False


_lock = threading.Lock()
_workers: dict[int, subprocess.Popen] = {}  # by the process they belong to: a fork must not share its parent's


def _running() -> subprocess.Popen:
    """The worker of this process, started and warmed up if need be."""
    worker = _workers.get(os.getpid())
    if worker is None or worker.returncode is not None:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        worker = _workers[os.getpid()] = subprocess.Popen(
            [sys.executable, "-P", "-m", "sesa.tasks.verify"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            bufsize=0, env=os.environ | {"PYTHONPATH": path}, start_new_session=True,  # out of reach of interrupts from the keyboard
        )  # fmt: skip
        if not worker.stdout.readline():
            *_, why = worker.communicate()[1].decode(errors="replace").split("\n")[:-1] or ["it says nothing"]
            raise RuntimeError(f"math-verify does not start ({why}): install requirements.lock; `python -m sesa.tasks.verify` tells more")
    return worker


@atexit.register
def stop() -> None:
    """Ends the worker of this process, if there is one."""
    worker = _workers.pop(os.getpid(), None)
    if worker is not None:
        worker.kill()
        worker.communicate()


def _serve() -> None:
    """The worker: "ready", and a reply to each line [known answer, answer, seconds]."""
    import logging

    from sesa.tasks.compare import same

    def limit(seconds: float) -> None:
        signal.setitimer(signal.ITIMER_PROF, seconds)  # unless lifted with a 0, it ends this process, even in the midst of C code
        signal.setitimer(signal.ITIMER_REAL, 10 * seconds)

    logging.disable()
    same("x^2+2x+1", "(x+1)^2")  # what the first use imports and builds is not on the first caller's time
    print("ready", flush=True)
    replies, sys.stdout = sys.stdout, open(os.devnull, "w")
    sys.stderr = sys.stdout  # nobody reads what libraries print
    for line in sys.stdin:
        gold, answer, seconds = json.loads(line)
        limit(seconds)
        result = False
        with contextlib.suppress(Exception):  # not all that can be written can be parsed
            result = same(gold, answer)
        limit(0)
        print(json.dumps(result), file=replies, flush=True)


if __name__ == "__main__":
    _serve()
