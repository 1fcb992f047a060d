-- nearest: spelling suggestions.

--- Nearest known word, for "did you mean": fewest single-character edits, at most a third of the word.
---@param word string
---@param known string[]
---@return string?
local function nearest(word, known)
    local best, least = nil, math.max(1, math.floor(#word / 3)) + 1
    for _, other in ipairs(known) do
        local row = {}
        for j = 0, #other do
            row[j] = j
        end
        for i = 1, #word do
            local diagonal
            diagonal, row[0] = row[0], i
            for j = 1, #other do
                local cost = word:byte(i) == other:byte(j) and 0 or 1
                diagonal, row[j] = row[j], math.min(row[j] + 1, row[j - 1] + 1, diagonal + cost)
            end
        end
        if row[#other] < least then
            best, least = other, row[#other]
        end
    end
    return best
end

return nearest
