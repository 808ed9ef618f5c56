"""What each finding of ``init-inspect`` on weights, or on the code that draws them, means."""

from __future__ import annotations

from typing import Final

from nanogpt_cli.explain.page import Action, Topic

_TENSORS = Action("See every tensor:", "nanogpt init-inspect --from SOURCE --all")
_AGAIN = Action("Fix the code or the file, and inspect the module again:",
                "nanogpt init-inspect --from SOURCE")  # fmt: skip
_SCHEMES = Action("See how the schemes draw:", "nanogpt init-inspect --list")
_DEPTH = Action("See what the depth factor does:", "nanogpt init-inspect --ablate residual-scale")
_SOUND = "Of {side:.0f} × {side:.0f} normal values drawn now with std 0.02: "
_CHANCE = (
    "What chance explains is no finding: all tests of one kind on one model together raise a false "
    "alarm with a probability of at most {alpha:g}."
)


def _of(
    title: str, says: str, judged: str, *causes: str, healthy: str, do: tuple[Action, ...] = ()
) -> Topic:
    return Topic(title, says, judged, causes, (*do, _AGAIN), healthy)


_NO_COPIES = (
    "No two of {pairs:,.0f} pairs of rows drawn now correlate by more than {row_correlation:.2f}."
)
_STD = _SOUND + "std {std:.5f}, within a part in a hundred of the law's."
_GROWTH = (
    "{scheme} at {model_layers:.0f} layers of {model_width:.0f} channels, by theory: the stream "
    "grows by ×{growth:.2f}."
)
_ALIKE = _SOUND + "rows are {row_low:.2f} to {row_high:.2f} times as large as the median row."

