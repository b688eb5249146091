# SPDX-License-Identifier: Apache-2.0
"""Requests held against a host: what of it stops them is said before anything is touched."""

from __future__ import annotations

import json
import pathlib
import shlex

import pytest
import yaml

from ansible.module_utils.firstlight.findings import finding
from ansible.module_utils.firstlight.planning import judge, requests

ROOT = "/var/lib/firstlight"
OUT_OF_MEMORY = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
SIGNATURES = yaml.safe_load(
    (pathlib.Path(__file__).resolve().parent.parent.parent / "catalog" / "log_signatures.yml")
    .read_text())
PATH = "/srv/models/m.gguf"


def state(**changes):
    return {"root": ROOT, "manager": "systemd", "uid": 0, "ports": {}, "endpoints": {},
            "strangers": [],
            "python": {"version": "3.11.2", "venv": True}, **changes}


def judged(state, models=(), **request):
    taken, wrong = requests.normalise([{"name": "chat", "model": "canary", **request}])
    assert wrong == []
    return judge.against_host(taken, state, {"findings": list(models)})


def holder(**changes):
    return {"8000": {"pid": 812, "command": "nginx -g daemon off;", "user": "www-data",
                     "endpoint": None, "root": None, **changes}}


def test_a_fit_host_has_no_finding():
    assert judged(state()) == []


def test_a_port_held_by_another_names_pid_user_and_command():
    [found] = judged(state(ports=holder()))
    assert found["id"] == "port-held"
    assert found["subject"] == "inference_endpoints[0] (chat).port"
    assert "pid 812 of www-data: nginx -g daemon off;" in found["found"]
    assert found["subject"] in found["remedy"]


def test_the_way_out_of_a_port_that_an_endpoint_holds_is_to_take_it_down():
    [found] = judged(state(ports=holder(endpoint="embed", root=ROOT)))
    assert "playbooks/teardown.yml" in found["remedy"]
    assert '"embed"' in found["remedy"]
    assert "stop that process" not in found["remedy"]


OTHERS_WORDS = {
    "a quote": {"endpoint": "embed", "root": "/r' ; reboot '"},
    "a template": {"endpoint": "embed", "root": "/{{ lookup('pipe', 'reboot') }}"},
    "a name that is none of ours": {"endpoint": "../x", "root": ROOT},
}


@pytest.mark.parametrize("case", OTHERS_WORDS)
def test_what_a_process_says_of_itself_is_in_no_command_that_someone_will_type(case):
    [found] = judged(state(ports=holder(**OTHERS_WORDS[case])))
    assert found["remedy"].endswith("or stop that process")
    assert OTHERS_WORDS[case]["root"] in found["found"]


def test_a_root_with_a_quote_is_one_word_of_the_command_that_is_offered():
    serving = {"state": "running", "passport": None, "restarts": 0}
    [found, _] = judged(state(root="/srv/ann's", endpoints={"embed": serving}))
    assert json.loads(shlex.split(found["remedy"])[-1]) == {
        "firstlight_root": "/srv/ann's", "inference_endpoint_teardown_names": ["embed"]}


@pytest.mark.parametrize("name", [["chat"], {}, None, 7])
def test_a_name_that_is_none_does_not_hide_what_is_wrong_with_the_host(name):
    taken, wrong = requests.normalise([{"name": name, "model": "canary"}])
    assert wrong
    serving = {"state": "running", "passport": None, "restarts": 0}
    host = state(ports=holder(), endpoints={"embed": serving})
    found = judge.against_host(taken, host, {"findings": []})
    assert [one["id"] for one in found] == ["port-held", "endpoint-unasked"]


def test_an_endpoint_that_nobody_asks_for_is_said_to_serve_and_stops_nothing():
    serving = {"state": "running", "restarts": 0,
               "passport": {"plan": {"url": "http://127.0.0.1:8001"}}}
    gone = {"state": "absent", "passport": None, "restarts": 0}
    [found] = judged(state(endpoints={"embed": serving, "chat": serving, "old": gone}))
    assert (found["id"], found["severity"]) == ("endpoint-unasked", "warning")
    assert found["subject"] == "embed"
    assert "http://127.0.0.1:8001" in found["found"]


def test_a_root_that_holds_what_is_not_ours_is_refused():
    [found] = judged(state(root="/var", strangers=["backups", "log", "mail"]))
    assert (found["id"], found["severity"]) == ("root-not-ours", "error")
    assert found["found"] == "/var holds backups, log, mail"


def test_a_port_held_on_another_number_is_no_matter():
    assert judged(state(ports=holder()), port=8001) == []


def test_a_port_held_by_our_endpoint_of_that_name_is_ours():
    assert judged(state(ports=holder(endpoint="chat", root=ROOT))) == []


@pytest.mark.parametrize(("endpoint", "root"), [("embed", ROOT), ("chat", "/home/ann/firstlight")])
def test_a_port_held_by_another_endpoint_or_root_names_it(endpoint, root):
    [found] = judged(state(ports=holder(endpoint=endpoint, root=root)))
    assert "(Firstlight endpoint %s under %s)" % (endpoint, root) in found["found"]


def test_a_holder_that_this_user_cannot_see_is_said_to_be_that():
    [found] = judged(state(uid=1000, ports=holder(pid=None, command=None)))
    assert "a process of www-data" in found["found"]
    assert "not visible to uid 1000" in found["found"]
    assert "None" not in found["found"]


