"""The recipe: every setting a user may write, with its description, type and limits.

This is the contract between the launcher and the nodes. The descriptions become the JSON schema (`sft-dist schema`) and
the starter files (`sft-dist init`). Settings that exist only for one choice (LoRA's rank, SGD's momentum) live in that
choice's own class, so elsewhere they are unknown keys instead of being silently ignored. Torch-free.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from sft_dist.recipe.augment import Augment
from sft_dist.recipe.optimizers import NamedOptimizerName
from sft_dist.recipe.section import Section, listing, mapping, shorthand, switch
from sft_dist.recipe.tasks import Task
from sft_dist.recipe.tracking import check_tracking_uri
from sft_dist.recipe.units import check_amount, check_memory, check_period, check_time

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
SPLITS = ("train", "validation", "test")

Amount = Annotated[str, AfterValidator(check_amount)]
Period = Annotated[str, AfterValidator(check_period)]
Positive = Annotated[int, Field(ge=1, le=10**9)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


# ── model ───────────────────────────────────────────────────────────────────────────────────────────────────────────
class Model(Section):
    path: Annotated[str, Field(min_length=1)] = Field(
        description="Hub id (`org/name`), a local folder (`./dir` or `/dir`), or `package:NAME/path/inside` for weights "
        "that an installed package carries."
    )
    revision: str | None = Field(None, description="Hub only: branch, tag or commit.")
    tokenizer: str | None = Field(
        None,
        description="Where the tokenizer (or image processor, or feature extractor) is, if not in `path`.",
    )
    attention: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"] | None = Field(
        None, description="Attention implementation [default: the model's own]."
    )
    allow_pickle: bool = Field(
        False, description="Accept weights in pickle files (.bin, .pt); they are read with weights_only=True."
    )
    trust_remote_code: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = Field(
        None, description="Run the code in the model's hub repository, at exactly this commit."
    )
    config: dict[str, Any] = Field(
        default_factory=mapping,
        description="Values that replace those of the model's config, such as `hidden_dropout_prob: 0.0`.",
    )


# ── data ────────────────────────────────────────────────────────────────────────────────────────────────────────────
class SplitSources(Section):
    train: str | list[str] = Field(description="Files or data set for training.")
    validation: str | list[str] | None = Field(
        None, description="Files or data set by which the best checkpoint is chosen."
    )
    test: str | list[str] | None = Field(None, description="Files or data set for the one final score.")


class Split(Section):
    validation: Fraction | None = Field(
        None,
        description="Share of the training rows held out for validation if the source has no such split [default: 0.1].",
    )
    test: Fraction | None = Field(
        None,
        description="Share of the training rows held out for the final test if the source has no such split [default: 0.1].",
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**32,
        description="Seed of the split. Independent of train.seed, so runs with other seeds share one test set.",
    )
    stratify: bool = Field(True, description="Give every split the same class proportions (single-label problems).")
    group: str | None = Field(
        None, description="Column whose equal values (one speaker, one document) stay in one split."
    )


class Clean(Section):
    strip: bool = Field(True, description="Strip white space from both ends of every text, message and word.")
    unicode: Literal["NFC", "NFKC", "none"] = Field("none", description="Unicode normal form of texts.")
    drop_empty: bool = Field(
        True, description="Drop rows with an empty text, no label or no answer; if false, they are an error."
    )
    drop_duplicates: bool = Field(True, description="Drop rows that repeat the input and the target of an earlier row.")
    near_duplicates: Annotated[float, Field(ge=0.5, le=1)] | None = Field(
        None,
        description="Drop rows whose text is at least this similar to an earlier one, such as 0.8 (Jaccard similarity of five-character shingles, by MinHash).",
    )
    max_chars: Positive | None = Field(
        None, description="Drop rows whose texts (or messages) together have more characters than this."
    )
    map_labels: dict[str, str] = Field(
        default_factory=mapping, description="Label in the data -> label to use: `{pos: positive, neg: negative}`."
    )


def _or_boolean(schema: dict[str, Any]) -> None:
    schema["anyOf"].append({"type": "boolean"})


class Streaming(Section):
    buffer: Positive = Field(
        10_000,
        description="Rows that are read, shuffled and prepared at a time; two such chunks are prepared ahead on disk.",
    )


class Data(Section):
    source: str | list[str] | SplitSources = Field(
        description="A file (csv, tsv, json, jsonl, parquet, arrow, text, CoNLL, COCO), a glob, a folder of images or "
        "recordings or one saved by `datasets`, a hub id, `package:NAME/path/inside`, `sample:NAME/path`, an fsspec URL (a "
        "folder's ends with /), an SQL URL with a table or a query after its #, a list of those, "
        "or one of those for each of train, validation and test."
    )
    weights: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=2)] | None = Field(
        None,
        description="Proportions in which the training sources of a list are mixed, drawn by `split.seed` until one is exhausted "
        "[default: all rows of all sources].",
    )
    format: Literal[
        "auto",
        "csv",
        "tsv",
        "json",
        "parquet",
        "arrow",
        "text",
        "conll",
        "coco",
        "voc",
        "image-folder",
        "mask-folder",
        "audio-folder",
        "sql",
    ] = Field("auto", description="Format of the source. auto: by its suffix, or by the files in the folder.")
    streaming: Annotated[Streaming | None, switch()] = Field(
        None,
        description="Read the training rows during training, instead of preparing all of them before: `true`, or "
        "`{buffer: 2000}`. Needs train.steps and a validation split of its own.",
        json_schema_extra=_or_boolean,
    )
    subset: str | None = Field(None, description="Hub only: configuration of the data set.")
    revision: str | None = Field(None, description="Hub only: branch, tag or commit.")
    columns: dict[str, str] = Field(
        default_factory=mapping, description="Role -> column name, if they differ: `{text: review, label: stars}`."
    )
    allow_urls: bool = Field(
        False,
        description="Fetch http(s) URLs in columns of images, masks and recordings, from the public internet only and without "
        "credentials. false: such columns name files in the table's folder or below.",
    )
    labels: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="The classes in the order of the model's outputs [default: all in the training rows, sorted]."
    )
    where: dict[str, str | int | float | bool | list[str | int | float | bool]] = Field(
        default_factory=mapping,
        description="Keep rows whose column equals the value, or is in the list: `{lang: [en, de]}`.",
    )
    limit: Positive | None = Field(None, description="Keep this many rows, drawn by `split.seed`, before splitting.")
    split: Split = Field(
        default_factory=lambda: Split(), description="How missing splits are held out of the training rows."
    )
    clean: Clean = Field(
        default_factory=lambda: Clean(), description="How rows are cleaned before training. Dropped rows are counted."
    )
    max_length: Positive = Field(256, description="Longest input in tokens; longer ones are truncated.")
    augment: Augment = Field(
        default_factory=lambda: Augment(), description="Random changes of training examples, different in every epoch."
    )
    sampling: Literal["natural", "balanced"] = Field(
        "natural", description="balanced: draw training examples so that every class occurs equally often."
    )
    workers: int = Field(
        0, ge=0, le=256, description="Processes per rank that prepare batches ahead; 0: the rank prepares its own."
    )


# ── tuning ──────────────────────────────────────────────────────────────────────────────────────────────────────────
class FullTuning(Section):
    method: Literal["full"] = Field(description="Train every weight.")


class FreezeTuning(Section):
    method: Literal["freeze"] = Field(
        description="Train the head and the parts of the model that the settings below name."
    )
    train_first_layers: int | None = Field(
        None, ge=0, description="Train this many of the first layers (of an encoder-decoder: the encoder's)."
    )
    train_last_layers: int | None = Field(
        None,
        ge=0,
        description="Train this many of the last layers, through all stacks (0: only the head and what follows the layers).",
    )
    train: list[str] | None = Field(
        None, description="Regular expressions; weights whose full name matches one are trained."
    )
    train_embeddings: bool = Field(False, description="Train the embeddings too.")
    unfreeze_every: Period | None = Field(
        None,
        description="Begin with the head alone and unfreeze one more layer at this pace, the last one first and the "
        "embeddings at the end (Howard & Ruder 2018, arXiv 1801.06146): `1 epoch` or `100 steps`.",
    )

    @model_validator(mode="after")
    def _require_trained_parts(self) -> "FreezeTuning":
        layers = (self.train_first_layers, self.train_last_layers, self.train)
        if all(setting is None for setting in layers) and not self.train_embeddings:
            raise ValueError(
                "say what to train beside the head: `train_last_layers` (0: nothing), `train_first_layers`, `train` or "
                "`train_embeddings`"
            )
        head_only = not any(layers) and not self.train_embeddings
        if self.unfreeze_every is not None and head_only:
            raise ValueError("`unfreeze_every` has no effect when only the head is trained")
        return self


class BitfitTuning(Section):
    method: Literal["bitfit"] = Field(
        description="Train the biases and the head (Ben Zaken et al. 2021, arXiv 2106.10199)."
    )


_WHOLE_LAYERS = "Further layers that are trained in full and saved, as the head always is."


class _LowRank(Section):
    method: str
    r: Positive = Field(16, description="Rank of the adapters.")
    alpha: Annotated[float, Field(gt=0)] = Field(
        32, description="Scale; the adapter's output is multiplied by alpha / r."
    )
    dropout: Fraction = Field(0.05, description="Dropout on the adapter's input.")
    target_modules: str | list[str] = Field(
        "all-linear", description="`all-linear`, or names (or one regular expression) of the layers that get adapters."
    )
    rslora: bool = Field(False, description="Scale by alpha / sqrt(r) (rsLoRA, arXiv 2312.03732).")
    dora: bool = Field(False, description="Weight-decomposed adapters (DoRA, arXiv 2402.09353).")
    modules_to_save: list[str] = Field(default_factory=listing, description=_WHOLE_LAYERS)


class LoraTuning(_LowRank):
    method: Literal["lora"] = Field(
        description="Train low-rank adapters (Hu et al. 2021, arXiv 2106.09685) and the head."
    )


class QloraTuning(_LowRank):
    method: Literal["qlora"] = Field(
        description="LoRA on a base model in 4 bits (nf4; Dettmers et al. 2023, arXiv 2305.14314). Needs a GPU and bitsandbytes."
    )


class Ia3Tuning(Section):
    method: Literal["ia3"] = Field(
        description="Train vectors that scale keys, values and feed-forward activations (IA3, arXiv 2205.05638), and the head."
    )
    target_modules: list[str] | None = Field(
        None, description="Names of the layers that are scaled [default: those that PEFT knows for the model]."
    )
    feedforward_modules: list[str] | None = Field(
        None, description="Those of target_modules whose input is scaled instead of their output."
    )
    modules_to_save: list[str] = Field(default_factory=listing, description=_WHOLE_LAYERS)

    @model_validator(mode="after")
    def _require_both_module_lists(self) -> "Ia3Tuning":
        if (self.target_modules is None) != (self.feedforward_modules is None):
            raise ValueError("give both `target_modules` and `feedforward_modules`, or neither")
        if strange := set(self.feedforward_modules or ()) - set(self.target_modules or ()):
            raise ValueError(f"`feedforward_modules` has `{min(strange)}`, which is not in `target_modules`")
        return self


class PrefixTuning(Section):
    method: Literal["prefix"] = Field(
        description="Train keys and values that are prepended in every layer (Li & Liang 2021, arXiv 2101.00190), and the head."
    )
    virtual_tokens: Positive = Field(20, description="Length of the prefix; it takes up positions of the model.")
    modules_to_save: list[str] = Field(default_factory=listing, description=_WHOLE_LAYERS)


class PromptTuning(Section):
    method: Literal["prompt"] = Field(
        description="Train embeddings that are prepended to the input (Lester et al. 2021, arXiv 2104.08691), and the head."
    )
    virtual_tokens: Positive = Field(20, description="Length of the prompt; it takes up positions of the model.")
    modules_to_save: list[str] = Field(default_factory=listing, description=_WHOLE_LAYERS)


AdapterTuning = LoraTuning | QloraTuning | Ia3Tuning | PrefixTuning | PromptTuning

Tuning = Annotated[
    Annotated[
        FullTuning | FreezeTuning | BitfitTuning | LoraTuning | QloraTuning | Ia3Tuning | PrefixTuning | PromptTuning,
        Field(discriminator="method"),
    ],
    shorthand("method"),
]


# ── loss, optimizer, schedule ───────────────────────────────────────────────────────────────────────────────────────
ClassWeights = Literal["balanced"] | list[Annotated[float, Field(gt=0)]] | dict[str, Annotated[float, Field(gt=0)]]


class CrossEntropyLoss(Section):
    name: Literal["cross-entropy"] = Field(
        description="Softmax cross-entropy, for one class per example, token or pixel; the mean over all that have a label in the global batch."
    )
    label_smoothing: Fraction = Field(0.0, description="Share of the target spread over all classes.")
    class_weights: ClassWeights | None = Field(
        None,
        description="`balanced` (rows / (classes that occur x rows of the class)), a list in label order, or label -> weight.",
    )


class BinaryCrossEntropyLoss(Section):
    name: Literal["binary-cross-entropy"] = Field(
        description="One binary cross-entropy per class, for multi-label problems."
    )
    class_weights: ClassWeights | None = Field(
        None,
        description="Weight of each class's positives: `balanced` (negatives / positives), a list, or label -> weight.",
    )


class FocalLoss(Section):
    name: Literal["focal"] = Field(description="Cross-entropy that gives easy examples less weight (arXiv 1708.02002).")
    gamma: Annotated[float, Field(ge=0)] = Field(2.0, description="Focusing parameter; 0: cross-entropy.")
    class_weights: ClassWeights | None = Field(None, description="As for cross-entropy.")


class MseLoss(Section):
    name: Literal["mse"] = Field(description="Mean squared error, for regression.")


class HuberLoss(Section):
    name: Literal["huber"] = Field(description="Squared error near the target, absolute error far from it.")
    delta: Annotated[float, Field(gt=0)] = Field(
        1.0, description="Error from which the loss is absolute instead of squared."
    )


class OverlapLoss(Section):
    name: Literal["dice", "iou"] = Field(
        description="One minus the overlap of predicted and true areas, as Dice's coefficient (arXiv 1606.04797) or as "
        "intersection over union (arXiv 1911.01685)."
    )
    cross_entropy: Annotated[float, Field(ge=0, le=1)] = Field(0.5, description="Share of cross-entropy in the sum.")


class OwnLoss(Section):
    name: Literal["detection", "model"] = Field(
        description="detection: boxes matched to targets by the model's own costs. model: the model's own loss, CTC or cross-entropy."
    )


Loss = Annotated[
    Annotated[
        CrossEntropyLoss | FocalLoss | BinaryCrossEntropyLoss | MseLoss | HuberLoss | OverlapLoss | OwnLoss,
        Field(discriminator="name"),
    ],
    shorthand("name"),
]

Decay = Annotated[float, Field(ge=0)]
Betas = Annotated[list[Fraction], Field(min_length=2, max_length=2)]


class AdamW(Section):
    name: Literal["adamw"] = Field(
        description="Adam with decoupled weight decay (Loshchilov & Hutter, arXiv 1711.05101)."
    )
    weight_decay: Decay = Field(0.01, description="Decoupled weight decay; norms and biases are never decayed.")
    betas: Betas = Field([0.9, 0.999], description="Decay rates of the first and second moment.")
    eps: Annotated[float, Field(gt=0)] = Field(1e-8, description="Added to the denominator.")


class Adam(Section):
    name: Literal["adam"] = Field(description="Adam (Kingma & Ba, arXiv 1412.6980).")
    weight_decay: Decay = Field(0.0, description="L2 penalty; norms and biases are never decayed.")
    betas: Betas = Field([0.9, 0.999], description="Decay rates of the first and second moment.")
    eps: Annotated[float, Field(gt=0)] = Field(1e-8, description="Added to the denominator.")


class Sgd(Section):
    name: Literal["sgd"] = Field(description="Stochastic gradient descent.")
    weight_decay: Decay = Field(0.0, description="L2 penalty; norms and biases are never decayed.")
    momentum: Fraction = Field(0.9, description="Momentum.")
    nesterov: bool = Field(False, description="Nesterov momentum.")


class Adafactor(Section):
    name: Literal["adafactor"] = Field(
        description="Adafactor (arXiv 1804.04235) as implemented in torch: lr is scaled by the size of the weights."
    )
    weight_decay: Decay = Field(0.0, description="Decoupled weight decay; norms and biases are never decayed.")


class NamedOptimizer(Section):
    name: NamedOptimizerName = Field(
        description="An optimizer by its name in transformers. Some need a package or a GPU; both are checked before anything starts."
    )
    weight_decay: Decay = Field(0.0, description="Decoupled weight decay; norms and biases are never decayed.")
    options: dict[str, bool | int | float | str | list[float]] = Field(
        default_factory=mapping,
        description="The optimizer's own arguments, such as `{betas: [0.9, 0.95], eps: 1e-6}`.",
    )


Optimizer = Annotated[
    Annotated[AdamW | Adam | Sgd | Adafactor | NamedOptimizer, Field(discriminator="name")], shorthand("name")
]


class PlainSchedule(Section):
    name: Literal["linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt"] = Field(
        description="Learning rate after warm-up, by its name in transformers."
    )


class CosineWithRestarts(Section):
    name: Literal["cosine_with_restarts"] = Field(description="Cosine with hard restarts.")
    num_cycles: Positive = Field(1, description="Number of restarts.")


class CosineWithMinLr(Section):
    name: Literal["cosine_with_min_lr"] = Field(description="Cosine down to a share of the learning rate.")
    min_lr_rate: Fraction = Field(0.1, description="Final learning rate, as a share of lr.")


class Polynomial(Section):
    name: Literal["polynomial"] = Field(description="Polynomial decay.")
    power: Annotated[float, Field(gt=0)] = Field(1.0, description="Exponent.")
    lr_end: Annotated[float, Field(ge=0)] = Field(1e-7, description="Final learning rate.")


Schedule = Annotated[
    Annotated[PlainSchedule | CosineWithRestarts | CosineWithMinLr | Polynomial, Field(discriminator="name")],
    shorthand("name"),
]


# ── strategy ────────────────────────────────────────────────────────────────────────────────────────────────────────
class PlainStrategy(Section):
    name: Literal["auto", "single", "ddp"] = Field(
        description="auto: the simplest one that fits. single: one process. ddp: every process has the whole model."
    )


class ZeroStrategy(Section):
    name: Literal["zero1", "zero2"] = Field(
        description="DeepSpeed ZeRO (Rajbhandari et al. 2019, arXiv 1910.02054): the optimizer's state (1) "
        "and the gradients (2) are sharded across processes."
    )
    offload_optimizer: Literal["none", "cpu"] = Field("none", description="Where the optimizer's state is kept.")


class Zero3Strategy(Section):
    name: Literal["zero3"] = Field(description="ZeRO stage 3: the parameters are sharded, too.")
    offload_optimizer: Literal["none", "cpu", "nvme"] = Field(
        "none", description="Where the optimizer's state is kept."
    )
    offload_parameters: Literal["none", "cpu", "nvme"] = Field(
        "none", description="Where parameters are kept while they are not used."
    )
    nvme_path: str | None = Field(None, description="Folder on a fast local disk, for `nvme`.")

    @model_validator(mode="after")
    def _nvme_path_with_nvme(self) -> "Zero3Strategy":
        uses = "nvme" in (self.offload_optimizer, self.offload_parameters)
        if uses and self.nvme_path is None:
            raise ValueError("`nvme_path` is missing: offloading to nvme needs a folder")
        if not uses and self.nvme_path is not None:
            raise ValueError("`nvme_path` has no effect when nothing is offloaded to nvme")
        return self


class Fsdp2Strategy(Section):
    name: Literal["fsdp2"] = Field(
        description="PyTorch's fully sharded data parallel (`fully_shard`): parameters, gradients and optimizer state are sharded."
    )
    offload: Literal["none", "cpu"] = Field(
        "none", description="Where parameters, gradients and optimizer state are kept while they are not used."
    )
    reshard_after_forward: bool = Field(
        True, description="Free each layer's gathered parameters after its forward pass; false: faster, more memory."
    )


StrategySettings = Annotated[
    Annotated[PlainStrategy | ZeroStrategy | Zero3Strategy | Fsdp2Strategy, Field(discriminator="name")],
    shorthand("name"),
]


# ── trackers ────────────────────────────────────────────────────────────────────────────────────────────────────────
class TensorBoardTracker(Section):
    name: Literal["tensorboard"] = Field(description="Event files in the run folder.")


class ProjectTracker(Section):
    name: Literal["wandb", "trackio"] = Field(
        description="wandb: Weights & Biases, offline where it cannot be reached; trackio: files beside the runs."
    )
    project: str | None = Field(None, description="Project of the tracker [default: the recipe's name].")


class MlflowTracker(Section):
    name: Literal["mlflow"] = Field(description="MLflow, in a database or on a server.")
    project: str | None = Field(None, description="Experiment of MLflow [default: the recipe's name].")
    uri: Annotated[str, AfterValidator(check_tracking_uri)] | None = Field(
        None,
        description="Database or server, such as `sqlite:///mlflow.db` beside the runs or `https://HOST` "
        "[default: $MLFLOW_TRACKING_URI, else that database].",
    )


TrackerSettings = TensorBoardTracker | ProjectTracker | MlflowTracker
Tracker = Annotated[Annotated[TrackerSettings, Field(discriminator="name")], shorthand("name")]


# ── train ───────────────────────────────────────────────────────────────────────────────────────────────────────────
class EarlyStopping(Section):
    patience: Positive = Field(description="Stop after this many consecutive validations without a better score.")
    min_delta: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Smallest improvement that counts, in the metric's own unit."
    )


class Train(Section):
    epochs: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Passes over the training rows [default: 3, without `steps`]."
    )
    steps: Positive | None = Field(None, description="Optimizer steps, instead of epochs.")
    global_batch: Positive = Field(
        32, description="Examples in one optimizer step, over all nodes, processes and accumulation steps. Exact."
    )
    micro_batch: Positive | Literal["auto"] = Field(
        "auto",
        description="Examples in one forward pass of a process. auto: the largest divisor of its share of the global batch, at most 32.",
    )
    lr: Annotated[float, Field(gt=0)] = Field(description="Peak learning rate.")
    optimizer: Optimizer = Field(default_factory=lambda: AdamW(name="adamw"), description="Name, or name and options.")
    layer_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="The head learns at lr, the last layer at lr x this, the layer before it at lr x this squared, and so on "
        "down to the embeddings (arXiv 1801.06146).",
    )
    schedule: Schedule = Field(
        default_factory=lambda: PlainSchedule(name="linear"), description="Name, or name and options."
    )
    warmup: Amount | None = Field(None, description="Linear warm-up: `6%` of all steps, `100 steps` or `0.5 epochs`.")
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(
        1.0, description="Largest gradient norm; null: no clipping."
    )
    loss: Loss | None = Field(None, description="Name, or name and options [default: the task's usual loss].")
    precision: Literal["fp32", "bf16", "fp16", "fp8"] = Field(
        "fp32",
        description="bf16 and fp16: autocast, fp16 with loss scaling; fp8: matrix products in 8 bits (Hopper GPUs and later). "
        "Trained weights and the optimizer stay fp32.",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of the data order, new weights and dropout.")
    strategy: StrategySettings = Field(
        default_factory=lambda: PlainStrategy(name="auto"),
        description="How processes share the work: name, or name and options.",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Recompute activations in the backward pass instead of keeping them: less memory, about a third slower.",
    )
    compile: bool = Field(False, description="Compile the model with torch.compile.")
    liger: bool = Field(False, description="Use Liger kernels, if the model has them (GPU).")
    batching: Literal["plain", "bucketed"] = Field(
        "plain", description="plain: shuffled. bucketed: batches of similar lengths, with little padding."
    )
    save_every: Period = Field("1 epoch", description="`0.5 epochs` or `200 steps`. The last step is always saved.")
    eval_every: Period | None = Field(
        None, description="Validate at this pace [default: save_every]. A validated step is also saved."
    )
    keep_last: Positive | None = Field(
        None,
        description="Keep this many of the newest checkpoints, the best one, and those not yet evaluated. null: keep all.",
    )
    keep_every: Period | None = Field(
        None, description="With keep_last: also keep the checkpoints at this pace, such as `1 epoch`."
    )
    async_save: bool = Field(
        True, description="Write checkpoints in the background; training waits only for the copy in memory."
    )
    on_bad_loss: Literal["stop", "skip"] = Field(
        "stop", description="What to do with a step whose loss or gradient is NaN or infinite, or above `max_loss`."
    )
    max_loss: Annotated[float, Field(gt=0)] | None = Field(None, description="Treat a loss above this like NaN.")
    early_stopping: EarlyStopping | None = Field(None, description="Stop when validation no longer improves.")
    log_every: Positive = Field(10, description="Optimizer steps between log lines.")
    tracking: list[Tracker] = Field(
        default_factory=listing,
        description="Trackers to log to, besides metrics.jsonl: names, or names and options, such as `[tensorboard, {name: wandb, project: demo}]`.",
    )
    deterministic: bool = Field(True, description="Use deterministic kernels, so that a resumed run is bit-identical.")

    @model_validator(mode="after")
    def _no_idle_settings(self) -> "Train":
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give `epochs` or `steps`, not both")
        if self.warmup is not None and self.schedule.name == "constant":
            raise ValueError("`warmup` has no effect with schedule: constant; use constant_with_warmup")
        if len({tracker.name for tracker in self.tracking}) < len(self.tracking):
            raise ValueError("`tracking` names a tracker twice")
        return self


# ── evaluate, resources, matrix ─────────────────────────────────────────────────────────────────────────────────────
class LmEval(Section):
    tasks: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] = Field(
        description="Tasks, groups or tags of lm-eval by name, or YAML files of tasks: `[arc_easy, ./task.yaml]`."
    )
    include_path: str | None = Field(None, description="Folder with further YAML files, whose tasks go by name.")
    num_fewshot: int | None = Field(
        None, ge=0, le=10**6, description="Solved examples before each question [default: the task's own]."
    )
    limit: Positive | None = Field(None, description="Documents of each task [default: all].")
    apply_chat_template: bool = Field(False, description="Ask by the model's chat template, instead of by plain text.")
    allow_code: bool = Field(
        False,
        description="Run the Python that task files name or hold in their templates, that metrics of the hub bring, and that the "
        "model writes in tasks marked as unsafe.",
    )


class Evaluate(Section):
    metric: str | None = Field(
        None, description="Metric by which a checkpoint is chosen [default: the problem's first in the README's table]."
    )
    direction: Literal["max", "min"] | None = Field(
        None, description="Whether larger or smaller is better [default: the metric's own]."
    )
    choose_on: Literal["validation"] = Field("validation", description="Split the checkpoint is chosen on.")
    report_on: list[Literal["train", "test"]] = Field(
        ["test"], description="Splits on which the chosen checkpoint is evaluated, once."
    )
    micro_batch: Positive = Field(64, description="Examples in one forward pass.")
    slices: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=listing,
        description="Columns of the data by whose values the winner's scores are also given, such as `[language, source]`; by "
        "length they always are. Changing it makes no other run.",
    )
    temperature: bool = Field(
        False,
        description="Export the temperature that is fitted on validation: `predict` divides the logits of the classes by it, so "
        "that probabilities mean what they say. Changing it makes no other run.",
    )
    export: Literal["merged", "adapter", "none"] | None = Field(
        None,
        description="How the chosen checkpoint is written as a Hugging Face folder. merged: adapters merged into the base model; "
        "adapter: separate [default: merged if that is possible].",
    )
    lm_eval: LmEval | None = Field(
        None,
        description="General tasks of lm-evaluation-harness on which the chosen checkpoint is compared with the base model "
        "(instruction tuning): `{tasks: [arc_easy, hellaswag]}`.",
    )


class Resources(Section):
    nodes: Positive = Field(1, description="Number of machines.")
    processes_per_node: Positive | Literal["auto"] = Field(
        "auto",
        description="Processes on each machine. auto: one per GPU; without a GPU two (one on a single core), so that a local run is distributed, too.",
    )
    threads_per_process: Positive | None = Field(
        None, description="CPU threads per process [default: cores / processes]."
    )
    time: Annotated[str, AfterValidator(check_time)] | None = Field(
        None, description="Time limit: `90min`, `2h30m`, `1-12:00:00`."
    )
    memory: Annotated[str, AfterValidator(check_memory)] | None = Field(None, description="Memory per machine: `32GB`.")
    hang_timeout: Annotated[str, AfterValidator(check_time)] = Field(
        "30min",
        description="A process without a heartbeat or a finished step for this long counts as hanging: it is named, and the run is "
        "restarted. Must be longer than the slowest step.",
    )


class Matrix(BaseModel):
    """Key path -> values, all combined as a grid; `zip` lists groups whose values go together."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    __pydantic_extra__: dict[str, Annotated[list[Any], Field(min_length=1)]]
    zip: list[dict[str, Annotated[list[Any], Field(min_length=1)]]] = Field(
        default_factory=listing,
        description="Groups whose values vary together, first with first: `[{train.seed: [1, 2], train.lr: [1e-4, 2e-4]}]`.",
    )


