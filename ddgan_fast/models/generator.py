"""The NCSN++ generator with latent-modulated norms: G(x_{t+1}, t, z) -> x_0."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import torch
import torch.nn.functional as F
from torch import nn

from ..config import ModelConfig
from .blocks import ResidualBlock, joint_modulations
from .labels import label_embedding, with_label
from .layers import (
    SQRT_HALF,
    AffineGroupNorm,
    Attention,
    ConvDownsample,
    DropoutDraws,
    FourierEmbedding,
    LatentMapping,
    Resampler,
    conv,
    dense,
    timestep_embedding,
)
from .rewrites import Rewrites

BlockRunner = Callable[[nn.Module, torch.Tensor], torch.Tensor]


class DownLevel(nn.Module):
    """One resolution on the way down."""

    blocks: nn.ModuleList
    attentions: nn.ModuleList

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        self.attentions = nn.ModuleList()
        self.downsample: nn.Module | None = None
        self.pyramid: nn.Module | None = None


class UpLevel(nn.Module):
    """One resolution on the way up."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        self.attention: nn.Module | None = None
        self.out_norm: nn.Module | None = None
        self.out_conv: nn.Module | None = None
        self.upsample: nn.Module | None = None


class Generator(nn.Module):
    """U-Net of residual blocks with FIR resampling, attention and an input pyramid.

    With a configuration without latent (nz 0) nothing maps z, and the norms are affine ones; such
    a network also serves to predict the noise of a DDPM.

    Args:
        cfg: the model's configuration, validated.
        rewrites: the orders in which it computes; default those of "auto".
        recompute: resolutions (pixels) whose blocks run again in the backward pass.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        rewrites: Rewrites | None = None,
        recompute: Collection[int] = (),
    ) -> None:
        super().__init__()
        self.cfg = cfg
        self.rewrites = rewrites or Rewrites()
        self.recompute = recompute
        nf = cfg.num_channels_dae
        self.taps = cfg.fir_kernel if cfg.fir else None
        if cfg.embedding_type == "fourier":
            self.fourier = FourierEmbedding(nf, cfg.fourier_scale)
        if cfg.conditional:
            embedding = 2 * nf if cfg.embedding_type == "fourier" else nf
            self.time_embed = nn.ModuleList([dense(embedding, 4 * nf), dense(4 * nf, 4 * nf)])
        self.conv_in = conv(cfg.num_channels, nf)
        self.pyramid_resample = Resampler(self.taps)
        self.down = nn.ModuleList()
        widths = self._build_down(nf)
        self.middle = nn.ModuleList(
            [self._block(widths[-1]), self._attention(widths[-1]), self._block(widths[-1])]
        )
        self.up = nn.ModuleList()
        width = self._build_up(widths)
        if cfg.progressive == "none":
            self.out_norm = AffineGroupNorm(width)
            self.out_conv = conv(width, cfg.num_channels, scale=0.0)
        if cfg.nz:
            self.mapping = LatentMapping(cfg.nz, cfg.z_emb_dim, cfg.n_mlp)
        blocks = [module for module in self.modules() if isinstance(module, ResidualBlock)]
        for number, block in enumerate(blocks):
            block.number = number
        self.numbered = tuple(blocks)
        if not cfg.conditional:
            # They exist for the sake of the published format, but nothing flows through them.
            for block in blocks:
                block.time_proj.requires_grad_(False)
        # Last, so that all other initial weights are those of a network without classes.
        self.label_embed = label_embedding(cfg.num_classes, 4 * nf)

    def _block(
        self, n_in: int, n_out: int | None = None, resample: str | None = None
    ) -> ResidualBlock:
        cfg = self.cfg
        return ResidualBlock(
            n_in,
            n_out,
            time_width=4 * cfg.num_channels_dae,
            latent_width=cfg.z_emb_dim if cfg.nz else 0,
            taps=self.taps,
            resample=resample,
            kind=cfg.resblock_type,
            dropout=cfg.dropout,
            skip_rescale=cfg.skip_rescale,
            skip_low=self.rewrites.skip_low,
            recompute=self.recompute,
        )

    def _attention(self, channels: int) -> Attention:
        return Attention(channels, self.cfg.skip_rescale, self.rewrites.sdpa)

    def _build_down(self, width: int) -> list[int]:
        """Build the levels, finest first; returns the widths of all skip connections."""
        cfg = self.cfg
        widths, pyramid = [width], cfg.num_channels
        for i, mult in enumerate(cfg.ch_mult):
            level = DownLevel()
            for _ in range(cfg.num_res_blocks):
                level.blocks.append(self._block(width, cfg.num_channels_dae * mult))
                width = cfg.num_channels_dae * mult
                if cfg.image_size >> i in cfg.attn_resolutions:
                    level.attentions.append(self._attention(width))
                widths.append(width)
            if i < len(cfg.ch_mult) - 1:
                if cfg.resblock_type == "ddpm":
                    level.downsample = Resampler(self.taps)
                else:
                    level.downsample = self._block(width, resample="down")
                if cfg.progressive_input == "residual":
                    level.pyramid = ConvDownsample(pyramid, width, self.taps)
                    pyramid = width
                elif cfg.progressive_input == "input_skip":
                    level.pyramid = conv(pyramid, width, kernel=1)
                    if cfg.progressive_combine == "cat":
                        width *= 2
                widths.append(width)
            self.down.append(level)
        return widths

    def _build_up(self, widths: list[int]) -> int:
        """Build the levels, coarsest first; returns the width of the last."""
        cfg = self.cfg
        widths, width = list(widths), widths[-1]
        for i in reversed(range(len(cfg.ch_mult))):
            level = UpLevel()
            for _ in range(cfg.num_res_blocks + 1):
                target = cfg.num_channels_dae * cfg.ch_mult[i]
                level.blocks.append(self._block(width + widths.pop(), target))
                width = target
            if cfg.image_size >> i in cfg.attn_resolutions:
                level.attention = self._attention(width)
            if cfg.progressive == "output_skip":
                level.out_norm = AffineGroupNorm(width)
                level.out_conv = conv(width, cfg.num_channels, scale=0.0)
            if i > 0:
                if cfg.resblock_type == "ddpm":
                    level.upsample = Resampler(self.taps)
                else:
                    level.upsample = self._block(width, resample="up")
            self.up.append(level)
        return width

    def construction_order(self) -> Iterator[tuple[str, nn.Module]]:
        """Name and module of every part, in the order of the published module list."""
        names = {id(module): name for name, module in self.named_modules()}
        for module in self._parts():
            yield names[id(module)], module

    def _parts(self) -> Iterator[nn.Module]:
        if self.cfg.embedding_type == "fourier":
            yield self.fourier
        if self.cfg.conditional:
            yield from self.time_embed
        yield self.conv_in
        for level in self.down:
            for i, block in enumerate(level.blocks):
                yield block
                yield from level.attentions[i : i + 1]
            yield from (m for m in (level.downsample, level.pyramid) if m is not None)
        yield from self.middle
        for level in self.up:
            yield from level.blocks
            parts = (level.attention, level.out_norm, level.out_conv, level.upsample)
            yield from (m for m in parts if m is not None)
        if self.cfg.progressive == "none":
            yield self.out_norm
            yield self.out_conv

    def forward(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        z: torch.Tensor,
        drop: DropoutDraws | None = None,
        label: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predict x_0.

        Args:
            x: x_{t+1} [N, C, H, W].
            t: int64 [N], the target step.
            z: latent [N, nz]; not looked at where nz is 0.
            drop: source of dropout masks; default torch's generator.
            label: classes int64 [N]; default the null class, model.num_classes.

        Returns:
            [N, C, H, W].

        Raises:
            ValueError: a label where model.num_classes is 0.
        """
        run = self._block_runner(t, z, x.dtype, drop, label)
        if not self.cfg.centered:
            x = 2.0 * x - 1.0
        pyramid = x
        skips = [self.conv_in(x)]
        for level in self.down:
            for i, block in enumerate(level.blocks):
                h = run(block, skips[-1])
                if level.attentions:
                    h = level.attentions[i](h)
                skips.append(h)
            if level.downsample is not None:
                h = skips[-1]
                if isinstance(level.downsample, Resampler):
                    h = level.downsample.down(h)
                else:
                    h = run(level.downsample, h)
                h, pyramid = self._join_pyramid(level, h, pyramid)
                skips.append(h)
        first, attention, second = self.middle
        h = run(second, attention(run(first, skips[-1])))
        return self._decode(h, skips, run)

    def _block_runner(
        self,
        t: torch.Tensor,
        z: torch.Tensor,
        dtype: torch.dtype,
        drop: DropoutDraws | None,
        label: torch.Tensor | None,
    ) -> BlockRunner:
        """A function that runs a block on a tensor, at this time, latent and class."""
        latent = self.mapping(z) if self.cfg.nz else None
        time = self._embed_time(t, dtype)
        if time is not None:
            time = with_label(self.label_embed, time, label, t)
        if not self.rewrites.joint_styles:
            return lambda block, h: block(h, time, latent, drop)
        known = joint_modulations(self.numbered, time, latent)
        return lambda block, h: block(h, time, latent, drop, known[block.number])

    def _embed_time(self, t: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
        if not self.cfg.conditional:
            return None
        if self.cfg.embedding_type == "fourier":
            embedding = self.fourier(t)
        else:
            embedding = timestep_embedding(t, self.cfg.num_channels_dae)
        first, second = self.time_embed
        return second(F.silu(first(embedding.to(dtype))))

    def _join_pyramid(
        self, level: nn.Module, h: torch.Tensor, pyramid: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The level's output h joined with the input pyramid, and the pyramid's next state."""
        if self.cfg.progressive_input == "residual":
            pyramid = level.pyramid(pyramid) + h
            if self.cfg.skip_rescale:
                pyramid = pyramid * SQRT_HALF
            return pyramid, pyramid
        if self.cfg.progressive_input == "input_skip":
            pyramid = self.pyramid_resample.down(pyramid)
            skip = level.pyramid(pyramid)
            if self.cfg.progressive_combine == "cat":
                return torch.cat([skip, h], 1), pyramid
            return skip + h, pyramid
        return h, pyramid

    def _decode(
        self, h: torch.Tensor, skips: list[torch.Tensor], run: BlockRunner
    ) -> torch.Tensor:
        out: torch.Tensor | None = None
        for level in self.up:
            for block in level.blocks:
                h = run(block, torch.cat([h, skips.pop()], 1))
            if level.attention is not None:
                h = level.attention(h)
            if level.out_conv is not None:
                image = level.out_conv(level.out_norm(h, silu=True))
                out = image if out is None else self.pyramid_resample.up(out) + image
            if isinstance(level.upsample, Resampler):
                h = level.upsample.up(h)
            elif level.upsample is not None:
                h = run(level.upsample, h)
        if out is None:
            out = self.out_conv(self.out_norm(h, silu=True))
        return torch.tanh(out) if self.cfg.tanh else out
