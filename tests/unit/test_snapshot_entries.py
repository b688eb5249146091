# SPDX-License-Identifier: Apache-2.0
"""Lists of files from hubs are checked before they are believed."""

from __future__ import annotations

import hashlib
import subprocess

import laid_snapshots
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible.module_utils.firstlight.snapshots import entries
from ansible.module_utils.firstlight.snapshots.entries import Entry, Manifest

GIT, SHA = "a" * 40, "b" * 64
NAMES = st.text(st.sampled_from("ab1._-é 文"), min_size=1, max_size=8).filter(
    lambda name: name not in (".", ".."))
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
SIZES = st.integers(0, entries.MAX_SIZE)
HASHES = st.one_of(
    st.tuples(st.text("0123456789abcdef", min_size=64, max_size=64), st.none()),
    st.tuples(st.none(), st.text("0123456789abcdef", min_size=40, max_size=40)))
ENTRIES = st.builds(lambda path, size, hashes: Entry(path, size, *hashes), PATHS, SIZES, HASHES)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(("repo_id", "commit", "entries", "path", "size", "sha256", "git_sha1",
                         "files", "format_version")), inner, max_size=5), max_leaves=12)


@pytest.mark.parametrize(("path", "reason"), [
    ("../x", "leads out"), ("a/../../x", "leads out"), ("..", "leads out"),
    ("/etc/passwd", "absolute"), ("a//b", "empty parts"), ("a/", "empty parts"),
    ("./a", "empty parts"), ("", "empty"), (None, "no text"), (b"a", "no text"), (7, "no text"),
    ("a\nb", "control"), ("a\0b", "control"), ("a\x1b[31m", "control"), ("a\u202eb", "control"),
    ("a\ud800", "control"), ("a\\b", "backslash"), ("a" * 256, "too long"),
    ("é" * 128, "too long"), ("/".join(["abcdefg"] * 200), "too long"),
    ("/".join("a" * 40), "too many folders"),
])
def test_a_path_that_cannot_be_is_refused_with_the_reason(path, reason):
    assert reason in entries.bad(path)
    with pytest.raises(ValueError, match=reason):
        entries.checked("a/b", GIT, [Entry(path, 1, None, GIT)])


@pytest.mark.parametrize("path", [
    "config.json", "Q4_K_M/model-00001-of-00002.gguf", ".gitattributes", "..a", "a..b/c...",
    "模型.safetensors", "with space.txt", "a" * 255, "1_Pooling/config.json"])
def test_paths_of_real_repositories_are_taken(path):
    assert entries.bad(path) == ""


@pytest.mark.parametrize("repo_id", ["gpt2", "Qwen/Qwen2.5-7B-Instruct", "a/b.c_d-e", "01-ai/Yi"])
def test_real_repositories_are_taken(repo_id):
    assert entries.bad_repo_id(repo_id) == ""


@pytest.mark.parametrize("repo_id", [
    "", None, 7, "a/b/c", "../b", "a/..", "/a", "a/", "a--b/c", "a/b.git", "a b", "a/b\n", ".a/b",
    "-a", "x" * 300])
def test_what_is_no_repository_is_refused(repo_id):
    assert entries.bad_repo_id(repo_id)
    with pytest.raises(ValueError, match="repository"):
        entries.checked(repo_id, GIT, [])


@pytest.mark.parametrize(("entry", "words"), [
    (Entry("a", -1, None, GIT), "a: size -1"),
    (Entry("a", 2**60, None, GIT), "a: size 1152921504606846976 is not between"),
    (Entry("a", True, None, GIT), "a: size True"),
    (Entry("a", 1.0, None, GIT), "a: size 1.0"),
    (Entry("a", "1", None, GIT), "a: size '1'"),
    (Entry("a", 1, "B" * 64, None), "a: sha256 is 'BB"),
    (Entry("a", 1, GIT, None), "a: sha256 is"),
    (Entry("a", 1, None, "../../etc"), "a: git_sha1 is '../../etc'"),
    (Entry("a", 1, None, 7), "a: git_sha1 is 7"),
    (Entry("a", 1, None, None), "a: no hash"),
])
def test_an_entry_that_cannot_be_says_which_and_why(entry, words):
    with pytest.raises(ValueError) as caught:
        entries.checked("a/b", GIT, [Entry("before", 1, SHA, None), entry], "tree.json")
    assert str(caught.value).startswith("tree.json: ")
    assert words in str(caught.value)


