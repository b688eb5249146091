# SPDX-License-Identifier: Apache-2.0
"""Which files of a repository an engine needs: one format, one quantisation, nothing twice.

Pure: it sees names, sizes and hashes, not the files.
"""

from __future__ import annotations

import fnmatch
import posixpath
import re
from typing import Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from ansible.module_utils.firstlight.findings import Finding, finding
from ansible.module_utils.firstlight.snapshots.entries import Entry, Manifest

FORMATS = ("safetensors", "gguf", "pickle")
DEFAULT_QUANTISATIONS = ("Q4_K_M", "Q8_0")
"""What llama.cpp takes where none is asked for, in this order (common/download.cpp)."""

_SHARD = re.compile(r"(?P<set>.+)-(?P<index>\d{5,6})-of-(?P<count>\d{5,6})(?P<rest>(?:\.\w+)?)")
_QUANTISATION = re.compile(
    r"(?:UD-)?(?:I?Q\d+(?:_[A-Z0-9]+)*|TQ\d_\d|B?F16|FP?16|F32|FP32|(?:MX|NV)FP4(?:_[A-Z]+)?|FP8)",
    re.IGNORECASE)
# What llama.cpp does not take for a model (gguf_filename_is_model): projectors of pictures and
# sound, importance matrices, heads that guess ahead. It looks for them in the name as they are.
_SIDECARS = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-", "ggml-vocab")
_SIDECAR_FOLDERS = frozenset(("mtp", "mmproj", "imatrix"))

# Other programs' copies of the weights, training states and pictures.
_FOREIGN_FOLDERS = frozenset((
    "onnx", "openvino", "coreml", "original", "metal", "tf", "flax", "gguf", "mlx", "tensorrt",
    "tflite", "runs", "logs", "assets", "figures", "images", "examples", "docs", "eval",
    "evaluation", "eval_results", "inference", ".cache", ".git", ".github"))
_FOREIGN_FOLDER = re.compile(r"(?:checkpoint|global_step)[-_]?\d+")
# A step of sentence-transformers, which modules.json names: `1_Pooling`, `2_Dense`.
_MODULE_FOLDER = re.compile(r"\d+_[A-Za-z]+")
_COMPANIONS = (".json", ".jinja", ".py", ".txt", ".model", ".tiktoken", ".spm", ".bpe", ".vocab",
               ".yaml", ".yml")
_VERSIONED_TOKENIZER = re.compile(r"tokenizer\.model\.v\w+")
_LEGAL = re.compile(r"(?:licen[cs]e|notice|copying|use_policy)", re.IGNORECASE)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_TRAINING = re.compile(r"(?:training_args|optimizer|scheduler|rng_state|trainer_state|scaler)\b",
                       re.IGNORECASE)


class Selection(NamedTuple):
    """What is to be brought.

    ``main`` is the path of the first GGUF file, or empty where the folder is the model.
    ``quantisation`` is in capitals, ``None`` where a GGUF does not name it or it is no GGUF.
    ``reasons`` say in sentences what was chosen and what was left out.
    """

    entries: Tuple[Entry, ...]
    format: str
    main: str
    quantisation: Optional[str]
    reasons: List[str]


class NoChoice(Exception):
    """There is nothing that fits; ``findings`` say what there is instead."""

    def __init__(self, *findings: Finding) -> None:
        super().__init__("; ".join("%s: %s" % (one["id"], one["found"]) for one in findings))
        self.findings = list(findings)


class _Gguf(NamedTuple):
    """One model of a GGUF repository: its only file, or all its parts."""

    stem: str
    quantisation: Optional[str]
    entries: List[Entry]
    lacks: List[str]


