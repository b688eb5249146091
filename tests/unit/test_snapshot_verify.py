# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a file is found and told apart, and what nobody touched is not read."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import stat
import subprocess
import sys

import laid_snapshots
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from laid_snapshots import COMMIT, REPO, lay
from test_snapshot_entries import JSON

from ansible.module_utils.firstlight.snapshots import layout, verify
from ansible.module_utils.firstlight.snapshots.entries import Entry
from ansible.module_utils.firstlight.snapshots.verify import Bad

FILES = {"config.json": b"{}\n", "model-00001-of-00002.safetensors": b"weights" * 1000,
         "model-00002-of-00002.safetensors": b"other", "sub/a.txt": b"deep", "empty.txt": b""}
SHARD = "model-00001-of-00002.safetensors"
OTHER = "f" * 40
TESTS = pathlib.Path(__file__).parents[1]
XET = "ab" + "1" * 62


class Kept:
    """A snapshot, its record, and how many bytes of it were read."""

    def __init__(self, folder, files=FILES):
        self.cache = str(folder / "hub")
        self.record = str(folder / "verified" / layout.name(REPO) / (COMMIT + ".json"))
        self.manifest = lay(self.cache, files)
        self.whole = sum(map(len, files.values()))
        self.read = 0

    def entry(self, path):
        return next(one for one in self.manifest.entries if one.path == path)

    def at(self, path):
        return pathlib.Path(layout.snapshot(self.cache, REPO, COMMIT), path)

    def blob(self, path):
        return pathlib.Path(layout.blob(self.cache, REPO, self.entry(path)))

    def verify(self, full=False, entries=None, **options):
        """What is bad, by path."""
        self.read = 0
        found = verify.verify(
            self.cache, self.record, self.manifest,
            self.manifest.entries if entries is None else entries, full, self.count, **options)
        assert all(isinstance(one, Bad) and one.entry in self.manifest.entries for one in found)
        return {one.entry.path: one.found for one in found}

    def count(self, count):
        self.read += count

    def quarantine(self, path):
        return verify.quarantine(self.cache, REPO, self.entry(path), self.record)

    def unknown(self):
        return [one.path for one in verify.unknown(
            self.cache, self.record, self.manifest, self.manifest.entries)]

    def lines(self):
        return json.loads(pathlib.Path(self.record).read_text())["files"]


@pytest.fixture
def kept(tmp_path):
    return Kept(tmp_path)


def flip(path):
    """Change a byte and keep size, time of change and inode."""
    before = path.stat()
    with open(path, "r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (
        before.st_size, before.st_mtime_ns, before.st_ino)


def test_what_nobody_touched_is_read_once(kept):
    assert kept.verify() == {}
    assert kept.read == kept.whole
    assert kept.unknown() == []
    before = pathlib.Path(kept.record).stat()
    assert kept.verify() == {}
    assert kept.read == 0
    assert pathlib.Path(kept.record).stat() == before
    assert kept.verify(full=True) == {}
    assert kept.read == kept.whole


def test_a_record_of_another_process_is_believed(kept):
    """Written there, read here; each process has its own view of a snapshot."""
    program = """
import sys
sys.path[:0] = %r
import conftest  # puts our module_utils on Ansible's path
from ansible.module_utils.firstlight.snapshots import layout, verify
found = layout.read_tree(%r, %r, %r)
sys.exit(len(verify.verify(%r, %r, found, found.entries, False)))
""" % ([str(TESTS), str(TESTS / "rig")], kept.cache, REPO, COMMIT, kept.cache, kept.record)
    subprocess.run([sys.executable, "-c", program], check=True)
    assert kept.verify() == {}
    assert kept.read == 0


