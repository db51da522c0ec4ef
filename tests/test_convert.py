"""Published checkpoints to ours and back, and files that must be refused."""

import argparse
import json
import pickle
from pathlib import Path

import pytest
import torch

from ddgan_fast import convert
from ddgan_fast.config import Config, DiscriminatorConfig, ModelConfig, load_config
from ddgan_fast.models import build_discriminator, build_generator

GOLDEN = Path(__file__).parent / "data" / "golden"
CONTENT, NET_G = GOLDEN / "checkpoint_ref" / "content.pth", GOLDEN / "checkpoint_ref" / "netG_0.pth"
OFFICIAL = json.loads((GOLDEN / "keys_official.json").read_text())["configs"]
PRESETS = {
    "cifar10": ("cifar10", {}),
    "lsun_church_256": ("lsun_church256", {}),
    "celeba_hq_256": ("celebahq256", {}),
    # Listed with the published default depth, not with that of the report the preset follows.
    "stackmnist": ("stacked_mnist", {"model.n_mlp": 3}),
}


def official(name):
    preset, overrides = PRESETS[name]
    return load_config(preset, overrides)


def shapes_of(module):
    return {name: list(p.shape) for name, p in module.named_parameters()}


def networks(cfg):
    with torch.device("meta"):
        return build_generator(cfg), build_discriminator(cfg)


# Official networks


def test_every_official_network_is_here():
    assert set(OFFICIAL) == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_official_names_and_shapes_both_ways(name):
    cfg, want = official(name), OFFICIAL[name]
    for module, part, there, back in (
        (
            networks(cfg)[0],
            "netG",
            convert.generator_to_published,
            convert.generator_from_published,
        ),
        (
            networks(cfg)[1],
            "netD",
            convert.discriminator_to_published,
            convert.discriminator_from_published,
        ),
    ):
        ours = shapes_of(module)
        published = there(ours, cfg)
        assert published == want[part]
        assert list(published) == list(want[part]), "in the published order"
        assert back(want[part], cfg) == ours
        prefixed = {f"module.{k}": v for k, v in want[part].items()}
        assert back(prefixed, cfg) == ours


@pytest.mark.parametrize("name", PRESETS)
def test_conversion_only_renames(name):
    """Whatever is converted comes out as the very same object."""
    cfg = official(name)
    for names, there, back in (
        (
            convert.generator_names(cfg),
            convert.generator_to_published,
            convert.generator_from_published,
        ),
        (
            convert.discriminator_names(cfg),
            convert.discriminator_to_published,
            convert.discriminator_from_published,
        ),
    ):
        ours = {k: object() for k in names}
        assert len(set(names.values())) == len(names)
        published = there(ours, cfg)
        assert set(published) == set(names.values())
        assert back(published, cfg) == ours


# Every structure of the generator

STRUCTURES = [
    {},
    {"resblock_type": "biggan_oneadagn"},
    {"resblock_type": "ddpm", "resamp_with_conv": False, "progressive_input": "none"},
    {"fir": False},
    {"fir": False, "progressive_input": "input_skip", "progressive_combine": "cat"},
    {"progressive": "output_skip", "progressive_input": "input_skip"},
    {"conditional": False},
    {"embedding_type": "fourier"},
    {"attn_resolutions": (), "num_res_blocks": 3},
]


def tiny(**changes):
    base = {"image_size": 8, "num_channels_dae": 8, "ch_mult": (1, 2), "attn_resolutions": (4,)}
    return ModelConfig(**(base | {"nz": 4, "z_emb_dim": 6, "n_mlp": 1} | changes))


