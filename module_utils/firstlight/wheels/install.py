# SPDX-License-Identifier: Apache-2.0
"""A wheel takes its place in an environment and is proved there, or all is as it was.

pip does the work: the environment's own, else the toolbelt's (``pip --python``). It gets a clean
environment, no index and no cache, and only ever this one file.
"""

from __future__ import annotations

import base64
import contextlib
import inspect
import json
import os
import pathlib
import pwd
import re
import tempfile
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Set, Tuple

from ..findings import Finding, blocking, finding, shown
from ..runner import Ran, run
from ..transaction import Transaction
from . import environment, inside_probe
from .archive import Archive
from .house import sha256_of
from .installed import Left, NoSpace, Stash, owners

# Of a module that comes in an archive the file is gone when its process has let go of it.
SOURCE = inspect.getsource(inside_probe)
ASK_S = 120.0
"""Seconds for a question to an interpreter that is not asked to import a package."""
PIP_PYTHON = (22, 3)
"""The pip from which on there is ``--python``."""
OPTIONS = ("--isolated", "--disable-pip-version-check", "--no-input", "--no-color")
INSTALL = ("install", "--no-deps", "--no-index", "--no-cache-dir", "--force-reinstall",
           "--only-binary", ":all:", "--no-warn-script-location", "--progress-bar", "off")
SHOWN = 12
"""Lines, files or requirements that a message has at most."""
MOST_SHOWN = 300
"""Characters of one of these."""
OLDEST = (3, 8)
"""The Python from which on there is ``importlib.metadata``, by which it is seen what pip would do.
An older one can be looked into all the same."""
STARTS_WITH = ("sitecustomize.py", "usercustomize.py")
"""What each start of Python runs, beside ``*.pth``."""
WORKS = ("ran", "skipped", "none")
"""What a kernel's state may be."""

Row = Dict[str, Any]
Told = Dict[str, Any]


class Refused(Exception):
    """Why a wheel is not installed, as findings. What was changed by then is put back."""

    def __init__(self, findings: List[Finding]) -> None:
        super().__init__("; ".join("%(subject)s: %(found)s" % one for one in findings))
        self.findings = findings


class Pip(NamedTuple):
    """A pip: how it is called for the environment, its version, and the folder it lies in.

    ``folder`` is empty for the environment's own.
    """

    argv: List[str]
    version: str
    folder: str


class Judged(NamedTuple):
    """A wheel that may be installed: where its files go, and what is in their place.

    ``told`` is the environment's answer; ``same`` whether these very files are installed already.
    """

    left: Left
    told: Told
    replaces: str
    same: bool
    findings: List[Finding]


# Before anything.


def environment_findings(seen: Told, row: Row) -> List[Finding]:
    """Why nothing can be installed into an environment, whatever the wheel.

    :param seen: as :func:`.environment.read` gives it.
    """
    python, package = seen["python"], row["package"]
    subject = "%s in %s" % (package, python)
    if seen["state"] != "ok":
        return [finding(
            "wheel-environment-" + seen["state"], subject, seen["why"],
            "an interpreter that runs",
            "give `python` of the package in `prebuilt_wheel_packages` the path of the "
            "environment's interpreter, or make the environment anew")]
    found = []
    if tuple(map(int, re.findall(r"\d+", seen["version"])[:2])) < OLDEST:
        found.append(finding(
            "wheel-environment-old", subject, "Python %s" % seen["version"],
            "Python %d.%d or newer: in an older one it cannot be seen what pip would change"
            % OLDEST, "make the environment anew with a newer Python, or install the wheel there "
            "by hand (%s -m pip install --no-deps FILE)" % python))
    if seen["managed"] == "distribution":
        found.append(finding(
            "wheel-managed", subject, "packages that the distribution manages (EXTERNALLY-MANAGED "
            "in %s)" % seen["prefix"], "an environment of its own",
            "make one (%s -m venv --system-site-packages FOLDER) and name its interpreter as "
            "`python` in `prebuilt_wheel_packages`" % python))
    there = seen["installed"].get(package)
    if there and there["conda"]:
        found.append(finding(
            "wheel-conda", subject, "%s %s, installed by conda" % (package, there["version"]),
            "a package that pip may replace",
            "remove it with conda (conda remove --force %s), or let conda bring the version that "
            "is wanted" % package))
    if not seen["writable"]:
        found.append(finding(
            "wheel-not-writable", subject, seen["why_not_writable"],
            "folders of packages that this user can write",
            "run as the environment's owner (ansible_become, ansible_become_user), or name another "
            "environment"))
    return found + _owner(seen, subject)


