#!/bin/sh
# registry.sh FORMATS -- AVX2 FILES -- AVX512 FILES: prints the C table that core/format.h promises.
# A format's name is its file's name; qm_fasts[i] belongs to qm_formats[i].
set -eu
formats= avx2= avx512= part=formats
for a; do
    if [ "$a" = -- ]; then
        case $part in formats) part=avx2 ;; *) part=avx512 ;; esac
        continue
    fi
    n=$(basename "$a" .c)
    eval "$part=\"\$$part $n\""
done
has() { case " $1 " in *" $2 "*) return 0 ;; *) return 1 ;; esac; }
formats=$(printf '%s\n' $formats | LC_ALL=C sort)
echo '/* Written by core/registry.sh from the folder core/formats. */'
echo '#include "format.h"'
echo '#include "registry.h"'
for f in $formats; do
    echo "extern const qm_format qm_format_$f;"
    if has "$avx2" "$f"; then echo "extern const qm_fast qm_avx2_$f;"; fi
    if has "$avx512" "$f"; then echo "extern const qm_fast qm_avx512_$f;"; fi
done
echo 'const qm_format *const qm_formats[] = {'
for f in $formats; do echo "    &qm_format_$f,"; done
echo '    0};'
echo 'const qm_fast *const qm_fasts[][QM_SIMD_COUNT] = {'
for f in $formats; do
    a=0 b=0
    if has "$avx2" "$f"; then a="&qm_avx2_$f"; fi
    if has "$avx512" "$f"; then b="&qm_avx512_$f"; fi
    echo "    {0, $a, $b},"
done
echo '};'
