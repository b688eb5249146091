# SPDX-License-Identifier: Apache-2.0
"""Where snapshots come from: a hub of Hugging Face's kind, ModelScope, another host of the fleet.

A source tells the commit of a revision, the files of a commit, and how to fetch one of them. What
it refuses is a finding that says which repository, where, and what to change; a token, and the
query of an address, which may hold a signature, are never in it.

Hugging Face's hub is asked by huggingface_hub, which is imported here and nowhere else, and only
when it is needed. Its constants are read then: :func:`environment` comes first. It resolves, lists,
checks access and tells what is wrong; the contents are fetched by :mod:`.fetch` into the
cache that the library reads. Its own downloads (2.4) begin a file anew in each process, take any
content of the right size, and ask twice for each file.

ModelScope has no library that we could take along (its own brings its own cache), so its HTTP
interface is used directly. It was read, in November 2026, in the code of its client (modelscope,
``hub/api.py`` and ``hub/file_download.py``) and in that of programs which use it:
``GET /api/v1/models/{repo}/repo/files?Revision=&Recursive=true`` lists ``Data.Files`` with
``Path``, ``Type`` (``blob``, ``tree``), ``Size``, ``Sha256`` and ``Revision``, the commit that
last touched the file; a revision that is not there is a 200 with ``Files: null``.
``Data.LatestCommitter`` has the head's ``ShortId`` and an ``Id`` that is often empty.
``GET …/revisions`` has ``Data.RevisionMap`` with ``Branches`` and ``Tags``, and
``GET …/repo?Revision=&FilePath=`` a file. A bearer token is taken. Its client refuses a commit as
a revision (its issue 1386), the interface takes one. All this was tried against a model of it and
not against the real one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import queue
import re
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Callable, Dict, List, Mapping, Optional

from ansible.module_utils.firstlight.findings import Finding, finding
from ansible.module_utils.firstlight.snapshots import entries as checks
from ansible.module_utils.firstlight.snapshots.entries import Entry, Manifest
from ansible.module_utils.firstlight.snapshots.fetch import Corrupt, HubError, Wanted, opener

TIMEOUT_S = 15
TRIES = 3
ANSWER_S = 180.0
"""Within which an answer must be whole, whatever a server says of later."""
MAX_ANSWER = 64 * 2**20
DEFAULT_REVISION = {"huggingface": "main", "modelscope": "master"}
USER_AGENT = "firstlight"
LIBRARY = "huggingface_hub"
SHORT = re.compile(r"[0-9a-f]{7,39}")


class HubProblem(Exception):
    """What a source refused, as findings."""

    def __init__(self, *findings: Finding) -> None:
        super().__init__("; ".join("%(subject)s: %(found)s" % one for one in findings))
        self.findings = list(findings)


class NoLibrary(Exception):
    """huggingface_hub is not there or cannot be used; the message says why."""


class Source:
    """What all sources have in common.

    :param url: its address; whoever is in it does not get into findings.
    :param token: shown to it and to no other host.
    """

    kind = ""
    inside = False
    """Whether it is a host beside this one, to which no proxy leads."""

    def __init__(self, url: str, token: Optional[str]) -> None:
        self.url, self._token = url.rstrip("/"), token or None
        self.name = shown(self.url)
        self.findings: List[Finding] = []
        """Warnings of what was asked so far."""

    def resolve(self, repo_id: str, revision: Optional[str]) -> str:
        """The commit of a branch or tag; of the default one where there is none.

        :raises HubProblem: when it cannot be had.
        :raises NoLibrary: when the library that it needs is not there.
        """
        raise NotImplementedError

    def manifest(self, repo_id: str, commit: str) -> Manifest:
        """All files at a commit.

        :raises HubProblem: when they cannot be had, or the list has what cannot be.
        :raises NoLibrary: when the library that it needs is not there.
        """
        raise NotImplementedError

    def check(self, repo_id: str, commit: str, entry: Entry) -> None:
        """Whether files of this commit may be had, by one of them.

        :raises HubProblem: when not.
        """

    def wanted(self, repo_id: str, commit: str, entry: Entry, target: str) -> Wanted:
        """How to fetch one file to a path."""
        return Wanted(
            "%s/%s/resolve/%s/%s" % (self.url, repo_id, commit, urllib.parse.quote(entry.path)),
            self.headers(), target, entry.size, entry.sha256, entry.git_sha1)

    def headers(self) -> Dict[str, str]:
        """What each request carries."""
        shows = {"Authorization": "Bearer " + self._token} if self._token else {}
        return {"User-Agent": USER_AGENT, **shows}

    def part(self, repo_id: str, commit: str, entry: Entry, first: int, count: int) -> bytes:
        """Bytes of a file from ``first`` on, as many as ``count`` and as there are.

        :raises HubProblem: when they cannot be had.
        """
        wanted = self.wanted(repo_id, commit, entry, "")
        last = min(first + count, entry.size) - 1
        if last < first:
            return b""
        request = urllib.request.Request(  # noqa: S310 - the opener takes http and https alone
            wanted.url, headers=dict(wanted.headers, Range="bytes=%d-%d" % (first, last)))

        def read() -> bytes:
            with opener(direct=self.inside).open(request, timeout=TIMEOUT_S) as answer:
                if answer.status == 200:  # it honours no ranges
                    _skip(answer, first)
                data: bytes = answer.read(last + 1 - first)
            if len(data) < last + 1 - first:
                raise OSError("the line was cut after %d bytes" % len(data))
            return data

        part: bytes = self._asked(read, repo_id, commit, entry.path)
        return part

    def problem(self, error: BaseException, repo_id: str, revision: str = "",
                what: str = "") -> List[Finding]:
        """What an error of :mod:`fetch` or of a library means.

        :param revision: what was asked for.
        :param what: which part of it, in words.
        """
        if isinstance(error, HubProblem):
            return error.findings
        if isinstance(error, Corrupt):
            return [corrupt(repo_id, what or clean(error, self._token), self.name, mended=False)]
        status, code, message = _status(error)
        if status:
            return [self._refused(repo_id, revision, status, code,
                                  clean(message, self._token), what)]
        text = clean(error, self._token)
        if isinstance(error, (ValueError, LookupError, TypeError, AttributeError, AssertionError)):
            return [self.not_a_hub(repo_id, "%s: %s" % (type(error).__name__, text))]
        if "X-Repo-Commit" in text:
            return [self.not_a_hub(repo_id, "no header X-Repo-Commit in its answer")]
        return [finding(
            "snapshot-hub-unreachable", self.name,
            "%s%s: %s" % ("%s: " % what if what else "", type(error).__name__, text),
            "an answer about %s" % repo_id,
            "check the host's way out (`network_access_proxy`, `network_access_ca_bundle`,"
            " `network_access_hub_endpoints`), or bring the model from another host"
            " (playbooks/prefetch.yml)")]

    def not_a_hub(self, repo_id: str, why: str) -> Finding:
        """The finding on a server that is no hub, or none that can be relied on."""
        return finding(
            "snapshot-not-a-hub", self.name, why[:300],
            "a hub that knows %s" % repo_id,
            "set `network_access_hub_endpoints` to a hub or a mirror of one; a proxy or a portal"
            " in between may answer in its place")

    def _refused(self, repo_id: str, revision: str, status: int, code: str, message: str,
                 what: str) -> Finding:
        said = "%d%s%s" % (status, " " + code if code else "", ": " + message if message else "")
        if what:
            said = "%s: %s" % (what, said)
        where = "%s of %s" % (repo_id, self.name)
        shows = "the token given" if self._token else "no token"
        page = "%s/%s" % (self.name, repo_id)
        if code == "RevisionNotFound":
            hint = (" (a commit is given with all its 40 digits)"
                    if SHORT.fullmatch(revision) else "")
            return finding(
                "snapshot-revision-not-found", where, "no revision %s: %s" % (revision, said),
                "a branch, a tag or a commit of this repository",
                "set `revision` to one of those on %s%s" % (page, hint))
        if code == "GatedRepo":
            return finding(
                "snapshot-gated", where, "%s, with %s" % (said, shows),
                "an account that was given access",
                "ask for access on %s, then set `model_snapshot_token` to a token of that account"
                % page)
        if status == 404:
            return finding(
                "snapshot-not-found", where, "%s, with %s" % (said, shows),
                "a repository that this token may read",
                "set `model` to its name as %s has it; for a private one set"
                " `model_snapshot_token`" % self.name)
        if status in (401, 403):
            return finding(
                "snapshot-denied", where, "%s, with %s" % (said, shows),
                "a repository that is there and may be read",
                "check the name in `model`; for a private one set `model_snapshot_token` to a"
                " token that may read it")
        if status == 429:
            return finding(
                "snapshot-rate-limited", self.name, said, "room for another request",
                "run again later, set `model_snapshot_token` (who is known may ask more often), or"
                " let one host fetch for all (playbooks/prefetch.yml)")
        return finding(
            "snapshot-hub-unreachable", self.name, said, "an answer about %s" % repo_id,
            "run again later, or set another one in `network_access_hub_endpoints`")

    def _asked(self, ask: Callable[[], Any], repo_id: str, revision: str, what: str = "",
               tries: int = TRIES) -> Any:
        """An answer, asked for again where that may help."""
        ends = time.monotonic() + ANSWER_S
        for attempt in range(1, tries + 1):
            try:
                return _within(ask, ends - time.monotonic())
            except Exception as error:
                if _is_local(error):
                    raise
                status = _status(error)[0]
                passing = (status in (408, 429) or status >= 500 if status
                           else isinstance(error, OSError) or _is_transport(error))
                if not passing or attempt == tries:
                    raise HubProblem(*self.problem(error, repo_id, revision, what)) from error
                time.sleep(0.2 * 4 ** (attempt - 1))
        raise AssertionError  # every way out of the loop is taken


class HuggingFace(Source):
    """A hub that huggingface_hub can talk to.

    :raises NoLibrary: when the library is not there.
    """

    kind = "huggingface"

    def __init__(self, url: str, token: Optional[str]) -> None:
        super().__init__(url, token)
        self._package = package()
        # False, not None: the token of whoever is logged in on the host is not ours to show.
        self._api = self._package.HfApi(endpoint=self.url, token=self._token or False,
                                       library_name=USER_AGENT)

    def resolve(self, repo_id: str, revision: Optional[str]) -> str:
        """See :meth:`Source.resolve`."""
        revision = revision or DEFAULT_REVISION[self.kind]
        info = self._asked(lambda: self._api.model_info(
            repo_id, revision=revision, timeout=TIMEOUT_S), repo_id, revision)
        if not isinstance(info.sha, str) or not checks.COMMIT.fullmatch(info.sha):
            raise HubProblem(self.not_a_hub(repo_id, "no commit in its answer"))
        if isinstance(info.id, str) and info.id != repo_id:
            self.findings.append(finding(
                "snapshot-moved", "%s of %s" % (repo_id, self.name),
                "it is %s now" % clean(info.id), "the name that it has",
                "set `model` to %s" % clean(info.id), severity="warning"))
        return info.sha

    def manifest(self, repo_id: str, commit: str) -> Manifest:
        """See :meth:`Source.manifest`."""
        def ask() -> Manifest:
            rows = self._api.list_repo_tree(repo_id, recursive=True, revision=commit)
            return checks.checked(repo_id, commit, (
                Entry(row.path, row.lfs.size, row.lfs.sha256, None) if row.lfs
                else Entry(row.path, row.size, None, row.blob_id)
                for row in rows if hasattr(row, "blob_id")), "list of files")

        made: Manifest = self._asked(ask, repo_id, commit)
        return made

    def check(self, repo_id: str, commit: str, entry: Entry) -> None:
        """See :meth:`Source.check`; a mirror that drops headers is found here too."""
        url = self._package.hf_hub_url(repo_id, entry.path, revision=commit, endpoint=self.url)
        found = self._asked(lambda: self._package.get_hf_file_metadata(
            url, token=self._token or False, timeout=TIMEOUT_S), repo_id, commit, entry.path)
        if not found.commit_hash:
            raise HubProblem(self.not_a_hub(repo_id, "no header X-Repo-Commit in its answer"))


class ModelScope(Source):
    """ModelScope's own interface; see the module."""

    kind = "modelscope"

    def __init__(self, url: str, token: Optional[str]) -> None:
        super().__init__(url, token)
        self._listed: Dict[Any, Any] = {}
        # Commits that are none of its own, with the revision that it knows instead.
        self._made_up: Dict[str, str] = {}

    def resolve(self, repo_id: str, revision: Optional[str]) -> str:
        """See :meth:`Source.resolve`.

        Where the answer has no whole commit of the head, the hash of its list of files stands for
        one: it names what is fetched, but not to ModelScope.
        """
        data = self._list(repo_id, revision)
        head = data.get("LatestCommitter")
        head = head if isinstance(head, dict) else {}
        short = str(head.get("ShortId") or "")
        candidates = [head.get("Id"), *(row.get("Revision") for row in data["Files"]
                                        if short and str(row.get("Revision")).startswith(short))]
        commit = next((one for one in candidates if isinstance(one, str)
                       and checks.COMMIT.fullmatch(one)), None)
        if commit is None:
            commit = _listing_hash(data["Files"])
            self._made_up[commit] = revision or ""
        self._listed[repo_id, commit] = data
        return commit

    def manifest(self, repo_id: str, commit: str) -> Manifest:
        """See :meth:`Source.manifest`."""
        data = self._listed.get((repo_id, commit)) or self._list(repo_id, commit)
        try:
            return checks.checked(repo_id, commit, (
                Entry(row["Path"], row["Size"], str(row["Sha256"]).lower(), None)
                for row in data["Files"] if row.get("Type") == "blob"), "list of files")
        except (ValueError, LookupError) as problem:
            raise HubProblem(self.not_a_hub(repo_id, "%s: %s" % (
                type(problem).__name__, clean(problem)))) from problem

    def at(self, manifest: Manifest, revision: Optional[str]) -> None:
        """Tell by which revision a commit that :meth:`resolve` once made up is asked for."""
        if manifest.commit == _listing_hash({"Type": "blob", "Path": one.path, "Sha256": one.sha256}
                                            for one in manifest.entries):
            self._made_up[manifest.commit] = revision or ""

    def wanted(self, repo_id: str, commit: str, entry: Entry, target: str) -> Wanted:
        """See :meth:`Source.wanted`."""
        query = {"Revision": self._made_up.get(commit, commit), "FilePath": entry.path}
        url = "%s/api/v1/models/%s/repo?%s" % (self.url, repo_id, urllib.parse.urlencode(
            {key: value for key, value in query.items() if value}))
        return Wanted(url, self.headers(), target, entry.size, entry.sha256, entry.git_sha1)

    def _list(self, repo_id: str, revision: Optional[str]) -> Any:
        query = {"Recursive": "true", **({"Revision": revision} if revision else {})}
        data = self._asked(lambda: self._json(
            "%s/repo/files?%s" % (repo_id, urllib.parse.urlencode(query))), repo_id, revision or "")
        files = data.get("Files") if isinstance(data, dict) else None
        if isinstance(data, dict) and not files:
            raise HubProblem(self._no_revision(repo_id, revision))
        if not isinstance(files, list) or not all(isinstance(row, dict) for row in files):
            raise HubProblem(self.not_a_hub(repo_id, "no list of files in its answer"))
        return data

    def _no_revision(self, repo_id: str, revision: Optional[str]) -> Finding:
        names: List[str] = []
        with contextlib.suppress(HubProblem, AttributeError, TypeError, LookupError):
            told = self._asked(lambda: self._json(repo_id + "/revisions"), repo_id, "")
            for kind in ("Branches", "Tags"):
                names += [clean(row["Revision"]) for row in told["RevisionMap"].get(kind) or []]
        return finding(
            "snapshot-revision-not-found", "%s of %s" % (repo_id, self.name),
            "no files at revision %s" % (revision or "(its default branch)"),
            "a branch or a tag of it%s" % (": " + ", ".join(names[:20]) if names else ""),
            "set `revision` to one of them; ModelScope's own branch is master")

    def _json(self, path: str) -> Any:
        request = urllib.request.Request(  # noqa: S310 - the opener takes http and https alone
            "%s/api/v1/models/%s" % (self.url, path), headers=self.headers())
        with opener(direct=self.inside).open(request, timeout=TIMEOUT_S) as answer:
            content = answer.read(MAX_ANSWER + 1)
        if len(content) > MAX_ANSWER:
            raise ValueError("an answer of more than %d bytes" % MAX_ANSWER)
        told = json.loads(content.decode())
        if not isinstance(told, dict):
            raise ValueError("an answer that is no object")
        if told.get("Success") is False or told.get("Code", 200) != 200:
            raise ValueError("Code %s: %s" % (told.get("Code"), told.get("Message")))
        return told.get("Data")


