"""Facts of instruction tuning."""

from typing import ClassVar, Literal

from pydantic import Field

from sft_dist.recipe.tasks.base import Columns, Kind, Positive, Starters, TaskSettings


class InstructionTuningTask(TaskSettings):
    type: Literal["instruction-tuning"] = Field(description="Answers in conversations (causal language models).")
    train_on: Literal["answers", "all"] = Field("answers", description="Tokens that count in the loss.")
    packing: bool = Field(
        False, description="Fill sequences of data.max_length with several conversations, which do not see each other."
    )
    system: str | None = Field(None, description="System message for conversations that have none.")
    chat_template: str | None = Field(
        None, description="A file with a Jinja chat template. Default: the tokenizer's own."
    )
    max_new_tokens: Positive = Field(256, description="Longest answer `predict` writes.")

    work = "sft_dist.tasks.instruction_tuning:InstructionTuning"
    columns: ClassVar[Columns] = {
        "messages": "if present",
        "conversations": "if present",
        "instruction": "if present",
        "input": "if present",
        "output": "if present",
        "system": "if present",
        "history": "if present",
        "prompt": "if present",
        "completion": "if present",
    }
    # perplexity: exp of the mean negative log-likelihood of the tokens that `train_on` names, so exp(loss) unless the loss is
    # smoothed. token_accuracy and exact_match are of the answers.
    kinds = (
        Kind({"loss": "min", "perplexity": "min", "token_accuracy": "max", "exact_match": "max"}, ("cross-entropy",)),
    )
    starters: ClassVar[Starters] = {
        "instruction-tuning": {
            "model.path": "HuggingFaceTB/SmolLM2-135M-Instruct",
            "data.source": "./train.jsonl",
            "data.max_length": "1024",
            "tuning.method": "lora",
            "tuning.r": "16",
            "tuning.alpha": "32",
            "train.lr": "5e-4",
            "evaluate.metric": "loss",
        }
    }

    @property
    def packs(self) -> bool:
        return self.packing

    def files(self) -> dict[str, str]:
        return {} if self.chat_template is None else {"chat_template": self.chat_template}
