// Plays the video from where the chart or a picture is clicked. Without this script these are
// links to the file at that time.
"use strict";
(() => {
  const player = document.getElementById("player");
  const chart = document.getElementById("chart");
  const pointed = document.getElementById("pointed");
  const slots = chart ? [...chart.querySelectorAll(".slots a")] : [];
  const end = chart ? Number(chart.dataset.end) : 0;

  const clock = (seconds) => {
    const tenths = Math.round(seconds * 10);
    const rest = ((tenths % 600) / 10).toFixed(1).padStart(4, "0");
    const minutes = Math.floor(tenths / 600);
    return minutes < 60
      ? `${minutes}:${rest}`
      : `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, "0")}:${rest}`;
  };

  function play(time) {
    player.currentTime = time;
    player.play().catch(() => {}); // a browser may refuse; the time is set
    player.scrollIntoView({ block: "nearest" });
  }

  const timeAt = (event) => {
    const box = chart.getBoundingClientRect();
    return Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1) * end;
  };

  document.addEventListener("click", (event) => {
    const link = event.target.closest("[data-time]");
    if (!link || !player || player.error || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    // a key "clicks" without a place: then the window plays from its beginning
    const placed = chart && chart.contains(link) && event.detail > 0;
    play(placed ? timeAt(event) : Number(link.dataset.time));
  });

  if (player) {
    const complain = () => {
      document.getElementById("unplayable").hidden = false;
      player.controls = false;
      player.classList.toggle("broken", !player.poster);
    };
    player.addEventListener("error", complain);
    if (player.error) complain();
    player.addEventListener("timeupdate", () => {
      const now = document.getElementById("now");
      if (!now || !end) return;
      const place = `${Math.min(100, (100 * player.currentTime) / end)}%`;
      now.setAttribute("x1", place);
      now.setAttribute("x2", place);
      now.setAttribute("visibility", "visible");
    });
  }

  // One stop for the Tab key; arrows go from window to window.
  slots.forEach((slot, i) => {
    slot.setAttribute("tabindex", i ? "-1" : "0");
    slot.querySelector("title").remove(); // its words are shown below the chart at once
    const words = slot.getAttribute("aria-label");
    slot.addEventListener("pointermove", (event) => {
      pointed.textContent = `${clock(timeAt(event))} is in ${words}`;
    });
    slot.addEventListener("focus", () => { pointed.textContent = words; });
  });
  if (chart) {
    chart.addEventListener("keydown", (event) => {
      const at = slots.indexOf(document.activeElement);
      const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: slots.length - 1 }[event.key];
      if (at < 0 || to === undefined) return;
      event.preventDefault();
      const slot = slots[Math.min(Math.max(to, 0), slots.length - 1)];
      slots[at].setAttribute("tabindex", "-1");
      slot.setAttribute("tabindex", "0");
      slot.focus();
    });
  }
})();
