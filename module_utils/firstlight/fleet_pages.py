# SPDX-License-Identifier: Apache-2.0
"""The folder of reports on the controller: what is kept of hosts and runs, and the pages of it.

::

    reports/
      index.html report.md report.json    the report
      runs/last.json                      the last run
      HOST/host.json                      what is known of a host
      HOST/run.json                       what became of it in its last run
      HOST/ENDPOINT.json                  the passport of an endpoint

Every file is replaced as a whole. Several controllers may write into one folder: each writes what
it knows of its own hosts, and one at a time makes the pages.

For the controller alone: it needs Jinja2, which Ansible brings.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from typing import Any, Dict, Iterable, Iterator, List, Optional

import jinja2
from markupsafe import Markup

from .planning import fleet_report

Data = Dict[str, Any]

PAGES = ("index.html", "report.md", "report.json")
HOST, RUN = "host", "run"
"""What of a host's files is no passport."""
RUNS, LAST = "runs", "last.json"
TEMPLATES = os.path.join(os.path.dirname(os.path.abspath(__file__)),
                         "..", "..", "roles", "host_report", "templates")
LARGEST_FILE = 8 * 2**20
LOCK_S = 20
"""How long the pages of another controller are waited for; after that ours are written too."""
UNSAFE = re.compile(r"[/%\x00-\x1f\x7f]")
LINES = re.compile(r"\s*\n\s*")
MARKDOWN = re.compile(r"[\\`*_{}\[\]<>()#|~]")


class Unwritable(Exception):
    """The folder of reports cannot be written; says what to do."""


# Names.


def file_name(name: str, reserved: Iterable[str] = ()) -> str:
    """The name of a file or a folder for a name of others: it stays in the folder it is for.

    Ordinary names are kept. What would lead elsewhere, be hidden or take the place of a file of
    ours is written as in an address (C(%2F)); what is too long ends in a digest.
    """
    made = UNSAFE.sub(lambda found: "%%%02X" % ord(found.group(0)), name) or "%"
    if made.startswith(".") or made in reserved:
        made = "%%%02X%s" % (ord(made[0]), made[1:])
    encoded = made.encode("utf-8", "surrogatepass")
    if len(encoded) > 200:
        made = "%s-%s" % (encoded[:150].decode("utf-8", "ignore"),
                          hashlib.sha256(encoded).hexdigest()[:16])
    return made


def host_folder(directory: str, host: str) -> str:
    """Where the files of a host lie."""
    return os.path.join(directory, file_name(host, (RUNS, *PAGES)))


def passport_path(directory: str, host: str, endpoint: str) -> str:
    """Where the passport of an endpoint lies."""
    return os.path.join(host_folder(directory, host), file_name(endpoint, (HOST, RUN)) + ".json")


# Files.


def as_json(content: Any) -> bytes:
    """Content as the files of the folder have it."""
    return json.dumps(content, indent=2, sort_keys=True).encode() + b"\n"


