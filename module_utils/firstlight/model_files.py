# SPDX-License-Identifier: Apache-2.0
"""What a model is, read from the headers of its files and nothing more.

Files come from anywhere, so every length is checked against a limit and against the file before
it is believed, and nothing but plain files is opened.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import re
import stat
import struct
from typing import Any, BinaryIO, Dict, Iterable, Iterator, List, Optional, Set, Tuple

from ansible.module_utils.firstlight import model_config
from ansible.module_utils.firstlight.model_config import count, head_size

Model = Dict[str, Any]

MAX_HEADER = 256 * 2**20
MAX_STRING = 16 * 2**20
MAX_ENTRIES = 1_000_000
# What is read of a GGUF file at once.
CHUNK = 2**20
# A header of safetensors is at most so long (its own limit, safetensors/src/tensor.rs), and a
# tokenizer.json and an index are shorter: the longest that were seen have 34 MB.
MAX_JSON = 100_000_000
# A config and its like. Chat templates, the longest thing in them, have some ten thousand letters.
MAX_CONFIG = 4 * 2**20
# Values in a file of JSON, and letters in a number: what keeps a small file from filling memory.
MAX_VALUES, MAX_DIGITS = 8_000_000, 400
LFS_POINTER = b"version https://git-lfs.github.com/spec/"

SAFETENSORS, SAFETENSORS_INDEX = ".safetensors", "model.safetensors.index.json"
# Weights that are loaded by unpickling, which runs whatever the file says.
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
PICKLE_INDEX = "pytorch_model.bin.index.json"
# What training leaves beside the weights.
NO_WEIGHTS = re.compile(
    r"(training_args|optimizer|scheduler|rng_state|random_states|trainer_state|scaler).*")
# A second copy of the weights under other names, which engines for the usual format leave alone.
SECOND_COPY = re.compile(r"consolidated.*")
PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.[a-z]+)$")

# GGUF's own type numbers (ggml/docs/gguf.md): size in bytes and struct code of the scalar ones.
SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}
STRING, ARRAY = 8, 9
MAX_DIMENSIONS = 4
MAX_PARTS = 10_000

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
    """Files are not what they should be; each argument says what was found and where."""

    def __str__(self) -> str:
        return "; ".join(self.args)


def describe(path: str) -> Model:
    """A model on disk: ``{path, format, bytes, fingerprint, geometry, quantisation, ...}``.

    ``path`` is a GGUF file, or a directory with ``config.json`` and safetensors files, else
    pickles. Of pickles the sizes are told, and what ``config.json`` says: nothing is unpickled.
    ``bytes`` is the exact size of the tensors' files, ``tensors`` that of the tensors in them:
    embeddings, head and the rest; ``None`` where a tensor is of a type that is not known.
    ``geometry`` has the keys of ``model_config.geometry``. ``fingerprint`` changes when a file is
    replaced: it covers headers, sizes and modification times, not every byte. ``extra`` are weights
    that lie beside the model's and are not its own, with their bytes. ``absent`` (of a directory)
    are tensors that the index names and no file has.

    :raises BadModel: for files that are truncated, missing, empty, of another kind or contradict
        themselves; with everything that is wrong at once.
    :raises OSError: when a file cannot be read.
    """
    return _directory(path) if os.path.isdir(path) else _gguf(path)


@contextlib.contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """A plain file, open for reading.

    :raises BadModel: for what is none. A FIFO would make us wait, and some devices do something
        when they are opened.
    :raises OSError: when it cannot be read.
    """
    _must_be_plain(path, os.stat(path))
    # What it is may have changed since.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        _must_be_plain(path, os.fstat(file.fileno()))
        yield file


def _must_be_plain(path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise BadModel("%s: %s, not a plain file" % (path, kind(status)))


def kind(status: os.stat_result) -> str:
    """What sort of file it is, in words."""
    for is_it, name in ((stat.S_ISREG, "a plain file"), (stat.S_ISDIR, "a directory"),
                        (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"),
                        (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
                        (stat.S_ISLNK, "a link")):
        if is_it(status.st_mode):
            return name
    return "something unknown"


def read_json(path: str, most: int = MAX_CONFIG) -> Any:
    """A file of JSON.

    :param most: bytes that it may have.
    :raises BadModel: for a file of anything else, or one that is too long or says too much.
    :raises OSError: when it cannot be read.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise BadModel("%s: %d bytes are too many for such a file of JSON" % (path, size))
        content = file.read(size)
    if content.startswith(LFS_POINTER):
        raise BadModel("%s: a pointer of git-lfs, not the file itself (git lfs pull)" % path)
    try:
        return parsed(content)
    except (ValueError, RecursionError) as problem:
        raise BadModel("%s: %s: %s" % (
            path, "not JSON" if content.strip() else "an empty file, not JSON", problem)
            ) from problem


