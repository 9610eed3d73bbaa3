// Shows the numbers of curves, sorts tables, and refreshes the page of a run that goes on. Without
// this script there are the curves, the tables, and the browser's own refresh.
"use strict";
(() => {
  // ---- refresh

  const run = document.getElementById("run");
  const seconds = Number(run.dataset.live);
  const kept = (value) => { // a browser may keep nothing for files
    try {
      if (value !== undefined) sessionStorage.setItem("refresh", value);
      return sessionStorage.getItem("refresh");
    } catch { return null; }
  };
  if (seconds) {
    const box = document.getElementById("refresh");
    document.getElementById("refreshing").hidden = false;
    box.checked = kept() !== "off";
    box.addEventListener("change", () => kept(box.checked ? "on" : "off"));
    setInterval(() => { if (box.checked) location.reload(); }, 1000 * seconds);
    const age = document.getElementById("age");
    const tell = () => {
      const minutes = Math.floor((Date.now() / 1000 - Number(run.dataset.at)) / 60);
      age.hidden = minutes < 5;
      age.textContent = `That is ${minutes} minutes ago: a step may be long, or the run has ended without a word.`;
    };
    tell();
    setInterval(tell, 10000);
  }

  // ---- curves

  const shown = (value) => String(Number(value.toPrecision(4)));

  for (const panel of document.querySelectorAll(".panel")) {
    const plot = panel.querySelector(".plot");
    const cursor = panel.querySelector(".cursor");
    const output = panel.querySelector("output");
    const first = Number(panel.dataset.first);
    const last = Number(panel.dataset.last);
    const lines = [...panel.querySelectorAll("path")].map((path) =>
      ({ name: path.dataset.name, points: JSON.parse(path.dataset.points) }));
    const steps = [...new Set(lines.flatMap((line) => line.points.map((point) => point[0])))]
      .sort((a, b) => a - b);
    let at = steps.length - 1;

    function show(index) {
      at = Math.min(Math.max(index, 0), steps.length - 1);
      const step = steps[at];
      const words = lines.map((line) => {
        const near = line.points.reduce((a, b) =>
          Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a);
        const where = near[0] === step ? "" : ` (step ${near[0]})`;
        return `${lines.length > 1 ? `${line.name} ` : ""}${shown(near[1])}${where}`;
      });
      output.textContent = `step ${step}: ${words.join(", ")}`;
      const place = `${100 * (step - first) / (last - first)}%`;
      cursor.setAttribute("x1", place);
      cursor.setAttribute("x2", place);
      cursor.setAttribute("visibility", "visible");
    }

    plot.tabIndex = 0;
    output.setAttribute("aria-live", "polite");
    plot.addEventListener("pointermove", (event) => {
      const box = plot.getBoundingClientRect();
      const step = first + (last - first) * (event.clientX - box.left) / box.width;
      let near = 0;
      steps.forEach((value, i) => {
        if (Math.abs(value - step) < Math.abs(steps[near] - step)) near = i;
      });
      show(near);
    });
    plot.addEventListener("keydown", (event) => {
      const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: steps.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      show(to);
    });
  }

  // ---- tables

  const words = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
  const key = (cell) => cell.dataset.value ?? cell.textContent.trim();

  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = heading.textContent;
      heading.setAttribute("aria-sort", "none");
      heading.replaceChildren(button);
      button.addEventListener("click", () => {
        const rising = heading.getAttribute("aria-sort") !== "ascending";
        for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
        heading.setAttribute("aria-sort", rising ? "ascending" : "descending");
        const rows = [...table.tBodies[0].rows].sort((one, other) => {
          const a = key(one.cells[column]);
          const b = key(other.cells[column]);
          if (!a || !b) return !a - !b; // empty cells are last in both directions
          return rising ? words.compare(a, b) : words.compare(b, a);
        });
        table.tBodies[0].append(...rows);
      });
    });
  }
})();
