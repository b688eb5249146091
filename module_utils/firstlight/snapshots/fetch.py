# SPDX-License-Identifier: Apache-2.0
"""Files over HTTP, each of a known size and hash, with nothing fetched twice.

A file grows in ``<target>.incomplete``, which outlives any failure and ``kill -9``: the next run
goes on from its end. It takes the name ``target`` when its size and its hash are right and it is on
the disk. Hashes are made while the bytes come, in a thread beside, so they cost no time of their
own.

Servers are untrusted: never more than the promised size is written, redirects lead to http and
https only, and the headers that a caller gives stay with the host that he gave them for.
"""

from __future__ import annotations

import contextlib
import email.utils
import errno
import fcntl
import hashlib
import http.client
import os
import queue
import re
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, NoReturn, Optional, Tuple

INCOMPLETE = ".incomplete"
BUFFERS, BUFFER = 4, 2**20
FIRST = 2**16
THREAD_FROM = 8 * 2**20
"""Bytes from which on a file is hashed in a thread of its own."""
FURTHER = 2**20
"""Bytes that a try must have brought, so that the tries are counted anew."""
LONGEST_WAIT_S, LONGEST_PAUSE_S, FIRST_PAUSE_S = 300.0, 30.0, 0.5
PASSES = {408, 425, 429}
"""Refusals that may pass, beside those of a server that is in trouble (5xx)."""
RATE_LIMIT = re.compile(r'"\w+"\s*;\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)')
CONTENT_RANGE = re.compile(r"bytes (\d+)-\d*/(\d+|\*)$")
OWN_HEADERS = {"Range", "If-range", "User-agent"}


class Wanted(NamedTuple):
    """A file to fetch: ``size`` bytes with one of the hashes, or with none that is known.

    ``headers`` go to the host of ``url`` and to no other. ``git_sha1`` is the hash that git gives
    a file.
    """

    url: str
    headers: Dict[str, str]
    target: str
    size: int
    sha256: Optional[str]
    git_sha1: Optional[str]


class Fetched(NamedTuple):
    """A file that is there: what an earlier run had left of it, and bytes that came now."""

    wanted: Wanted
    resumed_from: int
    from_network: int
    seconds: float


class HubError(Exception):
    """A file cannot be had.

    ``status`` is 0 without an answer. ``code`` is what a hub calls the error, if it does; ``url``
    the one that was asked, without its query.
    """

    def __init__(self, url: str, status: int, code: str, message: str) -> None:
        super().__init__("%s: %s%s" % (url, "HTTP %d: " % status if status else "", message))
        self.url, self.status, self.code, self.message = url, status, code, message


class Corrupt(Exception):
    """A server gives another file than was promised, also when it is asked again."""

    def __init__(self, wanted: Wanted, found: str) -> None:
        super().__init__("%s: %s" % (_plain(wanted.url), found))
        self.wanted, self.found = wanted, found


def fetch(
    wanted: Iterable[Wanted], workers: int = 8, report: Callable[[int], None] = lambda count: None,
    timeout_s: float = 30.0, retries: int = 5, context: Optional[ssl.SSLContext] = None,
    direct: bool = False,
) -> List[Fetched]:
    """Fetch files, the large ones first, several at once. Proxies are those of the environment.

    A target that is there and right is left as it is.

    :param report: told of bytes that came; of less than none where what came is of no use and is
        fetched again. They add up to what :func:`incomplete` did not have. Never called twice at
        a time.
    :param timeout_s: seconds without a byte after which a line is given up.
    :param retries: tries in a row that may bring nothing, after the first.
    :param context: TLS, where it is not the machine's own.
    :param direct: whether the environment's proxies are left aside.
    :returns: in the order of ``wanted``.
    :raises HubError: a file cannot be had. What came of the files is kept.
    :raises Corrupt: a file came wrong, and wrong again.
    :raises OSError: the disk does not take it; ``filename`` is there.
    :raises ValueError: a URL is none of http or https.
    """
    rows = list(wanted)
    for row in rows:
        if urllib.parse.urlsplit(row.url).scheme not in ("http", "https"):
            raise ValueError("no URL of http or https: %s" % _plain(row.url))
    return _Run(report, timeout_s, retries, context, direct).all(rows, workers)


def incomplete(target: str) -> int:
    """Bytes of a file that an earlier run has left, as far as they are on the disk."""
    return on_disk(target + INCOMPLETE)


