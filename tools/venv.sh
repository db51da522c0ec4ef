#!/bin/sh
# Finds a Python to set up the virtual environment with; venv.py beside this file does the work.
#   PYTHON=/path/to/python3 VENV=.venv sh tools/venv.sh demo,test
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

fits() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

if [ -n "${PYTHON:-}" ]; then
    if ! command -v "$PYTHON" >/dev/null 2>&1; then
        echo "PYTHON=$PYTHON is not a program that can be run; name a Python 3.11 or later." >&2
        exit 1
    fi
    if ! fits "$PYTHON"; then
        echo "PYTHON=$PYTHON is $("$PYTHON" --version 2>&1 | head -n 1); ddgan_fast needs Python 3.11 or later." >&2
        exit 1
    fi
    exec "$PYTHON" "$here/venv.py" --chosen "$@"
fi

for candidate in python3 python3.14 python3.13 python3.12 python3.11 python; do
    if fits "$candidate"; then
        exec "$candidate" "$here/venv.py" "$@"
    fi
done
echo "No Python 3.11 or later was found on the PATH; install one, or name it: make PYTHON=/path/to/python3" >&2
exit 1
