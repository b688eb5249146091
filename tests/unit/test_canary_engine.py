# SPDX-License-Identifier: Apache-2.0
"""A real llama.cpp server answers as the reference does, and otherwise once the model is broken."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest

from ansible.module_utils.firstlight import canary

ORACLE = canary.oracle()
# Serves until its standard input closes, so it cannot outlive the test even if that is killed.
LAUNCHER = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.port = 0
params.n_ctx = 512
params.n_parallel = 1
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / canary.GGUF
    path.write_bytes(canary.content(canary.GGUF))
    return path


@contextlib.contextmanager
def serving(python, model):
    """Serve a GGUF file on an ephemeral loopback port; gives its URL."""
    process = subprocess.Popen(
        [python, "-c", LAUNCHER, model],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    deadline = threading.Timer(120, process.kill)
    deadline.start()
    try:
        # The line comes when the model is loaded, or end of file when the engine has died.
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), "the engine did not start"
        yield url
    finally:
        deadline.cancel()
        process.kill()
        process.communicate(timeout=30)


def ask(url, path, **body):
    body = {"model": "canary", "temperature": 0, "max_tokens": ORACLE["max_tokens"], **body}
    request = urllib.request.Request(
        url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def completion(url):
    return ask(url, "/v1/completions", prompt=ORACLE["prompt"])["choices"][0]["text"]


def chat_completion(url):
    answer = ask(url, "/v1/chat/completions", messages=ORACLE["chat_messages"])
    return answer["choices"][0]["message"]["content"]


def rewrite(source: Path, target: Path, change=lambda name, data: data, quantize=False, **metadata):
    """Copy a GGUF file with its matrices changed, or made Q8_0, or other metadata."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            value = metadata.get(name.replace(".", "_"), field.contents())
            writer.add_key_value(name, value, *field.types[:2])
    for tensor in reader.tensors:
        data = change(tensor.name, np.array(tensor.data))
        if quantize and data.ndim == 2:
            dtype = gguf.GGMLQuantizationType.Q8_0
            data = gguf.quants.quantize(data.astype(np.float32), dtype)
            writer.add_tensor(tensor.name, data, raw_dtype=dtype)
        else:
            writer.add_tensor(tensor.name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def assert_answers_as_the_oracle(url):
    tokens = ask(url, "/tokenize", content=ORACLE["prompt"])["tokens"]
    assert tokens == ORACLE["prompt_ids"]
    assert completion(url) == ORACLE["completion"]
    assert chat_completion(url) == ORACLE["chat_completion"]


def test_llama_cpp_gives_the_answer_in_f16(engine_python, model):
    with serving(engine_python, model) as url:
        assert_answers_as_the_oracle(url)


def test_llama_cpp_gives_the_answer_in_q8_0(engine_python, model, tmp_path):
    quantized = rewrite(model, tmp_path / "q8_0.gguf", quantize=True)
    assert quantized.stat().st_size < 0.6 * model.stat().st_size
    with serving(engine_python, quantized) as url:
        assert_answers_as_the_oracle(url)


def test_a_copy_without_a_change_is_no_fault(engine_python, model, tmp_path):
    with serving(engine_python, rewrite(model, tmp_path / "copy.gguf")) as url:
        assert_answers_as_the_oracle(url)


def zeroed(part):
    return lambda name, data: data * 0 if part in name else data


def k_heads_rolled(name, data):
    return np.roll(data, 64, axis=0) if "attn_k." in name else data


def without_shard(rank):
    def change(name, data):
        if any(part in name for part in ("attn_output", "ffn_down")):
            width = data.shape[1] // 8
            data[:, rank * width : (rank + 1) * width] = 0
        return data

    return change


FAULTS = {
    "o_proj zeroed": SimpleNamespace(change=zeroed("attn_output")),
    "o_proj of layer 0 zeroed": SimpleNamespace(change=zeroed("blk.0.attn_output")),
    "o_proj of layer 1 zeroed": SimpleNamespace(change=zeroed("blk.1.attn_output")),
    "down_proj zeroed": SimpleNamespace(change=zeroed("ffn_down")),
    "down_proj of layer 0 zeroed": SimpleNamespace(change=zeroed("blk.0.ffn_down")),
    "down_proj of layer 1 zeroed": SimpleNamespace(change=zeroed("blk.1.ffn_down")),
    "K heads permuted": SimpleNamespace(change=k_heads_rolled),
    "RoPE base doubled": SimpleNamespace(llama_rope_freq_base=20000.0),
    "RoPE base halved": SimpleNamespace(llama_rope_freq_base=5000.0),
    **{f"shard {n} zeroed": SimpleNamespace(change=without_shard(n)) for n in range(8)},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_model_answers_otherwise(engine_python, model, tmp_path, fault):
    broken = rewrite(model, tmp_path / "broken.gguf", **vars(FAULTS[fault]))
    with serving(engine_python, broken) as url:
        assert completion(url) != ORACLE["completion"]
        assert chat_completion(url) != ORACLE["chat_completion"]
