--- What Lua's own error messages leave out: the name that was probably meant.

local doc = require "qmoon.doc"
local nearest = require "qmoon.nearest"

local advice = {}

local function names_of(t)
    local names = {}
    for k in next, t do
        names[#names + 1] = type(k) == "string" and k or nil
    end
    return names
end

local function suggest(word, known)
    local guess = nearest(word, known)
    return guess and ("; did you mean '%s'?"):format(guess) or ""
end

--- The message with a guess, where it is about a name that is not there.
---@param message string
---@return string
function advice.of(message)
    local method = message:match "attempt to call method '([^']+)' %(a nil value%)"
    if method then
        return ("there is no method '%s'%s"):format(method, suggest(method, doc.method_names()))
    end
    local global = message:match "attempt to %w+ global '([^']+)' %(a nil value%)"
    if global then
        return ("'%s' is nil: it was never set%s"):format(global, suggest(global, names_of(_G)))
    end
    local field = message:match "attempt to call field '([^']+)' %(a nil value%)"
    if field then
        return ("there is no function '%s'%s"):format(field, suggest(field, names_of(require "qmoon")))
    end
    return message
end

--- For a name typed on its own that stands for nothing.
---@param name string
---@return string
function advice.of_nil(name)
    local guess = #name > 2 and nearest(name, names_of(_G))
    return ("%s is nil%s"):format(name, guess and ("; did you mean '%s'?"):format(guess) or "")
end

return advice