def test_a_record_serves_a_moved_link_but_no_touched_file(kept):
    kept.verify()
    path = kept.at("config.json")
    path.unlink()
    layout.link(kept.cache, REPO, COMMIT, kept.entry("config.json"))
    os.utime(kept.blob("sub/a.txt"))
    assert kept.unknown() == ["sub/a.txt"]
    assert kept.verify() == {}
    assert kept.read == len(FILES["sub/a.txt"])
    # The same content in another inode, with the times of the first.
    blob = kept.blob(SHARD)
    shutil.copy2(blob, str(blob) + ".copy")
    os.rename(str(blob) + ".copy", blob)
    assert kept.verify() == {}
    assert kept.read == len(FILES[SHARD])
    assert kept.verify() == {} and kept.read == 0


def test_only_what_is_asked_for_is_read_and_the_rest_stays_known(kept):
    assert kept.verify(entries=[kept.entry(SHARD)]) == {}
    assert kept.read == len(FILES[SHARD])
    assert kept.unknown() == sorted(set(FILES) - {SHARD})
    assert kept.verify(entries=[kept.entry("sub/a.txt")]) == {}
    assert sorted(kept.lines()) == sorted([SHARD, "sub/a.txt"])


def test_nothing_is_kept_where_nothing_may_change(kept):
    assert kept.verify(keep=False) == {}
    assert kept.read == kept.whole
    assert not os.path.exists(kept.record)


def test_one_content_at_two_paths_is_read_once(tmp_path):
    kept = Kept(tmp_path, {"a.bin": b"same", "b.bin": b"same"})
    assert kept.verify() == {}
    assert kept.read == 4
    assert kept.verify() == {} and kept.read == 0
    flip(kept.blob("a.bin"))
    assert sorted(kept.verify(full=True)) == ["a.bin", "b.bin"]


@pytest.mark.parametrize("path", [SHARD, "config.json"])
def test_a_flip_that_keeps_size_time_and_inode_is_found_by_a_full_look(kept, path):
    kept.verify()
    flip(kept.blob(path))
    assert kept.verify() == {}
    found = kept.verify(full=True)
    kind = "sha256" if path == SHARD else "git sha1"
    assert list(found) == [path]
    assert found[path].startswith("flipped: its %s is " % kind)
    assert found[path].endswith("not " + kept.entry(path).blob)
    # What was found bad is not known to be good any more.
    assert list(kept.verify()) == [path]


def test_a_flip_before_anything_was_recorded_is_found(kept):
    flip(kept.blob(SHARD))
    assert list(kept.verify()) == [SHARD]
    assert SHARD not in kept.lines()


def test_what_is_wrong_is_told_apart(kept, tmp_path):
    files = {"%s.bin" % name: name.encode() * 10 for name in (
        "cut", "dangling", "emptied", "folder", "good", "gone", "long", "loop", "out", "pipe")}
    files["in/link.bin"] = files["in/file.bin"] = b"12"
    files["at/file/x.bin"] = b"123"
    kept = Kept(tmp_path / "more", files)
    kept.verify()

    def replace(path):
        kept.at(path).unlink()
        return kept.at(path)

    with open(kept.blob("cut.bin"), "r+b") as file:
        file.truncate(7)
    kept.blob("dangling.bin").unlink()
    os.truncate(kept.blob("emptied.bin"), 0)
    replace("folder.bin").mkdir()
    replace("gone.bin")
    with open(kept.blob("long.bin"), "ab") as file:
        file.write(b"more")
    replace("loop.bin").symlink_to("loop.bin")
    outside = tmp_path / "outside.bin"
    outside.write_bytes(files["out.bin"])
    replace("out.bin").symlink_to(outside)
    os.mkfifo(replace("pipe.bin"))
    shutil.move(kept.at("in"), tmp_path / "in")
    kept.at("in").symlink_to(tmp_path / "in")
    shutil.rmtree(kept.at("at/file"))
    kept.at("at/file").write_bytes(b"")
    wanted = {
        "cut.bin": "truncated: 7 of 30 bytes",
        "dangling.bin": "a link to what is not there, ../../blobs/"
                        + kept.entry("dangling.bin").blob,
        "emptied.bin": "truncated: 0 of 70 bytes",
        "folder.bin": "a folder, not a file",
        "gone.bin": "missing",
        "long.bin": "too long: 44 bytes, not 40",
        "loop.bin": "a link that leads to itself",
        "out.bin": "a link out of the cache, to %s" % outside,
        "pipe.bin": "a device, pipe or socket, not a file",
        "in/link.bin": "behind a link in place of the folder %s" % kept.at("in"),
        "in/file.bin": "behind a link in place of the folder %s" % kept.at("in"),
        "at/file/x.bin": "missing: %s is not a folder" % kept.at("at/file"),
    }
    for full in (False, True):
        assert kept.verify(full=full) == wanted
    assert sorted(kept.lines()) == ["good.bin"]
    # Each is put right alone: moved away, brought, linked.
    for path in wanted:
        kept.quarantine(path)
        kept.blob(path).write_bytes(files[path])
        layout.link(kept.cache, REPO, COMMIT, kept.entry(path))
    assert kept.verify(full=True) == {}
    assert outside.read_bytes() == files["out.bin"]
    assert sorted(os.listdir(tmp_path / "in")) == ["file.bin", "link.bin"]


