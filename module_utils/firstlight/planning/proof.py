# SPDX-License-Identifier: Apache-2.0
"""What of plans has to be asked for a proof."""

from __future__ import annotations

import posixpath
from typing import Any, Dict, List

Plan = Dict[str, Any]


def smoke_requests(plans: List[Plan], root: str) -> List[Dict[str, Any]]:
    """The ``endpoints`` of ``smoke_inference`` for plans, in their order.

    :param plans: endpoints as ``deployment_plan`` has them.
    :param root: ``firstlight_root`` on the host, where verdicts are kept.
    """
    return [{
        "url": plan["url"],
        "model": plan["model"]["served_name"],
        "oracle": plan["oracle"],
        "chat": plan["model"]["chat_template"],
        "record": posixpath.join(root, "endpoints", plan["name"], "last_check.json"),
    } for plan in plans]
