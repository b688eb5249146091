# SPDX-License-Identifier: Apache-2.0
"""The module builds, verifies, repairs and removes the canary."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import canary_model
import pytest

from ansible.module_utils.firstlight import canary


@pytest.fixture
def path(tmp_path):
    return tmp_path / "models" / "canary"


def files(path: Path) -> dict[str, str]:
    """The SHA-256 of every file under a directory, by its path in it."""
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in path.rglob("*")
        if file.is_file()
    }


GOOD = {name: file.sha256 for name, file in canary.FILES.items()}


def test_builds_once(run_module, path):
    first = run_module(canary_model.main, path=str(path))
    assert first["changed"]
    assert first["elapsed_s"] > 0
    assert files(path) == GOOD
    inodes = {name: (path / name).stat().st_ino for name in GOOD}
    second = run_module(canary_model.main, path=str(path))
    assert not second["changed"]
    assert second["elapsed_s"] == 0
    assert inodes == {name: (path / name).stat().st_ino for name in GOOD}


def test_says_what_to_serve_and_what_to_expect(run_module, path):
    result = run_module(canary_model.main, path=str(path))
    assert result["path"] == str(path)
    assert Path(result["gguf"]).is_file()
    assert (Path(result["safetensors"]) / "config.json").is_file()
    assert result["oracle"] == canary.oracle()
    assert result["description"] == canary.describe()


def test_another_user_can_read_it_whatever_the_umask(run_module, path):
    before = os.umask(0o077)
    try:
        run_module(canary_model.main, path=str(path))
    finally:
        os.umask(before)
    for name in GOOD:
        assert (path / name).stat().st_mode & 0o777 == 0o644
    for directory in (path.parent, path, path / canary.SAFETENSORS):
        assert directory.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("name", canary.FILES)
def test_rebuilds_a_corrupt_file_and_only_that(run_module, path, name):
    run_module(canary_model.main, path=str(path))
    inodes = {name: (path / name).stat().st_ino for name in GOOD}
    content = bytearray((path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (path / name).write_bytes(content)
    assert run_module(canary_model.main, path=str(path))["changed"]
    assert files(path) == GOOD
    for other in GOOD.keys() - {name}:
        assert (path / other).stat().st_ino == inodes[other]


def test_rebuilds_a_missing_file(run_module, path):
    run_module(canary_model.main, path=str(path))
    (path / canary.GGUF).unlink()
    assert run_module(canary_model.main, path=str(path))["changed"]
    assert files(path) == GOOD


def test_a_killed_build_leaves_no_half_file_under_the_final_name(run_module, path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(canary_model.os, "fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            canary_model.apply(str(path), canary_model.Plan(build=[canary.GGUF], remove=[]))
    assert [file.name for file in path.glob("*gguf*")] == [canary.GGUF + canary_model.PART]
    assert run_module(canary_model.main, path=str(path))["changed"]
    assert files(path) == GOOD


def test_check_mode_writes_nothing_and_foretells_the_run(run_module, path):
    foretold = run_module(canary_model.main, check=True, diff=True, path=str(path))
    assert foretold["changed"]
    assert not path.parent.exists()
    done = run_module(canary_model.main, diff=True, path=str(path))
    assert foretold.pop("elapsed_s") == 0
    assert foretold.items() <= done.items()
    assert not run_module(canary_model.main, check=True, path=str(path))["changed"]


def test_diff_shows_the_files_that_change(run_module, path):
    run_module(canary_model.main, path=str(path))
    config = path / canary.SAFETENSORS / "config.json"
    config.write_text("{}")
    diff = run_module(canary_model.main, check=True, diff=True, path=str(path))["diff"]
    before, after = (set(diff[key].splitlines()) for key in ("before", "after"))
    assert before - after == {f"{hashlib.sha256(b'{}').hexdigest()}  {config}"}
    assert after - before == {f"{GOOD['safetensors/config.json']}  {config}"}
    assert config.read_text() == "{}"


def test_removes_what_it_made_and_nothing_else(run_module, path):
    run_module(canary_model.main, path=str(path))
    (path / "notes.txt").write_text("mine")
    assert run_module(canary_model.main, check=True, path=str(path), state="absent")["changed"]
    assert set(files(path)) == {*GOOD, "notes.txt"}
    assert run_module(canary_model.main, path=str(path), state="absent")["changed"]
    assert set(files(path)) == {"notes.txt"}
    assert not (path / canary.SAFETENSORS).exists()
    assert not run_module(canary_model.main, path=str(path), state="absent")["changed"]


def test_removes_its_directory_and_what_a_killed_build_left(run_module, path):
    run_module(canary_model.main, path=str(path))
    (path / (canary.GGUF + canary_model.PART)).write_bytes(b"half")
    assert run_module(canary_model.main, path=str(path), state="absent")["changed"]
    assert not path.exists()
    assert path.parent.exists()
    assert not run_module(canary_model.main, path=str(path), state="absent")["changed"]


def test_a_path_that_cannot_be_made_is_named(run_module, tmp_path):
    (tmp_path / "file").write_text("not a directory")
    result = run_module(canary_model.main, path=str(tmp_path / "file" / "canary"))
    assert result["failed"]
    assert str(tmp_path / "file") in result["msg"]
    assert "Set path to" in result["msg"]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_a_path_that_takes_no_files_is_named(run_module):
    result = run_module(canary_model.main, path="/proc/self/canary")
    assert result["failed"]
    assert "/proc/self/canary" in result["msg"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_path_without_permission_is_named(run_module, tmp_path):
    tmp_path.chmod(0o555)
    result = run_module(canary_model.main, path=str(tmp_path / "canary"))
    assert result["failed"]
    assert "become" in result["msg"]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "21 MB"), (errno.EACCES, "become"), (errno.EROFS, "become")],
)
def test_a_failed_write_is_explained_and_leaves_nothing(
    run_module, path, monkeypatch, number, remedy
):
    def fails(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(canary_model.os, "fsync", fails)
    result = run_module(canary_model.main, path=str(path))
    assert result["failed"]
    assert str(path) in result["msg"]
    assert os.strerror(number) in result["msg"]
    assert remedy in result["msg"]
    assert files(path) == {}
