--- Qwen3's forward pass: Qwen2's, with each head's queries and keys normalised (where a layer has those norms).

return require "qmoon.graph.qwen2"
