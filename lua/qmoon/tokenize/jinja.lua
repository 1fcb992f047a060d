--- Chat templates, evaluated: trees of qmoon.tokenize.jinja_parser over Lua values.
--
-- What is not known here is refused by name; nothing is guessed.

local core = require "qmoon.core"
local parser = require "qmoon.tokenize.jinja_parser"
local known = require "qmoon.tokenize.jinja_values"

local jinja = {}

local evaluate, run

local fail, truth, text_of, equal = known.fail, known.truth, known.text_of, known.equal
local is_list, is_in, elements, call_of = known.is_list, known.is_in, known.elements, known.call_of

-- ---- expressions -------------------------------------------------------------------------------------------

local function all(self, nodes, scope)
    local values, n = {}, #nodes
    for i = 1, n do
        values[i] = evaluate(self, nodes[i], scope)
    end
    return values, n
end

local function named_values(self, nodes, scope)
    local values = {}
    for name, node in pairs(nodes or {}) do
        values[name] = evaluate(self, node, scope)
    end
    return next(values) and values or nil
end

local function look_up(scope, name)
    while scope do
        if scope.values[name] ~= nil then
            return scope.values[name]
        end
        scope = scope.outer
    end
end

local kinds = {}

function kinds.constant(_, node)
    return node.value
end

function kinds.variable(_, node, scope)
    return look_up(scope, node.name)
end

function kinds.list(self, node, scope)
    return (all(self, node.items, scope))
end

function kinds.dictionary(self, node, scope)
    local members = {}
    for _, item in ipairs(node.items) do
        members[evaluate(self, item[1], scope)] = evaluate(self, item[2], scope)
    end
    return members
end

kinds["and"] = function(self, node, scope)
    local left = evaluate(self, node.left, scope)
    if not truth(left) then
        return left
    end
    return evaluate(self, node.right, scope)
end

kinds["or"] = function(self, node, scope)
    local left = evaluate(self, node.left, scope)
    if truth(left) then
        return left
    end
    return evaluate(self, node.right, scope)
end

kinds["not"] = function(self, node, scope)
    return not truth(evaluate(self, node.of, scope))
end

function kinds.choice(self, node, scope)
    if truth(evaluate(self, node.condition, scope)) then
        return evaluate(self, node.yes, scope)
    end
    return node.no and evaluate(self, node.no, scope)
end

function kinds.negative(self, node, scope)
    return -evaluate(self, node.of, scope)
end

