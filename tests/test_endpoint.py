"""The endpoint engine: against llama.cpp's server with a pretrained model, and, for what can go wrong, against a server that does it."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenacity import wait_none

from sesa.engines import Completion, endpoint, protocol
from sesa.engines.endpoint import EndpointEngine, EndpointError
from sesa.pretrained import opened
from sesa.runs import DataError
from sesa.sampling import Sampling, parallel, sequential, sesa
from sesa.tasks.open_text import OpenTextTask
from sesa.tasks.paths import PathConfig, PathTask
from sesa.tasks.places import PlacesConfig, PlacesTask
from tests.conftest import ROOT, python

CASES = ROOT / "tests" / "cases"
MODEL = "SmolLM2-135M-Instruct"
COUNTING = "One, two, three,"
COUNT = dict(stop="\n", max_tokens=6)
PATHS = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])  # of another process


@contextmanager
def served(*arguments: str):
    """The base_url of a server that is ready, as it says itself within two minutes."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sesa.serve", "--threads", "1", *arguments],
        env=os.environ | {"PYTHONPATH": PATHS}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    limit = threading.Timer(120, process.kill)
    limit.start()
    try:
        line = process.stdout.readline()
        limit.cancel()
        assert line.startswith(f"{MODEL} is at http://127.0.0.1:"), line
        yield line.split()[3]
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def server():
    with served("--port", "0", "--context", "512") as base_url:
        yield base_url


@pytest.fixture
def engine(server, tmp_path):
    return EndpointEngine(server, MODEL, concurrency=2, cache=tmp_path)


# ---------------------------------------------------------------------------------------------------- the pretrained model


def test_a_seed_gives_a_text_whatever_else_is_asked_and_a_rerun_sends_nothing(engine, server, tmp_path):
    prompts, seeds = [COUNTING, "The capital of France is", COUNTING], [2**62 + 1, 2, 3]
    texts = engine.generate(prompts, seeds=seeds, **COUNT)
    assert all(type(c) is Completion and c.ids == c.prompt_ids == c.logprobs == () for c in texts)
    assert texts[0].text != texts[2].text
    spent = engine.usage
    assert (spent.requests, spent.cached) == (3, 0) and 0 < spent.completion_tokens <= 18 and spent.prompt_tokens >= 15
    assert engine.generate(prompts, seeds=seeds, **COUNT) == texts and (spent.requests, spent.cached) == (3, 3)
    fresh = EndpointEngine(server, MODEL, concurrency=1, cache=tmp_path / "fresh")
    assert fresh.generate(prompts[::-1], seeds=seeds[::-1], **COUNT) == texts[::-1] and fresh.usage.requests == 3


def test_temperature_0_is_greedy_in_any_order(engine):
    first = engine.generate([COUNTING, "Red, green,"], seeds=[1, 2], temperature=0, **COUNT)
    second = engine.generate(["Red, green,", COUNTING], seeds=[3, 4], temperature=0, **COUNT)
    assert first == second[::-1] and engine.usage.requests == 4
    assert first[0].text.startswith(" four, five")


def test_text_ends_before_the_stop_string_or_is_cut_off(engine):
    (stopped,) = engine.generate([COUNTING], seeds=[1], stop="five", max_tokens=8, temperature=0)
    (cut,) = engine.generate([COUNTING], seeds=[1], stop="five", max_tokens=2, temperature=0)
    assert stopped == Completion(" four, ", True) and not cut.stopped and stopped.text.startswith(cut.text)


def test_a_prompt_in_chatml_and_the_same_as_a_chat_begin_alike(server, tmp_path):
    """The template of this model begins with a system message of its own."""
    said = "Which is the capital of France?"
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    written = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n"
    options = dict(seeds=[1], stop="<|im_end|>", max_tokens=12, temperature=0)
    engines = [EndpointEngine(server, MODEL, api=api, cache=tmp_path) for api in ("completions", "chat")]
    plain, chat = (e.generate([p], **options) for e, p in zip(engines, [written, said], strict=True))
    assert plain == chat and "Paris" in chat[0].text
    assert [e.usage.requests for e in engines] == [1, 1]
    assert engines[0].usage.prompt_tokens == engines[1].usage.prompt_tokens


