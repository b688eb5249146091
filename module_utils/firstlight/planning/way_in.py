# SPDX-License-Identifier: Apache-2.0
"""The way in: what stands between an engine and the network, decided.

It is HAProxy with TLS, the keys and a list of paths. The engine behind it listens on loopback, on
an inner port.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from typing import Any, Dict, Iterable, List, Optional, Tuple

from ..findings import Finding, finding

PROGRAM = "/usr/sbin/haproxy"
"""Where distributions put it."""
OPENSSL = "/usr/bin/openssl"
USER = "haproxy"
"""Whom the distribution's package makes for it."""
# It has http_auth_bearer() from 2.5 on; 2.6 is the oldest that we tried.
OLDEST = (2, 6)
LOOPBACK = ("127.0.0.1",)
"""On these addresses an engine listens itself."""
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - read, not bound
"""Addresses that are every one of a host, and where the host itself reaches them."""
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
"""The name of an endpoint."""
PREFIX = "way-in-"
"""Its service is named after the endpoint with this before it."""
CONFIG, KEYS, CERTIFICATE = "haproxy.cfg", "keys", "certificate.pem"
"""In its folder: what it is set to, who may in, and what clients see, with its key after it."""
INNER_OFFSET = 10000

MAX_BODY = 32 * 2**20
"""Bytes of a request. A prompt of a million tokens is 4 MiB; pictures come as text in it."""
MAX_CONNECTIONS = 1000
TIMEOUTS = {
    # Until a request's head is there, until a small body is, and for a client that takes nothing.
    "request": "10s", "body": "30s", "client": "60s", "idle": "60s", "connect": "5s",
    # An engine may think for long before its first token.
    "server": "1h",
}
PLANNED = ("bind", "port", "public_url", "tls", "tls_certificate", "tls_key", "way_in")
"""What of a plan a way in is made by on its host."""
KEY = re.compile(r"[!-~]{16,}")


def service_name(name: str) -> str:
    """The way in to an endpoint, as its service manager knows it."""
    return PREFIX + name


def folder(root: str, name: str) -> str:
    """Where the files of a way in lie on a host."""
    return posixpath.join(root, "endpoints", name, "way_in")


def files(root: str, name: str) -> List[str]:
    """Those files, there or not."""
    return [posixpath.join(folder(root, name), one) for one in (CONFIG, KEYS, CERTIFICATE)]


def wanted(bind: Any) -> bool:
    """Whether an endpoint on this address needs a way in."""
    return bind not in LOOPBACK


def keys_of(value: Any) -> Optional[List[str]]:
    """The keys of an ``api_key``: a text or a list of texts; ``None`` for what is neither."""
    if value is None:
        return []
    keys = [value] if isinstance(value, str) else value
    if not isinstance(keys, (list, tuple)) or not all(isinstance(one, str) for one in keys):
        return None
    return [str(one) for one in keys]


def endpoint_keys(asked: Any) -> Dict[str, List[str]]:
    """What each endpoint's keys are known by on a host: SHA-256, in hexadecimal digits.

    :param asked: ``inference_endpoints`` as the user wrote it. What is wrong in it is skipped: that
        is for :func:`.requests.normalise` to say.
    :returns: by the endpoint's name, sorted; never a key itself.
    """
    found: Dict[str, List[str]] = {}
    for entry in asked if isinstance(asked, (list, tuple)) else []:
        name = entry.get("name") if isinstance(entry, dict) else None
        if isinstance(name, str):
            keys = [one for one in keys_of(entry.get("api_key")) or [] if KEY.fullmatch(one)]
            found[str(name)] = sorted({hashlib.sha256(one.encode()).hexdigest() for one in keys})
    return found


def inner_ports(port: int, engine_port: Optional[int]) -> Tuple[int, ...]:
    """Ports on which the engine behind a way in may listen: the one that is asked for, or two.

    Two, so that a new engine comes up beside the old one.
    """
    if engine_port is not None:
        return (engine_port,)
    first = port + INNER_OFFSET if port + INNER_OFFSET <= 65534 else port - INNER_OFFSET
    return (first, first + 1)


def endpoint_ports(requests: List[Dict[str, Any]]) -> List[int]:
    """Every port that these requests take or may take, sorted: whose holders are to be known."""
    found = set()
    for request in requests:
        port, inner = request["port"], request["engine_port"]
        if type(port) is int:
            found.add(port)
            if wanted(request["bind"]) and (inner is None or type(inner) is int):
                found.update(inner_ports(port, inner))
    return sorted(found)


def address(bind: str, port: int) -> str:
    """An address and a port, as URLs and HAProxy have them."""
    return "%s:%d" % ("[%s]" % bind if ":" in bind else bind, port)


def reached(plan: Dict[str, Any]) -> Tuple[str, int]:
    """Address and port where the host itself reaches the way in of a plan."""
    bind = str(plan["bind"])
    return EVERYWHERE.get(bind, bind), int(plan["port"])


