# SPDX-License-Identifier: Apache-2.0
"""The counter sees every exec, put and fetch, whatever connection plugin makes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

CONFIG = """
[defaults]
callback_plugins = own callbacks
callbacks_enabled = own
interpreter_python = %s
gathering = explicit
""" % sys.executable

OWN = """
from ansible.plugins.callback import CallbackBase
DOCUMENTATION = "name: own\\ntype: aggregate\\nshort_description: x\\ndescription: x"
class CallbackModule(CallbackBase):
    CALLBACK_VERSION, CALLBACK_TYPE, CALLBACK_NAME = 2.0, "aggregate", "own"
    CALLBACK_NEEDS_ENABLED = True
    def v2_playbook_on_stats(self, stats):
        self._display.display("its own callback is there")
"""

# As ssh without sftp does: a put is an exec of its own.
PLUGIN = """
from ansible.plugins.connection.local import Connection as Local
DOCUMENTATION = "name: far\\nshort_description: x\\ndescription: x\\noptions: {}\\n" \\
    "extends_documentation_fragment: [connection_pipelining]"
class Connection(Local):
    transport = "far"
    def put_file(self, in_path, out_path):
        self.exec_command("true")
        super().put_file(in_path, out_path)
"""


@pytest.fixture
def play(tmp_path, remote_calls):
    """Run tasks on two hosts; gives what was printed."""
    for name, content in (("ansible.cfg", CONFIG), ("own callbacks/own.py", OWN),
                          ("connection_plugins/far.py", PLUGIN)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)

    def run(*tasks, hosts=("one", "two"), **settings):
        play = {"hosts": "all", "tasks": tasks, **settings}
        (tmp_path / "play.yml").write_text(json.dumps([play]))
        env = dict(os.environ, ANSIBLE_CONFIG=str(tmp_path / "ansible.cfg"),
                   ANSIBLE_HOME=str(tmp_path / "home"),
                   **remote_calls.environment(tmp_path / "ansible.cfg"))
        done = subprocess.run(
            ["ansible-playbook", "--inventory", ",".join(hosts) + ",", "play.yml"], cwd=tmp_path,
            env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60,
            check=False)
        assert done.returncode == 0, done.stdout
        return done.stdout

    return run


PIPELINED = {"connection": "far", "vars": {"ansible_pipelining": True}}
COPIED = {"connection": "far", "vars": {"ansible_pipelining": False}}


def test_each_task_is_counted_for_its_host_and_kind(play, remote_calls, tmp_path):
    (tmp_path / "file").write_text("dear")
    printed = play(
        {"name": "Ask", "ansible.builtin.command": "true"},
        {"name": "Ask each", "ansible.builtin.command": "true", "loop": [1, 2, 3]},
        {"name": "Bring", "ansible.builtin.fetch": {
            "src": str(tmp_path / "file"), "dest": str(tmp_path / "fetched")}},
        {"name": "Decide", "ansible.builtin.set_fact": {"decided": True}},
        {"name": "Here", "ansible.builtin.command": "true", "delegate_to": "localhost"},
        {"name": "There", "ansible.builtin.command": "true", "delegate_to": "two",
         "when": "inventory_hostname == 'one'"},
        **PIPELINED)
    found = remote_calls.by("host", "task", "kind")
    assert {key: count for key, count in found.items() if key[1] != "Bring"} == {
        ("one", "Ask", "exec"): 1, ("two", "Ask", "exec"): 1,
        ("one", "Ask each", "exec"): 3, ("two", "Ask each", "exec"): 3,
        ("two", "There", "exec"): 1,
    }
    assert found["one", "Bring", "fetch"] == found["two", "Bring", "fetch"] == 1
    assert "its own callback is there" in printed


def test_without_pipelining_a_module_is_put_first(play, remote_calls):
    ask = {"name": "Ask", "ansible.builtin.command": "true"}
    play(ask, hosts=["one"], **COPIED)
    # A home, a folder, the module's mode, the module, the folder's end: what a put itself executes
    # is no call of its own.
    assert remote_calls.by("kind") == {"exec": 5, "put": 1}


def test_one_more_task_is_noticed_and_the_message_says_where(play, remote_calls):
    play({"name": "Ask", "ansible.builtin.command": "true"},
         {"name": "Ask again", "ansible.builtin.command": "true"}, **PIPELINED)
    remote_calls.expect(host={"one": 2, "two": 2}, task={"Ask": 2, "Ask again": 2})
    with pytest.raises(AssertionError, match=(
            r"by task has changed:\n  Ask again: 2 instead of 0\n(.|\n)*"
            r"host +role +task +kind +calls\n(.|\n)*one +Ask again +exec +1\n"
            r"(.|\n)*say in the commit")):
        remote_calls.expect(task={"Ask": 2})
    with pytest.raises(AssertionError, match="  Gone: 0 instead of 1"):
        remote_calls.expect(task={"Ask": 2, "Ask again": 2, "Gone": 1})


def test_a_play_that_asks_nothing_costs_nothing(play, remote_calls):
    play({"name": "Decide", "ansible.builtin.set_fact": {"decided": True}}, **PIPELINED)
    remote_calls.expect(role={})


def test_a_counter_that_was_not_loaded_is_no_zero(remote_calls):
    with pytest.raises(AssertionError, match="was not loaded"):
        remote_calls.all()
