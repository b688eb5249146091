# SPDX-License-Identifier: Apache-2.0
"""Whether a wheel is what its name says and nothing that would harm an environment.

A wheel is read as a whole before anything of it is installed: the archive is sound, every member
stays where it belongs and is what RECORD says, and METADATA and WHEEL are the file name's (PEP 427,
PEP 376). A wheel comes from elsewhere, so nothing in it is believed.
"""

from __future__ import annotations

import base64
import binascii
import configparser
import csv
import email.parser
import email.policy
import errno
import hashlib
import io
import itertools
import os
import re
import stat
import struct
import zipfile
import zlib
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Set, Tuple

from ..findings import Finding, finding
from .house import sha256_of
from .pages import normal

MOST_BYTES = 32 * 2**30
"""Bytes that a wheel may have unpacked; the largest known have a tenth of it."""
MOST_RATIO, RATIO_FROM = 100, 64 * 2**20
"""How many times its own size a wheel may unpack to, and the bytes from which on that counts."""
MOST_MEMBERS = 100000
MOST_TEXT = 16 * 2**20
"""Bytes of a text that is read as a whole: METADATA, WHEEL, RECORD."""
CHUNK = 2**20
SCHEMES = ("purelib", "platlib", "headers", "scripts", "data")
HASHES = ("sha256", "sha384", "sha512")
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
UNREADABLE = (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, struct.error, EOFError,
              LookupError, OverflowError, RuntimeError, ValueError)
"""What zipfile raises for an archive that was damaged or made to do harm."""
FILE = re.compile(r"(?P<package>[^-]+)-(?P<version>[^-]+)(?:-(?P<build>\d[^-]*))?"
                  r"-(?P<python>[^-]+)-(?P<abi>[^-]+)-(?P<platform>[^-]+)\.whl")
PUBLIC = re.compile(
    r"(?:(?P<epoch>[0-9]+)!)?(?P<release>[0-9]+(?:\.[0-9]+)*)"
    r"(?:[-_.]?(?P<pre>alpha|a|beta|b|preview|pre|rc|c)[-_.]?(?P<pre_number>[0-9]*))?"
    r"(?:-(?P<post_alone>[0-9]+)|[-_.]?(?P<post>post|rev|r)[-_.]?(?P<post_number>[0-9]*))?"
    r"(?:[-_.]?(?P<dev>dev)[-_.]?(?P<dev_number>[0-9]*))?")
PRE = {"alpha": "a", "beta": "b", "c": "rc", "pre": "rc", "preview": "rc"}
"""A public version in any spelling, and what its letters stand for."""
SCRIPT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
MACHINE = re.compile(r"(x86_64|aarch64|ppc64le|s390x|riscv64|armv\dl|i\d86|any)$")
AGAIN = ("fetch it again from where it was made: a wheel that was cut or changed on its way is "
         "never installed")


class Archive(NamedTuple):
    """What a wheel says of itself, all of it proved.

    ``package`` is normalised (PEP 503), ``version`` METADATA's. ``members`` are its files,
    ``record`` their hashes as RECORD has them. ``size`` is in bytes, unpacked. ``pure`` says where
    its files go: into purelib or platlib. ``scripts`` are the programs that its entry points ask
    for. ``tags`` are the file name's (PEP 425), each of its own.
    """

    file: str
    package: str
    version: str
    info: str
    members: List[str]
    record: Dict[str, str]
    size: int
    pure: bool
    requires_python: str
    requires: List[str]
    scripts: List[str]
    tags: List[str]


class _Bad(Exception):
    """What is wrong, as the parts of a finding."""

    def __init__(self, kind: str, found: str, wanted: str, remedy: str = AGAIN) -> None:
        super().__init__(found)
        self.kind, self.found, self.wanted, self.remedy = kind, found, wanted, remedy


def judge(path: str, name: str, sha256: str) -> Tuple[Optional[Archive], List[Finding]]:
    """Read a wheel as a whole.

    :param path: where the file lies.
    :param name: the file name that it goes by.
    :param sha256: the hash that it must have, 64 hexadecimal digits.
    :returns: the archive, or ``None`` with an error finding.
    :raises OSError: the file cannot be read.
    """
    try:
        return _judged(path, name, sha256), []
    except _Bad as bad:
        return None, [finding(
            id=bad.kind, subject=name, found=bad.found, wanted=bad.wanted, remedy=bad.remedy,
            evidence="read %s" % path)]


