# SPDX-License-Identifier: Apache-2.0
"""How much memory a model needs on a host, and the context that fits."""

from __future__ import annotations

from typing import Any, Dict, Optional

# Share of all RAM that one CPU engine may plan with; the rest is the system's and the page
# cache's. Of the total, not of what is free now: a plan must not change with the load.
SHARE_OF_RAM = 0.8
# llama.cpp's compute buffers and code on CPU: an assumption on the safe side for small models.
# A passport's observed memory shows how far it is off.
OVERHEAD_BYTES = 512 * 2**20
# On CPU a longer context costs time and memory that few want by default; ask for it to get it.
AUTO_CONTEXT_LIMIT = 8192
CONTEXT_STEP = 256


def kv_bytes_per_token(geometry: Dict[str, Any]) -> Optional[int]:
    """Bytes of f16 keys and values per token over all layers; ``None`` if the shape is unknown."""
    needed = [geometry.get(key) for key in ("layers", "kv_heads", "head_dim")]
    if not all(needed):
        return None
    layers, kv_heads, head_dim = (int(part) for part in needed if part)
    return 2 * layers * kv_heads * head_dim * 2


def budget_bytes(total_bytes: int) -> int:
    """What one CPU engine may plan with on a host with that much RAM."""
    return int(total_bytes * SHARE_OF_RAM)


def largest_context(room_bytes: int, per_token: int, trained: Optional[int]) -> int:
    """The largest context that fits, in tokens, in steps of 256; 0 when none does."""
    fits = max(0, room_bytes) // per_token // CONTEXT_STEP * CONTEXT_STEP
    return min(fits, trained) if trained else fits
