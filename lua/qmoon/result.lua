--- Results: rows of figures that print as a table and go to files.
--
-- A result is a list of rows, each a table by key: r[1].sqnr.  It never prints more than a screenful; csv, json and
-- markdown have all of it.

local core = require "qmoon.core"
local json = require "qmoon.json"
local nearest = require "qmoon.nearest"
local terminal = require "qmoon.terminal"
local text = require "qmoon.text"

local result = {}

---@class qmoon.Column
---@field key string           of the rows' fields
---@field title string         over the column
---@field form string?         how numbers are printed, as string.format has it
---@field worse "low"|"high"|nil which end is the bad one
---@field exact string?        printed instead of infinity
---@field wide? boolean        left out of the table where there is little room
---@field short? fun(value: string): string  how a name is written where there is little room

---@class qmoon.Result
---@field [integer] table   the rows, by column keys
---@field rows table[]      the same list
---@field note string?      a line under the table
local Result = {}

local HEAD, TAIL, MOST = 10, 5, 35

-- What a result is besides its rows.
local facts = setmetatable({}, { __mode = "k" })

function Result.__index(self, key)
    if key == "rows" then
        return self
    elseif key == "note" then
        return facts[self].note
    end
    return Result[key]
end

local function check(self, name)
    if not facts[self] then
        core.fail("fail", "%s: called with '.' or on something else; a result's method is called as r:%s(…)", name, name)
    end
    return facts[self]
end

--- A result of these rows.
---@param columns qmoon.Column[] in the order they are shown
---@param rows table[]
---@param about? {note:string?, key:string?} note: a line under the table; key: the column that worst() and best() go by
---@return qmoon.Result
function result.new(columns, rows, about)
    about = about or {}
    local r = setmetatable(rows, Result)
    facts[r] = { columns = columns, note = about.note, key = about.key }
    return r
end

--- Whether a value is a result.
---@param value any
---@return boolean
function result.is(value)
    return type(value) == "table" and facts[value] ~= nil
end

local function column_of(self, key, method)
    local names = {}
    for i, c in ipairs(facts[self].columns) do
        if c.key == key then
            return c
        end
        names[i] = c.key
    end
    local guess = nearest(tostring(key), names)
    core.fail("fail", "%s: no column '%s'%s; there are %s", method, tostring(key),
        guess and ("; did you mean '%s'?"):format(guess) or "", table.concat(names, ", "))
end

--- The columns, in order: list of {key, title, form, worse}.
---
---     for _, c in ipairs(qm.compare(t, {"nf4"}):columns()) do print(c.key, c.title) end
---
---@return qmoon.Column[]
function Result:columns()
    return check(self, "columns").columns
end

--- All values of one column, as a list.
---
---     qm.compare(t, {"nf4", "q4_0"}):column "sqnr"
---
---@param key string
---@return any[]
function Result:column(key)
    check(self, "column")
    column_of(self, key, "column")
    local list = {}
    for i, row in ipairs(self) do
        list[i] = row[key] == nil and core.null or row[key]
    end
    return list
end

local function derived(self, rows)
    return result.new(facts[self].columns, rows, facts[self])
end

-- Rows that lack the value come last, whichever way the others go.
local function ordered(self, key, descending)
    local rows = { unpack(self) }
    local place = {}
    for i, row in ipairs(rows) do
        place[row] = i
    end
    local nan = column_of(self, key, "sort").worse == "low" and -math.huge or math.huge
    table.sort(rows, function(a, b)
        local x, y = a[key], b[key]
        x, y = x ~= x and nan or x, y ~= y and nan or y
        if x == y or (x == nil and y == nil) then
            return place[a] < place[b]
        elseif x == nil or y == nil then
            return y == nil
        elseif type(x) ~= type(y) then
            x, y = tostring(x), tostring(y)
        end
        if descending then
            return x > y
        end
        return x < y
    end)
    return rows
end

--- The same rows in order of a column: ascending, or descending.
---
---     qm.compare(t, {"nf4", "q4_0", "int8"}):sort("bits", "descending")
---
---@param key string
---@param order? "ascending"|"descending"
---@return qmoon.Result
function Result:sort(key, order)
    check(self, "sort")
    column_of(self, key, "sort")
    if order ~= nil and order ~= "ascending" and order ~= "descending" then
        core.fail("fail", "sort: the order is 'ascending' or 'descending', not '%s'", tostring(order))
    end
    return derived(self, ordered(self, key, order == "descending"))
