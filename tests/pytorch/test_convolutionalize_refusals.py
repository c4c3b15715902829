"""What cannot be lifted is refused by operator and module path; what is not a network, or a window that does not fit,
gets one sentence."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from onebyone.errors import BadInput, Refused
from onebyone.pytorch.graph import convert_graph
from onebyone.pytorch.lift.convolutionalize import convolutionalize
from tests.pytorch.anysize import Apply, deviation, image_for, randomise


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).chunk(3, -1)
        return self.head(F.scaled_dot_product_attention(q, k, v).mean(1))


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.position, self.head = nn.Parameter(torch.zeros(1, 4, 6, 6)), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head((x + self.position).relu().mean((2, 3)))


class Squeeze(nn.Module):
    """Squeeze-and-excitation with a hard gate, as MobileNet V3 has it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * F.hardsigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))


def body(*middle: nn.Module) -> nn.Sequential:
    """A small trunk over 8×8 windows with something in the middle: 6×6 positions, 4 channels."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), *middle, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


REFUSED = {
    "attention": (
        nn.Sequential(nn.Conv2d(3, 4, 3), Attention()),
        "1",
        "aten.scaled_dot_product_attention",
        "attention",
    ),
    "position embedding": (
        nn.Sequential(nn.Conv2d(3, 4, 3), Embedded()),
        "1",
        "aten.add",
        "depends on the position",
    ),
    "instance norm": (body(nn.InstanceNorm2d(4)), "1", "aten.instance_norm", "choose context="),
    "group norm": (body(nn.GroupNorm(2, 4)), "1", "aten.group_norm", "choose context="),
    "mixing the batch": (body(Apply(lambda x: x + x.flip(0))), "1", "aten.flip", "different samples"),
    "softmax over the batch": (body(Apply(lambda x: x.softmax(0))), "1", "aten.softmax", "batch"),
    "bicubic upsampling": (
        body(nn.Upsample(scale_factor=2, mode="bicubic")),
        "1",
        "aten.upsample",
        "interpolation",
    ),
    "transposed convolution": (body(nn.ConvTranspose2d(4, 4, 2, 2)), "1", "aten.conv_transpose2d", "phases"),
    "spectra": (body(Apply(lambda x: torch.fft.fft2(x).abs())), "1", "aten.fft_fft2", "no rule"),
    "sorting the batch": (body(Apply(lambda x: x.sort(0).values)), "1", "aten.sort", "batch"),
    "mean over the batch": (body(Apply(lambda x: x - x.mean())), "1", "aten.mean", "mixes its samples"),
    "global context": (body(Squeeze(4)), "1", "aten.mul", "choose context="),
    "batch statistics": (
        nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten(), nn.Linear(144, 3)
        ),
        "1",
        "aten.batch_norm",
        "batch",
    ),
    "norm by position, then flipped": (
        nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.Flatten(),
            nn.BatchNorm1d(144),
            Apply(lambda x: x.flip(1)),
            nn.Linear(144, 3),
        ),
        "3",
        "aten.flip",
        "rearranged",
    ),
    "channels by an index that depends on the image": (
        body(Apply(lambda x: x.gather(1, x.argsort(1)))),
        "1",
        "aten.gather",
        "an index that depends on the image",
    ),
    "attention by einsum": (
        body(
            Apply(
                lambda x: (
                    x
                    + torch.einsum("bci,bcj->bij", x.flatten(2), x.flatten(2)).mean((1, 2))[
                        :, None, None, None
                    ]
                )
            )
        ),
        "1",
        "aten.einsum",
        "attention",
    ),
    "a product over the batch": (
        body(Apply(lambda x: torch.einsum("nchw,nm->mchw", x, torch.eye(2, dtype=x.dtype)))),
        "1",
        "aten.einsum",
        "the batch axis",
    ),
    "positions mixed by a matrix": (
        body(Apply(lambda x: (x.flatten(2) @ x.new_ones(36, 36).triu()).unflatten(2, (6, 6)))),
        "1",
        "aten.matmul",
        "positions are mixed channel by channel",
    ),
    "zeros that lie among the positions": (
        body(Apply(lambda x: torch.cat([x, torch.zeros_like(x[:, :, :1])], 2)), nn.Conv2d(4, 4, 3)),
        "2",
        "aten.conv2d",
        "channels and positions are mixed",
    ),
    "a pool over channels and places": (
        body(Apply(lambda x: F.avg_pool3d(x, 3, 1, 1))),
        "1",
        "aten.avg_pool3d",
        "a pool over 3 axes",
    ),
    "indices of a max-pool": (
        body(Apply(lambda x: sum(F.max_pool2d(x, 2, return_indices=True)))),
        "1",
        "getitem",
        "indices of a max-pool",
    ),
    "a norm of another framework's": (
        body(nn.CrossMapLRN2d(3)),
        "1",
        "CrossMapLRN2d",
        "nn.LocalResponseNorm of an odd size computes the same",
    ),
    "a map for one window": (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
        "",
        "output 0",
        "a map of 6×6 positions",
    ),
    "a constant result": (Apply(lambda x: torch.ones(2, 3)), "", "output 0", "does not depend"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str) -> None:
    model, path, kind, reason = REFUSED[name]
    with pytest.raises(Refused) as caught:
        convolutionalize(randomise(model), 8, 3)
    (refusal,) = caught.value.refusals
    assert refusal.path.startswith(path)
    assert refusal.kind.startswith(kind)
    assert reason in refusal.reason
    assert caught.value.exit_code == 3


def test_every_reason_is_given_at_once() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.embedded = nn.InstanceNorm2d(3), Embedded()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x).mean((2, 3)) + self.embedded(torch.cat([x, x[:, :1]], 1)[:, :, 1:-1, 1:-1])

    with pytest.raises(Refused) as caught:
        convolutionalize(Two(), 8, 3)
    assert {r.path for r in caught.value.refusals} == {"norm", "embedded"}


class Responses(nn.Module):
    """Global response normalisation, ConvNeXt V2's, in its channels-last layout."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.permute(0, 2, 3, 1)
        norm = x.norm(p=2, dim=(1, 2), keepdim=True)
        out = x + x * (norm / (norm.mean(dim=-1, keepdim=True) + 1e-6)) * self.gamma + self.beta
        return out.permute(0, 3, 1, 2)


