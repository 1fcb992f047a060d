-- The JSON writer, against what Python's json.dumps writes.

local core = require "qmoon.core"
local json = require "qmoon.json"

local function same(got, want)
    assert(got == want, ("got %s, want %s"):format(got, want))
end

return {
    ["floats are written as Python's repr writes them"] = function()
        local golden = { -- json.dumps of each
            { 1e-6, "1e-06" }, { 1e-4, "0.0001" }, { 1.5e-5, "1.5e-05" }, { 0.1, "0.1" }, { 1 / 3,
                "0.3333333333333333" },
            { 10000, "10000.0" }, { 1e15, "1000000000000000.0" }, { 1e16, "1e+16" }, { 123456789012345680,
                "1.2345678901234568e+17" },
            { 5e-324, "5e-324" }, { 1.7976931348623157e308, "1.7976931348623157e+308" }, { -2.5, "-2.5" },
                { 0, "0.0" },
            { 0.1 + 0.2, "0.30000000000000004" }, { 9.999999974752427e-07, "9.999999974752427e-07" },
                { 1e22, "1e+22" },
            { 1234.5678, "1234.5678" }, { 6, "6.0" }, { -0.0, "-0.0" },
        }
        for _, row in ipairs(golden) do
            same(json.encode(json.float(row[1])), row[2])
            assert(tonumber(row[2]) == row[1])
        end
        assert(not pcall(json.encode, json.float(0 / 0)))
        assert(not pcall(json.encode, math.huge))
    end,

    ["whole numbers are integers unless they are said to be floats"] = function()
        same(json.encode { 0, 1, -7, 151936, 2 ^ 53 - 1 }, "[0, 1, -7, 151936, 9007199254740991]")
        same(json.encode { 0.5, json.float(6) }, "[0.5, 6.0]")
    end,

    ["a float32 is widened to the number somebody meant"] = function()
        same(json.encode(json.widen(9.999999974752427e-07)), "1e-06")
        same(json.encode(json.widen(0.10000000149011612)), "0.1")
        same(json.encode(json.widen(1000000)), "1000000")
        local third = 0.3333333432674408 -- (float)(1/3)
        assert(core.pack("f", json.widen(third)) == core.pack("f", third))
    end,

    ["strings are escaped as with ensure_ascii=False, or with it"] = function()
        local text = 'a"b\\c/\n\r\t\b\f\1\127é▁😀'
        same(json.encode(text), '"a\\"b\\\\c/\\n\\r\\t\\b\\f\\u0001\127é▁😀"')
        same(json.encode(text, { ascii = true }),
            '"a\\"b\\\\c/\\n\\r\\t\\b\\f\\u0001\127\\u00e9\\u2581\\ud83d\\ude00"')
        same(json.encode "Ġ¡ÿ", '"Ġ¡ÿ"')
    end,

    ["objects keep their order, plain tables are sorted, and both indent like Python"] = function()
        local value = json.object { { "b", 1 }, { "a", { x = true, c = core.null } }, { "l", { 1, {} } },
            { "o", json.object {} } }
        same(json.encode(value), '{"b": 1, "a": {"c": null, "x": true}, "l": [1, []], "o": {}}')
        same(json.encode(value, { indent = 2 }),
            '{\n  "b": 1,\n  "a": {\n    "c": null,\n    "x": true\n  },\n  "l": [\n    1,\n    []\n  ],\n  "o": {}\n}')
    end,

    ["what cannot be written is an error"] = function()
        assert(not pcall(json.encode, print))
        assert(not pcall(json.encode, { [{}] = 1 }))
        assert(not pcall(json.encode, { a = 1, [true] = 2 }))
    end,

    ["what is written is read back"] = function()
        local value = { "x", 1.25, { k = "v\n\0x" }, true }
        value[3].k = "v\n\\u0"
        local back = core.json_decode(json.encode(value, { indent = 1 }), "test")
        assert(back[1] == "x" and back[2] == 1.25 and back[3].k == "v\n\\u0" and back[4] == true)
    end,
}
