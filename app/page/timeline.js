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
  // Zoom: the track grows wider than its window, which follows the playhead. Drawn anew it stays where it was.
  const CLOSEST = 60; // seconds that fill the window, at the least
  let zoom = 1, left = 0;
  const range = () => {
    const pane = track().parentElement;
    const share = (x) => mmss(Math.min(1, x / track().offsetWidth) * length());
    const text = zoom > 1 ? `${share(pane.scrollLeft)} to ${share(pane.scrollLeft + pane.clientWidth)}` : "";
    const label = document.querySelector("#film .zoom small");
    if (label && label.textContent !== text) label.textContent = text;
    document.querySelector("#film .zoom").hidden = length() <= CLOSEST;
  };
  const follow = (middle = false) => {
    const pane = track().parentElement;
    const x = (track().offsetWidth * (player() ? Math.min(window.vambaPlayerTime(), length()) : length())) / length();
    const out = x < pane.scrollLeft || x > pane.scrollLeft + pane.clientWidth;
    if (middle || out) pane.scrollLeft = x - pane.clientWidth / 2;
    left = pane.scrollLeft;
    range();
  };
  const zoomTo = (wanted) => {
    zoom = Math.min(Math.max(wanted, 1), Math.max(1, length() / CLOSEST));
    document.querySelector("#film").style.setProperty("--zoom", zoom);
    follow(true);
  };
  document.addEventListener("click", (event) => {
    const by = event.target.closest?.("#film [data-zoom]")?.dataset.zoom;
    if (by) zoomTo(zoom * Number(by));
  });
  document.addEventListener("wheel", (event) => {
    if (!event.ctrlKey || !event.target.closest?.("#film .track")) return;
    event.preventDefault();
    zoomTo(zoom * (event.deltaY < 0 ? 1.25 : 0.8));
  }, { passive: false });
  window.addEventListener("resize", () => track() && zoom > 1 && follow(true));
  document.addEventListener("scroll", (event) => {
    if (!event.target.matches?.("#film .window")) return;
    left = event.target.scrollLeft;
    range();
  }, true);

  const lines = () => [...document.querySelectorAll("#film .events li[data-from]")];
  // The newest line that has begun and is not over; without its time, which stands before it.
  const saying = (at) => lines().filter((one) => Number(one.dataset.from) <= at && at < Number(one.dataset.until ?? Infinity)).at(-1);
  const said = (at) => saying(at)?.textContent.replace(/^[\d:]+\s*/, "") ?? "";

  let pointed = null; // the second under the pointer, while there is one
  let dragging = false; // the track may be drawn anew meanwhile, so the page listens and not the track
  const paint = () => {
    const bar = track();
    if (!bar) return;
    const at = player() ? Math.min(window.vambaPlayerTime(), length()) : length(); // a camera is where it is now
    bar.querySelector(".playhead").style.left = `${(100 * at) / length()}%`;
    const words = said(at);
    if (bar.getAttribute("role") === "slider") {
      bar.setAttribute("aria-valuenow", Math.round(at));
      bar.setAttribute("aria-valuetext", words ? `${mmss(at)}, ${words}` : mmss(at));
    }
    const shown = pointed ?? at;
    const caption = document.querySelector("#film .caption");
    const line = `${mmss(shown)} ${said(shown)}`.trim();
    if (caption && caption.textContent !== line) caption.textContent = line; // or the observer below never rests
    mark(at);
  };
  // In the list the line of the moment is marked, and comes into sight unless somebody reads elsewhere in it.
  const mark = (at) => {
    const now = saying(at);
    const before = document.querySelector("#film .events [aria-current]");
    if (now === (before ?? undefined)) return;
    before?.removeAttribute("aria-current");
    now?.setAttribute("aria-current", "true");
    const list = now?.parentElement;
    if (list && !list.matches(":hover, :focus-within")) list.scrollTop = now.offsetTop - list.offsetTop - list.clientHeight / 3;
  };
  const moved = () => {
    paint();
    if (track() && zoom > 1 && !dragging && pointed === null) follow();
  };
  for (const kind of ["timeupdate", "seeking", "seeked"]) document.addEventListener(kind, moved, true);

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
    if (["+", "-"].includes(event.key)) return zoomTo(zoom * (event.key === "+" ? 2 : 0.5));
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
  let told = null;
  let open = matchMedia("(max-width: 760px)").matches; // on a phone the list says more than a narrow track
  document.addEventListener("toggle", (event) => event.target.matches?.("#film .events") && (open = event.target.open), true);
  new MutationObserver(() => {
    const list = document.querySelector("#film .events");
    if (list) list.open = open;
    if (track()) {
      if (zoom > Math.max(1, length() / CLOSEST)) zoomTo(1); // another stream, which is shorter
      track().parentElement.scrollLeft = left;
      range();
    }
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
