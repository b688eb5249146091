# SPDX-License-Identifier: Apache-2.0
"""The module describes what it can and makes a finding of everything else."""

from __future__ import annotations

import json
import os

import model_info
import pytest
import yaml

from ansible.module_utils.firstlight import canary, model_files


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / canary.GGUF
    path.write_bytes(canary.content(canary.GGUF))
    return path


def only_finding(run_module, path):
    """What is wrong with a model that is none, but for its tokenizer, which it has not either."""
    result = run_module(model_info.main, paths=[str(path)])
    assert result["models"] == {}
    [found] = [one for one in result["findings"] if one["id"] != "model-no-tokenizer"]
    assert found["subject"] == str(path)
    assert found["severity"] == "error"
    return found


@pytest.mark.parametrize("check", [False, True])
def test_models_come_by_path_and_the_rest_as_findings_in_one_call(
        run_module, model, tmp_path, check):
    missing = str(tmp_path / "none.gguf")
    result = run_module(model_info.main, check=check, paths=[missing, str(model)])
    assert result["changed"] is False
    assert list(result["models"]) == [str(model)]
    assert result["models"][str(model)]["format"] == "gguf"
    assert [one["subject"] for one in result["findings"]] == [missing]


def test_what_a_model_is_has_the_keys_of_the_documented_sample(run_module, model):
    [sample] = yaml.safe_load(model_info.RETURN)["models"]["sample"].values()
    found = run_module(model_info.main, paths=[str(model)])["models"][str(model)]
    assert list(found) == list(sample)
    for key in ("geometry", "tensors", "tokenizer"):
        assert list(found[key]) == list(sample[key])
    for key in sample["metadata"]:
        assert key in found["metadata"]


def test_a_config_that_contradicts_itself_is_damage_that_names_the_fields(run_module, tmp_path):
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "num_hidden_layers": 0, "vocab_size": -1}')
    (tmp_path / "model.safetensors").write_bytes(canary.content("safetensors/model.safetensors"))
    found = only_finding(run_module, tmp_path)
    assert found["id"] == "model-damaged"
    assert "num_hidden_layers is 0" in found["found"]
    assert "vocab_size is -1" in found["found"]


def test_no_path_is_nothing_to_read(run_module):
    result = run_module(model_info.main, paths=[])
    assert (result["models"], result["findings"]) == ({}, [])


@pytest.mark.parametrize("tail", ["none.gguf", "a/b/none.gguf", "a/none/"])
def test_a_missing_model_says_how_far_the_path_goes(run_module, tmp_path, tail):
    found = only_finding(run_module, str(tmp_path / tail.rstrip("/")) + "/" * tail.endswith("/"))
    assert found["id"] == "model-missing"
    assert found["found"].endswith("exists is %s" % tmp_path)


def test_a_link_to_nothing_is_a_missing_model(run_module, tmp_path):
    (tmp_path / "m.gguf").symlink_to(tmp_path / "blob")
    assert only_finding(run_module, tmp_path / "m.gguf")["id"] == "model-missing"


