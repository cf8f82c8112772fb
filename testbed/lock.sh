#!/usr/bin/env bash
# Pins the newest versions that pyproject.toml allows in requirements.lock, with the hashes of all their files on
# PyPI, for each supported Python on Linux and macOS.
# Usage: testbed/lock.sh [PYTHON]
set -euo pipefail
# shellcheck source=testbed/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

cd "$ROOT"
if [ ! -x .target/uv/bin/uv ]; then
    "${1:-python3}" -m venv .target/uv
    .target/uv/bin/python -m pip install -qq --disable-pip-version-check 'uv>=0.8'
fi
# --no-config and the --no-emit options keep this machine's settings and addresses out of the file.
.target/uv/bin/uv pip compile pyproject.toml --group dev --upgrade \
    --universal --python-version 3.11 --generate-hashes \
    --no-config --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
    --quiet --output-file requirements.lock
