// A click on the chart, or on a time of the table, plays the video from there.
document.addEventListener("click", (event) => {
  const target = event.target instanceof Element && event.target.closest("[data-time]");
  const video = target && document.querySelector("#video video");
  if (video) {
    video.currentTime = Number(target.dataset.time);
    video.play().catch(() => {}); // the browser may not be able to play the file
  }
});
