# SPDX-License-Identifier: Apache-2.0
"""A change happens as a whole or not at all, whatever ends the process that makes it."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import pathlib
import shutil
import stat
import tempfile
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible.module_utils.firstlight import paths
from ansible.module_utils.firstlight.transaction import Busy, RollbackFailed, Transaction

FORK = multiprocessing.get_context("fork")


class Failed(Exception):
    """The scripted failure of a change."""


@pytest.fixture
def journal(tmp_path):
    return tmp_path / "journal"


def change(journal, undo=lambda: None, name="one", wait_s=0.0):
    return Transaction(str(journal), name, undo, wait_s)


@contextlib.contextmanager
def other_process(task, *args):
    """``task(ready, *args)`` in a process of its own; entered when it has called ``ready()``."""
    is_ready = FORK.Event()
    process = FORK.Process(target=task, args=(is_ready.set,) + args)
    process.start()
    try:
        assert is_ready.wait(30)
        yield process
    finally:
        process.kill()
        process.join(30)


def changes_and_stays(ready, journal, file):
    with change(journal) as half_done:
        half_done.snapshot(str(file))
        file.write_text("new")
        ready()
        time.sleep(600)


def test_leaving_without_an_exception_keeps_the_change(journal, tmp_path):
    file = tmp_path / "file"
    file.write_text("old")
    with change(journal) as kept:
        kept.snapshot(str(file))
        file.write_text("new")
    assert file.read_text() == "new"
    assert not kept.recovered
    assert [path.name for path in journal.iterdir()] == ["one.lock"]


def test_an_exception_puts_back_files_links_and_absence(journal, tmp_path):
    file, link, absent = tmp_path / "file", tmp_path / "link", tmp_path / "absent"
    file.write_bytes(b"old\x00\xff")
    file.chmod(0o640)
    link.symlink_to("somewhere else")
    with pytest.raises(Failed), change(journal) as failing:
        for path in (file, link, absent):
            failing.snapshot(str(path))
        file.write_text("new")
        file.chmod(0o777)
        link.unlink()
        link.write_text("a file now")
        absent.symlink_to(file)
        raise Failed
    assert file.read_bytes() == b"old\x00\xff"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert os.readlink(link) == "somewhere else"
    assert not os.path.lexists(absent)
    assert [path.name for path in journal.iterdir()] == ["one.lock"]


def test_a_file_is_remembered_as_it_was_the_first_time(journal, tmp_path):
    file = tmp_path / "file"
    file.write_text("old")
    with pytest.raises(Failed), change(journal) as failing:
        failing.snapshot(str(file))
        file.write_text("new")
        failing.snapshot(str(file))
        raise Failed
    assert file.read_text() == "old"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_the_owner_comes_back(journal, tmp_path):
    file = tmp_path / "file"
    file.write_text("old")
    os.chown(file, 12, 34)
    with pytest.raises(Failed), change(journal) as failing:
        failing.snapshot(str(file))
        file.unlink()
        raise Failed
    assert (file.stat().st_uid, file.stat().st_gid) == (12, 34)


def test_undo_runs_once_and_sees_the_files_that_are_back(journal, tmp_path):
    file, seen = tmp_path / "file", []
    file.write_text("old")
    with pytest.raises(Failed), change(journal, lambda: seen.append(file.read_text())) as failing:
        failing.snapshot(str(file))
        file.write_text("new")
        raise Failed
    assert seen == ["old"]


def test_undo_does_not_run_when_nothing_was_touched(journal):
    seen = []
    with pytest.raises(Failed), change(journal, lambda: seen.append("undone")):
        raise Failed
    assert seen == []


@pytest.mark.parametrize("before", ["file", "link", "absent"])
def test_a_directory_in_the_place_of_what_was_there_goes(journal, tmp_path, before):
    path = tmp_path / "path"
    if before == "file":
        path.write_text("old")
    elif before == "link":
        path.symlink_to("target")
    with pytest.raises(Failed), change(journal) as failing:
        failing.snapshot(str(path))
        path.unlink(missing_ok=True)
        (path / "below").mkdir(parents=True)
        raise Failed
    assert not path.is_dir()
    assert tree(tmp_path).get("path") == {
        "file": (b"old", 0o644), "link": "target", "absent": None}[before]


@pytest.mark.parametrize("before", ["file", "link", "absent"])
def test_what_lay_in_a_folder_that_is_gone_comes_back(journal, tmp_path, before):
    path = tmp_path / "folder" / "path"
    path.parent.mkdir()
    if before == "file":
        path.write_text("old")
    elif before == "link":
        path.symlink_to("target")
    with pytest.raises(Failed), change(journal) as failing:
        failing.snapshot(str(path))
        shutil.rmtree(path.parent)
        raise Failed
    assert tree(tmp_path).get("folder/path") == {
        "file": (b"old", 0o644), "link": "target", "absent": None}[before]


def test_a_directory_cannot_be_remembered_and_stays(journal, tmp_path):
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    (folder / "inside").write_text("kept")
    file.write_text("old")
    with pytest.raises(OSError, match="folder is neither a file nor a link"), \
            change(journal) as failing:
        failing.snapshot(str(file))
        file.write_text("new")
        failing.snapshot(str(folder))
    assert (folder / "inside").read_text() == "kept"
    assert file.read_text() == "old"


def test_a_killed_change_is_put_back_by_the_next_run(journal, tmp_path):
    file, seen = tmp_path / "file", []
    file.write_text("old")
    with other_process(changes_and_stays, journal, file) as process:
        process.kill()
        process.join(30)
    assert file.read_text() == "new"
    with change(journal, lambda: seen.append(file.read_text())) as next_run:
        assert next_run.recovered
        assert file.read_text() == "old"
    assert seen == ["old"]
    with change(journal) as later:
        assert not later.recovered
    assert seen == ["old"]


def test_the_journal_is_for_its_owner_alone(journal, tmp_path):
    # It holds what the files hold, and a definition may hold a key.
    file = tmp_path / "file"
    file.write_text("secret")
    with change(journal) as changing:
        changing.snapshot(str(file))
        assert stat.S_IMODE((journal / "one.json").stat().st_mode) == 0o600


def test_the_lock_admits_one_and_names_it(journal, tmp_path):
    file = tmp_path / "file"
    with other_process(changes_and_stays, journal, file) as process:
        with pytest.raises(Busy, match=r"one\.lock \(pid %d\)" % process.pid):
            change(journal).__enter__()
        # Who comes too late must not take the other's half-done change for an old one.
        assert file.read_text() == "new"


def test_a_killed_holder_frees_the_lock(journal, tmp_path):
    with other_process(changes_and_stays, journal, tmp_path / "file") as process:
        process.kill()
        process.join(30)
        with change(journal):
            pass
        with other_process(changes_and_stays, journal, tmp_path / "file") as second, \
                pytest.raises(Busy, match="pid %d" % second.pid):
            change(journal).__enter__()


def test_who_waits_for_the_lock_gets_it_when_it_is_free(journal):
    def holds_for_a_moment(ready):
        with change(journal):
            ready()
            time.sleep(0.3)

    with other_process(holds_for_a_moment), change(journal, wait_s=30) as second:
        assert not second.recovered


def test_other_names_do_not_wait_for_each_other(journal, tmp_path):
    with other_process(changes_and_stays, journal, tmp_path / "file"), \
            change(journal, name="two") as other:
        assert not other.recovered


def test_a_restore_that_fails_keeps_the_journal_for_the_next_run(journal, tmp_path):
    file = tmp_path / "file"
    file.write_text("old")

    def cannot():
        raise OSError("the manager is gone")

    with pytest.raises(RollbackFailed) as caught, change(journal, cannot) as failing:
        failing.snapshot(str(file))
        file.write_text("new")
        raise Failed("the engine died")
    said = str(caught.value)
    assert "the manager is gone" in said
    assert "the engine died" in said, "why the change failed must not be lost"
    assert str(journal / "one.json") in said
    assert (journal / "one.json").exists()
    with change(journal) as next_run:
        assert next_run.recovered
    assert file.read_text() == "old"


def test_a_recovery_that_fails_frees_the_lock_and_can_be_tried_again(journal, tmp_path):
    with other_process(changes_and_stays, journal, tmp_path / "file") as process:
        process.kill()
        process.join(30)

    def cannot():
        raise OSError("not yet")

    with pytest.raises(RollbackFailed, match="not yet"):
        change(journal, cannot).__enter__()
    with change(journal) as next_run:
        assert next_run.recovered
    assert not (tmp_path / "file").exists()


def test_one_that_cannot_be_put_back_keeps_no_other_from_it(journal, tmp_path, monkeypatch):
    names = ["first", "second", "third"]
    for name in names:
        (tmp_path / name).write_text("old")
    write, undone = paths.write, []

    def refuses(to, *more, **how):
        if to == str(tmp_path / "second") and more[0] == b"old":
            raise OSError(30, "Read-only file system", to)
        write(to, *more, **how)

    monkeypatch.setattr(paths, "write", refuses)
    with pytest.raises(RollbackFailed) as caught, \
            change(journal, lambda: undone.append(1)) as failing:
        for name in names:
            failing.write(str(tmp_path / name), b"new")
        raise Failed("the engine died")
    assert [(tmp_path / name).read_text() for name in names] == ["old", "new", "old"]
    assert undone == [], "the world would follow what is half back"
    for said in ("the engine died", "Read-only file system", str(journal / "one.json")):
        assert said in str(caught.value)
    monkeypatch.undo()
    with change(journal, lambda: undone.append(1)) as next_run:
        assert next_run.recovered
    assert [(tmp_path / name).read_text() for name in names] == ["old", "old", "old"]
    assert undone == [1]


def test_on_a_full_disk_a_file_is_put_back_over_what_took_its_place(
        journal, tmp_path, monkeypatch):
    file = tmp_path / "unit"
    file.write_text("old")
    file.chmod(0o640)
    write, undone = paths.write, []

    def no_space(to, *more, **how):
        if to == str(file) and more[0] == b"old":
            raise OSError(28, "No space left on device", to)
        write(to, *more, **how)

    monkeypatch.setattr(paths, "write", no_space)
    with pytest.raises(Failed), change(journal, lambda: undone.append(1)) as failing:
        failing.write(str(file), b"longer than it was")
        raise Failed("the engine died")
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("old", 0o640)
    assert undone == [1]


@pytest.mark.parametrize("content", [
    b"", b'{"entries": [{"path": "/x", "ki', b"\xff\xfe", b"[]", b"null", b'{"entries": 5}',
    b'{"entries": [{"kind": "absent"}]}', b'{"entries": [{"path": "/x/y", "kind": "odd"}]}',
    b"{}",
])
def test_a_journal_that_is_not_ours_is_named_and_kept(journal, content):
    journal.mkdir()
    (journal / "one.json").write_bytes(content)
    with pytest.raises(RollbackFailed) as caught:
        change(journal).__enter__()
    assert str(journal / "one.json") in str(caught.value)
    assert (journal / "one.json").read_bytes() == content
    (journal / "one.json").unlink()
    with change(journal) as after:
        assert not after.recovered


# A few names, so that what the steps do collides; one of them lies in a folder.
NAMES = ["a", "b", "folder/c"]
# Where links among them can lead, so that writing through one is covered as well.
LINKED = ["nowhere", "folder/a", "folder/b", "folder/nowhere"]
THING = st.one_of(
    st.none(),
    st.tuples(st.binary(max_size=5), st.sampled_from([0o600, 0o644, 0o755])),
    st.sampled_from(["a", "b", "nowhere"]),
)
STEP = st.one_of(
    st.tuples(st.just("put"), st.sampled_from(NAMES), THING),
    st.tuples(st.just("directory"), st.sampled_from(["a", "b"]), st.none()),
    st.tuples(st.just("rename"), st.sampled_from(NAMES), st.sampled_from(NAMES)),
    st.tuples(st.just("write through"), st.sampled_from(NAMES), st.binary(max_size=5)),
    st.tuples(st.just("remove folder"), st.none(), st.none()),
)


def put(path, thing):
    if isinstance(thing, str):
        path.symlink_to(thing)
    elif thing:
        path.write_bytes(thing[0])
        path.chmod(thing[1])


def take(folder, step):
    what, name, argument = step
    path = folder / (name or "folder")
    if what == "put":
        path.unlink(missing_ok=True)
        put(path, argument)
    elif what == "directory":
        path.unlink(missing_ok=True)
        (path / "below").mkdir(parents=True)
    elif what == "rename":
        path.rename(folder / argument)
    elif what == "write through":
        path.write_bytes(argument)
    else:
        shutil.rmtree(path)


def tree(folder):
    """Everything in a folder but empty folders and journals, as plain data."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file() and "journal" not in name:
            found[name] = (path.read_bytes(), stat.S_IMODE(path.stat().st_mode))
    return found


