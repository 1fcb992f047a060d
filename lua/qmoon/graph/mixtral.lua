--- Mixtral's forward pass: Mistral's, with a mixture of experts for its feed-forward network.

return {
    layer = function(s, x)
        x = s.add(x, s:attention(s:norm(x, "attn_norm")))
        return s.add(x, s:experts(s:norm(x, "ffn_norm"), true))
    end,
    window = function(fields)
        return fields.sliding_window
    end,
}
