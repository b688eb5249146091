# SPDX-License-Identifier: Apache-2.0
"""What the user asked for: ``inference_endpoints`` judged and put into one shape."""

from __future__ import annotations

import difflib
import ipaddress
import posixpath
import re
from typing import Any, Dict, List, Optional, Tuple, Union

from ..findings import Finding, finding
from . import file_address, way_in

Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
Request = Dict[str, Any]
"""One endpoint as asked for: every key of :data:`DEFAULTS` but ``api_key``, which nothing that
decides or reports ever holds, and ``where`` (for messages), ``model_kind`` (``canary``, ``path``
or ``repo``), ``asked_model`` (as it was written), and of a repository ``repo_id`` and
``quantisation``. Other paths are those of the host: the map has been applied, and a ``file://``
address is a path. :func:`.wheel_fleet.endpoint_wheels` adds ``wheels`` where there are some."""

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
    "image": None,
    "runtime": "auto",
    "port": 8000,
    "bind": "127.0.0.1",
    "api_key": None,
    "tls_certificate": None,
    "tls_key": None,
    "engine_port": None,
    "context": "auto",
    "tensor_parallel": "auto",
    "gpus": "auto",
    "extra_args": [],
}
LOOPBACK = way_in.LOOPBACK
# Keys for an engine that the user brings, and which engine it is.
OWN_ENGINES = {"engine_python": "vllm", "engine_binary": "llama_cpp"}
# A name with a tag, a digest or both, as Docker takes it.
IMAGE = re.compile(
    r"(?P<name>([A-Za-z0-9.-]+(:[0-9]{1,5})?/)?[a-z0-9]+([._-]+[a-z0-9]+)*"
    r"(/[a-z0-9]+([._-]+[a-z0-9]+)*)*)(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?"
    r"(@sha256:[0-9a-f]{64})?")
VERSION = re.compile(r"auto|\d+(\.\d+)*([a-z0-9.+-]*)")
NAME = way_in.NAME
# In a repository id neither part starts with a dot or a slash; in a path the first one does.
# The length and the rest of the rules are those of huggingface_hub (validate_repo_id).
REPO_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*/[A-Za-z0-9_][A-Za-z0-9_.-]*")
REPO_ID_LENGTH = 96
# As llama.cpp takes it after the repository's id: the part of a file's name that says it.
QUANTISATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
COMMIT, SHORT_HASH = re.compile(r"[0-9a-fA-F]{40}"), re.compile(r"[0-9a-fA-F]{7,39}")
# A branch or a tag, as git takes it (git-check-ref-format), in plain letters.
REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./+-]{0,254}")
MAP = "model_snapshot_path_map"
# A name or a flag before what it is set to, in a word of extra_args.
NAME_BEFORE = re.compile(r"(-{0,2}[A-Za-z0-9][A-Za-z0-9_.-]*=)(.*)", re.DOTALL)
# Keys that hold one path of the host each.
PATHS = ("engine_python", "engine_binary", "tls_certificate", "tls_key")
MODELS = "`canary`, a repository id (org/name, or org/name:Q8_0 for one quantisation of several " \
    "GGUF files), or the absolute path of a model on the host"


def normalise(asked: Any, path_map: Any = None) -> Tuple[List[Request], List[Finding]]:
    """Judge ``inference_endpoints`` by itself, without a host.

    :param asked: the variable as the user wrote it.
    :param path_map: prefixes of paths, each with what it is on the host (``/ceph: /fsx``). It is
        applied once, here, to every path of an endpoint; the longest prefix that fits is taken.
    :returns: the requests that are whole enough to be looked at further, and everything that is
        wrong with the rest. Nothing is raised: bad input is what this is for.
    """
    if not isinstance(asked, (list, tuple)):
        return [], [_bad(VARIABLE, "not-a-list", _kind(asked), "a list of endpoints")]
    requests: List[Request] = []
    prefixes, findings = _prefixes(path_map)
    for index, entry in enumerate(asked):
        request, wrong = _one(index, entry, prefixes)
        findings.extend(wrong)
        if request is not None:
            requests.append(request)
    findings.extend(_clashes(requests))
    return requests, findings


def _prefixes(path_map: Any) -> Tuple[Dict[str, str], List[Finding]]:
    """The map in one spelling, and what is wrong with it."""
    if path_map is None:
        return {}, []
    if not isinstance(path_map, dict):
        return {}, [finding("path-map-not-a-mapping", MAP, _kind(path_map),
                            "a mapping of prefixes: {/ceph: /fsx}", "change " + MAP)]
    prefixes, findings = {}, []
    for prefix, place in path_map.items():
        if all(isinstance(one, str) and one.startswith("/") and one.isprintable()
               for one in (prefix, place)):
            prefixes[_plain(prefix)] = _without_end(place)
        else:
            findings.append(finding(
                "path-map-bad-prefix", MAP, "%r: %r" % (prefix, place),
                "two absolute paths, the one that is asked for and what it is on the host",
                "change it in " + MAP))
    return prefixes, findings


