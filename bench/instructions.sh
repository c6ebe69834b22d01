#!/usr/bin/env bash
# Instructions per delivery and per connect, counted by valgrind: bench/instructions.sh
exec "$(dirname "${BASH_SOURCE[0]}")/run.sh" instructions "$@"
