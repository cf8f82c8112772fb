#!/usr/bin/env bash
# After this ran, the target NAME and its volume are gone.
# Usage: testbed/untarget.sh NAME
set -euo pipefail
# shellcheck source=testbed/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

NAME=${1:?which target?}

ours() { [ -n "$(docker "$1" ls --quiet "${@:3}" --filter "label=$LABEL" --filter "name=^$2\$")" ]; }

remove() {
    if ours container "$NAME" --all; then docker rm --force --volumes "$NAME" >/dev/null; fi
    if ours volume "$NAME-docker"; then docker volume rm "$NAME-docker" >/dev/null; fi
}

# A target.sh whose caller was killed goes on for a moment, and would make a volume anew that is gone.
locked "name-$NAME" remove
