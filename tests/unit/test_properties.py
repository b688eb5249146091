# SPDX-License-Identifier: Apache-2.0
"""What holds for any input of the code that decides, and of the code that reads others' words."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import shlex
import socket
import struct
import tempfile
import threading
import tracemalloc

import container_strategies
import facts as made
import firstlight
import fleets
import gguf
import library_seen
import numpy as np
import planner
import profile_strategies
import pytest
import strategies
import supervised
import wheel_cases
import wheel_fleets
import wheel_strategies
import work_strategies
from fake_engine import CONTEXT, MODEL, ORACLE, serving
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ansible.module_utils.firstlight import (
    findings,
    http_client,
    model_files,
    model_report,
    passport,
    paths,
    processes,
    smoke,
)
from ansible.module_utils.firstlight import library_path as looking
from ansible.module_utils.firstlight.planning import (
    command,
    container,
    health,
    judge,
    keep,
    kv,
    library_path,
    library_repair,
    memory,
    network,
    plan,
    prefetch,
    proof,
    requests,
    wheel_builds,
    wheel_fleet,
)
from ansible.module_utils.firstlight.planning.command import engine_command
from ansible.module_utils.firstlight.planning.start_budget import FLOOR_SECONDS

FILTERS = firstlight.FilterModule().filters()
FINDING_KEYS = set(findings.finding("id", "", "", "", ""))


def assert_whole(one):
    """A finding of the contract's shape that tells a person something and obeys no terminal."""
    assert set(one) == FINDING_KEYS
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", one["id"])
    assert one["severity"] in findings.SEVERITIES
    for key in ("subject", "found", "wanted", "remedy"):
        assert one[key].strip(), key
    assert isinstance(one["needs_root"], bool)


# Filters: the same input gives the same output, and stays as it is.

SITUATIONS = strategies.roomy() | strategies.on_gpus()
PLANNED = SITUATIONS.map(
    lambda situation: plan.deployment_plan(*situation)["endpoints"]).filter(bool)
CONTAINED = PLANNED.map(lambda plans: dict(plans[0], runtime="docker", image="example.org/a:1"))
ENGINES = st.fixed_dictionaries({}, optional={
    "cdi_devices": st.none() | st.just(["nvidia.com/gpu=all"]), "nvidia_runtime": st.booleans(),
    "jetson": st.booleans(), "nofile_max": st.none() | st.integers(0, 2**30),
    "memlock_unlimited": st.booleans(), "device_nodes": st.just({})})
SPECS = st.tuples(CONTAINED, ENGINES).map(
    lambda both: container.container_spec(both[0], planner.ROOT, both[1]))
CONTAINERS = st.fixed_dictionaries({"containers": st.lists(st.fixed_dictionaries({
    "name": strategies.NAMES, "endpoint": st.none() | strategies.NAMES,
    "root": st.none() | strategies.ROOTS}), max_size=2)})
WHEEL_REQUESTS = wheel_fleets.fleets().map(
    lambda fleet: [one for about in fleet.values() for one in about["requests"]])
WHEEL_PLANS = wheel_fleets.fleets().map(
    lambda fleet: wheel_fleets.carried_out(fleet, "", wheel_fleets.FILES)[2])
ARGUMENTS = {
    "benchmark_table": st.tuples(strategies.MEASURED),
    "blocking_findings": st.tuples(st.lists(strategies.FINDINGS, max_size=4)),
    "canaries_needed": SITUATIONS.map(lambda situation: (
        plan.deployment_plan(*situation)["endpoints"], situation[1], situation[3])),
    "canary_key": SITUATIONS.flatmap(lambda situation: st.tuples(
        st.sampled_from(plan.deployment_plan(*situation)["endpoints"] or [None]),
        st.just(situation[1]))).filter(lambda given_: given_[0]),
    "canary_trials": PLANNED.flatmap(lambda plans: st.tuples(
        st.sampled_from([{}, {plans[0]["name"]: plans[-1]}]), st.just(plans),
        strategies.hosts(), st.just({one["hash"]: "text" for one in plans}))),
    "canary_plan": PLANNED.map(lambda plans: (plans[0], planner.ROOT)),
    "container_images": st.tuples(container_strategies.PLANS,
                                  *[container_strategies.PATHS] * 2),
    "container_runtime_plan": container_strategies.RUNTIMES,
    "container_spec": st.tuples(CONTAINED, st.just(planner.ROOT), ENGINES),
    "containers_to_make": st.tuples(st.lists(SPECS, max_size=2), CONTAINERS),
    "deployment_plan": strategies.situations(),
    "diagnosis_text": strategies.log_readings().flatmap(lambda told: st.tuples(
        st.just(told), st.dictionaries(st.just(told["name"]), strategies.SERVED, max_size=1),
        st.just(strategies.CHANGES))),
    "doctor_reports": strategies.FLEETS.flatmap(lambda fleet: st.tuples(
        st.just(fleet), st.lists(st.sampled_from(["new", *fleet]), unique=True))),
    "doctor_summary": st.tuples(strategies.FLEETS),
    "doctor_table": st.tuples(strategies.FLEETS),
    "endpoint_findings": st.tuples(
        strategies.ASKED.map(lambda asked: requests.normalise(asked)[0]), strategies.STATES,
        st.fixed_dictionaries({"findings": strategies.MODEL_FINDINGS})),
    "endpoint_keys": st.tuples(strategies.ASKED),
    "endpoint_ports": st.tuples(strategies.ASKED.map(lambda asked: requests.normalise(asked)[0])),
    "endpoint_requests": st.tuples(strategies.ASKED, strategies.PATH_MAPS),
    "endpoint_wheels": st.tuples(
        strategies.ASKED.map(lambda asked: requests.normalise(asked)[0]), st.dictionaries(
            st.sampled_from([wheel_fleets.PYTHON, "/opt/python"]), st.just(
                {"tiny-kernel": {"version": "1.1", "sha256": ""}}), max_size=2)),
    "endpoints_to_switch": st.tuples(PLANNED, strategies.STATES).map(lambda both: (
        *both, {one["hash"]: "text" for one in both[0]}, {})),
    "engine_command": PLANNED.map(lambda plans: (plans[0],)),
    "findings_text": st.tuples(st.lists(strategies.FINDINGS, max_size=4)),
    "foreign_containers": st.tuples(st.lists(SPECS, max_size=2), CONTAINERS),
    "healing": PLANNED.flatmap(lambda plans: st.tuples(
        st.lists(strategies.attempts(plans), max_size=3), st.just(plans),
        st.just(strategies.CHANGES))),
    "health_with_checks": st.tuples(strategies.REPORTS, strategies.LIBRARY_CHECKS),
    "host_health": st.tuples(strategies.hosts(), st.just(strategies.HEALTH_CATALOG)),
    "image_findings": container_strategies.REFUSED,
    "images_way": container_strategies.WAYS,
    "matching_wheel": st.tuples(
        wheel_cases.LISTED, wheel_cases.WHERE, wheel_cases.REQUESTS,
        st.lists(wheel_strategies.CAPABILITIES, max_size=2)),
    "models_allowed": st.tuples(
        strategies.ASKED.map(lambda asked: requests.normalise(asked)[0]),
        st.lists(st.sampled_from(["chat", "/srv/models/m.gguf", "org/name"]), max_size=2)),
    "network_question": st.tuples(
        st.dictionaries(st.sampled_from(sorted(network.OPTIONS)), strategies.JSON, max_size=4),
        st.just([{"host": "hub.example.org", "kind": "modelscope", "trusted": True,
                  "xet": False}])),
    "plan_profile": st.tuples(strategies.PROFILES, st.just(strategies.HEALTH_CATALOG),
                              st.none() | strategies.ASKED),
    "plan_table": strategies.situations().map(
        lambda situation: (plan.deployment_plan(*situation), situation[1])),
    "prefetch_outline": fleets.fleets().filter(bool).flatmap(lambda fleet: st.tuples(
        st.just(fleet), st.just(prefetch.prefetch_seeds(fleet)), st.just({}),
        st.sampled_from(sorted(fleet)))),
    "prefetch_peers": fleets.fleets().map(lambda fleet: (
        [one for copies in prefetch.prefetch_round(fleet)["copies"].values() for one in copies],
        dict.fromkeys(fleet, "http://192.0.2.7:8473"), "secret")),
    "prefetch_round": st.tuples(fleets.fleets(), st.sampled_from(["", "localhost"]),
                                st.sampled_from(["fast", "full"])),
    "prefetch_seeds": st.tuples(fleets.fleets(), st.sampled_from(["", "localhost"]),
                                st.booleans()),
    "prefetch_text": st.tuples(fleets.fleets(), st.sampled_from(["", "localhost"]),
                               st.sampled_from(["fast", "full"])),
    "profile_files": st.tuples(profile_strategies.PROFILES),
    "profile_plan": PLANNED.flatmap(lambda plans: st.tuples(
        st.sampled_from(plans), st.just(planner.ROOT), st.just(profile_strategies.DIALECTS),
        profile_strategies.SETTINGS)),
    "profile_table": st.tuples(profile_strategies.PROFILE),
    "profile_texts": st.tuples(profile_strategies.PROFILES),
    "repair_table": st.tuples(strategies.REPORTS, strategies.REPORTS),
    "select_devices": strategies.hosts().flatmap(lambda facts: st.tuples(
        st.just(facts), strategies.WANTED,
        st.just(health.host_health(facts, strategies.HEALTH_CATALOG)), strategies.HELD)),
    "smoke_requests": st.tuples(PLANNED, st.just("/root"), st.fixed_dictionaries({}, optional={
        "streams": st.integers(1, 9), "floors": st.dictionaries(
            strategies.NAMES, st.dictionaries(st.sampled_from(proof.FLOORS), st.floats(
                0.1, 9)))})),
    "snapshot_findings": strategies.REPOSITORIES.map(lambda both: (both[0], both[2])),
    "snapshot_known": strategies.REPOSITORIES.map(lambda both: (both[0], both[2])),
    "snapshot_models": strategies.REPOSITORIES.map(
        lambda both: (both[0], both[2].get("snapshots", {}))),
    "snapshot_requests": st.tuples(
        strategies.REPOSITORIES.map(lambda both: both[0]), strategies.FACTS,
        st.just(planner.catalog()), st.lists(strategies.NAMES, max_size=2)),
    "snapshots_due": strategies.REPOSITORIES.flatmap(lambda both: st.tuples(
        st.just(both[1]), st.just(both[2]), st.sampled_from(["fast", "full"]))),
    "snapshots_text": fleets.fleets().map(lambda fleet: (
        [one for about in fleet.values() for one in about["snapshots"].values()],)),
    "supervisor_command": st.tuples(strategies.WORDS),
    "systemd_command": st.tuples(strategies.WORDS),
    "toolkit_findings": st.tuples(strategies.HOSTILE),
    "tuning_plan": strategies.TUNINGS,
    "way_in_service": st.tuples(
        st.builds(supervised.way_in_plan, strategies.PORTS, strategies.PORTS,
                  st.sampled_from(["0.0.0.0", "::", "192.0.2.10", "2001:db8::1"]),
                  engine=st.sampled_from(["llama_cpp", "vllm"]))
        | PLANNED.map(lambda plans: plans[0]),
        st.just(supervised.WAY_IN_PATHS), strategies.GOOD_ROOTS,
        st.sampled_from(["systemd", "supervisor"]), st.sampled_from([0, 1000])),
    "way_in_wanted": st.tuples(
        st.just({"plan": {"bind": "192.0.2.10"}}), strategies.HOSTILE, strategies.HOSTILE,
        st.lists(strategies.HOSTILE, max_size=3)),
    "wheel_build_decisions": wheel_fleets.to_build(),
    "wheel_decisions": wheel_cases.TO_DECIDE,
    "wheel_environments": st.tuples(WHEEL_REQUESTS),
    "wheel_findings": wheel_cases.DECISIONS,
    "wheel_fleet_asked": st.tuples(wheel_fleets.fleets(), st.sampled_from(["", "localhost"])),
    "wheel_fleet_came": WHEEL_PLANS.flatmap(lambda plan: st.tuples(
        st.just(plan), st.sampled_from(["h0", "localhost", ""]), st.lists(st.sampled_from(
            [{"changed": True}, {"failed": True, "msg": "no space"}]), max_size=4))),
    "wheel_fleet_plan": wheel_fleets.fleets().flatmap(lambda fleet: st.tuples(
        st.just(fleet), st.just(wheel_fleet.wheel_fleet_asked(fleet)),
        st.sampled_from([{}, wheel_fleets.answer(*wheel_fleets.FILES)]))),
    "wheel_fleet_text": st.tuples(WHEEL_PLANS, st.sampled_from(["h0", "localhost", ""])),
    "wheel_requests": wheel_cases.TO_JUDGE,
    "wheel_texts": wheel_cases.DECISIONS,
    "wheels_due": wheel_cases.ASKED,
    "wheels_sought": st.tuples(WHEEL_REQUESTS),
    "wheels_there": wheel_cases.ASKED,
    "wheels_wanted": wheel_cases.DECISIONS,
    "work_due": st.tuples(work_strategies.DECIDED, work_strategies.SEEN),
    "work_seen": st.tuples(work_strategies.SEEN),
    "work_text": st.tuples(work_strategies.WORK),
}


