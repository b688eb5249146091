# SPDX-License-Identifier: Apache-2.0
"""Whole modules, run in this process as Ansible would, and held to what they document.

``run_module`` runs a module's ``main`` and fails the test where the result is not what the module's
RETURN promises: an undocumented key, another type, a missing key that is ``returned: always``, a
diff or a check mode other than its attributes say. A session that ran the whole of ``tests/unit``
also fails where a documented key was never returned, so that no promise stands unproven.
"""

from __future__ import annotations

import importlib
import json
import pathlib
import sys

import pytest
import yaml

# What Ansible itself gives a meaning, in any module.
COMMON = {"changed", "failed", "msg", "rc", "skipped", "warnings", "deprecations", "exception",
          "invocation", "diff"}
# What Ansible adds by itself to a result that has the `path` of a file.
OF_A_PATH = {"uid", "gid", "owner", "group", "mode", "state", "size", "secontext"}
PYTHON = {"str": str, "path": str, "int": int, "float": (int, float), "bool": bool, "list": list,
          "dict": dict, "complex": dict, "raw": object}
# What this session noted: the keys returned by module, its test files, what was never returned.
SEEN, FILES, MISSING = pytest.StashKey(), pytest.StashKey(), pytest.StashKey()


class Promise:
    """What a module's documentation says of its results."""

    def __init__(self, module):
        self.name = module.__name__
        documentation = yaml.safe_load(module.DOCUMENTATION)
        self.returns = yaml.safe_load(module.RETURN) or {}
        self.attributes = documentation.get("attributes") or {}

    def broken_by(self, result, check, diff):
        """Sentences on what a result has that was not promised, or lacks."""
        if result.get("failed"):
            # A run that failed owes its message; what it returns beside that must be documented.
            wrong = [] if result.get("msg") else ["found a failure without msg, wanted the reason"]
        else:
            wrong = ["found no %s, wanted it always" % key for key, told in self.returns.items()
                     if told.get("returned") in ("always", "success") and key not in result]
        added = COMMON | (OF_A_PATH if "path" in result else set())
        given = {key: value for key, value in result.items()
                 if key not in added or key in self.returns}
        wrong += _unlike("", given, self.returns)
        wrong += self._mode("check_mode", check, not result.get("skipped"))
        # Ansible guesses secrets by their names, and only warns.
        wrong += ["found the warning %r, wanted no_log said in the argument spec" % str(said)
                  for said in result.get("warnings", []) if "no_log" in str(said)]
        if diff and result.get("changed") and not result.get("failed"):
            wrong += self._mode("diff_mode", True, "diff" in result)
        elif "diff" in result and not diff:
            wrong.append("found a diff that was not asked for, wanted none")
        return wrong

    def _mode(self, mode, asked, did):
        support = (self.attributes.get(mode) or {}).get("support")
        if not asked or support == "partial" or (support == "full") == did:
            return []
        return ["found %s support: %s, wanted what the run did: %s" % (
            mode, support, "full" if did else "none")]

    def keys(self):
        """The path of every documented key."""
        return set(_paths("", self.returns))


def _paths(path, told):
    for name, key in told.items():
        yield path + name
        yield from _paths(path + name + ".", key.get("contains") or {})


def _unlike(path, given, told):
    """What a mapping of a result has that its documentation does not."""
    for name, value in given.items():
        here = path + name
        if name not in told:
            yield "found %s, wanted only what RETURN documents" % here
            continue
        kind = told[name].get("type", "raw")
        # What cannot be read is null; that it is, the module says in its own way.
        if value is None:
            continue
        if not isinstance(value, PYTHON[kind]) or (kind in ("int", "float")
                                                   and isinstance(value, bool)):
            yield "found %s: %r, wanted a value of type %s" % (here, value, kind)
        inner = told[name].get("contains")
        for one in value if isinstance(value, list) else [value]:
            elements = told[name].get("elements")
            if isinstance(value, list) and elements and not isinstance(one, PYTHON[elements]):
                yield "found %r in %s, wanted elements of type %s" % (one, here, elements)
            elif inner and isinstance(one, dict):
                yield from _unlike(here + ".", one, inner)


def _returned(path, given, told):
    """The paths of the documented keys that a result holds with a value."""
    for name, value in given.items():
        if name in told and value is not None:
            yield path + name
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, dict):
                    yield from _returned(path + name + ".", one, told[name].get("contains") or {})


@pytest.fixture
def run_module(capfd, tmp_path, request):
    """Run a module's ``main`` as Ansible would, in this process; returns what it printed.

    ``check`` and ``diff`` are Ansible's modes, everything else is an option of the module.
    """
    from ansible.module_utils.testing import patch_module_args

    def run(main, check=False, diff=False, **params):
        args = dict(params, _ansible_check_mode=check, _ansible_diff=diff,
                    _ansible_remote_tmp=str(tmp_path / "remote-tmp"))
        capfd.readouterr()
        with patch_module_args(args), pytest.raises(SystemExit):
            main()
        result = json.loads(capfd.readouterr().out)
        promise = Promise(sys.modules[main.__module__])
        broken = promise.broken_by(result, check, diff)
        assert not broken, "%s keeps not what it documents:\n%s\nin %s" % (
            promise.name, "\n".join(broken), result)
        request.config.stash[SEEN].setdefault(promise.name, set()).update(
            _returned("", result, promise.returns))
        return result

    return run


def pytest_configure(config):
    """Begin to note what modules return, and which files the session has."""
    config.stash[SEEN] = {}
    config.stash[FILES] = set()


def pytest_collection_finish(session):
    """Note the files: under xdist it is the workers that collect."""
    session.config.stash[FILES].update(str(item.path) for item in session.items)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Take over what a worker of xdist noted."""
    noted = getattr(node, "workeroutput", {})
    node.config.stash[FILES].update(noted.get("files", []))
    for module, keys in noted.get("seen", {}).items():
        node.config.stash[SEEN].setdefault(module, set()).update(keys)


def pytest_sessionfinish(session):
    """Fail a whole session in which a promise was never kept."""
    config = session.config
    if hasattr(config, "workeroutput"):
        config.workeroutput["files"] = sorted(config.stash[FILES])
        config.workeroutput["seen"] = {module: sorted(keys)
                                       for module, keys in config.stash[SEEN].items()}
    elif _ran_every_unit_test(session):
        config.stash[MISSING] = never_returned(config.rootpath / "library", config.stash[SEEN])
        if config.stash[MISSING]:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    """Name what was never returned."""
    for key in config.stash.get(MISSING, []):
        terminalreporter.write_line(
            "RETURN documents %s, which no run_module run returned: test it, or take it out" % key,
            red=True)


def never_returned(library, seen):
    """``module: key`` for everything documented that no run returned."""
    missing = []
    for file in sorted(pathlib.Path(library).glob("*.py")):
        promise = Promise(importlib.import_module(file.stem))
        missing += ["%s: %s" % (file.stem, key)
                    for key in sorted(promise.keys() - seen.get(file.stem, set()))]
    return missing


def _ran_every_unit_test(session):
    """Whether nothing of tests/unit was left out or failed, so that what is missing is missing."""
    config = session.config
    every = (config.rootpath / "tests" / "unit").glob("test_*.py")
    option = config.option
    narrowed = option.keyword or option.markexpr or option.collectonly or option.deselect
    return (config.stash[FILES].issuperset(map(str, every))
            and not narrowed and not session.testsfailed)
