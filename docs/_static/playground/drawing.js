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

  // Every label stands beside its tip, or further off with a line to it, where it hides no tip and no other label.
  function placeLabels(plane, labels, size) {
    const taken = labels.map(({ at }) => ({ left: at[0] - 9, right: at[0] + 9, top: at[1] - 9, bottom: at[1] + 9 }));
    const free = (box) =>
      taken.every((t) => box.right < t.left || box.left > t.right || box.bottom < t.top || box.top > t.bottom) &&
      box.left >= 3 && box.right <= size - 3 && box.top >= 3 && box.bottom <= size - 3;
    for (const { at, parts } of labels) {
      const text = svg("text", { class: "pg-label" });
      parts.forEach(([words, colour]) => text.append(svg("tspan", { style: `fill:${colour}` }, words)));
      plane.append(text);
      const width = text.getComputedTextLength() || 8 * text.textContent.length;
      const sides = at[0] >= size / 2 ? [1, -1] : [-1, 1];
      const heights = [0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5, 6, -6, 7, -7, 8, -8].map((k) => 13 * k);
      const boxes = heights.flatMap((height) =>
        sides.map((side) => {
          const left = side > 0 ? at[0] + 12 : at[0] - 12 - width;
          return { left, right: left + width, top: at[1] + height - 9, bottom: at[1] + height + 9, height };
        })
      );
      const box = boxes.find(free) ?? { ...boxes[0], left: Math.min(Math.max(boxes[0].left, 3), size - width - 3) };
      taken.push(box);
      text.setAttribute("x", box.left);
      text.setAttribute("y", box.top + 14);
      if (Math.abs(box.height) < 18) continue;
      const near = box.left > at[0] ? box.left - 2 : box.right + 2;
      plane.append(svg("line", { class: "pg-leader", x1: at[0], y1: at[1], x2: near, y2: box.top + 9 }));
    }
  }

  root.PlaygroundDrawing = { arrow, html, placeLabels, svg };
})(globalThis);