def test_every_filter_is_tried_with_inputs_of_its_own():
    assert set(ARGUMENTS) == set(FILTERS)


@pytest.mark.parametrize("name", sorted(FILTERS))
@given(data=st.data())
def test_a_filter_is_pure(name, data):
    arguments = data.draw(ARGUMENTS[name])
    # As text: a NaN does not equal itself, and a truth value equals a number.
    before = repr(arguments)
    first = FILTERS[name](*arguments)
    json.dumps(first)
    assert repr(FILTERS[name](*copy.deepcopy(arguments))) == repr(first)
    assert repr(arguments) == before


# Repositories: each is asked for as its endpoint is, and nothing is told of another one.


@given(strategies.REPOSITORIES, strategies.FACTS)
def test_a_repository_is_wanted_in_a_format_that_its_engine_reads(asked, facts):
    taken, _, outlined = asked
    wanted = FILTERS["snapshot_requests"](taken, facts, planner.catalog())
    repositories = [one for one in taken if one["model_kind"] == "repo"]
    assert [(one["name"], one["repo_id"]) for one in wanted] == [
        (one["name"], one["repo_id"]) for one in repositories]
    for one, of in zip(wanted, repositories):
        assert one["formats"]
        assert "pickle" not in one["formats"]
        assert (of["engine"], one["formats"][0]) not in [
            ("vllm", "gguf"), ("llama_cpp", "safetensors")]
    known = FILTERS["snapshot_known"](taken, outlined)
    assert [one for one in taken if one in known] == known
    assert all(one in known for one in taken if one["model_kind"] != "repo")
    models = FILTERS["snapshot_models"](taken, outlined.get("snapshots") or {})
    assert set(models) <= {one["where"] for one in repositories}
    for one in FILTERS["snapshots_due"](wanted, outlined):
        assert len(one["revision"]) == 40


# Remedies: nothing that was not asked for, nothing in secret.


@given(strategies.TUNINGS)
def test_a_remedy_acts_where_it_is_asked_for_and_something_is_left_and_nowhere_else(asked):
    _, remedies, *_ = asked
    for name, one in FILTERS["tuning_plan"](*asked).items():
        assert one["act"] <= (name in remedies)
        assert one["act"] or name not in remedies or one["left"] == []
        assert one["act"] or one["refusals"] == []
        for refused in one["refusals"]:
            assert_whole(refused)
            assert refused["severity"] in findings.BLOCKING


# Health: whatever a host says is judged, and what cannot be judged is not well.


@given(strategies.hosts())
def test_any_host_is_judged_and_its_findings_tell_why(facts):
    verdict = FILTERS["host_health"](facts, strategies.HEALTH_CATALOG)
    assert set(verdict) == {"verdict", "devices", "findings", "remedies"}
    for one in verdict["findings"]:
        assert_whole(one)
    worst = {one["severity"] for one in verdict["findings"]} - {"info"}
    assert (verdict["verdict"] == "ok") == (not worst)
    assert (verdict["verdict"] == "ok") == (set(verdict["devices"].values()) <= {"ok"}
                                            and not worst)
    for device in facts["devices"]:
        assert verdict["devices"][device["uuid"]] in health.VERDICTS


@given(data=st.data())
def test_devices_that_are_chosen_are_well_enough_and_a_refusal_is_whole(data):
    facts, wanted, verdict, held = data.draw(ARGUMENTS["select_devices"])
    answer = FILTERS["select_devices"](facts, wanted, verdict, held)
    for one in answer["refusals"]:
        assert_whole(one)
    assert all(verdict["devices"].get(one) != "bad" for one in answer["devices"])
    assert answer["refusals"] == [] or answer["devices"] == []


