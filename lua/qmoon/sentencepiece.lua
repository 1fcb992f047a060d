--- SentencePiece's tokenizer.model: its pieces, read and written.
--
--   ModelProto       1: pieces (repeated)   2: trainer spec   3: normalizer spec
--   SentencePiece    1: piece   2: score (float)   3: type
--
-- Source: google/sentencepiece, src/sentencepiece_model.proto. Types are numbered as in llama.cpp.

local core = require "qmoon.core"
local files = require "qmoon.files"
local protobuf = require "qmoon.protobuf"

local sentencepiece = {}

sentencepiece.types = { NORMAL = 1, UNKNOWN = 2, CONTROL = 3, USER_DEFINED = 4, UNUSED = 5, BYTE = 6 }

local known = {}
for _, number in pairs(sentencepiece.types) do
    known[number] = true
end

local function read_piece(bytes, path)
    local piece = { text = "", score = 0, type = sentencepiece.types.NORMAL }
    for number, wire, value in protobuf.fields(bytes, path) do
        if number == 1 and wire == 2 then
            piece.text = value
        elseif number == 2 and wire == 5 then
            piece.score = protobuf.to_float(value)
        elseif number == 3 and wire == 0 then
            piece.type = value
        end
    end
    if not known[piece.type] then
        core.fail("corrupt", "%s: piece '%s' has an unknown type %d", path, piece.text, piece.type)
    end
    return piece
end

-- Numbers of fields that a program needs to load the model again.
local PIECES, TRAINER, NORMALIZER = 1, 2, 3
local MODEL_TYPE, VOCAB_SIZE, WHITESPACE_SUFFIX, BYTE_FALLBACK, UNK_ID, BOS_ID, EOS_ID = 3, 4, 24, 35, 40, 41, 42
local UNK_PIECE, BOS_PIECE, EOS_PIECE = 45, 46, 47
local NAME, CHARSMAP, DUMMY_PREFIX, REMOVE_WHITESPACE, ESCAPE_WHITESPACE = 1, 2, 3, 4, 5
local UNIGRAM, BPE = 1, 2

--- The fields of a message that are numbers or strings.
local function read_fields(bytes, path, into)
    for number, _, value in protobuf.fields(bytes, path) do
        into[number] = value
    end
    return into
end

--- An id, which is an int32: -1 for none is written as 2^64 - 1.
local function optional_id(value)
    return type(value) == "number" and value < 2 ^ 31 and value or nil
end

local function settings_of(trainer, normalizer)
    return {
        unigram = trainer[MODEL_TYPE] == UNIGRAM, bpe = trainer[MODEL_TYPE] == BPE, type = trainer[MODEL_TYPE],
        byte_fallback = trainer[BYTE_FALLBACK] == 1, suffix = trainer[WHITESPACE_SUFFIX] == 1,
        unk = optional_id(trainer[UNK_ID]), bos = optional_id(trainer[BOS_ID]), eos = optional_id(trainer[EOS_ID]),
        charsmap = normalizer[CHARSMAP], prefix = normalizer[DUMMY_PREFIX] == 1,
        squeeze = normalizer[REMOVE_WHITESPACE] == 1, escape = normalizer[ESCAPE_WHITESPACE] == 1,
    }
end

---@class qmoon.PieceSettings
---@field unigram boolean
---@field bpe boolean
---@field byte_fallback boolean
---@field unk integer?
---@field bos integer?
---@field eos integer?
---@field charsmap string    what characters become, "" for themselves; see core/tokenizer/charsmap.h
---@field prefix boolean     a blank is put in front of a text,
---@field suffix boolean     or behind it
---@field squeeze boolean    of several blanks one stays
---@field escape boolean     blanks become ▁

--- The pieces of a tokenizer.model, in order of their ids, and how it cuts text.
---@param path string
---@return {text: string, score: number, type: integer}[] pieces
---@return qmoon.PieceSettings settings
function sentencepiece.read(path)
    local pieces, specs = {}, {}
    -- what holds for fields that are not there
    local trainer = { [MODEL_TYPE] = UNIGRAM, [UNK_ID] = 0, [BOS_ID] = 1, [EOS_ID] = 2 }
    local normalizer = { [CHARSMAP] = "", [DUMMY_PREFIX] = 1, [REMOVE_WHITESPACE] = 1, [ESCAPE_WHITESPACE] = 1 }
    for number, wire, value in protobuf.fields(files.read(path), path) do
        if number == PIECES and wire == 2 then
            pieces[#pieces + 1] = read_piece(value, path)
        elseif wire == 2 and (number == TRAINER or number == NORMALIZER) then
            specs[number] = value
        end
    end
    if #pieces == 0 then
        core.fail("corrupt", "%s: there are no pieces in it; is this a SentencePiece model?", path)
    end
    read_fields(specs[TRAINER] or "", path, trainer)
    read_fields(specs[NORMALIZER] or "", path, normalizer)
    if type(normalizer[CHARSMAP]) ~= "string" then
        core.fail("corrupt", "%s: its table of characters is no string", path)
    end
    return pieces, settings_of(trainer, normalizer)
end

local function piece_bytes(piece)
    local body = protobuf.field(1, piece.text) .. protobuf.float(2, piece.score)
    if piece.type ~= sentencepiece.types.NORMAL then
        body = body .. protobuf.field(3, piece.type)
    end
    return protobuf.field(PIECES, body)
end

local function trainer_bytes(pieces, options)
    local parts, bytes = { protobuf.field(MODEL_TYPE, BPE), protobuf.field(VOCAB_SIZE, #pieces) }, false
    for _, piece in ipairs(pieces) do
        bytes = bytes or piece.type == sentencepiece.types.BYTE
    end
    parts[3] = protobuf.field(BYTE_FALLBACK, bytes)
    for _, id in ipairs { { options.unk, UNK_ID, UNK_PIECE }, { options.bos, BOS_ID, BOS_PIECE },
                          { options.eos, EOS_ID, EOS_PIECE } } do
        local piece = id[1] and pieces[id[1] + 1]
        if piece then
            parts[#parts + 1] = protobuf.field(id[2], id[1]) .. protobuf.field(id[3], piece.text)
        end
    end
    return table.concat(parts)
end

--- A tokenizer.model of these pieces: byte-pair encoding by their scores, text taken as it is.
---@param pieces {text: string, score: number, type: integer}[]
---@param options {unk: integer?, bos: integer?, eos: integer?, dummy_prefix: boolean}
---@return string
function sentencepiece.bytes(pieces, options)
    local parts = {}
    for i, piece in ipairs(pieces) do
        parts[i] = piece_bytes(piece)
    end
    parts[#parts + 1] = protobuf.field(TRAINER, trainer_bytes(pieces, options))
    parts[#parts + 1] = protobuf.field(NORMALIZER, protobuf.field(NAME, "identity")
        .. protobuf.field(DUMMY_PREFIX, options.dummy_prefix) .. protobuf.field(REMOVE_WHITESPACE, false)
        .. protobuf.field(ESCAPE_WHITESPACE, true))
    return table.concat(parts)
end

return sentencepiece
