// Sorts, filters and pages the table. Without this script it is a plain table of all videos.
"use strict";
(() => {
  const PAGE = 50;
  const $ = (id) => document.getElementById(id);
  const body = $("videos").tBodies[0];
  const words = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });

  const text = (cell) => cell.textContent.trim();
  const number = (cell) => (cell.dataset.value === "" ? null : Number(cell.dataset.value));
  const all = [...body.rows].map((row) => ({
    row,
    // of each column, what it is sorted by; empty cells are last in both directions
    keys: [...row.cells].map((cell) =>
      "value" in cell.dataset ? number(cell) : text(cell) || null),
    label: text(row.cells[2]),
    score: number(row.cells[3]),
    failed: text(row.cells[5]) !== "",
    text: [0, 2, 5].map((i) => text(row.cells[i])).join("\n").toLocaleLowerCase(),
  }));

  let order = all;
  let found = all;
  let first = 0;

  function show() {
    body.replaceChildren(...found.slice(first, first + PAGE).map((video) => video.row));
    const last = Math.min(first + PAGE, found.length);
    const of = found.length === all.length ? "" : ` (of ${all.length})`;
    $("shown").textContent =
      found.length ? `${first + 1} to ${last} of ${found.length}${of}` : "no video fits";
    $("back").disabled = first === 0;
    $("on").disabled = last >= found.length;
  }

  const bound = (id, without) => {
    const share = $(id).valueAsNumber / 100;
    return Number.isNaN(share) ? without : share;
  };

  function filter() {
    const wanted = $("text").value.trim().toLocaleLowerCase();
    const label = $("label").selectedIndex > 0 ? $("label").value : null;
    const least = bound("least", -Infinity);
    const most = bound("most", Infinity);
    const scored = least !== -Infinity || most !== Infinity;
    const state = $("state").value;
    found = order.filter((video) =>
      video.text.includes(wanted) &&
      (label === null || video.label === label) &&
      (!scored || (video.score !== null && video.score >= least && video.score <= most)) &&
      (state === "" || video.failed === (state === "with")));
    first = 0;
    show();
  }

  function sort(column, heading) {
    const rising = heading.getAttribute("aria-sort") !== "ascending";
    for (const other of heading.parentNode.querySelectorAll("[aria-sort]")) {
      other.setAttribute("aria-sort", "none");
    }
    heading.setAttribute("aria-sort", rising ? "ascending" : "descending");
    const compare = heading.dataset.sort === "number" ? (a, b) => a - b : words.compare;
    order = [...all].sort((one, other) => {
      const a = one.keys[column];
      const b = other.keys[column];
      if (a === null || b === null) return (a === null) - (b === null);
      return rising ? compare(a, b) : compare(b, a);
    });
    filter();
  }

  [...$("videos").tHead.rows[0].cells].forEach((heading, column) => {
    if (!heading.dataset.sort) return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent;
    heading.setAttribute("aria-sort", "none");
    heading.replaceChildren(button);
    button.addEventListener("click", () => sort(column, heading));
  });

  const labels = new Set(all.map((video) => video.label).filter((label) => label !== ""));
  for (const label of [...labels].sort(words.compare)) {
    const option = document.createElement("option");
    option.value = label;
    option.textContent = label.length > 60 ? `${label.slice(0, 60)}...` : label;
    $("label").append(option);
  }

  $("filters").addEventListener("input", filter);
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("filters").addEventListener("reset", () => setTimeout(filter));
  $("back").addEventListener("click", () => { first = Math.max(0, first - PAGE); show(); });
  $("on").addEventListener("click", () => { first += PAGE; show(); });
  $("filters").hidden = false;
  $("paging").hidden = all.length === 0;
  filter(); // a browser that goes back fills the fields in again
})();
