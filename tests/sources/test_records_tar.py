"""WebDataset tars: grouping, labels, long names, the index and its cache, and damaged tars."""

import io
import os
import tarfile

import numpy as np
import pytest
from makers import npy, pictures, png, tar_bytes, write_files, write_tars

from ddgan_fast.data import records_tar
from ddgan_fast.data.open import open_records
from ddgan_fast.data.records import decode
from ddgan_fast.data.records_tar import TarRecords, shards_at

IMAGES = pictures()
FILES = [png(x) for x in IMAGES]


def decoded(records):
    return np.stack([decode(records, i, 32, 3) for i in range(len(records))])


def one_tar(tmp_path, members, name="a.tar", **options):
    write_files(tmp_path, [(name, tar_bytes(members, **options))])
    return tmp_path / name


def test_samples_of_several_members(tmp_path, unchanged):
    members = []
    for i, extension in enumerate(("jpg", "PNG", "webp", "npy", "jpeg")):
        data = npy(IMAGES[i]) if extension == "npy" else FILES[i]
        members += [(f"dir/{i:03}.cls", str(9 - i).encode()), (f"dir/{i:03}.json", b"{}")]
        members += [(f"dir/{i:03}.{extension}", data), (f"dir/{i:03}.seg.png", FILES[19])]
    path = one_tar(tmp_path, members)
    unchanged()
    records = open_records(path)
    np.testing.assert_array_equal(decoded(records), IMAGES[:5])
    assert records.labels.tolist() == [9, 8, 7, 6, 5] and records.flips
    assert records.name(1) == f"{path}, member dir/001.PNG"


def test_labels_need_every_sample(tmp_path):
    members = [("0.png", FILES[0]), ("0.cls", b"3\n"), ("1.png", FILES[1])]
    assert TarRecords(one_tar(tmp_path, members)).labels is None
    members.append(("1.cls", b" 4 "))
    assert TarRecords(one_tar(tmp_path, members)).labels.tolist() == [3, 4]
    for text in (b"cat", b"", b"-2"):
        with pytest.raises(ValueError, match=r"1\.cls is no class number: it holds b'"):
            TarRecords(one_tar(tmp_path, [*members[:3], ("1.cls", text)]))


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names(tmp_path, format):
    names = [f"{'long/' * 20}{'n' * 60}{i:09}.png" for i in range(4)]
    if format != tarfile.USTAR_FORMAT:
        names += [f"{'very/' * 60}{'n' * 120}{i}.png" for i in range(4)] + ["ünïcode €.png"]
    members = list(zip(names, FILES, strict=False))
    records = TarRecords(one_tar(tmp_path, members, format=format))
    np.testing.assert_array_equal(decoded(records), IMAGES[: len(names)])
    assert [records.name(i).endswith(name) for i, name in enumerate(names)] == [True] * len(names)
    again = TarRecords(tmp_path / "a.tar")
    assert again.fingerprint == records.fingerprint and again.name(3) == records.name(3)


def test_folders_patterns_and_order(tmp_path):
    members = [(f"{i:03}.png", data) for i, data in enumerate(FILES)]
    write_tars(tmp_path, [members[:4], members[4:8], members[8:]])
    (tmp_path / "notes.txt").write_text("")
    np.testing.assert_array_equal(decoded(open_records(tmp_path)), IMAGES)
    pattern = tmp_path / "train-{00000..00001}.tar"
    np.testing.assert_array_equal(decoded(open_records(pattern)), IMAGES[:8])
    pattern = tmp_path / "train-0000{2,0}.tar"
    np.testing.assert_array_equal(decoded(open_records(pattern))[:12], IMAGES[8:])
    names = [place.name for place in shards_at(tmp_path / "train-{00000..00002}.tar")]
    assert names == ["train-00000.tar", "train-00001.tar", "train-00002.tar"]
    with pytest.raises(FileNotFoundError, match=r"train-00003\.tar does not exist"):
        open_records(tmp_path / "train-{00000..00003}.tar")
    for pattern in ("{5..1}.tar", "{0..99999999}.tar"):
        with pytest.raises(ValueError, match="is no range of shards"):
            open_records(tmp_path / pattern)
    with pytest.raises(ValueError, match="stands for more than 1,000,000 files"):
        open_records(tmp_path / "{000..999}{000..999}{0..1}.tar")


