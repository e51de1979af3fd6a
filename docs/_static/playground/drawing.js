// Elements of the playground's page, arrows and labels.
"use strict";

(function (root) {
  function html(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  function svg(tag, attributes = {}, text = "") {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text) element.textContent = text;
    return element;
  }

  function arrowHead(tip, direction, long, attributes) {
    const [ux, uy] = direction;
    const corners = [
      tip,
      [tip[0] - long * ux - 0.45 * long * uy, tip[1] - long * uy + 0.45 * long * ux],
      [tip[0] - long * ux + 0.45 * long * uy, tip[1] - long * uy - 0.45 * long * ux],
    ];
    return svg("polygon", { points: corners.map((p) => p.map((n) => n.toFixed(1)).join(",")).join(" "), ...attributes });
  }

  // An arrow between two points of the screen; several colours share it as stripes.
  function arrow(from, tip, colours, width, extra = {}) {
    const along = [tip[0] - from[0], tip[1] - from[1]];
    const long = Math.hypot(...along);
    const group = svg("g", extra);
    if (long < 1.5) {
      group.append(svg("circle", { cx: from[0], cy: from[1], r: 2 * width, fill: "none", style: `stroke:${colours[0]}` }));
      return group;
    }
    const unit = along.map((part) => part / long);
    const head = Math.min(5 + 2.4 * width, long);
    const end = [tip[0] - 0.8 * head * unit[0], tip[1] - 0.8 * head * unit[1]];
    colours.forEach((colour, i) => {
      const dashes = colours.length > 1 ? { "stroke-dasharray": `9 ${9 * (colours.length - 1)}`, "stroke-dashoffset": -9 * i } : {};
      const style = `stroke:${colour}`;
      group.append(svg("line", { x1: from[0], y1: from[1], x2: end[0], y2: end[1], "stroke-width": width, style, ...dashes }));
    });
    group.append(arrowHead(tip, unit, head, { style: `fill:${colours[0]}` }));
    return group;
  }

  const LINE = 17; // the height of a line of a label

  // A label of several lines, and its width.
  function makeLabel(plane, lines) {
    const text = svg("text", { class: "pg-label" });
    const spans = lines.map(([words, colour], i) => svg("tspan", { style: `fill:${colour}`, dy: i ? LINE : 0 }, words));
    text.append(...spans);
    plane.append(text);
    const width = Math.max(...spans.map((span) => span.getComputedTextLength() || 8 * span.textContent.length));
    const place = (left, top) => {
      spans.forEach((span) => span.setAttribute("x", left));
      text.setAttribute("y", top + 14);
    };
    return { width, height: LINE * lines.length + 1, place };
  }

  // Every label stands beside its tip, or further off with a line to it, where it hides no tip and no other label.
  function placeLabels(plane, labels, size) {
    const taken = labels.map(({ at }) => ({ left: at[0] - 9, right: at[0] + 9, top: at[1] - 9, bottom: at[1] + 9 }));
    const overlap = (a, b) => {
      const [wide, high] = [
        Math.min(a.right, b.right) - Math.max(a.left, b.left),
        Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top),
      ];
      return wide > 0 && high > 0 ? wide * high : 0;
    };
    for (const { at, lines } of labels) {
      const label = makeLabel(plane, lines);
      const bound = (number, long) => Math.min(Math.max(number, 3), size - 3 - long);
      const shifts = [0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5, 6, -6, 7, -7, 8, -8, 10, -10, 12, -12, 14, -14].map((k) => 13 * k);
      const sides = at[0] >= size / 2 ? [1, -1] : [-1, 1];
      const boxes = shifts.flatMap((shift) =>
        sides.map((side) => {
          const left = bound(side > 0 ? at[0] + 12 : at[0] - 12 - label.width, label.width);
          const top = bound(at[1] + shift - label.height / 2, label.height);
          return { left, right: left + label.width, top, bottom: top + label.height };
        })
      );
      const costs = boxes.map((box) => taken.reduce((total, other) => total + overlap(box, other), 0));
      const box = boxes[costs.indexOf(Math.min(...costs))]; // the first one that hides the least
      taken.push(box);
      label.place(box.left, box.top);
      const near = [box.left > at[0] ? box.left - 2 : Math.min(box.right + 2, at[0]), (box.top + box.bottom) / 2];
      if (Math.abs(near[1] - at[1]) < LINE) continue;
      plane.append(svg("line", { class: "pg-leader", x1: at[0], y1: at[1], x2: near[0], y2: near[1] }));
    }
  }

  root.PlaygroundDrawing = { arrow, html, placeLabels, svg };
})(globalThis);
