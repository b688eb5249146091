# SPDX-License-Identifier: Apache-2.0
"""The way in, with a real HAProxy under a real supervisord: who is let in, to what, what lasts."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import ssl
import subprocess
import threading

import pytest
from fake_engine import serving
from supervised import config, free_port, kill, short_root, until, way_in_plan, way_in_wanted

from ansible.module_utils.firstlight import paths, processes, smoke, way_in
from ansible.module_utils.firstlight.planning import proof
from ansible.module_utils.firstlight.planning import way_in as decided
from ansible.module_utils.firstlight.runner import run
from ansible.module_utils.firstlight.transaction import Transaction
from ansible.module_utils.firstlight.way_in import WayIn, WayInError

pytestmark = pytest.mark.skipif(
    not os.access(decided.PROGRAM, os.X_OK),
    reason="needs the distribution's package haproxy (%s)" % decided.PROGRAM)

KEY, SECOND, WRONG = ("firstlight-%s-key-0123" % one for one in ("first", "second", "wrong"))
BEARER = {"Authorization": "Bearer " + KEY}
ASKED = {"prompt": "a", "max_tokens": 2}
BODY = json.dumps(ASKED).encode()
TOO_MUCH = decided.MAX_BODY + 1


class Rig(WayIn):
    """A way in with what its tests do to it."""

    def __init__(self, root, supervisord):
        super().__init__("supervisor", root, "chat", supervisord)
        os.makedirs(self.manager.folder)
        pathlib.Path(self.manager.config).write_text(config())

    def wanted(self, plan, *keys, **changes):
        return {**way_in_wanted(self.root, plan, keys or [KEY]), **changes}

    def names(self, *names):
        """The files of the way in, read."""
        return {name: pathlib.Path(self.folder, name).read_bytes() for name in names or (
            way_in.CONFIG, way_in.KEYS, way_in.CERTIFICATE)}

    def workers(self):
        return set(processes.children(self.manager.status(self.service)["pid"] or 0))


@pytest.fixture
def rig(supervisord):
    with short_root() as root:
        yield Rig(root, supervisord)


@pytest.fixture
def engine():
    with serving() as url:
        yield url.engine


@pytest.fixture
def plan(engine):
    return way_in_plan(free_port(), engine.server_address[1])


@pytest.fixture(scope="module")
def here(supervisord):
    """One way in, for everything that changes nothing of it: its plan, its engine, and itself."""
    with short_root() as root, serving() as url:
        rig = Rig(root, supervisord)
        rig.plan, rig.engine = way_in_plan(free_port(), url.engine.server_address[1]), url.engine
        rig.bring(rig.wanted(rig.plan, KEY, SECOND))
        yield rig


def trusting(certificate, name="127.0.0.1"):
    """A client that knows the certificate, and asks for it to be of the name."""
    context = ssl.create_default_context(cadata=certificate)
    context.name = name
    return context


@contextlib.contextmanager
def open_to(plan, context=None):
    """A connection with TLS; nobody's certificate is checked unless a context does that."""
    if context is None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.name = None
    connection = http.client.HTTPSConnection("127.0.0.1", plan["port"], timeout=30)
    plain = socket.create_connection(("127.0.0.1", plan["port"]), 30)
    connection.sock = context.wrap_socket(plain, server_hostname=context.name)
    try:
        yield connection
    finally:
        connection.close()


def ask(plan, method="GET", path="/v1/models", headers=None, body=None, context=None):
    """The answer to one request: status, headers by their names in small letters, body."""
    with open_to(plan, context) as connection:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.headers.items()}, \
            answer.read()


def status(plan, key=KEY):
    return ask(plan, headers={"Authorization": "Bearer " + key})[0]


def raw(plan, text):
    """What comes back for these bytes, as far as the headers go."""
    with open_to(plan) as connection:
        connection.sock.sendall(text.replace("\n", "\r\n").encode())
        return connection.sock.recv(65536).decode()


# Who is let in.


