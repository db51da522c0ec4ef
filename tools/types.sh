#!/bin/sh
# Checks types. mypy cannot follow ddgan_fast.kernels into kernels/, so it sees the tree as installed.
#   VENV=.venv sh tools/types.sh
set -eu
cd "$(dirname "$0")/.."
rm -rf build/types
mkdir -p build/types/ddgan_fast
for part in ddgan_fast/* kernels benchmarks; do
    ln -s "../../../$part" build/types/ddgan_fast/
done
exec "${VENV:-.venv}/bin/python" -m mypy build/types/ddgan_fast