@pytest.mark.parametrize("sample", [parallel, sequential, sesa])
def test_the_samplers_draw_groups_of_paths(engine, sample):
    task = PathTask(PathConfig(provinces=4, cities=4, districts=4, maps=1))
    (group,) = sample(engine, task, task.problems, Sampling(group_size=3), seed=0)
    texts = [r.text for r in group.rollouts]
    assert len(texts) == 3 and len(group.sketches) == 3 * (sample is sesa) and engine.usage.requests == 3 + len(group.sketches)
    assert all("\n" not in text for text in texts) and len(set(texts)) > 1
    listed = group.sketches or (group.rollouts if sample is sequential else ())
    assert [r.history for r in listed] == [tuple(r.text for r in listed[:i]) for i in range(len(listed))]
    for r, asked in [(r, task.sketch_prompt) for r in group.sketches] + [(r, task.prompt) for r in group.rollouts if r.sketch is None]:
        assert r.prompt == asked(group.problem, r.history)
    assert [r.prompt for r in group.rollouts if r.sketch is not None] == [task.expand_prompt(group.problem, s.text) for s in group.sketches]
    before = engine.usage.requests
    assert sample(engine, task, task.problems, Sampling(group_size=3), seed=0) == [group] and engine.usage.requests == before


@pytest.mark.parametrize("task", [PlacesTask(PlacesConfig("us")), OpenTextTask()])
def test_a_notebooks_parameter_opens_a_server_or_the_same_model_here(server, tmp_path, task):
    """Two sketches and their expansions: asked in the same words, and answered in the same form."""
    there, here = {"base_url": server, "model": MODEL, "cache": str(tmp_path)}, {"name": MODEL}
    groups = []
    for model in (there, here):
        asked, engine = opened(task, model)
        (group,) = sesa(engine, asked, asked.problems[:1], Sampling(group_size=2), seed=3)
        assert all(s.prompt == asked.sketch_prompt(group.problem, s.history) == task.sketch_prompt(group.problem, s.history) for s in group.sketches)
        assert all("\n" not in r.text for r in (*group.rollouts, *group.sketches))
        groups.append(group)
    assert groups[0].sketches[0].prompt == groups[1].sketches[0].prompt
    for wrong, said in ((there | {"revision": "0"}, "unknown revision; of EndpointEngine there are api,"), ({"nam": MODEL}, "unknown nam; of Pretrained")):
        with pytest.raises(ValueError, match=said):
            opened(task, wrong)


def test_a_model_that_the_server_does_not_have(server, tmp_path):
    """llama.cpp would answer all the same."""
    with pytest.raises(EndpointError, match=f"no model 'gpt-9'; it has {MODEL}"):
        EndpointEngine(server, "gpt-9", cache=tmp_path).generate([COUNTING], seeds=[1], **COUNT)


def test_a_prompt_longer_than_the_context(engine):
    long = "a b " * 400
    with pytest.raises(EndpointError, match="exceeds the available context size"):
        engine.generate([long], seeds=[1], **COUNT)
    with pytest.warns(RuntimeWarning, match="1 of 2 .*exceeds the available context size"):
        texts = engine.generate([long, COUNTING], seeds=[1, 2], **COUNT)
    assert texts[0] == Completion("", False) and texts[1].text


def test_a_models_name_in_short(server, tmp_path):
    """As llama.cpp lists it, in another case, and as the file that is served."""
    for name in (MODEL.lower(), f"models/{MODEL}.Q4_1.gguf"):
        (text,) = EndpointEngine(server, name, cache=tmp_path / name).generate([COUNTING], seeds=[1], **COUNT)
        assert text.text


def test_what_cannot_be_served(server, tmp_path):
    port = server.split(":")[2].split("/")[0]
    (tmp_path / "no.gguf").write_text("no model")
    wrong = {"none.gguf": "there is no model", "no.gguf": "magic"}
    for arguments, said in [*((["--model", str(tmp_path / name)], said) for name, said in wrong.items()), (["--port", port], "bind")]:
        done = python("-m", "sesa.serve", *arguments, PYTHONPATH=PATHS)
        assert done.returncode == 1 and "cannot serve" in done.stderr and said in done.stderr


# ------------------------------------------------------------------------------------------------------- a server of ours


