import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

import onebyone

SIZE = 32  # height and width of a window in pixels
rng = np.random.default_rng(0)
torch.manual_seed(0)
data = load_digits()
glyphs = np.kron(data.images / 16, np.ones((4, 4)))  # (1797, 32, 32), values from 0 to 1


def compose(numbers, height, width):
    """A page with one digit in each cell of a grid, and the top left corners of the digits."""
    page = rng.normal(20, 8, (height, width))
    cells = [(y, x) for y in range(0, height - 55, 56) for x in range(0, width - 55, 56)]
    corners = np.array(cells[: len(numbers)]) + rng.integers(0, 25, (len(numbers), 2))
    for number, (y, x) in zip(numbers, corners, strict=True):
        page[y : y + SIZE, x : x + SIZE] += 215 * glyphs[number]
    return page.clip(0, 255).astype(np.uint8), corners


def windows(numbers, page, corners):
    """Windows of the page: around each digit, shifted by up to 2 pixels, and elsewhere (background, class 10)."""
    anywhere = rng.integers(0, np.array(page.shape) - SIZE, (4 * len(corners), 2))
    off_centre = anywhere[np.abs(anywhere[:, None] - corners).max(-1).min(-1) > 4]
    on_digits = (corners + rng.integers(-2, 3, corners.shape)).clip(0, np.array(page.shape) - SIZE)
    crops = [page[y : y + SIZE, x : x + SIZE] for y, x in (*on_digits, *off_centre)]
    return np.stack(crops), np.concatenate([data.target[numbers], np.full(len(off_centre), 10)])


train, held_out = np.split(rng.permutation(len(glyphs)), [1500])
parts = [windows(part, *compose(part, 560, 560)) for part in train.reshape(15, 100)]
crops, classes = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))

x, y = torch.tensor(crops[:, None] / 255, dtype=torch.float32), torch.tensor(classes)
net = nn.Sequential(
    nn.Conv2d(1, 16, 8, stride=4), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(),
    nn.Flatten(), nn.Linear(32 * 5 * 5, 64), nn.ReLU(), nn.Linear(64, 11),
)
optimiser = torch.optim.Adam(net.parameters(), 4e-3)
for _ in range(10):
    for batch in torch.randperm(len(x)).split(128):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
        optimiser.step()

labels = onebyone.Labels((*"0123456789", "background"), scale=1 / 255, colour_order="L", background=("background",))
d = onebyone.convolutionalize(net.eval(), window=SIZE, labels=labels)
onebyone.verify(net, d, x[:4]).check()
d.save("digits.pt2")

page, corners = compose(held_out[:35], 280, 392)
Image.fromarray(page).save("page.png")
np.savez("truth.npz", corners=corners, digits=data.target[held_out[:35]])
