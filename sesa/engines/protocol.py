"""How servers that speak OpenAI's protocol differ: how answers end and fail, when to try again, what models are called.

Everything here reads text that a server sent. `sesa.engines.endpoint` sends the requests.
"""

import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import isnan
from typing import Any

# Why an answer ended, in lower case and with underscores. A reason in neither list (an abort, an overload, an error,
# null, one not known here) says that it did not end, and may end when asked for again.
STOPPED = {  # the model ended its text, or wrote the stop string
    "stop",  # OpenAI, vLLM, SGLang, llama.cpp, Ollama, Mistral, DeepSeek, Gemini
    "eos", "eos_token", "word",  # Together, TGI, llama.cpp
    "end_turn", "stop_sequence",  # Anthropic, Bedrock, TGI
    "complete", "completed", "finish", "endoftext",  # Cohere, layers over OpenAI's Responses, Amazon, AI21
}  # fmt: skip
CUT = {  # it would have gone on, and the same request ends the same way
    "length", "max_tokens", "max_output_tokens", "model_length", "limit", "model_context_window_exceeded",
    "content_filter", "content_filtered", "guardrail_intervened", "refusal", "sensitive", "error_toxic",
    "safety", "recitation", "language", "blocklist", "prohibited_content", "spii",  # Gemini
    "tool_calls", "function_call", "tool_use",  # a call that nobody here can answer
}  # fmt: skip

# What an error without a number says of itself, and the status that says the same. The first that is found counts.
WORDS = {
    r"rate.?limit|too.many|exhausted|quota": 429,
    r"overload|unavailable|busy|capacity|insufficient.system": 503,
    r"time.?out|timed.out|deadline": 504,
    r"authenti|unauthori|api.?key": 401,
    r"payment|billing|credit|balance": 402,
    r"permission|forbidden": 403,
    r"not.?found|not.exist": 404,
    r"invalid.(request|argument|param)|bad.?request|unsupported|context|too.(long|large)": 400,
    r"policy|filter|flagged|moderat|safety": 400,
}

FIELDS = {"text": str, "finish_reason": str, "prompt_tokens": int, "completion_tokens": int}  # of an answer


def passes(status: int) -> bool:
    """Whether another try may do better: the server is busy, slow or out of order (520 to 529: behind a proxy)."""
    return status in (408, 409, 424, 425, 429) or status >= 500 and status not in (501, 505)


def of_one_prompt(status: int, text: str) -> bool:
    """Whether a refusal is of this prompt (too long, against a policy), so that others may be answered."""
    return status in (400, 413, 422) or status == 403 and bool(re.search("flagged|moderation", text, re.IGNORECASE))


def stopped(reason: str) -> bool:
    """Whether an answer is whole, by its finish_reason."""
    return _plain(reason) in STOPPED


def ended(answer: Mapping[str, Any], stop: str) -> bool:
    """Whether this is all that the model would say to the request: whole, or cut off where it would be cut off
    again."""
    return stop in answer["text"] or stopped(answer["finish_reason"]) or _plain(answer["finish_reason"]) in CUT


def _plain(reason: str) -> str:
    return reason.lower().replace("-", "_")


def parsed(raw: str) -> dict[str, Any]:
    """The object that a body holds. Raises ValueError: there is none."""
    try:
        body = json.loads(raw)
    except RecursionError as e:
        raise ValueError(f"RecursionError: {e}") from e
    if not isinstance(body, dict):
        raise ValueError("no JSON object")
    return body


def fault(body: Mapping[str, Any]) -> int | None:
    """The status of the error that a body holds, whatever status it was sent with; None: it holds none. An error that
    does not say its kind is the server's, 500."""
    error = body.get("error") or body.get("errors") or ("error" in (body.get("object"), body.get("type")) and body)
    if not error and "choices" not in body and not {"message", "detail", "msg", "error_msg"}.isdisjoint(body):
        error = body
    if not error:
        return None
    error = error[0] if isinstance(error, list) else error
    for place in (error, body):
        for name in ("code", "status", "status_code", "http_status") if isinstance(place, dict) else ():
            if re.fullmatch("[45][0-9]{2}", said := str(place.get(name))):
                return int(said)
    kinds = [error.get(name) for name in ("type", "code", "status")] if isinstance(error, dict) else []
    said = (json.dumps(kinds), json.dumps([error, body.get("message")]))  # its name first, then its message
    return next((n for text in said for words, n in WORDS.items() if re.search(words, text, re.IGNORECASE)), 500)