def test_a_snapshot_that_is_not_there_misses_all(kept):
    shutil.rmtree(kept.cache)
    assert set(kept.verify().values()) == {"missing"}
    assert sorted(kept.verify()) == sorted(FILES)


def test_what_may_not_be_read_is_said():
    with laid_snapshots.open_folder() as folder:
        kept = Kept(folder)
        kept.blob(SHARD).chmod(0)
        os.makedirs(os.path.dirname(kept.record))
        kept.at("sub").chmod(0)
        child = os.fork()
        if child == 0:
            status = 2
            try:
                # Root reads everything: whoever runs this reads it as somebody else.
                if os.geteuid() == 0:
                    os.setgid(2000)
                    os.setuid(2000)
                status = kept.verify(keep=False) != dict.fromkeys(
                    (SHARD, "sub/a.txt"), "not readable: Permission denied")
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        kept.at("sub").chmod(0o755)


def test_a_file_that_is_written_while_it_is_read_is_not_good(kept, monkeypatch):
    def grow(*_):
        with open(kept.blob(SHARD), "ab") as file:
            file.write(b"x")
    grown = verify.verify(kept.cache, kept.record, kept.manifest, [kept.entry(SHARD)], True, grow)
    assert [one.found for one in grown] == ["changing while it is read"]
    assert not os.path.exists(kept.record)


def test_an_interrupt_ends_it(kept):
    def stop(_):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        verify.verify(kept.cache, kept.record, kept.manifest, kept.manifest.entries, True, stop)
    assert not os.path.exists(kept.record)


# The record.


@pytest.mark.parametrize("content", [
    b"", b"{", b"null", b"[]", b"[" * 100_000, b"\xff", {}, {"files": {}},
    {"format": verify.FORMAT, "repo_id": REPO, "commit": OTHER, "files": "own"},
    {"format": verify.FORMAT, "repo_id": "example/other", "commit": COMMIT, "files": "own"},
    {"format": "of another program", "repo_id": REPO, "commit": COMMIT, "files": "own"},
    {"format": verify.FORMAT, "repo_id": REPO, "commit": COMMIT, "files": []},
    {"format": verify.FORMAT, "repo_id": REPO, "commit": COMMIT, "files": {SHARD: [1, 2]}},
    {"format": verify.FORMAT, "repo_id": REPO, "commit": COMMIT,
     "files": {SHARD: [1, 2, 3, ["x"]], "config.json": [True, {}, 1.5, "a"], "sub/a.txt": None}},
])
def test_a_record_that_is_damaged_or_not_ours_counts_as_none(kept, content):
    kept.verify()
    if isinstance(content, dict) and content.get("files") == "own":
        content["files"] = kept.lines()
    pathlib.Path(kept.record).write_bytes(
        content if isinstance(content, bytes) else json.dumps(content).encode())
    assert kept.verify() == {}
    assert kept.read == kept.whole
    assert kept.verify() == {} and kept.read == 0


