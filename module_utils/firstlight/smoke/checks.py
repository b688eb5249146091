# SPDX-License-Identifier: Apache-2.0
"""The checks of a proof, in their order. Each raises :class:`.target.Wrong` with what it found."""

from __future__ import annotations

import json
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Callable, Dict, List, NamedTuple, Optional

from .. import text_judge
from ..http_client import certificate, pinned, unreachable
from ..let_in import REFUSED, refusals
from .target import (
    BROKEN,
    CHAT,
    COMPLETIONS,
    Said,
    Silent,
    Streamed,
    Target,
    Wrong,
    message_of,
    text_of,
    thought_of,
)

TOO_LONG = ("maximum context length is", "exceeds the available context size")
"""What vLLM and llama.cpp say to a prompt that is too long, whatever their release."""
ROUNDED = 256
"""llama.cpp rounds a context up to a multiple of this."""
ANY_TOKEN = 1
"""An id that every vocabulary has."""
COLOURS = ["red", "green"]
# A word and no object, because a model may fill what is between the parts of one with blanks.
COLOUR = {"type": "string", "enum": COLOURS}
# It asks for no colour, so that an engine that does not heed the format gives no colour.
HELLO = [{"role": "user", "content": "Say hello."}]
ASK_PAINT = [{"role": "user", "content": "Paint the wall green."}]
PAINT = {"type": "function", "function": {
    "name": "paint", "description": "Paints the wall.", "strict": True,
    "parameters": {"type": "object", "properties": {"colour": COLOUR}, "required": ["colour"],
                   "additionalProperties": False}}}
FORMAT_TOKENS = 256
MEASURED = {"streaming", "chat-streaming", "parallel"}
FLOORS = {
    "first_token_s": "at most %g s to the first token",
    "tokens_per_second": "at least %g tokens per second of one stream",
    "tokens_per_second_all": "at least %g tokens per second of all streams",
}


# Ready, by what the endpoint itself shows.


def check_health(target: Target) -> None:
    """Something listens, and says that it is well."""
    why = unreachable(target.url, target.timeout_s)
    if why:
        raise Silent(why, "something that listens", "connecting to " + target.url)
    target.since("port_s")
    answer = target.get("/health")
    if not answer.status:
        raise Silent(answer.error, "an answer", "GET /health")
    if answer.status != 200:
        raise Wrong(answer.brief(), "HTTP 200", "GET /health")
    target.since("health_s")


def check_model_listed(target: Target) -> None:
    """``/v1/models`` lists the name that requests will carry."""
    answer = target.get("/v1/models")
    if not answer.status:
        raise Silent(answer.error, "an answer", "GET /v1/models")
    listed = answer.json() if answer.status == 200 else None
    names = [one.get("id") for one in (listed or {}).get("data", []) if isinstance(one, dict)]
    if target.model not in names:
        raise Wrong("%s" % (names or answer.brief()), target.model, "GET /v1/models")
    target.since("listed_s")


def check_first_token(target: Target) -> None:
    """It gives one token: what says before that it is ready may say so too early."""
    try:
        # What it says is judged by others.
        target.said["first-token"] = target.complete(target.prompt, 1, errors="replace")
    except Wrong as wrong:
        # Nothing else can be right, and all of it would say the same.
        raise Silent(wrong.found, wrong.wanted, wrong.evidence, wrong.severity,
                     wrong.remedy) from wrong
    target.since("token_s")


# What it says.


def check_completion(target: Target) -> None:
    """The canary goes on to the letter; any other model with something that can be a text."""
    evidence = "greedy completion of %d tokens" % target.tokens
    said = target.complete(target.prompt, target.tokens)
    text = text_of(said)
    target.said["completion"] = said
    _hold(target, text, "completion", evidence)
    if not text.strip():
        raise Wrong("an empty completion", "text", evidence)
    _judge(target, text, evidence)