def _owner(seen: Told, subject: str) -> List[Finding]:
    """Whether root would leave its files in somebody else's environment."""
    if os.geteuid() != 0:
        return []
    for folder in sorted({_there(seen[key]) for key in ("purelib", "platlib")}):
        uid = os.stat(folder).st_uid
        if uid != 0:
            try:
                name = pwd.getpwuid(uid).pw_name
            except KeyError:
                name = "#%d" % uid
            return [finding(
                "wheel-owner", subject, "%s belongs to %s, and this runs as root" % (folder, name),
                "its owner, who can change and remove later what is installed now",
                "set `ansible_become_user: %s` for this run, or give the folder to root" % name)]
    return []


def pip_for(root: str, seen: Told) -> Pip:
    """The pip that installs into an environment.

    :param root: ``firstlight_root``; its toolbelt helps where the environment has no pip.
    :param seen: as :func:`.environment.read` gives it.
    :raises Refused: there is none.
    """
    python = seen["python"]
    if seen["pip"]:
        return Pip([python, "-I", "-B", "-m", "pip"], seen["pip"], "")
    toolbelt = os.path.join(root, "venvs", "toolbelt", "bin", "python")
    said = run([toolbelt, "-I", "-B", "-c", "import os, pip; print(pip.__version__); "
                "print(os.path.dirname(os.path.dirname(os.path.abspath(pip.__file__))))"],
               timeout_s=ASK_S)
    version, _, folder = said.stdout.strip().partition("\n")
    if said.ok and tuple(map(int, re.findall(r"\d+", version)[:2])) >= PIP_PYTHON:
        return Pip([toolbelt, "-I", "-B", "-m", "pip", "--python", python], version, folder)
    raise Refused([finding(
        "wheel-no-pip", python, "no pip in this environment, and %s" % (
            "pip %s in the toolbelt" % version if said.ok else "none in the toolbelt (%s)" %
            os.path.dirname(os.path.dirname(toolbelt))),
        "a pip, or one of %d.%d or newer in the toolbelt" % PIP_PYTHON,
        "run `%s -m ensurepip`, or `uv pip install --python %s pip`" % (python, python))])


def judge(archive: Archive, seen: Told, row: Row, pip: Pip) -> Judged:
    """Whether the environment takes a wheel, and what would change; it changes nothing.

    :raises Refused: it does not; all reasons at once.
    """
    told = _ask(archive, seen["python"], pip)
    subject = "%s in %s" % (archive.file, seen["python"])
    findings = (_tags(archive, told, subject) + _needs(told, subject, seen["python"])
                + _site(told, subject) + _removable(told, row, subject))
    local = [one for one in told["installed"] if one["local"]]
    scheme = {key: os.path.realpath(path) for key, path in told["scheme"].items()}
    site = scheme["purelib" if archive.pure else "platlib"]
    old, new = _old([] if blocking(findings) else local, scheme), _targets(archive, scheme, site)
    sites = {scheme["purelib"], scheme["platlib"]}
    folders = _folders([*old, *new], sites)
    theirs = owners({*old, *new, *_files(folders)}, sites, archive.package)
    left = Left(
        old=old, new=new, own=_topmost(folders - set(map(os.path.dirname, theirs))),
        site=_there(site),
        prefix=os.path.realpath(told["prefix"]),
        roots=sorted({os.path.realpath(told["prefix"]), *scheme.values(),
                      *(one["location"] for one in local)}),
        size=archive.size)
    findings += (_outside(left, subject) + _overwrites(archive, left, row, theirs, site, subject)
                 + _shared(left, theirs, subject))
    if blocking(findings):
        raise Refused(findings)
    return Judged(left, told, local[0]["version"] if local else "",
                  bool(local) and _is_same(archive, local[0]["record"]), findings)


