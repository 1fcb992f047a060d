--- Phi-3's forward pass: Llama's, from tensors that hold queries, keys and values together, and gate and up.

local llama = require "qmoon.graph.llama"

return {
    layer = llama.layer,
    window = function(fields)
        return fields.sliding_window ~= 0 and fields.sliding_window or nil
    end,
}
