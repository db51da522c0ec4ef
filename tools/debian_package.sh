# For scripts that fetch data from Debian's archive; nothing is installed.

# unpack PACKAGE WHAT INSTEAD: go to a temporary folder that holds the package's files and vanishes
# at the end of the script. WHAT and INSTEAD name, for a machine that cannot, what was wanted and
# what to do instead.
unpack() {
    for command in apt-get dpkg-deb; do
        command -v "$command" > /dev/null || {
            echo "$2 as a Debian package, and $command is missing here: $3." >&2
            exit 1
        }
    done
    work=$(mktemp -d)
    chmod 755 "$work" # apt-get fetches as a user of its own
    trap 'rm -rf "$work"' EXIT
    cd "$work"
    if ! apt-get download "$1"; then
        echo "The package was not found: run apt-get update and try again." >&2
        exit 1
    fi
    dpkg-deb -x "$1"_*.deb .
}
