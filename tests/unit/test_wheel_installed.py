# SPDX-License-Identifier: Apache-2.0
"""What was installed comes back byte for byte, whatever became of it and whoever was killed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import shutil
import stat
import subprocess
import sys
import tempfile
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible.module_utils.firstlight.transaction import RollbackFailed
from ansible.module_utils.firstlight.wheels import installed
from ansible.module_utils.firstlight.wheels.installed import Left, NoSpace, Stash

FILES = ("pkg/__init__.py", "pkg/lib.so", "pkg/deep/er/x.py", "pkg-1.0.dist-info/RECORD",
         "single.py", "../bin/tool")
NEW = ("pkg/__init__.py", "pkg/more/y.py", "pkg-2.0.dist-info/RECORD", "single.py", "two.so",
       "../bin/tool", "../bin/other", "../share/new/notes")
OTHERS = ("other/__init__.py", "other/__pycache__/x.cpython-311.pyc", "~old/left", "six.py",
          "__pycache__/six.cpython-311.pyc", "../bin/python")


class Failed(Exception):
    """The scripted failure of a change."""


class Env:
    """A made-up environment."""

    def __init__(self, folder, root=None):
        self.prefix = folder / "env"
        self.site = self.prefix / "site"
        self.root = root or folder / "root"
        for name in (*FILES, *OTHERS):
            self.write(name, "old " + name)
        (self.site / "pkg/link").symlink_to("lib.so")
        (self.site / "pkg/__pycache__").mkdir()
        self.write("pkg/__pycache__/__init__.cpython-311.pyc", "compiled")
        os.chmod(self.site / "pkg/lib.so", 0o755)
        os.chmod(self.site / "pkg/deep", 0o700)
        for number, path in enumerate(sorted(self.prefix.rglob("*"))):
            os.utime(path, ns=(10**18, 10**18 + number), follow_symlinks=False)
        self.stash = Stash(str(self.root), str(self.prefix / "bin/python"))

    def write(self, name, text):
        path = pathlib.Path(os.path.normpath(self.site / name))
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        path.write_text(text)

    def paths(self, names):
        return [os.path.normpath(self.site / name) for name in names]

    def left(self, **changes):
        return Left(**{
            "old": self.paths((*FILES, "pkg/link")), "new": self.paths(NEW),
            "own": self.paths(["pkg", "pkg-1.0.dist-info", "pkg-2.0.dist-info"]),
            "site": str(self.site), "prefix": str(self.prefix), "roots": [str(self.prefix)],
            "size": 1000, **changes})

    def change(self):
        return self.stash.change(str(self.root / "journal"), 0.0)

    def tree(self):
        found = {}
        for path in sorted([self.prefix, *self.prefix.rglob("*")]):
            status = path.lstat()
            what = (os.readlink(path) if path.is_symlink() else "folder" if path.is_dir()
                    else hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file()
                    else "other")
            found[str(path.relative_to(self.prefix))] = (
                what, stat.S_IMODE(status.st_mode), status.st_mtime_ns, status.st_uid)
        return found

    def as_pip_does(self):
        """Remove the old package and put in the new one, and be ended before all is tidy."""
        os.rename(self.site / "pkg", self.site / "~kg")
        os.rename(self.site / "pkg-1.0.dist-info", self.site / "~kg-1.0.dist-info")
        for name in (*NEW, "pkg/more/__pycache__/y.cpython-311.pyc", "two.soa1_b2c3d.tmp",
                     "pkg-2.0.dist-info/RECORDa1_b2c3d.tmp", "__pycache__/single.cpython-311.pyc",
                     "__pycache__/single.cpython-311.pyc.77",
                     "pkg/__pycache__/__init__.cpython-311.pyc"):
            self.write(name, "new " + name)

    def left_over(self):
        return sorted(path.name for path in self.root.rglob("*") if path.suffix != ".lock"
                      and path.name != "journal")


@pytest.fixture
def env(tmp_path):
    return Env(tmp_path)


def test_a_change_that_fails_is_put_back(env):
    before = env.tree()
    with pytest.raises(Failed), env.change() as change:
        env.stash.keep(change, env.left())
        env.as_pip_does()
        assert env.tree() != before
        raise Failed
    assert env.tree() == before
    assert env.stash.was_put_back
    env.stash.forget()
    assert env.left_over() == []


def test_a_change_that_is_done_stays(env):
    with env.change() as change:
        env.stash.keep(change, env.left())
        env.as_pip_does()
        env.stash.done()
        after = env.tree()
    env.stash.forget()
    assert env.tree() == after and env.left_over() == []
    assert not env.stash.was_put_back


def test_what_others_made_meanwhile_stays(env):
    theirs = ("elses/__init__.py", "~elses/x", "../bin/elses", "__pycache__/sing.cpython-311.pyc")
    with pytest.raises(Failed), env.change() as change:
        env.stash.keep(change, env.left())
        env.as_pip_does()
        for name in theirs:
            env.write(name, "somebody else's")
        raise Failed
    for name in theirs:
        assert os.path.exists(env.site / name), name


def test_nothing_is_kept_of_a_package_that_is_not_there(env):
    for name in ("pkg", "pkg-1.0.dist-info"):
        shutil.rmtree(env.site / name)
    before = env.tree()
    with pytest.raises(Failed), env.change() as change:
        env.stash.keep(change, env.left(old=[], new=env.paths(["pkg/__init__.py", "pkg/x/y.py"])))
        env.write("pkg/__init__.py", "new")
        env.write("pkg/x/y.py", "new")
        raise Failed
    assert env.tree() == before


@pytest.fixture
def elsewhere():
    """A folder on another file system than that of the tests."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        if os.stat(folder).st_dev == os.stat(tempfile.gettempdir()).st_dev:
            pytest.skip("this machine has one file system")
        yield pathlib.Path(folder)


