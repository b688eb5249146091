# SPDX-License-Identifier: Apache-2.0
"""A host on which there is something to do is never taken for one on which there is nothing."""

from __future__ import annotations

import copy

import pytest

from ansible.module_utils.firstlight.findings import finding
from ansible.module_utils.firstlight.planning import work

SEEN = {
    "endpoints": {"python": {"version": "3.11.2", "venv": True}, "network": False},
    "models": {"models": {}, "findings": []},
    "library_path": {"changed": False, "actions": [], "reasons": [], "remedies": [],
                     "findings": []},
    "environments": {"toolbelt": []}, "containers": None, "half_done": [], "unread": {},
}
"""A host that is as it should be."""
DECIDED = {"remedies": [], "repositories": [], "wheels": [], "refusals": [], "containers": {},
           "switches": []}
JUDGED = {"decision": {"wanted": True, "install": [], "start": "", "toolkit": "", "gpu": "none",
                       "needs": {}, "act": False, "generate": "", "reasons": [], "refusals": []},
          "missing": [], "way": {"needs": {}, "warnings": [], "refusals": []}}
WRONG = finding("docker-absent", "dockerd", "there is none", "a Docker engine", "install one")


def put(where, path, value):
    """A copy with one value changed."""
    where = copy.deepcopy(where)
    inner = where
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return where


@pytest.mark.parametrize("decided", [DECIDED, {**DECIDED, "containers": JUDGED}])
def test_on_a_host_that_is_as_it_should_be_there_is_nothing_to_do(decided):
    assert work.work_due(decided, SEEN) == []
    assert work.work_seen(SEEN) == []
    assert work.work_text([]) == ""


def test_findings_for_a_person_are_no_work():
    told = dict(SEEN["library_path"], findings=[WRONG])
    assert work.work_due(DECIDED, {**SEEN, "library_path": told}) == []
    warned = put(JUDGED, ["way", "warnings"], [WRONG])
    assert work.work_due({**DECIDED, "containers": warned}, SEEN) == []


def test_a_changed_endpoint_that_is_half_done_is_the_endpoints_own():
    assert work.work_due(DECIDED, {**SEEN, "half_done": ["endpoint-gone"]}) == []


@pytest.mark.parametrize(("path", "value", "stage", "why"), [
    (["library_path"], None, "linker_cache", "cannot be read: unknown"),
    (["library_path", "changed"], True, "linker_cache", "something is to be mended"),
    (["library_path", "remedies"], ["linker_cache"], "linker_cache", "something is to be mended"),
    (["environments", "toolbelt"], ["place", "mark"], "toolbelt", "not as its lock wants it"),
    (["environments"], {}, "toolbelt", "nobody could look"),
    (["endpoints", "python", "venv"], False, "toolbelt", "cannot make virtual environments"),
    (["half_done"], ["linker_cache"], "linker_cache", "ended in the middle"),
    (["half_done"], ["network"], "network", "ended in the middle"),
    (["half_done"], None, "host_state", "what was left half done: it cannot be read: unknown"),
    (["environments"], None, "toolbelt", "cannot be read: unknown"),
])
def test_what_shows_by_the_host_alone(path, value, stage, why):
    seen = put(SEEN, path, value)
    [one] = work.work_seen(seen)
    assert one["stage"] == stage
    assert why in one["why"]
    assert work.work_due(DECIDED, seen) == [one]
    assert work.work_text([one]) == "%s: %s." % (stage, one["why"])


def test_a_library_path_is_told_with_its_reasons():
    told = {"changed": True, "remedies": [], "actions": ["link a -> b"], "reasons": ["a is gone"]}
    assert work.work_seen({**SEEN, "library_path": told}) == [
        {"stage": "linker_cache", "why": "a is gone"}]
    assert work.work_seen({**SEEN, "library_path": dict(told, reasons=[])}) == [
        {"stage": "linker_cache", "why": "link a -> b"}]
    unread = {**SEEN, "library_path": None, "unread": {"library_path": "/etc: Permission denied"}}
    assert work.work_seen(unread) == [
        {"stage": "linker_cache", "why": "it cannot be read: /etc: Permission denied"}]


