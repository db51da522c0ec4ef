"""The ops in a GAN of another kind: StyleGAN2-like blocks, trained for a few steps.

    python examples/kernels_alone.py --steps 20

Nothing of ddgan_fast but its ops is used. Draws discs of 16x16 pixels; seconds on a CPU.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ddgan_fast.kernels import bias_leaky_relu, bias_leaky_relu_down, upfirdn2d

SIZE, LATENT, WIDTH = 16, 32, 32
R1_GAMMA, R1_EVERY = 1.0, 4


class SynthesisBlock(nn.Module):
    """Convolution with styled inputs, upsampling by the FIR filter, bias and leaky ReLU."""

    taps: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.style = nn.Linear(LATENT, width)
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("taps", torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """x [N, C, H, W], w [N, LATENT] -> [N, C, 2H, 2W]."""
        x = self.conv(x * (1 + self.style(w))[:, :, None, None])
        # The gain makes up for the zeros between the samples.
        x = upfirdn2d(x, self.taps, up=2, padding=(2, 1), gain=4.0)
        return bias_leaky_relu(x, self.bias, scale=math.sqrt(2))


class Generator(nn.Module):
    """z [N, LATENT] -> images [N, 1, SIZE, SIZE]."""

    def __init__(self) -> None:
        super().__init__()
        self.mapping = nn.Sequential(nn.Linear(LATENT, LATENT), nn.LeakyReLU(0.2))
        self.constant = nn.Parameter(torch.randn(1, WIDTH, 4, 4))
        self.blocks = nn.ModuleList([SynthesisBlock(WIDTH), SynthesisBlock(WIDTH)])
        self.to_image = nn.Conv2d(WIDTH, 1, 1)

    def forward(self, z: Tensor) -> Tensor:
        w = self.mapping(z)
        x = self.constant.expand(len(z), -1, -1, -1)
        for block in self.blocks:
            x = block(x, w)
        return self.to_image(x).tanh()


class DiscriminatorBlock(nn.Module):
    """Convolution, then bias, leaky ReLU and downsampling in one op."""

    taps: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.register_buffer("taps", torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C', H / 2, W / 2]."""
        return bias_leaky_relu_down(self.conv(x), self.bias, self.taps)


def discs(n: int) -> Tensor:
    """Images of one bright disc each, [n, 1, SIZE, SIZE] in [-1, 1]."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    centre = 4 + 8 * torch.rand(n, 2, 1, 1)
    radius = 2 + 2 * torch.rand(n, 1, 1)
    distance = ((x - centre[:, 0]) ** 2 + (y - centre[:, 1]) ** 2).sqrt()
    return (radius - distance).clamp(-1, 1)[:, None]


def train(steps: int, batch: int = 16) -> tuple[nn.Module, list[float]]:
    """A few steps of a GAN with R1; returns the generator and the gradient penalties."""
    torch.manual_seed(0)
    generator = Generator()
    discriminator = nn.Sequential(
        DiscriminatorBlock(1, WIDTH),
        DiscriminatorBlock(WIDTH, WIDTH),
        nn.Flatten(),
        nn.Linear(WIDTH * 16, 1),
    )
    adam_g = torch.optim.Adam(generator.parameters(), 2e-3, betas=(0.0, 0.99))
    adam_d = torch.optim.Adam(discriminator.parameters(), 2e-3, betas=(0.0, 0.99))
    penalties = []
    for step in range(steps):
        real = discs(batch).requires_grad_()
        fake = generator(torch.randn(batch, LATENT))
        logits = discriminator(real)
        loss_d = softplus(-logits).mean() + softplus(discriminator(fake.detach())).mean()
        if step % R1_EVERY == 0:
            # A derivative that is differentiated again: every op has all orders.
            (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
            penalty = gradient.square().sum((1, 2, 3)).mean()
            loss_d = loss_d + R1_GAMMA / 2 * R1_EVERY * penalty
            penalties.append(penalty.item())
        adam_d.zero_grad()
        loss_d.backward()
        adam_d.step()

        loss_g = softplus(-discriminator(fake)).mean()
        adam_g.zero_grad()
        loss_g.backward()
        adam_g.step()
        if step % 5 == 0 or step == steps - 1:
            print(f"step {step}: D {loss_d.item():.3f}, G {loss_g.item():.3f}")
    return generator, penalties


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description="Train StyleGAN2-like blocks made of our ops.")
    parser.add_argument("--steps", type=int, default=20)
    generator, _ = train(parser.parse_args().steps)
    with torch.no_grad():
        images = generator(torch.randn(4, LATENT))
    low, high = images.min().item(), images.max().item()
    print(f"Four images of {list(images.shape[1:])}, values from {low:.2f} to {high:.2f}.")


if __name__ == "__main__":
    main()
