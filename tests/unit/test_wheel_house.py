# SPDX-License-Identifier: Apache-2.0
"""A wheelhouse gives out what its manifest says, and nothing else ever comes in."""

from __future__ import annotations

import io
import json
import os
import pathlib
import subprocess
import sys
import threading

import pytest
from wheels import builder, index

from ansible.module_utils.firstlight.snapshots import fetch as fetching
from ansible.module_utils.firstlight.transaction import Lock
from ansible.module_utils.firstlight.wheels import house as houses
from ansible.module_utils.firstlight.wheels.candidates import find
from ansible.module_utils.firstlight.wheels.house import House, HouseProblem, sha256_of

BIG = 3 * 2**20


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Nothing of this machine's own pip and proxies; tries come without pauses."""
    for name in list(os.environ):
        if name.startswith("PIP_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setattr(fetching._Run, "pause", lambda self, seconds: self.stop.wait(0.01))


@pytest.fixture
def offered(tmp_path):
    made = tmp_path / "offered"
    builder.wheel(made, "tiny-kernel", "1.0", local="cu12torch2.8", tags="py3-none-any",
                  files={"tiny_kernel/data.bin": os.urandom(BIG)})
    return made


@pytest.fixture
def name(offered):
    return next(offered.iterdir()).name


@pytest.fixture
def served(offered):
    with index.Index(offered) as one:
        yield one


@pytest.fixture
def house(tmp_path):
    return House(str(tmp_path / "deep" / "house"))


@pytest.fixture
def candidate(served):
    found, _ = find("tiny-kernel", "", [{"index": served.simple}])
    return found[0]


def problem(of, *arguments, **more):
    with pytest.raises(HouseProblem) as told:
        of(*arguments, **more)
    one, = told.value.findings
    assert one["severity"] == "error"
    return one


def fetches(served):
    """The requests for files."""
    return [one for one in served.done() if "/files/" in one.path]


def test_a_wheel_comes_whole_with_its_row(house, served, candidate, offered, name):
    before = os.umask(0o077)
    try:
        path = house.bring(candidate)
    finally:
        os.umask(before)
    assert path == house.path(name)
    assert pathlib.Path(path).read_bytes() == (offered / name).read_bytes()
    assert house.files() == {name: {
        "sha256": candidate["sha256"], "size": candidate["size"], "source": candidate["url"],
        "built_for": {}}}
    assert house.check(name) == []
    for made, mode in ((path, 0o644), (house.manifest, 0o644), (house.folder, 0o755)):
        assert os.stat(made).st_mode & 0o777 == mode
    # Again: nothing is asked, nothing is written.
    seen, written = len(served.done()), os.stat(house.manifest).st_mtime_ns
    assert house.bring(candidate) == path
    assert len(served.done()) == seen
    assert os.stat(house.manifest).st_mtime_ns == written


def test_what_the_house_has_is_a_candidate(house, candidate, name):
    house.bring(candidate)
    (found,), findings = house.candidates("tiny-kernel")
    assert findings == []
    # Its place among the sources is for whoever asks them all.
    candidate = {key: value for key, value in candidate.items() if key != "place"}
    assert found == dict(candidate, url="", path=house.path(name),
                         source="wheelhouse " + house.folder)
    assert house.bring(found) == house.path(name)
    assert house.candidates("other") == ([], [])


def test_pip_installs_from_the_house_alone(house, candidate, tmp_path):
    house.bring(candidate)
    sdist = builder.sdist(tmp_path / "sdists", "tiny-kernel", "0.9")
    house.add(str(sdist), pathlib.Path(sdist).name)
    python = builder.environment(tmp_path / "env")
    done = subprocess.run(
        [python, "-m", "pip", "install", "--no-index", "--find-links", house.folder,
         "tiny-kernel"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([python, "-c", "import tiny_kernel"], check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("fault", [{"no_range": True}, {}])
def test_a_size_that_is_not_told_is_asked_for(house, served, candidate, fault):
    served.faults["/files/*"] = fault
    assert sha256_of(house.bring(dict(candidate, size=None))) == candidate["sha256"]
    assert house.files()[candidate["file"]]["size"] == candidate["size"]
    assert {one.method for one in served.done()} == {"GET"}


def test_a_server_that_never_tells_the_size_is_told_of(house, served, candidate):
    served.faults["/files/*"] = {"no_length": True, "no_range": True}
    told = problem(house.bring, dict(candidate, size=None))
    assert told["id"] == "wheel-not-fetched"
    assert "no size" in told["found"]


def test_a_line_that_breaks_goes_on_where_it_was(house, served, candidate):
    served.faults["/files/*"] = {"cut_at": BIG // 2, "times": 1}
    came = []
    assert sha256_of(house.bring(candidate, report=came.append)) == candidate["sha256"]
    assert sum(came) == candidate["size"]
    assert sum(one.bytes for one in fetches(served)) < candidate["size"] * 1.1


def test_a_run_that_failed_is_gone_on_with(house, served, candidate):
    served.faults["/files/*"] = {"cut_at": BIG // 2}
    assert problem(house.bring, candidate)["id"] == "wheel-not-fetched"
    assert house.files() == {}
    assert not os.path.exists(house.path(candidate["file"]))
    served.faults.clear()
    before = len(served.done())
    house.bring(candidate)
    assert [one.range for one in served.done()[before:]][0].startswith("bytes=")


def test_redirects_to_another_host_are_followed_without_the_login(house, served, candidate):
    served.faults["*"] = {"auth": "me:s3cret"}
    with index.Index(served.folder) as other:
        served.faults["/files/*"] = {"redirect": other.url + "/files/" + candidate["file"]}
        house.bring(dict(candidate, size=None),
                    env={"PIP_INDEX_URL": served.named("me:s3cret")})
        assert all(one.authorization for one in fetches(served))
        assert {one.authorization for one in other.done()} == {""}


@pytest.mark.parametrize(("fault", "found"), [
    ({"wrong_hash": True}, "its SHA-256 is "), ({"wrong_size": 5}, "a file of "),
    ({"wrong_size": -5}, "a file of ")])
def test_another_file_than_promised_is_refused(house, served, candidate, fault, found):
    served.faults["/files/*"] = fault
    told = problem(house.bring, candidate)
    assert told["id"] == "wheel-corrupt"
    assert found in told["found"]
    assert candidate["sha256"] in told["wanted"]
    assert house.files() == {}
    assert [one for one in os.listdir(house.folder) if one.endswith(".whl")] == []


@pytest.mark.parametrize(("status", "remedy"), [
    (404, "another source"), (401, "user"), (403, "user"), (500, "network_access_proxy")])
@pytest.mark.parametrize("size", [None, "told"])
def test_a_refusal_says_what_to_change(house, served, candidate, status, remedy, size):
    served.faults["/files/*"] = {"status": status}
    if size is None:
        candidate = dict(candidate, size=None)
    told = problem(house.bring, candidate)
    assert (told["id"], str(status) in told["found"]) == ("wheel-not-fetched", True)
    assert remedy in told["remedy"]


def test_nobody_there_is_told(house, candidate):
    for size in (None, 5):
        told = problem(house.bring, dict(
            candidate, size=size, url="http://127.0.0.1:1/" + candidate["file"]))
        assert "refused" in told["found"]


def test_without_a_hash_nothing_comes(house, served, candidate):
    for sha256 in ("", "abc", "g" * 64):
        assert problem(house.bring, dict(candidate, sha256=sha256))["id"] == "wheel-no-hash"
    assert fetches(served) == []
    assert not os.path.exists(house.folder)


@pytest.mark.parametrize("file", ["../x-1-py3-none-any.whl", "/etc/x-1-py3-none-any.whl", "x", "",
                                  "manifest.json", "x-1-py3-none-any.whl\n", ".x-1-a-b-c.whl"])
def test_a_name_that_leaves_the_folder_is_refused(house, candidate, file):
    assert problem(house.bring, dict(candidate, file=file))["id"] == "wheel-bad-name"
    assert problem(house.add, __file__, file)["id"] == "wheel-bad-name"


def test_an_address_of_another_kind_is_refused(house, candidate):
    told = problem(house.bring, dict(candidate, url="file:///etc/passwd"))
    assert told["id"] == "wheel-not-fetched"


def test_room_is_judged_before_anything_is_fetched(house, served, candidate):
    told = problem(house.bring, dict(candidate, size=2**60))
    assert told["id"] == "wheel-no-space"
    assert "prebuilt_wheel_wheelhouse" in told["remedy"]
    assert fetches(served) == []


def test_a_wheel_of_a_folder_is_taken_without_its_content_twice(house, offered, name):
    (found,), _ = find("tiny-kernel", "", [{"folder": str(offered)}])
    os.chmod(offered / name, 0o644)
    path = house.bring(found)
    assert os.path.samestat(os.stat(path), os.stat(offered / name))
    assert house.files()[name]["source"] == "folder %s" % offered


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o755])
def test_what_others_could_change_is_copied(house, offered, name, mode):
    (found,), _ = find("tiny-kernel", "", [{"folder": str(offered)}])
    os.chmod(offered / name, mode)
    path = house.bring(found)
    assert not os.path.samestat(os.stat(path), os.stat(offered / name))
    assert os.stat(path).st_mode & 0o777 == 0o644
    assert os.stat(offered / name).st_mode & 0o777 == mode
    assert sha256_of(path) == found["sha256"]


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_folder_with_another_file_than_promised_is_refused(house, offered, name, mode):
    (found,), _ = find("tiny-kernel", "", [{"folder": str(offered)}])
    (offered / name).write_bytes(b"else")
    os.chmod(offered / name, mode)
    told = problem(house.bring, found)
    assert told["id"] == "wheel-corrupt"
    assert sha256_of(str(offered / name)) in told["found"]
    assert found["sha256"] in told["wanted"]
    assert os.listdir(house.folder) == [houses.LOCK]


def test_a_folder_with_our_manifest_gives_out_by_it(house, offered, name, candidate, tmp_path):
    house.add(str(offered / name), name, built_for={"torch": "2.8", "cxx11abi": True})
    stranger = builder.wheel(house.folder, "tiny-kernel", "6.6", tags="py3-none-any")
    found, findings = find("tiny-kernel", "", [{"folder": house.folder}])
    assert [one["file"] for one in found] == [name]
    assert [(one["id"], one["subject"]) for one in findings] == [("wheel-untrusted", str(stranger))]
    second = House(str(tmp_path / "second"))
    second.bring(found[0])
    assert second.files()[name]["built_for"] == {"torch": "2.8", "cxx11abi": True}


def test_what_was_changed_is_not_given_out(house, candidate, name):
    house.bring(candidate)
    path = pathlib.Path(house.path(name))
    content = path.read_bytes()
    (found,), _ = house.candidates("tiny-kernel")
    # Of another size: seen at a look.
    path.write_bytes(content[:-1])
    files, (told,) = house.candidates("tiny-kernel")
    assert (files, told["id"], told["severity"]) == ([], "wheel-untrusted", "warning")
    assert "%d bytes" % (len(content) - 1) in told["found"]
    assert [one["id"] for one in house.check(name)] == ["wheel-untrusted"]
    # Of another content: seen when it is read.
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert [one["id"] for one in house.check(name)] == ["wheel-corrupt"]
    told = problem(house.bring, found)
    assert told["id"] == "wheel-corrupt"
    assert sha256_of(str(path)) in told["found"]
    # Gone.
    path.unlink()
    assert "not there" in house.check(name)[0]["found"]
    assert problem(house.bring, found)["id"] == "wheel-corrupt"
    # The network's is as good as ever.
    assert sha256_of(house.bring(candidate)) == candidate["sha256"]
    assert house.check(name) == []


def test_a_wheel_without_a_row_is_not_trusted_until_it_is_looked_at(
        house, served, candidate, offered, name):
    """A run that is ended between the file and its row leaves such a one."""
    os.makedirs(house.folder)
    pathlib.Path(house.path(name)).write_bytes((offered / name).read_bytes())
    files, (told,) = house.candidates("tiny-kernel")
    assert (files, told["id"]) == ([], "wheel-untrusted")
    assert "no row" in house.check(name)[0]["found"]
    house.bring(candidate)
    assert fetches(served) == []
    assert house.check(name) == []


def test_what_was_built_here_is_taken_in(house, tmp_path, name, offered):
    built_for = {"torch": "2.8", "cuda": "12.8", "cxx11abi": True, "capabilities": ["9.0"]}
    path = house.add(str(offered / name), name, source="built on gpu1",
                     built_for=dict(built_for, other=1))
    assert house.files()[name] == {
        "sha256": sha256_of(path), "size": os.stat(path).st_size, "source": "built on gpu1",
        "built_for": built_for}
    (found,), _ = house.candidates("tiny-kernel")
    assert found["built_for"] == built_for
    # Built anew: the new one is in its place.
    again = tmp_path / "again.whl"
    again.write_bytes(b"built again")
    house.add(str(again), name, sha256_of(str(again)))
    assert pathlib.Path(path).read_bytes() == b"built again"
    assert house.check(name) == []
    assert house.files()[name]["built_for"] == {}
    told = problem(house.add, str(again), name, "0" * 64)
    assert told["id"] == "wheel-corrupt"
    assert pathlib.Path(path).read_bytes() == b"built again"


KILLED = """
import os, signal, sys
import ansible.module_utils
ansible.module_utils.__path__.append(sys.argv[1])
from ansible.module_utils.firstlight import paths
from ansible.module_utils.firstlight.wheels import house
def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)
%s
house.House(sys.argv[2]).add(sys.argv[3], sys.argv[3].rpartition("/")[2])
"""


@pytest.mark.parametrize("point", [
    "house.sha256_of = killed", "house.os.rename = killed",
    "house.os.fchmod = killed", "paths.os.chmod = killed"])
def test_what_a_killed_run_was_writing_goes_with_the_next(house, offered, name, point):
    os.chmod(offered / name, 0o600)
    os.makedirs(house.folder)
    # Others' files are no concern of this.
    beside = [".%s.incomplete" % name, ".hidden", "notes.0123456789abcdef"]
    for one in beside:
        pathlib.Path(house.folder, one).write_text("")
    died = subprocess.run([sys.executable, "-c", KILLED % point, "module_utils", house.folder,
                           str(offered / name)], check=False)
    assert died.returncode == -9
    assert len(set(os.listdir(house.folder)) - {*beside, name, houses.LOCK}) == 1
    house.add(str(offered / name), name)
    assert sorted(os.listdir(house.folder)) == sorted(
        [*beside, name, houses.LOCK, houses.MANIFEST])


def test_what_another_run_is_writing_stays(house, offered, name, monkeypatch):
    """Only one copies at a time, so what is seen then is nobody's."""
    monkeypatch.setattr(houses, "LOCK_S", 0.1)
    with Lock(os.path.join(house.folder, houses.LOCK), 0):
        theirs = pathlib.Path(house.folder, ".%s.0123456789abcdef" % name)
        theirs.write_text("so far")
        assert problem(house.add, str(offered / name), name)["id"] == "wheel-house-busy"
        assert theirs.read_text() == "so far"


def test_what_is_to_be_made_is_given_room_beforehand(house, tmp_path, name):
    house.ready(name, 1)
    assert problem(house.ready, name, 2**60)["id"] == "wheel-no-space"
    assert problem(house.ready, "../x", 1)["id"] == "wheel-bad-name"
    pathlib.Path(house.manifest).write_text("[]")
    assert problem(house.ready, name, 1)["id"] == "wheel-bad-manifest"
    (tmp_path / "file").write_text("")
    assert problem(House(str(tmp_path / "file" / "house")).ready, name, 1)["id"] == (
        "wheel-not-written")


@pytest.mark.parametrize(("status", "headers"), [
    (206, {"Content-Range": "bytes 0-0/%s" % ("9" * 5000)}),
    (206, {"Content-Range": "bytes 0-0/\u0663"}),
    (200, {"Content-Length": "9" * 5000})])
def test_a_size_that_is_none_is_no_size(house, candidate, monkeypatch, status, headers):
    class Answer(io.BytesIO):
        """An answer that no server of Python's would give."""

    class Opener:
        def open(self, *_, **__):
            answer = Answer()
            answer.status, answer.headers = status, headers
            return answer

    monkeypatch.setattr(houses, "opener", Opener)
    told = problem(house.bring, dict(candidate, size=None))
    assert "tells no size" in told["found"]


def test_what_is_no_file_is_not_taken_in(house, tmp_path, name):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, tmp_path / "none"):
        assert problem(house.add, str(path), name)["id"] == "wheel-not-written"


@pytest.mark.parametrize("content", [
    b"", b"{", b"\xff\xfe", b"[]", b'{"version": 2, "files": {}}', b'{"version": 1, "files": []}',
    b'{"version": 1}', b"[" * 100_000, b'{"version": 1, "files": {"x-1-a-b-c.whl": {}}}',
    b'{"version": 1, "files": {"../x-1-a-b-c.whl": {"sha256": "%s", "size": 1}}}' % (b"0" * 64)])
def test_a_manifest_that_is_none_is_told_and_never_replaced(house, candidate, content):
    os.makedirs(house.folder)
    pathlib.Path(house.manifest).write_bytes(content)
    assert house.files() == {}
    files, (told,) = house.candidates("tiny-kernel")
    assert (files, told["id"], told["severity"]) == ([], "wheel-bad-manifest", "error")
    assert problem(house.bring, candidate)["id"] == "wheel-bad-manifest"
    assert pathlib.Path(house.manifest).read_bytes() == content


@pytest.mark.parametrize("row", [
    None, 5, {}, {"sha256": "0" * 64}, {"sha256": "0" * 64, "size": "1"},
    {"sha256": "0" * 64, "size": -1}, {"sha256": "0" * 64, "size": True},
    {"sha256": "0" * 63, "size": 1}, {"sha256": 0, "size": 1}])
def test_a_row_that_says_nothing_gives_nothing_out(house, candidate, name, row):
    house.bring(candidate)
    rows = dict(house.files(), **{"other-1-py3-none-any.whl": row})
    pathlib.Path(house.manifest).write_bytes(houses.render(rows))
    rows, findings = house.read()
    assert list(rows) == [name]
    assert [one["id"] for one in findings] == ["wheel-bad-manifest"]
    assert "other-1" in findings[0]["found"]


def test_what_a_row_was_built_for_has_its_shape(house, candidate, name):
    house.bring(candidate)
    row = dict(house.files()[name], source="a\x1b[2J", built_for={
        "torch": 2.8, "cuda": "12.8", "cxx11abi": "yes", "capabilities": [9.0], "more": 1})
    pathlib.Path(house.manifest).write_bytes(houses.render({name: row}))
    assert house.files()[name]["built_for"] == {"cuda": "12.8"}
    assert house.files()[name]["source"] == "a\\x1b[2J"


def test_the_manifest_is_the_same_for_the_same_rows():
    rows = {"b-1-a-b-c.whl": {"size": 1, "sha256": "0"}, "a-1-a-b-c.whl": {}}
    assert houses.render(rows) == houses.render(dict(reversed(list(rows.items()))))
    assert json.loads(houses.render(rows)) == {"version": 1, "files": rows}


def test_two_that_write_at_once_lose_no_row(house, tmp_path):
    made = [builder.wheel(tmp_path / "many", "many-%d" % number, "1.0", tags="py3-none-any")
            for number in range(8)]
    writers = [subprocess.Popen([sys.executable, "-c", (
        "import sys\n"
        "import ansible.module_utils\n"
        "ansible.module_utils.__path__.append(sys.argv[1])\n"
        "from ansible.module_utils.firstlight.wheels.house import House\n"
        "for path in sys.argv[3:]:\n"
        "    House(sys.argv[2]).add(path, path.rpartition('/')[2])\n"),
        "module_utils", house.folder, *map(str, made[number::4])]) for number in range(4)]
    assert [one.wait(60) for one in writers] == [0] * 4
    assert sorted(house.files()) == sorted(pathlib.Path(path).name for path in made)
    assert all(house.check(one) == [] for one in house.files())


def test_two_that_bring_the_same_file_fetch_it_once(house, served, candidate):
    served.faults["/files/*"] = {"slow": 4 * BIG}
    paths, threads = [], [threading.Thread(
        target=lambda: paths.append(house.bring(candidate))) for _ in range(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    assert paths == [house.path(candidate["file"])] * 2
    assert sum(one.bytes for one in fetches(served)) == candidate["size"]


def test_a_manifest_that_somebody_holds_is_told(house, candidate, monkeypatch):
    monkeypatch.setattr(houses, "LOCK_S", 0.1)
    with Lock(os.path.join(house.folder, houses.LOCK), 0):
        told = problem(house.bring, candidate)
    assert told["id"] == "wheel-house-busy"
    assert house.bring(candidate)


def test_a_folder_that_cannot_be_written_is_told(tmp_path, candidate):
    (tmp_path / "file").write_text("")
    told = problem(House(str(tmp_path / "file" / "house")).bring, candidate)
    assert told["id"] == "wheel-not-written"
    assert "prebuilt_wheel_wheelhouse" in told["remedy"]


def test_a_full_disk_is_told(house, candidate, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", house.folder)

    monkeypatch.setattr(houses, "fetch", full)
    assert problem(house.bring, candidate)["id"] == "wheel-no-space"
