#!/bin/sh
# Fetches photographs from Debian's archive (package mate-backgrounds: nature/*.jpg) for
# `ddgan-fast bench loader`; nothing is installed. They go to ddgan_fast/photographs in the user's
# cache folder.
set -eu

target=${XDG_CACHE_HOME:-$HOME/.cache}/ddgan_fast/photographs
if [ -d "$target" ]; then
    echo "Photographs are in $target."
    exit 0
fi
for command in apt-get dpkg-deb; do
    command -v "$command" > /dev/null || {
        echo "The photographs come as a Debian package, and $command is missing here: give the" \
            "benchmark a folder of your own with --images." >&2
        exit 1
    }
done
work=$(mktemp -d)
chmod 755 "$work" # apt-get fetches as a user of its own
trap 'rm -rf "$work"' EXIT
cd "$work"
if ! apt-get download mate-backgrounds; then
    echo "The package was not found: run apt-get update and try again." >&2
    exit 1
fi
dpkg-deb -x mate-backgrounds_*.deb .
mkdir -p "$(dirname "$target")"
cp -r usr/share/backgrounds/mate/nature "$target.tmp"
mv "$target.tmp" "$target"
echo "Photographs are in $target."
