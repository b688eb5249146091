# SPDX-License-Identifier: Apache-2.0
"""What a model is, read from the headers of its files and nothing more.

Files come from anywhere, so every length is checked against a limit and against the file before
it is believed.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import struct
from typing import Any, BinaryIO, Dict, List, Optional, Set, Tuple

Model = Dict[str, Any]

MAX_HEADER = 256 * 2**20
MAX_STRING = 16 * 2**20
MAX_ENTRIES = 1_000_000

# GGUF's own type numbers (ggml/docs/gguf.md): size in bytes and struct code of the scalar ones.
SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}
STRING, ARRAY = 8, 9
MAX_DIMENSIONS = 4


class BadModel(Exception):
    """The file is not what it should be; the message says what was found and where."""


def describe(path: str) -> Model:
    """A model on disk: ``{path, format, bytes, fingerprint, geometry, quantisation, ...}``.

    ``path`` is a GGUF file, or a directory with ``config.json`` and safetensors files.
    ``bytes`` is the exact size of the tensors' files. ``fingerprint`` changes when a file is
    replaced: it covers headers, sizes and modification times, not every byte.

    :raises BadModel: for a file that is truncated, empty or of another kind.
    :raises OSError: when a file cannot be read.
    """
    if os.path.isdir(path):
        return _safetensors_directory(path)
    return _gguf(path)


def _gguf(path: str) -> Model:
    with open(path, "rb") as file:
        header = _GgufHeader(path, file)
        fields = header.fields
        digest = hashlib.sha256()
        end = file.tell()
        file.seek(0)
        digest.update(file.read(end))
    shards = _gguf_shards(path, fields)
    for shard in shards[1:]:
        with open(shard, "rb") as file:
            _GgufHeader(shard, file)
    arch = fields.get("general.architecture")
    if not isinstance(arch, str):
        raise BadModel("%s: general.architecture is missing" % path)
    for shard in shards:
        _add_stat(digest, shard)

    def field(name: str) -> Optional[int]:
        value = fields.get("%s.%s" % (arch, name))
        return _count(max(value, default=None) if isinstance(value, list) else value)

    file_type = fields.get("general.file_type")
    heads, hidden = field("attention.head_count"), field("embedding_length")
    return {
        "path": path,
        "format": "gguf",
        "files": len(shards),
        "bytes": sum(os.path.getsize(shard) for shard in shards),
        "fingerprint": digest.hexdigest(),
        "name": str(fields.get("general.name", "")),
        "quantisation": FILE_TYPES.get(file_type, "unknown") if isinstance(file_type, int)
        else "unknown",
        "chat_template": "tokenizer.chat_template" in fields,
        "geometry": {
            "architecture": arch,
            "layers": field("block_count"),
            "hidden": hidden,
            "heads": heads,
            "kv_heads": field("attention.head_count_kv") or heads,
            "head_dim": field("attention.key_length") or _head_dim(hidden, heads),
            "context": field("context_length"),
            "vocabulary": field("vocab_size")
            or _count(header.lengths.get("tokenizer.ggml.tokens")),
        },
    }


def _gguf_shards(path: str, fields: Dict[str, Any]) -> List[str]:
    """All files of a split GGUF, which names its parts ``…-00001-of-00003.gguf``."""
    count = fields.get("split.count", 1)
    if not isinstance(count, int) or count <= 1:
        return [path]
    match = re.match(r"(.*)-(\d{5})-of-(\d{5})\.gguf$", path)
    if not match or int(match.group(3)) != count:
        raise BadModel("%s: one of %d parts, but not named …-00001-of-%05d.gguf"
                       % (path, count, count))
    if int(match.group(2)) != 1:
        raise BadModel("%s: not the first part, which says what the model is: give "
                       "…-00001-of-%05d.gguf" % (path, count))
    parts = ["%s-%05d-of-%05d.gguf" % (match.group(1), n + 1, count) for n in range(count)]
    missing = [part for part in parts if not os.path.exists(part)]
    if missing:
        raise BadModel("%s: %d of %d parts are missing: %s"
                       % (path, len(missing), count, ", ".join(missing[:3])))
    return parts


def _count(value: Any) -> Optional[int]:
    """A whole number from 1 as it is; ``None`` for anything else, which is no count or size."""
    return value if type(value) is int and value > 0 else None


def _head_dim(hidden: Optional[int], heads: Optional[int]) -> Optional[int]:
    """The size of a head in a model that does not say it."""
    return _count(hidden // heads) if hidden and heads else None


class _GgufHeader:
    """The header of a GGUF file that is whole. Long arrays are skipped, their lengths kept."""

    def __init__(self, path: str, file: BinaryIO) -> None:
        self._path, self._file = path, file
        size = os.fstat(file.fileno()).st_size
        self._limit = min(size, MAX_HEADER)
        self.fields: Dict[str, Any] = {}
        self.lengths: Dict[str, int] = {}
        magic = file.read(4)
        if magic != b"GGUF":
            raise BadModel("%s: not a GGUF file (it starts with %r)" % (path, magic))
        version = self._scalar("I")
        if version not in (2, 3):
            raise BadModel("%s: GGUF version %d; 2 and 3 are known" % (path, version))
        tensors, pairs = self._scalar("Q"), self._scalar("Q")
        if tensors > MAX_ENTRIES or pairs > MAX_ENTRIES:
            raise BadModel("%s: %d tensors and %d fields cannot be" % (path, tensors, pairs))
        for _ in range(pairs):
            key = self._string()
            self.fields[key] = self._value(key, self._scalar("I"))
        # The first part of a split model may hold its fields alone.
        if tensors == 0 and "split.count" not in self.fields:
            raise BadModel("%s: holds no tensors" % path)
        promised = self._tensors_end(tensors)
        if promised > size:
            raise BadModel("%s: truncated: %d bytes, its header promises %d"
                           % (path, size, promised))

    def _tensors_end(self, tensors: int) -> int:
        """Where the last tensor ends, which is the least size of a file that is whole."""
        end = 0
        for _ in range(tensors):
            name, dimensions = self._string(), self._scalar("I")
            if dimensions > MAX_DIMENSIONS:
                raise BadModel("%s: tensor %s has %d dimensions" % (self._path, name, dimensions))
            weights = 1
            for _ in range(dimensions):
                weights *= self._scalar("Q")
            block, size = TENSOR_TYPES.get(self._scalar("I"), (1, 0))
            end = max(end, self._scalar("Q") + weights // block * size)
        alignment = _count(self.fields.get("general.alignment", 32))
        if alignment is None:
            raise BadModel("%s: general.alignment is no size" % self._path)
        return -(-self._file.tell() // alignment) * alignment + end if tensors else 0

    def _take(self, count: int) -> bytes:
        if count > MAX_STRING or self._file.tell() + count > self._limit:
            raise BadModel("%s: the header runs past the end of the file (truncated?)"
                           % self._path)
        return self._file.read(count)

    def _scalar(self, code: str) -> Any:
        size = struct.calcsize("<" + code)
        return struct.unpack("<" + code, self._take(size))[0]

    def _string(self) -> str:
        return self._take(self._scalar("Q")).decode("utf-8", "replace")

    def _value(self, key: str, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind in SCALARS:
            return self._scalar(SCALARS[kind])
        if kind != ARRAY:
            raise BadModel("%s: field %s has the unknown type %d" % (self._path, key, kind))
        item, count = self._scalar("I"), self._scalar("Q")
        self.lengths[key] = count
        if count > MAX_STRING:
            raise BadModel("%s: field %s has %d items" % (self._path, key, count))
        if item == STRING:
            for _ in range(count):
                self._take(self._scalar("Q"))
            return None
        if item not in SCALARS:
            raise BadModel("%s: field %s holds the unknown type %d" % (self._path, key, item))
        code = SCALARS[item]
        content = self._take(count * struct.calcsize("<" + code))
        return list(struct.unpack("<%d%s" % (count, code), content)) if count <= 4096 else None


def _safetensors_directory(path: str) -> Model:
    config_path = os.path.join(path, "config.json")
    try:
        config = _json(config_path)
    except FileNotFoundError:
        raise BadModel("%s: no config.json in it" % path) from None
    if not isinstance(config, dict) or not config:
        raise BadModel("%s: empty; a model cannot be served from it" % config_path)
    shards = sorted(glob.glob(os.path.join(glob.escape(path), "*.safetensors")))
    if not shards:
        raise BadModel("%s: no *.safetensors in it" % path)
    missing = sorted(_indexed(path) - {os.path.basename(shard) for shard in shards})
    if missing:
        raise BadModel("%s: %d files that its index names are missing: %s"
                       % (path, len(missing), ", ".join(missing[:3])))
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    kinds: Dict[str, int] = {}
    for shard in shards:
        for kind in _safetensors_kinds(shard):
            kinds[kind] = kinds.get(kind, 0) + 1
        _add_stat(digest, shard)

    def field(name: str) -> Optional[int]:
        return _count(config.get(name))

    heads, hidden = field("num_attention_heads"), field("hidden_size")
    asked = config.get("quantization_config")
    quantisation = asked.get("quant_method") if isinstance(asked, dict) else None
    return {
        "path": path,
        "format": "safetensors",
        "files": len(shards),
        "bytes": sum(os.path.getsize(shard) for shard in shards),
        "fingerprint": digest.hexdigest(),
        "name": os.path.basename(os.path.normpath(path)),
        "quantisation": quantisation or max(kinds, key=lambda kind: kinds[kind]),
        "chat_template": _has_chat_template(path),
        "geometry": {
            "architecture": config.get("model_type"),
            "layers": field("num_hidden_layers"),
            "hidden": hidden,
            "heads": heads,
            "kv_heads": field("num_key_value_heads") or heads,
            "head_dim": field("head_dim") or _head_dim(hidden, heads),
            "context": field("max_position_embeddings"),
            "vocabulary": field("vocab_size"),
        },
    }


def _json(path: str) -> Any:
    """A file of JSON.

    :raises BadModel: for a file of anything else, or one that is too long.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_HEADER:
            raise BadModel("%s: %d bytes are too many for a file of JSON" % (path, size))
        content = file.read(size)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as problem:
        raise BadModel("%s: not JSON: %s" % (path, problem)) from problem


