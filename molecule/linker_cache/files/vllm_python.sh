#!/bin/sh
# An engine's Python as far as it is asked: which Triton it has, and whether its headers are there.
echo '{"triton": "TRITON", "python": "3.12", "prefix": "/opt/engine", "include": "/opt/engine/include", "headers": HEADERS}'
