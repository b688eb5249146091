# SPDX-License-Identifier: Apache-2.0
"""Loads what every task needs before the first worker is forked, so that all of them have it."""

from __future__ import annotations

import gc
import sys

from ansible.plugins.callback import CallbackBase
from ansible.plugins.loader import filter_loader, lookup_loader, test_loader

DOCUMENTATION = """
name: preload
type: aggregate
short_description: Loads filters, tests and catalogs once for a run instead of once for a task
description:
  - Ansible forks a worker for each task and host, and a worker that meets the first filter loads
    all plugins of filters. Those of this project bring the whole planner. Loaded before the first
    fork, they are there in every worker, and so is what the lookups
    C(catalog) and C(role_options) read.
  - Prints nothing.
requirements:
  - Enable in configuration (C(callbacks_enabled)).
"""


class CallbackModule(CallbackBase):
    """Loads, and is silent."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "preload"
    CALLBACK_NEEDS_ENABLED = True

    def v2_playbook_on_start(self, playbook):
        """The folders of plugins are known by now, and no worker is there yet."""
        # To ask for any of them loads them all.
        filter_loader.get("deployment_plan")
        test_loader.get("match")
        _module_of(lookup_loader.get("catalog")).parse_all()
        _module_of(lookup_loader.get("role_options")).options()
        # All of it stays. A collection that looked at it in a worker would write to its pages, and
        # the kernel would copy them; and what a worker makes goes with it.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50000, 20, 100)


def _module_of(plugin):
    return sys.modules[type(plugin).__module__]
