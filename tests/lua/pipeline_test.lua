-- The main job on the tiny model: outputs, plan, refusals, and that nothing is ever half there.

local core = require "qmoon.core"
local qm = require "qmoon"
local outputs = require "qmoon.outputs"
local write = require "qmoon.write"
local support = dofile "tests/lua/support.lua"

local BASE, ADAPTER = "tests/fixtures/tiny-qwen2", "tests/fixtures/tiny-adapter"

local function merged()
    return qm.open(BASE):merge(ADAPTER)
end

local function all(dir)
    return outputs.choose(nil, dir)
end

local function run(dir, options)
    options = options or {}
    options.round = options.round or "f16"
    return qm.write(merged(), all(dir), options)
end

local tree = support.tree

local function same_tree(a, b)
    local n = 0
    for name, bytes in pairs(a) do
        n = n + 1
        assert(b[name] ~= nil, name .. " is missing")
        assert(b[name] == bytes, name .. " has other bytes")
    end
    for name in pairs(b) do
        assert(a[name] ~= nil, name .. " is one too many")
    end
    return n
end

local function count_files(dir)
    local n = 0
    for _ in pairs(core.stat(dir) and tree(dir) or {}) do
        n = n + 1
    end
    return n
end

local T = {}

T["the five outputs are written, each as large as the plan said"] = function()
    local dir = support.scratch()
    local plan = write.plan(merged(), all(dir), { round = "f16" })
    local predicted = {}
    for _, out in ipairs(plan.outputs) do
        predicted[out.path] = require("qmoon.output").size(out)
    end
    run(dir)
    for path, size in pairs(predicted) do
        local s, real = core.stat(path), 0
        if s.type == "dir" then
            for _, bytes in pairs(tree(path)) do
                real = real + #bytes
            end
        else
            real = s.size
        end
        support.equal(real, size, path)
    end
end

T["threads and instruction sets do not change a byte"] = function()
    local one, two, three = support.scratch(), support.scratch(), support.scratch()
    run(one, { threads = 1 })
    run(two, { threads = 3 })
    local level = core.simd()
    core.simd "scalar"
    run(three, { threads = 2 })
    core.simd(level)
    assert(same_tree(tree(one), tree(two)) > 10)
    same_tree(tree(one), tree(three))
end

T["NF4 codes are those that bitsandbytes wrote"] = function()
    local dir = support.scratch()
    qm.write(merged(), { { dir .. "/m", format = "nf4", double_quant = true } })
    local h = core.safetensors(dir .. "/m/model.safetensors")
    local golden = core.json_decode(support.read "tests/fixtures/golden/bnb-nf4-dq.json")
    local n = 0
    for _, t in ipairs(h.tensors) do
        local want = golden.codes[t.name]
        if want then
            n = n + 1
            support.equal(core.sha256(h.file:read(t.at, t.size)), want, t.name)
        end
    end
    support.equal(n, 28, "weights compared")
end

-- Digests of what llama-quantize wrote, by tensor name, for a file of ours.
local function check_digests(path, type_name)
    local golden = core.json_decode(support.read "tests/fixtures/golden/gguf-digests.json")[type_name]
    local h, n = core.gguf(path), 0
    for _, t in ipairs(h.tensors) do
        local want = golden.tensors[t.name]
        assert(want, "the golden file has no " .. t.name)
        support.equal(t.type_name, want.type, t.name)
        support.equal(core.sha256(h.file:read(t.at, t.size)), want.sha256, t.name)
        n = n + 1
    end
    local expected = 0
    for _ in pairs(golden.tensors) do
        expected = expected + 1
    end
    support.equal(n, expected, "tensors")
    for _, row in ipairs(h.meta) do
        if row.key == "general.file_type" then
            support.equal(row.value, golden.metadata["general.file_type"].value, "file type")
        end
    end
end

