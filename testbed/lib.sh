# shellcheck shell=bash
# Names, paths and helpers for the scripts beside this file, which source it. It is written for bash 3.2, the version
# of macOS.

# shellcheck disable=SC2034  # used by the scripts that source this file
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
STATE=$ROOT/.target
LABEL=org.terrafirma.testbed=1

# dockerd and mmdebstrap's helpers are in these directories, which `su` leaves out of PATH.
PATH=$PATH:/usr/sbin:/sbin

mkdir -p "$STATE"
# It holds the private key for every target.
chmod 0700 "$STATE"

say() { printf '%s\n' "$*"; }

die() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

last_words() { tail -n 3 "$1" | tr -s '\n' ' '; }

# locked NAME COMMAND…: runs COMMAND, one at a time among the scripts of this checkout. macOS has no flock: start
# targets one after the other there.
locked() {
    local name=$1
    shift
    (
        if have flock; then flock 9; fi
        "$@"
    ) 9>"$STATE/$name.lock"
}

# A snapshot of a target is an image with its disk, and a volume with the data of its Docker.
snapshot_image() { echo "terrafirma/snapshot:$1"; }
snapshot_volume() { echo "terrafirma-snapshot-$1"; }

# copy_volume IMAGE FROM TO: copies a volume with the attributes of Docker's layers. Without SYS_ADMIN, cp would
# silently drop the attribute that marks a removed directory.
copy_volume() {
    docker run --rm --label "$LABEL" --network none --cap-add SYS_ADMIN --security-opt seccomp=unconfined \
        --security-opt apparmor=unconfined --volume "$2:/from:ro" --volume "$3:/to" \
        "$1" cp -a /from/. /to
}

# codename DISTRO: Debian's name for the release.
codename() {
    case $1 in
        debian13) echo trixie ;;
        debian12) echo bookworm ;;
        # It has Debian 13's packages, see Dockerfile.ubuntu.
        ubuntu2404-like) echo trixie ;;
        *) die "DISTRO is debian13, debian12 or ubuntu2404-like, not '$1'" ;;
    esac
}

apt_get() {
    DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=600 "$@" \
        >"$STATE/apt.log" 2>&1
}

# Ignores failures, since an unrelated source may be down: what counts is whether the package can be installed
# afterwards. Retries, because DPkg::Lock::Timeout does not cover the lock of the lists.
refresh_lists() {
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        if apt_get update; then return; fi
        if ! grep -q 'lists/lock' "$STATE/apt.log"; then return; fi
        sleep 6
    done
}

# install PACKAGE…: installs from the distribution's archive. Refreshes the package lists only if they are missing or
# too old.
install() {
    if ! have apt-get || [ "$(id -u)" != 0 ]; then
        die "$* missing: install it, or run this as root on Debian or Ubuntu"
    fi
    say "Installing $*"
    if ! locked apt apt_get install --no-install-recommends "$@"; then
        refresh_lists
        locked apt apt_get install --no-install-recommends "$@" ||
            die "apt-get install $*: $(last_words "$STATE/apt.log")"
    fi
}
