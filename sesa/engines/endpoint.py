"""The engine for a model behind any server that speaks OpenAI's protocol: a provider's, vLLM's, llama.cpp's (`sesa.serve`).

An endpoint writes text and shows no tokens, so it serves for sampling, not for training. What was asked once is not asked again: every
answer is kept on disk as it comes, under the whole request. An interrupted batch goes on where it stopped, and a rerun sends nothing.

Requests go out by httpx, from a pool of threads, and are tried again by tenacity: both come with JupyterLab and papermill. The client of
OpenAI is httpx too, with three packages more, and what it would save us is little: errors and the form of answers are checked here either
way, as every server has its own idea of them.

Servers differ in what they do to a distribution that they were not asked to do: llama.cpp cuts the tail unless told `top_k: 0, min_p: 0`,
vLLM follows the model's generation_config. OpenAI's protocol has no word for it; `extra` has.
"""

import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_when_event_set, wait_exponential_jitter
from tenacity.nap import sleep_using_event

from sesa.engines import Completion
from sesa.runs import DataError, home, progress

BUSY = (408, 429, 500, 502, 503, 504)  # states of a server that pass: worth another try


class EndpointError(RuntimeError):
    """The server is not there, refuses, or answers in a form that is not OpenAI's. Answers that came before are kept."""


@dataclass
class Usage:
    """What an engine has asked since it was made."""

    requests: int = 0  # sent, repeated tries included
    cached: int = 0  # completions that needed no request
    prompt_tokens: int = 0  # as the server counts them, of the answers to requests; what comes from the cache costs nothing
    completion_tokens: int = 0


