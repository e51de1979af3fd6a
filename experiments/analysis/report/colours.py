"""The colours of the report in its light and its dark theme, and how well they are seen."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Mapping

from experiments.analysis.looks import COLOURS, GREY, OTHER_COLOURS, TASK_COLOURS

LIGHT, DARK = "#ffffff", "#15181e"  # the grounds of the two themes, also in page.css
LINE_CONTRAST = 3.0  # what WCAG 2 asks of lines and dots
DARK_CONTRAST = 4.5  # of coloured lines on the dark ground, where thin lines look thinner
PALE_CONTRAST = 9.0  # beyond it, colours on the dark ground would be so pale that their hues get lost


def themes(colours: Iterable[str], opacities: Iterable[float]) -> dict[str, dict[str, str]]:
    """For each theme, the colours that it shows for those of the figures.

    Args:
        colours: further colours `#rrggbb` besides those of `looks.py`.
        opacities: with which colours are drawn by `faded`.
    """
    all_colours = dict.fromkeys((*colours, *COLOURS.values(), *OTHER_COLOURS, *TASK_COLOURS, GREY))
    opacities = tuple(opacities)
    found: dict[str, dict[str, str]] = {}
    for theme, shown in (("light", on_light), ("dark", on_dark)):
        solid = {colour: shown(colour) for colour in all_colours}
        found[theme] = _changed(solid) | _changed(
            {faded(colour, opacity): faded(solid[colour], opacity) for colour in solid for opacity in opacities}
        )
    return found


def _changed(colours: Mapping[str, str]) -> dict[str, str]:
    return {colour: shown for colour, shown in colours.items() if shown.lower() != colour.lower()}


def on_light(colour: str) -> str:
    """A colour `#rrggbb` for the white ground: made just dark enough to be seen, and left as it is if it is seen."""
    return _moved(colour, 0.0, LIGHT, LINE_CONTRAST)


def on_dark(colour: str) -> str:
    """A colour `#rrggbb` for the dark ground.

    Greys are inverted. Of other colours the hue and the saturation stay, and those that are dark become light: they
    stand out from the dark ground about as much as they do from the white one. So two colours of one hue that differ
    in their lightness still do.
    """
    parts = rgb(colour)
    if len(set(parts)) == 1:
        return _moved(_hex(255 - part for part in parts), 1.0, DARK, LINE_CONTRAST)
    return _moved(colour, 1.0, DARK, max(DARK_CONTRAST, min(contrast(colour, LIGHT), PALE_CONTRAST)))


def _moved(colour: str, end: float, ground: str, least: float) -> str:
    """The colour with its lightness moved towards `end` until its contrast on `ground` is at least `least`."""
    if contrast(colour, ground) >= least:
        return colour
    hue, lightness, saturation = colorsys.rgb_to_hls(*(part / 255 for part in rgb(colour)))
    for step in range(101):
        mixed = colorsys.hls_to_rgb(hue, lightness + (end - lightness) * step / 100, saturation)
        found = _hex(round(255 * part) for part in mixed)
        if contrast(found, ground) >= least:
            break
    return found


def contrast(colour: str, other: str) -> float:
    """The contrast ratio of two colours, from 1 to 21 (WCAG 2)."""
    dark, light = sorted(map(_luminance, (colour, other)))
    return (light + 0.05) / (dark + 0.05)


def faded(colour: str, opacity: float) -> str:
    """`#rrggbb` as a CSS colour of this opacity."""
    red, green, blue = rgb(colour)
    return f"rgba({red}, {green}, {blue}, {opacity:g})"


def rgb(colour: str) -> tuple[int, int, int]:
    """The parts of `#rrggbb`, each from 0 to 255."""
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue


def _luminance(colour: str) -> float:
    shares = (part / 255 for part in rgb(colour))
    linear = (share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares)
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _hex(parts: Iterable[int]) -> str:
    return "#" + bytes(parts).hex()