class Peer(Source):
    """Another host of the fleet that has the snapshot and told what is in it."""

    kind = "peer"
    inside = True

    def __init__(self, url: str, secret: Optional[str], manifest: Manifest) -> None:
        super().__init__(url, secret)
        self._manifest = manifest

    def resolve(self, repo_id: str, revision: Optional[str]) -> str:
        """The commit that this host has."""
        return self._manifest.commit

    def manifest(self, repo_id: str, commit: str) -> Manifest:
        """What that host told."""
        return self._manifest

    def _refused(self, repo_id: str, revision: str, status: int, code: str, message: str,
                 what: str) -> Finding:
        return finding(
            "snapshot-denied" if status in (401, 403) else "snapshot-hub-unreachable", self.name,
            "%d%s%s" % (status, " for " + what if what else "", ": " + message if message else ""),
            "%s from the host that fetched it" % repo_id,
            "run playbooks/prefetch.yml again: that host's server lives only as long as its run")


def source(hub: Mapping[str, Any], token: Optional[str] = None) -> Source:
    """The source that a hub is.

    :param hub: ``{kind: huggingface|modelscope, url, trusted}``. The token is for a trusted
        one alone.
    :raises NoLibrary: when the library that it needs is not there.
    """
    url, shows = str(hub["url"]), token if hub.get("trusted") else None
    withheld = bool(token) and not shows
    made = (ModelScope(url, shows) if hub.get("kind") == "modelscope"
            else HuggingFace(url, shows))
    if withheld:
        made.findings.append(finding(
            "snapshot-token-withheld", made.name, "a token, and an endpoint that is not trusted",
            "no token, or an endpoint that may see it",
            "set `trusted: true` on it in `network_access_hub_endpoints` if it may",
            severity="warning"))
    return made