class Stub:
    """A server whose answers are given: `answer(body)` returns the fields of a choice, or (status, headers, text) to say all."""

    def __init__(self, answer, models=("m",)):
        stub = self
        self.answer, self.models, self.bodies, self.keys = answer, models, [], set()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def reply(self, status, headers, text):
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(text.encode()))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())

            def do_GET(self):
                stub.keys.add(self.headers["Authorization"])
                models = [m if isinstance(m, dict) else {"id": m} for m in stub.models]
                self.reply(200, {}, json.dumps({"data": models}))

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stub.bodies.append((self.path, body))
                answer = stub.answer(body)
                if isinstance(answer, tuple):
                    return self.reply(*answer)
                usage = {"prompt_tokens": 10, "completion_tokens": 5}
                self.reply(200, {}, json.dumps({"choices": [{"finish_reason": "stop", **answer}], "usage": usage}))

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()


def echo(body):
    return {"text": f"{body['prompt']}!"}


def ask(base_url, cache, prompts=("p",), stop="\n", **fields):
    engine = EndpointEngine(base_url, "m", cache=cache, **fields)
    return engine.generate(prompts, seeds=range(len(prompts)), stop=stop, max_tokens=5), engine


def test_the_whole_request_is_sent_and_is_the_key_of_the_cache(tmp_path):
    with Stub(echo) as stub:
        fields = dict(extra={"top_k": 0}, prompt_price=2.0, completion_price=10.0)
        engine = EndpointEngine(f"{stub.base_url}/", "m", cache=tmp_path, **fields)
        engine.generate(["p"], seeds=[2**31 + 7], stop="#", max_tokens=5, temperature=0.5, top_p=0.9)
        asked = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 5, "stop": ["#"], "seed": 7, "top_k": 0}
        assert stub.bodies == [("/v1/completions", {"model": "m", "prompt": "p", **asked})]
        assert engine.cost == pytest.approx((10 * 2 + 5 * 10) / 1e6) and EndpointEngine(stub.base_url, "m").cost is None
        one = dict(prompts=["p"], seeds=[7], stop="#", max_tokens=5, temperature=0.5, top_p=0.9)
        for change in [{}, {"prompts": ["q"]}, {"seeds": [8]}, {"stop": "!"}, {"max_tokens": 6}, {"temperature": 0.6}, {"top_p": 0.8}]:
            engine.generate(**{**one, **change})
        EndpointEngine(stub.base_url, "m", cache=tmp_path, **fields, concurrency=1, timeout=9).generate(**one)
        assert len(stub.bodies) == engine.usage.requests == 7
        for other in [dict(fields, extra={}), dict(fields, extra={"top_k": 1})]:
            EndpointEngine(stub.base_url, "m", cache=tmp_path, **other).generate(**one)
        assert len(stub.bodies) == 9


def test_a_chat_is_one_message_of_a_user(tmp_path):
    with Stub(lambda body: {"message": {"role": "assistant", "content": "hello\nyou" if body["seed"] else None}}) as stub:
        texts, _ = ask(stub.base_url, tmp_path, ["p", "q"], api="chat", concurrency=1)
    assert texts == [Completion("", True), Completion("hello", True)]
    assert [(path, body["messages"]) for path, body in stub.bodies] == [
        ("/v1/chat/completions", [{"role": "user", "content": prompt}]) for prompt in "pq"
    ]


@pytest.mark.parametrize(
    ("text", "reason", "completion"),
    [
        ("one\ntwo", "length", Completion("one", True)),  # a server that ignores stop strings
        ("one\n", "stop", Completion("one", True)),  # one that writes them out
        ("one", "stop", Completion("one", True)),
        ("one", "length", Completion("one", False)),
        ("one", "content_filter", Completion("one", False)),
        ("\ud800", "stop", Completion("?", True)),
        ("one\ntwo", "abort", Completion("one", True)),  # all that was wanted had come
        *(("one", reason, Completion("one", True)) for reason in ("STOP", "eos", "eos_token", "end_turn", "stop_sequence", "COMPLETE")),
        *(("one", reason, Completion("one", False)) for reason in ("max_tokens", "MAX_TOKENS", "model_length", "content-filter", "SAFETY", "refusal")),
    ],
)
def test_where_a_text_ends(tmp_path, text, reason, completion):
    with Stub(lambda _: {"text": text, "finish_reason": reason}) as stub:
        assert ask(stub.base_url, tmp_path)[0] == [completion]
        assert ask(stub.base_url, tmp_path)[0] == [completion] and len(stub.bodies) == 1  # kept