def check_repeats(target: Target) -> None:
    """The same greedy request twice gives the same text."""
    first = text_of(target.said["completion"])
    second = text_of(target.complete(target.prompt, target.tokens))
    if first != second:
        raise Wrong("%s, then %s" % (_short(first), _short(second)), "the same text twice",
                    "greedy completion of %d tokens" % target.tokens, _of_batching(target))


def check_streaming(target: Target) -> None:
    """A stream says what the whole answer says, token by token; how fast is a figure."""
    streamed = target.stream(
        COMPLETIONS, {"prompt": target.prompt, "max_tokens": target.speed_tokens})
    target.said["completion, streamed"] = streamed
    count, times = streamed.counted(), streamed.times
    target.figure("first_token_s", times[0])
    if count > 1 and times[-1] > times[0]:
        target.figures["tokens_per_second"] = round((count - 1) / (times[-1] - times[0]), 1)
    target.figures["tokens"] = count
    _same_streamed(target, streamed, "completion", text_of)


def check_chat(target: Target) -> None:
    """Chat goes through the model's template; the canary's answer is known."""
    evidence = "greedy chat answer of %d tokens" % target.tokens
    said = target.talk(target.messages, target.tokens)
    text = message_of(said)
    target.said["chat"] = said
    _hold(target, text, "chat_completion", evidence)
    # A model may spend all its tokens on thoughts that are not part of the content.
    if not text.strip() and not (said.get("usage") or {}).get("completion_tokens"):
        raise Wrong("an empty answer", "text", evidence)
    _judge(target, text, evidence)


def check_chat_streaming(target: Target) -> None:
    """A stream of chat says what the whole answer says."""
    streamed = target.stream(CHAT, {"messages": target.messages, "max_tokens": target.tokens})
    target.said["chat, streamed"] = streamed
    _same_streamed(target, streamed, "chat", message_of)


def check_usage(target: Target) -> None:
    """Token counts are there, add up, respect the limit, and do not depend on streaming."""
    for name, known, asked in (("completion", "prompt_ids", target.speed_tokens),
                               ("chat", "chat_prompt_ids", target.tokens)):
        whole, streamed = target.said.get(name), target.said.get(name + ", streamed")
        ids = (target.oracle or {}).get(known)
        prompt = len(ids) if ids else None
        if whole is not None:
            prompt = _add_up(name, whole.get("usage"), target.tokens, prompt)
        if streamed is not None:
            _add_up(name + ", streamed", streamed.usage, asked, prompt)


# What it does beside.


def check_structured_output(target: Target) -> None:
    """An answer keeps to a schema that the question says nothing of."""
    said = target.talk(HELLO, target.limited(FORMAT_TOKENS), response_format={
        "type": "json_schema",
        "json_schema": {"name": "colour", "strict": True, "schema": COLOUR}})
    text = message_of(said)
    if _json(text) not in COLOURS:
        _only_thought(said, text)
        raise Wrong(_short(text), "one of %s, as JSON" % ", ".join(COLOURS),
                    "chat with a response_format")


def check_tool_call(target: Target) -> None:
    """A call that is required comes, with arguments that keep to the tool's schema."""
    said = target.talk(ASK_PAINT, target.limited(FORMAT_TOKENS), tools=[PAINT],
                       tool_choice="required")
    choice = said["choices"][0]
    calls = choice["message"].get("tool_calls") or []
    if not calls:
        _only_thought(said, message_of(said))
        # llama.cpp lets a model say whatever it likes before the call.
        raise Wrong(_short(message_of(said)), "a call of the tool paint",
                    "chat with tool_choice required",
                    "warning" if choice.get("finish_reason") == "length" else "fatal")
    called = calls[0]["function"]
    arguments = _json(called["arguments"])
    if called["name"] != "paint" or not isinstance(arguments, dict) or arguments.get(
            "colour") not in COLOURS:
        raise Wrong(_short("%s(%s)" % (called["name"], called["arguments"])),
                    "paint with the colour %s" % " or ".join(COLOURS),
                    "chat with tool_choice required")


