# SPDX-License-Identifier: Apache-2.0
"""What each safe remedy takes on a host: what it acts on, what is left, what stands in the way."""

from __future__ import annotations

import copy

import pytest

from ansible.module_utils.firstlight.planning.tuning import largest_mode, tuning_plan

GIB = 2**30
ALL = ["fabric_manager", "persistence", "page_cache", "swap", "power_mode"]
SWAP = "/var/lib/firstlight/swapfile"


def gpu(index=0, **changes):
    return {"index": index, "uuid": "GPU-%d" % index, "persistence": True,
            "fabric": {"state": "completed", "status": "success"}, **changes}


def host(**changes):
    return {"class": "nvidia", "driver": {"version": "580.159.04"}, "devices": [],
            "fabric_manager": None, "persistence_daemon": None, "jetson": None,
            "memory": {"swap_bytes": 2 * GIB}, "unread": {},
            "disk": {"path": "/var/lib/firstlight/models", "total_bytes": 100 * GIB,
                     "free_bytes": 50 * GIB}, **changes}


def nvswitch(state="inactive", fabric="not_started", **changes):
    daemon = {"state": state, "enabled": state == "active", "version": "580.159.04", **changes}
    return host(fabric_manager=daemon, devices=[
        gpu(index, fabric={"state": fabric, "status": "success"}) for index in range(2)])


def orin(mode="15W", **changes):
    modes = {"MAXN": 0, "10W": 1, "15W": 2, "25W": 3}
    return host(**{"class": "jetson", "driver": None, "memory": {"swap_bytes": 0}, "jetson": {
        "power_modes": modes, "power_mode": mode, "power_mode_id": modes.get(mode)}, **changes})


def plan(facts, remedies=ALL, size=8 * GIB, path=SWAP, mode=""):
    return tuning_plan(facts, remedies, size, path, mode)


@pytest.mark.parametrize("facts", [nvswitch(), orin(), host(devices=[gpu(persistence=False)])])
def test_nothing_is_done_and_nothing_refused_that_is_not_asked_for(facts):
    for one in plan(facts, remedies=[], path="/elsewhere", mode="none").values():
        assert (one["act"], one["refusals"]) == (False, [])


def test_a_host_in_order_has_nothing_left_to_do():
    facts = nvswitch("active", "completed")
    facts["persistence_daemon"] = {"state": "active", "enabled": True}
    assert [name for name, one in plan(facts).items() if one["act"]] == []
    assert [name for name, one in plan(orin("MAXN", memory={"swap_bytes": GIB})).items()
            if one["act"]] == ["page_cache"]


# The fabric manager


def test_a_fabric_manager_that_is_down_is_started():
    one = plan(nvswitch())["fabric_manager"]
    assert one["act"] and one["refusals"] == []
    assert one["unit"] == {"name": "nvidia-fabricmanager.service", "active": False,
                           "down": True, "enabled": False}
    assert one["left"] == [
        "nvidia-fabricmanager.service does not run",
        "GPU 0 (GPU-0): its fabric is not_started", "GPU 1 (GPU-1): its fabric is not_started"]


def test_a_fabric_manager_that_runs_is_made_to_start_at_boot():
    one = plan(nvswitch("active", "completed", enabled=False))["fabric_manager"]
    assert (one["act"], one["left"]) == (True, [])


@pytest.mark.parametrize("changes, left", [
    ({"fabric": {"state": "in_progress", "status": "success"}}, "its fabric is in_progress"),
    ({"fabric": {"state": "completed", "status": "failure"}}, "its fabric ended with failure"),
    ({"fabric": None}, "its fabric could not be read: NVML error 999: Unknown"),
])
def test_the_fabric_is_up_when_every_gpu_says_so(changes, left):
    facts = nvswitch("active", "completed")
    facts["devices"][1].update(changes)
    facts["unread"] = {"devices[1]": {"code": "nvml-999", "reason": "NVML error 999: Unknown"}}
    assert plan(facts)["fabric_manager"]["left"] == ["GPU 1 (GPU-1): " + left]


