-- Pictures: the same description on a terminal, as SVG, as a page and as data.

local core = require "qmoon.core"
local qm = require "qmoon"
local minifloat = require "qmoon.minifloat"
local picture = require "qmoon.picture"
local screen = require "qmoon.screen"
local support = dofile "tests/lua/support.lua"

local T = {}

local MODEL = "tests/fixtures/tiny-qwen2"

local function draw(name)
    if name == "result" then
        return qm.compare(qm.randn { 64, 256, seed = 1 }, { "nf4", "q4_0", "int8" }):plot()
    end
    return qm.plot[name](name == "heatmap" and { model = qm.open(MODEL) } or {})
end

local ascii = screen.new { width = 80, utf8 = false, colour = false }
local blocks = screen.new { width = 80, utf8 = true, colour = false }
local colour = screen.new { width = 80, utf8 = true, colour = true }

local function widest(text)
    local most = 0
    for line in text:gmatch "[^\n]+" do
        local _, n = line:gsub("[^\128-\191]", "")
        most = math.max(most, n)
    end
    return most
end

T["every picture has a terminal form of 80 columns, in ASCII and in blocks, with colour only where there is "
    .. "some"] = function()
    assert(#qm.plot() >= 12)
    for _, name in ipairs(qm.plot()) do
        local p = draw(name)
        local plain, full = p:text(ascii), p:text(blocks)
        assert(not plain:find "[\128-\255\27]", name .. " is not ASCII:\n" .. plain)
        assert(not full:find "\27", name .. " has colours")
        local _, lines = full:gsub("\n", "")
        assert(lines < 40, name .. " takes more than 40 lines")
        assert(widest(plain) <= 80 and widest(full) <= 80, name .. " is wider than 80 columns:\n" .. full)
        assert(p:text(colour):gsub("\27%[[%d;]*m", "") == full, name .. ": colour changes more than colour")
    end
end

-- SHA-256 of each SVG, the version replaced; a picture that is meant to change gets a new line here.
local SVG = {
    bits = "176b3aee5cde4d0e6120ce21d59cae69adcdb69a5f176c00d8c7cba89513bcda",
    buckets = "8200f2ba47cc5360ca8a47b7702da0b868e89dcaffa83df4cc067b168da87748",
    frontier = "d0e7f28a434e6f01e4bfdc4024213911560e531caf1480916b869160fb6c24bd",
    heatmap = "6e96b56f71eb8c039de903e125aeed83aa10a221b0df7a9a8304bca48839e6d5",
    ledger = "76d7b5ce237f5946971a73d61993fb8034798c6b1100e5bb5d99be10cb482e4e",
    lora = "71fa7f092696b1b41b6260bdb6a799cc1e15222f858480576b1ef1ab8127dab6",
    memory = "de35aa109b1296a5d45e4c947e76ea5ca78af1aff9dd77b2c46029adb9769aa6",
    nine = "83132c337d29f81fdc962c5b4d8f698619e54b3cae238df6189f3dc9fd4aadc8",
    outlier = "4d7fd9a09c6f5fa4b951a18929de23fc81cec49b4620c69008bf9cfaa8ef7374",
    result = "12d1e69eb3f6cee661bdbf3565a8b1cb23de9d1f9a821aa19b8e58cd9e80a49c",
    rulers = "bd35e1f8607781712b97ac5ae158a6fe4f98accfab44910ccc57b68c81388ea7",
    staircase = "f06a7b288942f29a59a0b3d66d72de20a670146614b1d281b21eceb9a944b564",
    weights = "eb6efc14a47daf29d189109b9823ed3e8cde52bfe77446de5fd370149ee86b50",
}

T["SVG is the same bytes again and again, and those recorded"] = function()
    local wrong = {}
    for _, name in ipairs(qm.plot()) do
        local first = draw(name):svg()
        assert(first == draw(name):svg(), name .. " differs when drawn twice")
        local digest = core.sha256((first:gsub("qmoon " .. core.version:gsub("%p", "%%%0"), "qmoon VERSION")))
        if SVG[name] ~= digest then
            wrong[#wrong + 1] = ('    %s = "%s",'):format(name, digest)
        end
    end
    assert(#wrong == 0, "not as recorded:\n" .. table.concat(wrong, "\n"))
end

T["SVG does not depend on the instruction set"] = function()
    local before = core.simd()
    local here = draw "outlier":svg()
    core.simd "scalar"
    local scalar = draw "outlier":svg()
    core.simd(before)
    support.equal(scalar, here, "scalar")
end

T["SVG is well formed, has a title, a description with its recipe, and both colour schemes"] = function()
    for _, name in ipairs(qm.plot()) do
        local s = draw(name):svg()
        assert(s:find("<title>[^<]+</title>\n<desc>[^<]+qmoon " .. core.version:gsub("%p", "%%%0")), name)
        assert(s:find("prefers-color-scheme: dark", 1, true) and s:find('role="img"', 1, true), name)
        local depth = {}
        for slash, tag, closed in s:gsub("<style>.-</style>", ""):gmatch "<(/?)(%a+)[^<>]-(/?)>" do
            if slash == "/" then
                support.equal(table.remove(depth), tag, name .. ": closing tag")
            elseif closed == "" then
                depth[#depth + 1] = tag
            end
        end
        assert(#depth == 0, name .. ": " .. table.concat(depth, " ") .. " not closed")
        assert(not s:find "nan" and not s:find "inf[^i]", name .. " has a coordinate that is no number")
    end
end

--- What a page would fetch: any address in src, url(), @import, or in href other than of a link to read.
local function fetched(html)
    local found = {}
    for what in html:gmatch "<[^>]+>" do
        if what:find "%ssrc%s*=" or what:find "^<link" or what:find "%ssrcset" or what:find "^<use" then
            found[#found + 1] = what
        end
    end
    for what in html:gmatch "url%([^)]*%)" do
        found[#found + 1] = what
    end
    for _, word in ipairs { "@import", "fetch(", "XMLHttpRequest", "import(", "WebSocket", "sendBeacon" } do
        if html:find(word, 1, true) then
            found[#found + 1] = word
        end
    end
    local rest = html:gsub('<a href="https://arxiv.org/abs/[%d.]+">', ""):gsub("http://www.w3.org/%d+/svg",
        "")
    for address in rest:gmatch "https?://[^%s\"'<]+" do
        found[#found + 1] = address
    end
    return table.concat(found, "  ")
end

T["pages load nothing from anywhere"] = function()
    for _, name in ipairs(qm.plot()) do
        support.equal(fetched(draw(name):html()), "", name)
    end
end

T["a page carries the data of its sliders, once"] = function()
    local html = require("qmoon.picture.page").render("two", { draw "buckets", draw "weights" })
    local _, n = html:gsub('type="text/plain" id="data%-', "")
    support.equal(n, 1, "both pictures are of the same values")
    local spec = core.json_decode(html:match '<script type="application/json">(.-)</script>', "live")
    support.equal(spec.data, "data-1")
    local text = html:match 'id="data%-1">(.-)</script>'
    support.equal(#text, 4 * math.ceil(65536 * 4 / 3))
end

T["data go to CSV and to a gnuplot script, with the recipe"] = function()
    local p = qm.plot.rulers { "nf4" }
    local csv = p:csv()
    assert(csv:find("# formats nf4", 1, true) and csv:find("\n1,nf4,0,-1\n", 1, true)
        and csv:find("\n1,nf4,15,1\n", 1, true), csv)
    local gp = p:gnuplot()
    assert(gp:find("$data << EOD", 1, true) and gp:find('1 "nf4" 7 0\n', 1, true)
        and gp:find("plot $data", 1, true), gp)
end

T["save takes the form from the ending"] = function()
    local dir = support.scratch()
    core.mkdir(dir)
    local p = qm.plot.ledger {}
    for _, ending in ipairs { "svg", "html", "csv", "gp", "txt" } do
        assert(p:save(dir .. "/p." .. ending) == p)
        assert(#support.read(dir .. "/p." .. ending) > 200, ending)
    end
    support.raises("usage", { "p.png", ".svg, .html, .csv, .gp" }, p.save, p, dir .. "/p.png")
end

T["a wrong name and wrong data say what there is"] = function()
    support.raises("fail", { "ruler'", "did you mean 'rulers'", "heatmap" }, function()
        return qm.plot.ruler
    end)
    support.raises("fail", "did you mean 'normal'", qm.plot.buckets, { data = "norml" })
    support.raises("fail", "no fixed levels", qm.plot.rulers, { "q4_k" })
    support.raises("fail", "no float is called 'f17'", qm.plot.bits, { "f17" })
    support.raises("usage", { "mixtral 8x9b", "did you mean 'mixtral 8x7b'" }, qm.plot.memory,
        { model = "mixtral 8x9b" })
end

T["a codebook of one's own is drawn like any format"] = function()
    local mine = qm.codebook { -1, -0.5, 0, 0.25, 1 }
    local text = qm.plot.rulers { mine }:text(ascii)
    local line = text:match "codebook5? *([|-]+) 5"
    support.equal(line, "|" .. ("-"):rep(15) .. "|" .. ("-"):rep(15) .. "|" .. ("-"):rep(7) .. "|"
        .. ("-"):rep(23) .. "|")
    assert(qm.plot.frontier { "nf4", mine }:svg():find(">codebook5<", 1, true))
end

T["levels found by encoding are those of the tables"] = function()
    local levels = require "qmoon.levels"
    local nf4 = levels.of "nf4"
    support.equal(#nf4, 16)
    support.equal(nf4[2], -0.6961928009986877) -- of bitsandbytes' table
    support.equal(nf4[16], 1)
    local int4 = levels.of "int4"
    for i = 1, 15 do
        assert(math.abs(int4[i] - (i - 8) / 7) < 1e-6)
    end
    support.equal(#levels.of "e2m1", 15)
end

-- Every value of 16 bits: what the core encodes is what arithmetic says.
T["floats taken apart are those of the encoders"] = function()
    local values = qm.randn { 64, 64, seed = 5, std = 3 }:values()
    for i, v in ipairs { 0, 65504, 65520, 1e-8, 6e-8, 448, 460, 0.001953125, 57344, 1e5, 3.4e38 } do
        values[i] = i % 2 == 0 and -v or v
    end
    local t = qm.tensor(values)
    for _, name in ipairs { "f16", "bf16", "f8_e4m3", "f8_e5m2" } do
        local l, back = minifloat.layout(name), t:quantize(name):dequantize():values()
        for i, v in ipairs(t:values()) do
            support.equal(minifloat.round(v, l), back[i], ("%s of %.9g"):format(name, v))
        end
    end
    support.equal(minifloat.bits(-1.5, minifloat.layout "bf16"), "1011111111000000")
    support.equal(minifloat.bits(70000, minifloat.layout "f16"), "0111110000000000")
    for _, l in ipairs(minifloat.layouts) do
        for _, v in ipairs { 0, 0.1, -3, 100, 1e-5 } do
            local r = minifloat.round(v, l)
            support.equal(minifloat.value(minifloat.bits(v, l), l), r, l.name)
        end
    end
end

T["the share of each code is counted as the encoder counts it"] = function()
    local t = qm.randn { 64, 256, seed = 9 }
    local codes, counts = t:quantize("nf4"):codes(), {}
    for i = 1, #codes do
        local byte = codes:byte(i)
        for _, c in ipairs { math.floor(byte / 16), byte % 16 } do
            counts[c] = (counts[c] or 0) + 1
        end
    end
    local rows = qm.plot.buckets { t = t, "nf4" }.panels[1].rows
    for k = 0, 15 do
        support.equal(rows[k + 1].values[1], counts[k] / (64 * 256), "code " .. k)
    end
end

T["a report over a model is drawn, of many layers also on a terminal"] = function()
    local p = qm.open(MODEL):report("nf4"):plot()
    support.equal(table.concat(p.panels[1].cols, " "), "q_proj k_proj v_proj o_proj gate_proj up_proj "
        .. "down_proj")
    support.equal(#p.panels[1].rows, 4)
    local list = {}
    for layer = 0, 79 do
        list[#list + 1] = { name = ("model.layers.%d.mlp.up_proj.weight"):format(layer),
            sqnr = 20 + layer / 80 }
    end
    local text = qm.plot.heatmap(list):text(ascii)
    local _, lines = text:gsub("\n", "")
    assert(lines < 40 and text:find("\n 0%-3 +20.0") and text:find "\n 76%-79", text)
    support.raises("fail", "what m:report, qm.compare or qm.sweep gave", qm.plot.result, {})
end

T["the heat map shows the worst tensors first and every layer"] = function()
    local list = { { name = "layers.0.a.weight", sqnr = 20 }, { name = "layers.10.a.weight", sqnr = 11 },
                   { name = "layers.2.b.weight", sqnr = 15 } }
    local p = qm.plot.heatmap(list)
    support.equal(table.concat(p.panels[1].rows, " "), "0 2 10")
    support.equal(p.panels[2].rows[2][1], "layers.10.a.weight")
    assert(picture.is(p))
end

return T
