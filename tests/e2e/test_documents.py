# SPDX-License-Identifier: Apache-2.0
"""Every command of the documents is run, as a reader would, and prints what the pages show.

One copy of the checkout, one host, one story: each stage takes the host as the one before left it.
The host is this machine with a root and a port of its own. What the documents name and this machine
does not have is replaced, in the inventory, in commands and in what they are said to print, by one
table (``World.stands_for``); beyond that the inventory is the block of the README, and the commands
are the pages' own. A command that cannot be run here is in ``NOT_RUN``, with the reason. One that
is in neither fails :func:`test_every_command_is_run_or_has_a_reason`.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile

import checkout
import documents
import hub
import pytest
import yaml

from ansible.module_utils.firstlight import canary, processes

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
ROOT = pathlib.Path(__file__).resolve().parents[2]
HOST = "gpu1.example.org"
MODEL = "firstlight/canary-gguf"
# Other hosts of the documents, which here are the same one.
ALIASES = ("edge1.example.org", "cpu1.example.org")
MINE = "inventories/mine"

DEMO = "test_demo.py runs it, in a copy of its own"
SUITE = "it is what runs this test, or one beside it"
BENCH = "it takes a Docker engine and half an hour, and is no part of make test"
HOSTS_DOCKER = "it changes the Docker engine of the machine, which is not this test's to restart"
NOT_RUN = {
    "make demo": DEMO,
    "make down": DEMO,
    "make .venv/ready": DEMO + " (`make demo` begins with it)",
    "make .venv-dev/ready": "the environment that this test runs in",
    "make test": SUITE,
    "make bench-fleet": BENCH,
    "python tests/bench/fleet.py --sizes 5 --runs 1": BENCH,
    "python tests/bench/fleet.py --sizes 5 50 --options 20": BENCH,
    "pytest -q tests/contract/test_planner_catalogs.py tests/contract/test_catalog.py": SUITE,
    "pytest -q tests/unit/test_releases.py tests/unit/test_plan_cases.py": SUITE,
    "ansible-vault create inventories/mine/group_vars/all/vault.yml": "it asks for a password",
    "mkdir -p /etc/systemd/system/docker.service.d": HOSTS_DOCKER,
    r"printf [Service]\nEnvironmentFile=-%s/network/environment\n /var/lib/firstlight "
    "> /etc/systemd/system/docker.service.d/firstlight-proxy.conf": HOSTS_DOCKER,
    "systemctl daemon-reload && systemctl restart docker": HOSTS_DOCKER,
}


@dataclasses.dataclass
class Step:
    """A command of the documents, and what is to be seen of it.

    :param command: in its one spelling, see :func:`documents.key`. Of commands that differ by a
        host behind ``-l`` one is run: here all hosts are the same.
    :param status: its exit status.
    :param prints: texts that it prints, beside what the documents show.
    :param exact: whether the figures that the documents show are those that come.
    :param changed: whether the play recap counts changes; ``None`` where that is no matter.
    :param after: commands of the same block that set up the shell that this one runs in.
    :param needs: a program without which it is not run.
    :param before: called with the world before the stage of this step.
    :param holds: called with the world and what was printed, to assert more.
    """

    command: str
    status: int = 0
    prints: tuple = ()
    exact: bool = False
    changed: bool | None = None
    after: tuple = ()
    needs: str = ""
    before: object = None
    holds: object = None


def site(words="", **more):
    return Step(("ansible-playbook site.yml -i %s %s" % (MINE, words)).strip(), **more)


def play(name, words="", **more):
    return Step(
        ("ansible-playbook playbooks/%s.yml -i %s %s" % (name, MINE, words)).strip(), **more)


def profile(name, **more):
    return Step("ansible-playbook playbooks/plan.yml -e deployment_plan_profile="
                "inventories/example/profiles/%s.yml" % name, exact=True, **more)


# --- What steps assert -----------------------------------------------------------------------


def serves(world, _):
    """The endpoint answers, with the canary's words: the model of this world is the canary."""
    curl = subprocess.run(
        ["curl", "-s", "http://127.0.0.1:%d/v1/completions" % world.port, "-H",
         "Content-Type: application/json", "-d", json.dumps({
             "model": MODEL, "prompt": canary.oracle()["prompt"], "temperature": 0,
             "max_tokens": canary.oracle()["max_tokens"]})],
        stdout=subprocess.PIPE, timeout=60, check=True)
    assert json.loads(curl.stdout)["choices"][0]["text"] == canary.oracle()["completion"]


