# SPDX-License-Identifier: Apache-2.0
"""What a source distribution needs to be built and does not find.

It runs by its text in the interpreter that would build it, whose Python may be older than ours and
has nothing of ours. Nothing of the distribution is run: its files are read.
"""

import ast
import configparser
import importlib.util
import json
import os
import sys
import sysconfig
from typing import Any, Dict, List, Tuple

# PEP 517: a distribution without a pyproject.toml is built by setuptools, as it always was.
LEGACY = "setuptools>=40.8.0"
# setuptools makes wheels by itself from this one on.
MAKES_WHEELS = "70.1"


def probe(asked: Dict[str, Any]) -> Dict[str, Any]:
    """What is missing and what was found, as JSON takes it.

    :param asked: ``pyproject``, ``setup`` and ``setup_cfg`` (texts, empty where there is none),
        ``own`` (modules that the distribution brings), ``requires`` (what its row adds), and
        ``pip`` (the folder of a pip where the environment has none).
    """
    if asked["pip"]:
        # Last, so that what the environment has wins.
        sys.path.append(os.path.dirname(asked["pip"]))
    if importlib.util.find_spec("pip") is None:
        return {"pip": False, "missing": [], "header": True, "problem": ""}
    requires, problem = _requires(asked)
    missing = []
    for how, need in requires:
        found = _unmet(need)
        if found:
            missing.append({"need": need, "how": how, "found": found})
    if asked["setup"]:
        missing += [{"need": name, "how": "setup.py imports it", "found": "not there"}
                    for name in _imports(asked["setup"]) if not _importable(name, asked["own"])]
    header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
    return {"pip": True, "missing": missing, "header": os.path.exists(header), "problem": problem}


def _requires(asked: Dict[str, Any]) -> Tuple[List[Tuple[str, str]], str]:
    """Requirements with where they are told, and what cannot be read."""
    requires = [("the row's build.requires", one) for one in asked["requires"]]
    system = None
    problem = ""
    if asked["pyproject"]:
        try:
            system = _toml().loads(asked["pyproject"]).get("build-system")
        except ImportError:
            problem = "this pip cannot read pyproject.toml"
        except ValueError as wrong:
            problem = "pyproject.toml: %s" % wrong
    if isinstance(system, dict) and isinstance(system.get("requires"), list):
        requires += [("pyproject.toml", str(one)) for one in system["requires"]]
    elif not problem:
        requires.append(("setuptools builds it", LEGACY))
        if not _unmet(LEGACY) and _unmet("setuptools>=" + MAKES_WHEELS):
            requires.append(("setuptools before %s makes wheels with it" % MAKES_WHEELS, "wheel"))
    requires += [("setup_requires", one) for one in _setup_requires(asked["setup"])]
    config = configparser.ConfigParser()
    try:
        config.read_string(asked["setup_cfg"])
        told = config.get("options", "setup_requires", fallback="", raw=True)
    except configparser.Error:
        told = ""
    requires += [("setup_requires", one.strip())
                 for one in told.replace(";", "\n").splitlines() if one.strip()]
    return requires, problem


def _toml() -> Any:
    try:
        return importlib.import_module("tomllib")
    except ImportError:
        return importlib.import_module("pip._vendor.tomli")


def _unmet(need: str) -> str:
    """What is there instead of a requirement; empty where it is met, or is for other systems."""
    from importlib import metadata

    try:
        read = importlib.import_module("packaging.requirements")
    except ImportError:
        read = importlib.import_module("pip._vendor.packaging.requirements")
    try:
        wanted = read.Requirement(need)
    except read.InvalidRequirement:
        return "not a requirement"
    if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
        return ""
    try:
        version = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return "not installed"
    met = version and wanted.specifier.contains(version, prereleases=True)
    return "" if met else "%s is installed" % version


def _tree(text: str) -> ast.Module:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return ast.Module(body=[], type_ignores=[])


def _setup_requires(text: str) -> List[str]:
    """What ``setup(setup_requires=[…])`` names, as far as it stands there as it is."""
    found = []
    for node in ast.walk(_tree(text)):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        for keyword in node.keywords:
            if name == "setup" and keyword.arg == "setup_requires":
                try:
                    value = ast.literal_eval(keyword.value)
                except ValueError:
                    continue
                value = [value] if isinstance(value, str) else value
                if isinstance(value, (list, tuple)):
                    found += [one for one in value if isinstance(one, str)]
    return found


def _imports(text: str) -> List[str]:
    """Modules without which setup.py cannot even begin; what it tries or may leave is not."""
    found = []
    for node in _tree(text).body:
        if isinstance(node, ast.Import):
            found += [one.name.partition(".")[0] for one in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.append(node.module.partition(".")[0])
    return sorted(set(found))


def _importable(name: str, own: List[str]) -> bool:
    # setuptools brings distutils, where Python does not any more, and needs its own line only.
    if name in own or name in ("distutils", "setuptools", "__future__"):
        return True
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        print(json.dumps(probe(json.load(file))))
