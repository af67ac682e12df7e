"""Whether two answers in normal form are equal: their parts here, their formulas by math-verify. Imported by the verifier's worker alone.

Numbers that differ are unequal, however small: exact ones are compared as such, and a decimal equals what it is a rounding of, if that is
within TOLERANCE of the value and within one unit of the decimal's last place: 0.333333 equals 1/3, 0.33 does not.  (Our choice.)
"""

import re
from decimal import Decimal

from antlr4 import Token
from latex2sympy2_extended.latex2sympy2 import NormalizationConfig, _Latex2Sympy, normalize_latex
from math_verify import grader, verify
from math_verify.parser import get_last_eq, should_treat_as_complex
from sympy import Basic, Float, MatrixBase, Rational

from sesa.tasks.normal import normal, parts, prose, symbols, words_of

TOLERANCE = Rational(1, 10**6)  # relative
DIGITS = 200  # to which irrational numbers are compared
KNOWN_TO_PARSER = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
SCIENTIFIC = re.compile(r"(?<![A-Za-z\d.])(\d+\.?\d*|\.\d+)[eE]([+-]?\d{1,4})(?![\d.A-Za-z^])")
LETTERED = re.compile(r"[A-Z](?:\s*(?:-|\\to|\\rightarrow|>|,)?\s*[A-Z]){2,}")


def same(gold: str, answer: str) -> bool:
    """Whether `answer` equals the known answer `gold`. A modulus must be the same; a unit, a base or the name before "=" may be missing, but
    not differ. Raises whatever the parser does on texts that are no formulas."""
    gold, answer = normal(gold), normal(answer)
    if gold == answer:
        return bool(gold)
    a, b = parts(gold), parts(answer)
    if not a.core or not b.core or any(x and y and x != y for x, y in zip(a[2:], b[2:], strict=True)):
        return False
    alike = len(a.moduli) == len(b.moduli) and all(map(equal, a.moduli, b.moduli))
    if not alike and not _one_is_a_bare_residue(a, b):
        return False
    if len(a.moduli) == 1 and alike and _congruent(a.core, b.core, a.moduli[0]):
        return True
    if a.bases or b.bases:
        return words_of(a.core).lstrip("0") == words_of(b.core).lstrip("0")
    if (a.unit == "\\%") != (b.unit == "\\%"):  # 50% is 0.5, and 50 without the sign; but 0.5 is no 0.5%
        percent, number = (a.core, b.core) if a.unit == "\\%" else (b.core, a.core)
        return equal(rf"\frac{{{percent}}}{{100}}", number) or not re.match(r"[-+]?0*\.", number) and equal(percent, number)
    return equal(a.core.replace("\\equiv", "="), b.core.replace("\\equiv", "="))


def _one_is_a_bare_residue(a, b) -> bool:
    """2 for 2 (mod 5): of one the modulus is missing, and neither says what is congruent to what."""
    return not (a.moduli and b.moduli) and not re.search(r"\\equiv|=", a.core + b.core)


def _congruent(a: str, b: str, modulus: str) -> bool:
    x, y = (re.fullmatch(r"(.*?)(-?\d{1,50})", core) for core in (a, b))
    if not (x and y and words_of(x[1]) == words_of(y[1]) and modulus.isdecimal() and int(modulus)):
        return False
    return (int(x[2]) - int(y[2])) % int(modulus) == 0


def equal(a: str, b: str) -> bool:
    """Whether two cores are equal: as words, as the members of a list with dots, else as formulas."""
    if words_of(a) == words_of(b):
        return bool(words_of(a))
    if "\\ldots" in a + b:
        xs, ys = (re.split(r"\s*[,;]\s*", text) for text in (a, b))
        return len(xs) == len(ys) > 1 and all(equal(x, y) for x, y in zip(xs, ys, strict=True))
    if prose(a) or prose(b) or LETTERED.fullmatch(a) and LETTERED.fullmatch(b) and "," not in a + b:
        return False
    return any(verify(x, y, timeout_seconds=None, allow_set_relation_comp=True) for x in readings(a) for y in readings(b))


def readings(text: str) -> list[Basic | MatrixBase]:
    """What a formula may mean: 7e-5 is the number, or 7 times Euler's e, less 5."""
    scientific = SCIENTIFIC.sub(r"\1\\times 10^{\2}", text)
    return [found for reading in dict.fromkeys((scientific, text)) if (found := read(symbols(reading))) is not None]


class _Reader(_Latex2Sympy):
    """Reads the whole of a text; its parent ignores what follows a formula."""

    def create_parser(self, latex_str):
        self.parser = super().create_parser(latex_str)
        return self.parser

    def parse(self, latex_str):
        found = super().parse(latex_str)
        if self.parser.getTokenStream().LA(1) != Token.EOF:
            raise ValueError(f"only the beginning of {latex_str} is a formula")
        return found


def read(text: str) -> Basic | MatrixBase | None:
    """The formula; of a chain of equations that is none, the last side. None if it is none."""
    plain = normalize_latex(text, KNOWN_TO_PARSER)
    for latex in dict.fromkeys((plain, get_last_eq(plain))):
        try:
            return _Reader(is_real=not should_treat_as_complex(latex)).parse(latex)
        except Exception:  # the parser's own are plain exceptions
            continue
    return None


def numbers_equal(a: Basic | MatrixBase, b: Basic | MatrixBase, *_) -> bool:
    """In place of math-verify's, which rounds to six places, and takes differences below 1e-15 for nothing."""
    written, (a, b) = (a, b), map(grader.safe_sympy_doit, (a, b))
    if isinstance(a, MatrixBase) and isinstance(b, MatrixBase):
        return a.shape == b.shape and all(numbers_equal(x, y) for x, y in zip(a.flat(), b.flat(), strict=True))
    if isinstance(a, Float) or isinstance(b, Float):
        x, y = _value(a), _value(b)
        if x is None or y is None:
            return False
        difference, place = abs(x - y), max(_last_place(number, by) for number, by in zip(written, (x, y), strict=True))
        return difference == 0 or difference < place and difference <= TOLERANCE * max(abs(x), abs(y))
    a, b = (x.replace(lambda e: isinstance(e, Float), _value) for x in (a, b))
    if a == b:  # infinite ones too
        return True
    difference = a - b
    if difference.is_Rational or difference.free_symbols:
        return difference == 0
    gap = abs(difference.evalf(15, maxn=DIGITS))  # infinite, or no number, if one of them is
    return bool(gap.is_finite and gap <= Rational(1, 10 ** (DIGITS - 50)) * max(abs(a.evalf()), abs(b.evalf())))


def _value(number: Basic) -> Rational | None:
    """A real number, exact if it is a decimal or a fraction, else to 40 digits; None of what is none."""
    if number.is_Rational:
        return number
    value = number.evalf(40) if number.is_number and not isinstance(number, Float) else number
    return Rational(str(value)) if isinstance(value, Float) else None


def _last_place(number: Basic, value: Rational) -> Rational:
    """One unit of the last place of a decimal as it is written, 3.14 or 6.02 times a power of ten; 0 of what holds no decimal."""
    decimals = number.atoms(Float)
    if len(decimals) != 1 or not (decimal := _value(*decimals)):
        return Rational(bool(decimals), 10)
    return Rational(10) ** min(Decimal(str(*decimals)).normalize().as_tuple().exponent, -1) * abs(value / decimal)


grader.sympy_numeric_eq = numbers_equal  # what everything in math-verify that holds numbers, sets and intervals too, goes through