def same_version(one: str, other: str) -> bool:
    """Whether two spellings are of one version (PEP 440): ``1.0`` is ``1.00``, ``v1`` or ``1.0.0``.

    What is no version of PEP 440 is compared as text.
    """
    return _plain_version(one) == _plain_version(other)


def _plain_version(version: str) -> Tuple[str, str]:
    public, _, local = version.strip().lower().lstrip("v").partition("+")
    local = ".".join(part.lstrip("0") or "0" if part.isdecimal() else part
                     for part in re.split(r"[-_.]", local))
    told = PUBLIC.fullmatch(public)
    if not told:
        return public, local
    release = re.sub(r"(\.0)+$", "", ".".join(_digits(one) for one in told["release"].split(".")))
    parts = [_digits(told["epoch"]), release]
    if told["pre"]:
        parts.append(PRE.get(told["pre"], told["pre"]) + _digits(told["pre_number"]))
    if told["post"] or told["post_alone"]:
        parts.append("post" + _digits(told["post_number"] or told["post_alone"]))
    if told["dev"]:
        parts.append("dev" + _digits(told["dev_number"]))
    return "!".join(parts), local


def _digits(number: Optional[str]) -> str:
    """A number as PEP 440 compares it, however many digits it has; none is 0."""
    return (number or "").lstrip("0") or "0"


def _judged(path: str, name: str, sha256: str) -> Archive:
    told = FILE.fullmatch(name)
    if not told:
        raise _Bad("wheel-name", "a file name that is none of a wheel",
                   "package-version-python-abi-platform.whl (PEP 427)", "give it its own name back")
    size = os.stat(path).st_size
    digest = sha256_of(path)
    if digest != sha256.lower():
        raise _Bad("wheel-hash", "SHA-256 %s, %d bytes" % (digest, size), "SHA-256 %s" % sha256)
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            _safe(infos, size)
            return _told(archive, infos, name, told)
    except (*UNREADABLE, OSError) as problem:
        # An offset that leads nowhere is the file's fault; a disk that cannot be read is not.
        if isinstance(problem, OSError) and problem.errno not in (None, errno.EINVAL):
            raise
        raise _Bad("wheel-broken", "an archive that cannot be read: %s" % problem,
                   "a whole zip archive") from problem


def _safe(infos: List[zipfile.ZipInfo], size: int) -> None:
    """What the list of members shows, before any of them is unpacked."""
    if len(infos) > MOST_MEMBERS:
        raise _Bad("wheel-unsafe", "%d members" % len(infos), "at most %d" % MOST_MEMBERS)
    seen: Set[str] = set()
    for info in infos:
        wrong = _unsafe(info)
        if info.filename in seen:
            wrong = "is there twice"
        seen.add(info.filename)
        if wrong:
            raise _Bad("wheel-unsafe", "the member %r %s" % (info.filename[:200], wrong),
                       "plain files below the wheel's own folders, each once",
                       "do not use this file; ask whoever made it")
    for name in seen:
        parts = name.rstrip("/").split("/")
        for parent in itertools.accumulate(parts[:-1], lambda a, b: a + "/" + b):
            if parent in seen:
                raise _Bad("wheel-unsafe", "the member %r is a file and a folder" % parent[:200],
                           "plain files below the wheel's own folders, each once",
                           "do not use this file; ask whoever made it")
    whole = sum(info.file_size for info in infos)
    if whole > MOST_BYTES or (whole > RATIO_FROM and whole > MOST_RATIO * size):
        raise _Bad("wheel-too-large", "%d bytes that unpack to %d" % (size, whole),
                   "at most %d bytes, and at most %d times its own size" % (
                       MOST_BYTES, MOST_RATIO), "do not use this file; ask whoever made it")
    if sum(info.compress_size for info in infos) > size:
        raise _Bad("wheel-unsafe", "members that lie over one another",
                   "members one after another", "do not use this file; ask whoever made it")


