# SPDX-License-Identifier: Apache-2.0
"""Bad input is found, all of it at once, and each finding names the variable to change."""

from __future__ import annotations

import ipaddress

import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st

from ansible.module_utils.firstlight.planning import requests

SECRET = "hunter2-not-for-logs"
WHERE = "inference_endpoints[0] (chat)"
GOOD = {"name": "chat", "model": "canary"}


def findings(asked):
    return requests.normalise(asked)[1]


def ids(asked):
    return [one["id"] for one in findings(asked)]


def test_the_least_that_is_asked_for_gets_the_contracts_defaults():
    [request], wrong = requests.normalise([GOOD])
    assert wrong == []
    defaults = {key: one for key, one in requests.DEFAULTS.items() if key != "api_key"}
    assert {**defaults, **GOOD}.items() <= request.items()
    assert "api_key" not in request
    assert request["where"] == WHERE
    assert request["model_kind"] == "canary"


def test_nothing_asked_for_is_nothing_wrong():
    assert requests.normalise([]) == ([], [])


GOOD_VALUES = {
    "a port as text": ("port", "8000", 8000),
    "the lowest port": ("port", 1, 1),
    "the highest port": ("port", 65535, 65535),
    "a context as text": ("context", " 4096 ", 4096),
    "an automatic context": ("context", "auto", "auto"),
    "one device": ("tensor_parallel", "1", 1),
    "no GPU": ("gpus", 0, 0),
    "no GPU as text": ("gpus", "0", 0),
    "a count of GPUs": ("gpus", "2", 2),
    "GPUs by UUID": ("gpus", ["GPU-1"], ["GPU-1"]),
    "numbers among extra arguments": ("extra_args", ["-t", 4, 0.5], ["-t", "4", "0.5"]),
    "an absolute path": ("model", "/srv/models/m.gguf", "/srv/models/m.gguf"),
    "a name of one character": ("name", "7", "7"),
    "the longest name": ("name", "a" * 40, "a" * 40),
    "an engine of the contract": ("engine", "vllm", "vllm"),
    "a version": ("engine_version", "0.24.0", "0.24.0"),
    "a version that is a build": ("engine_version", "11434", "11434"),
    "an early version": ("engine_version", "0.25.0rc1", "0.25.0rc1"),
    "every GPU": ("gpus", "all", "all"),
    "a repository id": ("model", "Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct"),
    "an address": ("model", "file:///srv/models/a%20b.gguf", "/srv/models/a b.gguf"),
    "an address of this host": ("model", "FILE://localhost/srv/m%2525.gguf", "/srv/m%25.gguf"),
    "an address with one slash": ("model", "file:/srv/m.gguf", "/srv/m.gguf"),
    "a runtime of the contract": ("runtime", "docker", "docker"),
}


@pytest.mark.parametrize("case", GOOD_VALUES)
def test_good_values_are_taken_and_put_into_one_shape(case):
    key, asked, taken = GOOD_VALUES[case]
    [request], wrong = requests.normalise([{**GOOD, key: asked}])
    assert wrong == []
    assert request[key] == taken
    assert type(request[key]) is type(taken)


