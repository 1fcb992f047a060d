// The sliders of a page: computes anew what a picture shows, and moves what is drawn.
//
// Every figure has its description as JSON ("live") and, in its SVG, groups that say where to draw: data-x0, data-low
// and so on.  Data are f32 values in base64, once a page.  Nothing is loaded.
"use strict";
(() => {
    const $ = (root, selector) => root.querySelector(selector);
    const all = (root, selector) => [...root.querySelectorAll(selector)];
    const sum = list => list.reduce((a, b) => a + b, 0);
    const num = (g, name) => Number(g.dataset[name]);

    // ---- data and quantising -------------------------------------------------------------------------------

    const decoded = {};
    function values(id) {
        if (!decoded[id]) {
            const text = atob(document.getElementById(id).textContent.trim());
            decoded[id] = new Float32Array(Uint8Array.from(text, c => c.charCodeAt(0)).buffer);
        }
        return decoded[id];
    }

    function nearest(levels, v) {
        let low = 0, high = levels.length - 1;
        while (low < high) {
            const middle = (low + high) >> 1;
            if (v > (levels[middle] + levels[middle + 1]) / 2) low = middle + 1; else high = middle;
        }
        return low;
    }

    // visit(i, share of the block's largest, code, value that comes back)
    function quantise(x, levels, block, visit) {
        for (let first = 0; first < x.length; first += block) {
            const last = Math.min(x.length, first + block);
            let most = 0;
            for (let i = first; i < last; i++) most = Math.max(most, Math.abs(x[i]));
            for (let i = first; i < last; i++) {
                const share = most > 0 ? x[i] / most : 0, code = nearest(levels, share);
                visit(i, share, code, Math.fround(levels[code] * most));
            }
        }
    }

    function figures(x, levels, block) {
        let xx = 0, dd = 0;
        const counts = levels.map(() => 0);
        quantise(x, levels, block, (i, share, code, back) => {
            counts[code]++;
            xx += x[i] * x[i];
            dd += (back - x[i]) ** 2;
        });
        return { counts, rmse: Math.sqrt(dd / x.length), sqnr: 10 * Math.log10(xx / dd) };
    }

    const entropy = counts => -sum(counts.filter(c => c > 0).map(c => c / sum(counts)).map(p => p * Math.log2(p)));
    const table = (spec, kind, bits) => spec.levels[kind][bits - 2];
    const scaleBits = block => 32 / block;

    // ---- drawing -------------------------------------------------------------------------------------------

    const place = (g, v) => num(g, "x0") + (v - num(g, "low")) / (num(g, "high") - num(g, "low")) * (num(g, "x1") - num(g, "x0"));

    function part(g, name, text) {
        const element = $(g, `[data-part="${name}"]`);
        if (element) element.textContent = text;
        return element;
    }

    function ruler(g, levels, label) {
        const y = num(g, "y");
        $(g, ".tick").setAttribute("d", levels.map(v => `M${place(g, v).toFixed(2)} ${y - 10}v20`).join(""));
        part(g, "label", label);
        part(g, "note", levels.length);
    }

    function bars(g, rows, high = num(g, "high")) {
        const rects = all(g, "rect"), texts = all(g, "text"), x0 = num(g, "x0"), room = num(g, "x1") - x0;
        rows.forEach((row, i) => {
            const w = Math.max(0, Math.min(1, row.value / high)) * room;
            rects[i].setAttribute("width", w.toFixed(2));
            texts[2 * i + 1].setAttribute("x", (x0 + w + 6).toFixed(2));
            texts[2 * i + 1].textContent = row.text;
        });
    }

    // All bars anew, on a scale on which the longest fits: rows are {parts, text, label, bad}.
    function stacks(svg, rows) {
        const groups = all(svg, "[data-stack]"), limit = $(svg, "[data-limit]");
        const high = Math.max(limit ? 1.15 * num(limit, "limit") : 0, ...rows.map(row => sum(row.parts)));
        groups.forEach((g, r) => {
            const scale = (num(g, "x1") - num(g, "x0")) / high;
            let x = num(g, "x0");
            all(g, "rect").forEach((rect, i) => {
                rect.setAttribute("x", x.toFixed(2));
                rect.setAttribute("width", (rows[r].parts[i] * scale).toFixed(2));
                x += rows[r].parts[i] * scale;
            });
            part(g, "text", rows[r].text).setAttribute("class", rows[r].bad ? "label badtext" : "label");
            part(g, "label", rows[r].label);
            if (limit && r === 0) {
                const at = num(g, "x0") + num(limit, "limit") * scale;
                limit.setAttribute("transform", `translate(${(at - num(limit, "at")).toFixed(2)} 0)`);
            }
        });
    }

    function plane(g) {
        const along = (v, low, high, log) => log ? Math.log(v / low) / Math.log(high / low) : (v - low) / (high - low);
        return {
            x: v => num(g, "x0") + along(v, num(g, "xlow"), num(g, "xhigh"), g.dataset.xlog) * (num(g, "x1") - num(g, "x0")),
            y: v => num(g, "bottom") - along(v, num(g, "ylow"), num(g, "yhigh")) * (num(g, "bottom") - num(g, "top")),
        };
    }

    function curve(g, index, points) {
        const path = all(g, ".curve")[index], { x, y } = plane(g), step = path.dataset.style === "step";
        path.setAttribute("d", points.map((p, i) => i === 0 ? `M${x(p[0]).toFixed(2)} ${y(p[1]).toFixed(2)}`
            : step ? `H${x(p[0]).toFixed(2)}V${y(p[1]).toFixed(2)}` : `L${x(p[0]).toFixed(2)} ${y(p[1]).toFixed(2)}`).join(""));
    }

    function point(g, key, px, py, label) {
        let mark = $(g, `[data-key="${key}"]`);
        if (!mark) {
            mark = document.createElementNS("http://www.w3.org/2000/svg", "g");
            mark.dataset.key = key;
            mark.innerHTML = '<circle r="6.5" class="s3"/><text class="label over" text-anchor="middle"></text>';
            g.append(mark);
        }
        const { x, y } = plane(g), [circle, text] = mark.children;
        circle.setAttribute("cx", x(px).toFixed(2));
        circle.setAttribute("cy", y(py).toFixed(2));
        text.setAttribute("x", x(px).toFixed(2));
        text.setAttribute("y", (y(py) - 12).toFixed(2));
        text.textContent = label;
    }

    function cells(panel, rows) {
        all(panel, "[data-cells]").forEach((g, r) => all(g, "text").forEach((text, k) => {
            if (rows[r] && rows[r][k] !== undefined) text.textContent = rows[r][k];
        }));
    }

    const heatClass = v => {
        const k = Math.max(-4, Math.min(4, Math.trunc(v * 4 + (v < 0 ? -0.5 : 0.5))));
        return k < 0 ? `n${-k}` : `p${k}`;
    };
    const heat = (g, list) => all(g, "rect").forEach((rect, i) => rect.setAttribute("class", heatClass(list[i])));
    const heading = (svg, index, text) => { $(svg, `[data-heading="${index}"]`).textContent = text; };

    // ---- the pictures --------------------------------------------------------------------------------------

    const names = { int: "int", normal: "nf" };
    const live = {};

    live.rulers = (svg, spec, at) => {
        all(svg, "[data-ruler]").forEach(g => {
            const kind = /^int\d/.test(g.dataset.ruler) ? "int" : /^nf\d/.test(g.dataset.ruler) ? "normal" : null;
            if (kind) ruler(g, table(spec, kind, at.bits), names[kind] + at.bits);
        });
        return `${at.bits} bits: ${2 ** at.bits - 1} even levels, ${2 ** at.bits} normal ones`;
    };

    live.weights = (svg, spec, at) => {
        const levels = table(spec, spec.kind, at.bits), g = $(svg, "[data-histogram]"), counts = new Array(spec.bins).fill(0);
        let dd = 0, xx = 0;
        const x = values(spec.data);
        quantise(x, levels, at.block, (i, share, code, back) => {
            counts[Math.min(spec.bins - 1, Math.floor((share + 1) / 2 * spec.bins))]++;
            xx += x[i] ** 2;
            dd += (back - x[i]) ** 2;
        });
        const most = Math.max(...counts), bottom = num(g, "bottom"), tall = bottom - num(g, "top");
        const lines = (list, y1, y2) => list.map(v => `M${place(g, v).toFixed(2)} ${y1}V${y2}`).join("");
        part(g, "area").setAttribute("d", `M${num(g, "x0")} ${bottom}` + counts.map((c, i) => `V${(bottom - c / most * tall).toFixed(2)}`
            + `H${place(g, -1 + 2 * (i + 1) / spec.bins).toFixed(2)}`).join("") + `V${bottom}Z`);
        part(g, "levels").setAttribute("d", lines(levels, bottom, bottom + 14));
        part(g, "borders").setAttribute("d", lines(levels.slice(1).map((v, i) => (v + levels[i]) / 2), num(g, "top") - 6, bottom));
        return `${names[spec.kind]}${at.bits}, blocks of ${at.block}: ${(10 * Math.log10(xx / dd)).toFixed(2)} dB at `
            + `${(at.bits + scaleBits(at.block)).toFixed(3)} bits a weight`;
    };

    live.staircase = (svg, spec, at) => {
        const stairs = $(svg, '[data-xy="stairs"]'), saws = $(svg, '[data-xy="saws"]'), ends = [-1.25, 1.25];
        ["int", "normal"].forEach((kind, s) => {
            const l = table(spec, kind, at.bits), step = [[ends[0], l[0]]], saw = [[ends[0], l[0] - ends[0]]];
            for (let i = 1; i < l.length; i++) {
                const x = (l[i - 1] + l[i]) / 2;
                step.push([x, l[i]]);
                saw.push([x, l[i - 1] - x], [x, l[i] - x]);
            }
            step.push([ends[1], l.at(-1)]);
            saw.push([ends[1], l.at(-1) - ends[1]]);
            curve(stairs, s, step);
            curve(saws, s, saw.map(p => [p[0], Math.max(-0.25, Math.min(0.25, p[1]))]));
        });
        return `${at.bits} bits: steps of int${at.bits} are ${(2 / (2 ** at.bits - 2)).toFixed(4)} wide`;
    };

    const halfEven = v => { const r = Math.round(v); return Math.abs(v % 1) === 0.5 && r % 2 !== 0 ? r - 1 : r; };

    function affine(w, step, zero, least, top) {
        const scaled = w.map(v => step > 0 ? v / step + zero : 0);
        const codes = scaled.map(v => Math.max(least, Math.min(top, halfEven(v))));
        const back = codes.map(c => (c - zero) * step), errors = back.map((b, i) => b - w[i]);
        return { scaled, codes, back, errors, worst: Math.max(...errors.map(Math.abs)) };
    }

    live.nine = (svg, spec, at) => {
        const w = spec.values, low = Math.min(...w), high = Math.max(...w), top = 2 ** at.bits - 1, half = 2 ** (at.bits - 1);
        const step = (high - low) / top, even = Math.max(-low, high) / (half - 1);
        const ways = [affine(w, step, -low / step, 0, top), affine(w, step, -low / step - half, -half, half - 1),
            affine(w, even, 0, 1 - half, half - 1)];
        const signed = v => (v < 0 ? "-" : "+") + Math.abs(v).toFixed(3);
        const clean = v => { const r = Math.round(v * 1000) / 1000; return r === 0 ? 0 : r; };
        ways.forEach((way, i) => cells($(svg, `[data-panel="${i}"]`), [[], ["scaled", ...way.scaled.map(v => v.toFixed(2))],
            ["code", ...way.codes.map(String)], ["back", ...way.back.map(v => v.toFixed(3))],
            ["error", ...way.errors.map(v => signed(clean(v)))]]));
        $(svg, "[data-title] text").textContent = `${w.length} numbers as INT${at.bits}`;
        heading(svg, 0, `affine: code = round((w ${low < 0 ? "+" : "-"} ${Math.abs(low)}) / ${step.toFixed(6)}), 0 to ${top}`);
        heading(svg, 1, `signed: the same, less ${half}`);
        heading(svg, 2, `symmetric: code = round(w / ${even.toFixed(6)}), ${1 - half} to ${half - 1}`);
        return `${at.bits} bits: largest error ${ways[0].worst.toFixed(4)} affine, ${ways[2].worst.toFixed(4)} symmetric`;
    };

    live.outlier = (svg, spec, at) => {
        const clean = values(spec.data), dirty = clean.slice(), levels = table(spec, "normal", at.bits);
        for (let i = spec.every / 2; i < dirty.length; i += spec.every) dirty[i] = at.outlier;
        const groups = all(svg, "[data-bars]"), blocks = [32, 64, 128, 256, 512, 1024, 2048, 4096];
        const found = [clean, dirty].map(x => blocks.map(block => figures(x, levels, block).rmse));
        const high = Math.max(...found.flat());
        groups.forEach((g, s) => bars(g, found[s].map(v => ({ value: v, text: v.toFixed(4) })), high));
        return `nf${at.bits}, outliers of ${at.outlier} sigma: in blocks of 4096 ${(found[1][7] / found[0][7]).toFixed(1)} times the error, `
            + `in blocks of 64 ${(100 * (found[1][1] / found[0][1] - 1)).toFixed(0)} % more`;
    };

    live.buckets = (svg, spec, at) => {
        const x = values(spec.data), counts = spec.levels.map(levels => figures(x, levels, at.block).counts);
        const high = Math.max(...counts.flat()) / x.length;
        const said = counts.map((list, s) => {
            bars(all(svg, "[data-bars]")[s], list.map(c => ({ value: c / x.length, text: `${(100 * c / x.length).toFixed(2)} %` })), high);
            const name = `${spec.names[s]}: ${entropy(list).toFixed(2)} bits`;
            $(svg, `[data-series="${s}"]`).textContent = name;
            return name;
        });
        return `blocks of ${at.block}: ${said.join(", ")}`;
    };

    const fourBit = (label, at) => label === "nf4:dq" ? "…:dq" : `nf${at.bits}:${at.block}`;

    live.ledger = (svg, spec, at) => {
        const own = { nf4: [at.bits, 32 / at.block, 0], "nf4:dq": [at.bits, 8 / at.block, 32 / (at.block * 256)] };
        stacks(svg, spec.rows.map(row => {
            const parts = own[row.label] || row.parts;
            return { parts, text: `${sum(parts).toFixed(3)} bits`, label: own[row.label] ? fourBit(row.label, at) : row.label };
        }));
        const [single, double] = [sum(own.nf4), sum(own["nf4:dq"])];
        return `${at.bits} bits, blocks of ${at.block}: double quantisation saves ${(single - double).toFixed(3)} bits, `
            + `${(100 * (1 - double / single)).toFixed(1)} %`;
    };

    live.memory = (svg, spec, at) => {
        const gib = 2 ** 30, cache = spec.token * at.context / gib, weights = spec.quantised / 8 / gib;
        const scales = { nf4: 32 / at.block, "nf4:dq": 8 / at.block + 32 / (at.block * 256) };
        const rows = spec.rows.map(row => {
            const parts = row.parts.slice(), own = scales[row.label];
            parts[3] = cache;
            if (own) [parts[0], parts[1]] = [weights * at.bits, weights * own];
            return { parts, text: `${sum(parts).toFixed(2)} GiB`, label: own ? fourBit(row.label, at) : row.label, bad: sum(parts) > spec.card };
        });
        stacks(svg, rows);
        const fit = rows.filter(row => !row.bad).map(row => row.label);
        return `context ${at.context}: cache ${cache.toFixed(2)} GiB; ${fit.length ? `below the line: ${fit.join(", ")}` : "nothing fits"}`;
    };

    live.frontier = (svg, spec, at) => {
        const g = $(svg, "[data-xy]"), x = values(spec.data), bits = at.bits + scaleBits(at.block);
        const said = ["normal", "int"].map(kind => {
            const { sqnr } = figures(x, table(spec, kind, at.bits), at.block), name = `${names[kind]}${at.bits}:${at.block}`;
            const inside = bits >= num(g, "xlow") && bits <= num(g, "xhigh") && sqnr >= num(g, "ylow") && sqnr <= num(g, "yhigh");
            point(g, kind, bits, sqnr, name);
            $(g, `[data-key="${kind}"]`).style.display = inside ? "" : "none";
            return `${name} ${sqnr.toFixed(2)} dB`;
        });
        return `${bits.toFixed(3)} bits: ${said.join(", ")}`;
    };

    live.lora = (svg, spec, at) => {
        const w = values(spec.weight), unit = values(spec.delta), factor = at.ratio / 1000, levels = table(spec, "normal", at.bits);
        const d = unit.map(v => v * factor);
        const through = x => { const y = new Float32Array(x.length); quantise(x, levels, at.block, (i, s, c, b) => { y[i] = b; }); return y; };
        const merged = (base) => base.map((v, i) => v + d[i]), less = (a, b) => a.map((v, i) => v - b[i]);
        const base = through(w), kept = less(through(merged(w)), w), lost = less(through(merged(base)), base);
        const share = c => sum([...c].map((v, i) => v * d[i])) / sum([...d].map(v => v * v));
        const first = list => [...list].slice(0, 64), most = list => Math.max(...first(list).map(Math.abs));
        const big = most(w), small = most(d), strips = all(svg, "[data-heat]");
        [[merged(w), big], [d, small], [kept, small], [lost, small]].forEach(([list, scale], i) =>
            heat(strips[i + 1], first(list).map(v => v / scale)));
        const found = [share(kept), share(lost)];
        bars($(svg, "[data-bars]"), found.map(v => ({ value: v, text: `${(100 * v).toFixed(1)} %` })));
        return `update of ${(at.ratio / 10).toFixed(1)} % in nf${at.bits}, blocks of ${at.block}: ${(100 * found[0]).toFixed(0)} % survives on the `
            + `original, ${(100 * found[1]).toFixed(1)} % on the quantised base`;
    };

    // Bits are flipped by a click.
    function flippable(svg, spec, output) {
        const layouts = Object.fromEntries(spec.layouts.map(l => [l[0], { exponent: l[1], mantissa: l[2], special: l[3] }]));
        const value = (bits, l) => {
            const e = parseInt(bits.slice(1, 1 + l.exponent), 2), m = parseInt(bits.slice(1 + l.exponent), 2);
            const bias = 2 ** (l.exponent - 1) - 1, top = 2 ** l.exponent - 1, sign = bits[0] === "1" ? -1 : 1;
            if (l.special === "ieee" && e === top) return m === 0 ? sign * Infinity : NaN;
            if (l.special === "nan" && e === top && m === 2 ** l.mantissa - 1) return NaN;
            return sign * (e === 0 ? 2 ** (1 - bias - l.mantissa) * m : 2 ** (e - bias) * (1 + m / 2 ** l.mantissa));
        };
        svg.addEventListener("click", event => {
            const g = event.target.closest("[data-boxes]"), bit = event.target.dataset.bit;
            if (!g || bit === undefined) return;
            const text = all(g, "text[data-bit]")[bit];
            text.textContent = text.textContent === "1" ? "0" : "1";
            const bits = all(g, "text[data-bit]").map(t => t.textContent).join("");
            part(g, "note", `= ${Number(value(bits, layouts[g.dataset.boxes]).toPrecision(7))}`);
        });
        output.textContent = "Click a bit to flip it.";
    }

    // ---- sliders -------------------------------------------------------------------------------------------

    const wanted = new URLSearchParams(location.hash.slice(1)); // page.html#bits=3&block=128 sets them
    const labels = { outlier: "outlier, sigma", ratio: "|dW|/|W|, per mille" };

    function slider(box, [name, low, high, at], power, changed) {
        const label = document.createElement("label"), input = document.createElement("input"), shown = document.createElement("b");
        const value = () => power ? 2 ** input.value : Number(input.value);
        Object.assign(input, { type: "range", min: low, max: high, step: 1 });
        input.name = name;
        const asked = Number(wanted.get(name));
        input.value = asked ? (power ? Math.log2(asked) : asked) : at;
        shown.textContent = value();
        input.addEventListener("input", () => { shown.textContent = value(); changed(); });
        label.append(labels[name] || name, input, shown);
        box.append(label);
        return { value, moved: wanted.has(name) };
    }

    all(document, "figure[data-live]").forEach(figure => {
        const spec = JSON.parse($(figure, "script").textContent), svg = $(figure, "svg"), output = $(figure, "output");
        if (spec.name === "bits") { flippable(svg, spec, output); return; }
        const sliders = {}, box = $(figure, ".controls");
        const draw = () => {
            const at = Object.fromEntries(Object.entries(sliders).map(([name, s]) => [name, s.value()]));
            output.textContent = live[spec.name](svg, spec, at);
            // what was said of the picture as it was made
            $(svg, "[data-note]").style.visibility = "hidden";
            $(svg, "[data-recipe]").style.opacity = 0.5;
        };
        output.textContent = "Move a slider: the page computes the picture anew.";
        spec.sliders.forEach((s, i) => { sliders[s[0]] = slider(box, s, spec.powers[i], draw); });
        if (Object.values(sliders).some(s => s.moved)) draw();
    });
})();
