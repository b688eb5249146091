# SPDX-License-Identifier: Apache-2.0
"""All that decides whether a program on this host finds libcuda, and what would stop Triton."""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple

from ..runner import run
from . import cuda_probe, driver_files, ldconfig, triton_needs
from . import driver_libraries as drivers
from .driver_libraries import Library
from .ldconfig import CONF, Entry
from .reading import Reader

VARIABLE = "LD_LIBRARY_PATH"
SET_FOR_ALL = "/etc/environment"
DEVICES = ("/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/nvgpu", "/dev/dxg")
"""What is there where a driver is loaded: of servers, of Jetsons, of WSL."""
CONTAINERS = ("/.dockerenv", "/run/.containerenv")
"""What is there in a container, which sees the files of a driver in /proc without having it."""
DRIVER_ELSEWHERE = "/run/nvidia/driver"
"""Where the GPU operator has the driver of a host, libraries included, for containers alone."""
MAIN = "/etc/ld.so.conf"
MAX_NAMED = 2000
# Each asks which package owns a path, and prints its name at the start of the line.
OWNERS = (["dpkg-query", "--search"], ["rpm", "--query", "--file", "--queryformat", "%{NAME}: "])

Seen = Dict[str, Any]
"""Plain data, as :func:`observe` says."""


class Wanted(NamedTuple):
    """What to look with.

    ``places`` and ``tritons`` are rows of the catalogs ``library_places`` and
    ``triton_releases``; ``pythons`` the paths of interpreters that run engines.
    """

    places: List[Dict[str, Any]]
    tritons: List[Dict[str, Any]]
    pythons: Sequence[str] = ()


def observe(reader: Reader, wanted: Wanted, environment: Mapping[str, str]) -> Seen:
    """Everything, as plain data; nothing is changed. CUDA is started last, in a process of its own.

    :param environment: of the process that looks: where it has LD_LIBRARY_PATH and conda.
    :returns: ``root``, ``etc_writable`` and ``read_only``; ``tool``, ``cache`` and ``listing``
        with their states; ``without_cache``: whether it is a system that has none by design;
        ``unlisted``, ``gone`` and ``strays``: paths; ``folders``: those that are configured, and
        ``included_at``: the line of ``ld.so.conf`` that takes our file in; ``links_missing``: links
        that ldconfig would make, with their targets; ``libraries``, ``dangling``; ``kept``: links
        of both kinds that are not ours to make, with why; ``variables``:
        where ``LD_LIBRARY_PATH`` is set, to what, and how CUDA starts with a libcuda there that is
        of another version than the kernel module; ``kernel_module``, ``driver_loaded``;
        ``loaded``: what a fresh process gets, or ``None`` where there is nothing to load;
        ``pythons``; ``unread``.
    """
    seen = _cache(reader)
    there: Set[Entry] = seen.pop("entries")
    variables = _variables(reader, environment)
    pythons = triton_needs.read(wanted.pythons)
    libraries, dangling = _libraries(reader, wanted, seen["folders"], there, variables, [
        environment.get("CONDA_PREFIX", ""), *(one["prefix"] or "" for one in pythons)])
    seen.update(
        root=os.geteuid() == 0,
        read_only=_read_only(reader.path("/etc")),
        etc_writable=os.access(reader.path("/etc"), os.W_OK),
        libraries=[one._asdict() for one in libraries],
        dangling=[one._asdict() for one in dangling],
        kept=_kept(reader, libraries, dangling, seen["links_missing"]),
        variables=variables,
        kernel_module=driver_files.kernel_module(reader),
        driver_loaded=_driver_loaded(reader),
        included_at=_included_at(reader),
        pythons=pythons,
        loaded=None,
        limit_s=cuda_probe.LIMIT_S,
    )
    if libraries or seen["driver_loaded"]:
        seen["loaded"] = cuda_probe.load(drivers.SONAME, seen["driver_loaded"])._asdict()
    for variable in variables:
        variable["starts"] = {
            one.folder: cuda_probe.load(one.real, init=True).init for one in libraries
            if one.kind in ("compat", "driver") and one.folder in variable["places"].values()
            and one.version != seen["kernel_module"] and seen["driver_loaded"]}
    seen["unread"] = {key: reason for key, reason in reader.unread.items()
                      if not key.startswith("driver.")}
    return seen