def on_disk(path: str) -> int:
    """Bytes of a file that take room already; 0 where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return 0
    return min(status.st_size, status.st_blocks * 512)


def opener(context: Optional[ssl.SSLContext] = None,
           direct: bool = False) -> urllib.request.OpenerDirector:
    """What asks for http and https alone, and keeps the headers of a caller to their host.

    :param context: as :func:`fetch` has it.
    :param direct: as :func:`fetch` has it.
    """
    made = urllib.request.OpenerDirector()
    for handler in (
            urllib.request.ProxyHandler({} if direct else None), urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(context=context), _Redirects(),
            urllib.request.HTTPDefaultErrorHandler(), urllib.request.HTTPErrorProcessor(),
            urllib.request.UnknownHandler()):
        made.add_handler(handler)
    return made


class _Stopped(Exception):
    """Another file failed."""


class _Again(Exception):
    """A try failed in a way that may pass: raise ``error`` if it does not, within ``most`` tries.

    ``wait_s`` is how long the server asks to be left alone.
    """

    def __init__(self, error: Exception, wait_s: float = 0.0, most: Optional[int] = None) -> None:
        super().__init__(str(error))
        self.error, self.wait_s, self.most = error, wait_s, most


class _Run:
    """What the files of one call share."""

    def __init__(self, report: Callable[[int], None], timeout_s: float, retries: int,
                 context: Optional[ssl.SSLContext], direct: bool) -> None:
        self.told, self.timeout_s, self.retries = report, timeout_s, retries
        self.lock, self.stop = threading.Lock(), threading.Event()
        self.opener = opener(context, direct)

    def all(self, rows: List[Wanted], workers: int) -> List[Fetched]:
        """Fetch them; the first failure stops the others."""
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in sorted(range(len(rows)), key=lambda number: -rows[number].size):
            todo.put(number)
        done: Dict[int, Fetched] = {}
        failed: List[BaseException] = []

        def work() -> None:
            with contextlib.suppress(queue.Empty, _Stopped):
                while not self.stop.is_set():
                    number = todo.get_nowait()
                    try:
                        done[number] = self.one(rows[number])
                    except _Stopped:
                        raise
                    except BaseException as problem:  # raised by who waits for it
                        failed.append(problem)
                        self.stop.set()

        threads = [threading.Thread(target=work, daemon=True)
                   for _ in range(max(1, min(workers, len(rows))))]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            self.stop.set()
        if failed:
            raise failed[0]
        return [done[number] for number in range(len(rows))]

    def one(self, wanted: Wanted) -> Fetched:
        """Fetch one file."""
        started = time.monotonic()
        os.makedirs(os.path.dirname(wanted.target) or ".", exist_ok=True)
        file = self.mine(wanted)
        if file is None:
            return Fetched(wanted, 0, 0, time.monotonic() - started)
        try:
            with contextlib.closing(_Part(wanted, file)) as part:
                left = part.size
                self.whole(part)
                if part.wrong():
                    self.restart(part)
                    self.whole(part)
                found = part.wrong()
                if found:
                    self.report(-part.size)
                    os.unlink(wanted.target + INCOMPLETE)
                    raise Corrupt(wanted, found)
                part.keep()
        finally:
            os.close(file)
        return Fetched(wanted, left, part.came, time.monotonic() - started)

    def mine(self, wanted: Wanted) -> Optional[int]:
        """Open the incomplete file as the only one who writes it; ``None`` where nothing is to do.

        The lock ends with the process, however it ends.
        """
        path = wanted.target + INCOMPLETE
        while not _is_right(wanted):
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                while not _locked(file, path):
                    self.pause(0.1)
                # Who had it may have finished it, or thrown it away.
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(file), os.stat(path)):
                        return file
            except BaseException:
                os.close(file)
                raise
            os.close(file)
        with contextlib.suppress(FileNotFoundError):
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            if _locked(file, path):
                os.unlink(path)
            os.close(file)
        return None

    def whole(self, part: _Part) -> None:
        """Try until all bytes are there."""
        tries, furthest, etag = 0, part.size, ""
        while part.size < part.wanted.size:
            try:
                with self.ask(part, etag) as answer:
                    etag = answer.headers.get("ETag") or ""
                    self.read(part, answer)
            except _Again as problem:
                if part.size >= furthest + FURTHER:
                    tries, furthest = 0, part.size
                tries += 1
                if tries > (self.retries if problem.most is None else problem.most):
                    raise problem.error from problem
                self.pause(max(
                    min(problem.wait_s, LONGEST_WAIT_S),
                    min(FIRST_PAUSE_S * 2 ** (tries - 1), LONGEST_PAUSE_S)))
        part.settle()

    def ask(self, part: _Part, etag: str) -> Any:
        """The answer to a request for what is missing; ``part`` ends where it begins.

        :raises _Again: there is none, or none that is of use.
        """
        wanted = part.wanted
        headers = {"User-Agent": "firstlight"}
        if part.size:
            headers["Range"] = "bytes=%d-" % part.size
            if etag.startswith('"'):
                headers["If-Range"] = etag
        request = urllib.request.Request(wanted.url, headers={**wanted.headers, **headers})
        try:
            answer = self.opener.open(request, timeout=self.timeout_s)
        except urllib.error.HTTPError as refusal:
            with contextlib.closing(refusal):
                self.refused(part, refusal)
        except (OSError, http.client.HTTPException) as problem:
            raise _no_answer(wanted, problem) from problem
        try:
            begin, total = _extent(answer)
            if total is not None and total != wanted.size:
                raise _Again(Corrupt(wanted, "a file of %d bytes, not of %d" % (
                    total, wanted.size)), most=1)
            if begin != part.size:
                if begin:
                    raise _Again(Corrupt(wanted, "a part from byte %d, not from %d" % (
                        begin, part.size)), most=1)
                self.restart(part)
        except BaseException:
            answer.close()
            raise
        return answer

    def read(self, part: _Part, answer: Any) -> None:
        """Take what comes.

        :raises _Again: the line ends before the file does.
        """
        piece = FIRST
        while part.size < part.wanted.size:
            if self.stop.is_set():
                raise _Stopped
            buffer = part.free.get()
            # Little at a time where little comes: what a line has in hand as it breaks is lost.
            view = memoryview(buffer)[:min(piece, part.wanted.size - part.size)]
            asked = time.monotonic()
            try:
                count = answer.readinto(view)
            except (OSError, http.client.HTTPException) as problem:
                part.free.put(buffer)
                raise _no_answer(part.wanted, problem) from problem
            if not count:
                part.free.put(buffer)
                raise _Again(HubError(
                    _plain(part.wanted.url), 0, "", "the line ended after %d of %d bytes" % (
                        part.size, part.wanted.size)))
            took = time.monotonic() - asked
            piece = (min(2 * piece, BUFFER) if took < 0.1 else
                     max(piece // 2, FIRST) if took > 0.5 else piece)
            part.take(buffer, count)
            self.report(count)

    def refused(self, part: _Part, refusal: urllib.error.HTTPError) -> NoReturn:
        """Say what a refusal means.

        :raises _Again: it may pass.
        :raises HubError: it does not.
        """
        status, headers = refusal.code, refusal.headers
        message = headers.get("X-Error-Message") or ""
        if not message:
            with contextlib.suppress(OSError, http.client.HTTPException):
                message = refusal.read(300).decode("utf-8", "replace")
        error = HubError(_plain(part.wanted.url), status, _line(headers.get("X-Error-Code") or ""),
                         _line(message) or _line(str(refusal.reason)))
        if status == 416 and part.size:
            self.restart(part)
            raise _Again(error)
        if status in PASSES or status >= 500:
            raise _Again(error, _wait_s(headers))
        raise error

    def restart(self, part: _Part) -> None:
        """Throw away what there is of a file."""
        self.report(-part.size)
        part.restart()

    def report(self, count: int) -> None:
        """Tell who asked."""
        if count:
            with self.lock:
                self.told(count)

    def pause(self, seconds: float) -> None:
        """Wait, unless another file fails."""
        if self.stop.wait(seconds):
            raise _Stopped


class _Part:
    """The incomplete file, and the hash of what is in it so far."""

    def __init__(self, wanted: Wanted, file: int) -> None:
        self.wanted, self.file, self.came = wanted, file, 0
        self.free: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
        self.full: queue.SimpleQueue[Optional[Tuple[bytearray, int]]] = queue.SimpleQueue()
        self.threaded = wanted.size >= THREAD_FROM
        for _ in range(BUFFERS if self.threaded else 1):
            self.free.put(bytearray(min(BUFFER, wanted.size)))
        self.size = os.fstat(file).st_size
        self.sum = _sum(wanted)
        if self.size > wanted.size:
            self.restart()
        _hash_file(self.sum, file)
        os.lseek(file, self.size, os.SEEK_SET)
        if self.threaded:
            self.thread = threading.Thread(target=self.hash, daemon=True)
            self.thread.start()

    def hash(self) -> None:
        """What the thread does."""
        for buffer, count in iter(self.full.get, None):
            self.sum.update(memoryview(buffer)[:count])
            self.free.put(buffer)

    def take(self, buffer: bytearray, count: int) -> None:
        """Add a buffer to the file; it becomes free when it is hashed."""
        view = memoryview(buffer)[:count]
        if self.threaded:
            self.full.put((buffer, count))
        else:
            self.sum.update(view)
        try:
            while view:
                written = os.write(self.file, view)
                self.size += written
                self.came += written
                view = view[written:]
        except OSError as problem:
            raise OSError(problem.errno, os.strerror(problem.errno or errno.EIO),
                          self.wanted.target + INCOMPLETE) from problem
        if not self.threaded:
            self.free.put(buffer)

    def settle(self) -> None:
        """Wait until all that came is hashed."""
        if self.threaded:
            for buffer in [self.free.get() for _ in range(BUFFERS)]:
                self.free.put(buffer)

    def restart(self) -> None:
        """Empty it."""
        self.settle()
        os.ftruncate(self.file, 0)
        os.lseek(self.file, 0, os.SEEK_SET)
        self.size, self.sum = 0, _sum(self.wanted)

    def wrong(self) -> str:
        """What is wrong with its hash; empty where nothing is."""
        return _differs(self.wanted, self.sum)

    def keep(self) -> None:
        """Give it its name, once it is on the disk."""
        os.fchmod(self.file, 0o644)
        os.fsync(self.file)
        os.rename(self.wanted.target + INCOMPLETE, self.wanted.target)
        folder = os.open(os.path.dirname(self.wanted.target) or ".", os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def close(self) -> None:
        """End the thread."""
        if self.threaded:
            self.full.put(None)
            self.thread.join()


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to http and https, with a caller's headers to the host that he gave them for."""

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str,
    ) -> Optional[urllib.request.Request]:
        """The request to the place that a server names."""
        if urllib.parse.urlsplit(newurl).scheme not in ("http", "https"):
            raise urllib.error.HTTPError(
                req.full_url, code, "it leads to %s" % _line(newurl[:100]), headers, fp)
        kept = req.headers
        if _origin(newurl) != _origin(req.full_url):
            kept = {name: value for name, value in kept.items() if name in OWN_HEADERS}
        return urllib.request.Request(
            newurl.replace(" ", "%20"), headers=kept, origin_req_host=req.origin_req_host,
            unverifiable=True)