def serves_nothing_yet(world, _):
    assert not (world.root / "endpoints").exists()


def activates(_, printed):
    """The environment of this test stands for the one that ``make`` would have made there."""
    assert printed.splitlines()[-1] == sys.prefix + "/bin/ansible-playbook"


def answers(_, printed):
    assert json.loads(printed)["choices"][0]["message"]["content"]


def lists_the_tags_of_the_reference(world, printed):
    page = (world.clone / "docs/reference/playbooks.md").read_text()
    section = re.search(r"\n## site\n(.*?)(\n## |\Z)", page, re.DOTALL).group(1)
    tags = re.search(r"TASK TAGS: \[(.*)\]", printed).group(1).split(", ")
    rows = [line.rsplit("|", 2)[1] for line in section.splitlines() if line.startswith("| ")]
    assert set(tags) - {"always"} == set(re.findall("`([a-z_]+)`", " ".join(rows))) - {"always"}


def keeps_the_doctors_word(world, _):
    kept = json.loads((world.clone / "doctor.json").read_text())
    assert kept[HOST]["verdict"] == "ok"


def has_context(tokens):
    def holds(world, printed):
        passport = json.loads((world.root / "endpoints/chat/passport.json").read_text())
        assert passport["plan"]["context"] == tokens
        serves(world, printed)
    return holds


def shows_eight_cards(_, printed):
    facts = yaml.safe_load(printed.partition("=>")[2])["ansible_facts"]["gpu_host"]
    assert [one["name"] for one in facts["devices"]] == ["NVIDIA H100 80GB HBM3"] * 8


def has_pages(world, _):
    for name in ("index.html", "report.md", "report.json"):
        assert HOST in (world.clone / "reports" / name).read_text()


def is_gone(world, _):
    assert not world.root.exists()
    assert processes.holders([world.port]) == {}


def upgraded(world):
    """For an upgrade: what is asked for is another endpoint."""
    world.write_inventory(context=1024)


def upgraded_no_more(world):
    world.write_inventory()


# --- The story -------------------------------------------------------------------------------

