-- bench_table.lua LOG: what bench.sh has printed as one table: the roof, ours, what was aimed at, and the peers beside us.
--
-- The roof of codecs is copying, of errors reading, of products reading as many bytes, beside many tokens cuBLAS with
-- f16 weights; figures that are missing were not measured. Targets are for an H200.

local core = require "qmoon.core"

local measured, clocks = {}, {} -- by name: { us, percent of the roof, roof }; or { rate }

local function product_name(shape, scales, group, tokens)
    return ("%s, %s, blocks of %d, %d tokens"):format(shape, scales, group, tokens)
end

local function codec_line(line)
    local name, us, percent = line:match "^(%w.-)%s+([%d.]+) us%s+[%d.]+ GB/s%s+([%d.]+) %%"
    if name then
        measured[name] = { tonumber(us), tonumber(percent) }
    end
    return name
end

local function product_line(line)
    local shape, scales, group, tokens, us = line:match "^%s*(%d+ x %d+)%s+(%w+) g(%d+)%s+M=(%d+)%s+([%d.]+) us"
    if shape then
        local roof = line:match "reading alone ([%d.]+) us" or line:match "cuBLAS, f16 weights%s+([%d.]+) us"
        measured[product_name(shape, scales, group, tokens)] = { tonumber(us), nil, tonumber(roof) }
        return true
    end
    local peers_shape, list = line:match "^bitsandbytes product nf4 64, (%d+ x %d+), us of (.*)"
    for m, t in (list or ""):gmatch "(%d+): ([%d.]+)" do
        measured["bitsandbytes " .. product_name(peers_shape, "f32", 64, m)] = { tonumber(t) }
    end
    return peers_shape
end

local function decoder_line(line)
    local name, head = line:match "^(%S+)%s+nf4%s+head (%w+)%s+decode:"
    if name then
        for way, rate in line:gmatch "(%a+)%s+(%d+) tokens/s" do
            local key = way == "prompt" and name .. ", prompt of 2048" or ("%s, head %s, %s"):format(name, head, way)
            measured[key] = { tonumber(rate) }
        end
        return true
    end
    local row = line:find "^{" and core.json_decode(line, arg[1])
    local file = row and row.model_filename:match "([^/]+)%.gguf$"
    if file then
        measured[("llama.cpp %s, %s"):format(file, row.n_prompt > 0 and "prompt of 2048" or "decode")] = { row.avg_ts }
    end
    return file
end

