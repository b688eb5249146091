# SPDX-License-Identifier: Apache-2.0
"""The hub's HTTP: its routes, and what the faults make of the answers."""

from __future__ import annotations

import contextlib
import fnmatch
import http.server
import json
import os
import re
import select
import socket
import ssl
import threading
import time
import urllib.parse

from .repos import Repos

TOKEN = "hf_firstlight"
RESOLVE = re.compile(r"^/(?:(cdn)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")
API = re.compile(r"^/api/models/([^/]+/[^/]+)(?:/(revision|tree|refs)(?:/([^/]+)(?:/(.*))?)?)?$")
RANGE = re.compile(r"^bytes=(\d+)-(\d*)$")
PIECE = 2**23
PAGE = 1000


class Request:
    """A request that came. ``bytes`` of the body that went out so far; ``host`` hub or cdn.

    ``authorization`` is what the client showed, ``proxied`` the host that it took us for a proxy
    to, both empty otherwise.
    """

    def __init__(self, method, path, headers, host, proxied):
        self.method, self.path, self.host, self.proxied = method, path, host, proxied
        self.range = headers.get("Range", "")
        self.if_range = headers.get("If-Range", "")
        self.authorization = headers.get("Authorization", "")
        self.proxy_authorization = headers.get("Proxy-Authorization", "")
        self.user_agent = headers.get("User-Agent", "")
        self.status, self.bytes, self.over = 0, 0, False

    def __repr__(self):
        return "%s %s %s %s -> %d, %d bytes" % (
            self.host, self.method, self.path, self.range, self.status, self.bytes)


class Hub:
    """The hub as a context: threads of this process.

    :param repos: the folder of the repositories.
    :param faults: see the package; ``hub.faults`` may be changed while it serves.
    :param log: a file that gets a JSON line for each request that is over.
    :param certificate: a PEM file with certificate and key, to serve https.
    """

    handler = None
    """What answers, in who serves something else than repositories."""

    def __init__(self, repos, faults=None, bind="127.0.0.1", port=0, log=None, certificate=None):
        self.repos, self.faults, self.log = Repos(repos), dict(faults or {}), log
        self.bind, self.port, self.certificate = bind, port, certificate
        self.requests, self.lock, self.servers = [], threading.Lock(), []
        self.closing = threading.Event()

    def __enter__(self):
        # Another address is another host, for who keeps a secret to the first one.
        second = "127.0.0.2" if self.bind == "127.0.0.1" else self.bind
        for host, address, port in (("hub", self.bind, self.port), ("cdn", second, 0)):
            handler = type("Handler", (self.handler or _Handler,), {"hub": self, "host": host})
            server = _Server((address, port), handler)
            if self.certificate:
                tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                tls.load_cert_chain(self.certificate)
                server.socket = tls.wrap_socket(
                    server.socket, server_side=True, do_handshake_on_connect=False)
            self.servers.append(server)
            threading.Thread(
                target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        scheme = "https" if self.certificate else "http"
        self.url, self.cdn_url = (
            "%s://%s:%d" % (scheme, address, server.server_address[1])
            for address, server in zip((self.bind, second), self.servers))
        return self

    def __exit__(self, *_):
        self.closing.set()
        for server in self.servers:
            server.shutdown()
            server.server_close()
            server.hang_up()

    def done(self, timeout_s=10.0):
        """The requests, once the answers to all are over."""
        until = time.monotonic() + timeout_s
        while not all(request.over for request in self.requests):
            assert time.monotonic() < until, self.requests
            time.sleep(0.005)
        return list(self.requests)

    def commit(self, repo_id, revision="main"):
        """The commit of a branch or tag."""
        return self.repos.listing(repo_id, revision).commit

    def resolve(self, repo_id, path, revision="main"):
        """The URL of a file at the commit of a revision."""
        return "%s/%s/resolve/%s/%s" % (
            self.url, repo_id, self.commit(repo_id, revision), urllib.parse.quote(path))

    def fault(self, method, path, name):
        """The value of a fault for this request, with what is beside it; or ``(None, {})``."""
        with self.lock:
            for pattern, fault in list(self.faults.items()):
                if (name not in fault or fault.get("method", method) != method
                        or not fnmatch.fnmatchcase(path, pattern)):
                    continue
                if "times" in fault:
                    if fault["times"] <= 0:
                        continue
                    fault["times"] -= 1
                return fault[name], fault
        return None, {}


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *arguments):
        self.open = set()
        super().__init__(*arguments)

    def process_request(self, request, client_address):
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        self.open.discard(request)
        super().shutdown_request(request)

    def hang_up(self):
        """End the lines that clients keep open."""
        for line in list(self.open):
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address):
        """A client that went away is part of the tests."""


