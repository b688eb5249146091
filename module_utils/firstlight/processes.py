# SPDX-License-Identifier: Apache-2.0
"""Who runs on this host: holders of ports, and the processes of our own endpoints.

Every engine of ours carries ``FIRSTLIGHT_ROOT``, ``FIRSTLIGHT_ENDPOINT`` and ``FIRSTLIGHT_PLAN``
in its environment, so it is known for ours even when whatever started it is gone. What writes its
title over the beginning of its environment, as vLLM's EngineCore does where ``SPT_NOENV`` does not
keep it from that, is known by its parent or by its process group, in which vLLM's resource tracker
stays as long as it does. A way in carries ``FIRSTLIGHT_ROOT`` and ``FIRSTLIGHT_WAY_IN``, and is no
engine.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import signal
import time
from typing import Any, Dict, Iterable, List, Optional, Set, Tuple

from .planning.way_in import NAME, PREFIX

LISTEN, ESTABLISHED = "0A", "01"
MAX_COMMAND = 200
# Words after which, or after whose `=`, a command line may carry a secret; and secrets by their
# look. Anyone on the host can read them there; reports and logs must not spread them.
SECRET_NAME = re.compile(r"key|token|secret|passw|credential|auth", re.IGNORECASE)
SECRET = re.compile(r"(hf|sk|ghp|glpat)[_-][\w-]{8,}|\w+://[^/@\s]*:[^/@\s]*@\S*"
                    # and in a script or a header that is one word of the command line
                    r"|(?i:bearer|basic) +\S+"
                    r"|(?i:[\w-]*(key|token|secret|passw|credential)[\w-]*)"
                    r"([\"']? *[:=] *[\"']?| +)[^\s\"']+")
HIDDEN = "***"
TABLES = ("net/tcp", "net/tcp6")


def holders(ports: Iterable[int], proc: str = "/proc") -> Dict[int, Dict[str, Any]]:
    """Who listens on each of these TCP ports; ports nobody listens on are left out.

    A holder is ``{pid, command, user, endpoint, root}``. ``pid`` and ``command`` are ``None``
    where this user may not see another user's process; ``user`` is then still known.
    ``endpoint`` and ``root`` are set when the holder is an engine of ours, or its way in.
    """
    wanted = set(ports)
    sockets: Dict[str, Tuple[int, int]] = {}
    for table in TABLES:
        for port, inode, uid in _listening(os.path.join(proc, table)):
            if port in wanted:
                sockets[inode] = (port, uid)
    if not sockets:
        return {}
    found: Dict[int, Dict[str, Any]] = {
        port: {"pid": None, "command": None, "user": _user(uid), "endpoint": None, "root": None}
        for port, uid in sockets.values()
    }
    for pid in _pids(proc):
        for inode in _socket_inodes(proc, pid) & set(sockets):
            ours = _markers(proc, pid)
            found[sockets[inode][0]].update(
                pid=pid,
                command=command(pid, proc),
                endpoint=ours.get("FIRSTLIGHT_ENDPOINT") or ours.get("FIRSTLIGHT_WAY_IN"),
                root=ours.get("FIRSTLIGHT_ROOT"),
            )
    return found


def engines(root: str, proc: str = "/proc") -> Dict[str, List[Dict[str, Any]]]:
    """Processes of our endpoints under this root: name to ``[{pid, plan}]``."""
    ours: Dict[int, Dict[str, str]] = {}
    untold = []
    for pid in _pids(proc):
        environment = _read(proc, pid, "environ")
        markers = _markers_in(proc, pid, environment)
        if markers.get("FIRSTLIGHT_ROOT") == root and "FIRSTLIGHT_ENDPOINT" in markers:
            ours[pid] = markers
        elif environment and b"=" not in environment.partition(b"\0")[0]:
            untold.append(pid)
    ours.update(_by_kin(ours, untold, proc))
    found: Dict[str, List[Dict[str, Any]]] = {}
    for pid, markers in ours.items():
        found.setdefault(markers["FIRSTLIGHT_ENDPOINT"], []).append(
            {"pid": pid, "plan": markers.get("FIRSTLIGHT_PLAN", "")}
        )
    return found


def _by_kin(ours: Dict[int, Dict[str, str]], untold: List[int],
            proc: str) -> Dict[int, Dict[str, str]]:
    """The markers of processes whose environment says nothing: their parent's or their group's."""
    stats = {pid: _stat(proc, pid) for pid in [*ours, *untold]}
    groups = {stats[pid][2]: markers for pid, markers in ours.items() if stats[pid]}
    found = {}
    for pid in untold:
        kin, seen = pid, {0}
        while kin not in ours and kin not in seen and stats.get(kin):
            seen.add(kin)
            kin = int(stats[kin][1])
        markers = ours.get(kin) or groups.get(stats[pid][2] if stats[pid] else "")
        if markers:
            found[pid] = markers
    return found


def ways_in(root: str, proc: str = "/proc") -> Dict[str, List[int]]:
    """Processes of our ways in under this root: the endpoint's name to pids.

    What has given up root may not be seen; it ends with what started it, which is.
    """
    found: Dict[str, List[int]] = {}
    for pid in _pids(proc):
        ours = _markers(proc, pid)
        if ours.get("FIRSTLIGHT_ROOT") == root and "FIRSTLIGHT_WAY_IN" in ours:
            found.setdefault(ours["FIRSTLIGHT_WAY_IN"], []).append(pid)
    return found


def children(pid: int, proc: str = "/proc") -> List[int]:
    """The processes that a process has started and that have not ended."""
    found = []
    for one in _pids(proc):
        fields = _stat(proc, one)
        if fields and fields[1] == str(pid) and fields[0] != "Z":
            found.append(one)
    return found


def ancestry(pid: int, proc: str = "/proc") -> List[int]:
    """A process, what started it, what started that, and so on."""
    found: List[int] = []
    while pid and pid not in found:
        found.append(pid)
        fields = _stat(proc, pid)
        pid = int(fields[1]) if fields else 0
    return found


def listens(root: str, name: str, port: int, proc: str = "/proc") -> bool:
    """Whether a process of this endpoint listens on this port, on whatever address."""
    inodes = {
        inode
        for table in TABLES
        for at, inode, _ in _listening(os.path.join(proc, table))
        if at == port
    }
    ours = engines(root, proc).get(name, [])
    return any(inodes & _socket_inodes(proc, one["pid"]) for one in ours)


def command(pid: int, proc: str = "/proc") -> Optional[str]:
    """A process's command line without secrets, at most 200 characters; ``None`` if unseen."""
    words = _read(proc, pid, "cmdline").rstrip(b"\0").split(b"\0")
    return shown([word.decode("utf-8", "replace") for word in words])[:MAX_COMMAND] or None


