"use strict";
// Model output reaches the page through textContent alone.
(() => {
  const $ = (id) => document.getElementById(id);
  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };

  // ---- data -------------------------------------------------------------------------------------------------------
  const unpacked = new Map();
  const unpack = async (id) => {
    if (!unpacked.has(id)) {
      const bytes = Uint8Array.from(atob($(id).textContent), (each) => each.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
      unpacked.set(id, JSON.parse(await new Response(stream).text()));
    }
    return unpacked.get(id);
  };

  // ---- sorting ----------------------------------------------------------------------------------------------------
  const value = (row, column) => (row.cells[column] ? row.cells[column].textContent.trim() : "");
  const number = (text) => {
    const found = text.replace(/,(?=\d{3})/g, "").replace(/\u2212/g, "-").match(/^[<=p\s]*([-+]?\d+(\.\d+)?(e[-+]?\d+)?)/i);
    return found ? parseFloat(found[1]) : NaN;
  };
  const sort = (head, column) => {
    const table = head.closest("table"), body = table.tBodies[0];
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const each of head.parentNode.cells) each.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    for (const heading of body.querySelectorAll(".family")) heading.remove();
    const rows = [...body.rows].map((row, place) => ({ row, place, text: value(row, column), key: number(value(row, column)) }));
    rows.sort((one, other) => {
      const empty = (one.text === "") - (other.text === "");
      if (empty) return empty;
      const numeric = !Number.isNaN(one.key) && !Number.isNaN(other.key);
      const order = numeric ? one.key - other.key : one.text.localeCompare(other.text, "en");
      return (up ? order : -order) || one.place - other.place;
    });
    body.append(...rows.map((each) => each.row));
  };
  for (const head of document.querySelectorAll("table.sortable thead tr:last-child th")) {
    const column = head.cellIndex;
    head.tabIndex = 0;
    head.addEventListener("click", () => sort(head, column));
    head.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(head, column); }
    });
  }

  // ---- queries ----------------------------------------------------------------------------------------------------
  const options = (select, names, chosen) => {
    select.replaceChildren(...names.map(([key, label]) => make("option", { value: key }, label)));
    if (names.some(([key]) => key === chosen)) select.value = chosen;
  };
  const benchmarks = [...document.querySelectorAll('script[id^="queries-"]')].map((node) => node.id.slice("queries-".length));
  const PAGE = 25;
  let shown = PAGE;
  const line = (name, text) => {
    const row = make("p");
    row.append(make("span", { class: "name" }, name), document.createTextNode(text));
    return row;
  };
  const answer = (data, cell, row) => {
    const text = (index) => (index < 0 ? "(none)" : data.texts[index]);
    const box = make("div", { class: cell.score[row] >= 0.5 ? "right" : "wrong" });
    box.append(
      line(cell.method, `score ${(100 * cell.score[row]).toFixed(0)}`),
      line("prompt", text(cell.prompt[row])),
      line("completion", text(cell.completion[row])),
      line("extracted", text(cell.extracted[row])),
    );
    return box;
  };
  const CASES = [["all", "all"], ["won", "won"], ["lost", "lost"], ["both", "both right"], ["neither", "neither"],
    ["right", "first right"], ["wrong", "first wrong"]];
  const draw = async (fresh) => {
    const benchmark = $("q-benchmark").value;
    const data = await unpack(`queries-${benchmark}`);
    if ($("q-benchmark").value !== benchmark) return;  // another was chosen meanwhile, and will be drawn
    const tried = [...data.cells, ...data.holes];
    const methods = data.methods;
    if (fresh) {
      const first = $("q-first").value, second = $("q-second").value, seed = $("q-seed").value;
      const names = methods.map((name) => [name, name]);
      options($("q-first"), names, first || methods[methods.length - 1]);
      options($("q-second"), [["", "(none)"], ...names], fresh === "start" ? methods[0] : second);
      options($("q-seed"), [...new Set(tried.map((cell) => String(cell.seed)))].sort((one, other) => one - other).map((each) => [each, each]), seed);
    }
    const pick = (name) => data.cells.find((cell) => cell.method === name && String(cell.seed) === $("q-seed").value);
    const first = pick($("q-first").value), second = pick($("q-second").value);
    const list = $("q-list");
    const hole = (name) => {
      const told = data.holes.find((each) => each.method === name && String(each.seed) === $("q-seed").value);
      return `${name}, seed ${$("q-seed").value}: no result${told ? ` (${told.status}: ${told.reason})` : ""}.`;
    };
    $("q-more").hidden = true;
    if (!first) { $("q-counts").textContent = hole($("q-first").value); list.replaceChildren(); return; }
    const counts = { won: 0, lost: 0, both: 0, neither: 0, right: 0, wrong: 0 };
    const wanted = $("q-case").value, words = $("q-text").value.toLowerCase();
    const rows = [];
    data.ids.forEach((id, row) => {
      const own = first.score[row] >= 0.5, other = second ? second.score[row] >= 0.5 : null;
      const kind = other === null ? null : own && other ? "both" : own ? "won" : other ? "lost" : "neither";
      counts[own ? "right" : "wrong"] += 1;
      if (kind) counts[kind] += 1;
      if (wanted !== "all" && wanted !== kind && wanted !== (own ? "right" : "wrong")) return;
      if (words) {
        const texts = [data.queries[row], data.golds[row]];
        for (const cell of [first, second]) {
          if (cell) for (const index of [cell.prompt[row], cell.completion[row]]) texts.push(index < 0 ? "" : data.texts[index]);
        }
        if (!texts.some((text) => text.toLowerCase().includes(words))) return;
      }
      rows.push(row);
    });
    const against = second ? `; against ${second.method}: won ${counts.won}, lost ${counts.lost}, both ${counts.both}, neither ${counts.neither}`  : $("q-second").value ? `; against ${hole($("q-second").value)}` : "";
    $("q-counts").textContent = `${data.title}, ${first.method}, seed ${first.seed}: right ${counts.right}, wrong ${counts.wrong}${against}. ${rows.length} shown.`;
    list.replaceChildren(...rows.slice(0, shown).map((row) => {
      const box = make("div", { class: "query" });
      box.append(line(`${data.ids[row]} (${data.kinds[row]})`, data.queries[row]), line("reference", data.golds[row]));
      const pair = make("div", { class: "pair" });
      pair.append(answer(data, first, row));
      if (second) pair.append(answer(data, second, row));
      box.append(pair);
      return box;
    }));
    $("q-more").hidden = rows.length <= shown;
  };
  const failed = (place) => (error) => { $(place).textContent = `This part cannot be shown: ${error.message}`; };
  if (benchmarks.length && $("q-list")) {
    options($("q-benchmark"), benchmarks.map((name) => [name, name]), benchmarks[0]);
    options($("q-case"), CASES, "all");
    const again = (fresh) => () => { shown = PAGE; draw(fresh).catch(failed("q-counts")); };
    $("q-benchmark").addEventListener("change", again("benchmark"));
    for (const id of ["q-first", "q-second", "q-seed", "q-case"]) $(id).addEventListener("change", again(""));
    $("q-text").addEventListener("input", again(""));
    $("q-more").addEventListener("click", () => { shown += PAGE; draw("").catch(failed("q-counts")); });
    draw("start").then(() => document.body.setAttribute("data-ready", "yes")).catch(failed("q-counts"));
    document.querySelector("#queries form").addEventListener("submit", (event) => event.preventDefault());
  }

  // ---- cells ------------------------------------------------------------------------------------------------------
  const SVG = "http://www.w3.org/2000/svg";
  const svg = (tag, attributes, text) => {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const curve = (name, values) => {
    // A diverged loss arrives as a word; it takes its place in the order, but is no point.
    const points = values.map((each, index) => [each, index]).filter(([each]) => typeof each === "number");
    const numbers = points.map(([each]) => each), lost = values.length - numbers.length;
    const width = 420, height = 110, low = Math.min(...numbers), high = Math.max(...numbers);
    const place = ([each, index]) => {
      const x = 50 + (index * (width - 60)) / Math.max(values.length - 1, 1);
      const y = height - 22 - ((each - low) * (height - 44)) / (high - low || 1);
      return `${x.toFixed(1)},${y.toFixed(1)}`;
    };
    const node = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": name });
    const count = `${values.length} points, in the order of the log${lost ? `; ${lost} not finite` : ""}`;
    node.append(svg("text", { x: 50, y: 14 }, name), svg("text", { x: 50, y: height - 6 }, count));
    if (points.length) {
      node.append(
        svg("text", { x: 4, y: 26 }, high.toPrecision(3)), svg("text", { x: 4, y: height - 20 }, low.toPrecision(3)),
        svg("polyline", { points: points.map(place).join(" ") }),
      );
    }
    return node;
  };
  const detail = (cell) => {
    const box = $("c-detail");
    box.replaceChildren(
      make("h3", {}, `${cell.method} on ${cell.benchmark}, seed ${cell.seed}`),
      line("status", cell.status + (cell.reason ? `: ${cell.reason}` : "")),
      line("experiments", cell.experiments.join(", ")),
      line("settings", `${cell.tuned || "as given"}: ${JSON.stringify(cell.settings)}`),
    );
    for (const [name, cost] of [["cost of the fit", cell.fit_cost], ["cost of evaluation", cell.evaluation_cost]]) {
      if (cost) box.append(line(name, JSON.stringify(cost)));
    }
    for (const event of cell.events || []) box.append(line("log", JSON.stringify(event)));
    for (const [name, values] of Object.entries(cell.curves || {})) box.append(curve(name, values));
    box.focus();
  };
  const table = async () => {
    const all = await unpack("cells-data");
    const words = $("c-text").value.toLowerCase();
    const text = (cell) => [cell.method, cell.benchmark, cell.trained_on, cell.generator, cell.experiments.join(" "), cell.status, cell.key].join(" ").toLowerCase();
    const found = all.filter((cell) => text(cell).includes(words));
    $("c-counts").textContent = `${found.length} of ${all.length} cells.`;
    for (const head of document.querySelectorAll("#cells th")) head.removeAttribute("aria-sort");
    $("c-list").replaceChildren(...found.map((cell) => {
      const open = make("button", { type: "button" }, cell.key);
      open.addEventListener("click", () => detail(cell));
      const score = cell.score === null ? `${cell.status}: ${cell.reason}` : cell.score.toFixed(1);
      const row = make("tr");
      for (const each of [cell.method, cell.benchmark, cell.trained_on, cell.generator, String(cell.seed), score, cell.experiments.join(", ")]) row.append(row.childNodes.length ? make("td", {}, each) : make("th", { scope: "row" }, each));
      const last = make("td", {}, open, " ");
      if (cell.status === "ok") last.append(make("a", { href: `cells/${encodeURIComponent(cell.key)}/predictions.jsonl` }, "predictions"));
      row.append(last);
      return row;
    }));
  };
  const linked = async () => {
    const key = location.hash.startsWith("#cell-") ? location.hash.slice("#cell-".length) : "";
    const cell = key && (await unpack("cells-data")).find((each) => each.key === key);
    if (cell) detail(cell);
  };
  if ($("cells-data")) {
    window.addEventListener("hashchange", () => linked().catch(failed("c-counts")));
    $("c-text").addEventListener("input", () => table().catch(failed("c-counts")));
    document.querySelector("#cells form").addEventListener("submit", (event) => event.preventDefault());
    table().then(linked).catch(failed("c-counts"));
  }
})();
