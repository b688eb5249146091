# SPDX-License-Identifier: Apache-2.0
"""What the pages say on which wheels are told: PEP 503, PEP 691, flat HTML, releases of GitHub.

Pages are untrusted. A file's name is one plain word, an address leads to http, https or, on a page
of this host's own disk, to a file; nobody's user and password are in it. Whatever a page holds, it
is read in a time that grows with its length alone: Python's own HTML parser, up to releases of
2025, takes the square of it for some garbage, and raises for other.
"""

from __future__ import annotations

import base64
import html
import json
import posixpath
import re
import string
import urllib.parse
import urllib.request
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from ansible.module_utils.firstlight.findings import shown

Candidate = Dict[str, Any]

JSON_TYPE = "application/vnd.pypi.simple.v1+json"
ACCEPT = JSON_TYPE + ", application/vnd.pypi.simple.v1+html; q=0.2, text/html; q=0.1"
HTML_TYPES = ("text/html", "application/vnd.pypi.simple.v1+html", "application/xhtml+xml",
              "text/plain", "")
WHEEL = ".whl"
SDISTS = (".tar.gz", ".zip")
MAX_LINKS = 50_000
MOST = 8192
"""Letters of an attribute."""

FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]{0,254}")
SHA256 = re.compile(r"[0-9a-f]{64}")
TAG = re.compile(r"<(a|base)(?=[\s/])", re.IGNORECASE)
ATTRIBUTE = re.compile(r"[\s/]{0,1000}([^\s\"'<>/=]{1,100})(\s{0,100}=\s{0,100})?")
BARE = re.compile(r"[^\s\"'<>`]{1,%d}" % MOST)
HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")
IN_PATH = string.ascii_letters + string.digits + "-._~!$&'()*,;=:@"


class BadPage(Exception):
    """It is not what it should be; the message says what it is."""


class Page(NamedTuple):
    """What a page told: candidates of the package, how many links in all, and names that cannot be.

    Only links that are about a wheel or an sdist can have a bad name.
    """

    candidates: List[Candidate]
    links: int
    bad: List[str]


def candidate(file: str, **told: Any) -> Candidate:
    """A candidate with every key; what is not told is empty.

    :param file: its name.
    """
    return {"file": file, "url": "", "path": "", "sha256": "", "size": None,
            "requires_python": "", "yanked": "", "source": "", "built_for": {}, **told}


def normal(name: str) -> str:
    """A package's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def is_plain(file: str) -> bool:
    """Whether it can be the name of a wheel or of an sdist, and of nothing but a file."""
    return bool(FILE.fullmatch(file)) and file.endswith((WHEEL, *SDISTS))


def package_of(file: str) -> str:
    """The normalised package that a file is named after; empty for what is neither of both kinds.

    An sdist of the old kind may have hyphens in the name, none in the version.
    """
    if file.endswith(WHEEL):
        return normal(file.partition("-")[0])
    for end in SDISTS:
        if file.endswith(end):
            return normal(file[:-len(end)].rpartition("-")[0])
    return ""


# Addresses.


def split_login(url: str) -> Tuple[str, str]:
    """An address without who is in it, and the header ``Authorization`` that he makes, or nothing.

    :raises ValueError: it is no address.
    """
    parts = urllib.parse.urlsplit(url)
    who, at, host = parts.netloc.rpartition("@")
    plain = urllib.parse.urlunsplit(parts._replace(netloc=host))
    if not at:
        return plain, ""
    user, _, password = who.partition(":")
    pair = "%s:%s" % (urllib.parse.unquote(user), urllib.parse.unquote(password))
    return plain, "Basic " + base64.b64encode(pair.encode()).decode()


def origin(url: str) -> str:
    """Scheme, host and port of an address; empty for what is none."""
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return ""
    return "%s://%s:%s" % (parts.scheme, parts.hostname, port) if parts.hostname else ""


def called(url: str) -> str:
    """An address for people: without who is in it, and without its query, which may be a secret."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return "an address that is none"
    host = parts.netloc.rpartition("@")[2]
    return shown(urllib.parse.urlunsplit((parts.scheme, host, parts.path, "", "")))[:300]


