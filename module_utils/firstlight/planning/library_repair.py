# SPDX-License-Identifier: Apache-2.0
"""What mends the library path: our file of ld.so.conf.d, links, the cache; else a way around it."""

from __future__ import annotations

import os
import re
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from .library_path import PLAIN, SONAME, Problem, Seen, chosen, is_of, unlinked

REMEDY = "linker_cache"
CONF = "/etc/ld.so.conf.d/0-0000-firstlight.conf"
"""First of its folder, whether names are sorted by bytes or by a language, so that what it names
comes before a stub or a library for compatibility; CUDA's own files begin with ``000``."""
HEADING = "# Written by Firstlight: where the NVIDIA driver's libraries are.\n"
ORDER_MATTERS = ("libcuda-unlisted", "libcuda-stub-first", "cuda-compat-shadows")
# ld.so.conf has no quotes. A space may be in a name; what means something in that file may not, nor
# what is no text.
_WORD = r"[^\s\x00-\x1f\x7f\ud800-\udfff#=,:;*?\[\]\\]+"
SPELLABLE = re.compile("/%s( %s)*" % (_WORD, _WORD))
VARIABLE = "TRITON_LIBCUDA_PATH"


class Ours(NamedTuple):
    """What is there of ours, and what else decides how the driver's folder can be named.

    ``conf``: the text of our file. ``companions``: names of libraries beside the chosen one.
    ``shadowed``: libraries of the system that its folder would come before. ``writable``: whether
    links can be made in it. ``owners``: packages that own links, by path. ``links``: those that
    ldconfig would make in its folder.
    """

    conf: Optional[str]
    companions: Sequence[str]
    shadowed: Sequence[str]
    writable: bool
    owners: Dict[str, str]
    links: Dict[str, str] = {}


class Repair(NamedTuple):
    """What to do.

    ``conf``: what our file should hold; ``None``: it should not be there. ``links``: targets of
    links to make, by path. ``private``: those of our folder of links, by name; ``None``: it is
    left as it is. ``cache``: whether the cache is made anew, ``clear``: after a folder in its place
    was removed. ``environment``: what engines need where the system itself cannot be mended.
    ``reasons`` say why, ``left`` what is not done.
    """

    conf: Optional[str]
    links: Dict[str, str]
    private: Optional[Dict[str, str]]
    cache: bool
    clear: bool
    environment: Dict[str, str]
    reasons: List[str]
    left: List[str]


def repair(seen: Seen, told: Sequence[Problem], ours: Ours, folder: str) -> Repair:
    """What mends what was found.

    :param seen: as ``host/library_path.py`` observes it.
    :param told: what :func:`.library_path.problems` says of it.
    :param folder: the path of our folder of links.
    """
    driver = chosen(seen)
    mended = mendable(seen, told)
    ids = [one.finding["id"] for one in mended]
    reasons = ["%s: %s" % (one.finding["id"], one.finding["found"]) for one in mended]
    conf = ours.conf
    links: Dict[str, str] = {}
    left: List[str] = []
    private: Optional[Dict[str, str]] = None
    if mended:
        links, left = _links(seen, driver, ids, ours)
    # A package's own links are left, and a cache without them is as good as the one that is there.
    cache = bool(mended) and not (left and not links and set(ids) == {"link-dangling"})
    if driver and _must_be_first(seen, ids, cache, ours):
        place, why = _place(driver, ours, folder, "libcuda-plain-missing" in ids)
        if place == folder:
            # Where it is the driver's folder already, its links are what they should be.
            if driver["folder"] != folder:
                private = _private(driver, ours.companions)
            reasons += [why] if why else []
        else:
            links.update(ours.links)
            links.update(_soname_link(seen, driver))
        conf = HEADING + place + "\n"
    around = environment(seen, told, folder)
    if driver and around:
        reasons.append("what cannot be mended here, engines are led around with %s=%s" % (
            VARIABLE, folder))
        if driver["folder"] != folder:
            private = _private(driver, ours.companions)
    return Repair(conf, links, private, cache, "linker-cache-directory" in ids,
                  around, reasons, left)


def mendable(seen: Seen, told: Sequence[Problem]) -> List[Problem]:
    """What can be mended on this host by whoever looked."""
    # A folder that is not ours to remove leaves no place for a cache.
    taken = seen["cache"]["state"] == "directory" and not seen["cache"]["movable"]
    fails = any(one.finding["id"] == "ldconfig-fails" for one in told)
    works = seen["tool"]["state"] == "ok" and not fails and not seen["without_cache"]
    may_write = seen["etc_writable"] and works and not taken
    return [one for one in told if one.helps == REMEDY] if may_write else []


