# SPDX-License-Identifier: Apache-2.0
"""A model on disk with all that is wrong with it: what an engine would stumble over, said before.

Configs, tokenizers and headers are read, weights never. Files come from anywhere: nothing of them
is run or unpickled, and links that lead out of the model are not followed to what is not for
everyone.
"""

from __future__ import annotations

import os
import stat
from typing import Any, Dict, Iterable, List, Optional, Set, Tuple

from ansible.module_utils.firstlight import model_files
from ansible.module_utils.firstlight.findings import Finding, finding
from ansible.module_utils.firstlight.model_files import BadModel, Model
from ansible.module_utils.firstlight.model_paths import AS_A_REPOSITORY

Row = Dict[str, Any]

WANTED = "a GGUF file, or a directory with config.json and *.safetensors"
CONFIG, TOKENIZER_JSON, TOKENIZER_CONFIG = "config.json", "tokenizer.json", "tokenizer_config.json"
GENERATION = "generation_config.json"
# Files of JSON beside those, which are read where they are there. Empty ones are usual.
OTHERS = ("added_tokens.json", "preprocessor_config.json", "processor_config.json",
          "special_tokens_map.json")
# Where code of a model's own is named.
WITH_CODE = (CONFIG, TOKENIZER_CONFIG, "preprocessor_config.json", "processor_config.json")
# What a tokenizer of a class that is not known may be read from.
TOKENIZER_FILES = (TOKENIZER_JSON, "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model",
                   "spm.model", "sentencepiece.bpe.model", "sentencepiece.model", "tekken.json")
MISTRAL = ("tekken.json", "tokenizer.model.v")
# What engines open, by the end of its name.
SERVED = (".json", ".jinja", ".model", ".txt", ".tiktoken", ".codes", ".py", ".spm")
# Folders that no container may have over its own, and in which no model lies.
SYSTEM = ("/etc", "/proc", "/sys", "/dev", "/boot")
NOT_SYSTEM = ("/dev/shm",)
# Files of this type of GGUF belong to a model and are none.
NO_MODELS = {"adapter": "an adapter (LoRA)", "imatrix": "an importance matrix",
             "mmproj": "the projector of a vision model"}
MAX_TEXT, MAX_KEYS, SHOWN, MAX_HOPS = 200, 64, 5, 40

DUMMY = {
    CONFIG: "engines say of it `Unrecognized model ... Should have a model_type key`",
    TOKENIZER_JSON: "transformers says of it `KeyError: 'added_tokens'`",
    TOKENIZER_CONFIG: "transformers then guesses the class, and there is no chat template and no "
                      "token that ends an answer",
}
NO_TOKENIZER = ("transformers 5 makes one up that has a few entries, and the endpoint answers "
                "nonsense; 4 says `Either model_file or model_proto must be specified`, or, with "
                "an older sentencepiece, `TypeError: not a string`")


def read(path: str, allow_code: bool = False, allow_pickle: bool = False,
         name: Optional[str] = None, tokenizer_classes: Iterable[Row] = (),
         model_types: Iterable[Row] = ()) -> Tuple[Optional[Model], List[Finding]]:
    """Read a model's configs and headers, never its weights.

    :param path: a GGUF file, or a directory with ``config.json`` and weights.
    :param allow_code: whether it may bring code of its own.
    :param allow_pickle: whether its weights may be pickles.
    :param name: what the person calls it (a repository id); ``path`` where it is ``None``.
    :param tokenizer_classes: rows of ``catalog/tokenizer_classes.yml``.
    :param model_types: rows of ``catalog/model_types.yml``: without them all code is needed.
    :returns: the model, and everything that is wrong with it. The model is ``None`` where it
        cannot be told what it is, and it is told although it is refused for its code or pickles.
        It has the keys of :func:`.model_files.describe` but ``absent``, and: ``resolved_path``
        (without links in its folders), ``folders`` (all folders in which its files and the links
        to them lie; those in its own are called as ``path`` calls it, through links or not),
        ``custom_code`` (files of Python that an engine would have to run), ``pickle``,
        ``tokenizer`` (``class`` and usable ``files``) and ``generation_config``.
    """
    report = _Report(name or path)
    try:
        if os.path.isdir(path):
            folder = _Folder(path, report, list(tokenizer_classes), list(model_types))
            return folder.read(allow_code, allow_pickle), report.findings
        return _gguf(path, report), report.findings
    except FileNotFoundError as problem:
        near = _nearest_parent(path)
        if near == path:
            report.damaged(str(problem))
        else:
            report.add("model-missing", "no such file or directory; the last part that exists is "
                       "%s" % near, WANTED, "set `model` to the path as the host sees it: %s"
                       % AS_A_REPOSITORY)
    except PermissionError as problem:
        report.add("model-unreadable", "%s: %s" % (problem.filename, problem.strerror),
                   "readable by uid %d, which serves it" % os.geteuid(),
                   "chmod or chown it, or run as a user who may read it")
    except BadModel as problem:
        for one in problem.args:
            report.damaged(one)
    except OSError as problem:
        report.damaged(str(problem))
    return None, report.findings


