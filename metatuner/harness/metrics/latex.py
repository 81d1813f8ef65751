r"""LaTeX answers in one form: what only changes looks is rewritten, so that `structure` reads what was meant.

Text functions only, without SymPy. Every rewriting takes time linear in the length of the text (at most 2,000
characters reach it). docs/benchmarks.md lists the rules with examples.
"""

import re
import unicodedata

from metatuner.harness.metrics.statements import boxes

_CHARACTERS = {
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212\ufe58\ufe63\uff0d", "-"),
    **dict.fromkeys("\u00a0\u2007\u2008\u2009\u202f\u2060", r"\,"),
    **dict.fromkeys("\u201c\u201d\u201e\u00ab\u00bb", '"'),
    **dict.fromkeys("\u2018\u2019", "'"),
    **dict.fromkeys("\u00b7\u22c5\u2219\u2022", r"\cdot "),
    "\u00d7": r"\times ",
    "\u00f7": r"\div ",
    "\u2215": "/",
    "\u2044": "/",
    "\u221a": r"\sqrt ",
    "\u221b": r"\sqrt[3] ",
    "\u2264": r"\le ",
    "\u2a7d": r"\le ",
    "\u2265": r"\ge ",
    "\u2a7e": r"\ge ",
    "\u2260": r"\ne ",
    "\u2248": r"\approx ",
    "\u00b1": r"\pm ",
    "\u2213": r"\mp ",
    "\u221e": r"\infty ",
    "\u03c0": r"\pi ",
    "\u00b0": r"^\circ ",
    "\u2205": r"\emptyset ",
    "\u222a": r"\cup ",
    "\u2229": r"\cap ",
    "\u2208": r"\in ",
    "\u27e8": r"\langle ",
    "\u27e9": r"\rangle ",
    "\u2026": r"\ldots ",
    "\u211d": r"\mathbb{R}",
    "\u2124": r"\mathbb{Z}",
    "\u03b8": r"\theta ",
    "\u03b1": r"\alpha ",
    "\u03b2": r"\beta ",
    "\u03bb": r"\lambda ",
    "\u2236": ":",
    "\uff1a": ":",
    "\u20ac": r"\$",
    "\u00a3": r"\$",
    "\u00a5": r"\$",
    "\u00a2": r"\text{ cents}",
}
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_FONT = (
    r"\\(?:math(?:rm|bf|it|sf|tt|normal)|boldsymbol|bm|text(?:bf|it|rm|sf|tt|normal|up)?|mbox|hbox|emph"
    r"|operatorname\*?)"
)
_REWRITINGS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(form), plain)
    for form, plain in (
        (r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![a-zA-Z])\s*\.?(?=[()\[\]|{}\\<>/.])", ""),
        (
            r"\\(?:displaystyle|textstyle|limits|nolimits|mathstrut|quad|qquad|hspace\{[^{}]*\}|vspace\{[^{}]*\}|phantom\{[^{}]*\})(?![a-zA-Z])",
            " ",
        ),
        (r"\\(?:lbrace|\{)", r"\\{"),
        (r"\\(?:rbrace|\})", r"\\}"),
        (r"\\(?:lbrack)(?![a-zA-Z])", "["),
        (r"\\(?:rbrack)(?![a-zA-Z])", "]"),
        (r"\\(?:lvert|rvert|vert)(?![a-zA-Z])", "|"),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\[dt]binom(?![a-zA-Z])", r"\\binom"),
        (r"\\(?:leq|leqslant)(?![a-zA-Z])", r"\\le "),
        (r"\\(?:geq|geqslant)(?![a-zA-Z])", r"\\ge "),
        (r"\\neq(?![a-zA-Z])", r"\\ne "),
        (r"<=", r"\\le "),
        (r">=", r"\\ge "),
        (r"!=", r"\\ne "),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"\\varnothing(?![a-zA-Z])", r"\\emptyset "),
        (r"\\(?:dots|cdots|dotsc|dotsb)(?![a-zA-Z])|\.\.\.", r"\\ldots "),
        (r"\\textdollar(?![a-zA-Z])|\\\$|\$", ""),
        (r"\\cents?(?![a-zA-Z])|\\textcent(?![a-zA-Z])", r"\\text{ cents}"),
        (r"\^\s*\{?\s*(?:\\circ|\\degree|\^\\circ)\s*\}?|\\degree(?![a-zA-Z])", "\u00b0 "),
        (r"\s*\{\s*([,.])\s*\}\s*(?=\d)", r"\1"),
        (r"(?<=\d),\s*\\!\s*(?=\d{3})", ","),
        (r"\\!", ""),
        (r"(?<=\d)\s*(?:\\[,;: ]|~|\\ |')\s*(?=\d{3}(?!\d))", "\u2009"),
        (r"(?<!\\)\\(?:[,;: ]|(?=\s))|~", " "),
        (rf"{_FONT}\s*\{{\s*([-+])\s*\}}", r"\1"),
        (r"\{\s*([-+])\s*\}", r"\1"),
        (rf"{_FONT}\s*\{{\s*(?:negative|minus)\s*\}}|\b(?:negative|minus)\s+(?=[\d\\])", "-"),
        (rf"{_FONT}\s*\{{\s*(:|,|%|\\%)\s*\}}", r"\1"),
        (r"\\(?:mathrm|mathbf|mathit|mathsf|boldsymbol|bm|rm)\s+([a-zA-Z\d])(?![a-zA-Z])", r"{\1}"),
        (rf"{_FONT}\s*\{{(e|i|\d[\d.,]*)\}}(?![_a-zA-Z])", r"{\1}"),
        (rf"^{_FONT}\s*\{{\s*\(?([a-zA-Z])\)?\s*\}}$", r"\1"),
        (r"\\begin\{array\}\s*\{[^{}]*\}", r"\\begin{matrix}"),
        (r"\\end\{array\}", r"\\end{matrix}"),
        (r"[\[(]\s*(\\begin\{matrix\}.*\\end\{matrix\})\s*[\])]", r"\1"),
        (r"\\(?:mathbf|boldsymbol|bm|mathit|mathsf)\s*\{([^{}]*)\}", r"{\1}"),
        (rf"{_FONT}\s*\{{", r"\\text{"),
        (r"\\text\{\s*(cis|sin|cos|tan|cot|csc|log|ln|arcsin|arccos|arctan|gcd|lcm)\s*\}", r"\\\1 "),
        (r"\{\s*\\(?:rm|bf|it)\s+([^{}]*)\}", r"\\text{\1}"),
        (r"\\?%|\\text\{\s*(?:percent|per cent|pct)\s*\}|\bper ?cent\b", "%"),
        (r"\*\*|\u2217", "^"),
        (r"(?<=[\d.)}])\s*\*\s*(?=[\w\\(])|(?<=\w)\s*\*\s*(?=[\w\\(])", r"\\cdot "),
        (r"(?<=\d)\s*[xX]\s*(?=10\s*\^)", r"\\times "),
        (r"(?<![\w.\\])(\d+(?:\.\d+)?)[eE]([+-]?\d{1,4})(?![\w.])", r"\1\\times 10^{\2}"),
        (r"(?<![\\a-zA-Z])(sqrt|pi|sin|cos|tan|log|ln|infty)(?![a-zA-Z])", r"\\\1 "),
        (r"(?<![\\a-zA-Z])(?:infinity|inf|oo)(?![a-zA-Z])|\\text\{\s*infinity\s*\}", r"\\infty "),
        (r"\+\s*\\infty", r"\\infty"),
        (r"\^\s*\(([^()]{1,40})\)", r"^{\1}"),
        (r"\^\s*(-\s?\d+|\\frac\s*(?:\{[^{}]*\}|\d)\s*(?:\{[^{}]*\}|\d))", r"^{\1}"),
        (r"\{([^{}]*)\\choose(?![a-zA-Z])([^{}]*)\}", r"\\binom{\1}{\2}"),
        (
            r"\s*\(?\s*\\(?:pmod|bmod|mod)\s*(?:\{[^{}]*\}|\w+)\s*\)?|\s*\(\s*\\text\{\s*mod\s*\}\s*\w+\s*\)"
            r"|\s*\(\\text\{\s*mod \w+\s*\}\)",
            "",
        ),
        (r"\\equiv(?![a-zA-Z])", "="),
        (r"\\sqrt\s*\[\s*(\d*[13579])\s*\]\s*\{\s*-\s*", r"-\\sqrt[\1]{"),
        (r"(\\(?:ln|log(?:\s*_\s*(?:\{\w+\}|\w))?))\s*(\d+|[a-z])\s*(?=\\(?:cdot|times)(?![a-zA-Z]))", r"\1(\2)"),
        (r"(\d*)\.(\d)\2{2,}\s*\\ldots", r"\1.\\overline{\2}"),
        (r"(\d+\.\d*)\((\d+)\)(?!\d)", r"\1\\overline{\2}"),
        (r"(?<![\d}\s])\\text\{([a-zA-Z])\}(?=\s*[-+*/^=<>])", r"\1"),
        (r"(\d[\d.]*)\s*(?:\\text\{)?\s*dozen\s*\}?", r"\1\\times 12"),
        (
            r"\^\s*\{\s*(?:\\text\{\s*)?(?:st|nd|rd|th)\s*\}?\s*\}|(?<=\d)(?:st|nd|rd|th)\b|(?<=\d)\\text\{\s*(?:st|nd|rd|th)\s*\}",
            "",
        ),
        (r"\\sqrt\s*\(([^()]{1,200})\)", r"\\sqrt{\1}"),
        (r"\\sqrt\s*(\[[^\[\]]{1,20}\])?\s*(\d+|[a-zA-Z])", r"\\sqrt\1{\2}"),
        (r"\\frac\s*([\da-zA-Z])\s*([\da-zA-Z])", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\\(?:pi|theta|alpha|beta))\s*(?=[\d{])", r"\\frac{\1}"),
        (r"\\frac\s*([\da-zA-Z])\s*\{", r"\\frac{\1}{"),
        (r"\\frac\s*(\{[^{}]*\})\s*([\da-zA-Z])", r"\\frac\1{\2}"),
        (r"\{([^{}]*)\\over(?![a-zA-Z])([^{}]*)\}", r"\\frac{\1}{\2}"),
        (r"(?<![\d.])\.(?=\d)", "0."),
        (r"(?<=[\d)])(?<!_\d)\s*(?=\(\s*-?(?:\d|\\frac))", r"\\cdot "),
        (r"\\text\{\s*([(\[]?\s*-?\d[\d.,\s]*[)\]]?|[a-zA-Z]\s*=\s*-?\d[\d.]*)\s*\}", r"\1"),
        (r"\\text\{\s*(,|, ?and|and|or|, ?or)\s*\}", r" \1 "),
        (r"\\text\{\s*[A-Za-z ]{2,30}:\s*\}", ""),
        (r"(?<=\d)\s*\\text\{([A-F])\}\s*(?=_)", r"\1"),
        (r"(?<![\d.,])0+(?=\d+\s*_)", ""),
        (r"\\(?:forall|text\{\s*for all\s*\})\s*[^,]*,", ""),
    )
)
_NESTED_FONT = re.compile(r"\\text\s*\{(?=\s*-?\d*\s*\\(?:frac|sqrt|pi))")
MINUS = "\u2212"
_RAISED = re.compile("(?<=[\\w)}])\u207b?[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207f]+")
_LOWERED = re.compile("[\u2080-\u2089]+")
_BRACED_NUMBER = re.compile(r"(?<![\\\w}\]^_])\{\s*(-?[\d.,]+|[a-zA-Z]|\\pi)\s*\}(?!\{)")
_REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar)\s*\{?\s*(\d+)\s*\}?")
_BLANK_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d/])")
_THIN_THOUSANDS = re.compile(r"(?<=\d)\u2009(?=\d{3})")
_MIXED = re.compile(
    r"(?<![\d.}\w/^_])(\d+)\s*(?:\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}|\s(\d+)\s*/\s*(\d+)(?![\d]))"
)
_ARTICLE = re.compile(r"\b(?:a|an|the)\s+(?=\w{3})")
_SCALED = re.compile(rf"(\d[\d.]*)\s*(?:\\text\{{)?\s*({'|'.join(_SCALES)})s?\b\s*\}}?")


