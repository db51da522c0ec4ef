"""DALI decodes what Pillow does, to the bit; what it must not touch goes through Pillow."""

import io

import numpy as np
import pytest
import torch
from loader_sets import ENCODINGS, Encoded, Files, Pixels, encode, pictures
from PIL import Image

from ddgan_fast.data import dali_loader
from ddgan_fast.data.dali_loader import DaliDecoded
from ddgan_fast.data.loading import make_loader
from ddgan_fast.data.plan import Plan
from ddgan_fast.data.sniff import is_plain

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dali():
    return pytest.importorskip(
        "nvidia.dali", reason='NVIDIA DALI is not installed: pip install "ddgan_fast[dali]"'
    )


def files(encoding, n=13, size=24, channels=3):
    return [encode(pixels, encoding) for pixels in pictures(n, size, channels)]


def mixed_files():
    """One of every kind, and some that need Pillow."""
    kinds = [files(encoding, 1)[0] for encoding in ENCODINGS]
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(pictures(1, 24)[0])

    def saved(image, kind, **options):
        file = io.BytesIO()
        image.save(file, kind, **options)
        return file.getvalue()

    exif = Image.Exif()
    exif[0x0112] = 6
    return [
        *kinds,
        encode(pictures(1, 40)[0], "jpeg"),
        encode(pictures(1, 30)[0], "png"),
        saved(rgb.convert("L"), "PNG"),
        saved(rgb.convert("L"), "JPEG"),
        saved(rgb.convert("1"), "PNG"),
        saved(rgb.convert("P"), "PNG"),
        saved(rgb.convert("RGBA"), "PNG"),
        saved(rgb.convert("LA"), "PNG"),
        saved(rgb.convert("CMYK"), "JPEG"),
        saved(Image.fromarray(rng.integers(0, 1 << 16, (24, 24), dtype=np.uint16)), "PNG"),
        saved(rgb, "JPEG", exif=exif),
        saved(rgb, "PNG", exif=exif),
        saved(rgb, "WEBP", exif=exif),
        saved(rgb.convert("RGBA"), "WEBP"),
        saved(rgb, "BMP"),
        saved(rgb, "TIFF"),
    ]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_pixels_are_pillows(dali, encoding):
    dataset = Encoded(Files(files(encoding)), 24)
    decoded = DaliDecoded(dataset, CPU)
    for indices in (np.arange(13), np.array([3, 3, 0]), np.array([12])):
        images = decoded.fetch(indices)
        assert images.dtype == np.uint8 and images.flags.writeable
        np.testing.assert_array_equal(images, dataset.fetch(indices))


@pytest.mark.parametrize("channels", [1, 3])
def test_rare_kinds_are_pillows(dali, channels):
    dataset = Encoded(Files(mixed_files()), 24, channels)
    indices = np.arange(len(dataset))
    np.testing.assert_array_equal(
        DaliDecoded(dataset, CPU).fetch(indices), dataset.fetch(indices)
    )


@pytest.mark.parametrize("encoding", ["jpeg", "png", "webp"])
@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_batches_are_those_of_the_other_loaders(dali, encoding, world):
    dataset, plan = Encoded(Files(files(encoding)), 24), Plan(13, 3, 8)
    for rank in range(world):
        with (
            make_loader(dataset, plan, "cpu", rank, world, 7, loader="dali") as one,
            make_loader(dataset, plan, "cpu", rank, world, 7, loader="workers") as other,
        ):
            assert "DALI decodes on the CPU" in one.note
            for _ in range(4):
                got, want = next(one), next(other)
                assert got.step == want.step
                assert torch.equal(got.images, want.images) and torch.equal(got.flip, want.flip)


def test_it_is_chosen_by_itself(dali):
    dataset = Encoded(Files(files("jpeg")), 24)
    with make_loader(dataset, Plan(13, 0, 4)) as loader:
        assert "DALI decodes on the CPU; ddgan-fast prepare" in loader.note
        next(loader)


