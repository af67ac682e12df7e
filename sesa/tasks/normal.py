"""One way to write a mathematical answer: LaTeX, plain text, Markdown and Unicode become the same LaTeX.

Text is rewritten, never evaluated. Known and given answers both pass through `normal`. Then `parts` takes apart what a
parser of formulas passes over: modulus, bases, unit, and the name before an equals sign.  (All rules are our choice.)
"""

import re
import unicodedata
from typing import NamedTuple

LONGEST = 2000  # characters of an answer; more is wrong
ROUNDS = 20  # a text settles in two or three

SIGNS = dict(pair.split(" ", 1) for pair in (  # a command ends with a space, as a letter may follow
    r"− -;– -;— -;‐ -;‑ -;× \times ;÷ \div ;· \cdot ;⋅ \cdot ;∙ \cdot ;• \cdot ;≤ \leq ;⩽ \leq ;≥ \geq ;⩾ \geq ;"
    r"≠ \neq ;≡ \equiv ;≈ \approx ;± \pm ;∞ \infty ;√ sqrt;∪ \cup ;∩ \cap ;∈ \in ;∉ \notin ;∅ \emptyset ;⊂ \subset ;"
    r"⊆ \subseteq ;→ \to ;⇒ \implies ;∧ \land ;∨ \lor ;¬ \neg ;° ^\circ ;º ^\circ ;˚ ^\circ ;℃ ^\circ C;℉ ^\circ F;"
    r"∠ \angle ;△ \triangle ;⊥ \perp ;∥ \parallel ;∣ |;ℝ \mathbb{R};ℤ \mathbb{Z};ℚ \mathbb{Q};ℕ \mathbb{N};ℂ \mathbb{C};"
    r"ϕ \phi ;ϵ \epsilon ;… \ldots ;⋯ \ldots ;′ ';’ ';“ ;” ;。 .;、 ,;⁄ /;∕ /;￥ ¥;∛ cbrt;∓ \mp ;∆ \Delta ;∇ \nabla ;"
    r"∂ \partial ;∑ \sum ;∏ \prod ;∫ \int ;∀ \forall ;∃ \exists ;∖ \setminus ;⊃ \supset ;⊇ \supseteq ;⇔ \iff ;"
    r"⌊ \lfloor ;⌋ \rfloor ;⌈ \lceil ;⌉ \rceil "
).split(";"))  # fmt: skip
SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ]+")
SUBSCRIPT = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙₖ]+")

BRACED = r"\{[^{}]*\}"
START, END = r"(?<![\\A-Za-z])", r"(?![A-Za-z])"  # of a word, and of a command
NAMES = re.compile(  # "min" alone is a minute
    START + r"(sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|log|ln|exp|det|lcm|gcd|m(?:ax|in)(?=\s*[({\\])|sqrt"
    "|infty|infinity|oo|alpha|beta|gamma|delta|epsilon|theta|lambda|mu|phi|psi|omega|rho|sigma|tau|pi)" + END
)
STYLES = re.compile(r"\\(?:mathbf|mathit|mathsf|mathtt|mathnormal|boldsymbol|bm|ensuremath|underline|emph)\s*\{")
TEXTS = re.compile(r"\\(?:text|textbf|textit|textrm|textsf|texttt|textnormal|textup|mathrm|mbox|hbox)\s*\{")
AROUND = [(mark, mark) for mark in ("**", "__", "*", "_", "```", "`", "'", '"', "$")] + [(r"\(", r"\)"), (r"\[", r"\]")]
ANSWER_IS = r"(?:the )?(?:final )?answer(?: is)?\s*"
LEAD = re.compile(
    rf"=\s*|#+ |\\text\s*\{{\s*{ANSWER_IS}:?\s*\}}\s*"
    rf"|(?:so|thus|hence|therefore)?,?\s*{ANSWER_IS}[:=]?\s*(?=[\s\d\\$(-])",
    re.IGNORECASE,
)