BAD_VALUES = {
    "unknown engine": ("engine", "trtllm", "unknown-engine"),
    "engine of another type": ("engine", ["vllm"], "unknown-engine"),
    "unknown runtime": ("runtime", "podman", "unknown-runtime"),
    "runtime left empty": ("runtime", None, "unknown-runtime"),
    "no name": ("name", None, "missing-name"),
    "capital in the name": ("name", "Chat", "bad-name"),
    "line break after the name": ("name", "chat\n", "bad-name"),
    "name that leads out of its folder": ("name", "../chat", "bad-name"),
    "name that reads as a flag": ("name", "-chat", "bad-name"),
    "name too long": ("name", "a" * 41, "bad-name"),
    "name that is a number": ("name", 7, "bad-name"),
    "name that is a list": ("name", ["chat"], "bad-name"),
    "port 0": ("port", 0, "port-out-of-range"),
    "port below": ("port", -1, "port-out-of-range"),
    "port above": ("port", 65536, "port-out-of-range"),
    "port as text above": ("port", "70000", "port-out-of-range"),
    "port in words": ("port", "http", "port-out-of-range"),
    "port with a fraction": ("port", 8000.5, "port-out-of-range"),
    "port that is a truth value": ("port", True, "port-out-of-range"),
    "port that is a mapping": ("port", {}, "port-out-of-range"),
    "port left empty": ("port", None, "port-out-of-range"),
    "bind by name": ("bind", "localhost", "bad-bind"),
    "bind to loopback of IPv6": ("bind", "::1", "bind-loopback"),
    "bind to another loopback": ("bind", "127.0.0.2", "bind-loopback"),
    "bind to a group": ("bind", "224.0.0.1", "bad-bind"),
    "bind to one link": ("bind", "fe80::1%eth0", "bad-bind"),
    "bind to a network": ("bind", "192.0.2.0/24", "bad-bind"),
    "bind with a port": ("bind", "192.0.2.1:8000", "bad-bind"),
    "bind that is a number": ("bind", 2130706433, "bad-bind"),
    "bind that is a list": ("bind", ["127.0.0.1"], "bad-bind"),
    "bind left empty": ("bind", None, "bad-bind"),
    "no model": ("model", None, "missing-model"),
    "blank model": ("model", " ", "missing-model"),
    "model that is a number": ("model", 7, "missing-model"),
    "relative path": ("model", "models/chat.gguf", "model-path-not-absolute"),
    "path from here": ("model", "./chat.gguf", "model-path-not-absolute"),
    "path from home": ("model", "~/chat.gguf", "model-path-not-absolute"),
    "canary in capitals": ("model", "Canary", "model-path-not-absolute"),
    "repository id of three parts": ("model", "a/b/c", "model-path-not-absolute"),
    "file in a folder from here": ("model", "models/m.gguf", "model-path-not-absolute"),
    "line break in the path": ("model", "/srv/a\nb", "model-path-unprintable"),
    "escape in the path": ("model", "/srv/\x1b[2J", "model-path-unprintable"),
    "line break after a repository id": ("model", "a/b\n", "model-path-unprintable"),
    "context 0": ("context", 0, "bad-context"),
    "context in words": ("context", "long", "bad-context"),
    "context that is a truth value": ("context", True, "bad-context"),
    "context with a fraction": ("context", 1.5, "bad-context"),
    "tensor_parallel 0": ("tensor_parallel", 0, "bad-tensor-parallel"),
    "tensor_parallel in words": ("tensor_parallel", "all", "bad-tensor-parallel"),
    "gpus below 0": ("gpus", -1, "bad-gpus"),
    "gpus that is a truth value": ("gpus", False, "bad-gpus"),
    "gpus without one": ("gpus", [], "bad-gpus"),
    "gpus by index": ("gpus", [0], "bad-gpus"),
    "gpus in words": ("gpus", "every", "bad-gpus"),
    "version that YAML read as a number": ("engine_version", 0.11, "bad-engine-version"),
    "build that YAML read as a number": ("engine_version", 11434, "bad-engine-version"),
    "version in words": ("engine_version", "latest", "bad-engine-version"),
    "version that is a truth value": ("engine_version", True, "bad-engine-version"),
    "version with a line break": ("engine_version", "0.24.0\n", "bad-engine-version"),
    "version left empty": ("engine_version", None, "bad-engine-version"),
    "a key on loopback": ("api_key", SECRET, "api-key-unused"),
    "a key that is a number": ("api_key", 7, "bad-api-key"),
    "keys of which one is a mapping": ("api_key", [SECRET, {}], "bad-api-key"),
    "a certificate on loopback without its key": ("tls_key", "/etc/k.pem", "tls-unused"),
    "an inner port on loopback": ("engine_port", 9000, "engine-port-unused"),
    "an inner port that is none": ("engine_port", 0, "engine-port-out-of-range"),
    "an inner port in words": ("engine_port", "auto", "engine-port-out-of-range"),
    "a name like a way in's service": ("name", "way-in-chat", "bad-name"),
    "a revision of the canary": ("revision", "main", "revision-unused"),
    "an address of another host": ("model", "file://fileserver/m.gguf", "model-file-address"),
    "an address of no path": ("model", "file:m.gguf", "model-file-address"),
    "an address that is no text": ("model", "file:///srv/%ff", "model-file-address"),
    "an address with a line break": ("model", "file:///srv/a%0ab", "model-file-address"),
    "a repository id with two dashes": ("model", "org/a--b", "bad-repo-id"),
    "a repository id with two dots": ("model", "org/a..b", "bad-repo-id"),
    "a repository id that ends in a dot": ("model", "org/a.", "bad-repo-id"),
    "a repository id of git": ("model", "org/a.git", "bad-repo-id"),
    "a repository id that is too long": ("model", "org/" + "a" * 93, "bad-repo-id"),
    "no quantisation after a colon": ("model", "org/a:", "bad-quantisation"),
    "a path as a quantisation": ("model", "org/a:b/c", "bad-quantisation"),
    "a revision in the id": ("model", "org/a@main", "model-path-not-absolute"),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_a_bad_value_is_one_finding_that_names_its_variable(case):
    key, asked, id_ = BAD_VALUES[case]
    [found] = findings([{**GOOD, key: asked}])
    assert found["id"] == "endpoint-" + id_
    assert found["severity"] == "error"
    assert found["subject"].startswith("inference_endpoints[0]")
    assert found["subject"].endswith("." + key)
    assert found["subject"] in found["remedy"]
    assert found["wanted"]


# The way in: any address but loopback.

SERVED = {**GOOD, "bind": "192.0.2.10", "api_key": SECRET}


@pytest.mark.parametrize(("asked", "taken"), [
    ("0.0.0.0", "0.0.0.0"), ("::", "::"), ("192.0.2.10", "192.0.2.10"),
    ("2001:DB8:0:0::1", "2001:db8::1")])
@pytest.mark.parametrize("keys", [SECRET, [SECRET], [SECRET, SECRET + "-2"], (SECRET,)],
                         ids=["one", "a list of one", "two", "a tuple"])
def test_an_address_that_others_reach_is_served_with_a_key(asked, taken, keys):
    [request], wrong = requests.normalise([{**SERVED, "bind": asked, "api_key": keys}])
    assert wrong == []
    assert request["bind"] == taken
    assert SECRET not in repr(request)


@pytest.mark.parametrize("served", [{}, {"engine_port": "9000"}, {
    "tls_certificate": "/etc/ssl/c.pem", "tls_key": "/etc/ssl/k.pem"}])
def test_what_a_way_in_may_be_told_is_taken(served):
    [request], wrong = requests.normalise([{**SERVED, **served}])
    assert wrong == []
    assert request["engine_port"] == (9000 if "engine_port" in served else None)
    assert request["tls_key"] == served.get("tls_key")


BAD_WAYS_IN = {
    "no key": ({"api_key": None}, "api_key", "api-key-missing"),
    "a list without a key": ({"api_key": []}, "api_key", "api-key-missing"),
    "a short key": ({"api_key": "hunter2"}, "api_key", "bad-api-key"),
    "an empty key": ({"api_key": ""}, "api_key", "bad-api-key"),
    "a key with a blank": ({"api_key": SECRET + " "}, "api_key", "bad-api-key"),
    "a key with a line break": ({"api_key": SECRET + "\n"}, "api_key", "bad-api-key"),
    "a key that is not ASCII": ({"api_key": SECRET + "\xe9"}, "api_key", "bad-api-key"),
    "a short key among others": ({"api_key": [SECRET, "hunter2"]}, "api_key[1]", "bad-api-key"),
    "a key that is a number": ({"api_key": 12345678901234567}, "api_key", "bad-api-key"),
    "a list with a number": ({"api_key": [SECRET, 7]}, "api_key", "bad-api-key"),
    "a certificate without its key": ({"tls_certificate": "/c.pem"}, "tls_key", "tls-half"),
    "a certificate's key without it": ({"tls_key": "/k.pem"}, "tls_certificate", "tls-half"),
    "a certificate by a relative path": (
        {"tls_certificate": "c.pem", "tls_key": "/k.pem"}, "tls_certificate", "tls-path"),
    "a certificate with a line break": (
        {"tls_certificate": "/c\n", "tls_key": "/k.pem"}, "tls_certificate", "tls-path"),
    "a key in the place of its path": (
        {"tls_certificate": "/c.pem", "tls_key": SECRET}, "tls_key", "tls-path"),
    "the engine on the public port": ({"engine_port": 8000}, "engine_port", "duplicate-port"),
    "an inner port that is none": ({"engine_port": 65536}, "engine_port",
                                   "engine-port-out-of-range"),
}


@pytest.mark.parametrize("case", BAD_WAYS_IN)
def test_what_is_wrong_with_a_way_in_is_one_finding_without_a_key(case):
    changes, key, id_ = BAD_WAYS_IN[case]
    [found] = findings([{**SERVED, **changes}])
    assert found["id"] == "endpoint-" + id_
    assert found["subject"] == "%s.%s" % (WHERE, key)
    assert found["subject"] in found["remedy"]
    assert SECRET not in repr(found)
    assert "hunter2" not in repr(found)


def test_ports_behind_the_ways_in_are_for_one_endpoint_as_well():
    def clash(*entries):
        return [(one["id"], one["subject"]) for one in findings(
            [{**SERVED, "name": "e%d" % index, **one} for index, one in enumerate(entries)])]

    def at(index):
        return [("endpoint-duplicate-port", "inference_endpoints[%d] (e%d).engine_port"
                 % (index, index))]

    assert clash({"port": 8000}, {"port": 8002}) == []
    assert clash({"port": 8000}, {"port": 8001}) == at(1), "two ports are kept for each"
    assert clash({"port": 8000}, {"port": 18001}) == at(0), "that clients know a port goes first"
    assert clash({"port": 8000}, {"port": 8001, "engine_port": 9000}) == []
    assert clash({"port": 8000, "engine_port": 9000}, {"port": 8001, "engine_port": 9000}) == at(1)
    assert clash({"port": 65535}, {"port": 55535}) == at(0)


OWN = {**GOOD, "engine_python": "/opt/vllm/bin/python", "engine_version": "0.24.0"}


@pytest.mark.parametrize(("key", "engine"), [("engine_python", "vllm"),
                                             ("engine_binary", "llama_cpp")])
@pytest.mark.parametrize("runtime", ["auto", "native"])
def test_a_program_of_the_users_own_says_which_engine_it_is(key, engine, runtime):
    [request], wrong = requests.normalise([
        {**GOOD, key: "/opt/own", "engine_version": "1.2", "runtime": runtime}])
    assert wrong == []
    assert (request["engine"], request[key]) == (engine, "/opt/own")


OWN_ENGINES = {
    "without its version": ({"engine_version": "auto"}, "engine_version", "own-engine-version"),
    "in a container": ({"runtime": "docker"}, "runtime", "own-engine-in-container"),
    "of another engine": ({"engine": "llama_cpp"}, "engine", "own-engine-kind"),
    "by a relative path": ({"engine_python": "bin/python"}, "engine_python", "own-engine-path"),
    "by a path with a line break": ({"engine_python": "/a\nb"}, "engine_python",
                                    "own-engine-path"),
    "that is a list": ({"engine_python": ["/a"]}, "engine_python", "own-engine-path"),
    "without a name": ({"engine_python": ""}, "engine_python", "own-engine-path"),
}


@pytest.mark.parametrize("case", OWN_ENGINES)
def test_what_is_wrong_with_a_program_of_the_users_own_is_said(case):
    changes, key, id_ = OWN_ENGINES[case]
    [found] = findings([{**OWN, **changes}])
    assert found["id"] == "endpoint-" + id_
    assert found["subject"] == "%s.%s" % (WHERE, key)


def test_an_endpoint_has_one_program_of_the_users_own_at_most():
    assert ids([{**OWN, "engine_binary": "/opt/llama-server"}])[-1] == "endpoint-two-own-engines"


NEAREST = {
    ("engine", "llama.cpp"): "llama_cpp",
    ("engine", "vLLM"): "vllm",
    ("runtime", "Dockr"): "docker",
    ("runtime", "nativ"): "native",
}


@pytest.mark.parametrize(("key", "asked"), NEAREST)
def test_a_misspelt_choice_gets_the_nearest_one(key, asked):
    [found] = findings([{**GOOD, key: asked}])
    assert "did you mean %s?" % NEAREST[key, asked] in found["wanted"]


NEAREST_KEYS = {
    "apikey": "`api_key`", "Port": "`port`", "gpu": "`gpus`", "extra_arg": "`extra_args`",
    "tensor_parallel_size": "`tensor_parallel`", "host": "remove it", "max_model_len": "remove it",
    7: "remove it",
}


@pytest.mark.parametrize("key", NEAREST_KEYS)
def test_an_unknown_key_gets_the_nearest_known_one_and_only_a_near_one(key):
    [found] = findings([{**GOOD, key: "x"}])
    assert found["id"] == "endpoint-unknown-key"
    assert found["subject"] == WHERE
    assert found["remedy"].startswith("%s.%s: " % (WHERE, key))
    assert NEAREST_KEYS[key] in found["remedy"]


BAD_EXTRA_ARGS = {
    "text": ("--threads 4", "extra_args", "text"),
    "nothing": (None, "extra_args", "nothing"),
    "a mapping": ({"--threads": 4}, "extra_args", "a mapping"),
    "a list in the list": (["-t", ["4"]], "extra_args[1]", "a list"),
    "nothing in the list": ([None], "extra_args[0]", "nothing"),
    "a line break": (["-t", "4\n"], "extra_args[1]", "text with a control character"),
    "a NUL": (["\0"], "extra_args[0]", "text with a control character"),
}


@pytest.mark.parametrize("case", BAD_EXTRA_ARGS)
def test_bad_extra_arguments_are_named_one_by_one(case):
    asked, subject, found = BAD_EXTRA_ARGS[case]
    [one] = findings([{**GOOD, "extra_args": asked}])
    assert one["id"] == "endpoint-bad-extra-args"
    assert one["subject"] == "%s.%s" % (WHERE, subject)
    assert one["found"] == found


def test_an_extra_argument_that_yaml_read_as_a_truth_value_must_be_quoted():
    [one] = findings([{**GOOD, "extra_args": ["--flash-attn", True]}])
    assert one["subject"] == WHERE + ".extra_args[1]"
    assert "quote" in one["remedy"]


SHAPES = {
    "nothing": (None, "inference_endpoints", "endpoint-not-a-list"),
    "text": ("chat", "inference_endpoints", "endpoint-not-a-list"),
    "one mapping without a list": (GOOD, "inference_endpoints", "endpoint-not-a-list"),
    "text in the list": (["chat"], "inference_endpoints[0]", "endpoint-not-a-mapping"),
    "a list in the list": ([[GOOD]], "inference_endpoints[0]", "endpoint-not-a-mapping"),
    "nothing in the list": ([GOOD, None], "inference_endpoints[1]", "endpoint-not-a-mapping"),
}


@pytest.mark.parametrize("case", SHAPES)
def test_what_is_no_list_of_mappings_is_a_finding(case):
    asked, subject, id_ = SHAPES[case]
    [found] = findings(asked)
    assert (found["subject"], found["id"]) == (subject, id_)


def test_two_endpoints_need_a_name_and_a_port_each():
    asked = [{**GOOD, "port": 8000}, {**GOOD, "port": "8000"}]
    name, port = findings(asked)
    assert (name["id"], port["id"]) == ("endpoint-duplicate-name", "endpoint-duplicate-port")
    assert name["subject"] == "inference_endpoints[1] (chat).name"
    assert port["subject"] == "inference_endpoints[1] (chat).port"
    assert WHERE in name["found"]
    assert WHERE in port["found"]


def test_two_endpoints_that_leave_the_port_out_clash():
    assert ids([GOOD, {**GOOD, "name": "embed"}]) == ["endpoint-duplicate-port"]


def test_everything_wrong_is_found_in_one_call():
    asked = [
        {"name": "Chat", "model": "a/b/c", "engine": "x", "runtime": "y", "port": 0, "bind": "*",
         "api_key": "short", "revision": "abc1234", "context": 0, "tensor_parallel": 0, "gpus": -1,
         "extra_args": "-t", "prot": 1},
        "chat",
        {},
    ]
    expected = {
        "unknown-key", "bad-name", "model-path-not-absolute", "unknown-engine", "unknown-runtime",
        "port-out-of-range", "bad-bind", "bad-api-key", "bad-context", "bad-tensor-parallel",
        "bad-gpus", "bad-extra-args", "revision-short-hash", "not-a-mapping", "missing-name",
        "missing-model",
    }
    assert {one.replace("endpoint-", "", 1) for one in ids(asked)} == expected


LEAKS = {
    "a key in its place": [{**GOOD, "api_key": SECRET}],
    "a key of another type": [{**GOOD, "api_key": [SECRET]}],
    "a key under another name": [{**GOOD, "apikey": SECRET}],
    "a mapping where a list belongs": {**GOOD, "api_key": SECRET},
    "text where a list belongs": "name=chat api_key=" + SECRET,
    "a list where a mapping belongs": [[{"api_key": SECRET}]],
    "text where a mapping belongs": ["name=chat api_key=" + SECRET],
    "extra arguments as text": [{**GOOD, "extra_args": "--api-key " + SECRET}],
    "a line break in an extra argument": [{**GOOD, "extra_args": ["--api-key", SECRET + "\n"]}],
    "extra arguments as a mapping": [{**GOOD, "extra_args": {"--api-key": SECRET}}],
}


@pytest.mark.parametrize("case", LEAKS)
def test_a_key_is_in_no_finding(case):
    found = findings(LEAKS[case])
    assert found
    assert SECRET not in repr(found)


ESCAPE = "\x1b[2J"


REPOSITORIES = {
    "org/name": ("org/name", None), "org/name:Q8_0": ("org/name", "Q8_0"),
    "unsloth/x_1.5-GGUF:UD-Q4_K_XL": ("unsloth/x_1.5-GGUF", "UD-Q4_K_XL"),
}


@pytest.mark.parametrize("model", REPOSITORIES)
def test_a_repository_is_told_from_its_quantisation(model):
    [request], wrong = requests.normalise([{**GOOD, "model": model}])
    assert wrong == []
    assert request["model_kind"] == "repo"
    assert (request["repo_id"], request["quantisation"]) == REPOSITORIES[model]


def test_what_is_no_repository_has_none():
    for model in ("canary", "/srv/m.gguf"):
        [request], _ = requests.normalise([{**GOOD, "model": model}])
        assert (request["repo_id"], request["quantisation"]) == (None, None)


def test_a_quantisation_that_vllm_would_not_take_is_refused():
    [found] = findings([{**GOOD, "model": "org/name:Q8_0", "engine": "vllm"}])
    assert found["id"] == "endpoint-quantisation-unused"
    assert findings([{**GOOD, "model": "org/name:Q8_0", "engine": "llama_cpp"}]) == []


@pytest.mark.parametrize("relative", ["./models/chat", "a/b/c", "~/chat"])
def test_a_relative_path_says_what_engines_would_take_it_for(relative):
    [found] = findings([{**GOOD, "model": relative}])
    assert "Repo id must be in the form" in found["remedy"]
    assert "absolute" in found["remedy"]


def test_a_revision_that_is_in_the_id_is_shown_its_place():
    [found] = findings([{**GOOD, "model": "org/name@v1.0"}])
    assert "org/name; revision: v1.0" in found["remedy"]


REVISIONS = {
    "main": "main", "v1.0": "v1.0", "refs/pr/7": "refs/pr/7", "release+1": "release+1",
    "0123456789abcdef0123456789abcdef01234567": "0123456789abcdef0123456789abcdef01234567",
    "0123456789ABCDEF0123456789ABCDEF01234567": "0123456789abcdef0123456789abcdef01234567",
}


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_revision_belongs_to_a_repository(revision):
    asked = {**GOOD, "model": "org/name", "revision": revision}
    [request], wrong = requests.normalise([asked])
    assert wrong == []
    assert request["revision"] == REVISIONS[revision]
    for model in ("/srv/m.gguf", "canary"):
        [found] = findings([{**asked, "model": model}])
        assert found["id"] == "endpoint-revision-unused"


BAD_REVISIONS = {
    "a short hash": ("0123456", "revision-short-hash"),
    "a hash that lacks a digit": ("0123456789abcdef" * 2 + "0123456", "revision-short-hash"),
    "digits that YAML read as a number": (1234567, "bad-revision"),
    "two dots": ("a..b", "bad-revision"), "a way out": ("../main", "bad-revision"),
    "a blank": ("my branch", "bad-revision"), "a flag": ("-x", "bad-revision"),
    "nothing": ("", "bad-revision"), "a line break": ("main\n", "bad-revision"),
    "a lock of git": ("main.lock", "bad-revision"), "a list": (["main"], "bad-revision"),
}


@pytest.mark.parametrize("case", BAD_REVISIONS)
def test_a_revision_that_no_hub_finds_is_refused(case):
    revision, id_ = BAD_REVISIONS[case]
    [found] = findings([{**GOOD, "model": "org/name", "revision": revision}])
    assert found["id"] == "endpoint-" + id_
    assert found["subject"].endswith(".revision")


def test_a_short_hash_is_refused_with_why():
    [found] = findings([{**GOOD, "model": "org/name", "revision": "0123456"}])
    assert "7 of 40" in found["found"]
    assert "never complete a short hash" in found["wanted"]


# The map of prefixes.

MAP = {"/ceph": "/fsx", "/ceph/private/": "/mnt/private", "/home": "/ceph"}
MAPPED = {
    "a prefix": ("/ceph/models/m.gguf", "/fsx/models/m.gguf"),
    "the longest that fits": ("/ceph/private/m.gguf", "/mnt/private/m.gguf"),
    "once": ("/home/ann/m.gguf", "/ceph/ann/m.gguf"),
    "whole parts of a path alone": ("/cephalus/m.gguf", "/cephalus/m.gguf"),
    "not in the middle": ("/srv/ceph/m.gguf", "/srv/ceph/m.gguf"),
    "itself": ("/ceph", "/fsx"), "itself as a folder": ("/ceph/", "/fsx/"),
    "an address": ("file:///ceph/a%20b", "/fsx/a b"),
    "two slashes": ("//ceph//m.gguf", "/fsx/m.gguf"),
    "a way round": ("/a/../ceph/./m.gguf", "/fsx/m.gguf"),
    "a way out": ("/ceph/../m.gguf", "/ceph/../m.gguf"),
}


@pytest.mark.parametrize("case", MAPPED)
def test_a_path_is_mapped(case):
    asked, wanted = MAPPED[case]
    [request], wrong = requests.normalise([{**GOOD, "model": asked}], MAP)
    assert (wrong, request["model"], request["model_kind"]) == ([], wanted, "path")
    assert request["asked_model"] == asked


def test_every_path_of_an_endpoint_is_mapped_and_nothing_else():
    [request], wrong = requests.normalise([{
        **GOOD, "model": "ceph/name", "bind": "192.0.2.10", "api_key": "/ceph/" + "k" * 16,
        "engine": "vllm", "engine_version": "0.24.0", "engine_python": "/ceph/bin/python",
        "tls_certificate": "/ceph/c.pem", "tls_key": "/ceph/k.pem", "extra_args": [
            "--chat-template", "/ceph/x.jinja", "--tokenizer=/ceph/t", "--x={\"a\": \"/ceph\"}",
            "--y=a=/ceph/z", "sql=/ceph/lora", "{\"a=\": \"b=/ceph\"}", "http://a/?q=/ceph",
            "/cephalus", 7]}], MAP)
    assert wrong == []
    assert {key: request[key] for key in (
        "model", "engine_python", "tls_certificate", "tls_key", "extra_args")} == {
        "model": "ceph/name", "engine_python": "/fsx/bin/python", "tls_certificate": "/fsx/c.pem",
        "tls_key": "/fsx/k.pem", "extra_args": [
            "--chat-template", "/fsx/x.jinja", "--tokenizer=/fsx/t", "--x={\"a\": \"/ceph\"}",
            "--y=a=/fsx/z", "sql=/fsx/lora", "{\"a=\": \"b=/ceph\"}", "http://a/?q=/ceph",
            "/cephalus", "7"]}


@pytest.mark.parametrize("path_map", [None, {}])
def test_without_a_map_paths_are_as_they_are_asked_for(path_map):
    [request], wrong = requests.normalise([{**GOOD, "model": "/ceph/m"}], path_map)
    assert (wrong, request["model"]) == ([], "/ceph/m")


def test_the_root_can_be_mapped():
    [request], _ = requests.normalise([{**GOOD, "model": "/srv/m"}], {"/": "/host"})
    assert request["model"] == "/host/srv/m"
    [request], _ = requests.normalise([{**GOOD, "model": "/host/srv/m"}], {"/host": "/"})
    assert request["model"] == "/srv/m"


@pytest.mark.parametrize("path_map", [
    "/ceph", ["/ceph"], {"ceph": "/fsx"}, {"/ceph": "fsx"}, {"/ceph": None}, {1: "/fsx"},
    {"/ceph": "/f\nsx"}])
def test_a_map_that_is_none_is_a_finding_that_names_its_variable(path_map):
    _, [found] = requests.normalise([GOOD], path_map)
    assert found["id"].startswith("path-map-")
    assert found["subject"] == "model_snapshot_path_map"


@pytest.mark.parametrize("asked", [
    [{"name": ESCAPE, "model": "canary"}], [{**GOOD, ESCAPE: 1}],
    [{"name": ESCAPE, "model": "canary", "port": port} for port in (1, 2)],
], ids=["in a name", "in a key", "in a name that is there twice"])
def test_an_escape_does_not_reach_the_terminal(asked):
    found = findings(asked)
    assert all("\x1b" not in text for one in found for text in map(str, one.values()))


@given(strategies.ASKED)
def test_no_input_raises_and_what_passes_is_in_order(asked):
    taken, wrong = requests.normalise(asked)
    if wrong:
        assert all(one["subject"].startswith(requests.VARIABLE) for one in wrong)
        return
    assert len(taken) == len(asked)
    for request in taken:
        assert requests.NAME.fullmatch(request["name"])
        assert request["model_kind"] == ("canary" if request["model"] == "canary" else "path" if (
            request["model"].startswith("/")) else "repo")
        assert type(request["port"]) is int
        assert 1 <= request["port"] <= 65535
        assert str(ipaddress.ip_address(request["bind"])) == request["bind"]
        assert "api_key" not in request
        assert all(one.isprintable() for one in request["extra_args"])


@given(strategies.GOOD_ENTRY)
def test_good_input_has_no_finding_and_stays_as_it_is(entry):
    [request], wrong = requests.normalise([entry])
    assert wrong == []
    again = {key: request.get(key, entry.get(key)) for key in requests.DEFAULTS}
    assert requests.normalise([again]) == ([request], [])


@given(strategies.GOOD_ENTRY, st.sampled_from(sorted(BAD_VALUES)))
def test_one_bad_value_in_good_input_is_found(entry, case):
    key, asked, id_ = BAD_VALUES[case]
    assert ids([{**entry, key: asked}]) == ["endpoint-" + id_]