def peer(told: Mapping[str, Any]) -> Peer:
    """The source that another host is: ``{url, secret, manifest}``.

    :raises ValueError: when the manifest is none; says where and why.
    """
    return Peer(str(told["url"]), told.get("secret"),
                checks.manifest_from_dict(told.get("manifest"), "manifest of %s" % shown(
                    str(told["url"]))))


def corrupt(repo_id: str, what: str, where: str, mended: bool) -> Finding:
    """The finding on a file whose content is not what its hub promises."""
    return finding(
        "snapshot-corrupt", repo_id, what,
        "the content that its hash promises",
        "nothing: it was fetched again" if mended else
        "run again; when it comes again, %s does not serve what it lists: set another one in"
        " `network_access_hub_endpoints`" % where,
        severity="warning" if mended else "error")


def no_library(repo_id: str, problem: Exception, may_wait: bool = False) -> Finding:
    """The finding on a host that cannot ask a hub.

    :param may_wait: whether nothing depends on it yet, as in check mode.
    """
    return finding(
        "snapshot-no-library", repo_id, "huggingface_hub cannot be used on this host: %s" % problem,
        "huggingface_hub of the toolbelt, which needs Python 3.10",
        "run the role toolbelt; on a host whose Python is older let another one fetch"
        " (playbooks/prefetch.yml)", severity="warning" if may_wait else "error")