GROUPS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:(?<!\\)\\[,;:! ]\s*|\{,\}\s*|,\\!\s*| |')\d{3})+(?!\d)")  # 2\,500\,000
REPEATING = re.compile(  # 0.8\overline{3}, 0.8(3)
    r"(?<![\d.])(\d{0,50})\.(\d{0,50})(?:\\(?:overline|bar|dot)\s*(?:\{(\d{1,50})\}|(\d))|\((\d{1,50})\))"
    r"(?![\d.(]|\\(?:overline|bar|dot))"
)
DOTTED = re.compile(r"(?<![\d.])(\d{0,50}\.\d{0,50}?)(\d{1,20}?)\2{2,9}\s*\\ldots")  # 0.8333\ldots
MIXED = re.compile(  # 5 3/4, 5 \frac{3}{4}
    r"(?<![\d./^_{}])(\d{1,50})\s+(?:(\d{1,50})\s*/\s*(\d{1,50})(?![\d./!^])|(?=\\frac\s*(?:\{\d+\}\s*\{\d+\}|\d\d)))"
)
LARGE = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
REWRITES = [(re.compile(pattern), to) for pattern, to in (
    # layout and style
    (rf"\\left(?![a-z])\.?|\\right(?![a-z])\.?|\\(?:displaystyle|textstyle|limits|bf|rm|it|therefore){END}", ""),
    (rf"\\[bB]igg?[lrm]?{END}|\\(?:text)?color\s*\{{[^{{}}]*\}}|\\(?:scriptstyle|tiny|small|normalsize|[lL]arge|LARGE|[hH]uge){END}", ""),
    (r"(?<![\w)}\]*])\*\*([^\s*][^*]*)\*\*", r"\1"),
    # signs
    (rf"\\(?:[dtcs]|nice)frac{END}", r"\\frac"),
    (r"\\operatorname\*?\s*\{\s*(\\[a-z]+)\s*\}", r"\1 "),  # a name that NAMES found
    (rf"\\[lcdv]?dots[a-z]?{END}|\.{{3,}}", r"\\ldots "),
    (rf"\\(?:degree|textdegree){END}|\^\s*\{{\s*\\circ\s*\}}|\^\s*\\circ{END}\s*", r"^\\circ "),
    (rf"\\(?:leqslant|le){END}|<=", r"\\leq "),
    (rf"\\(?:geqslant|ge){END}|>=", r"\\geq "),
    (rf"!=|\\ne{END}", r"\\neq "),
    (r"\+/-|(?:^|(?<=[=,(]))\s*\+-", r"\\pm "),
    (rf"\s*(?:\\?%|\\text\s*\{{\s*(?:percent|per cent|pct)\s*\}}|\bper ?cent(?:age)?\b|\bpct\b)", r"\\%"),
    (r"(?<=[A-Za-z\d)])'+", lambda m: "^{" + r"\prime" * len(m[0]) + "}"),
    # powers and roots
    (r"(?<!\*)\*\*(?!\*)", "^"),
    (r"\^\s*([-+]?\d+(?:\.\d+)?)", r"^{\1}"),
    (r"(?<=\d)\s*x\s*(?=10\s*\^)", r"\\times "),
    (START + r"cbrt\s*(?=[({\d])", r"\\sqrt[3]"),
    (rf"(?<=\d)\s*\\?,?\s*(hundred|thousand|[mbtr]+illion){END}",
     lambda m: rf"\times 10^{{{LARGE[m[1]]}}}" if m[1] in LARGE else m[0]),
    # digits that repeat, under a bar or under a dot at both ends
    ("(?:[0-9][\u0304\u0305])+", lambda m: rf"\overline{{{''.join(re.findall('[0-9]', m[0]))}}}"),
    ("([0-9])\u0307", r"\\dot{\1}"),
    (r"\\dot\s*\{?(\d)\}?(\d{0,50})\\dot\s*\{?(\d)\}?", r"\\overline{\1\2\3}"),
    # words
    (rf"(?<=\d)\s*(?:\^?\s*\\text\s*\{{\s*(?:st|nd|rd|th)\s*\}}"
     rf"|\^\s*\{{\s*(?:\\text\s*\{{)?\s*(?:st|nd|rd|th)\s*\}}\}}?|(?:st|nd|rd|th){END})", ""),
    (r"\b([ap])\.\s?m\b\.?", r"\1m"),
    (rf"(,?\s*(?:\\text\s*\{{\s*(?:and|or)\s*\}}|(?<![A-Za-z\\{{])(?:and|or){END})\s*)|\\text\{{[^{{}}]*\}}",
     lambda m: ", " if m[1] else m[0]),
    # the modulus
    (r"\\text\s*\{\s*\(?mod(?:ulo)?\b\s*([^{}()]*)\)?\s*\}", r"mod \1"),
    (rf"\\pmod\s*([\dA-Za-z])|\(\s*\\?[bp]?mod(?:ulo)?\s*((?:[^(){{}}\\]|{BRACED}){{1,99}}?)\s*\)"
     rf"|\\[bp]?mod\s*(?:\{{((?:[^{{}}]|{BRACED})+)\}}|((?:[^(){{}}\\\s,]|{BRACED}){{1,99}}))", r"\\pmod{\1\2\3\4}"),
    (START + r"mod(?:ulo)?\s+(\w{1,99})", r"\\pmod{\1}"),
    # spaces
    (r"(?<=\d)\\[,;:!]\s*(?=\d{3}(?!\d))", ""),  # 3.141\,592
    (rf"(?<!\\)\\[,;:! ]|~|\\(?:thinspace|enspace|quad|qquad){END}|\\hspace\*?\s*\{{[^{{}}]*\}}|\{{,\}}(?!\d)", " "),
    (r"\{,\}", ","),
)]  # fmt: skip


