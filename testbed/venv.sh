#!/usr/bin/env bash
# Makes .venv with exactly the packages that requirements.lock pins, checked by their hashes.
# Usage: testbed/venv.sh [PYTHON]
set -euo pipefail
# shellcheck source=testbed/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

PYTHON=${1:-python3}

if ! have "$PYTHON"; then install python3 python3-venv; fi
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "Python 3.11 or newer is needed, $PYTHON is $("$PYTHON" -V 2>&1): name another with PYTHON="
# Debian packages ensurepip, which venv needs, apart from Python.
if ! "$PYTHON" -c 'import ensurepip' 2>/dev/null; then install python3-venv; fi

say "Making .venv from requirements.lock"
# Make it anew each time, so that packages of an earlier lock are gone.
"$PYTHON" -m venv --clear "$ROOT/.venv"
"$ROOT/.venv/bin/python" -m pip install -qq --disable-pip-version-check --no-deps \
    --require-hashes -r "$ROOT/requirements.lock"
touch "$ROOT/.venv/.locked"
