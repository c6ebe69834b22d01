#!/usr/bin/env bash
# A network, processes and mounts of their own for a container engine and all it starts; gone with the command:
# inside.sh COMMAND...
set -euo pipefail
ip link set lo up
mount -t tmpfs tmpfs /run
exec "$@"