def normal(text: str) -> str:
    """The text in its normal form, which is its own; "" if the text is longer than LONGEST characters. Total."""
    if len(text) > LONGEST:
        return ""
    for _ in range(ROUNDS):
        before, text = text, _round(text)
        if text == before:
            break
    return text


def _round(text: str) -> str:
    text = SUPERSCRIPT.sub(lambda m: f"^{{{unicodedata.normalize('NFKC', m[0])}}}", text)
    text = SUBSCRIPT.sub(lambda m: f"_{{{unicodedata.normalize('NFKC', m[0])}}}", text)
    text = bare(re.sub(r"\s+", " ", "".join(map(_ascii, text))))
    for what in (STYLES, TEXTS):
        text = _unwrapped(text, what)
    text = GROUPS.sub(lambda m: "".join(re.findall(r"\d", m[0])), text)
    for pattern, to in REWRITES:
        text = pattern.sub(to, text)
    text = NAMES.sub(lambda m: f"\\{'infty' if m[1] in ('infinity', 'oo') else m[1]} ", text)
    text = _braced(text)
    text = DOTTED.sub(r"\1\\overline{\2}", text)
    text = REPEATING.sub(_fraction, text)
    text = MIXED.sub(lambda m: rf"{m[1]}\frac{{{m[2]}}}{{{m[3]}}}" if m[2] else m[1], text)
    return bare(re.sub(r"\s+", " ", text))


def _ascii(sign: str) -> str:
    """What a Unicode sign is in LaTeX; a half is a mixed number's half."""
    if sign < "\x80" or sign in SIGNS:
        return SIGNS.get(sign, sign)
    plain = unicodedata.normalize("NFKC", sign)
    if unicodedata.decomposition(sign).startswith("<fraction>"):
        return " \\frac{%s}{%s}" % tuple(f"{plain}⁄".split("⁄")[:2])
    name = unicodedata.name(plain, "") if len(plain) == 1 else ""
    if greek := re.fullmatch("GREEK (SMALL|CAPITAL) LETTER ([A-Z]+)", name):
        name = greek[2].lower().replace("lamda", "lambda")
        return f"\\{name if greek[1] == 'SMALL' else name.capitalize()} "
    if unicodedata.category(sign) == "Cf":  # zero width
        return ""
    return "".join(SIGNS.get(c, c) for c in plain)


