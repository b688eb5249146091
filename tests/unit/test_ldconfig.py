# SPDX-License-Identifier: Apache-2.0
"""The linker cache is judged by its bytes, and what ldconfig prints is taken for what it says."""

from __future__ import annotations

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from library_root import compiled

from ansible.module_utils.firstlight.host import ldconfig
from ansible.module_utils.firstlight.host.ldconfig import Configured
from ansible.module_utils.firstlight.host.reading import Reader

CACHE = ldconfig.CACHE


def state(host):
    return ldconfig.cache(host.reader()).state


@pytest.fixture(scope="module")
def content(tmp_path_factory, library_files):
    """A cache as the real ldconfig makes it."""
    from library_root import LibraryRoot

    return LibraryRoot(tmp_path_factory.mktemp("cache"), library_files).path(CACHE).read_bytes()


def test_a_real_cache_is_whole(content):
    state, detail = ldconfig.of_content(content)
    assert (state, detail) == ("ok", "3 libraries")


def test_a_real_cache_is_whole_as_this_machine_has_it():
    if not os.path.isfile(CACHE):
        pytest.skip("this machine has no linker cache")
    with open(CACHE, "rb") as file:
        assert ldconfig.of_content(file.read())[0] == "ok"


def test_a_cache_that_ends_anywhere_is_not_whole(content):
    states = {ldconfig.of_content(content[:length])[0] for length in range(1, len(content))}
    assert states == {"damaged"}
    assert ldconfig.of_content(b"") == ("empty", "no bytes")


def test_wherever_it_ends_real_ldconfig_agrees_or_lists_less(library_root):
    """None that we take for whole is one that ldconfig stumbles over."""
    content = library_root.path(CACHE).read_bytes()
    for length in range(len(content), len(content) - 200, -7):
        library_root.path(CACHE).write_bytes(content[:length])
        told = ldconfig.listing(library_root.reader())
        whole = told.ok and len(list(ldconfig.listed(told.stdout))) == 3
        assert whole or state(library_root) == "damaged", length


@given(st.binary(max_size=200))
def test_of_any_bytes_something_is_said(content):
    assert ldconfig.of_content(content)[0] in ("ok", "empty", "damaged")


@given(st.data())
def test_of_a_real_cache_with_any_damage_something_is_said(content, data):
    at = data.draw(st.integers(0, len(content) - 4))
    damaged = content[:at] + data.draw(st.binary(min_size=4, max_size=4)) + content[at + 4:]
    assert ldconfig.of_content(damaged)[0] in ("ok", "empty", "damaged")


def old(listed, texts=b""):
    """The format before 2.2."""
    return struct.pack("=12sI", b"ld.so-1.7.0\0", listed) + bytes(12 * listed) + texts


@pytest.mark.parametrize("content, said", [
    (old(2, b"/a\0"), ("ok", "2 libraries")), (old(0), ("empty", "no libraries")),
    (old(2, b"/a"), ("damaged", "an entry leads out of it")),
    (old(2), ("damaged", "an entry leads out of it")),
    (old(2)[:-1], ("damaged", "it ends within its 2 entries")),
    (b"ld.so-1.7.0\0", ("damaged", "it does not begin as a cache does")),
    (b"x" * 500, ("damaged", "it does not begin as a cache does"))])
def test_the_older_format_is_read_too(content, said):
    assert ldconfig.of_content(content) == said


@pytest.mark.parametrize("format_", ["new", "compat", "old"])
def test_every_format_that_the_real_one_makes_is_read(library_root, format_):
    library_root.ldconfig("-c", format_)
    content = library_root.path(CACHE).read_bytes()
    assert ldconfig.of_content(content) == ("ok", "3 libraries")
    for length in range(1, len(content)):
        library_root.path(CACHE).write_bytes(content[:length])
        assert state(library_root) == "damaged", length