for _, t in ipairs { "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M",
                     "Q5_K_S", "Q5_K_M", "Q6_K", "IQ4_NL", "IQ4_XS" } do
    T["every tensor of a " .. t .. " file is llama-quantize's, byte for byte"] = function()
        local dir = support.scratch()
        core.mkdir(dir)
        -- the golden files start from llama.cpp's conversion of peft's merge; tests/fixtures has that file
        qm.write(qm.open "tests/fixtures/golden/merged-f16.gguf", { { dir .. "/o.gguf", format = t:lower() } })
        check_digests(dir .. "/o.gguf", t)
    end
end

T["a bfloat16 folder goes to q8_0 without an f16 step"] = function()
    local dir = support.scratch()
    core.mkdir(dir)
    qm.write(qm.open(BASE), { { dir .. "/direct.gguf", format = "q8_0" }, { dir .. "/bf16.gguf", format = "bf16" } })
    qm.write(qm.open(dir .. "/bf16.gguf"), { { dir .. "/two-steps.gguf", format = "q8_0" } })
    assert(support.read(dir .. "/direct.gguf") == support.read(dir .. "/two-steps.gguf"), "the two ways differ")
end

T["tokenizer, generation config and chat template come along byte for byte"] = function()
    local dir = support.scratch()
    run(dir)
    for _, out in ipairs { "merged-fp16", "model-int8", "model-int4" } do
        for _, name in ipairs { "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja" } do
            assert(support.read(BASE .. "/" .. name) == support.read(dir .. "/" .. out .. "/" .. name), out .. "/" .. name)
        end
    end
end

