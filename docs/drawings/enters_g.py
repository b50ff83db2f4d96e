"""What enters G: noise, one noisy layer an image, one noisy layer for K classes (the idea of the paper's Fig. 2)."""

import numpy as np
from style import FROZEN, INK, RANDOM, TRAINED, Canvas, save

CLASSES = ("cat", "dog", "ship")
IMAGES = 2 * len(CLASSES)
STEP = 4.5  # from one column to the next
COLOURS = ("#8c4a1c", "#1f5f8b", "#3d7a37")  # of the images, a class each


def column(left: float, k: int) -> float:
    """The middle of image k's column in a panel that begins at `left`."""
    return left + 2.85 + STEP * k


def image(canvas: Canvas, x: float, y: float, colour: str, rng: np.random.Generator) -> None:
    """A stand-in for an image: sixteen shades of its class's colour."""
    canvas.axes.imshow(
        np.ones((4, 4, 3)) * [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)],
        alpha=rng.uniform(0.15, 1, (4, 4)),
        extent=(x - 1.7, x + 1.7, y, y + 3.4),
        aspect="auto",
        interpolation="nearest",
    )
    canvas.axes.plot(
        [x - 1.7, x + 1.7, x + 1.7, x - 1.7, x - 1.7], [y, y, y + 3.4, y + 3.4, y], color=INK, linewidth=0.8
    )


def panel(canvas: Canvas, left: float, title: str, layers: int, told: str, rng: np.random.Generator) -> None:
    """A way into G: without layers the vectors themselves are random, else each layer serves some of the images."""
    canvas.panel(left, 6, 28.2, 38.5, title)
    for k in range(IMAGES):
        x = column(left, k)
        if layers:
            canvas.box(x - 2.05, 35.5, 4.1, 3.6, CLASSES[k % 3], FROZEN)
            canvas.arrow((x, 35.5), (x, 32.6))
            canvas.arrow((x, 29), (x, 26.1))
        else:
            canvas.box(x - 2.05, 29, 4.1, 3.6, f"$z_{k + 1}$", RANDOM)
            canvas.arrow((x, 29), (x, 26.1))
        canvas.arrow((x, 22.3), (x, 19.4))
        image(canvas, x, 16, COLOURS[k % 3], rng)
    for layer in range(layers):
        served = IMAGES // layers
        first, last = column(left, layer * served), column(left, layer * served + served - 1)
        canvas.box(first - 2.05, 29, last - first + 4.1, 3.6, rf"$\mathcal{{Z}}_{layer + 1}$", RANDOM)
    canvas.box(left + 0.8, 22.3, 26.6, 3.8, "$G$", TRAINED, size=12)
    canvas.words(left + 14.1, 10.6, told)


def draw() -> Canvas:
    canvas, rng = Canvas(45), np.random.default_rng(0)
    panel(canvas, 0.6, "z", 0, "a random vector for every image;\nno name of a class enters", rng)
    layers = "drawn anew every round,\n"
    panel(canvas, 30.9, "one layer an image (1-to-1)", IMAGES, f"B layers, {layers}$B \\cdot e \\cdot r$ weights", rng)
    told = f"$\\lceil B/K \\rceil$ layers, {layers}$\\lceil B/K \\rceil \\cdot e \\cdot r$ weights"
    panel(canvas, 61.2, "one layer for K classes (K-to-1)", 2, told, rng)
    canvas.key(2, 2.7, {"the name's vector: constant": FROZEN, "drawn at random": RANDOM, "trained": TRAINED}, 30)
    return canvas


if __name__ == "__main__":
    save(draw(), __file__)
