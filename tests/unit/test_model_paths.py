# SPDX-License-Identifier: Apache-2.0
"""A path is taken as it was meant where that can be told, and explained where it cannot."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible.module_utils.firstlight import model_paths
from ansible.module_utils.firstlight.findings import blocking

NAME = "models--Qwen--Qwen3-4B"
FIRST, OTHER = "1cfa9a72" + "0" * 32, "1cfa9b00" + "1" * 32


def repository(cache, commits=(FIRST,), main=None, name=NAME):
    """A repository in a cache, as huggingface_hub lays it out."""
    folder = cache / name
    for commit in commits:
        snapshot = folder / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text("{}")
    (folder / "snapshots").mkdir(parents=True, exist_ok=True)
    (folder / "refs").mkdir()
    if main:
        (folder / "refs" / "main").write_text(main)
    return folder


def resolved(asked):
    """The path and the only note on it, which stops nothing."""
    path, [note] = model_paths.resolve(str(asked))
    assert note["severity"] in ("info", "warning")
    assert note["subject"] == str(asked)
    return path, note


def refused(asked):
    _, notes = model_paths.resolve(str(asked))
    [found] = blocking(notes)
    assert found["subject"] == str(asked)
    return found


def test_a_path_that_is_there_is_as_it_is(tmp_path):
    folder = repository(tmp_path)
    (tmp_path / "m.gguf").write_bytes(b"")
    for path in (folder / "snapshots" / FIRST, tmp_path / "m.gguf",
                 folder / "snapshots" / FIRST / "config.json"):
        assert model_paths.resolve(str(path)) == (str(path), [])


def test_a_path_that_is_nowhere_is_as_it_is(tmp_path):
    for path in (tmp_path / "a" / "b", tmp_path / NAME, tmp_path / NAME / "snapshots" / FIRST):
        assert model_paths.resolve(str(path)) == (str(path), [])


# Addresses.


@pytest.mark.parametrize("before", ["file://", "file://localhost", "FILE:"])
def test_an_address_is_its_path(tmp_path, before):
    (tmp_path / "a b%.gguf").write_bytes(b"")
    path, note = resolved(before + str(tmp_path) + "/a%20b%25.gguf")
    assert path == str(tmp_path / "a b%.gguf")
    assert (note["id"], note["severity"]) == ("model-file-address", "info")


@pytest.mark.parametrize("asked", ["file://fileserver/m.gguf", "file:m.gguf", "file:///%ff",
                                   "file:///a%00b", "file://srv", "file:"])
def test_an_address_that_is_none_is_explained(asked):
    assert refused(asked)["id"] == "model-file-address"


def test_an_address_of_another_host_names_it():
    assert "'srv' is taken for the name of another host" in refused("file://srv/m.gguf")["found"]


# Relative paths.


@pytest.mark.parametrize("asked", ["models/m.gguf", "./m", "~/m", ""])
def test_a_relative_path_says_what_engines_take_it_for(asked):
    found = refused(asked)
    assert found["id"] == "model-path-relative"
    assert "Repo id must be in the form 'repo_name' or 'namespace/repo_name'" in found["found"]


# The folder of a repository.


@pytest.mark.parametrize("tail", ["", "/", "/snapshots", "/snapshots/"])
def test_a_repository_is_the_snapshot_of_its_main(tmp_path, tail):
    folder = repository(tmp_path, [FIRST, OTHER], main=OTHER)
    path, note = resolved(str(folder) + tail)
    assert path == str(folder / "snapshots" / OTHER)
    assert "refs/main" in note["found"]


def test_a_repository_without_main_is_its_only_snapshot(tmp_path):
    folder = repository(tmp_path)
    path, note = resolved(folder)
    assert path == str(folder / "snapshots" / FIRST)
    assert "the only one" in note["found"]


def test_a_main_that_is_not_there_is_none(tmp_path):
    folder = repository(tmp_path, main="f" * 40)
    assert resolved(folder)[0] == str(folder / "snapshots" / FIRST)


@pytest.mark.parametrize("main", ["../../etc", "", "\xff" * 60, None])
def test_of_several_snapshots_none_is_guessed(tmp_path, main):
    found = refused(repository(tmp_path, [FIRST, OTHER], main=main))
    assert found["id"] == "model-path-of-repository"
    assert FIRST in found["found"]
    assert OTHER in found["found"]


def test_a_repository_with_nothing_in_it_says_so(tmp_path):
    assert "no snapshot in it" in refused(repository(tmp_path, []))["found"]


def test_a_file_of_a_repository_lies_in_its_snapshot(tmp_path):
    folder = repository(tmp_path)
    (folder / "snapshots" / FIRST / "m.gguf").write_bytes(b"")
    assert resolved(folder / "m.gguf")[0] == str(folder / "snapshots" / FIRST / "m.gguf")


def test_a_commit_without_snapshots_before_it_is_found(tmp_path):
    folder = repository(tmp_path)
    path, note = resolved(folder / FIRST)
    assert path == str(folder / "snapshots" / FIRST)
    assert note["id"] == "model-path-without-snapshots"


@pytest.mark.parametrize("between", ["", "hub"])
def test_a_repository_by_its_id_is_found_in_a_cache(tmp_path, between):
    folder = repository(tmp_path / between)
    path, notes = model_paths.resolve(str(tmp_path / "Qwen" / "Qwen3-4B"))
    assert path == str(folder / "snapshots" / FIRST)
    assert {one["id"] for one in notes} == {"model-path-of-repository"}
    assert blocking(notes) == []


# Short hashes.


def test_a_short_hash_is_completed_with_a_warning(tmp_path):
    folder = repository(tmp_path, [FIRST, OTHER])
    path, note = resolved(folder / "snapshots" / FIRST[:6])
    assert path == str(folder / "snapshots" / FIRST)
    assert (note["id"], note["severity"]) == ("model-short-hash", "warning")
    assert "1cfa9a stands for " + FIRST in note["found"]
    assert path in note["remedy"]


def test_a_short_hash_before_a_file_is_completed(tmp_path):
    folder = repository(tmp_path)
    path, _ = resolved(folder / "snapshots" / FIRST[:7].upper() / "config.json")
    assert path == str(folder / "snapshots" / FIRST / "config.json")


def test_a_hash_that_fits_two_snapshots_names_both(tmp_path):
    found = refused(repository(tmp_path, [FIRST, OTHER]) / "snapshots" / "1cfa9")
    assert found["id"] == "model-short-hash"
    assert FIRST in found["found"]
    assert OTHER in found["found"]


def test_a_hash_that_fits_none_names_those_that_are_there(tmp_path):
    found = refused(repository(tmp_path) / "snapshots" / "abcdef0")
    assert "no snapshot; there are " + FIRST in found["found"]


def test_a_branch_among_snapshots_is_its_commit(tmp_path):
    folder = repository(tmp_path, [FIRST, OTHER], main=OTHER)
    assert resolved(folder / "snapshots" / "main")[0] == str(folder / "snapshots" / OTHER)


def test_many_snapshots_are_not_all_named(tmp_path):
    commits = ["%040x" % number for number in range(9)]
    found = refused(repository(tmp_path, commits))
    assert "and 4 more" in found["found"]


# Where the cache is.


@pytest.mark.parametrize(("there", "asked"), [("hub", ""), ("", "hub")])
def test_a_cache_that_is_meant_otherwise_is_found_with_a_warning(tmp_path, there, asked):
    folder = repository(tmp_path / there)
    path, note = resolved(tmp_path / asked / NAME / "snapshots" / FIRST)
    assert path == str(folder / "snapshots" / FIRST)
    assert (note["id"], note["severity"]) == ("model-cache-mismatch", "warning")
    for name in ("HF_HOME", "HF_HUB_CACHE=" + str(tmp_path / there)):
        assert name in note["wanted"] + note["remedy"]


def test_a_cache_that_has_the_repository_is_the_one_that_is_meant(tmp_path):
    repository(tmp_path)
    repository(tmp_path / "hub", [OTHER])
    asked = str(tmp_path / NAME / "snapshots" / OTHER)
    assert model_paths.resolve(asked) == (asked, [])


def test_all_that_is_wrong_with_a_path_is_told(tmp_path):
    folder = repository(tmp_path / "hub")
    path, notes = model_paths.resolve("file://%s/%s/snapshots/%s" % (tmp_path, NAME, FIRST[:8]))
    assert path == str(folder / "snapshots" / FIRST)
    assert [one["id"] for one in notes] == [
        "model-file-address", "model-cache-mismatch", "model-short-hash"]
    assert blocking(notes) == []


# A folder of GGUF files.


def test_a_folder_with_one_gguf_file_stands_for_it(tmp_path):
    for name in ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "mmproj-m.gguf", "README.md"):
        (tmp_path / name).write_bytes(b"")
    path, note = resolved(tmp_path)
    assert path == str(tmp_path / "m-00001-of-00002.gguf")
    assert note["severity"] == "info"


def test_a_folder_with_several_gguf_files_names_them(tmp_path):
    for name in ("m-Q4_K_M.gguf", "m-Q8_0.gguf"):
        (tmp_path / name).write_bytes(b"")
    found = refused(tmp_path)
    assert "m-Q4_K_M.gguf, m-Q8_0.gguf" in found["found"]


def test_a_folder_with_a_config_is_itself(tmp_path):
    for name in ("m.gguf", "config.json"):
        (tmp_path / name).write_bytes(b"")
    assert model_paths.resolve(str(tmp_path)) == (str(tmp_path), [])


# Anything at all.


def tree(top):
    """Every path under a folder and when it was changed."""
    return sorted((os.path.join(where, name), os.lstat(os.path.join(where, name)).st_mtime_ns)
                  for where, folders, names in os.walk(top) for name in folders + names)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.sampled_from([
    "hub", NAME, "snapshots", "refs", "main", FIRST, FIRST[:5], OTHER, "..", "", "x", "m.gguf",
    "models--", "Qwen", "Qwen3-4B"]), max_size=5))
def test_no_path_raises_and_nothing_is_changed(tmp_path, parts):
    if not (tmp_path / NAME).exists():
        repository(tmp_path, [FIRST, OTHER], main=OTHER)
        repository(tmp_path / "hub", [FIRST], main="x")
    before = tree(tmp_path)
    path, notes = model_paths.resolve(os.path.join(str(tmp_path), *parts))
    assert path.startswith("/")
    # What was resolved stays so.
    if not blocking(notes):
        assert model_paths.resolve(path)[0] == path
    assert tree(tmp_path) == before