def paths_of(engine: str, rows: List[Dict[str, Any]]) -> Dict[str, List[str]]:
    """What is let through to an engine.

    :param rows: ``catalog/way_in_paths.yml``.
    :returns: ``{open: paths without a key, GET: …, POST: …}``, sorted.
    """
    mine = [row for row in rows if row["engine"] == engine]
    found = {method: sorted(row["path"] for row in mine if row["method"] == method)
             for method in ("GET", "POST")}
    found["open"] = sorted(row["path"] for row in mine if not row["key"])
    return found


def way_in_service(plan: Dict[str, Any], rows: List[Dict[str, Any]], root: str, manager: str,
                   uid: int) -> Dict[str, Any]:
    """What the templates of a way in are rendered from.

    :param plan: a plan whose ``way_in`` is true; for any other there is nothing: ``{}``.
    :param rows: ``catalog/way_in_paths.yml``.
    :param root: ``firstlight_root``.
    :param manager: what keeps it running, ``systemd`` or ``supervisor``.
    :param uid: whom the modules run as on the host.
    """
    if not plan["way_in"]:
        return {}
    at = folder(root, plan["name"])
    listens = address(plan["bind"], plan["port"])
    return {
        "name": service_name(plan["name"]),
        "endpoint": plan["name"],
        "plan": {key: plan[key] for key in PLANNED},
        "folder": at,
        "log": posixpath.join(at, "haproxy.log"),
        # A folder and not the whole path of each file: a root may have a blank in it.
        "argv": [PROGRAM, *(["-Ws"] if manager == "systemd" else ["-W", "-db"]),
                 "-C", at, "-f", "haproxy.cfg"],
        "check": [PROGRAM, "-C", at, "-c", "-q", "-f", "haproxy.cfg"],
        # `::` is every address, those of IPv4 included, whatever the host's own default.
        "bind": listens + (" v4v6" if plan["bind"] == "::" else ""),
        "url": plan["public_url"],
        "engine": address("127.0.0.1", plan["engine_port"]),
        "user": USER if uid == 0 else "",
        "paths": paths_of(plan["engine"], rows),
        "max_body": MAX_BODY,
        "max_connections": MAX_CONNECTIONS,
        "timeouts": TIMEOUTS,
    }


def way_in_digests(config: Optional[str], definition: Optional[str], keys: Iterable[str]
                   ) -> Dict[str, str]:
    """A way in that runs and is as wanted, in short: what ``endpoint_info`` says of such a one.

    :param config: text of ``haproxy.cfg``.
    :param definition: text of its unit or supervisor program.
    :param keys: as :func:`endpoint_keys` gives them.
    """
    made = {"config": config or "", "definition": definition or "",
            "keys": "\n".join(sorted(keys))}
    return dict({name: hashlib.sha256(text.encode()).hexdigest() for name, text in made.items()},
                state="up", certificate="")


def way_in_wanted(service: Dict[str, Any], config: str, definition: str, keys: Iterable[str]
                  ) -> Dict[str, Any]:
    """A way in as a host is to have it.

    :param service: as :func:`way_in_service` gives it; the texts are rendered from it.
    :param config: text of ``haproxy.cfg``.
    :param definition: text of its unit or supervisor program.
    :param keys: as :func:`endpoint_keys` gives them.
    :returns: ``{plan, config, definition, keys, digests}``; the last as ``endpoint_info`` has it
        where all is as wanted.
    """
    known = sorted(keys)
    return {"plan": service["plan"], "config": config, "definition": definition, "keys": known,
            "digests": way_in_digests(config, definition, known)}


def packages_missing(state: Dict[str, Any]) -> List[str]:
    """Packages of the distribution that a way in needs and the host lacks.

    :param state: what ``endpoint_info`` returned.
    """
    return [name for name in ("haproxy", "openssl") if not state.get(name)]


def against_host(requests: List[Dict[str, Any]], state: Dict[str, Any]) -> List[Finding]:
    """What of a host stops a way in.

    :param state: what ``endpoint_info`` returned.
    """
    asked = [one for one in requests if wanted(one["bind"])]
    if not asked:
        return []
    subject = "%s.bind" % asked[0]["where"]
    version = state.get("haproxy")
    missing = packages_missing(state)
    if missing and state["uid"] != 0:
        return [finding(
            "way-in-without-programs", subject, "the host has no %s" % " and no ".join(missing),
            "%s and %s: any address but 127.0.0.1 is served through them" % (PROGRAM, OPENSSL),
            "install the packages %s as root, or leave %s out" % (" and ".join(missing), subject),
            needs_root=True)]
    if version and _numbers(version) < OLDEST:
        return [finding(
            "way-in-haproxy-old", subject, "HAProxy %s" % version,
            "HAProxy %d.%d or later" % OLDEST,
            "bring a later release of the distribution, or leave %s out" % subject)]
    return []


def _numbers(version: str) -> Tuple[int, ...]:
    return tuple(int(one) for one in re.findall(r"\d+", version)[:2])