def _origin(url: str) -> Tuple[str, str, Optional[int]]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(
        parts.scheme)


def _extent(answer: Any) -> Tuple[int, Optional[int]]:
    """The byte of the file at which an answer begins, and the file's size if it is said."""
    headers = answer.headers
    if answer.status == 206:
        said = CONTENT_RANGE.match(headers.get("Content-Range") or "")
        if said:
            return int(said.group(1)), None if said.group(2) == "*" else int(said.group(2))
        return -1, None
    length = headers.get("Content-Length") or ""
    return 0, int(length) if length.isdecimal() else None


def _no_answer(wanted: Wanted, problem: BaseException) -> Exception:
    """What is raised for a line that does not come about, or breaks."""
    reason = problem.reason if isinstance(problem, urllib.error.URLError) else problem
    text = _line(str(reason)) or type(reason).__name__
    error = HubError(_plain(wanted.url), 0, "", text)
    never = (isinstance(reason, (ssl.SSLCertVerificationError, http.client.InvalidURL))
             or text.startswith("Tunnel connection failed: 4"))
    return error if never else _Again(error)


def _wait_s(headers: Any) -> float:
    """Seconds for which a server asks to be left alone."""
    limit = RATE_LIMIT.search(headers.get("RateLimit") or "")
    after = headers.get("Retry-After") or (limit.group(1) if limit else "")
    if after.strip().isdecimal():
        return float(after)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(after).timestamp() - time.time())
    except (TypeError, ValueError, IndexError, OverflowError):
        return 0.0