@pytest.fixture
def at_once(monkeypatch):
    """Where the server does not say how long to wait."""
    monkeypatch.setattr(endpoint, "_BACK_OFF", wait_none())


def sent(body):
    return (200, {}, body if isinstance(body, str) else json.dumps(body))


def chosen(text, reason, **more):
    return {"choices": [{"text": text, "finish_reason": reason, **more}], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


WHOLE = chosen("whole", "stop")
WHOLE_CHAT = {"choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": "whole"}}]}


@pytest.mark.parametrize("case", json.loads((CASES / "05_endpoint_bodies.json").read_text()), ids=lambda case: case["want"][:20])
def test_bodies_that_are_no_finished_answer(tmp_path, at_once, case):
    """The first body, and then the next as often as is asked; beside a prompt that is answered at once."""
    first = iter([case["first"]])

    def answer(body):
        return sent(next(first, case["then"]) if body["messages"][0]["content"] == "p" else {**case["then"], **WHOLE_CHAT})

    with Stub(answer) as stub:
        if case["then"]["choices"]:
            texts, _ = ask(stub.base_url, tmp_path, ["p"], api="chat")
            assert texts == [Completion("whole", True)] and len(stub.bodies) == 2
        else:
            with pytest.warns(RuntimeWarning, match="1 of 2 requests to .* got no finished answer"):
                texts, _ = ask(stub.base_url, tmp_path, ["p", "q"], api="chat", retries=1)
            assert texts == [Completion("", False), Completion("whole", True)] and len(stub.bodies) == 3
            with pytest.warns(RuntimeWarning):
                ask(stub.base_url, tmp_path, ["p", "q"], api="chat", retries=0)
            assert len(stub.bodies) == 4  # what came is kept, and only the other is asked again


@pytest.mark.parametrize(
    ("body", "text"),
    [
        *((chosen("half", reason), "half") for reason in ("abort", "insufficient_system_resource", "error", "network_error", "news", "", None, 5)),
        ({**WHOLE, "choices": [{"text": "half"}]}, "half"),
        (chosen("half", "stop", error={"code": 502, "message": "lost"}), "half"),
        (chosen(None, "error"), ""),
        ({"choices": [{"finish_reason": "error", "message": None}]}, ""),
        ({"choices": []}, ""),
        ({"choices": None}, ""),
        ({"choices": [None]}, ""),
        ({"id": "chatcmpl-1", "usage": {"prompt_tokens": 3}}, ""),
    ],
)
def test_an_unfinished_answer_is_asked_for_again_and_never_kept(tmp_path, at_once, body, text):
    with Stub(lambda _: sent(body)) as stub:
        with pytest.warns(RuntimeWarning, match="no finished answer .*finish_reason"):
            texts, engine = ask(stub.base_url, tmp_path, retries=2)
        assert texts == [Completion(text, False)] and engine.usage.requests == 3
        stub.answer = lambda _: sent(WHOLE)
        assert ask(stub.base_url, tmp_path)[0] == [Completion("whole", True)]
        stub.answer = lambda _: sent(body)
        assert ask(stub.base_url, tmp_path)[0] == [Completion("whole", True)] and len(stub.bodies) == 4


def test_an_unfinished_answer_that_an_earlier_version_kept_is_asked_for_again(tmp_path):
    with Stub(echo) as stub:
        ask(stub.base_url, tmp_path)
        with sqlite3.connect(tmp_path / "requests.sqlite") as db:
            db.execute("UPDATE answers SET answer = replace(answer, '\"stop\"', '\"abort\"')")
        db.close()
        assert ask(stub.base_url, tmp_path)[0] == [Completion("p!", True)] and len(stub.bodies) == 2


