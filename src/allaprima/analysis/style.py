"""How the report looks: light and dark, wide and narrow."""

STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#5a636e;--line:#d8dce1;--paper:#fff;--card:#f5f6f8;
--yes:#1f7a4d;--no:#b3372f;--open:#6b7280}
@media (prefers-color-scheme:dark){:root{--ink:#e6e8eb;--soft:#a2abb5;--line:#3a4048;--paper:#15181c;--card:#1e2329;
--yes:#5cc793;--no:#ef8078;--open:#a2abb5}}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:70rem;margin:0 auto;padding:1rem}
h1{font-size:1.7rem;line-height:1.2}
h2{margin-top:2.5rem;border-top:1px solid var(--line);padding-top:1.2rem}
h3{margin:1.4rem 0 .2rem;font-size:1.05rem}
p{max-width:48rem;margin:.5rem 0}
.paper{color:var(--soft);font-style:italic}
.note,.i,figcaption{color:var(--soft);font-size:.875rem}
.missing{background:var(--card);padding:.6rem .8rem}
a{color:inherit}
nav{margin:1rem 0}
.wide,pre{overflow-x:auto}
table{border-collapse:collapse;font-size:.92rem}
td,th{text-align:left;padding:.35rem .7rem;border-bottom:1px solid var(--line);vertical-align:top}
.badge{display:inline-block;border:1px solid currentColor;border-radius:1rem;padding:0 .55rem;font-size:.82rem;
white-space:nowrap}
.yes{color:var(--yes)}.no{color:var(--no)}.open{color:var(--open)}
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,25rem),1fr));gap:1rem;margin:1rem 0}
figure{margin:0}
.panels figure{background:var(--card);padding:.7rem;border-radius:.5rem;max-width:36rem}
.panels svg{width:100%;height:auto;display:block}
svg text{font-family:system-ui,sans-serif!important}
.strip{display:flex;flex-wrap:wrap;gap:.8rem;margin:.4rem 0}
.pair{width:9.5rem}
.pair div{display:flex;gap:.25rem}
.pair img{width:calc(50% - .125rem);height:auto;border-radius:.25rem;background:#fff}
.pair figcaption{line-height:1.3;overflow-wrap:anywhere}
pre{background:var(--card);padding:1rem;font-size:.8rem}
@media (max-width:40rem){thead{display:none}tr,td{display:block}td{border:0;padding:.1rem 0}td:empty{display:none}
tr{border-bottom:1px solid var(--line);padding:.6rem 0}td:first-child:not(:empty)::before{content:"Observation "}
td:first-child{color:var(--soft);font-size:.82rem}}
"""
"""CSS. Text in figures has the page's own colour (`plots.svg_of`)."""
