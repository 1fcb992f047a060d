-- docs/teaching.md: every figure is the program's, and its commands and names exist.

local lesson = require "qmoon.lesson"
local qm = require "qmoon"
local support = dofile "tests/lua/support.lua"

local T = {}

local TEXT = support.read "docs/teaching.md"

T["every decimal figure of docs/teaching.md is what its demo computes"] = function()
    local ran, checked = {}, 0
    for shown, demo, figure, form in TEXT:gmatch "([%d.]+)<!%-%- ([%w-]+)%.(%S+) (%%[%w.]+) %-%->" do
        ran[demo] = ran[demo] or lesson.run(demo).figures
        local value = ran[demo][figure]
        assert(value, ("%s has no figure '%s'"):format(demo, figure))
        support.equal(shown, form:format(value), demo .. "." .. figure)
        checked = checked + 1
    end
    local _, marked = TEXT:gsub("<!%-%-", "")
    support.equal(checked, marked, "figures read")
    -- no decimal number stands without a mark; code, names of models and versions are no figures
    local rest = TEXT:gsub("```.-```", ""):gsub("`[^`]*`", ""):gsub("[%d.]+<!%-%- .- %-%->",
        ""):gsub("Qwen2%.5", "")
    assert(not rest:find "%d%.%d", "a figure without a mark: "
        .. tostring(rest:match ".?.?.?.?.?.?.?.?.?.?%d%.%d.?.?.?"))
end

T["every demo and picture is named there, and no other"] = function()
    for _, name in ipairs(lesson.names()) do
        assert(TEXT:find("`qmoon demo " .. name .. "`", 1, true), "docs/teaching.md does not name " .. name)
    end
    for name in TEXT:gmatch "`qmoon demo ([%w-]+)`" do
        assert(name == "NAME" or lesson.demo(name))
    end
    local listed = TEXT:match "lists them: ([^.]+)%."
    for _, name in ipairs(qm.plot()) do
        assert(listed:find(name, 1, true), "docs/teaching.md does not name the picture " .. name)
    end
end

T["the example of pictures runs"] = function()
    local code = TEXT:match "```lua\n(.-)```"
    local dir = support.scratch()
    require("qmoon.core").mkdir(dir)
    code = code:gsub('save "', 'save "' .. dir .. "/"):gsub('"Qwen2.5%-1.5B"', '"tests/fixtures/tiny-qwen2"')
    support.write(dir .. "/example.lua", 'local qm = require "qmoon"\n'
        .. code:gsub("\nqm%.plot%.heatmap", "\nlocal _ = qm.plot.heatmap"))
    local status, text = support.run(dir .. "/example.lua")
    support.equal(status, 0, text)
    assert(text:find("with one in 4096", 1, true) and #support.read(dir .. "/outlier.gp") > 500)
end

return T
