"""Pictures in every mode that Pillow has and in every form that people have them."""

from __future__ import annotations

import base64
import io
import struct

import numpy as np
import pytest
from conftest import picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from attnlens.errors import InputError
from attnlens.models.images import open_image
from attnlens.runs.dataset import check_questions, read_questions

FEW = settings(max_examples=30, deadline=None)
SIZE = (32, 28)  # width, height


def colours(channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (28, 32, channels), dtype=np.uint8)


def pixels(source) -> np.ndarray:
    image, info = open_image(source)
    assert image.mode == "RGB"
    assert image.size == (info.width, info.height)
    return np.asarray(image).astype(int)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """What transparent colours look like on white paper, in exact arithmetic."""
    opacity = alpha.astype(float)[..., None] / 255
    return np.broadcast_to(colour, (*alpha.shape, 3)) * opacity + 255 * (1 - opacity)


def as_grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


def refused(source) -> str:
    with pytest.raises(InputError) as error:
        open_image(source)
    message = str(error.value)
    assert len(message) < 700
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "La", "RGBa"])
def test_transparency_is_laid_on_white(mode):
    values = colours(4)
    colour, alpha = values[..., :3], values[..., 3]
    if mode in ("RGBA", "RGBa"):
        expected = on_white(colour, alpha)
        image = Image.fromarray(values)
    else:
        expected = on_white(colour[..., :1], alpha)
        image = Image.fromarray(np.ascontiguousarray(values[..., [0, 3]]), "LA")
        if mode == "PA":  # a palette of greys
            image = Image.fromarray(np.ascontiguousarray(values[..., 0]), "L").convert("P")
            image.putalpha(Image.fromarray(alpha))
    premultiplied = mode in ("La", "RGBa")
    if premultiplied:
        image = image.convert(mode)
    assert image.mode == mode
    # a premultiplied picture keeps a colour only as well as its opacity lets it
    slack = 1 if not premultiplied else 2
    assert np.abs(pixels(image) - expected).max() <= slack


@pytest.mark.parametrize("opacity", [0, 77, 255])
def test_transparent_palettes(opacity, tmp_path):
    """A palette whose colours have an opacity each, as GIF and PNG write them."""
    table = colours(3, 1).reshape(-1, 3)[:4]
    index = np.arange(28 * 32).reshape(28, 32) % 4
    image = Image.fromarray(index.astype(np.uint8), "P")
    image.putpalette(table.ravel().tolist())
    alpha = [255, opacity, 255, 0]
    image.save(tmp_path / "a.png", transparency=bytes(alpha))
    expected = on_white(table[index], np.array(alpha)[index])
    assert Image.open(tmp_path / "a.png").mode == "P"
    assert np.abs(pixels(tmp_path / "a.png") - expected).max() <= 1
    image.save(tmp_path / "a.gif", transparency=2)
    expected = on_white(table[index], np.where(index == 2, 0, 255))
    assert np.abs(pixels(tmp_path / "a.gif") - expected).max() <= 1


@pytest.mark.parametrize(("mode", "hidden"), [("1", 0), ("L", 9), ("RGB", (1, 2, 3))])
def test_one_transparent_colour(mode, hidden, tmp_path):
    image = Image.new(mode, SIZE, hidden)
    shown = {"1": 1, "L": 100, "RGB": (9, 8, 7)}[mode]
    image.paste(shown, (0, 0, 16, 28))
    image.save(tmp_path / "a.png", transparency=hidden)
    found = pixels(tmp_path / "a.png")
    assert found[0, 0].tolist() == {"1": [255] * 3, "L": [100] * 3, "RGB": [9, 8, 7]}[mode]
    assert found[0, 20].tolist() == [255, 255, 255]


def test_cmyk_without_a_profile():
    values = colours(4)
    image = Image.fromarray(values, "CMYK")
    cyan, key = values[..., :3].astype(float) / 255, values[..., 3:].astype(float) / 255
    assert np.abs(pixels(image) - 255 * (1 - cyan) * (1 - key)).max() <= 1
    plain = Image.new("CMYK", SIZE, (0, 255, 255, 0))  # red, as Adobe writes it into a JPEG
    assert np.abs(pixels(encoded(plain, "JPEG", quality=95)) - [255, 0, 0]).max() <= 8