def quoted(url: str) -> str:
    """An address as servers and tools take it: ``+`` in its path is ``%2B``.

    Storage behind a download address takes ``+`` for a space.
    """
    parts = urllib.parse.urlsplit(url)
    path = "/".join(
        urllib.parse.quote(urllib.parse.unquote_to_bytes(one), safe=IN_PATH)
        for one in parts.path.split("/"))
    query = urllib.parse.quote(parts.query, safe=IN_PATH + "%+/?[]")
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, query, ""))


def local_path(url: str) -> str:
    """The path that a ``file:`` address names; empty for any other."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        return ""
    path = urllib.request.url2pathname(parts.path)
    return posixpath.normpath(path) if path.startswith("/") and "\0" not in path else ""


def place(base: str, link: str) -> Tuple[str, str, Dict[str, List[str]]]:
    """Where a link leads: ``(url, path, what its fragment says)``; both empty where it may not.

    :param base: the address of the page; on a page of the disk alone a link may lead to the disk.
    """
    try:
        joined = urllib.parse.urljoin(base, link.strip())
        parts = urllib.parse.urlsplit(joined)
        fragment = urllib.parse.parse_qs(parts.fragment, max_num_fields=20)
        if parts.scheme == "file":
            on_disk = urllib.parse.urlsplit(base).scheme == "file"
            return "", local_path(joined) if on_disk else "", fragment
        _ = parts.port
        host = parts.netloc.rpartition("@")[2]
        named = HOST.match(host)
        if parts.scheme not in ("http", "https") or not named or "\\" in parts.netloc or (
                host[named.end():] and not re.fullmatch(r":[0-9]{0,5}", host[named.end():])):
            return "", "", fragment
        return quoted(urllib.parse.urlunsplit(parts._replace(netloc=host))), "", fragment
    except ValueError:
        return "", "", {}


def _joined(base: str, link: str) -> str:
    try:
        return urllib.parse.urljoin(base, link.strip())
    except ValueError:
        return base


def last_part(link: str) -> str:
    """The name at the end of an address, as it is on a disk: ``%2B`` is ``+``."""
    path = re.split("[?#]", link, maxsplit=1)[0]
    return urllib.parse.unquote(path.rpartition("/")[2])


# HTML.


def links(text: str) -> Iterator[Tuple[str, Dict[str, Optional[str]]]]:
    """The tags ``a`` and ``base`` of an HTML text, with their attributes.

    An attribute without a value has ``None``.

    :raises BadPage: these are too many.
    """
    text = _without_comments(text)
    for count, tag in enumerate(TAG.finditer(text)):
        if count >= MAX_LINKS:
            raise BadPage("more than %d links" % MAX_LINKS)
        yield tag.group(1).lower(), _attributes(text, tag.end())


def _without_comments(text: str) -> str:
    kept, at = [], 0
    while True:
        begin = text.find("<!--", at)
        if begin < 0:
            kept.append(text[at:])
            return "".join(kept)
        kept.append(text[at:begin])
        end = text.find("-->", begin + 4)
        if end < 0:
            return "".join(kept)
        at = end + 3


def _attributes(text: str, at: int) -> Dict[str, Optional[str]]:
    found: Dict[str, Optional[str]] = {}
    # Bounded, so that a tag which never ends costs no more than any other.
    for _ in range(50):
        named = ATTRIBUTE.match(text, at)
        if not named:
            break
        at, value = named.end(), None
        if named.group(2):
            mark = text[at:at + 1]
            if mark in ('"', "'") and mark:
                end = text.find(mark, at + 1, at + 1 + MOST)
                if end < 0:
                    break
                value, at = text[at + 1:end], end + 1
            else:
                bare = BARE.match(text, at)
                value = bare.group() if bare else ""
                at += len(value)
        # Of two with one name the first counts.
        found.setdefault(named.group(1).lower(), None if value is None else html.unescape(value))
    return found


def from_html(text: str, url: str, package: str, source: str) -> Page:
    """The candidates of a page of PEP 503, or of any page with links to files.

    :param url: its address, after redirects.
    :param package: normalised.
    :param source: what the candidates say they come from.
    :raises BadPage: it is too much.
    """
    told = _Told(package, source)
    base: Optional[str] = None
    for tag, has in links(text):
        href = (has.get("href") or "").strip()
        if not href:
            continue
        if tag == "base":
            if base is None:
                base = _joined(url, href)
            continue
        yanked = "data-yanked" in has and (has["data-yanked"] or "yanked")
        told.link(base or url, last_part(href), href,
                  requires_python=_text(has.get("data-requires-python")),
                  yanked=_text(yanked or ""))
    return told.page()


# JSON.


def from_json(text: str, url: str, package: str, source: str) -> Page:
    """The candidates of an answer of PEP 691. Else as :func:`from_html`.

    :raises BadPage: it is none, or too much.
    """
    told = _object(parsed(text))
    api = _object(told.get("meta", {})).get("api-version")
    if str(api).partition(".")[0] != "1":
        raise BadPage("an index of version %s, not 1" % _text(str(api)))
    found = _Told(package, source)
    for row in _list(told.get("files")):
        row = _object(row)
        file, href = row.get("filename"), row.get("url")
        if not isinstance(file, str) or not isinstance(href, str):
            raise BadPage("a file without a name or an address")
        hashes, yanked = row.get("hashes"), row.get("yanked")
        found.link(url, file, href,
                   sha256=hashes.get("sha256") if isinstance(hashes, dict) else "",
                   size=_size(row.get("size")),
                   requires_python=_text(row.get("requires-python")),
                   yanked=_text((yanked if isinstance(yanked, str) else "yanked")
                                if yanked else ""))
    return found.page()


def from_releases(told: Any, package: str, source: str) -> Page:
    """The candidates among the assets of a GitHub release, or of a list of them.

    :param told: the parsed answer. Else as :func:`from_html`.
    :raises BadPage: it is none, or too much.
    """
    found = _Told(package, source)
    for release in told if isinstance(told, list) else [told]:
        release = _object(release)
        if release.get("draft"):
            continue
        tag = _text(release.get("tag_name"))
        for asset in _list(release.get("assets")):
            asset = _object(asset)
            file, href = asset.get("name"), asset.get("browser_download_url")
            if not isinstance(file, str) or not isinstance(href, str):
                raise BadPage("an asset without a name or an address")
            digest = asset.get("digest")
            kind, _, value = (digest if isinstance(digest, str) else "").partition(":")
            found.link("", file, href, sha256=value if kind == "sha256" else "",
                       size=_size(asset.get("size")), source=(source + " " + tag).strip())
    return found.page()


def parsed(text: str) -> Any:
    """What a text of JSON holds.

    :raises BadPage: it is none.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise BadPage("no JSON (%s)" % type(problem).__name__) from problem


