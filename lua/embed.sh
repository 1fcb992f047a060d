#!/bin/sh
# embed.sh FILES: prints assembler that puts each Lua file into the program, with a table of
# {name, start, end} that lua/embed.h declares.  lua/qmoon/a/b.lua is module qmoon.a.b (init.lua
# names its folder); scripts/x.lua is command x.
set -eu
echo '    .section .rodata'
n=0
for f; do
    printf 'f%d: .incbin "%s"\ne%d: .byte 0\n' $n "$f" $n
    case $f in
    scripts/*) name=${f#scripts/} name="command:${name%.lua}" ;;
    *) name=${f#lua/} name=${name%.lua} name=${name%/init} name=$(echo "$name" | tr / .) ;;
    esac
    printf 'n%d: .asciz "%s"\np%d: .asciz "%s"\n' $n "$name" $n "$f"
    n=$((n + 1))
done
echo '    .section .data.rel.ro, "aw"'
echo '    .balign 8'
echo '    .globl qml_embedded'
echo 'qml_embedded:'
i=0
while [ $i -lt $n ]; do
    echo "    .quad n$i, p$i, f$i, e$i"
    i=$((i + 1))
done
echo '    .quad 0, 0, 0, 0'
echo '    .section .note.GNU-stack, "", @progbits'
