#!/bin/sh
# Fetches photographs from Debian's archive (package mate-backgrounds: nature/*.jpg) for
# `ddgan-fast bench loader`; nothing is installed. They go to ddgan_fast/photographs in the user's
# cache folder.
set -eu
. "$(dirname "$0")/debian_package.sh"

target=${XDG_CACHE_HOME:-$HOME/.cache}/ddgan_fast/photographs
if [ -d "$target" ]; then
    echo "Photographs are in $target."
    exit 0
fi
unpack mate-backgrounds "The photographs come" "give the benchmark a folder of your own with --images"
mkdir -p "$(dirname "$target")"
cp -r usr/share/backgrounds/mate/nature "$target.tmp"
mv "$target.tmp" "$target"
echo "Photographs are in $target."
