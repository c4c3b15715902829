"""The laws: the mathematics of the conversions, one law per file with its equation at the top.

Laws work on plain integers and NumPy arrays. They know nothing of graphs, models or files.

Equal forms of one linear map
    pointwise   linear = pointwise convolution, in 1, 2 and 3 dimensions; tokens are a channels-last image
    transposed  linear with a weight stored as (C, O) = linear with its transpose
    flatten     flatten, then linear = convolution without padding, for any start, axis order and index
    pooling     average pooling commutes with linear; a global pool becomes a pool at stride 1 on a larger map
    strided     strided pointwise convolution = subsample, then linear
    patches     convolution whose kernel equals its stride = rearrange the pixels, then linear
    grouped     grouped pointwise convolution = batched matrix product
    winograd    k×k convolution at stride 1 = linear layers on transformed tiles; 4 times fewer products for 3×3
    strassen    linear = 7 products of half the rows, inputs and outputs instead of 8, recursively
    scaling     linear = scale rows and channels by powers of two, linear, scale back: an error bound for each row

Receptive fields, cost, and how far results may differ
    geometry    window, stride, offset, receptive field and halo of chains and branching graphs, per axis
    cost        parameters, MACs, bytes read and written, arithmetic intensity
    bounds      rounding bounds of sums, and integers on which sums are exact

Inputs and outputs of a classifier
    labels      checks of preprocessing and class names
    scores      probabilities from logits, probabilities or log-probabilities

Every law has NAME and EQUATION. Functions named `why_not_…` return the reason why the law does not apply, or None; the
other functions compute shapes and weights.
"""
