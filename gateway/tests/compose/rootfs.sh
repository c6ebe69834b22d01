#!/usr/bin/env bash
# Makes the file system of which all stand-ins for images are made, from Debian's packages: rootfs.sh FILE. Kept if it is
# there and of today's list.
set -euo pipefail
file=$1
packages=ca-certificates,haproxy,postgresql,redis-server
release=$(. /etc/os-release && echo "$VERSION_CODENAME")
wanted="$release $packages"
[ "$(cat "$file.of" 2>/dev/null)" != "$wanted" ] || [ ! -s "$file" ] || exit 0

# Where this machine's own packages come from.
mirror=$(apt-get indextargets --format '$(REPO_URI)' "Codename: $release" 'Created-By: Packages' | head -n 1)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
debootstrap --variant=minbase --include="$packages" "$release" "$scratch/root" "$mirror" >"$scratch/log" 2>&1 ||
  { tail -n 20 "$scratch/log" >&2; exit 1; }
# No package is fetched from inside: what a Dockerfile installs is there.
rm -rf "$scratch"/root/etc/apt/sources.list* "$scratch"/root/var/{lib/apt/lists,cache/apt/archives,lib/postgresql}/*
tar --create --file "$file.new" --directory "$scratch/root" --exclude './dev/*' .
mv "$file.new" "$file"
echo "$wanted" >"$file.of"