def test_keys_may_come_again_in_another_shard_but_not_in_one(tmp_path):
    shard = [("0.png", FILES[0]), ("1.png", FILES[1])]
    assert len(TarRecords(write_tars(tmp_path / "two", [shard, shard]))) == 4
    with pytest.raises(ValueError, match=r"b\.tar, member 0\.png is there twice"):
        TarRecords(one_tar(tmp_path, [*shard, shard[0]], "b.tar"))
    with pytest.raises(ValueError, match=r"c\.tar, key 0 has 2 images \(png, jpg\): a name's key"):
        TarRecords(one_tar(tmp_path, [*shard, ("0.jpg", FILES[2])], "c.tar"))


def test_dots_in_names(tmp_path):
    records = TarRecords(one_tar(tmp_path, [("a.0.png", FILES[0]), ("b.0.png", FILES[1])]))
    np.testing.assert_array_equal(decoded(records), IMAGES[:2])
    members = [("a.0.png", FILES[0]), ("a.1.png", FILES[1])]
    with pytest.raises(ValueError, match=r"key a has 2 images \(0\.png, 1\.png\)"):
        TarRecords(one_tar(tmp_path, members, "b.tar"))


def test_what_is_no_sample_is_skipped(tmp_path):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"link{kind.decode()}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        for name in ("._0.png", ".hidden.png", "README", "0.txt", "x/0.png"):
            info = tarfile.TarInfo(name)
            info.size = len(FILES[0])
            tar.addfile(info, io.BytesIO(FILES[0]))
    (tmp_path / "a.tar").write_bytes(stream.getvalue())
    records = TarRecords(tmp_path / "a.tar")
    assert len(records) == 1 and records.name(0).endswith("member x/0.png")


def test_names_that_lead_elsewhere_lead_nowhere(tmp_path):
    names = ["../../up.png", "/etc/root.png", "a\nb\x1b[31m.png"]
    records = TarRecords(one_tar(tmp_path, [(name, FILES[0]) for name in names]))
    assert len(records) == 3 and all(records.name(i).isprintable() for i in range(3))
    np.testing.assert_array_equal(decoded(records), IMAGES[[0, 0, 0]])
    assert [place.name for place in tmp_path.iterdir()] == ["a.tar"]


# Where the tar ends: inside a member, at its end, inside a header, after the first closing block.
@pytest.mark.parametrize("cut", [3 * 3584 - 600, 3 * 3584, 3 * 3584 + 100, 100, 0])
def test_cut_tar(tmp_path, cut):
    pixels = npy(IMAGES[0])
    assert 512 + -(-len(pixels) // 512) * 512 == 4096 - 512 + 512
    data = tar_bytes([(f"{i}.npy", pixels[:3072]) for i in range(6)])
    (tmp_path / "a.tar").write_bytes(data[:cut])
    with pytest.raises(ValueError, match=r"a\.tar is cut short or damaged; copy it again"):
        TarRecords(tmp_path / "a.tar")


def test_damaged_header_is_not_the_end(tmp_path):
    data = bytearray(tar_bytes([(f"{i}.png", FILES[i]) for i in range(6)]))
    data[data.index(b"3.png") + 2] ^= 1
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.tar is cut short or damaged"):
        TarRecords(tmp_path / "a.tar")


def test_no_images(tmp_path):
    with pytest.raises(ValueError, match=r"holds no images \(jpg, jpeg, png, webp, npy\)"):
        TarRecords(one_tar(tmp_path, [("0.txt", b"x")]))
    with pytest.raises(ValueError, match=r"holds no images \(jpg"):
        TarRecords(one_tar(tmp_path, []))
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match="b holds no tars"):
        TarRecords(tmp_path / "b")
    (tmp_path / "c.tar").write_bytes(b"<html>" * 999)
    with pytest.raises(ValueError, match=r"c\.tar is cut short or damaged"):
        TarRecords(tmp_path / "c.tar")


def test_bad_arrays(tmp_path):
    stream = io.BytesIO()
    np.save(stream, np.array([{}], object), allow_pickle=True)
    bad = {
        "is no array": (b"", b"\x93NUMPY", npy(IMAGES[0])[:-1], stream.getvalue()),
        "is no image": (npy(IMAGES[0].astype(np.float32)), npy(IMAGES[0, 0, 0])),
    }
    for sentence, contents in bad.items():
        for content in contents:
            records = TarRecords(one_tar(tmp_path, [("0.npy", content)]))
            with pytest.raises(ValueError, match=rf"member 0\.npy {sentence}.*out of the data"):
                decode(records, 0, 32, 3)
    grey = TarRecords(one_tar(tmp_path, [("0.npy", npy(IMAGES[0, :, :, 0]))]))
    np.testing.assert_array_equal(decode(grey, 0, 32, 1), IMAGES[0, :, :, :1])


