// What the playground shows, and how the part of the address after # writes it down.
"use strict";

(function (root) {
  const { methods, groups, presets } = root.PlaygroundMethods;
  const SHOWN = ["equal", "normalised", "pcgrad", "rgb"];
  const FARTHEST = 10; // of a coordinate
  const ids = methods.map((method) => method.id);
  const sliders = groups.flatMap((group) => group.sliders);

  const rounded = (number) => Number(number.toFixed(3));
  const copy = (gradients) => gradients.map((gradient) => gradient.slice());

  function initial() {
    return { g: copy(presets[1].gradients), shown: new Set(SHOWN), settings: root.Balancers.defaults() };
  }

  function numbers(text, least, most) {
    const found = text.split(",").map(Number);
    const fine = found.every((number) => Number.isFinite(number)) && text.trim() !== "";
    return fine ? found.map((number) => Math.min(Math.max(number, least), most)) : null;
  }

  // The state in an address; what it does not say, or says in another form, is as at first.
  function read(hash) {
    const words = new URLSearchParams(hash.replace(/^#/, ""));
    const state = initial();
    const given = ["g1", "g2", "g3"].map((name) => numbers(words.get(name) ?? "", -FARTHEST, FARTHEST));
    const g = given.filter((gradient) => gradient !== null && gradient.length === 2);
    if (g.length >= 2) state.g = g;
    if (words.has("show")) {
      const names = words.get("show").split(",");
      state.shown = new Set(ids.filter((id) => names.includes(id)));
    }
    for (const [name, , least, most, , each] of sliders) {
      const value = words.has(name) ? numbers(words.get(name), least, most) : null;
      if (value === null) continue;
      if (each) value.slice(0, 3).forEach((number, i) => (state.settings[name][i] = number));
      else [state.settings[name]] = value;
    }
    const d = words.has("d") ? numbers(words.get("d"), -1, 1) : null;
    if (d !== null && d.length === 2 && Math.hypot(...d) > 0) state.settings.memory = d;
    return state;
  }

  function write(state) {
    const first = initial();
    const words = state.g.map((gradient, i) => `g${i + 1}=${gradient.map(rounded).join(",")}`);
    words.push(`show=${ids.filter((id) => state.shown.has(id)).join(",")}`);
    for (const [name] of sliders) {
      const value = [state.settings[name]].flat();
      if (String(value) !== String([first.settings[name]].flat())) words.push(`${name}=${value.map(rounded).join(",")}`);
    }
    if (String(state.settings.memory) !== String(first.settings.memory)) {
      words.push(`d=${state.settings.memory.map(rounded).join(",")}`);
    }
    return `#${words.join("&")}`;
  }

  root.PlaygroundState = { copy, read, write, FARTHEST };
})(globalThis);
