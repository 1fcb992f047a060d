-- One outlier: blocks contain it, and LLM.int8 takes it out.

local core = require "qmoon.core"
local explore = require "qmoon.explore"
local plot = require "qmoon.plot"

local TOKENS, WIDTH, OUTPUTS, THRESHOLD = 16, 256, 64, 6

--- x Wᵀ in doubles, over the columns that `take` accepts.
local function product(x, w, take)
    local y = {}
    for t = 0, TOKENS - 1 do
        for o = 0, OUTPUTS - 1 do
            local sum = 0
            for i = 1, WIDTH do
                sum = sum + (take(i) and x[t * WIDTH + i] * w[o * WIDTH + i] or 0)
            end
            y[#y + 1] = sum
        end
    end
    return core.tensor({ TOKENS, OUTPUTS }, y)
end

local function int8(list, rows)
    return core.tensor({ rows, WIDTH }, list):quantize("int8"):dequantize():values()
end

--- Activations with two large columns, weights, and the product through int8, plain and with those columns
--- apart.
local function measure()
    local x = core.random("normal", { TOKENS, WIDTH }, 1, 0, 1):values()
    local w = core.random("normal", { OUTPUTS, WIDTH }, 2, 0, 0.02):values()
    for t = 0, TOKENS - 1 do
        for _, column in ipairs { 40, 200 } do
            x[t * WIDTH + column] = 60 + x[t * WIDTH + column]
        end
    end
    local large, rest = {}, { unpack(x) }
    for i = 1, #x do
        local column = (i - 1) % WIDTH + 1
        large[column] = large[column] or math.abs(x[i]) >= THRESHOLD
    end
    for i = 1, #x do
        rest[i] = large[(i - 1) % WIDTH + 1] and 0 or x[i]
    end
    local w8 = int8(w, OUTPUTS)
    local function all() return true end
    local exact, plain = product(x, w, all), product(int8(x, TOKENS), w8, all)
    local part, apart = product(int8(rest, TOKENS), w8, all):values(),
        product(x, w8, function(i) return large[i] end):values()
    for i = 1, #part do
        part[i] = part[i] + apart[i]
    end
    local n = 0
    for _, is in pairs(large) do
        n = n + (is and 1 or 0)
    end
    return explore.error(exact, plain).sqnr, explore.error(exact,
        core.tensor({ TOKENS, OUTPUTS }, part)).sqnr, n
end

return {
    title = "One outlier",
    question = "what one large value costs its neighbours, and two ways out",
    run = function(l)
        l:section "The scale is set by the largest value of a block"
        l:say("Every other value of the block is then stored in steps of that scale. One value of 20 sigma "
            .. "among bell-shaped ones:")
        local picture = plot.outlier {}
        l:picture(picture)
        local rows = picture.panels[1].rows
        for _, row in ipairs(rows) do
            l:figure { ["without_" .. row.labels[1]] = row.values[1],
                ["with_" .. row.labels[1]] = row.values[2] }
        end
        l:section "Way out one: small blocks"
        local first, last = rows[1], rows[#rows]
        l:say("With blocks of %s the outliers add %.0f %% to the error, with blocks of %s they make it %.1f "
            .. "times as large. That is what the scales of small blocks are paid for.", first.labels[1],
                100 * (first.values[2] / first.values[1] - 1), last.labels[1],
            last.values[2] / last.values[1])
        l:section "Way out two: take the outliers out, as LLM.int8 does with activations"
        local plain, split, n = measure()
        l:figure { int8_plain = plain, int8_split = split, columns = n }
        l:say("Activations of %d tokens, %d wide, with %d columns of about 60, times a weight, in int8: "
            .. "%.1f dB. With the columns that reach %d multiplied in floating point and the rest in int8: "
            .. "%.1f dB.", TOKENS, WIDTH, n,
                plain, THRESHOLD, split)
        l:remember("An outlier harms its own block and no other: blocks of 64 rather than whole rows.",
            "LLM.int8 splits columns of activations at 6.0; the weights are int8 throughout, whatever the "
                .. "threshold.")
        l:read("LLM.int8()", "https://arxiv.org/abs/2208.07339")
    end,
}
