# SPDX-License-Identifier: Apache-2.0
"""Whether there is anything to do on a host: what is there, held against what the roles decided.

Each part is judged by what decides in its role too, so that both always say the same. What is not
known counts as something to do: then the roles look for themselves.
"""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, Mapping, Optional

from ..findings import shown

Seen = Mapping[str, Any]
Work = List[Dict[str, str]]

TOOLBELT = "toolbelt"
"""The environment without which our modules cannot do all."""


def work_due(decided: Mapping[str, Any], seen: Seen) -> Work:
    """What there is to do on a host, by the role that does it.

    :param decided: what filters of the roles made of ``seen``, ``None`` for what nobody could
        decide: ``remedies`` of ``host_tuning``, ``repositories`` and ``wheels`` that are not there
        as wanted, subjects of ``refusals``, ``containers`` (``{decision, missing, way}``, empty
        where no plan has one), ``switches``.
    :param seen: what ``host_state_info`` returned.
    :returns: ``{stage, why}`` each; none where the host is as its plan wants it.
    """
    return [
        *work_seen(seen),
        *_due("host_tuning", "%s would help", decided["remedies"]),
        *_due("model_snapshot", "the model of %s is not there, verified", decided["repositories"]),
        *_due("prebuilt_wheel", "a wheel is not there as wanted, or does not work, in %s",
              decided["wheels"]),
        *_due("deployment_plan", "%s is refused", decided["refusals"]),
        *_due("container_runtime", "%s", _containers(decided["containers"], seen)),
        *_due("inference_endpoint", "%s is not as its plan wants it", decided["switches"]),
    ]


def work_seen(seen: Seen) -> Work:
    """As much of it as shows before anything is decided.

    :param seen: what ``host_state_info`` returned.
    """
    return [
        *_due("linker_cache", "%s", _library_path(seen)),
        *_due("toolbelt", "%s", _toolbelt(seen)),
        *_half_done(seen),
    ]


def _due(stage: str, words: str, whose: Optional[Iterable[Any]]) -> Work:
    if whose is None:
        return [{"stage": stage, "why": "nobody could look yet"}]
    return [{"stage": stage, "why": words % (one,)} for one in whose]


def _unread(key: str, seen: Seen) -> List[str]:
    return ["it cannot be read: %s" % seen["unread"].get(key, "unknown")]


def _half_done(seen: Seen) -> Work:
    if seen["half_done"] is None:
        return _due("host_state", "what was left half done: %s", _unread("half_done", seen))
    # Those of endpoints are a part of their state.
    return [{"stage": name, "why": "a change was ended in the middle, or is under way"}
            for name in seen["half_done"] if not name.startswith("endpoint-")]


def _library_path(seen: Seen) -> List[str]:
    told = seen["library_path"]
    if told is None:
        return _unread("library_path", seen)
    if told["changed"] or "linker_cache" in told["remedies"]:
        return told["reasons"] or told["actions"] or ["something is to be mended"]
    return []


def _toolbelt(seen: Seen) -> List[str]:
    if seen["environments"] is None:
        return _unread("environments", seen)
    steps = seen["environments"].get(TOOLBELT)
    if steps is None:
        return ["nobody could look yet"]
    found = ["its environment is not as its lock wants it"] if steps else []
    if not seen["endpoints"]["python"]["venv"]:
        found.append("Python cannot make virtual environments")
    return found


def _containers(judged: Optional[Mapping[str, Any]], seen: Seen) -> Optional[List[str]]:
    if judged is None:
        return _unread("containers", seen) if "containers" in seen["unread"] else None
    if not judged:
        return []
    decision, way = judged["decision"], judged["way"]
    found = ["%s is refused" % one["subject"] for one in decision["refusals"] + way["refusals"]]
    if any(decision[key] for key in ("install", "start", "toolkit", "act", "generate")):
        found += decision["reasons"] or ["the engine is not set as wanted"]
    found += ["%s is not there" % one for one in judged["missing"]]
    if way["needs"]:
        found.append("the engine lacks settings that a pull needs")
    return found + ["%s lost its GPUs" % one["subject"]
                    for one in (seen["containers"] or {}).get("lost", [])]


def work_text(work: Work) -> str:
    """A line for each thing that there is to do.

    :param work: of :func:`work_due`.
    """
    return "\n".join(shown("%s: %s." % (one["stage"], one["why"].rstrip("."))) for one in work)
