# SPDX-License-Identifier: Apache-2.0
"""Snapshots come from a hub that the real huggingface_hub takes for one, and stay as they came."""

from __future__ import annotations

import contextlib
import errno
import http.server
import json
import os
import pathlib
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading

import hub as rig
import model_snapshot
import pytest
from supervised import until

from ansible.module_utils.firstlight.snapshots import layout, server, sources, verify, work
from ansible.module_utils.firstlight.transaction import Lock

MIB = 2**20
CANARY, SHARDED, GGUF = ("firstlight/canary", "firstlight/canary-sharded",
                         "firstlight/canary-gguf")


@pytest.fixture(autouse=True)
def environment():
    """The module sets variables of its own process, which is this one."""
    kept = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(kept)


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """Repositories to copy, with their hashes made."""
    made = rig.canary_repos(tmp_path_factory.mktemp("repos") / "built")
    shutil.copytree(made / SHARDED, made / "firstlight" / "both")
    shutil.copy(made / GGUF / "canary-Q8_0.gguf", made / "firstlight" / "both")
    return made


class Host:
    """A host with a root of its own, and the hub that it asks."""

    def __init__(self, run_module, hub, root):
        self.run_module, self.hub, self.root = run_module, hub, pathlib.Path(root)
        self.cache = self.root / "models" / "hub"
        self.hub_option = {"url": hub.url, "trusted": True}

    def run(self, *repo_ids, check=False, **options):
        rows = options.pop("snapshots", None) or [
            {"name": one.rpartition("/")[2], "repo_id": one} for one in repo_ids]
        options = {"hub": self.hub_option, "wait_s": 60.0, **options}
        return self.run_module(model_snapshot.main, check=check, root=str(self.root),
                               snapshots=rows, **options)

    def asked(self):
        """The requests since this was last called."""
        found = self.hub.done()
        self.hub.requests.clear()
        return found

    def files(self):
        """All that there is under the root, by path."""
        return {str(one.relative_to(self.root)): (one.lstat().st_mtime_ns, one.lstat().st_size)
                for one in self.root.rglob("*") if one.is_symlink() or one.is_file()}

    def blob(self, result, path, name=None):
        [only] = [name] if name else result["snapshots"]
        one = result["snapshots"][only]
        folder = self.cache / layout.name(one["repo_id"]) / "snapshots" / one["commit"]
        return pathlib.Path(os.path.realpath(folder / path))


@pytest.fixture
def hub(built, tmp_path):
    shutil.copytree(built, tmp_path / "repos")
    with rig.Hub(tmp_path / "repos") as made:
        yield made


@pytest.fixture
def host(run_module, hub, tmp_path):
    made = Host(run_module, hub, tmp_path / "root")
    yield made
    end_work(made.root)


def end_work(root):
    """End what a failed test may have left at work."""
    for file in root.glob("journal/*.run.json"):
        state = json.loads(file.read_text())
        if state["result"] is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(state["pid"], signal.SIGKILL)


def ids(result):
    return [one["id"] for one in result["findings"]]


def only(result):
    [one] = result["snapshots"].values()
    return one


def big(hub, *sizes, name="big"):
    """A repository of the canary with weights of these sizes in place of its own."""
    repo_id = "firstlight/" + name
    rig.big_repo(hub.repos.folder, list(sizes), repo_id)
    for one in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(hub.repos.folder / CANARY / one, hub.repos.folder / repo_id)
    parts = sorted((hub.repos.folder / repo_id).glob("*.safetensors"))
    (hub.repos.folder / repo_id / "model.safetensors.index.json").write_text(json.dumps({
        "metadata": {}, "weight_map": {
            "tensor.%d" % number: one.name for number, one in enumerate(parts, 1)}}))
    return repo_id


# Outlined, brought, and left alone.


@pytest.mark.parametrize("repo_id", [CANARY, SHARDED, GGUF])
def test_a_model_is_told_the_same_before_and_after_it_was_brought(host, repo_id):
    before = host.run(repo_id, state="outlined")
    assert before["findings"] == []
    assert before["needed"] == list(before["snapshots"])
    assert only(before)["present"] is False
    assert only(before)["missing_bytes"] == only(before)["bytes"] > 10 * MIB
    assert only(before)["source"] == host.hub.url
    brought = host.run(repo_id)
    assert brought["changed"] is True
    assert only(brought)["source"] == host.hub.url
    after = host.run(repo_id, state="outlined")
    assert after["needed"] == []
    assert (only(after)["present"], only(after)["verified"]) == (True, "fast")
    for key in ("model", "path", "fingerprint", "commit", "manifest", "format", "bytes"):
        assert only(before)[key] == only(brought)[key] == only(after)[key], key
    assert os.path.exists(only(after)["path"])
    assert only(after)["commit"] == host.hub.commit(repo_id)


