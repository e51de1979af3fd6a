"use strict";

// Plots are drawn when they come into view, and again when what they show has changed: which methods, which theme.
(() => {
  const { figures, dark } = JSON.parse(document.getElementById("data").textContent);
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
  const listening = new Set(); // plots that show a band while the pointer is on its line
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
    stale.delete(plot);
    const inTheme = (key, value) => (isDark && typeof value === "string" && dark[value]) || value;
    const { data, layout } = JSON.parse(JSON.stringify(figures[plot.id]), inTheme);
    for (const trace of data) trace.visible = !hidden.has(trace.legendgroup) && trace.meta !== "hovered";
    // The same uirevision keeps what the reader has zoomed into.
    Plotly.react(plot, data, { ...layout, template: template(), uirevision: "same" }, {
      responsive: true,
      displaylogo: false,
      displayModeBar: false,
    });
    if (listening.has(plot)) return;
    listening.add(plot);
    const bands = data.flatMap((trace, place) => (trace.meta === "hovered" ? [place] : []));
    if (!bands.length) return;
    const show = (shown) => {
      const groups = figures[plot.id].data.map((trace) => trace.legendgroup);
      Plotly.restyle(plot, { visible: bands.map((band) => groups[band] === shown && !hidden.has(shown)) }, bands);
    };
    plot.on("plotly_hover", ({ points }) => show(points[0].data.legendgroup));
    plot.on("plotly_unhover", () => show());
  }

  // A click on the head of a column sorts the rows by it, and a second one the other way round.
  function makeSortable(table) {
    const heads = [...table.querySelectorAll("thead th")];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") === "descending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const body = table.querySelector("tbody");
        const rows = [...body.rows].map((row) => [sortKey(row.cells[column].textContent), row]);
        rows.sort(([a], [b]) => compare(a, b, up));
        body.append(...rows.map(([, row]) => row));
      });
    });
  }

  function sortKey(text) {
    const number = parseFloat(text.replace(/,/g, "").replace("<", ""));
    return Number.isNaN(number) ? text.trim() : number;
  }

  // Numbers come before words, and dashes, which stand for what is unknown, come last in both directions.
  function compare(a, b, up) {
    const rank = (key) => (typeof key === "number" ? 0 : key === "-" ? 2 : 1);
    if (rank(a) !== rank(b)) return rank(a) - rank(b);
    const order = typeof a === "number" ? a - b : b.localeCompare(a);
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
      figure.hidden = hidden.has(figure.dataset.of) || figures[plot.id].data.every(isHidden);
    }
    const shown = methods.filter((key) => !hidden.has(key.dataset.key)).length;
    document.getElementById("shown").textContent = `${shown} of ${methods.length} shown`;
  }

  for (const key of keys) {
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
    legend.open = on || wide.matches;
    for (const fold of document.querySelectorAll(".fold")) fold.open = on || wide.matches || "first" in fold.dataset;
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

  setPaper(false);
  refresh();

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
})();
