# SPDX-License-Identifier: Apache-2.0
"""All that decides whether a program on this host finds libcuda, and what would stop Triton."""

from __future__ import annotations

import os
import re
import shlex
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple

from . import cuda_probe, driver_files, ldconfig, triton_needs
from . import driver_libraries as drivers
from .driver_libraries import Library
from .ldconfig import Entry
from .reading import Reader

VARIABLE = "LD_LIBRARY_PATH"
SET_FOR_ALL = "/etc/environment"
SIGNS = (driver_files.VERSION, "/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/nvgpu", "/dev/dxg")
"""What is there where a driver is loaded: of servers, of Jetsons, of WSL."""
MAX_NAMED = 2000

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


def observe(reader: Reader, wanted: Wanted, environment: Mapping[str, str],
            start_cuda: bool = True) -> Seen:
    """Everything, as plain data; nothing is changed.

    :param environment: of the process that looks, whose loader is asked.
    :param start_cuda: whether ``cuInit`` is called, last and in a process of its own.
    :returns: ``root``, ``etc_writable`` and ``read_only``; ``tool``, ``cache`` and ``listing``
        with their states; ``without_cache``: whether it is a system that has none by design;
        ``unlisted`` and ``gone``: paths; ``folders``: those that are
        configured; ``links_missing``: links that ldconfig would make, with their targets;
        ``libraries``, ``dangling``; ``variables``: where ``LD_LIBRARY_PATH`` is set, to what, and
        how CUDA starts with its libcuda for compatibility; ``kernel_module``,
        ``driver_loaded``; ``loaded``: what a fresh process gets, or ``None`` where there is
        nothing to load; ``pythons``; ``unread``.
    """
    seen = _cache(reader)
    there: Set[Entry] = seen.pop("entries")
    variables = _variables(reader, environment)
    libraries, dangling = _libraries(reader, wanted, seen["folders"], there, variables,
                                     environment)
    seen.update(
        root=os.geteuid() == 0,
        read_only=_read_only(reader.path("/etc")),
        etc_writable=os.access(reader.path("/etc"), os.W_OK),
        libraries=[one._asdict() for one in libraries],
        dangling=[one._asdict() for one in dangling],
        variables=variables,
        kernel_module=driver_files.kernel_module(reader),
        driver_loaded=any(reader.exists(sign) for sign in SIGNS),
        pythons=triton_needs.read(wanted.pythons, environment),
        loaded=None,
        limit_s=cuda_probe.LIMIT_S,
    )
    start_cuda = start_cuda and seen["driver_loaded"]
    if libraries or seen["driver_loaded"]:
        seen["loaded"] = cuda_probe.load(drivers.SONAME, start_cuda)._asdict()
    for variable in variables:
        variable["starts"] = {
            one.folder: cuda_probe.load(one.real, init=True).init for one in libraries
            if one.kind == "compat" and one.folder in variable["folders"] and start_cuda}
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
        "listing": None, "rehearsal": None, "folders": {}, "unlisted": [], "gone": [],
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
        reader.exists(one) for one in (ldconfig.CACHE, "/etc/ld.so.conf", ldconfig.CONFIGURED)))


def _libraries(reader: Reader, wanted: Wanted, folders: Mapping[str, str], there: Set[Entry],
               variables: List[Dict[str, Any]], environment: Mapping[str, str]
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
                 for folder in variable["folders"] if os.path.isabs(folder)]
    if os.path.isabs(environment.get("CONDA_PREFIX", "")):
        more.append((os.path.join(environment["CONDA_PREFIX"], "lib"), "CONDA_PREFIX"))
    found, dangling = [], []
    for place in drivers.places(reader, wanted.places, more):
        library, links = drivers.read(reader, place, configured, listed)
        dangling += links
        if library:
            found.append(_asked(library))
    return found, dangling


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
    told = [("the environment of this user", environment.get(VARIABLE, ""))]
    for line in reader.quiet(SET_FOR_ALL).splitlines():
        found = re.match(r"\s*(?:export\s+)?%s=(.*)$" % VARIABLE, line)
        if found:
            told.append((SET_FOR_ALL, _unquoted(found.group(1))))
    return [{"where": where, "value": value, "folders": re.split("[:;]", value)}
            for where, value in told if value]


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
