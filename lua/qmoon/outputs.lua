--- The outputs of the pipeline by name: what `--outputs` chooses from, and the order they are reported in.

local core = require "qmoon.core"
local nearest = require "qmoon.nearest"

local outputs = {}

local STANDARD = {
    { name = "merged-fp16", format = "f16" },
    { name = "model-int8", format = "int8" },
    { name = "model-int4", format = "nf4", double_quant = true },
    { name = "model.gguf", format = "f16" },
    { name = "model-q4_0.gguf", format = "q4_0" },
}

-- "name=format", "name=nf4+dq", "name=nf4:128+dq": an output of the user's own.
local function parse(word)
    local name, format = word:match "^([^=]+)=(.+)$"
    if not name then
        return nil
    end
    local spec = { name = name }
    format = format:gsub("%+dq$", function()
        spec.double_quant = true
        return ""
    end)
    local base, block = format:match "^([^:]+):(%d+)$"
    spec.format, spec.block = base or format, tonumber(block)
    return spec
end

--- The specs for qm.write of the outputs chosen (all of the standard ones when nil), under folder `dir`.
---@param chosen string[]? names of standard outputs, or "name=format"
---@param dir string
---@return table[]
function outputs.choose(chosen, dir)
    local known, names = {}, {}
    for _, s in ipairs(STANDARD) do
        known[s.name], names[#names + 1] = s, s.name
    end
    local specs = {}
    for _, word in ipairs(chosen or names) do
        local s = known[word] or parse(word)
        if not s then
            local guess = nearest(word, names)
            core.fail("usage", "no output '%s'%s; there are %s, or give your own as name=format (x.gguf=q8_0, x=nf4:128+dq)",
                word, guess and (" (did you mean '%s'?)"):format(guess) or "", table.concat(names, " "))
        end
        specs[#specs + 1] = { path = dir .. "/" .. s.name, format = s.format, double_quant = s.double_quant, block = s.block }
    end
    return specs
end

return outputs
