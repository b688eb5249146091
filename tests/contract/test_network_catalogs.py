# SPDX-License-Identifier: Apache-2.0
"""The catalogs of the way out: what they say is what the code reads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from ansible.module_utils.firstlight.planning import network

REPOSITORY = Path(__file__).parents[2]
ENDPOINTS, HOOKS = (yaml.safe_load((REPOSITORY / "catalog" / name).read_text())
                    for name in ("network_endpoints.yml", "network_hooks.yml"))

each_endpoint = pytest.mark.parametrize("row", ENDPOINTS, ids=[row["host"] for row in ENDPOINTS])
each_hook = pytest.mark.parametrize("row", HOOKS, ids=[row["path"] for row in HOOKS])


@each_endpoint
def test_a_hub_is_of_a_kind_that_can_be_asked(row):
    assert set(row) == {"host", "kind", "trusted", "xet", "source"}
    assert re.fullmatch(r"[a-z0-9.-]+", row["host"])
    assert row["kind"] in network.HUB_KINDS
    assert type(row["trusted"]) is type(row["xet"]) is bool


@each_endpoint
def test_what_the_row_of_a_hub_says_is_what_its_address_is_taken_for(row):
    wanted, wrong = network.question(
        {"hub_endpoints": [{"url": "https://%s/" % row["host"]}]}, ENDPOINTS)
    assert wrong == []
    assert wanted.hubs == [{"kind": row["kind"], "url": "https://" + row["host"],
                            "trusted": row["trusted"], "xet": row["xet"]}]


def test_a_token_goes_to_nobody_but_who_gave_it():
    assert [row["host"] for row in ENDPOINTS if row["trusted"]] == ["huggingface.co"]
    assert [row["host"] for row in ENDPOINTS if row["xet"]] == ["huggingface.co"]


def test_the_hub_of_the_defaults_is_one_that_is_known():
    (hub,) = network.DEFAULT_HUBS
    assert hub["url"] in ["https://" + row["host"] for row in ENDPOINTS]


@each_hook
def test_a_hook_is_a_file_that_could_be_asked_for(row):
    assert set(row) == {"path", "provider", "reaches", "source"}
    assert network.question({"hook": row["path"]}, ENDPOINTS)[1] == []
    assert row["provider"].strip()
    assert all(re.fullmatch(r"[a-z0-9.-]+", host) for host in row["reaches"])
