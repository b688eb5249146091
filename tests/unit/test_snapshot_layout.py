# SPDX-License-Identifier: Apache-2.0
"""The cache is the one that huggingface_hub has: each reads what the other laid out."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import stat
import subprocess
import sys

import hub
import laid_snapshots
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from laid_snapshots import COMMIT, REPO, lay, library
from test_snapshot_entries import ENTRIES, JSON

from ansible.module_utils.firstlight.snapshots import entries, layout
from ansible.module_utils.firstlight.snapshots.entries import Entry

FILES = {"config.json": b"{}\n", "model.safetensors": b"weights", "sub/folder/a.txt": b"deep",
         "empty.txt": b""}
OTHER = "f" * 40
XET = "ab" + "1" * 62
DOWNLOAD = """
import huggingface_hub as h
print(h.snapshot_download(%r, revision=%r, cache_dir=%r))
"""


@pytest.fixture
def cache(tmp_path):
    return str(tmp_path / "hub")


def at(cache, path, commit=COMMIT):
    return pathlib.Path(layout.snapshot(cache, REPO, commit), path)


# Both ways with the real library.


@pytest.mark.parametrize("revision", ["main", COMMIT, "refs/pr/1"])
def test_the_library_finds_what_we_laid_out_complete(cache, revision):
    lay(cache, FILES, revision=revision)
    status, said = library(DOWNLOAD % (REPO, revision, cache), HF_HUB_OFFLINE="1")
    assert (status, said) == (0, layout.snapshot(cache, REPO, COMMIT))


def test_the_library_misses_what_we_left_out(cache):
    lay(cache, FILES)
    at(cache, "model.safetensors").unlink()
    status, said = library(DOWNLOAD % (REPO, "main", cache), HF_HUB_OFFLINE="1")
    assert status == 1
    assert "IncompleteSnapshotError" in said
    assert "(model.safetensors)" in said


def test_the_library_reads_the_list_that_we_wrote(cache):
    lay(cache, FILES)
    status, said = library("""
import huggingface_hub as h, json
found = h.get_cached_repo_tree(%r, cache_dir=%r)
scan = h.scan_cache_dir(%r)
print(json.dumps([sorted((one.path, one.size) for one in found), [str(w) for w in scan.warnings],
                  [[r.repo_id, [v.commit_hash for v in r.revisions],
                    [sorted(v.refs) for v in r.revisions]] for r in scan.repos]]))
