#!/usr/bin/env bash
# Removes everything that `make` and the scripts beside it made: targets, volumes, networks, images, the engine
# if they started one by hand, .target/ and .venv. A label marks these objects; all others stay.
set -euo pipefail
# shellcheck source=testbed/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# ours KIND [OPTION…]: the ids of the objects with our label.
ours() {
    local kind=$1
    shift
    docker "$kind" ls --quiet "$@" --filter "label=$LABEL" | sort -u
}

# An image can be removed once no other image is built on it. The list does not show which those are, so try all.
remove_images() {
    local left id gone
    while left=$(ours image) && [ -n "$left" ]; do
        gone=
        for id in $left; do
            if docker rmi --force "$id" >"$STATE/rmi.log" 2>&1; then gone=yes; fi
        done
        if [ -z "$gone" ]; then die "an image of ours stays: $(last_words "$STATE/rmi.log")"; fi
    done
}

remove_from_engine() {
    local id
    for id in $(ours container --all); do docker rm --force --volumes "$id" >/dev/null; done
    for id in $(ours volume); do docker volume rm "$id" >/dev/null; done
    for id in $(ours network); do docker network rm "$id" >/dev/null; done
    remove_images
}

# runs PID START_TIME: whether this very process still runs, and is dockerd. A zombie does not run.
runs() {
    awk -v started="$2" '{ exit !($2 == "(dockerd)" && $3 != "Z" && $22 == started) }' "/proc/$1/stat" 2>/dev/null
}

stop_engine() {
    local pid started
    if [ ! -f "$STATE/dockerd.pid" ]; then return; fi
    read -r pid started <"$STATE/dockerd.pid"
    if ! runs "$pid" "$started"; then return; fi
    if [ -n "$(docker ps --quiet)" ]; then
        die "other containers run in the Docker engine that was started here (process $pid): it and .target/ stay"
    fi
    kill "$pid"
    for _ in $(seq 150); do
        if ! runs "$pid" "$started"; then return; fi
        sleep 0.2
    done
    die "the Docker engine (process $pid) does not stop: see .target/dockerd.log"
}

if have docker && docker version >/dev/null 2>&1; then
    remove_from_engine
else
    say "No Docker engine answers: if one has targets of the testbed, start it and run this again"
fi
stop_engine
rm -rf "$STATE" "$ROOT/.venv" "$ROOT"/.{mypy,ruff,pytest}_cache