class _Report:
    """Findings on one model."""

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.findings: List[Finding] = []

    def add(self, id_: str, found: str, wanted: str, remedy: str, severity: str = "error") -> None:
        self.findings.append(finding(id_, self.subject, found, wanted, remedy, severity=severity))

    def damaged(self, found: str) -> None:
        self.add("model-damaged", found, WANTED, "fetch it again, or set `model` to another one")


def _gguf(path: str, report: _Report) -> Model:
    model = model_files.describe(path)
    fields, folder = model["metadata"], os.path.dirname(path)
    kind = fields.get("general.type")
    if kind in NO_MODELS or fields.get("general.architecture") == "clip":
        report.add("model-is-a-part", "%s: it is %s" % (
            path, NO_MODELS.get(kind, NO_MODELS["mmproj"])), "the model itself",
            "set `model` to the model that it goes with")
    elif not fields.get("tokenizer.ggml.model") or not (
            fields.get("tokenizer.ggml.tokens") or fields["tokenizer.ggml.model"] == "no_vocab"):
        report.add("model-no-tokenizer", "%s: its header has no %s; llama.cpp says `key not found "
                   "in model` of it" % (path, "tokenizer.ggml.tokens" if fields.get(
                       "tokenizer.ggml.model") else "tokenizer.ggml.model"),
                   "a file that was converted with its tokenizer", "convert or fetch it again")
    else:
        _template(path, model["chat_template"], report)
    files = [os.path.join(folder, name) for name in model["weights"]]
    model.update(
        folders=sorted(set().union(*(_hops(file, _own(folder)) for file in files))),
        custom_code=[], pickle=False,
        tokenizer={"class": fields.get("tokenizer.ggml.model"), "files": []},
        generation_config=None,
        resolved_path=os.path.join(os.path.realpath(folder), os.path.basename(path)))
    return model


def _template(path: str, there: bool, report: _Report) -> None:
    if not there:
        report.add("model-no-chat-template", "%s: no chat template" % path,
                   "one, where chats are asked for: llama.cpp takes a common one, vLLM refuses "
                   "/v1/chat/completions; plain completions need none",
                   "give one with the engine's --chat-template (extra_args)", "info")


