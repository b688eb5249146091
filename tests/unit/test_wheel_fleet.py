# SPDX-License-Identifier: Apache-2.0
"""Each file is fetched once for all; each host gets what its own environments need, and no more."""

from __future__ import annotations

import hashlib

import planner
import pytest
import wheel_fleets as rig
from hypothesis import given
from hypothesis import strategies as st

from ansible.module_utils.firstlight import findings
from ansible.module_utils.firstlight.planning import canary_plan, switching, wheel_fleet
from ansible.module_utils.firstlight.planning import plan as planning
from ansible.module_utils.firstlight.planning import wheels as deciding

X86, ARM = rig.name("tiny-kernel", "1.1"), rig.name("tiny-kernel", "1.1", machine="aarch64")
OLD = rig.name("tiny-kernel", "1.0")


# What is asked of hosts.


def test_an_environment_is_looked_at_once_with_all_its_rows():
    one, two = rig.request("one"), rig.request("two")
    other = rig.request("one", "/opt/other/bin/python")
    assert wheel_fleet.wheel_environments([one, two, dict(one, version="1"), other]) == [
        {"python": rig.PYTHON, "rows": [one["row"], two["row"]]},
        {"python": "/opt/other/bin/python", "rows": [one["row"]]}]
    assert wheel_fleet.wheel_environments([]) == []


def test_the_same_question_is_asked_once():
    plain = rig.request()
    assert wheel_fleet.wheels_sought([plain, dict(plain, python="/opt/other")]) == [
        {"key": rig.key(), "package": "tiny-kernel", "version": "", "sha256": "",
         "sources": plain["sources"]}]
    for other in ({"version": "==1.0"}, {"sources": [{"folder": "/srv"}]}, {"sha256": "a" * 64}):
        assert len(wheel_fleet.wheels_sought([plain, dict(plain, **other)])) == 2


# What endpoints are told.


ENDPOINT = {"model": planner.FOLDER + "Llama-3.1-8B", "engine_python": rig.PYTHON,
            "engine_version": "0.24.0"}
HOST = planner.host("h100", 1)


def planned(wanted, state=None, **changes):
    """The plan of an endpoint, where the environments have those wheels."""
    asked = planner.asked({**ENDPOINT, **changes})
    catalog = planner.catalog()
    return planner.only(planning.deployment_plan(
        wheel_fleet.endpoint_wheels(asked, wanted), HOST, planner.models_of(asked),
        state or planner.state(), catalog, planner.health.host_health(HOST, catalog)))


def wheels_at(version, python=rig.PYTHON):
    return {python: {"flash-attn": {"version": version, "sha256": ""}}}


def test_what_has_no_wheels_is_the_plan_that_it_was():
    usual = planner.only(planner.plan(HOST, ENDPOINT))
    for wanted in ({}, {rig.PYTHON: {}}, wheels_at("2.8.3", "/opt/other/bin/python")):
        assert planned(wanted) == usual
    assert "wheels" not in usual
    native = {"engine_python": None, "engine_version": "auto"}
    assert "wheels" not in planned(wheels_at("2.8.3"), **native)


def test_another_wheel_is_another_plan_and_the_same_is_kept():
    first = planned(wheels_at("2.8.3"))
    assert first["wheels"] == {"flash-attn": {"version": "2.8.3", "sha256": ""}}
    assert planned(wheels_at("2.8.3", "/opt//serve/bin/python"))["hash"] == first["hash"]
    state = planner.state({"chat": planner.serving(first)})
    texts = {first["hash"]: "text"}
    assert planned(wheels_at("2.8.3"), state)["hash"] == first["hash"]
    second = planned(wheels_at("2.8.4"), state)
    texts[second["hash"]] = "text"
    assert second["hash"] not in (first["hash"], planned({})["hash"])
    state["endpoints"]["chat"].update(gpus_seen=None, half_done=False, way_in={}, definition=(
        hashlib.sha256(b"text").hexdigest()))
    assert switching.endpoints_to_switch([first], state, texts, {}) == []
    assert switching.endpoints_to_switch([second], state, texts, {}) == ["chat"]
    # The new one is proven with the canary before what serves is stopped.
    proofs = [canary_plan.canary_key(one, HOST) for one in (first, second, planned({}))]
    assert len(set(proofs)) == 3
    state["canaries"] = proofs[::2]
    assert canary_plan.canaries_needed([second], HOST, state) == ["chat"]
    # Nothing else is decided anew by that.
    assert {key: second[key] for key in ("gpus", "context", "flags", "command")} == {
        key: first[key] for key in ("gpus", "context", "flags", "command")}


