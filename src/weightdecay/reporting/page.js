// Makes the page's plots interactive. Names and numbers reach the page as text alone.
(() => {
  "use strict";
  const views = new Map(); // of a figure, by its id
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  document.body.append(tip);

  function showTip(titles, event, value) {
    tip.hidden = value === null || value === undefined;
    if (tip.hidden) return;
    const rows = Object.entries(value).map(([name, text]) => [titles[name] ?? name, text]);
    tip.replaceChildren(
      ...rows.map((pair) => {
        const row = document.createElement("div");
        row.append(
          ...pair.map((text) => Object.assign(document.createElement("span"), { textContent: String(text).trim() })),
        );
        return row;
      }),
    );
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(4, Math.min(event.clientX + 14, window.innerWidth - box.width - 4)) + "px";
    tip.style.top = Math.max(4, Math.min(event.clientY + 14, window.innerHeight - box.height - 4)) + "px";
  }

  async function draw(place) {
    const figure = place.closest("figure").id;
    const panel = place.parentElement;
    panel.classList.add("live"); // before it is drawn, or it would have no width
    try {
      const spec = JSON.parse(document.getElementById(place.dataset.spec).textContent);
      const { view } = await vegaEmbed(place, spec, {
        actions: false,
        ast: true, // an interpreter in the place of eval, which the page's policy forbids
        defaultStyle: false,
        mode: "vega-lite",
        renderer: "svg",
        tooltip: (handler, event, item, value) => showTip(spec.usermeta, event, value),
      });
      views.set(figure, [...(views.get(figure) ?? []), view]);
      place.dataset.rows = view.data("records").length;
    } catch (error) {
      panel.classList.remove("live"); // the plain picture stays
      console.error(error);
    }
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-series]");
    if (!button) return;
    const alone = button.getAttribute("aria-pressed") !== "true";
    for (const other of button.parentElement.querySelectorAll("button")) other.setAttribute("aria-pressed", "false");
    button.setAttribute("aria-pressed", String(alone));
    for (const view of views.get(button.dataset.figure) ?? []) {
      view.signal("only", alone ? button.dataset.series : null).runAsync();
    }
  });
  document.addEventListener("scroll", () => (tip.hidden = true), { passive: true });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") tip.hidden = true;
  });

  // A long page draws what is about to be seen; one that will be printed shows its plain pictures.
  const seen = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        seen.unobserve(entry.target);
        draw(entry.target.querySelector(".view"));
      }
    },
    { rootMargin: "600px" },
  );
  for (const panel of document.querySelectorAll(".panel")) seen.observe(panel);
})();
