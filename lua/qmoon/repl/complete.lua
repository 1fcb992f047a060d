--- What Tab offers: names of variables, fields and methods, formats, tensors of open models, paths.
--
-- Nothing of the user's runs while names are looked up: tables are read raw, and only tables are followed from
-- metatable to metatable.  A table that makes its fields when they are asked for may have a function `safe_names` in
-- its metatable, which lists them.

local core = require "qmoon.core"
local formats = require "qmoon.formats"
local terminal = require "qmoon.terminal"
local text = require "qmoon.text"

local complete = {}

local MOST_LINES = 12

-- ---- names --------------------------------------------------------------------------------------------------------

-- The table that a value's missing fields come from, if it is one.
local function parent_of(value)
    local meta = debug.getmetatable(value)
    local index = type(meta) == "table" and rawget(meta, "__index")
    if type(index) == "table" then
        return index
    elseif type(meta) == "table" and type(rawget(meta, "methods")) == "table" then
        return rawget(meta, "methods")
    end
end

local function field_of(value, key)
    for _ = 1, 8 do
        local found = type(value) == "table" and rawget(value, key) or nil
        if found ~= nil then
            return found
        end
        value = parent_of(value)
        if value == nil then
            return nil
        end
    end
end

-- "a.b.c" -> its value, or nil; `[1]` and ["x"] are followed, too.
local function value_of(chain)
    local value = _G
    for piece in chain:gmatch "[^%.:]+" do
        local name, rest = piece:match "^([%a_][%w_]*)(.*)$"
        if not name then
            return nil
        end
        value = field_of(value, name)
        for index in rest:gmatch "%[(.-)%]" do
            if value == nil then
                return nil
            end
            value = field_of(value, tonumber(index) or index:match "^[\"'](.*)[\"']$" or index)
        end
        if value == nil then
            return nil
        end
    end
    return value
end