def parsed(content: bytes) -> Any:
    """JSON that nobody vouches for.

    :raises ValueError: for what is none, or says too much.
    :raises RecursionError: for what is nested beyond reason.
    """
    if sum(content.count(mark) for mark in (b",", b"[", b"{")) > MAX_VALUES:
        raise ValueError("more than %d values" % MAX_VALUES)
    # Nothing of it can be in a cycle, and to look for one again and again takes most of the time.
    collects = gc.isenabled()
    gc.disable()
    try:
        return json.loads(content, parse_int=_whole)
    finally:
        if collects:
            gc.enable()


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError("a number of %d digits" % len(digits))
    return int(digits)


def _gguf(path: str) -> Model:
    digest = hashlib.sha256()
    with opened(path) as file:
        header = _GgufHeader(path, file, digest)
    fields = header.fields
    shards = _gguf_shards(path, fields)
    tensors = dict(header.tensors)
    problems: List[str] = []
    for number, shard in enumerate(shards[1:], 1):
        try:
            with opened(shard) as file:
                part = _GgufHeader(shard, file)
        except BadModel as problem:
            problems += problem.args
            continue
        for key, wanted in (("split.no", number), ("split.count", len(shards))):
            if part.fields.get(key, wanted) != wanted:
                problems.append("%s: %s is %s in it, wanted %d: a part of another model"
                                % (shard, key, part.fields[key], wanted))
        tensors.update(part.tensors)
    promised = fields.get("split.tensors.count")
    if len(shards) > 1 and not problems and type(promised) is int and promised != len(tensors):
        problems.append("%s: %d tensors in its %d parts, and it promises %d"
                        % (path, len(tensors), len(shards), promised))
    arch = fields.get("general.architecture")
    if not isinstance(arch, str):
        problems.append("%s: general.architecture is missing" % path)
    if problems or not isinstance(arch, str):
        raise BadModel(*problems)
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
        "dtype": None,
        "quantisation": FILE_TYPES.get(file_type, "unknown") if isinstance(file_type, int)
        else "unknown",
        "quantisation_bits": None,
        "quantisation_group": None,
        "chat_template": "tokenizer.chat_template" in fields,
        "tensors": _gguf_tensors(tensors),
        "geometry": _gguf_geometry(arch, header, tensors),
        "weights": [os.path.basename(shard) for shard in shards],
        "extra": {},
        "metadata": _gguf_metadata(header),
    }


