-- gguf: changes GGUF files without touching their tensors.

local cli = require "qmoon.cli"
local edit = require "qmoon.gguf_edit"
local split = require "qmoon.gguf_split"
local text = require "qmoon.text"

local FORCE = { "force", doc = "replace files that are there" }

local set = {
    name = "gguf set",
    doc = "Changes metadata. A header that keeps its size on disk is rewritten where it is; otherwise a new file is written,\n"
        .. "compared with the old one tensor by tensor, and takes its name.",
    arguments = {
        { "FILE", doc = "GGUF file" },
        { "KEY=VALUE", optional = true, many = true,
          doc = "the last words of a key will do; VALUE @NAME is read from a file; an array is a,b,c or JSON" },
    },
    options = {
        { "type", kind = "text", value = "T",
          doc = "u8 i8 … u64 i64 f32 f64 bool string, or T[] for an array (default: as it is in the file)" },
        { "remove", kind = "text", value = "KEY", many = true, doc = "take a key out" },
        { "out", kind = "text", value = "FILE", doc = "write a new file and leave the old one as it is" }, FORCE,
    },
    examples = [[
  qmoon gguf set model.gguf general.name="My model" chat_template=@chat.jinja
  qmoon gguf set model.gguf general.tags=chat,de --type string[]
  qmoon gguf set model.gguf --remove tokenizer.chat_template --out plain.gguf]],
}

function set.run(o)
    local changes = { set = { unpack(o, 2) }, remove = o.remove, type = o.type }
    if #changes.set == 0 and not o.remove then
        require("qmoon.core").fail("usage", "gguf set: nothing to do; give KEY=VALUE or --remove KEY")
    end
    local done, copied = edit.file(o[1], changes, o)
    for _, d in ipairs(done) do
        print((" %s: %s → %s"):format(d.key, d.old and edit.show(d.old) or "(not there)",
            d.new and edit.show(d.new) or "(removed)"))
    end
    print(copied and (" written anew, %s, every tensor as it was: %s"):format(text.bytes(copied), o.out or o[1])
        or (" header rewritten in place: %s"):format(o[1]))
end

local cut = {
    name = "gguf split",
    doc = "Cuts a model into parts by llama-gguf-split's rules: STEM-00001-of-0000N.gguf, the metadata in the first.",
    arguments = { { "FILE", doc = "GGUF file, or the first of its parts" } },
    options = {
        { "max-size", kind = "size", value = "SIZE", doc = "most bytes of tensors in a part" },
        { "max-tensors", kind = "integer", value = "N", doc = "most tensors in a part (default: 128, without --max-size)" },
        { "no-tensor-first-split", doc = "metadata only in the first part" },
        { "out", kind = "text", value = "STEM", doc = "what the names begin with (default: FILE without .gguf)" },
        { "dry-run", doc = "only say what would be written" }, FORCE,
    },
    examples = "  qmoon gguf split model.gguf --max-size 2G",
}

function cut.run(o)
    if o.max_size and o.max_tensors or o.max_tensors == 0 then
        require("qmoon.core").fail("usage", "gguf split: give --max-size or --max-tensors, and not 0")
    end
    o.max_tensors = not o.max_size and (o.max_tensors or 128) or nil
    for _, part in ipairs(split.write(o[1], o.out or o[1]:gsub("%.gguf$", ""), o)) do
        print((" %s  %d tensors  %s"):format(part.path, #part.tensors, text.bytes(part.size)))
        if o.max_size and #part.tensors == 1 and part.tensors[1].size > o.max_size then
            print((" note      %s alone is larger than --max-size"):format(part.tensors[1].name))
        end
    end
end

local merge = {
    name = "gguf merge",
    doc = "Makes one file of the parts of a model.",
    arguments = { { "FIRST", doc = "the first part" }, { "OUT", doc = "the file to write" } },
    options = {
        { "clean", doc = "leave out the split.* keys, which llama-gguf-split keeps: the file as before it was split" },
        FORCE,
    },
    examples = "  qmoon gguf merge model-00001-of-00003.gguf model.gguf",
}

function merge.run(o)
    local parts, size = split.merge(o[1], o[2], o)
    print((" %s  %d parts  %s"):format(o[2], parts, text.bytes(size)))
end

local command, rest = cli.choose({
    name = "gguf",
    doc = "Changes GGUF files without touching their tensors. `qmoon inspect` shows what is in one.",
    commands = { set, cut, merge },
}, { ... })
local o = command and cli.parse(command, rest)
if o then
    command.run(o)
end
