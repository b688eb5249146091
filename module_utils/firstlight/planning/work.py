# SPDX-License-Identifier: Apache-2.0
"""Whether there is anything to do on a host: what is there, held against what the roles decided.

Each part is judged by what decides in its role too, so that both always say the same. What is not
known counts as something to do: then the roles look for themselves.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping

from ..findings import shown

Seen = Mapping[str, Any]
Work = List[Dict[str, str]]

TOOLBELT = "toolbelt"
"""The environment without which our modules cannot do all."""

def work_due(decided: Mapping[str, Any], seen: Seen) -> Work:
    """What there is to do on a host, by the role that does it.

    :param decided: what filters of the roles made of ``seen``: ``remedies`` (of ``host_tuning``),
        ``network`` (of ``network_question``), ``refusals`` of the plan, ``switches``
        (of ``endpoints_to_switch``). A key that is missing was not decided.
    :param seen: what ``host_state_info`` returned.
    :returns: ``{stage, why}`` each; none where the host is as its plan wants it.
    """
    found: Work = []

    def due(stage: str, *reasons: str) -> None:
        found.extend({"stage": stage, "why": one} for one in reasons if one)

    due("linker_cache", *_library_path(seen))
    due("network_access", _network(decided.get("network"), seen))
    due("toolbelt", *_toolbelt(seen))
    due("host_tuning", *("%s would help" % one for one in _known(decided, "remedies")))
    due("deployment_plan", *("%s is refused" % one for one in _known(decided, "refusals")))
    due("inference_endpoint", *("%s is not as it should be" % one
                                for one in _known(decided, "switches")))
    for name in seen["half_done"]:
        # Those of endpoints are a part of their state.
        if not name.startswith("endpoint-"):
            due(name, "a change was ended in the middle, or is under way")
    return found


def _known(decided: Mapping[str, Any], key: str) -> List[str]:
    value = decided.get(key)
    return ["something unknown"] if value is None else [str(one) for one in value]


def _library_path(seen: Seen) -> List[str]:
    told = seen["library_path"]
    if told is None:
        return ["it cannot be read: %s" % seen["unread"].get("library_path", "unknown")]
    if told["changed"] or told["actions"]:
        return told["reasons"] or told["actions"] or ["something is to be mended"]
    return ["something is to be mended"] if "linker_cache" in told["remedies"] else []


def _network(question: Any, seen: Seen) -> str:
    if question is None:
        return "it was not asked for a way out"
    if question["findings"]:
        return "what is asked for is wrong"
    if question["asked"]:
        return "another way out than the usual one is asked for"
    return "an earlier run set a way out" if seen["endpoints"]["network"] else ""


def _toolbelt(seen: Seen) -> List[str]:
    steps = seen["environments"].get(TOOLBELT)
    if steps is None:
        return ["nobody looked at it"]
    found = ["it is not as its lock wants it: %s" % ", ".join(steps)] if steps else []
    if not seen["endpoints"]["python"]["venv"]:
        found.append("Python cannot make virtual environments")
    return found


def work_text(work: Work) -> str:
    """A line for each thing that there is to do.

    :param work: of :func:`work_due`.
    """
    return "\n".join(shown("%s: %s." % (one["stage"], one["why"])) for one in work)
