"""A picture of many images with captions."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

COLUMNS, SIDE, CAPTION = 8, 128, 28
"""Layout in pixels."""
MAX_LETTERS = 20


def contact_sheet(sections: dict[str, Sequence[tuple[Image.Image, Sequence[str]]]]) -> Image.Image:
    """Draw images with their captions, in sections below one another.

    Args:
        sections: by its title, the images of each section, at most SIDE x SIDE, and up to two lines below each.
    """
    heights = [CAPTION + -(-len(items) // COLUMNS) * (SIDE + CAPTION) for items in sections.values()]
    sheet = Image.new("RGB", (COLUMNS * SIDE, sum(heights)), "white")
    draw, top = ImageDraw.Draw(sheet), 0
    for (title, items), height in zip(sections.items(), heights, strict=True):
        draw.text((4, top + 8), title, "black")
        for index, (image, lines) in enumerate(items):
            x, y = index % COLUMNS * SIDE, top + CAPTION + index // COLUMNS * (SIDE + CAPTION)
            sheet.paste(image, (x, y))
            draw.text((x + 2, y + SIDE), "\n".join(line[:MAX_LETTERS] for line in lines), "black", font_size=10)
        top += height
    return sheet
