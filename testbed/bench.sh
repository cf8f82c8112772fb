#!/usr/bin/env bash
# After this ran, what testbed/bench.py measured is printed.
# Usage: testbed/bench.sh [PART…]: platform, postgres, releases; all of them without one
set -euo pipefail
# shellcheck source=testbed/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

cd "$ROOT"
exec .venv/bin/python -m testbed.bench "$@"
