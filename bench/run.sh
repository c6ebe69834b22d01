#!/usr/bin/env bash
# Builds the release gateway and the load generator, measures, prints one table: bench/run.sh [--help]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# One after the other: together they would share features, and it would not be the gateway that is shipped.
cargo build --release --quiet --package gateway
cargo build --release --quiet --package gateway-bench
target=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
exec "$target/release/gateway-bench" "$@"