def _without_end(path: str) -> str:
    return path.rstrip("/") or "/"


def _plain(path: str) -> str:
    """The same absolute path without ``..``, ``.`` and slashes too many."""
    return "/" + posixpath.normpath(path).lstrip("/")


def mapped(path: str, prefixes: Dict[str, str]) -> str:
    """A path of the host for one that is asked for; what no prefix fits is as it was.

    :param prefixes: without a slash at the end. Only whole parts of a path fit, and the longest
        prefix that fits is taken, once.
    """
    plain = _plain(path) if path.startswith("/") else path
    fitting = [one for one in prefixes if plain == one or plain.startswith(one.rstrip("/") + "/")]
    if not fitting:
        return path
    prefix = max(fitting, key=len)
    found = posixpath.join(prefixes[prefix], plain[len(prefix):].lstrip("/")).rstrip("/") or "/"
    return found + ("/" if path.endswith("/") and found != "/" else "")


def _mapped_word(word: str, prefixes: Dict[str, str]) -> str:
    """A word of a command: a path, or ``name=path``, ``--flag=path``, ``--flag=name=path``."""
    named = NAME_BEFORE.fullmatch(word)
    return named[1] + _mapped_word(named[2], prefixes) if named else mapped(word, prefixes)


def _on_the_host(request: Request, prefixes: Dict[str, str]) -> None:
    """Apply the map to every path of an endpoint."""
    for key in PATHS:
        if isinstance(request[key], str):
            request[key] = mapped(request[key], prefixes)
    if request["model_kind"] == "path":
        request["model"] = mapped(request["model"], prefixes)
    if not isinstance(request["extra_args"], (list, tuple)):
        return
    request["extra_args"] = [_mapped_word(one, prefixes) if isinstance(one, str) else one
                             for one in request["extra_args"]]


def _one(index: int, entry: Any, prefixes: Dict[str, str]) -> Tuple[Any, List[Finding]]:
    where = "%s[%d]" % (VARIABLE, index)
    if not isinstance(entry, dict):
        return None, [_bad(where, "not-a-mapping", _kind(entry),
                           "a mapping with name and model")]
    name = entry.get("name")
    if isinstance(name, str) and name and name.isprintable():
        where += " (%s)" % name
    request = {key: entry.get(key, default) for key, default in DEFAULTS.items()}
    request.update(where=where, asked_model=request["model"])
    findings = _unknown_keys(where, entry) + _model(where, request)
    _on_the_host(request, prefixes)
    for check in (_name, _revision, _choices, _own_engine, _image, _port, _bind, _api_key, _tls,
                  _engine_port, _numbers, _gpus, _extra_args):
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
    if name.startswith(way_in.PREFIX):
        return [_bad(where + ".name", "bad-name", repr(name), "a name that does not begin with %s: "
                     "services of ways in are called so" % way_in.PREFIX)]
    return []


def _model(where: str, request: Request) -> List[Finding]:
    where += ".model"
    model = request["model"]
    request.update(model_kind=None, repo_id=None, quantisation=None)
    if not isinstance(model, str) or not model.strip():
        return [_bad(where, "missing-model", repr(model), MODELS)]
    if not model.isprintable():
        return [_bad(where, "model-path-unprintable", repr(model),
                     "a path without line breaks and control characters")]
    if model == "canary":
        request["model_kind"] = "canary"
    elif model.startswith("/"):
        request["model_kind"] = "path"
    elif file_address.is_one(model):
        path, why_not = file_address.path(model)
        if path is None:
            return [_bad(where, "model-file-address", "%r: %s" % (model, why_not),
                         "file:///path of a model on the host, or the path itself")]
        request.update(model_kind="path", model=path)
    else:
        return _repository(where, request, model)
    return []


def _repository(where: str, request: Request, model: str) -> List[Finding]:
    """A repository id, with the quantisation that is wanted of its GGUF files."""
    repo_id, colon, quantisation = model.partition(":")
    if not REPO_ID.fullmatch(repo_id) or repo_id.endswith(".gguf"):
        name, at, revision = repo_id.partition("@")
        return [_bad(
            where, "model-path-not-absolute", repr(model), MODELS,
            "%s: %s; revision: %s" % (where, name, revision)
            if at and REPO_ID.fullmatch(name) else
            "%s: make it absolute if it is a path. Engines take a path that does not exist for a "
            "repository id, which is what their message `Repo id must be in the form 'repo_name' "
            "or 'namespace/repo_name'` is about" % where)]
    if len(repo_id) > REPO_ID_LENGTH or "--" in repo_id or ".." in repo_id or (
            repo_id.endswith((".", "-", ".git"))):
        return [_bad(where, "bad-repo-id", repr(repo_id),
                     "at most %d characters, without -- and .., not ending in ., - or .git"
                     % REPO_ID_LENGTH)]
    if colon and not QUANTISATION.fullmatch(quantisation):
        return [_bad(where, "bad-quantisation", repr(model),
                     "after the colon the name of a quantisation, such as Q8_0 or UD-Q4_K_XL")]
    request.update(model_kind="repo", repo_id=repo_id, quantisation=quantisation or None)
    if quantisation and request["engine"] == "vllm":
        return [_bad(where, "quantisation-unused", "%r with engine vllm" % model,
                     "the id alone: a quantisation is chosen among GGUF files, which are "
                     "llama.cpp's")]
    return []


