-- encode.lua MODEL FILE: for the peers.  FILE is a JSON list of {text = hex, special =, bos =} or {ids =, skip =}; the
-- answer is a JSON list of lists of ids, and of texts in hex.  An error is its message instead of all that.

local core = require "qmoon.core"
local files = require "qmoon.files"
local json = require "qmoon.json"
local qm = require "qmoon"

local function from_hex(hex)
    return (hex:gsub("%x%x", function(h) return string.char(tonumber(h, 16)) end))
end

local function to_hex(bytes)
    return (bytes:gsub(".", function(c) return ("%02x"):format(c:byte()) end))
end

local model, path = ...
local ok, e = pcall(function()
    local t, answers = qm.tokenizer(model), {}
    for i, q in ipairs(core.json_decode(files.read(path), path)) do
        if q.text then
            answers[i] = json.array(t:encode(from_hex(q.text), { special = q.special, bos = q.bos }))
        elseif q.messages then
            local fine, text = pcall(t.chat, t, q.messages, { add_generation_prompt = q.prompt })
            answers[i] = fine and to_hex(text) or "refused: " .. tostring(text)
        elseif q.stream then
            local stream, parts = t:stream(), {}
            for k, id in ipairs(q.stream) do
                parts[k] = stream:push(id)
            end
            answers[i] = to_hex(table.concat(parts) .. stream:finish())
        else
            answers[i] = to_hex(t:decode(q.ids, { skip_special = q.skip }))
        end
    end
    print(json.encode(json.array(answers)))
end)
if not ok then
    print(json.encode { error = tostring(e) })
end