class _Folder:
    """A model's directory."""

    def __init__(self, path: str, report: _Report, classes: List[Row], types: List[Row]) -> None:
        self._path, self._report = path, report
        self._classes = {row["class"]: row for row in classes}
        self._types = {row["model_type"] for row in types}
        # Files that must not be opened, or that are no JSON.
        self._bad: Set[str] = set()
        self._names = [name for name in sorted(os.listdir(path)) if name.isprintable()]

    def read(self, allow_code: bool, allow_pickle: bool) -> Optional[Model]:
        self._links()
        model = self._described()
        config = self._config()
        tokenizer_config = self._object(TOKENIZER_CONFIG, must_say=True)
        tokenizer = self._tokenizer(tokenizer_config, config)
        generation = self._object(GENERATION, severity="warning")
        others = {name: self._object(name) for name in OTHERS}
        code = self._code({**others, CONFIG: config, TOKENIZER_CONFIG: tokenizer_config},
                          allow_code)
        if model is None:
            return None
        _template(self._path, model["chat_template"], self._report)
        if model["format"] == "pickle" and not allow_pickle:
            self._report.add(
                "model-pickle", "%s: its only weights are pickles: %s; to load one is to run what "
                "it says" % (self._path, _some(model["weights"])), "*.safetensors",
                "take a revision or a repository with safetensors, convert it, or add %r to "
                "model_snapshot_allow_pickle if you trust who made it" % self._report.subject)
        absent = model.pop("absent")
        if absent:
            self._report.add(
                "model-absent-tensors", "%s: its index names tensors that are in no file: %s"
                % (self._path, _some(absent)), "an index of what is in the files",
                "nothing, where these are tied to others, which converters leave out; else fetch "
                "it again", "info" if all(map(model_files.may_be_tied, absent)) else "warning")
        if model["extra"]:
            self._report.add(
                "model-extra-weights", "%s: %s beside its weights, %d bytes that engines do not "
                "load" % (self._path, _some(sorted(model["extra"])), sum(model["extra"].values())),
                "the files of one copy of the weights", "remove them if the room is needed",
                "info")
        files = [name for name in self._names if name not in self._bad and (
            name.endswith(SERVED) or name in model["weights"] or name.startswith(MISTRAL))]
        path = self._path.rstrip("/") or "/"
        model.update(
            folders=sorted({path}.union(*(
                _hops(os.path.join(path, name), _own(path)) for name in files
                if os.path.isfile(os.path.join(path, name))))),
            custom_code=code, pickle=model["format"] == "pickle", tokenizer=tokenizer,
            generation_config=_plain(generation), resolved_path=os.path.realpath(path))
        return model

    def _described(self) -> Optional[Model]:
        if any(name == CONFIG or name.endswith(
                (model_files.SAFETENSORS, ".index.json", *model_files.PICKLES))
                for name in self._bad):
            # It was told why.
            return None
        try:
            return model_files.describe(self._path)
        except BadModel as problem:
            for one in problem.args:
                self._report.damaged(one)
            return None

    def _place(self, name: str) -> str:
        return os.path.join(self._path, name)

    def _links(self) -> None:
        """Names that are no plain files, and links that lead out of the model."""
        home = os.path.realpath(self._path)
        around = [home]
        snapshots, commit = os.path.split(home)
        repository = os.path.dirname(snapshots)
        if os.path.basename(snapshots) == "snapshots" and commit and (
                os.path.basename(repository).startswith("models--")):
            # A cache, in which blobs may be shared.
            around.append(os.path.dirname(repository))
        odd, closed, outside = [], [], []
        for name in self._names:
            place = self._place(name)
            try:
                status, link = os.stat(place), os.lstat(place)
            except OSError:
                # Whoever needs it will say so.
                continue
            if stat.S_ISDIR(status.st_mode):
                continue
            real = os.path.realpath(place)
            said = "%s -> %s" % (name, real) if stat.S_ISLNK(link.st_mode) else name
            if not stat.S_ISREG(status.st_mode):
                odd.append("%s, %s" % (said, model_files.kind(status)))
                self._bad.add(name)
            elif stat.S_ISLNK(link.st_mode) and not _is_in(real, around):
                if not status.st_mode & stat.S_IROTH or (
                        _is_in(real, SYSTEM) and not _is_in(real, NOT_SYSTEM)):
                    closed.append(said)
                    self._bad.add(name)
                else:
                    outside.append(said)
        wanted = "plain files, or links to such in the same folder or cache"
        if odd:
            self._report.add("model-not-a-file", "%s: %s" % (self._path, _some(odd)), wanted,
                             "remove them, or fetch the model again")
        if closed:
            self._report.add(
                "model-link-refused", "%s: links to what is not for everyone to read, or the "
                "system's: %s" % (self._path, _some(closed)), wanted,
                "put the files themselves there; such links were not followed")
        if outside:
            self._report.add(
                "model-link-outside", "%s: links that lead out of it: %s"
                % (self._path, _some(outside)), wanted, "nothing, if that is meant: those folders "
                "are shown to a container too", "warning")

    def _object(self, name: str, must_say: bool = False, severity: str = "error") -> Row:
        """A file that holds one object of JSON; empty where there is none, or a bad one."""
        if name not in self._names or name in self._bad:
            return {}
        most = model_files.MAX_JSON if name == TOKENIZER_JSON else model_files.MAX_CONFIG
        try:
            found = model_files.read_json(self._place(name), most)
        except FileNotFoundError:
            self._bad.add(name)
            self._tell(name, "%s: a link to %s, which is not there" % (
                self._place(name), os.readlink(self._place(name))), severity)
            return {}
        except BadModel as problem:
            self._bad.add(name)
            self._tell(name, str(problem), severity)
            return {}
        if isinstance(found, dict) and (found or not must_say):
            return found
        self._bad.add(name)
        self._tell(name, "%s: %s" % (
            self._place(name), "an empty object, which is a dummy%s" % (
                ": " + DUMMY[name] if name in DUMMY else "")
            if found == {} else "no object of JSON"), severity)
        return {}

    def _tell(self, name: str, found: str, severity: str) -> None:
        self._report.add(
            "model-bad-json", found, "%s of the model, whole" % name,
            "fetch it again: from where the model is, by its commit", severity)

    def _config(self) -> Row:
        """``config.json``; what is wrong with it was told with the weights."""
        if CONFIG in self._bad:
            return {}
        try:
            found = model_files.read_json(self._place(CONFIG))
        except (BadModel, FileNotFoundError):
            return {}
        if not isinstance(found, dict) or not found:
            return {}
        if not isinstance(found.get("model_type"), str) and "params.json" not in self._names:
            self._report.add(
                "model-no-type", "%s: no model_type in it; %s" % (
                    self._place(CONFIG), DUMMY[CONFIG]), "the config.json of the model, whole",
                "fetch it again")
        return found

    def _tokenizer(self, tokenizer_config: Row, config: Row) -> Dict[str, Any]:
        """Its class and the files that are there and usable, with a finding where that is none."""
        named = _text(tokenizer_config.get("tokenizer_class")) or _text(
            config.get("tokenizer_class"))
        whole = self._object(TOKENIZER_JSON, must_say=True)
        if whole and not _has_vocabulary(whole):
            self._bad.add(TOKENIZER_JSON)
            self._tell(TOKENIZER_JSON, "%s: no vocabulary in it" % self._place(TOKENIZER_JSON),
                       "error")
        if "vocab.json" in self._names and TOKENIZER_JSON not in self._usable((TOKENIZER_JSON,)):
            self._object("vocab.json", must_say=True)
        usable = self._usable(TOKENIZER_FILES)
        row = self._classes.get(named[:-len("Fast")] if named and named.endswith("Fast")
                                else named or "")
        auto_map = tokenizer_config.get("auto_map")
        own = isinstance(auto_map, dict) and "AutoTokenizer" in auto_map
        mistral = [name for name in self._names if name.startswith(MISTRAL)]
        missing = ""
        if row is None:
            if not usable and not own and not mistral:
                missing = "none of %s" % ", ".join(TOKENIZER_FILES[:4])
        elif row["files"] or row["tokenizer_json"]:
            there = set(self._usable([TOKENIZER_JSON, *row["files"]]))
            enough = bool(row["tokenizer_json"]) and TOKENIZER_JSON in there or (
                bool(row["files"]) and there.issuperset(row["files"]))
            if not enough and not mistral:
                ways = [" and ".join(row["files"])] if row["files"] else []
                missing = "no %s, which %s needs" % (" and no ".join(
                    [*([TOKENIZER_JSON] if row["tokenizer_json"] else []), *ways]), named)
        if missing:
            self._report.add(
                "model-no-tokenizer", "%s: %s that can be used; %s"
                % (self._path, missing, NO_TOKENIZER), "the files of its tokenizer",
                "fetch the model again, with its small files")
        return {"class": named, "files": usable + mistral[:SHOWN]}

    def _usable(self, names: Iterable[str]) -> List[str]:
        """Those that are there, plain, not empty, no pointers of git-lfs and not found bad."""
        found = []
        for name in names:
            if name not in self._names or name in self._bad:
                continue
            try:
                with model_files.opened(self._place(name)) as file:
                    start = file.read(len(model_files.LFS_POINTER))
            except (BadModel, FileNotFoundError):
                continue
            if start and start != model_files.LFS_POINTER:
                found.append(name)
        return found

    def _code(self, files: Dict[str, Row], allowed: bool) -> List[str]:
        """Python that an engine has to run to load it."""
        named: Dict[str, str] = {}
        known = _text(files[CONFIG].get("model_type")) in self._types
        class_ = _text(files[TOKENIZER_CONFIG].get("tokenizer_class"))
        for name in WITH_CODE:
            auto_map = files[name].get("auto_map")
            if name == TOKENIZER_CONFIG:
                # transformers takes its own class where the name is that of one.
                plain = class_[:-len("Fast")] if class_ and class_.endswith("Fast") else class_
                if plain in self._classes or (class_ is None and known):
                    continue
            elif known:
                continue
            for key, value in auto_map.items() if isinstance(auto_map, dict) else ():
                for one in value if isinstance(value, list) else [value]:
                    text = _text(one)
                    if text:
                        repository, dashes, rest = text.rpartition("--")
                        file = rest.rpartition(".")[0].replace(".", "/") + ".py"
                        named.setdefault(repository + dashes + file, "%s: auto_map.%s" % (
                            name, key))
        if not named:
            return []
        code = sorted(named)
        if not allowed:
            self._report.add(
                "model-needs-code", "%s: it brings code of its own: %s" % (self._path, _some(
                    ["%s (%s)" % (file, named[file]) for file in code])),
                "a model that engines know by themselves, or leave to run its code",
                "take another model; or read those files, and add %r to model_snapshot_allow_code: "
                "the engine then runs them (--trust-remote-code) as the user that it runs as"
                % self._report.subject)
        absent = [file for file in code if "--" not in file and file not in self._names]
        if absent:
            self._report.add(
                "model-code-missing", "%s: %s that its configs name are not there"
                % (self._path, _some(absent)), "all files of its code", "fetch the model again",
                "error" if allowed else "warning")
        return code


