#!/usr/bin/env bash
# Builds the wheel of the program for this machine:  build.sh [DIRECTORY]
# PROFILE is a Cargo profile (release); MATURIN the program maturin (pip install maturin).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
exec "${MATURIN:-maturin}" build --profile "${PROFILE:-release}" --out "${1:-dist}"
