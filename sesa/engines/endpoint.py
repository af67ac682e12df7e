"""The engine for a model behind any server that speaks OpenAI's protocol: a provider's, vLLM's, `sesa.serve`'s.

An endpoint writes text and shows no tokens, so it serves for sampling, not for training. What was answered once is not
asked again: every answer is kept on disk as it comes, under the whole request. An interrupted batch resumes where it
stopped, and a rerun sends nothing.

Only finished answers are kept: those that ended for a reason listed in `sesa.engines.protocol`. Any other answer (an
abort, an overload, no text at all) is asked for again within `retries`. At last it counts as cut off, with a warning,
and a later run asks again. The same holds for a prompt that the server refuses, as too long or against a policy: the
other prompts of the batch are answered. What concerns all prompts is an error, and nothing that came is lost: a wrong
key, no such model, a server that stays busy, a refusal of the whole batch.

Requests go out by httpx, from a pool of threads, and are tried again by tenacity: both come with JupyterLab and
papermill. OpenAI's own client is httpx too, with three packages more. It would save little: errors and the form of
answers are checked here either way, as every server has its own idea of them.

Servers also change the distribution without being asked: llama.cpp cuts the tail unless told `top_k: 0, min_p: 0`, vLLM
follows the model's generation_config. OpenAI's protocol has no word for it; `extra` has.
"""

import hashlib
import json
import os
import sqlite3
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
from tenacity import (
    Retrying,
    retry_if_exception,
    retry_if_result,
    stop_after_attempt,
    stop_when_event_set,
    wait_exponential_jitter,
)
from tenacity.nap import sleep_using_event

from sesa.engines import Completion, protocol
from sesa.runs import DataError, home, progress

_Dicts = dict[str, dict[str, Any]]  # requests or answers, by key


class EndpointError(RuntimeError):
    """The server is not there, refuses, or answers in another form than OpenAI's. Answers that came before are kept."""


class PromptRefused(EndpointError):
    """The server refuses one prompt, and may answer others."""


@dataclass
class Usage:
    """What an engine has asked since it was made."""

    requests: int = 0  # sent, repeated tries included
    cached: int = 0  # completions that needed no request
    prompt_tokens: int = 0  # as the server counts them; what comes from the cache costs nothing
    completion_tokens: int = 0


