"""SVG to PNG, on white, without the fonts of this machine: equal drawings give equal bytes."""

from __future__ import annotations

from pipeline.errors import DataError


class DrawingError(DataError):
    """A drawing cannot be rendered; others can."""


def render(svg: str, side: int | None = None) -> bytes:
    """PNG of an SVG document, ``side`` pixels wide where given (height by its own aspect).

    Raises DataError when the renderer is missing, DrawingError when it does not understand the drawing.
    """
    try:
        import resvg_py
    except ModuleNotFoundError as error:
        raise DataError("the SVG renderer is missing; install it with: pip install 'unisphere[bundle]'") from error
    try:
        png = resvg_py.svg_to_bytes(svg_string=svg, background="#ffffff", skip_system_fonts=True, width=side)
    except Exception as error:  # resvg raises ValueError for most faults, and panics for some
        raise DrawingError(f"a drawing cannot be rendered: {error}; it begins {svg[:80]!r}") from error
    return bytes(png)