--- What a container has under a key: of lists by number, from behind if it is negative.
local function item(self, v, key)
    if v == nil then
        fail(self, "asks an undefined value for '%s'", tostring(key))
    elseif type(v) == "string" and type(key) == "number" or is_list(v) and type(key) == "number" then
        local list = elements(self, v)
        return list[key < 0 and #list + key + 1 or key + 1]
    elseif type(v) == "table" and not call_of(v) then
        return v[key]
    end
end

function kinds.item(self, node, scope)
    return item(self, evaluate(self, node.of, scope), evaluate(self, node.key, scope))
end

function kinds.attribute(self, node, scope)
    return item(self, evaluate(self, node.of, scope), node.name)
end

function kinds.slice(self, node, scope)
    local v = evaluate(self, node.of, scope)
    local list, out = elements(self, v), {}
    local step = node.step and evaluate(self, node.step, scope) or 1
    local function place(n, default)
        n = n and evaluate(self, n, scope)
        if not n or n == core.null then
            return default
        end
        return n < 0 and math.max(#list + n, step < 0 and -1 or 0) or math.min(n, step < 0 and #list - 1 or #list)
    end
    local from, to = place(node.from, step < 0 and #list - 1 or 0), place(node.to, step < 0 and -1 or #list)
    for i = from, to + (step < 0 and 1 or -1), step do
        out[#out + 1] = list[i + 1]
    end
    return type(v) == "string" and table.concat(out) or out
end

local function add(self, a, b)
    if type(a) == "number" and type(b) == "number" then
        return a + b
    elseif type(a) == "string" and type(b) == "string" then
        return a .. b
    elseif is_list(a) and is_list(b) then
        local out = { unpack(a) }
        for _, v in ipairs(b) do
            out[#out + 1] = v
        end
        return out
    end
    fail(self, "adds a %s and a %s", type(a), type(b))
end

local operators = {
    ["=="] = function(_, a, b) return equal(a, b) end,
    ["!="] = function(_, a, b) return not equal(a, b) end,
    ["<"] = function(_, a, b) return a < b end,
    [">"] = function(_, a, b) return a > b end,
    ["<="] = function(_, a, b) return a <= b end,
    [">="] = function(_, a, b) return a >= b end,
    ["in"] = is_in,
    ["not in"] = function(self, a, b) return not is_in(self, a, b) end,
    ["+"] = add,
    ["-"] = function(_, a, b) return a - b end,
    ["*"] = function(_, a, b) return type(a) == "string" and a:rep(b) or a * b end,
    ["/"] = function(_, a, b) return a / b end,
    ["//"] = function(_, a, b) return math.floor(a / b) end,
    ["%"] = function(_, a, b) return a % b end,
    ["~"] = function(self, a, b) return text_of(self, a) .. text_of(self, b) end,
}

function kinds.binary(self, node, scope)
    local a, b = evaluate(self, node.left, scope), evaluate(self, node.right, scope)
    return operators[node.operator](self, a, b)
end

function kinds.test(self, node, scope)
    local arguments = all(self, node.arguments, scope)
    return known.find_test(self, node.name)(self, evaluate(self, node.of, scope), unpack(arguments)) == true
end

function kinds.filter(self, node, scope)
    local filter = known.find_filter(self, node.name)
    local arguments, n = all(self, node.arguments, scope)
    local named = named_values(self, node.named, scope)
    if named then
        if node.name == "default" or node.name == "d" then
            arguments[2], n = named.boolean, 2
        else
            n = n + 1
            arguments[n] = named
        end
    end
    return filter(self, evaluate(self, node.of, scope), unpack(arguments, 1, n))
end

function kinds.call(self, node, scope)
    local arguments, n = all(self, node.arguments, scope)
    local named = named_values(self, node.named, scope)
    local of = node.of
    if of.kind == "attribute" then
        local object = evaluate(self, of.of, scope)
        local own = type(object) == "table" and object[of.name]
        if not call_of(own) then
            return known.find_method(self, object, of.name)(self, object, unpack(arguments, 1, n))
        end
    end
    local call = call_of(evaluate(self, of, scope))
        or fail(self, "calls '%s', which is not known here", tostring(of.name or of.kind))
    return call(self, arguments, named or {})
end

function evaluate(self, node, scope)
    return kinds[node.kind](self, node, scope)
end

-- ---- statements --------------------------------------------------------------------------------------------

local BREAK, CONTINUE = {}, {}

local nodes = {}

function nodes.text(self, node)
    self.out[#self.out + 1] = node.text
end

function nodes.output(self, node, scope)
    self.out[#self.out + 1] = text_of(self, evaluate(self, node.of, scope))
end

nodes["if"] = function(self, node, scope)
    if truth(evaluate(self, node.condition, scope)) then
        return run(self, node.body, scope)
    elseif node.otherwise then
        return run(self, node.otherwise, scope)
    end
end

nodes["break"] = function()
    return BREAK
end

nodes["continue"] = function()
    return CONTINUE
end

function nodes.block(self, node, scope)
    return run(self, node.body, { values = {}, outer = scope })
end

--- The names of a loop set to an element, which is a list when there are several.
local function bind(names, value)
    if #names == 1 then
        return { [names[1]] = value }
    end
    local values = {}
    for i, name in ipairs(names) do
        values[name] = value[i]
    end
    return values
end

nodes["for"] = function(self, node, scope)
    local list = elements(self, evaluate(self, node.list, scope))
    if node.condition then
        local kept = {}
        for _, value in ipairs(list) do
            if truth(evaluate(self, node.condition, { values = bind(node.names, value), outer = scope })) then
                kept[#kept + 1] = value
            end
        end
        list = kept
    end
    for i, value in ipairs(list) do
        local values = bind(node.names, value)
        values.loop = { index = i, index0 = i - 1, revindex = #list - i + 1, revindex0 = #list - i, length = #list,
                        first = i == 1, last = i == #list, previtem = list[i - 1], nextitem = list[i + 1] }
        if run(self, node.body, { values = values, outer = scope }) == BREAK then
            break
        end
    end
    if #list == 0 and node.otherwise then
        return run(self, node.otherwise, scope)
    end
end

--- The text that nodes write.
local function captured(self, body, scope)
    local out = self.out
    self.out = {}
    run(self, body, scope)
    local text = table.concat(self.out)
    self.out = out
    return text
end

function nodes.set(self, node, scope)
    local value
    if node.body then
        value = captured(self, node.body, { values = {}, outer = scope })
    else
        value = evaluate(self, node.value, scope)
    end
    if node.attribute then
        local object = look_up(scope, node.names[1])
        if type(object) ~= "table" then
            fail(self, "sets '%s' of what is no namespace", node.attribute)
        end
        object[node.attribute] = value
        return
    end
    if value == nil and #node.names == 1 then
        value = core.null
    end
    for name, v in pairs(bind(node.names, value)) do
        scope.values[name] = v
    end
end

function nodes.macro(self, node, scope)
    scope.values[node.name] = known.callable(function(_, arguments, named)
        local values = {}
        for i, parameter in ipairs(node.parameters) do
            values[parameter.name] = arguments[i]
            if values[parameter.name] == nil then
                values[parameter.name] = named[parameter.name]
            end
            if values[parameter.name] == nil and parameter.default then
                values[parameter.name] = evaluate(self, parameter.default, scope)
            end
        end
        return captured(self, node.body, { values = values, outer = scope })
    end)
end

function run(self, list, scope)
    for _, node in ipairs(list) do
        local stop = nodes[node.kind](self, node, scope)
        if stop then
            return stop
        end
    end
end

-- ---- rendering ---------------------------------------------------------------------------------------------

---@class qmoon.Template
local Template = {}
Template.__index = Template

--- A template, parsed.
---@param text string
---@param what string names the file in messages
---@return qmoon.Template
function jinja.new(text, what)
    return setmetatable({ nodes = parser.parse(text, what), what = what }, Template)
end

--- The text of a template for these variables.
---@param variables table<string, any>
---@return string
function Template:render(variables)
    local self_ = { what = self.what, out = {} }
    local ok, e = pcall(run, self_, self.nodes, { values = variables, outer = { values = known.functions } })
    if not ok then
        if type(e) == "table" or type(e) == "userdata" then
            error(e, 0)
        end
        core.fail("unsupported", "%s: the chat template cannot be evaluated for these messages: %s", self.what,
            (tostring(e):gsub("^[^:]*:%d+: ", "")))
    end
    return table.concat(self_.out)
end

return jinja
