# SPDX-License-Identifier: Apache-2.0
"""What mends the library path: our file, links, the cache; else what leads engines around it."""

from __future__ import annotations

import copy
import os

import library_seen as rig
import pytest
from library_seen import CASES, CHECKS, COMPAT, MODULE, NVIDIA, STUBS, SYSTEM, TRITONS

from ansible.module_utils.firstlight.host.ldconfig import CONF
from ansible.module_utils.firstlight.planning import library_path as judge
from ansible.module_utils.firstlight.planning import library_repair
from ansible.module_utils.firstlight.planning.library_repair import HEADING, SPELLABLE, Ours

ROOT = "/var/lib/firstlight"
FOLDER = ROOT + "/libraries"
SONAME, PLAIN = "libcuda.so.1", "libcuda.so"
FILE = "libcuda.so." + MODULE
COMPANIONS = [SONAME, FILE, "libnvidia-ml.so.1"]


def told(seen, half_done=""):
    return judge.problems(seen, CHECKS, TRITONS, half_done)


def ours(**changes):
    return Ours(**{"conf": None, "companions": COMPANIONS, "shadowed": [], "writable": True,
                   "kept": {}, **changes})


def plan(seen, half_done="", **changes):
    wanted = ours(**{"kept": seen["kept"], **changes})
    return library_repair.repair(seen, told(seen, half_done), wanted, ROOT, FOLDER)


def naming(folder):
    return HEADING % ROOT + folder + "\n"


def links_to(folder, real=None):
    """Our links to the libraries of a folder; to libcuda by its link, where it has one."""
    real = real or "%s/%s" % (folder, SONAME)
    return {SONAME: real, PLAIN: real, **{
        name: "%s/%s" % (folder, name) for name in COMPANIONS if name != SONAME}}


def read_only(seen):
    return {**seen, "etc_writable": False, "read_only": True}


def after(seen, done):
    """The host as it is seen when the repair was done."""
    now = copy.deepcopy(seen)
    place = (done.conf or "").rstrip("\n").rpartition("\n")[2]
    of_ours = place == FOLDER or done.private is not None
    for path, target in done.links.items():
        folder, name = os.path.split(path)
        [library] = [one for one in now["libraries"] if one["folder"] == folder] or [{}]
        library.update({{SONAME: "soname", PLAIN: "plain"}.get(name, "more"): "ok"})
        now["dangling"] = [one for one in now["dangling"] if one["path"] != path]
        assert target
    if of_ours and done.private and place == FOLDER:
        now["libraries"].insert(0, rig.library(FOLDER, real=judge.chosen(seen)["real"],
                                               why="configured in " + CONF))
    if place:
        now["folders"] = {place: CONF + ":2", **now["folders"]}
    if not done.cache:
        return now
    now.update(cache=rig.cache(), listing=rig.call(), unlisted=[], gone=[], strays=[],
               links_missing={})
    for one in now["libraries"]:
        one["configured"] = one["configured"] or one["folder"] == place
        one["listed"] = one["configured"]
    order = list(now["folders"])
    listed = sorted((one for one in now["libraries"] if one["listed"] and one["soname"] == "ok"),
                    key=lambda one: order.index(one["folder"]) if one["folder"] in order else 99)
    if listed and (seen["loaded"] or {}).get("init") in (None, 0, 34, 803, 804):
        now["loaded"] = rig.loaded(listed[0], started(listed[0], seen["kernel_module"]))
    return now


def started(library, module):
    """What CUDA says that starts with this library."""
    if library["kind"] == "stub":
        return 34
    return 803 if module and library["version"] not in (None, module) else 0


# Every break of the table: what can be mended is, once, and nothing else is touched.


