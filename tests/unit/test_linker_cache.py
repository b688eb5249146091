# SPDX-License-Identifier: Apache-2.0
"""What keeps programs from libcuda is mended in one change, proven, or all is as it was."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import stat
import time
import types

import host_checks
import linker_cache
import pytest
from ansible.module_utils.testing import patch_module_args
from library_root import LDCONFIG, VERSION, catalogs, compiled, module_process, snapshot

from ansible.module_utils.firstlight import paths
from ansible.module_utils.firstlight.host import cuda_probe, ldconfig, library_path
from ansible.module_utils.firstlight.transaction import Transaction

FORK = multiprocessing.get_context("fork")
CONF = ldconfig.CONF
CACHE = "/etc/ld.so.cache"
CATALOGS = catalogs()


@pytest.fixture
def doctor(run_module, library_root):
    """The ids of what host_checks finds."""
    def found(**params):
        told = run_module(host_checks.main, root=library_root.state, **{**CATALOGS, **params})
        return sorted(one["id"] for one in told["findings"])

    return found


@pytest.fixture
def mend(run_module, library_root):
    """Run the module on the host."""
    def run(**params):
        return run_module(linker_cache.main,
                          **{"root": library_root.state, **CATALOGS, **params})

    return run


def place(folder, kind="driver"):
    """Catalogs that know one more place."""
    return {"places": [*CATALOGS["places"], {"id": "test", "path": folder, "kind": kind,
                                             "source": "test"}]}


# What breaks a host. Each gives the findings, exactly, and the options of the modules.


def missing(host):
    host.path(CACHE).unlink()
    return ["linker-cache-missing"], {}


def empty(host):
    host.path(CACHE).write_bytes(b"")
    return ["linker-cache-empty"], {}


def lists_nothing(host):
    # What ldconfig makes where no folder has a library.
    content = host.path(CACHE).read_bytes()
    host.path(CACHE).write_bytes(content[:20] + bytes(8) + content[28:29] + bytes(19))
    return ["linker-cache-empty"], {}


def truncated(length):
    def cut(host):
        content = host.path(CACHE).read_bytes()
        kept = length if length > 0 else len(content) + length
        host.path(CACHE).write_bytes(content[:kept])
        return ["linker-cache-damaged"], {}

    return cut


def damaged(host):
    content = host.path(CACHE).read_bytes()
    host.path(CACHE).write_bytes(b"x" * len(content))
    return ["linker-cache-damaged"], {}


def points_out_of_itself(host):
    content = bytearray(host.path(CACHE).read_bytes())
    content[48 + 4:48 + 8] = b"\xff\xff\xff\x7f"
    host.path(CACHE).write_bytes(content)
    return ["linker-cache-damaged"], {}


def directory(host):
    host.path(CACHE).unlink()
    host.path(CACHE).mkdir()
    return ["linker-cache-directory"], {}


def link_to_nowhere(host):
    host.path(CACHE).unlink()
    host.path(CACHE).symlink_to("nowhere")
    return ["linker-cache-missing"], {}


def unreadable(host):
    host.path(CACHE).chmod(0o600)
    return ["linker-cache-unreadable"], {}


def lacks_one(host):
    host.put("other", "/usr/lib/libnew.so.1")
    compiled(host.path("/usr/lib/libnew.so.1"), "libnew.so.1")
    return ["linker-cache-stale"], {}


def lacks_one_and_its_link(host):
    compiled(host.path("/usr/lib/libnew.so.1.2.3"), "libnew.so.1")
    return ["linker-cache-stale"], {}


def lists_what_is_gone(host):
    host.path("/usr/lib/libother.so.1").unlink()
    host.path("/usr/lib/libother.so.1.0").unlink()
    return ["linker-cache-stale"], {}


def never_listed(host):
    host.path("/usr/lib/gpu").rename(host.path("/usr/lib/away"))
    host.ldconfig()
    host.path("/usr/lib/away").rename(host.path("/usr/lib/gpu"))
    return ["linker-cache-stale"], {}


def unlisted(host):
    host.move_driver("/usr/local/nvidia/lib64")
    return ["libcuda-unlisted"], {}


def unlisted_with_a_space(host):
    host.move_driver("/opt/two words/lib64")
    return ["libcuda-unlisted"], place("/opt/two words/lib64")


def unlisted_without_the_link(host):
    host.path("/usr/lib/gpu/libcuda.so.1").unlink()
    host.move_driver("/usr/local/nvidia/lib64")
    host.path("/usr/local/nvidia/lib64/libcuda.so.1").unlink(missing_ok=True)
    return ["libcuda-unlisted"], {}


def strange_name(name):
    def move(host):
        folder = os.path.join(host.outside, name)
        host.move_driver(folder)
        return ["libcuda-unlisted"], place(folder)

    return move


def has_more_than_the_driver(host):
    """A folder that would come before the system's: only the driver's libraries are named."""
    folder = host.outside + "/lib"
    host.move_driver(folder)
    compiled(host.path(folder + "/libother.so.1"), "libother.so.1")
    compiled(host.path(folder + "/libnvidia-ml.so.1"), "libnvidia-ml.so.1")
    return ["libcuda-unlisted"], place(folder)


def dangling(host):
    host.path("/usr/lib/gpu/libcuda.so.1").unlink()
    host.path("/usr/lib/gpu/libcuda.so.1").symlink_to("libcuda.so.535.1.1")
    return ["link-dangling"], {}


def dangling_plain(host):
    host.path("/usr/lib/gpu/libcuda.so").symlink_to("libcuda.so.535.1.1")
    return ["link-dangling"], {}


def stub_first(host):
    host.stub("/usr/local/cuda-12/lib64/stubs")
    host.configure("000-cuda", "/usr/local/cuda-12/lib64/stubs")
    host.ldconfig()
    return ["libcuda-stub-first"], {}


def stub_that_does_not_say_so(host):
    host.stub("/opt/toolkit/lib")
    host.configure("000-cuda", "/opt/toolkit/lib")
    host.ldconfig()
    return ["libcuda-stub-first"], {}


def compat_shadows(host):
    host.module()
    host.driver("/usr/local/cuda-12/compat", "555.1.1", kind="compat")
    host.configure("000-cuda", "/usr/local/cuda-12/compat")
    host.ldconfig()
    return ["cuda-compat-shadows"], {}


def no_plain_name(host):
    return ["libcuda-plain-missing"], {"pythons": [host.python("3.5.1")]}


BREAKS = {
    "missing": missing, "empty": empty, "lists nothing": lists_nothing, "damaged": damaged,
    **{"truncated at %d" % length: truncated(length) for length in (
        1, 19, 20, 24, 47, 48, 60, 100, -1, -80, -120)},
    "points out of itself": points_out_of_itself, "an empty directory": directory,
    "a link to nowhere": link_to_nowhere,
    "unreadable": unreadable, "lacks one": lacks_one,
    "lacks one and its link": lacks_one_and_its_link, "lists what is gone": lists_what_is_gone,
    "never listed": never_listed,
    "unlisted": unlisted, "unlisted, a space": unlisted_with_a_space,
    "unlisted, no link": unlisted_without_the_link,
    "unlisted, a line break": strange_name("two\nlines"),
    "unlisted, a hash": strange_name("a#b"), "unlisted, an equals sign": strange_name("a=b"),
    "unlisted, an end of space": strange_name("a "), "unlisted, no ASCII": strange_name("\u00fc"),
    "unlisted, more beside it": has_more_than_the_driver,
    "dangling": dangling, "dangling plain": dangling_plain, "stub first": stub_first,
    "stub that does not say so": stub_that_does_not_say_so, "compat shadows": compat_shadows,
    "no plain name": no_plain_name,
}


@pytest.mark.parametrize("name", BREAKS)
def test_each_break_is_told_mended_and_stays_mended(library_root, mend, doctor, name):
    ids, params = BREAKS[name](library_root)
    assert doctor(**params) == ids
    before = library_root.snapshot()

    would = mend(check=True, diff=True, **params)
    assert would["changed"] is True
    assert sorted(one["id"] for one in would["findings"]) == ids
    assert would["blocks"] == [], "what would be mended stops nothing"
    assert library_root.snapshot() == before, "check mode has changed something"

    listed = library_root.listed()
    did = mend(diff=True, **params)
    assert did["changed"] is True
    assert did["actions"] == would["actions"]
    assert did["reasons"]
    assert did["diff"] == would["diff"]
    assert (did["findings"], did["environment"], did["recovered"]) == ([], {}, False)
    assert doctor(**params) == []
    shown = {one["before_header"]: one for one in did["diff"]}
    assert lines(shown[CACHE]["before"]) == versioned(set(listed) - set(library_root.listed()))
    assert lines(shown[CACHE]["after"]) == versioned(set(library_root.listed()) - set(listed))
    after = library_root.snapshot()
    assert shown.get(CONF, {"after": None})["after"] == text_of(after, CONF)
    links = {path: target for path, target in after.items()
             if isinstance(target, str) and target != "folder" and before.get(path) != target}
    assert shown.get("links", {"after": ""})["after"] == "".join(
        "/%s -> %s\n" % link for link in sorted(links.items()))

    again = mend(diff=True, **params)
    assert (again["changed"], again["actions"], again["findings"]) == (False, [], [])
    assert "diff" not in again
    assert library_root.snapshot() == after
    assert stat.S_IMODE(os.stat(library_root.path(CACHE)).st_mode) == 0o644


def lines(text):
    return set(text.splitlines())


def versioned(paths):
    text = "".join("%s => %s\n" % (os.path.basename(path), path) for path in paths
                   if not path.endswith(".so"))
    return lines(text)


def text_of(tree, path):
    return tree[path.lstrip("/")][0].decode() if path.lstrip("/") in tree else None


# What cannot be mended on the host is told, and engines are led around it.


def no_tool(host):
    host.path("/sbin/ldconfig").unlink()
    return ["ldconfig-missing"]


def tool_that_cannot_run(host):
    host.path("/sbin/ldconfig").chmod(0o644)
    return ["ldconfig-not-executable"]


def tool_that_fails(host):
    host.tool("echo 'ldconfig: no such luck' >&2; exit 3")
    return ["ldconfig-fails"]


def full_directory(host):
    host.path(CACHE).unlink()
    host.path(CACHE).mkdir()
    host.path(CACHE + "/kept").write_text("dear")
    return ["linker-cache-directory"]


UNMENDABLE = {"ldconfig missing": no_tool, "ldconfig not executable": tool_that_cannot_run,
              "ldconfig fails": tool_that_fails, "a directory with something in it": full_directory}


@pytest.fixture
def multiarch_root(library_root):
    """A host whose driver is where Debian has it."""
    folder = "/usr/lib/x86_64-linux-gnu"
    library_root.move_driver(folder)
    library_root.configure("multiarch", folder)
    library_root.ldconfig()
    return library_root


@pytest.mark.parametrize("name", UNMENDABLE)
def test_engines_are_led_around_what_cannot_be_mended(multiarch_root, mend, doctor, run_module,
                                                      name):
    host = multiarch_root
    ids = UNMENDABLE[name](host)
    assert doctor() == ids
    system = outside_of_state(host)
    would = mend(check=True, diff=True)
    assert would["changed"] is True
    assert not os.path.exists(host.state + "/libraries"), "check mode has changed something"
    did = mend(diff=True)
    assert (did["changed"], did["actions"], did["diff"]) == (True, would["actions"], would["diff"])
    assert [one["id"] for one in did["findings"]] == ids, "it is told still"
    assert did["environment"] == {"TRITON_LIBCUDA_PATH": host.state + "/libraries"}
    assert did["blocks"] == [], "with that environment nothing does"
    assert outside_of_state(host) == system
    real = "/usr/lib/x86_64-linux-gnu/libcuda.so." + VERSION
    links = {path: os.readlink(os.path.join(host.state, "libraries", path))
             for path in os.listdir(host.state + "/libraries")}
    # By the driver's own link, which an update of it leads elsewhere.
    soname = "/usr/lib/x86_64-linux-gnu/libcuda.so.1"
    assert links == {"libcuda.so": soname, "libcuda.so.1": soname, os.path.basename(real): real}

    again = mend(diff=True)
    assert (again["changed"], again["actions"]) == (False, [])
    assert again["environment"] == did["environment"]
    told = run_module(host_checks.main, root=host.state, **CATALOGS)
    assert told["environment"] == did["environment"]
    assert told["blocks"] == []


def outside_of_state(host):
    return {path: what for path, what in host.snapshot().items()
            if not ("/" + path).startswith(host.state)}


def test_what_ldconfig_says_is_told(library_root, run_module):
    tool_that_fails(library_root)
    told = run_module(host_checks.main, root=library_root.state, **CATALOGS)
    assert "(exit 3): ldconfig: no such luck" in told["findings"][0]["found"]


@pytest.fixture
def no_root(library_root, monkeypatch):
    """Run as somebody who cannot write /etc, nor where the system's libraries are."""
    def refused(path, mode, **how):
        ours = os.path.realpath(path).startswith(os.path.realpath(library_root.state))
        return may(path, mode, **how) and not (mode & os.W_OK and not ours)

    may = os.access
    monkeypatch.setattr(os, "access", refused)


