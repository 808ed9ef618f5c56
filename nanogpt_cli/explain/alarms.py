"""What each alarm of a training run means."""

from __future__ import annotations

from typing import Final

from nanogpt_cli.explain.page import Action, Topic

_LOWER_LR = Action("Lower the learning rate:", "nanogpt train RECIPE --set optim.lr=1e-4")
_FIND_LR = Action("Try out learning rates first:", "nanogpt train RECIPE --lr-find")
_WARMUP = Action("Warm up longer:", "nanogpt train RECIPE --set optim.warmup_steps=500")
_REPLAY = Action("Repeat the step and find the first tensor that broke:", "nanogpt replay")
_CLIP = Action("Clip gradients harder:", "nanogpt train RECIPE --set optim.grad_clip=0.5")
_DECAY = Action("Raise the weight decay:", "nanogpt train RECIPE --set optim.weight_decay=0.2")
_INSPECT = Action("Look at the initialisation:", "nanogpt init-inspect RECIPE")
_LAYERS = Action("See the statistic of all layers over time:", "nanogpt watch --page layers")
_LOSS = Action("See the loss around the alarm:", "nanogpt watch")
_QUIET_RUN = (
    "A synthetic run of {run_steps:,.0f} steps, with a loss that falls from ln V = "
    "{run_start:.2f} "
    "to {run_end:.2f} with a scatter of {run_scatter:g}, raises this alarm {{}} times."
)


def _quiet(name: str) -> str:
    return _QUIET_RUN.replace("{{}}", f"{{run_{name}:.0f}}")