def bare(text: str) -> str:
    """Without what surrounds the whole: spaces, Markdown, quotes, dollars, \\( \\), a full stop, "the answer is"."""
    while True:
        before = text
        text = re.sub(r"(?<![.\s])\s*[.,;:]$|\\$", "", text.strip())
        text = text[lead.end() if (lead := LEAD.match(text)) else 0 :].strip()
        for left, right in AROUND:
            inner = text[len(left) : -len(right)]
            if inner and text == left + inner + right and left not in inner and right not in inner:
                text = inner
        if text == before:
            return text


def _closings(text: str) -> dict[int, int]:
    """Where every { closes, and every (."""
    opened: dict[str, list[int]] = {"}": [], ")": []}
    found = {}
    for m in re.finditer(r"\\.|[{}()]", text, re.DOTALL):
        if m[0] in "{(":
            opened["}" if m[0] == "{" else ")"].append(m.start())
        elif m[0] in opened and opened[m[0]]:
            found[opened[m[0]].pop()] = m.start()
    return found


def _unwrapped(text: str, what: re.Pattern) -> str:
    """Without the commands that are style alone. All kinds of \\text{...} become \\text{...} around words, and nothing around numbers."""
    closings, out = _closings(text), list(text)
    for m in what.finditer(text):
        start, end = m.end() - 1, closings.get(m.end() - 1)
        if end is None:
            continue
        content, before = text[start + 1 : end], text[max(m.start() - 40, 0) : m.start()]
        words = re.search(r"[^\W\d_]{2}", content) or content.strip() in UNITS and before.strip()
        words = words and what is TEXTS and not re.match(r"\s*[-+\d]", content)
        keep = words or re.search(r"[\^_}]\s*$|\\[A-Za-z]+\s*$", before)  # an argument keeps its braces
        out[m.start()] = (r"\text{" if words else "{") if keep else ""
        out[m.start() + 1 : start + 1] = [""] * (start - m.start())
        out[end] = out[end] if keep else ""
    return "".join(out)


def _braced(text: str) -> str:
    """sqrt(2) and 2^(n+1) with braces, as LaTeX has them."""
    closings, out = _closings(text), list(text)
    for m in re.finditer(r"(?:\\sqrt(?:\[\d+\])?|\^)\s*\(", text):
        start = m.end() - 1
        if start in closings:
            out[start], out[closings[start]] = "{", "}"
    return re.sub(r"\\sqrt\s+(?=[\d{])", r"\\sqrt", re.sub(r"\\sqrt(\[\d+\])?\s*(\d+)", r"\\sqrt\1{\2}", "".join(out)))


def _fraction(m: re.Match) -> str:
    """0.8\\overline{3}: 83 - 8 over 90."""
    whole, start, block = m[1] or "0", m[2], m[3] or m[4] or m[5]
    over = (10 ** len(block) - 1) * 10 ** len(start)
    return rf"\frac{{{int(whole + start + block) - int(whole + start)}}}{{{over}}}"


# ------------------------------------------------------------------------------------------------------------------ parts