def test_one_path_is_there_once_and_no_file_is_a_folder():
    with pytest.raises(ValueError, match="'a' is there twice"):
        entries.checked("a/b", GIT, [Entry("a", 1, None, GIT), Entry("a", 2, None, GIT)])
    with pytest.raises(ValueError, match="'a' is a file and the folder of 'a/b/c'"):
        entries.checked("a/b", GIT, [Entry("a/b/c", 1, None, GIT), Entry("a", 2, None, GIT)])


def test_two_million_files_are_refused():
    def endless():
        for number in range(2_000_000):
            yield Entry("%d" % number, 1, None, GIT)
        pytest.fail("all of them were read")
    with pytest.raises(ValueError, match="more than 100000 files"):
        entries.checked("a/b", GIT, endless())
    row = {"path": "a", "size": 1, "sha256": None, "git_sha1": GIT}
    with pytest.raises(ValueError, match="2000000 files, more than 100000"):
        entries.manifest_from_dict({"repo_id": "a/b", "commit": GIT, "entries": [row] * 2_000_000})


@pytest.mark.parametrize(("value", "words"), [
    (None, "manifest: is not an object"), ([], "is not an object"),
    ({"repo_id": "a/b", "commit": GIT}, "entries is not a list"),
    ({"repo_id": "a/b", "commit": GIT, "entries": {"a": 1}}, "entries is not a list"),
    ({"repo_id": "a/b", "commit": GIT, "entries": [1]}, r"entries\[0\] is not an object"),
    ({"repo_id": "a/b", "commit": GIT, "entries": [{}]}, "path None no text"),
    ({"repo_id": "a/b", "commit": "main", "entries": []}, "commit 'main'"),
    ({"commit": GIT, "entries": []}, "repository None"),
])
def test_a_manifest_that_is_none_says_where(value, words):
    with pytest.raises(ValueError, match=words):
        entries.manifest_from_dict(value)


@given(JSON)
def test_no_json_crashes(value):
    try:
        made = entries.manifest_from_dict(value)
    except ValueError as problem:
        assert str(problem).startswith("manifest: ")
    else:
        assert isinstance(made, Manifest)


def _manifest(found):
    try:
        return entries.checked("a/b", GIT, found)
    except ValueError:
        return None


@given(st.lists(ENTRIES, max_size=6).map(_manifest).filter(bool))
def test_a_manifest_survives_the_way_to_another_host(made):
    assert entries.manifest_from_dict(entries.manifest_to_dict(made)) == made
    assert list(made.entries) == sorted(made.entries)


@given(st.lists(ENTRIES, min_size=1, max_size=6, unique_by=lambda one: one.path), st.randoms())
def test_a_fingerprint_is_of_paths_and_hashes_alone(found, random):
    whole = entries.fingerprint(found)
    shuffled = random.sample(found, len(found))
    assert entries.fingerprint(shuffled) == whole
    assert entries.fingerprint(found[1:]) != whole
    other = found[0]._replace(sha256=SHA if found[0].sha256 != SHA else "c" * 64)
    assert entries.fingerprint([other, *found[1:]]) != whole


def test_a_blob_is_named_by_the_sha256_else_as_git_does():
    assert Entry("a", 1, SHA, GIT).blob == SHA
    assert Entry("a", 1, None, GIT).blob == GIT


def test_the_hashes_are_those_of_git_and_of_sha256():
    content = b"some\ncontent"
    git = subprocess.run(["git", "hash-object", "--stdin"], input=content, check=True,
                         stdout=subprocess.PIPE).stdout.decode().strip()
    small, large = (laid_snapshots.entry(path, content) for path in ("a.json", "a.gguf"))
    for entry, wanted in ((small, git), (large, hashlib.sha256(content).hexdigest())):
        digest = entry.digest()
        digest.update(content[:3])
        digest.update(content[3:])
        assert digest.hexdigest() == wanted == entry.blob
