// Replaces the part of the page that changes, as long as the page is seen and nobody uses that part.
"use strict";
(() => {
  const seconds = Number(document.getElementById("live")?.dataset.refresh);
  if (!seconds) return;
  setInterval(async () => {
    const live = document.getElementById("live");
    const chosen = document.getSelection();
    const busy = live.contains(document.activeElement) || (chosen && !chosen.isCollapsed);
    if (document.hidden || busy) return;
    try {
      const answer = await fetch(location.pathname, { credentials: "same-origin" });
      if (!answer.ok) return;
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const fresh = page.getElementById("live");
      if (fresh) live.replaceWith(fresh);
    } catch {
      // The server does not answer now; the next turn tries again.
    }
  }, 1000 * seconds);
})();