def test_what_is_there_needs_no_request_and_no_library(host, monkeypatch):
    host.run(CANARY, GGUF)
    before = host.files()
    host.asked()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for state in ("outlined", "present"):
        again = host.run(CANARY, GGUF, state=state)
        assert again["changed"] is False
        assert again["findings"] == []
        assert all(one["present"] for one in again["snapshots"].values())
    assert host.asked() == []
    assert host.files() == before


def test_only_the_headers_of_weights_are_read_for_an_outline(host):
    big(host.hub, 40 * MIB, 40 * MIB)
    told = only(host.run("firstlight/big", state="outlined"))
    assert told["model"]["bytes"] == 80 * MIB
    assert sum(one.bytes for one in host.asked()) < MIB
    assert not list(host.cache.rglob("*.safetensors"))


def test_upstream_moves_and_what_was_pinned_stays_until_it_is_refreshed(host):
    first = only(host.run(CANARY))
    (host.hub.repos.folder / CANARY / "README.md").write_text("another commit\n")
    (host.hub.repos.folder / CANARY / "config.json").write_bytes(
        (host.hub.repos.folder / CANARY / "config.json").read_bytes() + b"\n")
    host.asked()
    assert only(host.run(CANARY))["commit"] == first["commit"]
    assert host.asked() == []
    moved = host.run(CANARY, refresh=True)
    assert only(moved)["commit"] == host.hub.commit(CANARY) != first["commit"]
    assert moved["changed"] is True, (moved, host.hub.requests)
    assert sum(one.bytes for one in host.asked()) < MIB  # the weights are the same
    assert only(host.run(CANARY))["commit"] == only(moved)["commit"]


@pytest.mark.parametrize("kind", ["tag", "commit"])
def test_a_tag_or_a_commit_is_what_it_was(host, kind):
    rig.tagged(host.hub.repos.folder, CANARY, "v1/stable")
    commit = host.hub.commit(CANARY)
    (host.hub.repos.folder / CANARY / "README.md").unlink()
    revision = "v1/stable" if kind == "tag" else commit
    told = host.run(snapshots=[{"name": "chat", "repo_id": CANARY, "revision": revision}])
    assert only(told)["commit"] == commit
    assert only(told)["revision"] == revision


def test_check_mode_says_what_would_come_and_writes_nothing(host):
    for state in ("outlined", "present"):
        told = host.run(CANARY, check=True, state=state)
        assert told["changed"] is True
        assert only(told)["model"]["geometry"]["layers"] == 2
        assert only(told)["present"] is False
        assert not host.root.exists()
    host.run(CANARY)
    before = host.files()
    assert host.run(CANARY, check=True)["changed"] is False
    assert host.files() == before


def test_two_formats_of_one_repository_come_once_each(host):
    rows = [{"name": "gpu", "repo_id": "firstlight/both", "formats": ["safetensors", "gguf"]},
            {"name": "gpu2", "repo_id": "firstlight/both", "formats": ["safetensors"]},
            {"name": "cpu", "repo_id": "firstlight/both", "formats": ["gguf"]}]
    told = host.run(snapshots=rows)
    found = told["snapshots"]
    assert [found[name]["format"] for name in ("gpu", "gpu2", "cpu")] == [
        "safetensors", "safetensors", "gguf"]
    assert found["cpu"]["path"].endswith("canary-Q8_0.gguf")
    assert found["gpu"]["path"] == found["gpu2"]["path"] == os.path.dirname(found["cpu"]["path"])
    whole = [one.path for one in host.asked() if one.method == "GET" and one.bytes > MIB]
    assert len(whole) == len(set(whole)) == 3


