# SPDX-License-Identifier: Apache-2.0
"""What serves came from the hub: pinned, whole, readable, and never asked for again."""

import json
import os
import pathlib
import re
import sys
import urllib.request

import pytest

sys.path.insert(0, os.path.join(os.environ["MOLECULE_PROJECT_DIRECTORY"], "module_utils"))
from firstlight import canary  # noqa: E402 - found through the line above

HERE = pathlib.Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])
ROOT = "/var/lib/firstlight"
# What each host serves: the repository, the revision asked for, and the weights of it.
SERVED = {
    "dock12": ("firstlight/canary-gguf", "main", ["canary-Q4_K_M.gguf"]),
    "deb13": ("firstlight/canary-gguf", "main", ["canary-Q8_0.gguf"]),
    "vllm12": ("firstlight/canary", "v1", ["model.safetensors"]),
}
WEIGHTS = re.compile(r"\.(gguf|safetensors|bin|pth|pt|onnx)$")


def lines(file):
    """What a log of one JSON object a line holds."""
    return [json.loads(line) for line in (HERE / file).read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def name(host):
    return host.backend.get_hostname().removeprefix("firstlight-")


@pytest.fixture
def passport(host):
    return json.loads(host.file(ROOT + "/endpoints/demo/passport.json").content_string)


@pytest.fixture
def plan(passport):
    return passport["plan"]


@pytest.fixture
def snapshot(name, plan):
    """The folder of the snapshot, in the cache as the hub's own library has it."""
    repo_id = SERVED[name][0]
    return "%s/models/hub/models--%s/snapshots/%s" % (
        ROOT, repo_id.replace("/", "--"), plan["model"]["commit"])


def test_it_answers_as_only_these_weights_do(host, plan):
    oracle = canary.oracle()
    said = host.check_output(
        "curl -s --max-time 60 -H 'Content-Type: application/json' -d %s %s", json.dumps({
            "model": plan["model"]["served_name"], "prompt": oracle["prompt"],
            "max_tokens": oracle["max_tokens"], "temperature": 0}),
        plan["url"] + "/v1/completions")
    assert json.loads(said)["choices"][0]["text"] == oracle["completion"], said


def test_it_serves_under_the_name_that_was_asked_for(name, plan):
    assert plan["model"]["served_name"] == SERVED[name][0]


def test_the_passport_has_the_commit_that_the_hub_has(name, plan):
    repo_id, revision, _ = SERVED[name]
    url = (HERE / "hub" / "url").read_text(encoding="utf-8").strip()
    with urllib.request.urlopen(
            "%s/api/models/%s/revision/%s" % (url, repo_id, revision), timeout=30) as answer:
        commit = json.load(answer)["sha"]
    assert re.fullmatch("[0-9a-f]{40}", commit)
    assert (plan["model"]["repo_id"], plan["model"]["commit"]) == (repo_id, commit)


def test_of_the_weights_there_are_those_of_one_format_and_quantisation(host, name, snapshot):
    found = host.check_output("cd %s && find -L . -type f -printf '%%P\\n'", snapshot)
    assert sorted(filter(WEIGHTS.search, found.splitlines())) == SERVED[name][2]


def test_another_user_can_read_every_byte(host, snapshot):
    # Of the engine in a container and of nobody: whoever it is must reach the blobs as well.
    said = host.run("runuser -u nobody -- sh -c %s",
                    "cd %s && find -L . -type f -exec cat {} + | wc -c" % snapshot)
    assert said.rc == 0, said.stderr
    assert not said.stderr
    assert int(said.stdout) == int(host.check_output(
        "cd %s && find -L . -type f -printf '%%s\\n' | awk '{sum += $1} END {print sum}'",
        snapshot))


def test_the_engine_is_given_what_lies_there(plan, snapshot):
    assert plan["model"]["path"].startswith(snapshot)


def test_an_engine_that_could_ask_a_hub_is_told_not_to(host, plan):
    if plan["engine"] != "vllm":
        pytest.skip("this engine asks only for what it is told to")
    of_process = host.check_output(
        "tr '\\0' '\\n' < /proc/$(pgrep --oldest --full api_server)/environ")
    assert "HF_HUB_OFFLINE=1" in of_process.splitlines()


def test_what_nobody_serves_was_not_fetched(name):
    fetched = {one["path"] for one in lines("hub/log") if one["method"] == "GET"}
    assert fetched
    assert not [path for path in fetched if re.search(
        r"/firstlight/canary(-gguf)?/resolve/.*(\.bin|\.pth|\.onnx|mmproj|F16)", path)]


def test_a_second_run_asks_the_hub_nothing_and_the_host_once(name):
    assert lines("played/requests") == []
    calls = [one for one in lines("played/calls") if one["host"] == name]
    assert len([one for one in calls if one["role"] == "model_snapshot"]) == 1, calls


def test_check_mode_asks_the_hub_nothing_where_all_is_there():
    assert lines("checked/requests") == []
