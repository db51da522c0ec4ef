"""Train on a folder of images from Python, and draw from what was learned.

    python examples/train_own_folder.py photos/ --run-dir runs/photos
    python examples/train_own_folder.py            # on 200 discs that it paints itself

The networks are those of the preset `digits` at 16x16 pixels, so that 500 steps take a minute or
two on a CPU: good for a first look, not for pictures. For those take a preset of your images'
size: `ddgan-fast presets` lists them.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from PIL import Image, ImageDraw

from ddgan_fast.config import load_config
from ddgan_fast.images import write_images
from ddgan_fast.sampling import generate, load_generator
from ddgan_fast.training.trainer import train

# What is not named here keeps the value of the preset.
SMALL = {
    "model.image_size": 16,
    "model.num_channels": 3,
    "model.attn_resolutions": [8],
    "data.source": "auto",
    "data.flip": True,
    "run.batch_size": 32,
    "run.sample_count": 16,
}


def paint(folder: Path, n: int = 200) -> None:
    """Fill a folder with images of discs in random colours."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(0)
    for i in range(n):
        image = Image.new("RGB", (32, 32), "black")
        x, y, radius = chance.randint(8, 24), chance.randint(8, 24), chance.randint(4, 8)
        colour = tuple(chance.randint(80, 255) for _ in range(3))
        ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        image.save(folder / f"{i:04}.png")


def main() -> None:
    """Read the command line, train, draw."""
    parser = argparse.ArgumentParser(description="Train a small DDGAN on a folder of images.")
    parser.add_argument("folder", nargs="?", help="images of any size; default: painted ones")
    parser.add_argument("--run-dir", default="runs/own")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--device", help="cpu or cuda; default: a GPU if there is one")
    given = parser.parse_args()
    run_dir = Path(given.run_dir)
    folder = Path(given.folder) if given.folder else run_dir.with_name(f"{run_dir.name}-images")
    if not given.folder:
        paint(folder)

    here = {"data.path": str(folder), "run.dir": str(run_dir), "run.steps": given.steps}
    config = load_config("digits", SMALL | here)
    # The same call again goes on where the run stopped.
    result = train(config, device=given.device)
    if not result.finished:
        return

    model = load_generator(run_dir)
    write_images(generate(model, 16, seed=0), run_dir / "drawn.png")
    print(f"16 drawings are in {run_dir / 'drawn.png'}.")


if __name__ == "__main__":
    main()
