--- Embeddings: the input embedding and the output head, which may be one tensor.
--
-- An adapter may change either or both.  peft merges into the shared tensor and so changes the side that was
-- not trained as well (huggingface/peft#2018); here a model whose sides end up different is untied instead.
-- Two things follow from how peft trains:
--   * parameters saved without training (X.base_layer.weight, a resized vocabulary) are the shared tensor's;
--   * trained token rows of the input embedding are the head's too.
local core = require "qmoon.core"
local actions = require "qmoon.lora.actions"
local keys = require "qmoon.lora.keys"
local reading = require "qmoon.source.reading"

local Pair = {}
Pair.__index = Pair

local INPUT = { embed_tokens = true, wte = true, embed_in = true, word_embeddings = true }
local HEAD = { lm_head = true, embed_out = true }

local function find_module(tensors, names)
    for _, t in ipairs(tensors) do
        if #t.shape == 2 and names[t.name:match "([^.]+)%.weight$"] then
            return t.name
        end
    end
end

local function tie_flag(config)
    local text = type(config.text_config) == "table" and config.text_config or {}
    if config.tie_word_embeddings ~= nil then
        return config.tie_word_embeddings
    end
    return text.tie_word_embeddings
end

--- Finds both sides among the base's tensors.
---@param model {tensors:table[], config:table}
function Pair.of(model)
    local input, head = find_module(model.tensors, INPUT), find_module(model.tensors, HEAD)
    local flag = tie_flag(model.config)
    return setmetatable({
        input = input,
        head = head or (input and (input:match "^language_model%." or "") .. "lm_head.weight"),
        head_stored = head ~= nil, -- also when tied: some checkpoints hold the tensor twice
        tied = input ~= nil and (flag == true or (head == nil and flag ~= false)),
    }, Pair)
end

--- Is this base tensor the input embedding?
function Pair:is_input(base)
    return base ~= nil and base.name == self.input
end

--- Is this base tensor the head?  When tied, a head is known by its module's name: there is no tensor.
function Pair:is_head(base, module)
    if base then
        return base.name == self.head
    end
    return self.tied and module ~= nil and HEAD[module:match "[^.]+$"] or false
end

local function is_touched(s)
    return s ~= nil and (s.own.weight or s.A or s.rows) ~= nil
end

--- Same values, one stored as the other's transpose?
local function same_transposed(a, b)
    if a.dtype ~= b.dtype or a.shape[1] ~= b.shape[2] or a.shape[2] ~= b.shape[1] then
        return false
    end
    local rows, cols = a.shape[1], a.shape[2]
    local size = a.size / (rows * cols)
    local x, y = reading.bytes(a), reading.bytes(b)
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

--- Do both sides hold the same update?
local function same_update(adapter, input, head)
    return input and head and input.embedding and head.A and not head.embedding
        and not (input.magnitude or head.magnitude) and input.scaling.scale == head.scaling.scale
        and same_transposed(input.A, head.B) and same_transposed(input.B, head.A)
end

--- What the adapter saved of the shared tensor: one tensor, maybe under both names, for both sides.
local function saved_base(adapter, input, head)
    local a, b = input and input.saved.weight, head and head.saved.weight
    if a and b and not keys.same_bytes(adapter, a, b) then
        return a, b -- it was trained on an untied model
    end
    return a or b, a or b
end

--- What one side starts from: its own trained copy, or what was saved of the base; nil is the base itself.
local function start_of(s, saved)
    return s and s.own.weight or saved
end

--- Are both sides the same afterwards?  (With ensure_weight_tying peft trains one and saves it twice.)
local function stays_tied(adapter, input, head, input_saved, head_saved)
    local a, b = start_of(input, input_saved), start_of(head, head_saved)
    if a ~= b and not (a and b and keys.same_bytes(adapter, a, b)) or head and head.rows then
        return false
    elseif input and input.A or head and head.A then
        return same_update(adapter, input, head)
    end
    return true
end

local function use_all(ctx, s)
    for _, t in pairs { s and s.own.weight, s and s.saved.weight, s and s.A, s and s.B } do
        if not ctx.used[t] then
            ctx:use(t)
        end
    end
end

--- Both sides have one row a token.
local function check_vocabulary(ctx, input_shape, head_shape)
    local before = ctx.index[ctx.pair.input].shape[1]
    if input_shape[1] ~= head_shape[1] then
        core.fail("fail", "%s: with this adapter the vocabulary is %d in the input embedding and %d in the "
            .. "head; save it with both (save_embedding_layers=True)", ctx.adapter.path, input_shape[1],
            head_shape[1])
    elseif input_shape[1] ~= before then
        ctx.plan.config.vocab_size = input_shape[1]
        ctx:notice("vocabulary resized from %d to %d by the adapter's embeddings; use the tokenizer that "
            .. "belongs to the adapter", before, input_shape[1])
    end
end

local function side(ctx, s, base, saved)
    return actions.weight(ctx, s, base, start_of(s, saved))
end

local function keep_tied(ctx, base, input, head, saved)
    local list, shape = side(ctx, input, base, saved)
    ctx.plan.actions[base.name] = #list > 0 and list or nil
    if ctx.pair.head_stored then
        ctx.plan.actions[ctx.pair.head] = #list > 0 and list or nil
    end
    if head and head.A then
        ctx.plan.pairs = ctx.plan.pairs + 1
        ctx:notice("embeddings stay tied: the adapter holds the same update for both")
    end
    check_vocabulary(ctx, shape, shape)
end

local function untie(ctx, base, input, head, input_saved, head_saved)
    local list, shape = side(ctx, input, base, input_saved)
    ctx.plan.actions[base.name] = #list > 0 and list or nil
    local head_list, head_shape = side(ctx, head, base, head_saved)
    if ctx.pair.head_stored then
        ctx.plan.actions[ctx.pair.head] = #head_list > 0 and head_list or nil
    else
        table.insert(ctx.plan.extra, { name = ctx.pair.head, source = base.name, actions = head_list })
    end
    ctx.plan.config.tie_word_embeddings = false
    local which = "both sides, differently"
    if input_saved == head_saved and not is_touched(head) then
        which = "the input embedding only"
    elseif input_saved == head_saved and not is_touched(input) then
        which = "the output head only"
    end
    ctx:notice("embeddings untied: the adapter changes %s; %s is written on its own and tie_word_embeddings "
        .. "becomes false", which, ctx.pair.head)
    check_vocabulary(ctx, shape, head_shape)
end

--- Plans the one tensor that stands for two modules.
---@param input qmoon.lora.site?
---@param head qmoon.lora.site?
function Pair:plan(ctx, input, head)
    local base = ctx.index[self.input]
    local input_saved, head_saved = saved_base(ctx.adapter, input, head)
    if stays_tied(ctx.adapter, input, head, input_saved, head_saved) then
        keep_tied(ctx, base, input, head, input_saved)
    else
        untie(ctx, base, input, head, input_saved, head_saved)
    end
    use_all(ctx, input)
    use_all(ctx, head)
end

--- Embeddings that are two tensors still share the size of the vocabulary.
function Pair:check_sizes(ctx)
    local function shape_of(name)
        local first = (ctx.plan.actions[name] or {})[1]
        return first and first.kind == "replace" and first.tensor.shape or ctx.index[name].shape
    end
    if self.input and self.head_stored then
        check_vocabulary(ctx, shape_of(self.input), shape_of(self.head))
    end
end

return Pair
