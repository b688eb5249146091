# SPDX-License-Identifier: Apache-2.0
"""Keeps what is known of a host in the folder of reports, and makes its pages anew when asked."""

from __future__ import annotations

import json
import os

import ansible.module_utils
from ansible.plugins.action import ActionBase

# Core looks into our module_utils for modules only.
ansible.module_utils.__path__.append(
    os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "module_utils"))

from ansible.module_utils.firstlight import fleet_pages, passport
from ansible.module_utils.firstlight.planning import fleet_report

OPTIONS = {
    "state": {"type": "str", "choices": ["recorded", "rendered"], "default": "recorded"},
    "directory": {"type": "str", "required": True},
    "root": {"type": "str"},
    "endpoints": {"type": "list", "elements": "dict", "default": []},
    "verdicts": {"type": "list", "elements": "dict", "default": []},
    "facts": {"type": "dict", "default": {}},
    "health": {"type": "dict", "default": {}},
    "complete": {"type": "bool", "default": True},
    "forget": {"type": "list", "elements": "str", "default": []},
}


class ActionModule(ActionBase):
    """Runs on the controller, and asks no host for anything.

    ``state: recorded`` writes the passports and ``host.json`` of the host that the task is for, and
    hands all of it to the closing summary. It is changed where a passport or what the host is
    differs; how the host was found is written too, and is no change.

    ``state: rendered`` forgets hosts and makes the pages.

    A folder that cannot be written is a warning: what was proven is proven.
    """

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_diff = True

    def run(self, tmp=None, task_vars=None):
        """The result of the task."""
        result = super().run(tmp, task_vars)
        given = self.validate_argument_spec(OPTIONS)[1]
        given["directory"] = os.path.abspath(os.path.expanduser(given["directory"]))
        work = self._recorded if given["state"] == "recorded" else self._rendered
        result.update(changed=False, directory=given["directory"])
        result.update(work(given, task_vars["inventory_hostname"]))
        return result

    def _recorded(self, given, host):
        told = {"ansible_stats": {"per_host": True, "aggregate": False, "data": {
            "firstlight_root": given["root"],
            "firstlight_passports": [one["passport"] for one in given["endpoints"]],
            "firstlight_verdicts": given["verdicts"],
        }}}
        directory, folder = given["directory"], fleet_pages.host_folder(given["directory"], host)
        path = os.path.join(folder, fleet_pages.HOST + ".json")
        try:
            before = fleet_pages.read(path)
        except ValueError:
            before = None  # it is written anew
        # Core's own kinds of texts and mappings end here.
        plain = json.loads(json.dumps(given))
        record = fleet_report.host_record(host, plain, before, passport.now())
        wanted = {fleet_pages.passport_path(directory, host, one["name"]):
                  fleet_pages.as_json(one["passport"]) for one in plain["endpoints"]}
        try:
            gone = _passports(folder, [
                fleet_pages.passport_path(directory, host, one)
                for one in fleet_report.endpoint_names(before)]) if given["complete"] else []
            found = {one: _bytes(one) for one in {*wanted, *gone}}
            changes = {one: (found[one], wanted.get(one)) for one in sorted(found)
                       if found[one] != wanted.get(one)}
            was, now = fleet_report.identity(before), fleet_report.identity(record)
            if not self._task.check_mode:
                for one, (_old, new) in changes.items():
                    if new is None:
                        os.unlink(one)
                    else:
                        fleet_pages.write(one, new)
                fleet_pages.write(path, fleet_pages.as_json(record))
        except OSError as problem:
            return {**told, "warnings": [str(fleet_pages.unwritable(directory, problem))]}
        if was != now:
            changes[path] = tuple(fleet_pages.as_json(one) if one else None
                                  for one in (before and was, now))
        return {**told, "changed": bool(changes), "diff": [
            {"before_header": one, "after_header": one, "before": _shown(old), "after": _shown(new)}
            for one, (old, new) in changes.items()]}

    def _rendered(self, given, host):
        directory = given["directory"]
        try:
            forgotten = fleet_pages.forget(directory, given["forget"], self._task.check_mode)
            told = {"changed": bool(forgotten), "forgotten": forgotten}
            known = fleet_pages.read_all(directory)
            if not known["hosts"]:
                return {**told, "msg": "Nothing is kept in %s: playbooks/site.yml writes what it "
                                       "finds of hosts there." % directory}
            if not self._task.check_mode:
                report = fleet_pages.make_pages(directory)
                told["warnings"] = report["unread"]
        except fleet_pages.Unwritable as problem:
            return {"failed": True, "msg": str(problem)}
        except OSError as problem:
            return {"failed": True, "msg": str(fleet_pages.unwritable(directory, problem))}
        return {**told, "msg": "%s: %d hosts" % (
            os.path.join(directory, fleet_pages.PAGES[0]), len(known["hosts"]))}


def _passports(folder, named):
    """The passports that are kept of a host: those that its record named, and what looks like one.

    Anything else there was put there by somebody else, and is none of ours.
    """
    kept = {name + ".json" for name in (fleet_pages.HOST, fleet_pages.RUN)}
    files = [os.path.join(folder, one) for one in (
        os.listdir(folder) if os.path.isdir(folder) else [])
        if one.endswith(".json") and one not in kept and not one.startswith(".")]
    return [one for one in files if one in named or _is_passport(one)]


def _is_passport(path):
    try:
        found = fleet_pages.read(path)
    except ValueError:
        return False
    return isinstance(found, dict) and {"schema", "endpoint", "plan"} <= set(found)


def _bytes(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _shown(content):
    return "" if content is None else content.decode("utf-8", "replace")
