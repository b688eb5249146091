# SPDX-License-Identifier: Apache-2.0
"""Writes down every exec, put and fetch of the connection plugins, for ``remote_calls.py``."""

from __future__ import annotations

import json
import os

from ansible.executor.task_executor import TaskExecutor
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: remote_call_counter
type: aggregate
short_description: Writes every remote call to a file
description:
  - For tests. Every exec, put and fetch of a connection plugin is one line of JSON in the file
    that C(FIRSTLIGHT_TEST_REMOTE_CALLS) names.
"""

KINDS = {"exec_command": "exec", "put_file": "put", "fetch_file": "fetch"}


class CallbackModule(CallbackBase):
    """Loaded before the first worker is forked, so that every worker has what is put in here."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "remote_call_counter"

    def __init__(self):
        super().__init__()
        connect = TaskExecutor._get_connection
        # There from now on: without any call it says that there was none.
        self._log = os.open(os.environ["FIRSTLIGHT_TEST_REMOTE_CALLS"],
                            os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

        def connect_and_count(executor, *args, **kwargs):
            connection = connect(executor, *args, **kwargs)
            task = executor._task
            # What is delegated to the controller crosses nobody's connection.
            if not (task.delegate_to and connection.transport == "local"):
                self._count(connection, {
                    "host": task.delegate_to or executor._host.name,
                    "role": task._role.get_name() if task._role else "",
                    "task": task.name or task.action,
                })
            return connection

        # The one place where Ansible's workers get a connection, of whatever plugin.
        TaskExecutor._get_connection = connect_and_count

    def _count(self, connection, where):
        busy = []

        def counted(method, kind):
            def call(*args, **kwargs):
                # ssh puts and fetches through its own exec where it has no sftp: that is one call.
                if busy:
                    return method(*args, **kwargs)
                # One write to the end of the file, so lines of several workers do not mix.
                os.write(self._log, (json.dumps(dict(where, kind=kind)) + "\n").encode())
                busy.append(kind)
                try:
                    return method(*args, **kwargs)
                finally:
                    busy.pop()

            return call

        for name, kind in KINDS.items():
            setattr(connection, name, counted(getattr(connection, name), kind))
