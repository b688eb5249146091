# SPDX-License-Identifier: Apache-2.0
"""What stands between a program and libcuda: what was seen, held against ``library_checks``.

Several causes look the same from outside and need opposite remedies, so each is told apart by what
was read, and what only follows from another is not told beside it.
"""

from __future__ import annotations

import os
import re
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple

from ..findings import Finding, finding

Seen = Dict[str, Any]
Row = Dict[str, Any]
Library = Dict[str, Any]

SUBJECT = "the library path"
SONAME, PLAIN = "libcuda.so.1", "libcuda.so"
STUB, NOT_READY, MISMATCH, COMPAT = 34, 802, 803, 804
NVML_MISMATCH = 18
# Where ldconfig says that a folder is named.
MAIN = re.compile(r"/etc/ld\.so\.conf:(\d+)")
NAMED = 5
"""How many paths one finding names."""
TOOL = {"missing": "ldconfig-missing", "not_executable": "ldconfig-not-executable"}
CACHE = {state: "linker-cache-" + state for state in (
    "missing", "empty", "damaged", "directory", "unreadable")}


class Problem(NamedTuple):
    """A finding with what its row says of it.

    ``helps`` is the safe remedy that mends it here, ``stops`` what cannot work with it.
    """

    finding: Finding
    helps: str
    stops: str
    bypass: bool
    python: str = ""
    """The one that it stops; empty: every program."""


class _Found(NamedTuple):
    """A row's id, the words for its texts, what was read, and whether its remedy helps here."""

    id: str
    words: Dict[str, Any]
    evidence: str
    helps: bool = True
    stops: bool = True
    python: str = ""
    bypass: bool = True


def problems(seen: Seen, rows: Iterable[Row], tritons: Iterable[Row],
             half_done: str = "") -> List[Problem]:
    """Everything that is wrong, causes only.

    :param seen: as ``host/library_path.py`` observes it.
    :param rows: of the catalog ``library_checks``.
    :param tritons: of the catalog ``triton_releases``.
    :param half_done: the journal of a repair that was ended in the middle, or nothing.
    """
    by_id = {row["id"]: row for row in rows}
    found: List[_Found] = []
    if half_done:
        found.append(_Found("repair-half-done", {"journal": half_done}, half_done))
    found += _of_tool(seen)
    found += _of_cache(seen)
    broken = bool(found) and found[-1].id in {*TOOL.values(), *CACHE.values(), "ldconfig-fails"}
    found += _of_libcuda(seen, broken)
    found += _of_variables(seen)
    found += _of_triton(seen, list(tritons))
    told = [_problem(one, by_id[one.id]) for one in found]
    if any(one.helps and one.finding["needs_root"] for one in told) and not seen["etc_writable"]:
        which = "root-read-only" if seen["read_only"] else "not-root"
        told.append(_problem(_Found(which, {}, "access(/etc)", False), by_id[which]))
    return told


def chosen(seen: Seen) -> Optional[Library]:
    """The driver's library to go by: of the loaded kernel module's version, listed, configured.

    ``None`` where there is none, or where several versions are there and nothing says which is
    right.
    """
    found = _drivers(seen)
    exact = [one for one in found if one["version"] and one["version"] == seen["kernel_module"]]
    if not exact and len({one["version"] for one in found if one["version"]}) > 1:
        return None
    # Of two folders that lead to one library, that in which it lies.
    return min(exact or found, default=None, key=lambda one: (
        not one["listed"], not one["configured"], os.path.dirname(one["real"]) != one["folder"]))


def _drivers(seen: Seen) -> List[Library]:
    return [one for one in seen["libraries"] if one["kind"] == "driver"]


def _problem(one: _Found, row: Row) -> Problem:
    told = finding(
        one.id, SUBJECT, row["found"] % one.words, row["wanted"] % one.words,
        row["remedy"] % one.words, severity=row["severity"], evidence=one.evidence,
        needs_root=row["needs_root"], source=row["source"])
    return Problem(told, row["helps"] if one.helps else "", row["stops"] if one.stops else "",
                   row["bypass"] and one.bypass, one.python)


def deaf(seen: Seen, tritons: Iterable[Row]) -> List[str]:
    """The Pythons whose Triton knows no variable: they cannot be led around anything."""
    rows = list(tritons)
    found = [(one["path"], triton_row(one["triton"], rows)) for one in seen["pythons"]
             if one["triton"]]
    return [path for path, row in found if row and not row["variable"]]


