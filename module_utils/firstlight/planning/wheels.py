# SPDX-License-Identifier: Apache-2.0
"""Prebuilt wheels: what is due in an environment, what is done about it, and why."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Collection, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from ..findings import Finding, blocking, finding, shown
from . import wheel_match, wheel_names
from .wheel_match import Candidate, Environment, Judged, matching_wheel
from .wheel_requests import wheel_requests

__all__ = ["matching_wheel", "question", "wheel_decisions", "wheel_findings", "wheel_requests",
           "wheel_texts", "wheels_due", "wheels_wanted"]

Request = Dict[str, Any]
Decision = Dict[str, Any]

NOTHING, INSTALL, BUILD, REFUSED = "nothing", "install", "build", "refused"
# What stands in the way of a file that only another torch would change.
OF_TORCH = {"torch", "cuda", "cxx11abi"}
# Each of these has a reason of its own, which its name says as well.
IN_NAME = {"version": "it is of another version", "package": "it is of another package",
           "name": "its name is none of a wheel or a source archive"}
MOST_NAMES = 3
MOST_REASONS = 12

Refusal = Tuple[str, str, str, str]
"""Id without its prefix, found, wanted, remedy."""


def wheels_due(requests: Sequence[Request],
               environments: Mapping[str, Environment]) -> List[Request]:
    """The requests whose package is not there as wanted and working.

    :param requests: as :func:`.wheel_requests.wheel_requests` gives them.
    :param environments: as ``prebuilt_wheel_info`` returns them, by the path of the interpreter.
    """
    return [request for request in requests
            if _lacking(request, environments.get(request["python"]))]


def question(request: Mapping[str, Any]) -> Dict[str, Any]:
    """What the module ``prebuilt_wheel_info`` is asked for a request, one of its ``candidates``.

    ``key`` is what the answer is found by. It is another one for other sources of the same
    package, so that an environment is given nothing from where it was not to be looked.
    """
    asked = {key: request[key] for key in ("package", "version", "sha256", "sources")}
    text = json.dumps(asked, sort_keys=True)
    return {"key": "%s %s" % (
        request["package"], hashlib.sha256(text.encode()).hexdigest()[:16]), **asked}


def _lacking(request: Request, environment: Optional[Environment]) -> str:
    """What is lacking of a package that should be there; empty where nothing is."""
    if environment is None or environment["state"] != "ok":
        return "its environment cannot be used"
    there = _installed(request, environment)
    if not there:
        return "it is not there"
    if not _is_wanted(there["version"], request):
        return "%s is there, and %s is asked for" % (
            there["version"], request["version"] or request["row"]["versions"])
    if request["sha256"] and _sha256(there) not in ("", request["sha256"]):
        return "%s is there from the file with sha256 %s, and %s is asked for" % (
            there["version"], _sha256(there), request["sha256"])
    if there["imports"]["state"] != "ok":
        return "%s is there, and cannot be imported (%s): %s" % (
            there["version"], there["imports"]["state"], _line(there["imports"]["why"]))
    if there["kernel"]["state"] not in ("ran", "skipped", "none"):
        return "%s is there, and its kernel does not run (%s): %s" % (
            there["version"], there["kernel"]["state"], _line(there["kernel"]["why"]))
    return ""


def _line(text: Any) -> str:
    """What an environment said, as a part of a sentence."""
    return shown(" ".join(str(text).split()))[:300] or "no reason was given"


def _sha256(there: Mapping[str, Any]) -> str:
    """That of the file which a package was installed from; empty where its record tells none."""
    return str(there.get("sha256") or "")


def _installed(request: Request, environment: Environment) -> Optional[Dict[str, Any]]:
    found = (environment.get("installed") or {}).get(request["package"])
    return found if isinstance(found, dict) else None


def _is_wanted(version: str, request: Request) -> bool:
    try:
        found = Version(version)
    except InvalidVersion:
        return False
    # A pre-release that somebody installed is what they wanted.
    return all(SpecifierSet(text).contains(found, prereleases=True)
               for text in (request["version"], request["row"]["versions"]))


def wheel_decisions(requests: Sequence[Request], environments: Mapping[str, Environment],
                    candidates: Mapping[str, Sequence[Candidate]], facts: Mapping[str, Any],
                    allow_build: bool = False, offline: bool = False) -> List[Decision]:
    """What is done about each request.

    :param requests: as :func:`.wheel_requests.wheel_requests` gives them.
    :param environments: as ``prebuilt_wheel_info`` returns them, by the path of the interpreter.
    :param candidates: likewise, by ``key`` of :func:`question`.
    :param facts: ``gpu_host`` of ``gpu_facts``, for hosts whose torch sees no GPU; may be empty.
    :param allow_build: ``prebuilt_wheel_source_build``.
    :param offline: whether the host has no way out.
    :returns: each ``{request, action, why, version, wheel, replaces, findings, rejected}``;
        ``action`` is ``nothing``, ``install``, ``build`` (``wheel`` is then the source archive) or
        ``refused``; ``version`` is what will be there, without a local part.
    """
    return [_decision(request, environments.get(request["python"]),
                      list(candidates.get(question(request)["key"]) or []), facts, allow_build,
                      offline)
            for request in requests]


def _decision(request: Request, environment: Optional[Environment], candidates: List[Candidate],
              facts: Mapping[str, Any], allow_build: bool, offline: bool) -> Decision:
    if environment is None or environment["state"] != "ok":
        return _refused(request, _no_environment(request, environment))
    told = _not_needed(request, environment)
    lacking = _lacking(request, environment)
    there = _installed(request, environment)
    if there and not lacking:
        return _made(request, NOTHING, _working(request, there),
                     Version(there["version"]).public, findings=[
                         *told, *_hash_not_told(request, there)])
    capabilities = _capabilities(environment, facts)
    found = wheel_match.judged(candidates, environment, request, capabilities)
    summary = wheel_match.summed_up(found, request)
    if there and _is_built_of(summary, request, there, environment):
        return _made(request, NOTHING, _working(request, there),
                     Version(there["version"]).public, findings=told)
    wrong = _untouchable(request, environment, there) or _unfit(request, environment, capabilities)
    if wrong:
        return _refused(request, wrong, told)
    if summary["wheel"]:
        action, file, how = INSTALL, summary["wheel"], "is installed, from %s" % (
            summary["wheel"].get("source") or "an unnamed source")
    elif allow_build and request["row"]["build"] and summary["sdist"]:
        action, file, how = BUILD, summary["sdist"], "is compiled, for no wheel fits"
    else:
        return _refused(request, _no_wheel(request, environment, found, allow_build, offline),
                        told, summary["rejected"])
    return _made(request, action, "%s: %s; %s %s" % (
        request["package"], lacking, file["file"], how), wheel_names.parse(file["file"]).version,
        file, there["version"] if there else "", told, summary["rejected"])


def _made(request: Request, action: str, why: str, version: str = "",
          wheel: Optional[Candidate] = None, replaces: str = "",
          findings: Sequence[Finding] = (), rejected: Sequence[Dict[str, str]] = ()) -> Decision:
    return {"request": request, "action": action, "why": why, "wheel": wheel, "version": version,
            "replaces": replaces, "findings": list(findings), "rejected": list(rejected)}


def _refused(request: Request, refusal: Refusal, told: Sequence[Finding] = (),
             rejected: Sequence[Dict[str, str]] = ()) -> Decision:
    id_, found, wanted, remedy = refusal
    return _made(request, REFUSED, "%s: %s" % (request["package"], found.splitlines()[0]),
                 findings=[*told, finding("wheel-" + id_, request["where"], found, wanted, remedy)],
                 rejected=rejected)


def _hash_not_told(request: Request, there: Mapping[str, Any]) -> List[Finding]:
    if not request["sha256"] or _sha256(there):
        return []
    return [finding(
        "wheel-hash-not-told", request["where"] + ".sha256",
        "%s %s is there, and its record does not tell from which file" % (
            request["package"], there["version"]), "the file with sha256 %s" % request["sha256"],
        "if it must be that file, take the package out (pip uninstall) and run this again",
        severity="info")]


def _is_built_of(summary: Mapping[str, Any], request: Request, there: Mapping[str, Any],
                 environment: Environment) -> bool:
    """Whether what is there may be the wheel that was compiled from the one file asked for.

    A source archive is asked for by its own hash, and the wheel that comes of it has another.
    """
    archive = summary["sdist"]
    return bool(
        request["sha256"] and archive and not summary["wheel"]
        and not _lacking({**request, "sha256": ""}, environment)
        and Version(there["version"]).public == wheel_names.parse(archive["file"]).version)


def _working(request: Request, there: Mapping[str, Any]) -> str:
    kernel = there["kernel"]
    ran = {"ran": "runs its kernel", "none": "has no kernel to try"}.get(
        kernel["state"], "its kernel was not tried: %s" % _line(kernel["why"]))
    return "%s %s is there, can be imported, and %s" % (
        request["package"], there["version"], ran)


def _not_needed(request: Request, environment: Environment) -> List[Finding]:
    beside = environment.get("beside") or {}
    return [finding(
        "wheel-not-needed", request["where"], "%s is asked for beside %s %s: %s" % (
            request["package"], row["beside"], beside[row["beside"]], row["why"]),
        "only what is needed", "take the entry out, unless something else in %s wants it"
        % request["python"], severity="info")
        for row in request["row"]["not_needed"] if beside.get(row["beside"])]


# Refusals.


def _no_environment(request: Request, environment: Optional[Environment]) -> Refusal:
    python = request["python"]
    wanted = "a Python environment whose interpreter runs"
    if environment is None or environment["state"] == "missing":
        return ("no-environment", "there is no %s" % python, wanted,
                "make the environment first, or change %s.python" % request["where"])
    return ("broken-environment", "%s does not work (%s): %s" % (
        python, environment["state"], environment["why"] or "no reason was given"), wanted,
        "mend the environment, or change %s.python" % request["where"])


def _untouchable(request: Request, environment: Environment,
                 there: Optional[Mapping[str, Any]]) -> Optional[Refusal]:
    python, package = request["python"], request["package"]
    if environment["managed"] == "distribution":
        return ("distribution", "%s belongs to the distribution (EXTERNALLY-MANAGED)" % python,
                "an environment of its own",
                "make a virtual environment, and name its interpreter in %s.python"
                % request["where"])
    if there and there.get("conda"):
        return ("conda", "%s %s in %s was installed by conda" % (
            package, there["version"], python), "a package that pip installed, or none",
            "take it out with `conda remove %s`, or mend it with conda" % package)
    if not environment["writable"]:
        return ("read-only", "%s cannot be written: %s" % (
            environment.get("platlib") or python,
            environment.get("why_not_writable") or "no reason was given"),
            "an environment that the user of this run may write",
            "run as its owner, or make an environment elsewhere")
    return None


def _unfit(request: Request, environment: Environment,
           capabilities: Collection[str]) -> Optional[Refusal]:
    found = wheel_match.unfit(environment, request["row"], capabilities)
    return (found.id, found.found, found.wanted, found.remedy) if found else None


def _capabilities(environment: Environment, facts: Mapping[str, Any]) -> List[str]:
    """Those of the GPUs as torch sees them, or else as the host has them."""
    devices = environment["torch"].get("devices") or facts.get("devices") or []
    return sorted({str(device["capability"]) for device in devices if device.get("capability")})


def _no_wheel(request: Request, environment: Environment, found: List[Judged], allow_build: bool,
              offline: bool) -> Refusal:
    package, row = request["package"], request["row"]
    wanted = "a wheel of %s%s for %s" % (
        package, " " + request["version"] if request["version"] else "", _described(environment))
    if not found:
        return ("none", "no file of %s was found%s" % (package, " in the wheelhouse, and there is "
                "no way out" if offline else " in %s" % _places(request)), wanted, _offline(
                    offline) or "add a place that has it to prebuilt_wheel_sources")
    hints = [*_of_versions(request, found), *_of_torch(request, found), *_of_python(found)]
    if any(set(one.objections) == {"sha256"} for one in found):
        hints.append("pin a file by %s.sha256" % request["where"])
    hints.append(_offline(offline) or "add a place that has one to prebuilt_wheel_sources")
    if not row["build"]:
        hints.append("it cannot be compiled by this role")
    elif not allow_build:
        hints.append("or have it compiled here, which takes up to hours: "
                     "prebuilt_wheel_source_build: true")
    elif not any(set(one.objections) == {"sdist"} for one in found):
        hints.append("there is no source archive of it either that could be compiled")
    return ("none", "none of %d files of %s fits\n%s" % (len(found), package, _grouped(found)),
            wanted, "; ".join(hints))


def _offline(offline: bool) -> str:
    return ("fill the wheelhouse with playbooks/prefetch.yml from a host that has a way out"
            if offline else "")


def _places(request: Request) -> str:
    kinds = ("index", "page", "release", "folder", "file")
    return ", ".join("%s %s" % (kind, source[kind]) for source in request["sources"]
                     for kind in kinds if kind in source) or "the wheelhouse: there are no sources"


def _described(environment: Environment) -> str:
    torch, libc = environment["torch"], environment["libc"]
    parts = ["%s%s %s" % ("free-threaded " if environment.get("free_threaded") else "",
                          {"cpython": "CPython"}.get(environment["implementation"],
                                                     environment["implementation"]),
                          environment["version"]),
             "%s with %s %s" % (environment["machine"], libc["name"], libc["version"])]
    if torch["version"]:
        parts.append("torch %s" % torch["version"])
    if torch["cuda"]:
        parts.append("CUDA %s" % torch["cuda"])
    return ", ".join(parts)


def _grouped(found: Iterable[Judged]) -> str:
    """The reasons against files that do not fit, the most frequent first, with some names each."""
    groups: Dict[str, List[str]] = {}
    for one in found:
        if one.objections:
            kind, why = next(iter(one.objections.items()))
            groups.setdefault(IN_NAME.get(kind, why), []).append(
                shown(one.candidate.get("file"))[:120])
    ordered = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    lines = ["%d: %s (%s%s)" % (
        len(files), why, ", ".join(files[:MOST_NAMES]), ", …" if len(files) > MOST_NAMES else "")
        for why, files in ordered[:MOST_REASONS]]
    if len(ordered) > MOST_REASONS:
        lines.append("%d more for %d other reasons" % (
            sum(len(files) for _, files in ordered[MOST_REASONS:]), len(ordered) - MOST_REASONS))
    return "\n".join(lines)


def _only(found: Iterable[Judged], kinds: Collection[str]) -> List[Judged]:
    """Those that nothing but these speaks against."""
    return [one for one in found
            if one.name and one.objections and set(one.objections) <= set(kinds)]


def _of_versions(request: Request, found: Iterable[Judged]) -> List[str]:
    others = _listed({one.name.version for one in _only(found, {"version"})
                      if one.name and not one.name.whole.is_prerelease
                      and wheel_match.is_sure(one, request["row"])})
    return ["ask for a version that has a wheel for this environment in %s.version: %s" % (
        request["where"], others)] if others else []


def _of_torch(request: Request, found: Iterable[Judged]) -> List[str]:
    """Which torch has wheels of it."""
    torches: Dict[str, set[str]] = {}
    for one in _only(found, OF_TORCH):
        torch = _of_which_torch(one, request["row"])
        if torch and one.name and not one.name.whole.is_prerelease and not one.name.other:
            torches.setdefault(wheel_match.dotted(one.told.cuda).partition(".")[0], set()).add(
                torch)
    if not torches:
        return []
    return ["there are wheels of it for %s: install one of these in %s" % (
        " and for ".join("torch %s%s" % (_listed(minors), " with CUDA " + cuda if cuda else "")
                         for cuda, minors in sorted(torches.items())), request["python"])]


def _of_which_torch(one: Judged, row: Mapping[str, Any]) -> str:
    """The minor of a torch that a file is for, by its name or by what its version needs."""
    if one.told.torch or one.name is None:
        return one.told.torch
    minor = re.search(r"\d+\.\d+", wheel_match.required_torch(one.name, row), re.ASCII)
    return minor.group() if minor else ""


def _of_python(found: Iterable[Judged]) -> List[str]:
    """Which interpreters have wheels of it, where only the interpreter is in the way."""
    others = sorted({re.sub("^it (is for|needs) ", "", one.objections["python"])
                     for one in _only(found, {"python"})}, key=_by_numbers)
    return ["there are wheels of it for %s" % ", ".join(others)] if others else []


def _by_numbers(text: str) -> List[Any]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text)]


def _listed(versions: Iterable[str]) -> str:
    ordered = sorted(versions, key=Version)
    # The newest are what one wants to hear of.
    return ", ".join([*(["…"] if len(ordered) > 6 else []), *ordered[-6:]])


# For plans and people.


def wheels_wanted(decisions: Iterable[Decision]) -> Dict[str, Dict[str, Dict[str, str]]]:
    """What will be in the environments, for the plans of the endpoints that run in them.

    It is the same before and after a wheel is installed, or an endpoint would be started anew for
    nothing; so the version is without its local part, and the hash the one that was asked for.

    :param decisions: as :func:`wheel_decisions` gives them.
    :returns: ``{version, sha256}`` by interpreter and package; of refused ones nothing.
    """
    wanted: Dict[str, Dict[str, Dict[str, str]]] = {}
    for one in decisions:
        if one["version"]:
            request = one["request"]
            wanted.setdefault(request["python"], {})[request["package"]] = {
                "version": one["version"], "sha256": request["sha256"]}
    return wanted


def wheel_findings(decisions: Iterable[Decision]) -> List[Finding]:
    """All findings of decisions, in their order."""
    return [dict(one) for decision in decisions for one in decision["findings"]]


def wheel_texts(decisions: Iterable[Decision]) -> str:
    """Decisions for a person to read, a line each; findings that stop the run are not repeated."""
    return "\n".join("%s: %s%s" % (
        one["request"]["python"], shown(one["why"]),
        "; %s is replaced" % shown(one["replaces"]) if one["replaces"] else "")
        + ("" if not blocking(one["findings"]) else " (refused)") for one in decisions)
