"use strict";
// Draws the figures in the colours of the style sheet, and again whenever those change: dark or light, paper or screen.
(() => {
  const plots = JSON.parse(document.getElementById("plots").textContent);
  const root = document.documentElement;
  const divs = [...document.querySelectorAll(".plot")];
  const hidden = new Set();
  const touch = matchMedia("(pointer: coarse)").matches;
  // A finger that drags over a figure means to scroll the page.
  const config = {
    displaylogo: false, responsive: true, displayModeBar: touch ? false : "hover", showTips: false,
    modeBarButtonsToRemove: ["toImage", "lasso2d", "select2d", "autoScale2d"],
    modeBarButtonsToAdd: [{ name: "Download as SVG", icon: Plotly.Icons.camera, click: (div) => download(div) }],
  };

  const colour = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();

  function themed(layout) {
    const styled = {
      ...layout,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("soft") },
      hoverlabel: { namelength: -1, bgcolor: colour("surface"), bordercolor: colour("line"), font: { color: colour("ink") } },
      modebar: { bgcolor: colour("surface"), color: colour("soft"), activecolor: colour("accent") },
      margin: { l: 8, r: 12, t: 8, b: 8 },
      showlegend: false,
      dragmode: touch ? false : "zoom",
    };
    for (const name of Object.keys(layout).filter((key) => /^[xy]axis/.test(key)))
      styled[name] = { ...layout[name], gridcolor: colour("grid"), linecolor: colour("line") };
    if (layout.coloraxis)
      styled.coloraxis = {
        ...layout.coloraxis,
        colorscale: [[0, colour("heat-low")], [1, colour("heat-high")]],
        colorbar: { outlinewidth: 0, ...layout.coloraxis.colorbar },
      };
    return styled;
  }

  function draw(div) {
    if (div.closest("figure[hidden]")) return;
    const { data, layout } = plots[div.dataset.plot];
    const shown = data.map((trace) => ({ ...trace, visible: !hidden.has(trace.legendgroup) }));
    for (const trace of shown) if (trace.texttemplate && div.clientWidth < 42 * trace.x.length) trace.texttemplate = "";
    const styled = themed(layout);
    if (root.hasAttribute("data-print")) {
      // Three rows of figures fit a page so; a figure of many rows needs all of its height.
      const height = layout.height > 400 ? layout.height : 0.72 * layout.height;
      Object.assign(styled, { width: div.clientWidth, height, font: { ...styled.font, size: 10 } });
    }
    Plotly.react(div, shown, styled, config);
  }

  function download(div) {
    root.toggleAttribute("data-light", true);
    const { data, layout } = plots[div.dataset.plot];
    const several = new Set(data.map((trace) => trace.legendgroup)).size > 1;
    // plotly.js would take tags in it for its own.
    const text = div.getAttribute("aria-label").replaceAll("&", "&amp;").replaceAll("<", "&lt;");
    const title = { text, x: 0.02 };
    const picture = {
      data: data.filter((trace) => !hidden.has(trace.legendgroup)),
      layout: {
        ...themed(layout), paper_bgcolor: "#ffffff", title, showlegend: several, margin: { l: 8, r: 16, t: 48, b: 8 },
      },
    };
    const size = { width: div.clientWidth, height: layout.height + 60, filename: div.dataset.plot };
    Plotly.downloadImage(picture, { format: "svg", ...size });
    root.toggleAttribute("data-light", false);
  }

  document.addEventListener("click", (event) => {
    const key = event.target.closest("[data-key]")?.dataset.key;
    if (!key) return;
    if (!hidden.delete(key)) hidden.add(key);
    for (const button of document.querySelectorAll(`[data-key="${key}"]`))
      button.setAttribute("aria-pressed", String(!hidden.has(key)));
    divs.forEach(draw);
  });

  document.addEventListener("click", (event) => {
    const choice = event.target.closest("[data-choose]")?.dataset.choose;
    if (!choice) return;
    const section = event.target.closest("section");
    for (const button of section.querySelectorAll("[data-choose]"))
      button.setAttribute("aria-pressed", String(button.dataset.choose === choice));
    for (const figure of section.querySelectorAll("figure[data-choice]")) {
      figure.hidden = figure.dataset.choice !== choice;
      draw(figure.querySelector(".plot"));
    }
  });

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => divs.forEach(draw));
  addEventListener("beforeprint", () => {
    root.toggleAttribute("data-light", true);
    root.toggleAttribute("data-print", true);
    divs.forEach(draw);
  });
  addEventListener("afterprint", () => {
    root.toggleAttribute("data-light", false);
    root.toggleAttribute("data-print", false);
    divs.forEach(draw);
  });

  divs.forEach(draw);
})();
