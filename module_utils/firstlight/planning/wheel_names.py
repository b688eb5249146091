# SPDX-License-Identifier: Apache-2.0
"""What the file name of a wheel or of a source archive tells.

PEP 427 has names of packages, versions and tags. What wheels of CUDA code need besides, their
builders write into the local version, each in its own way: ``cu12torch2.8cxx11abiTRUE``,
``cu130torch2.11gite2743ab``, ``pt24cu121``, ``cu130sm89torch2.10.0``. Names come from indexes and
pages of others; nothing in one makes this slow or fall over.
"""

from __future__ import annotations

import re
from typing import FrozenSet, List, NamedTuple, Optional, Tuple

from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
from packaging.version import InvalidVersion, Version

Cuda = Tuple[int, Optional[int]]
"""Major and minor; ``None`` for a minor that is not told."""

# Linux has no longer name for a file; the letters are those of PEP 427 and PEP 440.
LETTERS = re.compile(r"[A-Za-z0-9._+!-]{1,255}")
PROJECT = re.compile(r"[A-Za-z0-9](?:[._]?[A-Za-z0-9]+)*")
TAG = re.compile(r"[a-z0-9_]+(?:\.[a-z0-9_]+)*", re.IGNORECASE)
# A set of tags is the product of three lists; real names have fewer than twenty.
MOST_TAGS = 200
WHEEL, SDIST = "wheel", "sdist"

_TOLD = re.compile(r"""
      cu(?:da)?(?P<cuda>\d{2}\.\d(?!\d)|\d{2,3}(?!\d))
    | (?:torch|pt)(?P<torch>\d+\.\d+|\d{2,4}(?!\d))(?:\.\d+)*(?P<onward>andhigher)?
    | cxx11abi(?P<abi>true|false|[01])
    | sm_?(?P<sm>\d{2,3})a?
    | (?P<other>(?:rocm|hip)[\d.]*|cpu|xpu|npu)
    | git[0-9a-f]+ | g[0-9a-f]{7,40} | d[0-9]{8}
    """, re.VERBOSE)


class BadName(ValueError):
    """A name that is none of a wheel or a source archive; ``str()`` of it says why."""


class Name(NamedTuple):
    """What a file name tells."""

    package: str
    """Normalised as in PEP 503."""
    version: str
    """Without the local version."""
    local: str
    """The local version, in lower case; empty without one."""
    cuda: Optional[Cuda]
    torch: str
    """Major and minor as ``2.8``; empty where none is told."""
    onward: bool
    """Whether newer releases of torch will do too."""
    cxx11abi: Optional[bool]
    capability: str
    """The one compute capability that it was compiled for, as ``8.9``; empty: none is told."""
    other: str
    """What it is for instead of CUDA: ``rocm7.2``, ``cpu``, ``xpu``; else empty."""
    tags: FrozenSet[str]
    """PEP 425, each as ``cp312-cp312-linux_x86_64``; none of a source archive."""
    build: str
    kind: str
    """``wheel`` or ``sdist``."""
    unknown: Tuple[str, ...]
    """Parts of the local version that say nothing to us."""

    @property
    def whole(self) -> Version:
        """The version with its local part."""
        return Version("%s+%s" % (self.version, self.local) if self.local else self.version)

    @property
    def pure(self) -> bool:
        """Whether it has no compiled code for one platform."""
        return bool(self.tags) and all(tag.endswith("-any") for tag in self.tags)


def parse(file: str) -> Name:
    """Read a file name.

    :param file: the name alone, with ``+`` as it is, not ``%2B``.
    :raises BadName: where it is none of a wheel or of a source archive.
    """
    if not isinstance(file, str):
        raise BadName("it is no text")
    if "%" in file[:255]:
        raise BadName("it has a %-escape; a + belongs where %2B is")
    if not LETTERS.fullmatch(file):
        raise BadName("it is longer than 255 characters" if len(file) > 255 else
                      "it has characters that names of wheels do not have" if file
                      else "it is empty")
    try:
        if file.endswith(".whl"):
            return _wheel(file)
        if file.endswith((".tar.gz", ".zip")):
            return _sdist(file)
    except (InvalidWheelFilename, InvalidSdistFilename, InvalidVersion) as error:
        raise BadName(str(error)) from None
    raise BadName("it ends neither in .whl nor in .tar.gz or .zip")


def _wheel(file: str) -> Name:
    parts = file[:-len(".whl")].split("-")
    if len(parts) not in (5, 6):
        raise BadName("it has %d parts between hyphens, a wheel has 5 or 6" % len(parts))
    _project(parts[0])
    if not all(TAG.fullmatch(part) for part in parts[-3:]):
        raise BadName("its tags are none of PEP 425")
    count = 1
    for part in parts[-3:]:
        count *= part.count(".") + 1
    if count > MOST_TAGS:
        raise BadName("it stands for %d tags" % count)
    package, version, build, tags = parse_wheel_filename(file)
    return _name(package, version, WHEEL, frozenset(str(tag) for tag in tags),
                 "".join(str(part) for part in build))


def _sdist(file: str) -> Name:
    package, version = parse_sdist_filename(file)
    _project(package.replace("-", "_"))
    return _name(package, version, SDIST, frozenset(), "")


def _project(text: str) -> None:
    if not PROJECT.fullmatch(text):
        raise BadName("%r is no name of a package" % text)


def _name(package: str, version: Version, kind: str, tags: FrozenSet[str], build: str) -> Name:
    local = version.local or ""
    found = {key: value for match in _TOLD.finditer(local)
             for key, value in match.groupdict().items() if value}
    abi = found.get("abi")
    return Name(
        package=str(canonicalize_name(package)), version=version.public, local=local,
        cuda=cuda(found["cuda"]) if "cuda" in found else None,
        torch=_minor(found.get("torch", "")), onward="onward" in found,
        cxx11abi=None if abi is None else abi in ("true", "1"),
        capability=_dotted(found.get("sm", "")), other=found.get("other", "").rstrip("."),
        tags=tags, build=build, kind=kind,
        unknown=tuple(_left(local)))


def _left(local: str) -> List[str]:
    return [part for part in re.split(r"[._-]+", _TOLD.sub(".", local)) if part]


def cuda(digits: str) -> Cuda:
    """CUDA as names have it: ``12``, ``128``, ``12.8``."""
    if "." in digits:
        major, _, minor = digits.partition(".")
        return int(major), int(minor)
    if len(digits) == 2:
        # 9.2 is the last release with a major of one digit.
        return (int(digits), None) if digits[0] == "1" else (int(digits[0]), int(digits[1]))
    return int(digits[:-1]), int(digits[-1])


def _minor(text: str) -> str:
    """The minor of torch: of ``2.8``, ``24``, ``270`` and ``2100``; empty where it may be two."""
    if "." in text or not text:
        return text
    major, rest = text[0], text[1:]
    # 210 is 2.1.0 or 2.10, and 221 is 2.2.1 or 2.21. Torch 1 had no more than 1.13.
    if len(rest) == 2 and major != "1":
        return "%s.%s" % (major, rest[0]) if rest[0] not in "12" or rest == "20" else ""
    return "%s.%s" % (major, rest[:2])


def _dotted(digits: str) -> str:
    return "%s.%s" % (digits[:-1], digits[-1]) if digits else ""
