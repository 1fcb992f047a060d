-- Whatever stands in a model's JSON files or in a GGUF file's metadata: planning an output works, or raises an error that
-- says what is wrong.  An error without a kind would be one of this program's own.

local core = require "qmoon.core"
local gguf = require "qmoon.gguf"
local json = require "qmoon.json"
local qm = require "qmoon"
local synth = require "qmoon.synth"
local support = dofile "tests/lua/support.lua"

local T = {}

local VALUES = { core.null, true, -1, "x", json.array {} }

local function plan_all(path, what)
    for _, format in ipairs { "q4_0", "nf4" } do
        local out = support.scratch() .. (format == "nf4" and "" or ".gguf")
        local ok, e = pcall(function()
            return qm.plan(qm.open(path), { { out, format = format, allow_requantize = true } })
        end)
        if not ok and not (type(e) == "table" and e.kind) then
            error(("%s: %s"):format(what, tostring(e)), 0)
        end
    end
end

local function size_of(t)
    local n = 0
    for _ in pairs(t) do
        n = n + 1
    end
    return n
end

--- Calls emit(what) with every value of a decoded JSON text replaced in turn; of long lists and large objects the first.
local function each_change(node, path, emit)
    local few, done = size_of(node) > 30, 0
    for key, value in pairs(node) do
        done = done + 1
        if few and done > 2 or #node > 4 and type(key) == "number" and key > 2 then
            break
        end
        local here = path .. "/" .. tostring(key)
        for _, other in ipairs(VALUES) do
            node[key] = other
            emit(here .. " = " .. json.encode(other))
        end
        node[key] = value
        if type(value) == "table" and value ~= core.null then
            each_change(value, here, emit)
        end
    end
end

local function change_files(dir, names)
    for _, name in ipairs(names) do
        local path = dir .. "/" .. name
        local text = support.read(path)
        local root = core.json_decode(text)
        each_change(root, name, function(what)
            support.write(path, json.encode(root))
            plan_all(dir, what)
        end)
        support.write(path, text)
    end
end

local function small(name)
    local dir = support.scratch()
    synth.model(synth.sizes[name].tiny, dir, { seed = 7 })
    return dir
end

T["values of another kind in config.json and the tokenizer's files"] = function()
    for _, name in ipairs { "gemma3" } do
        local dir = small(name)
        change_files(dir, { "config.json" })
        if core.stat(dir .. "/tokenizer_config.json") then
            change_files(dir, { "tokenizer_config.json" })
        end
    end
end

T["values of another kind in the description of a quantised folder"] = function()
    local dir = support.scratch()
    qm.write(qm.open(small "qwen2"), { { dir, format = "uint3:32" } })
    change_files(dir, { "quantization.json" })
end

local OTHER = {
    { type = "u32", value = 2 ^ 32 - 1 }, { type = "string", value = "x" }, { type = "array", elem = "i32", value = { 1, 2, 3 } },
}

--- Writes a GGUF file with other metadata and tensors, the data being h's.
local function write_gguf(path, h, rows, tensors)
    local header, at, size = gguf.header(rows, tensors)
    local out = core.outfile(path, size)
    out:write(0, header)
    for i, t in ipairs(tensors) do
        out:write(at[i], h.file:read(t.at, math.min(t.size, t.held or t.size)))
    end
    out:finish()
end

T["metadata of another kind, tensors missing, of another type or shape, in GGUF files"] = function()
    for _, name in ipairs { "phi3" } do
        local from, path = support.scratch() .. ".gguf", support.scratch() .. ".gguf"
        qm.write(qm.open(small(name)), { { from, format = "bf16" } })
        local h = core.gguf(from)
        local function try(what, rows, tensors)
            os.remove(path)
            write_gguf(path, h, rows, tensors or h.tensors)
            plan_all(path, name .. ": " .. what)
        end
        for i, row in ipairs(h.meta) do
            local rows = { unpack(h.meta) }
            for _, other in ipairs(OTHER) do
                rows[i] = setmetatable({ key = row.key }, { __index = other })
                if row.key ~= "general.alignment" then
                    try(("%s = %s %s"):format(row.key, other.type, tostring(other.value)), rows)
                end
            end
            table.remove(rows, i)
            try("without " .. row.key, rows)
        end
        for i, t in ipairs(h.tensors) do
            local tensors = { unpack(h.tensors) }
            for _, shape in ipairs { {}, { 0 }, { 1 }, { 3, 5 }, { 1, 1, 32 } } do
                local n = 1
                for _, d in ipairs(shape) do
                    n = n * d
                end
                tensors[i] = setmetatable({ shape = shape, size = 4 * n, held = t.size, type = 0 }, { __index = t })
                try(t.name .. " as " .. table.concat(shape, "x"), h.meta, tensors)
            end
            tensors[i] = setmetatable({ name = "blk.99.foo" }, { __index = t })
            try(t.name .. " renamed", h.meta, tensors)
            table.remove(tensors, i)
            try("without " .. t.name, h.meta, tensors)
            if i > 8 then
                break
            end
        end
    end
end

return T
