--- Gemma 2: four norms a layer, soft caps on logits, every other layer with a sliding window.
-- Sources: transformers' Gemma2Config (defaults), llama.cpp's tensor and metadata names.

return {
    name = "gemma2",
    model_type = "gemma2",
    architectures = { "Gemma2ForCausalLM" },

    defaults = {
        vocab_size = 256000,
        hidden_size = 2304,
        intermediate_size = 9216,
        num_hidden_layers = 26,
        num_attention_heads = 8,
        num_key_value_heads = 4,
        head_dim = 256,
        hidden_activation = "gelu_pytorch_tanh",
        max_position_embeddings = 8192,
        initializer_range = 0.02,
        rms_norm_eps = 1e-6,
        use_cache = true,
        tie_word_embeddings = true,
        rope_theta = 10000,
        attention_bias = false,
        query_pre_attn_scalar = 256,
        sliding_window = 4096,
        final_logit_softcapping = 30,
        attn_logit_softcapping = 50,
        pad_token_id = 0,
        eos_token_id = 1,
        bos_token_id = 2,
    },

    modules = {
        { "model.embed_tokens", "token_embd", "embedding" },
        { "lm_head", "output", "output", left_out = "the output head, which is the embedding" },
        { "model.norm", "output_norm", "norm", add = 1 },
        { "model.layers.N.input_layernorm", "blk.N.attn_norm", "norm", add = 1 },
        { "model.layers.N.self_attn.q_proj", "blk.N.attn_q", "linear" },
        { "model.layers.N.self_attn.k_proj", "blk.N.attn_k", "linear" },
        { "model.layers.N.self_attn.v_proj", "blk.N.attn_v", "linear" },
        { "model.layers.N.self_attn.o_proj", "blk.N.attn_output", "linear" },
        { "model.layers.N.post_attention_layernorm", "blk.N.post_attention_norm", "norm", add = 1 },
        { "model.layers.N.pre_feedforward_layernorm", "blk.N.ffn_norm", "norm", add = 1 },
        { "model.layers.N.mlp.gate_proj", "blk.N.ffn_gate", "linear" },
        { "model.layers.N.mlp.up_proj", "blk.N.ffn_up", "linear" },
        { "model.layers.N.mlp.down_proj", "blk.N.ffn_down", "linear" },
        { "model.layers.N.post_feedforward_layernorm", "blk.N.post_ffw_norm", "norm", add = 1 },
    },

    metadata = {
        { "context_length", "u32", "max_position_embeddings" },
        { "embedding_length", "u32", "hidden_size" },
        { "block_count", "u32", "num_hidden_layers" },
        { "feed_forward_length", "u32", "intermediate_size" },
        { "attention.head_count", "u32", "num_attention_heads" },
        { "attention.head_count_kv", "u32", "num_key_value_heads" },
        { "attention.layer_norm_rms_epsilon", "f32", "rms_norm_eps" },
        { "attention.key_length", "u32", "head_dim" },
        { "attention.value_length", "u32", "head_dim" },
        { "general.file_type", "u32", "file_type" },
        { "attn_logit_softcapping", "f32", "attn_logit_softcapping" },
        { "final_logit_softcapping", "f32", "final_logit_softcapping" },
        { "attention.sliding_window", "u32", "sliding_window" },
    },

    own_order = true,
    rope_scaling = {},
    tokenizer = { "spm" },

    tokenizer_rows = function()
        return {}, { { key = "tokenizer.ggml.add_space_prefix", type = "bool", value = false } }
    end,
    unsaid = "query_pre_attn_scalar",

    from_gguf = function(fields)
        local largest = fields.num_hidden_layers == 46
        fields.query_pre_attn_scalar = largest and math.floor(fields.hidden_size / fields.num_attention_heads) or fields.head_dim
    end,
}
