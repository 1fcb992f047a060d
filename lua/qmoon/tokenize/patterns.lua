--- Regular expressions of tokenizer.json files, for PCRE2.
--
-- The reference matches them with Oniguruma in Ruby's dialect. What differs, and is rewritten:
--
--   \s              PCRE2 counts U+180E as a blank: the list of White_Space takes its place
--   \h \H           hexadecimal digits in Ruby, horizontal blanks in PCRE2
--   ^ $             at every line in Ruby
--   [a&&[^b]]       intersection, which PCRE2 lacks: (?:(?=[a])[^b])
--   [a[bc]]         union: the inner brackets go
--   {n,m}+          a repeat of a repeat in Ruby, possessive in PCRE2

local core = require "qmoon.core"

local patterns = {}

-- White_Space of Unicode, for inside of brackets.
local SPACE = [[\t-\r \x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]]

local ESCAPES = { s = SPACE, h = "0-9a-fA-F" }
local OUTSIDE = { s = "[" .. SPACE .. "]", S = "[^" .. SPACE .. "]", h = "[0-9a-fA-F]", H = "[^0-9a-fA-F]" }

--- A character class that starts at `at`: its text for PCRE2 and the place behind it. Parts joined by && become
--- look-aheads: all of them must hold.
local function class(pattern, at)
    local negated = pattern:sub(at + 1, at + 1) == "^"
    local i, parts, part = at + (negated and 2 or 1), {}, {}
    local outer = {} -- classes that stand beside the plain members of a part: complements
    local first = true
    while true do
        local c = pattern:sub(i, i)
        if c == "" then
            core.fail("corrupt", "pattern '%s': a bracket is not closed", pattern)
        elseif c == "]" and not first then
            break
        elseif c == "\\" then
            local e = pattern:sub(i + 1, i + 1)
            if e == "p" or e == "P" or e == "x" then
                local name = pattern:match("^%b{}", i + 2) or ""
                part[#part + 1] = "\\" .. e .. name
                i = i + 2 + #name
            else
                part[#part + 1] = ESCAPES[e] or "\\" .. e
                i = i + 2
            end
        elseif pattern:find("^%[:%^?%a+:%]", i) then
            local name = pattern:match("^%[:%^?%a+:%]", i)
            part[#part + 1] = name
            i = i + #name
        elseif c == "[" then
            local inner, behind, plain = class(pattern, i)
            if plain then
                part[#part + 1] = plain
            else
                outer[#outer + 1] = inner
            end
            i = behind
        elseif pattern:sub(i, i + 1) == "&&" then
            parts[#parts + 1] = { part, outer }
            part, outer, i = {}, {}, i + 2
        else
            part[#part + 1] = c
            i = i + 1
        end
        first = false
    end
    parts[#parts + 1] = { part, outer }
    local function text_of(p)
        local plain = #p[1] > 0 and "[" .. table.concat(p[1]) .. "]" or nil
        if #p[2] == 0 then
            return plain or "(?!)"
        end
        local choices = { plain }
        for _, inner in ipairs(p[2]) do
            choices[#choices + 1] = inner
        end
        return "(?:" .. table.concat(choices, "|") .. ")"
    end
    if #parts == 1 and #parts[1][2] == 0 then
        local members = table.concat(parts[1][1])
        return (negated and "[^" or "[") .. members .. "]", i + 1, not negated and members or nil
    end
    local conditions = {}
    for k, p in ipairs(parts) do
        conditions[k] = "(?=" .. text_of(p) .. ")"
    end
    local all = table.concat(conditions)
    return negated and "(?:(?!" .. all .. ")(?s:.))" or "(?:" .. all .. "(?s:.))", i + 1
end

local function escape(pattern, i)
    local e = pattern:sub(i + 1, i + 1)
    return OUTSIDE[e] or "\\" .. e, i + 2
end

--- The same pattern in PCRE2's dialect.
---@param pattern string
---@return string
function patterns.to_pcre(pattern)
    local out, i = { "(?m)" }, 1
    while i <= #pattern do
        local c = pattern:sub(i, i)
        if c == "\\" then
            out[#out + 1], i = escape(pattern, i)
        elseif c == "[" then
            out[#out + 1], i = class(pattern, i)
        else
            local count = c == "{" and pattern:match("^{%d*,?%d*}", i)
            if count and pattern:sub(i + #count, i + #count) == "+" then
                core.fail("unsupported", "pattern '%s': '%s+' repeats a repeat, which is not supported", pattern,
                    count)
            end
            out[#out + 1] = count or c
            i = i + #(count or c)
        end
    end
    return table.concat(out)
end

--- The pattern that matches a text as it is.
---@param text string
---@return string
function patterns.literal(text)
    return (text:gsub("[^%w\128-\255]", "\\%0"))
end

return patterns