@pytest.mark.parametrize("name", CASES)
def test_a_repair_leaves_only_what_takes_a_person(name):
    seen, ids, half_done = CASES[name]
    before = copy.deepcopy(seen)
    found = told(seen, half_done)
    done = plan(seen, half_done)
    assert seen == before
    mended = library_repair.mendable(seen, found)
    assert done.cache == bool(mended)
    assert [one.partition(":")[0] for one in done.reasons][:len(mended)] == [
        one.finding["id"] for one in mended]
    now = after(seen, done)
    left = [one.finding["id"] for one in told(now)]
    assert left == [id_ for id_ in ids if id_ not in {one.finding["id"] for one in mended}]
    # Planned again, there is nothing to do that was not done.
    again = plan(now, conf=done.conf, private=done.private or {})
    assert (again.conf, again.links, again.cache, again.clear) == (done.conf, {}, False, False)
    assert again.environment == done.environment
    assert again.private in (None, done.private)
    assert again.left == [one for one in done.left if not one.startswith("no longer listed")]


@pytest.mark.parametrize("name", [name for name in CASES if not CASES[name][1]])
def test_of_a_host_in_order_nothing_is_touched(name):
    done = plan(CASES[name][0])
    assert done == library_repair.Repair(None, {}, None, False, False, {}, [], [])
    assert plan(CASES[name][0], conf="as it is\n").conf == "as it is\n"


# What each break takes.


@pytest.mark.parametrize("name", [
    "the cache is missing", "the cache is empty", "the cache is damaged",
    "the cache is unreadable", "the cache is missing, and no GPU", "a library is not listed",
    "a library is listed and gone", "libcuda.so.1 is not listed",
    "a repair that was ended in the middle", "the cache is missing, and libcuda.so.1 is in a "
    "folder that is configured"])
def test_where_only_the_cache_is_wrong_only_it_is_made_anew(name):
    done = plan(CASES[name][0], CASES[name][2])
    assert done._replace(reasons=[]) == library_repair.Repair(
        None, {}, None, True, False, {}, [], [])


def test_an_empty_folder_in_its_place_is_cleared_first():
    done = plan(CASES["the cache is an empty directory"][0])
    assert (done.cache, done.clear, done.environment) == (True, True, {})


def test_a_folder_with_something_in_it_is_left_and_engines_are_led_around():
    for libraries in ([], [rig.elsewhere()]):
        done = plan(rig.broken_cache("directory", *libraries))
        assert (done.cache, done.clear, done.conf, done.links) == (False, False, None, {})
        assert done.environment["TRITON_LIBCUDA_PATH"] == FOLDER


def test_the_driver_s_folder_is_named_before_all_others():
    done = plan(CASES["the driver is where nobody looks"][0])
    assert (done.conf, done.links, done.private) == (naming(NVIDIA), {}, None)
    assert (done.cache, done.environment) == (True, {})
    assert os.path.basename(CONF) < "000_cuda.conf"
    assert CONF.endswith(".conf")


@pytest.mark.parametrize("changes, target", [
    ({}, FILE),
    # The link that is made leads to the library of the loaded module, not to the newest.
    ({"version": "999.1", "others": [MODULE], "real": NVIDIA + "/libcuda.so.999.1"}, FILE),
    ({"real": "/opt/driver/" + FILE}, "/opt/driver/" + FILE),
])
def test_a_folder_without_the_link_gets_it(changes, target):
    library = rig.elsewhere(soname="missing", plain="missing", path=NVIDIA + "/" + FILE, **changes)
    done = plan(rig.seen(library))
    assert done.links == {NVIDIA + "/libcuda.so.1": target}
    assert done.conf == naming(NVIDIA)


def test_links_that_ldconfig_would_make_in_the_folder_are_made():
    more = {NVIDIA + "/libnvidia-ml.so.1": "libnvidia-ml.so." + MODULE}
    assert plan(rig.seen(rig.elsewhere()), links=more).links == more
    missing = {"/usr/local/lib/libfirst.so.1": "libfirst.so.1.2"}
    assert plan(rig.seen(unlisted=list(missing), links_missing=missing)).links == missing
    # Where nothing is wrong, no link is made that ldconfig would make.
    assert plan(rig.seen(links_missing=missing)).links == {}