@pytest.mark.parametrize("changes", STRUCTURES, ids=str)
def test_round_trip_of_weights(changes):
    model = tiny(**changes)
    generator = build_generator(model)
    published = convert.generator_to_published(generator.state_dict(), model)
    assert len(published) == len(generator.state_dict())
    other = build_generator(model)
    other.load_state_dict(convert.generator_from_published(published, model))
    for a, b in zip(generator.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_round_trip_of_a_custom_discriminator():
    cfg = Config(
        discriminator=DiscriminatorConfig(
            kind="custom", ngf=4, t_emb_dim=8, block_mults=(2, 3), block_downs=(True, False)
        )
    )
    state = build_discriminator(cfg).state_dict()
    published = convert.discriminator_to_published(state, cfg)
    assert {k.split(".")[0] for k in published} == {
        "t_embed",
        "start_conv",
        "conv1",
        "conv2",
        "final_conv",
        "end_linear",
    }
    back = convert.discriminator_from_published(published, cfg.discriminator)
    assert back.keys() == state.keys()


def test_some_of_the_tensors():
    """Gradients and moments may be missing; names that do not exist never pass."""
    model = tiny()
    ours = dict(build_generator(model).named_parameters())
    name = next(iter(ours))
    part = {name: ours[name]}
    published = convert.generator_to_published(part, model, strict=False)
    assert convert.generator_from_published(published, model, strict=False) == part
    with pytest.raises(ValueError, match="generator tensors do not fit the configuration"):
        convert.generator_to_published(part, model)
    with pytest.raises(ValueError, match=r"1 unknown \['nonsense'\]"):
        convert.generator_to_published({**ours, "nonsense": 0}, model, strict=False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ch_mult": (1, 2, 2)}, "missing"),
        ({"num_res_blocks": 1}, "unknown"),
        ({"n_mlp": 3}, "missing"),
        ({"attn_resolutions": ()}, "unknown"),
        ({"fir": False}, "missing"),
    ],
)
def test_the_wrong_configuration_is_refused(changes, words):
    published = convert.generator_to_published(build_generator(tiny()).state_dict(), tiny())
    sentence = "published generator tensors do not fit the configuration: .*choose the config"
    with pytest.raises(ValueError, match=sentence) as raised:
        convert.generator_from_published(published, tiny(**changes))
    assert words in str(raised.value)
    cfg = load_config("cifar10")
    state = dict.fromkeys(OFFICIAL["celeba_hq_256"]["netD"], 0)
    with pytest.raises(ValueError, match=r"published discriminator tensors .*unknown"):
        convert.discriminator_from_published(state, cfg)


def test_points_have_no_published_format():
    cfg = Config(
        model=ModelConfig(kind="mlp", num_channels=2), discriminator=DiscriminatorConfig(kind="mlp")
    )
    with pytest.raises(ValueError, match='only kind "ncsnpp" has a published format'):
        convert.generator_names(cfg)
    with pytest.raises(ValueError, match='not "mlp"'):
        convert.discriminator_names(cfg)


def test_classes_have_no_published_format():
    with pytest.raises(ValueError, match="is 10: the published format has no place for classes"):
        convert.generator_names(tiny(num_classes=10))


# Files


def test_a_published_training_state():
    content = convert.read_published(CONTENT)
    raw = torch.load(CONTENT, weights_only=False)
    assert set(content) == set(raw)
    assert (content["epoch"], content["global_step"]) == (1, 2)
    assert content["args"] == vars(raw["args"])
    for part in ("netG_dict", "netD_dict"):
        assert list(content[part]) == [k.removeprefix("module.") for k in raw[part]]
        assert all(k.startswith("module.") for k in raw[part])
    cfg = convert.config_of_args(content["args"])
    generator, discriminator = build_generator(cfg), build_discriminator(cfg)
    generator.load_state_dict(convert.generator_from_published(content["netG_dict"], cfg))
    discriminator.load_state_dict(convert.discriminator_from_published(content["netD_dict"], cfg))


def test_a_published_generator():
    tensors = convert.read_published(NET_G)
    raw = torch.load(NET_G, weights_only=True)
    assert list(tensors) == [k.removeprefix("module.") for k in raw]
    cfg = convert.config_of_args(convert.read_published(CONTENT)["args"])
    build_generator(cfg).load_state_dict(convert.generator_from_published(tensors, cfg))


def test_the_average_in_a_training_state():
    """netG_0.pth holds the average of the same run one epoch in; content.pth the raw weights."""
    content = convert.read_published(CONTENT)
    cfg = convert.config_of_args(content["args"])
    average = convert.ema_of_content(content, cfg)
    raw = convert.generator_from_published(content["netG_dict"], cfg)
    assert average.keys() == raw.keys()
    assert any(not torch.equal(average[name], raw[name]) for name in raw)
    published = convert.generator_from_published(convert.read_published(NET_G), cfg)
    for name, value in published.items():
        assert torch.equal(average[name], value), name


