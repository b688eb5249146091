# SPDX-License-Identifier: Apache-2.0
"""Faults in the middle of a change, each made for real: the old endpoint serves on or comes back.

Every test takes the host with the old endpoint serving, and leaves it so.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import threading

import pytest
from place import ALWAYS, ENGINE, NAME, Client, Container, Place, faulty, free_port, output, until

pytestmark = pytest.mark.timeout(600)
TABLE = "One host"
FAULTS = ("dies", "garbage", "killed", "memory", "never", "slow")
BOUND_S = 60
"""Seconds within which the old endpoint answers again, however the machine is loaded."""


@pytest.fixture(scope="session")
def images():
    """Engines with faults."""
    if os.geteuid():
        pytest.skip("these play site.yml as root")
    for fault in FAULTS:
        output(["docker", "build", "--quiet", "--tag", faulty(fault), "--build-arg",
                "FAULT=" + fault, str(pathlib.Path(__file__).with_name("engine"))])
    yield [ENGINE, *map(faulty, FAULTS)]
    output(["docker", "image", "rm", "--force", *map(faulty, FAULTS)])


@pytest.fixture(scope="session")
def folder():
    """A short path: unix sockets have little room."""
    made = pathlib.Path(tempfile.mkdtemp(prefix="fl-faults-", dir="/tmp"))
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="session")
def here(images, folder):
    """This machine, its root on a disk of its own, which is small."""
    disk = folder / "disk"
    disk.mkdir()
    output(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(disk)])
    place = Place(folder / "here", str(disk / "root"), free_port())
    try:
        with served(place):
            yield place
    finally:
        output(["umount", str(disk)])


@pytest.fixture(scope="session")
def host(images, folder):
    """A machine with systemd, and a way in before the endpoint."""
    place = Container(folder / "host")
    try:
        place.make(images)
        with served(place):
            yield place
    finally:
        place.remove()


@contextlib.contextmanager
def served(place):
    """The old endpoint, brought and taken down."""
    try:
        run = place.play(place.old)
        assert run.ok, run.output
        assert place.play(place.old).changed == 0
        yield
        assert place.play(place.old, playbook="playbooks/teardown.yml").ok
        assert place.containers() == set()
    finally:
        left = place.containers()
        if left:
            place.shell("docker", "rm", "--force", *left)


def rest(place, endpoint=None):
    """Play an inventory, the old one by default, until nothing is left to do: once or twice."""
    run = place.play(endpoint or place.old)
    assert run.ok, run.output
    if not run.changed:
        return "changed=0"
    again = place.play(endpoint or place.old)
    assert (again.ok, again.changed) == (True, 0), again.output
    return "changed=%d, then 0" % run.changed


def nothing_left(place, before):
    """What was is as it was, and of what failed nothing is left."""
    assert place.state() == before
    assert place.journals() == []


def fails(place, new, said, meddle=lambda run, before: None, bound_s=BOUND_S):
    """Play a change that fails; returns the rest of the row for the table."""
    before = place.state()
    with Client(place) as client:
        run = place.begin(new)
        meddle(run, before)
        assert not run.ok, run.output
        client.back()
    for words in said:
        assert words in run.output, run.output
    assert client.gap_s < bound_s
    told = run.reason, client.told, rest(place)
    nothing_left(place, before)
    return told


# An engine that is not right.


@pytest.mark.parametrize(("fault", "title", "said"), [
    ("dies", "the engine dies at 90 % of loading",
     ["The engine of faulty died (", "std::runtime_error"]),
    ("memory", "the engine gets no memory",
     ["[fatal] memory-refused-to-llama-cpp", "asked the host for 19.73 MB of memory"]),
    ("killed", "the kernel kills the engine for want of memory",
     ["The engine of faulty died ("]),
    ("garbage", "the engine answers 200 and garbage", ["faulty is not right", "completion"]),
])
def test_an_engine_that_is_not_right(here, tell, fault, title, said):
    tell(title, *fails(here, dict(here.old, image=faulty(fault)),
                       [*said, "What served before is back on " + here.address]))


def test_an_engine_that_never_gets_ready(here, tell):
    limit = json.loads(here.files()[1])["plan"]["start_timeout_s"]
    tell("the engine never gets ready (its start has %d s)" % limit, *fails(
        here, dict(here.old, image=faulty("never")),
        ["was not ready within %d s" % limit, "HTTP 503",
         "What served before is back on " + here.address], bound_s=limit + BOUND_S))


# What is around it.


def test_a_port_that_a_stranger_has(here, tell):
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        told = fails(here, dict(here.old, port=port),
                     ["Nothing was touched", "port %d is held by pid %d" % (port, os.getpid())])
    assert told[1] == ALWAYS
    tell("a stranger has the port", *told)


def test_a_port_that_a_stranger_takes_in_the_middle(here, tell):
    port = free_port()
    with contextlib.ExitStack() as stack:
        def take(run, before):
            here.made(before)
            stack.enter_context(socket.create_server(("127.0.0.1", port)))

        tell("a stranger takes the port in mid-run", *fails(
            here, dict(here.old, port=port),
            ["address already in use", "What served before is back on " + here.address], take))


class Registry(http.server.BaseHTTPRequestHandler):
    """A registry that has no image."""

    def do_GET(self):  # noqa: N802
        there = self.path == "/v2/"
        body = b"{}" if there else json.dumps({"errors": [
            {"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}).encode()
        self.send_response(200 if there else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format, *args):  # noqa: A002 - the standard library's name
        """Quiet."""


def test_an_image_that_is_nowhere(here, tell):
    registry = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    threading.Thread(target=registry.serve_forever, daemon=True).start()
    try:
        image = "127.0.0.1:%d/engine:none" % registry.server_address[1]
        told = fails(here, dict(here.old, image=image), ["image %s" % image, "manifest unknown"])
    finally:
        registry.shutdown()
        registry.server_close()
    assert told[1] == ALWAYS
    tell("the registry has no such image", *told)


def test_a_registry_that_is_down(here, tell):
    told = fails(here, dict(here.old, image="127.0.0.1:1/engine:none"),
                 ["image 127.0.0.1:1/engine:none", "connection refused"])
    assert told[1] == ALWAYS
    tell("the registry is down", *told)


def test_a_container_of_another_with_the_name(here, tell):
    new = dict(here.old, context=1024)
    preview = here.play(new, "--check", "--diff")
    [name] = {line.split()[-1] for line in preview.output.splitlines()
              if line.startswith("+") and "container_name:" in line}
    here.shell("docker", "create", "--name", name, ENGINE)
    try:
        told = fails(here, new, ["No endpoint was touched", "container-not-ours",
                                 "docker rename " + name])
        assert here.shell("docker", "inspect", "--format", "{{.State.Status}}", name) == "created"
    finally:
        here.shell("docker", "rm", "--force", name)
    assert told[1] == ALWAYS
    tell("a foreign container has the name", *told)


def test_a_disk_that_fills_up_in_the_middle(here, tell):
    filler = pathlib.Path(here.root).with_name("filler")

    def fill(run, before):
        here.started(before)
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))

    before = here.state()
    try:
        with Client(here) as client:
            run = here.begin(dict(here.old, image=faulty("slow")))
            fill(run, before)
            assert not run.ok, run.output
            client.back()
            assert here.state()["files"] == before["files"]
    finally:
        filler.unlink(missing_ok=True)
    assert "No space left on device" in run.output
    assert client.gap_s < BOUND_S
    told = run.reason, client.told, rest(here)
    nothing_left(here, before)
    tell("the disk fills up in mid-switch", *told)


# Who does it.


def test_a_controller_that_is_killed(here, tell):
    before = here.state()
    with Client(here) as client:
        run = here.begin(dict(here.old, image=faulty("dies")))
        here.started(before)
        run.kill()
        until(lambda: not here.at_work(), "an end of the switch")
        client.back()
    assert client.gap_s < BOUND_S
    tell("the controller is killed in mid-switch, and the engine dies", "nothing: it was killed",
         client.told, rest(here))
    nothing_left(here, before)


def test_everything_that_is_killed_between_stop_and_start(here, tell):
    before = here.state()
    [old] = before["running"]
    watch = ["docker", "events", "--filter", "container=" + old, "--filter", "event=kill",
             "--format", "{{.Action}}"]
    with Client(here) as client, subprocess.Popen(
            watch, stdout=subprocess.PIPE, text=True) as events:
        run = here.begin(dict(here.old, image=faulty("slow")))
        # The old one is told to end, and ends; nobody is there to start the new one.
        assert events.stdout.readline() == "kill\n"
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in here.workers():
                os.kill(pid, number)
        run.kill()
        events.kill()
        [new] = here.containers() - before["containers"]
        until(lambda: not here.containers("running"), "an end of the old one")
        assert here.shell("docker", "inspect", "--format", "{{.State.Status}}", new) == "created"
        assert here.journals() == ["endpoint-%s.json" % NAME]
        again = here.play(here.old)
        assert again.ok, again.output
        client.back()
    final = here.play(here.old)
    assert (final.ok, final.changed) == (True, 0), final.output
    nothing_left(here, before)
    tell("controller, worker and guard are killed between stop of the old and start of the new",
         "nothing: all were killed", "was down until the next run brought it back",
         "changed=%d (recovered), then 0" % again.changed)


def test_two_runs_at_once(here, tell):
    new = dict(here.old, context=1024)
    with Client(here) as client:
        runs = [here.begin(new), here.begin(new)]
        refused = [run for run in runs if not run.ok]
        assert len(refused) < 2, runs[0].output + runs[1].output
        client.back()
    for run in refused:
        assert "another run" in run.output, run.output
    assert here.play(new).changed == 0
    assert len(here.containers("running")) == 1
    assert client.gap_s < BOUND_S
    tell("two runs at once", refused[0].reason if refused else "both ended well", client.told,
         "changed=0")
    assert here.play(here.old).ok
    assert rest(here) == "changed=0"


# With a way in the new one comes up beside the old one.


def test_a_change_beside_the_old_one(host, tell):
    with Client(host) as client:
        run = host.play(dict(host.old, context=1024))
        assert run.ok, run.output
    assert host.play(host.old).ok
    tell("none: a change behind a way in", "proven", client.told, rest(host))
    assert client.wrong == []


@pytest.mark.parametrize(("fault", "title", "said"), [
    ("dies", "behind a way in the engine dies", ["The engine of faulty died ("]),
    ("garbage", "behind a way in the engine answers garbage", ["faulty is not right"]),
])
def test_a_new_one_that_is_not_right_beside_the_old_one(host, tell, fault, title, said):
    told = fails(host, dict(host.old, image=faulty(fault)), said)
    assert told[1] == ALWAYS
    tell(title, *told)


def test_ssh_that_is_cut(host, tell):
    new = dict(host.old, image=faulty("slow"))
    before = host.state()
    with Client(host) as client:
        run = host.begin(new)
        host.started(before)
        host.cut()
        assert not run.ok, run.output
        until(lambda: not host.at_work(), "an end of the switch")
        client.back()
    assert json.loads(host.files()[1])["plan"]["image"] == faulty("slow")
    # The controller has still to fetch the passport.
    again = rest(host, new)
    tell("ssh is cut in mid-switch", run.reason, client.told + "; the switch ended by itself",
         again)
    assert host.play(host.old).ok
    assert rest(host) == "changed=0"
    assert client.wrong == []


def test_a_docker_daemon_that_is_restarted(host, tell):
    new = dict(host.old, image=faulty("slow"))
    before = host.state()
    with Client(host) as client:
        run = host.begin(new)
        host.started(before)
        host.shell("systemctl", "restart", "docker")
        run.ended()
        client.back()
    again = rest(host, None if not run.ok else new)
    tell("Docker is restarted in mid-switch", "proven" if run.ok else run.reason,
         client.told, again)
    if run.ok:
        # It waited for the daemon; one that saw the engine end before went back.
        assert host.play(host.old).ok
        assert rest(host) == "changed=0"
    else:
        nothing_left(host, before)
    assert client.gap_s < BOUND_S


def test_a_host_that_is_rebooted(host, tell):
    before = host.state()
    with Client(host) as client:
        host.boot("restart")
        client.back()
    assert client.gap_s < BOUND_S
    tell("the host is rebooted", "-", client.told, rest(host))
    nothing_left(host, before)