def test_the_states_of_the_file(library_root):
    path = library_root.path(CACHE)
    content = path.read_bytes()
    assert state(library_root) == "ok"
    path.chmod(0o600)
    told = ldconfig.cache(library_root.reader())
    assert (told.state, told.detail) == ("unreadable", "/etc/ld.so.cache has the mode 0600")
    path.unlink()
    assert state(library_root) == "missing"
    path.symlink_to("nowhere")
    assert state(library_root) == "missing"
    path.unlink()
    path.symlink_to("ld.so.cache")
    told = ldconfig.cache(library_root.reader())
    assert (told.state, told.movable) == ("damaged", True), "a link to itself can be replaced"
    path.unlink()
    path.symlink_to("ld.so.cache.real")
    library_root.path("/etc/ld.so.cache.real").write_bytes(content)
    assert state(library_root) == "ok"
    path.unlink()
    os.mkfifo(path)
    assert state(library_root) == "damaged", "it is not waited for"
    path.unlink()
    path.mkdir()
    assert ldconfig.cache(library_root.reader()).movable is True
    (path / "inside").touch()
    told = ldconfig.cache(library_root.reader())
    assert (told.state, told.movable) == ("directory", False)


@pytest.mark.parametrize("broken", [False, True])
def test_a_cache_that_is_mounted_cannot_be_replaced(library_root, monkeypatch, tmp_path, broken):
    path = library_root.path(CACHE)
    if broken:
        path.write_bytes(b"")
    state = "empty" if broken else "ok"
    mounts = tmp_path / "mountinfo"
    monkeypatch.setattr(ldconfig, "MOUNTS", str(mounts))

    def seen(reader=None):
        told = ldconfig.cache(reader or library_root.reader())
        return told.state, told.movable

    line = "95 90 254:1 /x %s rw,relatime shared:1 - ext4 /dev/vda rw\n"
    mounts.write_text("".join(line % place for place in (
        "/", path.parent, str(path) + ".d", "/etc/ld.so.cache-of-another")))
    assert seen() == (state, True)
    mounts.write_text(line % path)
    assert seen() == (state, False)
    # What has a space in its name is written so there.
    (tmp_path / "really two").mkdir()
    library_root.root.rename(tmp_path / "really two/root")
    mounts.write_text(line % str(tmp_path / "really two/root/etc/ld.so.cache").replace(
        " ", "\\040"))
    assert seen(Reader(str(tmp_path / "really two/root"))) == (state, False)
    mounts.write_text("")
    assert seen(Reader(str(tmp_path / "really two/root"))) == (state, True)


def test_where_nothing_tells_what_is_mounted_the_file_system_does(library_root, monkeypatch):
    monkeypatch.setattr(ldconfig, "MOUNTS", "/nowhere")
    assert ldconfig.cache(library_root.reader()).movable is True
    path = os.path.realpath(library_root.path(CACHE))
    monkeypatch.setattr(os.path, "ismount", lambda one: one == path)
    assert ldconfig.cache(library_root.reader()).movable is False


def test_our_file_is_the_first_of_its_folder():
    names = ["000_cuda.conf", "000-cuda.conf", "00-nvidia.conf", "0.conf", "a.conf", "Z.conf"]
    ours = os.path.basename(ldconfig.CONF)
    assert os.path.dirname(ldconfig.CONF) == ldconfig.CONFIGURED
    assert ldconfig.CONF.endswith(".conf")
    assert min([*names, ours]) == ours
    # As a language sorts: by letters and digits alone.
    assert min([*names, ours], key=lambda name: [c for c in name.lower() if c.isalnum()]) == ours


def test_a_cache_that_the_reader_may_not_read(library_root, monkeypatch):
    def refuse(path, *how, **more):
        if str(path).endswith("ld.so.cache"):
            raise PermissionError(13, "Permission denied", path)
        return read(path, *how, **more)

    read = open
    monkeypatch.setattr("builtins.open", refuse)
    told = ldconfig.cache(library_root.reader())
    assert (told.state, told.detail) == ("unreadable", "/etc/ld.so.cache: Permission denied")


def test_what_cannot_be_looked_at_is_unknown(library_root):
    library_root.path("/etc").rename(library_root.path("/etc.away"))
    library_root.path("/etc").write_text("no folder")
    assert state(library_root) == "unknown"


def test_the_tool(library_root):
    path = library_root.path("/sbin/ldconfig")
    reader = library_root.reader()
    assert ldconfig.tool(reader) == ("ok", "/sbin/ldconfig")
    path.chmod(0o644)
    assert ldconfig.tool(reader) == ("not_executable", "/sbin/ldconfig has the mode 0644")
    path.unlink()
    assert ldconfig.tool(reader) == ("missing", "/sbin/ldconfig does not exist")
    path.mkdir()
    assert ldconfig.tool(reader)[0] == "not_executable"


