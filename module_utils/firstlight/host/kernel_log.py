# SPDX-License-Identifier: Apache-2.0
"""Xid events: what the NVIDIA driver wrote into the kernel's log about a device since boot."""

from __future__ import annotations

import json
import os
import re
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from ..runner import run
from .reading import Reader

KMSG = "/dev/kmsg"
# Not with --grep: that says the same for a journal without a match and for none at all.
JOURNAL = ["journalctl", "--dmesg", "--boot", "--no-pager", "--output=json",
           "--output-fields=MESSAGE,_SOURCE_MONOTONIC_TIMESTAMP", "--lines=5000"]
# As the driver writes it: NVRM: Xid (PCI:0000:2b:00): 79, pid=1, name=x, GPU has fallen off ...
# With MIG the instance stands behind the address: (PCI:0000:01:00 GPU-I:05).
XID = re.compile(r"NVRM: Xid \(PCI:([0-9A-Fa-f:.]+)[^)]*\): (\d+),? ?(.*)")
MAX_TEXT = 200


class Line(NamedTuple):
    """A line of the log: seconds from boot to it, and what it says."""

    at_s: float
    text: str


def xids(reader: Reader) -> Optional[List[Dict[str, Any]]]:
    """The events, oldest first, the same code of the same device once, as it was seen last.

    Each is ``{bus_id, code, count, age_s, text}``; ``bus_id`` has no function (``0000:2b:00``).
    ``None`` where the log cannot be read; the reason is kept under ``xids``.
    """
    lines = _kmsg(reader)
    if lines is None:
        lines = _journal(reader)
    if lines is None:
        return None
    uptime = float((reader.quiet("/proc/uptime").split() or ["0"])[0])
    found: Dict[Tuple[str, int], Dict[str, Any]] = {}
    for line in lines:
        event = XID.search(line.text)
        if event:
            key = (event.group(1).lower(), int(event.group(2)))
            before = found.pop(key, {"count": 0})
            found[key] = {"bus_id": key[0], "code": key[1], "count": before["count"] + 1,
                          "age_s": max(0, int(uptime - line.at_s)),
                          "text": event.group(3)[:MAX_TEXT]}
    return list(found.values())


def _kmsg(reader: Reader) -> Optional[List[Line]]:
    """The kernel's ring buffer."""
    try:
        # Each read gives a record; at the end there is nothing to wait for.
        handle = os.open(reader.path(KMSG), os.O_RDONLY | os.O_NONBLOCK)
    except OSError as problem:
        reader.refused("xids", problem, KMSG)
        return None
    try:
        lines = [Line(int(fields[2]) / 1e6, text) for fields, text in _records(handle)
                 if len(fields) > 2 and fields[2].isdigit()]
    except OSError as problem:
        reader.refused("xids", problem, KMSG)
        return None
    finally:
        os.close(handle)
    reader.sources["xids"] = KMSG
    return lines


def _records(handle: int) -> Iterator[Tuple[List[str], str]]:
    while True:
        try:
            taken = os.read(handle, 65536)
        except BlockingIOError:
            return
        except BrokenPipeError:
            continue  # what was to be read next has been overwritten: the kernel goes on behind it
        if not taken:
            return
        for record in taken.decode("utf-8", "replace").splitlines():
            head, _, text = record.partition(";")
            yield head.split(","), text


def _journal(reader: Reader) -> Optional[List[Line]]:
    """The journal's copy, which members of its groups may read."""
    ran = run(JOURNAL, timeout_s=5)
    if not ran.ok or "{" not in ran.stdout:
        kept = reader.unread["xids"]
        reader.missing("xids", kept["code"], "%s; %s" % (
            kept["reason"], "the journal has no record of the kernel" if ran.ok
            else ran.complaint()))
        return None
    lines = []
    for entry in ran.stdout.splitlines():
        try:
            said = json.loads(entry)
            at = said.get("_SOURCE_MONOTONIC_TIMESTAMP", said.get("__MONOTONIC_TIMESTAMP"))
            lines.append(Line(int(at) / 1e6, str(said["MESSAGE"])))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # a line that is no record of the journal says nothing of a device
    del reader.unread["xids"]
    reader.sources["xids"] = "journalctl --dmesg"
    return lines


def share_out(reader: Reader, devices: List[Dict[str, Any]],
              events: Optional[List[Dict[str, Any]]]) -> Optional[List[Dict[str, Any]]]:
    """Give each device its events; returns those of no device that is there."""
    if events is None:
        why = reader.unread.pop("xids")
        for label in ["orphan_xids"] + ["devices[%d].xids" % one["index"] for one in devices]:
            reader.unread[label] = dict(why)
        return None
    orphans = []
    log = reader.sources.pop("xids")
    for device in devices:
        device["xids"] = []
        reader.sources["devices[%d].xids" % device["index"]] = log
    for event in events:
        owners = [one for one in devices
                  if (one["bus_id"] or "").rpartition(".")[0] == event["bus_id"].partition(".")[0]]
        if owners:
            owners[0]["xids"].append(
                {key: event[key] for key in ("code", "count", "age_s", "text")})
        else:
            orphans.append(event)
    reader.sources["orphan_xids"] = log
    return orphans