def _cache(reader: Reader) -> Seen:
    """The cache, what it lists, and what it would list if it were made now."""
    state, detail = ldconfig.tool(reader)
    found = ldconfig.cache(reader)
    seen: Seen = {
        "tool": {"state": state, "detail": detail},
        "without_cache": not _has_caches(reader, state),
        "cache": dict(found._asdict(), libraries=0),
        "listing": None, "rehearsal": None, "folders": {}, "unlisted": [], "gone": [], "strays": [],
        "links_missing": {}, "entries": set(),
    }
    if state != "ok" or seen["without_cache"]:
        return seen
    listing, rehearsal = ldconfig.listing(reader), ldconfig.rehearsal(reader)
    seen["listing"], seen["rehearsal"] = ldconfig.as_data(listing), ldconfig.as_data(rehearsal)
    there = set(ldconfig.listed(listing.stdout)) if listing.ok and found.state == "ok" else set()
    seen["entries"], seen["cache"]["libraries"] = there, len(there)
    if rehearsal.ok:
        would = ldconfig.configured(rehearsal.stdout)
        seen["folders"] = would.folders
        if there:
            compared = ldconfig.compare(reader, there, would)
            lacking = compared.unlisted
            seen["unlisted"] = compared.unlisted[:MAX_NAMED]
            seen["gone"] = compared.gone[:MAX_NAMED]
            # What is libcuda's is a finding of its own.
            seen["strays"] = [path for path in compared.strays
                              if not drivers.DRIVER.match(os.path.basename(path))]
        else:
            lacking = [os.path.join(*entry) for entry in would.entries]
        missing = {path: would.entries[os.path.split(path)]
                   for path in lacking if not os.path.lexists(reader.path(path))}
        seen["links_missing"] = {
            path: file for path, file in missing.items()
            if ldconfig.is_library(reader, os.path.dirname(path), file)}
    return seen


def _has_caches(reader: Reader, tool: str) -> bool:
    """Whether it is a system with a linker cache: NixOS has none, and musl knows of none."""
    try:
        glibc = bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except (OSError, ValueError):
        glibc = False
    return glibc and (tool != "missing" or any(
        reader.exists(one) for one in (ldconfig.CACHE, MAIN, ldconfig.CONFIGURED)))


def _libraries(reader: Reader, wanted: Wanted, folders: Mapping[str, str], there: Set[Entry],
               variables: List[Dict[str, Any]], prefixes: List[str]
               ) -> Tuple[List[Library], List[drivers.Dangling]]:
    real = {folder: os.path.realpath(reader.path(folder))
            for folder in {*folders, *(entry[0] for entry in there
                                       if entry[1].startswith(drivers.PLAIN))}}
    configured = {real[folder] for folder in folders}
    listed = {real[folder] for folder, name in there if name == drivers.SONAME}
    more = [(folder, "configured in %s" % where) for folder, where in folders.items()]
    more += [(folder, "listed in %s" % ldconfig.CACHE) for folder in sorted(real)]
    for variable in variables:
        more += [(folder, "%s in %s" % (VARIABLE, variable["where"]))
                 for folder in map(os.path.normpath, variable["folders"]) if os.path.isabs(folder)]
    # A conda environment may have a libcuda of its own, mostly one to link with.
    more += [(os.path.join(prefix, inside), "the environment %s" % prefix)
             for prefix in prefixes for inside in ("lib", "lib/stubs", "cuda-compat")
             if os.path.isabs(prefix)]
    found, dangling = [], []
    spelled = {}
    for place in drivers.places(reader, wanted.places, more):
        spelled[os.path.realpath(reader.path(place.folder))] = place.folder
        library, links = drivers.read(reader, place, configured, listed)
        dangling += links
        if library:
            found.append(_asked(library))
    for variable in variables:
        # Under whatever name it stands there, it is the folder that was looked into.
        variable["places"] = {folder: spelled[real] for folder in variable["folders"]
                              for real in [os.path.realpath(reader.path(folder))]
                              if os.path.isabs(folder) and real in spelled}
    return found, dangling


