"use strict";

// Plots are drawn when they come into view, and again when what they show has changed: which methods, which theme.
(() => {
  let figures, themes; // what the plots show and in which colours; until they are unpacked, nothing is drawn
  const darkScheme = matchMedia("(prefers-color-scheme: dark)");
  const wide = matchMedia("(min-width: 60.01rem)"); // page.css: then the legend has a column of its own
  const touch = matchMedia("(pointer: coarse)").matches; // there a drag scrolls the page, not the plot
  const legend = document.getElementById("legend");
  const plots = [...document.querySelectorAll(".plot")];
  const keys = [...document.querySelectorAll(".keys button")];
  const methods = keys.filter((key) => legend.contains(key));
  const hidden = new Set(); // ids of methods and tasks
  const stale = new Set(plots);
  const inView = new Set();
  const listening = new Set(); // plots that say which line the pointer is on
  let pointed; // id of the method under the pointer
  let isDark = darkScheme.matches;

  function template() {
    const text = isDark ? "#e6e8ec" : "#1b1f26";
    const line = isDark ? "#2a2f38" : "#e8eaee";
    const axis = {
      automargin: true,
      gridcolor: line,
      linecolor: isDark ? "#596070" : "#a3aab8",
      zeroline: false,
      fixedrange: touch,
      title: { standoff: 8, font: { size: 12 } },
    };
    return {
      layout: {
        font: { family: "system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif", size: 12, color: text },
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        margin: { l: 8, r: 12, t: 8, b: 8 },
        showlegend: false,
        hovermode: "closest",
        hoverlabel: { align: "left", bgcolor: isDark ? "#1f232b" : "#ffffff", font: { color: text } },
        dragmode: touch ? false : "zoom",
        xaxis: axis,
        yaxis: axis,
      },
    };
  }

  function draw(plot) {
    if (!figures) return;
    stale.delete(plot);
    const theme = isDark ? themes.dark : themes.light;
    const inTheme = (key, value) => (typeof value === "string" && theme[value]) || value;
    const { data, layout } = JSON.parse(JSON.stringify(figures[plot.id]), inTheme);
    for (const trace of data) trace.visible = isShown(trace);
    // The same uirevision keeps what the reader has zoomed into.
    Plotly.react(plot, data, { ...layout, template: template(), uirevision: "same" }, {
      responsive: true,
      displaylogo: false,
      displayModeBar: false,
      typesetMath: false, // a name may have dollar signs
    });
    if (listening.has(plot)) return;
    listening.add(plot);
    plot.on("plotly_hover", ({ points }) => pointAt(points[0].data.legendgroup));
    plot.on("plotly_unhover", () => pointAt());
  }

  function isShown(trace) {
    return !isHidden(trace) && (trace.meta !== "hovered" || trace.legendgroup === pointed);
  }

  // The bands of one method: many bands would hide one another.
  function pointAt(key) {
    if (pointed === key) return;
    pointed = key;
    for (const plot of inView) {
      if (stale.has(plot) || !plot.data) continue;
      const bands = plot.data.flatMap((trace, place) => (trace.meta === "hovered" ? [place] : []));
      const changed = bands.filter((band) => plot.data[band].visible !== isShown(plot.data[band]));
      if (changed.length) Plotly.restyle(plot, { visible: changed.map((band) => isShown(plot.data[band])) }, changed);
    }
  }

  // A click on the head of a column sorts the rows by it: numbers from the largest one, words from A, and a second
  // click the other way round.
  function makeSortable(table) {
    const heads = [...table.querySelectorAll("thead th")];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...[...head.childNodes].filter((node) => node.nodeName !== "svg"));
      head.prepend(button);
      button.addEventListener("click", () => {
        const body = table.querySelector("tbody");
        const rows = [...body.rows].map((row) => [sortKey(row.cells[column]), row]);
        const sorted = head.getAttribute("aria-sort");
        const up = sorted ? sorted === "descending" : !rows.some(([key]) => typeof key === "number");
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        rows.sort(([a], [b]) => compare(a, b, up));
        body.append(...rows.map(([, row]) => row));
      });
    });
  }

  function sortKey(cell) {
    const text = cell.textContent.trim();
    const number = parseFloat(text.replace(/,/g, "").replace("<", ""));
    if (text.startsWith("never")) return Infinity;
    return cell.tagName === "TH" || Number.isNaN(number) ? text : number; // a name may begin with a digit
  }

  // Numbers come before words, and dashes, which stand for what is unknown, come last in both directions.
  function compare(a, b, up) {
    const rank = (key) => (typeof key === "number" ? 0 : key === "-" ? 2 : 1);
    if (a === b || rank(a) !== rank(b)) return rank(a) - rank(b);
    const order = typeof a === "number" ? a - b : a.localeCompare(b);
    return up ? order : -order;
  }

  function isHidden(trace) {
    return trace.legendgroup !== undefined && hidden.has(trace.legendgroup);
  }

  function refresh() {
    for (const plot of plots) stale.add(plot);
    for (const plot of inView) draw(plot);
    for (const key of keys) key.setAttribute("aria-pressed", String(!hidden.has(key.dataset.key)));
    for (const plot of plots) {
      const figure = plot.closest("figure"); // a panel without anything to see would be an empty pair of axes
      figure.hidden = hidden.has(figure.dataset.of) || (figures && figures[plot.id].data.every(isHidden));
    }
    for (const section of document.querySelectorAll(".chart")) {
      section.querySelector(".nothing").hidden = section.querySelector("figure:not([hidden])") !== null;
    }
    const shown = methods.filter((key) => !hidden.has(key.dataset.key)).length;
    document.getElementById("shown").textContent = `${shown} of ${methods.length} shown`;
  }

  for (const key of keys) {
    for (const event of ["pointerenter", "focus"]) key.addEventListener(event, () => pointAt(key.dataset.key));
    for (const event of ["pointerleave", "blur"]) key.addEventListener(event, () => pointAt());
    key.addEventListener("click", () => {
      if (!hidden.delete(key.dataset.key)) hidden.add(key.dataset.key);
      refresh();
    });
  }

  for (const button of legend.querySelectorAll("[data-shows]")) {
    button.addEventListener("click", () => {
      const chosen = button.dataset.shows.split(" ");
      for (const { dataset } of methods) {
        if (chosen.includes(dataset.key)) hidden.delete(dataset.key);
        else hidden.add(dataset.key);
      }
      refresh();
    });
  }

  for (const table of document.querySelectorAll(".scroll table:not(.settings)")) makeSortable(table);

  function setPaper(on) {
    document.body.classList.toggle("paper", on);
    isDark = darkScheme.matches && !on; // paper is white
    for (const fold of document.querySelectorAll(".fold")) fold.open = on || wide.matches;
  }

  // A link leads to what a section holds, not to its closed lid.
  function openTarget() {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    for (const fold of (target && target.querySelectorAll(":scope > .fold")) || []) fold.open = true;
  }

  // Packed, the page is a third as large, and its text is shown before the library is read.
  async function unpack(id) {
    const packed = atob(document.getElementById(id).textContent);
    const bytes = new Uint8Array(packed.length);
    for (let place = 0; place < packed.length; place++) bytes[place] = packed.charCodeAt(place);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }

  async function start() {
    const [data, library] = await Promise.all(["data", "library"].map(unpack));
    const script = document.createElement("script");
    script.textContent = library; // the page's policy knows its hash
    document.head.append(script);
    ({ figures, themes } = JSON.parse(data));
    refresh();
  }

  darkScheme.addEventListener("change", () => {
    isDark = darkScheme.matches;
    refresh();
  });
  addEventListener("beforeprint", () => {
    setPaper(true);
    for (const plot of plots) if (plot.checkVisibility()) draw(plot);
  });
  addEventListener("afterprint", () => {
    setPaper(false);
    refresh();
  });

  addEventListener("hashchange", openTarget);

  setPaper(false);
  refresh();
  openTarget();

  const observer = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        if (!isIntersecting) inView.delete(target);
        else inView.add(target);
        if (isIntersecting && stale.has(target)) draw(target);
      }
    },
    { rootMargin: "300px 0px" },
  );
  for (const plot of plots) observer.observe(plot);
  start().catch(() => {
    document.getElementById("undrawn").hidden = false;
  });
})();
