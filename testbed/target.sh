#!/usr/bin/env bash
# Starts a bare server as the container NAME: systemd, sshd on 127.0.0.1:SSH_PORT with root's key in .target/, and
# its port 443 on 127.0.0.1:HTTPS_PORT if given.
# With TERRAFIRMA_SNAPSHOT= the server is not bare: it has the disk that testbed/snapshot.sh kept, like a server made
# from a provider's snapshot, but its own machine-id, name and address.
# Usage: testbed/target.sh [NAME [SSH_PORT [DISTRO [HTTPS_PORT [DOCKER_CREATE_ARGUMENT…]]]]]
set -euo pipefail
# shellcheck source=testbed/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

NAME=${1:-terrafirma}
SSH_PORT=${2:-2222}
DISTRO=${3:-debian13}
HTTPS_PORT=${4:-}
SNAPSHOT=${TERRAFIRMA_SNAPSHOT:-}
MORE=("${@:5}")
SPEC="DISTRO=$DISTRO SSH_PORT=$SSH_PORT HTTPS_PORT=$HTTPS_PORT${SNAPSHOT:+ SNAPSHOT=$SNAPSHOT}${5:+ ${*:5}}"
IMAGE=terrafirma/target:$DISTRO
if [ -n "$SNAPSHOT" ]; then IMAGE=$(snapshot_image "$SNAPSHOT"); fi

KEY=$STATE/id_ed25519
KNOWN_HOSTS=$STATE/known_hosts
HOST_KEYS=$STATE/host/etc/ssh
STAND_IN=$STATE/stand-in

check_arguments() {
    case $NAME in '' | *[!a-z0-9-]*) die "NAME is made of a-z, 0-9 and -, not '$NAME'" ;; esac
    codename "$DISTRO" >/dev/null
    for port in "$SSH_PORT" ${HTTPS_PORT:+"$HTTPS_PORT"}; do
        case $port in '' | *[!0-9]*) die "a port is a number, not '$port'" ;; esac
    done
}

make_keys() {
    if ! have ssh-keygen; then install openssh-client; fi
    if [ ! -f "$KEY" ]; then ssh-keygen -q -t ed25519 -N '' -C terrafirma-testbed -f "$KEY"; fi
    # All targets share one set of host keys, so that known_hosts stays right when a target is made anew.
    if [ ! -d "$HOST_KEYS" ]; then
        mkdir -p "$HOST_KEYS"
        ssh-keygen -A -f "$STATE/host" >/dev/null
    fi
    mkdir -p "$STATE/root/.ssh"
    cp "$KEY.pub" "$STATE/root/.ssh/authorized_keys"
    chmod 0700 "$STATE/root/.ssh"
    chmod 0600 "$STATE/root/.ssh/authorized_keys"
}