# ── search ──────────────────────────────────────────────────────────────────────────────────────────────────────────
Bounds = Annotated[list[int | float], Field(min_length=2, max_length=2)]
WholeBounds = Annotated[list[int], Field(min_length=2, max_length=2)]
Choices = Annotated[list[Any], Field(min_length=1)]


class Dimension(Section):
    """The values of one key path that a search may try."""

    choice: Choices | None = Field(None, description="One of these values: `[linear, cosine]`.")
    log: Bounds | None = Field(
        None,
        description="A number between the two, evenly on a logarithmic scale: `[1e-6, 1e-3]`. Whole if both are whole.",
    )
    float: Bounds | None = Field(None, description="A number between the two: `[0.0, 0.3]`.")
    int: WholeBounds | None = Field(None, description="A whole number from the first to the last: `[1, 8]`.")
    when: dict[str, Any] = Field(
        default_factory=mapping,
        description="Only where other dimensions of the space have these values (a list: one of them): `{tuning: lora}`.",
    )

    @model_validator(mode="after")
    def _one_kind(self) -> "Dimension":
        kinds = [name for name in ("choice", "log", "float", "int") if getattr(self, name) is not None]
        if len(kinds) != 1:
            raise ValueError("give exactly one of `choice`, `log`, `float` and `int`")
        bounds = self.log or self.float or self.int
        if bounds and bounds[0] >= bounds[1]:
            raise ValueError(f"`{kinds[0]}` needs the smaller number first")
        if self.log and self.log[0] <= 0:
            raise ValueError("`log` needs numbers above zero")
        return self


