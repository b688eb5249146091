# SPDX-License-Identifier: Apache-2.0
"""Models of repositories: what of each is asked for, and what a plan is made with."""

from __future__ import annotations

from typing import Any, Collection, Dict, List, Mapping

from ..findings import Finding, blocking
from . import releases
from .releases import Target
from .requests import Request

Wanted = Dict[str, Any]
"""One of ``snapshots`` of the module ``model_snapshot``."""
Outlined = Mapping[str, Any]
"""What the module ``model_snapshot`` returned: ``snapshots`` by name, ``findings``, and in check
mode ``skipped``, the names of those that could not be looked at."""

GGUF, SAFETENSORS, PICKLE = "gguf", "safetensors", "pickle"


def snapshot_requests(requests: List[Request], facts: Dict[str, Any], catalog: Dict[str, Any],
                      allow_pickle: Collection[str] = ()) -> List[Wanted]:
    """What the module ``model_snapshot`` is asked for, one for each endpoint with a repository.

    :param requests: as :func:`.requests.normalise` gives them.
    :param facts: ``gpu_host`` of ``gpu_facts``.
    :param catalog: ``engine_releases`` and ``gpus``, by name.
    :param allow_pickle: endpoints or repositories whose weights may be pickles.
    :returns: ``{name, repo_id, revision, formats, quantisation, allow, ignore}`` each; the formats
        in the order in which they are preferred.
    """
    return [{
        "name": request["name"], "repo_id": request["repo_id"], "revision": request["revision"],
        "formats": _formats(request, facts, catalog, allow_pickle),
        "quantisation": request["quantisation"], "allow": [], "ignore": [],
    } for request in requests if request["model_kind"] == "repo"]


def _formats(request: Request, facts: Dict[str, Any], catalog: Dict[str, Any],
             allow_pickle: Collection[str]) -> List[str]:
    if request["quantisation"] or request["engine"] == "llama_cpp":
        # That is how GGUF files are told apart; nothing else is called so.
        return [GGUF]
    if request["engine"] == "vllm":
        found = [SAFETENSORS]
    elif _has_vllm(request, facts, catalog):
        found = [SAFETENSORS, GGUF]
    else:
        found = [GGUF, SAFETENSORS]
    named = request["name"] in allow_pickle or request["repo_id"] in allow_pickle
    return [*found, PICKLE] if named else found


def _has_vllm(request: Request, facts: Dict[str, Any], catalog: Dict[str, Any]) -> bool:
    """Whether a GPU of the host is one that a release of vLLM serves on."""
    if request["gpus"] == 0:
        return False
    datacenter = {row["nvml_name"]: bool(row["datacenter"]) for row in catalog["gpus"]}
    return any(releases.may_run(request, facts, row, Target(
        "gpu", device["name"] or "a GPU", device["capability"] or "",
        datacenter.get(device["name"], False)))
        for device in facts["devices"] for row in catalog["engine_releases"]
        if row["engine"] == "vllm")


def snapshot_models(requests: List[Request], snapshots: Mapping[str, Any]) -> Dict[str, Any]:
    """The models of repositories as the planner wants them.

    :param requests: as :func:`.requests.normalise` gives them.
    :param snapshots: by the endpoint's name, as ``model_snapshot`` returns them.
    :returns: models by the request's ``where``. The path is where the files are or will be, the
        fingerprint that of their content: both are the same before and after the download.
    """
    return {request["where"]: {
        **found["model"], **{key: found[key] for key in (
            "path", "fingerprint", "repo_id", "revision", "commit")}}
        for request, found in _of(requests, snapshots)}


def _of(requests: List[Request], snapshots: Mapping[str, Any]) -> Any:
    """Requests with what is known of their repositories."""
    for request in requests:
        name = request["name"]
        # A name that is wrong may be anything.
        found = snapshots.get(name) if isinstance(name, str) else None
        if request["model_kind"] == "repo" and found and found.get("model"):
            yield request, found


def snapshot_findings(requests: List[Request], outlined: Outlined) -> List[Finding]:
    """What is wrong with repositories, with the variable to change in it.

    :param requests: as :func:`.requests.normalise` gives them.
    :param outlined: what ``model_snapshot`` returned; empty where there was nothing to ask.
    """
    places: Dict[str, List[str]] = {}
    for request in requests:
        if request["model_kind"] == "repo":
            places.setdefault(request["repo_id"], []).append("%s.model" % request["where"])
    return [dict(one, subject=" and ".join(places[one["subject"]]), found=one["found"]
                 if one["subject"] in one["found"]
                 else "%s: %s" % (one["subject"], one["found"]))
            if one["subject"] in places else dict(one) for one in outlined.get("findings") or []]


def snapshot_known(requests: List[Request], outlined: Outlined) -> List[Request]:
    """The requests that can be planned for.

    Those are left out whose repository check mode could not look at, or of which it is told in
    findings that nothing can be said of it.

    :param requests: as :func:`.requests.normalise` gives them.
    :param outlined: what ``model_snapshot`` returned; empty where there was nothing to ask.
    """
    known = [request for request, _ in _of(requests, outlined.get("snapshots") or {})]
    # Without a finding that stops the run the planner says that it knows nothing.
    told = bool(blocking(outlined.get("findings") or []))
    skipped = set(outlined.get("skipped") or [])
    return [request for request in requests if request["model_kind"] != "repo"
            or any(request is one for one in known)
            or not (told or request["name"] in skipped)]


def snapshots_due(wanted: List[Wanted], outlined: Outlined, verify: str = "fast") -> List[Wanted]:
    """Those that are not there, or not verified as they should be.

    :param wanted: as :func:`snapshot_requests` gives them.
    :param outlined: what ``model_snapshot`` returned.
    :param verify: ``fast`` or ``full``.
    :returns: each with the commit that its revision was resolved to, so that a branch that moves
        meanwhile moves nothing.
    """
    due = []
    for one in wanted:
        found = (outlined.get("snapshots") or {}).get(one["name"])
        if found and not (found["present"] and found["verified"] and (
                verify != "full" or found["verified"] == "full")):
            due.append({**one, "revision": found["commit"]})
    return due


def models_allowed(requests: List[Request], names: Collection[str]) -> List[str]:
    """The models among these that are named.

    :param requests: as :func:`.requests.normalise` gives them.
    :param names: an endpoint may be named, or what it serves: as it is asked for, or as the map of
        paths has it.
    """
    # One whose model is missing is told elsewhere.
    return sorted({request["model"] for request in requests if request["model"] and any(
        request[key] in names for key in ("name", "asked_model", "model"))})
