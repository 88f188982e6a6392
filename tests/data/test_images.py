"""Pictures in every form come out as a person sees them; everything else is refused by name."""

import contextlib
import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxplain.data.images import MAX_PIXELS, load_image

SIDE = (12, 16)  # height, width


def smooth_picture() -> np.ndarray:
    """RGB without detail, so that lossy formats keep it."""
    y, x = np.mgrid[0 : SIDE[0], 0 : SIDE[1]]
    return np.stack([20 * y, 15 * x, 255 - 10 * x], axis=-1).astype(np.uint8)


def png(width: int, height: int, rows: bytes) -> bytes:
    """A PNG of grey 8-bit pixels, written by hand from the specification."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm", "tga", "qoi", "webp"])
def test_lossless_colour_is_read_exactly(tmp_path, suffix):
    file = tmp_path / f"picture.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(smooth_picture()).save(file, **options)
    picture = load_image(file)
    assert picture.dtype == np.uint8
    assert picture.flags.writeable
    np.testing.assert_array_equal(picture, smooth_picture())


@pytest.mark.parametrize("suffix", ["jpg", "avif", "jp2"])
def test_lossy_colour_is_read_nearly(tmp_path, suffix):
    file = tmp_path / f"picture.{suffix}"
    Image.fromarray(smooth_picture()).save(file, quality=95)
    assert np.abs(load_image(file).astype(int) - smooth_picture()).mean() < 6


def test_the_content_decides_and_not_the_name(tmp_path):
    file = tmp_path / "picture.jpg"
    Image.fromarray(smooth_picture()).save(file, format="PNG")
    np.testing.assert_array_equal(load_image(str(file)), smooth_picture())


def test_grey_becomes_equal_channels(tmp_path):
    grey = smooth_picture()[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(load_image(tmp_path / "grey.png"), np.stack([grey] * 3, -1))


def test_one_bit_is_black_and_white(tmp_path):
    bits = smooth_picture()[..., 0] > 100
    Image.fromarray(bits).save(tmp_path / "bits.png")
    expected = np.stack([bits * np.uint8(255)] * 3, -1)
    np.testing.assert_array_equal(load_image(tmp_path / "bits.png"), expected)


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path, suffix):
    values = np.linspace(0, 65535, SIDE[0] * SIDE[1]).reshape(SIDE).astype(np.uint16)
    file = tmp_path / f"deep.{suffix}"
    Image.fromarray(values).save(file)
    expected = np.rint(values / 257).astype(np.uint8)
    np.testing.assert_array_equal(load_image(file), np.stack([expected] * 3, -1))


def test_sixteen_bit_colour_is_scaled(tmp_path):
    deep = smooth_picture().astype(">u2") * 257
    (tmp_path / "deep.ppm").write_bytes(b"P6 16 12 65535\n" + deep.tobytes())
    np.testing.assert_array_equal(load_image(tmp_path / "deep.ppm"), smooth_picture())


def test_transparency_lies_on_white(tmp_path):
    alpha = np.linspace(0, 255, SIDE[0] * SIDE[1]).reshape(*SIDE, 1).astype(np.uint8)
    file = tmp_path / "clear.png"
    Image.fromarray(np.concatenate([smooth_picture(), alpha], -1)).save(file)
    share = alpha / 255
    expected = share * smooth_picture() + (1 - share) * 255
    np.testing.assert_allclose(load_image(file), expected, atol=1)


def test_a_transparent_grey_lies_on_white(tmp_path):
    grey = np.full(SIDE, 40, np.uint8)
    grey[3] = 0
    Image.fromarray(grey).save(tmp_path / "key.png", transparency=0)
    expected = np.where(grey == 0, 255, grey)
    np.testing.assert_array_equal(load_image(tmp_path / "key.png")[..., 0], expected)


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_palettes_are_looked_up_and_their_transparency_lies_on_white(tmp_path, suffix):
    indices = np.arange(SIDE[0] * SIDE[1]).reshape(SIDE).astype(np.uint8) % 3
    palette = Image.new("P", SIDE[::-1])
    palette.putdata(indices.ravel().tolist())
    palette.putpalette([200, 0, 0, 0, 150, 0, 0, 0, 100])
    palette.save(tmp_path / f"palette.{suffix}", transparency=2)
    expected = np.array([[200, 0, 0], [0, 150, 0], [255, 255, 255]], np.uint8)[indices]
    np.testing.assert_array_equal(load_image(tmp_path / f"palette.{suffix}"), expected)


@pytest.mark.parametrize("suffix", ["jpg", "tiff"])
def test_cmyk_is_not_inverted(tmp_path, suffix):
    ink = Image.new("CMYK", SIDE[::-1], (0, 255, 255, 0))  # magenta and yellow: red
    ink.save(tmp_path / f"ink.{suffix}")
    picture = load_image(tmp_path / f"ink.{suffix}")
    np.testing.assert_allclose(picture, np.broadcast_to([255, 0, 0], picture.shape), atol=3)


# How the stored rows and columns lie in the upright picture, from the EXIF 2.3 specification.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(smooth_picture()).save(tmp_path / "turned.png", exif=exif)
    expected = UPRIGHT[orientation](smooth_picture())
    np.testing.assert_array_equal(load_image(tmp_path / "turned.png"), expected)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_of_an_animation_it_is_the_first_frame(tmp_path, suffix):
    frames = [Image.new("RGB", SIDE[::-1], colour) for colour in ("red", "blue")]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
    picture = load_image(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(picture, np.broadcast_to([255, 0, 0], picture.shape))


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such picture: '.*nothing\.png'"):
        load_image(tmp_path / "nothing.png")


def test_a_folder(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder"):
        load_image(tmp_path)


def test_a_pipe_is_refused_rather_than_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match=r"pipe\.png' is not a regular file"):
        load_image(tmp_path / "pipe.png")


def test_a_bomb_is_refused_from_its_header(tmp_path):
    """30000 x 30000 pixels are promised; the body would be an error if it were read at all."""
    (tmp_path / "bomb.png").write_bytes(png(30000, 30000, b""))
    with pytest.raises(ValueError, match=r"bomb\.png' is too large.*80,000,000"):
        load_image(tmp_path / "bomb.png")


def test_the_size_limit_is_ours_and_silent(tmp_path):
    """Pillow itself would only warn of this one."""
    (tmp_path / "large.png").write_bytes(png(10000, MAX_PIXELS // 10000 + 1000, b""))
    with pytest.raises(ValueError, match="10000 x 9000 pixels"):
        load_image(tmp_path / "large.png")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"not a picture at all, but some text", "is not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\nshowpage\n", "is not a picture"),
        (png(1, 1, b"\0\0"), "is too small: 1 x 1 pixels; at least 8 x 8"),
        (png(7, 400, bytes(8 * 400)), "is too small: 7 x 400 pixels"),
        (png(20, 20, bytes(21 * 20))[:20], "is not a picture|damaged header"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(tmp_path, content, message):
    (tmp_path / "file <b>.png").write_bytes(content)
    with pytest.raises(ValueError, match=rf"file <b>\.png'.*({message})"):
        load_image(tmp_path / "file <b>.png")


def test_float_pixels_are_refused(tmp_path):
    Image.fromarray(np.ones(SIDE, np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(ValueError, match="8 or 16 bits"):
        load_image(tmp_path / "float.tiff")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tiff", "bmp", "ppm"])
def test_a_truncated_picture_is_refused(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    whole = io.BytesIO()
    Image.fromarray(noise).save(whole, format={"jpg": "jpeg"}.get(suffix, suffix))
    for share in (0.3, 0.6, 0.9):
        (tmp_path / f"cut.{suffix}").write_bytes(whole.getvalue()[: int(share * whole.tell())])
        with pytest.raises(ValueError, match=rf"cut\.{suffix}'"):
            load_image(tmp_path / f"cut.{suffix}")


@pytest.mark.parametrize(
    "suffix", ["png", "jpeg", "gif", "webp", "tiff", "bmp", "ppm", "tga", "qoi"]
)
def test_damage_anywhere_is_an_error_or_a_picture_and_never_a_warning(tmp_path, suffix):
    random = np.random.default_rng(1)
    whole = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if suffix in ("png", "jpeg", "webp", "tiff") else {}
    Image.fromarray(smooth_picture()).save(whole, format=suffix, **options)
    file = tmp_path / "damaged"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(150):
            content = bytearray(whole.getvalue())
            for place in random.integers(0, len(content), 3):
                content[place] = random.integers(256)
            file.write_bytes(content)
            with contextlib.suppress(ValueError):
                picture = load_image(file)
                assert picture.dtype == np.uint8
                assert picture.ndim == 3
