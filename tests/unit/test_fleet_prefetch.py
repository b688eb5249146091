# SPDX-License-Identifier: Apache-2.0
"""The role on several hosts: everywhere the same, the hub read once, and nothing left behind."""

from __future__ import annotations

import os
import re

import fleet_play
import hub
import pytest
import snapshot_cache
from supervised import free_port

from ansible.module_utils.firstlight.snapshots import server

REPO = "firstlight/canary-sharded"
# So many that there is a second round.
NAMES = ["old", "one", "two"]


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


class Noting(list):
    """Requests, each with the paths that were being answered when it came."""

    def append(self, one):
        one.beside = [other.path for other in self if not other.over]
        super().append(one)


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
    assert "10.7 MB; one brings it; 2 hosts copy in 2 rounds" in printed
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
    # Every file went out whole once; what was read to describe the model is a part of it.
    sent = file_bytes(upstream)
    whole = {path: [count for count in sent[path] if count == len(content)]
             for path, content in made.contents("one", REPO, commit).items()
             if path.endswith(".safetensors")}
    assert {path: len(counts) for path, counts in whole.items()} == dict.fromkeys(whole, 1)
    assert len(whole) == 2
    assert made.serving() == []
    assert "10.7 MB were copied from here" in printed

    # And then there is nothing to do, and nobody is asked, though there is no way out.
    upstream.requests.clear()
    rc, printed = made.play([request()], "--limit", "old,one", model_snapshot_offline=True)
    assert rc == 0 and printed.count("changed=0") == 2, printed
    assert "hosts copy" not in printed and "copied from here" not in printed
    assert upstream.done() == []


def test_check_mode_says_what_would_come_and_brings_none(fleet, upstream):
    made = fleet(["one", "two"], old=())
    rc, printed = made.play([request()], "--check")
    assert rc == 0, printed
    assert "10.7 MB; one brings it; 1 host copies in 1 round" in printed
    assert made.told("two")["snapshots"]["chat"]["commit"] == upstream.commit(REPO)
    assert not os.path.exists(made.cache("one"))
    assert not os.path.exists(made.cache("two"))


def test_each_gets_its_own_and_a_host_that_falls_out_takes_nobody_with_it(fleet, upstream):
    """Several things of one run: a run is most of what this costs."""
    gguf = request("gguf", "firstlight/canary-gguf", ["gguf"], "Q8_0")
    held = request("held", "firstlight/canary")
    made = fleet(["lost", "one", "two"], old=())
    # As a host has it that was offline since its branch was resolved.
    snapshot_cache.filled(upstream.url, made.cache("two"), "firstlight/canary")
    upstream.requests = Noting()
    # What the first fetches takes a while; others need not wait for it, though there is one fork.
    slow, other = "model-00001-of-00002.safetensors", "canary-Q8_0.gguf"
    upstream.faults["*/" + slow] = {"slow": 750_000, "method": "GET", "times": 3}
    root = str(made.folder / "lost")
    others = server.start(root, server.Shelf(root, []), "127.0.0.1", 0, "of another run", 600, 600)
    rc, printed = made.play({
        "lost": [request()], "two": [request("other"), gguf, held],
        "one": [request(), held, request("none", "firstlight/none")]}, "-vvv", "--forks", "1")

    # What another run serves stays, it is said how to end it, and who was to serve falls out.
    there = server.standing(root)
    server.stop(root)
    assert there is not None and there["pid"] == others["pid"]
    assert rc != 0
    assert "another run serves from here, since 20" in printed and "state=stopped" in printed
    assert re.search(r"lost : ok=\d+ changed=\d+ unreachable=0 failed=1 ", printed), printed
    assert made.serving() == []
    # Another one fetched what that could not give.
    assert len([count for count in file_bytes(upstream)[slow] if count > 2**20]) == 2

    # The others have what they want, and no more.
    told = {name: made.told(name) for name in ("one", "two")}
    assert {name: sorted(one["snapshots"]) for name, one in told.items()} == {
        "one": ["chat", "held"], "two": ["gguf", "held", "other"]}
    assert told["two"]["snapshots"]["gguf"]["quantisation"] == "Q8_0"
    assert {row["verified"] for one in told.values() for row in one["snapshots"].values()} \
        == {"fast"}
    assert sorted(one for one in os.listdir(made.cache("one")) if one.startswith("models--")) \
        == ["models--firstlight--canary", "models--firstlight--canary-sharded"]
    assert not [path for path in file_bytes(upstream) if "F16" in path]
    # What the hub refuses is told to who wants it, and keeps nothing from the others.
    assert {name: [one["id"] for one in about["findings"] if one["severity"] == "error"]
            for name, about in told.items()} == {"one": ["snapshot-denied"], "two": []}
    # What a host had already the hub was not asked for.
    assert not [one for one in upstream.done() if re.search("firstlight/canary(/|$)", one.path)]
    assert [one for one in upstream.done() if one.path.endswith(other)
            and any(path.endswith(slow) for path in one.beside)]

    # Nothing of forty and more letters and digits that is no hash.
    words = re.findall(r"(?<![\w/.-])[A-Za-z0-9]{43}(?![\w/.-])", printed)
    assert words == []
    assert "VALUE_SPECIFIED_IN_NO_LOG" in printed
    for name in made.names:
        left = os.listdir(made.folder / name / "journal")
        assert not [one for one in left if one.startswith("snapshots-server")], left


def test_the_controller_fetches_for_hosts_that_cannot(fleet, upstream):
    made = fleet(["old"])
    # The library is there; how it is brought the role toolbelt's own tests show.
    (made.folder / "roles" / "toolbelt" / "tasks").mkdir(parents=True)
    (made.folder / "roles" / "toolbelt" / "tasks" / "main.yml").write_text("[]\n")
    rc, printed = made.play(
        [request()], model_snapshot_seed="localhost",
        model_snapshot_seed_root=str(made.folder / "localhost"))
    assert rc == 0, printed
    assert "localhost brings it; 1 host copies in 1 round" in printed
    assert {made.told(name)["snapshots"]["chat"]["verified"] for name in made.names} == {"fast"}
    assert len([count for count in file_bytes(upstream)["model-00001-of-00002.safetensors"]
                if count > 2**20]) == 1
    assert len(made.contents("localhost", REPO, upstream.commit(REPO))) > 3
    assert made.serving() == [] and server.standing(str(made.folder / "localhost")) is None


def test_a_seed_that_is_no_host_of_the_run_is_refused(fleet, upstream):
    rc, printed = fleet(["one"], old=()).play([request()], model_snapshot_seed="nobody")
    assert rc != 0 and "model_snapshot_seed is nobody" in printed, printed
    assert upstream.done() == []
