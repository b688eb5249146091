# SPDX-License-Identifier: Apache-2.0
"""``prebuilt_wheel_packages`` made whole, and everything that is wrong with it."""

from __future__ import annotations

import difflib
import posixpath
import re
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Tuple
from urllib.parse import unquote, urlsplit

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from ..findings import Finding, finding, shown
from . import wheel_names

Entry = Dict[str, Any]
Row = Dict[str, Any]
Source = Dict[str, str]

PACKAGES, ROWS, SOURCES = (
    "prebuilt_wheel_packages", "prebuilt_wheel_rows", "prebuilt_wheel_sources")
DEFAULTS: Entry = {"package": "", "python": "", "version": "", "sha256": "", "sources": []}
# Every row of the catalog has every key; rows of users may leave out what is as usual.
ROW_DEFAULTS: Row = {
    "package": "", "versions": "", "imports": [], "torch": "minor", "requires_torch": [],
    "cuda": "major", "plain_cuda": [], "capabilities": [], "kernel": "", "kernel_device": "cuda",
    "tolerance": 0.02, "not_needed": [], "sources": [], "build": {}, "source": ""}
CHOICES = {"torch": ("minor", "stable", "metadata", "none"), "cuda": ("major", "none"),
           "kernel_device": ("cuda", "any")}
# What a source may have beside the key that says its kind.
KINDS = {"index": (), "page": (), "release": ("tag",), "folder": (), "file": ("sha256",)}
PIP = "pip"

PROJECT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?", re.ASCII)
MODULE = re.compile(r"[A-Za-z_]\w{0,99}(?:\.[A-Za-z_]\w{0,99}){0,9}", re.ASCII)
SHA256 = re.compile(r"[0-9a-f]{64}")
REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,38}/[A-Za-z0-9._-]{1,100}")
TAG = re.compile(r"[A-Za-z0-9._+/{}-]{0,200}")
NUMBER = re.compile(r"\d{1,3}\.\d{1,3}", re.ASCII)
CUDA = re.compile(r"\d{1,3}(?:\.\d{1,3})?", re.ASCII)


def wheel_requests(asked: Any, rows: Any, catalog_rows: Iterable[Row],
                   sources: Any = ()) -> Dict[str, Any]:
    """What is asked for, made whole.

    :param asked: ``prebuilt_wheel_packages`` as the user wrote it.
    :param rows: ``prebuilt_wheel_rows``: rows of the user, which win over those of the catalog.
    :param catalog_rows: the catalog ``prebuilt_wheels``.
    :param sources: ``prebuilt_wheel_sources``: places that are asked before those of a row.
    :returns: ``requests``, each ``{where, package, python, version, sha256, sources, row}`` with
        ``version`` as a specifier, and ``findings``, all that is wrong. An entry that anything is
        wrong with is no request.
    """
    known, findings = _rows(rows, catalog_rows)
    first = _sources(SOURCES, sources, findings)
    requests: List[Entry] = []
    seen: Dict[Tuple[str, str], str] = {}
    for where, entry in _list(PACKAGES, asked, "a list of packages", findings):
        request, wrong = _entry(where, entry, known, first)
        findings += wrong
        if request is None:
            continue
        key = (request["python"], request["package"])
        if key in seen:
            findings.append(_bad(
                where, "twice", "%s in %s, which %s asks for as well" % (
                    request["package"], request["python"], seen[key]),
                "each package once in an environment", "take one of the two out"))
        else:
            seen[key] = where
            requests.append(request)
    return {"requests": requests, "findings": findings}


def _bad(where: str, id_: str, found: str, wanted: str, remedy: str = "") -> Finding:
    return finding("wheel-" + id_, where, found, wanted, remedy or "change %s" % where)


def _list(where: str, value: Any, wanted: str, findings: List[Finding]) -> List[Tuple[str, Any]]:
    """The members of a list, each with its place."""
    if value is None or isinstance(value, (list, tuple)):
        return [("%s[%d]" % (where, place), one) for place, one in enumerate(value or ())]
    findings.append(_bad(where, "not-a-list", _shown(value), wanted))
    return []


