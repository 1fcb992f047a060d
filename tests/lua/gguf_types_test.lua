-- Type rules and order of tensors, against what llama-quantize itself chose (golden/gguf-types.json).

local core = require "qmoon.core"
local types = require "qmoon.gguf_types"

local function read(path)
    local f = core.infile(path)
    return f:read(0, f:size())
end

local golden = core.json_decode(read "tests/fixtures/golden/gguf-types.json", "gguf-types.json")

local function source(model)
    local list = {}
    for i, row in ipairs(golden[model].source) do
        list[i] = { name = row[1], shape = row[2], type_name = row[3] }
    end
    return list
end

local OPTIONS = {
    tiny = { n_layer = 4, n_head = 4, n_head_kv = 2, arch = "qwen2", any_format = true },
    mixtral = { n_layer = 3, n_head = 4, n_head_kv = 2, n_expert = 4, arch = "llama", any_format = true },
}

local function check(model)
    local count = 0
    for ftype, text in pairs(golden[model].types) do
        local want = {}
        for name in text:gmatch "%S+" do
            want[#want + 1] = name
        end
        local tensors = types.sorted(source(model))
        local plan = types.plan(tensors, ftype:lower(), OPTIONS[model])
        for i, row in ipairs(plan) do
            assert(row.type_name == want[i], ("%s %s: %s, want %s"):format(ftype, tensors[i].name,
                row.type_name, want[i]))
        end
        assert(#plan == #want)
        count = count + 1
    end
    assert(count == 17)
end

local function plan_one(tensor, ftype, options)
    local o = { n_layer = 8, n_head = 8, n_head_kv = 8, arch = "llama", any_format = true }
    for k, v in pairs(options or {}) do
        o[k] = v
    end
    tensor.type_name = tensor.type_name or "BF16"
    -- an output.weight, so that token_embd is not taken for it
    local list = { tensor, { name = "output.weight", shape = { 512, 256 }, type_name = "BF16" } }
    return types.plan(list, ftype, o)[1]
end

local function refused(kind, fn, ...)
    local ok, e = pcall(fn, ...)
    assert(not ok and e.kind == kind, tostring(e))
    return tostring(e)
end

return {
    ["every tensor of the tiny model gets the type llama-quantize gave it, in 17 file types"] = function()
        check "tiny"
    end,

    ["… and of a model with experts and an output tensor"] = function()
        check "mixtral"
    end,

    ["tensors sort as llama-quantize sorts them"] = function()
        for model, g in pairs(golden) do
            for i, t in ipairs(types.sorted(source(model))) do
                assert(t.name == g.order[i], t.name)
            end
        end
        assert(types.before("blk.2.ffn_up.weight", "blk.10.attn_k.bias"))
    end,

    ["the plan does not depend on the order of the list"] = function()
        local tensors = source "tiny"
        local plan = types.plan(tensors, "q4_k_m", OPTIONS.tiny)
        local reversed = {}
        for i, t in ipairs(tensors) do
            reversed[#tensors + 1 - i] = t
        end
        local other = types.plan(reversed, "q4_k_m", OPTIONS.tiny)
        for i, row in ipairs(plan) do
            assert(row.type_name == other[#tensors + 1 - i].type_name)
        end
    end,

    ["rows that do not fit fall back, and the plan says why"] = function()
        local t = { name = "blk.0.attn_q.weight", shape = { 896, 896 } } -- Qwen2.5-0.5B's width
        assert(plan_one(t, "q4_k_m").type_name == "Q5_0")
        assert(plan_one(t, "q6_k").type_name == "Q8_0")
        assert(plan_one(t, "q3_k_s").type_name == "IQ4_NL")
        assert(plan_one(t, "q3_k_s", { profile = "llama.cpp-0c1e570" }).type_name == "Q4_0")
        assert(plan_one(t, "q6_k").reason:find("fallback: rows of 896 are no multiple of 256", 1, true))
        local odd = { name = "blk.0.attn_q.weight", shape = { 10, 100 } }
        assert(plan_one(odd, "q4_k_m").type_name == "F16")
        assert(refused("unsupported", plan_one, odd, "q4_0"):find "blk.0.attn_q.weight")
    end,

    ["what stays as it is says why"] = function()
        assert(plan_one({ name = "blk.0.attn_norm.weight", shape = { 256 }, type_name = "F32" },
            "q4_0").reason == "kept: 1-D")
        local router = plan_one({ name = "blk.0.ffn_gate_inp.weight", shape = { 8, 256 },
            type_name = "F32" }, "q4_0")
        assert(router.type_name == "F32" and router.reason == "kept: ffn_gate_inp")
        local norm = plan_one({ name = "blk.0.attn_q_norm.weight", shape = { 2, 256 }, type_name = "F32" },
            "q4_0")
        assert(norm.reason == "kept: norm")
        local row = plan_one({ name = "blk.0.x.weight", shape = { 1, 256 }, type_name = "F16" }, "q4_0")
        assert(row.type_name == "F16" and row.reason == "kept: 1-D")
    end,

    ["options choose: pure, output, embedding, patterns"] = function()
        local v = { name = "blk.0.attn_v.weight", shape = { 256, 256 } }
        assert(plan_one(v, "q4_k_m").type_name == "Q6_K")
        assert(plan_one(v, "q4_k_m", { pure = true }).type_name == "Q4_K")
        assert(plan_one(v, "q4_k_m", { tensor_types = { { "attn_v", "q8_0" } } }).type_name == "Q8_0")
        local two = { { "attn", "q8_0" }, { "attn_v", "q5_0" } }
        assert(plan_one(v, "q4_k_m", { tensor_types = two }).type_name == "Q5_0")
        assert(plan_one(v, "q4_k_m", { tensor_types = two,
            profile = "llama.cpp-0c1e570" }).type_name == "Q8_0")
        local embedding = { name = "token_embd.weight", shape = { 512, 256 } }
        assert(plan_one(embedding, "q4_k_m").type_name == "Q4_K")
        assert(plan_one(embedding, "q4_k_m", { token_embedding_type = "f16" }).type_name == "F16")
        local output = { name = "output.weight", shape = { 512, 256 }, type_name = "BF16" }
        local o = { n_layer = 8, n_head = 8, n_head_kv = 8, arch = "llama", any_format = true }
        assert(types.plan({ output }, "q4_0", o)[1].type_name == "Q6_K")
        o.leave_output_tensor = true
        assert(types.plan({ output }, "q4_0", o)[1].type_name == "BF16")
    end,

    ["eight experts and eighty layers have rules of their own"] = function()
        local v = { name = "blk.3.attn_v.weight", shape = { 256, 256 } }
        assert(plan_one(v, "q4_k_m", { n_expert = 8 }).type_name == "Q8_0")
        assert(plan_one(v, "q4_k_s", { n_layer = 80, n_head_kv = 1 }).type_name == "Q5_K")
        assert(plan_one(v, "q3_k_s", { n_layer = 80, n_head_kv = 1 }).type_name == "Q5_K")
        assert(plan_one(v, "q3_k_s",
            { n_layer = 80 }).type_name == "Q3_K") -- as many heads for k and v as for q: 65B
        local out = { name = "blk.0.attn_output.weight", shape = { 256, 256 } }
        assert(plan_one(out, "q4_k_m", { n_expert = 8 }).type_name == "Q5_K")
        local down = { name = "blk.7.ffn_down_exps.weight", shape = { 8, 256, 256 } }
        assert(plan_one(down, "q4_k_m",
            { n_expert = 8 }).type_name == "Q6_K") -- the layer is read from the name
        assert(plan_one(down, "mxfp4_moe", { n_expert = 8 }).type_name == "MXFP4")
    end,

    ["refusals name what is wrong"] = function()
        local v = { name = "blk.0.attn_v.weight", shape = { 256, 256 } }
        refused("usage", plan_one, v, "q4_x")
        refused("usage", plan_one, v, "q4_0", { output_tensor_type = "nf4" })
        refused("usage", plan_one, { name = v.name, shape = v.shape, type_name = "Q8_0" }, "q4_0")
        refused("unsupported", plan_one, { name = "blk.0.attn_q.weight", shape = { 256, 256 } }, "iq2_xxs")
        local e = refused("unsupported", plan_one, v, "tq2_0", { any_format = false })
        assert(e:find "tq2_0" and e:find "attn_v")
    end,

    ["the converter's types: norms and biases F32, odd rows F16"] = function()
        local tensors = {
            { name = "token_embd.weight", shape = { 100, 64 } },
            { name = "blk.0.attn_q.bias", shape = { 64 } },
            { name = "blk.0.attn_q.weight", shape = { 64, 40 } },
            { name = "blk.0.ffn_gate_inp.weight", shape = { 8, 64 } },
        }
        local plan, id = types.convert(tensors, "q8_0")
        assert(id == 7)
        local want = { "Q8_0", "F32", "F16", "F32" }
        for i, row in ipairs(plan) do
            assert(row.type_name == want[i])
        end
        assert(types.convert(tensors, "bf16")[3].type_name == "BF16")
        refused("usage", types.convert, tensors, "q4_0")
    end,

    ["what the converter wrote of the tiny model"] = function()
        local tensors = source "tiny"
        for i, row in ipairs((types.convert(tensors, "f16"))) do
            assert(row.type_name == tensors[i].type_name, tensors[i].name)
        end
    end,

    ["this program's formats agree with ggml's table of types"] = function()
        for _, f in ipairs(core.formats()) do
            if f.gguf_name then
                local t = types.type(f.gguf_name)
                assert(t and t.id == f.gguf_type and t.block == f.block, f.name)
            end
        end
        assert(types.size({ 2, 256 }, "Q6_K") == 420)
    end,
}
