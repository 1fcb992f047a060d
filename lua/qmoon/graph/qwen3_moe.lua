--- Qwen3's with experts, and no shared one.

return {
    layer = function(s, x)
        x = s.add(x, s:attention(s:norm(x, "attn_norm")))
        return s.add(x, s:experts(s:norm(x, "ffn_norm"), s.fields.norm_topk_prob))
    end,
    window = function(fields)
        return fields.use_sliding_window and (fields.sliding_window or 4096) or nil
    end,
}