@dataclass
class EndpointEngine:
    """`sesa.engines.Engine` over an OpenAI-compatible server.

    With api="completions" the prompt is sent as it is, a prompt in ChatML too. With api="chat" it becomes the one message of a user, in the
    model's own template: the answer is then a turn of its own, and no continuation of a list or a trajectory.
    """

    base_url: str  # "http://127.0.0.1:8080/v1"
    model: str
    api: str = "completions"  # or "chat"
    api_key_variable: str = "OPENAI_API_KEY"  # the environment variable that holds the key; local servers need none
    concurrency: int = 8  # requests at once
    retries: int = 5  # after a lost connection or a busy server: about 1 s, 2 s, 4 s .. later, or when the server says
    timeout: float = 120.0  # seconds, of one request
    extra: Mapping[str, Any] = field(default_factory=dict)  # what a server takes beyond OpenAI's parameters, sent with every request
    prompt_price: float | None = None  # of a million tokens
    completion_price: float | None = None
    cache: Path | None = None  # a folder; None: runs/endpoint of `sesa.runs.home()`
    usage: Usage = field(default_factory=Usage, init=False)

    def __post_init__(self):
        if not str(self.base_url).startswith(("http://", "https://")):
            raise ValueError(f"base_url must begin with http:// or https://, as in http://127.0.0.1:8080/v1, not {self.base_url!r}")
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
        return (self.usage.prompt_tokens * self.prompt_price + self.usage.completion_tokens * self.completion_price) / 1e6

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

        Equal seeds give equal texts as far as the server sees to it. It gets the last 31 bits of a seed, which every server takes.
        `stopped` is True after the stop string and after the model's own end of text: a server calls both "stop".

        Raises:
            ValueError: a temperature below 0, a top_p outside (0, 1], lengths that differ, an empty `stop`.
            EndpointError: see there.
            OSError, DataError: the cache cannot be written, or is damaged.
        """
        if len(prompts) != len(seeds):
            raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds: give one per prompt")
        if not temperature >= 0 or not 0 < top_p <= 1 or not stop:
            raise ValueError(f"temperature must be >= 0, top_p in (0, 1], stop not empty; not {temperature}, {top_p} and {stop!r}")
        sampling = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "stop": [stop]}
        bodies = [self._body(prompt, {**sampling, "seed": seed % 2**31}) for prompt, seed in zip(prompts, seeds, strict=True)]
        keys = [hashlib.sha256(json.dumps([self._url, body], sort_keys=True).encode()).hexdigest() for body in bodies]
        with closing(_Cache(self._file)) as cache:
            missing = {key: body for key, body in zip(keys, bodies, strict=True) if key not in cache}
            self.usage.cached += len(keys) - len(missing)
            if missing:
                self._ask(missing, cache)
            return [_completion(cache[key], stop) for key in keys]

    # --------------------------------------------------------------------------------------------------------- requests

    @property
    def _file(self) -> Path:
        return Path(self.cache or home() / "runs" / "endpoint") / "requests.sqlite"

    @property
    def _url(self) -> str:
        return f"{self.base_url}/{'chat/completions' if self.api == 'chat' else 'completions'}"

    def _body(self, prompt: str, sampling: dict[str, Any]) -> dict[str, Any]:
        asked = {"messages": [{"role": "user", "content": prompt}]} if self.api == "chat" else {"prompt": prompt}
        return {"model": self.model, **asked, **sampling, **self.extra}

    @cached_property
    def _client(self) -> httpx.Client:
        """Made for the first request that must be sent: a rerun from the cache needs no server and no key.

        Asks for the models first. Some servers, llama.cpp's among them, answer under any name: the cache would hold another model's texts.
        """
        key = os.environ.get(self.api_key_variable, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise EndpointError(f"what the environment variable {self.api_key_variable} holds is no key")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        client = httpx.Client(headers=headers, timeout=self.timeout, limits=httpx.Limits(max_connections=self.concurrency))
        try:
            names = self._models(client)
        except (httpx.RequestError, httpx.InvalidURL) as e:
            raise EndpointError(
                f"no server answers at {self.base_url} ({e}): start one, as with `make serve`, or correct base_url"
            ) from e
        if names and self.model not in names:
            raise EndpointError(f"{self.base_url} has no model {self.model!r}; it has {', '.join(names)[:1000]}")
        return client

    def _models(self, client: httpx.Client) -> list[str]:
        """The names of the server's models; none if it does not say. While it loads a model it is busy, and says nothing yet."""
        answer = client.get(f"{self.base_url}/models")
        if answer.status_code in (401, 403):
            raise self._refusal(answer)
        try:
            return [str(model["id"]) for model in answer.json()["data"]]
        except (ValueError, LookupError, TypeError):  # no JSON, or another schema: not every server has a list
            return []

    def _ask(self, missing: dict[str, dict[str, Any]], cache: "_Cache") -> None:
        """Sends requests, by key, a few at once; each answer is in the cache when it has come, whatever becomes of the others."""
        client, stopping, start = self._client, threading.Event(), monotonic()
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(self.concurrency))
            futures = [pool.submit(self._answer, client, key, body, cache, stopping) for key, body in missing.items()]
            bar = None
            try:
                for done, future in enumerate(as_completed(futures), 1):
                    future.result()
                    if bar is not None:
                        bar.update(1)
                    elif monotonic() - start > 10:  # a batch that is soon done needs no bar
                        bar = stack.enter_context(progress(len(futures), self.model))
                        bar.update(done)
            except BaseException:  # Ctrl-C too: what is on its way is paid for, and comes in yet
                stopping.set()
                pool.shutdown(cancel_futures=True)
                raise

    def _answer(self, client: httpx.Client, key: str, body: dict[str, Any], cache: "_Cache", stopping: threading.Event) -> None:
        tries = Retrying(
            stop=stop_after_attempt(self.retries + 1) | stop_when_event_set(stopping),
            wait=_wait,
            retry=retry_if_exception(_passes),
            sleep=sleep_using_event(stopping),
            reraise=True,
        )
        try:
            raw = tries(self._post, client, body)
        except httpx.HTTPStatusError as e:
            raise self._refusal(e.response) from e
        except httpx.RequestError as e:
            raise EndpointError(f"{self._url} gave no answer in {self.retries + 1} tries ({e or type(e).__name__}): is it still up?") from e
        try:
            answer = _read(raw)
        except ValueError as e:
            raise EndpointError(
                f'{self._url} answered in a form that is not OpenAI\'s ({e}): {raw[:300]!r}; is base_url right, and api="{self.api}"?'
            ) from e
        with self._lock:
            self.usage.prompt_tokens += answer["prompt_tokens"]
            self.usage.completion_tokens += answer["completion_tokens"]
        cache.keep(key, self._url, body, answer)

    def _post(self, client: httpx.Client, body: dict[str, Any]) -> str:
        """The text of the answer, which may be anything."""
        with self._lock:
            self.usage.requests += 1
        return client.post(self._url, json=body).raise_for_status().text

    def _refusal(self, answer: httpx.Response) -> EndpointError:
        status, said = answer.status_code, f"{answer.status_code}: {answer.text[:500]!r}"
        if status in (401, 403):
            return EndpointError(f"{self.base_url} wants another key than the environment variable {self.api_key_variable} holds ({said})")
        if status == 404:
            return EndpointError(f"{self._url} does not exist, or not for the model {self.model!r}: correct base_url or model ({said})")
        return EndpointError(f"{self._url} refused the request ({said})")


