--- Mistral's forward pass: Llama's, every layer seeing no further back than its window.

local llama = require "qmoon.graph.llama"

return {
    layer = llama.layer,
    window = function(fields)
        return fields.sliding_window
    end,
}