def environment(seen: Seen, told: Sequence[Problem], folder: str) -> Dict[str, str]:
    """What engines are led with around that which cannot be mended; empty where nothing is so.

    :param folder: the path of our folder of links.
    """
    mended = mendable(seen, told)
    if not chosen(seen) or not [one for one in told
                                if one.stops and one.bypass and one not in mended]:
        return {}
    found = {VARIABLE: folder}
    kinds = {one["real"]: one["kind"] for one in seen["libraries"]}
    if kinds.get((seen["loaded"] or {}).get("path")) != "driver":
        # The loader does not come to it by itself.
        found["LD_LIBRARY_PATH"] = folder
    return found


def _links(seen: Seen, driver: Optional[Dict[str, Any]], ids: Sequence[str],
           ours: Ours) -> Tuple[Dict[str, str], List[str]]:
    """Links that ldconfig would make, those that lead nowhere, and the one to link with."""
    links = {path: target for path, target in seen["links_missing"].items()
             if not any(is_of(one, seen, "stub", "compat", "foreign") for one in (
                 path, os.path.join(os.path.dirname(path), target)))}
    links.update((path, target) for path in unlinked(seen)
                 for target in [_target(seen, path, links)] if target)
    left = []
    # The one without a version last: it leads to the other where that is there.
    dangling = sorted(seen["dangling"], key=lambda one: os.path.basename(one["path"]) == PLAIN)
    for one in dangling if "link-dangling" in ids else []:
        owner = ours.owners.get(one["path"])
        if owner:
            left.append("%s belongs to the package %s: install that anew" % (one["path"], owner))
            continue
        target = _target(seen, one["path"], links)
        if target:
            links[one["path"]] = target
    if driver and "libcuda-plain-missing" in ids and ours.writable:
        path = os.path.join(driver["folder"], PLAIN)
        links[path] = _target(seen, path, links) or SONAME
    return links, left


def _target(seen: Seen, path: str, links: Dict[str, str]) -> Optional[str]:
    """Where a link of libcuda should lead: to its folder's library, of the loaded version."""
    here, name = os.path.split(path)
    library = next((one for one in seen["libraries"]
                    if one["folder"] == here and one["kind"] == "driver"), None)
    if library is None:
        return None
    soname = os.path.join(here, SONAME)
    if name == PLAIN and (library["soname"] == "ok" or soname in links):
        return SONAME
    return _file(seen, library)


def _must_be_first(seen: Seen, ids: Sequence[str], cache: bool, ours: Ours) -> bool:
    """Whether our file has to name a folder before all others."""
    if set(ids) & set(ORDER_MATTERS) or ("libcuda-plain-missing" in ids and not ours.writable):
        return True
    # A cache that is made anew lists a stub's folder too, perhaps first.
    return cache and any(one["kind"] == "stub" and one["configured"] for one in seen["libraries"])


def _file(seen: Seen, library: Dict[str, Any]) -> str:
    versioned = "%s.%s" % (PLAIN, seen["kernel_module"])
    if seen["kernel_module"] in library["others"]:
        return versioned
    real = str(library["real"])
    return os.path.basename(real) if os.path.dirname(real) == library["folder"] else real


def _soname_link(seen: Seen, driver: Dict[str, Any]) -> Dict[str, str]:
    if driver["soname"] != "missing":
        return {}
    return {os.path.join(driver["folder"], SONAME): _file(seen, driver)}


def _place(driver: Dict[str, Any], ours: Ours, folder: str, plain: bool) -> Tuple[str, str]:
    """The folder that our file names, and why it is not the driver's own where it is not.

    :param plain: whether a libcuda.so without a version has to be in it.
    """
    own = str(driver["folder"])
    if own == folder:
        return folder, ""
    if not SPELLABLE.fullmatch(own):
        return folder, "ld.so.conf cannot spell %r: links in %s are named instead" % (own, folder)
    if ours.shadowed:
        return folder, ("%s also has %s, which would come before those of the system: links to "
                        "the driver's alone are named instead" % (
                            own, ", ".join(list(ours.shadowed)[:3])))
    lacks = SONAME if driver["soname"] != "ok" else PLAIN if plain else ""
    if lacks and not ours.writable:
        return folder, "%s has no %s and cannot be written: links are named instead" % (own, lacks)
    return own, ""


def _private(driver: Dict[str, Any], companions: Sequence[str]) -> Dict[str, str]:
    """Links to the driver's libraries, by both names that Triton and the loader look for."""
    links = {name: os.path.join(driver["folder"], name) for name in companions}
    links.update({SONAME: driver["real"], PLAIN: driver["real"]})
    return links
