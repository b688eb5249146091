# SPDX-License-Identifier: Apache-2.0
"""On a machine with NVIDIA GPUs and torch: what is read of its environment (`make test-gpu`).

FIRSTLIGHT_TORCH_PYTHON names the interpreter; else it is the first ``python3`` that has torch.
"""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
import yaml

from ansible.module_utils.firstlight.wheels import environment

# A package that is always there: Python's own, and a kernel of torch.
ROW = {
    "package": "pip", "versions": "", "imports": ["json"], "torch": "minor", "cuda": "major",
    "plain_cuda": [], "capabilities": [], "kernel_device": "cuda", "tolerance": 0.02,
    "not_needed": [], "sources": [], "build": {}, "source": "", "kernel": (
        "x = torch.randn(64, 64, device=device)\n"
        "error = ((x @ x).cpu() - x.cpu() @ x.cpu()).abs().max().item()\n"
        "assert x.is_cuda\n"),
}


def torch_python():
    for python in (os.environ.get("FIRSTLIGHT_TORCH_PYTHON"), shutil.which("python3")):
        if python and subprocess.run([python, "-c", "import torch"], check=False,
                                     capture_output=True).returncode == 0:
            return python
    return None


PYTHON = torch_python() if shutil.which("nvidia-smi") else None
pytestmark = pytest.mark.skipif(PYTHON is None, reason="this machine has no GPU, or no torch")


def told(code):
    return subprocess.run([PYTHON, "-c", code], check=True, capture_output=True,
                          text=True).stdout.split()


def test_the_environment_is_what_torch_and_nvidia_smi_say():
    found = environment.read(PYTHON, [ROW], 180)
    assert found["state"] == "ok"
    assert [found["torch"]["version"], found["torch"]["cuda"]] == told(
        "import torch; print(torch.__version__, torch.version.cuda)")
    capabilities = subprocess.run(
        ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"], check=True,
        capture_output=True, text=True).stdout.split()
    assert sorted(one["capability"] for one in found["torch"]["devices"]) == sorted(capabilities)


def test_a_kernel_runs_on_the_gpu_and_a_wrong_one_is_caught():
    imports, kernel = environment.prove(PYTHON, ROW, 180)
    assert (imports["state"], kernel["state"]) == ("ok", "ran"), kernel
    assert kernel["device"]
    wrong = dict(ROW, kernel=ROW["kernel"] + "error = 1.0\n")
    assert environment.prove(PYTHON, wrong, 180)[1]["state"] == "failed"


def test_packages_of_the_catalog_that_are_there_work():
    with open("catalog/prebuilt_wheels.yml", encoding="utf-8") as file:
        rows = yaml.safe_load(file)
    found = environment.read(PYTHON, rows, 180)["installed"]
    for package, there in found.items():
        if there:
            print(package, there)
            assert there["imports"]["state"] == "ok", package
            assert there["kernel"]["state"] in ("ran", "none", "skipped"), package