# The doctor: whatever was seen is judged, what is mended is ours to mend, and it fits a screen.


def judged(seen, half_done):
    return library_path.problems(seen, library_seen.CHECKS, library_seen.TRITONS, half_done)


@settings(max_examples=300)
@given(seen=strategies.library_paths(), half_done=strategies.HALF_DONE)
def test_whatever_was_seen_of_a_library_path_is_told_in_whole_findings(seen, half_done):
    before = repr(seen)
    told = judged(seen, half_done)
    assert repr(seen) == before
    assert judged(copy.deepcopy(seen), half_done) == told
    rows = {row["id"]: row for row in library_seen.CHECKS}
    for one in told:
        assert_whole(one.finding)
        row = rows[one.finding["id"]]
        assert one.helps in ("", row["helps"])
        assert one.stops == row["stops"] or (
            one.stops == "" and row["id"] == "linker-cache-stale")
        # Links to a folder with two drivers lead to what its own link leads to.
        driver = library_path.chosen(seen)
        led_back = row["id"] == "libcuda-other-first" and driver is next(
            (each for each in seen["libraries"] if each["real"] == seen["loaded"]["path"]), None)
        assert one.bypass is (row["bypass"] and not led_back)
        assert one.python in {"", *(each["path"] for each in seen["pythons"])}
    json.dumps([one.finding for one in told])
    ids = [one.finding["id"] for one in told]
    assert ids.count("repair-half-done") == bool(half_done)
    # One cause, not what it looks like elsewhere.
    for kind in ("linker-cache-", "ldconfig-", "cuda-init-"):
        assert sum(id_.startswith(kind) for id_ in ids) <= 1
    assert len({"not-root", "root-read-only"} & {*ids}) <= (not seen["etc_writable"])


@settings(max_examples=300)
@given(data=st.data(), seen=strategies.library_paths(), half_done=strategies.HALF_DONE)
def test_a_repair_touches_only_what_was_seen_and_links_nothing_but_a_driver_s(
        data, seen, half_done):
    told, driver = judged(seen, half_done), library_path.chosen(seen)
    ours = library_repair.Ours(**data.draw(strategies.our_library_files(
        seen, driver["folder"] if driver else "/opt/x")))
    before = repr(seen)
    done = library_repair.repair(seen, told, ours, strategies.ROOT, strategies.OUR_LIBRARIES)
    assert library_repair.repair(
        seen, told, ours, strategies.ROOT, strategies.OUR_LIBRARIES) == done
    assert repr(seen) == before
    json.dumps(done)
    drivers = {one["folder"]: one for one in seen["libraries"] if one["kind"] == "driver"}
    others = {one[key] for one in seen["libraries"] if one["kind"] != "driver"
              for key in ("path", "real")}
    for path, target in done.links.items():
        folder, name = os.path.split(path)
        assert path in seen["links_missing"] or folder in drivers
        assert path not in others or folder in drivers
        assert os.path.join(folder, target) not in others
        assert target != name
        # Those that are kept are left; but for the driver's own, which is asked for by name.
        assert path not in seen["kept"] or path not in {
            *(one["path"] for one in seen["dangling"]), *seen["links_missing"]} - {*ours.links}
    for name, target in (done.private or {}).items():
        assert "/" not in name
        assert target not in others
        assert os.path.dirname(target) in drivers or target in {
            one["real"] for one in drivers.values()}
        assert os.path.dirname(target) != strategies.OUR_LIBRARIES or target in {
            one["real"] for one in drivers.values()}
    if done.conf != ours.conf:
        heading, place, end = done.conf.split("\n")
        assert heading.startswith("#")
        assert end == ""
        assert place in {*drivers, strategies.OUR_LIBRARIES}
        assert library_repair.SPELLABLE.fullmatch(place)
        done.conf.encode()
        # Every program of the host looks there: it is a folder that nobody else can write.
        assert driver["safe"] and seen["links_safe"]
        assert place == strategies.OUR_LIBRARIES or not ours.shadowed
    if not seen["etc_writable"] or seen["tool"]["state"] != "ok" or seen["without_cache"] \
            or not seen["cache"]["movable"]:
        assert (done.conf, done.links, done.cache, done.clear) == (ours.conf, {}, False, False)
    assert done.cache == bool(library_repair.mendable(seen, told))
    assert not done.clear or (done.cache and seen["cache"]["movable"])
    # Links that are there, or that engines are led to, are those of the driver.
    elsewhere = driver is not None and driver["folder"] != strategies.OUR_LIBRARIES
    assert done.private is not None or not (elsewhere and (done.environment or ours.private))
    assert done.private is None or elsewhere
    assert bool(done.links or done.conf != ours.conf) <= done.cache


@settings(max_examples=300)
@given(seen=strategies.library_paths(), half_done=strategies.HALF_DONE)
def test_engines_are_led_around_what_stops_them_and_cannot_be_mended_and_nothing_else(
        seen, half_done):
    told = judged(seen, half_done)
    mended = library_repair.mendable(seen, told)
    around = library_repair.environment(seen, told, strategies.OUR_LIBRARIES)
    stopped = [one for one in told if one.stops and one.bypass and one not in mended]
    assert bool(around) == bool(stopped and library_path.chosen(seen))
    assert set(around.values()) <= {strategies.OUR_LIBRARIES}
    assert set(around) <= {"TRITON_LIBCUDA_PATH", "LD_LIBRARY_PATH"}
    deaf = library_path.deaf(seen, library_seen.TRITONS)
    looked = looking.Looked(seen, told, deaf)
    hindered = {(one.finding["id"], one.python): one for one in told
                if one.stops and one not in mended}
    for environment in ({}, around):
        answer = looking.printable(looking.told(looked, environment))
        json.dumps(answer).encode()
        # What is mended, and what engines are to be led around and are not yet.
        assert set(answer["helps"]) == {
            one.finding["id"] for one in told
            if one in mended or (one in stopped and around and not environment)}
        blocked = {(one["finding"]["id"], one["python"])
                   for one in looking.told(looked, environment)["blocks"]}
        if not environment:
            assert blocked == {*hindered}
            continue
        # Who is led around it is not stopped, but for those that do not hear it.
        assert {key for key, one in hindered.items() if not one.bypass} <= blocked
        assert all(key in hindered or key[1] in deaf for key in blocked)
        assert {(id_, path) for (id_, python), one in hindered.items() if one.bypass
                for path in deaf if python in ("", path)} <= blocked


@given(strategies.REPORTS, strategies.LIBRARY_CHECKS)
def test_the_library_path_takes_nothing_from_the_health_and_no_gpu(before, checks):
    after = FILTERS["health_with_checks"](before, checks)
    assert after["devices"] == before["devices"]
    assert after["findings"][:len(before["findings"])] == before["findings"]
    assert {one["id"] for one in after["findings"]} == {
        one["id"] for one in before["findings"] + checks["findings"]}
    verdicts = health.VERDICTS.index
    assert verdicts(after["verdict"]) >= verdicts(before["verdict"])
    assert after["verdict"] != "bad" or before["verdict"] == "bad"
    assert set(after["remedies"]) == {*before["remedies"], *checks["remedies"]}


@given(strategies.FLEETS)
def test_the_summary_of_any_fleet_fits_a_screen_and_moves_no_cursor(reports):
    told = FILTERS["doctor_summary"](reports)
    assert bool(told) == any(one["verdict"] != "ok" for one in reports.values())
    lines = told.split("\n")
    assert len(lines) <= 24
    assert all(len(line) <= 100 and (line.isprintable() or not line) for line in lines)
    table = FILTERS["doctor_table"](reports).split("\n")
    assert len(table) == len(reports) + 1
    assert all(line.isprintable() for line in table)


# Requests: whatever the user wrote is either taken or answered.


@given(strategies.ASKED)
def test_what_is_wrong_is_said_of_the_entry_that_is_wrong(asked):
    answer = FILTERS["endpoint_requests"](asked)
    assert set(answer) == {"requests", "findings"}
    for one in answer["findings"]:
        assert_whole(one)
        assert one["severity"] in findings.BLOCKING
        assert all(text.isprintable() for text in one.values() if isinstance(text, str))
        assert one["subject"].startswith(requests.VARIABLE)
        assert requests.VARIABLE in one["remedy"]
    subjects = [one["subject"] for one in answer["findings"]]
    if not isinstance(asked, list):
        assert subjects == [requests.VARIABLE]
        return
    taken = {one["where"].partition(" ")[0]: one for one in answer["requests"]}
    for index, entry in enumerate(asked):
        where = "%s[%d]" % (requests.VARIABLE, index)
        if not any(one.startswith(where) for one in subjects):
            assert {key: in_words(taken[where][key]) for key in entry} \
                == {key: in_words(value) for key, value in entry.items()}


