-- GGUF tools: metadata edited, models split and merged, split models as sources, and the way back to a folder.

local core = require "qmoon.core"
local edit = require "qmoon.gguf_edit"
local gguf = require "qmoon.gguf"
local qm = require "qmoon"
local split = require "qmoon.gguf_split"
local support = dofile "tests/lua/support.lua"

local F16, KINDS = "tests/fixtures/golden/merged-f16.gguf", "tests/fixtures/kinds.gguf"
local TINY = "tests/fixtures/tiny-qwen2"

local function sha256_of(path)
    return core.sha256(support.read(path))
end

local function folder()
    local dir = support.scratch()
    core.mkdir(dir)
    return dir
end

local function copy_of(path)
    local to = folder() .. "/x.gguf"
    support.write(to, support.read(path))
    return to
end

local function names_in(dir)
    return table.concat(core.list(dir), " ")
end

--- name -> bytes of every tensor.
local function data_of(path)
    local h, data = core.gguf(path), {}
    for _, t in ipairs(h.tensors) do
        data[t.name] = t.type_name .. " " .. table.concat(t.shape, " ") .. " " .. h.file:read(t.at, t.size)
    end
    return data
end

local function same_data(a, b)
    a, b = data_of(a), data_of(b)
    for name, bytes in pairs(a) do
        assert(b[name] == bytes, name .. " has changed")
        b[name] = nil
    end
    assert(next(b) == nil, "a tensor too many")
end

local T = {}

-- ---- split and merge ----------------------------------------------------------------------------------

-- SHA-256 of what llama-gguf-split (llama.cpp 0c1e570) makes of merged-f16.gguf
local BY_SIZE = { -- --split-max-size 2M
    "3e7cf423f09fd411cebfb3437d64ffd0853e3b79195c3d5c480b66bbff3604eb",
    "8e57b10562ba4d30984fc99240fd383049936c2e352531667624043e9069024e",
    "c8c516832b81f2e053d4364f54a23ac10d2689721f865163a417ed8d6c1bfad5",
    "c7882810723762012714ea0b6db9164dcf494fc2e5bac3420e5bcf43c7c11adc",
}
local BY_TENSORS = { -- --split-max-tensors 20 --no-tensor-first-split
    "9943bd1db0b4a8ba9a907baa7b29efe7b74ff75f2054a1fc51a4bdd2051c011c",
    "863d1a8b07754be5ea324919f2b8970f22fcf28016de80898df50652e50949fa",
    "7c6248a2e16be84d2935cc0d1868192fece51017f3a0d12d6a4492511e909ef6",
    "a7bc399a32078143acc651611aabd4a68ab2cbc0c661ee1acc146637e6d313aa",
}
local MERGED = "967fa46c7e1f70ecffb40dac1665f8bd4fe8cf3dfc644edee746e1d7fbe4902a" -- --merge of BY_SIZE

