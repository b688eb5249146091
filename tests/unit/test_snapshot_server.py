# SPDX-License-Identifier: Apache-2.0
"""What a host gives to others: these snapshots, whole or in part, to who has the secret."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse

import hub
import pytest
import snapshot_cache
import snapshot_server
from supervised import free_port, until

from ansible.module_utils.firstlight import processes
from ansible.module_utils.firstlight.snapshots import entries, fetch, layout, server
from ansible.module_utils.firstlight.transaction import Busy

ROOT = pathlib.Path(__file__).parents[2]
REPO, SECRET = "firstlight/canary", "correct-horse"
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def repos(tmp_path_factory):
    return hub.canary_repos(tmp_path_factory.mktemp("hub") / "repos")


@pytest.fixture(scope="module")
def origin(repos, tmp_path_factory):
    """A cache that the real library filled, and the manifest of what is in it."""
    cache = tmp_path_factory.mktemp("origin") / "hub"
    with hub.Hub(repos) as upstream:
        return cache, snapshot_cache.filled(upstream.url, cache, REPO)


@pytest.fixture
def cache(origin, tmp_path):
    """A copy of that cache, to be spoilt."""
    shutil.copytree(origin[0], tmp_path / "cache", symlinks=True)
    return tmp_path / "cache"


@pytest.fixture
def serving(origin):
    """Serve manifests of a cache from a thread; gives the server."""
    with contextlib.ExitStack() as kept:
        def serve(cache=origin[0], manifests=(origin[1],), **how):
            made = kept.enter_context(server.Server(
                server.Shelf(str(cache), manifests), "127.0.0.1", 0, SECRET, **how))
            over = threading.Event()
            thread = threading.Thread(target=made.serve, args=(600, 600, over.is_set))
            thread.start()
            kept.callback(thread.join)
            kept.callback(over.set)
            return made

        yield serve


def ask(made, path, method="GET", secret=SECRET, here="", **headers):
    """One request on a connection of its own, from an address: status, headers and body."""
    there = http.client.HTTPConnection(*made.server_address[:2], timeout=30,
                                       source_address=(here, 0))
    with contextlib.closing(there):
        there.request(method, urllib.parse.quote(path), headers={
            **({"Authorization": "Bearer " + secret} if secret else {}),
            **{name.replace("_", "-"): value for name, value in headers.items()}})
        answer = there.getresponse()
        return answer.status, answer.headers, answer.read()


def file_path(manifest, path=WEIGHTS):
    return "/%s/resolve/%s/%s" % (manifest.repo_id, manifest.commit, path)


def entry(manifest, path=WEIGHTS):
    return next(one for one in manifest.entries if one.path == path)


def sent(made, count):
    """Wait until so much is counted, which it is after it was sent."""
    return until(lambda: made.count.served_bytes == count)


def wanted(made, manifest, one, target, secret=SECRET):
    return fetch.Wanted(made.url + file_path(manifest, one.path),
                        {"Authorization": "Bearer " + secret}, str(target), one.size,
                        one.sha256, one.git_sha1)


# --- Clients that know nothing of us, and our own ---------------------------------------------


def test_the_real_library_downloads_from_it_what_the_hub_has(origin, serving, tmp_path):
    made = serving()
    done = snapshot_cache.download(made.url, tmp_path / "copy", SECRET, repo_id=REPO,
                                   revision=origin[1].commit)
    assert done.returncode == 0, done.stderr
    there = snapshot_cache.contents(tmp_path / "copy", origin[1])
    assert there == snapshot_cache.contents(*origin)
    assert len(there) == len(origin[1].entries) > 10
    assert sent(made, sum(one.size for one in origin[1].entries))
    copied = layout.read_tree(str(tmp_path / "copy"), REPO, origin[1].commit)
    assert [one[:3] for one in copied.entries] == [one[:3] for one in origin[1].entries]


@pytest.mark.parametrize("token, how, said", [
    ("wrong", {}, "401"),
    ("", {}, "401"),
    (SECRET, {"revision": "main"}, "RevisionNotFoundError"),
    (SECRET, {"repo_id": "firstlight/canary-gguf"}, "RepositoryNotFoundError"),
])
def test_the_real_library_is_told_what_it_may_not_have(origin, serving, tmp_path, token, how,
                                                       said):
    made = serving()
    done = snapshot_cache.download(made.url, tmp_path / "copy", token, **{
        "repo_id": REPO, "revision": origin[1].commit, **how})
    assert done.returncode != 0 and said in done.stderr, done.stderr
    assert made.count.served_bytes == 0


def test_our_own_client_fetches_everything_by_the_hashes_of_the_manifest(origin, serving,
                                                                         tmp_path):
    made = serving()
    rows = [wanted(made, origin[1], one, tmp_path / one.blob) for one in origin[1].entries]
    fetched = fetch.fetch(rows)
    assert [one.from_network for one in fetched] == [row.size for row in rows]
    assert {one.path: (tmp_path / one.blob).read_bytes() for one in origin[1].entries} \
        == snapshot_cache.contents(*origin)


def test_a_copy_that_was_broken_off_goes_on_from_where_it_was(origin, serving, tmp_path):
    made, one, target = serving(), entry(origin[1]), tmp_path / "weights"
    whole = snapshot_cache.contents(*origin)[WEIGHTS]
    half = one.size // 2
    pathlib.Path(str(target) + fetch.INCOMPLETE).write_bytes(whole[:half])
    (fetched,) = fetch.fetch([wanted(made, origin[1], one, target)])
    assert (fetched.resumed_from, fetched.from_network) == (half, one.size - half)
    assert target.read_bytes() == whole
    assert sent(made, one.size - half)


def test_a_secret_that_is_wrong_is_refused_at_once(origin, serving, tmp_path):
    made = serving()
    with pytest.raises(fetch.HubError, match="401"):
        fetch.fetch([wanted(made, origin[1], entry(origin[1]), tmp_path / "x", "wrong")])
    assert made.count.requests == 0


PLAIN_PATH = """
import sys