@given(JSON)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_record_crashes(kept, value):
    pathlib.Path(kept.record).parent.mkdir(parents=True, exist_ok=True)
    for files in (value, {SHARD: value}, {SHARD: [value] * 4}):
        pathlib.Path(kept.record).write_text(json.dumps({
            "format": verify.FORMAT, "repo_id": REPO, "commit": COMMIT, "files": files}))
        assert SHARD in kept.unknown()


def test_a_record_that_cannot_be_written_is_said(kept):
    pathlib.Path(kept.record).parent.parent.mkdir(exist_ok=True)
    pathlib.Path(kept.record).parent.write_text("in the way")
    with pytest.raises(OSError):
        kept.verify()


def test_what_was_hashed_while_it_came_is_remembered(kept):
    os.truncate(kept.blob("sub/a.txt"), 1)
    hashed = [(one.path, one.blob) for one in kept.manifest.entries]
    hashed[0] = (hashed[0][0], "0" * 40)
    remembered = verify.remember(kept.record, kept.cache, kept.manifest, [*hashed, ("x", OTHER)])
    assert hashed[0][0] == "config.json"
    assert sorted(remembered) == sorted(set(FILES) - {"config.json", "sub/a.txt"})
    assert sorted(kept.lines()) == sorted(remembered)
    assert list(kept.verify()) == ["sub/a.txt"]
    assert kept.read == len(FILES["config.json"])


def test_a_record_is_added_to(kept):
    for path in FILES:
        verify.remember(kept.record, kept.cache, kept.manifest, [(path, kept.entry(path).blob)])
    assert kept.verify() == {}
    assert kept.read == 0


# Quarantine.


def test_a_bad_file_is_moved_away_and_the_rest_is_left(kept):
    kept.verify()
    flip(kept.blob(SHARD))
    bad = kept.blob(SHARD).read_bytes()
    moved = kept.quarantine(SHARD)
    entry = kept.entry(SHARD)
    assert moved == os.path.join(kept.cache, "quarantine", "models--example--model", entry.blob)
    assert pathlib.Path(moved).read_bytes() == bad
    assert not os.path.lexists(kept.blob(SHARD))
    assert not os.path.lexists(kept.at(SHARD))
    assert sorted(kept.lines()) == sorted(set(FILES) - {SHARD})
    assert kept.verify() == {SHARD: "missing"}
    assert kept.read == 0
    # A second one takes the place of the first.
    kept.blob(SHARD).write_bytes(b"worse")
    layout.link(kept.cache, REPO, COMMIT, entry)
    assert kept.verify() == {SHARD: "truncated: 5 of 7000 bytes"}
    assert kept.quarantine(SHARD) == moved
    assert pathlib.Path(moved).read_bytes() == b"worse"
    assert os.listdir(os.path.dirname(moved)) == [entry.blob]
    assert kept.quarantine(SHARD) == ""
    kept.blob(SHARD).write_bytes(FILES[SHARD])
    layout.link(kept.cache, REPO, COMMIT, entry)
    assert kept.verify() == {}
    assert kept.read == len(FILES[SHARD])


def test_a_bad_blob_without_its_path_is_moved(kept):
    kept.at(SHARD).unlink()
    kept.blob(SHARD).write_bytes(b"cut")
    assert pathlib.Path(kept.quarantine(SHARD)).read_bytes() == b"cut"
    assert not kept.blob(SHARD).exists()


def test_another_snapshot_with_the_same_file_heals_with_it(kept):
    lay(kept.cache, FILES, commit=OTHER, revision="other")
    flip(kept.blob(SHARD))
    kept.quarantine(SHARD)
    other = pathlib.Path(layout.snapshot(kept.cache, REPO, OTHER), SHARD)
    assert other.is_symlink() and not other.exists()
    kept.blob(SHARD).write_bytes(FILES[SHARD])
    assert other.read_bytes() == FILES[SHARD]


