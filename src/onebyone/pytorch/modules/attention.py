"""`nn.MultiheadAttention` with its projections as 1×1 convolutions.

`nn.MultiheadAttention` never calls its `out_proj`. It passes that layer's weight, and a packed input projection that is
not a layer, to a fused function. In eval mode, `nn.TransformerEncoderLayer` does the same with all of its layers. So
replacing `out_proj` alone would have no effect, and the attention as a whole is replaced by a drop-in that calls its
projections.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onebyone.pytorch.modules.dropins import DropIn, pointwise_convolution
from onebyone.pytorch.modules.layers import changed_class, plain_class, why_not_tensors
from onebyone.pytorch.modules.native import Shell

# Modules that read the weights of children unless a flag is set: the name of the flag, its value, the children.
READERS: dict[str, tuple[object, tuple[str, ...]]] = {
    # nn.TransformerEncoderLayer in eval mode: 0 switches its fused function off
    "activation_relu_or_gelu": (0, ("self_attn", "linear1", "linear2")),
    # timm's attention in beit, eva and swin_transformer_v2: F.linear(x, self.qkv.weight, three biases)
    "qkv_bias_separate": (True, ("qkv",)),
}


class PointwiseAttention(nn.MultiheadAttention):
    """Drop-in replacement of `nn.MultiheadAttention`: same arguments and results, all four projections as convolutions.

    Source: Vaswani et al., "Attention Is All You Need", 2017, §3.2.2. Made by `onebyone.convert(model, to="conv")`.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """query (N, L, E), key and value (N, S, ·), batch first or not, or without N; as `nn.MultiheadAttention`."""
        if query.is_nested:
            return self._ragged(query, need_weights, average_attn_weights)
        if query.dim() == 2:
            out, weights = self.forward(
                *_batched(query, key, value, self.batch_first),
                None if key_padding_mask is None else key_padding_mask.unsqueeze(0),
                need_weights,
                attn_mask,
                average_attn_weights,
                is_causal,
            )
            return out.squeeze(0 if self.batch_first else 1), None if weights is None else weights.squeeze(0)
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal says that attn_mask is the causal mask: give attn_mask too")
        q, k, v = (self._heads(t) for t in self._project(query, key, value))
        hint = is_causal and key_padding_mask is None and not need_weights
        mask = None if hint else self._mask(attn_mask, key_padding_mask, q)
        k, v, mask = self._extended(k, v, mask)
        out, weights = self._attend(q, k, v, mask, need_weights, hint)
        out = (out.transpose(1, 2) if self.batch_first else out.permute(2, 0, 1, 3)).flatten(2)
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        return self._project_out(out), weights

    def _project_out(self, x: Tensor) -> Tensor:
        """The output projection: `out_proj` is called if it was replaced; of any other module the weight is read.

        The original reads the weight too, also that of a wrapper such as LoRA's.
        """
        projection: Any = self.out_proj
        if isinstance(projection, DropIn | Shell):
            return cast(Tensor, projection(x))
        return pointwise_convolution(x, projection.weight, projection.bias)

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        packed, bias = cast("Tensor | None", self.in_proj_weight), cast("Tensor | None", self.in_proj_bias)
        if packed is not None and query is key and key is value:
            return pointwise_convolution(query, packed, bias).chunk(3, dim=-1)
        separate = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        matrices = cast("tuple[Tensor, ...]", separate) if packed is None else packed.chunk(3)
        biases: Any = (None, None, None) if bias is None else bias.chunk(3)
        return tuple(map(pointwise_convolution, (query, key, value), matrices, biases))

    def _heads(self, x: Tensor) -> Tensor:
        """(N, L, E), or (L, N, E), to (N, heads, L, E / heads)."""
        split = x.view(*x.shape[:-1], self.num_heads, self.head_dim)
        return split.transpose(1, 2) if self.batch_first else split.permute(1, 2, 0, 3)

    def _mask(self, attn_mask: Tensor | None, padding: Tensor | None, q: Tensor) -> Tensor | None:
        """Both masks as one that is added to the scores (N or 1, heads or 1, L or 1, S)."""
        mask = None
        if attn_mask is not None:
            mask = _additive(attn_mask, q)
            mask = (
                mask[None, None]
                if mask.dim() == 2
                else mask.view(q.shape[0], self.num_heads, *mask.shape[1:])
            )
        if padding is not None:
            keys = _additive(padding, q)[:, None, None, :]
            mask = keys if mask is None else mask + keys
        return mask

    def _extended(self, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values with the learned bias and the zero appended, as the module's options ask."""
        extra: list[tuple[Tensor, Tensor]] = []
        if self.bias_k is not None and self.bias_v is not None:
            by_head = (1, self.num_heads, 1, self.head_dim)
            extra.append((self.bias_k.reshape(by_head), self.bias_v.reshape(by_head)))
        if self.add_zero_attn:
            extra.append((k.new_zeros(1, 1, 1, 1), v.new_zeros(1, 1, 1, 1)))
        for extra_k, extra_v in extra:
            shape = (*k.shape[:2], 1, k.shape[3])
            k, v = torch.cat([k, extra_k.expand(shape)], 2), torch.cat([v, extra_v.expand(shape)], 2)
            mask = None if mask is None else F.pad(mask, (0, 1))
        return k, v, mask

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, need_weights: bool, is_causal: bool
    ) -> tuple[Tensor, Tensor | None]:
        dropout = self.dropout if self.training else 0.0
        if not need_weights:
            return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal), None
        scores = (q * math.sqrt(1.0 / self.head_dim)) @ k.transpose(-2, -1)
        weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
        if dropout:
            weights = F.dropout(weights, p=dropout)
        return weights @ v, weights

    def _ragged(self, x: Tensor, need_weights: bool, average: bool) -> tuple[Tensor, Tensor | None]:
        """Self-attention on a nested tensor, which `nn.TransformerEncoder` makes from a padded batch."""
        lengths = [part.shape[0] for part in x.unbind()]
        padded = x.to_padded_tensor(0.0)
        positions = torch.arange(padded.shape[1], device=x.device)
        padding = positions >= torch.tensor(lengths, device=x.device)[:, None]
        out, weights = self.forward(padded, padded, padded, padding, need_weights, None, average)
        parts = [row[:n] for row, n in zip(out.unbind(), lengths, strict=True)]
        return torch.nested.as_nested_tensor(parts, layout=x.layout), weights


