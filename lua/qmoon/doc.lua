--- What the annotations in the Lua files say of a function.  They are the only source of `?help`, of the reference
-- manual and of completion; an editor with LuaCATS reads the same lines.
--
--     --- One sentence that sums it up.  Then as many as are needed.
--     ---
--     ---     an example, that the tests run
--     ---
--     ---@param name type what it is
--     ---@return type
--     function module.name(name)

local core = require "qmoon.core"

local doc = {}

---@class qmoon.Doc
---@field name string?        under which it is public: "qm.randn", "t:quantize"
---@field signature string    "qm.randn(spec)"
---@field summary string      first sentence
---@field text string         all of the prose
---@field example string?     Lua
---@field params {name:string, type:string, text:string}[]
---@field returns string[]
---@field file string
---@field line integer

-- ---- finding the lines ----------------------------------------------------------------------------------------

local sources = {} -- path -> lines; false when there are none
local embedded -- path -> module

local function source_text(path)
    if not embedded then
        embedded = {}
        for _, name in ipairs(core.modules "") do
            local _, file = core.source(name)
            embedded[file] = name
        end
    end
    if embedded[path] then
        return (core.source(embedded[path]))
    end
    local ok, text = pcall(require("qmoon.files").read, path)
    return ok and text or nil
end

--- The lines of a file: one of the program's own, or one on disk.
---@param path string
---@return string[]?
function doc.lines(path)
    if sources[path] == nil then
        local text, lines = source_text(path), {}
        for line in ((text or "") .. "\n"):gmatch "(.-)\n" do
            lines[#lines + 1] = line
        end
        sources[path] = text and lines or false
    end
    return sources[path] or nil
end

-- ---- reading a block ------------------------------------------------------------------------------------------------

local function param(rest)
    local name, kind = rest:match "^([%w_%.]+%??)%s+(.*)$"
    if not name then
        return { name = rest, type = "any", text = "" }
    end
    -- a type ends at a blank that is in no bracket and does not follow ':' or ','
    local depth, last = 0, #kind
    for i = 1, #kind do
        local c = kind:sub(i, i)
        if c:find "[%({<]" then
            depth = depth + 1
        elseif c:find "[%)}>]" then
            depth = depth - 1
        elseif c == " " and depth == 0 and not kind:sub(1, i - 1):find "[:,|]$" then
            last = i - 1
            break
        end
    end
    return { name = name, type = kind:sub(1, last), text = kind:sub(last + 2) }
end

local function parse(block)
    local d = { params = {}, returns = {} }
    local prose, code = {}, {}
    local field
    for _, line in ipairs(block) do
        local tag, rest = line:match "^@(%w+)%s*(.*)$"
        if tag == "param" then
            field = param(rest)
            d.params[#d.params + 1] = field
        elseif tag == "return" then
            d.returns[#d.returns + 1] = rest
            field = nil
        elseif field and line:find "^%s+%S" then -- a parameter's text goes on
            field.text = field.text .. line:gsub("^%s+", " ")
        elseif line:find "^     %S" or (line:find "^     " and #code > 0) then
            code[#code + 1] = line:sub(6)
        elseif not tag then
            prose[#prose + 1] = line:sub(2)
        end
    end
    d.text = table.concat(prose, "\n"):gsub("^%s+", ""):gsub("%s+$", ""):gsub("\n\n\n+", "\n\n")
    d.summary = d.text:gsub("\n", " "):match "^(.-[%.:])%s" or d.text:gsub("\n", " ")
    d.example = code[1] and table.concat(code, "\n") or nil
    return d
end

local names -- function -> public name

local function public_name(f)
    if not names then
        names = {}
        for _, entry in ipairs(doc.registry()) do
            names[entry.run] = entry.name
        end
    end
    return names[f]
end

--- The documentation of a function: of one of the program's, or of one with such a comment in a script.
---@param f function
---@return qmoon.Doc?
function doc.of(f)
    local info = debug.getinfo(f, "S")
    local path = info.source:match "^@(.*)$"
    local lines = path and doc.lines(path)
    local head = lines and lines[info.linedefined]
    if not head then
        return nil
    end
    local block, at = {}, info.linedefined - 1
    while at >= 1 and lines[at]:find "^%s*%-%-%-" do
        table.insert(block, 1, (lines[at]:gsub("^%s*%-%-%-", "")))
        at = at - 1
    end
    if #block == 0 then
        return nil
    end
    local d = parse(block)
    local arguments = head:match "function[^%(]*%(([^%)]*)%)" or "…"
    d.name = public_name(f) or head:match "function%s+([%w_%.:]+)" or "function"
    d.signature = ("%s(%s)"):format(d.name, arguments)
    d.file, d.line, d.run = path, info.linedefined, f
    return d
end

--- The source of a Lua function; nil for one in C.
---@param f function
---@return string? source
---@return string? where
function doc.source(f)
    local info = debug.getinfo(f, "S")
    local path = info.source:match "^@(.*)$"
    local lines = path and doc.lines(path)
    if not lines or not lines[info.linedefined] then
        return nil
    end
    return table.concat(lines, "\n", info.linedefined, math.min(info.lastlinedefined, #lines)),
        ("%s:%d"):format(path, info.linedefined)
end

-- ---- what is public ---------------------------------------------------------------------------------------------------

-- Modules whose functions are methods, and what an object of theirs is called in examples.
local CLASSES = {
    { class = "tensor", prefix = "t:", methods = function() return core.tensor_methods end },
    { class = "model", prefix = "m:", hidden = { open = true, extent = true },
      methods = function() return require "qmoon.model" end },
    { class = "result", prefix = "r:", methods = function() return require("qmoon.result").methods end },
    { class = "codebook", prefix = "codebook:", methods = function() return core.format_methods end },
    { class = "picture", prefix = "p:", methods = function() return require("qmoon.picture").methods end },
}

local function add_functions(list, prefix, methods, hidden)
    local found = {}
    for name, f in pairs(methods) do
        if type(f) == "function" and type(name) == "string" and not name:find "^_" and not hidden[name] then
            found[#found + 1] = { name = prefix .. name, short = name, run = f }
        end
    end
    table.sort(found, function(a, b)
        return a.name < b.name
    end)
    for _, entry in ipairs(found) do
        list[#list + 1] = entry
    end
end

--- Every public function: {name = "qm.randn", short = "randn", run = the function}.
---@return {name:string, short:string, run:function}[]
function doc.registry()
    local list = {}
    add_functions(list, "qm.", require "qmoon", {})
    local plots = {}
    for _, name in ipairs(require "qmoon.plot"()) do
        plots[name] = require("qmoon.plot")[name]
    end
    add_functions(list, "qm.plot.", plots, {})
    for _, c in ipairs(CLASSES) do
        add_functions(list, c.prefix, c.methods(), c.hidden or {})
    end
    return list
end

--- Names of a class's methods, for suggestions.
---@return string[]
function doc.method_names()
    local list = {}
    for _, entry in ipairs(doc.registry()) do
        if entry.name:find(":", 1, true) then
            list[#list + 1] = entry.short
        end
    end
    return list
end

return doc
