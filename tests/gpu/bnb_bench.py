"""bitsandbytes and a plain copy, measured as tests/gpu/bench.c measures us: rotated buffers, CUDA events, medians."""
import statistics
import sys

try:
    import torch
    import bitsandbytes
    import bitsandbytes.functional as F
except ImportError as e:
    sys.exit(f"bitsandbytes is not measured: {e}")

N = int(sys.argv[1]) if len(sys.argv) > 1 else 1 << 28
RUNS, COPIES = 9, 3


def seconds(work):
    each = []
    for run in range(RUNS + 1):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for i in range(2 * COPIES):
            work(i % COPIES)
        end.record()
        end.synchronize()
        if run:
            each.append(1e-3 * begin.elapsed_time(end) / (2 * COPIES))
    return statistics.median(each)


def report(what, s, count_of_bytes, roof):
    print(f"{what:<44} {1e6 * s:9.1f} us {1e-9 * count_of_bytes / s:8.0f} GB/s {100 * count_of_bytes / s / roof:6.1f} %")


values = [torch.randn(N // 4096, 4096, dtype=torch.bfloat16, device="cuda") * 0.02 for _ in range(COPIES)]
second = [torch.empty_like(v) for v in values]
print(f"bitsandbytes {bitsandbytes.__version__}, torch {torch.__version__}, {torch.cuda.get_device_name()}; {N} values")
s = seconds(lambda i: second[i].copy_(values[i]))
roof = 4 * N / s
report("torch copy, bf16", s, 4 * N, roof)
for kind in "nf4", "fp4":
    for nested in False, True:
        states = [F.quantize_4bit(v, blocksize=64, quant_type=kind, compress_statistics=nested) for v in values]
        size = N * (2 + 0.5) + (N / 64 * (1 + 4 / 256) if nested else N / 64 * 4)
        name = f"{kind} 64{' dq' if nested else ''}, bf16"
        s = seconds(lambda i: F.quantize_4bit(values[i], blocksize=64, quant_type=kind, compress_statistics=nested))
        report(f"bitsandbytes quantise {name}", s, size, roof)
        s = seconds(lambda i: F.dequantize_4bit(states[i][0], states[i][1], out=second[i]))
        report(f"bitsandbytes dequantise {name}", s, size, roof)
        del states
half = [v.half() for v in values]
s = seconds(lambda i: F.int8_vectorwise_quant(half[i]))
report("bitsandbytes quantise int8 4096, f16", s, 3 * N + N / 4096 * 4, roof)

# Products beside those of tests/gpu/matrix_bench.c: matrices in rotation over 600 MB, graphs of twenty.
def product(rows, cols, tokens):
    copies = 600 * 10**6 // (rows * cols // 2) + 1
    w = torch.randn(rows, cols, dtype=torch.bfloat16, device="cuda") * 0.02
    packed = [F.quantize_4bit(w, blocksize=64, quant_type="nf4") for _ in range(copies)]
    x = torch.randn(tokens, cols, dtype=torch.bfloat16, device="cuda")
    launches = max(20, copies)

    def work():
        for i in range(launches):
            bitsandbytes.matmul_4bit(x, packed[i % copies][0].t(), packed[i % copies][1])

    with torch.no_grad():
        work()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        each = []
        for _ in range(RUNS):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            each.append(1e3 * begin.elapsed_time(end) / launches)
    return statistics.median(each)


del values, second, half
torch.cuda.empty_cache()
for rows, cols in (4096, 4096), (14336, 4096), (4096, 14336):
    print(f"bitsandbytes product nf4 64, {rows} x {cols}, us of " + ", ".join(
        f"{m}: {product(rows, cols, m):.1f}" for m in (1, 8, 16, 32, 64, 128, 512, 2048)))