class _Cut(Exception):
    """The line ends here."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub, host = None, ""

    def log_message(self, *_):
        pass

    def do_GET(self):
        parts = urllib.parse.urlsplit(self.path)
        self.asked = urllib.parse.unquote(parts.path)
        # Revisions have their slashes quoted.
        self.raw, self.query = parts.path, urllib.parse.parse_qs(parts.query)
        self.note = Request(self.command, self.asked, self.headers, self.host, parts.netloc)
        self.hub.requests.append(self.note)
        try:
            self.answer()
        except (_Cut, OSError):
            self.close_connection = True
        finally:
            self.note.over = True
            if self.hub.log:
                with self.hub.lock, open(self.hub.log, "a") as log:
                    log.write(json.dumps(vars(self.note)) + "\n")

    do_HEAD = do_GET

    def answer(self):
        status, beside = self.fault("status")
        if status:
            extra = {"Retry-After": str(beside["retry_after"])} if "retry_after" in beside else {}
            return self.refuse(status, beside.get("code"), "scripted fault", **extra)
        file, api = RESOLVE.match(self.raw), API.match(self.raw)
        if file:
            cdn, repo_id, *rest = file.groups()
            revision, path = (urllib.parse.unquote(text) for text in rest)
            return self.resolve(bool(cdn), repo_id, revision, path)
        if api:
            repo_id, what, revision, under = api.groups()
            return self.api(repo_id, what, urllib.parse.unquote(revision or "main"), under)
        return self.refuse(404, None, "Not Found")

    def fault(self, name):
        return self.hub.fault(self.command, self.asked, name)

    # Routes.

    def api(self, repo_id, what, revision, under):
        if self.moved(repo_id):
            return None
        refs = self.hub.repos.refs(repo_id)
        if not refs:
            return self.no_repository()
        if what == "refs":
            return self.json({"branches": [
                {"name": name, "ref": "refs/heads/" + name, "targetCommit": commit}
                for name, commit in refs.items()], "converts": [], "tags": []})
        listing = self.hub.repos.listing(repo_id, revision)
        if not listing:
            return self.refuse(404, "RevisionNotFound", "Invalid rev id: " + revision)
        if what == "tree":
            return self.tree(listing, under or "")
        gated = self.hub.fault("GET", "/%s/resolve/%s/" % (repo_id, listing.commit), "gated")[0]
        return self.json({
            "_id": listing.commit[:24], "id": repo_id, "modelId": repo_id, "sha": listing.commit,
            "private": False, "gated": "manual" if gated else False, "disabled": False,
            "tags": [], "downloads": 0, "likes": 0, "library_name": "transformers",
            "siblings": [{"rfilename": path} for path in listing.files]})

    def tree(self, listing, under):
        rows = [file.row() for path, file in listing.files.items()
                if not under or path == under or path.startswith(under + "/")]
        if self.query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
            depth = len(under.split("/")) if under else 0
            folders = {"/".join(row["path"].split("/")[:depth + 1]) for row in rows
                       if row["path"].count("/") > depth}
            rows = [row for row in rows if row["path"].count("/") <= depth] + [
                {"type": "directory", "path": path, "size": 0, "oid": "0" * 40}
                for path in sorted(folders)]
        page = self.fault("page")[0] or PAGE
        begin = int(self.query.get("cursor", ["0"])[0])
        more = {}
        if begin + page < len(rows):
            query = {key: values[0] for key, values in self.query.items()}
            more["Link"] = '<http://%s%s?%s>; rel="next"' % (
                self.headers["Host"], self.raw,
                urllib.parse.urlencode(dict(query, cursor=begin + page)))
        return self.json(rows[begin:begin + page], more)

    def resolve(self, cdn, repo_id, revision, path):
        if self.moved(repo_id):
            return None
        listing, file = self.hub.repos.file(repo_id, revision, path)
        if not listing and not self.hub.repos.refs(repo_id):
            return self.no_repository()
        if not listing:
            return self.refuse(404, "RevisionNotFound", "Invalid rev id: " + revision)
        gated = not cdn and self.fault("gated")[0]
        if gated and not (gated == "token" and self.token()):
            return self.refuse(
                403 if self.note.authorization else 401, "GatedRepo",
                "Access to model %s is restricted and you are not in the authorized list. Visit"
                " %s/%s to ask for access." % (repo_id, self.hub.url, repo_id))
        if not file:
            return self.refuse(404, "EntryNotFound", "Entry not found",
                               **{"X-Repo-Commit": listing.commit})
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if not cdn and not self.fault("no_commit_header")[0]:
            headers["X-Repo-Commit"] = listing.commit
        if not self.fault("no_etag")[0]:
            headers["ETag"] = '"%s"' % (("cdn-" if cdn else "") + file.etag)
        to = not cdn and self.fault("redirect")[0]
        if to:
            if to is True:
                server = urllib.parse.urlsplit(self.hub.cdn_url)
                host = server.hostname
                if self.hub.bind != "127.0.0.1":
                    host = self.headers["Host"].rpartition(":")[0]
                to = "%s://%s:%d/cdn%s?signature=secret" % (
                    server.scheme, host, server.port, self.raw)
            return self.send(302, {
                **headers, "Location": to, "X-Linked-Size": str(file.size),
                "X-Linked-Etag": '"%s"' % file.etag})
        return self.body(file, headers)

    def moved(self, repo_id):
        to = self.fault("moved")[0]
        if to and to != repo_id:
            self.send(307, {"Location": self.path.replace(repo_id, to, 1)})
            return True
        return False

    def token(self):
        return self.note.authorization == "Bearer " + TOKEN

    def no_repository(self):
        # A hub does not tell a stranger what there is not from what he may not see. The code makes
        # huggingface_hub raise over http what it raises for such a 401 over https.
        if self.note.authorization:
            return self.refuse(404, "RepoNotFound", "Repository not found")
        return self.refuse(401, "RepoNotFound", "Invalid username or password.")

    # Answers.

    def refuse(self, status, code, message, **headers):
        if code:
            headers["X-Error-Code"] = code
        return self.json({"error": message}, {"X-Error-Message": message, **headers}, status)

    def json(self, content, headers=None, status=200):
        body = json.dumps(content).encode()
        return self.send(status, {"Content-Type": "application/json", **(headers or {})}, body)

    def send(self, status, headers, body=b"", length=None):
        """An answer of which ``body`` is all that comes, or the beginning."""
        self.note.status = status
        lines = ["HTTP/1.1 %d %s" % (status, self.responses.get(status, ("Status",))[0])]
        lines += ["%s: %s" % row for row in headers.items()]
        if length is not False:
            lines.append("Content-Length: %d" % (len(body) if length is None else length))
        else:
            lines.append("Connection: close")
            self.close_connection = True
        head = ("\r\n".join(lines) + "\r\n\r\n").encode()
        self.connection.sendall(head if self.command == "HEAD" else head + body)
        if self.command != "HEAD":
            self.note.bytes += len(body)

    def body(self, file, headers):
        """A file, or the part of it that is asked for."""
        size, begin, end, status = file.size, 0, file.size, 200
        asked = RANGE.match(self.note.range)
        if self.note.if_range and self.note.if_range != headers.get("ETag"):
            asked = None
        if asked and not self.fault("no_range")[0]:
            begin, end = int(asked[1]), min(size, int(asked[2] or size) + 1)
            if begin >= size or self.fault("bad_range")[0]:
                return self.send(416, {**headers, "Content-Range": "bytes */%d" % size})
            headers["Content-Range"] = "bytes %d-%d/%d" % (begin, end - 1, size)
            status = 206
        if self.command == "HEAD":
            return self.send(status, headers, length=end - begin)
        plan = {name: self.fault(name)[0] for name in (
            "slow", "cut_at", "cut_after", "stall_at", "wrong_size", "wrong_hash", "endless",
            "no_length")}
        more = plan["wrong_size"] or 0
        end += min(more, 0)
        more = max(more, 0)
        length = False if plan["endless"] or plan["no_length"] else end - begin + more
        if file.size <= 65536 and not any(value is not None for value in plan.values()):
            with open(file.at, "rb") as content:
                return self.send(status, headers, content.read()[begin:end])
        self.send(status, headers, length=length)
        stops = [("cut", plan["cut_at"]), ("cut", plan["cut_after"] and begin + plan["cut_after"]),
                 ("stall", plan["stall_at"])]
        stops = [(max(at, begin), what) for what, at in stops if at is not None and at < end]
        stop, what = min(stops, default=(end, ""))
        flip = plan["wrong_hash"]
        flip = size // 2 if flip is True else flip
        with open(file.at, "rb") as content:
            if flip is not None and begin <= flip < stop:
                self.pour(content, begin, flip, plan["slow"])
                byte = os.pread(content.fileno(), 1, flip)
                self.put(bytes([byte[0] ^ 1]))
                begin = flip + 1
            self.pour(content, begin, stop, plan["slow"])
        if what == "cut":
            raise _Cut
        if what == "stall":
            # Until the client goes away.
            while not (self.hub.closing.is_set()
                       or select.select([self.connection], [], [], 0.05)[0]):
                pass
            raise _Cut
        self.put(bytes(more))
        while plan["endless"]:
            self.put(bytes(65536))
        return None

    def put(self, content):
        self.connection.sendall(content)
        self.note.bytes += len(content)

    def pour(self, content, begin, end, rate):
        """Send bytes of a file, ``rate`` of them a second."""
        plain = not isinstance(self.connection, ssl.SSLSocket)
        started, first = time.monotonic(), begin
        piece = min(PIECE, max(1, int(rate * 0.02))) if rate else PIECE
        while begin < end:
            count = min(piece, end - begin)
            if plain:
                sent = os.sendfile(self.connection.fileno(), content.fileno(), begin, count)
                self.note.bytes += sent
            else:
                block = os.pread(content.fileno(), min(count, 2**18), begin)
                self.put(block)
                sent = len(block)
            if not sent:
                raise _Cut
            begin += sent
            if rate:
                late = (begin - first) / rate - (time.monotonic() - started)
                if self.hub.closing.wait(max(0.0, late)):
                    raise _Cut