LET_IN = {
    "a key": BEARER,
    "another key": {"Authorization": "Bearer " + SECOND},
    "a key in the other header": {"X-Api-Key": SECOND},
    "the scheme in small letters": {"authorization": "bearer " + KEY},
    "a wrong key beside a right one": {"Authorization": "Bearer " + WRONG, "X-Api-Key": KEY},
}
NOT_LET_IN = {
    "no key": {},
    "a wrong key": {"Authorization": "Bearer " + WRONG},
    "a wrong key in the other header": {"X-Api-Key": WRONG},
    "an empty key": {"Authorization": "Bearer "},
    "an empty key in the other header": {"X-Api-Key": ""},
    "a key in capitals": {"Authorization": "Bearer " + KEY.upper()},
    "the start of a key": {"Authorization": "Bearer " + KEY[:-1]},
    "more than a key": {"Authorization": "Bearer " + KEY + "4"},
    "two keys as one": {"X-Api-Key": KEY + "," + SECOND},
    "what a host knows a key by": {
        "Authorization": "Bearer " + hashlib.sha256(KEY.encode()).hexdigest()},
    "a key under another scheme": {"Authorization": "Basic " + KEY},
    "a key without a scheme": {"Authorization": KEY},
    "a key in a cookie": {"Cookie": "api_key=" + KEY},
}


@pytest.mark.parametrize("case", LET_IN)
def test_who_has_a_key_is_let_in(here, case):
    code, _, body = ask(here.plan, headers=LET_IN[case])
    assert (code, json.loads(body)["data"]) == (200, [{"id": "fake"}])
    assert ask(here.plan, "POST", "/v1/completions", LET_IN[case], BODY)[0] == 200


@pytest.mark.parametrize("case", NOT_LET_IN)
def test_nobody_else_is_let_in(here, case):
    before = len(here.engine.asked)
    for method, path, body in (("GET", "/v1/models", None), ("POST", "/v1/completions", BODY),
                               ("GET", "/v1/models?api_key=" + KEY, None)):
        code, headers, said = ask(here.plan, method, path, NOT_LET_IN[case], body)
        assert code == 401
        assert headers["content-type"] == "application/json"
        assert headers["www-authenticate"] == "Bearer"
        assert json.loads(said)["error"]["code"] == "invalid_api_key"
    assert len(here.engine.asked) == before, "the engine is not asked"


def test_health_is_for_everyone(here):
    code, _, body = ask(here.plan, path="/health")
    assert (code, json.loads(body)) == (200, {"status": "ok"})


@pytest.mark.parametrize("flags", [[], ["--header", "Authorization: Bearer " + KEY]],
                         ids=["no key", "a key"])
def test_http_2_is_spoken_too(here, flags):
    url = here.plan["public_url"] + "/v1/models"
    said = run(["curl", "--silent", "--insecure", "--http2", "--output", "/dev/null",
                "--write-out", "%{http_version} %{http_code}", url, *flags], timeout_s=30)
    assert said.stdout == "2 %d" % (200 if flags else 401)


# To what.


UNLISTED = ["/", "/metrics", "/invocations", "/tokenize", "/v1", "/v1/", "/v1/models/", "/v1/model",
            "/v1/models/fake", "//v1/models", "/V1/models", "/v1/%6dodels", "/v1/models%00",
            "/v1/../metrics", "/v1/models/../../metrics", "/v1/models;/metrics", "/health/",
            "/docs", "/version", "/v1/chat/completions/batch"]


@pytest.mark.parametrize("headers", [{}, BEARER], ids=["no key", "a key"])
@pytest.mark.parametrize("path", UNLISTED)
def test_a_path_that_is_not_listed_is_nowhere(here, path, headers):
    before = len(here.engine.asked)
    for method in ("GET", "POST", "PUT"):
        code, _, said = ask(here.plan, method, path, headers, BODY if method != "GET" else None)
        assert code == 404
        assert json.loads(said)["error"]["code"] == "not_found"
    assert len(here.engine.asked) == before


@pytest.mark.parametrize(("path", "right"), [
    ("/health", "GET"), ("/v1/models", "GET"), ("/v1/completions", "POST"),
    ("/v1/embeddings", "POST")])
