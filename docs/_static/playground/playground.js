// The playground of docs/methods/playground.md: gradients to drag, and what each balancer makes of them.
"use strict";

(function (root) {
  const { answer, dot, length } = root.Balancers;
  const { methods, groups, presets } = root.PlaygroundMethods;
  const { arrow, html, placeLabels, svg } = root.PlaygroundDrawing;
  const { copy, read, write, FARTHEST } = root.PlaygroundState;
  const WIDTHS = [1.5, 2, 2.6, 3.2, 4, 5, 6.5, 8, 10, 13, 16, 24, 32]; // half widths of the view
  const SUB = ["₁", "₂", "₃"];
  const place = document.getElementById("playground");
  if (place === null) return;

  let state = read(root.location.hash);
  let size = 520; // of the picture, in pixels
  let half = 0; // what the view reaches to
  let held = null; // the arrow that a pointer holds
  const known = new Map(); // the parts of the page by name

  const toScreen = ([x, y]) => [size / 2 + (x * size) / (2 * half), size / 2 - (y * size) / (2 * half)];
  const fixed = (number, digits = 2) => (Math.abs(number) < 0.5 * 10 ** -digits ? 0 : number).toFixed(digits);
  const usesMemory = () => state.shown.has("memory") || state.shown.has("equal_memory");

  // What the methods answer

  function answers() {
    return methods
      .filter((method) => state.shown.has(method.id))
      .map((method) => ({ ...method, ...answer(method.id, state.g, state.settings) }));
  }

  // Below this length an update counts as 0: TorchJD's own solvers are no more exact.
  const least = () => 1e-3 * Math.max(...state.g.map(length));

  const harmed = (update) =>
    state.g.flatMap((gradient, i) => (dot(update, gradient) < -least() * length(gradient) ? [i] : []));

  // The picture

  function fitView(found) {
    const reach = [...state.g, ...found.map((each) => each.update)].flat().map(Math.abs);
    const needed = 1.22 * Math.max(...reach, 0.5);
    half = WIDTHS.find((width) => width >= needed) ?? needed;
  }

  // The part of the view in which no inner product with a gradient is negative.
  function harmless() {
    let corners = [[-half, -half], [half, -half], [half, half], [-half, half]];
    for (const gradient of state.g) {
      const kept = [];
      corners.forEach((here, i) => {
        const next = corners[(i + 1) % corners.length];
        const [a, b] = [dot(here, gradient), dot(next, gradient)];
        if (a >= 0) kept.push(here);
        if (a * b < 0) kept.push([0, 1].map((axis) => here[axis] + (a / (a - b)) * (next[axis] - here[axis])));
      });
      corners = kept;
    }
    return corners;
  }

  function ground() {
    const plane = known.get("plane");
    const area = harmless().map((corner) => toScreen(corner).map((n) => n.toFixed(1)).join(","));
    plane.append(svg("polygon", { class: "pg-harmless", points: area.join(" ") }));
    const step = [0.5, 1, 2, 5, 10].find((each) => half / each <= 5) ?? 10;
    for (let line = -Math.floor(half / step) * step; line <= half; line += step) {
      const [x, y] = toScreen([line, line]);
      const kind = Math.abs(line) < 1e-9 ? "pg-axis" : "pg-grid";
      plane.append(svg("line", { class: kind, x1: x, x2: x, y1: 0, y2: size }));
      plane.append(svg("line", { class: kind, x1: 0, x2: size, y1: y, y2: y }));
    }
  }

  // Methods whose updates end in the same place share an arrow.
  function grouped(found) {
    const together = [];
    for (const each of [...found].sort((a, b) => length(b.update) - length(a.update))) {
      const tip = toScreen(each.update);
      const same = together.find((group) => Math.hypot(group.tip[0] - tip[0], group.tip[1] - tip[1]) < 5);
      if (same) same.members.push(each);
      else together.push({ tip, members: [each] });
    }
    return together;
  }

  function drawHandle(name, at, colour, label, value) {
    const [x, y] = at;
    const handle = known.get(`handle ${name}`);
    handle.removeAttribute("hidden");
    handle.setAttribute("transform", `translate(${x} ${y})`);
    handle.setAttribute("style", `--own: ${colour}`);
    handle.setAttribute("aria-label", label);
    handle.setAttribute("aria-valuetext", value);
  }

  function drawPlane(found) {
    const plane = known.get("plane");
    plane.replaceChildren();
    ground();
    const origin = toScreen([0, 0]);
    const labels = [];
    state.g.forEach((gradient, i) => {
      plane.append(arrow(origin, toScreen(gradient), [`var(--pg-task${i})`], 7, { class: "pg-task" }));
      labels.push({ at: toScreen(gradient), lines: [[`g${SUB[i]}`, `var(--pg-task${i})`]] });
    });
    if (usesMemory()) {
      plane.append(arrow(origin, toScreen(rememberedTip()), ["var(--pg-muted)"], 2, { class: "pg-memory" }));
      labels.push({ at: toScreen(rememberedTip()), lines: [["d", "var(--pg-muted)"]] });
    }
    for (const { tip, members } of grouped(found)) {
      plane.append(arrow(origin, toScreen(members[0].update), members.map((each) => `var(--pg-${each.id})`), 3));
      labels.push({ at: tip, lines: members.map((each, i) => [`${i ? "= " : ""}${each.name}`, `var(--pg-${each.id})`]) });
    }
    placeLabels(plane, labels, size);
    drawHandles();
  }

  const rememberedTip = () => {
    const scale = (0.72 * half) / length(state.settings.memory);
    return state.settings.memory.map((part) => scale * part);
  };

  function drawHandles() {
    for (const name of ["g1", "g2", "g3", "d"]) known.get(`handle ${name}`).setAttribute("hidden", "");
    state.g.forEach((gradient, i) => {
      const value = `x ${fixed(gradient[0])}, y ${fixed(gradient[1])}`;
      drawHandle(`g${i + 1}`, toScreen(gradient), `var(--pg-task${i})`, `gradient of task ${i + 1}`, value);
    });
    if (usesMemory()) {
      const degrees = (Math.atan2(state.settings.memory[1], state.settings.memory[0]) * 180) / Math.PI;
      drawHandle("d", toScreen(rememberedTip()), "var(--pg-muted)", "remembered direction d", `${degrees.toFixed(0)} degrees`);
    }
  }

  // The table

  function cell(kind, label, ...children) {
    return html(kind, kind === "td" ? { "data-label": label } : { scope: "row" }, ...children);
  }

  function rowOf(each) {
    const chip = html("span", { class: "pg-chip", style: `background: var(--pg-${each.id})` });
    const coefficients = each.coefficients.map((number) => fixed(number)).join("  ");
    const direction = each.scale ? `  and ${fixed(each.scale)} of ${each.id === "rgb" ? "the mean direction" : "d"}` : "";
    const worse = harmed(each.update);
    const cells = state.g.map((gradient, i) => {
      const scale = length(gradient) * length(each.update);
      const told = length(gradient) > 0 && length(each.update) > least();
      return cell("td", `cosine with g${SUB[i]}`, told ? fixed(dot(gradient, each.update) / scale) : "-");
    });
    return html(
      "tr",
      { "data-method": each.id },
      cell("th", "", chip, each.name),
      cell("td", "coefficients", coefficients + direction),
      cell("td", "length", fixed(length(each.update))),
      ...cells,
      cell("td", "gets worse", worse.length ? worse.map((i) => `task ${i + 1}`).join(", ") : "none")
    );
  }

  function drawTable(found) {
    const names = ["method", "coefficients", "length", ...state.g.map((_, i) => `cosine with g${SUB[i]}`), "gets worse"];
    const head = html("tr", {}, ...names.map((name) => html("th", { scope: "col" }, name)));
    known.get("table").replaceChildren(html("thead", {}, head), html("tbody", {}, ...found.map(rowOf)));
  }

  // Everything at once

  function draw() {
    const found = answers();
    if (held === null) fitView(found);
    size = known.get("svg").clientWidth || size;
    known.get("svg").setAttribute("viewBox", `0 0 ${size} ${size}`);
    drawPlane(found);
    drawTable(found);
    drawControls();
    root.history.replaceState(root.history.state, "", write(state));
  }

  function drawControls() {
    for (const method of methods) known.get(`box ${method.id}`).checked = state.shown.has(method.id);
    groups.forEach((group, index) => {
      known.get(`group ${index}`).hidden = !group.of.some((id) => state.shown.has(id));
    });
    for (const slider of known.get("sliders")) {
      slider.field.hidden = slider.task !== null && slider.task >= state.g.length;
      const value = slider.task === null ? state.settings[slider.name] : state.settings[slider.name][slider.task];
      slider.input.value = value;
      slider.output.textContent = String(Number(value.toFixed(2)));
    }
    known.get("third").textContent = state.g.length === 3 ? "remove task 3" : "add task 3";
  }

  // What readers do

  function moveTo(name, [x, y]) {
    const bound = (number) => Math.min(Math.max(number, -FARTHEST), FARTHEST);
    if (name === "d") {
      const long = Math.hypot(x, y);
      if (long > 0) state.settings.memory = [x / long, y / long];
    } else state.g[Number(name[1]) - 1] = [bound(x), bound(y)];
    draw();
  }

  function onPointer(event) {
    const view = known.get("svg").getBoundingClientRect();
    const share = [(event.clientX - view.left) / view.width, (event.clientY - view.top) / view.height];
    const bound = share.map((part) => Math.min(Math.max(part, 0.02), 0.98));
    moveTo(held, [(2 * bound[0] - 1) * half, (1 - 2 * bound[1]) * half].map((n) => Math.round(n * 100) / 100));
  }

  function onKey(event, name) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    const step = event.shiftKey ? 0.5 : 0.1;
    if (name === "d") {
      const turn = (move[1] - move[0]) * (event.shiftKey ? 0.5 : 0.1);
      const angle = Math.atan2(state.settings.memory[1], state.settings.memory[0]) + turn;
      moveTo("d", [Math.cos(angle), Math.sin(angle)]);
    } else {
      const here = state.g[Number(name[1]) - 1];
      moveTo(name, [0, 1].map((axis) => Math.round((here[axis] + step * move[axis]) * 100) / 100));
    }
  }

  function release() {
    held = null;
    draw();
  }

  function makeHandle(name) {
    const handle = svg("g", { class: "pg-handle", tabindex: 0, role: "slider", "aria-valuenow": 0, "data-handle": name });
    handle.append(svg("circle", { r: 24, class: "pg-reach" }), svg("circle", { r: 9, class: "pg-grip" }));
    handle.addEventListener("pointerdown", (event) => {
      held = name;
      handle.setPointerCapture(event.pointerId);
      handle.focus({ preventScroll: true });
      event.preventDefault();
    });
    handle.addEventListener("touchstart", (event) => event.preventDefault(), { passive: false }); // no scrolling
    handle.addEventListener("pointermove", (event) => held === name && onPointer(event));
    handle.addEventListener("pointerup", release);
    handle.addEventListener("pointercancel", release);
    handle.addEventListener("keydown", (event) => onKey(event, name));
    known.set(`handle ${name}`, handle);
    return handle;
  }

  // The page

  function makePlane() {
    const picture = svg("svg", { role: "group", "aria-label": "the plane of the gradients" });
    known.set("svg", picture);
    known.set("plane", svg("g"));
    known.set("handles", svg("g"));
    known.get("handles").append(...["g1", "g2", "g3", "d"].map(makeHandle));
    picture.append(known.get("plane"), known.get("handles"));
    return picture;
  }

  function makeButton(words, action) {
    const button = html("button", { type: "button" }, words);
    button.addEventListener("click", () => {
      action();
      draw();
    });
    return button;
  }

  function makePresets() {
    const buttons = presets.map((preset) => makeButton(preset.name, () => (state.g = copy(preset.gradients))));
    const third = makeButton("add task 3", () => {
      if (state.g.length === 3) state.g.pop();
      else state.g.push([-0.5 * half * 0.8, -0.4 * half].map((n) => Math.round(n * 10) / 10));
    });
    known.set("third", third);
    return html("div", { class: "pg-presets", role: "group", "aria-label": "examples" }, ...buttons, third);
  }

  function makeMethod(method) {
    const box = html("input", { type: "checkbox", "data-method": method.id });
    box.addEventListener("change", () => {
      if (box.checked) state.shown.add(method.id);
      else state.shown.delete(method.id);
      draw();
    });
    known.set(`box ${method.id}`, box);
    const chip = html("span", { class: "pg-chip", style: `background: var(--pg-${method.id})` });
    const label = html("label", {}, box, chip, html("strong", {}, method.name));
    const page = html("a", { href: `${method.page}.html`, "aria-label": `more about ${method.name}` }, "more");
    return html("li", {}, label, html("span", { class: "pg-note" }, `${method.note} (`, page, ")"));
  }

  function makeSlider([name, words, least, most, step], task) {
    const input = html("input", { type: "range", min: least, max: most, step, "data-setting": name });
    const output = html("output");
    const field = html("label", { class: "pg-slider" }, html("span", {}, task === null ? words : `${words} ${task + 1}`), output, input);
    input.addEventListener("input", () => {
      if (task === null) state.settings[name] = Number(input.value);
      else state.settings[name][task] = Number(input.value);
      draw();
    });
    known.get("sliders").push({ name, task, field, input, output });
    return field;
  }

  function makeGroup(group, index) {
    const fields = group.sliders.flatMap((slider) =>
      slider[5] ? [0, 1, 2].map((task) => makeSlider(slider, task)) : [makeSlider(slider, null)]
    );
    const set = html("fieldset", {}, html("legend", {}, group.title), ...fields);
    known.set(`group ${index}`, set);
    return set;
  }

  function build() {
    known.set("sliders", []);
    known.set("table", html("table"));
    const note =
      "Thick arrows are the tasks' gradients, thin ones the updates. Drag a round tip, or focus it with the Tab key and " +
      "use the arrow keys. An update that ends on green ground makes no task worse, to first order. The address of this " +
      "page holds the picture, so that a link shares it.";
    const settings = html("div", { class: "pg-settings" }, ...groups.map(makeGroup));
    place.replaceChildren(
      makePresets(),
      html(
        "div",
        { class: "pg-main" },
        html("div", { class: "pg-plane" }, makePlane(), html("p", { class: "pg-note" }, note), settings),
        html("ul", { class: "pg-methods" }, ...methods.map(makeMethod))
      ),
      known.get("table")
    );
    place.classList.add("pg");
    root.addEventListener("hashchange", () => {
      if (!root.location.hash.includes("=")) return; // a heading of the page
      state = read(root.location.hash);
      draw();
    });
    new ResizeObserver(() => known.get("svg").clientWidth !== size && draw()).observe(place);
    draw();
  }

  build();
})(globalThis);
