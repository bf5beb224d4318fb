"""A Matplotlib figure as three things: SVG inside the page, and SVG and PNG beside it.

Matplotlib, and not a plotting library of the browser: one drawing then serves page, disk and print, the page weighs
some hundred kilobytes where plotly's script alone has 4.5 megabytes, and the bytes are the same every time. What a
page needs beyond that (themes, tooltips, hiding a variant) is attached to the SVG here: colours become CSS variables,
and whatever was drawn for a variant says so in `data-variant`.
"""

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe & Ito, "Color Universal Design" (2008), on neutral greys. style.css gives each name a value for the dark theme.
COLOURS = {
    "ink": "#23272e",
    "muted": "#646b76",
    "line": "#dfe2e7",
    "surface": "#fefefe",
    "full": "#3d434c",
    "int8": "#0072b2",
    "int4": "#d55e00",
    "other": "#8c4a79",
    "claim": "#cc79a7",
    "text-encoder": "#e69f00",
    "unet": "#56b4e9",
    "vae": "#009e73",
}
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "text.parse_math": False,  # a $ in a variant's name is a dollar sign
    "text.color": COLOURS["ink"],
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelcolor": COLOURS["muted"],
    "axes.edgecolor": COLOURS["line"],
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["ink"],
    "ytick.labelcolor": COLOURS["ink"],
    "figure.facecolor": COLOURS["surface"],
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "none",
    "svg.hashsalt": "optsd",
}
WIDTH = 4.7  # inches; 9 pixels are left of a letter's 8.5 points when a phone is 390 pixels wide
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"


@dataclass(frozen=True)
class Drawing:
    """`name` is its file's, without the ending; `words` say what it shows to somebody who cannot see it."""

    name: str
    section: str
    title: str
    words: str
    inline: str  # SVG for the page, transparent, coloured by CSS variables
    svg: str
    png: bytes


def new_figure(height: float) -> Figure:
    """A figure of the report's width; `height` in inches. It belongs to no window and no global state."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def finish(figure: Figure, name: str, section: str, title: str, words: str, labels: Mapping[str, str]) -> Drawing:
    """Render. `labels`: what the artists with the gid `point-N` are called when the pointer or the focus is on them."""
    drawn, pixels = io.StringIO(), io.BytesIO()
    # Sizes and colours of text are taken from the style when a figure is drawn, not only when it is made.
    with mpl.rc_context(STYLE):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # it has done its work, and would do it again for every file
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
        figure.savefig(pixels, format="png", dpi=160, metadata={"Software": None})
    svg = drawn.getvalue()
    return Drawing(name, section, title, words, _inline(svg, name, words, labels), svg, pixels.getvalue())


def printable(name: str) -> str:
    """A name without the characters that XML forbids."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)


def _inline(svg: str, name: str, words: str, labels: Mapping[str, str]) -> str:
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(svg)
    for child in list(root):
        rules = child.find(f"{{{_SVG}}}style") is not None  # they would hold for every element of the page
        if rules or child.tag == f"{{{_SVG}}}metadata":
            root.remove(child)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib.update({"class": "plot", "role": "group", "aria-label": words})
    for element in root.iter():
        _adapt(element, name, labels)
    return ElementTree.tostring(root, encoding="unicode")


def _adapt(element: ElementTree.Element, name: str, labels: Mapping[str, str]) -> None:
    # Matplotlib counts its ids anew in every figure; on the page they must differ.
    identity = element.attrib.pop("id", "")
    marked = re.fullmatch(r"(point|part)-(\d+)", identity)
    if marked:
        element.set("data-variant", marked[2])
        if marked[1] == "point" and identity in labels:
            element.attrib.update({"tabindex": "0", "role": "img", "aria-label": labels[identity], "class": "point"})
    elif identity == "patch_1":
        element.set("class", "paper")
    elif element.tag.endswith(("path", "clipPath", "g")) and re.fullmatch(r"[a-z]+[0-9a-f]{8,}", identity):
        element.set("id", f"{name}-{identity}")
    for key, value in element.attrib.items():
        if key.endswith("href") and value.startswith("#"):
            element.set(key, f"#{name}-{value[1:]}")
        elif key == "clip-path":
            element.set(key, value.replace("url(#", f"url(#{name}-"))
        elif key in ("d", "transform", "x", "y", "points"):
            element.set(key, re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", value))
        elif key == "style":
            element.set(key, _restyle(value))
    if not (element.text or "").strip():
        element.text = None
    element.tail = None  # Matplotlib's text elements hold plain text: between elements there is only white space


def _restyle(style: str) -> str:
    for token, colour in COLOURS.items():
        style = style.replace(colour, f"var(--{token})")
    return style.replace("'DejaVu Sans', sans-serif", "var(--font)")