def test_on_another_file_system_files_are_kept_beside(tmp_path, elsewhere):
    env = Env(tmp_path, elsewhere)
    before, inode = env.tree(), os.stat(env.site / "pkg/lib.so").st_ino
    with pytest.raises(Failed), env.change() as change:
        env.stash.keep(change, env.left())
        assert os.path.dirname(env.stash.files) == str(env.site)
        env.as_pip_does()
        raise Failed
    env.stash.forget()
    assert env.tree() == before and env.left_over() == []
    assert os.stat(env.site / "pkg/lib.so").st_ino == inode, "no byte was copied"


def test_where_files_cannot_be_linked_they_are_copied(env, monkeypatch):
    before = env.tree()
    monkeypatch.setattr(installed, "_linked", lambda *paths: False)
    with pytest.raises(Failed), env.change() as change:
        env.stash.keep(change, env.left())
        env.as_pip_does()
        raise Failed
    env.stash.forget()
    assert env.tree() == before and env.left_over() == []


def test_copies_need_room_before_anything_is_copied(env, monkeypatch):
    before = env.tree()
    status = os.statvfs(env.site)
    free = status.f_bavail * status.f_frsize
    monkeypatch.setattr(installed, "_linked", lambda *paths: False)
    monkeypatch.setattr(installed, "RESERVE", 0)
    monkeypatch.setattr(installed.shutil, "copy2", lambda *paths: pytest.fail("it was copied"))
    with pytest.raises(NoSpace) as problem, env.change() as change:
        env.stash.keep(change, env.left(size=free + 2**30))
    assert problem.value.needed > free + 2**30, "the copies count too"
    assert env.tree() == before and env.left_over() == []


@pytest.mark.parametrize("obstacle", ["folder", "fifo", "link"])
def test_what_cannot_be_kept_stops_before_anything_changes(env, tmp_path, obstacle):
    path = env.site / "pkg/lib.so"
    if obstacle == "link":
        (env.site / "pkg/deep").rename(tmp_path / "deep")
        (env.site / "pkg/deep").symlink_to(tmp_path / "deep")
    else:
        path.unlink()
        path.mkdir() if obstacle == "folder" else os.mkfifo(path)
    before = env.tree()
    with pytest.raises(OSError) as problem, env.change() as change:
        env.stash.keep(change, env.left())
    assert problem.value.errno in (errno.EISDIR, errno.EINVAL, errno.ENOTDIR)
    assert not env.stash.was_put_back
    assert env.tree() == before and env.left_over() == []


def test_a_file_that_was_changed_in_place_is_told(env):
    with pytest.raises(RollbackFailed, match="changed in place"), env.change() as change:
        env.stash.keep(change, env.left())
        (env.site / "pkg/lib.so").write_text("another, of another size")
        os.unlink(env.site / "single.py")
        raise Failed
    assert (env.site / "single.py").exists(), "the others came back all the same"
    env.stash.forget()
    assert env.left_over(), "what was kept stays for another try"


def test_an_environment_that_was_made_anew_is_left_alone(env):
    change = env.change()
    change.__enter__()
    env.stash.keep(change, env.left())
    change._lock.__exit__()
    # As after a kill; then somebody makes the environment again.
    os.rename(env.prefix, str(env.prefix) + ".old")
    shutil.copytree(str(env.prefix) + ".old", env.prefix, symlinks=True,
                    ignore=shutil.ignore_patterns(installed.BESIDE + "*"))
    env.write("pkg/__init__.py", "of the new environment")
    before = env.tree()
    with env.change() as change:
        assert change.recovered
        env.stash.clear()
    assert env.tree() == before and env.left_over() == []


