# shellcheck shell=bash
# After this was sourced, the names, paths and helpers that the scripts beside it share are there.
# It keeps to bash 3.2, which is what macOS has.

# shellcheck disable=SC2034  # used by the scripts that source this file
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
STATE=$ROOT/.target
LABEL=org.terrafirma.testbed=1

# dockerd and mmdebstrap's helpers live there, and `su` leaves it out.
PATH=$PATH:/usr/sbin:/sbin

mkdir -p "$STATE"
# The private key of every target lies in it.
chmod 0700 "$STATE"

say() { printf '%s\n' "$*"; }

die() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

last_words() { tail -n 3 "$1" | tr -s '\n' ' '; }

# locked NAME COMMAND…: one at a time among the scripts of this checkout. macOS has no flock: there,
# start targets one after the other.
locked() {
    local name=$1
    shift
    (
        if have flock; then flock 9; fi
        "$@"
    ) 9>"$STATE/$name.lock"
}

# A snapshot of a target is an image with its disk, and a volume with what its Docker has.
snapshot_image() { echo "terrafirma/snapshot:$1"; }
snapshot_volume() { echo "terrafirma-snapshot-$1"; }

# copy_volume IMAGE FROM TO: with all that Docker's own layers need. Without SYS_ADMIN, cp would leave out in
# silence what marks a removed directory.
copy_volume() {
    docker run --rm --label "$LABEL" --network none --cap-add SYS_ADMIN --security-opt seccomp=unconfined \
        --security-opt apparmor=unconfined --volume "$2:/from:ro" --volume "$3:/to" \
        "$1" cp -a /from/. /to
}

# Debian calls a release by its name, a reader by its number.
codename() {
    case $1 in
        debian13) echo trixie ;;
        debian12) echo bookworm ;;
        # Over Debian 13's packages: see Dockerfile.ubuntu.
        ubuntu2404-like) echo trixie ;;
        *) die "DISTRO is debian13, debian12 or ubuntu2404-like, not '$1'" ;;
    esac
}

apt_get() {
    DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=600 "$@" \
        >"$STATE/apt.log" 2>&1
}

# A foreign source that does not answer fails this too, hence no verdict here: what counts is whether
# the package can be installed afterwards. DPkg::Lock::Timeout does not cover the lists' own lock.
refresh_lists() {
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        if apt_get update; then return; fi
        if ! grep -q 'lists/lock' "$STATE/apt.log"; then return; fi
        sleep 6
    done
}

# install PACKAGE…: from the distribution's archive, which is only asked for its lists when the ones
# on this machine are missing or too old to install from.
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