def _indexed(path: str) -> Set[str]:
    """The files that the index of a sharded model names; none where there is no index."""
    index = os.path.join(path, "model.safetensors.index.json")
    try:
        return {str(name) for name in _json(index)["weight_map"].values()}
    except FileNotFoundError:
        return set()
    except (KeyError, TypeError, AttributeError) as problem:
        raise BadModel("%s: no index of safetensors files" % index) from problem


def _safetensors_kinds(path: str) -> List[str]:
    """The type of each tensor in a safetensors file that is whole."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise BadModel("%s: its header length %d does not fit the file of %d bytes"
                           % (path, length, size))
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            kinds = [str(tensor["dtype"]) for tensor in header.values()]
            end = max((int(tensor["data_offsets"][1]) for tensor in header.values()), default=0)
        except (ValueError, AttributeError, LookupError, TypeError, OverflowError,
                RecursionError) as problem:
            raise BadModel("%s: its header is not readable: %s" % (path, problem)) from problem
    if 8 + length + end > size:
        raise BadModel("%s: truncated: %d bytes, its header promises %d"
                       % (path, size, 8 + length + end))
    if not kinds:
        raise BadModel("%s: holds no tensors" % path)
    return kinds


def _has_chat_template(path: str) -> bool:
    if os.path.exists(os.path.join(path, "chat_template.jinja")):
        return True
    try:
        return bool(_json(os.path.join(path, "tokenizer_config.json")).get("chat_template"))
    except (OSError, BadModel, AttributeError):
        return False


def _add_stat(digest: Any, path: str) -> None:
    found: Tuple[int, int] = (os.stat(path).st_size, os.stat(path).st_mtime_ns)
    digest.update(b"%d %d\n" % found)


# Weights in a block, and its bytes, by ggml's number of the type (ggml/include/ggml.h, enum
# ggml_type; sizes as in gguf.constants). A type that is not here counts as nothing, so that a new
# one is never taken for a truncation.
TENSOR_TYPES: Dict[int, Tuple[int, int]] = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110),
    22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8),
    29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
}

# llama.cpp's general.file_type numbers (include/llama.h, enum llama_ftype).
FILE_TYPES: Dict[Any, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K",
    11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S",
    17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS",
    23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0",
    38: "MXFP4_MOE",
}