remember_host() {
    local line type key
    touch "$KNOWN_HOSTS"
    for public in "$HOST_KEYS"/*.pub; do
        read -r type key _ <"$public"
        line="[127.0.0.1]:$SSH_PORT $type $key"
        if ! grep -qxF "$line" "$KNOWN_HOSTS"; then echo "$line" >>"$KNOWN_HOSTS"; fi
    done
}

inspect() { docker container inspect --format "$1" "$NAME" 2>/dev/null; }

# check_port PORT: fails if a program on this machine listens there.
check_port() {
    if (: <>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; then die "port $1 of 127.0.0.1 is already in use"; fi
}

from_archive() {
    [ "$(docker image inspect -f '{{index .Config.Labels "org.terrafirma.base"}}' \
        "terrafirma/target:$DISTRO")" = archive ]
}

# If this machine reaches no image registry, the target's own Docker cannot pull base images either. So the base is
# mounted as a file, and imported when Docker first starts there, after the deploy has installed it. With a registry,
# none of this is needed.
write_stand_in() {
    mkdir -p "$STAND_IN/docker.service.d"
    # Replace the file as a whole: another target may be copying it.
    cat >"$STAND_IN/$NAME.new" <<'UNIT'
[Service]
ExecStartPost=/bin/sh -c 'test -e /var/lib/docker/base || { docker import --change "CMD bash" /opt/testbed/base.tar debian:trixie && touch /var/lib/docker/base; }'
UNIT
    mv "$STAND_IN/$NAME.new" "$STAND_IN/docker.service.d/testbed.conf"
    chmod -R u=rwX,go=rX "$STAND_IN"
}

# A volume left from an earlier container would bring old data, so start with a new one.
make_volume() {
    if docker volume inspect "$NAME-docker" >/dev/null 2>&1; then
        if [ -z "$(docker volume ls -q --filter "label=$LABEL" --filter "name=^$NAME-docker\$")" ]; then
            die "a volume $NAME-docker exists that the testbed did not make: take another NAME"
        fi
        docker volume rm "$NAME-docker" >/dev/null
    fi
    docker volume create --label "$LABEL" "$NAME-docker" >/dev/null
}

legacy_cgroups() { [ "$(docker info --format '{{.CgroupVersion}}')" = 1 ]; }

create() {
    set -- --name "$NAME" --hostname "$NAME" \
        --label "$LABEL" --label "org.terrafirma.spec=$SPEC" --label "org.terrafirma.key=$(cat "$KEY.pub")" \
        --publish "127.0.0.1:$SSH_PORT:22" ${HTTPS_PORT:+--publish "127.0.0.1:$HTTPS_PORT:443"} \
        --volume "$NAME-docker:/var/lib/docker" --shm-size 1g --stop-timeout 30
    # systemd, nftables and the target's own Docker engine need these options. --privileged would do too, but fails on
    # a machine that itself lacks a capability.
    set -- "$@" --cap-add ALL \
        --security-opt seccomp=unconfined --security-opt apparmor=unconfined \
        --security-opt systempaths=unconfined --device-cgroup-rule 'a *:* rwm' \
        --tmpfs /run --tmpfs /run/lock
    if legacy_cgroups; then
        set -- "$@" --volume /sys/fs/cgroup:/sys/fs/cgroup:rw
    else
        set -- "$@" --cgroupns private
    fi
    if from_archive; then
        set -- "$@" --volume "$STATE/base-debian13.tar:/opt/testbed/base.tar:ro"
    fi
    if [ ${#MORE[@]} -gt 0 ]; then set -- "$@" "${MORE[@]}"; fi
    set -- "$@" "$IMAGE"
    if legacy_cgroups; then
        set -- "$@" /lib/systemd/systemd \
            SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1 systemd.unified_cgroup_hierarchy=0
    else
        # Docker mounts the container's part of the cgroup tree read-only: make it writable. With the machine's whole
        # tree instead, the target's containers would appear in both.
        set -- "$@" sh -c 'mount -o remount,rw /sys/fs/cgroup && exec /lib/systemd/systemd'
    fi
    # On a machine without this capability, old engines fail unless it is dropped, and newer ones refuse to drop it.
    # Nothing here needs it, so try both.
    docker create --cap-drop SYS_RESOURCE "$@" >/dev/null 2>"$STATE/create-$NAME.log" ||
        docker create "$@" >/dev/null 2>"$STATE/create-$NAME.log" ||
        die "$NAME cannot be made: $(last_words "$STATE/create-$NAME.log")"

    for key in "$HOST_KEYS"/*; do docker cp "$key" "$NAME:/etc/ssh/" >/dev/null; done
    docker cp "$STATE/root/.ssh" "$NAME:/root/" >/dev/null
    if from_archive; then
        write_stand_in
        docker cp "$STAND_IN/docker.service.d" "$NAME:/etc/systemd/system/" >/dev/null
    fi
    # Empty, so that the first boot writes a new one.
    : >"$STATE/machine-id"
    docker cp "$STATE/machine-id" "$NAME:/etc/machine-id" >/dev/null
}

discard() {
    docker rm --force "$NAME" >/dev/null 2>&1 || true
    docker volume rm "$NAME-docker" >/dev/null 2>&1 || true
}

start() {
    docker start "$NAME" >/dev/null 2>"$STATE/start-$NAME.log" || return
}

make_target() {
    local made
    if ! docker container inspect "$NAME" >/dev/null 2>&1; then
        check_port "$SSH_PORT"
        if [ -n "$HTTPS_PORT" ]; then check_port "$HTTPS_PORT"; fi
        say "Starting $NAME"
        make_volume
        trap discard EXIT
        if [ -n "$SNAPSHOT" ]; then copy_volume "$IMAGE" "$(snapshot_volume "$SNAPSHOT")" "$NAME-docker"; fi
        create
        start || die "$NAME does not start: $(last_words "$STATE/start-$NAME.log")"
        # docker cp keeps the user id of this machine's user: make the files root's.
        docker exec "$NAME" chown -R root:root /root/.ssh /etc/ssh /etc/systemd/system /etc/machine-id ||
            die "$NAME stopped at once: $(docker logs --tail 3 "$NAME" 2>&1 | tr -s '\r\n' ' ')"
        trap - EXIT
        return
    fi
    made=$(inspect '{{index .Config.Labels "org.terrafirma.spec"}}')
    if [ -z "$made" ]; then die "a container $NAME exists that the testbed did not make: take another NAME"; fi
    if [ "$made" != "$SPEC" ]; then
        die "$NAME exists with $made: \`make untarget NAME=$NAME\` first, or take another NAME"
    fi
    if [ "$(inspect '{{index .Config.Labels "org.terrafirma.key"}}')" != "$(cat "$KEY.pub")" ]; then
        die "$NAME exists with another checkout's key: \`make untarget NAME=$NAME\` first"
    fi
    if [ "$(inspect '{{.State.Running}}')" = true ]; then return; fi
    say "Starting $NAME again"
    start || die "$NAME does not start: $(last_words "$STATE/start-$NAME.log")"
}

booted() {
    case $(docker exec "$NAME" systemctl is-system-running 2>/dev/null) in
        running | degraded) ;;
        *) return 1 ;;
    esac
}

lets_root_in() {
    # Ignore the user's ~/.ssh/config.
    ssh -F /dev/null -i "$KEY" -p "$SSH_PORT" -o IdentitiesOnly=yes -o BatchMode=yes -o ConnectTimeout=5 \
        -o UserKnownHostsFile="$KNOWN_HOSTS" root@127.0.0.1 true </dev/null 2>"$STATE/ssh-$NAME.log"
}

wait_for() {
    for _ in $(seq 300); do
        if "$1"; then return; fi
        sleep 0.2
    done
    return 1
}

show() {
    say "$NAME runs, on $DISTRO:
  ssh      ssh -i .target/id_ed25519 -p $SSH_PORT -o UserKnownHostsFile=.target/known_hosts root@127.0.0.1
  shell    docker exec -it $NAME bash
  deploy   .venv/bin/pyinfra --user root --key .target/id_ed25519 --port $SSH_PORT --data ssh_known_hosts_file=.target/known_hosts 127.0.0.1 deploy.py
  reboot   docker restart $NAME
  remove   make untarget NAME=$NAME"
}

check_arguments
"$ROOT/testbed/engine.sh"
# A snapshot has its image already.
if [ -z "$SNAPSHOT" ]; then "$ROOT/testbed/image.sh" "$DISTRO"; fi
locked keys make_keys
locked keys remember_host
locked "name-$NAME" make_target
wait_for booted || die "$NAME does not boot: docker exec $NAME systemctl list-jobs"
wait_for lets_root_in || die "$NAME does not let root in: $(last_words "$STATE/ssh-$NAME.log")"
show
