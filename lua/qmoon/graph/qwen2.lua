--- Qwen2's forward pass: Llama's, with biases on queries, keys and values.

local llama = require "qmoon.graph.llama"

return {
    layer = llama.layer,

    --- The last layers, from max_window_layers on, when windows are asked for at all.
    window = function(fields, layer)
        if not fields.use_sliding_window then
            return nil
        elseif fields.layer_types then
            return fields.layer_types[layer + 1] == "sliding_attention" and fields.sliding_window or nil
        end
        return layer >= (fields.max_window_layers or 28) and (fields.sliding_window or 4096) or nil
    end,
}