def test_what_is_there_is_what_is_wanted_of_all_that_works():
    asked = [rig.request(), rig.request("other", place=1), rig.request("none", place=2),
             rig.request(python="/opt/gone/bin/python")]
    places = {rig.PYTHON: rig.environment(tiny_kernel="1.1+cu130", other="2.0", none=None)}
    there = wheel_fleet.wheels_there(asked, places)
    assert there == {rig.PYTHON: {"tiny-kernel": {"version": "1.1", "sha256": ""},
                                  "other": {"version": "2.0", "sha256": ""}}}
    assert there == deciding.wheels_wanted(deciding.wheel_decisions(asked, places, {}, {}))
    places[rig.PYTHON]["installed"]["other"]["imports"]["state"] = "failed"
    places[rig.PYTHON]["installed"]["tiny-kernel"]["version"] = "no version"
    assert wheel_fleet.wheels_there(asked, places) == {
        rig.PYTHON: {"other": {"version": "2.0", "sha256": ""}}}


# What is compiled.


@given(rig.to_build())
def test_what_is_compiled_has_a_plan_and_what_cannot_be_is_refused(given_):
    decisions, _, _, limit_s = given_
    for before, one in zip(decisions, wheel_fleet.wheel_build_decisions(*given_)):
        # Who prints a decision does not print a thousand files.
        assert "rejected" not in one
        if before["action"] != "build":
            assert {**one, "rejected": before["rejected"]} == before
            continue
        against = findings.blocking(one["findings"])
        assert one["action"] == ("refused" if against else "build")
        assert bool(against) == (one["version"] == "")
        assert against or (one["build"]["limit_s"], one["build"]["jobs"] > 0) == (limit_s, True)
        assert all(told["subject"].startswith("prebuilt_wheel_packages[0]") for told in against)


# A fleet.


@pytest.mark.parametrize(("fleet", "seed", "who"), [
    ({"a": rig.host(rig.request()), "b": rig.host(rig.request())}, "", "a"),
    ({"a": rig.host(rig.request(), can=False), "b": rig.host(rig.request())}, "", "b"),
    ({"a": rig.host(), "b": rig.host(rig.request())}, "", "b"),
    ({"a": rig.host(), "b": rig.host(rig.request(), can=False)}, "", "a"),
    ({"a": rig.host(rig.request(), can=False)}, "", ""),
    ({"a": rig.host(rig.request())}, "localhost", "localhost"),
    ({"a": rig.host(rig.request()), "b": rig.host(rig.request())}, "b", "b")])
def test_who_needs_something_and_may_go_out_goes_for_all(fleet, seed, who):
    asked = wheel_fleet.wheel_fleet_asked(fleet, seed)
    assert asked["seed"] == who
    assert asked["sought"] == wheel_fleet.wheels_sought([rig.request()])


def test_nothing_is_sought_where_all_is_there():
    fleet = {"a": rig.host(rig.request(), tiny_kernel="1.1"), "b": rig.host()}
    asked = wheel_fleet.wheel_fleet_asked(fleet)
    assert asked["sought"] == []
    assert wheel_fleet.wheel_fleet_plan(fleet, asked, {}) == {
        "fetch": [], "needs": {}, "stuck": {}, "told": {}}


def test_each_machine_and_python_gets_its_own_and_each_file_is_fetched_once():
    arm = rig.host(rig.request())
    arm["environments"][rig.PYTHON]["machine"] = "aarch64"
    fleet = {"a": rig.host(rig.request()), "b": rig.host(rig.request()), "arm": arm,
             "has": rig.host(rig.request(), has=[X86]), "none": rig.host()}
    after, fetched, plan, came = rig.carried_out(fleet, "", rig.FILES)
    assert sorted(fetched) == sorted([X86, ARM])
    assert {name: [one["file"] for one in wheels] for name, wheels in came["copies"].items()} == {
        "b": [X86], "arm": [ARM]}
    assert sorted(one["file"] for one in came["carry"]) == sorted([X86, ARM])
    assert plan["stuck"] == came["stuck"] == {}
    text = wheel_fleet.wheel_fleet_text(plan, "a")
    assert text.splitlines() == [
        X86 + ", 2.5 MB; a fetches it (https://wheels.example.org); copied to b",
        ARM + ", 2.5 MB; a fetches it (https://wheels.example.org); copied to arm"]
    again, fetched, plan, came = rig.carried_out(after, "", rig.FILES)
    assert (again, fetched, plan["needs"]) == (after, [], {})
    assert wheel_fleet.wheel_fleet_text(plan, "a") == ""