def in_words(value):
    """A value of a request as text: what YAML and ``-e`` make of the same words is the same."""
    return [str(one) for one in value] if isinstance(value, list) else str(value).strip()


@given(strategies.ASKED, strategies.STATES)
def test_requests_are_held_against_a_host_even_when_they_are_wrong(asked, state):
    """The host's findings are told in one breath with those about the input."""
    for one in judge.against_host(requests.normalise(asked)[0], state, {"findings": []}):
        assert_whole(one)


# The host: ports, and what to type.


@given(asked=strategies.SERVABLE, state=strategies.STATES, holder=strategies.HOLDERS)
def test_a_port_that_another_holds_stops_the_request_and_its_own_does_not(asked, state, holder):
    taken, wrong = requests.normalise(asked)
    assert wrong == []
    state["ports"][str(taken[0]["port"])] = holder
    stopped = {one["subject"] for one in findings.blocking(
        judge.against_host(taken, state, {"findings": []})) if one["id"] == "port-held"}
    for request in taken:
        holder = state["ports"].get(str(request["port"]))
        free = holder is None or (holder["endpoint"], holder["root"]) == (
            request["name"], state["root"])
        assert (request["where"] + ".port" in stopped) is not free


@given(holder=strategies.HOLDERS, endpoints=st.dictionaries(strategies.NAMES, strategies.SERVED),
       root=strategies.ROOTS)
def test_a_command_that_is_offered_is_one_command_with_what_it_should_carry(
        holder, endpoints, root):
    """A holder's words come from the environment of a stranger's process."""
    taken, _ = requests.normalise([{"name": "chat", "model": "canary"}])
    state = {"root": root, "manager": "systemd", "uid": 0, "ports": {"8000": holder},
             "endpoints": endpoints, "strangers": [],
             "python": {"version": "3.11.2", "venv": True}}
    for one in judge.against_host(taken, state, {"findings": []}):
        _, offered, line = one["remedy"].partition("ansible-playbook ")
        if not offered:
            continue
        words = shlex.split(line)
        assert words[:-1] == ["playbooks/teardown.yml", "-i", "INVENTORY", "--limit", "HOST", "-e"]
        said = json.loads(words[-1])
        [name] = said["inference_endpoint_teardown_names"]
        assert requests.NAME.fullmatch(name)
        # Ansible would template what has braces.
        assert judge.ROOT.fullmatch(said["firstlight_root"]) or said["firstlight_root"] == root


# Plans.

# Set for every engine, beside what its release has in the catalog.
OUR_ENVIRONMENT = {"PYTHONUNBUFFERED", "CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES",
                   *command.VLLM_ENV, *command.CACHES}
PARTS = ("weights_bytes", "kv_bytes", "activation_bytes", "graph_bytes", "context_bytes")
SITUATIONS = strategies.situations() | strategies.on_gpus()


def without_limit(one):
    """A plan without the room that was left when it was made."""
    of_room = {"limit_bytes": None, "error_bytes": None, "largest_context": None}
    return {**one, "memory": {**one["memory"], **of_room}, "reasons": None}


def release_of(one, catalog):
    """The row of the catalog that a plan is made with."""
    return next(row for row in catalog["engine_releases"]
                if (row["engine"], row["version"], row["dialect"])
                == (one["engine"], one["engine_version"], one["dialect"])
                and (one["runtime"] == "native" or row["image"] in one["image"]))


def cache_bytes(one, catalog):
    """What one sequence of the plan's context needs of its cache, on each device."""
    layout = memory.Layout(one["tensor_parallel"], one["pipeline_parallel"])
    types = ("fp8", "fp8") if "fp8" in one["extra_args"] else ("auto", "auto")
    settings = memory.Settings(one["batched_tokens"], one["sequences"], *types)
    costs = memory.costs_of(one["engine"], catalog["engine_costs"])
    return kv.sequence_bytes(memory.cache_of(one["engine"], one["model"], layout, settings, costs),
                             one["context"])


def assert_fits(one, catalog):
    """What a plan says of its memory adds up and holds its context."""
    figures = {key: value for key, value in one["memory"].items() if key != "source"}
    assert all(type(figure) is int and figure >= 0 for figure in figures.values())
    assert figures["total_bytes"] == sum(figures[part] for part in PARTS)
    assert figures["total_bytes"] <= figures["limit_bytes"]
    assert one["context"] <= figures["largest_context"]
    assert cache_bytes(one, catalog) <= figures["kv_bytes"]
    assert figures["kv_tokens"] >= one["context"]


@settings(max_examples=150)
@given(SITUATIONS)
def test_a_request_gets_a_plan_or_a_reason(situation):
    asked, facts, _, state, catalog, verdict = situation
    result = plan.deployment_plan(*situation)
    assert set(result) == {"endpoints", "refusals"}
    refused = {one["subject"].rpartition(".")[0] for one in result["refusals"]}
    planned = {one["name"] for one in result["endpoints"]}
    assert len(result["endpoints"]) + len(refused) == len(asked)
    for request in asked:
        assert (request["name"] in planned) is (request["where"] not in refused)
    for one in result["refusals"]:
        assert_whole(one)
        assert one["severity"] in findings.BLOCKING
        assert one["subject"].rpartition(".")[2] in requests.DEFAULTS
    devices = {health.key_of(one) for one in facts["devices"]} | {
        piece["uuid"] for one in facts["devices"] for piece in (one["mig"] or {}).get("slices")
        or []}
    given_away = [uuid for one in result["endpoints"] for uuid in one["gpus"]]
    assert len(set(given_away)) == len(given_away)
    assert set(given_away) <= devices
    for one in result["endpoints"]:
        request = next(each for each in asked if each["name"] == one["name"])
        assert (one["bind"], one["port"]) == (request["bind"], request["port"])
        assert one["context"] == request["context"] or request["context"] == "auto"
        assert 1 <= one["context"] <= (one["model"]["geometry"]["context"] or one["context"])
        if one["gpus"]:
            assert len(one["gpus"]) == one["tensor_parallel"] * one["pipeline_parallel"]
        assert all(verdict["devices"].get(uuid) != "bad" for uuid in one["gpus"])
        assert one["reasons"]
        assert all(re.fullmatch(r"\S.* .*\S\.", reason, re.S) for reason in one["reasons"])
        command = one["command"]
        assert all(isinstance(word, str) for word in command["argv"])
        assert all(isinstance(word, str) for pair in command["env"].items() for word in pair)
        assert set(command["env"]) <= OUR_ENVIRONMENT | set(
            release_of(one, catalog)["environment"])
        assert one["model"]["served_name"]
        assert bool(one["lock"]) is (one["runtime"] == "native")
        if one["lock"]:
            assert command["argv"][0].startswith(state["root"])
            assert one["lock"] in catalog["environments"]
        assert one["start_timeout_s"] >= FLOOR_SECONDS
        assert_fits(one, catalog)


@given(strategies.roomy())
def test_whoever_fits_is_planned(situation):
    assert plan.deployment_plan(*situation)["refusals"] == []


# A plan stays.


def served(plans, state, pids=True, **observed):
    """The state of the host on which these plans run."""
    endpoints = {one["name"]: planner.serving(one, (4000 + number,) if pids else (), **observed)
                 for number, one in enumerate(plans)}
    held = {str(one["port"]): {
        "pid": 4000 + number, "command": " ".join(one["command"]["argv"]), "user": "root",
        "endpoint": one["name"], "root": state["root"]} for number, one in enumerate(plans)}
    return {**state, "endpoints": endpoints, "ports": held,
            "environments": [one["environment"] for one in plans if one["environment"]]}


FREE = st.integers(0, 2**38)
LOAD = st.fixed_dictionaries({
    "free": st.lists(FREE, min_size=8, max_size=8),
    "strangers": st.lists(st.none() | FREE, min_size=8, max_size=8),
    "busy": st.lists(st.booleans(), min_size=8, max_size=8),
    "memory": st.fixed_dictionaries({
        "available_bytes": FREE, "free_bytes": FREE, "swap_bytes": FREE,
        "swap_free_bytes": FREE}),
    "cores": st.none() | st.integers(1, 256),
    "order": st.randoms(use_true_random=False)})


