--- Changing the metadata of a GGUF file: values from words on a command line, and the header written anew.
--- Tensors are never touched.

local core = require "qmoon.core"
local copy = require "qmoon.gguf_copy"
local files = require "qmoon.files"
local gguf = require "qmoon.gguf"
local json = require "qmoon.json"
local nearest = require "qmoon.nearest"

local edit = {}

-- ---- values -------------------------------------------------------------------------------------------

local EXACT = 2 ^ 53 -- whole numbers beyond are not all numbers of Lua
local RANGES = { u8 = { 0, 255 }, i8 = { -128, 127 }, u16 = { 0, 65535 }, i16 = { -32768, 32767 },
                 u32 = { 0, 2 ^ 32 - 1 }, i32 = { -2 ^ 31, 2 ^ 31 - 1 }, u64 = { 0, EXACT },
                 i64 = { -EXACT, EXACT } }
local LARGEST = { f32 = 3.4028234663852886e38, f64 = 1.7976931348623157e308 }
local TYPES = { "u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64", "f32", "f64", "bool", "string" }

local function whole_number(key, kind, value)
    local n, range = tonumber(value), RANGES[kind]
    if not n or n ~= math.floor(n) or n < range[1] or n > range[2] then
        core.fail("usage", "%s: '%s' is no whole number from %.0f to %.0f, which %s holds", key, tostring(value),
            range[1], range[2], kind)
    end
    return n
end

local function real_number(key, kind, value)
    local n = tonumber(value)
    if not n or not (math.abs(n) <= LARGEST[kind]) then
        core.fail("usage", "%s: '%s' is no number that %s holds", key, tostring(value), kind)
    end
    return n
end

local any = core.regex "" -- it refuses subjects that are not UTF-8

local function string_value(key, value)
    if type(value) ~= "string" then
        core.fail("usage", "%s: %s is no string; put it into quotes", key, tostring(value))
    elseif value:find("%z") then
        core.fail("usage", "%s: the text has a byte 0 in it, where llama.cpp would end it", key)
    elseif not pcall(any.search, any, value) then
        core.fail("usage", "%s: the text is not UTF-8", key)
    end
    return value
end

local function scalar(key, kind, value)
    if kind == "string" then
        return string_value(key, value)
    elseif kind == "bool" then
        value = tostring(value)
        if value ~= "true" and value ~= "false" then
            core.fail("usage", "%s: '%s' is neither true nor false", key, value)
        end
        return value == "true"
    end
    return (RANGES[kind] and whole_number or real_number)(key, kind, value)
end

