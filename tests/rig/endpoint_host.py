# SPDX-License-Identifier: Apache-2.0
"""A host with one endpoint, as the role drives it: natively under a real supervisord, and in
containers of a daemon that is not."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import pathlib

import endpoint_info
import endpoint_switch
from ansible.module_utils.testing import patch_module_args
from supervised import compose, config, definition, fake_engine, free_port

from ansible.module_utils.firstlight import processes, services
from ansible.module_utils.firstlight.http_client import get
from ansible.module_utils.firstlight.planning.container import container_spec

FORK = multiprocessing.get_context("fork")
IMAGE = "example.org/engine:1"


class Host:
    """One root with one endpoint, as the role drives it.

    :param docker: a :class:`fake_docker.Docker`, in which plans of containers run.
    """

    def __init__(self, root, supervisord, run_module, docker=None):
        self.root, self.supervisord, self.run_module = root, supervisord, run_module
        self.docker = docker
        self.service = services.Supervisor(root, supervisord)
        self.folder = pathlib.Path(root) / "endpoints" / "chat"
        self.oracle = None

    def params(self, plan=None, state="present"):
        params = {"name": "chat", "root": self.root, "manager": "supervisor", "state": state}
        if plan:
            params.update(manager=keeper(plan), definition=self.definition(plan),
                          supervisord=self.supervisord, supervisor_config=config())
            params["plan"] = {**plan, "oracle": self.oracle}
            del params["plan"]["argv"]
        return params

    def definition(self, plan):
        """The text of a plan's service."""
        if keeper(plan) == "docker":
            return compose(self.spec(plan))
        return definition(self.root, "chat", plan["argv"], plan["hash"],
                          {"PYTHONUNBUFFERED": "1", **plan.get("env", {})})

    def spec(self, plan):
        """The container of a plan."""
        return container_spec(plan, self.root, {})

    def make(self, plan):
        """Make the container of a plan, as the role does where there is none; gives its name."""
        made = self.spec(plan)["made"]
        self.docker.networks.add("firstlight")
        self.docker.images.setdefault(made["image"], "sha256:" + made["image"])
        if made["name"] not in self.docker.containers:
            self.docker.make(made)
        return made["name"]

    def trial(self, canary, key="a1b2"):
        """What is tried before a plan."""
        return {"key": key, "plan": {name: value for name, value in canary.items()
                                     if name != "argv"}, "definition": self.definition(canary)}

    def switch(self, plan, **how):
        if keeper(plan) == "docker" and not how.get("check"):
            self.make(plan)
        return self.run_module(endpoint_switch.main, **{**self.params(plan), **how})

    def back(self, **how):
        """Go back a generation."""
        return self.run_module(endpoint_switch.main, **self.params(state="previous"),
                               supervisord=self.supervisord, **how)

    def switched(self, plan, **how):
        result = self.switch(plan, **how)
        assert result.get("changed") is True, result
        return result

    def remove(self, **how):
        return self.run_module(endpoint_switch.main, **self.params(state="absent"), **how)

    def info(self, *ports):
        return self.run_module(endpoint_info.main, root=self.root, ports=list(ports))

    def chat(self):
        return self.info()["endpoints"]["chat"]

    def passport(self):
        return (self.folder / "passport.json").read_bytes()

    def running(self):
        """The names of the containers that run."""
        return {name for name, one in self.docker.containers.items() if one["State"]["Running"]}

    def pids(self):
        return {one["pid"] for one in processes.engines(self.root).get("chat", [])}

    def journals(self):
        """What of a change is under way, or was ended in the middle."""
        return [path.name for path in (pathlib.Path(self.root) / "journal").glob("*.json")
                if not path.name.endswith(".run.json")]

    def disk(self):
        """Every file of ours that a switch may change, and when it was written."""
        return {
            str(path): (path.stat().st_mtime_ns, path.read_bytes())
            for path in pathlib.Path(self.root).rglob("*")
            if path.is_file() and path.suffix != ".log"
        }


def plan(port, argv, start_timeout_s=60, served_name="fake"):
    """What the switch reads of a plan, and its argv for the definition."""
    identity = json.dumps([port, argv, start_timeout_s]).encode()
    return {
        "name": "chat", "url": "http://127.0.0.1:%d" % port, "engine_port": port,
        "engine": "llama_cpp", "engine_version": "1", "runtime": "native", "gpus": [],
        "hash": hashlib.sha256(identity).hexdigest(),
        "model": {"served_name": served_name, "chat_template": True},
        "start_timeout_s": start_timeout_s, "memory": {"total_bytes": 123456789}, "argv": argv,
    }


def fake(*flags, port=None, **how):
    port = port or free_port()
    return plan(port, fake_engine(port, *flags), **how)


def contained(*flags, port=None, argv=None, image=IMAGE, cache="", gpus=(), model="",
              **how):
    """A plan whose engine runs in a container; ``model`` is the file that it serves."""
    port = port or free_port()
    made = plan(port, argv or fake_engine(port, *flags), **how)
    # Its container is to find it.
    made["model"].update(path=model or __file__, format="gguf")
    identity = json.dumps([made["hash"], image, cache, list(gpus)]).encode()
    return {**made, "runtime": "docker", "image": image, "user": "", "cache": cache,
            "shm_bytes": 0, "hash": hashlib.sha256(identity).hexdigest(), "gpus": list(gpus),
            "command": {"argv": made["argv"], "env": {}}}


def keeper(plan):
    """What keeps the engine of a plan running."""
    return "docker" if plan["runtime"] == "docker" else "supervisor"


def loading(**how):
    """A plan whose engine never gets ready."""
    return fake("--fault", "loading", **how)


def healthy(url):
    return get(url + "/health").status == 200


@contextlib.contextmanager
def other_run(host, wanted, main=endpoint_switch.main, **how):
    """The module in a process of its own."""
    def task():
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        with patch_module_args(dict(host.params(wanted), _ansible_remote_tmp="/tmp", **how)):
            main()

    process = FORK.Process(target=task)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join(30)


def starts(host, wanted):
    """Whether the engine of a plan is there, ready or not."""
    return wanted["hash"] in [one["plan"] for one in processes.engines(host.root).get("chat", [])]


def guard_of(host):
    """The process that stands beside the work, by what it wrote of itself."""
    return json.loads((pathlib.Path(host.root) / "journal" / "endpoint-chat.run.json").read_text()
                      )["pid"]