end

local function few(self, n, key, method, bad_first)
    local about = check(self, method)
    key = key or about.key
    if not key then
        core.fail("fail", "%s: name the column to go by: r:%s(%d, \"rmse\")", method, method, tonumber(n) or 5)
    end
    local column = column_of(self, key, method)
    n = n or 5
    if type(n) ~= "number" or n < 1 or n ~= math.floor(n) then
        core.fail("fail", "%s: how many rows is a whole number from 1 on, not %s", method, tostring(n))
    end
    local rows = {}
    local low_first = (column.worse == "low") == bad_first
    for i, row in ipairs(ordered(self, key, not low_first)) do
        if i > n then
            break
        end
        rows[i] = row
    end
    return derived(self, rows)
end

--- The n rows with the worst error, the worst first: by SQNR, or by another column.
---
---     m:report("nf4", {match = "down_proj"}):worst(3)
---
---@param n? integer 5 unless given
---@param key? string a column
---@return qmoon.Result
function Result:worst(n, key)
    return few(self, n, key, "worst", true)
end

--- The n rows with the least error, the best first.
---
---     qm.compare(t, {"nf4", "q4_0", "int8"}):best(1)
---
---@param n? integer 5 unless given
---@param key? string a column
---@return qmoon.Result
function Result:best(n, key)
    return few(self, n, key, "best", false)
end