def canonical(text: str) -> str:
    r"""An answer with one form for each sign, bracket, fraction, root, decimal, thousands mark and font.

    Text in `\text{...}` stays there; `%` and a degree sign stay, because they change what a number may mean.
    """
    text = unwrapped(text)
    text = _RAISED.sub(lambda found: f"^{{{unicodedata.normalize('NFKC', found[0]).replace(MINUS, '-')}}}", text)
    text = _LOWERED.sub(lambda found: f"_{{{unicodedata.normalize('NFKC', found[0])}}}", text)
    text = "".join(map(_plain_character, text))
    if r"\begin" not in text:  # doubled backslashes of a JSON string
        text = re.sub(r"\\\\(?=[a-zA-Z])", r"\\", text)
    for form, plain in _REWRITINGS:
        text = form.sub(plain, text)
    text = _parenthesised_root(_without_fonts(text))
    text = _THIN_THOUSANDS.sub("", text).replace("\u2009", " ")
    text = _BLANK_THOUSANDS.sub(lambda found: found[0].replace(" ", ""), " ".join(text.split()))
    text = _BRACED_NUMBER.sub(r"\1", text)
    text = _REPEATING.sub(_repeating, text)
    text = _MIXED.sub(lambda found: rf"({found[1]}+\frac{{{found[2] or found[4]}}}{{{found[3] or found[5]}}})", text)
    text = _SCALED.sub(lambda found: rf"{found[1]}\times 10^{{{_SCALES[found[2]]}}}", text)
    return " ".join(text.split()).rstrip(".,;: ").strip()


