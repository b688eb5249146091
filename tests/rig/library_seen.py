# SPDX-License-Identifier: Apache-2.0
"""What ``host/library_path.py`` observes, made by hand: hosts in order, and each with one break.

``seen()`` is a healthy host with a GPU; what it returns may be changed.
"""

from __future__ import annotations

import copy
from pathlib import Path

import yaml

CATALOG = Path(__file__).parents[2] / "catalog"
CHECKS, PLACES, TRITONS = (yaml.safe_load((CATALOG / (name + ".yml")).read_text()) for name in (
    "library_checks", "library_places", "triton_releases"))

MODULE = "550.54.14"
SYSTEM, NVIDIA = "/usr/lib/x86_64-linux-gnu", "/usr/local/nvidia/lib64"
STUBS, COMPAT = "/usr/local/cuda/lib64/stubs", "/usr/local/cuda-12.9/compat"
PYTHON, OTHER_PYTHON = "/opt/vllm/bin/python", "/opt/other/bin/python"
JOURNAL = "/var/lib/firstlight/journal/linker_cache"


def library(folder=SYSTEM, kind="driver", version=MODULE, **changes):
    """A folder with a libcuda in it, linked and listed as its package leaves it."""
    file = "libcuda.so." + version if version else "libcuda.so.1"
    path = folder + "/libcuda.so.1"
    here = folder in (SYSTEM,)
    return {"folder": folder, "kind": kind, "path": path, "real": "%s/%s" % (folder, file),
            "size": 28 * 2**20, "version": version, "soname": "ok", "plain": "ok", "others": [],
            "configured": here, "listed": here, "safe": True,
            "why": "configured in /etc/ld.so.conf.d", **changes}


def elsewhere(**changes):
    """The driver's library in a folder that nothing names."""
    return library(**{"folder": NVIDIA, "why": "nvidia-lib64", **changes})


def stub(**changes):
    """A stub to link with."""
    real = STUBS + "/libcuda.so"
    return library(**{"folder": STUBS, "kind": "stub", "version": None, "real": real, "path": real,
                      "size": 40000, "soname": "missing", "why": "cuda-stubs", **changes})


def compat(**changes):
    """A library of the package cuda-compat."""
    return library(**{"folder": COMPAT, "kind": "compat", "version": "575.57.08",
                      "why": "cuda-compat", **changes})


def loaded(one=None, init=0, **changes):
    """What a fresh process got: this library, or none."""
    found = {"path": one and one["real"], "init": init if one else None,
             "text": "no error" if one and init == 0 else "", "nvml": 0 if one else None,
             "error": "" if one else "libcuda.so.1: cannot open shared object file: No such file "
                                     "or directory", "hangs": False}
    return {**found, **changes}


def python(triton="3.6.0", **changes):
    """A Python that runs engines, with all that Triton needs."""
    return {"path": PYTHON, "python": "3.12", "triton": triton, "headers": True, "error": "",
            "prefix": "/opt/vllm",
            "include": "/usr/include/python3.12", "compiler": "/usr/bin/gcc", **changes}


def variable(*folders, **changes):
    """An LD_LIBRARY_PATH with these folders."""
    return {"where": "/etc/environment", "value": ":".join(folders), "folders": list(folders),
            "starts": {}, "places": {}, **changes}


def cache(state="ok", **changes):
    """The cache file."""
    details = {"ok": ", 20000 bytes: 300 libraries", "missing": " does not exist",
               "empty": ", 0 bytes: no bytes", "directory": " is a directory",
               "damaged": ", 30 bytes: it ends within its header",
               "unreadable": " has the mode 0600", "unknown": ": Too many levels of symbolic links"}
    return {"state": state, "detail": "/etc/ld.so.cache" + details[state],
            "movable": state != "directory", "libraries": 300 if state == "ok" else 0, **changes}


def call(rc=0, said=""):
    """What a run of ldconfig came to."""
    return {"rc": rc, "said": said}