@pytest.mark.parametrize(("key", "value", "stage", "why"), [
    ("remedies", ["persistence"], "host_tuning", "persistence would help"),
    ("repositories", ["chat"], "model_snapshot", "the model of chat is not there"),
    ("wheels", ["/opt/vllm/bin/python"], "prebuilt_wheel", "in /opt/vllm/bin/python"),
    ("refusals", ["endpoint chat"], "deployment_plan", "endpoint chat is refused"),
    ("switches", ["chat"], "inference_endpoint", "chat is not as its plan wants it"),
])
def test_what_was_decided(key, value, stage, why):
    [one] = work.work_due({**DECIDED, key: value}, SEEN)
    assert one["stage"] == stage
    assert why in one["why"]


@pytest.mark.parametrize("key", sorted(DECIDED))
def test_what_nobody_could_decide_is_work(key):
    [one] = work.work_due({**DECIDED, key: None}, SEEN)
    assert one["why"] == "nobody could look yet"


def test_what_could_not_be_read_is_told_with_its_reason():
    denied = "/state: Permission denied"
    for key, stage in (("half_done", "host_state"), ("environments", "toolbelt")):
        [one] = work.work_seen({**SEEN, key: None, "unread": {key: denied}})
        assert (one["stage"], one["why"].rpartition("read: ")[2]) == (stage, denied)
    seen = {**SEEN, "unread": {"containers": "Docker's settings are refused"}}
    [one] = work.work_due({**DECIDED, "containers": None}, seen)
    assert one == {"stage": "container_runtime",
                   "why": "it cannot be read: Docker's settings are refused"}
    # Where no plan has one, nobody asks.
    assert work.work_due(DECIDED, seen) == []


@pytest.mark.parametrize(("path", "value", "why"), [
    (["decision", "install"], ["docker.io"], "the engine is not set as wanted"),
    (["decision", "start"], "docker.service", "the engine is not set as wanted"),
    (["decision", "toolkit"], "nvidia-container-toolkit", "the engine is not set as wanted"),
    (["decision", "act"], True, "the engine is not set as wanted"),
    (["decision", "generate"], "refresh", "the engine is not set as wanted"),
    (["decision", "refusals"], [WRONG], "dockerd is refused"),
    (["missing"], ["example.org/engine:1"], "example.org/engine:1 is not there"),
    (["way", "needs"], {"proxies": {"http-proxy": "http://p"}}, "settings that a pull needs"),
    (["way", "refusals"], [WRONG], "dockerd is refused"),
])
def test_what_containers_lack(path, value, why):
    [one] = work.work_due({**DECIDED, "containers": put(JUDGED, path, value)}, SEEN)
    assert one["stage"] == "container_runtime"
    assert why in one["why"]


def test_a_container_that_lost_its_gpus_is_work():
    lost = finding("container-lost-gpu", "container c", "NVML fails", "GPUs", "start it again")
    [one] = work.work_due({**DECIDED, "containers": JUDGED},
                          {**SEEN, "containers": {"lost": [lost]}})
    assert one == {"stage": "container_runtime", "why": "container c lost its GPUs"}
    # Where no plan is for a container, nobody starts it again.
    assert work.work_due(DECIDED, {**SEEN, "containers": {"lost": [lost]}}) == []


def test_the_reasons_of_a_role_are_told():
    judged = put(put(JUDGED, ["decision", "act"], True), ["decision", "reasons"], ["CDI is off."])
    [one] = work.work_due({**DECIDED, "containers": judged}, SEEN)
    assert work.work_text([one]) == "container_runtime: CDI is off."


def test_what_a_host_says_is_shown_on_its_line():
    told = {"changed": True, "remedies": [], "actions": ["x\nTASK [evil]"], "reasons": []}
    assert "\n" not in work.work_text(work.work_seen({**SEEN, "library_path": told}))
