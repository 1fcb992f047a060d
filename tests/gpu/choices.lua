--- Greedy tokens of one model, computed in two ways.  They may part where two logits are as good as equal: then the other must be
--- nearly the largest, too.
---@param here qmoon.Runner what chose a
---@param prompt integer[]
---@param a integer[]
---@param b integer[]
---@param limit number how far the other may be below the largest, beside the largest magnitude of all
---@param what string for messages
return function(here, prompt, a, b, limit, what)
    for i, id in ipairs(a) do
        if b[i] ~= id then
            local ids = { unpack(prompt) }
            for k = 1, i - 1 do
                ids[#ids + 1] = a[k]
            end
            local logits, most = here:forward(ids):values(), 0
            for _, v in ipairs(logits) do
                most = math.max(most, math.abs(v))
            end
            assert(logits[id + 1] - logits[b[i] + 1] < limit * most, ("%s: token %d is %d, not %d"):format(what, i, b[i], id))
            return
        end
    end
    assert(#a == #b, what .. ": number of tokens")
end
