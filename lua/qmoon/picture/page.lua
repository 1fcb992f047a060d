--- Pages: pictures and lessons as one HTML file each, that loads nothing and looks right in light and dark.

local core = require "qmoon.core"
local canvas = require "qmoon.picture.canvas"
local codebooks = require "qmoon.codebook"
local json = require "qmoon.json"
local levels = require "qmoon.levels"
local picture = require "qmoon.picture"
local svg = require "qmoon.picture.svg"

local page = {}

local escape = canvas.escape

-- Prose as HTML: `code` is code.
local function prose(s)
    return (escape(s):gsub("`([^`]+)`", "<code>%1</code>"))
end

-- ---- data of sliders
-- -----------------------------------------------------------------------------------------

local LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

local function base64(bytes)
    local out = {}
    for i = 1, #bytes, 3 do
        local a, b, c = bytes:byte(i, i + 2)
        local n = a * 65536 + (b or 0) * 256 + (c or 0)
        local digits = {}
        for k = 4, 1, -1 do
            local d = n % 64
            digits[k], n = LETTERS:sub(d + 1, d + 1), (n - d) / 64
        end
        out[#out + 1] = table.concat(digits, "", 1, c and 4 or b and 3 or 2)
            .. (c and "" or b and "=" or "==")
    end
    return table.concat(out)
end

local MOST_VALUES = 2 ^ 17 -- more would make the page heavy; such pictures have no sliders

--- Gives tensors of a picture's live part names, each text of values once a page.
local function name_data(store, live)
    for key, value in pairs(live) do
        if type(value) == "userdata" then
            if value:info().count > MOST_VALUES then
                return false
            end
            local text = base64(value:dequantize():plane(1))
            if not store[text] then
                store[#store + 1], store[text] = text, ("data-%d"):format(#store + 1)
            end
            live[key] = store[text]
        end
    end
    return true
end

local BITS = { 2, 6 }

-- Even levels and normal quantiles of every width the sliders have.
local function tables()
    local int, normal = {}, {}
    for bits = BITS[1], BITS[2] do
        int[bits - 1] = levels.of("int" .. bits)
        normal[bits - 1] = codebooks.quantile_codebook("normal", { levels = 2 ^ bits }):levels()
    end
    return { int = int, normal = normal }
end

local function copy(t)
    local c = {}
    for k, v in pairs(t) do
        c[k] = v
    end
    return c
end

--- What the page's script is told of a picture, or nil when there is nothing to slide.
local function live_text(store, live)
    if not live then
        return nil
    end
    live = copy(live)
    if not name_data(store, live) then
        return nil
    end
    local powers, sliders = {}, {}
    for i, s in ipairs(live.sliders) do
        powers[i] = s.power == true
        sliders[i] = json.array { s[1], s[2], s[3], s[4] }
    end
    live.powers, live.sliders = json.array(powers), json.array(sliders)
    live.levels = live.levels or tables()
    return (json.encode(live):gsub("</", "<\\/"))
end

local function figure(store, p)
    local drawn = svg.render(p, { style = false })
    local live = live_text(store, p.live)
    return table.concat({
        ("<figure%s>"):format(live and (' data-live="%s"'):format(p.live.name) or ""),
        '<div class="scroll">' .. drawn .. "</div>",
        live and '<div class="controls"></div><p class="state"><output></output></p><script '
            .. 'type="application/json">' .. live .. "</script>"
            or "",
        "</figure>",
    }, "\n")
end

-- ---- blocks of a lesson
-- ----------------------------------------------------------------------------------------

local block = {}

function block.say(content)
    return "<p>" .. prose(content) .. "</p>"
end

function block.section(content)
    return "<h2>" .. escape(content) .. "</h2>"
end

block["table"] = function(rows)
    local lines, right = { '<div class="wide"><table>' }, {}
    for k = 1, #rows[1] do
        right[k] = #rows > 1 and (rows[2][k] or ""):find "^[-+]?[%d.]" ~= nil
    end
    for r, row in ipairs(rows) do
        local cells = {}
        for k, cell in ipairs(row) do
            local tag = r == 1 and "th" or "td"
            cells[k] = ("<%s%s>%s</%s>"):format(tag, right[k] and ' class="n"' or "", escape(cell), tag)
        end
        lines[#lines + 1] = "<tr>" .. table.concat(cells) .. "</tr>"
    end
    lines[#lines + 1] = "</table></div>"
    return table.concat(lines, "\n")
end

function block.lines(content)
    return "<pre>" .. escape(table.concat(content, "\n")) .. "</pre>"
end

function block.remember(content)
    local items = {}
    for i, point in ipairs(content) do
        items[i] = "<li>" .. prose(point) .. "</li>"
    end
    return '<h2>To remember</h2><div class="remember"><ul>' .. table.concat(items) .. "</ul></div>"
end

function block.read(content)
    return ('<p><a href="%s">%s</a></p>'):format(escape(content[2]), escape(content[1]))
end

function block.claim(c)
    return ('<div class="claim">%d. <q>%s</q><br><span class="verdict-%s">%s</span>: %s</div>'):format(c.number, escape(c.claim),
        c.verdict:match "^%a+", c.verdict, escape(c.why))
end

-- ---- the page
-- ----------------------------------------------------------------------------------------------------

--- A page of blocks of a lesson and of pictures.
---@param title string
---@param blocks table[]
---@return string
function page.render(title, blocks)
    local store, body = {}, {}
    for i, b in ipairs(blocks) do
        if picture.is(b) then
            body[i] = figure(store, b)
        elseif b.kind == "picture" then
            body[i] = figure(store, b.content)
        else
            body[i] = block[b.kind](b.content)
        end
    end
    for i, text in ipairs(store) do
        body[#body + 1] = ('<script type="text/plain" id="data-%d">%s</script>'):format(i, text)
    end
    return table.concat({
        "<!doctype html>", '<html lang="en">', "<head>", '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
        "<title>" .. escape(title) .. "</title>",
        "<style>", core.source "qmoon.picture.page.css" .. svg.style() .. "</style>", "</head>", "<body>",
            "<main>",
        "<h1>" .. escape(title) .. "</h1>", table.concat(body, "\n"),
        ("<footer>Made by qmoon %s. Every number was computed when the page was made.</footer>"):format(core.version), "</main>",
        "<script>", core.source "qmoon.picture.page.js" .. "</script>", "</body>", "</html>", "",
    }, "\n")
end

---@param lesson qmoon.Lesson
---@return string
function page.lesson(lesson)
    return page.render(lesson.title, lesson.blocks)
end

return page
