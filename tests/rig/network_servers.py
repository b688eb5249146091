# SPDX-License-Identifier: Apache-2.0
"""Servers that candidates of a way out are, well and ill, each on a port of its own."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import http.server
import json
import os
import pathlib
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = b"weights " * 2**16
PAGE = b"<!DOCTYPE html><title>Welcome</title><a href='/login'>Accept the terms</a>"


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, *_):
        """A client that has seen enough goes."""


class Served:
    """A server that answers by a function, and what it was asked.

    :param answer: given the handler, sends an answer.
    """

    def __init__(self, answer, tls=None, port=0):
        self.requests = []

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(handler):
                handler.close_connection = True
                self.requests.append((handler.path, dict(handler.headers)))
                answer(handler)

            def log_message(self, *_):
                pass

        self._server = _Server(("127.0.0.1", port), Handler)
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self.url = "%s://127.0.0.1:%d" % ("https" if tls else "http", self.port)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


class Network:
    """All servers of a test; closed with it."""

    def __init__(self, stack):
        self._stack = stack

    def serve(self, answer, **how):
        served = Served(answer, **how)
        self._stack.callback(served.close)
        return served

    def nobody(self):
        """An address at which nothing listens."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return "http://127.0.0.1:%d" % free.getsockname()[1]

    def silent(self):
        """One that takes connections and says nothing."""
        listening = socket.socket()
        self._stack.callback(listening.close)
        listening.bind(("127.0.0.1", 0))
        listening.listen(8)
        return "http://127.0.0.1:%d" % listening.getsockname()[1]


@contextlib.contextmanager
def network():
    """A :class:`Network`."""
    with contextlib.ExitStack() as stack:
        yield Network(stack)


def send(handler, status, body=b"", **headers):
    """An answer as a whole."""
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def portal(handler):
    """A captive portal: to everything the same page."""
    send(handler, 200, PAGE, Content_Type="text/html")


def status(code, **headers):
    """To everything this status."""
    return lambda handler: send(handler, code, b"no", **headers)


def hub(body=LARGE, pace_s=0.0, commit=COMMIT):
    """A hub with one file in every model.

    :param pace_s: seconds that each 8 KiB of it take.
    """
    def answer(handler):
        if "/resolve/" not in handler.path:
            return send(handler, 404, X_Error_Code="RepoNotFound")
        handler.send_response(206)
        handler.send_header("X-Repo-Commit", commit)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        for at in range(0, len(body), 8192):
            handler.wfile.write(body[at:at + 8192])
            if pace_s:
                handler.wfile.flush()
                time.sleep(pace_s)
        return None
    return answer


def modelscope(body=LARGE):
    """ModelScope, by its lists of files and its files."""
    def answer(handler):
        path = urllib.parse.urlsplit(handler.path).path
        if path.endswith("/repo/files"):
            said = {"Code": 200, "Data": {"Files": [{"Path": "model.safetensors"}]}}
            return send(handler, 200, json.dumps(said).encode(), Content_Type="application/json")
        if path.endswith("/repo"):
            return send(handler, 200, body)
        return send(handler, 404)
    return answer


def index(wheel=LARGE, folder="/files", login=""):
    """A package index that has pip, whose wheels lie elsewhere on it."""
    wanted = "Basic " + base64.b64encode(login.encode()).decode()

    def answer(handler):
        if login and handler.headers.get("Authorization") != wanted:
            return send(handler, 401)
        if handler.path.endswith("/simple/pip/"):
            page = "".join('<a href="%s/pip-%s-py3-none-any.whl#sha256=0">x</a><br>' % (
                folder, version) for version in ("24.0", "25.1"))
            return send(handler, 200, page.encode(), Content_Type="text/html")
        if handler.path.endswith("pip-25.1-py3-none-any.whl"):
            return send(handler, 200, wheel)
        return send(handler, 404)
    return answer


def registry(code=401):
    """A registry of images."""
    def answer(handler):
        if handler.path != "/v2/":
            return send(handler, 404)
        headers = {"Docker_Distribution_Api_Version": "registry/2.0"}
        if code == 401:
            headers["WWW_Authenticate"] = 'Bearer realm="https://auth.example.org"'
        return send(handler, code, **headers)
    return answer


def files(folder):
    """The files of a folder."""
    def answer(handler):
        path = pathlib.Path(folder) / urllib.parse.unquote(handler.path).lstrip("/")
        if not path.is_file():
            return send(handler, 404)
        return send(handler, 200, path.read_bytes())
    return answer


def proxy(names, login=""):
    """A proxy for HTTP.

    :param names: addresses by the name of the host that is asked for.
    """
    wanted = "Basic " + base64.b64encode(login.encode()).decode()

    def answer(handler):
        if login and handler.headers.get("Proxy-Authorization") != wanted:
            return send(handler, 407)
        parts = urllib.parse.urlsplit(handler.path)
        if parts.netloc not in names:
            return send(handler, 502)
        url = names[parts.netloc] + parts.path
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=20) as there:
            headers = {name.replace("-", "_"): value for name, value in there.headers.items()
                       if name.lower().startswith("x-")}
            return send(handler, there.status, there.read(), **headers)
    return answer


