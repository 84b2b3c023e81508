"""Names that are orders to whatever shows them: 200 and more, by what they are aimed at.

Those with a script in them set `window.touched`, which no page may ever have; those for a shell make a file `touched`.
"""

JS = "window.touched=1"
ESC, BEL, ST = "\x1b", "\x07", "\x1b\\"

BREAKOUTS = (
    "", "\">", "'>", "`>", "-->", "]]>", "*/", "</title>", "</style>", "</script>", "</textarea>", "</noscript>",
    "</td></tr></table>", "</text></svg>", "</pre></code>", "</summary></details>", "</template>", "\\\">", "\\'>",
)  # fmt: skip
SCRIPTS = (
    *(f"{before}<script>{JS}</script>" for before in BREAKOUTS), f"<ScRiPt>{JS}</sCrIpT>", f"<script/x>{JS}</script>",
    f"<script\n>{JS}</script\n>", f"<<script>{JS}//<</script>", f"<script src=data:text/javascript,{JS}></script>",
    f"<script type=module>{JS}</script>", f"<script>{JS}", f"<!--<script>{JS}</script>", f"<!-->{JS}<script>",
    f"<![CDATA[<script>{JS}</script>]]>", "<!--", "<script", "</",
    f'</script><script type="application/json" id="figures">{{}}</script><script>{JS}</script>',
)  # fmt: skip
HANDLERS = (
    f"<img src=x onerror={JS}>", f'<img src="x" onerror="{JS}">', f"<img/src=x/onerror={JS}>",
    f"<IMG SRC=x OnErRoR={JS}>", f"<svg onload={JS}>", f"<svg/onload={JS}>", f"<svg><script>{JS}</script></svg>",
    f"<svg><animate onbegin={JS}>", f"<svg><a xlink:href=javascript:{JS}><text>x</text></a></svg>",
    f"<svg><foreignObject><img src=x onerror={JS}>", f"<svg><set attributeName=onload to={JS}>",
    f"<svg><use href=data:image/svg+xml,<svg/onload={JS}>>", f"<body onload={JS}>", f"<body onpageshow={JS}>",
    f"<details open ontoggle={JS}>x</details>", f"<input autofocus onfocus={JS}>", f"<select autofocus onfocus={JS}>",
    f"<textarea autofocus onfocus={JS}>", f"<video src=x onerror={JS}>", f"<video><source onerror={JS}>",
    f"<audio src=x onerror={JS}>", f"<iframe srcdoc='<script>parent.{JS}</script>'>",
    f"<iframe src=javascript:parent.{JS}>", f"<iframe onload={JS}>", f"<object data=javascript:{JS}>",
    f"<embed src=javascript:{JS}>", f"<a href=javascript:{JS}>x</a>", f"<a href='&#106;avascript:{JS}'>x</a>",
    f"<a href='java\tscript:{JS}'>x</a>", f"<math href=javascript:{JS}>x</math>",
    f"<form action=javascript:{JS}><button>x</button></form>", f"<button formaction=javascript:{JS}>x</button>",
    f"<button onclick={JS}>x</button>", f"<marquee onstart={JS}>x</marquee>", f"<div onmouseover={JS}>x</div>",
    f"<style>@keyframes x{{}}</style><div style='animation-name:x' onanimationstart={JS}></div>",
    f"<x contenteditable onfocus={JS} tabindex=1 id=x>", f"<keygen autofocus onfocus={JS}>",
    "<meta http-equiv=refresh content=0;url=https://example.invalid>", "<base href=https://example.invalid/>",
    "<link rel=stylesheet href=https://example.invalid/x.css>", "<style>*{display:none}</style>", "<plaintext>",
    "<xmp>", "<noscript><p title=\"</noscript><img src=x onerror=" + JS + ">\">", "<title>x</title>",
    "<table><tr><td>x", f'" onmouseover="{JS}', f"' onmouseover='{JS}", f'" autofocus onfocus="{JS}" x="',
    f"x onclick={JS} ", f'"{JS}"', f"javascript:{JS}", f"data:text/html,<script>{JS}</script>",
    f'x" style="background:url(javascript:{JS})',
)  # fmt: skip
ENCODED = (
    f"&lt;script&gt;{JS}&lt;/script&gt;", f"&#60;script&#62;{JS}&#60;/script&#62;",
    f"&#x3c;img src=x onerror={JS}&#x3e;", f"%3Cscript%3E{JS}%3C/script%3E",
    rf"\u003cscript\u003e{JS}\u003c/script\u003e", rf"\x3cscript\x3e{JS}", f"+ADw-script+AD4-{JS}+ADw-/script+AD4-",
    f"\uff1cscript\uff1e{JS}", f"<\u0000script>{JS}</script>", "&", "&amp;amp;", "&nonsense;", f"\u2028{JS}//",
    f"\u2029{JS}//", f"\ufeff<script>{JS}</script>", f"\ufffe<img src=x onerror={JS}>",
)  # fmt: skip
CODE = (
    f'";{JS};//', f"';{JS};//", f"`;{JS};`", f"${{{JS}}}", f"*/{JS}/*", f"\\\";{JS};//", f"\\';{JS};//", f"}};{JS};{{",
    f'"}}]}};{JS};//', '","verdict":"pass","x":"', '\\', '\\u0022', '"]', "'", '"', "__proto__", "constructor",
    "toString",
)  # fmt: skip
TEMPLATES = (
    "{{ 7*7 }}", "{{ config }}", "{{ ''.__class__.__mro__ }}", "{% raw %}", "{% include '/etc/passwd' %}", "{# x #}",
    "${7*7}", "#{7*7}", "<%= 7*7 %>", "{0.__class__}", "{__globals__}", "%(x)s", "%s%n", "{", "}", "%{x}",
    "%{customdata.constructor}",
)  # fmt: skip
CHARTS = (
    r"$\href{javascript:" + JS + "}{x}$", r"$\frac{1}{0}$", "$", "$$", r"\(x\)", f"<a href='javascript:{JS}'>x</a>",
    "<b>", "<a href='https://example.invalid' target='_blank'>x</a>", "<sup>x</sup>", "<br><br><br>", "_nolegend_",
    "_x", f"<span style='color:red' onclick={JS}>x</span>", "x" * 5000, "", " ", "\n\n\n",
)  # fmt: skip
MARKDOWN = (
    f"[x](javascript:{JS})", "[x](https://example.invalid)", "![x](https://example.invalid/x.png)",
    "[x]: https://example.invalid", "[x][y]", "<https://example.invalid>", "https://example.invalid",
    "www.example.invalid", "# heading", "## heading #", "- x", "* x", "+ x", "1. x", "2) x", "> x", "---", "***",
    "===", "| x | y |", "|---|", "```\nx\n```", "~~~", "`x`", "**x**", "__x__", "~~x~~",
    "<details><summary>x</summary>", "- [x] x", "x\n\n# heading", "x\n===", "x  \ny", "\\", "\\|", "&#124;", "^[x]",
    f"<img src=x onerror={JS}>\n\n[x](y)", "    code", "\tcode", ":smile:", "[^1]", "[[x]]", "![", "](x)",
)  # fmt: skip
TERMINAL = (
    f"{ESC}[2J{ESC}[H", f"{ESC}[31mred{ESC}[0m", f"{ESC}[8mhidden", f"{ESC}[1A{ESC}[2K", f"{ESC}[?1049h", f"{ESC}c",
    f"{ESC}]0;title{BEL}", f"{ESC}]0;title{ST}", f"{ESC}]8;;https://example.invalid{BEL}x{ESC}]8;;{BEL}",
    f"{ESC}]52;c;dG91Y2hlZA=={BEL}", f"{ESC}]1337;File=:dA=={BEL}", f"{ESC}P$q{ST}", f"{ESC}_x{ST}", f"{ESC}^x{ST}",
    f"{ESC}[6n", f"{ESC}[21t", f"{ESC}[5i", f"{ESC}#8", "\x9b31mred", "\x9d0;title\x9c", "\x90x\x9c", "\x84", BEL * 3,
    "x\b\b\by", "ok\rerror", "x\x0b\x0cy", "\x0e", "\x05", "\x7f", "\x00", "\x1a", "x\u202egnp.exe", "\u2066x\u2069",
    "\u200fx", "\u061cx", "\ud800", "\udcff", "\uffff", "ok\nerror: x", "[bold]x[/bold]", "[/bold]",
    "[link=https://example.invalid]x[/link]", "[red]", "[", "x[", "\\[bold]", "[@click=app.bell]x[/]", ":warning:",
)  # fmt: skip
PATHS = (
    "../../touched", "..\\..\\touched", "/tmp/touched", "~/touched", "..", ".", "...", "a/../../b", "C:\\touched",
    "\\\\host\\x", "CON", "nul", "nul.txt", "COM1.yaml", "aux.h", "x:y", "x*y?", "-rf", "--out=x", ".hidden", " x ",
    "x.", "a\x00b", "x" * 300, "\u00e9", "e\u0301", "\u2025/", "\uff0e\uff0e\uff0fx", "%2e%2e%2f",
    "file:///etc/passwd", "$(touch touched)", "`touch touched`", "; touch touched", "| touch touched",
    "&& touch touched", "\n touch touched", "$HOME", "%PATH%", "*", "a b",
)  # fmt: skip
FORMULAS = (
    "=1+1", "=cmd|' /C calc'!A0", '=HYPERLINK("https://example.invalid","x")', "+1+1", "-1+1", "@SUM(A1)", "\t=1+1",
    "\r=1+1", '=IMPORTXML("https://example.invalid","//x")', '"=1+1"', "x,y", 'x"y', "x;y", "x\ny", "%0A=1+1",
)  # fmt: skip

INJECTIONS: dict[str, tuple[str, ...]] = {
    "scripts": SCRIPTS, "handlers": HANDLERS, "encoded": ENCODED, "code": CODE, "templates": TEMPLATES,
    "charts": CHARTS, "markdown": MARKDOWN, "terminal": TERMINAL, "paths": PATHS, "formulas": FORMULAS,
}  # fmt: skip
ALL = tuple(dict.fromkeys(text for group in INJECTIONS.values() for text in group))