def _ask(archive: Archive, python: str, pip: Pip) -> Told:
    question = {"package": archive.package, "tags": archive.tags, "pip": pip.folder,
                "requires_python": archive.requires_python, "requires": archive.requires}
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".json") as file:
        json.dump(question, file)
        file.flush()
        ran = run([python, "-I", "-B", "-c", SOURCE, file.name], timeout_s=ASK_S, env=clean())
    line = ran.stdout.rpartition("\n" + inside_probe.ANSWER)[2]
    try:
        told = json.loads(line)
    except ValueError:
        told = None
    if not ran.ok or not isinstance(told, dict):
        raise Refused([finding(
            "wheel-environment-broken", python, _last(ran), "an interpreter that tells where pip "
            "puts a package and what is installed", "see what that command says there: %s -I -m "
            "pip --version" % python)])
    return told


def _last(ran: Ran) -> str:
    """The end of what a tool said, without the program that it was given."""
    said = ran.error or ran.stderr.strip() or ran.stdout.strip() or "nothing"
    return "\n".join(_short(line) for line in said.splitlines()[-SHOWN:])


def _short(text: str) -> str:
    """A text from elsewhere, in one line and of a length."""
    return shown(text[:MOST_SHOWN]) + ("…" if len(text) > MOST_SHOWN else "")


def _some(texts: List[str], between: str = ", ") -> str:
    more = len(texts) - SHOWN
    return between.join(map(_short, texts[:SHOWN])) + (" and %d more" % more if more > 0 else "")


def _tags(archive: Archive, told: Told, subject: str) -> List[Finding]:
    found = []
    if not told["supported"]:
        found.append(finding(
            "wheel-tags", subject, "a wheel for %s" % _some(archive.tags),
            "one for Python %s of this machine" % told["python"],
            "name the file that fits, or let the role choose (`python -m pip debug --verbose` "
            "lists the tags that this interpreter takes)"))
    if not told["python_fits"]:
        found.append(finding(
            "wheel-python", subject, "Python %s" % told["python"],
            "Requires-Python %s" % _short(archive.requires_python),
            "another version of the package, or an environment of such a Python"))
    return found


def _needs(told: Told, subject: str, python: str) -> List[Finding]:
    """What Requires-Dist asks for: torch first, then what is absent, then what differs."""
    wanted = [one for one in told["requires"] if not one["fits"]]
    unread = ["%s (%s)" % (one["text"], one["why"]) for one in wanted if "why" in one]
    wanted = [one for one in wanted if "why" not in one]
    wanted.sort(key=lambda one: one["name"] != "torch")
    lacking = ["needs %s, there is %s" % (
        " ".join(filter(None, (one["name"], one["wanted"]))), one["found"] or "none")
               for one in wanted if one["name"] == "torch" or one["found"] is None]
    other = ["%s %s, there is %s" % (one["name"], one["wanted"], one["found"])
             for one in wanted if one["name"] != "torch" and one["found"] is not None]
    found = []
    if lacking:
        missing = [one["name"] + one["wanted"] for one in wanted
                   if one["name"] != "torch" and one["found"] is None]
        remedy = "install what is missing: %s -m pip install %s" % (
            python, _some(["'%s'" % one for one in missing], " ")) if missing else ""
        torch = [one for one in wanted if one["name"] == "torch"]
        found.append(finding(
            "wheel-needs", subject, _some(lacking, "; "),
            "what its METADATA requires (nothing but the wheel itself is installed)",
            "; ".join(filter(None, (
                "choose a wheel for the torch that is there, or change torch" if torch else "",
                remedy)))))
    if other:
        found.append(finding(
            "wheel-needs-other", subject, _some(other, "; "),
            "the versions that its METADATA names",
            "nothing while it works: it is imported and tried below", severity="warning"))
    if unread:
        found.append(finding(
            "wheel-needs-unread", subject, "requirements that cannot be read: %s"
            % _some(unread, "; "), "requirements as PEP 508 has them",
            "nothing while it works", severity="warning"))
    return found