def test_colours_in_other_spaces():
    values = colours(3)
    for mode in ("YCbCr", "HSV"):
        image = Image.fromarray(values).convert(mode)
        assert np.abs(pixels(image) - values).max() <= 7  # 8 bits a channel round
    y, cb, cr = (Image.fromarray(values, "YCbCr").getpixel((3, 4))[i] for i in range(3))
    red = np.clip(y + 1.402 * (cr - 128), 0, 255)  # JFIF
    assert abs(pixels(Image.fromarray(values, "YCbCr"))[4, 3, 0] - red) <= 1
    assert cb == values[4, 3, 1]
    grey = Image.new("LAB", SIZE, (136, 128, 128))  # L* 53.3, no colour: a middle grey of sRGB
    found = pixels(grey)[0, 0]
    assert np.ptp(found) <= 3
    assert abs(found.mean() - 127) <= 4
    assert ImageCms is not None


@pytest.mark.parametrize("mode", ["1", "L", "RGBX"])
def test_plain_modes(mode):
    image = Image.fromarray(colours(3)).convert(mode)
    values = np.asarray(image)
    expected = as_grey(values * 255 if mode == "1" else values) if mode != "RGBX" else colours(3)
    assert (pixels(image) == expected).all()


@FEW
@given(st.lists(st.integers(0, 65535), min_size=1, max_size=40), st.sampled_from("BL"))
def test_greys_of_16_bits_are_divided_by_257(values, order):
    """However dark or bright the picture is: nothing is stretched."""
    deep = np.array([values], dtype=f"{'>' if order == 'B' else '<'}u2")
    image = Image.frombytes(f"I;16{'B' if order == 'B' else ''}", deep.T.shape, deep.tobytes())
    expected = as_grey(np.floor(deep.astype(float) / 257 + 0.5).astype(int))
    for source in (image, encoded(Image.fromarray(deep.astype("<u2"))), deep, deep[..., None]):
        assert (pixels(source) == expected).all()


def test_files_of_16_bits():
    deep = (np.arange(28 * 32).reshape(28, 32) * 73).astype("<u2")
    expected = as_grey(np.round(deep / 257).astype(int))
    for kind in ("PNG", "TIFF"):
        assert (pixels(encoded(Image.fromarray(deep), kind)) == expected).all()
    grey_map = b"P5 32 28 65535\n" + deep.astype(">u2").tobytes()
    assert Image.open(io.BytesIO(grey_map)).mode == "I"
    assert (pixels(grey_map) == expected).all()
    dark = b"P5 32 28 65535\n" + (deep % 200).astype(">u2").tobytes()
    assert pixels(dark).max() == 1  # as dark as it is, though no value is beyond 255


def tiff(values: bytes, bits: int, photometric: int) -> bytes:
    """A TIFF of one strip, 8 x 2 pixels of one grey channel."""
    entries = [
        (256, 3, 8), (257, 3, 2), (258, 3, bits), (259, 3, 1), (262, 3, photometric),
        (273, 4, 8), (277, 3, 1), (278, 3, 2), (279, 4, len(values)),
    ]  # fmt: skip
    head = b"II*\0" + struct.pack("<I", 8 + len(values))
    table = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return head + values + struct.pack("<H", len(entries)) + table + struct.pack("<I", 0)


def test_a_tiff_of_12_bits_and_one_in_which_0_is_white():
    twelve = [0, 4095, 2048, 1024, 16, 1000, 3, 4000] * 2
    packed = b"".join(
        bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255])
        for a, b in zip(twelve[::2], twelve[1::2], strict=True)
    )
    expected = np.round(np.array(twelve) / 4095 * 255).astype(int).reshape(2, 8)
    assert (pixels(tiff(packed, 12, 1)) == as_grey(expected)).all()
    deep = np.linspace(0, 65535, 16).astype("<u2")
    expected = as_grey(np.round((65535 - deep.astype(float)) / 257).astype(int).reshape(2, 8))
    assert (pixels(tiff(deep.tobytes(), 16, 0)) == expected).all()


