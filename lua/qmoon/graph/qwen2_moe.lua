--- Qwen2's with experts: some that tokens are routed to, and one that all pass, behind a gate of its own.

local ops = require "qmoon.ops"

return {
    layer = function(s, x)
        x = s.add(x, s:attention(s:norm(x, "attn_norm")))
        local h = s:norm(x, "ffn_norm")
        local shared = ops.gated(s:feed(h, "_shexp"), s:linear(h, "ffn_gate_inp_shexp"))
        return s.add(x, s.add(s:experts(h, s.fields.norm_topk_prob), shared))
    end,

    --- Every other of the first max_window_layers layers, as transformers has it.
    window = function(fields, layer)
        if not fields.use_sliding_window then
            return nil
        elseif fields.layer_types then
            return fields.layer_types[layer + 1] == "sliding_attention" and fields.sliding_window or nil
        end
        local sliding = layer % 2 == 0 and layer < (fields.max_window_layers or 28)
        return sliding and (fields.sliding_window or 4096) or nil
    end,
}