def _site(told: Told, subject: str) -> List[Finding]:
    """Whether pip takes the environment's folders of packages for its own.

    It goes by where a link leads, and removes nothing that lies elsewhere: each version would be
    put beside the one before.
    """
    prefix = os.path.realpath(told["prefix"])
    out = ["%s, which is %s" % (path, os.path.realpath(path))
           for path in sorted({told["scheme"]["purelib"], told["scheme"]["platlib"]})
           if not os.path.realpath(path).startswith(prefix.rstrip(os.sep) + os.sep)]
    if not out or not told["virtual"]:
        return []
    return [finding(
        "wheel-site-linked", subject, "packages in another place than the environment: %s"
        % "; ".join(out), "folders below %s, as pip removes nothing that is elsewhere" % prefix,
        "make the environment anew without that link (%s can be a link as a whole)"
        % told["prefix"])]


def _removable(told: Told, row: Row, subject: str) -> List[Finding]:
    local = [one for one in told["installed"] if one["local"]]
    package, python = row["package"], told["prefix"]
    if told["egg_links"]:
        return [finding(
            "wheel-not-removable", subject, "%s is installed as a link to its source, by "
            "`setup.py develop`: %s" % (package, ", ".join(told["egg_links"])),
            "a package whose files are in the environment",
            "remove the link (pip uninstall %s), then run again" % package)]
    elsewhere = [one for one in local if not one["inside"]]
    if elsewhere:
        return [finding(
            "wheel-not-removable", subject, "%s %s lies in %s, which a .pth file adds; pip takes "
            "it for a part of %s, as the path begins alike, and would remove it there" % (
                package, elsewhere[0]["version"], elsewhere[0]["location"], python),
            "a package in the environment's own folders",
            "remove that folder from the .pth file, or name the environment that it belongs to")]
    if len(local) > 1:
        return [finding(
            "wheel-installed-twice", subject, "%s is recorded %d times: %s" % (
                package, len(local), ", ".join(one["info"] for one in local)), "once",
            "remove what is not in use (pip uninstall %s, until it says that there is none)"
            % package)]
    if local and not told["installed"][0]["local"]:
        first = told["installed"][0]
        return [finding(
            "wheel-installed-twice", subject, "%s %s in %s comes before %s %s in %s, so pip "
            "removes neither" % (package, first["version"], first["location"], package,
                                 local[0]["version"], local[0]["location"]), "once",
            "remove the folder that comes first from the .pth file that adds it, or the package "
            "from one of them")]
    if local and local[0]["record"] is None:
        return [finding(
            "wheel-not-removable", subject, "%s %s in %s without a list of its files (RECORD), as "
            "distutils and `setup.py develop` leave it" % (
                package, local[0]["version"], local[0]["location"]),
            "a package that pip can remove", "remove it by hand from %s, then run again" % python)]
    return []


def _old(local: List[Told], scheme: Dict[str, str]) -> List[str]:
    """Every file that pip removes: those of RECORD, and programs by their names alone."""
    found: Set[str] = set()
    for one in local:
        found.update(os.path.normpath(os.path.join(one["location"], row[0]))
                     for row in one["record"])
        found.update(os.path.normpath(os.path.join(scheme["scripts"], name))
                     for name in one["scripts"])
    return sorted(path for path in found if os.path.lexists(path))


def _targets(archive: Archive, scheme: Dict[str, str], site: str) -> List[str]:
    """Every file that pip may write for a wheel, without what it compiles."""
    found = {os.path.join(site, archive.info, name)
             for name in ("INSTALLER", "REQUESTED", "direct_url.json", "RECORD")}
    for member in archive.members:
        first, _, rest = member.partition("/")
        if not first.endswith(".data"):
            found.add(os.path.join(site, member))
            continue
        key, _, rest = rest.partition("/")
        folders = [scheme[key]]
        if key == "headers":
            # By its name as the file spells it, in some of pip's versions.
            spelled = archive.file.partition("-")[0]
            folders += [os.path.join(os.path.dirname(scheme[key]), one)
                        for one in (spelled, spelled.replace("_", "-"))]
        found.update(os.path.join(folder, rest) for folder in folders)
    found.update(os.path.join(scheme["scripts"], name) for name in archive.scripts)
    return sorted(found)


