// Draws the map, and lists what is chosen. Without this script the page is a table.
// Everything that comes from the data is shown as text (textContent), never as markup.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const { x, y, video, label, group, span, picture, videos, labels, marks } = data;
  const count = x.length;
  const GRID = 10000; // places along the longer side
  const COLOURS = 8;
  const REST = 24; // the mark of the labels that share one; -1 is that of no label
  const NEAR = 12; // pixels from which a point is pointed at
  const PAGE = 100; // files that are listed at once
  const words = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });

  const nameOf = (point) => videos[video[point]].name;
  const labelOf = (point) => (label[point] < 0 ? "" : labels[label[point]]);
  const timeOf = (point) => `${span[point][0].toFixed(1)} to ${span[point][1].toFixed(1)} s`;
  const linkOf = (point) => {
    const { link } = videos[video[point]];
    return link && data.windows ? `${link}#t=${span[point][0]}` : link;
  };

  // ---- what is shown, and what is chosen ----

  const shown = new Uint8Array(count).fill(1);
  const chosen = new Uint8Array(count);
  const pressed = new Set();
  let here = -1; // the point that is pointed at
  let texts = null;

  function filter() {
    const wanted = $("find").value.trim().toLocaleLowerCase();
    if (wanted) texts ??= x.map((_, i) => `${nameOf(i)}\n${labelOf(i)}`.toLocaleLowerCase());
    let fit = 0;
    for (let i = 0; i < count; i += 1) {
      shown[i] = (!pressed.size || pressed.has(group[i])) && (!wanted || texts[i].includes(wanted));
      fit += shown[i];
    }
    $("all").textContent = `List the ${fit.toLocaleString("en")} shown`;
    $("all").disabled = fit === 0;
    $("reset").disabled = fit === count && !pressed.size;
    if (here >= 0 && !shown[here]) point(-1);
    draw();
  }

  function choose(points, how) {
    if (how === "replace") chosen.fill(0);
    for (const i of points) chosen[i] = how === "remove" ? 0 : how === "toggle" ? 1 - chosen[i] : 1;
    list();
    draw();
  }

  // ---- the list ----

  let files = []; // [{ number of the video, its chosen points }], sorted by name
  let listed = 0;

  function list() {
    const found = new Map();
    let points = 0;
    for (let i = 0; i < count; i += 1) {
      if (!chosen[i]) continue;
      points += 1;
      if (found.has(video[i])) found.get(video[i]).push(i);
      else found.set(video[i], [i]);
    }
    files = [...found].map(([number, of]) => ({ number, of }));
    files.sort((a, b) => words.compare(videos[a.number].name, videos[b.number].name));
    const of = data.windows ? ` (${points.toLocaleString("en")} windows)` : "";
    $("count").textContent = files.length
      ? `${files.length.toLocaleString("en")} video${files.length === 1 ? "" : "s"}${of}`
      : "Nothing yet: drag round points, or choose labels and list what is shown.";
    for (const id of ["copy", "save", "clear"]) $(id).disabled = files.length === 0;
    $("listed").replaceChildren();
    listed = 0;
    listMore();
  }

  function element(tag, text, className = "") {
    const made = document.createElement(tag);
    made.textContent = text;
    made.className = className;
    return made;
  }

  function listMore() {
    const rows = files.slice(listed, listed + PAGE).map(({ number, of }) => {
      const row = document.createElement("li");
      const first = of[0];
      let image = element("span", "", "none");
      if (picture[first]) {
        image = document.createElement("img");
        Object.assign(image, { src: picture[first], alt: "", loading: "lazy", width: 44, height: 44 });
      }
      const link = element(linkOf(first) ? "a" : "bdi", "");
      if (linkOf(first)) {
        Object.assign(link, { href: linkOf(first), target: "_blank", rel: "noopener noreferrer" });
        link.append(element("bdi", videos[number].name));
      } else {
        link.textContent = videos[number].name;
      }
      const facts = [labelOf(first), videos[number].link ? "" : videos[number].trouble || "missing",
        data.windows ? of.map(timeOf).slice(0, 3).join(", ") + (of.length > 3 ? ", ..." : "") : ""];
      const text = document.createElement("span");
      text.append(link, element("bdi", facts.filter(Boolean).join(" · "), "quiet"));
      row.append(image, text);
      row.addEventListener("pointerenter", () => point(first));
      row.addEventListener("pointerleave", () => point(-1));
      return row;
    });
    $("listed").append(...rows);
    listed += rows.length;
    $("more").hidden = listed >= files.length;
    $("more").textContent = `${(files.length - listed).toLocaleString("en")} more`;
  }

  const text = () => files.map(({ number }) => `${videos[number].name}\n`).join("");

  async function copy() {
    try {
      await navigator.clipboard.writeText(text());
    } catch { // not every browser has it for files
      const area = element("textarea", "", "unseen");
      area.value = text();
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
      $("copy").focus();
    }
    $("said").textContent = `Copied ${files.length} names.`;
    $("copy").textContent = "Copied";
    setTimeout(() => { $("copy").textContent = "Copy list"; }, 2000);
  }

  function save() {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text()], { type: "text/plain" }));
    link.download = "videos.txt";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  // ---- drawing ----

  const canvas = $("canvas");
  const paint = canvas.getContext("2d");
  const layer = document.createElement("canvas"); // the points, which most moves of the mouse leave
  const view = { scale: 1, left: 0, top: 0 }; // pixel = place * scale + left
  let width = 0;
  let height = 0;
  let whole = true; // the view follows the size of the window
  let stamps = new Map();
  let colours = {};
  let waiting = false;
  let stale = true; // the layer has to be drawn again
  let lasso = [];

  // labels of the same folder follow each other: in this order no label covers the others
  const order = Array.from(x.keys());
  for (let i = order.length - 1, seed = 1; i > 0; i -= 1) {
    seed = (seed * 48271) % 2147483647;
    const j = seed % (i + 1);
    [order[i], order[j]] = [order[j], order[i]];
  }
  const most = (places) => places.reduce((a, b) => Math.max(a, b), 1);
  const right = most(x);
  const bottom = most(y);

  const across = (i) => x[i] * view.scale + view.left;
  const down = (i) => y[i] * view.scale + view.top;

  function trace(pen, shape, r) {
    pen.beginPath();
    if (shape === "square") pen.rect(-0.9 * r, -0.9 * r, 1.8 * r, 1.8 * r);
    else if (shape === "circle") pen.arc(0, 0, r, 0, 7);
    else {
      const corners = shape === "triangle"
        ? [[0, -1.15], [1.1, 0.9], [-1.1, 0.9]] : [[0, -1.2], [1.2, 0], [0, 1.2], [-1.2, 0]];
      corners.forEach(([a, b], k) => (k ? pen.lineTo(a * r, b * r) : pen.moveTo(a * r, b * r)));
      pen.closePath();
    }
  }

  // A point as a small picture: drawing it is faster than its path
  function stamp(mark, faint) {
    const key = `${mark} ${faint}`;
    if (stamps.has(key)) return stamps.get(key);
    const sharp = window.devicePixelRatio || 1;
    const radius = count > 5000 ? 3 : count > 800 ? 4 : 5.5;
    const side = Math.ceil((radius * 1.25 + 1.5) * 2);
    const made = Object.assign(document.createElement("canvas"),
      { width: side * sharp, height: side * sharp });
    const pen = made.getContext("2d");
    pen.scale(sharp, sharp);
    pen.translate(side / 2, side / 2);
    const own = mark >= 0 && mark < REST;
    const shape = own ? ["circle", "square", "triangle"][Math.floor(mark / COLOURS)]
      : mark === REST ? "diamond" : "circle";
    trace(pen, shape, mark < 0 ? radius * 0.8 : radius);
    pen.globalAlpha = faint ? 0.14 : 1;
    pen.fillStyle = own ? colours[mark % COLOURS] : colours.plain;
    pen.strokeStyle = mark < 0 ? colours.plain : colours.back;
    pen.lineWidth = mark < 0 ? 1.5 : 1;
    if (mark >= 0) pen.fill();
    if (!faint || mark < 0) pen.stroke();
    stamps.set(key, { made, side, radius });
    return stamps.get(key);
  }

  function readColours() {
    const style = getComputedStyle(document.documentElement);
    const value = (name) => style.getPropertyValue(`--${name}`).trim();
    colours = { plain: value("plain"), back: value("back"), text: value("text"),
      accent: value("accent") };
    for (let k = 0; k < COLOURS; k += 1) colours[k] = value(`c${k}`);
    stamps = new Map();
  }

  function draw(points = true) {
    stale ||= points;
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; drawNow(); });
  }

  function inView(i) {
    const a = across(i);
    const b = down(i);
    return a > -20 && b > -20 && a < width + 20 && b < height + 20;
  }

  function drawPoints() {
    const sharp = window.devicePixelRatio || 1;
    layer.width = canvas.width; // clears it, too
    layer.height = canvas.height;
    const pen = layer.getContext("2d");
    pen.scale(sharp, sharp);
    const marked = (fits) => order.forEach((i) => {
      if (!fits(i) || !inView(i)) return;
      const { made, side } = stamp(marks[group[i]], !shown[i]);
      pen.drawImage(made, across(i) - side / 2, down(i) - side / 2, side, side);
    });
    marked((i) => !shown[i]); // what is filtered out lies below
    marked((i) => shown[i] && !chosen[i]);
    const { radius } = stamp(0, false);
    pen.fillStyle = colours.text; // a rim round the chosen ones
    for (let i = 0; i < count; i += 1) {
      if (!chosen[i] || !inView(i)) continue;
      pen.beginPath();
      pen.arc(across(i), down(i), radius + 2.5, 0, 7);
      pen.fill();
    }
    marked((i) => shown[i] && chosen[i]);
    stale = false;
  }

  function drawNow() {
    if (!canvas.width || !canvas.height) return;
    if (stale) drawPoints();
    const sharp = window.devicePixelRatio || 1;
    paint.setTransform(1, 0, 0, 1, 0, 0);
    paint.clearRect(0, 0, canvas.width, canvas.height);
    paint.drawImage(layer, 0, 0);
    paint.scale(sharp, sharp);
    const { radius } = stamp(0, false);
    if (here >= 0) {
      paint.strokeStyle = colours.accent;
      paint.lineWidth = 3;
      paint.beginPath();
      paint.arc(across(here), down(here), radius + 4, 0, 7);
      paint.stroke();
    }
    if (lasso.length > 1) {
      paint.beginPath();
      lasso.forEach(([a, b], k) => (k ? paint.lineTo(a, b) : paint.moveTo(a, b)));
      paint.closePath();
      paint.globalAlpha = 0.12;
      paint.fillStyle = colours.accent;
      paint.fill();
      paint.globalAlpha = 1;
      paint.strokeStyle = colours.accent;
      paint.lineWidth = 2;
      paint.stroke();
    }
  }

  // ---- the view ----

  function showWhole() {
    const edge = 34;
    view.scale = Math.min((width - 2 * edge) / right, (height - 2 * edge) / bottom);
    view.left = (width - right * view.scale) / 2;
    view.top = (height - bottom * view.scale) / 2;
    whole = true;
    place();
    draw();
  }

  function zoom(factor, a = width / 2, b = height / 2) {
    const scale = Math.min(Math.max(view.scale * factor, 0.3 * width / GRID), 200 * width / GRID);
    view.left = a - (a - view.left) * scale / view.scale;
    view.top = b - (b - view.top) * scale / view.scale;
    view.scale = scale;
    whole = false;
    place();
    draw();
  }

  function moveBy(a, b) {
    view.left += a;
    view.top += b;
    whole = false;
    place();
    draw();
  }

  function resize() {
    const sharp = window.devicePixelRatio || 1;
    const before = [width, height];
    width = canvas.clientWidth;
    height = canvas.clientHeight;
    canvas.width = Math.round(width * sharp);
    canvas.height = Math.round(height * sharp);
    if (whole) showWhole();
    else moveBy((width - before[0]) / 2, (height - before[1]) / 2);
  }

  // ---- the point that is pointed at ----

  function point(i) {
    if (i === here) return;
    here = i;
    canvas.classList.toggle("over", i >= 0 && Boolean(linkOf(i)));
    $("card").hidden = i < 0;
    if (i >= 0) {
      const { trouble } = videos[video[i]];
      $("picture").hidden = !picture[i];
      if (picture[i]) $("picture").src = picture[i];
      $("trouble").textContent = picture[i] ? "" : `No picture: ${trouble}`;
      $("name").textContent = nameOf(i);
      $("label").textContent = labelOf(i);
      $("time").textContent = timeOf(i);
      place();
    }
    draw(false);
  }

  function place() { // the card beside its point, inside the map
    if (here < 0) return;
    const card = $("card");
    const a = across(here) + 16 + card.offsetWidth > width
      ? across(here) - 16 - card.offsetWidth : across(here) + 16;
    const b = Math.min(Math.max(down(here) - 40, 6), height - card.offsetHeight - 6);
    card.style.left = `${Math.max(a, 6)}px`;
    card.style.top = `${Math.max(b, 6)}px`;
  }

  function say(i) {
    const missing = picture[i] ? "" : `, no picture: ${videos[video[i]].trouble}`;
    const listedToo = chosen[i] ? ", listed" : "";
    $("said").textContent =
      `${nameOf(i)}, ${labelOf(i) || "no label"}, ${timeOf(i)}${missing}${listedToo}`;
  }

  function nearestTo(a, b, most = Infinity) {
    let best = -1;
    let least = most * most;
    for (let i = 0; i < count; i += 1) {
      if (!shown[i]) continue;
      const far = (across(i) - a) ** 2 + (down(i) - b) ** 2;
      if (far < least) [best, least] = [i, far];
    }
    return best;
  }

  function open(i) {
    if (i < 0) return;
    if (!linkOf(i)) {
      $("said").textContent = `${nameOf(i)} is missing`;
      return;
    }
    const link = document.createElement("a");
    Object.assign(link, { href: linkOf(i), target: "_blank", rel: "noopener noreferrer" });
    link.click();
  }

  // ---- the mouse, and fingers ----

  let from = null;

  function inside(polygon, a, b) {
    let odd = false;
    for (let k = 0, before = polygon.length - 1; k < polygon.length; before = k, k += 1) {
      const [ax, ay] = polygon[k];
      const [bx, by] = polygon[before];
      if ((ay > b) !== (by > b) && a < ((bx - ax) * (b - ay)) / (by - ay) + ax) odd = !odd;
    }
    return odd;
  }

  function where(event) {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    from = { at: where(event), last: where(event), dragged: false };
    lasso = [from.at];
    canvas.setPointerCapture(event.pointerId);
  });

  canvas.addEventListener("pointermove", (event) => {
    const at = where(event);
    if (!from) {
      point(nearestTo(...at, NEAR));
      return;
    }
    from.dragged ||= Math.hypot(at[0] - from.at[0], at[1] - from.at[1]) > 4;
    if (!from.dragged) return;
    point(-1);
    if ($("move").checked) moveBy(at[0] - from.last[0], at[1] - from.last[1]);
    else lasso.push(at);
    from.last = at;
    draw(false);
  });

  canvas.addEventListener("pointerup", (event) => {
    if (!from) return;
    const { dragged } = from;
    const around = lasso;
    from = null;
    lasso = [];
    if (!dragged) open(nearestTo(...where(event), NEAR));
    else if (!$("move").checked) {
      const found = order.filter((i) => shown[i] && inside(around, across(i), down(i)));
      choose(found, event.shiftKey ? "add" : event.altKey ? "remove" : "replace");
    }
    draw(false);
  });

  canvas.addEventListener("pointercancel", () => { from = null; lasso = []; draw(false); });
  canvas.addEventListener("pointerleave", () => { if (!from) point(-1); });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(1.0015 ** -event.deltaY, ...where(event));
    point(nearestTo(...where(event), NEAR));
  }, { passive: false });

  // ---- the keyboard ----

  const WAYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

  function neighbour([dx, dy]) {
    let best = -1;
    let least = Infinity;
    for (let i = 0; i < count; i += 1) {
      if (!shown[i] || i === here) continue;
      const a = across(i) - across(here);
      const b = down(i) - down(here);
      const along = a * dx + b * dy;
      const aside = Math.abs(a * dy) + Math.abs(b * dx);
      // a point on the very same place comes after it in the table, or before
      const same = a === 0 && b === 0 && (i > here) === (dx + dy > 0);
      if (!same && (along <= 0 || aside > 2 * along)) continue;
      const far = same ? Math.abs(i - here) * 1e-9 : along + 2 * aside;
      if (far < least) [best, least] = [i, far];
    }
    return best;
  }

  function goTo(i) {
    if (i < 0) return;
    if (!inView(i)) moveBy(width / 2 - across(i), height / 2 - down(i));
    point(i);
    say(i);
  }

  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const way = WAYS[event.key];
    if (way) goTo(here < 0 ? nearestTo(width / 2, height / 2) : neighbour(way));
    else if (event.key === " " && here >= 0) { choose([here], "toggle"); say(here); }
    else if (event.key === "Enter") open(here);
    else if (event.key === "Escape") point(-1);
    else if (event.key === "+" || event.key === "=") zoom(1.4);
    else if (event.key === "-") zoom(1 / 1.4);
    else if (event.key === "0") showWhole();
    else return;
    event.preventDefault();
  });
  canvas.addEventListener("focus", () => {
    if (here < 0 && canvas.matches(":focus-visible")) goTo(nearestTo(width / 2, height / 2));
  });
  canvas.addEventListener("blur", () => point(-1));

  // ---- buttons ----

  $("find").addEventListener("input", filter);
  $("legend")?.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const number = Number(button.dataset.group);
    if (!pressed.delete(number)) pressed.add(number);
    button.setAttribute("aria-pressed", String(pressed.has(number)));
    filter();
  });
  $("reset").addEventListener("click", () => {
    $("find").value = "";
    pressed.clear();
    for (const button of document.querySelectorAll("#legend button")) {
      button.setAttribute("aria-pressed", "false");
    }
    filter();
  });
  $("all").addEventListener("click", () => choose(order.filter((i) => shown[i]), "replace"));
  $("clear").addEventListener("click", () => choose([], "replace"));
  $("copy").addEventListener("click", copy);
  $("save").addEventListener("click", save);
  $("more").addEventListener("click", listMore);
  $("in").addEventListener("click", () => zoom(1.5));
  $("out").addEventListener("click", () => zoom(1 / 1.5));
  $("whole").addEventListener("click", showWhole);
  for (const id of ["lasso", "move"]) {
    $(id).addEventListener("change", () => canvas.classList.toggle("moving", $("move").checked));
  }
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    readColours();
    draw();
  });

  $("app").hidden = false;
  readColours();
  filter(); // a browser that goes back fills the field in again
  list();
  canvas.classList.toggle("moving", $("move").checked);
  new ResizeObserver(resize).observe(canvas);
  resize();
})();