def _unsafe(info: zipfile.ZipInfo) -> str:
    name, mode = info.filename, info.external_attr >> 16
    # zipfile ends a name at its first NUL; what stands behind it was to be hidden.
    original = getattr(info, "orig_filename", name)
    if original != name or not name or not name.isprintable() or "\\" in name:
        return "has a name that is no plain path"
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "has an absolute path"
    parts = name[:-1].split("/") if name.endswith("/") else name.split("/")
    if ".." in parts:
        return "leads out of its folder"
    if any(part in ("", ".") or len(part.encode()) > 255 for part in parts) or len(name) > 1024:
        return "has a name that is no plain path"
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    if info.flag_bits & 0x1:
        return "is encrypted"
    if info.compress_type not in METHODS:
        return "is compressed in a way that wheels do not have"
    return ""


def _told(archive: zipfile.ZipFile, infos: List[zipfile.ZipInfo], name: str,
          told: re.Match[str]) -> Archive:
    members = [info.filename for info in infos if not info.filename.endswith("/")]
    folders = {member.partition("/")[0] for member in members if "/" in member}
    found = sorted(folder for folder in folders if folder.endswith(".dist-info"))
    if len(found) != 1:
        raise _Bad("wheel-metadata", "%d folders .dist-info" % len(found), "one")
    info = found[0]
    for needed in ("METADATA", "WHEEL", "RECORD"):
        if "%s/%s" % (info, needed) not in members:
            raise _Bad("wheel-record" if needed == "RECORD" else "wheel-metadata",
                       "no %s/%s" % (info, needed), "METADATA, WHEEL and RECORD")
    metadata = _headers(archive, info + "/METADATA")
    version = _names(metadata, info, told)
    wheel = _headers(archive, info + "/WHEEL")
    tags = _tags(wheel, told)
    for folder in sorted(folders):
        if folder.endswith(".data") and folder != info[:-len(".dist-info")] + ".data":
            raise _Bad("wheel-unsafe", "the folder %s" % folder, "at most %s.data" % info[:-10])
    for member in members:
        parts = member.split("/")
        if parts[0].endswith(".data") and (len(parts) < 3 or parts[1] not in SCHEMES):
            raise _Bad("wheel-unsafe", "the member %s" % member,
                       "below .data one of %s" % ", ".join(SCHEMES))
    record = _record(archive, info + "/RECORD", members)
    return Archive(
        file=name, package=normal(told["package"]), version=version, info=info, members=members,
        record=record, size=sum(one.file_size for one in infos),
        pure=(wheel.get("Root-Is-Purelib") or "").strip().lower() == "true",
        requires_python=str(metadata.get("Requires-Python") or "").strip(),
        requires=[str(line).strip() for line in metadata.get_all("Requires-Dist") or []],
        scripts=_scripts(archive, info + "/entry_points.txt", members), tags=tags)


def _text(archive: zipfile.ZipFile, member: str) -> str:
    size = archive.getinfo(member).file_size
    if size > MOST_TEXT:
        raise _Bad("wheel-too-large", "%s of %d bytes" % (member, size),
                   "at most %d" % MOST_TEXT, "do not use this file; ask whoever made it")
    return archive.read(member).decode("utf-8", "replace")


def _headers(archive: zipfile.ZipFile, member: str) -> Any:
    return email.parser.HeaderParser(policy=email.policy.compat32).parsestr(_text(archive, member))


def _names(metadata: Any, info: str, told: re.Match[str]) -> str:
    """METADATA's version, when name and version are those of the file and the folder.

    Builds for one torch and CUDA are often renamed after they were made, so a local version may be
    told by the file's name alone.
    """
    names, versions = metadata.get_all("Name") or [], metadata.get_all("Version") or []
    if len(names) != 1 or len(versions) != 1:
        raise _Bad("wheel-metadata", "%d names and %d versions in METADATA" % (
            len(names), len(versions)), "one of each")
    name, version = str(names[0]).strip(), str(versions[0]).strip()
    folder_name, _, folder_version = info[:-len(".dist-info")].partition("-")
    said = "METADATA of %s %s in the folder %s" % (name, version, info)
    public = version.partition("+")[0] if "+" not in told["version"] else version
    right = {normal(name)} == {normal(told["package"]), normal(folder_name)}
    same = same_version(told["version"], public) or (
        "+" not in version and same_version(told["version"].partition("+")[0], version))
    if not right or not same or not same_version(folder_version, version):
        raise _Bad("wheel-metadata", said, "those of %s %s, as the file's name says" % (
            told["package"], told["version"]),
            "give the file its own name back, or fetch the version that is wanted")
    return version


