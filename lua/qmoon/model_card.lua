--- What a model folder says about itself: the front matter of README.md, and the parts of a name like
--- "Qwen/Qwen2.5-1.5B-Instruct". It becomes general.* in GGUF files.
--
-- The heuristics are those of llama.cpp's converter (gguf-py, metadata.py), so that the same folder gets
-- the same labels. No program depends on them.

local core = require "qmoon.core"

local card = {}

-- ---- YAML, as far as model cards go -------------------------------------------------------------

local function unquote(text)
    local double = text:match '^"(.*)"$'
    if double then
        return (double:gsub("\\(.)", { n = "\n", t = "\t", ['"'] = '"', ["\\"] = "\\" }))
    end
    local single = text:match "^'(.*)'$"
    return single and (single:gsub("''", "'")) or text
end

--- A plain or quoted scalar; nil for what is none: nothing, null, an object, an anchor, a block.
local function scalar(text)
    text = text:gsub("^%s+", ""):gsub("%s+$", "")
    if text:find "^[\"']" then
        return unquote(text)
    end
    text = text:gsub("%s+#.*$", "")
    local plain = not text:find "^[{&*!|>%[]" and not text:find ":%s"
    if plain and text ~= "" and text ~= "null" and text ~= "~" then
        return text
    end
end