local function names_in(value, start, only_functions)
    local found, seen = {}, {}
    local meta = debug.getmetatable(value)
    local list = type(meta) == "table" and rawget(meta, "safe_names")
    for _, name in ipairs(list and list() or {}) do
        if name:sub(1, #start) == start and not seen[name] then
            found[#found + 1], seen[name] = name, true
        end
    end
    for _ = 1, 8 do
        for k, v in next, type(value) == "table" and value or {} do
            if type(k) == "string" and k:find "^[%a_][%w_]*$" and k:sub(1, #start) == start and not seen[k]
                and (not only_functions or type(v) == "function") and (k:sub(1, 1) ~= "_" or start:sub(1, 1) == "_") then
                seen[k] = true
                found[#found + 1] = k
            end
        end
        value = parent_of(value)
        if value == nil then
            break
        end
    end
    return found
end

local KEYWORDS = { "and", "break", "do", "else", "elseif", "end", "false", "for", "function", "goto", "if", "in", "local", "nil",
                   "not", "or", "repeat", "return", "then", "true", "until", "while" }

local function begins(list, start)
    local found = {}
    for _, word in ipairs(list) do
        if word:sub(1, #start) == start then
            found[#found + 1] = word
        end
    end
    return found
end

-- Of names that people know by their ends: those that have the word anywhere, when none begins with it.
local function begins_or_has(list, word)
    local found = begins(list, word)
    for _, name in ipairs(#found == 0 and word ~= "" and list or {}) do
        if name:find(word, 1, true) then
            found[#found + 1] = name
        end
    end
    return found
end

-- ---- inside a string ----------------------------------------------------------------------------------------------

local function format_names()
    local names = {}
    for i, f in ipairs(formats.list()) do
        names[i] = f.name
    end
    return names
end

-- Models among the variables, the one that is asked first.
local function tensor_names(of)
    local names, seen = {}, {}
    local function take(value)
        local by_name = type(value) == "table" and rawget(value, "by_name")
        local items = type(value) == "table" and rawget(value, "items")
        if type(by_name) == "table" and type(items) == "table" then
            for _, item in ipairs(items) do
                if not seen[item.name] then
                    names[#names + 1], seen[item.name] = item.name, true
                end
            end
        end
    end
    local asked = of and value_of(of)
    if asked ~= nil then
        take(asked)
    end
    for _, value in next, #names == 0 and _G or {} do
        take(value)
    end
    return names
end

local function paths(start)
    local folder, name = start:match "^(.*/)([^/]*)$"
    folder, name = folder or "", name or start
    local real = folder:gsub("^~/", (os.getenv "HOME" or "~") .. "/")
    local ok, list = pcall(core.list, real == "" and "." or real)
    local found = {}
    for _, entry in ipairs(ok and list or {}) do
        if entry:sub(1, #name) == name and (entry:sub(1, 1) ~= "." or name:sub(1, 1) == ".") then
            local there, s = pcall(core.stat, real .. entry)
            found[#found + 1] = folder .. entry .. (there and s and s.type == "dir" and "/" or "")
        end
    end
    return found
end

local PATHS = { open = true, dofile = true, loadfile = true, read = true, save = true, merge = true, write = true, lines = true,
                load = true, tokenizer = true }
local FORMATS = { quantize = true, compare = true, report = true, sweep = true, rulers = true, format = true }

-- The string that is open at the end of the text: what is in it so far, and the text before it.
local function open_string(line)
    local at, quote = 1, nil
    local start
    while at <= #line do
        local c = line:sub(at, at)
        if quote and c == "\\" then
            at = at + 1
        elseif quote and c == quote then
            quote = nil
        elseif not quote and (c == '"' or c == "'") then
            quote, start = c, at
        elseif not quote and line:sub(at, at + 1) == "--" then
            return nil
        end
        at = at + 1
    end
    if quote then
        return line:sub(start + 1), line:sub(1, start - 1), quote
    end
end

local function devices()
    local list = { "cpu" }
    for i = 0, (core.cuda_count()) - 1 do
        list[#list + 1] = "cuda:" .. i
    end
    return list
end

-- Candidates for the word in a string, by the function that it goes to.
local function in_string(word, before)
    local of, name = before:match "([%w_%.]+)[:%.]([%a_][%w_]*)%s*%(?%s*{?[^{}%(%)]*$"
    if not name then
        name = before:match "([%a_][%w_]*)%s*%(?%s*{?[^{}%(%)]*$"
    end
    if name == "tensor" then
        return begins_or_has(tensor_names(of), word)
    elseif name == "to" then
        return begins(devices(), word)
    elseif FORMATS[name] or before:find "format%s*=%s*$" then
        local head, tail = word:match "^(.*[:,])(.-)$"
        local found = begins(head and { "dq", "row", "32", "64", "128", "256" } or format_names(), tail or word)
        for i, f in ipairs(found) do
            found[i] = (head or "") .. f
        end
        return found
    elseif PATHS[name] or word:find "[/~]" then
        return paths(word)
    end
    local found = begins(format_names(), word)
    for _, list in ipairs { begins(tensor_names(), word), paths(word) } do
        for _, candidate in ipairs(list) do
            found[#found + 1] = candidate
        end
    end
    return found
end

-- ---- a line -------------------------------------------------------------------------------------------------------------

local function topics(word)
    local help = require "qmoon.help"
    local found = begins(help.names(), word)
    return #found > 0 and found or nil
end

--- Candidates for the end of a line, and how many of its characters they replace.
---@param line string up to the cursor
---@return string[] candidates, sorted
---@return integer replaced
---@return string closing goes behind a candidate that is the only one
function complete.candidates(line)
    local found, word, closing = nil, "", ""
    local command = line:match "^:(%a*)$"
    local string_word, before, quote = open_string(line)
    if command then
        found, word, closing = begins(require("qmoon.repl.commands").names(), command), command, " "
    elseif line:find "^:" then
        word = line:match "%S*$"
        found = line:find "^:mode" and begins(require("qmoon.repl.show").modes, word) or paths(word)
    elseif string_word then
        found, word = in_string(string_word, before), string_word
        closing = #found == 1 and not found[1]:find "/$" and quote or ""
    elseif line:find "^%?" and topics(line:match "[^%?%s]*$") then
        word = line:match "[^%?%s]*$"
        found = topics(word)
    else
        local chain, separator, start = line:match "([%a_][%w_%.:%[%]\"']*)([%.:])([%w_]*)$"
        if not chain then
            word = line:match "[%a_][%w_]*$" or ""
            found = names_in(_G, word)
            for _, k in ipairs(begins(KEYWORDS, word)) do
                found[#found + 1] = k
            end
        else
            local value = value_of(chain)
            found, word = value ~= nil and names_in(value, start, separator == ":") or {}, start
        end
    end
    table.sort(found)
    return found, #word, closing
end

local function common_start(list)
    local start = list[1] or ""
    for _, word in ipairs(list) do
        while word:sub(1, #start) ~= start do
            start = start:sub(1, -2)
        end
    end
    return start
end

-- Candidates in columns, and how many more there are.
local function listing(list)
    local shown, widest = {}, 0
    for i, word in ipairs(list) do -- of paths and tensors the last part is enough
        shown[i] = word:match "[^/]+/?$" or word
        widest = math.max(widest, text.width(shown[i]))
    end
    local per_line = math.max(1, math.floor(((terminal.columns() or 80) - 1) / (widest + 2)))
    local lines = {}
    for i = 1, math.min(#shown, MOST_LINES * per_line), per_line do
        local row = {}
        for k = i, math.min(#shown, i + per_line - 1) do
            row[#row + 1] = shown[k] .. (" "):rep(widest - text.width(shown[k]))
        end
        lines[#lines + 1] = (table.concat(row, "  "):gsub("%s+$", ""))
    end
    if #shown > MOST_LINES * per_line then
        lines[#lines + 1] = ("… %d more"):format(#shown - MOST_LINES * per_line)
    end
    return table.concat(lines, "\r\n")
end

--- For the editor: what Tab inserts, and what it shows when there is a choice.
---@param line string up to the cursor
---@return string? insert
---@return string? show
---@return integer? delete characters before the cursor to take away first
function complete.line(line)
    local current = line:match "[^\n]*$"
    if not current:find "%S" then
        return "    "
    end
    local ok, found, replaced, closing = pcall(complete.candidates, current)
    if not ok or #found == 0 then
        return nil
    end
    local start = common_start(found)
    local insert = start:sub(replaced + 1)
    if start:sub(1, replaced) ~= current:sub(#current - replaced + 1) then -- words that have the typed one inside
        if #found > 1 then
            return nil, terminal.text(listing(found))
        end
        return start .. closing, nil, text.width(current:sub(-replaced))
    elseif #found == 1 then
        return insert .. closing
    elseif insert ~= "" then
        return insert
    end
    return nil, terminal.text(listing(found))
end

return complete
