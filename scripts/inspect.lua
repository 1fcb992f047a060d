-- inspect: what is in a model's files, from their headers.

local core = require "qmoon.core"
local qm = require "qmoon"
local cli = require "qmoon.cli"
local json = require "qmoon.json"
local text = require "qmoon.text"

local o = cli.parse({
    name = "inspect",
    doc = "Lists a model's tensors and metadata from the headers of its files.",
    arguments = { { "SRC", doc = "model folder, .safetensors or .gguf file" } },
    options = {
        { "tensors", doc = "list every tensor" },
        { "sha256", doc = "with --json or --tensors: SHA-256 of every tensor's bytes" },
        { "json", doc = "everything, for machines" },
    },
}, { ... })
if not o then
    return 0
end

local model = qm.open(o[1])
local n, bytes = model:size()

local function digest(item)
    return o.sha256 and core.sha256(item.source.file:read(item.source.at, item.source.size)) or nil
end

-- Long arrays are told by their length: a vocabulary is no use on a screen.
local function short(pair)
    if pair.type ~= "array" then
        return tostring(pair.value)
    end
    local shown = {}
    for i = 1, math.min(4, #pair.value) do
        shown[i] = tostring(pair.value[i])
    end
    return ("%d x %s: %s%s"):format(#pair.value, pair.elem, table.concat(shown, ", "), #pair.value > 4 and ", …" or "")
end

if o.json then
    local tensors, metadata = {}, {}
    for i, item in ipairs(model.items) do
        tensors[i] = { name = item.gguf_name or item.name, type = item.type_name or item.source.dtype,
                       shape = json.array(item.shape), bytes = item.source.size, offset = item.source.at,
                       sha256 = digest(item) }
    end
    for i, pair in ipairs(model.gguf and model.gguf.meta or {}) do
        local value = pair.type == "array" and json.array(pair.value) or pair.value
        metadata[i] = { pair.key, json.object { { "type", pair.elem and "array of " .. pair.elem or pair.type }, { "value", value } } }
    end
    print(json.encode({ schema = "qmoon-inspect-1", path = model.path, kind = model.kind, parameters = n, bytes = bytes,
                        tensors = json.array(tensors), metadata = json.object(metadata),
                        config = model.config and model.config.raw or nil }, { indent = 2 }))
    return 0
end

print(" " .. tostring(model))
local by_type, order = {}, {}
for _, item in ipairs(model.items) do
    local t = item.type_name or item.source.dtype
    if not by_type[t] then
        by_type[t] = { 0, 0 }
        order[#order + 1] = t
    end
    by_type[t][1], by_type[t][2] = by_type[t][1] + 1, by_type[t][2] + item.source.size
end
for _, t in ipairs(order) do
    print((" %-6s %4d tensors  %s"):format(t, by_type[t][1], text.bytes(by_type[t][2])))
end
for _, pair in ipairs(model.gguf and model.gguf.meta or {}) do
    local value = short(pair):gsub("\n", "\\n")
    print((" %s = %s"):format(pair.key, #value > 100 and value:sub(1, 97) .. "…" or value))
end
if o.tensors then
    local rows = { { "tensor", "type", "shape", "bytes", o.sha256 and "sha256" or "" } }
    for _, item in ipairs(model.items) do
        rows[#rows + 1] = { item.gguf_name or item.name, item.type_name or item.source.dtype, text.shape(item.shape),
                            ("%.0f"):format(item.source.size), digest(item) or "" }
    end
    print(text.table(rows))
end