""" % (REPO, cache, cache))
    assert status == 0, said
    found, warnings, repos = json.loads(said)
    assert found == sorted([path, len(content)] for path, content in FILES.items())
    assert warnings == []
    assert repos == [[REPO, [COMMIT], [["main"]]]]


def test_we_read_what_the_library_laid_out(tmp_path, cache):
    repos = hub.canary_repos(tmp_path / "repos")
    name = "firstlight/canary"
    with hub.Hub(repos) as served:
        status, said = library(DOWNLOAD % (name, "main", cache), HF_ENDPOINT=served.url)
        commit = served.commit(name)
    assert status == 0, said
    assert layout.read_ref(cache, name, "main") == commit
    found = layout.read_tree(cache, name, commit)
    there = {str(one.relative_to(repos / name)): one.read_bytes()
             for one in (repos / name).rglob("*") if one.is_file()}
    assert {one.path: one.size for one in found.entries} == {
        path: len(content) for path, content in there.items()}
    for one in found.entries:
        digest = one.digest()
        digest.update(there[one.path])
        assert digest.hexdigest() == one.blob, one.path
        assert pathlib.Path(layout.blob(cache, name, one)).read_bytes() == there[one.path]
        assert os.readlink(pathlib.Path(layout.snapshot(cache, name, commit), one.path)) == (
            layout._target(one))
    assert layout.missing(cache, found, found.entries) == []
    # A cache of an older library has no list: the blobs' names are the hashes all the same.
    assert layout.of_snapshot(cache, name, commit) == found
    # Nothing is left to change.
    assert not layout.write_ref(cache, name, "main", commit)
    assert not layout.write_tree(cache, found)
    assert not any(layout.link(cache, name, commit, one) for one in found.entries)


def test_the_library_adds_to_what_we_laid_out(tmp_path, cache):
    repos = hub.canary_repos(tmp_path / "repos")
    name = "firstlight/canary"
    large = "model.safetensors"
    with hub.Hub(repos) as served:
        commit = served.commit(name)
        content = (repos / name / large).read_bytes()
        ours = laid_snapshots.entry(large, content)
        layout.prepare(cache, name)
        pathlib.Path(layout.blob(cache, name, ours)).write_bytes(content)
        layout.link(cache, name, commit, ours)
        status, said = library(DOWNLOAD % (name, commit, cache), HF_ENDPOINT=served.url)
        assert status == 0, said
        asked = [one.path for one in served.requests if one.method == "GET"]
    assert any(path.endswith("/config.json") for path in asked)
    assert not any(path.endswith("/" + large) for path in asked)
    whole = layout.read_tree(cache, name, commit)
    assert layout.missing(cache, whole, whole.entries) == []


# Names and refs.


def test_places_are_the_librarys(cache):
    assert layout.folder("/c", "org/name") == "/c/models--org--name"
    assert layout.folder("/c", "gpt2") == "/c/models--gpt2"
    assert layout.snapshot("/c", "gpt2", COMMIT) == "/c/models--gpt2/snapshots/" + COMMIT
    assert layout.blob("/c", "gpt2", Entry("x", 1, None, OTHER)) == "/c/models--gpt2/blobs/" + OTHER
    for wrong in ("../x", "a/b/c", "a--b/c"):
        with pytest.raises(ValueError, match="repository"):
            layout.folder("/c", wrong)
    for wrong in ("main", "", "../" * 5, COMMIT[:7], COMMIT.upper()):
        with pytest.raises(ValueError, match="commit"):
            layout.snapshot("/c", "gpt2", wrong)


def test_a_ref_is_kept_and_changed(cache):
    assert layout.read_ref(cache, REPO, "main") is None
    assert layout.write_ref(cache, REPO, "main", COMMIT)
    assert not layout.write_ref(cache, REPO, "main", COMMIT)
    assert layout.read_ref(cache, REPO, "main") == COMMIT
    assert layout.write_ref(cache, REPO, "main", OTHER)
    assert layout.read_ref(cache, REPO, "main") == OTHER
    assert layout.read_ref(cache, REPO, COMMIT) == COMMIT
    assert not layout.write_ref(cache, REPO, COMMIT, COMMIT)
    assert os.listdir(os.path.join(layout.folder(cache, REPO), "refs")) == ["main"]


@pytest.mark.parametrize("content", [b"", b"main", b"\xff" * 40, COMMIT.encode() * 9])
def test_a_ref_that_holds_no_commit_counts_as_none(cache, content):
    layout.write_ref(cache, REPO, "main", COMMIT)
    path = pathlib.Path(layout.folder(cache, REPO), "refs", "main")
    path.write_bytes(content)
    assert layout.read_ref(cache, REPO, "main") is None
    path.unlink()
    path.mkdir()
    assert layout.read_ref(cache, REPO, "main") is None


@pytest.mark.parametrize("revision", ["../../x", "/etc/passwd", "a\nb", ""])
def test_a_ref_stays_among_the_refs(cache, revision):
    with pytest.raises(ValueError, match="revision"):
        layout.write_ref(cache, REPO, revision, COMMIT)
    with pytest.raises(ValueError, match="revision"):
        layout.read_ref(cache, REPO, revision)


# Trees.


@given(st.lists(ENTRIES, max_size=5, unique_by=lambda one: one.path))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_tree_is_read_as_it_was_written(tmp_path, found):
    try:
        made = entries.checked(REPO, COMMIT, found)
    except ValueError:
        return
    folder = str(tmp_path / "hub")
    shutil.rmtree(folder, ignore_errors=True)
    assert layout.write_tree(folder, made)
    assert layout.read_tree(folder, REPO, COMMIT) == made
    assert not layout.write_tree(folder, made)


def write_tree(cache, content):
    path = pathlib.Path(layout.folder(cache, REPO), "trees", COMMIT + ".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def test_a_tree_of_the_librarys_with_xet_hashes_is_not_written_again(cache):
    path = write_tree(cache, {"format_version": 1, "files": {
        "a.bin": {"size": 4, "blob_id": OTHER, "lfs_sha256": "c" * 64, "lfs_size": 4,
                  "xet_hash": XET}, "b": {"size": 1, "blob_id": OTHER}}})
    before = path.read_bytes()
    made = layout.read_tree(cache, REPO, COMMIT)
    assert made.entries == (Entry("a.bin", 4, "c" * 64, None), Entry("b", 1, None, OTHER))
    assert not layout.write_tree(cache, made)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [
    b"", b"{", b"[]", b"[" * 100_000, b"\xff\xfe", {"format_version": 2, "files": {}},
    {"files": {}}, {"format_version": 1}, {"format_version": 1, "files": []}])
def test_what_is_no_tree_counts_as_none(cache, content):
    write_tree(cache, content)
    assert layout.read_tree(cache, REPO, COMMIT) is None


@pytest.mark.parametrize(("files", "words"), [
    ({"../../../etc/cron.d/x": {"size": 1, "blob_id": OTHER}}, "leads out"),
    ({"/etc/passwd": {"size": 1, "blob_id": OTHER}}, "absolute"),
    ({"a\x1b[2J": {"size": 1, "blob_id": OTHER}}, "control"),
    ({"a": {"size": 1, "blob_id": "../../../../etc/passwd"}}, "git_sha1"),
    ({"a": {"size": 1, "blob_id": OTHER, "lfs_sha256": "../x"}}, "sha256"),
    ({"a": {"size": 2**62, "blob_id": OTHER}}, "size"),
    ({"a": {"blob_id": OTHER}}, "size"), ({"a": {"size": 1}}, "no hash"), ({"a": 1}, "object"),
    ({str(one): {"size": 1, "blob_id": OTHER} for one in range(100_001)}, "more than 100000"),
])
def test_a_tree_of_what_cannot_be_is_refused_with_the_reason(cache, files, words):
    path = write_tree(cache, {"format_version": 1, "files": files})
    with pytest.raises(ValueError) as caught:
        layout.read_tree(cache, REPO, COMMIT)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)


@given(JSON)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_tree_crashes(tmp_path, value):
    for content in (value, {"format_version": 1, "files": value},
                    {"format_version": 1, "files": {"a": value}}):
        write_tree(str(tmp_path), content)
        try:
            layout.read_tree(str(tmp_path), REPO, COMMIT)
        except ValueError as problem:
            assert COMMIT in str(problem)


def test_a_tree_without_an_end_is_not_read(cache, monkeypatch):
    monkeypatch.setattr(layout, "MAX_TREE", 1000)
    write_tree(cache, {"format_version": 1, "files": {}, "more": "x" * 1000})
    assert layout.read_tree(cache, REPO, COMMIT) is None
    path = write_tree(cache, b"")
    path.unlink()
    os.mkfifo(path)
    assert layout.read_tree(cache, REPO, COMMIT) is None


# Links.


def test_a_link_is_relative_and_replaces_what_was_there(cache):
    made = lay(cache, FILES)
    deep = next(one for one in made.entries if one.path == "sub/folder/a.txt")
    assert os.readlink(at(cache, deep.path)) == "../../../../blobs/" + deep.blob
    assert not layout.link(cache, REPO, COMMIT, deep)
    at(cache, deep.path).unlink()
    at(cache, deep.path).symlink_to("/etc/passwd")
    assert layout.link(cache, REPO, COMMIT, deep)
    assert at(cache, deep.path).read_bytes() == b"deep"
    # A cache may be moved.
    shutil.move(cache, cache + "2")
    assert at(cache + "2", deep.path).read_bytes() == b"deep"
    assert sorted(os.listdir(os.path.join(layout.folder(cache + "2", REPO), "blobs"))) == sorted(
        one.blob for one in made.entries)


def test_a_link_is_not_made_through_a_link_or_over_a_folder(cache, tmp_path):
    made = lay(cache, FILES)
    deep = next(one for one in made.entries if one.path == "sub/folder/a.txt")
    outside = tmp_path / "outside"
    (outside / "folder").mkdir(parents=True)
    shutil.rmtree(at(cache, "sub"))
    at(cache, "sub").symlink_to(outside)
    with pytest.raises(NotADirectoryError):
        layout.link(cache, REPO, COMMIT, deep)
    assert list((outside / "folder").iterdir()) == []
    (outside / "folder" / "a.txt").symlink_to("../../../../blobs/" + deep.blob)
    with pytest.raises(NotADirectoryError):
        layout.link(cache, REPO, COMMIT, deep)
    assert layout.missing(cache, made, made.entries) == [deep]
    at(cache, "sub").unlink()
    at(cache, deep.path).mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        layout.link(cache, REPO, COMMIT, deep)
    blobs = os.listdir(os.path.join(layout.folder(cache, REPO), "blobs"))
    assert sorted(blobs) == sorted(one.blob for one in made.entries)
    for path in ("../x", "/x", "a\n"):
        with pytest.raises(ValueError, match="path"):
            layout.link(cache, REPO, COMMIT, deep._replace(path=path))


def test_missing_is_what_is_not_there_with_its_size(cache):
    made = laid_snapshots.manifest(FILES)
    assert layout.missing(cache, made, made.entries) == list(made.entries)
    lay(cache, FILES)
    assert layout.missing(cache, made, made.entries) == []
    at(cache, "config.json").resolve().write_bytes(b"{")
    at(cache, "model.safetensors").resolve().unlink()
    assert [one.path for one in layout.missing(cache, made, made.entries)] == [
        "config.json", "model.safetensors"]
    assert layout.missing(cache, made, made.entries[:0]) == []


def test_a_snapshot_of_files_without_links_is_taken(cache):
    made = lay(cache, FILES)
    base = at(cache, "")
    shutil.copytree(base, base.with_name("copy"))
    shutil.rmtree(base)
    base.with_name("copy").rename(base)
    assert not any(one.is_symlink() for one in base.rglob("*"))
    assert layout.missing(cache, made, made.entries) == []


# A cache that others share, and its Xet blobs.


def share(cache, made, path):
    """Move a blob to where the library keeps those that repositories share."""
    entry = next(one for one in made.entries if one.path == path)
    blob = pathlib.Path(layout.blob(cache, REPO, entry))
    shared = pathlib.Path(cache, "blobs", XET[:2], XET)
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    shared.chmod(0o400)
    blob.symlink_to("../../blobs/%s/%s" % (XET[:2], XET))
    return entry, shared


def test_shared_blobs_are_followed(cache):
    made = lay(cache, FILES)
    share(cache, made, "model.safetensors")
    assert at(cache, "model.safetensors").read_bytes() == b"weights"
    assert layout.missing(cache, made, made.entries) == []
    assert layout.of_snapshot(cache, REPO, COMMIT) == made
    status, said = library(DOWNLOAD % (REPO, "main", cache), HF_HUB_OFFLINE="1")
    assert status == 0, said


def test_we_share_as_the_library_does(cache):
    """The library itself puts a blob into its store; it is found there."""
    made = lay(cache, FILES)
    entry = next(one for one in made.entries if one.path == "model.safetensors")
    status, said = library("""
