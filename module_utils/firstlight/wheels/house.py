# SPDX-License-Identifier: Apache-2.0
"""A wheelhouse: a folder of wheels, and a manifest that says what each of them must be.

A plain ``pip install --no-index --find-links FOLDER`` works on it too. pip trusts whatever lies
there; we give out only what the manifest has, and only with the size and the SHA-256 that it has. A
file gets its row once it is whole: a run that is ended between the two leaves a file that the next
one looks at and takes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import json
import os
import re
import secrets
import stat
import urllib.error
import urllib.request
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from ansible.module_utils.firstlight import paths
from ansible.module_utils.firstlight.findings import Finding, finding, shown
from ansible.module_utils.firstlight.snapshots.fetch import (
    Corrupt,
    HubError,
    Wanted,
    fetch,
    incomplete,
    opener,
)
from ansible.module_utils.firstlight.transaction import Busy, Lock
from ansible.module_utils.firstlight.wheels import pages, pip_settings
from ansible.module_utils.firstlight.wheels.pages import Candidate

MANIFEST = "manifest.json"
LOCK = ".manifest.lock"
VERSION = 1
SPARE = 64 * 2**20
"""Bytes that stay free."""
TIMEOUT_S = 30.0
LOCK_S = 60.0
BLOCK = 2**20
RANGE = re.compile(r"bytes 0-[0-9]*/([0-9]{1,18})")
LENGTH = re.compile(r"[0-9]{1,18}")
LEFT = re.compile(r"\.[A-Za-z0-9][A-Za-z0-9._+!-]{0,99}\.[0-9a-f]{16}"
                  r"|\.manifest\.json\.[a-z0-9_]{8}")
"""What a run that was killed leaves: a copy, or a manifest, that was not whole yet."""
BUILT_FOR = ("python", "torch", "cuda", "cxx11abi", "capabilities")

Row = Dict[str, Any]


class HouseProblem(Exception):
    """What a wheelhouse could not do, as findings."""

    def __init__(self, *findings: Finding) -> None:
        super().__init__("; ".join("%(subject)s: %(found)s" % one for one in findings))
        self.findings = list(findings)


class House:
    """A wheelhouse.

    :param folder: absolute path; it is made when something comes.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.manifest = os.path.join(folder, MANIFEST)

    def path(self, name: str) -> str:
        """Where a file of this name lies, if it is there.

        :raises HouseProblem: no file can have it.
        """
        if not pages.is_plain(name):
            raise HouseProblem(_bad_name(name))
        return os.path.join(self.folder, name)

    def files(self) -> Dict[str, Row]:
        """The rows of the manifest by file name: ``{sha256, size, source, built_for}``."""
        return self.read()[0]

    def read(self) -> Tuple[Dict[str, Row], List[Finding]]:
        """As :meth:`files`, and what is wrong with the manifest."""
        try:
            content = paths.read(self.manifest)
        except NotADirectoryError:  # who writes into it says so
            content = None
        except OSError as problem:
            return {}, [self._bad_manifest(problem.strerror or str(problem))]
        if content is None:
            return {}, []
        try:
            told = json.loads(content.decode("utf-8"))
        except (ValueError, RecursionError) as problem:
            return {}, [self._bad_manifest("no JSON (%s)" % problem)]
        if not isinstance(told, dict) or not isinstance(told.get("files"), dict):
            return {}, [self._bad_manifest("no object with `files`")]
        if told.get("version") != VERSION:
            return {}, [self._bad_manifest("version %s" % shown(str(told.get("version")))[:50])]
        rows = {name: _row(row) for name, row in told["files"].items()}
        wrong = sorted(name for name, row in rows.items()
                       if row is None or not pages.is_plain(name))
        findings = [self._bad_manifest("rows that say nothing usable: %s" % _some(wrong))
                    ] if wrong else []
        return {name: row for name, row in rows.items()
                if row is not None and name not in wrong}, findings

    def candidates(self, package: str) -> Tuple[List[Candidate], List[Finding]]:
        """The files of a package, each there and of the size that its row has.

        Hashes are made when one is taken (:meth:`bring`, :meth:`check`).

        :param package: its normalised name.
        """
        rows, findings = self.read()
        found = []
        for name, row in sorted(rows.items()):
            if pages.package_of(name) != package:
                continue
            problem = self._differs(name, row)
            if problem:
                findings.append(self._untrusted(name, problem))
                continue
            found.append(pages.candidate(
                name, path=self.path(name), sha256=row["sha256"], size=row["size"],
                source="wheelhouse %s" % self.folder, built_for=row["built_for"]))
        try:
            there = os.listdir(self.folder)
        except FileNotFoundError:
            there = []
        except OSError as problem:
            findings.append(_not_read(self.folder, problem))
            there = []
        for name in sorted(there):
            if pages.package_of(name) == package and name not in rows:
                findings.append(self._untrusted(name, "no row in %s" % MANIFEST))
        return found, findings

    def check(self, name: str) -> List[Finding]:
        """What is wrong with a file, its whole content read; nothing where it may be given out."""
        rows, findings = self.read()
        problem = (self._differs(name, rows[name]) if name in rows
                   else "no row in %s" % MANIFEST)
        if problem:
            return findings + [self._untrusted(name, problem, "error")]
        try:
            found = sha256_of(self.path(name))
        except OSError as refusal:
            return findings + [_not_read(self.path(name), refusal, "error")]
        if found != rows[name]["sha256"]:
            findings.append(self._corrupt(name, found, rows[name]["sha256"]))
        return findings

    def add(self, path: str, name: str, sha256: str = "", source: str = "",
            built_for: Optional[Mapping[str, Any]] = None) -> str:
        """Take a file in, as one that was built here. One of this name that is there is replaced.

        :param path: the file; it stays.
        :param sha256: what it must have; empty: what it has.
        :param built_for: ``{torch, cuda, cxx11abi, capabilities}`` as far as they are known.
        :returns: where it lies now.
        :raises HouseProblem: it cannot be taken, or is another one.
        """
        target = self.path(name)
        with self._told(name):
            self._make()
            digest = self._copy(path, name, sha256)
        self._keep(name, {
            "sha256": digest, "size": os.stat(target).st_size, "source": shown(source),
            "built_for": _built_for(built_for)}, anew=True)
        return target

    def ready(self, name: str, size: int) -> None:
        """Make sure that a file could be taken in, before it is made at great cost.

        :param size: bytes that it may have.
        :raises HouseProblem: it could not.
        """
        self.path(name)
        findings = self.read()[1]
        if findings:
            raise HouseProblem(*findings)
        with self._told(name):
            self._make()
            with self._alone():
                self._room(name, size)

    def bring(
        self, candidate: Candidate, env: Optional[Mapping[str, str]] = None,
        pythons: Sequence[str] = (), report: Callable[[int], None] = lambda count: None,
    ) -> str:
        """Have a candidate here: as it is, from its folder, or fetched; with its SHA-256 checked.

        What an interrupted run had fetched is not fetched again.

        :param candidate: its ``sha256`` must be known.
        :param env: variables on top of this process's own, as ``network_settings.read`` gives them.
        :param pythons: interpreters whose pip may know a login for the host of its address.
        :param report: told of bytes that came.
        :returns: where it lies.
        :raises HouseProblem: it cannot be had, or is another file than was promised.
        """
        name, wanted = candidate["file"], candidate["sha256"]
        target = self.path(name)
        if not pages.SHA256.fullmatch(wanted):
            raise HouseProblem(finding(
                "wheel-no-hash", name, "no SHA-256 of it is known, and none is told by %s"
                % (candidate["source"] or "its source"), "the SHA-256 of the file",
                "look it up where the file is published, and set it as `sha256` of the package in"
                " `prebuilt_wheel_packages`"))
        rows, findings = self.read()
        if findings:
            raise HouseProblem(*findings)
        with self._told(name):
            digest = self._sha256(target)
            if digest != wanted:
                if candidate["path"] == target:
                    raise HouseProblem(self._corrupt(name, digest or "that of no file", wanted))
                self._make()
                if candidate["path"]:
                    self._copy(candidate["path"], name, wanted)
                else:
                    with pip_settings.variables(env):
                        self._fetch(candidate, target, self._headers(
                            candidate["url"], env, pythons), report)
        if rows.get(name, {}).get("sha256") != wanted:
            self._keep(name, {
                "sha256": wanted, "size": os.stat(target).st_size,
                "source": pages.called(candidate["url"]) if candidate["url"]
                else shown(candidate["source"]), "built_for": _built_for(candidate["built_for"])})
        return target

    # The parts of these.

    def _make(self) -> None:
        if not os.path.isdir(self.folder):
            os.makedirs(self.folder, mode=0o755, exist_ok=True)
            # Whatever the umask: hosts and users beside this one read it.
            os.chmod(self.folder, 0o755)

    def _sha256(self, path: str) -> str:
        try:
            return sha256_of(path)
        except FileNotFoundError:
            return ""

    def _differs(self, name: str, row: Row) -> str:
        """What a look at a file tells against it; empty for nothing."""
        try:
            status = os.stat(self.path(name))
        except FileNotFoundError:
            return "it is not there"
        except OSError as problem:
            return "it cannot be read: %s" % problem.strerror
        if not stat.S_ISREG(status.st_mode):
            return "it is no file"
        if status.st_size != row["size"]:
            return "%d bytes, and %d in %s" % (status.st_size, row["size"], MANIFEST)
        return ""

    def _copy(self, path: str, name: str, wanted: str) -> str:
        """Put another file's content under a name; its hash."""
        target = self.path(name)
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no file", path)
        aside = os.path.join(self.folder, ".%s.%s" % (name[:100], secrets.token_hex(8)))
        with self._alone():
            try:
                if not _linked(path, found, aside):
                    self._room(name, found.st_size)
                    with open(aside, "xb") as file:
                        for block in paths.chunks(path, BLOCK, found.st_size):
                            file.write(block)
                        file.flush()
                        os.fchmod(file.fileno(), 0o644)
                        os.fsync(file.fileno())
                digest = sha256_of(aside)
                if wanted and digest != wanted:
                    raise HouseProblem(self._corrupt(name, digest, wanted, path))
                os.rename(aside, target)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(aside)
        paths.fsync_folder(self.folder)
        return digest

    def _room(self, name: str, size: int) -> None:
        status = os.statvfs(self.folder)
        free = status.f_bavail * status.f_frsize
        if free < size + SPARE:
            raise HouseProblem(finding(
                "wheel-no-space", self.folder, "%d MiB free on its file system" % (free // 2**20),
                "%d MiB for %s" % ((size + SPARE) // 2**20 + 1, name),
                "make room there, or set `prebuilt_wheel_wheelhouse` to a folder of a larger one",
                evidence="statvfs of %s; what an earlier run has left of the file is counted"
                % self.folder))

    def _headers(self, url: str, env: Optional[Mapping[str, str]], pythons: Sequence[str]
                 ) -> Dict[str, str]:
        """What a request to the host of an address carries; only its own login."""
        at = pages.origin(url)
        told = pip_settings.read(env, pythons, default=False)
        own = pip_settings.logins((*told.indexes, *told.find_links))
        return {"Authorization": own[at]} if at in own else {}

    def _fetch(self, candidate: Candidate, target: str, headers: Dict[str, str],
               report: Callable[[int], None]) -> None:
        name, size = candidate["file"], candidate["size"]
        if size is None:
            size = _size_of(candidate["url"], headers, name)
        self._room(name, max(0, size - incomplete(target)))
        try:
            fetch([Wanted(candidate["url"], headers, target, size, candidate["sha256"], None)],
                  workers=1, report=report, timeout_s=TIMEOUT_S)
        except Corrupt as problem:
            raise HouseProblem(finding(
                "wheel-corrupt", name, "%s gives another file: %s" % (
                    pages.called(candidate["url"]), problem.found),
                "%d bytes with the SHA-256 %s, as %s tells" % (
                    size, candidate["sha256"], candidate["source"] or "its source"),
                "run again; when it comes again, that server does not serve what is listed: name"
                " another source in `prebuilt_wheel_sources`, or correct `sha256` if you gave it",
            )) from problem
        except HubError as problem:
            raise HouseProblem(_not_fetched(name, problem)) from problem
        except ValueError as problem:
            raise HouseProblem(finding(
                "wheel-not-fetched", name, str(problem), "an address of http or https",
                "correct the source in `prebuilt_wheel_sources`")) from problem

    def _keep(self, name: str, row: Row, anew: bool = False) -> None:
        """Write a row; ``anew`` whether it takes the place of one with the same hash."""
        with self._told(MANIFEST), self._alone():
            rows, findings = self.read()
            if findings:
                raise HouseProblem(*findings)
            if not anew and rows.get(name, {}).get("sha256") == row["sha256"]:
                return
            paths.write(self.manifest, render({**rows, name: row}))

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Be the only one who writes here; what one that was killed was writing is removed."""
        with Lock(os.path.join(self.folder, LOCK), LOCK_S):
            for name in os.listdir(self.folder):
                if LEFT.fullmatch(name):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(os.path.join(self.folder, name))
            yield

    @contextlib.contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """What the disk refuses, as a finding."""
        try:
            yield
        except Busy as problem:
            raise HouseProblem(finding(
                "wheel-house-busy", self.folder, str(problem), "a manifest that is free",
                "run again when the other run has ended")) from problem
        except OSError as problem:
            # fetch has words on the settings of models; the reason behind them is what counts.
            cause = problem.__cause__ if isinstance(problem.__cause__, OSError) else problem
            full = cause.errno in (errno.ENOSPC, errno.EDQUOT)
            raise HouseProblem(finding(
                "wheel-no-space" if full else "wheel-not-written",
                "%s in %s" % (name, self.folder),
                "%s%s" % (cause.strerror or cause,
                          ": %s" % problem.filename if problem.filename else ""),
                "a folder that %s can write, on a file system with room and with locks"
                % ("root" if os.geteuid() == 0 else "uid %d" % os.geteuid()),
                "make it so, or set `prebuilt_wheel_wheelhouse` to another folder")) from problem

    # What is said.

    def _bad_manifest(self, found: str) -> Finding:
        return finding(
            "wheel-bad-manifest", self.manifest, found,
            "{version: %d, files: {name: {sha256, size, source, built_for}}}" % VERSION,
            "put back the file as it was, or delete it: the wheels beside it are then fetched again"
            " when they are wanted")

    def _untrusted(self, name: str, found: str, severity: str = "warning") -> Finding:
        return finding(
            "wheel-untrusted", os.path.join(self.folder, shown(name)), found,
            "a file with the size and the SHA-256 of its row in %s" % MANIFEST,
            "delete it: it is fetched again when it is wanted. One of your own goes into a folder"
            " of its own, named as a source: `prebuilt_wheel_sources: [{folder: …}]`",
            severity=severity)

    def _corrupt(self, name: str, found: str, wanted: str, path: str = "") -> Finding:
        return finding(
            "wheel-corrupt", path or os.path.join(self.folder, name), "its SHA-256 is %s" % found,
            "SHA-256 %s" % wanted,
            "put back the file that was published, or correct `sha256` if you gave it" if path else
            "delete it and run again: it is fetched anew, or the next source is asked")


def render(files: Mapping[str, Row]) -> bytes:
    """The manifest with these rows."""
    return (json.dumps({"version": VERSION, "files": files}, indent=1, sort_keys=True) + "\n"
            ).encode()


def sha256_of(path: str) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits.

    :raises OSError: it cannot be read, or is no file.
    """
    digest = hashlib.sha256()
    for block in paths.chunks(path, BLOCK, 2**62):
        digest.update(block)
    return digest.hexdigest()


def _linked(path: str, found: os.stat_result, aside: str) -> bool:
    """Take the file itself under another name; whether that could be done.

    Only one that nobody but root and this user can change.
    """
    if found.st_uid not in (0, os.geteuid()) or stat.S_IMODE(found.st_mode) != 0o644:
        return False
    try:
        os.link(os.path.realpath(path), aside)
    except OSError:  # another file system, or one without links
        return False
    return True


def folder_candidates(folder: str, package: str) -> Tuple[List[Candidate], List[Finding]]:
    """The files of a package in any folder: by its manifest where it has one, else as they are.

    :param package: its normalised name.
    """
    house = House(folder)
    if os.path.lexists(house.manifest):
        return house.candidates(package)
    found: List[Candidate] = []
    findings: List[Finding] = []
    try:
        names = sorted(os.listdir(folder))
    except OSError as problem:
        return [], [_not_read(folder, problem)]
    for name in names:
        if pages.package_of(name) != package or not pages.is_plain(name):
            continue
        path = os.path.join(folder, name)
        try:
            found.append(pages.candidate(
                name, path=path, sha256=sha256_of(path), size=os.stat(path).st_size,
                source="folder %s" % folder))
        except OSError as problem:
            findings.append(_not_read(path, problem))
    return found, findings


def _row(told: Any) -> Optional[Row]:
    if not isinstance(told, dict):
        return None
    sha256, size = told.get("sha256"), told.get("size")
    if (not isinstance(sha256, str) or not pages.SHA256.fullmatch(sha256)
            or not isinstance(size, int) or isinstance(size, bool) or size < 0):
        return None
    return {"sha256": sha256, "size": size, "source": shown(told.get("source") or "")[:300],
            "built_for": _built_for(told.get("built_for"))}


def _built_for(told: Any) -> Dict[str, Any]:
    """What a wheel was built for, as far as it has the right shape."""
    if not isinstance(told, Mapping):
        return {}
    good = {
        "python": lambda value: isinstance(value, str),
        "torch": lambda value: isinstance(value, str),
        "cuda": lambda value: isinstance(value, str),
        "cxx11abi": lambda value: isinstance(value, bool),
        "capabilities": lambda value: isinstance(value, list) and all(
            isinstance(one, str) for one in value),
    }
    return {key: told[key] for key in BUILT_FOR if key in told and good[key](told[key])}


def _size_of(url: str, headers: Mapping[str, str], name: str) -> int:
    """The size of a file that nobody tells, asked of its server.

    A part of it is asked for, not HEAD: an address that is signed for GET refuses that.
    """
    request = urllib.request.Request(  # noqa: S310 - the opener takes http and https alone
        url, headers={"User-Agent": "firstlight", **headers, "Range": "bytes=0-0"})
    try:
        with opener().open(request, timeout=TIMEOUT_S) as answer:
            said = RANGE.fullmatch(answer.headers.get("Content-Range") or "")
            length = answer.headers.get("Content-Length") or ""
            if answer.status == 206 and said:
                return int(said.group(1))
            if answer.status == 200 and LENGTH.fullmatch(length):
                return int(length)
    except urllib.error.HTTPError as refusal:
        with contextlib.closing(refusal):
            raise HouseProblem(_not_fetched(name, HubError(
                pages.called(url), refusal.code, "", shown(str(refusal.reason))[:200]))
            ) from refusal
    except (OSError, http.client.HTTPException) as problem:
        reason = getattr(problem, "reason", None) or problem
        raise HouseProblem(_not_fetched(name, HubError(
            pages.called(url), 0, "", shown(str(reason) or type(reason).__name__)[:200]))
        ) from problem
    raise HouseProblem(finding(
        "wheel-not-fetched", name, "%s tells no size of it" % pages.called(url),
        "a server that tells the length of a file, or an index that does",
        "fetch it by hand into a folder and name that as a source:"
        " `prebuilt_wheel_sources: [{folder: …}]`"))


def _not_fetched(name: str, problem: HubError) -> Finding:
    if problem.status in (401, 403):
        remedy = "give the user in the address of the index (`network_access_pip_indexes`)"
    elif problem.status in (404, 410):
        remedy = ("it is listed and not there: name another source in `prebuilt_wheel_sources`")
    else:
        remedy = ("run again: what came is kept. Check the way out (`network_access_proxy`,"
                  " `network_access_ca_bundle`), name a mirror in `prebuilt_wheel_sources`, or fill"
                  " the wheelhouse from another host (playbooks/prefetch.yml)")
    return finding(
        "wheel-not-fetched", name, str(problem), "the file", remedy)


def _not_read(path: str, problem: OSError, severity: str = "warning") -> Finding:
    return finding(
        "wheel-not-read", shown(path), problem.strerror or str(problem),
        "a folder, and files in it, that this user can read",
        "make it so, or name another `folder` in `prebuilt_wheel_sources`", severity=severity)


def _bad_name(name: str) -> Finding:
    return finding(
        "wheel-bad-name", shown(str(name))[:100], "it cannot be the name of a wheel or sdist",
        "letters, digits and . _ + ! - alone, ending in .whl, .tar.gz or .zip",
        "use another source: this one is not to be trusted")


def _some(names: Sequence[str]) -> str:
    told = ", ".join(shown(str(one))[:100] for one in names[:3])
    return told + (" and %d more" % (len(names) - 3) if len(names) > 3 else "")