def check_too_long(target: Target) -> None:
    """A prompt that no context holds is refused by name, and harms nothing."""
    count = (target.context or 0) + ROUNDED
    evidence = "a prompt of %d tokens" % count
    answer = target.post(COMPLETIONS, {"prompt": [ANY_TOKEN] * count, "max_tokens": 1})
    said = answer.body.decode("utf-8", "replace")
    if answer.status != 400 or not isinstance(answer.json(), dict) or not any(
            stem in said for stem in TOO_LONG):
        raise Wrong(answer.brief(), "HTTP 400 that says %s" % " or ".join(map(repr, TOO_LONG)),
                    evidence)
    after = "a request after " + evidence
    health = target.get("/health")
    # What was not well before says nothing of the prompt.
    if health.status != 200 and "health" not in target.failed:
        raise Wrong(health.brief(), "HTTP 200 of /health", after)
    try:
        text = text_of(target.complete(target.prompt, 1, errors="replace"))
    except Wrong as wrong:
        raise type(wrong)(wrong.found, wrong.wanted, after, wrong.severity,
                          wrong.remedy) from wrong
    before = text_of(target.said["first-token"])
    if target.oracle and text != before:
        raise Wrong("%r, and %r before" % (text, before), "the same token", after)


def check_keys(target: Target) -> None:
    """Where clients need a key, none and a wrong one are refused."""
    url, path = str(target.keyed["url"]).rstrip("/"), target.keyed.get("certificate")
    try:
        with open(path or "/dev/null", "rb") as file:
            der = certificate(file.read(2**20))
    except OSError as problem:
        raise Wrong("%s: %s" % (path, problem.strerror), "the certificate of " + url) from problem
    if path and not der:
        raise Wrong("no certificate in %s" % path, "the certificate of " + url)
    try:
        context = pinned(der) if der else None
    except (OSError, ValueError) as problem:
        raise Wrong("no certificate in %s" % path, "the certificate of " + url) from problem
    for asked in refusals(url, context, target.timeout_s):
        if asked.answer.status != REFUSED:
            raise Wrong(asked.answer.brief(), "HTTP %d" % REFUSED,
                        "%s at %s" % (asked.evidence, url))


def check_parallel(target: Target) -> None:
    """Requests that come at once are all answered, each with what is right for it."""
    # Two kinds by turns, so that an answer that went to another request is seen.
    count, kinds = _at_once(target), _streamed(target)
    with ThreadPoolExecutor(count) as pool:
        answers = [pool.submit(_one_of_many, target, kinds[number % len(kinds)])
                   for number in range(count)]
    wrong = [one for one in map(_problem, answers) if one]
    if wrong:
        worst = next((one for one in wrong if isinstance(one, Silent)), wrong[0])
        raise type(worst)("%d of %d: %s" % (len(wrong), count, worst.found), worst.wanted,
                          "%d requests at once, %s" % (count, worst.evidence), worst.severity,
                          worst.remedy)
    streams = [one.result() for one in answers]
    begun = min(one.started for one in streams)
    ended = max(one.started + one.times[-1] for one in streams)
    target.figures["streams"] = count
    target.figure("first_token_all_s", max(one.times[0] for one in streams))
    if ended > begun:
        target.figures["tokens_per_second_all"] = round(
            sum(one.counted() for one in streams) / (ended - begun), 1)


def check_speed(target: Target) -> None:
    """No slower than the inventory says."""
    missed = []
    for key, floor in sorted(target.floors.items()):
        figure = target.figures.get(key)
        if figure is None and target.failed & MEASURED:
            continue
        if figure is None or (figure > floor if key == "first_token_s" else figure < floor):
            missed.append((key, "%s: %s" % (key, "not measured" if figure is None
                                            else "%g" % figure), FLOORS[key] % floor))
    if missed:
        variables = ", ".join("endpoint_smoke_floors.%s.%s" % (target.name, key)
                              for key, _, _ in missed)
        raise Wrong(
            ", ".join(found for _, found, _ in missed), ", ".join(want for _, _, want in missed),
            "floors of " + variables, "error",
            "see what else the host does, and whether the plan has the devices that the model "
            "needs; where it is as fast as it can be, change " + variables)


