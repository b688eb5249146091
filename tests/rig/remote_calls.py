# SPDX-License-Identifier: Apache-2.0
"""Counts remote calls: what makes a run slow on real hosts, and is the same on every machine.

A remote call is one exec, put or fetch of the connection plugin of a host, whatever the plugin. A
task that is delegated to the controller makes none. What an action plugin runs on the controller
by itself (rsync of ``ansible.posix.synchronize``) is not seen. A task that polls makes as many as
it takes: count the others, or ask whether it is there.
"""

from __future__ import annotations

import collections
import configparser
import json
import os
import pathlib

import pytest

CALLBACKS = pathlib.Path(__file__).resolve().parent / "callbacks"


class RemoteCalls:
    """The calls of the commands that were run with :meth:`environment`."""

    def __init__(self, log):
        self._log = log

    def environment(self, config):
        """Variables to run Ansible with.

        :param config: the ansible.cfg that it reads; its own callbacks stay.
        """
        config = pathlib.Path(config)
        parser = configparser.ConfigParser(interpolation=None)
        parser.read_string(config.read_text(encoding="utf-8"))
        own = parser.get("defaults", "callback_plugins", fallback="")
        folders = [str(config.parent / one) for one in own.split(os.pathsep) if one]
        return {
            "ANSIBLE_CALLBACK_PLUGINS": os.pathsep.join([*folders, str(CALLBACKS)]),
            "FIRSTLIGHT_TEST_REMOTE_CALLS": str(self._log),
        }

    def all(self):
        """Every call, in its order, as ``{host, role, task, kind}``."""
        assert self._log.exists(), (
            "the counter was not loaded: run Ansible with the environment of `remote_calls`")
        return [json.loads(line) for line in self._log.read_text(encoding="utf-8").splitlines()]

    def by(self, *fields):
        """How many calls there were, e.g. ``by("role")`` gives ``{"toolbelt": 3}``."""
        return dict(collections.Counter(
            call[fields[0]] if len(fields) == 1 else tuple(call[field] for field in fields)
            for call in self.all()))

    def expect(self, **by):
        """Fail with what was called where, unless e.g. ``role={"toolbelt": 3}`` is the count."""
        for field, wanted in by.items():
            found = self.by(field)
            different = [
                "  %s: %d instead of %d" % (name or "(none)", found.get(name, 0),
                                            wanted.get(name, 0))
                for name in sorted({*found, *wanted}) if found.get(name, 0) != wanted.get(name, 0)]
            if different:
                raise AssertionError(
                    "The number of remote calls by %s has changed:\n%s\n\n%s\n\nEach is a round "
                    "trip to every host. If more are needed, change the numbers in this test and "
                    "say in the commit what they buy." % (field, "\n".join(different), self))

    def __str__(self):
        """A table of the calls, in the order of the first of each line."""
        rows = [("host", "role", "task", "kind", "calls")]
        rows += [(*key, str(count))
                 for key, count in self.by("host", "role", "task", "kind").items()]
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
            for row in rows)


@pytest.fixture
def remote_calls(tmp_path):
    """Count the remote calls of what is run with ``remote_calls.environment(ansible_cfg)``."""
    return RemoteCalls(tmp_path / "remote-calls.jsonl")
