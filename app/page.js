// The little the page does in the browser: seek the player, tell its time, and name the live region.
() => {
  const player = () => [...document.querySelectorAll("#example video, #upload video")].find((video) => video.offsetParent !== null);
  window.vambaPlayerTime = () => player()?.currentTime ?? 0;
  window.vambaPlay = () => player()?.play().catch(() => {}); // a browser may refuse; the visitor then presses play

  // Any picture or time that names a moment seeks. A camera cannot be sought: its picture is shown larger instead.
  document.addEventListener("click", (event) => {
    const chip = event.target.closest?.("[data-seek]");
    if (!chip) return;
    const video = player();
    if (video) video.currentTime = Number(chip.dataset.seek);
    else chip.classList.toggle("large");
  });

  // The browser plays fewer formats than the model can watch; Gradio calls that an error.
  new MutationObserver(() => {
    for (const toast of document.querySelectorAll("[data-testid=toast-text]"))
      if (toast.textContent.trim() === "Video not playable") {
        toast.textContent = "Your browser cannot play this file. It is still watched, if it is a video.";
        toast.closest("[data-testid=toast-body]").querySelector(".toast-title").textContent = "Playback";
      }
  }).observe(document.body, { childList: true, subtree: true });

  const spoken = document.querySelector("#spoken");
  spoken?.setAttribute("role", "status");
  spoken?.setAttribute("aria-live", "polite");
}
