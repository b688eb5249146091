# SPDX-License-Identifier: Apache-2.0
"""Where our files lie, and that a write is all or nothing."""

from __future__ import annotations

import os

import pytest

from ansible.module_utils.firstlight import paths


@pytest.fixture
def as_user(monkeypatch):
    monkeypatch.setattr(paths.os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    return monkeypatch


def test_root_has_the_systems_place(monkeypatch):
    monkeypatch.setattr(paths.os, "geteuid", lambda: 0)
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert paths.root() == "/var/lib/firstlight"


def test_a_user_has_the_place_of_their_state(as_user):
    assert paths.root() == "/home/ann/.local/state/firstlight"
    as_user.setenv("XDG_STATE_HOME", "/state")
    assert paths.root() == "/state/firstlight"
    for unusable in ("", "state", "./state"):
        as_user.setenv("XDG_STATE_HOME", unusable)
        assert paths.root() == "/home/ann/.local/state/firstlight"


@pytest.mark.parametrize(("asked", "root"), [
    ("/srv/first", "/srv/first"), ("/srv/first/", "/srv/first"), ("/srv/../opt", "/opt"),
    ("//srv/first", "/srv/first"), ("~/first", "/home/ann/first"),
])
def test_what_is_asked_for_wins_in_one_spelling(as_user, asked, root):
    assert paths.root(asked) == root


def test_what_is_not_there_reads_as_none(tmp_path):
    assert paths.read(str(tmp_path / "none")) is None


def test_what_is_there_and_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(IsADirectoryError):
        paths.read(str(tmp_path))


def test_what_is_written_is_read_with_its_mode_whatever_the_umask(tmp_path):
    path = str(tmp_path / "a" / "b" / "file")
    before = os.umask(0o077)
    try:
        paths.write(path, b"\x00one")
        assert os.stat(path).st_mode & 0o777 == 0o644
        paths.write(path, b"two", mode=0o600)
    finally:
        os.umask(before)
    assert paths.read(path) == b"two"
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert os.listdir(os.path.dirname(path)) == ["file"]


def test_a_write_makes_a_new_file_so_a_reader_keeps_the_old(tmp_path):
    path = str(tmp_path / "file")
    paths.write(path, b"old")
    with open(path, "rb") as reader:
        paths.write(path, b"new")
        assert reader.read() == b"old"
    assert paths.read(path) == b"new"


@pytest.mark.parametrize("step", ["fsync", "chmod", "rename"])
@pytest.mark.parametrize("problem", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
        tmp_path, monkeypatch, step, problem):
    path = str(tmp_path / "file")
    paths.write(path, b"old")

    def fails(*_):
        raise problem

    with monkeypatch.context() as patch:
        patch.setattr(paths.os, step, fails)
        with pytest.raises(type(problem)):
            paths.write(path, b"new")
    assert paths.read(path) == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_the_content_is_on_the_disk_before_the_name_and_the_name_after(tmp_path, monkeypatch):
    steps = []

    def noted(name):
        function = getattr(os, name)

        def call(*args):
            steps.append(name)
            return function(*args)

        return call

    for name in ("fsync", "rename"):
        monkeypatch.setattr(paths.os, name, noted(name))
    paths.write(str(tmp_path / "file"), b"content")
    assert steps == ["fsync", "rename", "fsync"]