TOPICS: Final[dict[str, Topic]] = {
    "weights": _of(
        "how the weights were judged", "In an initialisation, every tensor must be independent "
        "draws of one law. Trained weights are judged only for damage: training makes rows and "
        "columns uneven by design.",
        "They count as trained if gains have moved and matrices have become uneven.",
        "a note says which of the two was assumed",
        healthy=_SOUND + "kurtosis {kurtosis:.2f}, rank {rank:.0f} of {sampled:.0f}.",
    ),
    "positions": _of(
        "positions, or queries and keys, are placed by design",
        "The position table holds sinusoids in its first channels, or queries and keys read these "
        "channels and nothing else, so that head h looks h positions back (scheme lookback). "
        "Such matrices are not random, and are not judged as random draws. Rows of a head beyond "
        "the first eight are zero in queries and in keys; neither then gives the other a gradient, "
        "and they stay zero in training.",
        "Every value is that of the design times one factor, up to the rounding to half precision.",
        "the scheme lookback, or [init] laws sinusoids, positions and offsets",
        healthy="This is only reported; nothing is wrong.",
        do=(Action("See what it does:", "nanogpt init-inspect --init lookback"),),
    ),
    "nearest": _of(
        "the scheme of the catalogue that the weights are closest to",
        "Most roles follow it, if need be times one factor; the other roles are compared with it. "
        "If none is near, the laws are not judged.",
        "The scheme that misses the fewest roles: logarithms of stds within {close:g} and chance.",
        "a law of your own, or one of another family, is near no scheme",
        healthy="All roles follow the scheme.", do=(_SCHEMES,),
    ),
    "scale": _of(
        "all matrices are too large or too small by one factor",
        "The ratios between the roles are those of a scheme, but their common size is not. Norms "
        "hide it from the forward pass, yet the first updates are then too small or too large.",
        "The factor is outside 1/{max_factor:g} to {max_factor:g} (up to {max_factor_width:g} for "
        "schemes that follow the width).",
        "a std given in another unit", "a factor applied to all matrices, such as the embedding's "
        "√d", healthy="A factor of 1. " + _STD, do=(_SCHEMES,),
    ),
    "depth-factor": _of(
        "the depth factor of the residual projections",
        "GPT-2 divides the std of the matrices that write to the residual stream by √(2L) for L "
        "layers, as two branches a layer are added. Missing, twice applied or counted wrongly, it "
        "changes how the stream grows with depth.",
        "The std of a projection, against that of the nearest scheme: √(2L) or √2 apart, up to "
        "chance. In code: which names are drawn with a factor of depth.",
        "a name that the code looks for (c_proj.weight) and this module does not have",
        "√L in place of √(2L)", healthy=_GROWTH, do=(_DEPTH,),
    ),
    "plain-projections": _of(
        "no depth factor at all", "Residual projections have the std of the other matrices, so the "
        "stream grows with the root of the depth. Many models train well this way.",
        "The nearest scheme is normal, which has one std for all matrices.",
        "a choice, or a scaling loop that matched no name",
        healthy=_GROWTH,
        do=(_DEPTH,),
    ),
    "half-scaled": _of(
        "one of two residual projections lacks the depth factor",
        "Attention and MLP both add to the residual stream. If only one is scaled, the other makes "
        "up most of it.",
        "One has the std of the other matrices, the other that divided by √(2L), up to chance.",
        "a name such as c_proj that matches in only one of the two modules",
        healthy=_GROWTH, do=(_DEPTH,),
    ),
    "wrong-matrix": _of(
        "the depth factor is on the wrong matrix",
        "A matrix inside a branch is scaled down where the one that ends the branch was meant. The "
        "branch is as small, but queries, keys or the activation see too small values.",
        "A std divided by √(2L) on a role that does not write to the stream.",
        "a pattern of names that matches too much",
        healthy="q, k, v and fc have the plain std. " + _STD, do=(_DEPTH,),
    ),
    "fused-xavier": _of(
        "Xavier's law was applied to the fused q, k, v",
        "One matrix holds q, k and v, and Xavier's law counts its outputs: each of the three "
        "gets a "
        "std 0.71 times that of a matrix by itself.",
        "The nearest scheme is xavier-fused.", "xavier_uniform_ on in_proj_weight or c_attn.weight",
        healthy="Each drawn by itself. " + _STD,
    ),
    "fused-orthogonal": _of(
        "q, k and v are one orthogonal matrix",
        "orthogonal_ was applied to the fused weight: none of the three is orthogonal by itself, "
        "and queries and keys are not independent.",
        "The columns of the three together have one norm, but not those of each.",
        "orthogonal_ on in_proj_weight or c_attn.weight",
        healthy="Each is drawn by itself. " + _NO_COPIES,
    ),
    "torch-default": _of(
        "torch's default is still there",
        "The values are those that nn.Linear or nn.Embedding draw in their constructor, while the "
        "rest was drawn by the scheme: this part was not initialised, or not loaded.",
        "Uniform with std 1/√(3·fan_in) (a linear layer) or std 1 (an embedding), up to chance.",
        "an _init_weights that does not reach this module", "a key missing in a state dict",
        healthy=_STD,
    ),
    "uniform-bound": _of(
        "a std was taken for the bound of a uniform law",
        "A uniform law within ±a has std a/√3, so the values are 0.58 times as large as meant.",
        "Uniform values whose bound, not std, is the one expected.",
        "uniform_(-std, std); multiply the bound by √3", healthy=_STD,
    ),
    "scaled": _of(
        "a table is multiplied by √d", "Some models multiply the embedding by √d in the forward "
        "pass; here the weights themselves are so much larger.",
        "The ratio to the nearest scheme is √d, up to chance.",
        "the factor was written into the weights, perhaps in addition to the forward pass",
        healthy="A ratio of 1. " + _STD,
    ),
    "fan": _of(
        "fan-in and fan-out are mistaken for each other",
        "A law that divides by the wrong side of a matrix makes wide outputs too small or too "
        "large.",
        "The std is that of 1/√fan_out where 1/√fan_in was expected, up to chance.",
        "a transposed weight, such as Hugging Face's Conv1D", healthy=_STD,
    ),
    "hot": _of(
        "attention starts sharp", "Queries and keys are drawn larger than the other matrices "
        "suggest, so scores before the softmax scatter more.",
        "Their std is well above that of the nearest scheme.", "a gain meant for another layer",
        healthy="Scores have a std of {score_std:.3f} at {model_layers:.0f} layers of "
        "{model_width:.0f} channels, by theory.",
    ),
    "odd-block": _of(
        "one block is unlike the others", "A role's std follows one trend over depth but for these "
        "blocks.", "Each block against the trend of all. " + _CHANCE,
        "a block added or loaded later", "the depth factor in only some of the blocks",
        healthy=_ALIKE, do=(_TENSORS,),
    ),
    "depth-order": _of(
        "the trend over depth is a mistake", "The std changes with the block's index in a way that "
        "no scheme has: backwards, shifted by one, or without any order.",
        "The stds of all blocks against the known trends. " + _CHANCE,
        "an index that counts from the wrong end", "l in place of l + 1",
        healthy="Constant over depth, 1/√(l+1) or 1/(l+1).", do=(_TENSORS,),
    ),
    "zero": _of(
        "a matrix is zero", "Nothing passes through it. If other blocks have values, it was not "
                            "loaded.",
        "Every value is zero.", "a key missing in a state dict", "memory that was cleared",
        healthy=_SOUND + "{zeros:.1%} are zero.",
    ),
    "zero-projection": _of(
        "a branch starts as nothing", "The matrix that ends a branch is zero in every block, so "
        "blocks start as the identity. It is a known choice, and the projections learn first.",
        "Every value of the role is zero, in every block.", "the scheme zero-proj",
        "float16, in which small values became zero",
        healthy=_SOUND + "{zeros:.1%} are zero.", do=(_SCHEMES,),
    ),
    "constant": _of(
        "a matrix is one value throughout", "All its outputs are alike, and stay alike: they get "
        "the same gradient.", "All values are equal and not zero.",
        "filled instead of drawn: ones_, full_", healthy=_STD,
    ),
    "constant-rows": _of(
        "rows are one value throughout", "Such a row sees only the sum of its inputs.",
        "Rows whose values are all equal.", "broadcast from a vector",
        healthy=_SOUND + "{constant_rows:.0f} such rows.",
    ),
    "zero-lines": _of(
        "rows or columns are zero", "An output that is always zero, or an input that is ignored.",
        "Rows or columns of nothing but zeros; one row of a table may be padding.",
        "a shard of a sharded file is missing", "pruning", "ids that the data do not have",
        healthy=_SOUND + "no row or column is zero.", do=(_TENSORS,),
    ),
    "sparse": _of(
        "scattered values are zero", "A dense initialisation has none.",
        "More than {max_zeros:.1%} of the values.", "pruning or a mask",
        healthy=_SOUND + "{zeros:.1%} are zero.",
    ),
    "underflow": _of(
        "small values became zero in float16", "The smallest half of the distribution is lost.",
        "More than {max_zeros:.1%} of the values are zero, and the others tiny 16-bit numbers.",
        "weights multiplied by a small factor in float16",
        healthy=_SOUND + "{zeros:.1%} are zero.",
    ),
    "subnormal": _of(
        "values are too small for float32", "Numbers below the smallest normal one lose precision "
        "and are slow.", "Many values below the smallest normal float32, but not zero.",
        "memory that was never written", "a scale that underflowed",
        healthy=_SOUND + "{subnormal:.1%} are.",
    ),
    "garbage": _of(
        "the values are not weights", "They range over so many powers of two that they are bytes "
        "read in the wrong way.",
        "The middle 80 % of |values| range over more than 2^{max_spread:g}.",
        "the wrong byte order or number format", "memory that was never written",
        healthy=_SOUND + "2^{spread:.1f}.",
    ),
    "uninitialised": _of(
        "memory that was never written", "Values are far beyond any weight.",
        "A value beyond ten thousand.", "torch.empty without a draw, or a meta tensor made real",
        healthy=_SOUND + "the furthest is {reach:.3f}.",
    ),
    "rank": _of(
        "the matrix has a low rank", "Its outputs span only a few directions: it can do less than "
        "its size suggests.", "The rank of a sample of its rows is below three quarters of their "
        "number.",
        "a product of thin factors, such as LoRA", "rows computed from others",
        healthy=_SOUND + "rank {rank:.0f} of {sampled:.0f}.",
    ),
    "quantised": _of(
        "the values are those of an int8 checkpoint", "Every row has at most 127 levels: precision "
        "was lost, and training from there starts from rounded weights.",
        "Rows are whole multiples of one step.", "a quantised file loaded as if it were the model",
        healthy=_SOUND + "no such step.",
    ),
    "clipped": _of(
        "values pile up at two bounds", "They were clamped after drawing, which is not a truncated "
        "law: that redraws what lies beyond.",
        "More than {max_at_bound:.0%} of the values equal the smallest, and as many the largest.",
        "clamp_ after normal_", healthy=_SOUND + "{at_bounds:.4%}.",
    ),
    "precision": _of(
        "the values are all 16-bit numbers", "They were drawn or stored in bfloat16 or float16. To "
        "train on from them, keep master weights in float32.",
        "Every value of the matrix is exactly representable.", "a 16-bit checkpoint",
        healthy=_SOUND + "they are not.",
    ),
    "rounded": _of(
        "one matrix was cast to 16 bits and back", "Others have full precision; this one lost its.",
        "Every value is a 16-bit number, but not those of other matrices.",
        "a cast in one place, such as a tied copy",
        healthy=_SOUND + "they are not 16-bit numbers.",
    ),
    "mean": _of(
        "the values have an offset", "Random weights have mean zero. An offset adds one common "
        "direction to all outputs.", "The mean, in its standard errors. " + _CHANCE,
        "rand in place of randn", "a value added after drawing",
        healthy=_SOUND + "{mean_errors:.1f} standard errors.",
    ),
    "odd-lines": _of(
        "some rows or columns are of another size", "They were not drawn like the rest.",
        "The mean square of each row and column, and of halves to sixteenths. " + _CHANCE,
        "rows added later for new tokens", "a head or shard drawn by another law",
        healthy=_ALIKE, do=(_TENSORS,),
    ),
    "copied-lines": _of(
        "rows or columns repeat others", "Copies start alike and, given the same gradient, stay "
        "so.",
        "Rows or columns equal to another one, or to its negative.",
        "a shard, head or expert copied in place of its own values", healthy=_NO_COPIES,
    ),
    "correlated-rows": _of(
        "rows are not independent", "They share a component, so their outputs start alike.",
        "Means of rows and columns, and correlations of pairs. " + _CHANCE,
        "rows made from one another", "one vector added to all rows", healthy=_NO_COPIES,
    ),
    "one-seed": _of(
        "matrices share their random numbers", "The generator was seeded again before each, so "
        "they are equal up to a factor.", "Correlations of all pairs of matrices. " + _CHANCE,
        "manual_seed inside a function that draws one matrix", healthy=_NO_COPIES,
    ),
    "block-copies": _of(
        "blocks are copies", "They start as the same function, which wastes depth at first.",
        "Rows of one block's matrices that occur in another's.", "copy.deepcopy of a drawn block",
        "one file loaded twice", healthy=_NO_COPIES,
    ),
    "expert-copies": _of(
        "experts are copies", "While routing is even they get the same gradient and stay equal.",
        "Rows of one expert that occur in another.", "upcycling a dense model without noise",
        healthy=_NO_COPIES,
    ),
    "qkv-copies": _of(
        "queries, keys or values are copies", "If q equals k, every token attends to itself most.",
        "Rows of one that occur in another.", "one seed for all three", healthy=_NO_COPIES,
    ),
    "wpe-copy": _of(
        "the position table repeats the token table", "Position n looks like token n.",
        "Rows of one table that occur in the other.", "one seed for both", healthy=_NO_COPIES,
    ),
    "untied-copy": _of(
        "head and embedding are equal but not tied", "Two tensors hold the same values: they were "
        "meant to be one, and training will move them apart.",
        "Rows of the head that occur in the embedding.",
        "tied before the embedding was resized or loaded", healthy="One tensor, or two draws.",
    ),
    "transposed-copy": _of(
        "a matrix is another one transposed", "As in an autoencoder with shared weights.",
        "Rows of one matrix are the columns of another one in its block.",
        "weight.T copied in place of shared, or shared on purpose", healthy=_NO_COPIES,
    ),
    "gain": _of(
        "a norm's gain is not one", "It scales its channel; norms start with gains of one (some "
        "store gain − 1 and start at zero).", "Gains that differ from one, or from the others.",
        "trained gains beside drawn matrices", "filled with another value",
        healthy="1 in every channel.",
    ),
    "gain-drawn": _of(
        "a norm's gain was drawn like a matrix", "Channels are scaled at random, many nearly to "
        "zero.", "A gain that is not constant at the start.",
        "normal_ over all parameters, whatever their kind", healthy="1 in every channel.",
    ),
    "bias": _of(
        "a bias does not start at zero", "Most recipes start biases at zero; torch draws them.",
        "Any value that is not zero.", "torch's default", "a router that is meant to prefer some "
                                                          "experts",
        healthy="0 in every channel.",
    ),
    "forward": _of(
        "the module does not compute what its weights suggest",
        "Theory and measurement read the weights as a known architecture; its logits differ from "
        "that.",
        "The largest difference of the logits, as a share of the largest logit.",
        "another activation, attention scale, norm or residual path",
        healthy="Equal up to rounding.",
        do=(Action("Correct the structure that was found:",
                   "nanogpt init-inspect --from SOURCE --structure FILE"),),
    ),
    "never-initialised": _of(
        "nothing writes initial values", "The parameter holds what was in memory.",
        "The constructor was watched: no write reached it.", "torch.empty, without a draw",
        healthy="Every parameter is written once.",
    ),
    "constructor-default": _of(
        "_init_weights leaves a parameter out", "It keeps its layer's default, unlike the others.",
        "The constructor was watched: its last write is that of torch.nn.",
        "a module type that _init_weights does not test for",
        healthy="_init_weights writes every parameter.",
    ),
    "doubly-initialised": _of(
        "a parameter is drawn twice", "The last draw stays; the first is lost work, or a surprise.",
        "The constructor was watched: two draws of different laws.",
        "a parent's _init_weights after a layer's own", healthy="Each is drawn once.",
    ),
    "overwritten-after-tying": _of(
        "a tied parameter is drawn again under its other name",
        "Head and embedding are one tensor, so the law of the one drawn last holds for both.",
        "The constructor was watched: a draw by another module than the tensor's own.",
        "tying before initialisation", healthy="Tied tensors are drawn once, after tying.",
    ),
    "hard-coded-std": _of(
        "a std does not follow the configuration", "It stays the same when initializer_range "
        "changes.", "The module was built twice with different values.",
        "a number written in the code", healthy="Twice the range gives twice the std.",
    ),
}  # fmt: skip