def _gguf_metadata(header: _GgufHeader) -> Dict[str, Any]:
    """What the file says of itself and of its tokenizer, in a few short values."""
    told: Dict[str, Any] = {}
    for key, value in sorted(header.fields.items()):
        if key.startswith(("general.", "split.", "tokenizer.")) and len(told) < 64 and (
                isinstance(value, (bool, int, float)) or (
                    isinstance(value, str) and len(value) <= 200 and value.isprintable())):
            # A number that is none is not JSON.
            told[key] = value if value == value and value not in (
                float("inf"), float("-inf")) else None
    tokens = header.lengths.get("tokenizer.ggml.tokens")
    return told if tokens is None else {**told, "tokenizer.ggml.tokens": tokens}


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

    def __init__(self, path: str, file: BinaryIO, digest: Any = None) -> None:
        """Read it; ``digest`` takes all its bytes in."""
        self._path, self._file, self._digest = path, file, digest
        size = os.fstat(file.fileno()).st_size
        self._limit = min(size, MAX_HEADER)
        # What was read and not yet left behind, where we are in it, and where it begins.
        self._buffer, self._at, self._start = b"", 0, 0
        self.fields: Dict[str, Any] = {}
        self.lengths: Dict[str, int] = {}
        # Bytes of each tensor; None for a type that is not known.
        self.tensors: Dict[str, Optional[int]] = {}
        magic = self._take(4) if size >= 4 else file.read(4)
        if magic != b"GGUF":
            raise BadModel("%s: not a GGUF file (%s)" % (path, self._instead(magic)))
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
        if digest is not None:
            digest.update(self._buffer[:self._at])

    def _instead(self, magic: bytes) -> str:
        """What it is, where that can be told."""
        if self._buffer.startswith(LFS_POINTER):
            return "a pointer of git-lfs; git lfs pull brings the file"
        if self._path.endswith(SAFETENSORS):
            return "safetensors are served by their directory: give that"
        return "it starts with %r" % magic

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
        return -(-(self._start + self._at) // alignment) * alignment + end if tensors else 0

    def _need(self, count: int) -> None:
        """Have the next bytes in the buffer."""
        if self._at + count <= len(self._buffer):
            return
        if count > MAX_STRING or self._start + self._at + count > self._limit:
            raise BadModel("%s: the header runs past the end of the file (truncated?)"
                           % self._path)
        if self._digest is not None:
            self._digest.update(self._buffer[:self._at])
        left = self._buffer[self._at:]
        self._start, self._at = self._start + self._at, 0
        self._buffer = left + self._file.read(min(
            max(CHUNK, count - len(left)), self._limit - self._start - len(left)))
        if len(self._buffer) < count:
            raise BadModel("%s: it became shorter while it was read" % self._path)

    def _take(self, count: int) -> bytes:
        self._need(count)
        self._at += count
        return self._buffer[self._at - count:self._at]

    def _skip_texts(self, count: int) -> None:
        """Go past so many texts; there are hundreds of thousands in a tokenizer."""
        length_at = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if self._at + 8 > len(self._buffer):
                self._need(8)
            size = 8 + length_at(self._buffer, self._at)[0]
            if self._at + size > len(self._buffer):
                self._need(size)
            self._at += size

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
            self._skip_texts(count)
            return None
        if item not in SCALARS:
            raise BadModel("%s: field %s holds the unknown type %d" % (self._path, key, item))
        code = SCALARS[item]
        content = self._take(count * struct.calcsize("<" + code))
        return list(struct.unpack("<%d%s" % (count, code), content)) if count <= 4096 else None


def _directory(path: str) -> Model:
    names = _listed(path)
    problems: List[str] = []
    config = _config(path, problems)
    weights, extra, index = _weights(path, names, problems)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    tensors, sizes = _Tensors(), {}
    for name in weights:
        full = os.path.join(path, name)
        try:
            if name.endswith(SAFETENSORS):
                tensors.add(name, _safetensors_header(full))
            sizes[name] = os.stat(full).st_size
        except BadModel as problem:
            problems += problem.args
        except FileNotFoundError:
            problems.append("%s: a link to %s, which is not there" % (full, os.readlink(full)))
    safe = bool(weights) and weights[0].endswith(SAFETENSORS)
    absent: List[str] = []
    if not problems and safe:
        wrong, absent = tensors.against(index, path)
        problems += wrong
    if problems:
        raise BadModel(*problems)
    beside = {name: os.stat(os.path.join(path, name)).st_size for name in extra
              if os.path.isfile(os.path.join(path, name))}
    # Those beside are in it too, as they always were: else what serves would be started anew.
    for name in sorted([*weights, *beside]):
        _add_stat(digest, os.path.join(path, name))
    geometry = model_config.geometry(config)
    if geometry["tied_embeddings"] is None and tensors.embedding:
        geometry["tied_embeddings"] = tensors.head == 0
    quantised = model_config.quantisation(config)
    of_config = model_config.quantisation_method(config)
    return {
        "path": path,
        "format": "safetensors" if safe else "pickle",
        "files": len(weights),
        "bytes": sum(sizes.values()),
        "fingerprint": digest.hexdigest(),
        "name": os.path.basename(os.path.normpath(path)),
        "dtype": model_config.dtype(config),
        "quantisation": of_config or (tensors.most() if safe else quantised["method"] or "unknown"),
        "quantisation_bits": quantised["bits"],
        "quantisation_group": quantised["group"],
        "chat_template": _has_chat_template(path),
        "tensors": _by_use(tensors.embedding, tensors.head, tensors.total) if safe else None,
        "geometry": geometry,
        "weights": weights,
        "extra": beside,
        "absent": absent,
        "metadata": {},
    }


def weights_of(path: str) -> List[str]:
    """The files of a directory that engines take for its weights, whole or not.

    :raises OSError: when it cannot be read.
    """
    return _weights(path, _listed(path), [])[0]


def _listed(path: str) -> List[str]:
    return sorted(name for name in os.listdir(path)
                  if name.isprintable() and not name.startswith("."))


def _config(path: str, problems: List[str]) -> Dict[str, Any]:
    """``config.json``; what is wrong with it goes to ``problems``."""
    place = os.path.join(path, "config.json")
    try:
        config = read_json(place)
    except FileNotFoundError:
        problems.append(
            "%s: a link to %s, which is not there" % (place, os.readlink(place))
            if os.path.islink(place) else "%s: no config.json in it" % path)
        return {}
    except BadModel as problem:
        problems += problem.args
        return {}
    if not isinstance(config, dict) or not config:
        problems.append(
            "%s: empty, which is a dummy: engines say of it `Unrecognized model ... Should have a "
            "model_type key`" % place if config == {} else
            "%s: empty; a model cannot be served from it" % place)
        return {}
    wrong = model_config.contradictions(config)
    if wrong:
        problems.append("%s: %s" % (place, ". ".join(wrong)))
    return config


def _weights(path: str, names: List[str],
             problems: List[str]) -> Tuple[List[str], List[str], Dict[str, str]]:
    """The files of a directory's weights, those that engines leave alone, and the index."""
    safe = [name for name in names if name.endswith(SAFETENSORS)]
    found = safe or [name for name in names if name.endswith(PICKLES)
                     and not NO_WEIGHTS.fullmatch(name)]
    if not found:
        ggufs = [name for name in names if name.endswith(".gguf")]
        problems.append("%s: no *.safetensors in it%s" % (
            path, "; a GGUF file is given by its own path: %s" % ", ".join(ggufs[:3])
            if ggufs else ""))
    place = SAFETENSORS_INDEX if safe or not found else PICKLE_INDEX
    index = _index(path, place, problems)
    named = sorted(set(index.values()))
    outside = [name for name in named if os.path.basename(name) != name or name in (".", "..")]
    if outside:
        problems.append("%s: names files that are not beside it: %s"
                        % (os.path.join(path, place), ", ".join(outside[:3])))
    missing = sorted(set(named) - set(found) - set(outside))
    if missing:
        problems.append("%s: %d files that its index names are missing: %s"
                        % (path, len(missing), ", ".join(missing[:3])))
    if named:
        weights = [name for name in found if name in set(named)]
    else:
        weights = [name for name in found if not SECOND_COPY.fullmatch(name)] or found
        problems += _missing_parts(path, weights)
    return weights, [name for name in found if name not in set(weights)], index


def _missing_parts(path: str, names: Iterable[str]) -> List[str]:
    """Where there is no index: parts that the names of the others tell of."""
    there: Dict[Tuple[str, str, str], Set[int]] = {}
    for match in filter(None, map(PART.match, names)):
        there.setdefault((match[1], match[3], match[4]), set()).add(int(match[2]))
    found = []
    for (stem, of, end), numbers in sorted(there.items()):
        wanted = int(of)
        # From 0 or from 1.
        first = 0 if 0 in numbers else 1
        missing = [number for number in range(first, first + min(wanted, MAX_PARTS))
                   if number not in numbers]
        if missing:
            found.append("%s: %d of %d parts are missing: %s" % (
                path, len(missing), wanted, ", ".join(
                    "%s-%05d-of-%s%s" % (stem, number, of, end) for number in missing[:3])))
    return found


def _index(path: str, name: str, problems: List[str]) -> Dict[str, str]:
    """Tensor to file, as the index of a model in parts says; nothing where there is none."""
    place = os.path.join(path, name)
    try:
        return {str(tensor): str(file) for tensor, file in read_json(
            place, MAX_JSON)["weight_map"].items()}
    except FileNotFoundError:
        return {}
    except BadModel as problem:
        problems += problem.args
    except (KeyError, TypeError, AttributeError):
        problems.append("%s: no index of %s files" % (
            place, "safetensors" if name == SAFETENSORS_INDEX else "pickle"))
    return {}


class _Tensors:
    """What the headers of a directory's files hold together."""

    def __init__(self) -> None:
        self.embedding, self.head, self.total = 0, 0, 0
        self._kinds: Dict[str, int] = {}
        self._places: Dict[str, str] = {}
        self._twice: List[str] = []

    def add(self, file: str, tensors: List[Tuple[str, str, int]]) -> None:
        for name, kind_, size in tensors:
            self._kinds[kind_] = self._kinds.get(kind_, 0) + 1
            self.total += size
            module = name.split(".")[-2:]
            if module[-1] == "weight" and module[0] in EMBEDDINGS:
                self.embedding += size
            # A head that was quantised has scales beside its weights.
            elif module[0] in HEADS or name == "output.weight":
                self.head += size
            if name in self._places:
                self._twice.append("%s in %s and %s" % (name, self._places[name], file))
            self._places[name] = file

    def most(self) -> str:
        """The type that most tensors have."""
        return max(self._kinds, key=lambda kind_: self._kinds[kind_])

    def against(self, index: Dict[str, str], path: str) -> Tuple[List[str], List[str]]:
        """What contradicts an index, and the tensors of it that are nowhere.

        Converters name tied tensors too and leave them out of the files. A file that has none of
        its tensors is another one.
        """
        found = []
        place = os.path.join(path, SAFETENSORS_INDEX)
        elsewhere = ["%s is in %s, not in %s" % (name, self._places[name], file)
                     for name, file in sorted(index.items())
                     if self._places.get(name, file) != file]
        right = {file for name, file in index.items() if self._places.get(name) == file}
        absent = [name for name in sorted(index) if name not in self._places]
        nowhere = ["%s of %s" % (name, index[name]) for name in absent
                   if index[name] not in right]
        for what, names in (("tensors are in another file than it names", elsewhere),
                            ("tensors that it names are in no file", nowhere)):
            if names:
                found.append("%s: %d %s: %s" % (place, len(names), what, ", ".join(names[:3])))
        if self._twice:
            found.append("%s: %d tensors are in two files: %s"
                         % (path, len(self._twice), ", ".join(self._twice[:3])))
        return found, absent


def may_be_tied(name: str) -> bool:
    """Whether it is a tensor that models share between the table of embeddings and the head."""
    return bool((EMBEDDINGS | HEADS) & set(name.split(".")[-2:]))


def _safetensors_header(path: str) -> List[Tuple[str, str, int]]:
    """Name, type and bytes of each tensor in a safetensors file that is whole."""
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        if LFS_POINTER.startswith(start) and start:
            raise BadModel("%s: a pointer of git-lfs, not the file itself (git lfs pull)" % path)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(MAX_JSON, size - 8):
            raise BadModel("%s: its header length %d does not fit the file of %d bytes"
                           % (path, length, size))
        try:
            header = parsed(file.read(length))
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
    """In a file of its own, in the processor's, or in the tokenizer's config."""
    if os.path.isfile(os.path.join(path, "chat_template.jinja")):
        return True
    for name in ("chat_template.json", "tokenizer_config.json"):
        try:
            if read_json(os.path.join(path, name)).get("chat_template"):
                return True
        except (OSError, BadModel, AttributeError):
            continue
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
