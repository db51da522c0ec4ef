"""Lets tests/data/golden/check_golden.py run ddgan_fast; see its docstring for the interface."""

import torch
from torch import nn

from ddgan_fast import convert
from ddgan_fast.config import Config, DiscriminatorConfig, ModelConfig
from ddgan_fast.diffusion import Diffusion
from ddgan_fast.kernels import bias_leaky_relu
from ddgan_fast.kernels import upfirdn2d as _upfirdn2d
from ddgan_fast.models import build_discriminator, build_generator, layers
from ddgan_fast.models.blocks import ResidualBlock
from ddgan_fast.models.discriminator import DiscriminatorBlock
from ddgan_fast.training.draws import Draws, MicroBatch
from ddgan_fast.training.ema import WeightAverage
from ddgan_fast.training.optim import cosine_rate, make_adam
from ddgan_fast.training.steps import TrainStep


class Published(nn.Module):
    """A module of ours whose parameters carry other names, in the order given."""

    def __init__(self, inner, names):
        super().__init__()
        parameters = dict(inner.named_parameters())
        assert len(names) == len(parameters), "every parameter needs a name"
        for ours, theirs in names.items():
            *path, leaf = theirs.split(".")
            parent = self
            for part in path:
                if part not in parent._modules:
                    parent.add_module(part, nn.Module())
                parent = parent._modules[part]
            parent.register_parameter(leaf, parameters[ours])
        self.names = names
        self._inner = [inner]

    @property
    def inner(self):
        return self._inner[0]

    def _apply(self, fn, recurse=True):
        self.inner._apply(fn)
        return super()._apply(fn, recurse)

    def train(self, mode=True):
        self.inner.train(mode)
        return super().train(mode)

    def forward(self, *args):
        return self.inner(*args)


def model_config(cfg):
    return convert.config_of_args(vars(cfg)).model


def make_generator(cfg):
    model = model_config(cfg)
    return Published(build_generator(model), convert.generator_names(model))


def make_discriminator(kind, num_channels, ngf, t_emb_dim):
    cfg = Config(
        model=ModelConfig(num_channels=num_channels),
        discriminator=DiscriminatorConfig(kind=kind, ngf=ngf, t_emb_dim=t_emb_dim),
    )
    return Published(build_discriminator(cfg), convert.discriminator_names(cfg))


def diffusion(cfg, device="cpu"):
    schedule = "geometric" if cfg.use_geometric else "vp"
    return Diffusion(cfg.num_timesteps, schedule, cfg.beta_min, cfg.beta_max).to(device)


def schedule(cfg):
    return diffusion(cfg).tables


def q_sample(cfg, x0, t, noise):
    return diffusion(cfg, x0.device).q_sample(x0, t, noise)


def q_sample_pairs(cfg, x0, t, noise_next, noise_t):
    return diffusion(cfg, x0.device).q_sample_pair(x0, t, noise=(noise_next, noise_t))


def posterior_sample(cfg, x0, x_t, t, noise):
    return diffusion(cfg, x0.device).sample_posterior(x0, x_t, t, noise=noise)


def upfirdn2d(x, k, up, down, pad):
    return _upfirdn2d(x, k, up, down, pad)


def upsample_2d(x, taps):
    return layers.Resampler(taps or [1, 1]).to(x.device).up(x)


def downsample_2d(x, taps):
    return layers.Resampler(taps or [1, 1]).to(x.device).down(x)


def conv_downsample_2d(x, w, taps):
    layer = layers.ConvDownsample(w.shape[1], w.shape[0], taps or [1, 1]).to(x.device)
    return nn.functional.conv2d(layer.resample.smooth_for_conv(x), w, stride=2)


def naive_upsample_2d(x):
    return layers.Resampler(None).up(x)


def naive_downsample_2d(x):
    return layers.Resampler(None).down(x)


def fused_leaky_relu(x, b, slope, scale):
    return bias_leaky_relu(x, b, slope, scale)


def timestep_embedding(t, dim):
    return layers.timestep_embedding(t, dim)


