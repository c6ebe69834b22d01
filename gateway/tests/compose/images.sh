#!/usr/bin/env bash
# Makes stand-ins for the images that the deployment files name, from this machine's Debian packages, in the engine that
# DOCKER_HOST names: images.sh DIRECTORY BINARY ROOTFS. DIRECTORY is scratch space, ROOTFS what rootfs.sh has made, BINARY what
# `cargo build` leaves behind in rust:1-bookworm.
set -euo pipefail
directory=$1 binary=$2 rootfs=$3
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

docker import "$rootfs" debian:bookworm-slim >/dev/null

image() { docker build --quiet --tag "$1" "$directory/$2" >/dev/null; }

mkdir -p "$directory"/{redis,postgres,haproxy,rust}

# As the official one: /data is its own, not root, and reached from other containers.
cat >"$directory/redis/entry" <<'SH'
#!/bin/sh
set -e
chown redis:redis /data
exec setpriv --reuid redis --regid redis --clear-groups "$@" --protected-mode no
SH
cat >"$directory/redis/Dockerfile" <<'SH'
FROM debian:bookworm-slim
COPY entry /entry
WORKDIR /data
VOLUME /data
ENTRYPOINT ["/entry"]
CMD ["redis-server"]
SH

cat >"$directory/postgres/entry" <<'SH'
#!/bin/sh
# User, database and password from the environment on the first start, as the official one has it.
set -e
PATH="$(echo /usr/lib/postgresql/*/bin):$PATH"
as="setpriv --reuid postgres --regid postgres --clear-groups"
mkdir -p "$PGDATA" /var/run/postgresql
chown postgres:postgres "$PGDATA" /var/run/postgresql
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  install -o postgres -m 600 "$POSTGRES_PASSWORD_FILE" /tmp/password
  $as initdb --pgdata "$PGDATA" --username "$POSTGRES_USER" --pwfile /tmp/password --auth-local trust \
    --auth-host scram-sha-256 --no-sync
  rm /tmp/password
  echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
  $as pg_ctl --pgdata "$PGDATA" --options "-c listen_addresses=''" --wait start
  [ "$POSTGRES_DB" = postgres ] || $as createdb --username "$POSTGRES_USER" "$POSTGRES_DB"
  $as pg_ctl --pgdata "$PGDATA" --mode fast --wait stop
fi
exec $as postgres -D "$PGDATA" -c listen_addresses='*'
SH
cat >"$directory/postgres/Dockerfile" <<'SH'
FROM debian:bookworm-slim
COPY entry /entry
ENV PGDATA=/var/lib/postgresql/data PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
RUN ln -sf "$(echo /usr/lib/postgresql/*/bin/pg_isready)" /usr/local/bin/pg_isready
VOLUME /var/lib/postgresql/data
STOPSIGNAL SIGINT
ENTRYPOINT ["/entry"]
SH

cat >"$directory/haproxy/Dockerfile" <<'SH'
FROM debian:bookworm-slim
USER haproxy
ENTRYPOINT ["haproxy", "-W", "-db"]
CMD ["-f", "/usr/local/etc/haproxy/haproxy.cfg"]
SH

# The project was compiled before; what its Dockerfile asks of cargo is looked at.
cp "$binary" "$directory/rust/gateway"
cp "$here/cargo" "$directory/rust/cargo"
cat >"$directory/rust/Dockerfile" <<'SH'
FROM debian:bookworm-slim
COPY gateway /prebuilt/gateway
COPY cargo /usr/local/bin/cargo
SH

chmod 755 "$directory"/{redis,postgres}/entry "$directory/rust/"{cargo,gateway}
image redis:7-bookworm redis
image postgres:15-bookworm postgres
image haproxy:2.6-bookworm haproxy
image rust:1-bookworm rust
