# SPDX-License-Identifier: Apache-2.0
"""Which devices an endpoint gets, and what is said of those that it does not."""

from __future__ import annotations

import copy

import pytest
from facts import (
    GIB,
    RESERVED,
    TOTAL,
    changed,
    device,
    holder,
    host,
    jetson_host,
    piece,
    reason,
    unopened,
    unread,
    uuid,
)
from hypothesis import given
from hypothesis import strategies as st

from ansible.module_utils.firstlight.planning.devices import select_devices

NO_NVLINK = {"nvlink": {"links": 0, "active": 0, "peers": []}}


def want(count=1, **changes):
    return {"where": "inference_endpoints[0] (chat)", "name": "chat", "count": count, "uuids": [],
            "keep": [], "tensor_parallel": False, "memory_bytes": 0, "share": False, "taken": {},
            **changes}


def healthy(facts, **verdicts):
    """Every device ok, but those named by index: ``bad_1="bad"``."""
    devices = {one["uuid"] or "devices[%d]" % one["index"]: "ok" for one in facts["devices"]}
    devices.update({uuid(int(key.rpartition("_")[2])): value for key, value in verdicts.items()})
    return {"verdict": "ok", "devices": devices, "findings": [], "remedies": []}


def select(facts, wanted, held=None, **verdicts):
    return select_devices(facts, wanted, healthy(facts, **verdicts), held)


def chosen(*arguments, **verdicts):
    """The indexes of the devices that were chosen; there was no refusal."""
    answer = select(*arguments, **verdicts)
    assert answer["refusals"] == []
    return [int(one[-12:]) for one in answer["devices"]]


def refused(*arguments, **verdicts):
    """The one refusal; there were no devices."""
    answer = select(*arguments, **verdicts)
    assert answer["devices"] == []
    (one,) = answer["refusals"]
    assert one["severity"] == "error"
    assert one["subject"] == "inference_endpoints[0] (chat).gpus"
    assert one["subject"] in one["remedy"]
    return one


def busy(index, *holders, **changes):
    """A device with these holders, and so much less free."""
    taken = sum(one["bytes"] or 0 for one in holders)
    return device(index, memory_free_bytes=TOTAL - RESERVED - taken, holders=list(holders),
                  **changes)


def row(*devices):
    return host(list(devices))


def test_the_one_with_most_free_memory_is_taken_then_by_address():
    facts = row(device(0, memory_free_bytes=100 * GIB), device(1), device(2))
    assert chosen(facts, want()) == [1]
    assert chosen(facts, want(2)) == [1, 2]
    assert chosen(facts, want(3)) == [0, 1, 2]


def test_a_few_bytes_make_no_difference():
    facts = row(device(0, memory_free_bytes=100 * GIB + 1), device(1, memory_free_bytes=100 * GIB
                                                                  + 1000))
    assert chosen(facts, want()) == [0]


def test_no_device_is_wanted():
    assert chosen(row(device()), want(0)) == []


def test_all_takes_what_can_be_had_and_says_what_is_left_out():
    facts = row(device(0), busy(1, holder(639, 10 * GIB)), device(2))
    answer = select(facts, want("all"))
    assert answer["devices"] == [uuid(0), uuid(2)]
    assert any("GPU 1" in one and "pid 639" in one for one in answer["reasons"])
    assert "any device" in refused(row(busy(0, holder(1, GIB))), want("all"))["wanted"]


def test_a_device_that_others_hold_is_left_out_unless_sharing_is_allowed():
    facts = row(busy(0, holder(639, 10 * GIB, command="python3 train.py", user="eve")))
    found = refused(facts, want())["found"]
    assert "pid 639 of eve (python3 train.py) holds 10.0 GiB" in found
    assert chosen(facts, want(share=True)) == [0]


def test_a_holder_whose_amount_is_not_known_is_a_holder():
    facts = row(busy(0, holder(639, None, command=None, user=None)))
    assert "an unknown amount" in refused(facts, want())["found"]


