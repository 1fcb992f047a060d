--- Lessons: what a demo says, in order; printed, stepped through, or written as a page or as JSON.
--
-- A demo is a file in lua/qmoon/demo that returns
--
--   {title = "…", question = "what it answers", options = {"model", …}, run = function(lesson, options) …
-- end}
--
-- and says everything through the lesson, with numbers that it has just computed.

local core = require "qmoon.core"
local json = require "qmoon.json"
local nearest = require "qmoon.nearest"
local text = require "qmoon.text"

local PREFIX = "qmoon.demo."

local lesson = {}

---@class qmoon.Lesson
---@field name string
---@field title string
---@field question string
---@field blocks table[]
---@field figures table<string, any>  the numbers it told, by name
local Lesson = {}
Lesson.__index = Lesson

--- The names of all demos.
---@return string[]
function lesson.names()
    local list = {}
    for i, m in ipairs(core.modules(PREFIX)) do
        list[i] = m:sub(#PREFIX + 1)
    end
    return list
end

---@param name string
---@return table demo
function lesson.demo(name)
    if not core.source(PREFIX .. name) then
        local guess = nearest(name, lesson.names())
        core.fail("usage", "there is no demo '%s'%s; there are %s", name,
            guess and (" (did you mean '%s'?)"):format(guess) or "", table.concat(lesson.names(), ", "))
    end
    return require(PREFIX .. name)
end

--- Runs a demo; nothing is printed.
---@param name string
---@param options? table those that the demo takes
---@return qmoon.Lesson
function lesson.run(name, options)
    local demo, given = lesson.demo(name), options or {}
    local taken = {}
    for _, key in ipairs(demo.options or {}) do
        taken[key] = true
    end
    for key in pairs(given) do
        if not taken[key] then
            core.fail("usage", "demo %s: it has nothing to do with --%s", name, key)
        end
    end
    local l = setmetatable({ name = name, title = demo.title, question = demo.question, blocks = {},
        figures = {} }, Lesson)
    demo.run(l, given)
    return l
end

-- ---- saying
-- ------------------------------------------------------------------------------------------------

local function formatted(form, ...)
    return select("#", ...) > 0 and form:format(...) or form
end

local function add(self, kind, content)
    self.blocks[#self.blocks + 1] = { kind = kind, content = content }
end

--- A paragraph.
function Lesson:say(form, ...)
    add(self, "say", formatted(form, ...))
end

--- A new section, and a step for those who step.
function Lesson:section(form, ...)
    add(self, "section", formatted(form, ...))
end

--- Rows of cells, the first being the header.
---@param rows string[][]
function Lesson:table(rows)
    add(self, "table", rows)
end

---@param picture qmoon.Picture
function Lesson:picture(picture)
    add(self, "picture", picture)
end

--- Lines of arithmetic, as they are.
---@param ... string
function Lesson:lines(...)
    add(self, "lines", { ... })
end

--- A claim that people make, whether it holds ("right", "half right", "wrong"), and the arithmetic.
function Lesson:claim(number, claim, verdict, why)
    add(self, "claim", { number = number, claim = claim, verdict = verdict, why = why })
end

--- What to remember: the last thing said, in points.
---@param ... string
function Lesson:remember(...)
    add(self, "remember", { ... })
end

--- A paper to read, with its address.
function Lesson:read(title, url)
    add(self, "read", { title, url })
end

--- Numbers by name, for machines and tests.
---@param values table<string, any>
function Lesson:figure(values)
    for k, v in pairs(values) do
        self.figures[k] = v
    end
end

-- ---- telling
-- -----------------------------------------------------------------------------------------------

local tell = {}

function tell.say(content, screen)
    return table.concat(screen:wrap(content), "\n")
end

function tell.section(content, screen)
    return screen:paint(table.concat(screen:wrap(content), "\n"), "bold")
end

tell["table"] = function(rows, screen)
    local plain = {}
    for r, row in ipairs(rows) do
        plain[r] = {}
        for k, cell in ipairs(row) do
            plain[r][k] = screen:plain(cell)
        end
    end
    return (text.table(plain):gsub("^[^\n]*", function(head)
        return screen:paint(head, "bold")
    end))
end

function tell.picture(picture, screen)
    return picture:text(screen)
end

function tell.lines(content, screen)
    local list = {}
    for i, l in ipairs(content) do
        list[i] = "   " .. screen:plain(l)
    end
    return table.concat(list, "\n")
end

local SHADE = { right = "good", wrong = "bad", ["half right"] = 5 }

function tell.claim(c, screen)
    local head = screen:wrap(("%d. \"%s\""):format(c.number, c.claim))
    local why = screen:wrap(c.verdict .. ": " .. c.why, "    ")
    why[1] = why[1]:gsub(c.verdict, screen:paint(c.verdict, SHADE[c.verdict]), 1)
    return table.concat(head, "\n") .. "\n" .. table.concat(why, "\n")
end

function tell.remember(content, screen)
    local list = { screen:paint(" To remember", "bold") }
    for _, point in ipairs(content) do
        local lines = screen:wrap(point, "   ")
        lines[1] = screen:plain " • " .. lines[1]:sub(4)
        list[#list + 1] = table.concat(lines, "\n")
    end
    return table.concat(list, "\n")
end

function tell.read(content, screen)
    return screen:paint(" " .. screen:plain(content[1]) .. ": ", "dim") .. content[2]
end

--- Everything, block after block, as a screen shows it.
---@param screen qmoon.Screen
---@param out fun(text: string)
---@param wait? fun(): boolean called before every section but the first; true ends
function Lesson:tell(screen, out, wait)
    out(screen:paint(table.concat(screen:wrap(self.title), "\n"), "bold") .. "\n")
    for i, block in ipairs(self.blocks) do
        if i > 1 and block.kind == "section" and wait and wait() then
            return
        end
        out("\n" .. tell[block.kind](block.content, screen) .. "\n")
    end
end

---@return string
function Lesson:json()
    local said = {}
    for _, block in ipairs(self.blocks) do
        said[#said + 1] = (block.kind == "say" or block.kind == "section") and block.content or nil
    end
    return json.encode({ schema = "qmoon-demo-1", demo = self.name, title = self.title,
        version = core.version,
                         figures = self.figures, said = json.array(said) }, { indent = 2 })
end

--- A page of its own, pictures and all.
---@return string
function Lesson:html()
    return require("qmoon.picture.page").lesson(self)
end

return lesson