@pytest.mark.parametrize("fabric, code", [
    ({"state": "not_supported", "status": None}, "x"), (None, "nvml-3"), (None, "nvml-13")])
def test_gpus_without_a_fabric_have_none_to_wait_for(fabric, code):
    facts = nvswitch("active", "completed")
    facts["devices"][0]["fabric"] = fabric
    facts["unread"] = {"devices[0].fabric": {"code": code, "reason": "why"}}
    assert plan(facts)["fabric_manager"]["left"] == []


@pytest.mark.parametrize("changes, found", [
    ({"state": "not-found", "version": None}, "it is not installed"),
    ({"version": "580.126.09"}, "it is of version 580.126.09"),
    ({"version": None}, "fabric_manager.version could not be read: no such file"),
])
def test_a_fabric_manager_of_another_version_is_never_started(changes, found):
    facts = nvswitch(**changes)
    facts["unread"] = {"fabric_manager.version": {"code": "enoent", "reason": "no such file"}}
    (refused,) = plan(facts)["fabric_manager"]["refusals"]
    assert (refused["id"], refused["found"]) == ("fabric-manager-version", found)
    assert "580.159.04" in refused["wanted"]
    assert "nvidia-fabricmanager-580 " in refused["remedy"]


def test_without_the_drivers_version_nobody_can_tell_which_fabric_manager_fits():
    facts = nvswitch()
    facts["driver"] = None
    (refused,) = plan(facts)["fabric_manager"]["refusals"]
    assert refused["found"] == "driver.version could not be read: no reason was kept"


def test_waiting_ends_when_the_fabric_is_up_or_its_manager_is_down_for_good():
    settled = {(state, fabric): plan(nvswitch(state, fabric))["fabric_manager"]["settled"]
               for state in ("active", "activating", "failed")
               for fabric in ("in_progress", "completed")}
    assert [key for key, value in settled.items() if value] == [
        ("active", "completed"), ("failed", "in_progress"), ("failed", "completed")]


# Persistence


def test_persistence_is_kept_by_the_daemon_where_it_is_installed():
    facts = host(devices=[gpu(), gpu(1, persistence=False)],
                 persistence_daemon={"state": "inactive", "enabled": True})
    one = plan(facts)["persistence"]
    assert one["act"] and one["unit"]["name"] == "nvidia-persistenced.service"
    assert one["left"] == ["nvidia-persistenced.service does not run",
                           "GPU 1 (GPU-1): persistence is off"]


@pytest.mark.parametrize("daemon", [None, {"state": "not-found", "enabled": False}])
def test_persistence_without_a_daemon_is_the_drivers(daemon):
    one = plan(host(devices=[gpu(persistence=False)], persistence_daemon=daemon))["persistence"]
    assert one["act"] and one["unit"] is None


@pytest.mark.parametrize("code, left", [
    ("nvml-3", []), ("nvml-999", ["GPU 0 (GPU-0): persistence could not be read: why"])])
def test_persistence_that_could_not_be_read_is_not_taken_for_on(code, left):
    facts = host(devices=[gpu(persistence=None)],
                 unread={"devices[0].persistence": {"code": code, "reason": "why"}})
    assert plan(facts)["persistence"]["left"] == left


# The page cache


@pytest.mark.parametrize("kind, act", [
    ("jetson", True), ("unified", True), ("nvidia", False), ("cpu", False)])
def test_the_page_cache_is_in_the_way_of_unified_memory_only(kind, act):
    assert plan(host(**{"class": kind}))["page_cache"]["act"] is act


# Swap


@pytest.mark.parametrize("found, act", [(0, True), (GIB, False), (None, False)])
def test_swap_that_is_there_is_kept(found, act):
    assert plan(orin(memory={"swap_bytes": found}))["swap"]["act"] is act