def test_a_directory_whose_file_is_a_link_to_nothing_is_damaged_and_names_it(run_module, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blob")
    found = only_finding(run_module, tmp_path)
    assert found["id"] == "model-damaged"
    assert "model.safetensors" in found["found"]


@pytest.mark.parametrize("content", [b"", b"<html>", b"GGUF"])
def test_a_damaged_model_names_the_file(run_module, tmp_path, content):
    (tmp_path / "m.gguf").write_bytes(content)
    found = only_finding(run_module, tmp_path / "m.gguf")
    assert found["id"] == "model-damaged"
    assert str(tmp_path / "m.gguf") in found["found"]


def test_a_file_where_a_folder_should_be_is_a_finding(run_module, model):
    assert only_finding(run_module, model / "config.json")["id"] == "model-damaged"


def denied(path):
    raise PermissionError(13, "Permission denied", path)


def test_a_model_that_may_not_be_read_names_the_file_and_the_user(run_module, monkeypatch, model):
    monkeypatch.setattr(model_files, "describe", denied)
    found = only_finding(run_module, model)
    assert found["id"] == "model-unreadable"
    assert "%s: Permission denied" % model in found["found"]
    assert "uid %d" % os.geteuid() in found["wanted"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("closed", ["m.gguf", "."])
def test_a_model_behind_closed_modes_is_unreadable(run_module, tmp_path, closed):
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "m.gguf").write_bytes(b"GGUF")
    (folder / closed).chmod(0)
    try:
        assert only_finding(run_module, folder / "m.gguf")["id"] == "model-unreadable"
    finally:
        folder.chmod(0o755)


# Paths as they are meant, and what is allowed by name.


COMMIT = "0123456789" * 4


@pytest.fixture
def cached(tmp_path):
    """The canary in a cache of Hugging Face."""
    snapshot = tmp_path / "hub" / "models--firstlight--canary" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for name in canary.FILES:
        if name.startswith(canary.SAFETENSORS):
            (snapshot / os.path.basename(name)).write_bytes(canary.content(name))
    return snapshot


def test_a_model_is_known_by_the_path_that_was_asked_for_and_lies_where_it_lies(
        run_module, cached, tmp_path):
    asked = "%s/models--firstlight--canary/snapshots/0123456" % tmp_path
    result = run_module(model_info.main, paths=[asked, str(cached.parents[1]), str(cached)])
    assert list(result["models"]) == [asked, str(cached.parents[1]), str(cached)]
    assert {one["path"] for one in result["models"].values()} == {str(cached)}
    assert [(one["id"], one["severity"], one["subject"]) for one in result["findings"]] == [
        ("model-cache-mismatch", "warning", asked), ("model-short-hash", "warning", asked),
        ("model-path-of-repository", "info", str(cached.parents[1]))]


def test_a_path_that_cannot_be_told_is_not_read_any_further(run_module, cached):
    found = only_finding(run_module, cached.parent / "abcdef0")
    assert found["id"] == "model-short-hash"


def test_what_is_wrong_is_told_of_the_path_that_was_asked_for(run_module, cached):
    (cached / "tokenizer.json").write_text("{}")
    asked = str(cached.parents[1])
    result = run_module(model_info.main, paths=[asked])
    assert {one["subject"] for one in result["findings"]} == {asked}
    assert "model-bad-json" in [one["id"] for one in result["findings"]]


def test_code_and_pickles_are_allowed_by_the_path_as_it_is_asked_for(run_module, cached):
    config = json.loads((cached / "config.json").read_text())
    (cached / "config.json").write_text(json.dumps(
        {**config, "model_type": "new", "auto_map": {"AutoModel": "modeling_new.New"}}))
    (cached / "modeling_new.py").write_text("raise SystemExit")
    (cached / "model.safetensors").rename(cached / "pytorch_model.bin")
    asked, other = str(cached.parents[1]), str(cached)

    def blocked(**allowed):
        result = run_module(model_info.main, paths=[asked], **allowed)
        assert result["models"][asked]["custom_code"] == ["modeling_new.py"]
        assert result["models"][asked]["pickle"] is True
        return {one["id"] for one in result["findings"] if one["severity"] == "error"}

    assert blocked() == {"model-needs-code", "model-pickle"}
    assert blocked(allow_code=[other], allow_pickle=[other]) == {
        "model-needs-code", "model-pickle"}
    assert blocked(allow_code=[asked]) == {"model-pickle"}
    assert blocked(allow_code=[asked], allow_pickle=[asked]) == set()


def test_the_catalogs_say_what_is_needed(run_module, cached):
    config = json.loads((cached / "config.json").read_text())
    (cached / "config.json").write_text(json.dumps(
        {**config, "model_type": "known", "auto_map": {"AutoModel": "modeling_new.New"}}))
    (cached / "tokenizer.json").rename(cached / "vocab.txt")
    tokenizer = {"tokenizer_class": "LlamaTokenizer", "chat_template": "{{ x }}"}
    (cached / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    rows = {
        "tokenizer_classes": [{"class": "LlamaTokenizer", "files": ["tokenizer.model"],
                               "tokenizer_json": True, "source": "-"}],
        "model_types": [{"model_type": "known", "source": "-"}]}

    def ids(**given):
        result = run_module(model_info.main, paths=[str(cached)], **given)
        return [one["id"] for one in result["findings"] if one["severity"] == "error"]

    assert ids() == ["model-needs-code"]
    assert ids(model_types=rows["model_types"]) == []
    assert ids(**rows) == ["model-no-tokenizer"]


def test_reading_changes_nothing(run_module, cached, tmp_path):
    def tree():
        return {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}

    before = tree()
    run_module(model_info.main, paths=[str(cached.parents[1])])
    assert tree() == before
