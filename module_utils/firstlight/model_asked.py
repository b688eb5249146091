# SPDX-License-Identifier: Apache-2.0
"""The models that are asked about by their paths, as both modules that read them do it."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Tuple

from . import model_paths, model_report
from .findings import Finding, blocking
from .model_files import Model


def observe(params: Mapping[str, Any]) -> Tuple[Dict[str, Model], List[Finding]]:
    """Every path that is asked about.

    :param params: ``paths``, ``allow_code``, ``allow_pickle``, ``tokenizer_classes`` and
        ``model_types``, as ``model_info`` takes them.
    :returns: the models by the path as it was asked, and all that is wrong.
    """
    models, findings = {}, []
    for asked in params["paths"]:
        model, found = _observe(asked, params)
        if model:
            models[asked] = model
        findings += found
    return models, findings


def _observe(asked: str, params: Mapping[str, Any]) -> Tuple[Optional[Model], List[Finding]]:
    path, notes = model_paths.resolve(asked)
    if blocking(notes):
        return None, notes
    model, findings = model_report.read(
        path, asked in params["allow_code"], asked in params["allow_pickle"], asked,
        params["tokenizer_classes"], params["model_types"])
    return model, notes + findings
