"""Algorithm 1 as a loop: what each of its lines does, in which loop it stands, and how M joins the two phases."""

from style import DATA, RANDOM, TRAINED, Canvas, save


def draw() -> Canvas:
    canvas = Canvas(48)
    canvas.box(2, 41.5, 15.5, 5, "1   $\\mathcal{M}$, $\\mathcal{P}$ are empty", DATA)
    canvas.arrow((17.5, 44), (20.5, 44))
    canvas.box(20.5, 41.5, 22, 5, "2   $\\mathcal{P}$ = C(names), once", DATA)
    canvas.arrow((31.5, 41.5), (31.5, 38.5))
    canvas.words(33, 40, "then line 3: for each epoch", across="left")

    canvas.panel(0.6, 6, 57.4, 32.5, "Phase 1: make images; line 4: for each round")
    canvas.box(2, 22, 16, 8, "5   redraw $\\mathcal{Z}$,\nchoose labels $y$", RANDOM)
    canvas.arrow((10, 22), (10, 17))
    canvas.box(2, 11, 16, 6, "6   $e = \\mathcal{P}[y]$", DATA)
    canvas.arrow((18, 14), (19.5, 14), (19.5, 25.2), (23, 25.2))
    canvas.panel(21.5, 7.5, 21.5, 23.5, "line 7: g steps", dashed=True)
    canvas.box(23, 22.8, 15.5, 4.8, "8   $\\hat x = G(\\mathcal{Z}(e))$", DATA)
    canvas.arrow((30.7, 22.8), (30.7, 20.4))
    canvas.box(23, 15.6, 15.5, 4.8, "9   $\\mathcal{L}_Z$, Eq. 5", DATA)
    canvas.arrow((30.7, 15.6), (30.7, 13.2))
    canvas.box(23, 8.4, 15.5, 4.8, "10   a step of $\\mathcal{Z}$, $G$", TRAINED)
    canvas.arrow((38.5, 10.8), (41, 10.8), (41, 25.2), (38.5, 25.2))
    canvas.arrow((43, 19), (45.5, 19))
    canvas.box(45.5, 15, 11.3, 8, "11   the best\n$\\hat x$ into $\\mathcal{M}$", DATA)
    canvas.arrow((51.1, 23), (51.1, 33.2), (10, 33.2), (10, 30))
    canvas.words(49.9, 34.6, "next round", across="right")

    canvas.arrow((56.8, 19), (60, 19))
    canvas.box(60, 13.5, 8, 11, "$\\mathcal{M}$\nkeeps\nthem", DATA)
    canvas.arrow((68, 19), (69.3, 19), (69.3, 24), (71.7, 24))
    canvas.panel(70.4, 6, 19, 32.5, "Phase 2: copy $T$")
    canvas.words(71.2, 34.8, "line 12: for each step", across="left", weight="bold")
    canvas.box(71.7, 20.5, 14.2, 7, "13   draw a batch\nfrom $\\mathcal{M}$", RANDOM)
    canvas.arrow((78.8, 20.5), (78.8, 16.5))
    canvas.box(71.7, 9.5, 14.2, 7, "14   a step of $S$\non $\\mathcal{L}_S$, Eq. 6", TRAINED)
    canvas.arrow((85.9, 13), (88, 13), (88, 24), (85.9, 24))

    canvas.arrow((79.9, 6), (79.9, 2.6), (29, 2.6), (29, 6))
    canvas.words(54.5, 4.2, "next epoch; while warming up, phase 2 is left out")
    canvas.key(49, 45.4, {"drawn at random": RANDOM, "trained": TRAINED}, 22)
    return canvas


if __name__ == "__main__":
    save(draw(), __file__)