@pytest.mark.parametrize("name", ["missing", "damaged", "dangling", "stub first", "no plain name",
                                  "unlisted"])
def test_without_root_engines_are_led_around(library_root, mend, doctor, no_root, name):
    ids, params = BREAKS[name](library_root)
    assert doctor(**params) == sorted([*ids, "not-root"])
    system = outside_of_state(library_root)
    would = mend(check=True, **params)
    did = mend(**params)
    assert (did["changed"], did["actions"]) == (True, would["actions"])
    assert not [line for line in did["actions"] if "/etc/" in line]
    assert outside_of_state(library_root) == system
    folder = library_root.state + "/libraries"
    assert did["environment"]["TRITON_LIBCUDA_PATH"] == folder
    # The loader of that host does not come to the driver by itself there.
    assert (did["environment"].get("LD_LIBRARY_PATH") == folder) == (
        name in ("dangling", "stub first", "unlisted", "missing", "damaged"))
    assert did["blocks"] == []
    drivers = {one["real"] for one in did["seen"]["libraries"] if one["kind"] == "driver"}
    assert {library_root.leads_to(os.path.join(folder, name))
            for name in ("libcuda.so", "libcuda.so.1")} <= drivers
    again = mend(**params)
    assert (again["changed"], again["environment"]) == (False, did["environment"])
    removed = mend(state="absent", **params)
    assert removed["changed"] is True
    assert not os.path.exists(folder)
    assert mend(state="absent", **params)["changed"] is False


def test_a_host_without_a_gpu_is_mended_too(library_root, mend, doctor):
    library_root.path("/etc/ld.so.conf.d/gpu.conf").unlink()
    for file in library_root.path("/usr/lib/gpu").iterdir():
        file.unlink()
    library_root.ldconfig()
    assert doctor() == []
    assert mend()["changed"] is False
    missing(library_root)
    assert doctor() == ["linker-cache-missing"]
    did = mend()
    assert (did["findings"], did["environment"]) == ([], {})
    assert did["seen"]["loaded"] is None
    assert "/usr/lib/libc.so.6" in library_root.listed()