@pytest.mark.parametrize("kind", ["float32", "int32"])
def test_32_bits_without_a_white(kind, tmp_path):
    """Whole numbers from 0 to 255 are what Pillow means; of others nobody says what is white."""
    greys = colours(1)[..., 0]
    good = Image.fromarray(greys.astype(kind))
    assert good.mode == ("F" if kind == "float32" else "I")
    good.save(tmp_path / "good.tiff")
    for source in (good, tmp_path / "good.tiff"):
        assert (pixels(source) == as_grey(greys)).all()
    assert pixels(Image.fromarray(np.zeros((4, 4), kind))).max() == 0
    bad = [np.array([[-1, 3]]), np.array([[0, 256]]), np.array([[0, 65535]])]
    if kind == "float32":
        bad += [np.array([[0, 0.5]]), np.array([[0, 1]]), np.array([[3.5, 200]])]
        bad += [np.array([[np.nan, 9]]), np.array([[0, np.inf]])]
    for values in bad:
        Image.fromarray(values.astype(kind)).save(tmp_path / "bad.tiff")
        for source in (Image.fromarray(values.astype(kind)), tmp_path / "bad.tiff"):
            message = refused(source)
            said = f"from {values.min():g} to {values.max():g}"
            assert ("not numbers (NaN)" if np.isnan(values).any() else said) in message
            assert str(tmp_path / "bad.tiff") in message or isinstance(source, Image.Image)


def test_the_advice_for_32_bits_works():
    image = Image.fromarray(np.array([[0, 0.25, 1.25]], np.float32))
    advice = refused(image).split("give ")[1].split(" with")[0]
    values, white = np.asarray(image), 1.0
    array = eval(advice, {"values": values, "white": white})
    assert (pixels(array) == as_grey(np.array([[0, 63, 255]]))).all()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation(kind, tmp_path):
    frames = [Image.new("RGB", SIZE, c) for c in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if kind == "WEBP" else {}
    path = tmp_path / f"a.{kind.lower()}"
    frames[0].save(path, kind, save_all=True, append_images=frames[1:], **options)
    opened = Image.open(path)
    assert opened.n_frames == 3
    assert pixels(path)[0, 0].tolist() == [255, 0, 0]
    assert pixels(opened)[0, 0].tolist() == [255, 0, 0]
    opened.seek(1)  # of an opened picture, the frame that it stands at
    assert pixels(opened)[0, 0].tolist() == [0, 255, 0]


ORIENTED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}
"""How a viewer shows what is stored, by the orientation of EXIF 2.3."""


