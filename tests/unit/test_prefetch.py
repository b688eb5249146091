# SPDX-License-Identifier: Apache-2.0
"""Every host of a fleet gets what it wants, the hub is read once, and copies double."""

from __future__ import annotations

import math

import fleets
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ansible.module_utils.firstlight import findings
from ansible.module_utils.firstlight.planning import prefetch

CHAT = fleets.request("chat")
SEEDS = st.sampled_from(["", "h0", "localhost"])


def names(count):
    return ["h%d" % number for number in range(count)]


def fresh(count):
    """Hosts that want the same and have nothing of it, as they are once it was told."""
    fleet = {name: fleets.host([CHAT]) for name in names(count)}
    return fleets.outlined(fleet)[0]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 9, 16, 33, 100])
def test_each_round_doubles_the_hosts_that_have_it(count):
    after, done = fleets.carried_out(fresh(count))
    assert all(about["snapshots"]["chat"]["present"] for about in after.values())
    assert [list(step["fetch"]) for step in done] == [["h0"]] + [[]] * (len(done) - 1)
    rounds = [step for step in done if step["copies"]]
    assert len(rounds) == math.ceil(math.log2(count))
    assert [len(step["copies"]) for step in rounds[:-1]] == [2 ** n for n in range(len(rounds) - 1)]
    assert sum(len(step["copies"]) for step in rounds) == count - 1
    assert done[0]["rounds"] == len(rounds), "how many it will be is told before"
    assert [step["rounds"] for step in rounds] == list(range(len(rounds), 0, -1))


@pytest.mark.parametrize("count", [2, 8])
def test_a_controller_that_fetches_is_one_more_that_has_it(count):
    fleet = {name: fleets.host([CHAT], can=False) for name in names(count)}
    _, done = fleets.carried_out(fleets.outlined(fleet, "localhost")[0], "localhost")
    assert done[0]["fetch"] == {"localhost": [dict(CHAT, revision="d" * 40)]}
    assert list(done[1]["copies"].values())[0][0]["source"] == "localhost"
    assert len(done) - 1 == math.ceil(math.log2(count + 1))


@given(fleets.fleets(), SEEDS, st.booleans())
def test_every_host_gets_what_it_wants_and_the_hub_is_read_once(fleet, seed, refresh):
    assume(seed != "h0" or fleet)
    before, asked, told = fleets.outlined(fleet, seed, refresh)
    after, done = fleets.carried_out(before, seed)
    for name, about in before.items():
        for request in about["requests"]:
            has = request["name"] in about["snapshots"]
            # Either it is there in the end, or a finding says that nobody could bring it.
            assert has != any(one["subject"] == request["repo_id"]
                              for one in findings.blocking(told[name]["findings"]))
    left_out = {name for step in [prefetch.prefetch_round(before, seed)] for name in step["stuck"]}
    for name in set(before) - left_out:
        if name in after:
            assert all(one["present"] and one["verified"]
                       for one in after[name]["snapshots"].values())
    # What was whole somewhere is read from no hub; else by one host, once.
    fetched = [(name, request["repo_id"], tuple(request["formats"]))
               for step in done for name, requests in step["fetch"].items()
               for request in requests]
    assert len({one[1:] for one in fetched}) == len(fetched)
    wanted = {(request["repo_id"], tuple(request["formats"])): about["snapshots"][request["name"]]
              for about in before.values() for request in about["requests"]
              if request["name"] in about["snapshots"]}
    for name, repo_id, formats in fetched:
        meant = fleets.identity(wanted[repo_id, formats])
        whole = {host for host, about in before.items() for one in about["snapshots"].values()
                 if one["present"] and fleets.identity(one) == meant}
        assert not whole or name in whole, "it was there, at least to be verified"
    assert not [one for one in asked["ask"] if seed and one["host"] != seed]
    # And the same is the same on every host.
    commits = {}
    for about in before.values():
        for request in about["requests"]:
            if request["name"] in about["snapshots"]:
                commits.setdefault((request["repo_id"], *request["formats"]), set()).add(
                    about["snapshots"][request["name"]]["commit"])
    assert all(len(one) == 1 for one in commits.values())


