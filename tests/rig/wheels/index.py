# SPDX-License-Identifier: Apache-2.0
"""A folder of wheels as an index, a page of links and releases of GitHub, with faults on request.

In a test::

    with index.Index(folder, faults={"/files/*": {"cut_at": 1000, "times": 1}}) as served:
        ...                       # served.simple, served.flat, served.url (as release_api)
        served.done()             # the requests, once none is under way

As a process: ``python tests/rig/wheels/index.py FOLDER [--address 0.0.0.0] [--port 0]
[--faults JSON] [--about JSON] [--log FILE]`` prints its URL and serves until SIGTERM.

=========================================== ====================================================
``/simple/<package>/``                      PEP 691 (with PEP 700) to who accepts it, else PEP 503
``/flat.html``                              links to all files
``/repos/<any>/<any>/releases``             all releases: ``v<version>`` of each version there is
``/repos/<any>/<any>/releases/tags/<tag>``  one of them
``/files/<name>``                           a file
=========================================== ====================================================

A file that comes or goes is seen at once. ``about`` is ``{file: {requires_python, yanked}}``.

Faults are the hub's for files (``slow``, ``cut_at``, ``cut_after``, ``stall_at``, ``wrong_size``,
``wrong_hash``, ``no_range``, ``no_length``, ``endless``, with ``times`` and ``method``), and

======================== =========================================================================
``status: N``            this status, with ``headers`` beside it
``redirect: true|URL``   302 to a second host, where all is served too; or to this URL
``auth: "user:secret"``  401 to who does not show it
``slow: N``              N bytes a second, pages too
``cut_after: N``         the line is cut after N bytes of a page
``huge: N``              N bytes of a comment before a page
``garbage: true``        a page that is none
``kind: TYPE``           this Content-Type
``charset: NAME``        a page in it
``html: true``           no PEP 691, whatever is accepted
``links: [HREF]``        more links on a page, or files of a release: names that cannot be, say
``base: HREF``           ``<base href>``, and links that are relative to it
``told_hash: HEX``       this SHA-256 is told of every file; ``no_hash: true`` none
``told_size: N``         this size is told of every file; ``no_size: true`` none
``page: N``              a list of releases comes in pages of N
======================== =========================================================================
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import html
import json
import pathlib
import random
import re
import signal
import sys
import urllib.parse

if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from hub.repos import File  # noqa: E402
from hub.server import Hub, _Cut, _Handler  # noqa: E402

JSON_TYPE = "application/vnd.pypi.simple.v1+json"
SIMPLE = re.compile(r"^/simple/(?:([^/]+)/)?$")
RELEASES = re.compile(r"^/repos/[^/]+/[^/]+/releases(?:/tags/([^/]+))?$")
FILES = re.compile(r"^/files/([^/]+)$")
ENDS = (".whl", ".tar.gz", ".zip")


class Index(Hub):
    """The index as a context: threads of this process.

    :param folder: the folder of the wheels.
    :param about: see the module. Else as ``hub.Hub`` has it.
    """

    def __init__(self, folder, faults=None, about=None, address="127.0.0.1", port=0, log=None,
                 certificate=None):
        super().__init__(folder, faults, address, port, log, certificate)
        self.folder, self.about, self.hashes = pathlib.Path(folder), dict(about or {}), {}

    @property
    def simple(self):
        """The index's URL."""
        return self.url + "/simple"

    @property
    def flat(self):
        """The URL of the page of links."""
        return self.url + "/flat.html"

    def named(self, user, url=None):
        """A URL (the index's) with ``user:password`` in it."""
        return (url or self.simple).replace("://", "://%s@" % user)

    def files(self):
        """The files, as they are now."""
        found = []
        for path in sorted(self.folder.iterdir()):
            if path.name.endswith(ENDS) and path.is_file():
                status = path.stat()
                key = path.name, status.st_mtime_ns, status.st_size
                if key not in self.hashes:
                    self.hashes[key] = hashlib.sha256(path.read_bytes()).hexdigest()
                found.append(File(
                    path.name, str(path), status.st_size, "", self.hashes[key], None))
        return found