# The tool and its cache.


def _of_tool(seen: Seen) -> Iterator[_Found]:
    state = seen["tool"]["state"]
    if seen["without_cache"] and (state == "ok" or not seen["driver_loaded"]):
        return
    if state in TOOL:
        yield _Found(TOOL[state], {"said": seen["tool"]["detail"]}, seen["tool"]["detail"])
        return
    # Of a broken cache it tells in its own way; that is the cache's failure, not its.
    whole = seen["cache"]["state"] in ("ok", "unknown")
    calls = [seen["rehearsal"]] + ([seen["listing"]] if whole else [])
    for call in calls:
        if call["rc"] != 0:
            yield _Found("ldconfig-fails", {"said": call["said"]}, call["said"])
            return


def _of_cache(seen: Seen) -> Iterator[_Found]:
    cache = seen["cache"]
    if seen["without_cache"]:
        return
    mounted = "" if cache["movable"] else "; it is mounted there and cannot be replaced"
    words = {"cache": cache["detail"], "full": ""}
    if cache["state"] in CACHE:
        if cache["state"] != "directory":
            words["cache"] += mounted
        elif mounted:
            words["full"] = ", with something in it or mounted there"
        yield _Found(CACHE[cache["state"]], words, cache["detail"], cache["movable"])
        return
    dangling = {one["path"] for one in _dangling(seen)}
    gone = [path for path in dict.fromkeys([*seen["gone"], *unlinked(seen)])
            if path not in dangling]
    parts = ["%s %s" % (text, _named(paths)) for text, paths in (
        ("it lacks", _unlisted(seen)), ("it lists what is gone:", gone)) if paths]
    if parts:
        changes = "%d libraries are listed; %s%s" % (
            cache["libraries"], "; ".join(parts), mounted)
        # Triton looks for libcuda alone.
        matters = any(os.path.basename(path).startswith(PLAIN)
                      for path in [*_unlisted(seen), *gone])
        # A link that is not ours to make is gone from a new cache's listing as well.
        mends = bool(set(_unlisted(seen) + gone) - set(seen["kept"]))
        yield _Found("linker-cache-stale", {"changes": changes},
                     "ldconfig -p against ldconfig -N -X -v", cache["movable"] and mends, matters)


def unlinked(seen: Seen) -> List[str]:
    """Links to a driver's library that are gone and that the cache still lists."""
    return [os.path.join(one["folder"], SONAME) for one in _drivers(seen)
            if one["listed"] and one["soname"] == "missing"]


def is_of(path: str, seen: Seen, *kinds: str) -> bool:
    """Whether a path is that of a libcuda in the folder of a library of these kinds."""
    here, name = os.path.split(path)
    return name.startswith(PLAIN) and any(
        one["folder"] == here and one["kind"] in kinds for one in seen["libraries"])


def _unlisted(seen: Seen) -> List[str]:
    """What the cache lacks; that it does not lead to a stub or to cuda-compat is no loss."""
    return [path for path in seen["unlisted"] if not is_of(path, seen, "stub", "compat")]


def _named(paths: List[str]) -> str:
    """The first of them, those of CUDA before all."""
    ordered = sorted(paths, key=lambda path: not os.path.basename(path).startswith("libcuda"))
    more = len(ordered) - NAMED
    return ", ".join(ordered[:NAMED]) + (" and %d more" % more if more > 0 else "")


# libcuda.


