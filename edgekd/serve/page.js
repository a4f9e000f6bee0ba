(() => {
  // Asks the service every two seconds. Whatever comes is put in as text, never as markup.
  const EVERY_MS = 2000, KEY = "edgekd-token";
  const part = id => document.getElementById(id);
  let token = sessionStorage.getItem(KEY) || "", known = "", timer = 0;

  const made = (kind, name, ...inside) => {
    const item = document.createElement(kind);
    if (name) item.className = name;
    item.append(...inside.filter(x => x !== null && x !== undefined));
    return item;
  };
  const number = (value, digits) => value === null || value === undefined ? "–"
    : value.toLocaleString("en", {maximumFractionDigits: digits, minimumFractionDigits: 0});
  const percent = value => number(100 * value, 1) + " %";
  const words = text => text.replaceAll("_", " ");
  const clock = text => new Date(text).toLocaleString("sv").slice(0, 19);
  const duration = s => s < 120 ? Math.round(s) + " s" : s < 7200 ? Math.round(s / 60) + " min"
    : s < 172800 ? Math.round(s / 3600) + " h" : Math.round(s / 86400) + " days";

  const ask = async path => {
    const headers = token ? {Authorization: "Bearer " + token} : {};
    const response = await fetch(path, {headers, cache: "no-store"});
    const value = await response.json();
    return {status: response.status, value};
  };

  const state = (kind, text) => {
    part("state").className = "banner " + kind;
    if (part("state").textContent !== text) part("state").textContent = text;
  };

  // A gap where nothing was measured stays a gap.
  const curve = (id, values, label) => {
    const svg = part(id), top = Math.max(...values.filter(v => v !== null), 0) * 1.05 || 1;
    const NS = "http://www.w3.org/2000/svg";
    const base = document.createElementNS(NS, "line"), line = document.createElementNS(NS, "path");
    for (const [key, value] of [["x1", 0], ["x2", 100], ["y1", 23.5], ["y2", 23.5]])
      base.setAttribute(key, value);
    let d = "", pen = false;
    values.forEach((v, i) => {
      if (v === null) { pen = false; return; }
      const x = values.length > 1 ? 100 * i / (values.length - 1) : 100, y = 23.5 - 22 * v / top;
      d += (pen ? "L" : "M") + x.toFixed(2) + " " + y.toFixed(2);
      pen = true;
    });
    line.setAttribute("d", d);
    svg.setAttribute("aria-label", label);
    svg.replaceChildren(base, line);
  };

  const figures = s => {
    document.title = s.name + " – edgekd serve";
    part("title").textContent = s.title || s.name;
    part("facts").textContent = [s.name, "up " + duration(s.up_s),
      "rules version " + s.rules.version, s.rules.day ? "day " + s.rules.day + " (" + s.rules.time_zone + ")" : "day unknown",
    ].join(" · ");
    part("simulated").hidden = !s.simulated;
    state(s.ready ? "good" : "bad", s.ready ? "answers requests" : "not ready: " + s.why);
    part("rate").textContent = number(s.answers_per_s, 2);
    part("rate-below").textContent = number(s.answers, 0) + " since the start; the curve is of "
      + "the last five minutes";
    curve("rate-curve", s.curves.answers_per_s, "answers per second, last five minutes");
    part("p50").textContent = number(s.p50_ms, 1);
    part("p99").textContent = s.p99_ms === null ? "nothing was asked in the last minute"
      : "99 of 100 within " + number(s.p99_ms, 1) + " ms, last minute; curve: slowest";
    curve("slow-curve", s.curves.slowest_ms, "slowest answer, milliseconds, last five minutes");
    const p = s.power, none = p.watts === null;
    part("watts").textContent = none ? p.why : number(p.watts, 2);
    part("watts").classList.toggle("word", none);
    for (const id of ["watts-unit", "watts-curve"]) part(id).toggleAttribute("hidden", none);
    part("sensor").textContent = p.sensor
      ? p.sensor + ", of the " + p.scope + (p.status === "measured" ? "" : ", " + p.status) : "";
    curve("watts-curve", s.curves.watts, "power, watts, last five minutes");
    part("memory").textContent = number(s.memory_mib, 0);
    part("queue").textContent = s.queue.depth + " of " + s.queue.room + " places in the queue";
    part("answers").replaceChildren(...s.last.map(answer), ...(s.last.length ? []
      : [made("li", "", made("span", "soft", "none yet"))]));
    part("events").replaceChildren(...s.events.map(event), ...(s.events.length ? []
      : [made("li", "", made("span", "soft", "none yet"))]));
  };

  const answer = a => {
    const fill = made("i");
    fill.style.width = (100 * Math.min(Math.max(a.probability, 0), 1)).toFixed(1) + "%";
    return made("li", "",
      made("span", "who", words(a.top)),
      made("span", "body", percent(a.probability) + (a.changed ? "" : ", as the model said"),
        made("div", "bar", fill)),
      made("span", "side", clock(a.when).slice(11) + " · " + a.zone),
      made("span", "more", a.changed ? made("span", "mark", "limited by "
        + (a.active.join(", ") || "the rules") + (a.top_before === a.top ? ""
          : "; the model alone: " + words(a.top_before)) + ". ") : null,
      "From " + a.evidence.join(", ") + (a.text === "none" ? "" : " (text of the " + a.text + ")")
        + ", rules version " + a.version + ", " + number(a.ms, 1) + " ms"));
  };

  const event = e => made("li", "",
    made("span", "who" + (e.event === "refused" ? " refused" : ""), e.event
      + (e.version_after !== e.version_before ? ", version " + e.version_after : "")),
    made("span", "body", e.sentence),
    made("span", "side", clock(e.when) + (e.who ? " · " + e.who : "")));

  const rules = r => {
    part("rules-when").textContent = "Version " + r.version + " of " + (r.title || r.policy)
      + ", put by " + r.who + " on " + clock(r.when) + ". In force today, " + r.day + "; "
      + (r.next_change ? "other rules begin on " + r.next_change : "no change is known") + ".";
    part("rules").replaceChildren(...Object.entries(r.zones).flatMap(([name, zone]) => [
      made("h3", "", name, made("span", "soft", " " + zone.title)),
      zone.text ? made("blockquote", "", zone.text) : null,
      ...zone.rules.map(rule => made("div", "rule",
        made("span", "who", rule.id),
        made("span", "body", rule.says),
        made("span", "side", "priority " + rule.priority),
        made("span", "more", rule.source, rule.relaxed
          ? made("span", "mark", "; yields by " + number(rule.relaxed, 4)) : null))),
      zone.rules.length ? null : made("p", "soft", "no rule today"),
      ...[...zone.without, ...zone.implied.map(id => "rule " + id + " follows from the others")]
        .map(text => made("p", "soft", text)),
    ].filter(Boolean)));
  };

  let asking = false;
  const once = async () => {
    clearTimeout(timer);
    if (asking) return;  // the one on its way asks again
    asking = true;
    try {
      const {status, value} = await ask("/v1/status");
      if (status === 401) {
        state("", token ? value.error : "a token is needed");
        part("ask").hidden = false;
        part("shown").hidden = true;
        return;
      }
      if (status !== 200) throw new Error(value.error);
      const mark = value.rules.version + " " + value.rules.day;
      if (mark !== known) {
        const found = await ask("/v1/constraints");
        if (found.status === 200) rules(found.value);
        else {
          part("rules-when").textContent = found.value.error;
          part("rules").replaceChildren();
        }
        known = mark;
      }
      figures(value);
      part("ask").hidden = true;
      part("shown").hidden = false;
    } catch (err) {
      state("bad", "the service does not answer (" + err.message + "); what stands here is old");
    } finally {
      asking = false;
      if (!document.hidden && part("ask").hidden) timer = setTimeout(once, EVERY_MS);
    }
  };

  part("ask").addEventListener("submit", action => {
    action.preventDefault();
    token = part("token").value.trim();
    sessionStorage.setItem(KEY, token);
    part("token").value = "";
    once();
  });
  document.addEventListener("visibilitychange", () => {
    clearTimeout(timer);
    if (!document.hidden && part("ask").hidden) once();
  });
  once();
})();
