#!/usr/bin/env bash
# Deploys the whole platform to the target NAME, and waits until every replica of its API has answered over HTTPS
# on 127.0.0.1:HTTPS_PORT.
# Usage: testbed/demo.sh NAME SSH_PORT HTTPS_PORT
set -euo pipefail
# shellcheck source=testbed/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

NAME=${1:?which target?}
SSH_PORT=${2:?which port?}
HTTPS_PORT=${3:?which port?}
DOMAIN=api.terrafirma.test
REPLICAS=4
AUTHORITY=/var/lib/caddy/.local/share/caddy/pki/authorities/local/root.crt

# `make demo` starts the clock before it makes the virtual environment.
began=${DEMO_STARTED:-$(date +%s)}

cd "$ROOT"
# Not with inventory.py: the user's own server may be in it.
.venv/bin/pyinfra -y --user root --key .target/id_ed25519 --port "$SSH_PORT" \
    --data ssh_known_hosts_file=.target/known_hosts 127.0.0.1 deploy.py

say "
Asking https://$DOMAIN:$HTTPS_PORT until all $REPLICAS replicas have answered:"
docker exec "$NAME" cat "$AUTHORITY" >"$STATE/$NAME-root.crt"
.venv/bin/python testbed/replicas.py "$DOMAIN" "$HTTPS_PORT" "$REPLICAS" <"$STATE/$NAME-root.crt"

say "
The platform runs at https://$DOMAIN:$HTTPS_PORT after $(($(date +%s) - began)) s. What now?
  ask it     curl --cacert .target/$NAME-root.crt --resolve $DOMAIN:$HTTPS_PORT:127.0.0.1 https://$DOMAIN:$HTTPS_PORT/
  look in    docker exec -it $NAME bash
  again      make demo   (and nothing changes)
  for real   write your host into inventory.py
  remove     make untarget NAME=$NAME"
