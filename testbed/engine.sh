#!/usr/bin/env bash
# Makes sure that a Docker engine answers. A running engine is used as it is.
set -euo pipefail
# shellcheck source=testbed/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

LOG=$STATE/dockerd.log

answers() { docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

why_not() {
    if have docker; then docker version 2>&1 >/dev/null | tail -n 1; else echo "no docker command"; fi
}

install_engine() {
    if ! have dockerd; then install docker.io; fi
    # Since Debian 13 the client is a package of its own.
    if ! have docker; then install docker-cli; fi
}

# Packets of containers must not be larger than this machine's route to the internet allows.
mtu_of_the_way_out() {
    local interface
    interface=$(awk '$2 == "00000000" { print $1; exit }' /proc/net/route)
    if [ -n "$interface" ]; then cat "/sys/class/net/$interface/mtu"; else echo 1500; fi
}

start_by_hand() {
    local mtu pid
    mtu=$(mtu_of_the_way_out)
    set --
    if [ "$mtu" -lt 1500 ]; then set -- --mtu "$mtu"; fi
    # dockerd outlives this script, so it must not hold the script's lock (9) or output.
    setsid dockerd "$@" </dev/null >"$LOG" 2>&1 9>&- &
    pid=$!
    # clean.sh compares the start time too, since the process id may be reused.
    echo "$pid $(awk '{ print $22 }' "/proc/$pid/stat")" >"$STATE/dockerd.pid"
    wait_for_answer "$pid"
}

wait_for_answer() {
    local pid=$1
    for _ in $(seq 300); do
        if answers; then return; fi
        if ! kill -0 "$pid" 2>/dev/null; then break; fi
        sleep 0.2
    done
    kill "$pid" 2>/dev/null || true
    rm -f "$STATE/dockerd.pid"
    die "dockerd does not run: $(last_words "$LOG")"
}

start_service() {
    systemctl start docker ||
        die "docker.service does not start: $(journalctl -u docker -n 3 -o cat | tr -s '\n' ' ')"
    answers || die "docker.service runs, but: $(why_not)"
}

start_engine() {
    # Another script, which held the lock before, may have started one.
    if answers; then return; fi
    if [ "$(id -u)" != 0 ] || ! have apt-get; then
        die "no Docker engine answers ($(why_not)): start it, or run this as root on Debian or Ubuntu"
    fi
    install_engine
    # The package may have started it.
    if answers; then return; fi
    say "Starting a Docker engine"
    if [ -d /run/systemd/system ]; then start_service; else start_by_hand; fi
}

if ! answers; then locked engine start_engine; fi