@dataclass
class EndpointEngine:
    """`sesa.engines.Engine` over an OpenAI-compatible server.

    With api="completions" the prompt is sent as it is, a prompt in ChatML too. With api="chat" it becomes the one
    message of a user, in the model's own template: the answer is then a turn of its own, and no continuation of a list
    or a trajectory. (A template that shows today's date shows the server's.)
    """

    base_url: str  # "http://127.0.0.1:8080/v1"
    model: str  # as the server lists it, or shorter: `sesa.engines.protocol.found`
    api: str = "completions"  # or "chat"
    api_key_variable: str = "OPENAI_API_KEY"  # the environment variable that holds the key; local servers need none
    concurrency: int = 8  # requests at once
    retries: int = 5  # of what failed or did not finish: about 1 s, 2 s, 4 s .. later, or when the server says
    timeout: float = 120.0  # seconds, of one request
    # Sent with every request: what a server takes beyond OpenAI's parameters, or in place of ours. None leaves a
    # parameter out, as in {"max_tokens": None, "max_completion_tokens": 512} for OpenAI's newer models.
    extra: Mapping[str, Any] = field(default_factory=dict)
    prompt_price: float | None = None  # of a million tokens
    completion_price: float | None = None
    cache: Path | None = None  # a folder; None: runs/endpoint of `sesa.runs.home()`
    usage: Usage = field(default_factory=Usage, init=False)

    def __post_init__(self):
        if not str(self.base_url).startswith(("http://", "https://")):
            example = "http:// or https://, as in http://127.0.0.1:8080/v1"
            raise ValueError(f"base_url must begin with {example}, not {self.base_url!r}")
        if self.api not in ("completions", "chat"):
            raise ValueError(f'api must be "completions" or "chat", not {self.api!r}')
        if self.concurrency < 1 or self.retries < 0 or not self.timeout > 0:
            raise ValueError("concurrency must be at least 1, retries at least 0 and timeout above 0")
        self.base_url = self.base_url.rstrip("/")
        self._lock = threading.Lock()

    @property
    def cost(self) -> float | None:
        """Of the tokens in `usage`, in the currency of the prices; None without prices."""
        if self.prompt_price is None or self.completion_price is None:
            return None
        used = self.usage
        return (used.prompt_tokens * self.prompt_price + used.completion_tokens * self.completion_price) / 1e6

    def generate(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        stop: str,
        max_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        share: Sequence[object] | None = None,
    ) -> list[Completion]:
        """See `sesa.engines.Engine.generate`. Token tuples are empty; `share` has no use here.

        Equal seeds give equal texts as far as the server sees to it. It gets the last 31 bits of a seed, which every
        server takes. `stopped` is True after the stop string and after the model's own end of text: a server calls
        both "stop". It is False for an answer cut off by its length or a filter, and for a prompt that got no
        finished answer: its text may be empty, and there is a warning.

        Raises:
            ValueError: a temperature below 0, a top_p outside (0, 1], lengths that differ, an empty `stop`.
            EndpointError: see there; a refusal of one prompt only if no prompt of the batch got an answer.
            OSError, DataError: the cache cannot be written, or is damaged.
        """
        if len(prompts) != len(seeds):
            raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds: give one per prompt")
        if not temperature >= 0 or not 0 < top_p <= 1 or not stop:
            given = f"{temperature}, {top_p} and {stop!r}"
            raise ValueError(f"temperature must be >= 0, top_p in (0, 1], stop not empty; not {given}")
        sampling = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "stop": [stop]}
        pairs = zip(prompts, seeds, strict=True)
        bodies = [self._body(prompt, {**sampling, "seed": seed % 2**31}) for prompt, seed in pairs]
        keys = [hashlib.sha256(json.dumps([self._url, body], sort_keys=True).encode()).hexdigest() for body in bodies]
        requests = dict(zip(keys, bodies, strict=True))
        with closing(_Cache(self._file)) as cache:
            kept = {key: cache.find(key) for key in requests}
            answers = {key: answer for key, answer in kept.items() if answer and protocol.ended(answer, stop)}
            missing = {key: body for key, body in requests.items() if key not in answers}
            self.usage.cached += len(keys) - len(missing)
            if missing:
                answers |= self._ask(missing, cache, stop, alone=not answers)
        return [_completion(answers[key], stop) for key in keys]

    # --------------------------------------------------------------------------------------------------------- requests

    @property
    def _file(self) -> Path:
        return Path(self.cache or home() / "runs" / "endpoint") / "requests.sqlite"

    @property
    def _url(self) -> str:
        return f"{self.base_url}/{'chat/completions' if self.api == 'chat' else 'completions'}"

    def _body(self, prompt: str, sampling: dict[str, Any]) -> dict[str, Any]:
        asked = {"messages": [{"role": "user", "content": prompt}]} if self.api == "chat" else {"prompt": prompt}
        body = {"model": self.model, **asked, **sampling, **self.extra}
        return {name: value for name, value in body.items() if value is not None}

    @cached_property
    def _connection(self) -> tuple[httpx.Client, str]:
        """The client, and the model's name as the server lists it. Made for the first request that must be sent: a
        rerun from the cache needs no server and no key.

        Asks for the models first. Some servers, llama.cpp's among them, answer under any name: the cache would hold
        another model's texts.
        """
        key = os.environ.get(self.api_key_variable, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise EndpointError(f"what the environment variable {self.api_key_variable} holds is no key")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=self.concurrency)
        client = httpx.Client(headers=headers, timeout=self.timeout, limits=limits)
        try:
            answer = client.get(f"{self.base_url}/models")
        except (httpx.RequestError, httpx.InvalidURL) as e:
            remedy = "start one, as with `make serve`, or correct base_url"
            raise EndpointError(f"no server answers at {self.base_url} ({e}): {remedy}") from e
        if answer.status_code in (401, 403):
            raise self._refusal(answer)
        names = protocol.models(answer.text)  # none if the server does not say, as while it loads one
        name = protocol.found(self.model, names) if names else self.model
        if name is None:
            raise EndpointError(f"{self.base_url} has no model {self.model!r}; it has {', '.join(names)[:1000]}")
        return client, name

    def _ask(self, missing: _Dicts, cache: "_Cache", stop: str, alone: bool) -> _Dicts:
        """Answers to requests, by key, sent a few at once. Each finished one is in the cache when it has come, whatever
        becomes of the others.

        alone: the batch has no other prompts, so that a refusal of all of these is a refusal of the whole batch.
        """
        assert self._connection  # made here, before the threads use it
        stopping, start, answers, refused = threading.Event(), monotonic(), {}, {}
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(self.concurrency))
            answer = partial(self._answer, cache, stop, stopping)
            futures = {pool.submit(answer, key, body): key for key, body in missing.items()}
            bar = None
            try:
                for done, future in enumerate(as_completed(futures), 1):
                    try:
                        answers[futures[future]] = future.result()
                    except PromptRefused as e:
                        refused[futures[future]] = e
                    if bar is not None:
                        bar.update(1)
                    elif monotonic() - start > 10:  # a batch that is soon done needs no bar
                        bar = stack.enter_context(progress(len(futures), self.model))
                        bar.update(done)
            except BaseException:  # Ctrl-C too: what is on its way is paid for, and comes in yet
                stopping.set()
                pool.shutdown(cancel_futures=True)
                raise
        if alone and len(refused) == len(missing):
            raise next(iter(refused.values()))
        unfinished = [a["finish_reason"] for a in answers.values() if not protocol.ended(a, stop)]
        if lost := [*(f"finish_reason {reason!r}" for reason in unfinished), *map(str, refused.values())]:
            text = f"{len(lost)} of {len(missing)} requests to {self._url} got no finished answer ({lost[0]})."
            rest = " They count as cut off, are not kept, and will be asked again in another run."
            warnings.warn(text + rest, RuntimeWarning, stacklevel=3)
        return answers | dict.fromkeys(refused, {"text": "", "finish_reason": ""})

    def _answer(self, cache: "_Cache", stop: str, stopping: threading.Event, key: str, body: Mapping) -> dict[str, Any]:
        """The first finished answer, else the last one."""
        tries = Retrying(
            stop=stop_after_attempt(self.retries + 1) | stop_when_event_set(stopping),
            wait=_wait,
            retry=retry_if_exception(_passes) | retry_if_result(lambda answer: not protocol.ended(answer, stop)),
            sleep=sleep_using_event(stopping),
            retry_error_callback=lambda state: state.outcome.result(),
        )
        try:
            answer = tries(self._post, body)
        except httpx.HTTPStatusError as e:
            raise self._refusal(e.response, body) from e
        except httpx.RequestError as e:
            tried = f"{self.retries + 1} tries ({e or type(e).__name__})"
            raise EndpointError(f"{self._url} gave no answer in {tried}: is it still up?") from e
        if protocol.ended(answer, stop):
            cache.keep(key, self._url, body, answer)
        return answer

    def _post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """One try. An error inside an answer of status 200 is raised as if its status were the answer's."""
        client, name = self._connection
        with self._lock:
            self.usage.requests += 1
        response = client.post(self._url, json={**body, "model": name})
        try:
            found = protocol.parsed(response.text) if response.is_success else {}
            response.status_code = protocol.fault(found) or response.status_code
            response.raise_for_status()
            answer = protocol.read(found)
        except ValueError as e:
            text = f"{self._url} answered in a form that is not OpenAI's ({e}): {response.text[:300]!r}"
            raise EndpointError(f'{text}; is base_url right, and api="{self.api}"?') from e
        with self._lock:
            self.usage.prompt_tokens += answer["prompt_tokens"]
            self.usage.completion_tokens += answer["completion_tokens"]
        return answer

    def _refusal(self, answer: httpx.Response, body: Mapping[str, Any] | None = None) -> EndpointError:
        status, said = answer.status_code, f"{answer.status_code}: {answer.text[:500]!r}"
        if protocol.of_one_prompt(status, answer.text):
            hint = protocol.left_out(answer.text, body or {})
            return PromptRefused(f"{self._url} refused the request ({said}){hint}")
        if status in (401, 403):
            variable = f"the environment variable {self.api_key_variable}"
            return EndpointError(f"{self.base_url} wants another key than {variable} holds ({said})")
        if status == 404:
            where = f"{self._url} does not exist, or not for the model {self.model!r}"
            return EndpointError(f"{where}: correct base_url or model ({said})")
        return EndpointError(f"{self._url} refused the request ({said})")


