#!/bin/sh
# After this ran, DIRECTORY is a package source. It has the packages whose names only Ubuntu has; each is empty, and
# depends on Debian's packages for the same purpose.
# Usage: ubuntu-archive.sh DIRECTORY
set -eu
directory=$1
mkdir -p "$directory/build/DEBIAN"

# package NAME VERSION DEPENDS
package() {
    printf '%s\n' "Package: $1" "Version: $2" "Architecture: all" "Depends: $3" \
        "Maintainer: Terrafirma <testbed@localhost>" "Description: $3, under the name that it has in Ubuntu" \
        >"$directory/build/DEBIAN/control"
    dpkg-deb --build --root-owner-group "$directory/build" "$directory/$1.deb" >/dev/null
    {
        cat "$directory/build/DEBIAN/control"
        printf '%s\n' "Filename: ./$1.deb" "Size: $(stat -c %s "$directory/$1.deb")" \
            "SHA256: $(sha256sum "$directory/$1.deb" | cut -d' ' -f1)" ''
    } >>"$directory/Packages"
}

: >"$directory/Packages"
package docker-compose-v2 2.26.1-4 "docker-compose, docker-cli"
rm -r "$directory/build"
echo "deb [trusted=yes] file:$directory ./" >/etc/apt/sources.list.d/ubuntu.list
