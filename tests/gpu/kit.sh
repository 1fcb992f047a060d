#!/bin/sh
# kit.sh BUILD FOLDER [BITSANDBYTES]: adds to FOLDER, made by dist.sh, what a machine with a GPU needs to run the tests
# and benchmarks: `sh run.sh` there, or `sh run.sh test`, `bench`, `sanitize` or `fuzz`; bench.sh says which peers it takes.
set -eu
build=$1 to=$(realpath "$2") bnb=${3:-}
for program in gpu_test gpu_bench matrix_bench; do
    cp "$build/$program" "$to/"
    strip -g "$to/$program"
done
mkdir -p "$to/tests/gpu"
cp tests/run.lua "$to/tests/"
cp tests/gpu/*.lua tests/gpu/*.py tests/gpu/bench.sh "$to/tests/gpu/"
mkdir -p "$to/tests/lua" "$to/tests/fixtures"
cp tests/lua/support.lua "$to/tests/lua/"
cp README.md "$to/" # a text
cp -r tests/fixtures/tiny-qwen2 tests/fixtures/tiny-adapter "$to/tests/fixtures/"
if [ -n "$bnb" ]; then # its Python files and the one library for CUDA 13.0
    mkdir -p "$to/bnb"
    (cd "$bnb" && find bitsandbytes \( -name '*.py' -o -name 'libbitsandbytes_cuda130.so' -o -name 'libbitsandbytes_cpu.so' \) \
        -exec cp --parents -t "$to/bnb" {} +)
fi
cat >"$to/run.sh" <<'EOF'
#!/bin/sh
# Tests, then speed, with a table at the end.
cd "$(dirname "$0")"
status=0
if [ "${1:-}" = sanitize ]; then # every tool over small cases; minutes
    for tool in memcheck racecheck synccheck; do
        for program in ./gpu_test "./qmoon tests/run.lua tests/gpu/pipeline_test.lua tests/gpu/cuda_test.lua"; do
            echo "$tool $program"
            QMOON_GPU_TEST=small compute-sanitizer --tool $tool --report-api-errors no --error-exitcode 9 $program || status=1
        done
    done
    exit $status
fi
if [ "${1:-}" = fuzz ]; then # [SEED [SECONDS [DEVICE [only=I|kind=KIND]]]]
    shift
    exec ./qmoon tests/gpu/fuzz.lua "$@"
fi
[ "${1:-}" = bench ] || ./qmoon tests/run.lua --unit ./gpu_test tests/gpu/*_test.lua || status=1
if [ "${1:-}" != test ]; then
    [ ! -d bnb ] || BNB=${BNB:-$PWD/bnb}
    export BNB
    sh tests/gpu/bench.sh . || status=1
fi
exit $status
EOF
echo "$to: $(du -sm "$to" | cut -f1) MiB"
