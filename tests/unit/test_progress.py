# SPDX-License-Identifier: Apache-2.0
"""The progress callback in real runs: fifty hosts in a pipe, a few on a terminal."""

from __future__ import annotations

import collections
import os
import pathlib
import pty
import re
import select
import signal
import subprocess
import sys
import tty

import progress
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LINE = re.compile(
    r"^(\S+) +(alpha|beta|gamma|delta|The play) +(\w[\w ]*?) +[\d.]+ s(?:  (.*))?$", re.MULTILINE)
CHANGING, FAILING, GONE, RESCUED, SLOW = "h02", "h03.example.org", "h04", "h05", "h06"
WAITING = "waiting for h06 (1 of 2 items) (Linger)"
SPECIAL = "h01,h02,h03.example.org,h04,h05,h06"
SECRET = "correct-horse"

PLAY = """
- name: The play
  hosts: all
  gather_facts: false
  strategy: "{{ strategy | default('linear') }}"
  serial: "{{ serial | default([]) }}"
  tasks:
    - name: Alpha
      ansible.builtin.import_role:
        name: alpha
    - name: Beta
      ansible.builtin.include_role:
        name: beta
    - name: Gamma
      ansible.builtin.import_role:
        name: gamma
"""
ALPHA = """
- name: Settle
  ansible.builtin.set_fact:
    settled: true
  changed_when: inventory_hostname == 'h02'
  notify: Tell
- name: Stumbling
  block:
    - name: Stumble
      ansible.builtin.fail:
        msg: stumbled
      when: inventory_hostname == 'h05'
  rescue:
    - name: Get up
      ansible.builtin.set_fact:
        up: true
- name: Break
  ansible.builtin.assert:
    that: inventory_hostname != 'h03.example.org'
    quiet: true
    fail_msg: |-
      what was found
      what was wanted
- name: Reach
  ansible.builtin.raw: "true"
  when: inventory_hostname == 'h04'
"""
HANDLERS = """
- name: Tell
  ansible.builtin.set_fact:
    told: true
"""
BETA = """
- name: Linger
  wait_for_event:
    path: "{{ '/' if item == 1 else event }}"
  loop: [1, 2]
  when: inventory_hostname == 'h06'
- name: Leave
  ansible.builtin.set_fact:
    left: true
"""
GAMMA = """
- name: Nothing
  ansible.builtin.set_fact:
    nothing: true
  when: false
"""
DELTA = """
- name: The play
  hosts: h01
  gather_facts: false
  tasks:
    - name: Write
      ansible.builtin.copy:
        content: "wanted\\n"
        dest: "{{ event }}.file"
        mode: "0644"
    - name: Say
      ansible.builtin.debug:
        msg: said to you
    - name: Whisper
      ansible.builtin.set_fact:
        whispered: "{{ item }}"
      loop: ["{{ secret }}", "{{ secret }}2"]
      changed_when: true
      no_log: true
    - name: Whisper {{ secret }} again
      attempt:
        progress: {text: "{{ secret }}"}
      until: said.attempts == 3
      retries: 4
      delay: 0.2
      register: said
      no_log: true
    - name: Fetch
      attempt:
        progress: {done: 12400000000, total: 140000000000, unit: bytes, rate: 350000000,
                   eta_s: 364, text: "a\\e[2Jb\\nc"}
      until: tried.attempts == 3
      retries: 4
      delay: 0.2
      register: tried
    - name: Over and over
      attempt: {}
      loop: [1, 2, 3]
      loop_control:
        extended: true
    - name: Murmur {{ secret }}
      ansible.builtin.fail:
        msg: "{{ secret }}"
      no_log: true
      ignore_errors: true
"""
BROKEN = """
- name: The play
  hosts: h01,h02
  gather_facts: false
  tasks:
    - name: Change a thing
      ansible.builtin.set_fact:
        changed: true
      changed_when: true
    - name: Try
      when: inventory_hostname == 'h02'
      block:
        - name: Fail
          ansible.builtin.fail:
            msg: the real reason
      always:
        - name: Gather what is known
          block:
            - name: Look into a log
              ansible.builtin.fail:
                msg: there is none
          rescue:
            - name: Keep what there is
              ansible.builtin.set_fact:
                kept: true
              changed_when: true
    - name: Linger
      wait_for_event:
        path: "{{ event }}"
    - name: Leave
      ansible.builtin.set_fact:
        left: true
"""
INCLUDED = """
- name: The play
  hosts: h01,h02
  gather_facts: false
  tasks:
    - name: Include what is not there
      ansible.builtin.include_tasks: "nothere_{{ inventory_hostname }}.yml"
      when: inventory_hostname == 'h01'
    - name: Try
      any_errors_fatal: true
      block:
        - name: Include it once more
          ansible.builtin.include_tasks: "nothere_{{ inventory_hostname }}.yml"
        - name: Stumble
          ansible.builtin.fail:
            msg: stumbled
      rescue:
        - name: Get up
          ansible.builtin.set_fact:
            up: true
    - name: Gamma
      ansible.builtin.include_role:
        name: gamma
        tasks_from: really
"""
ACTIONS = {
    "wait_for_event": """
import os, time
from ansible.plugins.action import ActionBase

class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        deadline = time.monotonic() + 60
        while not os.path.exists(self._task.args["path"]):
            if time.monotonic() > deadline:
                return {"failed": True, "msg": "nobody came"}
            time.sleep(0.05)
        return {"changed": False}
""",
    "attempt": """
from ansible.plugins.action import ActionBase

class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        return {"changed": False, "progress": self._task.args.get("progress")}
""",
}


