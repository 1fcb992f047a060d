-- states.lua MODEL IDS OUT [ADAPTER [exact]]: the hidden states before the first layer and after every one, and the logits, of some
-- ids (separated by commas), as raw f32 in the file OUT; for tests/peers/inference.py.

local core = require "qmoon.core"
local qm = require "qmoon"

local lm = qm.load(arg[1], { adapter = arg[4] ~= "" and arg[4] or nil, exact = arg[5] == "exact" })
local ids = {}
for word in arg[2]:gmatch "%d+" do
    ids[#ids + 1] = tonumber(word)
end

local parts, last = {}, nil
for _, x in lm:walk(ids, lm:cache(#ids)) do
    parts[#parts + 1], last = x:plane(1), x
end
parts[#parts + 1] = lm:logits(last):plane(1)

-- Once more in pieces of 1, 2, 3 … tokens: what the cache holds must serve as well.
local cache, from, size = lm:cache(#ids), 1, 1
while from <= #ids and not lm.turns_at do
    local piece = {}
    for i = from, math.min(from + size - 1, #ids) do
        piece[#piece + 1] = ids[i]
    end
    parts[#parts + 1] = lm:forward(piece, cache, { all = true }):plane(1)
    from, size = from + #piece, size + 1
end

local bytes = table.concat(parts)
local out = core.outfile(arg[3], #bytes)
out:write(0, bytes)
out:finish()