UNITS = {name: names.split()[0] for names in (
    "m meter metre", "km kilometer kilometre", "cm centimeter centimetre", "mm millimeter millimetre", "in inch inches",
    "ft foot feet", "yd yard", "mi mile", "s sec second", "min minute", "h hr hour", "day", "week", "month", "yr year",
    "g gram gm", "kg kilogram kilo", "mg milligram", "lb lbs pound", "oz ounce", "L l liter litre",
    "mL ml milliliter millilitre", "gal gallon", "mi/h mph", "km/h kmh kph kmph", "^\\circ deg degree", "rad radian",
    "\\$ $ dollar usd USD", "cent ¢", "€ euro eur EUR", "£ gbp GBP", "¥ yen yuan", "₹ rs Rs rupee", "am AM", "pm PM",
    "C", "F", "K", "N", "J", "W", "V", "A", "Hz", "Pa", "mol", "acre", "ha hectare", "\\%",
) for name in names.split()}  # fmt: skip
BASES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()
BASES = {name: str(base) for base, name in enumerate(BASES)} | {"binary": "2", "octal": "8", "hexadecimal": "16"}
TEXT = rf"\\text\{{((?:[^{{}}]|{BRACED})*)\}}"
TOKEN = re.compile(TEXT + r"|\^\\circ\b|\\[A-Za-z]+|\\.|\^\s*\{?-?\d\}?|[A-Za-z]+|\d+|\s+|.", re.DOTALL)
MODULUS = re.compile(rf",?\s*\\pmod\{{((?:[^{{}}]|{BRACED})*)\}}")
DIGITS = r"\d[0-9A-Fa-f]*|[A-F][0-9A-F]+"
BASE = re.compile(  # 314_5, 2A_{16}, 314_{\text{five}}
    rf"(?<![A-Za-z\\])(?:\(({DIGITS})\)|({DIGITS}))"
    r"_\s*(?:\{\s*(?:\\text\{)?\(?(?:base\s*)?(\w+)\)?\s*\}?\}|(\w))"
)
IN_BASE = re.compile(r"\s*\(?(?:\\text\{\s*\(?)?(?:in )?\b(?:base[ -]?(\w+)|(binary|octal|hexadecimal))\)?\s*\}?\)?$")
LABEL = re.compile(r"^(?:\\text\{([^{}=]*)\}|([A-Z]{2,}|[A-Za-z ]{4,}))\s*[=:](?![=:])\s*(?=.)")
CURRENCY = re.compile(r"^([-+]?)\s*(\\\$|[$€£¥₹])\s*(?=[-+.\d])")
NO_UNIT = re.compile(r"\\text\{\s*(?:or|and|if|when|where|for|but|not|than|with)\b")  # 5 or more


class Parts(NamedTuple):
    """core: what is left when the others are taken away; moduli and bases: in the order written."""

    core: str
    moduli: tuple[str, ...] = ()
    bases: tuple[str, ...] = ()
    unit: str = ""
    label: str = ""


def parts(text: str) -> Parts:
    """The parts of a normal form. Total."""
    moduli = tuple(m[1].strip() for m in MODULUS.finditer(text))
    text = MODULUS.sub("", text).strip()
    bases = []
    for m in reversed([*BASE.finditer(text)]):
        number, base = m[1] or m[2], m[3] or m[4]
        if number.isdecimal() or base in ("11", "12", "13", "14", "15", "16"):  # A is a digit there
            bases, text = [base, *bases], text[: m.start()] + number + text[m.end() :]
    if m := IN_BASE.search(text):
        bases, text = [*bases, m[1] or m[2]], text[: m.start()]
    label = ""
    if m := LABEL.search(text):
        label, text = words_of(m[1] or m[2]), text[m.end() :]
    text, unit = _unit(text)
    return Parts(bare(text), moduli, tuple(BASES.get(base, base) for base in bases), unit, label)


def _unit(text: str) -> tuple[str, str]:
    """The text before its unit, and the unit: "km/h", "cm^2"; "" if it has none, or "units" alone."""
    if m := CURRENCY.search(text):
        return m[1] + text[m.end() :], UNITS[m[2]]
    tokens = [m[0] for m in TOKEN.finditer(text)]
    cut = len(tokens)
    for i in range(len(tokens) - 1, 0, -1):  # the first token is never one
        token, apart = tokens[i], not tokens[i - 1].strip() or tokens[i - 1] in ("/", "^\\circ")  # 5 m, not 5m: that is a product
        known = token.startswith(("\\text{", "^\\circ")) or _known(token) and (len(token) > 1 or apart)
        if known or len(token) >= 4 and token.isalpha() or token in ("sq", "cu") and cut < len(tokens):
            cut = i
        elif not (re.fullmatch(r"\s+|\^\s*\{?-?\d\}?|[/.]|\\cdot|\$|per|a", token)):
            break
    before, after = "".join(tokens[:cut]).rstrip(), tokens[cut:]
    explicit = any(token.startswith(("\\text{", "^\\circ", "\\%")) for token in after[:1])
    number = re.search(r"[\d)}\]!.]$|\\pi$", before)
    if not after or not before or NO_UNIT.match(after[0]) or not (explicit or number):
        return text, ""
    return before, _canonical("".join(after))


