// A clip: ten seconds around a moment, cut by the server, shown in a window of their own, where they can be saved.
() => {
  const AROUND = 5;
  const dialog = document.createElement("dialog");
  dialog.id = "clip";
  dialog.setAttribute("aria-labelledby", "clip-title");
  dialog.innerHTML =
    '<h2 id="clip-title"></h2><p role="status"></p><video controls muted playsinline aria-label="The clip"></video>' +
    '<div><a class="save">Save</a><button type="button">Close</button></div>';
  document.querySelector(".gradio-container").append(dialog);
  const [title, status, video, save] = ["h2", "p", "video", "a"].map((part) => dialog.querySelector(part));
  const mmss = (seconds) => {
    const whole = Math.max(0, Math.floor(seconds));
    const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, String(whole % 60).padStart(2, "0")];
    return h ? `${h}:${String(m).padStart(2, "0")}:${s}` : `${m}:${s}`;
  };
  dialog.querySelector("button").addEventListener("click", () => dialog.close());

  let wanted = null;
  const forget = () => {
    wanted?.abort();
    wanted = null;
    if (video.src) URL.revokeObjectURL(video.src);
    video.removeAttribute("src");
    video.hidden = save.hidden = true;
  };
  dialog.addEventListener("close", forget);
  const fetched = async (at, signal) => {
    const headers = { "x-vamba-key": sessionStorage.getItem("vamba-live") ?? "" };
    const answer = await fetch("live/clip", { method: "POST", headers, body: JSON.stringify({ at }), signal });
    if (!answer.ok) throw new Error(await answer.text());
    return URL.createObjectURL(await answer.blob());
  };
  const open = async (at) => {
    forget();
    const mine = (wanted = new AbortController());
    title.textContent = `Clip around ${mmss(at)}`;
    status.textContent = "It is being cut; of a long video this takes a while.";
    dialog.showModal();
    try {
      const url = await fetched(at, mine.signal);
      if (wanted !== mine) return URL.revokeObjectURL(url);
      video.src = save.href = url;
      save.download = `clip-${mmss(at).replaceAll(":", ".")}.mp4`;
      video.hidden = save.hidden = false;
      status.textContent = `${mmss(at - AROUND)} to ${mmss(at + AROUND)}, as far as the video goes; without sound.`;
      video.play().catch(() => {});
    } catch (error) {
      const away = "The server did not answer, so there is no clip; try again in a moment.";
      if (wanted === mine) status.textContent = error instanceof TypeError ? away : error.message;
    }
  };
  // "now": where the player stands, or the newest moment of a camera.
  document.addEventListener("click", (event) => {
    const at = event.target.closest?.("[data-clip]")?.dataset.clip;
    if (at === undefined) return;
    const bar = document.querySelector("#film .track");
    const newest = bar?.getAttribute("role") === "slider" ? window.vambaPlayerTime() : Number(bar?.dataset.length ?? 0);
    open(at === "now" ? newest : Number(at));
  });
}
