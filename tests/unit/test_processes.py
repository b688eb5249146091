# SPDX-License-Identifier: Apache-2.0
"""Who holds a port, which processes are ours, and how they end."""

from __future__ import annotations

import contextlib
import os
import pathlib
import pwd
import signal
import socket
import subprocess
import sys

import pytest
from supervised import free_port, kill, until

from ansible.module_utils.firstlight import processes

LISTENS = """
import socket, time
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
time.sleep(600)
"""
IGNORES = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(600)
"""
# A launcher whose worker does not hear of its end.
HAS_A_WORKER = """
import subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", sys.argv[1]], start_new_session=True)
time.sleep(600)
"""
# Something that answers SIGTERM with a process that was not there when the signal was sent.
REPLACES_ITSELF = """
import signal, subprocess, sys, time
def replace(*_):
    subprocess.Popen([sys.executable, "-c", sys.argv[1]], start_new_session=True)
    time.sleep(600)
signal.signal(signal.SIGTERM, replace)
print("ready", flush=True)
time.sleep(600)
"""
# What setproctitle does to make room for a title: the beginning of the environment goes, or all.
FORGETS = """
import ctypes, time
fields = open("/proc/self/stat").read().rpartition(")")[2].split()
start, end = int(fields[47]), int(fields[48])
environment = open("/proc/self/environ", "rb").read()
ctypes.memset(start, 0, environment.index(b"KEPT=") if b"KEPT=" in environment else end - start)
print("ready", flush=True)
time.sleep(600)
"""
# As vLLM is: a server, a tracker of its resources, and an engine with a title of its own.
HAS_ONE_THAT_FORGETS = """
import os, subprocess, sys, time
os.setsid()
tracker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
engine = subprocess.Popen([sys.executable, "-c", sys.argv[1]],
                          env=dict(os.environ, **{sys.argv[2]: "1"}))