class SplitAttention(nn.Module):
    """ResNeSt's: two branches weighed against each other, channel by channel, by what both pool."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.expand, self.weigh = nn.Conv2d(channels, 2 * channels, 1), nn.Conv2d(channels, 2 * channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        branches = self.expand(x).reshape(n, 2, c, h, w)
        gap = branches.sum(1).mean((2, 3), keepdim=True)
        weights = self.weigh(gap).view(n, 1, 2, c).transpose(1, 2).softmax(1).reshape(n, 2, c, 1, 1)
        return (branches * weights).sum(1)


CONTEXTS = {
    "squeeze and excitation": lambda: Squeeze(4),
    "instance norm": lambda: nn.InstanceNorm2d(4, affine=True),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "response norm": lambda: Responses(4),
    "split attention": lambda: SplitAttention(4),
}


@pytest.mark.parametrize("context", ["window", "image"])
@pytest.mark.parametrize("name", CONTEXTS)
def test_global_context_by_choice(name: str, context: str) -> None:
    model = body(nn.Conv2d(4, 4, 3), CONTEXTS[name](), nn.ReLU(), nn.Conv2d(4, 4, 2))
    with pytest.raises(Refused, match="choose context="):
        convolutionalize(model, 8)
    d, error = deviation(model, 8, context=context)
    assert not d.geometry.exact
    assert any(f"taken over the {context}" in reason for reason in d.geometry.inexact_because)
    assert error > 1e-4, "neighbouring windows share their positions"
    image = image_for(d, (8, 8))
    with torch.no_grad():
        assert (d.model(image)[..., 0, 0] - model(image)).abs().max() < 1e-10


def test_window_context_is_the_same_in_every_part_of_the_image() -> None:
    d, _ = deviation(body(Squeeze(4)), 8, context="window")
    image = image_for(d, (40, 44), batch=1)
    with torch.no_grad():
        whole, part = d.model(image), d.model(image[:, :, 7:, 9:])
    assert (whole[:, :, 7:, 9:] - part)[:, :, 6:, 6:].abs().max() < 1e-12


def test_image_context_sees_the_whole_image_and_window_context_does_not() -> None:
    model = body(Squeeze(4))
    for context, reaches in (("window", False), ("image", True)):
        d, _ = deviation(model, 8, context=context)
        image = image_for(d, (8, 60), batch=1).requires_grad_()
        (gradient,) = torch.autograd.grad(d.model(image)[0, 0, 0, 0], image)
        assert bool(gradient[..., 50:].abs().sum() > 0) is reaches


def test_a_window_that_does_not_fit_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5))
    with pytest.raises(
        BadInput, match=r"does not run on a 3×9×9 image \(at 2\): it takes 144 features and gets 196"
    ):
        convolutionalize(model, 9)
    with pytest.raises(BadInput, match=r"does not run on a 3×2×2 image \(at 0\)"):
        convolutionalize(model, 2)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"window": 0}, "window is 0; one to three positive"),
        ({"window": (8, 8, 8, 8)}, "one to three positive"),
        ({"window": 8, "channels": 0}, "channels is 0"),
        ({"window": 8, "head": "top"}, "head is 'top'; 'window' or 'cam'"),
        ({"window": 8, "context": "all"}, "context is 'all'"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        convolutionalize(body(), **arguments)  # type: ignore[arg-type]


def test_what_is_not_a_network() -> None:
    with pytest.raises(BadInput, match="model is a dict"):
        convolutionalize({}, 8)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="give channels="):
        convolutionalize(nn.Sequential(nn.Flatten(), nn.Linear(13, 2)), 8)


def test_an_image_smaller_than_the_window() -> None:
    d = convolutionalize(body(), 8)
    with pytest.raises(BadInput, match="image is 7×9, smaller than the window of 8×8"):
        d.model(torch.zeros(1, 3, 7, 9))
    with pytest.raises(BadInput, match=r"image has shape \(3, 8, 8\)"):
        d.model(torch.zeros(3, 8, 8))


def test_geometry_says_what_cannot_be_tiled() -> None:
    assert convolutionalize(body(Squeeze(4)), 8, context="image").geometry.image_wide
    assert not convolutionalize(body(Squeeze(4)), 8, context="window").geometry.image_wide
    assert not convolutionalize(body(), 8, context="image").geometry.image_wide


@pytest.mark.parametrize("name", ['a"b', "a\\", "a\nb", 'x").__class__, ("'])
def test_names_that_would_become_code_are_bad_input(name: str) -> None:
    """torch.fx writes names into the source that it runs, as they are."""
    network = nn.Sequential(nn.Flatten())
    network._modules[name] = nn.Linear(48, 3)  # as code that builds networks from files can
    with pytest.raises(BadInput, match="has a module or parameter called"):
        convolutionalize(network, (4, 4))
    with pytest.raises(BadInput, match="has a module or parameter called"):
        convert_graph(network, to="conv", example=torch.ones(1, 3, 4, 4))
