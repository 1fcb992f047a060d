--- Parts of lists.

local list = {}

--- Items from … to of a list, as a list of their own.  (unpack has a limit, which a text's ids exceed.)
---@param items any[]
---@param from integer
---@param to integer
---@return any[]
function list.slice(items, from, to)
    local part = {}
    for i = from, to do
        part[#part + 1] = items[i]
    end
    return part
end

return list
