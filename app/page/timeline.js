// The timeline: its playhead follows the player, a click, a drag and the arrow keys move it, what was seen at a moment
// shows under it, and an address that ends in #t=12:40 begins there.
() => {
  const STEPS = { ArrowLeft: -5, ArrowDown: -5, ArrowRight: 5, ArrowUp: 5, PageDown: -30, PageUp: 30 };
  const track = () => document.querySelector("#film .track");
  const player = () => [...document.querySelectorAll("#example video, #upload video")].find((video) => video.offsetParent !== null);
  const length = () => Number(track()?.dataset.length ?? 0);
  const mmss = (seconds) => {
    const [h, m, s] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, String(Math.floor(seconds % 60)).padStart(2, "0")];
    return h ? `${h}:${String(m).padStart(2, "0")}:${s}` : `${m}:${s}`;
  };
  const lines = () => [...document.querySelectorAll("#film .events li[data-from]")];
  // The newest line that has begun and is not over; without its time, which stands before it.
  const said = (at) => {
    const now = lines().filter((one) => Number(one.dataset.from) <= at && at < Number(one.dataset.until ?? Infinity)).at(-1);
    return now ? now.textContent.replace(/^[\d:]+\s*/, "") : "";
  };

  let pointed = null; // the second under the pointer, while there is one
  const paint = () => {
    const bar = track();
    if (!bar) return;
    const at = Math.min(window.vambaPlayerTime(), length());
    bar.querySelector(".playhead").style.left = `${(100 * at) / length()}%`;
    const words = said(at);
    bar.setAttribute("aria-valuenow", Math.round(at));
    bar.setAttribute("aria-valuetext", words ? `${mmss(at)}, ${words}` : mmss(at));
    const shown = pointed ?? at;
    const caption = document.querySelector("#film .caption");
    const line = `${mmss(shown)} ${said(shown)}`.trim();
    if (caption && caption.textContent !== line) caption.textContent = line; // or the observer below never rests
  };
  for (const kind of ["timeupdate", "seeking", "seeked"]) document.addEventListener(kind, paint, true);

  const seek = (at) => {
    const video = player();
    if (!video || track()?.getAttribute("role") !== "slider") return;
    window.vambaSeek(Math.min(Math.max(at, 0), length()));
    paint();
  };
  const under = (event) => {
    const box = track().getBoundingClientRect();
    return (length() * Math.min(Math.max(event.clientX - box.left, 0), box.width)) / box.width;
  };
  let dragging = false; // the track may be drawn anew meanwhile, so the page listens and not the track
  document.addEventListener("pointerdown", (event) => {
    if (!event.target.closest?.("#film .track")) return;
    dragging = true;
    seek(under(event));
  });
  document.addEventListener("pointermove", (event) => {
    const inside = event.target.closest?.("#film .track");
    if (!track() || !(dragging || inside || pointed !== null)) return;
    pointed = dragging || inside ? under(event) : null;
    if (dragging) seek(pointed);
    paint();
  });
  for (const kind of ["pointerup", "pointercancel"]) document.addEventListener(kind, () => (dragging = false));
  document.addEventListener("keydown", (event) => {
    if (!event.target.matches?.("#film .track[role=slider]")) return;
    const [at, step] = [window.vambaPlayerTime(), STEPS[event.key]];
    const to = step ? at + step : { Home: 0, End: length() }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    pointed = null;
    seek(to);
  });

  // What is new is read out once, by a region that is never drawn anew; what was there before a reload is not.
  const voice = Object.assign(document.createElement("div"), { className: "unseen" });
  voice.setAttribute("aria-live", "polite");
  voice.id = "told";
  document.querySelector("#left").append(voice);
  let told = null, open = false;
  document.addEventListener("toggle", (event) => event.target.matches?.("#film .events") && (open = event.target.open), true);
  new MutationObserver(() => {
    const list = document.querySelector("#film .events");
    if (list) list.open = open;
    const newest = lines().at(-1);
    const from = Number(newest?.dataset.from ?? -1);
    if (told !== null && from > told) voice.textContent = newest.textContent;
    told = from;
    paint();
  }).observe(document.querySelector("#film"), { childList: true, subtree: true });

  const linked = () => {
    const parts = /^#t=((?:\d+:){0,2}\d+(?:\.\d+)?)$/.exec(location.hash)?.[1].split(":").map(Number);
    const video = player();
    if (parts && video) window.vambaSeek(parts.reduce((sum, part) => 60 * sum + part, 0));
  };
  document.addEventListener("loadedmetadata", linked, true);
  window.addEventListener("hashchange", linked);
  if (player()?.readyState) linked();
}