def _tags(wheel: Any, told: re.Match[str]) -> List[str]:
    """The file name's tags, when WHEEL has the same Python, ABI and machine.

    Platforms of one machine may differ: linux_x86_64 often becomes manylinux by a new name.
    """
    major = str(wheel.get("Wheel-Version") or "").strip().partition(".")[0]
    if major != "1":
        raise _Bad("wheel-metadata", "Wheel-Version %s" % (wheel.get("Wheel-Version"),), "1.x")
    named = ["-".join(parts) for parts in itertools.product(
        told["python"].split("."), told["abi"].split("."), told["platform"].split("."))]
    inner = [str(tag).strip() for tag in wheel.get_all("Tag") or []]
    if _machines(named) != _machines(inner):
        raise _Bad("wheel-tags", "WHEEL with the tags %s" % (", ".join(inner[:8]) or "none"),
                   "those of the file's name: %s" % ", ".join(named[:8]),
                   "do not use this file: it was built for another Python or machine and renamed")
    return named


def _machines(tags: Iterable[str]) -> Set[Tuple[str, str, str]]:
    found = set()
    for tag in tags:
        python, abi, platform = (tag.split("-") + ["", ""])[:3]
        machine = MACHINE.search(platform)
        found.add((python, abi, machine.group(1) if machine else platform))
    return found


def _record(archive: zipfile.ZipFile, own: str, members: List[str]) -> Dict[str, str]:
    """RECORD's hashes by member, when every member is as RECORD says."""
    rows: Dict[str, Tuple[str, str]] = {}
    try:
        for row in csv.reader(io.StringIO(_text(archive, own), newline="")):
            if row:
                path, digest, size = (row + ["", ""])[:3]
                if path in rows:
                    raise _Bad("wheel-record", "RECORD with %r twice" % path[:200], "each once")
                rows[path] = (digest, size)
    except csv.Error as problem:
        raise _Bad("wheel-record", "RECORD that cannot be read: %s" % problem, "CSV") from problem
    free = {own, own + ".jws", own + ".p7s"}
    unlisted = [member for member in members if member not in rows and member not in free]
    lost = sorted(set(rows) - set(members) - free)
    for what, paths in (("files that RECORD does not have", unlisted),
                        ("no files that RECORD has", lost)):
        if paths:
            raise _Bad("wheel-record", "%s: %s" % (what, _some(paths)),
                       "in RECORD each file of the wheel")
    wrong = [member for member in members if member not in free
             and not _is_as(archive, member, *rows[member])]
    if wrong:
        raise _Bad("wheel-record", "files that are not as RECORD says: %s" % _some(wrong),
                   "the hashes of RECORD")
    return {member: rows[member][0] for member in members if member not in free}


def _is_as(archive: zipfile.ZipFile, member: str, wanted: str, size: str) -> bool:
    kind, _, encoded = wanted.partition("=")
    if kind not in HASHES:
        return False
    digest, count = hashlib.new(kind), 0
    with archive.open(member) as file:
        for chunk in iter(lambda: file.read(CHUNK), b""):
            digest.update(chunk)
            count += len(chunk)
    try:
        told = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    except (binascii.Error, ValueError):
        return False
    return told == digest.digest() and (not size or size == str(count))


def _scripts(archive: zipfile.ZipFile, member: str, members: List[str]) -> List[str]:
    """The programs that entry points ask for, each of which becomes a file."""
    if member not in members:
        return []
    points = configparser.RawConfigParser(delimiters=("=",), strict=False)
    points.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        points.read_string(_text(archive, member))
    except configparser.Error as problem:
        raise _Bad("wheel-metadata", "entry_points.txt that cannot be read: %s" % problem,
                   "an INI file") from problem
    names = [name for section in ("console_scripts", "gui_scripts")
             if points.has_section(section) for name in points.options(section)]
    for name in names:
        if not SCRIPT.fullmatch(name):
            raise _Bad("wheel-unsafe", "an entry point that makes the program %r" % name[:200],
                       "a plain file name", "do not use this file; ask whoever made it")
    return sorted(set(names))


def _some(paths: List[str]) -> str:
    more = len(paths) - 5
    return ", ".join(paths[:5]) + (" and %d more" % more if more > 0 else "")
