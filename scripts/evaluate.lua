-- evaluate: accuracy on multiple-choice or classification documents, and what one costs.  The format and the scoring are in
-- qmoon.evaluate.

local cli = require "qmoon.cli"
local evaluate = require "qmoon.evaluate"
local files = require "qmoon.files"
local json = require "qmoon.json"
local running = require "qmoon.running"

local o = cli.parse({
    name = "evaluate",
    doc = "Labels documents with the likeliest of their choices: accuracy, time and tokens per document, and with a reference\n"
        .. "how many labels change. A document is a line such as\n"
        .. '{"prompt": "The sky is", "choices": [" blue", " green"], "answer": 0}',
    arguments = { { "MODEL", doc = running.MODEL } },
    options = running.options {
        { "tasks", kind = "text", value = "FILE", required = true, doc = "documents, one JSON object a line" },
        { "choices", kind = "text", value = "A|B|C", doc = "labels of all documents, with the blank before them if they need one" },
        { "template", kind = "text", value = "TEXT", doc = "the prompt made from a document's fields: '{text}\\nSentiment:'" },
        { "documents", kind = "integer", value = "N", doc = "the first N (default: all)" },
        { "reference", kind = "text", value = "MODEL", doc = "count labels that differ from this model's" },
        { "json", doc = "one object, with every label" },
    },
    examples = [[
  qmoon evaluate model-int4 --tasks arc.jsonl --reference merged-fp16
  qmoon evaluate model --tasks reviews.jsonl --template '{text}\nSentiment:' --choices ' negative| positive']],
}, { ... })
if not o then
    return 0
end

local choices
for word in (o.choices or ""):gmatch "[^|]+" do
    choices = choices or {}
    choices[#choices + 1] = word
end
local documents = evaluate.documents(files.read(o.tasks), o.tasks, {
    choices = choices, template = o.template and o.template:gsub("\\n", "\n") or nil, most = o.documents })

local function run(path, adapter, load)
    local lm = running.load(path, setmetatable({ adapter = adapter or false, load = load or false }, { __index = o }))
    local step, finish = running.progress("evaluate " .. path:match "[^/]*$")
    local ok, r = pcall(evaluate.run, lm, documents, { progress = step })
    finish()
    return ok and r or error(r, 0)
end

local r = run(o[1], o.adapter, o.load)
local reference = o.reference and run(o.reference)
if reference then
    r.label_changes, r.reference_accuracy = evaluate.changes(r, reference), reference.accuracy
    r.reference_labels = json.array(reference.labels)
    r.reference_seconds_per_document = reference.seconds_per_document
end
if o.json then
    r.labels, r.scores = json.array(r.labels), json.array(r.scores)
    r.accuracy_interval = r.accuracy_interval and json.array(r.accuracy_interval)
    print(json.encode(r, { indent = 2 }))
    return 0
end
if r.accuracy then
    print((" accuracy %.2f %% (95 %% interval %.2f to %.2f %%) · normalised by length %.2f %% · %d documents"):format(
        100 * r.accuracy, 100 * r.accuracy_interval[1], 100 * r.accuracy_interval[2], 100 * r.accuracy_normalised, r.answered))
end
if reference then
    print((" labels   %d of %d differ from the reference's%s"):format(r.label_changes, r.documents, reference.accuracy
        and (" (accuracy %.2f %%)"):format(100 * reference.accuracy) or ""))
end
print((" cost     %.4g s and %.4g tokens a document"):format(r.seconds_per_document, r.tokens_per_document))