def without_gpu(**changes):
    """A host without a GPU, in order."""
    return {**copy.deepcopy({
        "root": True, "etc_writable": True, "read_only": False, "without_cache": False,
        "tool": {"state": "ok", "detail": "/sbin/ldconfig"}, "cache": cache(), "listing": call(),
        "rehearsal": call(), "unlisted": [], "gone": [], "strays": [], "links_missing": {},
        "kept": {}, "included_at": 1, "links_safe": True,
        "folders": {SYSTEM: "/etc/ld.so.conf.d/x86_64-linux-gnu.conf:4", "/lib": "<builtin>:0"},
        "libraries": [], "dangling": [], "variables": [], "kernel_module": None,
        "driver_loaded": False, "loaded": None, "limit_s": 30.0, "pythons": [], "unread": {},
    }), **changes}


def seen(*libraries, **changes):
    """A host with a GPU: these libraries, of which a fresh process gets the first that is listed.

    Without any it has the driver's, in order.
    """
    there = list(libraries) or [library()]
    first = next((one for one in there if one["listed"]), None)
    return without_gpu(**{"libraries": there, "kernel_module": MODULE, "driver_loaded": True,
                          "loaded": loaded(first), **changes})


def without_ldconfig(state="missing", *libraries, **changes):
    """A host on which ldconfig cannot be asked: nothing tells which folders are configured."""
    detail = ("/sbin/ldconfig does not exist" if state == "missing"
              else "/sbin/ldconfig has the mode 0644")
    there = [dict(one, configured=False, listed=False) for one in libraries or [library()]]
    return seen(*there, **{"tool": {"state": state, "detail": detail}, "listing": None,
                           "rehearsal": None, "folders": {}, "loaded": loaded(there[0]),
                           **changes})


def broken_cache(state, *libraries, **changes):
    """A host whose cache lists nothing; the loader finds what its own folders have."""
    there = [dict(one, listed=False) for one in libraries or [library()]]
    own = next((one for one in there if one["folder"] == SYSTEM), None)
    said = call(1, "ldconfig: Can't open cache file /etc/ld.so.cache")
    return seen(*there, **{"cache": cache(state), "listing": said, "loaded": loaded(own),
                           **changes})


DANGLING = {"path": SYSTEM + "/libcuda.so.1", "target": "libcuda.so.450.1"}
OWNED = {DANGLING["path"]: "belongs to the package libcuda1: install that anew"}
CLOSED = {DANGLING["path"]: "cannot be made: its folder cannot be written"}
_OLD = library(version="535.104.05")
_OTHER = elsewhere(configured=True, listed=True)
_STUB_FIRST = [stub(configured=True, listed=True), library()]
_BOTH = [library(), elsewhere(version="535.104.05")]
_CRASH = "signal 6"