@settings(max_examples=60, deadline=None)
@given(before=st.tuples(THING, THING, THING), steps=st.lists(STEP, max_size=6),
       killed=st.booleans())
def test_a_failed_change_leaves_the_tree_as_it_was(before, steps, killed):
    """Whatever the change did to the files it had remembered."""
    with tempfile.TemporaryDirectory(prefix="fl-") as top:
        folder = pathlib.Path(top)
        (folder / "folder").mkdir()
        for name, thing in zip(NAMES, before):
            put(folder / name, thing)
        was = tree(folder)
        failing = change(folder / "journal")
        failing.__enter__()
        for name in NAMES + LINKED:
            failing.snapshot(str(folder / name))
        for step in steps:
            with contextlib.suppress(OSError):
                take(folder, step)
        if killed:
            # What a killed process leaves: the journal, and a lock that the kernel has freed.
            failing._lock.__exit__()
            with change(folder / "journal") as next_run:
                assert next_run.recovered
        else:
            failing.__exit__(Failed, Failed("scripted"), None)
        assert tree(folder) == was


def test_the_journal_is_on_disk_before_the_file_changes(journal, tmp_path):
    file = tmp_path / "file"
    file.write_text("old")
    with change(journal) as changing:
        changing.snapshot(str(file))
        entries = json.loads((journal / "one.json").read_text())["entries"]
        assert [entry["path"] for entry in entries] == [str(file)]


