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

return sentencepiece