class Budget(Section):
    trials: Positive = Field(20, description="Trials that are trained; points that the planner refuses do not count.")
    gpu_hours: Annotated[float, Field(gt=0)] | None = Field(
        None, description="No trial is started or promoted after this many hours of training processes."
    )


class NoPruning(Section):
    name: Literal["none"] = Field(description="Every trial is trained to its end.")


class AshaPruning(Section):
    name: Literal["asha"] = Field(
        description="Trials pause at rungs, and the best of each rung are promoted to the next by resuming the same run "
        "(Li et al. 2018, arXiv 1810.05934)."
    )
    eta: Annotated[int, Field(ge=2, le=100)] = Field(
        3, description="One in so many is promoted; each rung has so many times the steps of the rung before it."
    )
    first: Amount | None = Field(
        None, description="Steps of the first rung: `10%`, `100 steps` or `1 epoch` [default: all steps / eta squared]."
    )


class MedianPruning(Section):
    name: Literal["median"] = Field(
        description="A trial stops when its best score is worse than the median of the other trials at the same step."
    )
    first: Amount = Field("10%", description="No trial is stopped before: `10%`, `100 steps` or `1 epoch`.")
    trials: Positive = Field(5, description="Other trials that must have a score at the same step.")


Pruning = Annotated[Annotated[NoPruning | AshaPruning | MedianPruning, Field(discriminator="name")], shorthand("name")]


