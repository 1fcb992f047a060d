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

--- The pieces of a tokenizer.model, in order of their ids.
---@param path string
---@return {text: string, score: number, type: integer}[]
function sentencepiece.read(path)
    local pieces = {}
    for number, wire, value in protobuf.fields(files.read(path), path) do
        if number == 1 and wire == 2 then
            pieces[#pieces + 1] = read_piece(value, path)
        end
    end
    if #pieces == 0 then
        core.fail("corrupt", "%s: there are no pieces in it; is this a SentencePiece model?", path)
    end
    return pieces
end

-- Numbers of fields that a program needs to load the model again.
local PIECES, TRAINER, NORMALIZER = 1, 2, 3
local MODEL_TYPE, VOCAB_SIZE, BYTE_FALLBACK, UNK_ID, BOS_ID, EOS_ID, UNK_PIECE, BOS_PIECE, EOS_PIECE =
    3, 4, 35, 40, 41, 42, 45, 46, 47
local NAME, DUMMY_PREFIX, REMOVE_WHITESPACE, ESCAPE_WHITESPACE = 1, 3, 4, 5
local BPE = 2

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