TOPICS: Final[dict[str, Topic]] = {
    "non-finite": Topic(
        "a number is NaN or infinite",
        "The loss or the gradient norm of a step was not a number any more. An update from it "
        "would spoil every weight, so the step is recorded and train.on_nonfinite decides what "
        "follows.",
        "Every step: loss and gradient norm must be finite. In fp16 an infinite gradient alone is "
        "no alarm: the loss scaler tries out scales. The largest fp16 number is {fp16_max:,.0f}.",
        ("the learning rate is too high, or the warmup too short", "an overflow in fp16",
         "a weight file with broken values"),
        (_REPLAY, _LOWER_LR, _WARMUP,
         Action("Compute in fp32, to see whether the format is to blame:",
                "nanogpt train RECIPE --set train.precision=fp32")),
        _quiet("non_finite"),
    ),
    "bad-start": Topic(
        "the first loss is worse than a blind guess",
        "A model that knows nothing should give each of the V tokens about the same probability, "
        "which costs ln V. A first loss far above it means that the logits begin large and wrong; "
        "the first steps are spent on undoing that.",
        "The first step's loss exceeds ln V by more than {bad_start:g} nats; the alarm ends when "
        "the loss no longer does.",
        ("token embeddings with a large std where the output layer is the same matrix (tying)",
         "no norm before the output layer", "weights of another model or another tokenizer",
         "in a loop of your own: a loss that is a sum over tokens and not their mean"),
        (_INSPECT, Action("Draw by GPT-2's scheme:", "nanogpt train RECIPE --set model.init=gpt2")),
        "By theory {scheme} begins at {loss:.2f} where ln V is {log_v:.2f}. "
        + _quiet("bad_start"),
    ),
    "loss-spike": Topic(
        "the loss jumped",
        "One step's loss is far above the recent ones. In a large model most spikes recover "
        "within a few steps; several in a row announce a divergence.",
        "Every step: the loss exceeds the median of the last {loss_window:.0f} by {spike_rise:g} "
        "nats and by {spike_sigmas:g} standard deviations.",
        ("a learning rate near its limit", "a batch unlike the others, such as a binary file in "
         "the text", "attention logits that have grown"),
        (_LOSS, _LOWER_LR, _CLIP),
        _quiet("loss_spike"),
    ),
    "divergence": Topic(
        "the run has diverged",
        "The loss left the level it had reached and did not come back. What was learned is mostly "
        "lost, and further training seldom recovers it.",
        "{diverged_steps:.0f} losses in a row all exceed the best level by {diverged_rise:g} nats "
        "and by {diverged_sigmas:g} standard deviations.",
        ("the learning rate is too high", "the warmup is too short",
         "no gradient clipping (optim.grad_clip = 0)"),
        (_LOWER_LR, _WARMUP, _FIND_LR,
         Action("Resume from the newest intact checkpoint:", "nanogpt train runs/NAME --resume")),
        _quiet("divergence"),
    ),
    "always-clipped": Topic(
        "nearly every gradient is clipped",
        "Clipping is meant for rare large gradients. If it acts at every step, the clip sets the "
        "size of the gradient, and rare large ones no longer stand out. Adam divides by "
        "that size again, so a run may still train well.",
        "More than {max_clipped:.0%} of the last {clipped_window:.0f} gradients were clipped.",
        ("optim.grad_clip is below the usual norm of the gradient", "the learning rate is so high "
         "that the loss stays rough"),
        (Action("See the gradient norm:", "nanogpt watch"),
         Action("Clip only the largest:", "nanogpt train RECIPE --set optim.grad_clip=2"),
         _LOWER_LR),
        _quiet("always_clipped"),
    ),
    "stuck": Topic(
        "nothing has been learned",
        "The loss is still that of a model that gives each token of the vocabulary the same "
        "probability, which is ln V for V tokens.",
        "From step {stuck_from:.0f} on: none of the last {stuck_window:.0f} losses is more than "
        "{stuck_margin:g} nats below ln V, nor are they far above it and falling.",
        ("the learning rate is zero or far too small", "the data are noise, or the wrong tokens",
         "an initialisation from which no gradient arrives"),
        (_INSPECT, Action("Look at the data:", "nanogpt data inspect NAME"), _FIND_LR),
        "ln V is {run_start:.2f} for a vocabulary of {run_vocab:,.0f}. Letter frequencies alone "
        "bring a loss well below it within the first steps. " + _quiet("stuck"),
    ),
    "slow": Topic(
        "training has become slower",
        "Steps take longer than they did. It does no harm to the model.",
        "The median of the last {speed_window:.0f} speeds is below {slow:.0%} of that of the last "
        "{loss_window:.0f}.",
        ("another program uses the machine", "the processor became hot and lowered its clock",
         "a laptop that runs on battery"),
        (Action("See the tokens per second:", "nanogpt watch"),
         Action("See what the machine did meanwhile:", "nanogpt watch --page system"),
         Action("Look at the machine:", "nanogpt doctor --watch")),
        _quiet("slow"),
    ),
    "update-ratio": Topic(
        "a layer changes too fast or too slowly",
        "The size of a step's change of a layer's weights, as a share of the weights. Too much and "
        "what was learned is overwritten; too little and the layer hardly learns.",
        "From step {update_from:.0f} on: log10 of that share is not between {update_low:g} and "
        "{update_high:g}.",
        ("the learning rate does not fit", "weights that started far too small or too large",
         "a schedule that has ended: its last steps are tiny by design"),
        (_LAYERS, _FIND_LR, _INSPECT),
        "Adam first changes each weight by about the learning rate: with {default_lr:g} and "
        "weights of RMS {weight_rms:.3g}, as {scheme} draws {model_layers:.0f} layers of "
        "{model_width:.0f} "
        "channels, log10 is {update_ratio:.2f}. It falls later, as gradients disagree.",
    ),
    "frozen": Topic(
        "the matrices of a layer do not change at all",
        "Not one value of a layer's matrices moved in an update, although the learning rate is not "
        "zero. The layer stays as it was drawn. Freezing a layer on purpose looks the same.",
        "The update of all matrices of a layer is exactly zero in three observations.",
        ("a learning-rate factor of zero for these matrices",
         "requires_grad = False, or parameters that the optimizer was not given",
         "a branch that is multiplied by zero: no gradient"),
        (_LAYERS, _INSPECT),
        "Adam first changes each weight by about the learning rate: with {default_lr:g} and "
        "weights of RMS {weight_rms:.3g}, log10 of update over weight is {update_ratio:.2f}.",
    ),
    "dead-units": Topic(
        "MLP units are dead",
        "A hidden unit of an MLP is dead if it is near zero on every token: it adds nothing, "
        "and little or no "
        "gradient reaches it. With ReLU it may never come back; GELU and SiLU let some through.",
        "More than {max_dead:.0%} of a layer's hidden units stay near zero on every token of the "
        "measured batch.",
        ("a learning rate that threw the biases far down", "a strong weight decay",
         "an activation that is exactly zero on one side"),
        (_LAYERS, _LOWER_LR,
         Action("Take a smooth activation:", "nanogpt train RECIPE --set model.activation=gelu")),
        "At the start {dead:.1%} of the units of {model_layers:.0f} layers of {model_width:.0f} "
        "channels are dead, by theory.",
    ),
    "attention-logits": Topic(
        "attention logits have become large",
        "A softmax over such logits is nearly one-hot: attention looks at one token, and hardly "
        "any gradient passes to change that. The loss often jumps afterwards.",
        "A layer's largest attention logit, of the measured queries, exceeds {max_logit:g}.",
        ("the learning rate is too high", "queries and keys that grow without a norm",
         "no weight decay on them"),
        (_LAYERS, _LOWER_LR,
         Action("Normalise queries and keys:", "nanogpt train RECIPE --set model.qk_norm=true")),
        "At the start the logits of {model_layers:.0f} layers of {model_width:.0f} channels have a "
        "standard deviation of {score_std:.3f}, by theory.",
    ),
    "no-attention": Topic(
        "a layer attends to all positions alike",
        "All attention logits of a layer are zero, so it averages what came before and cannot look "
        "at anything. If queries and keys are both zero, neither gets a gradient, and it stays so.",
        "A layer's largest attention logit is below {min_logit:g} in three observations.",
        ("query and key matrices that both begin at zero", "an attention scale of zero",
         "a frozen layer (nanogpt explain frozen)"),
        (_LAYERS, _INSPECT),
        "At the start the logits of {model_layers:.0f} layers of {model_width:.0f} channels have a "
        "standard deviation of {score_std:.3f}, by theory. Queries alone may begin at zero, as in "
        "μP: keys that are not zero give them a gradient.",
    ),
    "entropy-collapse": Topic(
        "a layer attends to single tokens",
        "The attention of a whole layer rests on one position each. The layer copies instead of "
        "mixing, and no gradient tells it to look elsewhere.",
        "The mean entropy of a layer's attention is below {min_entropy:g} of its largest value, "
        "ln t over t positions.",
        ("attention logits that have grown (nanogpt explain attention-logits)",
         "the learning rate is too high"),
        (_LAYERS, _LOWER_LR,
         Action("Normalise queries and keys:", "nanogpt train RECIPE --set model.qk_norm=true")),
        "At the start {entropy:.3f} of {model_layers:.0f} layers of {model_width:.0f} channels, by "
        "theory: attention is nearly uniform. One head at zero is common later; a whole layer is "
        "not.",
    ),
    "activation-growth": Topic(
        "the residual stream has become very large",
        "What leaves the last layer is many times larger than at the start. The final norm hides "
        "it from the loss, but each branch then changes the stream by ever less, and low precision "
        "loses the small parts.",
        "The RMS of the stream after the last layer exceeds {max_stream:.0f} times that expected "
        "at the start.",
        ("a weight decay of zero", "a high learning rate over many steps",
         "a few channels that grow (see the kurtosis of the stream)"),
        (_LAYERS, _DECAY, _LOWER_LR),
        "At the start the stream grows by ×{growth:.2f} from the embedding to the end of "
        "{model_layers:.0f} layers of {model_width:.0f} channels, by theory. Training makes it "
        "about ten times as large.",
    ),
    "vanishing-gradient": Topic(
        "a layer gets almost no gradient",
        "One layer's gradient is a tiny share of another's. Adam evens out sizes, but gradients "
        "near the rounding error carry no direction.",
        "The smallest gradient norm of a layer is below {min_gradient:g} of the largest.",
        ("an initialisation without or with a wrong residual scaling", "a layer of zero weights",
         "a layer whose units are dead (nanogpt explain dead-units)"),
        (_LAYERS, _INSPECT),
        "At the start the gradient of the stream at the embedding is {gradient_ratio:.2f} times "
        "that after {model_layers:.0f} layers of {model_width:.0f} channels, by theory.",
    ),
    "overfitting": Topic(
        "the model begins to memorise",
        "The loss on the batches still falls, but that on the validation split rises: what is "
        "learned now does not hold for new text.",
        "The validation loss rose in {overfit_rises:.0f} evaluations in a row while the training "
        "loss fell.",
        ("too little text for the size of the model", "many passes over the same text"),
        (Action("Keep the best checkpoint, which sample takes anyway:", "nanogpt sample runs/NAME"),
         Action("Stop automatically next time:", "nanogpt train RECIPE --set train.patience=3"),
         Action("Regularise:", "nanogpt train RECIPE --set model.dropout=0.2")),
        _quiet("overfitting"),
    ),
    "split-gap": Topic(
        "validation text is much harder than training text",
        "The model has seen no training text twice, so it cannot have memorised any; its losses on "
        "both splits should agree. They do not.",
        "The validation loss exceeds the median of the last {split_window:.0f} training losses by "
        "more than {split_gap:g} nats (and by {split_sigmas:g} standard errors) in "
        "{split_evals:.0f} evaluations in a row of the first pass over the training split.",
        ("the splits are different kinds of text: shuffle documents before splitting",
         "the training targets are not the next tokens", "an average of the weights (optim.ema) "
         "that does not follow them yet"),
        (Action("Look at both splits:", "nanogpt data inspect NAME"),
         Action("Evaluate without averaging:", "nanogpt train RECIPE --set optim.ema=0")),
        "After a second look at the same text a gap is called overfitting. "
        + _quiet("split_gap"),
    ),
    "low-loss": Topic(
        "the loss is lower than any language allows",
        "The model predicts unseen text almost without error. Either the text was seen in "
        "training, or the target is not the next token, or the text is not language.",
        "An evaluation is below {low_loss:g} bits per byte.",
        ("targets that are not shifted: the model sees what it is to predict",
         "validation text that is also in the training split", "a text that repeats itself, such "
         "as a log: then nothing is wrong"),
        (Action("Look at the data:", "nanogpt data inspect NAME"),
         Action("Read what the model writes:", "nanogpt sample runs/NAME")),
        "The best compressors need 0.8 bits per byte of English prose. " + _quiet("low_loss"),
    ),
    "small-validation": Topic(
        "the validation split is too small",
        "The validation loss is a mean over a sample of text. With few windows it scatters so much "
        "that two models or two steps cannot be told apart by it.",
        "The standard error of the validation loss, from the scatter of its windows, exceeds "
        "{max_error:g} nats and {max_error_share:.0%} of the loss.",
        ("a short text of which a tenth is set aside", "a long context: few windows",
         "a validation file of a few paragraphs"),
        (Action("Set more text aside for validation:", "nanogpt prepare FILE --val-fraction 0.2"),
         Action("Look at the sizes of the splits:", "nanogpt data inspect NAME")),
        "The error falls with the square root of the length: four times as much text halves it. "
        + _quiet("small_validation"),
    ),
    "disk-low": Topic(
        "the disk for checkpoints is nearly full",
        "A save that finds no room fails and ends the run. The checkpoints before it stay whole: "
        "each is written under a temporary name first, so for a moment there is one more than "
        "train.keep says.",
        "At every sample of the machine: less room than for {disk_checkpoints:.0f} checkpoints as "
        "large as the last one, and {spare_mib:.0f} MiB for the log. Until one has been saved, it "
        "counts as {checkpoint_bytes:.0f} bytes a parameter: the weight and AdamW's two moments in "
        "float32.",
        ("checkpoints of other runs", "train.keep_every, which keeps more with every save",
         "other programs that write to the same disk"),
        (Action("See what fills the disk:", "nanogpt cache list"),
         Action("Keep the newest checkpoint and the best one only:",
                "nanogpt train RECIPE --set train.keep=1"),
         Action("See how the free space shrank:", "nanogpt watch --page system")),
        "Room for {run_disk:.0f} checkpoints, in a synthetic run, raises this alarm "
        "{run_disk_low:.0f} times.",
    ),
    "memory-near-limit": Topic(
        "the memory is nearly used up",
        "Where memory runs out, the system kills a process without warning, most often the one "
        "that holds most: the trainer. In a container or a job of a scheduler, the limit is that "
        "of its control group, which may be far below what the machine has.",
        "At every sample of the machine: more than {max_memory:.0%} of its memory, or of the "
        "control group's limit, is in use. Cached files do not count.",
        ("other programs", "a micro-batch that is too large", "memory that grows with time: a leak",
         "a container with a low limit"),
        (Action("Halve the micro-batch; tokens_per_step keeps the step as it is:",
                "nanogpt train RECIPE --set train.batch_size=4"),
         Action("Forecast what the run needs:", "nanogpt plan RECIPE"),
         Action("See what uses it and since when:", "nanogpt watch --page system")),
        "Half of the memory in use, in a synthetic run, raises this alarm "
        "{run_memory_near_limit:.0f} times.",
    ),
    "gpu-starved": Topic(
        "the GPU waits for data",
        "The GPU has nothing to do while the trainer fetches the tokens of the next batch. They "
        "are read from a file that the system keeps in memory if there is room, so this is rare on "
        "a local disk.",
        "At every sample of the machine: a kernel ran in less than {starved_gpu:.0%} of the time, "
        "and fetching data took more than {starved_data:.0%}.",
        ("prepared data on a network disk", "too little memory for the system to cache the file",
         "other programs that read from the same disk"),
        (Action("See where the time goes:", "nanogpt watch --page system"),
         Action("Look at the machine without a run:", "nanogpt doctor --watch")),
        "Fetching data takes {run_data:.0%} of the time, and the GPU is busy for the rest, in a "
        "synthetic run: it raises this alarm {run_gpu_starved:.0f} times.",
    ),
}  # fmt: skip