def read(body: Mapping[str, Any]) -> dict[str, Any]:
    """The answer that a body holds: text, finish_reason ("" for none), prompt_tokens, completion_tokens. Where no
    listed reason ended it, anything may be missing: no choice, no text, no tokens counted.

    Raises:
        ValueError: it is no such answer.
    """
    try:
        # Where the rest of an answer stands, null may have been left out.
        choices = body.get("choices") if {"id", "model", "usage"} & body.keys() else body["choices"]
        choice, usage = (choices or [{}])[0] or {}, body.get("usage") or {}
        message, reason = choice.get("message"), choice.get("finish_reason")
        text = (message.get("content") or "") if isinstance(message, dict) else choice.get("text")
        counts = {name: usage.get(name) for name in ("prompt_tokens", "completion_tokens")}
        answer = {"text": text, "finish_reason": reason, **counts}
    except (LookupError, TypeError, AttributeError) as e:
        raise ValueError(f"{type(e).__name__}: {e}") from e
    if choice.get("error") or not isinstance(reason, str):
        answer["finish_reason"] = "error" if choice.get("error") else ""
    if not (stopped(answer["finish_reason"]) or _plain(answer["finish_reason"]) in CUT):
        answer = {name: answer[name] if type(answer[name]) is kind else kind() for name, kind in FIELDS.items()}
    answer = checked(answer)
    # Half a character could not be sent back in a prompt.
    return answer | {"text": answer["text"].encode(errors="replace").decode()}


def checked(answer: Any) -> dict[str, Any]:
    """The answer. Raises ValueError, LookupError or TypeError: it is none."""
    if wrong := [name for name, kind in FIELDS.items() if type(answer[name]) is not kind]:
        raise ValueError(f"{', '.join(wrong)} of another type")
    return answer


def wait_said(headers: Mapping[str, str]) -> float | None:
    """Seconds until the next try, as the server wants it, from 0 to 600; None: it does not say. Also read: fractions,
    milliseconds, dates."""
    seconds = []
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        try:
            seconds.append(float(headers.get(name, "nan")) / unit)
        except ValueError:  # a date
            try:
                date = parsedate_to_datetime(headers[name])
                seconds.append((date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
            except (ValueError, OverflowError):
                continue
    return next((min(max(s, 0.0), 600.0) for s in seconds if not isnan(s)), None)


def left_out(refusal: str, body: Mapping[str, Any]) -> str:
    """How to leave out a parameter that a refusal names as one it does not take; "": it names none."""
    if not re.search("support|unrecogni|unknown|unexpected|not permitted|not allowed|extra", refusal, re.IGNORECASE):
        return ""
    ours = ("max_tokens", "temperature", "top_p", "stop", "seed")
    names = [name for name in ours if name in body and re.search(rf"\b{name}\b", refusal)]
    extra = dict.fromkeys(names) | ({"max_completion_tokens": body["max_tokens"]} if "max_tokens" in names else {})
    return f"; to leave it out, give the engine extra={extra}" if names else ""


def models(raw: str) -> dict[str, list[str]]:
    """The models that a server lists, each with its other names; none where the body holds no such list."""
    try:
        found = {str(model["id"]): (model.get("root"), *(model.get("aliases") or ())) for model in parsed(raw)["data"]}
    except (ValueError, LookupError, TypeError, AttributeError):
        return {}
    return {name: [str(other) for other in others if other] for name, others in found.items()}


def found(model: str, listed: Mapping[str, Iterable[str]]) -> str | None:
    """The listed model that this name means; None: there is none, or it could be several. listed: other names by name.

    A name may differ in case, and one of the two may lack what the other has: the folders or the organization before
    it, ":latest", ".gguf", the quantization before that. ("phi4" is Ollama's "phi4:latest", and no "phi4:14b".)
    """
    if model in listed:
        return model

    def alike(name: str) -> bool:
        return name.lower() in _short(model) or model.lower() in _short(name)

    meant = [name for name, others in listed.items() if any(map(alike, (name, *others)))]
    return meant[0] if len(meant) == 1 else None


def _short(name: str) -> set[str]:
    """The name, and shorter forms of it."""
    name = name.lower().replace("\\", "/")
    endings = ("$", ":latest$", r"\.gguf$", r"[.-](i?q\d\w*|b?f16|f32)(-\d+-of-\d+)?\.gguf$")
    return {re.sub(ending, "", name).split("/", n)[-1] for ending in endings for n in range(name.count("/") + 1)}