def _passes(error: BaseException) -> bool:
    """Whether another try may do better."""
    if isinstance(error, httpx.HTTPStatusError):
        return protocol.passes(error.response.status_code)
    return isinstance(error, httpx.RequestError)


_BACK_OFF = wait_exponential_jitter(initial=1, max=60)


def _wait(state: Any) -> float:
    """Seconds until the next try."""
    response = getattr(state.outcome.exception(), "response", None)
    said = protocol.wait_said(response.headers) if response is not None else None
    return _BACK_OFF(state) if said is None else said


def _completion(answer: dict[str, Any], stop: str) -> Completion:
    """Servers that ignore stop strings, or write them out, are corrected."""
    text, found, _ = answer["text"].partition(stop)
    return Completion(text, bool(found) or protocol.stopped(answer["finish_reason"]))


# ---------------------------------------------------------------------------------------------------------------- cache


class _Cache:
    """Answers by key in an SQLite file, a transaction each: whole after any crash, and for several processes at
    once."""

    def __init__(self, path: Path):
        self.path, self.lock = path, threading.Lock()
        with self._guarded():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.db = sqlite3.connect(path, timeout=60, check_same_thread=False)
            # `request` is for people, and to move a cache to another key.
            columns = "key TEXT PRIMARY KEY, request TEXT NOT NULL, answer TEXT NOT NULL"
            self.db.execute(f"CREATE TABLE IF NOT EXISTS answers ({columns})")

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.OperationalError) as e:  # no room, no permission, locked
            remedy = "what it holds is not lost; make room or give access there, and run this again"
            raise OSError(f"could not use {self.path} ({e}): {remedy}") from e
        except (ValueError, LookupError, TypeError, sqlite3.DatabaseError) as e:
            remedy = "move it away, and what it held is asked for, and paid for, again"
            raise DataError(f"{self.path} is damaged ({e}): {remedy}") from e

    def find(self, key: str) -> dict[str, Any] | None:
        with self.lock, self._guarded():
            row = self.db.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
            return row and protocol.checked(json.loads(row[0]))

    def keep(self, key: str, url: str, body: Mapping[str, Any], answer: dict[str, Any]) -> None:
        with self.lock, self._guarded(), self.db:
            row = (key, json.dumps([url, body]), json.dumps(answer))
            self.db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", row)

    def close(self) -> None:
        self.db.close()
