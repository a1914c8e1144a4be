// The newest picture of an operator's source, fetched once a second while it is on the page and the page is looked at.
() => {
  let busy = false;
  const show = async () => {
    const image = document.querySelector("#operator img");
    const key = sessionStorage.getItem("vamba-live");
    if (!image?.parentElement.offsetParent || !key || busy || document.hidden) return;
    busy = true;
    try {
      const answer = await fetch("live/newest", { method: "POST", headers: { "x-vamba-key": key } });
      if (!answer.ok) return;
      URL.revokeObjectURL(image.src);
      image.src = URL.createObjectURL(await answer.blob());
      image.hidden = false;
      image.parentElement.classList.add("on");
    } catch { // the server is away; the state line says so
    } finally {
      busy = false;
    }
  };
  setInterval(show, 1000);
}
