# Everything a person or a machine does with this checkout. `just --list` shows it.

python := ".venv/bin/python"
set quiet

# Format check, lint, types, tests, docs check.
default: check test

# Make `.venv` from the lock files; does nothing when they have not changed.
[private]
env lock:
    #!/bin/sh
    set -eu
    stamp=.venv/.{{lock}}
    if [ -e .venv/.dev ] && [ {{lock}} = service ]; then stamp=.venv/.dev; fi
    if [ -e "$stamp" ] && [ ! requirements/{{lock}}.txt -nt "$stamp" ] && [ ! pyproject.toml -nt "$stamp" ]; then exit 0; fi
    [ -x {{python}} ] || python3 -m venv .venv
    echo "Installing locked packages into .venv ..." >&2
    {{python}} -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/{{lock}}.txt
    if ! command -v ld >/dev/null && ! command -v ld.lld >/dev/null; then
        {{python}} -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/linker.txt
    fi
    {{python}} -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
    touch "$stamp"

# Start Hob on this machine; flags are passed on (`just serve --lan`).
serve *flags: (env "service")
    .venv/bin/hob serve {{flags}}

# Format check, lint, types; the docs are checked by the tests.
check: (env "dev")
    .venv/bin/ruff format --check .
    .venv/bin/ruff check .
    .venv/bin/mypy

# Run the tests; flags go to pytest.
test *flags: (env "dev")
    .venv/bin/pytest {{flags}}
