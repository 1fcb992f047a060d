--- Chat templates, parsed: the part of Jinja2 that they are written in.
--
-- A template is text with {% statements %}, {{ expressions }} and {# comments #}. As transformers sets it up, a line
-- break behind a statement goes (trim_blocks), and so do blanks before one that starts a line (lstrip_blocks).
-- The result is a tree of tables {kind, …}; qmoon.tokenize.jinja evaluates it. Source: jinja.palletsprojects.com.

local core = require "qmoon.core"

local parser = {}

local function fail(what, form, ...)
    core.fail("unsupported", "%s: the chat template %s", what, form:format(...))
end

-- ---- text, statements, expressions ----------------------------------------------------------------

local OPENERS = { ["{%"] = "%}", ["{{"] = "}}", ["{#"] = "#}" }

--- Where a tag that opens at `at` ends: quotes may hold what looks like its end.
local function closing(template, at, closer, what)
    local i = at
    while i <= #template do
        local c = template:sub(i, i)
        if template:sub(i, i + 1) == closer then
            return i
        elseif closer ~= "#}" and (c == "'" or c == '"') then
            i = i + 1
            while i <= #template and template:sub(i, i) ~= c do
                i = i + (template:sub(i, i) == "\\" and 2 or 1)
            end
        end
        i = i + 1
    end
    fail(what, "has a tag that is not closed")
end

--- {kind = "text" | "{%" | "{{", text}
local function parts_of(template, what)
    template = template:gsub("\r\n?", "\n"):gsub("\n$", "")
    local parts, at, strip, trim = {}, 1, false, false
    while true do
        local from, opener = nil, nil
        local search = at
        while not opener do
            from = template:find("{", search, true)
            opener = from and OPENERS[template:sub(from, from + 1)] and template:sub(from, from + 1)
            if not from then
                break
            end
            search = from + 1
        end
        local text = template:sub(at, (from or #template + 1) - 1)
        local gone = strip and text:match "^%s*" or trim and text:match "^\n?" or ""
        local line_start = at == 1 or gone:sub(-1) == "\n"
        text = text:sub(#gone + 1)
        local sign = from and template:sub(from + 2, from + 2)
        if sign == "-" then
            text = text:gsub("%s+$", "")
        elseif from and opener ~= "{{" and sign ~= "+" then
            local head = text:match "^(.-)[ \t]*$"
            if head:sub(-1) == "\n" or head == "" and line_start then
                text = head
            end
        end
        if text ~= "" then
            parts[#parts + 1] = { kind = "text", text = text }
        end
        if not from then
            return parts
        end
        local inner = from + ((sign == "-" or sign == "+") and 3 or 2)
        local close = closing(template, inner, OPENERS[opener], what)
        local body, last = template:sub(inner, close - 1), template:sub(close - 1, close - 1)
        strip, trim = last == "-", opener ~= "{{" and last ~= "+"
        if (last == "-" or last == "+") and opener ~= "{#" then
            body = body:sub(1, -2)
        end
        if opener ~= "{#" then
            parts[#parts + 1] = { kind = opener, text = body }
        end
        at = close + 2
    end
end

-- ---- words of an expression ------------------------------------------------------------------------

local ESCAPES = { n = "\n", t = "\t", r = "\r", ["\\"] = "\\", ["'"] = "'", ['"'] = '"' }
local OPERATORS = { "//", "==", "!=", "<=", ">=", "(", ")", "[", "]", "{", "}", ",", ":", ".", "|", "~", "+", "-",
                    "*", "/", "%", "<", ">", "=" }

local function text_word(source, at, what)
    local quote, out, i = source:sub(at, at), {}, at + 1
    while source:sub(i, i) ~= quote do
        local c = source:sub(i, i)
        if c == "" then
            fail(what, "has a text that is not closed: %s", source)
        elseif c == "\\" then
            local e = source:sub(i + 1, i + 1)
            out[#out + 1] = ESCAPES[e] or "\\" .. e
            i = i + 2
        else
            out[#out + 1] = c
            i = i + 1
        end
    end
    return { kind = "text", value = table.concat(out) }, i + 1
end

local function words_of(source, what)
    local words, at = {}, 1
    while true do
        at = source:find("%S", at)
        if not at then
            return words
        end
        local c = source:sub(at, at)
        local name, number = source:match("^[%a_][%w_]*", at), source:match("^%d+%.?%d*", at)
        if c == "'" or c == '"' then
            words[#words + 1], at = text_word(source, at, what)
        elseif name then
            words[#words + 1], at = { kind = "name", value = name }, at + #name
        elseif number then
            words[#words + 1], at = { kind = "number", value = tonumber(number) }, at + #number
        else
            local operator
            for _, o in ipairs(OPERATORS) do
                if source:sub(at, at + #o - 1) == o then
                    operator = o
                    break
                end
            end
            if not operator then
                fail(what, "has '%s', which is not known here, in: %s", c, source)
            end
            words[#words + 1], at = { kind = "operator", value = operator }, at + #operator
        end
    end
end

-- ---- expressions ------------------------------------------------------------------------------------

local Reader = {}
Reader.__index = Reader

function Reader:peek(value, kind)
    local word = self.words[self.at]
    return word and word.value == value and word.kind == (kind or "operator") and word
end

function Reader:name(value)
    return self:peek(value, "name")
end

function Reader:take(value, kind)
    local word = self:peek(value, kind)
    if word then
        self.at = self.at + 1
    end
    return word
end

function Reader:need(value)
    if not self:take(value) then
        fail(self.what, "lacks '%s' in: %s", value, self.source)
    end
end

function Reader:identifier()
    local word = self.words[self.at]
    if not word or word.kind ~= "name" then
        fail(self.what, "lacks a name in: %s", self.source)
    end
    self.at = self.at + 1
    return word.value
end

local CONSTANTS = { ["true"] = { true }, ["True"] = { true }, ["false"] = { false }, ["False"] = { false },
                    ["none"] = { core.null }, ["None"] = { core.null } }

function Reader:list(closer)
    local items = {}
    while not self:take(closer) do
        items[#items + 1] = self:expression()
        if not self:peek(closer) then
            self:need ","
        end
    end
    return items
end

function Reader:dictionary()
    local items = {}
    while not self:take "}" do
        local key = self:expression()
        self:need ":"
        items[#items + 1] = { key, self:expression() }
        if not self:peek "}" then
            self:need ","
        end
    end
    return { kind = "dictionary", items = items }
end

function Reader:primary()
    local word = self.words[self.at]
    if not word then
        fail(self.what, "ends too early in: %s", self.source)
    end
    self.at = self.at + 1
    if word.kind == "number" then
        return { kind = "constant", value = word.value }
    elseif word.kind == "text" then
        local value = word.value
        while self.words[self.at] and self.words[self.at].kind == "text" do -- neighbours are joined
            value = value .. self.words[self.at].value
            self.at = self.at + 1
        end
        return { kind = "constant", value = value }
    elseif word.kind == "name" then
        local constant = CONSTANTS[word.value]
        return constant and { kind = "constant", value = constant[1] } or { kind = "variable", name = word.value }
    elseif word.value == "(" then
        local items = {}
        local inner = self:expression()
        if not self:peek "," then
            self:need ")"
            return inner
        end
        items[1] = inner
        self:need ","
        for _, item in ipairs(self:list ")") do
            items[#items + 1] = item
        end
        return { kind = "list", items = items }
    elseif word.value == "[" then
        return { kind = "list", items = self:list "]" }
    elseif word.value == "{" then
        return self:dictionary()
    end
    fail(self.what, "has '%s' in an odd place: %s", tostring(word.value), self.source)
end

--- Arguments of a call, the opening bracket taken: positional ones by number, others by name.
function Reader:arguments()
    local positional, named = {}, {}
    while not self:take ")" do
        local word, behind = self.words[self.at], self.words[self.at + 1]
        if word and word.kind == "name" and behind and behind.kind == "operator" and behind.value == "=" then
            self.at = self.at + 2
            named[word.value] = self:expression()
        else
            positional[#positional + 1] = self:expression()
        end
        if not self:peek ")" then
            self:need ","
        end
    end
    return positional, named
end

function Reader:subscript(of)
    local from, to, step
    if not self:peek ":" then
        from = self:expression()
        if self:take "]" then
            return { kind = "item", of = of, key = from }
        end
    end
    self:need ":"
    if not self:peek "]" and not self:peek ":" then
        to = self:expression()
    end
    if self:take ":" and not self:peek "]" then
        step = self:expression()
    end
    self:need "]"
    return { kind = "slice", of = of, from = from, to = to, step = step }
end

-- Names that are no argument of a test that stands before them.
local JOINS = { ["and"] = true, ["or"] = true, ["else"] = true, ["if"] = true, ["is"] = true, ["not"] = true,
                ["in"] = true }

function Reader:test(of)
    local negated = self:take("not", "name")
    local node = { kind = "test", of = of, name = self:identifier(), arguments = {} }
    if self:take "(" then
        node.arguments = self:arguments()
    else
        local word = self.words[self.at]
        if word and word.kind ~= "operator" and not (word.kind == "name" and JOINS[word.value]) then
            node.arguments = { self:primary() }
        end
    end
    return negated and { kind = "not", of = node } or node
end

function Reader:postfix()
    local node = self:primary()
    while true do
        if self:take "." then
            node = { kind = "attribute", of = node, name = self:identifier() }
        elseif self:take "[" then
            node = self:subscript(node)
        elseif self:take "(" then
            local positional, named = self:arguments()
            node = { kind = "call", of = node, arguments = positional, named = named }
        elseif self:take "|" then
            local filter = { kind = "filter", of = node, name = self:identifier(), arguments = {}, named = {} }
            if self:take "(" then
                filter.arguments, filter.named = self:arguments()
            end
            node = filter
        elseif self:take("is", "name") then
            node = self:test(node)
        else
            return node
        end
    end
end

function Reader:unary()
    if self:take "-" then
        return { kind = "negative", of = self:unary() }
    end
    return self:postfix()
end

--- Left-associative operators of one rank, over those of the next.
local function level(operators, next_level)
    return function(self)
        local node = next_level(self)
        while true do
            local word = self.words[self.at]
            if not word or word.kind ~= "operator" or not operators[word.value] then
                return node
            end
            self.at = self.at + 1
            node = { kind = "binary", operator = word.value, left = node, right = next_level(self) }
        end
    end
end

Reader.product = level({ ["*"] = true, ["/"] = true, ["//"] = true, ["%"] = true }, Reader.unary)
Reader.concatenation = level({ ["~"] = true }, Reader.product)
Reader.sum = level({ ["+"] = true, ["-"] = true }, Reader.concatenation)

local COMPARES = { ["=="] = true, ["!="] = true, ["<"] = true, [">"] = true, ["<="] = true, [">="] = true }

function Reader:comparison()
    local node, left = nil, self:sum()
    while true do
        local word, behind = self.words[self.at], self.words[self.at + 1]
        local operator
        if word and word.kind == "operator" and COMPARES[word.value] then
            operator, self.at = word.value, self.at + 1
        elseif self:take("in", "name") then
            operator = "in"
        elseif self:name "not" and behind and behind.kind == "name" and behind.value == "in" then
            operator, self.at = "not in", self.at + 2
        else
            return node or left
        end
        local right = self:sum()
        local one = { kind = "binary", operator = operator, left = left, right = right }
        node = node and { kind = "and", left = node, right = one } or one -- a < b < c
        left = right
    end
end

function Reader:negation()
    if self:take("not", "name") then
        return { kind = "not", of = self:negation() }
    end
    return self:comparison()
end

function Reader:conjunction()
    local node = self:negation()
    while self:take("and", "name") do
        node = { kind = "and", left = node, right = self:negation() }
    end
    return node
end

function Reader:disjunction()
    local node = self:conjunction()
    while self:take("or", "name") do
        node = { kind = "or", left = node, right = self:conjunction() }
    end
    return node
end

function Reader:expression()
    local node = self:disjunction()
    while self:take("if", "name") do
        local condition, otherwise = self:disjunction(), nil
        if self:take("else", "name") then
            otherwise = self:expression()
        end
        node = { kind = "choice", condition = condition, yes = node, no = otherwise }
    end
    return node
end

function Reader:done()
    if self.words[self.at] then
        fail(self.what, "has '%s' in an odd place: %s", tostring(self.words[self.at].value), self.source)
    end
end

local function reader(source, what)
    return setmetatable({ words = words_of(source, what), at = 1, source = source, what = what }, Reader)
end

-- ---- statements ---------------------------------------------------------------------------------------

local Statements = {}
Statements.__index = Statements

local statements = {}

--- Nodes until one of the statements named comes, which is taken and returned as a reader behind its name.
function Statements:block(ends)
    local nodes = {}
    while self.at <= #self.parts do
        local part = self.parts[self.at]
        self.at = self.at + 1
        if part.kind == "text" then
            nodes[#nodes + 1] = { kind = "text", text = part.text }
        elseif part.kind == "{{" then
            local r = reader(part.text, self.what)
            nodes[#nodes + 1] = { kind = "output", of = r:expression() }
            r:done()
        else
            local r = reader(part.text, self.what)
            local name = r:identifier()
            if ends[name] then
                return nodes, name, r
            elseif not statements[name] then
                fail(self.what, "has the statement '%s', which is not known here", name)
            end
            nodes[#nodes + 1] = statements[name](self, r)
        end
    end
    if next(ends) then
        fail(self.what, "lacks '%s'", (next(ends)))
    end
    return nodes
end

local function names(r)
    local list = {}
    repeat
        list[#list + 1] = r:identifier()
    until not r:take ","
    return list
end

statements["for"] = function(self, r)
    local node = { kind = "for", names = names(r) }
    if not r:take("in", "name") then
        fail(self.what, "lacks 'in' in: %s", r.source)
    end
    node.list = r:disjunction()
    if r:take("if", "name") then
        node.condition = r:expression()
    end
    r:done()
    local ending
    node.body, ending = self:block { ["else"] = true, ["endfor"] = true }
    if ending == "else" then
        node.otherwise = self:block { ["endfor"] = true }
    end
    return node
end

statements["if"] = function(self, r)
    local node = { kind = "if", condition = r:expression() }
    r:done()
    local ending, behind
    node.body, ending, behind = self:block { ["elif"] = true, ["else"] = true, ["endif"] = true }
    if ending == "elif" then
        node.otherwise = { statements["if"](self, behind) }
    elseif ending == "else" then
        node.otherwise = self:block { ["endif"] = true }
    end
    return node
end

function statements.set(self, r)
    local node = { kind = "set", names = names(r) }
    if r:take "." then
        node.attribute = r:identifier()
    end
    if r:take "=" then
        node.value = r:expression()
        if r:take "," then
            fail(self.what, "sets several values at once: %s", r.source)
        end
    else
        node.body = self:block { endset = true }
    end
    r:done()
    return node
end

function statements.macro(self, r)
    local node = { kind = "macro", name = r:identifier(), parameters = {} }
    r:need "("
    while not r:take ")" do
        local parameter = { name = r:identifier() }
        if r:take "=" then
            parameter.default = r:expression()
        end
        node.parameters[#node.parameters + 1] = parameter
        if not r:peek ")" then
            r:need ","
        end
    end
    node.body = self:block { endmacro = true }
    return node
end

--- transformers' mark of what an assistant says: its inside is written as it is.
function statements.generation(self)
    return { kind = "block", body = (self:block { endgeneration = true }) }
end

statements["break"] = function()
    return { kind = "break" }
end

statements["continue"] = function()
    return { kind = "continue" }
end

--- The tree of a template.
---@param template string
---@param what string names the file in messages
---@return table[] nodes
function parser.parse(template, what)
    local s = setmetatable({ parts = parts_of(template, what), at = 1, what = what }, Statements)
    return (s:block {})
end

return parser
