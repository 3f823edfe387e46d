"""A picture over the checkpoints of a run, as a GIF."""

import io

from PIL import Image

from robust_nc.reports.panels import Picture

FRAME, LAST_FRAME = 700, 2500  # milliseconds
DPI = 160  # a width of 880 pixels


def gif_of(picture: Picture) -> bytes:
    """A frame for each epoch, in an endless loop which rests at the last."""
    frames = []
    for epoch in picture.epochs:
        content = io.BytesIO()
        picture.paint(epoch, animated=True).savefig(content, format="png", dpi=DPI)
        frames.append(Image.open(content).convert("P", palette=Image.Palette.ADAPTIVE))
    durations = [*(FRAME for _ in frames[1:]), LAST_FRAME]
    animation = io.BytesIO()
    frames[0].save(
        animation, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0
    )
    return animation.getvalue()
