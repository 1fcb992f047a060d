"""Golden values for tests/lua/ops_test.lua, computed by torch in double: python ops.py > tests/fixtures/ops.lua

Every case is a Lua expression over qm.ops and what it must give.  Inputs are a formula that both languages know:
value i of v(seed, shape) is ((7919 i + 611953 seed) mod 2003 - 1001) / 512, exact in f32.
"""
import math
import sys

import bitsandbytes
import torch
import torch.nn.functional as F
import transformers
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, LlamaRMSNorm
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers import MixtralConfig

torch.set_default_dtype(torch.float64)
cases = []


def v(seed, *shape):
    n = math.prod(shape)
    return torch.tensor([((7919 * i + 611953 * seed) % 2003 - 1001) / 512 for i in range(n)]).reshape(shape)


def case(name, lua, result, tolerance=None):
    cases.append((name, lua, [float(x) for x in torch.as_tensor(result).flatten()], tolerance))


def rope(x, first, head, base, rotary=None, factors=None, interleaved=False, scale=1.0):
    """transformers' rotation of [T, heads * head] in neox order, or of pairs of neighbours."""
    rotary = rotary or head
    t = x.shape[0]
    h = x.reshape(t, -1, head).transpose(0, 1)[None]
    inv = 1.0 / base ** (torch.arange(0, rotary, 2) / rotary)
    if factors is not None:
        inv = inv / factors
    angle = torch.arange(first, first + t)[:, None] * inv[None]
    emb = torch.cat((angle, angle), -1)[None]
    part, rest = h[..., :rotary], h[..., rotary:]
    if interleaved:
        part = torch.cat((part[..., 0::2], part[..., 1::2]), -1)
    turned, _ = apply_rotary_pos_emb(part, part, emb.cos() * scale, emb.sin() * scale)
    if interleaved:
        turned = torch.stack((turned[..., :rotary // 2], turned[..., rotary // 2:]), -1).flatten(-2)
    return torch.cat((turned, rest), -1)[0].transpose(0, 1).reshape(t, -1)


def attention(q, k, v_, heads, kv_heads, scale=None, window=0, softcap=0, sinks=None, past=0):
    t, n = q.shape[0], k.shape[0]
    dim = q.shape[1] // heads
    qh = q.reshape(t, heads, dim).transpose(0, 1)
    kh = k.reshape(n, kv_heads, dim).transpose(0, 1).repeat_interleave(heads // kv_heads, 0)
    vh = v_.reshape(n, kv_heads, dim).transpose(0, 1).repeat_interleave(heads // kv_heads, 0)
    s = qh @ kh.transpose(1, 2) * (scale or dim ** -0.5)
    if softcap:
        s = softcap * torch.tanh(s / softcap)
    i, j = torch.arange(t)[:, None] + past, torch.arange(n)[None]
    see = (j <= i) & ((j > i - window) if window else torch.ones_like(j, dtype=torch.bool))
    s = s.masked_fill(~see, -math.inf)
    if sinks is not None:
        s = torch.cat((s, sinks[:, None, None].expand(heads, t, 1)), -1)
    p = s.softmax(-1)[..., :n]
    return (p @ vh).transpose(0, 1).reshape(t, -1)


# embedding, linear, lora
case("embedding", "embedding(v(1, 7, 5), {3, 0, 6})", v(1, 7, 5)[[3, 0, 6]])
for t, k, n in [(1, 37, 11), (3, 64, 17), (17, 100, 33), (2, 1, 1), (5, 515, 3)]:
    case(f"linear {t} x {k} -> {n}", f"linear(v(1, {t}, {k}), v(2, {n}, {k}), v(3, {n}))",
         F.linear(v(1, t, k), v(2, n, k), v(3, n)))
case("linear without bias, three dimensions", "linear(v(1, 2, 3, 20), v(2, 7, 20))", F.linear(v(1, 2, 3, 20), v(2, 7, 20)))
case("lora", "lora(v(1, 3, 10), v(2, 3, 12), v(3, 4, 12), v(4, 10, 4), 0.5)",
     v(1, 3, 10) + 0.5 * v(2, 3, 12) @ v(3, 4, 12).T @ v(4, 10, 4).T)

# norms and elementwise
norm = LlamaRMSNorm(20, 1e-5)
norm.weight.data = v(2, 20)
case("rmsnorm", "rmsnorm(v(1, 3, 20), v(2, 20), 1e-5)", norm(v(1, 3, 20).double()).detach(), 1e-6)
x = v(1, 2, 24).reshape(2, 3, 8)
case("rmsnorm of heads, weight + 1", "rmsnorm(v(1, 2, 24), v(2, 8), 1e-6, 1)",
     x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * (v(2, 8) + 1))
wide = v(1, 3, 41) * 8
case("swiglu", "swiglu(scale(v(1, 3, 41), 8), v(2, 3, 41))", F.silu(wide) * v(2, 3, 41))
case("geglu", "geglu(scale(v(1, 3, 41), 8), v(2, 3, 41))", F.gelu(wide, approximate="tanh") * v(2, 3, 41))
case("silu", "activation(scale(v(1, 3, 41), 8), 'silu')", F.silu(wide))
case("gelu", "activation(scale(v(1, 3, 41), 8), 'gelu')", F.gelu(wide))
case("gelu_tanh", "activation(scale(v(1, 3, 41), 8), 'gelu_tanh')", F.gelu(wide, approximate="tanh"))
case("relu", "activation(v(1, 3, 41), 'relu')", F.relu(v(1, 3, 41)))
case("add", "add(v(1, 3, 5), v(2, 3, 5))", v(1, 3, 5) + v(2, 3, 5))
case("mul", "mul(v(1, 3, 5), v(2, 3, 5))", v(1, 3, 5) * v(2, 3, 5))
case("softcap", "softcap(scale(v(1, 3, 41), 20), 30)", 30 * torch.tanh(v(1, 3, 41) * 20 / 30))
case("softmax", "softmax(scale(v(1, 3, 41), 8))", wide.softmax(-1))

# rope
for kind in ["neox", "norm"]:
    case(f"rope {kind}", f"rope(v(1, 4, 24), 5, {{head_dim = 8, base = 1e4, kind = '{kind}'}})",
         rope(v(1, 4, 24), 5, 8, 1e4, interleaved=kind == "norm"))
case("rope far out", "rope(v(1, 2, 128), 4000, {head_dim = 64, base = 1e6})", rope(v(1, 2, 128), 4000, 64, 1e6), 3e-4)
case("rope of a part of the head", "rope(v(1, 4, 30), 3, {head_dim = 10, rotary_dim = 6})",
     rope(v(1, 4, 30), 3, 10, 1e4, rotary=6))
case("rope with factors and a scale", "rope(v(1, 4, 24), 9, {head_dim = 8, base = 500000, factors = "
     "add(v(7, 4), tensor{4, 4, 4, 4}), scale = 1.25})",
     rope(v(1, 4, 24), 9, 8, 5e5, factors=v(7, 4) + 4, scale=1.25))

# attention
for heads, kv, dim, opts in [(4, 4, 8, {}), (4, 2, 8, {}), (6, 1, 5, {}), (4, 2, 8, {"window": 3}),
                             (4, 2, 8, {"softcap": 2.0}), (4, 2, 8, {"scale": 0.1, "window": 1})]:
    lua = "".join(f", {a} = {b}" for a, b in opts.items())
    case(f"attention {heads} heads of {dim}, {kv} of keys{lua}",
         f"attention(v(1, 9, {heads * dim}), v(2, 9, {kv * dim}), v(3, 9, {kv * dim}), cache({kv}, {dim}), 1, "
         f"{{heads = {heads}, kv_heads = {kv}{lua}}})",
         attention(v(1, 9, heads * dim), v(2, 9, kv * dim), v(3, 9, kv * dim), heads, kv, **opts))
case("attention with sinks",
     "attention(v(1, 9, 32), v(2, 9, 16), v(3, 9, 16), cache(2, 8), 0, {heads = 4, kv_heads = 2, sinks = v(5, 4)})",
     attention(v(1, 9, 32), v(2, 9, 16), v(3, 9, 16), 4, 2, sinks=v(5, 4)))
case("attention, long", "attention(v(1, 150, 16), v(2, 150, 8), v(3, 150, 8), cache(1, 8), 0, {heads = 2, kv_heads = 1})",
     attention(v(1, 150, 16), v(2, 150, 8), v(3, 150, 8), 2, 1))

# mixture of experts: transformers' own block, with the logits its router makes
config = MixtralConfig(hidden_size=12, intermediate_size=20, num_local_experts=4, num_experts_per_tok=2,
                       experts_implementation="eager")
block = MixtralSparseMoeBlock(config).double()
gate, up, down = v(2, 4, 20, 12), v(3, 4, 20, 12), v(4, 4, 12, 20)
with torch.no_grad():
    block.gate.weight.copy_(v(5, 4, 12))
    block.experts.gate_up_proj.copy_(torch.cat((gate, up), 1))
    block.experts.down_proj.copy_(down)
    y = block(v(1, 1, 9, 12))
    y = y[0] if isinstance(y, tuple) else y
for form in ["stack", "list"]:
    case(f"moe, weights as a {form}",
         f"moe(v(1, 9, 12), linear(v(1, 9, 12), v(5, 4, 12)), 2, {{normalise = true}}, {form}(v(2, 4, 20, 12)), "
         f"{form}(v(3, 4, 20, 12)), {form}(v(4, 4, 12, 20)))", y)
p = (v(1, 9, 12) @ v(5, 4, 12).T).softmax(-1)
top, idx = p.topk(3, -1)
y = torch.zeros(9, 12)
for t in range(9):
    for e, w in zip(idx[t], top[t]):
        y[t] += w * (down[e] @ (F.silu(gate[e] @ v(1, 9, 12)[t]) * (up[e] @ v(1, 9, 12)[t])))
case("moe, three of four, as they are", "moe(v(1, 9, 12), linear(v(1, 9, 12), v(5, 4, 12)), 3, {normalise = false}, "
     "v(2, 4, 20, 12), v(3, 4, 20, 12), v(4, 4, 12, 20))", y)

# probabilities
case("logprobs", "logprobs(scale(v(1, 4, 300), 5), {7, 299, 0, 12})",
     (v(1, 4, 300) * 5).log_softmax(-1)[torch.arange(4), [7, 299, 0, 12]], 2e-6)

# LLM.int8(): bitsandbytes' own linear on the CPU, from a weight that was f16; two outlier columns, and none
for t, grow in [(5, 2.0), (1, 2.0), (5, 1.0)]:
    w, x = v(2, 33, 64).half(), (v(1, t, 64) * (1 + (torch.arange(64) % 31 == 7) * 7 * (grow - 1))).half()
    state = bitsandbytes.MatmulLtState()
    state.has_fp16_weights, state.threshold, state.is_training = False, 6.0, False
    state.CB, state.SCB, _ = bitsandbytes.functional.int8_vectorwise_quant(w)
    y = bitsandbytes.matmul(x, state.CB, state=state)
    lua = "v(1, %d, 64)" % t if grow == 1 else "mul(v(1, %d, 64), columns(%d, 64, 31, 7, 8))" % (t, t)
    case(f"LLM.int8, {t} rows, {'outliers' if grow > 1 else 'none'}", f"linear_int8({lua}, v(2, 33, 64):quantize 'int8')", y, 2e-3)

print("-- Written by tests/peers/ops.py with torch %s, transformers %s, bitsandbytes %s.  See there."
      % (torch.__version__, transformers.__version__, bitsandbytes.__version__))
print("return {")
for name, lua, result, tolerance in cases:
    print("    { %r, %r, %s,\n      { %s } }," % (name, lua.replace("'", '"') if "'" in lua else lua,
          tolerance or "nil", ", ".join("%.9g" % x for x in result)))
print("}")
