// Put into a copy of a page: moves its sliders, measures what is drawn, and leaves what it found in a <pre>.
// WANTED is replaced by {slider: value}, the positions to move to.
addEventListener("load", () => {
    const found = { errors: [], outputs: [], texts: {} };
    const wanted = WANTED;
    document.querySelectorAll("input[type=range]").forEach(input => {
        if (wanted[input.name] === undefined) return;
        input.value = wanted[input.name];
        input.dispatchEvent(new Event("input"));
    });
    document.querySelectorAll("figure[data-live]").forEach(figure => {
        found.outputs.push([figure.dataset.live, figure.querySelector("output").textContent]);
        found.texts[figure.dataset.live] = [...figure.querySelectorAll("svg text")].map(t => t.textContent);
    });

    const luminance = colour => {
        const [r, g, b] = colour.match(/[\d.]+/g).map(Number).map(v => v / (/^color/.test(colour) ? 1 : 255))
            .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const contrast = (a, b) => {
        const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
        return (high + 0.05) / (low + 0.05);
    };
    const fill = element => getComputedStyle(element).fill;

    document.querySelectorAll("svg.qm").forEach(svg => {
        const name = svg.querySelector("title").textContent, frame = svg.getBoundingClientRect();
        const texts = [...svg.querySelectorAll("text")].filter(t => t.textContent.trim() && getComputedStyle(t).visibility === "visible"
            && t.closest("[style*='display: none']") === null);
        const boxes = texts.map(t => t.getBoundingClientRect());
        const scale = frame.width / svg.viewBox.baseVal.width, slack = 2 * scale;
        texts.forEach((t, i) => {
            const b = boxes[i];
            if (b.left < frame.left || b.right > frame.right || b.top < frame.top || b.bottom > frame.bottom)
                found.errors.push(`${name}: '${t.textContent}' is cut off`);
            for (let k = 0; k < i; k++) {
                if (t.closest("[data-key]") || texts[k].closest("[data-key]")) continue; // moves, and has a halo
                const c = boxes[k];
                if (b.left + slack < c.right && c.left + slack < b.right && b.top + 2 * slack < c.bottom && c.top + 2 * slack < b.bottom)
                    found.errors.push(`${name}: '${t.textContent}' lies over '${texts[k].textContent}'`);
            }
            // what is behind the middle of the text
            const middle = [b.left + b.width / 2, b.top + b.height / 2];
            const behind = [...svg.querySelectorAll("rect")].filter(r => {
                const q = r.getBoundingClientRect();
                return q.left <= middle[0] && q.right >= middle[0] && q.top <= middle[1] && q.bottom >= middle[1];
            }).pop();
            const ratio = contrast(fill(t), fill(behind));
            if (ratio < 3.8 || (ratio < 4.5 && behind.classList.contains("paper")))
                found.errors.push(`${name}: '${t.textContent}' has a contrast of ${ratio.toFixed(2)} only`);
        });
    });
    const wide = document.documentElement.scrollWidth;
    if (wide > innerWidth) found.errors.push(`the page is ${wide} wide in a window of ${innerWidth}`);
    const result = document.createElement("pre");
    result.id = "probe";
    result.textContent = JSON.stringify(found);
    document.body.append(result);
});
