# SPDX-License-Identifier: Apache-2.0
"""Time what `model_info` costs with a model of 140 GB: `make bench`.

The model is a Llama of 70 billion weights in both formats, as large as published ones: files of
safetensors with their index and a tokenizer.json of 9 MB, and a GGUF file whose header holds the
same tokenizer. The files are holes behind true headers. The module runs as over a pipelined
connection: a fresh Python reads all of it from its input. A module that does nothing, which is
what Ansible takes, is timed turn by turn with it.
"""

from __future__ import annotations

import json
import os
import pathlib
import random
import shutil
import statistics
import string
import struct
import subprocess
import sys
import tempfile
import time

TESTS = pathlib.Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
# Ansible reads it when it is imported.
os.environ.setdefault("ANSIBLE_CONFIG", str(ROOT / "ansible.cfg"))
sys.path[:0] = [str(TESTS / "rig"), str(ROOT / "molecule" / "deployment_plan" / "files")]

import gguf  # noqa: E402
import yaml  # noqa: E402
from ansible.plugins.loader import init_plugin_loader  # noqa: E402
from model_configs import CONFIGS  # noqa: E402
from sent_modules import NOTHING, as_sent  # noqa: E402
from sparse_model import shapes  # noqa: E402

ROUNDS, WANTED_S, SHARDS = 9, 0.5, 30
TOKENS, MERGES = 128_256, 280_147


def words():
    """A vocabulary and merges that take as much room as those of Llama 3."""
    letters = random.Random(3)
    made = set()
    while len(made) < TOKENS:
        made.add("".join(letters.choices(string.ascii_letters, k=letters.randint(3, 11))))
    tokens = sorted(made)
    return tokens, ["%s %s" % (tokens[at % TOKENS][:5], tokens[-at % TOKENS][:5])
                    for at in range(MERGES)]


def make_safetensors(folder, config, tokens, merges):
    """The model in shards of about 5 GB."""
    folder.mkdir()
    tensors = [(name, shape, 2 * shape[0] * (shape[1] if len(shape) > 1 else 1))
               for name, shape in shapes(config)]
    limit = sum(size for _, _, size in tensors) // SHARDS
    shards, taken = [[]], 0
    for one in tensors:
        if taken > limit and len(shards) < SHARDS:
            shards.append([])
            taken = 0
        shards[-1].append(one)
        taken += one[2]
    places = {}
    for number, shard in enumerate(shards, 1):
        name = "model-%05d-of-%05d.safetensors" % (number, len(shards))
        header, end = {"__metadata__": {"format": "pt"}}, 0
        for tensor, shape, size in shard:
            header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
            end += size
            places[tensor] = name
        text = json.dumps(header).encode()
        with open(folder / name, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(file.tell() + end)
    for name, content in {
            "config.json": config,
            "generation_config.json": {"temperature": 0.6, "eos_token_id": [128001, 128009]},
            "model.safetensors.index.json": {"metadata": {}, "weight_map": places},
            "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast",
                                      "chat_template": "{{ messages }}"},
            "tokenizer.json": {"version": "1.0", "added_tokens": [], "model": {
                "type": "BPE", "merges": merges,
                "vocab": {token: at for at, token in enumerate(tokens)}}}}.items():
        (folder / name).write_text(json.dumps(content, indent=2))


def make_gguf(path, config, tokens, merges):
    """The model in one file."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_file_type(32)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges(merges)
    writer.add_chat_template("{{ messages }}")
    total = 0
    for name, shape in shapes(config):
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        writer.add_tensor_info(name, shape, "bfloat16", size, gguf.GGMLQuantizationType.BF16)
        total += size + -size % 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, path.stat().st_size + total + 64)


def seconds(module):
    """Wall time of one process that runs a module, and what it answered."""
    started = time.monotonic()
    done = subprocess.run([sys.executable], input=module, stdout=subprocess.PIPE, check=True,
                          env=dict(os.environ, LC_ALL="C"))
    return time.monotonic() - started, json.loads(done.stdout)


def row(label, taken):
    """A line of the table, in milliseconds."""
    print("  %-50s %8.0f %8.0f %8.0f" % (
        label, *(1000 * one for one in (min(taken), statistics.median(taken), max(taken)))))


def measure(path, folder):
    """Print one model's part of the table."""
    rows = {name: yaml.safe_load((ROOT / "catalog" / (name + ".yml")).read_text())
            for name in ("tokenizer_classes", "model_types")}
    ours = as_sent((ROOT / "library/model_info.py").read_text(), folder,
                   paths=[str(path)], **rows)
    nothing = as_sent(NOTHING, folder)
    _, answer = seconds(ours)  # the first brings the files into memory
    model = answer["models"][str(path)]
    assert answer["findings"] == [], answer["findings"]
    pairs = [(seconds(nothing)[0], seconds(ours)[0]) for _ in range(ROUNDS)]
    print("%s: %.1f GB in %d files" % (model["format"], model["bytes"] / 1e9, model["files"]))
    row("model_info, its whole process", [whole for _, whole in pairs])
    row("  of it Ansible's own (a module that does nothing)", [bare for bare, _ in pairs])
    mine = [whole - bare for bare, whole in pairs]
    row("  of it ours (difference, pair by pair)", mine)
    for what, taken in (("ours", mine), ("the whole process", [whole for _, whole in pairs])):
        median = statistics.median(taken)
        print("  wanted %.0f: %s, with a median of %.0f, is %s" % (
            1000 * WANTED_S, what, 1000 * median, "within" if median <= WANTED_S else "MORE"))


def main():
    """Make the models, print the table and remove them."""
    init_plugin_loader()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="fl-bench-", dir="/tmp"))
    try:
        config, (tokens, merges) = CONFIGS["Llama-3.1-70B"], words()
        make_safetensors(folder / "llama-70b", config, tokens, merges)
        make_gguf(folder / "llama-70b.gguf", config, tokens, merges)
        print("model_info, milliseconds of %d rounds %29s %8s %8s" % (
            ROUNDS, "min", "median", "max"))
        for path in (folder / "llama-70b", folder / "llama-70b.gguf"):
            measure(path, folder)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