@pytest.mark.parametrize(
    "error",
    [
        {"error": {"code": 503, "message": "no"}},
        {"error": {"code": "529", "message": "no"}},
        {"error": {"status": 500}},
        {"error": {"code": 8, "status": "RESOURCE_EXHAUSTED", "message": "no"}},
        {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
        {"error": {"type": "invalid_response_from_upstream"}, "choices": []},
        {"error": "Rate limit reached"},
        {"error": "something else"},
        {"error": True, "message": "The server is busy"},
        {"errors": [{"code": 429, "message": "no"}]},
        {"object": "error", "message": "no", "code": 502},
        {"status": 504, "message": "no"},
        {"detail": "timed out"},
        {**WHOLE, "error": {"code": 429}},
    ],
)
def test_an_error_inside_a_200_that_passes_is_asked_again(tmp_path, at_once, error):
    bodies = iter([error, WHOLE])
    with Stub(lambda _: sent(next(bodies))) as stub:
        assert ask(stub.base_url, tmp_path)[0] == [Completion("whole", True)]
        stub.answer = lambda _: sent(error)
        with pytest.raises(EndpointError, match="refused the request"):
            ask(stub.base_url, tmp_path, ["q"], retries=1)
        assert len(stub.bodies) == 4


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ({"error": {"code": 401, "message": "no"}}, "wants another key"),
        ({"error": {"type": "authentication_error", "message": "no"}}, "wants another key"),
        ({"error": {"code": 404, "message": "no"}}, "does not exist"),
        ({"error": {"code": "402", "message": "no"}}, "refused the request .402"),
        ({"error": {"code": "context_length_exceeded", "message": "no"}}, "refused the request .400"),
    ],
)
def test_an_error_inside_a_200_that_stays_is_raised_at_once(tmp_path, error, said):
    with Stub(lambda _: sent(error)) as stub:
        with pytest.raises(EndpointError, match=said):
            ask(stub.base_url, tmp_path)
        assert len(stub.bodies) == 1


def test_answers_come_in_order_and_the_key_only_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    prompts = [f"p{i}" for i in range(20)]

    def later_first(body):
        time.sleep(0.02 if body["seed"] % 2 else 0)
        return echo(body)

    with Stub(later_first) as stub:
        texts, engine = ask(stub.base_url, tmp_path, prompts, api_key_variable="MY_KEY")
    assert [c.text for c in texts] == [f"{p}!" for p in prompts]
    assert stub.keys == {"Bearer secret"} and "secret" not in repr(engine)
    assert b"secret" not in (tmp_path / "requests.sqlite").read_bytes()


def test_the_cache_needs_no_server_and_stands_in_the_home(home):
    with Stub(echo) as stub:
        texts, _ = ask(stub.base_url, None, ["p", "q", "p"])
    again, engine = ask(stub.base_url, None, ["p", "q", "p"])
    assert again == texts and (engine.usage.requests, engine.usage.cached) == (0, 3)
    assert (home / "runs" / "endpoint" / "requests.sqlite").is_file()
    with pytest.raises(EndpointError, match="no server answers at .*make serve"):
        ask(stub.base_url, None, ["new"])


def test_killed_in_the_middle_a_batch_goes_on(tmp_path):
    """kill -9 of the asking process: what had come is kept, and only the rest is asked."""
    came, hold = threading.Semaphore(0), threading.Event()

    def first_ten(body):
        came.release()
        if body["seed"] >= 10:
            hold.wait(30)
        return echo(body)

    prompts = [f"p{i}" for i in range(30)]
    script = "import sys; from sesa.engines.endpoint import EndpointEngine as E\n"
    script += f"E(sys.argv[1], 'm', cache=sys.argv[2], concurrency=2).generate({prompts}, seeds=range(30), stop=chr(10), max_tokens=5)"
    with Stub(first_ten) as stub:
        asking = subprocess.Popen([sys.executable, "-c", script, stub.base_url, str(tmp_path)], cwd=ROOT)
        for _ in range(12):  # ten are answered when both threads wait for the next
            assert came.acquire(timeout=60)
        asking.send_signal(signal.SIGKILL)
        assert asking.wait() == -signal.SIGKILL
        hold.set()
        texts, engine = ask(stub.base_url, tmp_path, prompts)
    assert [c.text for c in texts] == [f"{p}!" for p in prompts]
    assert (engine.usage.cached, engine.usage.requests) == (10, 20)


@pytest.mark.parametrize("status", [401, 403, 404, 402])
def test_an_error_of_all_ends_the_batch_and_loses_no_answer(tmp_path, status):
    def third_fails(body):
        return (status, {}, '{"error": "no"}') if body["seed"] == 2 else echo(body)

    with Stub(third_fails) as stub:
        with pytest.raises(EndpointError, match=f"{status}.*no"):
            ask(stub.base_url, tmp_path, [f"p{i}" for i in range(50)], concurrency=1)
        assert 3 <= len(stub.bodies) < 50
        sent, stub.answer = len(stub.bodies), echo
        _, engine = ask(stub.base_url, tmp_path, [f"p{i}" for i in range(50)])
    assert engine.usage.cached == sent - 1


