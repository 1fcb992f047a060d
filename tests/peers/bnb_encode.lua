-- bnb_encode.lua IN.safetensors OUT [nearest]: every tensor of IN in the format its name begins with, for bnb_quantize.py.
-- Names are FORMAT.BLOCK.anything; OUT gets the planes of all, one after another, in the file's order.

local core = require "qmoon.core"

local path, out_path, how = ...
local header = core.safetensors(path)
local out = assert(io.open(out_path, "wb"))
table.sort(header.tensors, function(a, b) return a.name < b.name end)
for _, t in ipairs(header.tensors) do
    local format, block = t.name:match "^(%w+)%.(%d+)%."
    local options = { block = format ~= "int8" and tonumber(block) or nil, nearest = how == "nearest" }
    local encoded = core.view(header.file, t):quantize(format, options)
    out:write(encoded:plane(1), encoded:plane(2))
end
out:close()