def test_what_our_own_engine_holds_is_free_for_it():
    facts = row(busy(0, holder(7, 100 * GIB), holder(8, 10 * GIB)))
    assert chosen(facts, want(memory_bytes=130 * GIB), {"pids": [7, 8]}) == [0]
    assert "pid 8" in refused(facts, want(), {"pids": [7]})["found"]
    assert "free, and" in refused(facts, want(memory_bytes=141 * GIB), {"pids": [7, 8]})["found"]


def test_memory_that_is_not_known_is_never_planned_with():
    facts = unread(row(device(0), device(1)), "devices[0].memory_free_bytes", "nvml-10")
    assert chosen(facts, want()) == [1]
    found = refused(facts, want(2))["found"]
    assert "its free memory is not known: NVML error 10" in found


def test_holders_that_are_not_known_are_not_taken_for_none():
    facts = unread(row(device(0), device(1)), "devices[0].holders", "nvml-4")
    assert chosen(facts, want()) == [1]
    assert "who holds memory of it is not known: NVML error 4" in refused(facts, want(2))["found"]
    assert chosen(facts, want(share=True)) == [0]


@pytest.mark.parametrize("wanted", [want(), want(share=True), want(uuids=[uuid(0)])])
def test_a_bad_device_is_never_taken(wanted):
    assert "its health is bad" in refused(row(device(0)), wanted, bad_0="bad")["found"]


def test_a_device_that_was_not_judged_is_not_taken():
    health = {"verdict": "ok", "devices": {}, "findings": [], "remedies": []}
    answer = select_devices(row(device(0)), want(), health)
    assert "it was not judged" in answer["refusals"][0]["found"]


def test_what_is_bad_of_a_device_is_said():
    facts = row(device(0))
    health = healthy(facts, bad_0="bad")
    health["findings"] = [{"id": "x", "severity": "error", "found": "it is on fire",
                           "subject": "GPU 0 (NVIDIA H200, %s)" % uuid(0)}]
    (one,) = select_devices(facts, want(), health)["refusals"]
    assert "it is on fire" in one["found"]


def test_a_degraded_device_is_taken_when_no_other_is_left():
    facts = row(device(0), device(1, memory_free_bytes=90 * GIB))
    assert chosen(facts, want(), worn_0="degraded") == [1]
    assert chosen(facts, want(2), worn_0="degraded") == [0, 1]


def test_devices_of_one_endpoint_are_of_one_model():
    other = {"name": "NVIDIA H100 80GB HBM3", "memory_total_bytes": 80 * GIB,
             "memory_free_bytes": 79 * GIB}
    facts = row(device(0), device(1, **other), device(2, **other))
    assert chosen(facts, want(2)) == [1, 2]
    one = refused(facts, want(3))
    assert one["id"] == "devices-unlike"
    assert "it fits, a model NVIDIA H200" in one["found"]
    less = row(device(0), device(1, memory_total_bytes=TOTAL + 2**30))
    assert refused(less, want(2))["id"] == "devices-unlike"


def cliques(*numbers):
    return row(*(device(index, nvlink={"clique": number, "links": 18})
                 for index, number in enumerate(numbers)))


def test_tensor_parallel_stays_in_one_nvlink_clique():
    facts = cliques(0, 1, 0, 1)
    assert chosen(facts, want(2, tensor_parallel=True)) == [0, 2]
    assert chosen(facts, want(2, tensor_parallel=True), worn_0="degraded") == [1, 3]
    assert chosen(facts, want(2)) == [0, 1]
    one = refused(facts, want(3, tensor_parallel=True))
    assert one["id"] == "devices-no-clique"
    assert "NVLink clique" in one["wanted"]
    assert "in NVLink clique 1" in one["found"]


def test_tensor_parallel_over_devices_without_nvlink_is_said_and_allowed():
    facts = row(device(0, **NO_NVLINK), device(1, nvlink=None))
    answer = select(facts, want(2, tensor_parallel=True))
    assert answer["devices"] == [uuid(0), uuid(1)]
    assert any("PCI Express" in one for one in answer["reasons"])


