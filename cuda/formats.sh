#!/bin/sh
# formats.sh FORMATS: prints what cuda/generic.cuh takes the formats from: each file of core/formats in a namespace
# of its own, since all call their functions encode and decode, and the list of them.
set -eu
cat <<'EOF'
/* Written by cuda/formats.sh from the folder core/formats. */
#define _Static_assert static_assert
#include "core/format.h"
#include "core/formats/table.h"
EOF
# Headers are guarded, so that inside a namespace nothing is left of them.
cat "$@" | sed -n 's/^#include "\([a-z0-9_]*\.h\)"$/\1/p' | LC_ALL=C sort -u | while read -r h; do
    echo "#include \"core/formats/$h\""
done
for f; do
    n=$(basename "$f" .c)
    printf 'namespace format_%s {\n#include "%s"\n}\n' "$n" "$f"
done
echo '#define QM_EACH_FORMAT(F) \'
for f; do
    echo "    F($(basename "$f" .c)) \\"
done
echo
echo '#define QM_EACH_IMPORTANT_FORMAT(F) \'
grep -l '\.encode_important' "$@" | while read -r f; do
    echo "    F($(basename "$f" .c)) \\"
done
echo
