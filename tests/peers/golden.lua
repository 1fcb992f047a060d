--- golden.lua MODELS GOLDEN TEXT [--exact] [--device cuda:0] [--only PATTERN]: models run here, held to what transformers and
--- bitsandbytes computed with them: logits, greedy text, perplexities.
--
--   qmoon tests/peers/golden.lua ../shared/models ../shared/golden ../shared/text
--
-- MODELS has tiny-qwen2, small-qwen2, their adapters and small-mixtral; what is not there is left out, and that is said.
-- GOLDEN has a JSON file for each case: `prompts` (ids, greedy, last_logits_top10) and perplexities, made with windows of
-- 512 over the first 65536 tokens. 16-bit models: logits within 1e-2 (the golden ones are TF32's), perplexity within
-- 0.05 %; bitsandbytes' formats, whose CUDA kernels round otherwise: perplexity within 0.3 %.

local core = require "qmoon.core"
local qm = require "qmoon"
local files = require "qmoon.files"
local perplexity = require "qmoon.perplexity"
local support = dofile "tests/lua/support.lua"

local TOKENS, NEAR = 65536, 1e-2
local models, golden, texts = arg[1], arg[2], arg[3]
local exact, device, only
for i = 4, #arg do
    exact = exact or arg[i] == "--exact"
    device = arg[i - 1] == "--device" and arg[i] or device
    only = arg[i - 1] == "--only" and arg[i] or only
end

local CASES = {
    { "tiny-qwen2", json = "tiny/qwen2-base" },
    { "tiny-qwen2", "tiny-adapter", json = "tiny/qwen2+adapter-fp16", ppl = { shakespeare = 50.455, wiki = 72.845 } },
    { "tiny-qwen2", "tiny-adapter", json = "tiny/bnb-int8", to = { format = "int8" } },
    { "tiny-qwen2", "tiny-adapter", json = "tiny/bnb-nf4", to = { format = "nf4" } },
    { "tiny-qwen2", "tiny-adapter", json = "tiny/bnb-nf4-dq", to = { format = "nf4", double_quant = true } },
    { "tiny-qwen2", "tiny-adapter", json = "tiny/bnb-fp4", to = { format = "fp4" } },
    { "small-qwen2", json = "small/qwen2-base" },
    { "small-qwen2", "small-adapter", json = "small/qwen2+adapter-fp16", ppl = { shakespeare = 70.019, wiki = 119.403 } },
    { "small-qwen2", "small-adapter", json = "small/bnb-nf4-dq", to = { format = "nf4", double_quant = true } },
    { "small-qwen2", "small-adapter", ppl = { shakespeare = 70.15, wiki = 119.68 }, to = { format = "int8" } },
    { "small-qwen2", "small-adapter", ppl = { shakespeare = 75.76, wiki = 125.97 }, to = { format = "fp4" } },
    { "small-mixtral", json = "mixtral-base" },
}

local passed, failed = 0, 0
local function check(what, ok, figure)
    passed, failed = passed + (ok and 1 or 0), failed + (ok and 0 or 1)
    print(("%s %-52s %s"):format(ok and "ok  " or "FAIL", what, figure))
end

local function logits_agree(name, lm, prompts)
    local worst, near_ties, wrong = 0, 0, 0
    for _, p in ipairs(prompts) do
        local logits = lm:forward(p.ids):values()
        for _, top in ipairs(p.last_logits_top10) do
            worst = math.max(worst, math.abs(logits[top[1] + 1] - top[2]))
        end
        -- token by token after the golden text, so that one near-tie does not hide what comes after it
        local ids = { unpack(p.ids) }
        for _, id in ipairs(p.greedy) do
            local row, best = lm:forward(ids):values(), 1
            for i = 2, #row do
                best = row[i] > row[best] and i or best
            end
            if best ~= id + 1 then
                near_ties = near_ties + 1
                wrong = wrong + (row[best] - row[id + 1] > NEAR and 1 or 0)
            end
            ids[#ids + 1] = id
        end
    end
    check(name .. ": logits", worst <= NEAR, ("largest difference %.1e"):format(worst))
    check(name .. ": greedy text", wrong == 0, ("%d other tokens, %d of them no near-ties"):format(near_ties, wrong))
end

local function perplexity_agrees(name, lm, text, expected, bound)
    local ids = lm.tokenizer:encode(files.read(("%s/%s-test.txt"):format(texts, text)), { bos = false, special = false })
    for i = #ids, TOKENS + 1, -1 do
        ids[i] = nil
    end
    local ppl = perplexity.measure({ lm }, ids, { window = 512 })[1].ppl
    local off = ppl / expected - 1
    check(("%s: perplexity, %s"):format(name, text), math.abs(off) <= bound, ("%.4f, %+.4f %%"):format(ppl, 100 * off))
end

local function run(case)
    local source = qm.open(models .. "/" .. case[1])
    source = case[2] and source:merge(models .. "/" .. case[2]) or source
    local path = support.scratch()
    if case.to or case[2] then
        local to = case.to or { format = "f16" }
        qm.write(source, { { path, format = to.format, double_quant = to.double_quant } }, { round = "f16" })
    else
        path = models .. "/" .. case[1]
    end
    local lm = qm.load(path, { exact = exact, device = device and qm.cuda(tonumber(device:match "%d+$")) })
    local name = case.json or ("%s, %s"):format(case[1], case.to.format)
    local told = case.json and core.json_decode(files.read(("%s/%s.json"):format(golden, case.json)), case.json) or {}
    if told.prompts and not case.to then
        logits_agree(name, lm, told.prompts)
    end
    for _, text in ipairs { "shakespeare", "wiki" } do
        local stored = told["ppl_" .. text] or told["ppl_" .. text .. "_test_512"]
        local expected = case.ppl and case.ppl[text] or type(stored) == "table" and stored[1] or stored
        if expected then
            perplexity_agrees(name, lm, text, expected, case.to and 3e-3 or 5e-4)
        end
    end
end

for _, case in ipairs(CASES) do
    local name = case.json or case[1] .. " " .. case.to.format
    if not only or name:find(only) then
        if files.exists(models .. "/" .. case[1]) and (not case[2] or files.exists(models .. "/" .. case[2])) then
            run(case)
        else
            print("     " .. name .. ": no such models here, left out")
        end
    end
end
print(("%d passed, %d failed"):format(passed, failed))
os.exit(failed == 0 and 0 or 1)
