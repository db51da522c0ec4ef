"""FID's Inception against the same graph written out with torch.nn, and its weight files."""

import hashlib

import pytest
import torch
from plain_inception import PlainInception, preprocess, seeded_weights
from torch import nn

from ddgan_fast.evaluation.features import build_extractor
from ddgan_fast.evaluation.inception import InceptionV3, load_inception


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return seeded_weights(PlainInception())


@pytest.fixture(scope="module")
def weight_file(weights, tmp_path_factory):
    """Named, like the published one, after the first digits of its hash."""
    folder = tmp_path_factory.mktemp("inception")
    torch.save(weights, folder / "file")
    digest = hashlib.sha256((folder / "file").read_bytes()).hexdigest()
    return (folder / "file").rename(folder / f"pt_inception-seeded-{digest[:8]}.pth")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    coarse = torch.rand(2, 3, 6, 6, generator=random)
    smooth = nn.functional.interpolate(coarse, (40, 32), mode="bicubic").clamp(0, 1)
    return (255 * smooth).to(torch.uint8).permute(0, 2, 3, 1)


def plain(weights: dict[str, torch.Tensor]) -> PlainInception:
    network = PlainInception()
    network.load_state_dict({k: v for k, v in weights.items() if not k.startswith("fc.")})
    return network.eval()


def test_names_and_shapes_of_the_published_file(weights):
    own = InceptionV3().state_dict()
    assert own.keys() == weights.keys()
    assert len(own) == 566
    assert all(own[name].shape == value.shape for name, value in weights.items())
    assert own["Mixed_6e.branch7x7dbl_5.conv.weight"].shape == (192, 192, 1, 7)


def test_features_and_logits_are_those_of_the_plain_graph(weights, weight_file, images):
    network = plain(weights)
    with torch.no_grad():
        want = network(preprocess(images))
        extractor = build_extractor("inception", weights=weight_file)
        features, logits = extractor(images)
    assert features.shape == (2, 2048)
    assert want.std() > 0.01
    torch.testing.assert_close(features, want, rtol=1e-4, atol=1e-5)
    # The bias of the last layer stays out.
    torch.testing.assert_close(logits, want @ weights["fc.weight"].T, rtol=1e-4, atol=1e-4)
    assert extractor.title("fid") == "fid"
    assert "are not pytorch-fid's (6726825d)" in extractor.note()
    with torch.no_grad():  # each patched pool matters by far more than the tolerance
        for block, pool in (
            ("Mixed_5b.average", nn.AvgPool2d(3, 1, 1)),
            ("Mixed_6c.average", nn.AvgPool2d(3, 1, 1)),
            ("Mixed_7b.pool", nn.AvgPool2d(3, 1, 1)),
            ("Mixed_7c.pool", nn.AvgPool2d(3, 1, 1, count_include_pad=False)),
        ):
            name, attribute = block.split(".")
            patched = network.get_submodule(block)
            setattr(network.get_submodule(name), attribute, pool)
            assert (network(preprocess(images)) - want).abs().max() > 1e-3, block
            setattr(network.get_submodule(name), attribute, patched)


def test_grey_and_alpha(weight_file, images):
    extractor = build_extractor("inception", weights=weight_file)
    image = images[:1, :8, :8]
    grey = image[..., :1]
    torch.testing.assert_close(extractor(grey)[0], extractor(grey.repeat(1, 1, 1, 3))[0])
    with_alpha = torch.cat([image, torch.zeros_like(grey)], -1)
    torch.testing.assert_close(extractor(with_alpha)[0], extractor(image)[0])


def test_a_truncated_file(weight_file, tmp_path):
    cut = weight_file.read_bytes()[:-1000]
    (tmp_path / weight_file.name).write_bytes(cut)
    with pytest.raises(ValueError, match=r"damaged or another file: its SHA-256 begins with"):
        load_inception(tmp_path / weight_file.name)
    (tmp_path / "renamed.pth").write_bytes(cut)
    with pytest.raises(ValueError, match=r"cannot be read as pytorch-fid's Inception weights"):
        load_inception(tmp_path / "renamed.pth")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda w: w.pop("fc.weight"), "tensors differ in name .1.; it lacks fc.weight"),
        (lambda w: w.update(extra=torch.ones(1)), "it has besides extra"),
        (lambda w: w.update({"fc.bias": torch.ones(1000)}), r"fc.bias is \[1000\] instead of \[10"),
    ],
)
def test_other_tensors(weights, tmp_path, change, sentence):
    changed = {k: v if v.numel() < 5000 else torch.zeros(1).expand(v.shape)
               for k, v in weights.items()}
    change(changed)
    torch.save(changed, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=sentence):
        load_inception(tmp_path / "w.pth")


def test_a_file_of_a_single_tensor(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "w.pth")
    with pytest.raises(ValueError, match="holds no tensors by name, so it is not pytorch-fid's"):
        load_inception(tmp_path / "w.pth")


def test_a_file_that_runs_code_is_not_run(tmp_path):
    torch.save({"fc.bias": print}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="cannot be read as"):
        load_inception(tmp_path / "w.pth")


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no Inception weight file"):
        build_extractor("inception", weights=tmp_path / "none.pth")
    with pytest.raises(ValueError, match="needs its weights: name pytorch-fid's file"):
        build_extractor("inception")
    with pytest.raises(ValueError, match="choose one of inception, lite0, digits"):
        build_extractor("vgg")
    with pytest.raises(ValueError, match="but the extractor is digits"):
        build_extractor("digits", weights=tmp_path)
