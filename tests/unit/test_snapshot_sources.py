# SPDX-License-Identifier: Apache-2.0
"""ModelScope as a source, and what errors of sources are turned into.

The server here gives answers of the shapes that were read in ModelScope's own client and in other
programs that ask it. It was not held against the real one.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import os
import pathlib
import socket
import threading
import urllib.parse

import hub
import model_snapshot
import pytest

from ansible.module_utils.firstlight import canary
from ansible.module_utils.firstlight.snapshots import entries, sources

REPO = "firstlight/canary"
OLD, HEAD = "a" * 40, "b" * 40
FILES = {one.rpartition("/")[2]: canary.content(one) for one in canary.FILES}
FILES = {name: content for name, content in FILES.items() if not name.endswith(".gguf")}


@pytest.fixture(autouse=True)
def environment():
    kept = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(kept)


class Scope:
    """What ModelScope has of one repository, and what it was asked."""

    def __init__(self):
        self.files = dict(FILES)
        self.revisions = {"master", "v1.0", HEAD}
        self.head = {"Id": "", "ShortId": HEAD[:8], "CommittedDate": 1753546348}
        self.of_file = {"config.json": HEAD}
        self.lies = {}
        self.asked = []
        self.status = None

    def listing(self, revision):
        if revision and revision not in self.revisions:
            return {"Files": None, "IsVisual": 0, "LatestCommitter": None}
        rows = [{"Path": "figures", "Name": "figures", "Type": "tree", "Size": 0}]
        for path, content in sorted(self.files.items()):
            rows.append({
                "Path": path, "Name": path, "Type": "blob", "Size": len(content),
                "Sha256": hashlib.sha256(content).hexdigest(), "IsLFS": len(content) > 10**6,
                "Revision": self.of_file.get(path, OLD), "CommittedDate": 1753546348})
        return {"Files": rows, "IsVisual": 0, "LatestCommitter": self.head}


@pytest.fixture
def scope():
    told = Scope()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            parts = urllib.parse.urlsplit(self.path)
            query = dict(urllib.parse.parse_qsl(parts.query))
            told.asked.append((parts.path, query, self.headers.get("Authorization")))
            known = "/api/v1/models/%s" % REPO
            if told.status:
                self.give(told.status, json.dumps({"Message": "no"}).encode())
            elif parts.path == known + "/repo/files":
                self.answer(told.listing(query.get("Revision")))
            elif parts.path == known + "/revisions":
                self.answer({"RevisionMap": {
                    "Branches": [{"Revision": "master", "CreatedAt": 1}],
                    "Tags": [{"Revision": "v1.0", "CreatedAt": 2}]}})
            elif parts.path == known + "/repo" and query["FilePath"] in told.files:
                content = told.lies.get(query["FilePath"], told.files[query["FilePath"]])
                first = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
                last = (self.headers.get("Range") or "").rpartition("-")[2]
                end = int(last) + 1 if last else len(content)
                extra = {"Content-Range": "bytes %d-%d/%d" % (
                    first, min(end, len(content)) - 1, len(content))} if "Range" in self.headers \
                    else {}
                self.give(206 if extra else 200, content[first:end], **extra)
            else:
                self.give(404, json.dumps({
                    "Code": 10010205001, "Message": "record not found", "Success": False}).encode())

        def answer(self, data):
            self.give(200, json.dumps({"Code": 200, "Data": data, "Message": "success",
                                       "RequestId": "1", "Success": True}).encode())

        def give(self, status, body, **headers):
            self.send_response(status)
            for name, value in {**headers, "Content-Length": len(body)}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        made.daemon_threads = True
        threading.Thread(target=made.serve_forever, args=(0.05,), daemon=True).start()
        told.url = "http://127.0.0.1:%d" % made.server_port
        yield told
        made.shutdown()


@pytest.fixture
def run(run_module, scope, tmp_path):
    def ask(state="present", revision="", **options):
        return run_module(model_snapshot.main, **{
            "root": str(tmp_path / "root"), "state": state, "wait_s": 60.0,
            "hub": {"kind": "modelscope", "url": scope.url, "trusted": True},
            "snapshots": [{"name": "chat", "repo_id": REPO, "revision": revision}], **options})

    return ask


def only(result):
    return result["snapshots"]["chat"]


def fetched(scope):
    return [(query["Revision"], query["FilePath"]) for path, query, _ in scope.asked
            if path.endswith("/repo") and "Revision" in query]


def test_a_model_comes_from_modelscope_and_stays(run, scope, monkeypatch):
    monkeypatch.setattr(sources, "package", lambda: pytest.fail("not needed"))
    before = run("outlined", token="ms-token")
    assert before["findings"] == []
    told = run(token="ms-token")
    assert (told["changed"], only(told)["present"]) == (True, True)
    assert (only(told)["commit"], only(told)["revision"]) == (HEAD, "master")
    assert only(told)["model"] == only(before)["model"]
    assert {revision for revision, _ in fetched(scope)} == {HEAD}
    assert {shown for _, _, shown in scope.asked} == {"Bearer ms-token"}
    for name in ("config.json", "model.safetensors"):
        assert (pathlib.Path(only(told)["path"]) / name).read_bytes() == FILES[name]
    scope.asked.clear()
    assert run(verify="full")["changed"] is False
    assert scope.asked == []
    # Another hub is asked by default now; what is whole stays.
    assert only(run("outlined", hub={"url": "http://192.0.2.1"}))["commit"] == HEAD


def test_a_head_without_a_commit_of_its_own_gets_one_of_its_list(run, scope):
    scope.head = {"Id": "", "ShortId": "12345678"}
    told = run(revision="v1.0")
    assert only(told)["present"] is True
    assert entries.COMMIT.fullmatch(only(told)["commit"])
    assert only(told)["commit"] not in (HEAD, OLD)
    assert {revision for revision, _ in fetched(scope)} == {"v1.0"}
    # In another process nobody remembers what was asked then.
    (pathlib.Path(only(told)["path"]) / "config.json").unlink()
    for one in pathlib.Path(only(told)["path"]).parent.parent.glob("blobs/*"):
        one.unlink()
    scope.asked.clear()
    assert only(run(revision="v1.0"))["present"] is True
    assert {revision for revision, _ in fetched(scope)} == {"v1.0"}


def test_a_revision_that_is_not_there_is_told_with_those_that_are(run, scope):
    told = run("outlined", revision="main")
    [found] = told["findings"]
    assert found["id"] == "snapshot-revision-not-found"
    assert "main" in found["found"]
    assert "master, v1.0" in found["wanted"]


@pytest.mark.parametrize("status, wanted", [
    (401, "snapshot-denied"), (403, "snapshot-denied"), (404, "snapshot-not-found"),
    (429, "snapshot-rate-limited"), (500, "snapshot-hub-unreachable")])
def test_what_modelscope_refuses_is_one_finding(run, scope, status, wanted):
    scope.status = status
    assert [one["id"] for one in run("outlined")["findings"]] == [wanted]


@pytest.mark.parametrize("data", [
    [], {"Files": {}}, {"Files": [1]}, "text", {"Files": [{"Type": "blob"}]},
    {"Files": [{"Type": "blob", "Path": "../x", "Size": 1, "Sha256": "0" * 64}]},
    {"Files": [{"Type": "blob", "Path": "x", "Size": -1, "Sha256": "0" * 64}]},
    {"Files": [{"Type": "blob", "Path": "x", "Size": 1, "Sha256": ""}]}])
def test_a_list_of_files_that_cannot_be_is_refused(run, scope, monkeypatch, data):
    monkeypatch.setattr(scope, "listing", lambda revision: data)
    told = run("outlined")
    assert [one["id"] for one in told["findings"]] in (
        ["snapshot-not-a-hub"], ["snapshot-revision-not-found"])


def test_another_content_than_was_listed_is_corrupt(run, scope):
    weights = bytearray(FILES["model.safetensors"])
    weights[-9] ^= 1
    scope.lies["model.safetensors"] = bytes(weights)
    told = run()
    assert told["failed"] is True
    assert [one["id"] for one in told["findings"]] == ["snapshot-corrupt"]
    assert only(told)["present"] is False


def test_words_of_errors_have_no_secrets_in_them():
    said = sources.clean("GET https://me:pass@hub.example.org/x?token=1&b=2 failed\n  with hf_1 x"
                         " and 'http://a.example.org/y?sig=3'", "hf_1")
    assert said == ("GET https://hub.example.org/x failed with *** x and"
                    " 'http://a.example.org/y'")


def test_an_address_is_shown_without_who_is_in_it():
    assert sources.shown("https://me:pass@hub.example.org:8443/hf/?a=1") == (
        "https://hub.example.org:8443/hf")


def test_a_library_that_cannot_be_imported_is_no_library(monkeypatch, tmp_path):
    # One for a newer Python fails where it is compiled, or anywhere else.
    (tmp_path / "huggingface_hub.py").write_text("match = \n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with contextlib.suppress(KeyError):
        monkeypatch.delitem(sources.sys.modules, "huggingface_hub")
    with pytest.raises(sources.NoLibrary, match="SyntaxError"):
        sources.package()


def test_another_host_of_the_fleet_is_asked_by_no_proxy(monkeypatch, tmp_path):
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "name" / "config.json").write_text("{}")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with hub.Hub(tmp_path) as other:
        entry = entries.Entry("config.json", 2, hashlib.sha256(b"{}").hexdigest(), None)
        peer = sources.peer({"url": other.url, "secret": "", "manifest": {
            "repo_id": "org/name", "commit": other.commit("org/name"),
            "entries": [entry._asdict()]}})
        assert peer.inside
        assert peer.part("org/name", other.commit("org/name"), entry, 0, 2) == b"{}"


def test_a_hub_that_asks_to_be_left_alone_for_long_is_given_up(monkeypatch, tmp_path):
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "name" / "config.json").write_text("{}")
    monkeypatch.setattr(sources, "ANSWER_S", 1.0)
    fault = {"status": 429, "retry_after": 3600}
    with hub.Hub(tmp_path, faults={"*/tree/*": fault}) as slow:
        given_up(slow.url, slow.commit("org/name"))


def test_a_hub_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(sources, "ANSWER_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        given_up("http://127.0.0.1:%d" % silent.getsockname()[1], "a" * 40)


def given_up(url, commit):
    with pytest.raises(sources.HubProblem) as problem:
        sources.source({"url": url}).manifest("org/name", commit)
    (found,) = problem.value.findings
    assert found["id"] == "snapshot-hub-unreachable"
    assert "no whole answer within" in found["found"]
