#!/bin/sh
# Turns a bare Debian 13 server, as root, into the same platform as deploy.py. `make bench` uses it as the lower
# bound: the same work in one SSH session, without checks, plan, second run or rollback. It expects the example
# application in /root/api.
set -eu
export DEBIAN_FRONTEND=noninteractive
packages() { apt-get install -qy --no-install-recommends "$@" > /dev/null; }

apt-get update -q > /dev/null
packages ca-certificates curl gnupg lsb-release python3 vim wget sudo openssh-server

for name in prod ingres dev; do
    useradd --create-home --shell /bin/bash "$name"
    install -d -m 700 "/home/$name/.ssh"
    : > "/home/$name/.ssh/authorized_keys"
    chown -R "$name:" "/home/$name/.ssh"
done
echo 'ingres ALL=(ALL:ALL) NOPASSWD: ALL' > /etc/sudoers.d/90-ingres
chmod 440 /etc/sudoers.d/90-ingres
cat > /etc/ssh/sshd_config.d/00-floor.conf << 'END'
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
AllowUsers root prod ingres dev
END
sshd -t
systemctl reload ssh

mkdir -p /etc/docker
cat > /etc/docker/daemon.json << 'END'
{"default-address-pools": [{"base": "10.210.0.0/16", "size": 24}], "live-restore": true,
 "log-driver": "local", "log-opts": {"max-file": "5", "max-size": "20m"}}
END
packages docker.io apparmor iptables docker-cli docker-compose docker-buildx
docker network create apps > /dev/null
docker0=$(docker network inspect bridge --format '{{(index .IPAM.Config 0).Gateway}}')

echo 'net.ipv4.ip_nonlocal_bind = 1' > /etc/sysctl.d/60-floor.conf
sysctl -qw net.ipv4.ip_nonlocal_bind=1
mkdir -p /etc/postgresql-common/createcluster.d
echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.d/floor.conf
packages postgresql-17
pg_createcluster --locale C.UTF-8 --encoding UTF8 17 main -- --data-checksums > /dev/null
cat > /etc/postgresql/17/main/conf.d/floor.conf << END
listen_addresses = 'localhost,$docker0'
max_connections = 100
END
for network in bridge apps; do
    subnet=$(docker network inspect $network --format '{{(index .IPAM.Config 0).Subnet}}')
    echo "host api api $subnet scram-sha-256" >> /etc/postgresql/17/main/pg_hba.conf
done
systemctl enable --quiet postgresql@17-main
systemctl start postgresql@17-main
password=$(head -c 24 /dev/urandom | base64 | tr '+/' '-_')
runuser -u postgres -- psql -Xq << END
create role api login password '$password';
create database api owner api template template0;
revoke connect, temporary on database api from public;
END

install -d -m 700 /etc/floor
echo "postgresql://api:$password@host.docker.internal:5432/api" > /etc/floor/database_url
chown prod: /etc/floor/database_url
chmod 400 /etc/floor/database_url
cat > /root/compose.yaml << END
services:
  api:
    image: floor/api
    build: /root/api
    deploy: {replicas: 4}
    ports: ["127.0.0.1:8000-8003:8000"]
    user: "$(id -u prod):$(id -g prod)"
    secrets: [database_url]
    extra_hosts: ["host.docker.internal:host-gateway"]
    restart: unless-stopped
secrets: {database_url: {file: /etc/floor/database_url}}
networks: {default: {name: apps, external: true}}
END
docker compose -f /root/compose.yaml -p api build --quiet
docker compose -f /root/compose.yaml -p api up --detach --wait > /dev/null 2>&1

packages caddy
cat > /etc/caddy/Caddyfile << 'END'
{
	skip_install_trust
}
api.terrafirma.test {
	tls internal
	encode zstd gzip
	reverse_proxy 127.0.0.1:8000 127.0.0.1:8001 127.0.0.1:8002 127.0.0.1:8003 {
		lb_policy least_conn
		lb_try_duration 10s
		health_uri /healthz
	}
}
END
systemctl reload caddy
