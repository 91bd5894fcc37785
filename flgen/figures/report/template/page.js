"use strict";
(() => {
  const root = document.documentElement;
  const touched = !matchMedia("(hover: hover)").matches;
  const hidden = new Set(); // numbers of experiments
  const drawn = new Map(); // element: the one that plotly has drawn in it
  let logarithmic = false;

  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
  const content = (element) => JSON.parse(element.querySelector(":scope > script").textContent);
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  // Plots say what is drawn; how text, axes and grid look is the page's, light or dark.
  function look() {
    const axis = { gridcolor: colour("--line"), linecolor: colour("--line"), tickcolor: colour("--line"), zerolinecolor: colour("--line") };
    const ink = colour("--ink");
    return {
      layout: {
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        font: { color: ink, size: 12, family: getComputedStyle(document.body).fontFamily },
        xaxis: axis,
        yaxis: axis,
        hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: ink }, namelength: -1 },
        modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--soft"), activecolor: ink },
      },
    };
  }

  const figures = new Map(all(".plot").map((element) => [element, () => plotFigure(element)]));

  function plotFigure(element) {
    const figure = content(element);
    if (element.dataset.kind === "curve" && logarithmic) figure.layout.yaxis.type = "log";
    for (const trace of figure.data) if (hidden.has(trace.meta)) trace.visible = false;
    return figure;
  }

  function draw(element) {
    const figure = figures.get(element)();
    const place = drawn.get(element) ?? element.appendChild(document.createElement("div"));
    const layout = { ...figure.layout, template: look(), autosize: false, width: element.clientWidth, height: element.clientHeight };
    if (touched) layout.dragmode = false; // a finger scrolls the page
    const options = { displaylogo: false, displayModeBar: touched ? false : "hover", modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
    drawn.set(element, place);
    return Plotly.react(place, figure.data, layout, options).then(() => { element.dataset.drawn = "true"; });
  }

  const visible = (element) => element.offsetParent !== null;
  const redraw = () => [...drawn.keys()].filter(visible).forEach(draw);

  // A plot is drawn when it comes near the screen, so that a page of a hundred metrics opens at once.
  const watcher = new IntersectionObserver((seen) => {
    for (const one of seen) if (one.isIntersecting && !drawn.has(one.target)) draw(one.target);
  }, { rootMargin: "500px" });

  // What was hidden while the window changed is drawn anew at its own width once it is seen.
  const sizes = new ResizeObserver((changed) => {
    for (const { target } of changed) {
      const place = drawn.get(target);
      if (place && visible(target) && Math.abs(target.clientWidth - place.layout.width) > 1) draw(target);
    }
  });

  for (const chooser of all(".chooser")) {
    chooser.addEventListener("change", ({ target }) => {
      if (target.matches("select, input[type=radio]")) {
        for (const panel of all(":scope > .panel", chooser)) panel.hidden = panel.dataset.name !== target.value;
        redraw();
      }
    });
  }

  document.getElementById("logarithmic")?.addEventListener("change", ({ target }) => {
    logarithmic = target.checked;
    redraw();
  });

  for (const button of all(".toggle")) {
    button.addEventListener("click", () => {
      const number = Number(button.dataset.number);
      const shown = hidden.delete(number);
      if (!shown) hidden.add(number);
      for (const same of all(`.toggle[data-number="${number}"]`)) same.setAttribute("aria-pressed", String(shown));
      redraw();
    });
  }

  // Films: one picture or one graph at a time, chosen by a slider.
  const films = all(".film").map((element) => {
    const film = { element, ...content(element), range: element.querySelector("input[type=range]") };
    const output = element.querySelector("output");
    const screen = element.querySelector(".screen, .graph-plot");
    const image = element.querySelector("img");
    film.show = (place) => {
      const text = `round ${film.rounds[place]}`;
      const words = `${element.dataset.what} after ${text}`;
      film.range.value = place;
      film.range.setAttribute("aria-valuetext", text);
      output.textContent = text;
      if (image) {
        image.src = film.pictures[place];
        image.alt = words;
      } else {
        screen.setAttribute("aria-label", words);
        if (film.pictures) screen.style.setProperty("--pictures", `url("${film.pictures[place]}")`);
      }
      if (film.edges) {
        film.place = place;
        element.querySelector(".graph-facts").textContent = film.facts[place];
        screen.setAttribute("aria-label", `${element.dataset.what} in ${text}: ${film.facts[place]}`);
        if (drawn.has(screen)) draw(screen);
      }
    };
    if (film.edges) figures.set(screen, () => graphFigure(film));
    film.show(Number(film.range.value));
    film.range.addEventListener("input", () => {
      film.show(Number(film.range.value));
      follow(film);
    });
    return film;
  });

  function follow(film) {
    const section = film.element.closest("section");
    if (!section.querySelector(".together")?.checked) return;
    const round = film.rounds[Number(film.range.value)];
    for (const other of films) {
      if (other === film || other.element.closest("section") !== section) continue;
      const distances = other.rounds.map((one) => Math.abs(one - round));
      other.show(distances.indexOf(Math.min(...distances)));
    }
  }

  // Clients on a circle, client 0 above, then clockwise; an arrow leads from who is read to who reads.
  function graphFigure({ clients, edges, place }) {
    const flat = edges[place];
    const angle = (k) => Math.PI / 2 - (2 * Math.PI * k) / clients;
    const x = (k) => Math.cos(angle(k));
    const y = (k) => Math.sin(angle(k));
    const numbered = clients <= 40;
    const diameter = numbered ? 22 : Math.max(4, Math.min(12, 700 / clients));
    const crowded = flat.length / 2 > 150;
    const lines = { x: [], y: [], sizes: [], gaps: [] };
    for (let n = 0; n < flat.length; n += 2) {
      lines.x.push(x(flat[n]), x(flat[n + 1]), null);
      lines.y.push(y(flat[n]), y(flat[n + 1]), null);
      lines.sizes.push(0, crowded ? 5 : 9, 0);
      lines.gaps.push(0, diameter / 2, 0);
    }
    const busy = new Set(flat);
    const names = [...Array(clients).keys()];
    const bare = { visible: false, range: [-1.12, 1.12], fixedrange: true };
    return {
      data: [
        {
          type: "scatter", mode: "lines+markers", x: lines.x, y: lines.y, hoverinfo: "skip",
          opacity: crowded ? Math.max(0.15, Math.sqrt(150 / (flat.length / 2)) * 0.7) : 0.75,
          line: { color: colour("--soft"), width: crowded ? 0.8 : 1.3 },
          marker: { symbol: "arrow", angleref: "previous", size: lines.sizes, standoff: lines.gaps, color: colour("--soft"), line: { width: 0 } },
        },
        {
          type: "scatter", mode: numbered ? "markers+text" : "markers", x: names.map(x), y: names.map(y),
          text: names.map(String), textfont: { color: "#ffffff", size: 11 }, hovertemplate: "client %{text}<extra></extra>",
          marker: { size: diameter, opacity: 1, color: names.map((k) => (busy.has(k) ? "#2b6cb0" : "#8a94a3")), line: { width: 0 } },
        },
      ],
      layout: {
        margin: { l: 4, r: 4, t: 4, b: 4 }, showlegend: false, hovermode: "closest",
        xaxis: { ...bare, scaleanchor: "y" }, yaxis: { ...bare },
      },
    };
  }

  for (const element of figures.keys()) {
    watcher.observe(element);
    sizes.observe(element);
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  // On paper everything that is open is drawn, light, at the width of the paper.
  addEventListener("beforeprint", () => {
    root.classList.add("printing");
    [...figures.keys()].filter(visible).forEach(draw);
  });
  addEventListener("afterprint", () => {
    root.classList.remove("printing");
    redraw();
  });
})();
