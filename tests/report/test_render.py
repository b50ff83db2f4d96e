"""`make report`: the pages and pictures of a clone are rendered anew from its kept cards."""

import json
import shutil
from pathlib import Path

import pytest
import render
from ablation_tables import ablations_page, with_effects
from findings import FINDINGS, findings_page
from render import draw_results
from result_tables import bench_table, fill, formats_table, results_table, tables_page
from tiny import clone_cards, like

from nayer_lib.errors import UserError
from nayer_lib.runs.card import kept_cards

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/tables.md", "docs/ablations.md", "docs/divergences.md", "docs/findings.md", "docs/speed.md")


def test_the_readme_and_the_documents_are_rendered_anew(clone, card, capsys):
    phase = {"ours_ms": 12.34, "plain_ms": 100.0, "ratio": 8.1, "ratio_min": 8.0, "ratio_max": 8.25}
    bench = {"device": "a device", "clock": "CPU", "repeats": 5, "draw": 512, "batch": 100, "versions": {"torch": "2"}}
    bench["phases"] = {"one round": phase, "memory draw": phase}
    bench["formats"] = {"half": {"student step": 0.4, "synthesis step": 0.456}, "slow": {"student step": 9.0}}
    (clone / "data" / "bench.json").write_text(json.dumps(bench))
    compared = _in_two_formats(card, [0.9, 0.92, 0.97], [0.91, 0.92, 0.95])
    (clone / "data" / "formats.jsonl").write_text("".join(json.dumps(each) + "\n" for each in compared))
    (clone / "data" / "runs" / "another.json").write_text(json.dumps(like(card, seed=99, id="another")))
    (clone / "docs").mkdir()
    for name in PAGES:
        shutil.copy(ROOT / name, clone / name)
    render.main()
    out, kept = capsys.readouterr().out, kept_cards()
    assert out == results_table(kept) + "\n" and out != results_table(kept[:-1]) + "\n"
    page, *docs = ((clone / name).read_text(encoding="utf-8") for name in PAGES)
    before, *olds = ((ROOT / name).read_text(encoding="utf-8") for name in PAGES)
    assert page == fill(before, {"results": results_table(kept)}) and out in page
    assert docs == [
        tables_page(olds[0], kept),
        ablations_page(olds[1], kept + kept_cards("validation")),
        with_effects(olds[2], kept),
        findings_page(olds[3], kept),
        fill(olds[4], {"bench": bench_table(bench), "formats": formats_table(compared)}),
    ]
    assert "quick | 93.0 ± 3.6 | 92.7 ± 2.1 | +1.0, +0.0, -2.0 |" in docs[-1]
    assert "| one round, 100 images | 12.3 | 100.0 | **8.1** (8.0 – 8.2) |" in docs[-1]
    assert "memory draw, 512" in docs[-1] and "| half | 0.40 | 0.46 |\n| slow | 9.00 |  |" in docs[-1]
    for name in ("results.png", "figure1.png"):
        assert (clone / "docs" / name).read_bytes().startswith(b"\x89PNG")


def _in_two_formats(card: dict, plain: list[float], half: list[float]) -> list[dict]:
    """Cards of the same runs in 32 bits and in bfloat16, by their accuracies."""
    return [
        like(card, config={"seed": seed}, compute={"precision": name}, accuracy_last=value)
        for name, values in (("fp32", plain), ("bf16", half))
        for seed, value in enumerate(values)
    ]


def test_the_readmes_picture_is_drawn_from_kept_cards(tmp_path, card):
    draw_results([like(card, config={"latent": "lte"}, id="no such picture"), card], tmp_path / "docs" / "results.png")
    assert (tmp_path / "docs" / "results.png").read_bytes().startswith(b"\x89PNG")
    for others in ([], [like(card, config={"latent": "lte"})]):
        with pytest.raises(UserError, match="no kept run of the quick profile on digits"):
            draw_results(others, tmp_path / "docs" / "none.png")
    assert not (tmp_path / "docs" / "none.png").exists()


def test_a_finding_has_its_interval_its_n_and_its_word(card):
    page = findings_page((ROOT / "docs" / "findings.md").read_text(encoding="utf-8"), clone_cards())
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ") and "?" in line]
    assert [row[0] for row in rows] == [f.asks for f in FINDINGS if "?" in f.asks]
    for asks, _, _, difference, n, word, overturned in rows:
        assert ("[" in difference) == (int(n) >= 3) and word and overturned, asks
    empty = findings_page(page, [])
    assert empty.count("| 0 | not run |") == len(rows) and "+" not in empty.split("made by")[1]
