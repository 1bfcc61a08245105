"""The public names of every room, read from its door when the book is built."""

import importlib
import inspect
import itertools
import re
import sys
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive
from numpy.typing import ArrayLike
from root import ROOT
from sphinx.util.inspect import signature, stringify_signature
from sphinx.util.typing import stringify_annotation

from collage.page.claims import claims
from collage.page.records import REPOSITORY

WIDTH = 76  # characters of a signature on one line


def door(room):
    return importlib.import_module(f"collage.{room}")


def parameters(text):
    """The parts of "(a: dict[str, int], *, b)" between the commas that are in no other bracket."""
    parts, depth, start = [], 0, 1
    for i, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if (letter == "," and depth == 1) or (letter == ")" and depth == 0):
            parts.append(text[start:i].strip())
            start = i + 1
            if depth == 0:
                break
    return [part for part in parts if part], text[start:]


def plain(text):
    """A signature or type with short names: Tensor for ~torch.Tensor, a function's name for its repr.

    >>> plain("(x: ~torch.Tensor, f: ~typing.Any = <function relu>)")
    '(x: Tensor, f: Any = relu)'
    """
    return re.sub(r"<function (\w+)>", r"\1", re.sub(r"~(\w+\.)*", "", text))


ARRAYS = plain(stringify_annotation(ArrayLike, "smart"))  # what numpy's name for it stands for


def call(name, member, bound=False):
    """How something is called, types included; one parameter a line where one line is too short."""
    try:
        text = stringify_signature(
            signature(member, bound_method=bound),
            show_return_annotation=not inspect.isclass(member),
            unqualified_typehints=True,
        )
    except (TypeError, ValueError):
        return name
    inside, result = parameters(plain(text).replace(ARRAYS, "ArrayLike"))
    line = f"{name}({', '.join(inside)}){result}"
    if len(line) <= WIDTH:
        return line
    return f"{name}(\n" + "".join(f"    {part},\n" for part in inside) + f"){result}"


def described(member):
    """The docstring; none for a constant, nor where Python wrote one that only repeats the call."""
    if not (inspect.isclass(member) or inspect.isroutine(member) or inspect.ismodule(member)):
        return ""
    text = inspect.cleandoc(member.__doc__ or "")
    return "" if text.startswith(f"{member.__name__}(") and "\n" not in text else text


def methods(member):
    """(signature, docstring) of a class's own public methods and properties, in their order."""
    for name, found in vars(member).items() if inspect.isclass(member) else ():
        function = getattr(found, "__func__", getattr(found, "fget", found))
        if name.startswith("_") or not inspect.isfunction(function):
            continue
        text = name if isinstance(found, property) else call(
            name, function, not isinstance(found, staticmethod))  # fmt: skip
        yield text, inspect.cleandoc(function.__doc__ or "")


def code(text, language="python"):
    return nodes.literal_block(text, text, language=language, force=True, classes=["api"])


def prose(text):
    """A paragraph; what stands in backticks is code."""
    parts = re.split(r"`([^`]+)`", text.replace("\n", " "))
    return nodes.paragraph("", "", *(nodes.literal(part, part) if i % 2 else nodes.Text(part)
                                     for i, part in enumerate(parts)))  # fmt: skip


def link(text, address, literal=False, inside=False):
    reference = nodes.reference("", "", refuri=address, internal=inside)
    reference += nodes.literal(text, text) if literal else nodes.Text(text)
    return reference


def source(path, text=None):
    """A link to a file of the repository."""
    return link(text or path, f"{REPOSITORY}/blob/main/{path}", literal=True)


def table(heads, rows, widths, name="api"):
    """A table; a cell is a list of nodes, name a class for the style sheet."""
    group = nodes.tgroup(cols=len(heads))
    group += [nodes.colspec(colwidth=width) for width in widths]
    for part, lines in ((nodes.thead(), [[[nodes.Text(h)] for h in heads]]), (nodes.tbody(), rows)):
        for line in lines:
            row = nodes.row()
            for cell in line:
                row += nodes.entry("", nodes.paragraph("", "", *cell))
            part += row
        group += part
    return nodes.table("", group, classes=[name])


def files(folder, text):
    """The table in a door's docstring, a file a line, with a link to each."""
    rows = re.findall(r"^([\w/]+) {2,}(\S.*)$", text, re.M)
    return table(("file", "what is in it"), [
        ([source(f"collage/{folder}/{name}.py", f"{name}.py")], [nodes.Text(what)])
        for name, what in rows], (25, 75))  # fmt: skip


