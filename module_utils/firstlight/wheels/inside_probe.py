# SPDX-License-Identifier: Apache-2.0
"""What pip would make of a wheel in an environment: asked inside the environment's interpreter.

Sent as text to a Python that may be older than this host's (3.8 on), with the path of a question in
JSON. It answers in JSON on standard output, behind a line of its own, and changes nothing. The
rules of versions, markers and tags are those of the ``packaging`` that pip brings, so that nothing
is accepted here that pip refuses.
"""

from __future__ import annotations

import configparser
import contextlib
import csv
import json
import os
import re
import sys
import sysconfig
from importlib import metadata
from typing import Any, Dict, Iterator, List, Optional

ANSWER = "firstlight wheel: "
MOST_ROWS = 200000

Told = Dict[str, Any]


def main(argv: List[str]) -> None:
    """Answer the question in the file that is named."""
    with open(argv[0], encoding="utf-8") as file:
        question = json.load(file)
    print("\n" + ANSWER + json.dumps(answer(question)))


def answer(question: Told) -> Told:
    """What the environment says.

    :param question: ``package``, normalised; ``file``'s own ``tags``; ``requires_python``;
        ``requires``; and ``pip``, the folder in which pip lies where the environment has none.
    """
    packaging = Packaging(question["pip"])
    folders = scheme(packaging, question["package"])
    return {
        "scheme": folders,
        "prefix": sys.prefix,
        "virtual": sys.prefix != sys.base_prefix,
        "python": ".".join(map(str, sys.version_info[:3])),
        "supported": supported(packaging, question["tags"]),
        "python_fits": python_fits(packaging, question["requires_python"]),
        "requires": list(requirements(packaging, question["requires"])),
        "installed": installed(packaging, question["package"], folders),
        "egg_links": egg_links(question["package"], folders),
    }


class Packaging:
    """pip's own ``packaging``, imported without anything else of the place where pip lies."""

    def __init__(self, folder: str) -> None:
        if folder:
            sys.path.insert(0, folder)
        try:
            from pip._vendor.packaging import requirements, specifiers, tags

            self.requirements, self.specifiers, self.tags = requirements, specifiers, tags
            try:
                from pip._internal.locations import get_scheme

                self.get_scheme = get_scheme  # type: Any
            except ImportError:
                self.get_scheme = None
            try:
                from pip._internal.utils.misc import is_local

                self.is_local = is_local  # type: Any
            except ImportError:
                self.is_local = _is_local
        finally:
            if folder:
                sys.path.remove(folder)


def scheme(packaging: Packaging, package: str) -> Dict[str, str]:
    """The folders into which pip puts the parts of a wheel."""
    if packaging.get_scheme:
        found = packaging.get_scheme(package, user=False, home=None, root=None, isolated=True,
                                     prefix=None)
        return {key: getattr(found, key)
                for key in ("purelib", "platlib", "headers", "scripts", "data")}
    paths = sysconfig.get_paths()
    return {"purelib": paths["purelib"], "platlib": paths["platlib"],
            "headers": os.path.join(paths["include"], package), "scripts": paths["scripts"],
            "data": paths["data"]}


def supported(packaging: Packaging, tags: List[str]) -> bool:
    """Whether this interpreter takes a wheel with these tags."""
    return not {str(tag) for tag in packaging.tags.sys_tags()}.isdisjoint(tags)


def python_fits(packaging: Packaging, wanted: str) -> Optional[bool]:
    """Whether Requires-Python admits this interpreter; ``None`` when it cannot be read."""
    try:
        return bool(packaging.specifiers.SpecifierSet(wanted).contains(
            ".".join(map(str, sys.version_info[:3])), prereleases=True))
    except ValueError:
        return None


def requirements(packaging: Packaging, lines: List[str]) -> Iterator[Told]:
    """What Requires-Dist asks of this environment, and what there is."""
    there = {}  # type: Dict[str, str]
    for distribution in metadata.distributions():
        name, version = _names(distribution)
        if name:
            there.setdefault(name, version)
    for line in lines:
        try:
            wanted = packaging.requirements.Requirement(line)
            if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
                continue
            name = normal(wanted.name)
            found = there.get(name)
            fits = found is not None and bool(
                wanted.specifier.contains(found, prereleases=True))
            yield {"text": line, "name": name, "wanted": str(wanted.specifier), "found": found,
                   "fits": fits}
        except Exception as problem:
            yield {"text": line, "name": "", "wanted": "", "found": None, "fits": False,
                   "why": "%s: %s" % (type(problem).__name__, problem)}


def installed(packaging: Packaging, package: str, folders: Dict[str, str]) -> List[Told]:
    """Where the package is installed: more than once where the path has it more than once.

    ``local`` is whether pip takes it for one of this environment's, so that it would remove it;
    ``inside`` is whether it is. ``scripts`` are the programs that pip removes along with it,
    whether its list of files has them or not.
    """
    within = [sys.prefix, folders["purelib"], folders["platlib"]]
    found, seen = [], set()
    for distribution in metadata.distributions():
        name, version = _names(distribution)
        if name != package:
            continue
        info = getattr(distribution, "_path", None)
        path = os.path.realpath(str(info)) if info is not None else ""
        if path in seen:
            continue
        seen.add(path)
        location = os.path.realpath(str(distribution.locate_file("")))
        text = distribution.read_text("RECORD")
        found.append({
            "version": version, "info": path, "location": location,
            "local": bool(packaging.is_local(location)),
            "inside": any(_inside(location, one) for one in within),
            "scripts": scripts(distribution, path),
            "record": None if text is None or not path.endswith(".dist-info") else [
                row[:2] + [""] * (2 - len(row)) for row in csv.reader(text.splitlines()) if row
            ][:MOST_ROWS],
        })
    return found


def scripts(distribution: Any, info: str) -> List[str]:
    """The programs that a package asks for by entry points, or has by distutils."""
    points = configparser.RawConfigParser(delimiters=("=",), strict=False)
    points.optionxform = str  # type: ignore
    # Of one that cannot be read pip has no names either.
    with contextlib.suppress(configparser.Error):
        points.read_string(distribution.read_text("entry_points.txt") or "")
    found = {name for section in ("console_scripts", "gui_scripts")
             if points.has_section(section) for name in points.options(section)}
    with contextlib.suppress(OSError):
        found.update(os.listdir(os.path.join(info, "scripts")))
    return sorted(found)


def egg_links(package: str, folders: Dict[str, str]) -> List[str]:
    """What `setup.py develop` left of the package: pip goes by it wherever the source lies."""
    found = []  # type: List[str]
    for folder in {folders["purelib"], folders["platlib"]}:
        with contextlib.suppress(OSError):
            found.extend(
                os.path.join(folder, name) for name in os.listdir(folder)
                if name.endswith(".egg-link") and normal(name[:-len(".egg-link")]) == package)
    return sorted(found)


def _is_local(path: str) -> bool:
    """What pip says of a path, which compares no more than how the texts begin."""
    return sys.prefix == sys.base_prefix or path.startswith(os.path.realpath(sys.prefix))


def _names(distribution: Any) -> List[str]:
    try:
        return [normal(distribution.metadata["Name"] or ""), str(distribution.version)]
    except Exception:
        # What is left of a package that was removed by hand has no name.
        return ["", ""]


def _inside(path: str, folder: str) -> bool:
    return (os.path.realpath(path) + os.sep).startswith(
        os.path.realpath(folder).rstrip(os.sep) + os.sep)


def normal(name: str) -> str:
    """A package's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main(sys.argv[1:])