def _has_vocabulary(tokenizer: Row) -> bool:
    model = tokenizer.get("model")
    return isinstance(model, dict) and isinstance(model.get("vocab"), (dict, list)) and bool(
        model["vocab"])


def _plain(config: Row) -> Optional[Dict[str, Any]]:
    """The numbers and short texts of a config."""
    def is_plain(value: Any) -> bool:
        if isinstance(value, float):
            return value == value and abs(value) != float("inf")
        return value is None or isinstance(value, (bool, int)) or _text(value) is not None

    kept = {key: value for key, value in sorted(config.items()) if _text(key) and (
        is_plain(value) or (isinstance(value, list) and len(value) <= MAX_KEYS
                            and all(map(is_plain, value))))}
    return dict(list(kept.items())[:MAX_KEYS]) or None


def _text(value: Any) -> Optional[str]:
    """A short text of plain characters."""
    return value if isinstance(value, str) and value and len(value) <= MAX_TEXT and (
        value.isprintable()) else None


def _is_in(path: str, folders: Iterable[str]) -> bool:
    return any(path == one or path.startswith(one.rstrip("/") + "/") for one in folders)


def _own(folder: str) -> str:
    """The folder that a container is shown for a model: of one in a cache its repository's."""
    parts = folder.split("/")
    for at, part in enumerate(parts):
        if part == "snapshots" and parts[at - 1].startswith("models--"):
            return "/".join(parts[:at])
    return folder


def _hops(path: str, own: str) -> Set[str]:
    """The folders of a file, and of each link on the way to it, as a container meets them.

    :param own: a folder that it is shown by this name, which may lead through links.
    """
    found: Set[str] = set()
    real, relative = os.path.realpath(own), True
    for _ in range(MAX_HOPS):
        folder = os.path.realpath(os.path.dirname(path))
        found.add(own + folder[len(real):] if relative and real != "/" and _is_in(folder, [real])
                  else folder)
        path = os.path.join(folder, os.path.basename(path))
        if not os.path.islink(path):
            break
        link = os.readlink(path)
        relative = relative and not link.startswith("/")
        path = os.path.join(folder, link)
    return found


def _some(names: List[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (" and %d more" % more if more > 0 else "")


def _nearest_parent(path: str) -> str:
    while path and not os.path.exists(path):
        path = os.path.dirname(path.rstrip("/"))
    return path or "/"