def paper(room, text):
    """The first line of a door's docstring, its paper and its chapter made links."""
    line = nodes.paragraph()
    for part in re.split(r"(arXiv \d{4}\.\d{4,5}|chapter \d+)", text):
        kind, _, number = part.partition(" ")
        if kind == "arXiv":
            line += link(part, f"https://arxiv.org/abs/{number}")
        elif kind == "chapter" and number.isdigit():
            line += link(part, f"{room}.html", inside=True)
        else:
            line += nodes.Text(part)
    return line


def shape(room, name, member):
    """What a name is: a call, a module, or the value of a constant."""
    if inspect.ismodule(member):
        return f"from collage.{room} import {name}"
    if callable(member):
        return call(name, member)
    return f"{name} = {member!r}" if len(repr(member)) < 200 else f"{name}: {type(member).__name__}"


def is_prose(paragraph):
    """Whether a paragraph of a docstring is sentences, which may flow, and no formula, table or code."""
    if re.search(r"^ |^>>>|\S {2,}\S", paragraph, re.M):
        return False
    words = [word.strip(".,;:()'\"`") for word in paragraph.split()]
    return sum(word.isalpha() and len(word) > 1 for word in words) > 0.55 * len(words)


def docstring(text):
    """Its sentences as paragraphs that flow; formulas, tables and examples as they are set."""
    for sentences, group in itertools.groupby(filter(None, text.split("\n\n")), is_prose):
        if sentences:
            yield from map(prose, group)
        else:
            yield code("\n\n".join(group), "text")


def parts(text):
    """A docstring's first lines, its examples, and the rest."""
    first, *more = text.split("\n\n")
    examples = [part for part in more if part.startswith(">>> ")]
    return first, "\n".join(examples), "\n\n".join(part for part in more if part not in examples)


def fold(text, own):
    """The rest of a docstring and the methods, folded; nothing where the first lines say all."""
    if not text and not own:
        return []
    label = ["More"] * bool(text)
    label += [f"{len(own)} method{'s' * (len(own) > 1)}"] * bool(own)
    blocks = [*docstring(text)] if text else []
    for line, words in own:
        blocks += [code(line), *docstring(words)]
    begin = f'<details class="api"><summary>{" and ".join(label)}</summary>'
    return [
        nodes.raw("", begin, format="html"),
        *blocks,
        nodes.raw("", "</details>", format="html"),
    ]


def entry(room, name):
    """A section on one public name."""
    member = getattr(door(room), name)
    section = nodes.section(ids=[f"collage.{room}.{name}"], classes=["api"])
    section += nodes.title("", "", nodes.literal(name, name))
    section += code(shape(room, name, member))
    first, examples, more = parts(described(member))
    section += [prose(first)] if first else []
    section += [code(examples, "pycon")] if examples else []
    section += fold(more, list(methods(member)))
    module = member.__name__ if inspect.ismodule(member) else getattr(member, "__module__", "")
    if module.startswith("collage."):
        path = Path(sys.modules[module].__file__).relative_to(ROOT)
        section += nodes.paragraph("", "", source(str(path)), classes=["api-source"])
    return section


class Api(Directive):
    """Every room: a table of all names, then a section each."""

    def run(self):
        rows, sections = [], []
        for room, chapter in claims().items():
            words = inspect.cleandoc(door(room).__doc__)
            names = [
                link(name, f"#collage.{room}.{name}", True, True) for name in door(room).__all__
            ]
            apart = [node for name in names for node in (name, nodes.Text(" "))][:-1]
            rows.append(([link(f"{room}", f"#collage.{room}", True, True)], apart))
            section = nodes.section(ids=[f"collage.{room}"], classes=["api"])
            section += nodes.title(
                "", f"{chapter['number']} · ", nodes.literal("", f"collage.{room}")
            )
            section += paper(room, words.split("\n\n")[0].replace("\n", " "))
            section += files(room, words)
            section += [entry(room, name) for name in door(room).__all__]
            sections.append(section)
        shared = nodes.section(ids=["collage.common"], classes=["api"])
        words = inspect.cleandoc(door("common").__doc__)
        shared += nodes.title("", "Shared · ", nodes.literal("", "collage.common"))
        shared += [prose(words.split("\n\n")[0]), files("common", words)]
        return [table(("room", "public names"), rows, (25, 75), "api-names"), *sections, shared]


def setup(app):
    app.add_directive("api", Api)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
