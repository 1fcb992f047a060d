--- Man pages (as scdoc takes them) and the reference, from the commands' tables, the formats' descriptors and the
-- annotations in the Lua files.

local core = require "qmoon.core"
local doc = require "qmoon.doc"
local formats = require "qmoon.formats"
local specs = require "qmoon.command_specs"
local topics = require "qmoon.help_topics"

local manual = {}

-- ---- scdoc ------------------------------------------------------------------------------------------------------------

-- Text with nothing in it that scdoc would take for markup.
local function plain(s)
    return (s:gsub("[\\*_`]", "\\%0"):gsub("^([#%-|%[%];.])", "\\%1"))
end

local function paragraph(s)
    return plain((s:gsub("\n", " "):gsub("  +", "  ")))
end

local function code(lines, text)
    lines[#lines + 1] = "```"
    for line in (text .. "\n"):gmatch "(.-)\n" do
        lines[#lines + 1] = line
    end
    lines[#lines + 1] = "```\n"
end

local function option_lines(lines, options)
    for _, o in ipairs(options) do
        local default = o.default ~= nil and (" (default: %s)"):format(tostring(o.default)) or ""
        local choices = o.choices and (" One of: %s."):format(table.concat(o.choices, ", ")) or ""
        lines[#lines + 1] = ("*--%s*%s\n\t%s%s%s\n"):format(o[1], o.kind and " _" .. plain(o.value or o.kind) .. "_" or "",
            paragraph(o.doc), plain(choices), plain(default))
    end
end

local function command_lines(lines, spec)
    lines[#lines + 1] = ("## qmoon %s\n"):format(spec.name)
    local words = {}
    for _, a in ipairs(spec.arguments or {}) do
        words[#words + 1] = (a.optional and "[_%s_]" or "_%s_"):format(plain(a[1])) .. (a.many and " …" or "")
    end
    lines[#lines + 1] = ("*qmoon %s* %s [_options_]\n"):format(spec.name, table.concat(words, " "))
    lines[#lines + 1] = paragraph(spec.doc) .. "\n"
    for _, a in ipairs(spec.arguments or {}) do
        lines[#lines + 1] = ("_%s_\n\t%s\n"):format(plain(a[1]), paragraph(a.doc))
    end
    option_lines(lines, spec.options or {})
    if spec.examples then
        code(lines, spec.examples)
    end
end

local EXIT = {
    { "0", "done" }, { "1", "failed" }, { "2", "wrong use" }, { "3", "verification failed" }, { "4", "will not fit in memory or on disk" },
    { "5", "model or format not supported" }, { "6", "corrupt input" }, { "130", "interrupted" },
}

local ENVIRONMENT = {
    { "QMOON_THREADS", "threads, where --threads is not given" },
    { "QMOON_INIT", "file that runs before the first prompt, instead of ~/.config/qmoon/init.lua" },
    { "QMOON_LAPACK", "library that t:svd() uses, instead of liblapack.so.3" },
    { "QMOON_TRACEBACK", "errors of scripts are printed with a traceback" },
    { "NO_COLOR, FORCE_COLOR, CLICOLOR_FORCE, TERM", "whether there are colours; --color overrides them" },
    { "LC_ALL, LC_CTYPE, LANG", "a locale that is not UTF-8 gets ASCII; none at all gets UTF-8" },
    { "XDG_STATE_HOME, XDG_CONFIG_HOME", "where history and init.lua are, instead of ~/.local/state and ~/.config" },
}

local function definition_lines(lines, list)
    for _, d in ipairs(list) do
        lines[#lines + 1] = ("*%s*\n\t%s\n"):format(plain(d[1]), paragraph(d[2]))
    end
end

local function qmoon_1()
    local lines = { "qmoon(1)\n", "# NAME\n", "qmoon - quantises language-model weights, merges adapters, and explains what that costs\n",
                    "# SYNOPSIS\n", "*qmoon* [_options_] _COMMAND_ [_arguments_]\n", "*qmoon* [_options_] _FILE.lua_ [_arguments_]\n",
                    "*qmoon*\n", "# DESCRIPTION\n",
                    paragraph "Without arguments qmoon is a prompt: ? there lists what it knows.  With the name of a command it does that, and "
                        .. "with a file it runs that as a script.  Code on standard input is a script, too.\n", "# OPTIONS\n" }
    for _, o in ipairs(specs.program) do
        lines[#lines + 1] = ("*%s*%s\n\t%s\n"):format(o[1], o.value and " _" .. o.value .. "_" or "", paragraph(o.doc))
    end
    lines[#lines + 1] = "# COMMANDS\n"
    for _, name in ipairs(specs.names()) do
        local spec = specs.of(name)
        if spec.commands then
            lines[#lines + 1] = ("## qmoon %s\n"):format(name)
            lines[#lines + 1] = paragraph(spec.doc) .. "\n"
            for _, sub in ipairs(spec.commands) do
                command_lines(lines, sub)
            end
        else
            command_lines(lines, spec)
        end
    end
    lines[#lines + 1] = "# EXIT STATUS\n"
    definition_lines(lines, EXIT)
    lines[#lines + 1] = "# ENVIRONMENT\n"
    definition_lines(lines, ENVIRONMENT)
    lines[#lines + 1] = "# SEE ALSO\n"
    lines[#lines + 1] = "*qmoon-formats*(5), *qmoon-lua*(3)"
    return table.concat(lines, "\n") .. "\n"
end

local function bits_of(f)
    local sum = 0
    for _, p in ipairs(f.planes) do
        sum = sum + p.bits + (f.block > 0 and 8 * p.bytes / f.block or 0)
    end
    return f.block > 0 and ("%.4g bits a weight, scales included"):format(sum) or ("%g bits a weight and 32 a row"):format(sum)
end

local function qmoon_formats_5()
    local lines = { "qmoon-formats(5)\n", "# NAME\n", "qmoon-formats - the number formats of qmoon\n", "# DESCRIPTION\n",
                    paragraph "A format is asked for by its name, with a block size or row behind a colon where it takes one (nf4:128, int4:row), and "
                        .. "with dq where its scales can be quantised again (nf4:dq).\n", "# FORMATS\n" }
    for _, f in ipairs(core.formats()) do
        local group = f.any_block and "blocks of any size" or f.block_max > 0 and ("blocks of %d to %d"):format(f.block_min, f.block_max)
            or f.block == 0 and "a row" or f.block == 1 and "single values" or ("blocks of %d"):format(f.block)
        lines[#lines + 1] = ("*%s*\n\t%s. %s; %s%s. Bytes as written by: %s.\n"):format(plain(f.name), paragraph(f.doc), plain(group),
            bits_of(f), f.gguf_name and plain("; GGUF " .. f.gguf_name) or "", paragraph(f.source))
    end
    lines[#lines + 1] = "# SEE ALSO\n"
    lines[#lines + 1] = "*qmoon*(1), *qmoon-lua*(3)"
    return table.concat(lines, "\n") .. "\n"
end

-- Entries of the registry under the topics that name them, and the rest.
local function by_topic()
    local entries, taken, groups = {}, {}, {}
    for _, entry in ipairs(doc.registry()) do
        entries[entry.name] = entry
    end
    for _, t in ipairs(topics) do
        local group = { title = t.name, about = t.about, text = t.text, entries = {} }
        for _, name in ipairs(t.see) do
            if not taken[name] then
                taken[name] = true
                group.entries[#group.entries + 1] = entries[name]
            end
        end
        groups[#groups + 1] = #group.entries > 0 and group or nil
    end
    local rest = { title = "more", about = "what no topic names", text = "", entries = {} }
    for _, entry in ipairs(doc.registry()) do
        if not taken[entry.name] then
            rest.entries[#rest.entries + 1] = entry
        end
    end
    groups[#groups + 1] = rest
    return groups
end

local function qmoon_lua_3()
    local lines = { "qmoon-lua(3)\n", "# NAME\n", "qmoon-lua - the library of qmoon's scripts and prompt\n", "# SYNOPSIS\n" }
    code(lines, 'local qm = require "qmoon"')
    lines[#lines + 1] = paragraph "In names t is a tensor, m a model, r a result; at the prompt qm is there already.\n"
    for _, group in ipairs(by_topic()) do
        lines[#lines + 1] = "# " .. group.title:upper() .. "\n"
        if group.text ~= "" then
            lines[#lines + 1] = paragraph(group.text) .. "\n"
        end
        for _, entry in ipairs(group.entries) do
            local d = doc.of(entry.run)
            lines[#lines + 1] = ("*%s*\n\t%s\n"):format(plain(d.signature), paragraph(d.text))
            for _, p in ipairs(d.params) do
                lines[#lines + 1] = ("\t_%s_: %s\n"):format(plain(p.name), paragraph(p.type .. (p.text ~= "" and ": " .. p.text or "")))
            end
            if d.example then
                code(lines, d.example)
            end
        end
    end
    lines[#lines + 1] = "# SEE ALSO\n"
    lines[#lines + 1] = "*qmoon*(1), *qmoon-formats*(5)"
    return table.concat(lines, "\n") .. "\n"
end

-- ---- the reference --------------------------------------------------------------------------------------------------

local function reference()
    local lines = { "# Reference of the library\n", "Made by `qmoon docs reference.md` from the annotations in the source, as `?name` at the "
        .. "prompt shows them. In names `t` is a tensor, `q` a quantised one, `m` a model, `r` a result. Every example is run by the "
        .. "tests, in a folder with a model `model` and a LoRA adapter `adapter`.\n" }
    for _, group in ipairs(by_topic()) do
        lines[#lines + 1] = ("## %s: %s\n"):format(group.title, group.about)
        if group.text ~= "" then
            lines[#lines + 1] = group.text .. "\n"
        end
        for _, entry in ipairs(group.entries) do
            local d = doc.of(entry.run)
            lines[#lines + 1] = ("### `%s`\n"):format(d.signature)
            lines[#lines + 1] = d.text .. "\n"
            for _, p in ipairs(d.params) do
                lines[#lines + 1] = ("- `%s`: `%s`%s"):format(p.name, p.type, p.text ~= "" and " " .. p.text or "")
            end
            for _, r in ipairs(d.returns) do
                lines[#lines + 1] = ("- returns `%s`"):format(r)
            end
            lines[#lines + 1] = (#d.params + #d.returns > 0 and "\n" or "") .. "```lua\n" .. (d.example or "") .. "\n```\n"
        end
    end
    return table.concat(lines, "\n")
end

local PAGES = { ["qmoon.1"] = qmoon_1, ["qmoon-formats.5"] = qmoon_formats_5, ["qmoon-lua.3"] = qmoon_lua_3, ["reference.md"] = reference }

--- Names of the pages.
---@return string[]
function manual.pages()
    return { "qmoon.1", "qmoon-formats.5", "qmoon-lua.3", "reference.md" }
end

--- The source of a page: scdoc for man pages, Markdown for the reference.
---@param name string
---@return string
function manual.page(name)
    if not PAGES[name] then
        core.fail("usage", "docs: there are the pages %s, not '%s'", table.concat(manual.pages(), ", "), tostring(name))
    end
    return PAGES[name]()
end

return manual
