# SPDX-License-Identifier: Apache-2.0
"""A small model hub on this machine that huggingface_hub takes for one, with faults on request.

In a test::

    repos = hub.canary_repos(tmp_path / "repos")
    with hub.Hub(repos, faults={"*.safetensors": {"cut_at": 1000, "times": 1}}) as h:
        ...                       # HF_ENDPOINT=h.url, HF_HUB_DISABLE_XET=1
        h.done()                  # the requests, once none is under way

As a process: ``python tests/rig/hub --repos DIR [--port 0] [--faults JSON] [--log FILE]`` prints
its URL. It answers an absolute request line too, so its URL also serves as ``http_proxy``.

``DIR/<org>/<name>/`` is the branch ``main`` of a repository, ``DIR/<org>/<name>@<ref>/`` another
branch or tag of it (``tagged`` makes one). The commit is made of the content, so a changed file is
another commit, and the old one is gone. Hashes are kept in ``DIR/.hashes.json``.

A fault is ``{pattern: {name: value, ...}}``. The pattern is for :func:`fnmatch.fnmatchcase` and the
path of the URL, in which ``*`` also stands for slashes. Beside the faults, ``times`` says how many
requests it is for (default: all; counted down in place) and ``method`` for which one.

========================= ========================================================================
``slow: N``               N bytes a second
``cut_at: N``             the line is cut before byte N of the file
``cut_after: N``          the line is cut after N bytes of the answer
``stall_at: N``           nothing comes from byte N of the file on, and the line stays open
``status: N``             this status; ``retry_after: S`` is sent along, ``code`` as X-Error-Code
``wrong_size: N``         a body of N bytes more (less when negative), and a length that agrees
``wrong_hash: N``         byte N (``true``: the middle one) of the file is another
``no_range: true``        a Range is not honoured: 200 and the whole
``bad_range: true``       a Range is refused: 416
``no_length: true``       no Content-Length; the end of the line is the end of the body
``endless: true``         after the file more bytes, without a length and without an end
``redirect: true|URL``    302 to a second host, as to a CDN; or to this URL
``no_commit_header: true`` no X-Repo-Commit
``no_etag: true``         no ETag
``gated: true|"token"``   nobody has access to the files; or who shows ``TOKEN``
``moved: org/name``       307 to this repository
``page: N``               a list of files comes in pages of N
========================= ========================================================================
"""

from __future__ import annotations

from .repos import big_repo, canary_repos, sharded, tagged
from .server import TOKEN, Hub, Request

__all__ = ["TOKEN", "Hub", "Request", "big_repo", "canary_repos", "sharded", "tagged"]