def test_an_administrators_file_is_kept_byte_for_byte(library_root, mend):
    path = library_root.path("/etc/ld.so.conf.d/99-site.conf")
    content = b"# ours\r\n\n  /usr/lib/gpu\t# driver\n\xff\n/nowhere"
    path.write_bytes(content)
    path.chmod(0o640)
    unlisted(library_root)
    assert mend()["changed"] is True
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (content, 0o640)
    assert mend(state="absent")["changed"] is True
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (content, 0o640)


def test_of_two_versions_none_is_removed(library_root, mend, doctor):
    library_root.module()
    library_root.driver("/usr/lib/older", "535.54.03")
    library_root.configure("older", "/usr/lib/older")
    library_root.ldconfig()
    assert doctor() == ["library-versions-two"]
    assert mend()["changed"] is False


def test_sonames_that_are_ways_lead_to_no_link(library_root, mend, doctor):
    for number, soname in enumerate(("../../evil.so.1", "sub/evil.so.1", "/abs/evil.so.1",
                                     "./evil.so.1", "..", ".", "/")):
        compiled(library_root.path("/usr/lib/libhostile%d.so" % number), soname)
    compiled(library_root.path("/usr/lib/libgood.so.1.2"), "libgood.so.1")
    before = library_root.snapshot()
    missing(library_root)
    assert doctor() == ["linker-cache-missing"]
    did = mend()
    assert did["findings"] == []
    new = {path: what for path, what in outside_of_state(library_root).items()
           if path not in before}
    assert new == {"usr/lib/libgood.so.1": "libgood.so.1.2"}
    assert doctor() == []
    assert mend()["changed"] is False


@pytest.mark.parametrize("soname", [
    "libx.so.1\n/etc: (from x)\n\tlibevil.so.1",
    "libx.so.1\n/etc: (from x)\n\tlibevil.so.1 -> passwd\n\tliby.so.1",
    "libx.so.1\n\tlibevil.so.1 -> ../../etc/passwd\n\tliby.so.1"])
def test_sonames_that_look_like_folders_lead_to_no_link(library_root, mend, soname):
    """What ldconfig prints then cannot be told from what it means; nothing there is believed."""
    compiled(library_root.path("/usr/lib/libhostile.so"), soname)
    library_root.path("/etc/passwd").write_text("kept")
    before = library_root.snapshot()
    missing(library_root)
    mend()
    new = {path for path in outside_of_state(library_root) if path not in before}
    assert new == set()


def test_a_link_that_a_package_owns_is_left(library_root, mend, doctor, monkeypatch, tmp_path):
    owner = tmp_path / "owner"
    owner.write_text("#!/bin/sh\necho \"libcuda1:amd64: $2\"\n")
    owner.chmod(0o755)
    monkeypatch.setattr(library_path, "OWNERS", ([str(tmp_path / "none")], [str(owner), "-S"]))
    ids, _ = dangling(library_root)
    before = outside_of_state(library_root)
    assert doctor() == ids
    did = mend()
    assert [one["id"] for one in did["findings"]] == ids
    assert (did["remedies"], did["blocks"]) == ([], [])
    assert "belongs to the package libcuda1" in did["reasons"][-1]
    assert outside_of_state(library_root) == before
    # Engines are led around it.
    folder = library_root.state + "/libraries"
    assert did["environment"] == {"TRITON_LIBCUDA_PATH": folder, "LD_LIBRARY_PATH": folder}
    assert library_root.leads_to(folder + "/libcuda.so.1") == (
        "/usr/lib/gpu/libcuda.so." + VERSION)
    assert mend()["changed"] is False
    # What else is wrong is mended beside it.
    missing(library_root)
    did = mend()
    assert did["actions"] == ["make %s anew" % CACHE]
    assert [one["id"] for one in did["findings"]] == ids
    assert did["environment"] != {}
    assert mend()["changed"] is False


@pytest.mark.parametrize("target, left", [("/etc/alternatives/gone", True), ("gone", False)])
def test_a_link_of_the_alternatives_is_left(library_root, mend, target, left):
    path = library_root.path("/usr/lib/gpu/libcuda.so.1")
    path.unlink()
    path.symlink_to(target)
    did = mend()
    assert (os.readlink(path) == target) is left
    assert any("belongs to the package update-alternatives" in why
               for why in did["reasons"]) is left
    assert [one["id"] for one in did["findings"]] == (["link-dangling"] if left else [])
    assert mend()["changed"] is False


def test_links_beside_a_library_that_was_only_mounted_are_made(library_root, mend, doctor):
    """As a container has it whose runtime mounts files and runs no ldconfig."""
    folder = "/usr/local/nvidia/lib64"
    library_root.move_driver(folder)
    library_root.path(folder + "/libcuda.so.1").unlink()
    compiled(library_root.path(folder + "/libnvidia-ml.so." + VERSION), "libnvidia-ml.so.1")
    assert doctor() == ["libcuda-unlisted"]
    assert mend()["findings"] == []
    assert os.readlink(library_root.path(folder + "/libnvidia-ml.so.1")) == (
        "libnvidia-ml.so." + VERSION)
    for path in library_root.listed():
        assert library_root.path(path).exists(), path


def test_no_stub_is_linked_where_there_is_nothing_else(library_root, mend, doctor):
    library_root.path("/etc/ld.so.conf.d/gpu.conf").unlink()
    for file in library_root.path("/usr/lib/gpu").iterdir():
        file.unlink()
    library_root.stub("/usr/local/cuda-12/lib64/stubs")
    library_root.ldconfig()
    library_root.module()
    assert doctor() == ["libcuda-missing"]
    assert mend()["changed"] is False
    missing(library_root)
    assert mend()["actions"] == ["make %s anew" % CACHE]
    assert not [path for path in library_root.listed() if "libcuda" in path]


# Hosts of many kinds: what is right on them stays, and what is wrong is not made worse.


def test_a_library_for_compatibility_that_cuda_starts_with_is_there_on_purpose(
        library_root, mend, doctor):
    library_root.module()
    library_root.driver("/usr/local/cuda-12/compat", "555.1.1")
    library_root.configure("000-cuda", "/usr/local/cuda-12/compat")
    library_root.ldconfig()
    assert doctor() == []
    listed = library_root.listed()
    missing(library_root)
    did = mend()
    assert (did.get("msg"), did["actions"], did["findings"]) == (
        None, ["make %s anew" % CACHE], [])
    assert library_root.listed() == listed
    assert did["seen"]["loaded"]["path"] == "/usr/local/cuda-12/compat/libcuda.so.555.1.1"


def test_what_comes_to_light_with_the_new_cache_is_mended_in_the_same_run(library_root, mend,
                                                                         doctor):
    """Without a cache the loader comes to none; with one it comes to compat's first."""
    compat_shadows(library_root)
    missing(library_root)
    assert doctor() == ["linker-cache-missing"]
    did = mend()
    assert (did.get("msg"), did["findings"]) == (None, [])
    assert did["actions"] == ["make %s anew" % CACHE, "write %s: /usr/lib/gpu" % CONF,
                              "make %s anew" % CACHE]
    assert [why.partition(":")[0] for why in did["reasons"]] == [
        "linker-cache-missing", "cuda-compat-shadows"]
    assert mend()["changed"] is False