def _without_fonts(text: str) -> str:
    r"""The contents of `\mathbf{...}` and the like, also around fractions and roots."""
    while found := _NESTED_FONT.search(text):
        depth, end = 0, found.end() - 1
        while end < len(text):
            depth += (text[end] == "{") - (text[end] == "}")
            if not depth:
                break
            end += 1
        if end >= len(text):
            return text
        text = f"{text[: found.start()]}{{{text[found.end() : end]}}}{text[end + 1 :]}"
    return text


def _parenthesised_root(text: str) -> str:
    """Roots of nested parentheses: `\\sqrt(2+\\sqrt(3))`."""
    at = text.rfind(r"\sqrt")
    while at >= 0:
        start = at + len(r"\sqrt")
        while text.startswith(" ", start):
            start += 1
        if text.startswith("(", start):
            depth, end = 0, start
            while end < len(text):
                depth += (text[end] == "(") - (text[end] == ")")
                if not depth:
                    text = f"{text[:start]}{{{text[start + 1 : end]}}}{text[end + 1 :]}"
                    break
                end += 1
        at = text.rfind(r"\sqrt", 0, at)
    return text


def unwrapped(text: str) -> str:
    r"""The text without boxes, quotation marks and Markdown's marks around it or in it."""
    for command in (r"\boxed", r"\fbox"):
        for start, end, content in reversed(boxes(text, command)):
            text = text[:start] + content + text[end:]
    before = None
    while before != text:
        before, text = text, text.strip().strip("$`").strip()
        for mark in ("**", "__", '"', "``", "''", "'", "\u201c", "*"):
            close = {"``": "''", "\u201c": "\u201d"}.get(mark, mark)
            if len(text) > len(mark) + len(close) and text.startswith(mark) and text.endswith(close):
                text = text[len(mark) : -len(close)]
    return text