def test_an_environment_that_was_made_anew_in_its_folder_is_left_alone(env, tmp_path):
    """As `venv --clear` does, and as it is where the number of an inode is given again."""
    change = env.change()
    change.__enter__()
    env.stash.keep(change, env.left())
    change._lock.__exit__()
    shutil.rmtree(env.site)
    env.write("pkg/__init__.py", "of the new environment")
    before = env.tree()
    with env.change() as change:
        assert change.recovered
        env.stash.clear()
    assert env.tree() == before and env.left_over() == []


def test_what_was_there_before_is_nobodys_rubbish(env):
    """Whatever it is called: pip's own names while it works are no others' to lose."""
    for name in ("pkg/lib.so.1", "pkg/__init__.py.20241101", "~kg/left", "two.soa1_b2c3d.tmp",
                 "__pycache__/single.cpython-39.pyc.77", "pkg/data/cache", "single.py.firstlight"):
        env.write(name, "somebody's")
    before = env.tree()
    with pytest.raises(Failed), env.change() as change:
        env.stash.keep(change, env.left())
        os.rename(env.site / "pkg", env.site / "~~g")
        for name in ("pkg/__init__.py", "two.so", "pkg/more/y.py"):
            env.write(name, "new")
        # What is not the package's pip leaves where it is.
        for name in ("lib.so.1", "__init__.py.20241101", "data"):
            os.rename(env.site / "~~g" / name, env.site / "pkg" / name)
        raise Failed
    assert env.tree() == before


def test_what_an_import_writes_into_the_packages_folder_goes(env):
    env.write("pkg/data/theirs", "was there")
    before = env.tree()
    with pytest.raises(Failed), env.change() as change:
        env.stash.keep(change, env.left())
        for name in ("pkg/cache.bin", "pkg/made/x", "pkg/data/more", "pkg-1.0.dist-info/x",
                     "pkg/more/z.py"):
            env.write(name, "written by the import")
        raise Failed
    assert env.tree() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("linked", [True, False])
def test_files_folders_and_links_keep_their_owner(env, monkeypatch, linked):
    for name in ("pkg/lib.so", "pkg/link", "pkg/deep", "pkg/deep/er/x.py"):
        os.chown(env.site / name, 1234, 1235, follow_symlinks=False)
    if not linked:
        monkeypatch.setattr(installed, "_linked", lambda *paths: False)
    before = env.tree()
    with pytest.raises(Failed), env.change() as change:
        env.stash.keep(change, env.left())
        shutil.rmtree(env.site / "pkg")
        env.write("pkg/deep", "a file")
        raise Failed
    assert env.tree() == before
    assert before["site/pkg/link"][3] == before["site/pkg/deep"][3] == 1234


def test_a_folder_that_is_named_by_a_strange_file_stays(env, tmp_path):
    dear = tmp_path / "dear"
    dear.mkdir()
    stale = env.root / installed.FOLDER / (env.stash.name + ".0000")
    stale.mkdir(parents=True)
    (stale / installed.PLACE).write_text(str(dear))
    env.stash.clear()
    assert dear.is_dir() and not stale.exists()


def test_other_environments_have_their_own(env, tmp_path):
    other = Env(tmp_path / "other", env.root)
    with pytest.raises(Failed), env.change() as change:
        env.stash.keep(change, env.left())
        with other.change() as second:
            other.stash.keep(second, other.left())
            other.as_pip_does()
            other.stash.done()
        after = other.tree()
        other.stash.forget()
        env.as_pip_does()
        raise Failed
    assert other.tree() == after


def test_interpreters_of_one_folder_are_one_environment(tmp_path):
    (tmp_path / "env/bin").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "env")
    names = {installed.name(str(tmp_path / path)) for path in (
        "env/bin/python", "env/bin/python3.11", "link/bin/python")}
    assert len(names) == 1 and names != {installed.name("/usr/bin/python3")}


def test_pip_of_a_killed_run_is_ended_before_anything_is_put_back(env, tmp_path):
    before = env.tree()
    change = env.change()
    change.__enter__()
    env.stash.keep(change, env.left())
    env.as_pip_does()
    code = ("import time, pathlib, sys\npathlib.Path(sys.argv[1]).touch()\nwhile True:\n"
            "    pathlib.Path(sys.argv[2]).write_text('pip writes on')\n    time.sleep(0.005)\n")
    pip = subprocess.Popen(
        env.stash.holder([sys.executable, "-c", code, str(tmp_path / "there"),
                          str(env.site / "single.py")]), start_new_session=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "there").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    change._lock.__exit__()
    with Stash(str(env.root), str(env.prefix / "bin/python")).change(
            str(env.root / "journal"), 0.0):
        pass
    assert pip.wait(30) == -9
    assert env.tree() == before