class Fleet:
    """Fifty hosts, three roles, and how to run them."""

    def __init__(self, folder):
        self.folder = folder
        self.event = folder / "event"
        files = {"play.yml": PLAY, "delta.yml": DELTA, "broken.yml": BROKEN,
                 "included.yml": INCLUDED, "roles/gamma/tasks/really.yml": HANDLERS,
                 "roles/alpha/tasks/main.yml": ALPHA, "roles/alpha/handlers/main.yml": HANDLERS,
                 "roles/beta/tasks/main.yml": BETA, "roles/gamma/tasks/main.yml": GAMMA,
                 **{"action_plugins/%s.py" % name: text for name, text in ACTIONS.items()}}
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        ssh = folder / "ssh"
        ssh.write_text("#!/bin/sh\nexit 255\n")
        ssh.chmod(0o755)
        self.hosts = ["h%02d" % one for one in range(1, 51)]
        self.hosts[2] = FAILING
        (folder / "hosts").write_text("".join(
            "%s ansible_connection=local ansible_python_interpreter=%s\n" % (one, sys.executable)
            for one in self.hosts).replace(
                "h04 ansible_connection=local",
                "h04 ansible_connection=ssh ansible_ssh_executable=%s" % ssh))

    def start(self, *arguments, playbook="play.yml", heartbeat="0.2", stdout=subprocess.PIPE,
              stdin=subprocess.DEVNULL, **env):
        """Start a run; its event has not come yet."""
        self.event.unlink(missing_ok=True)
        clean = {key: value for key, value in os.environ.items()
                 if not key.startswith("ANSIBLE_") and key not in ("NO_COLOR", "COLUMNS")}
        return subprocess.Popen(
            ["ansible-playbook", "-i", "hosts", "-f", "10", playbook,
             "-e", "event=%s secret=%s" % (self.event, SECRET), *arguments],
            cwd=self.folder, stdin=stdin, stdout=stdout, stderr=subprocess.STDOUT,
            # A shell that starts the tests in the background has its children ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            env={**clean, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
                 "ANSIBLE_ROLES_PATH": str(self.folder / "roles"), "TERM": "xterm",
                 "ANSIBLE_HOME": str(self.folder / "home"),
                 "FIRSTLIGHT_PROGRESS_HEARTBEAT": heartbeat, **env})

    def run(self, *arguments, **options):
        """Run with an event that is there from the start; returns status and output."""
        running = self.start(*arguments, **options)
        self.event.touch()
        output = running.communicate(timeout=120)[0].decode()
        return running.returncode, output


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    return Fleet(tmp_path_factory.mktemp("fleet"))


def stages(output):
    """Every line of a host and a stage: its states and notes, in their order."""
    found = collections.defaultdict(list)
    for host, stage, state, note in LINE.findall(output):
        if state != "running":
            found[host, stage].append((state, note))
    return dict(found)


