# SPDX-License-Identifier: Apache-2.0
"""Which wheels there are of a package: asked of the wheelhouse and of sources, in their order.

All that are named after the package are told, fitting or not; to choose is for the planner. A
source that gives no answer is a finding, and the others are asked all the same. Who is in the
address of a source is told to that very host alone, and is in no candidate and no finding.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import http.client
import json
import os
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple

from ansible.module_utils.firstlight import paths
from ansible.module_utils.firstlight.findings import Finding, finding, shown
from ansible.module_utils.firstlight.snapshots.fetch import opener
from ansible.module_utils.firstlight.wheels import house as houses
from ansible.module_utils.firstlight.wheels import pages, pip_settings
from ansible.module_utils.firstlight.wheels.pages import BadPage, Candidate, Page

RELEASE_API = "https://api.github.com"
TIMEOUT_S = 30.0
"""Within which a page must be whole."""
MAX_PAGE = 32 * 2**20
PAUSES_S = (0.5, 2.0)
"""Between the tries of a server that is in trouble."""
PAGES = 10
"""Pages of a list of releases."""
PER_PAGE = 30
"""Releases of a page. Each may have hundreds of files, and a page must come in time."""
PIP = "pip"
PLAIN = "wheel-plain-http"
THIS_HOST = re.compile(r"http://(localhost|127(\.[0-9]{1,3}){3}|::1):.*")
REPOSITORY = re.compile(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+")
PINNED = re.compile(r"\s*(?:===?)?\s*(v?[0-9][A-Za-z0-9.!_-]*)(?:\+[A-Za-z0-9._-]+)?\s*")
NEXT = re.compile(r'<([^<>]{1,2000})>\s*;\s*rel="?next"?')
MIRROR = ("name a mirror in `prebuilt_wheel_sources`, or fill the wheelhouse from another host"
          " (playbooks/prefetch.yml)")
WAY_OUT = "check the way out (`network_access_proxy`, `network_access_ca_bundle`), " + MIRROR


class _Answer(NamedTuple):
    url: str
    kind: str
    text: str
    next: str


class _Silent(Exception):
    """A source gives no answer that is of use; the finding says why."""

    def __init__(self, told: Finding) -> None:
        super().__init__(told["found"])
        self.finding = told


class _NotThere(Exception):
    """A server says that it has no such page."""


def find(
    package: str, version: str, sources: Sequence[Mapping[str, Any]],
    house: Optional[houses.House] = None, release_api: str = RELEASE_API, offline: bool = False,
    env: Optional[Mapping[str, str]] = None, pythons: Sequence[str] = (),
) -> Tuple[List[Candidate], List[Finding]]:
    """The candidates of a package, those of the wheelhouse first, then by source.

    Their ``place`` is 0 for the wheelhouse, then that of their source.

    :param package: its name, in any spelling.
    :param version: a version or specifier; only an exact one is of use here, for a release's tag.
    :param sources: each with one of ``index``, ``page``, ``release``, ``folder``, ``file``.
    :param release_api: where releases are asked for.
    :param offline: whether nothing but this host's own disk is asked.
    :param env: variables on top of this process's own, as ``network_settings.read`` gives them.
    :param pythons: interpreters whose pip tells its index, in order; this process's comes last.
    :returns: candidates, and findings: a source without an answer is a warning, and an error where
        no candidate was found at all; one that has nothing of the package is an info.
    """
    asked = _Asked(pages.normal(package), version, release_api, offline, env, pythons)
    if house is not None:
        asked.take(*house.candidates(asked.package))
    with pip_settings.variables(env):
        for asked.place, source in enumerate(sources, 1):
            asked.source(source)
    return asked.candidates, asked.told()


class _Asked:
    """What one package was asked for, and what came of it."""

    def __init__(self, package: str, version: str, release_api: str, offline: bool,
                 env: Optional[Mapping[str, str]], pythons: Sequence[str]) -> None:
        self.package, self.offline = package, offline
        pinned = PINNED.fullmatch(version)
        self.version = pinned.group(1).lstrip("v") if pinned else ""
        self.release_api, self.env, self.pythons = release_api.rstrip("/"), env, pythons
        self.candidates: List[Candidate] = []
        self.known: Set[str] = set()
        self.place = 0
        self.findings: List[Finding] = []
        self.left: List[str] = []
        self.logins: Dict[str, str] = {}

    def take(self, candidates: List[Candidate], findings: Sequence[Finding] = ()) -> None:
        """Keep what came, each once."""
        for one in candidates:
            known = json.dumps(one, sort_keys=True)
            if known not in self.known:
                self.known.add(known)
                self.candidates.append({**one, "place": self.place})
        self.findings += [one for one in findings if one not in self.findings]

    def told(self) -> List[Finding]:
        """The findings, those of silent sources as bad as it makes them to have nothing at all."""
        if self.left:
            self.findings.append(finding(
                "wheel-offline", self.package, "not asked: %s" % ", ".join(self.left), "",
                "set `prebuilt_wheel_offline: false` if this host may go out; else fill its"
                " wheelhouse from another host (playbooks/prefetch.yml)", severity="info"))
        if not self.candidates:
            for one in self.findings:
                if one["severity"] == "warning" and one["id"] != PLAIN:
                    one["severity"] = "error"
        return self.findings

    # Sources.

    def source(self, source: Mapping[str, Any]) -> None:
        """Ask one of them."""
        ways: Dict[str, Callable[[str, Mapping[str, Any]], None]] = {
            "index": self.index, "page": self.page, "release": self.release,
            "folder": self.folder, "file": self.file}
        named = [key for key in ways if source.get(key)]
        if len(named) != 1 or not isinstance(source[named[0]], str):
            self.findings.append(finding(
                "wheel-bad-source", self.package, "a source with %s" % (
                    " and ".join(sorted(shown(str(key)) for key in source)) or "nothing"),
                "exactly one of %s, as text" % ", ".join(ways),
                "correct it in `prebuilt_wheel_sources` or in the row's `sources`"))
            return
        self.asking(lambda: ways[named[0]](source[named[0]].strip(), source))

    def asking(self, ask: Callable[[], None]) -> None:
        """Ask, and keep what is to be said on who gives no answer."""
        try:
            ask()
        except _Silent as problem:
            self.take([], [problem.finding])

    def index(self, url: str, _: Mapping[str, Any]) -> None:
        """An index, or those that pip uses here."""
        if url != PIP:
            return self.simple(url, "index")
        told = pip_settings.read(self.env, self.pythons, default=not self.offline)
        if not told.indexes and not told.find_links and not self.offline:
            raise _Silent(finding(
                "wheel-no-index", "pip's index on this host", told.why, "an index that pip uses",
                "set `network_access_pip_indexes`, or name an index in `prebuilt_wheel_sources`",
                severity="warning"))
        self.logins.update(pip_settings.logins((*told.indexes, *told.find_links)))
        for one in told.indexes:
            self.asking(functools.partial(self.simple, one, "pip's index"))
        for one in told.find_links:
            self.asking(functools.partial(self.find_links, one))
        if not told.indexes:
            self.outside("pip's index")
        return None

    def simple(self, url: str, kind: str) -> None:
        """The page of the package in an index."""
        name = "%s %s" % (kind, pages.called(url))
        if self.local(url):
            at = os.path.join(self.local(url), self.package, "index.html")
            return self.on_disk(at, name)
        if self.outside(name):
            return None
        try:
            answer = self.ask(self.join(url, self.package + "/", name), name, pages.ACCEPT)
        except _NotThere:
            return self.nothing(name, "it has no page of %s (HTTP 404)" % self.package)
        return self.read(answer, name)

    def page(self, url: str, _: Mapping[str, Any]) -> None:
        """One page of links."""
        name = "page %s" % pages.called(url)
        if self.local(url):
            return self.on_disk(self.local(url), name)
        if self.outside(name):
            return None
        try:
            return self.read(self.ask(url, name, pages.ACCEPT), name)
        except _NotThere:
            raise _Silent(self.silent(
                name, "HTTP 404: no such page", "correct its address, or " + MIRROR)) from None

    def release(self, repository: str, source: Mapping[str, Any]) -> None:
        """The assets of a release, or of all where none can be named."""
        name = "release %s" % shown(repository)
        if not REPOSITORY.fullmatch(repository):
            raise _Silent(finding(
                "wheel-bad-source", name, "it names no repository", "owner/name",
                "correct `release` in `prebuilt_wheel_sources` or in the row's `sources`"))
        if self.outside(name):
            return
        tag = str(source.get("tag") or "")
        begin = "%s/repos/%s/releases" % (self.release_api, repository)
        if tag and (self.version or "{version}" not in tag):
            tag = tag.replace("{version}", self.version)
            url, name = "%s/tags/%s" % (begin, urllib.parse.quote(tag, safe="")), "%s %s" % (
                name, shown(tag))
        else:
            url = "%s?per_page=%d" % (begin, PER_PAGE)
        found, count = [], 0
        for _ in range(PAGES):
            try:
                answer = self.ask(url, name, "application/vnd.github+json")
            except _NotThere:
                self.nothing(name, "there is no such release (HTTP 404)")
                return
            page = self.judged(name, functools.partial(
                _releases, answer.text, self.package, "release %s" % repository))
            found += page.candidates
            count += page.links
            url = answer.next
            # Who leads elsewhere is not followed.
            if pages.origin(url) != pages.origin(self.release_api):
                break
        else:
            self.take([], [self.silent(
                name, "more than %d pages of releases; the older ones were not looked at" % PAGES,
                "set an exact `version`")])
        self.kept(name, found, count)

    def folder(self, folder: str, _: Mapping[str, Any]) -> None:
        """A folder of this host."""
        self.take(*houses.folder_candidates(folder, self.package))

    def file(self, url: str, source: Mapping[str, Any]) -> None:
        """One file by its address."""
        file, path = pages.last_part(url), self.local(url)
        name = "file %s" % pages.called(url)
        at, _, fragment = pages.place(url, url)
        if not pages.is_plain(file) or not (path or at):
            raise _Silent(finding(
                "wheel-bad-source", name, "it names no wheel",
                "an address of http, https or file that ends in the name of a wheel",
                "correct `file` in `prebuilt_wheel_sources` or in the row's `sources`"))
        if pages.package_of(file) != self.package or (not path and self.outside(name)):
            return
        sha256, size = str(source.get("sha256") or fragment.get("sha256", [""])[0]).lower(), None
        if path:
            try:
                size = os.stat(path).st_size
                sha256 = sha256 or houses.sha256_of(path)
            except OSError as problem:
                raise _Silent(self.silent(
                    name, problem.strerror or str(problem), "put it there, or " + MIRROR)
                ) from problem
        self.take([pages.candidate(
            file, url="" if path else at, path=path, size=size, source=name,
            sha256=sha256 if pages.SHA256.fullmatch(sha256) else "")])

    def find_links(self, where: str) -> None:
        """What pip's ``find-links`` names: a folder, a page of the disk, or one elsewhere."""
        path = self.local(where) or ("" if "://" in where else os.path.expanduser(where))
        if not path:
            return self.page(where, {})
        if os.path.isdir(path):
            return self.folder(path, {})
        return self.on_disk(path, "page %s" % shown(path))

    # How they are asked.

    @staticmethod
    def local(url: str) -> str:
        """The path that a source names, if it is on this host's disk."""
        if url.startswith("/"):
            return url
        try:
            return pages.local_path(url)
        except ValueError:
            return ""

    def outside(self, name: str) -> bool:
        """Whether a source is left, because it is not of this host."""
        if self.offline and name not in self.left:
            self.left.append(name)
        return self.offline

    def on_disk(self, path: str, name: str) -> None:
        """A page of the disk; files that it names and that are there have a hash and a size."""
        try:
            content = paths.read(path)
        except OSError as problem:
            raise _Silent(self.silent(
                name, "%s: %s" % (path, problem.strerror), "correct its address")) from problem
        if content is None:
            return self.nothing(name, "there is no %s" % path)
        base = "file://" + urllib.parse.quote(path)
        page = self.judged(name, lambda: pages.from_html(
            content.decode("utf-8", "replace"), base, self.package, name))
        found = []
        for one in page.candidates:
            if one["url"]:
                if not self.outside(name):
                    found.append(one)
                continue
            with contextlib.suppress(OSError):
                found.append(dict(
                    one, size=os.stat(one["path"]).st_size,
                    sha256=one["sha256"] or houses.sha256_of(one["path"])))
        return self.kept(name, found, page.links)

    def read(self, answer: _Answer, name: str) -> None:
        """Take what a page tells, whichever kind it is of."""
        if answer.kind in (pages.JSON_TYPE, "application/json"):
            reader = pages.from_json
        elif answer.kind in pages.HTML_TYPES:
            reader = pages.from_html
        else:
            raise _Silent(self.silent(
                name, "it answers with %s" % answer.kind,
                "correct its address: an index ends in /simple as a rule, or " + MIRROR,
                "wheel-bad-page"))
        page = self.judged(name, lambda: reader(answer.text, answer.url, self.package, name))
        self.kept(name, page.candidates, page.links)

    def judged(self, name: str, read: Callable[[], Page]) -> Page:
        """What a page tells; names in it that cannot be are told."""
        try:
            page = read()
        except BadPage as problem:
            raise _Silent(self.silent(
                name, "its answer is %s" % problem,
                "correct its address, or " + MIRROR, "wheel-bad-page")) from problem
        if page.bad:
            self.take([], [self.silent(
                name, "%d of its links cannot be files of a package: %s" % (
                    len(page.bad), ", ".join(page.bad[:3])),
                "tell who keeps it; these links were left out", "wheel-bad-link")])
        return page

    def kept(self, name: str, found: List[Candidate], links: int) -> None:
        """Take candidates of a source, or say that it has none."""
        self.take(found)
        if not found:
            self.nothing(name, "none of its %d links is a file of %s" % (links, self.package))

    def nothing(self, name: str, found: str) -> None:
        """Say that a source has nothing of the package."""
        self.take([], [finding("wheel-source-empty", name, found, "a file of %s" % self.package,
                               "name another source in `prebuilt_wheel_sources`",
                               severity="info")])

    def silent(self, name: str, found: str, remedy: str, id_: str = "wheel-source-down",
               evidence: str = "") -> Finding:
        """What is said of a source that is of no use now."""
        return finding(id_, name, found, "an answer on %s" % self.package, remedy,
                       severity="warning", evidence=evidence)

    def join(self, url: str, under: str, name: str) -> str:
        """An address under another one, whatever stands behind that."""
        try:
            parts = urllib.parse.urlsplit(url)
        except ValueError:
            raise _Silent(self.silent(name, "no address", "correct it")) from None
        return urllib.parse.urlunsplit(parts._replace(
            path=parts.path.rstrip("/") + "/" + under, fragment=""))

    def ask(self, url: str, name: str, accept: str) -> _Answer:
        """A page, whole.

        :raises _Silent: it cannot be had.
        :raises _NotThere: the server has none.
        """
        try:
            url, login = pages.split_login(url)
            at = pages.origin(url)
            login = login or self.logins.get(at, "")
            if urllib.parse.urlsplit(url).scheme not in ("http", "https") or not at:
                raise ValueError
        except ValueError:
            raise _Silent(self.silent(
                name, "no address of http or https", "correct it")) from None
        headers = {"User-Agent": "firstlight", "Accept": accept,
                   **({"Authorization": login} if login else {})}
        request = urllib.request.Request(  # noqa: S310 - the opener takes http and https alone
            pages.quoted(url), headers=headers)
        for pause in (*PAUSES_S, None):
            problem, again = self.tried(request, name)
            if isinstance(problem, _Answer):
                self.trusted(name, url, problem.url)
                return problem
            if not again or pause is None:
                raise _Silent(problem)
            _wait(pause)
        raise AssertionError  # every way out of the loop is taken

    def trusted(self, name: str, *urls: str) -> None:
        """Say that hashes came over a line on which anybody could have changed them."""
        for url in urls:
            at = pages.origin(url)
            if at.startswith("http:") and not THIS_HOST.fullmatch(at):
                self.take([], [finding(
                    PLAIN, name, "%s was asked without TLS" % pages.called(url),
                    "https: files and their SHA-256 are told by the same page, and on its way both"
                    " can be changed",
                    "name it by https in `prebuilt_wheel_sources` or"
                    " `network_access_pip_indexes`, or pin the `sha256` of the package in"
                    " `prebuilt_wheel_packages`", severity="warning")])
                return

    def tried(self, request: urllib.request.Request, name: str) -> Tuple[Any, bool]:
        """An answer; or a finding, and whether another try may help."""
        try:
            with opener().open(request, timeout=TIMEOUT_S) as answer:
                return self.answer(answer), False
        except urllib.error.HTTPError as refusal:
            with contextlib.closing(refusal):
                return self.refused(refusal, name)
        except BadPage as problem:
            return self.silent(name, "its answer is %s" % problem,
                               "correct its address, or " + MIRROR, "wheel-bad-page"), False
        except (OSError, http.client.HTTPException, ValueError) as problem:
            reason = getattr(problem, "reason", None) or problem
            text = shown(" ".join(str(reason).split()) or type(reason).__name__)[:300]
            never = isinstance(reason, (ssl.SSLCertVerificationError, TimeoutError, ValueError,
                                        http.client.InvalidURL)) or "timed out" in text
            return self.silent(name, text, WAY_OUT), not never

    @staticmethod
    def answer(answer: Any) -> _Answer:
        """An answer, whole and in time.

        :raises BadPage: it is too long.
        """
        until = time.monotonic() + TIMEOUT_S
        pieces, size = [], 0
        while True:
            piece = answer.read1(2**18)
            if not piece:
                break
            pieces.append(piece)
            size += len(piece)
            if size > MAX_PAGE:
                raise BadPage("more than %d MiB" % (MAX_PAGE // 2**20))
            if time.monotonic() > until:
                raise TimeoutError("timed out after %d bytes" % size)
        length = answer.headers.get("Content-Length") or ""
        if length.isdecimal() and size < int(length):
            raise http.client.IncompleteRead(b"", int(length) - size)
        content = b"".join(pieces)
        charset = answer.headers.get_content_charset() or "utf-8"
        try:
            codecs.lookup(charset)
            text = content.decode(charset, "replace")
        except (LookupError, ValueError):
            text = content.decode("utf-8", "replace")
        kind = (answer.headers.get("Content-Type") or "").partition(";")[0].strip().lower()
        following = NEXT.search(answer.headers.get("Link") or "")
        return _Answer(answer.url, shown(kind)[:100], text,
                       following.group(1) if following else "")

    def refused(self, refusal: urllib.error.HTTPError, name: str) -> Tuple[Finding, bool]:
        """What a refusal means, and whether another try may help.

        :raises _NotThere: the server has no such page.
        """
        status, headers = refusal.code, refusal.headers
        if status in (404, 410):
            raise _NotThere
        if status in (403, 429) and (headers.get("X-RateLimit-Remaining") == "0"
                                     or headers.get("Retry-After")):
            reset = headers.get("X-RateLimit-Reset") or ""
            until = time.strftime(" until %H:%M UTC", time.gmtime(int(reset))) if (
                re.fullmatch(r"[0-9]{1,11}", reset)) else ""
            limit = headers.get("X-RateLimit-Limit") or ""
            return self.silent(
                name, "HTTP %d: its limit%s is used up%s, for all who share this address" % (
                    status, " of %s requests an hour" % limit if limit.isdecimal() else "", until),
                "wait until then and run again, or %s. One host that asks for all asks less" % (
                    MIRROR,), "wheel-rate-limit"), False
        said = "HTTP %d%s" % (status, ": " + shown(str(refusal.reason))[:200]
                              if refusal.reason else "")
        if status in (401, 403, 407):
            return self.silent(
                name, said, "give the user in the address of the index"
                " (`network_access_pip_indexes`), or " + MIRROR, "wheel-source-denied"), False
        return self.silent(name, said, WAY_OUT), status >= 500 or status in (408, 425, 429)


def _releases(text: str, package: str, source: str) -> Page:
    return pages.from_releases(pages.parsed(text), package, source)


def _wait(seconds: float) -> None:
    time.sleep(seconds)
