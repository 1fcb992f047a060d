-- pages.lua FOLDER [CHROMIUM]: opens the pages in headless Chromium, light and dark, wide and narrow; moves
-- their sliders;
-- compares what their script computes with what the core computes; measures overlap, cut-off text and
-- contrast. Leaves
-- screenshots in FOLDER, to be looked at.  `make test-pages` runs it.

local core = require "qmoon.core"
local qm = require "qmoon"
local affine = require "qmoon.affine"
local files = require "qmoon.files"
local footprint = require "qmoon.footprint"
local json = require "qmoon.json"
local lesson = require "qmoon.lesson"
local page = require "qmoon.picture.page"
local survival = require "qmoon.survival"

local folder, chromium = arg[1], arg[2] or "chromium"
local passed, failed = 0, 0

local function check(ok, form, ...)
    if ok then
        passed = passed + 1
    else
        failed = failed + 1
        print("FAIL " .. form:format(...))
    end
end

-- ---- the browser ------------------------------------------------------------------------------------------

local DARK = { light = 1, dark = 0 } -- of Blink's preferredColorScheme

local function browse(path, scheme, width, more)
    local command = ("timeout 120 %s --headless --no-sandbox --disable-gpu --hide-scrollbars "
        .. "--virtual-time-budget=8000 --enable-logging=stderr --force-device-scale-factor=1 "
        .. "--user-data-dir='%s/profile' --window-size=%d,%d --blink-settings=preferredColorScheme=%d %s "
        .. "'file://%s' 2>'%s/log'"):format(chromium, folder,
            width,
        more.height or 900, DARK[scheme], more.option, path, folder)
    local pipe = io.popen(command)
    local text = pipe:read "*a"
    pipe:close()
    local log = files.read(folder .. "/log")
    for line in log:gmatch "[^\n]+" do
        check(not line:find "CONSOLE" and not line:find "Uncaught", "%s: %s", path, line)
    end
    return text
end

local function unescaped(s)
    return (s:gsub("&(%a+);", { lt = "<", gt = ">", quot = '"', amp = "&" }))
end

--- What the probe finds in a copy of the page, its sliders moved; every complaint is a failure.
local function probe(name, html, scheme, width, wanted)
    local script = files.read("tests/pages/probe.js"):gsub("WANTED;", function()
        return json.encode(wanted) .. ";"
    end)
    local path = ("%s/%s-probe.html"):format(folder, name)
    files.write(path, (html:gsub("</body>", function()
        return "<script>\n" .. script .. "</script></body>"
    end)))
    local dom = browse(path, scheme, width, { option = "--dump-dom" })
    local text = dom:match '<pre id="probe">(.-)</pre>'
    check(text, "%s: the probe left nothing", name)
    local found = text and core.json_decode(unescaped(text), name)
        or { errors = {}, outputs = {}, texts = {} }
    check(#found.errors == 0, "%s, %s, %d wide: %s", name, scheme, width,
        table.concat(found.errors, "\n     "))
    local outputs = {}
    for _, pair in ipairs(found.outputs) do
        outputs[pair[1]] = pair[2]
    end
    return outputs, found.texts
end

local function shoot(name, path, scheme, width, height)
    local picture = ("%s/%s-%s-%d.png"):format(folder, name, scheme, width)
    browse(path, scheme, width, { option = ("--screenshot='%s'"):format(picture), height = height })
    check(core.stat(picture) and core.stat(picture).size > 5000, "%s: no screenshot", picture)
    return core.stat(picture) and core.sha256(files.read(picture))
end

-- ---- what the sliders must give
-- ------------------------------------------------------------------------------

local function sqnr(t, book, block)
    return qm.error(t, t:quantize(book, { block = block })).sqnr
end

local function normal_levels(bits)
    return qm.quantile_codebook("normal", { levels = 2 ^ bits })
end

