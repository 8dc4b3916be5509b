"""The fixed parts of the page that `report` fills: its frame, look and script."""

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body class="{metric}">
<header>
<h1>{title}</h1>
<p>{totals}</p>
</header>
<div class="controls">
<fieldset><legend>Colour by</legend>{metrics}</fieldset>
<fieldset><legend>Show</legend>{models}</fieldset>
<fieldset id="percentile" hidden><legend>Highest values</legend>
<label><input type="range" id="share" min="1" max="100" value="100" autocomplete="off">
<output id="shown">100 %</output></label></fieldset>
</div>
{legends}
<p class="marks">{marks}</p>
<main id="text" dir="auto">{text}</main>
<details><summary>Summary</summary><pre>{summary}</pre></details>
<div id="tip" role="tooltip" hidden></div>
<script>{script}</script>
</body>
</html>
"""

# Orange over the page's ground: what tells values apart is lightness, not hue.
STYLE = """
:root { --ground: #ffffff; --ink: #1b1f24; --faint: #57606a; --line: #d0d7de; --hot: 235 140 20;
  --llm: #0550ae;
  --mono: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #16181c; --ink: #f0f3f6; --faint: #9ea7b3; --line: #3d444d; --hot: 166 88 0;
    --llm: #80ccff; }
}
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem; background: var(--ground);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.3rem; margin: 0; }
header p, .marks, .legend { color: var(--faint); margin: .25rem 0 .75rem; }
.controls { display: flex; flex-wrap: wrap; gap: .75rem; margin-bottom: .75rem; }
fieldset { border: 1px solid var(--line); border-radius: 6px; padding: .1rem .75rem .35rem;
  margin: 0; min-width: 0; }
fieldset legend { color: var(--faint); font-size: .8rem; padding: 0 .25rem; }
fieldset label { margin-right: .75rem; white-space: nowrap; }
fieldset label:last-child { margin-right: 0; }
input { vertical-align: middle; accent-color: var(--llm); }
output { display: inline-block; min-width: 3.5em; font-variant-numeric: tabular-nums; }
.legend { display: none; font-variant-numeric: tabular-nums; }
.bar { position: relative; display: inline-block; width: 12rem; height: .9em; margin: 0 .25rem;
  vertical-align: -.1em; border: 1px solid var(--line);
  background: linear-gradient(to right, rgb(var(--hot) / 0), rgb(var(--hot) / 1)); }
.bar i { position: absolute; top: -4px; bottom: -4px; width: 2px; margin-left: -1px;
  background: var(--ink); }
#text { padding: 1rem; border: 1px solid var(--line); border-radius: 6px;
  font: 15px/2 var(--mono);
  white-space: pre-wrap; overflow-wrap: anywhere; tab-size: 8; }
.t { background: rgb(var(--hot) / var(--v)); print-color-adjust: exact; }
.t:hover, .t:focus { outline: 2px solid var(--ink); outline-offset: 1px; }
.t[data-mark]::before { content: attr(data-mark); color: var(--faint); }
.t.llm, .key.llm > span { border-bottom: 2px solid var(--llm); }
.t.lookup, .key.lookup > span { border-bottom: 2px dotted var(--llm); }
.t.rejected, .key.rejected > span { border-top: 2px solid var(--ink); }
body:has(#show-slm:not(:checked)) .t.slm, body:has(#show-llm:not(:checked)) .t.llm,
body:has(#show-lookup:not(:checked)) .t.lookup, .t.low { background: none; opacity: .3; }
details { margin-top: 1rem; }
summary { cursor: pointer; }
pre { overflow-x: auto; font: 13px/1.4 var(--mono); }
#tip { position: absolute; z-index: 1; padding: .5rem .75rem;
  max-width: min(32rem, calc(100vw - 2rem));
  background: var(--ground); color: var(--ink); border: 1px solid var(--faint); border-radius: 6px;
  box-shadow: 0 4px 16px rgb(0 0 0 / .3); white-space: pre-wrap; overflow-wrap: anywhere;
  font: 13px/1.4 var(--mono); pointer-events: none; }
#tip[hidden] { display: none; }
"""

# One for each metric. The class of the body, the metric chosen at first, serves without :has().
CHOICE = """\
body.{name} .t {{ --v: var(--{name}); }}
body.{name} .legend-{name} {{ display: block; }}
body:has(#metric-{name}:checked) .t {{ --v: var(--{name}); }}
body:has(#metric-{name}:checked) .legend-{name} {{ display: block; }}
body:has(#metric-{name}:not(:checked)) .legend-{name} {{ display: none; }}
"""

SCRIPT = """
"use strict";
const byId = (id) => document.getElementById(id);
const tip = byId("tip"), share = byId("share");
const tokens = [...document.querySelectorAll("#text .t")];
const details = new Map();
let current = null;

function show(token) {
  hide();
  current = token;
  token.setAttribute("aria-describedby", "tip");
  tip.textContent = details.get(token);
  tip.hidden = false;
  const place = token.getClientRects()[0] || token.getBoundingClientRect();
  const left = Math.min(place.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
  const below = place.bottom + tip.offsetHeight + 14 < document.documentElement.clientHeight;
  const top = below ? place.bottom + 8 : Math.max(8, place.top - tip.offsetHeight - 8);
  tip.style.left = Math.max(8, left) + window.scrollX + "px";
  tip.style.top = top + window.scrollY + "px";
}
function hide() {
  if (current) current.removeAttribute("aria-describedby");
  current = null;
  tip.hidden = true;
}
function move(from, to) {
  if (!tokens[to]) return;
  tokens[from].tabIndex = -1;
  tokens[to].tabIndex = 0;
  tokens[to].focus();
}
function filter() {
  const metric = "--" + document.querySelector("[name=metric]:checked").value;
  const values = tokens.map((token) => parseFloat(token.style.getPropertyValue(metric)));
  const sorted = values.filter((value) => !isNaN(value)).sort((a, b) => b - a);
  const least = sorted[Math.ceil(sorted.length * share.value / 100) - 1];
  const all = share.value === share.max;
  tokens.forEach((token, i) => token.classList.toggle("low", !all && !(values[i] >= least)));
  byId("shown").textContent = share.value + " %";
}

tokens.forEach((token, i) => {
  details.set(token, token.title);
  token.removeAttribute("title");
  token.tabIndex = i ? -1 : 0;
  token.addEventListener("pointerenter", () => show(token));
  token.addEventListener("pointerleave", hide);
  token.addEventListener("focus", () => show(token));
  token.addEventListener("blur", hide);
  token.addEventListener("keydown", (event) => {
    const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
    if (step) { event.preventDefault(); move(i, i + step); }
    if (event.key === "Escape") hide();
  });
});
byId("percentile").hidden = false;
share.addEventListener("input", filter);
for (const radio of document.querySelectorAll("[name=metric]"))
  radio.addEventListener("change", filter);
"""