--- Elements of an array: JSON when the text begins with '[', else cut at the commas.
local function array(key, elem, value)
    local list = {}
    if value:find "^%s*%[" then
        list = core.json_decode(value, key)
    elseif value ~= "" then
        for word in (value .. ","):gmatch "(.-)," do
            list[#list + 1] = word
        end
    end
    for i, v in ipairs(list) do
        list[i] = scalar(key, elem, v)
    end
    return list
end

--- The row that a key and the text of a value make.
---@param key string
---@param kind string u8 … f64, bool, string, and any of them with [] behind for an array
---@param value string
---@return table row {key, type, elem, value}
function edit.row(key, kind, value)
    local elem, known = kind:match "^(.*)%[%]$", false
    for _, t in ipairs(TYPES) do
        known = known or t == (elem or kind)
    end
    if not known then
        local guess = nearest(kind, TYPES)
        core.fail("usage", "no type '%s'%s; there are %s, and arrays of them, such as string[]", kind,
            guess and (" (did you mean '%s'?)"):format(guess) or "", table.concat(TYPES, " "))
    elseif elem then
        return { key = key, type = "array", elem = elem, value = array(key, elem, value) }
    end
    return { key = key, type = kind, value = scalar(key, kind, value) }
end

--- What a row holds, on one line, cut to what a screen can hold.
---@param r table
---@return string
function edit.show(r)
    local value = r.value
    if r.type == "array" then
        local shown = {}
        for i = 1, math.min(4, #value) do
            shown[i] = edit.show { type = r.elem, value = value[i] }
        end
        return ("%d x %s: %s%s"):format(#value, r.elem, table.concat(shown, ", "),
            #value > 4 and ", …" or "")
    elseif r.type == "f32" or r.type == "f64" then
        local finite = value - value == 0
        return finite and json.float_text(r.type == "f32" and json.widen(value) or value) or tostring(value)
    elseif type(value) == "number" then
        return ("%.0f"):format(value)
    end
    local line = tostring(value):gsub("\n", "\\n")
    if #line > 100 then
        line = line:sub(1, 97):gsub("[\192-\255]?[\128-\191]*$", "") .. "…"
    end
    return line
end

-- ---- keys ---------------------------------------------------------------------------------------------

local function keys_of(rows)
    local keys = {}
    for i, r in ipairs(rows) do
        keys[i] = r.key
    end
    return keys
end

local function full_key(rows, key)
    for i, r in ipairs(rows) do
        if r.key == key then
            return i
        end
    end
end

--- The place of a key among the rows; its last words do when only one key ends in them.
local function find(rows, key)
    local found = full_key(rows, key)
    for i, r in ipairs(found and {} or rows) do
        if r.key:sub(-#key - 1) == "." .. key then
            if found then
                core.fail("usage", "'%s' may be %s or %s; write all of it", key, rows[found].key, r.key)
            end
            found = i
        end
    end
    return found
end

local function missing(path, rows, key, advice)
    local guess = nearest(key, keys_of(rows))
    core.fail("usage", "%s: there is no key '%s'%s%s", path, key,
        guess and (" (did you mean '%s'?)"):format(guess) or "", advice or "")
end

local function type_of(r)
    return r.type == "array" and r.elem .. "[]" or r.type
end

--- A value as given: after '@' comes the name of a file that holds it, "@@" is one '@'.
local function given(value)
    if value:sub(1, 2) == "@@" then
        return value:sub(2)
    elseif value:sub(1, 1) == "@" then
        return files.read(value:sub(2))
    end
    return value
end

--- The one key that says how the file itself is laid out.
local function check_alignment(r)
    local power = 1
    while r.key == "general.alignment" and r.type == "u32" and power < r.value do
        power = 2 * power
    end
    if r.key == "general.alignment" and power ~= r.value then
        core.fail("usage", "general.alignment: must be a u32 and a power of two, not %s", tostring(r.value))
    end
end

--- Rows with changes, and what each change did.
---@param rows table[]
---@param changes {set: string[], remove: string[], type: string?} words "KEY=VALUE"; keys
---@param path string for messages
---@return table[] rows
---@return {key: string, old: table?, new: table?}[] done
function edit.apply(rows, changes, path)
    local list, done = { unpack(rows) }, {}
    for _, key in ipairs(changes.remove or {}) do
        local i = find(list, key) or missing(path, list, key)
        done[#done + 1] = { key = list[i].key, old = table.remove(list, i) }
    end
    for _, word in ipairs(changes.set or {}) do
        local key, value = word:match "^([^=]+)=(.*)$"
        if not key then
            core.fail("usage", "'%s' is no KEY=VALUE", word)
        end
        local i
        if changes.type then
            i = full_key(list, key)
        else
            i = find(list, key) or missing(path, list, key, "; a new one needs its --type")
        end
        local old = list[i]
        local new = edit.row(old and old.key or key, changes.type or type_of(old), given(value))
        check_alignment(new)
        list[i or #list + 1] = new
        done[#done + 1] = { key = new.key, old = old, new = new }
    end
    return list, done
end

-- ---- the file -----------------------------------------------------------------------------------------

-- The header is replaced where it is.  That is no single step, so the old one lies beside the file, in FILE.header,
-- until the new one has been read back; a run that was killed in between is mended by the next.

local function save(real, saved, header)
    files.write(saved, core.stat(real).id .. "\n" .. header)
end

local function mend(real, saved)
    local s = core.stat(saved)
    if s then
        local id, header = files.read(saved):match "^([^\n]*)\n(GGUF.*)$"
        if not id then
            core.fail("fail", "%s: is in the way and none of ours; move it", saved)
        elseif id == core.stat(real).id then -- else it is of a file that has been replaced since
            core.overwrite(real, 0, header)
        end
        core.remove_tree(saved)
    end
end

local function check_places(path, tensors)
    local new = core.gguf(path)
    for i, t in ipairs(tensors) do
        local n = new.tensors[i]
        if not n or n.name ~= t.name or n.type ~= t.type or n.at ~= t.at or n.size ~= t.size then
            core.fail("verify", "%s: tensor '%s' is not where it was", path, t.name)
        end
    end
end

local function write_in_place(real, saved, h, header)
    save(real, saved, h.file:read(0, #header))
    local ok, e = pcall(function()
        core.overwrite(real, 0, header)
        check_places(real, h.tensors)
    end)
    if not ok then
        mend(real, saved)
        error(e, 0)
    end
    core.remove_tree(saved)
end

--- Whether every tensor stays at its byte.
local function unmoved(tensors, at)
    for i, t in ipairs(tensors) do
        if t.at ~= at[i] then
            return false
        end
    end
    return #tensors > 0
end

--- Changes metadata of the file at `path`, in place when the header keeps its size on disk, else by a new file
--- that takes its name; with options.out the new file has that name and the old one stays as it is.
---@param path string
---@param changes table as edit.apply takes them
---@param options? {out: string?, force: boolean?}
---@return {key: string, old: table?, new: table?}[] done
---@return integer? copied size of the new file, nil when it was done in place
function edit.file(path, changes, options)
    local out = options and options.out
    if out and core.stat(out) and not options.force then
        core.fail("fail", "%s: is there already; --force replaces it", out)
    end
    local real = core.realpath(path)
    local saved = real .. ".header"
    mend(real, saved)
    local h = core.gguf(real)
    local rows, done = edit.apply(gguf.exact(h), changes, path)
    for _, t in ipairs(h.tensors) do
        t.file = h.file
    end
    local header, at = gguf.header(rows, h.tensors)
    if not out and unmoved(h.tensors, at) then
        write_in_place(real, saved, h, header)
        return done
    end
    return done, copy.write(out or real, rows, h.tensors)
end

return edit