# The steps of a stage change nothing that another of them looks at, and two run at a time.
STORY = [
    [Step("source .venv/bin/activate", holds=activates),
     Step("source .venv-dev/bin/activate"),
     Step("export ANSIBLE_CONFIG=$PWD/ansible.cfg LC_ALL=C.UTF-8"),
     Step("make help", prints=("make demo", "make test")),
     Step("ansible-doc -t callback progress", prints=("PROGRESS",)),
     Step("ansible localhost -m gpu_facts", holds=shows_eight_cards,
          after=("eval $(python3 tests/rig/mock_nvml h100-x8-fabric-down /tmp/h100)",)),
     Step("ansible-playbook playbooks/plan.yml -i inventories/example", exact=True),
     Step("ansible-playbook playbooks/plan.yml -i inventories/example -l edge1.example.org",
          exact=True),
     profile("a100-40-x4-llama-70b"),
     profile("orin-nx-16-awq", status=2, prints=("Nothing was touched",)),
     site("--list-tags", holds=lists_the_tags_of_the_reference),
     site("-t preflight --check", holds=serves_nothing_yet),
     play("plan", holds=serves_nothing_yet),
     site("--check --diff", holds=serves_nothing_yet)],
    [play("prefetch", changed=True)],
    [site("", changed=True, prints=("chat on %s: proven" % HOST,), holds=serves)],
    [play("doctor", "-l " + HOST, prints=(HOST + " is ok",), changed=False),
     play("doctor", "-v", changed=False),
     Step("ANSIBLE_STDOUT_CALLBACK=ansible.builtin.default ansible-playbook playbooks/doctor.yml "
          "-i inventories/mine", prints=("TASK [host_health : ",), changed=False),
     play("doctor", "-e host_health_json=doctor.json -e host_health_strict=true",
          holds=keeps_the_doctors_word),
     play("diagnose", changed=False),
     play("diagnose", "-e endpoint_diagnosis_log=/var/log/vllm.log", changed=False,
          prints=("ldconfig-cache-missing",)),
     play("repair", "--check", changed=False),
     play("teardown", "--check", prints=("would be removed on " + HOST,)),
     site("-t prebuilt_wheel --check", changed=False),
     site("-t network_access --check --diff", changed=False),
     Step("curl -sk https://gpu1.example.org:8000/v1/chat/completions "
          "-H Authorization: Bearer $CHAT_KEY -H Content-Type: application/json "
          '-d {"model": "meta-llama/Llama-3.3-70B-Instruct", "messages": '
          '[{"role": "user", "content": "Hello"}]}', holds=answers)],
    [play("repair", changed=False)],
    [play("repair", "-t linker_cache", changed=False),
     play("repair", "-t persistence", changed=False)],
    [play("repair", "-t page_cache", changed=False),
     play("repair", "-t swap", changed=False)],
    [play("repair", "-t power_mode", changed=False),
     play("prefetch", "-e model_snapshot_seed=localhost", changed=False)],
    [site("-t network_access -e network_access_hook=/etc/network_turbo",
          prints=("HF_ENDPOINT",))],
    [site("-t network_access")],
    [Step(". /var/lib/firstlight/network/env.sh", holds=lambda world, printed: None)],
    [Step("ansible all -i inventories/mine --become -m snapshot_server "
          "-a root=/var/lib/firstlight state=stopped", prints=(HOST,)),
     site("-t endpoint_smoke", changed=False),
     site("-t verify", changed=False)],
    [site("-e firstlight_offline=true", prints=("chat on %s: proven" % HOST,), holds=serves)],
    [site("-e model_snapshot_verify=full", prints=("chat on %s: proven" % HOST,))],
    [site("-e firstlight_serial=20% -e firstlight_max_fail_percentage=10", changed=False)],
    [play("benchmark", changed=True)],
    [play("benchmark", '-e {"endpoint_benchmark_names": ["chat"]}')],
    [play("profile", "-e endpoint_profile_consent=true", status=2, holds=serves,
          prints=("[error] profiler-none: endpoint chat", "No endpoint was touched"))],
    [site("-l " + HOST + " --check --diff", before=upgraded, holds=has_context(2048))],
    [site("-l " + HOST, changed=True, holds=has_context(1024))],
    [play("rollback", '-e {"inference_endpoint_rollback_names": ["chat"]}', changed=True,
          before=upgraded_no_more, holds=has_context(2048))],
    [Step("ansible-playbook playbooks/report.yml", holds=has_pages)],
    [Step("jq -r .hosts[] | select(.state != \"proven\") | [.name, .state, .stage, .brief] | @tsv "
          "reports/report.json", needs="jq")],
    [Step('ansible-playbook playbooks/report.yml --extra-vars '
          '{"host_report_forget": ["gpu-7.example.org"]}')],
    [play("teardown", '-e {"inference_endpoint_teardown_names": ["chat"]}', changed=True,
          prints=("removed on " + HOST,))],
    [play("teardown", holds=is_gone)],
]


def without_host(command):
    """The command without the host behind ``-l``, of which there is one here."""
    if "inventories/example" in command:
        return command
    return re.sub(r" -l (%s)\b" % "|".join(map(re.escape, (HOST, *ALIASES))), "", command)