@given(fleets.fleets(), st.randoms(use_true_random=False))
def test_hosts_that_fall_out_take_nobody_with_them(fleet, random):
    before = fleets.outlined(fleet)[0]
    fallen = set()

    def fails(step, name):
        if random.random() < 0.2:
            fallen.add(name)
            return True
        return False

    after, _ = fleets.carried_out(before, fails=fails)
    assert set(before) - fallen >= set(after)
    assert all(one["present"] and one["verified"]
               for about in after.values() for one in about["snapshots"].values())
    # Who is gone without having failed lacks what nobody that is left has, or may fetch.
    for name in set(before) - fallen - set(after):
        wanted = {fleets.identity(one) for one in before[name]["snapshots"].values()}
        assert not [one for other, about in after.items() if about["can"]
                    for one in about["snapshots"].values() if fleets.identity(one) in wanted] \
            or not wanted


@given(fleets.fleets(), SEEDS)
def test_when_all_is_there_nothing_is_done(fleet, seed):
    after = fleets.carried_out(fleets.outlined(fleet, seed)[0], seed)[0]
    assert prefetch.prefetch_round(after, seed) == {
        "fetch": {}, "copies": {}, "serve": {}, "rounds": 0, "stuck": {}}


def test_a_host_that_has_it_is_the_first_to_give_it_and_the_hub_is_not_asked():
    fleet = {"old": fleets.host([CHAT], can=False), "new": fleets.host([CHAT]),
             "has": fleets.host([CHAT], ["chat"], commit="a" * 40)}
    before, asked, _ = fleets.outlined(fleet)
    assert asked == {"ask": [], "findings": {}}
    _, done = fleets.carried_out(before)
    assert [step["fetch"] for step in done] == [{}, {}]
    assert done[0]["copies"] == {"old": [{
        "request": CHAT, "source": "has", "manifest": fleet["has"]["snapshots"]["chat"]["manifest"],
    }]}
    assert {about["snapshots"]["chat"]["commit"] for about in before.values()} == {"a" * 40}


def test_who_cannot_read_from_the_hub_copies_from_who_can():
    fleet = {"old": fleets.host([CHAT], can=False), "new": fleets.host([CHAT])}
    before, asked, _ = fleets.outlined(fleet)
    assert [one["host"] for one in asked["ask"]] == ["new"]
    _, done = fleets.carried_out(before)
    assert [list(step["fetch"]) for step in done] == [["new"], []]
    assert list(done[1]["copies"]) == ["old"]


def test_where_none_that_wants_it_can_another_host_fetches_it_for_them():
    other = fleets.request("chat", "org/two")
    fleet = {"old": fleets.host([CHAT], can=False), "other": fleets.host([other])}
    before, asked, _ = fleets.outlined(fleet)
    assert [one["host"] for one in asked["ask"]] == ["other", "other"]
    step = prefetch.prefetch_round(before)
    # Two that are called the same are two.
    assert step["fetch"] == {"other": [dict(CHAT, name="chat-2", revision="d" * 40), other]}
    after, _ = fleets.carried_out(before)
    assert after["old"]["snapshots"]["chat"]["present"]


def test_where_nobody_can_it_is_said_what_to_do():
    fleet = {"old": fleets.host([CHAT], can=False), "none": fleets.host([], can=False)}
    before, asked, told = fleets.outlined(fleet)
    assert asked["ask"] == []
    (found,) = told["old"]["findings"]
    assert found["id"] == "snapshot-no-fetcher" and found["subject"] == "org/one"
    assert "model_snapshot_seed: localhost" in findings.text([found])
    assert told["none"]["findings"] == []
    assert before["old"]["snapshots"] == {}


def test_the_last_that_could_fetch_may_fall_out_and_that_is_said_too():
    fleet = {"new": fleets.host([CHAT]), "old": fleets.host([CHAT], can=False)}
    before = fleets.outlined(fleet)[0]
    del before["new"]
    step = prefetch.prefetch_round(before)
    assert [one["id"] for one in step["stuck"]["old"]] == ["snapshot-no-fetcher"]
    assert (step["fetch"], step["copies"], step["rounds"]) == ({}, {}, 0)