def test_listing_and_rehearsal_of_the_real_tool_agree(library_root):
    reader = library_root.reader()
    listing = set(ldconfig.listed(ldconfig.listing(reader).stdout))
    would = ldconfig.configured(ldconfig.rehearsal(reader).stdout)
    assert listing == set(would.entries) == {
        ("/usr/lib", "libc.so.6"), ("/usr/lib", "libother.so.1"), ("/usr/lib/gpu", "libcuda.so.1")}
    assert would.entries["/usr/lib", "libother.so.1"] == "libother.so.1.0"
    # Without root it cannot change its root, and names the file as it is from outside.
    assert would.folders["/usr/lib/gpu"].endswith("/etc/ld.so.conf.d/gpu.conf:1")
    assert ldconfig.compare(reader, listing, would) == ([], [], [])


def test_a_rehearsal_changes_nothing(library_root):
    compiled(library_root.path("/usr/lib/libnew.so.1.2"), "libnew.so.1")
    before = library_root.snapshot()
    would = ldconfig.configured(ldconfig.rehearsal(library_root.reader()).stdout)
    assert would.entries["/usr/lib", "libnew.so.1"] == "libnew.so.1.2"
    assert library_root.snapshot() == before


def test_more_folders_come_first(library_root):
    library_root.driver("/opt/two words")
    would = ldconfig.configured(
        ldconfig.rehearsal(library_root.reader(), ["/opt/two words"]).stdout)
    assert list(would.folders)[0] == "/opt/two words"
    assert ("/opt/two words", "libcuda.so.1") in would.entries


def test_what_is_lacking_and_what_is_gone(library_root):
    reader = library_root.reader()
    compiled(library_root.path("/usr/lib/libnew.so.1"), "libnew.so.1")
    for name in ("libother.so.1", "libother.so.1.0"):
        library_root.path("/usr/lib/" + name).unlink()
    listing = set(ldconfig.listed(ldconfig.listing(reader).stdout))
    would = ldconfig.configured(ldconfig.rehearsal(reader).stdout)
    assert ldconfig.compare(reader, listing, would) == (
        ["/usr/lib/libnew.so.1"], ["/usr/lib/libother.so.1"], [])


def test_folders_are_compared_as_they_are(library_root):
    """/lib is /usr/lib on most hosts, and a cache may name either."""
    library_root.path("/lib").rmdir()
    library_root.path("/lib").symlink_to("usr/lib")
    entries = {("/usr/lib", "libc.so.6"): "libc.so.6"}
    assert ldconfig.compare(library_root.reader(), {("/lib", "libc.so.6")},
                            Configured(entries, {})) == ([], [], [])


def test_what_is_listed_of_a_folder_that_is_not_configured_any_more_is_a_stray(library_root):
    there = {("/usr/lib/gpu", "libcuda.so.1"), ("/usr/lib/gpu", "libgone.so.1")}
    assert ldconfig.compare(library_root.reader(), there, Configured({}, {})) == (
        [], ["/usr/lib/gpu/libgone.so.1"], ["/usr/lib/gpu/libcuda.so.1"])
    # By another name, or with nothing in it that would be listed, it is configured.
    library_root.path("/usr/lib/too").symlink_to("gpu")
    for folder in ("/usr/lib/gpu", "/usr/lib/too", "/usr/lib//gpu/"):
        told = ldconfig.compare(library_root.reader(), there, Configured({}, {folder: "x:1"}))
        assert told.strays == [], folder


def test_what_this_user_may_not_look_at_is_not_gone(library_root, monkeypatch):
    def refuse(path, *how, **more):
        if str(path).endswith("/libcuda.so.1"):
            raise PermissionError(13, "Permission denied", path)
        return look(path, *how, **more)

    look = os.stat
    monkeypatch.setattr(os, "stat", refuse)
    there = {("/usr/lib/gpu", "libcuda.so.1"), ("/usr/lib/gpu/file", "libcuda.so.2")}
    library_root.path("/usr/lib/gpu/file").write_text("no folder")
    assert ldconfig.compare(library_root.reader(), there, Configured({}, {"/usr/lib/gpu": ""})) == (
        [], ["/usr/lib/gpu/file/libcuda.so.2"], [])