def test_a_folder_that_ldconfig_was_given_by_hand_is_named(library_root, mend, doctor):
    """It lasts until any package runs ldconfig, as a new cache of ours would."""
    unlisted(library_root)
    library_root.ldconfig("/usr/local/nvidia/lib64")
    assert doctor() == ["libcuda-unconfigured"]
    compiled(library_root.path("/usr/lib/libnew.so.1"), "libnew.so.1")
    assert doctor() == ["libcuda-unconfigured", "linker-cache-stale"]
    assert mend()["findings"] == []
    library_root.ldconfig()
    assert doctor() == []
    assert "/usr/local/nvidia/lib64/libcuda.so.1" in library_root.listed()


def test_what_a_new_cache_no_longer_lists_is_told(library_root, mend, doctor):
    compiled(library_root.path("/opt/client/libclient.so.1"), "libclient.so.1")
    library_root.ldconfig("/opt/client")
    assert doctor() == []
    assert mend()["changed"] is False
    lacks_one(library_root)
    for did in (mend(check=True, diff=True), mend(diff=True)):
        assert did["reasons"][-1] == (
            "no longer listed, as no file names their folders: /opt/client/libclient.so.1")
        assert "/opt/client/libclient.so.1" in did["diff"][0]["before"]


def older_first(host, older, newer):
    """Two drivers, the older first; the loaded kernel module is the newer's."""
    host.module("560.35.03")
    host.driver(older, kind="mismatch")
    host.driver(newer, "560.35.03")


def test_the_driver_of_the_kernel_module_comes_before_another(library_root, mend, doctor):
    older_first(library_root, "/usr/lib/gpu", "/usr/lib/znew")
    library_root.configure("znew", "/usr/lib/znew")
    library_root.ldconfig()
    assert doctor() == ["libcuda-other-first", "library-versions-two"]
    did = mend()
    assert [one["id"] for one in did["findings"]] == ["library-versions-two"]
    assert text_of(library_root.snapshot(), CONF).endswith("\n/usr/lib/znew\n")
    assert did["seen"]["loaded"]["path"] == "/usr/lib/znew/libcuda.so.560.35.03"
    assert mend()["changed"] is False


def test_a_folder_that_we_named_does_not_stay_before_a_new_driver(library_root, mend, doctor):
    unlisted(library_root)
    mend()
    older_first(library_root, "/usr/local/nvidia/lib64", "/usr/lib/new")
    library_root.configure("gpu", "/usr/lib/new")
    library_root.ldconfig()
    assert doctor() == ["libcuda-other-first", "library-versions-two"]
    did = mend()
    assert [one["id"] for one in did["findings"]] == ["library-versions-two"]
    assert text_of(library_root.snapshot(), CONF).endswith("\n/usr/lib/new\n")


def test_of_two_drivers_in_one_folder_the_link_is_left_and_told(library_root, mend, doctor):
    library_root.module("560.35.03")
    library_root.driver("/usr/lib/gpu", kind="mismatch")
    library_root.put("driver", "/usr/lib/gpu/libcuda.so.560.35.03")
    before = library_root.snapshot()
    assert doctor() == ["libcuda-other-first", "library-versions-two"]
    did = mend()
    assert did["remedies"] == []
    assert etc(library_root) == {path: what for path, what in before.items()
                                 if path.startswith("etc")}
    assert library_root.path("/usr/lib/gpu/libcuda.so.1").readlink().name == "libcuda.so." + VERSION


def test_what_an_administrator_put_before_the_system_stays_before_it(library_root, mend, doctor):
    """The driver's folder has libssl too, and to name it first would bring that before theirs."""
    folder = library_root.outside + "/multiarch"
    library_root.move_driver(folder)
    library_root.configure("multiarch", folder)
    library_root.configure("00-admin", "/opt/mine/lib")
    for one in ("/opt/mine/lib", folder):
        compiled(library_root.path(one + "/libssl.so.3"), "libssl.so.3")
        # Of the toolkit, which is not the driver's either.
        compiled(library_root.path(one + "/libnvrtc.so.12"), "libnvrtc.so.12")
    stub_first(library_root)
    order = [path for path in library_root.listed() if "libcuda" not in path]
    assert doctor() == ["libcuda-stub-first"]
    did = mend()
    assert (did.get("msg"), did["findings"]) == (None, [])
    assert [path for path in library_root.listed() if "libcuda" not in path] == order
    links = os.listdir(library_root.state + "/libraries")
    assert sorted(links) == ["libcuda.so", "libcuda.so.1", "libcuda.so." + VERSION]


def test_a_file_that_nothing_takes_in_is_not_written(library_root, mend, doctor):
    unlisted(library_root)
    library_root.path("/etc/ld.so.conf").write_text("/usr/lib\n")
    library_root.ldconfig()
    before = etc(library_root)
    assert doctor() == ["libcuda-unlisted"]
    did = mend()
    assert (did["remedies"], did["blocks"]) == ([], [])
    assert set(did["environment"]) == {"TRITON_LIBCUDA_PATH", "LD_LIBRARY_PATH"}
    assert etc(library_root) == before
    assert mend()["changed"] is False


def test_a_stub_that_the_main_file_names_after_ours_is_got_before(library_root, mend, doctor):
    library_root.stub("/opt/toolkit/lib")
    library_root.path("/etc/ld.so.conf.d/gpu.conf").unlink()
    library_root.path("/etc/ld.so.conf").write_text(
        "include /etc/ld.so.conf.d/*.conf\n/opt/toolkit/lib\n/usr/lib/gpu\n")
    library_root.ldconfig()
    assert doctor() == ["libcuda-stub-first"]
    did = mend()
    assert (did.get("msg"), did["findings"], did["environment"]) == (None, [], {})


def test_another_roots_file_is_not_taken_away(library_root, mend, tmp_path):
    unlisted(library_root)
    mend()
    before = etc(library_root)
    did = mend(root=str(tmp_path / "other"), state="absent")
    assert (did["changed"], did["actions"]) == (False, [])
    assert etc(library_root) == before
    assert mend(state="absent")["changed"] is True
    assert not library_root.path(CONF).exists()


def test_a_file_of_ours_by_name_that_another_wrote_is_not_taken_away(library_root, mend):
    library_root.path(CONF).write_text("/usr/lib/gpu\n")
    library_root.ldconfig()
    before = etc(library_root)
    assert mend(state="absent")["changed"] is False
    assert etc(library_root) == before


def test_our_folder_is_for_everyone_whatever_the_umask(library_root, mend, tmp_path):
    params = has_more_than_the_driver(library_root)[1]
    root = library_root.root / str(tmp_path / "new").lstrip("/")
    root.mkdir()
    (tmp_path / "new").symlink_to(root)
    os.umask(0o077)
    did = mend(root=str(tmp_path / "new/root"), **params)
    assert (did.get("msg"), did["findings"]) == (None, [])
    assert [stat.S_IMODE(os.stat(root / path).st_mode) for path in ("root", "root/libraries")] == [
        0o755, 0o755]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a folder away")
@pytest.mark.parametrize("whose", ["driver", "links"])
def test_no_folder_that_a_user_can_write_is_searched_by_everyone(library_root, mend, whose):
    """Neither with theirs in it nor one of ours that is in their hands."""
    folder = library_root.outside + "/lib"
    library_root.move_driver(folder)
    params = place(folder)
    os.chown({"driver": folder, "links": library_root.state}[whose], 1000, 1000)
    before = etc(library_root)
    did = mend(**params)
    assert [one["id"] for one in did["findings"]] == ["libcuda-unlisted"]
    assert (did["remedies"], bool(did["environment"])) == ([], True)
    assert etc(library_root) == before
    # What needs no folder to be named is mended all the same.
    missing(library_root)
    did = mend(**params)
    assert (did.get("msg"), did["actions"]) == (None, ["make %s anew" % CACHE])
    assert CACHE[1:] in library_root.snapshot()