def test_a_link_to_another_good_blob_goes_alone(kept):
    """The blob that the file should be was never looked at: it stays."""
    kept.at(SHARD).unlink()
    kept.at(SHARD).symlink_to("../../blobs/" + kept.entry("sub/a.txt").blob)
    assert kept.verify() == {SHARD: "truncated: 4 of 7000 bytes"}
    kept.quarantine(SHARD)
    assert kept.blob(SHARD).read_bytes() == FILES[SHARD]
    assert kept.blob("sub/a.txt").read_bytes() == b"deep"
    layout.link(kept.cache, REPO, COMMIT, kept.entry(SHARD))
    assert kept.verify(full=True) == {}


def test_a_blob_that_is_shared_goes_too(kept):
    """Left in the store, it would be linked again by its size."""
    blob, shared = kept.blob(SHARD), pathlib.Path(kept.cache, "blobs", XET[:2], XET)
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to("../../blobs/%s/%s" % (XET[:2], XET))
    assert kept.verify() == {}
    flip(shared)
    assert list(kept.verify(full=True)) == [SHARD]
    moved = kept.quarantine(SHARD)
    assert stat.S_ISREG(os.lstat(moved).st_mode)
    assert not shared.exists()
    assert not os.path.lexists(blob)


def test_a_blob_that_leads_out_of_the_cache_is_not_touched_there(kept, tmp_path):
    outside = tmp_path / "outside"
    kept.blob(SHARD).rename(outside)
    kept.blob(SHARD).symlink_to(outside)
    assert kept.verify() == {SHARD: "a link out of the cache, to %s" % outside}
    kept.quarantine(SHARD)
    assert outside.read_bytes() == FILES[SHARD]
    assert not os.path.lexists(kept.blob(SHARD))


def test_files_without_links_are_moved_themselves(kept):
    path = kept.at(SHARD)
    path.unlink()
    path.write_bytes(b"own")
    moved = kept.quarantine(SHARD)
    assert pathlib.Path(moved).read_bytes() == b"own"
    assert not os.path.lexists(path)


def test_only_files_of_a_snapshot_are_moved(kept, tmp_path):
    with pytest.raises(ValueError, match="path"):
        verify.quarantine(kept.cache, REPO, Entry("../x", 1, None, OTHER), kept.record)
    with pytest.raises(ValueError, match="commit"):
        verify.quarantine(kept.cache, REPO, kept.entry(SHARD), str(tmp_path / "record.json"))
    assert kept.verify(full=True) == {}


@given(st.dictionaries(
    st.sampled_from(["a.json", "b.bin", "c/d.gguf", "c/e.txt"]),
    st.tuples(st.binary(max_size=50), st.sampled_from(["", "cut", "flip", "gone"])), min_size=1))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None,
          max_examples=40)
def test_the_bad_ones_are_found_and_no_others(tmp_path, plan):
    shutil.rmtree(tmp_path / "any", ignore_errors=True)
    kept = Kept(tmp_path / "any", {path: content for path, (content, _) in plan.items()})
    broken = set()
    for path, (content, harm) in plan.items():
        blob = kept.blob(path)
        # Two paths may have one blob, which is broken once.
        if not harm or not content or blob.name in broken:
            continue
        broken.add(blob.name)
        if harm == "cut":
            os.truncate(blob, len(content) - 1)
        elif harm == "flip":
            flip(blob)
        else:
            blob.unlink()
    wanted = {one.path for one in kept.manifest.entries if one.blob in broken}
    assert set(kept.verify(full=True)) == wanted
    assert set(kept.unknown()) == wanted
    assert set(kept.verify()) == wanted


def test_the_helpers_flip_is_a_flip(kept):
    before = kept.blob(SHARD).read_bytes()
    flip(kept.blob(SHARD))
    after = kept.blob(SHARD).read_bytes()
    assert after != before
    assert laid_snapshots.entry(SHARD, after).blob != kept.entry(SHARD).blob