def _shown(value: Any) -> str:
    return shown(repr(value))[:200]


# Entries.


def _entry(where: str, entry: Any, known: Mapping[str, Row],
           first: List[Source]) -> Tuple[Optional[Entry], List[Finding]]:
    if not isinstance(entry, dict):
        return None, [_bad(where, "not-a-mapping", _shown(entry),
                           "a mapping with package and python")]
    findings = _unknown_keys(where, entry, DEFAULTS)
    given = {key: entry.get(key, default) for key, default in DEFAULTS.items()}
    row = _row_of(where, given["package"], known, findings)
    if not _is_python(given["python"]):
        findings.append(_bad(
            where + ".python", "bad-python", _shown(given["python"]),
            "the absolute path of the interpreter of an environment, e.g. /opt/serve/bin/python"))
    version = _specifier(where + ".version", given["version"], findings)
    sha256 = _hash(where + ".sha256", given["sha256"], findings)
    own = _sources(where + ".sources", given["sources"], findings)
    if findings or row is None:
        return None, findings
    if row["versions"] and not _meet(version, row["versions"]):
        findings.append(_bad(
            where + ".version", "bad-version", str(given["version"]),
            "one of %s, which the row of %s is about" % (row["versions"], row["package"])))
        return None, findings
    return {"where": where, "package": row["package"], "python": given["python"],
            "version": version, "sha256": sha256, "sources": own or first + row["sources"],
            "row": row}, findings


def _unknown_keys(where: str, entry: Mapping[Any, Any], known: Iterable[str]) -> List[Finding]:
    found = []
    for key in entry:
        if key not in known:
            near = difflib.get_close_matches(str(key)[:100].lower(), list(known), n=1)
            found.append(_bad(where, "unknown-key", "the key %s" % _shown(key),
                              "one of " + ", ".join(known),
                              "did you mean %s?" % near[0] if near else "take it out"))
    return found


def _row_of(where: str, package: Any, known: Mapping[str, Row],
            findings: List[Finding]) -> Optional[Row]:
    if isinstance(package, str) and PROJECT.fullmatch(package):
        name = str(canonicalize_name(package))
        if name in known:
            return known[name]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        findings.append(_bad(
            where + ".package", "unknown-package", package,
            "a package of the catalog or of %s: %s" % (ROWS, ", ".join(sorted(known))),
            ("did you mean %s? " % " or ".join(near) if near else "")
            + "Another package needs a row in %s" % ROWS))
    else:
        findings.append(_bad(where + ".package", "bad-package", _shown(package),
                             "the name of a package, e.g. flash-attn"))
    return None


def _is_python(path: Any) -> bool:
    return (isinstance(path, str) and path.isprintable() and len(path) < 4096
            and path.startswith("/") and posixpath.normpath(path) == path and path != "/"
            and not path.startswith("//"))


def _specifier(where: str, version: Any, findings: List[Finding]) -> str:
    if isinstance(version, str) and len(version) <= 200:
        try:
            return "==%s" % Version(version)
        except InvalidVersion:
            pass
        try:
            return str(SpecifierSet(version))
        except InvalidSpecifier:
            pass
    findings.append(_bad(
        where, "bad-version", _shown(version), "a version such as \"2.8.3\", or a specifier such "
        "as \">=2.8,<3\"", "quote it" if isinstance(version, (int, float)) else ""))
    return ""


def _meet(version: str, versions: str) -> bool:
    """Whether a pinned version is one of those of the row; ranges are left to the candidates."""
    return all(SpecifierSet(versions).contains(one.version, prereleases=True)
               for one in SpecifierSet(version)
               if one.operator == "==" and "*" not in one.version)