@pytest.fixture
def closed(library_root, monkeypatch):
    """Have a folder that even root cannot write, as on a file system that is mounted read-only."""
    folders = []
    may = os.access

    def refused(path, mode, **how):
        real = os.path.realpath(path)
        return may(path, mode, **how) and not (mode & os.W_OK and any(
            real.startswith(os.path.realpath(library_root.path(one))) for one in folders))

    monkeypatch.setattr(os, "access", refused)
    return folders.append


def test_a_link_in_a_folder_that_cannot_be_written_is_left_and_told(library_root, mend, doctor,
                                                                   closed):
    closed("/opt/nfs")
    compiled(library_root.path("/opt/nfs/libnew.so.1.2.3"), "libnew.so.1")
    library_root.configure("nfs", "/opt/nfs")
    missing(library_root)
    did = mend()
    assert (did.get("msg"), did["findings"]) == (None, [])
    assert did["reasons"][-1] == (
        "/opt/nfs/libnew.so.1 cannot be made: its folder cannot be written")
    assert os.listdir(library_root.path("/opt/nfs")) == ["libnew.so.1.2.3"]
    assert mend()["changed"] is False


@pytest.mark.parametrize("also", [lambda host: None, missing, lacks_one])
@pytest.mark.parametrize("link", ["dangling", "gone"])
def test_engines_are_led_around_a_link_that_cannot_be_made(library_root, mend, closed, link, also):
    """Once, whatever else is mended beside it."""
    path = library_root.path("/usr/lib/gpu/libcuda.so.1")
    path.unlink()
    if link == "dangling":
        path.symlink_to("libcuda.so.535.1.1")
    also(library_root)
    closed("/usr/lib/gpu")
    before = sorted(os.listdir(path.parent))
    did = mend()
    assert did.get("msg") is None
    assert [one["id"] for one in did["findings"]] == [
        "link-dangling" if link == "dangling" else "linker-cache-stale"]
    assert (did["remedies"], did["blocks"]) == ([], [])
    assert "cannot be made" in " ".join(did["reasons"])
    folder = library_root.state + "/libraries"
    assert did["environment"] == {"TRITON_LIBCUDA_PATH": folder, "LD_LIBRARY_PATH": folder}
    assert library_root.leads_to(folder + "/libcuda.so.1") == "/usr/lib/gpu/libcuda.so." + VERSION
    assert sorted(os.listdir(path.parent)) == before
    assert "libnew" not in str(did["findings"]), "what can be mended is"
    again = mend()
    assert (again["changed"], again["environment"]) == (False, did["environment"])


def test_a_driver_in_a_folder_that_cannot_be_written_is_named(library_root, mend, closed):
    unlisted(library_root)
    compiled(library_root.path("/usr/local/nvidia/lib64/libnvidia-ml.so." + VERSION),
             "libnvidia-ml.so.1")
    closed("/usr/local/nvidia")
    did = mend()
    assert (did.get("msg"), did["findings"], did["environment"]) == (None, [], {})


def test_a_cache_that_is_a_link_is_replaced_by_a_file(library_root, mend, doctor):
    path = library_root.path(CACHE)
    for target in ("../var/cut", "ld.so.cache"):
        library_root.path("/var/cut").write_bytes(b"cut")
        path.unlink()
        path.symlink_to(target)
        assert doctor() == ["linker-cache-damaged"]
        did = mend()
        assert (did.get("msg"), did["findings"], path.is_symlink()) == (None, [], False)
        assert library_root.path("/var/cut").read_bytes() == b"cut"


def test_without_root_what_does_not_concern_engines_is_only_told(library_root, mend, doctor,
                                                                 no_root):
    lacks_one(library_root)
    # Also where nothing says which of two drivers is right.
    library_root.driver("/usr/lib/znew", "560.35.03")
    before = library_root.snapshot()
    did = mend()
    assert "linker-cache-stale" in [one["id"] for one in did["findings"]]
    assert (did["changed"], did["environment"], did["blocks"]) == (False, {}, [])
    assert library_root.snapshot() == before


def test_engines_get_no_libraries_of_the_toolkit(library_root, mend, no_root):
    for name in ("libnvrtc.so.11.2", "libnvJitLink.so.12", "libnvinfer.so.8"):
        compiled(library_root.path("/usr/lib/gpu/" + name), name)
    compiled(library_root.path("/usr/lib/gpu/libnvidia-ml.so.1"), "libnvidia-ml.so.1")
    missing(library_root)
    assert mend()["environment"] != {}
    assert sorted(os.listdir(library_root.state + "/libraries")) == [
        "libcuda.so", "libcuda.so.1", "libcuda.so." + VERSION, "libnvidia-ml.so.1"]


def test_our_links_follow_an_update_of_the_driver(library_root, mend, doctor, no_root):
    """An engine that was started with them may run on, and start again."""
    missing(library_root)
    folder = mend()["environment"]["TRITON_LIBCUDA_PATH"]
    library_root.ldconfig()
    did = mend()
    assert (did["changed"], did["environment"]) == (False, {}), "somebody has mended it"
    shutil.rmtree(library_root.path("/usr/lib/gpu"))
    library_root.driver("/usr/lib/gpu", "560.35.03")
    library_root.ldconfig()
    new = "/usr/lib/gpu/libcuda.so.560.35.03"
    assert library_root.leads_to(folder + "/libcuda.so.1") == new, "at once"
    assert doctor() == []
    did = mend()
    assert (did["changed"], did["environment"]) == (True, {})
    for name in os.listdir(folder):
        assert library_root.leads_to(os.path.join(folder, name)) == new
    assert mend()["changed"] is False


def test_what_is_told_can_be_told_whatever_names_there_are(library_root, doctor, mend,
                                                           monkeypatch):
    name = os.fsdecode(os.fsencode(library_root.outside) + b"/\xff\x1b[31m{{ 1 }}%s")
    library_root.move_driver(name)
    missing(library_root)
    monkeypatch.setenv("LD_LIBRARY_PATH", name)
    assert doctor() == ["libcuda-unlisted", "linker-cache-missing"]
    did = mend()
    assert (did.get("msg"), did["findings"]) == (None, [])
    assert "\x1b" not in "".join(did["actions"])
    json.dumps(did, ensure_ascii=False).encode()
    assert mend()["changed"] is False
    missing(library_root)
    monkeypatch.setattr(linker_cache, "loads", lambda *_: ["a program gets " + name])
    assert "a program gets %s/\\xff\x1b[31m{{ 1 }}%%s" % library_root.outside in mend()["msg"]


# state=absent


@pytest.mark.parametrize("name", ["unlisted", "unlisted, a line break", "stub first"])
def test_what_is_ours_can_be_taken_away(library_root, mend, doctor, name):
    ids, params = BREAKS[name](library_root)
    before = outside_of_state(library_root)
    mend(**params)
    there = library_root.snapshot()
    would = mend(state="absent", check=True, diff=True, **params)
    assert library_root.snapshot() == there
    did = mend(state="absent", diff=True, **params)
    assert (did["changed"], did["actions"]) == (True, would["actions"])
    assert did["diff"] == would["diff"]
    assert [one["id"] for one in did["findings"]] == ids
    after = outside_of_state(library_root)
    # The cache that is made anew holds the same.
    assert after.keys() == before.keys()
    assert {path for path in after if after[path] != before[path]} <= {"etc/ld.so.cache"}
    assert not os.path.exists(library_root.state + "/libraries")
    again = mend(state="absent", **params)
    assert (again["changed"], again["actions"]) == (False, [])


