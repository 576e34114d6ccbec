"""Pictures as SVG text: axes, marks and words. Every colour is a class that the page gives one to, so that it follows the page's scheme.

A unit is a pixel of a picture that is 360 wide, as a phone shows it; larger screens scale it, and letters stay letters.
"""
import math
from dataclasses import dataclass
from itertools import count
from xml.etree import ElementTree

WIDTH = 360
LETTER = 5.4                        # width of a letter of the page's small type, at most on average
numbers = count(1)


@dataclass(frozen=True)
class Axis:
    """Values from low to high, drawn from `start` to `stop`."""
    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value):
        low, high, value = (math.log(one) if self.log else one for one in (self.low, self.high, value))
        return round(self.start + (value - low) / ((high - low) or 1) * (self.stop - self.start), 1)

    def ticks(self, about=5):
        """Values with round names, about so many, all within the axis."""
        if self.log:
            for steps in ((1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
                decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
                found = [step * 10.0**decade for decade in decades for step in steps if self.low <= step * 10.0**decade <= self.high]
                if len(found) <= 1.4 * about:
                    break
            if len(found) >= 2:
                return found
        step = (self.high - self.low) / about or 1
        step = next(one for one in (unit * 10.0**math.floor(math.log10(step)) for unit in (1, 2, 2.5, 5, 10)) if one >= step * 0.999)
        return [step * n for n in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)]


def around(values, start, stop, log=False, room=0.04, zero=False):
    """The Axis that holds the values, with some room at both ends; zero: it begins at 0."""
    low, high = min(values), max(values)
    if log:
        extra = (high / low) ** room * 1.02
        return Axis(low / extra, high * extra, start, stop, True)
    extra = room * (high - low) or room * abs(high) or 1.0
    return Axis(0.0 if zero else low - extra, high + extra, start, stop)


def picture(height, title, description):
    """An empty picture; the title and the description are its alternative text."""
    name = f"p{next(numbers)}"
    root = ElementTree.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {WIDTH} {height:g}", "role": "img",
                                       "aria-labelledby": f"{name}t {name}d"})
    ElementTree.SubElement(root, "title", id=f"{name}t").text = title
    ElementTree.SubElement(root, "desc", id=f"{name}d").text = description
    return root


def text_of(root):
    return ElementTree.tostring(root, encoding="unicode")


def add(parent, kind, look="", **attributes):
    """An element; names with _ for -, numbers as they are."""
    named = {name.strip("_").replace("_", "-"): f"{value:g}" if isinstance(value, (int, float)) else value for name, value in attributes.items()}
    return ElementTree.SubElement(parent, kind, {**({"class": look} if look else {}), **named})


def words(parent, x, y, text, look="", anchor="start"):
    add(parent, "text", look, x=x, y=y, **({} if anchor == "start" else {"text_anchor": anchor})).text = text


def line(parent, x1, y1, x2, y2, look):
    add(parent, "line", look, x1=x1, y1=y1, x2=x2, y2=y2)


def path(parent, points, look):
    """A line through points."""
    add(parent, "path", look, d="M" + "L".join(f"{x:g} {y:g}" for x, y in points))


def dots(parent, points, look):
    """A dot on every point; those on the same half of a pixel are one, which looks the same and takes less."""
    places = dict.fromkeys((round(2 * x) / 2, round(2 * y) / 2) for x, y in points)
    add(parent, "path", look, d="".join(f"M{x:g} {y:g}h0" for x, y in places))


def named(value):
    """A tick's value in the fewest letters."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def across(parent, axis, y, name="", top=None, about=5):
    """A horizontal axis below y, its lines up to `top`, its name at the right end under it."""
    for value in axis.ticks(about):
        if top is not None:
            line(parent, axis(value), top, axis(value), y, "grid")
        words(parent, axis(value), y + 12, named(value), "tick", "middle")
    line(parent, axis.start, y, axis.stop, y, "frame")
    if name:
        words(parent, axis.stop, y + 24, name, "tick", "end")


def upward(parent, axis, left, right, name="", about=4):
    """A vertical axis at the left, its lines to the right, its name above it."""
    for value in axis.ticks(about):
        line(parent, left, axis(value), right, axis(value), "grid")
        words(parent, left - 4, axis(value) + 3, named(value), "tick", "end")
    if name:
        words(parent, left, min(axis.start, axis.stop) - 6, name, "tick")


class Labels:
    """Words beside points that keep clear of one another; where no place is free, the least bad one."""

    PLACES = [(x, y, anchor) for away in range(0, 60, 6) for x, y, anchor in (
        (6, 3 - away, "start"), (-6, 3 - away, "end"), (6, 3 + away, "start"), (-6, 3 + away, "end"),
        (0, -7 - away, "middle"), (0, 13 + away, "middle"), (6 + away, 3, "start"), (-6 - away, 3, "end"))]

    def __init__(self, parent, left, right, top, bottom, points):
        self.parent, self.limits = parent, (left, right, top, bottom)
        self.taken = [(x - 4, x + 4, y - 4, y + 4) for x, y in points]

    def put(self, x, y, text, look):
        _, box, at, level, anchor = min((self.place(x, y, LETTER * len(text), *place) for place in self.PLACES), key=lambda found: found[0])
        self.taken.append(box)
        if abs(at - x) > 10 or abs(level - 3 - y) > 12:
            line(self.parent, x, y, at, level - 3, "leader")
        words(self.parent, at, level, text, look, anchor)

    def place(self, x, y, width, dx, dy, anchor):
        """(how bad it is, the box that it takes, where the words stand)."""
        begin = x + dx - width * {"start": 0, "middle": 0.5, "end": 1}[anchor]
        box = begin, begin + width, y + dy - 8, y + dy + 2
        left, right, top, bottom = self.limits
        outside = max(0, left - box[0]) + max(0, box[1] - right) + max(0, top - box[2]) + max(0, box[3] - bottom)
        return 50 * outside + 2 * sum(overlap(box, other) for other in self.taken) + abs(dx) + abs(dy - 3), box, x + dx, y + dy, anchor


def beside(parent, ends, x, top, bottom):
    """Words at x in the order of the ends of what they name, each with a line to it; ends: [(x, y, words, look)]."""
    ordered = sorted(ends, key=lambda end: end[1])
    level = top - 11
    for place, (from_x, y, text, look) in enumerate(ordered):
        level = min(max(level + 11, y), bottom - 11 * (len(ordered) - 1 - place))
        line(parent, from_x + 4, y, x - 3, level, "leader")
        words(parent, x, level + 3, text, look)


def overlap(one, other):
    return max(0, min(one[1], other[1]) - max(one[0], other[0])) * max(0, min(one[3], other[3]) - max(one[2], other[2]))