def _revision(where: str, request: Request) -> List[Finding]:
    """What of a repository: a branch, a tag or a commit. A short hash says too little."""
    revision = request["revision"]
    where += ".revision"
    if revision is None:
        return []
    if request["model_kind"] in ("canary", "path"):
        return [_bad(where, "revision-unused", repr(revision), "none: a revision belongs to a "
                     "repository id, and %s is none" % (
                         "the canary" if request["model_kind"] == "canary" else "a path"),
                     remedy="%s: leave it out" % where)]
    wanted = "a branch, a tag or a commit of 40 hexadecimal digits"
    if not isinstance(revision, str):
        return [_bad(where, "bad-revision", repr(revision) if isinstance(revision, (int, float))
                     else _kind(revision), wanted + ", in quotes: YAML reads digits as a number")]
    if COMMIT.fullmatch(revision):
        request["revision"] = revision.lower()
        return []
    if SHORT_HASH.fullmatch(revision):
        return [_bad(where, "revision-short-hash", "%r, %d of 40 hexadecimal digits"
                     % (revision, len(revision)),
                     wanted + ": hubs and their caches never complete a short hash, and say that "
                     "there is no such revision",
                     remedy="%s: give the whole hash (the repository's page has it under "
                     "History), or a branch" % where)]
    if not REVISION.fullmatch(revision) or ".." in revision or "//" in revision or (
            revision.endswith(("/", ".", ".lock"))):
        return [_bad(where, "bad-revision", repr(revision), wanted)]
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


def _image(where: str, request: Request) -> List[Finding]:
    """An image of the user's own, and the engine and version that the plan is to take it for."""
    image = request["image"]
    if image is None:
        return []
    findings = []
    found = IMAGE.fullmatch(image) if isinstance(image, str) and len(image) <= 400 else None
    if found is None or found["name"] == image:
        findings.append(_bad(where + ".image", "bad-image", repr(image),
                             "an image with its tag or its digest: name:tag or name@sha256:..."))
    for key in OWN_ENGINES:
        if request[key] is not None:
            findings.append(_bad(where, "image-and-own-engine", "image and " + key, "one of them"))
    if request["runtime"] == "native":
        findings.append(_bad(where + ".runtime", "image-without-container", "native with image",
                             "docker or auto: an image runs in a container"))
    elif request["runtime"] == "auto":
        request["runtime"] = "docker"
    for key, what in (("engine", "the engine in it"),
                      ("engine_version", "the version of that engine, which decides its flags")):
        if request[key] == "auto":
            findings.append(_bad("%s.%s" % (where, key), "image-%s" % key.replace("_", "-"),
                                 "auto with image", what))
    return findings


def _port(where: str, request: Request) -> List[Finding]:
    port = whole_number(request["port"])
    if port is None or not 1 <= port <= 65535:
        return [_bad(where + ".port", "port-out-of-range", repr(request["port"]), "1 to 65535")]
    request["port"] = port
    return []


def _bind(where: str, request: Request) -> List[Finding]:
    bind = request["bind"]
    if not way_in.wanted(bind):
        return []
    where += ".bind"
    wanted = "127.0.0.1, or the IPv4 or IPv6 address that is to be served"
    address = _address(bind)
    if address is None:
        shown = repr(bind) if isinstance(bind, str) else _kind(bind)
        return [_bad(where, "bad-bind", shown, wanted + ", such as 192.0.2.10, 0.0.0.0 or ::")]
    if address.is_loopback:
        return [_bad(where, "bind-loopback", repr(bind), "127.0.0.1: the one loopback address "
                     "that an engine listens on")]
    if not _is_served(address):
        return [_bad(where, "bad-bind", "%r, which is no address to be reached at" % bind, wanted)]
    request["bind"] = str(address)
    return []


def _address(bind: Any) -> Optional[Address]:
    try:
        # A number is an address to the library, and none to us.
        return ipaddress.ip_address(bind) if isinstance(bind, str) else None
    except ValueError:
        return None