def component(name, kwargs):
    """The published name of a part, and its arguments, to our module under published names."""
    args = dict(kwargs)
    if name.startswith("Resnet"):
        kind = {"BigGANpp_Adagn": "biggan", "BigGANpp_Adagn_one": "biggan_oneadagn"}
        kind = kind.get(name.removeprefix("ResnetBlock"), "ddpm")
        taps = args.pop("fir_kernel", (1, 3, 3, 1))
        block = ResidualBlock(
            args.pop("in_ch"),
            args.pop("out_ch", None),
            time_width=args.pop("temb_dim", 32),
            latent_width=args.pop("zemb_dim", 24),
            resample="up" if args.pop("up", False) else "down" if args.pop("down", False) else None,
            taps=taps if args.pop("fir", True) else None,
            kind=kind,
            skip_rescale=args.pop("skip_rescale", True),
            dropout=args.pop("dropout", 0.0),
        )
        return _named(block, args)
    if name == "AttnBlockpp":
        return _named(layers.Attention(args.pop("channels"), args.pop("skip_rescale", True)), args)
    if name == "AdaptiveGroupNorm":
        width = args.pop("style_dim", 24)
        return _named(
            layers.AdaptiveGroupNorm(args.pop("num_groups"), args.pop("in_channel"), width), args
        )
    if name == "PixelNorm":
        return _named(layers.PixelNorm(), args)
    if name == "Downsample":
        taps = args.pop("fir_kernel", (1, 3, 3, 1)) if args.pop("fir", False) else None
        n_in = args.pop("in_ch")
        n_out = args.pop("out_ch", None) or n_in
        if args.pop("with_conv", False):
            return _named(layers.ConvDownsample(n_in, n_out, taps), args)
        return Call(layers.Resampler(taps).down)
    if name == "Upsample":
        taps = args.pop("fir_kernel", (1, 3, 3, 1)) if args.pop("fir", False) else None
        return Call(layers.Resampler(taps).up)
    if name == "Combine":
        return Combine(args["dim1"], args["dim2"], args.get("method", "cat"))
    if name == "DownConvBlock":
        return DownConvBlock(**args)
    return None


def _named(module, rest):
    assert not rest, f"unknown arguments {rest}"
    names = dict(convert._inside(module, ""))
    return Published(module, names)


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


class Combine(nn.Module):
    """The generator joins its input pyramid inline; this is the published part by itself."""

    def __init__(self, dim1, dim2, method):
        super().__init__()
        self.Conv_0 = layers.conv(dim1, dim2, kernel=1)
        self.method = method

    def forward(self, pyramid, h):
        skip = self.Conv_0(pyramid)
        return torch.cat([skip, h], 1) if self.method == "cat" else skip + h


def DownConvBlock(in_channel, out_channel, downsample=False, t_emb_dim=32, **rest):
    block = DiscriminatorBlock(in_channel, out_channel, t_emb_dim, downsample)
    stems = {"conv1": "conv1.0", "conv2": "conv2.0", "time_proj": "dense_t1", "skip": "skip.0"}
    names = {}
    for ours, _ in block.named_parameters():
        stem, _, leaf = ours.rpartition(".")
        names[ours] = f"{stems[stem]}.{leaf}"
    return Published(block, names)


def sample(cfg, netG, x_T, z, post):
    return diffusion(cfg, x_T.device).sample_loop(netG, x_T, z=z, noise=post)


