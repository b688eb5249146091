# SPDX-License-Identifier: Apache-2.0
"""The catalog of what ways in let through: exact paths of the OpenAI API, and nothing beside."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from ansible.module_utils.firstlight import smoke, way_in
from ansible.module_utils.firstlight.planning.requests import ENGINES
from ansible.module_utils.firstlight.planning.way_in import paths_of

CATALOG = Path(__file__).parents[2] / "catalog" / "way_in_paths.yml"
ROWS = yaml.safe_load(CATALOG.read_text())
# What the engines have beside the API, and nobody behind a key needs.
NEVER = {"/metrics", "/invocations", "/tokenize", "/detokenize", "/version", "/load", "/ping", "/",
         "/docs", "/openapi.json", "/props", "/slots", "/lora-adapters", "/sleep", "/wake_up",
         "/collective_rpc", "/start_profile", "/stop_profile", "/pooling", "/score", "/rerank"}

each_row = pytest.mark.parametrize("row", ROWS, ids=["%(engine)s %(path)s" % row for row in ROWS])


@each_row
def test_a_row_is_one_path_letter_for_letter(row):
    assert set(row) == {"engine", "path", "method", "key", "source"}
    assert row["engine"] in ENGINES
    assert re.fullmatch(r"(/[a-z0-9_]+)+", row["path"])
    assert row["method"] in ("GET", "POST")
    assert row["path"] not in {*NEVER, way_in.UNLISTED}
    assert len(row["source"].split()) > 3 or row["source"].startswith("https://")


@each_row
def test_nothing_but_health_is_open_to_everyone(row):
    assert row["key"] is (row["path"] != "/health")
    assert (row["method"] == "GET") is (row["path"] in ("/health", "/v1/models"))


@pytest.mark.parametrize("engine", sorted(set(ENGINES) - {"auto"}))
def test_each_engine_has_what_the_api_is_proven_by(engine):
    found = paths_of(engine, ROWS)
    assert found["open"] == ["/health"]
    assert "/v1/models" in found["GET"]
    asked = {path for file in Path(smoke.__file__).parent.glob("*.py")
             for path in re.findall(r'"(/v1/[a-z/]+)"', file.read_text())}
    assert len(asked) > 2, "the proof asks for more than the models"
    assert asked <= {*found["GET"], *found["POST"]}


def test_a_path_is_there_once_and_in_order():
    # A second method of a path would need more of the template than it has.
    keys = [(row["engine"], row["path"]) for row in ROWS]
    assert keys == sorted(set(keys))