class Search(Section):
    """What `sft-dist search` varies, and how."""

    space: Annotated[dict[str, Dimension], Field(min_length=1)] = Field(
        description="Key path -> the values it may have: `{train.lr: {log: [1e-6, 1e-3]}}`."
    )
    sampler: Literal["tpe", "random", "grid", "gp"] = Field(
        "tpe",
        description="How points are chosen: tree-structured Parzen estimator, at random, all in turn, Gaussian process.",
    )
    budget: Budget = Field(default_factory=lambda: Budget(), description="When the search ends.")
    metric: str | None = Field(None, description="Score on validation that is optimized [default: evaluate.metric].")
    direction: Literal["max", "min"] | None = Field(
        None, description="Whether larger or smaller is better [default: the metric's own]."
    )
    pruning: Pruning = Field(
        default_factory=lambda: NoPruning(name="none"),
        description="How bad trials end early: name, or name and options.",
    )
    parallel: Positive = Field(1, description="Trials that are trained at the same time.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of the points.")


class Recipe(Section):
    """What to fine-tune, on what data, how, and with what resources."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)] = Field(
        description="Name of the runs' folder [default: the file's name]."
    )
    description: str = Field("", description="A note for readers.")
    task: Task = Field(description="Name, or `type` and options.")
    model: Model = Field(description="Where the weights come from.")
    data: Data = Field(description="Where the examples come from, and how they are cleaned and split.")
    tuning: Tuning = Field(description="Which parameters are trained: name, or `method` and options.")
    train: Train = Field(description="How to train, such as `{lr: 2e-5, epochs: 3}`.")
    evaluate: Evaluate = Field(default_factory=lambda: Evaluate(), description="How checkpoints are evaluated.")
    resources: Resources = Field(
        default_factory=lambda: Resources(), description="Machines, processes, memory and time."
    )
    matrix: Matrix | None = Field(None, description="Key path -> values: one run for each combination.")
    search: Search | None = Field(None, description="What `sft-dist search` varies; no other verb reads it.")
