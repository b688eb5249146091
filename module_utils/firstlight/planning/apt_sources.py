# SPDX-License-Identifier: Apache-2.0
"""The lists of apt: which of their addresses are the distribution's, and lists with others there.

A list is a text of ``/etc/apt``: ``.list`` has one source a line, ``.sources`` has paragraphs of
fields. Whatever is not understood stays as it is.
"""

from __future__ import annotations

import re
import urllib.parse
from typing import (
    Callable,
    Dict,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

LINE = re.compile(
    r"(?P<head>\s*deb(?:-src)?\s+)(?P<options>\[[^\]]*\]\s+)?(?P<uri>\S+)(?P<rest>\s+(?P<suite>\S+)"
    r"(?P<components>.*))")
FIELD = re.compile(r"(?P<name>[A-Za-z0-9-]+):(?P<value>.*(?:\n[ \t#].*)*)")
KEYRING = re.compile(r"signed-by=(\S+?)(?=[\s\]])", re.IGNORECASE)
LISTS = "mirror+file:"
"""A scheme: the address is a file of addresses, as images of clouds have it."""


class Source(NamedTuple):
    """A place that packages come from: one address, with its suites.

    :param uri: as it is written.
    :param keyring: what it says signs it; empty for nothing.
    """

    uri: str
    suites: Tuple[str, ...]
    components: Tuple[str, ...]
    keyring: str


def sources(name: str, text: str) -> List[Source]:
    """All that a list names and has not turned off.

    :param name: of the file: its end says how it is written.
    """
    found: List[Source] = []
    if name.endswith(".sources"):
        for paragraph in _paragraphs(text):
            fields = _fields(paragraph)
            if fields.get("enabled", "yes").lower() not in ("no", "false", "0", "off"):
                found += [Source(uri, tuple(fields.get("suites", "").split()),
                                 tuple(fields.get("components", "").split()),
                                 fields.get("signed-by", ""))
                          for uri in fields.get("uris", "").split()]
        return found
    for line in text.splitlines():
        match = LINE.fullmatch(line)
        if match:
            keyring = KEYRING.search(match.group("options") or "")
            found.append(Source(
                match.group("uri"), (match.group("suite"),),
                tuple(match.group("components").partition("#")[0].split()),
                keyring.group(1) if keyring else ""))
    return found


def of_distribution(lists: Mapping[str, str], distribution: str, codename: str
                    ) -> Dict[str, Tuple[str, ...]]:
    """The suites of each address that is the distribution's, by the address as it is written.

    Others use its name for their suites too. A source of the distribution has the component that
    all of its packages are in, and where it says who signs it, that is the distribution.

    :param lists: texts by the names of their files.
    :param distribution: ``ID`` of os-release, e.g. ``debian``.
    :param codename: its ``VERSION_CODENAME``.
    """
    found: Dict[str, List[str]] = {}
    if not codename:
        return {}
    for name, text in sorted(lists.items()):
        for one in sources(name, text):
            # Ours are what its archive is called, with a dash or (before Debian 11) a slash.
            own = [suite for suite in one.suites
                   if re.fullmatch(re.escape(codename) + "([-/](updates|security|backports|"
                                   "proposed-updates|proposed))?", suite)]
            if own and "main" in one.components and _signs(one.keyring, distribution):
                known = found.setdefault(one.uri, [])
                known += [suite for suite in one.suites if suite not in known]
    return {uri: tuple(suites) for uri, suites in found.items()}


def _signs(keyring: str, distribution: str) -> bool:
    """Whether what signs a source is the distribution's; a source need not say."""
    return not keyring or bool(re.search(
        r"/%s-archive-[^/]*$" % re.escape(distribution), keyring.strip()))


def beside(mirror: str, uri: str, all_uris: List[str]) -> str:
    """Where a mirror has what an address of the distribution has.

    Mirrors keep the paths (``/debian``, ``/debian-security``, ``/ubuntu``); the mirror may be named
    with one of them, or without.

    :param mirror: its address, without a slash at its end.
    :param uri: one of ``all_uris``, of HTTP.
    """
    path = _path(uri)
    for other in sorted(map(_path, all_uris), key=len, reverse=True):
        if other and mirror.endswith(other):
            return mirror[:-len(other)] + path
    return mirror + path


def _path(uri: str) -> str:
    return urllib.parse.urlsplit(uri).path.rstrip("/")


def with_others(name: str, text: str, others: Mapping[str, str]) -> str:
    """A list with other addresses, and all else as it was.

    :param others: the new address by the one that is written.
    """
    if name.endswith(".sources"):
        return FIELD.sub(lambda field: _field(field, others), text)
    return "".join(_line(line, others) for line in text.splitlines(True))


def only(name: str, text: str, uris: Sequence[str]) -> str:
    """A list of these sources alone, of those that it has."""
    if name.endswith(".sources"):
        kept = [paragraph for paragraph in _paragraphs(text)
                if set(_fields(paragraph).get("uris", "").split()) & set(uris)]
        # Others in the same paragraph go.
        lists = "\n\n".join(paragraph.strip("\n") for paragraph in kept)
        gone = {one.uri: "" for one in sources(name, lists) if one.uri not in uris}
        return with_others(name, lists, gone) + "\n" if kept else ""
    return "".join(line for line in text.splitlines(True) for match in [LINE.fullmatch(
        line.rstrip("\n"))] if match and match.group("uri") in uris)


def _line(line: str, others: Mapping[str, str]) -> str:
    match = LINE.fullmatch(line.rstrip("\n"))
    if not match or match.group("uri") not in others:
        return line
    return "%s%s%s%s%s" % (
        match.group("head"), match.group("options") or "", others[match.group("uri")],
        match.group("rest"), "\n" if line.endswith("\n") else "")


def _field(field: re.Match[str], others: Mapping[str, str]) -> str:
    if field.group("name").lower() != "uris":
        return field.group(0)
    lines = [line if line.startswith("#") else re.sub(
        r"\S+", _other(others), line) for line in field.group("value").split("\n")]
    return "%s:%s" % (field.group("name"), "\n".join(lines))


def _other(others: Mapping[str, str]) -> Callable[[re.Match[str]], str]:
    return lambda word: others.get(word.group(0), word.group(0))


def _paragraphs(text: str) -> Iterator[str]:
    yield from re.split(r"\n[ \t]*(?:\n|$)", text)


def _fields(paragraph: str) -> Dict[str, str]:
    """Fields by their names in small letters, without comments."""
    plain = "".join(line for line in paragraph.splitlines(True) if not line.startswith("#"))
    return {match.group("name").lower(): " ".join(match.group("value").split())
            for match in FIELD.finditer(plain)}


def first_of_list(text: str) -> Optional[str]:
    """The first address of a file of addresses; ``None`` without one."""
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if words and re.match("https?://", words[0]):
            return words[0]
    return None


# What a mirror says of itself.


class Release(NamedTuple):
    """An InRelease file, as far as it is read."""

    origin: str
    codename: str
    suite: str
    indexes: Dict[str, int]
    """Sizes of files by their paths."""


def release(text: str) -> Optional[Release]:
    """What an InRelease says; ``None`` for what is none."""
    if not text.lstrip().startswith("-----BEGIN PGP SIGNED MESSAGE-----"):
        return None
    fields = {name: (re.search("^%s:[ \t]*(.*)$" % name, text, re.MULTILINE) or ["", ""])[1].strip()
              for name in ("Origin", "Codename", "Suite")}
    indexes = {path: int(size) for size, path in re.findall(
        r"^ [0-9a-f]{64}[ \t]+(\d{1,12})[ \t]+(\S+)$", text, re.MULTILINE)}
    if not fields["Codename"] and not fields["Suite"]:
        return None
    return Release(fields["Origin"], fields["Codename"], fields["Suite"], indexes)


def not_ours(found: Optional[Release], distribution: str, codename: str) -> str:
    """Why an answer is not the InRelease of this distribution's; empty where it is."""
    if found is None:
        return "an answer that is no InRelease"
    if found.origin.lower() != distribution.lower():
        return "packages of %s" % (found.origin[:40] or "an unnamed origin")
    if re.split("[-/]", found.codename)[0] != codename:
        return "packages for %s" % (found.codename or found.suite)[:40]
    return ""


def index_of(found: Release, architecture: str) -> str:
    """The path of a list of packages to measure a download by; empty without one."""
    # What is not packed is named too, and does not lie on most mirrors.
    names = ["main/binary-%s/Packages%s" % (architecture, end) for end in (".xz", ".gz")]
    return next((name for name in names if name in found.indexes), "")
