"""The convolution that backbones and heads are made of."""

from detectron2.layers import Conv2d, get_norm

__all__ = ["conv_norm"]


def conv_norm(
    in_channels: int,
    out_channels: int,
    kernel: int,
    norm,
    *,
    dilation: int = 1,
    bias: bool | None = None,
    **kwargs,
) -> Conv2d:
    """A convolution that at stride 1 keeps the size, and the norm behind it.

    Args:
        kernel: side of the kernel, odd.
        norm: see `get_norm`.
        bias: by default only without a norm, which would take it away again.
        kwargs: of `Conv2d`: stride, groups, activation.
    """
    return Conv2d(
        in_channels,
        out_channels,
        kernel,
        dilation=dilation,
        padding=dilation * (kernel // 2),
        bias=not norm if bias is None else bias,
        norm=get_norm(norm, out_channels),
        **kwargs,
    )
