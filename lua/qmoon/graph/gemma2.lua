--- Gemma 2's forward pass: norms before and after each half of a layer, soft caps on scores and logits, and a window on
-- every other layer.

local gemma = require "qmoon.graph.gemma"

--- Windows where a config lists its layers' types, else on all but every `n`th.
local function window(n)
    return function(fields, layer)
        local every = fields.sliding_window_pattern or n
        local sliding = (layer + 1) % every ~= 0
        if fields.layer_types then
            sliding = fields.layer_types[layer + 1] == "sliding_attention"
        end
        return sliding and fields.sliding_window or nil
    end
end

return {
    layer = function(s, x)
        local h = s:attention(s:norm(x, "attn_norm"))
        x = s.add(x, s:norm(h, "post_attention_norm"))
        h = s:feed(s:norm(x, "ffn_norm"))
        return s.add(x, s:norm(h, "post_ffw_norm"))
    end,

    window_every = window,
    window = window(2),
    embed = gemma.embed,

    act = function(fields)
        return fields.hidden_activation
    end,

    scale = function(fields)
        return 1 / math.sqrt(fields.query_pre_attn_scalar)
    end,
}