def under(facts, plans, load):
    """The facts of the host while its plans run and others work on it too."""
    facts = copy.deepcopy(facts)
    facts["memory"].update(load["memory"])
    facts["cpu"]["cores"] = load["cores"]
    pids = {uuid: 4000 + number for number, one in enumerate(plans) for uuid in one["gpus"]}
    for index, one in enumerate(facts["devices"]):
        one["memory_free_bytes"] = min(load["free"][index % 8], one["memory_total_bytes"] or 0)
        one["holders"] = [made.holder(pids[one["uuid"]], 2**30)] if one["uuid"] in pids else []
        if load["busy"][index % 8]:
            one["holders"].append(made.holder(9999, load["strangers"][index % 8]))
    load["order"].shuffle(facts["devices"])
    return facts


@settings(max_examples=100)
@given(situation=strategies.roomy() | strategies.on_gpus(), load=LOAD,
       uid=st.sampled_from([0, 1000]))
def test_a_host_that_has_its_plans_keeps_them_under_another_load(situation, load, uid):
    asked, facts, models, state, catalog, _ = situation
    first = plan.deployment_plan(*situation)["endpoints"]
    asked = [one for one in asked if one["name"] in {each["name"] for each in first}]
    state = {**served(first, state), "uid": uid}
    facts = under(facts, first, load)
    again = plan.deployment_plan(asked, facts, models, state, catalog,
                                 health.host_health(facts, catalog))
    assert again["refusals"] == []
    assert [{**one, "reasons": None} for one in again["endpoints"]] == [
        {**one, "reasons": None} for one in first]
    assert [one for one in judge.against_host(asked, state, {"findings": []})
            if one["id"] in ("port-held", "endpoint-unasked")] == []


@given(situation=strategies.on_gpus(), load=LOAD, newcomer=strategies.ON_GPUS,
       first_in_list=st.booleans())
def test_an_endpoint_that_comes_later_takes_nothing_from_one_that_is_there(
        situation, load, newcomer, first_in_list):
    asked, facts, models, state, catalog, _ = situation
    first = plan.deployment_plan(*situation)["endpoints"]
    asked = [one for one in asked if one["name"] in {each["name"] for each in first}]
    more, _ = requests.normalise([{**one, "name": "new%d" % number, "port": 60000 + number}
                                  for number, one in enumerate(newcomer)])
    facts = under(facts, first, load)
    result = plan.deployment_plan(
        more + asked if first_in_list else asked + more, facts,
        {**models, **planner.models_of(more)}, served(first, state), catalog,
        health.host_health(facts, catalog))
    hashes = {one["name"]: one["hash"] for one in result["endpoints"]}
    assert {one["name"]: one["hash"] for one in first}.items() <= hashes.items()


@given(situation=strategies.on_gpus(), off=st.floats(-0.01, 0.01), load=LOAD)
def test_memory_that_was_seen_makes_no_other_plan_of_what_runs(situation, off, load):
    """A passport is written after each start: its figures must not start the engine again."""
    asked, facts, models, state, catalog, _ = situation
    first = plan.deployment_plan(*situation)["endpoints"]
    asked = [one for one in asked if one["name"] in {each["name"] for each in first}]
    endpoints = {one["name"]: planner.serving(one, (4000 + number,), **{
        part: int(one["memory"][part] * (1 - abs(off) if part == "weights_bytes" else 1 + off))
        for part in PARTS}) for number, one in enumerate(first)}
    facts = under(facts, first, load)
    again = plan.deployment_plan(
        asked, facts, models, {**served(first, state), "endpoints": endpoints}, catalog,
        health.host_health(facts, catalog))
    assert [one["hash"] for one in again["endpoints"]] == [one["hash"] for one in first]
    assert {one["memory"]["source"] for one in again["endpoints"]} <= {"observed"}


# A passport is what somebody wrote.

JUNK = strategies.JSON | st.sampled_from([
    0, -1, 1, True, 10**400, -10**400, float("inf"), float("nan"), "", [], {}, "auto", ["GPU-x"],
    [made.uuid(0), made.uuid(0)], 2**63])
PLACES_OF_JUNK = st.sampled_from([
    ("passport",), ("passport", "plan"), ("passport", "memory"), ("passport", "phases"),
    ("passport", "memory", "observed"), ("passport", "phases", "ready_s"),
    *(("passport", "memory", "observed", part) for part in PARTS),
    *(("passport", "plan", key) for key in (
        "hash", "asked", "gpus", "tensor_parallel", "pipeline_parallel", "context", "sequences",
        "batched_tokens", "start_timeout_s", "model", "engine", "engine_version", "extra_args",
        "utilisation", "command", "env", "image", "memory", "start", "name")),
    *(("passport", "plan", "asked", key) for key in keep.ASKED),
    ("passport", "plan", "model", "fingerprint"), ("passport", "plan", "model", "path")])
# What a passport never decides.
OUR_DECISIONS = ("name", "engine", "engine_version", "runtime", "image", "entrypoint",
                 "environment", "venv", "lock", "launcher", "dialect", "model", "bind", "port",
                 "url", "flags", "extra_args", "packages", "oracle", "asked")


@settings(max_examples=200)
@given(situation=strategies.on_gpus() | strategies.roomy(), place=PLACES_OF_JUNK, junk=JUNK)
def test_whatever_a_passport_says_the_plan_is_sound_and_its_command_is_ours(
        situation, place, junk):
    asked, facts, models, state, catalog, verdict = situation
    fresh = plan.deployment_plan(*situation)["endpoints"]
    asked = [one for one in asked if one["name"] in {each["name"] for each in fresh}]
    if not fresh:
        return
    seen = {part: fresh[0]["memory"][part] for part in PARTS if part != "kv_bytes"}
    state = copy.deepcopy(served(fresh, state, **seen))
    inner = state["endpoints"][fresh[0]["name"]]
    inner["passport"]["phases"] = {"ready_s": 61.5}
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = junk
    result = plan.deployment_plan(asked, facts, models, state, catalog, verdict)
    json.dumps(result)
    before = {one["name"]: one for one in fresh}
    for one in result["endpoints"]:
        was = before[one["name"]]
        assert {key: one[key] for key in OUR_DECISIONS} == {key: was[key] for key in OUR_DECISIONS}
        assert one["command"]["argv"][0] == was["command"]["argv"][0]
        assert set(one["command"]["env"]) == set(was["command"]["env"])
        if len(one["gpus"]) == len(was["gpus"]):
            assert one["start_timeout_s"] == was["start_timeout_s"]
        assert set(one["gpus"]) <= {each["uuid"] for each in facts["devices"]}
        assert_fits(one, catalog)


# Others on the same host.


@given(SITUATIONS)
def test_an_endpoint_does_not_depend_on_those_after_it(situation):
    asked, *host = situation
    # But for devices that are named: those are kept for who names them.
    assume(not any(isinstance(one["gpus"], list) for one in asked))
    whole = plan.deployment_plan(*situation)
    for count in range(len(asked)):
        part = plan.deployment_plan(asked[:count], *host)
        assert whole["endpoints"][:len(part["endpoints"])] == part["endpoints"]
        assert whole["refusals"][:len(part["refusals"])] == part["refusals"]


@given(situation=strategies.roomy(), data=st.data())
def test_where_all_fit_their_order_is_no_matter(situation, data):
    asked, *host = situation
    shuffled = data.draw(st.permutations(asked))

    def plans(order):
        made_ = plan.deployment_plan(order, *host)["endpoints"]
        return {one["name"]: without_limit(one) for one in made_}

    assert plans(shuffled) == plans(asked)


@given(situation=SITUATIONS, data=st.data())
def test_the_order_of_devices_is_no_matter(situation, data):
    asked, facts, models, state, catalog, _ = situation
    shuffled = {**facts, "devices": data.draw(st.permutations(facts["devices"]))}

    def hashes(host):
        result = plan.deployment_plan(asked, host, models, state, catalog,
                                      health.host_health(host, catalog))
        return [one["hash"] for one in result["endpoints"]]

    assert hashes(shuffled) == hashes(facts)


@given(situation=strategies.roomy(), at=st.integers(0, 2))
def test_an_endpoint_that_is_refused_takes_nothing_from_the_others(situation, at):
    asked, *host = situation
    [[refused], _] = requests.normalise([{"name": "x", "model": "/none"}])
    result = plan.deployment_plan([*asked[:at], refused, *asked[at:]], *host)
    assert result["endpoints"] == plan.deployment_plan(*situation)["endpoints"]