def test_devices_without_a_clique_are_near_to_none_where_others_have_nvlink():
    facts = row(device(0, nvlink=None), device(1, nvlink=None), device(2))
    assert refused(facts, want(2, tensor_parallel=True))["id"] == "devices-no-clique"
    assert chosen(facts, want(1, tensor_parallel=True)) == [0]


def test_what_the_endpoint_has_is_kept_while_it_fits():
    facts = row(device(0), busy(1, holder(7, 100 * GIB)), busy(2, holder(7, 100 * GIB)), device(3))
    kept = want(2, keep=[uuid(2), uuid(1)])
    assert chosen(facts, kept, {"pids": [7]}) == [1, 2]
    assert chosen(facts, kept, {"pids": [7]}, worn_1="degraded") == [1, 2]
    # One of them fits no more.
    assert chosen(facts, kept, {"pids": [7]}, bad_1="bad") == [0, 2]


def test_a_clique_is_kept_too():
    facts = cliques(0, 0, 1, 1)
    assert chosen(facts, want(2, tensor_parallel=True, keep=[uuid(3), uuid(2)])) == [2, 3]


def test_the_clique_of_which_it_has_most_is_kept():
    facts = cliques(0, 0, 1, 1)
    assert chosen(facts, want(2, tensor_parallel=True, keep=[uuid(0), uuid(2), uuid(3)])) == [2, 3]


def test_a_clique_that_is_well_comes_before_one_with_more_memory():
    facts = cliques(0, 0, 1, 1)
    for index in (2, 3):
        facts["devices"][index]["memory_free_bytes"] -= 9 * GIB
    assert chosen(facts, want(2, tensor_parallel=True), worn_1="degraded") == [2, 3]


def test_all_are_those_of_the_model_of_which_there_are_most():
    facts = row(device(0), device(1, name="NVIDIA L40S"), device(2, name="NVIDIA L40S"))
    assert chosen(facts, want("all")) == [1, 2]


def test_a_device_of_another_endpoint_is_not_had_even_when_it_is_named_or_shared():
    facts = row(device(0), device(1))
    taken = {uuid(0): "embed"}
    assert chosen(facts, want(taken=taken)) == [1]
    for wanted in (want(2, taken=taken), want(uuids=[uuid(0)], taken=taken),
                   want(2, share=True, taken=taken)):
        assert "it is for the endpoint embed" in refused(facts, wanted)["found"]


def test_a_slice_goes_with_its_device_and_leaves_the_other_slices():
    facts = row(device(0, **SPLIT))
    assert select(facts, want(taken={"MIG-1": "embed"}))["devices"] == ["MIG-2"]
    assert "it is for the endpoint embed" in refused(facts, want(taken={uuid(0): "embed"}))["found"]


def test_devices_that_the_user_names_are_taken():
    facts = cliques(0, 0, 1, 1)
    assert chosen(facts, want("all", uuids=[uuid(3), uuid(0)])) == [0, 3]
    assert chosen(facts, want(1, uuids=[uuid(2), uuid(2)])) == [2]


@pytest.mark.parametrize("facts, wanted, id, words", [
    (row(device(0)), want(uuids=["GPU-x"]), "devices-unknown", "the host has no GPU-x"),
    (row(device(0), busy(1, holder(9, GIB))), want(uuids=[uuid(0), uuid(1)]), "devices-pinned",
     "pid 9"),
    (row(device(0), device(1, memory_free_bytes=GIB)),
     want(uuids=[uuid(1)], memory_bytes=2 * GIB), "devices-pinned", "1.0 GiB free"),
    (cliques(0, 1), want(2, uuids=[uuid(0), uuid(1)], tensor_parallel=True), "devices-no-clique",
     "it fits"),
])
def test_devices_that_the_user_names_and_cannot_be_had_are_named(facts, wanted, id, words):  # noqa: A002
    one = refused(facts, wanted)
    assert one["id"] == id
    assert words in one["found"]
    if id == "devices-pinned":
        assert uuid(1) in one["found"]