def test_a_link_that_is_listed_and_gone_is_made_again():
    seen = CASES["libcuda.so.1 is listed and no more"][0]
    assert plan(seen).links == {SYSTEM + "/libcuda.so.1": FILE}


def test_a_link_that_leads_nowhere_is_turned_to_the_driver_s():
    plain = {"path": SYSTEM + "/libcuda.so", "target": "libcuda.so.1"}
    soname = rig.DANGLING
    for found, links in (
            ([soname], {soname["path"]: FILE}),
            ([plain, soname], {soname["path"]: FILE, plain["path"]: SONAME})):
        seen = rig.seen(rig.library(soname="dangling", plain="ok"), dangling=found,
                        loaded=rig.loaded())
        assert plan(seen).links == links
    seen = rig.seen(rig.library(soname="missing", plain="dangling"), dangling=[plain],
                    loaded=rig.loaded())
    assert plan(seen).links == {soname["path"]: FILE, plain["path"]: SONAME}


def test_a_link_that_leads_nowhere_where_no_driver_is_is_not_ours():
    stray = {"path": "/opt/x/libcuda.so.1", "target": "gone"}
    done = plan(rig.seen(dangling=[stray]))
    assert (done.links, done.cache) == ({}, False)


def test_what_a_package_owns_is_left_and_said():
    seen = CASES["the same, and a package owns it"][0]
    path = rig.DANGLING["path"]
    assert told(seen) == told({**seen, "etc_writable": False})
    done = plan(seen)
    assert done.links == {}
    assert done.left == ["%s belongs to the package libcuda1: install that anew" % path]
    # There is nothing to do then, in this run or in the next; engines are led around.
    assert (done.cache, done.conf) == (False, None)
    assert set(done.environment) == {"TRITON_LIBCUDA_PATH", "LD_LIBRARY_PATH"}
    assert done.private == links_to(SYSTEM, "%s/%s" % (SYSTEM, FILE))


def test_beside_what_a_package_owns_the_rest_is_mended():
    plain = {"path": SYSTEM + "/libcuda.so", "target": "libcuda.so.1"}
    seen = rig.seen(rig.library(soname="dangling", plain="dangling"),
                    dangling=[plain, rig.DANGLING], loaded=rig.loaded(), kept=rig.OWNED)
    done = plan(seen)
    # Not to the link that leads nowhere still.
    assert done.links == {plain["path"]: FILE}
    assert (done.cache, len(done.left)) == (True, 1)
    done = plan({**seen, "cache": rig.cache("missing"),
                 "kept": dict.fromkeys([plain["path"], rig.DANGLING["path"]], "is libcuda1's")})
    assert (done.cache, done.links, len(done.left)) == (True, {}, 2)


def test_a_link_in_a_folder_that_cannot_be_written_is_left_and_said():
    closed = "%s cannot be made: its folder cannot be written" % rig.DANGLING["path"]
    done = plan(CASES["the same, and its folder cannot be written"][0])
    assert (done.cache, done.links, done.left) == (False, {}, [closed])
    assert set(done.environment) == {"TRITON_LIBCUDA_PATH", "LD_LIBRARY_PATH"}
    # With what can be mended beside it the cache is made anew, and then engines are led around.
    seen = rig.seen(rig.library(soname="missing"), loaded=rig.loaded(), kept=rig.CLOSED,
                    unlisted=["/usr/local/lib/libfirst.so.1"])
    assert [one.helps for one in told(seen)] == ["linker_cache"]
    done = plan(seen)
    assert (done.cache, done.links, done.left) == (True, {}, [closed])
    now = after(seen, done)
    assert [(one.finding["id"], one.helps) for one in told(now)] == [("linker-cache-stale", "")]
    assert (plan(now).cache, plan(now).left) == (False, [closed])
    assert set(plan(now).environment) == {"TRITON_LIBCUDA_PATH", "LD_LIBRARY_PATH"}
    # Among those that ldconfig would make as well.
    missing = {"/usr/local/lib/libfirst.so.1": "libfirst.so.1.2", "/opt/a/libx.so.1": "libx.so.1.2"}
    done = plan(rig.broken_cache("missing", links_missing=missing, kept={
        "/opt/a/libx.so.1": "cannot be made: its folder cannot be written"}))
    assert done.links == {"/usr/local/lib/libfirst.so.1": "libfirst.so.1.2"}
    assert done.left == ["/opt/a/libx.so.1 cannot be made: its folder cannot be written"]