def test_what_the_seed_built_its_like_get_and_nobody_fetches():
    built = {"torch": "", "cuda": "", "cxx11abi": None, "capabilities": []}
    told = rig.answer(house=[X86])
    told["candidates"][rig.key()][0].update(built_for=built, source="built here")
    fleet = {"a": rig.host(rig.request(), has=[X86]), "b": rig.host(rig.request())}
    plan = wheel_fleet.wheel_fleet_plan(
        fleet, wheel_fleet.wheel_fleet_asked(fleet), told)
    assert plan["fetch"] == []
    [wheel] = plan["needs"]["b"]
    assert (wheel["file"], wheel["built_for"]) == (X86, built)
    assert "a" not in plan["needs"]
    assert wheel_fleet.wheel_fleet_text(plan, "a").endswith("; a has it; copied to b")


def test_a_source_that_may_be_built_is_brought_as_a_wheel_is():
    row = rig.builder.row("tiny-kernel", build=rig.BUILD)
    source = "tiny_kernel-1.1.tar.gz"
    for build, files in ((True, [source]), (False, [])):
        fleet = {name: rig.host(rig.request(row=row), build=build) for name in ("a", "b")}
        for about in fleet.values():
            about["facts"] = {"devices": [], "cpu": {"cores": 4, "threads": 4},
                              "memory": {"available_bytes": 2**34, "total_bytes": 2**35}}
        _, fetched, plan, came = rig.carried_out(fleet, "", [source])
        assert fetched == files
        assert sorted(plan["stuck"]) == ([] if build else ["a", "b"])
        assert [one["file"] for one in came["copies"].get("b", [])] == files


def test_who_has_no_wheel_is_told_and_keeps_nothing_from_the_others():
    odd = rig.host(rig.request(version="==9"))
    fleet = {"a": rig.host(rig.request()), "odd": odd, "b": rig.host(rig.request())}
    after, fetched, plan, _ = rig.carried_out(fleet, "", rig.FILES)
    assert list(plan["stuck"]) == ["odd"]
    assert {one["id"][:6] for one in plan["stuck"]["odd"]} == {"wheel-"}
    assert fetched == [X86]
    assert after["b"]["candidates"][rig.key()]


def test_who_was_to_list_and_fell_out_is_named():
    fleet = {"b": rig.host(rig.request())}
    asked = {"seed": "a", "sought": wheel_fleet.wheels_sought([rig.request()])}
    plan = wheel_fleet.wheel_fleet_plan(fleet, asked, {"failed": True, "msg": "x"})
    first = plan["stuck"]["b"][0]
    assert first["id"] == "wheel-no-answer"
    assert "a was to list" in first["found"]


def test_a_seed_that_is_down_is_named_to_those_that_need_something():
    fleet = {"b": rig.host(rig.request()), "idle": rig.host(),
             "done": rig.host(rig.request(), tiny_kernel="1.1"),
             "has": rig.host(rig.request(), has=[X86])}
    plan = wheel_fleet.wheel_fleet_plan(fleet, wheel_fleet.wheel_fleet_asked(fleet, "gone"), {})
    assert list(plan["stuck"]) == ["b"]
    first = plan["stuck"]["b"][0]
    assert (first["id"], first["subject"]) == ("wheel-no-answer", "prebuilt_wheel_seed")
    assert "gone was to list wheels for all, and is unreachable" in first["found"]
    assert (plan["fetch"], plan["needs"]) == ([], {})


def test_a_seed_that_may_not_go_out_is_no_way_out():
    fleet = {"a": rig.host(rig.request(), can=False), "b": rig.host(rig.request())}
    told = {"candidates": {}, "house": {}}
    plan = wheel_fleet.wheel_fleet_plan(fleet, wheel_fleet.wheel_fleet_asked(fleet, "a"), told)
    assert sorted(plan["stuck"]) == ["a", "b"]
    assert "there is no way out" in plan["stuck"]["b"][0]["found"]


