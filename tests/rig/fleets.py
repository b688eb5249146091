# SPDX-License-Identifier: Apache-2.0
"""Fleets of hosts that want snapshots, and what becomes of them when a plan is carried out."""

from __future__ import annotations

import copy

from hypothesis import strategies as st

from ansible.module_utils.firstlight.planning import prefetch

MODELS = ("org/one", "org/two", "other/three")


def request(name, repo_id="org/one", formats=("safetensors",)):
    """One of the filter ``snapshot_requests``."""
    return {"name": name, "repo_id": repo_id, "revision": "main", "formats": list(formats),
            "quantisation": None, "allow": [], "ignore": []}


def snapshot(asked, cache, commit="c" * 40, present=True, verified="fast"):
    """What the module says of what was asked."""
    made = "".join(asked["formats"])
    folder = "%s/models--%s/snapshots/%s" % (cache, asked["repo_id"].replace("/", "--"), commit)
    return {
        "repo_id": asked["repo_id"], "revision": asked["revision"], "commit": commit,
        "fingerprint": "%s of %s" % (made, asked["repo_id"]), "path": folder, "bytes": 1000,
        "missing_bytes": 0 if present else 1000, "files": 3, "present": present,
        "verified": verified if present else None,
        "manifest": {"repo_id": asked["repo_id"], "commit": commit, "entries": []},
        "model": {"path": folder, "folders": [folder, "/elsewhere"], "layers": 2}}


def host(requests, has=(), can=True, cache="/var/lib/firstlight/models/hub", **how):
    """A host that wants this and has of it what is named."""
    return {"can": can, "cache": cache, "requests": list(requests), "findings": [], "held": [],
            "snapshots": {one["name"]: snapshot(one, cache, **how) for one in requests
                          if one["name"] in has}}


def outlined(fleet, seed="", refresh=False, commit="d" * 40):
    """The fleet after what it wants was told: the new one, what was asked, and by whom."""
    asked = prefetch.prefetch_seeds(fleet, seed, refresh)
    with_seed = {**({seed: host([], cache="/seed")} if seed else {}), **fleet}
    answers = {}
    for one in asked["ask"]:
        answers.setdefault(one["host"], []).append({"findings": [], "snapshots": {
            one["request"]["name"]: snapshot(
                one["request"], with_seed[one["host"]]["cache"], commit, present=False)}})
    told = {name: prefetch.prefetch_outline(with_seed, asked, answers, name) for name in fleet}
    return {name: {**about, "snapshots": told[name]["snapshots"]}
            for name, about in fleet.items()}, asked, told


def identity(told):
    """What is the same wherever the same is."""
    return told["repo_id"], told["commit"], told["fingerprint"]


def carried_out(fleet, seed="", fails=lambda step, name: False, verify="fast"):
    """Do what the plan says until nothing is left: the fleet then, and what was done by round.

    :param fails: whether a host falls out at what it does in a round.
    """
    fleet = copy.deepcopy(fleet)
    done = []
    while True:
        step = prefetch.prefetch_round(fleet, seed, verify)
        for name in step["stuck"]:
            del fleet[name]
        if not step["fetch"] and not step["copies"]:
            return fleet, done
        done.append(step)
        assert len(done) <= 50, "it does not end"
        has = {name: [one for one in [*about["snapshots"].values(), *about["held"]]
                      if one["present"]] for name, about in fleet.items()}
        for name, requests in step["fetch"].items():
            about = fleet.setdefault(name, host([], cache="/seed"))
            if fails(step, name):
                del fleet[name]
                continue
            for one in requests:
                bring(about, one, verify)
        for name, copies in step["copies"].items():
            if name not in fleet or fails(step, name):
                fleet.pop(name, None)
                continue
            for one in copies:
                if one["source"] not in fleet:
                    continue
                wanted = identity(fleet[name]["snapshots"][one["request"]["name"]])
                # Nobody copies from one that has not got it.
                assert wanted in [identity(there) for there in has[one["source"]]]
                assert one["manifest"] in step["serve"][one["source"]]
                assert one["source"] != name
                bring(fleet[name], one["request"], verify)


def bring(about, asked, verify):
    """Have a host have it."""
    own = about["snapshots"].get(asked["name"])
    if own is not None:
        own.update(present=True, verified=verify, missing_bytes=0)
        return
    # It is told the commit.
    about["held"].append(snapshot(asked, about["cache"], asked["revision"], verified=verify))


def fleets():
    """Fleets of up to nine hosts that want up to three models in two formats."""
    wants = st.lists(st.tuples(st.sampled_from(MODELS), st.sampled_from(["safetensors", "gguf"])),
                     unique=True, max_size=3)

    def made(row):
        wanted, has, can, verified, cache = row
        requests = [request("e%d" % number, repo_id, [kind])
                    for number, (repo_id, kind) in enumerate(wanted)]
        return host(requests, [one["name"] for one, there in zip(requests, has) if there], can,
                    "/cache/%d" % cache, verified=verified)

    hosts = st.tuples(wants, st.lists(st.booleans(), min_size=3, max_size=3), st.booleans(),
                      st.sampled_from([None, "fast", "full"]), st.integers(0, 2)).map(made)
    return st.lists(hosts, max_size=9).map(
        lambda found: {"h%d" % number: one for number, one in enumerate(found)})
