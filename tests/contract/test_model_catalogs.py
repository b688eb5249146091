# SPDX-License-Identifier: Apache-2.0
"""The catalogs of models: rows that the reader of models understands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from ansible.module_utils.firstlight import model_report

FOLDER = Path(__file__).parents[2] / "catalog"
CLASSES, TYPES = (yaml.safe_load((FOLDER / (name + ".yml")).read_text())
                  for name in ("tokenizer_classes", "model_types"))


@pytest.mark.parametrize("row", CLASSES, ids=[row["class"] for row in CLASSES])
def test_a_class_is_named_without_fast_and_its_files_are_names(row):
    assert re.fullmatch(r"[A-Z][A-Za-z0-9]+", row["class"])
    assert not row["class"].endswith("Fast")
    assert type(row["tokenizer_json"]) is bool
    assert all(re.fullmatch(r"[a-z0-9._-]+", name) for name in row["files"])
    # That is what the other key is for.
    assert model_report.TOKENIZER_JSON not in row["files"]


def test_a_file_that_is_a_tokenizer_by_itself_is_looked_for_where_the_class_is_not_known():
    alone = {row["files"][0] for row in CLASSES if len(row["files"]) == 1}
    assert alone <= set(model_report.TOKENIZER_FILES)


def test_classes_with_and_without_each_way_are_there():
    kinds = {(bool(row["files"]), row["tokenizer_json"]) for row in CLASSES}
    assert kinds == {(True, True), (False, True), (True, False), (False, False)}


@pytest.mark.parametrize("row", TYPES, ids=[row["model_type"] for row in TYPES])
def test_a_type_is_spelled_as_configs_spell_it(row):
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", row["model_type"])


def test_all_types_of_transformers_are_there():
    """Some that are old, new, spelled with a dash, or few people's."""
    known = {row["model_type"] for row in TYPES}
    assert len(known) > 400
    assert known >= {"bert", "llama", "gpt-sw3", "xlm-roberta", "qwen3_next", "exaone", "phi3"}
