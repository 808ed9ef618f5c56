"""What each finding of ``init-inspect`` on a scheme, or on a pass through the model, means."""

from __future__ import annotations

from typing import Final

from nanogpt_cli.explain.page import Action, Topic

_SCHEMES = Action("See all schemes:", "nanogpt init-inspect --list")
_COMPARE = Action("Compare schemes side by side:", "nanogpt init-inspect --compare gpt2,gpt2-w")
_GPT2 = Action("Draw by GPT-2's scheme:", "nanogpt train RECIPE --set model.init=gpt2")
_WIDTH = Action("Draw by a scheme that follows the width:",
                "nanogpt train RECIPE --set model.init=gpt2-w")  # fmt: skip
_DEPTH = Action("See how it changes with depth:", "nanogpt init-inspect --scan depth")
_THEORY = "{scheme} at {model_layers:.0f} layers of {model_width:.0f} channels, by theory: "

TOPICS: Final[dict[str, Topic]] = {
    "mismatch": Topic(
        "the scheme was made for another architecture",
        "A scheme's standard deviations are right for the norms, activations and residual paths it "
        "was derived for. On another architecture the signal may grow or die.",
        "The catalogue of schemes names the architecture; this model is not one.",
        ("the scheme was chosen by its name alone",),
        (_SCHEMES, _COMPARE),
        _THEORY + "the stream grows by ×{growth:.2f} and no limit is broken.",
    ),
    "truncation": Topic(
        "a cut of the law has no effect",
        "The law was to be cut at some standard deviations, but its bounds lie so far out that no "
        "value ever reaches them: the matrix is a plain normal one.",
        "In a scheme: the cut is {largest_normal:g}σ or more. In weights: one role keeps a cut "
        "that "
        "another one of the same scale exceeds.",
        ("torch's trunc_normal_ takes its bounds in the unit of the weights, not in σ: ±2 is 100σ "
         "at std 0.02",),
        (_SCHEMES,),
        "The most extreme of {cells:,.0f} normal values drawn now lies at {reach_sigma:.2f}σ.",
    ),
    "laws": Topic(
        "the tensors follow their laws",
        "Nothing is wrong: mean, standard deviation and distribution of every matrix are those "
        "that "
        "the scheme declares.",
        "The std may be up to {z_limit:g} standard errors off, and the Kolmogorov-Smirnov "
        "distance, scaled "
        "by its size, up to {ks_limit:g}.",
        ("the scheme was carried out as it is written",),
        (Action("See every tensor:", "nanogpt init-inspect --all"),),
        "All of them do.",
    ),
    "law": Topic(
        "a matrix does not follow its law",
        "Mean, standard deviation or distribution are not those that the scheme declares, or that "
        "the other roles of the module suggest. The model may still train, but from another start "
        "than the one that was meant.",
        "The std is {z_limit:g} standard errors off, or the scaled Kolmogorov-Smirnov distance "
        "exceeds "
        "{ks_limit:g}. For a foreign module: logarithms of stds that differ by more than {close:g} "
        "and more than chance explains.",
        ("a std passed as a variance, or the reverse", "Xavier's or Kaiming's law in one place",
         "a factor of depth or width that is missing or applied twice"),
        (Action("See every tensor:", "nanogpt init-inspect --all"), _SCHEMES),
        "{cells:,.0f} values drawn now with std 0.02 have std {std:.5f} and kurtosis "
        "{kurtosis:.2f}.",
    ),
    "not-finite": Topic(
        "values are NaN or infinite",
        "A weight, or a signal computed from the weights, is not a number. Nothing can be trained "
        "from there.",
        "Any value that is not finite, in the weights, the stream, its gradient or the loss.",
        ("a damaged file, or one read with the wrong byte order", "memory that was never written",
         "a scale so large that the stream overflows"),
        (Action("Load or draw the weights again, then inspect them:",
                "nanogpt init-inspect --from runs/NAME"),),
        "The most extreme of {cells:,.0f} values drawn now with std 0.02 is {reach:.3f}.",
    ),
    "finite": Topic(
        "all numbers are finite",
        "Nothing is wrong. These weights are trained, so the pass through them is judged only "
        "by this and by dead units.",
        "Loss, stream and gradients are finite in every block.",
        ("the model computes as it should",),
        (Action("Evaluate it:", "nanogpt eval"),),
        _THEORY + "the loss is {loss:.2f} before training.",
    ),
    "growth": Topic(
        "how much the residual stream grows with depth",
        "Each block adds its output to the stream. If the stream becomes very large, late blocks "
        "add little to it, and with depth the model changes ever less.",
        "A warning if the stream leaves the last block more than {max_growth:g} times larger than "
        "the embedding, unless a single draw explains it.",
        ("no residual scaling: the projections lack GPT-2's factor 1/√(2L)",
         "a tiny embedding beside branches of the usual size"),
        (_GPT2, _DEPTH),
        _THEORY + "×{growth:.2f}.",
    ),
    "branches": Topic(
        "the blocks hardly take part",
        "What a typical block adds is tiny beside the embedding: the model starts as if it had no "
        "blocks, and the gradients that reach them are as small.",
        "The RMS of a typical branch is below {min_branch:.0%} of that of the embedding "
        "({min_branch_bare:.0%} without norms). A branch of exactly zero is a choice.",
        ("standard deviations that are too small for the width", "embeddings drawn with std 1"),
        (_WIDTH, _COMPARE),
        _THEORY + "a typical branch has {branch:.0%} of the embedding's RMS.",
    ),
    "theory": Topic(
        "measurement and theory, compared",
        "Theory computes the stream from the laws alone, for infinite width. If the measurement "
        "disagrees, the weights or the forward pass are not what they are taken for.",
        "At some depth the measured stream is more than {deviation_note:.0%} off (a note) or "
        "{deviation_warn:.0%} (a warning); below a width of 1,024 more is allowed, as chance is "
        "larger there.",
        ("a narrow model with few heads", "tokens that are not random, such as real text",
         "weights that do not follow their laws"),
        (Action("See theory and measurement at every depth:", "nanogpt init-inspect"),),
        "Within {deviation_note:.0%}.",
    ),
    "first-block": Topic(
        "the first block drowns the embedding",
        "After one block nearly all of the stream is the block's output; which token was read is "
        "only a small part of it.",
        "The first block makes the stream more than {max_first:g} times larger.",
        ("an embedding with a small std before a norm, which makes its size 1",
         "projections with a large std"),
        (_COMPARE, Action("Look at the depth chart:", "nanogpt init-inspect")),
        _THEORY + "×{first_step:.2f}.",
    ),
    "gradients": Topic(
        "how the gradient changes with depth",
        "The gradient of the loss with respect to the stream, at the embedding and after the last "
        "block. Far from 1, one end of the model gets much larger gradients than the other.",
        "A warning if their ratio, or its inverse, exceeds {max_gradient:g}, unless a single draw "
        "explains it.",
        ("a tiny embedding before a norm: the gradient of a norm grows as its input shrinks",
         "no norms, or norms behind each addition"),
        (_COMPARE, _DEPTH),
        _THEORY + "{gradient_ratio:.2f}.",
    ),
    "rope-period": Topic(
        "rotary positions that repeat within the context",
        "Rotary embedding turns pairs of channels by angles that grow with the position, each pair "
        "at its own speed. Once the slowest pair has completed a turn, attention cannot tell a far "
        "position from a near one.",
        "A warning if the slowest pair of every layer completes a turn within the context.",
        ("a small rope_theta", "narrow heads: fewer pairs reach the slow angles"),
        (Action("Raise it for one run:", "nanogpt train modern --set model.rope_theta=10000"),),
        "The default theta of {rope_theta:,.0f} and heads of {rope_head:.0f} channels: after "
        "{rope_period:,.0f} positions.",
    ),
    "norm-epsilon": Topic(
        "an epsilon larger than what is normalised",
        "A norm divides by √(mean square + epsilon). Where epsilon is the larger of the two, the "
        "norm returns almost what it got, scaled by a constant.",
        "A warning if epsilon exceeds the mean square of the stream before the first block.",
        ("norm_eps written as 1 or 0.1", "an embedding with a tiny std"),
        (Action("Lower it for one run:", "nanogpt train modern --set model.norm_eps=1e-5"),),
        _THEORY + "the mean square is {first_square:.2g}, and the default epsilon {norm_eps:g}.",
    ),
    "loss": Topic(
        "the loss before the first step",
        "A model that knows nothing has loss ln V. What is above it comes from logits that are "
        "large by chance, and the first steps are spent on shrinking them.",
        "A warning if it exceeds ln V by more than {max_excess:g} nats.",
        ("a head, or a tied embedding, with a large std: std 1 of 768 channels gives logits of "
         "std 28",),
        (_GPT2, Action("See the loss by theory alone:", "nanogpt init-inspect --theory")),
        _THEORY + "ln V {excess:+.3f} nats, with ln V = {log_v:.2f}.",
    ),
    "own-token": Topic(
        "the model copies the token it has just read",
        "With a tied head a token's logit contains its embedding times itself. If embeddings are "
        "large, the model predicts the token it has read, and must first unlearn that.",
        "The mean logit of that token exceeds ln V.",
        ("nn.Embedding's default std of 1 in a model whose head is tied",),
        (_GPT2, Action("Untie the head:", "nanogpt train RECIPE --set model.tied=false")),
        _THEORY + "{own_logit:.2f}, with ln V = {log_v:.2f}.",
    ),
    "token-share": Topic(
        "positions drown the tokens",
        "The embedding is the sum of a token and a position. If positions are far larger, all "
        "tokens look alike to the first block.",
        "The token table makes up less than {min_share:.0%} of the embedding's variance.",
        ("a position table left at nn.Embedding's std of 1 beside tokens of std 0.02",),
        (_GPT2, Action("Use rotary positions, which have no table:",
                       "nanogpt train RECIPE --set model.position=rope")),
        _THEORY + "{token_share:.0%}.",
    ),
    "rank-collapse": Topic(
        "all positions have become alike",
        "The stream points nearly the same way at every position, so later blocks cannot tell "
        "tokens apart. Attention averages, and without a strong residual path that wins.",
        "The mean cosine between positions after the last block exceeds {max_cosine:g}.",
        ("attention branches much larger than the embedding", "a shared offset in all embeddings"),
        (_DEPTH, _COMPARE),
        _THEORY + "{cosine:.2f}.",
    ),
    "score-std": Topic(
        "some heads start nearly one-hot",
        "The scores before the softmax scatter so much that a head looks at one random token, "
        "and hardly any gradient tells it to look elsewhere.",
        "The standard deviation of a block's scores exceeds {max_score:g}.",
        ("queries and keys with a large std", "attention without the factor 1/√D of the head size"),
        (_COMPARE, Action("Normalise queries and keys:",
                          "nanogpt train RECIPE --set model.qk_norm=true")),
        _THEORY + "{score_std:.3f}.",
    ),
    "weak-branches": Topic(
        "the MLP is nearly linear",
        "Its pre-activations are so small that the activation acts like a straight line there: "
        "the MLP can say little until its weights have grown.",
        "The variance of the pre-activations of the first block is below {min_preact:g}.",
        ("a fixed std of 0.02 in a narrow model: the variance is 0.02² times the width",),
        (_WIDTH,),
        _THEORY + "{preact:.2f}.",
    ),
    "silent-units": Topic(
        "hidden units are dead from the start",
        "A unit is dead if it is near zero on every token: it adds nothing and gets next to no "
        "gradient.",
        "More than {max_near_zero:.0%} of a block's hidden units.",
        ("ReLU behind a shared offset", "a bias drawn far below zero"),
        (Action("Compare activations:", "nanogpt init-inspect --activation gelu"),),
        _THEORY + "{dead:.1%}.",
    ),
    "identity": Topic(
        "every block starts as the identity",
        "The residual projections are zero, so the blocks add nothing at first. It is a known "
        "choice: the projections learn in the first step, all other matrices after it.",
        "No branch adds anything in any block.",
        ("the scheme zero-proj, or projections set to zero by hand",),
        (_COMPARE,),
        _THEORY + "a typical branch has {branch:.0%} of the embedding's RMS.",
    ),
}  # fmt: skip
