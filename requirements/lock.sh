#!/usr/bin/env bash
# Write the locks anew from the .in files: `make lock`. Hashes cover every platform's wheels.
set -euo pipefail
cd "$(dirname "$0")"
lock() { uv pip compile --quiet --universal --generate-hashes --no-annotate --no-header --python-version "$1" "$2" -o "$3"; }
lock 3.11 controller.in controller.txt
lock 3.11 development.in development.txt
lock 3.9 toolbelt.in ../roles/toolbelt/files/toolbelt.txt
lock 3.10 xllamacpp.in ../roles/inference_endpoint/files/xllamacpp.txt
lock 3.9 supervisor.in ../roles/inference_endpoint/files/supervisor.txt
