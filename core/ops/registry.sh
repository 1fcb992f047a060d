#!/bin/sh
# registry.sh FILES: prints the C table of ops that core/op.h promises.  An op's name is its file's name.
set -eu
echo '/* Written by core/ops/registry.sh from the folder core/ops. */'
echo '#include "op.h"'
names=$(for f; do basename "$f" .c; done | LC_ALL=C sort)
for n in $names; do echo "extern const qm_op qm_op_$n;"; done
echo 'const qm_op *const qm_ops[] = {'
for n in $names; do echo "    &qm_op_$n,"; done
echo '    0};'