def _plain_character(character: str) -> str:
    if character.isascii():
        return character
    if character in _CHARACTERS:
        return _CHARACTERS[character]
    plain = unicodedata.normalize("NFKC", character)
    if unicodedata.category(character) == "No":  # a vulgar fraction or a raised digit
        if "\u2044" in plain:
            return r"\frac{{{}}}{{{}}}".format(*plain.split("\u2044"))
        return f"^{{{plain}}}" if plain.isdecimal() else plain
    return plain


def _repeating(match: re.Match[str]) -> str:
    """A repeating decimal as a fraction: 0.1(6) is (16 - 1) / 90."""
    whole, fixed, repeated = match[1] or "0", match[2], match[3]
    if len(whole + fixed + repeated) > 40:
        return match[0]
    above = int(whole + fixed + repeated) - int(whole + fixed)
    return rf"\frac{{{above}}}{{{'9' * len(repeated)}{'0' * len(fixed)}}}"


def exact_decimals(text: str) -> str:
    r"""Decimals as fractions, so that no digit is lost: `2.5x` is `\frac{25}{10}x`."""
    return re.sub(
        r"(?<![\w.])(\d+)\.(\d+)(?![.\d])",
        lambda found: rf"\frac{{{int(found[1] + found[2]) if len(found[0]) < 4000 else 0}}}{{1{'0' * len(found[2])}}}",
        text,
    )


def words(text: str) -> str:
    r"""An answer in words, for comparison: lower case, no `\text`, punctuation or article."""
    plain = re.sub(r"\\text\s*\{|[{}\\$]", " ", text).casefold()
    plain = re.sub(r"[^\w\s+/:<>=-]|_", " ", plain)
    return " ".join(_ARTICLE.sub("", plain).split())
