// The little the page does in the browser: seek the player, tell its time, and name the live region.
() => {
  const player = () => [...document.querySelectorAll("#stage video")].find((video) => video.offsetParent !== null);
  window.vambaPlayerTime = () => player()?.currentTime ?? 0;

  // Any picture or time that names a moment seeks. A camera cannot be sought: its picture is shown larger instead.
  document.addEventListener("click", (event) => {
    const chip = event.target.closest?.("[data-seek]");
    if (!chip) return;
    const video = player();
    if (video && !document.querySelector("#camera")) video.currentTime = Number(chip.dataset.seek);
    else chip.classList.toggle("large");
  });

  const spoken = document.querySelector("#spoken");
  spoken?.setAttribute("role", "status");
  spoken?.setAttribute("aria-live", "polite");
}
