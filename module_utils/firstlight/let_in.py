# SPDX-License-Identifier: Apache-2.0
"""Whether an endpoint that has keys lets in who has none, or a wrong one."""

from __future__ import annotations

import ssl
from typing import Iterator, NamedTuple, Optional

from .http_client import Answer, get, post

WRONG_KEY = "firstlight-asks-with-a-wrong-key"
REFUSED = 401


class Refusal(NamedTuple):
    """What came back where 401 is wanted."""

    evidence: str
    answer: Answer


def refusals(url: str, tls: Optional[ssl.SSLContext] = None,
             timeout_s: float = 10.0) -> Iterator[Refusal]:
    """Ask without a key and with a wrong one, for the list of models and for a token.

    :param url: as clients have it, without ``/v1``.
    :param tls: by what its server is known.
    """
    for said, headers in (("without a key", {}),
                          ("with a wrong key", {"Authorization": "Bearer " + WRONG_KEY})):
        yield Refusal("GET /v1/models " + said, get(url + "/v1/models", timeout_s, tls, headers))
        yield Refusal("POST /v1/completions " + said, post(
            url + "/v1/completions", {"prompt": "Hello", "max_tokens": 1}, timeout_s, tls, headers))
