#!/usr/bin/env bash
# Checks the Django app:  check.sh [install | wheels DIRECTORY]
#   install   make the Python environments only; test.sh does so before it builds
#   wheels    build the wheels of the app and of the program, which the swap installs: TEST_WHEELS=DIRECTORY. With
#             GATEWAY_LONG that of the program from a release build
# With each Django that it supports and this machine has a Python for: the tests, on SQLite; with one of them also those
# that depend on the database on PostgreSQL; ruff, mypy; the wheel, built, and installed into an empty environment. One of
# the tests is the swap: a project on Daphne goes to the gateway by both wheels, and back; what each step took is told.
set -euo pipefail
wheels_to=${2:+$(realpath -m "$2")}
cd "$(dirname "${BASH_SOURCE[0]}")"
environments=$(cd ../.. && pwd)/.venv/django

declare -A pythons=([4.2]=python3 [5.2]=python3)
declare -A djangos=([4.2]=4.2.30 [5.2]=5.2.19 [6]=6.1.3)
# Django 6 needs Python 3.12. What is on the path may be a stand-in that does not run.
for candidate in python3.14 python3.13 python3.12 "$HOME"/.pyenv/versions/3.1[2-4].*/bin/python; do
  if "$candidate" -c 'import ensurepip, venv, sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then
    pythons[6]=$candidate
    break
  fi
done
[ -n "${pythons[6]-}" ] || echo "Django 6: not checked, as there is no Python 3.12 or newer"

install() {
  local version wanted
  wanted=$(cat tests/requirements-swap.txt)
  if [ "$(cat "$environments/swap/installed" 2>/dev/null)" != "$wanted" ]; then
    echo "making the environment of the swap"
    rm -rf "${environments:?}/swap"
    "${pythons[5.2]}" -m venv "$environments/swap"
    "$environments/swap/bin/python" -m pip install --quiet --disable-pip-version-check -r tests/requirements-swap.txt
    printf '%s\n' "$wanted" >"$environments/swap/installed"
  fi
  for version in "${!pythons[@]}"; do
    wanted="Django==${djangos[$version]} $(cat tests/requirements.txt)"
    [ "$(cat "$environments/$version/installed" 2>/dev/null)" != "$wanted" ] || continue
    echo "making the environment of Django ${djangos[$version]}"
    rm -rf "${environments:?}/$version"
    "${pythons[$version]}" -m venv "$environments/$version"
    "$environments/$version/bin/python" -m pip install --quiet --disable-pip-version-check \
      "Django==${djangos[$version]}" -r tests/requirements.txt
    printf '%s\n' "$wanted" >"$environments/$version/installed"
  done
}

# maturin moves the program out of Cargo's directory and then copies it back: nothing that starts it may run meanwhile.
wheels() {
  local profile=release path=$PATH
  if [ -z "${GATEWAY_LONG-}" ]; then
    profile=dev path="$PWD/tests/bin:$PATH"
  fi
  "$environments/5.2/bin/python" -m build --wheel --no-isolation --outdir "$1" . &&
    CARGO_TERM_QUIET=true PATH=$path PROFILE=$profile MATURIN=$environments/swap/bin/maturin server/build.sh "$1"
}

install
case ${1-} in
  install) exit ;;
  wheels) wheels "${wheels_to:?check.sh wheels DIRECTORY}"; exit ;;
esac

directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
python=$environments/5.2/bin/python

suite() { # name, version, arguments of tests.run
  local status=0
  "$environments/$2/bin/python" -m tests.run "${@:3}" >"$directory/$1" 2>&1 || status=$?
  echo "$status" >"$directory/$1.status"
}

wheel() {
  # A copy: what is built leaves files behind.
  "$python" -m build --no-isolation --outdir "$directory/dist" . || return
  "$python" -m twine check --strict "$directory"/dist/* || return
  "${pythons[5.2]}" -m venv "$directory/clean" || return
  "$directory/clean/bin/pip" install --quiet --disable-pip-version-check "$directory"/dist/*.whl || return
  cp -R tests "$directory/tests" && cd "$directory" || return
  cat >site.py <<'PYTHON' || return
import filecmp, os, sys
import django
os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
django.setup()
from django.contrib.staticfiles import finders
from django.core.management import call_command
call_command("check", "--fail-level", "WARNING")
call_command("makemigrations", "channel_gateway", "--check", "--dry-run")
call_command("gateway_config", "--output", "gateway.toml")
assert "clean" in django.__file__
sys.exit(not filecmp.cmp(finders.find("channel_gateway/client.js"), sys.argv[1], shallow=False))
PYTHON
  env -u TEST_GATEWAY PATH=/usr/bin:/bin PYTHONPATH=. clean/bin/python site.py "$OLDPWD/../js/client.js"
}

if [ -z "${TEST_WHEELS-}" ]; then
  export TEST_WHEELS=$directory/wheels
  wheels "$TEST_WHEELS" >"$directory/log" 2>&1 || { cat "$directory/log"; exit 1; }
fi
# What is tagged `once` depends on no Django. Two at a time: they mostly wait.
(
  suite "Django 4.2" 4.2 tests --exclude-tag once
  [ -z "${pythons[6]-}" ] || suite "Django 6" 6 tests --exclude-tag once
) &
suite "Django 5.2" 5.2
suite "Django 5.2 on PostgreSQL" 5.2 --postgres tests.test_outbox tests.test_memberships tests.test_publishing
wait

failed=0 passed=0
for log in "$directory/Django "*; do
  case $log in *.status) continue ;; esac
  status=$(cat "$log.status")
  ran=$(sed -n 's/^Ran \([0-9]*\) tests\{0,1\} in .*/\1/p' "$log" | tail -n 1)
  wrong=$(sed -n 's/^FAILED (\(.*\))$/\1/p' "$log" | { grep -oE '(failures|errors)=[0-9]+' || true; } |
    awk -F= '{ sum += $2 } END { if (NR) print sum }')
  [ "$status" -eq 0 ] || { cat "$log"; [ -n "$wrong" ] || wrong=1; }
  failed=$((failed + ${wrong:-0})) passed=$((passed + ${ran:-0} - ${wrong:-0}))
  echo "$(basename "$log"): ${ran:-0} tests$([ "$status" -eq 0 ] || echo ', FAILED')"
  grep '^swap: ' "$log" || true
done

tool() {
  echo "$1"
  if ("${@:2}") >"$directory/log" 2>&1; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    cat "$directory/log"
  fi
}
tool "ruff" "$python" -m ruff check .
tool "ruff format" "$python" -m ruff format --check .
tool "mypy --strict" env PYTHONPATH=. "$python" -m mypy --cache-dir "$directory/mypy"
tool "wheel in an empty environment" wheel

# As `node --test` says it, so that test.sh can count.
echo "# pass $passed"
echo "# fail $failed"
[ "$failed" -eq 0 ]