class Refuses:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("huggingface_hub", "requests", "httpx", "httpx2", "hf_xet"):
            raise AssertionError("%s was asked for" % name)

sys.meta_path.insert(0, Refuses())
import json, threading
import ansible.module_utils
ansible.module_utils.__path__.append(sys.argv[1])
from ansible.module_utils.firstlight.snapshots import entries, fetch, layout, server, sources
from ansible.module_utils.firstlight.snapshots import verify
told = json.loads(sys.argv[2])
manifest = entries.manifest_from_dict(told["manifest"])
made = server.Server(server.Shelf(told["cache"], [manifest]), "127.0.0.1", 0, "secret")
over = threading.Event()
thread = threading.Thread(target=made.serve, args=(60, 60, over.is_set))
thread.start()
try:
    peer = sources.peer({"url": made.url, "secret": "secret", "manifest": told["manifest"]})
    layout.prepare(told["copy"], manifest.repo_id)
    fetch.fetch([peer.wanted(manifest.repo_id, manifest.commit, one,
                             layout.blob(told["copy"], manifest.repo_id, one))
                 for one in peer.manifest(manifest.repo_id, manifest.commit).entries])
finally:
    over.set()
    thread.join()
for one in manifest.entries:
    layout.link(told["copy"], manifest.repo_id, manifest.commit, one)
