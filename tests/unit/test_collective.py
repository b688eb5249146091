# SPDX-License-Identifier: Apache-2.0
"""Devices of a plan are tried in time, where its engine runs, and what is wrong is said."""

from __future__ import annotations

import ast
import os
import pathlib
import subprocess
import sys
import textwrap

import pytest
import yaml
from fake_docker import DROP
from supervised import until

from ansible.module_utils.firstlight import (
    collective,
    collective_probe,
    docker_api,
    engine_log,
    one_shot,
    processes,
    services,
)

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
ROWS = yaml.safe_load((REPOSITORY / "catalog" / "log_signatures.yml").read_text())
PROBE = REPOSITORY / "module_utils" / "firstlight" / "collective_probe.py"
# Steps that a rank may take: what each of these tests runs in the place of torch.
TASKS = """
    import os, signal, sys, time
    sys.path.insert(0, {folder!r})
    import collective_probe as probe

    def right(tell):
        tell("one")
        return True

    def killed(tell):
        tell("two")
        os.kill(os.getpid(), signal.SIGKILL)

    def late(tell):
        tell("two")
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)

    def raises(tell):
        tell("three")
        raise RuntimeError("NCCL error: unhandled cuda error\\nLast error: none")

    def says(tell):
        print("firstlight collective: all of it is wrong")
        return False

    def hangs(tell):
        print("pid", os.getpid(), flush=True)
        tell("four")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)

    def waits(tell):
        tell("four")
        tell("five")
        time.sleep(600)

    def talks(tell):
        for _ in range(100):
            os.write(1, b"x" * 99999 + b"\\n")
        tell("six")
        return True

    def moves(tell):
        for step in range(600):
            tell("step %d" % step)
            time.sleep(0.1)
        return True

    tasks = {{"rank %d" % rank: globals()[name] for rank, name in enumerate(sys.argv[2:])}}
    sys.exit(not probe.watch(tasks, {step_s}, time.monotonic() + {total_s}))
"""


