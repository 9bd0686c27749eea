"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const say = (key, args = {}) => {
    const text = data.texts[root.lang][key];
    return (text === undefined ? key.replace(/^group\./, "") : text).replace(/\{(\w+)\}/g, (_, name) => args[name]);
  };

  // The language switch: spans by CSS, attributes here, the script's own words by drawing again.
  const redraw = [];
  const setLanguage = (language) => {
    root.lang = language;
    for (const button of document.querySelectorAll("button.language"))
      button.setAttribute("aria-pressed", String(button.dataset.language === language));
    for (const element of document.querySelectorAll("[data-i18n]"))
      for (const [name, texts] of Object.entries(JSON.parse(element.dataset.i18n))) element.setAttribute(name, texts[language]);
    for (const draw of redraw) draw();
  };
  for (const button of document.querySelectorAll("button.language"))
    button.addEventListener("click", () => setLanguage(button.dataset.language));

  // A table that is wider than its place says so, and shades the side where it goes on.
  for (const box of document.querySelectorAll(".scroll")) {
    const outer = box.closest(".scroller");
    const look = () => {
      const room = box.scrollWidth - box.clientWidth;
      outer.classList.toggle("is-wide", room > 1);
      outer.classList.toggle("more-right", box.scrollLeft < room - 1);
      outer.classList.toggle("more-left", box.scrollLeft > 1);
    };
    box.addEventListener("scroll", look, { passive: true });
    new ResizeObserver(look).observe(box);
    redraw.push(look);
  }

  const body = document.querySelector("#rows tbody");
  if (body) answers(body);
{% if with_samples %}
  samples(document.querySelector("#samples tbody"));
{% endif %}
  if (data.charts.length) charts();
  setLanguage(root.lang);

  // Vega-Lite draws the charts as SVG. `ast`: expressions are interpreted, so that the page forbids eval.
  function charts() {
    const PAPER = 703; // A4 less its margins, in CSS pixels
    const boxes = [...document.querySelectorAll("figure.chart")];
    const views = new Map();
    const columnsOf = (chart, room) => (room < 560 ? 1 : room < 900 ? Math.min(chart.room.columns, 2) : chart.room.columns);
    const widthOf = ({ room: { sides, gap } }, columns, room) => Math.floor((room - sides - gap * (columns - 1)) / columns);
    const draw = async (box) => {
      const chart = data.charts[box.dataset.chart], room = box.clientWidth, columns = columnsOf(chart, room);
      const spec = structuredClone(chart.specs[root.lang]), packed = chart.rows[chart.order[root.lang]];
      spec.data = { values: packed.rows.map((row) => Object.fromEntries(row.map((value, i) => [packed.fields[i], value]).filter(([, value]) => value !== null))) };
      const config = structuredClone(data.theme);
      config.legend.columns = Math.max(1, Math.floor(room / chart.room.name));
      const width = widthOf(chart, columns, room);
      Object.assign(spec.spec ?? spec, { width });
      Object.assign(config.header, { labelLimit: width });
      if (spec.facet) Object.assign(spec, { columns });
      views.get(box)?.finalize();
      views.set(box, await vegaEmbed(box, spec, { config, actions: false, renderer: "svg", ast: true, patch: labels, tooltip: { theme: "custom" } }));
    };
    // A name goes where there is room beside its mark, off the other marks; where there is none, the legend has it.
    const labels = (spec) => {
      const named = spec.marks.find((mark) => mark.name === "only_labels_marks");
      if (!named) return spec;
      const anchor = ["top-right", "bottom-right", "top-left", "bottom-left", "right", "left", "top", "bottom"];
      const offset = [9, 14, 22].flatMap((far) => anchor.map(() => far));
      const avoidMarks = spec.marks.slice(0, spec.marks.indexOf(named)).filter((mark) => mark.type === "symbol").map((mark) => mark.name);
      named.clip = true; // what found no place takes no room
      named.transform = [{ type: "label", size: { signal: "[width, height]" }, anchor: [...anchor, ...anchor, ...anchor], offset, avoidMarks }];
      return spec;
    };
    let last = Promise.resolve();
    const drawAll = () => { for (const box of boxes) last = last.then(() => draw(box)).catch(console.error); };
    const fit = (room) => {
      for (const [box, { view, spec }] of views) {
        const width = widthOf(data.charts[box.dataset.chart], spec.columns ?? 1, room || box.clientWidth);
        view.signal(spec.facet ? "child_width" : "width", width).run();
      }
    };
    let wide = root.clientWidth, wait = 0;
    addEventListener("resize", () => {
      clearTimeout(wait);
      wait = setTimeout(() => { if (root.clientWidth !== wide) { wide = root.clientWidth; drawAll(); } }, 150);
    });
    addEventListener("beforeprint", () => fit(PAPER));
    addEventListener("afterprint", () => fit());
    redraw.push(drawAll);
  }

  function answers(body) {
    const { cells, probes, diffs, rows } = data;
    const total = rows.length / 4;
    const PAGE = 100;
    const OK = 1, STRICT = 2, LEAK = 4, LIKELIER = 8, COUNTED = 16;
    const form = document.getElementById("filters");
    const count = document.getElementById("count");
    const more = document.getElementById("more");
    // The filters on a cell's columns, in the order of `cells`; then the probe's group.
    const fields = ["model", "method", "change", "seed", "checkpoint"];
    const values = {};
    fields.forEach((name, i) => { values[name] = [...new Set(cells.map((cell) => String(cell[i])))]; });
    values.group = [...new Set(probes.map((probe) => probe[0]))];
    const ORDER = ["reliability", "generality", "locality"];
    const place = (group) => { const i = ORDER.indexOf(group.split(".")[0]); return i < 0 ? 9 : i; };
    values.group.sort((a, b) => place(a) - place(b));
    const many = (name) => values[name].length > 1;

    const groupName = (group) => {
      const head = group.split(".")[0];
      return head === group ? say("group." + group) : say("group." + head) + " · " + say("group." + group);
    };

    // A technical name may be broken after its marks; the noise floor is no method's name, but words.
    const breakable = (text) => text.split(/(?<=[._\/~-])/).flatMap((part, i) => (i ? [document.createElement("wbr"), part] : [part]));
    const methodName = (name) => (name === "noise floor" ? say("answers.noise_floor") : name);

    const fill = () => {
      for (const name of [...fields, "group"]) {
        const select = form.elements[name];
        const chosen = select.value;
        select.closest("label").hidden = !many(name);
        const options = [option("", say("answers.all"))];
        if (name === "group")
          for (const head of ORDER.slice(1))
            if (values.group.some((group) => group.startsWith(head + "."))) options.push(option(head, say("group." + head)));
        for (const value of values[name]) options.push(option(value, name === "group" ? groupName(value) : name === "method" ? methodName(value) : value));
        select.replaceChildren(...options);
        select.value = chosen;
      }
    };
    const option = (value, text) => { const o = document.createElement("option"); o.value = value; o.textContent = text; return o; };

    let matching = [];
    let shown = 0;

    const find = () => {
      const want = fields.map((name) => form.elements[name].value);
      const group = form.elements.group.value;
      const words = form.elements.search.value.normalize("NFKC").toLowerCase().split(/\s+/).filter(Boolean);
      const cellFits = cells.map((cell) => want.every((value, i) => !value || String(cell[i]) === value));
      const probeFits = probes.map((probe) => !group || probe[0] === group || probe[0].startsWith(group + "."));
      const needsChange = form.elements.only_changed.checked;
      const needsWrong = form.elements.only_wrong.checked;
      const needsLeak = form.elements.only_leak.checked;
      matching = [];
      for (let i = 0; i < rows.length; i += 4) {
        if (!cellFits[rows[i]] || !probeFits[rows[i + 1]]) continue;
        if (needsChange && diffs[rows[i + 2]].length === 1) continue;
        if (needsWrong && (rows[i + 3] & OK || !(rows[i + 3] & COUNTED))) continue;
        if (needsLeak && !(rows[i + 3] & LEAK)) continue;
        if (words.length) {
          const text = (probes[rows[i + 1]].slice(1).join("\n") + "\n" + side(rows[i + 2], 2) + "\n" + side(rows[i + 2], 1)).normalize("NFKC").toLowerCase();
          if (!words.every((word) => text.includes(word))) continue;
        }
        matching.push(i);
      }
      body.replaceChildren();
      shown = 0;
      show(PAGE);
    };
    // One side of a difference: without the added parts (2) it is the text before, without the removed (1) the one after.
    const side = (diff, without) => diffs[diff].filter((_, i) => i % 3 !== without).join("");

    const show = (n) => {
      const piece = document.createDocumentFragment();
      for (const i of matching.slice(shown, shown + n)) piece.append(row(i));
      body.append(piece);
      shown = Math.min(shown + n, matching.length);
      const number = (value) => value.toLocaleString("en");
      count.textContent = say(matching.length < total ? "answers.count" : "answers.count_all", { shown: number(shown), matching: number(matching.length), total: number(total) });
      if (!matching.length) count.textContent += " " + say("answers.no_match");
      more.hidden = shown >= matching.length;
    };

    const element = (name, text, className) => {
      const e = document.createElement(name);
      if (text !== undefined) e.textContent = text;
      if (className) e.className = className;
      return e;
    };
    const whole = (parts, className) => {
      const e = element("span", undefined, className);
      e.append(...parts);
      return e;
    };
    const HAN = /[\u3400-\u9fff\uf900-\ufaff]/;
    const cell = (label, ...children) => {
      const td = element("td");
      td.setAttribute("role", "cell");
      td.dataset.label = say("answers." + label);
      const inside = element("div");
      inside.append(...children);
      if (HAN.test(inside.textContent)) inside.lang = "zh-Hant";
      td.append(inside);
      return td;
    };
    const marked = (diff, kept, tag) => {
      const parts = [];
      diffs[diff].forEach((text, i) => {
        if (text && i % 3 === 0) parts.push(text);
        if (text && i % 3 === kept) parts.push(element(tag, text));
      });
      return parts.length ? parts : [element("span", say("answers.empty"), "soft")];
    };

    const row = (i) => {
      const [model, method, change, seed, checkpoint] = cells[rows[i]];
      const [group, question, expected] = probes[rows[i + 1]];
      const diff = rows[i + 2], flags = rows[i + 3];
      const local = group.startsWith("locality");
      const who = [change];
      if (many("model")) who.unshift(model);
      if (many("seed")) who.push("s" + seed);
      if (many("checkpoint")) who.push(checkpoint);
      const verdict = !(flags & COUNTED) ? "uncounted" : flags & OK ? (local ? "kept" : "right") : local ? "changed" : "wrong";
      const result = [element("span", say("answers." + verdict), verdict === "uncounted" ? "soft" : flags & OK ? "" : "wrong")];
      if (flags & LEAK) result.push(" ", element("span", say("answers.leak"), "leaked"));
      // The strict comparison is said only where it differs from the verdict.
      if (local && flags & COUNTED && Boolean(flags & OK) !== Boolean(flags & STRICT)) result.push(element("span", say(flags & STRICT ? "answers.same_text" : "answers.other_text"), "sub"));
      if (!local && !(flags & OK) && flags & LIKELIER) result.push(element("span", say("answers.likelier"), "sub"));
      const tr = element("tr");
      tr.setAttribute("role", "row");
      tr.append(
        cell("method", whole(breakable(methodName(method))), whole(breakable(who.join(" · ")), "sub")),
        cell("group", groupName(group)),
        cell("question", question),
        cell("expected", expected ? element("span", expected) : element("span", say("answers.as_before"), "soft")),
        cell("before", ...marked(diff, 1, "del")),
        cell("after", ...marked(diff, 2, "ins")),
        cell("result", ...result),
      );
      return tr;
    };

    let wait = 0;
    form.addEventListener("input", () => { clearTimeout(wait); wait = setTimeout(find, 120); });
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(find));
    more.addEventListener("click", () => show(PAGE));
    // A number in the table opens the answers behind it.
    for (const link of document.querySelectorAll("a[data-group]"))
      link.addEventListener("click", () => {
        form.reset();
        const { model, method, group } = link.dataset;
        form.elements.model.value = model;
        form.elements.method.value = method;
        if (group === "leak") form.elements.only_leak.checked = true;
        else form.elements.group.value = group;
        setTimeout(find, 1);
      });
    redraw.push(() => { fill(); find(); });
    form.hidden = false;
  }
{% if with_samples %}
{% include "samples.js" %}
{% endif %}
})();