def _folders(files: List[str], sites: Set[str]) -> Set[str]:
    """The folders below those of packages in which files of the package lie."""
    folders = set(map(os.path.dirname, files))
    return {folder for folder in folders
            if any(folder.startswith(site + os.sep) for site in sites)}


def _files(folders: Iterable[str]) -> Iterator[str]:
    for folder in folders:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            yield from (os.path.join(folder, name) for name in os.listdir(folder))


def _topmost(folders: Set[str]) -> List[str]:
    return sorted(folder for folder in folders
                  if not any(folder.startswith(other + os.sep) for other in folders))


def _there(folder: str) -> str:
    """A folder, or the first above it that is there."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder


def _outside(left: Left, subject: str) -> List[Finding]:
    """Files of the old package that lie where no package has any."""
    out = [path for path in left.old
           if not any(path.startswith(root + os.sep) for root in left.roots)]
    if not out:
        return []
    return [finding(
        "wheel-record-outside", subject, "what is installed says that it has files outside of the "
        "environment: %s" % ", ".join(out[:SHOWN]), "files below %s" % ", ".join(left.roots),
        "look who made that RECORD, and remove the package by hand")]


def _overwrites(archive: Archive, left: Left, row: Row, theirs: Dict[str, str], site: str,
                subject: str) -> List[Finding]:
    """Files that others have, and that the wheel would replace."""
    old, wrong = set(left.old), []
    for path in left.new:
        if not os.path.lexists(path):
            continue
        member = os.path.relpath(path, site)
        if path in theirs:
            # Packages of one namespace share files that are the same.
            if not _has_hash(path, archive.record.get(member, "")):
                wrong.append("%s of %s" % (path, theirs[path]))
        elif path not in old and (os.path.isdir(path) or not _left_over(member, archive, row)):
            wrong.append(path)
    if not wrong:
        return []
    return [finding(
        "wheel-overwrites", subject, "it would replace what is not its own: %s" % _some(wrong),
        "files of its own", "do not use this file; or remove the package that has them, if that "
        "is its other name; or remove them by hand, if they are left over from it")]


def _left_over(member: str, archive: Archive, row: Row) -> bool:
    """Whether a file that nobody has can only be of an earlier install of the package.

    :param member: its path from the folder of packages.
    """
    first, _, rest = member.partition("/")
    if not rest and (first in STARTS_WITH or first.endswith(".pth")):
        return False
    names = {archive.package.replace("-", "_"), *(one.partition(".")[0] for one in row["imports"])}
    return first == archive.info or first.partition(".")[0] in names


def _shared(left: Left, theirs: Dict[str, str], subject: str) -> List[Finding]:
    """Files that pip would remove with the old package although another one has them too."""
    lost = ["%s of %s" % (path, theirs[path]) for path in sorted(set(left.old) - set(left.new))
            if path in theirs]
    if not lost:
        return []
    return [finding(
        "wheel-removes-shared", subject, "with what is installed now pip would remove what "
        "another package has too: %s" % _some(lost), "files that one package has",
        "uninstall the package by hand, run again, and then install the other one anew "
        "(pip install --force-reinstall --no-deps)")]


def _has_hash(path: str, wanted: str) -> bool:
    kind, _, encoded = wanted.partition("=")
    if kind != "sha256" or os.path.islink(path) or not os.path.isfile(path):
        return False
    digest = bytes.fromhex(sha256_of(path))
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == encoded.rstrip("=")


def _is_same(archive: Archive, record: List[List[str]]) -> bool:
    """Whether what is installed was made of these very files."""
    there = {row[0]: row[1] for row in record}
    files = {member: digest for member, digest in archive.record.items()
             if not member.partition("/")[0].endswith(".data")}
    return bool(files) and all(there.get(member) == files[member] for member in files)


# The change.


def put_in(change: Transaction, stash: Stash, pip: Pip, archive: Archive, path: str, sha256: str,
           judged: Judged, row: Row, python: str, probe_s: float, install_s: float,
           ) -> Tuple[Told, Told]:
    """Install a wheel, import it and run its kernel; ``imports`` and ``kernel`` of that.

    :param change: the change to the environment, entered; leaving it with an exception puts all
        back.
    :raises Refused: it was not installed, or does not work.
    :raises OSError: what is installed cannot be kept; nothing was changed.
    """
    subject = "%s in %s" % (archive.file, python)
    try:
        stash.keep(change, judged.left)
    except NoSpace as problem:
        raise Refused([finding(
            "wheel-no-space", subject, "%d MiB free in %s" % (problem.free // 2**20, problem.path),
            "%d MiB" % (-(-problem.needed // 2**20)),
            "make room on the file system of %s" % problem.path)]) from problem
    except OSError as problem:
        raise Refused([finding(
            "wheel-not-kept", subject, "%s: %s" % (problem.filename or stash.base,
                                                   problem.strerror or problem),
            "what is installed now, kept aside before it is replaced",
            "look at that path; nothing was changed")]) from problem
    with _temporary(stash.files) as folder:
        url = pathlib.Path(path).as_uri() + "#sha256=" + sha256
        ran = run(stash.holder([*pip.argv, *OPTIONS, *INSTALL, url]), timeout_s=install_s,
                  env={**clean(), "TMPDIR": folder})
    if ran.rc is None:
        raise Refused([finding(
            "wheel-pip-slow", subject, "pip %s: %s" % (pip.version, ran.error),
            "an installation within prebuilt_wheel_install_s (%g s)" % install_s,
            "raise prebuilt_wheel_install_s, or see what keeps the disk busy")])
    if not ran.ok:
        raise Refused([finding(
            "wheel-pip-failed", subject, _last(ran), "a pip %s that installs it" % pip.version,
            "see what pip says above; run it by hand: %s" % " ".join(
                [*pip.argv, "install", "--no-deps", "--no-index", path]))])
    imports, kernel = environment.prove(python, row, probe_s)
    findings = proof_findings(imports, kernel, subject, row)
    if findings:
        raise Refused(findings)
    stash.done()
    return imports, kernel


def proof_findings(imports: Told, kernel: Told, subject: str, row: Row) -> List[Finding]:
    """What speaks against a package that was imported and tried."""
    if imports["state"] != "ok":
        return [finding(
            "wheel-import-" + imports["state"], subject, imports["why"],
            "that %s is imported" % ", ".join(row["imports"]),
            "another build of the package: it is made for another torch, CUDA or C++ ABI; or "
            "bring the library that it names")]
    if kernel["state"] not in WORKS:
        return [finding(
            "wheel-kernel-" + kernel["state"], subject, kernel["why"],
            "that its kernel runs on this host's device and computes what the reference does",
            "another build of the package, with kernels for this GPU and this torch")]
    return []


def works(there: Any) -> bool:
    """Whether a package that is installed was imported and ran its kernel."""
    return bool(there) and there["imports"]["state"] == "ok" and there["kernel"]["state"] in WORKS


def clean() -> Dict[str, str]:
    """Variables that undo what the caller's have to say to pip and Python.

    To both of them a variable that is empty is not set.
    """
    cleaned = {name: "" for name in os.environ if name.startswith(("PIP_", "PYTHON"))}
    return {**cleaned, "PIP_CONFIG_FILE": os.devnull, "PYTHONNOUSERSITE": "1",
            "PYTHONDONTWRITEBYTECODE": "1"}


@contextlib.contextmanager
def _temporary(folder: str) -> Iterator[str]:
    """A folder for pip's own, on the file system on which it moves files about."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="pip-") as inner:
        yield inner