# Each: what was seen, the ids of what must be found, exactly, in their order, and the journal of a
# repair that was ended in the middle.
CASES = {
    "in order": (seen(), [], ""),
    "no GPU": (without_gpu(), [], ""),
    "no GPU, and the toolkit's stub": (without_gpu(libraries=[stub()], loaded=loaded()), [], ""),
    "compatibility that goes with the card": (
        seen(compat(configured=True, listed=True), library()), [], ""),
    "a folder that the cache lists and no file names": (
        seen(elsewhere(listed=True)), ["libcuda-unconfigured"], ""),
    "the same, and nothing takes our file in": (
        seen(elsewhere(listed=True), included_at=None), ["libcuda-unconfigured"], ""),
    "libraries that the cache lists and no file names": (
        seen(strays=["/opt/a/libfirst.so.1"]), [], ""),
    "compatibility that CUDA starts with, and NVML is of another driver": (
        seen(compat(configured=True, listed=True), library(), loaded=loaded(compat(), nvml=18)),
        ["driver-library-mismatch"], ""),
    "the fabric is not ready, which the health of the host tells": (
        seen(loaded=loaded(library(), 802)), [], ""),
    "a libcuda in a folder that we do not know": (
        without_ldconfig("missing", libraries=[], loaded=loaded({"real": "/opt/x/libcuda.so.1"})),
        ["ldconfig-missing"], ""),
    "a system without caches, and no GPU": (
        without_gpu(without_cache=True, listing=None, rehearsal=None, folders={},
                    cache=cache("missing"), tool={"state": "missing", "detail": "none"}), [], ""),
    "a system without caches, whose ldconfig knows of none": (
        seen(library(configured=False, listed=False), without_cache=True, listing=None,
             rehearsal=None, folders={}, cache=cache("missing"), loaded=loaded(library())), [], ""),
    "a system without caches, and Triton asks for one": (
        without_ldconfig("missing", library("/run/opengl-driver/lib"), without_cache=True,
                         cache=cache("missing"), loaded=loaded()), ["ldconfig-missing"], ""),
    # The tool.
    "no ldconfig": (without_ldconfig("missing"), ["ldconfig-missing"], ""),
    "compatibility on purpose, and no ldconfig": (
        without_ldconfig("missing", compat(), library(), loaded=loaded(compat())),
        ["ldconfig-missing"], ""),
    "no ldconfig, and no GPU": (
        without_gpu(tool={"state": "missing", "detail": "/sbin/ldconfig does not exist"},
                    listing=None, rehearsal=None, folders={}), ["ldconfig-missing"], ""),
    "no ldconfig, and no cache": (
        without_ldconfig("missing", cache=cache("missing")),
        ["ldconfig-missing", "linker-cache-missing"], ""),
    "no ldconfig, and the driver is where nobody looks": (
        without_ldconfig("missing", elsewhere(), loaded=loaded()), ["ldconfig-missing"], ""),
    "ldconfig of the mode 0644": (
        without_ldconfig("not_executable"), ["ldconfig-not-executable"], ""),
    "ldconfig fails": (
        seen(library(listed=False, configured=False), folders={}, listing=call(3, "amiss"),
             rehearsal=call(3, "amiss"), loaded=loaded(library())), ["ldconfig-fails"], ""),
    "ldconfig -p fails": (
        seen(library(listed=False), listing=call(3, "amiss"), loaded=loaded(library())),
        ["ldconfig-fails"], ""),
    "ldconfig gives no answer": (
        seen(library(listed=False), listing=call(None, "no answer within 20 s"),
             loaded=loaded(library())), ["ldconfig-fails"], ""),
    "a cache that is a link to itself": (
        broken_cache("unknown", listing=call(1, "ldconfig: Can't open cache file")),
        ["ldconfig-fails"], ""),
    # The cache.
    **{"the cache is %s" % state: (broken_cache(state), ["linker-cache-" + state], "")
       for state in ("missing", "empty", "damaged", "directory", "unreadable")},
    "the cache is missing, and no GPU": (
        without_gpu(cache=cache("missing"), listing=call(1, "no cache")),
        ["linker-cache-missing"], ""),
    "the cache is an empty directory": (
        broken_cache("directory", cache=cache("directory", movable=True)),
        ["linker-cache-directory"], ""),
    "the cache is missing, and libcuda.so.1 is in a folder that is configured": (
        broken_cache("missing", elsewhere(configured=True)), ["linker-cache-missing"], ""),
    "a library is not listed": (
        seen(unlisted=["/usr/local/lib/libfirst.so.1"]), ["linker-cache-stale"], ""),
    "a library is listed and gone": (
        seen(gone=["/usr/local/lib/libfirst.so.1"]), ["linker-cache-stale"], ""),
    "libcuda.so.1 is not listed": (
        seen(library(listed=False), unlisted=[SYSTEM + "/libcuda.so.1"]),
        ["linker-cache-stale"], ""),
    "libcuda.so.1 is listed and no more": (
        seen(library(soname="missing"), loaded=loaded()), ["linker-cache-stale"], ""),
    "the same, and its folder cannot be written": (
        seen(library(soname="missing"), loaded=loaded(), kept=CLOSED),
        ["linker-cache-stale"], ""),
    **{"the cache is %s, and mounted" % state: (
        broken_cache(state, cache=cache(state, movable=False)), ["linker-cache-" + state], "")
       for state in ("empty", "damaged", "directory", "unreadable")},
    "the cache is mounted, and libcuda.so.1 is not listed": (
        seen(library(listed=False), unlisted=[SYSTEM + "/libcuda.so.1"],
             cache=cache(movable=False)), ["linker-cache-stale"], ""),
    "the cache is mounted, and another library is not listed": (
        seen(unlisted=["/usr/local/lib/libfirst.so.1"], cache=cache(movable=False)),
        ["linker-cache-stale"], ""),
    "the cache is mounted, and in order": (seen(cache=cache(movable=False)), [], ""),
    "the cache is mounted, and the driver is where nobody looks": (
        seen(elsewhere(), cache=cache(movable=False)), ["libcuda-unlisted"], ""),
    "a stub and a compatibility library are not listed, which is as well": (
        seen(library(), stub(configured=True), compat(configured=True),
             unlisted=[STUBS + "/libcuda.so.1", COMPAT + "/libcuda.so.1"]), [], ""),
    "beside a stub, what is no stub is not listed": (
        seen(library(listed=False), stub(configured=True), unlisted=[
            STUBS + "/libcublas.so.12", SYSTEM + "/libcuda.so.1"]), ["linker-cache-stale"], ""),
    "beside a stub another library is not listed": (
        seen(library(), stub(configured=True), unlisted=[STUBS + "/libcublas.so.12"]),
        ["linker-cache-stale"], ""),
    "beside a stub the driver's is not listed": (
        seen(library(listed=False), stub(configured=True), unlisted=[SYSTEM + "/libcuda.so.1"]),
        ["linker-cache-stale"], ""),
    # libcuda.
    "the driver has no libraries": (
        seen(libraries=[], loaded=loaded()), ["libcuda-missing"], ""),
    "the driver has no libraries, and a link is left": (
        seen(libraries=[], loaded=loaded(), dangling=[DANGLING]), ["libcuda-missing"], ""),
    "the driver has no libraries, and the stub is first": (
        seen(stub(configured=True, listed=True), loaded=loaded(stub(), 34)),
        ["libcuda-missing"], ""),
    "the driver has no libraries, and those for compatibility do not go with it": (
        seen(compat(configured=True, listed=True), loaded=loaded(compat(), 803)),
        ["libcuda-missing"], ""),
    "the same, and CUDA was not asked": (
        seen(stub(configured=True, listed=True), loaded=loaded(stub(), None)),
        ["libcuda-missing"], ""),
    "only a library of another processor": (
        seen(library("/usr/lib/i386-linux-gnu", "foreign"), loaded=loaded()),
        ["libcuda-missing"], ""),
    "only that for compatibility, with which CUDA does not start": (
        seen(compat(configured=True, listed=True), loaded=loaded(compat(), 999)),
        ["cuda-init-fails"], ""),
    "the driver is where nobody looks": (seen(elsewhere()), ["libcuda-unlisted"], ""),
    "the same, and no cache": (
        broken_cache("missing", elsewhere()), ["linker-cache-missing", "libcuda-unlisted"], ""),
    "the same, and the links there lead nowhere": (
        seen(elsewhere(soname="dangling"), dangling=[
            {"path": NVIDIA + "/libcuda.so.1", "target": "libcuda.so.450.1"}]),
        ["link-dangling", "libcuda-unlisted"], ""),
    "the link leads nowhere": (
        seen(library(soname="dangling"), dangling=[DANGLING], loaded=loaded(),
             gone=[SYSTEM + "/libcuda.so.1"]), ["link-dangling"], ""),
    "the same, and a package owns it": (
        seen(library(soname="dangling"), dangling=[DANGLING], loaded=loaded(),
             gone=[SYSTEM + "/libcuda.so.1"], kept=OWNED), ["link-dangling"], ""),
    "the driver is where nobody looks, and nothing takes our file in": (
        seen(elsewhere(), included_at=None), ["libcuda-unlisted"], ""),
    "the driver is where nobody looks and others can write": (
        seen(elsewhere(safe=False)), ["libcuda-unlisted"], ""),
    "the same, and they can write our folder of links": (
        seen(elsewhere(safe=False), links_safe=False), ["libcuda-unlisted"], ""),
    "the driver is where nobody looks, and others can write our folder of links": (
        seen(elsewhere(), links_safe=False), ["libcuda-unlisted"], ""),
    "the stub is first": (
        seen(stub(configured=True, listed=True), library(), loaded=loaded(stub(), 34)),
        ["libcuda-stub-first"], ""),
    "the stub is first, and nothing takes our file in": (
        seen(*_STUB_FIRST, loaded=loaded(stub(), 34), included_at=None),
        ["libcuda-stub-first"], ""),
    "the stub is first, before our file is taken in": (
        seen(*_STUB_FIRST, loaded=loaded(stub(), 34), included_at=2,
             folders={STUBS: "/etc/ld.so.conf:1", SYSTEM: "/etc/ld.so.conf.d/x.conf:1"}),
        ["libcuda-stub-first"], ""),
    "the stub is first, after our file is taken in": (
        seen(*_STUB_FIRST, loaded=loaded(stub(), 34), included_at=2,
             folders={STUBS: "/etc/ld.so.conf:10", SYSTEM: "<builtin>:0"}),
        ["libcuda-stub-first"], ""),
    "the stub is first, and others can write where links and the driver are": (
        seen(stub(configured=True, listed=True), library(safe=False), links_safe=False,
             loaded=loaded(stub(), 34)), ["libcuda-stub-first"], ""),
    "the stub is first, and the driver is where nobody looks": (
        seen(stub(configured=True, listed=True), elsewhere(), loaded=loaded(stub(), 34)),
        ["libcuda-stub-first"], ""),
    "the stub is first, and CUDA was not asked": (
        seen(stub(configured=True, listed=True), library(), driver_loaded=False,
             kernel_module=None, loaded=loaded(stub(), None)), ["libcuda-stub-first"], ""),
    "a stub that only says so itself": (
        seen(loaded=loaded(library(), 34)), ["libcuda-stub-first"], ""),
    "compatibility that the card does not have": (
        seen(compat(configured=True, listed=True), library(), loaded=loaded(compat(), 804)),
        ["cuda-compat-shadows"], ""),
    "compatibility that the kernel module does not have": (
        seen(compat(configured=True, listed=True), library(), loaded=loaded(compat(), 803)),
        ["cuda-compat-shadows"], ""),
    "two drivers in two folders": (seen(*_BOTH), ["library-versions-two"], ""),
    "another driver is first": (
        seen(_OLD, _OTHER, loaded=loaded(_OLD, 803, nvml=18)),
        ["library-versions-two", "libcuda-other-first"], ""),
    "another driver is first, and the one that is loaded is where nobody looks": (
        seen(_OLD, elsewhere(), loaded=loaded(_OLD, 803)),
        ["library-versions-two", "libcuda-other-first"], ""),
    "another driver is first, and nothing takes our file in": (
        seen(_OLD, _OTHER, loaded=loaded(_OLD, 803), included_at=None),
        ["library-versions-two", "libcuda-other-first"], ""),
    "another driver is first in one folder": (
        seen(library(version="535.104.05", others=[MODULE]),
             loaded=loaded(library(version="535.104.05"), 803)),
        ["library-versions-two", "libcuda-other-first"], ""),
    "another driver is first, and the right one is beside a third": (
        seen(_OLD, elsewhere(version="570.1.2", others=[MODULE]), loaded=loaded(_OLD, 803)),
        ["library-versions-two", "libcuda-other-first"], ""),
    "a libcuda that we do not know is first, of another driver": (
        seen(loaded=loaded({"real": "/opt/x/libcuda.so.1"}, 803)), ["libcuda-other-first"], ""),
    "another driver is first, and CUDA starts with it": (
        seen(_OLD, _OTHER, loaded=loaded(_OLD)), ["library-versions-two"], ""),
    "one driver in two folders, and NVML is of another": (
        seen(library(), _OTHER, loaded=loaded(library(), 999, nvml=18)),
        ["driver-library-mismatch"], ""),
    "two without versions, and NVML is of another driver": (
        seen(library(version=None), elsewhere(version=None), kernel_module=None,
             loaded=loaded(library(version=None), 999, nvml=18)),
        ["driver-library-mismatch"], ""),
    "one without a version beside it, and nothing says what is loaded": (
        seen(_OLD, elsewhere(version=None), kernel_module=None,
             loaded=loaded(_OLD, 999, nvml=18)), ["driver-library-mismatch"], ""),
    "two drivers in one folder": (
        seen(library(others=["535.104.05"])), ["library-versions-two"], ""),
    "two drivers, and nothing says which is right": (
        seen(*_BOTH, kernel_module=None), ["library-versions-two"], ""),
    "two drivers, and neither is the kernel module's": (
        seen(*_BOTH, kernel_module="570.1.2", loaded=loaded(library(), 803)),
        ["library-versions-two", "driver-library-mismatch"], ""),
    "the libraries are older than the kernel module": (
        seen(_OLD, loaded=loaded(_OLD, 803, nvml=18)), ["driver-library-mismatch"], ""),
    "only NVML says so": (
        seen(_OLD, kernel_module=None, loaded=loaded(_OLD, 999, nvml=18)),
        ["driver-library-mismatch"], ""),
    "only CUDA says so": (
        seen(kernel_module=None, loaded=loaded(library(), 803, nvml=None)),
        ["driver-library-mismatch"], ""),
    "only the versions say so": (
        seen(_OLD, loaded=loaded(_OLD, None, nvml=None)), ["driver-library-mismatch"], ""),
    "the versions say so, and CUDA starts all the same": (seen(_OLD), [], ""),
    "a library without a version, as a Jetson has": (
        seen(library(version=None), kernel_module="540.4.0"), [], ""),
    "CUDA does not start": (
        seen(loaded=loaded(library(), 999, text="unknown error")), ["cuda-init-fails"], ""),
    "CUDA gives no answer": (
        seen(loaded=loaded(hangs=True, error="no answer within 30 s")), ["cuda-init-hangs"], ""),
    "what is listed cannot be loaded": (
        seen(loaded=loaded(error=_CRASH)), ["libcuda-unloadable"], ""),
    # LD_LIBRARY_PATH.
    "a stub in LD_LIBRARY_PATH": (
        seen(library(), stub(), variables=[variable(STUBS)]), ["library-path-harmful"], ""),
    "the same with a slash at its end, twice": (
        seen(library(), stub(folder=STUBS + "/"), variables=[variable(STUBS + "/", STUBS + "/")]),
        ["library-path-harmful"], ""),
    "compatibility in LD_LIBRARY_PATH": (
        seen(library(), compat(), variables=[variable(COMPAT, starts={COMPAT: 804})]),
        ["library-path-harmful"], ""),
    "compatibility in LD_LIBRARY_PATH that goes with the card": (
        seen(library(), compat(), variables=[variable(COMPAT, starts={COMPAT: 0})]), [], ""),
    "an older driver in LD_LIBRARY_PATH": (
        seen(*_BOTH, variables=[variable("", "/opt/x", NVIDIA, starts={NVIDIA: 803})]),
        ["library-versions-two", "library-path-harmful"], ""),
    "an older driver in LD_LIBRARY_PATH, with which CUDA starts": (
        seen(*_BOTH, variables=[variable(NVIDIA, starts={NVIDIA: 0})]),
        ["library-versions-two"], ""),
    "compatibility in LD_LIBRARY_PATH by another name": (
        seen(library(), compat(), variables=[
            variable("/opt/cuda/compat/", starts={COMPAT: 803},
                     places={"/opt/cuda/compat/": COMPAT})]), ["library-path-harmful"], ""),
    "the same, and nothing says which is right": (
        seen(*_BOTH, kernel_module=None, variables=[variable(NVIDIA)],
             pythons=[python("3.5.1")]), ["library-versions-two"], ""),
    "folders in LD_LIBRARY_PATH that do no harm": (
        seen(variables=[variable(SYSTEM, "/opt/x", "", "lib")]), [], ""),
    # Triton.
    "a Python without Triton": (
        seen(pythons=[python(None, compiler=None, headers=False)]), [], ""),
    "a Python with all that Triton needs": (seen(pythons=[python(), python("3.5.1")]), [], ""),
    "a Python that does not run": (
        seen(pythons=[python(None, python=None, include=None, headers=None, compiler=None,
                             error="it is not there")]), ["engine-python-unusable"], ""),
    "no C compiler": (seen(pythons=[python(compiler=None)]), ["c-compiler-missing"], ""),
    "no headers": (seen(pythons=[python(headers=False)]), ["python-headers-missing"], ""),
    "no libcuda.so for an older Triton": (
        seen(library(plain="missing"), pythons=[python("3.5.1")]),
        ["libcuda-plain-missing"], ""),
    "no libcuda.so, which a newer Triton does not need": (
        seen(library(plain="missing"), pythons=[python("3.6.0+git1"), python("junk")]), [], ""),
    "libcuda.so only in a folder that is not listed": (
        seen(library(plain="missing"), elsewhere(), pythons=[python("3.5.1")]),
        ["libcuda-plain-missing"], ""),
    "libcuda.so in another folder that is listed": (
        seen(library(plain="missing"), elsewhere(configured=True, listed=True),
             pythons=[python("3.5.1")]), [], ""),
    "a Triton that cannot be led anywhere, and no cache": (
        broken_cache("missing", pythons=[python("2.1.0")]), ["linker-cache-missing"], ""),
    "one of two Tritons cannot be led anywhere, and no cache": (
        broken_cache("missing", pythons=[python("3.6.0"), python("2.1.0", path=OTHER_PYTHON)]),
        ["linker-cache-missing"], ""),
    # Who looks.
    "not root": (
        broken_cache("missing", etc_writable=False, root=False),
        ["linker-cache-missing", "not-root"], ""),
    "a read-only file system": (
        broken_cache("missing", etc_writable=False, read_only=True),
        ["linker-cache-missing", "root-read-only"], ""),
    "not root, and nothing to write": (seen(etc_writable=False, root=False), [], ""),
    "not root, and what root would not mend by itself": (
        without_ldconfig("missing", etc_writable=False, root=False), ["ldconfig-missing"], ""),
    "a repair that was ended in the middle": (seen(), ["repair-half-done"], JOURNAL),
    "the same, and what it did": (
        broken_cache("missing"), ["repair-half-done", "linker-cache-missing"], JOURNAL),
    "much at once": (
        broken_cache("damaged", elsewhere(plain="missing"), stub(),
                     variables=[variable(STUBS)], pythons=[python("3.4.0", compiler=None)]),
        ["linker-cache-damaged", "libcuda-unlisted", "library-path-harmful",
         "c-compiler-missing", "libcuda-plain-missing"], ""),
}