@pytest.mark.parametrize("has", [False, True])
@pytest.mark.parametrize("seed", ["", "b", "localhost"])
def test_two_files_of_one_name_are_never_put_in_one_place(seed, has):
    first, second = (rig.candidate(X86, url="https://%s.example.org/%s" % (cuda, X86),
                                   sha256=digit * 64, source=cuda)
                     for cuda, digit in (("cu126", "a"), ("cu130", "b")))
    fleet = {name: rig.host(rig.request(sha256=one["sha256"])) for name, one in (
        ("a", first), ("b", second), ("c", first), ("d", second))}
    own = dict(second, path="/root/wheels/" + X86)
    if has:
        fleet["b"]["candidates"] = {rig.key(fleet["b"]["requests"][0]): [own]}
    asked = wheel_fleet.wheel_fleet_asked(fleet, seed)
    listed = [first, second, *[own] * (has and seed == "b")]
    plan = wheel_fleet.wheel_fleet_plan(fleet, asked, {
        "candidates": {one["key"]: listed for one in asked["sought"]},
        "house": {X86: own} if has and seed == "b" else {}})
    passing = second if seed == "b" else first
    assert plan["fetch"] == ([] if seed == "b" and has else [passing])
    assert sorted(plan["needs"]) == [
        name for name in "abcd" if fleet[name]["requests"][0]["sha256"] == passing["sha256"]
        and not (name == "b" and has)]
    stuck = [name for name in "abcd" if fleet[name]["requests"][0]["sha256"] != passing["sha256"]
             and not (name == "b" and has)]
    assert sorted(plan["stuck"]) == stuck
    [told] = plan["stuck"][stuck[0]]
    assert told["id"] == "wheel-same-name"
    assert first["sha256"] in told["found"] and second["sha256"] in told["found"]


def test_two_environments_of_a_host_may_need_two_files_of_one_name():
    first, second = (rig.candidate(X86, sha256=digit * 64) for digit in "ab")
    other = rig.request(python="/opt/other/bin/python", sha256="b" * 64, place=1)
    fleet = {"a": rig.host(rig.request(sha256="a" * 64), other)}
    fleet["a"]["candidates"] = {rig.key(other): [dict(second, path="/root/wheels/" + X86)]}
    asked = wheel_fleet.wheel_fleet_asked(fleet, "localhost")
    plan = wheel_fleet.wheel_fleet_plan(fleet, asked, {
        "candidates": {one["key"]: [first, second] for one in asked["sought"]}, "house": {}})
    # The one that is there is not replaced.
    assert (plan["fetch"], plan["needs"]) == ([], {})
    assert [one["subject"] for one in plan["stuck"]["a"]] == ["prebuilt_wheel_packages[0]"]


def test_a_file_that_does_not_come_fails_only_those_that_need_it():
    arm = rig.host(rig.request())
    arm["environments"][rig.PYTHON]["machine"] = "aarch64"
    fleet = {"a": rig.host(rig.request()), "b": rig.host(rig.request()), "arm": arm}
    _, _, plan, came = rig.carried_out(fleet, "", rig.FILES, fails=[X86])
    assert sorted(came["stuck"]) == ["a", "b"]
    [told] = came["stuck"]["b"]
    assert (told["id"], told["subject"]) == ("wheel-not-fetched", X86)
    assert "a has not got it: no such file" in told["found"]
    assert [one["file"] for one in came["copies"]["arm"]] == [ARM]
    gone = wheel_fleet.wheel_fleet_came(plan, "a", [])
    assert sorted(gone["stuck"]) == ["a", "arm", "b"] and gone["carry"] == []
    assert "it fell out of the run" in gone["stuck"]["arm"][0]["found"]


@given(rig.fleets(), st.sampled_from(["", "localhost"]))
def test_every_host_has_what_it_needs_in_the_end_or_is_told_why_not(fleet, seed):
    after, fetched, plan, came = rig.carried_out(fleet, seed, rig.FILES)
    assert len(set(fetched)) == len(fetched)
    for name, about in after.items():
        decisions = deciding.wheel_decisions(
            deciding.wheels_due(about["requests"], about["environments"]), about["environments"],
            about["candidates"], about["facts"], False, True)
        # Without a way out each finds in its own wheelhouse what it is to install.
        lacking = [one for one in decisions if one["action"] == "refused"]
        assert bool(lacking) == (name in plan["stuck"]), (name, lacking)
        # And nothing is there that it did not need.
        had = {one["file"] for listed in fleet[name]["candidates"].values() for one in listed}
        needed = {one["wheel"]["file"] for one in decisions if one["wheel"]}
        got = {one["file"] for listed in about["candidates"].values() for one in listed} - had
        assert got <= needed | ({*fetched} if name == wheel_fleet.wheel_fleet_asked(
            fleet, seed)["seed"] else set())
    assert came["stuck"] == {}
    again = rig.carried_out(after, seed, rig.FILES)
    assert (again[1], again[2]["needs"], list(again[2]["stuck"])) == ([], {}, list(plan["stuck"]))
