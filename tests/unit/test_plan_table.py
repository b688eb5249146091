# SPDX-License-Identifier: Apache-2.0
"""Plans as a person sees them: columns, bars, reasons, refusals."""

from __future__ import annotations

import re

import facts as made
import firstlight
import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st

from ansible.module_utils.firstlight import findings

TABLE = firstlight.FilterModule().filters()["plan_table"]
GIB = 2**30
COMMIT = "c0ffee" + "0" * 34
REFUSAL = findings.finding("plan-does-not-fit", "inference_endpoints[1] (big).model",
                           "140 GB of weights", "less", "serve a smaller model")


def plan(**changes):
    """A plan of two H200, with changes; ``memory`` and ``start`` change by key."""
    return made.changed({
        "name": "chat", "engine": "vllm", "engine_version": "0.24.0", "runtime": "docker",
        "model": {"path": "meta-llama/Llama-3.1-70B-Instruct"}, "context": 33712,
        "image": "vllm/vllm-openai:v0.24.0", "user": "", "way_in": False, "tls": "none",
        "tls_certificate": "", "public_url": "http://127.0.0.1:8000", "engine_port": 8000,
        "beside": False,
        "tensor_parallel": 2, "pipeline_parallel": 1, "gpus": [made.uuid(0), made.uuid(1)],
        "memory": {"weights_bytes": 50 * GIB, "kv_bytes": 20 * GIB, "activation_bytes": 5 * GIB,
                   "graph_bytes": 5 * GIB, "context_bytes": 10 * GIB, "total_bytes": 90 * GIB,
                   "limit_bytes": 100 * GIB, "error_bytes": GIB // 2, "kv_tokens": 131072,
                   "source": "computed"},
        "start": {"expected_s": 85, "limit_s": 600, "cached": False},
        "reasons": ["Tensor parallel 2: two devices hold it."],
    }, changes)


def shown(*plans, refusals=(), facts=None):
    return TABLE({"endpoints": list(plans), "refusals": list(refusals)}, facts or made.host())


def bar(text):
    return re.search(r"\[([a-z.?]{20})\]", text).group(1)


def test_a_plan_has_its_line_with_what_runs_where():
    text = shown(plan())
    head, row = text.splitlines()[:2]
    assert head.split() == ["endpoint", "engine", "devices", "TP", "context", "KV", "tokens"]
    assert re.split(r"\s{2,}", row) == [
        "chat", "vllm 0.24.0 (docker)", "2 x H200", "2", "33,712", "131,072"]
    assert "90.00 / 100.00  0.50  computed  85 s / 600 s" in text
    assert "chat: meta-llama/Llama-3.1-70B-Instruct" in text


@pytest.mark.parametrize(("changes", "wanted"), [
    ({}, "wwwwwwwwwwkkkkagcc.."),
    ({"weights_bytes": 0}, "kkkkagcc............"),
    ({"weights_bytes": 100 * GIB}, "wwwwwwwwwwwwwwwwwwww"),
    ({"weights_bytes": 500 * GIB}, "wwwwwwwwwwwwwwwwwwww"),
    ({"kv_bytes": None}, "wwwwwwwwwwagcc......"),
    ({"limit_bytes": 0}, "?" * 20),
    ({"limit_bytes": None}, "?" * 20)])
def test_a_bar_shows_what_the_memory_is_for(changes, wanted):
    assert bar(shown(plan(memory=changes))) == wanted


@given(st.lists(st.integers(0, 100 * GIB), min_size=5, max_size=5), st.integers(1, 400 * GIB))
def test_a_bar_has_its_parts_in_order_and_as_many_cells_as_they_take(parts, limit):
    keys = ("weights_bytes", "kv_bytes", "activation_bytes", "graph_bytes", "context_bytes")
    cells = bar(shown(plan(memory={**dict(zip(keys, parts)), "limit_bytes": limit})))
    assert re.fullmatch(r"w*k*a*g*c*\.*", cells)
    for letter, part in zip("wkagc", parts):
        # Cells are cut off where the parts are more than there is.
        assert cells.count(letter) <= part / limit * 20 + 1
    if sum(parts) <= limit:
        assert abs(20 - cells.count(".") - sum(parts) / limit * 20) <= 0.5 + 1e-9
        for letter, part in zip("wkagc", parts):
            assert abs(cells.count(letter) - part / limit * 20) <= 1


def test_columns_stand_under_each_other():
    text = shown(plan(), plan(name="a-much-longer-name", context=128, gpus=[], start={
        "expected_s": 5, "limit_s": 60, "cached": True}))
    first, _, second = text.split("\n\n")[:3]
    for table, heading, cell in ((first, "engine", "vllm"), (second, "memory", "[")):
        head, *rows = table.splitlines()
        assert [row.index(cell) for row in rows] == [head.index(heading)] * 2
    assert "(compiled before)" in second
    assert re.search(r"a-much-longer-name\s+vllm 0.24.0 \(docker\)\s+CPU", first)