def test_models_with_code_or_pickles_are_refused_unless_they_are_named(host):
    repo = host.hub.repos.folder / "firstlight/pickled"
    repo.mkdir()
    for one in ("config.json", "tokenizer.json", "pytorch_model.bin"):
        shutil.copy(host.hub.repos.folder / CANARY / one, repo)
    told = host.run("firstlight/pickled", state="outlined")
    assert told["findings"] != []
    assert host.run("firstlight/pickled", state="outlined",
                    allow_pickle=["pickled"])["snapshots"]["pickled"]["format"] == "pickle"


# Nothing may be asked.


def test_offline_serves_from_the_cache_and_names_what_is_missing(host):
    known = host.run(CANARY)
    host.asked()
    assert host.run(CANARY, offline=True)["findings"] == []
    gone = pathlib.Path(only(known)["path"]) / "tokenizer.json"
    gone.unlink()
    told = host.run(CANARY, offline=True, state="outlined")
    assert ids(told) == ["snapshot-offline-missing"]
    assert "tokenizer.json" in told["findings"][0]["found"]
    assert host.run(CANARY, offline=True).get("failed") is True
    other = host.run(GGUF, offline=True, state="outlined")
    assert ids(other) == ["snapshot-offline-missing"]
    assert "main" in other["findings"][0]["found"]
    assert host.asked() == []


def test_a_host_that_is_set_offline_is(host):
    (host.root / "network").mkdir(parents=True)
    (host.root / "network" / "environment").write_text("HF_HUB_OFFLINE=1\n")
    assert ids(host.run(CANARY, state="outlined")) == ["snapshot-offline-missing"]
    assert host.asked() == []


@pytest.mark.parametrize("check", [False, True])
def test_without_the_library_another_host_has_to_fetch(host, monkeypatch, check):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    told = host.run(CANARY, state="outlined", check=check)
    [found] = told["findings"]
    assert found["id"] == "snapshot-no-library"
    assert found["severity"] == ("warning" if check else "error")
    assert told["left_out"] == ["canary"]
    assert "prefetch" in found["remedy"]


def test_a_cache_of_an_older_library_serves(host):
    told = host.run(CANARY)
    shutil.rmtree(host.cache / layout.name(CANARY) / "trees")
    again = host.run(CANARY, offline=True, state="outlined")
    assert only(again)["present"] is True
    assert only(again)["fingerprint"] == only(told)["fingerprint"]


# What a hub refuses.


REFUSALS = [
    ("*", {"status": 401}, "snapshot-denied", ["401", "model_snapshot_token"]),
    ("*", {"status": 403}, "snapshot-denied", ["403", "model_snapshot_token"]),
    ("*", {"status": 404, "code": "RepoNotFound"}, "snapshot-not-found", ["404", "`model`"]),
    ("*", {"status": 429, "retry_after": 1}, "snapshot-rate-limited", ["429", "prefetch"]),
    ("*", {"status": 500}, "snapshot-hub-unreachable", ["500"]),
    ("*/resolve/*", {"gated": True}, "snapshot-gated", ["ask for access", "model_snapshot_token"]),
    ("*/resolve/*", {"no_commit_header": True}, "snapshot-not-a-hub", ["X-Repo-Commit"]),
    ("*/resolve/*", {"status": 503}, "snapshot-hub-unreachable", ["503"]),
]


@pytest.mark.parametrize("pattern, fault, wanted, words", REFUSALS,
                         ids=[str(one[1]) for one in REFUSALS])
def test_a_refusal_is_one_finding_that_says_what_to_change(host, pattern, fault, wanted, words):
    host.hub.faults = {pattern: fault}
    told = host.run(CANARY, state="outlined", token=rig.TOKEN)
    assert ids(told) == [wanted]
    said = json.dumps(told["findings"])
    assert all(word in said for word in words), said
    assert rig.TOKEN not in json.dumps(told)
    if fault.get("status") == 503:
        return  # of a file; the library asks for half a minute for one
    failed = host.run(CANARY)
    assert failed["failed"] is True
    assert "[error] %s" % wanted in failed["msg"]


def test_a_refusal_that_passes_is_none(host):
    host.hub.faults = {"/api/*": {"status": 503, "times": 1}, "*.json": {"status": 429, "times": 1}}
    assert host.run(CANARY)["findings"] == []


def test_who_may_not_know_of_a_repository_is_told_to_give_a_token(host):
    told = host.run("firstlight/private", state="outlined")
    assert ids(told) == ["snapshot-denied"]
    assert "no token" in told["findings"][0]["found"]


