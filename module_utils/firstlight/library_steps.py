# SPDX-License-Identifier: Apache-2.0
"""What mends the library path of a host: what is seen, and the steps; nothing is changed here."""

from __future__ import annotations

import os
from typing import Any, Dict, List, Mapping, Tuple

from . import findings, library_path, paths
from .host import driver_libraries, ldconfig
from .host.reading import Reader
from .library_path import Looked
from .planning import library_path as judge
from .planning import library_repair

NAMED = 20
"""So many links are told by name."""


class Host:
    """The host, as it is read and changed.

    :param params: of the module, as :data:`.library_path.SPEC` has them.
    :param system_root: where the file system of the host is.
    """

    def __init__(self, params: Mapping[str, Any], system_root: str = "/") -> None:
        self.params = params
        self.root = paths.root(params["root"])
        self.folder = library_path.folder(self.root)
        self.reader = Reader(system_root)

    def observe(self) -> Tuple[Looked, library_repair.Ours]:
        """What is there, what is wrong with it, and what is ours of it."""
        looked = library_path.look(self.reader, self.params, os.environ)
        return looked, self.ours(looked.seen)

    def ours(self, seen: Dict[str, Any]) -> library_repair.Ours:
        """What else decides how the driver's folder can be named."""
        conf = paths.read(self.reader.path(ldconfig.CONF))
        driver = judge.chosen(seen)
        beside = driver["folder"] if driver else ""
        shadowed, links = self.named(beside) if driver else ([], {})
        return library_repair.Ours(
            conf=None if conf is None else conf.decode("utf-8", "replace"),
            companions=driver_libraries.siblings(self.reader, beside) if driver else [],
            shadowed=shadowed,
            links=links,
            writable=bool(driver) and os.access(self.reader.path(beside), os.W_OK),
            kept=seen["kept"],
            private=self.private(),
        )

    def named(self, folder: str) -> Tuple[List[str], Dict[str, str]]:
        """What becomes of a folder that is named before all others.

        Libraries of the system, none of a driver's, that it has too, and the links that it lacks.
        """
        if not library_repair.SPELLABLE.fullmatch(folder):
            return [], {}
        would = ldconfig.configured(ldconfig.rehearsal(self.reader, [folder]).stdout).entries
        inside = {name: file for (where, name), file in would.items() if where == folder}
        shadowed = sorted(name for where, name in would if where != folder and name in inside
                          and not driver_libraries.DRIVER.match(name))
        return shadowed, {os.path.join(folder, name): file for name, file in inside.items()
                          if not os.path.lexists(self.reader.path(os.path.join(folder, name)))}

    def links(self, wanted: Mapping[str, str]) -> Dict[str, str]:
        """Those of the wanted links, by path, that are not as they should be."""
        return {path: target for path, target in wanted.items()
                if not os.path.islink(self.reader.path(path))
                or os.readlink(self.reader.path(path)) != target}

    def private(self) -> Dict[str, str]:
        """Our links as they are, by name."""
        folder = self.reader.path(self.folder)
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        return {name: os.readlink(os.path.join(folder, name)) for name in names
                if os.path.islink(os.path.join(folder, name))}


class Steps:
    """What to change, and how it is told; nothing is changed by asking for it."""

    def __init__(self, host: Host, looked: Looked, ours: library_repair.Ours, state: str) -> None:
        self.seen, self.told, self.ours = looked.seen, looked.problems, ours
        self.repair = plan(host, looked, ours, state)
        self.conf_changes = self.repair.conf != ours.conf
        self.links = host.links(self.repair.links)
        self.stale: List[str] = []
        own: Dict[str, str] = {}
        if self.repair.private is not None:
            now = host.private()
            own = {os.path.join(host.folder, name): target
                   for name, target in self.repair.private.items()}
            self.stale = [os.path.join(host.folder, name)
                          for name in now if name not in self.repair.private]
        self.private = host.links(own)
        self.half_done = any(one.finding["id"] == "repair-half-done" for one in self.told)
        self.cache = self.repair.cache or (self.conf_changes and state == "absent")

    @property
    def any(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.conf_changes or self.links or self.private or self.stale or self.cache
                    or self.half_done)

    def add(self, more: Steps) -> None:
        """Have what a second look took in it too; the environment is as that found it."""
        self.repair = self.repair._replace(
            environment=more.repair.environment,
            reasons=list(dict.fromkeys(self.repair.reasons + more.repair.reasons)),
            left=list(dict.fromkeys(self.repair.left + more.repair.left)))

    def actions(self) -> List[str]:
        """One line for each change."""
        done = ["remove the empty folder %s" % ldconfig.CACHE] if self.repair.clear else []
        if self.conf_changes:
            done.append("remove %s" % ldconfig.CONF if self.repair.conf is None else
                        "write %s: %s" % (ldconfig.CONF,
                                          self.repair.conf.splitlines()[-1]))
        links = {**self.private, **self.links}
        done += ["link %s -> %s" % pair for pair in sorted(links.items())[:NAMED]]
        if len(links) > NAMED:
            done.append("and %d links more" % (len(links) - NAMED))
        done += ["remove the link %s" % path for path in self.stale]
        done += ["make %s anew" % ldconfig.CACHE] if self.cache else []
        # Names of folders may hold anything.
        return [findings.shown(one) for one in done]


def plan(host: Host, looked: Looked, ours: library_repair.Ours, state: str
         ) -> library_repair.Repair:
    """What mends what was found; or what takes away what is ours."""
    if state == "present":
        return library_repair.repair(looked.seen, looked.problems, ours, host.root, host.folder)
    # What another root wrote, or what is not ours to write, is not ours to take away.
    mine = looked.seen["etc_writable"] and (ours.conf or "").startswith(
        library_repair.HEADING % host.root)
    conf = None if mine else ours.conf
    return library_repair.Repair(conf=conf, links={}, private={}, cache=False, clear=False,
                                 environment={}, reasons=[], left=[])


def told(params: Mapping[str, Any], system_root: str = "/") -> Dict[str, Any]:
    """What ``linker_cache`` returns in check mode, as far as it says how the host is.

    :param params: of the module, as :data:`.library_path.SPEC` has them.
    :raises OSError: a file cannot be read.
    """
    host = Host(params, system_root)
    looked, ours = host.observe()
    steps = Steps(host, looked, ours, "present")
    found: Dict[str, Any] = library_path.printable({
        **library_path.told(looked, steps.repair.environment),
        "changed": steps.any, "actions": steps.actions(),
        "reasons": steps.repair.reasons + steps.repair.left})
    return found