def test_of_a_link_that_is_no_driver_s_nothing_is_said():
    stray = {"path": "/opt/x/libcuda.so.1", "target": "gone"}
    done = plan(rig.seen(rig.library(soname="dangling"), dangling=[stray, rig.DANGLING],
                         loaded=rig.loaded(), kept={stray["path"]: "is update-alternatives'"}))
    assert (list(done.links), done.left) == ([rig.DANGLING["path"]], [])


@pytest.mark.parametrize("name", [
    "the stub is first", "compatibility that the card does not have",
    "compatibility that the kernel module does not have",
    "the stub is first, and the driver is where nobody looks",
    "the stub is first, after our file is taken in", "another driver is first",
    "another driver is first, and the one that is loaded is where nobody looks",
    "a libcuda that we do not know is first, of another driver",
    "a folder that the cache lists and no file names"])
def test_what_shadows_the_driver_stays_and_comes_after_it(name):
    seen = CASES[name][0]
    done = plan(seen)
    folder = judge.chosen(seen)["folder"]
    assert (done.conf, done.links, done.private) == (naming(folder), {}, None)
    assert (done.cache, done.environment) == (True, {})


@pytest.mark.parametrize("name", [
    "the stub is first, and nothing takes our file in",
    "the stub is first, before our file is taken in",
    "the driver is where nobody looks, and nothing takes our file in",
    "another driver is first, and nothing takes our file in"])
def test_where_our_file_would_come_too_late_engines_are_led_around(name):
    done = plan(CASES[name][0])
    assert (done.conf, done.links, done.cache) == (None, {}, False)
    assert done.environment == {"TRITON_LIBCUDA_PATH": FOLDER, "LD_LIBRARY_PATH": FOLDER}
    assert done.private == links_to(judge.chosen(CASES[name][0])["folder"])


def test_what_no_file_names_and_nothing_takes_our_file_in_is_left_as_it_works():
    assert plan(CASES["the same, and nothing takes our file in"][0]) == library_repair.Repair(
        None, {}, None, False, False, {}, [], [])


@pytest.mark.parametrize("name", [
    "another driver is first in one folder",
    "another driver is first, and the right one is beside a third"])
def test_of_two_drivers_in_one_folder_none_is_put_first(name):
    done = plan(CASES[name][0])
    assert (done.conf, done.links, done.cache) == (None, {}, False)


def test_what_the_cache_lists_and_no_file_names_is_said_before_it_goes():
    strays = ["/opt/a/libfirst.so.1", "/opt/b/libsecond.so.2"]
    done = plan(rig.seen(rig.elsewhere(listed=True), strays=strays))
    assert done.left == [
        "no longer listed, as no file names their folders: %s" % ", ".join(strays)]
    # Where no cache is made they stay in it.
    assert plan(rig.seen(strays=strays)).left == []
    assert plan(rig.seen(rig.elsewhere(), strays=strays, etc_writable=False)).left == []


def test_a_cache_that_is_made_anew_does_not_put_a_stub_first():
    """While there is no cache the loader finds the driver's; the new one would list the stub."""
    done = plan(rig.broken_cache("missing", rig.stub(configured=True), rig.library()))
    assert done.conf == naming(SYSTEM)
    # One that no file names is in no cache.
    assert plan(rig.broken_cache("missing", rig.stub(), rig.library())).conf is None