local function flow_list(text)
    local list = {}
    for item in (text .. ","):gmatch "%s*(.-)%s*," do
        list[#list + 1] = scalar(item)
    end
    return list
end

--- The lines of the front matter, or nothing.
local function front_matter(text)
    local lines = {}
    for line in (text:gsub("\r\n", "\n") .. "\n"):gmatch "([^\n]*)\n" do
        lines[#lines + 1] = line
    end
    if lines[1] ~= "---" then
        return {}
    end
    local inner = {}
    for i = 2, #lines do
        if lines[i] == "---" then
            break
        end
        inner[#inner + 1] = lines[i]
    end
    return inner
end

--- The list of "- item" lines that begins at `i`; nil when one of them is no scalar.
local function block_list(lines, i)
    local list = {}
    while lines[i] and (lines[i]:find "^%s*%- " or lines[i]:find "^%s*$" or lines[i]:find "^%s*#") do
        local item = lines[i]:match "^%s*%- (.*)$"
        if item then
            local value = scalar(item)
            if not value then
                return nil
            end
            list[#list + 1] = value
        end
        i = i + 1
    end
    if lines[i] and lines[i]:find "^%s" then
        return nil -- something nested
    end
    return list
end

--- The value of a key whose line is `i` and goes on with `rest`; second result: there is a value, but no
--- plain one.
local function value_at(lines, i, rest)
    local below = lines[i + 1] or ""
    local value
    if rest ~= "" and not rest:find "^#" then
        local flow = rest:match "^%[(.*)%]%s*$"
        local goes_on = below:find "^%s+%S"
        value = not goes_on and (flow and flow_list(flow) or scalar(rest)) or nil
        return value, value == nil
    elseif below:find "^%s*%- " then
        value = block_list(lines, i + 1)
        return value, value == nil
    end
    return nil, below:find "^%s+%S" ~= nil
end

--- The top-level keys of a README.md's front matter: strings and lists of strings. Keys whose value is
--- something else are named in the second result.
---@param text string
---@return table<string, string|string[]> fields
---@return table<string, boolean> unread
function card.parse(text)
    local lines, fields, unread = front_matter(text), {}, {}
    for i, line in ipairs(lines) do
        local key, rest = line:match "^([%w_%-]+):%s*(.*)$"
        if key then
            fields[key], unread[key] = value_at(lines, i, rest)
        end
    end
    return fields, unread
end

-- ---- the parts of a name ------------------------------------------------------------------------

local VERSION = [[(?i)(v|iter)?\d+([.]\d+)*]]
local FORMAT = [[(?i)i?q\d(_\w)*|b?fp?(16|32)]]
local SIZE = [[(?i)(([A]|\d+[x])?\d+([._]\d+)?[KMBT][\d]?|small|mini|medium|large|x?xl)]]
local TUNED = [[(?i)chat|instruct|vision|lora]]

local compiled = {}

local function is(pattern, text)
    compiled[pattern] = compiled[pattern] or core.regex(pattern)
    return compiled[pattern]:fullmatch(text)
end

--- "7b1" -> "7.1b", "1_5b" -> "1.5B".
local function tidy_size(part)
    part = part:gsub("_", ".")
    if part:find "%d$" then
        part = part:sub(1, -3) .. "." .. part:sub(-1) .. part:sub(-2, -2)
    end
    if part:find "%d[kmbt]$" then
        part = part:sub(1, -2) .. part:sub(-1):upper()
    end
    return part
end

local THOUSANDS = { K = 1, M = 2, B = 3, T = 4 }

--- Whether a size in a name is too far from the number of parameters to be one ("32k" is a context length).
local function implausible(part, parameters)
    local number, unit = tonumber(part:sub(1, -2)), THOUSANDS[part:sub(-1)]
    if not number or not unit or parameters == 0 then
        return false
    end
    return math.abs(number * 1000 ^ unit - parameters) > math.floor(7 * parameters / 8)
end

--- What one part of a name is: version, format, size, finetune, or nil; and the part as it is written on.
local function kind_of(part, first, parameters)
    if is(VERSION, part) then
        return "version", part
    elseif is(FORMAT, part) then
        return "format", part:upper()
    elseif not first and is(SIZE, part) then
        part = tidy_size(part)
        if implausible(part, parameters) then
            return "finetune", part:sub(1, -2) .. part:sub(-1):lower()
        end
        return "size", part
    elseif not first and is(TUNED, part) then
        return "finetune", part
    end
    return nil, part
end

local function parts_of(name, parameters)
    local parts, numbered = {}, false
    for text in name:gmatch "[^-]+" do
        local kind, written = kind_of(text, #parts == 0, parameters)
        parts[#parts + 1] = { text = written, kind = kind }
        numbered = numbered or kind == "size" and written:find "%d" ~= nil
    end
    for _, p in ipairs(parts) do -- "mini" is no size beside a size in numbers
        if numbered and p.kind == "size" and not p.text:find "%A" then
            p.kind = nil
        end
    end
    return parts
end

--- Words at the start are the base name, and versions among them; what is left of the words is the fine-tune.
local function find_base(parts)
    local start = true
    for _, p in ipairs(parts) do
        if start and (p.kind == nil and p.text:find "^%a" or p.kind == "version") then
            p.base = true
        else
            start = false
            p.kind = p.kind or "finetune"
        end
    end
    for i = #parts, 1, -1 do -- a version at the very end is not part of the base name
        if not (parts[i].base and parts[i].kind) then
            break
        end
        parts[i].base = nil
    end
end

local function join(parts, wanted, once)
    local list, seen = {}, {}
    for _, p in ipairs(parts) do
        if wanted(p) and not (once and seen[p.text]) then
            list[#list + 1], seen[p.text] = p.text, true
        end
    end
    return #list > 0 and table.concat(list, "-") or nil
end

--- Takes a model's id apart.
---@param id string "org/name", or a name
---@param parameters number of the model, 0 when unknown
---@return table {name, organization, basename, finetune, version, size_label}, each maybe nil
function card.name_parts(id, parameters)
    if id:find " " then
        return { name = id } -- a sentence, not an id
    end
    local organization, name = id:match "^([^/]*)/(.*)$"
    name = name or id
    if organization and organization:find "^%." then
        organization = nil
    end
    local parts = parts_of(name, parameters)
    find_base(parts)
    local found = {
        name = name, organization = organization,
        finetune = join(parts, function(p) return p.kind == "finetune" end),
        version = join(parts, function(p) return p.kind == "version" and not p.base end),
        size_label = join(parts, function(p) return p.kind == "size" end, true),
    }
    if found.size_label or found.finetune or found.version then
        found.basename = join(parts, function(p) return p.base end)
    end
    return found
end

--- "my-model-v2" -> "My Model v2": capitals for words that have none, unless they are versions or numbers.
---@param name string
---@return string
function card.title(name)
    local words = {}
    for word in name:gsub("-", " "):gmatch "%S+" do
        local lower = word:find "%l" and not word:find "%u"
        if lower and not word:find "^%d" and not is([[v\d+(?:\.\d+)*]], word) then
            word = word:gsub("%a+", function(run) return run:sub(1, 1):upper() .. run:sub(2) end)
        end
        words[#words + 1] = word
    end
    return table.concat(words, " ")
end

--- "293M", "1.5B": at least two digits.
---@param parameters number
---@return string
function card.size_label(parameters)
    local scaled, unit = parameters * 1e-3, "K"
    if parameters > 1e12 then
        scaled, unit = parameters * 1e-12, "T"
    elseif parameters > 1e9 then
        scaled, unit = parameters * 1e-9, "B"
    elseif parameters > 1e6 then
        scaled, unit = parameters * 1e-6, "M"
    end
    local whole = ("%.0f"):format(scaled):gsub("^0+", "")
    return ("%." .. math.max(2 - #whole, 0) .. "f%s"):format(scaled, unit)
end

-- ---- general.* -----------------------------------------------------------------------------------

-- card key -> general key, first come first served
local CARD_KEYS = {
    { "name", "name" }, { "author", "author" }, { "version", "version" }, { "organization", "organization" },
    { "description", "description" }, { "finetune", "finetune" }, { "basename", "basename" },
    { "size_label", "size_label" }, { "url", "source.url" }, { "doi", "source.doi" },
    { "uuid", "source.uuid" }, { "repo_url", "source.repo_url" },
    { "model_name", "name" }, { "model_author", "author" }, { "model_version", "version" },
    { "model_organization", "organization" }, { "model_description", "description" },
    { "model_finetune", "finetune" }, { "model_basename", "basename" }, { "model_size_label", "size_label" },
    { "model_url", "source.url" }, { "model_doi", "source.doi" }, { "model_uuid", "source.uuid" },
    { "model_repo_url", "source.repo_url" }, { "model_creator", "author" }, { "model_type", "basename" },
    { "license", "license" }, { "license_name", "license.name" }, { "license_link", "license.link" },
}

local LISTS = {
    base_model = { "base_model", "base_models", "base_model_sources" },
    dataset = { "datasets", "dataset", "dataset_sources" },
}

local function as_list(value)
    return type(value) == "table" and value or { value }
end

--- A model or data set that the card refers to, by id or by address.
local function reference(id, parameters)
    local address = id:match "^https?://.*" or id:match "^ssh://.*"
    local hub = address and address:match "^https?://huggingface%.co/([^/]+/[^/]+)$"
    if address and not hub then
        return { repo_url = address }
    end
    local found = card.name_parts(hub or id, parameters)
    local organization = found.organization
    if organization and not address then
        address = ("https://huggingface.co/%s/%s"):format(organization, found.name)
    end
    return { name = card.title(found.name), version = found.version,
             organization = organization and card.title(organization), repo_url = address }
end

local function append_all(list, value)
    for _, item in ipairs(value ~= nil and as_list(value) or {}) do
        list[#list + 1] = item
    end
end

local function from_card(general, fields, parameters)
    for _, row in ipairs(CARD_KEYS) do
        if general[row[2]] == nil then
            local value = fields[row[1]]
            general[row[2]] = type(value) == "table" and table.concat(value, ",") or value
        end
    end
    for what, keys in pairs(LISTS) do
        for _, key in ipairs(keys) do
            if fields[key] ~= nil and not general[what] then
                general[what] = {}
                for i, id in ipairs(as_list(fields[key])) do
                    general[what][i] = reference(id, parameters)
                end
            end
        end
    end
    general.tags, general.languages = {}, {}
    append_all(general.tags, fields.tags)
    append_all(general.tags, fields.pipeline_tag)
    append_all(general.languages, fields.languages)
    append_all(general.languages, fields.language)
end

local function from_id(general, id, parameters)
    local found = card.name_parts(id, parameters)
    found.name = found.name and card.title(found.name)
    found.organization = found.organization and card.title(found.organization)
    for key, value in pairs(found) do
        if general[key] == nil then
            general[key] = value
        end
    end
end

--- Everything the folder says about its model.
---
--- options: card = text of README.md or nil, name_or_path = config.json's _name_or_path, folder = the
--- folder's own name, parameters, name = overrides all.
---@param options table
---@return table general by key without "general."; base_model, dataset, tags, languages are lists
---@return string[] notes what the card says that could not be read
function card.general(options)
    local general, notes = {}, {}
    local fields, unread = card.parse(options.card or "")
    from_card(general, fields, options.parameters)
    local known = { tags = true, pipeline_tag = true, language = true, languages = true }
    for _, row in ipairs(CARD_KEYS) do
        known[row[1]] = true
    end
    for _, keys in pairs(LISTS) do
        for _, key in ipairs(keys) do
            known[key] = true
        end
    end
    for key, is_unread in pairs(unread) do
        if is_unread and known[key] then
            notes[#notes + 1] = ("README.md: '%s' is no plain value or list, and was left out"):format(key)
        end
    end
    table.sort(notes)
    local path = options.name_or_path
    if type(path) == "string" and not path:find "/.*/" then
        from_id(general, path, options.parameters)
    end
    from_id(general, options.folder, options.parameters)
    general.name = options.name or general.name or options.folder
    return general, notes
end

return card
