--- Command lines: one table of options per command gives parsing, checking and --help.

local core = require "qmoon.core"
local nearest = require "qmoon.nearest"
local text = require "qmoon.text"

local cli = {}

-- A size as people write it: 5GB, 512MiB, 100k, 4096.
local UNITS = { [""] = 1, K = 1e3, KB = 1e3, M = 1e6, MB = 1e6, G = 1e9, GB = 1e9, T = 1e12, TB = 1e12,
                KIB = 2 ^ 10, MIB = 2 ^ 20, GIB = 2 ^ 30, TIB = 2 ^ 40 }

local function size(value)
    local number, unit = value:match "^(%d+%.?%d*)%s*(%a*)$"
    local scale = number and UNITS[unit:upper()]
    return scale and math.floor(tonumber(number) * scale)
end

local KINDS = {
    text = function(v) return v end,
    integer = function(v) return v:find "^%d+$" and tonumber(v) end,
    number = function(v) return tonumber(v) end,
    size = size,
    list = function(v)
        local list = {}
        for word in v:gmatch "[^,%s]+" do
            list[#list + 1] = word
        end
        return list[1] and list
    end,
}

local WANTS = { integer = "a whole number", number = "a number", size = "a size such as 5GB",
                list = "a list separated by commas", text = "a value" }

local function usage_line(spec)
    local words = { "usage: qmoon", spec.name }
    for _, a in ipairs(spec.arguments or {}) do
        local word = a[1] .. (a.many and " ..." or "")
        words[#words + 1] = a.optional and "[" .. word .. "]" or word
    end
    for _, o in ipairs(spec.options) do
        local word = "--" .. o[1] .. (o.kind and " " .. o.value or "")
        words[#words + 1] = (o.required and word or "[" .. word .. "]") .. (o.many and " ..." or "")
    end
    local lines, line = {}, ""
    for _, w in ipairs(words) do
        if #line + #w > 96 then
            lines[#lines + 1], line = line, "      "
        end
        line = line == "" and w or line .. " " .. w
    end
    lines[#lines + 1] = line
    return table.concat(lines, "\n")
end

local function help(spec)
    local rows = { { "", "" } }
    for _, a in ipairs(spec.arguments or {}) do
        rows[#rows + 1] = { a[1], a.doc }
    end
    for _, o in ipairs(spec.options) do
        local doc = o.doc .. (o.default ~= nil and (" (default: %s)"):format(tostring(o.default)) or "")
        rows[#rows + 1] = { "--" .. o[1] .. (o.kind and " " .. o.value or ""), doc }
    end
    rows[#rows + 1] = { "--help", "this text" }
    return ("%s\n\n%s\n%s\n%s"):format(usage_line(spec), spec.doc, text.table(rows, "  "),
        spec.examples and "\nexamples:\n" .. spec.examples .. "\n" or "")
end

local function fail(spec, form, ...)
    core.fail("usage", "%s: %s; see qmoon %s --help", spec.name, form:format(...), spec.name)
end

local function find(spec, name)
    local names = {}
    for _, o in ipairs(spec.options) do
        if o[1] == name then
            return o
        end
        names[#names + 1] = o[1]
    end
    local guess = nearest(name, names)
    fail(spec, "unknown option --%s%s", name, guess and (" (did you mean --%s?)"):format(guess) or "")
end

local function convert(spec, o, value)
    local v = KINDS[o.kind](value)
    if v == nil or v == false then
        fail(spec, "--%s wants %s, not '%s'", o[1], WANTS[o.kind], value)
    elseif o.choices then
        local known = {}
        for _, c in ipairs(o.choices) do
            if c == v then
                return v
            end
            known[#known + 1] = c
        end
        local guess = nearest(v, known)
        fail(spec, "--%s must be %s, not '%s'%s", o[1], table.concat(known, ", "), v,
            guess and (" (did you mean '%s'?)"):format(guess) or "")
    end
    return v
end

local function take_option(spec, args, i, into)
    local name, value = args[i]:match "^%-%-([^=]+)=(.*)$"
    name = name or args[i]:sub(3)
    local o = find(spec, name)
    local key = o[1]:gsub("%-", "_")
    if not o.kind then
        if value then
            fail(spec, "--%s takes no value", name)
        end
        into[key] = true
        return i
    end
    if not value then
        i = i + 1
        value = args[i]
        if not value then
            fail(spec, "--%s wants %s", name, WANTS[o.kind])
        end
    end
    value = convert(spec, o, value)
    if o.many then
        into[key] = into[key] or {}
        table.insert(into[key], value)
    else
        into[key] = value
    end
    return i
end

local function check_required(spec, into)
    for i, a in ipairs(spec.arguments or {}) do
        if not into[i] and not a.optional then
            fail(spec, "%s is missing", a[1])
        end
    end
    for _, o in ipairs(spec.options) do
        local key = o[1]:gsub("%-", "_")
        if into[key] == nil and o.default ~= nil then
            into[key] = o.kind == "size" and size(o.default) or o.default
        end
        if o.required and into[key] == nil then
            fail(spec, "--%s is missing", o[1])
        end
    end
end

--- Parses the arguments of a command.  With --help among them it prints the help and returns nil.
---@param spec {name:string, doc:string, arguments:table[]?, options:table[], examples:string?}
---  arguments: {name, doc, optional, many = the last one may come several times}
---  options: {name, kind = text|integer|number|size|list or nil for a switch, value = "DIR", doc, default, required, choices,
---            many = may be given several times, and becomes a list}
---@param args string[] such as {...} of a script
---@return table? values: positional ones by number, options by name with _ for -
function cli.parse(spec, args)
    local into, i = {}, 1
    while args[i] do
        local a = args[i]
        if a == "--help" or a == "-h" then
            io.write(help(spec))
            return nil
        elseif a == "--" then
            for k = i + 1, #args do
                into[#into + 1] = args[k]
            end
            break
        elseif a:sub(1, 2) == "--" then
            i = take_option(spec, args, i, into)
        elseif a:sub(1, 1) == "-" and a ~= "-" then
            fail(spec, "unknown option %s", a)
        else
            into[#into + 1] = a
        end
        i = i + 1
    end
    local named = spec.arguments or {}
    if #into > #named and not (named[#named] and named[#named].many) then
        fail(spec, "'%s' is one argument too many", into[#named + 1])
    end
    check_required(spec, into)
    return into
end

--- The sub-command that args[1] names and the arguments behind it; nil after the help that tells what there is.
---@param spec {name:string, doc:string, commands:table[]} each as cli.parse takes it, with name = "gguf set"
---@param args string[]
---@return table? command
---@return string[]? rest
function cli.choose(spec, args)
    local rows, names = { { "", "" } }, {}
    for i, c in ipairs(spec.commands) do
        names[i] = c.name:match "%S+$"
        if names[i] == args[1] then
            return c, { unpack(args, 2) }
        end
        rows[#rows + 1] = { names[i], (c.doc .. " "):match "^(.-%.)%s" } -- its first sentence
    end
    if not args[1] then
        fail(spec, "COMMAND is missing")
    elseif args[1] == "--help" or args[1] == "-h" then
        io.write(("usage: qmoon %s COMMAND ...\n\n%s\n%s\n\nqmoon %s COMMAND --help tells more.\n"):format(spec.name, spec.doc,
            text.table(rows, "  "), spec.name))
        return nil
    end
    local guess = nearest(args[1], names)
    fail(spec, "there is no '%s'%s; there are %s", args[1], guess and (" (did you mean '%s'?)"):format(guess) or "",
        table.concat(names, ", "))
end

--- The options every command that writes models shares.
---@param more table[]
---@return table[]
function cli.writing(more)
    local options = { unpack(more) }
    for _, o in ipairs {
        { "threads", kind = "integer", value = "N", doc = "threads; the bytes written never depend on it (default: all processors)" },
        { "device", kind = "text", value = "D", default = "auto",
          doc = "cpu, cuda:0, several as cuda:0,cuda:1, or auto: all GPUs there are; the bytes written never depend on it" },
        { "force", doc = "replace outputs that are there" },
        { "json", doc = "print the report as JSON, with time and memory" },
        { "keep-nonfinite", doc = "carry NaN and infinities over instead of stopping at them" },
    } do
        options[#options + 1] = o
    end
    return options
end

--- Runs one of qmoon.commands: the body of the scripts that write models.  Returns the report, or nil after --help.
---@param command table
---@param args string[]
---@param title string of the progress line
---@return table? report
---@return table? options as parsed
function cli.write(command, args, title)
    local o = cli.parse(command, args)
    if not o then
        return nil
    end
    local model, outputs, options = command.prepare(o)
    local step, finish = require("qmoon.progress").new(title)
    options.progress = step
    local ok, report = pcall(require("qmoon").write, model, outputs, options)
    finish() -- the progress line goes before anything else is said
    if not ok then
        error(report, 0)
    end
    if command.after then
        command.after(report, o)
    end
    print(o.json and report:json(true) or report)
    return report, o
end

return cli