@pytest.mark.parametrize("free, size, refused", [
    (50, 8, False), (18, 8, False), (17, 8, True), (5, 1, True), (50, 0, True), (50, -1, True)])
def test_a_tenth_of_the_file_system_stays_free(free, size, refused):
    facts = orin()
    facts["disk"]["free_bytes"] = free * GIB
    found = plan(facts, size=size * GIB)["swap"]["refusals"]
    assert [one["id"] for one in found] == ["swap-room"] * refused


def test_a_swap_file_goes_where_the_free_space_is_known():
    for path in ("/swapfile", "/var/lib/firstlight/a b", "/var/lib/firstlight/a\nb",
                 "/var/lib/firstlight/../swapfile", "swapfile", "",
                 "/var/lib/firstlight2/swapfile"):
        assert [one["id"] for one in plan(orin(), path=path)["swap"]["refusals"]] == ["swap-path"]
    facts = orin()
    facts["disk"]["free_bytes"] = None
    assert [one["id"] for one in plan(facts)["swap"]["refusals"]] == ["swap-room"]


# The power mode


@pytest.mark.parametrize("modes, largest", [
    (["MAXN", "10W", "25W"], "MAXN"),
    (["15W", "MAXN_SUPER", "40W"], "MAXN_SUPER"),
    (["MODE_15W", "MODE_50W", "MODE_30W"], "MODE_50W"),
    (["MODE_15W_2CORE", "MODE_20W_2CORE", "MODE_20W_6CORE", "MODE_10W_DESKTOP"],
     "MODE_20W_6CORE"),
    (["MODE_30W_4CORE", "MODE_30W_ALL"], "MODE_30W_ALL"),
    (["quiet", "loud"], None), ([], None),
])
def test_the_largest_mode_is_told_by_its_name(modes, largest):
    assert largest_mode(modes) == largest_mode(reversed(modes)) == largest


def test_the_mode_is_set_by_the_number_that_this_board_gives_it():
    one = plan(orin())["power_mode"]
    assert (one["act"], one["name"], one["id"], one["before"]) == (True, "MAXN", 0, 2)
    assert one["left"] == ["the power mode is 15W"]
    assert plan(orin("MAXN"), mode="25W")["power_mode"]["id"] == 3
    assert not plan(orin("25W"), mode="25W")["power_mode"]["act"]


def test_a_mode_that_the_board_has_not_is_refused():
    (refused,) = plan(orin(), mode="60W")["power_mode"]["refusals"]
    assert (refused["found"], refused["wanted"]) == (
        "this board has only MAXN, 10W, 15W, 25W", "60W")
    facts = orin()
    facts["jetson"].update(power_modes=None, power_mode=None, power_mode_id=None)
    facts["unread"] = {"jetson.power_modes": {"code": "enoent", "reason": "no such file"}}
    (refused,) = plan(facts)["power_mode"]["refusals"]
    assert refused["found"] == "this board has no mode: no such file"


@pytest.mark.parametrize("facts", [nvswitch(), orin(), host(devices=[gpu(persistence=None)])])
def test_deciding_leaves_the_facts_alone(facts):
    before = copy.deepcopy(facts)
    plan(facts)
    assert facts == before


def test_a_lost_card_does_not_take_back_what_helps_the_others():
    facts = nvswitch(fabric="completed")
    facts["devices"][0].update(fabric=None, persistence=None)
    facts["unread"] = {"devices[0]": {"code": "nvml-15", "reason": "GPU is lost"}}
    found = plan(facts)
    assert not any("could not be read" in words for name in ("fabric_manager", "persistence")
                   for words in found[name]["left"])
    facts["unread"] = {"devices[0]": {"code": "nvml-4", "reason": "no permission"}}
    assert any("could not be read" in words for words in plan(facts)["persistence"]["left"])
