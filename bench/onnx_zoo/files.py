"""The files of the zoo: what is exported, by which exporter, with a fixed or a free batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache

from bench.onnx_zoo.networks import TIMM
from bench.zoo.models import CLASSIFIERS

TORCHSCRIPT, DYNAMO, SKLEARN = "torchscript", "dynamo", "skl2onnx"
#: torchvision models that are also exported by dynamo; the others would only repeat them, and each takes seconds.
BY_DYNAMO = (
    "convnext_tiny",
    "efficientnet_b0",
    "mobilenet_v3_small",
    "resnet18",
    "shufflenet_v2_x0_5",
    "swin_t",
)
#: What is done to an exported file: ONNX Runtime's quantisers (see `exports`), its optimiser, and other types.
QDQ, QDQ_CHANNELS, QOPERATOR, DYNAMIC, FOUR_BITS, OPTIMISED, HALF = (
    "qdq", "qdq-per-channel", "qoperator", "dynamic-int8", "4-bit", "ort-optimised", "float16",
)  # fmt: skip


@dataclass(frozen=True)
class File:
    """One file: the network's source, the exporter, whether its batch is free, and what is done to the file then."""

    source: str
    exporter: str
    free: bool = False
    then: str | None = None

    @property
    def key(self) -> str:
        """The file's name in the results."""
        words = [self.exporter, "free batch" if self.free else "fixed batch"]
        return f"{self.source} ({', '.join([*words, self.then] if self.then else words)})"

    @property
    def group(self) -> str:
        """The family of its network, or `quantised`."""
        return "quantised" if self.then in QUANTISED else self.source.partition(":")[0]


QUANTISED = (QDQ, QDQ_CHANNELS, QOPERATOR, DYNAMIC, FOUR_BITS)


@cache
def files() -> tuple[File, ...]:
    """All files, the small ones first."""
    return (*_blocks(), *_text(), *_quantised(), *_timm(), *_torchvision())


def _blocks() -> Iterator[File]:
    yield File("sklearn:mlp-classifier", SKLEARN, True)
    yield File("sklearn:mlp-regressor", SKLEARN, True)
    for name in ("mlp", "classifier", "channels-last", "einsum-attention", "tied", "conv1d", "conv3d"):
        yield File(f"block:{name}", TORCHSCRIPT, name in ("mlp", "channels-last"))
        yield File(f"block:{name}", DYNAMO, name in ("mlp", "channels-last"))
    yield File("block:branches", TORCHSCRIPT, True)
    yield File("block:repeated", TORCHSCRIPT)
    for name in ("lstm", "gru", "bilstm-every-step"):
        yield File(f"recurrent:{name}", TORCHSCRIPT, True)
    for name in ("lstm", "gru"):
        yield File(f"recurrent:{name}", DYNAMO)
    for name in ("mlp", "classifier"):
        yield File(f"block:{name}", TORCHSCRIPT, True, HALF)
        yield File(f"block:{name}", TORCHSCRIPT, True, OPTIMISED)


def _text() -> Iterator[File]:
    for name in ("bert", "bert-classifier", "albert", "distilbert", "gpt2", "t5-encoder"):
        yield File(f"text:{name}", TORCHSCRIPT, True)
    for name in ("bert", "gpt2"):
        yield File(f"text:{name}", DYNAMO, True)
    yield File("audio:whisper-encoder", TORCHSCRIPT)
    yield File("audio:whisper-encoder", DYNAMO)
    yield File("vision:vit", TORCHSCRIPT, True)
    yield File("vision:dinov2", DYNAMO)
    yield File("text:bert", TORCHSCRIPT, True, OPTIMISED)


def _quantised() -> Iterator[File]:
    for then in (QDQ, QDQ_CHANNELS, QOPERATOR, DYNAMIC):
        for source in ("block:mlp", "block:classifier"):
            yield File(source, TORCHSCRIPT, True, then)
    for then in (QDQ, DYNAMIC, FOUR_BITS):
        yield File("text:bert", TORCHSCRIPT, True, then)
    yield File("torchvision:shufflenet_v2_x0_5", TORCHSCRIPT, False, QDQ_CHANNELS)


def _timm() -> Iterator[File]:
    for index, name in enumerate(TIMM):
        yield File(f"timm:{name}", TORCHSCRIPT, index % 2 == 0)
    for name in ("vit_tiny_patch16_224", "mixer_s32_224", "convnext_atto"):
        yield File(f"timm:{name}", DYNAMO, True)


def _torchvision() -> Iterator[File]:
    for name in BY_DYNAMO:
        yield File(f"torchvision:{name}", DYNAMO, name != "swin_t")
    for index, name in enumerate(name for name in CLASSIFIERS if name != "vgg11_bn"):
        yield File(f"torchvision:{name}", TORCHSCRIPT, index % 2 == 0)


def chosen(globs: Sequence[str] | None) -> tuple[File, ...]:
    """The files whose key or source matches one of the globs, or all."""
    return tuple(
        f for f in files() if not globs or any(fnmatchcase(n, g) for g in globs for n in (f.key, f.source))
    )