def _hash(where: str, sha256: Any, findings: List[Finding]) -> str:
    found = sha256.lower() if isinstance(sha256, str) else None
    if found is not None and (not found or SHA256.fullmatch(found)):
        return found
    findings.append(_bad(where, "bad-sha256", _shown(sha256), "64 of 0-9 and a-f",
                         "take it from `sha256sum FILE`, without any prefix"))
    return ""


# Sources.


def _sources(where: str, sources: Any, findings: List[Finding]) -> List[Source]:
    found = []
    for place, one in _list(where, sources, "a list of sources", findings):
        wrong = _source(place, one)
        findings += wrong
        if not wrong:
            found.append(dict(one))
    return found


def _source(where: str, source: Any) -> List[Finding]:
    kinds = [key for key in source if key in KINDS] if isinstance(source, dict) else []
    if len(kinds) != 1:
        return [_bad(where, "bad-source", "%s with %s" % (_shown(source), (
            " and ".join(kinds) if kinds else "none of them")),
            "a mapping with exactly one of %s" % ", ".join(KINDS))]
    kind = kinds[0]
    findings = _unknown_keys(where, source, (kind, *KINDS[kind]))
    for key in (kind, *KINDS[kind]):
        if key in source and not isinstance(source[key], str):
            findings.append(_bad("%s.%s" % (where, key), "bad-source", _shown(source[key]), "text"))
    return findings or CHECKS[kind]("%s.%s" % (where, kind), source)


def _index(where: str, source: Source) -> List[Finding]:
    return [] if source["index"] == PIP else _address(where, source["index"], " or the word pip")


def _page(where: str, source: Source) -> List[Finding]:
    return _address(where, source["page"])


def _release(where: str, source: Source) -> List[Finding]:
    found = []
    if not REPOSITORY.fullmatch(source["release"]) or source["release"].endswith(("/.", "/..")):
        found.append(_bad(where, "bad-source", _shown(source["release"]),
                          "owner/name of a repository on GitHub"))
    tag = source.get("tag", "")
    if not TAG.fullmatch(tag) or re.search("[{}]", tag.replace("{version}", "")) or ".." in tag:
        found.append(_bad(where, "bad-source", "the tag %s" % _shown(tag),
                          "a tag such as v{version}; empty: all releases are looked through"))
    return found


def _folder(where: str, source: Source) -> List[Finding]:
    path = source["folder"]
    return [] if _is_python(path.rstrip("/")) else [
        _bad(where, "bad-source", _shown(path), "the absolute path of a folder on the host")]


def _file(where: str, source: Source) -> List[Finding]:
    found = _address(where, source["file"])
    if not found:
        name = unquote(posixpath.basename(urlsplit(source["file"]).path))
        try:
            if wheel_names.parse(name).kind != wheel_names.WHEEL:
                found.append(_bad(where, "bad-source", name, "the address of a wheel"))
        except wheel_names.BadName as error:
            found.append(_bad(where, "bad-source", "%s: %s" % (_shown(name), error),
                              "the address of a wheel"))
    if not SHA256.fullmatch(source.get("sha256", "")):
        found.append(_bad(where, "no-hash", "sha256 %s" % _shown(source.get("sha256", "")),
                          "64 of 0-9 and a-f", "give the sha256 of the file beside its address"))
    return found


def _address(where: str, url: str, more: str = "") -> List[Finding]:
    wanted = "an address that begins with https:// or http://%s" % more
    try:
        parts = urlsplit(url)
        host, user, _ = parts.hostname, parts.username or parts.password, parts.port
    except ValueError as error:
        return [_bad(where, "bad-source", "%s: %s" % (_shown(url), error), wanted)]
    if user is not None or "@" in parts.netloc:
        # What stands there may be a password: it is not shown.
        return [_bad(where, "credentials", "an address with a user or a password in it",
                     "an address without", "take it out; credentials of an index belong into the "
                     "configuration of pip on the host, which roles/network_access writes")]
    if parts.scheme not in ("https", "http") or not host or not re.fullmatch(r"[!-~]{1,2000}", url):
        return [_bad(where, "bad-source", _shown(url), wanted)]
    return []


