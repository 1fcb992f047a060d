-- verify: reads a model again; exit status 3 when something is not as it should be.

local core = require "qmoon.core"
local qm = require "qmoon"
local cli = require "qmoon.cli"
local json = require "qmoon.json"
local terminal = require "qmoon.terminal"

local MOST = 20

local o = cli.parse({
    name = "verify",
    doc = "Reads a model again: every tensor is there, can be decoded and is finite; with --against, each value is within its\n"
        .. "format's bound of the source's, and the tokenizer is the same.  Exit status 3 when not.",
    arguments = { { "OUT", doc = "model folder, or .gguf, .safetensors, .bin or .pt file" } },
    options = {
        { "against", kind = "text", value = "SRC", doc = "what it was made from" },
        { "adapter", kind = "list", value = "DIR", doc = "adapters that were merged into SRC on the way" },
        { "json", doc = "for machines" },
    },
    examples = [[
  qmoon verify quantized/model-q4_0.gguf
  qmoon verify quantized/model-int4 --against Qwen2.5-1.5B --adapter adapters]],
}, { ... })
if not o then
    return 0
end

local source
if o.against then
    source = qm.open(o.against)
    for _, adapter in ipairs(o.adapter or {}) do
        source = source:merge(adapter)
    end
elseif o.adapter then
    core.fail("usage", "verify: --adapter goes with --against; see qmoon verify --help")
end
local found = require("qmoon.model_compare").verify(qm.open(o[1]), source)
if o.json then
    print(json.encode(json.object { { "schema", "qmoon-verify-1" }, { "path", o[1] }, { "against", o.against or core.null },
        { "ok", found.ok }, { "tensors", found.tensors }, { "expected", found.expected },
        { "problems", json.array(found.problems) } }, { indent = 2 }))
    return found.ok and 0 or 3
end
for i, problem in ipairs(found.problems) do
    if i <= MOST then
        print(terminal.text(" " .. problem))
    end
end
if #found.problems > MOST then
    print(terminal.text((" … %d more; --json has all"):format(#found.problems - MOST)))
end
local words = { ("%d/%d tensors"):format(found.tensors, found.expected) }
if found.ok then
    words[#words + 1] = source and "every value within its format's bound" or "all can be read"
    words[#words + 1] = "NaN/Inf 0"
end
words[#words + 1] = found.tokenizer
print(terminal.text(" verify   " .. table.concat(words, " · ")))
if not found.ok then
    local one = #found.problems == 1
    core.fail("verify", "%s: %d thing%s not as %s should be%s", o[1], #found.problems, one and " is" or "s are", one and "it" or "they",
        found.beyond > 1 and not o.adapter and "; if an adapter was merged in on the way, name it: --adapter DIR" or "")
end
