-- inspect: what is in a model's files, from their headers.

local core = require "qmoon.core"
local qm = require "qmoon"
local cli = require "qmoon.cli"
local edit = require "qmoon.gguf_edit"
local json = require "qmoon.json"
local reading = require "qmoon.source.reading"
local text = require "qmoon.text"

local o = cli.parse({
    name = "inspect",
    doc = "Lists a model's tensors and metadata from the headers of its files.",
    arguments = { { "SRC", doc = "model folder, .gguf (the first of its parts), .safetensors, .bin or .pt file" } },
    options = {
        { "tensors", doc = "list every tensor" },
        { "sha256", doc = "with --json or --tensors: SHA-256 of every tensor's bytes (of bitsandbytes': of its codes)" },
        { "json", doc = "everything, for machines" },
    },
}, { ... })
if not o then
    return 0
end

local model = qm.open(o[1])
local n, bytes = model:size()

local function digest(item)
    return o.sha256 and core.sha256(reading.bytes(item.source)) or nil
end

local function type_of(item)
    return item.type_name or item.source.quantised or item.source.dtype
end

local function offset_of(item)
    local at = item.source.at
    return type(at) == "table" and at[1] or at
end

local function file_name(item)
    return item.source.file:path():match "[^/]*$"
end

-- Several files: shards of a checkpoint, parts of a GGUF model.
local names, in_file = {}, {}
for _, item in ipairs(model.items) do
    local name = file_name(item)
    if not in_file[name] then
        in_file[name] = { tensors = 0, bytes = 0 }
        names[#names + 1] = name
    end
    in_file[name].tensors, in_file[name].bytes = in_file[name].tensors + 1, in_file[name].bytes + item.source.size
end

local function count(item)
    return (model.extent(item.shape))
end

if o.json then
    local tensors, metadata = {}, {}
    for i, item in ipairs(model.items) do
        tensors[i] = { name = item.gguf_name or item.name, type = type_of(item),
                       shape = json.array(item.shape), bytes = item.source.size, offset = offset_of(item),
                       file = #names > 1 and file_name(item) or nil, sha256 = digest(item) }
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
    local t = type_of(item)
    if not by_type[t] then
        by_type[t] = { tensors = 0, values = 0, bytes = 0,
                       note = item.source.format and "" or "carried over, not decoded" }
        order[#order + 1] = t
    end
    local sums = by_type[t]
    sums.tensors, sums.values, sums.bytes = sums.tensors + 1, sums.values + count(item), sums.bytes + item.source.size
end
local types = { { "type", "tensors", "values", "bytes", "bits/value", "" } }
for _, t in ipairs(order) do
    local sums = by_type[t]
    types[#types + 1] = { t, ("%d"):format(sums.tensors), text.count(sums.values), text.bytes(sums.bytes),
                          ("%.4g"):format(8 * sums.bytes / math.max(1, sums.values)), sums.note }
end
print(text.table(types))
for _, notice in ipairs(model.notices) do
    print(" note " .. notice)
end
if #names > 1 then
    local files = { { "file", "tensors", "bytes" } }
    for _, name in ipairs(names) do
        files[#files + 1] = { name, ("%d"):format(in_file[name].tensors), text.bytes(in_file[name].bytes) }
    end
    print(text.table(files))
end
for _, pair in ipairs(model.gguf and model.gguf.meta or {}) do
    print((" %s = %s"):format(pair.key, edit.show(pair)))
end
if o.tensors then
    local rows = { { "tensor", "type", "shape", "bytes", "offset", #names > 1 and "file" or "",
                     o.sha256 and "sha256" or "" } }
    for _, item in ipairs(model.items) do
        rows[#rows + 1] = { item.gguf_name or item.name, type_of(item), text.shape(item.shape),
                            ("%.0f"):format(item.source.size), ("%.0f"):format(offset_of(item)),
                            #names > 1 and file_name(item) or "", digest(item) or "" }
    end
    print(text.table(rows))
end