CHECKS: Dict[str, Callable[[str, Source], List[Finding]]] = {
    "index": _index, "page": _page, "release": _release, "folder": _folder, "file": _file}


# Rows.


def _rows(rows: Any, catalog_rows: Iterable[Row]) -> Tuple[Dict[str, Row], List[Finding]]:
    known = {str(canonicalize_name(row["package"])): dict(row) for row in catalog_rows}
    findings: List[Finding] = []
    for where, row in _list(ROWS, rows, "a list of rows as in catalog/prebuilt_wheels.yml",
                            findings):
        wrong = _row(where, row)
        findings += wrong
        if not wrong:
            name = str(canonicalize_name(row["package"]))
            known[name] = {**ROW_DEFAULTS, **row, "package": name}
    return known, findings


def _row(where: str, row: Any) -> List[Finding]:
    if not isinstance(row, dict):
        return [_bad(where, "not-a-mapping", _shown(row), "a mapping with package and imports")]
    findings = _unknown_keys(where, row, ROW_DEFAULTS)
    whole = {**ROW_DEFAULTS, **row}

    def judge(key: str, good: bool, wanted: str) -> None:
        if not good:
            findings.append(_bad("%s.%s" % (where, key), "bad-row", _shown(whole[key]), wanted))

    judge("package", isinstance(whole["package"], str) and bool(
        PROJECT.fullmatch(whole["package"])), "the name of a package")
    judge("versions", _is_specifier(whole["versions"]), "a specifier such as \">=2,<3\"")
    judge("imports", isinstance(whole["imports"], list) and bool(whole["imports"]) and all(
        isinstance(one, str) and MODULE.fullmatch(one) for one in whole["imports"]),
        "a list of modules, at least one")
    for key, choices in CHOICES.items():
        judge(key, whole[key] in choices, "one of " + ", ".join(choices))
    judge("cuda", (whole["cuda"], whole["torch"]) != ("major", "none"),
          "none: without a torch it is not known which CUDA is wanted")
    judge("requires_torch", _mappings(
        whole["requires_torch"], versions=_is_specifier,
        torch=lambda one: one != "" and _is_specifier(one)),
        "a list of {versions, torch}, both specifiers")
    judge("plain_cuda", _mappings(
        whole["plain_cuda"], versions=_is_specifier,
        cuda=lambda one: isinstance(one, str) and bool(CUDA.fullmatch(one))),
        "a list of {versions, cuda}, both quoted")
    judge("capabilities", _mappings(
        whole["capabilities"], capability=_is_number,
        cuda=lambda one: one == "" or _is_number(one)),
        "a list of {capability, cuda}, both quoted")
    judge("kernel", _compiles(whole["kernel"]), "Python that assigns `error`, or nothing")
    # Numbers of a play are of classes of Ansible's own.
    judge("tolerance", isinstance(whole["tolerance"], (int, float))
          and not isinstance(whole["tolerance"], bool) and 0 <= whole["tolerance"] < 1e6,
          "a number, not negative")
    judge("not_needed", _mappings(whole["not_needed"], beside=_is_text, why=_is_text),
          "a list of {beside, why}")
    judge("build", isinstance(whole["build"], dict), "a mapping")
    judge("source", isinstance(whole["source"], str), "a text")
    _sources(where + ".sources", whole["sources"], findings)
    return findings


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_number(value: Any) -> bool:
    return isinstance(value, str) and bool(NUMBER.fullmatch(value))


def _is_specifier(value: Any) -> bool:
    try:
        return isinstance(value, str) and len(value) <= 200 and SpecifierSet(value) is not None
    except InvalidSpecifier:
        return False


def _mappings(value: Any, **keys: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, dict) and set(one) == set(keys)
        and all(good(one[key]) for key, good in keys.items()) for one in value)


def _compiles(text: Any) -> bool:
    try:
        return isinstance(text, str) and len(text) < 20000 and (
            compile(text, "kernel", "exec") is not None)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
