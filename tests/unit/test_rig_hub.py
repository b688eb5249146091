# SPDX-License-Identifier: Apache-2.0
"""The rig's hub is one to the real huggingface_hub, and each of its faults is seen as meant."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import urllib.error
import urllib.request

import hub
import pytest

WEIGHTS = "model.safetensors"
CALL = """
import json, sys, time, huggingface_hub
from huggingface_hub import file_download
time.sleep = lambda seconds: None  # between its tries
name, given = sys.argv[1], json.loads(sys.argv[2])
try:
    answer = getattr(huggingface_hub, name, None) or getattr(huggingface_hub.HfApi(), name)
    answer = answer(**given)
except Exception as problem:
    print(type(problem).__name__, getattr(getattr(problem, "response", None), "status_code", ""))
    sys.exit(str(problem))
print(getattr(answer, "id", None) or answer)
"""


@pytest.fixture(scope="module")
def repos(tmp_path_factory):
    return hub.canary_repos(tmp_path_factory.mktemp("hub") / "repos")


@pytest.fixture
def served(repos):
    with hub.Hub(repos) as h:
        yield h


@pytest.fixture
def client(served, tmp_path):
    """Calls huggingface_hub in a process of its own: its output, and what it complained of."""

    def call(name, token=None, timeout_s=20, **given):
        environment = dict(
            os.environ, HF_ENDPOINT=served.url, HF_HUB_DISABLE_XET="1", HF_HOME=str(tmp_path),
            HF_HUB_DISABLE_PROGRESS_BARS="1", HF_HUB_DOWNLOAD_TIMEOUT=str(timeout_s),
            HF_HUB_ETAG_TIMEOUT="20")
        for variable in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
            environment.pop(variable, None)
        if token:
            environment["HF_TOKEN"] = token
        done = subprocess.run(
            [sys.executable, "-c", CALL, name,
             json.dumps({"repo_id": "firstlight/canary", **given})],
            env=environment, check=False, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True)
        return done.stdout.strip(), done.stderr

    return call


@pytest.fixture
def fetched(client):
    """Brings the weights of the canary by huggingface_hub; the file, and what it complained of."""

    def fetch(filename=WEIGHTS, **given):
        found, complaint = client("hf_hub_download", filename=filename, **given)
        assert found.startswith("/"), (found, complaint)
        return pathlib.Path(found), complaint

    return fetch


def answers(served, end=WEIGHTS, method="GET"):
    return [request for request in served.done()
            if request.method == method and request.path.endswith(end)]


def test_a_snapshot_is_whole_and_named_by_its_hashes(served, client, repos):
    found, complaint = client("snapshot_download")
    snapshot, origin = pathlib.Path(found), repos / "firstlight/canary"
    assert snapshot.name == served.commit("firstlight/canary"), complaint
    here, there = ({path.relative_to(folder).as_posix(): path.read_bytes()
                    for path in folder.rglob("*") if path.is_file()}
                   for folder in (snapshot, origin))
    assert here == there
    weights = snapshot / WEIGHTS
    assert weights.resolve().name == hashlib.sha256(weights.read_bytes()).hexdigest()
    config = (snapshot / "config.json").resolve()
    git = subprocess.run(["git", "hash-object", str(config)], check=True, stdout=subprocess.PIPE)
    assert config.name == git.stdout.decode().strip()
    seen = len(served.done())
    again, _ = client("snapshot_download", revision=snapshot.name)
    assert again == found
    assert [r for r in served.done()[seen:] if "canary" in r.path] == [], "a commit never changes"


def test_what_is_there_passes_the_clients_own_check(served, client, tmp_path):
    client("snapshot_download", repo_id="firstlight/canary-sharded")
    done = subprocess.run(
        [os.path.join(os.path.dirname(sys.executable), "hf"), "cache", "verify",
         "firstlight/canary-sharded"],
        env=dict(os.environ, HF_ENDPOINT=served.url, HF_HOME=str(tmp_path), HF_HUB_DISABLE_XET="1",
                 HF_HUB_DISABLE_UPDATE_CHECK="1"),
        check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout


def test_a_list_comes_in_pages(served, client, repos):
    served.faults["*/tree/*"] = {"page": 5}
    found, _ = client("snapshot_download")
    assert len([path for path in pathlib.Path(found).rglob("*") if path.is_file()]) == 17
    assert len([r for r in served.done() if "/tree/" in r.path]) == 4


def test_branches_tags_and_a_change(tmp_path, client, served):
    made = hub.canary_repos(tmp_path / "repos")
    hub.tagged(made, "firstlight/canary", "refs/pr/1")
    with hub.Hub(made) as h:
        old = h.commit("firstlight/canary")
        assert h.commit("firstlight/canary", "refs/pr/1") == old
        config = made / "firstlight/canary/config.json"
        config.unlink()
        config.write_text("{}")
        assert h.commit("firstlight/canary") != old
        served.repos = h.repos
        found, complaint = client("hf_hub_download", filename="config.json", revision="refs/pr/1")
        assert "llama" in pathlib.Path(found).read_text(), complaint
        found, complaint = client("hf_hub_download", filename="config.json")
        assert pathlib.Path(found).read_text() == "{}", complaint


def test_hashes_are_kept_beside_the_repositories(tmp_path):
    made = hub.big_repo(tmp_path, [100_000, 200_000])
    first = hub.Hub(made).commit("firstlight/big")
    assert (tmp_path / "firstlight/big/model-00002-of-00002.safetensors").stat().st_size == 200_000
    kept = json.loads((tmp_path / ".hashes.json").read_text())
    assert len(kept) == 2
    for row in kept.values():
        row[2] = "0" * 64
    (tmp_path / ".hashes.json").write_text(json.dumps(kept))
    assert hub.Hub(made).commit("firstlight/big") != first, "it is not read again"


def test_it_is_a_proxy_too(served):
    proxy = urllib.request.build_opener(urllib.request.ProxyHandler({"http": served.url}))
    with proxy.open("http://hub.example.org/firstlight/canary/resolve/main/config.json") as answer:
        assert json.load(answer)["model_type"] == "llama"
    assert [request.proxied for request in served.done()] == ["hub.example.org"]


def test_as_a_process_it_prints_its_url_and_keeps_a_log(repos, tmp_path):
    log = tmp_path / "log"
    process = subprocess.Popen(
        [sys.executable, str(pathlib.Path(hub.__file__).parent), "--repos", str(repos), "--log",
         str(log), "--faults", '{"*.json": {"status": 429, "retry_after": 7}}'],
        stdout=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().strip()
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(url + "/firstlight/canary/resolve/main/config.json")
        assert refused.value.code == 429
        assert refused.value.headers["Retry-After"] == "7"
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()
    assert process.returncode == 0
    row = json.loads(log.read_text())
    assert (row["method"], row["status"]) == ("GET", 429)


# Faults that the client gets over.


def test_a_cut_line_is_gone_on_with(served, fetched):
    served.faults["*" + WEIGHTS] = {"cut_at": 3_000_000, "times": 1}
    found, complaint = fetched()
    whole = (served.repos.folder / "firstlight/canary" / WEIGHTS).read_bytes()
    assert found.read_bytes() == whole
    assert "Trying to resume download" in complaint
    first, second = answers(served)
    assert (first.range, first.status, first.bytes) == ("", 200, 3_000_000)
    begin = int(re.fullmatch(r"bytes=(\d+)-", second.range).group(1)) if second.range else 0
    assert second.bytes == len(whole) - begin


@pytest.mark.parametrize(("fault", "said"), [
    ("cut_after", "RemoteProtocolError"), ("stall_at", "ReadTimeout")])
def test_cut_or_stalled_for_ever(served, client, fault, said):
    served.faults["*" + WEIGHTS] = {fault: 3_000_000}
    found, complaint = client("hf_hub_download", filename=WEIGHTS, timeout_s=1)
    assert found.split()[0] == said, complaint
    assert {request.bytes for request in answers(served)} == {3_000_000}


def test_slow_is_slow(served):
    served.faults["*config.json"] = {"slow": 10_000}
    ends = []
    with urllib.request.urlopen(served.resolve("firstlight/canary", "config.json")) as answer:
        while answer.read(100):
            ends.append(served.requests[-1].bytes)
    assert ends[0] < served.done()[-1].bytes == 694, "it comes bit by bit"


def test_a_range_is_not_honoured(served, fetched):
    served.faults["*" + WEIGHTS] = {"cut_at": 10_500_000, "times": 1}
    served.faults["*model.safetensor?"] = {"no_range": True}
    found, _ = fetched()
    assert [request.status for request in answers(served)] == [200, 200]
    assert found.stat().st_size == answers(served)[1].bytes


def test_a_range_is_refused(served):
    served.faults["*" + WEIGHTS] = {"bad_range": True}
    asked = urllib.request.Request(served.resolve("firstlight/canary", WEIGHTS),
                                   headers={"Range": "bytes=5-"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(asked)
    assert refused.value.code == 416
    assert refused.value.headers["Content-Range"] == "bytes */10624200"


def test_a_wrong_byte_is_taken_by_the_client(served, fetched, repos):
    served.faults["*" + WEIGHTS] = {"wrong_hash": True}
    found, _ = fetched()
    whole = (repos / "firstlight/canary" / WEIGHTS).read_bytes()
    got = found.read_bytes()
    assert [at for at in range(len(whole)) if whole[at] != got[at]] == [len(whole) // 2]


@pytest.mark.parametrize("more", [1000, -1000])
def test_a_wrong_size_is_not(served, client, more):
    served.faults["*" + WEIGHTS] = {"wrong_size": more}
    found, complaint = client("hf_hub_download", filename=WEIGHTS)
    assert found.split()[0] == "OSError"
    assert "should be of size 10624200 but has size %d" % (10624200 + more) in complaint


def test_a_body_without_length_and_one_without_end(served, fetched):
    served.faults["*" + WEIGHTS] = {"no_length": True, "method": "GET"}
    assert fetched()[0].stat().st_size == 10624200
    served.faults = {"*config.json": {"endless": True}}
    with urllib.request.urlopen(served.resolve("firstlight/canary", "config.json")) as answer:
        assert answer.headers["Content-Length"] is None
        assert len(answer.read(1_000_000)) == 1_000_000


@pytest.mark.parametrize("status", [429, 500])
def test_a_status_that_passes(served, client, status):
    served.faults["*/api/models/*"] = {"status": status, "retry_after": 0, "times": 1}
    found, complaint = client("model_info")
    assert found.split() == ["HfHubHTTPError", str(status)], complaint
    assert client("model_info")[0] == "firstlight/canary"


def test_another_host_has_the_bytes_and_gets_no_token(served, fetched):
    served.faults["*" + WEIGHTS] = {"redirect": True}
    found, _ = fetched(token="hf_secret")
    assert found.stat().st_size == 10624200
    assert found.resolve().name.startswith("12fe4665"), "X-Linked-Etag wins"
    head = answers(served, method="HEAD")[0]
    get, = (request for request in answers(served) if request.status == 200)
    assert (head.host, head.status, head.authorization) == ("hub", 302, "Bearer hf_secret")
    assert (get.host, get.authorization) == ("cdn", "")


def test_a_repository_that_moved(served, client):
    served.faults["*/old/name*"] = {"moved": "firstlight/canary"}
    assert client("model_info", repo_id="old/name")[0] == "firstlight/canary"
    found, complaint = client("hf_hub_download", repo_id="old/name", filename="config.json")
    assert found.startswith("/"), complaint


# Faults that it does not get over.


@pytest.mark.parametrize(("fault", "said", "told"), [
    ({"no_commit_header": True}, "LocalEntryNotFoundError", "missing the 'X-Repo-Commit' header"),
    ({"no_etag": True}, "LocalEntryNotFoundError", "does not have an ETag"),
    ({"status": 401}, "HfHubHTTPError 401", "401"),
    ({"status": 404, "code": "EntryNotFound"}, "RemoteEntryNotFoundError 404", "Entry Not Found"),
    ({"status": 403, "code": "GatedRepo"}, "GatedRepoError 403", "gated"),
    ({"gated": True}, "GatedRepoError 401", "restricted"),
    ({"gated": "token"}, "GatedRepoError 401", "ask for access"),
])
def test_a_refusal(served, client, fault, said, told):
    served.faults["*/resolve/*"] = fault
    found, complaint = client("hf_hub_download", filename=WEIGHTS)
    assert found == said, complaint
    assert told in complaint


def test_who_has_the_token_is_let_in(served, client):
    served.faults["*/resolve/*"] = {"gated": "token"}
    found, complaint = client("hf_hub_download", token=hub.TOKEN, filename="config.json")
    assert found.startswith("/"), complaint
    found, _ = client("hf_hub_download", token="hf_other", filename=WEIGHTS)
    assert found == "GatedRepoError 403"


@pytest.mark.parametrize(("given", "said"), [
    ({"repo_id": "no/such"}, "RepositoryNotFoundError 401"),
    ({"repo_id": "no/such", "token": "hf_any"}, "RepositoryNotFoundError 404"),
    ({"revision": "none"}, "RevisionNotFoundError 404"),
    ({"revision": "0" * 40}, "RevisionNotFoundError 404"),
])
def test_what_there_is_not(client, given, said):
    found, complaint = client("model_info", **given)
    assert found == said, complaint


def test_a_file_that_there_is_not(client):
    found, complaint = client("hf_hub_download", filename="none.json")
    assert found == "RemoteEntryNotFoundError 404", complaint
