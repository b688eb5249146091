# SPDX-License-Identifier: Apache-2.0
"""The way in to an endpoint on its host: HAProxy with TLS, the keys and a list of paths.

It is a second service beside the engine. What it does is in its files; a change of them is tried
first and then taken by a reload, in which no request that is under way is lost.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
import shutil
import socket
import tempfile
import time
from typing import Any, Dict, Iterator, List, Optional

from . import passport, paths, processes, services
from .findings import Finding, finding
from .http_client import certificate, get, pinned
from .let_in import REFUSED, refusals
from .planning import way_in as decided
from .runner import Ran, run

Plan = Dict[str, Any]
Wanted = Dict[str, Any]
"""As :func:`.planning.way_in.way_in_wanted` gives it: ``plan``, of which only ``PLANNED`` is read;
``config`` and ``definition``, the texts of haproxy.cfg and of the unit or program; and ``keys``."""

CONFIG, KEYS, CERTIFICATE = decided.CONFIG, decided.KEYS, decided.CERTIFICATE
# Of the definition by which the service was started. No transaction puts it back: it tells what
# runs, whatever the definition says by now.
STARTED = "started"
# More than what Apple's systems take (825 days) is refused by some clients.
DAYS = 825
ORGANISATION = "Firstlight self-signed"
RENEW_DAYS = 30
START_S = 20.0
UP = ("running", "starting")
UNLISTED = "/metrics"


class WayInError(services.ServiceError):
    """The way in cannot be brought to what is wanted; the message is for the operator."""


class WayIn:
    """The way in to one endpoint.

    :param kind: its service manager, ``systemd`` or ``supervisor``.
    :param root: ``firstlight_root``.
    :param name: of the endpoint.
    :param supervisord: its executable, needed where none runs.
    :param consent: as for :func:`.services.manager`.
    """

    def __init__(self, kind: str, root: str, name: str, supervisord: str = "",
                 consent: bool = False) -> None:
        self.root, self.name = root, name
        self.manager = services.manager(kind, root, supervisord, consent)
        self.service = decided.service_name(name)
        self.folder = decided.folder(root, name)
        self.definition = self.manager.files(self.service)[0]

    def files(self) -> List[str]:
        """What a transaction has to remember before :meth:`bring` or :meth:`remove`."""
        return [*self.manager.files(self.service), *decided.files(self.root, self.name)]

    def observe(self) -> Dict[str, Any]:
        """What is there.

        :returns: ``{state, pid, definition, config, keys}``: what the service manager says, the
            texts, ``None`` where there is none, and SHA-256 of each key, sorted.
        """
        status = self.manager.status(self.service)
        return {
            "state": status["state"], "pid": status["pid"],
            "definition": self._text(self.definition), "config": self._text(self._at(CONFIG)),
            "keys": sorted((self._text(self._at(KEYS)) or "").split()),
        }

    def there(self) -> bool:
        """Whether there is anything of a way in."""
        return any(map(os.path.lexists, self.files()))

    def digests(self, plan: Optional[Plan] = None) -> Dict[str, str]:
        """What is there in short; without a way in, nothing.

        It equals :func:`.planning.way_in.way_in_digests` where it is as wanted.

        :param plan: what the certificate is for; left out, the plan in the passport.
        """
        if not self.there():
            return {}
        found = self.observe()
        if plan is None:
            kept = passport.read(self.root, self.name)
            plan = kept["plan"] if kept else {}
        return dict(
            decided.way_in_digests(found["config"], found["definition"], found["keys"]),
            state="up" if found["state"] in UP else found["state"],
            certificate="; ".join(self.certificate_reasons(plan)) if _is_planned(plan)
            else "not known whom it is for",
        )

    def reasons(self, wanted: Optional[Wanted]) -> List[str]:
        """Why the way in has to be changed; empty when it is as wanted.

        :param wanted: ``None`` where there should be none.
        """
        if wanted is None:
            return ["it has a way in and should not"] if self.there() else []
        found = self.observe()
        if found["definition"] is None:
            return ["it has no way in yet"]
        told = {
            "definition": "the service of its way in is not the plan's",
            "config": "the configuration of its way in is not the plan's",
            "keys": "its keys are not those that are wanted",
        }
        reasons = [told[key] for key in ("definition", "config", "keys")
                   if found[key] != (sorted(wanted[key]) if key == "keys" else wanted[key])]
        reasons += self.certificate_reasons(wanted["plan"])
        reasons += ["%s can be read by others" % path for path in self._secrets() if _is_open(path)]
        if found["state"] not in UP:
            reasons.append("its way in is %s" % found["state"])
        elif not reasons and not _answers(wanted["plan"]):
            reasons.append("nothing answers on %s" % wanted["plan"]["public_url"])
        return reasons

    def certificate_reasons(self, plan: Plan) -> List[str]:
        """Why the certificate has to be replaced; empty when it serves."""
        if plan["tls"] == "given":
            try:
                given = _given(plan)
            except WayInError as problem:
                return [str(problem)]
            return [] if paths.read(self._at(CERTIFICATE)) == given else [
                "the certificate of its way in is not what is in %s" % plan["tls_certificate"]]
        certificate = self.certificate()
        if certificate is None:
            return ["its way in has no certificate"]
        if not certificate["ours"]:
            return ["its way in has a certificate that is not wanted any more"]
        if certificate["expires_soon"]:
            return ["the certificate of its way in ends within %d days" % RENEW_DAYS]
        lacking = [one for one in _must_name(plan) if one not in certificate["names"]]
        return ["the certificate of its way in does not name %s" % ", ".join(lacking)
                ] if lacking else []

    def certificate(self) -> Optional[Dict[str, Any]]:
        """``{fingerprint, names, ours, expires_soon}``, or ``None`` without a certificate.

        What openssl cannot read is neither ours nor about to end, and names nothing.
        """
        fingerprint = self.fingerprint()
        if fingerprint is None:
            return None
        path = self._at(CERTIFICATE)
        said = run([decided.OPENSSL, "x509", "-in", path, "-noout", "-subject",
                    "-ext", "subjectAltName", "-checkend", str(RENEW_DAYS * 86400)])
        subject = re.search(r"^subject=(.*)$", said.stdout, re.MULTILINE)
        names = re.findall(r"(?:DNS|IP Address):([^,\s]+)", said.stdout)
        return {
            "fingerprint": fingerprint,
            "names": [_address(one) for one in names],
            "ours": subject is not None and ORGANISATION in subject.group(1),
            "expires_soon": subject is not None and said.rc == 1,
        }

    def fingerprint(self) -> Optional[str]:
        """SHA-256 of the certificate that clients see, as openssl prints it, or ``None``."""
        der = self._der()
        if der is None:
            return None
        return ":".join("%02X" % one for one in hashlib.sha256(der).digest())

    def check(self, wanted: Wanted) -> None:
        """Try what is wanted beside what runs, and change nothing. Raises as :meth:`bring`."""
        with self._tried(wanted):
            pass

    def bring(self, wanted: Wanted) -> None:
        """Write the files, and have the service follow them.

        What would not run is found before anything that runs is touched.

        :raises WayInError: it cannot run; what is there goes on where nothing was replaced yet.
        :raises OSError: no space, no permission.
        """
        with self._tried(wanted) as aside:
            self._must_be_free(wanted["plan"]["port"])
            for name in (CERTIFICATE, KEYS, CONFIG):
                os.rename(os.path.join(aside, name), self._at(name))
            paths.fsync_folder(self.folder)
        paths.write(self.definition, wanted["definition"].encode())
        self.manager.write_link(self.service)
        self.follow()

    def follow(self) -> None:
        """Make the service do what its files say: start, reload, restart or end.

        :raises WayInError: it does not come up.
        """
        definition = paths.read(self.definition)
        if definition is None:
            if self.manager.status(self.service)["state"] != "absent":
                self.manager.follow(self.service)
            return
        started = hashlib.sha256(definition).hexdigest().encode()
        status = self.manager.status(self.service)
        before: List[int] = []
        if status["state"] in UP and status["pid"] \
                and paths.read(self._at(STARTED)) == started:
            before = processes.children(status["pid"])
            mark = self.manager.log_mark(self.service)
            self.manager.reload(self.service)
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._at(STARTED))
            mark = self.manager.log_mark(self.service)
            self.manager.follow(self.service)
        self._wait_until_up(before, mark)
        paths.write(self._at(STARTED), started, mode=0o600)

    def prove(self, plan: Plan) -> List[Finding]:
        """Ask through it, without a right key: what is wrong with what comes back."""
        der = self._der()
        if der is None:
            return [self._wrong(plan, "certificate", "no certificate in %s" % self._at(CERTIFICATE),
                                "the certificate that clients see")]
        context = pinned(der)
        bind, port = decided.reached(plan)
        try:
            with socket.create_connection((bind, port), 10) as plain, \
                    context.wrap_socket(plain) as peer:
                shown = peer.getpeercert(binary_form=True)
        except (OSError, ValueError) as problem:
            return [self._wrong(plan, "tls", str(problem), "TLS with the certificate in %s"
                                % self._at(CERTIFICATE))]
        if shown != der:
            return [self._wrong(plan, "tls", "another certificate", "the one in %s"
                                % self._at(CERTIFICATE))]
        url, findings = "https://" + decided.address(bind, port), []
        # The engine has answers of these kinds too, and must not have been asked.
        for name, path, status, code in (
                ("health", "/health", 200, ""), ("unlisted", UNLISTED, 404, "not_found")):
            answer = get(url + path, 10, context)
            if answer.status != status or (code and _code(answer.json()) != code):
                findings.append(self._wrong(
                    plan, name, answer.brief(), "HTTP %d%s" % (status, code and " " + code),
                    "GET %s without a key" % path))
        let_in = [one for one in refusals(url, context) if one.answer.status != REFUSED
                  or _code(one.answer.json()) != "invalid_api_key"]
        if let_in:
            findings.append(self._wrong(
                plan, "open", let_in[0].answer.brief(), "HTTP %d invalid_api_key" % REFUSED,
                ", ".join(one.evidence for one in let_in)))
        return findings

    def warnings(self, plan: Plan) -> List[Finding]:
        """What is no reason to put anything back, and to be known."""
        certificate = self.certificate()
        if plan["tls"] != "given" or not certificate or not certificate["expires_soon"]:
            return []
        return [finding(
            "way-in-certificate-ends", "%s.tls_certificate" % self.name,
            "%s ends within %d days" % (plan["tls_certificate"], RENEW_DAYS),
            "a certificate that lasts", "renew it, then run again: the way in takes the file "
            "without a break", severity="warning")]

    def of_a_passport(self, wanted: Wanted) -> Dict[str, Any]:
        """What a passport keeps of a way in, to bring it back: no key and no certificate."""
        plan = wanted["plan"]
        return {"config": wanted["config"], "definition": wanted["definition"],
                "plan": {key: plan[key] for key in decided.PLANNED},
                "certificate": self.fingerprint()}

    def from_a_passport(self, kept: Optional[Dict[str, Any]]) -> Optional[Wanted]:
        """What is wanted again, with the keys of today: those of then may be known to others.

        :raises WayInError: there are no keys today.
        """
        if kept is None:
            return None
        keys = self.observe()["keys"]
        if not keys:
            raise WayInError(
                "What served before had a way in on %s, and its keys are not kept on this host. "
                "Ask for it in inference_endpoints, with its bind and a key, and run site.yml."
                % kept["plan"]["public_url"])
        return {"plan": kept["plan"], "config": kept["config"], "definition": kept["definition"],
                "keys": keys}

    def to_remove(self) -> List[str]:
        """What :meth:`remove` ends and deletes, one line each."""
        pids = processes.ways_in(self.root).get(self.name, [])
        return (["process %d, the way in to %s" % (pid, self.name) for pid in pids]
                + ["file %s" % path for path in self.manager.files(self.service)
                   if os.path.lexists(path)]
                + (["what we wrote in %s" % self.folder] if os.path.isdir(self.folder) else []))

    def remove(self) -> None:
        """End the service and remove its files; without any, nothing happens."""
        if not self.there() and not os.path.isdir(self.folder):
            return
        for path in self.manager.files(self.service):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        self.manager.follow(self.service)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.folder)

    # Files.

    def _at(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def _text(self, path: str) -> Optional[str]:
        content = paths.read(path)
        return None if content is None else content.decode("utf-8", "replace")

    def _secrets(self) -> List[str]:
        return [self._at(KEYS), self._at(CERTIFICATE)]

    def _der(self) -> Optional[bytes]:
        """The certificate that clients see: the first in the file."""
        return certificate(paths.read(self._at(CERTIFICATE)) or b"")

    @contextlib.contextmanager
    def _tried(self, wanted: Wanted) -> Iterator[str]:
        """A folder with files that HAProxy takes, on an address that can be listened on."""
        plan = wanted["plan"]
        if not wanted["keys"]:
            raise WayInError("The way in to %s has no key. Set api_key." % self.name)
        _must_be_ours(plan["bind"], plan["port"])
        os.makedirs(self.folder, mode=0o755, exist_ok=True)
        for left in glob.glob(os.path.join(glob.escape(self.folder), ".new.*")):
            shutil.rmtree(left)
        aside = tempfile.mkdtemp(dir=self.folder, prefix=".new.")
        try:
            self._write(aside, wanted)
            tried = run([decided.PROGRAM, "-C", aside, "-c", "-f", CONFIG], timeout_s=30)
            if not tried.ok:
                raise WayInError("HAProxy refuses the files of the way in to %s, so nothing was "
                                 "changed: %s" % (self.name, _said(tried)))
            yield aside
        finally:
            shutil.rmtree(aside)

    def _write(self, folder: str, wanted: Wanted) -> None:
        """The three files that HAProxy reads."""
        if wanted["plan"]["tls"] == "given":
            certificate = _given(wanted["plan"])
        elif self.certificate_reasons(wanted["plan"]):
            certificate = _self_signed(folder, wanted["plan"])
        else:
            certificate = paths.read(self._at(CERTIFICATE)) or b""
        keys = "".join(one + "\n" for one in sorted(wanted["keys"]))
        paths.write(os.path.join(folder, CERTIFICATE), certificate, mode=0o600)
        paths.write(os.path.join(folder, KEYS), keys.encode(), mode=0o600)
        paths.write(os.path.join(folder, CONFIG), wanted["config"].encode())

    # The service.

    def _must_be_free(self, port: int) -> None:
        """HAProxy would share a port with a process of the same user, and nobody would notice."""
        holder = processes.holders([port]).get(port)
        ours = holder and holder["pid"] in processes.ways_in(self.root).get(self.name, [])
        # One that gave up root may not be seen.
        if holder and not ours and not (
                holder["pid"] is None and self.manager.status(self.service)["pid"]):
            raise WayInError(
                "Port %d, for the way in to %s, is held by pid %s of %s: %s. Stop that, or change "
                "port." % (port, self.name, holder["pid"], holder["user"], holder["command"]))

    def _wait_until_up(self, before: List[int], mark: Any) -> None:
        """Until HAProxy has a worker that is none of these.

        It has one when it has read its files and listens.
        """
        deadline = time.monotonic() + START_S
        while True:
            status = self.manager.status(self.service)
            if status["pid"] and set(processes.children(status["pid"])) - set(before):
                return
            if status["state"] in ("failed", "absent") or time.monotonic() > deadline:
                raise WayInError("The way in to %s does not come up (%s %s). Its log ends:\n%s" % (
                    self.name, status["state"], status["detail"],
                    self.manager.log_tail(self.service, mark=mark)))
            time.sleep(0.05)

    def _wrong(self, plan: Plan, name: str, found: str, wanted: str,
               evidence: str = "") -> Finding:
        return finding(
            "way-in-" + name, "%s on %s" % (self.name, plan["public_url"]), found, wanted,
            "read the log of %s; the endpoint must not be used as it is" % self.service,
            severity="fatal", evidence=evidence)


def _is_planned(plan: Plan) -> bool:
    """Whether a plan, which may be of a passport, says what its certificate is for."""
    return plan.get("way_in") is True and all(
        isinstance(plan.get(key), str) for key in ("bind", "tls", "tls_certificate", "tls_key"))


def _code(said: Any) -> Any:
    """The code of an error, as the API says it."""
    error = said.get("error") if isinstance(said, dict) else None
    return error.get("code") if isinstance(error, dict) else None


def _is_open(path: str) -> bool:
    """Whether anyone but its owner may read or write a file."""
    try:
        return bool(os.stat(path).st_mode & 0o077)
    except FileNotFoundError:
        return False


def _answers(plan: Plan) -> bool:
    try:
        with socket.create_connection(decided.reached(plan), 5):
            return True
    except OSError:
        return False


def _must_be_ours(bind: str, port: int) -> None:
    """HAProxy that cannot listen closes what it has for a while, so that is tried before.

    :raises WayInError: no interface has the address, or this user may not listen on the port.
    """
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    for at, what in ((0, "bind: it is no address of this host"),
                     (port, "port: this user may not listen there")):
        try:
            with socket.socket(family) as tried:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                tried.bind((bind, at))
        except OSError as problem:
            # What holds the port is another matter; it may be the way in itself.
            if at == 0 or isinstance(problem, PermissionError):
                raise WayInError("Nothing can listen on %s (%s). Change %s." % (
                    decided.address(bind, port), problem.strerror, what)) from None


# Certificates.


def _given(plan: Plan) -> bytes:
    """The certificate with its chain, then its key, as HAProxy reads them.

    :raises WayInError: one of the files cannot be read.
    """
    content = b""
    for path in (plan["tls_certificate"], plan["tls_key"]):
        try:
            # Not a device, which would be read for ever.
            found = paths.read(path) if os.path.isfile(path) else None
        except OSError as problem:
            raise WayInError("%s: %s" % (path, problem.strerror)) from None
        if not found:
            raise WayInError("%s: %s" % (path, "there is no such file" if found is None
                                         else "it is empty"))
        content += found.rstrip(b"\n") + b"\n"
    return content


def _self_signed(folder: str, plan: Plan) -> bytes:
    """A certificate for the names and addresses of this host, and its new key.

    :raises WayInError: openssl does not make one.
    """
    names = _must_name(plan)
    if plan["bind"] in decided.EVERYWHERE:
        names = list(dict.fromkeys([*names, "localhost", "127.0.0.1", "::1", *_own_addresses()]))
    alternative = ",".join("%s:%s" % ("IP" if _is_address(one) else "DNS", one) for one in names)
    key, certificate = (os.path.join(folder, "self." + one) for one in ("key", "crt"))
    ran = run([decided.OPENSSL, "req", "-x509", "-newkey", "ec", "-pkeyopt",
               "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out", certificate,
               "-days", str(DAYS), "-subj", "/O=%s/CN=%s" % (ORGANISATION, names[0][:64]),
               "-addext", "subjectAltName=" + alternative,
               "-addext", "extendedKeyUsage=serverAuth"], timeout_s=30)
    if not ran.ok:
        raise WayInError("No certificate can be made: %s" % _said(ran))
    return b"".join(paths.read(one) or b"" for one in (certificate, key))


def _must_name(plan: Plan) -> List[str]:
    """What a self-signed certificate has to name: the address, where it is one, and the host."""
    host = socket.gethostname()
    named = [host] if re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", host) else []
    served = [] if plan["bind"] in decided.EVERYWHERE else [plan["bind"]]
    return served + named or ["localhost"]


def _own_addresses() -> List[str]:
    """The addresses from which this host would reach others; nothing is sent."""
    found = []
    for family, other in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as tried:
            tried.connect((other, 9))
            found.append(tried.getsockname()[0])
    return found


def _is_address(name: str) -> bool:
    return ":" in name or re.fullmatch(r"[0-9.]+", name) is not None


def _address(name: str) -> str:
    """An address as Python writes it; openssl writes all of an IPv6 address's groups."""
    if ":" not in name:
        return name
    with contextlib.suppress(OSError):
        return socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, name))
    return name


def _said(ran: Ran) -> str:
    """What a tool said, at most a screen of it."""
    return ran.complaint()[-2000:]
