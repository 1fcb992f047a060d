#!/bin/sh
# venv.sh FOLDER REQUIREMENTS: a Python virtual environment with exactly those packages, from PyPI.
# Made anew when the requirements (or files they include) have changed since; otherwise nothing happens.
set -eu
folder=$1 requirements=$2
included=$(sed -n "s|^-r |$(dirname "$requirements")/|p" "$requirements")
want=$(cat "$requirements" $included | sha256sum)

[ "$(cat "$folder/made-from" 2>/dev/null)" = "$want" ] && exit 0

# Debian and Ubuntu split venv off; some images have no python3 at all.
if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    if [ "$(id -u)" != 0 ]; then
        echo "the peer tests need Python's venv; run this once:  sudo sh -c 'apt-get update && apt-get install -y python3 python3-venv'" >&2
        exit 1
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3 python3-venv >/dev/null
fi

rm -rf "$folder"
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check -r "$requirements"
echo "$want" >"$folder/made-from"
