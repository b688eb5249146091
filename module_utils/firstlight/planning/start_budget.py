# SPDX-License-Identifier: Apache-2.0
"""How long the start of an engine takes, and when it is given up."""

from __future__ import annotations

import math
from typing import Any, Dict, Optional

Costs = Dict[str, Any]

FLOOR_SECONDS = 60
# A slow disk, so that a model is not given up while it is being read.
ASSUMED_BYTES_PER_SECOND = 100 * 2**20
# Machines differ and compilers run on their processors: beside the reading, so many times longer.
PATIENCE = 3


def start_budget(model_bytes: int, layers: int, devices: int, costs: Costs,
                 read_bytes_per_second: Optional[int], compiled: bool,
                 eager: bool) -> Dict[str, Any]:
    """The start budget in seconds.

    :param read_bytes_per_second: of the model's disk as measured, else ``None``.
    :param compiled: whether the compiler's cache has this model already.
    :returns: ``{limit_s, expected_s, read_s, compile_s, other_s, cached, measured_disk}``. The
        limit does not know of the cache: a start from a lost cache is given its time too.
    """
    rate = read_bytes_per_second or ASSUMED_BYTES_PER_SECOND
    read = model_bytes / rate
    cold = 0.0 if eager else costs["compile_seconds"] + layers * costs["compile_layer_seconds"]
    compile_ = min(cold, costs["cached_compile_seconds"]) if compiled else cold
    other = costs["start_seconds"] + costs["rank_seconds"] * (devices - 1) + (
        0 if eager else costs["capture_seconds"] + layers * costs["capture_layer_seconds"])
    limit = FLOOR_SECONDS + read * (2 if read_bytes_per_second else 1) + PATIENCE * (cold + other)
    return {
        "limit_s": max(math.ceil(limit), costs["engine_limit_seconds"]),
        "expected_s": math.ceil(read + compile_ + other),
        "read_s": math.ceil(read),
        "compile_s": math.ceil(compile_),
        "other_s": math.ceil(other),
        "cached": compiled,
        "measured_disk": read_bytes_per_second is not None,
    }
