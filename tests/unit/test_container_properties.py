# SPDX-License-Identifier: Apache-2.0
"""What holds for any host of what is decided on its containers, whatever a daemon says."""

from __future__ import annotations

import copy
import re

import container_strategies as made
import strategies
from hypothesis import given
from hypothesis import strategies as st

from ansible.module_utils.firstlight import findings
from ansible.module_utils.firstlight.host import cdi
from ansible.module_utils.firstlight.planning import (
    container_runtime,
    docker_settings,
    reload_guard,
)


def assert_whole(one):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", one["id"])
    assert all(one[key].strip() for key in ("subject", "found", "wanted", "remedy"))
    findings.text([one])


@given(made.RUNTIMES)
def test_a_host_gets_what_is_needed_or_the_reason_and_only_for_containers(asked):
    plans, _, seen, _, _ = asked
    decided = container_runtime.container_runtime(*asked)
    steps = [decided[key] for key in ("install", "start", "toolkit", "needs", "generate", "act")]
    for one in decided["refusals"]:
        assert_whole(one)
        assert one["severity"] in findings.BLOCKING
    if decided["refusals"] or not any(plan["runtime"] == "docker" for plan in plans):
        assert not any(steps)
        return
    # Nothing that takes root is asked of somebody else, and no engine of two.
    assert seen["root"] or not (decided["install"] or decided["start"] or decided["generate"])
    assert not decided["install"] or seen["state"] == "absent"
    gpus = {uuid for plan in plans if plan["runtime"] == "docker" for uuid in plan["gpus"]}
    assert (decided["gpu"] == "none") == (not gpus or (seen["state"] != "running"
                                                       and asked[1]["class"] != "jetson"))


@given(made.RUNTIMES)
def test_what_was_done_leaves_nothing_to_do(asked):
    plans, facts, seen, packages, consent = asked
    decided = container_runtime.container_runtime(*asked)
    if decided["refusals"] or decided["install"] or decided["start"]:
        return
    after = copy.deepcopy(seen)
    after["changes"] = []
    if decided["toolkit"]:
        after["nvidia"].update(ctk="/usr/bin/nvidia-ctk", runtime="/usr/bin/runtime")
    if "features" in decided["needs"]:
        after["engine"]["cdi"] = True
    if "runtimes" in decided["needs"]:
        after["engine"]["nvidia_runtime"] = True
    if decided["generate"]:
        after["nvidia"]["devices"] = {
            uuid: {"file": "f", "gone": [], "nodes": [node] if node else []}
            for uuid in made.UUIDS for node in [after["nvidia"]["nodes"].get(uuid)]}
    again = container_runtime.container_runtime(plans, facts, after, packages, consent)
    assert again["refusals"] == []
    assert again["gpu"] == decided["gpu"]
    assert not any(again[key] for key in ("install", "start", "toolkit", "generate"))
    # The toolkit may have brought the runtime that is registered only then.
    assert not again["act"] or (decided["toolkit"] and list(again["needs"]) == ["runtimes"])


@given(made.SETTINGS, made.SETTINGS, made.SETTINGS, strategies.HOSTILE)
def test_settings_hold_afterwards_and_what_others_have_stays(now, needs, defaults, driver):
    wanted = docker_settings.changes(now, needs, defaults, driver, [])
    merged = docker_settings.merge(now, wanted)
    for key, value in needs.items():
        if isinstance(value, dict):
            assert all((merged.get(key) or {})[inner] == one for inner, one in value.items()
                       if one is not None)
        elif value is not None:
            assert merged[key] == value
    changed = {one.key for one in wanted}
    for key, value in now.items():
        if isinstance(value, dict):
            assert key in changed or all(merged[key][inner] == one for inner, one in value.items()
                                         if "%s.%s" % (key, inner) not in changed)
        elif value is not None:  # null says nothing
            assert key in changed or merged[key] == value
    # A default never changes what is there, and what holds is not changed again.
    assert all(one.needed or one.before is None for one in wanted)
    assert [one for one in docker_settings.changes(merged, needs, defaults, driver, [])
            if one.needed] == []


@given(made.SETTINGS, made.SETTINGS, made.daemons(), st.booleans())
def test_what_runs_is_stopped_with_consent_alone(needs, defaults, daemon, consent):
    wanted = docker_settings.changes({}, needs, defaults, "", daemon["words"])
    decided = docker_settings.decide(wanted, daemon, consent)
    for one in decided.refusals:
        assert_whole(one)
    if decided.how == "restart":
        assert daemon["unit"]
        assert consent or not daemon["running"] or daemon["engine"]["live_restore"]
    assert bool(decided.how) == bool(decided.changes)
    # All that is wanted is done, refused, or said to be left; a need is never left in silence.
    if not decided.refusals:
        assert [one for one in wanted if one.needed] == [
            one for one in decided.changes if one.needed]
        assert len(decided.changes) == len(wanted) or decided.postponed


@given(made.CONTAINERS, made.DRIVERS, st.booleans())
def test_no_container_of_others_loses_its_gpu_without_consent(containers, driver, consent):
    told = reload_guard.guard(containers, driver, consent)
    losing = reload_guard.threatened(containers, driver)
    foreign = [one for one in losing if not reload_guard.is_ours(one)]
    for one in told["findings"] + reload_guard.lost(containers):
        assert_whole(one)
    if foreign and not consent:
        assert told["decision"] == "postpone"
        assert findings.blocking(told["findings"]) == told["findings"] != []
    else:
        assert sorted(told["repair"]) == sorted(one["name"] for one in losing)
        assert findings.blocking(told["findings"]) == []
    assert told["decision"] != "go" or not losing


@given(st.text(st.sampled_from("kindameph:/-\n \"'{}[]0"), max_size=80) | strategies.HOSTILE
       | strategies.JSON.map(str))
def test_a_device_file_may_hold_anything(text):
    found = cdi.parsed(text)
    assert found is None or (isinstance(found.kind, str) and all(found.devices))