def _batched(query: Tensor, key: Tensor, value: Tensor, batch_first: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The three tensors with a batch axis; equal tensors stay one tensor."""
    axis = 0 if batch_first else 1
    batched: dict[int, Tensor] = {}
    q, k, v = (batched.setdefault(id(t), t.unsqueeze(axis)) for t in (query, key, value))
    return q, k, v


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros(mask.shape, dtype=like.dtype, device=mask.device).masked_fill_(mask, -math.inf)


def why_not_attention(module: nn.MultiheadAttention) -> str | None:
    """Why an attention cannot have a drop-in; None if it can."""
    cls = plain_class(module)
    if cls is not nn.MultiheadAttention:
        return f"a subclass of nn.MultiheadAttention ({cls.__qualname__}): what it computes is not known"
    if "forward" in vars(module):
        return "an attention whose forward was replaced on the instance: what it computes is not known"
    return why_not_tensors(module)


def install_attention(module: nn.MultiheadAttention) -> None:
    """Replace an attention, in place, by its drop-in."""
    module.__class__ = changed_class(module, PointwiseAttention)


def restore_attention(module: PointwiseAttention) -> None:
    """Turn a drop-in, in place, back into an `nn.MultiheadAttention`."""
    module.__class__ = changed_class(module, nn.MultiheadAttention)


def describe_attention(module: nn.MultiheadAttention) -> str:
    """The shapes of its input projections."""
    packed: Any = module.in_proj_weight
    separate: Any = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    matrices = separate if packed is None else (packed,)
    return "in_proj " + " + ".join("×".join(map(str, m.shape)) for m in matrices)


def call_replaced_children(module: nn.Module, replacements: tuple[type, ...]) -> None:
    """Make a module call those of its children that were replaced, instead of reading their weights.

    `replacements` are the classes that children are replaced by. Once the children are restored, the module's own
    setting is restored too. The two known cases are in `READERS`.
    """
    state = vars(module)
    for flag, (value, children) in READERS.items():
        if flag not in state:
            continue
        replaced = any(isinstance(state["_modules"].get(name), replacements) for name in children)
        before = f"_onebyone_{flag}"
        if replaced:
            state.setdefault(before, state[flag])
            state[flag] = value
        elif before in state:
            state[flag] = state.pop(before)
