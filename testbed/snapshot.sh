#!/usr/bin/env bash
# Stops the target NAME and keeps its disk as the snapshot SERIES-DIGEST, from which testbed/target.sh starts other
# targets. Removes older snapshots of SERIES that this checkout made.
# Usage: testbed/snapshot.sh NAME SERIES DIGEST
set -euo pipefail
# shellcheck source=testbed/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

NAME=${1:?which target?}
SERIES=${2:?which series?}
DIGEST=${3:?which digest?}
SNAPSHOT=$SERIES-$DIGEST
OWNER=org.terrafirma.checkout=$ROOT

stop() {
    docker stop --time 120 "$NAME" >/dev/null
    # Docker killed it, because it did not shut down in time.
    if [ "$(docker container inspect --format '{{.State.ExitCode}}' "$NAME")" = 137 ]; then
        die "$NAME does not shut down"
    fi
}

# The image comes last, because it marks the snapshot as complete; an interrupted one is made anew.
keep() {
    local image volume
    image=$(docker container inspect --format '{{.Image}}' "$NAME")
    volume=$(snapshot_volume "$SNAPSHOT")
    docker volume rm --force "$volume" >/dev/null
    docker volume create --label "$LABEL" --label "$OWNER" "$volume" >/dev/null
    copy_volume "$image" "$NAME-docker" "$volume"
    docker commit --change "LABEL \"org.terrafirma.checkout\"=\"$ROOT\"" \
        "$NAME" "$(snapshot_image "$SNAPSHOT")" >/dev/null
}

# An image that is in use, or that is being made elsewhere, stays until the next time.
remove_older() {
    local image volume
    docker image ls --filter "label=$OWNER" --format '{{.Repository}}:{{.Tag}}' |
        grep "^$(snapshot_image "$SERIES")-" | grep -vxF "$(snapshot_image "$SNAPSHOT")" |
        while read -r image; do docker rmi "$image" >/dev/null 2>&1 || true; done
    docker volume ls --filter "label=$OWNER" --format '{{.Name}}' |
        grep "^$(snapshot_volume "$SERIES")-" | grep -vxF "$(snapshot_volume "$SNAPSHOT")" |
        while read -r volume; do docker volume rm "$volume" >/dev/null 2>&1 || true; done
}

stop
keep
remove_older || true