def _passes(error: BaseException) -> bool:
    """Whether another try may do better."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in BUSY
    return isinstance(error, httpx.RequestError)


_BACK_OFF = wait_exponential_jitter(initial=1, max=60)


def _wait(state: Any) -> float:
    """Seconds until the next try."""
    response = getattr(state.outcome.exception(), "response", None)
    said = response.headers.get("retry-after", "") if response is not None else ""
    return min(float(said), 600.0) if said.isdecimal() else _BACK_OFF(state)


def _read(raw: str) -> dict[str, Any]:
    """Of an answer: text, finish_reason, prompt_tokens, completion_tokens.

    Raises:
        ValueError: it is no such answer.
    """
    try:
        answer = json.loads(raw)
        choice, usage = answer["choices"][0], answer["usage"]
        text = choice["message"]["content"] or "" if "message" in choice else choice["text"]  # of a message, content may be null
        found = {"text": text, "finish_reason": choice["finish_reason"], **{n: usage[n] for n in ("prompt_tokens", "completion_tokens")}}
    except (ValueError, LookupError, TypeError, RecursionError) as e:
        raise ValueError(f"{type(e).__name__}: {e}") from e
    found = _checked(found)
    return {**found, "text": found["text"].encode(errors="replace").decode()}  # half a character could not be sent back in a prompt


def _checked(answer: Any) -> dict[str, Any]:
    types = {"text": str, "finish_reason": str, "prompt_tokens": int, "completion_tokens": int}
    wrong = [name for name, kind in types.items() if type(answer[name]) is not kind]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} of another type")
    return answer


def _completion(answer: dict[str, Any], stop: str) -> Completion:
    """Servers that ignore stop strings, or write them out, are corrected."""
    text, found, _ = answer["text"].partition(stop)
    return Completion(text, bool(found) or answer["finish_reason"] not in ("length", "content_filter"))


# ---------------------------------------------------------------------------------------------------------------- cache


class _Cache:
    """Answers by key in an SQLite file, a transaction each: whole after any crash, and for several processes at once."""

    def __init__(self, path: Path):
        self.path, self.lock = path, threading.Lock()
        with self._guarded():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.db = sqlite3.connect(path, timeout=60, check_same_thread=False)
            # `request` is for people, and to move a cache to another key.
            self.db.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, request TEXT NOT NULL, answer TEXT NOT NULL)")

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.OperationalError) as e:  # no room, no permission, locked
            raise OSError(f"could not use {self.path} ({e}): what it holds is not lost; make room or give access there, and go on") from e
        except (ValueError, LookupError, TypeError, sqlite3.DatabaseError) as e:
            raise DataError(f"{self.path} is damaged ({e}): move it away, and what it held is asked for, and paid for, again") from e

    def _find(self, key: str) -> str | None:
        with self.lock, self._guarded():
            row = self.db.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return row and row[0]

    def __contains__(self, key: str) -> bool:
        return self._find(key) is not None

    def __getitem__(self, key: str) -> dict[str, Any]:
        raw = self._find(key)
        with self._guarded():
            return _checked(json.loads(raw))

    def keep(self, key: str, url: str, body: dict[str, Any], answer: dict[str, Any]) -> None:
        with self.lock, self._guarded(), self.db:
            self.db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", (key, json.dumps([url, body]), json.dumps(answer)))

    def close(self) -> None:
        self.db.close()
