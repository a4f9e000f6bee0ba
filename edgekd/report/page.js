(() => {
  // A line under the pointer with the values of all panels at that time. The page needs none of it.
  for (const chart of document.querySelectorAll(".timeline")) {
    const stack = chart.querySelector(".stack"), area = chart.querySelector(".plot");
    const hair = chart.querySelector(".hair"), tip = chart.querySelector(".tip");
    const low = +chart.dataset.low, high = +chart.dataset.high;
    const phases = chart.dataset.phases.split(";").map(text => text.split(" "));
    const panels = [...chart.querySelectorAll(".panel")].map(
      panel => [panel.dataset.name, panel.dataset.v.split(" ")]);
    const row = (kind, name, value) => {
      const line = document.createElement(kind);
      for (const text of [name, value]) {
        const cell = document.createElement("span");
        cell.textContent = text;
        line.append(cell);
      }
      return line;
    };
    const hide = () => [hair, tip].forEach(part => part.classList.remove("on"));
    const show = event => {
      const box = area.getBoundingClientRect(), outer = stack.getBoundingClientRect();
      const part = (event.clientX - box.left) / box.width;
      if (!(part >= 0 && part < 1)) return hide();
      const time = low + part * (high - low);
      const phase = phases.find(([from, to]) => +from <= time && time < +to);
      const rows = panels.map(([name, values]) =>
        row("span", name, values[Math.floor(part * values.length)] || "–"));
      tip.replaceChildren(
        row("b", time.toFixed(1) + " s", phase ? phase.slice(2).join(" ") : ""), ...rows);
      [hair, tip].forEach(item => item.classList.add("on"));
      const left = event.clientX - outer.left;
      hair.style.left = left + "px";
      const wide = tip.offsetWidth, right = left + 14 + wide <= outer.width;
      tip.style.left = (right ? left + 14 : Math.max(left - 14 - wide, 0)) + "px";
    };
    chart.classList.add("live");
    stack.addEventListener("pointermove", show);
    stack.addEventListener("pointerdown", show);
    stack.addEventListener("pointerleave", event => event.pointerType === "mouse" && hide());
  }
})();
