"""Who plays: T, S, Z, G, M and the text encoder, who is frozen, and where each loss hangs (the idea of Fig. 4)."""

from style import DATA, FROZEN, GRADIENT, LOSS, RANDOM, TRAINED, Canvas, save


def phase1(canvas: Canvas) -> None:
    canvas.panel(0.6, 24, 88.8, 37.4, "Phase 1: $\\mathcal{Z}$ and $G$ learn to make images")
    canvas.panel(2, 30, 19, 27, "once, beforehand", dashed=True)
    canvas.box(3.5, 48.5, 16, 4.5, "names of the classes", DATA)
    canvas.arrow((11.5, 48.5), (11.5, 45.6))
    canvas.box(3.5, 39.6, 16, 6, "text encoder C\nfrozen, asked once", FROZEN)
    canvas.arrow((11.5, 39.6), (11.5, 36.7))
    canvas.box(3.5, 31.2, 16, 5.5, "pool $\\mathcal{P}$\na vector a class", DATA)
    canvas.arrow((19.5, 34), (25, 34))
    canvas.words(22.6, 35.8, "$e_y$")
    canvas.box(25, 30.5, 13, 7, "noisy layer $\\mathcal{Z}$\nredrawn every\nround, trained", RANDOM)
    canvas.arrow((38, 34), (42, 34))
    canvas.box(42, 30.5, 9, 7, "$G$\ntrained", TRAINED)
    canvas.arrow((51, 34), (54.5, 34))
    canvas.box(54.5, 31.5, 7, 5, "$\\hat x$\nimages", DATA)
    canvas.arrow((58, 36.5), (58, 46.5), (63.5, 46.5))
    canvas.arrow((61.5, 34), (63.5, 34))
    canvas.box(63.5, 43.5, 9, 6, "$T$\nfrozen", FROZEN)
    canvas.box(63.5, 31, 9, 6, "$S$\nfrozen", FROZEN)
    canvas.box(76, 49.6, 12.5, 5, "$\\mathcal{L}_{CE}$\n$T$ names class $y$", LOSS)
    canvas.box(76, 42.8, 12.5, 5, "$\\mathcal{L}_{BN}$\n$T$'s statistics", LOSS)
    canvas.box(76, 34.8, 12.5, 5, "$-\\mathcal{L}_{KL}$\n$S$ differs from $T$", LOSS)
    canvas.arrow((72.5, 47.8), (74.2, 47.8), (74.2, 52), (76, 52))
    canvas.arrow((72.5, 45.4), (76, 45.4))
    canvas.arrow((68, 43.5), (68, 38.7), (76, 38.7))
    canvas.arrow((72.5, 35.6), (76, 35.6))
    canvas.arrow((82.25, 54.6), (82.25, 57.2), (46.5, 57.2), (46.5, 37.5), gradient=True)
    canvas.arrow((46.5, 57.2), (31.5, 57.2), (31.5, 37.5), gradient=True)
    canvas.words(48, 55.2, "gradient of $\\mathcal{L}_Z$, the sum of the three", across="left", colour=GRADIENT)


def phase2(canvas: Canvas) -> None:
    canvas.panel(0.6, 0.6, 88.8, 21.4, "Phase 2: $S$ learns $T$'s answers")
    canvas.arrow((58, 31.5), (58, 13.5))
    canvas.words(56.8, 27, "the batch with the lowest $\\mathcal{L}_Z$ is kept", across="right")
    canvas.box(49.5, 7.5, 11, 6, "memory $\\mathcal{M}$\nall images", DATA)
    canvas.arrow((60.5, 11.7), (62, 11.7), (62, 15.8), (64.5, 15.8))
    canvas.arrow((60.5, 9.3), (62, 9.3), (62, 5.2), (64.5, 5.2))
    canvas.box(64.5, 13, 9, 5.6, "$T$\nfrozen", FROZEN)
    canvas.box(64.5, 2.4, 9, 5.6, "$S$\ntrained", TRAINED)
    canvas.box(77, 8, 11.5, 5, "$\\mathcal{L}_S$\n$S$ as $T$ says", LOSS)
    canvas.arrow((73.5, 15.8), (80, 15.8), (80, 13))
    canvas.arrow((73.5, 6.2), (80, 6.2), (80, 8))
    canvas.arrow((86, 8), (86, 3.6), (73.5, 3.6), gradient=True)


def draw() -> Canvas:
    canvas = Canvas(62)
    phase1(canvas)
    phase2(canvas)
    canvas.key(2.5, 13.8, {"frozen": FROZEN, "trained": TRAINED}, 22)
    canvas.key(2.5, 10.2, {"random, then trained": RANDOM, "a loss": LOSS}, 22)
    canvas.arrow((2.5, 6.4), (6.5, 6.4))
    canvas.words(7.3, 6.4, "images and answers", across="left")
    canvas.arrow((2.5, 3), (6.5, 3), gradient=True)
    canvas.words(7.3, 3, "a gradient, to who is trained by it", across="left")
    return canvas


if __name__ == "__main__":
    save(draw(), __file__)
