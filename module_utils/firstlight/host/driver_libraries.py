# SPDX-License-Identifier: Apache-2.0
"""Where a driver's libcuda lies, and what lies there in its place: stubs, and those for
compatibility."""

from __future__ import annotations

import glob
import os
import platform
import re
import stat
import struct
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Set, Tuple

from .reading import Reader

SONAME = "libcuda.so.1"
PLAIN = "libcuda.so"
"""The name without a version, for linkers: Triton up to 3.5 links with ``-lcuda``."""
VERSIONED = re.compile(r"libcuda\.so\.(\d+\.\d+(?:\.\d+)?)$")
LEAST_MAJOR = 100
"""Drivers for servers and workstations count from here; a Jetson's library is called 1.1."""
STUB_BYTES = 2**20
"""A stub has some 40 KB, a driver's library 20 MB and more: what is smaller has to be asked."""

DRIVER = re.compile(
    r"lib(cuda\.so|cudadebugger\.so|nvidia-|nvcuvid|nvoptix|\w+_nvidia\.|dxcore\.|d3d12"
    # Of a Jetson's driver.
    r"|nv(rm|os|sci|gpu|cudla|dla|tegra|buf|media|socsys|dc|vic|tvmr|colorutil|imp))")
"""Names of the libraries that come with a libcuda and that it looks for. Those of the toolkit
(nvrtc, nvJitLink, nvinfer, nvblas and more) are none of them."""

# e_machine of an ELF header (elf.h).
MACHINES = {"x86_64": 62, "aarch64": 183}


class Place(NamedTuple):
    """A folder to look into, and how we came to it: a row of the catalog, or in words."""

    folder: str
    kind: str
    why: str


class Library(NamedTuple):
    """A folder with a libcuda in it, by the name that the loader looks for or any other.

    ``kind`` is ``driver``, ``stub``, ``compat`` (of the package cuda-compat), ``foreign`` (for
    another processor) or ``small`` (it may be a stub: ask it). ``soname`` and ``plain`` say of the
    links ``libcuda.so.1`` and ``libcuda.so``: ``ok``, ``missing`` or ``dangling``.
    """

    folder: str
    kind: str
    path: str
    real: str
    size: int
    version: Optional[str]
    soname: str
    plain: str
    others: List[str]
    """Versions of further libcuda in the same folder."""
    configured: bool
    listed: bool
    safe: bool
    """Whether nobody but root can put another library in its place."""
    why: str


class Dangling(NamedTuple):
    """A link of libcuda that leads nowhere."""

    path: str
    target: str


def places(reader: Reader, rows: Iterable[Dict[str, Any]],
           more: Iterable[Tuple[str, str]]) -> List[Place]:
    """The folders to look into, each once: those that are configured, then those of the catalog.

    :param rows: of the catalog ``library_places``.
    :param more: folders, and how we came to them.
    """
    found = [Place(folder, "", why) for folder, why in more]
    for row in rows:
        pattern = reader.path(row["path"])
        for path in sorted(glob.glob(pattern)):
            folder = "/" + os.path.relpath(path, reader.path("/"))
            found.append(Place(folder, row["kind"], row["id"]))
    seen: Dict[str, Place] = {}
    for place in found:
        real = os.path.realpath(reader.path(place.folder))
        if not os.path.isdir(real):
            continue
        known = seen.get(real)
        if known is None:
            seen[real] = place
        elif not known.kind:
            seen[real] = known._replace(kind=place.kind)
    return list(seen.values())


def read(reader: Reader, place: Place, configured: Set[str],
         listed: Set[str]) -> Tuple[Optional[Library], List[Dangling]]:
    """What is in a folder, and the links that lead nowhere.

    :param configured: real paths of the folders that are configured.
    :param listed: real paths of the folders that the cache lists libcuda.so.1 of.
    """
    here = reader.path(place.folder)
    try:
        names = sorted(name for name in os.listdir(here) if name.startswith(PLAIN))
    except OSError as problem:
        reader.refused(place.folder, problem)
        return None, []
    links = {name: _link(os.path.join(here, name)) for name in (SONAME, PLAIN)}
    dangling = [Dangling(os.path.join(place.folder, name), os.readlink(os.path.join(here, name)))
                for name, state in links.items() if state == "dangling"]
    versions = {name: found.group(1) for name in names
                for found in [VERSIONED.match(name)] if found and os.path.isfile(
                    os.path.join(here, name))}
    best = next((name for name in (SONAME, PLAIN) if links[name] == "ok"), None) or max(
        versions, key=lambda name: _key(versions[name]), default=None)
    if best is None:
        return None, dangling
    real = os.path.realpath(os.path.join(here, best))
    size = os.path.getsize(real)
    named = VERSIONED.match(os.path.basename(real))
    version = told(named.group(1)) if named else None
    real_folder = os.path.realpath(here)
    return Library(
        place.folder, _kind(place, real, size, version), os.path.join(place.folder, best),
        "/" + os.path.relpath(real, reader.path("/")), size, version, links[SONAME], links[PLAIN],
        sorted({one for one in map(told, versions.values()) if one and one != version}),
        real_folder in configured, real_folder in listed,
        safe(os.path.join(here, best)), place.why), dangling


def safe(path: str) -> bool:
    """Whether nobody but root (and whoever asks) can change what is under a path, made or not."""
    if not os.path.exists(path):
        above = os.path.dirname(path)
        # In a sticky folder as /tmp anybody can make what is not there.
        return not os.path.islink(path) and safe(above) and not (
            os.path.exists(above) and os.stat(above).st_mode & 0o022)
    while True:
        found, itself = os.stat(path), os.lstat(path)
        mine = {found.st_uid, itself.st_uid} <= {0, os.geteuid()}
        # In a sticky folder as /tmp nobody removes what is another's.
        if not mine or (found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX):
            return False
        above = os.path.dirname(path)
        if stat.S_ISLNK(itself.st_mode) and not safe(os.path.join(above, os.readlink(path))):
            return False
        if path == above:
            return True
        path = above


def told(version: str) -> Optional[str]:
    """The version where it is that of a driver."""
    return version if int(version.partition(".")[0]) >= LEAST_MAJOR else None


def siblings(reader: Reader, folder: str) -> List[str]:
    """Names of the libraries that come with the libcuda of a folder, itself included."""
    return [name for name in sorted(os.listdir(reader.path(folder)))
            if DRIVER.match(name) and ".so" in name
            and os.path.isfile(reader.path(os.path.join(folder, name)))]


def _key(version: str) -> Tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _link(path: str) -> str:
    if os.path.isfile(path):
        return "ok"
    return "dangling" if os.path.islink(path) else "missing"


def _kind(place: Place, real: str, size: int, version: Optional[str]) -> str:
    machine = _machine(real)
    if machine not in (None, MACHINES.get(platform.machine(), machine)):
        return "foreign"
    parts = place.folder.split("/") + real.split("/")[:-1]
    if place.kind == "stub" or "stubs" in parts:
        return "stub"
    if place.kind == "compat" or "compat" in parts or "cuda-compat" in parts:
        return "compat"
    return "small" if size < STUB_BYTES and version is None else "driver"


def _machine(path: str) -> Optional[int]:
    """The processor that a library is for, by its ELF header; ``None`` where it has none."""
    try:
        with open(path, "rb") as file:
            head = file.read(20)
    except OSError:
        return None
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return None
    order = "<" if head[5] == 1 else ">"
    return int(struct.unpack(order + "H", head[18:20])[0])
