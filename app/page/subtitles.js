// What was seen as a subtitle track of the file's own player: off until the visitor switches it on in the player.
() => {
  const EVERY_MS = 5_000;
  let held = "", due = 0, waiting = null;

  // Every time an element of its own, on or off as the one before: a browser that has read a track, or failed to, as
  // with the empty one that Gradio puts there, does not read it again.
  const put = async (video) => {
    const headers = { "x-vamba-key": sessionStorage.getItem("vamba-live") ?? "" };
    const answer = await fetch("live/captions", { method: "POST", headers }).catch(() => null);
    if (!answer?.ok) return void (held = "");
    const src = URL.createObjectURL(new Blob([await answer.text()], { type: "text/vtt" }));
    const before = [...video.querySelectorAll("track")];
    const ours = before.find((one) => one.label);
    const made = Object.assign(document.createElement("track"), { kind: "captions", label: "What was seen", srclang: "en", src });
    for (const one of before) one.remove();
    video.append(made);
    for (const mode of ["hidden", ours?.track.mode ?? "disabled"]) made.track.mode = mode; // set twice, or Chromium decides
    if (ours) URL.revokeObjectURL(ours.src);
  };
  const look = () => {
    waiting = null;
    const { source, captions } = document.querySelector("#film .track")?.dataset ?? {};
    const video = source && document.querySelector(`#${source.toLowerCase()} video`);
    const now = `${video?.currentSrc} ${captions}`;
    if (!video || now === held || captions.endsWith(" 0")) return;
    if (Date.now() < due) return void (waiting = setTimeout(look, due - Date.now()));
    [held, due] = [now, Date.now() + EVERY_MS];
    put(video);
  };
  new MutationObserver(() => waiting ?? look()).observe(document.querySelector("#film"), { childList: true, subtree: true });
  document.addEventListener("loadedmetadata", () => waiting ?? look(), true);
}
