"""The laws: one a file, its equation at the top. Plain integers and NumPy: no graph, no model, no file.

Equal forms of one linear map
    pointwise   linear = pointwise convolution, in 1, 2 and 3 dimensions; tokens are a channels-last image
    transposed  linear on a weight stored as (C, O) = linear on its transpose
    flatten     flatten, linear = convolution without padding, for every start, axis order and index
    pooling     average pooling commutes with linear; a global pool is, on a larger map, a pool at stride 1
    strided     strided pointwise convolution = subsample, linear
    patches     convolution whose kernel is its stride = rearrange the pixels, linear
    grouped     grouped pointwise convolution = batched product
    winograd    k×k convolution at stride 1 = linear layers on transformed tiles, a quarter of the products for 3×3
    strassen    linear = 7 products of half its rows, inputs and outputs, not 8; and each of them the same way again
    scaling     linear = rows and channels scaled by powers of two, linear, scaled back: a bound for each row

What places see, what forms cost, how far results may differ
    geometry    window, stride, offset, receptive field, halo: of chains and branching graphs, per axis
    cost        parameters, MACs, bytes read and written, arithmetic intensity
    bounds      rounding bounds of sums, and integers on which sums are exact

What goes into a classifier and what comes out
    labels      preprocessing of pixels, and names of classes, that can be used
    scores      probabilities from logits, probabilities or log-probabilities

A law has NAME and EQUATION; `why_not_…` tells why it does not apply, or None; the rest are shapes and
weights.
"""