print(len(verify.verify(told["copy"], told["copy"] + ".json", manifest, manifest.entries, True)))
"""


def test_both_ends_of_a_copy_need_nothing_but_python(origin, tmp_path):
    """A host whose Python is too old for the library copies, and gives to others, all the same."""
    copy = tmp_path / "copy"
    done = subprocess.run(
        [sys.executable, "-c", PLAIN_PATH, str(ROOT / "module_utils"), json.dumps({
            "cache": str(origin[0]), "copy": str(copy),
            "manifest": snapshot_cache.as_option(origin[1])})],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
    assert snapshot_cache.contents(copy, origin[1]) == snapshot_cache.contents(*origin)


# --- HTTP ------------------------------------------------------------------------------------


def test_a_file_is_told_of_as_a_hub_tells_of_it(origin, serving):
    made, one = serving(), entry(origin[1])
    status, headers, body = ask(made, file_path(origin[1]), "HEAD")
    assert (status, body) == (200, b"")
    assert {name: headers[name] for name in ("Content-Length", "ETag", "X-Repo-Commit")} == {
        "Content-Length": str(one.size), "ETag": '"%s"' % one.sha256,
        "X-Repo-Commit": origin[1].commit}
    assert len(headers.get_all("Content-Length")) == 1
    status, headers, _ = ask(made, file_path(origin[1], "config.json"), "HEAD")
    assert headers["ETag"] == '"%s"' % entry(origin[1], "config.json").git_sha1


@pytest.mark.parametrize("asked, first, last", [
    ("bytes=0-0", 0, 0), ("bytes=5-9", 5, 9), ("bytes=100-", 100, None),
    ("bytes=-7", -7, None), ("bytes=5-99999999999", 5, None), ("bytes=-99999999999", 0, None)])
def test_a_range_is_sent_alone(origin, serving, asked, first, last):
    made, whole = serving(), snapshot_cache.contents(*origin)[WEIGHTS]
    wanted_ = whole[first:] if last is None else whole[first:last + 1]
    begin = first % len(whole)
    status, headers, body = ask(made, file_path(origin[1]), Range=asked)
    assert (status, body) == (206, wanted_)
    assert headers["Content-Range"] == "bytes %d-%d/%d" % (
        begin, begin + len(wanted_) - 1, len(whole))
    assert sent(made, len(wanted_))


@pytest.mark.parametrize("asked", ["bytes=%d-", "bytes=%d-%d", "bytes=-0"])
def test_a_range_behind_the_end_is_refused(origin, serving, asked):
    size = entry(origin[1]).size
    made = serving()
    asked = asked % ((size,) * asked.count("%d"))
    status, headers, body = ask(made, file_path(origin[1]), Range=asked)
    assert (status, headers["Content-Range"], body) == (416, "bytes */%d" % size, b"")


@pytest.mark.parametrize("headers", [
    {"Range": "bytes=0-1,4-5"}, {"Range": "bytes=-"}, {"Range": "lines=1-2"},
    {"Range": "bytes=9-5x"}, {"Range": "bytes=5-", "If_Range": '"another"'}])
def test_where_a_range_cannot_be_sent_the_whole_is(origin, serving, headers):
    status, _, body = ask(serving(), file_path(origin[1]), **headers)
    assert (status, body) == (200, snapshot_cache.contents(*origin)[WEIGHTS])


def test_a_part_of_the_same_file_is_sent_alone(origin, serving):
    status, _, body = ask(serving(), file_path(origin[1]), Range="bytes=5-",
                          If_Range='"%s"' % entry(origin[1]).sha256)
    assert (status, body) == (206, snapshot_cache.contents(*origin)[WEIGHTS][5:])


def test_one_connection_asks_for_many(origin, serving):
    made, files = serving(), snapshot_cache.contents(*origin)
    there = http.client.HTTPConnection(*made.server_address[:2], timeout=30)
    got, ports = {}, set()
    with contextlib.closing(there):
        for path in files:
            there.request("GET", urllib.parse.quote(file_path(origin[1], path)),
                          headers={"Authorization": "Bearer " + SECRET})
            ports.add(there.sock.getsockname()[1])
            got[path] = there.getresponse().read()
    assert got == files
    assert len(ports) == 1


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_written(origin, serving, method):
    before = snapshot_cache.contents(*origin)
    assert ask(serving(), file_path(origin[1]), method)[0] == 501
    assert snapshot_cache.contents(*origin) == before


def test_a_request_with_a_body_is_refused(origin, serving):
    assert ask(serving(), file_path(origin[1]), Content_Length="10")[0] == 400


@pytest.mark.parametrize("secret", ["", "wrong", SECRET + "x", SECRET[:-1], "ä"])
@pytest.mark.parametrize("path", ["/", "/api/models/" + REPO, "%s"])
def test_without_the_secret_nothing_is_told(origin, serving, secret, path):
    made = serving()
    path = path.replace("%s", file_path(origin[1]))
    status, headers, body = ask(made, path, secret=secret.encode().decode("latin-1"))
    assert status == 401
    assert origin[1].commit not in str(headers) + body.decode()
    assert made.count.requests == 0, "who has not got it keeps no server alive"


# --- What it was told, and nothing else ------------------------------------------------------


@pytest.mark.parametrize("path, code", [
    ("/etc/passwd", "RepoNotFound"),
    ("/" + REPO + "/resolve/{commit}/../../../../refs/main", "EntryNotFound"),
    ("/" + REPO + "/resolve/{commit}/%2e%2e/x", "EntryNotFound"),
    ("/" + REPO + "/resolve/{commit}/nothing.bin", "EntryNotFound"),
    ("/" + REPO + "/resolve/main/" + WEIGHTS, "RevisionNotFound"),
    ("/api/models/" + REPO + "/revision/" + "0" * 40, "RevisionNotFound"),
    ("/firstlight/other/resolve/{commit}/" + WEIGHTS, "RepoNotFound"),
    ("/api/models/firstlight/other/revision/main", "RepoNotFound"),
    ("//" + REPO + "/refs/main", "RepoNotFound")])
def test_what_it_was_not_told_is_not_there(origin, serving, path, code):
    status, headers, _ = ask(serving(), path.replace("{commit}", origin[1].commit))
    assert (status, headers["X-Error-Code"]) == (404, code)


def test_another_commit_of_the_same_repository_is_not_served(origin, cache, serving):
    other = origin[1]._replace(commit="1" * 40)
    folder = layout.snapshot(str(cache), REPO, origin[1].commit)
    shutil.copytree(folder, layout.snapshot(str(cache), REPO, other.commit), symlinks=True)
    made = serving(cache)
    assert ask(made, file_path(other))[0] == 404
    assert ask(made, file_path(origin[1]))[0] == 200


def spoil(cache, manifest, how):
    path = pathlib.Path(layout.snapshot(str(cache), REPO, manifest.commit)) / WEIGHTS
    blob = path.resolve()
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        os.truncate(blob, 100)
    elif how == "a link out of the cache":
        outside = cache.parent / "outside"
        outside.write_bytes(blob.read_bytes())
        path.unlink()
        path.symlink_to(outside)
    elif how == "a blob that leads out":
        outside = cache.parent / "outside"
        blob.rename(outside)
        blob.symlink_to(outside)
    elif how == "a pipe":
        blob.unlink()
        os.mkfifo(blob)
    else:
        blob.unlink()
        blob.mkdir()


@pytest.mark.parametrize("how", ["missing", "truncated", "a link out of the cache",
                                 "a blob that leads out", "a pipe", "a folder"])
def test_what_is_not_whole_and_in_the_cache_is_not_served(origin, cache, serving, how):
    spoil(cache, origin[1], how)
    made = serving(cache)
    status, headers, _ = ask(made, file_path(origin[1]))
    assert (status, headers["X-Error-Code"]) == (404, "EntryNotFound")
    assert ask(made, file_path(origin[1], "config.json"))[0] == 200
    listed = json.loads(ask(made, "/api/models/%s/tree/%s" % (REPO, origin[1].commit))[2])
    assert WEIGHTS in [one["path"] for one in listed], "what the commit has is told all the same"


def test_who_has_put_the_blobs_on_another_disk_is_served_from_there(origin, cache, serving):
    blobs = pathlib.Path(layout.folder(str(cache), REPO)) / "blobs"
    blobs.rename(cache.parent / "disk")
    blobs.symlink_to(cache.parent / "disk")
    assert ask(serving(cache), file_path(origin[1]))[2] == \
        snapshot_cache.contents(*origin)[WEIGHTS]


def test_a_path_with_odd_characters_is_served(tmp_path, serving):
    name = "a folder/ä 100%25 ?x=1#y.json"
    content = b"{}"
    digest = entries.Entry(name, 2, None, "0" * 40).digest()
    digest.update(content)
    one = entries.Entry(name, 2, None, digest.hexdigest())
    manifest = entries.checked("org/odd", "2" * 40, [one])
    layout.prepare(str(tmp_path), "org/odd")
    pathlib.Path(layout.blob(str(tmp_path), "org/odd", one)).write_bytes(content)
    layout.link(str(tmp_path), "org/odd", "2" * 40, one)
    made = serving(tmp_path, [manifest])
    assert ask(made, file_path(manifest, name))[2] == content
    (fetched,) = fetch.fetch([fetch.Wanted(
        made.url + urllib.parse.quote(file_path(manifest, name)),
        {"Authorization": "Bearer " + SECRET}, str(tmp_path / "got"), 2, None, one.git_sha1)])
    assert fetched.from_network == 2


def test_more_connections_than_it_takes_wait_or_are_closed(origin, serving):
    made = serving(connections=1)
    first = http.client.HTTPConnection(*made.server_address[:2], timeout=30)
    with contextlib.closing(first):
        first.request("GET", file_path(origin[1]), headers={"Authorization": "Bearer " + SECRET})
        first.getresponse().read()  # and it is kept open
        with pytest.raises((http.client.HTTPException, OSError)):
            ask(made, file_path(origin[1]))
    assert until(lambda: _answers(made, origin[1]))


def is_cut(there):
    """Whether the other side closed the connection, and said nothing."""
    with contextlib.suppress(ConnectionError):
        return there.recv(1) == b""
    return True


@pytest.mark.parametrize("told", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_who_does_not_show_the_secret_soon_is_cut(origin, serving, told):
    made = serving(head_s=1)
    there = http.client.HTTPConnection(*made.server_address[:2], timeout=30)
    with contextlib.closing(there), \
            socket.create_connection(made.server_address[:2], timeout=30) as stranger:
        there.request("GET", file_path(origin[1]), headers={"Authorization": "Bearer " + SECRET})
        there.getresponse().read()
        stranger.sendall(told)
        assert is_cut(stranger)
        # Who has shown it may be quiet for longer.
        port = there.sock.getsockname()[1]
        there.request("GET", file_path(origin[1]), headers={"Authorization": "Bearer " + SECRET})
        assert there.getresponse().status == 200
        assert there.sock.getsockname()[1] == port


def test_who_sends_a_letter_now_and_then_is_cut_too(serving):
    made = serving(head_s=1)
    with socket.create_connection(made.server_address[:2], timeout=0.1) as stranger:
        def trickled():
            try:
                stranger.sendall(b"G")
                return stranger.recv(1) == b""
            except socket.timeout:
                return False
            except ConnectionError:
                return True

        assert until(trickled)


def test_silent_connections_of_one_address_leave_room_for_others(origin, serving):
    made = serving(connections=server.STRANGERS + 1, head_s=600)
    with contextlib.ExitStack() as kept:
        for _ in range(server.STRANGERS):
            kept.enter_context(socket.create_connection(made.server_address[:2], timeout=30))
        for _ in range(2):
            with socket.create_connection(made.server_address[:2], timeout=30) as more:
                assert is_cut(more)
        assert ask(made, file_path(origin[1]), here="127.0.0.2")[0] == 200
    assert until(lambda: _answers(made, origin[1]))


def _answers(made, manifest):
    with contextlib.suppress(http.client.HTTPException, OSError):
        return ask(made, file_path(manifest))[0] == 200
    return False


def test_a_client_that_goes_away_is_counted_for_what_it_got(origin, serving, cache):
    size = 64 * 2**20
    one = entries.Entry("large.bin", size, "3" * 64, None)
    manifest = entries.checked(REPO, origin[1].commit, [one])
    with open(layout.blob(str(cache), REPO, one), "wb") as blob:
        blob.truncate(size)
    layout.link(str(cache), REPO, manifest.commit, one)
    made = serving(cache, [manifest])
    with socket.create_connection(made.server_address[:2], timeout=30) as there:
        there.sendall(("GET %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n" % (
            file_path(manifest, "large.bin"), SECRET)).encode())
        got = there.recv(2**16)
    until(lambda: made.count.served_bytes)
    assert got.startswith(b"HTTP/1.1 200 ")
    assert 0 < made.count.served_bytes < size
    assert ask(made, file_path(manifest, "large.bin"), Range="bytes=0-3")[2] == bytes(4)


def test_there_is_no_server_without_a_secret(origin):
    with pytest.raises(ValueError, match="secret"):
        server.Server(server.Shelf(str(origin[0]), [origin[1]]), "127.0.0.1", 0, "")


# --- The process -----------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path):
    made = tmp_path / "root"
    yield str(made)
    server.stop(str(made))


def start(root, origin, **how):
    told = {"address": "127.0.0.1", "port": 0, "secret": SECRET, "limit_s": 600, "idle_s": 600,
            **how}
    return server.start(root, server.Shelf(str(origin[0]), [origin[1]]), **told)


class At:
    """Where to ask."""

    def __init__(self, told):
        self.server_address = (told["address"], told["port"])


def is_gone(told):
    with contextlib.suppress(OSError), socket.create_connection(
            (told["address"], told["port"]), timeout=5):
        return False
    return not processes.is_alive(told["pid"])


def test_it_serves_from_a_process_of_its_own_until_it_is_stopped(root, origin):
    told = start(root, origin)
    assert told["began"] and told["pid"] != os.getpid()
    assert os.getsid(told["pid"]) != os.getsid(0)
    assert ask(At(told), file_path(origin[1]))[2] == snapshot_cache.contents(*origin)[WEIGHTS]
    assert server.standing(root)["port"] == told["port"]
    ended = server.stop(root)
    assert (ended["was"], ended["why"], ended["requests"]) == (True, "stopped", 1)
    assert ended["served_bytes"] == entry(origin[1]).size
    assert is_gone(told)
    assert server.standing(root) is None
    assert server.stop(root)["was"] is False
    assert os.listdir(os.path.join(root, "journal")) == []


def test_who_starts_it_again_finds_it(root, origin):
    told = start(root, origin)
    again = start(root, origin)
    assert not again["began"]
    assert (again["pid"], again["port"]) == (told["pid"], told["port"])


def test_one_that_serves_otherwise_is_ended_first(root, origin):
    told = start(root, origin)
    other = start(root, origin, port=free_port())
    assert other["began"] and is_gone(told)
    assert ask(At(other), file_path(origin[1]))[0] == 200


def test_one_that_another_secret_began_is_left(root, origin):
    told = start(root, origin)
    with pytest.raises(Busy, match="another run serves from here, since 20..-"):
        start(root, origin, secret="another")
    assert server.stop(root, "another")["was"] is False
    assert ask(At(told), file_path(origin[1]))[0] == 200
    assert server.stop(root, SECRET)["why"] == "stopped"
    assert is_gone(told)
    assert start(root, origin, secret="another")["began"]
    assert server.stop(root)["why"] == "stopped", "who names no secret ends any"


def test_what_another_run_left_is_in_nobodys_way(root, origin):
    told = start(root, origin, idle_s=1)
    until(lambda: is_gone(told) and server.taken(root, "another") is None)
    assert start(root, origin, secret="another")["began"]


def test_one_that_is_about_to_serve_is_left_too(root, origin):
    told = start(root, origin)
    state = json.loads(pathlib.Path(server.file_of(root)).read_text())
    pathlib.Path(server.file_of(root)).write_text(json.dumps(dict(state, progress={})))
    assert server.taken(root, SECRET) is None
    assert server.taken(root, "another") == state["since"]
    assert server.stop(root, "another")["was"] is False
    os.kill(told["pid"], signal.SIGTERM)


def test_nothing_secret_is_written_down(root, origin):
    start(root, origin)
    assert os.stat(server.file_of(root)).st_mode & 0o077 == 0
    assert SECRET not in pathlib.Path(server.file_of(root)).read_text()
    told = server.standing(root)
    for name in ("cmdline", "environ"):
        assert SECRET.encode() not in pathlib.Path("/proc/%d/%s" % (told["pid"], name)).read_bytes()


@pytest.mark.parametrize("how", [{"limit_s": 1}, {"idle_s": 1}])
def test_it_ends_by_itself(root, origin, how):
    told = start(root, origin, **how)
    until(lambda: is_gone(told))
    assert server.standing(root) is None
    assert server.stop(root)["why"] == next(iter(how)).removesuffix("_s")


def test_after_one_that_ended_another_begins(root, origin):
    told = start(root, origin, idle_s=1)
    until(lambda: is_gone(told))
    other = start(root, origin, idle_s=1)
    assert other["began"] and other["pid"] != told["pid"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_one_that_was_killed_leaves_nothing(root, origin, how):
    told = start(root, origin)
    os.kill(told["pid"], how)
    until(lambda: is_gone(told))
    assert server.standing(root) is None
    assert server.stop(root)["was"]
    assert os.listdir(os.path.join(root, "journal")) == []
    assert start(root, origin)["began"]


def test_its_guard_may_be_killed(root, origin):
    told = start(root, origin, limit_s=600)
    state = json.loads(pathlib.Path(server.file_of(root)).read_text())
    os.kill(state["pid"], signal.SIGKILL)
    until(lambda: not processes.is_alive(state["pid"]))
    assert ask(At(told), file_path(origin[1]))[0] == 200
    server.stop(root)
    assert is_gone(told)


def test_it_outlives_who_began_it_and_then_ends_by_itself(root, origin):
    """A controller that dies ends no copy, and leaves no port open for good."""
    code = ("import json, os, signal, sys\n"
            "import ansible.module_utils\n"
            "ansible.module_utils.__path__.append(sys.argv[1])\n"
            "from ansible.module_utils.firstlight.snapshots import entries, server\n"
            "told = json.loads(sys.argv[2])\n"
            "shelf = server.Shelf(told['cache'], [entries.manifest_from_dict(told['manifest'])])\n"
            "server.start(told['root'], shelf, '127.0.0.1', 0, %r, 600, 3)\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n" % SECRET)
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "module_utils"), json.dumps({
            "cache": str(origin[0]), "root": root,
            "manifest": snapshot_cache.as_option(origin[1])})], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    told = server.standing(root)
    assert ask(At(told), file_path(origin[1]))[0] == 200
    until(lambda: is_gone(told))
    assert server.stop(root)["why"] == "idle"


def test_who_is_being_served_is_not_idle(root, origin, cache):
    size = 256 * 2**20
    one = entries.Entry("large.bin", size, "3" * 64, None)
    manifest = entries.checked(REPO, origin[1].commit, [one])
    with open(layout.blob(str(cache), REPO, one), "wb") as blob:
        blob.truncate(size)
    layout.link(str(cache), REPO, manifest.commit, one)
    told = start(root, (cache, manifest), idle_s=1)
    with socket.create_connection((told["address"], told["port"]), timeout=30) as there:
        there.sendall(("GET %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n" % (
            file_path(manifest, "large.bin"), SECRET)).encode())
        got = there.recv(2**16)
        # Longer than it may be idle, and nothing is taken from the line.
        time.sleep(2)
        left = size - (len(got) - got.index(b"\r\n\r\n") - 4)
        while left:
            left -= len(there.recv(2**20) or pytest.fail("it was cut"))
    until(lambda: is_gone(told))
    assert left == 0


def test_a_port_that_is_taken_is_said(root, origin):
    with socket.create_server(("127.0.0.1", 0)) as taken, \
            pytest.raises(OSError, match="in use"):
        start(root, origin, port=taken.getsockname()[1])
    assert os.listdir(os.path.join(root, "journal")) == []


# --- The module ------------------------------------------------------------------------------


@pytest.fixture
def served(run_module, root, origin):
    """Run the module on that root."""
    def run(state="started", **options):
        started = {"cache": str(origin[0]), "secret": SECRET, "address": "127.0.0.1", "port": 0,
                   "snapshots": [snapshot_cache.as_option(origin[1])]}
        return run_module(snapshot_server.main, root=root, state=state, **{
            **(started if state == "started" else {}), **options})

    return run


def test_it_is_started_once_and_stopped_once(served, root, origin):
    would = served(check=True)
    assert (would["changed"], would["running"], would["url"]) == (True, True, "")
    assert server.standing(root) is None
    made = served()
    assert (made["changed"], made["running"]) == (True, True)
    assert made["url"] == "http://127.0.0.1:%d" % server.standing(root)["port"]
    again = served()
    assert (again["changed"], again["url"]) == (False, made["url"])
    assert served(check=True)["url"] == made["url"]
    assert SECRET not in json.dumps(made)

    assert ask(At(server.standing(root)), file_path(origin[1]))[0] == 200
    would = served("stopped", check=True)
    assert (would["changed"], would["running"]) == (True, False)
    assert server.standing(root) is not None
    ended = served("stopped")
    assert (ended["changed"], ended["running"], ended["url"]) == (True, False, "")
    assert (ended["served_bytes"], ended["requests"]) == (entry(origin[1]).size, 1)
    assert served("stopped")["changed"] is False


def test_what_another_run_serves_is_left_and_said(served, root, origin):
    made = served()
    ask(At(server.standing(root)), file_path(origin[1]))
    for check in (True, False):
        refused = served(secret="of-somebody-else", check=check)
        assert refused["failed"]
        assert "another run serves from here, since 20" in refused["msg"]
        assert "-a 'root=%s state=stopped'" % root in refused["msg"]
        left = served("stopped", secret="of-somebody-else", check=check)
        assert (left["changed"], left["running"], left["served_bytes"]) == (False, True, 0)
    assert served()["url"] == made["url"]
    ended = served("stopped", secret=SECRET)
    assert (ended["changed"], ended["running"], ended["requests"]) == (True, False, 1)


def test_another_snapshot_makes_it_another_server(served, root):
    made = served()
    changed = served(snapshots=[])
    assert changed["changed"]
    assert served(snapshots=[])["changed"] is False
    assert made["running"]


def test_the_cache_is_by_default_that_of_the_root(served, root, origin):
    shutil.copytree(origin[0], os.path.join(root, "models", "hub"), symlinks=True)
    served(cache="")
    assert ask(At(server.standing(root)), file_path(origin[1]))[0] == 200


@pytest.mark.parametrize("options, said", [
    ({"secret": ""}, "needs a secret"),
    ({"address": "0.0.0.0"}, "no address that another host could ask for"),
    ({"address": "::"}, "no address that another host could ask for"),
    ({"address": "192.0.2.7"}, "192.0.2.7 is no address of this host"),
    ({"address": "no-name"}, "no-name is no address of this host"),
    ({"snapshots": [{"repo_id": "../x", "commit": "0", "entries": []}]}, r"snapshots\[0\]: "),
])
def test_what_cannot_be_served_is_said_and_nothing_begun(served, root, options, said):
    result = served(**options)
    assert result["failed"]
    assert re.search(said, result["msg"]), result["msg"]
    assert not os.path.exists(server.file_of(root))


def test_who_holds_the_port_is_named(served):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = served(port=taken.getsockname()[1])
    assert result["failed"]
    assert "held by" in result["msg"] and "(pid %d, " % os.getpid() in result["msg"]
    assert "model_snapshot_peer_port" in result["msg"]


def test_the_address_is_the_first_by_which_others_know_the_host(monkeypatch):
    """Which addresses a host has is no matter of this machine: the choice alone is tested."""
    own = {"198.51.100.7", "203.0.113.9", "127.0.1.1"}
    monkeypatch.setattr(server, "is_own", own.__contains__)
    routes = ["198.51.100.7"]

    def chosen(**params):
        return snapshot_server.address({"address": "", "known_as": [], **params}, routes)

    assert chosen() == "198.51.100.7"
    assert chosen(known_as=["203.0.113.9"]) == "203.0.113.9"
    assert chosen(known_as=["192.0.2.1", "203.0.113.9"]) == "203.0.113.9", "the first is NAT's"
    assert chosen(known_as=["127.0.1.1"]) == "198.51.100.7", "a name of its own leads to itself"
    assert chosen(address="203.0.113.9", known_as=["198.51.100.7"]) == "203.0.113.9"
    routes.clear()
    with pytest.raises(ValueError, match="model_snapshot_peer_address"):
        chosen()


def test_addresses_are_those_that_routes_begin_with():
    found = server.addresses(["192.0.2.200", "no name", "127.0.0.1"])
    assert all(server.is_own(one) for one in found)
    assert not [one for one in found if one.startswith("127.")]
    assert server.resolved(["127.0.0.1", "::1", "0.0.0.0", "fe80::1", "192.0.2.5", "bad name"]) \
        == ["192.0.2.5"]


def test_an_address_of_the_sixth_version_is_written_with_brackets():
    assert server.url("2001:db8::7", 8473) == "http://[2001:db8::7]:8473"
    assert server.url("192.0.2.7", 8473) == "http://192.0.2.7:8473"
