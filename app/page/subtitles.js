// What was seen as a subtitle track of the file's own player: off until the visitor switches it on in the player.
() => {
  const EVERY_MS = 5_000;
  let held = "", due = 0, waiting = null;

  // One track element a player: Gradio puts an empty one there, which shows what it gets. It is off at first, and
  // afterwards as the visitor has set it.
  const trackOf = (video) => {
    const there = video.querySelector("track");
    if (there?.label) return there;
    const made = there ?? video.appendChild(document.createElement("track"));
    Object.assign(made, { kind: "captions", label: "What was seen", srclang: "en", default: false });
    made.track.mode = "disabled";
    return made;
  };
  const put = async (video) => {
    const headers = { "x-vamba-key": sessionStorage.getItem("vamba-live") ?? "" };
    const answer = await fetch("live/captions", { method: "POST", headers }).catch(() => null);
    if (!answer?.ok) return void (held = "");
    const element = trackOf(video);
    const before = element.src;
    element.src = URL.createObjectURL(new Blob([await answer.text()], { type: "text/vtt" }));
    if (before) URL.revokeObjectURL(before);
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
