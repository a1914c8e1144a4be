// Alerts: what is opened stays open where the list is drawn anew, what is new is read out, and, once the visitor has
// asked for it, the browser notifies. Permission is asked for by the button alone.
() => {
  const panel = document.querySelector("#alerts");
  const list = panel.querySelector("#told-of");
  const voice = Object.assign(document.createElement("div"), { className: "unseen" });
  voice.setAttribute("role", "status");
  panel.append(voice);

  const opened = new Set();
  list.addEventListener("toggle", (event) => {
    const id = event.target.closest("[data-alert]")?.dataset.alert;
    if (id) event.target.open ? opened.add(id) : opened.delete(id);
  }, true);

  const WANTED = "vamba-notify";
  const [button, status] = [panel.querySelector("#notify"), panel.querySelector("#notified")];
  const wanted = () => localStorage.getItem(WANTED) === "yes" && window.Notification?.permission === "granted";
  const show = (words = "") => {
    button.setAttribute("aria-pressed", wanted());
    button.textContent = wanted() ? "Notifying" : "Notify me";
    status.textContent = words;
  };
  window.vambaNotifies = wanted; // such a page goes on listening while another tab is looked at
  button.addEventListener("click", async () => {
    if (wanted()) return (localStorage.removeItem(WANTED), show("Off."));
    if (!window.Notification) return show("This browser cannot notify, so look at the list below.");
    if ((await Notification.requestPermission()) !== "granted")
      return show("The browser does not allow it, so nothing is sent; allow notifications beside the page's address.");
    localStorage.setItem(WANTED, "yes");
    show("Sent while this page is open.");
  });
  const notify = (newest, more) => {
    try {
      const words = more ? `${newest.dataset.words} And ${more} more.` : newest.dataset.words;
      const told = new Notification("Vamba Live", { body: words, icon: newest.querySelector("img")?.src, tag: newest.dataset.alert });
      told.onclick = () => (window.focus(), newest.isConnected && newest.querySelector("[data-seek]")?.click());
    } catch { // browsers of phones give notifications to installed pages only
      localStorage.removeItem(WANTED);
      show("This browser cannot notify from a page, so look at the list below.");
    }
  };

  // Of a page that was just loaded, or of another stream, nothing is new.
  let known = null, stream = null;
  const drawn = () => {
    const entries = [...list.querySelectorAll("[data-alert]")];
    for (const one of entries) if (opened.has(one.dataset.alert)) one.querySelector("details").open = true;
    const now = list.querySelector("[data-stream]")?.dataset.stream;
    const fresh = known && stream === now ? entries.filter((one) => !known.has(one.dataset.alert)) : [];
    if (stream !== now) known = null;
    stream = now;
    known = new Set([...(known ?? []), ...entries.map((one) => one.dataset.alert)]);
    if (!fresh.length) return;
    voice.textContent = `Alert: ${fresh[0].dataset.words}`;
    if (wanted()) notify(fresh[0], fresh.length - 1);
  };
  new MutationObserver(drawn).observe(list, { childList: true, subtree: true });
  show();
}
