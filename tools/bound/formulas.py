"""TeX to MathML by the MathJax that the site ships, so that an edition shows the site's formulas."""

import re
import unicodedata

from bs4 import Tag

from tools.bound.pages import Page, element, parse

CONVERT = """async (formulas) => {
  await MathJax.startup.promise;
  const found = [];
  for (const [tex, display] of formulas) found.push(await MathJax.tex2mmlPromise(tex, {display}));
  return found;
}"""
ALPHABETS = {"bold": "BOLD", "double-struck": "DOUBLE-STRUCK", "script": "SCRIPT", "fraktur": "FRAKTUR",
             "bold-italic": "BOLD ITALIC", "bold-script": "BOLD SCRIPT"}  # fmt: skip


def letter(sign: str, alphabet: str) -> str:
    """A letter in another alphabet of Unicode, since readers ignore `mathvariant`.

    >>> letter("R", "DOUBLE-STRUCK"), letter("x", "BOLD"), letter("0", "BOLD")
    ('ℝ', '𝐱', '𝟎')
    """
    name = unicodedata.name(sign, "").replace("LATIN ", "").replace("GREEK ", "")
    name = name.replace("LETTER ", "")
    for wanted in (f"{alphabet} {name}", f"MATHEMATICAL {alphabet} {name}"):
        try:
            return unicodedata.lookup(wanted)
        except KeyError:
            continue
    return sign


def untagged(tex: str) -> tuple[str, str]:
    r"""A formula without its number, and the number.

    >>> untagged(r"x = 1 \tag{3}")
    ('x = 1', '3')
    """
    number = re.search(r"\\tag\{([^}]*)\}", tex)
    return (tex.replace(number[0], "").strip(), number[1]) if number else (tex.strip(), "")


def tidy(math: Tag, tex: str) -> Tag:
    """Portable MathML: no attributes of MathJax's own, letters of other alphabets as signs."""
    math["alttext"] = tex
    for found in [math, *math.find_all(True)]:
        found.attrs = {
            k: v for k, v in found.attrs.items() if not k.startswith("data-") and k != "class"
        }
        alphabet = ALPHABETS.get(found.attrs.get("mathvariant", ""))
        if alphabet and found.string:
            found.string = "".join(letter(sign, alphabet) for sign in found.string)
            del found["mathvariant"]
    return math


def to_mathml(pages: list[Page], tab) -> int:
    """Set all formulas of the pages as MathML; how many there were. `tab` shows a page of the site."""
    places = [place for page in pages for place in page.body.select(".math")]
    sources = [
        untagged(re.sub(r"^\s*\\[(\[]|\\[)\]]\s*$", "", place.get_text())) for place in places
    ]
    display = [place.name == "div" for place in places]
    asked = [[tex, block] for (tex, _), block in zip(sources, display)]
    for place, (tex, number), block, text in zip(
        places, sources, display, tab.evaluate(CONVERT, asked)
    ):
        math = parse(text).find("math")
        if math is None or math.find("merror"):
            raise ValueError(f"formula: TeX that MathJax reads was wanted, got {tex!r}")
        box = element("div" if block else "span", **{"class": "equation" if block else "formula"})
        if number:
            box.append(element("span", f"({number})", **{"class": "number"}))
        box.append(tidy(math, tex))
        place.replace_with(box)
    return len(places)
