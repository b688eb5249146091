# SPDX-License-Identifier: Apache-2.0
"""The role on several hosts: everywhere the same, the hub read once, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil

import fleet_play
import hub
import pytest
from supervised import free_port

REPO = "firstlight/canary-sharded"
NAMES = ["old", "one", "two", "three"]


def request(name="chat", repo_id=REPO, formats=("safetensors",), quantisation=None):
    return {"name": name, "repo_id": repo_id, "revision": "main", "formats": list(formats),
            "quantisation": quantisation, "allow": [], "ignore": []}


@pytest.fixture(scope="module")
def repos(tmp_path_factory):
    return hub.canary_repos(tmp_path_factory.mktemp("hub") / "repos")


@pytest.fixture
def upstream(repos):
    with hub.Hub(repos) as running:
        yield running


@pytest.fixture
def fleet(upstream, tmp_path):
    """Make a fleet of these hosts."""
    def make(names=NAMES, old=("old",)):
        return fleet_play.Fleet(tmp_path / "fleet", names, [free_port() for _ in names],
                                upstream.url, old)

    return make


def file_bytes(upstream):
    """Bytes of files that the hub sent, by path: parts of headers too."""
    sent = {}
    for one in upstream.done():
        if one.method == "GET" and "/resolve/" in one.path:
            sent.setdefault(one.path.rpartition("/")[2], []).append(one.bytes)
    return sent


def test_every_host_has_it_and_the_hub_was_read_once(fleet, upstream, repos):
    made = fleet()
    rc, printed = made.play([request()])
    assert rc == 0, printed
    told = {name: made.told(name)["snapshots"]["chat"] for name in NAMES}
    assert {one["present"] and one["verified"] for one in told.values()} == {"fast"}
    assert len({(one["commit"], one["fingerprint"]) for one in told.values()}) == 1
    commit = upstream.commit(REPO)
    assert told["old"]["commit"] == commit
    origin = {str(path.relative_to(repos / REPO)): path.read_bytes()
              for path in (repos / REPO).rglob("*") if path.is_file()}
    for name in NAMES:
        there = made.contents(name, REPO, commit)
        assert there == {path: origin[path] for path in there}
        assert len(there) == told[name]["files"] > 3
    # Of each file the whole went out once; headers before that are a part of it.
    sent = file_bytes(upstream)
    for path, content in made.contents("one", REPO, commit).items():
        assert sum(sent[path]) <= 2 * len(content), "once to look at, and once to have"
    assert made.serving() == []
    assert "old" in printed and "copied from here" in printed

    # And then there is nothing to do, and nobody is asked, whatever the way out is.
    upstream.requests.clear()
    rc, printed = made.play([request()], "--check")
    assert rc == 0, printed
    rc, printed = made.play([request()], model_snapshot_offline=True)
    assert rc == 0 and "changed=0" in printed, printed
    assert "brings it" not in printed
    assert upstream.done() == []


def test_check_mode_says_what_would_come_and_brings_none(fleet, upstream):
    made = fleet(["one", "two"], old=())
    rc, printed = made.play([request()], "--check")
    assert rc == 0, printed
    assert "one brings it; 1 host copies in 1 round" in printed
    assert not os.path.exists(made.cache("one"))
    assert not os.path.exists(made.cache("two"))
    assert made.told("two")["snapshots"]["chat"]["commit"] == upstream.commit(REPO)


def test_a_host_that_has_it_gives_it_and_a_secret_is_in_no_output(fleet, upstream):
    made = fleet(["one", "two", "three"], old=())
    rc, printed = made.play({"one": [request()], "two": [], "three": []})
    assert rc == 0, printed
    upstream.requests.clear()
    rc, printed = made.play([request()], "-vvv")
    assert rc == 0, printed
    assert upstream.done() == []
    assert made.told("three")["snapshots"]["chat"]["verified"] == "fast"
    assert "VALUE_SPECIFIED_IN_NO_LOG" in printed
    for name in ("one", "two", "three"):
        left = os.listdir(os.path.join(made.folder, name, "journal"))
        assert not [one for one in left if one.startswith("snapshot-server")], left


def test_hosts_that_want_different_files_get_their_own(fleet, upstream):
    gguf = request(repo_id="firstlight/canary-gguf", formats=["gguf"], quantisation="Q8_0")
    made = fleet(["one", "two", "three"], old=())
    rc, printed = made.play({"one": [request()], "two": [gguf, request("other")],
                             "three": [gguf]})
    assert rc == 0, printed
    assert {name: sorted(made.told(name)["snapshots"]) for name in made.names} == {
        "one": ["chat"], "two": ["chat", "other"], "three": ["chat"]}
    assert made.told("three")["snapshots"]["chat"]["quantisation"] == "Q8_0"
    assert not os.path.exists(os.path.join(made.cache("three"), "models--firstlight--canary-sharded"))
    sent = file_bytes(upstream)
    assert len([count for count in sent["canary-Q8_0.gguf"] if count]) <= 2
    assert "canary-F16.gguf" not in sent


def test_the_controller_fetches_for_hosts_that_cannot(fleet, upstream, monkeypatch):
    made = fleet(["old", "older"], old=("old", "older"))
    shutil.rmtree(made.folder / "controller", ignore_errors=True)
    controller = {"model_snapshot_seed": "localhost", "model_snapshot_seed_root":
                  str(made.folder / "controller")}
    rc, printed = made.play([request()])
    assert rc != 0 and "snapshot-no-fetcher" in printed and "localhost" in printed, printed
    assert upstream.done() == []
    # Its library is this environment's: what the role toolbelt does is tested with that.
    play = json.loads(json.dumps(fleet_play.PLAY).replace("fleet_outline", "fleet_outline"))
    rc, printed = made.play([request()], play=play, **controller)
    assert rc == 0, printed
    assert made.told("older")["snapshots"]["chat"]["verified"] == "fast"
    assert os.path.isdir(made.folder / "controller" / "models" / "hub")


def test_a_seed_that_is_no_host_of_the_run_is_refused(fleet, upstream):
    made = fleet(["one"], old=())
    rc, printed = made.play([request()], model_snapshot_seed="nobody")
    assert rc != 0 and "model_snapshot_seed is nobody" in printed, printed
    assert upstream.done() == []


def test_what_the_hub_refuses_is_told_to_every_host_that_wants_it(fleet, upstream):
    made = fleet(["one", "two"], old=())
    rc, printed = made.play({"one": [request(repo_id="firstlight/none")],
                             "two": [request(repo_id="firstlight/none"), request("other")]})
    told = {name: made.told(name) for name in made.names}
    assert [[one["id"] for one in told[name]["findings"]] for name in made.names] \
        == [["snapshot-not-found"]] * 2
    assert rc == 0, printed
    assert told["two"]["snapshots"]["other"]["verified"] == "fast"
