# SPDX-License-Identifier: Apache-2.0
"""apt on a host: the lists that it has, a copy with a mirror, and whether apt can use that."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import stat
import tempfile
import time
from typing import Dict, List, Mapping, Optional, Sequence

from . import paths
from .findings import Finding, finding
from .network_files import OPEN, SECRET, Files, Item, State
from .network_probe import Apt
from .planning import apt_sources, network
from .runner import run

FOLDER = "/etc/apt"
CONF = FOLDER + "/apt.conf.d/95firstlight"
LIST, LISTS = FOLDER + "/sources.list", FOLDER + "/sources.list.d"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
UPDATE_S, LOCK_S, POLL_S = 300.0, 60.0, 2.0
VARIABLE = network.PREFIX + "apt_mirrors"
FAILED = re.compile(r"E: |W: Failed to fetch ")
BUSY = "Could not get lock"


class HostApt:
    """apt of a host.

    :param files: what is written here, and where.
    :param state: what an earlier run left.
    """

    def __init__(self, files: Files, state: State) -> None:
        self.files = files
        self.there = os.path.isdir(files.at(FOLDER))
        self.lists = self._lists(state) if self.there else {}
        """By path; those included that somebody has put into our copy."""

    def _lists(self, state: State) -> Dict[str, Item]:
        found: Dict[str, Item] = {}
        for path in [LIST, *(os.path.join(LISTS, name) for name in self._names())]:
            item = self._followed(path)
            if item is not None:
                found[path] = item
        for path, mine in self.put_here(state).items():
            found.setdefault(path, mine)
        return found

    def _followed(self, path: str) -> Optional[Item]:
        """A file, or what a link leads to; ``None`` where that is nothing that can be read."""
        with contextlib.suppress(OSError):
            where = os.path.realpath(self.files.at(path))
            content = paths.read(where)
            if content is not None:
                return Item(content, stat.S_IMODE(os.stat(where).st_mode))
        return None

    def _names(self) -> List[str]:
        """As apt takes them."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return sorted(name for name in os.listdir(self.files.at(LISTS))
                          if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.(list|sources)", name))
        return []

    def put_here(self, state: State) -> Dict[str, Item]:
        """Lists that somebody has put into our copy, by the path where they belong."""
        found = {}
        for name in sorted(self.files.strangers(state)):
            item = self.files.there(self._mine(name))
            if item is not None and not item.target:
                found[os.path.join(LISTS, name)] = item
        return found

    def _mine(self, name: str) -> str:
        return os.path.join(self.files.sources, "sources.list.d", name)

    def wanted(self) -> Apt:
        """What a mirror has to stand in for; without addresses where that is nothing."""
        release = dict(re.findall(
            r"^([A-Z_]+)=(.*)$", _text(self._followed("/etc/os-release")), re.MULTILINE))
        distribution, codename = (release.get(name, "").strip("\"' ")
                                  for name in ("ID", "VERSION_CODENAME"))
        uris = {}
        named = apt_sources.of_distribution(
            {path: _text(item) for path, item in self.lists.items()}, distribution, codename)
        for uri, suites in named.items():
            plain: Optional[str] = uri
            if uri.startswith(apt_sources.LISTS):
                file = "/" + uri[len(apt_sources.LISTS):].lstrip("/")
                plain = apt_sources.first_of_list(_text(self._followed(file)))
            if plain and plain.startswith(("http://", "https://")):
                uris[uri] = (plain, suites)
        return Apt(uris, distribution, codename,
                   ARCHITECTURES.get(platform.machine(), platform.machine()))

    def against(self, apt: Apt, is_root: bool) -> Optional[Finding]:
        """Why no mirror can be set here; ``None`` where one can."""
        if not self.there:
            return left("network-apt-absent", VARIABLE, "this host has no apt (%s)" % FOLDER,
                        "a host with apt", "leave it empty for this host")
        if not is_root:
            return left("network-apt-not-root", VARIABLE, "not set: this run is not root's", "root",
                        "run it as root (become: true), or leave it empty for this host", True)
        if not apt.uris:
            return left(
                "network-apt-unknown", VARIABLE,
                "no list of apt has a source of %s with the suite %s and the component main" % (
                    apt.distribution or "an unnamed distribution",
                    apt.codename or "(no VERSION_CODENAME in /etc/os-release)"),
                "a source whose address can be replaced",
                "write the mirror into %s yourself, and leave it empty for this host" % FOLDER)
        return None

    def items(self, variables: Mapping[str, str], others: Mapping[str, str]) -> Dict[str, Item]:
        """Every file for apt, by path.

        :param variables: what processes get which go out.
        :param others: the new address by the one in its lists; none where these stay.
        """
        found = self._copy(others) if others else {}
        texts = network.apt_files(variables, variables.get("SSL_CERT_FILE", ""),
                                  self.files.sources if found else "")
        for end, text in texts.items():
            found[CONF + end] = Item(text.encode(), SECRET if end else OPEN)
        return found

    def _copy(self, others: Mapping[str, str]) -> Dict[str, Item]:
        """Lists that change as files, the others as links to them."""
        found = {}
        for path, item in self.lists.items():
            text = _text(item)
            changed = apt_sources.with_others(path, text, others)
            found[self._copied(path)] = Item(target=path) if changed == text else Item(
                changed.encode("utf-8", "surrogateescape"), item.mode)
        return found

    def prove(self, uris: Sequence[str]) -> Optional[Finding]:
        """Have apt read what a mirror has; a finding where it cannot.

        :param uris: the mirror's, in our copy. Sources of others may have been bad before.
        """
        with tempfile.TemporaryDirectory(prefix="firstlight-apt-") as aside:
            parts = os.path.join(aside, "sources.list.d")
            os.mkdir(parts)
            for path in self.lists:
                mine = self.files.there(self._copied(path))
                text = apt_sources.only(path, _text(mine), uris)
                if mine is not None and not mine.target and text:
                    # The list of old is one of the parts here.
                    paths.write(os.path.join(parts, os.path.basename(path)),
                                text.encode("utf-8", "surrogateescape"), SECRET)
            conf = os.path.join(aside, "apt.conf")
            paths.write(conf, ('Dir "%s";\n' % self.files.system_root).encode())
            settings = {"Dir::Etc::SourceList": "/dev/null", "Dir::Etc::SourceParts": parts,
                        "APT::Get::List-Cleanup": "false", "APT::Update::Error-Mode": "any"}
            words = [word for name, value in settings.items()
                     for word in ("-o", "%s=%s" % (name, value))]
            deadline = time.monotonic() + LOCK_S
            while True:
                ran = run(["apt-get", "update", "-q", *words], UPDATE_S, {"APT_CONFIG": conf})
                if ran.ok or BUSY not in ran.stderr or time.monotonic() > deadline:
                    break
                time.sleep(POLL_S)
        bad = [line for line in ran.stderr.splitlines() if FAILED.match(line)]
        if ran.ok and not bad:
            return None
        return finding(
            "network-apt-not-proven", VARIABLE, "apt-get update does not end well with it: %s" % (
                network.masked(" ".join(bad[:6]) or ran.complaint())[:1500]),
            "a mirror that apt can use", "take it out of %s; all is as it was before" % VARIABLE,
            needs_root=True)

    def _copied(self, path: str) -> str:
        return os.path.join(self.files.sources, path[len(FOLDER) + 1:])


def left(id_: str, subject: str, found: str, wanted: str, remedy: str,
         needs_root: bool = False) -> Finding:
    """Something that is asked for and is not done here."""
    return finding(id_, subject, found, wanted, remedy, severity="warning", needs_root=needs_root)


def _text(item: Optional[Item]) -> str:
    return "" if item is None else item.content.decode("utf-8", "surrogateescape")