@given(SITUATIONS)
def test_a_refusal_for_memory_says_what_would_be_given(situation):
    """The most that a refusal names gets a plan of its own."""
    asked, *host = situation
    for request in asked:
        [*refusals] = plan.deployment_plan([request], *host)["refusals"]
        if not refusals or refusals[0]["id"] not in ("plan-does-not-fit",
                                                     "plan-context-beyond-model"):
            continue
        most = int(re.search(r"at most (\d+) tokens", refusals[0]["wanted"]).group(1))
        if most:
            again = plan.deployment_plan([{**request, "context": most}], *host)["refusals"]
            assert [one for one in again if one["subject"].endswith(".context")] == []
        else:
            assert "smaller model" in refusals[0]["remedy"]


def with_memory(facts, share):
    """The facts of a host that has so many times the memory, on every device and in RAM."""
    facts = copy.deepcopy(facts)
    facts["memory"]["total_bytes"] = int(facts["memory"]["total_bytes"] * share)
    for one in facts["devices"]:
        more = int(one["memory_total_bytes"] * share) - one["memory_total_bytes"]
        one["memory_total_bytes"] += more
        one["memory_free_bytes"] += more
    return facts


@settings(max_examples=100)
@given(situation=strategies.on_gpus() | strategies.roomy().filter(
    lambda situation: situation[1]["devices"] == []), share=st.floats(1, 4),
    less=st.floats(0.01, 1))
def test_more_memory_never_gives_a_smaller_context(situation, share, less):
    asked, facts, models, state, catalog, verdict = situation
    facts["memory"]["total_bytes"] = min(facts["memory"]["total_bytes"], 64 * 2**30)
    for request in asked:
        request = {**request, "context": "auto"}

        def context(host, request=request):
            plans = plan.deployment_plan([request], host, models, state, catalog,
                                         verdict)["endpoints"]
            return plans[0]["context"] if plans else 0

        small = with_memory(facts, less)
        assert context(small) <= context(with_memory(small, share))


@given(strategies.roomy() | strategies.on_gpus())
def test_the_command_of_a_plan_is_text_that_a_service_manager_can_be_given(situation):
    for one in plan.deployment_plan(*situation)["endpoints"]:
        argv = engine_command(one)["argv"]
        assert argv == one["command"]["argv"]
        assert all(word.isprintable() for word in argv)


CACHES = st.builds(
    kv.Cache, st.integers(1, 100), st.integers(0, 100), st.integers(1, 2**15),
    st.integers(1, 2**16), st.integers(0, 2**24), st.sampled_from([1, 16, 64]), st.booleans(),
    st.integers(0, 2**12))


@given(shape=CACHES, room=st.integers(-2**40, 2**44), more=st.integers(0, 2**44),
       most=st.integers(0, 10**6))
def test_a_context_fits_and_grows_with_the_room(shape, room, more, most):
    context = kv.largest_context(shape, room, most)
    assert 0 <= context <= most
    assert context == 0 or kv.sequence_bytes(shape, context) <= room
    assert context == most or kv.sequence_bytes(shape, context + 1) > room
    assert context <= kv.largest_context(shape, room + more, most)
    assert context == 0 or kv.pool_tokens(shape, room, context) >= context


@given(shape=CACHES, tokens=st.integers(0, 10**6), more=st.integers(0, 10**6),
       side=st.sampled_from(["full_layers", "layer_bytes", "state_bytes"]))
def test_what_a_sequence_needs_grows_with_its_length_and_with_each_side_of_the_cache(
        shape, tokens, more, side):
    bytes_ = kv.sequence_bytes(shape, tokens)
    assert 0 <= bytes_ <= kv.sequence_bytes(shape, tokens + more)
    if not shape.window_layers:
        assert bytes_ <= kv.sequence_bytes(shape._replace(**{side: getattr(shape, side) + 1}),
                                           tokens)


# Findings as text.


@given(st.lists(strategies.FINDINGS, max_size=4))
def test_the_text_of_findings_is_a_paragraph_each_and_says_everything(many):
    text = findings.text(many)
    assert all(character.isprintable() or character in "\n\t" for character in text)
    heads = [line for line in text.splitlines() if not line.startswith(" ")]
    assert len(heads) == len(many)
    for one in many:
        assert any(head.startswith("[%s] %s: " % (one["severity"], one["id"])) for head in heads)
        for key in ("subject", "found", "wanted", "remedy", "evidence"):
            said = "".join(part if part.isprintable() else "\n" for part in one[key])
            assert all(part in text for part in said.split("\n"))


@given(st.lists(strategies.FINDINGS, max_size=6))
def test_what_stops_a_run_is_a_part_of_what_was_found_in_its_order(many):
    numbered = [dict(one, source=str(number)) for number, one in enumerate(many)]
    stops = [int(one["source"]) for one in findings.blocking(numbered)]
    assert stops == [number for number, one in enumerate(many)
                     if one["severity"] in ("error", "fatal")]


# Paths.


@given(asked=st.text("ab/.~ ", max_size=8)
       | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12),
       state=st.text("ab/.~ ", max_size=8))
def test_the_root_is_absolute_and_has_one_spelling(asked, state):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths.os, "geteuid", lambda: 1000)
        patch.setenv("HOME", "/home/ann")
        patch.setenv("XDG_STATE_HOME", state)
        root = paths.root(asked)
    assert root.startswith("/")
    assert not root.startswith("//")
    assert root == os.path.normpath(root) == paths.root(root)


# Models: files that come from anywhere.

TYPES = {"u": "add_uint32", "U": "add_uint64", "f": "add_float32", "s": "add_string",
         "b": "add_bool"}
U32 = st.integers(1, 2**32 - 1)
SHAPE = st.fixed_dictionaries({}, optional={
    "block_count": U32, "embedding_length": U32, "context_length": U32,
    "attention.head_count": U32, "attention.head_count_kv": U32, "attention.key_length": U32,
    "vocab_size": U32})
OTHER_FIELDS = st.dictionaries(
    st.from_regex(r"x\.[a-z]{1,6}", fullmatch=True),
    U32.map("u{}".format) | strategies.PRINTABLE.map("s".__add__) | st.sampled_from(["b1", "f0.5"])
    | st.lists(st.integers(-2**31, 2**31 - 1), min_size=1, max_size=5), max_size=4)