def test_hosts_that_want_other_files_of_the_same_are_asked_for_apart():
    gguf = fleets.request("chat", formats=["gguf"])
    fleet = {"gpu": fleets.host([CHAT]), "cpu": fleets.host([gguf]), "cpu2": fleets.host([gguf])}
    before, asked, _ = fleets.outlined(fleet)
    assert [one["host"] for one in asked["ask"]] == ["gpu", "cpu"]
    step = prefetch.prefetch_round(before)
    assert step["fetch"] == {"gpu": [CHAT], "cpu": [gguf]}
    assert step["rounds"] == 1


def test_what_is_there_and_not_verified_is_verified_where_it_is_and_then_given_on():
    fleet = {"new": fleets.host([CHAT]), "has": fleets.host([CHAT], ["chat"], can=False,
                                                            verified=None)}
    before = fleets.outlined(fleet, "localhost")[0]
    _, done = fleets.carried_out(before, "localhost")
    assert [step["fetch"] for step in done] == [{"has": [CHAT]}, {}]
    assert list(done[1]["copies"]) == ["new"]


def test_full_verification_is_of_every_host():
    fleet = {name: fleets.host([CHAT], ["chat"]) for name in names(3)}
    before = fleets.outlined(fleet)[0]
    assert prefetch.prefetch_round(before)["fetch"] == {}
    after, done = fleets.carried_out(before, verify="full")
    assert [one["snapshots"]["chat"]["verified"] for one in after.values()] == ["full"] * 3
    assert len(done) == 3


def test_what_another_host_has_is_told_with_the_paths_of_this_one():
    fleet = {"a": fleets.host([CHAT], ["chat"], cache="/one/hub"),
             "b": fleets.host([CHAT], cache="/two/hub")}
    told = fleets.outlined(fleet)[2]["b"]["snapshots"]["chat"]
    path = "/two/hub/models--org--one/snapshots/" + "c" * 40
    assert told["path"] == told["model"]["path"] == path
    assert told["model"]["folders"] == [path, "/elsewhere"]
    assert (told["present"], told["verified"], told["missing_bytes"]) == (False, None, 1000)
    assert fleets.outlined(fleet)[2]["a"]["snapshots"]["chat"] == fleet["a"]["snapshots"]["chat"]


def test_what_a_host_has_of_it_already_is_not_counted_as_missing():
    half = fleets.host([CHAT], ["chat"], present=False, commit="d" * 40)
    half["snapshots"]["chat"]["missing_bytes"] = 400
    before = fleets.outlined({"a": fleets.host([CHAT]), "half": half})[0]
    assert before["a"]["snapshots"]["chat"]["missing_bytes"] == 1000
    assert before["half"]["snapshots"]["chat"]["missing_bytes"] == 400


def test_what_is_wrong_with_a_snapshot_is_told_to_who_wants_it_and_to_nobody_else():
    said = findings.finding("snapshot-gated", "org/one", "403", "access", "ask for it")
    other = fleets.request("chat", "org/two")
    fleet = {"a": fleets.host([CHAT]), "b": fleets.host([CHAT]), "c": fleets.host([other])}
    asked = prefetch.prefetch_seeds(fleet)
    answers = {"a": [{"snapshots": {}, "findings": [said]}],
               "c": [{"snapshots": {}, "findings": []}]}
    told = {name: prefetch.prefetch_outline(fleet, asked, answers, name) for name in fleet}
    # In check mode, before the toolbelt is there, nothing may be said at all.
    assert [one["skipped"] for one in told.values()] == [[], [], ["chat"]]
    told = {name: one["findings"] for name, one in told.items()}
    assert told == {"a": [said], "b": [said], "c": []}


def test_what_a_holder_said_of_it_holds_for_all_and_what_it_lacks_itself_for_none():
    def of(id_, subject):
        return findings.finding(id_, subject, "x", "y", "z")

    fleet = {"a": fleets.host([CHAT], ["chat"]), "b": fleets.host([CHAT])}
    fleet["a"]["findings"] = [of("model-custom-code", "org/one"), of("model-pickle", "org/two")]
    fleet["b"]["findings"] = [of("snapshot-offline-missing", "org/one")]
    told = fleets.outlined(fleet)[2]
    assert [[one["id"] for one in told[name]["findings"]] for name in fleet] \
        == [["model-custom-code"]] * 2


