--- Help at the prompt: of topics, functions, methods and formats, from their own annotations and descriptors.

local core = require "qmoon.core"
local doc = require "qmoon.doc"
local formats = require "qmoon.formats"
local nearest = require "qmoon.nearest"
local topics = require "qmoon.help_topics"

local help = {}

local function find_topic(name)
    for _, t in ipairs(topics) do
        if t.name == name then
            return t
        end
    end
end

-- ---- overview ---------------------------------------------------------------------------------------------------------

--- The list of topics.
---@return string
function help.overview()
    local lines = { "?topic, ?function, ?method and ?format explain; ??function shows the source; ?tour is a short tour" }
    for _, t in ipairs(topics) do
        lines[#lines + 1] = ("  ?%-11s %s"):format(t.name, t.about)
    end
    return table.concat(lines, "\n")
end

--- A tour: what to type, step by step, and why.
help.tour = {
    { "t = qm.randn{512, 512, std=0.02, seed=1}", "random weights, the same in every session" },
    { "t", "typing a name shows what it is" },
    { 'q = t:quantize "nf4"', "4 bits a weight and a scale for every 64" },
    { "q", "what it takes, scales included" },
    { "qm.error(t, q)", "what it cost" },
    { 'qm.compare(t, {"int8", "q4_0", "nf4", "nf4:dq", "int4", "fp4"})', "formats beside each other" },
    { 'qm.sweep(t, {format={"nf4", "int4"}, block={32, 64, 256}})', "block size counts as much as the format" },
    { 'qm.error_by(t, q, "row"):worst(3)', "the rows that suffered most" },
    { "mine = qm.kmeans(t, {levels=16})", "a format fitted to this tensor" },
    { 'qm.compare(t, {"nf4", mine})', "and what that gains" },
}

--- The tour as text.
---@return string
function help.tour_text()
    local lines = { "Two minutes: type these, or change them first." }
    for _, step in ipairs(help.tour) do
        lines[#lines + 1] = "  -- " .. step[2]
        lines[#lines + 1] = "  " .. step[1]
    end
    lines[#lines + 1] = 'Then with a model: m = qm.open "FOLDER"; m; m:report("nf4"):worst(5).  ?models tells more.'
    return table.concat(lines, "\n")
end

-- ---- one thing --------------------------------------------------------------------------------------------------------

local function entry_named(name)
    for _, entry in ipairs(doc.registry()) do
        if entry.name == name or entry.name:gsub(":", ".") == name then
            return entry
        end
    end
end

-- Paragraphs as one line each: the terminal has its own width.
local function reflow(s)
    return (s:gsub("([^\n])\n([^%s%-])", "%1 %2"))
end

local function topic_text(t)
    local lines = { t.name .. ": " .. t.about, reflow(t.text) }
    for _, name in ipairs(t.see) do
        local entry = entry_named(name)
        local d = entry and doc.of(entry.run)
        if d then
            lines[#lines + 1] = ("  %-16s %s"):format(name, d.summary)
        end
    end
    if t.commands then
        lines[#lines + 1] = require("qmoon.repl.commands").help()
    end
    return table.concat(lines, "\n")
end

--- Documentation as text: signature, prose, parameters, example, where it is defined.
---@param d qmoon.Doc
---@return string
function help.doc_text(d)
    local lines = { d.signature, reflow(d.text) }
    for _, p in ipairs(d.params) do
        lines[#lines + 1] = ("  %s: %s%s"):format(p.name, p.type, p.text ~= "" and "  " .. p.text or "")
    end
    for _, r in ipairs(d.returns) do
        lines[#lines + 1] = "  returns " .. r
    end
    if d.example then
        lines[#lines + 1] = "example:\n  " .. d.example:gsub("\n", "\n  ")
    end
    local see = {}
    for _, t in ipairs(topics) do
        for _, name in ipairs(t.see) do
            see[#see + 1] = name == d.name and "?" .. t.name or nil
        end
    end
    lines[#lines + 1] = ("see also: %s · defined in %s:%d"):format(#see > 0 and table.concat(see, " ") or "?", d.file, d.line)
    return table.concat(lines, "\n")
end

local function format_text(f)
    local per_row = f.block == 0
    local bits = 0
    for _, p in ipairs(f.planes) do
        bits = bits + p.bits + (per_row and 0 or 8 * p.bytes / f.block)
    end
    local lines = { ("%s: %s"):format(f.name, f.doc) }
    lines[#lines + 1] = ("  %s a block · %.4g bits/weight%s%s"):format(per_row and "a row" or ("%d values"):format(f.block), bits,
        per_row and " + 32 a row" or ", scales included", f.gguf_name and " · GGUF " .. f.gguf_name or "")
    if f.block_max > 0 then
        lines[#lines + 1] = ("  blocks from %d to %d values: \"%s:%d\""):format(f.block_min, f.block_max, f.name, 2 * f.block)
    end
    lines[#lines + 1] = "  bytes as written by: " .. f.source
    lines[#lines + 1] = ("  no value is off by more than %.3g of its block's largest magnitude%s"):format(f.bound,
        f.bound_rel > 0 and (", plus %.3g of itself"):format(f.bound_rel) or "")
    lines[#lines + 1] = ("example:\n  q = t:quantize %q\n  qm.compare(t, {%q, \"q8_0\"})\nsee also: ?formats ?quantize ?compare"):format(
        f.name, f.name)
    return table.concat(lines, "\n")
end

local function format_named(name)
    for _, f in ipairs(formats.list()) do
        if f.name == name then
            return f
        end
    end
end

-- Ops have descriptions of their own.
local function op_text(name)
    local short = name:match "^qm%.ops%.([%w_]+)$" or name
    for _, op in ipairs(core.ops()) do
        if op.name == short then
            return "qm.ops." .. require("qmoon.ops").help(short)
        end
    end
end

-- "t.quantize" or "t:quantize" with any object: by its last word, among methods of that name.
local function by_last_word(name)
    local last = name:match "([%w_]+)$"
    for _, entry in ipairs(doc.registry()) do
        if entry.short == last then
            return entry
        end
    end
end

--- Every name that can be asked for: topics, public functions and methods, formats.
---@return string[]
function help.names()
    local names, seen = { "tour" }, { tour = true }
    local function add(name)
        if not seen[name] then
            names[#names + 1], seen[name] = name, true
        end
    end
    for _, t in ipairs(topics) do
        add(t.name)
    end
    for _, entry in ipairs(doc.registry()) do
        add(entry.name)
        add(entry.short)
    end
    for _, f in ipairs(formats.list()) do
        add(f.name)
    end
    for _, op in ipairs(core.ops()) do
        add("qm.ops." .. op.name)
    end
    return names
end

local function fail_unknown(name)
    local left, near = help.names(), {}
    for _ = 1, 3 do -- the nearest, then the nearest of the rest
        local guess = nearest(name, left)
        if guess then
            near[#near + 1] = "?" .. guess
            for i, other in ipairs(left) do
                if other == guess then
                    table.remove(left, i)
                    break
                end
            end
        end
    end
    core.fail("fail", "no help on '%s'%s; ? lists the topics", name,
        #near > 0 and "; did you mean " .. table.concat(near, ", ") .. "?" or "")
end

--- What `?name` shows.  A value of that name, if it is a function with documentation, comes before the program's own.
---@param name string
---@param value any what the name stands for now, if anything
---@return string
function help.text(name, value)
    if name == "" then
        return help.overview()
    elseif name == "tour" then
        return help.tour_text()
    end
    local topic = find_topic(name)
    local entry = entry_named(name)
    local d = type(value) == "function" and doc.of(value) or entry and doc.of(entry.run)
    local format = format_named(name)
    if topic and not (d and name:find "[%.:]") then
        return topic_text(topic) .. (d and "\n\n" .. help.doc_text(d) or "")
    elseif d then
        return help.doc_text(d)
    elseif format then
        return format_text(format)
    end
    entry = not name:find "^qm%.ops%." and by_last_word(name)
    d = entry and doc.of(entry.run)
    return d and help.doc_text(d) or op_text(name) or fail_unknown(name)
end

--- What `??name` shows: the Lua source of a function.
---@param name string
---@param value any what the name stands for now
---@return string
function help.source(name, value)
    local entry = entry_named(name) or by_last_word(name)
    local f = type(value) == "function" and value or entry and entry.run
    if not f then
        fail_unknown(name)
    end
    local source, where = doc.source(f)
    if not source then
        core.fail("fail", "'%s' has no source in Lua to show; ?%s explains it", name, name)
    end
    return ("-- %s\n%s"):format(where, source)
end

return help
