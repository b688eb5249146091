# SPDX-License-Identifier: Apache-2.0
"""Modules as Ansible sends them over a pipelined connection, for benchmarks to run and time."""

from __future__ import annotations

import itertools
import sys

from ansible.executor.module_common import modify_module
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

NOTHING = """
from ansible.module_utils.basic import AnsibleModule
if __name__ == "__main__":
    AnsibleModule(argument_spec={}).exit_json(changed=False)
"""
SENT = itertools.count()


def as_sent(text, folder, **options):
    """A module as Ansible sends it."""
    # Ansible keeps what it made by the name.
    name = "bench_%d" % next(SENT)
    module = folder / (name + ".py")
    module.write_text(text)
    return modify_module(
        module_name=name, module_path=str(module),
        module_args=dict(options, _ansible_remote_tmp=str(folder / "tmp")),
        templar=Templar(loader=DataLoader()),
        task_vars={"ansible_python_interpreter": sys.executable}).b_module_data