@settings(max_examples=30)
@given(shape=SHAPE, other=OTHER_FIELDS)
def test_what_the_gguf_package_writes_is_read_as_it_was_written(shape, other):
    with tempfile.TemporaryDirectory(prefix="fl-") as folder:
        path = os.path.join(folder, "m.gguf")
        writer = gguf.GGUFWriter(path, "llama")
        for name, value in shape.items():
            writer.add_uint32("llama." + name, value)
        for name, value in other.items():
            if isinstance(value, list):
                writer.add_array(name, value)
            else:
                kind, text = value[0], value[1:]
                made = {"u": int, "s": str, "b": bool, "f": float}[kind](text)
                getattr(writer, TYPES[kind])(name, made)
        writer.add_tensor("output", np.ones((4, 32), dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        found = model_files.describe(path)["geometry"]
    heads, hidden = shape.get("attention.head_count"), shape.get("embedding_length")
    assert found["layers"] == shape.get("block_count")
    assert found["hidden"] == hidden
    assert found["context"] == shape.get("context_length")
    assert found["heads"] == heads
    assert found["kv_heads"] == shape.get("attention.head_count_kv", heads)
    assert found["vocabulary"] == shape.get("vocab_size")
    split = hidden // heads if heads and hidden and hidden % heads == 0 else None
    assert found["head_dim"] == shape.get("attention.key_length", split)


HUGE = st.sampled_from([2**16, 2**24, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1]) | st.integers(
    0, 2**64 - 1)
NUMBERS = HUGE.map(lambda number: struct.pack("<Q", number)) | st.integers(0, 12).map(
    lambda number: struct.pack("<I", number))
GGUF_BYTES = st.builds(
    lambda version, parts: b"GGUF" + struct.pack("<I", version) + b"".join(parts),
    st.sampled_from([2, 3]),
    st.lists(NUMBERS | st.binary(max_size=12) | st.sampled_from(
        [struct.pack("<QQ", 1, 1), struct.pack("<Q1s", 1, b"k")]), max_size=12))
SAFETENSORS_BYTES = st.builds(
    lambda length, text: struct.pack("<Q", length) + text,
    HUGE | st.integers(0, 64), st.binary(max_size=64))


@settings(max_examples=150)
@given(content=GGUF_BYTES | SAFETENSORS_BYTES | st.binary(max_size=64),
       config=st.binary(max_size=16) | strategies.JSON.map(lambda one: json.dumps(one).encode()))
def test_a_file_of_any_bytes_is_described_or_refused_in_little_memory(content, config):
    """A few bytes that promise much are not believed."""
    with tempfile.TemporaryDirectory(prefix="fl-") as folder:
        files = {"m.gguf": content, "model.safetensors": content, "config.json": config,
                 "tokenizer.json": config, "tokenizer_config.json": config,
                 "generation_config.json": config, "model.safetensors.index.json": config}
        for name, each in files.items():
            with open(os.path.join(folder, name), "wb") as file:
                file.write(each)
        tracemalloc.start()
        try:
            for path in (folder, os.path.join(folder, "m.gguf")):
                with contextlib.suppress(model_files.BadModel):
                    json.dumps(model_files.describe(path))
                json.dumps(model_report.read(path))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 2**20


# HTTP: what a server sends, in whatever pieces it comes.


def cut(content, places):
    """Bytes in pieces, cut at these places."""
    ends = [0, *sorted(place % (len(content) + 1) for place in places), len(content)]
    return [content[begin:end] for begin, end in zip(ends, ends[1:])]


PLACES = st.lists(st.integers(0, 10**4), max_size=6)
LINES = st.lists(st.sampled_from([b"data: {}", b"data: [DONE]", b"\n", b"\r\n", b"\r", b": ping"])
                 | st.binary(max_size=6), max_size=10).map(b"".join)


@given(content=LINES, places=PLACES)
def test_lines_do_not_depend_on_where_a_stream_was_cut(content, places):
    assert list(http_client._lines(cut(content, places))) == [
        line.rstrip() for line in content.split(b"\n")]


class Raw:
    """A server that reads a request and answers with bytes as they are, in these pieces."""

    def __init__(self):
        self.pieces = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = "http://127.0.0.1:%d" % self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            with client, contextlib.suppress(OSError):
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                client.settimeout(10)
                asked = b""
                while b"\r\n\r\n" not in asked:
                    asked += client.recv(65536) or b"\r\n\r\n"  # it has hung up
                head, _, begun = asked.partition(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: (\d+)", head)
                left = (int(length.group(1)) if length else 0) - len(begun)
                while left > 0:
                    left -= len(client.recv(65536)) or left
                for piece in self.pieces:
                    client.sendall(piece)
                client.shutdown(socket.SHUT_WR)

    def close(self):
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)


@pytest.fixture(scope="module")
def raw():
    server = Raw()
    yield server
    server.close()


def streamed(url):
    """The events of a stream, and how it ended."""
    events = []
    try:
        for _, event in http_client.post_stream(url, {}, 10):
            events.append(event)
    except ConnectionError as problem:
        return events, str(problem)
    return events, ""


OK = b"HTTP/1.1 200 OK\r\n\r\n"
HEADS = st.sampled_from([
    b"", OK, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"HTTP/1.0 500 No\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: -1",
    b"HTTP/9 abc\r\n"])
CHUNKS = st.sampled_from([b"5\r\nhello\r\n", b"-5\r\nhello\r\n", b"zz\r\n", b"ffffffffffffffff\r\n",
                          b"0\r\n\r\n"])


@given(head=HEADS, rest=st.lists(CHUNKS | LINES, max_size=4).map(b"".join), places=PLACES)
def test_no_answer_of_a_server_raises_anything_but_a_broken_connection(raw, head, rest, places):
    raw.pieces = cut(head + rest, places)
    answer = http_client.get(raw.url, 10)
    assert bool(answer.error) is (answer.status == 0)
    answer.json()
    assert answer.brief()
    events, problem = streamed(raw.url)
    assert problem or b"[DONE]" in rest


EVENTS = st.lists(st.dictionaries(st.text(max_size=6), strategies.JSON.filter(
    lambda one: "NaN" not in json.dumps(one)), max_size=3), max_size=4)


@given(events=EVENTS, places=PLACES, space=st.sampled_from(["", " "]),
       end=st.sampled_from(["\n", "\r\n"]), done=st.booleans())
def test_a_stream_gives_its_events_however_it_was_cut(raw, events, places, space, end, done):
    """The space after the colon may be missing in server-sent events."""
    said = [json.dumps(event) for event in events] + ["[DONE]"] * done
    body = "".join("data:" + space + one + end * 2 for one in said)
    raw.pieces = cut(OK + body.encode(), places)
    got, problem = streamed(raw.url)
    assert got == events
    assert bool(problem) is not done


# /proc: what processes say of themselves.

MARKS = st.lists(st.sampled_from([
    b"FIRSTLIGHT_ENDPOINT=chat", b"FIRSTLIGHT_ROOT=/r", b"FIRSTLIGHT_PLAN=9f2c",
    b"FIRSTLIGHT_ENDPOINT=../../etc", b"FIRSTLIGHT_ENDPOINT=", b"FIRSTLIGHT_ENDPOINT=\xff\n",
    b"FIRSTLIGHT_ROOT=\x1b[2J", b"A=FIRSTLIGHT_ENDPOINT=chat", b"", b"="]) | st.binary(max_size=8),
    max_size=6).map(b"\0".join)
PROCESSES = st.fixed_dictionaries({
    "environ": MARKS, "cmdline": st.binary(max_size=40),
    "comm": st.sampled_from([b"engine", b") (", b"a) S 1 2", b"\xff\n )"])
    | st.binary(max_size=15)})
TIMES = st.integers(0, 2**40)


@given(process=PROCESSES, inode=st.integers(1, 2**32), port=st.integers(1, 65535),
       ticks=st.tuples(TIMES, TIMES))
def test_a_process_is_read_whatever_it_says_of_itself(process, inode, port, ticks):
    with tempfile.TemporaryDirectory(prefix="fl-") as proc:
        folder = os.path.join(proc, "7")
        os.makedirs(os.path.join(folder, "fd"))
        os.symlink("socket:[%d]" % inode, os.path.join(folder, "fd", "3"))
        fields = [b"S"] + [b"0"] * 10 + [b"%d" % one for one in ticks] + [b"0"] * 10
        files = {"environ": process["environ"], "cmdline": process["cmdline"],
                 "stat": b"7 (" + process["comm"] + b") " + b" ".join(fields) + b"\n"}
        for name, content in files.items():
            with open(os.path.join(folder, name), "wb") as file:
                file.write(content)
        os.mkdir(os.path.join(proc, "net"))
        with open(os.path.join(proc, "net", "tcp"), "w") as file:
            file.write("  sl  local_address rem_address   st ...\n   0: 0100007F:%04X 00000000:0000"
                       " 0A 00000000:00000000 00:00000000 00000000  1000 0 %d 1\n" % (port, inode))
        [(held, holder)] = processes.holders([port], proc).items()
        running = processes.engines("/r", proc)
        worked = processes.cpu_seconds(7, proc)
        listens = processes.listens("/r", "chat", port, proc)
    assert (held, holder["pid"]) == (port, 7)
    assert holder["endpoint"] is None or requests.NAME.fullmatch(holder["endpoint"])
    assert worked == sum(ticks) / os.sysconf("SC_CLK_TCK")
    # Names become paths and names of services.
    assert all(requests.NAME.fullmatch(name) for name in running)
    assert set(running) <= {"chat"} or holder["endpoint"] in running
    assert listens is ("chat" in running)
    json.dumps([holder, running])


# Passports: whoever holds the host can write one.

PASSPORT = {
    "schema": passport.SCHEMA, "endpoint": "chat",
    "plan": {"hash": "9f2c", "url": "http://127.0.0.1:8000", "start_timeout_s": 60,
             "model": {"served_name": "canary"}},
    "smoke": {"figures": {}}, "phases": {},
}
FIELDS = [("schema",), ("endpoint",), ("plan",), ("plan", "hash"), ("plan", "url"),
          ("plan", "start_timeout_s"), ("plan", "model"), ("plan", "model", "served_name"),
          ("smoke",), ("smoke", "figures"), ("phases",)]
URLS = st.sampled_from([
    "http://127.0.0.1:80", "http://127.0.0.1:65536", "http://127.0.0.1:٨٠", "http://192.0.2.1:80",
    "http://127.0.0.1:80\n", "http://127.0.0.1:80@example.org"])


def read_passport(content):
    with tempfile.TemporaryDirectory(prefix="fl-") as root:
        paths.write(passport.path(root, "chat"), content)
        return passport.read(root, "chat")


@given(st.binary(max_size=20) | strategies.JSON.map(lambda one: json.dumps(one).encode()))
def test_what_is_no_passport_reads_as_none(content):
    assert read_passport(content) is None


@given(field=st.sampled_from(FIELDS), value=strategies.JSON | URLS)
def test_a_passport_with_any_field_changed_is_relied_on_or_none(field, value):
    changed = copy.deepcopy(PASSPORT)
    inner = changed
    for key in field[:-1]:
        inner = inner[key]
    inner[field[-1]] = value
    found = read_passport(json.dumps(changed).encode())
    if found is None:
        return
    assert re.fullmatch(r"http://127\.0\.0\.1:[0-9]{1,5}", found["plan"]["url"])
    assert found["plan"]["start_timeout_s"] + 1 > 0
    assert found["endpoint"] == "chat"
    assert all(isinstance(text, str) for text in (
        found["plan"]["hash"], found["plan"]["model"]["served_name"]))
    assert all(isinstance(one, dict) for one in (found["smoke"]["figures"], found["phases"]))


# Proof: no answer makes the judge fall over, and none that is wrong passes.


@pytest.fixture(scope="module")
def engine():
    with serving() as url:
        yield url


ANSWERS = strategies.JSON | st.fixed_dictionaries({}, optional={
    "data": strategies.JSON | st.just([{"id": MODEL}]),
    "choices": strategies.JSON | st.lists(st.fixed_dictionaries({}, optional={
        "text": strategies.JSON, "message": strategies.JSON}), max_size=2),
    "usage": strategies.JSON | st.fixed_dictionaries({
        kind + "_tokens": st.integers(-1, 4) | st.just(10**400) | strategies.JSON
        for kind in ("prompt", "completion", "total")})})
TEXT = {"choices": [{"text": " word0"}]}
COUNTED = st.builds(lambda count: {"usage": {"completion_tokens": count}},
                    st.sampled_from([0, 64, 65, 10**400, 1.5, float("nan"), "9"]))
STREAMS = st.builds(lambda right, answers: right + answers, st.sampled_from([[], [TEXT]]),
                    st.lists(COUNTED | ANSWERS, max_size=3))


@settings(max_examples=60)
@given(route=st.sampled_from(["models", "completions", "chat", "stream", "chat_stream",
                              "structured", "tool", "too_long", "props"]),
       answer=ANSWERS, stream=STREAMS, oracle=st.sampled_from([ORACLE, None]))
def test_any_answer_is_judged(engine, route, answer, stream, oracle):
    def answers(handler, right):
        if route in ("stream", "chat_stream"):
            return stream
        handler.send(200, json.dumps(answer).encode())
        return None

    engine.engine.faults = {route: answers}
    verdict = smoke.prove(smoke.Target(
        engine, MODEL, oracle, timeout_s=20, context=CONTEXT, claims=proof.CLAIMS[::2]))
    json.dumps(verdict, allow_nan=False)
    for one in verdict["findings"]:
        assert_whole(one)
    failed = ["smoke-" + check["id"] for check in verdict["checks"] if not check["passed"]]
    assert [one["id"] for one in verdict["findings"]] == failed
    assert verdict["passed"] is not bool(findings.blocking(verdict["findings"]))
    assert all(figure > 0 for figure in verdict["figures"].values())
    assert 1 <= verdict["figures"].get("tokens", 1) <= smoke.SPEED_TOKENS
    if (oracle and route in ("completions", "chat")) or route in ("structured", "tool", "too_long"):
        assert not verdict["passed"]


# Builds: for the host's GPUs alone, and no more of them at a time than its memory holds.


@given(wheel_strategies.BUILD_ROWS, wheel_strategies.ENVIRONMENTS,
       st.lists(wheel_strategies.CAPABILITIES, max_size=2),
       strategies.hosts() | wheel_strategies.FACTS, st.integers(-1, 9000))
def test_a_build_is_within_its_host_or_refused(row, environment, capabilities, facts, limit_s):
    found = wheel_builds.build_plan(row, environment, capabilities, facts, limit_s)
    for one in found["findings"]:
        assert_whole(one)
    assert all(isinstance(value, str) for value in found["environment"].values())
    if findings.blocking(found["findings"]):
        return
    assert found["why"] or not found["jobs"]
    assert found["jobs"] >= 1
    memory_ = facts.get("memory") or {}
    available = memory_.get("available_bytes")
    if available is None or (facts.get("cpu") or {}).get("cores") is None:
        assert found["jobs"] == 1
    else:
        assert found["jobs"] <= facts["cpu"]["cores"]
        assert found["jobs"] * row["build"]["job_bytes"] < available
    wanted = [*capabilities, *(one["capability"] for one in environment["torch"]["devices"]),
              *(one.get("capability") for one in facts.get("devices") or [])]
    assert len(found["built_for"].get("capabilities", [])) <= len(wanted)
    if row["cuda"] != "none":
        assert found["built_for"]["capabilities"]
        for kernel in found["built_for"]["capabilities"]:
            assert any(one and one.partition(".")[0] == kernel.partition(".")[0]
                       for one in wanted)


# Wheels: each file is taken or rejected with a reason, and what is wrong is refused with one.


@given(data=st.data())
def test_a_file_is_ranked_or_rejected_whatever_the_order(data):
    listed, where, asked, capabilities = data.draw(ARGUMENTS["matching_wheel"])
    found = FILTERS["matching_wheel"](listed, where, asked, capabilities)
    assert {*found["ranked"], *(one["file"] for one in found["rejected"])} == {
        one["file"] for one in listed}
    assert all(one["why"].strip() for one in found["rejected"])
    again = FILTERS["matching_wheel"](
        data.draw(st.permutations(listed)), where, asked, capabilities)
    assert again == found
    assert bool(found["wheel"]) is bool(found["ranked"])
    if found["wheel"]:
        assert found["wheel"]["file"] == found["ranked"][0]
        assert found["wheel"]["sha256"]
        alone = FILTERS["matching_wheel"]([found["wheel"]], where, asked, capabilities)
        assert (alone["wheel"], alone["rejected"]) == (found["wheel"], [])


@given(wheel_cases.TO_DECIDE)
def test_a_decision_about_a_wheel_is_whole(asked):
    requests_, places, candidates, _, allow_build, _ = asked
    decisions = FILTERS["wheel_decisions"](*asked)
    assert [one["request"] for one in decisions] == requests_
    due = FILTERS["wheels_due"](requests_, places)
    for one in decisions:
        for told in one["findings"]:
            assert_whole(told)
        assert one["why"].strip()
        assert one["why"].isprintable()
        # What is there may be compiled from the one archive that is asked for.
        assert (one["action"] == "nothing") is (one["request"] not in due) or (
            one["action"] == "nothing" and one["request"]["sha256"])
        assert (one["action"] == "refused") is bool(findings.blocking(one["findings"]))
        assert (one["action"] in ("install", "build")) is bool(one["wheel"])
        assert one["action"] != "build" or allow_build
        if one["wheel"]:
            assert one["wheel"]["file"] in [
                each["file"] for each in candidates[FILTERS["wheels_sought"](
                    [one["request"]])[0]["key"]]]
    assert len(FILTERS["wheel_texts"](decisions).splitlines()) == len(decisions)
    wanted = FILTERS["wheels_wanted"](decisions)
    assert sum(len(one) for one in wanted.values()) == len(
        [one for one in decisions if one["action"] != "refused"])


@given(wheel_cases.TO_JUDGE)
def test_wheels_are_asked_for_rightly_or_it_is_told_why_not(asked):
    found = FILTERS["wheel_requests"](*asked)
    for one in found["findings"]:
        assert_whole(one)
        assert one["subject"].startswith("prebuilt_wheel_")
        assert "secret" not in repr(one)
    entries = asked[0] if isinstance(asked[0], list) else []
    assert len(found["requests"]) <= len(entries)
    assert found["findings"] or len(found["requests"]) == len(entries)
    for one in found["requests"]:
        assert os.path.isabs(one["python"])
        assert {"package", "kernel", "imports"} <= set(one["row"])


# Whether there is anything to do: what shows by the host alone is a part of it.


@given(work_strategies.DECIDED, work_strategies.SEEN)
def test_what_there_is_to_do_is_told_in_lines(decided, seen):
    due = FILTERS["work_due"](decided, seen)
    assert [one for one in due if one in FILTERS["work_seen"](seen)] == FILTERS["work_seen"](seen)
    assert FILTERS["work_text"](due).count("\n") == max(0, len(due) - 1)
    # What was not decided is never taken for nothing.
    assert due or None not in decided.values()
