#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Write the safetensors file of a Llama-shaped model beside its config: the header alone is true.

The tensors are holes in the file, so that a model of any size takes no room. Beside it goes a
tokenizer that knows one letter.
"""

import json
import os
import struct
import sys

BYTES = 2  # of a bfloat16
TOKENIZER = {
    "tokenizer.json": {"version": "1.0", "added_tokens": [], "model": {
        "type": "BPE", "vocab": {"a": 0}, "merges": []}},
    "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast",
                              "chat_template": "{{ messages }}"},
}


def shapes(config):
    """Every tensor of such a model and its shape."""
    hidden, width = config["hidden_size"], config["intermediate_size"]
    keys = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    yield "model.embed_tokens.weight", [config["vocab_size"], hidden]
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", [config["vocab_size"], hidden]
    yield "model.norm.weight", [hidden]
    for layer in range(config["num_hidden_layers"]):
        for name, shape in {
                "self_attn.q_proj": [hidden, hidden], "self_attn.k_proj": [keys, hidden],
                "self_attn.v_proj": [keys, hidden], "self_attn.o_proj": [hidden, hidden],
                "mlp.gate_proj": [width, hidden], "mlp.up_proj": [width, hidden],
                "mlp.down_proj": [hidden, width], "input_layernorm": [hidden],
                "post_attention_layernorm": [hidden]}.items():
            yield "model.layers.%d.%s.weight" % (layer, name), shape


def main(folder):
    """Write the file into the folder, unless it is there."""
    for name, content in TOKENIZER.items():
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            json.dump(content, file)
    path = os.path.join(folder, "model.safetensors")
    if os.path.exists(path):
        return
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    header, end = {}, 0
    for name, shape in shapes(config):
        start, end = end, end + BYTES * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(file.tell() + end)


if __name__ == "__main__":
    main(sys.argv[1])