def _plain(url: str) -> str:
    """A URL without what may be secret in it."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(
        (parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _line(text: str) -> str:
    """What a server says, as one line without anything that a terminal would obey."""
    return " ".join("".join(
        letter if letter.isprintable() else " " for letter in text[:300]).split())


def _locked(file: int, path: str) -> bool:
    """Whether the file is ours alone now.

    :raises OSError: the file system has no locks: two writers would make one bad file.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as problem:
        raise OSError(problem.errno, "its file system gives no locks (%s): mount it with them, or "
                      "set `model_snapshot_cache` to a folder of another" % problem.strerror,
                      path) from problem
    return True


def _sum(wanted: Wanted) -> Any:
    if wanted.sha256:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % wanted.size, usedforsecurity=False)


def _hash_file(digest: Any, file: int) -> None:
    os.lseek(file, 0, os.SEEK_SET)
    buffer = bytearray(BUFFER)
    with open(file, "rb", buffering=0, closefd=False) as content:
        for count in iter(lambda: content.readinto(buffer), 0):
            digest.update(memoryview(buffer)[:count])


def _differs(wanted: Wanted, digest: Any) -> str:
    named = wanted.sha256 or wanted.git_sha1
    if not named or digest.hexdigest() == named.lower():
        return ""
    return "its %s is %s, not %s" % (
        "SHA-256" if wanted.sha256 else "git SHA-1", digest.hexdigest(), named)


def _is_right(wanted: Wanted) -> bool:
    """Whether the target is there, with its size and hash."""
    try:
        if os.stat(wanted.target).st_size != wanted.size:
            return False
        file = os.open(wanted.target, os.O_RDONLY)
    except OSError:
        return False
    try:
        digest = _sum(wanted)
        _hash_file(digest, file)
        return not _differs(wanted, digest)
    finally:
        os.close(file)
