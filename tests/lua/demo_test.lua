-- Demos: what they tell, against values computed here by other means, or measured by others.

local core = require "qmoon.core"
local lesson = require "qmoon.lesson"
local support = dofile "tests/lua/support.lua"

local T = {}

local function near(value, wanted, tolerance, what)
    assert(type(value) == "number" and math.abs(value - wanted) <= tolerance,
        ("%s: %s is not %g +- %g"):format(what, tostring(value), wanted, tolerance))
end

local figures = setmetatable({}, { __index = function(t, name)
    t[name] = lesson.run(name).figures
    return t[name]
end })

T["qmoon demo lists every file of lua/qmoon/demo with what it answers"] = function()
    local status, text = support.run "demo"
    support.equal(status, 0, text)
    for _, name in ipairs { "nf4-vs-int4", "nine-numbers", "outlier", "double-quant", "compute-dtype",
        "fp4-bits", "block-size",
                            "lora-merge", "fits", "formats", "which-format", "claims" } do
        assert(text:find("\n " .. name .. " ", 1, true), name .. " is not in the list:\n" .. text)
    end
    local list = core.json_decode(select(2, support.run "demo --json"), "list")
    support.equal(#list.demos, #lesson.names())
end

T["each demo fits 80 columns of ASCII, without colour, in less than five seconds"] = function()
    for _, name in ipairs(lesson.names()) do
        local started = os.clock() -- processor time: the machine may be busy with other things
        lesson.run(name)
        local took = os.clock() - started
        assert(took < 5, ("%s took %.1f s"):format(name, took))
        local status, text = support.run("demo " .. name)
        support.equal(status, 0, text)
        assert(not text:find "\27" and not text:find "\r", name .. " has escape sequences in a pipe")
        assert(#text > 1000, name)
        for line in text:gmatch "[^\n]+" do
            local _, n = line:gsub("[^\128-\191]", "")
            assert(n <= 80 or line:find "https?://", ("%s: %d columns: %s"):format(name, n, line))
        end
    end
end

T["a screen without UTF-8 gets ASCII"] = function()
    local screen = require("qmoon.screen").new { width = 80, utf8 = false, colour = false }
    for _, name in ipairs(lesson.names()) do
        lesson.run(name):tell(screen, function(text)
            assert(not text:find "[\128-\255]", name .. ": " .. text)
            assert(not text:find "%?%?", name .. " has characters without a stand-in: " .. text)
        end)
    end
end

T["the environment is heeded: LC_ALL=C, NO_COLOR, CLICOLOR_FORCE"] = function()
    local function run(environment)
        local pipe = assert(io.popen(environment .. " " .. arg[-1] .. " demo double-quant 2>&1"))
        local text = pipe:read "*a"
        pipe:close()
        return text
    end
    assert(not run "LC_ALL=C NO_COLOR=1 CLICOLOR_FORCE=1":find "[\128-\255\27]")
    assert(run "LC_ALL=C.UTF-8 NO_COLOR=":find "█")
    assert(run "LC_ALL=C.UTF-8 NO_COLOR= CLICOLOR_FORCE=1 TERM=xterm":find "\27%[")
end

T["--json is JSON, --html a page that loads nothing"] = function()
    local dir = support.scratch()
    core.mkdir(dir)
    for _, name in ipairs(lesson.names()) do
        local l = lesson.run(name)
        local decoded = core.json_decode(l:json(), name)
        support.equal(decoded.schema, "qmoon-demo-1")
        assert(next(decoded.figures), name .. " has no figures")
        local html = l:html()
        assert(html:find("^<!doctype html>") and html:find "prefers%-color%-scheme"
            and html:find "</html>\n$", name)
        for address in html:gmatch "https?://[^%s\"'<]+" do
            assert(address:find "^https://arxiv.org/abs/" or address:find "^http://www.w3.org/2000/svg", name
                .. ": " .. address)
        end
        assert(not html:find "%ssrc=" and not html:find "<link" and not html:find "url%("
            and not html:find "@import", name)
    end
    local status, text = support.run(("demo ledger --html %s/x.html"):format(dir))
    assert(status == 2 and text:find("there is no demo 'ledger'", 1, true), text)
    status, text = support.run(("demo double-quant --html %s/x.html"):format(dir))
    assert(status == 0 and #support.read(dir .. "/x.html") > 5000, text)
    status, text = support.run "demo double-quant --model x"
    assert(status == 2 and text:find("nothing to do with --model", 1, true), text)
end

T["--step waits between sections, and only at a terminal"] = function()
    local l, asked, told = lesson.run "double-quant", 0, {}
    local screen = require("qmoon.screen").new { width = 80, utf8 = true, colour = false }
    l:tell(screen, function(text)
        told[#told + 1] = text
    end, function()
        asked = asked + 1
        return asked == 2
    end)
    support.equal(asked, 2)
    local text = table.concat(told)
    assert(text:find("In megabytes", 1, true) and not text:find("What it costs", 1, true), text)
    local status, piped = support.run("demo double-quant --step", "")
    assert(status == 0 and piped:find("To remember", 1, true), piped)
end

-- ---- figures
-- ---------------------------------------------------------------------------------------------------

T["nine numbers: the codes, by integers"] = function()
    -- in hundredths: code = round((w + 470) * 255 / 1034), halves to even; symmetric: round(w * 127 / 564)
    local w, codes, symmetric, signed = { 34, 375, 564, 112, 270, -90, -470, 68, 143 }, {}, {}, {}
    for i, v in ipairs(w) do
        local n = (v + 470) * 255
        codes[i] = math.floor((2 * n + 1034) / (2 * 1034))
        signed[i] = codes[i] - 128
        local m = v * 127
        symmetric[i] = m >= 0 and math.floor((2 * m + 564) / 1128) or -math.floor((-2 * m + 564) / 1128)
    end
    local f = figures["nine-numbers"]
    support.equal(f.codes, table.concat(codes, " "))
    support.equal(f.codes, "124 208 255 144 182 94 0 133 151")
    support.equal(f.signed, table.concat(signed, " "))
    support.equal(f.signed, "-4 80 127 16 54 -34 -128 5 23")
    support.equal(f.symmetric, table.concat(symmetric, " "))
    support.equal(f.symmetric, "8 84 127 25 61 -20 -106 15 32")
    near(f.step, 10.34 / 255, 1e-12, "step")
    near(f.worst, 0.0201, 5e-5, "largest error")
    near(f.printed_worst, 2.74, 0.005, "of the printed codes")
    near(f.printed_rmse, 1.68, 0.005, "rmse of the printed codes")
    support.equal(f.printed_wrong, 8)
    support.equal(f.zero_point, 116)
    local _, text = support.run "demo nine-numbers"
    assert(text:find("124 208 255 144 182 94 0 133 151", 1, true))
end

-- dB measured by another implementation on 1.6 million values of each kind.
local MEASURED = {
    nf4 = { normal = 20.72, student = 19.60, outlier = 19.59, uniform = 20.78 },
    q4_0 = { normal = 21.32, student = 19.35, outlier = 19.98, uniform = 23.74 },
    int4 = { normal = 19.36, student = 16.72, outlier = 17.25, uniform = 23.13 },
    fp4 = { normal = 18.27, student = 16.25, outlier = 16.58, uniform = 19.08 },
    e2m1 = { normal = 19.52, student = 18.99, outlier = 18.78, uniform = 19.35 },
    e3m0 = { normal = 14.52, student = 15.07, outlier = 14.91, uniform = 14.67 },
}

T["signal to error is what others measured"] = function()
    for _, demo in ipairs { "nf4-vs-int4", "fp4-bits" } do
        local seen = 0
        for format, kinds in pairs(MEASURED) do
            for kind, db in pairs(kinds) do
                local value = figures[demo][format .. "_" .. kind]
                if value then
                    near(value, db, kind == "student" and 0.12 or 0.05, format .. " " .. kind)
                    seen = seen + 1
                end
            end
        end
        support.equal(seen, 16, demo)
    end
    near(figures["nf4-vs-int4"].gain_db, 1.36, 0.06, "gain")
    near(figures["nf4-vs-int4"].entropy_nf4, 3.88, 0.02, "entropy of nf4")
    near(figures["nf4-vs-int4"].entropy_int4, 3.50, 0.02, "entropy of int4")
    near(figures["block-size"].nf4_32, 21.18, 0.05, "nf4, block 32")
    near(figures["block-size"].nf4_4096, 19.15, 0.06, "nf4, block 4096")
    near(figures["block-size"].int4_4096, 16.00, 0.12, "int4, block 4096")
end

--- NF4 and INT4 in doubles, written here: rmse of a list in blocks.
local function rmse_of(x, levels, block)
    local dd = 0
    for first = 1, #x, block do
        local most = 0
        for i = first, first + block - 1 do
            most = math.max(most, math.abs(x[i]))
        end
        for i = first, first + block - 1 do
            local best = math.huge
            for _, v in ipairs(levels) do
                best = math.min(best, math.abs(x[i] - v * most))
            end
            dd = dd + best * best
        end
    end
    return math.sqrt(dd / #x)
end

local NF4 = { -1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334,
              -0.09105003625154495, 0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
                  0.33791524171829224,
              0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1 }

T["outlier: errors with and without, computed here"] = function()
    local x = core.random("normal", { 256, 256 }, 1, 0, 1):values()
    local f = figures["outlier"]
    near(f.without_64, rmse_of(x, NF4, 64), 1e-6, "without, 64")
    near(f.without_4096, rmse_of(x, NF4, 4096), 1e-6, "without, 4096")
    for i = 2049, #x, 4096 do
        x[i] = 20
    end
    near(f.with_64, rmse_of(x, NF4, 64), 1e-6, "with, 64")
    near(f.with_4096, rmse_of(x, NF4, 4096), 1e-6, "with, 4096")
    assert(f.int8_split > f.int8_plain + 6 and f.columns == 2)
end

T["double quantisation: bits and megabytes"] = function()
    local f = figures["double-quant"]
    support.equal(f.single, 4.5)
    support.equal(f.double, 4.126953125)
    near(f.saved_share, 0.0829, 5e-5, "share")
    near(f.scales_mb, 437.5, 1e-9, "scales")
    near(f.saved_mb, 437.5 - 109.375 - 1.708984375, 1e-9, "saved")
    near(f.llama_nf4_gb, 4.168, 0.0005, "Llama-2-7B nf4") -- published sizes of such checkpoints
    near(f.llama_dq_gb, 3.866, 0.0005, "Llama-2-7B nf4+dq")
end

T["fp4: three bits of exponent would be powers of two"] = function()
    local f = figures["fp4-bits"]
    support.equal(f.not_powers, "3 6 12")
    near(f.smallest, 1 / 192, 1e-9, "smallest")
    near(f.two_thirds, 2 / 3, 1e-7, "code 2")
end

T["compute dtype: the sum of squares overflows f16 only"] = function()
    local f, x, exact = figures["compute-dtype"], core.random("normal", { 4096 }, 1, 0, 5):values(), 0
    for _, v in ipairs(x) do
        exact = exact + v * v
    end
    near(f.sum_exact, exact, 1e-6, "sum")
    support.equal(f.sum_f16, "infinity")
    assert(f.sum_bf16 < exact and f.zeros_f16 > 0 and f.zeros_bf16 == 0)
    -- uniform rounding to p bits of mantissa has a noise of 2^-2p/12 times about 1/2 of the square of the
    -- power of two
    near(f.weights_f16 - f.weights_bf16, 20 * math.log10(8), 0.1, "three bits")
end

--- Mixtral 8x7B counted by hand: layers x (attention, experts, router, norms), embeddings and head.
T["fits: Mixtral, tensor by tensor, against this count and published files"] = function()
    local h, ffn, layers, experts, vocabulary = 4096, 14336, 32, 8, 32000
    local linear = layers * (2 * h * h + 2 * 1024 * h + experts * 3 * ffn * h)
    local plain = 2 * vocabulary * h + layers * (experts * h + 2 * h) + h
    local f = figures.fits
    support.equal(f.parameters, linear + plain)
    near(f.nf4_gb, (linear * 4.5 / 8 + 2 * plain) / 1e9, 0.002, "nf4")
    near(f.nf4_dq_gb, (linear * 4.126953125 / 8 + 2 * plain) / 1e9, 0.004, "nf4+dq")
    near(f.nf4_gb, 26.66, 0.03, "nf4 as published")
    near(f.nf4_dq_gb, 24.23, 0.3, "nf4+dq as published")
    near(f.token_kib, 2 * layers * 8 * 128 * 2 / 1024, 0, "cache of a token")
    near(f.quarter_byte_gb, (linear + plain) / 4e9, 1e-9, "a quarter of a byte")
    support.equal(f.fits_nf4_dq, false)
    near(f.scales_nf4_gb, linear / 64 * 4 / 1e9, 0.001, "scales of nf4")
end

T["fits and which-format take a model, a card and a context"] = function()
    local l = lesson.run("fits", { model = "llama 3-8b", card = 24 * 2 ^ 30, context = 8192 })
    support.equal(l.figures.fits_nf4_dq, true)
    support.equal(l.figures.token_kib, 128)
    local small = lesson.run("which-format", { model = "llama 3-8b", card = 8 * 2 ^ 30,
        context = 8192 }).figures
    local large = lesson.run("which-format", { model = "llama 3-8b", card = 24 * 2 ^ 30,
        context = 8192 }).figures
    local none = lesson.run("which-format", { model = "llama 2-70b", card = 8 * 2 ^ 30 }).figures
    support.equal(large.best, "f16")
    support.equal(none.best, "none")
    assert(small["need_" .. small.best] <= 8, small.best)
    support.raises("usage", { "did you mean 'llama 3-8b'" }, lesson.run, "fits", { model = "llama 3-8c" })
    local folder = lesson.run("fits", { model = "tests/fixtures/tiny-qwen2" })
    support.equal(folder.figures.fits_nf4_dq, true)
end

T["sizes in the demo of formats are the planner's"] = function()
    local f = figures.formats
    for spec, bits in pairs { f32 = 32, f16 = 16, nf4 = 4.5, ["nf4:dq"] = 4.126953125, q4_0 = 4.5, q8_0 = 8.5,
        q6_k = 6.5625, q2_k = 2.625,
                              iq4_xs = 4.25, mxfp4 = 4.25 } do
        near(f["bits_" .. spec], bits, 1e-3, spec)
    end
    for spec, gb in pairs { f16 = 13.477, int8 = 7.001, nf4 = 4.168, ["nf4:dq"] = 3.866,
        q4_0 = 3.825 } do -- published files
        near(f["gb_" .. spec], gb, 0.006, spec)
    end
end

-- Measured elsewhere on 512 x 2048 values, rank 16: ratio in thousandths -> original base, its noise, base
-- through nf4.
local SURVIVAL = { [5] = { 0.98, 18.4, 0.016 }, [20] = { 0.99, 4.6, 0.016 }, [50] = { 0.99, 1.8, 0.28 },
    [200] = { 0.99, 0.47, 0.99 } }

T["lora-merge: what survives is what others measured"] = function()
    local f = figures["lora-merge"]
    for key, row in pairs(SURVIVAL) do
        near(f["original_" .. key], row[1], 0.06, "original " .. key)
        near(f["noise_" .. key], row[2], 0.05 * row[2], "noise " .. key)
        near(f["dequantised_" .. key], row[3], 0.02, "dequantised " .. key)
    end
end

T["claims: verdicts and figures"] = function()
    local f = figures.claims
    support.equal(f.claims, f.right + f.wrong + f.half)
    support.equal(("%d %d %d"):format(f.right, f.half, f.wrong), "2 2 12")
    near(f.mixtral_dq, 24.48, 0.01, "Mixtral nf4+dq")
    near(f.mixtral_int8, 47.0, 0.05, "Mixtral int8")
    near(f.mistral_int8, 7.50, 0.02, "Mistral int8")
    near(f.pi_f32, 3.1415927410125732, 0, "pi in f32")
    support.equal(f.pi_code, 71)
    near(f.dq_saves_model, 0.072, 0.0005, "of Llama-2-7B")
    near(f.saved_mb, 326.4, 0.05, "saved")
    near(f.qwen_int8, 0.576, 0.001, "Qwen int8")
    near(f.qwen_nf4, 0.370, 0.001, "Qwen nf4")
    near(f.int8_7b, 8.5, 0.05, "7B int8 with its cache")
    near(f.group128, 4.156, 0.001, "group 128")
    near(f.bf16_max, (2 - 2 ^ -7) * 2 ^ 127, 0, "bf16")
end

return T
