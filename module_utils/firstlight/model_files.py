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
from typing import Any, BinaryIO, Dict, Iterable, List, Optional, Set, Tuple

from ansible.module_utils.firstlight import model_config
from ansible.module_utils.firstlight.model_config import count, head_size

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

# What engines call the table of embeddings and the head, without the weight at the end.
EMBEDDINGS = frozenset(("embed_tokens", "wte", "word_embeddings", "tok_embeddings", "embed_in"))
HEADS = frozenset(("lm_head", "embed_out", "output_layer"))
GGUF_EMBEDDING, GGUF_HEAD = "token_embd.weight", "output.weight"
# One layer in so many keeps all tokens, the others a window, and the window where the file has
# none: llama.cpp's own numbers (src/llama-model.cpp, set_swa_pattern).
GGUF_WINDOWS: Dict[str, Tuple[int, Optional[int]]] = {
    "cohere2": (4, None), "gemma2": (2, 4096), "gemma3": (6, None), "gpt-oss": (2, None),
    "llama4": (4, 8192),
}
# All layers of these have attention and a state, or a state alone.
GGUF_BOTH, GGUF_STATE_ALONE = ("falcon-h1",), ("mamba", "mamba2")


class BadModel(Exception):
    """The file is not what it should be; the message says what was found and where."""


