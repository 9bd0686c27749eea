  // The samples behind the quadrants: rows are six numbers (see quadrants.py), drawn only when they are looked at.
  function samples(body) {
    const { exams, versions, places, items, texts, rows } = data.quadrants;
    const PAGE = 50, STEP = 6;
    const NAMES = ["kept_right", "forgotten", "gained", "kept_wrong"];
    const form = document.getElementById("pick");
    const count = document.getElementById("picked");
    const more = document.getElementById("more-samples");
    const used = (place) => { const seen = new Set(); for (let i = 0; i < rows.length; i += STEP) seen.add(rows[i + place]); return seen; };
    const withSamples = used(0);
    const values = {
      exam: exams.map((name, i) => [String(i), name]).filter(([i]) => withSamples.has(Number(i))),
      model: [...new Set(versions.map((v) => v[0]))].map((name) => [name, name]),
      method: [...new Set(versions.map((v) => v[1]))].map((name) => [name, name]),
    };
    const option = (value, text) => { const o = document.createElement("option"); o.value = value; o.textContent = text; return o; };
    const element = (name, text, className) => {
      const e = document.createElement(name);
      if (text !== undefined) e.textContent = text;
      if (className) e.className = className;
      return e;
    };
    let drawn = false;
    const fill = () => {
      for (const name of ["exam", "model", "method", "quadrant"]) {
        const select = form.elements[name];
        const chosen = drawn ? select.value : name === "quadrant" ? "1" : name === "exam" ? values.exam[0][0] : "";
        const options = name === "quadrant" ? NAMES.map((key, i) => [String(i), say("quadrant." + key)]) : values[name];
        const all = name === "exam" || name === "quadrant" ? [] : [option("", say("answers.all"))];
        select.replaceChildren(...all, ...options.map(([value, text]) => option(value, text)));
        select.value = chosen;
        select.closest("label").hidden = options.length < 2;
      }
      drawn = true;
    };
    const HAN = /[\u3400-\u9fff\uf900-\ufaff]/;
    const cell = (label, ...children) => {
      const td = element("td");
      td.setAttribute("role", "cell");
      td.dataset.label = say(label);
      const inside = element("div");
      inside.append(...children);
      if (HAN.test(inside.textContent)) inside.lang = "zh-Hant";
      td.append(inside);
      return td;
    };
    const words = (text) => (text ? text : element("span", say("answers.empty"), "soft"));
    let matching = [], shown = 0;
    const find = () => {
      const want = form.elements;
      const parts = want.search.value.normalize("NFKC").toLowerCase().split(/\s+/).filter(Boolean);
      matching = [];
      for (let i = 0; i < rows.length; i += STEP) {
        const [model, method] = versions[rows[i + 1]];
        if (String(rows[i]) !== want.exam.value || String(rows[i + 2]) !== want.quadrant.value) continue;
        if ((want.model.value && model !== want.model.value) || (want.method.value && method !== want.method.value)) continue;
        if (parts.length) {
          const text = [...items[rows[i + 3]], texts[rows[i + 4]]].join("\n").normalize("NFKC").toLowerCase();
          if (!parts.every((part) => text.includes(part))) continue;
        }
        matching.push(i);
      }
      body.replaceChildren();
      shown = 0;
      show();
    };
    const show = () => {
      for (const i of matching.slice(shown, shown + PAGE)) body.append(row(i));
      shown = Math.min(shown + PAGE, matching.length);
      count.textContent = matching.length ? say("forgetting.count", { shown, matching: matching.length }) : say("forgetting.no_match");
      more.hidden = shown >= matching.length;
    };
    const row = (i) => {
      const [model, method] = versions[rows[i + 1]];
      const [question, wanted, before] = items[rows[i + 3]];
      const after = texts[rows[i + 4]];
      const [change, seed] = places[rows[i + 5]];
      const who = [];
      if (values.model.length > 1) who.push(model);
      if (places.length > 1) who.push(...(change ? [change] : []), "s" + seed);
      const right = [rows[i + 2] < 2, rows[i + 2] % 2 === 0];
      const judged = (text, good) => [words(text), element("span", say(good ? "answers.right" : "answers.wrong"), good ? "sub" : "sub wrong")];
      const tr = element("tr");
      tr.setAttribute("role", "row");
      tr.append(
        cell("forgetting.method", element("span", method), element("span", who.join(" · "), "sub")),
        cell("answers.question", question),
        cell("answers.expected", wanted || "–"),
        cell("answers.before", ...judged(before, right[0])),
        cell("answers.after", ...judged(after, right[1])),
      );
      return tr;
    };
    let wait = 0;
    form.addEventListener("input", () => { clearTimeout(wait); wait = setTimeout(find, 120); });
    form.addEventListener("submit", (event) => event.preventDefault());
    more.addEventListener("click", show);
    form.hidden = false;
    // Nothing is drawn before the section is near the window.
    let near = false;
    new IntersectionObserver((entries, observer) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      observer.disconnect();
      near = true;
      find();
    }, { rootMargin: "400px" }).observe(form);
    redraw.push(() => { fill(); if (near) find(); });
  }