def select(manifest: Manifest, formats: Sequence[str], quantisation: Optional[str],
           allow: Sequence[str], ignore: Sequence[str]) -> Selection:
    """The files of a repository that are needed.

    :param formats: what the engine reads, best first, of :data:`FORMATS`. Pickles run code when
        they are loaded, so that they are taken only where ``pickle`` is among these.
    :param quantisation: of a GGUF, whatever its case; the parts of ``Q4_K_M`` and ``Q8_0`` are
        the default, else the first by name.
    :param allow: patterns (as of the shell, ``*`` crosses folders) of files that come too although
        the rules leave them out, such as ``mmproj-*``. Never those of a pickle.
    :param ignore: patterns of files that count as not there.
    :raises NoChoice: where nothing fits.
    :raises ValueError: for a format that does not exist.
    """
    for one in formats:
        if one not in FORMATS:
            raise ValueError("format %r is none of %s" % (one, ", ".join(FORMATS)))
    there = sorted(entry for entry in manifest.entries if not _matches(entry.path, ignore))
    chosen = _choose(manifest.repo_id, there, formats, quantisation)
    paths = {entry.path for entry in chosen.entries}
    more = [entry for entry in there if entry.path not in paths and _matches(entry.path, allow)
            and (chosen.format == "pickle" or not entry.path.endswith(_PICKLES))]
    paths.update(entry.path for entry in more)
    reasons = list(chosen.reasons)
    if more:
        reasons.append("%s asked for by pattern." % _counted(more))
    left = [entry for entry in manifest.entries
            if entry.path not in paths and entry.size >= 2**20]
    if left:
        reasons.append("Left out: %s." % _summary(left))
    entries = tuple(sorted((*chosen.entries, *more)))
    return chosen._replace(entries=entries, reasons=reasons)


def _choose(repo_id: str, there: Sequence[Entry], formats: Sequence[str],
            quantisation: Optional[str]) -> Selection:
    ggufs, tensors = _ggufs(there), _tensors(there)
    pickles = _pickles(there)
    if quantisation:
        # Only GGUF repositories have several in one.
        if ggufs and "gguf" in formats:
            return _gguf(repo_id, there, ggufs, quantisation)
        raise NoChoice(_no_quantisation(repo_id, ggufs, quantisation, formats))
    for one in formats:
        if one == "gguf" and ggufs:
            return _gguf(repo_id, there, ggufs, None)
        if one == "safetensors" and tensors:
            return _safetensors(repo_id, there, tensors)
        if one == "pickle" and pickles:
            return _pickle(repo_id, there, pickles)
    raise NoChoice(_no_format(repo_id, there, formats, bool(ggufs), bool(tensors), pickles))


# GGUF


def _ggufs(there: Sequence[Entry]) -> List[_Gguf]:
    """The models that are GGUF, by name."""
    sets: Dict[str, List[Tuple[int, int, Entry]]] = {}
    for entry in there:
        if not entry.path.lower().endswith(".gguf") or _sidecar(entry.path):
            continue
        stem = entry.path[:-len(".gguf")]
        shard = _SHARD.fullmatch(stem)
        if shard:
            key, index, count = shard["set"], int(shard["index"]), int(shard["count"])
        else:
            key, index, count = stem, 1, 1
        # A whole file and parts of the same name are two models.
        sets.setdefault("%s/%d" % (key, count) if shard else key, []).append((index, count, entry))
    made = []
    for parts in sets.values():
        first, count = parts[0][2], parts[0][1]
        stem = first.path[:-len(".gguf")]
        shard = _SHARD.fullmatch(stem)
        stem = shard["set"] if shard else stem
        made.append(_Gguf(stem, _quantisation(stem), [entry for _, _, entry in parts],
                          _lacks([index for index, _, _ in parts], count)))
    return sorted(made, key=lambda one: one.stem)


def _sidecar(path: str) -> bool:
    *folders, name = path.split("/")
    stem = name[:-len(".gguf")]
    return (any(word in name for word in _SIDECARS) or stem.lower().startswith("mmproj")
            or stem.endswith("-MTP") or any(one.lower() in _SIDECAR_FOLDERS for one in folders))


def _quantisation(stem: str) -> Optional[str]:
    """The last word of a name that is a quantisation, else that of its folder, in capitals."""
    for part in reversed(stem.split("/")):
        for at in range(len(part), -1, -1):
            if at and part[at - 1] not in "-._ ":
                continue
            found = _QUANTISATION.match(part, at)
            if found and (found.end() == len(part) or part[found.end()] in "-._ "):
                if part[:at].upper().endswith("UD-"):
                    continue  # Unsloth's own mixtures have it in their name.
                return found[0].upper()
    return None


