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

  if (document.querySelector("#rows")) answers();
{% if with_samples %}
  samples();
{% endif %}
  if (data.charts.length) charts();
  setLanguage(root.lang);

  // ---- charts: Vega-Lite draws them as SVG. `ast`: expressions are interpreted, so that the page can forbid eval.
  function charts() {
    const PAPER = 703; // A4 less its margins, in CSS pixels
    const boxes = [...document.querySelectorAll("figure.chart")];
    const views = new Map();
    const columnsOf = ({ room }, wide) => (wide < 560 ? 1 : wide < 900 ? Math.min(room.columns, 2) : room.columns);
    const widthOf = ({ room: { sides, gap } }, columns, wide) => Math.floor((wide - sides - gap * (columns - 1)) / columns);
    const draw = async (box) => {
      const chart = data.charts[box.dataset.chart], wide = box.clientWidth, columns = columnsOf(chart, wide), width = widthOf(chart, columns, wide);
      const spec = structuredClone(chart.specs[root.lang]), { fields, rows } = chart.rows[chart.order[root.lang]];
      spec.data = { values: rows.map((row) => Object.fromEntries(fields.map((field, i) => [field, row[i]]).filter(([, value]) => value !== null))) };
      if (spec.layer?.some(({ name }) => name === "only_labels")) spec.data.values.push(...names(spec.data.values, width, spec.height));
      const config = structuredClone(data.theme);
      spec.params = [...(spec.params ?? []), { name: "wide", value: wide }];
      config.legend.columns = { expr: `max(1, floor(wide / ${chart.room.name}))` };
      config.header.labelLimit = width;
      Object.assign(spec.spec ?? spec, { width });
      if (spec.facet) Object.assign(spec, { columns });
      views.get(box)?.finalize();
      views.set(box, await vegaEmbed(box, spec, { config, actions: false, renderer: "svg", ast: true, tooltip: { theme: "custom" } }));
    };
    // Names of marks that stand together are one text. It goes where its own marks are nearer than all others, over no
    // other text; where there is no such place, the legend has the names.
    const names = (rows, width, height) => {
      const pen = document.createElement("canvas").getContext("2d"), groups = [], placed = [];
      pen.font = `600 13px ${data.theme.font}`;
      for (const { name, x, y } of rows.filter(({ kind }) => kind === "mean").sort((a, b) => a.x - b.x)) {
        const at = [(x * width) / 100, height - (y * height) / 100];
        const near = groups.find(({ marks: [first] }) => Math.abs(first[0] - at[0]) < 30 && Math.abs(first[1] - at[1]) < 30);
        if (near) near.marks.push(at), (near.name += `, ${name}`);
        else groups.push({ kind: "label", name, x, y, marks: [at] });
      }
      return groups.filter((group) => {
        const own = group.marks, others = groups.filter((one) => one !== group).flatMap(({ marks }) => marks);
        const half = pen.measureText(group.name).width / 2, [xs, ys] = [0, 1].map((i) => own.map((at) => at[i]));
        const left = Math.min(...xs), right = Math.max(...xs), top = Math.min(...ys), bottom = Math.max(...ys);
        const places = [[right + 12 + half, (top + bottom) / 2], [left - 12 - half, (top + bottom) / 2]];
        for (const y of [top - 20, bottom + 20]) places.push([(left + right) / 2, y], [left - 7 + half, y], [right + 7 - half, y]);
        const gap = (x, y, marks) => Math.min(...marks.map(([a, b]) => Math.hypot(Math.max(0, Math.abs(a - x) - half), Math.max(0, Math.abs(b - y) - 8))));
        const free = ([x, y]) => x > half && x + half < width && y > 8 && y + 8 < height && gap(x, y, others) > gap(x, y, own) + 4
          && placed.every(([a, b, other]) => Math.abs(a - x) > other + half + 6 || Math.abs(b - y) > 16);
        const place = places.find(free);
        if (place) placed.push([...place, half]), Object.assign(group, { dx: place[0] - own[0][0], dy: place[1] - own[0][1] });
        return place;
      });
    };
    let last = Promise.resolve();
    const drawAll = () => { for (const box of boxes) last = last.then(() => draw(box)).catch(console.error); };
    const fit = (room) => {
      for (const [box, { view, spec }] of views) {
        const wide = room || box.clientWidth, width = widthOf(data.charts[box.dataset.chart], spec.columns ?? 1, wide);
        view.signal("wide", wide).signal(spec.facet ? "child_width" : "width", width).resize().run();
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

  // ---- rows that are drawn when they are looked at ---------------------------------------------------------------
  function element(name, text, className) {
    const e = document.createElement(name);
    if (text !== undefined) e.textContent = text;
    if (className) e.className = className;
    return e;
  }
  function whole(parts, className) {
    const e = element("span", undefined, className);
    e.append(...parts);
    return e;
  }
  // A row of [label's key, its content ...].
  function line(...cells) {
    const tr = element("tr");
    tr.setAttribute("role", "row");
    for (const [label, ...children] of cells) {
      const td = element("td"), inside = element("div");
      td.setAttribute("role", "cell");
      td.dataset.label = say(label);
      inside.append(...children);
      if (/[\u3400-\u9fff\uf900-\ufaff]/.test(inside.textContent)) inside.lang = "zh-Hant";
      td.append(inside);
      tr.append(td);
    }
    return tr;
  }
  function plain(text) { return text.normalize("NFKC").toLowerCase(); }
  function choose(select, options, chosen = select.value) {
    select.replaceChildren(...options.map(([value, text]) => { const o = element("option", text); o.value = value; return o; }));
    select.value = chosen;
  }

  // A form that filters, and the table that it filters. find(fits): the rows that fit; fits(text): whether it has the words.
  function browse({ form, body, count, more, page, find, row, told }) {
    let matching = [], shown = 0, wait = 0;
    const show = () => {
      body.append(...matching.slice(shown, shown + page).map(row));
      shown = Math.min(shown + page, matching.length);
      count.textContent = told(shown, matching.length);
      more.hidden = shown >= matching.length;
    };
    const again = () => {
      const words = plain(form.elements.search.value).split(/\s+/).filter(Boolean);
      matching = find((text) => { const whole = words.length ? plain(text()) : ""; return words.every((word) => whole.includes(word)); });
      body.replaceChildren();
      shown = 0;
      show();
    };
    form.addEventListener("input", () => { clearTimeout(wait); wait = setTimeout(again, 120); });
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(again));
    more.addEventListener("click", show);
    form.hidden = false;
    return again;
  }

  function answers() {
    const { cells, probes, diffs, rows } = data;
    const OK = 1, STRICT = 2, LEAK = 4, LIKELIER = 8, COUNTED = 16;
    const form = document.getElementById("filters"), wanted = form.elements;
    // The filters on a cell's columns, in the order of `cells`; then the probe's group.
    const fields = ["model", "method", "change", "seed", "checkpoint"];
    const values = Object.fromEntries(fields.map((name, i) => [name, [...new Set(cells.map((cell) => String(cell[i])))]]));
    const ORDER = ["reliability", "generality", "locality"];
    const place = (group) => { const i = ORDER.indexOf(group.split(".")[0]); return i < 0 ? 9 : i; };
    values.group = [...new Set(probes.map((probe) => probe[0]))].sort((a, b) => place(a) - place(b));
    const many = (name) => values[name].length > 1;
    const groupName = (group) => {
      const head = group.split(".")[0];
      return head === group ? say("group." + group) : say("group." + head) + " · " + say("group." + group);
    };
    // A technical name may be broken after its marks; the noise floor is no method's name, but words.
    const breakable = (text) => text.split(/(?<=[._\/~-])/).flatMap((part, i) => (i ? [element("wbr"), part] : [part]));
    const methodName = (name) => (name === "noise floor" ? say("answers.noise_floor") : name);
    const fill = () => {
      for (const name of [...fields, "group"]) {
        const heads = name === "group" ? ORDER.slice(1).filter((head) => values.group.some((group) => group.startsWith(head + "."))) : [];
        const shown = { group: groupName, method: methodName }[name] ?? ((value) => value);
        wanted[name].closest("label").hidden = !many(name);
        choose(wanted[name], [["", say("answers.all")], ...heads.map((head) => [head, say("group." + head)]), ...values[name].map((value) => [value, shown(value)])]);
      }
    };
    // One side of a difference: without the added parts (2) it is the text before, without the removed (1) the one after.
    const side = (diff, without) => diffs[diff].filter((_, i) => i % 3 !== without).join("");
    const find = (fits) => {
      const group = wanted.group.value;
      const cellFits = cells.map((cell) => fields.every((name, i) => !wanted[name].value || String(cell[i]) === wanted[name].value));
      const probeFits = probes.map((probe) => !group || probe[0] === group || probe[0].startsWith(group + "."));
      const matching = [];
      for (let i = 0; i < rows.length; i += 4) {
        const [cell, probe, diff, flags] = rows.slice(i, i + 4);
        if (!cellFits[cell] || !probeFits[probe]) continue;
        if (wanted.only_changed.checked && diffs[diff].length === 1) continue;
        if (wanted.only_wrong.checked && (flags & OK || !(flags & COUNTED))) continue;
        if (wanted.only_leak.checked && !(flags & LEAK)) continue;
        if (fits(() => [...probes[probe].slice(1), side(diff, 2), side(diff, 1)].join("\n"))) matching.push(i);
      }
      return matching;
    };
    const number = (value) => value.toLocaleString("en");
    const told = (shown, matching) => {
      const total = rows.length / 4;
      const text = say(matching < total ? "answers.count" : "answers.count_all", { shown: number(shown), matching: number(matching), total: number(total) });
      return matching ? text : text + " " + say("answers.no_match");
    };
    const marked = (diff, kept, tag) => {
      const parts = diffs[diff].flatMap((text, i) => (text && i % 3 === 0 ? [text] : text && i % 3 === kept ? [element(tag, text)] : []));
      return parts.length ? parts : [element("span", say("answers.empty"), "soft")];
    };
    const row = (i) => {
      const [model, method, change, seed, checkpoint] = cells[rows[i]];
      const [group, question, expected] = probes[rows[i + 1]];
      const diff = rows[i + 2], flags = rows[i + 3];
      const local = group.startsWith("locality");
      const who = [...(many("model") ? [model] : []), change, ...(many("seed") ? ["s" + seed] : []), ...(many("checkpoint") ? [checkpoint] : [])];
      const verdict = !(flags & COUNTED) ? "uncounted" : flags & OK ? (local ? "kept" : "right") : local ? "changed" : "wrong";
      const result = [element("span", say("answers." + verdict), verdict === "uncounted" ? "soft" : flags & OK ? "" : "wrong")];
      if (flags & LEAK) result.push(" ", element("span", say("answers.leak"), "leaked"));
      // The strict comparison is said only where it differs from the verdict.
      if (local && flags & COUNTED && Boolean(flags & OK) !== Boolean(flags & STRICT)) result.push(element("span", say(flags & STRICT ? "answers.same_text" : "answers.other_text"), "sub"));
      if (!local && !(flags & OK) && flags & LIKELIER) result.push(element("span", say("answers.likelier"), "sub"));
      return line(
        ["answers.method", whole(breakable(methodName(method))), whole(breakable(who.join(" · ")), "sub")],
        ["answers.group", groupName(group)],
        ["answers.question", question],
        ["answers.expected", expected ? element("span", expected) : element("span", say("answers.as_before"), "soft")],
        ["answers.before", ...marked(diff, 1, "del")],
        ["answers.after", ...marked(diff, 2, "ins")],
        ["answers.result", ...result],
      );
    };
    const again = browse({ form, body: document.querySelector("#rows tbody"), count: document.getElementById("count"), more: document.getElementById("more"), page: 100, find, row, told });
    // A number in the table opens the answers behind it.
    for (const link of document.querySelectorAll("a[data-group]"))
      link.addEventListener("click", () => {
        form.reset();
        const { model, method, group } = link.dataset;
        wanted.model.value = model;
        wanted.method.value = method;
        if (group === "leak") wanted.only_leak.checked = true;
        else wanted.group.value = group;
        setTimeout(again, 1);
      });
    redraw.push(() => { fill(); again(); });
  }
{% if with_samples %}

  // The samples behind the quadrants: rows are six numbers (see quadrants.py).
  function samples() {
    const { exams, versions, places, items, texts, rows } = data.quadrants;
    const STEP = 6, NAMES = ["kept_right", "forgotten", "gained", "kept_wrong"];
    const form = document.getElementById("pick"), wanted = form.elements;
    const every = Array.from({ length: rows.length / STEP }, (_, i) => i * STEP);
    const sampled = new Set(every.map((i) => rows[i]));
    const values = {
      exam: exams.map((name, i) => [String(i), name]).filter(([i]) => sampled.has(Number(i))),
      model: [...new Set(versions.map((v) => v[0]))].map((name) => [name, name]),
      method: [...new Set(versions.map((v) => v[1]))].map((name) => [name, name]),
    };
    let chosen = { exam: values.exam[0][0], model: "", method: "", quadrant: "1" };
    const fill = () => {
      values.quadrant = NAMES.map((key, i) => [String(i), say("quadrant." + key)]);
      for (const [name, options] of Object.entries(values)) {
        choose(wanted[name], [...(name === "model" || name === "method" ? [["", say("answers.all")]] : []), ...options], chosen[name]);
        wanted[name].closest("label").hidden = options.length < 2;
      }
      chosen = {};
    };
    const find = (fits) => every.filter((i) => {
      const [model, method] = versions[rows[i + 1]];
      if (String(rows[i]) !== wanted.exam.value || String(rows[i + 2]) !== wanted.quadrant.value) return false;
      if ((wanted.model.value && model !== wanted.model.value) || (wanted.method.value && method !== wanted.method.value)) return false;
      return fits(() => [...items[rows[i + 3]], texts[rows[i + 4]]].join("\n"));
    });
    const judged = (text, good) => [text || element("span", say("answers.empty"), "soft"), element("span", say(good ? "answers.right" : "answers.wrong"), good ? "sub" : "sub wrong")];
    const row = (i) => {
      const [model, method] = versions[rows[i + 1]];
      const [question, expected, before] = items[rows[i + 3]];
      const [change, seed] = places[rows[i + 5]];
      const who = [...(values.model.length > 1 ? [model] : []), ...(places.length > 1 ? [...(change ? [change] : []), "s" + seed] : [])];
      return line(
        ["forgetting.method", element("span", method), element("span", who.join(" · "), "sub")],
        ["answers.question", question],
        ["answers.expected", expected || "–"],
        ["answers.before", ...judged(before, rows[i + 2] < 2)],
        ["answers.after", ...judged(texts[rows[i + 4]], rows[i + 2] % 2 === 0)],
      );
    };
    const told = (shown, matching) => (matching ? say("forgetting.count", { shown, matching }) : say("forgetting.no_match"));
    const again = browse({ form, body: document.querySelector("#samples tbody"), count: document.getElementById("picked"), more: document.getElementById("more-samples"), page: 50, find, row, told });
    // Nothing is drawn before the section is near the window.
    let near = false;
    new IntersectionObserver((entries, observer) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      observer.disconnect();
      near = true;
      again();
    }, { rootMargin: "400px" }).observe(form);
    redraw.push(() => { fill(); if (near) again(); });
  }
{% endif %}
})();
