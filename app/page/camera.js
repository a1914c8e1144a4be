// The camera, or a shared screen: switched on by the main button, rests while the stream is paused, and sends a small
// picture a second. One place knows whether it is on, so the button always does the next sensible thing.
() => {
  const SIDE = 640;
  const CAMERAS = ["Webcam", "Screen"];
  const shared = { stream: null, kind: "", resting: false, taken: false, since: 0, sending: false };
  const shown = () => document.querySelector("#camera video");
  const label = () => document.querySelector("#go")?.innerText ?? "";

  // What is sent comes from a player of its own: the one in the page goes whenever another source is chosen.
  const film = Object.assign(document.createElement("video"), { muted: true, playsInline: true });
  const show = () => {
    document.querySelector("#camera .live")?.classList.toggle("on", shared.stream !== null);
    if (!shown() || shown().srcObject === shared.stream) return;
    shown().srcObject = shared.stream;
    shown().play().catch(() => {});
  };
  new MutationObserver(show).observe(document.querySelector("#stage"), { childList: true, subtree: true });

  const off = () => {
    for (const track of shared.stream?.getTracks() ?? []) {
      track.onended = null;
      track.stop();
    }
    Object.assign(shared, { stream: null, kind: "", resting: false, taken: false });
    film.srcObject = null;
    show();
    sessionStorage.removeItem("vamba-filming");
  };
  // A screen is not asked for twice: the browser would let the visitor choose it again. A webcam's light goes out.
  const rest = () => (shared.kind === "Screen" ? (shared.resting = true) : off());

  // Nothing, or the reason in one word; the server has a sentence for each.
  const on = async (kind) => {
    if (shared.stream?.active && shared.kind === kind) return ((shared.resting = false), "");
    off();
    const media = navigator.mediaDevices;
    if (!media?.getUserMedia) return "insecure";
    if (kind === "Screen" && !media.getDisplayMedia) return "unsupported";
    try {
      const video = { width: { ideal: SIDE } };
      const stream = kind === "Screen" ? await media.getDisplayMedia({ video: { frameRate: 5 } }) : await media.getUserMedia({ video });
      Object.assign(shared, { stream, kind, resting: false, taken: false, since: Date.now() });
    } catch (error) {
      if (kind === "Screen") return "unshared";
      return { NotFoundError: "missing", OverconstrainedError: "missing", NotReadableError: "busy" }[error.name] ?? "denied";
    }
    // The browser's own "Stop sharing", or a camera that was pulled out: the stream pauses.
    shared.stream.getVideoTracks()[0].onended = () => {
      off();
      if (label() === "Pause") document.querySelector("#go").click();
    };
    sessionStorage.setItem("vamba-filming", kind);
    film.srcObject = shared.stream;
    show();
    await film.play().catch(() => {});
    return "";
  };

  const canvas = document.createElement("canvas");
  const send = async () => {
    if (!shared.stream || shared.resting || shared.sending || !film.videoWidth) return;
    shared.sending = true;
    try {
      const scale = Math.min(1, SIDE / Math.max(film.videoWidth, film.videoHeight));
      canvas.width = Math.max(1, Math.round(film.videoWidth * scale));
      canvas.height = Math.max(1, Math.round(film.videoHeight * scale));
      canvas.getContext("2d").drawImage(film, 0, 0, canvas.width, canvas.height);
      const jpeg = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.85));
      const headers = { "x-vamba-key": sessionStorage.getItem("vamba-live") ?? "" };
      const said = await (await fetch("live/picture", { method: "POST", headers, body: jpeg })).text();
      if (said === "watching") shared.taken = true;
      if (said === "paused") rest();
      // Something else is watched, or nothing. Before its first picture the stream may not be there yet.
      if (said === "none" && (shared.taken || Date.now() - shared.since > 10_000)) off();
    } catch {} // the server is away: the next second tries again, and the page says so elsewhere
    shared.sending = false;
  };
  // A worker's clock goes on in a tab that nobody looks at, as while another window is being shared.
  const clock = new Worker(URL.createObjectURL(new Blob(["setInterval(() => postMessage(0), 1000)"])));
  clock.onmessage = send;

  window.vambaFilming = () => shared.stream !== null && !shared.resting;
  window.vambaCameraOff = off;
  // Before the main button's press goes to the server. What is refused here is never started there.
  window.vambaPress = async (does, source) => {
    if (!CAMERAS.includes(source)) {
      if (does === "Start" || does === "Watch again") off();
      return "";
    }
    if (does === "Pause") return (rest(), "");
    return on(source);
  };
  // A reload goes on filming, where the browser need not ask again. A second tab does not begin to.
  const reloaded = performance.getEntriesByType("navigation")[0]?.type === "reload";
  if (reloaded && sessionStorage.getItem("vamba-filming") === "Webcam")
    navigator.permissions
      ?.query({ name: "camera" })
      .then((may) => may.state === "granted" && on("Webcam"))
      .catch(() => {});
}
