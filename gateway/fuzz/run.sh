#!/usr/bin/env bash
# Fuzzes every reader of what visitors and sites send, each for SECONDS (60), starting from a copy of its stored corpus.
# Exits with 1 if anything was found; the input is then in artifacts/.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-60}

cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r corpus/. "$copy"

# The address sanitizer needs a nightly compiler, and there is no unsafe code in these readers for it to watch.
# Overflow checks and debug assertions are on by cargo-fuzz's own default.
cargo fuzz build --sanitizer none
found=()
for target in $(cargo fuzz list); do
  echo "== $target for $seconds s"
  cargo fuzz run --sanitizer none "$target" "$copy/$target" -- \
    -max_total_time="$seconds" -rss_limit_mb=512 -max_len=65536 -timeout=10 -print_final_stats=1 || found+=("$target")
done
if [ ${#found[@]} -gt 0 ]; then
  echo "found something in: ${found[*]}" >&2
  exit 1
fi