def test_too_few_says_of_every_device_why():
    facts = row(device(0), busy(1, holder(1, GIB)), busy(2, holder(2, 2 * GIB)))
    one = refused(facts, want(2))
    assert one["id"] == "devices-too-few"
    assert "2 devices" in one["wanted"]
    for words in ("GPU 0", "it fits", "GPU 1", "pid 1", "GPU 2", "pid 2", "2.0 GiB"):
        assert words in one["found"]
    assert "no device is on this host" in refused(host([]), want())["found"]


def test_a_device_that_cannot_be_opened_is_not_taken():
    facts = row(device(0))
    gone, why = unopened(1)
    facts["devices"].append(gone)
    facts["unread"].update(why)
    health = healthy(facts)
    health["devices"]["devices[1]"] = "bad"
    assert select_devices(facts, want(), health)["devices"] == [uuid(0)]
    (one,) = select_devices(facts, want(2), health)["refusals"]
    assert "GPU 1 (it tells no name): its health is bad" in one["found"]


# MIG.

SPLIT = {"mig": {"enabled": True, "pending": True, "slices": [piece(1), piece(2)]}}


def test_a_slice_is_a_device_and_its_parent_is_none():
    facts = row(device(0, **SPLIT))
    assert select(facts, want(memory_bytes=30 * GIB))["devices"] == ["MIG-1"]
    found = refused(facts, want(memory_bytes=50 * GIB))["found"]
    assert "it is split by MIG" in found
    assert "slice MIG-1 of GPU 0" in found
    assert refused(facts, want(uuids=[uuid(0)]))["id"] == "devices-pinned"
    assert select(facts, want(uuids=["MIG-2"]))["devices"] == ["MIG-2"]
    assert refused(facts, want(), bad_0="bad")


def test_the_holders_of_a_slice_are_those_in_its_instance():
    facts = row(device(0, holders=[holder(5, GIB, gpu_instance=1)], **SPLIT))
    assert select(facts, want())["devices"] == ["MIG-2"]
    assert select(facts, want(), {"pids": [5]})["devices"] == ["MIG-1"]


@pytest.mark.parametrize("wanted", [want(2), want("all"), want(2, tensor_parallel=True),
                                    want(uuids=["MIG-1", "MIG-2"])])
def test_a_slice_works_alone_only(wanted):
    facts = row(device(0, **SPLIT))
    assert "a MIG slice works alone only" in refused(facts, wanted)["found"]


# Memory that host and GPU share.


def test_a_jetson_has_what_its_host_has_available():
    facts = jetson_host()
    assert chosen(facts, want(memory_bytes=12 * GIB)) == [0]
    assert "12.0 GiB free" in refused(facts, want(memory_bytes=13 * GIB))["found"]
    held = {"pids": [7], "bytes": {uuid(0): 3 * GIB}}
    assert chosen(facts, want(memory_bytes=15 * GIB), held) == [0]
    facts = changed(facts, {"memory": {"available_bytes": None},
                            "unread": {"memory": reason("eacces")}})
    assert "is not known: eacces" in refused(facts, want())["found"]


def test_a_jetson_without_nvml_is_named_by_its_place():
    facts = jetson_host()
    facts["devices"][0]["uuid"] = None
    assert select(facts, want())["devices"] == ["devices[0]"]


def test_on_unified_memory_other_programs_do_not_count_as_holders():
    facts = changed(row(busy(0, holder(1, GIB), unified_memory=True)), {"class": "unified"})
    assert chosen(facts, want()) == [0]


# Whatever the host.

