# SPDX-License-Identifier: Apache-2.0
"""What the catalogs tell of a Jetson: its JetPack and CUDA by its release, its chip by its SoC."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

Rows = List[Dict[str, Any]]


def describe(l4t: Optional[str], soc: Optional[str], catalog: Dict[str, Rows]) -> Dict[str, Any]:
    """What is known of this release and this SoC; ``None`` for what no row tells.

    A release that no row names has no JetPack, whatever its neighbours have. Its major version of
    JetPack is known if all rows of the same L4T major version agree on it.

    :param l4t: the release of Jetson Linux, as ``36.4.3``.
    :param soc: the SoC as the device tree names it, as ``tegra234``.
    :param catalog: ``{jetson_releases: rows, jetson_chips: rows}``.
    :returns: ``{jetpack, jetpack_major, cuda, chip, capability}``.
    """
    releases = catalog["jetson_releases"]
    release = _row(releases, "l4t", l4t)
    chip = _row(catalog["jetson_chips"], "soc", soc)
    majors = {_major(row["jetpack"]) for row in releases
              if l4t and _major(row["l4t"]) == _major(l4t)}
    return {
        "jetpack": release.get("jetpack"),
        "jetpack_major": int(majors.pop()) if len(majors) == 1 else None,
        "cuda": release.get("cuda") or None,
        "chip": chip.get("chip"),
        "capability": chip.get("capability"),
    }


def _row(rows: Rows, key: str, value: Optional[str]) -> Dict[str, Any]:
    return next((row for row in rows if row[key] == value), {})


def _major(version: str) -> str:
    return version.partition(".")[0]