@pytest.mark.parametrize(
    "refusal",
    [
        (400, '{"error": {"code": 400, "message": "the prompt exceeds the available context size"}}'),
        (400, '{"error": {"code": "content_filter", "message": "the prompt triggers the content management policy"}}'),
        (403, '{"error": {"code": 403, "message": "your input was flagged"}}'),
        (413, "too large"), (422, '{"detail": "too many tokens"}'),
        (200, '{"object": "error", "message": "maximum context length is 512 tokens", "code": 400}'),
    ],
)  # fmt: skip
def test_a_refusal_of_one_prompt_leaves_the_others_and_one_of_all_is_raised(tmp_path, refusal):
    status, text = refusal

    def third_fails(body):
        return (status, {}, text) if body["seed"] == 2 else echo(body)

    prompts = [f"p{i}" for i in range(6)]
    want = [Completion("" if i == 2 else f"p{i}!", i != 2) for i in range(6)]
    with Stub(third_fails) as stub:
        for again in range(2):  # and a rerun does not stop there, though it asks for this one alone
            with pytest.warns(RuntimeWarning, match=f"of {1 if again else 6} requests .*refused the request"):
                assert ask(stub.base_url, tmp_path, prompts)[0] == want
        assert len(stub.bodies) == 7
        stub.answer = echo
        assert ask(stub.base_url, tmp_path, prompts)[0][2] == Completion("p2!", True)
        stub.answer = lambda _: (status, {}, text)
        with pytest.raises(EndpointError, match="refused the request"):
            ask(stub.base_url, tmp_path, ["q", "r"])


SERVERS = json.loads((CASES / "06_endpoint_servers.json").read_text())


@pytest.mark.parametrize("case", [case for case in SERVERS if "models" in case])
def test_a_name_without_its_tag(tmp_path, case):
    with Stub(echo, models=case["models"]) as stub:
        (text,) = EndpointEngine(stub.base_url, case["model"], cache=tmp_path).generate(["p"], seeds=[0], **COUNT)
    assert text == Completion("p!", True)


@pytest.mark.parametrize(
    ("model", "listed", "meant"),
    [
        ("phi4", ["phi4:14b", "phi4:latest"], "phi4:latest"),
        ("phi4:latest", ["phi4"], "phi4"),
        ("gemini-2.5-flash", ["models/gemini-2.5-flash"], "models/gemini-2.5-flash"),
        ("models/gemini-2.5-flash", ["gemini-2.5-flash"], "gemini-2.5-flash"),
        ("qwen2.5-7b-instruct", ["Qwen/Qwen2.5-7B-Instruct"], "Qwen/Qwen2.5-7B-Instruct"),
        ("Qwen/Qwen2.5-7B-Instruct", ["/data/hub/Qwen/Qwen2.5-7B-Instruct"], "/data/hub/Qwen/Qwen2.5-7B-Instruct"),
        ("SmolLM2-135M-Instruct", ["C:\\models\\SmolLM2-135M-Instruct.Q4_1.gguf"], "C:\\models\\SmolLM2-135M-Instruct.Q4_1.gguf"),
        ("big", ["big-Q4_K_M-00001-of-00002.gguf"], "big-Q4_K_M-00001-of-00002.gguf"),
        ("Qwen/Qwen3-8B", [{"id": "mine", "root": "Qwen/Qwen3-8B"}], "mine"),
        ("other", [{"id": "mine", "aliases": ["other"]}], "mine"),
        ("m", ["m", "M"], "m"),
    ],
)
def test_a_models_name_as_the_server_lists_it_is_sent(tmp_path, model, listed, meant):
    with Stub(echo, models=listed) as stub:
        EndpointEngine(stub.base_url, model, cache=tmp_path).generate(["p"], seeds=[0], **COUNT)
    assert [body["model"] for _, body in stub.bodies] == [meant]