def _of_libcuda(seen: Seen, broken: bool) -> Iterator[_Found]:
    loaded, driver = seen["loaded"], chosen(seen)
    dangling = "; ".join([
        *("%s -> %s" % (one["path"], one["target"]) for one in seen["dangling"]),
        *("%s is a %s" % (one["path"], one["kind"]) for one in seen["libraries"]
          if one["kind"] == "stub")])
    if not _drivers(seen):
        if seen["driver_loaded"] and _is_served(seen):
            yield from _of_loaded(seen, {})
        elif seen["driver_loaded"]:
            yield _Found("libcuda-missing", {"version": _version(seen["kernel_module"])},
                         dangling or "looked into %d configured folders and those of the catalog"
                         % len(seen["folders"]))
        return
    versions = sorted({version for one in _drivers(seen)
                       for version in [one["version"], *one["others"]] if version})
    if len(versions) > 1:
        yield _Found("library-versions-two", {
            "versions": ", ".join(versions), "version": _version(seen["kernel_module"])},
            "; ".join(one["real"] for one in _drivers(seen)))
    words = {"chosen": " or ".join(one["path"] for one in ([driver] if driver else _drivers(seen))),
             "folder": driver["folder"] if driver else ""}
    hidden = list(_of_loaded(seen, words))
    # Where nothing says which driver's is right, or what is in front stands before our file is
    # taken in, nothing can be put first.
    first = driver is not None and not _is_fixed(seen)
    yield from (one if first else one._replace(helps=False) for one in hidden)
    links = _dangling(seen)
    for one in links:
        yield _Found("link-dangling", {**words, **one}, dangling,
                     one["path"] not in seen["kept"])
    if hidden or driver is None:
        return
    # Without ldconfig nothing tells which folders are configured.
    if seen["folders"] and not driver["configured"]:
        which = "libcuda-unconfigured" if driver["listed"] else "libcuda-unlisted"
        yield _Found(which, words, "%s (%s)" % (driver["path"], driver["why"]),
                     seen["included_at"] is not None)
        return
    if loaded and loaded["path"] is None and not (
            broken or links or _unlisted(seen) or unlinked(seen)):
        yield _Found("libcuda-unloadable", {**words, "said": loaded["error"]}, loaded["error"])


def _is_fixed(seen: Seen) -> bool:
    """Whether the folder of what is loaded is named before our file could be taken in."""
    if seen["included_at"] is None:
        return True
    one = _loaded_library(seen)
    line = MAIN.fullmatch(str(seen["folders"].get(one["folder"], ""))) if one else None
    return line is not None and int(line.group(1)) < seen["included_at"]


def _is_served(seen: Seen) -> bool:
    """Whether a program gets a libcuda that goes with the driver, though no driver's was found."""
    loaded = seen["loaded"]
    return bool(loaded and (loaded["hangs"] or (
        loaded["path"] and _loaded_kind(seen) not in ("stub", "foreign")
        and loaded["init"] not in (STUB, MISMATCH, COMPAT))))


def _dangling(seen: Seen) -> List[Dict[str, str]]:
    """Links that lead nowhere beside a driver's library, to which they should."""
    folders = [one["folder"] for one in _drivers(seen)]
    return [one for one in seen["dangling"] if os.path.dirname(one["path"]) in folders]


def _of_loaded(seen: Seen, words: Dict[str, Any]) -> Iterator[_Found]:
    """What a fresh process got that loaded libcuda.so.1."""
    loaded = seen["loaded"]
    if loaded is None:
        return
    if loaded["hangs"]:
        yield _Found("cuda-init-hangs", {"limit": seen["limit_s"]}, loaded["error"])
        return
    if loaded["path"] is None:
        return
    kind, init = _loaded_kind(seen), loaded["init"]
    words = {**words, "path": loaded["path"], "init": _said(loaded), "size": "",
             "version": _loaded_version(seen) or "another version",
             "module": seen["kernel_module"] or "another version"}
    evidence = "%s: cuInit %s" % (loaded["path"], "not asked" if init is None else _said(loaded))
    if kind == "stub" or init == STUB:
        size = next((one["size"] for one in seen["libraries"]
                     if one["real"] == loaded["path"]), None)
        words["size"] = "%d bytes" % size if size is not None else "of unknown size"
        yield _Found("libcuda-stub-first", words, evidence)
    elif kind == "compat" and init in (MISMATCH, COMPAT):
        yield _Found("cuda-compat-shadows", words, evidence)
    elif _is_mismatch(seen, kind) and kind != "compat" and _has_version(seen, loaded["path"]):
        # Put first where it is in a folder of its own; two in one folder have one link.
        apart = chosen(seen) is not _loaded_library(seen)
        yield _Found("libcuda-other-first", words, evidence, apart, bypass=apart)
    elif _is_mismatch(seen, kind):
        if words["version"] == words["module"] or kind == "compat":
            # NVML alone says so.
            words.update(path="libnvidia-ml.so.1", version="another version")
        nvml = "not asked" if loaded["nvml"] is None else loaded["nvml"]
        yield _Found("driver-library-mismatch", words, "%s; nvmlInit %s" % (evidence, nvml))
    # 802 is the fabric's: the host's health tells it.
    elif init not in (None, 0, NOT_READY):
        yield _Found("cuda-init-fails", words, evidence)