for line in io.lines(arg[1]) do
    if line:find "MHz" then
        clocks[#clocks + 1] = line
    elseif not (codec_line(line) or product_line(line) or decoder_line(line)) then
        local version = line:match "^bitsandbytes %d.*"
        clocks[#clocks + 1] = version
    end
end

-- ---- what was aimed at ------------------------------------------------------------------------------------

local codecs = {} -- percent of the roof
local function aim(percent, what, formats, dtype)
    for _, format in ipairs(formats) do
        codecs[#codecs + 1] = { ("%s %s, %s"):format(what, format, dtype), percent }
    end
end
aim(92, "quantise", { "nf4 64", "int4 64", "table 64", "unsorted-table 64", "close-table 64" }, "bf16")
aim(80, "quantise", { "fp4 64", "nf4 64 dq", "fp4 64 dq", "int4 64 dq", "table 64 dq" }, "bf16")
aim(85, "quantise", { "int8 4096", "q8_0 32", "q4_0 32" }, "bf16")
aim(85, "quantise", { "int8 4096" }, "f16")
aim(93, "dequantise", { "nf4 64", "nf4 64 dq", "fp4 64", "fp4 64 dq", "int4 64", "int4 64 dq", "table 64", "table 64 dq" },
    "bf16")
aim(85, "errors", { "nf4 64", "nf4 64 dq", "fp4 64", "int4 64", "table 64", "int8 4096", "q8_0 32", "q4_0 32" }, "bf16")
codecs[#codecs + 1] = { "15.2 GB to nf4 dq, memory to memory", 90 }

local products = { -- us
    { "4096 x 4096", 1, 4.0 }, { "14336 x 4096", 1, 9.6 }, { "4096 x 14336", 1, 9.7 }, { "28672 x 8192", 1, 31.7 },
    { "14336 x 4096", 2, times = 1.05 }, { "14336 x 4096", 4, times = 1.15 }, { "14336 x 4096", 8, times = 1.35 },
    { "14336 x 4096", 16, 14 }, { "14336 x 4096", 64, 16 }, { "14336 x 4096", 512, 92 }, { "14336 x 4096", 2048, 345 },
}
local decoders = { -- tokens a second
    { "qwen2.5-7b", 600, 925 }, { "llama-3-8b", 570, 850 }, { "qwen2.5-1.5b", 1600, 2800 },
}
local PROMPT_7B = 40000

-- ---- the table --------------------------------------------------------------------------------------------

local function cell(value, form)
    return value and form:format(value) or ""
end

local function row(what, ours, roof, share, target, met, peer, times)
    print(("| %-44s | %8s | %8s | %7s | %8s | %-3s | %9s | %5s |"):format(what, ours, roof, share, target, met, peer, times))
end

local function heading(what, ours, roof, share, peer)
    print()
    row(what, ours, roof, share, "target", "met", peer, "times")
    local rule = {}
    for i, width in ipairs { 44, 8, 8, 7, 8, 3, 9, 5 } do
        rule[i] = ("-"):rep(width + 2)
    end
    print("|" .. table.concat(rule, "|") .. "|")
end

local function met(yes)
    return yes and "yes" or "no"
end

for _, line in ipairs(clocks) do
    print(line)
end

heading("codecs, 2^28 values", "us", "", "of it", "bnb, us")
for _, c in ipairs(codecs) do
    local m, peer = measured[c[1]], measured["bitsandbytes " .. c[1]]
    if m then
        row(c[1], cell(m[1], "%.1f"), "", cell(m[2], "%.1f %%"), c[2] .. " %", met(m[2] >= c[2]),
            cell(peer and peer[1], "%.1f"), cell(peer and peer[1] / m[1], "%.2f"))
    end
end

heading("products with NF4, f32 scales", "us", "roof, us", "of it", "bnb, us")
for _, p in ipairs(products) do
    local name = product_name(p[1], "f32", 64, p[2])
    local m, one, peer = measured[name], measured[product_name(p[1], "f32", 64, 1)], measured["bitsandbytes " .. name]
    if m then
        local target = p.times and one[1] * p.times or p[3]
        row(("%s, tokens: %d"):format(p[1], p[2]), cell(m[1], "%.2f"), cell(m[3], "%.2f"),
            cell(m[3] and 100 * m[3] / m[1], "%.0f %%"), cell(target, "%.2f"), met(m[1] <= target),
            cell(peer and peer[1], "%.1f"), cell(peer and peer[1] / m[1], "%.2f"))
    end
end

heading("whole decoders, NF4, 512 tokens of context", "tokens/s", "", "", "llama.cpp")
local function rate(what, key, target, peer)
    local m, p = measured[key], measured["llama.cpp " .. peer]
    if m then
        row(what, cell(m[1], "%.0f"), "", "", cell(target, "%d"), target and met(m[1] >= target) or "",
            cell(p and p[1], "%.0f"), cell(p and m[1] / p[1], "%.2f"))
    end
end
for _, d in ipairs(decoders) do
    for _, way in ipairs { "launches", "program" } do
        for i, head in ipairs { "bf16", "nf4" } do
            local name = ("%s, head %s, %s"):format(d[1], head, way)
            rate(name, name, way == "program" and d[1 + i] or nil, d[1] .. ", decode")
        end
    end
    local prompt = d[1] .. ", prompt of 2048"
    rate(prompt, prompt, d[1] == "qwen2.5-7b" and PROMPT_7B or nil, prompt)
end