LISTING = """2 libs found in cache `/etc/ld.so.cache'
\tlibz.so.1 (libc6,x86-64) => /lib/x86_64-linux-gnu/libz.so.1
\tlibm.so.6 (libc6,x86-64, hwcap: "x86-64-v3", OS ABI: Linux 3.2.0) => /lib/a b/libm.so.6
\tlibroot.so (libc6) => /libroot.so
\t../../evil.so.1 (libc6,x86-64) => /usr/lib/../../evil.so.1
\tsub/evil.so.1 (libc6,x86-64) => /usr/lib/sub/evil.so.1
\tlibevil.so.1 (libc6) => /usr/lib/libx.so.1
Cache generated by: ldconfig (Debian GLIBC 2.36-9) stable release version 2.36
"""
REHEARSAL = """/usr/lib/x86_64-linux-gnu: (from /etc/ld.so.conf.d/x86_64-linux-gnu.conf:4)
\tlibz.so.1 -> libz.so.1.2.13
\tlibn.so.1 -> libn.so.1.0 (changed)
\tlibs.so.1 -> libs (1).so (SKIPPED)
\t../evil.so.1 -> libevil.so
\tlibevil.so.1 -> ../evil.so
/opt/a:b (c): (from /etc/ld.so.conf:1)
\tlibq.so -> libq.so
/usr/lib/glibc-hwcaps/x86-64-v3: (hwcap: "x86-64-v3")
\tlibh.so.1 -> libh.so.1
/named on the command line:
\tlibc.so.1 -> libc.so.1.0
/lib: (from <builtin>:0)
"""


def test_lines_of_other_releases():
    assert list(ldconfig.listed(LISTING)) == [
        ("/lib/x86_64-linux-gnu", "libz.so.1"), ("/lib/a b", "libm.so.6"), ("/", "libroot.so")]
    told = ldconfig.configured("\tlibearly.so -> libearly.so\n" + REHEARSAL)
    multiarch = "/usr/lib/x86_64-linux-gnu"
    assert told.entries == {
        (multiarch, "libz.so.1"): "libz.so.1.2.13", (multiarch, "libn.so.1"): "libn.so.1.0",
        (multiarch, "libs.so.1"): "libs (1).so", ("/opt/a:b (c)", "libq.so"): "libq.so",
        ("/usr/lib/glibc-hwcaps/x86-64-v3", "libh.so.1"): "libh.so.1",
        ("/named on the command line", "libc.so.1"): "libc.so.1.0"}
    assert told.folders == {
        multiarch: "/etc/ld.so.conf.d/x86_64-linux-gnu.conf:4", "/opt/a:b (c)": "/etc/ld.so.conf:1",
        "/usr/lib/glibc-hwcaps/x86-64-v3": "", "/named on the command line": "",
        "/lib": "<builtin>:0"}


@given(st.text())
def test_any_text_is_read(text):
    for folder, name in ldconfig.listed(text):
        assert folder.startswith("/")
        assert "/" not in name
    told = ldconfig.configured(text)
    assert all("/" not in name + file for (_, name), file in told.entries.items())


def test_an_empty_cache_lists_nothing_and_ldconfig_says_that_all_is_well(library_root):
    library_root.path(CACHE).write_bytes(b"")
    told = ldconfig.listing(library_root.reader())
    assert (told.rc, list(ldconfig.listed(told.stdout))) == (0, [])


def test_a_failure_comes_with_what_it_says(library_root):
    library_root.path(CACHE).unlink()
    told = ldconfig.as_data(ldconfig.listing(library_root.reader()))
    assert told["rc"] == 1
    assert "Can't open cache file" in told["said"]
    library_root.ldconfig()
    assert ldconfig.as_data(ldconfig.listing(library_root.reader())) == {"rc": 0, "said": ""}


def test_what_is_no_library(library_root, tmp_path):
    reader = library_root.reader()
    library_root.path("/usr/lib/libtext.so").write_text("INPUT(-lc)")
    assert ldconfig.is_library(reader, "/usr/lib", "libc.so.6")
    assert not ldconfig.is_library(reader, "/usr/lib", "libtext.so")
    assert not ldconfig.is_library(reader, "/usr/lib", "nowhere")
    assert not ldconfig.is_library(reader, "/usr", "lib")
