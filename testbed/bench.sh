#!/usr/bin/env bash
# Prints the measurements of testbed/bench.py.
# Usage: testbed/bench.sh [PART…]: platform, postgres, releases, uploads; without a PART all of them
set -euo pipefail
# shellcheck source=testbed/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

cd "$ROOT"
exec .venv/bin/python -m testbed.bench "$@"