local function check_parts(want, options)
    local dir = folder()
    local parts = split.write(F16, dir .. "/m", options)
    support.equal(#parts, #want, "parts")
    for i, part in ipairs(parts) do
        support.equal(part.path, ("%s/m-%05d-of-%05d.gguf"):format(dir, i, #want), "name")
        support.equal(sha256_of(part.path), want[i], part.path)
        support.equal(core.stat(part.path).size, part.size, "size")
    end
    return parts[1].path
end

T["parts are llama-gguf-split's, by size and by number"] = function()
    check_parts(BY_SIZE, { max_size = 2e6 })
    check_parts(BY_TENSORS, { max_tensors = 20, no_tensor_first_split = true })
end

T["so is what they are merged to, and without the split keys it is the file from before"] = function()
    local first = check_parts(BY_SIZE, { max_size = 2e6 })
    local out = folder()
    support.equal(split.merge(first, out .. "/a.gguf"), 4, "parts")
    support.equal(sha256_of(out .. "/a.gguf"), MERGED, "merged")
    split.merge(first, out .. "/b.gguf", { clean = true })
    assert(support.read(out .. "/b.gguf") == support.read(F16), "not the file that was split")
    split.write(out .. "/a.gguf", out .. "/c", { max_size = 2e6 }) -- the old split keys make way
    support.equal(sha256_of(out .. "/c-00001-of-00004.gguf"), BY_SIZE[1], "split again")
end

T["a file with an alignment of its own keeps it in the first part"] = function()
    local dir = folder()
    split.write(KINDS, dir .. "/k", { max_tensors = 2 })
    support.equal(core.gguf(dir .. "/k-00001-of-00002.gguf").alignment, 64, "first")
    support.equal(core.gguf(dir .. "/k-00002-of-00002.gguf").alignment, 32, "second")
    split.merge(dir .. "/k-00001-of-00002.gguf", dir .. "/whole.gguf", { clean = true })
    assert(support.read(dir .. "/whole.gguf"):find("\1\0\0\0\0\0\0\128", 1, true), "a u64 above 2^53 lost its last bit")
    same_data(KINDS, dir .. "/whole.gguf")
end

T["a dry run writes nothing, and a part that would be empty is refused"] = function()
    local dir = folder()
    support.equal(#split.write(F16, dir .. "/m", { max_size = 2e6, dry_run = true }), 4, "parts")
    support.raises("usage", { "token_embd.weight", "1048576" }, split.write, F16, dir .. "/m", { max_size = 1e6 })
    support.equal(names_in(dir), "", "files")
end

T["what is there is not written over, and never what is read"] = function()
    local dir = folder()
    split.write(F16, dir .. "/m", { max_size = 2e6 })
    local first = dir .. "/m-00001-of-00004.gguf"
    support.raises("fail", "--force", split.write, F16, dir .. "/m", { max_size = 2e6 })
    split.write(F16, dir .. "/m", { max_size = 2e6, force = true })
    support.raises("usage", "read from", split.write, first, dir .. "/m", { max_size = 2e6, force = true })
    support.raises("usage", "read from", split.merge, first, dir .. "/m-00003-of-00004.gguf", { force = true })
    support.raises("usage", "read from", qm.write, qm.open(first), { { dir .. "/m-00003-of-00004.gguf", format = "q8_0" } },
        { force = true })
    support.raises("usage", "whole model", split.merge, F16, dir .. "/out.gguf")
    support.equal(sha256_of(first), BY_SIZE[1], "the first part")
end

-- ---- split models as sources --------------------------------------------------------------------------

T["a split model is quantised to the bytes that the whole one gives"] = function()
    local dir = folder()
    split.write(F16, dir .. "/m", { max_size = 2e6 })
    qm.write(qm.open(dir .. "/m-00001-of-00004.gguf"),
        { { dir .. "/a.gguf", format = "q4_k_m" }, { dir .. "/f", format = "f16" } })
    qm.write(qm.open(F16), { { dir .. "/b.gguf", format = "q4_k_m" }, { dir .. "/g", format = "f16" } })
    assert(support.read(dir .. "/a.gguf") == support.read(dir .. "/b.gguf"), "GGUF differs")
    assert(support.read(dir .. "/f/model.safetensors") == support.read(dir .. "/g/model.safetensors"), "folder differs")
end

-- SHA-256 of what llama-quantize --keep-split (llama.cpp 0c1e570) makes of the parts of 2M, as Q4_K_M
local KEPT = {
    "c55f0b20736c6907814151c8fbc5b66c1f9d7864dc89ae96e05e188034cd68fc",
    "7a32292323adc2292fb356034d968f6a4a4611f2ee3201f3ac07d4611241e358",
    "5681a628f799d172f7e1c3b3fa5c48eb2911eedbe755f8cdf06aee6b699ee757",
    "f2752c9bb9837f290b65bd57ef465d510591bbd89d41a890b69095a2f78d91ff",
}
local OVERRIDDEN = "4a6ac1feeddcdf75a748418f27299c23fd97ed0aae3a95b36bcd8eff3fc099e7" -- as Q4_0, with the four values below

T["quantised in the parts it comes in, it is llama-quantize's --keep-split"] = function()
    local dir, first = folder(), nil
    first = split.write(F16, dir .. "/m", { max_size = 2e6 })[1].path
    local spec = { dir .. "/k.gguf", format = "q4_k_m", profile = "llama.cpp-0c1e570", keep_split = true }
    qm.write(qm.open(first), { spec })
    for i, want in ipairs(KEPT) do
        support.equal(sha256_of(split.name(dir .. "/k", i, #KEPT)), want, "part " .. i)
    end
    support.raises("fail", "k-00001-of-00004.gguf: is there already", qm.write, qm.open(first), { spec })
    spec[1] = dir .. "/m.gguf"
    support.raises("usage", "where the model is read from", qm.write, qm.open(first), { spec }, { force = true })
    support.raises("usage", "keep_split goes with GGUF files in parts", qm.write, qm.open(TINY),
        { { dir .. "/n.gguf", format = "q8_0", keep_split = true } })
    support.raises("usage", "goes with GGUF types", qm.write, qm.open(TINY), { { dir .. "/n", format = "nf4", keep_split = true } })
end

T["metadata set while quantising is llama-quantize's --override-kv"] = function()
    local out = folder() .. "/x.gguf"
    local words = "--override-kv general.name=str:renamed --override-kv test.count=int:-7 --override-kv test.share=float:0.25 "
        .. "--override-kv test.yes=bool:true"
    local status, said = support.run(("quantize %s %s --type q4_0 --profile llama.cpp-0c1e570 %s"):format(F16, out, words))
    support.equal(status, 0, said)
    support.equal(sha256_of(out), OVERRIDDEN)
    for _, word in ipairs { "a=b:c", "a", "a=int:x", "a=bool:maybe", "=str:x" } do
        status, said = support.run(("quantize %s %s --type q4_0 --force --override-kv '%s'"):format(F16, out, word))
        support.equal(status, 2, said)
    end
end

T["a GGUF file of an unknown architecture: tensors under their names, metadata beside them"] = function()
    local dir, x = folder(), copy_of(F16)
    edit.file(x, { set = { "general.architecture=rwkv9" } })
    local report = tostring(qm.write(qm.open(x), { { dir .. "/f16", format = "f16" }, { dir .. "/int4", format = "int4:32" } }))
    assert(report:find "'rwkv9' has no table", report)
    local m, h = qm.open(dir .. "/f16/model.safetensors"), core.gguf(F16)
    for _, t in ipairs(h.tensors) do
        local item = m.by_name[t.name]
        support.equal(table.concat(item.shape, " "), table.concat(t.shape, " "), t.name)
        if t.type_name == "F16" then
            assert(item.source.file:read(item.source.at, item.source.size) == h.file:read(t.at, t.size), t.name)
        end
    end
    local meta = core.json_decode(support.read(dir .. "/f16/gguf.json")).metadata
    support.equal(meta["general.architecture"], "rwkv9")
    support.equal(#meta["tokenizer.ggml.tokens"], 2048)
    support.equal(qm.open(dir .. "/int4").quantised, "int4")
end

T["parts that do not belong together are named"] = function()
    local dir = folder()
    split.write(F16, dir .. "/m", { max_size = 2e6 })
    local function part(i)
        return ("%s/m-%05d-of-00004.gguf"):format(dir, i)
    end
    support.raises("usage", { "part 3 of 4", part(1) }, qm.open, part(3))
    local third = support.read(part(3))
    os.remove(part(3))
    support.raises("fail", { part(3), "missing" }, qm.open, part(1))
    support.write(part(3), support.read(part(2)))
    support.raises("corrupt", { part(3), "part 2 of 4" }, qm.open, part(1))
    support.write(part(3), support.read(KINDS))
    support.raises("corrupt", part(3), qm.open, part(1))
    support.write(part(3), third)
    edit.file(part(3), { set = { "split.tensors.count=49" } })
    support.raises("corrupt", { "49", "50" }, qm.open, part(1))
    for i = 1, 4 do
        edit.file(part(i), { set = { "split.tensors.count=49" } })
    end
    support.raises("corrupt", { "49", "have 50" }, qm.open, part(1))
    edit.file(part(1), { set = { "split.no=9" } })
    support.raises("corrupt", "split.no", qm.open, part(1))
    core.rename(part(2), dir .. "/renamed.gguf")
    support.raises("usage", "-00002-of-00004.gguf", qm.open, dir .. "/renamed.gguf")
end

-- ---- metadata -----------------------------------------------------------------------------------------

T["a header that keeps its size is changed where it is"] = function()
    local path = copy_of(F16)
    local id, before = core.stat(path).id, support.read(path)
    local done, copied = edit.file(path, { set = { "general.name=Merged tinY", "context_length=2048" } })
    support.equal(copied, nil, "copied")
    support.equal(done[1].old.value .. done[1].new.value, "Merged TinyMerged tinY", "report")
    support.equal(done[2].key .. done[2].new.type, "qwen2.context_lengthu32", "the whole key, with its type")
    support.equal(core.stat(path).id, id, "inode")
    same_data(F16, path)
    support.equal(gguf.get(core.gguf(path).meta, "general.name"), "Merged tinY", "name")
    support.equal(names_in(path:match "^(.*)/"), "x.gguf", "files")
    edit.file(path, { set = { "name=Merged Tiny", "qwen2.context_length=1024" } })
    assert(support.read(path) == before, "the way back is not the same file")
end

T["a header that grows makes a new file of the same tensors"] = function()
    local path = copy_of(F16)
    local long = ("A much longer name. "):rep(20)
    local _, copied = edit.file(path, { set = { "general.name=" .. long } })
    support.equal(copied, core.stat(path).size, "size")
    support.equal(gguf.get(core.gguf(path).meta, "general.name"), long, "name")
    same_data(F16, path)
    local out = path .. ".out"
    edit.file(path, { set = { "general.name=Merged Tiny" } }, { out = out })
    assert(support.read(out) == support.read(F16), "the way back is not the same file")
    support.raises("fail", "--force", edit.file, path, { set = { "general.name=x" } }, { out = out })
end

T["every type of value, and what is not named stays bit for bit"] = function()
    local path = copy_of(KINDS)
    edit.file(path, { set = { "u8=7", "i8=-128", "u16=1", "i16=-1", "u32=4294967295", "i32=-2147483648", "f32=2.5", "i64=-5",
                              "f64=0.2", "bool=false", "k.string=Ürün", "ints=7,8,9,10", 'strings=["a,b",""]', "bools=true",
                              "floats=" } })
    local meta = core.gguf(path).meta
    local function show(key)
        local value = gguf.get(meta, key)
        return type(value) == "table" and #value .. ":" .. table.concat(value, "|") or tostring(value)
    end
    support.equal(table.concat { show "k.u8", show "k.i8", show "k.u16", show "k.i16" }, "7-1281-1", "small")
    support.equal(show "k.u32" .. show "k.i32" .. show "k.i64", "4294967295-2147483648-5", "large")
    support.equal(show "k.f32" .. show "k.f64" .. show "k.bool" .. show "k.string", "2.50.2falseÜrün", "others")
    support.equal(show "k.ints" .. show "k.strings" .. show "k.floats", "4:7|8|9|102:a,b|0:", "arrays")
    support.equal(#gguf.get(meta, "k.bools"), 1, "bools")
    assert(support.read(path):find("\1\0\0\0\0\0\0\128", 1, true), "k.u64, which nobody named, has changed")
    same_data(KINDS, path)
end

T["keys come and go, values come from files"] = function()
    local path = copy_of(F16)
    support.write(path .. ".jinja", "{{ 'a' }}\n= @")
    edit.file(path, { set = { "chat_template=@" .. path .. ".jinja", "general.name=@@home" } })
    support.equal(gguf.get(core.gguf(path).meta, "tokenizer.chat_template"), "{{ 'a' }}\n= @", "template")
    support.equal(gguf.get(core.gguf(path).meta, "general.name"), "@home", "name")
    edit.file(path, { set = { "general.tags=chat,de" }, type = "string[]", remove = { "tokenizer.chat_template" } })
    local meta = core.gguf(path).meta
    support.equal(gguf.get(meta, "tokenizer.chat_template"), nil, "removed")
    support.equal(meta[#meta].key .. #meta[#meta].value, "general.tags2", "new keys come last")
end

T["another alignment lays the file out anew"] = function()
    local path = copy_of(F16)
    edit.file(path, { set = { "general.alignment=256" }, type = "u32" })
    for _, t in ipairs(core.gguf(path).tensors) do
        support.equal(t.at % 256, 0, t.name)
    end
    same_data(F16, path)
    edit.file(path, { remove = { "general.alignment" } })
    assert(support.read(path) == support.read(F16), "the way back is not the same file")
    for _, wrong in ipairs { "0", "48" } do
        support.raises("usage", "power of two", edit.file, path, { set = { "general.alignment=" .. wrong }, type = "u32" })
    end
    support.raises("usage", "u32", edit.file, path, { set = { "general.alignment=64" }, type = "u64" })
end

T["values that do not fit, keys that are not there: one line, and the file as it was"] = function()
    local path = copy_of(KINDS)
    local before = support.read(path)
    local function refused(text, word, kind)
        support.raises("usage", text, edit.file, path, { set = { word }, type = kind })
    end
    refused({ "k.u8", "255" }, "k.u8=256")
    refused("k.u8", "k.u8=1.5")
    refused({ "9007199254740992", "u64" }, "k.u64=18446744073709551615")
    refused("f32", "k.f32=1e39")
    refused("f32", "k.f32=nan")
    refused({ "maybe", "true nor false" }, "k.bool=maybe")
    refused("k.ints", "k.ints=1,x")
    refused("no string", "k.strings=[1]")
    refused("UTF-8", "k.string=\255")
    refused("byte 0", "k.string=a\0b")
    refused({ "k.u88", "did you mean 'k.u8'" }, "k.u88=1")
    refused("--type", "new.key=1")
    refused({ "strin", "did you mean 'string'" }, "new.key=1", "strin")
    refused("KEY=VALUE", "k.u8")
    support.raises("usage", "k.nothing", edit.file, path, { remove = { "k.nothing" } })
    edit.file(path, { set = { "a.u8=1", "b.n=1" }, type = "u8" })
    refused({ "k.u8", "a.u8" }, "u8=1")
    edit.file(path, { remove = { "a.u8", "b.n" } })
    assert(support.read(path) == before, "something has changed")
end

T["bytes are written over inside a file only"] = function()
    local path = copy_of(KINDS)
    local size = core.stat(path).size
    core.overwrite(path, size - 3, "end")
    support.equal(support.read(path):sub(-4), "\0end", "the last bytes")
    support.raises("fail", path, core.overwrite, path, size - 2, "end")
    support.raises("fail", path, core.overwrite, path, 2 ^ 52, "")
    support.raises("fail", "nowhere", core.overwrite, "nowhere", 0, "")
    support.equal(core.stat(path).size, size, "size")
end

T["a run killed while it rewrote the header is mended by the next"] = function()
    local path = copy_of(F16)
    local whole = support.read(path)
    local header = whole:sub(1, core.gguf(path).tensors[1].at)
    support.write(path .. ".header", core.stat(path).id .. "\n" .. header)
    local f = io.open(path, "r+b")
    f:write(("torn "):rep(1000))
    f:close()
    edit.file(path, { set = { "general.name=Merged tinY" } })
    same_data(F16, path)
    support.equal(names_in(path:match "^(.*)/"), "x.gguf", "files")
    -- one that is left of a file which is no more there is not put into another
    support.write(path .. ".header", "0:0\n" .. ("GGUF torn "):rep(100))
    edit.file(path, { set = { "general.name=Merged Tiny" } })
    assert(support.read(path) == whole)
    support.write(path .. ".header", "mine")
    support.raises("fail", "in the way", edit.file, path, { set = { "general.name=x" } })
    support.equal(support.read(path .. ".header"), "mine")
end

-- ---- back to a folder ---------------------------------------------------------------------------------

T["folder to GGUF to folder: weights and tokenizer are the same"] = function()
    for _, dtype in ipairs { "f32", "f16", "bf16" } do
        local dir = folder()
        qm.write(qm.open(TINY), { { dir .. "/x.gguf", format = dtype }, { dir .. "/direct", format = dtype } })
        qm.write(qm.open(dir .. "/x.gguf"), { { dir .. "/back", format = dtype } })
        assert(support.read(dir .. "/direct/model.safetensors") == support.read(dir .. "/back/model.safetensors"), dtype)
        local tokenizer, config = require "qmoon.tokenizer", require "qmoon.config"
        local a = tokenizer.read(TINY, { config = config.read(TINY), vocab_size = 2048 })
        local b = tokenizer.read(dir .. "/back", { config = config.read(dir .. "/back"), vocab_size = 2048 })
        for _, field in ipairs { "tokens", "merges", "types" } do
            support.equal(table.concat(a[field], "\n"), table.concat(b[field], "\n"), field)
        end
        support.equal(a.pre .. a.chat_template, b.pre .. b.chat_template, "pre-tokenizer and template")
    end
end

T["every GGUF type this program can decode goes back to a folder"] = function()
    local dir, n = folder(), 0
    for _, f in ipairs(core.formats()) do
        if f.gguf_name and f.block > 1 then
            local path, back = ("%s/%s.gguf"):format(dir, f.name), ("%s/%s"):format(dir, f.name)
            qm.write(qm.open(F16),
                { { path, format = "q8_0", tensor_types = { { ".", f.name } }, token_embedding_type = f.name } })
            qm.write(qm.open(path), { { back, format = "f32" } })
            local source, out = qm.open(path), qm.open(back)
            for _, item in ipairs(source.items) do
                local a, b = source:tensor(item.name), out:tensor(item.name)
                assert(#item.shape < 2 or item.type_name == f.gguf_name, item.name .. " is " .. item.type_name)
                assert(a:dequantize():plane(1) == b:plane(1), item.name)
            end
            n = n + 1
        end
    end
    assert(n >= 13, n .. " types")
end

T["a type that nobody here decodes is shown, and refused by name when it must be decoded"] = function()
    local dir = folder()
    local h, tensors = core.gguf(F16), {}
    for i, t in ipairs(h.tensors) do
        tensors[i] = { name = t.name, type = t.type, shape = t.shape, size = t.size }
        if t.name == "token_embd.weight" then
            tensors[i].type, tensors[i].size = 16, t.shape[1] * 66 -- IQ2_XXS: 256 values in 66 bytes
        end
    end
    local header, _, size = gguf.header(gguf.exact(h), tensors)
    support.write(dir .. "/x.gguf", header .. ("\0"):rep(size - #header))
    local status, text = support.run("inspect " .. dir .. "/x.gguf --tensors")
    support.equal(status, 0, text)
    assert(text:find "IQ2_XXS +1 +524288 +135.2 kB +2.063 +carried over, not decoded", text)
    support.raises("unsupported", { "token_embd.weight", "iq2_xxs" }, qm.write, qm.open(dir .. "/x.gguf"),
        { { dir .. "/f", format = "f16" } })
    support.equal(names_in(dir), "x.gguf", "files")
end

-- ---- llama-quantize's options -------------------------------------------------------------------------

local function type_of(path, name)
    for _, t in ipairs(core.gguf(path).tensors) do
        if t.name == name then
            return t.type_name
        end
    end
end

T["types of single tensors, profiles, and no fallback"] = function()
    local path = folder() .. "/x.gguf"
    local function run(options)
        local status, text = support.run(("quantize %s %s --force %s"):format(F16, path, options))
        assert(status == 0, text)
    end
    run "--type q4_0 --tensor-type 'ATTN_V\\.=q6_k' --tensor-type ffn_down=q8_0 --token-embedding-type q5_0"
    support.equal(type_of(path, "blk.1.attn_v.weight"), "Q6_K", "attn_v")
    support.equal(type_of(path, "blk.3.ffn_down.weight"), "Q8_0", "ffn_down")
    support.equal(type_of(path, "token_embd.weight"), "Q5_0", "token_embd")
    support.equal(type_of(path, "blk.3.attn_k.weight"), "Q4_0", "attn_k")
    -- two patterns match: the last counts, or the first
    local both = "--type q4_0 --tensor-type attn=q5_0 --tensor-type attn_q=q8_0"
    run(both)
    support.equal(type_of(path, "blk.0.attn_q.weight"), "Q8_0", "the last")
    run(both .. " --profile llama.cpp-0c1e570")
    support.equal(type_of(path, "blk.0.attn_q.weight"), "Q5_0", "the first")
    local status, text = support.run(("quantize %s %s --force --type q4_0 --profile llama.cpp-1999"):format(F16, path))
    assert(status == 2 and text:find("llama.cpp-2025-11", 1, true), text)
    status, text = support.run(("quantize %s %s.f --type f16 --imatrix x"):format(F16, path))
    assert(status == 2 and text:find("imatrix goes with GGUF types", 1, true), text)
    status, text = support.run(("quantize %s %s --force --type f16 --leave-output-tensor"):format(TINY, path))
    assert(status == 2 and text:find("goes with quantised types", 1, true), text)
    status, text = support.run(("quantize %s %s --force --type q4_0 --tensor-type attn_v"):format(F16, path))
    assert(status == 2 and text:find("REGEX=TYPE", 1, true), text)
end

T["a type that does not divide the rows is a fallback, or an error when that is asked for"] = function()
    local base, dir = support.qwen2 { hidden = 96, ffn = 160, layers = 2, heads = 3, kv = 1, vocab = 600 }, folder()
    qm.write(qm.open(base), { { dir .. "/a.gguf", format = "q4_k_m" } })
    support.equal(type_of(dir .. "/a.gguf", "blk.0.attn_k.weight"), "Q5_0", "fallback")
    support.raises("unsupported", { "attn_k.weight", "Q4_K_M" }, qm.write, qm.open(base),
        { { dir .. "/b.gguf", format = "q4_k_m", no_fallback = true } })
    support.equal(names_in(dir), "a.gguf", "files")
end

-- ---- the command --------------------------------------------------------------------------------------

T["qmoon gguf: set, split, merge, and how they fail"] = function()
    local path = copy_of(F16)
    local dir = path:match "^(.*)/"
    local function run(args, want)
        local status, text = support.run("gguf " .. args)
        assert(status == (want or 0), ("gguf %s gives %d: %s"):format(args, status, text))
        return text
    end
    assert(run("set " .. path .. " name=Other"):find("general.name: Merged Tiny → Other", 1, true))
    run("split " .. path .. " --max-size 2M")
    run("merge " .. dir .. "/x-00001-of-00004.gguf " .. dir .. "/y.gguf")
    run("merge " .. dir .. "/x-00001-of-00004.gguf " .. dir .. "/y.gguf", 1)
    same_data(path, dir .. "/y.gguf")
    for _, c in ipairs { "set", "split", "merge" } do
        assert(run(c .. " --help"):find("^usage: qmoon gguf " .. c), c)
    end
    assert(run("mrge", 2):find("did you mean 'merge'", 1, true))
    run("set " .. path, 2)
    run("", 2)
    run("split " .. path .. " --max-size 2M --max-tensors 3", 2)
    run("merge " .. TINY .. "/config.json x.gguf", 6)
end

return T