def shown(words: Iterable[str]) -> str:
    """A command line in which what may be a secret is hidden."""
    line, hide = [], False
    for word in words:
        name, sign, _ = word.partition("=")
        secret = SECRET_NAME.search(name) is not None
        if hide and not word.startswith("-"):
            line.append(HIDDEN)
        elif secret and sign:
            line.append(SECRET.sub(HIDDEN, name) + "=" + HIDDEN)
        else:
            line.append(SECRET.sub(HIDDEN, word))
        hide = secret and not sign and word.startswith("-")
    return " ".join(line)


def user_of(pid: int, proc: str = "/proc") -> Optional[str]:
    """The name of the user that a process runs as; ``None`` where it is not seen."""
    try:
        return _user(os.stat(os.path.join(proc, str(pid))).st_uid)
    except OSError:
        return None


def cpu_seconds(pid: int, proc: str = "/proc") -> Optional[float]:
    """Processor time that a process has used so far, or ``None`` when it is gone."""
    fields = _stat(proc, pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else None


def resident_bytes(pids: Iterable[int], proc: str = "/proc") -> Optional[int]:
    """What processes hold in RAM now, together; ``None`` where none of them can be read."""
    found = [int(fields[21]) for fields in (_stat(proc, pid) for pid in pids) if fields]
    return sum(found) * os.sysconf("SC_PAGE_SIZE") if found else None


def age_seconds(pid: int, proc: str = "/proc") -> Optional[float]:
    """Seconds since a process was started, or ``None`` when it is gone."""
    fields = _stat(proc, pid)
    if not fields:
        return None
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def is_alive(pid: int, proc: str = "/proc") -> bool:
    """Whether a process is there and more than a zombie that nobody waits for."""
    fields = _stat(proc, pid)
    return bool(fields) and fields[0] != "Z"


def start_ticks(pid: int, proc: str = "/proc") -> Optional[int]:
    """When a process was started, in ticks since the boot: with its pid, who it is."""
    fields = _stat(proc, pid)
    return int(fields[19]) if fields else None


def _stat(proc: str, pid: int) -> List[str]:
    """The fields of /proc/PID/stat from the third on; a name with blanks cannot shift them."""
    return _read(proc, pid, "stat").decode("utf-8", "replace").rpartition(")")[2].split()


def end(root: str, name: str, grace_s: float = 10.0) -> List[int]:
    """End every process of a service that its manager left behind: an endpoint, or its way in.

    SIGTERM first, SIGKILL after ``grace_s`` seconds. Returns the pids that were there, those
    included that only appeared while the others ended.

    :raises TimeoutError: when a process survives SIGKILL for five seconds (stuck in the kernel).
    """
    ended: Set[int] = set()
    left: List[int] = []
    for how, patience in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
        signalled: Set[int] = set()
        deadline = time.monotonic() + patience
        while True:
            left = _of_service(root, name)
            ended.update(left)
            if not left:
                return sorted(ended)
            for pid in set(left) - signalled:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, how)
            signalled.update(left)
            if time.monotonic() >= deadline:
                break
            time.sleep(0.05)
    raise TimeoutError("pids %s of endpoint %s do not end" % (left, name))


