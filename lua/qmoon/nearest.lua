-- nearest: spelling suggestions.

--- Nearest known word, for "did you mean": fewest single-character edits, at most a third of the word.  Two letters
--- exchanged are one edit.
---@param word string
---@param known string[]
---@return string?
local function nearest(word, known)
    local best, least = nil, math.max(1, math.floor(#word / 3)) + 1
    for _, other in ipairs(known) do
        local before, last, row = {}, {}, {}
        for j = 0, #other do
            row[j] = j
        end
        for i = 1, #word do
            before, last, row = last, row, before
            row[0] = i
            for j = 1, #other do
                local a, b = word:byte(i), other:byte(j)
                row[j] = math.min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (a == b and 0 or 1))
                if i > 1 and j > 1 and a == other:byte(j - 1) and b == word:byte(i - 1) then
                    row[j] = math.min(row[j], before[j - 2] + 1)
                end
            end
        end
        if row[#other] < least then
            best, least = other, row[#other]
        end
    end
    return best
end

return nearest