# Files that others write too: what is put back is what we made of them, and nothing else.


def made(journal, tmp_path, kind):
    """A change of each kind, begun; ``path`` is what it changed."""
    path = tmp_path / "path"
    begun = change(journal)
    begun.__enter__()
    if kind == "write":
        begun.write(str(path), b"new", 0o600)
    elif kind == "take":
        (tmp_path / "aside").write_bytes(b"new")
        begun.take(str(path), str(tmp_path / "aside"))
    elif kind == "link":
        begun.link(str(path), "new")
    else:
        begun.remove(str(path))
    return begun, path


AFTER = {"write": (b"new", 0o600), "take": (b"new", 0o644), "link": "new", "remove": None}


def before_it(path, before):
    if before == "file":
        path.write_bytes(b"old")
        path.chmod(0o640)
    elif before == "link":
        path.symlink_to("old")
    elif before == "folder":
        path.mkdir(mode=0o711)


def as_it_is(path):
    if path.is_dir() and not path.is_symlink():
        return ("folder", stat.S_IMODE(path.stat().st_mode))
    return tree(path.parent).get(path.name)


@pytest.mark.parametrize("ends", ["kept", "failed", "killed"])
@pytest.mark.parametrize("before", ["file", "link", "absent"])
@pytest.mark.parametrize("kind", AFTER)
def test_each_kind_of_change_is_kept_or_put_back(journal, tmp_path, kind, before, ends):
    before_it(tmp_path / "path", before)
    was = as_it_is(tmp_path / "path")
    begun, path = made(journal, tmp_path, kind)
    assert as_it_is(path) == AFTER[kind]
    if ends == "kept":
        begun.__exit__(None, None, None)
        assert as_it_is(path) == AFTER[kind]
    elif ends == "failed":
        begun.__exit__(Failed, Failed("scripted"), None)
        assert as_it_is(path) == was
    else:
        begun._lock.__exit__()
        with change(journal) as next_run:
            assert next_run.recovered
        assert as_it_is(path) == was
    assert sorted(os.listdir(journal)) == ["one.lock"]
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".new")]


