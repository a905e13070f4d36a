"""Facts of instruction tuning."""

from collections.abc import Collection, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from sft_dist.recipe.errors import Problem
from sft_dist.recipe.tasks.base import Columns, Kind, Metrics, Positive, Starters, TaskSettings

# Columns of the usual data sets, by what they hold; of several that have a value in a row the first is read.
CONVERSATIONS = ("messages", "conversations", "conversation", "data")  # OpenAI; ShareGPT, Vicuna, OpenHermes; UltraChat
QUESTIONS = ("instruction", "prompt", "question", "query")  # Alpaca, Dolly; prompt and completion; OpenOrca; MetaMath
CONTEXTS = ("input", "context")  # Alpaca; Dolly
ANSWERS = ("output", "completion", "response", "answer")
SYSTEMS = ("system", "system_prompt")
TOOL_COLUMNS = ("tools", "functions")

CROSS_ENTROPY = ("cross-entropy",)
TEXT = (("rouge_score", "sft-dist[text]"), ("sacrebleu", "sft-dist[text]"))
TOKEN_METRICS: Metrics = {"loss": "min", "perplexity": "min", "token_accuracy": "max", "exact_match": "max"}
# Of written answers. Their length_ratio is a score without a better direction.
ANSWER_METRICS: Metrics = {
    "rougeL": "max",
    "bleu": "max",
    "chrf": "max",
    "generated_exact_match": "max",
    "repeated_ngrams": "min",
    "repeated_sentences": "min",
    "no_end_token": "min",
}


class InstructionTuningTask(TaskSettings):
    type: Literal["instruction-tuning"] = Field(description="Answers to conversations (causal language models).")
    train_on: Literal["answers", "all"] = Field("answers", description="Tokens that count in the loss.")
    packing: bool = Field(
        False,
        description="Pack several conversations into each sequence of data.max_length; they do not attend to each other.",
    )
    system: str | None = Field(None, description="System message for conversations that have none.")
    chat_template: str | None = Field(
        None, description="A file with a Jinja chat template [default: the tokenizer's own]."
    )
    max_new_tokens: Positive = Field(256, description="Longest answer that is written, in tokens.")
    num_generated: Annotated[int, Field(ge=0, le=10**9)] = Field(
        0,
        description="Examples of a split whose last answer is also written and scored at each evaluation: ROUGE-L, BLEU, chrF, "
        "repetitions, missing ends. A written answer takes up to `max_new_tokens` forward passes.",
    )

    work = "sft_dist.tasks.instruction_tuning:InstructionTuning"
    writes_text = True
    is_causal_lm = True
    columns: ClassVar[Columns] = dict.fromkeys(
        (*CONVERSATIONS, *QUESTIONS, *CONTEXTS, *ANSWERS, *SYSTEMS, *TOOL_COLUMNS, "history"), "if present"
    )
    # perplexity: exp of the mean negative log-likelihood of the tokens that `train_on` names, so exp(loss) unless the loss is
    # smoothed. token_accuracy and exact_match are of the answers.
    kinds = (
        Kind(TOKEN_METRICS, CROSS_ENTROPY),
        Kind({**TOKEN_METRICS, **ANSWER_METRICS}, CROSS_ENTROPY, packages=TEXT),
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
    samples: ClassVar[Mapping[str, str]] = {"system": "You answer briefly.", "chat_template": "./template.jinja"}

    def missing_columns(self, roles: Collection[str], columns: Collection[str]) -> Problem | None:
        if any(role in roles for role in CONVERSATIONS):
            return None
        has_question = any(role in roles for role in (*QUESTIONS, "input"))
        has_answer = any(role in roles for role in ANSWERS)
        if has_question and has_answer:
            return None
        valid: tuple[str, ...]
        if has_question or has_answer:
            lacking, valid = ("questions", QUESTIONS) if has_answer else ("answers", ANSWERS)
            message, example = f"no column has the {lacking}", valid[0]
        else:
            message, valid = (
                "no column has conversations, or questions and answers",
                (*CONVERSATIONS, *QUESTIONS, *ANSWERS),
            )
            example = "messages"
        hint = f"map the column, as in data.columns: {{{example}: NAME}}"
        if "text" in columns:
            hint += "; a column of whole texts (`text`) has to be divided into `prompt` and `completion`, or `messages`"
        return Problem(message, "data.columns", value=", ".join(columns), valid=valid, hint=hint)

    @property
    def kind(self) -> Kind:
        return self.kinds[1 if self.num_generated else 0]

    @property
    def packs(self) -> bool:
        return self.packing

    def files(self) -> dict[str, str]:
        return {} if self.chat_template is None else {"chat_template": self.chat_template}
