#!/bin/sh
# deps.sh PACKAGES: makes sure that Debian or Ubuntu packages are there.  As root it installs what is
# missing; otherwise it prints the one command to run.  Elsewhere (no dpkg) it leaves it to the compiler to
# say what is missing.
set -eu
command -v dpkg-query >/dev/null || exit 0
missing=
for p; do
    s=$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null) || s=
    [ "$s" = installed ] || missing="$missing $p"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ]; then
    echo "missing packages; run this once:  sudo sh -c 'apt-get update && apt-get install -y$missing'" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086 # a list of words is meant
apt-get install -y --no-install-recommends $missing >/dev/null 2>&1 && exit 0
apt-get update && apt-get install -y --no-install-recommends $missing