def test_a_finding_about_the_model_names_the_variable_and_the_path():
    missing = finding("model-missing", PATH, "no such file", "a model", "set `model`")
    other = finding("model-missing", "/other", "no such file", "a model", "set `model`")
    [found] = judged(state(), [missing, other], model=PATH)
    assert found["id"] == "model-missing"
    assert found["subject"] == "inference_endpoints[0] (chat).model"
    assert found["found"] == PATH + ": no such file"


def test_a_finding_that_names_the_path_itself_does_not_name_it_twice():
    damaged = finding("model-damaged", PATH, PATH + ": truncated", "a model", "fetch it again")
    [found] = judged(state(), [damaged], model=PATH)
    assert found["found"] == PATH + ": truncated"


def test_of_a_repository_the_host_says_nothing():
    missing = finding("model-missing", "a/b", "no such file", "a model", "set `model`")
    assert judged(state(), [missing], model="a/b") == []


def test_a_note_on_a_path_stays_a_note():
    note = finding("model-short-hash", PATH, "abc stands for abcd", "40 digits", "set `model`",
                   severity="warning")
    damaged = finding("model-damaged", PATH, "truncated", "a model", "fetch it again")
    found = judged(state(), [note, damaged], model=PATH)
    assert [(one["id"], one["severity"]) for one in found] == [
        ("model-short-hash", "warning"), ("model-damaged", "error")]
    assert {one["subject"] for one in found} == {"inference_endpoints[0] (chat).model"}


def test_the_canary_needs_no_file():
    missing = finding("model-missing", "canary", "no such file", "a model", "set `model`")
    assert judged(state(), [missing]) == []


LONGEST = judge.SOCKET_PATH_LIMIT - len("/supervisor/supervisor.sock.4194304")
ROOTS = {
    "the longest for a socket": ("/" + "r" * (LONGEST - 1), "supervisor", []),
    "one byte too long": ("/" + "r" * LONGEST, "supervisor", ["root-too-long"]),
    "bytes count, not characters": ("/" + "é" * (LONGEST // 2 + 1), "supervisor",
                                    ["root-too-long"]),
    "systemd has no socket of ours": ("/" + "r" * 200, "systemd", []),
    "a space and marks": ("/srv/my data/_a.b@c+d-e", "supervisor", []),
    "a relative path": ("firstlight", "systemd", ["root-unusable"]),
    "a specifier of units": ("/srv/%h", "systemd", ["root-unusable"]),
    "a quote": ('/srv/"a"', "systemd", ["root-unusable"]),
    "a comment of INI files": ("/srv/a;b", "supervisor", ["root-unusable"]),
    "a variable": ("/srv/$HOME", "systemd", ["root-unusable"]),
    "a line break": ("/srv/a\nb", "systemd", ["root-unusable"]),
    "a line break at the end": ("/srv/a\n", "systemd", ["root-unusable"]),
}


@pytest.mark.parametrize("case", ROOTS)
def test_the_root_must_fit_what_names_it(case):
    root, manager, ids = ROOTS[case]
    found = judged(state(root=root, manager=manager))
    assert [one["id"] for one in found] == ids
    assert all("firstlight_root" in one["remedy"] for one in found)


def test_a_python_without_venv_needs_root_once_and_is_no_matter_to_root():
    python = {"version": "3.11.2", "venv": False}
    [found] = judged(state(uid=1000, python=python))
    assert found["id"] == "python-without-venv"
    assert found["needs_root"]
    assert "python3-venv" in found["remedy"]
    assert judged(state(uid=0, python=python)) == []


def test_everything_is_found_in_one_call():
    host = state(root="bad;root" + "r" * 200, manager="supervisor", uid=1000, ports=holder(),
                 python={"version": "3.9.2", "venv": False})
    missing = finding("model-missing", PATH, "no such file", "a model", "set `model`")
    assert {one["id"] for one in judged(host, [missing], model=PATH)} == {
        "port-held", "model-missing", "root-unusable", "root-too-long", "python-without-venv"}


@pytest.mark.parametrize("how, said", [
    ({"state": "failed", "detail": "exit code 1", "restarts": 0}, "failed (exit code 1)"),
    ({"state": "running", "detail": "running after 7 restarts", "restarts": 7},
     "started again 7 times"),
])
def test_an_engine_that_crashes_is_said_with_the_end_of_its_log(how, said):
    crashed = {"passport": None, "log": OUT_OF_MEMORY, **how}
    found = judge.against_host([], state(endpoints={"chat": crashed}), {"findings": []}, SIGNATURES)
    [told] = [one for one in found if one["id"] == "endpoint-crashed"]
    assert told["severity"] == "warning"
    assert said in told["found"]
    assert told["evidence"] == crashed["log"]
    assert "; its log says: " in told["found"], "the cause, not only the log"


def test_what_harms_nobody_is_no_cause_of_a_crash():
    log = "ERROR: External init callback must run in same thread as registerClient (1 != 2)"
    crashed = {"passport": None, "log": log, "state": "failed", "detail": "", "restarts": 3}
    found = judge.against_host([], state(endpoints={"chat": crashed}), {"findings": []}, SIGNATURES)
    [told] = [one for one in found if one["id"] == "endpoint-crashed"]
    assert "its log says" not in told["found"]
    assert told["remedy"].startswith("read its log")