def expected(hosts):
    every = {*hosts, CHANGING, FAILING, GONE, RESCUED}
    states = {(host, stage): [("ok", "")] for host in every for stage in ("alpha", "beta")}
    # The handler of alpha runs after beta: its host is back in that stage.
    states[CHANGING, "alpha"] = [("changed", "Settle"), ("ok", "")]
    states[FAILING, "alpha"] = [("failed", "Break")]
    states[GONE, "alpha"] = [("unreachable", "Reach")]
    states[RESCUED, "alpha"] = [("ok", "rescued: Stumble")]
    del states[FAILING, "beta"], states[GONE, "beta"]
    return {one: said for one, said in states.items() if one[0] in hosts}


def quiet(output):
    """The output without the lines of the watcher, which may come between any two others."""
    return re.sub(r"^… .*\n", "", output, flags=re.MULTILINE)


def recap(output):
    return re.findall(r"^\S+ +: ok=.*$", output, re.MULTILINE)


@pytest.fixture(scope="module")
def fifty(fleet):
    """The output of a run of fifty hosts that waited until a line named the slow one."""
    running = fleet.start()
    output = []
    for raw in running.stdout:
        output.append(raw.decode())
        if output[-1].startswith("… beta ") and "47 of 48 hosts done, " + WAITING in output[-1]:
            fleet.event.touch()
    running.wait(timeout=60)
    return running.returncode, "".join(output)


def test_fifty_hosts_have_a_line_for_each_of_their_stages(fleet, fifty):
    assert stages(fifty[1]) == expected(fleet.hosts)


def test_a_line_names_the_host_that_all_wait_for(fifty):
    assert re.search(r"^… beta \d+ s: 47 of 48 hosts done, " + re.escape(WAITING), fifty[1],
                     re.MULTILINE)
    assert "nobody came" not in fifty[1]


def test_failures_are_as_readable_as_ever(fifty):
    output = fifty[1]
    assert "TASK [alpha : Break]" in output
    assert "fatal: [h03.example.org]: FAILED! =>" in output
    assert re.search(r"^ +what was found\n +what was wanted$", quiet(output), re.MULTILINE)
    assert "fatal: [h04]: UNREACHABLE! =>" in output


def test_a_pipe_gets_plain_lines(fifty):
    assert [one for one in fifty[1] if one != "\n" and not one.isprintable()] == []


def test_the_summary_names_who_failed_where_and_why(fifty):
    assert 'h03.example.org failed in alpha, task "Break": what was found\n' in fifty[1]
    assert re.search(r'h04 unreachable in alpha, task "Reach": .*ssh', fifty[1])
    assert "h05 failed" not in fifty[1]  # it was rescued


def test_recap_and_status_are_those_of_the_default_callback(fleet, fifty):
    status, output = fleet.run("-l", SPECIAL, ANSIBLE_STDOUT_CALLBACK="ansible.builtin.default")
    assert LINE.findall(output) == []
    ours = recap(fifty[1])
    assert len(ours) == 50
    assert recap(output) == [one for one in ours if one.split()[0] in SPECIAL.split(",")]
    assert status == fifty[0] != 0


@pytest.mark.parametrize("variables", ["strategy=free", "strategy=host_pinned", "serial=3"])
def test_every_strategy_has_the_same_lines(fleet, variables):
    output = fleet.run("-l", SPECIAL, "-e", variables)[1]
    assert stages(output) == expected(SPECIAL.split(","))
    assert len(recap(output)) == 6


@pytest.fixture(scope="module")
def checked(fleet):
    """Check mode with differences."""
    return fleet.run("--check", "--diff", playbook="delta.yml", heartbeat="0.1")


def test_check_mode_says_what_would_change(checked):
    status, output = checked
    assert status == 0, output
    assert stages(output) == {
        ("h01", "The play"): [("would change", "Write, Whisper")]}


def test_a_difference_is_shown_with_its_task_and_host(checked):
    assert re.search(
        r"TASK \[Write\] \*+\n--- before\n\+\+\+ after: .*\n@@ .*\n\+wanted\n\nchanged: \[h01\]\n",
        quiet(checked[1]))


def test_debug_messages_are_shown(checked):
    assert re.search(r"ok: \[h01\] => \n +msg: said to you\n", quiet(checked[1]))


