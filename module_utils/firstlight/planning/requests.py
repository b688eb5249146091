# SPDX-License-Identifier: Apache-2.0
"""What the user asked for: ``inference_endpoints`` judged and put into one shape."""

from __future__ import annotations

import difflib
import re
from typing import Any, Dict, List, Tuple

from ..findings import Finding, finding

Request = Dict[str, Any]
"""One endpoint as asked for: every key of :data:`DEFAULTS`, and ``where`` (for messages) and
``model_kind`` (``canary``, ``path`` or ``repo``)."""

VARIABLE = "inference_endpoints"
ENGINES = ("auto", "vllm", "llama_cpp")
RUNTIMES = ("auto", "docker", "native")
DEFAULTS: Dict[str, Any] = {
    "name": None,
    "model": None,
    "revision": None,
    "engine": "auto",
    "engine_version": "auto",
    "engine_python": None,
    "engine_binary": None,
    "runtime": "auto",
    "port": 8000,
    "bind": "127.0.0.1",
    "api_key": None,
    "context": "auto",
    "tensor_parallel": "auto",
    "gpus": "auto",
    "extra_args": [],
}
LOOPBACK = ("127.0.0.1",)
# Keys for an engine that the user brings, and which engine it is.
OWN_ENGINES = {"engine_python": "vllm", "engine_binary": "llama_cpp"}
VERSION = re.compile(r"auto|\d+(\.\d+)*([a-z0-9.+-]*)")
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
# In a repository id neither part starts with a dot or a slash; in a path the first one does.
REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")


def normalise(asked: Any) -> Tuple[List[Request], List[Finding]]:
    """Judge ``inference_endpoints`` by itself, without a host.

    :param asked: the variable as the user wrote it.
    :returns: the requests that are whole enough to be looked at further, and everything that is
        wrong with the rest. Nothing is raised: bad input is what this is for.
    """
    if not isinstance(asked, (list, tuple)):
        return [], [_bad(VARIABLE, "not-a-list", _kind(asked), "a list of endpoints")]
    requests: List[Request] = []
    findings: List[Finding] = []
    for index, entry in enumerate(asked):
        request, wrong = _one(index, entry)
        findings.extend(wrong)
        if request is not None:
            requests.append(request)
    findings.extend(_clashes(requests))
    return requests, findings


def _one(index: int, entry: Any) -> Tuple[Any, List[Finding]]:
    where = "%s[%d]" % (VARIABLE, index)
    if not isinstance(entry, dict):
        return None, [_bad(where, "not-a-mapping", _kind(entry),
                           "a mapping with name and model")]
    name = entry.get("name")
    if isinstance(name, str) and name and name.isprintable():
        where += " (%s)" % name
    request = {key: entry.get(key, default) for key, default in DEFAULTS.items()}
    request["where"] = where
    findings = _unknown_keys(where, entry)
    for check in (_name, _model, _choices, _own_engine, _port, _bind, _numbers, _gpus, _extra_args,
                  _later):
        findings.extend(check(where, request))
    return request, findings


def _unknown_keys(where: str, entry: Dict[Any, Any]) -> List[Finding]:
    findings = []
    for key in entry:
        if key in DEFAULTS:
            continue
        shown = str(key) if str(key).isprintable() else repr(key)
        near = difflib.get_close_matches(shown.lower(), DEFAULTS, n=1)
        hint = "did you mean `%s`?" % near[0] if near else "remove it"
        findings.append(_bad(where, "unknown-key", "`%s`" % shown, "one of " + ", ".join(DEFAULTS),
                             remedy="%s.%s: %s" % (where, shown, hint)))
    return findings


def _name(where: str, request: Request) -> List[Finding]:
    name = request["name"]
    if name is None:
        return [_bad(where + ".name", "missing-name", "no name", "a name of [a-z0-9-]+")]
    if not isinstance(name, str) or not NAME.fullmatch(name):
        return [_bad(where + ".name", "bad-name", repr(name),
                     "1 to 40 of a-z, 0-9 and -, not starting with -")]
    return []