def test_pipeline_stages_are_told_beside_tensor_parallel():
    assert "  2 x 3 PP  " in shown(plan(pipeline_parallel=3))


def test_devices_are_named_by_kind_and_uuid():
    cut = made.device(0, mig={"enabled": True, "slices": [made.piece(1), made.piece(2)]})
    other = made.device(1, name="Tesla V100-SXM2-32GB")
    text = shown(plan(gpus=["MIG-2", made.uuid(1), "GPU-gone"]), facts=made.host([cut, other]))
    assert "1 x MIG 2g.35gb + 1 x V100-SXM2-32GB + 1 x unknown" in text
    for one in ("MIG-2", made.uuid(1), "GPU-gone"):
        assert "  %s  " % one in text


def test_an_image_and_who_runs_in_it_are_told_and_nothing_of_a_program():
    assert "  image: vllm/vllm-openai:v0.24.0\n" in shown(plan())
    assert "  image: ours:1 as 2000:0\n" in shown(plan(image="ours:1", user="2000:0"))
    assert "image" not in shown(plan(image="", user=""))


@pytest.mark.parametrize(("changes", "words"), [
    ({"tls": "self-signed"}, ["certificate signed by itself", "old engine is stopped before"]),
    ({"tls": "given", "tls_certificate": "/etc/ssl/c.pem", "beside": True},
     ["/etc/ssl/c.pem", "while the old one serves"])])
def test_a_way_in_is_told_with_its_address_its_certificate_and_what_a_change_does(changes, words):
    text = shown(plan(way_in=True, public_url="https://192.0.2.1:8000", engine_port=18000,
                      **changes))
    told = " ".join(text.split())
    for word in [*words, "https://192.0.2.1:8000 with a key", "port 18000"]:
        assert word in told
    assert max(map(len, text.splitlines())) <= 100


def test_an_endpoint_on_loopback_has_no_way_in():
    assert "way in" not in shown(plan())
    assert "a change" not in shown(plan())


def test_usual_plans_fit_a_terminal():
    longest = "The engine is the newest of the catalog, and so on and on. " * 6
    text = shown(plan(reasons=[longest]), plan(
        name="embeddings", engine="llama_cpp", engine_version="2026.10.11549", runtime="native"),
        facts=made.host([made.device(0, name="NVIDIA A100-SXM4-40GB"),
                         made.device(1, name="NVIDIA A100-SXM4-40GB")]))
    assert max(map(len, text.splitlines())) <= 100
    # No word of the reason is lost.
    assert " ".join(text.split()).count(" ".join(longest.split())) == 1


def test_refusals_are_told_after_the_plans_with_what_to_change():
    text = shown(plan(), refusals=[REFUSAL])
    assert text.index("chat") < text.index("Refused:") < text.index("plan-does-not-fit")
    assert "change:   serve a smaller model" in text
    alone = shown(refusals=[REFUSAL])
    assert alone.startswith("Refused:\n")
    assert "KV" not in alone


def test_nothing_is_said_of_nothing():
    assert shown() == "Nothing is asked for."


def test_what_is_not_known_is_a_dash():
    text = shown(plan(memory={"kv_tokens": None, "error_bytes": None}))
    assert text.splitlines()[1].rstrip().endswith(" -")
    assert "90.00 / 100.00  -  computed" in text


@given(strategies.HOSTILE, strategies.HOSTILE, strategies.HOSTILE, strategies.HOSTILE)
def test_no_text_of_a_host_moves_the_cursor(name, path, reason, card):
    facts = made.host([made.device(0, name=card), made.device(1, name=card)])
    text = shown(plan(name=name, model={"path": path}, reasons=[reason]), facts=facts)
    assert all(one.isprintable() or one == "\n" for one in text)
    # A line break in a text makes no line.
    assert text.count("\n") == shown(plan(reasons=[reason])).count("\n")


@pytest.mark.parametrize(("revision", "said"), [
    ("main", "a/b (main, %s)" % COMMIT), (COMMIT, "a/b (%s)" % COMMIT)])
def test_of_a_repository_the_commit_is_told(revision, said):
    of = {"repo_id": "a/b", "revision": revision, "commit": COMMIT, "path": "/hub/x"}
    told = TABLE({"endpoints": [plan(model=of)], "refusals": []}, made.host())
    assert "chat: %s\n" % said in told
    assert "/hub/x" not in told
