"""Sample from a checkpoint: python examples/sample_in_ten_lines.py runs/digits grid.png"""

import sys

from ddgan_fast.images import write_images
from ddgan_fast.sampling import generate, load_generator

checkpoint, output = sys.argv[1:3]
model = load_generator(checkpoint)  # a run, *.safetensors, or a published content.pth
batches = generate(model, 64, seed=0)  # uint8 [b, H, W, C], batch by batch
write_images(batches, output)  # a grid (.png), .zip, .npz, or a folder