# Which of them an endpoint has a need of.


class Check(NamedTuple):
    """A check by its name in verdicts.

    :param needed: whether it says anything of this endpoint, after the checks before it.
    """

    name: str
    run: Callable[[Target], None]
    needed: Callable[[Target], bool]


def _always(target: Target) -> bool:
    return True


def _chats(target: Target) -> bool:
    return target.chat


def _has_tools(target: Target) -> bool:
    """By its flags, or by what llama.cpp reads out of the model's template."""
    if not target.chat or "tool_calls" in target.claims:
        return target.chat
    if "tool_calls_by_template" not in target.claims:
        return False
    props = target.get("/props").json(errors="replace")
    able = props.get("chat_template_caps") if isinstance(props, dict) else None
    return isinstance(able, dict) and able.get("supports_tool_calls") is True


def _streamed(target: Target) -> List[str]:
    """The kinds of answers of which a stream came: of the others all that is wrong was said."""
    return [kind for kind in ("completion", "chat") if kind + ", streamed" in target.said]


def _at_once(target: Target) -> int:
    """As many streams as are wanted and the context has room for, which llama.cpp shares out."""
    usage = (target.said.get("completion") or {}).get("usage")
    total = usage.get("total_tokens") if isinstance(usage, dict) else None
    if not target.context or type(total) is not int or total < 1:
        return target.streams
    return min(target.streams, target.context // total)


CHECKS = [
    Check("health", check_health, _always),
    Check("model-listed", check_model_listed, _always),
    Check("first-token", check_first_token, _always),
    Check("completion", check_completion, _always),
    Check("repeats", check_repeats, lambda target: "completion" in target.said),
    Check("streaming", check_streaming, _always),
    Check("chat", check_chat, _chats),
    Check("chat-streaming", check_chat_streaming, _chats),
    Check("usage", check_usage, _always),
    Check("structured-output", check_structured_output,
          lambda target: target.chat and "structured_output" in target.claims),
    Check("tool-call", check_tool_call, _has_tools),
    Check("too-long", check_too_long, lambda target: bool(target.context)),
    Check("keys", check_keys, lambda target: bool(target.keyed)),
    Check("parallel", check_parallel,
          lambda target: bool(_streamed(target)) and _at_once(target) > 1),
    Check("speed", check_speed, lambda target: bool(target.floors)),
]


# How they judge.


def _hold(target: Target, text: str, key: str, evidence: str) -> None:
    """Hold an answer against what the canary must say, where it is the canary."""
    if target.oracle and text != target.oracle[key]:
        raise Wrong(_short(text), repr(target.oracle[key]), evidence)


def _judge(target: Target, text: str, evidence: str) -> None:
    """Hold an answer against what a text can be, where it is not known."""
    faults = [] if target.oracle else text_judge.faults(text)
    hard = [one for one in faults if one["alone"]]
    if faults:
        told = hard or faults
        raise Wrong(
            "%s, in %s" % ("; ".join("%(kind)s: %(found)s" % one for one in told), _short(text)),
            "; ".join(str(one["wanted"]) for one in told), evidence,
            "fatal" if hard else "warning")


def _of_batching(target: Target) -> str:
    """On a real model, batching may make greedy answers differ in the last bits."""
    return "fatal" if target.oracle else "warning"


def _same_streamed(target: Target, streamed: Streamed, name: str,
                   said: Callable[[Said], str]) -> None:
    """Hold a stream against the whole answer; what is wrong with both was said of that."""
    evidence = "greedy %s, streamed" % name
    whole = target.said.get(name)
    if _is_known(target, streamed.text, name):
        return
    if whole is None:
        if target.oracle:
            raise Wrong(_short(streamed.text), repr(_known(target, name)), evidence)
    else:
        text, finish = said(whole), whole["choices"][0].get("finish_reason")
        if _agree(target, text, finish, streamed.text):
            return
    _judge(target, streamed.text, evidence)
    if whole is not None:
        raise Wrong("%s streamed, %s as a whole" % (_short(streamed.text), _short(text)),
                    "the same text", evidence, _of_batching(target))


def _agree(target: Target, whole: str, finish: Any, streamed: str) -> bool:
    """Whether a stream, which may have more tokens, says what a whole answer says."""
    if not target.oracle:
        # Engines strip what is before or after a thought.
        whole, streamed = whole.strip(), streamed.strip()
    if finish in ("length", None):
        return streamed.startswith(whole.rstrip(BROKEN)) and bool(streamed or not whole)
    return streamed == whole


def _known(target: Target, name: str) -> Optional[str]:
    oracle = target.oracle or {}
    return oracle.get("completion" if name == "completion" else "chat_completion")


def _is_known(target: Target, text: str, name: str) -> bool:
    """Whether a text is what the canary must say."""
    known = _known(target, name)
    return bool(known) and text.startswith(str(known))


def _one_of_many(target: Target, kind: str) -> Streamed:
    payload: Dict[str, Any] = {"max_tokens": target.tokens}
    if kind == "chat":
        streamed = target.stream(CHAT, dict(payload, messages=target.messages))
    else:
        streamed = target.stream(COMPLETIONS, dict(payload, prompt=target.prompt))
    alone = target.said[kind + ", streamed"].text
    # What is wrong with a request that is alone was said of that.
    if _is_known(target, streamed.text, kind) or alone.startswith(streamed.text):
        return streamed
    evidence = "one of them a " + kind
    if target.oracle:
        raise Wrong(_short(streamed.text), repr(_known(target, kind)), evidence)
    try:
        _judge(target, streamed.text, evidence)
    except Wrong as wrong:
        if wrong.severity == "fatal":
            raise
    return streamed


def _problem(answer: Future[Streamed]) -> Optional[Wrong]:
    problem = answer.exception()
    if problem is None or isinstance(problem, Wrong):
        return problem
    if isinstance(problem, (AttributeError, KeyError, IndexError, TypeError)):
        return Wrong(repr(problem), "an answer of the OpenAI API's shape")
    raise problem


def _add_up(name: str, usage: Any, asked: int, prompt: Optional[int]) -> int:
    """The tokens of the prompt, where the counts of an answer are right.

    :param prompt: what they must be, where that is known.
    """
    found = "%s: usage %s" % (name, json.dumps(usage)[:300])
    counts: List[Any] = [usage.get(kind + "_tokens") if isinstance(usage, dict) else None
                         for kind in ("prompt", "completion", "total")]
    if not all(type(one) is int for one in counts):
        raise Wrong(found, "prompt, completion and total tokens", name)
    if counts[0] + counts[1] != counts[2] or not 1 <= counts[1] <= asked or counts[0] < 1:
        raise Wrong(found, "prompt + completion = total, at most %d completed" % asked, name)
    if prompt is not None and counts[0] != prompt:
        raise Wrong(found, "%d tokens of the prompt" % prompt, name)
    return int(counts[0])


def _only_thought(said: Said, text: str) -> None:
    """Not judged: a model that thinks may have come to no answer yet."""
    choice = said["choices"][0]
    if choice.get("finish_reason") == "length" and thought_of(choice["message"]) and not text:
        raise Wrong("thoughts for all of its tokens", "an answer after them",
                    severity="warning", remedy="ask it yourself, with more tokens")


def _json(text: Any) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return None


def _short(text: str) -> str:
    return repr(text if len(text) <= 300 else text[:300] + "...")