def test_pip_does_not_begin_for_a_change_that_was_put_back(env):
    with pytest.raises(Failed), env.change() as change:
        env.stash.keep(change, env.left())
        raise Failed
    ran = subprocess.run(env.stash.holder(["/bin/echo", "pip begins"]), capture_output=True,
                         text=True, timeout=60)
    assert ran.returncode != 0 and ran.stdout == ""


def test_owners_of_files(tmp_path):
    info = tmp_path / "other_one-1.0.dist-info"
    info.mkdir()
    (info / "RECORD").write_text('other/x.py,sha256=,\n"../bin/a,b",,\n../../away,,\n')
    (tmp_path / "my_own-1.0.dist-info").mkdir()
    (tmp_path / "my_own-1.0.dist-info/RECORD").write_text("mine.py,,\n")
    (tmp_path / "odd-1.0.dist-info").mkdir()
    (tmp_path / "odd-1.0.dist-info/RECORD").write_bytes(b'"\xff\0')
    files = {name: os.path.normpath(tmp_path / name) for name in (
        "other/x.py", "../bin/a,b", "mine.py", "nobody.py")}
    assert installed.owners(files.values(), [str(tmp_path)], "my-own") == {
        files["other/x.py"]: "other_one", files["../bin/a,b"]: "other_one"}


def test_owners_of_files_from_before_there_was_a_record(tmp_path):
    for name, file, text in (
            ("by_files-1.0.egg-info", "installed-files.txt", "../one/a.py\n../top.py\nPKG-INFO\n"),
            ("by_names-1.0-py3.11.egg-info", "top_level.txt", "two\nsingle\n"),
            ("my_own-1.0.egg-info", "top_level.txt", "mine\n"),
            ("none-1.0.egg-info", "PKG-INFO", "two\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(text)
    (tmp_path / "by_files-1.0.egg-info/top_level.txt").write_text("one\n")
    (tmp_path / "plain-1.0.egg-info").write_text("Name: plain\n")
    files = {name: str(tmp_path / name) for name in (
        "one/a.py", "one/b.py", "top.py", "two/deep/x.py", "single.py", "twos.py", "mine/x.py")}
    found = installed.owners(files.values(), [str(tmp_path)], "my-own")
    assert found == {files["one/a.py"]: "by_files", files["top.py"]: "by_files",
                     files["two/deep/x.py"]: "by_names", files["single.py"]: "by_names"}


STEPS = st.lists(st.tuples(st.sampled_from(sorted({*FILES, *NEW})),
                           st.sampled_from(["remove", "write", "link", "folder", "aside"])),
                 max_size=12)


@settings(max_examples=40, deadline=None)
@given(steps=STEPS, cut=st.integers(0, 20))
def test_whatever_is_done_to_the_files_of_a_package_is_put_back(steps, cut):
    """Also where putting back is itself ended at any file, and begun again."""
    with tempfile.TemporaryDirectory() as folder:
        env = Env(pathlib.Path(folder))
        before = env.tree()
        put, count = installed._put_file, []

        def ended(*args):
            count.append(args)
            if len(count) == cut:
                raise OSError(errno.EIO, "the disk stumbles")
            put(*args)

        installed._put_file = ended
        try:
            with contextlib.suppress(Failed, RollbackFailed), env.change() as change:
                env.stash.keep(change, env.left())
                for name, step in steps:
                    disturb(pathlib.Path(os.path.normpath(env.site / name)), step)
                raise Failed
        finally:
            installed._put_file = put
        with env.change():
            env.stash.clear()
        assert env.tree() == before
        assert env.left_over() == []


def disturb(path, step):
    with contextlib.suppress(FileExistsError, NotADirectoryError):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        if step == "aside" and "pkg" in path.parent.name:
            with contextlib.suppress(FileNotFoundError, OSError):
                path.parent.rename(path.parent.with_name("~" + path.parent.name[1:]))
            return
        path.unlink(missing_ok=True)
        if step == "write":
            path.write_text("new")
        if step == "link":
            path.symlink_to("somewhere")
        if step == "folder":
            path.mkdir()


def test_the_list_of_what_is_kept_is_small_and_readable(env):
    with env.change() as change:
        env.stash.keep(change, env.left())
        kept = json.loads(pathlib.Path(env.stash.folder, installed.KEPT).read_text())
        env.stash.done()
    env.stash.forget()
    assert set(kept["files"]) >= set(env.paths(FILES))
    assert env.paths(["two.so", "../bin/other", "pkg-2.0.dist-info", "../share"]) == [
        path for path in env.paths(["two.so", "../bin/other", "pkg-2.0.dist-info", "../share"])
        if path in kept["absent"] or path in kept["to_come"]]