def test_a_parameter_without_an_average_keeps_its_weight():
    content = convert.read_published(CONTENT)
    cfg = convert.config_of_args(content["args"])
    name = list(content["netG_dict"])[7]
    del content["optimizerG"]["state"][7]["ema"]
    del content["optimizerG"]["state"][8]
    average = convert.generator_to_published(convert.ema_of_content(content, cfg), cfg)
    assert torch.equal(average[name], content["netG_dict"][name])
    for entry in content["optimizerG"]["state"].values():
        entry.pop("ema", None)
    with pytest.raises(ValueError, match=r"holds no EMA weights: its run had no use_ema; use raw"):
        convert.ema_of_content(content, cfg)


def test_the_configuration_of_a_published_run():
    args = convert.read_published(CONTENT)["args"]
    cfg = convert.config_of_args(args)
    model = cfg.model
    assert (model.image_size, model.num_channels_dae, model.ch_mult) == (16, 8, (1, 2))
    assert (model.attn_resolutions, model.fir_kernel) == ((16,), (1, 3, 3, 1))
    assert (model.nz, model.z_emb_dim, model.n_mlp, model.num_timesteps) == (6, 12, 1, 4)
    assert model.tanh and model.schedule == "vp"
    assert (cfg.discriminator.kind, cfg.discriminator.ngf) == ("small", 2)
    assert cfg.discriminator.t_emb_dim == 16
    assert (cfg.loss.r1_gamma, cfg.loss.lazy_reg) == (20.0, 2)
    assert (cfg.optim.lr_g, cfg.optim.lr_d, cfg.optim.ema_decay) == (0.0016, 0.00125, 0.99)
    changed = {"not_use_tanh": True, "use_geometric": True, "dataset": "lsun", "use_ema": False}
    cfg = convert.config_of_args(args | changed | {"lazy_reg": None, "world_size": 8})
    assert not cfg.model.tanh and cfg.model.schedule == "geometric"
    assert cfg.discriminator.kind == "large" and cfg.optim.ema_decay == 0.0
    assert cfg.loss.lazy_reg == 1 and cfg.run.batch_size == 32


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.pth: no such checkpoint"):
        convert.read_published(tmp_path / "nowhere.pth")
    with pytest.raises(FileNotFoundError):
        convert.read_published(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"not a checkpoint", b"PK\x03\x04 broken zip", CONTENT.read_bytes()[:5000]],
    ids=["empty", "text", "zip", "cut short"],
)
def test_garbage(tmp_path, content):
    path = tmp_path / "netG_1.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"netG_1.pth cannot be read as a checkpoint") as raised:
        convert.read_published(str(path))
    assert "\n" not in str(raised.value)


class Bomb:
    """What a malicious checkpoint holds: unpickling it touches a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("inside", [False, True])
def test_code_in_a_file_is_not_run(tmp_path, inside):
    mark, path = tmp_path / "ran", tmp_path / "content.pth"
    bomb = Bomb(mark)
    if inside:
        args = argparse.Namespace(image_size=bomb)
        torch.save({"netG_dict": {}, "netD_dict": {}, "args": args}, path)
    else:
        path.write_bytes(pickle.dumps(bomb, protocol=2))
    with pytest.raises(ValueError, match="cannot be read as a checkpoint of tensors and plain"):
        convert.read_published(path)
    assert not mark.exists()


def test_the_allow_list_does_not_stay():
    convert.read_published(CONTENT)
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"weight": torch.zeros(2)},
        {"epoch": 3},
        [torch.zeros(2)],
        torch.zeros(2),
        {"netG_dict": {}},
        {0: torch.zeros(2)},
        {"netG_dict": {}, "netD_dict": {}, "args": 3},
    ],
    ids=["empty", "other tensors", "numbers", "list", "tensor", "half", "integers", "bad args"],
)
def test_other_checkpoints_are_refused(tmp_path, content):
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"other.pth is neither a published generator"):
        convert.read_published(path)