def _lacks(indices: Sequence[int], count: int) -> List[str]:
    """The parts that are not there, the first few of them."""
    known = set(indices)
    # The count comes from a name: never so many rounds as it says.
    lacking = [one for one in range(1, min(count, len(known) + 3) + 1) if one not in known]
    return ["%05d-of-%05d" % (one, count) for one in lacking[:3]]


def _gguf(repo_id: str, there: Sequence[Entry], ggufs: Sequence[_Gguf],
          asked: Optional[str]) -> Selection:
    whole = [one for one in ggufs if not one.lacks]
    fitting: List[_Gguf] = []
    reasons = []
    if asked:
        fitting = _named(ggufs, asked)
        if not fitting:
            raise NoChoice(_no_quantisation(repo_id, ggufs, asked, ("gguf",)))
        reasons.append("Quantisation %s as asked." % asked.upper())
    else:
        for wanted in DEFAULT_QUANTISATIONS:
            fitting = fitting or _named(whole, wanted)
        if not fitting:
            fitting = whole[:1] or list(ggufs[:1])
        others = sorted({one.quantisation for one in ggufs if one.quantisation})
        if len(others) > 1:
            reasons.append("Quantisation %s of %s: the default, as none was asked for."
                           % (fitting[0].quantisation or "unknown", ", ".join(others)))
    sound = [one for one in fitting if not one.lacks]
    if not sound:
        raise NoChoice(_incomplete(repo_id, fitting[0].stem + ".gguf", fitting[0].lacks))
    if len(sound) > 1:
        reasons.append("%d files of this quantisation; %s is the first by name."
                       % (len(sound), sound[0].entries[0].path))
    chosen = sound[0]
    # The tokenizer and the template are in the file itself.
    legal = [entry for entry in there if "/" not in entry.path and _LEGAL.match(entry.path)]
    return Selection((*chosen.entries, *legal), "gguf", chosen.entries[0].path,
                     chosen.quantisation, reasons)


def _named(ggufs: Sequence[_Gguf], asked: str) -> List[_Gguf]:
    """Those of a quantisation; where none is, those whose name ends in it, as UD-Q4_K_XL."""
    wanted = _same(asked)
    return ([one for one in ggufs if _same(one.quantisation or "") == wanted]
            or [one for one in ggufs if _same(one.quantisation or "").endswith("-" + wanted)])


def _same(quantisation: str) -> str:
    """One spelling for what is the same."""
    name = quantisation.upper()
    return {"FP16": "F16", "FP32": "F32"}.get(name, name)


# Safetensors


def _tensors(there: Sequence[Entry]) -> List[Entry]:
    """The weights in safetensors that make up the model, duplicates among them."""
    return [entry for entry in there if entry.path.endswith(".safetensors")
            and "/" not in entry.path and not entry.path.startswith("adapter_")]


def _safetensors(repo_id: str, there: Sequence[Entry], tensors: Sequence[Entry]) -> Selection:
    names = {entry.path for entry in there}
    reasons = []
    proper = [entry for entry in tensors if not entry.path.startswith("consolidated")]
    if proper and len(proper) < len(tensors):
        reasons.append("consolidated*.safetensors hold the same weights again.")
    weights = _one_set(repo_id, proper or list(tensors), names, reasons)
    own = {entry.path for entry in weights}
    dropped = {"pytorch_model.bin.index.json"}
    if proper:
        dropped.add("consolidated.safetensors.index.json")
    if "model.safetensors" in own and not any(_SHARD.fullmatch(_stem(path)) for path in own):
        dropped.add("model.safetensors.index.json")
    # Without adapters: an engine would take their tensors for the model's.
    extra = [entry for entry in there if _companion(entry.path) and entry.path not in dropped
             and not entry.path.startswith("adapter_")]
    modules = [entry for entry in there if entry.path.endswith(".safetensors")
               and _of_module(entry.path)]
    return Selection((*weights, *extra, *modules), "safetensors", "", None, reasons)


