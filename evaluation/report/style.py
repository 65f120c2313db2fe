"""The look of the report: one style sheet, light and dark, for screens of any width and for paper."""

from __future__ import annotations

# Colours of models, by their place in the report; the first is the base model's. Beyond the last they start again after it.
COLOURS = tuple(f"var(--m{i})" for i in range(12))

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1b2330; --soft: #5d6879; --faint: #6c7787; --rule: #e3e7ed; --sunk: #f1f3f7;
  --good: #13795b; --good-bg: #e2f5ec; --bad: #b3362b; --bad-bg: #fdebe8; --note: #8a5a00; --note-bg: #fff4db;
  --accent: #3b5bdb; --m0: #7c8696; --m1: #2f7ed8; --m2: #8b5cf6; --m3: #0f9d83; --m4: #c2570c; --m5: #b8860b;
  --m6: #c02673; --m7: #4d7c0f; --m8: #0e7490; --m9: #9f1239; --m10: #6d28d9; --m11: #57534e;
  --shadow: 0 1px 2px rgb(20 30 50 / .05), 0 6px 24px -12px rgb(20 30 50 / .14);
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #10141b; --card: #181e28; --ink: #e8ecf3; --soft: #a3aebf; --faint: #8592aa; --rule: #2a3342; --sunk: #202836;
    --good: #5fd3a5; --good-bg: #12352a; --bad: #ff8f82; --bad-bg: #3d1d1b; --note: #f0c063; --note-bg: #372b10;
    --accent: #8ea6ff; --m0: #96a1b4; --m1: #63a8f5; --m2: #b79bff; --m3: #3ccfb2; --m4: #fb923c; --m5: #dfb243;
    --m6: #f472b6; --m7: #a3c76d; --m8: #4fc3dc; --m9: #fb7185; --m10: #a78bfa; --m11: #b5aea8;
    --shadow: none;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
  font-variant-numeric: tabular-nums;
}
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 80px; }
h1 { font-size: clamp(1.7rem, 1.2rem + 2vw, 2.4rem); line-height: 1.15; letter-spacing: -.02em; margin: 0; }
h2 { font-size: 1.3rem; letter-spacing: -.01em; margin: 0 0 4px; }
h3 { font-size: 1rem; margin: 0 0 10px; }
section > h3 { margin: 30px 0 0; }
p { margin: 0 0 12px; }
.note { color: var(--soft); font-size: .88rem; max-width: 80ch; margin-top: 10px; }
.lead { color: var(--soft); max-width: 72ch; }
.lead a { color: inherit; }
header .lead { margin: 8px 0 0; }
.eyebrow { text-transform: uppercase; letter-spacing: .09em; font-size: .74rem; font-weight: 650; color: var(--accent); margin: 0 0 8px; }
nav { display: flex; flex-wrap: wrap; gap: 6px; margin: 22px 0 0; }
nav a {
  color: var(--soft); text-decoration: none; font-size: .88rem; padding: 4px 12px; border: 1px solid var(--rule);
  border-radius: 99px; background: var(--card);
}
nav a:hover, nav a:focus-visible { color: var(--ink); border-color: var(--faint); }
section { background: var(--card); border: 1px solid var(--rule); border-radius: 16px; padding: 26px 28px; margin-top: 22px; box-shadow: var(--shadow); }
.verdict { display: flex; gap: 16px; align-items: flex-start; border-left: 5px solid var(--c, var(--faint)); }
.verdict p { margin: 4px 0 0; color: var(--soft); }
.verdict strong { font-size: 1.2rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 14px; margin-top: 22px; }
.tile { background: var(--card); border: 1px solid var(--rule); border-top: 4px solid var(--c); border-radius: 14px; padding: 16px 18px; box-shadow: var(--shadow); }
.tile .name { font-weight: 600; }
.tile .pill { margin-top: 10px; }
.tile .big { font-size: 2.1rem; font-weight: 680; letter-spacing: -.03em; line-height: 1.2; }
.tile .small { color: var(--soft); font-size: .86rem; }
.pill { display: inline-block; font-size: .76rem; font-weight: 620; padding: 1px 9px; border-radius: 99px; background: var(--sunk); color: var(--soft); white-space: nowrap; }
.pill.good { background: var(--good-bg); color: var(--good); }
.pill.bad { background: var(--bad-bg); color: var(--bad); }
.pill.note { background: var(--note-bg); color: var(--note); }
.scroll { overflow-x: auto; margin: 14px -28px 0; padding: 0 28px; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: right; padding: 9px 12px; border-bottom: 1px solid var(--rule); vertical-align: top; }
th:first-child, td:first-child { text-align: left; padding-left: 0; min-width: 150px; }
table.left th, table.left td { text-align: left; }
tr:last-child td { border-bottom: 0; }
thead th { color: var(--soft); font-weight: 600; font-size: .84rem; border-bottom: 2px solid var(--rule); white-space: nowrap; }
.folds thead th { white-space: normal; min-width: 4.2em; } .folds th, .folds td { padding-left: 8px; padding-right: 8px; }
tr.group th { color: var(--soft); font-size: .76rem; text-transform: uppercase; letter-spacing: .07em; padding-top: 22px; border-bottom: 1px solid var(--rule); }
tr.primary td { background: var(--sunk); }
tr.primary td:first-child { font-weight: 650; box-shadow: -12px 0 0 var(--sunk); }
tr.primary td:last-child { box-shadow: 12px 0 0 var(--sunk); }
td .mean { font-weight: 620; font-size: 1rem; }
td .range, td .delta { display: block; font-size: .8rem; color: var(--faint); white-space: nowrap; }
td .delta.good { color: var(--good); } td .delta.bad { color: var(--bad); }
.dotted { display: inline-block; width: .62em; height: .62em; border-radius: 50%; background: var(--c); margin-right: .5em; }
svg.chart { display: block; overflow: visible; }
svg .grid { stroke: var(--rule); stroke-width: 1; }
svg .zero { stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 3 3; }
svg text { fill: var(--ink); font-size: 14px; font-family: inherit; }
svg text.label { font-weight: 600; }
svg text.value { fill: var(--soft); font-size: 13px; }
svg text.tick { fill: var(--faint); font-size: 12px; }
svg .ci { stroke: var(--c); stroke-width: 8; opacity: .32; }
svg .dot { fill: var(--c); stroke: var(--card); stroke-width: 2; }
svg .line { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; }
svg .area { fill: var(--c); opacity: .09; }
svg .bar { fill: var(--c); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 30px 44px; margin-top: 18px; }
.stage + .stage { margin-top: 30px; padding-top: 24px; border-top: 1px solid var(--rule); }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 26px 34px; }
figure { margin: 0; min-width: 0; }
figcaption { display: flex; justify-content: space-between; gap: 10px; font-size: .88rem; margin-bottom: 4px; }
figcaption span:first-child { color: var(--soft); overflow-wrap: anywhere; }
figcaption b { font-weight: 640; white-space: nowrap; }
details > summary { cursor: pointer; color: var(--soft); font-weight: 600; font-size: .92rem; }
details > summary:hover { color: var(--ink); }
details > .curves, details > pre { margin-top: 16px; }
.sample + .sample { margin-top: 30px; padding-top: 26px; border-top: 1px solid var(--rule); }
.turn { background: var(--sunk); border-radius: 10px; padding: 12px 14px; margin-bottom: 12px; font-size: .93rem; }
.turn .role { display: block; color: var(--faint); font-size: .74rem; text-transform: uppercase; letter-spacing: .07em; font-weight: 620; }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 12px; }
.answer { border: 1px solid var(--rule); border-top: 3px solid var(--c); border-radius: 10px; padding: 12px 14px; min-width: 0; }
.answer header { display: flex; flex-wrap: wrap; gap: 4px 8px; align-items: center; margin-bottom: 8px; }
.answer header b { margin-right: auto; }
pre { margin: 0; font: .84rem/1.5 ui-monospace, SFMono-Regular, Menlo, "Liberation Mono", monospace; white-space: pre-wrap; overflow-wrap: anywhere; tab-size: 2; unicode-bidi: isolate; }
.credited { line-height: 2; }
mark.unit { color: inherit; border-radius: 4px; border-bottom: 2px solid var(--rule); padding: 1px 2px; }
mark.unit.good { background: color-mix(in srgb, var(--good) calc(var(--share) * .45), transparent); }
mark.unit.bad { background: color-mix(in srgb, var(--bad) calc(var(--share) * .45), transparent); border-bottom-style: dashed; }
mark.unit sup { font-size: .68rem; font-weight: 620; margin-left: 3px; }
.turn pre { font: inherit; unicode-bidi: isolate; }
pre.config { background: var(--sunk); border-radius: 10px; padding: 16px 18px; }
ul.faults { margin: 10px 0 0; padding: 8px 12px 8px 28px; background: var(--bad-bg); color: var(--bad); border-radius: 8px; font-size: .84rem; overflow-wrap: anywhere; }
.time { display: grid; grid-template-columns: minmax(130px, 200px) 1fr 130px; gap: 6px 16px; align-items: center; font-size: .92rem; margin-top: 14px; }
.time .seconds { text-align: right; color: var(--soft); white-space: nowrap; }
code { font: .88em ui-monospace, SFMono-Regular, Menlo, "Liberation Mono", monospace; overflow-wrap: anywhere; }
footer { color: var(--faint); font-size: .84rem; margin-top: 26px; }
@media (max-width: 640px) {
  main { padding: 24px 12px 48px; }
  section { padding: 20px 16px; border-radius: 12px; }
  .scroll { margin: 12px -16px 0 0; padding: 0 16px 0 0; }
  th, td { padding: 8px 7px; } table { font-size: .86rem; }
  th:first-child, td:first-child { min-width: 116px; position: sticky; left: 0; background: var(--card); }
  tr.primary td:first-child { background: var(--sunk); }
  /* A row with a cell for every model is folded under its title: nothing of it lies beyond the edge. */
  .folds, .folds tbody { display: block; } .folds thead { display: none; }
  .folds tr { display: grid; grid-template-columns: repeat(auto-fill, minmax(96px, 1fr)); border-bottom: 1px solid var(--rule); padding: 8px 0; }
  .folds td, .folds th { border: 0; text-align: left; padding: 4px 7px 4px 0; min-width: 0; }
  .folds td:first-child, .folds tr.group th { grid-column: 1 / -1; position: static; font-weight: 600; background: none; }
  .folds td[data-column]::before { content: attr(data-column); display: block; color: var(--soft); font-size: .78rem; overflow-wrap: anywhere; }
  .folds td .range { white-space: normal; }
  .folds tr.primary { background: var(--sunk); }
  .folds tr.primary td { background: none; box-shadow: none; }
  .tiles { grid-template-columns: 1fr 1fr; gap: 10px; }
  .tile { padding: 12px 12px; } .tile .big { font-size: 1.6rem; }
  .time { grid-template-columns: 1fr auto; } .time .track { grid-column: 1 / -1; grid-row: auto; order: 0; }
  svg text.value { font-size: 12px; }
}
.graph .box { fill: var(--sunk); stroke: var(--c); stroke-width: 1.5; }
.graph .box.cached { stroke-dasharray: 4 3; fill: none; }
.graph .edge { fill: none; stroke: var(--faint); stroke-width: 1.5; opacity: .55; }
.graph .label { font-size: 13px; }
@media print {
  :root { --page: #fff; --shadow: none; }
  body { font-size: 12px; } main { max-width: none; padding: 0; } nav { display: none; }
  section { padding: 14px 0; border: 0; border-radius: 0; border-top: 1px solid var(--rule); }
  .sample, .answer, figure, .tile, tr { break-inside: avoid; }
  .scroll { overflow: visible; margin: 0; padding: 0; }
  details::details-content { content-visibility: visible; block-size: auto; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