@pytest.mark.parametrize("theirs", ["file", "link", "absent", "folder", "mode"])
@pytest.mark.parametrize("kind", AFTER)
def test_what_others_made_of_it_since_is_theirs(journal, tmp_path, kind, theirs):
    before_it(tmp_path / "path", "file")
    begun, path = made(journal, tmp_path, kind)
    begun._lock.__exit__()
    if theirs == "mode" and isinstance(AFTER[kind], tuple):
        path.chmod(0o604)
    else:
        if os.path.lexists(path):
            path.unlink()
        if theirs == "file":
            path.write_bytes(b"theirs")
        elif theirs == "link":
            path.symlink_to("theirs")
        elif theirs == "folder":
            (path / "inside").mkdir(parents=True)
    now = as_it_is(path)
    with change(journal) as next_run:
        assert next_run.recovered
    if now == AFTER[kind]:
        assert as_it_is(path) == (b"old", 0o640), "that is no change of theirs"
    else:
        assert as_it_is(path) == now


def test_a_file_that_is_only_remembered_comes_back_whatever_others_made_of_it(journal, tmp_path):
    path = tmp_path / "path"
    path.write_bytes(b"old")
    begun = change(journal)
    begun.__enter__()
    begun.snapshot(str(path))
    begun._lock.__exit__()
    path.write_bytes(b"theirs")
    with change(journal):
        assert path.read_bytes() == b"old"


