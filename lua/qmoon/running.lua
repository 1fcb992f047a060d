--- What the commands that run models share: options, and a model made ready by them.

local core = require "qmoon.core"
local qm = require "qmoon"
local devices = require "qmoon.devices"
local files = require "qmoon.files"
local forecast = require "qmoon.forecast"
local text = require "qmoon.text"

local running = {}

running.MODEL = "model folder (16-bit, or of bitsandbytes) or .gguf file"

---@param more table[]
---@return table[]
function running.options(more)
    local options = { unpack(more) }
    for _, o in ipairs {
        { "adapter", kind = "list", value = "DIR", doc = "peft LoRA adapters, applied unmerged" },
        { "context", kind = "integer", value = "N",
          doc = "the most tokens (default: what the model was made for)" },
        { "load", kind = "text", value = "TYPE",
          doc = "quantise linear weights while they are read: nf4, nf4:dq, int8, q4_0, int4:128 …" },
        { "kv", kind = "text", value = "TYPE", choices = { "f32", "f16", "bf16", "q8_0" },
          doc = "type of cached keys and values (default: f32, on a GPU f16)" },
        { "exact",
          doc = "compute with weights as they decode, not laid out for speed (which rounds activations, too)" },
        { "llm-int8",
          doc = "int8 weights as LLM.int8 runs them: activations in 8 bits, outlier columns in 16" },
        { "device", kind = "text", value = "D", default = "cpu",
          doc = "what computes: cpu, cuda:0 …, or auto (a GPU where there is one)" },
        { "threads", kind = "integer", value = "N",
          doc = "threads (default: all processors); results never depend on it" },
        { "verbose",
          doc = "say what memory is taken, before and after loading, and how loading goes, in a pipe too" },
    } do
        options[#options + 1] = o
    end
    return options
end

local function say(fmt, ...)
    io.stderr:write((" " .. fmt .. "\n"):format(...))
end

local HERE = "%s; computing on the CPU" -- said after the reason

--- On the GPU, or, where it does not fit and the device was left open, here.
local function load(path, options, auto)
    local ok, result = pcall(qm.load, path, options)
    if ok or not auto or not options.device or type(result) ~= "table" or result.kind ~= "nofit" then
        return ok and result or error(result, 0)
    end
    say(HERE, tostring(result))
    options.device = nil
    return qm.load(path, options)
end

--- The GPU that a command's options name, or nil; the second result: whether the choice was left open.
local function device_of(o)
    if o.beside then
        return o.beside.options.device, false
    end
    local list, why = devices.choose(o.device)
    if why then
        say(HERE, why)
    end
    return list[1], o.device == "auto"
end

--- A model made ready by a command's options.
---@param path string
---@param o table parsed options, or beside = a runner: computes where that one does
---@param expect? table|function of the runner: what is going to be done with it (see qm.load)
---@return qmoon.Runner
function running.load(path, o, expect)
    if o.threads then
        require("qmoon.ops").threads(o.threads)
    end
    local device, auto = device_of(o)
    local before, own = device and device:memory(), core.memory().own
    local started = core.now()
    local lm = load(path, { adapter = o.adapter or nil, context = o.context, kv = o.kv, llm_int8 = o.llm_int8,
                            exact = o.exact, device = device, program = not o.launches, load = o.load or nil, expect = expect,
                            progress = o.verbose, threads = o.threads }, auto)
    if o.verbose then
        say("forecast  %s", forecast.text(lm.forecast))
        if lm.options.device then
            local free, all = device:memory()
            say("taken     weights %s of the forecast's %s · %s of %s free", text.bytes(before - free),
                text.bytes(lm.forecast.weights), text.bytes(free), text.bytes(all))
        end
        if not lm.options.device then
            say("taken     %s of the forecast's %s", text.bytes(core.memory().own - own),
                text.bytes(lm.forecast.weights))
        end
        say("loaded    %s in %s", path, text.duration(core.now() - started))
    end
    return lm
end

--- A text file's tokens: all, or the first `most`.
---@param lm qmoon.Runner
---@param path string
---@param most integer?
---@param options? table of encode
---@return integer[]
function running.tokens(lm, path, most, options)
    if not core.stat(path) then
        core.fail("fail", "%s: no such text file", path)
    end
    local ids = lm.tokenizer:encode(files.read(path), options or { bos = false })
    for i = #ids, (most or #ids) + 1, -1 do
        ids[i] = nil
    end
    return ids
end

--- Progress of something counted, on stderr and only on a terminal: a function (done, of), and one to call at
--- the end.
---@param title string
---@return fun(done: integer, of: integer) step, fun() finish
function running.progress(title)
    local shown, last = core.terminal(2) and os.getenv "TERM" ~= "dumb", -math.huge
    return function(done, of)
        if shown and core.now() - last > 0.2 then
            last = core.now()
            io.stderr:write(("\r %s %d/%d\27[K"):format(title, done, of))
        end
    end, function()
        if last > 0 then
            io.stderr:write "\r\27[K"
        end
    end
end

return running
