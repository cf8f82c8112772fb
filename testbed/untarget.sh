#!/usr/bin/env bash
# Removes the target NAME and its volume.
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

# Locked: a target.sh whose caller was killed runs on for a moment, and could make the volume again.
locked "name-$NAME" remove
