"""Image files: what a class's folder holds, its label, and the bytes of an image of any mode and size."""

import numpy as np
import pytest
import torch
from PIL import Image

from nayer_lib.errors import MissingFile, UserError
from nayer_lib.image_files import class_folders, read_images, read_sheets, with_labels


@pytest.fixture
def folder(tmp_path):
    """Three classes of one, two and no images, and files that are none of them."""
    for name in ("b/2.png", "b/deep/1.png", "a/9.png", "c/notes.txt", "list.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_files_are_found_under_the_subfolders(folder):
    found = class_folders(folder, "*.png")
    assert found == {"a": [folder / "a/9.png"], "b": [folder / "b/2.png", folder / "b/deep/1.png"]}
    assert class_folders(folder)["c"] == [folder / "c/notes.txt"]
    with pytest.raises(MissingFile, match="nowhere does not exist: name a folder with one subfolder of images a class"):
        class_folders(folder / "nowhere")


def test_a_label_is_the_place_of_the_class_and_not_of_the_folder(folder):
    found = class_folders(folder, "*.png")
    assert [(path.name, label) for path, label in with_labels(found, ("b", "a"), folder)] == [
        ("2.png", 0),
        ("1.png", 0),
        ("9.png", 1),
    ]


@pytest.mark.parametrize(
    ("classes", "each", "sentence"),
    [
        ("abc", None, r"does not fit the class names: no images for c \(1\)\.$"),
        ("a", None, r"does not fit the class names: no class for the folders b \(1\)\.$"),
        ("ab", 1, r"not 1 images for b \(1\); put the whole data set in its place\.$"),
        ("xyzab", 2, r"no images for x, y, z \(3\); not 2 images for a \(1\); put the whole"),
    ],
)
def test_what_does_not_fit_the_classes_is_told(folder, classes, each, sentence):
    with pytest.raises(UserError, match=sentence):
        with_labels(class_folders(folder, "*.png"), classes, folder, each)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1"])
def test_an_image_of_any_mode_becomes_bytes(tmp_path, mode):
    noise = np.random.default_rng(0).integers(256, size=(6, 6, 3), dtype=np.uint8)
    image, path = Image.fromarray(noise).convert(mode), tmp_path / "image.tiff"
    image.save(path)
    expected = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(read_images([path, path], size=6), torch.stack([expected, expected]))
    assert torch.equal(read_images([path], 6, channels=1)[0, 0], torch.from_numpy(np.array(image.convert("L"))))


def test_many_images_keep_their_order(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(200)]
    for number, path in enumerate(paths):
        Image.new("L", (4, 4), number).save(path)
    assert torch.equal(read_images(paths, 4, channels=1)[:, 0, 0, 0], torch.arange(200, dtype=torch.uint8))


def test_the_middle_is_cut_out_of_an_image_whose_shorter_side_was_scaled(tmp_path):
    """Left half black, right half white, 40 x 10: of the 16 x 4 that it becomes, columns 6 to 9 stay."""
    image = Image.new("L", (40, 10))
    image.paste(255, (20, 0, 40, 10))
    image.save(tmp_path / "image.png")
    [[middle]] = read_images([tmp_path / "image.png"], 4, channels=1, shorter_side=4)
    assert (middle[:, 0] == 0).all() and (middle[:, 3] == 255).all()


def test_a_file_that_is_no_whole_image_is_named(tmp_path):
    Image.new("RGB", (50, 50), "red").save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-300])
    (tmp_path / "text.jpg").write_text("no image")
    for name in ("half.jpg", "text.jpg", "missing.jpg"):
        with pytest.raises(UserError, match=f"{name} is not a whole image: remove or replace it"):
            read_images([tmp_path / "whole.jpg", tmp_path / name], 8)


