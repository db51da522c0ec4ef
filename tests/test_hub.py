"""Push and pull against a stand-in for huggingface_hub: nothing leaves this machine."""

import shutil
import sys
import types

import pytest
from test_sampling import equal, image_config, point_config, weights_of

from ddgan_fast.cli import main
from ddgan_fast.config import load_config, to_dict
from ddgan_fast.hub import card, write_repository
from ddgan_fast.sampling import load_generator
from ddgan_fast.training.checkpoint import load_ema, save_ema


class Hub:
    """Repositories in a folder; counts requests."""

    def __init__(self, folder):
        self.folder, self.private, self.asked = folder, {}, []
        self.error = None

    def _request(self, name):
        self.asked.append(name)
        if self.error is not None:
            raise self.error

    def create_repo(self, repo_id, *, private, exist_ok):
        self._request("create_repo")
        assert exist_ok or repo_id not in self.private
        self.private.setdefault(repo_id, private)

    def model_info(self, repo_id):
        self._request("model_info")
        return types.SimpleNamespace(private=self.private[repo_id])

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self._request("upload_folder")
        assert commit_message
        shutil.copytree(folder_path, self.folder / repo_id, dirs_exist_ok=True)
        return types.SimpleNamespace(commit_url=f"https://hub.invalid/{repo_id}/commit/1")

    def hf_hub_download(self, repo_id, filename, *, revision):
        self._request(f"hf_hub_download {revision}")
        return str(self.folder / repo_id / filename)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    stand_in = Hub(tmp_path / "hub")
    module = types.ModuleType("huggingface_hub")
    module.HfApi = lambda: stand_in
    module.hf_hub_download = stand_in.hf_hub_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return stand_in


@pytest.fixture
def run(tmp_path):
    cfg = image_config()
    cfg.run.dir, cfg.data.path = str(tmp_path / "secret-run"), str(tmp_path / "secret-data")
    save_ema(tmp_path / "run", 1234, weights_of(cfg, 0), to_dict(cfg))
    return str(tmp_path / "run")


def test_there_and_back(tmp_path, hub, run, capsys):
    assert main(["push", run, "me/tiny"]) == 0
    said = capsys.readouterr().out
    assert "-> https://hub.invalid/me/tiny/commit/1: complete its model card" in said
    assert hub.private == {"me/tiny": False}
    files = {path.name for path in (hub.folder / "me/tiny").iterdir()}
    assert files == {"model.safetensors", "config.yaml", "README.md"}
    out = tmp_path / "sub" / "out.safetensors"
    assert main(["pull", "me/tiny", str(out), "--revision", "v1"]) == 0
    assert capsys.readouterr().out == f"me/tiny -> {out} (tiny, step 1,234).\n"
    assert hub.asked[-1] == "hf_hub_download v1"
    original = load_generator(run)
    again = load_generator(out)
    assert equal(again, original.network.state_dict()) and again.step == 1234
    assert main(["pull", "me/tiny", str(tmp_path / "netG_0.pth")]) == 0
    cfg = load_config(hub.folder / "me/tiny/config.yaml")
    assert cfg.model == original.cfg.model
    assert equal(load_generator(tmp_path / "netG_0.pth", config=cfg), original.network.state_dict())


def test_paths_of_this_machine_stay_here(hub, run):
    assert main(["push", run, "me/tiny"]) == 0
    for path in (hub.folder / "me/tiny").iterdir():
        assert b"secret" not in path.read_bytes(), path.name
    _, config, _ = load_ema(hub.folder / "me/tiny/model.safetensors")
    assert config["run"]["dir"] is None and config["data"]["path"] is None
    assert load_generator(run).cfg.data.path is not None


def test_private(hub, run, capsys):
    assert main(["push", run, "me/tiny", "--private"]) == 0
    assert hub.private == {"me/tiny": True}
    hub.private["me/seen"] = False
    assert main(["push", run, "me/seen", "--private"]) == 2
    assert "me/seen exists and everybody can see it: make it private" in capsys.readouterr().err
    assert not (hub.folder / "me/seen").exists()


def test_the_card_says_what_is_known_and_no_more(tmp_path, run):
    model = load_generator(run)
    text = card(model, "me/tiny", "ema")
    count = sum(p.numel() for p in model.network.parameters())
    for words in (
        "# tiny\n",
        "RGB images of 8x8 pixels in 2 steps",
        f"| Parameters | {count:,} |",
        "averaged (EMA, decay 0.9999)",
        "| Training steps behind them | 1,234 |",
        "| Training data | not recorded |",
        "ddgan-fast pull me/tiny model.safetensors",
        "the licence of the weights, measured quality",
    ):
        assert words in text
    assert "license" not in text and "FID" not in text
    assert "raw, not averaged" in card(model, "me/tiny", "raw")
    model.step, model.cfg.preset, model.cfg.optim.ema_decay = None, "published", 0.0
    text = card(model, "me/tiny", "ema")
    assert "them | not recorded |" in text and "of a published run" in text and "raw, not" in text
    points = point_config()
    points.data.source = "gaussians25"
    save_ema(tmp_path / "dots", 1, weights_of(points, 0), to_dict(points))
    write_repository(load_generator(tmp_path / "dots"), tmp_path, "me/dots", "ema")
    text = (tmp_path / "README.md").read_text()
    assert "makes points in the plane" in text and "25 Gaussians" in text


def test_the_card_names_the_kind_of_model(run):
    model = load_generator(run)
    assert "- gan\n" in card(model, "me/tiny", "ema")
    model.cfg.loss.kind = "ddpm"
    text = card(model, "me/tiny", "ema")
    assert "The network of a DDPM. It makes" in text and "- gan" not in text


def test_without_the_package(tmp_path, run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for command in (["push", run, "me/tiny"], ["pull", "me/tiny", str(tmp_path / "a.safetensors")]):
        assert main(command) == 1
        error = capsys.readouterr().err
        assert "the Hub needs huggingface_hub" in error and "[hub]" in error
        assert error.count("\n") == 1
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.parametrize(
    "error", [RuntimeError("401 Unauthorized.\n\nlong story"), OSError("no network"), KeyError()]
)
def test_the_hub_refuses(tmp_path, hub, run, capsys, error):
    hub.error = error
    for command in (["push", run, "me/tiny"], ["pull", "me/tiny", str(tmp_path / "a.safetensors")]):
        assert main(command) == 1
        said = capsys.readouterr().err
        assert "the Hub did not do it for me/tiny (" in said and said.count("\n") == 1
        assert "long story" not in said
    assert not hub.folder.exists() and not (tmp_path / "a.safetensors").exists()


def test_bad_input_asks_the_hub_nothing(tmp_path, hub, run, capsys):
    for command, sentence in (
        (["push", run, "tiny"], "'tiny' is no repository of the Hub: write OWNER/NAME."),
        (["pull", "a/b/c", "out.safetensors"], "'a/b/c' is no repository"),
        (["pull", "me/tiny", "out.ckpt"], "the suffix '.ckpt' of out.ckpt is unknown"),
        (["push", str(tmp_path / "no.safetensors"), "me/tiny"], "there is no checkpoint"),
    ):
        assert main(command) == 2
        assert sentence in capsys.readouterr().err
    assert hub.asked == []


def test_what_lies_there_is_checked_first(tmp_path, hub, capsys):
    (hub.folder / "me/other").mkdir(parents=True)
    (hub.folder / "me/other/model.safetensors").write_bytes(b"something else")
    assert main(["pull", "me/other", str(tmp_path / "out.safetensors")]) == 2
    assert "is not a ddgan_fast snapshot" in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()