def test_a_retried_task_says_how_far_it_is(checked):
    (fetch,) = {note for *_, state, note in LINE.findall(checked[1])
                if state == "running" and "GB" in note}
    assert fetch == "12.4 of 140 GB, 350 MB/s, 6 min left, a [2Jb c"


def test_a_secret_is_in_no_line_of_ours(checked):
    # The default callback puts a task's rendered name over its failure; the rest is ours.
    ours = [line for line in checked[1].splitlines() if not line.startswith("TASK [")]
    assert [line for line in ours if SECRET in line] == []
    running = [note for *_, state, note in LINE.findall(checked[1]) if state == "running"]
    assert re.search(r"^attempt \d of 5$", "\n".join(running), re.MULTILINE)


def test_verbose_output_is_the_default_callback_s_and_the_lines(fleet):
    of_ours = fleet.run("-v", "-l", "h01,h02", heartbeat="0")[1]
    of_default = fleet.run(
        "-v", "-l", "h01,h02", ANSIBLE_STDOUT_CALLBACK="ansible.builtin.default")[1]

    def words(output):
        return sorted(re.findall(r"[^\s,]+", LINE.sub("", output)))

    # Hosts finish in any order, also where they are listed.
    assert words(of_ours) == words(of_default)
    assert stages(of_ours) == expected(["h01", "h02"])


def test_what_follows_a_failure_is_told_and_the_first_failure_is_the_reason(fleet):
    status, output = fleet.run(playbook="broken.yml")
    assert status == 2
    assert stages(output) == {
        ("h01", "The play"): [("changed", "Change a thing")],
        ("h02", "The play"): [("failed", "Fail"), ("changed", "Keep what there is; rescued: Look "
                                                              "into a log")]}
    assert '  h02 failed in The play, task "Fail": the real reason\n' in output


def test_an_include_that_fails_is_a_failure_and_what_follows_is_told(fleet):
    """Core counts it as one in its recap, even where a rescue lets the host go on."""
    output = fleet.run(playbook="included.yml")[1]
    assert stages(output) == {
        ("h01", "The play"): [("failed", "Include what is not there")],
        ("h02", "The play"): [("failed", "Include it once more")],
        ("h02", "gamma"): [("ok", "")]}
    assert '  h01 failed in The play, task "Include what is not there": Could not find' in output
    assert re.search(r"^h02 +: ok=\d+ .* failed=1 ", output, re.MULTILINE)


def test_an_interrupted_run_says_what_it_did_and_where_it_was(fleet):
    running = fleet.start("-l", "h01", playbook="broken.yml")
    output = []
    for raw in running.stdout:
        output.append(raw.decode())
        if "waiting for h01 (Linger)" in output[-1] and not fleet.event.exists():
            running.send_signal(signal.SIGINT)
            fleet.event.touch()
    running.wait(timeout=60)
    assert stages("".join(output)) == {
        ("h01", "The play"): [("interrupted", "Linger; changed: Change a thing")]}


def screen(stream):
    """What a terminal shows in the end, every line that was ever drawn, and which were colours."""
    lines, column, drawn = [[]], 0, []
    for part in re.findall(r"\x1b\[[\d;]*[A-Za-z]|[\s\S]", stream):
        if part == "\r":
            drawn.append("".join(lines[-1]))
            column = 0
        elif part == "\n":
            lines.append([])
        elif part == "\x1b[K":
            del lines[-1][column:]
        elif part.startswith("\x1b"):
            assert part.endswith("m"), "an escape sequence that nobody expects: %r" % part
        else:
            lines[-1][column:column + 1] = [part]
            column += 1
    return ["".join(line).rstrip() for line in lines], drawn


def on_terminal(fleet, *arguments, **env):
    """Run on a terminal until the last line names the slow host; returns all that came."""
    ours, theirs = pty.openpty()
    running = fleet.start("-l", "h01,h02,h06", *arguments, stdout=theirs, **env)
    os.close(theirs)
    stream = b""
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
        stream += data
        if WAITING.encode() in stream:
            fleet.event.touch()
    os.close(ours)
    assert running.wait(timeout=60) == 0
    return stream.decode()


