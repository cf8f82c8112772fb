#!/usr/bin/env bash
# Makes the image terrafirma/target:DISTRO for each DISTRO named (debian13, debian12, ubuntu2404-like), and
# terrafirma/bystander if `bystander` is named.
set -euo pipefail
# shellcheck source=testbed/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

exists() { docker image inspect "$1" >/dev/null 2>&1; }

# Debian's docker.io has no buildx, so fall back to the old builder; newer engines have only buildx.
build() {
    if docker buildx version >/dev/null 2>&1; then
        docker build --quiet "$@"
    else
        DOCKER_BUILDKIT=0 docker build --quiet "$@"
    fi >"$STATE/build.log" 2>&1 || die "docker build: $(last_words "$STATE/build.log")"
}

# An unreachable registry fails at once or within 15 s; the limit is for a registry that stalls.
pull() {
    if have timeout; then timeout 300 docker pull --quiet "$1"; else docker pull --quiet "$1"; fi \
        >"$STATE/pull.log" 2>&1
}

base_from_registry() {
    local distro=$1 image had=
    image=debian:$(codename "$distro")
    if exists "$image"; then had=yes; fi
    pull "$image" || return
    build --tag "terrafirma/base:$distro" - <<<"FROM $image"$'\n'"LABEL $LABEL"
    # The registry's image has no label of ours, so `make clean` would not find it.
    if [ -z "$had" ]; then docker rmi "$image" >/dev/null; fi
}

# sources CODENAME: this machine's package sources for Debian, rewritten for that release. If there are none,
# mmdebstrap uses its own default.
sources() {
    local own uri suite
    own=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    # shellcheck disable=SC2016  # apt fills these in
    apt-get indextargets --format '$(REPO_URI) $(RELEASE)' \
        'Created-By: Packages' 'Origin: Debian' 'Component: main' | sort -u |
        while read -r uri suite; do
            case $uri in http*) ;; *) continue ;; esac
            case $suite in
                "$own" | "$own-updates" | "$own-security")
                    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]" \
                        "$uri $1${suite#"$own"} main"
                    ;;
            esac
        done
}

tar_of() { echo "$STATE/base-$1.tar"; }

bootstrap() {
    local distro=$1 codename list new=$STATE/base-$1.new.tar
    codename=$(codename "$distro")
    if ! have mmdebstrap; then install mmdebstrap debian-archive-keyring; fi
    list=$(sources "$codename")
    set -- --variant=minbase "$codename" "$new"
    if [ -n "$list" ]; then set -- "$@" -; fi
    mmdebstrap "$@" <<<"$list" >"$STATE/mmdebstrap.log" 2>&1 ||
        die "no registry gave debian:$codename ($(last_words "$STATE/pull.log"))," \
            "and mmdebstrap: $(last_words "$STATE/mmdebstrap.log")"
    mv "$new" "$(tar_of "$distro")"
}

# from_archive DISTRO: whether the base was bootstrapped here, because no registry could be reached.
from_archive() {
    [ "$(docker image inspect -f '{{index .Config.Labels "org.terrafirma.base"}}' \
        "terrafirma/base:$1" 2>/dev/null)" = archive ]
}

# make_tar DISTRO: the base as a file, which target.sh gives to the targets too.
make_tar() {
    local distro=$1 container
    if [ -s "$(tar_of "$distro")" ]; then return; fi
    if from_archive "$distro"; then
        # Another checkout made the image: take the base from it.
        container=$(docker create --label "$LABEL" "terrafirma/base:$distro" true)
        docker export -o "$STATE/base-$distro.new.tar" "$container"
        docker rm "$container" >/dev/null
        mv "$STATE/base-$distro.new.tar" "$(tar_of "$distro")"
    else
        bootstrap "$distro"
    fi
}

make_base() {
    local distro=$1
    if exists "terrafirma/base:$distro"; then return; fi
    say "Making the base image for $distro"
    if [ ! -s "$(tar_of "$distro")" ] && base_from_registry "$distro"; then return; fi
    make_tar "$distro"
    docker import --change "LABEL $LABEL org.terrafirma.base=archive" --change 'CMD ["bash"]' \
        "$(tar_of "$distro")" "terrafirma/base:$distro" >/dev/null
}

make_image() {
    local distro=$1
    make_base "$distro"
    # Always debian13's, because the example application is built on it, whatever the server runs.
    if from_archive "$distro"; then make_tar debian13; fi
    if ! exists "terrafirma/target:$distro"; then say "Making the target image for $distro"; fi
    # Build each time, since the Dockerfile may have changed; otherwise it costs nothing.
    build --build-arg "BASE=terrafirma/base:$distro" --tag "terrafirma/target:$distro" "$ROOT/testbed"
}

make_ubuntu() {
    make_image debian13
    if ! exists "terrafirma/target:$1"; then say "Making the target image for $1"; fi
    build --tag "terrafirma/target:$1" --file "$ROOT/testbed/Dockerfile.ubuntu" "$ROOT/testbed"
}

make_bystander() {
    make_image debian13
    build --tag terrafirma/bystander --file "$ROOT/testbed/Dockerfile.bystander" "$ROOT/testbed"
}

for name in "${@:-debian13}"; do
    if [ "$name" = bystander ]; then
        locked image make_bystander
    else
        codename "$name" >/dev/null
        case $name in
            ubuntu*) locked image make_ubuntu "$name" ;;
            *) locked image make_image "$name" ;;
        esac
    fi
done
