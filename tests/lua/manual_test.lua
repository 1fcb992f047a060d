-- The manual, the scripting guide and the notebook page do what they say; man pages and completion are made of the
-- same tables that parse options.

local core = require "qmoon.core"
local specs = require "qmoon.command_specs"
local support = dofile "tests/lua/support.lua"
local equal = support.equal

local PROGRAM = core.realpath(arg[-1])

-- A folder with a model, an adapter and a text, to be in.
local function place()
    local dir = support.scratch()
    core.mkdir(dir)
    for name, fixture in pairs { model = "tiny-qwen2", adapter = "tiny-adapter" } do
        os.execute(("ln -s %s %s/%s"):format(core.realpath("tests/fixtures/" .. fixture), dir, name))
    end
    support.write(dir .. "/text.txt", ("Once there was a small model that was read again and again. "):rep(20))
    os.execute(("mkdir %s/bin && ln -s %s %s/bin/qmoon"):format(dir, PROGRAM, dir))
    return dir
end

-- Runs a shell line in the folder, `qmoon` being this program; returns exit status and what it printed.
local function run(dir, line)
    local script, out = os.tmpname(), os.tmpname()
    support.write(script, ("cd %s\nPATH=%s/bin:$PATH\n%s\n"):format(dir, dir, line))
    local status = os.execute(("bash %s >%s 2>&1 </dev/null"):format(script, out))
    local text = support.read(out)
    os.remove(script)
    os.remove(out)
    return status > 255 and math.floor(status / 256) or status, text
end