def read(path: str) -> Any:
    """The content of a file, ``None`` where there is none.

    :raises ValueError: when it cannot be read; says which file and why.
    """
    try:
        with open(path, "rb") as file:
            found = file.read(LARGEST_FILE + 1)
        if len(found) > LARGEST_FILE:
            raise ValueError("it is larger than %d MiB" % (LARGEST_FILE // 2**20))
        return json.loads(found)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as problem:
        said = problem.strerror if isinstance(problem, OSError) else str(problem)
        raise ValueError("%s cannot be read (%s)" % (path, said)) from problem


def write(path: str, content: bytes) -> None:
    """Replace a file as a whole. Nothing is forced to the disk: a next run writes it anew.

    :raises OSError: no space, no permission; the old file is then untouched.
    """
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o755, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".new.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def unwritable(directory: str, problem: OSError) -> Unwritable:
    """The error with the way out."""
    return Unwritable(
        "The reports in %s cannot be written (%s). Nothing else of the run is changed by that. "
        "Make room there or let this user write, or set host_report_directory to a folder of the "
        "controller where that is so." % (directory, problem.strerror or problem))


@contextlib.contextmanager
def alone(directory: str) -> Iterator[None]:
    """Have the pages to oneself, where the file system knows locks, and for a while only."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        ends = time.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > ends:
                    break
                time.sleep(0.05)
            except OSError:
                break  # a file system without locks
        yield
    finally:
        os.close(handle)


# What is kept.


def read_all(directory: str) -> Data:
    """All that the folder has, as :func:`..planning.fleet_report.fleet_report` takes it.

    What cannot be read is told in ``unread``, and stops nothing.
    """
    unread: List[str] = []

    def content(*way: str) -> Any:
        try:
            return read(os.path.join(directory, *way))
        except ValueError as problem:
            unread.append(str(problem))
            return None

    hosts: Data = {}
    for folder in _listed(directory):
        if folder == RUNS or not os.path.isdir(os.path.join(directory, folder)):
            continue
        try:
            listed = _listed(os.path.join(directory, folder))
        except OSError as problem:
            unread.append(_unread(os.path.join(directory, folder), problem))
            continue
        files = [one for one in listed if one.endswith(".json")]
        if files:
            found = {file[:-len(".json")]: content(folder, file) for file in files}
            told = {key: found.pop(key, None) for key in (HOST, RUN)}
            hosts[folder] = {**told, "passports": {
                _endpoint_of(stem, one): one for stem, one in found.items()}}
    return {"run": content(RUNS, LAST), "hosts": hosts, "unread": unread}


def _unread(path: str, problem: OSError) -> str:
    return "%s cannot be read (%s)" % (path, problem.strerror or problem)


def _endpoint_of(stem: str, passport: Any) -> str:
    """The endpoint that a file is of: names that were changed for the file have it inside."""
    said = passport.get("endpoint") if isinstance(passport, dict) else None
    return said if isinstance(said, str) and file_name(said, (HOST, RUN)) == stem else stem


def _listed(folder: str) -> List[str]:
    """What is in a folder, without what is hidden: files that are being written are."""
    try:
        return sorted(one for one in os.listdir(folder) if not one.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []


def keep_run(directory: str, run: Data, entries: Dict[str, Data]) -> Data:
    """Write down a run and make the pages; returns the report.

    :param run: ``id``, ``playbook``, ``started`` and ``ended``.
    :param entries: what became of each of its hosts, as
        :func:`..planning.fleet_report.run_record` takes it.
    :raises Unwritable: the folder cannot be written.
    """
    try:
        os.makedirs(directory, mode=0o755, exist_ok=True)
        with alone(directory):
            content, ran = read_all(directory), {}
            for host, entry in entries.items():
                folder = host_folder(directory, host)
                told = content["hosts"].setdefault(
                    os.path.basename(folder), {HOST: None, RUN: None, "passports": {}})
                earlier = told[RUN]
                if entry["state"] == "waiting" and (earlier or told[HOST]):
                    continue  # nobody was there: what is known of it stands
                told[RUN] = fleet_report.run_record(
                    host, entry, run, earlier, told[HOST], told["passports"])
                try:
                    write(os.path.join(folder, RUN + ".json"), as_json(told[RUN]))
                except PermissionError as problem:
                    # The folder of one host stops no other's; nothing of it was kept either.
                    content["unread"].append("%s cannot be written (%s)" % (
                        folder, problem.strerror or problem))
                    told[RUN] = fleet_report.run_record(
                        host, dict(entry, recorded=False), run, earlier, told[HOST],
                        told["passports"])
                ran[host] = {key: told[RUN][key] for key in entry}
            content["run"] = {"schema": fleet_report.SCHEMA, "run": run, "hosts": ran}
            write(os.path.join(directory, RUNS, LAST), as_json(content["run"]))
            return _make_pages(directory, content)
    except OSError as problem:
        raise unwritable(directory, problem) from problem


def make_pages(directory: str) -> Data:
    """Make the pages anew from what is kept; returns the report.

    :raises Unwritable: the folder is not there or cannot be written.
    """
    try:
        with alone(directory):
            return _make_pages(directory, read_all(directory))
    except OSError as problem:
        raise unwritable(directory, problem) from problem


def _make_pages(directory: str, content: Data) -> Data:
    report = fleet_report.fleet_report(
        content, time.strftime(fleet_report.TIME, time.gmtime()))
    for name, text in rendered(report).items():
        write(os.path.join(directory, name), text)
    return report


def forget(directory: str, hosts: Iterable[str], check: bool) -> List[str]:
    """Remove what is kept of hosts; returns the folders that are, or would be, removed.

    The last run no longer has them. The pages, and the run, go with the last host.

    :raises Unwritable: something cannot be removed.
    """
    folders = [folder for folder in (host_folder(directory, one) for one in hosts)
               if os.path.isdir(folder) and not os.path.islink(folder)]
    if check:
        return folders
    try:
        for folder in folders:
            shutil.rmtree(folder)
        if folders:
            with alone(directory):
                _forget_run(directory, folders)
    except OSError as problem:
        raise unwritable(directory, problem) from problem
    return folders


def _forget_run(directory: str, folders: List[str]) -> None:
    """Take hosts out of the last run; without any host the pages go, and the run."""
    left = read_all(directory)
    hosts = left["run"].get("hosts") if isinstance(left["run"], dict) else None
    hosts = hosts if isinstance(hosts, dict) else {}
    kept = {one: told for one, told in hosts.items()
            if host_folder(directory, one) not in folders}
    if len(kept) < len(hosts):
        write(os.path.join(directory, RUNS, LAST), as_json(dict(left["run"], hosts=kept)))
    if left["hosts"] or left["unread"]:
        return
    for way in (*((page,) for page in PAGES), (RUNS, LAST)):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(directory, *way))
    for way in ((RUNS,), ()):
        with contextlib.suppress(OSError):
            os.rmdir(os.path.join(directory, *way))


# The pages.


def rendered(report: Data) -> Dict[str, bytes]:
    """The pages of a report, by the names of their files."""
    texts = {name: _environment(name).get_template(name + ".j2").render(report=report)
             for name in PAGES[:2]}
    return {**{name: text.encode("utf-8", "replace") for name, text in texts.items()},
            PAGES[2]: as_json(report)}


def _environment(name: str) -> jinja2.Environment:
    html = name.endswith(".html")
    # Every text comes from somewhere else: all of it is escaped, as HTML or as Markdown.
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined,
        autoescape=html, finalize=None if html else _for_markdown,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    made.filters.update(
        memory=memory, seconds=seconds, age=age, number=number, moment=moment, off=off,
        state=_state_text, cards=_cards, script=_script if html else _no_script)
    made.globals.update(STATES=fleet_report.STATES)
    return made


def _for_markdown(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return LINES.sub(" ", MARKDOWN.sub(r"\\\g<0>", value))


def _script(source: str) -> Markup:
    """The digest by which the page lets its own script run, and no other one."""
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    return Markup("'sha256-%s'" % digest)


def _no_script(source: str) -> str:
    return ""


def memory(count: Optional[float]) -> str:
    """Bytes as a person says them."""
    if count is None:
        return "–"
    for scale, unit in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= scale:
            amount = count / scale
            return "%.*f %s" % (0 if amount >= 100 else 1, amount, unit)
    return "%d B" % count


def seconds(count: Optional[float]) -> str:
    """Seconds as a person says them."""
    if count is None:
        return "–"
    if count < 1:
        return "%.0f ms" % (1000 * count)
    if count < 99.5:
        return "%.1f s" % count if count < 10 else "%.0f s" % count
    minutes = round(count / 60)
    return "%d min" % minutes if minutes < 100 else "%d h %d min" % divmod(minutes, 60)


def age(count: Optional[float]) -> str:
    """How long ago something was, roughly."""
    if count is None:
        return "at an unknown time"
    for scale, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if count >= scale:
            amount = int(count // scale)
            return "%d %s%s ago" % (amount, unit, "" if amount == 1 else "s")
    return "just now"


def number(count: Optional[float]) -> str:
    """A figure with as many digits as say something."""
    if count is None:
        return "–"
    if count == int(count) or count >= 100:
        return format(int(round(count)), ",").replace(",", "\u202f")
    return "%.1f" % count if count >= 1 else "%.3g" % count


def moment(at: str) -> str:
    """A time as a person reads it."""
    return "%s %s UTC" % (at[:10], at[11:16]) if fleet_report.epoch(at) is not None else "–"


def off(percent: Optional[float]) -> str:
    """How far something is off, with its sign."""
    return "–" if percent is None else "%+.0f %%" % percent if abs(percent) >= 0.5 else "±0 %"


def _state_text(state: str) -> str:
    return {"not_proven": "not proven", "absent": "not in the last run", "idle": "no endpoint",
            "earlier": "proven earlier", "ended": "not reached"}.get(state, state)


def _cards(name: str) -> str:
    """Names of GPUs without the words that all of them have."""
    return name.replace("NVIDIA ", "").replace(" x ", "\u202f×\u202f")
