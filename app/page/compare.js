// Two conversations side by side: every question stands at the same height in both, and both scroll as one.
() => {
  const CHATS = ["chat", "second"];
  const scroller = (id) => document.querySelector(`#${id} .bubble-wrap`);
  const shown = () => scroller("second")?.checkVisibility() ?? false;

  // A turn is a question with all that follows it; what comes before the first question counts with it.
  const turns = (id) => {
    const found = [];
    for (const row of document.querySelectorAll(`#${id} .message-row`)) {
      if (row.matches(".user-row") && found.at(-1)?.some((one) => one.matches(".user-row"))) found.push([row]);
      else found.length ? found.at(-1).push(row) : found.push([row]);
    }
    return found;
  };
  const room = (row) => Number(row.dataset.room ?? 0); // what we put below it
  const height = (rows) => rows.at(-1).getBoundingClientRect().bottom - rows[0].getBoundingClientRect().top
    - rows.slice(0, -1).reduce((sum, row) => sum + room(row), 0);
  const leave = (rows, pixels) => {
    for (const row of rows) {
      const wanted = row === rows.at(-1) ? pixels : 0;
      if (Math.abs(room(row) - wanted) < 0.5) continue;
      row.dataset.room = wanted;
      row.style.setProperty("margin-bottom", `${wanted}px`, "important");
    }
  };
  const atEnd = (box) => box.scrollHeight - box.scrollTop - box.clientHeight < 40;
  let ended = true; // whether the newest turn was in sight before something came
  const align = () => {
    const both = CHATS.map(turns);
    if (!shown()) return both.flat().forEach((rows) => leave(rows, 0));
    both[0].slice(0, both[1].length).forEach((rows, index) => {
      const pair = [rows, both[1][index]];
      const heights = pair.map(height);
      pair.forEach((one, side) => leave(one, Math.max(...heights) - heights[side]));
    });
    const [left, right] = CHATS.map(scroller);
    if (ended) left.scrollTop = left.scrollHeight;
    right.scrollTop = left.scrollTop;
  };

  let due = false;
  const soon = () => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => {
      due = false;
      align();
    });
  };
  // Whoever scrolls one scrolls the other. Where it stands already, nothing is set, so they cannot chase each other.
  document.addEventListener("scroll", (event) => {
    const from = event.target;
    const side = CHATS.findIndex((id) => scroller(id) === from);
    if (side < 0 || !shown()) return;
    ended = atEnd(from);
    const other = scroller(CHATS[1 - side]);
    if (other && Math.abs(other.scrollTop - from.scrollTop) > 1) other.scrollTop = from.scrollTop;
  }, true);
  const sizes = new ResizeObserver(soon); // pictures that come, details that open, a window that grows
  new MutationObserver(() => {
    for (const id of CHATS) {
      for (const row of document.querySelectorAll(`#${id} :is(.message-row, .bubble-wrap)`)) sizes.observe(row);
      // Gradio names every message, which only something with a role may have.
      for (const words of document.querySelectorAll(`#${id} [data-testid][aria-label]:not([role])`)) words.setAttribute("role", "group");
      scroller(id)?.setAttribute("tabindex", "0"); // it scrolls by keyboard also where there is no button in it
    }
    soon();
  }).observe(document.querySelector("#chats"), { childList: true, subtree: true, characterData: true });
}