def _one_set(repo_id: str, weights: Sequence[Entry], names: Iterable[str],
             reasons: List[str]) -> List[Entry]:
    """The weights without second copies: one file or its parts, no other precision beside it."""
    sets: Dict[Tuple[str, int], List[int]] = {}
    single: List[Entry] = []
    shard_of: Dict[str, Tuple[str, int]] = {}
    for entry in weights:
        shard = _SHARD.fullmatch(_stem(entry.path))
        if not shard:
            single.append(entry)
            continue
        key = (shard["set"] + shard["rest"], int(shard["count"]))
        sets.setdefault(key, []).append(int(shard["index"]))
        shard_of[entry.path] = key
    # `model-00000-of-…` counts from zero.
    lacks = {key: _lacks([one + (0 if 0 not in found else 1) for one in found], key[1])
             for key, found in sets.items()}
    whole = [key for key in sets if not lacks[key]]
    for key in sorted(sets):
        if not lacks[key]:
            continue
        if not whole and not any(_stem(one.path) == "model" for one in single):
            raise NoChoice(_incomplete(repo_id, "%s-*.safetensors" % key[0], lacks[key]))
        reasons.append("%s of %d parts is not complete; another set is." % key)
        del sets[key]
    # model.fp16.safetensors is model.safetensors in another precision.
    bases = {key[0] for key in sets} | {_stem(entry.path) for entry in single}
    variants = {base for base in bases
                if "." in base and base.rsplit(".", 1)[0] in bases and _precision(base)}
    if variants:
        reasons.append("%s: the same weights in another precision." % ", ".join(sorted(variants)))
    kept = [entry for entry in weights
            if (entry.path not in shard_of or shard_of[entry.path] in sets)
            and (shard_of[entry.path][0] if entry.path in shard_of else _stem(entry.path))
            not in variants]
    if any(key[0] == "model" for key in sets) and "model.safetensors.index.json" in names:
        # The index decides, and it names the parts.
        if any(entry.path == "model.safetensors" for entry in kept):
            reasons.append("model.safetensors holds the same weights as the parts again.")
        kept = [entry for entry in kept if entry.path != "model.safetensors"]
    return kept


def _precision(base: str) -> bool:
    return base.rsplit(".", 1)[1].lower() in ("fp16", "fp32", "bf16", "f16", "f32", "non_ema")


def _stem(path: str) -> str:
    return posixpath.splitext(path)[0]


def _companion(path: str) -> bool:
    """Whether a file says how weights are used: configs, tokenizers, templates, code, licences."""
    *folders, name = path.split("/")
    if any(_foreign(one) for one in folders):
        return False
    lower = name.lower()
    if _TRAINING.match(lower) or lower.endswith(_PICKLES):
        return False
    return (lower.endswith(_COMPANIONS) or bool(_VERSIONED_TOKENIZER.fullmatch(lower))
            or (not folders and bool(_LEGAL.match(name))))


def _foreign(folder: str) -> bool:
    return folder.lower() in _FOREIGN_FOLDERS or bool(_FOREIGN_FOLDER.fullmatch(folder))


def _of_module(path: str) -> bool:
    return path.count("/") == 1 and bool(_MODULE_FOLDER.fullmatch(path.split("/")[0]))


# Pickles


def _pickles(there: Sequence[Entry]) -> List[Entry]:
    """Weights in pickles; the first kind that there is, as engines look for them."""
    for suffix in (".bin", ".pt", ".pth"):
        found = [entry for entry in there
                 if entry.path.endswith(suffix) and "/" not in entry.path
                 and not _TRAINING.match(entry.path) and not entry.path.startswith("adapter_")]
        if found:
            return found
    return []


def _pickle(repo_id: str, there: Sequence[Entry], weights: Sequence[Entry]) -> Selection:
    reasons = ["Weights are pickles, which run code when they are loaded."]
    kept = _one_set(repo_id, weights, (), reasons)
    extra = [entry for entry in there if _companion(entry.path)
             and entry.path != "model.safetensors.index.json"
             and not entry.path.startswith("adapter_")]
    modules = [entry for entry in there if entry.path.endswith(".bin") and _of_module(entry.path)]
    return Selection((*kept, *extra, *modules), "pickle", "", None, reasons)


# What is wrong


