# SPDX-License-Identifier: Apache-2.0
"""Files come whole or are told of, nothing comes twice, and a server that lies gets nowhere."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pathlib
import re
import resource
import signal
import ssl
import subprocess
import sys
import threading
import time

import hub
import pytest

from ansible.module_utils.firstlight.snapshots import fetch as fetching
from ansible.module_utils.firstlight.snapshots.fetch import Corrupt, HubError, Wanted, fetch

MIB = 2**20
BIG = 40 * MIB
REPO = "firstlight/big"
CHILD = """
import json, sys
sys.path.insert(0, sys.argv[1])
from firstlight.snapshots.fetch import Wanted, fetch
fetch([Wanted(**row) for row in json.loads(sys.argv[2])])
"""


@pytest.fixture(scope="module")
def repos(tmp_path_factory):
    made = hub.big_repo(tmp_path_factory.mktemp("hub"), {"big.safetensors": BIG})
    hub.big_repo(made, {"config.json": 700, "empty.txt": 0})
    return hub.big_repo(made, {"small-%02d.json" % number: 20_000 + number for number in range(60)},
                        "firstlight/small")


@pytest.fixture
def served(repos, monkeypatch):
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with hub.Hub(repos) as h:
        yield h


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """Seconds of the pauses that were made; none of them takes any time."""
    made = []

    def pause(self, seconds):
        made.append(seconds)
        if self.stop.wait(0.01):
            raise fetching._Stopped

    monkeypatch.setattr(fetching._Run, "pause", pause)
    return made


@pytest.fixture
def want(served, tmp_path):
    """What to fetch, by its path in the repository."""

    def wanted(path="big.safetensors", repo_id=REPO, url=None, headers=None, **changed):
        file = served.repos.listing(repo_id, "main").files[path]
        row = Wanted(url or served.resolve(repo_id, path), headers or {},
                     str(tmp_path / "blobs" / file.etag), file.size, file.sha256,
                     None if file.sha256 else file.oid)
        return row._replace(**changed)

    return wanted


def content(served, path="big.safetensors", repo_id=REPO):
    return (served.repos.folder / repo_id / path).read_bytes()


def is_whole(served, wanted, **where):
    return pathlib.Path(wanted.target).read_bytes() == content(served, **where) and (
        not os.path.exists(wanted.target + fetching.INCOMPLETE))


def left_over(wanted, what):
    """Leave part of a file, as a run does that is killed."""
    os.makedirs(os.path.dirname(wanted.target), exist_ok=True)
    pathlib.Path(wanted.target + fetching.INCOMPLETE).write_bytes(what)


@pytest.mark.parametrize("path", ["big.safetensors", "config.json", "empty.txt"])
def test_a_file_comes_whole_under_its_name(served, want, path):
    wanted = want(path)
    came = []
    done, = fetch([wanted], report=came.append)
    assert is_whole(served, wanted, path=path)
    assert os.stat(wanted.target).st_mode & 0o777 == 0o644
    assert done[:3] == (wanted, 0, wanted.size)
    assert sum(came) == wanted.size
    assert [r.range for r in served.done()] == ([""] if wanted.size else [])


def test_one_that_is_there_and_right_is_left(served, want):
    wanted = want()
    fetch([wanted])
    left_over(wanted, b"of another program")
    before, seen = os.stat(wanted.target), len(served.done())
    assert fetch([wanted])[0].from_network == 0
    assert os.path.samestat(os.stat(wanted.target), before)
    assert len(served.done()) == seen
    assert is_whole(served, wanted)


def test_one_that_is_there_and_wrong_is_replaced(served, want):
    wanted = want()
    fetch([wanted])
    os.truncate(wanted.target, 1000)
    assert fetch([wanted])[0].from_network == wanted.size
    assert is_whole(served, wanted)


def test_many_come_at_once_and_in_the_order_asked_for(served, want):
    names = sorted(served.repos.listing("firstlight/small", "main").files)
    rows = [want(name, "firstlight/small") for name in names]
    at_once, now, lock = [], [0], threading.Lock()
    answer = hub.server._Handler.answer

    def counted(self):
        with lock:
            now[0] += 1
            at_once.append(now[0])
        try:
            answer(self)
        finally:
            with lock:
                now[0] -= 1

    served.faults["*"] = {"slow": 200_000}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub.server._Handler, "answer", counted)
        done = fetch(rows, workers=8)
    assert [row.wanted for row in done] == rows
    for name, row in zip(names, rows):
        assert is_whole(served, row, path=name, repo_id="firstlight/small")
    assert max(at_once) == 8
    assert len(served.done()) == len(rows)


# To go on.


def test_after_kill_9_only_what_is_missing_comes(served, want, repository):
    big, small = want(), want("config.json")
    fetch([small])
    served.faults["*big*"] = {"slow": 10_000_000}
    child = subprocess.Popen([
        sys.executable, "-c", CHILD, str(repository / "module_utils"),
        "[%s]" % ",".join(json.dumps(row._asdict()) for row in (big, small))])
    try:
        while fetching.incomplete(big.target) < 5 * MIB:
            assert child.poll() is None
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == -signal.SIGKILL
    had = fetching.incomplete(big.target)
    assert 5 * MIB <= had < BIG
    first, = (request for request in served.done()
              if request.path.endswith("big.safetensors"))
    # At most what the two ends of the line and one buffer hold is lost.
    assert first.bytes - had <= 8 * MIB
    seen, came = len(served.requests), []
    served.faults.clear()
    done = fetch([big, small], report=came.append)
    assert (done[0].resumed_from, done[0].from_network) == (had, BIG - had)
    assert sum(came) == BIG - had
    again, = served.done()[seen:]
    assert (again.range, again.status, again.bytes) == ("bytes=%d-" % had, 206, BIG - had)
    assert is_whole(served, big)


def test_a_cut_line_is_gone_on_with_from_where_it_was_cut(served, want, pauses):
    served.faults["*big*"] = {"cut_after": 9_000_000}
    wanted = want()
    done, = fetch([wanted], retries=1)
    assert is_whole(served, wanted)
    assert done.from_network == BIG, "nothing comes twice"
    assert [request.range for request in served.done()] == [
        "", *("bytes=%d-" % at for at in range(9_000_000, BIG, 9_000_000))]
    assert {request.if_range for request in served.requests[1:]} == {'"%s"' % wanted.sha256}
    assert len(set(pauses)) == 1, "a line that brings something is tried again and again"


def test_a_line_without_a_byte_is_cut(served, want):
    served.faults["*big*"] = {"stall_at": 9 * MIB, "times": 1}
    wanted = want()
    done, = fetch([wanted], timeout_s=1)
    assert is_whole(served, wanted)
    assert done.from_network == BIG
    begin = int(served.done()[1].range.partition("=")[2].rstrip("-"))
    assert 8 * MIB <= begin <= 9 * MIB, "what came before the silence is kept, to a piece"


def test_a_line_that_brings_nothing_is_given_up(served, want, pauses):
    served.faults["*big*"] = {"cut_at": 9_000_000}
    wanted = want()
    with pytest.raises(HubError, match="the line ended after 9000000 of %d bytes" % BIG):
        fetch([wanted], retries=4)
    assert pauses == [0.5, 1.0, 2.0, 4.0], "four tries after the one that brought something"
    assert fetching.incomplete(wanted.target) == 9_000_000, "what came is kept"
    served.faults.clear()
    assert fetch([wanted])[0].resumed_from == 9_000_000


def test_a_hub_that_is_away_is_tried_again_and_told(want, served, pauses):
    wanted = want(url="http://127.0.0.1:9/org/name/resolve/main/x?token=secret")
    with pytest.raises(HubError, match="Connection refused") as problem:
        fetch([wanted], retries=2)
    assert (problem.value.status, problem.value.url) == (
        0, "http://127.0.0.1:9/org/name/resolve/main/x")
    assert "secret" not in str(problem.value)
    assert len(pauses) == 2


def test_where_no_range_is_honoured_it_starts_over(served, want):
    wanted = want()
    left_over(wanted, b"x" * MIB)
    served.faults["*big*"] = {"no_range": True}
    came = []
    done, = fetch([wanted], report=came.append)
    assert is_whole(served, wanted)
    assert (done.resumed_from, done.from_network) == (MIB, BIG)
    assert sum(came) == BIG - MIB, "what is thrown away is taken back"
    assert [request.status for request in served.done()] == [200]


def test_where_a_range_is_refused_it_starts_over(served, want):
    wanted = want()
    left_over(wanted, content(served)[:MIB])
    served.faults["*big*"] = {"bad_range": True}
    fetch([wanted])
    assert is_whole(served, wanted)
    assert [request.status for request in served.done()] == [416, 200]


def test_where_no_range_is_honoured_and_the_line_is_cut_there_is_an_end(served, want):
    served.faults["*big*"] = {"no_range": True, "cut_at": 9_000_000}
    with pytest.raises(HubError, match="the line ended"):
        fetch([want()], retries=2)
    assert len(served.done()) == 3, "only the first brought what was not there before"


def test_a_file_that_changed_meanwhile_is_not_stitched_together(served, want):
    served.faults["*big*"] = {"cut_at": 9_000_000, "times": 1}
    wanted = want()
    ask = fetching._Run.ask
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetching._Run, "ask",
                      lambda self, part, etag: ask(self, part, etag and '"of yesterday"'))
        fetch([wanted])
    assert is_whole(served, wanted)
    assert [request.status for request in served.done()] == [200, 200]


@pytest.mark.parametrize("what", ["longer", "other", "whole"])
def test_whatever_was_left_the_file_is_right(served, want, what):
    wanted, good = want(), content(served)
    left_over(wanted, {"longer": good + b"x", "other": b"x" * MIB, "whole": good}[what])
    done, = fetch([wanted])
    assert is_whole(served, wanted)
    assert done.from_network == {"longer": BIG, "other": 2 * BIG - MIB, "whole": 0}[what]


def test_two_at_once_bring_it_once(served, want):
    served.faults["*big*"] = {"slow": 200_000_000}
    wanted, done = want(), []
    threads = [threading.Thread(target=lambda: done.extend(fetch([wanted]))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(row.from_network for row in done) == [0, BIG]
    assert len(served.done()) == 1
    assert is_whole(served, wanted)


# Refusals.


@pytest.mark.parametrize(("fault", "waits"), [
    ({"status": 429, "retry_after": 7}, 7), ({"status": 503, "retry_after": 100_000}, 300),
    ({"status": 500}, 0.5), ({"status": 408}, 0.5)])
def test_a_refusal_that_passes(served, want, pauses, fault, waits):
    served.faults["*big*"] = {**fault, "times": 1}
    wanted = want()
    fetch([wanted])
    assert is_whole(served, wanted)
    assert pauses == [waits]


@pytest.mark.parametrize(("headers", "waits"), [
    ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0), ({"Retry-After": "soon"}, 0),
    ({"RateLimit": '"api";r=0;t=55'}, 55), ({"RateLimit": '"api";r=3;t=55'}, 0),
    ({"Retry-After": "-5"}, 0), ({}, 0)])
def test_how_long_a_server_asks_to_be_left_alone(headers, waits):
    assert fetching._wait_s(headers) == waits


def test_a_date_to_come_is_waited_for():
    from email.utils import formatdate

    waits = fetching._wait_s({"Retry-After": formatdate(time.time() + 100, usegmt=True)})
    assert 90 < waits <= 101


def test_a_refusal_that_stays_is_told_after_all_tries(served, want, pauses):
    served.faults["*big*"] = {"status": 503}
    with pytest.raises(HubError, match="HTTP 503: scripted fault"):
        fetch([want()], retries=3)
    assert len(served.done()) == 4


@pytest.mark.parametrize(("fault", "code"), [
    ({"status": 401}, ""), ({"status": 403, "code": "GatedRepo"}, "GatedRepo"),
    ({"status": 404, "code": "EntryNotFound"}, "EntryNotFound"), ({"gated": True}, "GatedRepo")])
def test_a_refusal_for_good_is_told_at_once(served, want, pauses, fault, code):
    served.faults["*big*"] = fault
    with pytest.raises(HubError) as problem:
        fetch([want()])
    assert (problem.value.status, problem.value.code) == (fault.get("status", 401), code)
    assert problem.value.url.endswith("/big.safetensors")
    assert len(served.done()) == 1
    assert pauses == []


def test_the_first_failure_stops_the_others(served, want, pauses):
    served.faults["*config.json"] = {"status": 404}
    served.faults["*big*"] = {"slow": 10_000_000}
    big = want()
    with pytest.raises(HubError, match="404"):
        fetch([want("config.json"), big])
    assert fetching.incomplete(big.target) < BIG


def test_a_message_is_one_plain_line():
    assert fetching._line("a\x1b[31m\n\tb\u202e " + "c" * 500) == "a [31m b " + "c" * 289


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://example.org/x", "/etc/hostname"])
def test_only_http_is_asked(want, url):
    with pytest.raises(ValueError, match="no URL of http or https"):
        fetch([want(url=url)])


# Who lies.


@pytest.mark.parametrize("more", [1000, -1000])
def test_another_size_than_promised(served, want, more):
    wanted = want()
    left_over(wanted, content(served)[:MIB])
    served.faults["*big*"] = {"wrong_size": more, "no_range": True}
    with pytest.raises(Corrupt, match="a file of %d bytes, not of %d" % (BIG + more, BIG)):
        fetch([wanted])
    assert len(served.done()) == 2
    assert fetching.incomplete(wanted.target) == MIB, "what an honest server gave is kept"
    assert not os.path.exists(wanted.target)


@pytest.mark.parametrize(("path", "kind"), [
    ("big.safetensors", "SHA-256"), ("config.json", "git SHA-1")])
def test_another_byte_than_promised(served, want, path, kind):
    wanted, came = want(path), []
    served.faults["*" + path] = {"wrong_hash": True}
    with pytest.raises(Corrupt, match="its %s is [0-9a-f]{40,64}, not %s" % (
            kind, wanted.sha256 or wanted.git_sha1)):
        fetch([wanted], report=came.append)
    assert [request.bytes for request in served.done()] == [wanted.size] * 2, "once more from zero"
    assert os.listdir(os.path.dirname(wanted.target)) == []
    assert sum(came) == 0


def test_another_byte_once(served, want):
    wanted = want()
    served.faults["*big*"] = {"wrong_hash": True, "times": 1}
    assert fetch([wanted])[0].from_network == 2 * BIG
    assert is_whole(served, wanted)


def test_a_body_without_an_end_is_left_at_the_promised_size(served, want):
    wanted = want()
    served.faults["*big*"] = {"endless": True}
    assert fetch([wanted])[0].from_network == BIG
    assert is_whole(served, wanted)
    served.faults["*config.json"] = {"endless": True, "wrong_hash": 5}
    with pytest.raises(Corrupt):
        fetch([want("config.json")])


def test_a_body_without_length_that_ends_early(served, want):
    wanted = want()
    served.faults["*big*"] = {"no_length": True, "cut_at": 9_000_000, "times": 3}
    fetch([wanted])
    assert is_whole(served, wanted)


def test_a_part_from_elsewhere_is_not_taken(served, want):
    wanted = want()
    left_over(wanted, content(served)[:MIB])
    extent = fetching._extent
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetching, "_extent", lambda answer: (extent(answer)[0] + 1, BIG))
        with pytest.raises(Corrupt, match="a part from byte %d, not from %d" % (MIB + 1, MIB)):
            fetch([wanted])


# Where it leads.


def test_another_host_is_shown_no_secret(served, want):
    served.faults["*/firstlight/big/*"] = {"redirect": True}
    wanted = want(headers={"Authorization": "Bearer hf_secret", "X-Secret": "s"})
    left_over(wanted, content(served)[:MIB])
    fetch([wanted])
    first, second = served.done()
    assert (first.host, first.status, first.authorization) == ("hub", 302, "Bearer hf_secret")
    assert (second.host, second.status, second.authorization) == ("cdn", 206, "")
    assert (first.range, second.range) == ("bytes=%d-" % MIB,) * 2
    assert is_whole(served, wanted)


def test_the_same_host_is_shown_it_again(served, want):
    served.faults["*/old/name/*"] = {"moved": REPO}
    served.faults["*big*"] = {"gated": "token"}
    wanted = want(headers={"Authorization": "Bearer " + hub.TOKEN})
    fetch([wanted._replace(url=wanted.url.replace(REPO, "old/name"))])
    assert [request.status for request in served.done()] == [307, 200]
    assert is_whole(served, wanted)


@pytest.mark.parametrize("to", ["file:///etc/hostname", "ftp://hub.example.org/x", "data:,x"])
def test_it_is_led_to_no_other_protocol(served, want, to):
    served.faults["*big*"] = {"redirect": to}
    with pytest.raises(HubError, match="HTTP 302: .*%s" % re.escape(to)):
        fetch([want()])


def test_a_ring_has_an_end(served, want):
    wanted = want()
    served.faults["*big*"] = {"redirect": wanted.url}
    with pytest.raises(HubError, match="infinite loop"):
        fetch([wanted])


def test_a_proxy_of_the_environment_is_taken(served, want, monkeypatch):
    wanted = want()
    url = wanted.url.replace(served.url, "http://hub.example.org")
    monkeypatch.setenv("http_proxy", served.url.replace("://", "://user:word@"))
    fetch([wanted._replace(url=url)])
    request, = served.done()
    assert request.proxied == "hub.example.org"
    assert request.proxy_authorization == "Basic dXNlcjp3b3Jk"
    assert is_whole(served, wanted)
    os.unlink(wanted.target)
    monkeypatch.setenv("no_proxy", "hub.example.org")
    with pytest.raises(HubError, match="hub.example.org"):
        fetch([wanted._replace(url=url)], retries=0)


def test_tls_is_checked(repos, tmp_path, want, monkeypatch):
    pem = tmp_path / "both.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(pem), "-out",
         str(tmp_path / "certificate.pem"), "-days", "1", "-subj", "/CN=hub", "-addext",
         "subjectAltName=IP:127.0.0.1"], check=True, stderr=subprocess.DEVNULL)
    pem.write_text(pem.read_text() + (tmp_path / "certificate.pem").read_text())
    with hub.Hub(repos, certificate=str(pem)) as h:
        wanted = want(url=h.resolve(REPO, "big.safetensors"))
        with pytest.raises(HubError, match="CERTIFICATE_VERIFY_FAILED"):
            fetch([wanted])
        assert len(h.requests) == 0
        fetch([wanted], context=ssl.create_default_context(
            cafile=str(tmp_path / "certificate.pem")))
        assert is_whole(h, wanted)


# The disk.


@pytest.mark.parametrize("path", ["big.safetensors", "config.json"])
def test_a_disk_that_is_full_is_told_with_the_file(served, want, path, monkeypatch):
    wanted, room, write = want(path), [want(path).size // 2], os.write

    def full(file, view):
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = write(file, view[:room[0]])
        room[0] -= count
        return count

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left") as problem:
        fetch([wanted])
    assert problem.value.errno == errno.ENOSPC
    assert problem.value.filename == wanted.target + fetching.INCOMPLETE
    monkeypatch.undo()
    assert fetching.incomplete(wanted.target) == wanted.size // 2
    assert fetch([wanted])[0].resumed_from == wanted.size // 2
    assert is_whole(served, wanted, path=path)


def test_a_file_that_the_kernel_does_not_let_grow(served, want):
    wanted = want()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (9 * MIB, before[1]))
        with pytest.raises(OSError, match="File too large") as problem:
            fetch([wanted])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert problem.value.filename == wanted.target + fetching.INCOMPLETE
    assert fetching.incomplete(wanted.target) == 9 * MIB


def test_a_folder_that_cannot_be_made_is_told(want, tmp_path):
    (tmp_path / "blobs").write_text("a file")
    with pytest.raises(OSError, match="blobs"):
        fetch([want()])


def test_a_git_hash_is_gits(served, want, tmp_path):
    wanted = want("config.json")
    fetch([wanted])
    git = subprocess.run(["git", "hash-object", wanted.target], check=True, stdout=subprocess.PIPE)
    assert git.stdout.decode().strip() == wanted.git_sha1
    plain = want("config.json", sha256=hashlib.sha256(
        content(served, "config.json")).hexdigest(), target=str(tmp_path / "other"))
    fetch([plain])
    assert is_whole(served, plain, path="config.json")
