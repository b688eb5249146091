# SPDX-License-Identifier: Apache-2.0
"""A report says all that an engine would stumble over, and follows and runs nothing of a model."""

from __future__ import annotations

import json
import os
import pathlib
import shutil

import gguf
import numpy as np
import pytest
import strategies
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible.module_utils.firstlight import canary, model_files, model_report
from ansible.module_utils.firstlight.findings import blocking

CATALOG = pathlib.Path(__file__).resolve().parents[2] / "catalog"
CLASSES, TYPES = (yaml.safe_load((CATALOG / (name + ".yml")).read_text())
                  for name in ("tokenizer_classes", "model_types"))
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
TOKENIZER = {"version": "1.0", "added_tokens": [], "model": {
    "type": "BPE", "vocab": {"a": 0}, "merges": []}}


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The canary in a folder, which has nothing wrong."""
    folder = tmp_path_factory.mktemp("whole")
    for name in canary.FILES:
        if name.startswith(canary.SAFETENSORS):
            (folder / os.path.basename(name)).write_bytes(canary.content(name))
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return pathlib.Path(shutil.copytree(whole, tmp_path / "model"))


def told(path, **options):
    """The model and its findings."""
    return model_report.read(str(path), tokenizer_classes=CLASSES, model_types=TYPES, **options)


def ids(path, **options):
    return [one["id"] for one in told(path, **options)[1]]


def only(path, **options):
    _, found = told(path, **options)
    assert [one["id"] for one in found] == [found[0]["id"]], found
    return found[0]


def write(folder, name, content):
    place = folder / name
    if place.is_symlink():
        place.unlink()
    place.write_bytes(content if isinstance(content, bytes)
                      else content.encode() if isinstance(content, str)
                      else json.dumps(content).encode())


def change(folder, name, **values):
    """Keys of a file of JSON; ``None`` takes one away."""
    place = folder / name
    now = {**(json.loads(place.read_text()) if place.exists() else {}), **values}
    write(folder, name, {key: value for key, value in now.items() if value is not None})


# What is right.


def test_a_whole_model_has_nothing_wrong(folder):
    model, found = told(folder)
    assert found == []
    assert (model["path"], model["resolved_path"]) == (str(folder), str(folder))
    assert model["folders"] == [str(folder)]
    assert (model["custom_code"], model["pickle"]) == ([], False)
    assert model["tokenizer"]["files"] == ["tokenizer.json"]
    assert model["generation_config"]["eos_token_id"] == json.loads(
        (folder / "generation_config.json").read_text())["eos_token_id"]


def test_the_canary_as_gguf_has_nothing_wrong(tmp_path):
    path = tmp_path / canary.GGUF
    path.write_bytes(canary.content(canary.GGUF))
    model, found = told(path)
    assert found == []
    assert (model["folders"], model["resolved_path"]) == ([str(tmp_path)], str(path))
    assert (model["tokenizer"]["files"], model["generation_config"]) == ([], None)
    assert model["tokenizer"]["class"] == model["metadata"]["tokenizer.ggml.model"]


def test_the_subject_is_what_the_person_calls_it(folder):
    (folder / "tokenizer.json").unlink()
    assert only(folder)["subject"] == str(folder)
    assert only(folder, name="org/name")["subject"] == "org/name"


# Dummies and damage.


def test_the_dummies_of_a_converter_are_told_all_at_once_with_what_engines_say(folder):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        write(folder, name, "{}")
    model, found = told(folder)
    assert model is None
    text = "\n".join(one["found"] for one in found)
    for said in ("config.json: empty, which is a dummy", "model_type key",
                 "tokenizer.json: an empty object", "KeyError: 'added_tokens'",
                 "tokenizer_config.json: an empty object", "TypeError: not a string"):
        assert said in text
    assert {one["severity"] for one in found} == {"error"}


BAD = {
    "an empty file": (b"", "an empty file"), "a page of a web server": (b"<html>", "not JSON"),
    "a list": (b"[1]", "no object of JSON"), "an empty object": (b"{}", "a dummy"),
    "a pointer of git-lfs": (POINTER, "git lfs pull"),
    "nested beyond reason": (b"[" * 10**5, "not JSON"),
    "a number without end": (b'{"a": %s}' % (b"9" * 10**5), "not JSON"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_that_engines_cannot_read_is_told(folder, name, case):
    content, said = BAD[case]
    write(folder, name, content)
    model, found = told(folder)
    bad = [one for one in found if one["id"] == "model-bad-json"]
    assert len(bad) == 1
    assert str(folder / name) in bad[0]["found"]
    assert said in bad[0]["found"]
    assert bad[0]["severity"] == "error"
    assert model["format"] == "safetensors"
    assert ("model-no-tokenizer" in ids(folder)) == (name == "tokenizer.json")


@pytest.mark.parametrize("case", sorted(set(BAD) - {"an empty object"}))
def test_an_unreadable_generation_config_is_a_warning(folder, case):
    write(folder, "generation_config.json", BAD[case][0])
    model, [found] = told(folder)
    assert (found["id"], found["severity"]) == ("model-bad-json", "warning")
    assert model["generation_config"] is None


@pytest.mark.parametrize("name", ["generation_config.json", "special_tokens_map.json",
                                  "added_tokens.json"])
def test_files_that_are_often_empty_may_be(folder, name):
    write(folder, name, "{}")
    assert ids(folder) == []


@pytest.mark.parametrize("name", ["special_tokens_map.json", "added_tokens.json",
                                  "preprocessor_config.json"])
def test_a_small_file_that_is_no_json_is_told(folder, name):
    write(folder, name, "<html>")
    assert name in only(folder)["found"]


@pytest.mark.parametrize("model", [None, [], {}, {"vocab": {}}, {"vocab": []}, {"vocab": 7}])
def test_a_tokenizer_json_without_a_vocabulary_is_none(folder, model):
    write(folder, "tokenizer.json", {**TOKENIZER, "model": model})
    assert ids(folder) == ["model-bad-json", "model-no-tokenizer"]


def test_a_config_without_a_type_is_told(folder):
    change(folder, "config.json", model_type=None)
    assert only(folder)["id"] == "model-no-type"


def test_a_generation_config_keeps_its_short_values(folder):
    write(folder, "generation_config.json", '{"temperature": 0.6, "eos_token_id": [1, 2], "x": '
          '{"y": 1}, "do_sample": true, "nan": NaN, "long": "%s", "esc": "\\u001b[2J", "n": null}'
          % ("z" * 300))
    model, _ = told(folder)
    assert model["generation_config"] == {
        "temperature": 0.6, "eos_token_id": [1, 2], "do_sample": True, "n": None}


# Tokenizers by class.

TABLE = {row["class"]: row for row in CLASSES}


@pytest.mark.parametrize("fast", ["", "Fast"])
@pytest.mark.parametrize("name", TABLE)
def test_a_class_needs_its_files(folder, name, fast):
    row = TABLE[name]
    (folder / "tokenizer.json").unlink()
    change(folder, "tokenizer_config.json", tokenizer_class=name + fast)
    needy = bool(row["files"] or row["tokenizer_json"])
    assert ids(folder) == (["model-no-tokenizer"] if needy else [])
    if needy:
        found = only(folder)["found"]
        assert name + fast in found
        assert all(file in found for file in row["files"])
    for file in row["files"]:
        write(folder, file, '{"a": 1}')
    assert ids(folder) == ([] if row["files"] or not needy else ["model-no-tokenizer"])
    for file in row["files"]:
        (folder / file).unlink()
    write(folder, "tokenizer.json", TOKENIZER)
    assert ids(folder) == ([] if row["tokenizer_json"] or not needy else ["model-no-tokenizer"])


def test_one_file_of_two_is_not_enough(folder):
    (folder / "tokenizer.json").unlink()
    change(folder, "tokenizer_config.json", tokenizer_class="Qwen2Tokenizer")
    write(folder, "merges.txt", "a b\n")
    assert "vocab.json and merges.txt" in only(folder)["found"]
    write(folder, "vocab.json", "{}")
    assert ids(folder) == ["model-bad-json", "model-no-tokenizer"]


@pytest.mark.parametrize("content", [b"", POINTER])
def test_a_tokenizer_model_that_is_none_does_not_count(folder, content):
    (folder / "tokenizer.json").unlink()
    change(folder, "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    write(folder, "tokenizer.model", content)
    found = only(folder)
    assert found["id"] == "model-no-tokenizer"
    assert "tokenizer.model" in found["found"]


def test_what_engines_do_without_a_tokenizer_is_said(folder):
    (folder / "tokenizer.json").unlink()
    found = only(folder)["found"]
    assert "nonsense" in found
    assert "TypeError: not a string" in found


def test_the_class_may_be_in_the_config(folder):
    (folder / "tokenizer.json").unlink()
    change(folder, "tokenizer_config.json", tokenizer_class=None)
    change(folder, "config.json", tokenizer_class="T5Tokenizer")
    assert "spiece.model" in only(folder)["found"]
    assert told(folder)[0]["tokenizer"]["class"] == "T5Tokenizer"


@pytest.mark.parametrize("file", [
    "tokenizer.model", "tekken.json", "tokenizer.model.v3", "vocab.txt"])
def test_a_class_that_is_not_known_may_have_any_tokenizer(folder, file):
    (folder / "tokenizer.json").unlink()
    change(folder, "tokenizer_config.json", tokenizer_class="NewTokenizer")
    assert ids(folder) == ["model-no-tokenizer"]
    write(folder, file, "x")
    assert ids(folder) == []


@pytest.mark.parametrize("value", [7, [], {}, "x" * 300, "a\nb"])
def test_a_class_that_is_no_name_is_none(folder, value):
    change(folder, "tokenizer_config.json", tokenizer_class=value)
    model, found = told(folder)
    assert found == []
    assert model["tokenizer"]["class"] is None


# Chat templates.


def test_without_a_chat_template_it_is_said_and_stops_nothing(folder):
    change(folder, "tokenizer_config.json", chat_template=None)
    found = only(folder)
    assert (found["id"], found["severity"]) == ("model-no-chat-template", "info")
    write(folder, "chat_template.jinja", "{{ messages }}")
    assert ids(folder) == []


# Code of the model's own.

CODE = {"AutoConfig": "configuration_new.NewConfig",
        "AutoModelForCausalLM": "modeling_new.NewModel"}


def test_code_that_an_engine_would_have_to_run_is_refused_unless_allowed(folder):
    change(folder, "config.json", model_type="new", auto_map=CODE)
    for name in ("configuration_new.py", "modeling_new.py"):
        write(folder, name, "raise SystemExit")
    model, [found] = told(folder)
    assert (found["id"], found["severity"]) == ("model-needs-code", "error")
    assert "modeling_new.py (config.json: auto_map.AutoModelForCausalLM)" in found["found"]
    assert "add %r to model_snapshot_allow_code" % str(folder) in found["remedy"]
    assert model["custom_code"] == ["configuration_new.py", "modeling_new.py"]
    model, found = told(folder, allow_code=True)
    assert (model["custom_code"], found) == (["configuration_new.py", "modeling_new.py"], [])


def test_code_that_is_named_and_not_there_is_told(folder):
    change(folder, "config.json", model_type="new", auto_map=CODE)
    write(folder, "modeling_new.py", "")
    found = only(folder, allow_code=True)
    assert (found["id"], found["severity"]) == ("model-code-missing", "error")
    assert "configuration_new.py" in found["found"]


def test_code_that_engines_do_not_need_is_none(folder):
    change(folder, "config.json", model_type="deepseek_v3", auto_map=CODE)
    model, found = told(folder)
    assert (model["custom_code"], found) == ([], [])
    # Nothing is known of types without the catalog.
    _, found = model_report.read(str(folder))
    assert "model-needs-code" in [one["id"] for one in found]


def test_a_tokenizers_code_is_needed_where_its_class_is_not_known(folder):
    own = {"AutoTokenizer": ["tokenization_new.NewTokenizer", None]}
    write(folder, "tokenization_new.py", "")
    change(folder, "tokenizer_config.json", tokenizer_class="NewTokenizer", auto_map=own)
    assert told(folder)[0]["custom_code"] == ["tokenization_new.py"]
    assert ids(folder) == ["model-needs-code"]
    change(folder, "tokenizer_config.json", tokenizer_class="LlamaTokenizerFast")
    assert ids(folder) == []


def test_code_of_another_repository_says_so(folder):
    change(folder, "config.json", model_type="new",
           auto_map={"AutoModel": "org/other--modeling_new.NewModel"})
    model, _ = told(folder)
    assert model["custom_code"] == ["org/other--modeling_new.py"]


@pytest.mark.parametrize("auto_map", [7, "x", [], {"AutoModel": 7}, {"AutoModel": [[], None]}])
def test_a_map_that_names_no_code_has_none(folder, auto_map):
    change(folder, "config.json", model_type="new", auto_map=auto_map)
    assert told(folder)[0]["custom_code"] == []


# Pickles.


def test_pickles_are_refused_unless_allowed_and_never_unpickled(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    # Whoever loads it makes a file.
    write(folder, "pytorch_model.bin", b"cos\nsystem\n(S'touch %s'\ntR." % bytes(tmp_path / "ran"))
    model, [found] = told(folder)
    assert (found["id"], found["severity"]) == ("model-pickle", "error")
    assert "pytorch_model.bin" in found["found"]
    assert "model_snapshot_allow_pickle" in found["remedy"]
    assert (model["format"], model["pickle"]) == ("pickle", True)
    allowed, found = told(folder, allow_pickle=True)
    assert found == []
    assert allowed == model
    assert allowed["geometry"]["layers"] > 0
    assert not (tmp_path / "ran").exists()


def test_a_second_copy_of_the_weights_is_told_and_not_counted(folder):
    before, _ = told(folder)
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    model, [found] = told(folder)
    assert (found["id"], found["severity"]) == ("model-extra-weights", "info")
    assert model["bytes"] == before["bytes"]


# Links, and what is no file.


def test_a_link_to_a_private_file_elsewhere_is_not_followed(folder, tmp_path):
    secret = tmp_path / "secret.json"
    write(tmp_path, "secret.json", {"temperature": 0.77, "auto_map": {"A": "secret.Code"}})
    secret.chmod(0o600)
    for name in ("generation_config.json", "preprocessor_config.json"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(secret)
    model, [found] = told(folder)
    assert (found["id"], found["severity"]) == ("model-link-refused", "error")
    assert "generation_config.json -> %s" % secret in found["found"]
    assert model["generation_config"] is None
    assert model["folders"] == [str(folder)]
    assert "0.77" not in json.dumps([model, found])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors",
                                  "model.safetensors.index.json"])
def test_weights_and_configs_that_lead_to_private_files_are_not_read(folder, tmp_path, name):
    secret = tmp_path / "secret"
    secret.write_text("root:$6$0123456789:::")
    secret.chmod(0o600)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret)
    model, found = told(folder)
    assert model is None
    assert [one["id"] for one in found] == ["model-link-refused"]


def test_a_link_into_the_system_is_refused_although_all_may_read_it(folder):
    (folder / "chat_template.jinja").symlink_to("/etc/passwd")
    assert only(folder)["id"] == "model-link-refused"
    assert told(folder)[0]["folders"] == [str(folder)]


def test_a_link_to_a_readable_file_elsewhere_is_told_and_its_folder_too(folder, tmp_path):
    elsewhere = tmp_path / "big"
    elsewhere.mkdir()
    os.replace(folder / "model.safetensors", elsewhere / "weights")
    (folder / "model.safetensors").symlink_to("../big/weights")
    model, [found] = told(folder)
    assert (found["id"], found["severity"]) == ("model-link-outside", "warning")
    assert model["folders"] == sorted([str(folder), str(elsewhere)])


def test_files_that_nobody_serves_add_no_folder(folder, tmp_path):
    elsewhere = tmp_path / "pictures"
    elsewhere.mkdir()
    (elsewhere / "a.png").write_bytes(b"x")
    (folder / "a.png").symlink_to(elsewhere / "a.png")
    assert told(folder)[0]["folders"] == [str(folder)]


def as_cache(folder, cache):
    """Put a model into a cache as huggingface_hub lays it out, closed to others."""
    repository = cache / "models--org--name"
    snapshot, blobs = repository / "snapshots" / ("0" * 40), repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        blob = blobs / ("b%d" % number)
        os.replace(file, blob)
        blob.chmod(0o600)
        (snapshot / file.name).symlink_to("../../blobs/" + blob.name)
    return snapshot


def test_in_a_cache_links_to_its_blobs_are_its_own(folder, tmp_path):
    snapshot = as_cache(folder, tmp_path / "hub")
    model, found = told(snapshot)
    assert found == []
    assert model["folders"] == [str(snapshot.parents[1] / "blobs"), str(snapshot)]


def test_shared_blobs_of_a_cache_are_its_own_and_every_link_on_the_way_is_shown(folder, tmp_path):
    snapshot = as_cache(folder, tmp_path / "hub")
    shared = tmp_path / "hub" / "blobs" / "ab"
    shared.mkdir(parents=True)
    blob = (snapshot / "model.safetensors").resolve()
    os.replace(blob, shared / "xet")
    blob.symlink_to("../../blobs/ab/xet")
    model, found = told(snapshot)
    assert found == []
    assert model["folders"] == sorted([str(blob.parent), str(snapshot), str(shared)])


def test_a_gguf_file_in_a_cache_has_the_folders_of_its_links(tmp_path):
    folder = tmp_path / "gguf"
    folder.mkdir()
    (folder / canary.GGUF).write_bytes(canary.content(canary.GGUF))
    snapshot = as_cache(folder, tmp_path / "hub")
    model, found = told(snapshot / canary.GGUF)
    assert found == []
    assert model["folders"] == [str(snapshot.parents[1] / "blobs"), str(snapshot)]
    assert model["resolved_path"] == str(snapshot / canary.GGUF)


def test_a_path_through_a_link_to_a_folder_is_resolved(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    model, found = told(tmp_path / "link")
    assert found == []
    assert (model["path"], model["resolved_path"]) == (str(tmp_path / "link"), str(folder))
    assert model["folders"] == [str(tmp_path / "link")]


def test_the_folders_of_a_cache_behind_a_link_are_called_as_it_is_asked_for(folder, tmp_path):
    snapshot = as_cache(folder, tmp_path / "hub")
    (tmp_path / "data").symlink_to("hub")
    asked = tmp_path / "data" / snapshot.relative_to(tmp_path / "hub")
    model, found = told(asked)
    assert found == []
    assert model["folders"] == [str(asked.parents[1] / "blobs"), str(asked)]


def test_an_absolute_link_needs_the_folder_by_its_own_name(folder, tmp_path):
    os.replace(folder / "model.safetensors", folder / "weights")
    (folder / "model.safetensors").symlink_to(folder / "weights")
    (tmp_path / "link").symlink_to(folder)
    assert told(tmp_path / "link")[0]["folders"] == [str(tmp_path / "link"), str(folder)]


@pytest.mark.parametrize(("name", "severity"), [
    ("output_layer.weight", "info"), ("model.layers.7.mlp.up_proj.weight", "warning")])
def test_tensors_of_the_index_that_are_in_no_file_do_not_refuse_a_model(folder, name, severity):
    with open(folder / "model.safetensors", "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    write(folder, "model.safetensors.index.json", {"weight_map": dict.fromkeys(
        [name, *(key for key in header if key != "__metadata__")], "model.safetensors")})
    found = only(folder)
    assert (found["id"], found["severity"]) == ("model-absent-tensors", severity)
    assert name in found["found"]


def test_links_in_a_circle_end(folder):
    for name, other in (("a.json", "b.json"), ("b.json", "a.json")):
        (folder / name).symlink_to(other)
    assert ids(folder) == []


ODD = {"a FIFO": os.mkfifo, "a link to a device": lambda place: place.symlink_to("/dev/zero")}


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json",
                                  "model.safetensors", "generation_config.json", "merges.txt"])
@pytest.mark.parametrize("case", ODD)
def test_what_is_no_file_is_told_and_not_opened(folder, name, case):
    (folder / name).unlink(missing_ok=True)
    ODD[case](folder / name)
    _, found = told(folder)
    odd = [one for one in found if one["id"] == "model-not-a-file"]
    assert len(odd) == 1
    assert name in odd[0]["found"]
    assert odd[0]["severity"] == "error"


def test_a_dangling_link_says_where_it_leads(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to("../../blobs/0123")
    _, found = told(folder)
    assert "a link to ../../blobs/0123, which is not there" in found[0]["found"]
    assert found[-1]["id"] == "model-no-tokenizer"


def test_a_name_with_control_characters_is_left_alone(folder):
    (folder / "a\x1b[2J.json").write_text("<html>")
    (folder / "b\n.safetensors").write_text("<html>")
    assert ids(folder) == []


def test_a_model_that_is_not_there_says_what_engines_would_take_it_for(tmp_path):
    found = only(tmp_path / "none")
    assert found["id"] == "model-missing"
    assert "Repo id must be in the form" in found["remedy"]


def test_a_directory_without_a_model_is_damaged(tmp_path):
    model, found = told(tmp_path)
    assert model is None
    assert {one["id"] for one in found} == {"model-damaged", "model-no-tokenizer"}


# GGUF.


def write_gguf(path, **fields):
    writer = gguf.GGUFWriter(path, fields.pop("architecture", "llama"))
    for name, value in fields.items():
        key = name.replace("__", ".")
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_string(key, value)
    writer.add_tensor("token_embd.weight", np.ones((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


WITH_TOKENIZER = {"tokenizer__ggml__model": "gpt2", "tokenizer__ggml__tokens": ["a", "b"],
                  "tokenizer__chat_template": "{{ x }}"}


@pytest.mark.parametrize(("missing", "said"), [
    ("tokenizer__ggml__model", "tokenizer.ggml.model"),
    ("tokenizer__ggml__tokens", "tokenizer.ggml.tokens")])
def test_a_gguf_file_without_a_tokenizer_is_told(tmp_path, missing, said):
    fields = {key: value for key, value in WITH_TOKENIZER.items() if key != missing}
    found = only(write_gguf(tmp_path / "m.gguf", **fields))
    assert (found["id"], found["severity"]) == ("model-no-tokenizer", "error")
    assert said in found["found"]


def test_a_gguf_file_without_a_chat_template_is_told(tmp_path):
    fields = {**WITH_TOKENIZER}
    del fields["tokenizer__chat_template"]
    assert only(write_gguf(tmp_path / "m.gguf", **fields))["severity"] == "info"
    assert ids(write_gguf(tmp_path / "m.gguf", **WITH_TOKENIZER)) == []


@pytest.mark.parametrize("fields", [
    {"general__type": "adapter"}, {"general__type": "mmproj"}, {"general__type": "imatrix"},
    {"architecture": "clip"}])
def test_a_gguf_file_that_goes_with_a_model_is_none(tmp_path, fields):
    assert only(write_gguf(tmp_path / "m.gguf", **fields))["id"] == "model-is-a-part"


def test_a_corrupt_header_is_damage_that_names_the_file(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", **WITH_TOKENIZER)
    path.write_bytes(path.read_bytes()[:60])
    model, [found] = told(path)
    assert model is None
    assert found["id"] == "model-damaged"
    assert str(path) in found["found"]


# Anything at all.


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.dictionaries(
    st.sampled_from(["config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json",
                     "generation_config.json", "added_tokens.json", model_files.SAFETENSORS_INDEX]),
    strategies.JSON | st.fixed_dictionaries({}, optional={
        "auto_map": strategies.JSON, "tokenizer_class": strategies.JSON,
        "model_type": strategies.JSON, "weight_map": strategies.JSON, "model": strategies.JSON})))
def test_whatever_the_small_files_say_is_told_in_whole_findings(whole, files):
    folder = whole.parent / "any"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    for name, content in files.items():
        write(folder, name, content)
    model, found = told(folder)
    json.dumps([model, found])
    for one in found:
        assert one["subject"] == str(folder)
        assert one["found"]
        assert one["wanted"]
        assert one["remedy"]
    if model is None:
        assert blocking(found)
    else:
        assert model["folders"] == [str(folder)]
