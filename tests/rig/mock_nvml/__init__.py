# SPDX-License-Identifier: Apache-2.0
"""Hosts that do not exist: libraries that answer as NVIDIA's would, from a profile of a machine.

``libnvidia-ml.so.1`` and ``libcuda.so.1`` are our own, of C; pynvml and our modules cannot tell.
``profiles/<name>.yml`` says what a machine is; ``profiles.py`` says what may stand there. To try
anything without hardware::

    eval "$(python3 tests/rig/mock_nvml h100-x8 /tmp/h100)"

A test takes the fixture ``mock_host`` (``fixtures.py``); a container gets both libraries, and the
profile as ``/etc/firstlight-mock/profile.json``.
"""

from .building import build
from .files import write_files
from .profiles import Wrong, changed, load, names, write

__all__ = ["Wrong", "build", "changed", "load", "names", "write", "write_files"]
