--- Completion for bash, zsh and fish, from the commands' tables of options.

local core = require "qmoon.core"
local formats = require "qmoon.formats"
local specs = require "qmoon.command_specs"

local completion = {}

local function first_sentence(doc)
    return ((doc:gsub("\n", " ") .. " "):match "^(.-%.)%s" or doc:gsub("\n", " ")):gsub("%.$", "")
end

-- Words that an option's value may be, or nil where it is a path or anything.
local function choices_of(option)
    if option.choices then
        return option.choices
    elseif option[1] == "type" or option[1]:find "tensor%-type$" or option[1]:find "embedding%-type$" then
        local words, seen = {}, {}
        for _, f in ipairs(formats.list()) do
            words[#words + 1], seen[f.name] = f.name, true
        end
        for _, name in ipairs(require("qmoon.gguf_types").ftypes()) do
            words[#words + 1] = not seen[name] and name or nil
        end
        return words
    end
end

-- Every command, and every sub-command as "gguf set": {words = {"gguf", "set"}, spec}.
local function all()
    local list = {}
    for _, name in ipairs(specs.names()) do
        local spec = specs.of(name)
        list[#list + 1] = { words = { name }, spec = spec }
        for _, sub in ipairs(spec.commands or {}) do
            list[#list + 1] = { words = { name, sub.name:match "%S+$" }, spec = sub }
        end
    end
    return list
end

local function options_of(spec)
    local list = { { "help", doc = "what it does and its options" } }
    for _, o in ipairs(spec.options or {}) do
        list[#list + 1] = o
    end
    return list
end

-- What may stand for the first argument: sub-commands, demos, commands that plan takes.
local function arguments_of(entry)
    local words = {}
    for _, sub in ipairs(entry.spec.commands or {}) do
        words[#words + 1] = sub.name:match "%S+$"
    end
    if entry.words[1] == "demo" then
        words = require("qmoon.lesson").names()
    elseif entry.words[1] == "plan" then
        words = { "merge", "pipeline", "quantize" }
    elseif entry.words[1] == "completion" then
        words = { "bash", "fish", "zsh" }
    end
    return words
end

-- ---- bash ------------------------------------------------------------------------------------------------------------

local BASH = [==[
# bash completion for qmoon; made by `qmoon completion bash`
_qmoon() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words= values= command=${COMP_WORDS[1]}
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "@PROGRAM@" -- "$cur") $(compgen -f -X '!*.lua' -- "$cur"))
        return
    fi
    [ "$command" = plan ] && [ "$COMP_CWORD" -gt 2 ] && command=${COMP_WORDS[2]}
    case "$command ${COMP_WORDS[2]}" in
@CASES@
    esac
    case "$command $prev" in
@VALUES@
    esac
    if [ -n "$values" ]; then
        COMPREPLY=($(compgen -W "$values" -- "$cur"))
    elif [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "$words" -- "$cur"))
    else
        [ "$COMP_CWORD" -eq 2 ] && COMPREPLY=($(compgen -W "${words//--*([^ ])/}" -- "$cur"))
        COMPREPLY+=($(compgen -f -- "$cur"))
    fi
}
shopt -s extglob
complete -o filenames -o bashdefault -F _qmoon qmoon
]==]

local function dashed(spec)
    local words = {}
    for _, o in ipairs(options_of(spec)) do
        words[#words + 1] = "--" .. o[1]
    end
    return words
end

local function bash()
    local program, cases, values = {}, {}, {}
    for _, name in ipairs(specs.names()) do
        program[#program + 1] = name
    end
    for _, o in ipairs(specs.program) do
        program[#program + 1] = o[1]
    end
    local list = all()
    for i = #list, 1, -1 do -- sub-commands before the commands that have them
        local entry = list[i]
        local words = arguments_of(entry)
        for _, w in ipairs(dashed(entry.spec)) do
            words[#words + 1] = w
        end
        cases[#cases + 1] = ("    %q%s) words=%q ;;"):format(table.concat(entry.words, " "), entry.words[2] and "" or "*",
            table.concat(words, " "))
        for _, o in ipairs(options_of(entry.spec)) do
            local choices = o.kind and choices_of(o)
            if choices then
                values[#values + 1] = ("    %q) values=%q ;;"):format(entry.words[1] .. " --" .. o[1], table.concat(choices, " "))
            end
        end
    end
    local parts = { PROGRAM = table.concat(program, " "), CASES = table.concat(cases, "\n"), VALUES = table.concat(values, "\n") }
    return (BASH:gsub("@(%u+)@", parts))
end

-- ---- zsh -------------------------------------------------------------------------------------------------------------

local function zsh_quote(s)
    return "'" .. s:gsub("'", "'\\''") .. "'"
end

local function zsh_text(s)
    return (s:gsub("\n", " "):gsub("[%[%]:]", "\\%0"))
end

local function zsh_option(o)
    local action = ""
    if o.kind then
        local choices = choices_of(o)
        action = (":%s:%s"):format(zsh_text(o.value or o.kind), choices and "(" .. table.concat(choices, " ") .. ")" or "_files")
    end
    return zsh_quote(("%s--%s[%s]%s"):format(o.many and "*" or "", o[1], zsh_text(o.doc), action))
end

local function zsh()
    local lines = { "#compdef qmoon", "# zsh completion for qmoon; made by `qmoon completion zsh`", "_qmoon() {", "  local -a commands", "  commands=(" }
    for _, name in ipairs(specs.names()) do
        lines[#lines + 1] = "    " .. zsh_quote(name .. ":" .. zsh_text(first_sentence(specs.of(name).doc)))
    end
    lines[#lines + 1] = "  )"
    lines[#lines + 1] = "  if (( CURRENT == 2 )); then"
    lines[#lines + 1] = "    _describe command commands"
    lines[#lines + 1] = "    _files -g '*.lua'"
    lines[#lines + 1] = "    return"
    lines[#lines + 1] = "  fi"
    lines[#lines + 1] = "  local command=$words[2]"
    lines[#lines + 1] = "  if [[ $command == plan && CURRENT -gt 3 ]]; then command=$words[3]; fi"
    lines[#lines + 1] = "  case \"$command $words[3]\" in"
    local list = all()
    for i = #list, 1, -1 do
        local entry = list[i]
        local words = arguments_of(entry)
        lines[#lines + 1] = ("  %q%s) _arguments \\"):format(table.concat(entry.words, " "), entry.words[2] and "" or "*")
        for _, o in ipairs(options_of(entry.spec)) do
            lines[#lines + 1] = "    " .. zsh_option(o) .. " \\"
        end
        if #words > 0 then
            lines[#lines + 1] = "    " .. zsh_quote("2:argument:(" .. table.concat(words, " ") .. ")") .. " \\"
        end
        lines[#lines + 1] = "    '*:file:_files' ;;"
    end
    lines[#lines + 1] = "  esac"
    lines[#lines + 1] = "}"
    lines[#lines + 1] = "_qmoon \"$@\""
    return table.concat(lines, "\n") .. "\n"
end

-- ---- fish ------------------------------------------------------------------------------------------------------------

local function fish_quote(s)
    return "'" .. s:gsub("\n", " "):gsub("[\\']", "\\%0") .. "'"
end

local function fish()
    local lines = { "# fish completion for qmoon; made by `qmoon completion fish`" }
    local function add(...)
        lines[#lines + 1] = string.format(...)
    end
    for _, name in ipairs(specs.names()) do
        add("complete -c qmoon -n __fish_use_subcommand -a %s -d %s", name, fish_quote(first_sentence(specs.of(name).doc)))
    end
    for _, o in ipairs(specs.program) do
        add("complete -c qmoon -n __fish_use_subcommand %s %s%s -d %s", o[1]:find "^%-%-" and "-l" or "-o", o[1]:gsub("^%-+", ""),
            o.value and " -r" or "", fish_quote(o.doc))
    end
    for _, entry in ipairs(all()) do
        local condition = fish_quote("__fish_seen_subcommand_from " .. entry.words[1]
            .. (entry.words[2] and "; and __fish_seen_subcommand_from " .. entry.words[2] or ""))
        for _, word in ipairs(arguments_of(entry)) do
            add("complete -c qmoon -n %s -a %s", condition, word)
        end
        for _, o in ipairs(options_of(entry.spec)) do
            local choices = o.kind and choices_of(o)
            add("complete -c qmoon -n %s -l %s%s%s -d %s", condition, o[1], o.kind and " -r" or "",
                choices and " -f -a " .. fish_quote(table.concat(choices, " ")) or "", fish_quote(o.doc))
        end
    end
    return table.concat(lines, "\n") .. "\n"
end

local SHELLS = { bash = bash, zsh = zsh, fish = fish }

--- The completion script of a shell.
---@param shell "bash"|"zsh"|"fish"
---@return string
function completion.of(shell)
    local make = SHELLS[shell]
    if not make then
        core.fail("usage", "completion: there are scripts for bash, zsh and fish, not for '%s'", tostring(shell))
    end
    return make()
end

return completion
