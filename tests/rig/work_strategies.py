# SPDX-License-Identifier: Apache-2.0
"""Whatever may be seen of a host and decided of it, as far as it says whether there is work."""

from __future__ import annotations

import strategies
from hypothesis import strategies as st

TEXTS = st.lists(strategies.HOSTILE, max_size=3)
LIBRARY_PATHS = st.none() | st.fixed_dictionaries({
    "changed": st.booleans(), "actions": TEXTS, "reasons": TEXTS,
    "remedies": st.sampled_from([[], ["linker_cache"]])})
FINDINGS = st.lists(strategies.FINDINGS, max_size=2)
SEEN = st.fixed_dictionaries({
    "endpoints": st.fixed_dictionaries({"python": st.fixed_dictionaries({"venv": st.booleans()})}),
    "library_path": LIBRARY_PATHS,
    "environments": st.sampled_from([{}, {"toolbelt": []}, {"toolbelt": ["place", "mark"]}]),
    "containers": st.none() | st.fixed_dictionaries({"lost": FINDINGS}),
    "half_done": st.lists(st.sampled_from(["endpoint-a", "linker_cache", "docker_daemon"])),
    "unread": st.sampled_from([{}, {"library_path": "/etc: Permission denied"}]),
})
CONTAINERS = st.just({}) | st.fixed_dictionaries({
    "decision": st.fixed_dictionaries({
        "install": TEXTS, "start": strategies.HOSTILE, "toolkit": strategies.HOSTILE,
        "act": st.booleans(), "generate": st.sampled_from(["", "refresh", "generate"]),
        "reasons": TEXTS, "refusals": FINDINGS}),
    "missing": TEXTS,
    "way": st.fixed_dictionaries({"needs": st.sampled_from([{}, {"proxies": {}}]),
                                  "refusals": FINDINGS})})
DECIDED = st.fixed_dictionaries({
    **{key: st.none() | TEXTS for key in (
        "remedies", "repositories", "wheels", "refusals", "switches")},
    "containers": st.none() | CONTAINERS})
WORK = st.lists(st.fixed_dictionaries({"stage": st.just("toolbelt"), "why": strategies.HOSTILE}),
                max_size=3)
