#!/bin/sh
# readme.sh QMOON: puts what the program says of itself into README.md, between the markers that tests/lua/docs_test.lua checks.
set -eu
new=$(mktemp)
table=$("$1" formats --markdown)
awk -v table="$table" '
    /^<!-- qmoon formats --markdown -->$/ { print; print table; skip = 1; next }
    /^<!-- end -->$/ { skip = 0 }
    !skip' README.md >"$new"
cat "$new" >README.md
rm "$new"