local function blocks(path, kind)
    local list = {}
    for body in support.read(path):gmatch("\n```" .. kind .. "\n(.-)\n```") do
        list[#list + 1] = body
    end
    assert(#list > 0, path)
    return list
end

local T = {}

T["every command of the manual runs"] = function()
    local dir = place()
    for _, body in ipairs(blocks("docs/manual.md", "sh")) do
        for line in body:gmatch "[^\n]+" do
            local wanted = tonumber(line:match "# exits (%d+)") or 0
            local status, text = run(dir, (line:gsub("%s*#.*$", "")))
            equal(status, wanted, line .. "\n" .. text)
            assert(wanted == 0 or select(2, text:gsub("error: ", "")) == 1, line .. ": " .. text)
        end
    end
end

T["every script of the scripting guide runs"] = function()
    local dir = place()
    for i, body in ipairs(blocks("docs/scripting.md", "lua")) do
        support.write(("%s/%d.lua"):format(dir, i), body)
        local status, text = run(dir, ("qmoon ./%d.lua"):format(i))
        equal(status, 0, body .. "\n" .. text)
    end
end

T["every shell cell of the notebook page runs, but for building"] = function()
    local dir = place()
    local names = { MODEL = dir .. "/model", ADAPTER = dir .. "/adapter", OUT = dir .. "/quantized" }
    local kaggle = support.read("docs/notebooks.md"):match "## Kaggle(.-)## Colab"
    local cells = 0
    for body in kaggle:gmatch "\n```\n(.-)\n```" do
        local file, rest = body:match "^%%%%writefile (%S+)\n(.*)$"
        body = body:gsub("/tmp/", dir .. "/")
        if file then
            support.write(dir .. "/" .. file:match "[^/]+$", (rest:gsub("/tmp/", dir .. "/")))
        elseif body:find "^!qmoon" then
            local status, text = run(dir, (body:sub(2):gsub("{(%u+)}", names)))
            equal(status, 0, body .. "\n" .. text)
            assert(not text:find "[\r\27]", body)
            cells = cells + 1
        end
    end
    equal(cells, 6)
    assert(core.stat(dir .. "/report.md") and core.stat(dir .. "/lesson.html") and core.stat(dir .. "/errors.csv"))
end

T["the manual's table of exit statuses and its links hold"] = function()
    local text = support.read "docs/manual.md"
    for anchor in text:gmatch "%]%(#([^%)]+)%)" do
        local found = false
        for title in text:gmatch "\n## ([^\n]+)" do
            found = found or title:lower():gsub("[^%w %-]", ""):gsub(" ", "-") == anchor
        end
        assert(found, anchor)
    end
    for file in text:gmatch "%]%(([%w_]+%.md)%)" do
        assert(core.stat("docs/" .. file), file)
    end
end

T["man pages name every command, option, format and public function, and scdoc takes them"] = function()
    local manual = require "qmoon.manual"
    local page = manual.page "qmoon.1"
    local function plain(s)
        return (s:gsub("[_*]", "\\%0"))
    end
    for _, name in ipairs(specs.names()) do
        local spec = specs.of(name)
        for _, sub in ipairs(spec.commands or { spec }) do
            assert(page:find(("## qmoon %s\n"):format(sub.name), 1, true), sub.name)
            for _, o in ipairs(sub.options) do
                assert(page:find(("*--%s*"):format(o[1]), 1, true), sub.name .. " --" .. o[1])
            end
        end
    end
    for _, f in ipairs(core.formats()) do
        assert(manual.page("qmoon-formats.5"):find(("*%s*\n"):format(plain(f.name)), 1, true), f.name)
    end
    for _, entry in ipairs(require("qmoon.doc").registry()) do
        assert(manual.page("qmoon-lua.3"):find("*" .. plain(entry.name) .. "(", 1, true), entry.name)
        assert(manual.page("reference.md"):find("### `" .. entry.name .. "(", 1, true), entry.name)
    end
    local dir = place()
    for _, name in ipairs(manual.pages()) do
        if name:find "%.%d$" then
            local status, text = run(dir, ("qmoon docs %s | scdoc > %s && test -s %s"):format(name, name, name))
            equal(status, 0, name .. ": " .. text)
        end
    end
end

local function complete(dir, ...)
    local words = { ... }
    for i, w in ipairs(words) do
        words[i] = "'" .. w .. "'"
    end
    local status, text = run(dir, ("source <(qmoon completion bash)\nCOMP_WORDS=(%s)\nCOMP_CWORD=%d\n_qmoon\necho \"${COMPREPLY[*]}\""):format(
        table.concat(words, " "), #words - 1))
    equal(status, 0, text)
    return " " .. text:gsub("\n", " ")
end

T["bash completes commands, sub-commands, options, types and files"] = function()
    local dir = place()
    for _, case in ipairs { { " quantize ", "qmoon", "qu" }, { " --double-quant ", "qmoon", "quantize", "--dou" }, { " set ", "qmoon", "gguf", "s" },
                            { " q4_k_m ", "qmoon", "quantize", "--type", "q4" }, { " nf4 ", "qmoon", "quantize", "--type", "n" },
                            { " --remove ", "qmoon", "gguf", "set", "--r" }, { " --adapter ", "qmoon", "plan", "merge", "--ad" },
                            { " model ", "qmoon", "verify", "mo" }, { " nf4-vs-int4 ", "qmoon", "demo", "nf4" } } do
        local got = complete(dir, unpack(case, 2))
        assert(got:find(case[1], 1, true), table.concat(case, " ", 2) .. ": " .. got)
    end
end

T["completion of every shell knows every command and option"] = function()
    local completion = require "qmoon.completion"
    for _, shell in ipairs { "bash", "zsh", "fish" } do
        local script = completion.of(shell)
        for _, name in ipairs(specs.names()) do
            assert(script:find(name, 1, true), shell .. " " .. name)
            for _, o in ipairs(specs.of(name).options or {}) do
                assert(script:find((shell == "fish" and "-l " or "--") .. o[1], 1, true), shell .. " --" .. o[1])
            end
        end
        support.write(place() .. "/c", script)
        local dir = place()
        support.write(dir .. "/c", script)
        local status, text = run(dir, ("command -v %s >/dev/null || exit 0; %s -n c"):format(shell, shell))
        equal(status, 0, shell .. ": " .. text)
    end
    support.raises("usage", "bash, zsh and fish", completion.of, "tcsh")
end

return T
