#!/bin/sh
# Fetches Fashion-MNIST from Debian's archive (package dataset-fashion-mnist, MIT licence) for the
# tests that want a real IDX set; nothing is installed. It goes to $DDGAN_FAST_TEST_DATA, or to
# ddgan_fast/fashion-mnist in the user's cache folder.
set -eu
. "$(dirname "$0")/debian_package.sh"

target=${DDGAN_FAST_TEST_DATA:-${XDG_CACHE_HOME:-$HOME/.cache}/ddgan_fast/fashion-mnist}
files="train-images-idx3-ubyte.gz train-labels-idx1-ubyte.gz
       t10k-images-idx3-ubyte.gz t10k-labels-idx1-ubyte.gz"

complete() {
    for file in $files; do
        [ -f "$target/$file" ] || return 1
    done
}

if complete; then
    echo "Fashion-MNIST is in $target."
    exit 0
fi
unpack dataset-fashion-mnist "Fashion-MNIST comes" "put the four files of the set into $target"
mkdir -p "$target"
for file in $files; do
    found=$(find . -name "$file" -type f | head -n 1)
    [ -n "$found" ] || { echo "The package has no $file." >&2; exit 1; }
    cp "$found" "$target/$file.tmp"
    mv "$target/$file.tmp" "$target/$file"
done
echo "Fashion-MNIST is in $target."