def describe(path: str) -> Model:
    """A model on disk: ``{path, format, bytes, fingerprint, geometry, quantisation, ...}``.

    ``path`` is a GGUF file, or a directory with ``config.json`` and safetensors files.
    ``bytes`` is the exact size of the tensors' files, ``tensors`` that of the tensors in them:
    embeddings, head and the rest; ``None`` where a tensor is of a type that is not known.
    ``geometry`` has the keys of ``model_config.geometry``. ``fingerprint`` changes when a file is
    replaced: it covers headers, sizes and modification times, not every byte.

    :raises BadModel: for a file that is truncated, empty, of another kind or contradicts itself.
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
    tensors = dict(header.tensors)
    for shard in shards[1:]:
        with open(shard, "rb") as file:
            tensors.update(_GgufHeader(shard, file).tensors)
    arch = fields.get("general.architecture")
    if not isinstance(arch, str):
        raise BadModel("%s: general.architecture is missing" % path)
    for shard in shards:
        _add_stat(digest, shard)

    file_type = fields.get("general.file_type")
    return {
        "path": path,
        "format": "gguf",
        "files": len(shards),
        "bytes": sum(os.path.getsize(shard) for shard in shards),
        "fingerprint": digest.hexdigest(),
        "name": str(fields.get("general.name", "")),
        "quantisation": FILE_TYPES.get(file_type, "unknown") if isinstance(file_type, int)
        else "unknown",
        "quantisation_bits": None,
        "quantisation_group": None,
        "chat_template": "tokenizer.chat_template" in fields,
        "tensors": _gguf_tensors(tensors),
        "geometry": _gguf_geometry(arch, header, tensors),
    }


def _gguf_tensors(tensors: Dict[str, Optional[int]]) -> Optional[Dict[str, int]]:
    sizes = {name: size for name, size in tensors.items() if size is not None}
    if len(sizes) < len(tensors):
        return None
    embedding, head = sizes.get(GGUF_EMBEDDING, 0), sizes.get(GGUF_HEAD, 0)
    return _by_use(embedding, head, sum(sizes.values()))


def _by_use(embedding: int, head: int, total: int) -> Dict[str, int]:
    return {"embedding_bytes": embedding, "head_bytes": head,
            "other_bytes": total - embedding - head}


class _GgufFields:
    """The fields of one architecture, as counts."""

    def __init__(self, arch: str, fields: Dict[str, Any]) -> None:
        self._arch, self._fields = arch, fields

    def raw(self, name: str) -> Any:
        """A field as the file has it; ``None`` when it is missing or a list that is too long."""
        return self._fields.get("%s.%s" % (self._arch, name))

    def count(self, name: str) -> Optional[int]:
        """A count, or the largest where there is one for each layer."""
        value = self.raw(name)
        return count(max(value, default=None) if isinstance(value, list) else value)

    def having(self, name: str) -> Optional[Set[int]]:
        """The layers for which a list has something; ``None`` where the field is no list."""
        value = self.raw(name)
        if not isinstance(value, list) or len(value) != self.count("block_count"):
            return None
        return {layer for layer, one in enumerate(value) if one}


def _gguf_geometry(arch: str, header: _GgufHeader,
                   tensors: Iterable[str]) -> model_config.Geometry:
    found = _GgufFields(arch, header.fields)
    field = found.count
    layers, hidden, heads = (
        field(name) for name in ("block_count", "embedding_length", "attention.head_count"))
    latent = field("attention.kv_lora_rank")
    head_dim = field("attention.key_length") or head_size(hidden, heads)
    value_dim = field("attention.value_length") or head_dim
    if latent:
        # A file for the absorbed form has the sizes of the latent in the plain fields.
        head_dim = field("attention.key_length_mla") or field("attention.key_length")
        value_dim = field("attention.value_length_mla") or field("attention.value_length")
    attention, with_state = _gguf_layers(arch, found)
    window, sliding = _gguf_window(arch, found, layers)
    names = set(tensors)
    experts, width = field("expert_count"), field("feed_forward_length")
    of_expert = field("expert_feed_forward_length") or (width if arch == "llama" else None)
    shared = field("expert_shared_count")
    with_experts = {name.split(".")[1] for name in names
                    if name.startswith("blk.") and "_exps." in name}
    return {
        "architecture": arch,
        "layers": layers,
        "hidden": hidden,
        "heads": heads,
        "kv_heads": field("attention.head_count_kv") or heads,
        "head_dim": head_dim,
        "value_head_dim": value_dim,
        "context": field("context_length"),
        "vocabulary": field("vocab_size") or count(header.lengths.get("tokenizer.ggml.tokens")),
        "intermediate": width,
        "tied_embeddings": GGUF_HEAD not in names if GGUF_EMBEDDING in names else None,
        # Its vision tower, if any, is a file of its own.
        "vision": False,
        "kv_lora_rank": latent,
        "rope_head_dim": field("rope.dimension_count") if latent else None,
        "query_lora_rank": field("attention.q_lora_rank") if latent else None,
        "sliding_window": window,
        "sliding_layers": sliding,
        "attention_layers": attention,
        "state_bytes_per_sequence": _gguf_state(found, with_state),
        "experts": experts,
        "experts_per_token": field("expert_used_count") if experts else None,
        "moe_intermediate": of_expert if experts else None,
        "shared_intermediate": (
            field("expert_shared_feed_forward_length")
            or (shared * of_expert if shared and of_expert else None)) if experts else None,
        "dense_layers": layers if not experts
        else layers - len(with_experts) if layers and 0 < len(with_experts) <= layers
        else field("leading_dense_block_count"),
    }


def _gguf_layers(arch: str, found: _GgufFields) -> Tuple[Optional[int], Optional[int]]:
    """How many layers keep keys for each token, and how many a state."""
    layers, interval = found.count("block_count"), found.count("full_attention_interval")
    stateful = found.count("ssm.state_size") or found.count("shortconv.l_cache")
    if not layers:
        return None, None
    if arch in GGUF_STATE_ALONE:
        return 0, layers
    if arch in GGUF_BOTH:
        return layers, layers
    attending, with_mlp = found.having("attention.head_count_kv"), None
    if attending is not None:
        # In this one a layer is attention, Mamba or an MLP alone.
        with_mlp = found.having("feed_forward_length") if arch == "nemotron_h" else set()
        if not stateful:
            return len(attending), 0
        return len(attending), (layers - len(attending | with_mlp) if with_mlp is not None
                                else None)
    if stateful:
        return (layers // interval, layers - layers // interval) if interval else (None, None)
    return (layers, 0) if found.count("attention.head_count") else (None, None)


def _gguf_window(arch: str, found: _GgufFields,
                 layers: Optional[int]) -> Tuple[Optional[int], Optional[int]]:
    """The window and how many layers use it."""
    known, default = GGUF_WINDOWS.get(arch, (None, None))
    said = found.raw("attention.sliding_window")
    window = count(said) or (default if said is None else None)
    if not layers or not window:
        return None, 0 if layers else None
    pattern = found.raw("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        sliding = sum(one is True for one in pattern) if len(pattern) == layers else None
        return (None if sliding == 0 else window), sliding
    period = count(pattern) or known
    sliding = layers - layers // period if period else None
    return (None if sliding == 0 else window), sliding


def _gguf_state(found: _GgufFields, layers: Optional[int]) -> Optional[int]:
    """What one sequence keeps in the layers that have a state; llama.cpp keeps it in F32."""
    if not layers:
        return layers
    kernel, inner, state = (found.count("ssm." + name) for name in (
        "conv_kernel", "inner_size", "state_size"))
    groups = found.count("ssm.group_count") or 0
    if kernel and inner and state:
        return layers * 4 * ((kernel - 1) * (inner + 2 * groups * state) + inner * state)
    kernel, hidden = found.count("shortconv.l_cache"), found.count("embedding_length")
    return layers * 4 * (kernel - 1) * hidden if kernel and hidden else None


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


class _GgufHeader:
    """The header of a GGUF file that is whole. Long arrays are skipped, their lengths kept."""

    def __init__(self, path: str, file: BinaryIO) -> None:
        self._path, self._file = path, file
        size = os.fstat(file.fileno()).st_size
        self._limit = min(size, MAX_HEADER)
        self.fields: Dict[str, Any] = {}
        self.lengths: Dict[str, int] = {}
        # Bytes of each tensor; None for a type that is not known.
        self.tensors: Dict[str, Optional[int]] = {}
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
        if sum(one or 0 for one in self.tensors.values()) > size:
            raise BadModel("%s: its tensors overlap" % path)

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
            kind, offset = self._scalar("I"), self._scalar("Q")
            block, size = TENSOR_TYPES.get(kind, (1, 0))
            self.tensors[name] = weights // block * size if kind in TENSOR_TYPES else None
            end = max(end, offset + weights // block * size)
        alignment = count(self.fields.get("general.alignment", 32))
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
    contradictions = model_config.contradictions(config)
    if contradictions:
        raise BadModel("%s: %s" % (config_path, ". ".join(contradictions)))
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    kinds: Dict[str, int] = {}
    embedding, head, total = 0, 0, 0
    for shard in shards:
        for name, kind, size in _safetensors_header(shard):
            kinds[kind] = kinds.get(kind, 0) + 1
            total += size
            module = name.split(".")[-2:]
            if module[-1] == "weight" and module[0] in EMBEDDINGS:
                embedding += size
            # A head that was quantised has scales beside its weights.
            elif module[0] in HEADS or name == "output.weight":
                head += size
        _add_stat(digest, shard)
    geometry = model_config.geometry(config)
    if geometry["tied_embeddings"] is None and embedding:
        geometry["tied_embeddings"] = head == 0
    quantised = model_config.quantisation(config)
    return {
        "path": path,
        "format": "safetensors",
        "files": len(shards),
        "bytes": sum(os.path.getsize(shard) for shard in shards),
        "fingerprint": digest.hexdigest(),
        "name": os.path.basename(os.path.normpath(path)),
        "quantisation": model_config.quantisation_method(config)
        or max(kinds, key=lambda kind: kinds[kind]),
        "quantisation_bits": quantised["bits"],
        "quantisation_group": quantised["group"],
        "chat_template": _has_chat_template(path),
        "tensors": _by_use(embedding, head, total),
        "geometry": geometry,
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


def _safetensors_header(path: str) -> List[Tuple[str, str, int]]:
    """Name, type and bytes of each tensor in a safetensors file that is whole."""
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
            tensors = [(name, str(tensor["dtype"]), *map(int, tensor["data_offsets"][:2]))
                       for name, tensor in header.items()]
            end = max((last for _, _, _, last in tensors), default=0)
            total = sum(last - first for _, _, first, last in tensors)
        except (ValueError, AttributeError, LookupError, TypeError, OverflowError,
                RecursionError) as problem:
            raise BadModel("%s: its header is not readable: %s" % (path, problem)) from problem
    if 8 + length + end > size:
        raise BadModel("%s: truncated: %d bytes, its header promises %d"
                       % (path, size, 8 + length + end))
    if not tensors:
        raise BadModel("%s: holds no tensors" % path)
    if total > end or any(not 0 <= first <= last for _, _, first, last in tensors):
        raise BadModel("%s: its tensors overlap or end before they start" % path)
    return [(name, kind, last - first) for name, kind, first, last in tensors]


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