# --- The world -------------------------------------------------------------------------------


class World:
    """A copy of the checkout, a hub, and this machine as the one host."""

    def __init__(self, folder, hub_url):
        self.folder, self.hub = folder, hub_url
        self.clone, self.root = folder / "clone", folder / "root"
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.port = server.getsockname()[1]
        self.ran, self.begun = {}, set()
        checkout.copy(self.clone)
        # Its programs alone: whoever made the environment anew here would not clear that one.
        for name in (".venv", ".venv-dev"):
            (self.clone / name).mkdir()
            (self.clone / name / "bin").symlink_to(sys.prefix + "/bin")
        (folder / "vllm.log").write_text(LOG)
        (folder / "network_turbo").write_text("export HF_ENDPOINT=%s\n" % hub_url)
        self.write_inventory()

    @property
    def stands_for(self):
        """What the documents name, what stands for it here, and why."""
        return [
            # Only a way in speaks TLS, and it takes root and HAProxy; keys are for it alone.
            ("https://%s:8000" % HOST, "http://127.0.0.1:%d" % self.port),
            # The port of the documents is anybody's.
            ("http://127.0.0.1:8000", "http://127.0.0.1:%d" % self.port),
            # Models of a hub far away are the canary on a hub that is here.
            ("Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q8_0", MODEL + ":Q8_0"),
            ("meta-llama/Llama-3.3-70B-Instruct", MODEL),
            # What is of the machine is of a folder.
            ("/var/lib/firstlight", str(self.root)),
            ("/etc/network_turbo", str(self.folder / "network_turbo")),
            ("/var/log/vllm.log", str(self.folder / "vllm.log")),
            ("/tmp/h100", str(self.folder / "h100")),
            # The host is this machine, and who runs the test.
            *((alias, HOST) for alias in ALIASES),
            (" --become", ""),
        ]

    def here(self, text):
        """A text of the documents as it is here; the example of a fleet is as it is."""
        if "inventories/example" in text:
            return text
        for named, stands in self.stands_for:
            text = text.replace(named, stands)
        return text

    def write_inventory(self, **keys):
        """The README's inventory, with this machine as its one host."""
        block = next(one for one in documents.blocks("README.md", (ROOT / "README.md").read_text())
                     if one.language == "yaml" and one.text.startswith("all:"))
        inventory = yaml.safe_load(self.here(block.text))
        assert HOST in inventory["all"]["hosts"]
        inventory["all"]["hosts"] = {HOST: {
            "ansible_connection": "local", "ansible_python_interpreter": sys.executable,
            "firstlight_root": str(self.root)}}
        variables = inventory["all"]["vars"]
        variables["ansible_become"] = False
        for endpoint in variables["inference_endpoints"]:
            endpoint.update(port=self.port, **keys)
        variables["network_access_hub_endpoints"] = [{"url": self.hub}]
        # What is measured is no matter here.
        variables.update(endpoint_benchmark_concurrencies=[1], endpoint_benchmark_output_tokens=8,
                         endpoint_smoke_streams=1)
        folder = self.clone / MINE
        folder.mkdir(exist_ok=True)
        (folder / "hosts.yml").write_text(yaml.safe_dump(inventory))

    def run(self, texts):
        """Run commands in one shell; gives the status of the last and what they printed."""
        env = {name: value for name, value in os.environ.items()
               if not name.startswith(("MAKE", "HF_", "FIRSTLIGHT_", "ANSIBLE_"))}
        env.update(PATH="%s:%s" % (self.clone / ".venv/bin", env["PATH"]), LC_ALL="C.UTF-8",
                   FIRSTLIGHT_ROOT=str(self.folder / "none"), ANSIBLE_HOME=str(self.folder / "ah"))
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        script = "\n".join(self.here(text) for text in texts)
        if texts[-1].startswith("source .venv/"):
            script += "\ncommand -v ansible-playbook"
        done = subprocess.run(
            ["bash", "-c", "set -e\n" + script], cwd=self.clone, env=env, text=True, timeout=400,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        return done.returncode, done.stdout

    def stage(self, number):
        """Play a stage, once."""
        if number in self.begun:
            return
        self.begun.add(number)
        for step in STORY[number]:
            if step.before:
                step.before(self)
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            for step, ran in zip(STORY[number], pool.map(self.step, STORY[number])):
                self.ran[id(step)] = ran

    def step(self, step):
        return self.run([written(key).text for key in (*step.after, step.command)])


# The end of a log that somebody else's vLLM left on the host.
LOG = """/sbin/ldconfig: Can't open cache file /etc/ld.so.cache
subprocess.CalledProcessError: Command '['/sbin/ldconfig', '-p']' returned non-zero exit status 1.
"""
FOUND = {}
for _command in documents.all_commands(ROOT):
    FOUND.setdefault(without_host(_command.key), []).append(_command)


def written(key):
    """A command as some page has it, the one with this host's name before others."""
    found = FOUND[without_host(key)]
    return next((one for one in found if one.key == key), found[0])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """In a short path: unix sockets have little room."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="fl-docs-", dir="/tmp"))
    try:
        with hub.Hub(hub.canary_repos(tmp_path_factory.mktemp("hub"))) as there:
            made = World(folder, there.url)
            yield made
            for pid in [one["pid"] for one in processes.engines(str(made.root)).get("chat", [])]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            pidfile = made.root / "supervisor" / "supervisord.pid"
            if pidfile.exists():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pidfile.read_text()), signal.SIGKILL)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- The tests -------------------------------------------------------------------------------


def test_every_command_is_run_or_has_a_reason():
    run = {without_host(key) for stage in STORY for step in stage
           for key in (*step.after, step.command)}
    told = ["%s: %s" % (one.where, one.text) for key, found in FOUND.items() for one in found
            if key not in run and one.key not in NOT_RUN]
    assert told == [], "add these to STORY, or to NOT_RUN with a reason"
    assert sorted(run - set(FOUND)) == [], "no document has these any more"
    assert sorted(set(NOT_RUN) - {one.key for found in FOUND.values() for one in found}) == []


@pytest.mark.parametrize("command", NOT_RUN)
def test_what_is_not_run_is_there(command):
    words = command.split()
    if words[0] == "make":
        targets = re.findall(r"^(\S[^:=\n]*):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in [one.replace("$(VENV)", ".venv").replace("$(DEV)", ".venv-dev")
                            for one in targets]
    elif words[0] == "pytest":
        assert [word for word in words[1:] if not word.startswith("-")
                and not (ROOT / word).exists()] == []
    else:
        (one,) = [one for one in documents.all_commands(ROOT) if one.key == command]
        assert shutil.which(words[0]) or words[0] == "systemctl"
        subprocess.run(["bash", "-n", "-c", one.text], check=True)


STEPS = [(number, step) for number, stage in enumerate(STORY) for step in stage]


@pytest.mark.parametrize("number, step", STEPS, ids=[
    "%02d-%s" % (number, step.command) for number, step in STEPS])
def test_a_command_does_what_the_documents_say(world, number, step):
    if step.needs and not shutil.which(step.needs):
        pytest.skip("needs %s" % step.needs)
    world.stage(number)
    status, printed = world.ran[id(step)]
    assert status == step.status, printed
    for one in FOUND[without_host(step.command)]:
        shown = [world.here(line) if "inventories/example" not in one.text else line
                 for line in one.output]
        gone = documents.missing(shown, printed, step.exact)
        assert gone is None, "%s: it does not print %r:\n%s" % (one.where, gone, printed)
    for text in step.prints:
        assert text in printed, printed
    if step.changed is not None:
        counted = sum(map(int, re.findall(r"^\S+ +: .*\bchanged=(\d+)", printed, re.MULTILINE)))
        assert bool(counted) == step.changed, printed
    if step.holds:
        step.holds(world, printed)