def test_the_link_for_an_older_triton_leads_to_the_one_that_is_loaded():
    seen = CASES["no libcuda.so for an older Triton"][0]
    done = plan(seen)
    assert (done.links, done.conf) == ({SYSTEM + "/libcuda.so": SONAME}, None)


def test_where_that_link_cannot_be_made_a_folder_of_links_is_named():
    seen = CASES["no libcuda.so for an older Triton"][0]
    done = plan(seen, writable=False)
    assert (done.links, done.conf) == ({}, naming(FOLDER))
    assert done.private == links_to(SYSTEM)
    assert any("has no libcuda.so and cannot be written" in one for one in done.reasons)
    now = after(seen, done)
    assert told(now) == []
    assert plan(now, conf=done.conf, writable=False).conf == done.conf


# Names, shadows and folders that cannot be written.


@pytest.mark.parametrize("folder, spellable", [
    ("/usr/local/nvidia/lib64", True), ("/opt/the driver", True), ("/opt/dr\u00efver+x_1.2", True),
    ("/opt/driver#1", False), ("/opt/driver\n/tmp", False), ("/opt/driver\n", False),
    ("/opt/tab\there", False), ("/opt/two  spaces", False), ("/opt/end ", False),
    ("/opt/a,b", False), ("/opt/a=libc6", False), ("/opt/a:b", False), ("/opt/a*", False),
    ("/opt/a?", False), ("/opt/[ab]", False), ("/opt/a\\b", False), ("/opt/a;b", False),
    ("relative", False), ("/opt/a\rb", False), ("/opt/a\x85b", False), ("/opt/a\u2028b", False),
    ("/opt/a\x1bb", False), ("/opt/a\udcffb", False),
])
def test_only_a_name_that_ld_so_conf_can_spell_is_written_there(folder, spellable):
    assert bool(SPELLABLE.fullmatch(folder)) is spellable
    library = rig.elsewhere(folder=folder, path=folder + "/libcuda.so.1",
                            real=folder + "/" + FILE)
    done = plan(rig.seen(library))
    assert done.conf == naming(folder if spellable else FOLDER)
    assert len(done.conf.encode().splitlines()) == 2
    assert done.private == (None if spellable else links_to(folder))
    assert spellable or any("cannot spell" in one for one in done.reasons)


def test_a_folder_that_would_shadow_the_system_is_not_named():
    done = plan(rig.seen(rig.elsewhere()), shadowed=["libz.so.1", "b.so", "c.so", "d.so"])
    assert (done.conf, done.links) == (naming(FOLDER), {})
    assert done.private == links_to(NVIDIA)
    [why] = [one for one in done.reasons if "which would come before" in one]
    assert "libz.so.1, b.so, c.so, which" in why


def test_a_folder_without_the_link_that_cannot_be_written_is_not_named():
    library = rig.elsewhere(soname="missing", path=NVIDIA + "/" + FILE)
    done = plan(rig.seen(library), writable=False)
    assert (done.conf, done.links) == (naming(FOLDER), {})
    assert done.private == links_to(NVIDIA, "%s/%s" % (NVIDIA, FILE))
    # With the link it needs no writing.
    assert plan(rig.seen(rig.elsewhere()), writable=False).conf == naming(NVIDIA)


def test_our_folder_of_links_is_never_linked_to_itself():
    """Once it is named, or in LD_LIBRARY_PATH, it is itself a folder with the driver's library."""
    mine = rig.library(FOLDER, real="%s/%s" % (NVIDIA, FILE), configured=True)
    for seen in (rig.broken_cache("missing", rig.stub(configured=True), mine),
                 rig.seen(dict(mine, configured=False)),
                 read_only(rig.broken_cache("missing", mine))):
        done = plan(seen, conf=naming(FOLDER))
        assert done.private is None
        assert done.links == {}
        assert done.conf == naming(FOLDER)


