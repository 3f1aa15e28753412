#!/bin/sh
# Rewrites the lock files: exact versions and hashes for every platform, no addresses.
set -eu
cd "$(dirname "$0")/.."
lock() { uv pip compile -q --universal --generate-hashes --no-annotate --no-header --python-version 3.11 pyproject.toml "$@"; }
lock --group build -o requirements/service.txt
lock --group dev -c requirements/service.txt -o requirements/dev.txt
lock --extra linker -c requirements/service.txt -o requirements/linker.all
awk '/^[a-z]/{keep = /^ziglang/} keep' requirements/linker.all > requirements/linker.txt
rm requirements/linker.all
