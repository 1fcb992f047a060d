-- support: what test files share.  Loaded with dofile "tests/lua/support.lua".

local core = require "qmoon.core"

local support = {}

local counter, roots = 0, {}

support.sweeper = newproxy(true) -- collected when the run ends
getmetatable(support.sweeper).__gc = function()
    for _, root in pairs(roots) do
        pcall(core.remove_tree, root)
    end
end

--- A new folder that does not exist yet, under one scratch folder of this run.
---@param base string? where that is to be, rather than in /tmp
function support.scratch(base)
    base = base or "/tmp"
    if not roots[base] then
        local pipe = io.popen(("mktemp -d %s/qmoon-test-XXXXXX"):format(base))
        roots[base] = pipe:read "*l"
        pipe:close()
    end
    counter = counter + 1
    return ("%s/%d"):format(roots[base], counter)
end

function support.read(path)
    local f = assert(io.open(path, "rb"))
    local s = f:read "*a"
    f:close()
    return s
end

function support.write(path, bytes)
    local f = assert(io.open(path, "wb"))
    f:write(bytes)
    f:close()
end

--- Copies a folder of plain files, and returns the copy.
function support.copy(dir)
    local to = support.scratch()
    core.mkdir(to)
    for _, name in ipairs(core.list(dir)) do
        support.write(to .. "/" .. name, support.read(dir .. "/" .. name))
    end
    return to
end

--- Every file under a folder: relative name -> bytes; and "name/" for a folder that is empty.
function support.tree(dir, into, prefix)
    into, prefix = into or {}, prefix or ""
    local names = core.list(dir)
    for _, name in ipairs(names) do
        local path = dir .. "/" .. name
        if core.stat(path).type == "dir" then
            support.tree(path, into, prefix .. name .. "/")
        else
            into[prefix .. name] = support.read(path)
        end
    end
    if #names == 0 and prefix ~= "" then
        into[prefix] = ""
    end
    return into
end

--- The error object that fn raises; fails when it raises none, or another kind, or does not say `text`.
function support.raises(kind, text, fn, ...)
    local ok, e = pcall(fn, ...)
    assert(not ok, "no error was raised")
    assert(type(e) == "table" and e.message, "not an error object: " .. tostring(e))
    assert(e.kind == kind, ("kind is %s, not %s: %s"):format(e.kind, kind, e.message))
    for _, part in ipairs(type(text) == "table" and text or { text }) do
        assert(e.message:find(part, 1, true), ("'%s' is not in: %s"):format(part, e.message))
    end
    assert(not e.message:find "\n", "more than one line: " .. e.message)
    return e
end

--- Runs the program; returns exit status and what it printed, both streams together.
function support.run(args, input)
    local program = arg[-1]
    local out, from = os.tmpname(), input and os.tmpname() or "/dev/null"
    if input then
        support.write(from, input)
    end
    local status = os.execute(("%s %s >%s 2>&1 <%s"):format(program, args, out, from))
    if input then
        os.remove(from)
    end
    local text = support.read(out)
    os.remove(out)
    return status > 255 and math.floor(status / 256) or status, text
end

--- Equal, or an error that shows both.
function support.equal(a, b, what)
    if a ~= b then
        error(("%s: %s is not %s"):format(what or "value", tostring(a), tostring(b)), 2)
    end
end

--- A synthetic qwen2 checkpoint of these dimensions, embeddings tied, in a new folder; returns it.
---@param d {hidden:integer, ffn:integer, layers:integer, heads:integer, kv:integer, vocab:integer}
function support.qwen2(d)
    local size = { model_type = "qwen2", architectures = { "Qwen2ForCausalLM" }, pre = "qwen2", hidden_size = d.hidden,
                   intermediate_size = d.ffn, num_hidden_layers = d.layers, num_attention_heads = d.heads,
                   num_key_value_heads = d.kv, vocab_size = d.vocab, tie_word_embeddings = true,
                   max_position_embeddings = 1024, rope_theta = 1e6, rms_norm_eps = 1e-6 }
    local dir = support.scratch()
    require("qmoon.synth").model(size, dir, { seed = 3 })
    return dir
end

return support
