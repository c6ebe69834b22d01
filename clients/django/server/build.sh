#!/usr/bin/env bash
# Builds the wheel of the program for this machine:  build.sh [DIRECTORY]
# GATEWAY_BINARY takes that program instead of a new release build; PYTHON is an interpreter with `build` and `hatchling`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
if [ -z "${GATEWAY_BINARY-}" ]; then
  cargo build --release --package gateway --bin gateway
fi
exec "${PYTHON:-python3}" -m build --wheel --no-isolation --outdir "${1:-dist}" .
