#!/bin/sh
# llama.sh PYTHON FOLDER: llama.cpp's own programs in FOLDER/bin, compiled from the tree inside the source package
# of llama-cpp-python that requirements-full.txt pins.  Nothing happens when they are there already.
set -eu
python=$1 folder=$2
here=$(dirname "$0")
package=$(grep '^llama-cpp-python==' "$here/requirements-full.txt")

[ "$(cat "$folder/made-from" 2>/dev/null)" = "$package" ] && exit 0

if ! command -v cmake >/dev/null || ! command -v g++ >/dev/null; then
    if [ "$(id -u)" != 0 ]; then
        echo "llama.cpp needs cmake and g++: sudo apt-get install cmake g++" >&2
        exit 1
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends cmake make g++ >/dev/null
fi

rm -rf "$folder"
mkdir -p "$folder"
"$python" -m pip download --quiet --no-deps --no-binary :all: --dest "$folder" "$package"
tar -xzf "$folder"/llama_cpp_python-*.tar.gz -C "$folder"
{
    cmake -S "$folder"/llama_cpp_python-*/vendor/llama.cpp -B "$folder" -DCMAKE_BUILD_TYPE=Release \
        -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=ON -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF \
        -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_USE_PREBUILT_UI=OFF &&
        cmake --build "$folder" -j "$(nproc)" --target llama-quantize llama-simple
} >"$folder/build.log" 2>&1 || {
    tail -n 20 "$folder/build.log" >&2
    exit 1
}
echo "$package" >"$folder/made-from"