def test_a_listed_path_takes_one_method(here, path, right):
    for method in {"GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "FOO"} - {right}:
        code, headers, said = ask(here.plan, method, path, BEARER, b"")
        assert (code, headers["allow"]) == (405, right)
        assert json.loads(said)["error"]["code"] == "method_not_allowed"


def test_the_engine_reads_the_path_that_was_judged_and_no_key(here):
    seen = []

    def looks(handler, right):
        seen.append((handler.path, dict(handler.headers.items())))
        return right

    here.engine.faults = {"models": looks}
    assert ask(here.plan, headers={
        **BEARER, "X-Api-Key": SECOND, "Upgrade": "h2c", "Connection": "Upgrade",
        "X-Forwarded-For": "203.0.113.9", "Forwarded": "for=203.0.113.9", "X-Else": "kept",
    })[0] == 200
    host = "127.0.0.1:%d" % here.plan["port"]
    for target in ("http://%s/v1/models" % host, "https://%s/v1/models" % host):
        assert " 200 " in raw(here.plan, "GET %s HTTP/1.1\nHost: %s\nX-Api-Key: %s\n\n" % (
            target, host, KEY))
    here.engine.faults = {}
    assert [path for path, _ in seen] == ["/v1/models"] * 3
    sent = {name.lower(): value for name, value in seen[0][1].items()}
    assert not {"authorization", "x-api-key", "upgrade", "forwarded"} & set(sent)
    assert (sent["x-forwarded-for"], sent["x-forwarded-proto"], sent["x-else"]) == (
        "127.0.0.1", "https", "kept")
    assert KEY not in repr(seen)
    assert SECOND not in repr(seen)


HEAD = "POST /v1/completions HTTP/1.1\nHost: a\nAuthorization: Bearer %s\n" % KEY
REFUSED = {
    "a body in chunks": (HEAD + "Transfer-Encoding: chunked\n\n2\n{}\n0\n\n", 411),
    "a body in chunks with a length": (
        HEAD + "Content-Length: 2\nTransfer-Encoding: chunked\n\n2\n{}\n0\n\n", 411),
    "chunks in disguise": (HEAD + "Transfer-Encoding: xchunked\n\n{}", 400),
    "no length": (HEAD + "\n", 411),
    "two lengths": (HEAD + "Content-Length: 2\nContent-Length: 3\n\n{}", 400),
    "a length that is none": (HEAD + "Content-Length: -1\n\n{}", 400),
    "a body over the limit": (HEAD + "Content-Length: %d\n\n{" % TOO_MUCH, 413),
    "a body over all limits": (HEAD + "Content-Length: %d\n\n{" % (2**63 - 1), 413),
    "a body beyond counting": (HEAD + "Content-Length: %d\n\n{" % 10**30, 400),
    "the old version": (HEAD.replace("HTTP/1.1", "HTTP/1.0") + "Content-Length: 2\n\n{}", 505),
    "no version": ("GET /health\n\n", 400),
    "a blank in a header's name": (HEAD + "Content-Length : 2\n\n{}", 400),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_two_servers_could_read_differently_is_refused(here, case):
    before = len(here.engine.asked)
    text, code = REFUSED[case]
    assert raw(here.plan, text).split(" ", 2)[1] == str(code)
    assert len(here.engine.asked) == before


def test_a_body_up_to_the_limit_is_let_through(here):
    body = json.dumps({**ASKED, "prompt": "a" * (8 * 2**20)}).encode()
    assert ask(here.plan, "POST", "/v1/completions", BEARER, body)[0] == 200
    assert len(here.engine.asked[-1][1]["prompt"]) == 8 * 2**20


def test_there_is_no_answer_without_tls(here):
    with socket.create_connection(("127.0.0.1", here.plan["port"]), 30) as plain:
        plain.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert b"HTTP" not in plain.recv(4096)


# Streams.


class Stream:
    """An answer of the engine, piece by piece as the test says."""

    def __init__(self, engine):
        self.engine, self.go = engine, threading.Semaphore(0)
        self.came, self.left = threading.Event(), threading.Event()
        engine.faults = {"stream": self.write}

    def write(self, handler, right):
        handler.head(200, ("Content-Type", "text/event-stream"))
        for number in range(3):
            handler.wfile.write(b"data: %d\n\n" % number)
            assert self.go.acquire(timeout=30)

    def waits(self, handler, right):
        """Until the client is gone."""
        self.came.set()
        handler.connection.settimeout(30)
        with contextlib.suppress(ConnectionResetError):
            assert handler.connection.recv(1) == b""
        self.left.set()

    @contextlib.contextmanager
    def opened(self, plan, key=KEY):
        with open_to(plan) as connection:
            connection.request("POST", "/v1/completions", json.dumps({**ASKED, "stream": True}),
                               {"Authorization": "Bearer " + key})
            yield connection.getresponse()


def test_a_stream_comes_piece_by_piece(here):
    stream = Stream(here.engine)
    with stream.opened(here.plan) as answer:
        for number in range(3):
            # The engine writes the next piece when this one was read.
            assert answer.readline() == b"data: %d\n" % number
            assert answer.readline() == b"\n"
            stream.go.release()
        assert answer.read() == b""
    here.engine.faults = {}


def test_a_client_that_goes_away_ends_the_work_of_the_engine(here):
    stream = Stream(here.engine)
    here.engine.faults = {"completions": stream.waits}
    with open_to(here.plan) as connection:
        connection.request("POST", "/v1/completions", BODY, BEARER)
        assert stream.came.wait(30)
    assert stream.left.wait(30)
    here.engine.faults = {}


def test_keys_change_while_a_stream_runs_and_the_stream_ends_whole(rig, engine, plan):
    rig.bring(rig.wanted(plan, KEY))
    stream = Stream(engine)
    with stream.opened(plan) as answer:
        assert answer.readline() == b"data: 0\n"
        old = rig.workers()
        rig.bring(rig.wanted(plan, SECOND))
        assert (status(plan, KEY), status(plan, SECOND)) == (401, 200)
        rig.bring(rig.wanted(plan, SECOND, WRONG))
        assert [status(plan, one) for one in (KEY, SECOND, WRONG)] == [401, 200, 200]
        assert old <= rig.workers(), "the stream's own process goes on"
        for _ in range(3):
            stream.go.release()
        assert answer.read() == b"\ndata: 1\n\ndata: 2\n\n"
    until(lambda: not old & rig.workers())
    assert rig.reasons(rig.wanted(plan, SECOND, WRONG)) == []


def test_an_engine_that_moved_is_reached_without_a_break(rig, engine, plan):
    rig.bring(rig.wanted(plan))
    stream = Stream(engine)
    with serving(model="next") as url, stream.opened(plan) as answer:
        moved = dict(plan, engine_port=url.engine.server_address[1])
        assert answer.readline() == b"data: 0\n"
        rig.bring(rig.wanted(moved))
        assert json.loads(ask(plan, headers=BEARER)[2])["data"] == [{"id": "next"}]
        for _ in range(3):
            stream.go.release()
        assert answer.read() == b"\ndata: 1\n\ndata: 2\n\n"


def test_an_engine_that_is_away_is_said_as_the_api_says_errors(rig):
    plan = way_in_plan(free_port(), free_port())
    rig.bring(rig.wanted(plan))
    code, headers, said = ask(plan, path="/health")
    assert (code, headers["content-type"]) == (503, "application/json")
    assert json.loads(said)["error"]["code"] == "service_unavailable"


# Certificates.


@pytest.fixture
def authority(tmp_path):
    """Makes certificates for names, of an authority of its own whose certificate is ``ca``."""
    def openssl(*flags):
        ran = run(["openssl", *flags], timeout_s=30)
        assert ran.ok, ran.complaint()

    def make(name, days=90):
        key, request, crt = (str(tmp_path / (name + "." + one)) for one in ("key", "csr", "crt"))
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout",
                key, "-out", request, "-subj", "/CN=" + name, "-addext",
                "subjectAltName=DNS:" + name)
        openssl("x509", "-req", "-in", request, "-CA", make.ca, "-CAkey", str(tmp_path / "ca.key"),
                "-CAcreateserial", "-days", str(days), "-copy_extensions", "copy", "-out", crt)
        return crt, key

    make.ca = str(tmp_path / "ca.crt")
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-keyout", str(tmp_path / "ca.key"), "-out", make.ca, "-subj", "/CN=ca")
    return make


def test_a_certificate_that_is_given_is_shown_and_a_renewed_one_is_taken(rig, plan, authority):
    crt, key = authority("llm.example.org")
    plan.update(tls="given", tls_certificate=crt, tls_key=key)
    wanted = rig.wanted(plan)
    rig.bring(wanted)
    client = trusting(pathlib.Path(authority.ca).read_text(), "llm.example.org")
    assert ask(plan, headers=BEARER, context=client)[0] == 200
    assert rig.reasons(wanted) == []
    assert rig.prove(plan) == []
    first = rig.fingerprint()
    assert first in run(["openssl", "x509", "-in", crt, "-noout", "-fingerprint",
                         "-sha256"]).stdout

    authority("llm.example.org")
    assert rig.reasons(wanted) == [
        "the certificate of its way in is not what is in %s" % crt]
    assert rig.digests(plan)["certificate"] == rig.reasons(wanted)[0]
    rig.bring(wanted)
    assert rig.fingerprint() != first
    assert rig.prove(plan) == []
    assert ask(plan, headers=BEARER, context=client)[0] == 200


def test_a_certificate_that_is_given_and_ends_soon_is_served_and_said(rig, plan, authority):
    crt, key = authority("llm.example.org", days=9)
    plan.update(tls="given", tls_certificate=crt, tls_key=key)
    rig.bring(rig.wanted(plan))
    assert (rig.reasons(rig.wanted(plan)), rig.prove(plan)) == ([], [])
    [said] = rig.warnings(plan)
    assert (said["id"], said["severity"]) == ("way-in-certificate-ends", "warning")
    assert crt in said["found"]


def test_a_self_signed_certificate_names_the_address_and_the_host_and_stays(rig, plan):
    rig.bring(rig.wanted(plan))
    assert rig.warnings(plan) == []
    certificate = rig.certificate()
    assert set(certificate["names"]) == {"127.0.0.1", socket.gethostname()}
    shown = pathlib.Path(rig.folder, way_in.CERTIFICATE).read_text().partition("-----BEGIN P")[0]
    assert ask(plan, headers=BEARER, context=trusting(shown))[0] == 200
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(plan, context=trusting(shown, "llm.example.org"))
    rig.bring(rig.wanted(plan, SECOND))
    assert rig.certificate() == certificate


def test_a_self_signed_certificate_is_made_anew_where_it_does_not_serve(rig, plan, monkeypatch):
    monkeypatch.setattr(way_in, "DAYS", way_in.RENEW_DAYS - 1)
    rig.bring(rig.wanted(plan))
    assert rig.reasons(rig.wanted(plan)) == ["the certificate of its way in ends within 30 days"]
    monkeypatch.undo()
    rig.bring(rig.wanted(plan))
    assert rig.reasons(rig.wanted(plan)) == []
    elsewhere = dict(plan, bind="::1")
    assert rig.certificate_reasons(elsewhere) == [
        "the certificate of its way in does not name ::1"]
    monkeypatch.setattr(socket, "gethostname", lambda: "llm.example.org")
    assert rig.certificate_reasons(plan) == [
        "the certificate of its way in does not name llm.example.org"]
    first = rig.fingerprint()
    rig.bring(rig.wanted(plan))
    assert rig.certificate_reasons(plan) == []
    assert rig.fingerprint() != first


def test_a_certificate_that_was_given_is_not_taken_for_one_of_ours(rig, plan, authority):
    crt, key = authority("llm.example.org")
    rig.bring(rig.wanted(dict(plan, tls="given", tls_certificate=crt, tls_key=key)))
    given = rig.fingerprint()
    assert rig.reasons(rig.wanted(plan)) == [
        "its way in has a certificate that is not wanted any more"]
    rig.bring(rig.wanted(plan))
    assert rig.fingerprint() != given
    assert rig.prove(plan) == []


def test_every_address_of_a_host_may_be_served(rig, plan):
    for bind in ("0.0.0.0", "::"):
        everywhere = dict(plan, bind=bind)
        rig.bring(rig.wanted(everywhere))
        assert (rig.reasons(rig.wanted(everywhere)), rig.prove(everywhere)) == ([], [])
        assert {"127.0.0.1", "::1", "localhost"} <= set(rig.certificate()["names"])
        assert status(plan) == 200


# What cannot be, and what was there before goes on.


BAD = {
    "a word that HAProxy does not know": lambda wanted, tmp: wanted.update(
        config=wanted["config"].replace("timeout connect", "timeout conect")),
    "no key": lambda wanted, tmp: wanted.update(keys=[]),
    "a certificate that is not there": lambda wanted, tmp: wanted["plan"].update(
        tls="given", tls_certificate=str(tmp / "none.pem"), tls_key=str(tmp / "none.key")),
    "a certificate that is none": lambda wanted, tmp: wanted["plan"].update(
        tls="given", tls_certificate=str(tmp / "bad"), tls_key=str(tmp / "bad")),
    "another certificate's key": lambda wanted, tmp: wanted["plan"].update(
        tls="given", tls_certificate=str(tmp / "a.crt"), tls_key=str(tmp / "b.key")),
    "an address of another host": lambda wanted, tmp: wanted["plan"].update(bind="192.0.2.1"),
}
SAYS = {
    "a word that HAProxy does not know": "conect",
    "no key": "Set api_key",
    "a certificate that is not there": "none.pem: there is no such file",
    "a certificate that is none": "unable to load",
    "another certificate's key": "inconsistencies between private key and certificate",
    "an address of another host": "it is no address of this host",
}


@pytest.mark.parametrize("case", BAD)
def test_what_would_not_run_is_refused_and_the_old_way_in_goes_on(
        rig, plan, tmp_path, authority, case):
    authority("a")
    authority("b")
    (tmp_path / "bad").write_text("no certificate\n")
    rig.bring(rig.wanted(plan))
    files, workers = rig.names(), rig.workers()
    wanted = rig.wanted(dict(plan), SECOND)
    BAD[case](wanted, tmp_path)
    for attempt in (rig.check, rig.bring):
        with pytest.raises(WayInError) as refused:
            attempt(wanted)
        assert SAYS[case] in str(refused.value)
        assert KEY not in str(refused.value)
    assert (rig.names(), rig.workers()) == (files, workers)
    assert set(os.listdir(rig.folder)) == {*files, way_in.STARTED, "haproxy.log"}
    assert status(plan) == 200
    assert rig.prove(plan) == []


def test_a_port_of_somebody_else_is_not_shared(rig, plan):
    with socket.socket() as taken:
        # HAProxy could listen there as well, and would get every second client.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", plan["port"]))
        taken.listen()
        with pytest.raises(WayInError) as refused:
            rig.bring(rig.wanted(plan))
    assert "held by pid %d" % os.getpid() in str(refused.value)
    assert rig.manager.status(rig.service)["state"] == "absent"
    assert not rig.there()


def test_what_is_tried_first_changes_nothing(rig, plan):
    rig.check(rig.wanted(plan))
    assert not rig.there()
    assert rig.manager.status(rig.service)["state"] == "absent"


def test_a_change_that_fails_later_is_put_back(rig, plan):
    """As a switch does it; the service's own definition changes too, so it is started again."""
    wanted = rig.wanted(plan)
    rig.bring(wanted)
    files = rig.names()
    changed = rig.wanted(plan, SECOND)
    changed["definition"] += "stopwaitsecs=31\n"
    with pytest.raises(ZeroDivisionError), Transaction(
            os.path.join(rig.root, "journal"), "endpoint-chat", rig.follow) as change:
        for path in rig.files():
            change.snapshot(path)
        rig.bring(changed)
        assert (status(plan, KEY), status(plan, SECOND)) == (401, 200)
        raise ZeroDivisionError
    assert rig.names() == files
    assert (status(plan, KEY), status(plan, SECOND)) == (200, 401)
    assert rig.reasons(wanted) == []


def test_what_was_removed_is_put_back(rig, plan):
    wanted = rig.wanted(plan)
    rig.bring(wanted)
    with pytest.raises(ZeroDivisionError), Transaction(
            os.path.join(rig.root, "journal"), "endpoint-chat", rig.follow) as change:
        for path in rig.files():
            change.snapshot(path)
        rig.remove()
        raise ZeroDivisionError
    assert status(plan) == 200
    assert rig.reasons(wanted) == []


# What is there, and why it is not as wanted.


def test_nothing_is_known_of_a_way_in_that_is_not_there(rig, plan):
    assert not rig.there()
    assert (rig.digests(), rig.fingerprint(), rig.certificate()) == ({}, None, None)
    assert rig.reasons(rig.wanted(plan)) == ["it has no way in yet"]
    assert rig.reasons(None) == []
    assert rig.to_remove() == []
    rig.remove()
    rig.follow()
    assert rig.manager.daemon_pid() is None


def test_a_way_in_is_told_by_what_it_is_made_of(rig, plan):
    wanted = rig.wanted(plan, SECOND, KEY)
    rig.bring(wanted)
    right = decided.way_in_digests(wanted["config"], wanted["definition"], wanted["keys"])
    assert rig.digests(plan) == right
    assert rig.digests()["certificate"] == "not known whom it is for", "there is no passport"
    for changes in ({"way_in": False}, {"tls": None}, {"bind": ["::"]}, {"tls_key": 7}):
        assert rig.digests({**plan, **changes})["certificate"] == "not known whom it is for"
    assert "/dev/zero: there is no such file" in rig.digests(
        dict(plan, tls="given", tls_certificate="/dev/zero"))["certificate"]
    assert rig.reasons(None) == ["it has a way in and should not"]
    for key, said in (("config", "the configuration of its way in is not the plan's"),
                      ("definition", "the service of its way in is not the plan's"),
                      ("keys", "its keys are not those that are wanted")):
        other = {**wanted, key: wanted[key][:-1]}
        assert rig.reasons(other) == [said]
        assert rig.digests(plan) != decided.way_in_digests(
            other["config"], other["definition"], other["keys"])
    os.chmod(os.path.join(rig.folder, way_in.KEYS), 0o644)
    assert rig.reasons(wanted) == [
        "%s can be read by others" % os.path.join(rig.folder, way_in.KEYS)]
    os.unlink(os.path.join(rig.folder, way_in.CERTIFICATE))
    assert "its way in has no certificate" in rig.reasons(wanted)
    rig.bring(wanted)
    assert rig.reasons(wanted) == []


def test_a_passport_keeps_what_brings_a_way_in_back_and_no_key(rig, plan):
    wanted = rig.wanted(plan)
    rig.bring(wanted)
    kept = json.loads(json.dumps(rig.of_a_passport(wanted)))
    assert kept["certificate"] == rig.fingerprint()
    assert KEY not in repr(kept)
    assert wanted["keys"][0] not in repr(kept)
    rig.bring(rig.wanted(plan, SECOND))
    back = rig.from_a_passport(kept)
    assert (back["config"], back["definition"]) == (wanted["config"], wanted["definition"])
    rig.bring(back)
    assert (status(plan, KEY), status(plan, SECOND)) == (401, 200), "keys are those of today"
    assert rig.from_a_passport(None) is None
    rig.remove()
    with pytest.raises(WayInError, match="site.yml"):
        rig.from_a_passport(kept)


PROVED = {
    "health": lambda config: config.replace("path_open path -m str /health",
                                            "path_open path -m str /none"),
    "open": lambda config: config.replace("unless path_open or key_good",
                                          "unless path_open or key_good or path_get"),
    "unlisted": lambda config: config.replace("path -m str", "path -m str /metrics"),
}


@pytest.mark.parametrize("case", PROVED)
def test_the_proof_finds_a_way_in_that_lets_in_whom_it_should_not(rig, plan, case):
    wanted = rig.wanted(plan)
    changed = PROVED[case](wanted["config"])
    assert changed != wanted["config"]
    rig.bring(dict(wanted, config=changed))
    found = rig.prove(plan)
    assert [one["id"] for one in found] == ["way-in-" + case]
    assert found[0]["severity"] == "fatal"
    assert plan["public_url"] in found[0]["subject"]


def test_a_proof_of_the_endpoint_asks_its_way_in_without_a_right_key(rig, plan, engine):
    wanted = rig.wanted(plan)
    rig.bring(wanted)
    served = dict(plan, name="chat", engine="llama_cpp", extra_args=[],
                  url="http://127.0.0.1:%d" % engine.server_address[1],
                  model={"served_name": engine.model, "chat_template": True})
    [request] = proof.smoke_requests([served], rig.root)
    checks = [("keys", True), ("keys", False)]
    for text, expected in zip((wanted["config"], PROVED["open"](wanted["config"])), checks):
        rig.bring(dict(wanted, config=text))
        verdict = smoke.prove(smoke.of_request(request, 30))
        assert expected in [(one["id"], one["passed"]) for one in verdict["checks"]]
        assert verdict["passed"] is expected[1]


def test_the_proof_finds_another_certificate_and_nobody_there(rig, plan):
    rig.bring(rig.wanted(plan))
    path = os.path.join(rig.folder, way_in.CERTIFICATE)
    shutil.copy(path, path + ".old")
    other = way_in._self_signed(rig.folder, plan)
    paths.write(path, other, mode=0o600)
    assert [one["id"] for one in rig.prove(plan)] == ["way-in-tls"]
    os.rename(path + ".old", path)
    assert rig.prove(plan) == []
    assert [one["id"] for one in rig.prove(dict(plan, port=free_port()))] == ["way-in-tls"]


# Secrets, and what runs.


def test_no_key_lies_anywhere_in_clear_nor_is_seen_in_a_process(rig, plan):
    rig.bring(rig.wanted(plan, KEY, SECOND))
    assert (status(plan, KEY), status(plan, SECOND), status(plan, WRONG)) == (200, 200, 401)
    read = [path.read_bytes() for path in pathlib.Path(rig.root).rglob("*") if path.is_file()]
    pids = processes.ways_in(rig.root)["chat"]
    assert len(pids) == 2
    read += [pathlib.Path("/proc", str(pid), name).read_bytes()
             for pid in pids for name in ("cmdline", "environ")]
    assert any(hashlib.sha256(KEY.encode()).hexdigest().encode() in one for one in read)
    for key in (KEY, SECOND, WRONG):
        assert not any(key.encode() in one for one in read)
    for name in (way_in.KEYS, way_in.CERTIFICATE):
        assert os.stat(os.path.join(rig.folder, name)).st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has root to give up")
def test_what_reads_from_the_network_is_not_root(rig, plan):
    rig.bring(rig.wanted(plan))
    [worker] = rig.workers()
    assert processes.user_of(worker) == "haproxy"


def test_a_way_in_is_no_engine_and_holds_its_port(here):
    assert processes.engines(here.root) == {}
    holder = processes.holders([here.plan["port"]])[here.plan["port"]]
    assert (holder["endpoint"], holder["root"]) == ("chat", here.root)


def test_a_way_in_that_is_killed_comes_back(rig, plan):
    wanted = rig.wanted(plan)
    rig.bring(wanted)
    first = rig.manager.status(rig.service)["pid"]
    kill(first)
    until(lambda: rig.manager.status(rig.service)["pid"] not in (None, first) and rig.workers())
    assert status(plan) == 200
    assert rig.reasons(wanted) == []
    rig.bring(rig.wanted(plan, SECOND))
    assert (status(plan, KEY), status(plan, SECOND)) == (401, 200)


def test_what_a_killed_supervisord_left_lets_nobody_in_any_more(rig, plan):
    rig.bring(rig.wanted(plan))
    left = set(processes.ways_in(rig.root)["chat"])
    os.kill(rig.manager.daemon_pid(), signal.SIGKILL)
    until(lambda: rig.manager.daemon_pid() is None)
    assert status(plan) == 200
    assert rig.reasons(rig.wanted(plan)) == ["its way in is absent"]
    rig.bring(rig.wanted(plan, SECOND))
    assert not left & set(processes.ways_in(rig.root)["chat"])
    assert {status(plan, KEY) for _ in range(8)} == {401}
    assert status(plan, SECOND) == 200


def test_a_way_in_that_is_removed_leaves_nothing(rig, plan):
    rig.bring(rig.wanted(plan))
    told = rig.to_remove()
    assert ["process" in one for one in told] == [True, True, False, False]
    assert told[-1] == "what we wrote in %s" % rig.folder
    rig.remove()
    assert (rig.to_remove(), rig.there(), processes.ways_in(rig.root)) == ([], False, {})
    assert not os.path.exists(rig.folder)
    assert rig.manager.status(rig.service)["state"] == "absent"
    with pytest.raises(ConnectionRefusedError):
        ask(plan)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd's own tool")
def test_the_unit_is_one_that_systemd_takes(tmp_path):
    unit = tmp_path / "firstlight-way-in-chat.service"
    unit.write_text(way_in_wanted("/var/lib/a root", way_in_plan(8000, 18000), [KEY],
                                  "systemd")["definition"])
    said = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True,
                          check=False, timeout=60)
    assert [line for line in said.stderr.splitlines() if unit.name in line] == []
    assert said.returncode == 0, said.stderr
