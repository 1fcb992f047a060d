-- Nine numbers through INT8, every step on the page.

local affine = require "qmoon.affine"
local plot = require "qmoon.plot"

local function join(list)
    return table.concat(list, " ")
end

local function joined(form, list)
    local words = {}
    for i, v in ipairs(list) do
        words[i] = form:format(v)
    end
    return join(words)
end

return {
    title = "Nine numbers in eight bits",
    question = "how INT8 works, step by step, and where a tutorial went wrong",
    run = function(l)
        local w, a = affine.nine, affine.affine(affine.nine, 8)
        local s, g, z = affine.symmetric(w, 8), affine.signed(w, 8), affine.zero_point(w, 8)
        l:section "The affine way: the least value becomes 0, the largest 255"
        l:lines("weights  " .. joined("%g", w), ("range    %g - %g = %g"):format(a.low + 255 * a.step, a.low,
            255 * a.step),
            ("step     %g / 255 = %.6f"):format(255 * a.step, a.step),
            ("first    (%g - %g) / %.6f = %.3f, rounded %d"):format(w[1], a.low, a.step, a.scaled[1],
                a.codes[1]),
            "codes    " .. join(a.codes), ("back     %d * %.6f + %g = %.6f: off by %+.4f"):format(a.codes[1],
                a.step, a.low, a.back[1],
            a.errors[1]))
        l:figure { codes = join(a.codes), step = a.step, worst = a.worst, rmse = a.rmse }
        l:say("The largest error is %.4f; half a step is %.4f, and no error can be larger. Codes from 0 to "
            .. "255 are unsigned, UINT8; less 128 they are signed: %s.", a.worst, a.step / 2, join(g.codes))
        l:section "Symmetric: 0 stays 0, the largest magnitude becomes 127"
        l:lines(("step     %g / 127 = %.6f"):format(127 * s.step, s.step), "codes    " .. join(s.codes))
        l:figure { symmetric = join(s.codes), signed = join(g.codes), symmetric_step = s.step }
        l:say("The step is larger, %.4f against %.4f, because the two ends of the range are not equally far "
            .. "from 0. In return there is no zero point to store or to add, which is why weights are "
            .. "mostly done this way.", s.step,
                a.step)
        local other = {}
        for i, code in ipairs(z.codes) do
            if code ~= a.codes[i] then
                other[#other + 1] = ("%g becomes %d instead of %d"):format(w[i], code, a.codes[i])
            end
        end
        l:figure { zero_point = affine.round(z.zero) }
        l:say("With a whole zero point, %d, as PyTorch keeps it, %s: the rounding of the zero point moves "
            .. "every value a little.", z.zero,
            #other > 0 and table.concat(other, ", ") or "nothing changes")
        l:section "All of it, and what a tutorial printed"
        l:picture(plot.nine { claimed = affine.printed })
        local wrong, squares, worst = 0, 0, 0
        for i, code in ipairs(affine.printed) do
            local off = a.low + code * a.step - w[i]
            wrong, squares, worst = wrong + (code ~= a.codes[i] and 1 or 0), squares + off ^ 2,
                math.max(worst, math.abs(off))
        end
        l:figure { printed_wrong = wrong, printed_worst = worst, printed_rmse = math.sqrt(squares / #w) }
        l:say("%d of its %d codes are not what its formula gives; decoded, they are off by up to %.2f, %.0f "
            .. "times what is possible.", wrong,
            #w, worst, worst / a.worst)
        l:remember("code = round((w - min) / step), step = (max - min) / 255; back = min + code * step.",
            "The error is at most half a step. If it is more, something else is wrong.",
            "Symmetric codes need no zero point and lose a little range.")
    end,
}