def _is_served(address: Optional[Address]) -> bool:
    """Whether it is an address at which others reach a host."""
    return address is not None and not (
        address.is_loopback or address.is_multicast or address.is_link_local)


def _api_key(where: str, request: Request) -> List[Finding]:
    """A way in has a key and nothing else has one. What is a key, right or wrong, is not shown."""
    value = request.pop("api_key")
    where += ".api_key"
    keys = way_in.keys_of(value)
    if keys is None:
        return [_bad(where, "bad-api-key", _kind(value), "a key, or a list of keys")]
    if not way_in.wanted(request["bind"]):
        return [_bad(where, "api-key-unused", "a key",
                     "none: on loopback nobody is asked for one",
                     remedy="%s: leave it out, or set bind to the address to be served" % where)
                ] if value is not None else []
    if not keys and not _is_served(_address(request["bind"])):
        # First there must be an address that needs one.
        return []
    if not keys:
        return [_bad(where, "api-key-missing", "no key",
                     "a key, or a list of keys: on %s everyone there could use the endpoint"
                     % (request["bind"],),
                     remedy="set %s (from a vault), or leave bind out" % where)]
    return [_bad("%s[%d]" % (where, index) if isinstance(value, (list, tuple)) else where,
                 "bad-api-key", "a key that is too short, or has a blank or a special character",
                 "at least 16 printable ASCII characters without a blank")
            for index, key in enumerate(keys) if not way_in.KEY.fullmatch(key)]


def _tls(where: str, request: Request) -> List[Finding]:
    findings = []
    given = [key for key in ("tls_certificate", "tls_key") if request[key] is not None]
    for key in given:
        path = request[key]
        if not isinstance(path, str) or not path.startswith("/") or not path.isprintable():
            # Whoever takes it for the place of the key itself has put the key there.
            findings.append(_bad("%s.%s" % (where, key), "tls-path", _kind(path)
                                 + " that is no absolute path",
                                 "the absolute path of a PEM file on the host"))
        elif not way_in.wanted(request["bind"]):
            findings.append(_bad("%s.%s" % (where, key), "tls-unused", path,
                                 "none: on loopback there is no TLS",
                                 remedy="%s.%s: leave it out, or set bind to the address to be "
                                 "served" % (where, key)))
    if len(given) == 1 and way_in.wanted(request["bind"]):
        other = "tls_key" if given == ["tls_certificate"] else "tls_certificate"
        findings.append(_bad("%s.%s" % (where, other), "tls-half", "%s without %s"
                             % (given[0], other), "both, or neither (then the certificate is "
                             "made on the host and signed by itself)"))
    return findings


def _engine_port(where: str, request: Request) -> List[Finding]:
    asked = request["engine_port"]
    if asked is None:
        return []
    where += ".engine_port"
    port = whole_number(asked)
    if port is None or not 1 <= port <= 65535:
        return [_bad(where, "engine-port-out-of-range", repr(asked), "1 to 65535")]
    request["engine_port"] = port
    if not way_in.wanted(request["bind"]):
        return [_bad(where, "engine-port-unused", str(port),
                     "none: on loopback the engine listens on port itself",
                     remedy="%s: leave it out; the port is %s" % (where, request["port"]))]
    return []


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


def _clashes(requests: List[Request]) -> List[Finding]:
    findings = []
    seen: Dict[Any, str] = {}
    for request in requests:
        name = request["name"]
        if not isinstance(name, str):
            continue
        if name in seen:
            findings.append(_bad(request["where"] + ".name", "duplicate-name",
                                 "%r, as in %s" % (name, seen[name]), "a name of its own"))
        else:
            seen[name] = request["where"]
    return findings + _ports(requests)


def _ports(requests: List[Request]) -> List[Finding]:
    """No port is for two: those that clients know first, then those behind the ways in."""
    findings = []
    taken: Dict[int, str] = {}
    for request in requests:
        port = request["port"]
        if type(port) is not int:
            continue
        if port in taken:
            findings.append(_bad(request["where"] + ".port", "duplicate-port", "%r, as in %s"
                                 % (port, taken[port]), "a port of its own"))
        else:
            taken[port] = request["where"]
    for request in requests:
        port, asked = request["port"], request["engine_port"]
        if type(port) is not int or not way_in.wanted(request["bind"]) or not (
                asked is None or type(asked) is int):
            continue
        ports = way_in.inner_ports(port, asked)
        where = request["where"] + ".engine_port"
        clash = [one for one in ports if one in taken]
        if clash:
            findings.append(_bad(
                where, "duplicate-port", "%d, %s, as in %s" % (
                    clash[0], "behind the way in" if asked is None else "the engine's",
                    taken[clash[0]]),
                "a port of its own", remedy="set %s to a free port" % where))
        for one in ports:
            taken.setdefault(one, request["where"])
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