def test_a_terminal_has_a_last_line_that_leaves_nothing_behind(fleet):
    stream = on_terminal(fleet, NO_COLOR="1")
    shown, drawn = screen(stream)
    assert any("2 of 3 hosts done, " + WAITING in line for line in drawn)
    assert [line for line in shown if "…" in line] == []
    assert not re.search(r"\x1b\[[\d;]*m", stream)
    assert stages("\n".join(shown))["h06", "beta"] == [("ok", "")]
    plain_run = fleet.run("-l", "h01,h02,h06", heartbeat="0", COLUMNS="80")[1].splitlines()

    def timeless(lines):
        return sorted(re.sub(r"[\d.]+ s\b|\*+| +", " ", line).strip() for line in lines)

    assert [one for one in timeless(shown) if one] == [one for one in timeless(plain_run) if one]


def test_a_dumb_terminal_gets_whole_lines(fleet):
    stream = on_terminal(fleet, TERM="dumb", ANSIBLE_NOCOLOR="1")
    assert "\x1b" not in stream
    assert "\r" not in stream.replace("\r\n", "")
    assert WAITING in stream


def test_a_question_stays_where_it_is_asked(fleet):
    """Core asks past the buffers, so that nothing would clear the last line for it."""
    ours, theirs = pty.openpty()
    running = fleet.start("-l", "h01", "--step", playbook="broken.yml", stdout=theirs,
                          stdin=theirs, NO_COLOR="1")
    os.close(theirs)
    stream, answered = "", 0
    while True:
        try:
            stream += os.read(ours, 65536).decode()
        except OSError:  # the other side is closed
            break
        if "… The play" in stream:
            fleet.event.touch()
        asked = stream.count("(c)ontinue: ")
        if asked > answered and stream.endswith("(c)ontinue: "):
            if "TASK: Leave" in stream:
                # Long enough for the last line to be drawn again, were it to be.
                select.select([ours], [], [], 2.5)
            answered = asked
            os.write(ours, b"y\n")
    os.close(ours)
    assert running.wait(timeout=60) == 0
    assert "… The play" in stream  # there was a last line before the last question
    shown = "\n".join(screen(stream)[0])
    assert re.search(r"^Perform task: TASK: Leave \(N\)o/\(y\)es/\(c\)ontinue: y", shown,
                     re.MULTILINE), stream


def test_nothing_is_drawn_where_somebody_is_asked_something():
    ours, theirs = pty.openpty()
    try:
        assert progress.is_at_rest(theirs)
        tty.setraw(theirs)
        assert not progress.is_at_rest(theirs)
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize(("said", "text"), [
    ({"done": 12.4e9, "total": 140e9, "unit": "bytes"}, "12.4 of 140 GB"),
    ({"done": 512, "unit": "bytes"}, "512 B"),
    ({"done": 3, "total": 8}, "3 of 8 steps"),
    ({"done": 1500, "total": 4096, "unit": "tokens", "rate": 33.3}, "1500 of 4096 tokens, "
                                                                    "33.3 tokens/s"),
    ({"eta_s": 9000}, "2 h 30 min left"),
    ({"text": "loading\x1b[31m\nshards"}, "loading [31m shards"),
    ({"done": True, "total": "8", "rate": float("nan"), "eta_s": 10 ** 400, "text": ["x"],
      "unit": {}}, ""),
    ({"done": -1, "total": float("inf")}, ""),
    ("half", ""),
    (None, ""),
])
def test_progress_is_said_in_words_and_what_is_no_progress_is_left_out(said, text):
    assert progress.progress_text(said) == text


def test_a_line_is_cut_by_columns_not_by_characters():
    assert progress.cut("ab漢字c", 5) == "ab漢"
    assert progress.cut("abc", 3) == "abc"


def test_a_column_is_filled_and_not_left():
    assert progress.padded("漢字", 6) == "漢字  "
    assert progress.padded("a long name", 6) == "a long"


def test_text_of_others_stays_on_its_line():
    assert progress.plain("a\nb\x1b[2Jc\u202ed\x9be") == "a b [2Jc d e"


def test_many_names_are_counted():
    assert progress.and_more(["a", "b", "c", "d"], 3) == "a, b, c and 1 more"
    assert progress.and_more(["a", "b"], 3) == "a, b"