@pytest.mark.parametrize(
    ("model", "listed"),
    [
        ("phi4", ["phi4:14b"]),
        ("phi4:14b", ["phi4:latest"]),
        ("phi", ["phi4", "phi-4"]),
        ("m", ["one/m", "other/m"]),  # which?
        ("one/m", ["other/m"]),
        ("m.Q8_0.gguf", ["m.Q4_0.gguf"]),
        ("gpt-4", ["gpt-4o"]),
    ],
)
def test_another_models_name_is_refused(tmp_path, model, listed):
    with Stub(echo, models=listed) as stub:
        with pytest.raises(EndpointError, match=f"has no model '{model}'; it has {listed[0]}"):
            EndpointEngine(stub.base_url, model, cache=tmp_path).generate(["p"], seeds=[0], **COUNT)
        assert stub.bodies == []


@pytest.mark.parametrize("case", [case for case in SERVERS if "refuses" in case])
def test_a_parameter_that_a_server_does_not_take_can_be_left_out(tmp_path, case):
    def picky(body):
        if case["refuses"] not in body:
            return echo(body)
        text = f"Unsupported parameter: '{case['refuses']}' is not supported with this model. Use '{case['wants']}' instead."
        return (400, {}, json.dumps({"error": {"message": text, "code": "unsupported_parameter"}}))

    with Stub(picky) as stub:
        with pytest.raises(EndpointError, match="give the engine extra={'max_tokens': None, 'max_completion_tokens': 5}"):
            ask(stub.base_url, tmp_path)
        extra = {case["refuses"]: None, **case["extra"]}
        assert ask(stub.base_url, tmp_path, extra=extra)[0] == [Completion("p!", True)]
        assert case["refuses"] not in stub.bodies[-1][1] and stub.bodies[-1][1][case["wants"]] == case["extra"][case["wants"]]
        ask(stub.base_url, tmp_path, ["q"], extra=dict.fromkeys(("max_tokens", "temperature", "top_p", "stop", "seed")))
        assert stub.bodies[-1][1] == {"model": "m", "prompt": "q"}


def test_a_busy_server_is_asked_again(tmp_path):
    busy = iter([(503, {"Retry-After": "0"}, "loading"), (429, {"Retry-After": "0"}, "later")])
    with Stub(lambda body: next(busy, None) or echo(body)) as stub:
        texts, engine = ask(stub.base_url, tmp_path)
        assert texts == [Completion("p!", True)] and engine.usage.requests == 3 and engine.usage.prompt_tokens == 10
        stub.answer = lambda _: (503, {"Retry-After": "0"}, "still loading")
        with pytest.raises(EndpointError, match="503.*still loading"):
            ask(stub.base_url, tmp_path, ["q"], retries=1)
        assert len(stub.bodies) == 5


@pytest.mark.parametrize("case", [case for case in SERVERS if "status" in case])
def test_a_server_that_is_busy_for_once(tmp_path, case):
    headers = {"Retry-After": case["retry_after"]} if "retry_after" in case else {}
    busy, times = iter([(case["status"], headers, "later")] * case["times"]), []
    with Stub(lambda body: times.append(time.monotonic()) or next(busy, None) or echo(body)) as stub:
        assert ask(stub.base_url, tmp_path)[0] == [Completion("p!", True)]
    assert len(times) == case["times"] + 1 and times[1] - times[0] >= float(case.get("retry_after", 0))


@pytest.mark.parametrize("status", [408, 409, 424, 425, 429, 500, 502, 503, 504, *range(520, 530)])
def test_a_status_that_passes(tmp_path, at_once, status):
    busy = iter([(status, {}, "")])
    with Stub(lambda body: next(busy, None) or echo(body)) as stub:
        assert ask(stub.base_url, tmp_path)[0] == [Completion("p!", True)]


@pytest.mark.parametrize(
    ("headers", "least", "most"),
    [
        ({"Retry-After": "0.3"}, 0.3, 2),
        ({"retry-after-ms": "300", "Retry-After": "60"}, 0.3, 2),
        ({"Retry-After": lambda: format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)}, 0.9, 4),  # whole seconds
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0, 1),
        ({"Retry-After": "-5"}, 0, 1),
        ({"Retry-After": "soon"}, 1, 4),  # as if it had said nothing
        ({"Retry-After": "nan"}, 1, 4),
    ],
)
def test_how_long_to_wait(tmp_path, headers, least, most):
    times = []

    def busy_once(body):
        times.append(time.monotonic())
        said = {name: value() if callable(value) else value for name, value in headers.items()}
        return echo(body) if len(times) > 1 else (429, said, "later")

    with Stub(busy_once) as stub:
        assert ask(stub.base_url, tmp_path)[0] == [Completion("p!", True)]
    assert least <= times[1] - times[0] < most


