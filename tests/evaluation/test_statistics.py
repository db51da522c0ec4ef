"""Statistics files: ours, those of others, and everything that must be refused."""

import io
import pickle
import zipfile

import numpy as np
import pytest
import torch

from ddgan_fast.evaluation.features import Extractor
from ddgan_fast.evaluation.frechet import gaussian_of
from ddgan_fast.evaluation.statistics import Provenance, read_statistics, write_statistics

PROVENANCE = Provenance(
    extractor="inception",
    extractor_sha256="abcdef0123456789",
    transform="bilinear",
    count=100,
    data="digits",
    data_digest="0123",
    image_size=32,
    date="2030-01-01T00:00:00+00:00",
    version="1",
)


def extractor(name: str = "inception", dim: int = 6, sha256: str = "abcdef0123456789") -> Extractor:
    def network(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x

    return Extractor(
        name, network, dim, sha256, "", at_once=1, device=torch.device("cpu")
    )


@pytest.fixture
def gaussian():
    return gaussian_of(torch.randn(100, 6, generator=torch.Generator().manual_seed(0)))


@pytest.fixture
def path(tmp_path, gaussian):
    write_statistics(tmp_path / "new/stats.npz", gaussian, PROVENANCE)
    return tmp_path / "new/stats.npz"


def test_ours_come_back_with_their_provenance(path, gaussian):
    found = read_statistics(path, extractor())
    assert torch.equal(found.gaussian.mean, gaussian.mean)
    assert torch.equal(found.gaussian.covariance, gaussian.covariance)
    assert found.provenance == PROVENANCE
    assert len(found.sha256) == 64
    assert [file.name for file in path.parent.iterdir()] == ["stats.npz"]
    with np.load(path) as archive:  # what other programs read
        assert {"mu", "sigma"} <= set(archive.files)


def test_a_name_that_is_no_npz_is_refused(tmp_path, gaussian):
    with pytest.raises(ValueError, match=r"written as .npz files, and .*stats.npy is none"):
        write_statistics(tmp_path / "stats.npy", gaussian, PROVENANCE)


def _renamed(pickled: bytes) -> bytes:
    """As numpy 1 wrote it."""
    return pickled.replace(b"numpy._core", b"numpy.core")


@pytest.mark.parametrize(
    "kind", ["npz", "npy", "npy of numpy 1", "npy of Python 2", "npy of pickle 5"]
)
def test_files_of_others(tmp_path, gaussian, kind):
    mu, sigma = gaussian.mean.numpy(), gaussian.covariance.numpy()
    path = tmp_path / f"stats.{kind[:3]}"
    if kind == "npz":
        np.savez(path, mu=mu, sigma=sigma)
    else:
        np.save(path, np.array({"mu": mu, "sigma": sigma}, dtype=object), allow_pickle=True)
    if "of" in kind:
        head = path.read_bytes()[:128]
        value = np.array({"mu": mu, "sigma": sigma}, dtype=object)
        pickled = pickle.dumps(value, protocol={"1": 2, "2": 0, "5": 5}[kind[-1]])
        path.write_bytes(head + (pickled if kind[-1] == "5" else _renamed(pickled)))
    found = read_statistics(path, extractor())
    assert torch.equal(found.gaussian.mean, gaussian.mean)
    assert torch.equal(found.gaussian.covariance, gaussian.covariance)
    assert found.provenance is None


class Bomb:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


def test_no_code_in_a_file_is_run(tmp_path):
    path, mark = tmp_path / "stats.npy", tmp_path / "mark"
    np.save(path, np.array({"mu": Bomb(mark)}, dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"it wants to call \w+.open"):
        read_statistics(path, extractor())
    np.savez(tmp_path / "stats.npz", mu=np.array({"mu": Bomb(mark)}, dtype=object))
    with pytest.raises(ValueError, match="no readable statistics file"):
        read_statistics(tmp_path / "stats.npz", extractor())
    assert not mark.exists()


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (extractor("lite0"), "is of the extractor inception, and lite0 is asked for"),
        (extractor(sha256="999"), r"other weights \(SHA-256 abcdef01, here 999\)"),
        (extractor(dim=7), "features of length 6, and those here have 7"),
    ],
)
def test_statistics_of_another_extractor(path, asked, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_statistics(path, asked)


def test_files_without_provenance_are_inceptions(tmp_path, gaussian):
    path = tmp_path / "stats.npz"
    np.savez(path, mu=gaussian.mean.numpy(), sigma=gaussian.covariance.numpy())
    with pytest.raises(ValueError, match="does not say which extractor it is of"):
        read_statistics(path, extractor("digits"))
    with pytest.raises(ValueError, match=r"have 2048 \(Inception's have 2048\)"):
        read_statistics(path, extractor(dim=2048))


def damaged(path, kind: str) -> None:
    content = path.read_bytes()
    if kind == "cut short":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "text":
        path.write_bytes(b"hello")
    elif kind == "without sigma":
        np.savez(path, mu=np.zeros(6))
    elif kind == "of other shape":
        np.savez(path, mu=np.zeros(6), sigma=np.zeros((6, 5)))
    elif kind == "not finite":
        np.savez(path, mu=np.full(6, np.nan), sigma=np.eye(6))
    elif kind == "of no provenance":
        np.savez(path, mu=np.zeros(6), sigma=np.eye(6), provenance=np.array("{}"))
    elif kind == "zip":
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("mu", b"hello")
        path.write_bytes(archive.getvalue())


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("cut short", "no readable statistics file"),
        ("text", "no readable statistics file"),
        ("without sigma", "it lacks 'sigma'"),
        ("of other shape", r"mu is \[6\] and sigma \[6, 5\]"),
        ("not finite", "not finite"),
        ("of no provenance", "it lacks 'extractor'"),
        ("zip", "no readable statistics file"),
    ],
)
def test_damage(path, kind, sentence):
    damaged(path, kind)
    with pytest.raises(ValueError, match=sentence) as error:
        read_statistics(path, extractor())
    assert str(error.value).startswith(str(path))


def test_files_that_are_something_else(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no statistics file .*none.npz"):
        read_statistics(tmp_path / "none.npz", extractor())
    (tmp_path / "stats.txt").touch()
    with pytest.raises(ValueError, match=r"they are .npz, or the published .npy"):
        read_statistics(tmp_path / "stats.txt", extractor())
    np.save(tmp_path / "array.npy", np.zeros((3, 4)))
    with pytest.raises(ValueError, match=r"it is an array of float64 \[3, 4\]"):
        read_statistics(tmp_path / "array.npy", extractor())
    np.save(tmp_path / "list.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="it holds no dictionary"):
        read_statistics(tmp_path / "list.npy", extractor())
