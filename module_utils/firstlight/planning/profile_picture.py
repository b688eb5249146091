# SPDX-License-Identifier: Apache-2.0
"""What was recorded of an engine, for people: a table of what took most time, and a picture of it.

Names come from traces, and those from engines: in the table they move no cursor, in the picture
they are text and nothing else.
"""

from __future__ import annotations

import json
import posixpath
from typing import Any, Dict, List, Tuple
from xml.sax.saxutils import escape

from ..findings import shown

Profile = Dict[str, Any]

WIDTH, LINE, BAR = 960, 24, 320
"""Of the picture, of a bar's line and of the longest bar, in pixels."""
NAME = 64
"""Characters of a name; kernels are named by all their parameters."""
ROWS, BARS = 15, 12
COLOURS = {"device": "#2f6f4f", "host": "#35618e"}
TITLES = {"device": "On the devices", "host": "On the host (operators of PyTorch)"}


def profile_files(profiles: Dict[str, Profile]) -> List[str]:
    """The traces on a host, as paths under its folder of endpoints.

    They are counted: a host that says of itself what it likes chooses no path.

    :param profiles: ``profile`` as the module ``endpoint_profile`` returns it, by endpoint.
    """
    ends = {"torch": "json.gz", "nsys": "nsys-rep"}
    return [posixpath.join(name, "profile", "trace-%d.%s" % (number, ends[one["profiler"]]))
            for name, one in profiles.items() for number in range(len(one["traces"]))]


def profile_texts(profiles: Dict[str, Profile]) -> List[Dict[str, str]]:
    """What is written beside the traces, as ``{file, content}``: table, picture, and the whole.

    :param profiles: as :func:`profile_files` takes them.
    """
    return [{"file": posixpath.join(name, file), "content": content}
            for name, one in profiles.items() for file, content in (
                ("operators.txt", profile_table(one)), ("shares.svg", profile_picture(one)),
                ("profile.json", json.dumps(one, indent=2, sort_keys=True) + "\n"))]


def profile_table(profile: Profile) -> str:
    """What took most of the time, as text of 100 columns.

    :param profile: ``profile`` as the module ``endpoint_profile`` returns it.
    """
    lines = [summary(profile)]
    for title, rows in _parts(profile):
        lines += ["", "%-*s %9s %10s %10s %6s" % (
            NAME - 4, title, "calls", "self s", "total s", "share")]
        lines += ["%-*s %9d %10.4f %10.4f %5.1f%%" % (
            NAME - 4, _short(row["name"], NAME - 4), row["calls"], row["self_s"], row["total_s"],
            100 * row["share"]) for row in rows[:ROWS]]
    return "\n".join(lines) + "\n"


def profile_picture(profile: Profile) -> str:
    """The shares of the time, as SVG: a bar for each of the largest, none of it a script or link.

    :param profile: as :func:`profile_table` takes it.
    """
    body: List[str] = []
    top = 2 * LINE
    body += [_text(16, top, summary(profile), 14)]
    for title, rows in _parts(profile):
        kind = next(key for key, value in TITLES.items() if value == title)
        top += 2 * LINE
        body.append(_text(16, top, title, 16))
        for row in _bars(rows):
            top += LINE
            share = min(1.0, max(0.0, row["share"]))
            body += [
                '<rect x="520" y="%d" width="%.1f" height="%d" fill="%s"/>' % (
                    top - 13, max(1.0, BAR * share), LINE - 8, COLOURS[kind]),
                _text(16, top, _short(row["name"], NAME), 13),
                _text(520 + max(1.0, BAR * share) + 8, top, "%.1f%%" % (100 * share), 13),
            ]
    height = top + LINE
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" '
        'font-family="monospace" fill="#1c1c1c">\n<rect width="%d" height="%d" fill="#ffffff"/>\n'
        "%s\n</svg>\n" % (WIDTH, height, WIDTH, height, WIDTH, height, "\n".join(body)))


def summary(profile: Profile) -> str:
    """One sentence on what was recorded."""
    asked = "%d requests of %d and %d tokens" % (
        profile["requests"], profile["prompt_tokens"], profile["output_tokens"])
    steps = ", %d steps" % profile["iterations"] if profile["iterations"] else ""
    launches = profile["graph_launches"]
    how = "with CUDA graphs" if profile["graphs"] else "eager"
    if launches is not None and profile["device"]:
        how += " (%d graphs started)" % launches
    busy = ""
    if profile["busy_s"] and profile["span_s"]:
        busy = ", device busy %.0f%% of %.3f s" % (
            100 * profile["busy_s"] / profile["span_s"], profile["span_s"])
    return shown("%s: %s %s, %s; %s%s%s" % (
        profile["endpoint"], profile["engine"], profile["engine_version"], how, asked, steps,
        busy))


def _parts(profile: Profile) -> List[Tuple[str, List[Dict[str, Any]]]]:
    return [(TITLES[kind], profile[kind]) for kind in ("device", "host") if profile[kind]]


def _bars(rows: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """The largest, and all others as one."""
    if len(rows) <= BARS:
        return rows
    return [*rows[:BARS], {"name": "%d others" % (len(rows) - BARS),
                           "share": sum(row["share"] for row in rows[BARS:])}]


def _short(name: str, width: int) -> str:
    name = shown(name)
    return name if len(name) <= width else name[:width - 3] + "..."


def _text(left: float, top: int, words: str, size: int) -> str:
    # What XML has no characters for is shown by now, as what moves a cursor is.
    return '<text x="%.1f" y="%d" font-size="%d" xml:space="preserve">%s</text>' % (
        left, top, size, escape(words.encode("ascii", "backslashreplace").decode()))