def test_an_empty_folder_can_be_replaced_and_comes_back(journal, tmp_path):
    path = tmp_path / "path"
    before_it(path, "folder")
    with pytest.raises(Failed), change(journal) as failing:
        failing.remove(str(path))
        assert not path.exists()
        failing.write(str(path), b"new")
        raise Failed
    assert as_it_is(path) == ("folder", 0o711)


@pytest.mark.parametrize("how", ["write", "take"])
def test_a_folder_comes_back_where_its_place_was_not_taken_any_more(journal, tmp_path, monkeypatch,
                                                                   how):
    """The second step of two on one path fails: what the first made is ours still."""
    path = tmp_path / "path"
    before_it(path, "folder")
    (tmp_path / "aside").write_bytes(b"new")

    def no_space(*_):
        raise OSError(28, "No space left on device", str(path))

    with pytest.raises(OSError, match="No space"), change(journal) as failing:
        failing.remove(str(path))
        if how == "write":
            # The journal is written as files are: it has its place on another disk.
            write = paths.write
            monkeypatch.setattr(paths, "write", lambda to, *more, **how: (
                no_space() if to == str(path) else write(to, *more, **how)))
            failing.write(str(path), b"new")
        else:
            monkeypatch.setattr(os, "rename", lambda source, to: (
                no_space() if to == str(path) else os.replace(source, to)))
            failing.take(str(path), str(tmp_path / "aside"))
    monkeypatch.undo()
    assert as_it_is(path) == ("folder", 0o711)


def test_a_folder_with_something_in_it_is_not_removed(journal, tmp_path):
    path = tmp_path / "path"
    path.mkdir()
    (path / "inside").write_text("kept")
    with pytest.raises(OSError, match="path is neither"), change(journal) as failing:
        failing.remove(str(path))
    assert (path / "inside").read_text() == "kept"


