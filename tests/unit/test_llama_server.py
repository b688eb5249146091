# SPDX-License-Identifier: Apache-2.0
"""The launcher takes the flags it knows, refuses the rest, and serves or says why not."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from ansible.module_utils.firstlight import canary

LAUNCHER = Path(__file__).parents[2] / "roles" / "inference_endpoint" / "files" / "llama_server.py"
READY = "is served on"

PARAMETERS = """
import importlib.util, json, sys
import xllamacpp
spec = importlib.util.spec_from_file_location("launcher", sys.argv[1])
launcher = importlib.util.module_from_spec(spec)
spec.loader.exec_module(launcher)
made = launcher.parameters(xllamacpp, launcher.parser().parse_args(sys.argv[2:]))
print(json.dumps({
    "model": made.model.path,
    "alias": sorted(made.model_alias),
    "hostnames": list(made.hostnames),
    "port": made.port,
    "n_ctx": made.n_ctx,
    "n_parallel": made.n_parallel,
    "kv_unified": made.kv_unified,
    "cache_ram_mib": made.cache_ram_mib,
    "threads": made.cpuparams.n_threads,
    "threads_batch": made.cpuparams_batch.n_threads,
    "n_batch": made.n_batch,
    "n_ubatch": made.n_ubatch,
    "flash_attn": made.flash_attn_type.name,
    "cache_type_k": made.cache_type_k.name,
    "cache_type_v": made.cache_type_v.name,
    "load_mode": made.load_mode.name,
    "timeouts": [made.timeout_read, made.timeout_write],
    "metrics": made.endpoint_metrics,
    "ui": made.ui,
    "cors_origins": made.cors_origins,
    "offline": made.offline,
}))
"""


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("launcher") / canary.GGUF
    path.write_bytes(canary.content(canary.GGUF))
    return path


@pytest.fixture(scope="module")
def launcher():
    spec = importlib.util.spec_from_file_location("launcher", LAUNCHER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


WRONG_FLAGS = {
    "unknown": ["--n-gpu-layers", "9"],
    "abbreviated": ["--thread", "4"],
    "of another spelling": ["--ctx_size", "4"],
    "a value that is no choice": ["--flash-attn", "True"],
    "a value that is no number": ["--threads", "many"],
    "a value without a flag": ["4"],
    "a flag without its value": ["--threads"],
}


@pytest.mark.parametrize("case", WRONG_FLAGS)
def test_a_wrong_flag_is_named_and_exits_with_2(launcher, capsys, case):
    with pytest.raises(SystemExit) as stopped:
        launcher.parser().parse_args(["--model", "/m.gguf", *WRONG_FLAGS[case]])
    assert stopped.value.code == 2
    assert WRONG_FLAGS[case][0].lstrip("-") in capsys.readouterr().err


def test_it_needs_a_model(launcher, capsys):
    with pytest.raises(SystemExit) as stopped:
        launcher.parser().parse_args([])
    assert stopped.value.code == 2
    assert "--model" in capsys.readouterr().err


def test_a_wrong_flag_is_refused_without_the_engine():
    ran = subprocess.run([sys.executable, LAUNCHER, "--model", "/m.gguf", "--nope"],
                         capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "--nope" in ran.stderr


def parameters(engine_python, *flags):
    ran = subprocess.run([engine_python, "-c", PARAMETERS, LAUNCHER, "--model", "/m.gguf", *flags],
                         capture_output=True, text=True, check=True)
    return json.loads(ran.stdout)


def test_without_flags_the_engines_own_defaults_hold(engine_python):
    made = parameters(engine_python)
    assert made.pop("alias") == []
    assert made == {
        "model": "/m.gguf", "hostnames": ["127.0.0.1"], "port": 8080, "n_ctx": 0, "n_parallel": 1,
        "kv_unified": False, "cache_ram_mib": 0, "threads": -1, "threads_batch": -1,
        "n_batch": 2048, "n_ubatch": 512, "flash_attn": "LLAMA_FLASH_ATTN_TYPE_AUTO",
        "cache_type_k": "GGML_TYPE_F16", "cache_type_v": "GGML_TYPE_F16",
        "load_mode": "LLAMA_LOAD_MODE_AUTO", "timeouts": [3600, 3600], "metrics": False,
        "ui": False, "cors_origins": "", "offline": True,
    }


def test_every_flag_reaches_the_parameter_it_is_named_after(engine_python):
    made = parameters(
        engine_python, "--alias", "chat", "--host", "127.0.0.2", "--port", "9000",
        "--ctx-size", "4096", "--parallel", "3", "--kv-unified", "--cache-ram", "7",
        "--threads", "2", "--threads-batch", "5", "--batch-size", "256", "--ubatch-size", "128",
        "--flash-attn", "on", "--cache-type-k", "q8_0", "--cache-type-v", "bf16",
        "--load-mode", "dio", "--timeout", "60", "--metrics")
    assert made == {
        "model": "/m.gguf", "alias": ["chat"], "hostnames": ["127.0.0.2"], "port": 9000,
        "n_ctx": 4096, "n_parallel": 3, "kv_unified": True, "cache_ram_mib": 7, "threads": 2,
        "threads_batch": 5, "n_batch": 256, "n_ubatch": 128,
        "flash_attn": "LLAMA_FLASH_ATTN_TYPE_ENABLED", "cache_type_k": "GGML_TYPE_Q8_0",
        "cache_type_v": "GGML_TYPE_BF16", "load_mode": "LLAMA_LOAD_MODE_DIRECT_IO",
        "timeouts": [60, 60], "metrics": True, "ui": False, "cors_origins": "", "offline": True,
    }


CHOICES = {
    "--flash-attn": "flash_attn", "--cache-type-k": "cache_type_k",
    "--cache-type-v": "cache_type_v", "--load-mode": "load_mode",
}


@pytest.mark.parametrize("flag", CHOICES)
def test_every_choice_of_a_flag_is_one_that_the_engine_knows(engine_python, launcher, flag):
    [action] = [one for one in launcher.parser()._actions if flag in one.option_strings]
    made = {choice: parameters(engine_python, flag, choice)[CHOICES[flag]]
            for choice in action.choices}
    assert len(set(made.values())) == len(action.choices)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def launched(python, log, *flags):
    """The launcher as a process, ended at the end whatever happens."""
    with open(log, "wb") as file:
        process = subprocess.Popen([python, LAUNCHER, *flags], stdin=subprocess.DEVNULL,
                                   stdout=file, stderr=file)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_until_served(process, log):
    """Bounded by the time limit that every test has."""
    while READY not in log.read_text(errors="replace"):
        assert process.poll() is None, log.read_text(errors="replace")
        time.sleep(0.05)


@contextlib.contextmanager
def serving(python, model, log, *flags):
    port = free_port()
    with launched(python, log, "--model", model, "--port", str(port), "--ctx-size", "512",
                  *flags) as process:
        wait_until_served(process, log)
        yield process, "http://127.0.0.1:%d" % port, port


def ended(python, log, *flags):
    """(exit status, log) of a launcher that must end by itself."""
    with launched(python, log, *flags) as process:
        return process.wait(timeout=60), log.read_text(errors="replace")


def test_it_serves_the_model_under_its_alias_to_no_other_site(engine_python, model, tmp_path):
    with serving(engine_python, model, tmp_path / "log", "--alias", "canary") as (_, url, _port):
        with urllib.request.urlopen(url + "/v1/models", timeout=30) as response:
            assert [one["id"] for one in json.load(response)["data"]] == ["canary"]
        for method in ("GET", "OPTIONS"):
            request = urllib.request.Request(
                url + "/v1/models", method=method,
                headers={"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"})
            with urllib.request.urlopen(request, timeout=30) as response:
                assert not response.headers.get("Access-Control-Allow-Origin")
        with pytest.raises(urllib.error.HTTPError) as page:
            urllib.request.urlopen(url + "/", timeout=30)
        assert page.value.code == 404


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_0_when_it_is_told_to(engine_python, model, tmp_path, number):
    log = tmp_path / "log"
    with serving(engine_python, model, log) as (process, _, port):
        process.send_signal(number)
        assert process.wait(timeout=60) == 0
        assert "stops on signal %d" % number in log.read_text()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5).close()


def damaged(tmp_path, content):
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("kind", ["missing", "empty", "not a model", "truncated"])
def test_a_model_that_cannot_be_served_exits_with_1_and_is_named(
        engine_python, model, tmp_path, kind):
    path = {
        "missing": lambda: tmp_path / "nowhere.gguf",
        "empty": lambda: damaged(tmp_path, b""),
        "not a model": lambda: damaged(tmp_path, b"<html>" * 1000),
        "truncated": lambda: damaged(tmp_path, model.read_bytes()[:-100000]),
    }[kind]()
    status, log = ended(engine_python, tmp_path / "log", "--model", path,
                        "--port", str(free_port()))
    assert status == 1
    assert "llama_server: cannot serve %s" % path in log
    assert READY not in log


def test_a_port_that_another_holds_exits_with_1(engine_python, model, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = str(holder.getsockname()[1])
        status, log = ended(engine_python, tmp_path / "log", "--model", model, "--port", port)
    assert status == 1
    assert "port: " + port in log
    assert READY not in log


def test_a_port_that_another_engine_holds_exits_with_1_and_leaves_it_alone(
        engine_python, model, tmp_path):
    with serving(engine_python, model, tmp_path / "first") as (first, url, port):
        status, _ = ended(engine_python, tmp_path / "second", "--model", model,
                          "--port", str(port))
        assert status == 1
        assert first.poll() is None
        with urllib.request.urlopen(url + "/health", timeout=30) as response:
            assert response.status == 200