def _model(where: str, request: Request) -> List[Finding]:
    model = request["model"]
    request["model_kind"] = None
    if not isinstance(model, str) or not model.strip():
        return [_bad(where + ".model", "missing-model", repr(model),
                     "`canary`, or the absolute path of a model on the host")]
    if not model.isprintable():
        return [_bad(where + ".model", "model-path-unprintable", repr(model),
                     "a path without line breaks and control characters")]
    if model == "canary":
        request["model_kind"] = "canary"
    elif model.startswith("/"):
        request["model_kind"] = "path"
    elif REPO_ID.match(model) and not model.endswith(".gguf"):
        request["model_kind"] = "repo"
    else:
        return [_bad(where + ".model", "model-path-not-absolute", repr(model),
                     "`canary`, or the absolute path of a model on the host")]
    return []


def _choices(where: str, request: Request) -> List[Finding]:
    findings = []
    for key, choices in (("engine", ENGINES), ("runtime", RUNTIMES)):
        if request[key] not in choices:
            near = difflib.get_close_matches(str(request[key]).lower(), choices, n=1)
            hint = "; did you mean %s?" % near[0] if near else ""
            findings.append(_bad("%s.%s" % (where, key), "unknown-" + key, repr(request[key]),
                                 "one of %s%s" % (", ".join(choices), hint)))
    return findings


def _own_engine(where: str, request: Request) -> List[Finding]:
    """An engine of the user's own: a path, and the version that the plan is to take it for."""
    findings = []
    version = request["engine_version"]
    if isinstance(version, (int, float)) and not isinstance(version, bool):
        findings.append(_bad(where + ".engine_version", "bad-engine-version", repr(version),
                             "auto, or a version in quotes: YAML reads it as a number"))
    elif not isinstance(version, str) or not VERSION.fullmatch(version):
        findings.append(_bad(where + ".engine_version", "bad-engine-version", repr(version),
                             "auto, or a version such as 0.24.0"))
    given = [key for key in OWN_ENGINES if request[key] is not None]
    for key in given:
        path = request[key]
        if not isinstance(path, str) or not path.startswith("/") or not path.isprintable():
            findings.append(_bad("%s.%s" % (where, key), "own-engine-path", repr(path),
                                 "the absolute path of the program on the host"))
        elif request["engine"] not in ("auto", OWN_ENGINES[key]):
            findings.append(_bad("%s.engine" % where, "own-engine-kind", repr(request["engine"]),
                                 "%s, as %s is given" % (OWN_ENGINES[key], key)))
        else:
            request["engine"] = OWN_ENGINES[key]
        if request["runtime"] == "docker":
            findings.append(_bad(
                where + ".runtime", "own-engine-in-container", "docker with " + key,
                "native or auto: it is a program of the host"))
        if version == "auto":
            findings.append(_bad(
                where + ".engine_version", "own-engine-version", "auto with " + key,
                "the version of that program, which decides its flags"))
    if len(given) > 1:
        findings.append(_bad(where, "two-own-engines", " and ".join(given), "one of them"))
    return findings


def _port(where: str, request: Request) -> List[Finding]:
    port = whole_number(request["port"])
    if port is None or not 1 <= port <= 65535:
        return [_bad(where + ".port", "port-out-of-range", repr(request["port"]), "1 to 65535")]
    request["port"] = port
    return []


def _bind(where: str, request: Request) -> List[Finding]:
    if request["bind"] in LOOPBACK:
        return []
    return [_bad(where + ".bind", "bind-not-loopback", repr(request["bind"]),
                 "127.0.0.1: an engine on any other address would be open to everyone there",
                 remedy="%s.bind: leave it out; a proxy with a key is not part of this release"
                 % where)]


