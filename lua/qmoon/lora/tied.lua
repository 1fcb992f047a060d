--- Tied embeddings: one tensor in the checkpoint that the model uses twice.
--
-- An adapter may change the input embedding, the output head, or both.  peft merges into the shared tensor and
-- so changes the side that was not trained as well (huggingface/peft#2018); here a model whose sides end up
-- different is untied instead.  Two things follow from how peft trains:
--   * parameters saved without training (X.base_layer.weight, a resized vocabulary) are the shared tensor's;
--   * trained token rows of the input embedding are the head's too.
local core = require "qmoon.core"
local keys = require "qmoon.lora.keys"

local M = {}

local INPUT = { embed_tokens = true, wte = true, embed_in = true, word_embeddings = true }
local HEAD = { lm_head = true, embed_out = true }

local function leaf(name)
    return name:match "([^.]+)%.weight$"
end

--- Finds the pair of the input embedding and the head.
---@param model table
---@return {input:string?, head:string?, head_stored:boolean, tied:boolean}
function M.find(model)
    local input, head
    for _, t in ipairs(model.tensors) do
        local name = leaf(t.name)
        if name and INPUT[name] and #t.shape == 2 and not input then
            input = t.name
        elseif name and HEAD[name] and #t.shape == 2 and not head then
            head = t.name
        end
    end
    local config = model.config
    local text = type(config.text_config) == "table" and config.text_config or {}
    local flag = config.tie_word_embeddings
    if flag == nil then
        flag = text.tie_word_embeddings
    end
    return {
        input = input,
        head = head or (input and (input:match "^language_model%." or "") .. "lm_head.weight"),
        head_stored = head ~= nil,
        tied = input ~= nil and (flag == true or (head == nil and flag ~= false)),
    }
end

--- Is `name`, as an adapter spells it, an output head?
function M.is_head(name)
    return HEAD[leaf(name) or ""] or false
end

local function is_touched(side)
    return side and (side.own.weight or side.A or side.rows) and true or false
end

--- Same values, one stored as the other's transpose.
local function same_transposed(adapter, a, b)
    if a.dtype ~= b.dtype or a.shape[1] ~= b.shape[2] or a.shape[2] ~= b.shape[1] then
        return false
    end
    local rows, cols = a.shape[1], a.shape[2]
    local size = a.size / (rows * cols)
    local x, y = adapter.file:read(a.at, a.size), adapter.file:read(b.at, b.size)
    for i = 0, rows - 1 do
        for j = 0, cols - 1 do
            local p, q = (i * cols + j) * size, (j * rows + i) * size
            if x:sub(p + 1, p + size) ~= y:sub(q + 1, q + size) then
                return false
            end
        end
    end
    return true
end

--- Were both sides trained to the same values?  (peft's ensure_weight_tying saves them twice.)
local function say_the_same(adapter, input, head)
    if input.rows or head.rows or input.magnitude or head.magnitude then
        return false
    elseif input.own.weight and head.own.weight then
        return keys.same_bytes(adapter, input.own.weight, head.own.weight)
    elseif input.A and head.A then
        return input.embedding and not head.embedding and input.scaling.scale == head.scaling.scale
            and same_transposed(adapter, input.A, head.B) and same_transposed(adapter, input.B, head.A)
    end
    return false
end

--- What was saved of the shared tensor itself: one tensor, maybe under both names.
local function shared_base(adapter, input, head)
    local a, b = input and input.saved.weight, head and head.saved.weight
    if a and b and not keys.same_bytes(adapter, a, b) then
        return a, b
    end
    return a or b, a or b
end

--- Decides what becomes of the two sides.
---@param adapter table
---@param input qmoon.lora.site?
---@param head qmoon.lora.site?
---@return boolean tied, table? input_base, table? head_base adapter tensors that replace the base, per side
function M.decide(adapter, input, head)
    local input_base, head_base = shared_base(adapter, input, head)
    local tied = input_base == head_base
    if is_touched(input) and is_touched(head) then
        tied = tied and say_the_same(adapter, input, head)
    elseif is_touched(input) then
        tied = tied and input.rows ~= nil
    elseif is_touched(head) then
        tied = false
    end
    return tied, input_base, head_base
end

--- Why the two sides parted, in words.
function M.notice(input, head)
    local which = "both embeddings, differently"
    if not is_touched(head) then
        which = "the input embedding only"
    elseif not is_touched(input) then
        which = "the output head only"
    end
    return ("embeddings untied: the adapter changes %s; lm_head is written on its own and tie_word_embeddings set to "
        .. "false"):format(which)
end

M.same_transposed = same_transposed

return M