@pytest.fixture
def walks(monkeypatch):
    """Every tar whose headers are read."""
    seen, walk = [], records_tar._walk
    monkeypatch.setattr(records_tar, "_walk", lambda shard: seen.append(shard.path) or walk(shard))
    return seen


def test_headers_are_read_once(tmp_path, walks, cache_home):
    members = [(f"{i}.png", FILES[i]) for i in range(4)] + [("0.cls", b"1")]
    path = one_tar(tmp_path, members)
    first = TarRecords(path)
    second = TarRecords(path)
    assert walks == [path] and list(cache_home.rglob("*.npz"))
    assert second.fingerprint == first.fingerprint and second.labels is None
    np.testing.assert_array_equal(decoded(second), IMAGES[:4])


def test_stale_index_is_not_used(tmp_path, walks):
    path = one_tar(tmp_path, [("0.png", FILES[0]), ("1.png", FILES[1])])
    times = path.stat()
    TarRecords(path)
    swapped = one_tar(tmp_path, [("1.png", FILES[0]), ("0.png", FILES[1])], "b.tar")
    assert swapped.stat().st_size == times.st_size
    os.utime(swapped, ns=(times.st_atime_ns, times.st_mtime_ns))
    swapped.rename(path)
    records = TarRecords(path)
    assert len(walks) == 2 and records.name(0).endswith("1.png")
    path.write_bytes(path.read_bytes() + bytes(512))
    with pytest.raises(OSError, match=r"a\.tar has changed since its index was read: start again"):
        records.read(0)
    TarRecords(path)
    assert len(walks) == 3


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_damaged_cache_is_made_anew(tmp_path, walks, cache_home, content):
    path = one_tar(tmp_path, [("0.png", FILES[0]), ("1.png", FILES[1])])
    TarRecords(path)
    (cached,) = cache_home.rglob("*.npz")
    cached.write_bytes(cached.read_bytes()[:-100] if content is None else content)
    np.testing.assert_array_equal(decoded(TarRecords(path)), IMAGES[:2])
    assert len(walks) == 2
    TarRecords(path)
    assert len(walks) == 2


def test_without_a_place_for_the_cache(tmp_path, walks, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path = one_tar(tmp_path, [("0.png", FILES[0])])
    for _ in range(2):
        np.testing.assert_array_equal(decoded(TarRecords(path)), IMAGES[:1])
    assert len(walks) == 2


def test_tar_that_is_cut_while_it_is_read(tmp_path):
    path = one_tar(tmp_path, [(f"{i}.png", FILES[i]) for i in range(6)])
    records = TarRecords(path)
    records.read(0)
    os.truncate(path, 9000)
    with pytest.raises(OSError, match=r"a\.tar has changed since its index was read"):
        records.read(5)


def test_a_member_with_holes_is_refused(tmp_path):
    """As GNU tar writes it with --sparse: a map of what is no hole before the content."""
    info = tarfile.TarInfo("GNUSparseFile.0/0.png")
    info.size = 1024
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0",
                        "GNU.sparse.name": "0.png", "GNU.sparse.realsize": "4096"}
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(b"1\n0\n512\n".ljust(512, b"\0") + bytes(512)))
    with pytest.raises(ValueError, match=r"member 0\.png is stored with holes: make the tar"):
        TarRecords(tmp_path / "a.tar")


def test_members_too_large_for_an_image_are_not_read(tmp_path, monkeypatch):
    records = TarRecords(one_tar(tmp_path, [("0.png", FILES[0]), ("1.png", FILES[1] + b"x")]))
    monkeypatch.setattr(records_tar, "LARGEST_RECORD", len(FILES[0]))
    assert records.read(0) == FILES[0]
    size, most = len(FILES[1]) + 1, len(FILES[0])
    with pytest.raises(ValueError, match=rf"1\.png holds {size:,} bytes, more than the {most:,} "):
        records.read(1)


@pytest.mark.parametrize("shape", [(0, 8, 3), (8, 0, 3), (0, 0)])
def test_arrays_without_pixels(tmp_path, shape):
    records = TarRecords(one_tar(tmp_path, [("0.npy", npy(np.zeros(shape, np.uint8)))]))
    with pytest.raises(ValueError, match=r"member 0\.npy is no image.*out of the data"):
        decode(records, 0, 32, 3)
