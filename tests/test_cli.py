"""`python -m nayer_lib`: each command does what its notebook call does, and a user's mistake is one sentence."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import TINY, call, read_json, refused, write_sheets

from nayer_lib import cli, files
from nayer_lib.classifiers.teacher import make_classifier, save_classifier
from nayer_lib.datasets import DATASETS, load_split
from nayer_lib.runs.card import kept_cards, read_card
from nayer_lib.text.labels import class_names
from nayer_lib.text.lte_pool import load_pool

ROOT = Path(__file__).resolve().parents[1]
TINY_SET = ["--set", *(f"{name}={value}" for name, value in TINY.items())]


# --- distill, runs


def test_distill_leaves_a_run_folder_and_prints_teacher_and_student(tmp_path, capsys):
    out = call(capsys, "distill", "--seed", "5", "--out", str(tmp_path / "run"), "--device", "cpu", *TINY_SET)
    card = read_card(tmp_path / "run")
    assert card["status"] == "finished" and card["config"]["seed"] == 5
    assert {name: card["config"][name] for name in TINY} == TINY
    assert (tmp_path / "run" / "student.safetensors").is_file()
    first, folder = out.splitlines()
    teacher, student, best = (f"{100 * accuracy:.1f} %" for accuracy in accuracies(card))
    assert first.startswith(f"teacher {teacher}, student {student} (last epoch; best on test {best}), 100 images, ")
    assert folder == str(tmp_path / "run")


def accuracies(card):
    return card["teacher"]["accuracy"], card["accuracy_last"], card["accuracy_best"]


def test_distill_takes_preset_variant_and_profile(clone, capsys):
    shrink = TINY_SET + ["memory_size=30", "keep=best", "warmup_rounds=None", "generator_betas=(0.4,0.9)"]
    call(capsys, "distill", "--preset", "color_digits", "--variant", "paper", "--profile", "lab", *shrink)
    [card] = [read_json(path) for path in (clone / "runs").glob("*/card.json")]
    config = card["config"]
    assert (config["dataset"], config["variant"], config["profile"]) == ("color_digits", "paper", "lab")
    assert (config["memory_size"], config["keep"], config["warmup_rounds"]) == (30, "best", None)
    assert config["generator_betas"] == [0.4, 0.9] and card["images"] == 30


def test_distill_takes_a_teacher_of_ones_own_and_warns_if_it_is_at_chance(tmp_path, capsys):
    facts = DATASETS["digits"]
    untrained = make_classifier("wrn10_half", facts.class_names, facts.mean, facts.std, seed=0)
    save_classifier(tmp_path / "teacher.safetensors", untrained)
    with pytest.warns(UserWarning) as warned:
        arguments = ["--teacher", f"{tmp_path}/teacher.safetensors", "--out", f"{tmp_path}/run", *TINY_SET]
        assert cli.main(["distill", *arguments]) == 0
    [said] = warned
    assert re.match(r"the teacher scores \d+\.\d %, about chance: check its normalisation", str(said.message))
    assert read_card(tmp_path / "run")["teacher"]["sha256"] == files.tensors_hash(untrained.net.state_dict())


def test_runs_lists_and_keeps(clone, capsys):
    assert call(capsys, "runs") == ""
    call(capsys, "distill", *TINY_SET)
    [folder] = (clone / "runs").iterdir()
    accuracy = 100 * read_card(folder)["accuracy_last"]
    assert call(capsys, "runs") == f"{folder.name}  finished  {accuracy:.1f} %\n"
    before = len(kept_cards())
    assert call(capsys, "runs", "--keep", folder.name) == f"{clone / 'data' / 'runs' / folder.name}.json\n"
    assert len(kept_cards()) == before + 1

    half = clone / "runs" / "another"
    half.mkdir()
    (half / "card.json").write_text(json.dumps({"id": "another", "status": "running", "config": {"method": "nayer"}}))
    assert call(capsys, "runs").splitlines()[-1].split() == ["another", "running"]


# --- lte (more of it in cli/test_lte.py)


def test_lte_builds_a_pool_that_distill_finds(clone, capsys):
    out = call(capsys, "lte", "build", "--dataset", "digits", "--encoder", "random", "--prompt", "photo")
    path = clone / "data" / "lte" / "digits.random.photo.safetensors"
    assert out == f"10 x 384 embeddings\n{path}\n"
    assert load_pool(path, class_names("digits")).header["prompt"] == "a photo of a {name}"
    call(capsys, "distill", *TINY_SET, "encoder=random", "prompt=photo")


# --- mistakes


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["distill", "--preset", "digit"], "unknown preset 'digit'. Did you mean 'digits'"),
        (["distill", "--profile", "quik"], "unknown profile 'quik'. Did you mean 'quick'"),
        (["distill", "--variant", "papers"], "unknown variant 'papers'. Did you mean 'paper'"),
        (["distill", "--set", "epochs"], "--set takes name=value, not 'epochs'"),
        (["distill", "--set", "epoch=3"], "unknown config field of nayer 'epoch'. Did you mean 'epochs'"),
        (["distill", "--set", "epochs=few"], "epochs must be a whole number from 1 up, not 'few'"),
        (["distill", "--set", "epochs=2+"], "epochs must be a whole number from 1 up, not '2+'"),
        (["distill", "--method", "nayr"], "unknown method 'nayr'"),
        (
            ["distill", "--preset", "cifar100-wrn40_2-wrn16_2"],
            "no teacher for cifar100/wrn40_2: run `python -m nayer_lib",
        ),
        (["distill", "--teacher", "nowhere.safetensors"], "nowhere.safetensors does not exist"),
        (["distill", "--teacher", __file__], "is not a classifier of this kit, which are safetensors"),
        (["distill", "--set", "encoder=bert"], "unknown text encoder 'bert'. Did you mean 'sbert'"),
        (["distill", "--out", f"{__file__}/run", *TINY_SET], "cannot write"),
        (["runs", "--keep", "nothing"], "unknown run 'nothing'"),
    ],
    ids=lambda value: " ".join(Path(word).name for word in value)[:60] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_sentence_on_stderr_and_status_2(arguments, sentence, clone, capsys):
    refused(arguments, sentence, capsys)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["distill", "--set", "student_lr=high"], "student_lr must be a positive number, not 'high'"),
        (["distill", "--set", "bn_momentum=None"], "bn_momentum must lie in [0, 1), not None"),
        (["distill", "--set", "preset=digits"], "preset has its own option: use --preset digits"),
        (["distill", "--set", "seed=1"], "seed has its own option: use --seed 1"),
        (["distill", "--set", "method=fm"], "method has its own option: use --method fm"),
        (["distill", "--method", "fmm"], "unknown method 'fmm'. Did you mean 'fm'"),
        (["distill", "--protocol", "equl"], "unknown protocol 'equl'. Did you mean 'equal'"),
        (["distill", "--method", "fm", "--variant", "paper"], "the variant 'paper' is NAYER's text"),
        (["distill", "--set", "variant=paper"], "variant has its own option: use --variant paper"),
        (["distill", "--device", "gpu"], "unknown device 'gpu'"),
        (["distill", "--precision", "fp8"], "unknown precision 'fp8'"),
        (["distill", "--steps", "graph"], "unknown steps 'graph'. Did you mean 'graphs'"),
        (["distill", "--device", "cpu", "--steps", "graphs"], "CUDA graphs need a CUDA device, not the cpu"),
        (["distill", "--channels-last", "--no-channels-last"], "are two layouts: give one"),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, list) else "",
)
def test_these_mistakes_are_a_sentence_too(arguments, sentence, clone, capsys):
    refused(arguments, sentence, capsys)


@pytest.mark.parametrize("override", ["generator_betas=(0.5,1.5)", "generator_betas=0.5", "adversarial_mask=no"])
def test_an_override_of_the_wrong_kind_is_told(override, clone, capsys):
    refused(["distill", *TINY_SET, override], override.split("=")[0], capsys)


def test_a_keyboard_interrupt_is_no_traceback(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "prepare", interrupted)
    assert cli.main(["distill"]) == 130
    assert capsys.readouterr().err == ("nayer_lib: stopped; the files of the last whole epoch are kept.\n")


def test_a_command_that_does_not_exist_is_told_by_the_parser(capsys):
    with pytest.raises(SystemExit) as raised:
        cli.main(["destill"])
    assert raised.value.code == 2 and "distill" in capsys.readouterr().err


def test_python_m_nayer_lib_lists_the_commands():
    done = subprocess.run([sys.executable, "-m", "nayer_lib", "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("distill", "teacher", "lte", "runs", "sweep"))


@pytest.mark.parametrize("words", [["sweep", "data/sweeps/redraw_digits.json", "--dry-run"], ["--help"]], ids=" ".join)
def test_a_reader_that_closes_the_pipe_ends_a_command_quietly(words):
    """As `head -1` does when it has its line: here the reader has gone before the first."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "nayer_lib", *words]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_images_of_the_data_set_may_lie_elsewhere(tmp_path, capsys):
    """The split is the same, and so is what the card says of it."""
    part = load_split("digits", "test")
    write_sheets(tmp_path / "sheets", "test", part.images, part.labels)
    call(capsys, "distill", "--images", f"{tmp_path}/sheets", "--out", f"{tmp_path}/run", "--device", "cpu", *TINY_SET)
    told = read_card(tmp_path / "run")["test_split"]
    sha256 = files.tensors_hash({"images": part.images, "labels": part.labels})
    assert told == {"split": "test", "images": 500, "sha256": sha256}


def test_images_of_ones_own_have_no_split(tmp_path, capsys):
    refused(["distill", "--images", str(tmp_path), "--split", "validation"], "leave --split out", capsys)
