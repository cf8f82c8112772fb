#!/usr/bin/env bash
# After this ran, a virtual machine with the distribution's image IMAGE was deployed to twice: the second run changed
# nothing, and its site answered. The machine is removed. The script needs LXD, and hardware virtualization (/dev/kvm).
# Settings of the deploy follow as KEY=VALUE.
# Usage: testbed/vm.sh IMAGE [KEY=VALUE…], like testbed/vm.sh ubuntu:24.04 apt_source=upstream
set -euo pipefail
# shellcheck source=testbed/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

IMAGE=${1:?which image?}
NAME=terrafirma-vm
KEY=$STATE/id_ed25519
DATA=()
for pair in "${@:2}"; do DATA+=(--data "$pair"); done

if ! have lxc; then die "lxc missing: install LXD (snap install lxd, lxd init --auto)"; fi
if [ ! -f "$KEY" ]; then ssh-keygen -q -t ed25519 -N '' -C terrafirma-testbed -f "$KEY"; fi

remove() { lxc delete --force "$NAME" >/dev/null 2>&1 || true; }

address() { lxc list "$NAME" --columns 4 --format csv | sed -nE 's/^([0-9.]+) \((enp|eth).*/\1/p'; }

deploy() {
    "$ROOT/.venv/bin/pyinfra" "$1" --json --user root --key "$KEY" --data ssh_known_hosts_file="$STATE/known_hosts.vm" \
        "${DATA[@]}" "$2" "$ROOT/deploy.py"
}

remove
trap remove EXIT
say "Starting $IMAGE"
lxc launch "$IMAGE" "$NAME" --vm --config limits.cpu=2 --config limits.memory=4GiB --device root,size=20GiB
# Wait for LXD's agent and an address: both come before cloud-init has finished.
for _ in $(seq 120); do
    if lxc exec "$NAME" -- true 2>/dev/null && [ -n "$(address)" ]; then break; fi
    sleep 2
done
lxc exec "$NAME" -- cloud-init status --wait || true
lxc exec "$NAME" -- install -d -m 700 /root/.ssh
lxc file push --mode 600 --uid 0 --gid 0 "$KEY.pub" "$NAME/root/.ssh/authorized_keys"
server=$(address)
ssh-keyscan "$server" >"$STATE/known_hosts.vm" 2>/dev/null

cd "$ROOT"
say "Deploying to $server"
deploy -y "$server" >"$STATE/vm-first.json"
deploy -y "$server" >"$STATE/vm-second.json"
changes=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["results"]["totals"]["success"])' <"$STATE/vm-second.json")
if [ "$changes" != 0 ]; then die "the second run changed something: $STATE/vm-second.json"; fi
lxc exec "$NAME" -- curl --fail --silent --insecure --resolve api.terrafirma.test:443:127.0.0.1 \
    https://api.terrafirma.test/ >/dev/null
say "$IMAGE serves, and a second run changed nothing"