def test_where_nothing_is_ours_nothing_is_taken_away(library_root, mend):
    before = library_root.snapshot()
    assert mend(state="absent")["changed"] is False
    missing(library_root)
    assert mend(state="absent")["changed"] is False, "it mends nothing"
    library_root.ldconfig()
    assert library_root.snapshot() == before


# What goes wrong in the middle: all is as it was.


def everything_wrong(host):
    """A folder in the cache's place, a driver in a folder that has to be linked."""
    ids, params = strange_name("two\nlines")(host)
    directory(host)
    return [*ids, "linker-cache-directory"], params


@pytest.fixture(params=["missing", "empty", "unreadable", "everything", "lacks one and its link"])
def broken(request, library_root):
    """The options of a host that is broken in one way, which takes changes of some kind."""
    break_it = everything_wrong if request.param == "everything" else BREAKS[request.param]
    return break_it(library_root)[1]


def test_a_proof_that_fails_puts_everything_back(library_root, mend, broken, monkeypatch):
    before = library_root.snapshot()
    seen = []

    def fails(*_):
        seen.append(library_root.snapshot())
        raise linker_cache.NotMended("it is not so")

    monkeypatch.setattr(linker_cache, "prove", fails)
    did = mend(**broken)
    assert did["failed"] is True
    assert did["msg"] == "it is not so\nEverything is as it was before."
    assert seen[0] != before, "there was something to put back"
    assert folders_of_ours(library_root.snapshot(), before) == before
    assert not linker_cache.library_path.journal(library_root.state).half_done


def folders_of_ours(now, before):
    """Without folders that are empty now and were not there: nothing hangs on them."""
    return {path: what for path, what in now.items() if path in before or what != "folder"
            and not path.endswith(".lock")}


def test_engines_are_led_around_an_order_that_cannot_be_changed(library_root, mend):
    """A stub that ld.so.conf itself names comes before all that its folder names."""
    library_root.stub("/opt/toolkit/lib")
    library_root.path("/etc/ld.so.conf").write_text(
        "/opt/toolkit/lib\ninclude /etc/ld.so.conf.d/*.conf\n")
    library_root.ldconfig()
    before = etc(library_root)
    did = mend()
    assert [one["id"] for one in did["findings"]] == ["libcuda-stub-first"]
    assert set(did["environment"]) == {"TRITON_LIBCUDA_PATH", "LD_LIBRARY_PATH"}
    assert did["remedies"] == []
    assert etc(library_root) == before
    assert mend()["changed"] is False


def etc(library_root):
    """What the system has, without what is ours."""
    return {path: what for path, what in library_root.snapshot().items()
            if str(path).lstrip("/").startswith("etc")}


def test_a_cache_without_libc_is_no_repair(library_root, mend):
    library_root.path("/usr/lib/libc.so.6").unlink()
    missing(library_root)
    before = library_root.snapshot()
    did = mend()
    assert "ldconfig -p does not list libc" in did["msg"]
    assert folders_of_ours(library_root.snapshot(), before) == before


def test_a_disk_that_is_full_leaves_everything_as_it_was(library_root, mend, broken):
    # As ldconfig does: it leaves what it has written of its temporary file.
    library_root.tool("""
case "$*" in *" -C "*) echo half > "$2/etc/.ld.so.cache.firstlight~"
    echo "ldconfig: Writing of cache data failed: No space left on device" >&2; exit 1;;
esac
exec %s "$@" """ % LDCONFIG)
    before = library_root.snapshot()
    did = mend(**broken)
    assert did["failed"] is True
    assert "No space left on device" in did["msg"]
    assert did["msg"].endswith("\nEverything is as it was before.")
    assert folders_of_ours(library_root.snapshot(), before) == before


@pytest.mark.parametrize("written", ["nothing", "half", "an empty cache"])
def test_a_cache_that_is_not_whole_is_never_put_in_place(library_root, mend, written):
    library_root.tool("""
case "$*" in *" -C "*) %s; exit 0;; esac
exec %s "$@" """ % ({
        "nothing": ":", "an empty cache": ': > "$2/etc/.ld.so.cache.firstlight"',
        "half": 'head -c 60 "$2/kept" > "$2/etc/.ld.so.cache.firstlight"'}[written], LDCONFIG))
    library_root.path(CACHE).rename(library_root.path("/kept"))
    before = library_root.snapshot()
    did = mend()
    assert did["failed"] is True
    assert "ldconfig made a cache that is " in did["msg"]
    assert folders_of_ours(library_root.snapshot(), before) == before


def test_the_cache_is_for_everyone_whatever_ldconfig_makes_of_it(library_root, mend):
    library_root.tool("""%s "$@" || exit
case "$*" in *" -C "*) chmod 0600 "$2/etc/.ld.so.cache.firstlight";; esac""" % LDCONFIG)
    missing(library_root)
    assert mend()["findings"] == []
    assert stat.S_IMODE(os.stat(library_root.path(CACHE)).st_mode) == 0o644


def by_name_and_by_path(**got):
    """What a fresh process gets; ``own`` is what cuInit gives by the library's own path."""
    told = {"path": "/gpu/libcuda.so.550.1", "init": 0, "error": "", "own": 0, **got}

    def load(library, init, env=None):
        if library.startswith("/"):
            return cuda_probe.Loaded(library, told["own"], "", None, "", False)
        assert (init, env) == (True, {"TRITON_LIBCUDA_PATH": "/ours"})
        return cuda_probe.Loaded(told["path"], told["init"], "", None, told["error"], False)

    return load


@pytest.mark.parametrize("got, wrong", [
    ({}, None), ({"init": 999, "own": 999}, None), ({"path": "/same/libcuda.so.550.1"}, None),
    # On purpose, as CUDA starts with it.
    ({"path": "/compat/libcuda.so.550.1"}, None),
    ({"path": "/compat/libcuda.so.550.1", "init": 804, "own": 804}, "gets /compat/libcuda"),
    ({"path": "/stubs/libcuda.so"}, "gets /stubs/libcuda.so, not /gpu/libcuda.so.550.1"),
    ({"path": None, "error": "no such file"}, "gets no such file, not /gpu/libcuda.so.550.1"),
    ({"init": 803, "own": 0}, "cuInit gives 803 (), and 0 with the library's own path")])
def test_what_a_fresh_process_gets_is_the_proof(tmp_path, monkeypatch, got, wrong):
    def library(folder, kind="driver"):
        return {"folder": folder, "kind": kind, "real": folder + "/libcuda.so.550.1",
                "version": "550.1", "listed": folder == "/gpu", "configured": True}

    monkeypatch.setattr(cuda_probe, "load", by_name_and_by_path(**got))
    host = linker_cache.Host({"root": str(tmp_path)}, "/")
    steps = types.SimpleNamespace(repair=types.SimpleNamespace(
        environment={"TRITON_LIBCUDA_PATH": "/ours"}, left=[]))
    said = linker_cache.loads(host, steps, {
        "libraries": [library("/gpu"), library("/same"), library("/stubs", "stub"),
                      library("/compat", "compat")],
        "driver_loaded": True, "kernel_module": "550.1"})
    assert (said == []) is (wrong is None)
    assert wrong is None or wrong in said[0]