T["shards: cut at the size asked for, indexed, and read back"] = function()
    local dir = support.scratch()
    qm.write(qm.open(BASE), { { dir .. "/m", format = "keep", shard_size = 1500000 } })
    local index = core.json_decode(support.read(dir .. "/m/model.safetensors.index.json"))
    local shards = {}
    for _, shard in pairs(index.weight_map) do
        shards[shard] = true
    end
    local n = 0
    for shard in pairs(shards) do
        n = n + 1
        assert(core.stat(dir .. "/m/" .. shard).size < 1500000 + 10000, shard .. " is larger than asked for")
    end
    assert(n >= 4, "only " .. n .. " shards")
    local a, b = qm.open(BASE), qm.open(dir .. "/m")
    support.equal(#b.items, #a.items, "tensors")
    for _, item in ipairs(a.items) do
        local other = b.by_name[item.name].source
        assert(item.source.file:read(item.source.at, item.source.size) == other.file:read(other.at, other.size), item.name)
    end
end

-- ---- refusals: one line, the right kind, nothing left behind -----------------------------------------------

local function refused(kind, text, make)
    local dir = support.scratch()
    local e = support.raises(kind, text, make, dir)
    assert(count_files(dir) == 0, "something was left behind")
    return e
end

T["an output that is there is not replaced without force, and is with it"] = function()
    local dir = support.scratch()
    core.mkdir(dir .. "/model-int8")
    support.write(dir .. "/model-int8/mine.txt", "precious")
    support.raises("fail", { "model-int8", "--force" }, run, dir)
    support.equal(support.read(dir .. "/model-int8/mine.txt"), "precious")
    support.equal(count_files(dir), 1, "files")
    run(dir, { force = true })
    assert(not core.stat(dir .. "/model-int8/mine.txt") and core.stat(dir .. "/model-int8/model.safetensors"))
    for _, name in ipairs(core.list(dir)) do
        assert(not name:find "%.part$" and not name:find "%.old$", name .. " was left behind")
    end
end

T["the model's own folder is never an output, force or not"] = function()
    local base = support.copy(BASE)
    support.raises("usage", base, function()
        qm.write(qm.open(base), { { base, format = "f16" } }, { force = true })
    end)
    assert(support.read(base .. "/model.safetensors") == support.read(BASE .. "/model.safetensors"))
end

T["a missing shard is named before anything is written"] = function()
    local base = support.scratch()
    qm.write(qm.open(BASE), { { base, format = "keep", shard_size = 1500000 } })
    os.remove(base .. "/model-00002-of-00005.safetensors")
    refused("fail", { "model-00002-of-00005.safetensors", "missing" }, function(dir)
        qm.write(qm.open(base), all(dir))
    end)
end

T["a file cut short is corrupt, by name"] = function()
    local base = support.copy(BASE)
    local bytes = support.read(base .. "/model.safetensors")
    support.write(base .. "/model.safetensors", bytes:sub(1, #bytes - 1000))
    refused("corrupt", "model.safetensors", function(dir)
        qm.write(qm.open(base), all(dir))
    end)
end

T["an adapter for another model is named with both shapes"] = function()
    local base = support.qwen2 { hidden = 64, ffn = 160, layers = 4, heads = 4, kv = 2, vocab = 600 }
    refused("fail", "[", function(dir)
        qm.write(qm.open(base):merge(ADAPTER), all(dir))
    end)
end

T["unknown formats and outputs are answered with what there is"] = function()
    refused("unsupported", { "nf5", "nf4" }, function(dir)
        qm.write(qm.open(BASE), { { dir .. "/x", format = "nf5" } })
    end)
    refused("usage", "q4_0", function(dir)
        qm.write(qm.open(BASE), { { dir .. "/x.gguf", format = "q4_00" } })
    end)
    refused("usage", "model-int4", function(dir)
        outputs.choose({ "model-int5" }, dir)
    end)
end

--- The base, with other bytes for one bf16 value: row 3, column 5 of an up_proj.
local function with_value(value)
    local base = support.copy(BASE)
    local bytes = support.read(base .. "/model.safetensors")
    local h = core.safetensors(base .. "/model.safetensors")
    local t
    for _, x in ipairs(h.tensors) do
        t = x.name == "model.layers.1.mlp.up_proj.weight" and x or t
    end
    local at = t.at + 2 * (3 * 256 + 5)
    support.write(base .. "/model.safetensors", bytes:sub(1, at) .. value .. bytes:sub(at + 3))
    return base
end

T["a value that f16 cannot hold stops the merge and is named"] = function()
    local base = with_value "\116\73" -- 1e6
    refused("fail", { "model.layers.1.mlp.up_proj.weight", "row 3, column 5", "65504" }, function(dir)
        qm.write(qm.open(base), { { dir .. "/m", format = "f16" } })
    end)
    local dir = support.scratch()
    qm.write(qm.open(base), { { dir .. "/m", format = "bf16" } }) -- bf16 holds it
end

T["a tensor that decodes to no numbers is named in the report, whose JSON has null for its figures"] = function()
    local base = with_value "\74\113" -- 1e30, of which a scale in f16 is infinite
    local r = qm.write(qm.open(base), { { support.scratch() .. ".gguf", format = "q8_0" } })
    local out = r.outputs[1]
    assert(out.error.sqnr == -math.huge and out.tensors[1].name == "blk.1.ffn_up.weight", out.tensors[1].name)
    assert(table.concat(out.notices, "\n"):find("'blk.1.ffn_up.weight' decodes to infinities or NaN", 1, true))
    assert(tostring(r):find "decodes to infinities")
    local error = core.json_decode(r:json(), "json").outputs[1].error
    for _, key in ipairs { "rmse", "mse", "max", "sqnr_db", "cosine", "bias" } do
        assert(error[key] == core.null, key)
    end
end

T["a folder that cannot be written to says so"] = function()
    local dir = support.scratch()
    support.write(support.scratch():match "^(.*)/" .. "/afile", "x")
    support.raises("fail", "afile", run, dir:match "^(.*)/" .. "/afile/out")
end

T["a full disk is found before any work, and nothing stays"] = function()
    local dir = support.scratch()
    local plan = write.plan(merged(), all(dir), { round = "f16" })
    plan.disk[1].free = 1000
    support.raises("nofit", { "free", dir:match "^(.*)/" }, write.check, plan)
    support.equal(count_files(dir), 0, "files")
end

-- ---- the program itself ---------------------------------------------------------------------------------------

T["exit codes: 0 done, 1 failed, 2 wrong use, 5 unsupported, 6 corrupt"] = function()
    local dir = support.scratch()
    local ok = ("pipeline --base %s --adapter %s --out %s"):format(BASE, ADAPTER, dir)
    support.equal(support.run(ok), 0, "pipeline")
    assert(core.stat(dir .. "/report.json") and core.stat(dir .. "/report.md"))
    support.equal(support.run(ok), 1, "again without --force")
    support.equal(support.run(ok .. " --force"), 0, "with --force")
    support.equal(support.run "pipeline --bas x", 2, "unknown option")
    support.equal(support.run "nosuchcommand", 2, "unknown command")
    support.equal(support.run(("quantize %s %s --type nf5"):format(BASE, support.scratch())), 5, "unknown format")
    local broken = support.copy(BASE)
    support.write(broken .. "/model.safetensors", "not safetensors at all")
    support.equal(support.run(("quantize %s %s --type nf4"):format(broken, support.scratch())), 6, "corrupt")
end

T["plan prints what pipeline writes and writes nothing"] = function()
    local dir = support.scratch()
    local status, text = support.run(("plan pipeline --base %s --adapter %s --out %s --json"):format(BASE, ADAPTER, dir))
    support.equal(status, 0, text)
    local plan = core.json_decode(text)
    support.equal(#plan.outputs, 5, "outputs")
    assert(not core.stat(dir))
end

T["every command has help, and it exits with 0"] = function()
    for _, name in ipairs(core.modules "command:") do
        local status, text = support.run(name:sub(9) .. " --help")
        support.equal(status, 0, name)
        assert(text:find "^usage: qmoon ", name .. " has no usage line: " .. text)
    end
end

T["killed in the middle: no final names, and the next run replaces what is left"] = function()
    local base = support.qwen2 { hidden = 512, ffn = 2048, layers = 6, heads = 8, kv = 2, vocab = 20000 }
    local dir = support.scratch()
    for _, delay in ipairs { 0.02, 0.05, 0.1 } do
        os.execute(("timeout -s KILL %g %s pipeline --base %s --out %s >/dev/null 2>&1"):format(delay, arg[-1], base, dir))
        for _, name in ipairs(core.stat(dir) and core.list(dir) or {}) do
            if not name:find "%.part$" then -- whatever has a final name must be whole
                assert(name ~= "merged-fp16" or #qm.open(dir .. "/" .. name).items > 0)
            end
        end
        core.remove_tree(dir .. "/report.json")
        for _, name in ipairs { "merged-fp16", "model-int8", "model-int4", "model.gguf", "model-q4_0.gguf" } do
            core.remove_tree(dir .. "/" .. name)
        end
    end
    support.equal(support.run(("pipeline --base %s --out %s"):format(base, dir)), 0, "the run after")
    for _, name in ipairs(core.list(dir)) do
        assert(not name:find "%.part$", name .. " was left behind")
    end
end

T["Ctrl-C ends with 130 and removes what was begun"] = function()
    local base = support.qwen2 { hidden = 512, ffn = 2048, layers = 6, heads = 8, kv = 2, vocab = 60000 }
    local dir = support.scratch()
    local status = os.execute(("timeout --preserve-status -s INT 0.15 %s pipeline --threads 1 --base %s --out %s >/dev/null 2>&1")
        :format(arg[-1], base, dir))
    status = status > 255 and math.floor(status / 256) or status
    assert(status == 130 or status == 0, "exit status " .. status)
    for _, name in ipairs(core.stat(dir) and core.list(dir) or {}) do -- it may come when outputs get their final names
        assert(not name:find "%.part$", name .. " was left behind")
        assert(name ~= "merged-fp16" or #qm.open(dir .. "/" .. name).items > 0)
    end
end

T["a GPU that is not there is said to be missing, and auto goes without"] = function()
    if core.cuda_count() > 0 then
        return
    end
    local function plan(device)
        return write.plan(merged(), all(support.scratch()), { round = "f16", device = device })
    end
    local e = support.raises("unsupported", { "" }, plan, "cuda:0")
    assert(e.message:find "no GPU" or e.message:find "no CUDA", e.message)
    support.raises("usage", "--device", plan, "gpu0")
    assert(not plan("auto").couriers and not plan("cpu").couriers)
end

return T
