# SPDX-License-Identifier: Apache-2.0
"""What mends the library path: our file of ld.so.conf.d, links, the cache; else a way around it."""

from __future__ import annotations

import os
import re
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from .library_path import PLAIN, SONAME, Problem, Seen, chosen, is_of, unlinked

REMEDY = "linker_cache"
HEADING = "# Written by Firstlight of %s: where the NVIDIA driver's libraries are.\n"
ORDER_MATTERS = ("libcuda-unlisted", "libcuda-unconfigured", "libcuda-stub-first",
                 "libcuda-other-first", "cuda-compat-shadows")
NO_DRIVER = ("stub", "compat", "foreign", "small")
"""Kinds of libraries that are never linked."""
# ld.so.conf has no quotes. A space may be in a name; what means something in that file may not, nor
# what is no text.
_WORD = r"[^\s\x00-\x1f\x7f\ud800-\udfff#=,:;*?\[\]\\]+"
SPELLABLE = re.compile("/%s( %s)*" % (_WORD, _WORD))
VARIABLE = "TRITON_LIBCUDA_PATH"


class Ours(NamedTuple):
    """What is there of ours, and what else decides how the driver's folder can be named.

    ``conf``: the text of our file. ``companions``: names of libraries beside the chosen one.
    ``shadowed``: libraries of the system that its folder would come before. ``writable``: whether
    links can be made in it. ``kept``: links that stay as they are, with why. ``links``: those that
    ldconfig would make in its folder. ``private``: those in our folder of links, by name.
    """

    conf: Optional[str]
    companions: Sequence[str]
    shadowed: Sequence[str]
    writable: bool
    kept: Dict[str, str]
    links: Dict[str, str] = {}
    private: Dict[str, str] = {}


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