def probe_of(*tasks, step_s=30, total_s=60):
    code = textwrap.dedent(TASKS).format(
        folder=str(PROBE.parent), step_s=step_s, total_s=total_s)
    return subprocess.Popen([sys.executable, "-c", code, "x", *tasks], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def probed(*tasks, **limits):
    """Exit status and output of a probe of these tasks."""
    probe = probe_of(*tasks, **limits)
    said = probe.communicate(timeout=60)[0]
    return probe.returncode, said


def ids(said):
    """The signatures that know what was said."""
    return [one["id"] for one in engine_log.diagnose(said, ROWS, "vllm")]


def test_ranks_that_are_right_are_right():
    assert probed("right", "right") == (0, "")


def test_a_rank_that_is_killed_is_named_and_the_others_end():
    status, said = probed("right", "killed", "hangs")
    assert status == 1
    assert "firstlight collective: rank 1 was ended by signal 9 in two\n" in said
    assert "rank 2" not in said
    assert ids(said) == ["collective-failed"]


def test_a_rank_that_is_killed_is_named_though_its_end_is_seen_after_that_of_another():
    status, said = probed("says", "late")
    assert (status, said.splitlines()) == (1, [
        "firstlight collective: all of it is wrong",
        "firstlight collective: rank 1 was ended by signal 9 in two"])


def test_what_a_rank_raised_is_said_in_one_piece_with_the_step():
    status, said = probed("raises", "waits")
    assert (status, said.splitlines()) == (1, [
        "RuntimeError: NCCL error: unhandled cuda error", "Last error: none",
        "firstlight collective: rank 0 failed in three"])


def test_what_a_rank_said_itself_is_enough():
    assert probed("right", "says") == (1, "firstlight collective: all of it is wrong\n")


def test_who_hangs_is_ended_whatever_it_ignores_and_the_slowest_step_is_told():
    status, said = probed("waits", "hangs", step_s=0.5)
    pid = int(said.partition("pid ")[2].split()[0])
    assert status == 1
    assert not processes.is_alive(pid)
    # It may be loaded here: seconds are told as they were.
    head, _, told = said.splitlines()[-1].partition(" s in ")
    assert head.startswith("firstlight collective: timed out after ")
    assert told == "four (rank 0: five; rank 1: four)"


def test_all_of_it_has_an_end_though_each_step_is_quick():
    status, said = probed("moves", "moves", step_s=60, total_s=2)
    assert status == 1
    assert said.startswith("firstlight collective: timed out after 2 s in step ")


def test_output_without_end_is_cut_and_stops_nobody():
    status, said = probed("talks", "talks")
    assert status == 0
    assert len(said) == collective_probe.MOST_OUTPUT


def test_ranks_end_with_who_started_them():
    probe = probe_of("hangs", "hangs")
    pids = [int(probe.stdout.readline().split()[1]) for _ in range(2)]
    probe.kill()
    probe.wait()
    until(lambda: not any(map(processes.is_alive, pids)))
    assert not any(map(processes.is_alive, pids))
    probe.stdout.close()


@pytest.mark.parametrize(("world", "source", "targets"), [
    (2, 0, [1]), (4, 2, [0, 1, 3]), (8, 7, [0, 1, 2, 3, 4, 5, 6]), (16, 0, [1, 15])])
def test_a_device_writes_to_as_many_others_as_it_can_map(world, source, targets):
    assert collective_probe.targets(source, world) == targets


# In the engine's own Python.


def plan(**changes):
    return {"tensor_parallel": 2, "pipeline_parallel": 1, "gpus": ["GPU-a", "GPU-b"],
            "engine_python": sys.executable, "venv": "", **changes}


def natively(monkeypatch, source, env=None, **changes):
    monkeypatch.setattr(collective, "SOURCE", textwrap.dedent(source))
    return collective.check(plan(**changes), env or {}, None, docker_api.Api("/nowhere"))


def test_one_device_is_not_tried():
    assert collective.check(plan(tensor_parallel=1, engine_python="/nowhere"), {}, None,
                            docker_api.Api("/nowhere")) == ""


def test_ways_that_work_are_nothing_to_tell(monkeypatch):
    assert natively(monkeypatch, "print('NCCL version 2.28.9+cuda13.0')") == ""


@pytest.mark.parametrize(("changes", "words"), [
    ({}, "cuda 2"), ({"gpus": []}, "cpu 2"), ({"tensor_parallel": 4, "pipeline_parallel": 2},
                                              "cuda 8")])
def test_the_probe_is_told_how_many_of_what(monkeypatch, changes, words):
    said = natively(monkeypatch, "import sys; sys.exit(' '.join(sys.argv[1:]))", **changes)
    assert said == words


def test_a_python_without_torch_is_known_for_it():
    said = collective.check(plan(), {}, None, docker_api.Api("/nowhere"))
    assert "No module named 'torch'" in said
    assert said.endswith("firstlight collective: the copying process failed in the start of torch")
    assert ids(said) == ["torch-missing"]


def test_the_python_of_the_environment_is_taken_where_no_other_is_named(tmp_path):
    said = collective.check(plan(engine_python="", venv=str(tmp_path)), {}, None,
                            docker_api.Api("/nowhere"))
    python = "%s/bin/python" % tmp_path
    assert said.startswith("/usr/bin/env: ")
    assert python in said


def test_the_engines_variables_are_there_and_no_others(monkeypatch):
    monkeypatch.setenv("LD_LIBRARY_PATH", "/somewhere")
    monkeypatch.setenv("NCCL_SHM_DISABLE", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    said = natively(monkeypatch, """
        import os, sys
        print(sorted(os.environ.items()))
        print(open("/proc/%d/cmdline" % os.getppid()).read())
        sys.exit(1)
        """, env={"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b", "HF_TOKEN": "hf_secret"})
    there, _, command = said.partition("\n")
    assert dict(ast.literal_eval(there)) == {
        "CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b", "HF_TOKEN": "hf_secret", "LC_ALL": "C",
        "NCCL_DEBUG": "WARN", "PATH": os.environ["PATH"],
        **({"LC_CTYPE": "C.UTF-8"} if "LC_CTYPE" in there else {})}
    assert "hf_secret" not in command


def test_who_asks_nccl_for_more_gets_more(monkeypatch):
    said = natively(monkeypatch, "import os, sys; sys.exit(os.environ['NCCL_DEBUG'])",
                    env={"NCCL_DEBUG": "INFO"})
    assert said == "INFO"


def test_a_probe_that_says_nothing_is_told_of(monkeypatch):
    said = natively(monkeypatch, "import sys; sys.exit(3)")
    assert said == "firstlight collective: %s: ended with 3 and said nothing" % sys.executable


def test_a_probe_that_does_not_end_is_ended(monkeypatch):
    monkeypatch.setattr(collective, "LIMIT_S", 0.5)
    said = natively(monkeypatch, "import time; time.sleep(600)")
    assert said == "firstlight collective: %s: no answer within 0.5 s" % sys.executable


def test_the_end_of_a_long_text_is_kept(monkeypatch):
    said = natively(monkeypatch, "import sys; print('x' * 2**20); sys.exit('the end')")
    assert len(said) == collective.MOST_TEXT
    assert said.endswith("the end")


# In a container.

LABELS = {"firstlight.endpoint": "chat", "firstlight.root": "/r", "firstlight.plan": "p"}
NAME = "firstlight-chat-0123abcd"
LIMITS = {"Runtime": "nvidia", "ShmSize": 3 << 30, "IpcMode": "private", "CapDrop": ["ALL"],
          "Devices": [{"PathOnHost": "/dev/nvidia0"}], "NetworkMode": "firstlight"}


@pytest.fixture
def engine(docker):
    """The engine's container as the daemon describes it; it waits to be started."""
    docker.run(NAME, running=False, config={
        "Image": "vllm@sha256:1", "Labels": LABELS, "User": "2000:0", "WorkingDir": "/work",
        "Env": ["PATH=" + os.environ["PATH"], "NVIDIA_VISIBLE_DEVICES=GPU-a,GPU-b", "EMPTY="]},
        host={**LIMITS, "PortBindings": {"8000/tcp": [{"HostPort": "8000"}]},
              "RestartPolicy": {"Name": "unless-stopped"}})
    return docker.containers[NAME]


def inside(docker, engine, monkeypatch, source="", env=None):
    monkeypatch.setattr(collective, "SOURCE", textwrap.dedent(source))
    return collective.check(plan(), env or {}, engine, docker_api.Api(docker.socket))


def test_ways_that_work_in_a_container_are_nothing_to_tell(docker, engine, monkeypatch):
    assert inside(docker, engine, monkeypatch, "print('NCCL version 2.28.9')") == ""
    assert list(docker.containers) == [NAME]


def test_the_probe_has_what_the_engines_container_has(docker, engine, monkeypatch):
    made = []
    create = docker._create
    monkeypatch.setattr(docker, "_create", lambda name, body: made.append(
        dict(body, name=name)) or create(name, body))
    said = inside(docker, engine, monkeypatch, """
        import os, sys
        names = ("NVIDIA_VISIBLE_DEVICES", "EMPTY", "NCCL_DEBUG", "VLLM_X")
        sys.exit(" ".join([*sys.argv[1:], *("%s=%s" % (one, os.environ[one]) for one in names)]))
        """, env={"VLLM_X": "1"})
    assert said == "cuda 2 NVIDIA_VISIBLE_DEVICES=GPU-a,GPU-b EMPTY= NCCL_DEBUG=WARN VLLM_X=1"
    [body] = made
    assert (body["Image"], body["User"], body["WorkingDir"]) == (
        "vllm@sha256:1", "2000:0", "/work")
    host = body["HostConfig"]
    assert {key: host[key] for key in LIMITS} == LIMITS
    assert host["PortBindings"] == {}
    assert host["RestartPolicy"] == {"Name": "no"}
    assert body["Labels"] == {key: LABELS[key] for key in one_shot.OURS}
    assert list(docker.containers) == [NAME]


def test_what_is_printed_in_a_container_is_told(docker, engine, monkeypatch):
    said = inside(docker, engine, monkeypatch, """
        import sys
        print("firstlight collective: torch 2.11.0 sees 1 of 2 devices")
        sys.exit(1)
        """)
    assert ids(said) == ["collective-devices-missing"]
    assert list(docker.containers) == [NAME]


def test_a_silent_end_in_a_container_is_told(docker, engine, monkeypatch):
    assert inside(docker, engine, monkeypatch, "import sys; sys.exit(3)") == (
        "firstlight collective: its container ended with 3 and said nothing")


def test_a_container_that_does_not_end_is_ended(docker, engine, monkeypatch):
    monkeypatch.setattr(collective, "LIMIT_S", 1)
    said = inside(docker, engine, monkeypatch, "import time; time.sleep(600)")
    assert said == "firstlight collective: its container was not done within 1 s"
    assert list(docker.containers) == [NAME]


@pytest.mark.parametrize("path", ["/containers/create", "/containers/.*/start"])
def test_what_the_daemon_says_against_it_is_told(docker, engine, monkeypatch, path):
    docker.say("POST", path, (500, {"message": "CDI device injection failed"}))
    assert inside(docker, engine, monkeypatch) == (
        "firstlight collective: Docker: CDI device injection failed")
    assert list(docker.containers) == [NAME]


def test_what_a_killed_run_left_is_replaced(docker, engine, monkeypatch):
    docker.run(NAME + collective.SUFFIX, config={"Labels": LABELS})
    assert inside(docker, engine, monkeypatch) == ""
    assert list(docker.containers) == [NAME]


def test_anothers_container_of_that_name_stays(docker, engine, monkeypatch):
    docker.run(NAME + collective.SUFFIX, config={"Labels": dict(
        LABELS, **{"firstlight.root": "/other"})})
    said = inside(docker, engine, monkeypatch)
    assert said.startswith("firstlight collective: Docker: Conflict.")
    assert list(docker.containers) == [NAME, NAME + collective.SUFFIX]


def test_a_daemon_that_goes_away_is_an_error(docker, engine, monkeypatch):
    docker.say("POST", "/containers/create", DROP)
    with pytest.raises(services.ServiceError, match="Docker does not answer"):
        inside(docker, engine, monkeypatch)