def _numbers(where: str, request: Request) -> List[Finding]:
    findings = []
    for key in ("context", "tensor_parallel"):
        if request[key] == "auto":
            continue
        number = whole_number(request[key])
        if number is None or number < 1:
            findings.append(_bad("%s.%s" % (where, key), "bad-" + key.replace("_", "-"),
                                 repr(request[key]), "auto, or a whole number from 1"))
        else:
            request[key] = number
    return findings


def _gpus(where: str, request: Request) -> List[Finding]:
    gpus = request["gpus"]
    if gpus in ("auto", "all"):
        return []
    count = whole_number(gpus)
    if count is not None and count >= 0:
        request["gpus"] = count
        return []
    if isinstance(gpus, (list, tuple)) and gpus and all(isinstance(one, str) for one in gpus):
        request["gpus"] = list(dict.fromkeys(gpus))
        return []
    return [_bad(where + ".gpus", "bad-gpus", repr(gpus), "auto, all, a count, or a list of UUIDs")]


def _extra_args(where: str, request: Request) -> List[Finding]:
    """Values are not shown: a flag may carry a key."""
    args = request["extra_args"]
    where += ".extra_args"
    if not isinstance(args, (list, tuple)):
        return [_bad(where, "bad-extra-args", _kind(args), "a list of strings")]
    findings = []
    for index, one in enumerate(args):
        item = "%s[%d]" % (where, index)
        if isinstance(one, bool):
            findings.append(_bad(item, "bad-extra-args", _kind(one), "a string",
                                 remedy="quote %s: YAML reads a bare on, off, yes or no as a truth "
                                 "value" % item))
        elif not isinstance(one, (str, int, float)):
            findings.append(_bad(item, "bad-extra-args", _kind(one), "a string"))
        elif not str(one).isprintable():
            findings.append(_bad(item, "bad-extra-args", "text with a control character",
                                 "a string without line breaks and control characters"))
    if not findings:
        request["extra_args"] = [str(one) for one in args]
    return findings


def _later(where: str, request: Request) -> List[Finding]:
    """Keys that this release knows and cannot honour yet; silence would be a lie."""
    findings = []
    if request["api_key"] is not None:
        findings.append(_bad(
            where + ".api_key", "api-key-unused", "a key", "none: on loopback the engine has none",
            remedy="%s.api_key: leave it out; a proxy with a key is not part of this release"
            % where))
    if request["revision"] is not None:
        findings.append(_bad(
            where + ".revision", "revision-unused", repr(request["revision"]),
            "none: a revision belongs to a repository id, and this release does not fetch"))
    return findings


def _clashes(requests: List[Request]) -> List[Finding]:
    findings = []
    for key, id in (("name", "duplicate-name"), ("port", "duplicate-port")):  # noqa: A001
        seen: Dict[Any, str] = {}
        for request in requests:
            value = request[key]
            if not isinstance(value, (str, int)):
                continue
            if value in seen:
                findings.append(_bad("%s.%s" % (request["where"], key), id,
                                     "%r, as in %s" % (value, seen[value]),
                                     "a %s of its own" % key))
            else:
                seen[value] = request["where"]
    return findings


def _kind(value: Any) -> str:
    """What sort of value it is; the value itself may hold a key and is not shown."""
    if isinstance(value, bool):
        return "a truth value"
    for kind, name in ((str, "text"), (dict, "a mapping"), ((list, tuple), "a list"),
                       ((int, float), "a number")):
        if isinstance(value, kind):
            return name
    return "nothing" if value is None else "a %s" % type(value).__name__


def whole_number(value: Any) -> Any:
    """The value as an int, or ``None``. Takes ``"8000"``: ``-e`` and inventories give text."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return int(value)
    if isinstance(value, str) and re.match(r"-?\d{1,18}$", value.strip()):
        return int(value)
    return None


def _bad(subject: str, id: str, found: str, wanted: str, remedy: str = "") -> Finding:  # noqa: A002
    return finding("endpoint-" + id, subject, found, wanted, remedy or "change " + subject)