def repair(seen: Seen, told: Sequence[Problem], ours: Ours, root: str, folder: str) -> Repair:
    """What mends what was found.

    :param seen: as ``host/library_path.py`` observes it.
    :param told: what :func:`.library_path.problems` says of it.
    :param root: ``firstlight_root``.
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
    if any(one.finding["id"] in ("link-dangling", "linker-cache-stale") for one in told):
        here = [*(one["path"] for one in seen["dangling"]), *unlinked(seen)]
        left = list(dict.fromkeys([*left, *(
            "%s %s" % (path, ours.kept[path]) for path in here
            if path in ours.kept and is_of(path, seen, "driver"))]))
    cache = bool(mended)
    if driver and _must_be_first(seen, ids, cache, ours):
        place, why = _place(seen, driver, ours, folder, "libcuda-plain-missing" in ids)
        reasons += [why] if why else []
        if place == folder and driver["folder"] != folder:
            # Where it is the driver's folder already, its links are what they should be.
            private = _private(driver, ours.companions)
        elif place and place != folder:
            links.update({**ours.links, **_soname_link(seen, driver)} if ours.writable else {})
        conf = HEADING % root + place + "\n" if place else conf
    around = environment(seen, told, folder)
    if driver and around:
        reasons.append("what cannot be mended here, engines are led around with %s=%s" % (
            VARIABLE, folder))
    if driver and driver["folder"] != folder and (around or ours.private):
        # Also where nobody needs them any more: an engine may run that was started with them.
        private = _private(driver, ours.companions)
    if cache and seen["strays"]:
        left.append("no longer listed, as no file names their folders: %s" % ", ".join(
            seen["strays"]))
    return Repair(conf, links, private, cache, "linker-cache-directory" in ids,
                  around, reasons, left)


def mendable(seen: Seen, told: Sequence[Problem]) -> List[Problem]:
    """What can be mended on this host by whoever looked."""
    fails = any(one.finding["id"] == "ldconfig-fails" for one in told)
    works = seen["tool"]["state"] == "ok" and not fails and not seen["without_cache"]
    if not (seen["etc_writable"] and works and seen["cache"]["movable"]):
        return []
    named = not _open_to_others(seen)
    beside = {os.path.join(one["folder"], PLAIN) for one in seen["libraries"]}
    # Neither beside the library nor in a folder that is named before it.
    nowhere = not (named and seen["included_at"]) and beside & set(seen["kept"])
    return [one for one in told if one.helps == REMEDY
            and (named or one.finding["id"] not in ORDER_MATTERS)
            and not (nowhere and one.finding["id"] == "libcuda-plain-missing")]


def _open_to_others(seen: Seen) -> str:
    """Why no folder can be named, or nothing.

    Every program of the host looks into what is named, root's too.
    """
    driver = chosen(seen)
    if driver is None:
        return "no driver's library is there"
    if not driver["safe"]:
        return "others than root can write %s" % driver["folder"]
    return "" if seen["links_safe"] else "others than root can write where our links go"


def environment(seen: Seen, told: Sequence[Problem], folder: str) -> Dict[str, str]:
    """What engines are led with around that which cannot be mended; empty where nothing is so.

    :param folder: the path of our folder of links.
    """
    mended = mendable(seen, told)
    if not chosen(seen) or not [one for one in told
                                if one.stops and one.bypass and one not in mended]:
        return {}
    found = {VARIABLE: folder}
    loaded = seen["loaded"] or {}
    kinds = {one["real"]: one["kind"] for one in seen["libraries"]}
    kind = kinds.get(loaded.get("path"))
    other = any(one.finding["id"] == "libcuda-other-first" for one in told)
    if other or not (kind == "driver" or (kind == "compat" and loaded["init"] == 0)):
        # The loader does not come to it by itself.
        found["LD_LIBRARY_PATH"] = folder
    return found


def _links(seen: Seen, driver: Optional[Dict[str, Any]], ids: Sequence[str],
           ours: Ours) -> Tuple[Dict[str, str], List[str]]:
    """Links that ldconfig would make, those that lead nowhere, and the one to link with."""
    links = {path: target for path, target in seen["links_missing"].items()
             if not any(is_of(one, seen, *NO_DRIVER) for one in (
                 path, os.path.join(os.path.dirname(path), target)))}
    links.update((path, target) for path in unlinked(seen)
                 for target in [_target(seen, path, links)] if target)
    left = ["%s %s" % (path, ours.kept[path]) for path in sorted(links) if path in ours.kept]
    links = {path: target for path, target in links.items() if path not in ours.kept}
    # The one without a version last: it leads to the other where that is there.
    dangling = sorted(seen["dangling"], key=lambda one: os.path.basename(one["path"]) == PLAIN)
    for one in dangling if "link-dangling" in ids else []:
        target = _target(seen, one["path"], links)
        if target and one["path"] not in ours.kept:
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


def _place(seen: Seen, driver: Dict[str, Any], ours: Ours, folder: str,
           plain: bool) -> Tuple[str, str]:
    """The folder that our file names, empty where none can be, and why it is not the driver's own.

    :param plain: whether a libcuda.so without a version has to be in it.
    """
    own = str(driver["folder"])
    why = _open_to_others(seen)
    if why:
        return "", "%s: no folder is named" % why
    if own == folder:
        return folder, ""
    lacks = SONAME if driver["soname"] != "ok" else PLAIN if plain else ""
    if not SPELLABLE.fullmatch(own):
        why = "ld.so.conf cannot spell %r" % own
    elif ours.shadowed:
        why = "%s also has %s, which would come before those of the system" % (
            own, ", ".join(list(ours.shadowed)[:3]))
    elif lacks and not ours.writable:
        why = "%s has no %s and cannot be written" % (own, lacks)
    if not why:
        return own, ""
    return folder, "%s: links in %s are named instead" % (why, folder)


def _private(driver: Dict[str, Any], companions: Sequence[str]) -> Dict[str, str]:
    """Links to the driver's libraries, by both names that Triton and the loader look for."""
    links = {name: os.path.join(driver["folder"], name) for name in companions}
    # By its link, where there is one, so that an update of the driver changes nothing for us.
    library = os.path.join(driver["folder"], SONAME) if driver["soname"] == "ok" else driver["real"]
    links.update({SONAME: library, PLAIN: library})
    return links
