--- Gemma 3's forward pass: Gemma 2's, with each head's queries and keys normalised, a window on five layers of six, and
-- for those a rope of their own.

local gemma2 = require "qmoon.graph.gemma2"

return {
    layer = gemma2.layer,
    window = gemma2.window_every(6),
    local_rope = true,
    embed = gemma2.embed,
    act = gemma2.act,
    scale = gemma2.scale,
}