time.sleep(600)
"""


@pytest.fixture
def root(tmp_path):
    """A root of ours; every process that carries it ends with the test."""
    path = str(tmp_path)
    yield path
    for running in processes.engines(path).values():
        for one in running:
            kill(one["pid"])


@contextlib.contextmanager
def engine(root, script, *args, name="chat", plan="abc"):
    """A process that carries our markers; gives it and the first line that it says."""
    env = dict(os.environ, FIRSTLIGHT_ROOT=root, FIRSTLIGHT_ENDPOINT=name, FIRSTLIGHT_PLAN=plan)
    process = subprocess.Popen([sys.executable, "-c", script] + list(args), env=env,
                               stdout=subprocess.PIPE, text=True)
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait(30)
        process.stdout.close()


def pids(root, name="chat"):
    return [one["pid"] for one in processes.engines(root).get(name, [])]


def test_a_process_with_a_name_that_is_none_of_ours_is_not_ours(root):
    """Names become paths, and anyone can start a process that carries one."""
    with engine(root, LISTENS, name="../../etc") as (_, port):
        assert processes.engines(root) == {}
        holder = processes.holders([int(port)])[int(port)]
    assert (holder["endpoint"], holder["root"]) == (None, None)
    assert holder["pid"]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_holder_of_a_port_is_known(address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as server:
        try:
            server.bind((address, 0))
        except OSError as problem:
            pytest.skip("no %s here: %s" % (address, problem))
        server.listen()
        port = server.getsockname()[1]
        found = processes.holders([port])
    assert found[port]["pid"] == os.getpid()
    mine = pathlib.Path("/proc/self/cmdline").read_text().split("\0")[0]
    assert found[port]["command"].split()[0] == mine
    assert found[port]["user"] == pwd.getpwuid(os.geteuid()).pw_name
    assert found[port]["endpoint"] is None
    assert found[port]["root"] is None


def test_free_ports_and_ports_that_were_not_asked_about_are_left_out():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert set(processes.holders([free_port(), port])) == {port}
        assert processes.holders([free_port()]) == {}
        assert processes.holders([]) == {}


def test_a_bound_socket_that_does_not_listen_holds_nothing():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert processes.holders([bound.getsockname()[1]]) == {}


def test_who_is_connected_to_a_port_is_counted():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert processes.connections(port) == 0
        with socket.create_connection(("127.0.0.1", port)) as client, server.accept()[0]:
            assert processes.connections(port) == 1
            # Of the other end it is the port of who asks.
            assert processes.connections(client.getsockname()[1]) == 1
        assert processes.connections(port) == 0


def test_a_port_held_by_an_engine_of_ours_says_so(root):
    with engine(root, LISTENS) as (process, port):
        assert processes.holders([int(port)])[int(port)] == {
            "pid": process.pid, "command": ("%s -c %s" % (sys.executable, LISTENS))[:200],
            "user": pwd.getpwuid(os.geteuid()).pw_name, "endpoint": "chat", "root": root,
        }


@pytest.fixture
def proc(tmp_path):
    """A /proc in which port 8000 is held by a user who lets nobody look."""
    (tmp_path / "net").mkdir()
    heading = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid"
    row = "   0: 0100007F:1F40 00000000:0000 %s 00000000:00000000 00:00000000 00000000 %5d 0 4242"
    for pid in ("1", "77"):
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "cmdline").write_bytes(b"secret\0command\0")

    def held(uid, state="0A"):
        (tmp_path / "net" / "tcp").write_text("%s\n%s\n" % (heading, row % (state, uid)))
        return str(tmp_path)

    return held


@pytest.mark.parametrize("uid, user", [(0, pwd.getpwuid(0).pw_name), (54321, "uid 54321")])
def test_of_a_process_that_may_not_be_looked_at_the_user_is_known(proc, uid, user):
    assert processes.holders([8000], proc(uid)) == {8000: {
        "pid": None, "command": None, "user": user, "endpoint": None, "root": None}}


def test_a_connection_is_no_holder(proc):
    assert processes.holders([8000], proc(0, state="01")) == {}


def test_the_socket_leads_to_its_process(proc, tmp_path):
    (tmp_path / "77" / "fd").mkdir()
    (tmp_path / "77" / "fd" / "3").symlink_to("socket:[4242]")
    (tmp_path / "77" / "environ").write_bytes(
        b"FIRSTLIGHT_ROOT=/r\0FIRSTLIGHT_ENDPOINT=chat\0FIRSTLIGHT_PLAN=abc\0")
    assert processes.holders([8000], proc(0))[8000] == {
        "pid": 77, "command": "secret command", "user": pwd.getpwuid(0).pw_name,
        "endpoint": "chat", "root": "/r"}
    assert processes.engines("/r", proc(0)) == {"chat": [{"pid": 77, "plan": "abc"}]}


def test_engines_are_known_by_root_and_name(root):
    with engine(root, IGNORES, plan="first") as (first, _), \
            engine(root, IGNORES, name="code", plan="second") as (second, _), \
            engine(root + "-other", IGNORES):
        assert processes.engines(root) == {
            "chat": [{"pid": first.pid, "plan": "first"}],
            "code": [{"pid": second.pid, "plan": "second"}],
        }


def test_end_ends_what_ignores_sigterm_and_its_children_and_nothing_else(root):
    with engine(root, HAS_A_WORKER, IGNORES) as (launcher, said), \
            engine(root, IGNORES, name="code") as (other, _):
        assert said == "ready"
        was = pids(root)
        assert launcher.pid in was
        assert len(was) == 2
        assert sorted(processes.end(root, "chat", grace_s=0.3)) == sorted(was)
        assert pids(root) == []
        assert launcher.wait(30) == -signal.SIGTERM
        assert other.poll() is None


def test_end_ends_what_was_started_in_answer_to_sigterm(root):
    with engine(root, REPLACES_ITSELF, IGNORES) as (first, _):
        ended = processes.end(root, "chat", grace_s=1)
        assert pids(root) == []
        assert first.pid in ended


@pytest.mark.parametrize("last", ["KEPT", "GONE"])
def test_an_engine_that_wrote_over_its_environment_is_known_by_its_kin(root, last):
    with engine(root, HAS_ONE_THAT_FORGETS, FORGETS, last) as (server, said):
        assert said == "ready"
        was = set(pids(root))
        assert len(was) == 3, "the server, its tracker and its engine"
        assert {one["plan"] for one in processes.engines(root)["chat"]} == {"abc"}
        server.kill()
        server.wait(30)
        left = was - {server.pid}
        assert set(pids(root)) == left, "without the server it is known by its group"
        assert set(processes.end(root, "chat")) == left
        assert not any(map(processes.is_alive, left))


def test_what_wrote_over_its_environment_and_is_nobodys_kin_is_not_ours(root):
    with engine(root, FORGETS) as (_, said):
        assert said == "ready"
        assert pids(root) == []


def test_end_without_anything_to_end(root):
    assert processes.end(root, "chat") == []


def test_a_zombie_is_no_process_of_ours(root):
    with engine(root, IGNORES) as (process, _):
        process.kill()
        # Nobody has waited for it, so it is there for the kernel and nobody else.
        until(lambda: os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG))
        assert os.path.exists("/proc/%d" % process.pid)
        assert pids(root) == []
        assert processes.end(root, "chat", grace_s=600) == []


def test_end_does_not_wait_for_a_zombie_that_it_made(root):
    with engine(root, IGNORES) as (process, _):
        assert processes.end(root, "chat", grace_s=0.1) == [process.pid]
        assert process.wait(30) == -signal.SIGKILL


@pytest.mark.parametrize(("words", "wanted"), [
    (["python3", "-m", "vllm", "--api-key", "abc", "--port", "1"],
     "python3 -m vllm --api-key *** --port 1"),
    (["serve", "--api-key=abc"], "serve --api-key=***"),
    (["serve", "--hf-token", "--port"], "serve --hf-token --port"),
    (["env", "HF_TOKEN=hf_x", "serve"], "env HF_TOKEN=*** serve"),
    (["curl", "https://user:word@example.org/x"], "curl ***"),
    (["curl", "https://user:word@example.org/?token=abc"], "curl ***=***"),
    (["curl", "-d", '{"api_key": "abc"}'], 'curl -d {"***"}'),
    (["run", "hf_abcdefghijkl", "sk-abcdefgh1234"], "run *** ***"),
    (["curl", "-H", "Authorization: Bearer abc.def"], "curl -H Authorization: ***"),
    (["sh", "-c", "serve --api-key abc; api_key: abc"], "sh -c serve *** ***"),
    (["monkey", "--keys", "1", "2"], "monkey --keys *** 2"),
    (["python3", "/srv/keyboard.py", "8000"], "python3 /srv/keyboard.py 8000"),
    ([], ""),
])
def test_a_command_line_is_shown_without_secrets(words, wanted):
    assert processes.shown(words) == wanted


def test_a_real_process_is_named_and_its_secret_is_not():
    held = subprocess.Popen([sys.executable, "-c", "print(flush=True); input()", "--api-key",
                             "geheim"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        held.stdout.readline()
        line = processes.command(held.pid)
        assert line.endswith("--api-key ***") and "geheim" not in line
        assert processes.user_of(held.pid) == pwd.getpwuid(os.getuid()).pw_name
    finally:
        held.communicate(b"\n")
    assert processes.command(held.pid) is None
    assert processes.user_of(held.pid) is None


def test_an_engine_in_a_container_is_not_the_hosts(tmp_path):
    for pid, space in (("self", "pid:[1]"), ("7", "pid:[1]"), ("8", "pid:[2]")):
        (tmp_path / pid / "ns").mkdir(parents=True)
        (tmp_path / pid / "ns" / "pid").symlink_to(space)
        (tmp_path / pid / "environ").write_bytes(
            b"FIRSTLIGHT_ROOT=/x\0FIRSTLIGHT_ENDPOINT=chat\0FIRSTLIGHT_PLAN=p\0")
    assert processes.engines("/x", str(tmp_path)) == {"chat": [{"pid": 7, "plan": "p"}]}
