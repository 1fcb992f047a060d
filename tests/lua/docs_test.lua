-- What the documentation says is what the program does.

local core = require "qmoon.core"
local support = dofile "tests/lua/support.lua"

local T = {}

T["the table of formats in README.md is the program's own"] = function()
    local readme = support.read "README.md"
    local table_text = readme:match "<!%-%- qmoon formats %-%-markdown %-%->\n(.-)\n<!%-%- end %-%->"
    local _, printed = support.run "formats --markdown"
    assert(table_text == printed:gsub("%s+$", ""), "`make readme` puts the new one in")
end

T["README.md names every command"] = function()
    local readme = support.read "README.md"
    for _, m in ipairs(core.modules "command:") do
        local name = m:sub(9)
        assert(readme:find("`" .. name, 1, true), "README.md does not mention " .. name)
    end
end

T["the recipe in README.md runs"] = function()
    local code = support.read("README.md"):match "```lua\n(.-)```"
    local dir = support.scratch()
    core.mkdir(dir)
    code = code:gsub('"quantized/', '"' .. dir .. "/")
    support.write(dir .. "/recipe.lua", code)
    local status, text = support.run(dir .. "/recipe.lua tests/fixtures/tiny-qwen2 tests/fixtures/tiny-adapter")
    support.equal(status, 0, text)
    assert(core.stat(dir .. "/model-q4_0.gguf") and core.stat(dir .. "/model-int4/model.safetensors"))
end

return T
