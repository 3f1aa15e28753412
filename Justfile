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

# Print Hob's figures beside llama.cpp's as JSON lines; flags: `startup`, `imports`, a model's name, --rounds N, --threads N.
bench *flags: (env "dev")
    {{python}} -m tests.bench {{flags}}

# Build the benchmark's peer, llama.cpp, in an environment of its own (ten minutes).
bench-setup:
    python3 -m venv .venv-bench
    .venv-bench/bin/python -m pip install --quiet psutil 'llama-cpp-python[server]==0.3.36' 'gguf>=0.17' -C cmake.args=-DGGML_NATIVE=ON

# Record what transformers makes of the tests' tiny models, in an environment of its own; names choose some of them.
references *names:
    #!/bin/sh
    set -eu
    [ -x .venv-references/bin/python ] || python3 -m venv .venv-references
    .venv-references/bin/python -m pip install --quiet --disable-pip-version-check 'torch==2.13.0' 'transformers==5.23.0' numpy
    .venv-references/bin/python -m tests.builder.families.record {{names}}

# Train the built-in guide again, in an environment of its own with torch (under two hours on two cores).
guide-train: (env "service")
    #!/bin/sh
    set -eu
    [ -x .venv-train/bin/python ] || python3 -m venv .venv-train
    .venv-train/bin/python -m pip install --quiet --disable-pip-version-check 'torch==2.13.0' numpy safetensors tokenizers
    .venv-train/bin/python -m builder.guide train

# Ask the guide held-out questions and print the share it answers right.
guide-eval: (env "service")
    {{python}} -m builder.guide eval

# Build a device's image: `just image nuc --out images`; flags are those of `hob image build`.
image name *flags: (env "service")
    .venv/bin/hob image build {{name}} {{flags}}

# Build the image for PCs and start it in QEMU: first visit, power cut, full disk, updates, backups; flags go to pytest.
test-images *flags: (env "dev")
    HOB_TEST_IMAGES=pc .venv/bin/pytest -m image {{flags}}

# Build the image for 64-bit Arm boards with UEFI and start it in QEMU.
image-arm64 *flags: (env "dev")
    HOB_TEST_IMAGES=arm64 .venv/bin/pytest tests/image/test_arm64.py {{flags}}

# Build the image for the Raspberry Pi and start it on QEMU's Raspberry Pi 3, which takes a quarter of an hour.
image-pi *flags: (env "dev")
    HOB_TEST_IMAGES=pi .venv/bin/pytest tests/image/test_pi.py {{flags}}

# Print what the image costs as JSON lines: size, memory, writes, start, rebuild; names choose some of them.
image-figures *names: (env "dev")
    {{python}} -m tests.image.figures {{names}}

# Print what each weight format costs: the guide's perplexity on held-out questions; flags: --json, --texts N.
quality *flags: (env "service")
    {{python}} -m builder.guide quality {{flags}}
