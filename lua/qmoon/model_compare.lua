--- Two models, tensor by tensor: how far apart their values are, and whether one is what the other was made into.
--
-- Either may be a folder, a GGUF file or a single file, of any formats.  Both are streamed side by side in chunks.

local core = require "qmoon.core"
local explore = require "qmoon.explore"
local reading = require "qmoon.source.reading"
local result = require "qmoon.result"
local tensor = require "qmoon.tensor"
local text = require "qmoon.text"
local write = require "qmoon.write"

local model_compare = {}

local FLOATS = { f32 = true, f16 = true, bf16 = true }

-- ---- which tensors go together ----------------------------------------------------------------------------------------

-- Items under the names that both models have: a checkpoint's, unless both are GGUF files.
local function items_of(model, other)
    if model.kind == "gguf" and other.kind ~= "gguf" then
        return require("qmoon.gguf_model").items(model.gguf, model.path, model.items) or model.items
    end
    return model.items
end

local function name_of(item, both_gguf)
    return both_gguf and item.gguf_name or item.name
end

local function is_tied(model)
    return model.config and model.config.fields.tie_word_embeddings or false
end

--- Items of the same name, and those that only one of them has.
---@return {name:string, a:qmoon.Item, b:qmoon.Item}[] pairs
---@return string[] only_a
---@return string[] only_b
local function aligned(a, b)
    local both = a.kind == "gguf" and b.kind == "gguf"
    local of_b, pairs_, only_a, only_b, seen = {}, {}, {}, {}, {}
    local list_b = items_of(b, a)
    for _, item in ipairs(list_b) do
        of_b[name_of(item, both)] = item
    end
    for _, item in ipairs(items_of(a, b)) do
        local name = name_of(item, both)
        if of_b[name] then
            pairs_[#pairs_ + 1] = { name = name, a = item, b = of_b[name] }
            seen[name] = true
        else
            only_a[#only_a + 1] = name
        end
    end
    for _, item in ipairs(list_b) do
        local name = name_of(item, both)
        if not seen[name] then
            only_b[#only_b + 1] = name
        end
    end
    return pairs_, only_a, only_b
end

local function type_of(piece)
    local item = piece.part_of or piece
    return item.type_name or item.source.quantised or item.source.dtype
end

-- ---- one pair ------------------------------------------------------------------------------------------------------------

local function same_shape(a, b)
    return table.concat(a.shape, "x") == table.concat(b.shape, "x")
end

-- Both as rows of the same length: a bias that is cut by heads is a column there and a row here.
local function conform(source, other)
    if source.rows ~= other.rows and source.rows * source.cols == other.rows * other.cols then
        source.rows, source.cols = other.rows, other.cols
    end
    return source
end

local function plain_equal(pair)
    local a, b = reading.bytes(pair.a.source), reading.bytes(pair.b.source)
    local n = #a
    return { n = n, xx = 1, yy = 1, xy = 1, dd = a == b and 0 or math.huge, d = 0, max_d = a == b and 0 or math.huge, max_x = 1 },
        { beyond = a == b and 0 or 1, nonfinite = 0 }
end

-- Formats that are not streamed are decoded whole.
local function whole(pair)
    local a, b = core.view(pair.a.source.file, pair.a.source), core.view(pair.b.source.file, pair.b.source)
    local s = b:stats()
    return a:errors(b), { beyond = 0, nonfinite = s.nan + s.inf }
end

local function is_whole(item)
    return item.source.format == "nvfp4"
end

-- Sums of b's values against a's, and how many are beyond what b's format allows.
local function measure(pair, pool, slack)
    local a, b = pair.a, pair.b
    if not a.source.format or not b.source.format then
        return plain_equal(pair)
    elseif (is_whole(a) or is_whole(b)) and #a.actions == 0 then
        return whole(pair)
    end
    local half = a.source.dtype
    local group = { slice = a.slice, round = #a.actions > 0 and (half == "f16" or half == "bf16") and half or "none" }
    local steps, source = write.steps_of(nil, a.part_of or a, group, pool)
    local against = reading.of((b.part_of or b).source, b.slice)
    if a.slice then
        conform(against, source)
    else
        conform(source, against)
    end
    against.add, against.slack = (a.add or 0) - (b.add or 0), slack
    local ok, out = pcall(core.stream, pool, { source = source, steps = steps, round = group.round, errors = false, measure = true,
        keep_nonfinite = true, sinks = {}, against = against })
    write.close_steps(steps)
    if not ok then
        error(out, 0)
    end
    a.source.file:release()
    b.source.file:release()
    return out.against.error, out.against
end

local function each(a, b, title, use)
    local pairs_, only_a, only_b = aligned(a, b)
    local step, finish = require("qmoon.progress").new(title)
    local pool = core.pool(core.cpus())
    local _, total = b:size()
    local done = 0
    local ok, e = pcall(function()
        for i, pair in ipairs(pairs_) do
            if core.interrupted() then
                core.fail("interrupt", "interrupted")
            end
            step { tensor = pair.name, index = i, tensors = #pairs_, bytes = math.min(done, total), total = total }
            use(pair, pool)
            done = done + pair.b.source.size
        end
    end)
    finish()
    pool:close()
    if not ok then
        error(e, 0)
    end
    return pairs_, only_a, only_b
end

-- ---- comparing -----------------------------------------------------------------------------------------------------------

local COLUMNS = explore.columns { { key = "tensor", title = "tensor", short = explore.short_name }, { key = "a", title = "A" },
                                  { key = "b", title = "B" }, { key = "values", title = "values", form = "%.0f", wide = true } }

local function some(names)
    return table.concat(names, ", ", 1, math.min(3, #names)) .. (#names > 3 and (", and %d more"):format(#names - 3) or "")
end

--- The comparison behind qm.compare_models and `qmoon compare`.
---@param a qmoon.Model
---@param b qmoon.Model
---@return qmoon.Result result
---@return table total figures of all tensors
---@return string[] only_a
---@return string[] only_b
---@return table[] shapes that differ: {tensor, a, b}
function model_compare.compare(a, b)
    local rows, total, differ = {}, { n = 0, xx = 0, yy = 0, xy = 0, dd = 0, d = 0, max_d = 0 }, {}
    local pairs_, only_a, only_b = each(a, b, "compare", function(pair, pool)
        if not same_shape(pair.a, pair.b) then
            differ[#differ + 1] = { tensor = pair.name, a = text.shape(pair.a.shape), b = text.shape(pair.b.shape) }
            return
        end
        local sums = measure(pair, pool, 1)
        local row = tensor.figures(sums)
        row.tensor, row.a, row.b, row.values = pair.name, type_of(pair.a), type_of(pair.b), sums.n
        rows[#rows + 1] = row
        for key, value in pairs(sums) do
            total[key] = key:find "^max" and math.max(total[key] or 0, value) or (total[key] or 0) + value
        end
    end)
    local figures = tensor.figures(total)
    local words = { ("%d tensors"):format(#pairs_ - #differ), text.count(total.n) .. " values",
                    figures.sqnr == math.huge and "all the same" or ("SQNR %.2f dB"):format(figures.sqnr) }
    for _, only in ipairs { { only_a, "A" }, { only_b, "B" } } do
        words[#words + 1] = #only[1] > 0 and ("only in %s: %s"):format(only[2], some(only[1])) or nil
    end
    for _, d in ipairs(differ) do
        words[#words + 1] = ("%s is %s in A and %s in B"):format(d.tensor, d.a, d.b)
    end
    local r = result.new(COLUMNS, rows, { key = "sqnr", note = table.concat(words, " · ") })
    return r:sort "sqnr", figures, only_a, only_b, differ
end

-- ---- verifying ------------------------------------------------------------------------------------------------------------

local SMALL = { "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt" }

-- Tokenizer files that both folders have must be the same; returns problems and what was found.
local function check_tokenizer(out, source)
    local problems, seen = {}, 0
    if out.kind == "folder" and source.kind == "folder" then
        for _, name in ipairs(SMALL) do
            local a, b = source.path .. "/" .. name, out.path .. "/" .. name
            if core.stat(a) then
                local files = require "qmoon.files"
                if not core.stat(b) then
                    problems[#problems + 1] = ("%s is missing"):format(name)
                elseif files.read(a) ~= files.read(b) then
                    problems[#problems + 1] = ("%s is not the source's"):format(name)
                else
                    seen = seen + 1
                end
            end
        end
    end
    return problems, seen > 0 and #problems == 0 and "tokenizer identical" or nil
end

-- Tensors that one side may lack: a head that is the embedding, what GGUF keeps elsewhere.
local function may_lack(name, source, out)
    local head = name == "lm_head.weight" or name == "output.weight"
    return head and (is_tied(source) or is_tied(out) or out.kind == "gguf" or source.kind == "gguf") and "the head is the embedding"
        or name:find "rope_freqs" and "computed from config.json" or name:find "rotary_emb%.inv_freq" and "computed from config.json"
end

-- An importance matrix spends the error where it matters least, so single values may be further off.
local function slack_of(out)
    for _, pair in ipairs(out.gguf and out.gguf.meta or {}) do
        if pair.key:find "^quantize%.imatrix" then
            return 2
        end
    end
    return 1
end

local function check_pair(pair, pool, slack, problems)
    if not same_shape(pair.a, pair.b) then
        problems[#problems + 1] = ("%s: %s in the source, %s here"):format(pair.name, text.shape(pair.a.shape), text.shape(pair.b.shape))
        return
    end
    local sums, check = measure(pair, pool, slack)
    if check.nonfinite > 0 then
        problems[#problems + 1] = ("%s (%s): %d values are NaN or infinite"):format(pair.name, type_of(pair.b), check.nonfinite)
    elseif check.beyond > 0 then
        problems.beyond = (problems.beyond or 0) + 1
        problems[#problems + 1] = ("%s (%s): %d of %d values are further off than the format's bound; the largest error is %.4g"):format(
            pair.name, type_of(pair.b), check.beyond, sums.n, sums.max_d)
    end
end

local function verify_against(out, source)
    local problems, left = {}, 0
    local slack = slack_of(out)
    local pairs_, only_source, only_out = each(source, out, "verify", function(pair, pool)
        check_pair(pair, pool, slack, problems)
    end)
    for _, name in ipairs(only_source) do
        if may_lack(name, source, out) then
            left = left + 1
        else
            problems[#problems + 1] = ("%s: missing"):format(name)
        end
    end
    for _, name in ipairs(only_out) do
        if not may_lack(name, source, out) then
            problems[#problems + 1] = ("%s: not in the source"):format(name)
        end
    end
    local more, tokenizer = check_tokenizer(out, source)
    for _, p in ipairs(more) do
        problems[#problems + 1] = p
    end
    return problems, #pairs_, #pairs_ + #only_source - left, tokenizer
end

-- On its own: every tensor is read, decoded, and finite.
local function verify_alone(out)
    local problems = {}
    local pool = core.pool(core.cpus())
    for _, item in ipairs(out.items) do
        if item.source.format and not is_whole(item) then
            local ok, e = pcall(core.stream, pool, { source = reading.of(item.source), sinks = {}, errors = false, measure = true })
            if not ok and (type(e) ~= "table" or e.kind == "interrupt") then
                pool:close()
                error(e, 0)
            elseif not ok then
                problems[#problems + 1] = e.message
            end
        end
    end
    pool:close()
    return problems, #out.items, #out.items
end

--- Reads a model again and checks that all of it is there: against what it was made from, or on its own.
---@param out qmoon.Model
---@param source? qmoon.Model
---@return {ok:boolean, problems:string[], tensors:integer, expected:integer, tokenizer:string?}
function model_compare.verify(out, source)
    local problems, tensors, expected, tokenizer
    if source then
        problems, tensors, expected, tokenizer = verify_against(out, source)
    else
        problems, tensors, expected = verify_alone(out)
    end
    return { ok = #problems == 0, problems = problems, tensors = tensors, expected = expected, tokenizer = tokenizer,
             beyond = problems.beyond or 0 }
end

return model_compare