class Run:
    """A published training run: two networks, their optimisers, EMA and schedule."""

    def __init__(self, cfg, netG, netD):
        self.cfg, self.G, self.D = cfg, netG.inner, netD.inner
        self.names_g, self.names_d = netG.names, netD.names
        self.diffusion = diffusion(cfg, next(netG.parameters()).device)
        self.step = TrainStep(self.G, self.D, self.diffusion, cfg.r1_gamma)
        betas = (cfg.beta1, cfg.beta2)
        self.opt_g = make_adam(self.G.parameters(), cfg.lr_g, betas, 1e-8)
        self.opt_d = make_adam(self.D.parameters(), cfg.lr_d, betas, 1e-8)
        self.ema = WeightAverage(self.G, cfg.ema_decay)
        self.global_step = 0

    def rates(self, epoch):
        for optimizer, rate in ((self.opt_g, self.cfg.lr_g), (self.opt_d, self.cfg.lr_d)):
            if not self.cfg.no_lr_decay:
                rate = cosine_rate(epoch, rate, 1e-5, self.cfg.num_epoch)
            optimizer.param_groups[0]["lr"] = rate

    def draws(self, tape):
        cfg = self.cfg
        shape = (cfg.batch_size, cfg.num_channels, cfg.image_size, cfg.image_size)
        t = tape.integers(cfg.num_timesteps, (cfg.batch_size,))
        pair = (tape.normal(shape), tape.normal(shape))
        z = tape.normal((cfg.batch_size, cfg.nz))
        return Draws(t=t, z=z, pair_noise=pair, posterior_noise=tape.normal(shape))

    def iterate(self, real, tape):
        penalize = self.cfg.lazy_reg is None or self.global_step % self.cfg.lazy_reg == 0
        d = self.step.discriminator_gradients(
            [MicroBatch(real, None, self.draws(tape))], penalize
        )
        self.opt_d.step()
        g = self.step.generator_gradients([MicroBatch(real, None, self.draws(tape))])
        self.opt_g.step()
        if self.cfg.use_ema:
            self.ema.update(self.global_step)
        self.global_step += 1
        return {
            "errD_real": d["D/real"].mean().item(),
            "errD_fake": d["D/fake"].mean().item(),
            "errG": g["G/loss"].mean().item(),
            "r1": d["D/r1"].mean().item() if penalize else None,
        }

    def skip_preview_draws(self, tape):
        """The published code samples a preview after each epoch; its draws are on the tape."""
        cfg = self.cfg
        shape = (cfg.batch_size, cfg.num_channels, cfg.image_size, cfg.image_size)
        tape.normal(shape)
        for _ in range(cfg.num_timesteps):
            tape.normal((cfg.batch_size, cfg.nz))
            tape.normal(shape)

    def snapshot(self):
        def copy(values, names):
            return {names[k]: v.detach().clone() for k, v in values.items()}

        return {
            "G": copy(self.G.state_dict(), self.names_g),
            "D": copy(self.D.state_dict(), self.names_d),
            "ema": copy(self.ema.weights(), self.names_g),
        }

    def run(self, run):
        iters, snaps = [], {}
        for epoch in run.epochs:
            self.rates(epoch)
            for i in range(run.batches_per_epoch):
                iters.append(self.iterate(run.real(i), run.tape))
                if len(iters) in run.snapshot_at:
                    snaps[len(iters)] = self.snapshot()
            self.skip_preview_draws(run.tape)
        return {"iters": iters, "snaps": snaps}


def train(cfg, netG, netD, run):
    return Run(cfg, netG, netD).run(run)


def resume(cfg, content_path, run):
    content = convert.read_published(content_path)
    netG = make_generator(cfg)
    kind = "small" if cfg.dataset in ("cifar10", "stackmnist") else "large"
    netD = make_discriminator(kind, cfg.num_channels, cfg.ngf, cfg.t_emb_dim)
    device = run.real(0).device
    netG.to(device).load_state_dict(content["netG_dict"])
    netD.to(device).load_state_dict(content["netD_dict"])
    state = Run(cfg, netG, netD)
    _load_adam(state.opt_g, content["optimizerG"], netG)
    _load_adam(state.opt_d, content["optimizerD"], netD)
    model = model_config(cfg)
    if cfg.use_ema:
        state.ema.load(convert.ema_of_content(content, model))
    state.global_step = content["global_step"]
    return state.run(run)


def _load_adam(optimizer, saved, module):
    """Moments by published parameter number into our optimiser."""
    published = list(module.parameters())
    for i, entry in saved["state"].items():
        p = published[i]
        optimizer.state[p] = {
            "step": torch.as_tensor(float(entry["step"])).to(p.device),
            "exp_avg": entry["exp_avg"].to(p.device).clone(),
            "exp_avg_sq": entry["exp_avg_sq"].to(p.device).clone(),
        }


def official(name):
    from ddgan_fast.config import load_config

    preset = {
        "cifar10": "cifar10",
        "lsun_church_256": "lsun_church256",
        "celeba_hq_256": "celebahq256",
        "stackmnist": "stacked_mnist",
    }[name]
    cfg = load_config(preset)
    if name == "stackmnist":
        # The listed network has the published default depth, not the one of the report that the
        # preset follows.
        cfg.model.n_mlp = 3
    with torch.device("meta"):
        G = Published(build_generator(cfg), convert.generator_names(cfg))
        D = Published(build_discriminator(cfg), convert.discriminator_names(cfg))
    return tuple({k: list(v.shape) for k, v in m.state_dict().items()} for m in (G, D))