class Mirror:
    """A mirror of a distribution, of one package, that apt can use.

    :param folder: where it is made.
    :param keys: a folder with a key to sign with, as :func:`key` makes it.
    """

    def __init__(self, folder, keys, codename, distribution="Debian"):
        self.folder, self.keys = pathlib.Path(folder), keys
        self.codename, self.distribution = codename, distribution

    def add(self, path, suite, package="", size=2**16):
        """A suite at a path, e.g. ``debian`` and ``bookworm``, with one package of its own in it.

        :param package: its name; ``dear`` in the release itself where none is said.
        """
        package = package or "dear" + suite[len(self.codename):]
        there = self.folder / path
        pool = there / "pool" / ("%s_1.0_all.deb" % package)
        pool.parent.mkdir(parents=True, exist_ok=True)
        made = self.folder / ".build" / package
        (made / "DEBIAN").mkdir(parents=True, exist_ok=True)
        control = ("Package: %s\nVersion: 1.0\nArchitecture: all\nMaintainer: A <a@example.org>\n"
                   "Description: %s\n" % (package, suite))
        (made / "DEBIAN" / "control").write_text(control)
        subprocess.run(["dpkg-deb", "--build", "--root-owner-group", str(made), str(pool)],
                       check=True, stdout=subprocess.DEVNULL)
        deb = pool.read_bytes()
        text = control + "Filename: pool/%s\nSize: %d\nSHA256: %s\n\n" % (
            pool.name, len(deb), hashlib.sha256(deb).hexdigest())
        # What is not asked for makes it large enough to be measured.
        text += "Package: filler\nVersion: 1\nArchitecture: all\nDescription: %s\n\n" % (
            os.urandom(size // 2).hex())
        dist = there / "dists" / suite
        lines = []
        for architecture in ("amd64", "arm64", "all"):
            for name, content in (("Packages", text.encode()),
                                  ("Packages.gz", gzip.compress(text.encode(), mtime=0))):
                file = "main/binary-%s/%s" % (architecture, name)
                (dist / file).parent.mkdir(parents=True, exist_ok=True)
                (dist / file).write_bytes(content)
                lines.append(" %s %d %s" % (
                    hashlib.sha256(content).hexdigest(), len(content), file))
        release = ("Origin: %s\nLabel: %s\nSuite: %s\nCodename: %s\nDate: %s\n"
                   "Architectures: all amd64 arm64\nComponents: main\nSHA256:\n%s\n" % (
                       self.distribution, self.distribution, suite, suite,
                       time.strftime("%a, %d %b %Y %H:%M:%S UTC", time.gmtime()),
                       "\n".join(lines)))
        (dist / "Release").write_text(release)
        subprocess.run(["gpg", "--homedir", str(self.keys), "--batch", "--yes", "--clearsign",
                        "--output", str(dist / "InRelease"), str(dist / "Release")],
                       check=True, stderr=subprocess.DEVNULL)
        return self


def key(folder):
    """Make a key to sign with in a folder; returns the file by which it is known."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    gpg = ["gpg", "--homedir", str(folder), "--batch"]
    subprocess.run([*gpg, "--passphrase", "", "--quick-generate-key", "a@example.org", "rsa2048",
                    "sign", "never"], check=True, stderr=subprocess.DEVNULL)
    public = folder / "public.gpg"
    subprocess.run([*gpg, "--yes", "--output", str(public), "--export", "a@example.org"],
                   check=True)
    subprocess.run(["gpgconf", "--homedir", str(folder), "--kill", "all"], check=False)
    return public


PORTS = {"quick": 8101, "slow": 8102, "portal": 8103, "index": 8104, "mirror": 8105,
         "registry": 8106, "proxy": 8107}
LOGIN = "jo:hunter2"


def make(folder, codename):
    """Make a signed mirror of a release, and the key by which it is known."""
    folder = pathlib.Path(folder)
    public = key(folder / ".keys")
    mirror = Mirror(folder / "mirror", folder / ".keys", codename)
    mirror.add("debian", codename).add("debian", codename + "-updates")
    mirror.add("debian-security", codename + "-security")
    (folder / "mirror" / "key.gpg").write_bytes(public.read_bytes())


def serve(folder):
    """All of them on the ports of :data:`PORTS`, until the end of this process."""
    quick = "http://127.0.0.1:%d" % PORTS["quick"]
    for name, answer in {
            "quick": hub(), "slow": hub(pace_s=0.2), "portal": portal, "index": index(),
            "mirror": files(folder), "registry": registry(),
            "proxy": proxy({"hub.example.org": quick}, LOGIN)}.items():
        Served(answer, port=PORTS[name])
    threading.Event().wait()


if __name__ == "__main__":
    {"make": make, "serve": serve}[sys.argv[1]](*sys.argv[2:])
