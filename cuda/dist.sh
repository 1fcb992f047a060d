#!/bin/sh
# dist.sh PROGRAM FOLDER: puts the program, the shared libraries that are not glibc's, and licences into a new folder.
set -eu
program=$1 to=$2
rm -rf "$to"
mkdir -p "$to/lib" "$to/licences"
cp "$program" "$to/qmoon"
strip -g "$to/qmoon"
ldd "$program" | sed -n 's/.* => \(\/[^ ]*\) .*/\1/p' | while read -r lib; do
    case $(basename "$lib") in
    libc.so.* | libm.so.* | libdl.so.* | librt.so.* | libpthread.so.* | ld-linux*) ;;
    *) cp -L "$lib" "$to/lib/" ;;
    esac
done
for package in libcjson1 libluajit-5.1-2 libluajit-5.1-dev libpcre2-dev libmd-dev; do
    doc=/usr/share/doc/$package/copyright
    if [ -f "$doc" ]; then cp -L "$doc" "$to/licences/$package"; fi
done
for eula in "${CUDA_HOME:-/usr/local/cuda}"/EULA.txt; do
    if [ -f "$eula" ]; then cp "$eula" "$to/licences/cuda-runtime"; fi
done
cp README.md "$to/"

# The newest glibc that the program asks for says where it runs.
newest=$(objdump -T "$to/qmoon" "$to"/lib/* | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -1)
echo "$to: needs $newest; $(du -sm "$to" | cut -f1) MiB"
case $newest in
GLIBC_2.3[6-9]* | GLIBC_2.[4-9]*) echo "dist.sh: that is newer than 2.35" >&2; exit 1 ;;
esac
