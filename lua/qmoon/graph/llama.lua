--- Llama's forward pass, the pattern of all others.
--
-- A file of this folder says what a model of that config.json model_type computes:
--
--   layer     function(step, x): one layer
--   window    function(fields, layer): how many positions back a layer sees, or nil: all (layers from 0)
--   local_rope true when layers with a window turn at their own pace (rope_local_base_freq)
--   scale     function(fields, head_dim): what scores are multiplied with; 1 / sqrt(head_dim) when absent
--   embed     function(fields): what embeddings are multiplied with
--   act       function(fields): name of the activation; hidden_act when absent
--
-- Weights have GGUF's names (qmoon.graph.weights).  Sources: transformers' modeling_*.py, op by op (tests/peers).

return {
    layer = function(s, x)
        x = s.add(x, s:attention(s:norm(x, "attn_norm")))
        return s.add(x, s:feed(s:norm(x, "ffn_norm")))
    end,
}
