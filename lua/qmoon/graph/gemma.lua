--- Gemma's forward pass: Llama's, on embeddings scaled by the root of their width, with a GELU.

local llama = require "qmoon.graph.llama"

return {
    layer = llama.layer,

    embed = function(fields)
        return math.sqrt(fields.hidden_size)
    end,

    --- Its first configs say "gelu" and mean the tanh form, as all programs take them.
    act = function(fields)
        local name = fields.hidden_activation or fields.hidden_act
        return name == "gelu" and "gelu_pytorch_tanh" or name
    end,
}
