"""A short conversation, and rows that vary it."""

from __future__ import annotations

from sft_dist.data.chat.messages import messages_of

HELLO = [{"role": "user", "content": "how many legs?"}, {"role": "assistant", "content": "eight"}]


def turns_with(*flags):
    """A question and an answer for each mapping of flags."""
    pairs = [[HELLO[0], {"role": "assistant", "content": f"answer {n}", **flag}] for n, flag in enumerate(flags)]
    return messages_of({"messages": [turn for pair in pairs for turn in pair]}, 3)


def thoughtful(**answer):
    return messages_of({"messages": [HELLO[0], {**HELLO[1], **answer}]}, 6)
