# SPDX-License-Identifier: Apache-2.0
"""Candidates of a way out, asked for what they are for, by a small download of the real kind.

All are asked at once, each within a time. The proxies of the environment are used, as they will be
by whoever goes out. Answers are untrusted: what is read of them is bounded, and an answer of the
right status proves nothing yet, since a captive portal gives one to everything.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from .findings import shown
from .planning import apt_sources
from .planning.network import Measured, without_login

MOST_BYTES = 4 * 2**20
"""What is read of a download to measure it."""

PAGE_BYTES = 2**20
AGENT = "firstlight"
COMMIT, ERROR = "x-repo-commit", "x-error-code"
REGISTRY = "docker-distribution-api-version"
WHEEL = re.compile(rb"""<a\s[^>]*?href\s*=\s*["']([^"'>]{1,2000}?/?pip-[^"'>]{1,300}?\.whl)"""
                   rb"""(?:\#[^"'>]{0,300})?["']""", re.IGNORECASE)


class Apt(NamedTuple):
    """What a mirror has to stand in for.

    :param uris: by the address as the host's lists write it, the one of HTTP and the suites there.
    """

    uris: Mapping[str, Tuple[str, Tuple[str, ...]]]
    distribution: str
    codename: str
    architecture: str


class Wanted(NamedTuple):
    """What is looked for.

    :param seconds: that each candidate has, for all that is asked of it.
    :param repo_id: a model, and ``path``, a file of it, that a hub is asked for.
    :param ca_bundle: a file of certificates; empty for those that Python finds.
    """

    seconds: float
    repo_id: str
    path: str
    ca_bundle: str
    apt: Apt


class _Is(Exception):
    """What a candidate is, where that is not well."""

    def __init__(self, verdict: str, why: str) -> None:
        super().__init__(why)
        self.measured = Measured(verdict, why)


class _Progress:
    """How far the questions to a candidate have come; read when its time is over."""

    def __init__(self, url: str, wanted: Wanted) -> None:
        self.url, self.wanted = url, wanted
        self.deadline = time.monotonic() + wanted.seconds
        self.proven = False
        """Whether it is what it should be."""
        self.answered = False
        self.serves: Dict[str, str] = {}
        self.at = ""
        self.first_byte_s: Optional[float] = None
        self.began: Optional[float] = None
        self.ended: Optional[float] = None
        self.bytes = 0
        self.result: Optional[Measured] = None

    def left(self) -> float:
        return max(0.05, self.deadline - time.monotonic())

    def measured(self) -> Measured:
        """What is known of it now."""
        if self.result is not None:
            return self.result
        if self.proven and self.bytes:
            return self._with_speed("slow", "not done within %g s" % self.wanted.seconds)
        return Measured("dead", "%s within %g s%s" % (
            "it answers, and not enough of it came" if self.answered else "no answer",
            self.wanted.seconds, self._where()))

    def well(self) -> Measured:
        return self._with_speed("ok", "")

    def _with_speed(self, verdict: str, why: str) -> Measured:
        speed = None
        if self.began is not None and self.bytes:
            speed = self.bytes / max(1e-4, (self.ended or time.monotonic()) - self.began)
        return Measured(verdict, why, _rounded(self.first_byte_s), _rounded(speed), self.serves)

    def _where(self) -> str:
        """Where it waits, when that is another host than the one that was asked."""
        host = _host(self.at)
        return ", where it leads to %s" % host if host and host != _host(self.url) else ""


def _rounded(value: Optional[float]) -> Optional[float]:
    return None if value is None else float("%.4g" % value)


class _Answer(NamedTuple):
    """An answer; its body is not read yet.

    :param headers: of all hops, by names in small letters; the last one's win.
    """

    status: int
    headers: Dict[str, str]
    response: Any
    asked: float


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow, remember what each said, and where it goes."""

    max_redirections = 6

    def __init__(self, progress: _Progress, headers: Dict[str, str]) -> None:
        self.progress, self.headers = progress, headers

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any,
                         newurl: str) -> Any:
        """The next request; to nowhere but a server of HTTP."""
        if not newurl.startswith(("http://", "https://")):
            raise _Is("wrong", "it leads to something else than HTTP")
        self.headers.update(_lower(headers))
        self.progress.at = newurl
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _lower(headers: Any) -> Dict[str, str]:
    return {str(name).lower(): str(value) for name, value in headers.items()}


def _open(progress: _Progress, url: str, **headers: str) -> _Answer:
    """Ask; an answer of any status is one.

    :raises _Is: there is none.
    """
    progress.at = url
    seen: Dict[str, str] = {}
    asked = time.monotonic()
    try:
        opener = urllib.request.build_opener(
            _Redirects(progress, seen),
            urllib.request.HTTPSHandler(context=_context(progress.wanted.ca_bundle)))
        given = {"User-Agent": AGENT, "Accept-Encoding": "identity", **headers}
        request = urllib.request.Request(without_login(url), headers=given)
        # Of the host that was asked alone: no redirect takes it along.
        if _host(url) == _host(progress.url):
            for name, value in _login(progress.url).items():
                request.add_unredirected_header(name, value)
        response = opener.open(request, timeout=progress.left())
        status = response.status
    except urllib.error.HTTPError as problem:
        response, status = problem, problem.code
    except (OSError, ValueError, http.client.HTTPException) as problem:
        raise _Is("dead", _words(problem, progress)) from problem
    progress.answered = True
    return _Answer(status, {**seen, **_lower(response.headers)}, response, asked)


def _host(url: str) -> str:
    return urllib.parse.urlsplit(url).netloc.rpartition("@")[2]


def _login(url: str) -> Dict[str, str]:
    """The header that says an address's login, where it has one."""
    login = urllib.parse.unquote(urllib.parse.urlsplit(url).netloc.rpartition("@")[0])
    if not login:
        return {}
    return {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()}


def _context(ca_bundle: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca_bundle or None)


def _words(problem: BaseException, progress: _Progress) -> str:
    """Why there is no answer, in a clause."""
    reason = getattr(problem, "reason", problem)
    where = progress._where()
    if isinstance(reason, ssl.SSLCertVerificationError):
        return "its certificate is not trusted (%s)%s" % (reason.verify_message, where)
    if isinstance(reason, socket.gaierror):
        return "its name is not known here (%s)%s" % (reason.strerror, where)
    if isinstance(reason, (socket.timeout, TimeoutError)):
        return "no answer within %g s%s" % (progress.wanted.seconds, where)
    if isinstance(reason, ConnectionRefusedError):
        return "it takes no connection%s" % where
    text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return "no answer: %s%s" % (without_login(str(text))[:200], where)


def _read(progress: _Progress, answer: _Answer, most: int, measured: bool = False) -> bytes:
    """The body, at most so much of it.

    :param measured: whether it is what the candidate is measured by.
    :raises _Is: the line broke.
    """
    parts: List[bytes] = []
    length = 0
    try:
        while length < most:
            # A body that is longer is left where it is.
            piece = answer.response.read1(min(65536, most - length))
            now = time.monotonic()
            if measured and progress.began is None:
                progress.began = progress.ended = now
                progress.first_byte_s = now - answer.asked
            if not piece:
                break
            length += len(piece)
            if measured:
                progress.bytes, progress.ended = length, now
            else:
                parts.append(piece)
            if now > progress.deadline:
                raise socket.timeout
    except (OSError, http.client.HTTPException) as problem:
        if isinstance(problem, (socket.timeout, TimeoutError)):
            progress.ended = None
            raise _Late from problem
        raise _Is("dead", "the line broke after %d bytes: %s" % (
            length, str(problem)[:100] or type(problem).__name__)) from problem
    finally:
        answer.response.close()
    return b"".join(parts)


class _Late(Exception):
    """Its time is over."""


# What each kind is asked.


def _hub(progress: _Progress) -> Measured:
    """A hub names the commit of what it gives; the begin of a large file is measured."""
    wanted = progress.wanted
    url = "%s/%s/resolve/main/%s" % (progress.url, wanted.repo_id, wanted.path)
    answer = _open(progress, url, Range="bytes=0-%d" % (MOST_BYTES - 1))
    if answer.status in (401, 403, 404) and ERROR in answer.headers:
        answer.response.close()
        return Measured("unmeasured", "a hub that gives no %s of %s (%s)" % (
            wanted.path, wanted.repo_id, answer.headers[ERROR][:60]))
    if COMMIT in answer.headers and answer.status in (200, 206):
        progress.proven = True
        _read(progress, answer, MOST_BYTES, measured=True)
        return progress.well()
    answer.response.close()
    raise _not(answer, "a hub: it names no commit (X-Repo-Commit)")


def _modelscope(progress: _Progress) -> Measured:
    wanted = progress.wanted
    base = "%s/api/v1/models/%s/repo" % (progress.url, wanted.repo_id)
    answer = _open(progress, base + "/files?Revision=master")
    try:
        said = json.loads(_read(progress, answer, PAGE_BYTES))
        code = said["Code"]
        files = (said.get("Data") or {}).get("Files") if code == 200 else []
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _not(answer, "ModelScope: it lists no files of a model") from None
    if code != 200 or not isinstance(files, list):
        return Measured("unmeasured", "a ModelScope that has no %s" % wanted.repo_id)
    progress.proven = True
    answer = _open(progress, "%s?Revision=master&FilePath=%s" % (
        base, urllib.parse.quote(wanted.path)), Range="bytes=0-%d" % (MOST_BYTES - 1))
    if answer.status not in (200, 206):
        answer.response.close()
        return Measured("unmeasured", "a ModelScope that gives no %s of %s (HTTP %d)" % (
            wanted.path, wanted.repo_id, answer.status))
    _read(progress, answer, MOST_BYTES, measured=True)
    return progress.well()


def _pip(progress: _Progress) -> Measured:
    """An index has a page of pip, and what that leads to is measured."""
    page = progress.url + "/pip/"
    answer = _open(progress, page, Accept="application/vnd.pypi.simple.v1+html, text/html;q=0.5")
    body = _read(progress, answer, MOST_BYTES)
    wheels = WHEEL.findall(body)
    if answer.status != 200 or not wheels:
        raise _not(answer, "an index: it has no page of wheels of pip")
    progress.proven = True
    base = getattr(answer.response, "url", None) or page
    link = urllib.parse.urljoin(base, wheels[-1].decode("utf-8", "replace").replace("&amp;", "&"))
    answer = _open(progress, link)
    if answer.status != 200:
        answer.response.close()
        raise _Is("refused", "it has a page of pip, and HTTP %d for a wheel%s" % (
            answer.status, progress._where()))
    _read(progress, answer, MOST_BYTES, measured=True)
    return progress.well()


def _apt(progress: _Progress) -> Measured:
    """A mirror has the InRelease of each suite; a list of packages is measured."""
    apt = progress.wanted.apt
    plain = [uri for uri, _ in apt.uris.values()]
    kept, whole, index = [], False, ""
    for uri, (plain_uri, suites) in apt.uris.items():
        there = apt_sources.beside(progress.url, plain_uri, plain)
        releases, why = _releases(progress, there, suites)
        # A mirror of this distribution alone may have paths of its own.
        if why and apt.codename in suites and there != progress.url:
            there = progress.url
            releases, why = _releases(progress, there, suites)[0], why
            why = why if len(releases) < len(suites) else ""
        if why:
            kept.append("%s stays: %s" % (uri, why))
            continue
        progress.serves[uri] = there
        if apt.codename in releases:
            # What is new in a distribution is little; of all that it has, more can be measured.
            whole, main = True, "%s/dists/%s/" % (there, apt.codename)
            name = apt_sources.index_of(releases[apt.codename], apt.architecture)
            index = index or (main + name if name else "")
    if not whole:
        raise _Is("wrong", "; ".join(kept) or "it has nothing that this host's lists name")
    progress.proven = True
    if index:
        answer = _open(progress, index)
        if answer.status != 200:
            answer.response.close()
            raise _Is("refused", "HTTP %d for %s" % (answer.status, index))
        _read(progress, answer, MOST_BYTES, measured=True)
    return progress.well()._replace(why="; ".join(kept))


def _releases(progress: _Progress, there: str, suites: Sequence[str]
              ) -> Tuple[Dict[str, apt_sources.Release], str]:
    """The InReleases of suites, and why one is not there."""
    apt = progress.wanted.apt
    found: Dict[str, apt_sources.Release] = {}
    for suite in suites:
        folder = "%s/dists/%s" % (there, suite)
        answer = _open(progress, folder + "/InRelease")
        body = _read(progress, answer, MOST_BYTES)
        if answer.status != 200:
            return found, "HTTP %d for %s/InRelease" % (answer.status, folder)
        release = apt_sources.release(body.decode("utf-8", "replace"))
        why = apt_sources.not_ours(release, apt.distribution, apt.codename)
        if release is None or why:
            return found, "%s at %s" % (why, folder)
        found[suite] = release
    return found, ""


def _registry(progress: _Progress) -> Measured:
    """A registry says which interface it has, or who gives tokens for it."""
    answer = _open(progress, progress.url + "/v2/")
    progress.first_byte_s = time.monotonic() - answer.asked
    answer.response.close()
    headers = answer.headers
    if answer.status == 401 and "www-authenticate" in headers or (
            answer.status == 200 and "registry/2" in headers.get(REGISTRY, "")):
        return progress.well()
    raise _not(answer, "a registry: /v2/ is not known to it")


def _not(answer: _Answer, what: str) -> _Is:
    """Something answers, and is not what it should be."""
    kind = answer.headers.get("content-type", "").partition(";")[0][:60]
    told = "HTTP %d%s" % (answer.status, ", " + kind if kind else "")
    if answer.status in (407, 429) or answer.status >= 500:
        return _Is("refused", told)
    return _Is("wrong", "it answers (%s) and is not %s" % (told, what))


ASKED: Dict[str, Callable[[_Progress], Measured]] = {
    "huggingface": _hub, "modelscope": _modelscope, "pip": _pip, "apt": _apt,
    "registry": _registry}


def ask(candidates: Sequence[Tuple[str, str]], wanted: Wanted) -> List[Measured]:
    """Ask all of them at once.

    :param candidates: kind (a key of :data:`ASKED`) and address of each.
    :returns: what each is, in their order, at the latest a moment after ``wanted.seconds``.
    """
    running = []
    for kind, url in candidates:
        progress = _Progress(url, wanted)
        # What waits for a name to be found cannot be ended; it ends with this process.
        thread = threading.Thread(target=_run, args=(ASKED[kind], progress), daemon=True)
        thread.start()
        running.append((progress, thread))
    for progress, thread in running:
        thread.join(max(0.0, progress.deadline - time.monotonic()) + 0.2)
    # Parts of it are words of servers.
    return [one._replace(why=shown(one.why)) for one in
            (progress.measured() for progress, _ in running)]


def _run(asked: Callable[[_Progress], Measured], progress: _Progress) -> None:
    try:
        progress.result = asked(progress)
    except _Is as known:
        late = time.monotonic() >= progress.deadline
        progress.result = progress.measured() if late and progress.proven else known.measured
    except _Late:
        progress.result = progress.measured()
    except (UnicodeError, ValueError) as problem:
        progress.result = Measured("wrong", "its answer cannot be read (%s)" % str(problem)[:100])
