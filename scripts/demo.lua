-- demo: lessons that compute every number they tell.  `ls lua/qmoon/demo` lists them.

local core = require "qmoon.core"
local cli = require "qmoon.cli"
local files = require "qmoon.files"
local json = require "qmoon.json"
local lesson = require "qmoon.lesson"
local screen = require "qmoon.screen"
local text = require "qmoon.text"

local o = cli.parse({
    name = "demo",
    doc = "Explains quantisation by computing it. Without a NAME: which demos there are.",
    arguments = { { "NAME", optional = true, doc = "the demo" } },
    options = {
        { "html", kind = "text", value = "FILE", doc = "write one page that needs nothing else: pictures, "
            .. "sliders, light and dark" },
        { "step", doc = "wait for Enter between sections" },
        { "json", doc = "the figures, for machines" },
        { "model", kind = "text", value = "NAME", doc = "fits, which-format: a family and size such as "
            .. "'mixtral 8x7b', or a model folder" },
        { "card", kind = "size", value = "SIZE", doc = "fits, which-format: memory of the card, such as "
            .. "24GiB" },
        { "context", kind = "integer", value = "N", doc = "fits, which-format: tokens of context" },
    },
    examples = "  qmoon demo nf4-vs-int4\n  qmoon demo outlier --html outlier.html\n  qmoon demo fits "
        .. "--model 'llama 3-8b' --card 12GiB --context 8192",
}, { ... })
if not o then
    return 0
end

local function list()
    local rows = { { "demo", "answers" } }
    for _, name in ipairs(lesson.names()) do
        rows[#rows + 1] = { name, lesson.demo(name).question }
    end
    return rows
end

local function to_json(rows)
    local demos = {}
    for i = 2, #rows do
        demos[i - 1] = { name = rows[i][1], question = rows[i][2] }
    end
    return json.encode({ schema = "qmoon-demos-1", demos = json.array(demos) }, { indent = 2 })
end

if not o[1] then
    print(o.json and to_json(list()) or screen.here():plain(text.table(list())))
    return 0
end

local told = lesson.run(o[1], { model = o.model, card = o.card, context = o.context })

local function wait()
    io.write " -- Enter goes on, q ends -- "
    io.flush()
    local line = io.read "*l"
    return not line or line:find "^%s*q" ~= nil
end

if o.html then
    files.write(o.html, told:html())
end
if o.json then
    print(told:json())
elseif o.html then
    print((" %s: %s"):format(o[1], o.html))
else
    local stepping = o.step and core.terminal(0) and core.terminal(1)
    told:tell(screen.here(), io.write, stepping and wait or nil)
end