def _known(word: str) -> str | None:
    """A unit by its own name, in lower case, or in the plural."""
    return next((UNITS[w] for w in (word, word.lower(), word.lower().removesuffix("s")) if w in UNITS), None)


def _canonical(unit: str) -> str:
    plain = " ".join(re.sub(TEXT, r" \1 ", unit).replace("\\cdot", " ").split())
    plain = re.sub(r"\b(?:square|sq\.?) (\w+)", r"\1^2", plain)
    plain = re.sub(r"\bcubic (\w+)|\bcu\.? (\w+)", r"\1\2^3", plain)
    plain = re.sub(r"\s*(?:\bper\b|/)\s*", "/", re.sub(r"\s*\^\s*\{?(-?\d)\}?", r"^\1", plain))
    plain = re.sub(r" ([A-Za-z]+)\^-(\d)", lambda m: f"/{m[1]}^{m[2]}".removesuffix("^1"), plain)  # m s^{-1}
    plain = re.sub(r" squared\b", "^2", re.sub(r" cubed\b", "^3", plain))
    plain = re.sub(r"\bunits?\b(?:\^\d)?", "", plain)
    return " ".join(re.sub(r"\^\\circ|\\?[A-Za-z%$]+|[¢€£¥₹]", lambda m: _known(m[0]) or m[0].lower(), plain).split())


def words_of(text: str) -> str:
    """The text as words: in lower case, without \\text, quotes, full stops but decimal points, and spaces but between digits."""
    text = re.sub(TEXT, r" \1 ", text)
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)|[\"$]|\.(?!\d)", "", text).lower()


def prose(text: str) -> bool:
    """Whether a parser of formulas would make a product of what is none: words beside others or numbers, derivatives."""
    plain = re.sub(r"\\(?:begin|end|operatorname)\s*\{[^{}]*\}", "", text)
    beside = re.search(r"[\d}]\s*\\text|\\text\{[^{}]*\}\s*\w", plain)
    plain = re.sub(r"\\text\{([^{}]*)\}", r"\1", plain)
    word = r"(?<![\\A-Za-z])(?:[^\W\d_]{4,}|[A-Z][a-z]{2,})"
    beside = beside or re.search(rf"{word}\s+\w|\w\s+{word}|\\partial|\\frac\s*\{{d[^{{}}]*\}}\{{d", plain)
    beside = beside or re.search(r"\d\s*(?!x\b)[A-Za-z]+\s+\d", plain)  # 4 ft 3 in
    return bool(beside) or not plain.isascii()


def symbols(text: str) -> str:
    """The text with every run of capitals, every word and every transpose as one symbol: an order of letters is no product."""
    text = re.sub(r"(?<=[A-Za-z])\^\s*\{?\s*(?:T|\\top)\s*\}?(?![A-Za-z])", r"^{\\text{T}}", text)
    runs = r"(?<![A-Za-z])([A-Z]{2,}|[A-Za-z]{4,}|[A-Z][a-z]{2,})(?![A-Za-z])"
    runs = rf"\\(?!frac|sqrt)[A-Za-z]+\s*\{{[^{{}}]*\}}|\\[A-Za-z]+|{runs}"
    return re.sub(runs, lambda m: rf"\text{{{m[1]}}}" if m[1] else m[0], text)