def _of_service(root: str, name: str) -> List[int]:
    if name.startswith(PREFIX):
        return ways_in(root).get(name[len(PREFIX):], [])
    return [one["pid"] for one in engines(root).get(name, [])]


def connections(port: int, proc: str = "/proc") -> int:
    """How many connections from this host to this port are open, be it its own or another's."""
    return sum(fields[3] == ESTABLISHED and int(fields[2].rpartition(":")[2], 16) == port
               for table in TABLES for fields in _sockets(os.path.join(proc, table)))


def _listening(table: str) -> Iterable[Tuple[int, str, int]]:
    """(port, socket inode, uid) of each listening socket of a /proc/net/tcp table."""
    for fields in _sockets(table):
        if fields[3] == LISTEN:
            yield int(fields[1].rpartition(":")[2], 16), fields[9], int(fields[7])


def _sockets(table: str) -> Iterable[List[str]]:
    """The fields of each line of a /proc/net/tcp table: 1 and 2 are its ends, 3 is its state."""
    try:
        with open(table, encoding="ascii") as file:
            rows = file.read().splitlines()[1:]
    except OSError:
        return
    for row in rows:
        yield row.split()


def _pids(proc: str) -> List[int]:
    return [int(name) for name in os.listdir(proc) if name.isdigit()]


def _socket_inodes(proc: str, pid: int) -> Set[str]:
    folder = os.path.join(proc, str(pid), "fd")
    found = set()
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                target = os.readlink(os.path.join(folder, name))
                if target.startswith("socket:["):
                    found.add(target[8:-1])
    return found


def _read(proc: str, pid: int, name: str) -> bytes:
    try:
        with open(os.path.join(proc, str(pid), name), "rb") as file:
            return file.read()
    except OSError:
        return b""


def _is_elsewhere(proc: str, pid: int) -> bool:
    """Whether a process is in another PID namespace: a container's engines are not the host's."""
    try:
        return (os.readlink(os.path.join(proc, str(pid), "ns", "pid"))
                != os.readlink(os.path.join(proc, "self", "ns", "pid")))
    except OSError:
        return False


def _markers(proc: str, pid: int) -> Dict[str, str]:
    return _markers_in(proc, pid, _read(proc, pid, "environ"))


def _markers_in(proc: str, pid: int, content: bytes) -> Dict[str, str]:
    if not any(name in content for name in (b"FIRSTLIGHT_ENDPOINT=", b"FIRSTLIGHT_WAY_IN=")) \
            or _is_elsewhere(proc, pid):
        return {}
    pairs = (item.partition(b"=") for item in content.split(b"\0"))
    found = {
        key.decode(): value.decode("utf-8", "replace")
        for key, _, value in pairs
        if key in (b"FIRSTLIGHT_ROOT", b"FIRSTLIGHT_ENDPOINT", b"FIRSTLIGHT_PLAN",
                   b"FIRSTLIGHT_WAY_IN")
    }
    # Anyone can start a process with these; a name of ours is safe in a path, any other is not.
    named = [found[key] for key in ("FIRSTLIGHT_ENDPOINT", "FIRSTLIGHT_WAY_IN") if key in found]
    return found if named and all(map(NAME.fullmatch, named)) else {}


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return "uid %d" % uid