def _no_quantisation(repo_id: str, ggufs: Sequence[_Gguf], asked: str,
                     formats: Sequence[str]) -> Finding:
    there = sorted({one.quantisation or posixpath.basename(one.stem) for one in ggufs})
    if "gguf" not in formats:
        return finding(
            "snapshot-no-quantisation", repo_id,
            "quantisation %s is asked for, which is a GGUF; the engine reads %s"
            % (asked, ", ".join(formats) or "nothing"),
            "a repository without `:%s`, or an engine that reads GGUF" % asked,
            "name the model without `:%s`, or set the endpoint's engine to llama_cpp" % asked)
    return finding(
        "snapshot-no-quantisation", repo_id,
        "no quantisation %s; there %s" % (asked, "is no GGUF at all" if not there else
                                          "are " + ", ".join(there)),
        "a GGUF of quantisation %s" % asked,
        "name one that is there, as in `%s:%s`" % (repo_id, there[0]) if there else
        "name the model without `:%s`, or a repository that has GGUF files" % asked)


def _incomplete(repo_id: str, what: str, lacks: Sequence[str]) -> Finding:
    return finding(
        "snapshot-shards-missing", repo_id,
        "%s lacks the parts %s" % (what, ", ".join(lacks)),
        "all parts of a model that is split",
        "name another quantisation, revision or repository: this one was not uploaded whole")


def _no_format(repo_id: str, there: Sequence[Entry], formats: Sequence[str], gguf: bool,
               tensors: bool, pickles: Sequence[Entry]) -> Finding:
    names = {entry.path for entry in there}
    wanted = "weights as " + " or ".join(formats)
    if not (gguf or tensors or pickles) and any(
            posixpath.basename(name).startswith("adapter_") for name in names):
        return finding(
            "snapshot-adapter-only", repo_id,
            "an adapter (LoRA) without the model that it changes", wanted,
            "name the model that base_model_name_or_path in its adapter_config.json has, or a "
            "repository in which the two are merged")
    if pickles and "pickle" not in formats and not (gguf or tensors):
        return finding(
            "snapshot-pickle-only", repo_id,
            "its only weights are pickles, which run code when they are loaded: %s"
            % _counted(pickles), wanted,
            "name a repository or a revision with safetensors, or, where you trust its authors, "
            "add the endpoint to model_snapshot_allow_pickle")
    if "model_index.json" in names:
        return finding(
            "snapshot-no-format", repo_id, "a pipeline of several models (diffusers)", wanted,
            "name a repository with one language model")
    has = [label for label, found in (("GGUF files", gguf), ("safetensors", tensors),
                                      ("pickles", bool(pickles))) if found]
    remedy = "name a repository that has them"
    if gguf and "gguf" not in formats:
        remedy += ", or set the endpoint's engine to llama_cpp, which reads GGUF"
    elif tensors and "safetensors" not in formats:
        remedy += ", or set the endpoint's engine to vllm, which reads safetensors"
    large = sorted(there, key=lambda entry: (-entry.size, entry.path))[:3]
    found = "only " + " and ".join(has) if has else "no weights that are known" if names else (
        "no files at all")
    return finding("snapshot-no-format", repo_id, found, wanted, remedy,
                   evidence="its largest files: %s" % ", ".join(
                       "%s (%s)" % (entry.path, _size(entry.size)) for entry in large)
                   if large else "")


# Words


def _matches(path: str, patterns: Sequence[str]) -> bool:
    """As huggingface_hub matches: `folder/` is all that is in it."""
    return any(fnmatch.fnmatchcase(path, one + "*" if one.endswith("/") else one)
               for one in patterns)


def _counted(entries: Sequence[Entry]) -> str:
    first = ", ".join(entry.path for entry in entries[:3])
    return first if len(entries) <= 3 else "%s and %d more" % (first, len(entries) - 3)


def _summary(entries: Sequence[Entry]) -> str:
    """How much of which kind, the most first."""
    kinds: Dict[str, List[int]] = {}
    for entry in entries:
        top, _, inner = entry.path.partition("/")
        kind = top + "/" if inner else posixpath.splitext(top)[1] or top
        kinds.setdefault(kind, []).append(entry.size)
    order = sorted(kinds, key=lambda kind: (-sum(kinds[kind]), kind))
    said = ["%s (%d, %s)" % (kind, len(kinds[kind]), _size(sum(kinds[kind])))
            for kind in order[:5]]
    return ", ".join(said) + (" and more" if len(order) > 5 else "")


def _size(count: int) -> str:
    size, units = float(count), ["TB", "GB", "MB", "kB", "B"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop()
    return "%.3g %s" % (size, units[-1])