def test_a_process_that_gets_another_library_is_no_repair(library_root, mend, monkeypatch):
    missing(library_root)
    before = library_root.snapshot()
    monkeypatch.setattr(linker_cache, "loads", lambda *_: ["a program gets another"])
    assert mend()["msg"].startswith("After the repair it is not right: a program gets another")
    assert folders_of_ours(library_root.snapshot(), before) == before


def test_a_state_folder_that_cannot_be_made_is_told(library_root, mend, tmp_path):
    missing(library_root)
    (tmp_path / "file").write_text("")
    before = library_root.snapshot()
    did = mend(root=str(tmp_path / "file"))
    assert did["failed"] is True
    assert did["msg"].startswith(str(tmp_path / "file"))
    assert did["msg"].endswith("Everything is as it was before.")
    assert library_root.snapshot() == before


def test_a_journal_that_cannot_be_read_is_named(library_root, mend, doctor):
    change = linker_cache.library_path.journal(library_root.state)
    os.makedirs(os.path.dirname(change.path))
    with open(change.path, "w", encoding="utf-8") as file:
        file.write("{")
    before = library_root.snapshot()
    assert doctor() == ["repair-half-done"]
    did = mend()
    assert did["failed"] is True
    assert change.path in did["msg"]
    assert folders_of_ours(library_root.snapshot(), before) == before


# Ended in the middle, and two at once: real processes, a real SIGKILL.


@contextlib.contextmanager
def beside(host, params, patch, output=None):
    """The module in a process of its own; entered when ``patch(ready)`` has called ``ready``."""
    is_ready = FORK.Event()

    def work():
        patch(is_ready.set)
        args = {"root": host.state, **CATALOGS, **params, "_ansible_remote_tmp": host.state}
        with open(output or os.devnull, "w", encoding="utf-8") as file, \
                contextlib.redirect_stdout(file), patch_module_args(args):
            linker_cache.main()

    process = FORK.Process(target=work)
    process.start()
    try:
        assert is_ready.wait(60)
        yield process
    finally:
        process.kill()
        process.join(30)


def stays_before_its_proof(ready):
    def prove(*_):
        ready()
        time.sleep(600)

    linker_cache.prove = prove


def killed_before_its_proof(host, params):
    with beside(host, params, stays_before_its_proof) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.join(30)
        assert process.exitcode == -signal.SIGKILL


def test_a_repair_that_was_killed_is_put_back_and_done_by_the_next(library_root, mend, doctor,
                                                                  broken):
    before = doctor(**broken)
    killed_before_its_proof(library_root, broken)
    now = doctor(**broken)
    assert now == ["repair-half-done"], "it was killed after its change"
    there = library_root.snapshot()
    would = mend(check=True, **broken)
    assert would["changed"] is True
    assert library_root.snapshot() == there
    did = mend(**broken)
    assert (did["changed"], did["recovered"], did["findings"]) == (True, True, [])
    assert before, did["actions"]
    assert doctor(**broken) == []
    again = mend(**broken)
    assert (again["changed"], again["recovered"]) == (False, False)


def test_a_link_that_was_not_yet_in_its_place_is_removed(library_root, mend):
    """Killed between the making of a link beside its place and the move there."""
    dangling(library_root)
    folder = library_root.path("/usr/lib/gpu")

    def stays_before_the_move(ready):
        move = os.rename

        def waits(source, target):
            if str(source).endswith(".libcuda.so.1.new"):
                ready()
                time.sleep(600)
            move(source, target)

        os.rename = waits

    with beside(library_root, {}, stays_before_the_move) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.join(30)
    assert (folder / ".libcuda.so.1.new").is_symlink()
    did = mend()
    assert (did["recovered"], did["findings"]) == (True, [])
    assert sorted(os.listdir(folder)) == ["libcuda.so.1", "libcuda.so." + VERSION]


def test_a_cache_that_others_made_after_a_kill_loses_no_driver(library_root, mend, doctor):
    """Our file is put back, so the folder that their cache lists is named by none."""
    unlisted(library_root)
    with beside(library_root, {}, stays_before_the_cache) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.join(30)
    assert library_root.path(CONF).exists()
    library_root.ldconfig()
    did = mend()
    assert (did["recovered"], did["findings"]) == (True, [])
    library_root.ldconfig()
    assert doctor() == []


def stays_before_the_cache(ready):
    def build(*_):
        ready()
        time.sleep(600)

    linker_cache.build = build


def test_what_can_be_put_back_is_where_something_cannot(library_root, mend, monkeypatch):
    unlisted(library_root)
    before = library_root.snapshot()
    write = paths.write

    def refuses(path, *more, **how):
        if str(path) == str(library_root.path(CACHE)):
            raise OSError(30, "Read-only file system", path)
        write(path, *more, **how)

    with monkeypatch.context() as patch:
        patch.setattr(paths, "write", refuses)
        patch.setattr(linker_cache, "loads", lambda *_: ["a program gets another"])
        did = mend()
    assert did["failed"] is True
    assert "a program gets another" in did["msg"]
    assert "Putting everything back failed too" in did["msg"]
    assert "Read-only file system" in did["msg"]
    assert not library_root.path(CONF).exists()
    # The next run puts back the rest first.
    monkeypatch.setattr(linker_cache, "loads", lambda *_: ["a program gets another"])
    assert mend()["msg"].endswith("Everything is as it was before.")
    assert folders_of_ours(library_root.snapshot(), before) == before


def test_a_repair_that_was_killed_before_the_cache_leaves_what_is_wrong(library_root, mend,
                                                                       doctor):
    everything_wrong(library_root)
    params = place(os.path.join(library_root.outside, "two\nlines"))
    with beside(library_root, params, stays_before_the_cache) as process:
        assert doctor(**params) == ["linker-cache-missing"], "one under way is no finding"
        os.kill(process.pid, signal.SIGKILL)
        process.join(30)
    assert "repair-half-done" in doctor(**params)
    assert "linker-cache-missing" in doctor(**params)
    did = mend(**params)
    assert (did["recovered"], did["findings"]) == (True, [])
    assert did["actions"][0] == "remove the empty folder %s" % CACHE, "it was put back first"
    assert doctor(**params) == []


def test_what_others_made_of_the_cache_since_is_not_put_back(library_root, mend):
    missing(library_root)
    killed_before_its_proof(library_root, {})
    compiled(library_root.path("/usr/lib/libnew.so.1"), "libnew.so.1")
    library_root.ldconfig()
    theirs = os.stat(library_root.path(CACHE))
    content = library_root.path(CACHE).read_bytes()
    did = mend()
    assert (did["recovered"], did["findings"], did["actions"]) == (True, [], [])
    assert os.path.samestat(os.stat(library_root.path(CACHE)), theirs)
    assert library_root.path(CACHE).read_bytes() == content


def test_of_two_repairs_at_once_the_second_finds_nothing_to_do(library_root, tmp_path):
    missing(library_root)
    go_on, second_waits = FORK.Event(), FORK.Event()

    def first(ready):
        build = linker_cache.build

        def held(*how):
            ready()
            assert go_on.wait(60)
            build(*how)

        linker_cache.build = held

    def second(ready):
        apply = linker_cache.apply

        def told(*how):
            second_waits.set()
            return apply(*how)

        linker_cache.apply = told
        ready()

    with beside(library_root, {}, first, tmp_path / "first") as one, \
            beside(library_root, {}, second, tmp_path / "second") as two:
        assert second_waits.wait(60), "it saw what is wrong, and waits for the lock"
        go_on.set()
        one.join(60)
        two.join(60)
    results = [json.loads((tmp_path / name).read_text()) for name in ("first", "second")]
    assert [one["changed"] for one in results] == [True, False]
    assert [one["findings"] for one in results] == [[], []]
    assert results[1]["actions"] == []
    assert results[1]["recovered"] is False, "one under way is not half done"