@pytest.mark.parametrize(
    ("encoding", "damage"),
    [
        ("jpeg", lambda data: data[: len(data) // 2]),
        ("png", lambda data: data[: len(data) // 2]),
        ("png", lambda data: data[:60] + bytes(20) + data[80:]),
        ("webp", lambda data: data[: len(data) // 2]),
        ("png", lambda data: b""),
        ("png", lambda data: b"<html>not found</html>"),
    ],
)
def test_a_bad_record_is_named(dali, encoding, damage):
    records = Files(files(encoding))
    records.files[7] = damage(records.files[7])
    dataset, plan = Encoded(records, 24), Plan(13, 0, 2)
    bad = next(step for step in range(20) if 7 in plan.batch(step)[0])
    with make_loader(dataset, plan, loader="dali") as loader:
        for _ in range(bad):
            next(loader)
        with pytest.raises(ValueError, match="image 007 cannot be used as an image"):
            next(loader)


def test_what_only_dali_cannot_decode_is_told_with_the_batch(dali, monkeypatch):
    records = Files(files("png"))
    records.files[7] = records.files[7][:60]
    decoded = DaliDecoded(Encoded(records, 24), CPU)
    monkeypatch.setattr(dali_loader, "decode_image", lambda *of: None)
    with pytest.raises(ValueError, match=r"cannot decode one of .*006, .*007 .*\"workers\""):
        decoded.fetch(np.array([6, 7]))
    np.testing.assert_array_equal(decoded.fetch(np.array([1]))[0], pictures(13, 24)[1])


def test_mixed_needs_a_gpu():
    dataset = Encoded(Files(files("jpeg")), 24)
    with pytest.raises(RuntimeError, match=r"cannot be used \(data.dali_device \"mixed\" needs"):
        make_loader(dataset, Plan(13, 0, 4), loader="dali", dali_device="mixed")


def test_without_dali_threads_decode(monkeypatch):
    monkeypatch.setattr(dali_loader.importlib.util, "find_spec", lambda name: None)
    dataset = Encoded(Files(files("jpeg")), 24)
    with make_loader(dataset, Plan(13, 0, 4)) as loader:
        assert loader.kind == "workers" and 'pip install "ddgan_fast[dali]"' in loader.note
    with pytest.raises(RuntimeError, match=r"not installed.*set it to \"auto\""):
        make_loader(dataset, Plan(13, 0, 4), loader="dali")


def test_a_dali_that_does_not_load_is_not_used(monkeypatch):
    def broken(name):
        raise OSError("libcuda.so.1:\n no such file")

    monkeypatch.setattr(dali_loader.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(dali_loader.importlib, "import_module", broken)
    note = make_loader(Encoded(Files(files("jpeg")), 24), Plan(13, 0, 4)).note
    assert "2 threads decode ahead (nvidia.dali cannot be imported: libcuda.so.1: no such" in note


def test_sets_that_decode_nothing_are_refused():
    dataset = Pixels(pictures(9, 8))
    with pytest.raises(RuntimeError, match="this data set does not read"):
        make_loader(dataset, Plan(9, 0, 4), loader="dali")


# Which files are left to DALI


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_ordinary_files_are_plain(encoding):
    data = files(encoding, 1)[0]
    assert is_plain(data, 24, 3) and not is_plain(data, 25, 3)
    assert not is_plain(data, 24, 1)


def test_what_is_not_plain():
    others = mixed_files()[len(ENCODINGS) :]
    plain = [is_plain(data, 24, 3) for data in others]
    #             sizes   L  L  1  P  RGBA LA CMYK 16 EXIF JPEG PNG WebP, alpha, BMP, TIFF
    assert plain == [0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 1, 0, 0, 1, 0, 0]
    grey = files("png", 1, channels=1)[0], files("jpeg", 1, channels=1)[0]
    assert all(is_plain(data, 24, 1) for data in grey)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_cut_files_do_not_break_the_look(encoding):
    data = files(encoding, 1)[0]
    for length in range(0, min(len(data), 700), 3):
        is_plain(data[:length], 24, 3)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animations_are_left_to_pillow(kind):
    first, second = (Image.fromarray(p) for p in pictures(2, 24))
    file = io.BytesIO()
    first.save(file, kind, save_all=True, append_images=[second])
    assert not is_plain(file.getvalue(), 24, 3)


@pytest.mark.gpu
def test_mixed_decoding_is_within_grey_levels(dali):
    device = torch.device("cuda", torch.cuda.current_device())
    dataset, plan = Encoded(Files(files("jpeg", 32, 64)), 64), Plan(32, 0, 8)
    with make_loader(dataset, plan, device, loader="dali", dali_device="mixed") as loader:
        batches = [next(loader) for _ in range(12)]
    for batch in batches:
        indices, flips = plan.batch(batch.step)
        difference = batch.images.cpu().int() - torch.from_numpy(dataset.fetch(indices)).int()
        assert batch.images.is_cuda and difference.abs().max() <= 8
        np.testing.assert_array_equal(batch.flip.cpu().numpy(), flips)
