// The little the page does in the browser: seek the player, tell its time, and name the live region.
() => {
  const player = () => [...document.querySelectorAll("#example video, #upload video")].find((video) => video.offsetParent !== null);
  // A stream may go on with another video: seconds are the stream's, and the player shows the newest one alone.
  const begins = () => Number(document.querySelector("#film .track")?.dataset.begins ?? 0);
  window.vambaPlayerTime = () => (player() ? player().currentTime + begins() : 0);
  window.vambaSeek = (at) => {
    if (!player() || at < begins()) return false;
    player().currentTime = at - begins();
    return true;
  };
  // Start also plays the file; a browser may refuse, and the visitor then presses play.
  window.vambaStart = () => player()?.play().catch(() => {});

  // Any picture or time that names a moment seeks. A camera cannot be sought: its picture is shown larger instead.
  document.addEventListener("click", (event) => {
    const chip = event.target.closest?.("[data-seek]");
    if (!chip) return;
    if (!window.vambaSeek(Number(chip.dataset.seek))) chip.classList.toggle("large");
  });

  // Buttons within the conversation ("withdraw 3", "wrong 3 0") press a hidden one, which takes the words along.
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("[data-deed]");
    if (event.target.closest?.("[data-close]")) event.target.closest("[role=alert]").remove();
    if (!button) return;
    window.vambaDeed = button.dataset.deed;
    document.querySelector("#deed").click();
  });
  window.vambaSave = (text, name, type) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(URL.revokeObjectURL, 10_000, link.href);
  };

  // What is watched also plays; a browser that wants silence gets it.
  const play = (video) => video?.play().catch(() => { video.muted = true; video.play().catch(() => {}); });
  window.vambaPlay = (tries = 40) => {
    const video = document.querySelector("#upload video");
    if (video) play(video);
    else if (tries) setTimeout(window.vambaPlay, 250, tries - 1); // the player comes with the file
  };
  window.vambaAgain = () => {
    const video = player();
    if (video) video.currentTime = 0;
    play(video);
  };

  // A GIF is a video to us; Gradio takes only what the browser calls one. Before it looks, the file is called that.
  const picker = (target) => target?.closest?.("#upload")?.querySelector("input[type=file]");
  document.addEventListener("click", (event) => {
    const input = picker(event.target);
    if (input) input.accept = "video/*,image/gif";
  }, true);
  document.addEventListener("change", (event) => {
    const input = picker(event.target);
    if (!input?.files.length || input.files[0].type !== "image/gif") return;
    const files = new DataTransfer();
    files.items.add(new File([input.files[0]], input.files[0].name, { type: "video/gif" }));
    input.files = files.files;
  }, true);

  // The browser plays fewer formats than the model can watch; Gradio calls that an error. What the model cannot watch
  // either has its sentence in the state line, so a second one beside it would only contradict.
  const explain = (toast, tries) => {
    const [text, state] = [toast.querySelector("[data-testid=toast-text]"), document.querySelector("#line .state")];
    if (state?.matches(".error")) toast.querySelector("button")?.click();
    else if (state?.matches(".watching, .catching, .ended") || !tries) {
      text.textContent = "Your browser cannot play this file. It is watched all the same.";
      toast.querySelector(".toast-title").textContent = "Playback";
      toast.style.visibility = "";
    } else setTimeout(explain, 250, toast, tries - 1);
  };
  // Why an upload was not taken, in a sentence: the server's own where it has one.
  const LARGER = "This file is larger than the page takes, so it was not taken; choose a smaller one.";
  const refusal = (words) => {
    const [, status, said] = words.match(/^HTTP (\d{3}):?\s*(.*)$/s) ?? [];
    if (status === "413" || /exceed/i.test(words)) return LARGER;
    if (/\.$/.test(said ?? "")) return said;
    if (/Connection errored out/.test(words)) return "The server did not answer, so nothing was taken; try again in a moment.";
    return status && `The server did not take this file (error ${status}), so nothing is watched; try again in a minute.`;
  };
  const retell = (text, toast, sentence) => {
    toast.querySelector(".toast-title").textContent = "Upload";
    text.textContent = sentence;
  };
  new MutationObserver(() => {
    for (const text of document.querySelectorAll("[data-testid=toast-text]")) {
      const toast = text.closest("[data-testid=toast-body]");
      const sentence = refusal(text.textContent.trim());
      if (sentence && sentence !== text.textContent) retell(text, toast, sentence);
      if (text.textContent.trim() !== "Video not playable" || toast.style.visibility) continue;
      toast.style.visibility = "hidden";
      setTimeout(explain, 500, toast, 120);
    }
  }).observe(document.body, { childList: true, subtree: true });

  const names = { example: "The example video", upload: "Your video" };
  new MutationObserver(() => {
    for (const [id, name] of Object.entries(names)) {
      const video = document.querySelector(`#${id} video`);
      if (!video || video.controls) continue;
      video.setAttribute("aria-label", name);
      video.controls = true; // the browser's own: Gradio's show up only under a pointer, and are too small for a finger
    }
  }).observe(document.querySelector("#stage") ?? document.body, { childList: true, subtree: true });

  const spoken = document.querySelector("#spoken");
  spoken?.setAttribute("role", "status");
  spoken?.setAttribute("aria-live", "polite");
}
