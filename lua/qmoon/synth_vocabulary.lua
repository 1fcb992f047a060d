--- Made-up vocabularies of any size, byte-level BPE or SentencePiece, whose files are like real ones.

local core = require "qmoon.core"
local files = require "qmoon.files"
local json = require "qmoon.json"
local pretokenizers = require "qmoon.pretokenizers"
local sentencepiece = require "qmoon.sentencepiece"

local vocabulary = {}

-- ---- byte-level BPE -----------------------------------------------------------------------------------------

local function utf8_char(code)
    if code < 0x80 then
        return string.char(code)
    end
    return string.char(0xC0 + math.floor(code / 64), 0x80 + code % 64)
end

-- GPT-2's visible stand-in for each byte: printable Latin-1 is itself, the rest follow from U+0100.
local function byte_characters()
    local printable, rest, next_code = {}, {}, 256
    for b = 0, 255 do
        if (b >= 33 and b <= 126) or (b >= 161 and b <= 172) or b >= 174 then
            printable[#printable + 1] = utf8_char(b)
        else
            rest[#rest + 1] = utf8_char(next_code)
            next_code = next_code + 1
        end
    end
    for _, c in ipairs(rest) do
        printable[#printable + 1] = c
    end
    return printable
end

--- Tokens and merges: bytes, then pairs of bytes, then pairs and a byte, as many as are wanted.
local function merged_bytes(count)
    local tokens, merges = byte_characters(), {}
    local function grow(first, last)
        for i = first, last do
            for b = 1, 256 do
                if #tokens >= count then
                    return
                end
                merges[#merges + 1] = tokens[i] .. " " .. tokens[b]
                tokens[#tokens + 1] = tokens[i] .. tokens[b]
            end
        end
    end
    grow(1, 256)
    grow(257, #tokens)
    return tokens, merges
end

local SPECIAL = { "<|endoftext|>", "<|im_start|>", "<|im_end|>" }
local MOST = 151643 -- as many as Qwen's has; what the model has more is padding there, too

local function byte_level(prefix, trim, regex)
    return json.object { { "type", "ByteLevel" }, { "add_prefix_space", prefix }, { "trim_offsets", trim }, { "use_regex", regex } }
end

local function write_bpe(dir, size, name)
    local pre = pretokenizers.named(name)
    local count = math.min(size - #SPECIAL, MOST)
    local tokens, merges = merged_bytes(count)
    local vocab, added = {}, {}
    for i, token in ipairs(tokens) do
        vocab[i] = { token, i - 1 }
    end
    for i, content in ipairs(SPECIAL) do
        added[i] = json.object { { "id", count + i - 1 }, { "content", content }, { "single_word", false }, { "lstrip", false },
                                 { "rstrip", false }, { "normalized", false }, { "special", true } }
    end
    local split = json.object { { "type", "Split" }, { "pattern", { Regex = pre[2][1] } }, { "behavior", "Isolated" },
                                { "invert", false } }
    files.write(dir .. "/tokenizer.json", json.encode(json.object {
        { "version", "1.0" }, { "truncation", core.null }, { "padding", core.null }, { "added_tokens", added },
        { "normalizer", pre.normalizer and { type = pre.normalizer } or core.null },
        { "pre_tokenizer", json.object { { "type", "Sequence" }, { "pretokenizers", { split, byte_level(false, true, false) } } } },
        { "post_processor", byte_level(true, false, true) }, { "decoder", byte_level(true, true, true) },
        { "model", json.object {
            { "type", "BPE" }, { "dropout", core.null }, { "unk_token", core.null }, { "continuing_subword_prefix", core.null },
            { "end_of_word_suffix", core.null }, { "fuse_unk", false }, { "byte_fallback", false },
            { "ignore_merges", pre.ignore_merges == true },
            { "vocab", json.object(vocab) }, { "merges", json.array(merges) } } },
    }))
    files.write(dir .. "/tokenizer_config.json", json.encode({
        add_bos_token = false, eos_token = SPECIAL[1], pad_token = SPECIAL[1], model_max_length = 32768,
        tokenizer_class = pre.class or "PreTrainedTokenizerFast" }, { indent = 2 }))
    return { bos = count, eos = count }
end

-- ---- SentencePiece --------------------------------------------------------------------------------------------

local TYPE = sentencepiece.types

--- Bytes, letters, and ever longer words of letters.
local function pieces_of(size)
    local pieces = { { text = "<unk>", score = 0, type = TYPE.UNKNOWN }, { text = "<s>", score = 0, type = TYPE.CONTROL },
                     { text = "</s>", score = 0, type = TYPE.CONTROL } }
    for b = 0, 255 do
        pieces[#pieces + 1] = { text = ("<0x%02X>"):format(b), score = 0, type = TYPE.BYTE }
    end
    local words, first = { "▁" }, 1
    for c = 97, 122 do
        words[#words + 1] = string.char(c)
    end
    local letters = #words
    while #pieces + #words < size do
        for c = 1, letters do
            words[#words + 1] = words[first] .. words[c]
        end
        first = first + 1
    end
    for i = 1, size - #pieces do
        pieces[#pieces + 1] = { text = words[i], score = -i, type = TYPE.NORMAL }
    end
    return pieces
end

local function write_pieces(dir, size)
    local model = sentencepiece.bytes(pieces_of(size), { unk = 0, bos = 1, eos = 2, dummy_prefix = true })
    files.write(dir .. "/tokenizer.model", model)
    files.write(dir .. "/tokenizer_config.json", json.encode({
        add_bos_token = true, add_eos_token = false, bos_token = "<s>", eos_token = "</s>", unk_token = "<unk>",
        model_max_length = 32768, legacy = false, tokenizer_class = "LlamaTokenizer" }, { indent = 2 }))
    return { bos = 1, eos = 2 }
end

--- Writes a tokenizer into a folder.
---@param dir string
---@param size integer rows of the embedding
---@param pre string? name of the pre-tokenizer of a byte-level BPE; nil: SentencePiece
---@return {bos: integer, eos: integer} ids
function vocabulary.write(dir, size, pre)
    return pre and write_bpe(dir, size, pre) or write_pieces(dir, size)
end

return vocabulary