# Folders that others than root can write: every program of the host looks into what is named.


@pytest.mark.parametrize("driver, links, place", [
    (True, True, NVIDIA), (True, False, None), (False, True, None), (False, False, None)])
@pytest.mark.parametrize("name", [
    "the driver is where nobody looks", "the stub is first, and the driver is where nobody looks",
    "another driver is first", "a folder that the cache lists and no file names"])
def test_only_what_nobody_else_can_write_is_named(name, driver, links, place):
    seen = copy.deepcopy(CASES[name][0])
    judge.chosen(seen)["safe"] = driver
    seen["links_safe"] = links
    done = plan(seen)
    assert done.conf == (place and naming(place))
    assert done.cache is bool(place)
    assert done.private == (links_to(NVIDIA) if done.environment else None)
    mended = [one.finding["id"] for one in library_repair.mendable(seen, told(seen))]
    assert bool(mended) is bool(place)
    # What only may be dropped by a later run is in nobody's way.
    stopped = name != "a folder that the cache lists and no file names"
    assert bool(done.environment) is (stopped and place is None)


@pytest.mark.parametrize("name", [
    "compatibility that the card does not have",
    "the stub is first, and others can write where links and the driver are"])
def test_without_a_folder_that_nobody_else_can_write_engines_alone_are_led(name):
    seen = copy.deepcopy(CASES[name][0])
    judge.chosen(seen)["safe"] = seen["links_safe"] = False
    done = plan(seen)
    assert (done.conf, done.links, done.cache) == (None, {}, False)
    assert done.environment == {"TRITON_LIBCUDA_PATH": FOLDER, "LD_LIBRARY_PATH": FOLDER}
    # What is no matter of order is mended all the same, and nothing is named for it.
    seen = rig.broken_cache("missing", rig.elsewhere(safe=False), links_safe=False)
    done = plan(seen)
    assert (done.conf, done.links, done.cache) == (None, {}, True)
    assert set(done.environment) == {"TRITON_LIBCUDA_PATH", "LD_LIBRARY_PATH"}



@pytest.mark.parametrize("driver, links, why", [
    (False, True, "others than root can write %s: no folder is named" % NVIDIA),
    (True, False, "others than root can write where our links go: no folder is named")])
@pytest.mark.parametrize("folder", [NVIDIA, "/opt/driver\n/tmp"])
def test_neither_is_one_named_where_a_new_cache_would_list_a_stub(folder, driver, links, why):
    library = rig.elsewhere(folder=folder, path=folder + "/libcuda.so.1", safe=driver,
                            real="%s/%s" % (folder, FILE))
    seen = rig.broken_cache("missing", library, rig.stub(configured=True), links_safe=links)
    done = plan(seen, conf="as it is\n")
    assert (done.conf, done.links) == ("as it is\n", {})
    assert why.replace(NVIDIA, folder) in done.reasons


def test_our_file_says_of_which_root_it_is():
    done = library_repair.repair(rig.seen(rig.elsewhere()), told(rig.seen(rig.elsewhere())),
                                 ours(), "/srv/other", "/srv/other/libraries")
    assert done.conf == HEADING % "/srv/other" + NVIDIA + "\n"
    assert not done.conf.startswith(HEADING % ROOT)
    # One of another root is ours to write where the order has to change.
    assert plan(rig.seen(rig.elsewhere()), conf=done.conf).conf == naming(NVIDIA)
    assert plan(rig.seen(), conf=done.conf).conf == done.conf


# Never what is no driver's.


@pytest.mark.parametrize("kind, folder", [
    ("stub", STUBS), ("compat", COMPAT), ("foreign", "/usr/lib/i386-linux-gnu"),
    # It may be a stub: it could not be asked.
    ("small", SYSTEM)])
