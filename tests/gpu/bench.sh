#!/bin/sh
# bench.sh FOLDER: all benchmarks of a GPU, by the programs in FOLDER, beside the peers that are there; a table at the end.
#
#   PYTHON, BNB   a Python that has torch, and a folder with its package bitsandbytes
#   LLAMA         a folder with llama-bench of a llama.cpp that was made with CUDA
#   MODELS        a folder for checkpoints of random weights, 24 GB; without it, loading and llama.cpp are not measured
#
# Everything that is printed is kept in FOLDER/bench.log.
set -u
here=$(dirname "$0") folder=$1
log=$folder/bench.log status=0

run() { # what was printed before is kept when a program ends badly
    { "$@" 2>&1 || echo "FAILED: $*"; } | tee -a "$log"
    ! tail -n 1 "$log" | grep -q '^FAILED' || status=1
}

clocks() {
    nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,temperature.gpu,power.draw,power.limit --format=csv,noheader
}

: >"$log"
run clocks
run "$folder/gpu_bench"
run "$folder/matrix_bench"
run "$folder/qmoon" "$here/decode_bench.lua"
run "$folder/qmoon" "$here/attention_bench.lua"
run "$folder/qmoon" "$here/experts_bench.lua"
[ -z "${BNB:-}" ] || PYTHONPATH=$BNB run "${PYTHON:-python3}" "$here/bnb_bench.py"
if [ -n "${MODELS:-}" ]; then
    run "$folder/qmoon" "$here/loading_bench.lua" "$MODELS" 1.5b 7b
    [ -z "${BNB:-}" ] || PYTHONPATH=$BNB run "${PYTHON:-python3}" "$here/loading_bench.py" "$MODELS/qwen2-7b"
    for size in ${LLAMA:+1.5b 7b}; do
        run "$folder/qmoon" quantize "$MODELS/qwen2-$size" "$MODELS/qwen2.5-$size.gguf" --type q4_0 --force
        run "$LLAMA/llama-bench" -m "$MODELS/qwen2.5-$size.gguf" -ngl 99 -fa on -p 2048 -n 0 -o jsonl
        run "$LLAMA/llama-bench" -m "$MODELS/qwen2.5-$size.gguf" -ngl 99 -fa on -p 0 -n 128 -d 512 -o jsonl
        rm -f "$MODELS/qwen2.5-$size.gguf"
    done
fi
run clocks
"$folder/qmoon" "$here/bench_table.lua" "$log" || status=1
exit $status
