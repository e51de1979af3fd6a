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
    for (const trace of data) trace.visible = !hidden.has(trace.legendgroup);
    // The same uirevision keeps what the reader has zoomed into.
    Plotly.react(plot, data, { ...layout, template: template(), uirevision: "same" }, {
      responsive: true,
      displaylogo: false,
      displayModeBar: false,
    });
  }

  function refresh() {
    for (const plot of plots) stale.add(plot);
    for (const plot of inView) draw(plot);
    for (const key of keys) key.setAttribute("aria-pressed", String(!hidden.has(key.dataset.key)));
    for (const figure of document.querySelectorAll("[data-of]")) figure.hidden = hidden.has(figure.dataset.of);
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

  for (const input of document.querySelectorAll(".switch input")) {
    input.addEventListener("change", () => {
      for (const other of input.closest(".switch").querySelectorAll("input")) {
        document.getElementById(other.value).hidden = !other.checked;
      }
    });
  }

  function setPaper(on) {
    document.body.classList.toggle("paper", on);
    isDark = darkScheme.matches && !on; // paper is white
    legend.open = on || wide.matches;
  }

  darkScheme.addEventListener("change", () => {
    isDark = darkScheme.matches;
    refresh();
  });
  addEventListener("beforeprint", () => {
    setPaper(true);
    for (const plot of plots) if (plot.offsetParent) draw(plot);
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