def environment() -> None:
    """Set what huggingface_hub reads when it is imported."""
    os.environ.update(
        HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_PROGRESS_BARS="1",
        HF_HUB_DISABLE_IMPLICIT_TOKEN="1", HF_HUB_DISABLE_UPDATE_CHECK="1",
        HF_HUB_DISABLE_SYMLINKS_WARNING="1", HF_HUB_ETAG_TIMEOUT=str(TIMEOUT_S),
        HF_HUB_DISABLE_XET="1")
    # Whether to go out is this module's option; these come from a shell for interactive use.
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DEBUG"):
        os.environ.pop(name, None)


def package() -> Any:
    """huggingface_hub.

    :raises NoLibrary: when it is not there or cannot be used.
    """
    if LIBRARY not in sys.modules:
        environment()
    try:
        import huggingface_hub
        # Its names are loaded on their first use.
        for name in ("HfApi", "hf_hub_url", "get_hf_file_metadata"):
            getattr(huggingface_hub, name)
    except Exception as problem:  # one for a newer Python fails in any way at all
        raise NoLibrary("%s: %s" % (type(problem).__name__, problem)) from problem
    return huggingface_hub


def shown(url: str) -> str:
    """An address without who is in it and without its query."""
    parts = urllib.parse.urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urllib.parse.urlunsplit((parts.scheme, host, parts.path, "", "")).rstrip("/")