--- The lines below the pictures at these positions, from the core; a `block` is given as its power of two.
local function expected(at)
    local block, lines = 2 ^ at.block, {}
    local t = qm.randn { 256, 256, seed = 1 }
    local book, int = normal_levels(at.bits), "int" .. at.bits
    lines.rulers = ("%d bits: %d even levels, %d normal ones"):format(at.bits, 2 ^ at.bits - 1, 2 ^ at.bits)
    lines.weights = ("nf%d, blocks of %d: %.2f dB at %.3f bits a weight"):format(at.bits, block,
        sqnr(t, book, block),
        at.bits + 32 / block)
    lines.frontier = ("%.3f bits: nf%d:%d %.2f dB, int%d:%d %.2f dB"):format(at.bits + 32 / block, at.bits,
        block,
        sqnr(t, book, block), at.bits, block, sqnr(t, int, block))
    local use = qm.plot.buckets { block = block }.entropy
    lines.buckets = ("blocks of %d: nf4: %.2f bits, int4: %.2f bits"):format(block, use[1], use[2])
    local nine, even = affine.affine(affine.nine, at.bits), affine.symmetric(affine.nine, at.bits)
    lines.nine = ("%d bits: largest error %.4f affine, %.4f symmetric"):format(at.bits, nine.worst,
        even.worst)
    local single, double = at.bits + 32 / block, at.bits + 8 / block + 32 / (block * 256)
    lines.ledger = ("%d bits, blocks of %d: double quantisation saves %.3f bits, %.1f %%"):format(at.bits,
        block, single - double,
        100 * (1 - double / single))
    local dirty = t:values()
    for i = 2049, #dirty, 4096 do
        dirty[i] = at.outlier
    end
    dirty = core.tensor({ 256, 256 }, dirty)
    local function rmse(x, b)
        return qm.error(x, x:quantize(book, { block = b })).rmse
    end
    lines.outlier = ("nf%d, outliers of %d sigma: in blocks of 4096 %.1f times the error, in blocks of 64 "
        .. "%.0f %% more"):format(
        at.bits, at.outlier, rmse(dirty, 4096) / rmse(t, 4096), 100 * (rmse(dirty, 64) / rmse(t, 64) - 1))
    local made = survival.make { rows = 64, cols = 256, seed = 1 }
    local r = survival.measure(made, at.ratio / 1000, qm.codebook { levels = book:levels(), block = block })
    lines.lora = ("update of %.1f %% in nf%d, blocks of %d: %.0f %% survives on the original, %.1f %% on "
        .. "the quantised base"):format(
        at.ratio / 10, at.bits, block, 100 * r.original, 100 * r.dequantised)
    local cache = footprint.token(footprint.model "mixtral 8x7b") * 2 ^ at.context / 2 ^ 30
    lines.memory = ("context %d: cache %.2f GiB"):format(2 ^ at.context, cache)
    return lines
end

local POSITIONS = { { bits = 3, block = 8, outlier = 40, ratio = 100, context = 14 },
                    { bits = 6, block = 5, outlier = 5, ratio = 5, context = 10 } }

local function all_pictures()
    local list = {}
    for _, name in ipairs(qm.plot()) do
        local o = name == "heatmap" and { model = qm.open "tests/fixtures/tiny-qwen2" }
            or name == "result" and qm.compare(qm.randn { 64, 256, seed = 1 }, { "nf4", "q4_0", "int8" })
                or {}
        list[#list + 1] = qm.plot[name](o)
    end
    return page.render("All pictures", list)
end

local function check_sliders(html)
    for _, at in ipairs(POSITIONS) do
        local outputs = probe("pictures", html, "light", 1000, at)
        for name, line in pairs(expected(at)) do
            check(outputs[name] and outputs[name]:sub(1, #line) == line, "%s: the page says '%s', the core "
                .. "'%s'", name,
                tostring(outputs[name]), line)
        end
    end
end

--- Sliders moved away and back show what was there before.
local function check_return(html)
    local _, before = probe("pictures", html, "light", 1000, {})
    local home = { bits = 4, block = 6, outlier = 20, ratio = 20, context = 12 }
    local _, after = probe("pictures", html, "light", 1000, home)
    for name, texts in pairs(before) do
        local there = {}
        for _, text in ipairs(after[name]) do
            there[text] = true
        end
        for _, text in ipairs(texts) do
            -- labels may say nf4:64 where the picture said nf4, and nine numbers start at 8 bits
            check(name == "nine" or there[text] or text == "nf4" or text == "nf4:dq",
                "%s: '%s' did not come back", name, text)
        end
    end
end

core.mkdir(folder)
folder = core.realpath(folder)
local html = all_pictures()
check_sliders(html)
check_return(html)
files.write(folder .. "/pictures.html", html)
for _, width in ipairs { 1000, 400 } do
    probe("pictures", html, "dark", width, {})
    local light = shoot("pictures", folder .. "/pictures.html", "light", width, width == 1000 and 7000
        or 5000)
    local dark = shoot("pictures", folder .. "/pictures.html", "dark", width, width == 1000 and 7000 or 5000)
    check(light ~= dark, "light and dark look the same at %d", width)
end
for _, name in ipairs(lesson.names()) do
    local path = ("%s/%s.html"):format(folder, name)
    files.write(path, lesson.run(name):html())
    probe(name, files.read(path), "light", 400, {})
    shoot(name, path, "dark", 1000, 3000)
end
print(("%d passed, %d failed; screenshots are in %s"):format(passed, failed, folder))
return failed == 0 and 0 or 1