def test_nothing_is_linked_but_a_driver_s_library(kind, folder):
    other = rig.library(folder, kind, soname="missing", plain="missing", configured=True)
    missing = {folder + "/libcuda.so.1": "libcuda.so." + MODULE,
               "/usr/local/lib/libfirst.so.1": "libfirst.so.1.2"}
    dangling = [{"path": folder + "/libcuda.so", "target": "gone"}]
    seen = rig.broken_cache("missing", other, rig.elsewhere(), links_missing=missing,
                            dangling=dangling, pythons=[rig.python("3.5.1")])
    done = plan(seen)
    assert done.links == {"/usr/local/lib/libfirst.so.1": "libfirst.so.1.2"}
    done = plan(read_only(seen))
    assert done.links == {}
    assert done.private == links_to(NVIDIA)


@pytest.mark.parametrize("libraries", [
    [rig.stub(configured=True, listed=True)], [rig.compat()],
    [rig.library("/usr/lib/i386-linux-gnu", "foreign")],
    [rig.library(version="535.104.05"), rig.elsewhere(version="470.1.2")]])
def test_without_a_driver_s_library_there_is_nothing_to_lead_engines_to(libraries):
    seen = rig.broken_cache("missing", *libraries, etc_writable=False)
    done = plan(seen)
    assert (done.environment, done.private, done.links) == ({}, None, {})
    assert plan({**seen, "etc_writable": True}).conf is None


# Around what cannot be mended here.


@pytest.mark.parametrize("name", [
    name for name, (_, ids, _) in CASES.items()
    if any(row["helps"] for row in CHECKS if row["id"] in ids)])
def test_who_cannot_write_changes_nothing_but_the_folder_of_links(name):
    seen, _, half_done = CASES[name]
    for changes in ({"etc_writable": False}, {"etc_writable": False, "read_only": True}):
        done = plan({**seen, **changes}, half_done, conf="as it is\n")
        assert (done.conf, done.links, done.cache, done.clear) == ("as it is\n", {}, False, False)
        assert bool(done.private) == bool(done.environment)


@pytest.mark.parametrize("name, loads", [
    ("the cache is missing", True), ("no ldconfig", True), ("ldconfig of the mode 0644", True),
    ("ldconfig fails", True), ("libcuda.so.1 is not listed", False),
    ("a Triton that cannot be led anywhere, and no cache", True),
    # Compatibility that CUDA starts with is there on purpose: only Triton is led.
    ("compatibility on purpose, and no ldconfig", True),
    ("another driver is first", False),
    ("a libcuda that we do not know is first, of another driver", False),
    ("a system without caches, and Triton asks for one", False),
    ("no libcuda.so for an older Triton", True), ("the driver is where nobody looks", False),
    ("the stub is first", False), ("compatibility that the card does not have", False),
    ("the link leads nowhere", False)])
def test_engines_are_led_to_links_and_the_loader_too_where_it_does_not_come_there(name, loads):
    seen = read_only(CASES[name][0])
    done = plan(seen)
    assert done.environment == {"TRITON_LIBCUDA_PATH": FOLDER,
                                **({} if loads else {"LD_LIBRARY_PATH": FOLDER})}
    driver = judge.chosen(seen)
    library = driver["folder"] + "/" + SONAME if driver["soname"] == "ok" else driver["real"]
    assert done.private[SONAME] == done.private[PLAIN] == library
    assert any("TRITON_LIBCUDA_PATH=" + FOLDER in one for one in done.reasons)
    assert plan(seen) == done


@pytest.mark.parametrize("name", [
    "a Python that does not run", "no C compiler", "no headers", "CUDA does not start",
    "CUDA gives no answer", "the libraries are older than the kernel module",
    "two drivers in one folder", "a stub in LD_LIBRARY_PATH", "the driver has no libraries",
    "what is listed cannot be loaded", "the cache is missing, and no GPU",
    "a library is not listed", "a library is listed and gone",
    "a folder that the cache lists and no file names",
    "a repair that was ended in the middle"])