class _Told:
    """The links of a page, judged one after the other."""

    def __init__(self, package: str, source: str) -> None:
        self.package, self.source = package, source
        self.candidates: List[Candidate] = []
        self.bad: List[str] = []
        self.count = 0

    def link(self, base: str, file: str, href: str, sha256: Any = "", **told: Any) -> None:
        """Take one of the package, count any.

        :raises BadPage: these are too many.
        """
        self.count += 1
        if self.count > MAX_LINKS:
            raise BadPage("more than %d links" % MAX_LINKS)
        if not file.endswith((WHEEL, *SDISTS)):
            return
        if not is_plain(file):
            # Of other packages too: who has one such name is no one to trust blindly.
            self.bad.append(shown(file)[:100])
            return
        if package_of(file) != self.package:
            return
        url, path, fragment = place(base, href)
        if not (url or path):
            self.bad.append(shown(file)[:100])
            return
        named = sha256 if isinstance(sha256, str) and sha256 else fragment.get("sha256", [""])[0]
        named = named.lower()
        self.candidates.append(candidate(
            file, url=url, path=path, sha256=named if SHA256.fullmatch(named) else "",
            **{"source": self.source, **told}))

    def page(self) -> Page:
        """What came of it."""
        return Page(self.candidates, self.count, self.bad)


def _text(value: Any) -> str:
    """A page's words on one line, and not too many."""
    if not isinstance(value, str):
        return ""
    return shown(" ".join(value[:2000].split()))[:200]


def _size(value: Any) -> Optional[int]:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _object(value: Any) -> Dict[str, Any]:
    if not isinstance(value, dict):
        raise BadPage("no object where one should be")
    return value


def _list(value: Any) -> List[Any]:
    if not isinstance(value, list):
        raise BadPage("no list of files")
    return value