def _is_mismatch(seen: Seen, kind: str) -> bool:
    loaded, version = seen["loaded"], _loaded_version(seen)
    if loaded["nvml"] == NVML_MISMATCH or (kind != "compat" and loaded["init"] == MISMATCH):
        return True
    # Where CUDA starts, the two go together all the same.
    return bool(kind == "driver" and version and seen["kernel_module"]
                and version != seen["kernel_module"] and loaded["init"] != 0)


def _has_version(seen: Seen, loaded: str) -> bool:
    """Whether a library beside the one that is loaded, and not it, is of the module's version."""
    module = seen["kernel_module"]
    if not module or _loaded_version(seen) == module:
        return False
    return any((one["real"] != loaded and one["version"] == module) or module in one["others"]
               for one in _drivers(seen))


def _loaded_kind(seen: Seen) -> str:
    one = _loaded_library(seen)
    return str(one["kind"]) if one else ""


def _loaded_version(seen: Seen) -> Optional[str]:
    one = _loaded_library(seen)
    return one["version"] if one else None


def _loaded_library(seen: Seen) -> Optional[Library]:
    path = (seen["loaded"] or {}).get("path")
    return next((one for one in seen["libraries"] if one["real"] == path), None)


def _said(loaded: Dict[str, Any]) -> str:
    return "%s%s" % (loaded["init"], " (%s)" % loaded["text"] if loaded["text"] else "")


def _version(module: Optional[str]) -> str:
    return ", %s" % module if module else ""


# LD_LIBRARY_PATH.


def _of_variables(seen: Seen) -> Iterator[_Found]:
    for folder, where, what in _harmful(seen):
        yield _Found("library-path-harmful", {"folder": folder, "where": where, "what": what},
                     "LD_LIBRARY_PATH in %s" % where)


def _harmful(seen: Seen) -> Iterator[Tuple[str, str, str]]:
    by_folder = {one["folder"].rstrip("/"): one for one in seen["libraries"]}
    module = seen["kernel_module"]
    for variable in seen["variables"]:
        for folder in dict.fromkeys(variable["folders"]):
            one = by_folder.get(variable["places"].get(folder, folder.rstrip("/")))
            if one is None:
                continue
            if one["kind"] == "stub":
                yield folder, variable["where"], "a stub, %s" % one["path"]
            elif variable["starts"].get(one["folder"]) in (MISMATCH, COMPAT):
                yield folder, variable["where"], "libcuda %s, which does not go with the kernel " \
                    "module%s" % (one["version"] or "of another version", _version(module))


# Triton.


def _of_triton(seen: Seen, tritons: List[Row]) -> Iterator[_Found]:
    driver = chosen(seen)
    for python in seen["pythons"]:
        words = {"python": python["path"], "triton": python["triton"], "said": python["error"],
                 "include": python["include"], "number": python["python"]}
        if python["error"]:
            yield _Found("engine-python-unusable", words, python["error"],
                         python=python["path"])
            continue
        if not python["triton"]:
            continue
        evidence = "%s has triton %s" % (python["path"], python["triton"])
        if python["compiler"] is None:
            yield _Found("c-compiler-missing", words, evidence, python=python["path"])
        if not python["headers"]:
            yield _Found("python-headers-missing", words, evidence, python=python["path"])
        row = triton_row(python["triton"], tritons)
        if row and row["plain"] and driver and driver["plain"] == "missing" and not any(
                one["plain"] == "ok" and one["listed"] for one in _drivers(seen)):
            yield _Found("libcuda-plain-missing", {
                **words, "chosen": driver["path"], "folder": driver["folder"]}, evidence,
                python=python["path"])


def triton_row(version: str, rows: Iterable[Row]) -> Optional[Row]:
    """The row of the catalog ``triton_releases`` that a version is in."""
    key = _numbers(version)
    for row in rows:
        if _numbers(row["first"]) <= key and (not row["below"] or key < _numbers(row["below"])):
            return row
    return None


def _numbers(version: str) -> List[int]:
    """The three numbers that a version begins with, as ``3.6.0+git`` does."""
    numbers: List[int] = []
    for part in version.split(".")[:3]:
        digits = part[:len(part) - len(part.lstrip("0123456789"))]
        numbers.append(int(digits or 0))
        if digits != part:
            break
    return numbers + [0] * (3 - len(numbers))