class _Indexed(_Handler):
    """Its routes, and what the faults make of the pages."""

    def answer(self):
        # The second host has everything too, under /cdn.
        self.asked = re.sub("^/cdn(?=/)", "", self.asked)
        status, beside = self.fault("status")
        if status:
            return self.send(status, {"Content-Type": "text/plain", **beside.get("headers", {})},
                             b"scripted fault\n")
        user = self.fault("auth")[0]
        if user and self.note.authorization != "Basic " + base64.b64encode(
                user.encode()).decode():
            return self.send(401, {"WWW-Authenticate": 'Basic realm="index"'}, b"no\n")
        to = not self.note.path.startswith("/cdn/") and self.fault("redirect")[0]
        if to:
            return self.send(302, {"Location": self.elsewhere() if to is True else to})
        simple, releases = SIMPLE.match(self.asked), RELEASES.match(self.asked)
        file = FILES.match(self.asked)
        if simple:
            return self.simple(simple.group(1))
        if self.asked == "/flat.html":
            return self.page(self.hub.files(), "files/")
        if releases:
            return self.releases(urllib.parse.unquote(releases.group(1) or ""))
        for one in self.hub.files():
            if file and one.path == file.group(1):
                return self.body(one, {"Accept-Ranges": "bytes", "ETag": '"%s"' % one.etag,
                                       "Content-Type": "application/octet-stream"})
        return self.send(404, {"Content-Type": "text/plain"}, b"Not Found\n")

    def elsewhere(self):
        server = urllib.parse.urlsplit(self.hub.cdn_url)
        host = server.hostname
        if self.hub.bind != "127.0.0.1":
            host = self.headers["Host"].rpartition(":")[0]
        return "%s://%s:%d/cdn%s?signature=secret" % (server.scheme, host, server.port, self.raw)

    def simple(self, package):
        if not package:
            names = sorted({_package(one.path) for one in self.hub.files()})
            return self.html(["<a href=\"%s/\">%s</a>" % (one, one) for one in names])
        files = [one for one in self.hub.files() if _package(one.path) == package]
        if not files:
            return self.send(404, {"Content-Type": "text/plain"}, b"Not Found\n")
        if JSON_TYPE in self.headers.get("Accept", "") and not self.fault("html")[0]:
            return self.told(package, files)
        return self.page(files, "../../files/")

    def told(self, package, files):
        """PEP 691."""
        rows = []
        for one in files:
            about = self.hub.about.get(one.path, {})
            row = {"filename": one.path, "url": "../../files/" + urllib.parse.quote(one.path),
                   "hashes": {"sha256": self.sha256(one)} if self.sha256(one) else {},
                   "yanked": about.get("yanked", False)}
            if about.get("requires_python"):
                row["requires-python"] = about["requires_python"]
            if self.size(one) is not None:
                row["size"] = self.size(one)
            rows.append(row)
        rows += [{"filename": urllib.parse.unquote(href.partition("#")[0]), "url": href,
                  "hashes": {}} for href in self.fault("links")[0] or ()]
        return self.text(JSON_TYPE, json.dumps({
            "meta": {"api-version": "1.1"}, "name": package, "files": rows,
            "versions": sorted({_version(one.path) for one in files})}))

    def page(self, files, where):
        """PEP 503, and any page of links."""
        base = self.fault("base")[0]
        lines = ['<base href="%s">' % base] if base else []
        for one in files:
            about = self.hub.about.get(one.path, {})
            href = ("" if base else where) + urllib.parse.quote(one.path)
            if self.sha256(one):
                href += "#sha256=" + self.sha256(one)
            more = ""
            if about.get("requires_python"):
                more += ' data-requires-python="%s"' % html.escape(about["requires_python"])
            if about.get("yanked"):
                more += ' data-yanked="%s"' % html.escape(
                    about["yanked"] if isinstance(about["yanked"], str) else "")
            lines.append('<a href="%s"%s>%s</a><br>' % (href, more, one.path))
        lines += ['<a href="%s">more</a>' % href for href in self.fault("links")[0] or ()]
        return self.html(lines)

    def releases(self, tag):
        """As GitHub's API has them."""
        found = {}
        for one in self.hub.files():
            found.setdefault("v" + _version(one.path), []).append(one)
        rows = [self.release(name, files) for name, files in sorted(found.items(), reverse=True)]
        if tag:
            rows = [row for row in rows if row["tag_name"] == tag]
            if not rows:
                return self.json({"message": "Not Found", "status": "404"}, status=404)
            return self.text("application/json", json.dumps(rows[0]))
        size = self.fault("page")[0] or int(self.query.get("per_page", ["30"])[0])
        number = int(self.query.get("page", ["1"])[0])
        more = {}
        if number * size < len(rows):
            more["Link"] = '<%s?per_page=%d&page=%d>; rel="next", <%s>; rel="last"' % (
                self.own(self.raw), size, number + 1, self.own(self.raw))
        return self.text("application/json", json.dumps(
            rows[(number - 1) * size:number * size]), more)

    def release(self, tag, files):
        rows = [{"name": one.path, "state": "uploaded", "size": self.size(one),
                 "digest": "sha256:" + self.sha256(one) if self.sha256(one) else None,
                 "browser_download_url": self.own("/files/" + urllib.parse.quote(one.path))}
                for one in files]
        rows += [{"name": urllib.parse.unquote(href), "size": 1, "digest": None,
                  "browser_download_url": self.own("/files/" + href)}
                 for href in self.fault("links")[0] or ()]
        return {"tag_name": tag, "draft": False, "prerelease": False, "assets": rows}

    def own(self, path):
        return "%s://%s%s" % (
            "https" if self.hub.certificate else "http", self.headers["Host"], path)

    def sha256(self, one):
        return "" if self.fault("no_hash")[0] else self.fault("told_hash")[0] or one.sha256

    def size(self, one):
        return None if self.fault("no_size")[0] else self.fault("told_size")[0] or one.size

    def html(self, lines):
        return self.text("text/html", "<!DOCTYPE html><html><body>\n%s\n</body></html>\n"
                         % "\n".join(lines))

    def text(self, kind, text, headers=None):
        """A page, with what the faults make of it."""
        charset = self.fault("charset")[0]
        content = text.encode(charset or "utf-8")
        if self.fault("garbage")[0]:
            content = random.Random(7).randbytes(2000) + b"<a <a href=<a href='<!-- ]]> <!["
        huge = self.fault("huge")[0]
        if huge:
            content = b"<!--" + b" " * (huge - 7) + b"-->" + content
        kind = self.fault("kind")[0] or kind
        headers = {"Content-Type": kind + ("; charset=" + charset if charset else ""),
                   **(headers or {})}
        rate, cut = self.fault("slow")[0], self.fault("cut_after")[0]
        if rate is None and cut is None:
            return self.send(200, headers, content)
        self.send(200, headers, length=len(content))
        if self.command == "HEAD":
            return None
        for begin in range(0, len(content) if cut is None else cut, rate or len(content)):
            if begin and self.hub.closing.wait(1.0):
                raise _Cut
            self.put(content[begin:min(begin + (rate or len(content)), cut or len(content))])
        if cut is not None:
            raise _Cut
        return None


Index.handler = _Indexed


def _package(file):
    """The package that a file is named after, as PEP 503 has it."""
    name = file.partition("-")[0]
    if not file.endswith(".whl"):
        name = file.rpartition("-")[0]
    return re.sub("[-_.]+", "-", name).lower()


def _version(file):
    """The version that a file is of, without its local part."""
    version = file.split("-")[1] if file.endswith(".whl") else re.sub(
        r"\.(tar\.gz|zip)$", "", file.rpartition("-")[2])
    return version.partition("+")[0]


def main():
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description="A small index of wheels with faults.")
    parser.add_argument("folder", metavar="FOLDER")
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--faults", default="{}", metavar="JSON")
    parser.add_argument("--about", default="{}", metavar="JSON")
    parser.add_argument("--log", metavar="FILE", help="a JSON line for each request")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with Index(options.folder, json.loads(options.faults), json.loads(options.about),
               options.address, options.port, options.log) as serving:
        print(serving.url, flush=True)
        while True:
            signal.pause()


if __name__ == "__main__":
    main()