--- The rows for which a function returns true.
---
---     m:report("nf4"):where(function(row) return row.sqnr < 21 end)
---
---@param test fun(row: table): boolean
---@return qmoon.Result
function Result:where(test)
    check(self, "where")
    if type(test) ~= "function" then
        core.fail("fail", "where: wants a function of a row, not a %s", type(test))
    end
    local rows = {}
    for _, row in ipairs(self) do
        if test(row) then
            rows[#rows + 1] = row
        end
    end
    return derived(self, rows)
end

--- The result as a picture: layers by modules of m:report, size against quality of qm.compare and qm.sweep.
---
---     qm.compare(t, {"nf4", "q4_0", "int8"}):plot()
---     m:report("nf4"):plot():save "report.svg"
---
---@return qmoon.Picture
function Result:plot()
    check(self, "plot")
    return require("qmoon.plot").result(self)
end

-- ---- as text --------------------------------------------------------------------------------------------------

local function cell(column, value)
    if value == nil or value == core.null then
        return ""
    elseif type(value) ~= "number" then
        return tostring(value)
    elseif value == math.huge and column.exact then
        return column.exact
    end
    return (column.form or (value == math.floor(value) and "%.0f" or "%.4g")):format(value)
end

local function cells_of(columns, row)
    local cells = {}
    for i, c in ipairs(columns) do
        cells[i] = cell(c, row[c.key])
    end
    return cells
end

local function titles(columns)
    local cells = {}
    for i, c in ipairs(columns) do
        cells[i] = c.title
    end
    return cells
end

-- The middle of long words gives way, so that both the layer's number and the module's name stay.
local function shorten(word, width)
    if text.width(word) <= width then
        return word
    end
    local characters = {}
    for c in word:gmatch "[^\128-\191][\128-\191]*" do
        characters[#characters + 1] = c
    end
    local tail = math.floor((width - 1) * 0.6)
    return table.concat(characters, "", 1, width - 1 - tail) .. "…" .. table.concat(characters, "", #characters - tail + 1)
end

-- Columns that all cells take, and the number of the widest column.
local function measure(cells)
    local widths, total, widest = {}, 1, 1
    for _, row in ipairs(cells) do
        for c, word in ipairs(row) do
            widths[c] = math.max(widths[c] or 0, text.width(word))
        end
    end
    for c, w in ipairs(widths) do
        total = total + w + (c > 1 and 2 or 0)
        widest = w > widths[widest] and c or widest
    end
    return total, widest, widths[widest]
end

-- Names give way when a table is too wide: first what can be left out, then the middle of the widest column.
local function fit(cells, columns, width)
    if not width or measure(cells) <= width then
        return cells, columns
    end
    local left = {}
    for c = #columns, 1, -1 do
        if columns[c].wide then
            for _, row in ipairs(cells) do
                table.remove(row, c)
            end
        else
            table.insert(left, 1, columns[c])
        end
    end
    columns = left
    for c, column in ipairs(columns) do
        for r = column.short and 2 or #cells + 1, #cells do
            cells[r][c] = column.short(cells[r][c])
        end
    end
    local total, widest, most = measure(cells)
    for _, row in ipairs(total > width and cells or {}) do
        row[widest] = shorten(row[widest], math.max(12, most - (total - width)))
    end
    return cells, columns
end

-- In a column of numbers words stand to the right, too: "row" among block sizes.
local function numbers_right(self, cells, columns)
    for c, column in ipairs(columns) do
        local number, word, width = false, false, 0
        for r, row in ipairs(self) do
            number, word = number or type(row[column.key]) == "number", word or type(row[column.key]) == "string"
            if r > MOST then
                break
            end
        end
        for _, row in ipairs(number and word and cells or {}) do
            width = math.max(width, text.width(row[c]))
        end
        for _, row in ipairs(width > 0 and cells or {}) do
            row[c] = (" "):rep(width - text.width(row[c])) .. row[c]
        end
    end
    return cells
end

--- The table as text: all rows, or the first and the last of many; no wider than `width`, if given.
---
---     print(qm.compare(t, {"nf4", "q4_0"}):text{width = 60})
---
---@param options? {width:integer?, all:boolean?}
---@return string
function Result:text(options)
    local about = check(self, "text")
    options = options or {}
    if type(options) ~= "table" then
        core.fail("fail", "text: options are a table {width=, all=}, not a %s", type(options))
    end
    local columns, n = about.columns, #self
    local cells, elided = { titles(columns) }, n > MOST and not options.all
    for i, row in ipairs(self) do
        if not elided or i <= HEAD or i > n - TAIL then
            cells[#cells + 1] = cells_of(columns, row)
        end
    end
    local lines = text.table(numbers_right(self, fit(cells, columns, options.width)))
    if elided then
        local at, place = 0, 0
        for _ = 1, HEAD + 1 do
            place = at
            at = lines:find("\n", at + 1, true)
        end
        place = at or place
        lines = ("%s\n … %d more rows; r:text{all=true} or r:csv() has them%s"):format(lines:sub(1, place - 1),
            n - HEAD - TAIL, lines:sub(place))
    end
    local note = about.note and " " .. about.note
    return note and lines .. "\n" .. (options.width and text.fold(note, options.width) or note) or lines
end

function Result:__tostring()
    return self:text { width = terminal.columns() }
end

local function csv_field(value)
    if value == nil or value == core.null then
        return ""
    elseif type(value) == "number" then
        return ("%.9g"):format(value)
    end
    value = tostring(value)
    return value:find '[",\n\r]' and '"' .. value:gsub('"', '""') .. '"' or value
end

--- All rows as comma-separated values under a line of column keys.
---
---     io.write(qm.compare(t, {"nf4", "q4_0"}):csv())
---
---@return string
function Result:csv()
    local columns = check(self, "csv").columns
    local keys, lines = {}, {}
    for i, c in ipairs(columns) do
        keys[i] = c.key
    end
    lines[1] = table.concat(keys, ",")
    for _, row in ipairs(self) do
        local fields = {}
        for i, c in ipairs(columns) do
            fields[i] = csv_field(row[c.key])
        end
        lines[#lines + 1] = table.concat(fields, ",")
    end
    return table.concat(lines, "\n") .. "\n"
end

local function object_of(columns, row)
    local members = {}
    for k, c in ipairs(columns) do
        local value = row[c.key]
        value = type(value) == "number" and json.finite(value) or value -- an exact result has no SQNR
        members[k] = { c.key, value == nil and core.null or value }
    end
    return json.object(members)
end

--- All rows as what qmoon.json writes as a list of objects.
---@param r qmoon.Result
---@return table
function result.objects(r)
    local columns, list = facts[r].columns, {}
    for i, row in ipairs(r) do
        list[i] = object_of(columns, row)
    end
    return json.array(list)
end

--- All rows as a JSON list of objects; what is infinite or missing is null.
---
---     print(qm.compare(t, {"nf4"}):json())
---
---@return string
function Result:json()
    check(self, "json")
    return json.encode(result.objects(self), { indent = 2 })
end

--- All rows as a Markdown table.
---
---     print(qm.compare(t, {"nf4", "q4_0"}):markdown())
---
---@return string
function Result:markdown()
    local columns = check(self, "markdown").columns
    local cells = { titles(columns) }
    for i, row in ipairs(self) do
        cells[i + 1] = cells_of(columns, row)
        for k, word in ipairs(cells[i + 1]) do
            cells[i + 1][k] = word:gsub("|", "\\|")
        end
    end
    for k, word in ipairs(cells[1]) do
        cells[1][k] = word:gsub("|", "\\|")
    end
    return text.markdown(cells)
end

--- All rows as JSON, one object a line.
---
---     io.write(qm.compare(t, {"nf4"}):jsonl())
---
---@return string
function Result:jsonl()
    local columns, lines = check(self, "jsonl").columns, {}
    for i, row in ipairs(self) do
        lines[i] = json.encode(object_of(columns, row)) .. "\n"
    end
    return table.concat(lines)
end

--- The table with lines around its cells.
---
---     print(qm.compare(t, {"nf4", "q4_0"}):box())
---
---@return string
function Result:box()
    local columns = check(self, "box").columns
    local cells, widths = { titles(columns) }, {}
    for i, row in ipairs(self) do
        if i <= MOST then
            cells[#cells + 1] = cells_of(columns, row)
        end
    end
    cells, columns = fit(cells, columns, (terminal.columns() or 10000) - 2 * #columns)
    for _, row in ipairs(cells) do
        for c, word in ipairs(row) do
            widths[c] = math.max(widths[c] or 0, text.width(word))
        end
    end
    local function line(left, middle, right)
        local parts = {}
        for c, w in ipairs(widths) do
            parts[c] = ("─"):rep(w + 2)
        end
        return left .. table.concat(parts, middle) .. right
    end
    local lines = { line("┌", "┬", "┐") }
    for r, row in ipairs(cells) do
        local parts = {}
        for c, word in ipairs(row) do
            local pad = (" "):rep(widths[c] - text.width(word))
            parts[c] = r > 1 and type(self[r - 1][columns[c].key]) == "number" and pad .. word or word .. pad
        end
        lines[#lines + 1] = "│ " .. table.concat(parts, " │ ") .. " │"
        lines[#lines + 1] = r == 1 and line("├", "┼", "┤") or nil
    end
    lines[#lines + 1] = line("└", "┴", "┘")
    if #self > MOST then
        lines[#lines + 1] = (" … %d more rows; r:csv() has them"):format(#self - MOST)
    end
    return table.concat(lines, "\n")
end

local ENTITIES = { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;" }

--- All rows as an HTML table, for a notebook or a page.
---
---     print(qm.compare(t, {"nf4"}):html())
---
---@return string
function Result:html()
    local columns = check(self, "html").columns
    local function row_of(cells, tag)
        for i, word in ipairs(cells) do
            cells[i] = ("<%s>%s</%s>"):format(tag, word:gsub("[&<>]", ENTITIES), tag)
        end
        return "<tr>" .. table.concat(cells) .. "</tr>"
    end
    local lines = { "<table>", row_of(titles(columns), "th") }
    for _, row in ipairs(self) do
        lines[#lines + 1] = row_of(cells_of(columns, row), "td")
    end
    lines[#lines + 1] = "</table>"
    return table.concat(lines, "\n") .. "\n"
end

local WRITERS = { csv = Result.csv, json = Result.json, md = Result.markdown, markdown = Result.markdown, html = Result.html,
                  jsonl = Result.jsonl, txt = function(self) return self:text { all = true } .. "\n" end }

--- Writes all rows to a file, as its name ends: .csv, .json, .jsonl, .md, .html or .txt.
---
---     qm.compare(t, {"nf4", "q4_0"}):save "compare.csv"
---
---@param path string
---@return qmoon.Result itself
function Result:save(path)
    check(self, "save")
    local ending = type(path) == "string" and path:match "%.(%w+)$"
    local writer = ending and WRITERS[ending:lower()]
    if not writer then
        core.fail("fail", "save: a file name ending in .csv, .json, .jsonl, .md, .html or .txt says how it is written, not %s",
            type(path) == "string" and "'" .. path .. "'" or "a " .. type(path))
    end
    require("qmoon.files").write(path, writer(self))
    return self
end

result.methods = Result

return result