from huggingface_hub.utils import _shared_blobs as s
print(s.publish_blob_to_shared_store(blob_path=%r, xet_hash=%r, cache_dir=%r, expected_size=7))
""" % (layout.blob(cache, REPO, entry), XET, cache))
    assert (status, said) == (0, "True")
    assert os.path.islink(layout.blob(cache, REPO, entry))
    assert layout.missing(cache, made, made.entries) == []
    assert layout.readable(cache, REPO, COMMIT) == []


def test_a_snapshot_without_a_tree_is_described_by_its_blobs(cache):
    made = lay(cache, FILES)
    shutil.rmtree(os.path.join(layout.folder(cache, REPO), "trees"))
    assert layout.of_snapshot(cache, REPO, COMMIT) == made
    at(cache, "stray.txt").write_text("no blob")
    at(cache, "odd.txt").symlink_to("../../blobs/odd")
    at(cache, "out.txt").symlink_to("/" + "a" * 40)
    at(cache, "dangling.txt").symlink_to("../../blobs/" + "b" * 40)
    assert layout.of_snapshot(cache, REPO, COMMIT) == made
    assert layout.of_snapshot(cache, REPO, OTHER) is None


def test_a_repository_and_its_blobs_may_lie_on_another_disk(cache, tmp_path):
    made = lay(cache, FILES)
    disk, own = tmp_path / "disk", layout.folder(cache, REPO)
    shutil.move(own, disk)
    os.symlink(disk, own)
    assert layout.missing(cache, made, made.entries) == []
    assert layout.of_snapshot(cache, REPO, COMMIT) == made
    shutil.move(disk / "blobs", tmp_path / "blobs")
    (disk / "blobs").symlink_to(tmp_path / "blobs")
    assert layout.missing(cache, made, made.entries) == []
    (tmp_path / "blobs" / made.entries[0].blob).chmod(0o600)
    assert layout.readable(cache, REPO, COMMIT) == [str(tmp_path / "blobs" / made.entries[0].blob)]


# Who may read.


def test_a_strict_umask_is_no_matter(cache):
    before = os.umask(0o077)
    try:
        made = laid_snapshots.manifest(FILES)
        layout.prepare(cache, REPO)
        layout.write_tree(cache, made)
        layout.write_ref(cache, REPO, "refs/pr/1", COMMIT)
        for one in made.entries:
            layout.link(cache, REPO, COMMIT, one)
    finally:
        os.umask(before)
    for where, _, files in os.walk(cache):
        assert stat.S_IMODE(os.stat(where).st_mode) == 0o755, where
        for name in files:
            path = os.path.join(where, name)
            assert os.path.islink(path) or stat.S_IMODE(os.stat(path).st_mode) == 0o644, path


READ = """
import json, os, sys
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(2000); os.setuid(2000)
for where, folders, files in os.walk(sys.argv[1], onerror=lambda problem: print(problem)):
    for name in files:
        with open(os.path.join(where, name), "rb") as file:
            file.read()