def test_a_revision_that_is_not_there_is_named(host):
    told = host.run(snapshots=[{"name": "chat", "repo_id": CANARY, "revision": "abcdef1"}],
                    state="outlined")
    assert ids(told) == ["snapshot-revision-not-found"]
    assert "abcdef1" in told["findings"][0]["found"]
    assert "40 digits" in told["findings"][0]["remedy"]


def test_a_repository_that_moved_comes_and_its_name_is_told(host):
    host.hub.faults = {"/api/models/old/name*": {"moved": CANARY},
                       "/old/name/*": {"moved": CANARY}}
    told = host.run("old/name")
    assert ids(told) == ["snapshot-moved"]
    assert told["findings"][0]["severity"] == "warning"
    assert CANARY in told["findings"][0]["remedy"]
    assert only(told)["present"] is True


def test_nobody_at_the_address_is_told_without_who_was_to_ask(host):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = "http://me:secret@127.0.0.1:%d" % free.getsockname()[1]
    told = host.run(CANARY, state="outlined", hub={"url": url})
    assert ids(told) == ["snapshot-hub-unreachable"]
    assert "secret" not in json.dumps(told["findings"])
    assert "network_access" in told["findings"][0]["remedy"]


def test_a_page_in_place_of_a_hub_is_told(host):
    class Portal(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>Log in to this network</html>")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Portal) as portal:
        threading.Thread(target=portal.serve_forever, daemon=True).start()
        told = host.run(CANARY, state="outlined",
                        hub={"url": "http://127.0.0.1:%d" % portal.server_port})
        portal.shutdown()
    assert ids(told) == ["snapshot-not-a-hub"]


def test_what_one_snapshot_lacks_stops_no_other(host):
    told = host.run("firstlight/private", GGUF)
    assert told["failed"] is True
    assert told["snapshots"]["canary-gguf"]["present"] is True


@pytest.mark.parametrize("repo_id", ["../../etc", "a/b/c", "/srv/model", "a--b/c"])
def test_what_is_no_repository_is_told(host, repo_id):
    assert ids(host.run(repo_id, state="outlined")) == ["snapshot-bad-name"]
    assert host.asked() == []


# Who sees the token.


def test_a_trusted_hub_sees_the_token_and_no_other_host_does(host):
    host.hub.faults = {"*.safetensors": {"redirect": True}, "*/resolve/*": {"gated": "token"}}
    assert host.run(CANARY, token=rig.TOKEN, state="outlined")["findings"] == []
    told = host.run(CANARY, token=rig.TOKEN)
    assert only(told)["present"] is True
    asked = host.asked()
    assert [one.range for one in asked if one.host == "cdn"][0] == "bytes=0-262143"
    assert {one.authorization for one in asked if one.host == "hub"} == {"Bearer " + rig.TOKEN}
    assert {one.authorization for one in asked if one.host == "cdn"} == {""}
    assert rig.TOKEN not in json.dumps(told)
    for file in host.root.rglob("*.json"):
        assert rig.TOKEN not in file.read_text(errors="replace")


def test_a_token_is_withheld_from_a_hub_that_is_not_trusted(host, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    told = host.run(CANARY, token=rig.TOKEN, hub={"url": host.hub.url})
    assert ids(told) == ["snapshot-token-withheld"]
    assert told["findings"][0]["severity"] == "warning"
    assert {one.authorization for one in host.asked()} == {""}
    assert host.run(CANARY, token=rig.TOKEN, hub={"url": host.hub.url})["findings"] == []


# Room, kills, and others at the same time.


class Room:
    """A file system with so much room as a test says."""

    def __init__(self, monkeypatch):
        self.free, real = 0, os.statvfs
        monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(
            [1, 1, *list(real(path))[2:4], self.free, *list(real(path))[5:]]))


def test_a_disk_that_is_too_full_is_told_before_anything_is_fetched(host, monkeypatch):
    room = Room(monkeypatch)
    room.free = work.SPARE + 5 * MIB
    assert ids(host.run(CANARY, state="outlined")) == ["snapshot-no-space"]
    host.asked()
    told = host.run(CANARY)
    assert told["failed"] is True
    assert "snapshot-no-space" in told["msg"]
    assert not list(host.cache.rglob("blobs/*"))


def test_what_an_earlier_run_has_left_counts_as_room(host, monkeypatch):
    repo_id = big(host.hub, 30 * MIB)
    told = only(host.run(repo_id, state="outlined"))
    [entry] = [one for one in told["manifest"]["entries"] if one["path"].endswith(".safetensors")]
    blobs = host.cache / layout.name(repo_id) / "blobs"
    blobs.mkdir(parents=True)
    with open(host.hub.repos.folder / repo_id / entry["path"], "rb") as file:
        (blobs / (entry["sha256"] + ".incomplete")).write_bytes(file.read(20 * MIB))
    room = Room(monkeypatch)
    room.free = work.SPARE + 20 * MIB
    host.asked()
    assert host.run(repo_id)["findings"] == []
    [part] = [one for one in host.asked() if one.range and one.bytes > MIB]
    assert part.range == "bytes=%d-" % (20 * MIB)


def begun(host, repo_id, **options):
    """A work that has some of a large file: its result and its state."""
    told = host.run(repo_id, wait_s=0.0, **options)
    assert told["finished"] is False
    [file] = host.root.glob("journal/*.run.json")
    until(lambda: json.loads(file.read_text())["progress"].get("done", 0) > 2 * MIB)
    return told, file


@pytest.mark.parametrize("who", ["worker", "all"])
def test_a_kill_in_the_middle_costs_nothing_that_came(host, who):
    size = 48 * MIB
    repo_id = big(host.hub, size)
    host.hub.faults = {"*.safetensors": {"slow": 16 * MIB, "method": "GET"}}
    told, file = begun(host, repo_id)
    guard = json.loads(file.read_text())["pid"]
    if who == "all":
        os.killpg(guard, signal.SIGKILL)
    else:
        [worker] = (pathlib.Path("/proc/%d/task/%d/children" % (guard, guard))
                    .read_text().split())
        os.kill(int(worker), signal.SIGKILL)
    ended = until(lambda: (seen := host.run(repo_id, run=told["run"], wait_s=5.0)).get(
        "failed") and seen)
    assert "run again" in ended["msg"]
    [partial] = (host.cache / layout.name(repo_id) / "blobs").glob("*.incomplete")
    kept = partial.stat().st_size
    assert 0 < kept < size
    host.hub.faults = {}
    host.asked()
    again = host.run(repo_id)
    assert only(again)["present"] is True
    large = [one for one in host.asked() if one.path.endswith(".safetensors") and one.bytes > MIB]
    assert [(one.range, one.bytes) for one in large] == [("bytes=%d-" % kept, size - kept)]
    assert only(host.run(repo_id, verify="full"))["verified"] == "full"


def test_a_run_watches_what_another_has_begun(host):
    repo_id = big(host.hub, 24 * MIB)
    host.hub.faults = {"*.safetensors": {"slow": 16 * MIB, "method": "GET"}}
    first, _ = begun(host, repo_id)
    second = host.run(repo_id, wait_s=0.0)
    assert (second["finished"], second["run"]) == (False, first["run"])
    third = host.run(repo_id, run="4711", wait_s=0.0)
    assert third["run"] == first["run"]
    assert only(host.run(repo_id, run=first["run"]))["present"] is True
    assert only(host.run(repo_id, run=third["run"]))["present"] is True
    whole = [one for one in host.asked() if one.bytes > 20 * MIB]
    assert len(whole) == 1


def test_a_run_that_wants_something_else_of_it_waits_and_fetches_nothing_twice(host):
    repo_id = big(host.hub, 24 * MIB)
    host.hub.faults = {"*.safetensors": {"slow": 16 * MIB, "method": "GET"}}
    begun(host, repo_id)
    told = host.run(snapshots=[{"name": "one", "repo_id": repo_id, "allow": ["*"]},
                               {"name": "two", "repo_id": GGUF}])
    assert all(one["present"] for one in told["snapshots"].values())
    assert len([one for one in host.asked() if one.bytes > 20 * MIB]) == 1


def test_progress_has_what_the_progress_view_shows(host):
    from progress import progress_text

    repo_id = big(host.hub, 24 * MIB)
    host.hub.faults = {"*.safetensors": {"slow": 8 * MIB, "method": "GET"}}
    told, _ = begun(host, repo_id)
    seen = until(lambda: (one := host.run(repo_id, run=told["run"], wait_s=0.0))["progress"].get(
        "rate") and one["progress"])
    assert seen["total"] > 24 * MIB > seen["done"] > 0
    assert seen["unit"] == "bytes"
    said = progress_text(seen)
    assert "of 25.2 MB" in said
    assert "MB/s" in said
    assert "left" in said
    assert host.run(repo_id, run=told["run"])["finished"] is True


# What is bad on the disk, or comes bad.


def flip(path, at):
    """Another byte in a file, which looks as if nobody had touched it."""
    path.chmod(0o644)
    before = path.stat()
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_flipped_byte_is_found_and_that_file_alone_comes_again(host):
    told = host.run(SHARDED)
    bad = host.blob(told, "model-00002-of-00002.safetensors")
    flip(bad, bad.stat().st_size - 5)
    host.asked()
    assert host.run(SHARDED)["findings"] == []  # nobody looked
    assert host.asked() == []
    mended = host.run(SHARDED, verify="full")
    assert mended["changed"] is True
    assert ids(mended) == ["snapshot-corrupt"]
    assert mended["findings"][0]["severity"] == "warning"
    assert "model-00002-of-00002.safetensors: flipped" in mended["findings"][0]["found"]
    assert only(mended)["verified"] == "full"
    assert [one.path.rpartition("/")[2] for one in host.asked()] == [
        "model-00002-of-00002.safetensors"]
    assert (host.cache / "quarantine" / layout.name(SHARDED) / bad.name).exists()
    assert host.run(SHARDED, verify="full")["findings"] == []


@pytest.mark.parametrize("offline", [False, True])
def test_a_file_that_cannot_be_read_to_its_end_stays_where_it_is(host, monkeypatch, offline):
    told = host.run(CANARY)
    there = host.blob(told, "model.safetensors")
    monkeypatch.setattr(verify, "_hash", lambda *given: ("not readable: Stale file handle", (
        0, 0, 0)))
    host.asked()
    failed = host.run(CANARY, verify="full", offline=offline)
    assert failed["failed"] is True
    assert ids(failed) == ["snapshot-unreadable"]
    assert "Stale file handle" in failed["findings"][0]["found"]
    assert there.exists() and host.asked() == []
    monkeypatch.undo()
    assert only(host.run(CANARY, verify="full", offline=offline))["verified"] == "full"


def test_offline_a_flipped_file_is_told_and_not_moved(host):
    told = host.run(CANARY)
    there = host.blob(told, "model.safetensors")
    flip(there, there.stat().st_size - 5)
    failed = host.run(CANARY, verify="full", offline=True)
    assert failed["failed"] is True
    assert ids(failed) == ["snapshot-corrupt"]
    assert there.exists()


def test_a_list_that_was_wrong_is_asked_for_anew(host):
    told = host.run(CANARY, state="outlined")
    commit = only(told)["commit"]
    manifest = layout.read_tree(str(host.cache), CANARY, commit)
    layout.write_tree(str(host.cache), manifest._replace(entries=tuple(
        one._replace(sha256="0" * 64) if one.path == "model.safetensors" else one
        for one in manifest.entries)))
    failed = host.run(CANARY)
    assert ids(failed) == ["snapshot-corrupt"]
    assert only(host.run(CANARY))["present"] is True


def test_what_nobody_thought_of_is_told_in_its_own_words(host, monkeypatch):
    def fail(*given):
        raise RuntimeError("of a kind of its own")

    monkeypatch.setattr(verify, "verify", fail)
    failed = host.run(CANARY)
    assert failed["failed"] is True
    assert "RuntimeError: of a kind of its own" in failed["msg"]


def test_a_truncated_file_comes_again(host):
    told = host.run(CANARY)
    bad = host.blob(told, "model.safetensors")
    os.truncate(bad, 1000)
    outlined = host.run(CANARY, state="outlined")
    assert outlined["findings"] == []
    assert outlined["needed"] == ["canary"]
    assert only(outlined)["present"] is False
    host.asked()
    assert only(host.run(CANARY))["present"] is True
    assert {one.path.rpartition("/")[2] for one in host.asked() if one.bytes > MIB} == {
        "model.safetensors"}


def test_a_file_that_is_damaged_where_it_is_described_is_mended(host):
    told = host.run(CANARY)
    flip(host.blob(told, "model.safetensors"), 9)
    outlined = host.run(CANARY, state="outlined")
    assert outlined["needed"] == ["canary"]
    assert only(outlined)["verified"] is None
    assert only(outlined)["model"] == only(told)["model"]
    assert ids(host.run(CANARY)) == ["snapshot-corrupt"]
    assert host.run(CANARY, state="outlined")["needed"] == []


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_hub_that_serves_something_else_leaves_no_file_under_its_name(host, name):
    host.hub.faults = {"*/" + name: {"wrong_hash": 5000 if name.startswith("t") else 9_000_000,
                                     "method": "GET"}}
    if name.startswith("t"):
        # What is so small is read whole for an outline already.
        assert ids(host.run(CANARY, state="outlined")) == ["snapshot-corrupt"]
    told = host.run(CANARY)
    assert told["failed"] is True
    assert "snapshot-corrupt" in ids(told)
    assert name in json.dumps(told["findings"])
    [entry] = [one for one in only(told)["manifest"]["entries"] if one["path"] == name]
    blob = entry["sha256"] or entry["git_sha1"]
    assert not (host.cache / layout.name(CANARY) / "blobs" / blob).exists()
    assert not (pathlib.Path(only(told)["path"]) / name).exists()
    host.hub.faults = {}
    assert only(host.run(CANARY))["present"] is True


def test_a_line_that_is_cut_goes_on(host):
    repo_id = big(host.hub, 24 * MIB)
    host.hub.faults = {"*.safetensors": {"cut_at": 10 * MIB, "times": 3}}
    assert only(host.run(repo_id))["present"] is True
    assert sum(one.bytes for one in host.asked()) < 26 * MIB


# Others on the host, and other hosts.


def modes(root):
    for one in [root, *root.rglob("*")]:
        if not one.is_symlink():
            yield one, stat.S_IMODE(one.stat().st_mode)


def test_whoever_serves_may_read_it_whatever_the_umask_was(run_module, hub):
    before = os.umask(0o077)
    root = pathlib.Path(tempfile.mkdtemp(prefix="firstlight-"))
    try:
        root.chmod(0o755)
        host = Host(run_module, hub, root)
        big(hub, 17 * MIB)
        told = host.run("firstlight/big", SHARDED)
        for path, mode in modes(host.cache):
            wanted = 0o555 if path.is_dir() else 0o444
            assert mode & wanted == wanted, path
        if os.geteuid() == 0:
            (root / "models").chmod(0o755)  # state_root makes it so
            for one in told["snapshots"].values():
                nobody = pwd.getpwnam("nobody")
                subprocess.run(
                    ["cat", *map(str, pathlib.Path(one["path"]).iterdir())], check=True,
                    stdout=subprocess.DEVNULL, cwd="/", user=nobody.pw_uid, group=nobody.pw_gid,
                    extra_groups=[])
    finally:
        os.umask(before)
        end_work(root)
        shutil.rmtree(root)


def test_a_cache_that_others_may_not_read_is_opened(host):
    told = host.run(CANARY)
    (host.cache / layout.name(CANARY) / "blobs").chmod(0o700)
    host.blob(told, "config.json").chmod(0o600)
    assert host.run(CANARY, state="outlined")["needed"] == ["canary"]
    host.asked()
    opened = host.run(CANARY)
    assert (opened["changed"], opened["needed"]) == (True, [])
    assert stat.S_IMODE(host.blob(told, "config.json").stat().st_mode) == 0o644
    assert host.asked() == []


def test_a_cache_that_cannot_be_opened_is_told_and_serves(host, monkeypatch):
    def refuse(cache, repo_id, commit):
        raise PermissionError(errno.EPERM, "Operation not permitted", cache)

    monkeypatch.setattr(layout, "readable", refuse)
    told = host.run(CANARY)
    assert ids(told) == ["snapshot-unreadable"]
    assert "chmod" in told["findings"][0]["remedy"]
    assert only(told)["present"] is True


def test_one_run_at_a_time_is_at_a_repository(host):
    with Lock(str(host.cache / ".locks" / layout.name(CANARY) / "firstlight.lock"), wait_s=1):
        told = host.run(CANARY, wait_s=0.0)
        waits = until(lambda: (seen := host.run(CANARY, run=told["run"], wait_s=0.0))[
            "progress"].get("text", "").startswith("waiting") and seen)
        assert waits["finished"] is False
        assert CANARY in waits["progress"]["text"]
    assert only(host.run(CANARY, run=told["run"]))["present"] is True


@pytest.fixture
def shelf(host, tmp_path):
    """A host of the fleet that has a snapshot and serves it."""
    first = Host(host.run_module, host.hub, tmp_path / "first")
    told = first.run(SHARDED)
    shown = server.Shelf(str(first.cache), [
        server.Manifest(SHARDED, only(told)["commit"], tuple(
            server.Entry(**one) for one in only(told)["manifest"]["entries"]))])
    server.start(str(first.root), shown, "127.0.0.1", 0, "the-secret", limit_s=600, idle_s=600)
    at = server.standing(str(first.root))
    yield told, "http://%s:%d" % (at["address"], at["port"])
    server.stop(str(first.root))


def test_another_host_gives_what_it_has_and_the_hub_is_not_asked(host, shelf):
    told, url = shelf
    host.asked()
    peers = [{"name": "canary-sharded", "url": url, "secret": "the-secret",
              "manifest": only(told)["manifest"]}]
    outlined = host.run(SHARDED, peers=peers, state="outlined")
    assert outlined["findings"] == []
    assert only(outlined)["source"] == url
    copied = host.run(SHARDED, peers=peers)
    for key in ("fingerprint", "commit", "bytes", "manifest"):
        assert only(copied)[key] == only(told)[key]
    assert "the-secret" not in json.dumps(copied)
    # It is a snapshot like any other from now on.
    again = host.run(SHARDED, offline=True, verify="full")
    assert (again["changed"], only(again)["verified"]) == (False, "full")
    assert host.asked() == []


def test_another_host_that_does_not_know_us_is_told(host, shelf):
    told, url = shelf
    peers = [{"name": "canary-sharded", "url": url, "secret": "another",
              "manifest": only(told)["manifest"]}]
    refused = host.run(SHARDED, peers=peers, state="outlined")
    assert ids(refused) == ["snapshot-denied"]
    assert "another" not in refused["findings"][0]["found"]


def test_a_manifest_of_something_else_is_refused(host):
    told = host.run(GGUF)
    for manifest in (only(told)["manifest"], {"repo_id": CANARY, "commit": "1" * 40, "entries": [
            {"path": "../../x", "size": 1, "sha256": "0" * 64, "git_sha1": None}]}):
        refused = host.run(CANARY, state="outlined", peers=[
            {"name": "canary", "url": host.hub.url, "manifest": manifest}])
        assert ids(refused) == ["snapshot-not-a-hub"]


def test_the_library_reads_what_was_brought(host):
    told = host.run(CANARY, SHARDED)
    import huggingface_hub

    for one in told["snapshots"].values():
        assert huggingface_hub.snapshot_download(
            one["repo_id"], cache_dir=host.cache, local_files_only=True,
            allow_patterns=["*.safetensors", "config.json", "tokenizer*"],
            ignore_patterns=["consolidated*"]) == one["path"]


def test_the_library_is_told_what_to_leave_before_it_is_imported(tmp_path):
    code = ("from ansible.module_utils.firstlight.snapshots import sources; "
            "hub = sources.package(); c = hub.constants; "
            "print(c.HF_HUB_DISABLE_XET, c.HF_HUB_DISABLE_TELEMETRY, c.HF_HUB_OFFLINE, "
            "c.HF_HUB_DISABLE_IMPLICIT_TOKEN)")
    ran = subprocess.run(
        [sys.executable, "-c", "import ansible.module_utils as m; m.__path__.append(%r); %s" % (
            os.path.dirname(os.path.dirname(os.path.dirname(sources.__file__))), code)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["True", "True", "False", "True"]


def test_the_catalogs_of_models_say_which_code_is_needed(host):
    config = host.hub.repos.folder / CANARY / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "known",
                                  "auto_map": {"AutoModel": "modeling_known.Known"}}))
    assert "model-needs-code" in ids(host.run(CANARY, state="outlined"))
    known = [{"model_type": "known", "source": "-"}]
    assert ids(host.run(CANARY, state="outlined", model_types=known)) == []


def test_the_catalogs_of_models_say_which_tokenizer_is_needed(host):
    rows = [{"class": "PreTrainedTokenizer", "files": ["tokenizer.model"], "tokenizer_json": False,
             "source": "-"}]
    assert ids(host.run(CANARY, state="outlined")) == []
    assert ids(host.run(CANARY, state="outlined", tokenizer_classes=rows)) == [
        "model-no-tokenizer"]