def test_where_nobody_may_ask_what_is_there_stays_and_that_is_said():
    fleet = {"a": fleets.host([CHAT], ["chat"], can=False), "b": fleets.host([CHAT], can=False)}
    before, asked, told = fleets.outlined(fleet, refresh=True)
    assert asked["ask"] == []
    assert [one["id"] for one in told["b"]["findings"]] == ["snapshot-not-refreshed"]
    assert findings.blocking(told["b"]["findings"]) == []
    assert [len(step["copies"]) for step in fleets.carried_out(before)[1]] == [1]


def test_when_asked_to_the_hub_is_asked_for_what_is_there_and_all_get_what_it_has_now():
    fleet = {name: fleets.host([CHAT], ["chat"]) for name in names(2)}
    before, asked, _ = fleets.outlined(fleet, refresh=True)
    assert len(asked["ask"]) == 1
    assert [about["snapshots"]["chat"]["commit"] for about in before.values()] == ["d" * 40] * 2
    _, done = fleets.carried_out(before)
    assert [list(step["fetch"]) for step in done] == [["h0"], []]


def test_where_who_was_to_ask_fell_out_that_is_said():
    fleet = {"a": fleets.host([CHAT]), "b": fleets.host([CHAT])}
    asked = prefetch.prefetch_seeds(fleet)
    (found,) = prefetch.prefetch_outline(fleet, asked, {"b": []}, "b")["findings"]
    assert found["id"] == "snapshot-no-answer" and found["found"].startswith("a was to ask")
    assert findings.blocking([found])


def test_a_host_copies_each_from_where_it_is_served_and_not_from_who_serves_nothing():
    step = prefetch.prefetch_round(fleets.outlined({
        "a": fleets.host([CHAT], ["chat"]), "b": fleets.host([CHAT])})[0])
    copies, manifest = step["copies"]["b"], step["serve"]["a"][0]
    assert prefetch.prefetch_peers(copies, {"a": "http://192.0.2.7:1", "b": ""}, "s") == [
        {"name": "chat", "url": "http://192.0.2.7:1", "secret": "s", "manifest": manifest}]
    assert prefetch.prefetch_peers(copies, {"a": "", "b": ""}, "s") == []


def test_what_is_to_come_is_said_with_sizes():
    fleet = {name: fleets.host([CHAT]) for name in names(4)}
    before = fleets.outlined(fleet)[0]
    assert prefetch.prefetch_text(before) == \
        "org/one at dddddddddddd, 1 kB; h0 brings it; 3 hosts copy in 2 rounds"
    assert prefetch.prefetch_text(before, "localhost") == \
        "org/one at dddddddddddd, 1 kB; localhost brings it; 4 hosts copy in 3 rounds"
    assert prefetch.prefetch_text(fleets.carried_out(before)[0]) == ""
    fleet = {"a": fleets.host([CHAT], ["chat"]), "b": fleets.host([CHAT])}
    assert prefetch.prefetch_text(fleets.outlined(fleet)[0]) == \
        "org/one at cccccccccccc, 1 kB; 1 host has it; 1 host copies in 1 round"
    assert prefetch.prefetch_text(fleets.outlined({"a": fleets.host([CHAT])})[0]) == \
        "org/one at dddddddddddd, 1 kB; a brings it"


@pytest.mark.parametrize("changes, said", [
    ({"missing_bytes": 400}, "org/one at cccccccccccc: 400 B of 1 kB in 3 files"),
    ({"missing_bytes": 1.4e9, "bytes": 2.5e12, "files": 1},
     "org/one at cccccccccccc: 1.4 GB of 2.5 TB in 1 file"),
    ({}, "org/one at cccccccccccc: there, to be verified"),
    ({"fingerprint": None, "commit": None, "bytes": None}, "org/one: nothing is known of it")])
def test_what_is_brought_is_said(changes, said):
    snapshot = dict(fleets.snapshot(CHAT, "/x"), **changes)
    assert prefetch.snapshots_text([snapshot, snapshot]) == said