def test_there_is_no_way_around_what_links_do_not_change(name):
    done = plan(read_only(CASES[name][0]), CASES[name][2])
    assert (done.environment, done.private) == ({}, None)


def test_what_is_mended_is_no_reason_to_lead_the_loader_away_from_compatibility():
    for init, led in ((0, False), (803, True), (None, True)):
        seen = rig.without_ldconfig("missing", rig.compat(), rig.library(),
                                    loaded=rig.loaded(rig.compat(), init))
        assert ("LD_LIBRARY_PATH" in plan(seen).environment) is led


@pytest.mark.parametrize("state", ["empty", "damaged", "directory", "unreadable"])
def test_a_cache_that_is_mounted_is_left_and_engines_are_led_around(state):
    done = plan(CASES["the cache is %s, and mounted" % state][0])
    assert done._replace(reasons=[]) == library_repair.Repair(
        None, {}, links_to(SYSTEM), False, False, {"TRITON_LIBCUDA_PATH": FOLDER}, [], [])


@pytest.mark.parametrize("name, led", [
    ("the cache is mounted, and in order", False),
    ("the cache is mounted, and another library is not listed", False),
    ("the cache is mounted, and libcuda.so.1 is not listed", True),
    ("the cache is mounted, and the driver is where nobody looks", True)])
def test_a_cache_that_is_mounted_and_whole_is_left_too(name, led):
    seen = CASES[name][0]
    done = plan(seen, conf="as it is\n")
    assert (done.conf, done.links, done.cache) == ("as it is\n", {}, False)
    assert bool(done.environment) is bool(done.private) is led
    assert library_repair.mendable(seen, told(seen)) == []


# Our links, once they are there.


def test_links_that_are_there_follow_the_driver_as_long_as_they_are():
    old = {SONAME: "/opt/gone/libcuda.so.1", PLAIN: "/opt/gone/libcuda.so.1",
           "libgone.so.1": "/opt/gone/libgone.so.1"}
    # After mending nobody needs them; an engine may run that was started with them.
    for name in ("in order", "the cache is missing", "the driver is where nobody looks"):
        seen = CASES[name][0]
        done = plan(seen, private=old)
        assert done.environment == {}
        assert done.private == links_to(judge.chosen(seen)["folder"])
        assert plan(seen, private=done.private).private == done.private
        assert plan(seen).private is None
    # Without a driver, or where it is they that are found, they are left.
    for seen in (CASES["the driver has no libraries"][0], CASES["no GPU"][0],
                 rig.seen(rig.library(FOLDER, configured=True, listed=True))):
        assert plan(seen, private=old).private is None


def test_a_new_version_of_the_driver_changes_nothing_for_our_links():
    def links(version):
        library = rig.library(version=version)
        seen = rig.broken_cache("missing", library, kernel_module=version, etc_writable=False)
        return plan(seen, companions=[SONAME, "libnvidia-ml.so.1"]).private
    assert links("550.54.14") == links("560.35.03")
    assert links("550.54.14")[SONAME] == SYSTEM + "/libcuda.so.1"


def test_a_cache_that_ldconfig_cannot_make_is_not_asked_for():
    seen = rig.broken_cache("missing", rehearsal=rig.call(3, "amiss"), folders={})
    assert [one.finding["id"] for one in told(seen)] == ["ldconfig-fails", "linker-cache-missing"]
    done = plan(seen)
    assert (done.cache, done.links, done.conf) == (False, {}, None)
    assert done.environment == {"TRITON_LIBCUDA_PATH": FOLDER}


def test_what_is_mended_needs_no_way_around():
    for name in ("the cache is missing", "the driver is where nobody looks", "the stub is first"):
        assert plan(CASES[name][0]).environment == {}
    # But beside it may be what cannot be mended.
    done = plan(rig.broken_cache("directory", rig.elsewhere(), cache=rig.cache("directory")))
    assert set(done.environment) == {"TRITON_LIBCUDA_PATH", "LD_LIBRARY_PATH"}