def _kept(reader: Reader, libraries: Sequence[Library], dangling: Sequence[drivers.Dangling],
          missing: Iterable[str]) -> Dict[str, str]:
    """Links that are not ours to make, with why."""
    kept: Dict[str, str] = {}

    def is_closed(path: str) -> bool:
        # Who cannot write /etc mends nothing anyway; that has a finding of its own.
        return os.access(reader.path("/etc"), os.W_OK) and not os.access(
            reader.path(os.path.dirname(path)), os.W_OK)

    gone = [os.path.join(one.folder, drivers.SONAME) for one in libraries
            if one.listed and one.soname == "missing"]
    plain = [os.path.join(one.folder, drivers.PLAIN) for one in libraries
             if one.kind == "driver" and one.plain == "missing"]
    for path in [*missing, *gone, *plain]:
        if is_closed(path):
            kept[path] = "cannot be made: its folder cannot be written"
    for one in dangling:
        owner = owner_of(one.path, one.target)
        if owner:
            kept[one.path] = "belongs to the package %s: install that anew" % owner
        elif is_closed(one.path):
            kept[one.path] = "cannot be made anew: its folder cannot be written"
    return kept


def owner_of(path: str, target: str) -> Optional[str]:
    """What owns a link, a package or the system of alternatives; ``None`` where nothing does.

    Where /lib is /usr/lib, a package may know the path by either name.
    """
    if target.startswith("/etc/alternatives/"):
        return "update-alternatives"
    spelled = {path, path[len("/usr"):] if path.startswith("/usr/") else "/usr" + path}
    for argv in OWNERS:
        for one in sorted(spelled):
            ran = run([*argv, one])
            if ran.ok and ran.stdout:
                return ran.stdout.partition(":")[0].strip()
    return None


def _asked(library: Library) -> Library:
    """A small one is a stub where it says so itself, and no driver where it cannot be loaded."""
    if library.kind != "small":
        return library
    said = cuda_probe.load(library.real, init=True)
    if said.init == cuda_probe.STUB_LIBRARY:
        return library._replace(kind="stub")
    return library._replace(kind="driver") if said.init is not None else library


def _variables(reader: Reader, environment: Mapping[str, str]) -> List[Dict[str, Any]]:
    """Where LD_LIBRARY_PATH is set, and its folders as they stand there."""
    told = []
    for line in reader.quiet(SET_FOR_ALL).splitlines():
        found = re.match(r"\s*(?:export\s+)?%s=(.*)$" % VARIABLE, line)
        if found:
            told.append((SET_FOR_ALL, _unquoted(found.group(1))))
    mine = environment.get(VARIABLE, "")
    # A login takes it over from there.
    if mine not in [value for _, value in told]:
        told.append(("the environment of this user", mine))
    return [{"where": where, "value": value, "folders": re.split("[:;]", value)}
            for where, value in told if value]


def _driver_loaded(reader: Reader) -> bool:
    if reader.names(DRIVER_ELSEWHERE):
        return False
    if any(reader.exists(sign) for sign in DEVICES):
        return True
    # Device nodes are made at the first use, so a host just booted has none.
    return reader.exists(driver_files.VERSION) and not any(
        reader.exists(one) for one in CONTAINERS)


def _included_at(reader: Reader) -> Optional[int]:
    """The line that takes our file in; ``None`` where none does."""
    for number, line in enumerate(reader.quiet(MAIN).splitlines(), 1):
        words = line.partition("#")[0].split()
        if words[:1] == ["include"] and any(
                fnmatch.fnmatch(CONF, os.path.join(os.path.dirname(MAIN), word))
                for word in words[1:]):
            return number
    return None


def _unquoted(text: str) -> str:
    try:
        return "".join(shlex.split(text, comments=True))
    except ValueError:
        return text


def _read_only(path: str) -> Optional[bool]:
    """Whether the file system of a folder cannot be written by anybody."""
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return None