def clean(text: Any, token: Optional[str] = None) -> str:
    """The words of an error, on one line, without secrets, and not too many."""
    said = re.sub(r"(https?://)[^\s/@'\"]*@", r"\1", str(text))
    said = re.sub(r"(https?://[^\s?'\"]*)\?[^\s'\"]*", r"\1", said)
    if token:
        said = said.replace(token, "***")
    return " ".join(said.split())[:300]


def _status(error: BaseException) -> Any:
    """``(status, code, message)`` of an HTTP answer; status 0 where there was none."""
    if isinstance(error, HubError):
        return error.status, error.code or "", error.message or ""
    if isinstance(error, urllib.error.HTTPError):
        return (error.code, error.headers.get("X-Error-Code") or "",
                error.headers.get("X-Error-Message") or "")
    seen: Any = error
    while seen is not None:
        answer = getattr(seen, "response", None)
        if answer is not None and isinstance(getattr(answer, "status_code", None), int):
            return (answer.status_code, answer.headers.get("X-Error-Code") or "",
                    answer.headers.get("X-Error-Message") or "")
        seen = seen.__cause__ or seen.__context__
    return 0, "", ""


def _is_local(error: BaseException) -> bool:
    """Whether it is a matter of this host's disk."""
    if not isinstance(error, OSError):
        return False
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS) or (
        error.errno in (errno.EACCES, errno.EPERM) and error.filename is not None)