print(sorted(json.load(open(sys.argv[2]))["files"]))
"""


def test_another_user_reads_what_was_mended():
    """As the library leaves it: a list of files with 0600, and a umask of 077 all over."""
    with laid_snapshots.open_folder() as folder:
        cache = str(folder / "hub")
        made = lay(cache, FILES)
        share(cache, made, "model.safetensors")
        tree = os.path.join(layout.folder(cache, REPO), "trees", COMMIT + ".json")
        for where, _, files in os.walk(cache, topdown=False):
            for name in files:
                if not os.path.islink(os.path.join(where, name)):
                    os.chmod(os.path.join(where, name), 0o600)
            os.chmod(where, 0o700)
        call = [sys.executable, "-c", READ, layout.snapshot(cache, REPO, COMMIT), tree]
        if os.geteuid() == 0:
            assert subprocess.run(call, check=False, capture_output=True).returncode != 0
        changed = layout.readable(cache, REPO, COMMIT)
        assert tree in changed
        assert cache in changed
        done = subprocess.run(call, check=False, capture_output=True, text=True)
        assert (done.returncode, done.stdout.strip()) == (0, str(sorted(FILES))), done.stderr
        assert stat.S_IMODE(os.stat(tree).st_mode) == 0o644
        assert stat.S_IMODE(os.stat(os.path.dirname(tree)).st_mode) == 0o755
        assert layout.readable(cache, REPO, COMMIT) == []


def test_only_the_cache_is_opened_and_bits_of_a_group_stay(cache, tmp_path):
    lay(cache, FILES)
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o600)
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    at(cache, "out.txt").symlink_to(secret)
    at(cache, "outer").symlink_to(private)
    own = pathlib.Path(layout.folder(cache, REPO))
    (own / "refs" / "other").symlink_to(secret)
    os.mkfifo(own / "refs" / "pipe", 0o600)
    os.chmod(cache, 0o2770)
    at(cache, "config.json").resolve().chmod(0o660)
    changed = layout.readable(cache, REPO, COMMIT)
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert stat.S_IMODE(os.stat(cache).st_mode) == 0o2775
    assert changed == sorted([cache, str(at(cache, "config.json").resolve())])
    assert stat.S_IMODE(at(cache, "config.json").stat().st_mode) == 0o664


def test_a_snapshot_that_is_not_there_has_nothing_to_open(cache):
    assert layout.readable(cache, REPO, COMMIT) == []


def test_a_snapshot_that_is_forgotten_takes_what_no_other_needs(cache):
    other = COMMIT[::-1]
    laid_snapshots.lay(cache, {"config.json": b"{}", "model.safetensors": b"old"})
    laid_snapshots.lay(cache, {"config.json": b"{}", "model.safetensors": b"new"}, commit=other)
    blobs = pathlib.Path(layout.folder(cache, REPO), "blobs")
    before = {path.read_bytes() for path in blobs.iterdir()}
    assert before == {b"{}", b"old", b"new"}
    layout.forget(cache, REPO, COMMIT)
    assert {path.read_bytes() for path in blobs.iterdir()} == {b"{}", b"new"}
    assert not os.path.exists(layout.snapshot(cache, REPO, COMMIT))
    assert layout.read_tree(cache, REPO, COMMIT) is None
    assert layout.missing(cache, layout.read_tree(cache, REPO, other), layout.read_tree(
        cache, REPO, other).entries) == []
    layout.forget(cache, REPO, other)
    assert not os.path.exists(layout.folder(cache, REPO))