DEVICES = st.fixed_dictionaries({
    "name": st.sampled_from(["NVIDIA H200", "NVIDIA L40S"]),
    "memory_free_bytes": st.none() | st.integers(0, TOTAL),
    "holders": st.none() | st.lists(st.builds(holder, st.integers(1, 3),
                                              st.none() | st.integers(0, 9 * GIB)), max_size=2),
    "nvlink": st.none() | st.fixed_dictionaries({
        "links": st.integers(0, 2), "clique": st.none() | st.integers(0, 1)}),
    "mig": st.none() | st.sampled_from([device()["mig"], SPLIT["mig"]]),
    "unified_memory": st.sampled_from([False, False, False, True]),
})
HOSTS = st.lists(DEVICES, max_size=6).map(
    lambda made: host([device(index, **changes) for index, changes in enumerate(made)]))
WANTED = st.builds(
    want, st.integers(0, 4) | st.just("all"), tensor_parallel=st.booleans(),
    share=st.booleans(), memory_bytes=st.sampled_from([0, GIB, 50 * GIB]),
    taken=st.dictionaries(st.integers(0, 6).map(uuid), st.just("embed"), max_size=2),
    keep=st.lists(st.integers(0, 5).map(uuid), max_size=3),
    uuids=st.just([]) | st.lists(st.integers(0, 6).map(uuid), max_size=3))
VERDICT = st.sampled_from(["ok", "ok", "degraded", "bad"])


@given(facts=HOSTS, wanted=WANTED, data=st.data())
def test_whatever_the_host_the_choice_is_sound_or_refused(facts, wanted, data):
    health = healthy(facts)
    health["devices"] = {key: data.draw(VERDICT) for key in health["devices"]}
    held = data.draw(st.none() | st.just({"pids": [1]}))
    answer = select_devices(facts, wanted, health, held)
    devices = answer["devices"]
    by_uuid = {one["uuid"]: one for one in facts["devices"]}
    whole = [by_uuid[one] for one in devices if one in by_uuid]

    # The order of the devices makes no difference.
    shuffled = copy.deepcopy(facts)
    shuffled["devices"] = data.draw(st.permutations(shuffled["devices"]))
    assert select_devices(shuffled, wanted, health, held) == answer

    needed = len(set(wanted["uuids"])) or wanted["count"]
    assert len(set(devices)) == len(devices)
    assert len(devices) in ([needed] if needed != "all" else range(1, 7)) or answer["refusals"]
    assert bool(answer["refusals"]) == (not devices and needed != 0)
    assert set(wanted["uuids"]) >= set(devices) or not wanted["uuids"]
    assert len({(one["name"], one["memory_total_bytes"]) for one in whole}) <= 1
    assert not set(wanted["taken"]) & set(devices)
    for one in whole:
        assert health["devices"][one["uuid"]] != "bad"
        assert not (one["mig"] and one["mig"]["enabled"])
        assert wanted["share"] or one["unified_memory"] or one["memory_free_bytes"] is not None
        assert one["unified_memory"] or wanted["share"] or {
            each["pid"] for each in one["holders"]} <= set((held or {}).get("pids", []))
    if len(devices) > 1:
        assert len(whole) == len(devices)
        linked = any((one["nvlink"] or {}).get("links") for one in facts["devices"])
        if wanted["tensor_parallel"] and linked:
            assert len({(one["nvlink"] or {}).get("clique") for one in whole}) == 1


@given(facts=HOSTS, wanted=WANTED)
def test_a_second_choice_keeps_the_first(facts, wanted):
    first = select(facts, wanted)["devices"]
    again = select(facts, dict(wanted, keep=first))["devices"]
    assert sorted(again) == sorted(first)


def test_peers_are_nvlink_though_nobody_counted_the_links():
    facts = cliques(0, 1, 0, 1)
    for one in facts["devices"]:
        one["nvlink"].update(links=None, active=None, to_switch=None, peers=["GPU-x"])
    assert chosen(facts, want(2, tensor_parallel=True)) == [0, 2]


def test_what_the_endpoint_holds_counts_where_the_driver_lists_it_without_bytes():
    facts = row(device(0, memory_free_bytes=10 * GIB, holders=[dict(holder(5, 0), bytes=None)]))
    held = {"pids": [5], "bytes": {uuid(0): 120 * GIB}}
    assert chosen(facts, want(memory_bytes=100 * GIB), held) == [0]