@pytest.mark.parametrize("orientation", ORIENTED)
def test_exif_turns_files_bytes_and_opened_pictures(orientation, tmp_path):
    values = colours(3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    expected = ORIENTED[orientation](values)
    opened = Image.open(tmp_path / "a.png")
    for source in (
        tmp_path / "a.png",
        (tmp_path / "a.png").read_bytes(),
        opened,
        opened.convert("RGB"),
    ):
        assert (pixels(source) == expected).all()


def test_a_picture_in_every_form(tiny, tmp_path):
    path = tmp_path / "a scene, 100%.png"
    picture(140, 112).save(path)
    content = path.read_bytes()
    text = base64.b64encode(content).decode()
    forms = {
        "path": path,
        "text": str(path),
        "file URL": path.as_uri(),
        "file URL with host": path.as_uri().replace("file://", "file://localhost"),
        "data URL": f"data:image/png;base64,{text}",
        "data URL in lines": f"DATA:;base64,{text[:50]}\n{text[50:]}",
        "data URL in percents": "data:image/png," + "".join(f"%{b:02x}" for b in content),
        "bytes": content,
        "bytearray": bytearray(content),
        "memoryview": memoryview(content),
        "file": io.BytesIO(content),
        "PIL": picture(140, 112),
        "array": np.asarray(picture(140, 112)),
    }
    assert "%20" in forms["file URL"]
    written = io.BytesIO()
    picture(140, 112).save(written, "PNG")  # stands at its end
    forms["written file"] = written
    for name, source in forms.items():
        prompt = tiny.prompt(source, "How many?")
        assert prompt.pictures[0].tobytes() == picture(140, 112).tobytes(), name
        of_file = name in ("path", "text", "file URL", "file URL with host")
        assert prompt.images[0].path == (str(path) if of_file else None)
        of_pixels = name in ("PIL", "array")
        assert (prompt.images[0].sha256 == open_image(path)[1].sha256) != of_pixels
    with path.open("rb") as file:
        assert (pixels(file) == np.asarray(picture(140, 112))).all()


def test_arrays():
    for shape in ((28, 32), (28, 32, 3), (28, 32, 4), (28, 32, 1)):
        values = colours(4)[..., 0] if len(shape) == 2 else colours(shape[2])
        expected = values if len(shape) == 2 else values[..., 0]
        if shape[-1] == 3:
            assert (pixels(values) == values).all()
            assert (pixels(values[::-1, ::2]) == values[::-1, ::2]).all()  # not contiguous
        elif shape[-1] == 4:
            assert np.abs(pixels(values) - on_white(values[..., :3], values[..., 3])).max() <= 1
        else:
            assert (pixels(values) == as_grey(expected)).all()
    for values in (
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.uint16),
        np.zeros((3, 4, 5), np.uint8),
        np.zeros((2, 4, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((4, 4), bool),
        np.zeros((4, 4), np.int64),
    ):
        message = refused(values)
        assert str(values.dtype) in message
        assert "give uint8" in message


LONG = "iVBORw0KGgo" * 20_000


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("https://example.com/a.png", "download it and give the path"),
        ("http://example.com/" + LONG, "download it and give the path"),
        ("FTP://bucket/a.png", "download it"),
        ("file://server/share/a.png", "on another machine"),
        ("file:///no/such/file.png", "there is no image at '/no/such/file.png'"),
        (LONG, "base64 as 'data:image/png;base64,"),
        ("data:image/png;base64," + LONG + "!", "holds no picture"),
        ("data:image/png;base64," + LONG, "is not a picture"),
        ("data:" + LONG, "no comma"),
        ("data:text/plain,hello", "is not a picture"),
        (b"no picture" * 20_000, "the image of 200,000 bytes is not a picture"),
        (io.BytesIO(), "is not a picture"),
        (io.StringIO("text"), "open it in mode 'rb'"),
        ("no\0file", "there is no image"),
        ({"url": LONG}, "given as dict"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_short_line(source, words):
    assert words in refused(source)


def test_pictures_with_other_palettes_have_other_hashes():
    """Their indices are the same; a trace must not be taken for that of the other picture."""
    index = np.zeros((28, 32), np.uint8)
    hashes = set()
    for colour in ([255, 0, 0], [0, 0, 255]):
        image = Image.fromarray(index, "P")
        image.putpalette(colour)
        hashes.add(open_image(image)[1].sha256)
    assert len(hashes) == 2


def test_urls_in_a_file_of_questions(tmp_path):
    picture().save(tmp_path / "a.png")
    path = tmp_path / "questions.jsonl"
    uri = (tmp_path / "a.png").as_uri()
    lines = [uri, "a.png", "https://example.com/a.png", "data:image/png;base64," + LONG]
    path.write_text("".join(f'{{"image": "{one}", "question": "?"}}\n' for one in lines))
    jobs = read_questions(path)
    assert [job.image for job in jobs] == [uri, str(tmp_path / "a.png"), *lines[2:]]
    good, skipped = check_questions(jobs)
    assert (len(good), skipped) == (2, 2)
    assert [job.folder for job in good] == ["00001_a", "00002_a"]
    assert len({job.image_sha256 for job in good}) == 1


def test_a_data_url_from_the_command_line_is_refused_in_one_short_line(
    tmp_path, monkeypatch, capsys
):
    from attnlens.cli.main import main

    monkeypatch.chdir(tmp_path)
    status = main(["trend", "--image_path", f"data:image/png;base64,{LONG}", "--question", "?"])
    error = capsys.readouterr().err
    assert status == 2
    assert "save it as a file" in error
    assert len(error.splitlines()) == 1
    assert len(error) < 400
    assert not list(tmp_path.iterdir())