@pytest.mark.parametrize(("ending", "mode", "channels"), [("png", "RGB", 3), ("webp", "RGB", 3), ("png", "L", 1)])
def test_a_sheet_is_a_column_of_images(tmp_path, ending, mode, channels):
    rng = np.random.default_rng(0)
    sheets = [rng.integers(256, size=(6 * count, 6, channels), dtype=np.uint8) for count in (3, 1)]
    paths = [tmp_path / f"{k}.{ending}" for k in range(2)]
    for path, pixels in zip(paths, sheets, strict=True):
        Image.fromarray(pixels.squeeze(2) if channels == 1 else pixels).convert(mode).save(path, lossless=True)
    images = read_sheets(paths, 6, channels)
    assert images.shape == (4, channels, 6, 6) and images.dtype == torch.uint8 and images.is_contiguous()
    assert torch.equal(images[2].permute(1, 2, 0), torch.from_numpy(sheets[0][12:]))
    assert torch.equal(images[3].permute(1, 2, 0), torch.from_numpy(sheets[1]))


@pytest.mark.parametrize("size", [(6, 13), (5, 12), (12, 6)])
def test_a_sheet_of_another_size_is_told(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "sheet.png")
    with pytest.raises(UserError, match=rf"sheet.png has {size[0]} x {size[1]} pixels: no column of 6 x 6 images"):
        read_sheets([tmp_path / "sheet.png"], 6)


@pytest.mark.parametrize(("dtype", "most"), [(np.uint16, 65535), (np.int32, 65535), (np.float32, 1)])
def test_what_has_more_than_8_bits_is_scaled_by_its_range(tmp_path, dtype, most):
    ramp = np.linspace(0, most, 256).reshape(16, 16).astype(dtype)
    Image.fromarray(ramp).save(tmp_path / "ramp.tiff")
    grey = read_images([tmp_path / "ramp.tiff"], 16, 1)
    assert torch.allclose(grey.flatten().float(), torch.arange(256.0), atol=1) and len(grey.unique()) > 250
    assert torch.equal(read_images([tmp_path / "ramp.tiff"], 16)[:, :1], grey)


@pytest.mark.parametrize("value", [-1, 2, float("nan")])
def test_floats_of_another_range_are_told(tmp_path, value):
    Image.fromarray(np.full((4, 4), value, np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(UserError, match=r"a.tiff goes from .*: scale it to 0 to 1\."):
        read_images([tmp_path / "a.tiff"], 4, 1)


@pytest.mark.parametrize(("size", "channels"), [(0, 3), (-8, 3), (5000, 3), (8, 2)])
def test_sizes_and_channels_that_there_are_not_are_told(size, channels):
    with pytest.raises(UserError, match="images are read as 1 to 1024 px with 1 or 3 channels"):
        read_images([], size, channels)


def test_an_image_of_too_many_pixels_is_told(tmp_path, monkeypatch):
    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UserError, match="too many pixels"):
        read_images([tmp_path / "a.png"], 8)


def test_what_systems_leave_in_folders_is_passed_over(tmp_path):
    for name in ("a/1.png", "a/.DS_Store", "a/Thumbs.db", "a/._1.png", "a/.thumbs/1.png", ".git/x", "__MACOSX/a/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert class_folders(tmp_path) == {"a": [tmp_path / "a" / "1.png"]}


def test_a_hidden_folder_above_hides_nothing(tmp_path):
    (tmp_path / ".cache" / "a").mkdir(parents=True)
    (tmp_path / ".cache" / "a" / "1.png").touch()
    assert list(class_folders(tmp_path / ".cache")) == ["a"]


def test_underscores_in_folders_are_blanks(tmp_path):
    found = {"red_leaf": [tmp_path / "1.png"], "cafe\u0301": [tmp_path / "2.png"]}
    assert with_labels(found, ["caf\u00e9", "red leaf"], tmp_path) == [(tmp_path / "2.png", 0), (tmp_path / "1.png", 1)]
    with pytest.raises(UserError, match=r"two folders for red leaf \(1\)"):
        with_labels(found | {"red leaf": [tmp_path / "3.png"]}, ["caf\u00e9", "red leaf"], tmp_path)