def test_a_long_wait_is_bounded():
    long = ("1e9", "1e999", format_datetime(datetime.now(UTC) + timedelta(days=9999)))
    assert {protocol.wait_said({"retry-after": said}) for said in long} == {600}


def test_no_answer_in_time(tmp_path):
    with Stub(lambda body: time.sleep(1) or echo(body)) as stub, pytest.raises(EndpointError, match="no answer in 1 tries"):
        ask(stub.base_url, tmp_path, retries=0, timeout=0.3)


def test_a_wrong_key(tmp_path):
    with Stub(lambda _: (401, {}, "bad key")) as stub, pytest.raises(EndpointError, match="environment variable OPENAI_API_KEY.*401"):
        ask(stub.base_url, tmp_path)


GOOD = {"choices": [{"text": "t", "finish_reason": "stop"}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}


@pytest.mark.parametrize(
    "answer",
    [
        "<html>welcome</html>", "", "null", "[]", "{}", "[" * 100_000,
        json.dumps({**GOOD, "choices": [{"text": 1, "finish_reason": "stop"}]}), json.dumps({**GOOD, "usage": None}),
        json.dumps({**GOOD, "usage": {"prompt_tokens": "1", "completion_tokens": 1}}), json.dumps({**GOOD, "choices": "text"}),
    ],
)  # fmt: skip
def test_an_answer_of_another_schema(tmp_path, answer):
    with Stub(lambda _: (200, {}, answer)) as stub:
        with pytest.raises(EndpointError, match="not OpenAI's"):
            ask(stub.base_url, tmp_path)
        stub.answer = lambda _: (200, {}, json.dumps(GOOD))
        assert ask(stub.base_url, tmp_path)[0] == [Completion("t", True)]  # nothing of it was kept


NAMES = ("choices", "error", "errors", "object", "type", "code", "status", "message", "text", "content", "finish_reason", "usage", "prompt_tokens")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.sampled_from(["error", "stop"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4))
def test_any_body_is_read_or_refused(body):
    status = protocol.fault(body)
    assert status is None or 400 <= status < 600
    try:
        answer = protocol.read(body)
    except ValueError:
        return
    assert protocol.checked(answer) and protocol.ended(answer, "\n") in (True, False)


@given(st.text() | st.from_regex(r"\A(Mon, )?[0-9]{1,3} (Jan|Feb) [0-9]{1,12} [0-9:]{1,9} ?(GMT|[+-][0-9]{4,5})?\Z"))
def test_any_header_says_a_wait_or_none(said):
    wait = protocol.wait_said({"retry-after": said, "retry-after-ms": said})
    assert wait is None or 0 <= wait <= 600


def test_a_damaged_cache_is_an_error_and_stays_as_it_is(tmp_path):
    file = tmp_path / "requests.sqlite"
    file.write_bytes(b"no database" * 100)
    with Stub(echo) as stub:
        with pytest.raises(DataError, match="requests.sqlite is damaged .*move it away"):
            ask(stub.base_url, tmp_path)
        assert file.read_bytes() == b"no database" * 100
        file.unlink()
        ask(stub.base_url, tmp_path)
        with sqlite3.connect(file) as db:
            db.execute("UPDATE answers SET answer = '{}'")
        db.close()
        with pytest.raises(DataError, match="damaged"):
            ask(stub.base_url, tmp_path)
        assert len(stub.bodies) == 1


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with Stub(echo) as stub, pytest.raises(OSError, match="could not use .*requests.sqlite"):
        ask(stub.base_url, tmp_path / "file")


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"base_url": "localhost:8080"}, "base_url must begin"), ({"api": "chats"}, "api must be"), ({"concurrency": 0}, "at least 1")],
)
def test_fields_that_are_wrong(fields, said):
    with pytest.raises(ValueError, match=said):
        EndpointEngine(**{"base_url": "http://127.0.0.1:1/v1", "model": "m", **fields})


@pytest.mark.parametrize("change", [{"seeds": []}, {"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"stop": ""}])
def test_parameters_that_are_wrong(tmp_path, change):
    with pytest.raises(ValueError, match="seeds|temperature"):
        EndpointEngine("http://127.0.0.1:1/v1", "m", cache=tmp_path).generate(**{"prompts": ["p"], "seeds": [1], **COUNT, **change})