def test_who_waits_too_long_is_told_of_the_other(library_root, mend, monkeypatch):
    missing(library_root)
    before = library_root.snapshot()
    folder = os.path.join(library_root.state, "journal")
    monkeypatch.setattr(linker_cache.library_path, "journal",
                        lambda root, undo=None: Transaction(folder, "linker_cache", wait_s=0))
    with Transaction(folder, "linker_cache"):
        did = mend()
    assert did["failed"] is True
    assert "(pid %d)" % os.getpid() in did["msg"]
    assert folders_of_ours(library_root.snapshot(), before) == before


# As on a host, with its own loader: a process whose mounts nobody else has.


class Own:
    """A host that is this machine, but for what is made in a folder and in a copy of /etc."""

    def __init__(self, run, folder, libraries):
        self.run, self.folder, self.libraries = run, folder, libraries
        self.gpu, self.sign = str(folder / "gpu lib"), str(folder / "sign")
        os.mkdir(self.gpu)
        self.put("driver", "libcuda.so." + VERSION)
        os.symlink("libcuda.so." + VERSION, os.path.join(self.gpu, "libcuda.so.1"))
        open(self.sign, "w", encoding="utf-8").close()

    def put(self, kind, name, folder=""):
        shutil.copy2(self.libraries / kind, os.path.join(folder or self.gpu, name))

    def mend(self, first=":", before=""):
        params = {"root": str(self.folder / "state"), **CATALOGS, **place(self.gpu)}
        ran = self.run(module_process("linker_cache", params, str(self.folder / "tmp"),
                                      [self.sign], before), first)
        assert ran.stdout.strip(), ran.stderr
        return json.loads(ran.stdout)

    def listed(self):
        ran = self.run(["/sbin/ldconfig", "-p"])
        return ran.stdout if ran.returncode == 0 else ""


@pytest.fixture
def own(in_own_mounts, tmp_path, library_files):
    host = Own(in_own_mounts, tmp_path, library_files)
    if "libcuda.so.1" in host.listed():
        pytest.skip("this machine has a libcuda of its own")
    ran = in_own_mounts(["/sbin/ldconfig"])
    assert ran.returncode == 0, ran.stderr
    return host


def test_the_loader_itself_finds_the_driver_afterwards(own):
    os.rename(own.gpu, own.gpu + "\nof two lines")
    own.gpu += "\nof two lines"
    os.unlink(own.run.etc / "ld.so.cache")
    did = own.mend()
    assert (did.get("msg"), did["changed"], did["findings"]) == (None, True, [])
    assert did["environment"] == {}
    assert did["seen"]["loaded"] == {
        "path": own.gpu + "/libcuda.so." + VERSION, "init": 0, "text": "", "nvml": None,
        "error": "", "hangs": False}
    assert "libcuda.so.1 (" in own.listed()
    assert own.mend()["changed"] is False


def test_the_loader_gets_the_driver_before_a_stub(own, tmp_path):
    stubs = tmp_path / "toolkit"
    stubs.mkdir()
    own.put("stub", "libcuda.so", str(stubs))
    os.symlink("libcuda.so", stubs / "libcuda.so.1")
    (own.run.etc / "ld.so.conf.d" / "000_cuda.conf").write_text("%s\n" % stubs)
    assert own.run(["/sbin/ldconfig"]).returncode == 0
    did = own.mend()
    assert (did.get("msg"), did["findings"]) == (None, [])
    assert did["reasons"][0].startswith("libcuda-stub-first: ")
    assert did["seen"]["loaded"]["path"] == own.gpu + "/libcuda.so." + VERSION


def test_a_library_that_cannot_be_loaded_is_no_repair(own):
    """It is listed, as it should be, and a program does not get it."""
    path = os.path.join(own.gpu, "libcuda.so." + VERSION)
    compiled(path, "libcuda.so.1", "extern int nowhere(void); int cuInit(unsigned flags) "
             "{ return (int)flags + nowhere(); } int (*kept)(void) = nowhere;")
    before = snapshot(own.run.etc)
    did = own.mend()
    assert did["failed"] is True
    assert "undefined symbol: nowhere" in did["msg"]
    assert did["msg"].endswith("Everything is as it was before.")
    assert snapshot(own.run.etc) == before


def test_a_driver_that_does_not_start_is_not_the_matter_of_its_place(own):
    compiled(os.path.join(own.gpu, "libcuda.so." + VERSION), "libcuda.so.1",
             "int cuInit(unsigned flags) { return (int)flags + 999; }")
    did = own.mend()
    assert (did.get("msg"), did["changed"]) == (None, True)
    assert [one["id"] for one in did["findings"]] == ["cuda-init-fails"]


def test_a_read_only_etc_is_gone_around_and_that_is_proven(own):
    os.unlink(own.run.etc / "ld.so.cache")
    read_only = "mount -o remount,bind,ro /etc"
    did = own.mend(first=read_only)
    folder = str(own.folder / "state" / "libraries")
    assert (did.get("msg"), did["changed"]) == (None, True)
    assert did["environment"] == {"TRITON_LIBCUDA_PATH": folder, "LD_LIBRARY_PATH": folder}
    assert sorted(one["id"] for one in did["findings"]) == [
        "libcuda-unlisted", "linker-cache-missing", "root-read-only"]
    assert did["blocks"] == []
    again = own.mend(first=read_only)
    assert (again["changed"], again["environment"]) == (False, did["environment"])
    # Once it can be written, it is mended, and engines need nothing any more.
    did = own.mend()
    assert (did["findings"], did["environment"]) == ([], {})


def test_a_cache_that_is_mounted_is_gone_around(own):
    """Of a file of the same file system, only the list of mounts tells it."""
    cache = own.run.etc / "ld.so.cache"
    cache.write_bytes(b"")
    mounted = "mount --bind /etc/ld.so.cache /etc/ld.so.cache"
    did = own.mend(first=mounted)
    assert (did.get("msg"), did["changed"]) == (None, True)
    assert "linker-cache-empty" in [one["id"] for one in did["findings"]]
    assert (did["remedies"], did["blocks"]) == ([], [])
    assert set(did["environment"]) == {"TRITON_LIBCUDA_PATH", "LD_LIBRARY_PATH"}
    assert own.mend(first=mounted)["changed"] is False
    assert cache.read_bytes() == b""
    assert own.mend()["findings"] == []


def test_a_disk_that_is_really_full_leaves_everything_as_it_was(own):
    os.unlink(own.run.etc / "ld.so.cache")
    # A file system with no room but for our small file.
    full = ('mount -t tmpfs -o size=4M tmpfs /mnt && cp -a /etc/. /mnt/ && '
            'mount --move /mnt /etc && { dd if=/dev/zero of=/etc/filler bs=4k 2>/dev/null; '
            'truncate -s -4096 /etc/filler; find /etc > "%s"; }' % (own.folder / "before"))
    did = own.mend(first=full, before="import atexit, os; atexit.register(os.system, "
                   "'find /etc > \"%s\"')" % (own.folder / "after"))
    assert did["failed"] is True
    assert "No space left on device" in did["msg"]
    assert did["msg"].endswith("Everything is as it was before.")
    assert (own.folder / "before").read_text()
    assert (own.folder / "after").read_text() == (own.folder / "before").read_text()
    # With room again, it is done.
    assert own.mend()["findings"] == []