def _is_transport(error: BaseException) -> bool:
    """Whether it is one of the HTTP library's own, which are of no common kind."""
    return any(one.__name__ == "TransportError" for one in type(error).__mro__)


def _within(ask: Callable[[], Any], seconds: float) -> Any:
    """What it answers in so many seconds.

    A library may wait without a limit, or as long as a server tells it to; its thread is left then.

    :raises TimeoutError: when it does not answer.
    """
    told: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def work() -> None:
        try:
            told.put((ask(), None))
        except BaseException as problem:  # raised by who waits for it
            told.put((None, problem))

    threading.Thread(target=work, daemon=True).start()
    try:
        answer, problem = told.get(timeout=max(0.0, seconds))
    except queue.Empty:
        raise TimeoutError("no whole answer within %d s" % ANSWER_S) from None
    if problem is not None:
        raise problem
    return answer


def _listing_hash(rows: Any) -> str:
    """Forty digits that stand for a list of files."""
    lines = sorted("%s %s\n" % (row.get("Path"), str(row.get("Sha256")).lower())
                   for row in rows if row.get("Type") == "blob")
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:40]


def _skip(answer: Any, count: int) -> None:
    while count > 0:
        data = answer.read(min(count, 2**20))
        if not data:
            raise OSError("the line was cut")
        count -= len(data)