def test_what_is_not_there_is_removed_without_a_word(journal, tmp_path):
    with change(journal) as removing:
        removing.remove(str(tmp_path / "nowhere"))
    assert sorted(os.listdir(tmp_path)) == ["journal"]


def test_what_is_to_be_taken_has_to_be_there(journal, tmp_path):
    path = tmp_path / "path"
    path.write_bytes(b"old")
    with pytest.raises(FileNotFoundError, match="aside"), change(journal) as failing:
        failing.take(str(path), str(tmp_path / "aside"))
    assert path.read_bytes() == b"old"


def test_a_link_is_made_in_a_folder_that_is_made_for_it(journal, tmp_path):
    link = tmp_path / "new" / "link"
    with change(journal) as linking:
        linking.link(str(link), "somewhere")
    assert os.readlink(link) == "somewhere"
    # What an earlier run left beside it does no harm.
    (tmp_path / "new" / ".link.new").symlink_to("left")
    with change(journal) as linking:
        linking.link(str(link), "elsewhere")
    assert os.readlink(link) == "elsewhere"
    assert os.listdir(tmp_path / "new") == ["link"]


@pytest.mark.parametrize("before", ["file", "link", "absent"])
@pytest.mark.parametrize("killed", [False, True])
def test_a_link_that_was_made_beside_its_place_does_not_stay(journal, tmp_path, monkeypatch, before,
                                                             killed):
    path = tmp_path / "path"
    before_it(path, before)
    was = as_it_is(path)

    def ends(*_):
        raise Failed

    begun = change(journal)
    begun.__enter__()
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", lambda source, to: (
            ends() if to == str(path) else os.replace(source, to)))
        with pytest.raises(Failed):
            begun.link(str(path), "new")
    assert os.readlink(tmp_path / ".path.new") == "new"
    if killed:
        begun._lock.__exit__()
        with change(journal) as next_run:
            assert next_run.recovered
    else:
        begun.__exit__(Failed, Failed("scripted"), None)
    assert as_it_is(path) == was
    assert not os.path.lexists(tmp_path / ".path.new")


def test_a_file_of_that_name_is_not_ours_to_remove(journal, tmp_path):
    theirs = tmp_path / ".path.new"
    theirs.write_text("theirs")
    with pytest.raises(Failed), change(journal) as failing:
        failing.write(str(tmp_path / "path"), b"new")
        raise Failed
    assert theirs.read_text() == "theirs"


def test_only_the_mode_changed_and_comes_back(journal, tmp_path):
    path = tmp_path / "path"
    path.write_bytes(b"same")
    path.chmod(0o600)
    with pytest.raises(Failed), change(journal) as failing:
        failing.write(str(path), b"same", 0o644)
        raise Failed
    assert as_it_is(path) == (b"same", 0o600)


def test_what_is_as_it_was_takes_no_space(journal, tmp_path, monkeypatch):
    """A disk that is full is no reason for a restore to fail."""
    path = tmp_path / "path"
    path.write_bytes(b"old")
    write = paths.write

    def no_space(to, *more, **how):
        if to == str(path):
            raise OSError(28, "No space left on device", to)
        write(to, *more, **how)

    monkeypatch.setattr(paths, "write", no_space)
    with pytest.raises(OSError, match="No space left"), change(journal) as failing:
        failing.write(str(path), b"new")
    assert path.read_bytes() == b"old"
    assert not change(journal).half_done


def test_a_change_under_way_is_told_from_one_that_was_ended(journal, tmp_path):
    one = change(journal)
    assert (one.path, one.half_done) == (str(journal / "one.json"), False)
    assert not journal.exists(), "asking makes nothing"
    with other_process(changes_and_stays, journal, tmp_path / "file") as process:
        assert (one.half_done, one.under_way) == (True, True)
        process.kill()
        process.join(30)
        assert (one.half_done, one.under_way) == (True, False)
    with change(journal):
        assert (one.half_done, one.under_way) == (False, True)
    assert (one.half_done, one.under_way) == (False, False)
